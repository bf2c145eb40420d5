"""The code table: what it holds, and where one number means different things."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from typing import Any

import pytest

from aioconnect import codes, errors

# kind -> members, written out: a row that moves to another kind changes what everybody's default policy does.
KINDS = {
    "transient": """
        ECONNREFUSED ETIMEDOUT EHOSTUNREACH EHOSTDOWN ENONET ENOPROTOOPT@connect ENETUNREACH ENETDOWN ECONNRESET
        ENETRESET EPIPE ENOTCONN ECONNABORTED ECANCELED EAGAIN@unix EAI_AGAIN CIRCUIT_OPEN EOF LOST
        TLSV1_ALERT_INTERNAL_ERROR TLSV1_ALERT_USER_CANCELLED UNEXPECTED_EOF_WHILE_READING ZERO_RETURN
    """,
    "local": """
        EAGAIN@inet EMFILE ENFILE ENOBUFS ENOMEM THREADS_EXHAUSTED EADDRNOTAVAIL@inet EADDRINUSE@ephemeral
        EAI_MEMORY POOL_TIMEOUT POOL_FULL
    """,
    "starting": "EAI_NONAME EAI_NODATA ENOENT NOT_READY",
    "denied": "EACCES@inet EPERM@inet",
}

# code -> class raised while establishing: the tree in the design, line by line.
ESTABLISHING = {
    "ConnectRefused": "ECONNREFUSED",
    "ConnectTimeout": "ETIMEDOUT",
    "HostUnreachable": "EHOSTUNREACH EHOSTDOWN ENONET ENOPROTOOPT@connect",
    "NetworkUnreachable": "ENETUNREACH ENETDOWN",
    "ConnectReset": "ECONNRESET ENETRESET EPIPE ENOTCONN EOF",
    "ConnectAborted": "ECONNABORTED ECANCELED",
    "AccessDenied": "EACCES@inet EACCES@local EPERM@inet EPERM@local",
    "AddressInUse": "EADDRINUSE@port EADDRINUSE@ephemeral",
    "AddressNotAvailable": "EADDRNOTAVAIL@bind EADDRNOTAVAIL@inet6",
    "EphemeralPortsExhausted": "EADDRNOTAVAIL@inet",
    "AddressFamilyNotSupported": "EAFNOSUPPORT EPFNOSUPPORT EPROTONOSUPPORT ESOCKTNOSUPPORT",
    "TooManyOpenFiles": "EMFILE ENFILE",
    "OutOfBuffers": "ENOBUFS ENOMEM EAGAIN@inet",
    "ThreadsExhausted": "THREADS_EXHAUSTED",
    "SocketPathNotFound": "ENOENT",
    "SocketPathInvalid": "ENOTDIR ELOOP ENAMETOOLONG",
    "ListenBacklogFull": "EAGAIN@unix",
    "BadDescriptor": "EBADF ENOTSOCK",
    "NameNotFound": "EAI_NONAME EAI_NODATA",
    "NameServerUnavailable": "EAI_AGAIN",
    "NameResolutionError": """
        EAI_MEMORY EAI_FAIL EAI_SERVICE EAI_FAMILY EAI_ADDRFAMILY EAI_SOCKTYPE EAI_BADFLAGS EAI_BADHINTS
        EAI_PROTOCOL EAI_OVERFLOW EAI_SYSTEM
    """,
    "CertificateRejected": "CERTIFICATE_VERIFY_FAILED",
    "NotTLS": """
        WRONG_VERSION_NUMBER PACKET_LENGTH_TOO_LONG RECORD_LAYER_FAILURE HTTP_REQUEST HTTPS_PROXY_REQUEST
    """,
    "NotReady": "NOT_READY",
    "CircuitOpen": "CIRCUIT_OPEN",
    "PoolTimeout": "POOL_TIMEOUT",
    "PoolFull": "POOL_FULL",
}

IN_USE = {
    "PeerClosed": "EOF",
    "ConnectionResetByPeer": "ECONNRESET",
    "ConnectionTimedOut": "ETIMEDOUT",
    "ConnectionAborted": "ECONNABORTED ECANCELED",
    "BrokenPipe": "EPIPE ESHUTDOWN",
    "AlreadyClosed": "EBADF ENOTSOCK ENOTCONN ALREADY_CLOSED",
}


def listed(table: dict[str, str]) -> set[tuple[str, str]]:
    return {(name, member) for name, members in table.items() for member in members.split()}


def test_every_member_has_one_row() -> None:
    assert [member for member, count in Counter(row.member for row in codes.rows()).items() if count > 1] == []


def test_kinds() -> None:
    assert {row.kind for row in codes.rows()} == set(codes.KINDS)
    found = {(row.kind, row.member) for row in codes.rows() if row.kind != "permanent"}
    assert found == listed(KINDS)


def test_classes_while_establishing() -> None:
    plain = {"ConnectError", "TLSHandshakeFailed"}
    assert {(row.establishing, row.member) for row in codes.rows() if row.establishing not in plain} == listed(
        ESTABLISHING
    )


def test_classes_in_use() -> None:
    plain = {"ConnectionLost", "ConnectionTLSError"}
    assert {(row.in_use, row.member) for row in codes.rows() if row.in_use not in plain} == listed(IN_USE)
    for row in codes.rows():
        tls = issubclass(getattr(errors, row.establishing), errors.TLSError)
        assert tls == (row.in_use == "ConnectionTLSError"), row


@pytest.mark.parametrize("row", codes.rows(), ids=lambda row: row.member)
def test_every_row_names_classes_of_its_family(row: codes.Row) -> None:
    assert issubclass(getattr(errors, row.establishing), errors.ConnectError)
    assert issubclass(getattr(errors, row.in_use), errors.ConnectionLost)
    assert row.code in codes.KNOWN
    assert row.member in codes.members_of(row.code)
    assert codes.row(row.member) is row


def test_a_split_code_stands_for_all_its_members() -> None:
    split = {code for code, count in Counter(row.code for row in codes.rows()).items() if count > 1}
    assert split == {"ENOPROTOOPT", "EAGAIN", "EADDRNOTAVAIL", "EADDRINUSE", "EACCES", "EPERM"}
    for code in split:
        members = {row.member for row in codes.rows() if row.code == code}
        assert set(codes.members_of(code)) == members
        assert code not in members  # the plain name is no member of its own


def test_a_code_without_a_row_is_permanent_and_keeps_its_name() -> None:
    assert codes.row("EIO") == codes.Row("EIO", "permanent", "ConnectError", "ConnectionLost")
    assert codes.row_of("EIO") == codes.row("EIO")
    assert codes.members_of("EIO") == ("EIO",)


INET, INET6, UNIX = ("10.0.0.7", 80), ("fe80::1", 80, 0, 2), "/run/app.sock"

PLACES: list[tuple[str, str, Any, str]] = [
    ("ENOPROTOOPT", "connect", INET, "ENOPROTOOPT@connect"),
    ("ENOPROTOOPT", "socket", INET, "ENOPROTOOPT@socket"),
    ("EAGAIN", "connect", UNIX, "EAGAIN@unix"),
    ("EAGAIN", "connect", b"\0abstract", "EAGAIN@unix"),
    ("EAGAIN", "connect", INET, "EAGAIN@inet"),
    ("EAGAIN", "connect", None, "EAGAIN@inet"),
    ("EWOULDBLOCK", "connect", UNIX, "EAGAIN@unix"),
    ("EADDRNOTAVAIL", "connect", INET, "EADDRNOTAVAIL@inet"),
    ("EADDRNOTAVAIL", "connect", INET6, "EADDRNOTAVAIL@inet6"),
    ("EADDRNOTAVAIL", "bind", INET, "EADDRNOTAVAIL@bind"),
    ("EADDRNOTAVAIL", "bind", INET6, "EADDRNOTAVAIL@bind"),
    ("EADDRINUSE", "bind", INET, "EADDRINUSE@port"),
    ("EADDRINUSE", "connect", INET, "EADDRINUSE@ephemeral"),
    ("EACCES", "connect", INET, "EACCES@inet"),
    ("EACCES", "connect", INET6, "EACCES@inet"),
    ("EACCES", "connect", UNIX, "EACCES@local"),
    ("EACCES", "bind", INET, "EACCES@local"),
    ("EACCES", "socket", INET, "EACCES@local"),
    ("EPERM", "connect", INET, "EPERM@inet"),
    ("EPERM", "connect", UNIX, "EPERM@local"),
    ("EPERM", "socket", INET, "EPERM@local"),
    ("ECONNREFUSED", "connect", UNIX, "ECONNREFUSED"),
    # In use: whatever it is, a new connection may live, unless we did it or TLS says it.
    ("ECONNREFUSED", "use", INET, "ECONNREFUSED"),
    ("EHOSTUNREACH", "use", INET, "EHOSTUNREACH"),
    ("EIO", "use", INET, "LOST"),
    ("EACCES", "use", INET, "LOST"),
    ("EAGAIN", "use", UNIX, "LOST"),
    ("ENOBUFS", "use", INET, "LOST"),
    ("EBADF", "use", INET, "EBADF"),
    ("CERTIFICATE_VERIFY_FAILED", "use", INET, "CERTIFICATE_VERIFY_FAILED"),
]


@pytest.mark.parametrize(("code", "phase", "address", "member"), PLACES)
def test_phase_and_family_choose_the_member(code: str, phase: str, address: Any, member: str) -> None:
    assert codes.row_of(code, phase, address).member == member


def test_a_bind_to_port_zero_is_short_of_ports() -> None:
    assert codes.row_of("EADDRINUSE", "bind", INET, port_given=False).member == "EADDRINUSE@ephemeral"


@pytest.mark.parametrize(
    ("address", "family"),
    [
        (INET, "inet"),
        (INET6, "inet6"),
        (("db.internal", 5432), "inet"),
        (UNIX, "unix"),
        (b"\0x", "unix"),
        (None, "inet"),
        ((), "inet"),
    ],
)
def test_family_of(address: object, family: str) -> None:
    assert codes.family_of(address) == family


def test_numbers_and_names() -> None:
    assert codes.code_of(errno.ECONNREFUSED) == "ECONNREFUSED"
    assert codes.number_of("ECONNREFUSED") == errno.ECONNREFUSED
    assert codes.code_of(4242) == "ERRNO_4242"
    assert codes.number_of("ERRNO_4242") == 4242
    assert codes.number_of("CIRCUIT_OPEN") is None
    assert codes.number_of("EAI_AGAIN") == socket.EAI_AGAIN
    assert codes.number_of("errorcode") is None


@pytest.mark.parametrize(
    ("alias", "code"), [("EWOULDBLOCK", "EAGAIN"), ("ENOTSUP", "EOPNOTSUPP"), ("EDEADLOCK", "EDEADLK")]
)
def test_aliases_are_one_code(alias: str, code: str) -> None:
    assert codes.code_of(getattr(errno, alias)) == code
    assert codes.members_of(alias) == codes.members_of(code)
    assert codes.row_of(alias) == codes.row_of(code)
    assert alias in codes.KNOWN


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_errno_of_this_system_has_a_code_and_back(number: int) -> None:
    code = codes.code_of(number)
    assert code in codes.KNOWN
    assert codes.number_of(code) == number


def test_eai_numbers_are_those_of_this_system() -> None:
    assert {"EAI_AGAIN", "EAI_NONAME", "EAI_FAIL"} <= set(codes.EAI.values())
    for number, name in codes.EAI.items():
        assert getattr(socket, name) == number
    on_this_system = {getattr(socket, name) for name in dir(socket) if name.startswith("EAI_")}
    assert set(codes.EAI) == on_this_system - {getattr(socket, "EAI_MAX", None)}


# What the Proactor loop reports with errno 22: libuv's src/win/error.c and Rust's sys/io/error/windows.rs agree.
WINERRORS = {
    "ECONNREFUSED": (1225, 1234, 10061),
    "ECONNABORTED": (1235, 1236, 10053),
    "ETIMEDOUT": (121, 258, 10060),
    "ECONNRESET": (64, 10054),
    "ECANCELED": (995,),
    "ENETUNREACH": (1231, 10051),
    "EHOSTUNREACH": (1232, 1233, 10065),
    "EPIPE": (109, 232, 1226),
    "ENOTCONN": (1229, 10057),
    "EADDRINUSE": (52, 1227, 10048),
    "EADDRNOTAVAIL": (1214, 10049),
    "ENOMEM": (8, 14, 1453, 1455, 1816),
    "ENOBUFS": (1450, 10055, 10067),
    "EMFILE": (4, 10024),
    "EACCES": (5, 65, 10013),
    "ENOTSOCK": (10038,),
    "ENOENT": (2, 3),
    "ENOTDIR": (267,),
}


@pytest.mark.parametrize(("code", "numbers"), WINERRORS.items())
def test_windows_numbers(code: str, numbers: tuple[int, ...]) -> None:
    assert {number: codes.WINERRORS[number] for number in numbers} == dict.fromkeys(numbers, code)


def test_every_windows_number_has_a_known_code() -> None:
    assert set(codes.WINERRORS.values()) <= codes.KNOWN
    assert codes.code_of(10061) == "ECONNREFUSED"  # a Windows number that another host has logged
