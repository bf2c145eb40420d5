"""Checks of settings, which note every problem instead of raising at the first.

Each ``check_`` function takes a value in its own type or in its text form and gives it back normalised. After
a problem what it gives back is only a stand-in: `Problems.raise_any` comes before the values are used.
"""

from __future__ import annotations

import enum
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar, cast

from aioconnect.errors import ConfigError

__all__ = (
    "CREDENTIALS",
    "Problems",
    "check_duration",
    "check_file",
    "check_integer",
    "check_number",
    "check_optional_duration",
    "check_sequence",
    "check_socket_path",
    "check_switch",
    "did_you_mean",
    "format_duration",
    "is_url",
    "nearest",
    "parse_duration",
    "seconds",
    "shown",
    "switch",
)

CREDENTIALS = "must not hold a user name or a password: they belong to the protocol spoken over it"
LONGEST_SHOWN = 80
LONGEST_SOCKET_PATH = 107 if sys.platform.startswith(("linux", "win")) else 103
"""Bytes, without the closing NUL: sun_path is 108 bytes on Linux (unix(7)), 104 on macOS and the BSDs."""


_UNITS: Mapping[str, float] = MappingProxyType({"ms": 0.001, "s": 1, "m": 60, "h": 3600})
_IN_NUMBERS = frozenset("0123456789.e+-")
_SWITCHES: Mapping[str, bool] = MappingProxyType(
    {word: state for state, words in ((True, "on true yes 1"), (False, "off false no 0")) for word in words.split()}
)


Built = TypeVar("Built")


class Problems:
    """What is wrong with one value: collected field by field, raised at once."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, field: str, value: object, right: str) -> None:
        """Note that a field cannot have this value, and what would be right."""
        self.found.append(f"{field}={shown(value)}: {right}")

    def unless_wrong(self, build: Callable[[], Built], within: str = "") -> Built | None:
        """What ``build`` makes, or None; its problems are taken over, with ``within`` before their fields."""
        try:
            return build()
        except ConfigError as error:
            self.found.extend(within + problem for problem in error.problems)
            return None

    def raise_any(self) -> None:
        """Raise a ConfigError of all problems noted, if there are any.

        Never to be called in an ``except`` block: the context of the error would hold the text as it was
        given, with whatever password is in it.
        """
        if self.found:
            raise ConfigError(*self.found)


def shown(value: object) -> str:
    """A value as an error message may show it: short, printable, and nothing that looks like a password.

    >>> shown("a b"), shown("user:secret@host"), shown(object())
    ("'a b'", "'***'", '<object>')
    """
    value = _from_path_like(value)
    if isinstance(value, (tuple, list)):
        every = cast("Sequence[object]", value)
        return f"({', '.join(shown(each) for each in every[:4])}{', ...' if len(every) > 4 else ''})"
    text = _printed(value)
    if "@" in text or "%40" in text or "\uff20" in text:
        return "'***'"
    if "://" in text and "?" in text:
        # Somewhere in its query may be a token.
        return text.partition("?")[0] + "?***'"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _printed(value: object) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    if not isinstance(value, (str, bytes, int, float, type(None))):
        # Somebody's object may be a secret, and its repr may be anything.
        return f"<{type(value).__name__}>"
    if isinstance(value, int) and value.bit_length() > 256:
        # CPython refuses to print integers of more than 4300 digits.
        return f"<{value.bit_length()}-bit integer>"
    return repr(value)


def _from_path_like(value: object) -> object:
    return os.fspath(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else value


def is_url(text: str) -> bool:
    """Whether a text that should be something else is a URL, which may hold a password."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and "/" not in scheme


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A closing question with the nearest known name, or the whole list when none is near.

    >>> did_you_mean("tsl", ("tcp", "tls", "unix"))
    'did you mean tls?'
    """
    names = list(known)
    near = nearest(name, names)
    return f"must be one of {', '.join(names)}" if near is None else f"did you mean {near}?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``; None when none is near."""
    # Only a mistake needs it, and its import costs 3 ms.
    import difflib  # noqa: PLC0415

    near = difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None


def parse_duration(text: str) -> float | None:
    """Seconds from a text with or without a unit (ms, s, m, h); None if it is no duration.

    >>> parse_duration("250ms"), parse_duration("1.5m"), parse_duration("2"), parse_duration("soon")
    (0.25, 90.0, 2.0, None)
    """
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    digits = text.removesuffix(unit)
    # float() would also take "nan", "1_000" and other alphabets' digits.
    if not _IN_NUMBERS.issuperset(digits):
        return None
    try:
        number = float(digits)
    except ValueError:
        return None
    # Divided, not multiplied by 0.001: 250ms is then exactly 0.25.
    return number / 1000 if unit == "ms" else number * _UNITS.get(unit, 1)


def format_duration(seconds: float) -> str:
    """The text for a duration; parsing it gives the same float again, to the last bit.

    >>> format_duration(0.25), format_duration(15.0), format_duration(1.5)
    ('250ms', '15s', '1.5s')
    """
    if seconds < 1:
        text = f"{seconds * 1000:.10g}ms"
        if parse_duration(text) == seconds:
            return text
    return f"{int(seconds)}s" if seconds == int(seconds) < 1e15 else f"{seconds!r}s"


def check_duration(
    problems: Problems,
    field: str,
    value: object,
    low: float = 0.0,
    high: float = sys.float_info.max,
    *,
    zero: bool = False,
) -> float:
    """Seconds, as a number or a text such as ``"250ms"``: from low to high, and more than 0 unless ``zero`` is good."""
    seconds = _seconds(value)
    if seconds is None:
        problems.add(field, value, "must be a number of seconds, or a text such as '250ms', '2s', '1m'")
        return 1.0
    # NaN fails every comparison, so the test is for what is right.
    if low <= seconds <= high and (zero or seconds > 0):
        return seconds
    least = f"at least {format_duration(low)}" if low else "at least 0" if zero else "more than 0"
    most = "finite" if high == sys.float_info.max else f"at most {format_duration(high)}"
    problems.add(field, value, f"must be {least} and {most}")
    return 1.0


def seconds(field: str, value: object, *, zero: bool = False) -> float:
    """A duration given to a call, in seconds. Raises ConfigError at once if it cannot be one."""
    problems = Problems()
    checked = check_duration(problems, field, value, zero=zero)
    problems.raise_any()
    return checked


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # An integer beyond the range of float would raise OverflowError.
    return math.inf if isinstance(value, int) and value.bit_length() >= 1024 else float(value)


def check_optional_duration(
    problems: Problems, field: str, value: object, low: float = 0.0, high: float = sys.float_info.max
) -> float | None:
    """As `check_duration`; None, or ``"off"`` in a text, stands for none."""
    if value is None or (isinstance(value, str) and value == "off"):
        return None
    return check_duration(problems, field, value, low, high)


def check_integer(problems: Problems, field: str, value: object, low: int, high: int | None = None) -> int:
    """An integer from low to high, or its decimal digits. Neither a bool nor a float is accepted."""
    # Digits are limited because int() refuses more than 4300 with an error of its own.
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    top = math.inf if high is None else high
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= top:
        return int(value)
    limits = f", {low} or more" if high is None else f" from {low} to {high}"
    problems.add(field, value, f"must be an integer{limits}")
    return low


def check_number(problems: Problems, field: str, value: object, low: float, high: float | None = None) -> float:
    """A finite number from low to high. Neither a bool nor a text is accepted, for a text would have a unit."""
    top = sys.float_info.max if high is None else high
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= top:
        return float(value)
    limits = f"{low:g} or more" if high is None else f"from {low:g} to {high:g}"
    problems.add(field, value, f"must be a finite number, {limits}")
    return low


def switch(value: object) -> bool | None:
    """True or False for a bool or a text such as ``"on"``, ``"no"``, ``"1"``; None if it is neither."""
    if isinstance(value, bool):
        return value
    return _SWITCHES.get(value.lower()) if isinstance(value, str) else None


def check_switch(problems: Problems, field: str, value: object) -> bool:
    """True or False, or a text for it."""
    state = switch(value)
    if state is None:
        problems.add(field, value, "must be True or False; on or off in a text")
    return bool(state)


def check_sequence(problems: Problems, field: str, value: object) -> tuple[object, ...]:
    """The items of a sequence, or of a text that separates them with commas."""
    if isinstance(value, str):
        return tuple(value.split(","))
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return tuple(cast("Iterable[object]", value))
    problems.add(field, value, "must be a sequence, or a text with commas")
    return ()


def _path(problems: Problems, field: str, value: object, what: str) -> str | None:
    """A path as a str with surrogate escapes (PEP 383), so that its URL can be read back to the same."""
    value = _from_path_like(value)
    if not isinstance(value, (str, bytes)):
        problems.add(field, value, f"must be the path of {what}: str, bytes or PathLike")
        return None
    try:
        text = os.fsdecode(value).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        os.fsencode(text)
    except UnicodeError:
        problems.add(field, value, "must be a path that the file system's encoding can write")
        return None
    if not text:
        problems.add(field, value, f"must be the path of {what}, not empty")
        return None
    if is_url(text):
        problems.add(field, value, f"must be the path of {what}, not a URL")
        return None
    return text


def check_file(problems: Problems, field: str, value: object) -> str | None:
    """The path of a file, or None. The file is not looked at: it may appear later."""
    if value is None:
        return None
    text = _path(problems, field, value, "a file")
    if text is not None and "\0" in text:
        problems.add(field, value, "must not contain a NUL character")
    return text


def check_socket_path(problems: Problems, field: str, value: object) -> str:
    """The path of a UNIX socket; one that begins with NUL is an abstract name, on Linux only (unix(7))."""
    text = _path(problems, field, value, "a UNIX socket")
    if text is None:
        return ""
    if "\0" in text[1:] or text == "\0":
        problems.add(field, value, "must not contain a NUL character, but for the first of an abstract name")
    elif text[0] == "\0" and not sys.platform.startswith("linux"):
        problems.add(field, value, "must be a path: abstract names exist on Linux only")
    elif (length := len(os.fsencode(text))) > LONGEST_SOCKET_PATH:
        problems.add(field, value, f"must be at most {LONGEST_SOCKET_PATH} bytes long, and has {length}")
    return text
