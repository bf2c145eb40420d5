"""Servers of a simulated network: a listener with its accept queue, and what becomes of its connections."""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Literal, Protocol, Self, cast

from aioconnect.testing.fabric import Path
from aioconnect.testing.sockets import Address, Router, SimulatedSocket
from aioconnect.testing.transport import SimulatedTransport
from aioconnect.validation import Problems, check_duration

__all__ = ("Echo", "Factory", "HangUp", "Hold", "Live", "Server", "factory_of")

Handler = Callable[[StreamReader, StreamWriter], Awaitable[object]]
Factory = Callable[[], asyncio.BaseProtocol]


class Machine(Protocol):
    """The host of a server, as far as it matters here."""

    context: Context
    """In which its handlers run, so that what they dial comes from there."""


Live = Literal["close", "reset", "vanish", "keep"]
"""What becomes of the live connections of a server that stops: FIN, RST, not a word, or nothing."""

_NO_LINGER = struct.pack("ii", 1, 0)


class Hold(asyncio.Protocol):
    """Takes a connection and whatever comes, says nothing, and closes when the client does."""


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


class HangUp(asyncio.Protocol):
    """Takes a connection and closes it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        cast(asyncio.Transport, transport).close()


class Server(asyncio.AbstractServer):
    """A listener on a simulated host. Made by `Network.serve`, or by ``asyncio.start_server`` on a `SimulatedLoop`.

    ``accepted``: connections so far. ``connections``: the live ones, by transport. Up to ``backlog`` + 1 connections
    wait to be accepted, at most ``rate`` a second are; a SYN for which there is no room is dropped, and the client
    sends it again after 1, 3, 7 ... seconds, as Linux does.
    """

    def __init__(
        self,
        network: Router,
        host: Machine,
        addresses: Sequence[Address],
        factory: Factory,
        rate: float | None = None,
        backlog: int = 128,
    ) -> None:
        self.host = host
        self.addresses = tuple(addresses)
        self.factory = factory
        self.accepted = 0
        self.connections: dict[SimulatedTransport, SimulatedSocket] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.backlog = backlog
        self.interval = 0.0 if rate is None else 1 / rate
        self._network = network
        self._queue: deque[SimulatedSocket] = deque()
        self._listening = True
        self._accepting = True
        self._busy = False
        self._free_at = 0.0
        self._closed: list[asyncio.Future[None]] = []

    # -- Up and down ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen (again)."""
        self._listening = self._accepting = True
        self._accept_soon()

    def stop(self, live: Live = "close") -> None:
        """Die: nobody listens any more, so connects are refused; ``live`` says what becomes of the connections.

        ``"close"`` is an orderly end, ``"reset"`` a killed process, ``"vanish"`` a machine that lost its power: the
        clients are not told, and what they send from then on is answered by RST.
        """
        if live not in {"close", "reset", "vanish", "keep"}:
            problems = Problems()
            problems.add("live", live, "must be close, reset, vanish or keep")
            problems.raise_any()
        self._listening = False
        queue, self._queue = self._queue, deque()
        for sock in queue:
            _end(sock, "vanish" if live == "vanish" else "reset")
            sock.close()
        if live == "keep":
            return
        for transport, sock in list(self.connections.items()):
            _end(sock, live)
            transport.abort()
        for task in list(self.tasks):
            task.cancel()

    def restart(self, down: float | str, live: Live = "reset") -> None:
        """`stop` now, `start` after so many seconds."""
        problems = Problems()
        seconds = check_duration(problems, "down", down, zero=True)
        problems.raise_any()
        self.stop(live)
        self._network.call_later(seconds, self.start)

    def pause(self) -> None:
        """Accept nobody: the queue fills up, and then connects hear nothing."""
        self._accepting = False

    def resume(self) -> None:
        """Accept again."""
        self._accepting = True
        self._accept_soon()

    @property
    def waiting(self) -> int:
        """Connections in the accept queue."""
        return len(self._queue)

    # -- Taking connections --------------------------------------------------------------------------------------

    def offer(self, client: SimulatedSocket, address: Address, there: Path) -> int | None:
        """A SYN of a client: 0 if it gets a connection, else an errno, or ``None`` if it is dropped."""
        if not self._listening:
            return errno.ECONNREFUSED
        if len(self._queue) > self.backlog:
            return None
        network = self._network
        end = SimulatedSocket(network, self.host, client.family, socket.SOCK_STREAM)
        end.state = "open"
        end.local, end.remote = address, client.local
        end.join(client, there.back)
        client.join(end, there)
        if client.step is not None and client.step.word in {"reset", "close", "stall"}:
            end.cut = client.step.word, client.step.after
        self._queue.append(end)
        self._accept_soon()
        return 0

    def _accept_soon(self) -> None:
        if self._busy or not self._queue or not self._accepting:
            return
        self._busy = True
        network = self._network
        if self.interval and self._free_at > network.running().time():
            network.call_at(self._free_at, self._accept, None)
        else:
            network.lane(0.0).put(self._accept, None)

    def _accept(self, _: object) -> None:
        self._busy = False
        if not self._queue or not self._accepting:
            return
        self._take(self._queue.popleft())
        if self.interval:
            self._free_at = self._network.running().time() + self.interval
            self._accept_soon()
        while self._queue and not self.interval:
            self._take(self._queue.popleft())

    def _take(self, end: SimulatedSocket) -> None:
        self.accepted += 1
        self.host.context.copy().run(self._open, end)

    def _open(self, end: SimulatedSocket) -> None:
        protocol = self.factory()

        def ended() -> None:
            del self.connections[transport]
            if not self.connections:
                self._tell_closed()

        transport = SimulatedTransport(end, protocol, ended)
        self.connections[transport] = end
        transport.open()

    # -- As asyncio's --------------------------------------------------------------------------------------------

    @property
    def sockets(self) -> tuple[Listening, ...]:
        """What has the addresses: ``server.sockets[0].getsockname()``."""
        return tuple(Listening(address) for address in self.addresses) if self._listening else ()

    @property
    def address(self) -> Address:
        """The first address."""
        return self.addresses[0]

    def is_serving(self) -> bool:
        """Whether it listens."""
        return self._listening

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self._network.running()

    async def start_serving(self) -> None:
        """Listen."""
        self.start()

    async def serve_forever(self) -> None:
        """Listen until cancelled."""
        self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.close()

    def close(self) -> None:
        """Listen no more; connections stay, as with asyncio's."""
        self.stop("keep")

    async def wait_closed(self) -> None:
        """Wait until the last connection has ended."""
        if self.connections:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._closed.append(waiter)
            await waiter

    def _tell_closed(self) -> None:
        waiters, self._closed = self._closed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await self.wait_closed()

    def __repr__(self) -> str:
        return f"<Server {self.addresses} accepted={self.accepted} live={len(self.connections)}>"


class Listening:
    """The address of a listener, as a socket tells it."""

    __slots__ = ("_address",)

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Any:
        """The address."""
        return self._address


def _end(sock: SimulatedSocket, how: str) -> None:
    """Decide what the close of a socket will say."""
    if how == "vanish":
        sock.vanish()
    elif how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def factory_of(handler: Any, server: Callable[[], Server]) -> Factory | None:
    """Protocols for a handler: a coroutine function of streams, or a class of protocols; ``None`` if it is neither."""
    if isinstance(handler, type):
        known = cast("type[object]", handler)
        return known if issubclass(known, asyncio.BaseProtocol) else None
    if not callable(handler):
        return None
    serve = cast(Handler, handler)

    def connected(reader: StreamReader, writer: StreamWriter) -> None:
        tasks = server().tasks
        task = asyncio.get_running_loop().create_task(_handled(serve, reader, writer))
        tasks[task] = None

        def over(_: object) -> None:
            # Here, because a task that is cancelled before its first step has no `finally`.
            writer.close()
            del tasks[task]
            _report(task)

        task.add_done_callback(over)

    def made() -> asyncio.BaseProtocol:
        loop = asyncio.get_running_loop()
        return asyncio.StreamReaderProtocol(StreamReader(loop=loop), connected, loop=loop)

    return made


async def _handled(handler: Handler, reader: StreamReader, writer: StreamWriter) -> None:
    try:
        handled = handler(reader, writer)
        if inspect.isawaitable(handled):
            await cast(Coroutine[Any, Any, object], handled)
    except (OSError, EOFError):
        # The client has left, as clients do.
        return


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        context = {"message": "the handler of a simulated server raised", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)
