"""What an idle connection keeps, beside a plain pair of streams; each measured in a process of its own.

Twice: the Python allocations that tracemalloc sees, and the private pages of the process (smaps_rollup, Linux).
`python -m tests.benchmarks.memory KIND LOOP COUNT TRACED PORT...` is that process; it prints bytes per connection.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aioconnect
from aioconnect import Connection
from tests.benchmarks.loops import LOOPS
from tests.benchmarks.measure import Effort, Row
from tests.benchmarks.server import ROOT, serving

__all__ = ("memory",)

SPARE = 200  # descriptors for everything else


def private_bytes() -> int:
    """Private pages of this process. Falls back to the peak, where there is no smaps_rollup."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) * 1024


def openers(kind: str, ports: list[int]) -> list[Callable[[], Awaitable[Any]]]:
    if kind == "streams":
        return [lambda port=port: asyncio.open_connection("127.0.0.1", port) for port in ports]  # type: ignore[misc]
    return [aioconnect.Connector(f"127.0.0.1:{port}").connect for port in ports]


async def kept_by_each(kind: str, count: int, traced: bool, ports: list[int]) -> float:
    """Bytes for each of so many open connections."""
    starts = openers(kind, ports)
    kept: list[Any] = [await start() for start in starts * 4]  # what is made once is no connection's
    if traced:
        tracemalloc.start()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0] if traced else private_bytes()
    kept += [await starts[number % len(starts)]() for number in range(count)]
    gc.collect()
    after = tracemalloc.get_traced_memory()[0] if traced else private_bytes()
    if traced:
        tracemalloc.stop()
    for each in kept:
        (each if isinstance(each, Connection) else each[1].transport).abort()
    return (after - before) / count


def measured(kind: str, loop: str, count: int, traced: bool, ports: tuple[int, ...]) -> float:
    arguments = [kind, loop, str(count), str(int(traced)), *map(str, ports)]
    command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    return float(done.stdout)


def memory(loop: str, effort: Effort) -> list[Row]:
    """Row 7."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = min(effort.connections, limit - SPARE) if limit != resource.RLIM_INFINITY else effort.connections
    rows: list[Row] = []
    for traced in (True, False):
        taken: dict[str, list[float]] = {"Connection": [], "streams": []}
        for _ in range(effort.repeats):
            for kind, values in taken.items():
                with serving(count + SPARE) as served:
                    values.append(measured(kind, loop, count, traced, served.ports))
        ours, theirs = (statistics.median(taken[kind]) for kind in ("Connection", "streams"))
        rows.append(
            Row(
                "7",
                f"an idle Connection / a plain pair of streams, {'tracemalloc' if traced else 'private pages'}",
                loop,
                "x",
                ours / theirs,
                1.1,
                ours=ours,
                theirs=theirs,
                each="B",
                note=f"{count} connections, {effort.repeats} processes each",
            )
        )
    return rows


def main(kind: str, loop: str, count: str, traced: str, *ports: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        print(runner.run(kept_by_each(kind, int(count), traced == "1", list(map(int, ports)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
