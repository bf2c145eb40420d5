"""The method: alternating batches, CPU time, medians, and what a row of the result is."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

__all__ = ("Batch", "Effort", "Ratio", "Row", "alternate", "compare", "core", "machine", "pinned", "version")

Batch = Callable[[int], Awaitable[tuple[float, ...]]]
"""Runs one batch, given the number of its round: CPU seconds of one operation, for each thing that was timed."""

Samples = list[tuple[float, ...]]


@dataclass(frozen=True)
class Effort:
    """How much to measure. Every loop of the benchmarks is bounded by one of these, and all by ``seconds``."""

    rounds: int = 200
    batch: int = 25
    calls: int = 200
    connections: int = 3000
    repeats: int = 3
    interpreters: int = 25
    fleet: int = 100_000
    links: int = 10_000
    seconds: float = 120.0


QUICK = Effort(rounds=100, calls=100, connections=1000, repeats=1, interpreters=20, fleet=10_000, links=2_000)
TINY = Effort(rounds=2, batch=3, calls=5, connections=20, repeats=1, interpreters=1, fleet=50, links=50)


class Ratio(NamedTuple):
    """The median and the quartiles of the ratios of the single rounds."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """One line of the result. Without a bar it is there to explain another one."""

    number: str
    title: str
    loop: str
    unit: str
    measured: float
    bar: float | None = None
    low: float | None = None
    high: float | None = None
    second: float | None = None
    """The same for connect and close together."""
    ours: float | None = None
    theirs: float | None = None
    """The two medians, in the unit that ``each`` names."""
    each: str = "us"
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        return "met" if self.measured <= self.bar else "missed"


def core(number: int) -> set[int]:
    """The first (0) or the last (-1) core that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    return {sorted(os.sched_getaffinity(0))[number]}


@contextlib.contextmanager
def pinned() -> Generator[None]:
    """On the first core, where the system can pin; servers take the last one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, core(0))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def alternate(batches: Mapping[str, Batch], effort: Effort) -> dict[str, Samples]:
    """Run one batch of each in every round, in an order drawn anew for each round (from a fixed seed).

    Two rounds of warm-up are thrown away. The collector is on, at its default thresholds; what exists after the
    warm-up is frozen, and every batch begins just after a full collection, so that none pays for another's garbage.
    """
    taken: dict[str, Samples] = {name: [] for name in batches}
    order = list(batches)
    shuffle = random.Random(0).shuffle
    until = time.monotonic() + effort.seconds
    for number in range(-2, effort.rounds):
        if time.monotonic() > until:
            break
        shuffle(order)
        for name in order:
            gc.collect()
            seconds = await batches[name](number)
            if number >= 0:
                taken[name].append(seconds)
        if number == -1:
            gc.collect()
            gc.freeze()
    gc.unfreeze()
    return taken


def middle(samples: Samples, which: slice = slice(0, 1)) -> float:
    """The median in microseconds of the things that were timed, added up."""
    return statistics.median(sum(each[which]) for each in samples) * 1e6


def compare(ours: Samples, theirs: Samples, which: slice = slice(0, 1)) -> Ratio:
    """Round by round: what else the machine does meanwhile is the same for the two batches of a round, or nearly."""
    pairs = [sum(a[which]) / sum(b[which]) for a, b in zip(ours, theirs, strict=True) if sum(b[which])]
    low, value, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else (pairs * 3)
    return Ratio(value, low, high)


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def machine(effort: Effort, distributions: Sequence[str]) -> dict[str, str]:
    """What the numbers depend on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or "unknown",
    )
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in distributions),
        "method": (
            f"CPU time, pinned to one core, server on another, loopback; medians of {effort.rounds} alternating"
            f" batches of {effort.batch}, ratios within a round; collector on, heap frozen, collected before each batch"
        ),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
