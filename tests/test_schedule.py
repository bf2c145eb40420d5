"""When a link or a pool may dial again; all of it without a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from tenacity import RetryCallState

from aioconnect import Backoff, ConfigError, ConnectRefused, Policy
from aioconnect.breaker import Circuit
from aioconnect.schedule import Schedule

REFUSED = ConnectRefused()
EXACT = Backoff(initial=0.1, maximum=5.0, jitter="none")
POLICY = Policy(wait=EXACT)


CLOSED = Circuit(None)


def opened(failures: int, retry_at: float) -> Circuit:
    circuit = Circuit(None)
    circuit.failures, circuit.retry_at = failures, retry_at
    return circuit


def pauses(wait: Callable[[RetryCallState], float], count: int) -> list[float]:
    schedule, now, found = Schedule(Policy(wait=wait), 1.0), 100.0, list[float]()
    for _ in range(count):
        schedule.failed(REFUSED, now, CLOSED)
        found.append(round(schedule.resume_at - now, 6))
        now = schedule.resume_at
    return found


def test_attempts_that_fail_are_met_with_the_policys_waits() -> None:
    assert pauses(EXACT, 8) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (tenacity.wait_fixed(3), [3, 3, 3]),
        (tenacity.wait_incrementing(1, 2), [1, 3, 5]),
        (tenacity.wait_exponential(min=1, max=3), [1, 2, 3]),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(4)), [1, 4, 4]),
        (tenacity.wait_exception(lambda error: 2.0 if isinstance(error, ConnectRefused) else 9.0), [2, 2, 2]),
        (lambda state: state.upcoming_sleep + 1.0, [1, 2, 3]),
        (lambda state: state.idle_for + state.attempt_number, [1, 3, 7]),
        (lambda state: 1.0 + state.seconds_since_start, [1, 2, 4]),
    ],
)
def test_any_wait_sees_the_state_it_knows_from_tenacity(wait: Any, expected: list[float]) -> None:
    assert pauses(wait, 3) == expected


def test_a_connection_that_was_stable_is_followed_by_the_next_at_once() -> None:
    schedule = Schedule(POLICY, 1.0)
    for _ in range(5):
        schedule.failed(REFUSED, 10.0, CLOSED)
    schedule.lost(None, 20.0, 21.0, CLOSED)
    assert (schedule.failures, schedule.resume_at) == (0, -math.inf)
    schedule.failed(REFUSED, 21.0, CLOSED)
    assert schedule.resume_at == 21.1


def test_short_lived_connections_and_failures_are_one_count() -> None:
    schedule = Schedule(POLICY, 1.0)
    schedule.failed(REFUSED, 10.0, CLOSED)
    for made, lifetime, pause in ((20.0, 0.0, 0.2), (30.0, 0.5, 0.4), (40.0, 0.999, 0.8)):
        assert schedule.failures > 0  # a connection as such is worth nothing yet
        schedule.lost(None, made, made + lifetime, CLOSED)
        assert schedule.resume_at == pytest.approx(made + lifetime + pause)
    schedule.failed(REFUSED, 50.0, CLOSED)
    assert schedule.failures == 5


def test_those_that_die_together_are_one_failure() -> None:
    schedule = Schedule(POLICY, 1.0)
    for _ in range(10):
        schedule.lost(REFUSED, 9.9, 10.0, CLOSED)
    assert (schedule.failures, schedule.resume_at) == (1, 10.1)


def test_an_old_connection_says_nothing_of_today() -> None:
    schedule = Schedule(POLICY, 1.0)
    for now in (10.0, 20.0):
        schedule.lost(REFUSED, now - 0.1, now, CLOSED)
        schedule.left(1.0, now)
    assert (schedule.failures, schedule.resume_at) == (2, 20.2)


@pytest.mark.parametrize("stable_after", [0.0, 0.05])
def test_there_is_always_some_pause(stable_after: float) -> None:
    schedule = Schedule(POLICY, stable_after)
    schedule.lost(REFUSED, 10.0, 10.05, CLOSED)
    assert schedule.failures == 1
    schedule.lost(REFUSED, 20.0, 20.1, CLOSED)
    assert schedule.failures == 0


def test_a_connection_left_early_counts_for_nothing() -> None:
    schedule = Schedule(POLICY, 1.0)
    schedule.failed(REFUSED, 10.0, CLOSED)
    schedule.left(20.0, 20.5)
    assert (schedule.failures, schedule.resume_at) == (1, 10.1)
    schedule.left(20.0, 21.0)
    assert (schedule.failures, schedule.resume_at) == (0, -math.inf)


@pytest.mark.parametrize(
    ("wait", "longest"),
    [
        (EXACT, 5.0),
        (Backoff(initial=0.1, maximum=600, factor=1.2, jitter="none"), 600.0),
        (tenacity.wait_exponential(max=30), 30.0),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(4)), 4.0),
        (tenacity.wait_fixed(2), 2.0),
        (tenacity.wait_exponential(), 3600.0),
        (tenacity.wait_incrementing(1, 10_000), 3600.0),
    ],
)
def test_a_permanent_error_is_met_with_the_longest_wait(wait: Any, longest: float) -> None:
    schedule = Schedule(Policy(wait=wait), 1.0)
    schedule.failed(REFUSED, 10.0, CLOSED, permanent=True)
    assert schedule.resume_at == 10.0 + longest
    assert schedule.failures == 1


def test_the_circuit_and_the_link_have_one_schedule() -> None:
    schedule = Schedule(POLICY, 1.0)
    schedule.failed(REFUSED, 10.0, opened(5, 10.05))
    assert schedule.resume_at == 10.05  # drawn once already, for the failures that this one is among
    for _ in range(5):
        schedule.failed(REFUSED, 20.0, opened(5, 20.01))
    assert schedule.failures == 6
    assert schedule.resume_at == 20.0 + 3.2  # the link has seen more, such as connections that did not last
    schedule.failed(REFUSED, 30.0, opened(6, 99.0))
    assert schedule.resume_at == 99.0


def test_resume_ends_the_pause_and_keeps_the_count() -> None:
    schedule = Schedule(POLICY, 1.0)
    schedule.failed(REFUSED, 10.0, CLOSED)
    schedule.resume()
    assert (schedule.failures, schedule.resume_at) == (1, -math.inf)


@pytest.mark.parametrize("pause", [-1.0, math.nan, math.inf, "1", None])
def test_what_is_no_pause_is_refused(pause: Any) -> None:
    with pytest.raises(ConfigError, match=r"wait=.*finite number of seconds"):
        Schedule(Policy(wait=lambda _: pause), 1.0).failed(REFUSED, 0.0, CLOSED)
