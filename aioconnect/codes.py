"""The code table: what each errno, EAI code, TLS reason and Windows error means for a connection.

One row is one *member* of an errno set: a symbolic code and, where the same number means different things, the
place it was met (``"EACCES@inet"`` is a firewall's answer, ``"EACCES@local"`` a file mode). A row names the class
raised while establishing, the class raised in use, and the kind, which is what a policy looks at.

Numbers differ between systems (61 is ENODATA on Linux and ECONNREFUSED on macOS) and three number spaces hide in
``OSError.errno``, so names are what is kept, compared, pickled and logged.

Sources: connect(2), unix(7), ip(7), tcp(7), getaddrinfo(3), Linux ``net/ipv4/icmp.c`` for what ICMP turns into,
RFC 8446 section 6 for alerts, CPython ``PC/errmap.h`` and ``Modules/overlapped.c`` for Windows.
"""

from __future__ import annotations

import errno
import socket
from types import MappingProxyType
from typing import Literal, NamedTuple, cast, get_args

__all__ = (
    "EAI",
    "KINDS",
    "KNOWN",
    "PHASES",
    "WINERRORS",
    "Kind",
    "Phase",
    "Row",
    "code_of",
    "family_of",
    "members_of",
    "number_of",
    "row",
    "row_of",
    "rows",
)

Kind = Literal["transient", "local", "starting", "denied", "permanent"]
Phase = Literal["resolve", "socket", "bind", "connect", "tls", "prepare", "wait", "pool", "use"]

KINDS: tuple[Kind, ...] = get_args(Kind)
PHASES: tuple[Phase, ...] = get_args(Phase)


class Row(NamedTuple):
    """One member of the table."""

    member: str
    kind: Kind
    establishing: str = "ConnectError"
    in_use: str = "ConnectionLost"

    @property
    def code(self) -> str:
        """The symbolic code, without the place it was met."""
        return self.member.partition("@")[0]


_ROWS = (
    # The network or the peer said no, and may say yes later.
    Row("ECONNREFUSED", "transient", "ConnectRefused"),
    Row("ETIMEDOUT", "transient", "ConnectTimeout", "ConnectionTimedOut"),
    Row("EHOSTUNREACH", "transient", "HostUnreachable"),
    Row("EHOSTDOWN", "transient", "HostUnreachable"),
    Row("ENONET", "transient", "HostUnreachable"),
    # ICMP protocol-unreachable answering a SYN; from setsockopt the same number is our mistake.
    Row("ENOPROTOOPT@connect", "transient", "HostUnreachable"),
    Row("ENOPROTOOPT@socket", "permanent"),
    Row("ENETUNREACH", "transient", "NetworkUnreachable"),
    Row("ENETDOWN", "transient", "NetworkUnreachable"),
    Row("ECONNRESET", "transient", "ConnectReset", "ConnectionResetByPeer"),
    Row("ENETRESET", "transient", "ConnectReset"),
    Row("EPIPE", "transient", "ConnectReset", "BrokenPipe"),
    Row("ENOTCONN", "transient", "ConnectReset", "AlreadyClosed"),
    Row("ECONNABORTED", "transient", "ConnectAborted", "ConnectionAborted"),
    Row("ECANCELED", "transient", "ConnectAborted", "ConnectionAborted"),
    # connect(2): EAGAIN on a UNIX socket is a full backlog, elsewhere a shortage in this host's routing.
    Row("EAGAIN@unix", "transient", "ListenBacklogFull"),
    Row("EAGAIN@inet", "local", "OutOfBuffers"),
    # This host is short of something.
    Row("EMFILE", "local", "TooManyOpenFiles"),
    Row("ENFILE", "local", "TooManyOpenFiles"),
    Row("ENOBUFS", "local", "OutOfBuffers"),
    Row("ENOMEM", "local", "OutOfBuffers"),
    Row("THREADS_EXHAUSTED", "local", "ThreadsExhausted"),
    # Over IPv4 connect runs out of ephemeral ports; over IPv6 the family is switched off; at bind the address is wrong.
    Row("EADDRNOTAVAIL@inet", "local", "EphemeralPortsExhausted"),
    Row("EADDRNOTAVAIL@inet6", "permanent", "AddressNotAvailable"),
    Row("EADDRNOTAVAIL@bind", "permanent", "AddressNotAvailable"),
    # A given local port is taken until somebody frees it; port 0 means that every ephemeral port is taken.
    Row("EADDRINUSE@port", "permanent", "AddressInUse"),
    Row("EADDRINUSE@ephemeral", "local", "AddressInUse"),
    # Not there yet, though it may be once a deployment has settled.
    Row("EAI_NONAME", "starting", "NameNotFound"),
    Row("EAI_NODATA", "starting", "NameNotFound"),
    Row("ENOENT", "starting", "SocketPathNotFound"),
    Row("NOT_READY", "starting", "NotReady"),
    # Over the network: ICMPv6 rejections and eBPF verdicts, which a roll-out may lift. Locally: modes and sandboxes.
    Row("EACCES@inet", "denied", "AccessDenied"),
    Row("EACCES@local", "permanent", "AccessDenied"),
    Row("EPERM@inet", "denied", "AccessDenied"),
    Row("EPERM@local", "permanent", "AccessDenied"),
    # Names.
    Row("EAI_AGAIN", "transient", "NameServerUnavailable"),
    Row("EAI_MEMORY", "local", "NameResolutionError"),
    Row("EAI_FAIL", "permanent", "NameResolutionError"),
    Row("EAI_SERVICE", "permanent", "NameResolutionError"),
    Row("EAI_FAMILY", "permanent", "NameResolutionError"),
    Row("EAI_ADDRFAMILY", "permanent", "NameResolutionError"),
    Row("EAI_SOCKTYPE", "permanent", "NameResolutionError"),
    Row("EAI_BADFLAGS", "permanent", "NameResolutionError"),
    Row("EAI_BADHINTS", "permanent", "NameResolutionError"),
    Row("EAI_PROTOCOL", "permanent", "NameResolutionError"),
    Row("EAI_OVERFLOW", "permanent", "NameResolutionError"),
    Row("EAI_SYSTEM", "permanent", "NameResolutionError"),
    # Configuration or code must change.
    Row("EAFNOSUPPORT", "permanent", "AddressFamilyNotSupported"),
    Row("EPFNOSUPPORT", "permanent", "AddressFamilyNotSupported"),
    Row("EPROTONOSUPPORT", "permanent", "AddressFamilyNotSupported"),
    Row("ESOCKTNOSUPPORT", "permanent", "AddressFamilyNotSupported"),
    Row("ENOTDIR", "permanent", "SocketPathInvalid"),
    Row("ELOOP", "permanent", "SocketPathInvalid"),
    Row("ENAMETOOLONG", "permanent", "SocketPathInvalid"),
    Row("EBADF", "permanent", "BadDescriptor", "AlreadyClosed"),
    Row("ENOTSOCK", "permanent", "BadDescriptor", "AlreadyClosed"),
    Row("ESHUTDOWN", "permanent", "ConnectError", "BrokenPipe"),
    # Our own.
    Row("CIRCUIT_OPEN", "transient", "CircuitOpen"),
    Row("POOL_TIMEOUT", "local", "PoolTimeout"),
    Row("POOL_FULL", "local", "PoolFull"),
    Row("EOF", "transient", "ConnectReset", "PeerClosed"),
    Row("ALREADY_CLOSED", "permanent", "ConnectError", "AlreadyClosed"),
    # Any other errno met in use: this connection is dead, and a new one may live.
    Row("LOST", "transient"),
    # TLS: the peer's certificate, no TLS at all, then alerts and failures of the handshake.
    Row("CERTIFICATE_VERIFY_FAILED", "permanent", "CertificateRejected", "ConnectionTLSError"),
    *(
        Row(reason, "permanent", "NotTLS", "ConnectionTLSError")
        for reason in (
            "WRONG_VERSION_NUMBER",
            "PACKET_LENGTH_TOO_LONG",
            "RECORD_LAYER_FAILURE",
            "HTTP_REQUEST",
            "HTTPS_PROXY_REQUEST",
        )
    ),
    *(
        Row(reason, "transient", "TLSHandshakeFailed", "ConnectionTLSError")
        for reason in (
            "TLSV1_ALERT_INTERNAL_ERROR",
            "TLSV1_ALERT_USER_CANCELLED",
            "UNEXPECTED_EOF_WHILE_READING",
            "ZERO_RETURN",
        )
    ),
    *(
        Row(reason, "permanent", "TLSHandshakeFailed", "ConnectionTLSError")
        for reason in (
            "SSLV3_ALERT_UNEXPECTED_MESSAGE",
            "SSLV3_ALERT_BAD_RECORD_MAC",
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
            "SSLV3_ALERT_NO_CERTIFICATE",
            "SSLV3_ALERT_BAD_CERTIFICATE",
            "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
            "SSLV3_ALERT_CERTIFICATE_REVOKED",
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            "SSLV3_ALERT_ILLEGAL_PARAMETER",
            "TLSV1_ALERT_UNKNOWN_CA",
            "TLSV1_ALERT_ACCESS_DENIED",
            "TLSV1_ALERT_DECODE_ERROR",
            "TLSV1_ALERT_DECRYPT_ERROR",
            "TLSV1_ALERT_PROTOCOL_VERSION",
            "TLSV1_ALERT_INSUFFICIENT_SECURITY",
            "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
            "TLSV1_ALERT_NO_RENEGOTIATION",
            "TLSV13_ALERT_MISSING_EXTENSION",
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "TLSV1_UNSUPPORTED_EXTENSION",
            "TLSV1_CERTIFICATE_UNOBTAINABLE",
            "TLSV1_UNRECOGNIZED_NAME",
            "TLSV1_BAD_CERTIFICATE_STATUS_RESPONSE",
            "TLSV1_BAD_CERTIFICATE_HASH_VALUE",
            "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
            "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
            "UNEXPECTED_MESSAGE",
            "NO_PROTOCOLS_AVAILABLE",
            "NO_CIPHERS_AVAILABLE",
            "UNSUPPORTED_PROTOCOL",
            "VERSION_TOO_LOW",
            "DH_KEY_TOO_SMALL",
            "BAD_SIGNATURE",
            "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
            "APPLICATION_DATA_AFTER_CLOSE_NOTIFY",
            "TLS_FAILURE",
        )
    ),
)

_BY_MEMBER = MappingProxyType({entry.member: entry for entry in _ROWS})

_PLACED = tuple(entry for entry in _ROWS if "@" in entry.member)

_SPLIT = MappingProxyType(
    {
        code: tuple(entry.member for entry in _PLACED if entry.code == code)
        for code in dict.fromkeys(entry.code for entry in _PLACED)
    }
)

_ALIASES = MappingProxyType({"EWOULDBLOCK": "EAGAIN", "ENOTSUP": "EOPNOTSUPP", "EDEADLOCK": "EDEADLK"})

EAI = MappingProxyType(
    {
        number: name
        for name in sorted(entry.code for entry in _ROWS if entry.code.startswith("EAI_"))
        if (number := getattr(socket, name, None)) is not None
    }
)
"""EAI numbers of this system, by number. glibc's are negative; BSD's and macOS's collide with errno numbers."""

_WINDOWS = MappingProxyType(
    {
        "ECONNREFUSED": (1225, 1234, 10061),
        "ETIMEDOUT": (121, 258, 10060),
        "ECONNRESET": (64, 10054),
        "ECONNABORTED": (1235, 1236, 10053),
        "ECANCELED": (995, 10103, 10111),
        "EPIPE": (109, 232, 233, 1226, 10101),
        "ENOTCONN": (1229, 10057),
        "ESHUTDOWN": (10058,),
        "EHOSTUNREACH": (1232, 1233, 10065),
        "EHOSTDOWN": (10064,),
        "ENETUNREACH": (1231, 10051),
        "ENETDOWN": (10050, 10091, 10093),
        "ENETRESET": (10052,),
        "EADDRINUSE": (52, 1227, 10048),
        "EADDRNOTAVAIL": (1214, 10049),
        "EAFNOSUPPORT": (10047,),
        "EPFNOSUPPORT": (10046,),
        "EPROTONOSUPPORT": (10043,),
        "ESOCKTNOSUPPORT": (10044,),
        "EPROTOTYPE": (10041,),
        "ENOPROTOOPT": (10042,),
        "EOPNOTSUPP": (10045,),
        "EMFILE": (4, 10024),
        "ENOBUFS": (1450, 10055, 10067),
        "ENOMEM": (8, 14, 1453, 1455, 1816),
        "EACCES": (5, 65, 10013),
        "ENOENT": (2, 3),
        "ENOTDIR": (267,),
        "ELOOP": (10062,),
        "ENAMETOOLONG": (10063,),
        "EBADF": (6, 10009),
        "ENOTSOCK": (10038,),
        "EINVAL": (10022,),
        "EFAULT": (10014,),
        "EDESTADDRREQ": (10039,),
        "EMSGSIZE": (10040,),
        "EISCONN": (10056,),
        "EALREADY": (10037,),
        "EINPROGRESS": (10036,),
        "EAGAIN": (10035,),
        "EINTR": (10004,),
    }
)

WINERRORS = MappingProxyType({number: code for code, numbers in _WINDOWS.items() for number in numbers})
"""Codes by Windows error number. On the Proactor loop ``errno`` is 22 for nearly all, so ``winerror`` decides."""

KNOWN = frozenset(entry.code for entry in _ROWS).union(errno.errorcode.values(), WINERRORS.values(), *_ALIASES.items())
"""Every code name that a set accepts."""


_CODES = MappingProxyType(
    {number: _ALIASES.get(name := known.removeprefix("WSA"), name) for number, known in errno.errorcode.items()}
)


def code_of(number: int) -> str:
    """The symbolic name of an errno: ``"ECONNREFUSED"``; ``"ERRNO_4242"`` for a number without a name.

    >>> code_of(errno.ECONNREFUSED)
    'ECONNREFUSED'
    """
    return _CODES.get(number) or WINERRORS.get(number) or f"ERRNO_{number}"


def number_of(code: str) -> int | None:
    """This system's errno for a code, or its EAI number; ``None`` where it has none, as for ENONET on macOS.

    >>> number_of("ETIMEDOUT") == errno.ETIMEDOUT
    True
    """
    if code.startswith("EAI_"):
        return getattr(socket, code, None)
    if code.startswith("ERRNO_"):
        return int(code.removeprefix("ERRNO_"))
    return getattr(errno, code, None) if code[:1] == "E" else None


def members_of(code: str) -> tuple[str, ...]:
    """All members a plain code stands for; a member stands for itself.

    >>> members_of("EPERM")
    ('EPERM@inet', 'EPERM@local')
    """
    code = _ALIASES.get(code, code)
    return _SPLIT.get(code, (code,))


def row(member: str) -> Row:
    """The row of a member; a code that has none is permanent and keeps its name."""
    return _BY_MEMBER.get(member) or Row(member, "permanent")


def rows() -> tuple[Row, ...]:
    """The whole table."""
    return _ROWS


def family_of(address: object) -> Literal["inet", "inet6", "unix"]:
    """The family an address is of: a path is ``"unix"``, a colon in the host ``"inet6"``, anything else ``"inet"``."""
    if isinstance(address, (str, bytes)):
        return "unix"
    if isinstance(address, tuple):
        return "inet6" if ":" in str(cast(object, address[:1])) else "inet"
    return "inet"


def row_of(code: str, phase: str = "connect", address: object = None, *, port_given: bool = True) -> Row:
    """The row for a code met in a phase at an address.

    ``port_given`` tells a bind to a chosen local port from one that asked for any free port.
    """
    known = _BY_MEMBER.get(code)
    if known is not None and phase != "use":
        return known
    code = _ALIASES.get(code, code)
    if phase == "use":
        return _row_in_use(code)
    if code not in _SPLIT:
        return row(code)
    return _BY_MEMBER[f"{code}@{_place(code, phase, family_of(address), port_given)}"]


def _place(code: str, phase: str, family: str, port_given: bool) -> str:  # noqa: FBT001
    """Which of the members of a code with several: what tells them apart is another thing for each."""
    bound = phase in ("bind", "socket")
    match code:
        case "ENOPROTOOPT":
            return "connect" if phase == "connect" else "socket"
        case "EAGAIN":
            return "unix" if family == "unix" else "inet"
        case "EADDRNOTAVAIL":
            return "bind" if bound else "inet6" if family == "inet6" else "inet"
        case "EADDRINUSE":
            return "port" if phase == "bind" and port_given else "ephemeral"
        case _:
            return "local" if bound or family == "unix" or phase == "resolve" else "inet"


def _row_in_use(code: str) -> Row:
    """Whatever ends an established connection, a new one may live: only our own misuse and TLS keep their kind."""
    known = _BY_MEMBER.get(code)
    if known is None or (known.kind != "transient" and known.in_use == "ConnectionLost"):
        return _BY_MEMBER["LOST"]
    return known
