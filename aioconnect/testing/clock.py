"""An event loop whose clock jumps to the next timer instead of waiting for it.

    from aioconnect.testing import run

    run(asyncio.sleep(3600))        # returns at once

Sockets are real, and so are the threads in which names are looked up: the clock stands still as long as a descriptor
is ready or such a thread is at work. It does not know of anything else that may be on its way, such as the answer of
another process: hold it for that long with `VirtualLoop.hold`. Nothing is patched, so what reads ``time.monotonic``
sees the machine's clock. uvloop has no selector to replace: there is no virtual clock for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from aioconnect.testing.tasks import where

__all__ = ("Stuck", "VirtualLoop")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LOOK = 64
"""Where threads play no part, at one of so many turns the loop looks for signals."""


class Stuck(RuntimeError):
    """Nothing will ever wake the loop, or its clock has been held for too long. The message says where tasks wait."""


class _JumpingSelector(selectors.DefaultSelector):
    """Where nothing is ready it moves `now` instead of waiting, unless the loop is `held`."""

    def __init__(self, start: float, patience: float) -> None:
        super().__init__()
        self.now = start
        self.patience = patience
        self.jumps = 0
        self.sparing = False
        """Whether threads play no part: then the kernel is asked but now and then, which takes longer than all else."""
        self.held: Callable[[], bool] = lambda: False
        self.idle: Callable[[], object] | None = None
        self.stuck: Callable[[str], Exception] = Stuck

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0) if self._look() else []
        if self.idle is not None:
            self.idle()
        if timeout is None or self.held() or self._has_peers():
            ready = self._waited(timeout)
        else:
            ready = super().select(0) if self._look() else []
        if not ready and timeout is not None:
            self.now += timeout
        return ready

    def _waited(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready after a wait in real time, of a millisecond or as long as the loop is held."""
        begun = time.monotonic()
        while True:
            # Both are asked before the look: a thread speaks before it ends.
            held, alone = timeout is None or self.held(), timeout is None and self._alone()
            ready = super().select(0.001)
            if ready or not held:
                return ready
            if alone:
                raise self.stuck("no timer is set and no input comes, from nowhere")
            if time.monotonic() - begun > self.patience:
                reason = "no timer is set and no input comes" if timeout is None else "the clock is held"
                raise self.stuck(f"{reason}, for {self.patience:g} real seconds now")

    def _has_peers(self) -> bool:
        """Whether there is a descriptor beside the loop's own, by which threads wake it.

        Under load the kernel delivers on loopback a moment after the sender's call. So it is given a millisecond,
        which is epoll's shortest wait.
        """
        return len(self.get_map()) > 1

    def _look(self) -> bool:
        """Whether to ask the kernel."""
        self.jumps += 1
        return not self.sparing or len(self.get_map()) > 1 or self.jumps % _LOOK == 0

    def _alone(self) -> bool:
        return not self._has_peers() and not self.held() and threading.active_count() == 1


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop on a virtual clock: a ``loop_factory`` for ``asyncio.Runner``.

    ``start``: what ``time()`` says at first. ``patience``: real seconds after which a loop that only input or a
    thread can wake raises `Stuck`; where there is neither, it does so at once. ``threads``: False to let the clock
    jump although a thread is at work, as for a lookup that never ends.

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
    """

    def __init__(self, start: float = 0.0, *, patience: float = 5.0, threads: bool = True) -> None:
        self._clock = _JumpingSelector(start, patience)
        self._clock.held = self._held
        self._clock.stuck = self._stuck
        self._threads_before = _raw_threads() if threads else None
        self._holds = self._jobs = 0
        self._when_idle: list[Callable[[], object]] = []
        super().__init__(self._clock)

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._clock.now

    @contextlib.contextmanager
    def hold(self) -> Generator[None]:
        """Keep the clock where it is: a loop with nothing to do waits for input in real time."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def call_when_idle(self, callback: Callable[[], object]) -> None:
        """Call it once, when nothing is ready: before the timers and the input that end this."""
        self._when_idle.append(callback)
        self._clock.idle = self._idle

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As asyncio's; the clock stands still until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As asyncio's, which has a limit of 300 s for its threads: it would be over at once."""
        with self.hold():
            await super().shutdown_default_executor(*args)

    def _job_done(self, _: object) -> None:
        self._jobs -= 1

    def _idle(self) -> None:
        callbacks, self._when_idle = self._when_idle, []
        self._clock.idle = None
        for callback in callbacks:
            self.call_soon(callback)

    def _held(self) -> bool:
        if self._holds:
            return True
        before = self._threads_before
        return before is not None and (self._jobs > 0 or bool(_raw_threads() - before))

    def _stuck(self, reason: str) -> Stuck:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        places = [f"{task.get_name()} waits at {where(task)}" for task in tasks[:20]]
        return Stuck("\n  ".join([f"virtual time {self.time():g}: {reason}", *places]))


def _raw_threads() -> frozenset[int]:
    """The threads of `_thread.start_new_thread`, by the system's number; none where there is no /proc.

    Those of `threading` are left out: there are servers among them, and the idle workers of an executor, which never
    end. `_thread._count` would be portable, but a thread enters itself there after its start.
    """
    try:
        running = frozenset(int(entry.name) for entry in Path("/proc/self/task").iterdir())
    except FileNotFoundError:
        return frozenset()
    # A raw thread that asks for its name is entered as a dummy; it is still a raw one.
    return running - {thread.native_id for thread in threading.enumerate() if type(thread).__name__ != "_DummyThread"}
