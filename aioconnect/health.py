"""What is learnt about the addresses of an endpoint, and what order that puts them in. Time is passed in.

RFC 8305 section 4 has a client that keeps state sort by it: addresses it has used before come before others, after
the rules of RFC 6724, which the system's resolver has applied. Without that, a dead IPv6 path costs every dial the
Connection Attempt Delay; with it, one.

Rules. The address that won last comes first among its like, for 10 minutes. One that failed comes last; one that had
been started and had not answered when another won counts as failed. That lasts for 30 seconds, and twice as long
whenever it fails again after that, up to 10 minutes; a win ends it. Among those, one that answered and then did not
serve comes before one that did not answer, and one that has won before comes before one that has not. All of it is
ignored about one time in 50, so that no history lasts for ever: clients converge on what is best now, as the draft of
Happy Eyeballs version 3 demands.

Nothing is ever left out: when all have failed, all are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

__all__ = ("AddressHealth",)

_DEMOTED, _LONGEST_DEMOTED = 30.0, 600.0
_PREFERRED = 600.0
_MOST = 256
"""Addresses to know about; for a new one the oldest is let go."""


class _Placed(Protocol):
    """Something that is at an address; `resolver.AddressInfo` is."""

    @property
    def sockaddr(self) -> Hashable: ...


T = TypeVar("T", bound=_Placed)


class _Record:
    """What is known about one address: when it won and failed last, and for how long that counts."""

    __slots__ = ("answered", "demoted_for", "demoted_until", "failed_at", "won_at")

    def __init__(self) -> None:
        self.won_at = self.failed_at = self.demoted_until = -math.inf
        self.demoted_for = 0.0
        self.answered = False

    @property
    def preferred_until(self) -> float:
        return self.won_at + _PREFERRED if self.won_at > self.failed_at else -math.inf


class AddressHealth:
    """The last winners and recent failures among the addresses of one endpoint.

    ``uniform(low, high)`` is the source of chance, of which `ignored` makes use about once in ``one_in`` times.

    >>> from aioconnect.resolver import AddressInfo
    >>> six, four = (AddressInfo(0, 0, 0, sockaddr) for sockaddr in ("::1", "127.0.0.1"))
    >>> health = AddressHealth(uniform=lambda low, high: high)
    >>> health.won(four.sockaddr, beaten=[six.sockaddr], now=0.0)
    >>> health.demoted([six, four], now=1.0) == [four, six], health.demoted([six, four], now=60.0) == [six, four]
    (True, True)
    """

    __slots__ = ("_due", "_last", "_one_in", "_records", "_uniform", "changes")

    def __init__(self, uniform: Callable[[float, float], float], one_in: int = 50) -> None:
        self._uniform = uniform
        self._one_in = one_in
        self.changes = 0
        """Grows with everything learnt that may change an order."""
        self.reset()

    def reset(self) -> None:
        """Forget everything: the times were those of another clock."""
        self._records: dict[Hashable, _Record] = {}
        self._last: Hashable = None
        self._due = 0
        self.changes += 1

    # -- What happened -------------------------------------------------------------------------------------------

    def won(self, winner: Hashable, beaten: Iterable[Hashable], now: float) -> None:
        """An address was connected to, and those started before it had failed or had not answered yet."""
        record = self._records.get(winner) or self._record(winner)
        record.won_at = now
        if record.demoted_for:
            record.failed_at = record.demoted_until = -math.inf
            record.demoted_for = 0.0
            self.changes += 1
        if winner != self._last:
            self._last = winner
            self.changes += 1
        for place in beaten:
            self.failed(place, now)

    def failed(self, place: Hashable, now: float, *, answered: bool = False) -> None:
        """An address could not be used; ``answered``: it was connected to, but did not serve."""
        record = self._record(place)
        if now >= record.demoted_until:
            # Of dials that fail side by side, one counts.
            record.demoted_for = min(2 * record.demoted_for or _DEMOTED, _LONGEST_DEMOTED)
        record.failed_at = now
        record.demoted_until = now + record.demoted_for
        record.answered = answered
        if place == self._last:
            self._last = None
        self.changes += 1

    def _record(self, place: Hashable) -> _Record:
        record = self._records.get(place)
        if record is None:
            if len(self._records) == _MOST:
                del self._records[next(iter(self._records))]
            record = self._records[place] = _Record()
        return record

    # -- What follows --------------------------------------------------------------------------------------------

    def preferred(self, addresses: Sequence[T], now: float) -> list[T]:
        """The addresses with those that have won lately in front, the last winner first."""

        def rank(address: T) -> tuple[float, bool]:
            record = self._records.get(address.sockaddr)
            if record is None or record.preferred_until <= now:
                return 0.0, True
            return -record.preferred_until, address.sockaddr != self._last

        return sorted(addresses, key=rank)

    def demoted(self, addresses: Sequence[T], now: float) -> list[T]:
        """The addresses with those that have failed lately at the end."""

        def rank(address: T) -> tuple[int, float, float]:
            record = self._records.get(address.sockaddr)
            if record is None or record.demoted_until <= now:
                return 0, 0.0, 0.0
            return 1 if record.answered else 2, -record.won_at, record.demoted_until

        return sorted(addresses, key=rank)

    def steady_until(self, addresses: Iterable[_Placed], now: float) -> float:
        """The time until which these addresses keep their order, if nothing new is learnt."""
        records = filter(None, (self._records.get(address.sockaddr) for address in addresses))
        times = (time for record in records for time in (record.preferred_until, record.demoted_until))
        return min((time for time in times if time > now), default=math.inf)

    def ignored(self) -> bool:
        """Whether this dial should ignore history. Ask only for dials whose order history has changed.

        The number of dials until then is drawn at random, so that clients that started together do not look again
        together. It is drawn once and counted down: cheaper than a random number for each dial.
        """
        if not self._due:
            self._due = max(1, round(self._uniform(0.5 * self._one_in, 1.5 * self._one_in)))
        self._due -= 1
        return not self._due
