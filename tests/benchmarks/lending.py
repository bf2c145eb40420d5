"""A lease of the pool beside the least that could stand in its place: an ``asyncio.Queue`` of connections.

The queue looks at nothing, notes nothing, keeps to no time limit, and hands out a dead connection as any other. The
loops are written out: a call more in each of them would make the two more alike than they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aioconnect import Connection, Connector, Pool
from tests.benchmarks.measure import Batch, Effort, Row, alternate, compare, middle
from tests.benchmarks.server import serving

__all__ = ("lending",)

SIZE = 10
TASKS = 100

Leases = Callable[[int], Awaitable[None]]
"""So many, one after the other."""


def alone(pool: Pool, queue: asyncio.Queue[Connection]) -> dict[str, Leases]:
    async def acquire(count: int) -> None:
        for _ in range(count):
            connection = await pool.acquire()
            pool.release(connection)

    async def block(count: int) -> None:
        for _ in range(count):
            async with pool.acquire():
                pass

    async def limited(count: int) -> None:
        for _ in range(count):
            async with pool.acquire(timeout=1.0):
                pass

    async def get(count: int) -> None:
        for _ in range(count):
            connection = await queue.get()
            queue.put_nowait(connection)

    return {"acquire and release": acquire, "async with": block, "async with, a time limit": limited, "queue": get}


def crowded(pool: Pool, queue: asyncio.Queue[Connection]) -> dict[str, Leases]:
    async def acquire(count: int) -> None:
        for _ in range(count):
            connection = await pool.acquire()
            await asyncio.sleep(0)
            pool.release(connection)

    async def block(count: int) -> None:
        for _ in range(count):
            async with pool.acquire():
                await asyncio.sleep(0)

    async def limited(count: int) -> None:
        for _ in range(count):
            async with pool.acquire(timeout=1.0):
                await asyncio.sleep(0)

    async def get(count: int) -> None:
        for _ in range(count):
            connection = await queue.get()
            await asyncio.sleep(0)
            queue.put_nowait(connection)

    return {"acquire and release": acquire, "async with": block, "async with, a time limit": limited, "queue": get}


def batch(leases: Leases, tasks: int, count: int) -> Batch:
    async def run(number: int) -> tuple[float, ...]:
        began = time.process_time()
        if tasks == 1:
            await leases(count)
        else:
            await asyncio.gather(*(leases(count) for _ in range(tasks)))
        return ((time.process_time() - began) / tasks / count,)

    return run


async def lending(loop: str, effort: Effort) -> list[Row]:
    """Row 12."""
    rows: list[Row] = []
    with serving() as served:
        async with Pool(Connector(f"127.0.0.1:{served.ports[0]}"), max_size=SIZE) as pool:
            await pool.ready(SIZE)
            queue: asyncio.Queue[Connection] = asyncio.Queue()
            for _ in range(SIZE):
                queue.put_nowait(await pool.connector.connect())
            for ways, tasks, title, bar in (
                (alone(pool, queue), 1, "a lease", 3.0),
                (crowded(pool, queue), TASKS, f"a lease, {TASKS} tasks over {SIZE} connections", 1.5),
            ):
                count = effort.calls * 5 if tasks == 1 else max(2, effort.calls // 10)
                taken = await alternate({way: batch(leases, tasks, count) for way, leases in ways.items()}, effort)
                theirs = taken.pop("queue")
                for way, ours in taken.items():
                    ratio = compare(ours, theirs)
                    row = Row("12", f"{title}: {way}", loop, "x", ratio.value, bar, ratio.low, ratio.high)
                    rows.append(row._replace(ours=middle(ours), theirs=middle(theirs)))
            while not queue.empty():
                await queue.get_nowait().aclose()
    return rows
