"""Run for long: ``python -m tests.stress pool --cancels 100000 --loop both``."""

from __future__ import annotations

import argparse
import asyncio
import platform
import time
from collections import Counter

from tests.benchmarks.loops import LOOPS
from tests.stress import pool

__all__ = ()


async def _gate_product(seed: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for moods in pool.all_gates():
        total += await pool.gates(*moods, seed=seed)
        total["combinations"] += 1
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("what", choices=("pool",))
    parser.add_argument("--cancels", type=int, default=100_000)
    parser.add_argument("--loop", choices=(*LOOPS, "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-gates", action="store_true", help="leave out the hooks in all their moods")
    given = parser.parse_args()
    for name in LOOPS if given.loop == "both" else (given.loop,):
        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            began = time.monotonic()
            tally = runner.run(pool.cancelled_at_random(given.cancels, given.seed))
            print(f"Python {platform.python_version()}, {name}: {dict(tally)} in {time.monotonic() - began:.1f} s")
            if not given.no_gates:
                began = time.monotonic()
                tally = runner.run(_gate_product(given.seed))
                print(f"Python {platform.python_version()}, {name}: {dict(tally)} in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
