"""The simulated network behaves as the kernel does: one suite of stories, told on both, with the same outcome."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import aioconnect
from aioconnect import Backoff, Connection, Connector, Endpoint, Policy, errors
from aioconnect.testing import Network
from tests.support.clock import virtual

Handler = Callable[[StreamReader, StreamWriter], Awaitable[object]]
QUICK = Policy(wait=Backoff(initial=0.02, maximum=0.02, jitter="none"), attempt_timeout=0.25, timeout=10)
ONCE = QUICK.replace(max_attempts=1)
NO_LINGER = struct.pack("ii", 1, 0)


def reset(writer: StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()


class Simulated:
    """A server on a simulated network with a round trip of two milliseconds."""

    def __init__(self) -> None:
        self.network = Network(latency="2ms")
        asyncio.get_running_loop().network = self.network  # type: ignore[attr-defined]

    async def serve(self, handler: Handler, backlog: int = 100) -> tuple[str, int]:
        self.server = self.network.serve("10.0.0.1", 5432, handler, backlog=backlog)
        return "10.0.0.1", 5432

    async def stop(self, live: Any) -> None:
        self.server.stop(live)

    async def start(self) -> None:
        self.server.start()

    async def pause(self) -> None:
        self.server.pause()

    async def aclose(self) -> None:
        self.server.stop()
        await asyncio.sleep(1)
        assert self.network.open == {}


class Real:
    """A server on loopback."""

    async def serve(self, handler: Handler, backlog: int = 100) -> tuple[str, int]:
        self.handler, self.backlog = handler, backlog
        self.writers: list[StreamWriter] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.address = self.listener.getsockname()
        self.server = await asyncio.start_server(self._handle, sock=self.listener, backlog=backlog)
        return "127.0.0.1", self.address[1]

    async def _handle(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError, EOFError):
            await self.handler(reader, writer)
        writer.close()

    async def stop(self, live: str) -> None:
        self.server.close()
        for writer in self.writers:
            if not writer.is_closing():
                reset(writer) if live == "reset" else writer.transport.abort()
        await asyncio.sleep(0.01)

    async def start(self) -> None:
        listener = socket.create_server(self.address, backlog=self.backlog)
        self.server = await asyncio.start_server(self._handle, sock=listener, backlog=self.backlog)

    async def pause(self) -> None:
        self.server.close()
        await asyncio.sleep(0)
        self.mute = socket.create_server(self.address, backlog=self.backlog)
        self.server = self.mute  # type: ignore[assignment]

    async def aclose(self) -> None:
        await self.stop("close")


World = Simulated | Real
Story = Callable[[World], Awaitable[object]]


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()


async def mute(reader: StreamReader, writer: StreamWriter) -> None:
    while await reader.read(2**16):
        pass


def endpoint(address: tuple[str, int]) -> Endpoint:
    return Endpoint(*address)


async def attempt(doing: Awaitable[object]) -> str:
    """What a wait ends with: its result, or its error's class and errno's name."""
    try:
        return repr(await doing)
    except errors.NetworkError as exc:
        return f"{type(exc).__name__} {errno.errorcode.get(exc.errno or 0)}"


# ------------------------------------------------------------------------------------------ the stories


async def echoes(world: World) -> object:
    address = await world.serve(echo)
    async with aioconnect.connect(endpoint(address)) as conn:
        await conn.send(b"hello")
        answer = await conn.readexactly(5)
        return answer, conn.peername[:2] == address, conn.is_usable(), conn.sockname != conn.peername


async def refused(world: World) -> object:
    address = await world.serve(echo)
    await world.stop("close")
    return await attempt(aioconnect.connect(endpoint(address), policy=ONCE))


async def refused_until_it_starts(world: World) -> object:
    address = await world.serve(echo)
    await world.stop("close")
    calling = asyncio.ensure_future(Connector(endpoint(address), QUICK).connect())
    await asyncio.sleep(0.1)
    await world.start()
    async with await calling as conn:
        await conn.send(b"x")
        return await conn.readexactly(1)


async def hangs_up(world: World) -> object:
    async def bye(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"bye")

    address = await world.serve(bye)
    async with aioconnect.connect(endpoint(address)) as conn:
        words = await conn.read(), await conn.read()
        again = await attempt(conn.readexactly(1))
        return words, again, conn.is_closing, conn.is_usable()


async def hangs_up_inside_a_message(world: World) -> object:
    async def half(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"half")

    address = await world.serve(half)
    async with aioconnect.connect(endpoint(address)) as conn:
        try:
            await conn.readexactly(8)
        except errors.PeerClosed as exc:
            return exc.partial, exc.expected
    return None


async def resets(world: World) -> object:
    async def rude(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readexactly(1)
        reset(writer)

    address = await world.serve(rude)
    async with aioconnect.connect(endpoint(address)) as conn:
        await conn.send(b"x")
        return await attempt(conn.read()), await attempt(conn.drain()), conn.is_usable()


async def writes_to_who_has_left(world: World) -> object:
    async def bye(_: StreamReader, writer: StreamWriter) -> None:
        writer.close()

    address = await world.serve(bye)
    async with aioconnect.connect(endpoint(address)) as conn:
        end = await conn.read()
        conn.write(b"x")
        await asyncio.sleep(0.02)
        conn.write(b"x")
        await asyncio.sleep(0.02)
        return end, await attempt(conn.drain())


async def stalls(world: World) -> object:
    async def greeting(conn: Connection) -> None:
        await conn.readline()

    address = await world.serve(mute)
    try:
        await Connector(endpoint(address), ONCE, greeting).connect()
    except errors.ConnectTimeout as exc:
        return exc.phase, exc.source, exc.errno == errno.ETIMEDOUT
    return None


async def full_queue(world: World) -> object:
    address = await world.serve(mute, backlog=0)
    await world.pause()
    made = [await aioconnect.dial(endpoint(address), policy=ONCE)]
    outcome = await attempt(aioconnect.dial(endpoint(address), policy=ONCE))
    made[0].close()
    return outcome


async def restart(world: World) -> object:
    address = await world.serve(echo)
    connector = Connector(endpoint(address), QUICK)
    first = await connector.connect()
    await first.send(b"1")
    one = await first.readexactly(1)
    await world.stop("reset")
    lost = await attempt(first.readexactly(1))
    first.abort()
    calling = asyncio.ensure_future(connector.connect())
    await asyncio.sleep(0.05)
    await world.start()
    async with await calling as second:
        await second.send(b"2")
        return one, lost, await second.readexactly(1)


async def orderly_end_while_idle(world: World) -> object:
    address = await world.serve(mute)
    conn = await aioconnect.connect(endpoint(address))
    before = conn.is_usable()
    await asyncio.sleep(0.02)
    await world.stop("close")
    await asyncio.sleep(0.02)
    after = conn.is_usable(), conn.is_closing
    await conn.aclose()
    return before, after


async def half_close(world: World) -> object:
    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        everything = await reader.read()
        writer.write(everything.upper())

    address = await world.serve(answer)
    async with aioconnect.connect(endpoint(address)) as conn:
        conn.write(b"abc")
        conn.write_eof()
        return await conn.read()


async def much_to_a_slow_reader(world: World) -> object:
    """Flow control, all the way: more than all buffers hold, read late and in small pieces."""
    digest = hashlib.sha256()
    go = asyncio.Event()
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def slow(reader: StreamReader, _: StreamWriter) -> None:
        size = 0
        await go.wait()
        while data := await reader.read(30_000):
            size += len(data)
            digest.update(data)
        done.set_result(size)

    payload = bytes(range(256)) * 64
    times = 800
    address = await world.serve(slow)
    async with aioconnect.connect(endpoint(address)) as conn:

        async def send() -> None:
            for _ in range(times):
                await conn.send(payload)

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(0.05)
        held = sending.done(), conn.writer.transport.get_write_buffer_size() > 0
        go.set()
        await sending
    return held, await done, digest.digest() == hashlib.sha256(payload * times).digest()


async def client_aborts(world: World) -> object:
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def listen(reader: StreamReader, _: StreamWriter) -> None:
        try:
            heard.set_result(await reader.read())
        except OSError as exc:
            heard.set_result(exc.errno)

    address = await world.serve(listen)
    conn = await aioconnect.connect(endpoint(address))
    await asyncio.sleep(0.02)
    conn.abort()
    return await heard


async def client_resets(world: World) -> object:
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def listen(reader: StreamReader, _: StreamWriter) -> None:
        try:
            heard.set_result(await reader.read())
        except OSError as exc:
            heard.set_result(exc.errno == errno.ECONNRESET)

    address = await world.serve(listen)
    conn = await aioconnect.connect(endpoint(address))
    await asyncio.sleep(0.02)
    reset(conn.writer)
    return await heard


async def dialed_and_closed(world: World) -> object:
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def listen(reader: StreamReader, _: StreamWriter) -> None:
        heard.set_result(await reader.read())

    address = await world.serve(listen)
    sock = await aioconnect.dial(endpoint(address))
    peer = sock.getpeername() == address
    sock.close()
    return peer, await heard


async def closes_with_something_unread(world: World) -> object:
    """The kernel tells by RST that it was never read."""
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"x" * 1_000_000)
        await asyncio.sleep(0.05)
        try:
            heard.set_result(await reader.read())
        except OSError as exc:
            heard.set_result(errno.errorcode[exc.errno or 0])

    address = await world.serve(talk)
    conn = await aioconnect.connect(endpoint(address))
    await asyncio.sleep(0.02)
    conn.abort()
    return await heard


async def is_reset_while_it_writes_and_does_not_read(world: World) -> object:
    """A blocked writer hears of it at once, whatever is unread."""
    go = asyncio.Event()

    async def flood(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"x" * 1_000_000)
        await go.wait()
        reset(writer)

    address = await world.serve(flood)
    async with aioconnect.connect(endpoint(address)) as conn:

        async def send() -> None:
            while True:
                await conn.send(b"y" * 100_000)

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(0.05)
        before = sending.done()
        go.set()
        return before, await attempt(sending)


async def drains_while_the_peer_does_not_read(world: World) -> object:
    async def ignore(_: StreamReader, writer: StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.close()

    address = await world.serve(ignore)
    async with aioconnect.connect(endpoint(address)) as conn:
        conn.write(b"y" * 20_000_000)
        paused = conn.writer.transport.get_write_buffer_size() > 0
        return paused, await attempt(conn.drain())


async def plain_asyncio(world: World) -> object:
    address = await world.serve(echo)
    reader, writer = await asyncio.open_connection(*address)
    writer.writelines([b"he", b"llo"])
    await writer.drain()
    writer.write_eof()
    everything = await reader.read()
    info = writer.get_extra_info("peername")[:2] == address, writer.get_extra_info("sslcontext")
    writer.close()
    await writer.wait_closed()
    return everything, info


async def plain_asyncio_refused(world: World) -> object:
    address = await world.serve(echo)
    await world.stop("close")
    try:
        await asyncio.open_connection(*address)
    except ConnectionRefusedError as exc:
        return exc.errno == errno.ECONNREFUSED
    return None


STORIES: dict[Story, object] = {
    echoes: (b"hello", True, True, True),
    refused: "ConnectRefused ECONNREFUSED",
    refused_until_it_starts: b"x",
    hangs_up: ((b"bye", b""), "PeerClosed None", True, False),
    hangs_up_inside_a_message: (b"half", 8),
    resets: ("ConnectionResetByPeer ECONNRESET", "ConnectionResetByPeer ECONNRESET", False),
    writes_to_who_has_left: (b"", "BrokenPipe EPIPE"),
    stalls: ("prepare", "attempt", True),
    full_queue: "ConnectTimeout ETIMEDOUT",
    restart: (b"1", "ConnectionResetByPeer ECONNRESET", b"2"),
    orderly_end_while_idle: (True, (False, True)),
    half_close: b"ABC",
    much_to_a_slow_reader: ((False, True), 800 * 64 * 256, True),
    client_aborts: b"",
    client_resets: True,
    dialed_and_closed: (True, b""),
    closes_with_something_unread: "ECONNRESET",
    is_reset_while_it_writes_and_does_not_read: (False, "ConnectionResetByPeer ECONNRESET"),
    drains_while_the_peer_does_not_read: (True, "ConnectionResetByPeer ECONNRESET"),
    plain_asyncio: (b"hello", (True, None)),
    plain_asyncio_refused: True,
}
each_story = pytest.mark.parametrize(("story", "expected"), STORIES.items(), ids=[story.__name__ for story in STORIES])


async def told(world: World, story: Story) -> object:
    try:
        return await story(world)
    finally:
        await world.aclose()


@each_story
async def test_on_real_sockets(story: Story, expected: object) -> None:
    assert await told(Real(), story) == expected


@virtual
@each_story
async def test_on_the_simulated_network(story: Story, expected: object) -> None:
    assert await told(Simulated(), story) == expected
