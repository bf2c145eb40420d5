"""The checks that other tests rely on: each has to pass what is right and to find what is planted."""

from __future__ import annotations

import _thread
import asyncio
import gc
import importlib.util
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import Stuck, VirtualLoop, run_virtual, virtual
from tests.support.leaks import EAGER, cancel_everywhere, open_fds

only_asyncio = pytest.mark.asyncio(loop_factories=["asyncio"])
LOOPS = 1 if importlib.util.find_spec("uvloop") is None else 2
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


# The loops


async def test_runs_on_both_loops(request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.id if LOOPS == 2 else "asyncio"  # a single kind is not part of the name
    assert kind in {"asyncio", "uvloop"}
    assert type(asyncio.get_running_loop()).__module__.startswith(kind)


@only_asyncio
async def test_one_loop_on_request() -> None:
    assert type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop


@virtual
async def test_virtual_on_request() -> None:
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() == 3600.0


# Descriptors


def test_open_fds_sees_sockets_and_pipes(kept: list[socket.socket]) -> None:
    before = open_fds()
    assert not open_fds() - before
    kept.append(socket.socket())
    ends = os.pipe()
    assert sorted(fd.kind for fd in open_fds() - before) == ["pipe", "pipe", "socket"]
    for end in ends:
        os.close(end)


def test_open_fds_ignores_files() -> None:
    before = open_fds()
    with Path(__file__).open():
        assert open_fds() == before


def test_open_fds_tells_a_socket_from_its_successor_with_the_same_number() -> None:
    first = socket.socket()
    number = first.fileno()
    before = open_fds()
    first.close()
    with socket.socket() as second:
        assert second.fileno() == number
        assert [fd.number for fd in open_fds() - before] == [number]


def test_a_descriptor_names_its_ends(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as sock:
        ends = f"{sock.getsockname()!r} -> {sock.getpeername()!r}"
        assert f"fd {sock.fileno()}, socket {ends}" in {str(fd) for fd in open_fds()}


# The check after each test, as pytest runs it

PLANTED = """
import asyncio, logging, socket
import pytest

kept = []

def leak():
    kept.append(socket.socket())

async def forget():
    kept.append(asyncio.create_task(asyncio.sleep(3600)))

def complain():
    logging.getLogger("asyncio").error("planted")

def test_bad_sync_fd():
    leak()

async def test_bad_fd():
    leak()

async def test_bad_task():
    await forget()

async def test_bad_log():
    complain()

async def test_bad_handler():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

async def test_bad_never_retrieved():
    future = asyncio.get_running_loop().create_future()
    future.me = future  # only the garbage collector sees the end of it
    future.set_exception(OSError("planted"))

def test_bad_sync_loop():
    async def main():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)
    asyncio.run(main())

@pytest.mark.may_leak("task", "log")
async def test_bad_of_another_kind():
    leak()

@pytest.mark.may_leak("fd")
def test_good_fd():
    leak()

@pytest.mark.may_leak
async def test_good_anything():
    leak()
    await forget()
    complain()

@pytest.fixture
async def server():
    running = asyncio.create_task(asyncio.sleep(3600))
    with socket.socket() as sock:
        yield sock
    running.cancel()

@pytest.fixture(scope="module")
def shared():
    with socket.socket() as sock:
        yield sock

async def test_good_fixtures(server, shared):
    await asyncio.sleep(0)

async def test_good_closing():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await reader.read()
    writer.close()
    server.close()

async def test_broken_and_leaking():
    leak()
    assert False
"""


def run_planted(directory: Path) -> tuple[Counter[str], Counter[str], str]:
    """Run the planted tests beside our conftest: those with an error, those that failed, the output."""
    module = directory / "test_planted.py"
    module.write_text(PLANTED)
    root = Path(__file__).parent.parent
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:cacheprovider"]
    ours = ["-c", str(root / "pyproject.toml"), "--rootdir", str(directory), "-p", "tests.conftest"]
    command = [*pytest_here, *ours, str(module)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    errors = Counter(re.findall(r"^ERROR .*?::(\w+)", run.stdout, re.MULTILINE))
    failures = Counter(re.findall(r"^FAILED .*?::(\w+)", run.stdout, re.MULTILINE))
    return errors, failures, run.stdout


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    errors, failures, output = run_planted(tmp_path)
    bad = re.findall(r"test_bad\w+", PLANTED)
    assert errors == {name: 1 if name.startswith("test_bad_sync") else LOOPS for name in bad}, output
    assert failures == {"test_broken_and_leaking": LOOPS}, output
    assert "left open: fd" in output
    assert "left running: Task-" in output
    assert "logged by asyncio: planted" in output


# Cancelling everywhere


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


# The virtual clock


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
    await pause()
    assert calls == []
    await asyncio.sleep(5)
    assert calls == [("idle", 3.0), ("timer", 3.0)]
