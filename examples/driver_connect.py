"""Retries around somebody else's connect: a driver's, and `asyncio.start_server` on a port that is still taken."""

import asyncio
import socket
from typing import Self

from aioconnect import Policy, classify

POLICY = Policy(timeout=2)


class DriverError(Exception):
    """What a database driver raises: its own class, with the system's error behind it."""


class DriverConnection:
    """A driver that dials by itself and knows no retries."""

    @classmethod
    async def connect(cls, port: int) -> Self:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as exc:
            raise DriverError("cannot connect to the database") from exc
        writer.close()
        return cls()


async def main() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port: int = taken.getsockname()[1]
    asyncio.get_running_loop().call_later(0.5, taken.close)

    # A restart: the last instance has the port for a little longer. A given port is not retried unless we say so.
    restarting = POLICY.replace(retry_on=["EADDRINUSE"])
    server = await restarting.call(asyncio.start_server, lambda _reader, writer: writer.close(), "127.0.0.1", port)
    print("serving, once the port was free")

    # The policy finds ECONNREFUSED behind the driver's own exception.
    connection = await POLICY.call(DriverConnection.connect, port)
    print(f"the driver is connected: {type(connection).__name__}")

    server.close()
    try:
        await POLICY.replace(max_attempts=3).call(DriverConnection.connect, port)
    except DriverError as exc:
        # Untouched but for a note; `classify` says what is behind it.
        print(f"{exc!r}: {exc.__notes__[0]}")
        print(f"behind it: {classify(exc)!r}")


asyncio.run(main())
