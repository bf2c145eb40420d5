"""Run for long: ``python -m tests.stress pool --cancels 100000 --loop both``, ``python -m tests.stress circuit``."""

from __future__ import annotations

import argparse
import asyncio
import platform
import time
from collections import Counter

from tests.benchmarks.loops import LOOPS
from tests.stress import circuit, pool

__all__ = ()


async def _gate_product(seed: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for moods in pool.all_gates():
        total += await pool.gates(*moods, seed=seed)
        total["combinations"] += 1
    return total


def _pool(given: argparse.Namespace) -> None:
    for name in LOOPS if given.loop == "both" else (given.loop,):
        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            began = time.monotonic()
            tally = runner.run(pool.cancelled_at_random(given.cancels, given.seed))
            print(f"Python {platform.python_version()}, {name}: {dict(tally)} in {time.monotonic() - began:.1f} s")
            if not given.no_gates:
                began = time.monotonic()
                tally = runner.run(_gate_product(given.seed))
                print(f"Python {platform.python_version()}, {name}: {dict(tally)} in {time.monotonic() - began:.1f} s")


def _circuit(given: argparse.Namespace) -> None:
    began = time.monotonic()
    report = circuit.storms(range(given.first, given.first + given.seeds))
    print(f"Python {platform.python_version()}: {given.seeds} storms in {time.monotonic() - began:.1f} s: {report}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parts = parser.add_subparsers(required=True)
    users = parts.add_parser("pool", help=pool.__doc__)
    users.add_argument("--cancels", type=int, default=100_000)
    users.add_argument("--loop", choices=(*LOOPS, "both"), default="both")
    users.add_argument("--seed", type=int, default=0)
    users.add_argument("--no-gates", action="store_true", help="leave out the hooks in all their moods")
    users.set_defaults(run=_pool)
    callers = parts.add_parser("circuit", help=circuit.__doc__)
    callers.add_argument("--seeds", type=int, default=3000)
    callers.add_argument("--first", type=int, default=0)
    callers.set_defaults(run=_circuit)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
