"""A proxy that puts faults between a client and a real server; ``aioconnect chaos`` runs it.

    async with Proxy("127.0.0.1:6379", ["latency 100ms", "10% reset after 1000"], seed=7) as proxy:
        await my_client(*proxy.address)

Faults, any number of them::

    latency 100ms            adds that to each round trip
    latency 100ms 20ms       and up to so much more, at random
    rate 64k                 bytes in a second, in each direction (k: 1024, m: 1024 k)
    reset, reset after 1000  the connection is reset, once so many bytes have come from the server
    close, close after 1000  the same with an orderly close
    stall, stall after 1000  the same, but nothing more comes through in either direction
    down 5s every 30s        for the last 5 s of each 30 s: connections are reset and new ones refused
    10% reset after 1000     for that share of the connections

A target that refuses or cannot be reached is a reset for the client: the proxy has accepted by then.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Self

from aioconnect.endpoint import Endpoint
from aioconnect.errors import ConfigError, format_address
from aioconnect.testing.listening import Listener, reset
from aioconnect.testing.script import Step, parse_step
from aioconnect.validation import Problems, did_you_mean, parse_duration, shown

__all__ = ("Fault", "Proxy", "parse_fault")

_READ = 65536
_HELD = 1 << 20
"""Bytes that may be delayed in one direction before the proxy stops reading."""

_WORDS = ("latency", "rate", "reset", "close", "stall", "down")
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}.get


class Fault(NamedTuple):
    """One fault, as parsed by `parse_fault`."""

    word: str
    share: float = 1.0
    """Of the connections that have it."""
    seconds: float = 0.0
    more: float = 0.0
    """Jitter of a latency; the period of ``down``."""
    size: int = 0
    """Bytes after which it happens, or bytes in a second."""

    def __str__(self) -> str:
        return self.word if not self.size or self.word == "rate" else f"{self.word} after {self.size} bytes"


def parse_fault(text: Fault | str) -> Fault:
    """A fault from its text. Raises `ConfigError` for what makes no sense.

    >>> parse_fault("10% reset after 1000")
    Fault(word='reset', share=0.1, seconds=0.0, more=0.0, size=1000)
    """
    if isinstance(text, Fault):
        return text
    words = text.split() if isinstance(text, str) else []
    share = 1.0
    if words and words[0].endswith("%"):
        share = _share(text, words.pop(0))
    if not words or words[0] not in _WORDS:
        hint = did_you_mean(words[0], _WORDS) if words else f"must be one of {', '.join(_WORDS)}"
        raise ConfigError(f"fault={shown(text)}: is none; {hint}")
    word, rest = words[0], words[1:]
    if word == "latency":
        return _latency(text, share, rest)
    if word == "rate":
        return _rate(text, share, rest)
    if word == "down":
        return _down(text, share, rest)
    return Fault(word, share, size=_cut(text, " ".join(words)).after)


def _share(text: str, percentage: str) -> float:
    try:
        share = float(percentage[:-1]) / 100
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"fault={shown(text)}: must begin with a percentage above 0 and up to 100, if with any")
    return share


def _latency(text: str, share: float, rest: list[str]) -> Fault:
    durations = [parse_duration(each) for each in rest]
    if len(durations) in {1, 2} and all(each is not None and 0 <= each < math.inf for each in durations):
        return Fault("latency", share, durations[0] or 0.0, (durations[1:] or [0.0])[0] or 0.0)
    raise ConfigError(f"fault={shown(text)}: must be like 'latency 100ms' or 'latency 100ms 20ms'")


def _rate(text: str, share: float, rest: list[str]) -> Fault:
    found = re.fullmatch(r"([1-9][0-9]{0,11})([km]?)", " ".join(rest))
    if found is None:
        raise ConfigError(f"fault={shown(text)}: must be like 'rate 5000' or 'rate 64k', bytes in a second")
    return Fault("rate", share, size=int(found[1]) * (_UNITS(found[2]) or 1))


def _cut(text: str, words: str) -> Step:
    problems = Problems()
    step = problems.unless_wrong(lambda: parse_step(words))
    if step is None:
        raise ConfigError(f"fault={shown(text)}: must be like 'reset' or 'reset after 1000', a number of bytes")
    return step


def _down(text: str, share: float, rest: list[str]) -> Fault:
    if len(rest) == 3 and rest[1] == "every" and share == 1:
        seconds, period = parse_duration(rest[0]), parse_duration(rest[2])
        if seconds is not None and period is not None and 0 < seconds < period < math.inf:
            return Fault("down", 1.0, seconds, period)
    raise ConfigError(f"fault={shown(text)}: must be like 'down 5s every 30s', the first shorter than the second")


class Proxy:
    """Passes on what comes between clients and ``target``, with faults. An async context manager.

    ``target``: host and port of the real server, or an `Endpoint`. ``host``, ``port``: where to listen. ``seed``: of
    all chance. ``report``: called with a line of text for each thing done. Raises `ConfigError`, OSError if it cannot
    listen there.
    """

    def __init__(
        self,
        target: Endpoint | str,
        faults: Iterable[Fault | str] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int | None = None,
        report: Callable[[str], object] = lambda _: None,
    ) -> None:
        problems = Problems()
        self.target = Endpoint.parse(target) if isinstance(target, str) else target
        if self.target.tls is not None:
            problems.add("target", str(self.target), "must be without TLS: what passes through is not looked at")
        every = [faults] if isinstance(faults, str) else list(faults)
        parsed = [
            each if isinstance(each, Fault) else problems.unless_wrong(partial(parse_fault, each)) for each in every
        ]
        problems.raise_any()
        self.faults = [each for each in parsed if each is not None]
        self.connections = 0
        """How many there were so far."""
        self._rng = random.Random(seed)
        self._report = report
        self._place = host, port
        self._listener: Listener | None = None
        self._flapping: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self._place if self._listener is None else self._listener.address

    async def __aenter__(self) -> Self:
        listener = self._listener = Listener(self._pass_on, *self._place)
        try:
            listener.up()
        except BaseException:
            await listener.aclose()
            raise
        down = next((fault for fault in self.faults if fault.word == "down"), None)
        if down is not None:
            self._flapping = asyncio.get_running_loop().create_task(self._flap(listener, down))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._flapping is not None:
            self._flapping.cancel()
            await asyncio.wait([self._flapping])
        if self._listener is not None:
            await self._listener.aclose()

    async def _flap(self, listener: Listener, fault: Fault) -> None:
        while True:
            await asyncio.sleep(fault.more - fault.seconds)
            self._report(f"down for {fault.seconds:g} s, {len(listener.tasks)} connections reset")
            listener.down()
            await asyncio.sleep(fault.seconds)
            listener.up()
            self._report("up again")

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        name = f"connection {self.connections}"
        faults = [each for each in self.faults if each.share == 1 or self._rng.random() < each.share]
        try:
            there, back = await self._dialed()
        except OSError as exc:
            self._report(f"{name}: {self.target.place} cannot be reached: {exc}")
            reset(writer)
            return
        try:
            await self._between(name, faults, (reader, writer), (there, back))
        except OSError:
            # One side was reset: so is the other.
            reset(writer)
        finally:
            if not writer.transport.is_closing():
                back.close()
            else:
                reset(back)

    async def _dialed(self) -> tuple[StreamReader, StreamWriter]:
        if self.target.path is not None:
            return await asyncio.open_unix_connection(self.target.path)
        target = self.target.targets[0]
        return await asyncio.open_connection(target.host, target.port)

    async def _between(
        self,
        name: str,
        faults: list[Fault],
        client: tuple[StreamReader, StreamWriter],
        server: tuple[StreamReader, StreamWriter],
    ) -> None:
        cut = next((each for each in faults if each.word in {"reset", "close", "stall"}), None)
        self._report(f"{name}: {format_address(client[1].get_extra_info('peername'))}" + (f", {cut}" if cut else ""))
        up = _Direction(client[0], server[1], faults, self._rng)
        down = _Direction(server[0], client[1], faults, self._rng, None if cut is None else cut.size)
        ways = [asyncio.ensure_future(way.run()) for way in (up, down)]
        try:
            for way in asyncio.as_completed(ways):
                await way
                if cut is not None and down.left == 0:
                    self._report(f"{name}: {cut.word}")
                    ways[0].cancel()
                    await asyncio.wait(ways[:1])
                    await _end(cut, client)
                    return
        finally:
            for each in ways:
                each.cancel()
            await asyncio.wait(ways)
            for each in ways:
                # Told by the other way already, or of no interest any more.
                _ = each.cancelled() or each.exception()


async def _end(cut: Fault, client: tuple[StreamReader, StreamWriter]) -> None:
    """What the fault does to the client."""
    if cut.word == "reset":
        reset(client[1])
    elif cut.word == "stall":
        while await client[0].read(_READ):
            pass


class _Direction:
    """One way through the proxy: reads here, and writes there when it is time."""

    def __init__(
        self,
        reader: StreamReader,
        writer: StreamWriter,
        faults: list[Fault],
        rng: random.Random,
        left: int | None = None,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.left = left
        """Bytes until the fault; ``None`` if there is none."""
        self._rng = rng
        self._latency = next((each for each in faults if each.word == "latency"), Fault("latency"))
        self._rate = next((each.size for each in faults if each.word == "rate"), 0)
        self._held: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._arrival = 0.0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until the end of the stream, or the fault."""
        sending = asyncio.ensure_future(self._send())
        try:
            if self.left != 0:
                await self._receive()
            await sending
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])

    async def _receive(self) -> None:
        now = asyncio.get_running_loop().time
        data = b"?"
        while data and self.left != 0:
            data = await self.reader.read(_READ)
            if self.left is not None:
                data = data[: self.left]
                self.left -= len(data)
            delay = (self._latency.seconds + self._rng.random() * self._latency.more) / 2
            self._arrival = max(now() + delay, self._arrival)
            self._held.append((self._arrival, data))
            self._size += len(data)
            self._changed.set()
            while self._size > _HELD:
                self._changed.clear()
                await self._changed.wait()

    async def _send(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            while not self._held:
                if self.left == 0:
                    return
                self._changed.clear()
                await self._changed.wait()
            due, data = self._held.popleft()
            if due > now():
                await asyncio.sleep(due - now())
            if not data:
                if self.writer.can_write_eof():
                    self.writer.write_eof()
                return
            await self._write(data)
            self._size -= len(data)
            self._changed.set()

    async def _write(self, data: bytes) -> None:
        """Pass data on, at the rate there is: in pieces of a tenth of a second."""
        size = max(1, self._rate // 10) if self._rate else len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            if self._rate:
                await asyncio.sleep(len(piece) / self._rate)
            self.writer.write(piece)
            await self.writer.drain()
