"""A connection within a time limit, and the one typed error if there is none."""

import asyncio

import aioconnect


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    name = await reader.readline()
    writer.write(b"hello, " + name)
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"tcp://localhost:{server.sockets[0].getsockname()[1]}"

    async with aioconnect.connect(url, timeout=5) as conn:
        await conn.send(b"world\n")
        print((await conn.readline()).decode().strip())

    server.close()
    try:
        await aioconnect.connect(url, timeout=0.5)
    except aioconnect.ConnectRefused as error:
        print(error)
        print(f"{error.code} is errno {error.errno}, tried {error.attempt_count} times in {error.elapsed:.1f} s")


asyncio.run(main())
