"""Lookups in threads, by whatever they are for; those of names are in test_resolver."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from aioconnect import errors
from aioconnect.lookups import Lookups
from tests.support.clock import virtual


async def shared(lookups: Lookups[str, Any], look_up: Any, key: str = "x") -> Any:
    lookups.bind(asyncio.get_running_loop())
    return await lookups.shared(key, look_up, math.inf, "call", key)


@virtual
async def test_each_answer_is_kept_for_as_long_as_it_says() -> None:
    loop = asyncio.get_running_loop()
    lookups: Lookups[str, int] = Lookups()
    assert await shared(lookups, lambda _: (1, 60.0), "a") == 1
    assert await shared(lookups, lambda _: (2, 0.0), "b") == 2
    assert (lookups.known("a", loop.time()), lookups.known("b", loop.time())) == (1, None)
    await asyncio.sleep(59)
    assert lookups.known("a", loop.time()) == 1
    await asyncio.sleep(1)
    assert lookups.known("a", loop.time()) is None


async def test_what_is_raised_is_given_back_without_its_frames() -> None:
    def look_up(_: str) -> Any:
        raise ZeroDivisionError

    outcome = await shared(Lookups(), look_up)
    assert isinstance(outcome, ZeroDivisionError)
    assert outcome.__traceback__ is None


async def test_it_runs_in_another_thread() -> None:
    assert await shared(Lookups(), lambda _: (threading.get_ident(), 1.0)) != threading.get_ident()


@virtual
async def test_a_limit_names_the_place() -> None:
    release = threading.Event()
    lookups: Lookups[str, Any] = Lookups()
    with pytest.raises(errors.ConnectTimeout) as caught:
        await lookups.shared("x", lambda _: (release.wait(5), 1.0), 0.0, "attempt", "_x._tcp.example.org")
    release.set()
    assert (caught.value.phase, caught.value.address) == ("resolve", "_x._tcp.example.org")
    assert "resolve _x._tcp.example.org: [ETIMEDOUT]" in str(caught.value)
    assert await shared(lookups, lambda _: (2, 1.0))


def test_what_is_kept_is_bounded() -> None:
    lookups: Lookups[int, int] = Lookups()
    for number in range(5000):
        lookups.keep(number, number, math.inf)
    assert len(lookups._found) == 1024
    assert (lookups.known(4999, 0), lookups.known(0, 0)) == (4999, None)
    lookups.forget(4999)
    assert lookups.known(4999, 0) == 4999, "good for ever"


def test_another_loop_finds_it_empty() -> None:
    lookups: Lookups[str, int] = Lookups()
    for number in range(2):
        with asyncio.Runner() as runner:
            assert lookups.known("x", 0.0) == (None if number == 0 else 1)
            assert runner.run(shared(lookups, lambda _, number=number: (number + 1, 1e9))) == number + 1
