"""How a pool lends: who dials, and what becomes of a connection that comes back.

A connection goes from hand to hand by plain function calls. Giving it back awaits nothing: in that very call the first
in line gets it, through a future of its own. So nobody comes between, there is nothing to lock or to wake, and nothing
to lose. Dials and ``reset`` hooks are tasks of the pool, whose callbacks keep the books, so no caller who is
cancelled leaves anything half done. Whoever frees a connection first serves the first in line, no matter who dialed
for whom; what a dial brings that nobody wants any more is idle.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
from collections.abc import Awaitable, Callable, Coroutine
from threading import get_ident
from typing import Any, NamedTuple, cast

from tenacity import RetryCallState

from aioconnect import logs
from aioconnect.books import Books, Borrower, Ended, Entry
from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.errnoset import STARTING
from aioconnect.errors import Holder, NetworkError, PoolClosed, PoolFull, PoolState, PoolTimeout, classify
from aioconnect.limits import TICK, bounded, wait_until
from aioconnect.line import Answer, Line

__all__ = ("Hook", "Lending", "Settings")

Hook = Callable[[Connection], Awaitable[object]]
"""Looks at a connection, or tidies it up. What it raises costs that connection, and nothing else."""

# Seconds. A FIN that came while the loop was busy shows only to the kernel; what was in use just now is not asked for.
_POLL_AFTER = 0.001
_CHECK_AFTER = 1.0
_CLOSING = 5.0
_UNWINDING = 0.25
_DIAL_AGAIN = 5.0
_HURRY = 0.01

_NAMED = 5
_IN_ORDER = frozenset[Ended]({"idle", "lifetime", "drained", "closed"})

_Task = asyncio.Task[Any]
_Then = Callable[[_Task], None]


class Settings(NamedTuple):
    """What is no matter of the books. Times are seconds, infinite where there is no limit."""

    max_waiting: float
    timeout: float
    check: Hook | None
    reset: Hook | None
    hook_timeout: float
    fails_fast: bool
    """Whether an open circuit is told to a caller who could only wait for it."""


class Lending:
    """The works of a `Pool`."""

    forks = 0
    """Forks that led to this process, since the import."""

    def __init__(self, connector: Connector, books: Books, settings: Settings) -> None:
        self.connector = connector
        self.books = books
        self.settings = settings
        self.closed = False
        self._dialer = connector.unlimited(stop=self._unwanted)
        self._patient = connector.unlimited(also=STARTING, stop=self._unwanted)
        self._record = connector.record
        self._losses = connector.losses
        self._loop: asyncio.AbstractEventLoop | None = None
        self._now: Callable[[], float]
        self._thread = 0
        self._forks = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.books.forget()
        self.line = Line(self._too_late)
        self._expecting: dict[asyncio.Future[Exception | None], int] = {}
        self._tasks: dict[_Task, _Then | None] = {}
        self._leaving: list[asyncio.Future[None]] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_due = math.inf
        self._given_up = 0

    def bind(self) -> asyncio.AbstractEventLoop:
        """The running loop, which the pool belongs to from its first use until that loop is closed."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return loop
        if self._loop is not None:
            if not self._loop.is_closed():
                forked = self._forks != Lending.forks
                other = "the process before the fork; make one in each process" if forked else "another event loop"
                raise RuntimeError(f"the pool of {self.connector.endpoint.place} belongs to {other}")
            self._begin_anew()
        self._loop, self._now = loop, loop.time
        self._thread, self._forks = get_ident(), Lending.forks
        self.fill()
        return loop

    # -- Lending -------------------------------------------------------------------------------------------------

    def lend_now(self, borrower: Borrower) -> Entry | None:
        """An idle connection, if there is one that takes no waiting."""
        # As good as `bind`, which asks the kernel for the process in CPython 3.11, and as long as half of all this.
        task = borrower.task = asyncio.current_task(self._loop)
        if task is None or get_ident() != self._thread or Lending.forks != self._forks:
            borrower.task = asyncio.current_task(self.bind())
        books = self.books
        idle = books.idle
        if not idle:
            return None
        if self._record.losses != self._losses:
            self._suspect()
        now = self._now()
        while idle:
            entry = idle.pop()
            idled = now - entry.since
            if idled > _CHECK_AFTER and self.settings.check is not None:
                idle.append(entry)
                break
            if now < entry.expires and entry.connection.is_usable(poll=idled > _POLL_AFTER):
                books.lend(entry, borrower, now)
                return entry
            self._end(entry, "lifetime" if entry.expires <= now else "stale")
        return None

    async def lend_later(self, borrower: Borrower, timeout: float | None) -> Entry:
        """Whichever comes first: one that passes its check, one that somebody gives back, one that is dialed."""
        books, settings, line = self.books, self.settings, self.line
        borrower.began = began = self._now()
        borrower.deadline = began + (settings.timeout if timeout is None else timeout)
        borrower.dialing = books.dialing(began)
        checked = bool(books.idle)
        if checked and (entry := await self._checked(borrower)) is not None:
            return entry
        if self.closed:
            raise self._is_closed()
        if settings.fails_fast and not books.entries:
            self._refuse_if_open(began)
        if len(line.places) >= settings.max_waiting and line.waiting >= settings.max_waiting:
            books.shed += 1
            raise self._refusal(PoolFull, borrower)
        # Those who came while a connection was checked for this one, in vain, stand behind it.
        place = line.join(borrower, cast(asyncio.AbstractEventLoop, self._loop), first=checked)
        if len(books.entries) < books.limits.max_size:
            self.fill()
        try:
            outcome = await place
        except BaseException:
            self._gave_up(place)
            raise
        if isinstance(outcome, Entry):
            return outcome
        try:
            raise outcome
        finally:
            # A frame that holds the exception whose traceback holds the frame would wait for the collector.
            del outcome

    def _too_late(self, borrower: Borrower) -> Exception:
        self.books.timeouts += 1
        return self._refusal(PoolTimeout, borrower)

    def _gave_up(self, place: asyncio.Future[Answer]) -> None:
        if not place.done() or place.cancelled():
            self.line.leave(place)
        elif isinstance(entry := place.result(), Entry):
            # Served and cancelled in the same turn: what was on its way goes to the next.
            self.give_back(entry)

    async def _checked(self, borrower: Borrower) -> Entry | None:
        """What `lend_now` has left for a check. Meanwhile it is in use, by the one who asks."""
        idle = self.books.idle
        while idle:
            now = self._now()
            if now >= borrower.deadline:
                raise self._too_late(borrower)
            entry = idle.pop()
            self.books.lend(entry, borrower, now)
            if entry.expires <= now:
                self._end(entry, "lifetime")
            elif not entry.connection.is_usable():
                self._end(entry, "stale")
            elif await self._passes(entry, borrower):
                entry.connection.is_clean = False
                return entry
        return None

    async def _passes(self, entry: Entry, borrower: Borrower) -> bool:
        """Await the check. If it fails, the others that were idle for as long are not worth theirs."""
        content = False
        try:
            content = await self._is_content(self.settings.check, entry.connection, borrower.deadline)
        finally:
            if entry.doom is not None or not content:
                self._end(entry, entry.doom or "check")
        if not content:
            if self._now() > borrower.deadline - _HURRY:
                # It was given no time: that says nothing of the others.
                raise self._too_late(borrower)
            self._end_idle("check")
        return content and entry.doom is None

    # -- Coming back ---------------------------------------------------------------------------------------------

    def release(self, connection: Connection) -> None:
        """As `give_back`. Raises RuntimeError, and changes nothing, if it is not lent."""
        entry = self.books.entries.get(connection)
        if entry is None or entry.borrower is None:
            raise RuntimeError(f"{connection!r} is not lent: it was given back before, or is another pool's")
        self.give_back(entry)

    def leave(self, entry: Entry, borrower: Borrower, *, failed: bool) -> None:
        """A lease ends with its block. Raises RuntimeError if it had ended before, unless there is more to hear of."""
        if entry.borrower is not borrower:
            if not failed:
                raise RuntimeError(f"{entry.connection!r} was given back before the end of its block")
        elif failed and not entry.connection.is_clean:
            self._end(entry, entry.doom or "error")
        else:
            self.give_back(entry)

    def give_back(self, entry: Entry) -> None:
        """A lease has ended in good order."""
        now = self._now()
        self.books.use_time += now - entry.since
        entry.borrower = None
        if now >= entry.expires:
            self._end(entry, entry.doom or "lifetime")
        elif self.settings.reset is not None:
            entry.since = now
            self._start(self._is_content(self.settings.reset, entry.connection), functools.partial(self._reset, entry))
        elif self.line.places:
            self._serve(entry, now)
        else:
            self._keep(entry, now)

    def _reset(self, entry: Entry, task: _Task) -> None:
        if entry.doom is None and not task.cancelled() and task.result():
            self._serve(entry, self._now())
        else:
            self._end(entry, entry.doom or "reset")

    def _serve(self, entry: Entry, now: float) -> None:
        """To the first in line; it is idle if nobody waits."""
        if self._record.losses != self._losses:
            self._suspect()
        if entry.doom is not None or not entry.connection.is_usable(poll=False):
            self._end(entry, entry.doom or "stale")
        elif (found := self.line.next()) is not None:
            place, borrower = found
            self.books.lend(entry, borrower, now)
            self.books.waited += 1
            self.books.wait_time += now - borrower.began
            place.set_result(entry)
        else:
            self._keep(entry, now)

    def _keep(self, entry: Entry, now: float) -> None:
        self.books.keep(entry, now)
        if self._sweep is None or entry.expires < self._sweep_due:
            self._sweep_at(self.books.next_due())

    def _end(self, entry: Entry, reason: Ended) -> None:
        """Part from a connection, which is not among the idle ones, and see to another one if it is wanted."""
        entry.borrower = None
        self.books.part(entry, reason)
        if reason in _IN_ORDER and not entry.connection.is_closing:
            # Here and now, should the task never come to run; the task sees to it that the closing ends.
            entry.connection.writer.close()
            self._start(entry.connection.aclose(_CLOSING))
        else:
            entry.connection.abort()
        self.fill()
        self._depart()

    def _end_idle(self, reason: Ended) -> None:
        idle = self.books.idle
        while idle:
            self._end(idle.pop(), reason)

    async def _is_content(self, hook: Hook | None, connection: Connection, deadline: float = math.inf) -> bool:
        """Await a hook. What it raises is about the connection, or else it is wrong, and the loop hears of that."""
        limit = min(deadline, self._now() + self.settings.hook_timeout)
        try:
            if hook is not None:
                await bounded(hook(connection), limit, "attempt", "pool", connection.reader.address)
        except Exception as exc:  # noqa: BLE001  (a hook may raise anything)
            if classify(exc) is None:
                context = {"message": f"the pool's hook {hook!r} raised", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)
            return False
        return connection.is_usable(poll=False)

    # -- Dialing -------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Dial as much as those in line, those who expect connections, and ``min_size`` call for."""
        if self.closed:
            return
        least = max(self._expecting.values()) if self._expecting else 0
        dialer = self._patient if least else self._dialer
        failing = self.connector.circuit.failures > 0
        for _ in range(self.books.dials_due(self._in_line(), least, failing=failing)):
            self.books.dial_begins(self._now())
            self._start(dialer.connect(wait=True), self._dialed)

    def _unwanted(self, _state: RetryCallState) -> bool:
        """Asked after each failed attempt: whether more dials are under way than anybody wants."""
        due = self.books.dials_due(self._in_line(), max(self._expecting.values(), default=0))
        # Those that were told so at this moment are still on the books.
        unwanted = due + self._given_up < 0
        self._given_up += unwanted
        return unwanted

    def _in_line(self) -> int:
        """Callers whom a dial could serve. Not those who have gone: a dial for them would be given up at its first
        failure, and begun again at once.
        """
        return self.line.waiting_of(self.books.limits.max_size)

    def _dialed(self, task: _Task) -> None:
        now = self._now()
        self.books.dial_ends(now)
        error = None if task.cancelled() else task.exception()
        if getattr(error, "stop_reason", None) == "stop":
            self._given_up -= 1
        if error is None and not task.cancelled():
            self._admit(task.result(), now)
        elif not self.closed:
            self._undialed(error, now)

    def _admit(self, connection: Connection, now: float) -> None:
        if self.closed:
            connection.abort()
            return
        entry = self.books.admit(connection, now)
        connection.when_lost(functools.partial(self._lost, entry))
        self._serve(entry, now)
        # There may be one more than `min_size` now, so that another one may go: also one that is in use now, for nobody
        # thinks of that when it comes back.
        self._sweep_at(min(self.books.next_due(), self.books.shrinks(now)))
        for expecting, count in self._expecting.items():
            if count <= self.books.open and not expecting.done():
                expecting.set_result(None)
        self.fill()

    def _undialed(self, error: BaseException | None, now: float) -> None:
        """A dial was given up: for good, because nobody wanted it any more, or because somebody cancelled its task."""
        if isinstance(error, Exception) and getattr(error, "stop_reason", None) != "stop":
            self._turn_away(functools.partial(_copy, error))
        if self._in_line() or self._expecting:
            # They came when it had been decided already.
            self.fill()
        elif self.books.dials_due(0):
            self._sweep_at(now + _DIAL_AGAIN)

    def _turn_away(self, error: Callable[[], Exception]) -> None:
        """All who wait for a connection to be made."""
        self.line.turn_away(error)
        for expecting in self._expecting:
            if not expecting.done():
                expecting.set_result(error())
        self._expecting.clear()

    async def ready(self, count: int, timeout: float | None) -> None:
        """Wait until so many connections are open."""
        loop = self.bind()
        if self.closed:
            raise self._is_closed()
        self._tidy()
        if self.books.open >= count:
            return
        borrower = Borrower()
        borrower.task = asyncio.current_task(loop)
        borrower.began = self._now()
        borrower.deadline = borrower.began + (self.settings.timeout if timeout is None else timeout)
        borrower.dialing = self.books.dialing(borrower.began)
        expecting: asyncio.Future[Exception | None] = loop.create_future()
        self._expecting[expecting] = count
        self.fill()
        try:
            in_time = await wait_until(expecting, borrower.deadline)
        finally:
            self._expecting.pop(expecting, None)
        if not in_time:
            raise self._refusal(PoolTimeout, borrower, f"{self.books.open} of {count} connections are open")
        if (error := expecting.result()) is not None:
            raise error

    # -- Looking after what is idle ------------------------------------------------------------------------------

    def _suspect(self) -> None:
        """The network has taken a connection of this endpoint: most likely it has taken them all."""
        self._losses = self._record.losses
        self.books.condemn("suspect")
        self._end_idle("suspect")

    def _lost(self, entry: Entry, _error: NetworkError) -> None:
        if entry in self.books.idle:
            self.books.idle.remove(entry)
            self._end(entry, "lost")
        else:
            entry.condemn("lost")
        if self._record.losses != self._losses:
            self._suspect()

    def _sweep_at(self, due: float) -> None:
        if due < (math.inf if self._sweep is None else self._sweep_due):
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep_due = due
            self._sweep = asyncio.get_running_loop().call_at(due, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        self._tidy()
        self._sweep_at(self.books.next_due())

    def _tidy(self) -> None:
        """Part from what is idle for too long, too old, or dead, and dial what is missing."""
        for entry, reason in self.books.overdue(self._now() + TICK):
            self._end(entry, reason)
        for entry in [entry for entry in self.books.idle if not entry.connection.is_usable()]:
            self.books.idle.remove(entry)
            self._end(entry, "stale")
        self.fill()

    def drain(self) -> None:
        """Replace all connections."""
        self.bind()
        self.books.condemn("drained")
        self._end_idle("drained")

    # -- The end -------------------------------------------------------------------------------------------------

    async def aclose(self, grace: float) -> tuple[Holder, ...]:
        """Close, and abort after ``grace`` seconds; who had to be left behind."""
        if self._loop is None:
            self.closed = True
            return ()
        loop = self.bind()
        self._shut()
        try:
            if self._tasks or self.books.entries:
                left: asyncio.Future[None] = loop.create_future()
                self._leaving.append(left)
                await wait_until(left, self._now() + grace)
        finally:
            stragglers = self._abandon()
        if self._tasks:
            # Cancelled just now; they end at once, unless some hook does not let them.
            await asyncio.wait(self._tasks, timeout=_UNWINDING)
        return stragglers

    def _shut(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.line.close()
        if self._sweep is not None:
            self._sweep.cancel()
        self._turn_away(self._is_closed)
        self.books.condemn("closed")
        for task, then in self._tasks.items():
            if then is not None:
                task.cancel()
        self._end_idle("closed")

    def _abandon(self) -> tuple[Holder, ...]:
        stragglers = self.holders()
        for connection in self.books.entries:
            connection.abort()
        for task in self._tasks:
            task.cancel()
        if stragglers:
            logs.stragglers(self.connector.endpoint.place, stragglers)
        return stragglers

    def _depart(self) -> None:
        """Once closed: let `aclose` know when all connections are back and all tasks have ended."""
        if self.closed and not self.books.entries and not self._tasks:
            for left in self._leaving:
                if not left.done():
                    left.set_result(None)
            self._leaving.clear()

    def _start(self, coroutine: Coroutine[Any, Any, Any], then: _Then | None = None) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=f"pool of {self.connector.endpoint.place}")
        self._tasks[task] = then
        task.add_done_callback(self._finished)

    def _finished(self, task: _Task) -> None:
        then = self._tasks.pop(task)
        if then is not None:
            then(task)
        self._depart()

    # -- What there is to say ------------------------------------------------------------------------------------

    def holders(self) -> tuple[Holder, ...]:
        """Who has the connections."""
        return () if self._loop is None else self.books.holders(self._now(), asyncio.current_task(self._loop))

    def _refusal(self, cls: type[PoolTimeout | PoolFull], borrower: Borrower, text: str | None = None) -> NetworkError:
        now, books = self._now(), self.books
        state = PoolState(
            idle=len(books.idle),
            in_use=books.in_use,
            connecting=books.connecting,
            waiting=self.line.waiting,
            max_size=books.limits.max_size,
            dialing=books.dialing(now) - borrower.dialing,
            holders=books.holders(now, borrower.task, _NAMED),
        )
        error = cls(text, endpoint=self.connector.endpoint.place, elapsed=now - borrower.began, pool=state)
        error.__cause__ = self.connector.circuit.last_error
        return error

    def _refuse_if_open(self, now: float) -> None:
        circuit = self.connector.circuit
        if circuit.since is not None and now < circuit.probe_due:
            place = self.connector.endpoint.place
            raise circuit.refusal(now).replace(
                endpoint=place, elapsed=0.0, stop_reason="circuit"
            ) from circuit.last_error

    def _is_closed(self) -> PoolClosed:
        return PoolClosed(f"the pool of {self.connector.endpoint.place} is closed")


def _forked() -> None:
    Lending.forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _copy(error: Exception) -> Exception:
    """One for each who waits: an error that is raised twice collects the frames of both."""
    if not isinstance(error, NetworkError):
        return error
    copy = error.replace()
    copy.__cause__ = error.__cause__
    return copy
