"""Cancelling everywhere: it has to pass what is right and to find what is planted."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import aioconnect
from aioconnect import Policy, errors
from aioconnect.testing import EAGER, Echo, Network, Proxy, cancel_everywhere, faults
from tests.support.clock import virtual

eager_too = pytest.mark.parametrize("eager", EAGER)


@pytest.fixture
def kept() -> Iterator[list[socket.socket]]:
    """Where a test may leave sockets open; they are closed after it."""
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Accepts nothing by itself: the kernel completes the handshakes."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


async def dial(address: tuple[str, int], body: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await body(sock)
    finally:
        sock.close()


async def pause(_: object = None) -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@eager_too
async def test_cancel_everywhere_reaches_every_await(eager: bool) -> None:
    reached: set[int] = set()

    async def steps() -> None:
        for step in range(8):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                reached.add(step)
                raise

    assert await cancel_everywhere(steps, eager=eager) >= 8
    assert reached == set(range(8))


@eager_too
async def test_cancel_everywhere_passes_sound_code(eager: bool, listener: socket.socket) -> None:
    async def with_streams() -> None:
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.close()

    async def with_children() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(dial(listener.getsockname(), pause))

    assert await cancel_everywhere(lambda: dial(listener.getsockname(), pause), eager=eager) >= 5
    assert await cancel_everywhere(with_streams, eager=eager) >= 2
    assert await cancel_everywhere(with_children, eager=eager) >= 5


async def test_cancel_everywhere_closes_the_result(listener: socket.socket) -> None:
    async def connect() -> asyncio.StreamWriter:
        return (await asyncio.open_connection(*listener.getsockname()))[1]

    assert await cancel_everywhere(connect, close=lambda writer: writer.close()) >= 2

    async def close(writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    assert await cancel_everywhere(connect, close=close) >= 2


async def test_cancel_everywhere_expects_an_error() -> None:
    async def refused() -> None:
        await asyncio.sleep(0)
        raise ConnectionRefusedError

    assert await cancel_everywhere(refused, raises=ConnectionRefusedError) == 2
    with pytest.raises(ConnectionRefusedError):
        await cancel_everywhere(refused)


async def test_cancel_everywhere_does_not_count_waiting() -> None:
    assert await cancel_everywhere(lambda: asyncio.sleep(0.02)) < 20


async def test_cancel_everywhere_finds_an_open_descriptor(listener: socket.socket, kept: list[socket.socket]) -> None:
    async def careless() -> None:
        sock = socket.socket()
        kept.append(sock)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        await pause()
        sock.close()

    with pytest.raises(AssertionError, match=r"(?s)step 1, cancelled at .*careless.*left open: fd"):
        await cancel_everywhere(careless)


async def test_cancel_everywhere_finds_what_only_a_collection_would_close() -> None:
    opened: list[int] = []

    async def careless() -> None:
        sock = socket.socket()
        opened.append(sock.detach())
        await pause()
        os.close(opened.pop())

    with pytest.raises(AssertionError, match="left open: fd"):
        await cancel_everywhere(careless)
    assert gc.isenabled()
    os.close(opened.pop())


async def test_cancel_everywhere_finds_a_task() -> None:
    children: list[asyncio.Task[None]] = []

    async def forgets() -> None:
        children.append(asyncio.create_task(asyncio.sleep(60)))
        await pause()
        children.pop().cancel()

    with pytest.raises(AssertionError, match=r"left running: Task-\d+ at .*sleep"):
        await cancel_everywhere(forgets)
    for child in children:
        child.cancel()


@pytest.mark.parametrize("end", ["returned 1", "raised OSError"])
async def test_cancel_everywhere_finds_a_swallowed_cancel(end: str) -> None:
    async def swallows() -> int:
        try:
            await pause()
        except asyncio.CancelledError as error:
            if end == "returned 1":
                return 1
            raise OSError from error
        return 0

    with pytest.raises(AssertionError, match=rf"step 1, .*\n.*the cancel was swallowed: {end}"):
        await cancel_everywhere(swallows)


async def test_cancel_everywhere_finds_a_cancel_without_effect() -> None:
    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    with pytest.raises(AssertionError, match=r"one cancel\(\) did not end it: .* sleep <- .* stubborn"):
        await cancel_everywhere(stubborn, patience=0.01)


async def test_cancel_everywhere_finds_a_cancel_of_its_own_making() -> None:
    async def gives_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(AssertionError, match="nobody had cancelled it"):
        await cancel_everywhere(gives_up)


@pytest.mark.may_leak("log")
async def test_cancel_everywhere_hears_the_exception_handler_and_the_log() -> None:
    async def breaks_a_callback() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await pause()

    async def complains() -> None:
        logging.getLogger("asyncio").warning("planted")

    async def forgets_an_error() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        setattr(future, "me", future)  # noqa: B010  (for the type checkers)
        future.set_exception(OSError("planted"))

    with pytest.raises(AssertionError, match=r"loop reported: .*division by zero"):
        await cancel_everywhere(breaks_a_callback)
    with pytest.raises(AssertionError, match="logged by asyncio: planted"):
        await cancel_everywhere(complains)
    with pytest.raises(AssertionError, match="never retrieved"):
        await cancel_everywhere(forgets_an_error)


async def test_cancel_everywhere_puts_the_loop_back() -> None:
    loop = asyncio.get_running_loop()
    handled: list[object] = []
    loop.set_exception_handler(lambda _, context: handled.append(context))
    before = loop.get_exception_handler(), loop.get_task_factory()
    await cancel_everywhere(pause, eager=EAGER[-1])
    assert (loop.get_exception_handler(), loop.get_task_factory()) == before
    assert gc.isenabled()


@virtual
@eager_too
async def test_cancel_everywhere_moves_a_virtual_clock(eager: bool) -> None:
    reached: set[float] = set()
    loop = asyncio.get_running_loop()

    async def backoff() -> None:
        begun = loop.time()
        for delay in (1, 2, 4, 8, 3600):
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                reached.add(loop.time() - begun)
                raise

    assert await cancel_everywhere(backoff, eager=eager) < 60
    assert reached >= {0, 1, 3, 7, 15, 3615}


@virtual
async def test_cancel_everywhere_stops_at_each_timer_of_a_virtual_clock() -> None:
    reached: set[float] = set()
    loop = asyncio.get_running_loop()

    async def race() -> None:
        begun = loop.time()
        timers = [loop.call_at(begun + second, lambda: None) for second in (1, 2, 3)]
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            reached.add(loop.time() - begun)
            raise
        finally:
            for timer in timers:
                timer.cancel()

    await cancel_everywhere(race)
    assert reached >= {0, 1, 2, 3}


# Invariants of the caller


async def test_cancel_everywhere_asks_the_caller_after_each_run() -> None:
    lent: list[int] = []
    asked = 0

    async def careless() -> None:
        lent.append(1)
        await pause()
        lent.pop()

    def check() -> None:
        nonlocal asked
        asked += 1
        assert not lent, "still lent"

    async def check_later() -> None:
        await asyncio.sleep(0)
        check()

    async def sound() -> None:
        await pause()

    assert await cancel_everywhere(sound, check=check) + 1 == asked
    with pytest.raises(AssertionError, match=r"(?s)step 1, cancelled at .* careless:.*the check failed: still lent"):
        await cancel_everywhere(careless, check=check)
    with pytest.raises(AssertionError, match="the check failed: still lent"):
        await cancel_everywhere(careless, check=check_later)


# On a simulated network


@virtual
@eager_too
async def test_cancel_everywhere_on_a_simulated_network(eager: bool) -> None:
    """Through the name, the race, the retries and the first bytes; and the server's side has to end too."""
    async with Network(latency="10ms") as network:
        network.serve("10.0.0.2", 80, Echo)
        network.dns("db.internal", ["10.0.0.1", "10.0.0.2"], delay="1s")
        network.host("10.0.0.1").down()

        async def exchange() -> bytes:
            async with aioconnect.connect("db.internal:80") as conn:
                await conn.send(b"x")
                return await conn.readexactly(1)

        assert await cancel_everywhere(exchange, eager=eager) > 10


@virtual
async def test_cancel_everywhere_finds_a_simulated_socket() -> None:
    async with Network(latency="10ms") as network:
        network.serve("db", 80)

        async def careless() -> None:
            sock = await aioconnect.dial("db:80")
            await asyncio.sleep(1)
            sock.close()

        with pytest.raises(AssertionError, match=r"left open: <SimulatedSocket client .*'10\.128\.0\.1', 80\) open>"):
            await cancel_everywhere(careless)


@virtual
async def test_cancel_everywhere_expects_an_error_of_the_network() -> None:
    async with Network() as network:
        network.script("10.0.0.1", ["ECONNREFUSED 1s"])

        async def refused() -> None:
            await aioconnect.connect("10.0.0.1:80", policy=Policy(max_attempts=3))

        assert await cancel_everywhere(refused, raises=errors.ConnectRefused) > 3


# On what the kit itself offers


@pytest.mark.parametrize("make", [faults.echo, faults.refused, faults.blackhole, faults.valid_certificate])
async def test_fault_servers_can_be_cancelled_anywhere(make: Callable[[], faults.FaultServer]) -> None:
    async def use() -> None:
        async with make() as server:
            if make in {faults.echo, faults.valid_certificate}:
                async with aioconnect.connect(server.endpoint) as conn:
                    await conn.send(b"x")
                    await conn.readexactly(1)
            await pause()

    assert await cancel_everywhere(use) > 2


@virtual
@eager_too
async def test_flapping_servers_can_be_cancelled_anywhere(eager: bool) -> None:
    async def use() -> None:
        async with faults.flapping(1, down_for=1, up_for=1) as server:
            async with aioconnect.connect(server.endpoint) as conn:
                with pytest.raises(errors.ConnectionLost):
                    await conn.read()
            await asyncio.sleep(2)

    assert await cancel_everywhere(use, eager=eager) > 5


async def test_the_proxy_can_be_cancelled_anywhere() -> None:
    async def use() -> None:
        async with (
            faults.echo() as server,
            Proxy(server.endpoint, ["latency 2ms", "close after 3"]) as proxy,
            aioconnect.connect(aioconnect.Endpoint(*proxy.address)) as conn,
        ):
            await conn.send(b"xyzzy")
            assert await conn.read() == b"xyz"

    assert await cancel_everywhere(use) > 5
