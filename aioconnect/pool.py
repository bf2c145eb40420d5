"""A pool: connections of one connector, lent one by one.

A connection goes back to the pool only if its user has left the block in good order. One who leaves by an exception,
a cancellation included, may have left half a message behind, which the next user would read as its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable, Generator
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from aioconnect.asking import Asking
from aioconnect.backoff import Backoff
from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.errors import Holder
from aioconnect.pool_books import Books, Borrower, Ended, Limits
from aioconnect.pool_hooks import Hook
from aioconnect.pool_lending import Lending, Settings
from aioconnect.validation import Problems, check_duration, check_integer, check_optional_duration, seconds

__all__ = ("Acquiring", "Pool", "PoolStats")


class PoolStats(NamedTuple):
    """A snapshot of a pool. Times are seconds; the counts begin when the pool is made.

    In the terms of OpenTelemetry's ``db.client.connection``: ``count`` by state is ``idle`` and ``in_use``,
    ``pending_requests`` is ``waiting``, ``wait_time`` is a sum here.
    """

    idle: int
    in_use: int
    connecting: int
    waiting: int
    """Callers in line."""
    acquired: int
    """Connections lent."""
    waited: int
    """Callers who got theirs only after a wait in line."""
    wait_time: float
    timeouts: int
    shed: int
    """Callers refused because of ``max_waiting``."""
    created: int
    closed: MappingProxyType[Ended, int]
    """Connections closed, by reason: they were ``idle`` for too long, at the end of their ``lifetime``, ``drained``,
    ``closed`` with the pool, found ``stale`` before they were lent, ``lost`` while idle or in use, ``suspect`` because
    another one was lost, left in an ``error``, or refused by ``check`` or ``reset``."""

    @property
    def size(self) -> int:
        """Connections there are, and those that are being made."""
        return self.idle + self.in_use + self.connecting


class Acquiring(Borrower, Asking[Connection]):
    """A connection being asked for: ``await`` it, give it to a task, or ``async with`` it to have it given back.

    Nothing happens before. It is for one connection, as a coroutine is for one result.
    """

    __slots__ = ("coroutine", "lending")

    lending: Lending

    def __await__(self) -> Generator[Any, Any, Connection]:
        if self.entry is not None:
            raise RuntimeError("this was awaited before; call acquire() for each connection")
        lending = self.lending
        return lending.lend_again(self) if lending.books.idle else lending.lend_later(self)

    def __aenter__(self) -> Awaitable[Connection]:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry: Any = self.entry
        if exc is None and entry.borrower is self:
            self.lending.give_back(entry)
        else:
            self.lending.leave(entry, self, failed=exc is not None)


class Pool:
    r"""Up to ``max_size`` connections of a connector, lent to one user at a time, first come, first served.

    ``min_size``: kept open also while nobody asks. ``max_waiting``: callers who may wait for somebody else to give one
    back; one more gets `PoolFull`. ``max_idle``, ``max_lifetime``: seconds after which a connection is closed, the
    latter less up to a tenth. ``check``: awaited before lending a connection that was idle for more than a second.
    ``reset``: awaited after use, by the pool. Each has ``hook_timeout`` seconds, and whatever it raises costs just that
    connection. What a new connection needs is the connector's ``prepare``. ``max_connecting``: dials at once.
    ``uniform(low, high)``: the source of chance.

    Dials follow the policy's schedule (``wait``, ``retry_on``, ``attempt_timeout``, ``breaker``) but not its limits,
    for they go on as long as somebody wants them. An error that is not retried reaches all who wait, as itself. After a
    connection that died before anybody could use it, they pause as after a failure.

    A dead connection is found before it is lent, even if the loop has not seen its end yet. If the network takes one
    (a reset, not a time-out), the others are replaced before anybody meets the same.

    May be made before there is an event loop. Belongs to the loop of its first use until that one is closed. Raises
    `ConfigError` for settings that cannot work.

        async with Pool(connector, max_size=20) as pool:
            async with pool.acquire(timeout=1.0) as conn:
                await conn.send(b"PING\r\n")
    """

    def __init__(  # noqa: PLR0913  (the rest are keywords)
        self,
        connector: Connector,
        min_size: int = 0,
        max_size: int = 10,
        max_waiting: int | None = None,
        *,
        max_idle: float | str | None = 60.0,
        max_lifetime: float | str | None = 1800.0,
        check: Hook | None = None,
        reset: Hook | None = None,
        hook_timeout: float | str = 1.0,
        max_connecting: int = 2,
        uniform: Callable[[float, float], float] = Backoff().uniform,
    ) -> None:
        problems = Problems()
        if not isinstance(connector, Connector):
            problems.add("connector", connector, "must be a Connector")
        max_size = check_integer(problems, "max_size", max_size, 1)
        limits = Limits(
            check_integer(problems, "min_size", min_size, 0, max_size),
            max_size,
            check_integer(problems, "max_connecting", max_connecting, 1),
            _or_never(check_optional_duration(problems, "max_idle", max_idle)),
            _or_never(check_optional_duration(problems, "max_lifetime", max_lifetime)),
            uniform,
        )
        for field, hook in (("check", check), ("reset", reset)):
            if hook is not None and not callable(hook):
                problems.add(field, hook, "must be a coroutine function of a Connection")
        hook_limit = check_duration(problems, "hook_timeout", hook_timeout)
        if max_waiting is not None:
            max_waiting = check_integer(problems, "max_waiting", max_waiting, 0)
        problems.raise_any()
        self.connector = connector
        self._books = Books(limits)
        breaker = connector.policy.breaker
        fails_fast = breaker is not None and breaker.when_open == "fail"
        settings = Settings(max_waiting, _or_never(connector.policy.timeout), check, reset, hook_limit, fails_fast)
        self._lending = Lending(connector, self._books, settings)

    def acquire(self, timeout: float | str | None = None) -> Acquiring:
        """A connection of your own for a while: ``async with pool.acquire() as conn``, which also gives it back.

        ``conn = await pool.acquire()`` leaves that to `release`. ``timeout``: seconds; the policy's if it is not given,
        0 to get one that is idle or none. Raises `PoolTimeout`, which says who has the connections and what hinders new
        ones, `PoolFull`, `PoolClosed`, a `ConnectError` that is not retried, and `CircuitOpen` if there is no
        connection and the policy's breaker says to fail.
        """
        if timeout is not None and not (isinstance(timeout, float) and 0.0 <= timeout < math.inf):
            timeout = seconds("timeout", timeout, zero=True)
        # No __init__: its frame would take as long as all this.
        acquiring = Acquiring()
        acquiring.lending = self._lending
        acquiring.timeout = timeout
        acquiring.coroutine = acquiring.entry = None
        caller = sys._getframe(1)  # noqa: SLF001  (cheaper than `inspect`, by far)
        acquiring.code = caller.f_code
        acquiring.instruction = caller.f_lasti
        return acquiring

    def release(self, connection: Connection) -> None:
        """Give back what was awaited from `acquire`, between two messages; if in doubt, ``abort()`` it before.

        Raises RuntimeError for a connection that is not lent by this pool; nothing has changed then.
        """
        entry = self._books.entries.get(connection)
        if entry is None or entry.borrower is None or entry.borrower.entry is not entry:
            raise RuntimeError(f"{connection!r} is not lent: it was given back before, or is another pool's")
        self._lending.give_back(entry)

    def stats(self) -> PoolStats:
        """What the pool has, and what happened so far."""
        books = self._books
        return PoolStats(
            idle=len(books.idle),
            in_use=books.in_use,
            connecting=books.connecting,
            waiting=self._lending.line.waiting,
            acquired=books.acquired,
            waited=books.waited,
            wait_time=books.wait_time,
            timeouts=books.timeouts,
            shed=books.shed,
            created=books.created,
            closed=MappingProxyType(dict(books.closed)),
        )

    def holders(self) -> tuple[Holder, ...]:
        """Who has the connections, the longest first: a task's name, ``file:line`` and seconds."""
        return self._lending.holders()

    async def ready(self, n: int = 1, timeout: float | str | None = None) -> None:
        """Wait until ``n`` connections are open, for a service that is still starting too (`STARTING`).

        ``timeout``: seconds; the policy's if it is not given. Raises `PoolTimeout`, whose cause is the last connect
        error, and at once what is not worth waiting for.
        """
        problems = Problems()
        check_integer(problems, "n", n, 1, self._books.limits.max_size)
        problems.raise_any()
        await self._lending.ready(n, None if timeout is None else seconds("timeout", timeout))

    def drain(self) -> None:
        """Replace all connections, as after a failover: idle ones now, those in use when they come back."""
        self._lending.drain()

    async def aclose(self, grace: float | str = 5.0) -> tuple[Holder, ...]:
        """Close: who waits gets `PoolClosed`, who has a connection has ``grace`` seconds to give it back.

        Then what is left is aborted. Those who had it are returned, and named in the log. The connector stays as it is.
        """
        return await self._lending.aclose(seconds("grace", grace, zero=True))

    async def __aenter__(self) -> Self:
        self._lending.bind()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        books = self._books
        counts = f"idle={len(books.idle)} in_use={books.in_use} connecting={books.connecting}"
        return f"<Pool {self.connector.endpoint.place} {counts} max_size={books.limits.max_size}>"


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
