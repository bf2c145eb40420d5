"""The fifteen stories a racing dialer has to get right, each told in virtual time on the simulated network.

`A: .1 err` is an address that refuses after a tenth of a second. Whatever happens, the losers are closed, no task and
no timer is left, the loop has nothing to complain about, and there is no garbage.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

import aioconnect
from aioconnect import Endpoint, Policy, errors
from aioconnect.testing import EAGER, LogWatch, Network, cancel_everywhere
from tests.support.clock import virtual

ONCE = Policy(max_attempts=1, timeout=None, attempt_timeout=None)
A, B, C, E, F = (f"10.0.0.{number}" for number in (1, 2, 3, 5, 6))
A6, B6, C6 = "fd00::1", "fd00::2", "fd00::3"


@dataclass(frozen=True)
class Scenario:
    """`steps`: what each address does, in the resolver's order. `starts`: when each is tried, in that order."""

    number: int
    title: str
    steps: dict[str, str]
    starts: dict[str, float]
    at: float
    winner: str | None = None
    error: type[Exception] | None = None
    lost: dict[str, float] = field(default_factory=dict)
    """By address, for how long each was tried."""
    delay: float = 0.25
    options: dict[str, Any] = field(default_factory=dict)
    unsupported: frozenset[int] = frozenset()


SCENARIOS = (
    Scenario(1, "quick success", {A: "ok 123ms"}, {A: 0}, 0.123, A),
    Scenario(1, "slow success", {A: "ok 100s"}, {A: 0}, 100, A),
    Scenario(2, "a single failure", {A: "ECONNREFUSED 123ms"}, {A: 0}, 0.123, None, errors.ConnectRefused, {A: 0.123}),
    Scenario(3, "fall through", {A: "ok 1s", B: "ok 1s", C: "ok 0.2s"}, {A: 0, B: 0.25, C: 0.5}, 0.7, C),
    Scenario(4, "early success", {A: "ok 1s", B: "ok 0.1s", C: "ok 0.2s"}, {A: 0, B: 0.25}, 0.35, B),
    Scenario(5, "long delay", {A: "ok 1s", B: "ok 1s", C: "ok 0.2s"}, {A: 0, B: 0.45, C: 0.9}, 1, A, delay=0.45),
    Scenario(
        6,
        "a failure expedites",
        {A: "ECONNREFUSED 0.1s", B: "ECONNREFUSED 0.2s", C: "ok 10s", E: "ok 0.25s"},
        {A: 0, B: 0.1, C: 0.3, E: 0.55},
        0.8,
        E,
    ),
    Scenario(
        7,
        "all fail",
        {A: "ECONNREFUSED 0.1s", B: "ECONNREFUSED 0.2s", C: "ECONNREFUSED 10s", E: "ECONNREFUSED 0.25s"},
        {A: 0, B: 0.1, C: 0.3, E: 0.55},
        10.3,
        None,
        errors.ConnectRefused,
        {A: 0.1, B: 0.2, C: 10, E: 0.25},
    ),
    Scenario(
        8,
        "dead heat",
        {A: "ECONNREFUSED 0.5s", B: "ok 10s", C: "ok 9s", E: "ok 8s", F: "ECONNREFUSED 0.5s"},
        {A: 0, B: 0.5, C: 1.5, E: 2.5, F: 3.5},
        10.5,
        "any",
        delay=1,
    ),
    Scenario(9, "slow is not dead", {A: "ok 0.3s", B: "ok 0.4s"}, {A: 0, B: 0.25}, 0.3, A),
    Scenario(
        10,
        "interleave, one",
        dict.fromkeys((A6, B6, C6, A, B), "ECONNREFUSED 0s"),
        dict.fromkeys((A6, A, B6, B, C6), 0.0),
        0,
        None,
        errors.ConnectRefused,
    ),
    Scenario(
        10,
        "interleave, two",
        dict.fromkeys((A6, B6, C6, A, B), "ECONNREFUSED 0s"),
        dict.fromkeys((A6, B6, A, C6, B), 0.0),
        0,
        None,
        errors.ConnectRefused,
        options={"interleave": 2},
    ),
    Scenario(
        10,
        "interleave, IPv4 first",
        dict.fromkeys((A, B, A6), "ECONNREFUSED 0s"),
        dict.fromkeys((A, A6, B), 0.0),
        0,
        None,
        errors.ConnectRefused,
    ),
    Scenario(
        10,
        "interleave, one family",
        dict.fromkeys((A, B, C), "ECONNREFUSED 0s"),
        dict.fromkeys((A, B, C), 0.0),
        0,
        None,
        errors.ConnectRefused,
    ),
    Scenario(
        11,
        "reorder matters",
        {A: "ECONNREFUSED 10s", B: "ok 1s", A6: "ok 0.5s"},
        {A: 0, A6: 1},
        1.5,
        A6,
        delay=1,
    ),
    Scenario(
        12,
        "unsupported family",
        {A6: "ok 10s", A: "ok 0.1s", B6: "ok 0.1s", B: "ok 0.1s"},
        {A6: 0, B6: 1},
        1.1,
        B6,
        delay=1,
        unsupported=frozenset({socket.AF_INET}),
    ),
    Scenario(13, "empty answer", {A: "ok"}, {}, 0, None, errors.NameResolutionError, options={"family": "inet6"}),
)


def network_of(scenario: Scenario) -> Network:
    network = Network(trace=True)
    network.unsupported = scenario.unsupported
    for address, step in scenario.steps.items():
        network.script(address, step)
    network.dns("db.internal", list(scenario.steps))
    asyncio.get_running_loop().network = network  # type: ignore[attr-defined]
    return network


def endpoint(scenario: Scenario) -> Endpoint:
    return Endpoint("db.internal", 80, happy_eyeballs_delay=scenario.delay, **scenario.options)


def starts(network: Network) -> dict[str, float]:
    found: dict[str, float] = {}
    for at, what, *rest in network.trace or ():
        if what == "connect":
            found[rest[1].rpartition(":")[0].strip("[]")] = at
    return found


def ours(network: Network) -> list[Any]:
    """The sockets of the client's side that are open."""
    return [sock for sock in network.open if sock.host is network.client]


async def settled(network: Network, log: LogWatch) -> None:
    """Whatever comes late is here, and was nothing."""
    loop: Any = asyncio.get_running_loop()
    before = len(network.trace or ())
    kept = ours(network)
    await asyncio.sleep(1000)
    assert len(network.trace or ()) == before, "something was started after the end"
    assert ours(network) == kept
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
    assert log.texts == []


@virtual
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[f"{each.number}-{each.title}" for each in SCENARIOS])
async def test_scenario(scenario: Scenario) -> None:
    network = network_of(scenario)
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.disable()
    try:
        with LogWatch() as log:
            if scenario.error is not None:
                with pytest.raises(scenario.error) as caught:
                    await aioconnect.dial(endpoint(scenario), policy=ONCE)
                assert loop.time() == pytest.approx(scenario.at)
                check_error(caught.value, scenario)
                del caught
            else:
                sock = await aioconnect.dial(endpoint(scenario), policy=ONCE)
                assert loop.time() == pytest.approx(scenario.at)
                assert scenario.winner in {sock.getpeername()[0], "any"}
                assert ours(network) == [sock], "the losers are closed"
                sock.close()
            assert list(starts(network)) == list(scenario.starts)
            assert starts(network) == pytest.approx(scenario.starts)
            await settled(network, log)
        assert ours(network) == []
    finally:
        gc.enable()


def check_error(error: Any, scenario: Scenario) -> None:
    assert not isinstance(error, BaseExceptionGroup)
    if not scenario.lost:
        return
    assert error.errno == errno.ECONNREFUSED
    assert error.attempts[0].number == 1
    each = error.errors
    assert [one.address for one in each] == [(address, 80) for address in scenario.lost], "in the order of their starts"
    assert [one.elapsed for one in each] == pytest.approx(list(scenario.lost.values()))


@virtual
async def test_14_cancel_in_the_race() -> None:
    scenario = Scenario(14, "cancel in the race", dict.fromkeys((A, B, C, E), "ok 10s"), {}, 5)
    network = network_of(scenario)
    loop = asyncio.get_running_loop()
    with LogWatch() as log:
        dialing = asyncio.ensure_future(aioconnect.dial(endpoint(scenario), policy=ONCE))
        loop.call_later(5, dialing.cancel)
        with pytest.raises(asyncio.CancelledError):
            await dialing
        assert loop.time() == pytest.approx(5)
        assert starts(network) == pytest.approx({A: 0, B: 0.25, C: 0.5, E: 0.75})
        assert ours(network) == []
        await settled(network, log)


@virtual
@pytest.mark.parametrize("eager", EAGER)
@pytest.mark.parametrize("number", [1, 3, 6, 7, 8, 12])
async def test_15_cancel_at_every_step(number: int, eager: bool) -> None:
    """CancelledError and nothing left, or the connection if it was there already; never one after a cancel."""
    scenario = next(each for each in SCENARIOS if each.number == number)
    network = network_of(scenario)
    runs = await cancel_everywhere(
        lambda: aioconnect.dial(endpoint(scenario), policy=ONCE),
        close=lambda sock: sock.close(),
        raises=errors.ConnectError,
        check=lambda: None if ours(network) == [] else pytest.fail("left open"),
        eager=eager,
        patience=30,
    )
    assert runs > len(scenario.starts)


def test_every_scenario_is_here() -> None:
    assert {each.number for each in SCENARIOS} | {14, 15} == set(range(1, 16))
