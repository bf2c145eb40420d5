"""The retry engine beside tenacity's, with the loop taken out of the way.

A call that succeeds is awaited. For failed attempts the coroutine is driven by hand, so that a sleep of zero seconds
costs a ``yield`` and no turn of the loop, for both; one failed attempt is the difference between calls that fail a
few times and calls that succeed at once. It contains the raising itself, which a loop written by hand shows alone.

The median decides, as in every other row. The best batch is told beside it: what else a machine does only adds to it.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import tenacity

from aioconnect import Backoff, Policy
from aioconnect.errors import ConnectRefused
from aioconnect.retrying import retry
from tests.benchmarks.measure import Batch, Effort, Row, Samples, alternate, middle

__all__ = ("retries",)

FAILURES = 5

Attempt = Callable[[], Awaitable[int]]
Retry = Callable[[Attempt], Coroutine[Any, Any, int]]


def typed() -> Exception:
    return ConnectRefused(address=("127.0.0.1", 9))


def raw() -> Exception:
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


class Flaky:
    """Fails so many times, then succeeds, then starts again."""

    def __init__(self, failures: int, error: Callable[[], Exception]) -> None:
        self.failures = self.left = failures
        self.error = error

    async def __call__(self) -> int:
        if self.left:
            self.left -= 1
            raise self.error()
        self.left = self.failures
        return 1


async def by_hand(attempt: Attempt) -> int:
    while True:
        try:
            return await attempt()
        except OSError:
            await asyncio.sleep(0)


def ours() -> Retry:
    return Policy(wait=Backoff(0, 0)).call


def ours_by_tenacity() -> Retry:
    """With a strategy of tenacity's, for which its state is made."""
    return Policy(wait=tenacity.wait_none()).call


def engine() -> Retry:
    """The loop alone, as a connector uses it: the attempt sees to its own time limit."""
    policy = Policy(wait=Backoff(0, 0))

    def call(attempt: Attempt) -> Coroutine[Any, Any, int]:
        return retry(policy, lambda *_: attempt(), policy.timeout)

    return call


def theirs() -> Retry:
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(OSError),
        wait=tenacity.wait_none(),
        stop=tenacity.stop_after_delay(60),
        sleep=asyncio.sleep,
        reraise=True,
    )


ENGINES: dict[str, Callable[[], Retry]] = {
    "engine": engine,
    "policy.call": ours,
    "policy.call, wait_none": ours_by_tenacity,
    "tenacity": theirs,
    "by hand": lambda: by_hand,
}
SCRIPTS = {
    "none": (0, raw),
    "first typed": (1, typed),
    "typed": (FAILURES, typed),
    "raw": (FAILURES, raw),
}


async def succeed() -> int:
    return 1


def awaited(retry: Retry, calls: int) -> Batch:
    async def run(number: int) -> tuple[float, ...]:
        began = time.process_time()
        for _ in range(calls):
            await retry(succeed)
        return ((time.process_time() - began) / calls,)

    return run


def driven(retry: Retry, failures: int, error: Callable[[], Exception], calls: int) -> Batch:
    flaky = Flaky(failures, error)

    async def run(number: int) -> tuple[float, ...]:
        began = time.process_time()
        for _ in range(calls):
            call = retry(flaky)
            try:
                while True:
                    call.send(None)
            except StopIteration:
                pass
        return ((time.process_time() - began) / calls,)

    return run


async def retries(loop: str, effort: Effort) -> list[Row]:
    """Row 6."""
    batches = {
        f"{engine}: {script}": driven(make(), *SCRIPTS[script], effort.calls)
        for engine, make in ENGINES.items()
        for script in SCRIPTS
    }
    batches |= {f"{engine}: success": awaited(make(), effort.calls) for engine, make in ENGINES.items()}
    taken = await alternate(batches, effort)
    rows: list[Row] = []
    for who, script, failures, title, bar in (
        ("engine", "success", 1, "the engine: a call that succeeds", 1.0),
        ("engine", "typed", FAILURES, "the engine: a failed attempt, typed error", 8.0),
        ("policy.call", "success", 1, "policy.call: a call that succeeds", 1.0),
        ("policy.call", "typed", FAILURES, "policy.call: a failed attempt, typed error", 8.0),
        ("policy.call", "raw", FAILURES, "policy.call: a failed attempt, ConnectionRefusedError", 8.0),
        ("policy.call, wait_none", "typed", FAILURES, "policy.call: the same, typed, with tenacity's wait_none", None),
        ("policy.call", "first typed", 1, "policy.call: the first failed attempt of a call, typed error", None),
    ):
        alone, mine, their = (cost(taken, each, script, failures) for each in ("by hand", who, "tenacity"))
        row = Row("6", title, loop, "us", mine.value, bar, mine.low, mine.high, ours=mine.value, theirs=their.value)
        rows.append(row._replace(note=f"best batch {mine.best:.1f} us; a loop written by hand {alone.value:.1f} us"))
    return rows


class Cost(NamedTuple):
    """Microseconds: the median, the quartiles and the least."""

    value: float
    low: float
    high: float
    best: float


def cost(taken: dict[str, Samples], engine: str, script: str, failures: int) -> Cost:
    """Microseconds for a success, or for each failure before it."""
    samples = taken[f"{engine}: {script}"]
    if script == "success":
        return spread([each[0] * 1e6 for each in samples], middle(samples), least(samples))
    base = taken[f"{engine}: none"]
    each = [(a[0] - b[0]) / failures * 1e6 for a, b in zip(samples, base, strict=True)]
    return spread(each, (middle(samples) - middle(base)) / failures, (least(samples) - least(base)) / failures)


def least(samples: Samples) -> float:
    return min(each[0] for each in samples) * 1e6


def spread(values: list[float], value: float, best: float) -> Cost:
    ordered = sorted(values)
    return Cost(value, ordered[len(ordered) // 4], ordered[len(ordered) * 3 // 4], best)
