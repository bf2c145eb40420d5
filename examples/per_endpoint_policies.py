"""A service with three endpoints, each with its own policy for a peer that is not there yet.

database   is worth waiting for, also while it says that it is still loading
cache      is not: after two quick attempts the service does without
sidecar    may start after us, so a missing socket path is retried too
"""

import asyncio
import tempfile

from aioconnect import LOCAL, STARTING, TRANSIENT, Backoff, ConnectError, Connection, Connector, NotReady, Policy

QUICK = Backoff(initial=0.05, maximum=0.2, jitter="equal")
PATIENT = Policy(retry_on=TRANSIENT | LOCAL | STARTING, timeout=10, wait=QUICK)
IMPATIENT = Policy(max_attempts=2, timeout=0.5, wait=QUICK)


async def database_is_ready(conn: Connection) -> None:
    said = await conn.readline()
    if said != b"READY\n":
        raise NotReady(said.decode().strip())


async def use(name: str, connector: Connector) -> None:
    try:
        async with connector.connect():
            outcome = "connected"
    except ConnectError as error:
        outcome = f"does without: {error}"
    print(f"{name:<9} {outcome}; failures: {dict(connector.stats().failures)}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = await start_database()
        sidecar = asyncio.create_task(start_sidecar_late(f"{directory}/sidecar.sock"))
        port = database.sockets[0].getsockname()[1]
        await use("database", Connector(f"tcp://127.0.0.1:{port}", PATIENT, prepare=database_is_ready))
        await use("cache", Connector("tcp://127.0.0.1:1", IMPATIENT))
        await use("sidecar", Connector(f"unix://{directory}/sidecar.sock", PATIENT))
        database.close()
        (await sidecar).close()


async def start_database() -> asyncio.Server:
    states = iter([b"LOADING\n", b"LOADING\n"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(states, b"READY\n"))
        await reader.read()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def start_sidecar_late(path: str) -> asyncio.Server:
    await asyncio.sleep(0.8)
    return await asyncio.start_unix_server(lambda _reader, writer: writer.close(), path)


asyncio.run(main())
