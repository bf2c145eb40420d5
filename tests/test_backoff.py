"""Backoff: what it draws, that jitter survives the cap, and that it is a tenacity wait without state."""

from __future__ import annotations

import copy
import math
import pickle
import random
import statistics
from typing import Any, get_args

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_base, wait_chain, wait_combine, wait_fixed

from aioconnect.backoff import Backoff, Jitter
from aioconnect.errors import ConfigError

JITTERS: tuple[Jitter, ...] = get_args(Jitter)
RANDOM: tuple[Jitter, ...] = ("full", "equal", "decorrelated")


def state(attempt: int, previous: float = 0.0) -> RetryCallState:
    made = RetryCallState(AsyncRetrying(), None, (), {})
    made.attempt_number, made.upcoming_sleep = attempt, previous
    return made


def low(a: float, b: float) -> float:
    return a


def high(a: float, b: float) -> float:
    return b


seconds = st.floats(0, 1e6)
backoffs = st.builds(
    lambda initial, more, factor, jitter, seed: Backoff(
        initial, initial + more, factor, jitter, random.Random(seed).uniform
    ),
    seconds,
    seconds,
    st.floats(1, 100),
    st.sampled_from(JITTERS),
    st.integers(),
)
attempts = st.one_of(st.integers(1, 40), st.integers(1, 10**6))


@given(backoffs, attempts, seconds)
def test_bounds(backoff: Backoff, attempt: int, previous: float) -> None:
    if attempt == 1:
        previous = 0.0
    wait = backoff.delay(attempt, previous)
    e = backoff.ceiling(attempt)
    assert 0 <= wait <= e <= backoff.maximum
    match backoff.jitter:
        case "none":
            assert wait == e
        case "equal":
            assert wait >= e / 2
        case "decorrelated":
            assert min(backoff.initial, backoff.maximum) <= wait
            assert wait <= max(backoff.initial, 3 * max(backoff.initial, previous))
        case "full":
            pass


@given(backoffs, st.integers(1, 100))
def test_the_ceiling_grows_and_is_capped(backoff: Backoff, attempt: int) -> None:
    assert backoff.initial <= backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1) <= backoff.maximum


@pytest.mark.parametrize(
    ("jitter", "uniform", "waits"),
    [
        ("none", high, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        ("full", high, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        ("full", low, [0.0] * 6),
        ("equal", high, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        ("equal", low, [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]),
    ],
)
def test_waits(jitter: Jitter, uniform: Any, waits: list[float]) -> None:
    backoff = Backoff(0.1, 1.0, 2.0, jitter, uniform)
    assert [backoff.delay(attempt) for attempt in range(1, 7)] == pytest.approx(waits)


def test_decorrelated_goes_by_the_previous_wait() -> None:
    backoff = Backoff(0.1, 1.0, jitter="decorrelated", uniform=high)
    waits = [0.0]
    for attempt in range(1, 5):
        waits.append(backoff.delay(attempt, waits[-1]))
    assert waits[1:] == pytest.approx([0.3, 0.9, 1.0, 1.0])
    shortest = Backoff(0.1, 1.0, jitter="decorrelated", uniform=low)
    assert [shortest.delay(attempt, 0.9) for attempt in (1, 2, 30)] == [0.1] * 3


def test_decorrelated_looks_at_the_state_of_the_call_only() -> None:
    backoff = Backoff(0.1, 100.0, jitter="decorrelated", uniform=high)
    calls = [state(1), state(1), state(1)]
    for _ in range(3):
        for call in calls:
            call.upcoming_sleep = backoff(call)
            call.attempt_number += 1
    assert [call.upcoming_sleep for call in calls] == pytest.approx([2.7] * 3)


@pytest.mark.parametrize("jitter", RANDOM)
def test_jitter_survives_the_cap(jitter: Jitter) -> None:
    backoff = Backoff(0.1, 5.0, jitter=jitter, uniform=random.Random(7).uniform)
    waits = [backoff.delay(30, 5.0) for _ in range(2000)]
    assert statistics.stdev(waits) > 5.0 * 0.14  # uniform over half of the range has a seventh of it
    assert waits.count(5.0) < 3  # clients that failed together do not come back together


@pytest.mark.parametrize(("jitter", "mean"), [("full", 2.5), ("equal", 3.75), ("decorrelated", 2.55)])
def test_the_mean_at_the_cap(jitter: Jitter, mean: float) -> None:
    backoff = Backoff(0.1, 5.0, jitter=jitter, uniform=random.Random(7).uniform)
    assert statistics.fmean(backoff.delay(30, 5.0) for _ in range(5000)) == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("attempt", [1024, 1025, 5000, 10**9])
def test_far_out(jitter: Jitter, attempt: int) -> None:
    assert Backoff(jitter=jitter, uniform=high).delay(attempt, 5.0) == 5.0
    assert Backoff(1, 5, 2, jitter, uniform=high).delay(attempt, 5.0) == 5.0  # integers do not overflow, they grow
    assert Backoff(3.0, 3.0, 1.0, jitter, uniform=high).delay(attempt, 5.0) == 3.0


@pytest.mark.parametrize("attempt", [1, 2, 1000, 5000])
def test_no_initial_wait_is_no_wait_at_all(attempt: int) -> None:
    assert Backoff(0, 5).ceiling(attempt) == 0
    assert Backoff(0, 0).delay(attempt) == 0


def test_the_ceiling_of_decorrelated() -> None:
    backoff = Backoff(jitter="decorrelated")
    assert backoff.ceiling(1) == pytest.approx(0.3)
    assert backoff.ceiling(2) == 5.0


def test_durations_may_be_texts() -> None:
    assert Backoff("100ms", "1m") == Backoff(0.1, 60.0)


def test_seedable() -> None:
    def drawn(seed: int) -> list[float]:
        backoff = Backoff(uniform=random.Random(seed).uniform)
        return [backoff.delay(attempt) for attempt in range(1, 20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_default_source_is_the_random_module() -> None:
    random.seed(5)
    first = Backoff().delay(3)
    random.seed(5)
    assert Backoff().delay(3) == first == random.Random(5).uniform(0, 0.4)


# A tenacity wait


def test_is_a_tenacity_wait() -> None:
    assert isinstance(Backoff(), wait_base)
    assert Backoff(jitter="none")(state(3)) == pytest.approx(0.4)
    assert Backoff(0.1, 9.0, jitter="decorrelated", uniform=high)(state(2, previous=0.5)) == pytest.approx(1.5)


def test_adds_to_tenacity_waits() -> None:
    backoff = Backoff(1, 4, jitter="none")
    for combined in (backoff + wait_fixed(10), wait_fixed(10) + backoff, sum([backoff, wait_fixed(10)])):
        assert isinstance(combined, wait_combine)
        assert [combined(state(attempt)) for attempt in (1, 2, 3)] == [11, 12, 14]
    chain = wait_chain(wait_fixed(7), backoff)
    assert [chain(state(attempt)) for attempt in (1, 2, 3)] == [7, 2, 4]


def test_drives_tenacity() -> None:
    slept: list[float] = []
    retrying = tenacity.Retrying(
        wait=Backoff(0.1, 0.3, jitter="none"), stop=tenacity.stop_after_attempt(5), sleep=slept.append, reraise=True
    )
    with pytest.raises(ZeroDivisionError):
        retrying(lambda: 1 / 0)
    assert slept == pytest.approx([0.1, 0.2, 0.3, 0.3])


# A value


def test_equal_by_settings() -> None:
    uniform = random.Random(1).uniform
    assert Backoff() == Backoff(0.1, 5.0, 2.0, "full")
    assert Backoff(1, 5) == Backoff(1.0, 5.0)
    assert hash(Backoff(1, 5)) == hash(Backoff(1.0, 5.0))
    assert Backoff(uniform=uniform) == Backoff(uniform=uniform)
    others = (Backoff(0.2), Backoff(maximum=6), Backoff(factor=3), Backoff(jitter="none"), Backoff(uniform=uniform))
    assert len({Backoff(), *others}) == 6
    assert Backoff() != wait_fixed(1)


@pytest.mark.parametrize("jitter", JITTERS)
def test_copied(jitter: Jitter) -> None:
    backoff = Backoff(0.2, 7.0, 3.0, jitter)
    twins = [pickle.loads(pickle.dumps(backoff, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in (*twins, copy.copy(backoff), copy.deepcopy(backoff)):
        assert twin == backoff
        assert hash(twin) == hash(backoff)
        # Not a copy of the generator with its state: processes would then draw the same.
        assert twin.uniform == random.uniform
    mine = Backoff(uniform=low)
    assert pickle.loads(pickle.dumps(mine)).uniform is low


def test_immutable() -> None:
    backoff = Backoff()
    with pytest.raises(AttributeError, match="a Backoff is immutable; cannot set maximum"):
        backoff.maximum = 1.0  # type: ignore[misc]
    with pytest.raises(AttributeError, match="a Backoff is immutable; cannot delete maximum"):
        del backoff.maximum
    with pytest.raises(AttributeError, match="a Backoff is immutable; cannot set other"):
        backoff.other = 1


def test_printed() -> None:
    assert repr(Backoff()) == "Backoff(initial=0.1, maximum=5.0, factor=2.0, jitter='full')"


SECONDS = "must be at least 0 and finite"
DURATION = "must be a number of seconds, or a text such as '250ms', '2s', '1m'"
FACTOR = "must be a finite number, at least 1"


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({"initial": -0.1}, [f"initial=-0.1: {SECONDS}"]),
        ({"initial": math.nan}, [f"initial=nan: {SECONDS}"]),
        ({"initial": math.inf}, [f"initial=inf: {SECONDS}"]),
        ({"initial": True}, [f"initial=True: {DURATION}"]),
        ({"initial": "soon"}, [f"initial='soon': {DURATION}"]),
        ({"initial": None}, [f"initial=None: {DURATION}"]),
        ({"maximum": math.inf}, [f"maximum=inf: {SECONDS}"]),
        ({"maximum": 10**400}, [f"maximum=<1329-bit integer>: {SECONDS}"]),
        ({"factor": 0.5}, [f"factor=0.5: {FACTOR}"]),
        ({"factor": math.inf}, [f"factor=inf: {FACTOR}"]),
        ({"initial": 2.0, "maximum": 1.0}, ["maximum=1.0: must not be below initial, 2.0"]),
        ({"jitter": "Full"}, ["jitter='Full': must be one of full, equal, decorrelated, none"]),
        ({"jitter": None}, ["jitter=None: must be one of full, equal, decorrelated, none"]),
        ({"uniform": random.Random(1)}, ["uniform=<Random>: must be a callable of (low, high)"]),
        (
            {"initial": -1, "maximum": -2, "factor": 0, "jitter": "x", "uniform": None},
            [
                f"initial=-1: {SECONDS}",
                f"maximum=-2: {SECONDS}",
                f"factor=0: {FACTOR}",
                "jitter='x': must be one of full, equal, decorrelated, none",
                "uniform=None: must be a callable of (low, high)",
            ],
        ),
    ],
    ids=repr,
)
def test_settings_that_cannot_work(settings: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as info:
        Backoff(**settings)
    assert list(info.value.problems) == problems
