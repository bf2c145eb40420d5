"""The table of a link's states."""

from __future__ import annotations

import itertools

import pytest

from aioconnect.link_states import CONNECTING, IDLE, READY, SHUTDOWN, TRANSIENT_FAILURE, TRANSITIONS, LinkState, follow

FOLLOWERS = {
    IDLE: {CONNECTING, TRANSIENT_FAILURE, SHUTDOWN},
    CONNECTING: {READY, TRANSIENT_FAILURE, IDLE, SHUTDOWN},
    READY: {TRANSIENT_FAILURE, IDLE, SHUTDOWN},
    TRANSIENT_FAILURE: {CONNECTING, IDLE, SHUTDOWN},
    SHUTDOWN: set[LinkState](),
}


@pytest.mark.parametrize(("before", "after"), [*itertools.product(LinkState, LinkState)])
def test_every_pair(before: LinkState, after: LinkState) -> None:
    if after in FOLLOWERS[before]:
        assert follow(before, after) is after
        assert TRANSITIONS[before, after]
    else:
        with pytest.raises(RuntimeError, match=f"cannot go from {before.name} to {after.name}"):
            follow(before, after)


def test_the_names_are_grpcs() -> None:
    assert [state.name for state in LinkState] == ["IDLE", "CONNECTING", "READY", "TRANSIENT_FAILURE", "SHUTDOWN"]


def test_every_state_can_be_reached_and_shut_down() -> None:
    reached, front = {IDLE}, {IDLE}
    while front:
        front = set().union(*(FOLLOWERS[state] for state in front)) - reached
        reached |= front
    assert reached == set(LinkState)
    assert all((state, SHUTDOWN) in TRANSITIONS for state in LinkState if state is not SHUTDOWN)
