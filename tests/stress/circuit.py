"""Storms over one endpoint's circuit and retry budget, in virtual time on a simulated network.

Callers with random limits come to a server that flaps, and many are cancelled, some of them twice. What has to hold:
one probe at most; no dial beyond the window; the line is served in order; nobody later than the own limit;
`CircuitOpen` only to who has not dialed; whoever still has the time once the server is back is connected; nothing is
left in the end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from aioconnect import Backoff, CircuitBreaker, Connection, Connector, NotReady, Policy, RetryBudget, errors
from aioconnect.breaker import Circuit
from aioconnect.budget import Tokens
from aioconnect.gate import Gate, Till
from aioconnect.record import Record
from aioconnect.testing.network import Network
from aioconnect.testing.running import run

__all__ = ("Report", "storms")

CAP = 1.0
"""Seconds: the longest pause of the policies here."""

OUTAGE = 6.0
"""Seconds in which the server flaps and callers come; then it is well."""


class Broken(AssertionError):
    """Something that has to hold does not."""


def need(truth: object, text: str) -> None:
    """Not `assert`, which goes away with -O."""
    if not truth:
        raise Broken(text)


class WatchedCircuit(Circuit):
    """Counts the leases that are out."""

    __slots__ = ("line", "opened", "out")

    line: Gate

    def __init__(self, breaker: CircuitBreaker | None) -> None:
        super().__init__(breaker)
        self.out: set[object] = set()
        self.opened = 0

    def succeeded(self, now: float, *, crowded: bool) -> bool:
        closed = super().succeeded(now, crowded=crowded)
        if closed:
            # A probe that another dial has made pointless is a dial like any other.
            self.out.clear()
        return closed

    def failed(self, *args: Any, **kwargs: Any) -> bool:
        opened = super().failed(*args, **kwargs)
        self.opened += opened
        return opened

    def lease(self, now: float, seconds: float) -> object:
        need(self.since is not None, "a lease at a closed circuit")
        need(now >= self.probe_due or self.line.waiting == 1, "a probe before its time")
        need(not self.out, "two probes at once")
        lease = super().lease(now, seconds)
        self.out.add(lease)
        return lease


class WatchedGate(Gate):
    """Looks at each who goes in."""

    __slots__ = ("on_turn",)

    circuit: WatchedCircuit
    on_turn: Callable[[asyncio.Future[Any]], object]

    def enter(self) -> bool:
        went = super().enter()
        if went:
            need(not self._line, "past the line")
            need(self.inside <= min(self.most, self.circuit.window), "more than the window")
        return went

    def _give(self, place: Any, turn: Any) -> None:
        need(next(each for each in self._line if not each.turn.done()) is place, "not the first in line")
        if not isinstance(turn, errors.NetworkError):
            need(self.inside <= self.most, "more than max_connecting")
            need(turn in self.circuit.out or self.inside <= self.circuit.window, "more than the window, from the line")
        super()._give(place, turn)
        self.on_turn(place.turn)

    def share(self, error: errors.NetworkError) -> None:
        super().share(error)
        need(self._first() is None, "somebody was not told")

    def leave(self, lease: object | None = None) -> None:
        self.circuit.out.discard(lease)
        super().leave(lease)
        need(self.inside >= 0, "more have left than had come")
        need(lease is None or self.circuit._lease is not lease, "a lease of one who has gone")


class WatchedTill(Till):
    """Counts what is paid."""

    __slots__ = ("on_turn",)

    tokens: WatchedTokens
    on_turn: Callable[[asyncio.Future[Any]], object]

    def _give(self, place: Any, turn: Any) -> None:
        self.tokens.taken -= 1
        need(self.tokens.taken == 0, "a turn for nothing")
        super()._give(place, turn)
        self.on_turn(place.turn)

    def paid(self, now: float) -> bool:
        paid = super().paid(now)
        self.tokens.taken = 0
        return paid


class WatchedTokens(Tokens):
    """Never more than may be saved up, never less than none."""

    __slots__ = ("taken",)

    def __init__(self, budget: RetryBudget) -> None:
        super().__init__(budget)
        self.taken = 0

    def take(self, now: float) -> bool:
        taken = super().take(now)
        self.taken += taken
        need(-1e-6 <= self._left <= self.budget.burst, f"{self._left} tokens")
        return taken


def watch(record: Record, on_turn: Callable[[asyncio.Future[Any]], object]) -> None:
    """Have an unused record watched; ``on_turn`` is told of each future by which somebody is told."""
    circuit = WatchedCircuit(record.policy.breaker)
    gate = WatchedGate(record.gate.most, circuit)
    gate.on_turn = on_turn
    circuit.line = gate
    record.circuit, record.gate = circuit, gate
    if record.till is not None:
        till = WatchedTill(WatchedTokens(record.till.tokens.budget))
        till.on_turn = on_turn
        record.till = till


@dataclasses.dataclass
class Report:
    """What the storms of some seeds did."""

    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    cancels: int = 0
    dials: int = 0
    opened: int = 0
    slowest: float = 0.0
    """Seconds until whoever was waiting when the server came back was connected."""

    def add(self, other: Report) -> None:
        self.ends += other.ends
        self.cancels += other.cancels
        self.dials += other.dials
        self.opened += other.opened
        self.slowest = max(self.slowest, other.slowest)

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count}" for name, count in self.ends.most_common())
        return (
            f"{self.dials} dials, {self.cancels} cancels, opened {self.opened} times; {ends};"
            f" last connected {self.slowest:.2f} s after the recovery"
        )


class Storm:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.network = Network(latency=chance.choice([0.0, 0.002, 0.05]), seed=seed)
        self.report = Report()
        self.attempt_timeout = chance.choice([0.3, 1.0, 1.5])
        budget = None
        if chance.random() < 0.4:
            budget = RetryBudget(chance.choice([0.0, 0.2, 1.0]), chance.choice([2.0, 20.0]), chance.choice([1, 5, 50]))
        self.policy = Policy(
            attempt_timeout=self.attempt_timeout,
            timeout=None,
            wait=Backoff(0.05, CAP, jitter=chance.choice(["full", "equal", "decorrelated"]), uniform=chance.uniform),
            breaker=CircuitBreaker(chance.randint(1, 5)) if chance.random() < 0.9 else None,
            budget=budget,
        )
        self.live: list[Connection] = []
        self.calls: dict[asyncio.Future[Any], None] = {}
        self.told: dict[int, errors.NetworkError] = {}
        self.moody = 0.0
        self.hangs_up = False
        self.back = math.inf
        """When the server is well, for good."""

    def run(self) -> Report:
        run(self._main(), network=self.network)
        return self.report

    async def _prepare(self, connection: Connection) -> None:
        mood = self.chance.random()
        if mood < self.moody:
            raise NotReady("warming up")
        if mood < 2 * self.moody:
            raise LookupError("a bug")
        if mood < 0.5:
            await asyncio.sleep(self.chance.random() * 0.1)

    async def _main(self) -> None:
        chance, loop = self.chance, asyncio.get_running_loop()
        host = self.network.host("db", "10.0.0.1")
        prepare = self._prepare if chance.random() < 0.3 else None
        retry_on = self.policy.retry_on | "NOT_READY"
        most = chance.choice([None, None, 1, 3])
        connector = Connector("tcp://10.0.0.1:80", self.policy.replace(retry_on=retry_on), prepare, max_connecting=most)
        watch(connector.record, self._on_turn)
        flapping = asyncio.ensure_future(self._flap(connector, host))
        callers = [asyncio.ensure_future(self._caller(connector)) for _ in range(chance.choice([3, 10, 30]))]
        await flapping
        done, late = await asyncio.wait(callers, timeout=60)
        need(not late, "somebody never ended")
        for problem in [one.exception() for one in done]:
            if problem is not None:
                raise problem
        await self._ended(connector)
        need(loop.time() < 120, "too late")

    def _cancel_at(self, task: asyncio.Future[Any], when: float) -> None:
        def cancel() -> None:
            self.report.cancels += task.cancel()
            if self.chance.random() < 0.3:
                task.cancel()

        asyncio.get_running_loop().call_at(self._moment(when), cancel)

    async def _flap(self, connector: Connector, host: Any) -> None:
        chance, network = self.chance, self.network
        now = asyncio.get_running_loop().time
        server = network.serve(host, 80, self._served)
        while now() < OUTAGE:
            self.moody = chance.choice([0.0, 0.0, 0.2])
            self.hangs_up = chance.random() < 0.2
            what = chance.choice(["stop", "start", "down", "up", "script", "lose", "retry_now", "short"])
            if what == "stop" and server.is_serving():
                server.stop(chance.choice(["reset", "close"]))
            elif what == "start" and not server.is_serving():
                server.start()
            elif what in ("down", "up"):
                getattr(host, what)()
            elif what == "script":
                network.script("10.0.0.1", network.chances({"ECONNREFUSED": 0.3, "hang 1s": 0.2, "reset": 0.2}))
            elif what == "short":
                network.script("10.0.0.1", ["EMFILE", "EMFILE", "ok"])
            elif what == "retry_now":
                connector.retry_now()
            elif self.live:
                self.live.pop().abort()
            await asyncio.sleep(chance.random() * chance.choice([0.05, 1.0, 2.0]))
        self.moody, self.hangs_up = 0.0, False
        host.up()
        network.script("10.0.0.1", "ok")
        if not server.is_serving():
            server.start()
        self.back = now()

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.hangs_up:
            await reader.read()
        writer.close()

    async def _caller(self, connector: Connector) -> None:
        """Call again and again until the server is well, and be cancelled now and then."""
        chance, now = self.chance, asyncio.get_running_loop().time
        while now() < OUTAGE:
            await asyncio.sleep(self._moment(chance.random() * chance.choice([0.0, 0.3, 3.0])))
            call = asyncio.ensure_future(self._call(connector))
            self.calls[call] = None
            call.add_done_callback(self.calls.pop)
            if chance.random() < 0.6:
                self._cancel_at(call, now() + chance.random() * chance.choice([0.0, 0.1, 2.0]))
            await asyncio.wait([call])
            if not call.cancelled():
                call.result()

    def _on_turn(self, turn: asyncio.Future[Any]) -> None:
        """Cancel now and then, once or twice, who has just been given a turn and does not know it yet."""
        if self.chance.random() < 0.1:
            for call in [one for one in self.calls if getattr(one, "_fut_waiter", None) is turn]:
                for _ in range(self.chance.choice([1, 2])):
                    self.report.cancels += call.cancel()

    def _moment(self, when: float) -> float:
        """On the millisecond, to meet what else is due then."""
        return round(when, self.chance.choice([1, 3, 9]))

    async def _call(self, connector: Connector) -> None:
        chance, loop = self.chance, asyncio.get_running_loop()
        began = loop.time()
        limit = chance.choice([0.05, 0.5, 2.0, 10.0, None])
        wait = chance.choice([None, None, True, False])
        deadline = math.inf if limit is None else began + limit
        try:
            connection = await connector.connect(limit, wait=wait)
        except asyncio.CancelledError:
            self.report.ends["cancelled"] += 1
            raise
        except errors.NetworkError as exc:
            self._judge(exc, began, deadline, wait)
            return
        except LookupError:
            self.report.ends["LookupError"] += 1
            return
        need(loop.time() <= deadline + 1e-6, "connected too late")
        self.report.ends["connected"] += 1
        if self.back < loop.time():
            self.report.slowest = max(self.report.slowest, loop.time() - max(self.back, began))
        self.live.append(connection)

    def _judge(self, error: errors.NetworkError, began: float, deadline: float, wait: bool | None) -> None:
        now = asyncio.get_running_loop().time()
        self.report.ends[type(error).__name__] += 1
        for attempt in error.attempts:
            need(attempt.error is not None and id(attempt.error) not in self.told, "one error for two calls")
            self.told[id(attempt.error)] = attempt.error  # type: ignore[assignment]
        need(now <= deadline + 1e-6, f"ended {now - deadline} s late: {error!r}")
        need(error.stop_reason in ("timeout", "circuit"), f"stopped by {error.stop_reason}: {error!r}")
        need((error.stop_reason == "circuit") <= (wait is False), "refused who would wait")
        if isinstance(error, errors.CircuitOpen):
            need(all(attempt.shared for attempt in error.attempts), "CircuitOpen for who has dialed")
            need(error.__cause__ is not None, "CircuitOpen without a cause")
        if error.stop_reason == "timeout":
            need(now >= deadline - 0.003 or error.attempts, f"gave up before its time: {error!r}")
            # One pause, one probe that is silent, then the crowd.
            need(deadline - max(self.back, began) < self._patience(), f"not served: {error!r}")

    def _patience(self) -> float:
        budget = self.policy.budget
        return CAP + self.attempt_timeout + 1.0 + (0.0 if budget is None else 2 / budget.floor)

    async def _ended(self, connector: Connector) -> None:
        record = connector.record
        began = asyncio.get_running_loop().time()
        connection = await connector.connect(30)
        took = asyncio.get_running_loop().time() - began
        need(took <= self._patience(), f"{took} s until connected")
        need((record.gate.inside, record.gate.waiting) == (0, 0), f"left at the gate: {connector.stats()}")
        need(record.gate._timer is None, "a timer is left at the gate")
        need(record.till is None or (record.till.waiting, record.till._timer) == (0, None), "left at the till")
        need(not record.resting, "left in a pause")
        need(not record.circuit.out, "a lease is left")  # type: ignore[attr-defined]
        need(record.circuit.state == "closed", "not closed")
        self.report.dials += record.attempts
        self.report.opened += record.circuit.opened  # type: ignore[attr-defined]
        for each in (connection, *self.live):
            each.abort()
        await asyncio.sleep(5)
        # What the server holds is its own affair: a reset gets lost while the host is down.
        left = [sock for sock in self.network.open if sock.host is self.network.client]
        need(not left, f"left open: {left}")


def storm(seed: int) -> Report:
    try:
        return Storm(seed).run()
    except Exception as exc:
        exc.add_note(f"seed {seed}")
        raise


def storms(seeds: Iterable[int]) -> Report:
    """What came of the storms of these seeds. Raises `Broken`, with the seed in a note."""
    logger = logging.getLogger("aioconnect")
    level = logger.level
    # An outage a second is no news here.
    logger.setLevel(logging.ERROR)
    try:
        total = Report()
        for seed in seeds:
            total.add(storm(seed))
        return total
    finally:
        logger.setLevel(level)
