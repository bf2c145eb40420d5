"""Measure and print. Takes two to five minutes for each loop, as busy as the machine is; `--quick` half of that."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.configuration import configuration
from tests.benchmarks.connecting import connecting
from tests.benchmarks.garbage import garbage
from tests.benchmarks.imports import imports
from tests.benchmarks.lending import lending
from tests.benchmarks.links import crowd, waiting
from tests.benchmarks.loops import LOOPS
from tests.benchmarks.measure import QUICK, TINY, Effort, Row, machine, pinned
from tests.benchmarks.memory import memory
from tests.benchmarks.outage import outage, outages
from tests.benchmarks.report import as_json, as_markdown, as_text
from tests.benchmarks.retries import retries
from tests.benchmarks.simulating import simulating

DISTRIBUTIONS = ("tenacity", "uvloop", "aiohappyeyeballs", "anyio")
ROWS = ("connect", "retry", "memory", "import", "garbage", "config", "outage", "pool", "link")
EACH_LOOP = {
    "connect": connecting,
    "retry": retries,
    "garbage": garbage,
    "outage": outage,
    "pool": lending,
    "link": waiting,
}
ON_REQUEST = ("simulate",)
"""Too long to be part of every run: `--only simulate`."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--loop", choices=(*LOOPS, "both"), default="both")
    parser.add_argument("--only", choices=(*ROWS, *ON_REQUEST), nargs="+", default=ROWS, help="these parts only")
    parser.add_argument("--rounds", type=int, help="alternating batches of each variant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const=QUICK, default=Effort())
    effort.add_argument("--tiny", dest="effort", action="store_const", const=TINY, help="only see that all of it runs")
    return parser.parse_args(given)


def measured(loops: Sequence[str], only: Sequence[str], effort: Effort) -> list[Row]:
    rows: list[Row] = []
    for loop in loops:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            for part in only:
                if part in EACH_LOOP:
                    rows += runner.run(EACH_LOOP[part](loop, effort))
        if "memory" in only:
            rows += memory(loop, effort)
    once = {"outage": outages, "link": crowd, "import": imports, "config": configuration, "simulate": simulating}
    for part in only:
        if part in once:
            rows += once[part](effort)
    return sorted(rows, key=lambda row: row.number)


def main() -> None:
    given = arguments()
    effort: Effort = given.effort
    if given.rounds is not None:
        effort = dataclasses.replace(effort, rounds=max(2, given.rounds))
    with pinned():
        rows = measured(tuple(LOOPS) if given.loop == "both" else (given.loop,), given.only, effort)
    facts = machine(effort, DISTRIBUTIONS)
    print((as_markdown if given.markdown else as_text)(rows, facts))
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(rows, facts), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
