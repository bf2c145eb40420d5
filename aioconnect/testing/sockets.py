"""Simulated sockets: one end of a TCP connection as the kernel has it, with what the dialer uses of ``socket``.

What follows Linux: a silent connect sends its SYN again after 1, 3, 7 ... s; data that is not acknowledged is sent
again and given up after `USER_TIMEOUT` seconds, or those of TCP_USER_TIMEOUT; SO_KEEPALIVE finds a dead peer; data to
a closed socket is answered by RST, and so is closing with input unread; RST gets lost where the path is cut.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import math
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

from aioconnect.testing.fabric import FIRST_RTO, LAST_RTO, Fabric, Path
from aioconnect.testing.script import Step

__all__ = ("FIN", "RST", "Address", "Receiver", "Router", "SimulatedSocket", "failure")

FIN, RST = "FIN", "RST"

SYN_RETRIES = 6
"""Linux's tcp_syn_retries (tcp(7)): seven SYNs, the last wait of 64 s included 127 s."""

USER_TIMEOUT = 924.6
"""Seconds after which Linux gives up a connection whose data is not acknowledged: tcp_retries2 is 15 (tcp(7))."""

_KEEPIDLE: int = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 4))
_KEEPINTVL: int = getattr(socket, "TCP_KEEPINTVL", 5)
_KEEPCNT: int = getattr(socket, "TCP_KEEPCNT", 6)
_USER_TIMEOUT: int = getattr(socket, "TCP_USER_TIMEOUT", 18)

Address = tuple[Any, ...] | str


def failure(number: int) -> OSError:
    """The error of an errno, of the class that Python has for it."""
    return OSError(number, os.strerror(number))


def _is_loss(item: bytes | str | OSError) -> bool:
    return item is RST or isinstance(item, OSError)


class Receiver(Protocol):
    """A transport, as its socket sees it."""

    def take(self, item: bytes | str | OSError) -> None:
        """Data, FIN, RST, or an error of our own side."""
        ...

    def room(self) -> None:
        """The peer has taken something: there may be room to send more."""
        ...

    def is_writing(self) -> bool:
        """Whether something waits for room: then a loss is heard at once, whatever is unread."""
        ...


class Router(Fabric):
    """What a socket asks of its network."""

    window: int
    unbindable: dict[str, int]
    """Local addresses that cannot be bound, with the errno."""
    open: dict[SimulatedSocket, None]
    """Sockets that nobody has closed yet, in the order in which they were made."""
    struggling: dict[SimulatedSocket, None]
    """Sockets with something to send again, closed ones too."""
    connecting = 0
    most_connecting = 0

    def dialed(self, sock: SimulatedSocket, address: Address) -> Step | None:
        """Note a connect; what the script has for it, if there is one."""
        raise NotImplementedError

    def route(self, sock: SimulatedSocket, address: Address) -> Path | None:
        """The way to an address, if somebody has it."""
        raise NotImplementedError

    def offer(self, sock: SimulatedSocket, address: Address) -> int | None:
        """A SYN arrives: 0 if a connection is made, which `established` tells; an errno; ``None`` for silence."""
        raise NotImplementedError

    def source(self, sock: SimulatedSocket) -> Address:
        """A free local address."""
        raise NotImplementedError


class SimulatedSocket:
    """One end of a connection. Closed by `close`, and by nothing else."""

    __slots__ = (
        "_arrival",
        "_dying",
        "_inbox",
        "_options",
        "_outstanding",
        "_since",
        "_stalled",
        "_timer",
        "_watcher",
        "closed",
        "cut",
        "ended",
        "family",
        "heard",
        "host",
        "local",
        "network",
        "number",
        "path",
        "peer",
        "proto",
        "receiver",
        "remote",
        "sent_fin",
        "state",
        "step",
        "type",
        "vanished",
    )

    def __init__(self, network: Router, host: Any, family: int, kind: int, proto: int = 0) -> None:
        self.network = network
        self.host = host
        self.family = family
        self.type = kind
        self.proto = proto
        self.local: Address | None = None
        self.remote: Address | None = None
        self.state = "new"
        self.number = 0
        self.step: Step | None = None
        self.closed = self.vanished = self.sent_fin = self.ended = False
        self.peer: SimulatedSocket | None = None
        self.path: Path | None = None
        self.receiver: Receiver | None = None
        self.cut: tuple[str, int] | None = None
        """How the connection is to end once this side has sent so many bytes."""
        self.heard = 0.0
        self._options: dict[tuple[int, int], Any] | None = None
        self._watcher: tuple[contextvars.Context, Callable[..., object], tuple[Any, ...]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._inbox: deque[bytes | str | OSError] = deque()
        self._outstanding = 0
        self._stalled: deque[bytes | str] | None = None
        self._arrival = 0.0
        self._since: float | None = None
        self._dying: asyncio.TimerHandle | None = None
        network.open[self] = None

    # -- As `socket.socket` --------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """No descriptor of the system's."""
        return -1

    def gettimeout(self) -> float:
        """Always non-blocking."""
        return 0.0

    def settimeout(self, value: float | None) -> None:
        """Always non-blocking, whatever is asked for."""

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  (as the socket's)
        """Always non-blocking, whatever is asked for."""

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Keep an option; keepalive, TCP_USER_TIMEOUT and SO_LINGER have their effect."""
        if self._options is None:
            self._options = {}
        self._options[level, option] = value

    def getsockopt(self, level: int, option: int) -> Any:
        """An option, 0 if it was never set; the errno for SO_ERROR."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return self.number
        return 0 if self._options is None else self._options.get((level, option), 0)

    @property
    def options(self) -> list[tuple[int, int, Any]]:
        """The options that were set, in order."""
        return [(*key, value) for key, value in (self._options or {}).items()]

    def bind(self, address: Any) -> None:
        """Take a local address."""
        self.local = tuple(address)
        if (number := self.network.unbindable.get(address[0])) is not None:
            raise failure(number)

    def getsockname(self) -> Any:
        """The local address."""
        if self.local is None:
            return ("0.0.0.0", 0) if self.family == socket.AF_INET else ("::", 0, 0, 0)  # noqa: S104  (no bind)
        return self.local

    def getpeername(self) -> Any:
        """The remote address. Raises ENOTCONN without one."""
        if self.state != "open":
            raise failure(errno.ENOTCONN)
        return self.remote

    def connect_ex(self, address: Any) -> int:
        """As the kernel's, on a non-blocking socket: 0, EINPROGRESS or an errno."""
        if self.closed:
            return errno.EBADF
        if self.state != "new":
            return {"connecting": errno.EALREADY, "open": errno.EISCONN}.get(self.state, self.number)
        network = self.network
        self.remote, self.state = address, "connecting"
        network.connecting += 1
        self.step = step = network.dialed(self, address)
        self._bind_to_free_port()
        self.path = network.route(self, address)
        if step is not None and (step.number or step.delay is not None):
            self._scripted(step)
        elif self.path is not None:
            self._syn(0)
        elif isinstance(address, str):
            self._refused(errno.ENOENT)
        else:
            # As when nobody answers the question of ARP.
            self._wait(3.0, self._refused, errno.EHOSTUNREACH)
        if self.state != "connecting":
            return self.number
        network.most_connecting = max(network.most_connecting, network.connecting)
        return errno.EINPROGRESS

    def _bind_to_free_port(self) -> None:
        if self.local is None or not self.local[1]:
            free = self.network.source(self)
            self.local = free if self.local is None else (self.local[0], *free[1:])

    def shutdown(self, how: int) -> None:
        """End the sending side."""
        if self.state != "open":
            raise failure(errno.ENOTCONN)
        if how != socket.SHUT_RD and not self.sent_fin:
            self.sent_fin = True
            self.transmit(FIN)

    def close(self) -> None:
        """Close: FIN; or RST with input unread, or with SO_LINGER on and a time of 0 (socket(7))."""
        if self.closed:
            return
        self.closed = True
        self.network.open.pop(self, None)
        if self.state == "connecting":
            self.network.connecting -= 1
        for timer in (self._timer, self._dying):
            if timer is not None:
                timer.cancel()
        self._timer = self._dying = None
        if self.state == "open" and not self.vanished:
            if any(isinstance(item, bytes) for item in self._inbox) or self._lingers_not():
                self.transmit(RST)
            elif not self.sent_fin:
                self.sent_fin = True
                self.transmit(FIN)
        self._inbox.clear()
        self.receiver = None
        peer = self.peer
        if peer is not None and peer.closed and self._stalled is None and peer._stalled is None:  # noqa: SLF001
            # Nothing comes of what is still under way: they need not wait for the garbage collector.
            self.peer = peer.peer = None

    def _lingers_not(self) -> bool:
        if self._options is None:
            return False
        linger = self._options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        return isinstance(linger, (bytes, bytearray)) and linger[:1] == b"\1" and not any(linger[4:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.state
        return f"<SimulatedSocket {self.host} {self.local} -> {self.remote} {state}>"

    # -- Watched by the loop -------------------------------------------------------------------------------------

    def watch(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Call it when the connect is decided, as ``add_writer`` does; at once if it is."""
        # As an asyncio handle, in the context of who watches: what it goes on to dial comes from the same host.
        self._watcher = contextvars.copy_context(), callback, args
        if self.state in {"open", "failed"}:
            self.network.running().call_soon(self._tell)

    def unwatch(self) -> bool:
        """As ``remove_writer``."""
        if self.closed:
            raise RuntimeError("the writer has to go before the socket: its number may be another's by then")
        found, self._watcher = self._watcher is not None, None
        return found

    def _tell(self) -> None:
        if self._watcher is not None:
            context, callback, args = self._watcher
            context.run(callback, *args)

    # -- Connecting ----------------------------------------------------------------------------------------------

    def _wait(self, delay: float, callback: Callable[[Any], object], argument: Any) -> None:
        self._timer = self.network.call_later(delay, callback, argument)

    def _scripted(self, step: Step) -> None:
        if step.word == "hang" and step.delay is None:
            self._silent(SYN_RETRIES)
        elif step.number:
            delay = step.delay if step.delay is not None else 2 * self.path.delay if self.path is not None else 0.0
            if delay:
                self._wait(delay, self._refused, step.number)
            else:
                self._refused(step.number)
        elif step.delay:
            self._wait(step.delay, self._accepted, None)
        else:
            self._accepted(None)

    def _accepted(self, _: object) -> None:
        """The script lets it through: whatever serves there has it, now."""
        outcome = self.network.offer(self, self.remote or "")
        if outcome is None:
            self._silent(0)
        else:
            self._refused(outcome)

    def _syn(self, retries: int) -> None:
        """Send the SYN, for the first time or again."""
        path = self.path
        if path is None:
            return
        if path.blocked:
            self._silent(retries)
        elif path.plain and not path.delay:
            self._arrived(retries)
        elif path.plain:
            path.lane.put(self._arrived, retries)
        else:
            self.network.call_later(path.duration(1.0), self._arrived, retries)

    def _arrived(self, retries: int) -> None:
        """The SYN is at the other side, which answers, or drops it."""
        if self.closed or self.state != "connecting" or self.path is None:
            return
        back = self.path.back
        if back.blocked:
            self._silent(retries)
            return
        outcome = self.network.offer(self, self.remote or "")
        if outcome is None:
            self._silent(retries)
        elif back.plain and not back.delay:
            self._refused(outcome)
        elif back.plain:
            back.lane.put(self._refused, outcome)
        else:
            self.network.call_later(back.duration(1.0), self._refused, outcome)

    def _silent(self, retries: int) -> None:
        """No answer: wait for the next SYN, or give up after the last."""
        if self.step is not None and self.step.word == "hang":
            self._wait(127.0, self._refused, errno.ETIMEDOUT)
        elif retries < SYN_RETRIES:
            self._wait(2.0**retries, self._syn, retries + 1)
        else:
            self._wait(2.0**retries, self._refused, errno.ETIMEDOUT)

    def _refused(self, number: int) -> None:
        """The connect is decided; with 0, well."""
        if self.state != "connecting":
            return
        if self.closed:
            if number == 0 and self.peer is not None:
                # It has given up meanwhile: its kernel answers the SYN-ACK by RST.
                self.peer.arrive(RST)
            return
        self.network.connecting -= 1
        self.number = number
        self.state = "failed" if number else "open"
        self.heard = self.network.running().time()
        if number == 0 and self.peer is not None and self.peer.cut is not None and not self.peer.cut[1]:
            self.peer.cut_off()
        if self._watcher is not None:
            self.network.running().call_soon(self._tell)

    def join(self, peer: SimulatedSocket, path: Path) -> None:
        """Become the end of an established connection."""
        self.peer = peer
        self.path = path
        self.heard = self.network.running().time()

    # -- Sending -------------------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """How much of it there is room for, and is on its way. Raises what the connection died of."""
        if self._inbox and (lost := self._lost()) is not None:
            raise lost
        room = self.network.window - self._outstanding
        if self.cut is not None:
            return self._send_until_cut(data, room)
        if room <= 0:
            return 0
        piece = bytes(data) if len(data) <= room else bytes(data[:room])
        self._outstanding += len(piece)
        self.transmit(piece)
        return len(piece)

    def _send_until_cut(self, data: bytes | bytearray | memoryview, room: int) -> int:
        word, left = self.cut or ("stall", 0)
        piece = bytes(data[: max(0, min(room, left))])
        if piece:
            self._outstanding += len(piece)
            self.transmit(piece)
        self.cut = word, left - len(piece)
        if len(piece) == left:
            self.cut_off()
            return len(data)
        return len(piece)

    def cut_off(self) -> None:
        """End the connection as the script has it, for both sides."""
        word = self.cut[0] if self.cut is not None else "stall"
        if word == "stall":
            self.cut = word, 0
            return
        self.cut = None
        self.transmit(FIN if word == "close" else RST)
        self.arrive(RST)
        self.vanished = True

    def transmit(self, item: bytes | str) -> None:
        """Put data, FIN or RST on its way to the peer."""
        path, peer = self.path, self.peer
        if path is None or peer is None or (self.cut is not None and self.cut == ("stall", 0)):
            return
        if path.plain and self._stalled is None:
            path.lane.put(peer.arrive, item)
        else:
            self._struggle(path, peer, item)

    def _struggle(self, path: Path, peer: SimulatedSocket, item: bytes | str) -> None:
        if path.blocked or self._stalled is not None:
            if item is RST:
                # Sent once; nobody acknowledges it.
                return
            if self._stalled is None:
                self._stalled = deque()
                self.network.struggling[self] = None
            self._stalled.append(item)
            if path.blocked:
                self._unacknowledged()
            return
        if path.back.blocked:
            self._unacknowledged()
        now = self.network.running().time()
        if max(path.floor, path.uneven_until) <= now:
            path.settle()
        when, after = now + path.duration(), max(self._arrival, path.floor)
        self._arrival = when = when if when > after else math.nextafter(after, math.inf)
        path.uneven_until = max(path.uneven_until, when)
        self.network.call_at(when, peer.arrive, item)

    def _unacknowledged(self) -> None:
        """From now on, if not before, it is sent again and again; while it is, keepalive does not count."""
        if self._since is not None:
            return
        self._since = self.network.running().time()
        if self._dying is not None:
            self._dying.cancel()
            self._dying = None
        if not self.closed:
            limit = self.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) / 1000 or USER_TIMEOUT
            self._dying = self.network.call_later(limit, self._given_up)

    def _given_up(self) -> None:
        self._dying = None
        self._stalled = None
        self.network.struggling.pop(self, None)
        self.vanished = True
        self.arrive(failure(errno.ETIMEDOUT))

    # -- Cut and healed ------------------------------------------------------------------------------------------

    def rerouted(self) -> None:
        """Something was cut or healed somewhere: see what that means here."""
        if self.path is None or self.state != "open":
            return
        if self.path.blocked or self.path.back.blocked:
            self._path_cut()
        else:
            self._path_healed()

    def _path_cut(self) -> None:
        """From here on it is sent again what nobody acknowledges; where there is nothing, keepalive counts."""
        if self._stalled is not None:
            self._unacknowledged()
        if self.closed or self._dying is not None:
            return
        if self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            self._dying = self.network.call_at(self._keepalive_end(), self._given_up)

    def _keepalive_end(self) -> float:
        """When the last probe will have gone unanswered; the probes until now were answered."""
        idle, interval, count = (
            self.getsockopt(socket.IPPROTO_TCP, option) or default
            for option, default in ((_KEEPIDLE, 7200), (_KEEPINTVL, 75), (_KEEPCNT, 9))
        )
        now = self.network.running().time()
        answered = max(0, math.floor((now - self.heard) / idle))
        after = count * interval
        if limit := self.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) / 1000:
            # It overrides the number of probes, one at least is sent (tcp(7)).
            after = max(interval, limit - idle)
        return self.heard + answered * idle + idle + after

    def _path_healed(self) -> None:
        """Both directions get through again: what was not acknowledged is sent at its next time."""
        if self._dying is not None:
            self._dying.cancel()
            self._dying = None
        now = self.network.running().time()
        when, rto = now if self._since is None else self._since, FIRST_RTO
        self._since = None
        if self._stalled is None:
            return
        while when < now:
            when += rto
            rto = min(2 * rto, LAST_RTO)
        self.network.call_at(when, self._resend)

    def _resend(self) -> None:
        stalled, path = self._stalled, self.path
        if stalled is None or path is None or path.blocked:
            return
        self._stalled = None
        self.network.struggling.pop(self, None)
        for item in stalled:
            self.transmit(item)

    def vanish(self) -> None:
        """This side's machine forgets the connection without a word; whatever still comes is answered by RST."""
        self.vanished = True
        self.cut = None
        self._stalled = None
        self.network.struggling.pop(self, None)

    # -- Receiving -----------------------------------------------------------------------------------------------

    def arrive(self, item: bytes | str | OSError) -> None:
        """Something is here: for the transport, for later, or for nobody."""
        if self.closed or (self.vanished and not isinstance(item, OSError)):
            if item is not RST and (self.vanished or item is not FIN) and self.peer is not None:
                path = self.path
                if path is not None and not path.blocked and self.cut is None:
                    self._answer_reset(path, self.peer)
            return
        self.heard = self.network.running().time()
        if item is FIN:
            self.ended = True
        if self.receiver is None or (self._inbox and not (_is_loss(item) and self.receiver.is_writing())):
            self._inbox.append(item)
        else:
            self.receiver.take(item)

    def _answer_reset(self, path: Path, peer: SimulatedSocket) -> None:
        if path.plain:
            path.lane.put(peer.arrive, RST)
        else:
            self.network.call_later(path.duration(), peer.arrive, RST)

    def hold(self, item: bytes | str | OSError) -> None:
        """Keep what the transport does not want to have yet."""
        self._inbox.append(item)

    def release(self, wanted: Callable[[], bool]) -> None:
        """Hand over what was kept, as long as it is wanted."""
        while self._inbox and self.receiver is not None and wanted():
            self.receiver.take(self._inbox.popleft())

    def taken(self, size: int) -> None:
        """So much was read: its sender has room again."""
        peer = self.peer
        if peer is None:
            return
        peer._outstanding -= size  # noqa: SLF001  (the other end)
        if (receiver := peer.receiver) is not None and self.path is not None and not self.path.blocked:
            receiver.room()

    @property
    def unread(self) -> bool:
        """Whether something is here that nobody has read."""
        return bool(self._inbox)

    def _lost(self) -> OSError | None:
        """What the connection has died of, if that is here and nobody has read it yet."""
        last = self._inbox[-1]
        return self.reset() if last is RST else last if isinstance(last, OSError) else None

    def reset(self) -> OSError:
        """What RST means here: after FIN, Linux says EPIPE."""
        return failure(errno.EPIPE if self.ended else errno.ECONNRESET)
