"""The model behind "Exponential Backoff And Jitter" (M. Brooker, AWS Architecture Blog, 2015).

So many clients want to write the same row at once: each reads its version, writes with it, and starts again after a
wait if another has written meanwhile (optimistic concurrency control). It models contention, not an outage: there is
no server to come back. As in aws-samples/aws-arch-backoff-simulator each hop takes ``abs(N(10, 2))`` ms.

The waits are the shipped ones. The article's parameters in terms of `Backoff`: base 5 ms and ``2 ** n`` for n from 1
are ``Backoff(initial=0.010, maximum=2.0)``; its "decorrelated" begins at the base, ``initial=0.005``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from tenacity import RetryCallState

from aioconnect.backoff import Backoff
from aioconnect.policy import Policy
from aioconnect.retrying import pause_after, state_after
from aioconnect.simulation.waits import seeded
from aioconnect.validation import Problems, check_integer

__all__ = ("Contention", "contend")

_HOP, _DEVIATION = 0.010, 0.002

_LOST = RuntimeError("another has written meanwhile")
"""What a wait is told; it is never raised."""


class Contention(NamedTuple):
    """The means of all trials."""

    seconds: float
    """Until the last client had written."""
    calls: float
    """Writes, lost ones included."""


def contend(
    wait: Callable[[RetryCallState], float] = Backoff(0.010, 2.0), clients: int = 100, trials: int = 100, seed: int = 1
) -> Contention:
    """How long so many clients take to write one row each in turn, and how many writes that takes.

    Raises `ConfigError` for what is no wait, and for numbers below 1.

    >>> contend(clients=1, trials=1).calls
    1.0
    """
    problems = Problems()
    clients = check_integer(problems, "clients", clients, 1)
    trials = check_integer(problems, "trials", trials, 1)
    seed = check_integer(problems, "seed", seed, 0)
    policy = problems.unless_wrong(lambda: Policy(wait=wait))
    problems.raise_any()
    chance = random.Random(f"aioconnect.contend {seed}")
    rules = seeded(policy or Policy(), chance.uniform)
    each = [_trial(rules, clients, chance) for _ in range(trials)]
    return Contention(sum(took for took, _ in each) / trials, sum(calls for _, calls in each) / trials)


def _trial(rules: Policy, clients: int, chance: random.Random) -> tuple[float, int]:
    """One row: when the last client had written, and how many writes there were."""
    row, calls, now = 0, 0, 0.0
    read, lost, pauses = [0] * clients, [0] * clients, [0.0] * clients
    # When, who, and what happens then: at the row, or at the client.
    events: list[tuple[float, int, str]] = []
    for client in range(clients):
        heappush(events, (_hop(chance), client, "read"))
    while events:
        now, client, what = heappop(events)
        if what == "read":
            read[client] = row
            heappush(events, (now + _hop(chance) + _hop(chance), client, "write"))
        elif what == "write":
            calls += 1
            won = read[client] == row
            row += won
            heappush(events, (now + _hop(chance), client, "won" if won else "lost"))
        elif what == "lost":
            lost[client] += 1
            state = state_after(_LOST, lost[client], 0.0, now, pauses[client])
            pauses[client] = pause_after(rules, state)
            heappush(events, (now + pauses[client] + _hop(chance), client, "read"))
    return now, calls


def _hop(chance: random.Random) -> float:
    return abs(chance.gauss(_HOP, _DEVIATION))
