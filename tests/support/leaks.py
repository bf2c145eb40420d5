"""What a piece of code leaves behind: open sockets and pipes, running tasks, complaints of the event loop.

`Footprint` is what is open and running at one moment, `LogWatch` hears what asyncio complains about, and
`cancel_everywhere` cancels a coroutine at every point at which it can be cancelled, and looks at both after
each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NamedTuple, Self, TypeVar

__all__ = (
    "EAGER",
    "Descriptor",
    "Footprint",
    "LogWatch",
    "cancel_everywhere",
    "open_fds",
    "settling",
)

T = TypeVar("T")
Task = asyncio.Task[Any]
Loop = asyncio.AbstractEventLoop

EAGER: tuple[bool, ...] = (False, True) if sys.version_info >= (3, 12) else (False,)
"""The values of `eager` that this Python has: for `@pytest.mark.parametrize("eager", EAGER)`."""

_FD_DIRECTORY = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112  (read often)


class Descriptor(NamedTuple):
    """An open socket or pipe. The inode tells it from another one that was given the same number later."""

    number: int
    kind: str
    inode: int

    def __str__(self) -> str:
        return f"fd {self.number}, {self.kind} {self._ends()}".rstrip()

    def _ends(self) -> str:
        if self.kind != "socket":
            return ""
        names = []
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.number)) as sock:
            names.append(repr(sock.getsockname()))
            names.append(repr(sock.getpeername()))
        return " -> ".join(names)


def open_fds() -> frozenset[Descriptor]:
    """The sockets and pipes of this process. Not its files: imports and other tools open and close them."""
    found = []
    for name in os.listdir(_FD_DIRECTORY):  # noqa: PTH208  (a tenth of the time of Path.iterdir)
        try:
            status = os.fstat(int(name))
        except OSError:  # the descriptor by which the directory was read
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.append(Descriptor(int(name), "socket", status.st_ino))
        elif stat.S_ISFIFO(status.st_mode):
            found.append(Descriptor(int(name), "pipe", status.st_ino))
    return frozenset(found)


@dataclass(frozen=True)
class Footprint:
    """What is open and running at one moment. Tasks are those of one loop, none where there is no loop."""

    fds: frozenset[Descriptor]
    tasks: frozenset[Task]

    @classmethod
    def take(cls, loop: Loop | None) -> Footprint:
        tasks = asyncio.all_tasks(loop) if loop is not None and not loop.is_closed() else ()
        return cls(open_fds(), frozenset(tasks))

    def since(self, before: Footprint) -> Footprint:
        """What is here and was not there `before`."""
        return Footprint(self.fds - before.fds, self.tasks - before.tasks)

    def __bool__(self) -> bool:
        return bool(self.fds or self.tasks)

    def texts(self) -> list[str]:
        left_open = [f"left open: {descriptor}" for descriptor in sorted(self.fds)]
        return left_open + [f"left running: {task.get_name()} at {where(task)}" for task in self.tasks]


def settling(turns: int = 50, grace: float = 0.05) -> Iterator[None]:
    """Iterations in which to let the loop run: some at once, then one in each millisecond of `grace` seconds.

    Closing a transport takes a loop turn or two. What another thread or process has to do takes real time,
    which passes here without the loop's timers noticing, if the clock of the loop is a virtual one.
    """
    for _ in range(turns):
        yield
    end = time.monotonic() + grace
    while time.monotonic() < end:
        time.sleep(0.001)
        yield


class LogWatch(logging.Handler):
    """Collects warnings and errors of the `asyncio` logger, by which a loop's exception handler speaks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # "Executing ... took 0.2 seconds", in debug mode only, is about the machine.
        if "took %.3f seconds" not in str(record.msg):
            self.texts.append(f"logged by asyncio: {self.format(record)}")

    def __enter__(self) -> Self:
        logging.getLogger("asyncio").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("asyncio").removeHandler(self)


def _chain(task: Task) -> Iterator[tuple[Any, FrameType]]:
    """What a task waits in, outermost first. (`Task.get_stack` stops at the first.)"""
    # CPython 3.12.1 crashes when asked for the coroutine of an eager task that has ended.
    awaited: Any = None if task.done() else task.get_coro()
    while awaited is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                yield awaited, frame
                awaited = getattr(awaited, inner)
                break
        else:
            return


def where(task: Task) -> str:
    """The place at which a task waits, innermost call first."""
    frames = [frame for _, frame in _chain(task)]
    places = [f"{Path(f.f_code.co_filename).name}:{f.f_lineno} {f.f_code.co_name}" for f in frames]
    return " <- ".join(reversed(places)) or "its end"


def _progress(loop: Loop) -> object:
    """A value that is another one when something has happened since: in a task, or to a descriptor.

    It holds the awaited objects themselves, so that one at the same place can only be the same one.
    """
    tasks: list[object] = []
    for task in asyncio.all_tasks(loop):
        waiter = getattr(task, "_fut_waiter", None)
        places = [(awaited, frame.f_lasti) for awaited, frame in _chain(task)]
        tasks.append((task, waiter, waiter is not None and waiter.done(), *places))
    return frozenset(tasks), os.listdir(_FD_DIRECTORY)  # noqa: PTH208


class _Countdown:
    """Cancels a task after a number of steps: turns of the loop in which something happened, or just had.

    Turns are counted by a callback that schedules itself again with `call_soon`, so they are the loop's own
    on any loop. Without the "something happened" a coroutine that waits a tenth of a second would have ten
    thousand steps. After a change the next `quiet` turns count too, for callbacks that change neither a
    task nor a descriptor.
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
            self._when_idle(self._wake)  # a virtual clock moves only when nothing is ready, not even we
        else:
            self._loop.call_soon(self._turn)

    def _wake(self) -> None:
        self._state = object()  # the clock has moved, or input has come: something happens now
        self._turn()


def _eager_task(loop: Loop, coroutine: Any, **options: Any) -> Task:
    """`asyncio.eager_task_factory`, less its quarrel with uvloop 0.23.

    That calls it with an argument which Python knows since 3.13.3.
    """
    options["eager_start"] = True
    return asyncio.Task(coroutine, loop=loop, **options)


@dataclass
class _Sweep(Generic[T]):
    """The settings of one `cancel_everywhere`, and what was found."""

    factory: Callable[[], Coroutine[Any, Any, T]]
    close: Callable[[T], Awaitable[object] | None] | None
    raises: type[Exception] | tuple[type[Exception], ...]
    quiet: int
    patience: float
    loop: Loop = field(default_factory=asyncio.get_running_loop)
    reported: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self, eager: bool) -> Iterator[None]:
        """Our exception handler, our task factory and no garbage collection, for the time of the sweep."""
        handler, factory = self.loop.get_exception_handler(), self.loop.get_task_factory()
        if eager and True not in EAGER:
            raise ValueError("eager tasks need Python 3.12")
        if eager:
            self.loop.set_task_factory(_eager_task)
        self.loop.set_exception_handler(lambda _, context: self.reported.append(f"loop reported: {context}"))
        collecting = gc.isenabled()
        gc.disable()  # a collection that happens to come would close what was forgotten
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
        """Run once, cancel at `step`, and check. False if it had finished before."""
        before = Footprint.take(self.loop)
        task = self.loop.create_task(self.factory())
        countdown = _Countdown(self.loop, task, step, self.quiet)
        delivered = await countdown.fired
        problems = await (self._judge(task) if delivered else self._finish(task))
        left = Footprint.take(self.loop).since(before)
        for _ in settling():
            if not left:
                break
            await asyncio.sleep(0)
            left = Footprint.take(self.loop).since(before)
        # `task` is still alive, and so is all that its traceback holds: what was not closed is still open.
        problems += left.texts() + self.reported
        if problems:
            event = f"cancelled at {countdown.place}" if delivered else "not cancelled"
            raise AssertionError("\n  ".join([f"step {step}, {event}:", *problems]))
        return delivered

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


async def cancel_everywhere(
    factory: Callable[[], Coroutine[Any, Any, T]],
    *,
    close: Callable[[T], Awaitable[object] | None] | None = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    eager: bool = False,
    quiet: int = 4,
    patience: float = 5.0,
) -> int:
    """Run `factory()` again and again, cancelling it after 0, 1, 2 ... steps, until it finishes before that.

    After each run there has to be a CancelledError and nothing else: no descriptor more than before
    (without the help of the garbage collector), no task, no call of the loop's exception handler, nothing
    logged. AssertionError names the step, the place and all that was found.

    Args:
        factory: makes the coroutine.
        close: closes the result of the run that finishes; may be a coroutine function.
        raises: what the run that finishes may raise instead of returning.
        eager: tasks start at once, as with `asyncio.eager_task_factory`; needs Python 3.12.
        quiet: how many turns count after the last visible change.
        patience: seconds, by the loop's clock, within which one cancel() has to end it.

    Returns:
        The number of runs that were cancelled, for a test to tell that there were enough.
    """
    sweep = _Sweep(factory, close, raises, quiet, patience)
    with sweep.watching(eager):
        step = 0
        while await sweep.cancelled_at(step):
            step += 1
    assert not sweep.reported, sweep.reported  # from the last collection: "exception was never retrieved"
    return step
