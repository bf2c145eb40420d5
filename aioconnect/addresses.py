"""The addresses of an endpoint, in the order to try them: found for all its targets, sorted by what is known of them.

The order is that of RFC 8305: the resolver's (RFC 6724), what has been learnt about the addresses (see `health`), then
the families in turns. Several targets come one after the other, as listed, shuffled, or by priority and weight where
SRV records tell them; what has failed lately comes last of all.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple, TypeVar

from aioconnect import errors
from aioconnect.chance import Uniform, shuffled
from aioconnect.endpoint import Endpoint
from aioconnect.errors import Address, ConnectTimeout, Decides, NetworkError
from aioconnect.health import AddressHealth
from aioconnect.hosts import Target, ascii_host
from aioconnect.limits import Source, bounded
from aioconnect.race import interleaved
from aioconnect.resolver import AddressInfo, Lookup, Query, Resolver, literal
from aioconnect.srv import Service, ServiceLookup, ServiceResolver, in_order

__all__ = ("AddressBook",)

T = TypeVar("T")

_Found = list[tuple[Query, list[AddressInfo]]]
"""What was asked, and the answer; only of names that have addresses."""

RESOLUTION_DELAY = 0.05
"""Seconds to wait for the other names once one has addresses: RFC 8305 section 3 has as much for the other family."""

_MOST_SERVICES = 16
"""Hosts of a service to look up for one dial, each in a thread: the first of their order, as many as anybody tries."""

_SOON = 0.25
"""Seconds within which silence says nothing yet: the Connection Attempt Delay of RFC 8305."""


class _Order(NamedTuple):
    """An order worked out, and what it holds for."""

    found: _Found
    changes: int
    until: float
    plain: list[AddressInfo]
    learnt: list[AddressInfo]


class _Partial(list[AddressInfo]):
    """Addresses of some names, and the errors of those that had none in time."""

    __slots__ = ("missing",)

    def __init__(self, addresses: Iterable[AddressInfo], missing: Sequence[NetworkError]) -> None:
        super().__init__(addresses)
        self.missing = missing


class AddressBook:
    """Finds the addresses of one endpoint, and keeps what is learnt about them.

    ``uniform(low, high)`` is the source of chance. Belongs to one event loop at a time, see `rebind`. May be shared by
    all connectors of the endpoint.
    """

    __slots__ = ("_endpoint", "_fixed", "_health", "_names", "_order", "_resolver", "_targets", "_uniform")

    def __init__(self, endpoint: Endpoint, resolver: Lookup | None = None, uniform: Uniform = random.uniform) -> None:
        self._endpoint = endpoint
        self._uniform = uniform
        self._health = AddressHealth(uniform)
        self._order: _Order | None = None
        self._resolver: Lookup = Resolver() if resolver is None else resolver
        queries = [_query(endpoint, target) for target in endpoint.targets]
        self._fixed = _fixed(endpoint, queries)
        self._names: _Listed | _OfService
        if endpoint.srv is None:
            self._names = _Listed(queries, uniform if endpoint.shuffle else None)
        else:
            services: ServiceLookup = getattr(resolver, "services", None) or ServiceResolver()
            self._names = _OfService(endpoint, endpoint.srv, services, uniform)
        several = len(endpoint.targets) > 1
        self._targets = dict(zip(queries, endpoint.targets, strict=True)) if several else {}

    # -- Where to connect to -------------------------------------------------------------------------------------

    def known(self, now: float) -> list[AddressInfo] | None:
        """The addresses in the order to try them, if that takes no lookup now; else ``None``."""
        if self._fixed is not None:
            return self._fixed
        names = self._names.known(now)
        found: _Found = []
        for query in names:
            answer = self._resolver.known(query, now)
            if not answer:
                return None
            if len(answer) == len(names) == 1:
                return answer
            found.append((query, answer))
        return self._in_order(found, now) if found else None

    async def find(self, limit: float, source: Source, policy: Decides | None = None) -> list[AddressInfo]:
        """The addresses in the order to try them, found before the loop time ``limit``.

        Where there are several names, the attempt goes without those that have no address by the time others have;
        the next one may know them. Raises a `NetworkError`, phase ``"resolve"``, when none has any; ``policy`` helps
        to choose the one that decides. Raises `ConfigError` for a service without the extra ``dns``.
        """
        names = await self._names.find(limit, source)
        missing: list[NetworkError] = []
        if len(names) == 1:
            found = [(names[0], await self._looked_up(names[0], limit, source))]
        else:
            found, missing = await self._together(names, limit, source)
        if not found:
            raise errors.decisive(missing, policy).replace(errors=tuple(missing))
        addresses = self._in_order(found, asyncio.get_running_loop().time())
        return _Partial(addresses, missing) if missing else addresses

    def forget(self) -> None:
        """None of the addresses could be reached: ask anew next time. What was learnt about them stays."""
        if self._fixed is None:
            for query in self._names.every:
                self._resolver.forget(query)
            self._names.forget()

    def rebind(self) -> None:
        """Another event loop: forget what was kept for times of the old one's clock."""
        self.forget()
        self._order = None
        self._health.reset()

    # -- What is learnt about them -------------------------------------------------------------------------------

    def won(self, info: AddressInfo, addresses: Sequence[AddressInfo], now: float) -> None:
        """A dial over these addresses, in this order, has ended with a connection to one of them.

        Those before it had been started by then, and had failed or not answered.
        """
        if len(addresses) > 1:
            beaten = () if info is addresses[0] else takewhile(lambda each: each is not info, addresses)
            self._health.won(info.sockaddr, [each.sockaddr for each in beaten], now)

    def failed(
        self, error: Exception, addresses: Sequence[AddressInfo], now: float, policy: Decides | None = None
    ) -> Exception:
        """An attempt over these addresses, in this order, has failed with that error, at whatever point.

        Gives back the error to tell of: names that had no address in time are among its ``errors``, and one of them
        decides if the ``policy`` would retry that and nothing else, for the next attempt may know its addresses.
        """
        if not isinstance(error, NetworkError):
            return error
        found = error.errors or (error,)
        if len(addresses) > 1:
            self._learn(error, found, [info.sockaddr for info in addresses], now)
        if not isinstance(addresses, _Partial):
            return error
        found += tuple(addresses.missing)
        return errors.decisive(found, policy).replace(errors=found)

    def dropped(self, place: Address, now: float) -> None:
        """A connection to this address was ended by the peer before it was of any use."""
        if self._fixed is None:
            self._health.failed(place, now, answered=True)

    def _learn(self, error: NetworkError, found: Iterable[NetworkError], places: Sequence[Address], now: float) -> None:
        for each in found:
            if each.address in places and _tells(each):
                self._health.failed(each.address, now, answered=each.phase != "connect")
        if error.phase in ("tls", "prepare") and error.address in places:
            # Somebody was there: those before it had been started by then.
            for place in places[: places.index(error.address)]:
                self._health.failed(place, now)

    # -- Resolving -----------------------------------------------------------------------------------------------

    async def _looked_up(self, query: Query, limit: float, source: Source) -> list[AddressInfo]:
        """The addresses of one name. A user's own resolver is bound to our limit, and its errors are typed."""
        place = query.host, query.port
        resolving = self._resolver.resolve(query, limit, source)
        ours = isinstance(self._resolver, Resolver)
        found = await (resolving if ours else _typed(resolving, limit, source, place))
        if not found:
            words = "the resolver found no address"
            raise errors.typed("EAI_NODATA", "resolve", place, strerror=words)
        return found

    async def _together(
        self, names: Sequence[Query], limit: float, source: Source
    ) -> tuple[_Found, list[NetworkError]]:
        """The addresses of the names that have some after `_enough`, and the errors of the others."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        lookups = [loop.create_task(self._looked_up(query, limit, source)) for query in names]
        late: list[bool] = []
        try:
            await _enough(lookups, limit)
        finally:
            waited = loop.time() - began
            for lookup in lookups:
                late.append(not lookup.done())
                # What it waits for goes on, for the next attempt; see `lookups`.
                lookup.cancel()
            if left := [lookup for lookup in lookups if not lookup.done()]:
                # Not `gather`: on CPython 3.11 it takes a turn of the loop even where there is nothing to wait for.
                await asyncio.wait(left)
        outcomes = [_outcome(lookup) for lookup in lookups]
        found: _Found = []
        missing: list[NetworkError] = []
        for query, was_late, outcome in zip(names, late, outcomes, strict=True):
            if isinstance(outcome, NetworkError):
                missing.append(outcome.with_traceback(None))
            elif not isinstance(outcome, BaseException):
                found.append((query, outcome))
            elif was_late:
                words = "the name was not resolved in time"
                place = query.host, query.port
                missing.append(
                    ConnectTimeout(None, words, phase="resolve", address=place, elapsed=waited, source="attempt")
                )
            else:
                raise outcome
        return found, missing

    # -- Putting them in order -----------------------------------------------------------------------------------

    def _in_order(self, found: _Found, now: float) -> list[AddressInfo]:
        """All addresses in the order to try them. Worked out anew only when something has changed."""
        health = self._health
        order = self._order
        if (
            order is None
            or order.found != found
            or order.changes != health.changes
            or now >= order.until
            or self._endpoint.shuffle
        ):
            order = self._order = self._worked_out(found, now)
        return order.plain if order.learnt is not order.plain and health.ignored() else order.learnt

    def _worked_out(self, found: _Found, now: float) -> _Order:
        health = self._health
        groups = [self._of_target(query, answer) for query, answer in found]
        plain = self._in_turns(groups)
        if not self._endpoint.shuffle:
            # Within a target, or the first one would not be gone back to once a reserve has won.
            groups = [health.preferred(group, now) for group in groups]
        learnt = health.demoted(self._in_turns(groups), now)
        until = health.steady_until(plain, now)
        # Copies: the lists are the resolver's, who may change them.
        kept = [(query, list(answer)) for query, answer in found]
        return _Order(kept, health.changes, until, plain, plain if learnt == plain else learnt)

    def _of_target(self, query: Query, answer: Sequence[AddressInfo]) -> list[AddressInfo]:
        target = self._targets.get(query)
        group = list(answer) if target is None else [info._replace(target=target) for info in answer]
        if self._endpoint.shuffle:
            families = list(dict.fromkeys(info.family for info in group))
            group = sorted(shuffled(group, self._uniform), key=lambda info: families.index(info.family))
        return group

    def _in_turns(self, groups: Iterable[Sequence[AddressInfo]]) -> list[AddressInfo]:
        first = self._endpoint.interleave
        return [info for group in groups for info in interleaved(group, lambda info: info.family, first)]


class _Listed:
    """The names of an endpoint's own targets."""

    __slots__ = ("_shuffle", "every")

    def __init__(self, every: list[Query], shuffle: Uniform | None) -> None:
        self.every = every
        self._shuffle = shuffle

    def known(self, now: float) -> list[Query]:  # noqa: ARG002  (they always are)
        return self.every if self._shuffle is None else shuffled(self.every, self._shuffle)

    async def find(self, limit: float, source: Source) -> list[Query]:  # noqa: ARG002  (there is nothing to wait for)
        return self.known(0.0)

    def forget(self) -> None:
        """They stay what they are."""


class _OfService:
    """The names that a service's SRV records tell, the most preferred of them first."""

    __slots__ = ("_endpoint", "_lookup", "_name", "_uniform", "every")

    def __init__(self, endpoint: Endpoint, name: str, lookup: ServiceLookup, uniform: Uniform) -> None:
        self._endpoint = endpoint
        self._name = name
        self._lookup = lookup
        self._uniform = uniform
        self.every: list[Query] = []

    def known(self, now: float) -> list[Query]:
        services = self._lookup.known(self._name, now)
        return [] if services is None else self._drawn(services)

    async def find(self, limit: float, source: Source) -> list[Query]:
        resolving = self._lookup.resolve(self._name, limit, source)
        ours = isinstance(self._lookup, ServiceResolver)
        services = await (resolving if ours else _typed(resolving, limit, source, self._name))
        if not services:
            words = "the resolver found no service"
            raise errors.typed("EAI_NODATA", "resolve", self._name, strerror=words)
        self.every = [_query(self._endpoint, service) for service in services]
        return self._drawn(services)

    def forget(self) -> None:
        self._lookup.forget(self._name)

    def _drawn(self, services: Iterable[Service]) -> list[Query]:
        return [_query(self._endpoint, service) for service in in_order(services, self._uniform)[:_MOST_SERVICES]]


async def _enough(lookups: Iterable[asyncio.Task[list[AddressInfo]]], limit: float) -> None:
    """Wait for lookups to end; once one has found addresses, only for the Resolution Delay, or half of what is left."""
    clock = asyncio.get_running_loop().time
    waiting = set(lookups)
    end: float | None = None
    while waiting:
        left = None if end is None else max(0.0, end - clock())
        done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return
        if end is None and any(not each.cancelled() and each.exception() is None for each in done):
            end = clock() + min(RESOLUTION_DELAY, (limit - clock()) / 2)


async def _typed(resolving: Awaitable[T], limit: float, source: Source, place: Address) -> T:
    """What somebody else's resolver finds, by our limit; its errors become ours."""
    try:
        return await bounded(resolving, limit, source, "resolve", place)
    except Exception as exc:
        error = errors.translate(exc, "resolve", place)
        if error is None or error is exc:
            raise
        raise error from exc


def _tells(error: NetworkError) -> bool:
    """Whether an error says something about its address; a shortage of this host does not, nor a very short limit."""
    if error.phase not in ("connect", "tls", "prepare") or error.kind == "local":
        return False
    ours = isinstance(error, ConnectTimeout) and error.source != "kernel"
    return not ours or error.elapsed is None or error.elapsed >= _SOON


def _query(endpoint: Endpoint, target: Target | Service) -> Query:
    return Query(ascii_host(target.host), target.port, endpoint.address_family, endpoint.proto, endpoint.flags)


def _fixed(endpoint: Endpoint, queries: Sequence[Query]) -> list[AddressInfo] | None:
    """The one address of an endpoint that is no name."""
    if endpoint.path is not None:
        return [AddressInfo(socket.AF_UNIX, socket.SOCK_STREAM, 0, endpoint.path)]
    info = literal(queries[0]) if len(queries) == 1 else None
    return None if info is None else [info]


def _outcome(lookup: asyncio.Task[list[AddressInfo]]) -> list[AddressInfo] | BaseException:
    """What has become of a task that is done."""
    if lookup.cancelled():
        return asyncio.CancelledError()
    return lookup.exception() or lookup.result()
