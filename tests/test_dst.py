"""The short form of the simulation: ``python -m tests.dst`` has the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dst import mutations
from tests.dst.world import report, run

WORLDS = 25
ROUNDS = 4
# Other worlds on each Python: one run of CI on three of them sees three hundred.
FIRST = sys.version_info.minor * WORLDS * ROUNDS


@pytest.mark.parametrize("number", range(ROUNDS))
def test_what_has_to_hold_holds_in_every_world(number: int) -> None:
    for seed in range(FIRST + number * WORLDS, FIRST + (number + 1) * WORLDS):
        outcome = run(seed)
        if outcome.violation is not None:
            pytest.fail(report(outcome), pytrace=False)


def test_a_seed_always_tells_the_same_story() -> None:
    """In another process, with other hashes, and after other worlds."""
    command = [sys.executable, "-m", "tests.dst", "--seeds", "4", "--start", "40", "--jobs", "1"]
    outputs = [
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    first, second = (output.splitlines()[-1] for output in outputs)
    assert first.startswith("hash ")
    assert first == second
    assert [run(seed).digest for seed in (41, 40, 41)][::2] == [run(41).digest] * 2


@pytest.mark.parametrize("name", mutations.QUICK)
def test_a_planted_fault_is_found(name: str) -> None:
    found = mutations.hunt(name, 0, mutations.PATIENCE)
    assert found is not None, f"{name}: not found in {mutations.PATIENCE} worlds"


def test_a_violation_says_how_to_see_it_again() -> None:
    found = mutations.hunt(mutations.QUICK[0], 0, mutations.PATIENCE)
    assert found is not None
    assert found.violation is not None
    with mutations.planted(mutations.QUICK[0]):
        assert run(found.seed) == found, "it does not fail again in the same way"
    text = report(found)
    assert f"python -m tests.dst --seed {found.seed}" in text
    assert found.violation in text
    assert "VIOLATION" in text
