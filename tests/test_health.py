"""What is learnt about addresses, and the order that follows; the clock is a number."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect.health import AddressHealth
from aioconnect.resolver import AddressInfo
from tests.support.network import infos

A, B, C, D = infos("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
ALL = [A, B, C, D]
NAMES = dict(zip((each.sockaddr for each in ALL), "ABCD", strict=True))


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def letters(addresses: list[AddressInfo]) -> str:
    return "".join(NAMES[each.sockaddr] for each in addresses)


class Learnt:
    """The tests' view: addresses by their letters."""

    def __init__(self, uniform: Any = middle, one_in: int = 50) -> None:
        self.health = AddressHealth(uniform, one_in)

    def won(self, winner: str, beaten: str, now: float) -> None:
        self.health.won(self.place(winner), [self.place(each) for each in beaten], now)

    def failed(self, place: str, now: float, *, answered: bool = False) -> None:
        self.health.failed(self.place(place), now, answered=answered)

    def place(self, letter: str) -> Any:
        return ALL["ABCD".index(letter)].sockaddr

    def order(self, now: float) -> str:
        return letters(self.health.demoted(self.health.preferred(ALL, now), now))


def test_what_is_unknown_stays_as_it_is() -> None:
    learnt = Learnt()
    assert learnt.order(0) == "ABCD"
    assert learnt.health.steady_until(ALL, 0) == float("inf")


def test_the_last_winner_comes_first_and_who_was_beaten_last() -> None:
    learnt = Learnt()
    learnt.won("C", "AB", 0)
    assert learnt.order(1) == "CDAB"


@pytest.mark.parametrize(("now", "order"), [(29.9, "BCDA"), (30.0, "BACD"), (599.9, "BACD"), (600.0, "ABCD")])
def test_all_of_it_decays(now: float, order: str) -> None:
    learnt = Learnt()
    learnt.won("B", "A", 0)
    assert learnt.order(now) == order


def test_a_win_renews_the_preference() -> None:
    learnt = Learnt()
    for now in range(0, 3000, 500):
        learnt.won("B", "", now)
    assert learnt.order(3099) == "BACD"
    assert learnt.order(3100) == "ABCD"


def test_the_last_of_several_winners_is_the_first() -> None:
    learnt = Learnt()
    for number, winner in enumerate("BDC"):
        learnt.won(winner, "", number)
    assert learnt.order(9) == "CDBA"


def test_of_two_winners_at_the_same_time_the_last_is_the_first() -> None:
    learnt = Learnt()
    learnt.won("D", "", 0)
    learnt.won("C", "", 0)
    assert learnt.order(0) == "CDAB"


@pytest.mark.parametrize(("failures", "seconds"), [(1, 30), (2, 60), (3, 120), (4, 240), (5, 480), (6, 600), (40, 600)])
def test_who_keeps_failing_is_demoted_for_longer(failures: int, seconds: float) -> None:
    learnt = Learnt()
    now = 0.0
    for _ in range(failures):
        now += 10_000
        learnt.failed("A", now)
    assert learnt.order(now + seconds - 0.1) == "BCDA"
    assert learnt.order(now + seconds) == "ABCD"


def test_of_dials_that_fail_side_by_side_one_counts() -> None:
    learnt = Learnt()
    for _ in range(50):
        learnt.failed("A", 0)
    learnt.failed("A", 29)
    assert (learnt.order(58), learnt.order(59)) == ("BCDA", "ABCD"), "renewed, but not for longer"


def test_of_all_that_have_failed_the_one_that_has_worked_before_comes_first() -> None:
    """A restart of what is behind C, while A never answers: A is no better for that."""
    learnt = Learnt()
    learnt.won("C", "A", 0)
    for now in range(1, 20, 5):
        for place in "AC":
            learnt.failed(place, now)
    assert learnt.order(20) == "BDCA"


def test_a_win_ends_it() -> None:
    learnt = Learnt()
    for now in (0, 100, 200):
        learnt.failed("A", now)
    learnt.won("A", "", 201)
    assert learnt.order(201) == "ABCD"
    learnt.failed("A", 300)
    assert (learnt.order(329), learnt.order(330)) == ("BCDA", "ABCD"), "as if it were the first time"


def test_a_winner_that_fails_is_preferred_no_longer() -> None:
    learnt = Learnt()
    learnt.won("C", "", 0)
    learnt.failed("C", 1)
    assert (learnt.order(2), learnt.order(31)) == ("ABDC", "ABCD")


def test_when_all_have_failed_all_are_tried_and_the_first_to_be_forgiven_first() -> None:
    learnt = Learnt()
    for now, place in enumerate("DBCA"):
        learnt.failed(place, now)
    assert learnt.order(5) == "DBCA"
    together = Learnt()
    for place in "DBCA":
        together.failed(place, 0)
    assert together.order(1) == "ABCD", "as the resolver has them"


def test_who_answered_comes_before_who_did_not() -> None:
    """A dead IPv6 path and a server that is not ready yet on IPv4: the path is not tried first all the while."""
    learnt = Learnt()
    learnt.failed("A", 0)
    learnt.failed("B", 0.3, answered=True)
    assert learnt.order(1) == "CDBA"


@given(st.integers(0, 2**32))
def test_history_is_ignored_about_one_time_in_fifty(seed: int) -> None:
    health = AddressHealth(random.Random(seed).uniform)
    dials = [health.ignored() for _ in range(2000)]
    assert 27 <= sum(dials) <= 80
    assert not any(dials[:24]), "nor right after it was learnt"
    again = AddressHealth(random.Random(seed).uniform)
    assert [again.ignored() for _ in range(2000)] == dials


def test_how_often_it_is_ignored_can_be_told() -> None:
    health = AddressHealth(middle, one_in=4)
    assert [health.ignored() for _ in range(8)] == [False, False, False, True] * 2


def test_the_table_is_bounded() -> None:
    health = AddressHealth(middle)
    first, *others = infos(*(f"10.0.{high}.{low}" for high in range(3) for low in range(1, 201)))
    for each in (first, *others):
        health.failed(each.sockaddr, 0)
    assert len(health._records) == 256
    assert health.demoted([others[-1], first], 1) == [first, others[-1]], "the oldest is unknown again"


def test_what_another_clock_has_said_can_be_forgotten() -> None:
    learnt = Learnt()
    learnt.won("C", "AB", 1e6)
    before = learnt.health.changes
    learnt.health.reset()
    assert learnt.order(0) == "ABCD"
    assert learnt.health.changes > before


def test_only_news_counts_as_a_change() -> None:
    learnt = Learnt()
    health = learnt.health
    learnt.won("A", "", 0)
    before = health.changes
    for now in range(100):
        learnt.won("A", "", now)
    assert health.changes == before
    learnt.won("B", "", 100)
    assert health.changes == before + 1
    learnt.failed("B", 101)
    assert health.changes == before + 2


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["won", "failed", "answered"]),
        st.sampled_from("ABCD"),
        st.sets(st.sampled_from("ABCD")),
        st.floats(0, 700),
    ),
    max_size=12,
)


@given(EVENTS, st.permutations(ALL), st.floats(0, 1500))
def test_an_order_is_a_permutation_and_steady(events: list[Any], addresses: list[AddressInfo], later: float) -> None:
    learnt = Learnt()
    now = 0.0
    for kind, place, beaten, passed in events:
        now += passed
        if kind == "won":
            learnt.won(place, "".join(sorted(beaten - {place})), now)
        else:
            learnt.failed(place, now, answered=kind == "answered")
    health = learnt.health

    def order(at: float) -> list[AddressInfo]:
        return health.demoted(health.preferred(addresses, at), at)

    assert sorted(order(now)) == sorted(ALL)
    until = health.steady_until(addresses, now)
    assert until > now
    assert now + later >= until or order(now + later) == order(now)
    # The last winner is never behind one that has failed since.
    if events and events[-1][0] == "won":
        assert order(now)[0].sockaddr == learnt.place(events[-1][1])
