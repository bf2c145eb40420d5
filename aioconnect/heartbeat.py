"""Signs of life: what is sent to a peer so that it answers, and what is heard of it.

A connection is watched by the class of its reader, which is exchanged when a link takes it: one that nobody watches
pays nothing. Private names of asyncio in use, pinned by a test: ``StreamReader._eof``, ``StreamReader._loop``,
``StreamReader._paused``, ``StreamReader._waiter``.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any

from aioconnect import errors
from aioconnect.connection import Connection, Reader
from aioconnect.errors import NetworkError, PeerClosed
from aioconnect.limits import TICK
from aioconnect.validation import Problems, check_duration, format_duration
from aioconnect.values import Value

__all__ = ("Heard", "Heartbeat", "Pulse", "Send", "Watched", "end_was_read", "ended", "unwatch", "watch")

Send = Callable[[Connection], Awaitable[object] | object]
"""Sends one beat, such as a ping; a function or a coroutine function. It reads no answer: that is for the consumer."""


class Heartbeat(Value):
    r"""What a `Link` sends through a connection now and then, and how long it bears silence.

    ``send(connection)``: writes something that the peer answers; a function or a coroutine function.
    ``every``: seconds between two beats. ``timeout``: seconds without a byte from the peer after which the connection
    is lost with `ConnectionTimedOut`. Any byte counts, not only an answer. While nobody reads and the buffer is full,
    nothing can be heard, and no time passes.

    Raises `ConfigError` for what is no function and for a ``timeout`` not longer than ``every``.

    >>> Heartbeat(lambda conn: conn.write(b"PING\r\n"), every="15s", timeout="30s").every
    15.0
    """

    __slots__ = ("send", "every", "timeout")

    send: Send
    every: float
    timeout: float

    def __init__(self, send: Send, every: float | str = 15.0, timeout: float | str = 30.0) -> None:
        problems = Problems()
        between = check_duration(problems, "every", every)
        silence = check_duration(problems, "timeout", timeout)
        if not callable(send):
            problems.add("send", send, "must be a function of a Connection, or a coroutine function")
        if not problems.found and silence <= between:
            problems.add("timeout", timeout, f"must be longer than every, {format_duration(between)}")
        problems.raise_any()
        self._freeze(send=send, every=between, timeout=silence)


class Watched(Reader):
    """A reader that tells of the end of its stream, and knows whether anybody has read up to there."""

    end_read = False
    on_end: Callable[[], None] | None = None
    _eof: bool
    _loop: asyncio.AbstractEventLoop
    _paused: bool
    _waiter: asyncio.Future[None] | None

    def feed_eof(self) -> None:
        """Called at the end of the stream; from here on this is an `_Ended` reader."""
        self.end_read = self._waiter is not None
        super().feed_eof()
        self.end()
        if self.on_end is not None:
            self.on_end()

    def end(self) -> bool:
        """Whether the stream has ended."""
        if self._eof:
            self.__class__ = _Ended  # pyright: ignore[reportAttributeAccessIssue]
        return self._eof

    def _peer_closed(self, exc: asyncio.IncompleteReadError) -> PeerClosed:
        self.end_read = True
        return super()._peer_closed(exc)


class _Unheard(Watched):
    """A watched reader before the first byte."""

    was_heard = False

    def feed_data(self, data: Any) -> None:
        self.__class__ = Watched  # type: ignore[assignment]
        self.feed_data(data)


class _Ended(Watched):
    """A watched reader after the end of its stream."""

    def feed_eof(self) -> None:
        """Called once more when the transport is gone, which is no news."""

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self.end_read = self.end_read or n < 0 or (n > 0 and not data)
        return data


class Heard(Watched):
    """A watched reader that knows when it was last fed."""

    heard_at = -math.inf

    def feed_data(self, data: Any) -> None:
        """Called with what the peer has sent."""
        self.heard_at = self._loop.time()
        self.was_heard = True
        super().feed_data(data)

    def silent_since(self) -> float:
        """When the peer was last heard, or could have been: a reader whose buffer is full has stopped listening."""
        if self._paused:
            self.heard_at = self._loop.time()
        return self.heard_at


def watch(connection: Connection, on_end: Callable[[], None]) -> bool:
    """Have the connection's reader tell of the end of its stream. False if there is nothing left to watch."""
    reader: Any = connection.reader
    if reader.exception() is not None:
        return False
    reader.on_end = on_end
    reader.__class__ = Watched if reader.was_heard else _Unheard
    return not reader.end()


def unwatch(connection: Connection) -> None:
    """Tell nobody any more."""
    reader: Any = connection.reader
    reader.on_end = None


def ended(connection: Connection) -> bool:
    """Whether the stream of a watched connection has ended, though there may be something left to read."""
    return isinstance(connection.reader, _Ended)


def end_was_read(connection: Connection) -> bool:
    """Whether somebody has read up to the end of a watched connection's stream."""
    # A reader that is lost later is none of these classes any more, but has still been read to its end.
    return bool(vars(connection.reader).get("end_read"))


class Pulse:
    """One connection's heartbeat. It has one timer, which traffic does not touch: when it fires, it looks back.

    A watched reader becomes a `Heard` one. ``on_bug(error)`` is called for what ``send`` raises that is no error of
    a connection.
    """

    __slots__ = ("_beat_at", "_connection", "_heartbeat", "_loop", "_on_bug", "_reader", "_sending", "_timer")

    def __init__(self, heartbeat: Heartbeat, connection: Connection, on_bug: Callable[[Exception], None]) -> None:
        reader: Any = connection.reader
        reader.was_heard = reader.was_heard  # of its class so far, which is exchanged
        reader.__class__ = Heard
        self._heartbeat = heartbeat
        self._connection = connection
        self._reader: Heard = reader
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        reader.heard_at = now = self._loop.time()
        self._beat_at = now + heartbeat.every
        self._sending: asyncio.Future[object] | None = None
        self._timer = self._loop.call_at(self._beat_at, self._look)

    def stop(self) -> None:
        """Send and expect nothing any more."""
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def _look(self, *, again: bool = False) -> None:
        now = self._loop.time()
        silent_at = self._reader.silent_since() + self._heartbeat.timeout
        if now >= silent_at - TICK:
            if not again and now > silent_at + TICK:
                # The loop was busy, and what has come meanwhile may be read only after the timers: uvloop does so.
                self._timer = self._loop.call_later(TICK, lambda: self._look(again=True))
                return
            words = f"nothing was heard for {format_duration(self._heartbeat.timeout)}"
            self._lose(errors.typed("ETIMEDOUT", "use", self._reader.address, strerror=words))
            return
        due = now >= self._beat_at - TICK
        if due:
            self._beat_at = now + self._heartbeat.every
        self._timer = self._loop.call_at(min(self._beat_at, silent_at), self._look)
        if due:
            self._beat()

    def _beat(self) -> None:
        if self._sending is not None and not self._sending.done():
            # The peer takes nothing; that silence ends by `timeout`.
            return
        try:
            sent = self._heartbeat.send(self._connection)
        except Exception as exc:  # noqa: BLE001  (told on)
            self._failed(exc)
            return
        if inspect.isawaitable(sent):
            self._sending = asyncio.ensure_future(sent)
            self._sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Future[object]) -> None:
        exc = None if sending.cancelled() else sending.exception()
        if isinstance(exc, Exception):
            self._failed(exc)

    def _failed(self, exc: Exception) -> None:
        error = errors.translate(exc, "use", self._reader.address)
        if error is None:
            self._on_bug(exc)
        else:
            self._lose(error)

    def _lose(self, error: NetworkError) -> None:
        self.stop()
        self._connection.abort()
        self._connection.writer.lost(error)
