"""What a failed connect leaves to the cyclic collector, which may come late: nothing that holds frames or sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import types
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import tenacity

import aioconnect
from tests.benchmarks.measure import Effort, Row
from tests.benchmarks.server import Served, serving

__all__ = ("garbage",)

CALLS = 20
HELD = (BaseException, types.FrameType, types.TracebackType, socket.socket, asyncio.Future, asyncio.BaseTransport)

Call = Callable[[], Awaitable[Any]]


async def hang(connection: aioconnect.Connection) -> None:
    await asyncio.sleep(60)


async def not_ready(connection: aioconnect.Connection) -> None:
    raise aioconnect.NotReady("loading")


def scenes(served: Served) -> dict[str, Call]:
    # Without a breaker, whose open circuit would have each call wait for its turn.
    once = aioconnect.Policy(max_attempts=1, breaker=None)
    thrice = once.replace(max_attempts=3, wait=tenacity.wait_none())
    refused, open_ = f"127.0.0.1:{served.closed}", f"127.0.0.1:{served.ports[0]}"
    two = aioconnect.Endpoint(targets=[("127.0.0.1", served.closed), ("127.0.0.2", served.closed)])

    async def by_tenacity() -> None:
        retrying = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none(), reraise=True)
        await retrying(asyncio.open_connection, "127.0.0.1", served.closed)

    async def by_streams() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", served.ports[0])
        writer.transport.abort()

    return {
        "refused": aioconnect.Connector(refused, once).connect,
        "refused three times": aioconnect.Connector(refused, thrice).connect,
        "refused at two addresses": aioconnect.Connector(two, once).connect,
        "a prepare that is not ready, three times": aioconnect.Connector(open_, thrice, not_ready).connect,
        "a prepare that exceeds its limit": aioconnect.Connector(
            open_, once.replace(attempt_timeout=0.02), hang
        ).connect,
        "a name that does not exist": aioconnect.Connector("nothing.invalid:1", once).connect,
        "for comparison: open_connection, aborted": by_streams,
        "for comparison: tenacity, refused three times": by_tenacity,
    }


async def left_by(call: Call) -> Counter[str]:
    """What is left, by type, of ``CALLS`` failed calls, each ended before the next begins."""
    with contextlib.suppress(OSError):
        await call()
    await asyncio.sleep(0.01)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(CALLS):
            with contextlib.suppress(OSError):
                await call()
            await asyncio.sleep(0.001)  # callbacks that are due: a transport that was aborted still has to end
        gc.collect()
        return Counter(type(each).__name__ for each in gc.garbage if isinstance(each, HELD))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


async def garbage(loop: str, effort: Effort) -> list[Row]:
    """Row 9."""
    rows: list[Row] = []
    with serving() as served:
        for title, call in scenes(served).items():
            left = await left_by(call)
            each = ", ".join(f"{count / CALLS:g} {name}" for name, count in left.items())
            bar = None if title.startswith("for comparison") else 0.0
            rows.append(Row("9", title, loop, "objects", left.total() / CALLS, bar, note=each))
    return rows
