"""What has to hold in every world, whatever happens there.

Each watch has a model of its own, worked out from what is told by observers, by the network and by those who use the
package, and compares. Cheap questions are asked after every step of the loop, the exact ones whenever nothing is left
to do at a moment, before time goes on.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aioconnect import Backoff, Connection, Connector, Link, LinkState, Pool
from aioconnect import events as ev
from aioconnect.errnoset import STARTING
from aioconnect.errors import ConnectError, ConnectTimeout, NetworkError
from aioconnect.heartbeat import ended

if TYPE_CHECKING:
    from tests.dst.ground import Machine

__all__ = ("EPS", "Clock", "ConnectorWatch", "EndpointWatch", "LinkWatch", "Op", "PoolWatch", "Violation", "bounds")

EPS = 1e-6
NETWORK_LOSSES = frozenset(
    "ECONNRESET ECONNABORTED EPIPE ENETRESET ENETDOWN ENETUNREACH EHOSTUNREACH EHOSTDOWN".split()
)


class Violation(AssertionError):
    """Something did not hold."""


def bounds(wait: Backoff, attempt: int) -> tuple[float, float]:
    """The shortest and the longest wait after that attempt."""
    if wait.jitter == "decorrelated":
        return min(wait.initial, wait.maximum), wait.maximum
    ceiling = min(wait.maximum, wait.initial * wait.factor ** min(attempt - 1, 64))
    return {"full": 0.0, "equal": ceiling / 2, "none": ceiling}[wait.jitter], ceiling


class Clock:
    """The time, and the moments at which it has jumped: nothing can be on time there."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.jumps: list[tuple[float, float]] = []

    def effective(self, due: float) -> float:
        """When what is due then can happen at the earliest."""
        for before, after in self.jumps:
            if before <= due <= after:
                return after
        return due

    def jumped_since(self, when: float) -> bool:
        return bool(self.jumps) and self.jumps[-1][1] >= when - EPS


class Op:
    """Something asked for, with a time limit: whoever asks is in the hands of the package until it ends."""

    def __init__(self, clock: Clock, what: str, limit: float | None) -> None:
        self.clock = clock
        self.what = what
        self.began = clock.now()
        self.due = math.inf if limit is None else self.began + limit
        self.cancelled_at: float | None = None
        self.errors: list[Exception] = []
        self.tries = 0
        self.pause_until = -math.inf
        self.pool: PoolWatch | None = None
        self.number = 0

    def overdue(self, now: float) -> str | None:
        if self.cancelled_at is not None and now > self.clock.effective(self.cancelled_at) + EPS:
            return f"{self.what}: was cancelled at {self.cancelled_at:.6f} and goes on"
        if now > self.due + EPS and now > self.clock.effective(self.due) + EPS:
            return f"{self.what}: its time limit passed at {self.due:.6f}"
        return None


class Flight:
    """An attempt under way: since when, whether as a probe, the names it has to ask for before it dials."""

    __slots__ = ("addresses", "began", "probe", "stale")

    def __init__(self, began: float, stale: set[str], addresses: frozenset[Any], *, probe: bool) -> None:
        self.began = began
        self.probe = probe
        self.stale = stale
        self.addresses = addresses


class EndpointWatch:
    """What is learnt about one endpoint by one client, worked out again from what is told."""

    def __init__(
        self, clock: Clock, fail: Callable[[str], None], connector: Connector, machines: list[Machine]
    ) -> None:
        self.clock = clock
        self.fail = fail
        self.connector = connector
        self.record = connector.record
        self.machines = machines
        breaker = connector.policy.breaker
        self.limit: float = math.inf if breaker is None else breaker.failures
        self.name = connector.endpoint.place
        self.flying: dict[asyncio.Task[Any], Flight] = {}
        self.condemned: dict[asyncio.Task[Any], str] = {}
        """Calls that have met a permanent error."""
        literal = connector.record.book._fixed is not None
        self.names = () if literal else tuple(target.host for target in connector.endpoint.targets)
        self.stale = set(self.names)
        """Names that have to be asked for anew."""
        self.answers: dict[str, tuple[float, frozenset[Any]]] = {}
        self.open = False
        self.failures: int | None = 0
        """In a row; ``None`` where only the circuit itself knows."""
        self.doubt = True
        self.losses = 0
        self.last_loss = -math.inf
        self.retried_now_at = -math.inf
        self.good = 0
        self.bad = 0
        self.asked = self.paid = 0
        self.first_at: float | None = None
        self.quiet_inside = self.quiet_waiting = 0
        self.quiet_failures = 0
        self.closed_now = self.probe_gone = self.probe_failed = False
        self.told = self.good_now = 0
        """Calls that were told of a failure, and connections made, at this moment."""
        self.mute = False

    # -- What is told ------------------------------------------------------------------------------------------------

    def started(self, task: asyncio.Task[Any], number: int) -> None:
        now, circuit = self.clock.now(), self.record.circuit
        if task in self.condemned:
            self.fail(f"{self.name}: another attempt after a permanent error, {self.condemned[task]}")
        if task in self.flying:
            self.fail(f"{self.name}: two attempts of one call at once")
        probe = circuit.state == "half_open"
        if circuit.since is not None and circuit.state == "open" and circuit.since < now - EPS:
            # One that was let in before it opened begins in the same moment.
            self.fail(f"{self.name}: dials through an open circuit")
        if probe:
            others = sum(flight.probe for flight in self.flying.values())
            if others and not self.clock.jumped_since(now):
                self.fail(f"{self.name}: {others + 1} probes at once")
        self.flying[task] = Flight(now, set(self.stale), self.known(), probe=probe)
        if self.first_at is None:
            self.first_at = now
        if number == 1:
            self.asked += 1

    def known(self) -> frozenset[Any]:
        """The addresses by the last answers."""
        return frozenset(address for _, found in self.answers.values() for address in found)

    def over(self, task: asyncio.Task[Any] | None) -> Flight | None:
        return None if task is None else self.flying.pop(task, None)

    def failed(self, task: asyncio.Task[Any], error: Exception, *, retryable: bool | None) -> None:
        flight = self.over(task)
        self.bad += 1
        if not isinstance(error, NetworkError):
            return
        if error.phase != "prepare":
            self.stale.update(self.names)
        if flight is not None:
            self._look_for_the_well(error, flight)
        if error.kind == "local":
            return
        hurried = isinstance(error, ConnectTimeout) and error.source == "call" and (error.elapsed or 0.0) < 1.0
        if retryable or hurried:
            self.doubt = True
        probe = flight is not None and flight.probe
        self.probe_failed |= probe and not hurried and self.open
        if retryable is None or (probe and self.clock.jumped_since(flight.began if flight else 0.0)):
            self.failures = None
        elif not hurried and retryable and self.failures is not None and (probe or not self.open):
            self.failures += 1

    def _look_for_the_well(self, error: NetworkError, flight: Flight) -> None:
        """An attempt in which some address was well from the beginning must not fail at the network."""
        every = (error, *error.errors)
        if error.phase != "connect" or any(each.kind == "local" for each in every):
            return
        elapsed = self.clock.now() - flight.began
        ours = any(isinstance(each, ConnectTimeout) and each.source in ("call", "attempt") for each in every)
        if self.clock.jumped_since(flight.began) or (ours and elapsed < 0.3 * len(flight.addresses) + 0.2):
            return
        for machine in self.machines:
            known = not self.names or all(address in flight.addresses for address in machine.addresses)
            if known and not machine.troubles and machine.well_since < flight.began - 0.5:
                self.fail(f"{self.name}: {type(error).__name__} in {elapsed:.3f} s, though {machine.host} was well")

    def looked_up(self, name: str, addresses: frozenset[Any]) -> None:
        """A name was asked for."""
        if name not in self.names:
            return
        self.stale.discard(name)
        self.answers[name] = self.clock.now(), addresses
        for flight in self.flying.values():
            flight.stale.discard(name)

    def resolved(self, task: Any, addresses: frozenset[Any]) -> None:
        """An attempt has its addresses."""
        if task in self.flying:
            self.flying[task].addresses = addresses

    def dialing(self, address: str) -> None:
        """A socket is about to connect there."""
        task = asyncio.current_task()
        if task not in self.flying or not self.names:  # a timer, or an IP address
            return
        flight = self.flying[task]
        if flight.stale:
            self.fail(f"{self.name}: dials {address} without asking for its name again after a failure")
        if address not in self.known():
            self.fail(f"{self.name}: dials {address}, which is no address of the last answer")
        oldest = min(at for at, _ in self.answers.values())
        if flight.began - oldest > 5.0 + EPS:
            self.fail(f"{self.name}: dials {address} out of an answer that is {flight.began - oldest:.1f} s old")

    def connected(self, task: asyncio.Task[Any]) -> None:
        self.over(task)
        self.good += 1
        self.good_now += 1
        self.failures = 0
        self.doubt = False

    def lost(self, protocol: Any, error: NetworkError) -> None:
        """A connection's transport is gone."""
        now = self.clock.now()
        if not protocol.made or protocol.ended or protocol.closed_here:
            return
        if error.code in NETWORK_LOSSES:
            self.losses += 1
            self.last_loss = now
            self.doubt = True

    def hung_up(self, protocol: Any) -> None:
        """Perhaps before a byte came. What that is to the circuit, it knows itself."""
        if protocol.made and self.clock.now() - protocol.made < self.connector.stable_after:
            self.failures = None

    # -- What has to hold ----------------------------------------------------------------------------------------------

    def retry_now(self) -> None:
        self.retried_now_at = self.clock.now()
        self.connector.retry_now()
        gate, circuit = self.record.gate, self.record.circuit
        if any(not waiter.done() for waiter in self.record.resting):
            self.fail(f"{self.name}: retry_now() leaves somebody resting")
        if circuit.state == "open" and (circuit.retry_at or 0.0) > self.retried_now_at + EPS:
            self.fail(f"{self.name}: retry_now() leaves the next probe due in the future")
        if circuit.state == "open" and gate.waiting and gate.inside < gate.most:
            self.fail(f"{self.name}: retry_now() sends no probe")

    def quiet(self) -> None:
        gate, circuit, now = self.record.gate, self.record.circuit, self.clock.now()
        if self.record.loop is None:
            return
        if gate.inside != len(self.flying):
            self.fail(f"{self.name}: {gate.inside} dials on the books, {len(self.flying)} under way")
        if self.losses != self.record.losses:
            self.fail(f"{self.name}: {self.record.losses} losses noticed of {self.losses}")
        if (circuit.since is not None) is not self.open:
            self.fail(f"{self.name}: the circuit is {circuit.state}, by what was told open={self.open}")
        self._count(circuit)
        self._window(gate, circuit)
        if circuit.state == "half_open" and not gate.inside:
            self.fail(f"{self.name}: somebody who has gone has the probe")
        if self.probe_failed and self.told < self.quiet_waiting:
            self.fail(f"{self.name}: what the probe has met, {self.told} of {self.quiet_waiting} were told")
        if gate.waiting:
            self._progress(gate, circuit, now)
        self._budget(now)
        self.quiet_inside, self.quiet_waiting, self.good_now = gate.inside, gate.waiting, 0
        self.closed_now = self.probe_gone = self.probe_failed = False
        self.told = 0

    def _count(self, circuit: Any) -> None:
        if self.failures is None:
            self.failures = circuit.failures
        elif self.failures != circuit.failures:
            self.fail(f"{self.name}: {circuit.failures} failures in a row on the books, {self.failures} were told")
        if circuit.failures >= self.limit and circuit.since is None:
            self.fail(f"{self.name}: closed after {circuit.failures} failures in a row")
        now, wait = self.clock.now(), self.connector.policy.wait
        news = circuit.failures > self.quiet_failures and circuit.state == "open"
        self.quiet_failures = circuit.failures
        if not news or self.retried_now_at == now or self.probe_gone or not isinstance(wait, Backoff):
            return
        low, high = bounds(wait, circuit.failures)
        if not low - EPS <= circuit.retry_at - now <= high + EPS:
            pause = circuit.retry_at - now
            self.fail(f"{self.name}: open for {pause:.3f} s after {circuit.failures} failures, not {low:g} to {high:g}")

    def _window(self, gate: Any, circuit: Any) -> None:
        # Those under way when the circuit opened go on beside the probe.
        most = max(self.limit, self.quiet_inside + (circuit.since is not None))
        if self.mute and not self.good_now and gate.inside > most:
            self.fail(f"{self.name}: {gate.inside} dials at once while it is in doubt")
        self.mute = self.doubt
        if self.closed_now and self.quiet_waiting > 2 and gate.inside > max(self.quiet_inside, 1 + self.good_now):
            self.fail(f"{self.name}: {gate.inside} dials at once after {self.good_now} success")
        if gate.inside > gate.most:
            self.fail(f"{self.name}: {gate.inside} dials at once, of {gate.most} that are allowed")

    def _progress(self, gate: Any, circuit: Any, now: float) -> None:
        """Nobody waits for nothing."""
        if gate.inside >= gate.most or circuit.state == "half_open":
            return
        if circuit.since is None:
            if gate.inside < circuit.window:
                self.fail(f"{self.name}: {gate.waiting} wait though there is room, {gate.inside} of {circuit.window}")
        elif gate._timer is None or gate._timer.when() > circuit.retry_at + EPS:
            self.fail(f"{self.name}: {gate.waiting} wait and nobody will probe")

    def _budget(self, now: float) -> None:
        budget = self.connector.policy.budget
        if budget is None or self.first_at is None:
            return
        most = budget.burst + budget.floor * (now - self.first_at) + budget.ratio * self.asked
        if self.paid > most + EPS:
            self.fail(f"{self.name}: {self.paid} retries of a budget for {most:.1f}")

    def at_the_end(self) -> None:
        gate, till = self.record.gate, self.record.till
        left = {"inside": gate.inside, "waiting": gate.waiting, "resting": len(self.record.resting)}
        if till is not None:
            left["paying"] = till.waiting
        if any(left.values()):
            self.fail(f"{self.name}: left at the end: {left}")


class ConnectorWatch:
    """The observer of one connector: what it hears, the watch of the endpoint is told."""

    def __init__(
        self,
        endpoint: EndpointWatch,
        policy: Any,
        ops: dict[Any, Op],
        note: Callable[..., None],
        spite: Callable[[EndpointWatch], None],
    ) -> None:
        self.spite = spite
        self.endpoint = endpoint
        self.policy = policy
        self.ops = ops
        self.note = note
        self.links: list[LinkWatch] = []
        self.made: Callable[[], None] = lambda: None
        """Called when a dial of a pool has ended well."""
        self.keeps = ""
        """Whether its calls are those of a "pool" or a "link", which have no limits."""
        self.known: dict[asyncio.Task[Any], bool] = {}
        """Calls that wait after an attempt, and whether the next one is to be paid for."""
        self.stopped_at = -math.inf
        self.restarts = 0
        """Dials of a pool, one after the other, that began when the one before was given up."""

    def __call__(self, event: Any) -> None:
        task = asyncio.current_task()
        getattr(self, f"_{type(event).__name__}")(event, task)
        if not isinstance(event, ev.LinkStateChanged | ev.AttemptStarted):
            self.spite(self.endpoint)

    def _retryable(self, error: Exception) -> bool | None:
        """Whether it is; ``None`` where that depends on who waits for the pool."""
        if self.policy.retryable(error) or not self.keeps or error not in STARTING:
            return bool(self.policy.retryable(error))
        return error not in self.policy.never_retry_on if self.keeps == "link" else None

    def _AttemptStarted(self, event: ev.AttemptStarted, task: Any) -> None:
        endpoint = self.endpoint
        endpoint.started(task, event.attempt)
        if self.keeps == "pool" and event.attempt == 1:
            self.restarts = self.restarts + 1 if endpoint.clock.now() == self.stopped_at else 0
            if self.restarts > 5:
                endpoint.fail(f"{endpoint.name}: the pool gives up dials, and begins others without a pause")
        if self.known.pop(task, False) and event.attempt > 1:
            endpoint.paid += 1
        op = self.ops.get(task)
        if op is None or self.keeps:
            return
        now = endpoint.clock.now()
        op.tries += 1
        if self.policy.max_attempts is not None and op.tries > self.policy.max_attempts:
            endpoint.fail(f"{op.what}: attempt {op.tries} of {self.policy.max_attempts}")
        if now < op.pause_until - EPS and endpoint.retried_now_at < op.began:
            endpoint.fail(f"{op.what}: goes on {op.pause_until - now:.3f} s early")

    def _Resolved(self, event: ev.Resolved, task: Any) -> None:
        addresses: list[Any] = [address for address in event.addresses if address]
        self.note("resolved", self.endpoint.name, *(address[0] for address in addresses))
        self.endpoint.resolved(task, frozenset(address[0] for address in addresses))

    def _AttemptFailed(self, event: ev.AttemptFailed, task: Any) -> None:
        retryable = self._retryable(event.error)
        self.note("failed", self.endpoint.name, event.attempt, event.code, getattr(event.error, "phase", None))
        if retryable is False:
            self.endpoint.condemned[task] = str(event.code)
        self.endpoint.failed(task, event.error, retryable=retryable)
        if (op := self.ops.get(task)) is not None:
            op.errors.append(event.error)

    def _Retrying(self, event: ev.Retrying, task: Any) -> None:
        endpoint = self.endpoint
        endpoint.told += 1
        held = endpoint.record.circuit.since is not None
        own = endpoint.clock.now()
        op = self.ops.get(task)
        self.known[task] = not held and event.pause >= 0
        self.note("retrying", endpoint.name, event.attempts, round(event.pause, 9))
        if op is None or self.keeps or held or not isinstance(self.policy.wait, Backoff):
            return
        low, high = bounds(self.policy.wait, event.attempts)
        final = own + high >= op.due - EPS
        if event.pause > high + EPS or (event.pause < low - EPS and not final):
            endpoint.fail(f"{op.what}: a pause of {event.pause:.3f} s after {event.attempts}, not {low:g} to {high:g}")
        op.pause_until = own + event.pause

    def _Connected(self, event: ev.Connected, task: Any) -> None:
        self.note("connected", self.endpoint.name, event.attempt)
        if self.keeps == "pool":
            self.made()
        self.endpoint.connected(task)
        if event.attempt > 1 and self.endpoint.paid:
            # What was paid for a retry that succeeds comes back.
            self.endpoint.paid -= 1
        self._done(task)

    def _GaveUp(self, event: ev.GaveUp, task: Any) -> None:
        self.note("gave up", self.endpoint.name, type(event.error).__name__, getattr(event.error, "stop_reason", None))
        self.endpoint.over(task)
        if getattr(event.error, "stop_reason", None) == "stop":
            self.stopped_at = self.endpoint.clock.now()
        self._done(task)

    def _Cancelled(self, event: ev.Cancelled, task: Any) -> None:
        self.note("cancelled", self.endpoint.name)
        flown = self.endpoint.over(task)
        self.endpoint.probe_gone |= flown is not None and flown.probe
        if self.known.get(task) and self.endpoint.paid:
            self.endpoint.paid -= 1
        self._done(task)

    def _done(self, task: Any) -> None:
        self.endpoint.told += 1
        self.known.pop(task, None)
        self.endpoint.condemned.pop(task, None)

    def _CircuitOpened(self, event: ev.CircuitOpened, task: Any) -> None:
        self.note("opened", self.endpoint.name, event.failures, round(event.retry_in, 9))
        self.endpoint.open = True

    def _CircuitClosed(self, event: ev.CircuitClosed, task: Any) -> None:
        self.note("closed", self.endpoint.name)
        self.endpoint.open = False
        self.endpoint.closed_now = True
        for flight in self.endpoint.flying.values():
            # If it opens again, there will be another probe.
            flight.probe = False

    def _LinkStateChanged(self, event: ev.LinkStateChanged, task: Any) -> None:
        self.endpoint.told += event.before is LinkState.CONNECTING
        self.note("link", self.endpoint.name, event.before.name, event.after.name, type(event.error).__name__)
        for link in self.links:
            link.moved(event)


class PoolWatch:
    """The books of a pool, worked out in another way."""

    def __init__(self, endpoint: EndpointWatch, make: Callable[[], Pool], name: str, number: int = 1) -> None:
        self.endpoint = endpoint
        self.clock = endpoint.clock
        self.make = make
        self.pool = pool = make()
        self.number = number
        self.name = name
        self.unwanted_since = math.inf
        self.crowd = 0
        self.lending: Any = pool._lending
        self.books: Any = pool._books
        self.held: dict[Connection, str] = {}
        """Who has what, by what they say."""
        self.line: dict[Op, None] = {}
        self.numbers = 0
        self.checks = self.lending.check is not None
        self.turned_away_at = self.lent_at = -math.inf
        policy: Any = endpoint.connector.policy
        spends = policy.budget is not None  # who waits for a token is asked nothing meanwhile
        self.patience = math.inf if spends else policy.attempt_timeout + policy.wait.maximum + 1.0

    def renewed(self) -> PoolWatch:
        """The next one of its kind."""
        return PoolWatch(self.endpoint, self.make, self.name, self.number + 1)

    def fail(self, text: str) -> None:
        self.endpoint.fail(f"{self.name}{self.number}: {text}")

    # -- What its users say --------------------------------------------------------------------------------------------

    def joined(self, op: Op) -> None:
        self.numbers += 1
        op.number = self.numbers
        self.line[op] = None

    def left(self, op: Op) -> None:
        self.line.pop(op, None)

    def lent(self, op: Op, connection: Connection) -> None:
        now = self.clock.now()
        self.lent_at = now
        if connection in self.held:
            self.fail(f"{op.what} is lent what {self.held[connection]} has")
        self.held[connection] = op.what
        protocol: Any = connection.writer._protocol
        sock: Any = connection.get_extra_info("socket")
        if sock.ended and sock.heard < now - EPS:
            self.fail(f"{op.what} is lent a connection that the peer has closed at {sock.heard:.6f}")
        if connection.reader.buffered and sock.heard < now - EPS:
            self.fail(f"{op.what} is lent a connection with {connection.reader.buffered} bytes to read")
        if connection.is_clean:
            self.fail(f"{op.what} is lent a connection that is marked")
        if protocol.made < self.endpoint.last_loss - EPS and self.endpoint.last_loss < now - EPS:
            self.fail(f"{op.what} is lent a connection from before a loss at {self.endpoint.last_loss:.6f}")
        entry = self.books.entries.get(connection)
        # As it was before its check, which takes its time.
        taken = entry.since - (self.lending.hook_timeout if self.checks else 0.0) if entry is not None else 0.0
        if entry is not None and -math.inf < self.clock.effective(entry.expires) < taken - EPS:
            self.fail(f"{op.what} is lent a connection whose lifetime ended at {entry.expires:.6f}")
        if not self.checks and op.began < now - EPS:
            earlier = [each for each in self.line if each.number < op.number and each.cancelled_at is None]
            if earlier and earlier[0].began < op.began - EPS and earlier[0].due > now + EPS:
                self.fail(f"{op.what} is served before {earlier[0].what}, who came earlier")

    def back(self, connection: Connection) -> None:
        self.held.pop(connection, None)

    # -- What has to hold ----------------------------------------------------------------------------------------------

    def step(self) -> None:
        books = self.books
        if books.connecting < 0 or len(books.entries) + books.connecting > books.limits.max_size:
            self.fail(f"{len(books.entries)} open and {books.connecting} dials of {books.limits.max_size}")
        if len(books.idle) > len(books.entries):
            self.fail(f"{len(books.idle)} idle of {len(books.entries)}")

    def quiet(self) -> None:
        lending, books, now = self.lending, self.books, self.clock.now()
        if not (books.entries or books.connecting or self.line or self.held or lending.tasks.running):
            self.unwanted_since = math.inf
            return
        running: Any = lending.tasks.running.values()
        dials = sum(then == lending.dials._dialed for then in running)
        resetting = {id(then.args[0]) for then in running if getattr(then, "func", None) == lending._reset}
        idle = {id(entry) for entry in books.idle}
        if books.connecting != dials:
            self.fail(f"{books.connecting} dials on the books, {dials} under way")
        if dials > books.limits.max_connecting:
            self.fail(f"{dials} dials at once, of {books.limits.max_connecting}")
        if books.created - sum(books.closed.values()) != len(books.entries):
            self.fail(f"{books.created} made, {dict(books.closed)} closed, {len(books.entries)} open")
        self._places(idle, resetting)
        self._progress(now)

    def _places(self, idle: set[int], resetting: set[int]) -> None:
        """Every connection is in one place."""
        checked = 0
        for connection, entry in self.books.entries.items():
            lent = entry.borrower is not None
            if (id(entry) in idle) + lent + (id(entry) in resetting) != 1:
                self.fail(f"{connection!r} is in no place, or in two")
            if lent and connection not in self.held:
                checked += 1
            if not lent and connection in self.held:
                self.fail(f"what {self.held[connection]} has is not lent")
            if id(entry) in idle and connection.writer.ended_by is not None:
                self.fail("an idle connection is gone, and nobody has noticed")
        if checked > (len(self.line) if self.checks else 0):
            self.fail(f"{checked} connections are lent to nobody")

    def _progress(self, now: float) -> None:
        lending, books = self.lending, self.books
        waiting = len(self.line)
        if self.turned_away_at == now and any(op.began < now - EPS for op in self.line) and not self.checks:
            self.fail("somebody is told of a permanent error, and others go on waiting")
        if books.idle and lending.line.places and not self.checks and lending.line.waiting:
            self.fail("somebody waits beside an idle connection")
        if waiting and not self.checks and lending.line.waiting != waiting:
            self.fail(f"{lending.line.waiting} in line by the books, {waiting} wait")
        self.crowd = max(self.crowd, waiting)
        if len(lending.line.places) > 2 * max(lending.line.waiting, self.crowd) + 1:
            self.fail(f"{len(lending.line.places)} places for {lending.line.waiting} who wait")
        least = max(lending.dials._expecting.values(), default=0)
        due = 0 if lending.closed else books.dials_due(waiting, least, failing=True)
        dials = lending.dials
        resting = dials._resting is not None and self.clock.effective(dials._schedule.resume_at) > now - EPS
        if waiting and not self.checks and due > 0 and not resting:
            self.fail("somebody waits, and nobody dials")
        self.unwanted_since = min(self.unwanted_since, now) if due < 0 else math.inf
        if now > self.clock.effective(self.unwanted_since + self.patience) + EPS:
            self.fail(f"dials that nobody wants, since {self.unwanted_since:.3f}")
        if not books.idle or lending.closed:
            return
        limits = books.limits
        due = min(entry.since for entry in books.idle) + limits.max_idle
        if len(books.entries) > limits.min_size and now > self.clock.effective(due) + 0.01:
            self.fail(f"a connection is idle since {due - limits.max_idle:.3f}, for more than {limits.max_idle:g} s")
        due = min(entry.expires for entry in books.idle)
        if now > self.clock.effective(due) + 0.01:
            self.fail(f"an idle connection's lifetime ended at {due:.3f}")

    def turned_away(self) -> None:
        """Somebody in line is told of a permanent error, which is everybody's who waits."""
        self.turned_away_at = self.clock.now()

    def has_closed(self) -> None:
        """``aclose`` is over."""
        if self.books.connecting or self.lending.tasks.running:
            self.fail(f"is closed, and goes on: {self.pool!r}, {len(self.lending.tasks.running)} tasks")

    def at_the_end(self) -> None:
        books = self.books
        if books.entries or books.connecting or self.lending.tasks.running or self.lending.line.waiting:
            self.fail(f"left at the end: {self.pool!r}, {len(self.lending.tasks.running)} tasks")


class LinkWatch:
    """A link: it notices what happens, keeps its pace, and does nothing that nobody asks for."""

    def __init__(self, endpoint: EndpointWatch, link: Link, name: str, stable_after: float) -> None:
        self.endpoint = endpoint
        self.clock = endpoint.clock
        self.link = link
        self.name = name
        self.stable_after = stable_after
        self.asking = self.wanted = False
        self.asked_at = math.inf
        self.down_since = -math.inf
        """Whether somebody asks; whether it is to be kept up for a consumer to come."""
        self.fruitless = 0
        self.ready_at = -math.inf
        self.not_before = -math.inf
        self.retried_at = -math.inf
        self.dead_since = math.inf
        self.dead: Any = None
        self.failed_at = -math.inf
        self.slept, self.owed, self.paced = 0.0, 0.0, 0
        """Since a connection has lasted: seconds between attempts, those of the longest pauses, and how many."""
        self.proven = False

    @property
    def asked(self) -> bool:
        return self.asking or self.wanted

    def fail(self, text: str) -> None:
        self.endpoint.fail(f"{self.name}: {text}")

    def retry_now(self) -> None:
        self.retried_at = self.endpoint.retried_now_at = self.clock.now()
        self.not_before, self.failed_at = -math.inf, math.inf
        self.slept, self.owed, self.paced = 0.0, 0.0, 0
        nap = self.link._supervisor._nap
        self.link.retry_now()
        if nap is not None and not nap.done():
            self.fail("retry_now() leaves it asleep")

    def moved(self, event: ev.LinkStateChanged) -> None:
        now, circuit = self.clock.now(), self.endpoint.record.circuit
        self._finality(event)
        if event.after is LinkState.READY:
            self.ready_at, self.proven = now, True
        elif event.after is LinkState.CONNECTING:
            if now < self.not_before - EPS:
                self.fail(f"dials {self.not_before - now:.3f} s early, after {self.fruitless} failures")
            self.slept += max(0.0, now - self.failed_at)
            if self.paced >= 10 and self.slept < 0.1 * self.owed:
                self.fail(f"has paused for {self.slept:.3f} s after {self.paced} failures, of up to {self.owed:g}")
        elif event.after is LinkState.TRANSIENT_FAILURE and event.before is not LinkState.IDLE:
            if event.before is LinkState.READY and now - self.ready_at >= self.stable_after:
                self._lasted()
                return
            self.fruitless += 1
            self.failed_at = now
            wait = self.endpoint.connector.policy.wait
            own = circuit.since is None or self.fruitless > circuit.failures
            if own and isinstance(wait, Backoff):
                low, high = bounds(wait, self.fruitless)
                self.not_before = now + low
                self.owed += high
                self.paced += 1
            else:
                self.failed_at = math.inf
        elif event.after is LinkState.IDLE and event.before is LinkState.READY:
            if now - self.ready_at >= self.stable_after:
                self._lasted()

    def _finality(self, event: ev.LinkStateChanged) -> None:
        """A permanent error is the end before the first READY, and only then."""
        if event.before is LinkState.READY:
            self.down_since = self.clock.now()
        permanent = getattr(event.error, "stop_reason", None) == "permanent"
        if permanent and self.proven is (event.after is LinkState.SHUTDOWN):
            self.fail(f"goes on to {event.after.name} after a permanent error, proven={self.proven}")

    def _lasted(self) -> None:
        self.fruitless, self.not_before = 0, -math.inf
        self.slept, self.owed, self.paced = 0.0, 0.0, 0
        self.failed_at = math.inf

    def quiet(self) -> None:
        supervisor: Any = self.link._supervisor
        kept, now, state = supervisor._kept, self.clock.now(), self.link.state
        if state is LinkState.IDLE and kept is None and supervisor._task is None and not self.asked:
            return
        if state is LinkState.READY:
            if kept is None:
                self.fail("is READY without a connection")
            elif kept.connection.lost is not None or (ended(kept.connection) and not kept.lost):
                self.fail("is READY with a connection that is gone")
            else:
                self._alive(kept, now)
        elif state in (LinkState.SHUTDOWN, LinkState.IDLE) and kept is not None and not kept.taken:
            self.fail(f"is {state.name} and holds a connection")
        if not self.asked and state not in (LinkState.IDLE, LinkState.SHUTDOWN):
            self.fail(f"is {state.name} though nobody asks")
        if not self.asked and supervisor._task is not None:
            self.fail("has a task though nobody asks")
        if self.asked and state in (LinkState.CONNECTING, LinkState.TRANSIENT_FAILURE) and supervisor._task is None:
            self.fail(f"is {state.name}, and nobody is at it")

    def _alive(self, kept: Any, now: float) -> None:
        """A heartbeat finds a peer that has fallen silent."""
        heartbeat = self.link.heartbeat
        sock: Any = kept.connection.get_extra_info("socket")
        peer, path = sock.peer, sock.path
        dead = peer is None or peer.closed or peer.vanished or path.blocked or path.back.blocked
        if not dead or heartbeat is None or kept is not self.dead or kept.connection.reader._paused:
            self.dead, self.dead_since = kept, now if dead else math.inf
            return
        self.dead_since = min(self.dead_since, now)
        due = self.dead_since + heartbeat.timeout + heartbeat.every + 1.0
        if now > self.clock.effective(due) + 0.01:
            self.fail(f"is READY with a peer that is dead since {self.dead_since:.3f}")

    def at_the_end(self) -> None:
        supervisor: Any = self.link._supervisor
        if supervisor._task is not None or supervisor._unwinding or supervisor._kept is not None:
            self.fail("has not ended")


def check_error(op: Op, error: BaseException, policy: Any, fail: Callable[[str], None]) -> None:
    """What a call says of its end."""
    if not isinstance(error, ConnectError):
        fail(f"{op.what}: raised {type(error).__name__}: {error}")
        return
    if len(error.attempts) > 16 or len(str(error)) > 600:
        fail(f"{op.what}: an error of {len(error.attempts)} attempts and {len(str(error))} characters")
    if error.stop_reason is None:
        fail(f"{op.what}: {type(error).__name__} without a reason to stop")
    if error.stop_reason == "permanent" and policy.retryable(error):
        fail(f"{op.what}: {error.code} ends it as a permanent error")
    if error.stop_reason == "attempts" and error.attempt_count != policy.max_attempts:
        fail(f"{op.what}: gave up after {error.attempt_count} attempts of {policy.max_attempts}")
    if any(error is attempt.error for attempt in error.attempts):
        fail(f"{op.what}: the error raised is one of those it tells of")
    if sys.getsizeof(error.attempts) > 4096:
        fail(f"{op.what}: attempts take {sys.getsizeof(error.attempts)} bytes")
