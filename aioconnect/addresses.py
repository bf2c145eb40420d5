"""The addresses of an endpoint, in the order to try them: resolved, gathered from all targets, families interleaved."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Sequence

from aioconnect import errors
from aioconnect.endpoint import Endpoint
from aioconnect.errors import Decides, NetworkError
from aioconnect.hosts import Target, ascii_host
from aioconnect.limits import Source, bounded
from aioconnect.race import interleaved
from aioconnect.resolver import AddressInfo, Lookup, Query, Resolver, literal

__all__ = ("AddressBook",)


class AddressBook:
    """Finds the addresses of one endpoint.

    ``policy`` helps to choose the error that decides when no target has an address.
    """

    __slots__ = ("_endpoint", "_fixed", "_policy", "_queries", "_resolver")

    def __init__(self, endpoint: Endpoint, resolver: Lookup | None, policy: Decides) -> None:
        self._endpoint = endpoint
        self._policy = policy
        self._resolver: Lookup = Resolver() if resolver is None else resolver
        self._queries = tuple(_query(endpoint, target) for target in endpoint.targets)
        self._fixed = _fixed(endpoint, self._queries)

    def known(self, now: float) -> list[AddressInfo] | None:
        """The addresses in the order to try, if they are known without waiting at that loop time."""
        if self._fixed is not None:
            return self._fixed
        known = self._resolver.known
        if len(self._queries) == 1:
            found = known(self._queries[0], now)
            return found if not found or len(found) == 1 else self._ordered(found)
        every = [self._ordered(found) for query in self._queries if (found := known(query, now))]
        return self._gathered(every) if len(every) == len(self._queries) else None

    async def find(self, limit: float, source: Source) -> list[AddressInfo]:
        """The addresses in the order to try, by a loop time. Raises a `NetworkError`, phase ``"resolve"``."""
        if len(self._queries) == 1:
            return await self._looked_up(self._queries[0], limit, source)
        if limit < math.inf:
            # One name whose servers are silent must leave the others time to be dialed.
            now = asyncio.get_running_loop().time()
            limit, source = now + (limit - now) / 2, "attempt"
        lookups = [self._looked_up(query, limit, source) for query in self._queries]
        return self._gathered(await asyncio.gather(*lookups, return_exceptions=True))

    def forget(self) -> None:
        """None of the addresses could be reached: ask anew next time."""
        for query in self._queries:
            self._resolver.forget(query)

    async def _looked_up(self, query: Query, limit: float, source: Source) -> list[AddressInfo]:
        """The addresses of one name. A resolver that is not ours gets our limit, and its errors are typed."""
        place = query.host, query.port
        resolving = self._resolver.resolve(query, limit, source)
        try:
            ours = isinstance(self._resolver, Resolver)
            found = await (resolving if ours else bounded(resolving, limit, source, "resolve", place))
        except Exception as exc:
            error = errors.translate(exc, "resolve", place)
            if error is None or error is exc:
                raise
            raise error from exc
        if not found:
            words = "the resolver found no address"
            raise errors.typed("EAI_NODATA", "resolve", place, strerror=words)
        return self._ordered(found)

    def _gathered(self, outcomes: Sequence[list[AddressInfo] | BaseException]) -> list[AddressInfo]:
        """The addresses of all targets, in their order; what fails for one only counts if no other has any."""
        addresses: list[AddressInfo] = []
        failures: list[NetworkError] = []
        for target, outcome in zip(self._endpoint.targets, outcomes, strict=True):
            if isinstance(outcome, NetworkError):
                failures.append(outcome.with_traceback(None))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                addresses += [info._replace(target=target) for info in outcome]
        if not addresses:
            raise errors.decisive(failures, self._policy).replace(errors=tuple(failures))
        return addresses

    def _ordered(self, addresses: list[AddressInfo]) -> list[AddressInfo]:
        return interleaved(addresses, lambda info: info.family, self._endpoint.interleave)


def _query(endpoint: Endpoint, target: Target) -> Query:
    return Query(ascii_host(target.host), target.port, endpoint.address_family, endpoint.proto, endpoint.flags)


def _fixed(endpoint: Endpoint, queries: tuple[Query, ...]) -> list[AddressInfo] | None:
    """The one address of an endpoint that is no name."""
    if endpoint.path is not None:
        return [AddressInfo(socket.AF_UNIX, socket.SOCK_STREAM, 0, endpoint.path)]
    info = literal(queries[0]) if len(queries) == 1 else None
    return None if info is None else [info]
