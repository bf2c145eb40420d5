"""The endpoints of a service by name: one configuration, one life cycle."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, Unpack

from aioconnect import config
from aioconnect.config import Configuration
from aioconnect.config_making import Configured
from aioconnect.config_settings import Functions
from aioconnect.connector import Connector
from aioconnect.errnoset import STARTING
from aioconnect.errors import ConfigError, PoolTimeout
from aioconnect.link import Link
from aioconnect.link_states import LinkState
from aioconnect.pool import Pool, PoolStats
from aioconnect.record import ConnectorStats
from aioconnect.validation import did_you_mean, seconds, shown

__all__ = ("ConnectionManager", "EndpointStats")


P = TypeVar("P", Pool, Link)


class EndpointStats(NamedTuple):
    """What one endpoint of a manager has done; None for what was not made."""

    connector: ConnectorStats
    pool: PoolStats | None
    link: LinkState | None


class ConnectionManager:
    """Endpoints by name. Connectors need no closing; the pools and links that it makes end with its block.

    Made by `from_toml`, `from_mapping` or `from_env`, which check everything and open nothing; what such a
    configuration says is told in the module `config`. Functions are given as arguments, each for all endpoints or by
    name: ``prepare={"cache": hello}``.

    May be made before there is an event loop. Its block belongs to one loop and one process.

        async with ConnectionManager.from_toml("service.toml", prepare={"cache": hello}) as net:
            await net.ready("db", timeout=30)
            async with net.pool("cache").acquire() as conn:
                ...
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._endpoints = configuration.endpoints
        self._pools: dict[str, Pool] = {}
        self._links: dict[str, Link] = {}
        self._stack = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._closed: asyncio.Future[None]
        self._deadline = math.inf
        self._hurry: asyncio.Timeout | None = None
        """The limit of the closing under way; it fires only for a later call with less time."""
        self._is_closed = False

    # -- Making --------------------------------------------------------------------------------------------------

    @classmethod
    def from_toml(
        cls,
        path: str | os.PathLike[str],
        *,
        environ: Mapping[str, str] | None = None,
        prefix: str = "AIOCONNECT",
        **functions: Unpack[Functions],
    ) -> Self:
        """By the table ``[aioconnect]`` of a file, and by variables over it if ``environ`` is given: ``os.environ``.

        Raises `ConfigError` with every problem at once, each with where it was said.
        """
        return cls(config.from_toml(path, environ, prefix, functions))

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        prefix: str = "AIOCONNECT",
        **functions: Unpack[Functions],
    ) -> Self:
        """By such a table from anywhere, or written in Python; otherwise as `from_toml`.

        >>> ConnectionManager.from_mapping({"endpoints": {"db": "tcp://db.internal:5432"}})
        <ConnectionManager db>
        """
        return cls(config.from_mapping(mapping, environ, prefix, functions))

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        prefix: str = "AIOCONNECT",
        **functions: Unpack[Functions],
    ) -> Self:
        """By environment variables, such as ``AIOCONNECT__ENDPOINTS__DB__URL``; otherwise as `from_toml`."""
        return cls(config.from_env(environ, prefix, functions))

    # -- Using ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Connector:
        """The connector of an endpoint. Raises `ConfigError` for a name that there is not."""
        self._check_process()
        return self._endpoint(name).connector

    def __contains__(self, name: object) -> bool:
        return name in self._endpoints

    def __iter__(self) -> Iterator[str]:
        return iter(self._endpoints)

    def __len__(self) -> int:
        return len(self._endpoints)

    def pool(self, name: str) -> Pool:
        """The pool of an endpoint, always the same one, to be used as it is. Within the block only."""
        return self._kept(self._pools, name, self._endpoint(name).new_pool)

    def link(self, name: str) -> Link:
        """The link of an endpoint, always the same one, to be used as it is. Within the block only."""
        return self._kept(self._links, name, self._endpoint(name).new_link)

    async def ready(self, *names: str, timeout: float | str | None = None) -> None:
        """Wait until all of these endpoints can be connected to, all at once; by default every endpoint.

        Where a pool or a link was made it is they that become ready; else a connection is made and closed. A peer that
        is not there yet is waited for, too (`STARTING`), and so is an open circuit. ``timeout``: seconds; by default
        the policy's of each.

        Raises the error of the first one by order that is not ready, with a note on all of them: at once if waiting
        cannot help, such as for a certificate that is rejected.
        """
        limit = None if timeout is None else seconds("timeout", timeout)
        self._check()
        wanted = {name: self._endpoint(name) for name in names or self._endpoints}
        waiting = [(name, waiter) for name, each in wanted.items() for waiter in self._waiters(name, each, limit)]
        tasks = [asyncio.ensure_future(waiter) for _, waiter in waiting]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if not any(_is_final(task) for task in tasks):
                # Out of time: so are the others, or will be in a moment.
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        _raise_first([(name, outcome) for (name, _), outcome in zip(waiting, outcomes, strict=True)])

    def _waiters(self, name: str, endpoint: Configured, limit: float | None) -> list[Coroutine[Any, Any, object]]:
        made = [kept[name] for kept in (self._pools, self._links) if name in kept]
        return [each.ready(timeout=limit) for each in made] or [_connected(endpoint.connector, limit)]

    # -- Telling -------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """What a service answers at ``/healthz`` and ``/readyz``: plain values, ready for JSON.

        ``ready`` is False while an endpoint is known to be unreachable, and when the block is over. One that nobody has
        asked for yet does not count: its ``state`` is ``"never dialled"``.

        >>> net = ConnectionManager.from_mapping({"endpoints": {"db": "tcp://db.internal:5432"}})
        >>> net.health()["endpoints"]["db"]["state"]
        'never dialled'
        """
        endpoints = {name: self._health(name, each) for name, each in self._endpoints.items()}
        unreachable = any(each["state"] == "unreachable" for each in endpoints.values())
        return {"ready": not (unreachable or self._is_closed), "endpoints": endpoints}

    def _health(self, name: str, endpoint: Configured) -> dict[str, Any]:
        stats = endpoint.connector.stats()
        error = stats.last_error if stats.reachable is False else None
        told: dict[str, Any] = {}
        if (link := self._links.get(name)) is not None:
            told["link"] = link.state.value
            error = link.last_error or error
        never = stats.reachable is None and error is None
        state = "never dialled" if never else "unreachable" if error is not None else "reachable"
        return {"state": state, "circuit": stats.circuit, "error": None if error is None else error.code, **told}

    def stats(self) -> dict[str, EndpointStats]:
        """What each endpoint has done so far."""
        return {name: self._stats(name, each) for name, each in self._endpoints.items()}

    def _stats(self, name: str, endpoint: Configured) -> EndpointStats:
        pool, link = self._pools.get(name), self._links.get(name)
        return EndpointStats(
            endpoint.connector.stats(),
            None if pool is None else pool.stats(),
            None if link is None else link.state,
        )

    def explain(self, name: str) -> str:
        """All settings of an endpoint, also the defaults, and where each was said; as TOML that says the same.

        >>> net = ConnectionManager.from_mapping({"endpoints": {"db": {"path": "/run/db.sock"}}})
        >>> print(net.explain("db").splitlines()[1])
        path = "/run/db.sock"                     # endpoints.db.path
        """
        return config.effective(name, self._endpoint(name))

    def __repr__(self) -> str:
        return f"<ConnectionManager {' '.join(self._endpoints)}>"

    # -- Life cycle ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._loop is not None or self._is_closed:
            raise RuntimeError(f"{self!r} can be entered only once")
        self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        self._closed = self._loop.create_future()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, grace: float | str | None = None) -> None:
        """Close the pools and links, the last one made first.

        ``grace``: seconds for all of them together, by default those of the configuration; then whatever is left is
        aborted. A cancellation leaves no time to any. May be called again; the shorter time holds.
        """
        limit = self.configuration.grace if grace is None else seconds("grace", grace, zero=True)
        if self._loop is None:
            self._is_closed = True
            return
        self._check_owner()
        begun, self._is_closed = self._is_closed, True
        before, self._deadline = self._deadline, min(self._deadline, self._loop.time() + limit)
        if begun:
            if self._deadline < before and self._hurry is not None and not self._hurry.expired():
                self._hurry.reschedule(self._deadline)
            # Somebody else closes already: a block that ends now must not end before that.
            await asyncio.wait({self._closed})
            return
        try:
            await self._stack.aclose()
        finally:
            self._closed.set_result(None)

    async def _close(self, made: Pool | Link) -> None:
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        self._hurry = hurry = asyncio.timeout(None)
        try:
            async with hurry:
                await made.aclose(left)
        except asyncio.CancelledError:
            self._deadline = 0.0
            raise
        except TimeoutError:
            if not hurry.expired():
                raise
        finally:
            self._hurry = None

    def _kept(self, kept: dict[str, P], name: str, new: Callable[[], P]) -> P:
        self._check()
        if name not in kept:
            kept[name] = made = new()
            self._stack.push_async_callback(self._close, made)
        return kept[name]

    def _endpoint(self, name: str) -> Configured:
        found = self._endpoints.get(name)
        if found is None:
            raise ConfigError(f"endpoint={shown(name)}: is unknown; {did_you_mean(str(name), self._endpoints)}")
        return found

    def _check(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        if self._loop is None:
            raise RuntimeError(f"{self!r} must be entered first: async with ... as net")
        self._check_owner()

    def _check_owner(self) -> None:
        self._check_process()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop; make one manager for each loop")

    def _check_process(self) -> None:
        if self._process not in (0, os.getpid()):
            raise RuntimeError(f"{self!r} belongs to process {self._process}; after a fork make a new one")


async def _connected(connector: Connector, limit: float | None) -> None:
    """Connect once, waiting also for what is not there yet."""
    policy = connector.policy
    timeout = policy.timeout if limit is None else limit
    patient = policy.replace(retry_on=policy.retry_on | STARTING, max_attempts=None, timeout=timeout)
    trying = Connector(
        connector.endpoint, patient, connector.prepare, stable_after=connector.stable_after, share=connector
    )
    async with trying.connect(wait=True):
        pass


def _is_final(task: asyncio.Future[object]) -> bool:
    """Whether it has failed, and more time would not have helped."""
    error = task.exception() if task.done() and not task.cancelled() else None
    return error is not None and not _is_late(error)


def _is_late(error: BaseException) -> bool:
    return getattr(error, "stop_reason", None) == "timeout" or isinstance(error, PoolTimeout)


def _raise_first(outcomes: list[tuple[str, object]]) -> None:
    """Raise the first error, one that ended the wait before those that only ran out of time; it tells of the others."""
    failed = [(name, each) for name, each in outcomes if isinstance(each, Exception)]
    if not failed:
        return
    failed.sort(key=lambda each: _is_late(each[1]))
    error = failed[0][1]
    error.add_note(f"not ready: {', '.join(dict.fromkeys(name for name, _ in failed))}")
    for name, other in failed[1:]:
        error.add_note(f"{name}: {other}")
    raise error
