"""At most so many at once; the others wait in line."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from aioconnect.errors import ConnectTimeout
from aioconnect.limits import wait_until

__all__ = ("Gate",)

_ADMITTED = object()


class Gate:
    """At most ``size`` inside; others wait in line, and each slot goes straight to the first of them."""

    __slots__ = ("inside", "line", "size")

    def __init__(self, size: float) -> None:
        self.size = size
        self.inside = 0
        self.line: deque[asyncio.Future[Any]] = deque()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self.line)

    def enter(self) -> bool:
        """Go in if there is room and nobody is waiting."""
        if self.inside >= self.size or self.line:
            return False
        self.inside += 1
        return True

    async def admitted(self, deadline: float) -> None:
        """Wait in line until a loop time. Raises `ConnectTimeout`, phase ``"wait"``."""
        place: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.line.append(place)
        try:
            if await wait_until(place, deadline):
                return
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result() is _ADMITTED:
                # The slot was on its way to us.
                self.leave()
            raise
        finally:
            if place in self.line:
                self.line.remove(place)
        raise ConnectTimeout(None, "too many connects under way", phase="wait", source="call")

    def leave(self) -> None:
        """Give the slot to the first in line who still waits."""
        while self.line:
            place = self.line.popleft()
            if not place.done():
                place.set_result(_ADMITTED)
                return
        self.inside -= 1
