"""A pool of connections that speak Redis's protocol, to a server that is restarted under it."""

import asyncio

from aioconnect import Connection, Connector, NotReady, Pool, PoolTimeout


async def command(conn: Connection, *words: str) -> str:
    """One exchange of RESP: an array of strings goes out, a simple string or a bulk string comes back."""
    conn.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words))
    answer = (await conn.readline()).decode().strip()
    return (await conn.readexactly(int(answer[1:]) + 2))[:-2].decode() if answer[:1] == "$" else answer[1:]


async def hello(conn: Connection) -> None:
    """Part of each dial: a server that is still loading is not ready."""
    if (answer := await command(conn, "PING")) != "PONG":
        raise NotReady(answer)


async def visit(pool: Pool, number: int) -> str:
    async with pool.acquire(timeout=5) as conn:
        return await command(conn, "ECHO", f"visitor {number}")


async def main() -> None:
    redis = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = redis.sockets[0].getsockname()[1]
    async with Pool(Connector(f"127.0.0.1:{port}", prepare=hello), max_size=3) as pool:
        answers = await asyncio.gather(*(visit(pool, number) for number in range(100)))
        print(f"{len(answers)} answers over {pool.stats().created} connections, the last to {answers[-1]}")

        # One who is cancelled in the middle of an exchange leaves nothing to the next: its connection is closed.
        impatient = asyncio.create_task(visit(pool, 100))
        await asyncio.sleep(0)
        impatient.cancel()
        print(f"one was cancelled, the next reads its own: {await visit(pool, 101)}; {dict(pool.stats().closed)}")

        redis.close()
        for writer in clients:
            writer.close()
        await asyncio.sleep(0.1)
        redis = await asyncio.start_server(serve, "127.0.0.1", port)
        print(f"a restart that nobody saw: {await visit(pool, 102)}; {dict(pool.stats().closed)}")

        async with pool.acquire(), pool.acquire(), pool.acquire():
            try:
                await pool.acquire(timeout=0.1)
            except PoolTimeout as error:
                print(error)
    redis.close()


clients: set[asyncio.StreamWriter] = set()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As much of Redis as it takes."""
    clients.add(writer)
    while count := (await reader.readline())[1:]:
        words = [(await reader.readline(), await reader.readline())[1] for _ in range(int(count))]
        writer.write(b"+PONG\r\n" if words[0] == b"PING\r\n" else b"$%d\r\n%s" % (len(words[1]) - 2, words[1]))
    clients.discard(writer)
    writer.close()


asyncio.run(main())
