"""The circuit breaker of an endpoint: how many dials may be under way, by what the last ones met.

A breaker that only counts failures lets a crowd through before the first of them is known. So there is one window of
dials in flight, whatever the state:

=============  ==============================================================  =======================
state          when                                                            dials in flight
=============  ==============================================================  =======================
``closed``     healthy: the last dial was good, no connection was lost          any number
``closed``     suspect: never connected yet, the last dial failed, or a         ``failures``
               connection was lost to the network
``closed``     recovering: dials succeed again and callers wait                 one more for each success
``open``       after ``failures`` failed dials in a row                         none until ``retry_at``
``half_open``  then                                                             one, the probe
=============  ==============================================================  =======================

There is one schedule: a circuit is open for what the policy's ``wait`` gives for the endpoint's count of failures in
a row. States and names are those of M. Nygard, "Release It!", and M. Fowler, "CircuitBreaker". Decisions only: time is
passed in, and who waits and who dials is the gate's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from aioconnect.errors import CircuitOpen, NetworkError
from aioconnect.validation import Problems, check_integer
from aioconnect.values import Value

__all__ = ("Circuit", "CircuitBreaker", "CircuitState", "WhenOpen")

CircuitState = Literal["closed", "open", "half_open"]
WhenOpen = Literal["wait", "fail"]

Pause = Callable[[int, float], float]
"""Seconds to stay open, for the count of failures in a row and the pause before. What it raises comes out of what asked
for it, and leaves the circuit as it was but for the count."""


class CircuitBreaker(Value):
    """The settings of a circuit breaker; each `Connector` has a `Circuit` of its own.

    ``failures``: failed dials in a row that open it, and dials at once while it is in doubt. ``when_open``: what
    becomes of a call that finds it open: ``"wait"`` has it wait, and share what the probe meets, within its own time
    limit; ``"fail"`` raises `CircuitOpen` at once.

    Raises `ConfigError` for anything else.

    >>> CircuitBreaker(failures=3)
    CircuitBreaker(failures=3, when_open='wait')
    """

    __slots__ = ("failures", "when_open")

    failures: int
    when_open: WhenOpen

    def __init__(self, failures: int = 5, when_open: WhenOpen = "wait") -> None:
        problems = Problems()
        failures = check_integer(problems, "failures", failures, 1)
        if when_open not in get_args(WhenOpen):
            problems.add("when_open", when_open, f"must be one of {', '.join(get_args(WhenOpen))}")
        problems.raise_any()
        self._freeze(failures=failures, when_open=when_open)

    def explain(self) -> str:
        """What these settings amount to, for people.

        >>> CircuitBreaker(when_open="fail").explain()
        'opens after 5 failures in a row: one probe at a time, and calls fail at once'
        """
        row = "a failure" if self.failures == 1 else f"{self.failures} failures in a row"
        calls = "calls wait for it" if self.when_open == "wait" else "calls fail at once"
        return f"opens after {row}: one probe at a time, and {calls}"


class Circuit:
    """The state of one circuit. To be read by anybody, changed by the connector alone.

    ``failures``: failed dials in a row. ``since``, ``retry_at``: the loop times at which it opened and at which the
    next probe is due, ``None`` while closed. ``last_error``: what the last failed dial met, ``None`` while healthy.

    Without a `CircuitBreaker` it keeps count, and never opens.
    """

    __slots__ = (
        "_before",
        "_lease",
        "_lease_until",
        "_pause",
        "_recovered_at",
        "failures",
        "healthy",
        "last_error",
        "limit",
        "retry_at",
        "since",
        "window",
    )

    def __init__(self, breaker: CircuitBreaker | None) -> None:
        self.limit: float = math.inf if breaker is None else breaker.failures
        self.failures = 0
        self.window: float = self.limit
        """How many dials may be under way; infinite while healthy."""
        self.healthy = False
        """Whether there is nothing to be learnt from one more success; what every good dial asks."""
        self.since: float | None = None
        self.retry_at: float | None = None
        self.last_error: NetworkError | None = None
        self._before = 0
        self._recovered_at = -math.inf
        self._pause = 0.0
        self._lease: object | None = None
        self._lease_until = -math.inf

    @property
    def state(self) -> CircuitState:
        """``"closed"``, ``"open"``, or ``"half_open"`` while a probe is under way."""
        if self.since is None:
            return "closed"
        return "open" if self._lease is None else "half_open"

    @property
    def probe_due(self) -> float:
        """The loop time from which a probe may be leased; that of one under way ends at last."""
        return self._lease_until if self._lease is not None or self.retry_at is None else self.retry_at

    def lease(self, now: float, seconds: float) -> object:
        """Open to half-open: the right to dial, given to one caller for so long."""
        self._lease = object()
        self._lease_until = now + seconds
        return self._lease

    def give_back(self, lease: object | None, now: float) -> None:
        """A probe ended without a word on the peer: cancelled, or this host's own fault. The next one is due."""
        if lease is not None and lease is self._lease:
            self._lease = None
            self.retry_at = now

    def succeeded(self, now: float, *, crowded: bool) -> bool:
        """A dial is good. ``crowded``: callers wait. Whether that closed the circuit."""
        if self.failures:
            self._before, self._recovered_at, self.failures = self.failures, now, 0
        self.last_error = None
        closed = self.since is not None
        if closed:
            self.since = self.retry_at = self._lease = None
            self.window = 1
        self.window = self.window + 1 if crowded else math.inf
        self.healthy = not crowded
        return closed

    def failed(self, error: NetworkError, now: float, pause: Pause, lease: object | None = None) -> bool:
        """A dial failed for a reason of the peer's or the network's. Whether that opened the circuit.

        While it is open only the probe counts: others were under way already, and are no news.
        """
        self.last_error = error
        self.healthy = False
        if self.since is not None and (lease is None or lease is not self._lease):
            return False
        self.failures += 1
        self.window = min(self.window, self.limit)
        if self.failures < self.limit:
            return False
        # First what may raise: a wait is anybody's.
        self._pause = self._next_pause(pause)
        opened = self.since is None
        if opened:
            self.since = now
        self.retry_at = now + self._pause
        self.window = 0
        self._lease = None
        return opened

    def _next_pause(self, pause: Pause) -> float:
        if self.failures > self.limit:
            return pause(self.failures, self._pause)
        # At the opening as if it had been kept to from the first failure, for waits that go by the one before.
        previous = 0.0
        for number in range(1, self.failures + 1):
            previous = pause(number, previous)
        return previous

    def hung_up(self, error: NetworkError, now: float, pause: Pause, made: float, stable_after: float) -> bool:
        """A connection made at ``made`` was dropped before it was of any use: the count goes on where it was.

        Unless those made at the recovery have lived for ``stable_after`` seconds, as far as is known. Whether that
        opened the circuit.
        """
        if made <= self._recovered_at + stable_after:
            self.failures = max(self.failures, self._before)
        return self.failed(error, now, pause)

    def doubted(self) -> None:
        """A connection was lost to the network: a few dials at once will tell."""
        if self.since is None:
            self.window = min(self.window, self.limit)
            self.healthy &= self.window == math.inf

    def retry_now(self, now: float) -> None:
        """The next probe is due at once."""
        if self.since is not None and self._lease is None:
            self.retry_at = now

    def refusal(self, now: float) -> CircuitOpen:
        """What a call that is not to wait is told."""
        since = now if self.since is None else self.since
        retry_at = now if self.retry_at is None else self.retry_at
        error = CircuitOpen(since=now - since, retry_in=max(0.0, retry_at - now), address=None)
        error.__cause__ = self.last_error
        return error

    def __repr__(self) -> str:
        return f"<Circuit {self.state} failures={self.failures}>"
