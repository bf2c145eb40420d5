"""The retry engine beside tenacity's, with the loop taken out of the way.

The coroutine is driven by hand, so a sleep of zero seconds costs a ``yield`` and no turn of the loop, for both. A
failed attempt is the difference between calls that fail a few times and calls that succeed at once. It contains
the raising itself, which the hand-written loop shows by itself.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import tenacity

from aioconnect import Policy
from aioconnect.errors import ConnectRefused
from tests.benchmarks.measure import Batch, Effort, Ratio, Row, Samples, alternate, middle

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
    return Policy(wait=tenacity.wait_none()).call


def theirs() -> Retry:
    return tenacity.AsyncRetrying(  # pyright: ignore[reportReturnType]  # its result is the type of the attempt's
        retry=tenacity.retry_if_exception_type(OSError),
        wait=tenacity.wait_none(),
        stop=tenacity.stop_after_delay(60),
        sleep=asyncio.sleep,
        reraise=True,
    )


ENGINES: dict[str, Callable[[], Retry]] = {"ours": ours, "tenacity": theirs, "by hand": lambda: by_hand}
SCRIPTS = {
    "success": (0, raw),
    "first typed": (1, typed),
    "first raw": (1, raw),
    "typed": (FAILURES, typed),
    "raw": (FAILURES, raw),
}


def batch(retry: Retry, failures: int, error: Callable[[], Exception], calls: int) -> Batch:
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
        f"{engine}: {script}": batch(make(), *SCRIPTS[script], effort.calls)
        for engine, make in ENGINES.items()
        for script in SCRIPTS
    }
    taken = await alternate(batches, effort)
    success = cost(taken, "ours", "success", 1)
    rows = [row("a call that succeeds", loop, success, cost(taken, "tenacity", "success", 1), 1.0)]
    for script, failures, title, bar in (
        ("typed", FAILURES, "a failed attempt, typed error", 8.0),
        ("raw", FAILURES, "a failed attempt, ConnectionRefusedError", 8.0),
        ("first typed", 1, "the first failed attempt of a call, typed error", None),
        ("first raw", 1, "the first failed attempt of a call, ConnectionRefusedError", None),
    ):
        alone = cost(taken, "by hand", script, failures).value
        note = f"of it {alone:.1f} us raising and catching"
        ours_, theirs_ = (cost(taken, engine, script, failures) for engine in ("ours", "tenacity"))
        rows.append(row(title, loop, ours_, theirs_, bar)._replace(note=note))
    return rows


def row(title: str, loop: str, ours: Ratio, theirs: Ratio, bar: float | None) -> Row:
    return Row("6", title, loop, "us", ours.value, bar, ours.low, ours.high, ours=ours.value, theirs=theirs.value)


def cost(taken: dict[str, Samples], engine: str, script: str, failures: int) -> Ratio:
    """Microseconds for a success, or for each failure before it."""
    samples = taken[f"{engine}: {script}"]
    if script == "success":
        return spread([each[0] * 1e6 for each in samples], middle(samples))
    base = taken[f"{engine}: success"]
    each = [(a[0] - b[0]) / failures * 1e6 for a, b in zip(samples, base, strict=True)]
    return spread(each, (middle(samples) - middle(base)) / failures)


def spread(values: list[float], value: float) -> Ratio:
    ordered = sorted(values)
    return Ratio(value, ordered[len(ordered) // 4], ordered[len(ordered) * 3 // 4])
