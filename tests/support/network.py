"""A simulated network for the shipped dialer: an object shaped like the `socket` module, on a virtual clock.

    network = Network.of_loop({"10.0.0.1": Reply(0.2, errno.ECONNREFUSED), "10.0.0.2": Reply(0.1)})

The dialer asks its loop for a `network` and takes sockets from it. Here they answer a connect after so many
virtual seconds; `started` says when each address was tried, `open` which sockets nobody has closed yet.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from aioconnect.hosts import literal_family
from aioconnect.resolver import AddressInfo

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


@dataclass
class Network:
    """Replies by IP address, and by name the addresses or the exception that a lookup ends with.

    Of a list of replies, each connect takes one; the last is for all further ones.

    `unsupported`: families that this host does not have. `unbindable`: errno by local address.
    """

    replies: Mapping[str, Reply | list[Reply]]
    names: Mapping[str, list[str] | Exception] = field(default_factory=dict)
    unsupported: frozenset[int] = frozenset()
    unbindable: Mapping[str, int] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    started: list[tuple[str, float]] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    open: list[SimulatedSocket] = field(default_factory=list)
    most: int = 0
    """The most connects that were under way at once."""

    @classmethod
    def of_loop(cls, replies: Mapping[str, Reply | list[Reply]], **settings: Any) -> Self:
        """A network for the running loop, which is a `tests.support.clock.VirtualLoop`."""
        network = cls(replies, **settings)
        loop: Any = network.loop
        loop.network = network
        loop.add_writer = network._add_writer
        loop.remove_writer = network._remove_writer
        return network

    @property
    def starts(self) -> dict[str, float]:
        """When each address was tried, in that order; the last time if there were several."""
        return dict(self.started)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> SimulatedSocket:
        if family in self.unsupported:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        made = SimulatedSocket(self, family, kind)
        self.open.append(made)
        return made

    def getaddrinfo(self, host: str, port: int, *, family: int = 0, **_: Any) -> list[tuple[Any, ...]]:
        self.lookups.append(host)
        found = self.names.get(host, [host])
        if isinstance(found, Exception):
            raise found
        known = [info for info in infos(*found, port=port) if family in (0, info.family)]
        return [(info.family, info.type, info.proto, "", info.sockaddr) for info in known]

    def _add_writer(self, sock: SimulatedSocket, callback: Callable[..., object], *args: Any) -> None:
        sock.watcher = callback, args
        if sock.answered:
            self.loop.call_soon(sock.tell)

    def _remove_writer(self, sock: SimulatedSocket) -> bool:
        assert not sock.closed, "the writer has to go before the socket: its number may be another's by then"
        found, sock.watcher = sock.watcher is not None, None
        return found


class SimulatedSocket:
    """What of a socket the dialer uses."""

    def __init__(self, network: Network, family: int, kind: int) -> None:
        self.network = network
        self.family = family
        self.kind = kind
        self.options: list[tuple[int, int, int]] = []
        self.local: Any = None
        self.peer: Any = None
        self.closed = False
        self.answered = False
        self.number = 0
        self.watcher: tuple[Callable[..., object], tuple[Any, ...]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options.append((level, option, value))

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.number

    def bind(self, address: Any) -> None:
        self.local = address
        if (number := self.network.unbindable.get(address[0])) is not None:
            raise OSError(number, os.strerror(number))

    def connect_ex(self, address: Any) -> int:
        assert not self.closed
        assert self.kind & socket.SOCK_NONBLOCK
        if self.peer is not None:
            return errno.EISCONN if self.answered and not self.number else self.number or errno.EALREADY
        self.peer = address
        network = self.network
        network.started.append((address[0], network.loop.time()))
        reply = network.replies[address[0]]
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if not reply.delay:
            self.answered = True
            self.number = reply.number
            return reply.number
        network.most = max(network.most, sum(not each.answered for each in network.open if each.peer is not None))
        if reply.delay < math.inf:
            self._timer = network.loop.call_later(reply.delay, self._answer, reply.number)
        return errno.EINPROGRESS

    def _answer(self, number: int) -> None:
        self.answered = True
        self.number = number
        if self.watcher is not None:
            self.network.loop.call_soon(self.tell)

    def tell(self) -> None:
        if self.watcher is not None:
            callback, args = self.watcher
            callback(*args)

    def getsockname(self) -> Any:
        return self.local or _sockaddr("::1" if self.family == socket.AF_INET6 else "127.0.0.1", 50000)

    def getpeername(self) -> Any:
        if not self.answered or self.number:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self.peer

    def close(self) -> None:
        if self.closed:
            return
        assert self.watcher is None, "closed while the loop still watches it"
        self.closed = True
        self.network.open.remove(self)
        if self._timer is not None:
            self._timer.cancel()
