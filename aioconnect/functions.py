"""The functions for a single connection.

Each makes a `Connector` of its own: nothing is learnt between calls, and TLS settings are loaded for each. For more
than one connection to an endpoint, make a `Connector`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from aioconnect.connection import DEFAULT_LIMIT, Connection, Reader, Writer
from aioconnect.connector import Connecting, Connector, Prepare
from aioconnect.endpoint import OPTIONS, TLS, Endpoint
from aioconnect.policy import Policy
from aioconnect.validation import Problems, check_optional_duration, did_you_mean

__all__ = ("connect", "create_connection", "dial", "open_connection", "open_unix_connection")

P = TypeVar("P", bound=asyncio.BaseProtocol)

Path = str | bytes | os.PathLike[str]


def connect(
    endpoint: Endpoint | str,
    *,
    policy: Policy = Policy(),
    timeout: float | str | None = None,
    prepare: Prepare | None = None,
    **options: Any,
) -> Connecting[Connection]:
    """A `Connection` to an endpoint or URL, retried and typed; to ``await``, or for ``async with``.

    ``timeout``: seconds, or a text such as ``"500ms"``; the smaller of it and the policy's wins. ``prepare``: makes
    the connection ready, inside the attempt. ``options``: those of `Endpoint`, over those of the URL.

    Raises as `Connector.connect`, and `ConfigError` for a bad argument, at once.

    Example::

        async with aioconnect.connect("tls://db.internal:5432", timeout=5) as conn:
            await conn.send(b"hello")
    """
    return Connector(_endpoint(endpoint, options), policy, prepare).connect(timeout)


async def dial(
    endpoint: Endpoint | str, *, policy: Policy = Policy(), timeout: float | str | None = None, **options: Any
) -> socket.socket:
    """A connected, non-blocking socket, for any library's ``sock=``. Raises as `Connector.dial`.

    Example::

        sock = await aioconnect.dial("db.internal:5432", timeout=5)
    """
    return await Connector(_endpoint(endpoint, options), policy).dial(timeout)


async def open_connection(
    host: str | bytes | None = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    policy: Policy = Policy(),
    timeout: float | str | None = None,
    **options: Any,
) -> tuple[Reader, Writer]:
    """A reader and a writer as asyncio opens them, retried and typed: replacing the call is the whole migration.

    Takes what asyncio's takes (``ssl``, ``server_hostname``, ``local_addr``, ``family``, ``proto``, ``flags``,
    ``ssl_handshake_timeout``, ``ssl_shutdown_timeout``, ``happy_eyeballs_delay``, ``interleave``) and the options of
    `Endpoint`. ``all_errors`` is accepted and not needed: the error has them all. ``sock`` cannot be retried.

    Raises a `ConnectError`, and `ConfigError` for a bad argument.

    Example::

        reader, writer = await aioconnect.open_connection("db.internal", 5432)
    """
    connector = Connector(_asyncio_endpoint(options, host=host, port=port), policy, limit=limit)
    return (await connector.connect(timeout)).streams


async def open_unix_connection(
    path: Path | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    policy: Policy = Policy(),
    timeout: float | str | None = None,
    **options: Any,
) -> tuple[Reader, Writer]:
    """As ``asyncio.open_unix_connection``, retried and typed. Raises as `open_connection`.

    Example::

        reader, writer = await aioconnect.open_unix_connection("/run/app.sock")
    """
    connector = Connector(_asyncio_endpoint(options, path=path), policy, limit=limit)
    return (await connector.connect(timeout)).streams


async def create_connection(
    protocol_factory: Callable[[], P],
    host: str | bytes | None = None,
    port: int | str | None = None,
    *,
    policy: Policy = Policy(),
    timeout: float | str | None = None,
    **options: Any,
) -> tuple[asyncio.Transport, P]:
    """As ``loop.create_connection``, retried and typed. Raises as `open_connection`.

    Example::

        transport, protocol = await aioconnect.create_connection(Protocol, "db.internal", 5432)
    """
    connector = Connector(_asyncio_endpoint(options, host=host, port=port), policy)
    return await connector.create_connection(protocol_factory, timeout)


def _endpoint(endpoint: Endpoint | str, options: dict[str, Any]) -> Endpoint:
    problems = Problems()
    _check_names(problems, options, {*OPTIONS, "path", "srv", "targets", "tls"})
    problems.raise_any()
    if isinstance(endpoint, Endpoint):
        return endpoint.replace(**options) if options else endpoint
    return Endpoint.parse(endpoint, **options)


_FOR_TLS = ("server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout")
# What only asyncio has, and of ours where None is its word for the default; keepalive=None, say, means none.
_ASYNCIO = ("ssl", "sock", "all_errors", *_FOR_TLS)
_NONE_IS_DEFAULT = (*_ASYNCIO, "family", "flags", "interleave", "local_addr", "proto")


def _asyncio_endpoint(options: dict[str, Any], **place: Any) -> Endpoint:
    """The endpoint that asyncio's arguments mean."""
    problems = Problems()
    _check_names(problems, options, {*OPTIONS, "path", "targets", "tls", *_ASYNCIO})
    given = {name: value for name, value in options.items() if value is not None or name not in _NONE_IS_DEFAULT}
    if given.get("interleave") == 0:
        # asyncio's word for the resolver's own order; the race takes turns in any case.
        del given["interleave"]
    tls = _tls(problems, given)
    if "sock" in given:
        problems.add("sock", given["sock"], "cannot be retried; give the host and port, or the path")
    if "path" in place and place["path"] is None:
        problems.add("path", None, "must be the path of a UNIX socket")
    problems.raise_any()
    if place.get("port") is not None and place["host"] is None:
        # As getaddrinfo(3) takes a missing host: this machine.
        place["host"] = "localhost"
    arguments: dict[str, Any] = {name: value for name, value in given.items() if name not in _ASYNCIO}
    if tls is not None:
        arguments["tls"] = tls
    return Endpoint(**place, **arguments)


def _check_names(problems: Problems, options: dict[str, Any], known: Collection[str]) -> None:
    """Note what is no option, without its value, which may be a secret in the wrong place."""
    for name in options:
        if name not in known:
            problems.add("option", name, f"is unknown; {did_you_mean(name, sorted({*known, 'policy', 'timeout'}))}")


def _tls(problems: Problems, given: dict[str, Any]) -> TLS | None:
    """The settings that ``ssl`` and what goes with it mean; None without."""
    context = given.get("ssl") or None
    if context is None:
        for name in _FOR_TLS:
            if name in given:
                problems.add(name, given[name], "needs ssl")
        return None
    if context is not True and not isinstance(context, ssl.SSLContext):
        problems.add("ssl", context, "must be an SSLContext or True")
        return None
    if given.get("tls"):
        problems.add("tls", given["tls"], "must not be given together with ssl")
    handshake, shutdown = (
        check_optional_duration(problems, name, given.get(name))
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout")
    )
    return problems.unless_wrong(
        lambda: TLS(
            context=None if context is True else context,
            server_hostname=given.get("server_hostname"),
            handshake_timeout=handshake,
            shutdown_timeout=shutdown,
        )
    )
