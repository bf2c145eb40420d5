"""An event loop whose clock jumps to the next timer instead of waiting for it.

    run_virtual(asyncio.sleep(3600))        # returns at once

    @virtual
    async def test_backoff() -> None:
        await asyncio.sleep(3600)
        assert asyncio.get_running_loop().time() == 3600.0

Sockets are real, and so are the threads in which names are looked up: the clock stands still as long as a
descriptor is ready or such a thread is at work. It does not know of anything else that may be on its way,
such as the answer of another process: hold it for that long with `VirtualLoop.hold`. uvloop has no selector
to replace, so there is no virtual clock for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import pytest

__all__ = ("Stuck", "VirtualLoop", "run_virtual", "virtual")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
"""The mark of an async test that runs on a virtual clock only."""


class Stuck(RuntimeError):
    """Nothing in this process will ever wake the loop, or its clock has been held for too long."""


class _JumpingSelector(selectors.DefaultSelector):
    """Where nothing is ready it moves `now` instead of waiting, unless the loop is `held`."""

    def __init__(self, start: float, patience: float) -> None:
        super().__init__()
        self.now = start
        self.patience = patience
        self.held: Callable[[], bool] = lambda: False
        self.idle: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        self.idle()
        begun = time.monotonic()
        while True:
            held = timeout is None or self.held()  # asked before the look: a thread speaks before it ends
            ready = super().select(0.001 if held or self._has_peers() else 0)
            if ready or not held:
                break
            if time.monotonic() - begun > self.patience:
                reason = "no timer is set and no input comes" if timeout is None else "the clock is held"
                raise Stuck(f"virtual time {self.now}: {reason}, since {self.patience} real seconds")
        if not ready and timeout is not None:
            self.now += timeout
        return ready

    def _has_peers(self) -> bool:
        """Whether there is a descriptor beside the loop's own, by which threads wake it.

        Under load the kernel delivers on loopback a moment after the sender's call. So it is given a
        millisecond, which is epoll's shortest wait.
        """
        return len(self.get_map()) > 1


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector loop on a virtual clock, which starts at `start` seconds.

    Args:
        start: what `time()` says at first.
        patience: real seconds after which a loop that only input or a thread can wake raises `Stuck`.
        threads: False to let the clock jump although a thread is at work, as for a lookup that never ends.
    """

    def __init__(self, start: float = 0.0, *, patience: float = 5.0, threads: bool = True) -> None:
        self._clock = _JumpingSelector(start, patience)
        self._clock.held = self._held
        self._clock.idle = self._idle
        self._threads = threads
        self._threads_before = _raw_threads()
        self._holds = self._jobs = 0
        self._when_idle: list[Callable[[], object]] = []
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the clock where it is: a loop with nothing to do waits for input in real time."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def call_when_idle(self, callback: Callable[[], object]) -> None:
        """Call it once, when nothing is ready: before the timers and the input that end this."""
        self._when_idle.append(callback)

    def _idle(self) -> None:
        callbacks, self._when_idle = self._when_idle, []
        for callback in callbacks:
            self.call_soon(callback)

    def _held(self) -> bool:
        at_work = self._jobs > 0 or bool(_raw_threads() - self._threads_before)
        return self._holds > 0 or (self._threads and at_work)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, _: object) -> None:
        self._jobs -= 1

    async def shutdown_default_executor(self, *args: Any) -> None:
        with self.hold():  # it has a limit of 300 s for its threads, which would be over at once
            await super().shutdown_default_executor(*args)


def _raw_threads() -> frozenset[int]:
    """The threads of `_thread.start_new_thread`, by the system's number; none where there is no /proc.

    Those of `threading` are left out: there are servers among them, and the idle workers of an executor,
    which never end. `_thread._count` would be portable, but a thread enters itself there after its start.
    """
    try:
        running = frozenset(int(entry.name) for entry in Path("/proc/self/task").iterdir())
    except FileNotFoundError:
        return frozenset()
    # A raw thread that asks for its name is entered as a dummy; it is still a raw one.
    return running - {thread.native_id for thread in threading.enumerate() if type(thread).__name__ != "_DummyThread"}


def run_virtual(main: Coroutine[Any, Any, T], *, start: float = 0.0) -> T:
    """`asyncio.run` on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(start)) as runner:
        return runner.run(main)
