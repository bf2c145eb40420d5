"""At most so many at once: fair, bounded in time, and no slot is lost to a cancellation."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from aioconnect.breaker import Circuit
from aioconnect.errors import ConnectTimeout
from aioconnect.gate import Gate, Turned
from tests.support.clock import run_virtual, virtual


def gate_of(most: int) -> Gate:
    """One whose circuit never opens."""
    return Gate(most, Circuit(None))


async def inside(gate: Gate, seconds: float, order: list[int], number: int) -> None:
    if not gate.enter():
        await gate.admitted(math.inf, 1.0)
    try:
        order.append(number)
        await asyncio.sleep(seconds)
    finally:
        gate.leave()


@virtual
async def test_first_come_first_served() -> None:
    gate, order = gate_of(2), list[int]()
    await asyncio.gather(*(inside(gate, 1.0, order, number) for number in range(6)))
    assert order == list(range(6))
    assert asyncio.get_running_loop().time() == 3.0
    assert (gate.inside, gate.waiting) == (0, 0)


@virtual
async def test_nobody_goes_past_the_line() -> None:
    gate = gate_of(1)
    assert gate.enter()
    waiter = asyncio.create_task(gate.admitted(math.inf, 1.0))
    await asyncio.sleep(0)
    gate.leave()
    assert not gate.enter()
    await waiter
    gate.leave()
    assert gate.enter()


@virtual
async def test_the_wait_has_a_limit() -> None:
    gate = gate_of(1)
    assert gate.enter()
    with pytest.raises(Turned) as info:
        await gate.admitted(2.0, 1.0)
    error = info.value.error
    assert isinstance(error, ConnectTimeout)
    assert not info.value.shared
    assert (error.phase, error.source, asyncio.get_running_loop().time()) == ("wait", "call", 2.0)
    gate.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


@virtual
async def test_a_slot_on_its_way_to_a_cancelled_waiter_goes_on() -> None:
    gate = gate_of(1)
    assert gate.enter()
    first, second = (asyncio.create_task(gate.admitted(math.inf, 1.0)) for _ in range(2))
    await asyncio.sleep(0)
    gate.leave()
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_books_are_exact_under_cancellation(seed: int) -> None:
    randomness = random.Random(seed)

    async def storm() -> None:
        gate, order = gate_of(3), list[int]()
        tasks = [asyncio.create_task(inside(gate, randomness.random(), order, number)) for number in range(60)]
        for task in randomness.sample(tasks, 30):
            await asyncio.sleep(randomness.choice((0, 0, 0.1)))
            task.cancel()
            assert gate.inside <= 3
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (gate.inside, gate.waiting) == (0, 0)

    run_virtual(storm())
