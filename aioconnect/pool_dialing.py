"""The dials of a pool: tasks of its own, as many as somebody wants, at the pace of the connector's schedule."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Coroutine
from typing import Any

from tenacity import RetryCallState

from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.errnoset import STARTING
from aioconnect.errors import NetworkError
from aioconnect.limits import foreign, wait_until
from aioconnect.pool_books import Books
from aioconnect.pool_line import Line
from aioconnect.schedule import Schedule

__all__ = ("Dialing", "Task", "Tasks")

Task = asyncio.Task[Any]

Then = Callable[[Task], None]

_DIAL_AGAIN = 5.0
"""Seconds after an error that is not retried, when nobody but ``min_size`` wants a connection."""

_SOON = 1.0
"""Seconds: what dies unused before has come to nothing, and what dies so long after a pause is another story."""


class Tasks:
    """Tasks, and what is to be done with what they end with: it is done also where a task was cancelled unbegun."""

    def __init__(self, name: str, after: Callable[[], None]) -> None:
        self._name = name
        self._after = after
        self.running: dict[Task, Then | None] = {}

    def start(self, coroutine: Coroutine[Any, Any, Any], then: Then | None = None) -> None:
        """Begin one."""
        task = asyncio.get_running_loop().create_task(coroutine, name=self._name)
        self.running[task] = then
        task.add_done_callback(self._ended)

    def cancel(self, *, closing: bool) -> None:
        """Cancel them; those that close connections, which have no sequel, only if asked for."""
        for task, then in self.running.items():
            if closing or then is not None:
                task.cancel()

    def _ended(self, task: Task) -> None:
        then = self.running.pop(task)
        if then is not None:
            then(task)
        self._after()


class Dialing:
    """Gives each new connection to ``admit``. An error that is not retried goes to all who wait."""

    def __init__(
        self, connector: Connector, books: Books, line: Line, tasks: Tasks, admit: Callable[[Connection, float], None]
    ) -> None:
        self._connector = connector
        self._books = books
        self._line = line
        self._tasks = tasks
        self._admit = admit
        self._dialer = connector.unlimited(stop=self._unwanted)
        self._patient = connector.unlimited(also=STARTING, stop=self._unwanted)
        self._expecting: dict[asyncio.Future[Exception | None], int] = {}
        self._given_up = 0
        """Dials that were told so and have yet to end."""
        self._again: asyncio.TimerHandle | None = None
        self._schedule = Schedule(connector.policy, _SOON)
        self._urged = connector.record.urged
        self._resting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rests_until = math.inf
        self._unused: NetworkError | None = None
        self._closed = False

    def fill(self) -> None:
        """Dial as much as those in line, those who expect connections, and ``min_size`` call for."""
        if self._closed:
            return
        if self._urged != self._connector.record.urged:
            # `Connector.retry_now` has ended all pauses.
            self._urged = self._connector.record.urged
            self._schedule.resume()
        failing = self._connector.circuit.failures > 0
        due = self._books.dials_due(self._in_line, self._least, failing=failing)
        now = asyncio.get_running_loop().time()
        if due > 0 and now < self._schedule.resume_at:
            self._rest()
            return
        # Whoever expects a service to come up waits for one that is starting, too.
        dialer = self._patient if self._expecting else self._dialer
        for _ in range(due):
            self._books.dial_begins(now)
            self._tasks.start(dialer.connect(wait=True), self._dialed)

    # -- Pauses --------------------------------------------------------------------------------------------------

    def wasted(self, made: float, error: NetworkError) -> None:
        """A connection that was made then is dead, or not fit to be lent, and nobody has ever used it.

        If that was before long it came to nothing, like a failed dial, and the next ones wait: a peer that hangs up, or
        speaks where nobody listens, would else be dialed as fast as the loop can.
        """
        loop, schedule = asyncio.get_running_loop(), self._schedule
        now = loop.time()
        if now > schedule.resume_at + _SOON:
            schedule.failures = 0
        self._unused = error
        try:
            schedule.lost(error, made, now)
        except Exception as exc:  # noqa: BLE001  (out of the policy's wait; nobody is there to raise it in)
            schedule.resume_at = now + _DIAL_AGAIN
            wait = self._connector.policy.wait
            loop.call_exception_handler({"message": f"{wait!r} raised", "exception": exc})

    def trouble(self, now: float) -> NetworkError | None:
        """What became of the last connection, if there is a pause because nobody could use it, or was just now."""
        return self._unused if now <= self._schedule.resume_at + _SOON else None

    def resume(self) -> None:
        """The pause is over, whenever it was to be."""
        self._schedule.resume()
        self._wake()

    def _rest(self) -> None:
        """Look again when the pause is over, or is ended. A timer and a future, and no task."""
        until = self._schedule.resume_at
        if until >= self._rests_until:
            return
        self._wake()
        loop = asyncio.get_running_loop()
        resting = self._resting = loop.create_future()
        resting.add_done_callback(self._rested)
        self._connector.record.resting[resting] = None
        self._rests_until = until
        self._timer = loop.call_at(until, self._wake)

    def _wake(self) -> None:
        resting, self._resting, self._rests_until = self._resting, None, math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if resting is not None:
            self._connector.record.resting.pop(resting, None)
            if not resting.done():
                resting.set_result(None)

    def _rested(self, resting: asyncio.Future[None]) -> None:
        if resting is self._resting:
            self._wake()
        self.fill()

    async def expect(self, count: int, deadline: float) -> bool:
        """Wait until so many connections are open: whether they were in time. Raises what is not retried."""
        expecting: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._expecting[expecting] = count
        self.fill()
        try:
            if not await wait_until(expecting, deadline):
                return False
        finally:
            self._expecting.pop(expecting, None)
        if (error := expecting.result()) is not None:
            raise error
        return True

    def close(self, error: Callable[[], Exception]) -> None:
        """Dial no more. Each who waits gets an error."""
        self._closed = True
        self._wake()
        if self._again is not None:
            self._again.cancel()
        self._turn_away(error)

    @property
    def _least(self) -> int:
        return max(self._expecting.values()) if self._expecting else 0

    def _unwanted(self, _state: RetryCallState) -> bool:
        """Asked after each failed attempt: whether more dials are under way than anybody wants."""
        unwanted = self._books.dials_due(self._in_line, self._least) + self._given_up < 0
        self._given_up += unwanted
        return unwanted

    @property
    def _in_line(self) -> int:
        """Callers whom a dial could serve. Not those who have gone: a dial for them would be given up at its first
        failure, and begun again at once.
        """
        return self._line.waiting_of(self._books.limits.max_size)

    def _dialed(self, task: Task) -> None:
        now = asyncio.get_running_loop().time()
        self._books.dial_ends(now)
        error = _error(task)
        if getattr(error, "stop_reason", None) == "stop":
            self._given_up -= 1
        if error is not None or task.cancelled():
            if not self._closed:
                self._failed(error)
        elif self._closed:
            task.result().abort()
        else:
            self._admit(task.result(), now)
            for expecting, count in self._expecting.items():
                if count <= self._books.open and not expecting.done():
                    expecting.set_result(None)
            self.fill()

    def _failed(self, error: Exception | None) -> None:
        """For good, or because nobody wanted it any more, or because somebody cancelled the task."""
        if error is not None and getattr(error, "stop_reason", None) != "stop":
            self._turn_away(functools.partial(_copy, error))
        if self._in_line or self._expecting:
            # They came when it had been decided already.
            self.fill()
        elif self._books.dials_due(0) and self._again is None:
            self._again = asyncio.get_running_loop().call_later(_DIAL_AGAIN, self._dial_again)

    def _dial_again(self) -> None:
        self._again = None
        self.fill()

    def _turn_away(self, error: Callable[[], Exception]) -> None:
        self._line.turn_away(error)
        for expecting in self._expecting:
            if not expecting.done():
                expecting.set_result(error())
        self._expecting.clear()


def _error(task: Task) -> Exception | None:
    """What a dial has met; ``None`` also where somebody has cancelled its task."""
    if task.cancelled():
        return None if task.cancelling() else foreign(asyncio.CancelledError())
    error = task.exception()
    return None if error is None else foreign(error)


def _copy(error: Exception) -> Exception:
    """One for each who waits: an error that is raised twice collects the frames of both."""
    if not isinstance(error, NetworkError):
        return error
    copy = error.replace()
    copy.__cause__ = error.__cause__
    return copy
