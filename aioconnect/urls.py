"""The text form of an endpoint: taking it apart, and writing its pieces. What they mean is not decided here.

    [tcp:// | tls://] HOST:PORT [, HOST:PORT ...] [? OPTION=VALUE [& OPTION=VALUE ...]]
    srv+tcp://_SERVICE._tcp.DOMAIN   srv+tls://_SERVICE._tcp.DOMAIN   [? OPTION=VALUE ...]
    unix:///PATH   unix:RELATIVE/PATH   unix://@ABSTRACT-NAME   [? OPTION=VALUE ...]

Percent-encoding works everywhere (RFC 3986 section 2.1). An IPv6 address stands in brackets, its interface
after ``%25`` (RFC 6874 section 2) or, as people type it, after ``%``.

Not `urllib.parse`: it knows neither several hosts nor interfaces, takes user names and passwords without a
word, drops line breaks silently, and its import costs 5 ms.
"""

from __future__ import annotations

import string
from collections.abc import Collection
from typing import NamedTuple

from aioconnect.validation import CREDENTIALS, Problems, did_you_mean

__all__ = ("SCHEMES", "Parts", "format_path", "quote", "split_url", "unquote")

SCHEMES = ("tcp", "tls", "srv+tcp", "srv+tls", "unix")


_PLAIN = frozenset((string.ascii_letters + string.digits + "-._~/:,[]").encode("ascii"))
_HEXADECIMAL = frozenset(string.hexdigits.encode("ascii"))

_ENCODING = "must have two hexadecimal digits after each %"


class Parts(NamedTuple):
    """A URL's pieces, decoded. ``targets`` for tcp and tls, ``srv`` for srv+tcp and srv+tls, ``path`` for unix."""

    scheme: str
    targets: tuple[str, ...]
    path: str | None
    options: dict[str, str]
    srv: str | None = None


def split_url(problems: Problems, text: object, known: Collection[str]) -> Parts:
    """Take a URL apart, a bare ``host:port`` too; ``known`` are the names of the options.

    Raises ConfigError at once when the place itself cannot be read; what else is wrong is only noted.
    """
    whole = str.__str__(text) if isinstance(text, str) else ""
    if not isinstance(text, str):
        problems.add("url", text, "must be text, such as tcp://host:port")
    elif whole != whole.strip():
        problems.add("url", text, "must not begin or end with a space")
    problems.raise_any()
    rest, _, fragment = whole.partition("#")
    place, _, query = rest.partition("?")
    if place[:5].lower() == "unix:":
        path = _socket_path(problems, place[5:])
        problems.raise_any()
        parts = Parts("unix", (), path, {})
    else:
        # An @ anywhere: a password with a / or a ? or a # in it ends up behind the place.
        if "@" in whole or "%40" in place:
            problems.add("url", "@", CREDENTIALS)
        parts = _network_parts(problems, place)
    if fragment:
        # Not shown: a # may have been in a password.
        problems.add("fragment", "#", "must not be there; a # is written %23")
    _read_options(problems, query, known, parts.options)
    return parts


def _network_parts(problems: Problems, place: str) -> Parts:
    scheme, mark, rest = place.partition("://")
    if not mark:
        scheme, rest = "tcp", place
    authority, slash, path = rest.partition("/")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        problems.add("scheme", scheme, did_you_mean(scheme, SCHEMES))
    problems.raise_any()
    of_service = scheme.startswith("srv+")
    names = (authority,) if of_service else authority.split(",")
    targets = tuple(_decoded_target(problems, name) for name in names)
    problems.raise_any()
    if slash:
        shape = "_service._tcp.domain" if of_service else "host:port"
        problems.add("path", slash + path, f"must not be there: only ?options can follow {scheme}://{shape}")
    return Parts(scheme, (), None, {}, targets[0]) if of_service else Parts(scheme, targets, None, {})


def _decoded_target(problems: Problems, text: str) -> str:
    if text.startswith("["):
        address, percent, scope = text.partition("%")
        # Alone, 25 is an interface's number.
        if scope.startswith("25") and not scope.startswith("25]"):
            scope = scope[2:]
        return address + percent + scope
    decoded = unquote(text)
    if decoded is None:
        problems.add("target", text, _ENCODING)
        return ""
    return decoded


def _socket_path(problems: Problems, place: str) -> str:
    text = place.removeprefix("//")
    abstract = text.startswith("@")
    if "@" in text[abstract:] and not text.startswith("/"):
        problems.add("url", text, CREDENTIALS)
        return ""
    if place.startswith("//") and not text.startswith(("/", "@")):
        problems.add("path", text, "must begin with / after unix://; a relative one is written unix:run/app.sock")
        return ""
    path = unquote(text[abstract:])
    if path is None:
        problems.add("path", text, _ENCODING)
        return ""
    return "\0" + path if abstract else path


def _read_options(problems: Problems, query: str, known: Collection[str], options: dict[str, str]) -> None:
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        # The value of an unknown option is never shown: it may well be a password. A name without one may be its tail.
        if name not in known:
            problems.add("option", name if equals or not name else "...", f"is unknown; {did_you_mean(name, known)}")
        elif name in options:
            problems.add("option", name, "must be given only once")
        elif not equals:
            problems.add("option", name, f"must have a value, as in {name}=...")
        elif (decoded := unquote(value)) is None:
            problems.add(name, value, _ENCODING)
        else:
            options[name] = decoded


def unquote(text: str) -> str | None:
    """Undo percent-encoding; None if it is broken. Bytes that are not UTF-8 become surrogates (PEP 383).

    >>> unquote("a%20b"), unquote("100%")
    ('a b', None)
    """
    if "%" not in text:
        return text
    try:
        first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
        if not all(len(part) >= 2 and _HEXADECIMAL.issuperset(part[:2]) for part in rest):
            return None
        raw = first + b"".join(bytes.fromhex(part[:2].decode("ascii")) + part[2:] for part in rest)
    except UnicodeEncodeError:
        return None
    return raw.decode("utf-8", "surrogateescape")


def quote(text: str) -> str:
    """Percent-encode what has a meaning in a URL or is not ASCII; `unquote` gives the same text again.

    >>> quote("/run/a b.sock")
    '/run/a%20b.sock'
    """
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)


def format_path(path: str) -> str:
    """The URL of a UNIX socket.

    >>> format_path("/run/app.sock"), format_path("app.sock"), format_path(chr(0) + "app")
    ('unix:///run/app.sock', 'unix:app.sock', 'unix://@app')
    """
    if path.startswith("\0"):
        return f"unix://@{quote(path[1:])}"
    return f"unix://{quote(path)}" if path.startswith("/") else f"unix:{quote(path)}"
