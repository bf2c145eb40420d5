"""The short form of the stress: ``python -m tests.stress`` has the long one."""

from __future__ import annotations

import random

import pytest

from tests.stress import pool

# One mood at a time for each hook, and some of the other combinations: all of them take half a minute.
SINGLE = [tuple(mood if place == hook else "ok" for place in range(4)) for hook in range(4) for mood in pool.KINDS[1:]]
SOME = random.Random(1).sample(list(pool.all_gates()), 4)


async def test_users_of_a_pool_are_cancelled_at_random() -> None:
    tally = await pool.cancelled_at_random(2500)
    assert tally["twice"] > 500


@pytest.mark.parametrize("moods", [*SINGLE[::2], *SOME], ids="-".join)
async def test_hooks_of_a_pool_in_all_moods(moods: tuple[str, ...]) -> None:
    await pool.gates(*moods, seconds=0.03)
