"""What a TLS peer can do wrong, in the handshake and in use, and the typed error it becomes on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import pickle
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import pytest

import aioconnect
from aioconnect import errors
from tests.support import peers
from tests.support.peers import Authority, Peer, Script, serve

ONE_ATTEMPT = aioconnect.Policy(max_attempts=1, attempt_timeout=3, timeout=6)
RETRYING = aioconnect.Policy(
    max_attempts=3, attempt_timeout=3, timeout=6, wait=aioconnect.Backoff(initial=0.01, maximum=0.02)
)
PLAIN_TEXT = frozenset(
    {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}
)  # OpenSSL 3.2 moved the record layer and its reasons


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def good(authority: Authority) -> ssl.SSLContext:
    return authority.server_context()


def endpoint_of(peer: Peer, authority: Authority, **tls: Any) -> aioconnect.Endpoint:
    settings: dict[str, Any] = {"ca_file": authority.ca_file, "server_hostname": "localhost"} | tls
    return aioconnect.Endpoint(host=peer.host, port=peer.port, tls=aioconnect.TLS(**settings))


async def streams_to(
    peer: Peer,
    authority: Authority,
    policy: aioconnect.Policy = ONE_ATTEMPT,
    server_hostname: str = "localhost",
    minimum_version: str | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The other way in, with asyncio's own arguments."""
    context = authority.client_context()
    if minimum_version == "TLSv1.3":
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return await aioconnect.open_connection(
        peer.host, peer.port, ssl=context, server_hostname=server_hostname, policy=policy
    )


async def failure(
    script: Script,
    authority: Authority,
    *,
    policy: aioconnect.Policy = ONE_ATTEMPT,
    through: str = "connect",
    **tls: Any,
) -> tuple[errors.ConnectError, Peer]:
    """The error of one connect to a peer that plays this script, which the client must have let go of."""
    async with serve(script) as peer:
        connecting: Awaitable[object] = (
            aioconnect.connect(endpoint_of(peer, authority, **tls), policy=policy)
            if through == "connect"
            else streams_to(peer, authority, policy, **tls)
        )
        with pytest.raises(errors.ConnectError) as caught:
            await connecting
        await peer.released()
        return caught.value, peer


def check_common(error: errors.ConnectError, peer: Peer, *, kind: str) -> None:
    assert error.phase == "tls"
    assert error.kind == kind
    assert error.address == peer.address
    assert error.attempt_count == 1
    assert error.stop_reason == ("permanent" if kind == "permanent" else "attempts")
    assert [member.address for member in error.errors] == [peer.address]
    assert isinstance(error, OSError)
    assert error.errno is not None
    assert re.fullmatch("[A-Z][A-Z0-9_]*", error.code)
    assert "\n" not in str(error)
    assert f"{peer.host}:{peer.port}" in str(error)
    check_pickled(error)


def check_pickled(error: errors.ConnectError) -> None:
    clone = pickle.loads(pickle.dumps(error))
    assert type(clone) is type(error)
    for name in ("errno", "code", "kind", "phase", "address", "stop_reason", "attempt_count"):
        assert getattr(clone, name) == getattr(error, name)
    if isinstance(error, errors.TLSError):
        for name in ("reason", "library", "verify_code", "verify_message"):
            assert getattr(clone, name) == getattr(error, name)


# --------------------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Certificate:
    """A certificate that is refused: how the server gets it, and OpenSSL's verdict (x509_vfy.h)."""

    name: str
    context: Callable[[Authority], ssl.SSLContext]
    verify_code: int
    message: str
    server_hostname: str = "localhost"


def of_another_authority(authority: Authority) -> ssl.SSLContext:
    directory = authority.directory / "other"
    directory.mkdir(exist_ok=True)
    return Authority(directory).server_context()


CERTIFICATES = (
    Certificate("expired", lambda ca: ca.server_context(days=(-10, -1)), 10, "expired"),
    Certificate("not yet valid", lambda ca: ca.server_context(days=(1, 10)), 9, "not yet valid"),
    Certificate("wrong host", lambda ca: ca.server_context("other.example", "127.0.0.1"), 62, "Hostname mismatch"),
    Certificate("wrong address", lambda ca: ca.server_context("localhost"), 64, "IP address mismatch", "127.0.0.1"),
    Certificate("self-signed", Authority.self_signed, 18, "self.signed certificate"),
    Certificate("self-signed in the chain", Authority.self_signed_in_chain, 19, "self.signed certificate in"),
    Certificate("unknown authority", of_another_authority, 20, "unable to get local issuer"),
    Certificate("weak key", Authority.weak_key, 66, "too weak"),
)


@pytest.mark.parametrize("through", ["connect", "open_connection"])
@pytest.mark.parametrize("case", CERTIFICATES, ids=lambda case: case.name)
async def test_a_refused_certificate(authority: Authority, case: Certificate, through: str) -> None:
    script = peers.tls_refusing(case.context(authority))
    error, peer = await failure(script, authority, through=through, server_hostname=case.server_hostname)
    check_common(error, peer, kind="permanent")
    assert type(error) is errors.CertificateRejected
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert error.errno == ssl.SSL_ERROR_SSL
    assert error.code == error.reason == "CERTIFICATE_VERIFY_FAILED"
    assert error.library == "SSL"
    assert error.verify_code == case.verify_code
    assert re.search(case.message, error.verify_message)
    assert re.search(case.message, str(error)), "the text must say what is wrong with the certificate"


async def test_the_address_is_the_name_verified_when_no_other_is_given(authority: Authority) -> None:
    script = peers.tls_refusing(authority.server_context("localhost"))
    error, _ = await failure(script, authority, server_hostname=None)
    assert isinstance(error, errors.CertificateRejected)
    assert error.verify_code == 64


async def test_a_certificate_refused_and_then_renewed_needs_no_new_process(
    authority: Authority, good: ssl.SSLContext
) -> None:
    expired = authority.server_context(days=(-10, -1))
    async with serve(peers.tls_refusing(expired), peers.tls_echo(good)) as peer:
        connector = aioconnect.Connector(endpoint_of(peer, authority), ONE_ATTEMPT)
        with pytest.raises(errors.CertificateRejected):
            await connector.connect()
        await echoes(await connector.connect())


# --------------------------------------------------------------------------- peers that speak no TLS


@pytest.mark.parametrize("through", ["connect", "open_connection"])
@pytest.mark.parametrize("name", peers.PLAIN_ANSWERS)
async def test_plain_text_in_answer_to_the_hello(authority: Authority, name: str, through: str) -> None:
    error, peer = await failure(peers.answer(peers.PLAIN_ANSWERS[name]), authority, through=through)
    check_common(error, peer, kind="permanent")
    assert type(error) is errors.NotTLS
    assert isinstance(error, ssl.SSLError)
    assert error.errno == ssl.SSL_ERROR_SSL
    assert error.code in PLAIN_TEXT
    assert error.reason == error.code
    assert error.library == "SSL"
    assert not error.verify_code


async def test_a_greeting_sent_before_the_hello(authority: Authority) -> None:
    """SSH, SMTP and MySQL speak first, so that the answer is there before our ClientHello is."""

    async def greet(wire: peers.Wire) -> None:
        await wire.send(peers.PLAIN_ANSWERS["ssh"])

    error, peer = await failure(greet, authority)
    check_common(error, peer, kind="permanent")
    assert type(error) is errors.NotTLS


async def test_the_hello_echoed(authority: Authority) -> None:
    error, peer = await failure(peers.echo_hello, authority)
    check_common(error, peer, kind="permanent")
    assert isinstance(error, errors.NotTLS | errors.TLSHandshakeFailed)
    assert (error.errno, error.code, error.reason) == (
        ssl.SSL_ERROR_SSL,
        "UNEXPECTED_MESSAGE",
        "UNEXPECTED_MESSAGE",
    )


# --------------------------------------------------------------------------- alerts

UNNAMED_ALERTS = {
    115: "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
    120: "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
}  # CPython's table lacks them, so that `.reason` is None until it is brought up to date
ALERTS = UNNAMED_ALERTS | {
    10: "SSLV3_ALERT_UNEXPECTED_MESSAGE",
    20: "SSLV3_ALERT_BAD_RECORD_MAC",
    40: "SSLV3_ALERT_HANDSHAKE_FAILURE",
    42: "SSLV3_ALERT_BAD_CERTIFICATE",
    43: "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    44: "SSLV3_ALERT_CERTIFICATE_REVOKED",
    45: "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    46: "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    47: "SSLV3_ALERT_ILLEGAL_PARAMETER",
    48: "TLSV1_ALERT_UNKNOWN_CA",
    49: "TLSV1_ALERT_ACCESS_DENIED",
    50: "TLSV1_ALERT_DECODE_ERROR",
    51: "TLSV1_ALERT_DECRYPT_ERROR",
    70: "TLSV1_ALERT_PROTOCOL_VERSION",
    71: "TLSV1_ALERT_INSUFFICIENT_SECURITY",
    80: "TLSV1_ALERT_INTERNAL_ERROR",
    86: "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
    90: "TLSV1_ALERT_USER_CANCELLED",
    109: "TLSV13_ALERT_MISSING_EXTENSION",
    110: "TLSV1_UNSUPPORTED_EXTENSION",
    112: "TLSV1_UNRECOGNIZED_NAME",
    116: "TLSV13_ALERT_CERTIFICATE_REQUIRED",
}
TRANSIENT_ALERTS = frozenset({80, 90})


def same_alert(code: str, expected: str) -> bool:
    """OpenSSL moves the prefix: tlsv1 or tlsv13, with "alert" or without (115 and 120 since 3.2)."""
    strip = partial(re.sub, "^(SSLV3|TLSV1|TLSV13)_(ALERT_)?", "")
    return strip(code) == strip(expected)


@pytest.mark.parametrize("description", ALERTS)
async def test_a_fatal_alert(authority: Authority, description: int) -> None:
    error, peer = await failure(peers.alert(description), authority)
    check_common(error, peer, kind="transient" if description in TRANSIENT_ALERTS else "permanent")
    assert type(error) is errors.TLSHandshakeFailed
    assert isinstance(error, ssl.SSLError)
    assert not isinstance(error, PermissionError), "SSL_ERROR_SSL is EPERM's number and nothing more"
    assert error.errno == ssl.SSL_ERROR_SSL
    assert same_alert(error.code, ALERTS[description])
    assert error.reason in ({None, error.code} if description in UNNAMED_ALERTS else {error.code})
    assert not error.verify_code


async def test_close_notify_as_the_first_record(authority: Authority) -> None:
    error, peer = await failure(peers.alert(0, level=1), authority)
    check_common(error, peer, kind="transient")
    assert type(error) is errors.TLSHandshakeFailed
    assert error.errno == ssl.SSL_ERROR_ZERO_RETURN
    assert error.code == "ZERO_RETURN"


async def test_a_warning_and_then_fin(authority: Authority) -> None:
    """Unrecognized_name as a warning (RFC 6066 section 3): OpenSSL goes on, and the FIN is what ends it."""
    error, peer = await failure(peers.alert_then_fin(112, level=1), authority)
    check_reset(error, peer)


async def test_every_alert_there_can_be(authority: Authority) -> None:
    """All 256 descriptions, most of them undefined: typed, with a code, permanent unless known to pass."""
    async with serve(*map(peers.alert, range(256))) as peer:
        seen = {}
        for description in range(256):
            with pytest.raises(errors.ConnectError) as caught:
                await aioconnect.connect(endpoint_of(peer, authority), policy=ONE_ATTEMPT)
            error = caught.value
            seen[description] = type(error), error.kind, error.code, error.errno
        await peer.released()

    assert {entry[0] for entry in seen.values()} == {errors.TLSHandshakeFailed}
    assert {number for number, entry in seen.items() if entry[1] == "transient"} == TRANSIENT_ALERTS
    assert {entry[1] for entry in seen.values()} == {"transient", "permanent"}
    assert all(re.fullmatch("[A-Z][A-Z0-9_]+", entry[2]) for entry in seen.values())
    assert {entry[3] for entry in seen.values()} == {ssl.SSL_ERROR_SSL}


# --------------------------------------------------------------------------- negotiation


@pytest.mark.parametrize("through", ["connect", "open_connection"])
async def test_no_common_version(authority: Authority, through: str) -> None:
    context = authority.server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    script = peers.tls_refusing(context)
    error, peer = await failure(script, authority, through=through, minimum_version="TLSv1.3")
    check_common(error, peer, kind="permanent")
    assert type(error) is errors.TLSHandshakeFailed
    assert error.code == error.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


async def test_a_client_certificate_missing_under_tls_1_2(authority: Authority) -> None:
    script = peers.tls_refusing(authority.requiring_client_certificate(ssl.TLSVersion.TLSv1_2))
    error, peer = await failure(script, authority)
    check_common(error, peer, kind="permanent")
    assert type(error) is errors.TLSHandshakeFailed
    assert error.code == "SSLV3_ALERT_HANDSHAKE_FAILURE"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_given(authority: Authority, version: ssl.TLSVersion) -> None:
    cert, key = authority.write_files("client", "client.example")
    async with serve(peers.tls_echo(authority.requiring_client_certificate(version))) as peer:
        endpoint = endpoint_of(peer, authority, cert_file=cert, key_file=key)
        await echoes(await aioconnect.connect(endpoint, policy=ONE_ATTEMPT))
        await peer.released()


async def test_alpn_without_a_common_protocol_is_seen_or_refused(authority: Authority) -> None:
    """OpenSSL's server lets the handshake pass without a protocol; what was negotiated must be readable."""
    context = authority.server_context()
    context.set_alpn_protocols(["http/1.1"])
    async with serve(peers.tls_echo(context)) as peer:
        conn = await aioconnect.connect(endpoint_of(peer, authority, alpn=("h2",)), policy=ONE_ATTEMPT)
        assert conn.get_extra_info("ssl_object").selected_alpn_protocol() is None
        await echoes(conn)


# --------------------------------------------------------------------------- no TLS answer at all


def check_reset(error: errors.ConnectError, peer: Peer) -> None:
    check_common(error, peer, kind="transient")
    assert type(error) is errors.ConnectReset
    assert isinstance(error, ConnectionResetError)
    assert not isinstance(error, ssl.SSLError)
    assert (error.errno, error.code) == (errno.ECONNRESET, "ECONNRESET")


RESETS = {
    "RST at once": peers.reset_at_once,
    "RST after the hello": peers.reset_after_hello,
    "FIN at once": peers.fin_at_once,
    "FIN after the hello": peers.fin_after_hello,
    "half-close after the hello": peers.half_close_after_hello,
    "PostgreSQL's N, then FIN": peers.answer_then_fin(b"N"),
    "half a record, then FIN": peers.answer_then_fin(b"\x16\x03\x03\x00\x7a\x02"),
}


@pytest.mark.parametrize("through", ["connect", "open_connection"])
@pytest.mark.parametrize("name", RESETS)
async def test_the_connection_ends_inside_the_handshake(authority: Authority, name: str, through: str) -> None:
    error, peer = await failure(RESETS[name], authority, through=through)
    check_reset(error, peer)


STALLS = ["before its first record", "inside its first flight"]
SHORT = {
    "attempt": aioconnect.Policy(max_attempts=1, attempt_timeout=0.25, timeout=6),
    "call": aioconnect.Policy(max_attempts=1, attempt_timeout=3, timeout=0.25),
}


@pytest.mark.parametrize("through", ["connect", "open_connection"])
@pytest.mark.parametrize("source", SHORT)
@pytest.mark.parametrize("where", STALLS)
async def test_a_peer_that_stalls(
    authority: Authority, good: ssl.SSLContext, where: str, source: str, through: str
) -> None:
    script = peers.silent if where == STALLS[0] else peers.stall_inside_flight(good)
    began = time.monotonic()
    error, peer = await failure(script, authority, policy=SHORT[source], through=through)
    assert 0.2 < time.monotonic() - began < 1.5
    assert error.stop_reason == ("attempts" if source == "attempt" else "timeout")
    assert type(error) is errors.ConnectTimeout
    assert isinstance(error, TimeoutError)
    assert (error.errno, error.code) == (errno.ETIMEDOUT, "ETIMEDOUT")
    assert (error.phase, error.kind, error.source) == ("tls", "transient", source)
    assert error.address == peer.address
    assert error.attempt_count == 1
    check_pickled(error)


async def test_the_handshake_has_a_limit_of_its_own(authority: Authority) -> None:
    """asyncio says ConnectionAbortedError without an errno here; it is a time-out like any other."""
    error, peer = await failure(peers.silent, authority, handshake_timeout=0.25)
    check_common(error, peer, kind="transient")
    assert type(error) is errors.ConnectTimeout
    assert (error.errno, error.code, error.phase) == (errno.ETIMEDOUT, "ETIMEDOUT", "tls")


@pytest.mark.parametrize("where", STALLS)
async def test_a_call_that_is_cut_in_its_second_handshake(
    authority: Authority, good: ssl.SSLContext, where: str
) -> None:
    """The first attempt had an answer, which says more than that there was no time for another."""
    stall = peers.silent if where == STALLS[0] else peers.stall_inside_flight(good)
    policy = aioconnect.Policy(attempt_timeout=3, timeout=0.4, wait=aioconnect.Backoff(initial=0.01))
    async with serve(peers.fin_after_hello, stall) as peer:
        with pytest.raises(errors.ConnectError) as caught:
            await aioconnect.connect(endpoint_of(peer, authority), policy=policy)
        error = caught.value
        await peer.released()
        assert type(error) is errors.ConnectReset
        assert (error.attempt_count, error.stop_reason, peer.accepted) == (2, "timeout", 2)
        cut = error.attempts[-1].error
        assert isinstance(cut, errors.ConnectTimeout)
        assert (cut.phase, cut.source) == ("tls", "call")


@pytest.mark.parametrize("where", STALLS)
async def test_cancelled_inside_the_handshake(authority: Authority, good: ssl.SSLContext, where: str) -> None:
    script = peers.silent if where == STALLS[0] else peers.stall_inside_flight(good)
    async with serve(script) as peer:
        connecting = asyncio.ensure_future(aioconnect.Connector(endpoint_of(peer, authority), ONE_ATTEMPT).connect())
        await asyncio.sleep(0.05)
        assert peer.open == 1
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await peer.released()


# --------------------------------------------------------------------------- what a policy makes of it


async def echoes(conn: aioconnect.Connection) -> None:
    """The connection works in both directions; close it."""
    async with conn:
        conn.write(b"ping\n")
        await conn.drain()
        assert await conn.readexactly(5) == b"ping\n"


HEALING = {
    **RESETS,
    "close_notify": peers.alert(0, level=1),
    "alert internal_error": peers.alert(80),
    "alert user_canceled": peers.alert(90),
}


@pytest.mark.parametrize("name", HEALING)
async def test_a_fault_that_passes_is_retried(authority: Authority, good: ssl.SSLContext, name: str) -> None:
    async with serve(HEALING[name], peers.tls_echo(good)) as peer:
        await echoes(await aioconnect.connect(endpoint_of(peer, authority), policy=RETRYING))
        await peer.released()
        assert peer.accepted == 2


LASTING = {
    "plain text": peers.answer(peers.PLAIN_ANSWERS["http"]),
    "alert unknown_ca": peers.alert(48),
    "alert no_application_protocol": peers.alert(120),
}


@pytest.mark.parametrize("name", LASTING)
async def test_a_fault_that_stays_is_not(authority: Authority, name: str) -> None:
    error, peer = await failure(LASTING[name], authority, policy=RETRYING)
    assert (peer.accepted, error.attempt_count, error.stop_reason) == (1, 1, "permanent")


async def test_a_retried_certificate_is_the_users_own_choice(authority: Authority) -> None:
    policy = aioconnect.Policy(
        max_attempts=2,
        retry_on=aioconnect.TRANSIENT | {"CERTIFICATE_VERIFY_FAILED"},
        wait=aioconnect.Backoff(initial=0.01, maximum=0.02),
    )
    script = peers.tls_refusing(authority.server_context(days=(-10, -1)))
    error, peer = await failure(script, authority, policy=policy)
    assert (peer.accepted, error.attempt_count, error.stop_reason) == (2, 2, "attempts")
    assert type(error) is errors.CertificateRejected


async def test_eperm_in_a_set_retries_no_tls_failure(authority: Authority) -> None:
    """SSL_ERROR_SSL is 1, as EPERM is: a set that holds EPERM must not take one for the other."""
    policy = aioconnect.Policy(max_attempts=3, retry_on=aioconnect.TRANSIENT | {errno.EPERM, errno.ENXIO})
    error, peer = await failure(peers.alert(40), authority, policy=policy)
    assert (peer.accepted, error.attempt_count) == (1, 1)


async def test_the_circuit_takes_no_notice_of_a_refused_certificate(authority: Authority) -> None:
    async with serve(peers.tls_refusing(authority.server_context(days=(-10, -1)))) as peer:
        connector = aioconnect.Connector(endpoint_of(peer, authority), ONE_ATTEMPT)
        for _ in range(10):
            with pytest.raises(errors.CertificateRejected):
                await connector.connect()


# --------------------------------------------------------------------------- in use


async def opened(peer: Peer, authority: Authority, **tls: Any) -> aioconnect.Connection:
    return await aioconnect.connect(endpoint_of(peer, authority, **tls), policy=ONE_ATTEMPT)


async def write_on(conn: aioconnect.Connection) -> NoReturn:
    while True:
        conn.write(b"more\n")
        await conn.drain()
        await asyncio.sleep(0.01)


async def lost_while_reading(conn: aioconnect.Connection) -> errors.ConnectionLost:
    """Speak, read until the loss, and look twice: the error must stay, and closing must not add to it."""
    conn.write(b"hello\n")
    await conn.drain()
    with pytest.raises(errors.ConnectionLost) as caught:
        await conn.read(100)
    with pytest.raises(errors.ConnectionLost) as again:
        await conn.read(100)
    assert type(again.value) is type(caught.value)
    with pytest.raises(errors.ConnectionLost):
        await write_on(conn)
    assert not conn.is_usable()
    await conn.aclose()
    return caught.value


def check_in_use(error: errors.ConnectionLost, peer: Peer) -> None:
    assert error.phase == "use"
    assert isinstance(error, OSError)
    assert error.address == peer.address
    assert type(pickle.loads(pickle.dumps(error))) is type(error)


GARBAGE = {
    "plain text": (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", PLAIN_TEXT),
    "a record that does not decrypt": (
        b"\x17\x03\x03\x00\x20" + bytes(32),
        frozenset({"DECRYPTION_FAILED_OR_BAD_RECORD_MAC"}),
    ),
    "a record of the wrong type": (
        b"\x16\x03\x03\x00\x08" + bytes(8),
        frozenset({"BAD_RECORD_TYPE", "UNEXPECTED_MESSAGE"}),
    ),
    "a record longer than allowed": (
        b"\x17\x03\x03\xff\xff" + bytes(64),
        frozenset({"ENCRYPTED_LENGTH_TOO_LONG", "DATA_LENGTH_TOO_LONG", "PACKET_LENGTH_TOO_LONG"}),
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_use(authority: Authority, good: ssl.SSLContext, name: str) -> None:
    data, reasons = GARBAGE[name]

    async with serve(peers.garbage_after_handshake(good, data)) as peer:
        error = await lost_while_reading(await opened(peer, authority))
        check_in_use(error, peer)
        assert type(error) is errors.ConnectionTLSError
        assert isinstance(error, ssl.SSLError)
        assert error.errno == ssl.SSL_ERROR_SSL
        assert error.code in reasons
        assert (error.reason, error.library) == (error.code, "SSL")
        await peer.released()


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_prepare_is_a_tls_error_of_the_attempt(
    authority: Authority, good: ssl.SSLContext, name: str
) -> None:
    data, reasons = GARBAGE[name]

    async def hello(conn: aioconnect.Connection) -> None:
        conn.write(b"hello\n")
        await conn.readexactly(1)

    async with serve(peers.garbage_after_handshake(good, data)) as peer:
        connector = aioconnect.Connector(endpoint_of(peer, authority), ONE_ATTEMPT, prepare=hello)
        with pytest.raises(errors.TLSError) as caught:
            await connector.connect()
        assert (caught.value.phase, caught.value.errno) == ("prepare", ssl.SSL_ERROR_SSL)
        assert caught.value.code in reasons
        assert (caught.value.reason, caught.value.library) == (caught.value.code, "SSL")
        await peer.released()


async def test_a_client_certificate_missing_under_tls_1_3(authority: Authority) -> None:
    """The handshake is over for the client when the server refuses (python/cpython#83375)."""
    script = peers.tls_refusing(authority.requiring_client_certificate(ssl.TLSVersion.TLSv1_3))

    async with serve(script) as peer:
        error = await lost_while_reading(await opened(peer, authority))
        check_in_use(error, peer)
        assert type(error) is errors.ConnectionTLSError
        assert error.code == error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        await peer.released()


async def test_the_same_from_a_server_that_resets(authority: Authority) -> None:
    """The RST may overtake the alert: either error, but typed."""
    script = peers.client_certificate_refused(authority.requiring_client_certificate(ssl.TLSVersion.TLSv1_3))

    async with serve(script) as peer:
        conn = await opened(peer, authority)
        with pytest.raises(errors.ConnectionLost) as caught:
            await write_on(conn)
        assert isinstance(caught.value, errors.ConnectionTLSError | errors.ConnectionResetByPeer)
        check_in_use(caught.value, peer)
        await conn.aclose()


async def test_a_prepare_hook_sees_the_missing_certificate_inside_the_attempt(authority: Authority) -> None:
    """With a first exchange in `prepare` the late refusal is a failed connect, and is not retried."""

    async def hello(conn: aioconnect.Connection) -> None:
        await conn.readexactly(1)

    script = peers.tls_refusing(authority.requiring_client_certificate(ssl.TLSVersion.TLSv1_3))

    async with serve(script) as peer:
        connector = aioconnect.Connector(endpoint_of(peer, authority), RETRYING, prepare=hello)
        with pytest.raises(errors.ConnectError) as caught:
            await connector.connect()
        error = caught.value
        await peer.released()
        assert isinstance(error, errors.TLSError)
        assert (error.phase, error.kind) == ("prepare", "permanent")
        assert error.code == error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert (peer.accepted, error.attempt_count, error.stop_reason) == (1, 1, "permanent")


async def test_a_peer_that_takes_the_handshake_and_resets_in_prepare_is_retried(
    authority: Authority, good: ssl.SSLContext
) -> None:
    async def hello(conn: aioconnect.Connection) -> None:
        conn.write(b"hello\n")
        await conn.readexactly(6)

    async with serve(peers.reset_after_handshake(good), peers.tls_echo(good)) as peer:
        connector = aioconnect.Connector(endpoint_of(peer, authority), RETRYING, prepare=hello)
        await echoes(await connector.connect())
        assert peer.accepted == 2


async def test_a_reset_in_use(authority: Authority, good: ssl.SSLContext) -> None:
    async with serve(peers.reset_after_handshake(good)) as peer:
        error = await lost_while_reading(await opened(peer, authority))
        check_in_use(error, peer)
        assert type(error) is errors.ConnectionResetByPeer
        assert isinstance(error, ConnectionResetError)
        assert (error.errno, error.code) == (errno.ECONNRESET, "ECONNRESET")


ENDS = {"close_notify": peers.say_then_close_notify, "truncation": peers.say_then_truncate}


@pytest.mark.parametrize("name", ENDS)
async def test_the_end_of_the_stream(authority: Authority, good: ssl.SSLContext, name: str) -> None:
    """b"" at EOF, as in asyncio; only a message's length tells a truncation from a close."""
    async with serve(ENDS[name](good, b"part")) as peer:
        async with await opened(peer, authority) as conn:
            assert await conn.readexactly(4) == b"part"
            assert await conn.read(100) == b""
            assert await conn.read(100) == b""
        await peer.released()


@pytest.mark.parametrize("name", ENDS)
async def test_the_end_of_the_stream_inside_a_message(authority: Authority, good: ssl.SSLContext, name: str) -> None:
    async with serve(ENDS[name](good, b"part")) as peer:
        async with await opened(peer, authority) as conn:
            with pytest.raises(errors.PeerClosed) as caught:
                await conn.readexactly(10)
            assert isinstance(caught.value, asyncio.IncompleteReadError)
            assert (caught.value.partial, caught.value.expected) == (b"part", 10)
            check_in_use(caught.value, peer)
        await peer.released()


async def test_the_streams_of_open_connection_are_typed_too(authority: Authority, good: ssl.SSLContext) -> None:
    async with serve(peers.garbage_after_handshake(good, bytes(64))) as peer:
        reader, writer = await streams_to(peer, authority)
        writer.write(b"hello")
        await writer.drain()
        with pytest.raises(errors.ConnectionTLSError) as caught:
            await reader.read(10)
        assert caught.value.code in PLAIN_TEXT
        with pytest.raises(errors.ConnectionTLSError):
            await reader.readexactly(10)
        with pytest.raises(errors.ConnectionTLSError):
            await reader.readuntil(b"\n")
        writer.close()
        with pytest.raises(errors.ConnectionTLSError):
            await writer.wait_closed()


async def test_closing_does_not_wait_for_a_peer_that_will_not(authority: Authority, good: ssl.SSLContext) -> None:
    """asyncio waits 30 s for the peer's close_notify unless told otherwise, and then raises TimeoutError."""
    async with serve(peers.close_notify_never_answered(good)) as peer:
        conn = await opened(peer, authority, shutdown_timeout=0.2)
        began = time.monotonic()
        await echoes(conn)
        assert time.monotonic() - began < 2
        await peer.released()


# --------------------------------------------------------------------------- start_tls


async def plain(peer: Peer) -> aioconnect.Connection:
    return await aioconnect.connect(aioconnect.Endpoint(host=peer.host, port=peer.port), policy=ONE_ATTEMPT)


def settings_of(authority: Authority, **tls: Any) -> aioconnect.TLS:
    return aioconnect.TLS(ca_file=authority.ca_file, server_hostname="localhost", **tls)


async def failed_upgrade(script: Script, authority: Authority, **tls: Any) -> tuple[errors.ConnectError, Peer]:
    async with serve(script) as peer:
        conn = await plain(peer)
        with pytest.raises(errors.ConnectError) as caught:
            await conn.start_tls(settings_of(authority, **tls))
        conn.abort()
        await peer.released()
        return caught.value, peer


async def test_start_tls(authority: Authority, good: ssl.SSLContext) -> None:
    async with serve(peers.tls_echo(good)) as peer:
        conn = await plain(peer)
        await conn.start_tls(settings_of(authority))
        await echoes(conn)
        await peer.released()


STARTS: dict[str, tuple[Script, type[errors.ConnectError], int]] = {
    "plain text": (peers.answer(b"-ERR unknown command\r\n"), errors.NotTLS, ssl.SSL_ERROR_SSL),
    "alert": (peers.alert(40), errors.TLSHandshakeFailed, ssl.SSL_ERROR_SSL),
    "FIN": (peers.fin_after_hello, errors.ConnectReset, errno.ECONNRESET),
    "RST": (peers.reset_after_hello, errors.ConnectReset, errno.ECONNRESET),
}


@pytest.mark.parametrize("name", STARTS)
async def test_start_tls_fails(authority: Authority, name: str) -> None:
    script, expected, number = STARTS[name]
    raised, peer = await failed_upgrade(script, authority)
    assert type(raised) is expected
    assert raised.errno == number
    assert raised.phase == "tls"
    assert raised.address == peer.address


async def test_start_tls_times_out(authority: Authority) -> None:
    raised, _ = await failed_upgrade(peers.silent, authority, handshake_timeout=0.25)
    assert type(raised) is errors.ConnectTimeout
    assert (raised.errno, raised.phase) == (errno.ETIMEDOUT, "tls")


async def test_start_tls_refuses_a_certificate(authority: Authority) -> None:
    raised, _ = await failed_upgrade(peers.tls_refusing(authority.self_signed()), authority)
    assert type(raised) is errors.CertificateRejected
    assert raised.verify_code == 18


@pytest.mark.parametrize("name", [*STARTS, "silence"])
async def test_after_a_failed_upgrade_the_connection_is_gone(authority: Authority, name: str) -> None:
    """Whoever still reads, writes or closes is told so, and at once."""
    async with serve(STARTS[name][0] if name in STARTS else peers.silent) as peer:
        conn = await plain(peer)
        with pytest.raises(errors.ConnectError):
            await conn.start_tls(settings_of(authority), timeout=0.25)
        assert not conn.is_usable()
        async with asyncio.timeout(1):
            with contextlib.suppress(errors.ConnectionLost):
                assert await conn.read(1) == b""
            with pytest.raises(errors.ConnectionLost):
                await write_on(conn)
            await conn.aclose()
        await peer.released()
