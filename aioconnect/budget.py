"""The retry budget: own retries as a share of traffic.

Retries help while few of the calls need one. When all do, they multiply the load on whatever is down, by the number
of attempts. So each first try deposits a part of a token, and each retry takes a whole one (M. Brooker, "Fixing
retries with token buckets and circuit breakers"; Finagle's RetryBudget). Connects are rare, and a share of little is
nothing: hence the floor. Decisions only: time is passed in.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from aioconnect.validation import Problems, check_number
from aioconnect.values import Value

__all__ = ("RetryBudget", "Tokens", "WhenEmpty")

WhenEmpty = Literal["wait", "fail"]


class RetryBudget(Value):
    """The settings of a retry budget; each `Connector` has `Tokens` of its own, unless it shares another's.

    ``ratio``: retries that each first try pays for. ``floor``: retries a second that there always are. ``burst``:
    retries that may be saved up. ``when_empty``: what a call does that has to retry without a token: ``"wait"`` for
    one, within its time limit, or ``"fail"``, with the ``stop_reason`` ``"budget"``.

    First tries are never charged, nor are outcomes shared with others: while the circuit breaker is open its single
    probe is the bound. A retry that succeeds gives its token back, and so does one that is cancelled or never made.

    Raises `ConfigError` for what is negative, or lets no retry through at all.

    >>> RetryBudget(ratio=0.1)
    RetryBudget(ratio=0.1, floor=1.0, burst=10.0, when_empty='wait')
    """

    __slots__ = ("ratio", "floor", "burst", "when_empty")

    ratio: float
    floor: float
    burst: float
    when_empty: WhenEmpty

    def __init__(
        self, ratio: float = 0.2, floor: float = 1.0, burst: float = 10.0, when_empty: WhenEmpty = "wait"
    ) -> None:
        problems = Problems()
        ratio = check_number(problems, "ratio", ratio, 0, 1)
        floor = check_number(problems, "floor", floor, 0)
        burst = check_number(problems, "burst", burst, 1)
        if when_empty not in get_args(WhenEmpty):
            problems.add("when_empty", when_empty, f"must be one of {', '.join(get_args(WhenEmpty))}")
        if not problems.found and ratio == floor == 0:
            problems.add("floor", floor, "must be more than 0 where ratio is 0")
        problems.raise_any()
        self._freeze(ratio=ratio, floor=floor, burst=burst, when_empty=when_empty)

    def explain(self) -> str:
        """What these settings amount to, for people.

        >>> RetryBudget().explain()
        'retries are 20 % of the calls and 1 a second, up to 10 at once; waits for more'
        """
        kinds = [f"{100 * self.ratio:.3g} % of the calls"] if self.ratio else []
        kinds += [f"{self.floor:g} a second"] if self.floor else []
        empty = "waits for more" if self.when_empty == "wait" else "gives up beyond"
        return f"retries are {' and '.join(kinds)}, up to {self.burst:g} at once; {empty}"


class Tokens:
    """What is left of a retry budget. It begins full."""

    __slots__ = ("_at", "_left", "budget")

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget
        self._left = budget.burst
        self._at: float | None = None

    def left(self, now: float) -> float:
        """How many retries could be made now."""
        if self._at is None:
            self._at = now
        elif now > self._at:
            self._left = min(self.budget.burst, self._left + self.budget.floor * (now - self._at))
            self._at = now
        return self._left

    def deposit(self) -> None:
        """A first try."""
        self._left = min(self.budget.burst, self._left + self.budget.ratio)

    def take(self, now: float) -> bool:
        """Pay for a retry, if there is a token."""
        # Time adds up to a token in steps that are no binary fractions.
        if self.left(now) < 1 - 1e-9:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """A retry that was paid for has succeeded, or was not made after all."""
        self._left = min(self.budget.burst, self._left + 1)

    def due(self, now: float) -> float:
        """The loop time at which the floor alone has made up for the next token; infinite without a floor."""
        missing = 1 - self.left(now)
        if missing <= 0:
            return now
        return now + missing / self.budget.floor if self.budget.floor else math.inf
