"""Names to addresses, by the system's getaddrinfo, in a way that cannot starve or hold up the process.

See `lookups` for how that is done.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
from typing import Any, NamedTuple, Protocol

from aioconnect import errors
from aioconnect.hosts import Target, ascii_host, literal_family
from aioconnect.limits import Source
from aioconnect.lookups import Lookups
from aioconnect.srv import ServiceLookup
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


def literal(query: Query) -> AddressInfo | None:
    """The address, if the host of the query is an IP address, so that no lookup is needed; ``None`` for a name.

    Also ``None`` for an address with an interface (``fe80::1%eth0``), whose number only the system knows, and for a
    query with flags.

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
        """The addresses in the order to try them, found before the loop time ``limit``.

        Raises a `NetworkError`, phase ``"resolve"``.
        """
        ...

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        """The addresses, if they are known without waiting at the loop time ``now``."""
        ...

    def forget(self, query: Query) -> None:
        """Drop a kept answer: called when none of its addresses could be reached."""
        ...


class Resolver:
    """The system's resolver: ``/etc/hosts``, DNS and whatever else nsswitch.conf(5) names.

    ``timeout``: seconds for one lookup, within the attempt's limit. ``ttl``: seconds for which an answer is used
    again, since getaddrinfo does not tell the TTL of the records; 0 keeps nothing. A name whose addresses could not be
    reached is resolved anew. ``services``: finds the SRV records of an endpoint with ``srv``; by default an
    `srv.ServiceResolver`. Belongs to one event loop at a time; answers are not kept when the loop changes.

    Raises `ConfigError` for settings that cannot work.

        connector = Connector("tcp://db.internal:5432", resolver=Resolver(timeout=2, ttl=30))
    """

    __slots__ = ("_lookups", "services", "timeout", "ttl")

    def __init__(
        self, timeout: float | str = 5.0, ttl: float | str = 5.0, services: ServiceLookup | None = None
    ) -> None:
        problems = Problems()
        self.services = services
        if services is not None and not all(hasattr(services, name) for name in ("resolve", "known", "forget")):
            problems.add("services", services, "must have the methods resolve, known and forget")
        self.timeout = check_duration(problems, "timeout", timeout)
        self.ttl = check_duration(problems, "ttl", ttl, zero=True)
        problems.raise_any()
        self._lookups: Lookups[Query, list[AddressInfo]] = Lookups()

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        """The addresses of an IP address, or of a name resolved less than ``ttl`` ago; else ``None``."""
        return self._lookups.known(query, now)

    def forget(self, query: Query) -> None:
        """Resolve this name anew next time; an IP address stays what it is."""
        self._lookups.forget(query)

    async def resolve(self, query: Query, limit: float = math.inf, source: Source = "call") -> list[AddressInfo]:
        """The addresses of a name in the system's order (RFC 6724), found before the loop time ``limit``.

        Raises `NameResolutionError`, `ConnectTimeout`, `ThreadsExhausted`, or what the system ran short of, each
        with phase ``"resolve"`` and ``(host, port)`` as its address.
        """
        loop = asyncio.get_running_loop()
        self._lookups.bind(loop)
        now = loop.time()
        if (answer := self._lookups.known(query, now)) is not None:
            return answer
        network: Any = getattr(loop, "network", socket)
        if literal_family(query.host) is not None:
            outcome = self._at_once(network, query, math.inf, socket.AI_NUMERICHOST)
        elif network is not socket and not network.lookup_delay(query.host):
            outcome = self._at_once(network, query, now + self.ttl)
        else:
            if now + self.timeout < limit:
                limit, source = now + self.timeout, "attempt"
            outcome = await self._slowly(network, query, limit, source)
        if isinstance(outcome, BaseException):
            raise _typed(outcome, query, loop.time() - now)
        return outcome

    async def _slowly(
        self, network: Any, query: Query, limit: float, source: Source
    ) -> list[AddressInfo] | BaseException:
        """The outcome of a lookup that takes time: real time in a thread, or that of a simulated network."""

        def look_up(query: Query) -> tuple[list[AddressInfo], float]:
            return _found(network, query), self.ttl

        place = query.host, query.port
        if network is socket:
            return await self._lookups.shared(query, look_up, limit, source, place)
        start = functools.partial(network.start_lookup, query.host)
        return await self._lookups.shared(query, look_up, limit, source, place, start)

    def _at_once(self, network: Any, query: Query, until: float, flags: int = 0) -> list[AddressInfo] | BaseException:
        """The outcome, addresses or an exception, of a lookup that does not block."""
        try:
            found = _found(network, query, flags)
        except Exception as exc:  # noqa: BLE001  (typed by the caller, as those from a thread are)
            return exc
        self._lookups.keep(query, found, until)
        return found


def _found(network: Any, query: Query, flags: int = 0) -> list[AddressInfo]:
    found = network.getaddrinfo(
        ascii_host(query.host),
        query.port,
        family=query.family,
        type=socket.SOCK_STREAM,
        proto=query.proto,
        flags=query.flags | flags,
    )
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address of that family")
    return [AddressInfo(family, kind, proto, sockaddr) for family, kind, proto, _, sockaddr in found]


def _typed(outcome: BaseException, query: Query, elapsed: float) -> BaseException:
    """The typed error for one caller, caused by the outcome that all callers share; a bug stays what it is."""
    error = errors.translate(outcome.with_traceback(None), "resolve", (query.host, query.port), elapsed=elapsed)
    return outcome if error is None else error
