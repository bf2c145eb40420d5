"""The recorder: what it says of the events, and how."""

from __future__ import annotations

import pytest

import aioconnect
from aioconnect import Backoff, Connection, Connector, Policy, errors
from aioconnect.events import Connected, Retrying
from aioconnect.testing import Echo, Network, Recorder, fast_retries, run, virtual


@pytest.fixture
def network() -> Network:
    return Network()


STEADY = Policy(wait=Backoff(1, 1, jitter="none"), timeout=None, breaker=None)


@virtual
async def test_it_tells_the_story(network: Network) -> None:
    network.host("db", "10.0.0.1")
    network.script("db", ["ECONNREFUSED 500ms", "EHOSTUNREACH", "ok"])
    recorder = Recorder()
    conn = await Connector("db:80", STEADY, observers=[recorder]).connect()
    await conn.aclose()
    assert recorder.attempts == ["ECONNREFUSED", "EHOSTUNREACH", "ok"]
    assert recorder.pauses == [1, 1]
    assert recorder.started == [0, 1.5, 2.5]
    assert [type(error) for error in recorder.errors] == [errors.ConnectRefused, errors.HostUnreachable]
    assert [event.attempts for event in recorder.of(Retrying)] == [1, 2]
    assert recorder.timed[-1] == (2.5, recorder.of(Connected)[0])
    assert len(recorder) == len(recorder.events)
    assert str(recorder).splitlines()[-1] == (
        "     2.500  Connected(endpoint='tcp://db:80', attempt=3, address=10.0.0.1:80, elapsed=0.000)"
    )
    assert repr(recorder) == "<Recorder ['ECONNREFUSED', 'EHOSTUNREACH', 'ok']>"
    recorder.clear()
    assert recorder.attempts == []


def test_an_error_of_another_kind(network: Network) -> None:
    async def prepare(_: Connection) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        network.serve("db", 80, Echo)
        with pytest.raises(ZeroDivisionError):
            await Connector("db:80", STEADY, prepare, observers=[recorder]).connect()

    recorder = Recorder()
    run(main(), network=network)
    assert recorder.attempts == ["ZeroDivisionError"]


@virtual
async def test_retries_that_do_not_wait(network: Network) -> None:
    network.host("db")
    recorder, policy = Recorder(), STEADY.replace(max_attempts=4)
    for pace in (0, 0.5):
        with fast_retries(pace), pytest.raises(errors.ConnectRefused):
            await Connector("db:80", policy, observers=[recorder]).connect()
    assert recorder.pauses == [0, 0, 0, 0.5, 0.5, 0.5]
    with pytest.raises(errors.ConnectRefused) as caught:
        await aioconnect.connect("db:80", policy=policy)
    assert [attempt.slept for attempt in caught.value.attempts] == [1, 1, 1, 0]
