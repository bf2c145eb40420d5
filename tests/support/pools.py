"""A server of lines for pools to talk to, and the books of a pool worked out in another way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from aioconnect import Connection, Connector, Policy, Pool

__all__ = ("Lines", "books_are_right", "echo", "lines", "settled")


class Lines:
    """Answers ``word\\n`` with the same, and ``word seconds\\n`` after so many seconds.

    `accepted` counts connections; `sockets` are those that are open. With `greeting` set it says hello, so that a
    ``prepare`` hook has something to wait for: that many seconds after accepting.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.greeting: float | None = None
        self.handshakes = self.most_handshakes = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.closed: list[int] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, *, reset: bool = False) -> None:
        """Stop listening, and close all connections: by FIN, or by RST."""
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0.01)  # those who are connected and not accepted yet
        for writer in self.writers:
            if reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0.01)

    @property
    def open(self) -> int:
        return len(self.writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        number = self.accepted
        self.writers.append(writer)
        try:
            if self.greeting is not None:
                self.handshakes += 1
                self.most_handshakes = max(self.most_handshakes, self.handshakes)
                await asyncio.sleep(self.greeting)
                self.handshakes -= 1
                writer.write(b"hello\n")
            while line := await reader.readline():
                word, _, seconds = line.rstrip().partition(b" ")
                if seconds:
                    await asyncio.sleep(float(seconds))
                writer.write(word + b"\n")
                await writer.drain()
        except (OSError, RuntimeError, asyncio.CancelledError):  # uvloop: a client that has gone
            pass
        finally:
            self.closed.append(number)
            self.writers.remove(writer)
            self._tasks.discard(task)
            writer.transport.abort()


@contextlib.asynccontextmanager
async def lines() -> AsyncIterator[Lines]:
    server = Lines()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def pool_of(server: Lines, *, policy: Policy | None = None, **settings: Any) -> Pool:
    prepare = settings.pop("prepare", None)
    return Pool(Connector(f"127.0.0.1:{server.port}", policy or Policy(), prepare), **settings)


async def hello(connection: Connection) -> None:
    """A ``prepare`` hook."""
    assert await connection.readline() == b"hello\n"


async def echo(connection: Connection, word: str, seconds: float = 0) -> str:
    connection.write(f"{word} {seconds}\n".encode() if seconds else f"{word}\n".encode())
    return (await connection.readline()).decode().strip()


def books_are_right(pool: Pool) -> None:
    """The sums of the books, worked out from what they are the sums of."""
    lending: Any = pool._lending
    books = pool._books
    stats = pool.stats()
    running = lending.tasks.running
    dials = [task for task, then in running.items() if then == lending.dials._dialed]
    resetting = [then.args[0] for then in running.values() if getattr(then, "func", None) == lending._reset]
    entries = list(books.entries.values())
    lent = [entry for entry in entries if entry.borrower is not None]
    assert stats.connecting == len(dials)
    assert stats.idle == len(books.idle) == len({id(entry) for entry in books.idle})
    assert stats.in_use == len(lent) + len(resetting)
    assert stats.idle + stats.in_use + stats.connecting == stats.size <= books.limits.max_size
    assert {id(entry) for entry in (*books.idle, *lent, *resetting)} == {id(entry) for entry in entries}
    assert len(dials) <= books.limits.max_connecting
    assert stats.created - sum(stats.closed.values()) == len(entries)
    assert not (stats.idle and stats.waiting), "somebody waits beside an idle connection"
    assert Counter(map(id, books.entries)) == Counter(id(entry.connection) for entry in entries)


async def settled(pool: Pool, seconds: float = 2.0) -> None:
    """Until no dial and no hook is under way."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while pool._lending.tasks.running and loop.time() < deadline:
        await asyncio.sleep(0.001)
