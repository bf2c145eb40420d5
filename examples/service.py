"""A service with three endpoints from one TOML file, which tells its health and closes in order on SIGTERM.

orders   a pool: requests borrow a connection
prices   a link: one connection kept up, with a heartbeat
audit    is down, and the service does without
"""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

from aioconnect import ConnectError, Connection, ConnectionManager

SETTINGS = Path(__file__).with_name("service.toml")


async def ping(conn: Connection) -> None:
    conn.write(b"ping\n")


async def order(net: ConnectionManager, number: int) -> str:
    async with net.pool("orders").acquire(timeout=1) as conn:
        await conn.send(b"order %d\n" % number)
        return (await conn.readline()).decode().strip()


async def serve(net: ConnectionManager, stop: asyncio.Event) -> None:
    prices: list[bytes] = []

    async def follow(conn: Connection) -> None:
        while line := await conn.readline():
            prices.append(line)

    following = asyncio.create_task(net.link("prices").run(follow))
    await net.ready("orders", "prices", timeout=5)
    answers = await asyncio.gather(*(order(net, number) for number in range(20)))
    print(f"{len(answers)} answers over {net.pool('orders').stats().created} connections, the last: {answers[-1]}")
    await stop.wait()
    with contextlib.suppress(ConnectError):
        await net["audit"].connect()
    print("/readyz", json.dumps(net.health()))
    await net.aclose()
    await following  # ends with its link
    print(f"closed; ready: {net.health()['ready']}; {len(prices)} prices")


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = str(server.sockets[0].getsockname()[1])
        # A deployment says where things are: here, and in os.environ elsewhere.
        places = {f"AIOCONNECT__ENDPOINTS__{name}__PORT": port for name in ("ORDERS", "PRICES")}
        async with ConnectionManager.from_toml(SETTINGS, environ=places, send={"prices": ping}) as net:
            asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGTERM)
            await serve(net, stop)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for line in reader:
            writer.write(line)
    writer.close()


asyncio.run(main())
