"""Waiting that keeps to a loop time."""

from __future__ import annotations

import asyncio
import math

import pytest

from aioconnect.errors import ConnectRefused, ConnectTimeout
from aioconnect.limits import bounded, wait_until
from tests.support.clock import virtual


@virtual
async def test_bounded() -> None:
    loop = asyncio.get_running_loop()
    assert await bounded(asyncio.sleep(1, "done"), 1.5, "attempt") == "done"
    assert await bounded(asyncio.sleep(1, "done"), math.inf, "call") == "done"
    with pytest.raises(ConnectTimeout) as info:
        await bounded(asyncio.sleep(9), 3.0, "attempt", "prepare", ("10.0.0.7", 80))
    assert loop.time() == 3.0
    error = info.value
    assert (error.source, error.phase, error.address) == ("attempt", "prepare", ("10.0.0.7", 80))
    assert error.description == "not done within the attempt's time limit"
    assert isinstance(error.__cause__, TimeoutError)


@virtual
async def test_bounded_lets_errors_pass() -> None:
    for error in (TimeoutError("its own"), KeyError("x"), ConnectRefused()):
        for seconds in (0, 1):

            async def failing(error: Exception = error, seconds: int = seconds) -> None:
                await asyncio.sleep(seconds)
                raise error

            with pytest.raises(type(error)) as info:
                await bounded(failing(), math.inf if seconds else 99.0, "call")
            assert info.value is error


@virtual
async def test_a_limit_that_has_passed_already() -> None:
    async def at_once() -> str:
        return "done"

    assert await bounded(at_once(), -1.0, "call") == "done"  # nothing to wait for
    with pytest.raises(ConnectTimeout):
        await bounded(asyncio.sleep(0.5), -1.0, "call")
    assert asyncio.get_running_loop().time() == 0.0


@virtual
async def test_bounded_passes_on_what_is_sent_and_thrown() -> None:
    """The awaitable has taken its first step before the timer is set; the steps after it are passed through."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def adding() -> int:
        total = 0
        for _ in range(3):
            await asyncio.sleep(1)
            total += 1
        try:
            total += await future
        except ConnectionResetError:
            await asyncio.sleep(1)
            total += 100
        return total

    asyncio.get_running_loop().call_later(5, future.set_exception, ConnectionResetError())
    assert await bounded(adding(), 99.0, "call") == 103


async def test_bounded_that_is_closed_closes_what_it_awaits() -> None:
    closed: list[str] = []

    async def inner() -> None:
        try:
            await asyncio.sleep(math.inf)
        finally:
            closed.append("inner")

    for limit in (math.inf, 99.0):
        coroutine = bounded(inner(), limit, "call")
        coroutine.send(None)
        coroutine.close()
    assert closed == ["inner", "inner"]


@virtual
async def test_wait_until() -> None:
    loop = asyncio.get_running_loop()
    for limit, came in ((2.0, True), (math.inf, True), (0.5, False)):
        future = loop.create_future()
        timer = loop.call_later(1.0, future.set_result, "x")
        assert await wait_until(future, loop.time() + limit) is came
        timer.cancel()
    assert loop.time() == 2.5
