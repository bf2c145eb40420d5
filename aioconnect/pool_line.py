"""Callers in line: first come, first served, each through a future of its own."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from aioconnect.limits import TICK
from aioconnect.pool_books import Borrower, Entry

__all__ = ("Answer", "Line")

Answer = Entry | Exception
"""What a place is for, or the error to raise. As a result too, of which nobody complains if it is not taken because its
caller was cancelled at that moment."""


class Line:
    """There is one timer, set to the first deadline of all, so whoever is served before costs it nothing.

    Who was cancelled stays where he is and is passed over; when half of them are such, they are cleared away.
    """

    __slots__ = ("_gone", "_refusal", "_rings_at", "_timer", "places")

    def __init__(self, refusal: Callable[[Borrower, int], Exception]) -> None:
        self.places: deque[tuple[asyncio.Future[Answer], Borrower]] = deque()
        self._refusal = refusal
        self._gone = 0
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    @property
    def waiting(self) -> int:
        """How many there are."""
        return sum(not place.done() for place, _ in self.places)

    def waiting_of(self, most: int) -> int:
        """How many there are, counted no further than to ``most``: for who asks often, in a line that may be long."""
        found = 0
        for place, _ in self.places:
            if found >= most:
                break
            found += not place.done()
        return found

    def join(self, borrower: Borrower, loop: asyncio.AbstractEventLoop, *, first: bool) -> asyncio.Future[Answer]:
        """A place at the end of the line, or at its head."""
        place: asyncio.Future[Answer] = loop.create_future()
        if first:
            self.places.appendleft((place, borrower))
        else:
            self.places.append((place, borrower))
        if borrower.deadline < self._rings_at:
            self._ring_at(borrower.deadline, loop)
        return place

    def next(self) -> tuple[asyncio.Future[Answer], Borrower] | None:
        """Take out the first who still waits."""
        places = self.places
        while places:
            found = places.popleft()
            if not found[0].done():
                return found
        self._gone = 0
        return None

    def leave(self, place: asyncio.Future[Answer]) -> None:
        """Somebody goes away unserved."""
        place.cancel()
        self._gone += 1
        if self._gone * 2 > len(self.places):
            self._clear_away()

    def turn_away(self, error: Callable[[], Exception]) -> None:
        """All of them, each with an error of its own."""
        while (found := self.next()) is not None:
            found[0].set_result(error())

    def close(self) -> None:
        """Nobody will join any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _clear_away(self) -> None:
        self._gone = 0
        self.places = deque(each for each in self.places if not each[0].done())

    def _ring_at(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = deadline
        self._timer = loop.call_at(deadline, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._rings_at = None, math.inf
        now = loop.time() + TICK
        late = [each for each in self.places if each[1].deadline <= now and not each[0].done()]
        waiting = self.waiting
        for place, borrower in late:
            place.set_result(self._refusal(borrower, waiting))
        self._clear_away()
        deadline = min((borrower.deadline for _, borrower in self.places), default=math.inf)
        if deadline < math.inf:
            self._ring_at(deadline, loop)
