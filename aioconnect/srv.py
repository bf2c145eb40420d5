"""Services to hosts and ports, by the SRV records of DNS (RFC 2782).

The C library has no such call, so name servers are asked by way of dnspython, the extra ``dns``, imported by the
first lookup. It runs in a thread as the system's resolver does (see `lookups`), with its plain sockets: they are the
same under every event loop, a cancelled caller leaves without ending the lookup for others, and the lookup's own
time limit closes them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aioconnect import errors
from aioconnect.chance import Uniform, weighted
from aioconnect.errors import ConfigError, ConnectTimeout, NetworkError
from aioconnect.hosts import ascii_host, host_fault, literal_family, split_host_port
from aioconnect.limits import Source
from aioconnect.lookups import Lookups
from aioconnect.validation import Problems, check_duration, check_integer, check_sequence

if TYPE_CHECKING:
    import dns.resolver

__all__ = ("Service", "ServiceLookup", "ServiceResolver", "in_order")

_CODES = MappingProxyType(
    {
        "NXDOMAIN": "EAI_NONAME",
        "NoAnswer": "EAI_NODATA",
        "NoNameservers": "EAI_AGAIN",
        "NoResolverConfiguration": "EAI_AGAIN",
        "LifetimeTimeout": "ETIMEDOUT",
    }
)
"""dnspython's exceptions, by name since it is not there yet when this is read."""


class Service(NamedTuple):
    """Where a service is to be found, by one SRV record."""

    host: str
    port: int
    priority: int = 0
    weight: int = 0


def in_order(services: Iterable[Service], uniform: Uniform) -> list[Service]:
    """The services in the order to try them: by priority, and those of one priority drawn by their weights.

    ``uniform(low, high)`` is the source of chance.

    >>> in_order([Service("b", 1, priority=20), Service("a", 1, priority=10)], uniform=lambda low, high: low)
    [Service(host='a', port=1, priority=10, weight=0), Service(host='b', port=1, priority=20, weight=0)]
    """
    by_priority: dict[int, list[Service]] = {}
    for service in services:
        by_priority.setdefault(service.priority, []).append(service)
    return [
        service
        for priority in sorted(by_priority)
        for service in weighted(by_priority[priority], lambda each: each.weight, uniform)
    ]


class ServiceLookup(Protocol):
    """What an endpoint with ``srv`` needs of a resolver of services; `ServiceResolver` is one."""

    async def resolve(self, name: str, limit: float = math.inf, source: Source = "call") -> list[Service]:
        """The services of a name, found before the loop time ``limit``.

        Raises a `NetworkError`, phase ``"resolve"``.
        """
        ...

    def known(self, name: str, now: float) -> list[Service] | None:
        """The services, if they are known without waiting at the loop time ``now``."""
        ...

    def forget(self, name: str) -> None:
        """Drop a kept answer: called when none of its services could be reached."""
        ...


class ServiceResolver:
    """Finds services by their SRV records.

    ``timeout``: seconds for one lookup, all name servers and the change to TCP for a long answer included.
    ``nameservers``: whom to ask, as ``"10.0.0.53"`` or ``"10.0.0.53:5353"``, instead of those of resolv.conf(5), whose
    search list counts too where that file does. An answer is used again for as long as its records say (TTL). Belongs
    to one event loop at a time; a new one finds it empty.

    Raises `ConfigError` for a duration or a name server that cannot work.

        services = ServiceResolver(nameservers=["10.0.0.53"])
        connector = Connector("srv+tcp://_redis._tcp.example.org", resolver=Resolver(services=services))
    """

    __slots__ = ("_lookups", "nameservers", "timeout")

    def __init__(self, timeout: float | str = 5.0, nameservers: str | Iterable[str] = ()) -> None:
        problems = Problems()
        self.timeout = check_duration(problems, "timeout", timeout)
        self.nameservers = _nameservers(problems, nameservers)
        problems.raise_any()
        self._lookups: Lookups[str, list[Service]] = Lookups()

    def known(self, name: str, now: float) -> list[Service] | None:
        """The services of a name whose records are not out of date; else ``None``."""
        return self._lookups.known(name, now)

    def forget(self, name: str) -> None:
        """Ask for these records anew next time."""
        self._lookups.forget(name)

    async def resolve(self, name: str, limit: float = math.inf, source: Source = "call") -> list[Service]:
        """The services of a name such as ``_redis._tcp.example.org``, found before the loop time ``limit``.

        Raises, each with phase ``"resolve"`` and the name as its address: `NameNotFound` for a name without records
        (NXDOMAIN, or an empty answer) and for a service that its domain says not to have (RFC 2782: a target of
        ``"."``); `NameServerUnavailable` when no server has an answer (SERVFAIL, REFUSED, nobody there);
        `ConnectTimeout`; `ThreadsExhausted`. Raises `ConfigError` without the extra ``dns``.
        """
        loop = asyncio.get_running_loop()
        self._lookups.bind(loop)
        now = loop.time()
        if (answer := self._lookups.known(name, now)) is not None:
            return answer
        if now + self.timeout < limit:
            limit, source = now + self.timeout, "attempt"
        outcome = await self._lookups.shared(name, self._look_up, limit, source, name)
        if isinstance(outcome, ConfigError):
            raise ConfigError(*outcome.problems) from outcome
        if isinstance(outcome, NetworkError):
            raise outcome.replace(elapsed=loop.time() - now) from outcome.__cause__
        if isinstance(outcome, BaseException):
            raise errors.translate(outcome, "resolve", name) or outcome
        return outcome

    def _look_up(self, name: str) -> tuple[list[Service], float]:
        """Ask, in a thread: the services, and for how many seconds they are good."""
        try:
            import dns.exception  # noqa: PLC0415
            import dns.nameserver  # noqa: PLC0415
            import dns.resolver  # noqa: PLC0415
        except ImportError as exc:
            words = "needs dnspython; install the extra dns: pip install 'aioconnect[dns]'"
            raise ConfigError(f"srv={name}: {words}") from exc
        try:
            # A new one for each lookup, so that a changed resolv.conf counts.
            resolver = dns.resolver.Resolver(configure=not self.nameservers)
            if self.nameservers:
                resolver.nameservers = [dns.nameserver.Do53Nameserver(*server) for server in self.nameservers]
            answer = resolver.resolve(ascii_host(name), "SRV", lifetime=self.timeout, search=not self.nameservers)
        except dns.exception.DNSException as exc:
            raise _failure(exc, name) from exc.with_traceback(None)
        return _services(answer, name), answer.chaining_result.minimum_ttl


def _nameservers(problems: Problems, value: object) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for given in check_sequence(problems, "nameservers", value):
        text = given if isinstance(given, str) else ""
        pair = (text, "53") if literal_family(text) is not None else split_host_port(text)
        if isinstance(pair, str) or literal_family(pair[0]) is None:
            problems.add("nameservers", given, "must be an IP address, with or without a port, as in 10.0.0.53:5353")
        else:
            found.append((pair[0], check_integer(problems, "nameservers.port", pair[1], 1, 65535)))
    return tuple(found)


def _services(answer: dns.resolver.Answer, name: str) -> list[Service]:
    """The services that the records name, without those whose host is invalid or whose port is 0."""
    found: list[Service] = []
    for record in answer:
        # The final dot says that the name is complete; the system would not find one with it in /etc/hosts.
        host = record.target.to_text(omit_final_dot=True)
        if host_fault(host) is None and record.port:
            found.append(Service(host, record.port, record.priority, record.weight))
    if not found:
        words = "the records name no host: the domain does not have this service"
        raise errors.typed("EAI_NODATA", "resolve", name, strerror=words)
    return found


def _failure(exc: Exception, name: str) -> NetworkError:
    code = _CODES.get(type(exc).__name__, "EAI_FAIL")
    if code == "ETIMEDOUT":
        words = "the name servers did not answer in time"
        return ConnectTimeout(None, words, phase="resolve", address=name, source="attempt")
    return errors.typed(code, "resolve", name, strerror=str(exc))
