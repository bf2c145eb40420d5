"""The transport over a simulated socket: what asyncio's selector transport does, without descriptors and copies."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from aioconnect.testing.sockets import FIN, SimulatedSocket

__all__ = ("SimulatedTransport",)

Bytes = bytes | bytearray | memoryview

_HIGH, _LOW = 64 * 1024, 16 * 1024
"""Bytes in the write buffer at which asyncio pauses and resumes a protocol by default."""


class SimulatedTransport(asyncio.Transport):
    """Carries a protocol over a connected `SimulatedSocket`, which it owns."""

    __slots__ = (
        "_buffer",
        "_buffered",
        "_closing",
        "_context",
        "_ended",
        "_eof",
        "_gone",
        "_high",
        "_into",
        "_loop",
        "_low",
        "_on_end",
        "_paused",
        "_protocol",
        "_sock",
        "_wanting",
        "_writing_paused",
    )

    def __init__(
        self, sock: SimulatedSocket, protocol: asyncio.BaseProtocol, on_end: Callable[[], object] | None = None
    ) -> None:
        super().__init__()
        self._sock = sock
        self._loop = sock.network.running()
        self._context = contextvars.copy_context()
        self._on_end = on_end
        self._buffer: deque[Bytes] = deque()
        self._buffered = 0
        self._high, self._low = _HIGH, _LOW
        self._closing = self._ended = self._eof = self._gone = self._writing_paused = self._paused = False
        self._wanting = False
        self.set_protocol(protocol)

    def open(self) -> None:
        """Tell the protocol, then begin to read, a turn later as asyncio does."""
        self._protocol.connection_made(self)
        self._loop.call_soon(self._begin, context=self._sock.network.context)

    def _begin(self) -> None:
        self._wanting = True
        if not self._gone:
            self._sock.receiver = self
            self._sock.release(self._wants)

    def _wants(self) -> bool:
        return self._wanting and not (self._paused or self._ended or self._closing)

    # -- As a transport ------------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``"socket"``, ``"peername"`` and ``"sockname"``; there is no TLS."""
        if name == "socket":
            return self._sock
        if name == "peername":
            return self._sock.remote
        return self._sock.getsockname() if name == "sockname" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another protocol from here on."""
        self._protocol: Any = protocol
        self._into = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol."""
        return cast(asyncio.BaseProtocol, self._protocol)

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing

    def is_reading(self) -> bool:
        """Whether data goes to the protocol as it comes."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Leave what comes to the socket, which has room for so much."""
        self._paused = True

    def resume_reading(self) -> None:
        """Read on."""
        if self._closing or not self._paused:
            return
        self._paused = False
        self._loop.call_soon(self._read_on, context=self._sock.network.context)

    def _read_on(self) -> None:
        if not self._gone:
            self._sock.release(self._wants)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to pause and to resume the protocol's writing, in bytes."""
        if high is None:
            high = _HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._maybe_pause()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The limits, low and high."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has had no room for."""
        return self._buffered

    def write(self, data: Bytes) -> None:
        """Send, or keep until there is room."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._gone:
            return
        if not self._buffer:
            try:
                sent = self._sock.send(data)
            except OSError as exc:
                self._force(exc)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        # A copy: the caller may change his own.
        kept = bytes(data)
        self._buffer.append(kept)
        self._buffered += len(kept)
        self._maybe_pause()

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        """Send several pieces."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """FIN, once everything is sent."""
        if self._closing or self._eof:
            return
        self._eof = True
        if not self._buffer:
            self._shut_down()

    def close(self) -> None:
        """Send what is buffered and close."""
        if self._closing:
            return
        self._closing = True
        if not self._buffer:
            self._end_soon(None)

    def abort(self) -> None:
        """Close at once; what is buffered is dropped."""
        self._force(None)

    # -- As its socket sees it -----------------------------------------------------------------------------------

    def take(self, item: bytes | str | OSError) -> None:
        """Data, FIN, RST, or an error of our own side.

        As with a selector, who does not read hears of an error only if there is something to write.
        """
        if not (self._wants() or (self._buffer and item is not FIN and not isinstance(item, bytes))):
            self._sock.hold(item)
        elif isinstance(item, bytes):
            self._call(self._receive, item)
            if not self._gone:
                self._sock.taken(len(item))
        elif item is FIN:
            self._ended = True
            if not self._call(self._protocol.eof_received):
                self.close()
        else:
            self._force(item if isinstance(item, OSError) else self._sock.reset())

    def is_writing(self) -> bool:
        """Whether something waits for room: then a loss is heard at once, whatever is unread."""
        return bool(self._buffer)

    def room(self) -> None:
        """There may be room to send more."""
        if not self._buffer or self._gone:
            return
        try:
            while self._buffer and (sent := self._sock.send(self._buffer[0])):
                self._buffered -= sent
                rest = self._buffer.popleft()[sent:]
                if rest:
                    self._buffer.appendleft(rest)
        except OSError as exc:
            self._force(exc)
            return
        if self._writing_paused and self._buffered <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._buffer:
            return
        if self._eof and not self._closing:
            self._shut_down()
        elif self._closing:
            self._end_soon(None)

    def _receive(self, data: bytes) -> None:
        if not self._into:
            self._protocol.data_received(data)
            return
        view = memoryview(data)
        while view:
            buffer = memoryview(self._protocol.get_buffer(len(view)))
            size = min(len(buffer), len(view))
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:size] = view[:size]
            self._protocol.buffer_updated(size)
            view = view[size:]

    # -- Ending --------------------------------------------------------------------------------------------------

    def _call(self, step: Callable[..., Any], *args: Any) -> Any:
        """Call into the protocol, in the context of whoever made the transport; a bug there is the end of it."""
        try:
            return self._context.run(step, *args)
        except Exception as exc:  # noqa: BLE001  (told to the loop, as asyncio's transports do)
            self._loop.call_exception_handler(
                {
                    "message": f"Fatal error: protocol.{step.__name__}() call failed.",
                    "exception": exc,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._force(exc)
            return None

    def _maybe_pause(self) -> None:
        if self._buffered > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def _shut_down(self) -> None:
        if self._sock.state == "open" and not self._sock.closed:
            self._sock.shutdown(1)

    def _force(self, exc: Exception | None) -> None:
        if self._gone:
            return
        self._buffer.clear()
        self._buffered = 0
        self._closing = True
        self._end_soon(exc)

    def _end_soon(self, exc: Exception | None) -> None:
        if not self._gone:
            self._gone = True
            self._loop.call_soon(self._end, exc, context=self._context)

    def _end(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._sock.close()
            # As asyncio does: the protocol knows the transport, and neither is to wait for the garbage collector.
            self._protocol = None
            if self._on_end is not None:
                self._on_end()
                self._on_end = None

    def __repr__(self) -> str:
        return f"<SimulatedTransport {self._sock!r}>"
