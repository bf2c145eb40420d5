"""The long form: see the package."""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.dst import mutations
from tests.dst.world import Outcome, replay, run

__all__ = ()

BATCH = 25


def _batch(start: int, count: int, *, long: bool) -> list[Outcome]:
    return [run(seed, long=long) for seed in range(start, start + count)]


def _outcomes(start: int, count: int, jobs: int, *, long: bool) -> Iterator[Outcome]:
    if jobs == 1:
        for seed in range(start, start + count):
            yield run(seed, long=long)
        return
    with ProcessPoolExecutor(jobs) as pool:
        size = 1 if long else BATCH
        starts = range(start, start + count, size)
        coming = [pool.submit(_batch, first, min(size, start + count - first), long=long) for first in starts]
        for batch in coming:
            yield from batch.result()


def _many(given: argparse.Namespace) -> bool:
    began, bad = time.monotonic(), 0
    seconds, steps, attempts, replies, cancels, worlds = 0.0, 0, 0, 0, 0, 0
    digest = hashlib.sha256()
    for outcome in _outcomes(given.start, given.seeds, given.jobs, long=given.long):
        worlds += 1
        seconds += outcome.seconds
        steps += outcome.steps
        attempts += outcome.attempts
        replies += outcome.replies
        cancels += outcome.cancels
        digest.update(outcome.digest.encode())
        if outcome.violation is not None:
            bad += 1
            print(f"seed {outcome.seed}: {outcome.violation}\n    {replay(outcome.seed, long=given.long)}", flush=True)
            if bad == given.most:
                break
    took = time.monotonic() - began
    print(
        f"Python {platform.python_version()}: {worlds} worlds, {seconds / 3600:.1f} simulated hours in {took:.1f} s; "
        f"{attempts} attempts, {replies} replies, {cancels} cancels, {steps} steps; {bad} violations\n"
        f"hash {digest.hexdigest()}"
    )
    return not bad


def _one(seed: int, *, long: bool) -> bool:
    outcome = run(seed, long=long, story=True)
    print("\n".join(outcome.story))
    print(f"seed {seed}: {outcome.violation or 'all has held'}\nhash {outcome.digest}")
    return outcome.violation is None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.dst", description=__doc__)
    parser.add_argument("--seed", type=int, help="one world, with its story")
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="processes")
    parser.add_argument("--most", type=int, default=10, help="violations after which to stop")
    parser.add_argument("--long", action="store_true", help="worlds of hours, not of a minute")
    parser.add_argument("--mutations", action="store_true", help="planted faults, each in up to --seeds worlds")
    given = parser.parse_args()
    if given.seed is not None:
        good = _one(given.seed, long=given.long)
    elif given.mutations:
        good = mutations.table(given.start, given.seeds)
    else:
        good = _many(given)
    sys.exit(not good)


if __name__ == "__main__":
    main()
