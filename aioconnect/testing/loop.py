"""The event loop of a simulated network: what is dialed and served by host and port never leaves the process."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, TypeVarTuple, cast

from aioconnect.errors import ConfigError
from aioconnect.testing.clock import VirtualLoop
from aioconnect.testing.network import Network, sockaddr_of
from aioconnect.testing.sockets import SimulatedSocket, failure
from aioconnect.testing.transport import SimulatedTransport
from aioconnect.validation import shown

__all__ = ("SimulatedLoop",)

Ts = TypeVarTuple("Ts")


class SimulatedLoop(VirtualLoop):
    """A virtual clock and a simulated network: a ``loop_factory``, ``lambda: SimulatedLoop(network)``.

    Without a network, sockets are real; ``loop.network = Network()`` brings one later. With one, what is asked for by
    host and port is simulated, and a real socket given as ``sock=`` is still one.
    """

    def __init__(self, network: Network | None = None, start: float = 0.0, *, patience: float = 5.0) -> None:
        super().__init__(start, patience=patience)
        self._network: Network | None = None
        if network is not None:
            try:
                self.network = network
            except BaseException:
                self.close()
                raise

    @property
    def network(self) -> Network:
        """What the dialer takes its sockets from."""
        if self._network is None:
            # As if there were no such attribute: real sockets.
            raise AttributeError("network")
        return self._network

    @network.setter
    def network(self, network: Network) -> None:
        if not isinstance(network, Network):
            raise ConfigError(f"network={shown(network)}: must be a Network")
        network.attach(self)
        self._network = network
        self._clock.sparing = True

    def _held(self) -> bool:
        # No thread looks names up in a simulated network, and to look for one takes longer than all else.
        return self._holds + self._jobs > 0 if self._network is not None else super()._held()

    def add_writer(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """As asyncio's, for simulated sockets too."""
        if isinstance(fd, SimulatedSocket):
            fd.watch(callback, args)
        else:
            super().add_writer(fd, callback, *args)

    def remove_writer(self, fd: Any) -> bool:
        """As asyncio's, for simulated sockets too."""
        return fd.unwatch() if isinstance(fd, SimulatedSocket) else super().remove_writer(fd)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """As asyncio's, for simulated sockets too."""
        if isinstance(sock, SimulatedSocket):
            await self._connect(sock, address)
        else:
            await super().sock_connect(sock, address)

    async def create_connection(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        """As asyncio's, on the simulated network unless a real socket is given."""
        sock = options.get("sock")
        if self._network is None or (sock is not None and not isinstance(sock, SimulatedSocket)):
            return await super().create_connection(protocol_factory, host, port, **options)
        _no_tls(options)
        if sock is None:
            sock = await self._dialed(self._network, host, port, options)
        return await self._transport(sock, protocol_factory)

    async def create_unix_connection(
        self, protocol_factory: Callable[[], Any], path: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        """As asyncio's, on the simulated network unless a real socket is given."""
        sock = options.get("sock")
        if self._network is None or (sock is not None and not isinstance(sock, SimulatedSocket)):
            return await super().create_unix_connection(protocol_factory, path, **options)
        _no_tls(options)
        if sock is None:
            sock = self._network.socket(socket.AF_UNIX)
            await self._connected(sock, str(path))
        return await self._transport(sock, protocol_factory)

    async def create_server(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """As asyncio's, on the simulated network unless a real socket is given."""
        network = self._network
        if network is None or options.get("sock") is not None:
            return await super().create_server(protocol_factory, host, port, **options)
        _no_tls(options)
        owner = network.here if host in (None, "", "0.0.0.0", "::") else network.host(str(host))  # noqa: S104
        number = int(port or 0) or cast(int, owner.source(socket.AF_INET)[1])
        addresses = [sockaddr_of(each, number) for each in owner.addresses]
        return network.listen(owner, addresses, protocol_factory, backlog=options.get("backlog", 100))

    async def start_tls(self, transport: Any, *args: Any, **options: Any) -> Any:
        """As asyncio's; not over a simulated transport."""
        _no_tls({"ssl": isinstance(transport, SimulatedTransport)})
        return await super().start_tls(transport, *args, **options)

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """As asyncio's, from the simulated network."""
        if self._network is None:
            return await super().getaddrinfo(host, port, **options)
        if delay := self._network.lookup_delay(str(host)):
            await asyncio.sleep(delay)
        return self._network.getaddrinfo(host, port, **options)

    async def _dialed(self, network: Network, host: Any, port: Any, options: dict[str, Any]) -> SimulatedSocket:
        failures: list[OSError] = []
        found = await self.getaddrinfo(host, port, family=options.get("family", 0))
        if not found:
            raise OSError("getaddrinfo() returned empty list")
        for family, kind, proto, _, address in found:
            sock = network.socket(family, kind, proto)
            try:
                await self._connected(sock, address)
            except OSError as exc:
                failures.append(exc)
            else:
                return sock
        raise failures[0] if len(failures) == 1 else OSError(f"Multiple exceptions: {', '.join(map(str, failures))}")

    async def _connect(self, sock: SimulatedSocket, address: Any) -> None:
        if sock.connect_ex(address) == errno.EINPROGRESS:
            decided: asyncio.Future[None] = self.create_future()
            sock.watch(_set, (decided,))
            try:
                await decided
            finally:
                sock.unwatch()
        if sock.number:
            raise failure(sock.number)

    async def _connected(self, sock: SimulatedSocket, address: Any) -> None:
        try:
            await self._connect(sock, address)
        except BaseException:
            sock.close()
            raise

    async def _transport(self, sock: SimulatedSocket, factory: Callable[[], Any]) -> tuple[Any, Any]:
        protocol = factory()
        transport = SimulatedTransport(sock, protocol)
        ready: asyncio.Future[None] = self.create_future()
        self.call_soon(transport.open)
        self.call_soon(_set, ready)
        try:
            await ready
        except BaseException:
            transport.close()
            raise
        return transport, protocol


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _no_tls(options: dict[str, Any]) -> None:
    if options.get("ssl"):
        raise ConfigError("tls=True: is not simulated; test TLS with the fault servers, which use real sockets")
