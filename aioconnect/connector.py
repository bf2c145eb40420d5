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
from types import TracebackType
from typing import Any, TypeVar

from tenacity import RetryCallState

from aioconnect import errors, logs
from aioconnect.asking import Asking
from aioconnect.breaker import Circuit
from aioconnect.connection import DEFAULT_LIMIT, Connection, Ending, Writer, streams
from aioconnect.dialer import Dial, DialOptions, begin_dial, dial_options, plain
from aioconnect.endpoint import Endpoint
from aioconnect.errnoset import ErrnoSet
from aioconnect.errors import Address, ConfigError, NetworkError
from aioconnect.events import (
    AttemptFailed,
    AttemptStarted,
    Cancelled,
    CircuitClosed,
    CircuitOpened,
    Connected,
    Event,
    GaveUp,
    Observer,
    Resolved,
    Retrying,
    tell,
)
from aioconnect.limits import Source, bounded
from aioconnect.policy import Policy
from aioconnect.record import ConnectorStats, Record, Unhurried
from aioconnect.resolver import AddressInfo, Lookup
from aioconnect.retrying import Common, Try, attempt_limit, retry
from aioconnect.validation import Problems, check_duration, check_integer, seconds

__all__ = ("Connecting", "Connector", "Prepare")

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.BaseProtocol)

Prepare = Callable[[Connection], Awaitable[None]]
"""What makes a new connection ready: a greeting, a login, a ping. Runs inside the attempt, under its limit."""

_LEASE = 30.0
"""Seconds for which a probe is one call's where an attempt has no limit of its own: longer than any should take."""

_GRACE = 1.0
"""Seconds by which a lease outlasts the limit of its attempt: it is for probes that get lost, not that fail."""

Stop = Callable[[RetryCallState], bool]

_Finish = Callable[[asyncio.AbstractEventLoop, socket.socket, AddressInfo, float, Source], Awaitable[T]]
"""What an attempt makes of a connected socket, by a loop time."""


class Connecting(Asking[T]):
    """A connection being asked for: ``await`` it, give it to a task, or ``async with`` it to have it closed at the end.

    Nothing happens before. It is for one connection, as a coroutine is for one result.
    """

    __slots__ = ("_held", "_start", "_total", "coroutine")

    _held: T

    def __init__(self, start: Callable[[float | None], Coroutine[Any, Any, T]], total: float | None) -> None:
        self._start: Callable[[float | None], Coroutine[Any, Any, T]] | None = start
        self._total = total
        self.coroutine: Coroutine[Any, Any, T] | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begin().__await__()

    def _begin(self) -> Coroutine[Any, Any, T]:
        start, self._start = self._start, None
        if start is None:
            raise RuntimeError("this was awaited before; call connect() for each connection")
        return start(self._total)

    async def __aenter__(self) -> T:
        self._held = await self
        return self._held

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held: Any = self._held
        await held.__aexit__(cls, exc, traceback)


class Connector:
    """Connects to one endpoint under one policy. Owns no task and no file descriptor, and needs no closing.

    ``endpoint``: an `Endpoint` or a URL. ``prepare``: awaited with every new connection, inside the attempt; its
    `OSError`, `EOFError` and `NotReady` make a failed attempt, anything else is raised as itself. ``max_connecting``:
    attempts at once, others wait their turn. ``stable_after``: seconds; a connection that the peer drops within them,
    before a byte of it came, counts as a failed dial. ``observers``: called with `events`. ``resolver``: a `Resolver`,
    or anything with its three methods. ``limit``: bytes a reader buffers, as in ``asyncio.open_connection``.

    ``share``: another connector, to share what is learnt: circuit, budget, addresses and statistics if it is of the
    same endpoint, else its retry budget alone. How many failures open the circuit is for the first one's policy to say.

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
        stable_after: float | str = 1.0,
        observers: Iterable[Observer] = (),
        resolver: Lookup | None = None,
        limit: int = DEFAULT_LIMIT,
        share: Connector | None = None,
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
        self.stable_after = check_duration(problems, "stable_after", stable_after, zero=True)
        shared = self._shared(problems, share, max_connecting=max_connecting, resolver=resolver)
        problems.raise_any()
        till = None if share is None else share.record.till
        self.record: Record = shared or Record(self.endpoint, policy, resolver, max_connecting, till)
        """What is learnt, by all connectors that share it."""
        self._common: Common = self.record
        self._name = self.record.name
        self._options = dial_options(self.endpoint)

    def _shared(self, problems: Problems, share: object, **own: object) -> Record | None:
        """The record of another connector, if it is of the same endpoint."""
        if share is None:
            return None
        if not isinstance(share, Connector):
            problems.add("share", share, "must be a Connector")
            return None
        if share.endpoint != self.endpoint:
            return None
        for name, value in own.items():
            if value is not None:
                problems.add(name, value, "must not be given together with share, which has its own")
        return share.record

    def connect(self, timeout: float | str | None = None, *, wait: bool | None = None) -> Connecting[Connection]:
        """A prepared `Connection`: ``await connector.connect()`` or ``async with connector.connect() as conn``.

        ``timeout``: seconds for this call; the smaller of it and the policy's wins. ``wait``: whether to wait where
        the circuit is open, in place of the breaker's ``when_open``. Raises a `ConnectError` that tells of every
        attempt, `CircuitOpen` if it was never let in, `ConfigError` for files that cannot be loaded, and what
        ``prepare`` raises that is no error of a connection.
        """
        start = self._connected if wait is None else functools.partial(self._connected, wait=wait)
        return Connecting(start, self._total(timeout))

    async def create_connection(
        self, protocol_factory: Callable[[], P], timeout: float | str | None = None
    ) -> tuple[asyncio.Transport, P]:
        """A transport and a protocol, as ``loop.create_connection``, with retries and typed errors.

        There is no ``prepare``: that is for streams. Raises as `connect` does.
        """

        async def finish(
            loop: asyncio.AbstractEventLoop, sock: socket.socket, info: AddressInfo, limit: float, source: Source
        ) -> tuple[asyncio.Transport, P]:
            return await self.record.hand_over.made_by(loop, protocol_factory, sock, info, limit, source)

        return await self._call(functools.partial(self._attempt, finish, self._options), self._total(timeout))

    async def dial(self, timeout: float | str | None = None) -> socket.socket:
        """A connected, non-blocking socket, for any library's ``sock=``. There is no TLS and no ``prepare``.

        Raises as `connect` does, and `ConfigError` for a TLS endpoint: only its streams can speak TLS.
        """
        if self.endpoint.tls is not None:
            raise ConfigError(f"endpoint={self._name}: must be without TLS to be dialed; connect to it instead")
        options = dial_options(self.endpoint, for_loop=False)

        async def finish(_loop: object, sock: socket.socket, *_: object) -> socket.socket:
            return plain(sock)

        return await self._call(functools.partial(self._attempt, finish, options), self._total(timeout))

    def unlimited(self, *, also: ErrnoSet | None = None, stop: Stop | None = None) -> Connector:
        """A connector that shares all with this one and has the policy's schedule, but none of its limits.

        It goes on until it is connected, the error is permanent, or ``stop``, a tenacity stop, says so; ``also`` is
        retried besides. For whoever keeps connections, as `Pool` and `Link` do.
        """
        retry_on = self.policy.retry_on if also is None else self.policy.retry_on | also
        made = Connector(
            self.endpoint,
            self.policy.replace(retry_on=retry_on, timeout=None, max_attempts=None, stop=stop),
            self.prepare,
            stable_after=self.stable_after,
            observers=self.observers,
            limit=self.limit,
            share=self,
        )
        made._common = Unhurried(self.record)
        return made

    @property
    def circuit(self) -> Circuit:
        """The circuit breaker's state, for this endpoint."""
        return self.record.circuit

    @property
    def losses(self) -> int:
        """How many connections were lost to the network so far; one more casts doubt on those that seem to live."""
        return self.record.losses

    def retry_now(self) -> None:
        """End every pause: the next probe of an open circuit is due, as after news that the server is back.

        It does so for all connectors that share what this one has learnt.
        """
        self.record.retry_now()

    def stats(self) -> ConnectorStats:
        """What happened so far."""
        return self.record.stats()

    def __repr__(self) -> str:
        return f"<Connector {self._name} attempts={self.record.attempts} connected={self.record.connected}>"

    # -- One call ------------------------------------------------------------------------------------------------

    def _connected(self, total: float | None, *, wait: bool | None = None) -> Coroutine[Any, Any, Connection]:
        return self._call(self._streams, total, wait=wait)

    def _streams(self, began: float, deadline: float, number: int) -> Coroutine[Any, Any, Connection]:
        """The attempt of `connect`. A method, for a partial made for each call takes three times as long."""
        return self._attempt(self._to_connection, self._options, began, deadline, number)

    def _call(self, attempt: Try[T], total: float | None, *, wait: bool | None = None) -> Coroutine[Any, Any, T]:
        record, loop = self.record, asyncio.get_running_loop()
        if loop is not record.loop:
            record.bind(loop)
        if record.circuit.since is not None and not self._waits(wait=wait):
            self._refuse_if_open(loop.time())
        if record.till is not None:
            record.till.deposit()
        if not self.observers:
            return retry(self.policy, attempt, total, common=self._common, clock=loop.time)
        return self._observed(attempt, total)

    def _waits(self, *, wait: bool | None) -> bool:
        breaker = self.policy.breaker
        return wait if wait is not None else breaker is None or breaker.when_open == "wait"

    def _refuse_if_open(self, now: float) -> None:
        """Raise `CircuitOpen`, unless a probe is due that nobody waits for."""
        circuit = self.record.circuit
        if now >= circuit.probe_due and not self.record.gate.waiting:
            return
        refusal = circuit.refusal(now).replace(endpoint=self._name, elapsed=0.0, stop_reason="circuit")
        self._tell(GaveUp(self._name, refusal))
        try:
            raise refusal from circuit.last_error
        finally:
            # A frame that holds the exception whose traceback holds the frame would wait for the collector.
            del refusal

    def _total(self, timeout: float | str | None) -> float | None:
        """The time limit of one call, in seconds: the smaller of its own and the policy's."""
        total = self.policy.timeout
        if timeout is None:
            return total
        given = seconds("timeout", timeout)
        return given if total is None else min(given, total)

    async def _observed(self, attempt: Try[T], total: float | None) -> T:
        try:
            return await retry(self.policy, attempt, total, self._retrying, self._common)
        except asyncio.CancelledError:
            self._tell(Cancelled(self._name))
            raise
        except Exception as exc:
            self._tell(GaveUp(self._name, exc))
            raise

    async def _attempt(self, finish: _Finish[T], options: DialOptions, began: float, deadline: float, number: int) -> T:
        record = self.record
        # The one it is bound to. To ask for the running one is a system call on CPython 3.11.
        loop = record.loop or asyncio.get_running_loop()
        gate = record.gate
        lease = None
        if not gate.enter():
            lease = await self._admitted(began, deadline)
            began = loop.time()
        limit, source = attempt_limit(self.policy, began, deadline)
        record.attempts += 1
        addresses: list[AddressInfo] = []
        error: Exception | None = None
        try:
            if self.observers:
                self._tell(AttemptStarted(self._name, number))
            addresses = record.book.known(began) or await self._resolved(limit, source)
            dialed = begin_dial(loop, addresses, options)
            sock, info = await dialed.won(limit, source, self.policy) if isinstance(dialed, Dial) else dialed
            result = await finish(loop, sock, info, limit, source)
            record.connected += 1
            if len(addresses) > 1:
                record.book.won(info, addresses, loop.time())
            if not record.circuit.healthy:
                self._recovered(loop.time())
        except Exception as exc:
            now = loop.time()
            error = record.book.failed(exc, addresses, now, self.policy)
            self._failed(error, number, began, now, lease)
            if error is exc:
                raise
            raise error from exc
        finally:
            error = None  # its traceback holds this frame
            gate.leave(lease)
        if self.observers:
            self._tell(Connected(self._name, number, info.sockaddr, loop.time() - began))
        return result

    async def _admitted(self, began: float, deadline: float) -> object | None:
        """Wait at the gate. A ``began`` yet to come is when this call goes if it is alone there."""
        now = asyncio.get_running_loop().time()
        lease = _LEASE if self.policy.attempt_timeout is None else self.policy.attempt_timeout + _GRACE
        return await self.record.gate.admitted(deadline, lease, began if began > now else math.inf)

    async def _resolved(self, limit: float, source: Source) -> list[AddressInfo]:
        now = asyncio.get_running_loop().time
        began = now()
        addresses = await self.record.book.find(limit, source, self.policy)
        if self.observers:
            self._tell(Resolved(self._name, tuple(info.sockaddr for info in addresses), now() - began))
        return addresses

    # -- From a socket to what was asked for ---------------------------------------------------------------------

    async def _to_connection(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, info: AddressInfo, limit: float, source: Source
    ) -> Connection:
        reader, protocol = streams(loop, self.limit, info.sockaddr)
        transport, _ = await self.record.hand_over.transport(loop, protocol, sock, info, limit, source)
        endpoint = self.endpoint if info.target is None else self.endpoint.replace(targets=(info.target,))
        writer = Writer(transport, protocol, reader, loop)
        connection = Connection(reader, writer, endpoint)
        if self.prepare is not None:
            await self._prepared(self.prepare, connection, info, limit, source)
        writer.kept_by(self, loop.time())
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

    def _failed(self, exc: Exception, number: int, began: float, now: float, lease: object | None) -> None:
        opened = False
        if isinstance(exc, NetworkError):
            if exc.elapsed is None:
                exc.elapsed = now - began
            opened = self.record.failed(exc, now, self.policy, lease)
        if self.observers:
            self._tell(AttemptFailed(self._name, number, exc, now - began))
        if opened:
            self._opened(now)

    def _recovered(self, now: float) -> None:
        since = self.record.circuit.since
        if self.record.succeeded(now) and since is not None and self.observers:
            self._tell(CircuitClosed(self._name, now - since))

    def ended(self, ending: Ending, /) -> None:
        """One of the connections was ended by the peer or the network; called by the connection."""
        loop = asyncio.get_running_loop()
        if loop is not self.record.loop:
            return
        try:
            opened = self.record.ended(ending, loop.time(), self.policy, self.stable_after)
        except Exception as exc:  # noqa: BLE001  (out of the policy's wait; the streams have yet to hear of the loss)
            loop.call_exception_handler({"message": f"{self.policy.wait!r} raised", "exception": exc})
            return
        if opened:
            self._opened(loop.time())

    def _opened(self, now: float) -> None:
        circuit = self.record.circuit
        retry_in = (circuit.retry_at or now) - now
        if self.record.connected:
            # What has never worked is for the caller to tell.
            logs.opened(self._name, circuit.failures, retry_in, circuit.last_error)
        if self.observers:
            self._tell(CircuitOpened(self._name, circuit.failures, retry_in, circuit.last_error))

    def _retrying(self, error: NetworkError | None, pause: float, attempts: int) -> None:
        self._tell(Retrying(self._name, attempts, error, pause))

    def _tell(self, event: Event) -> None:
        tell(self.observers, event)


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
