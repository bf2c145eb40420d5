"""A server that can be stopped and started again at its port, and treats its clients as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Self

__all__ = ("Backend", "Serve", "echo", "greet", "greet_and_hang_up", "hang_up", "mute")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)


async def mute(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello\n")
    await echo(reader, writer)


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def greet_and_hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello\n")
    writer.close()


class Backend:
    """A server on loopback. Its port stays the same, and nobody listens there until it is `up`."""

    def __init__(self, serve: Serve = echo) -> None:
        self.serve = serve
        self.accepted: list[float] = []
        """The loop times at which connections came."""
        self.writers: dict[asyncio.StreamWriter, None] = {}
        self.most = 0
        """The most connections that were open at once."""
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        return len(self.writers)

    async def up(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def down(self) -> None:
        """Stop as a killed process does: the listener and all connections are gone."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in tuple(self.writers):
            with contextlib.suppress(OSError):
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def end(self) -> None:
        """Close all connections in good order."""
        for writer in tuple(self.writers):
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.append(asyncio.get_running_loop().time())
        self.writers[writer] = None
        self.most = max(self.most, self.open)
        try:
            await self.serve(reader, writer)
        except OSError:
            pass  # the client has gone, or `cut`
        finally:
            writer.close()
            del self.writers[writer]

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.down()
        while self.writers:
            await asyncio.sleep(0)
