"""Scripts: what the connects to an address meet, one after the other.

A step is a word, perhaps with a duration, perhaps with a number of bytes; or an errno number::

    "ok"                 connected, by whatever serves there
    "ok 300ms"           connected, after that time instead of a round trip
    "ECONNREFUSED"       fails so, after a round trip; any errno name, or its number
    "ECONNREFUSED 2s"    fails so, after that time
    "hang"               says nothing, until the kernel gives up: ETIMEDOUT after 127 s
    "hang 2s"            says nothing, and the kernel gives up after that time
    "reset"              connected, then reset at once
    "reset after 100"    connected, and reset once the server has sent so many bytes
    "close", "close after 100"    the same with an orderly close
    "stall", "stall after 100"    the same, but what follows never arrives

The last step stands for all further connects: ``["ECONNREFUSED"] * 3 + ["hang 2s", "ok"]``.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, cast

from aioconnect.errors import ConfigError
from aioconnect.validation import Problems, did_you_mean, parse_duration, shown

__all__ = ("Step", "chances", "parse_script", "parse_step")

SYN_TIMEOUT = 127.0
"""Seconds after which Linux gives a silent connect up: tcp_syn_retries is 6 (tcp(7)), the first wait 1 s, doubled."""

_PLAIN = ("ok", "hang")
_CUTS = ("reset", "close", "stall")


class Step(NamedTuple):
    """What one connect meets. ``number``: its errno, 0 if it connects. ``delay``: seconds; ``None``: a round trip."""

    word: str
    number: int = 0
    delay: float | None = None
    after: int = 0
    """Of a connection that is to be cut: how many bytes from the server come through before."""


def parse_step(given: object) -> Step:
    """A step from its text or number. Raises `ConfigError` for what makes no sense.

    >>> parse_step("hang 2s").delay, parse_step("reset after 100").after
    (2.0, 100)
    """
    if isinstance(given, Step):
        return given
    problems = Problems()
    step = _step(problems, given)
    problems.raise_any()
    return step


def _step(problems: Problems, given: object) -> Step:
    if isinstance(given, int) and not isinstance(given, bool):
        if given in errno.errorcode or given == 0:
            return Step(errno.errorcode.get(given, "ok"), given)
        problems.add("step", given, "must be an errno number of this system")
    elif not isinstance(given, str) or not given.split():
        problems.add("step", given, "must be a word such as 'ok', 'hang 2s', 'reset after 100', or an errno")
    else:
        word, *rest = given.split()
        if word in _CUTS:
            return Step(word, after=_bytes(problems, given, rest))
        if word in _PLAIN or hasattr(errno, word):
            number = 0 if word == "ok" else errno.ETIMEDOUT if word == "hang" else cast(int, getattr(errno, word))
            return Step(word, number, _delay(problems, given, rest))
        known = (*_PLAIN, *_CUTS, *errno.errorcode.values())
        hint = did_you_mean(word, known)
        hint = hint if hint.startswith("did") else f"must be {', '.join(_PLAIN + _CUTS)} or an errno name"
        problems.add("step", given, f"is no step; {hint}")
    return Step("ok")


def _delay(problems: Problems, given: str, rest: list[str]) -> float | None:
    if not rest:
        return None
    delay = parse_duration(rest[0]) if len(rest) == 1 else None
    if delay is None or not 0 <= delay < 1e9:
        problems.add("step", given, "must be a word and at most a duration, such as 'hang 2s'")
    return delay


def _bytes(problems: Problems, given: str, rest: list[str]) -> int:
    if not rest:
        return 0
    if len(rest) == 2 and rest[0] == "after" and rest[1].isascii() and rest[1].isdecimal() and len(rest[1]) < 16:
        return int(rest[1])
    problems.add("step", given, "must be a word and at most a number of bytes, such as 'reset after 100'")
    return 0


def parse_script(given: object) -> Iterator[Step]:
    """The steps of a script without end: the last one is repeated. Raises `ConfigError` for what makes no sense.

    A generator is asked for a step at each connect. A single step may stand alone.

    >>> steps = parse_script(["ECONNREFUSED", "ok"])
    >>> [next(steps).word for _ in range(3)]
    ['ECONNREFUSED', 'ok', 'ok']
    """
    if isinstance(given, (str, int, Step)):
        given = [given]
    if isinstance(given, Iterator):
        return _repeating(cast("Iterator[object]", given))
    if not isinstance(given, Iterable):
        raise ConfigError(f"script={shown(given)}: must be steps in a sequence, or one step")
    problems, steps = Problems(), list[Step]()
    for number, each in enumerate(cast("Iterable[object]", given)):
        step = problems.unless_wrong(functools.partial(parse_step, each), f"script[{number}].")
        steps.append(Step("ok") if step is None else step)
    if not steps:
        problems.add("script", "", "must have a step; 'ok' for what has no faults")
    problems.raise_any()
    return _repeating(iter(steps))


def _repeating(steps: Iterator[object]) -> Iterator[Step]:
    last = Step("ok")
    for each in steps:
        last = parse_step(each)
        yield last
    while True:
        yield last


def chances(weights: Mapping[str, float], draw: Callable[[], float]) -> Iterator[Step]:
    """Steps drawn at random: each with its probability, ``"ok"`` for the rest. ``draw`` gives numbers from 0 to 1.

    >>> import random
    >>> steps = chances({"ECONNREFUSED": 0.3, "hang 2s": 0.1}, random.Random(7).random)

    Raises `ConfigError` for a probability that is none, or if they add up to more than 1.
    """
    problems, table = Problems(), list[tuple[float, Step]]()
    total = 0.0
    for word, weight in weights.items():
        step = problems.unless_wrong(functools.partial(parse_step, word), "chances.")
        if not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            problems.add(f"chances[{word!r}]", weight, "must be a probability, from 0 to 1")
            continue
        total += weight
        table.append((total, step or Step("ok")))
    if total > 1 + 1e-9:
        problems.add("chances", total, "must add up to at most 1; what is left is for 'ok'")
    problems.raise_any()
    return _drawn(table, draw)


def _drawn(table: list[tuple[float, Step]], draw: Callable[[], float]) -> Iterator[Step]:
    while True:
        at = draw()
        yield next((step for total, step in table if at < total), Step("ok"))
