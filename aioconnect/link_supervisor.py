"""What keeps the connection of a `Link` up.

A supervisor that is asked for something has one task: it pauses, has its connector make one attempt, holds what that
gives until it is over, and begins anew. What may happen stands in `link_states.TRANSITIONS`, when to try again is
decided by `schedule`, and signs of life are the work of `heartbeat`.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
from typing import Any

from tenacity import RetryCallState

from aioconnect.connection import Connection
from aioconnect.connector import Connecting, Connector
from aioconnect.errnoset import STARTING
from aioconnect.errors import AlreadyClosed, Attempt, ConnectError, ConnectTimeout, NetworkError, PeerClosed, StopReason
from aioconnect.events import Event, GaveUp, LinkStateChanged, Retrying, tell
from aioconnect.heartbeat import Heartbeat, Pulse, ended, unwatch, watch
from aioconnect.limits import foreign
from aioconnect.link_states import CONNECTING, IDLE, READY, SHUTDOWN, TRANSIENT_FAILURE, LinkState, follow
from aioconnect.schedule import Schedule

__all__ = ("Supervisor",)


class Supervisor:
    """Keeps one connection up while somebody asks: one consumer, or any number who wait for READY.

    Belongs to the event loop of its first use, until that one is closed.
    """

    __slots__ = (
        "_alarm",
        "_consumer",
        "_ended_by",
        "_is_closed",
        "_kept",
        "_loop",
        "_nap",
        "_pid",
        "_proven",
        "_schedule",
        "_taker",
        "_task",
        "_telling",
        "_unwinding",
        "_waiters",
        "_wanted",
        "connector",
        "heartbeat",
        "last_error",
        "state",
    )

    def __init__(self, connector: Connector, heartbeat: Heartbeat | None) -> None:
        self.connector = connector
        self.heartbeat = heartbeat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._is_closed = False
        self._telling: list[Event] | None = None
        self._forget()

    def _forget(self) -> None:
        """All that belongs to one event loop."""
        self.state = IDLE
        self.last_error: NetworkError | None = None
        self._schedule = Schedule(self.connector.policy, self.connector.stable_after)
        self._proven = False
        """Whether it has been READY."""
        self._ended_by: Exception | None = None
        self._consumer: object = None
        """What the consumer was given to name itself."""
        self._wanted = False
        """Whether the connection is to be kept up for a consumer to come."""
        self._taker: asyncio.Future[Connection | None] | None = None
        self._waiters: tuple[_Waiter, ...] = ()
        self._kept: _Kept | None = None
        self._nap: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._unwinding: tuple[asyncio.Task[None], ...] = ()
        """Tasks that were cancelled, until they have ended."""

    @property
    def place(self) -> str:
        """Where its connections lead to."""
        return self.connector.record.name

    # -- Its task --------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Pause, connect, hold; again and again, until cancelled or ended by an error."""
        try:
            # A turn later, also where tasks are eager: whoever asks is to have the task in hand first.
            await asyncio.sleep(0)
            if self._unwinding:
                await asyncio.wait(self._unwinding)
            while True:
                if self._schedule.resume_at > self._now():
                    await self._rest(self._schedule.resume_at)
                connection = await self._attempt()
                if connection is not None:
                    await self._hold(connection)
                    del connection
        except asyncio.CancelledError as exc:
            if (task := self._task) is asyncio.current_task() and task is not None:
                # By somebody else, as at the end of `asyncio.run`: the end for this loop, but not for the next one.
                self._end(None if task.cancelling() else foreign(exc))
            raise
        except Exception as exc:  # noqa: BLE001  (raised by those who ask)
            self._end(exc)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as exc:
            self._end(foreign(exc))
            raise
        finally:
            self._wake()
            self._let_go(asyncio.current_task())

    def _let_go(self, task: asyncio.Task[Any] | None) -> None:
        """Forget a task that ends: it holds the cancellation, whose traceback leads back here."""
        self._unwinding = tuple(each for each in self._unwinding if each is not task)
        if self._task is task:
            self._task = None

    def _rest(self, resume_at: float) -> asyncio.Future[None]:
        """The pause before the next attempt. A timer and a future, and no frame: this is where links spend outages."""
        if self.state is IDLE:
            self._move(TRANSIENT_FAILURE, self.last_error)
        if self.connector.observers:
            self._tell(Retrying(self.place, self._schedule.failures, self.last_error, resume_at - self._now()))
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_at(resume_at, self._wake)
        self._nap = loop.create_future()
        return self._nap

    def _wake(self) -> None:
        """End the pause, if one is on."""
        if self._alarm is not None and self._nap is not None:
            self._alarm.cancel()
            if not self._nap.done():
                self._nap.set_result(None)
        self._alarm = self._nap = None

    async def _attempt(self) -> Connection | None:
        self._move(CONNECTING)
        record = self.connector.record
        try:
            if not self._schedule.failures or record.circuit.since is not None:
                return await self._dialed()
            # A retry, and no probe of an open circuit: it is paid for, where there is a budget.
            await record.settle(math.inf)
            connection = await self._dialed()
            record.refund()
            return connection
        except NetworkError as error:
            permanent = error.stop_reason == "permanent"
            error.__traceback__ = None
            if permanent and not self._proven:
                raise
            self._failed(error, permanent=permanent)
            return None

    def _dialed(self) -> Connecting[Connection]:
        # Made for each attempt, for it is nothing to keep through a pause.
        single = self.connector.unlimited(also=STARTING, stop=_after_one)
        if single.observers:
            single.observers = (self._overheard,)
        return single.connect(wait=True)

    def _failed(self, error: NetworkError, *, permanent: bool) -> None:
        # What is raised tells the story of one attempt, around the error that is worth keeping.
        self.last_error = error.__cause__ if isinstance(error.__cause__, NetworkError) else error
        self._schedule.failed(error, self._now(), self.connector.circuit, permanent=permanent)
        self._move(TRANSIENT_FAILURE, error)
        for waiter in self._waiters:
            waiter.failed(self.last_error, self._now(), self.place)

    async def _hold(self, connection: Connection) -> None:
        """READY, and what follows, until the connection is over: lost, and of no use to its consumer any more."""
        kept = self._kept = _Kept(connection)
        self._proven = True
        self.last_error = None
        lost = functools.partial(self._lost, kept)
        alive = watch(connection, lost)
        connection.when_lost(lost)
        if alive and self.heartbeat is not None:
            kept.pulse = Pulse(self.heartbeat, connection, self._end)
        self._move(READY)
        for waiter in self._waiters:
            waiter.told(None)
        if self._taker is not None and not self._taker.done():
            # Straight into its hands, for even if it is lost by now, there may be something to read.
            kept.taken = True
            self._taker.set_result(connection)
        if not alive:
            self._lost(kept)
        try:
            await kept.over
        finally:
            if self._kept is kept:
                self._kept = None
                kept.drop()

    def _lost(self, kept: _Kept, _: object = None) -> None:
        """The connection has ended: the loop says so, or its stream, or its consumer asks for the next one."""
        if kept is not self._kept or kept.lost:
            return
        kept.lost = True
        kept.calm()
        self.last_error = error = _reason(kept.connection)
        try:
            self._schedule.lost(error, kept.made, self._now(), self.connector.circuit)
        except Exception as exc:  # noqa: BLE001  (out of the policy's wait; the streams have yet to hear of the loss)
            self._end(exc)
            return
        self._move(TRANSIENT_FAILURE, error)
        if not kept.taken:
            kept.finish()

    # -- Those who ask ---------------------------------------------------------------------------------------------

    async def ready(self, allowed: float, fail_after: int | None) -> None:
        """Wait for READY so many seconds, or failed attempts; after them it is still asked for."""
        loop = self._enter()
        if self.state is READY:
            return
        waiter = _Waiter(loop, allowed, fail_after)
        self._waiters = (*self._waiters, waiter)
        try:
            self._ask()
            late = await waiter.answer
            self._wanted = True
        except NetworkError:
            self._wanted = True
            raise
        finally:
            waiter.stop()
            self._waiters = tuple(each for each in self._waiters if each is not waiter)
            if not (self._consumer or self._wanted or self._waiters):
                self._stop()
        if late:
            raise self._late(waiter) from self.last_error

    def retry_now(self) -> None:
        """End the pause."""
        self._schedule.resume()
        self.connector.retry_now()
        self._wake()

    async def close(self, timeout: float) -> None:
        """Close the connection, bounded, and whatever is under way; nothing comes after it."""
        self._bind()
        self._is_closed = True
        kept, tasks = self._kept, [task for task in (self._task, *self._unwinding) if task is not None]
        self._end(None)
        if kept is not None:
            await kept.connection.aclose(timeout)
        if tasks:
            await asyncio.wait(tasks)

    def _ask(self) -> None:
        """Start the task, if none is running."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._keep(), name=self.place)

    def _stop(self) -> None:
        """Nobody asks any more: nothing is left open, and nothing running."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if not kept.lost:
                self._schedule.left(kept.made, self._now())
            kept.drop()
        if self._task is not None:
            self._task.cancel()
            self._unwinding = (*(task for task in self._unwinding if not task.done()), self._task)
            self._task = None
        if self.state not in (IDLE, SHUTDOWN):
            self._move(IDLE)

    def _end(self, error: Exception | None) -> None:
        """Nothing comes after this: it is closed, or an error has ended it, which all who ask will get."""
        if self.state is SHUTDOWN:
            return
        self._ended_by = error
        if isinstance(error, NetworkError):
            self.last_error = error
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.calm()
            if error is not None or not kept.taken:
                kept.drop()
        if self._task is not None:
            self._task.cancel()
        self._move(SHUTDOWN, error)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
        for waiter in self._waiters:
            waiter.told(self._ending())

    def _ending(self) -> Exception:
        """What those get who ask a link that has ended; a new object for each, where it is ours."""
        error = self._ended_by
        if error is None:
            return AlreadyClosed(None, "the link was closed", phase="wait")
        if not isinstance(error, NetworkError):
            return error
        again = error.replace()
        again.__cause__ = error.__cause__
        return again

    def _enter(self) -> asyncio.AbstractEventLoop:
        """Check the loop, and that the link is open; every request calls this first."""
        loop = self._bind()
        if self.state is SHUTDOWN:
            raise self._ending()
        return loop

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop, pid = asyncio.get_running_loop(), os.getpid()
        if loop is not self._loop or pid != self._pid:
            if self._loop is not None and not self._loop.is_closed():
                where = "another process (a fork)" if self._pid != pid else "another event loop"
                raise RuntimeError(f"the link to {self.place} belongs to {where}; make one for each")
            if self._loop is not None and not self._is_closed and self._ended_by is None:
                self._forget()
            self._loop, self._pid = loop, pid
        return loop

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else -math.inf

    def _late(self, waiter: _Waiter) -> NetworkError:
        """What `ready` raises when its time is over."""
        if isinstance(self.last_error, ConnectError):
            return waiter.gives_up(self.last_error, "timeout", self._now(), self.place)
        words = "no connection within the time limit"
        elapsed = self._now() - waiter.began
        return ConnectTimeout(
            None, words, phase="wait", source="call", stop_reason="timeout", elapsed=elapsed, endpoint=self.place
        )

    # -- The consumer ------------------------------------------------------------------------------------------------

    def enlist(self) -> object:
        """Be the consumer; what is returned is for `discharge`. RuntimeError if there is one."""
        self._enter()
        if self._consumer is not None:
            raise RuntimeError(f"the link to {self.place} has a consumer: one run() or `async for` at a time")
        self._consumer = object()
        return self._consumer

    async def following(self) -> Connection | None:
        """The next connection for the consumer, which is through with the one before.

        ``None`` once the link is closed. Raises what has ended it.
        """
        loop = self._bind()
        if self._kept is not None and self._kept.taken:
            await self._part(self._kept)
        elif self._kept is not None and not self._kept.lost:
            self._kept.taken = True
            return self._kept.connection
        connection = None
        if self.state is not SHUTDOWN:
            self._taker = loop.create_future()
            self._ask()
            try:
                connection = await self._taker
            finally:
                self._taker = None
        if connection is None and self._ended_by is not None:
            raise self._ending()
        return connection

    async def _part(self, kept: _Kept) -> None:
        # Not in the frame of `following`, which would hold the connection until there is another.
        self._lost(kept)
        await kept.connection.aclose()
        kept.finish()

    async def leave(self) -> None:
        """The consumer is through with its connection, and asks for no other. What is buffered is still sent."""
        kept = self._kept
        if kept is not None and kept.taken:
            kept.calm()
            kept.lost = True
            await kept.connection.aclose()

    def discharge(self, consumer: object) -> None:
        """The consumer has ended, in whatever way."""
        if consumer is not self._consumer or self._loop is None or self._loop.is_closed():
            return
        self._consumer = None
        self._wanted = False
        kept = self._kept
        if not self._waiters:
            self._stop()
        elif kept is not None and kept.taken:
            # Somebody waits for READY: on to the next connection.
            self._lost(kept)
            kept.drop()

    # -- What is told ------------------------------------------------------------------------------------------------

    def _move(self, after: LinkState, error: Exception | None = None) -> None:
        before, self.state = self.state, follow(self.state, after)
        if self.connector.observers:
            self._tell(LinkStateChanged(self.place, before, after, error))

    def _overheard(self, event: Event) -> None:
        """Tell on what the connector tells, but for the end of each attempt: to others, it is no end."""
        if not isinstance(event, GaveUp) or getattr(event.error, "stop_reason", None) != "stop":
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if self._telling is not None:
            # An observer's own doing: the others are to hear of what was before first.
            self._telling.append(event)
            return
        self._telling = [event]
        for each in self._telling:
            tell(self.connector.observers, each)
        self._telling = None


class _Kept:
    """A connection that a link holds."""

    __slots__ = ("connection", "lost", "made", "over", "pulse", "taken")

    def __init__(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self.connection = connection
        self.made = loop.time()
        self.over: asyncio.Future[None] = loop.create_future()
        self.lost = False
        self.taken = False
        """Whether it is in the hands of the consumer."""
        self.pulse: Pulse | None = None

    def calm(self) -> None:
        """No heartbeat any more."""
        if self.pulse is not None:
            self.pulse.stop()
            self.pulse = None

    def drop(self) -> None:
        """Close it at once."""
        self.calm()
        unwatch(self.connection)
        self.connection.abort()
        self.finish()

    def finish(self) -> None:
        """Let the next one come."""
        if not self.over.done():
            self.over.set_result(None)


_LATE = object()


class _Waiter:
    """Somebody who waits for READY."""

    __slots__ = ("_alarm", "_left", "answer", "began", "failures")

    def __init__(self, loop: asyncio.AbstractEventLoop, allowed: float, left: int | None) -> None:
        self.answer: asyncio.Future[object] = loop.create_future()
        """Nothing when it is READY; `_LATE` when that has taken too long."""
        self.began = loop.time()
        self.failures = 0
        self._left = left
        self._alarm = None if allowed == math.inf else loop.call_at(self.began + allowed, self.told, _LATE)

    def stop(self) -> None:
        """Wait no longer."""
        if self._alarm is not None:
            self._alarm.cancel()

    def told(self, answer: object) -> None:
        """Get an answer, if there has been none."""
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)

    def failed(self, error: NetworkError, now: float, place: str) -> None:
        """Count a failed attempt; enough of them are the answer."""
        self.failures += 1
        if self.failures == self._left:
            last = self.gives_up(error, "attempts", now, place)
            last.__cause__ = error
            self.told(last)

    def gives_up(self, error: NetworkError, reason: StopReason, now: float, place: str) -> NetworkError:
        """The error for whoever does not wait any longer."""
        count, elapsed = max(self.failures, 1), now - self.began
        last = Attempt(count, elapsed - (error.elapsed or 0.0), error.elapsed or 0.0, error, 0.0)
        return error.replace(
            endpoint=place,
            elapsed=elapsed,
            errors=error.errors or (error,),
            attempts=(last,),
            attempt_count=count,
            stop_reason=reason,
        )


def _reason(connection: Connection) -> NetworkError | None:
    """What ended a connection; ``None`` for one that could go on."""
    if connection.lost is None and ended(connection):
        return PeerClosed(address=connection.reader.address)
    return connection.lost


def _after_one(_: RetryCallState) -> bool:
    """A tenacity stop: what to do about a failed attempt is for the supervisor to decide."""
    return True
