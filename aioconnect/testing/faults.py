"""Servers that misbehave on purpose, on real sockets of loopback, for any client.

    async with faults.reset_after(100) as server:
        await my_client(server.host, server.port)     # or server.address, server.url, server.endpoint

Each is an async context manager, runs in your event loop (in real or in virtual time) and is gone at its end.
`accepted` counts its connections. Where a fault cannot be made on some system, its docstring says so.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Self

from aioconnect.endpoint import TLS, Endpoint
from aioconnect.errors import ConfigError, format_address
from aioconnect.testing.certificates import Authority
from aioconnect.testing.listening import Listener, report, reset
from aioconnect.validation import Problems, check_duration, check_integer, check_optional_duration

__all__ = (
    "FaultServer",
    "accept_then_close",
    "blackhole",
    "echo",
    "expired_certificate",
    "flapping",
    "mute_tls",
    "plain_text",
    "refused",
    "reset_after",
    "serve",
    "slow",
    "stall",
    "truncate",
    "valid_certificate",
    "wrong_host",
)

Handler = Callable[[StreamReader, StreamWriter], Awaitable[object]]

_HOST = "127.0.0.1"
_READ = 65536


class FaultServer:
    """A server of this module: where it is, while its ``async with`` lasts."""

    def __init__(self, start: Callable[[FaultServer], Awaitable[None]], host: str) -> None:
        self.host = host
        self.port = 0
        self.listener: Listener | None = None
        self.tls: TLS | None = None
        self._start = start
        self._closing: list[Callable[[], object]] = []

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def endpoint(self) -> Endpoint:
        """An endpoint that leads here, and trusts the authority of its certificate if there is one."""
        host = self.host if self.tls is None else "localhost"
        return Endpoint(host, self.port, tls=self.tls)

    @property
    def url(self) -> str:
        """The text of `endpoint`."""
        return str(self.endpoint)

    @property
    def accepted(self) -> int:
        """Connections so far."""
        return 0 if self.listener is None else self.listener.accepted

    @property
    def connections(self) -> int:
        """Live connections."""
        return 0 if self.listener is None else len(self.listener.tasks)

    def at_close(self, step: Callable[[], object]) -> None:
        """Call it at the end, the last one first."""
        self._closing.append(step)

    def listen(self, handler: Handler, *, tls: ssl.SSLContext | None = None, up: bool = True) -> Listener:
        """Serve at a free port."""
        listener = self.listener = Listener(handler, self.host, self.port, tls)
        self.port = listener.address[1]
        if up:
            listener.up()
        return listener

    async def __aenter__(self) -> Self:
        try:
            await self._start(self)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        while self._closing:
            self._closing.pop()()
        if self.listener is not None:
            await self.listener.aclose()

    def __repr__(self) -> str:
        return f"<FaultServer {format_address(self.address)} accepted={self.accepted}>"


# -- Without TLS -------------------------------------------------------------------------------------------------


def serve(handler: Handler, host: str = _HOST) -> FaultServer:
    """Your own: ``async def handler(reader, writer)``. That a client leaves is no error of the handler."""

    async def start(server: FaultServer) -> None:
        server.listen(handler)

    return FaultServer(start, host)


def echo(host: str = _HOST) -> FaultServer:
    """No fault: sends back what comes."""
    return serve(_echo, host)


def refused(host: str = _HOST) -> FaultServer:
    """A port that refuses, and that nobody else can take meanwhile: bound without listening.

    On Linux and Windows. On macOS a bound port is silent: there it is one that was free a moment ago.
    """

    async def start(server: FaultServer) -> None:
        listener = server.listen(_echo, up=False)
        if sys.platform == "darwin":
            listener.down()
            await listener.aclose()

    return FaultServer(start, host)


def blackhole(host: str = _HOST) -> FaultServer:
    """An address that says nothing: a listener whose accept queue is full, so that the system drops the SYN.

    On Linux and macOS. Windows answers by RST: ``RuntimeError``.
    """

    async def start(server: FaultServer) -> None:
        if sys.platform == "win32":
            raise RuntimeError("blackhole: Windows refuses where an accept queue is full; there is none on loopback")
        sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=0)
        server.at_close(sock.close)
        server.port = sock.getsockname()[1]
        for _ in range(300):
            filler = socket.socket(sock.family, socket.SOCK_STREAM)
            server.at_close(filler.close)
            filler.settimeout(0)
            filler.connect_ex(sock.getsockname())
            if not select.select([], [filler], [], 0.05)[1]:
                return
        raise RuntimeError("blackhole: this system's accept queue has no end")

    return FaultServer(start, host)


def accept_then_close(host: str = _HOST) -> FaultServer:
    """Accepts and closes at once: the client sees the end of the stream, or a reset if it had sent something."""

    async def close(_: StreamReader, writer: StreamWriter) -> None:
        writer.close()

    return serve(close, host)


def reset_after(size: int, data: bytes = b"\0", host: str = _HOST) -> FaultServer:
    """Sends the first ``size`` bytes of ``data``, repeated as need be, then resets; 0 resets at once."""
    _check_size(size, data)

    async def rude(_: StreamReader, writer: StreamWriter) -> None:
        await _send(writer, size, data)
        # The system drops what it has not delivered when it sends RST.
        await asyncio.sleep(0.01 if size else 0)
        reset(writer)

    return serve(rude, host)


def truncate(size: int, data: bytes = b"\0", host: str = _HOST) -> FaultServer:
    """Sends the first ``size`` bytes of ``data``, repeated as need be, then closes in order: too early, it may be."""
    _check_size(size, data)

    async def short(_: StreamReader, writer: StreamWriter) -> None:
        await _send(writer, size, data)

    return serve(short, host)


def stall(size: int = 0, data: bytes = b"\0", host: str = _HOST) -> FaultServer:
    """Sends the first ``size`` bytes of ``data``, then not another word, whatever the client says."""
    _check_size(size, data)

    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        await _send(writer, size, data)
        while await reader.read(_READ):
            pass

    return serve(silent, host)


def slow(data: bytes, every: float | str = 0.1, size: int = 1, host: str = _HOST) -> FaultServer:
    """Sends ``data`` in pieces of ``size`` bytes, one ``every`` so many seconds, then closes."""
    problems = Problems()
    pause = check_duration(problems, "every", every, zero=True)
    check_integer(problems, "size", size, 1)
    problems.raise_any()

    async def trickle(_: StreamReader, writer: StreamWriter) -> None:
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            await asyncio.sleep(pause)

    return serve(trickle, host)


def flapping(
    up_after: float | str = 1.0,
    down_for: float | str | None = None,
    *,
    up_for: float | str = 1.0,
    handler: Handler | None = None,
    host: str = _HOST,
) -> FaultServer:
    """Refuses for ``up_after`` seconds, then serves: an echo, or ``handler``.

    With ``down_for``, it goes down again after each ``up_for`` seconds, for so many: live connections are reset. Time
    is the loop's. Where the system is not Linux, another process may take the port while it is down.
    """
    problems = Problems()
    first = check_duration(problems, "up_after", up_after, zero=True)
    down = check_optional_duration(problems, "down_for", down_for)
    up = check_duration(problems, "up_for", up_for)
    problems.raise_any()

    async def flap(listener: Listener) -> None:
        await asyncio.sleep(first)
        while True:
            listener.up()
            if down is None:
                return
            await asyncio.sleep(up)
            listener.down()
            await asyncio.sleep(down)

    async def start(server: FaultServer) -> None:
        listener = server.listen(handler or _echo, up=not first)
        task = asyncio.get_running_loop().create_task(flap(listener))
        task.add_done_callback(report)
        server.at_close(task.cancel)

    return FaultServer(start, host)


# -- With TLS ----------------------------------------------------------------------------------------------------


def _with_certificate(*names: str, days: tuple[float, float] = (-1, 30), host: str) -> FaultServer:
    async def start(server: FaultServer) -> None:
        authority = Authority()
        server.at_close(authority.close)
        server.tls = TLS(ca_file=authority.ca_file)
        server.listen(_echo, tls=authority.server_context(*names, days=days))

    return FaultServer(start, host)


def valid_certificate(host: str = _HOST) -> FaultServer:
    """No fault: TLS with a certificate for ``localhost`` that `FaultServer.endpoint` trusts; an echo."""
    return _with_certificate("localhost", _HOST, host=host)


def expired_certificate(host: str = _HOST) -> FaultServer:
    """A certificate that ended yesterday. Needs ``aioconnect[testing]``, as do all with a certificate."""
    return _with_certificate("localhost", _HOST, days=(-30, -1), host=host)


def wrong_host(host: str = _HOST) -> FaultServer:
    """A certificate for another name."""
    return _with_certificate("somebody.else.example", host=host)


def plain_text(answer: bytes = b"HTTP/1.1 400 Bad Request\r\n\r\n", host: str = _HOST) -> FaultServer:
    """Answers a TLS client in plain text, as a server without TLS does."""

    async def plain(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read(_READ)
        writer.write(answer)

    return _tls_without_certificate(plain, host)


def mute_tls(host: str = _HOST) -> FaultServer:
    """Accepts, and never says a word of the handshake."""

    async def silent(reader: StreamReader, _: StreamWriter) -> None:
        while await reader.read(_READ):
            pass

    return _tls_without_certificate(silent, host)


def _tls_without_certificate(handler: Handler, host: str) -> FaultServer:
    async def start(server: FaultServer) -> None:
        server.tls = TLS()
        server.listen(handler)

    return FaultServer(start, host)


# -- What they do ------------------------------------------------------------------------------------------------


async def _echo(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(_READ):
        writer.write(data)
        await writer.drain()


def _check_size(size: int, data: bytes) -> None:
    problems = Problems()
    check_integer(problems, "size", size, 0)
    problems.raise_any()
    if not isinstance(data, (bytes, bytearray)) or (size and not data):
        raise ConfigError("data: must be bytes, at least one")


async def _send(writer: StreamWriter, size: int, data: bytes) -> None:
    while size > 0:
        piece = bytes(data[:size]) if len(data) >= 4096 else (bytes(data) * (4096 // len(data) + 1))[: min(size, 4096)]
        writer.write(piece)
        await writer.drain()
        size -= len(piece)
