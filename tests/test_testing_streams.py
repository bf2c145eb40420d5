"""Whatever two sides do to each other over a simulated network: bytes in order, ends that are told, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from asyncio import StreamReader, StreamWriter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aioconnect.testing import Network, run

PIECE = bytes(range(251))

steps = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 200_000)),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.001, 0.05, 0.3, 2.0])),
    st.tuples(st.just("read"), st.integers(1, 50_000)),
    st.tuples(st.sampled_from(["drain", "eof", "close", "abort"]), st.none()),
)
side = st.lists(steps, max_size=12)
ground = st.fixed_dictionaries(
    {
        "latency": st.sampled_from([0.0, 0.002, 0.1]),
        "jitter": st.sampled_from([0.0, 0.03]),
        "loss": st.sampled_from([0.0, 0.2]),
        "seed": st.integers(0, 1000),
        "window": st.sampled_from([1000, 65536]),
    }
)
cuts = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.booleans()), max_size=2)


class Side:
    """One end: what it wrote, what it read, and how it saw the end."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.written = 0
        self.read = bytearray()
        self.ended = "open"
        self.tidy = True
        """Whether everything that it wrote has to arrive, as long as the other side reads."""

    async def follow(self, story: list[tuple[str, Any]]) -> None:
        """Two sides that close with something left to send, and do not read, wait for each other for ever."""
        try:
            async with asyncio.timeout(500):
                await self.act(story)
        except TimeoutError:
            self.tidy = False
            self.ended = "stuck"
            self.writer.transport.abort()

    async def act(self, story: list[tuple[str, Any]]) -> None:
        try:
            for what, number in story:
                await self.do(what, number)
            if self.writer.can_write_eof() and not self.writer.is_closing():
                self.writer.write_eof()
            while data := await self.reader.read(70_000):
                self.read += data
            self.ended = "end"
            self.writer.close()
        except OSError as exc:
            self.ended = errno.errorcode[exc.errno or 0]
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def do(self, what: str, number: Any) -> None:
        if what == "sleep":
            await asyncio.sleep(number)
        elif what == "read":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    self.read += await self.reader.read(number)
        elif what == "close":
            self.tidy = False
            self.writer.close()
        elif what == "abort":
            self.tidy = False
            self.writer.transport.abort()
        elif self.writer.is_closing() or self.writer.transport._eof:  # type: ignore[attr-defined]
            return
        elif what == "write":
            self.writer.write(content(self.written, number))
            self.written += number
        elif what == "drain":
            # The other side may never read: not for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.writer.drain()
        else:
            self.writer.write_eof()


def content(start: int, size: int) -> bytes:
    offset = start % len(PIECE)
    return (PIECE * (size // len(PIECE) + 2))[offset : offset + size]


@settings(max_examples=150)
@given(ground, side, side, cuts)
def test_bytes_come_in_order_and_everything_ends(
    ground: dict[str, Any], ours: list[Any], theirs: list[Any], cuts: list[tuple[float, float, bool]]
) -> None:
    network = Network(**ground)
    sides: list[Side] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        sides.append(Side(reader, writer))
        await sides[-1].follow(theirs)

    async def main() -> None:
        network.serve("10.0.0.1", 80, serve)
        for at, long, one_way in cuts:
            network.at(at, lambda long=long, one_way=one_way: cut(long, one_way))
        try:
            reader, writer = await asyncio.open_connection("10.0.0.1", 80)
        except TimeoutError:
            return
        sides.append(Side(reader, writer))
        await sides[-1].follow(ours)
        # Whatever is still under way, retransmissions included.
        await asyncio.sleep(3000)
        assert network.open == {}
        check(*sides)

    def cut(long: float, one_way: bool) -> None:
        partition = network.partition("client", "10.0.0.1", one_way=one_way)
        network.call_later(long, partition.heal)

    run(main(), network=network)


def check(*sides: Side) -> None:
    if len(sides) < 2:
        return
    one, other = sides
    for writer, reader in ((one, other), (other, one)):
        assert reader.read == content(0, writer.written)[: len(reader.read)], "a prefix of what was written"
        assert reader.ended != "open"
        if reader.ended == "end" and reader.tidy and writer.tidy and writer.ended == "end":
            assert len(reader.read) == writer.written, "all of it, after an orderly end"
