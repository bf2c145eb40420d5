"""The functions for a single connection. Each makes a `Connector` of its own, so nothing is learnt between calls."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
from collections.abc import Callable
from typing import Any, TypeVar

from aioconnect.connection import DEFAULT_LIMIT, Connection, Reader, Writer
from aioconnect.connector import Connecting, Connector, Prepare
from aioconnect.endpoint import TLS, Endpoint
from aioconnect.errors import ConfigError
from aioconnect.policy import Policy
from aioconnect.validation import Problems, did_you_mean

__all__ = ("connect", "create_connection", "dial", "open_connection", "open_unix_connection")

P = TypeVar("P", bound=asyncio.BaseProtocol)

SSL = ssl_module.SSLContext | bool | None


def connect(
    target: Endpoint | str,
    *,
    policy: Policy = Policy(),
    timeout: float | None = None,
    prepare: Prepare | None = None,
    **options: Any,
) -> Connecting[Connection]:
    """A `Connection` to an endpoint or URL, retried and typed; to ``await``, or for ``async with``.

    ``timeout``: seconds; the smaller of it and the policy's wins. ``prepare``: makes the connection ready, inside
    the attempt. ``options``: those of `Endpoint`, over those of the URL. Raises as `Connector.connect`, and
    `ConfigError` for a bad argument, at once.

        async with aioconnect.connect("tls://db.internal:5432", timeout=5) as conn:
            await conn.send(b"hello")
    """
    return Connector(_endpoint(target, options), policy, prepare).connect(timeout)


async def dial(
    target: Endpoint | str, *, policy: Policy = Policy(), timeout: float | None = None, **options: Any
) -> socket.socket:
    """A connected, non-blocking socket, for any library's ``sock=``. Raises as `Connector.dial`.

    sock = await aioconnect.dial("db.internal:5432", timeout=5)
    """
    return await Connector(_endpoint(target, options), policy).dial(timeout)


async def open_connection(
    host: str | bytes | None = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    policy: Policy = Policy(),
    timeout: float | None = None,
    **options: Any,
) -> tuple[Reader, Writer]:
    """A reader and a writer as asyncio opens them, retried and typed: replacing the call is the whole migration.

    Takes what asyncio's takes (``ssl``, ``server_hostname``, ``local_addr``, ``family``, ``proto``, ``flags``,
    ``ssl_handshake_timeout``, ``ssl_shutdown_timeout``, ``happy_eyeballs_delay``, ``interleave``) and the options of
    `Endpoint`. ``all_errors`` is accepted and not needed: the error has them all. ``sock`` cannot be retried.

    Raises a `ConnectError`, and `ConfigError` for a bad argument.

        reader, writer = await aioconnect.open_connection("db.internal", 5432)
    """
    connector = Connector(_asyncio_endpoint(host, port, options), policy, limit=limit)
    return (await connector.connect(timeout)).streams


async def open_unix_connection(
    path: str | bytes | os.PathLike[str] | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    policy: Policy = Policy(),
    timeout: float | None = None,
    **options: Any,
) -> tuple[Reader, Writer]:
    """As ``asyncio.open_unix_connection``, retried and typed. Raises as `open_connection`.

    reader, writer = await aioconnect.open_unix_connection("/run/app.sock")
    """
    connector = Connector(_asyncio_endpoint(None, None, options | {"path": path}), policy, limit=limit)
    return (await connector.connect(timeout)).streams


async def create_connection(
    protocol_factory: Callable[[], P],
    host: str | bytes | None = None,
    port: int | str | None = None,
    *,
    policy: Policy = Policy(),
    timeout: float | None = None,
    **options: Any,
) -> tuple[asyncio.Transport, P]:
    """As ``loop.create_connection``, retried and typed. Raises as `open_connection`.

    transport, protocol = await aioconnect.create_connection(Protocol, "db.internal", 5432)
    """
    return await Connector(_asyncio_endpoint(host, port, options), policy).create_connection(protocol_factory, timeout)


def _endpoint(target: Endpoint | str, options: dict[str, Any]) -> Endpoint:
    if isinstance(target, Endpoint):
        return target.replace(**options) if options else target
    return Endpoint.parse(target, **options)


_PASSED_ON = frozenset(
    {"family", "flags", "happy_eyeballs_delay", "interleave", "keepalive", "local_addr", "nodelay", "path", "proto"}
    | {"targets", "tls", "user_timeout"}
)
_FOR_TLS = ("server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout")
_ACCEPTED = _PASSED_ON | {"ssl", "sock", "all_errors", *_FOR_TLS}


def _asyncio_endpoint(host: str | bytes | None, port: int | str | None, options: dict[str, Any]) -> Endpoint:
    """The endpoint that asyncio's arguments mean; ``None`` is asyncio's word for a default."""
    problems = Problems()
    for name in options.keys() - _ACCEPTED:
        problems.add(name, options[name], f"is no option; {did_you_mean(name, sorted(_ACCEPTED))}")
    given = {name: value for name, value in options.items() if value is not None and name in _ACCEPTED}
    if "sock" in given:
        problems.add("sock", given["sock"], "cannot be retried; give the host and port, or the path")
    context = given.get("ssl") or None
    for name in _FOR_TLS:
        if name in given and context is None:
            problems.add(name, given[name], "needs ssl")
    problems.raise_any()
    arguments = {name: given[name] for name in _PASSED_ON & given.keys()}
    if context is not None:
        arguments["tls"] = _tls(context, given)
    if "path" in arguments:
        return Endpoint(**arguments)
    # As getaddrinfo(3) takes a missing host: this machine.
    return Endpoint(host if host is not None or port is None else "localhost", port, **arguments)


def _tls(context: object, given: dict[str, Any]) -> TLS:
    if context is not True and not isinstance(context, ssl_module.SSLContext):
        raise ConfigError(f"ssl=<{type(context).__name__}>: must be an SSLContext or True")
    return TLS(
        context=None if context is True else context,
        server_hostname=given.get("server_hostname"),
        handshake_timeout=given.get("ssl_handshake_timeout"),
        shutdown_timeout=given.get("ssl_shutdown_timeout"),
    )
