"""The fault proxy, in the loop and as the command `aioconnect chaos`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import aioconnect
from aioconnect import ConfigError, Policy, errors
from aioconnect.cli import main
from aioconnect.testing import Proxy, faults
from aioconnect.testing.proxy import Fault, parse_fault
from tests.support.clock import virtual

ROOT = Path(__file__).parent.parent
ONCE = Policy(max_attempts=1, attempt_timeout=1)


@contextlib.asynccontextmanager
async def echo_behind(*given: str, seed: int | None = None) -> AsyncIterator[tuple[Proxy, list[str]]]:
    lines: list[str] = []
    async with (
        faults.echo() as server,
        Proxy(f"{server.host}:{server.port}", given, seed=seed, report=lines.append) as proxy,
    ):
        yield proxy, lines


async def connected(proxy: Proxy) -> aioconnect.Connection:
    return await aioconnect.connect(aioconnect.Endpoint(*proxy.address), policy=ONCE)


async def test_without_faults_everything_passes() -> None:
    async with echo_behind() as (proxy, lines), await connected(proxy) as conn:
        data = bytes(range(256)) * 4000
        sending = asyncio.ensure_future(conn.send(data))
        assert await conn.readexactly(len(data)) == data
        await sending
        conn.write_eof()
        assert await conn.read() == b""
        assert len(lines) == 1


@virtual
async def test_latency_is_that_of_the_round_trip() -> None:
    loop = asyncio.get_running_loop()
    async with echo_behind("latency 2s") as (proxy, _), await connected(proxy) as conn:
        for turn in range(1, 4):
            await conn.send(b"x")
            assert await conn.readexactly(1) == b"x"
            assert loop.time() == pytest.approx(2 * turn)
        for _ in range(10):
            await conn.send(b"x")
        await conn.readexactly(10)
        assert loop.time() == pytest.approx(8), "not one after the other"


@virtual
async def test_jitter_keeps_the_order() -> None:
    async with echo_behind("latency 10ms 100ms", seed=5) as (proxy, _), await connected(proxy) as conn:
        for number in range(100):
            await conn.send(b"%3d" % number)
            await asyncio.sleep(0.01)
        assert await conn.readexactly(300) == b"".join(b"%3d" % number for number in range(100))


@virtual
async def test_rate() -> None:
    async with echo_behind("rate 1k") as (proxy, _), await connected(proxy) as conn:
        await conn.send(b"x" * 2048)
        await conn.send(b"y")
        await conn.readexactly(2049)
        assert 2 <= asyncio.get_running_loop().time() < 5


CUTS = {
    "reset after 5": (b"01234", errors.ConnectionResetByPeer),
    "close after 5": (b"01234", errors.PeerClosed),
    "stall after 5": (b"01234", TimeoutError),
    "reset": (b"", errors.ConnectionResetByPeer),
    "close": (b"", errors.PeerClosed),
    "stall": (b"", TimeoutError),
}


@pytest.mark.parametrize("fault", CUTS)
async def test_cuts(fault: str) -> None:
    data, expected = CUTS[fault]
    async with echo_behind(fault) as (proxy, lines):
        conn = await connected(proxy)
        got = bytearray()

        async def talk() -> None:
            await conn.send(b"0123456789")
            async with asyncio.timeout(0.1):
                while True:
                    got.extend(await conn.readexactly(1))

        with pytest.raises((expected, errors.BrokenPipe) if fault == "close" else expected):
            await talk()
        assert bytes(got) == data or "reset" in fault, "what RST overtakes is lost"
        conn.abort()
    assert lines[1:] == [f"connection 1: {fault.split(maxsplit=1)[0]}"]


async def test_a_target_that_refuses() -> None:
    lines: list[str] = []
    async with faults.refused() as server, Proxy(server.endpoint, report=lines.append) as proxy:
        conn = await connected(proxy)
        with pytest.raises(errors.ConnectionResetByPeer):
            await conn.read()
        conn.abort()
    assert "cannot be reached" in lines[0]


@pytest.mark.parametrize("server", [faults.reset_after(3), faults.truncate(3)], ids=["reset", "close"])
async def test_the_end_of_the_target_comes_through(server: faults.FaultServer) -> None:
    async with server, Proxy(server.endpoint) as proxy:
        conn = await connected(proxy)
        with pytest.raises((errors.ConnectionResetByPeer, errors.PeerClosed)):
            await conn.readexactly(9)
        conn.abort()


@virtual
async def test_down_for_a_time() -> None:
    loop = asyncio.get_running_loop()
    async with echo_behind("down 5s every 30s") as (proxy, lines):
        conn = await connected(proxy)
        with pytest.raises(errors.ConnectionResetByPeer):
            await conn.read()
        assert loop.time() == 25
        conn.abort()
        with pytest.raises(errors.ConnectRefused):
            await connected(proxy)
        await asyncio.sleep(5.5)
        await (await connected(proxy)).aclose()
    assert lines[1:3] == ["down for 5 s, 1 connections reset", "up again"]


async def test_a_share_of_the_connections_by_seed() -> None:
    async def story(seed: int) -> list[bool]:
        outcomes = []
        async with echo_behind("50% reset", seed=seed) as (proxy, _):
            for _ in range(12):
                conn = await connected(proxy)
                try:
                    await conn.send(b"x")
                    outcomes.append(bool(await conn.readexactly(1)))
                except errors.ConnectionLost:
                    outcomes.append(False)
                conn.abort()
        return outcomes

    one = await story(1)
    assert one == await story(1)
    assert one != await story(2)
    assert set(one) == {True, False}


BAD = {
    "explode": "is none; did you mean|must be one of",
    "rest": "did you mean reset",
    "": "must be one of latency",
    "latency": "must be like 'latency 100ms'",
    "latency soon": "must be like 'latency 100ms'",
    "latency -1s": "must be like 'latency 100ms'",
    "rate 0": "must be like 'rate 5000'",
    "rate": "must be like 'rate 5000'",
    "reset after": "must be like 'reset'",
    "reset after -1": "must be like 'reset'",
    "down 5s": "must be like 'down 5s every 30s'",
    "down 30s every 5s": "must be like 'down 5s every 30s'",
    "10% down 5s every 30s": "must be like 'down 5s every 30s'",
    "0% reset": "must begin with a percentage",
    "x% reset": "must begin with a percentage",
    "200% reset": "must begin with a percentage",
}


@pytest.mark.parametrize("text", BAD)
def test_a_fault_that_makes_no_sense(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fault(text)
    assert len(caught.value.problems) == 1
    assert any(words in str(caught.value) for words in BAD[text].split("|"))


def test_faults_as_values() -> None:
    assert parse_fault("25% stall after 7") == Fault("stall", 0.25, size=7)
    assert parse_fault("rate 64k").size == 65536
    assert parse_fault("latency 1s 250ms") == Fault("latency", seconds=1, more=0.25)
    with pytest.raises(ConfigError, match="without TLS") as caught:
        Proxy("tls://localhost:443", ["explode", "rate"])
    assert len(caught.value.problems) == 3


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def target() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_chaos_runs_until_a_signal(target: tuple[str, int], number: signal.Signals) -> None:
    to = f"{target[0]}:{target[1]}"
    program = [sys.executable, "-m", "aioconnect", "chaos"]
    command = [*program, "--listen", "127.0.0.1:0", "--to", to, "--fault", "reset after 3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        found = re.match(r"127\.0\.0\.1:(\d+) -> tcp://", process.stdout.readline())
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=5) as sock:
            assert "connection 1: 127.0.0.1:" in process.stdout.readline()
            process.send_signal(number)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        _, errors_said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert errors_said == "ended after 1 connections\n"


def test_chaos_says_what_is_wrong(capsys: pytest.CaptureFixture[str], target: tuple[str, int]) -> None:
    to = f"{target[0]}:{target[1]}"
    arguments = [
        "chaos",
        "--listen",
        "nowhere",
        "--to",
        "x:y:z",
        "--fault",
        "explode",
        "--fault",
        "rate",
        "--seed",
        "-1",
    ]
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert all(line.startswith("aioconnect: ") for line in said)
    assert main(["chaos", "--listen", to, "--to", to]) == 2
    assert re.fullmatch(
        r"aioconnect: listen='127\.0\.0\.1:\d+': cannot be listened at: .*in use\n", capsys.readouterr().err
    )
    assert main(["chaos", "--to", to]) == 2
    assert "--listen" in capsys.readouterr().err


def test_chaos_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "--help"]) == 0
    assert "down 5s every 30s" in capsys.readouterr().out
