"""The virtual clock: when it jumps, when it waits, and what it says when nothing will ever happen."""

from __future__ import annotations

import _thread
import asyncio
import socket
import threading
import time

import pytest

from tests.support.clock import Stuck, VirtualLoop, run_virtual, virtual


def test_virtual_time_takes_no_real_time() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = []
        for delay in (0.25, 60, 86_400, 10**7):
            await asyncio.sleep(delay)
            times.append(loop.time())
        return times

    begun = time.monotonic()
    assert run_virtual(main()) == [0.25, 60.25, 86_460.25, 10_086_460.25]
    assert run_virtual(main(), start=100.0)[0] == 100.25
    assert time.monotonic() - begun < 2


def test_virtual_timers_keep_their_order() -> None:
    async def main() -> list[int]:
        done: list[int] = []

        async def sleeper(delay: int) -> None:
            await asyncio.sleep(delay)
            done.append(delay)

        async with asyncio.TaskGroup() as group:
            for delay in (5, 1, 4, 2, 3):
                group.create_task(sleeper(delay))
        return done

    assert run_virtual(main()) == [1, 2, 3, 4, 5]


@virtual
async def test_virtual_time_limit() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.get_running_loop().create_future()
    assert asyncio.get_running_loop().time() == 30.0


@virtual
async def test_real_sockets_in_virtual_time() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await asyncio.sleep(10)
            writer.write(line.upper())
        writer.close()

    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for turn in range(1, 20):
            async with asyncio.timeout(11):
                writer.write(b"hello\n")
                assert await reader.readline() == b"HELLO\n"
            assert loop.time() == 10.0 * turn
        writer.close()
        await writer.wait_closed()


@virtual
async def test_the_clock_waits_for_an_executor() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(1):
        await asyncio.to_thread(time.sleep, 0.02)
        await loop.getaddrinfo("localhost", 80)
    assert loop.time() == 0.0
    await asyncio.sleep(5)  # an idle worker does not hold it
    assert loop.time() == 5.0


@pytest.mark.parametrize("named", [False, True])
@virtual
async def test_the_clock_waits_for_a_raw_thread(named: bool) -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def look_up() -> None:
        if named:
            threading.current_thread()  # as the logging module does; it makes a dummy
        time.sleep(0.02)
        loop.call_soon_threadsafe(answer.set_result, "answer")

    async with asyncio.timeout(1):
        _thread.start_new_thread(look_up, ())
        assert await answer == "answer"
    assert loop.time() == 0.0


def test_the_clock_need_not_wait_for_threads() -> None:
    release = threading.Event()
    over = threading.Event()

    def look_up() -> None:
        release.wait(10)
        over.set()

    async def main() -> float:
        _thread.start_new_thread(look_up, ())
        await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    try:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(threads=False)) as runner:
            assert runner.run(main()) == 60.0
    finally:
        release.set()
        assert over.wait(10)


@virtual
async def test_the_clock_can_be_held() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    ours, theirs = socket.socketpair()

    def answer_later() -> None:
        time.sleep(0.02)
        theirs.send(b"x")

    with ours, theirs:
        ours.setblocking(False)
        thread = threading.Thread(target=answer_later)
        thread.start()
        with loop.hold():
            async with asyncio.timeout(1):
                assert await loop.sock_recv(ours, 1) == b"x"
        thread.join()
    assert loop.time() == 0.0


@pytest.mark.parametrize("held", [False, True])
def test_a_loop_that_nothing_will_wake_says_so(held: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if held:
            with loop.hold():
                await asyncio.sleep(1)
        await loop.create_future()

    reason = "the clock is held" if held else "no timer is set and no input comes"
    with (
        pytest.raises(Stuck, match=reason),
        asyncio.Runner(loop_factory=lambda: VirtualLoop(patience=0.02)) as runner,
    ):
        runner.run(main())


def test_virtual_shutdown_of_an_executor_takes_no_virtual_time() -> None:
    loop: asyncio.AbstractEventLoop | None = None

    async def main() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(time.sleep, 0)

    run_virtual(main())
    assert loop is not None
    assert loop.time() == 0.0


@virtual
async def test_called_when_idle() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    calls: list[tuple[str, float]] = []
    loop.call_when_idle(lambda: calls.append(("idle", loop.time())))
    loop.call_later(3, lambda: calls.append(("timer", loop.time())))
    for _ in range(5):
        await asyncio.sleep(0)
    assert calls == []
    await asyncio.sleep(5)
    assert calls == [("idle", 3.0), ("timer", 3.0)]
