"""What `aioconnect.simulate` costs: a fleet of the reconnect-storm table, its server as large as the fleet.

`python -m tests.benchmarks.simulating CLIENTS` is the process that is measured; it prints CPU seconds, seconds, bytes
for each client, and attempts for each client. Opt-in, `--only simulate`: 100,000 clients take two to three minutes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import aioconnect
from tests.benchmarks.measure import Effort, Row
from tests.benchmarks.server import ROOT

__all__ = ("simulating",)

FULL = 100_000


def measure(clients: int) -> tuple[float, float, float, float]:
    aioconnect.simulate(10, 1, 10)  # what is loaded once is no client's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    size = clients / 2000
    report = aioconnect.simulate(
        clients, 20, 200 * size, connect_timeout=1, backlog=128 * size, overflow="refused", policy="full"
    )
    cpu, took = time.process_time() - cpu, time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return cpu, took, grown / clients, report[0].attempts_per_client


def simulating(effort: Effort) -> list[Row]:
    """Bars of a fleet of 100,000; a smaller one is counted up to it, in proportion."""
    command = [sys.executable, "-m", "tests.benchmarks.simulating", str(effort.fleet)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1200)
    cpu, took, size, attempts = map(float, done.stdout.split())
    each = f"{attempts:.1f} attempts for each of {effort.fleet:,} clients"
    larger = FULL / effort.fleet
    by_clock = f"{each}; {took:.1f} s by the clock"
    return [
        Row("F", f"simulate {FULL:,} clients, CPU time", "", "s", cpu * larger, 150.0, note=by_clock),
        Row("F", "simulate, peak memory of a client", "", "B", size, 20_000.0, note=each),
    ]


if __name__ == "__main__":
    print(*measure(int(sys.argv[1])))
