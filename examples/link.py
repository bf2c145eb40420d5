"""A feed that is followed over one connection, which comes back by itself: after a restart, and after a silence."""

import asyncio
import logging

from aioconnect import Backoff, Connection, Connector, Heartbeat, Link, LinkState, Policy
from aioconnect.events import Event, LinkStateChanged


def beat(conn: Connection) -> None:
    """Sent every 0.1 s. Any byte of the server's is a sign of life; 0.25 s without one, and the connection is lost."""
    conn.write(b"beat\n")


async def follow(conn: Connection) -> None:
    """For each connection in turn. A loss is met with the next one, and so is the end of a stream; a return ends it."""
    while line := await conn.readline():
        if line != b"beat\n":
            print(f"news: {line.decode().strip()}")
        if line == b"that is all\n":
            return


def show(event: Event) -> None:
    if isinstance(event, LinkStateChanged) and LinkState.READY in (event.before, event.after):
        print(event.before.name, "->", event.after.name, type(event.error).__name__ if event.error else "")


async def main() -> None:
    feed = Feed()
    await feed.start()
    connector = Connector(f"127.0.0.1:{feed.port}", Policy(wait=Backoff(maximum=0.1)), observers=[show])
    async with Link(connector, heartbeat=Heartbeat(beat, every=0.1, timeout=0.25)) as link:
        following = asyncio.create_task(link.run(follow))
        await asyncio.sleep(0.1)
        feed.stop()
        await asyncio.sleep(0.1)
        await feed.start()
        await link.ready(timeout=5)
        await asyncio.sleep(0.1)
        feed.silent, feed.news = True, b"that is all\n"
        await following
    feed.stop()


class Feed:
    """The server: it tells everybody the news, and answers each beat unless it has fallen silent."""

    port, silent, news = 0, False, b"it is raining\n"

    async def start(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(self.news)
        while beat := await reader.readline():
            writer.write(b"" if self.silent else beat)


logging.getLogger("aioconnect").setLevel("ERROR")  # it would tell of the outage, too
asyncio.run(main())
