"""``aioconnect demo``: a client gets through to a server that refuses, resets, stalls, loads, and then serves.

Everything happens on loopback. The server goes through its troubles attempt by attempt, not by the clock, and the
pauses are drawn from a fixed seed: so the story is the same each time, apart from the times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Any

from aioconnect.backoff import Backoff
from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.errnoset import LOCAL, STARTING, TRANSIENT
from aioconnect.errors import ConfigError, ConnectError, ConnectTimeout, NetworkError, NotReady, format_address
from aioconnect.events import AttemptFailed, Connected, Event, Retrying
from aioconnect.policy import Policy

__all__ = ("add_arguments", "run")

_SEED = 6
_SHORT = 0.4
"""Seconds of a time limit that is too short for a server that is down."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop instead of asyncio's own loop")


def run(options: argparse.Namespace) -> int:
    """Tell the story. Raises `ConfigError` if uvloop is asked for and not installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if options.uvloop:
        try:
            import uvloop
        except ImportError as exc:
            raise ConfigError("uvloop=None: must be installed to run on it: pip install 'uvloop>=0.23'") from exc
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_story())
    return 0


class _FlakyServer:
    """Each connection meets another trouble; the port refuses until `listen`."""

    def __init__(self) -> None:
        # Bound but not listening: refused, and nobody else can take the port.
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.troubles = iter((self.reset, self.stall, self.load))
        self.server: asyncio.Server | None = None
        self.starting: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return format_address(self.sock.getsockname())

    def listen(self) -> None:
        """Start to listen; connections wait in the kernel until the server accepts them."""
        self.sock.listen()
        self.starting = asyncio.ensure_future(self.start())

    async def start(self) -> None:
        self.server = await asyncio.start_server(self.accept, sock=self.sock)

    async def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        trouble = next(self.troubles, self.serve)
        # The client leaves in the middle of all but the last.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await trouble(reader, writer)
        writer.close()

    async def reset(self, _reader: StreamReader, writer: StreamWriter) -> None:
        # A close with SO_LINGER on and a time of 0 sends RST (socket(7)).
        sock: Any = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def stall(self, reader: StreamReader, _writer: StreamWriter) -> None:
        await reader.read()

    async def load(self, reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"LOADING\n")
        await reader.read()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"READY\n")
        name = await reader.readuntil(b"\n")
        writer.write(b"hello, " + name)
        await writer.drain()

    async def close(self) -> None:
        if self.starting is not None:
            await self.starting
        if self.server is not None:
            self.server.close()
        self.sock.close()


async def _greeting(connection: Connection) -> None:
    """The hook that makes a new connection ready: the server has to say that it is."""
    said = (await connection.readuntil(b"\n")).decode().strip()
    if said != "READY":
        raise NotReady(f"the server says {said}")


class _Timeline:
    """An observer that prints what happens, and lets the server listen after two refusals."""

    def __init__(self, server: _FlakyServer, listen_after: int | None) -> None:
        self.server = server
        self.listen_after = listen_after
        self.began = asyncio.get_running_loop().time()
        self.failed: AttemptFailed | None = None
        print("    ms  attempt  address          code          pause   what")

    def __call__(self, event: Event) -> None:
        if isinstance(event, AttemptFailed):
            self.failed = event
        elif isinstance(event, Retrying):
            self.failure(f"{event.pause * 1000:.0f} ms")
            if event.attempts == self.listen_after:
                self.server.listen()
        elif isinstance(event, Connected):
            self.line(event.attempt, format_address(event.address), "", "", "connected and ready")
        else:
            return

    def failure(self, pause: str) -> None:
        """The line of the last failed attempt, now that it is known what follows it."""
        if self.failed is not None and isinstance(error := self.failed.error, NetworkError):
            silent = isinstance(error, ConnectTimeout)
            what = f"silent for {self.failed.elapsed:.1f} s" if silent else error.description
            what = what if error.phase == "connect" else f"{error.phase}: {what}"
            self.line(self.failed.attempt, format_address(error.address), error.code, pause, what)

    def line(self, attempt: int, address: str, code: str, pause: str, what: str) -> None:
        now = (asyncio.get_running_loop().time() - self.began) * 1000
        print(f"{now:6.0f}  {attempt:7}  {address:<15}  {code:<12}  {pause:>6}  {what}", flush=True)


async def _story() -> None:
    server = _FlakyServer()
    policy = Policy(
        retry_on=TRANSIENT | LOCAL | STARTING,
        timeout=5,
        attempt_timeout=0.4,
        wait=Backoff(initial=0.2, maximum=0.8, jitter="equal", uniform=random.Random(_SEED).uniform),
    )
    try:
        print(f"A server at {server.address} is down. A client that has {_SHORT} s gets one typed error:\n")
        await _too_short(server, policy)
        print("\nNow it comes up, but resets, stalls and is still loading. A client that has 5 s gets through:\n")
        await _long_enough(server, policy)
    finally:
        await server.close()


async def _too_short(server: _FlakyServer, policy: Policy) -> None:
    timeline = _Timeline(server, listen_after=None)
    try:
        await Connector(server.address, policy, observers=[timeline]).connect(timeout=_SHORT)
    except ConnectError as error:
        timeline.failure("-")
        print(f"\n{type(error).__module__}.{type(error).__name__}:\n  {error}")
        for note in error.__notes__:
            print("  " + note.replace("\n", "\n  "))
        bases = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "builtins"]
        print(f"It is a {bases[0]} with errno {error.errno}, code {error.code}, kind {error.kind}.")


async def _long_enough(server: _FlakyServer, policy: Policy) -> None:
    connector = Connector(server.address, policy, _greeting, observers=[_Timeline(server, listen_after=2)])
    async with connector.connect() as connection:
        await connection.send(b"world\n")
        reply = await connection.readuntil(b"\n")
    print(f"\nThe server replies: {reply.decode().strip()}")
