"""One connection, kept up: made when somebody asks for it, and made again whenever it is lost."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, cast

from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.errors import ConnectionLost, NetworkError
from aioconnect.heartbeat import Heartbeat, end_was_read
from aioconnect.link_states import LinkState
from aioconnect.link_supervisor import Supervisor
from aioconnect.validation import Problems, check_integer, seconds

__all__ = ("Consume", "Link")

Consume = Callable[[Connection], Awaitable[object]]
"""What uses each connection of a link in turn."""


class Link:
    """One connection to an endpoint that comes back whenever it is lost; for what owns a long-lived connection.

    ``connector``: makes the connections, by its policy's ``wait``, ``retry_on`` (and `STARTING`), ``attempt_timeout``
    and breaker. The policy's limits are for calls, not for links. It is not closed with the link.
    ``heartbeat``: a `Heartbeat`, which also finds out that a peer has fallen silent.

    A link dials when somebody asks: `run`, ``async for`` or `ready`. Asked by `ready`, it keeps its connection up
    until there is a consumer; when that has ended, it is IDLE again. There is one consumer at a time.

    The end of the stream is a loss like any other. A connection that has not lived for the connector's
    ``stable_after`` counts as a failure, and the pauses grow until one does. A permanent error, such as a certificate
    that is rejected, ends the link before its first READY; afterwards it is retried after the longest pause.

    Raises `ConfigError` for arguments of the wrong kind.

        async with Link(connector, heartbeat=Heartbeat(ping, every=15, timeout=30)) as link:
            await link.run(consume)
    """

    __slots__ = ("__weakref__", "_supervisor")

    def __init__(self, connector: Connector, heartbeat: Heartbeat | None = None) -> None:
        problems = Problems()
        if not isinstance(connector, Connector):
            problems.add("connector", connector, "must be a Connector")
        if heartbeat is not None and not isinstance(heartbeat, Heartbeat):
            problems.add("heartbeat", heartbeat, "must be a Heartbeat, or None")
        problems.raise_any()
        self._supervisor = Supervisor(connector, heartbeat)

    @property
    def connector(self) -> Connector:
        """What makes its connections."""
        return self._supervisor.connector

    @property
    def heartbeat(self) -> Heartbeat | None:
        """What is sent through them, if anything."""
        return self._supervisor.heartbeat

    @property
    def state(self) -> LinkState:
        """Where the link is."""
        return self._supervisor.state

    @property
    def last_error(self) -> NetworkError | None:
        """What the last attempt or connection ended with; ``None`` while READY, and before the first failure."""
        return self._supervisor.last_error

    async def run(self, consume: Consume) -> None:
        """Await ``consume(connection)`` for one connection after the other, until it returns.

        `ConnectionLost` out of ``consume``, alone or in a group of nothing else, is absorbed: there will be another
        connection. So is a return after the end of the stream was read. Any other return ends the run, and so does
        any other exception, which is raised as it is; the connection is closed in both cases. The run ends, too, when
        the link is closed.

        Raises what ended the link: a `ConnectError` of the kind ``"permanent"`` or a foreign exception out of the
        connector's ``prepare``. RuntimeError while there is another consumer.
        """
        supervisor = self._supervisor
        consumer = supervisor.enlist()
        try:
            while (connection := await supervisor.following()) is not None:
                if await _is_done(consume, connection):
                    return await supervisor.leave()
                del connection  # nothing to keep through an outage
        finally:
            supervisor.discharge(consumer)

    def __aiter__(self) -> AsyncIterator[Connection]:
        """One connection after the other; the body sees to losses itself.

        The next iteration closes its connection and waits for the next one; leaving the loop drops it at once, with
        what is still buffered. Ends when the link is closed; raises as `run` does.
        """
        return _Connections(self._supervisor, self._supervisor.enlist())

    def ready(self, timeout: float | str | None = None, fail_after: int | None = None) -> Coroutine[Any, Any, None]:
        """Wait until the link is READY, asking it to connect if nobody has.

        ``timeout``: seconds; ``None``: no limit. ``fail_after``: give up after so many failed attempts in a row. The
        link goes on trying in both cases; only a cancellation, if nobody else asks, takes the wish back.

        Raises the error of the last attempt, with the ``stop_reason`` ``"timeout"`` or ``"attempts"``; `ConnectTimeout`
        if there was none; what ended the link, as `run` does; `AlreadyClosed` when it is closed.

            await link.ready(timeout=30)
        """
        allowed = math.inf if timeout is None else seconds("timeout", timeout, zero=True)
        problems = Problems()
        left = None if fail_after is None else check_integer(problems, "fail_after", fail_after, 1)
        problems.raise_any()
        return self._supervisor.ready(allowed, left)

    def retry_now(self) -> None:
        """End the pause, if one is on: the next attempt begins at once. For whoever learns that the peer is back."""
        self._supervisor.retry_now()

    async def aclose(self, timeout: float | str = 5.0) -> None:
        """Close the connection, and nothing comes after it. A consumer sees `AlreadyClosed`, and its run ends.

        ``timeout``: seconds to send what is buffered. May be called again, from anywhere.
        """
        await self._supervisor.close(seconds("timeout", timeout, zero=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Link {self._supervisor.place} {self.state.name}>"


class _Connections:
    """The connections of a link, for ``async for``: as long as this exists, the link has a consumer."""

    __slots__ = ("_consumer", "_supervisor")

    def __init__(self, supervisor: Supervisor, consumer: object) -> None:
        self._supervisor = supervisor
        self._consumer = consumer

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Connection]:
        # Not a coroutine function: its frame would hold the iterator, and the traceback of a cancellation the frame.
        return _following(self._supervisor)

    def __del__(self) -> None:
        # `break`, `return` and exceptions take a loop's iterator off the stack, and tell nobody.
        self._supervisor.discharge(self._consumer)


async def _following(supervisor: Supervisor) -> Connection:
    connection = await supervisor.following()
    if connection is None:
        raise StopAsyncIteration
    return connection


async def _is_done(consume: Consume, connection: Connection) -> bool:
    """Have a connection consumed: whether that was all."""
    try:
        await consume(connection)
    except Exception as exc:
        if not _is_loss(exc):
            raise
        return False
    return not end_was_read(connection)


def _is_loss(exc: BaseException) -> bool:
    """Whether it says nothing but that a connection is lost, as it comes out of a task group, too."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_loss, cast("BaseExceptionGroup[BaseException]", exc).exceptions))
    return isinstance(exc, ConnectionLost)
