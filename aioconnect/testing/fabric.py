"""The ground a simulated network stands on: what is under way, and between which hosts it gets through.

Nothing here iterates over a set or looks at an ``id``, so the same seed gives the same order of events on every
Python. What takes the same time to arrive waits in one queue with one timer, whatever its number.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ("Fabric", "Lane", "Path")

_EARLY = 1e-9
"""Seconds: a loop calls a timer as soon as its clock's resolution allows."""

FIRST_RTO, LAST_RTO = 0.2, 120.0
"""Seconds until TCP sends again what was not acknowledged: Linux's least and most (tcp(7))."""


class Fabric:
    """The loop, the chance, and the events in flight of one network."""

    def __init__(self, seed: int) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.rng = random.Random(seed)
        self.context = contextvars.copy_context()
        self.progress = 0
        """Counts events that have arrived."""
        self._lanes: dict[float, Lane] = {}

    def lane(self, delay: float) -> Lane:
        """The queue of all that takes so many seconds."""
        lane = self._lanes.get(delay)
        if lane is None:
            lane = self._lanes[delay] = Lane(self, delay)
        return lane

    def running(self) -> asyncio.AbstractEventLoop:
        """The loop that this network runs on."""
        if self.loop is None:
            raise RuntimeError("this network has no loop yet: run(main(), network=network), or loop.network = network")
        return self.loop

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """A timer in the network's own context, whoever sets it."""
        return self.running().call_at(when, callback, *args, context=self.context)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """A timer in the network's own context, whoever sets it."""
        loop = self.running()
        return loop.call_at(loop.time() + delay, callback, *args, context=self.context)


class Lane:
    """What arrives after a fixed delay, in order."""

    __slots__ = ("_armed", "_fabric", "delay", "queue")

    def __init__(self, fabric: Fabric, delay: float) -> None:
        self._fabric = fabric
        self._armed = False
        self.delay = delay
        self.queue: deque[tuple[float, Callable[[Any], object], Any]] = deque()

    def put(self, callback: Callable[[Any], object], argument: Any) -> None:
        """Call it after the delay."""
        when = self._fabric.running().time() + self.delay
        self.queue.append((when, callback, argument))
        if not self._armed:
            self._arm(when)

    def _arm(self, when: float) -> None:
        self._armed = True
        if self.delay:
            self._fabric.call_at(when, self._fire)
        else:
            self._fabric.running().call_soon(self._fire, context=self._fabric.context)

    def _fire(self) -> None:
        queue, horizon = self.queue, self._fabric.running().time() + _EARLY
        try:
            # What is put meanwhile waits for the next turn, so that two who answer each other let tasks run between.
            for _ in range(len(queue)):
                if queue[0][0] > horizon:
                    break
                _, callback, argument = queue.popleft()
                self._fabric.progress += 1
                callback(argument)
        finally:
            self._armed = False
            if queue:
                self._arm(queue[0][0])


class Path:
    """One direction between two hosts."""

    __slots__ = ("_fabric", "back", "blocked", "delay", "floor", "jitter", "lane", "loss", "plain", "uneven_until")

    def __init__(self, fabric: Fabric, rtt: float, jitter: float, loss: float) -> None:
        self._fabric = fabric
        self.blocked = False
        self.floor = 0.0
        """Nothing that is sent now arrives before this time, for something sent earlier is still under way."""
        self.uneven_until = 0.0
        """Until when some connection's items are under way that took longer than others: it has to keep them in order,
        and the others do not wait for them."""
        self.back = self
        self.lane = fabric.lane(0.0)
        self.set(rtt, jitter, loss)

    def set(self, rtt: float, jitter: float, loss: float) -> None:
        """The time of a round trip, what chance adds to it at most, and the share that is lost and sent again."""
        if self.lane.queue:
            self.floor = max(self.floor, self.lane.queue[-1][0])
        self.delay, self.jitter, self.loss = rtt / 2, jitter / 2, loss
        self.lane = self._fabric.lane(self.delay)
        self.settle()

    def settle(self) -> None:
        """See whether everything gets through in the same time."""
        loop = self._fabric.loop
        late = loop is not None and max(self.floor, self.uneven_until) > loop.time()
        self.plain = not (self.blocked or self.back.blocked or self.jitter or self.loss or late)

    def duration(self, rto: float = FIRST_RTO) -> float:
        """Seconds for something sent now, with the repetitions that its losses take."""
        rng = self._fabric.rng
        delay = self.delay
        if self.jitter:
            delay += rng.random() * self.jitter
        if self.loss:
            rto = max(rto, 4 * self.delay)
            while rng.random() < self.loss:
                delay += rto
                rto = min(2 * rto, LAST_RTO)
        return delay
