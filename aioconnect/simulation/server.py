"""The network and the server of a simulation, in the shape of the ``socket`` module.

One server, as far as TCP shows it to a crowd: it refuses or is silent while it is down, and then takes connections
from its accept queue one after the other. A connect is answered when the server has accepted it, so a client counts as
connected at the time at which one that waits for a greeting would. A client that gives up before that stays in the
queue, and costs the server as much as any other: as in life.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
import socket
from array import array
from collections import deque
from functools import partial
from typing import Any

from aioconnect.simulation.loop import FleetLoop
from aioconnect.simulation.scenario import BIN, Scenario

__all__ = ("CrowdedServer", "CrowdSocket")

_LAST_SYN = 6
"""Linux's tcp_syn_retries (tcp(7)): seven SYNs, and ETIMEDOUT 64 s after the last."""

_HASHED = 8192
"""Times that are hashed in one go."""


class CrowdSocket:
    """A client's end, with what the dialer uses of a socket."""

    __slots__ = ("_asked", "_server", "closed", "number", "timer", "watcher")

    def __init__(self, server: CrowdedServer) -> None:
        self._server = server
        self._asked = False
        self.number: int | None = None
        """The errno that decides the connect, 0 for a good one; ``None`` while it is under way."""
        self.closed = False
        self.watcher: Any = None
        self.timer: asyncio.TimerHandle | None = None

    def connect_ex(self, _address: object) -> int:
        """Send a SYN, once."""
        if self._asked:
            return errno.EALREADY if self.number is None else self.number
        self._asked = True
        self._server.send_syn(self)
        return errno.EINPROGRESS

    def answer(self, number: int) -> None:
        """The answer is here."""
        self.number = number
        if self.watcher is not None:
            self.watcher()

    def getsockopt(self, _level: int, _option: int) -> int:
        """SO_ERROR."""
        return self.number or 0

    def setsockopt(self, *_: object) -> None:
        """Has no meaning here."""

    def close(self) -> None:
        """Give up, or hang up."""
        self.closed = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class CrowdedServer:
    """What the loop carries as ``network``: all sockets lead to the one server.

    Counts what arrives: ``arrivals``, SYNs that begin a connect, by `BIN` after the return; ``attempts``, all of
    them; ``overflowed``, SYNs for which there was no room; ``accepted``, and ``wasted``, those whose client had left.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.loop = FleetLoop(self)  # type: ignore[abstract]  # what a connector asks for is there
        self.arrivals: dict[int, int] = {}
        self.attempts = self.accepted = self.wasted = self.overflowed = 0
        self._back_at = scenario.outage
        self._refuses = scenario.down == "refused"
        self._refuses_overflow = scenario.overflow == "refused"
        self._half = scenario.rtt / 2
        self._backlog = scenario.backlog
        self._interval = 1 / scenario.accept_rate
        self._free_at = scenario.outage
        self._queue: deque[CrowdSocket] = deque()
        self._times = array("d")
        self._hash = hashlib.sha256()

    def socket(self, _family: int = 0, _type: int = 0, _proto: int = 0) -> CrowdSocket:
        """As ``socket.socket``."""
        return CrowdSocket(self)

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        """As ``socket.getaddrinfo``; there is one address."""
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]

    def send_syn(self, sock: CrowdSocket) -> None:
        """A client begins a connect."""
        loop = self.loop
        loop.at(loop.now + self._half, partial(self._connect, sock))

    def digest(self, connected: array[float]) -> str:
        """A hash of the times of all attempts, and of those."""
        self._hash_times()
        self._hash.update(connected.tobytes())
        return self._hash.hexdigest()

    def _hash_times(self) -> None:
        self._hash.update(self._times.tobytes())
        del self._times[:]

    def _connect(self, sock: CrowdSocket) -> None:
        """The first SYN of a connect is here."""
        now = self.loop.now
        self.attempts += 1
        bin_ = math.floor((now - self._back_at) / BIN)
        self.arrivals[bin_] = self.arrivals.get(bin_, 0) + 1
        self._times.append(now)
        if len(self._times) == _HASHED:
            self._hash_times()
        self._arrived(sock, 0)

    def _arrived(self, sock: CrowdSocket, resent: int) -> None:
        if sock.closed:
            return
        now = self.loop.now
        if now < self._back_at:
            if self._refuses:
                self._answer(sock, errno.ECONNREFUSED)
            else:
                self._silent(sock, resent)
        elif len(self._queue) > self._backlog:
            self.overflowed += 1
            if self._refuses_overflow:
                self._answer(sock, errno.ECONNREFUSED)
            else:
                self._silent(sock, resent)
        else:
            self._queue.append(sock)
            if len(self._queue) == 1:
                self.loop.at(max(now, self._free_at), self._accept)

    def _silent(self, sock: CrowdSocket, resent: int) -> None:
        """The SYN is lost: the client's kernel sends another one, or gives up after the last."""
        due = self.loop.now + 2.0**resent
        if resent < _LAST_SYN:
            sock.timer = self.loop.call_at(due, self._arrived, sock, resent + 1)
        else:
            sock.timer = self.loop.call_at(due, sock.answer, errno.ETIMEDOUT)

    def _accept(self) -> None:
        sock = self._queue.popleft()
        self.accepted += 1
        self._free_at = self.loop.now + self._interval
        if sock.closed:
            self.wasted += 1
        else:
            self._answer(sock, 0)
        if self._queue:
            self.loop.at(self._free_at, self._accept)

    def _answer(self, sock: CrowdSocket, number: int) -> None:
        loop = self.loop
        loop.at(loop.now + self._half, partial(sock.answer, number))
