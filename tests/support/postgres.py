"""As much of PostgreSQL's protocol, version 3, as it takes to ask for a number."""

from __future__ import annotations

import struct

from aioconnect import Connection, NotReady

__all__ = ("select", "startup")


async def _message(connection: Connection) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!cI", await connection.readexactly(5))
    return kind, await connection.readexactly(length - 4)


async def startup(connection: Connection) -> None:
    """A ``prepare`` hook: NotReady with the server's own words, as long as it is starting or shutting down."""
    words = b"user\0postgres\0database\0postgres\0\0"
    await connection.send(struct.pack("!II", len(words) + 8, 3 << 16) + words)
    while True:
        kind, body = await _message(connection)
        if kind == b"E":
            raise NotReady(body.replace(b"\0", b" ").decode())
        if kind == b"Z":
            return


async def select(connection: Connection, number: int) -> int:
    """``SELECT number``."""
    query = f"SELECT {number}".encode() + b"\0"
    await connection.send(struct.pack("!cI", b"Q", len(query) + 4) + query)
    answer = b""
    while True:
        kind, body = await _message(connection)
        if kind == b"D":
            answer = body[6:]
        elif kind == b"Z":
            return int(answer)
