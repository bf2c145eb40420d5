"""From a connected socket to a transport of the loop, with TLS where the endpoint has it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from aioconnect import errors, logs
from aioconnect.endpoint import Endpoint
from aioconnect.errors import ConfigError, ConnectTimeout
from aioconnect.limits import TICK, Source
from aioconnect.resolver import AddressInfo
from aioconnect.tls import ContextCache

__all__ = ("HandOver",)

P = TypeVar("P", bound=asyncio.BaseProtocol)


class HandOver:
    """Makes the transports of one endpoint, and keeps its TLS context."""

    __slots__ = ("_contexts", "_endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._contexts = None if endpoint.tls is None else ContextCache(endpoint.tls, logs.stale_files)

    async def transport(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: P,
        sock: socket.socket,
        info: AddressInfo,
        limit: float,
        source: Source,
    ) -> tuple[asyncio.Transport, P]:
        """A transport that owns the socket, with that protocol; if there is none, the socket is closed.

        Raises `TLSError`, `ConnectReset`, `ConnectTimeout` and the like, with phase ``"tls"`` where there is TLS;
        `ConfigError` for TLS files that cannot be loaded.
        """
        create = loop.create_connection if self._endpoint.path is None else loop.create_unix_connection
        try:
            if self._contexts is None:
                made = await create(lambda: protocol, sock=sock)
            else:
                arguments = self._tls_arguments(self._contexts, info, limit, source)
                made = await create(lambda: protocol, sock=sock, **arguments)
        except asyncio.CancelledError as cancelled:
            self._let_go(sock)
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # uvloop turns ECANCELED into CancelledError; nobody has cancelled this task.
            raise errors.typed("ECANCELED", "tls" if self._contexts else "connect", info.sockaddr) from cancelled
        except Exception as exc:
            sock.close()
            error = errors.translate(exc, "tls" if self._contexts else "connect", info.sockaddr)
            if error is None or error is exc:
                raise
            if isinstance(error, ConnectTimeout):
                # The loop's handshake timer ran out: on whose limit it was set, only the clock tells.
                error.source = source if loop.time() >= limit - TICK else "attempt"
            raise error from exc
        if not self._endpoint.nodelay and self._endpoint.path is None:
            # After the hand-over, since both loops switch it on; a socket that died meanwhile says so itself.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        return made

    async def made_by(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], P],
        sock: socket.socket,
        info: AddressInfo,
        limit: float,
        source: Source,
    ) -> tuple[asyncio.Transport, P]:
        """As `transport`, with the protocol that a factory makes; `ConfigError` if it makes none."""
        try:
            protocol = factory()
            # Checked before there is a transport: one with nobody to tell would keep the descriptor until collected.
            if not hasattr(protocol, "connection_made"):
                name = type(protocol).__name__
                raise ConfigError(f"protocol_factory=<{name}>: must make an asyncio protocol")
        except BaseException:
            sock.close()
            raise
        return await self.transport(loop, protocol, sock, info, limit, source)

    def _let_go(self, sock: socket.socket) -> None:
        """Close the socket of a cancelled hand-over, unless a transport has to.

        A cancellation that meets the end of the handshake leaves asyncio with a TLS transport that only begins to
        close: with the descriptor closed under it, whoever gets that number next would share it. Shut down, the
        socket ends the transport at its next turn, which closes the descriptor itself.
        """
        if self._contexts is not None:
            with contextlib.suppress(OSError):
                return sock.shutdown(socket.SHUT_RDWR)
        return sock.close()

    def _tls_arguments(self, contexts: ContextCache, info: AddressInfo, limit: float, source: Source) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "ssl": contexts.get(),
            "server_hostname": self._endpoint.server_hostname(info.target),
        }
        left = limit - asyncio.get_running_loop().time()
        if left <= 0:
            raise ConnectTimeout(None, "no time left for TLS", phase="tls", address=info.sockaddr, source=source)
        tls = contexts.tls
        handshake = left if tls.handshake_timeout is None else min(tls.handshake_timeout, left)
        arguments["ssl_handshake_timeout"] = handshake if handshake < math.inf else None
        if tls.shutdown_timeout is not None:
            arguments["ssl_shutdown_timeout"] = tls.shutdown_timeout
        return arguments
