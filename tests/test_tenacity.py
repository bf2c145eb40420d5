"""Limits aside, the engine decides as plain `tenacity.AsyncRetrying`: same tries, same waits, same random numbers.

Both run the same policy against the same script of outcomes on a virtual clock, which the test lends to tenacity.
What could go unnoticed is planted, in a copy of the engine, and has to be found.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import itertools
import random
import socket
import ssl
import types
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import hypothesis
import pytest
import tenacity
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tenacity import RetryCallState
from tenacity.stop import stop_after_attempt, stop_after_delay, stop_all, stop_any, stop_before_delay
from tenacity.wait import (
    wait_chain,
    wait_combine,
    wait_exception,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)

from aioconnect import policy as policy_module
from aioconnect import retrying
from aioconnect.backoff import Backoff
from aioconnect.errnoset import LOCAL, STARTING, TRANSIENT
from aioconnect.errors import (
    CertificateRejected,
    ConfigError,
    ConnectError,
    ConnectRefused,
    ConnectTimeout,
    NetworkError,
    NotReady,
    classify,
)
from aioconnect.policy import Policy
from tests.support.clock import run_virtual


class ForeignError(Exception):
    """Of a driver."""


def from_refused() -> ForeignError:
    error = ForeignError("cannot connect")
    error.__cause__ = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    return error


OUTCOMES: dict[str, Callable[[], BaseException]] = {
    "refused": lambda: ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    "typed": lambda: ConnectRefused(address=("10.0.0.7", 80)),
    "EIO": lambda: OSError(errno.EIO, "x"),
    "EMFILE": lambda: OSError(errno.EMFILE, "x"),
    "timeout": TimeoutError,
    "nested limit": lambda: ConnectTimeout(source="call"),
    "again": lambda: socket.gaierror(socket.EAI_AGAIN, "x"),
    "noname": lambda: socket.gaierror(socket.EAI_NONAME, "x"),
    "eof": EOFError,
    "certificate": CertificateRejected,
    "tls": lambda: ssl.SSLError(1, "[SSL: TLSV1_ALERT_INTERNAL_ERROR] x (_ssl.c:1)"),
    "not ready": lambda: NotReady("loading"),
    "foreign": lambda: ForeignError("x"),
    "from refused": from_refused,
    "group": lambda: ExceptionGroup("x", [ConnectionRefusedError(errno.ECONNREFUSED, "x"), OSError(errno.EIO, "x")]),
    "group with a bug": lambda: ExceptionGroup("x", [ConnectionRefusedError(errno.ECONNREFUSED, "x"), KeyError("x")]),
    "bug": lambda: KeyError("x"),
    "setting": lambda: ConfigError("port=0: no"),
    "cancelled": asyncio.CancelledError,  # as uvloop does, when nobody has cancelled anything
}


class Step(NamedTuple):
    """What a try does: take so many seconds, then raise or return."""

    seconds: float
    outcome: str | None


class Seen(NamedTuple):
    """What a strategy could see when it was asked."""

    who: str
    attempt: int
    slept: float
    previous: float
    since_start: float | None
    error: type[BaseException] | None


class Trace:
    """One run: everything that can be told from outside."""

    def __init__(self, script: Sequence[Step]) -> None:
        self.script = iter(script)
        self.tries: list[float] = []
        self.asked: list[Seen] = []
        self.end: tuple[object, ...] = ()
        self.ended = 0.0
        self.random = 0.0

    async def attempt(self) -> str:
        self.tries.append(asyncio.get_running_loop().time())
        step = next(self.script, Step(0, None))
        if step.seconds:
            await asyncio.sleep(step.seconds)
        if step.outcome is not None:
            error = OUTCOMES[step.outcome]
            raise error()
        return "done"

    def asking(self, who: str, strategy: Callable[[RetryCallState], Any]) -> Callable[[RetryCallState], Any]:
        def asked(state: RetryCallState) -> Any:
            error = None if state.outcome is None else state.outcome.exception()
            self.asked.append(
                Seen(
                    who,
                    state.attempt_number,
                    state.idle_for,
                    state.upcoming_sleep,
                    state.seconds_since_start,
                    None if error is None else type(error),
                )
            )
            assert state.outcome is not None
            assert (state.outcome.failed, state.outcome.done()) == (True, True)
            assert state.outcome.attempt_number == state.attempt_number
            return strategy(state)

        return asked

    async def run(self, start: Callable[[], Awaitable[str]]) -> None:
        loop = asyncio.get_running_loop()
        clock = types.SimpleNamespace(monotonic=loop.time)
        with mock.patch.object(tenacity, "time", clock):
            try:
                self.end = ("returned", await start())
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (whatever it is, both have to agree)
                self.end = outcome_of(exc)
        self.ended = loop.time()
        self.random = random.random()


def outcome_of(exc: BaseException) -> tuple[object, ...]:
    """How a call ended, alike for a raw error and for the typed one that stands for it."""
    if isinstance(exc, NetworkError):
        return "raised", type(exc), exc.code, exc.errno
    found = classify(exc) if isinstance(exc, (OSError, EOFError)) or type(exc) is ExceptionGroup else None
    if found is not None and not (isinstance(exc, ExceptionGroup) and exc.subgroup(KeyError)):
        return "raised", type(found.error), found.code, found.errno
    return "raised", type(exc), str(exc)


class Settings(NamedTuple):
    """A policy, so to speak, whose strategies can be made to tell what they see."""

    wait: Callable[[RetryCallState], float]
    stop: Callable[[RetryCallState], bool] | None
    retry_on: Any
    never_retry_on: Any
    max_attempts: int | None
    bare: bool = False
    """Whether the wait goes in as it is and tells nothing: of a `Backoff` the engine then asks only the delay."""

    def policy(self, trace: Trace) -> Policy:
        return Policy(
            retry_on=self.retry_on,
            never_retry_on=self.never_retry_on,
            max_attempts=self.max_attempts,
            timeout=None,
            attempt_timeout=None,
            wait=self.wait if self.bare else trace.asking("wait", self.wait),
            stop=None if self.stop is None else trace.asking("stop", self.stop),
        )


def plain(policy: Policy) -> tenacity.AsyncRetrying:
    """What somebody who knows tenacity would write for that policy."""
    stops: list[Any] = [] if policy.max_attempts is None else [stop_after_attempt(policy.max_attempts)]
    if policy.stop is not None:
        stops.append(policy.stop)
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(policy.retryable),
        wait=policy.wait,
        stop=stop_any(*stops),
        sleep=asyncio.sleep,
        reraise=True,
    )


def run(
    made: Settings, script: Sequence[Step], seed: int, call: Callable[[Policy, Callable[[], Any]], Awaitable[str]]
) -> Trace:
    trace = Trace(script)
    policy = made.policy(trace)
    random.seed(seed)
    run_virtual(trace.run(lambda: call(policy, trace.attempt)))
    return trace


def check(made: Settings, script: Sequence[Step], seed: int) -> None:
    ours = run(made, script, seed, lambda policy, fn: policy.call(fn))
    theirs = run(made, script, seed, lambda policy, fn: plain(policy)(fn))
    assert ours.tries == theirs.tries
    assert ours.asked == theirs.asked
    assert ours.end == theirs.end
    assert ours.ended == theirs.ended
    assert ours.random == theirs.random


# What is generated

seconds = st.sampled_from([0, 0.05, 0.3, 1, 2.5, 7])


def by_error(error: BaseException) -> float:
    return 1.5 if isinstance(error, TimeoutError) else 0.25


def odd_attempts(state: RetryCallState) -> float:
    return state.attempt_number % 2 * 0.5


def bounds(kind: Callable[..., Any]) -> st.SearchStrategy[Any]:
    return st.tuples(seconds, seconds).map(lambda pair: kind(min(pair), max(pair)))


backoffs = st.builds(
    lambda pair, factor, jitter: Backoff(min(pair), max(pair), factor, jitter),
    st.tuples(seconds, seconds),
    st.sampled_from([1, 1.6, 2, 3]),
    st.sampled_from(["full", "equal", "decorrelated", "none"]),
)
waits: st.SearchStrategy[Any] = backoffs | st.recursive(
    st.one_of(
        backoffs,
        st.just(wait_none()),
        seconds.map(wait_fixed),
        bounds(wait_random),
        st.builds(wait_exponential, seconds, st.just(9), st.sampled_from([1.5, 2]), st.sampled_from([0, 0.2])),
        st.builds(wait_random_exponential, seconds, st.just(9), st.sampled_from([1.5, 2])),
        st.builds(lambda limit, jitter: wait_exponential_jitter(max=limit, jitter=jitter), seconds, seconds),
        st.builds(wait_incrementing, seconds, seconds, st.just(4)),
        st.just(wait_exception(by_error)),
        st.just(odd_attempts),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda several: wait_chain(*several)),
        st.lists(inner, min_size=2, max_size=3).map(lambda several: wait_combine(*several)),
    ),
    max_leaves=3,
)


def slept_long(state: RetryCallState) -> bool:
    return state.idle_for > 1.0


def was_slow(state: RetryCallState) -> bool:
    assert state.outcome is not None
    return isinstance(state.outcome.exception(), TimeoutError) and state.upcoming_sleep > 0.1


stops: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.integers(1, 6).map(stop_after_attempt),
        seconds.map(stop_after_delay),
        seconds.map(stop_before_delay),
        st.sampled_from([slept_long, was_slow]),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda several: st.sampled_from([stop_any(*several), stop_all(*several)])
    ),
    max_leaves=3,
)

sets = st.sampled_from(
    [
        TRANSIENT | LOCAL,
        TRANSIENT | LOCAL,
        TRANSIENT | STARTING | {"EIO"},
        TRANSIENT | {ForeignError},
        {ForeignError},
        {ConnectError},
        {OSError},
        {Exception},
        {ExceptionGroup, "EIO"},
        (),
    ]
)
never = st.sampled_from([(), (), (), {"ETIMEDOUT"}, {ForeignError}, {ConnectionRefusedError}, {NotReady}])
policies = st.builds(Settings, waits, st.none() | stops, sets, never, st.none() | st.integers(1, 6), st.booleans())
scripts = st.lists(
    st.builds(
        Step,
        st.sampled_from([0, 0, 0.1, 1.5]),
        st.one_of(
            st.sampled_from(["refused", "typed", "timeout", "nested limit", "foreign", "from refused"]),
            st.sampled_from([None, *OUTCOMES]),
        ),
    ),
    max_size=8,
)
cases = (policies, scripts, st.integers(0, 2**32))


@settings(max_examples=700)
@given(policies, st.lists(scripts, min_size=3, max_size=3), st.integers(0, 2**32))
def test_the_engine_decides_as_tenacity(made: Settings, several: list[list[Step]], seed: int) -> None:
    for script in several:  # making a policy takes longer than running it
        check(made, script, seed)


@settings(max_examples=200)
@given(*cases)
def test_what_a_policy_hands_to_tenacity_decides_as_it(made: Settings, script: list[Step], seed: int) -> None:
    handed = run(made, script, seed, lambda policy, fn: policy.retrying()(fn))
    theirs = run(made, script, seed, lambda policy, fn: plain(policy)(fn))
    assert (handed.tries, handed.end, handed.random) == (theirs.tries, theirs.end, theirs.random)


# Does it find anything?

WAIT = "        self.upcoming = self._drawn(rules.wait) if hold is None else hold\n"
HOLD = "        hold = None if self.common is None else self.common.hold(error, self.now)\n"
DECIDE = "        if not rules.retryable(error):\n"
STOP = "        if rules.stop is not None and rules.stop(self._told()):\n            return 'stop'\n"
COUNT = (
    "        if rules.max_attempts is not None and self.count >= rules.max_attempts:\n            return 'attempts'\n"
)

THRICE = [Step(0, "refused")] * 3

MUTATIONS: dict[str, list[tuple[str, str]]] = {
    "the stop comes before the wait": [(WAIT, STOP + WAIT)],
    "no wait is drawn for the last attempt": [(WAIT, COUNT + WAIT)],
    "the wait comes before the decision": [(DECIDE, HOLD + WAIT + DECIDE)],
    "attempts are counted from 0": [("state.attempt_number = self.count\n", "state.attempt_number = self.count - 1\n")],
    "one attempt too many": [("self.count >= rules.max_attempts", "self.count > rules.max_attempts")],
    "a Backoff counts from 0": [("backoff.delay(self.count, ", "backoff.delay(self.count - 1, ")],
    "the previous wait is forgotten": [("state.upcoming_sleep = self.upcoming", "state.upcoming_sleep = 0.0")],
    "a Backoff forgets the previous wait": [("backoff.delay(self.count, self.upcoming)", "backoff.delay(self.count)")],
    "a state is of the failure before": [("if state.outcome is None and ", "if state.attempt_number == 1 and ")],
    "what was slept is not added up": [("self.idle += pause", "self.idle = pause")],
    "time counts from the first failure": [
        ("state.start_time = started", "state.start_time = asyncio.get_running_loop().time()")
    ],
    "strategies see the typed error": [
        ("_Outcome(self.error, self.count)", "_Outcome(self.last or self.error, self.count)")
    ],
    "everything is retried": [(DECIDE, "        if False:\n")],
    "cancellations are retried": [
        (
            "except asyncio.CancelledError as cancelled:\n            if call",
            "except GeneratorExit:\n            if call",
        ),
        ("                call.interrupted(cancelled)\n", "                pass\n"),
        ("except Exception as exc:", "except BaseException as exc:"),
        (DECIDE, "        if isinstance(error, Exception) and not rules.retryable(error):\n"),
    ],
    "a foreign exception is not asked about as itself": [
        ("_reason(error if typed is None else typed,", "_reason(error if known is None else known,")
    ],
    "an inner call's limit is taken for the own": [("if self.count > 1 and self.late and", "if self.count > 1 and")],
    "the previous attempt decides": [("last = self.attempts[-1].error", "last = self.attempts[-2:][0].error")],
}


def mutated(pairs: list[tuple[str, str]]) -> types.ModuleType:
    """A copy of the engine with pieces of its text replaced."""
    source = inspect.getsource(retrying)
    for old, new in pairs:
        assert source.count(old) == 1, f"the engine has changed: say {old!r} as it says it now"
        source = source.replace(old, new)
    copy = types.ModuleType("mutated")
    exec(compile(source, "mutated", "exec"), vars(copy))
    return copy


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = mutated(MUTATIONS[name])
    for each in ("retry", "attempt_limit"):
        monkeypatch.setattr(policy_module, each, getattr(copy, each))

    @settings(
        max_examples=1000,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        derandomize=True,
    )
    @given(*cases)
    @example(Settings(Backoff(1, 7), None, TRANSIENT, (), None, bare=True), THRICE, 0)
    @example(Settings(Backoff(1, 7, jitter="decorrelated"), None, TRANSIENT, (), None, bare=True), THRICE, 0)
    def faulty(made: Settings, script: list[Step], seed: int) -> None:
        check(made, script, seed)

    with pytest.raises((AssertionError, ExceptionGroup)):
        faulty()


# Beside it: calls that run at the same time, where plain tenacity would mix them up.


def test_many_calls_of_one_policy_are_each_alone() -> None:
    """A hundred calls at once, each its own script: all of them as if it were the only one."""
    made = Settings(Backoff(0.125, 3.0, jitter="decorrelated", uniform=lambda low, high: high), None, TRANSIENT, (), 5)
    outcomes = itertools.cycle([[], ["refused"] * 2, ["timeout"] * 4, ["refused"] * 9, ["EIO"], ["bug"]])
    scripts = [[Step(n / 128, outcome) for outcome in next(outcomes)] for n in range(100)]
    alone = [run(made, script, 0, lambda policy, fn: policy.call(fn)) for script in scripts]

    async def together() -> list[Trace]:
        traces = [Trace(script) for script in scripts]
        policy = Policy(retry_on=made.retry_on, max_attempts=5, timeout=None, attempt_timeout=None, wait=made.wait)
        await asyncio.gather(*(trace.run(functools.partial(policy.call, trace.attempt)) for trace in traces))
        return traces

    for ours, other in zip(run_virtual(together()), alone, strict=True):
        assert (ours.tries, ours.end, ours.ended) == (other.tries, other.end, other.ended)
