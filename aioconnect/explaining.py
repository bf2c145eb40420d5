"""From what somebody has at hand, a number, a name, a pasted text of any program, to what it means.

What a text says for itself comes first: a symbolic name, or the words of an error, mean the same on every system.
A number is read as one of this system, unless the words or the exception beside it say that it is another's.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from aioconnect import codes
from aioconnect.explanations import CERTIFICATE_PROBLEMS, EXPLANATIONS, Explanation

__all__ = (
    "certificate_problem",
    "explanation_of",
    "members_in",
    "members_named",
    "members_numbered",
    "sheet",
    "unknown",
)

_WIDTH = 88
_MARGIN = 13

_SETS: Mapping[codes.Kind, str] = MappingProxyType(
    {
        "transient": "in the set TRANSIENT, retried by default",
        "local": "in the set LOCAL, retried by default",
        "starting": "in the set STARTING, retried where a policy adds it",
        "denied": "in the set DENIED, retried where a policy adds it",
        "permanent": "in no set, retried only where a policy names it",
    }
)

_PLACES = MappingProxyType(
    {
        "ENOPROTOOPT@connect": "while connecting",
        "ENOPROTOOPT@socket": "while setting an option",
        "EAGAIN@unix": "from a UNIX socket",
        "EAGAIN@inet": "over the network",
        "EADDRNOTAVAIL@inet": "while connecting over IPv4",
        "EADDRNOTAVAIL@inet6": "while connecting over IPv6",
        "EADDRNOTAVAIL@bind": "while binding local_addr",
        "EADDRINUSE@port": "while binding a port that was asked for",
        "EADDRINUSE@ephemeral": "while binding any free port",
        "EACCES@inet": "over the network",
        "EACCES@local": "from a path, a local port or a sandbox",
        "EPERM@inet": "over the network",
        "EPERM@local": "from a path, a local port or a sandbox",
    }
)

# Winsock's numbers for names (WinError.h); the others are in the code table.
_WINDOWS_EAI = MappingProxyType({11001: "EAI_NONAME", 11002: "EAI_AGAIN", 11003: "EAI_FAIL", 11004: "EAI_NODATA"})

# xnu bsd/sys/errno.h: the usual ones of a Mac, whose numbers are free or mean nothing to a connection elsewhere.
_MACOS = MappingProxyType(
    {
        35: "EAGAIN",
        47: "EAFNOSUPPORT",
        48: "EADDRINUSE",
        49: "EADDRNOTAVAIL",
        50: "ENETDOWN",
        51: "ENETUNREACH",
        53: "ECONNABORTED",
        54: "ECONNRESET",
        55: "ENOBUFS",
        57: "ENOTCONN",
        60: "ETIMEDOUT",
        61: "ECONNREFUSED",
        65: "EHOSTUNREACH",
    }
)

# What stands for an error in the texts of this and of other programs, and is neither a code nor the system's words.
_PHRASES = MappingProxyType(
    {
        "actively refused": "ECONNREFUSED",
        "forcibly closed by the remote host": "ECONNRESET",
        "connection lost": "ECONNRESET",
        "error while attempting to bind on address": "EADDRINUSE",
        "timed out": "ETIMEDOUT",
        "time-out": "ETIMEDOUT",
        "i/o timeout": "ETIMEDOUT",
        "deadline exceeded": "ETIMEDOUT",
        "taking longer than": "ETIMEDOUT",
        "host is unreachable": "EHOSTUNREACH",
        "name or service not known": "EAI_NONAME",
        "nodename nor servname provided": "EAI_NONAME",
        "name does not resolve": "EAI_NONAME",
        "no such host": "EAI_NONAME",
        "nxdomain": "EAI_NONAME",
        "getaddrinfo enotfound": "EAI_NONAME",
        "no address associated with hostname": "EAI_NODATA",
        "temporary failure in name resolution": "EAI_AGAIN",
        "try again later": "EAI_AGAIN",
        "server misbehaving": "EAI_AGAIN",
        "servfail": "EAI_AGAIN",
        "non-recoverable failure in name resolution": "EAI_FAIL",
        "af_unix path too long": "ENAMETOOLONG",
        "start new thread": "THREADS_EXHAUSTED",
        "server closed the connection unexpectedly": "EOF",
        "bytes read on a total of": "EOF",
        "unexpected eof": "EOF",
        "handler is closed": "LOST",
        "eof occurred in violation of protocol": "UNEXPECTED_EOF_WHILE_READING",
        "signed by unknown authority": "CERTIFICATE_VERIFY_FAILED",
        "certificate is not valid for": "CERTIFICATE_VERIFY_FAILED",
        "first record does not look like a tls handshake": "WRONG_VERSION_NUMBER",
        **dict.fromkeys(CERTIFICATE_PROBLEMS, "CERTIFICATE_VERIFY_FAILED"),
    }
)
# What says something only where nothing else in the text does.
_VAGUE_PHRASES = MappingProxyType({"could not translate host name": "EAI_NONAME", "getaddrinfo failed": "EAI_NONAME"})
# "too weak" and the like only mean a certificate where one is spoken of.
_VAGUE_WORDS = frozenset({"revoked", "too weak", "too small", "has expired", "not yet valid"})

# Names of exceptions, the most telling ones; what a class of ours is raised for stands in the code table.
_CLASSES = MappingProxyType(
    {
        **{row.in_use: row.member for row in reversed(codes.rows()) if row.in_use != "ConnectionLost"},
        **{row.establishing: row.member for row in reversed(codes.rows()) if row.establishing != "ConnectError"},
        "ConnectionRefusedError": "ECONNREFUSED",
        "ConnectionResetError": "ECONNRESET",
        "ConnectionAbortedError": "ECONNABORTED",
        "BrokenPipeError": "EPIPE",
        "TimeoutError": "ETIMEDOUT",
        "timeout": "ETIMEDOUT",
        "TimeoutException": "ETIMEDOUT",
        "ReadTimeout": "ETIMEDOUT",
        "FileNotFoundError": "ENOENT",
        "NotADirectoryError": "ENOTDIR",
        "PermissionError": "EACCES",
        "BlockingIOError": "EAGAIN",
        "IncompleteReadError": "EOF",
        "EOFError": "EOF",
        "gaierror": "EAI_NONAME",
        "UnknownHostException": "EAI_NONAME",
        "SSLCertVerificationError": "CERTIFICATE_VERIFY_FAILED",
        "SSLEOFError": "UNEXPECTED_EOF_WHILE_READING",
        "SSLZeroReturnError": "ZERO_RETURN",
        "SSLError": "TLS_FAILURE",
        "TLSError": "TLS_FAILURE",
        "TLSHandshakeFailed": "TLS_FAILURE",
        "ConnectionTLSError": "TLS_FAILURE",
        "NameResolutionError": "EAI_FAIL",
        "AlreadyClosed": "ALREADY_CLOSED",
    }
)

# As texts: `re` compiles and keeps them at their first use, and most programs never explain anything.
_FRAME = r'(?m)^\s*(?:[|+]\s+)?File "'
_GROUP_MARGIN = r"(?m)^[ +]*\|[-+ ]?|^ *\+-[-+]*[ 0-9]*-*"
_NUMBERED = r"(?i)(?:(\w+)(?:\(|: *))?[\[(]?(?:os |win)?(?:errno|error|winerror)[ :=]+(-?\d+)\b(?=\]?:?(.*))"
_BUILT = r"\b(\w+(?:Error|timeout))\((-?\d+)(?=, *(.*))"
_NAME = r"\b(?:WSA|UV_)?([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)\b"
_CLASS = r"\b[A-Za-z]\w+\b"


def members_named(name: str) -> tuple[str, ...]:
    """The members that a code, an alias or a member stands for; empty if it is none of these.

    >>> members_named("wsaeconnrefused"), members_named("EWOULDBLOCK"), members_named("ECONREFUSED")
    (('ECONNREFUSED',), ('EAGAIN@unix', 'EAGAIN@inet'), ())
    """
    code, mark, place = name.partition("@")
    code = code.upper().removeprefix("WSA").removeprefix("UV_")
    members = codes.members_of(code)
    if mark:
        member = f"{code}@{place.lower()}"
        return (member,) if member in members else ()
    numbered = code.startswith("ERRNO_") and code[6:].isdecimal()
    known = code in codes.KNOWN or code in EXPLANATIONS or members != (code,) or numbered
    return members if known else ()


def members_numbered(number: int, space: str = "") -> tuple[str, ...]:
    """The members that a number stands for: an errno of this system, an EAI number (negative), a Windows error.

    ``space`` is ``"eai"`` or ``"win"`` where it is known to be that. Empty if the number means nothing.

    >>> members_numbered(errno.ECONNREFUSED), members_numbered(10061), members_numbered(0)
    (('ECONNREFUSED',), ('ECONNREFUSED',), ())
    """
    code = None
    if space == "eai" or number < 0:
        code = codes.EAI.get(number) or _WINDOWS_EAI.get(number)
    elif space == "win":
        code = codes.WINERRORS.get(number)
    if code is None and number in errno.errorcode:
        code = codes.code_of(number)
    code = code or codes.WINERRORS.get(number) or _WINDOWS_EAI.get(number)
    if code is None and 0 < number < 4096:
        code = codes.code_of(number)
    return () if code is None else codes.members_of(code)


def members_in(text: str) -> tuple[str, ...]:
    """The members that a text is about, in its order; empty if it speaks of none.

    >>> members_in("redis.exceptions.ConnectionError: Error 111 connecting to cache:6379. Connection refused.")
    ('ECONNREFUSED',)
    """
    text = _without_frames(text)
    found = [*_numbered(text), *_named(text)] or [*_in_words(text)]
    if not found:
        found = [code for words, code in _VAGUE_PHRASES.items() if words in text.lower()] or [*_by_class(text)]
    return tuple(dict.fromkeys(member for code in found for member in codes.members_of(code)))


def _without_frames(text: str) -> str:
    """The lines of a traceback that tell of exceptions: source lines name errors that have not happened."""
    if not re.search(_FRAME, text):
        return text
    lines = re.sub(_GROUP_MARGIN, "", text).splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if "Traceback (" in line), default=0)
    return "\n".join(line for line in lines if line[margin:].strip() and not line[margin].isspace())


def _numbered(text: str) -> Iterator[str]:
    """Codes of numbers that are said to be such: ``[Errno 111]``, ``Error 111``, ``OSError(111, ...)``."""
    for pattern in (_NUMBERED, _BUILT):
        for found in re.finditer(pattern, text):
            cls, number, words = found[1] or "", int(found[2]), found[3].split("[", 1)[0]
            said = next(_in_words(words), None) or (_CLASSES.get(cls) if cls in _CLASSES else None)
            space = "win" if "winerror" in found[0].lower() else "eai" if "gai" in cls else ""
            meant = members_numbered(number, space)
            if said is None and _is_from_a_mac(number, words, meant):
                said = _MACOS[number]
            yield from meant if said is None or _agree(said, meant) else (said,)


def _is_from_a_mac(number: int, words: str, meant: tuple[str, ...]) -> bool:
    """Whether a number makes no sense here and would there, and the words are not those of this system."""
    usual = any(member in EXPLANATIONS for member in meant)
    return number in _MACOS and not usual and not words.strip().startswith(os.strerror(number))


def _agree(said: str, meant: tuple[str, ...]) -> bool:
    """Whether a number fits what is said beside it: PermissionError stands for two codes, TimeoutError for one."""
    if said == "EACCES":
        return any(member.startswith(("EACCES", "EPERM")) for member in meant)
    if said.startswith("EAI_"):
        return any(member.startswith("EAI_") for member in meant)
    return bool(set(codes.members_of(said)) & set(meant))


def _named(text: str) -> Iterator[str]:
    for found in re.finditer(_NAME, text):
        code = found[1]
        # "EOF" and "LOST" are words too, and count only where our own errors have put them in brackets.
        bracketed = text[: found.start()].endswith("[")
        if code in codes.KNOWN and (bracketed or "_" in code or (code[0] == "E" and code != "EOF")):
            yield code


def _in_words(text: str) -> Iterator[str]:
    """Codes whose words stand in the text, by where they stand; longer words win over those inside them."""
    text = text.lower()
    places: list[tuple[int, str]] = []
    about_certificates = "certificate" in text or "x509" in text
    for words, code in sorted(_words(), key=lambda entry: -len(entry[0])):
        place = text.find(words)
        if place >= 0 and (about_certificates or words not in _VAGUE_WORDS):
            places.append((place, code))
            text = text.replace(words, "\0" * len(words))
    yield from (code for _, code in sorted(places))


def _words() -> Iterator[tuple[str, str]]:
    yield from _PHRASES.items()
    for row in codes.rows():
        number = codes.number_of(row.code)
        if number is not None:
            yield os.strerror(number).lower(), row.code
        elif "TLS" in row.in_use and len(row.code) > 12:
            # OpenSSL's words for a reason; from 3.2 on "sslv3" is "ssl/tls" there.
            words = row.code.lower().replace("_", " ")
            yield words, row.code
            yield words.replace("sslv3 ", "ssl/tls "), row.code


def _by_class(text: str) -> Iterator[str]:
    for found in re.finditer(_CLASS, text):
        name, code = found[0], _CLASSES.get(found[0])
        # A lower-case "timeout" is a word, unless it is socket.timeout.
        if code is not None and (name != "timeout" or text[: found.start()].endswith(".")):
            yield code


def explanation_of(member: str) -> Explanation:
    """What is known about a member; for what is not in the table, what is true of all such.

    >>> explanation_of("EIO").meaning
    'input/output error'
    """
    found = EXPLANATIONS.get(member)
    if found is not None:
        return found
    number = codes.number_of(member)
    if number is not None:
        named = not member.startswith("ERRNO_")
        elsewhere = (f"a number from a Mac: there {number} is {_MACOS[number]}",) if number in _MACOS else ()
        return Explanation(
            os.strerror(number).lower() if named else f"error number {number}, which has no name on this system",
            "this host's kernel, or something in between such as a sandbox, a driver or a virtual network",
            ("none of the usual ones: connects hardly ever end like this", *elsewhere),
            "not retried by default; if it does heal by itself, name it in retry_on",
        )
    alert = "ALERT" in member
    return Explanation(
        member.lower().replace("_", " "),
        "the peer, by a TLS alert" if alert else "a library on this side, most likely the TLS library (OpenSSL)",
        ("none of the usual ones",),
        "not retried by default; try `openssl s_client -connect HOST:PORT`",
    )


def sheet(member: str, *, number: int | None = None, words: str = "") -> str:
    """One member explained, in several lines of at most 88 columns.

    ``number`` is the one that was met, if the system's own is not it. ``words``: what was said about it; for a
    certificate they tell what is wrong.
    """
    row = codes.row(member)
    entry = explanation_of(member)
    place = _PLACES.get(member, "")
    meaning = f"{row.code}{f', {place},' if place else ''}"
    lines = _wrapped(entry.meaning, f"{meaning.rstrip(',')}: ", "  ")
    if member == "CERTIFICATE_VERIFY_FAILED" and (problem := certificate_problem(words)):
        lines += _item("here", problem)
    lines += _item("number", _numbers(row.code, number))
    lines += _item("raised as", _raised(row))
    lines += _item("kind", f"{row.kind}: {_SETS[row.kind]}")
    lines += _item("said by", entry.said_by)
    for index, cause in enumerate(entry.causes):
        lines += _item("" if index else "causes", cause, "- ")
    return "\n".join([*lines, *_item("advice", entry.advice)])


def _item(name: str, text: str, bullet: str = "") -> list[str]:
    return _wrapped(text, f"  {name:<{_MARGIN - 2}}{bullet}", " " * (_MARGIN + len(bullet)))


def _wrapped(text: str, first: str, following: str) -> list[str]:
    # Not textwrap: its import compiles a large pattern, and it would break a code at a hyphen.
    lines, empty = [first], True
    for word in text.split():
        if not empty and len(lines[-1]) + len(word) >= _WIDTH:
            lines.append(following)
            empty = True
        lines[-1] += word if empty else f" {word}"
        empty = False
    return lines


def _numbers(code: str, met: int | None) -> str:
    here = codes.number_of(code)
    space = sys.platform
    if here is None:
        here = next((number for number, name in codes.EAI.items() if name == code), None)
        space = f"{space}, of getaddrinfo"
    windows = sorted(
        number for table in (codes.WINERRORS, _WINDOWS_EAI) for number, name in table.items() if name == code
    )
    parts = [] if here is None else [f"{here} here ({space})"]
    if windows and sys.platform != "win32":
        parts.append(f"{', '.join(map(str, windows))} on Windows")
    if met is not None and met != here and met not in windows:
        parts.append(f"{met} as given")
    return "; ".join(parts) or "none: it is known by its name only"


def _raised(row: codes.Row) -> str:
    if row.member == "LOST":
        return row.in_use
    if row.establishing == "ConnectError" and row.in_use != "ConnectionLost":
        return f"{row.in_use}, on an established connection"
    if row.in_use == "ConnectionLost":
        return row.establishing
    return f"{row.establishing} while connecting, {row.in_use} on an established connection"


def certificate_problem(words: str) -> str:
    """What OpenSSL's words about a certificate mean; empty if they are none of the usual ones.

    >>> certificate_problem("certificate has expired")
    'it has expired, or the clock of this host is wrong'
    """
    words = words.lower()
    return next((meaning for said, meaning in CERTIFICATE_PROBLEMS.items() if said in words), "")


def unknown(what: str) -> str:
    """The problem with a text that speaks of no known error, with the name that is nearest to it."""
    # Only a mistake needs it, and its import costs 3 ms.
    import difflib  # noqa: PLC0415

    names = sorted(codes.KNOWN | EXPLANATIONS.keys() | _CLASSES.keys())
    folded = {name.lower(): name for name in names}
    words = [word.strip("[]().,:;'\"").lower() for word in what.split()]
    near = [match for word in words for match in difflib.get_close_matches(word, folded, n=1, cutoff=0.75)]
    hint = f"; did you mean {folded[near[0]]}?" if near else ""
    shown = what if len(what) <= 60 else f"{what[:57]}..."
    # A pasted line may hold a URL with a password.
    shown = "'***'" if "@" in what or "://" in what else repr(shown)
    return f"what={shown}: must be a code, a number, an exception or a text that speaks of one{hint}"
