"""Connecting: an endpoint, a policy, and what is learnt about that endpoint.

An attempt is: resolve, dial, TLS, ``prepare``. The engine in `retrying` repeats it; nothing below knows that retries
exist, nothing above looks at an errno.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, TypeVar

from aioconnect import errors, logs
from aioconnect.addresses import AddressBook
from aioconnect.connection import DEFAULT_LIMIT, Connection, Writer, streams
from aioconnect.dialer import DialOptions, dial_addresses, dial_options
from aioconnect.endpoint import Endpoint
from aioconnect.errors import Address, ConfigError, NetworkError
from aioconnect.events import (
    AttemptFailed,
    AttemptStarted,
    Cancelled,
    Connected,
    Event,
    GaveUp,
    Observer,
    Resolved,
    Retrying,
)
from aioconnect.gate import Gate
from aioconnect.handover import HandOver
from aioconnect.limits import Source, bounded
from aioconnect.policy import Policy
from aioconnect.resolver import AddressInfo, Lookup
from aioconnect.retrying import attempt_limit, retry
from aioconnect.validation import Problems, check_integer, seconds

__all__ = ("Connecting", "Connector", "ConnectorStats", "Prepare")

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.BaseProtocol)

Prepare = Callable[[Connection], Awaitable[None]]
"""What makes a new connection ready: a greeting, a login, a ping. Runs inside the attempt, under its limit."""

_Finish = Callable[[socket.socket, AddressInfo, float, Source], Awaitable[T]]
"""What an attempt makes of a connected socket."""


class ConnectorStats(NamedTuple):
    """A snapshot of what a connector has done since it was made."""

    attempts: int
    connected: int
    failures: MappingProxyType[str, int]
    """Failed attempts by code."""
    connecting: int
    """Attempts under way."""
    waiting: int
    """Attempts that wait for others because of ``max_connecting``."""
    reachable: bool | None
    """Whether the last attempt to end was good; ``None`` before the first."""
    last_error: NetworkError | None


class Connecting(Coroutine[Any, Any, T]):
    """A connection being asked for: ``await`` it, give it to a task, or ``async with`` it to have it closed at the end.

    Nothing happens before. Each ``await`` asks for another connection; ``async with`` is for one at a time.
    """

    __slots__ = ("_coroutine", "_held", "_start")

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._start = start
        self._coroutine: Coroutine[Any, Any, T] | None = None
        self._held: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._start().__await__()

    def send(self, value: Any, /) -> Any:
        """Run as a coroutine, as a task does."""
        if self._coroutine is None:
            self._coroutine = self._start()
        return self._coroutine.send(value)

    def throw(self, *exc: Any) -> Any:
        """Throw into the coroutine, as a task does when it is cancelled."""
        if self._coroutine is None:
            self._coroutine = self._start()
        return self._coroutine.throw(*exc)

    def close(self) -> None:
        """Give up what was begun as a coroutine."""
        if self._coroutine is not None:
            self._coroutine.close()

    async def __aenter__(self) -> T:
        if self._held is not None:
            raise RuntimeError("this connection is in use by another `async with`; call connect() for each")
        self._held = await self._start()
        return self._held

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held: Any = self._held
        self._held = None
        await held.__aexit__(cls, exc, traceback)


class Connector:
    """Connects to one endpoint under one policy. Owns no task and no file descriptor, and needs no closing.

    ``endpoint``: an `Endpoint` or a URL. ``prepare``: awaited with every new connection, inside the attempt; what
    it raises makes a failed attempt, `NotReady` included. ``max_connecting``: attempts at once, others wait their
    turn. ``observers``: called with `events`. ``resolver``: a `Resolver`, or anything with its three methods.
    ``limit``: bytes a reader buffers, as in ``asyncio.open_connection``.

    May be made before there is an event loop. It belongs to the loop of its first use until that one is closed.

    Raises `ConfigError` for settings that cannot work.

        connector = Connector("tls://db.internal:5432", Policy(timeout=10))
        async with connector.connect() as conn:
            ...
    """

    def __init__(  # noqa: PLR0913  (the rest are keywords)
        self,
        endpoint: Endpoint | str,
        policy: Policy = Policy(),
        prepare: Prepare | None = None,
        *,
        max_connecting: int | None = None,
        observers: Iterable[Observer] = (),
        resolver: Lookup | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        problems = Problems()
        self.endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint.parse(endpoint)
        self.policy = policy
        self.prepare = prepare
        self.observers = _observers(problems, observers)
        self.limit = check_integer(problems, "limit", limit, 1)
        if not isinstance(policy, Policy):
            problems.add("policy", policy, "must be a Policy")
        if prepare is not None and not callable(prepare):
            problems.add("prepare", prepare, "must be a coroutine function of a Connection")
        if resolver is not None and not all(hasattr(resolver, name) for name in ("resolve", "known", "forget")):
            problems.add("resolver", resolver, "must have the methods resolve, known and forget")
        if max_connecting is not None:
            max_connecting = check_integer(problems, "max_connecting", max_connecting, 1)
        problems.raise_any()
        self._name = self.endpoint.place
        self._options = dial_options(self.endpoint)
        self._hand_over = HandOver(self.endpoint)
        self._addresses = AddressBook(self.endpoint, resolver, policy)
        self._gate = Gate(math.inf if max_connecting is None else max_connecting)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._attempts = 0
        self._connected = 0
        self._failures: dict[str, int] = {}
        self._last_error: NetworkError | None = None
        self._reachable: bool | None = None
        self._lost_at: float | None = None
        self._lost_attempts = 0

    def connect(self, timeout: float | str | None = None) -> Connecting[Connection]:
        """A prepared `Connection`: ``await connector.connect()`` or ``async with connector.connect() as conn``.

        ``timeout``: seconds for this call; the smaller of it and the policy's wins. Raises a `ConnectError` that
        tells of every attempt, `ConfigError` for files that cannot be loaded, and what ``prepare`` raises that is
        no error of a connection.
        """
        return Connecting(functools.partial(self._call, self._to_connection, self._total(timeout)))

    async def create_connection(
        self, protocol_factory: Callable[[], P], timeout: float | str | None = None
    ) -> tuple[asyncio.Transport, P]:
        """A transport and a protocol, as ``loop.create_connection``, with retries and typed errors.

        There is no ``prepare``: that is for streams. Raises as `connect` does.
        """

        async def finish(
            sock: socket.socket, info: AddressInfo, limit: float, source: Source
        ) -> tuple[asyncio.Transport, P]:
            return await self._hand_over.made_by(protocol_factory, sock, info, limit, source)

        return await self._call(finish, self._total(timeout))

    async def dial(self, timeout: float | str | None = None) -> socket.socket:
        """A connected, non-blocking socket, for any library's ``sock=``. There is no TLS and no ``prepare``.

        Raises as `connect` does, and `ConfigError` for a TLS endpoint: only its streams can speak TLS.
        """
        if self.endpoint.tls is not None:
            raise ConfigError(f"endpoint={self._name}: must be without TLS to be dialed; connect to it instead")
        options = dial_options(self.endpoint, for_loop=False)

        async def finish(sock: socket.socket, *_: object) -> socket.socket:
            return sock

        return await self._call(finish, self._total(timeout), options)

    def stats(self) -> ConnectorStats:
        """What happened so far."""
        return ConnectorStats(
            attempts=self._attempts,
            connected=self._connected,
            failures=MappingProxyType(dict(self._failures)),
            connecting=self._gate.inside,
            waiting=self._gate.waiting,
            reachable=self._reachable,
            last_error=self._last_error,
        )

    def __repr__(self) -> str:
        return f"<Connector {self._name} attempts={self._attempts} connected={self._connected}>"

    # -- One call ------------------------------------------------------------------------------------------------

    def _call(
        self, finish: _Finish[T], total: float | None, options: DialOptions | None = None
    ) -> Coroutine[Any, Any, T]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        attempt = functools.partial(self._attempt, finish, self._options if options is None else options)
        if not self.observers:
            return retry(self.policy, attempt, total, endpoint=self._name)
        return self._observed(attempt, total)

    def _total(self, timeout: float | str | None) -> float | None:
        """The time limit of one call, in seconds: the smaller of its own and the policy's."""
        total = self.policy.timeout
        if timeout is None:
            return total
        given = seconds("timeout", timeout)
        return given if total is None else min(given, total)

    async def _observed(self, attempt: Callable[[float, float, int], Awaitable[T]], total: float | None) -> T:
        try:
            return await retry(self.policy, attempt, total, self._retrying, self._name)
        except asyncio.CancelledError:
            self._tell(Cancelled(self._name))
            raise
        except Exception as exc:
            self._tell(GaveUp(self._name, exc))
            raise

    async def _attempt(self, finish: _Finish[T], options: DialOptions, began: float, deadline: float, number: int) -> T:
        loop = asyncio.get_running_loop()
        gate = self._gate
        if not gate.enter():
            await gate.admitted(deadline)
            began = loop.time()
        limit, source = attempt_limit(self.policy, began, deadline)
        self._attempts += 1
        try:
            if self.observers:
                self._tell(AttemptStarted(self._name, number))
            addresses = self._addresses.known(began) or await self._resolved(limit, source)
            sock, info = await dial_addresses(addresses, options, limit, source, self.policy)
            result = await finish(sock, info, limit, source)
        except Exception as exc:
            self._failed(exc, number, began)
            raise
        finally:
            gate.leave()
        self._connected += 1
        self._reachable = True
        if self._lost_at is not None:
            self._restored(loop.time())
        if self.observers:
            self._tell(Connected(self._name, number, info.sockaddr, loop.time() - began))
        return result

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError(f"{self!r} belongs to another event loop; make one connector for each loop")
            # A new one: what the closed loop left unfinished may still leave the old one, when it is collected.
            self._gate = Gate(self._gate.size)
            self._reachable = self._lost_at = None
            self._lost_attempts = 0
        self._loop = loop
        # What was kept for times of another clock.
        self._addresses.forget()

    async def _resolved(self, limit: float, source: Source) -> list[AddressInfo]:
        now = asyncio.get_running_loop().time
        began = now()
        addresses = await self._addresses.find(limit, source)
        if self.observers:
            self._tell(Resolved(self._name, tuple(info.sockaddr for info in addresses), now() - began))
        return addresses

    # -- From a socket to what was asked for ---------------------------------------------------------------------

    async def _to_connection(self, sock: socket.socket, info: AddressInfo, limit: float, source: Source) -> Connection:
        loop = asyncio.get_running_loop()
        reader, protocol = streams(loop, self.limit, info.sockaddr)
        transport, _ = await self._hand_over.transport(protocol, sock, info, limit, source)
        endpoint = self.endpoint if info.target is None else self.endpoint.replace(targets=(info.target,))
        connection = Connection(reader, Writer(transport, protocol, reader, loop), endpoint)
        if self.prepare is not None:
            await self._prepared(self.prepare, connection, info, limit, source)
        return connection

    async def _prepared(
        self, prepare: Prepare, connection: Connection, info: AddressInfo, limit: float, source: Source
    ) -> None:
        address: Address = info.sockaddr
        cancels = _cancels()
        try:
            await bounded(prepare(connection), limit, source, phase="prepare", address=address)
            if _cancels() > cancels:
                # The hook has swallowed a cancellation of the whole call, which must not end in a connection.
                raise asyncio.CancelledError
            if connection.is_closing:
                words = "the connection was closed while it was made ready"
                raise errors.typed("ECONNRESET", "prepare", address, strerror=words)
        except Exception as exc:
            connection.abort()
            if _cancels() > cancels:
                raise asyncio.CancelledError from exc
            error = errors.translate(exc, "prepare", address)
            if error is None or error is exc:
                raise
            raise error from exc
        except BaseException:
            connection.abort()
            raise

    # -- What is learnt, and told --------------------------------------------------------------------------------

    def _failed(self, exc: Exception, number: int, began: float) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(exc, NetworkError):
            if exc.phase != "prepare":
                # Somebody was there in that phase; else the name may have moved.
                self._addresses.forget()
            self._reachable = False
            if exc.elapsed is None:
                exc.elapsed = loop.time() - began
            self._last_error = exc
            self._failures[exc.code] = self._failures.get(exc.code, 0) + 1
            self._lost_attempts += 1
            if self._lost_at is None:
                self._lost_at = loop.time()
                if self._connected:
                    # What has never worked is for the caller to tell: the error says it all.
                    logs.lost(self._name, exc)
        if self.observers:
            self._tell(AttemptFailed(self._name, number, exc, loop.time() - began))

    def _restored(self, now: float) -> None:
        if self._lost_at is not None and self._connected > 1:
            logs.restored(self._name, self._lost_attempts, now - self._lost_at)
        self._lost_at = None
        self._lost_attempts = 0

    def _retrying(self, error: NetworkError | None, pause: float, attempts: int) -> None:
        self._tell(Retrying(self._name, attempts, error, pause))

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            try:
                observer(event)
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (it must not break a connect)
                # Nothing is awaited here, so a CancelledError is only what some future held.
                context = {"message": f"observer {observer!r} raised", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)


def _cancels() -> int:
    """How often the running task has been asked to end, less what was taken back by who asked."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _observers(problems: Problems, given: Iterable[Observer]) -> tuple[Observer, ...]:
    every = tuple(given) if isinstance(given, Iterable) else None
    if every is None or not all(map(callable, every)):
        problems.add("observers", given, "must be callables of an event, in a sequence")
        return ()
    return every
