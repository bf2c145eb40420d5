"""What a link costs while it waits, and what a crowd of them does to a server that comes back.

The memory is what tracemalloc sees for each link that runs a consumer, the consumer's own task included, after twenty
failed attempts over real loopback; connectors are made before. The crowd are shipped links, each with a connector of
its own, on the simulated network in virtual time: a server goes away for twenty seconds, and all connections with it.
A storm would be a server that meets the whole crowd at once; by the default waits, full jitter up to five seconds,
it meets four in ten of it in the first second, and each tenth of a second a share of them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
import tracemalloc
from collections import Counter
from typing import NamedTuple

from aioconnect import Backoff, Connection, Connector, Link, LinkState, Policy
from aioconnect.events import AttemptStarted, Event
from aioconnect.testing.network import Network
from aioconnect.testing.running import run
from tests.benchmarks.measure import Effort, Row

__all__ = ("crowd", "waiting")

WAITING = 500
ATTEMPTS = 20
SMALL = 4096.0
"""Bytes for a link in a pause."""
OUTAGE = 20.0
CAP = Backoff().maximum
PEAK = 0.1
"""The share of a crowd that a server meets in a tenth of a second."""


async def waiting(loop: str, effort: Effort) -> list[Row]:
    """A link in a pause."""
    count = min(WAITING, effort.connections)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens, and nobody else gets the port
        address = "{}:{}".format(*closed.getsockname())
        # The pause ends by `retry_now`, for all at once.
        policy = Policy(wait=Backoff(600, 600, jitter="none"))
        connectors = [Connector(address, policy) for _ in range(count + 10)]
        links = [Link(connector) for connector in connectors[:10]]
        tasks = [asyncio.ensure_future(link.run(Connection.read)) for link in links]
        await attempts(links)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for connector in connectors[10:]:
            links.append(Link(connector))
            tasks.append(asyncio.ensure_future(links[-1].run(Connection.read)))
        await attempts(links)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [Row("14", "a link in a pause, with its consumer's task", loop, "B", each, SMALL, note=f"{count} links")]


async def attempts(links: list[Link]) -> None:
    for _ in range(ATTEMPTS):
        for link in links:
            link.retry_now()
        await asyncio.sleep(0.02)
        while not all(link.state is LinkState.TRANSIENT_FAILURE for link in links):
            await asyncio.sleep(0.001)


class Return(NamedTuple):
    """What a server met when it came back."""

    last: float
    """Seconds until all links were back."""
    peak: int
    """The most attempts in a tenth of a second from then on."""
    second: int
    """Those of the first second."""
    attempts: float
    """Attempts for each link, over the outage."""
    timers: float
    """Timers of the loop for each link, in the middle of the outage."""


async def outage(network: Network, count: int) -> Return:
    loop = asyncio.get_running_loop()
    server = network.serve("10.0.0.1", 5432, backlog=count)
    met: Counter[int] = Counter()

    def observer(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            met[int(loop.time() * 10)] += 1

    links = [Link(Connector("10.0.0.1:5432", observers=[observer])) for _ in range(count)]
    await asyncio.gather(*(link.ready() for link in links))
    await asyncio.sleep(10)
    server.stop("reset")
    began = loop.time()
    await asyncio.sleep(OUTAGE / 2)
    scheduled = getattr(loop, "_scheduled", ())
    timers = sum(not timer.cancelled() for timer in scheduled) / count
    await asyncio.sleep(OUTAGE / 2)
    server.start()
    back = loop.time()
    await asyncio.gather(*(link.ready() for link in links))
    last = loop.time() - back
    await asyncio.sleep(10)
    assert all(link.state is LinkState.READY for link in links)
    late = {tenth: number for tenth, number in met.items() if tenth >= int(back * 10)}
    total = sum(number for tenth, number in met.items() if tenth >= int(began * 10))
    for link in links:
        await link.aclose()
    second = sum(number for tenth, number in late.items() if tenth < int(back * 10) + 10)
    return Return(last, max(late.values()), second, total / count, timers)


def crowd(effort: Effort) -> list[Row]:
    """All links of one loop through an outage."""
    count = effort.links
    network, cpu = Network(latency="2ms", seed=1), time.process_time()
    logger = logging.getLogger("aioconnect")
    silent, logger.disabled = logger.disabled, True  # it has something to say about each endpoint
    try:
        seen = run(outage(network, count), network=network)
    finally:
        logger.disabled = silent
    cpu = time.process_time() - cpu
    story = f"{seen.attempts:.1f} attempts each, {seen.timers:.1f} timers each, {cpu:.1f} s CPU"
    load = f"{seen.second / count:.2f} of them in the first second"
    title = f"{count:,} links after an outage of {OUTAGE:g} s"
    return [
        Row("15", f"{title}: all are back", "simulated", "s", seen.last, CAP, note=story),
        Row(
            "15", f"{title}: most attempts in 0.1 s, for each link", "simulated", "", seen.peak / count, PEAK, note=load
        ),
    ]
