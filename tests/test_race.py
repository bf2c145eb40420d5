"""The race without I/O: which address starts when. The scenarios are told as ``address: seconds, fate``."""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect.race import AT_ONCE, Race, interleaved


class Fate(NamedTuple):
    """What comes of an attempt: after so many seconds it has a connection, or has failed."""

    seconds: float
    good: bool


class Outcome(NamedTuple):
    """How a race went: who started when, who won and when it was over; `open` are those that won as well."""

    starts: list[float]
    winner: int | None
    over: float
    most: int
    fails: list[float]
    open: set[int]


def fate(text: str) -> Fate:
    seconds, good = text.split()
    return Fate(float(seconds), good == "ok")


def run(race: Race, fates: list[Fate]) -> Outcome:
    """Play a race on a clock that jumps; of several things at one moment, failures come first."""
    now, most, starts, fails = 0.0, 0, list[float](), list[float]()
    ends: list[tuple[float, bool, int]] = []
    while True:
        while (number := race.start(now)) is not None:
            assert number == len(starts)
            starts.append(now)
            heapq.heappush(ends, (now + fates[number].seconds, fates[number].good, number))
            most = max(most, len(ends))
        assert race.flying == len(ends)
        if race.lost or not ends:
            assert race.lost == (not ends)
            assert race.next_start is None
            return Outcome(starts, None, now, most, fails, set())
        due = race.next_start
        assert due is None or due > now
        if due is not None and due < ends[0][0]:
            now = due
            continue
        now, good, number = heapq.heappop(ends)
        if good:
            also = {other for when, fine, other in ends if fine and when == now}
            return Outcome(starts, number, now, most, fails, also | {number})
        fails.append(now)
        race.fail(now)


def play(delay: float | None, *fates: str) -> Outcome:
    return run(Race(len(fates), delay), [fate(text) for text in fates])


@pytest.mark.parametrize(
    ("delay", "fates", "starts", "winner", "over"),
    [
        # One address.
        (0.25, ["0.123 ok"], [0], 0, 0.123),
        (0.25, ["100 ok"], [0], 0, 100),
        (0.25, ["0.123 err"], [0], None, 0.123),
        # Each further one a delay after the one before.
        (0.25, ["1 ok", "1 ok", "0.2 ok"], [0, 0.25, 0.5], 2, 0.7),
        # Who is there early stops the list.
        (0.25, ["1 ok", "0.1 ok", "0.2 ok"], [0, 0.25], 1, 0.35),
        # A longer delay lets the first win.
        (0.45, ["1 ok", "1 ok", "0.2 ok"], [0, 0.45, 0.9], 0, 1),
        # A failure starts the next at once, and the delay counts from there.
        (0.25, ["0.1 err", "0.2 err", "10 ok", "0.25 ok"], [0, 0.1, 0.3, 0.55], 3, 0.8),
        # All fail: not before the last does.
        (0.25, ["0.1 err", "0.2 err", "10 err", "0.25 err"], [0, 0.1, 0.3, 0.55], None, 10.3),
        # A dead heat.
        (1, ["0.5 err", "10 ok", "9 ok", "8 ok", "0.5 err"], [0, 0.5, 1.5, 2.5, 3.5], 1, 10.5),
        # Slow is not dead.
        (0.25, ["0.3 ok", "0.4 ok"], [0, 0.25], 0, 0.3),
        # The order matters.
        (1, ["10 err", "0.5 ok", "1 ok"], [0, 1], 1, 1.5),
        # What fails in the call costs no delay: 6a, 4a without IPv4, 6b, 4b.
        (1, ["10 ok", "0 err", "0.1 ok", "0 err"], [0, 1, 1], 2, 1.1),
        (1, ["0 err", "0 err", "0 err"], [0, 0, 0], None, 0),
        # No delay given: one at a time.
        (None, ["3 err", "0.5 err", "2 ok", "1 ok"], [0, 3, 3.5], 2, 5.5),
        (None, ["3 err", "0.5 err"], [0, 3], None, 3.5),
        # Six are silent: the seventh waits until one has failed.
        (0.25, ["9 err"] * 7, [0, 0.25, 0.5, 0.75, 1, 1.25, 9], None, 18),
        (0.25, ["9 err", *["99 err"] * 5, "1 ok"], [0, 0.25, 0.5, 0.75, 1, 1.25, 9], 6, 10),
        # Nobody to try.
        (0.25, [], [], None, 0),
    ],
)
def test_scenario(delay: float | None, fates: list[str], starts: list[float], winner: int | None, over: float) -> None:
    outcome = play(delay, *fates)
    assert outcome.starts == pytest.approx(starts)
    assert outcome.winner == winner
    assert outcome.over == pytest.approx(over)


def test_a_dead_heat_has_several_to_close() -> None:
    assert play(1, "0.5 err", "10 ok", "9 ok", "8 ok", "0.5 err").open == {1, 2, 3}


def test_two_failures_at_once_start_one_each() -> None:
    race = Race(5, delay=10.0)
    assert [race.start(0.0), race.start(10.0), race.start(10.0)] == [0, 1, None]
    race.fail(12.0)
    assert [race.start(12.0), race.start(12.0)] == [2, None]
    race.fail(12.0)
    assert [race.start(12.0), race.start(12.0)] == [3, None]


def test_next_start() -> None:
    race = Race(3, delay=0.25, at_once=2)
    assert race.next_start == -math.inf
    assert race.start(1.0) == 0
    assert race.next_start == 1.25
    assert race.start(1.2) is None
    assert race.start(1.25) == 1
    assert race.next_start is None  # as many as may be are under way
    assert race.start(99.0) is None
    race.fail(99.0)
    assert race.next_start == 99.0
    assert race.start(99.0) == 2
    assert race.next_start is None  # no further address
    assert not race.lost
    race.fail(99.5)
    race.fail(99.5)
    assert race.lost


def test_one_at_a_time_has_no_timer() -> None:
    race = Race(2, delay=None)
    assert race.start(0.0) == 0
    assert race.next_start is None
    race.fail(5.0)
    assert race.next_start == 5.0


# Sixteenths of a second add up exactly.
sixteenths = st.integers(0, 64).map(lambda n: n / 16)
all_fates = st.lists(st.builds(Fate, sixteenths, st.booleans()), max_size=12)
bad_fates = st.lists(st.builds(Fate, sixteenths, st.just(False)), max_size=12)
delays = st.none() | st.sampled_from([1 / 16, 0.25, 1.0, 100.0])


@given(all_fates, delays, st.integers(1, AT_ONCE))
def test_rules(fates: list[Fate], delay: float | None, at_once: int) -> None:
    outcome = run(Race(len(fates), delay, at_once), fates)
    assert outcome.most <= (1 if delay is None else at_once)
    if fates:
        assert outcome.starts[0] == 0
    for before, start in zip(outcome.starts, outcome.starts[1:], strict=False):
        failed = [when for when in outcome.fails if before <= when <= start]
        # Never closer than the delay, unless something failed at that moment.
        assert start in failed or (delay is not None and start - before >= delay)
        # Never later than the delay, unless as many as may be were under way.
        if delay is not None and start - before > delay:
            flying = [
                number
                for number, begun in enumerate(outcome.starts)
                if begun <= before and begun + fates[number].seconds >= start
            ]
            assert len(flying) >= at_once
            assert start in failed


@given(bad_fates, delays, st.integers(1, AT_ONCE))
def test_all_are_tried_once_if_all_fail(fates: list[Fate], delay: float | None, at_once: int) -> None:
    race = Race(len(fates), delay, at_once)
    outcome = run(race, fates)
    assert race.lost
    assert outcome.winner is None
    assert len(outcome.starts) == len(outcome.fails) == len(fates)
    ends = [start + each.seconds for start, each in zip(outcome.starts, fates, strict=True)]
    assert outcome.over == max(ends, default=0)


@given(all_fates, delays)
def test_the_first_to_connect_wins(fates: list[Fate], delay: float | None) -> None:
    outcome = run(Race(len(fates), delay), fates)
    ends = [start + each.seconds for start, each in zip(outcome.starts, fates, strict=False)]
    good = [end for end, each in zip(ends, fates, strict=False) if each.good]
    assert (outcome.winner is None) == (not good)
    if outcome.winner is not None:
        assert outcome.over == min(good) == ends[outcome.winner]
        assert outcome.winner in outcome.open


# The order


def family(name: str) -> int:
    return int(name[0])


@pytest.mark.parametrize(
    ("names", "first", "order"),
    [
        ("6a 6b 6c 4a 4b", 1, "6a 4a 6b 4b 6c"),
        ("6a 6b 6c 4a 4b", 2, "6a 6b 4a 6c 4b"),
        ("6a 6b 6c 4a 4b", 3, "6a 6b 6c 4a 4b"),
        ("6a 6b 6c 4a 4b", 9, "6a 6b 6c 4a 4b"),
        ("4a 4b 6a 6b 6c", 1, "4a 6a 4b 6b 6c"),
        ("6a 4a 6b 4b", 1, "6a 4a 6b 4b"),
        ("4a 6a 6b", 1, "4a 6a 6b"),
        ("6a 6b 6c", 1, "6a 6b 6c"),
        ("6a 6b 6c", 2, "6a 6b 6c"),
        ("6a 4a 1a 6b 1b", 1, "6a 4a 1a 6b 1b"),
        ("6a", 1, "6a"),
        ("", 1, ""),
    ],
)
def test_interleaved(names: str, first: int, order: str) -> None:
    assert interleaved(names.split(), family, first) == order.split()
    assert interleaved(names.split(), family) == interleaved(names.split(), family, 1)


@given(st.lists(st.sampled_from(["4", "6"]).flatmap(lambda kind: st.integers(0, 99).map(lambda n: f"{kind}{n}"))))
def test_interleaving_keeps_everything_and_each_familys_order(names: list[str]) -> None:
    for first in (1, 2, 3):
        order = interleaved(names, family, first)
        assert sorted(order) == sorted(names)
        for kind in (4, 6):
            assert [name for name in order if family(name) == kind] == [name for name in names if family(name) == kind]
        if names:
            assert order[0] == names[0]
        others = [name for name in order if family(name) != family(order[0])]
        if others:
            ahead = order.index(others[0])
            assert ahead == min(first, len(order) - len(others))
            # From there they take turns, until one family has no more.
            for here in range(ahead, len(order) - 1):
                if family(order[here]) == family(order[here + 1]):
                    assert {family(name) for name in order[here:]} == {family(order[here])}
