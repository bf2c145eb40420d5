"""Policy: its settings, `call` and `wraps`, the way out to tenacity, and what it says of itself."""

from __future__ import annotations

import asyncio
import copy
import errno
import inspect
import itertools
import math
import pickle
import random
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity.stop import stop_after_attempt, stop_after_delay
from tenacity.wait import wait_exception, wait_fixed, wait_none, wait_random

import aioconnect
from aioconnect.backoff import Backoff
from aioconnect.breaker import CircuitBreaker
from aioconnect.budget import RetryBudget
from aioconnect.errnoset import DENIED, LOCAL, STARTING, TRANSIENT, ErrnoSet
from aioconnect.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    ConnectRefused,
    ConnectReset,
    ConnectTimeout,
    NameNotFound,
    NotReady,
)
from aioconnect.policy import Policy, retry_if_code
from aioconnect.testing.cancel import EAGER
from tests.support.clock import run_virtual, virtual


class ForeignError(Exception):
    """Of a driver."""


def refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "refused")


# Settings


def test_defaults() -> None:
    policy = Policy()
    assert policy.retry_on == TRANSIENT | LOCAL
    assert policy.never_retry_on == ErrnoSet()
    assert (policy.max_attempts, policy.timeout, policy.attempt_timeout, policy.stop) == (None, 60.0, 5.0, None)
    assert policy.wait == Backoff(initial=0.1, maximum=5.0, factor=2.0, jitter="full")
    assert (policy.breaker, policy.budget) == (CircuitBreaker(failures=5, when_open="wait"), None)
    assert Policy(DENIED) == Policy(retry_on=DENIED)


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({"timeout": "250ms"}, {"timeout": 0.25}),
        ({"timeout": "1m", "attempt_timeout": 3}, {"timeout": 60.0, "attempt_timeout": 3.0}),
        ({"timeout": None}, {"timeout": None}),
        ({"timeout": "off", "attempt_timeout": "off"}, {"timeout": None, "attempt_timeout": None}),
        ({"max_attempts": "3"}, {"max_attempts": 3}),
        ({"retry_on": "ECONNREFUSED"}, {"retry_on": ErrnoSet("ECONNREFUSED")}),
        ({"retry_on": [errno.EIO, ForeignError]}, {"retry_on": ErrnoSet({"EIO", ForeignError})}),
        ({"retry_on": TRANSIENT | {errno.ENETDOWN, "EAI_NONAME"}}, {"retry_on": TRANSIENT | {"EAI_NONAME"}}),
        ({"never_retry_on": {ConnectReset}}, {"never_retry_on": ErrnoSet(ConnectReset)}),
    ],
    ids=repr,
)
def test_settings_are_settled(given: dict[str, Any], settled: dict[str, Any]) -> None:
    policy = Policy(**given)
    assert {name: getattr(policy, name) for name in settled} == settled


FINITE = "must be more than 0 and finite"
DURATION = "must be a number of seconds, or a text such as '250ms', '2s', '1m'"
THING = "must be a code name, an errno number or an exception class"


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"timeout": 0}, [f"timeout=0: {FINITE}"]),
        ({"timeout": -1.0}, [f"timeout=-1.0: {FINITE}"]),
        ({"timeout": math.nan}, [f"timeout=nan: {FINITE}"]),
        ({"timeout": math.inf}, [f"timeout=inf: {FINITE}"]),
        ({"timeout": True}, [f"timeout=True: {DURATION}"]),
        ({"timeout": "soon"}, [f"timeout='soon': {DURATION}"]),
        ({"attempt_timeout": 0.0}, [f"attempt_timeout=0.0: {FINITE}"]),
        ({"attempt_timeout": [1]}, [f"attempt_timeout=(1): {DURATION}"]),
        ({"max_attempts": 0}, ["max_attempts=0: must be an integer, 1 or more"]),
        ({"max_attempts": 2.0}, ["max_attempts=2.0: must be an integer, 1 or more"]),
        ({"max_attempts": True}, ["max_attempts=True: must be an integer, 1 or more"]),
        ({"wait": 1.0}, ["wait=1.0: must be a Backoff or another tenacity wait"]),
        ({"wait": None}, ["wait=None: must be a Backoff or another tenacity wait"]),
        ({"wait": Backoff}, ["wait=<ABCMeta>: must be a Backoff or another tenacity wait"]),
        ({"wait": wait_none}, ["wait=<ABCMeta>: must be a Backoff or another tenacity wait"]),
        ({"stop": 3}, ["stop=3: must be a tenacity stop, or None"]),
        ({"stop": stop_after_attempt}, ["stop=<ABCMeta>: must be a tenacity stop, or None"]),
        ({"retry_on": 10}, ["retry_on=10: must be a set of errors; timeout= and max_attempts= are given by name"]),
        ({"breaker": 1}, ["breaker=1: must be a CircuitBreaker, or None"]),
        ({"budget": object()}, ["budget=<object>: must be a RetryBudget, or None"]),
        (
            {"retry_on": "ECONREFUSED"},
            ["retry_on.code='ECONREFUSED': is no known code; did you mean ECONNREFUSED?"],
        ),
        ({"retry_on": None}, [f"retry_on.entry=None: {THING}"]),
        ({"retry_on": b"EIO"}, [f"retry_on.entry=b'EIO': {THING}"]),
        ({"never_retry_on": {0}}, [f"never_retry_on.entry=0: {THING}"]),
        (
            {"retry_on": {asyncio.CancelledError}},
            ["retry_on.class=CancelledError: must be a subclass of Exception"],
        ),
        (
            {"timeout": 0, "max_attempts": 0, "wait": 0, "never_retry_on": [0, "EIO", -1], "stop": 0},
            [
                f"never_retry_on.entry=0: {THING}",
                f"never_retry_on.entry=-1: {THING}",
                "max_attempts=0: must be an integer, 1 or more",
                f"timeout=0: {FINITE}",
                "wait=0: must be a Backoff or another tenacity wait",
                "stop=0: must be a tenacity stop, or None",
            ],
        ),
    ],
    ids=repr,
)
def test_settings_that_cannot_work(given: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as info:
        Policy(**given)
    assert list(info.value.problems) == problems
    assert (info.value.__cause__, info.value.__context__) == (None, None)


def test_a_typo_in_a_setting_is_an_error() -> None:
    with pytest.raises(TypeError, match="attempts_timeout"):
        Policy(attempts_timeout=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Policy(TRANSIENT, LOCAL)  # type: ignore[call-arg]


# A value


def test_replace_checks_anew() -> None:
    policy = Policy(timeout=5).replace(max_attempts=3, timeout="2s")
    assert (policy.max_attempts, policy.timeout) == (3, 2.0)
    with pytest.raises(ConfigError, match="max_attempts=0"):
        policy.replace(max_attempts=0)


def test_equal_by_settings() -> None:
    assert Policy() == Policy(timeout="60s")
    assert Policy() != Policy(timeout=61)
    assert len({Policy(), Policy(retry_on=LOCAL | TRANSIENT), Policy(max_attempts=1)}) == 2


def test_immutable() -> None:
    policy = Policy()
    with pytest.raises(AttributeError):
        policy.timeout = 1.0  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        policy.other = 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_copied(protocol: int) -> None:
    for policy in (Policy(), Policy(DENIED | {ForeignError}, never_retry_on={"EPERM"}, max_attempts=3, timeout=None)):
        for twin in (pickle.loads(pickle.dumps(policy, protocol)), copy.copy(policy), copy.deepcopy(policy)):
            assert twin == policy
            assert hash(twin) == hash(policy)


def test_printed() -> None:
    assert repr(Policy()) == "Policy()"
    assert repr(Policy(retry_on="EIO", max_attempts=3, breaker=None)) == (
        "Policy(retry_on=ErrnoSet({'EIO'}), max_attempts=3, breaker=None)"
    )


# Decisions


@pytest.mark.parametrize(
    ("settings", "error", "retryable"),
    [
        ({}, ConnectRefused(), True),
        ({}, refused(), True),
        ({}, TimeoutError(), True),
        ({}, socket.gaierror(socket.EAI_AGAIN, "x"), True),
        ({}, NameNotFound(), False),
        ({}, NotReady(), False),
        ({}, OSError(errno.EIO, "x"), False),
        ({}, ValueError(), False),
        ({"retry_on": TRANSIENT | STARTING}, NotReady(), True),
        ({"never_retry_on": {ConnectReset}}, ConnectReset(), False),
        ({"never_retry_on": {ConnectReset}}, ConnectionResetError(errno.ECONNRESET, "x"), False),
        ({"never_retry_on": {"ECONNRESET"}}, ConnectRefused(), True),
        ({"retry_on": {ForeignError}}, ForeignError(), True),
        ({"retry_on": {Exception}}, ValueError(), True),
        ({"retry_on": {Exception}}, asyncio.CancelledError(), False),
        ({"retry_on": {Exception}}, KeyboardInterrupt(), False),
        ({"retry_on": {Exception}, "never_retry_on": {ForeignError}}, ForeignError(), False),
        ({"retry_on": ()}, ConnectRefused(), False),
        ({"retry_on": {ConnectError}}, ConnectError(errno.EIO), True),
        ({"retry_on": {ConnectError}}, ConnectionLost(errno.EIO), False),
    ],
)
def test_retryable(settings: dict[str, Any], error: BaseException, retryable: bool) -> None:
    assert Policy(**settings).retryable(error) is retryable


# call and wraps


async def test_call_passes_arguments_and_the_result() -> None:
    async def connect(*args: object, **kwargs: object) -> object:
        return args, kwargs

    # Whatever a driver's arguments are called: ours are positional only.
    call: Any = Policy().call
    assert await call(connect, 1, "b", fn=2, self=3, timeout=4) == ((1, "b"), {"fn": 2, "self": 3, "timeout": 4})


async def test_call_retries_a_real_connect() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        policy = Policy(wait=wait_none(), max_attempts=2)
        with pytest.raises(ConnectRefused) as info:
            await policy.call(asyncio.open_connection, "127.0.0.1", port)
    assert (info.value.errno, info.value.attempt_count) == (errno.ECONNREFUSED, 2)


async def test_call_waits_for_a_busy_port() -> None:
    def serve() -> Any:
        return asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port, reuse_address=False)

    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match="address already in use") as info:
        await Policy(max_attempts=2).call(serve)
    assert info.value.errno == errno.EADDRINUSE
    asyncio.get_running_loop().call_later(0.02, taken.close)
    server = await Policy(retry_on={"EADDRINUSE"}, wait=wait_fixed(0.01)).call(serve)
    server.close()
    await server.wait_closed()


@virtual
async def test_wraps() -> None:
    tries = 0

    @Policy(max_attempts=3, wait=wait_fixed(1)).wraps
    async def hello(name: str, *, greeting: str = "hello") -> str:
        """Greet."""
        nonlocal tries
        tries += 1
        if tries % 3:
            raise refused()
        return f"{greeting} {name}"

    assert await hello("db") == "hello db"
    assert await hello("db", greeting="hi") == "hi db"
    assert asyncio.get_running_loop().time() == 4
    assert (hello.__name__, hello.__doc__) == ("hello", "Greet.")
    assert inspect.iscoroutinefunction(hello)
    assert str(inspect.signature(hello)).startswith("(name: ")


@virtual
async def test_wraps_a_method() -> None:
    class Client:
        tries = 0

        @Policy(wait=wait_none()).wraps
        async def connect(self) -> int:
            self.tries += 1
            if self.tries < 3:
                raise refused()
            return self.tries

    assert await Client().connect() == 3


@pytest.mark.parametrize("eager", EAGER)
@virtual
async def test_call_is_a_coroutine_like_any(eager: bool) -> None:
    async def connect() -> int:
        await asyncio.sleep(1)
        return 1

    if eager:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  (3.12)
    coroutine = Policy().call(connect)
    assert inspect.iscoroutine(coroutine)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine), group.create_task(Policy().call(connect))]
    assert [task.result() for task in tasks] == [1, 1]


def test_a_policy_is_made_and_shared_without_a_loop() -> None:
    policy = Policy(max_attempts=2, wait=wait_none())

    async def connect() -> None:
        raise refused()

    for _ in range(2):
        with pytest.raises(ConnectRefused):
            asyncio.run(policy.call(connect))
    with pytest.raises(ConnectRefused):
        run_virtual(policy.call(connect))


# The way out to tenacity


def test_retrying_is_fresh_and_says_what_the_policy_says() -> None:
    policy = Policy(wait=wait_fixed(3))
    one, other = policy.retrying(), policy.retrying()
    assert one is not other
    assert isinstance(one, tenacity.AsyncRetrying)
    assert (one.wait, one.reraise) == (policy.wait, True)


@pytest.mark.parametrize(
    ("settings", "tries"),
    [
        ({"max_attempts": 3}, [0, 4, 8]),
        ({"stop": stop_after_delay(5)}, [0, 4, 8]),
        ({"timeout": 9}, [0, 4, 8]),  # a sleep that passes it is not begun
        ({"timeout": 8}, [0, 4]),
        ({"max_attempts": 3, "stop": stop_after_attempt(2), "timeout": None}, [0, 4]),
        ({"retry_on": "EIO"}, [0]),
    ],
    ids=repr,
)
@virtual
async def test_retrying_decides_as_the_policy(
    settings: dict[str, Any], tries: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=loop.time))
    policy = Policy(**{"wait": wait_fixed(4), **settings})
    seen: list[float] = []

    async def connect() -> None:
        seen.append(loop.time())
        raise refused()

    with pytest.raises(ConnectionRefusedError):
        await policy.retrying()(connect)
    assert seen == tries
    seen.clear()
    begun = loop.time()

    async def in_a_loop() -> None:
        async for attempt in policy.retrying():
            with attempt:
                await connect()

    with pytest.raises(ConnectionRefusedError):
        await in_a_loop()
    assert [when - begun for when in seen] == tries


async def test_retry_if_code() -> None:
    for entries, error, again in [
        (("ECONNREFUSED",), refused(), True),
        (("ECONNREFUSED",), ConnectRefused(), True),
        (("EAI_AGAIN", errno.ECONNREFUSED), refused(), True),
        (("ETIMEDOUT",), refused(), False),
        ((ForeignError,), ForeignError(), True),
        (("ECONNREFUSED",), asyncio.CancelledError(), False),
    ]:
        tries = 0

        async def connect(error: BaseException = error) -> None:
            nonlocal tries
            tries += 1
            raise error

        retrying = tenacity.AsyncRetrying(
            retry=retry_if_code(*entries), wait=wait_none(), stop=stop_after_attempt(2), reraise=True
        )
        with pytest.raises(type(error)):
            await retrying(connect)
        assert tries == (2 if again else 1)


def test_retry_if_code_combines() -> None:
    either = retry_if_code("ECONNREFUSED") | tenacity.retry_if_exception_type(ForeignError)
    assert isinstance(either, tenacity.retry_base)
    with pytest.raises(ConfigError, match="ECONREFUSED"):
        retry_if_code("ECONREFUSED")


# explain


def explained(policy: Policy) -> dict[str, str]:
    return {line[:13].rstrip(): line[13:] for line in policy.explain().splitlines()}


@pytest.mark.parametrize(
    ("policy", "lines"),
    [
        (
            Policy(max_attempts=3, wait=Backoff(jitter="none")),
            {
                "retries on": "TRANSIENT, LOCAL",
                "gives up": "after 60 s or 3 attempts; an attempt may take 5 s",
                "waits": "0.1, 0.2 s",
                "if refused": "3 attempts in 0.3 s",
                "if silent": "3 attempts in 15.3 s",
            },
        ),
        (Policy(max_attempts=1), {"waits": "never", "if refused": "1 attempt in 0 s", "if silent": "1 attempt in 5 s"}),
        (
            Policy(timeout=None, attempt_timeout=None, max_attempts=2, wait=wait_fixed(1)),
            {
                "gives up": "after 2 attempts; an attempt may take as long as it likes",
                "if refused": "2 attempts in 1 s",
                "if silent": "one, for ever",
            },
        ),
        (
            Policy(timeout=None, wait=wait_fixed(1)),
            {
                "gives up": "never; an attempt may take 5 s",
                "waits": "1, 1, 1, 1, 1, 1, 1, 1 s ...",
            },
        ),
        (
            Policy(TRANSIENT | STARTING | {"EIO", OSError}, never_retry_on={"ECONNREFUSED", ForeignError}),
            {
                "retries on": "TRANSIENT, STARTING, EIO, OSError; never on ECONNREFUSED, ForeignError",
                "if refused": "1 attempt in 0 s",
            },
        ),
        (Policy(()), {"retries on": "nothing", "if refused": "1 attempt in 0 s", "if silent": "1 attempt in 5 s"}),
        (
            Policy(wait=wait_exception(lambda error: 3 if isinstance(error, TimeoutError) else 1), max_attempts=2),
            {"if refused": "2 attempts in 1 s", "if silent": "2 attempts in 13 s"},
        ),
    ],
    ids=repr,
)
def test_explain(policy: Policy, lines: dict[str, str]) -> None:
    found = explained(policy)
    assert list(found) == ["retries on", "gives up", "waits", "if refused", "if silent", "circuit"]
    assert {name: found[name] for name in lines} == lines
    assert policy.explain() == policy.explain()


@pytest.mark.parametrize(
    ("policy", "circuit", "budget"),
    [
        (Policy(), "opens after 5 failures in a row: one probe at a time, and calls wait for it", None),
        (Policy(breaker=None), None, None),
        (
            Policy(breaker=CircuitBreaker(1, "fail"), budget=RetryBudget()),
            "opens after a failure: one probe at a time, and calls fail at once",
            "retries are 20 % of the calls and 1 a second, up to 10 at once; waits for more",
        ),
        (
            Policy(breaker=None, budget=RetryBudget(ratio=0, floor=2.5, burst=3, when_empty="fail")),
            None,
            "retries are 2.5 a second, up to 3 at once; gives up beyond",
        ),
        (
            Policy(breaker=None, budget=RetryBudget(floor=0)),
            None,
            "retries are 20 % of the calls, up to 10 at once; waits for more",
        ),
    ],
)
def test_explain_tells_of_circuit_and_budget(policy: Policy, circuit: str | None, budget: str | None) -> None:
    found = explained(policy)
    assert (found.get("circuit"), found.get("budget")) == (circuit, budget)


@settings(max_examples=60)
@given(
    st.sampled_from([None, 1, 3, 20]),
    st.sampled_from([0.5, 7.0, 60.0]),
    st.sampled_from([0.25, 5.0, 100.0]),
    st.sampled_from([wait_fixed(0.3), wait_fixed(100), Backoff(jitter="none"), Backoff(1, 1)]),
    st.sampled_from([None, stop_after_delay(3), stop_after_attempt(4)]),
    st.sampled_from(["refused", "silent"]),
)
def test_explain_says_what_happens(
    max_attempts: int | None, timeout: float, each: float, wait: Any, stop: Any, how: str
) -> None:
    if isinstance(wait, Backoff) and wait.jitter == "full":
        wait = Backoff(1, 1, uniform=lambda low, high: (low + high) / 2)
    policy = Policy(max_attempts=max_attempts, timeout=timeout, attempt_timeout=each, wait=wait, stop=stop)

    async def connect() -> None:
        await asyncio.sleep(math.inf if how == "silent" else 0)
        raise refused()

    async def call() -> tuple[int, float]:
        with pytest.raises(ConnectError) as info:
            await policy.call(connect)
        return info.value.attempt_count, asyncio.get_running_loop().time()

    count, elapsed = run_virtual(call())
    said = explained(policy)[f"if {how}"]
    assert said == f"{count} attempt{'s' if count > 1 else ''} in {elapsed:.3g} s"


def test_explain_does_not_show_a_random_source() -> None:
    before = random.getstate()
    Policy().explain()
    assert random.getstate() == before
    assert Policy(wait=wait_random(1, 2), max_attempts=2).explain()


# What the package hands on


def test_exported() -> None:
    assert aioconnect.Policy is Policy
    assert aioconnect.retry_if_code is retry_if_code


# Many at once


@virtual
async def test_a_thousand_calls_of_one_policy() -> None:
    policy = Policy(wait=Backoff(1, 8, jitter="none"), timeout=100, attempt_timeout=3)
    failures: Callable[[int], int] = lambda number: number % 5  # noqa: E731

    async def one(number: int) -> float:
        tries = itertools.count()

        async def connect() -> float:
            if next(tries) < failures(number):
                if number % 2:
                    await asyncio.sleep(math.inf)
                raise refused()
            return asyncio.get_running_loop().time()

        return await policy.call(connect)

    ended = await asyncio.gather(*map(one, range(1000)))
    for number, when in enumerate(ended):
        count = failures(number)
        assert when == sum((1, 2, 4, 8)[:count]) + 3 * count * (number % 2)


@virtual
async def test_the_policy_is_asked_not_the_error() -> None:
    """What the policy does not retry is raised at once, whatever its kind."""
    tries = 0

    async def connect() -> None:
        nonlocal tries
        tries += 1
        raise ConnectTimeout(source="kernel")

    with pytest.raises(ConnectTimeout) as info:
        await Policy(never_retry_on={TimeoutError}).call(connect)
    assert (tries, info.value.kind, info.value.stop_reason) == (1, "transient", "permanent")
