"""A real listening socket that keeps its port while nobody listens on it, and its live connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Awaitable, Callable

__all__ = ("Listener", "report", "reset")

Handler = Callable[[StreamReader, StreamWriter], Awaitable[object]]

_LINUX = sys.platform == "linux"
_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def reset(writer: StreamWriter) -> None:
    """Close with RST: SO_LINGER on and a time of 0 (socket(7)). With TLS too there is no goodbye."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


class Listener:
    """A port with a handler for each connection; `up` and `down` as often as you like.

    While it is down, connects are refused. On Linux the port stays ours meanwhile; elsewhere it is bound anew, and
    somebody else may have taken it: OSError then.

    It accepts by itself, since an ``asyncio.Server`` that is closed at the wrong moment forgets what it has accepted.
    """

    def __init__(self, handler: Handler, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.accepted = 0
        self.tasks: dict[asyncio.Task[None], StreamWriter | None] = {}
        """The task of each live connection, and its writer once it has one."""
        self._handler = handler
        self._tls = tls
        self._sock = _bound(host, port)
        self._is_up = False
        self.address: tuple[str, int] = self._sock.getsockname()[:2]

    def up(self) -> None:
        """Listen."""
        if self._is_up:
            return
        if self._sock.fileno() == -1:
            self._sock = _bound(*self.address)
        self._sock.listen(128)
        asyncio.get_running_loop().add_reader(self._sock, self._accept, self._sock)
        self._is_up = True

    def down(self) -> None:
        """Listen no more, and reset the live connections."""
        if self._is_up:
            self._is_up = False
            asyncio.get_running_loop().remove_reader(self._sock)
            if _LINUX:
                # The socket stays bound, and may listen again.
                self._sock.shutdown(socket.SHUT_RDWR)
            else:
                self._sock.close()
        for task, writer in list(self.tasks.items()):
            if writer is not None:
                reset(writer)
            task.cancel()

    async def aclose(self) -> None:
        """Down, for good."""
        tasks = list(self.tasks)
        self.down()
        self._sock.close()
        if tasks:
            await asyncio.wait(tasks)
        # The loop closes the sockets of aborted transports at its next turns.
        for _ in range(3):
            await asyncio.sleep(0)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            # The client has left, or another turn of the loop was faster.
            return
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._handle(sock))
        self.tasks[task] = None

        def over(_: object) -> None:
            writer = self.tasks.pop(task)
            # Here, because a task that is cancelled before its first step has no `finally`.
            if writer is None:
                sock.close()
            else:
                writer.close()
            report(task)

        task.add_done_callback(over)

    async def _handle(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        sock.settimeout(0)
        reader = StreamReader(loop=loop)
        protocol = StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=self._tls)
            writer = StreamWriter(transport, protocol, reader, loop)
            if task is not None:
                self.tasks[task] = writer
            await self._handler(reader, writer)
        except (OSError, EOFError):
            # The client has left, as clients do, or does not like our certificate.
            return


def report(task: asyncio.Task[None]) -> None:
    """Tell the loop of an error that nobody waits for."""
    if not task.cancelled() and (error := task.exception()) is not None:
        context = {"message": "the handler of a fault server raised", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)


def _bound(host: str, port: int) -> socket.socket:
    """A bound socket, at a port of the system's choice if it is 0."""
    if _LINUX and not port:
        # A port of the system's choice is given back when the socket listens no more; one that was asked for is not.
        with _bound_to(host, 0) as chosen:
            return _bound_to(host, chosen.getsockname()[1])
    return _bound_to(host, port)


def _bound_to(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            # There it would let two share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.settimeout(0)
    except BaseException:
        sock.close()
        raise
    return sock
