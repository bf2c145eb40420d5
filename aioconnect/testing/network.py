"""A simulated network in virtual time: the shipped resolver, dialer, connector, pool and link run on it unchanged.

    network = Network(latency="2ms", seed=7)
    db = network.host("db.internal", "10.0.0.1")          # a name that resolves to it; the address may be left out
    server = network.serve("db.internal", 5432, handler)  # async def handler(reader, writer), or Echo, Hold, HangUp

    async def main():
        async with aioconnect.connect("tcp://db.internal:5432") as conn:
            await conn.send(b"hello")

    run(main(), network=network)                          # or: async with network, on a `SimulatedLoop`

What goes wrong, at any time:

    network.script("10.0.0.1", ["ECONNREFUSED"] * 3 + ["hang 2s", "ok"])    # what each connect meets: see `script`
    network.script("db.internal:5432", network.chances({"ECONNREFUSED": 0.3, "reset after 100": 0.1}))
    server.stop("reset")    server.start()    server.restart(20, "close")    server.pause()    server.resume()
    network.serve("db.internal", 5432, handler, rate=200, backlog=128)      # an accept queue with a rate
    db.down()    db.up()    db.crash()                    # silent; back; back at once without its connections
    cut = network.partition("db.internal")    cut.heal()  # from all; or from some: partition(a, b, one_way=True)
    network.link("client", "db.internal", latency="80ms", jitter="10ms", loss=0.02)
    network.dns("db.internal", ["10.0.0.1", "10.0.0.2"], "EAI_AGAIN", "10.0.0.3")    # one answer for each lookup
    network.at(30, db.up)                                 # at a time of the loop

Several machines: ``with network.host("worker-7"): ...`` makes what is dialed and served there come from it, task by
task; everything else is on the host ``client``. Any other asyncio code runs on it too: `SimulatedLoop` gives
``asyncio.open_connection(host, port)`` and ``asyncio.start_server`` the simulated network; a real socket given as
``sock=`` stays real. TLS is not simulated: use fault servers on real sockets for that.

To look at: ``network.trace`` (with ``trace=True``: every connect, lookup and fault with its time), ``digest()`` of
it, ``network.open`` (sockets nobody has closed yet), ``server.accepted``, ``server.connections``.
Deterministic: the same seed gives the same trace on every Python.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import hashlib
import ipaddress
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

from aioconnect.errors import ConfigError, format_address
from aioconnect.hosts import literal_family
from aioconnect.testing.fabric import Path
from aioconnect.testing.script import Step, chances, parse_script
from aioconnect.testing.serving import Factory, Hold, Server, factory_of
from aioconnect.testing.sockets import Address, Router, SimulatedSocket, failure
from aioconnect.validation import Problems, check_duration, check_integer, shown

__all__ = ("Host", "Network", "Partition", "sockaddr_of")

_HERE: contextvars.ContextVar[Host | None] = contextvars.ContextVar("here", default=None)

_NAMELESS = socket.EAI_NONAME


class Host:
    """A machine with addresses. Made by `Network.host`.

    ``with host:`` what is dialed and served inside, and by the tasks started inside, is on this machine.
    """

    def __init__(self, network: Network, name: str, addresses: Sequence[str]) -> None:
        self.network = network
        self.name = name
        self.addresses = tuple(addresses)
        self.is_up = True
        self.servers: list[Server] = []
        self.context = contextvars.copy_context()
        self.context.run(_HERE.set, self)
        self._tokens: list[contextvars.Token[Host | None]] = []
        self._ports = itertools.count(32768)

    def serve(self, port: int, handler: Any = Hold, *, rate: float | None = None, backlog: int = 128) -> Server:
        """As `Network.serve`, here."""
        return self.network.serve(self, port, handler, rate=rate, backlog=backlog)

    def down(self) -> None:
        """Cut off: nothing gets in or out. Its programs run on."""
        self.is_up = False
        self.network.reroute()

    def up(self) -> None:
        """Reachable again."""
        self.is_up = True
        self.network.reroute()

    def crash(self) -> None:
        """Start anew without a word to anybody: connections are half-open from here on, its servers listen again."""
        for server in self.servers:
            if server.is_serving():
                server.stop("vanish")
                server.start()

    def source(self, family: int) -> Address:
        """A free local address."""
        port = 32768 + (next(self._ports) - 32768) % 28232
        found = next((address for address in self.addresses if literal_family(address) == family), None)
        if family == socket.AF_INET6:
            return found or "fd00:ffff::ffff", port, 0, 0
        return found or "10.255.255.255", port

    def __enter__(self) -> Self:
        self._tokens.append(_HERE.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _HERE.reset(self._tokens.pop())

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Host {self.name} {', '.join(self.addresses)}>"


class Partition:
    """A cut between hosts, until `heal`. Also a context manager."""

    def __init__(self, network: Network, a: frozenset[Host], b: frozenset[Host] | None, *, one_way: bool) -> None:
        self._network, self._a, self._b, self._one_way = network, a, b, one_way

    def covers(self, source: Host, target: Host) -> bool:
        """Whether it keeps something of one host from another."""
        return self._between(source, target) or (not self._one_way and self._between(target, source))

    def _between(self, source: Host, target: Host) -> bool:
        return source in self._a and (target not in self._a if self._b is None else target in self._b)

    def heal(self) -> None:
        """Let through again."""
        self._network.heal(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()


class Network(Router):
    """A simulated network; see the module for what it can do.

    ``latency``: seconds of a round trip between two hosts; within one it is 0. ``jitter``: what chance adds to it, at
    most. ``loss``: the share of what is sent that has to be sent again. ``seed``: of all chance. ``window``: bytes
    that may be under way or unread in one direction of a connection. ``trace``: note what happens in `trace`.

    May be set up before there is a loop; belongs to one loop. Raises `ConfigError` for what makes no sense, as do
    its methods.
    """

    def __init__(
        self,
        *,
        latency: float | str = 0.0,
        jitter: float | str = 0.0,
        loss: float = 0.0,
        seed: int = 0,
        window: int = 256 * 1024,
        trace: bool = False,
    ) -> None:
        super().__init__(seed)
        problems = Problems()
        self._defaults = (
            check_duration(problems, "latency", latency, zero=True),
            check_duration(problems, "jitter", jitter, zero=True),
            _check_loss(problems, loss),
        )
        self.window = check_integer(problems, "window", window, 1)
        problems.raise_any()
        self.open = {}
        self.struggling = {}
        self.trace: list[tuple[Any, ...]] | None = [] if trace else None
        self.unsupported: frozenset[int] = frozenset()
        """Address families that this network's hosts do not have."""
        self.unbindable: dict[str, int] = {}
        """Local addresses that cannot be bound, with the errno."""
        self.hosts: dict[str, Host] = {}
        self._owners: dict[str, Host] = {}
        self._listeners: dict[Any, Server] = {}
        self._nobodies: dict[Any, Server] = {}
        self._scripts: dict[Any, Iterator[Step]] = {}
        self._names: dict[str, Iterator[list[str] | int]] = {}
        self._delays: dict[str, float] = {}
        self._paths: dict[tuple[Host, Host], Path] = {}
        self._partitions: list[Partition] = []
        self._later: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = itertools.count(1)
        self.client = self.host("client", "10.255.255.1", "fd00:ffff::1")

    # -- Hosts and servers ---------------------------------------------------------------------------------------

    def host(self, name: str, *addresses: str) -> Host:
        """The host of that name, made if there is none; its name resolves to its addresses.

        An IP address as a name is its address too; without any it gets one of 10.128.0.0/9.
        """
        if not _is_ip(name) and (not isinstance(name, str) or not name or set("/:").intersection(name)):
            raise ConfigError(f"name={shown(name)}: must be the name of a host, or an IP address")
        known = self._owners.get(_canonical(name)) if _is_ip(name) else self.hosts.get(name)
        if known is not None and not addresses:
            return known
        for address in addresses:
            if not _is_ip(address):
                raise ConfigError(f"addresses={shown(address)}: must be IP addresses")
        if not addresses:
            addresses = (name,) if _is_ip(name) else (self._free_address(),)
        every = tuple(_canonical(address) for address in addresses)
        taken = next((each for each in every if self._owners.get(each, known) is not known), None)
        if taken is not None:
            raise ConfigError(f"addresses={shown(taken)}: belongs to the host {self._owners[taken]} already")
        if known is None:
            known = self.hosts[name] = Host(self, name, every)
        else:
            known.addresses = every
        for each in every:
            self._owners[each] = known
        return known

    def _free_address(self) -> str:
        while True:
            number = next(self._numbers)
            address = f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            if address not in self._owners:
                return address

    @property
    def here(self) -> Host:
        """The host on which the running code is."""
        here = _HERE.get()
        return here if here is not None and here.network is self else self.client

    def serve(
        self, host: Host | str, port: int, handler: Any = Hold, *, rate: float | None = None, backlog: int = 128
    ) -> Server:
        """A server at a port of a host, at all of its addresses; a path instead of a host, for a UNIX socket.

        ``handler``: ``async def handler(reader, writer)``, as for ``asyncio.start_server``, or a class of asyncio
        protocols: `Echo`, `HangUp` (closes at once), `Hold` (takes everything, says nothing). A client that leaves is
        no error of the handler; what else it raises goes to the loop's exception handler. ``rate``: connections
        accepted in a second; ``None``: at once. ``backlog``: how long the queue may be.
        """
        problems = Problems()
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1e9):
            problems.add("rate", rate, "must be a number of connections in a second, more than 0; None: no limit")
        check_integer(problems, "backlog", backlog, 0)
        path = isinstance(host, str) and host.startswith(("/", "\0"))
        if not path:
            check_integer(problems, "port", port, 1, 65535)
        made: list[Server] = []
        factory = factory_of(handler, lambda: made[0])
        if factory is None:
            problems.add("handler", handler, "must be a coroutine function of a reader and a writer, or a Protocol")
        problems.raise_any()
        owner = self.here if path else self._one(host)
        addresses = [cast(str, host)] if path else [sockaddr_of(each, port) for each in owner.addresses]
        made.append(self.listen(owner, addresses, cast(Factory, factory), rate, backlog))
        return made[0]

    def listen(
        self, host: Host, addresses: Sequence[Address], factory: Factory, rate: float | None = None, backlog: int = 128
    ) -> Server:
        """A server at these addresses of a host. Raises EADDRINUSE where one listens already."""
        server = Server(self, host, addresses, factory, rate, backlog)
        for address in addresses:
            key = _key(address)
            if key in self._listeners and self._listeners[key].is_serving():
                raise failure(errno.EADDRINUSE)
            self._listeners[key] = server
        host.servers.append(server)
        return server

    # -- Faults --------------------------------------------------------------------------------------------------

    def script(self, place: str, steps: object) -> None:
        """What the connects to an address, ``"10.0.0.1"`` or ``"10.0.0.1:80"``, meet one after the other.

        A name stands for each of its host's addresses. ``steps``: see `aioconnect.testing.script`; ``"ok"`` for no
        faults any more. Where nobody serves, a connect that succeeds is taken and never answered.
        """
        script = parse_script(steps)
        name, port = _split(place)
        if _is_ip(name):
            owner = self.host(name)
            addresses: Sequence[str] = (_canonical(name),)
        elif name in self.hosts:
            owner = self.hosts[name]
            addresses = owner.addresses
        else:
            raise ConfigError(
                f"place={shown(place)}: must be the address or the name of a host, with or without a port"
            )
        for address in addresses:
            self._scripts[address if port is None else (address, port)] = script

    def chances(self, weights: Mapping[str, float]) -> Iterator[Step]:
        """Steps of a script drawn from this network's seed: ``{"ECONNREFUSED": 0.3, "hang 2s": 0.1}``, else ok."""
        return chances(weights, self.rng.random)

    def dns(self, name: str, *answers: object, delay: float | str = 0.0) -> None:
        """What the lookups of a name find, one after the other; the last is for all further ones.

        Each is an IP address, a sequence of them, or the code of an error: ``"EAI_AGAIN"``, ``"EAI_NONAME"``.
        ``delay``: seconds that a lookup takes.
        """
        problems = Problems()
        seconds = check_duration(problems, "delay", delay, zero=True)
        parsed = [_answer(problems, each) for each in answers]
        if not parsed:
            problems.add("answers", "", "must be at least one: addresses, or a code such as 'EAI_NONAME'")
        problems.raise_any()
        key = name.lower().rstrip(".")
        self._names[key] = itertools.chain(parsed, itertools.repeat(parsed[-1]))
        self._delays[key] = seconds

    def link(
        self,
        a: Host | str,
        b: Host | str,
        *,
        latency: float | str | None = None,
        jitter: float | str = 0.0,
        loss: float = 0.0,
    ) -> None:
        """How long it takes between two hosts, both ways, and how much of it gets lost on the way."""
        problems = Problems()
        rtt = self._defaults[0] if latency is None else check_duration(problems, "latency", latency, zero=True)
        settings = rtt, check_duration(problems, "jitter", jitter, zero=True), _check_loss(problems, loss)
        problems.raise_any()
        there = self.path(self._one(a), self._one(b))
        there.set(*settings)
        there.back.set(*settings)

    def partition(self, a: Any, b: Any = None, *, one_way: bool = False) -> Partition:
        """Cut hosts off from others, by default from all: nothing of ``a`` reaches ``b``, nor the other way round.

        ``a``, ``b``: a host, its name, or several. ``one_way``: what ``b`` sends still gets through. TCP notices as it
        does in life: by keepalive, or when what was sent is not acknowledged. ``heal()`` of the result ends it; so
        does leaving it as a context manager.
        """
        partition = Partition(self, self._some(a), None if b is None else self._some(b), one_way=one_way)
        self._partitions.append(partition)
        self.note("partition", _names_of(self._some(a)), "*" if b is None else _names_of(self._some(b)))
        self.reroute()
        return partition

    def heal(self, partition: Partition | None = None) -> None:
        """End a partition; all of them if none is given."""
        if partition is None:
            self._partitions.clear()
        elif partition in self._partitions:
            self._partitions.remove(partition)
        self.note("heal")
        self.reroute()

    def at(self, when: float | str, callback: Callable[..., object], *args: Any) -> None:
        """Call it at this time of the loop, which may not be there yet."""
        problems = Problems()
        seconds = check_duration(problems, "when", when, zero=True)
        problems.raise_any()
        if self.loop is None:
            self._later.append((seconds, callback, args))
        else:
            self.call_at(seconds, callback, *args)

    # -- The loop ------------------------------------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to a loop. `SimulatedLoop` calls it."""
        if self.loop is not None and self.loop is not loop and not self.loop.is_closed():
            raise RuntimeError("this network belongs to another event loop; make one for each")
        self.loop = loop
        later, self._later = self._later, []
        for seconds, callback, args in later:
            self.call_at(seconds, callback, *args)

    async def __aenter__(self) -> Self:
        """Be the network of the running loop, a `SimulatedLoop`; `run` and `virtual` do that by themselves."""
        loop = asyncio.get_running_loop()
        if not hasattr(type(loop), "network"):
            raise RuntimeError("the running loop cannot carry a network: run on a SimulatedLoop, or with run()")
        cast(Any, loop).network = self
        return self

    async def __aexit__(self, *_: object) -> None:
        for host in self.hosts.values():
            for server in host.servers:
                server.stop("vanish")

    def note(self, *what: object) -> None:
        """Add to the trace, with the time."""
        if self.trace is not None:
            self.trace.append((0.0 if self.loop is None else self.loop.time(), *what))

    def digest(self) -> str:
        """A hash of the trace: equal for equal stories."""
        return hashlib.sha256("\n".join(map(repr, self.trace or ())).encode()).hexdigest()

    # -- As the `socket` module, for the dialer and the resolver -------------------------------------------------

    def socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM, proto: int = 0) -> SimulatedSocket:  # noqa: A002
        """A socket of the host on which the running code is."""
        if family in self.unsupported:
            raise failure(errno.EAFNOSUPPORT)
        return SimulatedSocket(self, self.here, family, type, proto)

    def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        **_: Any,
    ) -> list[tuple[Any, ...]]:
        """The addresses of a name, as `dns` or the host of that name has them."""
        name = host.decode() if isinstance(host, bytes) else str(host)
        if _is_ip(name):
            addresses = [_canonical(name)]
        else:
            addresses = self._resolved(name.lower().rstrip("."))
        found = [address for address in addresses if family in (0, literal_family(address))]
        kind = type or socket.SOCK_STREAM
        return [
            (literal_family(address), kind, proto or socket.IPPROTO_TCP, "", sockaddr_of(address, int(port or 0)))
            for address in found
        ]

    def lookup_delay(self, host: str) -> float:
        """Seconds that a lookup of this name takes."""
        return self._delays.get(host.lower().rstrip("."), 0.0)

    def start_lookup(self, host: str, look_up: Callable[[], None]) -> None:
        """Look up after that time, in place of a thread."""
        self.call_later(self.lookup_delay(host), look_up)

    def _resolved(self, name: str) -> list[str]:
        answers, known = self._names.get(name), self.hosts.get(name)
        if answers is not None:
            answer = next(answers)
        else:
            answer = _NAMELESS if known is None else list(known.addresses)
        self.note("lookup", name, answer)
        if isinstance(answer, int):
            raise socket.gaierror(answer, "the simulated name server says so")
        return answer

    # -- As its sockets see it -----------------------------------------------------------------------------------

    def dialed(self, sock: SimulatedSocket, address: Address) -> Step | None:
        """Note a connect; what the script has for it, if there is one."""
        if self.trace is not None:
            self.note("connect", str(sock.host), format_address(address))
        if not self._scripts:
            return None
        key = _key(address)
        script = self._scripts.get(key) or self._scripts.get(key[0])
        return None if script is None else next(script)

    def route(self, sock: SimulatedSocket, address: Address) -> Path | None:
        """The way to an address, if somebody has it."""
        if isinstance(address, str):
            server = self._listeners.get(address)
            owner = None if server is None else cast(Host, server.host)
        else:
            owner = self._owners.get(address[0])
        return None if owner is None else self.path(cast(Host, sock.host), owner)

    def offer(self, sock: SimulatedSocket, address: Address) -> int | None:
        """A SYN arrives: 0 if a connection is made, an errno, or ``None`` for silence."""
        server = self._listeners.get(_key(address))
        if sock.step is not None and (server is None or not server.is_serving()):
            # A script lets it through to where nobody serves. Not in the place of a server that may start again.
            key = _key(address)
            server = self._nobodies.get(key)
            if server is None:
                host = self._owners[address[0]]
                server = self._nobodies[key] = Server(self, host, [address], Hold)
                host.servers.append(server)
        if server is None or sock.path is None:
            return errno.ECONNREFUSED
        return server.offer(sock, address, sock.path)

    def source(self, sock: SimulatedSocket) -> Address:
        """A free local address."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return ""
        return cast(Host, sock.host).source(sock.family)

    def path(self, source: Host, target: Host) -> Path:
        """The way from one host to another, which knows its way back."""
        found = self._paths.get((source, target))
        if found is not None:
            return found
        settings = (0.0, 0.0, 0.0) if source is target else self._defaults
        there = back = Path(self, *settings)
        self._paths[source, target] = there
        if source is not target:
            back = self._paths[target, source] = Path(self, *settings)
            there.back, back.back = back, there
        there.blocked, back.blocked = self._is_cut(source, target), self._is_cut(target, source)
        there.settle()
        back.settle()
        return there

    def _is_cut(self, source: Host, target: Host) -> bool:
        if source is target:
            return False
        if not (source.is_up and target.is_up):
            return True
        return any(partition.covers(source, target) for partition in self._partitions)

    def reroute(self) -> None:
        """Something was cut or healed: see who gets through to whom."""
        for (source, target), path in self._paths.items():
            path.blocked = self._is_cut(source, target)
        for path in self._paths.values():
            path.settle()
        for sock in dict.fromkeys([*self.open, *self.struggling]):
            sock.rerouted()

    # -- Arguments -----------------------------------------------------------------------------------------------

    def _one(self, given: Host | str) -> Host:
        if isinstance(given, Host):
            return given
        return self.host(given)

    def _some(self, given: Any) -> frozenset[Host]:
        every = [given] if isinstance(given, (Host, str)) else list(given)
        for each in every:
            if not isinstance(each, Host) and each not in self.hosts and self._owners.get(each) is None:
                raise ConfigError(f"host={shown(each)}: is none of this network: {', '.join(self.hosts)}")
        return frozenset(self._one(each) for each in every)


def _is_ip(text: object) -> bool:
    return isinstance(text, str) and literal_family(text) is not None


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address.partition("%")[0]))


def sockaddr_of(address: str, port: int) -> tuple[Any, ...]:
    """An address and a port as the socket module has them."""
    return (address, port, 0, 0) if ":" in address else (address, port)


def _key(address: Address) -> Any:
    return address if isinstance(address, str) else address[:2]


def _split(place: str) -> tuple[str, int | None]:
    """A host and perhaps a port; IPv6 in brackets if there is a port."""
    if not isinstance(place, str):
        raise ConfigError(f"place={shown(place)}: must be an address or a name, with or without a port")
    host, colon, port = place.rpartition(":")
    if not colon or _is_ip(place):
        return place, None
    if not port.isascii() or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise ConfigError(f"place={shown(place)}: must end with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _check_loss(problems: Problems, loss: object) -> float:
    if isinstance(loss, bool) or not isinstance(loss, (int, float)) or not 0 <= loss < 1:
        problems.add("loss", loss, "must be a share, from 0 to less than 1; what loses everything is a partition")
        return 0.0
    return float(loss)


def _answer(problems: Problems, given: object) -> list[str] | int:
    if isinstance(given, str) and given.startswith("EAI_"):
        number = getattr(socket, given, None)
        if number is None:
            problems.add("answers", given, "must be a code of getaddrinfo, such as 'EAI_NONAME' or 'EAI_AGAIN'")
            return _NAMELESS
        return int(number)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    several = isinstance(given, Iterable) and not isinstance(given, str)
    every: list[object] = list(cast("Iterable[object]", given)) if several else [given]
    found = [_canonical(each) for each in every if isinstance(each, str) and _is_ip(each)]
    if not found or len(found) < len(every):
        problems.add("answers", every, "must be IP addresses, or a code such as 'EAI_NONAME'")
    return found


def _names_of(hosts: frozenset[Host]) -> str:
    return ",".join(sorted(host.name for host in hosts))
