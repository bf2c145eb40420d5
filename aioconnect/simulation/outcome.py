"""What a simulation finds: counts that add up, so that the parts of a fleet make the whole, to the last client."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from aioconnect.simulation.scenario import BIN, Scenario

__all__ = ("Outcome", "merged")

K = TypeVar("K")

_SECOND = round(1 / BIN)


class Outcome(NamedTuple):
    """What one policy did to the server."""

    name: str
    scenario: Scenario
    attempts: int
    """Connects that were begun."""
    arrivals: Mapping[int, int]
    """How many of them arrived, by tenths of a second after the return; before it they are negative."""
    times: array[float]
    """For each connection the seconds from the return to it, in order."""
    by_client: Mapping[int, int]
    """How many clients made so many attempts."""
    gave_up: Mapping[str, int]
    """Calls that ended in an error, by their ``stop_reason``."""
    overflowed: int
    """SYNs for which the accept queue had no room."""
    wasted: int
    """Connections that were accepted although the client had left."""
    digest: str
    """A hash of the times of all attempts and connections: equal for equal stories."""

    @property
    def connected(self) -> int:
        """How many connections there were in the end."""
        return len(self.times)

    @property
    def attempts_per_client(self) -> float:
        """The mean."""
        return self.attempts / self.scenario.clients

    @property
    def most_attempts(self) -> int:
        """Of one client."""
        return max(self.by_client, default=0)

    @property
    def peak_down(self) -> int:
        """The most attempts in a second before the return."""
        return max((rate for at, rate in self.rates() if at <= -_SECOND), default=0)

    @property
    def peak_per_second(self) -> int:
        """The most attempts in a second after the return."""
        return max((rate for at, rate in self.rates() if at >= 0), default=0)

    @property
    def peak_per_100ms(self) -> int:
        """The most attempts in a tenth of a second after the return."""
        return max((count for at, count in self.arrivals.items() if at >= 0), default=0)

    def rates(self) -> Iterator[tuple[int, int]]:
        """By the tenth at which it begins: the attempts within one second."""
        counts = self.arrivals
        for first in range(min(counts, default=0) - _SECOND + 1, max(counts, default=-1) + 1):
            yield first, sum(counts.get(first + step, 0) for step in range(_SECOND))

    def until(self, share: float) -> float | None:
        """Seconds after the return until that share of the connections was there; ``None`` if they never were."""
        number = math.ceil(share * self.scenario.connections)
        return self.times[number - 1] if 0 < number <= len(self.times) else None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, without the single times and clients."""
        return {
            "policy": self.name,
            "attempts": self.attempts,
            "attempts_per_client": round(self.attempts_per_client, 3),
            "most_attempts": self.most_attempts,
            "peak_per_second_down": self.peak_down,
            "peak_per_second": self.peak_per_second,
            "peak_per_100ms": self.peak_per_100ms,
            "connected": self.connected,
            "t50": _rounded(self.until(0.5)),
            "t99": _rounded(self.until(0.99)),
            "t100": _rounded(self.until(1.0)),
            "gave_up": dict(sorted(self.gave_up.items())),
            "overflowed": self.overflowed,
            "wasted": self.wasted,
            "arrivals": [[round(at * BIN, 1), count] for at, count in sorted(self.arrivals.items())],
            "digest": self.digest,
        }

    def __repr__(self) -> str:
        return (
            f"<Outcome {self.name!r} attempts={self.attempts} peak_per_second={self.peak_per_second} "
            f"connected={self.connected}/{self.scenario.connections}>"
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def merged(scenario: Scenario, parts: Sequence[Outcome]) -> Outcome:
    """The whole of a fleet that was simulated in parts."""
    if len(parts) == 1:
        return parts[0]
    digest = hashlib.sha256("".join(each.digest for each in parts).encode())
    return Outcome(
        name=parts[0].name,
        scenario=scenario,
        attempts=sum(each.attempts for each in parts),
        arrivals=_added([each.arrivals for each in parts]),
        times=array("d", sorted(time for each in parts for time in each.times)),
        by_client=_added([each.by_client for each in parts]),
        gave_up=_added([each.gave_up for each in parts]),
        overflowed=sum(each.overflowed for each in parts),
        wasted=sum(each.wasted for each in parts),
        digest=digest.hexdigest(),
    )


def _added(counts: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: dict[K, int] = {}
    for each in counts:
        for key, count in each.items():
            total[key] = total.get(key, 0) + count
    return total
