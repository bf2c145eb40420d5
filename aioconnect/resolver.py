"""Names to addresses, by the system's getaddrinfo, in a way that cannot starve or hold up the process.

asyncio resolves in the loop's default executor: a handful of hung lookups there block every other user of it, and
``asyncio.run`` does not return before they end. uvloop's pool has four threads. Here each lookup has a thread of its
own, at most one for a name, and none that the interpreter waits for at exit. Callers that ask for the same name
share one lookup; each leaves by its own limit without ending it for the others.

Rejected: ``threading.Thread``, whose ``start`` waits until the thread runs, which blocks the loop for milliseconds
while another thread computes; a pool of workers, which is at a loss after ``fork``; ``ThreadPoolExecutor``, whose
threads are joined at exit.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import math
import socket
from typing import Any, NamedTuple, Protocol

from aioconnect import errors
from aioconnect.hosts import Target, ascii_host, literal_family
from aioconnect.limits import Source, wait_until
from aioconnect.validation import Problems, check_duration

__all__ = ("AddressInfo", "Lookup", "Query", "Resolver", "literal")


class AddressInfo(NamedTuple):
    """One address a name stands for, with what ``socket.socket`` needs for it (getaddrinfo(3))."""

    family: int
    type: int
    proto: int
    sockaddr: tuple[Any, ...] | str
    target: Target | None = None
    """Which target of an endpoint it was resolved for, if there are several."""


class Query(NamedTuple):
    """What is asked of a resolver."""

    host: str
    port: int
    family: int = socket.AF_UNSPEC
    proto: int = 0
    flags: int = 0


_Answers = dict[Query, tuple[float, list[AddressInfo]]]
"""Until which loop time an answer is kept, and the answer."""


def literal(query: Query) -> AddressInfo | None:
    """The address of a query for an IP address, which nobody has to be asked for; ``None`` if it is for a name.

    ``None`` too for an address with an interface, whose number only the system knows, and with flags.

    >>> literal(Query("127.0.0.1", 80)).sockaddr
    ('127.0.0.1', 80)
    """
    family = literal_family(query.host)
    if family is None or query.family not in (socket.AF_UNSPEC, family) or query.flags or "%" in query.host:
        return None
    host = socket.inet_ntop(family, socket.inet_pton(family, query.host))
    sockaddr = (host, query.port) if family == socket.AF_INET else (host, query.port, 0, 0)
    return AddressInfo(family, socket.SOCK_STREAM, query.proto or socket.IPPROTO_TCP, sockaddr)


class Lookup(Protocol):
    """What the dialer needs of a resolver; `Resolver` is one."""

    async def resolve(self, query: Query, limit: float = math.inf, source: Source = "call") -> list[AddressInfo]:
        """The addresses in the order to try them, by a loop time. Raises a `NetworkError`, phase ``"resolve"``."""
        ...

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        """The addresses, if they are known without waiting at the loop time ``now``."""
        ...

    def forget(self, query: Query) -> None:
        """None of the addresses could be reached: ask anew next time."""
        ...


class Resolver:
    """The system's resolver: ``/etc/hosts``, DNS and whatever else nsswitch.conf(5) names.

    ``timeout``: seconds for one lookup, within the attempt's limit. ``ttl``: seconds for which an answer is used
    again; getaddrinfo does not tell the records' own. What could not be reached is resolved anew at once. 0 keeps
    nothing. Belongs to one event loop at a time; a new one finds it empty.

    Raises `ConfigError` for a duration that is none.
    """

    __slots__ = ("_answers", "_flights", "_loop", "timeout", "ttl")

    def __init__(self, timeout: float | str = 5.0, ttl: float | str = 5.0) -> None:
        problems = Problems()
        self.timeout = check_duration(problems, "timeout", timeout)
        self.ttl = check_duration(problems, "ttl", ttl, zero=True)
        problems.raise_any()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: _Answers = {}
        self._flights: dict[Query, _Flight] = {}

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        """The addresses of an IP address, or of a name resolved less than ``ttl`` ago; else ``None``."""
        answer = self._answers.get(query)
        if answer is None or now >= answer[0]:
            return None
        return answer[1]

    def forget(self, query: Query) -> None:
        """Resolve this name anew next time; an IP address stays what it is."""
        if (answer := self._answers.get(query)) is not None and answer[0] < math.inf:
            del self._answers[query]

    async def resolve(self, query: Query, limit: float = math.inf, source: Source = "call") -> list[AddressInfo]:
        """The addresses of a name in the system's order (RFC 6724), by a loop time.

        Raises `NameResolutionError`, `ConnectTimeout`, `ThreadsExhausted`, or what the system ran short of, each
        with phase ``"resolve"`` and ``(host, port)`` as its address.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._answers, self._flights = loop, {}, {}
        now = loop.time()
        if (answer := self.known(query, now)) is not None:
            return answer
        network = getattr(loop, "network", socket)
        literal = literal_family(query.host) is not None
        if literal or network is not socket:
            outcome = _looked_up(network, query, socket.AI_NUMERICHOST if literal else 0)
            _keep(self._answers, query, outcome, math.inf if literal else now + self.ttl)
        else:
            if now + self.timeout < limit:
                limit, source = now + self.timeout, "attempt"
            outcome = await self._shared(loop, query, limit, source)
        if isinstance(outcome, BaseException):
            raise _typed(outcome, query, loop.time() - now)
        return outcome

    async def _shared(
        self, loop: asyncio.AbstractEventLoop, query: Query, limit: float, source: Source
    ) -> list[AddressInfo] | BaseException:
        """The outcome of the one lookup under way for this name, started now if there is none."""
        flight = self._flights.get(query)
        if flight is None:
            flight = self._flights[query] = _Flight(loop, query, self._flights, self._answers, self.ttl)
            try:
                _thread.start_new_thread(flight.fly, ())
            except (RuntimeError, MemoryError) as exc:
                del self._flights[query]
                return exc
        waiter: asyncio.Future[None] = loop.create_future()
        flight.waiters.append(waiter)
        began = loop.time()
        try:
            if not await wait_until(waiter, limit):
                raise errors.ConnectTimeout(
                    None,
                    "the name was not resolved in time",
                    phase="resolve",
                    address=(query.host, query.port),
                    elapsed=loop.time() - began,
                    source=source,
                )
        finally:
            flight.waiters.remove(waiter)
        return flight.outcome


class _Flight:
    """One lookup in a thread, and who waits for it."""

    __slots__ = ("answers", "flights", "loop", "outcome", "query", "ttl", "waiters")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        query: Query,
        flights: dict[Query, _Flight],
        answers: _Answers,
        ttl: float,
    ) -> None:
        self.loop = loop
        self.query = query
        self.flights = flights
        self.answers = answers
        self.ttl = ttl
        self.waiters: list[asyncio.Future[None]] = []
        self.outcome: list[AddressInfo] | BaseException = []

    def fly(self) -> None:
        outcome = _looked_up(socket, self.query)
        # The loop may have been closed meanwhile; nobody waits then.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.land, outcome)

    def land(self, outcome: list[AddressInfo] | BaseException) -> None:
        self.outcome = outcome
        self.flights.pop(self.query, None)
        # Here and not where it is waited for: what comes too late for everybody is there for their next attempt, and
        # a waiter that runs after another has found the answer useless does not bring it back.
        _keep(self.answers, self.query, outcome, self.loop.time() + self.ttl)
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


def _looked_up(network: Any, query: Query, flags: int = 0) -> list[AddressInfo] | BaseException:
    """The addresses, or the exception: a thread has nobody to raise to, and each waiter needs its own object."""
    try:
        found = network.getaddrinfo(
            ascii_host(query.host),
            query.port,
            family=query.family,
            type=socket.SOCK_STREAM,
            proto=query.proto,
            flags=query.flags | flags,
        )
    except Exception as exc:  # noqa: BLE001  (told to those who wait)
        return exc
    if not found:
        return socket.gaierror(socket.EAI_NONAME, "no address of that family")
    return [AddressInfo(family, kind, proto, sockaddr) for family, kind, proto, _, sockaddr in found]


def _keep(answers: _Answers, query: Query, outcome: list[AddressInfo] | BaseException, until: float) -> None:
    if not isinstance(outcome, BaseException):
        answers[query] = until, outcome


def _typed(outcome: BaseException, query: Query, elapsed: float) -> BaseException:
    """An error for one of those who wait, with the outcome they share as its cause; or a bug, as it is."""
    error = errors.translate(outcome.with_traceback(None), "resolve", (query.host, query.port), elapsed=elapsed)
    return outcome if error is None else error
