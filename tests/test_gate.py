"""At most so many at once: fair, bounded in time, and no slot is lost to a cancellation."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from aioconnect.breaker import Circuit, CircuitBreaker
from aioconnect.budget import RetryBudget, Tokens
from aioconnect.errors import ConnectRefused, ConnectTimeout, NetworkError
from aioconnect.gate import Gate, Till, Turned
from aioconnect.limits import TICK
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


# ------------------------------------------------------------------------------------------ probes


def error() -> NetworkError:
    return ConnectRefused(address=("10.0.0.1", 80))


def open_gate(pause: float = 5.0, most: float = math.inf) -> Gate:
    """One whose circuit has just opened, for so many seconds."""
    circuit = Circuit(CircuitBreaker(1))
    circuit.failed(error(), asyncio.get_running_loop().time(), lambda *_: pause)
    return Gate(most, circuit)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def waiting(
    gate: Gate, count: int, deadline: float = math.inf, alone_at: float = math.inf
) -> list[asyncio.Task[object]]:
    return [asyncio.create_task(gate.admitted(deadline, 1.0, alone_at)) for _ in range(count)]


async def test_the_first_in_line_probes_when_it_is_due() -> None:
    """On uvloop too, whose timers may fire a millisecond early."""
    gate = open_gate(0.02)
    began = asyncio.get_running_loop().time()
    first, second = waiting(gate, 2)
    lease = await first
    assert lease is not None
    assert asyncio.get_running_loop().time() >= began + 0.02 - TICK
    assert (gate.inside, gate.waiting, gate.circuit.state) == (1, 1, "half_open")
    gate.circuit.succeeded(asyncio.get_running_loop().time(), crowded=True)
    gate.serve(asyncio.get_running_loop().time())
    assert await second is None
    gate.leave(lease)
    gate.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


@virtual
async def test_a_lost_probe_holds_the_others_up_as_long_as_its_lease() -> None:
    gate = open_gate(5.0)
    first, second, third = waiting(gate, 3)
    assert await first is not None
    assert await second is not None
    assert asyncio.get_running_loop().time() == 6
    assert gate.inside == 2
    third.cancel()
    await asyncio.wait([third])


@virtual
async def test_all_in_line_are_told_each_with_a_copy() -> None:
    gate = open_gate()
    callers = waiting(gate, 3)
    await settle()
    met = error()
    met.__cause__ = cause = ConnectionRefusedError()
    gate.share(met)
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(end, Turned) and end.shared for end in ends)
    copies = [end.error for end in ends if isinstance(end, Turned)]
    assert len({id(each) for each in [met, *copies]}) == 4
    assert all(each.__cause__ is cause and each.address == met.address for each in copies)
    assert gate.waiting == 0


@virtual
async def test_alone_it_goes_when_it_must() -> None:
    gate = open_gate(5.0)
    (call,) = waiting(gate, 1, alone_at=2.0)
    assert await call is not None
    assert asyncio.get_running_loop().time() == 2


@virtual
async def test_it_goes_when_it_must_as_soon_as_it_is_alone() -> None:
    gate = open_gate(5.0)
    (call,) = waiting(gate, 1, alone_at=2.0)
    (other,) = waiting(gate, 1, deadline=3.0)
    with pytest.raises(Turned):
        await other
    assert await call is not None
    assert asyncio.get_running_loop().time() == 3


@virtual
async def test_never_more_inside_than_there_may_be() -> None:
    """Not even a probe, while those who went in before it opened have not left."""
    gate = open_gate(5.0, most=1)
    gate.inside = 1
    (call,) = waiting(gate, 1)
    await asyncio.sleep(10)
    assert not call.done()
    gate.leave()
    assert await call is not None


@virtual
async def test_who_has_gone_is_not_looked_at_again() -> None:
    """A crowd that is cancelled, or whose time is up, in one turn of the loop."""
    gate = open_gate(100)
    gone = waiting(gate, 500, deadline=7.0) + waiting(gate, 500)
    (last,) = waiting(gate, 1)
    await settle()
    for call in gone[500:]:
        call.cancel()
    gate.circuit.retry_now(0)
    gate.serve(0)
    assert await gone[0] is not None
    gate.leave()
    gone[0] = gone[1]
    await asyncio.sleep(10)
    last.cancel()
    await asyncio.gather(*gone, last, return_exceptions=True)
    assert gate.waiting == 0


@virtual
@pytest.mark.parametrize("granted", [False, True])
async def test_a_coroutine_that_is_closed_leaves_its_place(granted: bool) -> None:
    """Not cancelled: closed, as a generator is."""
    gate = gate_of(1)
    assert gate.enter()
    coroutine = gate.admitted(math.inf, 1.0)
    coroutine.send(None)
    (other,) = waiting(gate, 1)
    await settle()
    if granted:
        gate.leave()
    coroutine.close()
    if not granted:
        gate.leave()
    assert await other is None
    gate.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


@virtual
async def test_no_timer_is_left() -> None:
    gate = open_gate(5.0)
    call, other = waiting(gate, 2)
    await settle()
    assert gate._timer is not None
    call.cancel()
    other.cancel()
    await asyncio.wait([call, other])
    assert gate._timer is None


# ------------------------------------------------------------------------------------------ the till


def empty_till(floor: float = 1.0, burst: float = 1.0) -> Till:
    till = Till(Tokens(RetryBudget(ratio=1, floor=floor, burst=burst)))
    while till.paid(asyncio.get_running_loop().time()):
        pass
    return till


async def paying(till: Till, order: list[int], number: int, deadline: float = math.inf) -> None:
    order.append(number if await till.charged(deadline) else -number)


@virtual
async def test_tokens_go_to_the_first_in_line() -> None:
    till, order = empty_till(), list[int]()
    callers = [asyncio.create_task(paying(till, order, number)) for number in range(1, 5)]
    await asyncio.sleep(0.5)
    callers[1].cancel()
    assert not till.paid(0.5)
    await asyncio.sleep(0.6)
    assert order == [1]
    till.give_back()
    await settle()
    assert order == [1, 3]
    till.deposit()
    await settle()
    assert order == [1, 3, 4]
    assert (till.waiting, till._timer) == (0, None)


@virtual
async def test_nobody_pays_past_the_line() -> None:
    till, order = empty_till(), list[int]()
    caller = asyncio.create_task(paying(till, order, 1))
    await settle()
    till.tokens.give_back()
    assert not till.paid(0)
    await asyncio.sleep(1)
    assert order == [1]
    await caller


@virtual
async def test_a_token_on_its_way_to_one_who_is_cancelled_goes_on() -> None:
    till, order = empty_till(floor=0), list[int]()
    first, second = (asyncio.create_task(paying(till, order, number)) for number in (1, 2))
    await settle()
    till.deposit()
    first.cancel()
    await second
    assert order == [2]
    assert till.tokens.left(0) == 0
    third = asyncio.create_task(paying(till, order, 3))
    await settle()
    till.deposit()
    third.cancel()
    await asyncio.wait([third])
    assert till.tokens.left(0) == 1


@virtual
async def test_without_a_token_the_time_is_up_some_day() -> None:
    till, order = empty_till(floor=0.1), list[int]()
    await paying(till, order, 1, deadline=3.0)
    assert order == [-1]
    assert asyncio.get_running_loop().time() == 3
    assert till._timer is None
