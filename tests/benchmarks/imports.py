"""What `import aioconnect` adds to a program that has asyncio, ssl and tenacity anyway.

Fresh interpreters take turns; each times what it imports by its own CPU clock. Compiled files are in place: in a
directory of their own, since the environment may keep Python from writing them, and a test run from finding them.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile

from tests.benchmarks.measure import Effort, Row
from tests.benchmarks.server import ROOT

__all__ = ("imports",)

BASE = "import asyncio, ssl, tenacity"
PROGRAM = (
    f"import sys, time; began = time.process_time(); {BASE}; middle = time.process_time(); {{more}}; "
    "end = time.process_time(); print(middle - began, end - middle, end)"
)
IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")
SHOWN = 8


class Interpreters:
    """Fresh ones, with a place for compiled files."""

    def __init__(self, compiled: str) -> None:
        self.environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}

    def run(self, code: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *options, "-c", code]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        )

    def times(self, more: str) -> list[float]:
        """CPU milliseconds: of the base, of what comes on top of it, of the whole process."""
        return [float(each) * 1000 for each in self.run(PROGRAM.format(more=more)).stdout.split()]

    def timed(self, code: str) -> list[tuple[str, float]]:
        """Each imported module and its own milliseconds."""
        lines = self.run(code, "-X", "importtime").stderr.splitlines()
        return [(match[3], int(match[1]) / 1000) for line in lines if (match := IMPORT_TIME.match(line))]


def imports(effort: Effort) -> list[Row]:
    """Row 8, and the modules that it is made of."""
    with tempfile.TemporaryDirectory() as compiled:
        interpreters = Interpreters(compiled)
        interpreters.times("import aioconnect")
        return [total(interpreters, effort), *modules(interpreters, max(1, effort.interpreters // 5))]


def total(interpreters: Interpreters, effort: Effort) -> Row:
    taken: dict[str, list[list[float]]] = {"pass": [], "import aioconnect": []}
    for _ in range(effort.interpreters):
        for more, values in taken.items():
            values.append(interpreters.times(more))
    added = [each[1] for each in taken["import aioconnect"]]
    whole = {more: statistics.median(each[2] for each in values) for more, values in taken.items()}
    low, _, high = statistics.quantiles(added, n=4) if len(added) > 1 else added * 3
    base = statistics.median(each[0] for each in taken["import aioconnect"])
    return Row(
        "8",
        "import aioconnect / import asyncio, ssl, tenacity",
        "",
        "ms",
        statistics.median(added),
        15.0,
        low,
        high,
        ours=whole["import aioconnect"],
        theirs=whole["pass"],
        each="ms",
        note=f"at best {min(added):.1f} ms; asyncio, ssl and tenacity {base:.0f} ms; the columns: whole processes",
    )


def modules(interpreters: Interpreters, times: int) -> list[Row]:
    """The most expensive modules, by the time each takes itself (-X importtime, wall clock, which costs some too)."""
    found: dict[str, list[float]] = {}
    for _ in range(times):
        base = {name for name, _ in interpreters.timed(BASE)}
        for name, own in interpreters.timed(f"{BASE}, aioconnect"):
            if name not in base:
                found.setdefault(name, []).append(own)
    typical = {name: statistics.median(each) for name, each in found.items()}
    foreign = {name: time for name, time in typical.items() if name.partition(".")[0] != "aioconnect"}
    dearest = sorted(typical, key=lambda name: -typical[name])[:SHOWN]
    rows = [Row("8", f"of it {name} itself", "", "ms", typical[name]) for name in dearest]
    others = ", ".join(sorted(foreign)) or "none"
    return [*rows, Row("8", "of it modules not ours", "", "ms", sum(foreign.values()), note=others)]
