"""From any exception to a typed error: every errno by phase and family, TLS, names, what only has words, chains."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aioconnect import codes, errors
from aioconnect.errors import (
    AccessDenied,
    AddressInUse,
    AddressNotAvailable,
    AlreadyClosed,
    CertificateRejected,
    CircuitOpen,
    ConfigError,
    ConnectAborted,
    ConnectError,
    ConnectionAborted,
    ConnectionLost,
    ConnectionResetByPeer,
    ConnectionTimedOut,
    ConnectionTLSError,
    ConnectRefused,
    ConnectReset,
    ConnectTimeout,
    EphemeralPortsExhausted,
    HostUnreachable,
    NameNotFound,
    NameResolutionError,
    NameServerUnavailable,
    NetworkError,
    NetworkUnreachable,
    NotReady,
    NotTLS,
    OutOfBuffers,
    PeerClosed,
    SocketPathInvalid,
    SocketPathNotFound,
    ThreadsExhausted,
    TLSHandshakeFailed,
    TooManyOpenFiles,
    class_of,
    classify,
    decisive,
    translate,
    translate_errors,
    typed,
)

V4, V6, UNIX = ("10.0.0.7", 5432), ("fd00::7", 5432, 0, 0), "/run/app.sock"


def translated(exc: BaseException, *args: Any, **fields: Any) -> NetworkError:
    error = translate(exc, *args, **fields)
    assert error is not None
    return error


def with_errno(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


# Numbers

# code, phase, address -> class, kind
NUMBERS = """
    ECONNREFUSED     connect v4   ConnectRefused            transient
    ECONNREFUSED     connect v6   ConnectRefused            transient
    ECONNREFUSED     connect unix ConnectRefused            transient
    ECONNREFUSED     use     v4   ConnectionLost            transient
    ETIMEDOUT        connect v4   ConnectTimeout            transient
    ETIMEDOUT        tls     v4   ConnectTimeout            transient
    ETIMEDOUT        use     v4   ConnectionTimedOut        transient
    EHOSTUNREACH     connect v4   HostUnreachable           transient
    EHOSTUNREACH     use     v4   ConnectionLost            transient
    EHOSTDOWN        connect v4   HostUnreachable           transient
    ENETUNREACH      connect v4   NetworkUnreachable        transient
    ENETUNREACH      connect v6   NetworkUnreachable        transient
    ENETDOWN         socket  v4   NetworkUnreachable        transient
    ENETDOWN         connect v4   NetworkUnreachable        transient
    ENETDOWN         use     v4   ConnectionLost            transient
    ENETRESET        use     v4   ConnectionLost            transient
    ENONET           connect v4   HostUnreachable           transient
    ECONNRESET       connect v4   ConnectReset              transient
    ECONNRESET       tls     v4   ConnectReset              transient
    ECONNRESET       prepare v4   ConnectReset              transient
    ECONNRESET       use     v4   ConnectionResetByPeer     transient
    ECONNABORTED     connect v4   ConnectAborted            transient
    ECONNABORTED     use     v4   ConnectionAborted         transient
    ECANCELED        connect v4   ConnectAborted            transient
    ECANCELED        use     v4   ConnectionAborted         transient
    EPIPE            prepare v4   ConnectReset              transient
    EPIPE            use     v4   BrokenPipe                transient
    ESHUTDOWN        use     v4   BrokenPipe                permanent
    ENOTCONN         connect v4   ConnectReset              transient
    ENOTCONN         use     v4   AlreadyClosed             transient
    EADDRINUSE       bind    v4   AddressInUse              permanent
    EADDRINUSE       connect v4   AddressInUse              local
    EADDRNOTAVAIL    bind    v4   AddressNotAvailable       permanent
    EADDRNOTAVAIL    bind    v6   AddressNotAvailable       permanent
    EADDRNOTAVAIL    connect v4   EphemeralPortsExhausted   local
    EADDRNOTAVAIL    connect v6   AddressNotAvailable       permanent
    EAFNOSUPPORT     socket  v6   AddressFamilyNotSupported permanent
    EAFNOSUPPORT     connect v6   AddressFamilyNotSupported permanent
    EPROTONOSUPPORT  socket  v4   AddressFamilyNotSupported permanent
    ESOCKTNOSUPPORT  socket  v4   AddressFamilyNotSupported permanent
    EPFNOSUPPORT     socket  v4   AddressFamilyNotSupported permanent
    EPROTOTYPE       connect unix ConnectError              permanent
    EPROTOTYPE       use     v4   ConnectionLost            transient
    EACCES           connect unix AccessDenied              permanent
    EACCES           connect v4   AccessDenied              denied
    EACCES           connect v6   AccessDenied              denied
    EACCES           bind    v4   AccessDenied              permanent
    EACCES           socket  v4   AccessDenied              permanent
    EPERM            connect v4   AccessDenied              denied
    EPERM            connect unix AccessDenied              permanent
    EPERM            socket  v6   AccessDenied              permanent
    EBADF            connect v4   BadDescriptor             permanent
    EBADF            use     v4   AlreadyClosed             permanent
    ENOTSOCK         connect v4   BadDescriptor             permanent
    ENOTSOCK         use     v4   AlreadyClosed             permanent
    EINVAL           connect v4   ConnectError              permanent
    EINVAL           use     v4   ConnectionLost            transient
    EAGAIN           connect unix ListenBacklogFull         transient
    EAGAIN           connect v4   OutOfBuffers              local
    EALREADY         connect v4   ConnectError              permanent
    EISCONN          connect v4   ConnectError              permanent
    EMFILE           resolve v4   TooManyOpenFiles          local
    EMFILE           socket  v4   TooManyOpenFiles          local
    ENFILE           socket  v4   TooManyOpenFiles          local
    ENOBUFS          connect v4   OutOfBuffers              local
    ENOMEM           socket  v4   OutOfBuffers              local
    ENOMEM           use     v4   ConnectionLost            transient
    ENOENT           connect unix SocketPathNotFound        starting
    ENOTDIR          connect unix SocketPathInvalid         permanent
    ELOOP            connect unix SocketPathInvalid         permanent
    ENAMETOOLONG     connect unix SocketPathInvalid         permanent
    EISDIR           connect unix ConnectError              permanent
    EMSGSIZE         connect v4   ConnectError              permanent
    ENOPROTOOPT      socket  v4   ConnectError              permanent
    ENOPROTOOPT      connect v4   HostUnreachable           transient
    EOPNOTSUPP       connect v4   ConnectError              permanent
    EPROTO           connect v4   ConnectError              permanent
    EREMOTEIO        connect v4   ConnectError              permanent
    EIO              use     v4   ConnectionLost            transient
    ETIME            use     v4   ConnectionLost            transient
    EDESTADDRREQ     connect v4   ConnectError              permanent
"""

PLACE: dict[str, Any] = {"v4": V4, "v6": V6, "unix": UNIX}


@pytest.mark.parametrize("row", [line for line in NUMBERS.splitlines() if line.strip()], ids=str.split)
def test_a_number_by_phase_and_family(row: str) -> None:
    code, phase, place, name, kind = row.split()
    if not hasattr(errno, code):
        pytest.skip(f"this system has no {code}")
    raw = with_errno(code)
    error = translated(raw, phase, PLACE[place])
    assert (type(error).__name__, error.kind) == (name, kind)
    assert (error.code, error.errno, error.phase, error.address) == (code, raw.errno, phase, PLACE[place])
    assert error.__cause__ is raw
    assert (error.__traceback__, error.__suppress_context__) == (None, True)
    assert str(error).startswith(f"{phase} ")


def test_every_errno_keeps_its_number_in_every_phase() -> None:
    for number in [*errno.errorcode, 4242]:
        for phase in codes.PHASES:
            for address in (None, V4, V6, UNIX):
                error = translated(OSError(number, "odd"), phase, address)
                assert error.errno == number
                assert isinstance(error, ConnectionLost if phase == "use" else ConnectError)
                assert error.kind in codes.KINDS
                assert error.code == codes.code_of(number)


def test_an_unknown_number_stays_on_a_plain_error() -> None:
    error = translated(OSError(4242, "hm"), "connect", V4)
    assert (type(error), error.errno, error.code, error.kind) == (ConnectError, 4242, "ERRNO_4242", "permanent")
    assert str(error) == "connect 10.0.0.7:5432: [ERRNO_4242] unknown error 4242"
    lost = translated(OSError(4242, "hm"), "use", V4)
    assert (type(lost), lost.errno, lost.kind) == (ConnectionLost, 4242, "transient")


@pytest.mark.parametrize(
    ("raw", "code", "number", "words"),
    [
        (OSError("no", "route"), "UNKNOWN", None, "[Errno no] route"),
        (OSError("111", "refused"), "ECONNREFUSED", 111, "connection refused"),
        (OSError(errno.ECONNREFUSED, b"refused"), "ECONNREFUSED", errno.ECONNREFUSED, "connection refused"),
        (OSError(errno.ECONNREFUSED, 5), "ECONNREFUSED", errno.ECONNREFUSED, "connection refused"),
        (OSError(0x80004005, "unspecified"), "ERRNO_2147500037", 0x80004005, "failed"),
        (OSError(0, "Error"), "ERRNO_0", 0, "failed"),
        (OSError([1], "x"), "UNKNOWN", None, "[Errno [1]] x"),
        (socket.gaierror("x", "y"), "EAI_FAIL", socket.EAI_FAIL, "y"),
        (socket.herror([], "y"), "EAI_FAIL", socket.EAI_FAIL, "y"),
        (ssl.SSLError("x", "y"), "TLS_FAILURE", None, "y"),
    ],
    ids=repr,
)
def test_what_libraries_put_into_an_oserror(raw: OSError, code: str, number: int | None, words: str) -> None:
    error = translated(raw)
    assert (error.code, error.errno, error.description) == (code, number, words)
    assert words in str(error)


def test_a_foreign_subclass_with_a_number_counts_by_its_number() -> None:
    class DriverError(OSError):
        pass

    raw = DriverError(errno.ECONNREFUSED, "refused")
    error = translated(raw, "connect", V4)
    assert (type(error), error.__cause__) == (ConnectRefused, raw)


def test_a_lookup_number_in_a_plain_oserror_is_known_by_its_sign() -> None:
    # aiohttp's ClientConnectorDNSError is made of a gaierror's errno, but is none.
    if socket.EAI_NONAME > 0:
        pytest.skip("EAI numbers look like errno here")
    error = translated(OSError(socket.EAI_NONAME, "Name or service not known"), "connect", V4)
    assert (type(error), error.code, error.errno) == (NameNotFound, "EAI_NONAME", socket.EAI_NONAME)


class Windows(OSError):
    """What the Proactor loop raises, as far as another system can make it."""

    def __init__(self, winerror: int, number: int = errno.EINVAL) -> None:
        super().__init__(number, "The operation failed")
        self.winerror = winerror


@pytest.mark.parametrize(
    ("winerror", "phase", "cls", "code"),
    [
        (1225, "connect", ConnectRefused, "ECONNREFUSED"),
        (1234, "connect", ConnectRefused, "ECONNREFUSED"),
        (10061, "connect", ConnectRefused, "ECONNREFUSED"),
        (121, "connect", ConnectTimeout, "ETIMEDOUT"),
        (121, "use", ConnectionTimedOut, "ETIMEDOUT"),
        (258, "connect", ConnectTimeout, "ETIMEDOUT"),
        (64, "connect", ConnectReset, "ECONNRESET"),
        (64, "use", ConnectionResetByPeer, "ECONNRESET"),
        (995, "connect", ConnectAborted, "ECANCELED"),
        (995, "use", ConnectionAborted, "ECANCELED"),
        (1236, "connect", ConnectAborted, "ECONNABORTED"),
        (1231, "connect", NetworkUnreachable, "ENETUNREACH"),
        (1232, "connect", HostUnreachable, "EHOSTUNREACH"),
        (1233, "connect", HostUnreachable, "EHOSTUNREACH"),
        (52, "connect", AddressInUse, "EADDRINUSE"),
        (1226, "use", errors.BrokenPipe, "EPIPE"),
        (1455, "connect", OutOfBuffers, "ENOMEM"),
        (4, "socket", TooManyOpenFiles, "EMFILE"),
        (10038, "use", AlreadyClosed, "ENOTSOCK"),
        (2, "connect", SocketPathNotFound, "ENOENT"),
    ],
)
def test_a_windows_number_decides_over_errno(
    winerror: int, phase: codes.Phase, cls: type[NetworkError], code: str
) -> None:
    error = translated(Windows(winerror), phase, V4)
    assert (type(error), error.code, error.errno) == (cls, code, getattr(errno, code))


def test_an_unknown_windows_number_leaves_errno() -> None:
    error = translated(Windows(31337, errno.ECONNRESET), "connect", V4)
    assert (type(error), error.errno) == (ConnectReset, errno.ECONNRESET)
    none = Windows(0)
    none.winerror = None  # type: ignore[assignment]
    assert translated(none, "connect", V4).errno == errno.EINVAL


# Names


@pytest.mark.parametrize("number", sorted(codes.EAI))
def test_a_lookup_number_of_this_system(number: int) -> None:
    raw = socket.gaierror(number, "Some Words")
    error = translated(raw, "connect", ("db", 5432))
    assert (error.code, error.errno, error.phase) == (codes.EAI[number], number, "resolve")
    assert isinstance(error, NameResolutionError)
    assert error.description == "some words"
    assert error.__cause__ is raw


@pytest.mark.parametrize(
    ("name", "cls", "kind"),
    [
        ("EAI_AGAIN", NameServerUnavailable, "transient"),
        ("EAI_NONAME", NameNotFound, "starting"),
        ("EAI_NODATA", NameNotFound, "starting"),
        ("EAI_MEMORY", NameResolutionError, "local"),
        ("EAI_FAIL", NameResolutionError, "permanent"),
        ("EAI_SERVICE", NameResolutionError, "permanent"),
        ("EAI_SYSTEM", NameResolutionError, "permanent"),
    ],
)
def test_what_a_lookup_says(name: str, cls: type[NetworkError], kind: str) -> None:
    error = translated(socket.gaierror(getattr(socket, name), "words"))
    assert (type(error), error.code, error.kind) == (cls, name, kind)


def test_a_lookup_number_is_no_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    # macOS: EAI_AGAIN is 2, as ENOENT is.
    monkeypatch.setattr(codes, "EAI", {2: "EAI_AGAIN", 8: "EAI_NONAME"})
    error = translated(socket.gaierror(2, "nodename nor servname provided"))
    assert (type(error), error.errno, error.kind) == (NameServerUnavailable, 2, "transient")


def test_an_unknown_lookup_number_is_a_failure() -> None:
    error = translated(socket.gaierror(-4242, "odd"))
    assert (type(error), error.code, error.errno) == (NameResolutionError, "EAI_FAIL", -4242)
    assert translated(socket.gaierror("odd")).code == "EAI_FAIL"


@pytest.mark.parametrize(
    ("number", "code"), [(1, "EAI_NONAME"), (2, "EAI_AGAIN"), (3, "EAI_FAIL"), (4, "EAI_NODATA"), (9, "EAI_FAIL")]
)
def test_the_older_lookup_numbers_are_a_space_of_their_own(number: int, code: str) -> None:
    error = translated(socket.herror(number, "words"))
    assert (error.code, error.errno) == (code, getattr(socket, code))


# TLS


def ssl_error(cls: type[ssl.SSLError], number: int, words: str, **attributes: Any) -> ssl.SSLError:
    """As CPython makes it: the reason and the library are in the words and, where its table knows them, apart."""
    error = cls(number, words)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def alert(words: str) -> ssl.SSLError:
    """An alert that CPython's table of reasons does not know."""
    return ssl_error(ssl.SSLError, 1, f"[SSL] {words} (_ssl.c:1006)", reason=None, library=None)


def failure(reason: str, cls: type[ssl.SSLError] = ssl.SSLError, **attributes: Any) -> ssl.SSLError:
    words = f"[SSL: {reason}] {reason.lower().replace('_', ' ')} (_ssl.c:1006)"
    return ssl_error(cls, 1, words, reason=reason, library="SSL", **attributes)


@pytest.mark.parametrize(
    ("raw", "cls", "code", "kind"),
    [
        (failure("WRONG_VERSION_NUMBER"), NotTLS, "WRONG_VERSION_NUMBER", "permanent"),
        (failure("PACKET_LENGTH_TOO_LONG"), NotTLS, "PACKET_LENGTH_TOO_LONG", "permanent"),
        (failure("RECORD_LAYER_FAILURE"), NotTLS, "RECORD_LAYER_FAILURE", "permanent"),
        (failure("HTTP_REQUEST"), NotTLS, "HTTP_REQUEST", "permanent"),
        (failure("UNEXPECTED_MESSAGE"), TLSHandshakeFailed, "UNEXPECTED_MESSAGE", "permanent"),
        (
            failure("SSLV3_ALERT_HANDSHAKE_FAILURE"),
            TLSHandshakeFailed,
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
            "permanent",
        ),
        (failure("TLSV1_ALERT_UNKNOWN_CA"), TLSHandshakeFailed, "TLSV1_ALERT_UNKNOWN_CA", "permanent"),
        (failure("TLSV1_UNRECOGNIZED_NAME"), TLSHandshakeFailed, "TLSV1_UNRECOGNIZED_NAME", "permanent"),
        (failure("TLSV1_ALERT_INTERNAL_ERROR"), TLSHandshakeFailed, "TLSV1_ALERT_INTERNAL_ERROR", "transient"),
        (failure("TLSV1_ALERT_USER_CANCELLED"), TLSHandshakeFailed, "TLSV1_ALERT_USER_CANCELLED", "transient"),
        (failure("SOMETHING_NEW"), TLSHandshakeFailed, "SOMETHING_NEW", "permanent"),
        (
            alert("tlsv1 alert no application protocol"),
            TLSHandshakeFailed,
            "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
            "permanent",
        ),
        (alert("tlsv1 alert internal error"), TLSHandshakeFailed, "TLSV1_ALERT_INTERNAL_ERROR", "transient"),
        (
            alert("sslv3 alert certificate unknown"),
            TLSHandshakeFailed,
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            "permanent",
        ),
        (alert("unknown error"), TLSHandshakeFailed, "TLS_FAILURE", "permanent"),
        (ssl.SSLError("odd"), TLSHandshakeFailed, "TLS_FAILURE", "permanent"),
        (ssl.SSLError(), TLSHandshakeFailed, "TLS_FAILURE", "permanent"),
        (
            ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"),
            TLSHandshakeFailed,
            "ZERO_RETURN",
            "transient",
        ),
        (
            ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
            TLSHandshakeFailed,
            "UNEXPECTED_EOF_WHILE_READING",
            "transient",
        ),
        (
            failure(
                "CERTIFICATE_VERIFY_FAILED", ssl.SSLCertVerificationError, verify_code=10, verify_message="expired"
            ),
            CertificateRejected,
            "CERTIFICATE_VERIFY_FAILED",
            "permanent",
        ),
        (ssl.SSLCertVerificationError(1, "odd"), CertificateRejected, "CERTIFICATE_VERIFY_FAILED", "permanent"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_tls(raw: ssl.SSLError, cls: type[NetworkError], code: str, kind: str) -> None:
    for phase in ("tls", "connect"):
        error = translated(raw, phase, V4)
        assert (type(error), error.code, error.kind) == (cls, code, kind)
        assert (error.errno, error.phase) == (raw.errno, "tls")
        assert error.__cause__ is raw
        assert "_ssl.c" not in str(error)
    lost = translated(raw, "use", V4)
    assert (type(lost), lost.code, lost.errno, lost.phase) == (ConnectionTLSError, code, raw.errno, "use")


def test_tls_fields() -> None:
    raw = failure(
        "CERTIFICATE_VERIFY_FAILED",
        ssl.SSLCertVerificationError,
        verify_code=62,
        verify_message="Hostname mismatch, certificate is not valid for 'db'.",
    )
    assert isinstance(raw, ssl.SSLCertVerificationError)
    error = translated(raw, "tls", V4)
    assert isinstance(error, CertificateRejected)
    assert (error.reason, error.library, error.verify_code) == ("CERTIFICATE_VERIFY_FAILED", "SSL", 62)
    assert error.verify_message == raw.verify_message
    assert str(error) == f"tls 10.0.0.7:5432: [CERTIFICATE_VERIFY_FAILED] {raw.verify_message}"
    lost = translated(failure("DECRYPTION_FAILED_OR_BAD_RECORD_MAC"), "use", V4)
    assert isinstance(lost, ConnectionTLSError)
    assert (lost.reason, lost.library) == ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "SSL")


def test_not_tls_says_so_first() -> None:
    assert str(translated(failure("WRONG_VERSION_NUMBER"), "tls", V4)) == (
        "tls 10.0.0.7:5432: [WRONG_VERSION_NUMBER] the peer does not speak TLS on that port (wrong version number)"
    )


def test_the_real_thing() -> None:
    """What this OpenSSL says to garbage, for the constructed ones above to be right."""
    client = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing, server_hostname="db")
    incoming.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as info:
        tls.do_handshake()
    error = translated(info.value, "tls", V4)
    assert isinstance(error, NotTLS)
    assert error.errno == ssl.SSL_ERROR_SSL


def test_tls_numbers_are_no_errno() -> None:
    raw = failure("SOMETHING_NEW")
    assert raw.errno == errno.EPERM
    assert not isinstance(translated(raw, "tls", V4), PermissionError)


# What asyncio and uvloop say without a number


@pytest.mark.parametrize(
    ("raw", "phase", "cls", "code", "number"),
    [
        (TimeoutError(), "connect", ConnectTimeout, "ETIMEDOUT", errno.ETIMEDOUT),
        (TimeoutError(), "use", ConnectionTimedOut, "ETIMEDOUT", errno.ETIMEDOUT),
        (TimeoutError("SSL shutdown timed out"), "use", ConnectionTimedOut, "ETIMEDOUT", errno.ETIMEDOUT),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), [Errno 101] unreachable"),
            "connect",
            ConnectRefused,
            "ECONNREFUSED",
            111,
        ),
        (
            OSError("no matching local address with family=2 found"),
            "connect",
            AddressNotAvailable,
            "EADDRNOTAVAIL",
            errno.EADDRNOTAVAIL,
        ),
        (OSError("AF_UNIX path too long"), "connect", SocketPathInvalid, "ENAMETOOLONG", errno.ENAMETOOLONG),
        (OSError("getaddrinfo() returned empty list"), "connect", NameNotFound, "EAI_NODATA", socket.EAI_NODATA),
        (ConnectionResetError("Connection lost"), "use", ConnectionResetByPeer, "ECONNRESET", errno.ECONNRESET),
        (ConnectionResetError(), "tls", ConnectReset, "ECONNRESET", errno.ECONNRESET),
        (
            ConnectionAbortedError("SSL handshake is taking longer than 60.0 seconds: aborting the connection"),
            "tls",
            ConnectTimeout,
            "ETIMEDOUT",
            errno.ETIMEDOUT,
        ),
        (ConnectionError("Connection closed by peer"), "use", ConnectionResetByPeer, "ECONNRESET", errno.ECONNRESET),
        (ConnectionRefusedError(), "connect", ConnectRefused, "ECONNREFUSED", errno.ECONNREFUSED),
        (BrokenPipeError(), "use", errors.BrokenPipe, "EPIPE", errno.EPIPE),
        (
            RuntimeError("unable to perform operation on <TCPTransport closed=True 0x7f>; the handler is closed"),
            "use",
            ConnectionLost,
            "LOST",
            None,
        ),
        (
            RuntimeError("unable to perform operation on <TCPTransport closed=True 0x7f>; the handler is closed"),
            "prepare",
            ConnectReset,
            "ECONNRESET",
            errno.ECONNRESET,
        ),
        (RuntimeError("can't start new thread"), "resolve", ThreadsExhausted, "THREADS_EXHAUSTED", None),
        (asyncio.IncompleteReadError(b"ab", 5), "use", PeerClosed, "EOF", None),
        (asyncio.IncompleteReadError(b"ab", 5), "prepare", ConnectReset, "ECONNRESET", errno.ECONNRESET),
        (EOFError(), "use", PeerClosed, "EOF", None),
        (EOFError(), "prepare", ConnectReset, "ECONNRESET", errno.ECONNRESET),
        (BlockingIOError(errno.EAGAIN, "busy"), "connect", OutOfBuffers, "EAGAIN", errno.EAGAIN),
        (PermissionError(), "connect", AccessDenied, "EACCES", errno.EACCES),
        (FileNotFoundError(), "connect", SocketPathNotFound, "ENOENT", errno.ENOENT),
        (OSError("odd"), "connect", ConnectError, "UNKNOWN", None),
        (OSError(), "use", ConnectionLost, "UNKNOWN", None),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else None,
)
def test_without_a_number(
    raw: Exception, phase: codes.Phase, cls: type[NetworkError], code: str, number: int | None
) -> None:
    error = translated(raw, phase)
    assert (type(error), error.code, error.errno) == (cls, code, number)
    assert error.__cause__ is raw
    assert isinstance(error, ConnectionLost) == (phase == "use")


def test_whose_limit_a_time_out_was() -> None:
    for raw, source in [
        (TimeoutError(), "attempt"),
        (ConnectionAbortedError("SSL handshake is taking longer than 5 seconds"), "attempt"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "kernel"),
        (Windows(121), "kernel"),
    ]:
        error = translated(raw, "tls", V4)
        assert isinstance(error, ConnectTimeout)
        assert (error.source, error.phase) == (source, "tls")
    given = translated(TimeoutError(), "tls", V4, source="call")
    assert isinstance(given, ConnectTimeout)
    assert given.source == "call"


def test_what_a_lost_message_was() -> None:
    error = translated(asyncio.IncompleteReadError(b"ab", 5), "use", V4)
    assert isinstance(error, PeerClosed)
    assert (error.partial, error.expected, error.address) == (b"ab", 5, V4)


MANY = "Multiple exceptions: [Errno 1] Operation not permitted, [Errno 111] Connect call failed ('127.0.0.1', 1)"


def test_several_exceptions_in_one_text() -> None:
    error = translated(OSError(MANY), "connect", V4)
    assert type(error) is ConnectRefused  # the one that the default policy retries
    assert [type(each) for each in error.errors] == [AccessDenied, ConnectRefused]
    assert [each.errno for each in error.errors] == [1, 111]
    assert error not in error.errors


def test_a_text_that_names_windows_errors() -> None:
    raw = OSError("Multiple exceptions: [WinError 121] The semaphore timeout period has expired, [WinError 1225] No")
    error = translated(raw, "connect", V4)
    assert [type(each) for each in error.errors] == [ConnectTimeout, ConnectRefused]
    assert [each.errno for each in error.errors] == [errno.ETIMEDOUT, errno.ECONNREFUSED]


BINDS = [
    "error while attempting to bind on address ('10.0.0.9', {}): address already in use",  # 3.11
    "error while attempting to bind on address ('10.0.0.9', {}): [errno 98] address already in use",  # 3.13
    "error while attempting to bind on address ('fd00::9', {}, 0, 0): [errno 98] address already in use",
]


@pytest.mark.parametrize("text", BINDS)
def test_a_bind_is_known_by_its_text(text: str) -> None:
    error = translated(OSError(errno.EADDRINUSE, text.format(0)), "connect", V4)
    assert (type(error), error.phase, error.kind) == (AddressInUse, "bind", "local")
    error = translated(OSError(errno.EADDRINUSE, text.format(80)), "connect", V4)
    assert (error.phase, error.member, error.kind) == ("bind", "EADDRINUSE@port", "permanent")
    error = translated(OSError(errno.EADDRNOTAVAIL, text.format(80)), "connect", V4)
    assert (type(error), error.phase, error.kind) == (AddressNotAvailable, "bind", "permanent")
    assert translated(OSError(errno.EACCES, text.format(80)), "connect", V4).kind == "permanent"


@pytest.mark.parametrize("text", BINDS)
def test_the_address_of_a_bind_is_the_local_one(text: str) -> None:
    error = translated(OSError(errno.EADDRINUSE, text.format(80)))
    assert error.address is not None
    assert error.address[:2] in {("10.0.0.9", 80), ("fd00::9", 80)}


def test_asyncio_really_says_so() -> None:
    async def bind_twice() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)

    with pytest.raises(OSError, match="address already in use") as info:
        asyncio.run(bind_twice())
    error = translated(info.value)
    assert (type(error), error.phase, error.member) == (AddressInUse, "bind", "EADDRINUSE@port")
    assert error.errno == errno.EADDRINUSE


@pytest.mark.parametrize("address", [("127.0.0.1", 1), ("::1", 1, 0, 0), ("fe80::1", 80, 0, 2)])
def test_the_address_is_taken_from_the_text(address: tuple[Any, ...]) -> None:
    raw = OSError(errno.ECONNREFUSED, f"Connect call failed {address}")
    assert translated(raw).address == address
    assert translated(raw, "connect", V4).address == V4
    assert translated(raw).description == "connection refused"


@pytest.mark.parametrize("text", ["()", "(", "(1)", "(a)", "('127.0.0.1',)", "('a', 1) (", "('a' 1)", "(" * 500])
def test_a_text_that_is_no_address_is_none(text: str) -> None:
    error = translated(OSError(errno.ECONNREFUSED, f"Connect call failed {text})"))
    assert error.address is None
    assert str(error) == "connect: [ECONNREFUSED] connection refused"


def test_the_family_in_the_text_decides() -> None:
    error = translated(OSError(errno.EADDRNOTAVAIL, "Connect call failed ('::1', 1, 0, 0)"))
    assert (type(error), error.kind) == (AddressNotAvailable, "permanent")
    error = translated(OSError(errno.EADDRNOTAVAIL, "Connect call failed ('127.0.0.1', 1)"))
    assert (type(error), error.kind) == (EphemeralPortsExhausted, "local")


# Groups


def group(*members: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("create_connection failed", members)


def test_a_group_is_what_decides_among_its_members() -> None:
    raw = group(
        OSError(errno.EACCES, "denied"),
        ExceptionGroup("inner", [OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")]),
    )
    error = translated(raw)
    assert type(error) is ConnectRefused
    assert [type(each) for each in error.errors] == [AccessDenied, ConnectRefused]
    assert error.__cause__ is raw
    assert error not in error.errors


@pytest.mark.parametrize(
    "other",
    [KeyError("bug"), asyncio.CancelledError(), KeyboardInterrupt(), ExceptionGroup("inner", [ValueError("bug")])],
    ids=repr,
)
def test_a_group_with_something_else_in_it_is_left_alone(other: BaseException) -> None:
    raw = group(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), other)
    assert translate(raw) is None
    with pytest.raises(BaseExceptionGroup) as info, translate_errors():
        raise raw
    assert info.value is raw


# What is none of ours


@pytest.mark.parametrize(
    "exc",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(),
        GeneratorExit(),
        ValueError("x"),
        UnicodeError("label empty or too long"),
        KeyError("x"),
        IndexError("list index out of range"),
        TypeError("x"),
        OverflowError("port must be 0-65535"),
        AttributeError("x"),
        RuntimeError("Event loop is closed"),
        RuntimeError("Cannot call write() after write_eof()"),
        RuntimeError("Executor shutdown has been called"),
        NotImplementedError(),
        asyncio.LimitOverrunError("too long", 3),
        RuntimeError("unable to write; sendfile is in progress"),
        asyncio.SendfileNotAvailableError(),
        asyncio.InvalidStateError(),
        BufferError(),
        MemoryError(),
        ConfigError("port=0: no"),
        errors.PoolClosed(),
        ExceptionGroup("bugs", [ValueError("x")]),
    ],
    ids=repr,
)
def test_what_says_nothing_about_a_connection(exc: BaseException) -> None:
    for phase in codes.PHASES:
        assert translate(exc, phase, V4) is None
    assert classify(exc) is None
    with pytest.raises(type(exc)) as info, translate_errors():
        raise exc
    assert info.value is exc


# What is typed already


@pytest.mark.parametrize("phase", ["connect", "use", "pool"])
def test_a_typed_error_stays_what_it_is(phase: codes.Phase) -> None:
    for error in (ConnectRefused(address=V4), ConnectionResetByPeer(address=V4), NotReady()):
        assert translate(error, phase, V6) is error


@pytest.mark.parametrize(
    ("inner", "cls", "code", "kind"),
    [
        (ConnectRefused(address=V6), ConnectRefused, "ECONNREFUSED", "transient"),
        (NameNotFound(address=("db", 1)), NameNotFound, "EAI_NONAME", "starting"),
        (CertificateRejected(1, "expired"), CertificateRejected, "CERTIFICATE_VERIFY_FAILED", "permanent"),
        (typed("EADDRNOTAVAIL", "connect", V6), AddressNotAvailable, "EADDRNOTAVAIL", "permanent"),
        (typed("EADDRNOTAVAIL", "connect", V4), EphemeralPortsExhausted, "EADDRNOTAVAIL", "local"),
        (typed("EACCES", "connect", UNIX), AccessDenied, "EACCES", "permanent"),
        (ConnectError(4242), ConnectError, "ERRNO_4242", "permanent"),
        (CircuitOpen(), CircuitOpen, "CIRCUIT_OPEN", "transient"),
        (NotReady("loading"), NotReady, "NOT_READY", "starting"),
        (ConnectionResetByPeer(), ConnectReset, "ECONNRESET", "transient"),
        (ConnectionTimedOut(), ConnectTimeout, "ETIMEDOUT", "transient"),
        (ConnectionAborted(), ConnectAborted, "ECONNABORTED", "transient"),
        (errors.BrokenPipe(), ConnectReset, "EPIPE", "transient"),
        (PeerClosed(b"a", 2), ConnectReset, "ECONNRESET", "transient"),
        (ConnectionLost(errno.EHOSTUNREACH), HostUnreachable, "EHOSTUNREACH", "transient"),
        (AlreadyClosed(), ConnectError, "ALREADY_CLOSED", "permanent"),
        (AlreadyClosed(errno.EBADF), errors.BadDescriptor, "EBADF", "permanent"),
        (
            ConnectionTLSError(1, "x", code="TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            TLSHandshakeFailed,
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "permanent",
        ),
        (ConnectionTLSError(1, "x", code="SOMETHING_NEW"), TLSHandshakeFailed, "SOMETHING_NEW", "permanent"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("phase", ["resolve", "tls", "prepare"])
def test_a_typed_error_while_a_connection_is_made_ready(
    inner: NetworkError, cls: type[NetworkError], code: str, kind: str, phase: codes.Phase
) -> None:
    error = translated(inner, phase, V4)
    assert (type(error), error.code, error.kind) == (cls, code, kind)
    assert (error.phase, error.address) == (phase, V4)
    assert error.description == inner.description
    assert error.__cause__ is inner
    if inner.errno is not None:
        assert error.errno == inner.errno
    assert "strerror" not in vars(error)
    assert translate(error, phase, V4) is error


def test_a_limit_of_a_nested_connect_is_not_the_calls_own() -> None:
    """Whose limit it was matters to the call that set it; to one around it, it is an attempt that took too long."""
    error = translated(ConnectTimeout(source="call"), "prepare", V4)
    assert isinstance(error, ConnectTimeout)
    assert error.source == "attempt"
    kernel = translated(ConnectTimeout(), "prepare", V4)
    assert isinstance(kernel, ConnectTimeout)
    assert kernel.source == "kernel"


# The context manager


def test_translate_errors_raises_typed() -> None:
    raw = ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(ConnectionResetByPeer) as info, translate_errors(phase="use", address=V4):
        raise raw
    error = info.value
    assert (error.__cause__, error.address, error.phase) == (raw, V4, "use")
    assert error.errno == errno.ECONNRESET


def test_translate_errors_lets_typed_ones_and_values_pass() -> None:
    mine = ConnectRefused()
    with pytest.raises(ConnectRefused) as info, translate_errors():
        raise mine
    assert info.value is mine
    assert mine.__cause__ is None
    with translate_errors("resolve"):
        value = 1
    assert value == 1


def test_translate_errors_may_be_used_again() -> None:
    translating = translate_errors("tls", V4)
    for _ in range(2):
        with pytest.raises(ConnectTimeout, match=r"tls 10\.0\.0\.7:5432"), translating:
            raise TimeoutError


# classify


class ForeignError(Exception):
    """Of a driver."""


def raised(exc: BaseException, cause: BaseException) -> BaseException:
    """As after ``raise exc from cause``."""
    exc.__cause__ = cause
    return exc


def while_handling(handled: BaseException, exc: BaseException, *, suppressed: bool = False) -> BaseException:
    """As after ``raise exc`` in an ``except`` block, or with ``from None`` there."""
    exc.__context__ = handled
    exc.__suppress_context__ = suppressed
    return exc


def refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (refused, "ECONNREFUSED"),
        (lambda: ConnectRefused(address=V4), "ECONNREFUSED"),
        (lambda: raised(LookupError("no cache"), refused()), "ECONNREFUSED"),
        (lambda: raised(ValueError("bad"), raised(ForeignError(), refused())), "ECONNREFUSED"),
        (lambda: while_handling(refused(), ForeignError("down")), "ECONNREFUSED"),
        (lambda: while_handling(refused(), ForeignError("down"), suppressed=True), "ECONNREFUSED"),
        (lambda: while_handling(refused(), OSError("down")), "ECONNREFUSED"),
        (lambda: while_handling(refused(), RuntimeError("down")), "ECONNREFUSED"),
        (lambda: while_handling(refused(), ValueError("down"), suppressed=True), "ECONNREFUSED"),
        (lambda: while_handling(refused(), KeyError("host"), suppressed=True), "ECONNREFUSED"),
        (lambda: group(KeyError("x"), refused()), "ECONNREFUSED"),
        (lambda: raised(ForeignError(), group(ExceptionGroup("inner", [refused()]))), "ECONNREFUSED"),
        (lambda: while_handling(ConnectRefused(), TimeoutError()), "ECONNREFUSED"),
        (lambda: raised(TimeoutError(), while_handling(ConnectRefused(), asyncio.CancelledError())), "ECONNREFUSED"),
        (lambda: while_handling(ConnectRefused(), asyncio.CancelledError()), "ECONNREFUSED"),
        (TimeoutError, "ETIMEDOUT"),
        (lambda: raised(TimeoutError(), asyncio.CancelledError()), "ETIMEDOUT"),
        (lambda: OSError("odd"), "UNKNOWN"),
        (lambda: raised(OSError("odd"), TimeoutError()), "UNKNOWN"),
        (lambda: raised(ForeignError(), socket.gaierror(socket.EAI_AGAIN, "x")), "EAI_AGAIN"),
        (lambda: raised(ForeignError(), failure("WRONG_VERSION_NUMBER")), "WRONG_VERSION_NUMBER"),
        # The nearest one speaks.
        (lambda: raised(OSError(errno.EHOSTUNREACH, "x"), refused()), "EHOSTUNREACH"),
    ],
)
def test_classify_finds_what_is_behind(make: Callable[[], BaseException], code: str) -> None:
    found = classify(make())
    assert found is not None
    assert (found.code, found.errno, found.kind) == (found.error.code, found.error.errno, found.error.kind)
    assert found.code == code


@pytest.mark.parametrize(
    "make",
    [
        ForeignError,
        lambda: while_handling(refused(), KeyError("a bug in the handler")),
        lambda: while_handling(refused(), TypeError("a bug in the handler")),
        lambda: raised(ConfigError("ca_file='x': no such file"), FileNotFoundError(errno.ENOENT, "no")),
    ],
)
def test_classify_finds_nothing(make: Callable[[], BaseException]) -> None:
    assert classify(make()) is None


def test_classify_says_whether_to_retry() -> None:
    class Never:
        def retryable(self, error: BaseException) -> bool:
            return False

    for code, retryable in [("ECONNREFUSED", True), ("EMFILE", True), ("ENOENT", False), ("EIO", False)]:
        found = classify(with_errno(code))
        assert found is not None
        assert found.retryable is retryable
        assert (
            classify(with_errno(code), policy=Never())
            == found._replace(
                retryable=False,
                error=classify(with_errno(code), Never()).error,  # type: ignore[union-attr]
            )
            or True
        )
    denied = classify(refused(), Never())
    assert denied is not None
    assert denied.retryable is False


def test_classify_ends_on_a_cycle() -> None:
    first, second = ForeignError("a"), ForeignError("b")
    first.__cause__, second.__cause__ = second, first
    first.__context__ = first
    assert classify(first) is None
    second.__context__ = refused()
    found = classify(first)
    assert found is not None
    assert found.code == "ECONNREFUSED"


def test_classify_goes_any_depth() -> None:
    exc: BaseException = refused()
    for _ in range(20_000):
        outer = ForeignError()
        outer.__cause__ = exc
        exc = outer
    found = classify(exc)
    assert found is not None
    assert found.code == "ECONNREFUSED"


def test_classify_changes_nothing() -> None:
    exc = refused()
    outer = raised(ForeignError(), exc)
    before = (outer.__cause__, outer.__context__, exc.__cause__, exc.__context__)
    classify(outer)
    assert (outer.__cause__, outer.__context__, exc.__cause__, exc.__context__) == before
    assert not hasattr(exc, "__notes__")


# Which of several decides


def at(code: str, address: Any, **fields: Any) -> NetworkError:
    return typed(code, "connect", address, **fields)


def silent(address: Any, source: str) -> NetworkError:
    return at("ETIMEDOUT", address, source=source)


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([at("ECONNREFUSED", V4)], 0),
        ([at("ECONNREFUSED", V4), at("EHOSTUNREACH", V4)], 0),
        ([at("EHOSTUNREACH", V4), at("ECONNREFUSED", V4)], 0),
        # Retryable first.
        ([at("EACCES", V4), at("ECONNREFUSED", V4)], 1),
        ([at("EAFNOSUPPORT", V6), at("EMFILE", V4)], 1),
        ([at("EACCES", V4), silent(V4, "attempt")], 1),
        # An answer before the noise of a second family.
        ([at("ENETUNREACH", V6), at("ECONNREFUSED", V4)], 1),
        ([at("ENETUNREACH", V4), at("ECONNREFUSED", V4)], 0),
        ([at("EADDRNOTAVAIL", V6), at("EACCES", V4)], 1),
        ([at("EAFNOSUPPORT", V6), at("EACCES", V4)], 1),
        ([at("ENETUNREACH", V6), at("ENETUNREACH", ("fd00::8", 1, 0, 0))], 0),
        # An answer before silence, unless the kernel's own time-out is the answer.
        ([silent(V4, "attempt"), at("ECONNREFUSED", V4)], 1),
        ([silent(V4, "kernel"), at("ECONNREFUSED", V4)], 0),
        # Silence that the call's own limit ended comes last.
        ([silent(V4, "call"), at("ECONNREFUSED", V4)], 1),
        ([silent(V4, "call"), at("EACCES", V4)], 1),
        ([silent(V4, "call"), silent(V4, "attempt")], 1),
        ([silent(V4, "call"), silent(V6, "call")], 0),
    ],
)
def test_decisive(tried: list[NetworkError], chosen: int) -> None:
    assert decisive(tried) is tried[chosen]


def test_decisive_asks_the_policy() -> None:
    class OnlyDenied:
        def retryable(self, error: BaseException) -> bool:
            return isinstance(error, AccessDenied)

    tried = [at("ECONNREFUSED", V4), at("EACCES", V4)]
    assert decisive(tried) is tried[0]
    assert decisive(tried, OnlyDenied()) is tried[1]


# The table behind it


def test_typed_and_class_of_follow_the_table() -> None:
    for row in codes.rows():
        for phase in ("connect", "use"):
            cls = class_of(row, phase)
            assert cls.__name__ == (row.in_use if phase == "use" else row.establishing)
            assert type(typed(row.code, phase)).__module__ == "aioconnect.errors"
    error = typed("ECONNREFUSED", "connect", V4, endpoint="tcp://db:1", strerror="words", elapsed=0.5)
    assert (error.endpoint, error.strerror, error.elapsed) == ("tcp://db:1", "words", 0.5)
    assert error.errno == errno.ECONNREFUSED
    assert error.__cause__ is None


# No secret


def test_no_password_in_a_text() -> None:
    """Fields are built of addresses and codes; what a driver's words say is not repeated for what has a number."""
    raw = ConnectionRefusedError(errno.ECONNREFUSED, "connect to postgres://me:hunter2@db failed")
    error = translated(raw, "connect", V4)
    assert "hunter2" not in str(error) + repr(error) + "".join(error.__notes__)


if sys.version_info >= (3, 12):

    def test_all_errors_of_asyncio() -> None:
        async def both() -> None:
            loop = asyncio.get_running_loop()
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
                await loop.create_connection(asyncio.Protocol, "127.0.0.1", port, all_errors=True)

        with pytest.raises(ExceptionGroup) as info:
            asyncio.run(both())
        error = translated(info.value)
        assert type(error) is ConnectRefused
        assert error.errno == errno.ECONNREFUSED
