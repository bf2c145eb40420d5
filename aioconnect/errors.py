"""The typed errors, and the one place that turns other exceptions into them.

Two questions decide what a caller does, so two families answer them. `ConnectError`: no connection was handed out
and no byte but those of ``prepare`` was sent, so repeating is safe. `ConnectionLost`: an established connection is
dead, reconnecting is safe, resending is the caller's decision. Every class is also the built-in one that
the caller's ``except`` clauses already name.

    AioconnectError
     +-- NetworkError (OSError)                      what both families share
     |    +-- ConnectError                           ConnectRefused, ConnectTimeout, HostUnreachable, ...
     |    |    +-- NameResolutionError               NameNotFound, NameServerUnavailable
     |    |    +-- TLSError                          CertificateRejected, TLSHandshakeFailed, NotTLS
     |    +-- ConnectionLost                         PeerClosed, ConnectionResetByPeer, BrokenPipe, ...
     +-- PoolClosed
     +-- ConfigError (ValueError)

Texts are built from fields, never at the place that raises::

    [ENDPOINT: ]PHASE[ ADDRESS]: [CODE] REASON[ (N attempts in S s, stopped by WHY)]
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar, cast

from aioconnect import codes

__all__ = (
    "AccessDenied",
    "Address",
    "AddressFamilyNotSupported",
    "AddressInUse",
    "AddressNotAvailable",
    "AioconnectError",
    "AlreadyClosed",
    "Attempt",
    "BadDescriptor",
    "BrokenPipe",
    "CertificateRejected",
    "CircuitOpen",
    "ConfigError",
    "ConnectAborted",
    "ConnectError",
    "ConnectRefused",
    "ConnectReset",
    "ConnectTimeout",
    "ConnectionAborted",
    "ConnectionLost",
    "ConnectionResetByPeer",
    "ConnectionTLSError",
    "ConnectionTimedOut",
    "Decides",
    "EphemeralPortsExhausted",
    "Failure",
    "Holder",
    "HostUnreachable",
    "ListenBacklogFull",
    "NameNotFound",
    "NameResolutionError",
    "NameServerUnavailable",
    "NetworkError",
    "NetworkUnreachable",
    "NotReady",
    "NotTLS",
    "OutOfBuffers",
    "PeerClosed",
    "PoolClosed",
    "PoolFull",
    "PoolState",
    "PoolTimeout",
    "SocketPathInvalid",
    "SocketPathNotFound",
    "TLSError",
    "TLSHandshakeFailed",
    "ThreadsExhausted",
    "TooManyOpenFiles",
    "class_of",
    "classify",
    "decisive",
    "explain",
    "format_address",
    "translate",
    "translate_errors",
    "typed",
)

Address = tuple[Any, ...] | str | bytes | None
"""A socket address as the ``socket`` module has it, ``(host, port)`` of a name, or the path of a UNIX socket."""

_Made = TypeVar("_Made", bound="NetworkError")

StopReason = Literal["permanent", "attempts", "timeout", "stop", "circuit", "budget"]


class Attempt(NamedTuple):
    """One attempt of a call. Times are seconds; ``started`` counts from the start of the call."""

    number: int
    started: float
    elapsed: float
    error: NetworkError | None
    slept: float = 0.0
    shared: bool = False


def format_address(address: Address) -> str:
    """An address as people write it.

    >>> format_address(("::1", 80, 0, 0))
    '[::1]:80'
    """
    if address is None:
        return ""
    if isinstance(address, (str, bytes)):
        path = os.fsdecode(address)
        return "@" + path[1:] if path.startswith("\0") else path
    host, port = str(address[0]), address[1]
    if len(address) == 4 and address[3] and "%" not in host:
        host += f"%{address[3]}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class AioconnectError(Exception):
    """Whatever aioconnect itself raises."""


class ConfigError(AioconnectError, ValueError):
    """A setting or an argument that cannot work, found before anything was opened.

    ``problems`` holds every problem at once, each as ``field=value: what would be right``.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: tuple[str, ...] = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} problems: " + "; ".join(self.problems)


class NetworkError(AioconnectError, OSError):
    """What both families have in common: the fields, the text, copying and pickling.

    May be raised by hand, in a ``prepare`` hook or a test: ``ConnectRefused()``, ``ConnectReset(errno.ECONNRESET)``,
    ``ConnectTimeout("no greeting", phase="prepare")``. The number defaults to that of the class's own code.

    ========================  ==========================================================================
    ``errno``                 the system's number; EAI number or SSL number where the parent has those
    ``code``                  its symbolic name on any system, ``"ECONNREFUSED"``
    ``kind``                  ``"transient" "local" "starting" "denied"`` or ``"permanent"``
    ``phase``                 where it was, ``"resolve"`` to ``"use"``
    ``address``               the address of that socket, ``(host, port)`` while resolving, or a service's name
    ``endpoint``              the endpoint asked for, on errors raised out of a call
    ``elapsed``               seconds: of this dial, or of the whole call on an error raised out of one
    ``errors``                the deciding attempt's errors, one for each address tried
    ``attempts``              the first and the last fifteen `Attempt` records of the call
    ``attempt_count``         how many there were
    ``stop_reason``           why the call ended
    ========================  ==========================================================================
    """

    code: str = "UNKNOWN"
    text: str | None = None
    _member: str | None = None
    phase: codes.Phase = "connect"
    address: Address = None
    endpoint: str | None = None
    elapsed: float | None = None
    errors: tuple[NetworkError, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    attempt_count: int = 0
    stop_reason: StopReason | None = None

    def __init__(self, errno: int | str | None = None, text: str | None = None, **fields: Any) -> None:
        if isinstance(errno, str):
            errno, text = None, errno
        if fields:
            self.__dict__.update(fields)
        if errno is None:
            errno = codes.number_of(self.code)
        elif "code" not in fields and errno != codes.number_of(self.code):
            self.code = self._code_of(errno)
        # `args` holds just these two; everything else is in __dict__, which copy and pickle take along.
        OSError.__init__(self, errno, text)

    def _code_of(self, number: int, /) -> str:
        return codes.code_of(number)

    @property
    def member(self) -> str:
        """The member of an errno set that this error is, such as ``"EACCES@inet"``."""
        return self._member or codes.row_of(self.code, self.phase, self.address).member

    @property
    def kind(self) -> codes.Kind:
        """What a policy looks at; one table decides it, over class, phase and family."""
        return codes.row(self._member or self.member).kind

    @property
    def description(self) -> str:
        """The words for what happened, without place and history."""
        # Words come from anywhere, and the text of an error is one line.
        if self.strerror and (words := " ".join(str(self.strerror).split())):
            return words
        if self.text:
            return self.text
        # The system's words take a C int; HRESULT values and the like are larger.
        return os.strerror(self.errno).lower() if self.errno is not None and 0 < self.errno < 2**31 else "failed"

    def __str__(self) -> str:
        where = format_address(self.address)
        line = f"{self.phase} {where}: " if where else f"{self.phase}: "
        line += f"[{self.code}] {self.description}"
        if self.endpoint and self.endpoint.partition("://")[2].partition("?")[0] != where:
            line = f"{self.endpoint}: {line}"
        if self.stop_reason is None:
            return line
        tries = "1 attempt" if self.attempt_count == 1 else f"{self.attempt_count} attempts"
        return f"{line} ({tries} in {self.elapsed or 0:.1f} s, stopped by {self.stop_reason})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    # PEP 678. A property, so that the list of addresses costs nothing until a traceback is printed.
    @property
    def __notes__(self) -> list[str]:
        notes: list[str] | None = self.__dict__.get("_notes")
        if notes is None:
            notes = self.__dict__["_notes"] = _notes(self)
        return notes

    @__notes__.setter
    def __notes__(self, notes: list[str]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.__dict__["_notes"] = notes

    def replace(self, **fields: Any) -> Self:
        """A new error of the same class with some fields changed; it has no traceback and no cause."""
        fields = self.__dict__ | fields
        fields.pop("_notes", None)
        return _made(type(self), self.args, fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__, _picklable(self.__cause__))


def _made(cls: type[_Made], args: tuple[Any, ...], fields: dict[str, Any]) -> _Made:
    """An error with exactly these fields, without what `NetworkError.__init__` works out from its arguments."""
    new = cls.__new__(cls)
    OSError.__init__(new, *args)
    new.__dict__ = fields
    return new


def _restore(
    cls: type[NetworkError], args: tuple[Any, ...], fields: dict[str, Any], cause: BaseException | None
) -> NetworkError:
    new = _made(cls, args, fields)
    if cause is not None:
        new.__cause__ = cause
    return new


def _picklable(cause: BaseException | None) -> BaseException | None:
    """A cause that can be pickled: a foreign exception that cannot be is replaced by one with its text."""
    if cause is None or isinstance(cause, NetworkError):
        return cause
    # Only pickling and copying get here, and they have loaded it.
    import pickle  # noqa: PLC0415

    try:
        pickle.loads(pickle.dumps(cause))  # noqa: S301  (our own bytes)
    except Exception:  # noqa: BLE001  (a foreign __reduce__ or __init__ may raise anything)
        return AioconnectError(f"{type(cause).__name__}: {cause}")
    return cause


def _notes(error: NetworkError) -> list[str]:
    """The deciding attempt address by address, then what the other attempts met."""
    lines = [
        f"{format_address(each.address) or each.phase}: [{each.code}] {each.description}"
        + ("" if each.elapsed is None else f" after {each.elapsed * 1000:.1f} ms")
        for each in error.errors
    ]
    tally: dict[str, int] = {}
    for attempt in error.attempts:
        if attempt.error is not None:
            tally[attempt.error.code] = tally.get(attempt.error.code, 0) + 1
    if error.attempt_count > 1:
        seen = ", ".join(f"{code} x{count}" for code, count in tally.items())
        kept = "" if error.attempt_count == len(error.attempts) else f" of {len(error.attempts)} kept"
        lines.append(f"{error.attempt_count} attempts{kept}: {seen}")
    return ["\n".join(lines)] if lines else []


class ConnectError(NetworkError):
    """No connection was handed out; asking again is safe."""


class ConnectRefused(ConnectError, ConnectionRefusedError):
    """Nothing listens there, or a firewall says so: a reset or an ICMP port-unreachable answered the SYN."""

    code = "ECONNREFUSED"


class ConnectTimeout(ConnectError, TimeoutError):
    """No answer in time: the kernel's own limit, the attempt's, or the call's, as ``source`` says."""

    code = "ETIMEDOUT"
    source: Literal["kernel", "attempt", "call"] = "kernel"


class HostUnreachable(ConnectError):
    """No route to that host, it does not answer ARP, or a router or firewall said unreachable or prohibited."""

    code = "EHOSTUNREACH"


class NetworkUnreachable(ConnectError):
    """No route to that network, or the interface is down."""

    code = "ENETUNREACH"


class ConnectReset(ConnectError, ConnectionResetError):
    """The peer took the connection and dropped it before it was ready, by RST or by FIN inside the TLS handshake."""

    code = "ECONNRESET"


class ConnectAborted(ConnectError, ConnectionAbortedError):
    """This host gave the connection up while it was being made."""

    code = "ECONNABORTED"


class AccessDenied(ConnectError, PermissionError):
    """A file mode, a sandbox or a privileged port; over the network a firewall's or an eBPF program's answer."""

    code = "EACCES"


class AddressInUse(ConnectError):
    """The local address asked for is taken; with local port 0, every ephemeral port is."""

    code = "EADDRINUSE"
    _member = "EADDRINUSE@port"


class AddressNotAvailable(ConnectError):
    """The local address is not one of this host's, or this host has no address of that family."""

    code = "EADDRNOTAVAIL"
    _member = "EADDRNOTAVAIL@bind"


class EphemeralPortsExhausted(AddressNotAvailable):
    """Every ephemeral port towards that destination is taken, often by TIME_WAIT."""

    _member = "EADDRNOTAVAIL@inet"


class AddressFamilyNotSupported(ConnectError):
    """The kernel, a container or a sandbox has this address family switched off."""

    code = "EAFNOSUPPORT"


class TooManyOpenFiles(ConnectError):
    """This process (EMFILE) or this host (ENFILE) has no file descriptor left."""

    code = "EMFILE"


class OutOfBuffers(ConnectError):
    """The kernel has no memory or no queue space left for a socket."""

    code = "ENOBUFS"


class ThreadsExhausted(ConnectError):
    """No thread could be started to resolve a name: a pids limit, usually."""

    code = "THREADS_EXHAUSTED"
    text = "no thread could be started to resolve the name"


class SocketPathNotFound(ConnectError, FileNotFoundError):
    """Nothing is at that path yet."""

    code = "ENOENT"


class SocketPathInvalid(ConnectError):
    """That path cannot name a socket."""

    code = "ENOTDIR"


class ListenBacklogFull(ConnectError, BlockingIOError):
    """The UNIX socket's backlog is full: the server does not accept as fast as clients come (unix(7))."""

    code = "EAGAIN"
    text = "the listen backlog is full"
    _member = "EAGAIN@unix"


class BadDescriptor(ConnectError):
    """Somebody closed the socket under us."""

    code = "EBADF"


class NameResolutionError(ConnectError, socket.gaierror):
    """The name did not resolve; ``errno`` is the EAI number."""

    code = "EAI_FAIL"
    text = "the name could not be resolved"
    phase: codes.Phase = "resolve"

    def _code_of(self, number: int, /) -> str:
        return codes.EAI.get(number, self.code)


class NameNotFound(NameResolutionError):
    """No such name, or a name without an address of the family asked for."""

    code = "EAI_NONAME"
    text = "name or address not known"


class NameServerUnavailable(NameResolutionError):
    """No name server answered usefully."""

    code = "EAI_AGAIN"
    text = "temporary failure in name resolution"


class TLSError(ConnectError, ssl.SSLError):
    """The handshake failed; ``errno`` is the SSL number.

    ``reason`` and ``library`` are OpenSSL's words; ``verify_code`` and ``verify_message`` come with a certificate.
    """

    code = "TLS_FAILURE"
    text = "the TLS handshake failed"
    phase: codes.Phase = "tls"
    reason: str = ""
    library: str = ""
    verify_code: int = 0
    verify_message: str = ""

    def _code_of(self, _number: int, /) -> str:
        return self.code


class CertificateRejected(TLSError, ssl.SSLCertVerificationError):
    """The peer's certificate does not prove that it is who was asked for."""

    code = "CERTIFICATE_VERIFY_FAILED"
    text = "the certificate was not accepted"


class TLSHandshakeFailed(TLSError):
    """One side refused the other's terms, or broke off."""


class NotTLS(TLSError):
    """The peer does not speak TLS on that port."""

    code = "WRONG_VERSION_NUMBER"
    text = "the peer does not speak TLS on that port"


class NotReady(ConnectError):
    """Raised by a ``prepare`` hook: connected, but the service is not serving yet."""

    code = "NOT_READY"
    text = "not ready yet"
    phase: codes.Phase = "prepare"


class CircuitOpen(ConnectError):
    """Refused without dialing, since the last dials failed; the cause is the last real error.

    ``since`` and ``retry_in`` are seconds: how long the circuit has been open, and until the next probe is due.
    """

    code = "CIRCUIT_OPEN"
    text = "the circuit is open"
    phase: codes.Phase = "wait"
    since: float | None = None
    retry_in: float | None = None

    @property
    def description(self) -> str:
        """For how long, for how much longer, and because of what."""
        if self.since is None or self.retry_in is None:
            return super().description
        words = f"the circuit has been open for {self.since:.1f} s, the next probe is due in {self.retry_in:.1f} s"
        last = self.__cause__
        return f"{words}: [{last.code}] {last.description}" if isinstance(last, NetworkError) else words


class Holder(NamedTuple):
    """Who has a connection of a pool: the task's name, ``file:line``, for how many seconds; ``you``: that very task."""

    task: str
    place: str
    seconds: float
    you: bool = False

    def __str__(self) -> str:
        who = "you" if self.you else self.task
        return f"{who} at {self.place} for {self.seconds:.1f} s" if self.place else f"{who} for {self.seconds:.1f} s"


class PoolState(NamedTuple):
    """What a pool had at the moment of an error."""

    idle: int
    in_use: int
    connecting: int
    waiting: int
    max_size: int
    dialing: float
    """Seconds of ``elapsed`` in which a dial was under way."""
    holders: tuple[Holder, ...]
    """Who has the connections, the longest first, and not all of many."""

    @property
    def size(self) -> int:
        """Connections there were, and those that were being made."""
        return self.idle + self.in_use + self.connecting

    def describe(self, error: NetworkError) -> str:
        """The counts, where the time went, what hinders new connections, and who has the old ones."""
        words = f": {self.in_use} in use, {self.idle} idle, {self.connecting} connecting, {self.waiting} waiting"
        words += f", {self.max_size} at most"
        if error.elapsed:
            words += f"; waited {error.elapsed:.1f} s"
            words += f", {self.dialing:.1f} s of it with a dial under way" if self.dialing else ""
        if error.__cause__ is not None:
            words += f"; the last connect failed: {error.__cause__}"
        return words + ("; held by " + ", ".join(map(str, self.holders)) if self.holders else "")


class PoolTimeout(ConnectError, TimeoutError):
    """No connection of the pool became free in time. The cause is the last connect error, if that is what hinders."""

    code = "POOL_TIMEOUT"
    text = "no connection became free in time"
    phase: codes.Phase = "pool"
    pool: PoolState | None = None

    @property
    def description(self) -> str:
        """What happened, and what the pool had."""
        return super().description + (self.pool.describe(self) if self.pool else "")


class PoolFull(ConnectError):
    """Too many callers wait for the pool already."""

    code = "POOL_FULL"
    text = "too many callers are waiting"
    phase: codes.Phase = "pool"
    pool: PoolState | None = None

    @property
    def description(self) -> str:
        """What happened, and what the pool had."""
        return super().description + (self.pool.describe(self) if self.pool else "")


class ConnectionLost(NetworkError, ConnectionError):
    """An established connection is dead. Reconnecting is safe, resending is the caller's decision."""

    phase: codes.Phase = "use"


class PeerClosed(ConnectionLost, asyncio.IncompleteReadError):
    """The peer closed in the middle of a message; ``partial`` holds what came, ``expected`` how many bytes were due."""

    code = "EOF"
    partial: bytes = b""
    expected: int | None = None

    def __init__(self, partial: bytes = b"", expected: int | None = None, **fields: Any) -> None:
        super().__init__(**fields, partial=partial, expected=expected)

    @property
    def description(self) -> str:
        """How far the message had come."""
        due = "before the end of a message" if self.expected is None else f"of {self.expected} due"
        came = "1 byte" if len(self.partial) == 1 else f"{len(self.partial)} bytes"
        return f"the peer closed the connection after {came} {due}"


class ConnectionResetByPeer(ConnectionLost, ConnectionResetError):
    """The peer reset the connection."""

    code = "ECONNRESET"


class ConnectionTimedOut(ConnectionLost, TimeoutError):
    """The peer stopped answering: retransmissions, keepalive probes or TCP_USER_TIMEOUT ran out (tcp(7))."""

    code = "ETIMEDOUT"


class ConnectionAborted(ConnectionLost, ConnectionAbortedError):
    """This host dropped the connection."""

    code = "ECONNABORTED"


class BrokenPipe(ConnectionLost, BrokenPipeError):
    """Written after the peer had closed."""

    code = "EPIPE"


class ConnectionTLSError(ConnectionLost, ssl.SSLError):
    """An alert, or bytes that are not TLS, on an established TLS connection."""

    code = "TLS_FAILURE"
    text = "the TLS connection broke"
    reason: str = ""
    library: str = ""

    def _code_of(self, _number: int, /) -> str:
        return self.code


class AlreadyClosed(ConnectionLost):
    """Used after our own close."""

    code = "ALREADY_CLOSED"
    text = "the connection was closed on this side"


class PoolClosed(AioconnectError):
    """The pool has been closed."""


# --- From any exception to a typed one. Type before number: `SSLError.errno` and `gaierror.errno` are other spaces.

_CLASSES: Mapping[str, type[NetworkError]] = MappingProxyType(
    {name: cls for name, cls in tuple(globals().items()) if isinstance(cls, type) and issubclass(cls, NetworkError)}
)

_BY_BUILTIN: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "ECONNREFUSED"),
    (ConnectionResetError, "ECONNRESET"),
    (ConnectionAbortedError, "ECONNABORTED"),
    (BrokenPipeError, "EPIPE"),
    (TimeoutError, "ETIMEDOUT"),
    (FileNotFoundError, "ENOENT"),
    (PermissionError, "EACCES"),
    (NotADirectoryError, "ENOTDIR"),
    (BlockingIOError, "EAGAIN"),
    (InterruptedError, "EINTR"),
    (ConnectionError, "ECONNRESET"),
)

# What asyncio says in words only.
_BY_WORDS: tuple[tuple[str, str, codes.Phase], ...] = (
    ("AF_UNIX path too long", "ENAMETOOLONG", "connect"),
    ("getaddrinfo() returned empty list", "EAI_NODATA", "resolve"),
    ("no matching local address", "EADDRNOTAVAIL", "bind"),
)

_HERRORS = MappingProxyType({1: "EAI_NONAME", 2: "EAI_AGAIN", 3: "EAI_FAIL", 4: "EAI_NODATA"})

# Texts, which `re` compiles at their first use and keeps: compiled here, they would cost every import 1 ms.
# How asyncio puts several into one text: "[Errno 111] Connect call failed ('::1', 80, 0, 0), [Errno 101] ...".
_NUMBER_IN_TEXT = r"\[(Errno|WinError) (\d+)\](?: Connect call failed (\([^)]*\)))?"
_BIND_IN_TEXT = r"bind on address (\([^)]*\))"
_ADDRESS_IN_TEXT = r"Connect call failed (\([^)]*\))$"
_OPENSSL_REASON = r"^\[\w+: (\w+)\]"
_OPENSSL_FRAME = r"^\[[^\]]*\]\s*|\s*\(_ssl\.c:\d+\)$"  # "[SSL: REASON] words (_ssl.c:1006)"

_IPV6_NOISE = frozenset({"ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"})


class Failure(NamedTuple):
    """What `classify` found: the code and kind to decide by, and the typed error that holds the rest."""

    code: str
    errno: int | None
    kind: codes.Kind
    retryable: bool
    error: NetworkError


class Decides(Protocol):
    """What `classify` and `decisive` need of a policy."""

    def retryable(self, error: BaseException) -> bool:
        """Whether to try again after this error."""
        ...


def class_of(row: codes.Row, phase: codes.Phase = "connect") -> type[NetworkError]:
    """The class that a row of the table is raised as in a phase."""
    return _CLASSES[row.in_use if phase == "use" else row.establishing]


_Group = BaseExceptionGroup[BaseException]


def typed(
    code: str,
    phase: codes.Phase = "connect",
    address: Address = None,
    number: int | None = None,
    *,
    strerror: str | None = None,
    port_given: bool = True,
    **fields: Any,
) -> NetworkError:
    """The error of the class that the table names for a code met in a phase at an address.

    >>> typed("ECONNREFUSED", address=("10.0.0.7", 5432))
    ConnectRefused('connect 10.0.0.7:5432: [ECONNREFUSED] connection refused')
    """
    row = codes.row_of(code, phase, address, port_given=port_given)
    if number is None:
        number = codes.number_of(code)
    cls = _CLASSES[row.in_use if phase == "use" else row.establishing]
    # One by one, and not by `_made`: of what an error costs, an update and a call with a tuple take a third.
    fields["code"] = code
    fields["phase"] = phase
    fields["address"] = address
    fields["_member"] = row.member
    new = cls.__new__(cls)
    OSError.__init__(new, number, strerror)
    new.__dict__ = fields
    return new


def translate(
    exc: BaseException, phase: codes.Phase = "connect", address: Address = None, **fields: Any
) -> NetworkError | None:
    """The typed error for an exception met in a phase, with that exception as its cause.

    ``None`` for what says nothing about a connection: a cancellation, a bad argument, a bug. A typed error that
    already fits its phase is returned as it is.

    >>> translate(TimeoutError(), "tls", ("10.0.0.7", 443))
    ConnectTimeout('tls 10.0.0.7:443: [ETIMEDOUT] connection timed out')
    """
    if isinstance(exc, NetworkError):
        error = _rephased(exc, phase, address, fields)
    elif isinstance(exc, ssl.SSLError):
        error = _from_ssl(exc, phase, address, fields)
    elif isinstance(exc, (socket.gaierror, socket.herror)):
        error = _from_resolver(exc, address, fields)
    elif isinstance(exc, OSError):
        error = _from_oserror(exc, phase, address, fields)
    elif isinstance(exc, BaseExceptionGroup):
        return _from_group(cast(_Group, exc), phase, address, fields)
    elif isinstance(exc, EOFError):
        error = _from_eof(exc, phase, address, fields)
    elif isinstance(exc, RuntimeError):
        return _from_words(exc, phase, address, fields)
    else:
        return None
    if error is not exc and error.__cause__ is None:
        error.__cause__ = exc
    return error


def _rephased(exc: NetworkError, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    """What a nested connection's error means to the one being prepared; elsewhere it keeps its own place."""
    if phase not in ("resolve", "tls", "prepare"):
        return exc
    if isinstance(exc, ConnectionTLSError):
        fields |= {"reason": exc.reason, "library": exc.library}
        words = exc.description
        return _tls_class(exc.code)(exc.errno, words, code=exc.code, phase=phase, address=address, **fields)
    if isinstance(exc, ConnectionLost):
        code = "ECONNRESET" if isinstance(exc, PeerClosed) else exc.code
        return typed(code, phase, address, exc.errno, strerror=exc.description, **fields)
    if exc.phase == phase and exc.address == address:
        return exc
    if phase == "prepare" and isinstance(exc, ConnectTimeout) and exc.source == "call":
        # The limit of a call made inside the hook: to the one around it, that attempt took too long.
        fields.setdefault("source", "attempt")
    return exc.replace(phase=phase, address=address, _member=exc.member, **fields)


def _from_ssl(exc: ssl.SSLError, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    text = str(exc.strerror or " ".join(map(str, exc.args)))
    words = re.sub(_OPENSSL_FRAME, "", text)
    named = re.match(_OPENSSL_REASON, text)
    reason: str | None = getattr(exc, "reason", None) or (named[1] if named else None)
    code = reason or _tls_code(exc, words)
    if phase == "connect":
        phase = "tls"
    if phase == "use":
        cls: type[NetworkError] = ConnectionTLSError
    elif isinstance(exc, ssl.SSLCertVerificationError):
        cls = CertificateRejected
        words = getattr(exc, "verify_message", "") or words
        fields |= {"verify_code": getattr(exc, "verify_code", 0), "verify_message": words}
    else:
        cls = _tls_class(code)
    if cls is NotTLS:
        words = f"the peer does not speak TLS on that port ({words})"
    fields |= {"reason": reason, "library": getattr(exc, "library", None)}
    return cls(_number(exc), words, code=code, phase=phase, address=address, **fields)


def _tls_code(exc: ssl.SSLError, words: str) -> str:
    """The code of an error without a reason."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "CERTIFICATE_VERIFY_FAILED"
    if isinstance(exc, ssl.SSLZeroReturnError):
        return "ZERO_RETURN"
    if isinstance(exc, ssl.SSLEOFError):
        return "UNEXPECTED_EOF_WHILE_READING"
    # CPython's table lacks the newer alerts: the name is then only in OpenSSL's words.
    return words.upper().replace(" ", "_") if words.startswith(("tls", "sslv3 alert")) else "TLS_FAILURE"


def _tls_class(code: str) -> type[NetworkError]:
    """The class for a reason, those that no table knows included."""
    found = class_of(codes.row_of(code, "tls"))
    return found if issubclass(found, TLSError) else TLSHandshakeFailed


def _from_resolver(exc: OSError, address: Address, fields: dict[str, Any]) -> NetworkError:
    words = str(exc.strerror).lower() if exc.strerror else None
    if isinstance(exc, socket.herror):
        return typed(_HERRORS.get(_number(exc) or 0, "EAI_FAIL"), "resolve", address, strerror=words, **fields)
    number = _number(exc)
    return typed(codes.EAI.get(number or 0, "EAI_FAIL"), "resolve", address, number, strerror=words, **fields)


def _from_oserror(exc: OSError, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    winerror: int | None = getattr(exc, "winerror", None)
    number = _number(exc)
    if winerror is not None and winerror in codes.WINERRORS:
        code = codes.WINERRORS[winerror]
        number = codes.number_of(code)
    elif number is None:
        return _from_unnumbered(exc, phase, address, fields)
    elif number < 0 and number in codes.EAI:
        # No errno is negative: a gaierror that a library has put into an exception of its own.
        return _from_resolver(exc, address, fields)
    else:
        code = codes.code_of(number)
    words = str(exc.strerror or "")
    if "(" in words:
        phase, address = _place_in(words, phase, address, fields)
    return typed(code, phase, address, number, **fields)


def _place_in(words: str, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> tuple[codes.Phase, Address]:
    """Where it was, if that is in asyncio's words: an address, as a tuple is printed."""
    if phase == "connect" and (bound := re.search(_BIND_IN_TEXT, words)):
        local = _address_in(bound[1])
        fields["port_given"] = local is None or local[1] != 0
        return "bind", address or local
    if address is None and (named := re.match(_ADDRESS_IN_TEXT, words)):
        return phase, _address_in(named[1])
    return phase, address


def _number(exc: OSError) -> int | None:
    """The number of an error. ``OSError("no", "route")`` has a text there, and other libraries make such."""
    number: object = exc.errno
    return number if isinstance(number, int) else None


def _address_in(text: str) -> tuple[Any, ...] | None:
    """An address as asyncio prints it; ``None`` if it is none."""
    with contextlib.suppress(ValueError, SyntaxError):
        match ast.literal_eval(text):
            case (str(), int(), *_) as address:
                return cast("tuple[Any, ...]", address)
            case _:
                pass
    return None


def _from_unnumbered(exc: OSError, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    words = str(exc)
    for builtin, code in _BY_BUILTIN:
        if isinstance(exc, builtin):
            return _from_builtin(code, words, phase, address, fields)
    return _from_message(words, phase, address, fields)


def _from_builtin(code: str, words: str, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    """What asyncio makes itself: a class without a number, sometimes with words."""
    if words.startswith("SSL handshake is taking longer"):
        code, text = "ETIMEDOUT", "the TLS handshake was not done in time"
        phase = "tls" if phase == "connect" else phase
    elif phase == "tls" and code == "ECONNRESET" and not words:
        text = "the peer closed the connection during the TLS handshake"
    else:
        text = words.lower()
    if code == "ETIMEDOUT" and phase != "use":
        # The kernel's own always has its number, so this is somebody's timer.
        fields.setdefault("source", "attempt")
    return typed(code, phase, address, strerror=text or None, **fields)


def _from_message(words: str, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    """The last resort: numbers that only the text has kept, as in ``"Multiple exceptions: [Errno 111] ..."``."""
    errors: list[NetworkError] = []
    for space, number, place in re.findall(_NUMBER_IN_TEXT, words):
        code = codes.WINERRORS.get(int(number)) if space == "WinError" else None
        at = address or _address_in(place)
        errors.append(typed(code or codes.code_of(int(number)), phase, at, None if code else int(number), **fields))
    if errors:
        return decisive(errors).replace(errors=tuple(errors))
    for beginning, code, where in _BY_WORDS:
        if beginning in words:
            return typed(code, where, address, strerror=words, **fields)
    cls = ConnectionLost if phase == "use" else ConnectError
    return cls(None, words or None, phase=phase, address=address, **fields)


def _from_group(exc: _Group, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError | None:
    errors = tuple(error for each in exc.exceptions if (error := translate(each, phase, address, **fields)) is not None)
    if len(errors) < len(exc.exceptions):
        # A bug or a cancellation among them must stay what it is.
        return None
    chosen = decisive(errors).replace(errors=errors)
    chosen.__cause__ = exc
    return chosen


def _from_eof(exc: EOFError, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError:
    if phase != "use":
        return typed("ECONNRESET", phase, address, strerror="the peer closed the connection", **fields)
    if isinstance(exc, asyncio.IncompleteReadError):
        return PeerClosed(exc.partial, exc.expected, address=address, **fields)
    return PeerClosed(address=address, **fields)


def _from_words(exc: RuntimeError, phase: codes.Phase, address: Address, fields: dict[str, Any]) -> NetworkError | None:
    words = str(exc)
    if words == "can't start new thread":
        error = typed("THREADS_EXHAUSTED", phase, address, **fields)
    elif words.endswith("the handler is closed"):
        # uvloop's answer to a write on a transport that the peer has closed.
        error = typed("LOST" if phase == "use" else "ECONNRESET", phase, address, strerror=words, **fields)
    else:
        return None
    error.__cause__ = exc
    return error


def decisive(errors: Sequence[NetworkError], policy: Decides | None = None) -> NetworkError:
    """Which of one attempt's errors, one for each address, speaks for the attempt.

    One that the policy would retry, before one that it would not; an answer before silence and before what a
    missing second family says; then the order of the addresses. Silence that only the call's own limit ended
    comes last, since it says nothing about the peer.
    """
    if len(errors) == 1:
        return errors[0]

    def rank(error: NetworkError) -> tuple[bool, bool, bool]:
        cut = isinstance(error, ConnectTimeout) and error.source != "kernel"
        noise = error.code in _IPV6_NOISE and codes.family_of(error.address) == "inet6"
        last = isinstance(error, ConnectTimeout) and error.source == "call"
        return last, not _retryable(error, policy), cut or noise

    return min(errors, key=rank)


def _retryable(error: NetworkError, policy: Decides | None) -> bool:
    """Without a policy, what the default one retries."""
    return error.kind in ("transient", "local") if policy is None else policy.retryable(error)


class translate_errors:  # noqa: N801  (used like a function, as `contextlib.suppress` is)
    """A context manager that raises typed errors out of any code; what is no connection error passes untouched.

    >>> import errno
    >>> with translate_errors(phase="use", address=("10.0.0.7", 6379)):
    ...     raise ConnectionResetError(errno.ECONNRESET, "reset")
    Traceback (most recent call last):
    aioconnect.errors.ConnectionResetByPeer: use 10.0.0.7:6379: [ECONNRESET] connection reset by peer
    """

    __slots__ = ("address", "phase")

    def __init__(self, phase: codes.Phase = "connect", address: Address = None) -> None:
        self.phase: codes.Phase = phase
        self.address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, cls: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None:
            return
        error = translate(exc, self.phase, self.address)
        if error is not None and error is not exc:
            raise error from exc


def classify(exc: BaseException, policy: Decides | None = None) -> Failure | None:
    """What any exception, another library's included, says about a connection; ``None`` if nothing.

    Looks at the exception, then into groups, causes and contexts (suppressed ones too) until something has a
    number. ``retryable`` is the policy's answer, by default that of ``TRANSIENT | LOCAL``.

    >>> import errno
    >>> try:
    ...     raise LookupError("no cache") from ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    ... except LookupError as exc:
    ...     classify(exc).code
    'ECONNREFUSED'
    """
    vague: NetworkError | None = None
    for each in _chain(exc):
        error = translate(each)
        if error is None:
            continue
        if error.code == "UNKNOWN" or (type(each) is TimeoutError and each.errno is None):
            # A bare time-out, or words: something further down may know more.
            vague = vague or error
            continue
        return _failure(error, policy)
    return None if vague is None else _failure(vague, policy)


def _failure(error: NetworkError, policy: Decides | None) -> Failure:
    return Failure(error.code, error.errno, error.kind, _retryable(error, policy), error)


def _members(exc: BaseException) -> tuple[BaseException, ...]:
    return cast(_Group, exc).exceptions if isinstance(exc, BaseExceptionGroup) else ()


_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The exception and everything behind it, nearest first, each once."""
    queue: list[BaseException] = [exc]
    seen = {id(exc)}
    while queue:
        each = queue.pop(0)
        yield each
        if isinstance(each, ConfigError):
            # The file that is missing tells why a setting is wrong, and nothing about a connection.
            continue
        behind: list[BaseException | None] = [*_members(each), each.__cause__]
        # A KeyError that came up while a refused connection was handled is a bug, not a refused connection; one that
        # was raised in its place (``from None``) is somebody's word for it.
        if each.__suppress_context__ or not isinstance(each, _BUGS):
            behind.append(each.__context__)
        for one in behind:
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                queue.append(one)


def explain(what: str | int | BaseException) -> str:
    """What an error means, in several lines for people: who said so, what usually is the matter, what to do.

    ``what``: a code or alias (``"ECONNREFUSED"``, ``"EACCES@inet"``, ``"WSAECONNREFUSED"``), an errno number of this
    system, an EAI number (negative), a Windows error, an exception of any library, or a text that speaks of an error,
    such as a pasted traceback. Of several errors in a text, the first is explained and the others are named.

    Raises `ConfigError` for what is none of these.

    >>> print(explain("ECONNREFUSED").splitlines()[0])
    ECONNREFUSED: nothing listens on that port, or a firewall says so
    """
    from aioconnect import explaining  # noqa: PLC0415  (the words would take 1 ms of every import)

    members: tuple[str, ...] = ()
    number, words = None, str(what).strip()
    if isinstance(what, BaseException):
        if (failure := classify(what)) is not None:
            number, words = failure.errno, failure.error.description
            members = tuple(dict.fromkeys(error.member for error in (failure.error, *failure.error.errors)))
            words = getattr(failure.error, "verify_message", "") or words
    elif words.removeprefix("-").isdecimal() and words.isascii() and len(words) < 12:
        members, number = explaining.members_numbered(int(words)), int(words)
    else:
        members = explaining.members_named(words) or explaining.members_in(str(what))
    if not members:
        raise ConfigError(explaining.unknown(repr(what) if isinstance(what, BaseException) else words))
    code = codes.row(members[0]).code
    sheets = [explaining.sheet(each, number=number, words=words) for each in members if codes.row(each).code == code]
    others = [each for each in members if codes.row(each).code != code]
    also = [f"Also: {codes.row(each).code}, {explaining.explanation_of(each).meaning}" for each in others]
    return "\n\n".join([*sheets, *(["\n".join(also)] if also else [])])
