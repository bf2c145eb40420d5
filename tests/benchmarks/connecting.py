"""Connecting: to an IP address, to localhost, beside what people use or write today, and to nobody.

What is timed is the connecting of a whole batch, one connection after the other; closing them all comes after it
and is timed by itself. Each batch goes to another address of 127.0.0.0/8 and another port: thousands of
connections in TIME_WAIT towards one address would slow down the kernel's search for a free local port. So each
client connects there once before the clock starts: what is compared is the second connect and those after it.
Only `aioconnect.open_connection`, which has no memory, is new every time.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import aiohappyeyeballs
import anyio
import tenacity

import aioconnect
from aioconnect.connection import Connection, Writer, streams
from aioconnect.errors import ConnectRefused
from tests.benchmarks.measure import Batch, Effort, Ratio, Row, Samples, alternate, compare, middle
from tests.benchmarks.server import Served, serving

__all__ = ("connecting",)

ATTEMPT, CALL = 5.0, 60.0  # seconds; the default policy's limits, given to everybody who takes some

Open = Callable[[], Awaitable[Any]]


class Place(NamedTuple):
    """One destination."""

    host: str
    port: int
    closed: int


class Client(NamedTuple):
    """A way to connect. ``at`` prepares for a place; what it returns is what is timed."""

    at: Callable[[Place], Open]
    close: Callable[[Any], Awaitable[None]] | None = None


async def close_streams(opened: tuple[Any, asyncio.StreamWriter]) -> None:
    opened[1].close()
    await opened[1].wait_closed()


async def close_connection(opened: Connection) -> None:
    await opened.aclose()


async def close_stream(opened: Any) -> None:
    await opened.aclose()


# The clients


def ours(place: Place, **options: Any) -> Open:
    return aioconnect.Connector(aioconnect.Endpoint(place.host, place.port, **options)).connect


def ours_by_name(place: Place, ttl: float = 5.0) -> Open:
    resolver = aioconnect.Resolver(ttl=ttl)
    return aioconnect.Connector(aioconnect.Endpoint("localhost", place.port), resolver=resolver).connect


def ours_at_once(place: Place) -> Open:
    return functools.partial(aioconnect.open_connection, place.host, place.port)


def plain(place: Place) -> Open:
    return functools.partial(asyncio.open_connection, place.host, place.port)


def plain_by_name(place: Place) -> Open:
    return functools.partial(asyncio.open_connection, "localhost", place.port)


def plain_timed(place: Place) -> Open:
    async def connect() -> Any:
        async with asyncio.timeout(ATTEMPT):
            return await asyncio.open_connection(place.host, place.port)

    return connect


def written_by_hand(place: Place) -> Open:
    """As in the documentation of tenacity; of its three forms ``async for`` is the cheapest."""

    async def connect() -> Any:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(OSError),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(CALL),
            reraise=True,
        ):
            with attempt:
                return await asyncio.wait_for(asyncio.open_connection(place.host, place.port), ATTEMPT)
        raise AssertionError("it ends by a return or by an error")

    return connect


def happy_eyeballs(place: Place) -> Open:
    infos = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (place.host, place.port))]

    async def connect() -> Any:
        sock = await aiohappyeyeballs.start_connection(infos)
        return await asyncio.open_connection(sock=sock)

    return connect


def anyio_tcp(place: Place) -> Open:
    return functools.partial(anyio.connect_tcp, place.host, place.port)


def bare(place: Place) -> Open:
    """The least that leads to streams with typed errors: no limits, no policy, no options."""

    async def connect() -> Connection:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        address = place.host, place.port
        if sock.connect_ex(address) == errno.EINPROGRESS and sock.connect_ex(address):
            raise AssertionError("a loopback connect is over by the second call")
        reader, protocol = streams(loop, 2**16, address)
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        return Connection(reader, Writer(transport, protocol, reader, loop), None)  # type: ignore[arg-type]

    return connect


def ours_refused(place: Place) -> Open:
    endpoint = aioconnect.Endpoint(place.host, place.closed)
    # Without a breaker, whose open circuit would have each call wait for its turn.
    start = aioconnect.Connector(endpoint, aioconnect.Policy(max_attempts=1, breaker=None)).connect

    async def connect() -> None:
        try:
            await start()
        except ConnectRefused as exc:
            if exc.attempts and exc.address:
                return
        raise AssertionError("not refused, or without its history")

    return connect


def plain_refused(place: Place) -> Open:
    async def connect() -> None:
        try:
            await asyncio.open_connection(place.host, place.closed)
        except ConnectionRefusedError:
            return
        raise AssertionError("not refused")

    return connect


def bare_refused(place: Place) -> Open:
    """The kernel's part of it, and no error."""

    async def connect() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        address = place.host, place.closed
        if sock.connect_ex(address) == errno.EINPROGRESS and sock.connect_ex(address) != errno.ECONNREFUSED:
            raise AssertionError("not refused")
        sock.close()

    return connect


CLIENTS = {
    "Connector.connect": Client(ours, close_connection),
    "Connector.connect, no keepalive": Client(functools.partial(ours, keepalive=None), close_connection),
    "aioconnect.open_connection": Client(ours_at_once, close_streams),
    "Connector.connect localhost": Client(ours_by_name, close_connection),
    "Connector.connect localhost, ttl 0": Client(functools.partial(ours_by_name, ttl=0), close_connection),
    "open_connection": Client(plain, close_streams),
    "open_connection in asyncio.timeout": Client(plain_timed, close_streams),
    "open_connection localhost": Client(plain_by_name, close_streams),
    "tenacity + wait_for + open_connection": Client(written_by_hand, close_streams),
    "aiohappyeyeballs + open_connection(sock=)": Client(happy_eyeballs, close_streams),
    "anyio.connect_tcp": Client(anyio_tcp, close_stream),
    "connect_ex twice + create_connection(sock=)": Client(bare, close_connection),
    "Connector.connect refused": Client(ours_refused),
    "open_connection refused": Client(plain_refused),
    "connect_ex twice, refused": Client(bare_refused),
}


def batch(client: Client, places: Sequence[Place], size: int) -> Batch:
    openers = [client.at(place) for place in places]

    async def run(number: int) -> tuple[float, ...]:
        start = openers[number % len(openers)]
        first = await start()
        began = time.process_time()
        opened = [await start() for _ in range(size)]
        connected = time.process_time()
        if client.close is not None:
            for each in opened:
                await client.close(each)
        closed = time.process_time()
        if client.close is not None:
            await client.close(first)
        return (connected - began) / size, (closed - connected) / size

    return run


def destinations(served: Served, rounds: int) -> list[Place]:
    """One for each round, and a few that repeat when there are very many rounds."""
    return [
        Place(
            f"127.0.{number // 250 % 250}.{1 + number % 250}", served.ports[number % len(served.ports)], served.closed
        )
        for number in range(min(rounds, 1000) + 2)
    ]


class Comparison(NamedTuple):
    """A row to be: who is compared with whom, and the bar for each loop."""

    number: str
    ours: str
    theirs: str
    asyncio: float | None = None
    uvloop: float | None = None


COMPARISONS = (
    Comparison("1", "Connector.connect", "open_connection", 0.75, 1.15),
    Comparison("1", "Connector.connect", "open_connection in asyncio.timeout", 0.75, 1.0),
    # Like for like: neither side sets socket options but TCP_NODELAY.
    Comparison("1", "Connector.connect, no keepalive", "open_connection", 0.75, 1.15),
    Comparison("1", "Connector.connect, no keepalive", "open_connection in asyncio.timeout", 0.75, 1.0),
    Comparison("1", "aioconnect.open_connection", "open_connection"),
    Comparison("1", "connect_ex twice + create_connection(sock=)", "open_connection"),
    Comparison("2", "Connector.connect localhost", "open_connection localhost", 0.45, 0.6),
    Comparison("2", "Connector.connect localhost, ttl 0", "open_connection localhost"),
    Comparison("3", "Connector.connect", "tenacity + wait_for + open_connection", 0.45, 0.55),
    Comparison("4", "Connector.connect", "aiohappyeyeballs + open_connection(sock=)", 0.75, 0.75),
    Comparison("4", "Connector.connect", "anyio.connect_tcp", 0.4, 0.4),
    Comparison("5", "Connector.connect refused", "open_connection refused", 0.5, 0.75),
    Comparison("5", "connect_ex twice, refused", "open_connection refused"),
)


async def connecting(loop: str, effort: Effort) -> list[Row]:
    """Rows 1 to 5 on the running loop."""
    with serving() as served:
        places = destinations(served, effort.rounds)
        batches = {name: batch(client, places, effort.batch) for name, client in CLIENTS.items()}
        taken = await alternate(batches, effort)
    return [row(each, loop, taken) for each in COMPARISONS]


def row(comparison: Comparison, loop: str, taken: dict[str, Samples]) -> Row:
    mine, their = taken[comparison.ours], taken[comparison.theirs]
    ratio: Ratio = compare(mine, their)
    closing = CLIENTS[comparison.ours].close is not None
    return Row(
        comparison.number,
        f"{comparison.ours} / {comparison.theirs}",
        loop,
        "x",
        ratio.value,
        comparison.uvloop if loop == "uvloop" else comparison.asyncio,
        ratio.low,
        ratio.high,
        second=compare(mine, their, slice(0, 2)).value if closing else None,
        ours=middle(mine),
        theirs=middle(their),
    )
