"""What a world stands on: a loop that is looked at between any two of its steps, a network that tells of each dial, and
servers of lines that may be in many moods."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from typing import Any

from aioconnect.testing.loop import SimulatedLoop
from aioconnect.testing.network import Host, Network
from aioconnect.testing.serving import Server
from aioconnect.testing.sockets import SimulatedSocket, failure

__all__ = ("MOODS", "Ground", "Lines", "Machine", "WatchedLoop", "lines_of")

MOODS = ("mute", "hang up", "busy", "twice", "half", "slow", "quit", "late greeting")
"""What a server may be besides well: it says nothing; closes what it accepts; is not ready; answers twice; answers half
and leaves; takes its time; closes after an answer; greets late."""


class WatchedLoop(SimulatedLoop):
    """A loop that calls ``look(quiet)`` after every step; quiet is one after which time goes on."""

    def __init__(self, network: Ground, look: Callable[[bool], None], made: Callable[[Any], None]) -> None:
        super().__init__(network)
        self.steps = 0
        self.look: Callable[[bool], None] | None = look
        self._made = made
        inner = self._clock.select

        def select(timeout: float | None = None) -> Any:
            self.steps += 1
            if self.look is not None:
                self.look(timeout is None or timeout > 0)
            return inner(timeout)

        self._clock.select = select  # type: ignore[method-assign]

    def jump(self, seconds: float) -> None:
        """The machine stood still for so long, and has not noticed."""
        self._clock.now += seconds

    async def create_connection(self, protocol_factory: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        transport, protocol = await super().create_connection(protocol_factory, *args, **options)
        self._made(protocol)
        return transport, protocol

    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that somebody waits for."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [timer for timer in scheduled if not timer.cancelled()]


class Ground(Network):
    """A network that tells who dials whom, and what sockets may be short of."""

    def __init__(
        self,
        seed: int,
        told: Callable[[SimulatedSocket, Any], None],
        asked: Callable[[Host, str, frozenset[str]], None],
        **settings: Any,
    ) -> None:
        super().__init__(seed=seed, trace=True, **settings)
        self.shortage = 0
        self._told = told
        self._asked = asked

    def socket(self, *args: Any, **options: Any) -> SimulatedSocket:
        if self.shortage and self.here.name.startswith("client"):
            raise failure(self.shortage)
        return super().socket(*args, **options)

    def dialed(self, sock: SimulatedSocket, address: Any) -> Any:
        self._told(sock, address)
        return super().dialed(sock, address)

    def getaddrinfo(self, host: Any, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
        try:
            found = super().getaddrinfo(host, *args, **options)
        except OSError:
            self._asked(self.here, str(host), frozenset())
            raise
        self._asked(self.here, str(host), frozenset(address[0] for *_, address in found))
        return found

    def short(self, *, of_files: bool) -> None:
        self.shortage = errno.EMFILE if of_files else errno.ENOBUFS


class Machine:
    """A host with one server."""

    def __init__(
        self, network: Network, name: str, addresses: tuple[str, ...], port: int, rng: random.Random, *, greets: bool
    ) -> None:
        self.network = network
        self.greets = greets
        self.host: Host = network.host(name, *addresses)
        self.port = port
        self.rng = rng
        self.mood = ""
        self.troubles = 0
        """What is wrong with it or on the way to it at the moment."""
        self.well_since = 0.0
        self.server: Server = network.serve(self.host, port, lines_of(self))

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.host.addresses

    def now(self) -> float:
        return self.network.running().time()


class Lines(asyncio.Protocol):
    """Says hello, and answers each line by the same."""

    machine: Machine

    def __init__(self) -> None:
        self.rest = b""
        self.busy = False
        self.queue: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        mood = self.machine.mood
        if mood == "hang up":
            transport.close()
        elif mood == "late greeting" and self.machine.greets:
            asyncio.get_running_loop().call_later(self.machine.rng.uniform(0, 3), self.say, b"hello\n")
        elif mood == "busy" and self.machine.greets:
            self.say(b"busy\n")
        elif mood != "mute" and self.machine.greets:
            self.say(b"hello\n")

    def say(self, line: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(line)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.queue += lines
        self.go_on()

    def go_on(self) -> None:
        while self.queue and not self.busy:
            line, mood, rng = self.queue.pop(0), self.machine.mood, self.machine.rng
            delay = rng.uniform(0, 2) if mood == "slow" else rng.choice((0, 0, 0, 0.01))
            if mood == "mute":
                return
            if delay:
                self.busy = True
                asyncio.get_running_loop().call_later(delay, self.answer, line, mood)
            else:
                self.answer(line, mood)

    def answer(self, line: bytes, mood: str) -> None:
        self.busy = False
        reply = b"pong\n" if line == b"ping" else line + b"\n"
        if mood == "half":
            self.say(reply[: len(reply) // 2])
            self.transport.close()
            return
        self.say(reply * 2 if mood == "twice" else reply)
        if mood == "quit":
            self.transport.close()
        self.go_on()


def lines_of(machine: Machine) -> type[Lines]:
    """The protocol of one machine."""
    return type("Lines", (Lines,), {"machine": machine})
