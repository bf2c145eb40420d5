"""A simulated network by the replies of its addresses: the public one, for tests that say no more than that.

    network = Network.of_loop({"10.0.0.1": Reply(0.2, errno.ECONNREFUSED), "10.0.0.2": Reply(0.1)})

`started` says when each address was tried, `open` which sockets nobody has closed yet.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from aioconnect.hosts import literal_family
from aioconnect.resolver import AddressInfo
from aioconnect.testing import network as simulated
from aioconnect.testing.script import Step
from aioconnect.testing.sockets import SimulatedSocket

__all__ = ("SILENT", "Network", "Reply", "SimulatedSocket", "infos")

PORT = 80


class Reply(NamedTuple):
    """How an address answers a connect: with an errno, 0 to take it, after `delay` seconds, 0 meaning at once."""

    delay: float = 0.0
    number: int = 0


SILENT = Reply(math.inf)
"""An address that never answers."""


def infos(*hosts: str, port: int = PORT) -> list[AddressInfo]:
    """What a resolver says of these IP addresses."""
    return [AddressInfo(_family(host), socket.SOCK_STREAM, socket.IPPROTO_TCP, _sockaddr(host, port)) for host in hosts]


def _family(host: str) -> socket.AddressFamily:
    family = literal_family(host)
    assert family is not None
    return family


def _sockaddr(host: str, port: int) -> tuple[Any, ...]:
    return (host, port, 0, 0) if ":" in host else (host, port)


class _Ground(simulated.Network):
    """The network of one `Network`."""

    def __init__(self, replies: Network) -> None:
        super().__init__()
        self.replies = replies

    def dialed(self, sock: SimulatedSocket, address: Any) -> Step:
        return self.replies.reply(address)

    def source(self, sock: SimulatedSocket) -> Any:
        return _sockaddr("::1" if sock.family == socket.AF_INET6 else "127.0.0.1", 50000)

    def route(self, sock: SimulatedSocket, address: Any) -> Any:
        self.host(address[0])
        return super().route(sock, address)

    def _resolved(self, name: str) -> list[str]:
        return self.replies.found(name)


class Network:
    """Replies by IP address, and by name the addresses or the exception that a lookup ends with.

    Of a list of replies, each connect takes one; the last is for all further ones.

    `unsupported`: families that this host does not have. `unbindable`: errno by local address.
    """

    def __init__(
        self,
        replies: Mapping[str, Reply | list[Reply]],
        names: Mapping[str, list[str] | Exception] | None = None,
        unsupported: frozenset[int] = frozenset(),
        unbindable: Mapping[str, int] | None = None,
    ) -> None:
        self.replies = replies
        self.names = {} if names is None else names
        self.loop = asyncio.get_running_loop()
        self.started: list[tuple[str, float]] = []
        self.lookups: list[str] = []
        self.ground = _Ground(self)
        self.ground.unsupported = unsupported
        self.ground.unbindable = dict(unbindable or {})

    @classmethod
    def of_loop(cls, replies: Mapping[str, Reply | list[Reply]], **settings: Any) -> Self:
        """A network for the running loop, which is a `tests.support.clock.VirtualLoop`."""
        network = cls(replies, **settings)
        loop: Any = network.loop
        loop.network = network.ground
        return network

    @property
    def starts(self) -> dict[str, float]:
        """When each address was tried, in that order; the last time if there were several."""
        return dict(self.started)

    @property
    def open(self) -> list[SimulatedSocket]:
        """The sockets of this side that nobody has closed yet."""
        return [sock for sock in self.ground.open if sock.host is self.ground.client]

    @property
    def most(self) -> int:
        """The most connects that were under way at once."""
        return self.ground.most_connecting

    def reply(self, address: Any) -> Step:
        self.started.append((address[0], self.loop.time()))
        reply = self.replies[address[0]]
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if reply.delay == math.inf:
            return Step("hang", errno.ETIMEDOUT, 1e8)
        return Step(errno.errorcode.get(reply.number, "ok"), reply.number, reply.delay)

    def found(self, name: str) -> list[str]:
        self.lookups.append(name)
        found = self.names.get(name, [name])
        if isinstance(found, Exception):
            raise found
        return found
