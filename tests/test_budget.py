"""The tokens of a retry budget, by themselves."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect.budget import RetryBudget, Tokens
from aioconnect.errors import ConfigError


def empty(**settings: Any) -> Tokens:
    """Tokens of which none is left at the time 0."""
    tokens = Tokens(RetryBudget(**settings))
    while tokens.take(0):
        pass
    return tokens


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"ratio": 1.1}, "ratio=1.1"),
        ({"ratio": math.nan}, "ratio=nan"),
        ({"floor": -1}, "floor=-1"),
        ({"floor": math.inf}, "floor=inf"),
        ({"burst": 0.5}, "burst=0.5"),
        ({"burst": "many"}, "burst='many'"),
        ({"when_empty": "shrug"}, "when_empty='shrug': must be one of wait, fail"),
        ({"ratio": 0, "floor": 0}, "floor=0"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RetryBudget(**arguments)
    assert text in str(caught.value)


def test_it_begins_full() -> None:
    tokens = Tokens(RetryBudget(burst=3))
    assert tokens.left(100) == 3
    assert [tokens.take(100) for _ in range(4)] == [True, True, True, False]


def test_the_floor_comes_with_time() -> None:
    tokens = empty(floor=2, burst=10)
    assert tokens.due(0) == 0.5
    assert not tokens.take(0.4)
    assert tokens.take(0.5)
    assert tokens.left(100) == 10


def test_time_that_steps_back_is_not_counted_twice() -> None:
    """A timer of uvloop may fire a millisecond early; then it goes by the time that was set."""
    tokens = empty(floor=1, burst=10)
    assert tokens.left(1) == 1
    assert tokens.left(0.999) == 1
    assert tokens.left(1) == 1
    assert tokens.left(2) == 2


def test_first_tries_pay_a_share() -> None:
    tokens = empty(ratio=0.25, floor=0, burst=2)
    assert tokens.due(0) == math.inf
    for _ in range(3):
        tokens.deposit()
    assert not tokens.take(1000)
    tokens.deposit()
    assert tokens.take(1000)
    for _ in range(100):
        tokens.deposit()
    assert tokens.left(1000) == 2


def test_no_more_is_given_back_than_may_be_saved() -> None:
    tokens = Tokens(RetryBudget(burst=2))
    tokens.give_back()
    assert tokens.left(0) == 2


@given(st.integers(0, 2**32), st.floats(0.01, 50), st.floats(0, 1), st.floats(1, 20))
def test_never_more_retries_than_were_paid_for(seed: int, floor: float, ratio: float, burst: float) -> None:
    chance = random.Random(seed)
    tokens = Tokens(RetryBudget(ratio, floor, burst))
    now, paid_in, taken = 0.0, burst, 0
    tokens.left(now)
    for _ in range(200):
        step = chance.random() * chance.choice([0, 0.01, 1])
        now += step
        paid_in += floor * step
        if chance.random() < 0.5:
            tokens.deposit()
            paid_in += ratio
        while chance.random() < 0.5 and tokens.take(now):
            taken += 1
        assert 0 - 1e-6 <= tokens.left(now) <= burst
        due = tokens.due(now)
        assert due >= now
        assert Tokens.take(_copy(tokens), due)
    assert taken <= paid_in + 1e-3


def _copy(tokens: Tokens) -> Tokens:
    other = Tokens(tokens.budget)
    other._left, other._at = tokens._left, tokens._at
    return other
