"""The books of a pool: which connections it has, who holds them, what is due and how many are wanted.

Decisions only. Every connection is in one place at a time, so that at every step

    idle + in use + connecting == size <= max_size
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Literal, NamedTuple, Protocol

from aioconnect.connection import Connection
from aioconnect.errors import Holder

__all__ = ("Books", "Borrower", "Ended", "Entry", "Limits")

Ended = Literal["idle", "lifetime", "drained", "closed", "stale", "lost", "suspect", "error", "check", "reset"]
"""Why a pool has parted from a connection."""


class Limits(NamedTuple):
    """What the books keep to. Times are seconds, infinite where there is no limit."""

    min_size: int
    max_size: int
    max_connecting: int
    max_idle: float
    max_lifetime: float
    uniform: Callable[[float, float], float]


class _Task(Protocol):
    def get_name(self) -> str: ...


class Borrower:
    """Who asks for a connection, where in the code, and for how long."""

    __slots__ = ("began", "code", "deadline", "dialing", "entry", "instruction", "task", "timeout")

    code: CodeType
    instruction: int
    task: _Task | None
    timeout: float | None
    """Seconds, if it is not the policy's."""
    entry: Entry | Literal["asking"] | None
    """What it has, or had; ``None`` before it asks."""
    # Of one who was not served at once.
    began: float
    deadline: float
    dialing: float

    @property
    def place(self) -> str:
        """``file:line``. The line is looked up only now: that would take a good part of the time of a lease."""
        lines = (line for start, end, line in self.code.co_lines() if start <= self.instruction < end)
        return f"{self.code.co_filename}:{next(lines, None) or self.code.co_firstlineno}"


class Entry:
    """A connection of the pool."""

    __slots__ = ("borrower", "connection", "doom", "expires", "made", "since", "unused")

    def __init__(self, connection: Connection, made: float, expires: float) -> None:
        self.connection = connection
        self.made = made
        self.unused = True
        """Whether it was never lent."""
        self.expires = expires
        self.since = 0.0
        """When it went idle, or was lent."""
        self.borrower: Borrower | None = None
        self.doom: Ended | None = None
        """Why it will not be kept when it comes back."""

    def condemn(self, reason: Ended) -> None:
        """It will not be kept when it comes back."""
        self.doom = self.doom or reason
        self.expires = -math.inf


class Books:
    """What a pool has, and has had. Times are the loop's, given as ``now``."""

    __slots__ = (
        "_dialing_since",
        "closed",
        "connecting",
        "created",
        "dialed",
        "entries",
        "idle",
        "lent_at_once",
        "limits",
        "shed",
        "timeouts",
        "wait_time",
        "waited",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.lent_at_once = self.created = self.waited = self.timeouts = self.shed = 0
        self.wait_time = 0.0
        self.closed: dict[Ended, int] = {}
        self.entries: dict[Connection, Entry] = {}
        self.forget()

    def forget(self) -> None:
        """Begin anew, on another loop; what has been counted stays."""
        for entry in self.entries.values():
            # Whoever has it will find that the lease is over.
            entry.borrower = None
        self.entries.clear()
        # The one used last is on the right and is lent next, so that those beyond need grow old on the left.
        self.idle: deque[Entry] = deque()
        self.connecting = 0
        self.dialed = self._dialing_since = 0.0

    @property
    def acquired(self) -> int:
        """Connections lent, at once and from the line."""
        return self.lent_at_once + self.waited

    @property
    def open(self) -> int:
        """Connections there are."""
        return len(self.entries)

    @property
    def in_use(self) -> int:
        """Those that are not idle: lent, or on the way back through a ``reset`` hook."""
        return len(self.entries) - len(self.idle)

    @property
    def size(self) -> int:
        """Connections there are, and those that are being made."""
        return len(self.entries) + self.connecting

    @property
    def room(self) -> int:
        """How many more could be in use."""
        return self.limits.max_size - self.in_use

    # -- Dials ---------------------------------------------------------------------------------------------------

    def dials_due(self, waiting: int, least: int = 0, *, failing: bool = False) -> int:
        """How many dials to begin for so many callers in line; negative if more are under way than anybody wants.

        ``least``: connections that have to be there for the moment, as with ``min_size``. ``failing``: the last dial
        was no good, so one at a time will do.
        """
        limits, there = self.limits, len(self.entries)
        wanted = min(max(waiting, limits.min_size - there, least - there), limits.max_size - there)
        if self.connecting > wanted:
            return wanted - self.connecting
        return max(0, min(wanted, 1 if failing else limits.max_connecting) - self.connecting)

    def dial_begins(self, now: float) -> None:
        """A slot is taken."""
        if not self.connecting:
            self._dialing_since = now
        self.connecting += 1

    def dial_ends(self, now: float) -> None:
        """The slot is free; a connection that came of it is still to be admitted."""
        self.connecting -= 1
        if not self.connecting:
            self.dialed += now - self._dialing_since

    def dialing(self, now: float) -> float:
        """Seconds, up to now, in which some dial was under way."""
        return self.dialed + (now - self._dialing_since if self.connecting else 0.0)

    # -- The life of a connection --------------------------------------------------------------------------------

    def admit(self, connection: Connection, now: float) -> Entry:
        """A new connection, in use at first. Its lifetime is cut by up to a tenth, so that not all end at once."""
        self.created += 1
        lifetime = self.limits.max_lifetime
        if lifetime < math.inf:
            lifetime -= self.limits.uniform(0, lifetime / 10)
        entry = self.entries[connection] = Entry(connection, now, now + lifetime)
        return entry

    def lend(self, entry: Entry, borrower: Borrower, now: float) -> None:
        """Lend it to this borrower; a former `mark_clean` is taken back."""
        borrower.entry = entry
        entry.borrower = borrower
        entry.since = now
        entry.unused = entry.connection.is_clean = False
        self.lent_at_once += 1

    def part(self, entry: Entry, reason: Ended) -> None:
        """It is none of the pool's any more; it was not idle, or has been taken from there."""
        del self.entries[entry.connection]
        self.closed[reason] = self.closed.get(reason, 0) + 1

    def condemn(self, reason: Ended) -> None:
        """None of those in use will be kept when it comes back."""
        idle = set(self.idle)
        for entry in self.entries.values():
            if entry not in idle:
                entry.condemn(reason)

    # -- What is due ---------------------------------------------------------------------------------------------

    def overdue(self, now: float) -> Iterator[tuple[Entry, Ended]]:
        """Take out the idle ones whose lifetime is over, and beyond ``min_size`` those that were idle for long."""
        idle = self.idle
        for entry in [entry for entry in idle if entry.expires <= now]:
            idle.remove(entry)
            yield entry, "lifetime"
        while idle and self.size > self.limits.min_size and idle[0].since + self.limits.max_idle <= now:
            yield idle.popleft(), "idle"

    def shrinks(self, now: float) -> float:
        """When one that goes idle now would be idle for too long."""
        return now + self.limits.max_idle if self.size > self.limits.min_size else math.inf

    def next_due(self) -> float:
        """When there will be something `overdue`, as things are now."""
        if not self.idle:
            return math.inf
        shrinking = self.idle[0].since + self.limits.max_idle if self.size > self.limits.min_size else math.inf
        return min(shrinking, *(entry.expires for entry in self.idle))

    def holders(self, now: float, asking: _Task | None = None, most: int | None = None) -> tuple[Holder, ...]:
        """Who has the connections, the longest first."""
        idle = set(self.idle)
        in_use = sorted((each for each in self.entries.values() if each not in idle), key=lambda entry: entry.since)
        return tuple(_holder(entry, now, asking) for entry in in_use[:most])


def _holder(entry: Entry, now: float, asking: _Task | None) -> Holder:
    borrower = entry.borrower
    if borrower is None:
        return Holder("the reset hook", "", now - entry.since)
    name = "no task" if borrower.task is None else borrower.task.get_name()
    you = borrower.task is not None and borrower.task is asking
    return Holder(name, borrower.place, now - entry.since, you)
