"""How a pool lends: who gets a connection, and what becomes of it when it comes back.

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
from asyncio import current_task
from collections.abc import Callable, Generator
from threading import get_ident
from typing import Any, NamedTuple

from aioconnect import logs
from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.errors import Holder, NetworkError, PoolClosed, PoolFull, PoolState, PoolTimeout, typed
from aioconnect.limits import TICK, clock_of, wait_until
from aioconnect.pool_books import Books, Borrower, Ended, Entry
from aioconnect.pool_dialing import Dialing, Task, Tasks
from aioconnect.pool_hooks import Hook, is_content
from aioconnect.pool_line import Line

__all__ = ("Lending", "Settings")

# Seconds. What was in use just now is lent again without asking the kernel, to whom alone shows a FIN that came while
# the loop was busy; and for so long the process is taken to be the same, for a fork is hardly ever as quick.
_JUST_NOW = 0.0005
_CHECK_AFTER = 1.0
_CLOSING = 5.0
_UNWINDING = 0.25
_HURRY = 0.01

_NAMED = 5
_IN_ORDER = frozenset[Ended]({"idle", "lifetime", "drained", "closed"})
_DEAD = frozenset[Ended]({"stale", "lost"})
_UNFIT = "closed, or with something to read, before it was ever lent"


class Settings(NamedTuple):
    """Settings that the books do not need. Times are seconds, infinite where there is no limit."""

    max_waiting: int | None
    timeout: float
    check: Hook | None
    reset: Hook | None
    hook_timeout: float
    fails_fast: bool
    """Whether an open circuit is told to a caller who could only wait for it."""


class Lending:
    """What a `Pool` does, behind its public methods."""

    def __init__(self, connector: Connector, books: Books, settings: Settings) -> None:
        self.connector = connector
        self.books = books
        self.max_waiting, self.timeout, self.check, self.reset, self.hook_timeout, self.fails_fast = settings
        self.closed = False
        self._picky = self.fails_fast or self.max_waiting is not None
        self._record = connector.record
        self._losses = connector.losses
        self._loop: asyncio.AbstractEventLoop | None = None
        self._now: Callable[[], float]
        self._thread = self._process = 0
        self._sure_until = -math.inf
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.books.forget()
        self.line = Line(self._too_late)
        self.tasks = Tasks(f"pool of {self.connector.endpoint.place}", self._depart)
        self.dials = Dialing(self.connector, self.books, self.line, self.tasks, self._admit)
        self._leaving: list[asyncio.Future[None]] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_due = math.inf

    def bind(self) -> asyncio.AbstractEventLoop:
        """The running loop, which the pool belongs to from its first use until that loop is closed."""
        process = os.getpid()
        if self._loop is not None and not self._loop.is_closed() and process != self._process:
            raise self._elsewhere("the process before the fork; make one in each process")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                if not self._loop.is_closed():
                    raise self._elsewhere("another event loop")
                self._begin_anew()
            self._loop, self._now, self._thread, self._process = loop, clock_of(loop), get_ident(), process
            self.dials.fill()
        self._sure_until = loop.time() + _JUST_NOW
        return loop

    def _elsewhere(self, owner: str) -> RuntimeError:
        return RuntimeError(f"the pool of {self.connector.endpoint.place} belongs to {owner}")

    # -- Lending -------------------------------------------------------------------------------------------------

    def lend_again(self, borrower: Borrower) -> Generator[Any, Any, Connection]:
        """The connection that was given back last, if that was just now: under load most of them go this way.

        So this, `lend_later` and `give_back` do by themselves what `Books` and `Line` could do for them.
        """
        idle = self.books.idle
        # To ask for the running loop is a system call on CPython 3.11, a tenth of all this.
        if idle and get_ident() == self._thread:
            borrower.task = current_task(self._loop)
            now = self._now()
            entry = idle[-1]
            connection = entry.connection
            if (
                borrower.task is not None
                and now - entry.since <= _JUST_NOW
                and now < entry.expires
                and self._record.losses == self._losses
                and connection.is_sound()
            ):
                idle.pop()
                self.books.lent_at_once += 1
                borrower.entry = entry
                entry.borrower = borrower
                entry.since = now
                entry.unused = connection.is_clean = False
                return connection
        return (yield from self.lend_later(borrower))

    def lend_later(self, borrower: Borrower) -> Generator[Any, Any, Connection]:
        """Whichever comes first: one that is idle and well, one that somebody gives back, one that is dialed."""
        loop = self._loop
        task = current_task(loop) if get_ident() == self._thread else None
        if loop is None or task is None:
            loop = self.bind()
            task = current_task(loop)
        borrower.entry = "asking"
        borrower.task = task
        borrower.began = now = self._now()
        if now > self._sure_until:
            self.bind()
        books, line = self.books, self.line
        borrower.deadline = deadline = now + (self.timeout if borrower.timeout is None else borrower.timeout)
        borrower.dialing = books.dialing(now) if books.connecting else books.dialed
        place: asyncio.Future[Entry] | None = None
        try:
            early = False
            if books.idle:
                if (found := (yield from self._idle(borrower).__await__())) is not None:
                    return found.connection
                early = True
            if self.closed or self._picky:
                self._let_wait(borrower)
            place = loop.create_future()
            if early:
                line.join_early(place, borrower)
            else:
                line.places.append((place, borrower))
            if deadline < line.rings_at:
                line.ring_at(deadline, loop)
            if len(books.entries) < books.limits.max_size:
                self.dials.fill()
            borrower.entry = entry = yield from place
            return entry.connection
        except BaseException:
            self._gave_up(borrower, place)
            raise
        finally:
            # They hold the exception whose traceback holds this frame: that would wait for the collector.
            del place, task

    def _let_wait(self, borrower: Borrower) -> None:
        """Into the line. Raises what keeps somebody out, if anything does."""
        books, line, most = self.books, self.line, self.max_waiting
        if self.closed:
            raise self._is_closed()
        if self.fails_fast and not books.entries:
            self._refuse_if_open(borrower.began)
        # Those do not count for whom there is room, and so a connection on its way.
        if most is not None and len(line.places) >= most and line.waiting >= most + books.room:
            books.shed += 1
            raise self._refusal(PoolFull, borrower, line.waiting)

    def _too_late(self, borrower: Borrower, waiting: int) -> Exception:
        self.books.timeouts += 1
        return self._refusal(PoolTimeout, borrower, waiting)

    def _gave_up(self, borrower: Borrower, place: asyncio.Future[Entry] | None) -> None:
        # Its task holds the exception by which it may end, whose traceback leads here.
        borrower.task = None
        if place is None or place.get_loop().is_closed():
            return
        if not place.done() or place.cancelled():
            self.line.leave(place)
        elif place.exception() is None and (entry := place.result()).borrower is borrower:
            # Served and cancelled in the same turn: what was on its way goes to the next.
            self.give_back(entry)

    async def _idle(self, borrower: Borrower) -> Entry | None:
        """An idle connection that is well."""
        if self._record.losses != self._losses:
            self._suspect()
        idle = self.books.idle
        while idle:
            now = self._now()
            unsure = self.check is not None and now - idle[-1].since > _CHECK_AFTER
            if unsure and now >= borrower.deadline:
                raise self._too_late(borrower, self.line.waiting)
            entry = idle.pop()
            if entry.expires <= now:
                self._end(entry, "lifetime")
            elif not entry.connection.is_usable():
                self._end(entry, "stale")
            elif self.check is None or not unsure or await self._passes(self.check, entry, borrower):
                self.books.lend(entry, borrower, self._now())
                return entry
        return None

    async def _passes(self, check: Hook, entry: Entry, borrower: Borrower) -> bool:
        """Await the check. If it fails, the others that were idle for as long are not worth theirs."""
        # It is in use, by the one who asks.
        entry.borrower, entry.since = borrower, self._now()
        content = False
        try:
            content = await is_content(check, entry.connection, min(borrower.deadline, entry.since + self.hook_timeout))
        finally:
            if entry.doom is not None or not content:
                self._end(entry, entry.doom or "check")
        if not content:
            if self._now() > borrower.deadline - _HURRY:
                # It was given no time: that says nothing of the others.
                raise self._too_late(borrower, self.line.waiting)
            self._end_idle("check")
        return entry.doom is None and content

    # -- Coming back ---------------------------------------------------------------------------------------------

    def leave(self, entry: Entry, borrower: Borrower, *, failed: bool) -> None:
        """A lease ends with its block. Raises RuntimeError if it had ended before, unless there is more to hear of."""
        if entry.borrower is not borrower:
            if not failed:
                raise RuntimeError(f"{entry.connection!r} was given back before the end of its block")
        elif failed and not entry.connection.is_clean:
            self._end(entry, entry.doom or "error")
        else:
            self.give_back(entry)

    def give_back(self, entry: Entry, *, ready: bool = False) -> None:
        """A lease has ended in good order: the connection goes to the first in line, or is idle if nobody waits.

        ``ready``: it comes from no lease, but from a dial or from the ``reset`` hook.
        """
        now = self._now()
        entry.borrower = None
        places = self.line.places
        if now >= entry.expires:
            return self._end(entry, entry.doom or "lifetime")
        if self.reset is not None and not ready:
            return self._tidy_up(self.reset, entry, now)
        if places or ready:
            if self._record.losses != self._losses:
                self._suspect()
            if entry.doom is not None or not entry.connection.is_sound():
                return self._end(entry, entry.doom or "stale")
        books = self.books
        while places:
            place, borrower = places.popleft()
            if not place.done():
                books.waited += 1
                books.wait_time += now - borrower.began
                entry.borrower = borrower
                entry.since = now
                entry.unused = entry.connection.is_clean = False
                return place.set_result(entry)
        entry.since = now
        books.idle.append(entry)
        if self._sweep is None or entry.expires < self._sweep_due:
            self._sweep_at(books.next_due())
        return None

    def _tidy_up(self, reset: Hook, entry: Entry, now: float) -> None:
        entry.since = now
        tidying = is_content(reset, entry.connection, now + self.hook_timeout)
        self.tasks.start(tidying, functools.partial(self._reset, entry))

    def _reset(self, entry: Entry, task: Task) -> None:
        if entry.doom is None and not task.cancelled() and task.result():
            self.give_back(entry, ready=True)
        else:
            self._end(entry, entry.doom or "reset")

    def _end(self, entry: Entry, reason: Ended) -> None:
        """Part from a connection, which is not among the idle ones, and see to another one if it is wanted."""
        entry.borrower = None
        self.books.part(entry, reason)
        if reason in _IN_ORDER and not entry.connection.is_closing:
            # Here and now, should the task never come to run; the task sees to it that the closing ends.
            entry.connection.writer.close()
            self.tasks.start(entry.connection.aclose(_CLOSING))
        else:
            entry.connection.abort()
        if entry.unused and reason in _DEAD:
            self.dials.wasted(entry.made, typed("ECONNRESET", "use", strerror=_UNFIT))
        self.dials.fill()
        self._depart()

    def _end_idle(self, reason: Ended) -> None:
        idle = self.books.idle
        while idle:
            self._end(idle.pop(), reason)

    # -- New connections -----------------------------------------------------------------------------------------

    def _admit(self, connection: Connection, now: float) -> None:
        entry = self.books.admit(connection, now)
        connection.when_lost(functools.partial(self._lost, entry))
        self.give_back(entry, ready=True)
        # There may be one more than `min_size` now, so that another one may go: also one that is in use now, for nobody
        # thinks of that when it comes back.
        self._sweep_at(min(self.books.next_due(), self.books.shrinks(now)))

    async def ready(self, count: int, timeout: float | None) -> None:
        """Wait until so many connections are open."""
        loop = self.bind()
        if self.closed:
            raise self._is_closed()
        self._tidy()
        if self.books.open >= count:
            return
        borrower = Borrower()
        borrower.task = current_task(loop)
        borrower.began = now = self._now()
        borrower.deadline = now + (self.timeout if timeout is None else timeout)
        borrower.dialing = self.books.dialing(now)
        try:
            if not await self.dials.expect(count, borrower.deadline):
                text = f"{self.books.open} of {count} connections are open"
                raise self._refusal(PoolTimeout, borrower, self.line.waiting, text)
        finally:
            # As in `_gave_up`.
            borrower.task = None

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
        self.dials.fill()

    def drain(self) -> None:
        """Replace all connections."""
        self.bind()
        self.dials.resume()
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
            if self.tasks.running or self.books.entries:
                left: asyncio.Future[None] = loop.create_future()
                self._leaving.append(left)
                await wait_until(left, self._now() + grace)
        finally:
            stragglers = self._abandon()
        if self.tasks.running:
            # Cancelled just now; they end at once, unless some hook does not let them.
            await asyncio.wait(self.tasks.running, timeout=_UNWINDING)
        return stragglers

    def _shut(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.line.close()
        if self._sweep is not None:
            self._sweep.cancel()
        self.dials.close(self._is_closed)
        self.books.condemn("closed")
        self.tasks.cancel(closing=False)
        self._end_idle("closed")

    def _abandon(self) -> tuple[Holder, ...]:
        stragglers = self.holders()
        for connection in self.books.entries:
            connection.abort()
        self.tasks.cancel(closing=True)
        if stragglers:
            logs.stragglers(self.connector.endpoint.place, stragglers)
        return stragglers

    def _depart(self) -> None:
        """Once closed: let `aclose` know when all connections are back and all tasks have ended."""
        if self.closed and not self.books.entries and not self.tasks.running:
            for left in self._leaving:
                if not left.done():
                    left.set_result(None)
            self._leaving.clear()

    # -- What there is to say ------------------------------------------------------------------------------------

    def holders(self) -> tuple[Holder, ...]:
        """Who has the connections."""
        return () if self._loop is None else self.books.holders(self._now(), asyncio.current_task(self._loop))

    def _refusal(
        self, cls: type[PoolTimeout | PoolFull], borrower: Borrower, waiting: int, text: str | None = None
    ) -> NetworkError:
        now, books = self._now(), self.books
        state = PoolState(
            idle=len(books.idle),
            in_use=books.in_use,
            connecting=books.connecting,
            waiting=waiting,
            max_size=books.limits.max_size,
            dialing=books.dialing(now) - borrower.dialing,
            holders=books.holders(now, borrower.task, _NAMED),
        )
        error = cls(text, endpoint=self.connector.endpoint.place, elapsed=now - borrower.began, pool=state)
        error.__cause__ = self.connector.circuit.last_error or self.dials.trouble(now)
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
