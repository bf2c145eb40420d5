"""The storms of `tests.stress` in short; and what they, with the tests of the parts, would notice.

What could go unnoticed is planted, in copies of the modules, and has to be found.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import types
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioconnect import (
    Backoff,
    CircuitBreaker,
    Connection,
    Connector,
    Policy,
    RetryBudget,
    breaker,
    connector,
    errors,
    gate,
    record,
    retrying,
)
from aioconnect.testing.loop import SimulatedLoop
from aioconnect.testing.network import Network
from tests import test_breaker, test_circuit
from tests.stress.circuit import storms, watch
from tests.support.clock import run_virtual
from tests.test_circuit import assert_at_rest, outcome


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_storms(first: int) -> None:
    total = storms(range(first, first + 10))
    assert total.cancels > 50
    assert total.opened > 10
    assert total.ends["connected"] > 100


Mutation = tuple[types.ModuleType, str, str]

MUTATIONS: dict[str, Mutation] = {
    "a slot on its way is lost": (
        gate,
        "                self._hand_back(place.turn.result())\n",
        "                pass\n",
    ),
    "a lease is not given back": (gate, "            self.circuit.give_back(lease, now)\n", ""),
    "one who has gone is served": (gate, "            if not place.turn.done():\n", "            if True:\n"),
    "the last comes first": (gate, "place = next(iter(self._line))", "place = next(reversed(self._line))"),
    "who leaves the line serves nobody": (
        gate,
        "is None and not loop.is_closed():\n",
        "is None and loop.is_closed():\n",
    ),
    "who has dialed serves nobody": (
        gate,
        "            self.circuit.give_back(lease, now)\n            self.serve(now)\n",
        "            self.circuit.give_back(lease, now)\n",
    ),
    "a dial is not counted": (gate, "            self.inside += 1\n            self._give", "            self._give"),
    "the clock is wound once": (gate, "        if due == self._due:\n", "        if self._due < math.inf:\n"),
    "only the first is told": (
        gate,
        "        while (place := self._first()) is not None:\n            self._give(place, error)",
        "        if (place := self._first()) is not None:\n            self._give(place, error)",
    ),
    "the window is not asked": (gate, "            elif self.inside >= self.size:\n", "            elif False:\n"),
    "all are told with one object": (gate, "raise Turned(_copy(turn), shared=True)", "raise Turned(turn, shared=True)"),
    "a probe is alone in a crowd": (gate, "if len(self._line) == 1 and self", "if self"),
    "tokens are minted": (gate, "is not None and self.tokens.take(now):", "is not None:"),
    "two probes at once": (
        breaker,
        "return self._lease_until if self._lease is not None or self.retry_at is None else self.retry_at",
        "return -math.inf if self.retry_at is None else self.retry_at",
    ),
    "a lease ends before its probe": (connector, "self.policy.attempt_timeout + _GRACE", "self.policy.attempt_timeout"),
    "a first try pays": (
        retrying,
        "if self.common is None or self.held or not self.dialed:",
        "if self.common is None:",
    ),
    "what is not made is paid for": (
        retrying,
        "        except (asyncio.CancelledError, Turned):\n            self._refund()\n",
        "        except (asyncio.CancelledError, Turned):\n",
    ),
    "any lease is given back": (breaker, "if lease is not None and lease is self._lease:", "if lease is not None:"),
    "recovery is a burst": (breaker, "            self.window = 1\n", "            self.window = math.inf\n"),
    "it never closes": (
        breaker,
        "            self.since = self.retry_at = self._lease = None\n",
        "            self._lease = None\n",
    ),
    "old news counts": (
        breaker,
        "if self.since is not None and (lease is None or lease is not self._lease):",
        "if False:",
    ),
    "the row begins anew after a hang-up": (breaker, "self.failures = max(self.failures, self._before)", "pass"),
    "a loss casts no doubt": (
        breaker,
        "            self.window = min(self.window, self.limit)\n            self.healthy &=",
        "            self.healthy &=",
    ),
    "the pause does not grow": (breaker, "pause(self.failures, ", "pause(self.limit, "),
    "a probe that fails keeps its lease": (
        breaker,
        "        self.window = 0\n        self._lease = None\n",
        "        self.window = 0\n",
    ),
    "a shortage of this host counts": (record, '        if error.kind == "local":\n', "        if False:\n"),
    "nobody is told of a probe": (record, "            self.gate.share(error)\n", "            pass\n"),
    "who has not dialed brings a probe forward": (
        retrying,
        "self.final = pause >= left and (self.dialed or not self.held)",
        "self.final = pause >= left",
    ),
}


def plant(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the methods of the module's classes, and its functions, from a copy with a piece of its text replaced."""
    module, old, new = mutation
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the module has changed: say {old!r} as it says it now"
    copy = types.ModuleType(module.__name__)
    exec(compile(source.replace(old, new), "mutated", "exec"), vars(copy))
    for name, real in list(vars(module).items()):
        made: Any = vars(copy).get(name)
        if isinstance(made, type) and made.__module__ == module.__name__:
            for key, value in list(vars(made).items()):
                # A super() in there is that of the copy.
                if isinstance(value, (types.FunctionType, property)) and key != "__init__":
                    monkeypatch.setattr(real, key, value)
        if not (isinstance(made, types.FunctionType) and made.__module__ == module.__name__):
            # Classes are told apart, and so is _GO: there has to be one of each.
            vars(copy)[name] = real


def plain_tests(module: types.ModuleType) -> Iterator[Any]:
    """Those without arguments that need no real sockets."""
    for name, test in vars(module).items():
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "asyncio"]
        if name.startswith("test_") and not inspect.signature(test).parameters:
            if marks or not inspect.iscoroutinefunction(test):
                yield test


def look(seeds: int) -> None:
    for test in plain_tests(test_breaker):
        test()
    for test in plain_tests(test_circuit):
        if inspect.iscoroutinefunction(test):
            run_virtual(test())
    storms(range(seeds))


# What a broken line leaves behind may be found by the collector at any time.
@pytest.mark.may_leak
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(MUTATIONS[name], monkeypatch)
    with pytest.raises((AssertionError, AttributeError, ExceptionGroup, asyncio.InvalidStateError)):
        look(seeds=40)


@pytest.mark.parametrize("module", [gate, breaker, record, retrying, connector])
def test_without_a_fault_nothing_is_found(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plant((module, "from __future__ import annotations\n", "from __future__ import annotations\n"), monkeypatch)
    look(seeds=3)


# ------------------------------------------------------------------------------------------ step by step


class Endpoint(RuleBasedStateMachine):
    """One endpoint, its callers and what becomes of its server, in steps that Hypothesis can shorten."""

    @initialize(
        failures=st.integers(1, 3),
        most=st.sampled_from([None, 1, 2]),
        budget=st.sampled_from([None, RetryBudget(floor=5, burst=2)]),
        latency=st.sampled_from([0.0, 0.01]),
    )
    def begin(self, failures: int, most: int | None, budget: RetryBudget | None, latency: float) -> None:
        self.network = Network(latency=latency)
        self.runner = asyncio.Runner(loop_factory=lambda: SimulatedLoop(self.network))
        self.loop = self.runner.get_loop()
        self.hangs_up = False
        self.host = self.network.host("db", "10.0.0.1")
        self.server = self.network.serve(self.host, 80, self.served)
        policy = Policy(
            timeout=None,
            attempt_timeout=0.5,
            wait=Backoff(0.1, 1.0, jitter="none"),
            breaker=CircuitBreaker(failures),
            budget=budget,
        )
        self.connector = Connector("tcp://10.0.0.1:80", policy, max_connecting=most)
        watch(self.connector.record, lambda _: None)
        self.calls: list[tuple[asyncio.Task[Any], float]] = []
        self.connected: list[Connection] = []
        self.problems: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))

    async def served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.hangs_up:
            await reader.read()
        writer.close()

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 1.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(limit=st.sampled_from([None, 0.05, 0.5, 2.0]), wait=st.sampled_from([None, False]), times=st.integers(1, 4))
    def call(self, limit: float | None, wait: bool | None, times: int) -> None:
        for _ in range(times):
            task = self.loop.create_task(self.called(limit, wait))
            self.calls.append((task, self.loop.time() + (math.inf if limit is None else limit)))

    async def called(self, limit: float | None, wait: bool | None) -> None:
        try:
            self.connected.append(await self.connector.connect(limit, wait=wait))
        except errors.ConnectError as exc:
            error = exc
        else:
            return
        refused = isinstance(error, errors.CircuitOpen)
        assert error.stop_reason == "timeout" or (wait is False and refused)
        assert not refused or all(attempt.shared for attempt in error.attempts)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), times=st.integers(1, 2))
    def cancel(self, data: st.DataObject, times: int) -> None:
        task, _ = data.draw(st.sampled_from(self.calls))
        for _ in range(times):
            task.cancel()

    @rule()
    def stop(self) -> None:
        self.server.stop("reset")

    @rule()
    def start(self) -> None:
        if not self.server.is_serving():
            self.server.start()

    @rule(yes=st.booleans())
    def hang_up(self, yes: bool) -> None:
        self.hangs_up = yes

    @rule(yes=st.booleans())
    def be_silent(self, yes: bool) -> None:
        (self.host.down if yes else self.host.up)()

    @rule(step=st.sampled_from(["ok", "EMFILE", "ok 100ms", "hang 1s", "reset"]))
    def meet(self, step: str) -> None:
        self.network.script("10.0.0.1", [step, "ok"])

    @rule()
    def retry_now(self) -> None:
        self.connector.retry_now()

    @invariant()
    def nobody_is_late(self) -> None:
        if hasattr(self, "calls"):
            assert not self.problems
            for task, deadline in self.calls:
                if not task.done():
                    assert self.loop.time() <= deadline + 0.001
                elif not task.cancelled() and (problem := task.exception()) is not None:
                    raise problem
            self.calls = [(task, deadline) for task, deadline in self.calls if not task.done()]

    def teardown(self) -> None:
        if not hasattr(self, "calls"):
            return
        try:
            self.hangs_up = False
            self.host.up()
            self.start()
            self.network.script("10.0.0.1", "ok")
            # One pause, one probe that is silent, and the crowd; a token each at worst.
            self.pass_time(4 + 0.2 * len(self.calls))
            self.nobody_is_late()
            assert not self.calls
            assert self.loop.run_until_complete(outcome(self.connector.dial(2))) is None
            stats = self.connector.stats()
            assert (stats.connecting, stats.waiting, stats.circuit) == (0, 0, "closed")
            assert_at_rest(self.connector)
            for connection in self.connected:
                connection.abort()
            self.pass_time(1)
        finally:
            self.runner.close()


TestEndpoint = Endpoint.TestCase
TestEndpoint.settings = settings(max_examples=100, stateful_step_count=40, suppress_health_check=list(HealthCheck))
