"""A service on uvloop: the code is the same, and so are the errors. Without uvloop it runs on asyncio's own loop."""

import asyncio
from collections.abc import Callable

import aioconnect

try:
    import uvloop
except ImportError:
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop


async def double(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async for line in reader:
        writer.write(b"%d\n" % (2 * int(line)))
    writer.close()


async def ask(connector: aioconnect.Connector, number: int) -> int:
    async with connector.connect() as conn:
        await conn.send(b"%d\n" % number)
        return int(await conn.readline())


async def main() -> None:
    print(f"running on {type(asyncio.get_running_loop()).__module__.partition('.')[0]}")
    server = await asyncio.start_server(double, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    # At most eight dials at once; the others wait their turn.
    connector = aioconnect.Connector(aioconnect.Endpoint(host, port), max_connecting=8)
    answers = await asyncio.gather(*(ask(connector, number) for number in range(100)))
    print(f"{len(answers)} answers, the last is {answers[-1]}; {connector.stats().connected} connections")
    server.close()


with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main())
