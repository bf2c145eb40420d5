"""The typed errors themselves: their tree, their fields, their text, their copies. Translation has its own tests."""

from __future__ import annotations

import asyncio
import copy
import errno
import inspect
import pickle
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioconnect
from aioconnect import codes, errors
from aioconnect.errors import (
    AccessDenied,
    Address,
    AddressInUse,
    AddressNotAvailable,
    AioconnectError,
    AlreadyClosed,
    Attempt,
    BrokenPipe,
    CertificateRejected,
    CircuitOpen,
    ConfigError,
    ConnectError,
    ConnectionLost,
    ConnectionResetByPeer,
    ConnectionTLSError,
    ConnectRefused,
    ConnectReset,
    ConnectTimeout,
    EphemeralPortsExhausted,
    HostUnreachable,
    ListenBacklogFull,
    NameNotFound,
    NameResolutionError,
    NameServerUnavailable,
    NetworkError,
    NotReady,
    NotTLS,
    OutOfBuffers,
    PeerClosed,
    PoolClosed,
    PoolTimeout,
    SocketPathNotFound,
    StopReason,
    ThreadsExhausted,
    TLSError,
    TLSHandshakeFailed,
    format_address,
    typed,
)

HERE = ("10.0.0.7", 5432)
THERE = ("fd00::7", 5432, 0, 0)

# The tree

ROOTS = {
    "NetworkError": (AioconnectError, OSError),
    "ConnectError": (NetworkError, None),
    "ConnectionLost": (NetworkError, ConnectionError),
    "PoolClosed": (AioconnectError, None),
    "ConfigError": (AioconnectError, ValueError),
}

# class -> the one it is under, and the built-in one that it is too.
TREE: dict[str, tuple[type[BaseException], type[BaseException] | None]] = {
    "ConnectRefused": (ConnectError, ConnectionRefusedError),
    "ConnectTimeout": (ConnectError, TimeoutError),
    "HostUnreachable": (ConnectError, None),
    "NetworkUnreachable": (ConnectError, None),
    "ConnectReset": (ConnectError, ConnectionResetError),
    "ConnectAborted": (ConnectError, ConnectionAbortedError),
    "AccessDenied": (ConnectError, PermissionError),
    "AddressInUse": (ConnectError, None),
    "AddressNotAvailable": (ConnectError, None),
    "EphemeralPortsExhausted": (AddressNotAvailable, None),
    "AddressFamilyNotSupported": (ConnectError, None),
    "TooManyOpenFiles": (ConnectError, None),
    "OutOfBuffers": (ConnectError, None),
    "ThreadsExhausted": (ConnectError, None),
    "SocketPathNotFound": (ConnectError, FileNotFoundError),
    "SocketPathInvalid": (ConnectError, None),
    "ListenBacklogFull": (ConnectError, BlockingIOError),
    "BadDescriptor": (ConnectError, None),
    "NameResolutionError": (ConnectError, socket.gaierror),
    "NameNotFound": (NameResolutionError, None),
    "NameServerUnavailable": (NameResolutionError, None),
    "TLSError": (ConnectError, ssl.SSLError),
    "CertificateRejected": (TLSError, ssl.SSLCertVerificationError),
    "TLSHandshakeFailed": (TLSError, None),
    "NotTLS": (TLSError, None),
    "NotReady": (ConnectError, None),
    "CircuitOpen": (ConnectError, None),
    "PoolTimeout": (ConnectError, TimeoutError),
    "PoolFull": (ConnectError, None),
    "PeerClosed": (ConnectionLost, asyncio.IncompleteReadError),
    "ConnectionResetByPeer": (ConnectionLost, ConnectionResetError),
    "ConnectionTimedOut": (ConnectionLost, TimeoutError),
    "ConnectionAborted": (ConnectionLost, ConnectionAbortedError),
    "BrokenPipe": (ConnectionLost, BrokenPipeError),
    "ConnectionTLSError": (ConnectionLost, ssl.SSLError),
    "AlreadyClosed": (ConnectionLost, None),
}

CLASSES: tuple[type[NetworkError], ...] = tuple(
    cls for name in errors.__all__ if inspect.isclass(cls := getattr(errors, name)) and issubclass(cls, NetworkError)
)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)

SPECIFIC = tuple(cls for cls in OSError.__subclasses__() if cls.__module__ in ("builtins", "socket", "ssl"))


@pytest.mark.parametrize("name", [*ROOTS, *TREE])
def test_a_class_is_what_the_tree_says(name: str) -> None:
    parent, builtin = {**ROOTS, **TREE}[name]
    cls = getattr(errors, name)
    assert cls.__bases__ == ((parent,) if builtin is None else (parent, builtin))


@pytest.mark.parametrize("name", TREE)
def test_a_class_is_no_other_built_in_one(name: str) -> None:
    cls, wanted = getattr(errors, name), [each for each in TREE[name] if each is not None]
    for other in SPECIFIC:
        assert issubclass(cls, other) == any(issubclass(each, other) for each in wanted), other


def test_the_tree_is_complete() -> None:
    defined = {cls.__name__ for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, Exception)}
    assert defined == {"AioconnectError", *ROOTS, *TREE}
    assert defined <= set(errors.__all__)


def test_what_the_package_hands_on() -> None:
    assert {name for name in aioconnect.__all__ if name in ROOTS or name in TREE} == set(
        """
        ConnectError ConnectRefused ConnectTimeout HostUnreachable NetworkUnreachable NameResolutionError TLSError
        CertificateRejected NotReady CircuitOpen PoolTimeout ConnectionLost PeerClosed ConfigError
        """.split()
    )


@every_class
def test_every_error_is_an_oserror_with_documented_class(cls: type[NetworkError]) -> None:
    error = cls()
    assert isinstance(error, OSError)
    assert isinstance(error, AioconnectError)
    assert cls.__doc__
    assert error.kind in codes.KINDS
    assert error.phase in codes.PHASES


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (ConnectRefused(), ConnectionRefusedError),
        (ConnectRefused(), ConnectionError),
        (ConnectTimeout(), asyncio.TimeoutError),
        (ConnectTimeout(), TimeoutError),
        (CertificateRejected(), ssl.CertificateError),
        (CertificateRejected(), ValueError),
        (NameNotFound(), socket.gaierror),
        (PeerClosed(), EOFError),
        (PeerClosed(), ConnectionError),
        (SocketPathNotFound(), FileNotFoundError),
        (ConfigError("port=0: no"), ValueError),
        (EphemeralPortsExhausted(), AddressNotAvailable),
        (HostUnreachable(), OSError),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_except_clauses_that_callers_have_already(error: AioconnectError, caught: type[BaseException]) -> None:
    with pytest.raises(caught) as info:
        raise error
    assert info.value is error


def test_a_config_error_is_no_network_error() -> None:
    assert not isinstance(ConfigError(), OSError)
    assert not isinstance(PoolClosed(), OSError)


# Raised by hand


@pytest.mark.parametrize(
    ("error", "number", "code", "member", "phase"),
    [
        (ConnectError(), None, "UNKNOWN", "UNKNOWN", "connect"),
        (ConnectError("odd"), None, "UNKNOWN", "UNKNOWN", "connect"),
        (ConnectError(4242, "odd"), 4242, "ERRNO_4242", "ERRNO_4242", "connect"),
        (ConnectError(errno.EIO), errno.EIO, "EIO", "EIO", "connect"),
        (ConnectRefused(), errno.ECONNREFUSED, "ECONNREFUSED", "ECONNREFUSED", "connect"),
        (ConnectReset(errno.ECONNRESET), errno.ECONNRESET, "ECONNRESET", "ECONNRESET", "connect"),
        (ConnectReset(errno.EPIPE), errno.EPIPE, "EPIPE", "EPIPE", "connect"),
        (ConnectReset(code="EPIPE"), errno.EPIPE, "EPIPE", "EPIPE", "connect"),
        (ConnectTimeout("slow", phase="prepare"), errno.ETIMEDOUT, "ETIMEDOUT", "ETIMEDOUT", "prepare"),
        (HostUnreachable(errno.EHOSTDOWN), errno.EHOSTDOWN, "EHOSTDOWN", "EHOSTDOWN", "connect"),
        (AccessDenied(), errno.EACCES, "EACCES", "EACCES@inet", "connect"),
        (AccessDenied(address="/run/a"), errno.EACCES, "EACCES", "EACCES@local", "connect"),
        (AccessDenied(errno.EPERM, phase="bind"), errno.EPERM, "EPERM", "EPERM@local", "bind"),
        (AddressInUse(), errno.EADDRINUSE, "EADDRINUSE", "EADDRINUSE@port", "connect"),
        (AddressNotAvailable(), errno.EADDRNOTAVAIL, "EADDRNOTAVAIL", "EADDRNOTAVAIL@bind", "connect"),
        (EphemeralPortsExhausted(), errno.EADDRNOTAVAIL, "EADDRNOTAVAIL", "EADDRNOTAVAIL@inet", "connect"),
        (ListenBacklogFull(), errno.EAGAIN, "EAGAIN", "EAGAIN@unix", "connect"),
        (OutOfBuffers(errno.EAGAIN), errno.EAGAIN, "EAGAIN", "EAGAIN@inet", "connect"),
        (ThreadsExhausted(), None, "THREADS_EXHAUSTED", "THREADS_EXHAUSTED", "connect"),
        (NameServerUnavailable(), socket.EAI_AGAIN, "EAI_AGAIN", "EAI_AGAIN", "resolve"),
        (NameNotFound(), socket.EAI_NONAME, "EAI_NONAME", "EAI_NONAME", "resolve"),
        (NameNotFound(socket.EAI_NODATA), socket.EAI_NODATA, "EAI_NODATA", "EAI_NODATA", "resolve"),
        (NameResolutionError(socket.EAI_MEMORY), socket.EAI_MEMORY, "EAI_MEMORY", "EAI_MEMORY", "resolve"),
        (NameResolutionError(-4242), -4242, "EAI_FAIL", "EAI_FAIL", "resolve"),
        (TLSError(), None, "TLS_FAILURE", "TLS_FAILURE", "tls"),
        (TLSHandshakeFailed(1), 1, "TLS_FAILURE", "TLS_FAILURE", "tls"),
        (CertificateRejected(1), 1, "CERTIFICATE_VERIFY_FAILED", "CERTIFICATE_VERIFY_FAILED", "tls"),
        (NotTLS(1), 1, "WRONG_VERSION_NUMBER", "WRONG_VERSION_NUMBER", "tls"),
        (NotReady("loading"), None, "NOT_READY", "NOT_READY", "prepare"),
        (CircuitOpen(since=3.0, retry_in=0.5), None, "CIRCUIT_OPEN", "CIRCUIT_OPEN", "wait"),
        (PoolTimeout(), None, "POOL_TIMEOUT", "POOL_TIMEOUT", "pool"),
        (ConnectionLost(errno.EIO), errno.EIO, "EIO", "LOST", "use"),
        (ConnectionResetByPeer(), errno.ECONNRESET, "ECONNRESET", "ECONNRESET", "use"),
        (BrokenPipe(), errno.EPIPE, "EPIPE", "EPIPE", "use"),
        (BrokenPipe(errno.ESHUTDOWN), errno.ESHUTDOWN, "ESHUTDOWN", "ESHUTDOWN", "use"),
        (PeerClosed(b"ab", 5), None, "EOF", "EOF", "use"),
        (ConnectionTLSError(1), 1, "TLS_FAILURE", "TLS_FAILURE", "use"),
        (AlreadyClosed(), None, "ALREADY_CLOSED", "ALREADY_CLOSED", "use"),
        (AlreadyClosed(errno.EBADF), errno.EBADF, "EBADF", "EBADF", "use"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_raised_by_hand(error: NetworkError, number: int | None, code: str, member: str, phase: str) -> None:
    assert (error.errno, error.code, error.member, error.phase) == (number, code, member, phase)
    assert error.kind == codes.row(member).kind


@every_class
def test_the_class_alone_can_be_raised(cls: type[NetworkError]) -> None:
    with pytest.raises(cls) as info:
        raise cls
    assert info.value.code == cls.code
    assert info.value.errno == codes.number_of(cls.code)


def test_fields_by_default() -> None:
    error = ConnectError()
    assert (error.address, error.endpoint, error.elapsed, error.errors) == (None, None, None, ())
    assert (error.attempts, error.attempt_count, error.stop_reason) == ((), 0, None)
    assert ConnectTimeout().source == "kernel"
    assert (CircuitOpen().since, CircuitOpen().retry_in) == (None, None)
    assert (TLSError().reason, TLSError().library) == ("", "")
    assert (TLSError().verify_code, TLSError().verify_message) == (0, "")


def test_words_given_are_the_strerror() -> None:
    for error in (ConnectReset("gone"), ConnectReset(errno.ECONNRESET, "gone")):
        assert error.strerror == "gone"
        assert error.args == (errno.ECONNRESET, "gone")


def test_peer_closed_is_an_incomplete_read() -> None:
    error = PeerClosed(b"ab", 5, address=HERE)
    assert (error.partial, error.expected, error.address) == (b"ab", 5, HERE)
    with pytest.raises(asyncio.IncompleteReadError):
        raise error


# Text

REFUSED = ConnectRefused(address=HERE, elapsed=0.001)
HISTORY: dict[str, Any] = {
    "attempts": (Attempt(1, 0.0, 0.1, REFUSED, 0.5), Attempt(2, 0.6, 0.1, REFUSED)),
    "attempt_count": 2,
    "stop_reason": "attempts",
    "elapsed": 0.71,
}

TEXTS: list[tuple[NetworkError, str]] = [
    (ConnectError(), "connect: [UNKNOWN] failed"),
    (ConnectError("odd"), "connect: [UNKNOWN] odd"),
    (ConnectError(4242), "connect: [ERRNO_4242] unknown error 4242"),
    (ConnectError(errno.EIO, address=HERE), "connect 10.0.0.7:5432: [EIO] input/output error"),
    (ConnectRefused(), "connect: [ECONNREFUSED] connection refused"),
    (ConnectRefused(address=HERE), "connect 10.0.0.7:5432: [ECONNREFUSED] connection refused"),
    (ConnectRefused(address=THERE), "connect [fd00::7]:5432: [ECONNREFUSED] connection refused"),
    (
        SocketPathNotFound(address="/run/app.sock"),
        "connect /run/app.sock: [ENOENT] no such file or directory",
    ),
    (ListenBacklogFull(address="\0app"), "connect @app: [EAGAIN] the listen backlog is full"),
    (ListenBacklogFull(address=b"/run/\xff"), "connect /run/\udcff: [EAGAIN] the listen backlog is full"),
    (ConnectTimeout("no greeting", phase="prepare"), "prepare: [ETIMEDOUT] no greeting"),
    (NameNotFound(address=("db", 5432)), "resolve db:5432: [EAI_NONAME] name or address not known"),
    (NameServerUnavailable(), "resolve: [EAI_AGAIN] temporary failure in name resolution"),
    (TLSError(1), "tls: [TLS_FAILURE] the TLS handshake failed"),
    (
        CertificateRejected(1, "certificate has expired", address=HERE),
        "tls 10.0.0.7:5432: [CERTIFICATE_VERIFY_FAILED] certificate has expired",
    ),
    (NotTLS(), "tls: [WRONG_VERSION_NUMBER] the peer does not speak TLS on that port"),
    (NotReady("loading"), "prepare: [NOT_READY] loading"),
    (CircuitOpen(), "wait: [CIRCUIT_OPEN] the circuit is open"),
    (PoolTimeout(), "pool: [POOL_TIMEOUT] no connection became free in time"),
    (ConnectionResetByPeer(address=HERE), "use 10.0.0.7:5432: [ECONNRESET] connection reset by peer"),
    (PeerClosed(b"ab", 5), "use: [EOF] the peer closed the connection after 2 bytes of 5 due"),
    (PeerClosed(b"a"), "use: [EOF] the peer closed the connection after 1 byte before the end of a message"),
    (AlreadyClosed(), "use: [ALREADY_CLOSED] the connection was closed on this side"),
    # An endpoint is named once.
    (
        ConnectRefused(address=HERE, endpoint="tcp://10.0.0.7:5432"),
        "connect 10.0.0.7:5432: [ECONNREFUSED] connection refused",
    ),
    (
        ConnectRefused(address=HERE, endpoint="tls://db:5432"),
        "tls://db:5432: connect 10.0.0.7:5432: [ECONNREFUSED] connection refused",
    ),
    (
        SocketPathNotFound(address="/run/app.sock", endpoint="unix:///run/app.sock"),
        "connect /run/app.sock: [ENOENT] no such file or directory",
    ),
    (ConnectRefused(endpoint="tcp://db:1"), "tcp://db:1: connect: [ECONNREFUSED] connection refused"),
    # With a history.
    (
        ConnectRefused(address=HERE, endpoint="tcp://db:5432", **HISTORY),
        f"tcp://db:5432: {REFUSED} (2 attempts in 0.7 s, stopped by attempts)",
    ),
    (
        ConnectTimeout(attempt_count=1, elapsed=60.04, stop_reason="timeout"),
        "connect: [ETIMEDOUT] connection timed out (1 attempt in 60.0 s, stopped by timeout)",
    ),
    (
        CircuitOpen(attempt_count=0, stop_reason="circuit"),
        "wait: [CIRCUIT_OPEN] the circuit is open (0 attempts in 0.0 s, stopped by circuit)",
    ),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_text(error: NetworkError, text: str) -> None:
    assert str(error) == text
    assert repr(error) == f"{type(error).__name__}({text!r})"


GRAMMAR = re.compile(
    r"""
    (?P<endpoint>\w+://\S+:[ ])?
    (?P<phase>[a-z]+)([ ](?P<address>\S+))?:[ ]
    \[(?P<code>[A-Z][A-Z0-9_]*)\][ ]
    (?P<reason>\S(.*?\S)??)
    ([ ]\((?P<count>\d+)[ ]attempts?[ ]in[ ](?P<elapsed>\d+\.\d)[ ]s,[ ]stopped[ ]by[ ](?P<why>[a-z]+)\))?
    """,
    re.VERBOSE,
)

addresses = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["10.0.0.7", "::1", "fe80::1%eth0", "db.internal"]), st.integers(0, 65535)),
    st.tuples(st.just("fe80::1"), st.integers(1, 65535), st.just(0), st.integers(0, 9)),
    st.sampled_from(["/run/app.sock", "\0app", b"/run/app.sock", b"\0app"]),
)


@st.composite
def made(draw: st.DrawFn) -> NetworkError:
    fields: dict[str, Any] = {"address": draw(addresses)}
    if draw(st.booleans()):
        fields["endpoint"] = draw(st.sampled_from(["tcp://db:5432", "tls://[::1]:1", "unix:///run/app.sock"]))
    if draw(st.booleans()):
        fields["phase"] = draw(st.sampled_from(codes.PHASES))
    if draw(st.booleans()):
        fields |= {"stop_reason": draw(st.sampled_from(get_args(StopReason)))}
        fields |= {"attempt_count": draw(st.integers(0, 10**6)), "elapsed": draw(st.floats(0, 1e6))}
    cls = draw(st.sampled_from(CLASSES))
    if cls is PeerClosed:
        return PeerClosed(draw(st.binary(max_size=3)), draw(st.none() | st.integers(0, 9)), **fields)
    number = draw(st.none() | st.sampled_from(sorted(errno.errorcode)) | st.integers(1, 10**6))
    # Words come from OpenSSL, from asyncio, from a prepare hook: anything.
    return cls(number, draw(st.none() | st.text()), **fields)


@given(made())
def test_every_text_keeps_the_grammar_in_one_line(error: NetworkError) -> None:
    text = str(error)
    found = GRAMMAR.fullmatch(text)
    assert found, text
    assert text.splitlines() == [text]
    assert (found["phase"], found["code"], found["why"]) == (error.phase, error.code, error.stop_reason)
    assert (found["address"] or "") == format_address(error.address)
    assert (found["count"] is not None) == (error.stop_reason is not None)


def test_a_circuit_says_why_it_is_open() -> None:
    error = CircuitOpen(since=12.34, retry_in=0.56)
    words = "wait: [CIRCUIT_OPEN] the circuit has been open for 12.3 s, the next probe is due in 0.6 s"
    assert str(error) == words
    error.__cause__ = ConnectRefused()
    assert str(error) == f"{words}: [ECONNREFUSED] connection refused"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_singular() -> None:
    assert "1 attempt in" in str(ConnectError(attempt_count=1, stop_reason="stop"))
    assert "1 byte of 2" in str(PeerClosed(b"a", 2))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (None, ""),
        (HERE, "10.0.0.7:5432"),
        (("db.internal", 80), "db.internal:80"),
        (THERE, "[fd00::7]:5432"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
        (("fe80::1", 80, 0, 2), "[fe80::1%2]:80"),
        ("/run/app.sock", "/run/app.sock"),
        (b"/run/app.sock", "/run/app.sock"),
        ("\0app", "@app"),
        (b"\0app", "@app"),
    ],
)
def test_format_address(address: Address, text: str) -> None:
    assert format_address(address) == text


# Notes

LISTED = HostUnreachable(
    address=HERE,
    errors=(
        HostUnreachable(address=HERE, elapsed=3.0501),
        ConnectRefused(address=THERE, elapsed=0.00012),
        NameNotFound(),
    ),
)


def test_a_note_lists_address_by_address() -> None:
    assert "".join(LISTED.__notes__).splitlines() == [
        "10.0.0.7:5432: [EHOSTUNREACH] no route to host after 3050.1 ms",
        "[fd00::7]:5432: [ECONNREFUSED] connection refused after 0.1 ms",
        "resolve: [EAI_NONAME] name or address not known",
    ]


def test_a_note_counts_what_the_attempts_met() -> None:
    tries = [ConnectRefused(), ConnectTimeout(), ConnectRefused(), None]
    kept = tuple(Attempt(number, 0.0, 0.0, error) for number, error in enumerate(tries, 1))
    assert ConnectRefused(attempts=kept, attempt_count=4).__notes__ == ["4 attempts: ECONNREFUSED x2, ETIMEDOUT x1"]
    assert ConnectRefused(attempts=kept, attempt_count=40).__notes__ == [
        "40 attempts of 4 kept: ECONNREFUSED x2, ETIMEDOUT x1"
    ]
    assert ConnectRefused(attempts=kept[:1], attempt_count=1).__notes__ == []


def test_a_traceback_prints_the_note() -> None:
    lines = "".join(traceback.format_exception(LISTED)).splitlines()
    at = lines.index(f"aioconnect.errors.HostUnreachable: {LISTED}")
    assert lines[at + 1 :] == LISTED.__notes__[0].splitlines()


@every_class
def test_there_is_no_note_without_anything_to_list(cls: type[NetworkError]) -> None:
    assert cls().__notes__ == []
    assert "".join(traceback.format_exception_only(cls())).count("\n") == 1


def test_notes_are_not_made_before_they_are_asked_for() -> None:
    error = ConnectRefused(errors=(ConnectRefused(),))
    str(error), repr(error), error.kind
    assert "_notes" not in vars(error)
    assert error.__notes__
    assert "_notes" in vars(error)


def test_add_note_appends() -> None:
    error = ConnectRefused(address=HERE, errors=(ConnectRefused(address=HERE),))
    error.add_note("while warming up")
    error.add_note("again")
    assert error.__notes__ == ["10.0.0.7:5432: [ECONNREFUSED] connection refused", "while warming up", "again"]
    assert "while warming up" in "".join(traceback.format_exception(error))
    error.__notes__ = ["mine"]
    assert error.__notes__ == ["mine"]


# Copies


def full(cls: type[NetworkError]) -> NetworkError:
    """One of that class with every field set."""
    raw = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    tried = ConnectRefused(address=HERE, elapsed=0.1)
    tried.__cause__ = raw
    fields: dict[str, Any] = {
        "address": THERE,
        "endpoint": "tcp://db:5432",
        "elapsed": 1.5,
        "errors": (tried, ConnectTimeout(address=THERE, source="attempt")),
        "attempts": (Attempt(1, 0.0, 0.1, tried, 0.2, shared=True), Attempt(2, 0.3, 0.1, tried)),
        "attempt_count": 2,
        "stop_reason": "attempts",
        "phase": "prepare",
    }
    match cls:
        case errors.ConnectTimeout:
            fields["source"] = "call"
        case errors.CircuitOpen:
            fields |= {"since": 3.0, "retry_in": 0.5}
        case errors.PeerClosed:
            fields |= {"partial": b"ab", "expected": 5}
    if issubclass(cls, (TLSError, ConnectionTLSError)):
        fields |= {"reason": "BAD", "library": "SSL"}
    if issubclass(cls, TLSError):
        fields |= {"verify_code": 10, "verify_message": "certificate has expired"}
    error = cls(**fields) if cls is PeerClosed else cls(errno.EIO, "words", **fields)
    error.__cause__ = tried
    error.add_note("seen by hand")
    return error


def state(error: BaseException | None) -> Any:
    """All there is to an error, comparable; two errors are never equal themselves."""
    if not isinstance(error, NetworkError):
        return type(error), getattr(error, "args", None)
    fields: dict[str, Any] = vars(error) | {
        "_notes": error.__notes__,
        "errors": [state(each) for each in error.errors],
        "attempts": [attempt._replace(error=None) for attempt in error.attempts],
    }
    return (
        type(error),
        error.args,
        error.errno,
        error.strerror,
        str(error),
        error.kind,
        error.member,
        fields,
        [state(attempt.error) for attempt in error.attempts],
        state(error.__cause__),
    )


WAYS: dict[str, Callable[[Any], Any]] = {
    **{f"pickle{n}": partial(lambda n, error: pickle.loads(pickle.dumps(error, n)), n) for n in range(6)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@every_class
def test_a_copy_keeps_everything(cls: type[NetworkError], way: str) -> None:
    for error in (full(cls), cls()):
        twin = WAYS[way](error)
        assert twin is not error
        assert state(twin) == state(error)
        assert twin.__traceback__ is None


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_typed_keeps_the_member(way: str) -> None:
    error = typed("EADDRINUSE", "bind", HERE, port_given=False)
    assert WAYS[way](error).member == error.member == "EADDRINUSE@ephemeral"


def test_what_several_attempts_share_is_shared_in_a_copy() -> None:
    for way in ("pickle5", "deepcopy"):
        twin = WAYS[way](full(ConnectRefused))
        assert twin.attempts[0].error is twin.attempts[1].error is twin.errors[0] is twin.__cause__


class Grown(NotReady):
    """A service's own."""

    lag: float = 0.0


def test_a_subclass_is_copied_as_itself() -> None:
    error = Grown("replica lags", lag=3.5)
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), twin.lag, str(twin)) == (Grown, 3.5, "prepare: [NOT_READY] replica lags")
    assert twin.kind == "starting"


class Held(Exception):
    """A driver's error as there are many: it cannot be pickled, or not be read back."""

    def __init__(self, host: str, *, lock: object) -> None:
        super().__init__(f"{host} is held")
        self.lock = lock


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lock", [None, threading.Lock()], ids=["not read back", "not pickled"])
def test_a_cause_that_cannot_be_pickled_leaves_its_words(lock: Any, way: str) -> None:
    error = ConnectRefused(address=HERE)
    error.__cause__ = Held("db", lock=lock)
    twin = WAYS[way](error)
    assert str(twin) == str(error)
    assert type(twin.__cause__) is AioconnectError
    assert str(twin.__cause__) == "Held: db is held"


def test_replaced_is_new_and_keeps_the_rest() -> None:
    error = full(ConnectTimeout)
    new = error.replace(endpoint="tcp://other:1", stop_reason="stop")
    assert (new.endpoint, new.stop_reason) == ("tcp://other:1", "stop")
    assert (new.source, new.address, new.errno, new.strerror) == ("call", THERE, errno.EIO, "words")  # type: ignore[attr-defined]
    assert new.attempts == error.attempts
    assert (new.__cause__, new.__traceback__) == (None, None)
    assert "seen by hand" not in new.__notes__
    assert error.endpoint == "tcp://db:5432"


# Settings


def test_a_config_error_holds_every_problem() -> None:
    one, two = ConfigError("port=0: no"), ConfigError("port=0: no", "host='': no")
    assert (one.problems, str(one)) == (("port=0: no",), "port=0: no")
    assert (two.problems, str(two)) == (("port=0: no", "host='': no"), "2 problems: port=0: no; host='': no")
    for twin in (pickle.loads(pickle.dumps(two)), copy.deepcopy(two)):
        assert (twin.problems, str(twin)) == (two.problems, str(two))
