"""Addresses to one connected socket: a race (RFC 8305) over connects of our own.

Not ``loop.sock_connect``: uvloop's sends even an IP address through its resolver threads and loses the IPv6 scope,
asyncio's may return before its writer is removed. A non-blocking ``connect_ex`` and ``add_writer`` do the same on
both loops, and each address keeps its own error. On loopback the kernel has finished the handshake by the time the
first ``connect_ex`` returns, so a second one often ends the dial, well or badly, without a turn of the event loop.

The seam for a simulated network is the shape of the ``socket`` module: a loop may carry another one as ``network``.
Of the real one, only the sockets are our own.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aioconnect import codes, errors
from aioconnect.endpoint import Endpoint, Keepalive
from aioconnect.errors import ConnectTimeout, Decides, NetworkError
from aioconnect.limits import Source, wait_until
from aioconnect.race import Race
from aioconnect.resolver import AddressInfo

__all__ = ("Dial", "DialOptions", "begin_dial", "dial_addresses", "dial_options", "plain")

_LINUX = sys.platform == "linux"
_CONNECTED = frozenset({0, errno.EISCONN})
_NONBLOCK: int = getattr(socket, "SOCK_NONBLOCK", 0)
# EWOULDBLOCK is Windows' way to say EINPROGRESS; on Linux it is EAGAIN, a full UNIX backlog (connect(2)).
_PENDING = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR} | (set() if _LINUX else {errno.EWOULDBLOCK}))
_LIVING = _CONNECTED | _PENDING

# Whole seconds everywhere. macOS calls the idle time TCP_KEEPALIVE (tcp(4)).
_KEEPIDLE: int | None = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_KEEPINTVL: int | None = getattr(socket, "TCP_KEEPINTVL", None)
_KEEPCNT: int | None = getattr(socket, "TCP_KEEPCNT", None)


def _lowest_ephemeral_port() -> int:
    """From where on the kernel takes ports to dial from (ip(7), ip_local_port_range); 1024 where it does not say."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", "rb") as told:  # noqa: PTH123  (3 ms to import pathlib)
            return int(told.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 1024


# As it is when this is imported: read again for each dial it would cost as much as it saves.
_LOWEST_EPHEMERAL_PORT = _lowest_ephemeral_port()

Option = tuple[int, int, int]


class _Socket(socket.socket):
    """A socket whose family and type are numbers, as a loop looks at them when it is handed one.

    ``socket.socket`` makes enums of them at each look, and that takes 5 % of a connect on uvloop, 3 % on asyncio.
    """

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    type = socket.SocketType.type  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]


class _Kernel:
    """The network of loops that carry none."""

    socket = _Socket


def plain(sock: socket.socket) -> socket.socket:
    """A dialed socket for other hands than a loop's: one as the ``socket`` module makes them."""
    if type(sock) is _Socket:
        sock.__class__ = socket.socket  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    return sock


class DialOptions(NamedTuple):
    """How every socket of an endpoint is set up and raced; made once for an endpoint by `dial_options`."""

    options: tuple[Option, ...] = ()
    local_addr: tuple[str, int] | None = None
    delay: float | None = 0.25


def dial_options(endpoint: Endpoint, *, for_loop: bool = True) -> DialOptions:
    """The socket options of an endpoint. Sockets ``for_loop`` are given TCP_NODELAY by the loop's own transport."""
    if endpoint.path is not None:
        return DialOptions(delay=None)
    options = _keepalive_options(endpoint.keepalive)
    if endpoint.user_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        # Rounded first: 0.029 * 1000 is a little more than 29.
        milliseconds = math.ceil(round(endpoint.user_timeout * 1000, 6))
        options += ((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds),)
    if endpoint.nodelay and not for_loop:
        options += ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    return DialOptions(options, endpoint.local_addr, endpoint.happy_eyeballs_delay)


def _keepalive_options(keepalive: Keepalive | None) -> tuple[Option, ...]:
    if keepalive is None:
        return ()
    values = math.ceil(keepalive.idle), math.ceil(keepalive.interval), keepalive.count
    times = zip((_KEEPIDLE, _KEEPINTVL, _KEEPCNT), values, strict=True)
    return (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *((socket.IPPROTO_TCP, option, value) for option, value in times if option is not None),
    )


async def dial_addresses(
    addresses: Sequence[AddressInfo],
    options: DialOptions = DialOptions(),
    limit: float = math.inf,
    source: Source = "call",
    policy: Decides | None = None,
) -> tuple[socket.socket, AddressInfo]:
    """The first connected, non-blocking socket, and its address; all others are closed.

    ``limit`` is a loop time, ``source`` whose limit it is. ``policy`` helps to choose the error that decides.
    Raises that error, a `ConnectError` whose ``errors`` holds one for each address that was tried.
    """
    dialed = begin_dial(asyncio.get_running_loop(), addresses, options)
    return await dialed.won(limit, source, policy) if isinstance(dialed, Dial) else dialed


def begin_dial(
    loop: asyncio.AbstractEventLoop, addresses: Sequence[AddressInfo], options: DialOptions
) -> tuple[socket.socket, AddressInfo] | Dial:
    """Dial the first address. What `dial_addresses` returns, if it is connected at once; else what is to be awaited.

    No coroutine, since a dial over loopback needs none: that makes 2 % of a connect on uvloop.
    """
    network = getattr(loop, "network", _Kernel)
    began = loop.time()
    first = _begin(network, addresses[0], options)
    sock, number, _, _ = first
    # The machinery of a race is for dials that are not over at once, and for those with somewhere else to go.
    if sock is None:
        if len(addresses) == 1:
            raise _failure(first, addresses[0], options, loop.time() - began)
    elif number == 0:
        return sock, addresses[0]
    return Dial(loop, addresses, options, first, began)


_Begun = tuple[socket.socket | None, int, codes.Phase, str | None]
"""A connect that was begun: its socket, an errno, where it was, and the system's words.

With a socket it is connected (0) or under way (pending); without one it is over. A plain tuple, since every dial makes
one and a named one costs four times as much.
"""


def _begin(network: Any, info: AddressInfo, options: DialOptions) -> _Begun:
    """Make a socket and connect it as far as goes without waiting; one that failed is closed."""
    family, kind, proto, address, _ = info
    try:
        sock = network.socket(family, kind | _NONBLOCK, proto)
    except OSError as exc:
        return None, exc.errno or 0, "socket", str(exc)
    words: str | None = None
    phase: codes.Phase = "socket"
    try:
        if not _LINUX:
            _set_up(sock, options)
        if options.local_addr is not None:
            phase = "bind"
            sock.bind(_bindable(options.local_addr))
        phase = "connect"
        number: int = sock.connect_ex(address)
        if number == errno.EINPROGRESS and _LINUX:
            # BSD may answer a second connect on a failed socket with another error, so only where it is exact.
            number = sock.connect_ex(address)
        if number in _LIVING and _LINUX:
            # Only now, for a socket that was refused needs none of it: 6 % of a refused dial over loopback. BSD has no
            # options for a socket that may have been reset meanwhile.
            phase = "socket"
            _set_up(sock, options)
        if number in _CONNECTED:
            return _settled(sock, address, options)
        if number in _PENDING:
            return sock, number, "connect", None
    except OSError as exc:
        number, words = exc.errno or 0, str(exc)
    except BaseException:
        sock.close()
        raise
    sock.close()
    return None, number, phase, words


def _set_up(sock: socket.socket, options: DialOptions) -> None:
    if not _NONBLOCK:
        sock.settimeout(0)
    for level, option, value in options.options:
        sock.setsockopt(level, option, value)


def _bindable(address: tuple[str, int]) -> tuple[Any, ...]:
    """A local address as bind(2) takes it: an IPv6 interface goes in as a number (ipv6(7))."""
    host, percent, scope = address[0].partition("%")
    if not percent:
        return address
    return host, address[1], 0, int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


def _settled(sock: socket.socket, address: tuple[Any, ...] | str, options: DialOptions) -> _Begun:
    """A connected socket, unless it is connected to itself; then it is closed.

    A dial to a port of the ephemeral range on this host may be given that very port to dial from, and TCP's
    simultaneous open (RFC 9293 section 3.5) then succeeds with nobody there. To ask for the local address costs 5 % of
    a connect on uvloop, and the ports of services are rarely of that range.
    """
    if isinstance(address, str) or (address[1] < _LOWEST_EPHEMERAL_PORT and options.local_addr is None):
        return sock, 0, "connect", None
    number, words = errno.ECONNREFUSED, None
    try:
        local = sock.getsockname()
        if local[1] != address[1] or local != sock.getpeername():
            return sock, 0, "connect", None
        words = "connected to itself: nothing listens there"
    except OSError as exc:
        # Reset already: macOS then has no peer to name.
        number = exc.errno or errno.ECONNRESET
    sock.close()
    return None, number, "connect", words


def _failure(begun: _Begun, info: AddressInfo, options: DialOptions, elapsed: float) -> NetworkError:
    """The error of one address."""
    local = options.local_addr
    _, number, phase, words = begun
    return errors.typed(
        codes.code_of(number) if number else "UNKNOWN",
        phase,
        info.sockaddr,
        number or None,
        strerror=words if number in (0, errno.ECONNREFUSED) else None,
        port_given=local is not None and local[1] != 0,
        elapsed=elapsed,
    )


class Dial:
    """A race under way: the sockets, the timer, and what each address has answered."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Sequence[AddressInfo],
        options: DialOptions,
        first: _Begun,
        began: float,
    ) -> None:
        self.loop = loop
        self.network = getattr(loop, "network", _Kernel)
        self.addresses = addresses
        self.options = options
        self.first = first
        self.began = began
        self.race = Race(len(addresses), options.delay)
        self.flying: dict[socket.socket, tuple[int, float]] = {}
        self.failures: dict[int, NetworkError] = {}
        self.winner: tuple[socket.socket, AddressInfo] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.over: asyncio.Future[None] = loop.create_future()

    async def won(self, limit: float, source: Source, policy: Decides | None) -> tuple[socket.socket, AddressInfo]:
        """Go on from the first address, already begun, to the winner or to the error that decides."""
        try:
            self._account(self.race.start(self.began) or 0, self.first, self.began)
            self._start_due(self.began)
            if not self.over.done() and not await wait_until(self.over, limit):
                self._cut(source)
            if self.winner is None:
                raise self._error(policy)
            winner, self.winner = self.winner, None
            return winner
        except asyncio.CancelledError as cancelled:
            if cancelled.__context__ is None and self.failures:
                cancelled.__context__ = self._error(policy)
            raise
        finally:
            self._close()

    def _start_due(self, at: float) -> None:
        """Start what is due. ``at``: the time a timer was set for, since uvloop's fire up to a millisecond early."""
        now = max(at, self.loop.time())
        while self.winner is None and (number := self.race.start(now)) is not None:
            self._account(number, _begin(self.network, self.addresses[number], self.options), now)
            # A failure makes the next address due at its own time, which is later than this turn's.
            now = max(now, self.loop.time())
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.winner is not None or self.race.lost:
            if not self.over.done():
                self.over.set_result(None)
        elif (due := self.race.next_start) is not None:
            self.timer = self.loop.call_at(due, self._called, self._start_due, due)

    def _called(self, step: Callable[[Any], None], argument: Any) -> None:
        """Called by the loop, whose handler is the wrong place for an exception: `won` is to raise it."""
        try:
            step(argument)
        except Exception as exc:
            if self.over.done():
                raise
            self.over.set_exception(exc)

    def _account(self, number: int, begun: _Begun, began: float) -> None:
        sock, answer, _, _ = begun
        if sock is None:
            self._fail(number, begun, began)
        elif answer == 0:
            self.winner = sock, self.addresses[number]
        else:
            self.flying[sock] = number, began
            try:
                self.loop.add_writer(sock, self._called, self._writable, sock)
            except OSError as exc:
                del self.flying[sock]
                sock.close()
                self._fail(number, (None, exc.errno or 0, "connect", str(exc)), began)

    def _fail(self, number: int, begun: _Begun, began: float) -> None:
        now = self.loop.time()
        self.failures[number] = _failure(begun, self.addresses[number], self.options, now - began)
        self.race.fail(now)

    def _writable(self, sock: socket.socket) -> None:
        """The kernel has an answer for this socket; after another has won, it is too late."""
        self.loop.remove_writer(sock)
        number, began = self.flying.pop(sock)
        outcome = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self.winner is not None:
            sock.close()
            return
        begun: _Begun = None, outcome, "connect", None
        if outcome == 0:
            begun = _settled(sock, self.addresses[number].sockaddr, self.options)
        else:
            sock.close()
        self._account(number, begun, began)
        self._start_due(-math.inf)

    def _cut(self, source: Source) -> None:
        """The limit has passed: what is known stays known, and the silent addresses are said to be so."""
        now = self.loop.time()
        for number, began in self.flying.values():
            self.failures[number] = ConnectTimeout(
                None,
                f"no answer within {now - began:.1f} s",
                address=self.addresses[number].sockaddr,
                elapsed=now - began,
                source=source,
            )

    def _error(self, policy: Decides | None) -> NetworkError:
        found = tuple(error for _, error in sorted(self.failures.items()))
        deciding = errors.decisive(found, policy)
        return deciding if len(found) == 1 else deciding.replace(errors=found)

    def _close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for sock in self.flying:
            self.loop.remove_writer(sock)
            sock.close()
        self.flying.clear()
        if self.winner is not None:
            self.winner[0].close()
