"""The fault servers, as a client meets them on both loops."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import aioconnect
from aioconnect import Backoff, ConfigError, Connector, Policy, errors
from aioconnect.testing import Recorder, faults
from aioconnect.testing.faults import FaultServer
from tests.support.clock import virtual

ONCE = Policy(max_attempts=1, attempt_timeout=0.2)
QUICK = Policy(wait=Backoff(0.01, 0.01, jitter="none"), timeout=10)

REFUSING: dict[str, tuple[Callable[[], FaultServer], type[Exception], int]] = {
    "refused": (faults.refused, errors.ConnectRefused, 0),
    "refused on IPv6": (lambda: faults.refused("::1"), errors.ConnectRefused, 0),
    "blackhole": (faults.blackhole, errors.ConnectTimeout, 0),
    "blackhole on IPv6": (lambda: faults.blackhole("::1"), errors.ConnectTimeout, 0),
    "expired": (faults.expired_certificate, errors.CertificateRejected, 1),
    "wrong host": (faults.wrong_host, errors.CertificateRejected, 1),
    "plain text": (faults.plain_text, errors.NotTLS, 1),
    "mute": (faults.mute_tls, errors.ConnectTimeout, 1),
}


@pytest.mark.parametrize("name", REFUSING)
async def test_servers_that_cannot_be_connected_to(name: str) -> None:
    make, expected, accepted = REFUSING[name]
    async with make() as server:
        with pytest.raises(expected) as caught:
            await aioconnect.connect(server.endpoint, policy=ONCE)
        assert server.accepted == accepted
    error = caught.value
    assert isinstance(error, errors.ConnectError)
    if name == "expired":
        assert "expired" in str(error)
    if name == "wrong host":
        assert "Hostname mismatch" in str(error)
    if name == "mute":
        assert error.phase == "tls"


async def test_a_refusing_port_is_kept() -> None:
    """Nobody else can be given it while the test lasts."""
    async with faults.refused() as server:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(server.address)


CUT: dict[str, tuple[Callable[[], FaultServer], bytes, type[Exception]]] = {
    "accept, then close": (faults.accept_then_close, b"", errors.PeerClosed),
    "reset at once": (lambda: faults.reset_after(0), b"", errors.ConnectionResetByPeer),
    "reset": (lambda: faults.reset_after(4, b"abc"), b"abca", errors.ConnectionResetByPeer),
    "truncate": (lambda: faults.truncate(4, b"abcdef"), b"abcd", errors.PeerClosed),
    "stall": (lambda: faults.stall(4, b"abc"), b"abca", TimeoutError),
    "stall at once": (faults.stall, b"", TimeoutError),
    "slow": (lambda: faults.slow(b"abcd", "1ms"), b"abcd", errors.PeerClosed),
    "mine": (lambda: faults.serve(_says_hi), b"hi", errors.PeerClosed),
}


async def _says_hi(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hi")


@pytest.mark.parametrize("name", CUT)
async def test_servers_that_do_not_go_on(name: str) -> None:
    make, data, expected = CUT[name]
    async with make() as server:
        conn = await aioconnect.connect(server.url, policy=ONCE)
        got = bytearray()

        async def read() -> None:
            async with asyncio.timeout(0.2):
                while True:
                    got.extend(await conn.readexactly(1))

        with pytest.raises(expected):
            await read()
        assert got == data
        assert server.accepted == 1
        conn.abort()
    assert server.connections == 0


async def test_much_before_a_reset() -> None:
    async with faults.truncate(3_000_000, b"x" * 10_000) as server, aioconnect.connect(server.url) as conn:
        assert len(await conn.read()) == 3_000_000


@pytest.mark.parametrize("make", [faults.echo, faults.valid_certificate])
async def test_servers_without_a_fault(make: Callable[[], FaultServer]) -> None:
    async with make() as server, aioconnect.connect(server.endpoint) as conn:
        await conn.send(b"hello")
        assert await conn.readexactly(5) == b"hello"
        assert server.address == (server.host, server.port)


async def test_the_file_of_the_authority_is_removed() -> None:
    async with faults.valid_certificate() as server:
        assert server.tls is not None
        file = Path(server.tls.ca_file or "")
        assert file.exists()
    assert not file.exists()


@virtual
async def test_flapping() -> None:
    """In virtual time over real sockets: down for 5 s, up for 10 s, down for 20 s, up again."""
    recorder = Recorder()
    loop = asyncio.get_running_loop()
    policy = Policy(wait=Backoff(1, 1, jitter="none"), timeout=None, breaker=None)
    async with faults.flapping("5s", down_for=20, up_for=10) as server:
        connector = Connector(server.endpoint, policy, observers=[recorder])
        first = await connector.connect()
        assert loop.time() == 5
        await first.send(b"x")
        assert await first.readexactly(1) == b"x"
        with pytest.raises(errors.ConnectionResetByPeer):
            await first.read()
        assert loop.time() == 15
        first.abort()
        second = await connector.connect()
        assert loop.time() == 35
        second.abort()
    assert recorder.attempts == ["ECONNREFUSED"] * 5 + ["ok"] + ["ECONNREFUSED"] * 20 + ["ok"]


async def test_flapping_keeps_its_port() -> None:
    async with faults.flapping(0, down_for=0.02, up_for=0.02) as server:
        for _ in range(5):
            conn = await aioconnect.connect(server.endpoint, policy=QUICK)
            assert conn.peername == server.address
            with pytest.raises(errors.ConnectionResetByPeer):
                await conn.read()
            conn.abort()


async def test_a_server_that_comes_up_and_stays() -> None:
    async with faults.flapping(0.03) as server:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*server.address)
        async with aioconnect.connect(server.endpoint, policy=QUICK) as conn:
            await conn.send(b"x")
            assert await conn.readexactly(1) == b"x"


@pytest.mark.may_leak("log")
async def test_a_bug_of_a_handler_is_told_to_the_loop() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(repr(context["exception"])))

    async def handler(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        raise ZeroDivisionError("planted")

    async with faults.serve(handler) as server, aioconnect.connect(server.url) as conn:
        assert await conn.read() == b""
    assert told == ["ZeroDivisionError('planted')"]


async def test_a_server_that_cannot_start_leaves_nothing() -> None:
    with pytest.raises(OSError, match="assign requested address") as caught:
        async with faults.echo("192.0.2.1"):
            pass
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_without_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ConfigError, match=r"needs trustme: pip install 'aioconnect\[testing\]'"):
        async with faults.expired_certificate():
            pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: faults.reset_after(-1), "size=-1: must be an integer"),
        (lambda: faults.truncate(3, b""), "data: must be bytes, at least one"),
        (lambda: faults.slow(b"x", every=-1), "every=-1: must be at least 0"),
        (lambda: faults.slow(b"x", size=0), "size=0"),
        (lambda: faults.flapping("soon"), "up_after='soon'"),
        (lambda: faults.flapping(1, down_for=-1), "down_for=-1"),
    ],
)
def test_what_makes_no_sense(make: Callable[[], FaultServer], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert len(caught.value.problems) == 1
