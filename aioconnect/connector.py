"""Connecting: an endpoint, a policy, and what is learnt about that endpoint.

An attempt is: resolve, dial, TLS, ``prepare``. The engine in `retrying` repeats it; nothing below knows that retries
exist, nothing above looks at an errno.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from types import MappingProxyType, TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from aioconnect import errors, logs
from aioconnect.connection import DEFAULT_LIMIT, Connection, Writer, streams
from aioconnect.dialer import DialOptions, dial_addresses, dial_options
from aioconnect.endpoint import TLS, Endpoint
from aioconnect.errors import Address, ConfigError, ConnectTimeout, NetworkError
from aioconnect.events import AttemptFailed, AttemptStarted, Connected, Event, GaveUp, Observer, Resolved, Retrying
from aioconnect.hosts import Target, ascii_host
from aioconnect.policy import Policy
from aioconnect.race import interleaved
from aioconnect.resolver import AddressInfo, Lookup, Query, Resolver, literal, wait_until
from aioconnect.retrying import TICK, Source, attempt_limit, bounded, retry
from aioconnect.tls import ContextCache
from aioconnect.validation import Problems, check_duration, check_integer

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


class Connecting(Generic[T]):
    """A connect to come: ``await`` it for the result, or ``async with`` it to have that closed at the end."""

    __slots__ = ("_result", "_start")

    def __init__(self, start: Callable[[], Awaitable[T]]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, Any, T]:
        return self._start().__await__()

    async def __aenter__(self) -> T:
        self._result = await self._start()
        return self._result

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        result: Any = self._result
        await result.__aexit__(cls, exc, traceback)


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
        self.observers = tuple(observers)
        self.limit = check_integer(problems, "limit", limit, 1)
        given: dict[str, object] = vars(self)
        if not isinstance(given["policy"], Policy):
            problems.add("policy", given["policy"], "must be a Policy")
        if given["prepare"] is not None and not callable(given["prepare"]):
            problems.add("prepare", given["prepare"], "must be a coroutine function of a Connection")
        if max_connecting is not None:
            max_connecting = check_integer(problems, "max_connecting", max_connecting, 1)
        problems.raise_any()
        self._name = self.endpoint.place
        self._options = dial_options(self.endpoint)
        self._contexts = None if self.endpoint.tls is None else ContextCache(self.endpoint.tls, logs.stale_files)
        self._resolver: Lookup = Resolver() if resolver is None else resolver
        self._queries = tuple(_query(self.endpoint, target) for target in self.endpoint.targets)
        self._fixed = _fixed(self.endpoint, self._queries)
        self._gate = _Gate(math.inf if max_connecting is None else max_connecting)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._attempts = 0
        self._connected = 0
        self._failures: dict[str, int] = {}
        self._last_error: NetworkError | None = None
        self._lost_at: float | None = None
        self._lost_attempts = 0

    def connect(self, timeout: float | None = None) -> Connecting[Connection]:
        """A prepared `Connection`: ``await connector.connect()`` or ``async with connector.connect() as conn``.

        ``timeout``: seconds for this call; the smaller of it and the policy's wins. Raises a `ConnectError` that
        tells of every attempt, `ConfigError` for files that cannot be loaded, and what ``prepare`` raises that is
        no error of a connection.
        """
        return Connecting(functools.partial(self._call, self._to_connection, timeout))

    async def create_connection(
        self, protocol_factory: Callable[[], P], timeout: float | None = None
    ) -> tuple[asyncio.Transport, P]:
        """A transport and a protocol, as ``loop.create_connection``, with retries and typed errors.

        There is no ``prepare``: that is for streams. Raises as `connect` does.
        """

        async def finish(
            sock: socket.socket, info: AddressInfo, limit: float, source: Source
        ) -> tuple[asyncio.Transport, P]:
            return await self._to_transport(protocol_factory, sock, info, limit, source)

        return await self._call(finish, timeout)

    async def dial(self, timeout: float | None = None) -> socket.socket:
        """A connected, non-blocking socket, for any library's ``sock=``. There is no TLS and no ``prepare``.

        Raises as `connect` does, and `ConfigError` for a TLS endpoint: only its streams can speak TLS.
        """
        if self.endpoint.tls is not None:
            raise ConfigError(f"endpoint={self._name}: must be without TLS to be dialed; connect to it instead")
        options = dial_options(self.endpoint, for_loop=False)

        async def finish(sock: socket.socket, *_: object) -> socket.socket:
            return sock

        return await self._call(finish, timeout, options)

    def stats(self) -> ConnectorStats:
        """What happened so far."""
        reachable = None if not self._connected and self._last_error is None else self._lost_at is None
        return ConnectorStats(
            attempts=self._attempts,
            connected=self._connected,
            failures=MappingProxyType(dict(self._failures)),
            connecting=self._gate.inside,
            waiting=self._gate.waiting,
            reachable=reachable,
            last_error=self._last_error,
        )

    def __repr__(self) -> str:
        return f"<Connector {self._name} attempts={self._attempts} connected={self._connected}>"

    # -- One call ------------------------------------------------------------------------------------------------

    def _call(
        self, finish: _Finish[T], timeout: float | None, options: DialOptions | None = None
    ) -> Coroutine[Any, Any, T]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        total = self.policy.timeout
        if timeout is not None:
            total = _smaller(timeout, total)
        attempt = functools.partial(self._attempt, finish, self._options if options is None else options)
        if not self.observers:
            return retry(self.policy, attempt, total, endpoint=self._name)
        return self._observed(retry(self.policy, attempt, total, self._retrying, self._name))

    async def _observed(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await call
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
        if self.observers:
            self._tell(AttemptStarted(self._name, number))
        try:
            addresses = self._fixed or self._known(began)
            if not addresses:
                addresses = await self._resolved(limit, source)
            sock, info = await dial_addresses(addresses, options, limit, source, self.policy)
            result = await finish(sock, info, limit, source)
        except Exception as exc:
            self._failed(exc, number, began)
            raise
        finally:
            gate.leave()
        self._connected += 1
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
            self._gate = _Gate(self._gate.size)
            self._lost_at = None
            self._lost_attempts = 0
        self._loop = loop
        for query in self._queries:
            # Kept for times of another clock.
            self._resolver.forget(query)

    # -- Addresses -----------------------------------------------------------------------------------------------

    def _known(self, now: float) -> list[AddressInfo] | None:
        """The addresses in the order to try, if the resolver knows them."""
        known = self._resolver.known
        if len(self._queries) == 1:
            found = known(self._queries[0], now)
            return found if not found or len(found) == 1 else self._ordered(found)
        every: list[list[AddressInfo] | BaseException] = [found for q in self._queries if (found := known(q, now))]
        return self._gathered(every) if len(every) == len(self._queries) else None

    async def _resolved(self, limit: float, source: Source) -> list[AddressInfo]:
        began = asyncio.get_running_loop().time()
        queries, resolve = self._queries, self._resolver.resolve
        if len(queries) == 1:
            addresses = self._ordered(await resolve(queries[0], limit, source))
            if not addresses:
                raise _no_address(queries[0])
        else:
            if limit < math.inf:
                # One name whose servers are silent must leave the others time to be dialed.
                limit, source = began + (limit - began) / 2, "attempt"
            lookups = [resolve(query, limit, source) for query in queries]
            addresses = self._gathered(await asyncio.gather(*lookups, return_exceptions=True))
        if self.observers:
            elapsed = asyncio.get_running_loop().time() - began
            self._tell(Resolved(self._name, tuple(info.sockaddr for info in addresses), elapsed))
        return addresses

    def _gathered(self, outcomes: list[list[AddressInfo] | BaseException]) -> list[AddressInfo]:
        """The addresses of all targets, in their order; a target without any only counts if no other has one."""
        addresses: list[AddressInfo] = []
        failures: list[NetworkError] = []
        for target, query, outcome in zip(self.endpoint.targets, self._queries, outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                found = self._ordered(outcome)
                addresses += [info._replace(target=target) for info in found]
                error = None if found else _no_address(query)
            elif (error := errors.translate(outcome, "resolve", (query.host, query.port))) is None:
                raise outcome
            if error is not None:
                failures.append(error.with_traceback(None))
        if not addresses:
            raise errors.decisive(failures, self.policy).replaced(errors=tuple(failures))
        return addresses

    def _ordered(self, addresses: list[AddressInfo]) -> list[AddressInfo]:
        return interleaved(addresses, lambda info: info.family, self.endpoint.interleave)

    # -- From a socket to what was asked for ---------------------------------------------------------------------

    async def _to_connection(self, sock: socket.socket, info: AddressInfo, limit: float, source: Source) -> Connection:
        loop = asyncio.get_running_loop()
        reader, protocol = streams(loop, self.limit, info.sockaddr)
        transport, _ = await self._to_transport(lambda: protocol, sock, info, limit, source)
        endpoint = self.endpoint if info.target is None else self.endpoint.replace(targets=(info.target,))
        connection = Connection(reader, Writer(transport, protocol, reader, loop), endpoint)
        if self.prepare is not None:
            await self._prepared(self.prepare, connection, info, limit, source)
        return connection

    async def _to_transport(
        self, factory: Callable[[], P], sock: socket.socket, info: AddressInfo, limit: float, source: Source
    ) -> tuple[asyncio.Transport, P]:
        """Hand the socket over to a transport of the loop; if that fails, it is closed."""
        loop = asyncio.get_running_loop()
        try:
            create = loop.create_connection if self.endpoint.path is None else loop.create_unix_connection
            if self._contexts is None:
                made = await create(factory, sock=sock)
            else:
                made = await create(factory, sock=sock, **self._tls_arguments(self._contexts, info, limit, source))
            if not self.endpoint.nodelay and self.endpoint.path is None:
                # After the hand-over, since both loops switch it on; a socket that died meanwhile says so itself.
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            return made
        except asyncio.CancelledError:
            sock.close()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # uvloop turns ECANCELED into CancelledError; nobody has cancelled this task.
        except Exception as exc:
            sock.close()
            error = errors.translate(exc, "tls" if self._contexts else "connect", info.sockaddr)
            if error is None or error is exc:
                raise
            if isinstance(error, ConnectTimeout):
                # The loop's handshake timer ran out: on whose limit it was set, only the clock tells.
                error.source = source if loop.time() >= limit - TICK else "attempt"
            raise error from exc
        raise errors.typed("ECANCELED", "tls" if self._contexts else "connect", info.sockaddr)

    def _tls_arguments(self, contexts: ContextCache, info: AddressInfo, limit: float, source: Source) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "ssl": contexts.get(),
            "server_hostname": self.endpoint.server_hostname(info.target),
        }
        left = limit - asyncio.get_running_loop().time()
        if left <= 0:
            raise ConnectTimeout(None, "no time left for TLS", phase="tls", source=source)
        tls = self.endpoint.tls or TLS()
        handshake = left if tls.handshake_timeout is None else min(tls.handshake_timeout, left)
        arguments["ssl_handshake_timeout"] = handshake if handshake < math.inf else None
        if tls.shutdown_timeout is not None:
            arguments["ssl_shutdown_timeout"] = tls.shutdown_timeout
        return arguments

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
        for query in self._queries:
            self._resolver.forget(query)
        loop = asyncio.get_running_loop()
        if isinstance(exc, NetworkError):
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
            except Exception as exc:  # noqa: BLE001  (whatever it is, it must not break a connect)
                context = {"message": f"observer {observer!r} raised", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)


class _Gate:
    """At most so many inside; others wait in line, and each slot goes straight to the first of them."""

    __slots__ = ("inside", "line", "size")

    def __init__(self, size: float) -> None:
        self.size = size
        self.inside = 0
        self.line: deque[asyncio.Future[Any]] = deque()

    @property
    def waiting(self) -> int:
        return len(self.line)

    def enter(self) -> bool:
        """Go in if there is room and nobody is waiting."""
        if self.inside >= self.size or self.line:
            return False
        self.inside += 1
        return True

    async def admitted(self, deadline: float) -> None:
        """Wait in line until a loop time. Raises `ConnectTimeout`, phase ``"wait"``."""
        place: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.line.append(place)
        try:
            if await wait_until(place, deadline):
                return
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result() is _ADMITTED:
                # The slot was on its way to us.
                self.leave()
            raise
        finally:
            if place in self.line:
                self.line.remove(place)
        raise ConnectTimeout(None, "too many connects under way", phase="wait", source="call")

    def leave(self) -> None:
        """Give the slot to the first in line who still waits."""
        while self.line:
            place = self.line.popleft()
            if not place.done():
                place.set_result(_ADMITTED)
                return
        self.inside -= 1


_ADMITTED = object()


def _query(endpoint: Endpoint, target: Target) -> Query:
    return Query(ascii_host(target.host), target.port, endpoint.address_family, endpoint.proto, endpoint.flags)


def _fixed(endpoint: Endpoint, queries: tuple[Query, ...]) -> list[AddressInfo] | None:
    """The one address of an endpoint that is no name."""
    if endpoint.path is not None:
        return [AddressInfo(socket.AF_UNIX, socket.SOCK_STREAM, 0, endpoint.path)]
    info = literal(queries[0]) if len(queries) == 1 else None
    return None if info is None else [info]


def _cancels() -> int:
    """How often the running task has been asked to end, less what was taken back by who asked."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _no_address(query: Query) -> NetworkError:
    return errors.typed("EAI_NODATA", "resolve", (query.host, query.port), strerror="the resolver found no address")


def _smaller(timeout: float, total: float | None) -> float:
    problems = Problems()
    seconds = check_duration(problems, "timeout", timeout)
    problems.raise_any()
    return seconds if total is None else min(seconds, total)
