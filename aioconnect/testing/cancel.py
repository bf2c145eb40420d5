"""Cancel a coroutine at every point at which it can be cancelled, and look at what is left each time.

from aioconnect.testing import cancel_everywhere

async def test_one_cancel_always_ends_it():
    runs = await cancel_everywhere(lambda: connector.connect(), close=lambda conn: conn.aclose())
    assert runs > 3
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from aioconnect.testing.leaks import FD_DIRECTORY, Footprint, LogWatch, settling
from aioconnect.testing.tasks import chain, where

__all__ = ("EAGER", "cancel_everywhere")

T = TypeVar("T")
Task = asyncio.Task[Any]
Loop = asyncio.AbstractEventLoop

EAGER: tuple[bool, ...] = (False, True) if sys.version_info >= (3, 12) else (False,)
"""The values of ``eager`` that this Python has: for ``@pytest.mark.parametrize("eager", EAGER)``."""


def _progress(loop: Loop) -> object:
    """A value that is another one when something has happened since: in a task, to a descriptor, on the network.

    It holds the awaited objects themselves, so that one at the same place can only be the same one.
    """
    tasks: list[object] = []
    for task in asyncio.all_tasks(loop):
        waiter = getattr(task, "_fut_waiter", None)
        places = [(awaited, frame.f_lasti) for awaited, frame in chain(task)]
        tasks.append((task, waiter, waiter is not None and waiter.done(), *places))
    network = getattr(loop, "network", None)
    listed = os.listdir(FD_DIRECTORY) if FD_DIRECTORY else []  # noqa: PTH208  (quicker than Path.iterdir)
    return frozenset(tasks), listed, getattr(network, "progress", 0)


class _Countdown:
    """Cancels a task after a number of steps: turns of the loop in which something happened, or just had.

    Turns are counted by a callback that schedules itself again with ``call_soon``, so they are the loop's own on any
    loop. Without the "something happened" a coroutine that waits a tenth of a second would have ten thousand steps.
    After a change the next ``quiet`` turns count too, for callbacks that change neither a task nor a descriptor.
    """

    def __init__(self, loop: Loop, task: Task, steps: int, quiet: int) -> None:
        self._loop, self._task, self._left, self._quiet = loop, task, steps, quiet
        self._state: object = None
        self._still = 0
        self._when_idle: Callable[[object], object] | None = getattr(loop, "call_when_idle", None)
        self.fired: asyncio.Future[bool] = loop.create_future()
        self.place = ""
        if steps == 0:
            self._fire()
        else:
            loop.call_soon(self._turn)

    def _fire(self) -> None:
        self.place = where(self._task)
        self._state = None
        self.fired.set_result(self._task.cancel())

    def _turn(self) -> None:
        if self._task.done():
            self._fire()
            return
        state = _progress(self._loop)
        self._still = self._still + 1 if state == self._state else 0
        self._state = state
        if self._still < self._quiet:
            self._left -= 1
            if self._left == 0:
                self._fire()
                return
        self._go_on()

    def _go_on(self) -> None:
        if self._still >= self._quiet and self._when_idle is not None:
            # A virtual clock moves only when nothing is ready, not even we.
            self._when_idle(self._wake)
        else:
            self._loop.call_soon(self._turn)

    def _wake(self) -> None:
        # The clock has moved, or input has come: something happens now.
        self._state = object()
        self._turn()


def _eager_task(loop: Loop, coroutine: Any, **options: Any) -> Task:
    """``asyncio.eager_task_factory``, which uvloop 0.23 calls with an argument that only Python 3.13.3 brought."""
    options["eager_start"] = True
    return asyncio.Task(coroutine, loop=loop, **options)


@dataclass
class _Sweep(Generic[T]):
    """The settings of one `cancel_everywhere`, and what was found."""

    factory: Callable[[], Coroutine[Any, Any, T]]
    close: Callable[[T], Awaitable[object] | None] | None
    raises: type[Exception] | tuple[type[Exception], ...]
    check: Callable[[], Awaitable[object] | object] | None
    quiet: int
    patience: float
    loop: Loop = field(default_factory=asyncio.get_running_loop)
    reported: list[str] = field(default_factory=list[str])

    @contextlib.contextmanager
    def watching(self, *, eager: bool) -> Generator[None]:
        """Our exception handler, our task factory and no garbage collection, for the time of the sweep."""
        handler, factory = self.loop.get_exception_handler(), self.loop.get_task_factory()
        if eager and True not in EAGER:
            raise ValueError("eager tasks need Python 3.12")
        if eager:
            self.loop.set_task_factory(_eager_task)
        self.loop.set_exception_handler(lambda _, context: self.reported.append(f"loop reported: {context}"))
        collecting = gc.isenabled()
        # A collection that happens to come would close what was forgotten.
        gc.disable()
        try:
            with LogWatch() as log:
                self.reported = log.texts
                yield
                gc.collect()
        finally:
            if collecting:
                gc.enable()
            self.loop.set_task_factory(factory)
            self.loop.set_exception_handler(handler)

    async def cancelled_at(self, step: int) -> bool:
        """Run once, cancel at ``step``, and check. False if it had finished before."""
        before = Footprint.take(self.loop)
        task = self.loop.create_task(self.factory())
        countdown = _Countdown(self.loop, task, step, self.quiet)
        delivered = await countdown.fired
        problems = await (self._judge(task) if delivered else self._finish(task))
        # `task` is still alive, and so is all that its traceback holds: what was not closed is still open.
        problems += (await self._left_since(before)).texts() + self.reported + await self._broken()
        if problems:
            event = f"cancelled at {countdown.place}" if delivered else "not cancelled"
            raise AssertionError("\n  ".join([f"step {step}, {event}:", *problems]))
        return delivered

    async def _left_since(self, before: Footprint) -> Footprint:
        """What is left once both sides have had the time to close."""
        simulated = getattr(self.loop, "network", None) is not None
        left = Footprint.take(self.loop).since(before)
        for _ in settling(grace=0 if simulated else 0.05):
            if not left:
                return left
            await asyncio.sleep(0)
            left = Footprint.take(self.loop).since(before)
        if simulated:
            # The other side hears of it after a simulated round trip.
            await asyncio.sleep(self.patience)
            left = Footprint.take(self.loop).since(before)
        return left

    async def _broken(self) -> list[str]:
        """What the caller's own check says."""
        if self.check is None:
            return []
        try:
            outcome = self.check()
            if isinstance(outcome, Awaitable):
                await outcome
        except AssertionError as broken:
            return [f"the check failed: {broken}" if str(broken) else "the check failed"]
        return []

    async def _judge(self, task: Task) -> list[str]:
        """What is wrong with the end of a task that was cancelled."""
        await asyncio.wait({task}, timeout=self.patience)
        if not task.done():
            place = where(task)
            for _ in settling():
                task.cancel()
                await asyncio.sleep(0)
            return [f"one cancel() did not end it: {self.patience} s later it was at {place}"]
        if task.cancelled():
            return []
        error = task.exception()
        end = f"returned {task.result()!r}" if error is None else f"raised {error!r}"
        return [f"the cancel was swallowed: {end}"]

    async def _finish(self, task: asyncio.Task[T]) -> list[str]:
        """Take the result of a task that finished by itself; an unexpected error is raised as it is."""
        if task.cancelled():
            return ["ended as cancelled, but nobody had cancelled it"]
        try:
            result = task.result()
        except self.raises:
            return []
        if self.close is not None:
            closing = self.close(result)
            if closing is not None:
                await closing
        return []


async def cancel_everywhere(  # noqa: PLR0913  (keywords, each with its default)
    factory: Callable[[], Coroutine[Any, Any, T]],
    *,
    close: Callable[[T], Awaitable[object] | None] | None = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    check: Callable[[], Awaitable[object] | object] | None = None,
    eager: bool = False,
    quiet: int = 4,
    patience: float = 5.0,
) -> int:
    """Run ``factory()`` again and again, cancelling it after 0, 1, 2 ... steps, until it finishes before that.

    After each run there has to be a CancelledError and nothing else: no descriptor more than before (without the help
    of the garbage collector), no task, no call of the loop's exception handler, nothing logged, and ``check`` passes.
    Works on asyncio and on uvloop, in real and in virtual time, over real and over simulated sockets.

    ``factory``: makes the coroutine. ``close``: closes the result of the run that finishes; may be a coroutine
    function. ``raises``: what the run that finishes may raise instead of returning. ``check``: your own invariants,
    asked after each run; may be a coroutine function. ``eager``: tasks start at once, as with
    ``asyncio.eager_task_factory``; needs Python 3.12. ``quiet``: how many turns count after the last visible change.
    ``patience``: seconds, by the loop's clock, within which one ``cancel()`` has to end it.

    Returns the number of runs that were cancelled, for a test to tell that there were enough. Raises AssertionError
    that names the step, the place and all that was found.

        await cancel_everywhere(lambda: pool.acquire(), close=pool.release, check=lambda: books_are_exact(pool))
    """
    sweep = _Sweep(factory, close, raises, check, quiet, patience)
    with sweep.watching(eager=eager):
        step = 0
        while await sweep.cancelled_at(step):
            step += 1
    if sweep.reported:
        # From the last collection: "exception was never retrieved".
        raise AssertionError("\n  ".join(["after the last run:", *sweep.reported]))
    return step
