"""Callers in line: first come, first served, each through a future of its own."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from aioconnect.limits import TICK
from aioconnect.pool_books import Borrower, Entry

__all__ = ("Line",)


class Line:
    """There is one timer, set to the first deadline of all, so whoever is served before costs it nothing.

    Who was cancelled stays where he is and is passed over; when about half of them are such, they are cleared away.
    """

    __slots__ = ("_gone", "_refusal", "_timer", "places", "rings_at")

    def __init__(self, refusal: Callable[[Borrower, int], Exception]) -> None:
        self.places: deque[tuple[asyncio.Future[Entry], Borrower]] = deque()
        """To be passed over if done: whoever had it was cancelled, or refused."""
        self._refusal = refusal
        self._gone = 0
        self._timer: asyncio.TimerHandle | None = None
        self.rings_at = math.inf
        """When the timer goes off; who joins with an earlier deadline sets it, with `ring_at`."""

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

    def join_early(self, place: asyncio.Future[Entry], borrower: Borrower) -> None:
        """Stand before those who have come later, while this one saw to something in vain."""
        behind = sum(other.began >= borrower.began for _, other in self.places)
        self.places.insert(len(self.places) - behind, (place, borrower))

    def leave(self, place: asyncio.Future[Entry]) -> None:
        """Somebody goes away unserved."""
        place.cancel()
        self._gone += 1
        if self._gone * 2 > len(self.places):
            self._clear_away()

    def turn_away(self, error: Callable[[], Exception]) -> None:
        """All of them, each with an error of its own."""
        while self.places:
            place, _ = self.places.popleft()
            if not place.done():
                _fail(place, error())

    def close(self) -> None:
        """Nobody will join any more."""
        if self._timer is not None:
            self._timer.cancel()

    def ring_at(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse those who are late by then."""
        if self._timer is not None:
            self._timer.cancel()
        self.rings_at = deadline
        self._timer = loop.call_at(deadline, self._ring, loop)

    def _clear_away(self) -> None:
        self._gone = 0
        self.places = deque(each for each in self.places if not each[0].done())

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self.rings_at = None, math.inf
        now = loop.time() + TICK
        late = [each for each in self.places if each[1].deadline <= now and not each[0].done()]
        waiting = self.waiting
        for place, borrower in late:
            _fail(place, self._refusal(borrower, waiting))
        self._clear_away()
        deadline = min((borrower.deadline for _, borrower in self.places), default=math.inf)
        if deadline < math.inf:
            self.ring_at(deadline, loop)


def _fail(place: asyncio.Future[Entry], error: Exception) -> None:
    place.set_exception(error)
    # Seen: nobody is to complain if it is not taken, because its caller was cancelled at that moment.
    place.exception()
