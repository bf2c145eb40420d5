"""The circuit by itself: states, window, leases, and what counts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aioconnect.breaker import Circuit, CircuitBreaker
from aioconnect.errors import CircuitOpen, ConfigError, ConnectRefused, NetworkError

INF = math.inf


def error() -> NetworkError:
    return ConnectRefused(address=("10.0.0.1", 80))


def counting(failures: int, previous: float) -> float:
    """A pause that tells for which count it is."""
    return float(failures)


def circuit_of(failures: int = 3) -> Circuit:
    return Circuit(CircuitBreaker(failures))


def opened(failures: int = 3, now: float = 0.0) -> Circuit:
    circuit = circuit_of(failures)
    for _ in range(failures):
        circuit.failed(error(), now, counting)
    assert circuit.state == "open"
    return circuit


# ------------------------------------------------------------------------------------------ the settings


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"failures": 0}, "failures=0: must be an integer, 1 or more"),
        ({"failures": 2.5}, "failures=2.5: must be an integer, 1 or more"),
        ({"failures": True}, "failures=True: must be an integer, 1 or more"),
        ({"failures": math.nan}, "failures=nan: must be an integer, 1 or more"),
        ({"when_open": "panic"}, "when_open='panic': must be one of wait, fail"),
        ({"when_open": None}, "when_open=None: must be one of wait, fail"),
        ({"failures": -1, "when_open": ""}, "failures=-1"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CircuitBreaker(**arguments)
    assert text in str(caught.value)
    assert len(caught.value.problems) == len(arguments)


# ------------------------------------------------------------------------------------------ closed


def test_a_few_at_once_until_the_first_success() -> None:
    circuit = circuit_of(3)
    assert (circuit.state, circuit.window, circuit.healthy) == ("closed", 3, False)
    assert not circuit.succeeded(1, crowded=False)
    assert (circuit.window, circuit.healthy) == (INF, True)


def test_a_few_at_once_after_a_failure() -> None:
    circuit = circuit_of(3)
    circuit.succeeded(0, crowded=False)
    assert not circuit.failed(error(), 1, counting)
    assert (circuit.window, circuit.healthy, circuit.failures) == (3, False, 1)
    circuit.succeeded(2, crowded=False)
    assert (circuit.window, circuit.healthy, circuit.failures, circuit.last_error) == (INF, True, 0, None)


def test_a_few_at_once_after_a_loss() -> None:
    circuit = circuit_of(3)
    circuit.succeeded(0, crowded=False)
    circuit.doubted()
    assert (circuit.window, circuit.healthy, circuit.failures) == (3, False, 0)


def test_a_loss_does_not_widen_a_window() -> None:
    circuit = opened(3)
    circuit.doubted()
    assert circuit.window == 0
    circuit.succeeded(5, crowded=True)
    circuit.doubted()
    assert circuit.window == 2


def test_only_failures_in_a_row_open_it() -> None:
    circuit = circuit_of(2)
    for now in range(10):
        assert not circuit.failed(error(), now, counting)
        circuit.succeeded(now, crowded=False)
    assert circuit.state == "closed"


# ------------------------------------------------------------------------------------------ open, and half open


def test_it_opens_for_what_the_schedule_says_of_the_count() -> None:
    circuit = circuit_of(3)
    assert [circuit.failed(error(), 10, counting) for _ in range(3)] == [False, False, True]
    assert (circuit.state, circuit.since, circuit.retry_at, circuit.window) == ("open", 10, 13, 0)
    assert circuit.probe_due == 13


def test_a_probe_that_fails_prolongs_it() -> None:
    circuit = opened(3)
    lease = circuit.lease(3, 5)
    assert circuit.state == "half_open"
    assert circuit.probe_due == 8
    assert not circuit.failed(error(), 4, counting, lease)
    assert (circuit.state, circuit.since, circuit.retry_at, circuit.failures) == ("open", 0, 8, 4)


def test_the_pause_before_is_given_to_the_schedule() -> None:
    """Also at the opening, where it is what a call would have had that kept to the schedule from the start."""
    seen: list[tuple[int, float]] = []

    def pause(failures: int, previous: float) -> float:
        seen.append((failures, previous))
        return failures * 10

    circuit = circuit_of(2)
    for now in range(4):
        circuit.failed(error(), now, pause, circuit.lease(now, 1) if now > 1 else None)
    assert seen == [(1, 0.0), (2, 10), (3, 20), (4, 30)]


def test_while_open_only_the_probe_counts() -> None:
    circuit = opened(3)
    circuit.failed(error(), 1, counting)
    assert (circuit.failures, circuit.retry_at) == (3, 3)
    lease = circuit.lease(3, 5)
    circuit.failed(error(), 4, counting)
    circuit.failed(error(), 4, counting, object())
    assert (circuit.state, circuit.failures) == ("half_open", 3)
    circuit.failed(error(), 4, counting, lease)
    assert circuit.failures == 4


def test_a_lease_given_back_is_due_again() -> None:
    circuit = opened(3)
    lease = circuit.lease(3, 5)
    circuit.give_back(lease, 4)
    assert (circuit.state, circuit.probe_due, circuit.failures) == ("open", 4, 3)
    circuit.give_back(lease, 9)
    assert circuit.probe_due == 4


def test_a_lease_that_has_expired_is_worth_nothing() -> None:
    circuit = opened(3)
    first = circuit.lease(3, 5)
    second = circuit.lease(8, 5)
    circuit.give_back(first, 9)
    assert not circuit.failed(error(), 9, counting, first)
    assert (circuit.state, circuit.failures, circuit.probe_due) == ("half_open", 3, 13)
    circuit.failed(error(), 10, counting, second)
    assert (circuit.state, circuit.failures) == ("open", 4)


def test_an_expired_probe_that_is_good_closes_it() -> None:
    circuit = opened(3)
    circuit.lease(3, 5)
    second = circuit.lease(8, 5)
    assert circuit.succeeded(9, crowded=True)
    circuit.give_back(second, 10)
    assert (circuit.state, circuit.window, circuit.retry_at) == ("closed", 2, None)
    # The second probe is a dial like any other now.
    assert not circuit.failed(error(), 10, counting, second)
    assert (circuit.failures, circuit.window) == (1, 2)


def test_one_more_for_each_success() -> None:
    circuit = opened(3)
    circuit.lease(3, 5)
    windows = []
    for now in range(4, 8):
        circuit.succeeded(now, crowded=True)
        windows.append(circuit.window)
    assert windows == [2, 3, 4, 5]
    assert not circuit.healthy
    circuit.succeeded(9, crowded=False)
    assert (circuit.window, circuit.healthy) == (INF, True)


def test_a_failure_on_the_way_up_does_not_widen_the_window() -> None:
    circuit = opened(3)
    circuit.succeeded(4, crowded=True)
    circuit.failed(error(), 4, counting)
    assert circuit.window == 2
    for _ in range(10):
        circuit.succeeded(5, crowded=True)
    circuit.failed(error(), 6, counting)
    assert circuit.window == 3


def test_retry_now() -> None:
    circuit = circuit_of(3)
    circuit.retry_now(1)
    assert circuit.retry_at is None
    circuit = opened(3)
    circuit.retry_now(1)
    assert (circuit.state, circuit.probe_due) == ("open", 1)
    circuit.lease(1, 5)
    circuit.retry_now(2)
    assert (circuit.state, circuit.probe_due) == ("half_open", 6)


def test_a_refusal_tells_since_when_and_until_when() -> None:
    circuit = opened(3, now=0.0)
    refusal = circuit.refusal(1)
    assert isinstance(refusal, CircuitOpen)
    assert (refusal.since, refusal.retry_in, refusal.kind) == (1, 2, "transient")
    assert refusal.__cause__ is circuit.last_error
    assert circuit.refusal(7).retry_in == 0


@pytest.mark.parametrize("probing", [False, True])
def test_a_schedule_that_raises_leaves_it_as_it_was(probing: bool) -> None:
    def broken(failures: int, previous: float) -> float:
        raise LookupError

    circuit = opened(3) if probing else circuit_of(1)
    lease = circuit.lease(3, 5) if probing else None
    before = circuit.state, circuit.since, circuit.retry_at, circuit.window
    with pytest.raises(LookupError):
        circuit.failed(error(), 4, broken, lease)
    assert (circuit.state, circuit.since, circuit.retry_at, circuit.window) == before
    circuit.give_back(lease, 4)
    assert circuit.state == ("open" if probing else "closed")
    assert circuit.succeeded(5, crowded=False) is probing
    assert circuit.window == INF


# ------------------------------------------------------------------------------------------ hanging up


def hang(circuit: Circuit, now: float, made: float) -> bool:
    return circuit.hung_up(error(), now, counting, made, 1.0)


def test_who_hangs_up_goes_on_counting() -> None:
    circuit = opened(3)
    for count in (4, 5, 6):
        circuit.lease(10, 5)
        assert circuit.succeeded(10, crowded=False)
        assert hang(circuit, 10.5, 10)
        assert (circuit.state, circuit.failures, circuit.retry_at) == ("open", count, 10.5 + count)


def test_who_hangs_up_from_the_start_opens_it_in_the_end() -> None:
    circuit = circuit_of(3)
    for count in (1, 2, 3):
        circuit.succeeded(count, crowded=False)
        assert hang(circuit, count + 0.5, count) is (count == 3)
    assert circuit.failures == 3


def test_once_it_has_been_stable_the_count_begins_anew() -> None:
    circuit = opened(3)
    circuit.succeeded(10, crowded=False)
    assert not hang(circuit, 21.5, 21)
    assert (circuit.state, circuit.failures, circuit.window) == ("closed", 1, 3)


def test_many_who_are_hung_up_on_at_once_are_one_step() -> None:
    circuit = opened(3)
    circuit.succeeded(10, crowded=True)
    assert [hang(circuit, 10.5, 10) for _ in range(5)] == [True, False, False, False, False]
    assert (circuit.failures, circuit.retry_at) == (4, 14.5)


# ------------------------------------------------------------------------------------------ without a breaker


def test_without_a_breaker_it_counts_and_never_opens() -> None:
    circuit = Circuit(None)
    for _ in range(100):
        assert not circuit.failed(error(), 0, counting)
    assert not hang(circuit, 0, 0)
    assert (circuit.state, circuit.failures, circuit.window) == ("closed", 101, INF)
    circuit.doubted()
    assert not circuit.healthy
    assert not circuit.succeeded(1, crowded=True)
    assert (circuit.failures, circuit.window) == (0, INF)


def test_it_says_what_it_is() -> None:
    assert repr(opened(3)) == "<Circuit open failures=3>"
