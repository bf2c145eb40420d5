"""A crowd at one dead endpoint: connects made, and how soon all are back; beside as many independent tenacity loops.

Both have the same waits, drawn alike: full jitter from 50 ms to a second. Over real loopback, where a refused connect
is over at once, and on a simulated network in virtual time, where it takes a round trip. The unit is not CPU time: it
is what the server sees, and what the callers wait. Loopback is in real time: on a machine that is busy with something
else the independent loops come to fewer connects, and the ratio gets worse by that.

And what the circuit and the budget cost where nothing is wrong: by themselves, since beside a connect they drown in
the noise; and connects with both over connects with neither, on a network that answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import tenacity

from aioconnect import Backoff, CircuitBreaker, Connector, ConnectRefused, Policy, RetryBudget
from aioconnect.errors import CircuitOpen
from aioconnect.testing.network import Network
from aioconnect.testing.running import run
from tests.benchmarks.measure import Batch, Effort, Row, alternate, compare, middle

__all__ = ("outage",)

TASKS = 500
OUTAGE = 2.0
SIMULATED = {"simulated, 2 ms": 0.002, "simulated, 50 ms": 0.05}
FEWER = 0.143
"""Connects made, over those of independent loops: one in seven."""
COST = 0.5
"""Microseconds for circuit and budget together."""


class Seen(NamedTuple):
    """What a crowd made of an outage."""

    connects: int
    last: float
    """Seconds after the recovery until 99 of 100 were connected."""


Connect = Callable[[], Awaitable[Any]]


def backoff(seed: int) -> Backoff:
    return Backoff(0.05, 1.0, uniform=random.Random(seed).uniform)


async def circuit(host: str, port: int, seed: int, back: float) -> Seen:
    """Calls of one connector."""
    connector = Connector(f"tcp://{host}:{port}", Policy(wait=backoff(seed), timeout=60))
    times = await gathered(connector.connect, back)
    return Seen(connector.stats().attempts, times)


async def independent(host: str, port: int, seed: int, back: float) -> Seen:
    """A loop of tenacity's for each call."""
    connects = 0
    wait = backoff(seed)
    loop = asyncio.get_running_loop()

    async def connect() -> Any:
        nonlocal connects
        connects += 1
        if hasattr(loop, "network"):
            return (await asyncio.open_connection(host, port))[1]
        # The least there is to it: with streams it is the CPU that bounds how many connects there are.
        sock = socket.socket()
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def retried() -> Any:
        stop = tenacity.stop_after_delay(60)
        return await tenacity.AsyncRetrying(wait=wait, stop=stop, sleep=asyncio.sleep, reraise=True)(connect)

    times = await gathered(retried, back)
    return Seen(connects, times)


async def gathered(connect: Connect, back: float) -> float:
    now = asyncio.get_running_loop().time

    async def caller() -> float:
        connection = await connect()
        (connection.abort if hasattr(connection, "abort") else connection.close)()
        return now() - back

    return statistics.quantiles(await asyncio.gather(*(caller() for _ in range(TASKS))), n=100)[98]


Crowd = Callable[[str, int, int, float], Coroutine[Any, Any, Seen]]

CROWDS: dict[str, Crowd] = {"ours": circuit, "theirs": independent}


def simulated(crowd: Crowd, latency: float, seed: int) -> Seen:
    """In virtual time."""
    network = Network(latency=latency, seed=seed)
    server = network.serve("10.0.0.1", 80, backlog=10 * TASKS)
    server.stop()
    network.at(OUTAGE, server.start)
    return run(crowd("10.0.0.1", 80, seed, OUTAGE), network=network)


async def real(crowd: Crowd, seed: int) -> Seen:
    """Over loopback, with a socket that is bound all the time, and listens when the outage is over."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        back = loop.time() + OUTAGE
        loop.call_at(back, sock.listen, 10 * TASKS)
        return await crowd("127.0.0.1", sock.getsockname()[1], seed, back)


def rows_of(where: str, loop: str, seen: dict[str, list[Seen]]) -> list[Row]:
    mine, their = (statistics.mean(each.connects for each in seen[name]) for name in CROWDS)
    late, later = (statistics.mean(each.last for each in seen[name]) * 1000 for name in CROWDS)
    fewer = Row("10", f"connects of {TASKS} tasks in an outage, {where}", loop, "x", mine / their, FEWER)
    sooner = Row("10", f"p99 after the recovery, {where}", loop, "x", late / later, 1.0)
    worst = " / ".join(f"{max(each.last for each in seen[name]) * 1000:.0f}" for name in CROWDS)
    note = f"mean of {len(seen['ours'])} seeds"
    return [
        fewer._replace(ours=mine, theirs=their, each="", note=note),
        sooner._replace(ours=late, theirs=later, each="ms", note=f"{note}; worst seed {worst} ms"),
    ]


async def outage(loop: str, effort: Effort) -> list[Row]:
    """Row 10, over loopback, and row 11."""
    seen: dict[str, list[Seen]] = {name: [] for name in CROWDS}
    for seed in range(effort.repeats):
        for name, crowd in CROWDS.items():
            seen[name].append(await real(crowd, seed))
    return [*rows_of("loopback", loop, seen), *await cost(loop, effort)]


def outages(effort: Effort) -> list[Row]:
    """Row 10, simulated: there is one loop with a virtual clock."""
    rows: list[Row] = []
    for where, latency in SIMULATED.items():
        seen = {
            name: [simulated(crowd, latency, seed) for seed in range(min(20, effort.rounds))]
            for name, crowd in CROWDS.items()
        }
        rows += rows_of(where, "", seen)
    return rows


# -- Where nothing is wrong ------------------------------------------------------------------------------------------


class AtOnce:
    """A socket, and the network it is of, that is connected as soon as it is asked: what is left is our own code."""

    AF_INET, SOCK_STREAM = socket.AF_INET, socket.SOCK_STREAM

    def socket(self, *_: object) -> AtOnce:
        return self

    def connect_ex(self, _: object) -> int:
        return 0

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 50000

    def setsockopt(self, *_: object) -> None: ...

    def setblocking(self, _: object) -> None: ...

    def close(self) -> None: ...

    def fileno(self) -> int:
        return -1


def pieces(calls: int) -> Batch:
    """What the circuit and the budget add to a call, as `Connector` has it, less an empty loop."""
    record = Connector("tcp://127.0.0.1:1", Policy(budget=RetryBudget())).record
    record.succeeded(0.0)
    assert record.circuit.healthy

    def with_both() -> None:
        for _ in range(calls):
            if record.circuit.since is None and record.till is not None:
                record.till.deposit()
            gate = record.gate
            if gate.enter() and record.circuit.healthy:
                gate.leave(None)

    def empty() -> None:
        for _ in range(calls):
            pass

    async def batch(_: int) -> tuple[float, ...]:
        taken = []
        for each in (with_both, empty):
            began = time.process_time()
            each()
            taken.append((time.process_time() - began) / calls)
        return (taken[0] - taken[1],)

    return batch


def connects(policy: Policy, calls: int) -> Batch:
    """Calls that succeed at once, driven by hand."""
    connector = Connector("tcp://127.0.0.1:1", policy)

    async def batch(_: int) -> tuple[float, ...]:
        loop: Any = asyncio.get_running_loop()
        loop.network = AtOnce()
        try:
            began = time.process_time()
            for _ in range(calls):
                await connector.dial()
            return ((time.process_time() - began) / calls,)
        finally:
            del loop.network

    return batch


def refused(calls: int) -> Batch:
    """Calls that an open circuit sends away at once."""
    policy = Policy(max_attempts=1, wait=Backoff(1e6, 1e6, jitter="none"), breaker=CircuitBreaker(1, "fail"))
    connector = Connector("tcp://127.0.0.1:1", policy)

    async def batch(_: int) -> tuple[float, ...]:
        if connector.circuit.state == "closed":
            with contextlib.suppress(ConnectRefused):
                await connector.dial()
        began = time.process_time()
        for _ in range(calls):
            with contextlib.suppress(CircuitOpen):
                await connector.dial()
        return ((time.process_time() - began) / calls,)

    return batch


async def cost(loop: str, effort: Effort) -> list[Row]:
    """Row 11."""
    if loop != "asyncio":
        # It is the same code, and a loop of uvloop takes no attribute.
        return []
    batches = {
        "pieces": pieces(effort.calls * 10),
        "both": connects(Policy(budget=RetryBudget()), effort.calls),
        "neither": connects(Policy(breaker=None), effort.calls),
        "refused": refused(effort.calls),
    }
    taken = await alternate(batches, effort)
    alone, both, neither, sent_away = (middle(taken[name]) for name in batches)
    ratio = compare(taken["both"], taken["neither"])
    return [
        Row("11", "circuit and budget on a connect, by themselves", loop, "us", alone, COST, ours=alone),
        Row("11", "a call refused because the circuit is open", loop, "us", sent_away, ours=sent_away),
        Row(
            "11",
            "a connect with both over one with neither",
            loop,
            "x",
            ratio.value,
            None,
            ratio.low,
            ratio.high,
            ours=both,
            theirs=neither,
            note="no system call in either",
        ),
    ]
