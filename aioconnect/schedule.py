"""When who keeps connections may dial again: the policy's waits, at the number of dials that came to nothing."""

from __future__ import annotations

import math

from aioconnect.breaker import Circuit
from aioconnect.retrying import Rules, pause_after, state_after

__all__ = ("Schedule",)

_AT_THE_CAP = 64
"""The attempt at which every wait that has a cap is at its cap."""

_WITHOUT_CAP = 3600.0
"""Seconds to wait at that attempt at most, for there are waits without a cap."""

_LEAST_STABLE = 0.1
"""Seconds that a connection has to live for, whatever ``stable_after`` says: else there might be no pause at all."""


class Schedule:
    """Counts what came to nothing in a row, and says when to try again. All times are the loop's.

    A connection that did not live for ``stable_after`` seconds came to nothing, too: a server that accepts and hangs
    up is met with a growing pause. One that did starts the count anew, and is followed by the next at once. Neither if
    it was made before the last failure: those that die together are one failure, and an old one says nothing of today.
    """

    __slots__ = ("_began", "_failed_at", "_pause", "_rules", "_slept", "_stable_after", "failures", "resume_at")

    def __init__(self, rules: Rules, stable_after: float) -> None:
        self._rules = rules
        self._stable_after = max(stable_after, _LEAST_STABLE)
        self._began = self._pause = self._slept = 0.0
        self._failed_at = -math.inf
        self.failures = 0
        self.resume_at = -math.inf

    def failed(
        self, error: Exception | None, now: float, circuit: Circuit | None = None, *, permanent: bool = False
    ) -> None:
        """An attempt has failed, or a connection was lost too soon. A permanent error is met with the capped wait.

        ``circuit``: that of the endpoint, for who does not leave it to the dial.
        """
        if not self.failures:
            self._began, self._pause, self._slept = now, 0.0, 0.0
        self.failures += 1
        self._failed_at = now
        if permanent:
            self._pause = min(self._drawn(error, now, max(self.failures, _AT_THE_CAP)), _WITHOUT_CAP)
        else:
            self._pause = self._drawn(error, now, self.failures)
        self._slept += self._pause
        self.resume_at = now + self._pause
        if circuit is not None and circuit.retry_at is not None:
            # One schedule for an endpoint: ours counts only where it has seen more than the others.
            own = self.resume_at if self.failures > circuit.failures else -math.inf
            self.resume_at = max(own, circuit.retry_at)

    def lost(self, error: Exception | None, made: float, now: float, circuit: Circuit | None = None) -> None:
        """A connection that was made then has ended, and the next one is wanted."""
        self.left(made, now)
        if self._failed_at <= made and now - made < self._stable_after:
            self.failed(error, now, circuit)

    def left(self, made: float, now: float) -> None:
        """A connection that was made then has ended because nobody wants it any more."""
        if self._failed_at <= made and now - made >= self._stable_after:
            self.failures = 0
            self.resume_at = -math.inf

    def resume(self) -> None:
        """The pause is over, whenever it was to be."""
        self.resume_at = -math.inf

    def _drawn(self, error: Exception | None, now: float, attempt: int) -> float:
        """What the policy's wait says after this attempt."""
        state = state_after(error or ConnectionError("lost"), attempt, self._began, now, self._pause)
        state.idle_for = self._slept
        return pause_after(self._rules, state)
