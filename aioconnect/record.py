"""What is learnt about an endpoint, by all who connect to it: circuit, retry budget, addresses, figures.

One record belongs to one event loop at a time. When that one is closed, what was learnt in its time is forgotten, for
the times of another clock mean nothing; only the figures go on.
"""

from __future__ import annotations

import asyncio
import functools
import math
from types import MappingProxyType
from typing import NamedTuple

from aioconnect import errors, logs
from aioconnect.addresses import AddressBook
from aioconnect.breaker import Circuit, CircuitState
from aioconnect.budget import Tokens
from aioconnect.connection import Ending
from aioconnect.endpoint import Endpoint
from aioconnect.errors import ConnectTimeout, NetworkError
from aioconnect.gate import Gate, Till
from aioconnect.handover import HandOver
from aioconnect.limits import wait_until
from aioconnect.policy import Policy
from aioconnect.resolver import Lookup
from aioconnect.retrying import pause_after, state_after

__all__ = ("ConnectorStats", "Record", "Unhurried")

# A time-out is not among them: the others may do well, and so may the peer. Neither is a FIN, which closes one.
_NETWORK_LOSSES = frozenset(
    "ECONNRESET ECONNABORTED EPIPE ENETRESET ENETDOWN ENETUNREACH EHOSTUNREACH EHOSTDOWN".split()
)

_PATIENCE = 1.0
"""Seconds of silence that count as a failed dial though the caller's own limit ended it: TCP's initial retransmission
time-out (RFC 6298 section 2), after which a SYN has been lost."""


class ConnectorStats(NamedTuple):
    """A snapshot of what happened to an endpoint since its connector was made, or the one it shares with."""

    attempts: int
    connected: int
    failures: MappingProxyType[str, int]
    """Failed attempts by code."""
    connecting: int
    """Attempts under way."""
    waiting: int
    """Calls that wait for others, because of ``max_connecting`` or the circuit."""
    reachable: bool | None
    """Whether the last attempt to end was good; ``None`` before the first."""
    last_error: NetworkError | None
    circuit: CircuitState
    losses: int
    """Connections that were lost to the network."""


class Record:
    """The state behind the connectors of one endpoint."""

    __slots__ = (
        "attempts",
        "book",
        "circuit",
        "connected",
        "failures",
        "gate",
        "hand_over",
        "last_error",
        "loop",
        "losses",
        "name",
        "policy",
        "reachable",
        "resting",
        "till",
        "troubled_attempts",
        "troubled_since",
        "urged",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        policy: Policy,
        resolver: Lookup | None,
        max_connecting: int | None,
        till: Till | None = None,
    ) -> None:
        self.name = endpoint.place
        self.policy = policy
        self.book = AddressBook(endpoint, resolver)
        self.hand_over = HandOver(endpoint)
        self.circuit = Circuit(policy.breaker)
        self.gate = Gate(math.inf if max_connecting is None else max_connecting, self.circuit)
        self.till = Till(Tokens(policy.budget)) if till is None and policy.budget is not None else till
        self.resting: dict[asyncio.Future[None], None] = {}
        """Calls and pools in a pause of their own, in the order in which they began it."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.attempts = 0
        self.connected = 0
        self.losses = 0
        self.failures: dict[str, int] = {}
        self.last_error: NetworkError | None = None
        self.reachable: bool | None = None
        self.troubled_since: float | None = None
        self.troubled_attempts = 0
        self.urged = 0
        """How often `retry_now` was called."""

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop from now on. Raises `RuntimeError` while another one is open."""
        if self.loop is not None:
            if not self.loop.is_closed():
                raise RuntimeError(f"the connector of {self.name} belongs to another event loop; make one for each")
            # New ones: what the closed loop left unfinished may still leave the old ones, when it is collected.
            self.circuit = Circuit(self.policy.breaker)
            self.gate = Gate(self.gate.most, self.circuit)
            self.resting = {}
            self.reachable = self.troubled_since = None
            self.troubled_attempts = 0
        if self.till is not None:
            self.till.bind(loop)
        self.loop = loop
        self.book.rebind()

    def stats(self) -> ConnectorStats:
        """A snapshot."""
        return ConnectorStats(
            attempts=self.attempts,
            connected=self.connected,
            failures=MappingProxyType(dict(self.failures)),
            connecting=self.gate.inside,
            waiting=self.gate.waiting,
            reachable=self.reachable,
            last_error=self.last_error,
            circuit=self.circuit.state,
            losses=self.losses,
        )

    # -- What the engine asks ------------------------------------------------------------------------------------

    def hold(self, error: Exception, now: float) -> float | None:
        """Seconds until the next probe of an open circuit; ``None`` if it is closed.

        Also ``None`` for an error that says nothing about the peer, such as a shortage of this host: others may probe
        at once, and the call that met the error waits by its own policy.
        """
        circuit = self.circuit
        if circuit.since is None or not isinstance(error, NetworkError) or error.kind == "local":
            return None
        # While a probe is under way, what it meets comes to all who wait: there is nothing to wait for before.
        return 0.0 if circuit.state == "half_open" else max(0.0, circuit.probe_due - now)

    async def rest(self, pause: float) -> None:
        """Sleep for so many seconds, or until `retry_now`."""
        loop, resting = asyncio.get_running_loop(), self.resting
        waiter: asyncio.Future[None] = loop.create_future()
        resting[waiter] = None
        try:
            await wait_until(waiter, loop.time() + pause)
        finally:
            del resting[waiter]

    def retry_now(self) -> None:
        """End every pause of this endpoint's calls; what the circuit's window lets in goes now."""
        if self.loop is None or self.loop.is_closed():
            return
        now = self.loop.time()
        self.urged += 1
        self.circuit.retry_now(now)
        self.gate.serve(now)
        for waiter in self.resting:
            if not waiter.done():
                waiter.set_result(None)

    def charge(self, now: float) -> bool | None:
        """Pay for a retry, as `retrying.Common` has it."""
        till = self.till
        if till is None or till.paid(now):
            return True
        return None if till.tokens.budget.when_empty == "wait" else False

    async def settle(self, deadline: float) -> bool:
        """Wait for a token until a loop time, and pay."""
        return self.till is None or await self.till.charged(deadline)

    def refund(self) -> None:
        """A retry that was paid for has succeeded, or was not made after all."""
        if self.till is not None:
            self.till.give_back()

    # -- What a dial has met -------------------------------------------------------------------------------------

    def succeeded(self, now: float) -> bool:
        """A dial is good, and that is news. Whether it closed the circuit."""
        self.reachable = True
        closed = self.circuit.succeeded(now, crowded=self.gate.waiting > 0)
        self.gate.serve(now)
        if self.troubled_since is not None and self.connected > 1:
            logs.restored(self.name, self.troubled_attempts, now - self.troubled_since)
        self.troubled_since = None
        self.troubled_attempts = 0
        return closed

    def failed(self, error: NetworkError, now: float, policy: Policy, lease: object | None) -> bool:
        """A dial has failed. Whether that opened the circuit."""
        self.reachable = False
        self.last_error = error
        self.failures[error.code] = self.failures.get(error.code, 0) + 1
        if error.phase != "prepare":
            # Somebody was there in that phase; else the name may have moved.
            self.book.forget()
        self.troubled_attempts += 1
        if self.troubled_since is None:
            self.troubled_since = now
            if self.connected:
                # What has never worked is for the caller to tell: the error says it all.
                logs.lost(self.name, error)
        return self._judged(error, now, policy, lease)

    def _judged(self, error: NetworkError, now: float, policy: Policy, lease: object | None) -> bool:
        """What the circuit makes of it: this host's own shortages and final answers say nothing of the peer."""
        self.circuit.healthy = False
        if error.kind == "local":
            return False
        if isinstance(error, ConnectTimeout) and error.source == "call" and (error.elapsed or 0.0) < _PATIENCE:
            # The caller was in a hurry. Nobody else is told, and the next in line has the probe.
            self.circuit.doubted()
            self.gate.serve(now)
            return False
        opened = False
        if policy.retryable(error):
            opened = self.circuit.failed(error, now, functools.partial(self._pause, policy, error, now), lease)
        if lease is not None and self.circuit.since is not None:
            # Unless it was closed by another dial, while this one had outlived its lease.
            self.gate.share(error)
        self.gate.serve(now)
        return opened

    def ended(self, ending: Ending, now: float, policy: Policy, stable_after: float) -> bool:
        """A connection was ended by the peer or the network. Whether that opened the circuit."""
        error, opened = ending.error, False
        if error is not None and error.code in _NETWORK_LOSSES:
            self.losses += 1
            self.circuit.doubted()
        if not ending.heard and now - ending.made < stable_after:
            self.book.dropped(ending.address, now)
            words = "accepted, and hung up before a byte came"
            refusal = errors.typed("ECONNRESET", "connect", ending.address, strerror=words)
            schedule = functools.partial(self._pause, policy, refusal, now)
            opened = self.circuit.hung_up(refusal, now, schedule, ending.made, stable_after)
        self.gate.serve(now)
        return opened

    def _pause(self, policy: Policy, error: NetworkError, now: float, failures: int, previous: float) -> float:
        """What the policy's wait gives one call that made all the dials that failed in a row."""
        since = now if self.troubled_since is None else self.troubled_since
        return pause_after(policy, state_after(error, failures, since, now, previous))


class Unhurried:
    """A record as calls without limits have it: an empty retry budget delays them, and never ends one."""

    __slots__ = ("_record", "hold", "name", "refund", "rest", "settle")

    def __init__(self, record: Record) -> None:
        self._record = record
        self.name = record.name
        self.hold, self.rest, self.settle, self.refund = record.hold, record.rest, record.settle, record.refund

    def charge(self, now: float) -> bool | None:
        """Pay for a retry, or wait for a token, whatever the budget has others do."""
        return self._record.charge(now) or None
