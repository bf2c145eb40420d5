"""Which address to try when: the race of RFC 8305 section 5, without I/O. Time is passed in.

Rules. The first address starts at once, each further one a delay after the one before it, or at once when an attempt
fails. A delay only ever starts the next attempt; it never ends one, since slow is not dead. At most a few attempts
are under way; when all of those are silent, the next one waits until one fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ("AT_ONCE", "Race", "interleaved")

T = TypeVar("T")

AT_ONCE = 6
"""Attempts of one race under way at once, as in curl: enough for any real name, bounded for a strange one."""


class Race:
    """The state of one race over ``count`` addresses.

    ``delay``: the Connection Attempt Delay in seconds; ``None`` tries one address at a time.

    >>> race = Race(3, delay=0.25)
    >>> race.start(0.0), race.start(0.0), race.due
    (0, None, 0.25)
    >>> race.fail(0.1)
    >>> race.start(0.1), race.due
    (1, 0.35)
    """

    __slots__ = ("at_once", "count", "delay", "due", "flying", "started")

    def __init__(self, count: int, delay: float | None, at_once: int = AT_ONCE) -> None:
        self.count = count
        self.delay = math.inf if delay is None else delay
        self.at_once = at_once
        self.started = 0
        self.flying = 0
        self.due = -math.inf

    def start(self, now: float) -> int | None:
        """The number of the address to start now, counted as under way; ``None`` if none is due."""
        if now < self.due or self.started == self.count or self.flying == self.at_once:
            return None
        number = self.started
        self.started += 1
        self.flying += 1
        self.due = now + self.delay
        return number

    def fail(self, now: float) -> None:
        """An attempt has failed: the next address is due at once."""
        self.flying -= 1
        self.due = now

    @property
    def lost(self) -> bool:
        """Whether every address has failed."""
        return self.flying == 0 and self.started == self.count

    @property
    def next_start(self) -> float | None:
        """When to ask `start` again if nothing fails before; ``None`` if there is nothing to wait for."""
        if self.started == self.count or self.flying == self.at_once or self.due == math.inf:
            return None
        return self.due


def interleaved(items: Iterable[T], family: Callable[[T], int], first: int = 1) -> list[T]:
    """Addresses with the families taking turns, beginning with the family of the first one (RFC 8305 section 4).

    ``first`` is the First Address Family Count: how many of that family come before the first of another.

    >>> interleaved(["6a", "6b", "6c", "4a", "4b"], lambda address: int(address[0]))
    ['6a', '4a', '6b', '4b', '6c']
    """
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(family(item), []).append(item)
    if not groups:
        return []
    leading, *others = groups.values()
    queues = [leading[first - 1 :], *others]
    turns = range(max(map(len, queues)))
    return leading[: first - 1] + [queue[turn] for turn in turns for queue in queues if turn < len(queue)]
