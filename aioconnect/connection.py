"""An established connection: asyncio's own streams, with their errors typed at the source.

The reader and writer are instances of asyncio's classes, and while a connection lives, reading, writing and draining
run asyncio's own code. Only the moment of loss is ours: the protocol types the error once, and from then on every
call raises a new object (asyncio raises the same one again and again, and its traceback grows with each).

Private names of asyncio in use: ``StreamReader._exception``, ``StreamReader._buffer``, ``StreamReader._transport``,
``StreamReaderProtocol._stream_reader``, ``StreamReaderProtocol._over_ssl``, ``StreamReaderProtocol._closed``,
``StreamWriter._transport``, ``StreamWriter._protocol``, ``FlowControlMixin._drain_helper``,
``FlowControlMixin._drain_waiters``; a test pins them.
"""

from __future__ import annotations

import asyncio
import math
import select
import ssl
import sys
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, SupportsIndex, cast

from aioconnect import errors
from aioconnect.endpoint import TLS, Endpoint
from aioconnect.errors import (
    Address,
    AlreadyClosed,
    BrokenPipe,
    ConnectError,
    ConnectionLost,
    NetworkError,
    PeerClosed,
)
from aioconnect.limits import bounded, wait_until
from aioconnect.tls import ContextCache
from aioconnect.validation import seconds

__all__ = ("DEFAULT_LIMIT", "Connection", "Ending", "Keeper", "Reader", "Writer", "streams")

Bytes = bytes | bytearray | memoryview

DEFAULT_LIMIT = 2**16
"""Bytes a reader buffers before it pauses the transport, as in asyncio."""


class Reader(StreamReader):
    """asyncio's ``StreamReader`` whose errors are `ConnectionLost`."""

    # Kept, because uvloop's TLS transport forgets its peer when it closes.
    address: Address = None
    was_heard = True
    """Whether the peer has ever sent a byte."""
    _buffer: bytearray
    _exception: BaseException | None
    _transport: asyncio.Transport | None

    @property
    def buffered(self) -> int:
        """Bytes received and not read yet."""
        return len(self._buffer)

    def set_exception(self, exc: Exception) -> None:
        """Called once, at the loss: from here on this is a `_LostReader`."""
        super().set_exception(_again(exc))
        self._exception = exc
        self.__class__ = _LostReader  # pyright: ignore[reportAttributeAccessIssue]

    async def readexactly(self, n: int) -> bytes:
        """Read exactly ``n`` bytes. Raises `PeerClosed`, with what came, if the peer closes before."""
        try:
            return await super().readexactly(n)
        except asyncio.IncompleteReadError as exc:
            if isinstance(exc, PeerClosed):
                raise
            raise self._peer_closed(exc) from exc

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """Read through ``separator``. Raises `PeerClosed`, with what came, if the peer closes before."""
        try:
            return await super().readuntil(separator)
        except asyncio.IncompleteReadError as exc:
            if isinstance(exc, PeerClosed):
                raise
            raise self._peer_closed(exc) from exc

    def carried_by(self, transport: asyncio.WriteTransport) -> None:
        """Pause and resume this transport from here on. CPython 3.11 keeps to the plain one after ``start_tls``."""
        self._transport = cast(asyncio.Transport, transport)

    def _peer_closed(self, exc: asyncio.IncompleteReadError) -> PeerClosed:
        return PeerClosed(exc.partial, exc.expected, address=self.address)


class _UnheardReader(Reader):
    """A reader before the first byte: whether the peer has ever said anything is the class, and costs no byte after."""

    was_heard = False

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.__class__ = Reader  # type: ignore[assignment]
        self.feed_data(data)


class _LostReader(Reader):
    """A reader after the loss. A class of its own, so that a live one pays for no property."""

    @property
    def _exception(self) -> BaseException:
        return _again(self.__dict__["_exception"])

    @_exception.setter
    def _exception(self, exc: BaseException) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.__dict__["_exception"] = exc


class Writer(StreamWriter):
    """asyncio's ``StreamWriter``; writing after a loss is silent on both loops, and ``drain`` raises."""

    _protocol: _Protocol
    _reader: StreamReader | None
    _transport: asyncio.Transport

    # Not through super(): the same call depth as asyncio's, so no cost while the connection lives.
    def write(self, data: Bytes) -> None:
        """Buffer bytes to send."""
        try:
            self._transport.write(data)
        except RuntimeError:
            # uvloop, on a transport that the peer has closed; misuse such as write after write_eof stays loud.
            if not self._transport.is_closing():
                raise

    def writelines(self, data: Iterable[Bytes]) -> None:
        """Buffer several pieces to send."""
        try:
            self._transport.writelines(data)
        except (RuntimeError, TypeError, AttributeError):
            # Besides uvloop: CPython 3.12 and 3.13 stumble over the socket that a dead transport no longer has.
            if not self._transport.is_closing():
                raise

    def write_eof(self) -> None:
        """Close the sending side."""
        try:
            self._transport.write_eof()
        except RuntimeError:
            if not self._transport.is_closing():
                raise

    def close(self) -> None:
        """Start closing; ``wait_closed`` waits for it."""
        self._protocol.closed_here = True
        self._transport.close()

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        **options: Any,
    ) -> None:
        """Upgrade to TLS, as asyncio's. Raises `TLSError` and the like; the connection is then closed."""
        reader = cast(Reader, self._reader)
        try:
            await super().start_tls(
                sslcontext,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                **options,
            )
        except Exception as exc:
            self.abort()
            self.lost(exc)
            error = errors.translate(exc, "tls", reader.address)
            if error is None or error is exc:
                raise
            raise error from exc
        except BaseException:
            self.abort()
            self.lost(None)
            raise
        reader.carried_by(self._transport)

    def abort(self) -> None:
        """Close at once and drop what is buffered."""
        self._protocol.closed_here = True
        if self._protocol.lost is not None:
            # asyncio stumbles over a transport that was closed with something left to send, and is gone now.
            return
        if self._transport.get_extra_info("sslcontext") is None:
            # Since CPython 3.12 close takes care of a cycle in the transport, and abort does not.
            self._transport.close()
        self._transport.abort()

    def lost(self, exc: Exception | None) -> None:
        """Let the streams know of a loss that the loop keeps to itself, as it does when an upgrade to TLS fails."""
        self._protocol.connection_lost(exc)

    def kept_by(self, keeper: Keeper, now: float) -> None:
        """Tell somebody how the connection ends, which is handed out now."""
        protocol = self._protocol
        protocol.made = now
        if not protocol.ended and protocol.lost is None:
            protocol.keeper = keeper
        else:
            # It has ended during the hand-over, for which uvloop takes some turns; told once it counts as made.
            asyncio.get_running_loop().call_soon(keeper.ended, protocol.ending(protocol.lost))

    @property
    def closed_first(self) -> bool:
        """Whether this side closed before the peer did."""
        return self._protocol.closed_here and not self._protocol.ended

    @property
    def ended_by(self) -> NetworkError | None:
        """What ended the connection, once the loop has said so."""
        return self._protocol.lost

    def watch(self, callback: Callable[[NetworkError], object]) -> None:
        """Call this once when the transport is gone, with what ended it; soon, if it is gone already."""
        protocol = self._protocol
        if protocol.lost is None:
            protocol.watchers = (*protocol.watchers, callback)
        else:
            asyncio.get_running_loop().call_soon(callback, protocol.lost)

    async def gone(self, limit: float) -> None:
        """Wait until the loop has closed the socket, or until a loop time. Never raises what was lost meanwhile.

        Not ``wait_closed``: all who wait there share a future, and the first who gives up cancels it.
        """
        protocol = self._protocol
        if protocol.lost is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            protocol.closing = (*protocol.closing, waiter)
            await wait_until(waiter, limit)


class Ending(NamedTuple):
    """How the peer or the network ended a connection.

    ``error``: ``None`` for the end of the stream. ``made``: the loop time at which it was handed out. ``heard``:
    whether the peer had ever sent a byte.
    """

    error: NetworkError | None
    address: Address
    made: float
    heard: bool


class Keeper(Protocol):
    """Whoever wants to know how the connections that it made end."""

    def ended(self, ending: Ending, /) -> None:
        """The peer or the network ended one; called once, from the loop."""
        ...


class _Protocol(StreamReaderProtocol):
    """asyncio's stream protocol; the place where the loop tells of a loss."""

    keeper: Keeper | None = None
    made: float = 0.0
    watchers: tuple[Callable[[NetworkError], object], ...] = ()
    _stream_reader: Reader | None
    closed_here = False
    ended = False
    """Whether the peer has closed its side."""
    stalled = False
    """Whether it will send no more, or takes no more for now."""
    lost: NetworkError | None = None
    address: Address = None
    closing: tuple[asyncio.Future[None], ...] = ()
    _closed: asyncio.Future[None]
    _drain_waiters: Iterable[asyncio.Future[None]]
    _over_ssl: bool

    def pause_writing(self) -> None:
        self.stalled = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled = self.ended
        super().resume_writing()

    def eof_received(self) -> bool | None:
        # Over TLS the peer answers our own close in the same way.
        self.ended = not self.closed_here
        self.stalled = True
        self._tell_keeper(None)
        return super().eof_received()

    def _tell_keeper(self, error: NetworkError | None) -> None:
        """Once, and not of an end that this side has made."""
        keeper, self.keeper = self.keeper, None
        if keeper is not None and not self.closed_here:
            keeper.ended(self.ending(error))

    def ending(self, error: NetworkError | None) -> Ending:
        """How it has ended."""
        reader = self._stream_reader
        return Ending(error, self.address, self.made, heard=reader is None or reader.was_heard)

    @property
    def _left_by_peer(self) -> bool:
        """Whether it was the peer who closed, where the loop has no error to tell.

        A transport may be closed behind our back. Then there was no EOF; but neither is there with uvloop if a TLS peer
        closes without saying so.
        """
        if self.closed_here:
            return False
        return self.ended or self._over_ssl

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is not None:
            return
        if exc is not None:
            exc = self.lost = _typed(exc, self.address)
        elif self._left_by_peer:
            self.lost = BrokenPipe(address=self.address)
        else:
            self.closed_here = True
            self.lost = AlreadyClosed(address=self.address)
        self._tell_keeper(exc)
        # Here too a drain before the loss is asyncio's own. A bound method kept on the instance would do as well, but
        # it makes a cycle, and every closed connection would wait for the collector.
        self.__class__ = _LostProtocol  # pyright: ignore[reportAttributeAccessIssue]
        # Before asyncio does it, which has one exception for all who wait, and none after our own close.
        for waiter in self._drain_waiters:
            if not waiter.done():
                waiter.set_exception(_again(self.lost))
        super().connection_lost(exc)
        if not self._closed.cancelled():
            # Nobody need ask. asyncio sees to that in `__del__`, too late for a future that is collected before.
            self._closed.exception()
        for waiter in self.closing:
            if not waiter.done():
                waiter.set_result(None)
        watchers, self.closing, self.watchers = self.watchers, (), ()
        for watcher in watchers:
            watcher(self.lost)


class _LostProtocol(_Protocol):
    """A protocol after the loss."""

    async def _drain_helper(self) -> None:
        raise _again(cast(NetworkError, self.lost))


def _typed(exc: BaseException, address: Address) -> NetworkError:
    if isinstance(exc, asyncio.CancelledError):
        # uvloop makes a CancelledError of ECANCELED; nobody has cancelled anything.
        error: NetworkError | None = errors.typed("ECANCELED", "use", address)
    else:
        error = errors.translate(exc, "use", address)
        if isinstance(error, ConnectError):
            # Of a failed upgrade to TLS; to those who use the connection it is the reason of a loss.
            error = errors.typed(error.code, "use", address, error.errno, strerror=error.strerror)
    if error is None:
        error = ConnectionLost(None, str(exc) or type(exc).__name__, address=address)
        error.__cause__ = exc
    return error


def _again(exc: BaseException) -> Exception:
    """A new object for each caller: one that is raised twice collects the frames of both."""
    if not isinstance(exc, NetworkError):
        return cast(Exception, exc)
    new = exc.replace()
    new.__cause__ = exc.__cause__
    return new


def streams(loop: asyncio.AbstractEventLoop, limit: int, address: Address) -> tuple[Reader, _Protocol]:
    """A reader and the protocol that feeds it, for a transport that is about to be made."""
    reader = _UnheardReader(limit, loop)
    protocol = _Protocol(reader, loop=loop)
    reader.address = protocol.address = address
    return reader, protocol


class Connection:
    """An established connection: a reader and a writer of asyncio's kinds, and the endpoint they lead to.

    ``async with`` closes it at the end, or aborts it if the block ended by an exception in the middle of a message:
    anywhere but after `mark_clean`. Reading and writing raise
    `ConnectionLost` and its subclasses; `read` at the end of the stream returns ``b""``.
    """

    __slots__ = ("__weakref__", "endpoint", "is_clean", "reader", "writer")

    def __init__(self, reader: Reader, writer: Writer, endpoint: Endpoint) -> None:
        self.reader = reader
        self.writer = writer
        self.endpoint = endpoint
        self.is_clean = False
        """Whether the last word was `mark_clean`."""

    @property
    def streams(self) -> tuple[Reader, Writer]:
        """The reader and the writer, as ``asyncio.open_connection`` returns them."""
        return self.reader, self.writer

    @property
    def peername(self) -> Any:
        """The address of the other side."""
        return self.writer.get_extra_info("peername")

    @property
    def sockname(self) -> Any:
        """The address of this side."""
        return self.writer.get_extra_info("sockname")

    @property
    def alpn_protocol(self) -> str | None:
        """The protocol that the TLS handshake agreed on; ``None`` without TLS, or if the server chose none."""
        tls = self.writer.get_extra_info("ssl_object")
        return None if tls is None else tls.selected_alpn_protocol()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows, as ``asyncio.BaseTransport.get_extra_info``."""
        return self.writer.get_extra_info(name, default)

    async def read(self, n: int = -1) -> bytes:
        """Up to ``n`` bytes, or everything to the end; ``b""`` at the end."""
        return await self.reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        """Exactly ``n`` bytes. Raises `PeerClosed` if the peer closes before, `AlreadyClosed` if this side does."""
        try:
            return await self.reader.readexactly(n)
        except PeerClosed as exc:
            if self.writer.closed_first:
                raise AlreadyClosed(address=self.reader.address) from exc
            raise

    async def readline(self) -> bytes:
        """A line with its newline; what there is of it at the end."""
        return await self.reader.readline()

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Everything through the separator. Raises as `readexactly` does."""
        try:
            return await self.reader.readuntil(separator)
        except PeerClosed as exc:
            if self.writer.closed_first:
                raise AlreadyClosed(address=self.reader.address) from exc
            raise

    def write(self, data: Bytes) -> None:
        """Buffer bytes to send. Silent after a loss; `drain` raises it."""
        self.writer.write(data)

    async def drain(self) -> None:
        """Wait until there is room to write more."""
        await self.writer.drain()

    async def send(self, data: Bytes) -> None:
        """`write` and `drain`."""
        self.writer.write(data)
        await self.writer.drain()

    def write_eof(self) -> None:
        """Close the sending side; the other one stays open."""
        self.writer.write_eof()

    async def start_tls(
        self,
        tls: TLS | ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | str | None = None,
    ) -> None:
        """Upgrade to TLS in place (STARTTLS). The peer's name is verified as for a ``tls://`` endpoint.

        ``timeout``: seconds, for what is still to be sent in plain text and the handshake. Raises `TLSError`,
        `ConnectReset` or `ConnectTimeout` with phase ``"tls"``, after which the connection is closed, as it is after
        a cancellation; `ConfigError` if there is no name to verify.
        """
        settings = TLS(context=tls) if isinstance(tls, ssl.SSLContext) else tls or TLS()
        if server_hostname is not None:
            settings = settings.replace(server_hostname=server_hostname)
        hostname = self.endpoint.replace(tls=settings).server_hostname()
        context = ContextCache(settings).get()
        limit = math.inf if timeout is None else asyncio.get_running_loop().time() + seconds("timeout", timeout)
        # CPython 3.11 cannot be told a shutdown_timeout here; `aclose` has a limit of its own.
        options = {"ssl_shutdown_timeout": settings.shutdown_timeout} if sys.version_info >= (3, 12) else {}
        upgrading = self.writer.start_tls(
            context, server_hostname=hostname, ssl_handshake_timeout=settings.handshake_timeout, **options
        )
        await bounded(upgrading, limit, "call", phase="tls", address=self.reader.address)

    @property
    def is_closing(self) -> bool:
        """Whether it is lost, closed or about to be, or at its end, as far as the loop has seen."""
        return self.writer.is_closing() or self.reader.exception() is not None or self.reader.at_eof()

    def is_sound(self) -> bool:
        """Whether nothing speaks against using it, as far as the loop has seen: not closing, no error, not at its end,
        nothing unread, and not so much unsent that `drain` would wait.
        """
        writer = self.writer
        # Private, because a pool asks for each lease.
        return not (self.reader._buffer or writer._protocol.stalled or writer._transport.is_closing())  # noqa: SLF001

    def is_usable(self) -> bool:
        """Whether it `is_sound`, and the kernel knows nothing else either.

        It may have bytes that nobody asked for, a FIN or a reset, if they came while the loop was busy.
        """
        if not self.is_sound():
            return False
        sock = self.writer.get_extra_info("socket")
        if sock is None or not hasattr(select, "poll") or (fd := sock.fileno()) < 0:
            return True
        kernel = select.poll()
        # TLS may have a session ticket to read, which says nothing; the end of the stream says the same in both.
        hung_up = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
        kernel.register(fd, hung_up if self.get_extra_info("ssl_object") else hung_up | select.POLLIN)
        return not kernel.poll(0)

    @property
    def lost(self) -> NetworkError | None:
        """What ended it: a `ConnectionLost`, `AlreadyClosed` after our own close; ``None`` as far as the loop knows."""
        return self.writer.ended_by

    def when_lost(self, callback: Callable[[NetworkError], object]) -> None:
        """Have ``callback(error)`` called by the loop, once, when the connection is gone; soon, if it is already."""
        self.writer.watch(callback)

    def mark_clean(self) -> None:
        """Say that the protocol is between messages, so that an exception from here on does not spoil it."""
        self.is_clean = True

    def mark_dirty(self) -> None:
        """Say that a message has begun: take `mark_clean` back."""
        self.is_clean = False

    async def aclose(self, timeout: float | str = 5.0) -> None:
        """Send what is buffered and close; after ``timeout`` seconds, abort. A loss meanwhile is no error any more."""
        if not self.writer.is_closing():
            self.writer.close()
        try:
            await self.writer.gone(asyncio.get_running_loop().time() + seconds("timeout", timeout, zero=True))
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once and drop what is buffered."""
        self.writer.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None or self.is_clean:
            await self.aclose()
        else:
            self.abort()

    def __repr__(self) -> str:
        state = "closed" if self.writer.is_closing() else "open"
        return f"<Connection {self.endpoint} {errors.format_address(self.peername)} {state}>"
