"""How long to wait between attempts: exponential, capped, and jittered after the cap.

Jitter that is added before the cap is lost at the cap: every client then waits exactly the maximum, and a server
that comes back is met by all of them at once. So the cap bounds the exponential, and jitter draws below it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Literal, get_args

from tenacity import RetryCallState
from tenacity.wait import wait_base

from aioconnect.validation import Problems, check_duration
from aioconnect.values import Value

__all__ = ("Backoff", "Jitter")

Jitter = Literal["full", "equal", "decorrelated", "none"]

_JITTERS: tuple[Jitter, ...] = get_args(Jitter)


class Backoff(Value, wait_base):
    """Capped exponential backoff with jitter; a ``tenacity`` wait, usable wherever tenacity takes one.

    ``initial``, ``maximum``: seconds, or texts such as ``"100ms"``. ``factor``: growth for each attempt.
    ``jitter``, with ``e = min(maximum, initial * factor ** (attempt - 1))``:

    - ``"full"``: uniform in ``[0, e]``; the least work for a server that comes back.
    - ``"equal"``: ``e / 2`` plus uniform in ``[0, e / 2]``; never a very short wait.
    - ``"decorrelated"``: uniform in ``[initial, min(maximum, 3 * previous wait)]``; ``factor`` plays no part. Where
      AWS caps what is drawn, two of three clients wait exactly the maximum in the end.
    - ``"none"``: ``e`` exactly. For tests: clients that failed together come back together.

    ``uniform(low, high)`` replaces the source of randomness. An object holds no state of a call, so one may be
    shared by any number of them.

    Raises `ConfigError` for a negative, infinite or NaN duration, ``maximum < initial``, ``factor < 1`` or an
    unknown jitter.

    >>> backoff = Backoff(initial=0.1, maximum=5.0, jitter="none")
    >>> [backoff.delay(attempt) for attempt in (1, 2, 3, 10)]
    [0.1, 0.2, 0.4, 5.0]
    """

    __slots__ = ("initial", "maximum", "factor", "jitter", "uniform")

    initial: float
    maximum: float
    factor: float
    jitter: Jitter
    uniform: Callable[[float, float], float]

    def __init__(
        self,
        initial: float | str = 0.1,
        maximum: float | str = 5.0,
        factor: float = 2.0,
        jitter: Jitter = "full",
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        problems = Problems()
        least = check_duration(problems, "initial", initial, zero=True)
        most = check_duration(problems, "maximum", maximum, zero=True)
        if not problems.found and most < least:
            problems.add("maximum", maximum, f"must not be below initial, {initial!r}")
        if not _is_factor(factor):
            problems.add("factor", factor, "must be a finite number, at least 1")
        if jitter not in _JITTERS:
            problems.add("jitter", jitter, f"must be one of {', '.join(_JITTERS)}")
        if not callable(uniform):
            problems.add("uniform", uniform, "must be a callable of (low, high)")
        problems.raise_any()
        # Floats overflow, and integers grow: 2 ** attempts takes seconds and megabytes after a day of attempts.
        self._freeze(initial=least, maximum=most, factor=float(factor), jitter=jitter, uniform=uniform)

    def __call__(self, retry_state: RetryCallState) -> float:
        """The wait after the attempt that tenacity's state describes, in seconds."""
        return self.delay(retry_state.attempt_number, retry_state.upcoming_sleep)

    def delay(self, attempt: int, previous: float = 0.0) -> float:
        """The wait after attempt number ``attempt`` (from 1), in seconds; ``previous`` is the wait before it."""
        jitter = self.jitter
        if jitter == "full":
            return self.uniform(0, self.ceiling(attempt))
        if jitter == "decorrelated":
            high = min(self.maximum, 3 * max(self.initial, previous))
            return min(self.maximum, self.uniform(self.initial, high))
        ceiling = self.ceiling(attempt)
        return ceiling / 2 + self.uniform(0, ceiling / 2) if jitter == "equal" else ceiling

    def ceiling(self, attempt: int) -> float:
        """The longest wait after that attempt, in seconds."""
        if self.jitter == "decorrelated":
            return self.maximum if attempt > 1 else min(self.maximum, 3 * self.initial)
        try:
            return min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:
            return self.maximum if self.initial else 0.0

    def __repr__(self) -> str:
        return (
            f"Backoff(initial={self.initial!r}, maximum={self.maximum!r}, "
            f"factor={self.factor!r}, jitter={self.jitter!r})"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # `random.uniform` is bound to a generator, whose state would go along: all who load it would draw the same.
        values = tuple(self._fields().values())
        return Backoff, values[: 4 if self.uniform == random.uniform else 5]


def _is_factor(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= sys.float_info.max
