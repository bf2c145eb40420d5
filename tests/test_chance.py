"""Orders drawn by chance."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect.chance import shuffled, weighted

WEIGHTS = st.lists(st.integers(0, 65535), max_size=20)


def seeded(seed: int) -> random.Random:
    return random.Random(seed)


@given(st.lists(st.integers()), st.integers())
def test_shuffled_is_a_permutation_that_a_seed_repeats(items: list[int], seed: int) -> None:
    found = shuffled(items, seeded(seed).uniform)
    assert sorted(found) == sorted(items)
    assert shuffled(items, seeded(seed).uniform) == found


def test_every_order_is_as_likely() -> None:
    uniform = seeded(1).uniform
    count = Counter("".join(shuffled("abc", uniform)) for _ in range(6000))
    assert len(count) == 6
    assert all(880 < number < 1120 for number in count.values())


@given(WEIGHTS, st.integers())
def test_weighted_is_a_permutation_that_a_seed_repeats(weights: list[int], seed: int) -> None:
    found = weighted(weights, int, seeded(seed).uniform)
    assert sorted(found) == sorted(weights)
    assert weighted(weights, int, seeded(seed).uniform) == found


@given(WEIGHTS, st.floats(0, 1))
def test_no_draw_is_out_of_range(weights: list[int], place: float) -> None:
    """`random.uniform` may round up to its upper end."""
    assert sorted(weighted(weights, int, lambda low, high: low + (high - low) * place)) == sorted(weights)


@pytest.mark.parametrize("weights", [[1, 3], [10, 60, 30], [5, 0, 5], [0, 0, 0, 0], [1, 0]])
def test_the_first_is_drawn_by_its_weight(weights: list[int]) -> None:
    """RFC 2782: of a sum S there are S + 1 draws; the additional one, 0, is that of the records of weight 0."""
    uniform = seeded(2).uniform
    items = list(enumerate(weights))
    draws = 20_000
    count = Counter(weighted(items, lambda item: item[1], uniform)[0] for _ in range(draws))
    total, zeros = sum(weights), weights.count(0)
    for item in items:
        share = (item[1] or 1 / zeros) / (total + 1) if zeros else item[1] / total
        assert count[item] / draws == pytest.approx(share, abs=0.02)


def test_after_the_first_the_others_are_drawn_in_the_same_way() -> None:
    uniform = seeded(3).uniform
    seconds = Counter(found[1] for _ in range(4000) if (found := weighted([1000, 30, 10], int, uniform))[0] == 1000)
    assert seconds[30] / seconds.total() == pytest.approx(0.75, abs=0.03)
