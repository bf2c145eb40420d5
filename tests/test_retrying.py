"""The retry engine: its limits, what it raises, what it leaves behind. What it decides is in test_tenacity."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import math
import time
import traceback
import types
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_fixed, wait_none

from aioconnect import retrying
from aioconnect.backoff import Backoff
from aioconnect.endpoint import Endpoint
from aioconnect.errnoset import LOCAL, TRANSIENT
from aioconnect.errors import (
    Attempt,
    ConfigError,
    ConnectError,
    ConnectRefused,
    ConnectTimeout,
    HostUnreachable,
    NetworkError,
    classify,
)
from aioconnect.limits import TICK
from aioconnect.policy import Policy
from aioconnect.record import Record
from aioconnect.retrying import Call, attempt_limit, retry
from aioconnect.testing.cancel import EAGER, cancel_everywhere
from tests.support.clock import run_virtual, virtual

eager_too = pytest.mark.parametrize("eager", EAGER)


class ForeignError(Exception):
    """Of a driver."""


def refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "refused")


class Script:
    """An attempt that does one thing after the other: an error, after so many seconds; or "hang", or a value."""

    def __init__(self, *steps: object, seconds: float = 0.0, again: bool = False) -> None:
        self.steps = itertools.cycle(steps) if again else iter(steps)
        self.seconds = seconds
        self.tries: list[float] = []
        self.cut: list[float] = []

    async def __call__(self) -> object:
        loop = asyncio.get_running_loop()
        self.tries.append(loop.time())
        step = next(self.steps)
        if isinstance(step, tuple):
            seconds, step = step
        else:
            seconds = self.seconds
        try:
            await asyncio.sleep(math.inf if step == "hang" else seconds)
        except asyncio.CancelledError:
            self.cut.append(loop.time())
            raise
        if isinstance(step, Exception):
            raise step
        if callable(step):
            raise step()
        return step


async def failure(policy: Policy, fn: Callable[[], Awaitable[object]]) -> NetworkError:
    """What the call raises, which has to be a typed error."""
    with pytest.raises(NetworkError) as info:
        await policy.call(fn)
    error = info.value
    error.__traceback__ = None
    return error


def codes_of(error: NetworkError) -> list[str | None]:
    return [None if attempt.error is None else attempt.error.code for attempt in error.attempts]


# Limits

steps = st.lists(
    st.tuples(st.sampled_from([0.01, 0.4, 3.0]), st.sampled_from(["hang", "refused", "fails"])), min_size=1
)


@settings(max_examples=300)
@given(
    steps,
    st.sampled_from([0.5, 1.0, 5.0, 60.0]),
    st.sampled_from([None, 0.2, 1.0, 5.0, 100.0]),
    st.sampled_from([wait_none(), wait_fixed(0.3), wait_fixed(1000), Backoff(), Backoff(jitter="decorrelated")]),
)
def test_no_call_outlives_its_limit(
    script: list[tuple[float, str]], timeout: float, attempt_timeout: float | None, wait: Any
) -> None:
    policy = Policy(timeout=timeout, attempt_timeout=attempt_timeout, wait=wait)
    kinds: dict[str, object] = {"hang": "hang", "refused": refused, "fails": lambda: OSError(errno.EMFILE, "x")}

    async def call() -> NetworkError:
        fn = Script(*((seconds, kinds[kind]) for seconds, kind in script), again=True)
        error = await failure(policy, fn)
        assert asyncio.get_running_loop().time() <= timeout
        assert error.attempt_count == len(fn.tries)
        assert [attempt.started for attempt in error.attempts[-15:]] == pytest.approx(fn.tries[-15:])
        return error

    error = run_virtual(call())
    assert error.stop_reason == "timeout"
    assert error.elapsed is not None
    assert error.elapsed <= timeout
    for attempt in error.attempts:
        assert attempt.elapsed <= (math.inf if attempt_timeout is None else attempt_timeout) + 1e-9
        assert attempt.started + attempt.elapsed <= timeout
    for attempt, following in itertools.pairwise(error.attempts[-15:]):
        assert following.started == pytest.approx(attempt.started + attempt.elapsed + attempt.slept)


@pytest.mark.parametrize(
    ("attempt_timeout", "tries"),
    [
        (None, [0, 7, 8.5]),  # half of the 3 seconds that are left
        (2.0, [0, 7, 8.5]),  # which is less than the attempt may use
        (1.0, [0, 7, 9]),  # which leaves it all that it may use
    ],
)
@virtual
async def test_the_last_sleep_leaves_room_for_one_more_attempt(
    attempt_timeout: float | None, tries: list[float]
) -> None:
    policy = Policy(timeout=10, attempt_timeout=attempt_timeout, wait=wait_fixed(7))
    fn = Script(refused, again=True)
    error = await failure(policy, fn)
    assert fn.tries == tries
    assert (error.stop_reason, error.elapsed) == ("timeout", tries[-1])
    assert [attempt.slept for attempt in error.attempts] == [7, tries[-1] - 7, 0]
    fn = Script(refused, refused, "connected")
    assert await policy.call(fn) == "connected"


@virtual
async def test_the_attempt_in_flight_is_bound() -> None:
    policy = Policy(timeout=10, attempt_timeout=2, wait=wait_fixed(1))
    fn = Script("hang", again=True)
    error = await failure(policy, fn)
    assert fn.tries == [0, 3, 6, 9]
    assert fn.cut == [2, 5, 8, 10]
    assert isinstance(error, ConnectTimeout)
    assert [attempt.elapsed for attempt in error.attempts] == [2, 2, 2, 1]
    sources = [attempt.error.source for attempt in error.attempts if isinstance(attempt.error, ConnectTimeout)]
    assert sources == ["attempt", "attempt", "attempt", "call"]


@virtual
async def test_no_limit_is_none() -> None:
    policy = Policy(timeout=None, attempt_timeout=None, wait=wait_fixed(3600))
    assert await policy.call(Script(*[refused] * 99, (86400, "connected"))) == "connected"
    assert asyncio.get_running_loop().time() == 99 * 3600 + 86400


@virtual
async def test_what_is_left_is_too_little_for_a_timer() -> None:
    error = await failure(Policy(timeout=TICK), Script(refused))
    assert (type(error), error.attempt_count, error.stop_reason) == (ConnectRefused, 1, "timeout")


async def test_limits_on_a_real_clock() -> None:
    loop = asyncio.get_running_loop()
    policy = Policy(timeout=0.06, attempt_timeout=0.025, wait=wait_fixed(0.01))
    begun = time.monotonic()
    error = await failure(policy, Script("hang", again=True))
    assert 0.06 - TICK <= time.monotonic() - begun < 0.5
    assert (error.stop_reason, error.attempt_count) == ("timeout", 2)
    await loop.shutdown_default_executor()


@pytest.mark.parametrize(
    ("each", "began", "deadline", "limit"),
    [
        (5.0, 0.0, 60.0, (5.0, "attempt")),
        (5.0, 57.0, 60.0, (60.0, "call")),
        (5.0, 55.0, 60.0, (60.0, "call")),
        (5.0, 7.0, math.inf, (12.0, "attempt")),
        (None, 7.0, 60.0, (60.0, "call")),
        (None, 7.0, math.inf, (math.inf, "call")),
    ],
)
def test_attempt_limit(each: float | None, began: float, deadline: float, limit: tuple[float, str]) -> None:
    assert attempt_limit(Policy(attempt_timeout=each), began, deadline) == limit


# What is raised

SOME_ANSWERED = ConnectRefused(errors=(ConnectRefused(), ConnectTimeout(source="call")))


@pytest.mark.parametrize(
    ("settings", "script", "cls", "reason", "codes"),
    [
        ({}, [OSError(errno.EIO, "x")], ConnectError, "permanent", ["EIO"]),
        ({}, [refused, OSError(errno.EACCES, "x")], PermissionError, "permanent", ["ECONNREFUSED", "EACCES"]),
        ({"never_retry_on": "ECONNREFUSED"}, [refused], ConnectRefused, "permanent", ["ECONNREFUSED"]),
        ({"retry_on": ()}, [refused], ConnectRefused, "permanent", ["ECONNREFUSED"]),
        ({"max_attempts": 1}, [refused], ConnectRefused, "attempts", ["ECONNREFUSED"]),
        (
            {"max_attempts": 2},
            [refused, OSError(errno.EHOSTUNREACH, "x")],
            HostUnreachable,
            "attempts",
            ["ECONNREFUSED", "EHOSTUNREACH"],
        ),
        ({"max_attempts": 2}, [refused, "hang"], ConnectTimeout, "attempts", ["ECONNREFUSED", "ETIMEDOUT"]),
        ({"stop": stop_after_attempt(1)}, [refused], ConnectRefused, "stop", ["ECONNREFUSED"]),
        ({"stop": lambda state: True, "max_attempts": 1}, [refused], ConnectRefused, "attempts", ["ECONNREFUSED"]),
        # The time limit between attempts, or during a sleep: a refusing peer is no time-out.
        ({"wait": wait_fixed(99)}, [refused, refused], ConnectRefused, "timeout", ["ECONNREFUSED"] * 2),
        ({"attempt_timeout": None}, [(9.999, refused)], ConnectRefused, "timeout", ["ECONNREFUSED"]),
        # The time limit inside an attempt, an earlier one completed: that one decides, the cut one is told.
        (
            {"attempt_timeout": None},
            [refused, "hang"],
            ConnectRefused,
            "timeout",
            ["ECONNREFUSED", "ETIMEDOUT"],
        ),
        (
            {"attempt_timeout": None},
            [refused, OSError(errno.EHOSTUNREACH, "x"), "hang"],
            HostUnreachable,
            "timeout",
            ["ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT"],
        ),
        # The same if some addresses of the cut one had answered.
        (
            {"attempt_timeout": None},
            [OSError(errno.EHOSTUNREACH, "x"), (8.999, SOME_ANSWERED)],
            HostUnreachable,
            "timeout",
            ["EHOSTUNREACH", "ECONNREFUSED"],
        ),
        # In the first attempt, some addresses answered; or none did.
        ({"attempt_timeout": None}, [(9.999, SOME_ANSWERED)], ConnectRefused, "timeout", ["ECONNREFUSED"]),
        ({"attempt_timeout": None}, ["hang"], ConnectTimeout, "timeout", ["ETIMEDOUT"]),
        # A limit inside the attempt is a failure as any other; the last to complete decides.
        (
            {"max_attempts": 2},
            [refused, ConnectTimeout(source="call")],
            ConnectTimeout,
            "attempts",
            ["ECONNREFUSED", "ETIMEDOUT"],
        ),
        (
            {"max_attempts": 2},
            [ConnectTimeout(source="call"), refused],
            ConnectRefused,
            "attempts",
            ["ETIMEDOUT", "ECONNREFUSED"],
        ),
        # A foreign one has completed before the cut, and says nothing about the connection.
        (
            {"retry_on": {ForeignError}, "attempt_timeout": None},
            [ForeignError(), "hang"],
            ConnectTimeout,
            "timeout",
            [None, "ETIMEDOUT"],
        ),
    ],
)
@virtual
async def test_what_is_raised(
    settings: dict[str, Any], script: list[Any], cls: type[OSError], reason: str, codes: list[str | None]
) -> None:
    policy = Policy(**{"timeout": 10, "attempt_timeout": 3, "wait": wait_fixed(1), **settings})
    error = await failure(policy, Script(*script))
    assert isinstance(error, cls)
    assert (error.stop_reason, error.attempt_count) == (reason, len(codes))
    assert codes_of(error) == codes
    assert error.elapsed == asyncio.get_running_loop().time() <= 10
    assert f"stopped by {reason})" in str(error)


@virtual
async def test_the_phase_of_a_cut_is_where_it_was() -> None:
    error = await failure(Policy(timeout=1), Script("hang"))
    assert isinstance(error, ConnectTimeout)
    assert (error.phase, error.source, error.errno) == ("connect", "call", errno.ETIMEDOUT)
    assert str(error) == (
        "connect: [ETIMEDOUT] not done within the call's time limit (1 attempt in 1.0 s, stopped by timeout)"
    )


@virtual
async def test_some_answered_and_some_were_silent() -> None:
    error = await failure(Policy(timeout=1), Script((0.999, SOME_ANSWERED)))
    assert [type(each) for each in error.errors] == [ConnectRefused, ConnectTimeout]


@virtual
async def test_the_raised_error_is_a_new_one() -> None:
    error = await failure(Policy(max_attempts=3), Script(refused, again=True))
    recorded = [attempt.error for attempt in error.attempts]
    assert error not in recorded
    assert error.__cause__ is recorded[-1]
    assert error.__context__ is None
    assert error.errors == (recorded[-1],)
    for each in recorded:
        assert type(each) is ConnectRefused
        assert (each.attempts, each.stop_reason, each.errors) == ((), None, ())
        assert isinstance(each.__cause__, ConnectionRefusedError)


@virtual
async def test_a_typed_error_of_the_attempt_is_recorded_as_it_is() -> None:
    mine = ConnectRefused(address=("10.0.0.7", 80), errors=(HostUnreachable(), ConnectRefused()))
    error = await failure(Policy(max_attempts=1), Script(mine))
    assert error.attempts[0].error is mine
    assert error is not mine
    assert (error.address, error.errors) == (mine.address, mine.errors)
    assert (mine.stop_reason, mine.attempts) == (None, ())


@virtual
async def test_attempts_tell_when_and_how_long() -> None:
    policy = Policy(max_attempts=3, wait=Backoff(1, 9, jitter="none"))
    error = await failure(policy, Script((0.5, refused), (0.25, refused), (0, refused)))
    cleaned = [attempt._replace(error=None) for attempt in error.attempts]
    assert cleaned == [Attempt(1, 0, 0.5, None, 1), Attempt(2, 1.5, 0.25, None, 2), Attempt(3, 3.75, 0, None, 0)]
    assert error.elapsed == 3.75


@virtual
async def test_the_first_and_the_last_fifteen_attempts_are_kept() -> None:
    for count in (15, 16, 17, 40):
        error = await failure(Policy(max_attempts=count, timeout=None), Script(refused, again=True))
        assert error.attempt_count == count
        last = range(max(2, count - 14), count + 1)
        assert [attempt.number for attempt in error.attempts] == [1, *last]
    assert error.__notes__[-1].endswith("40 attempts of 16 kept: ECONNREFUSED x16")


@virtual
async def test_no_recorded_error_holds_a_traceback() -> None:
    def in_a_group() -> ExceptionGroup[OSError]:
        with pytest.raises(ConnectionRefusedError) as info:
            raise refused()
        return ExceptionGroup("x", [info.value])

    def of_several_addresses() -> ConnectRefused:
        with pytest.raises(ConnectRefused) as info:
            raise ConnectRefused from refused()
        return ConnectRefused(errors=(info.value,))

    def while_handling() -> OSError:
        try:
            raise refused()
        except ConnectionRefusedError as exc:
            exc.__context__ = in_a_group()
            return OSError(errno.EHOSTUNREACH, "x")

    def looped() -> ConnectRefused:
        error = ConnectRefused()
        error.__cause__ = error
        return error

    for make in (refused, in_a_group, of_several_addresses, while_handling, looped):
        error = await failure(Policy(max_attempts=2, wait=wait_none()), Script(make, make))
        assert [each for each in behind(error) if each.__traceback__ is not None] == []


def behind(error: BaseException) -> list[BaseException]:
    """The error and everything that can be reached from it."""
    found, queue = [], [error]
    while queue:
        each = queue.pop()
        if each in found:
            continue
        found.append(each)
        queue += [one for one in (each.__cause__, each.__context__) if one is not None]
        if isinstance(each, NetworkError):
            queue += [*each.errors, *(attempt.error for attempt in each.attempts if attempt.error is not None)]
        if isinstance(each, BaseExceptionGroup):
            queue += each.exceptions
    return found


@virtual
async def test_what_went_before_within_an_attempt_is_kept() -> None:
    async def attempt() -> None:
        try:
            raise refused()
        except ConnectionRefusedError:
            raise OSError(errno.EHOSTUNREACH, "no other way")  # noqa: B904

    error = await failure(Policy(max_attempts=1), attempt)
    assert error.__cause__ is not None
    raw = error.__cause__.__cause__
    assert raw is not None
    assert isinstance(raw.__context__, ConnectionRefusedError)
    assert (raw.__traceback__, raw.__context__.__traceback__) == (None, None)


@virtual
async def test_what_the_caller_handles_meanwhile_stays_as_it_was() -> None:
    async def call() -> NetworkError:
        return await failure(Policy(max_attempts=2), Script(refused, again=True))

    handled: KeyError | None = None
    try:
        raise KeyError("being handled by the caller")
    except KeyError as exc:
        handled, before = exc, exc.__traceback__
        error = await call()
    assert before is not None
    assert handled.__traceback__ is before
    recorded = error.attempts[0].error
    assert recorded is not None
    assert handled not in behind(recorded)


# Foreign exceptions and bugs


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeyError("x"),
        lambda: ValueError("x"),
        lambda: TypeError("x"),
        lambda: AssertionError("x"),
        lambda: RuntimeError("Event loop is closed"),
        lambda: UnicodeError("label too long"),
        lambda: ConfigError("port=0: no"),
        lambda: ForeignError("x"),
        lambda: ExceptionGroup("x", [refused(), KeyError("x")]),
    ],
)
@virtual
async def test_a_bug_is_raised_as_itself_at_once(make: Callable[[], Exception]) -> None:
    bug = make()
    fn = Script(bug)
    with pytest.raises(type(bug)) as info:
        await Policy(retry_on={"EIO"}).call(fn)
    assert info.value is bug
    assert (bug.__cause__, bug.__context__) == (None, None)
    assert bug.__notes__ == ["1 attempt in 0.0 s, stopped by permanent"]
    assert len(fn.tries) == 1


@virtual
async def test_a_setting_is_never_retried() -> None:
    missing = ConfigError("ca_file='x': no such file")
    missing.__cause__ = FileNotFoundError(errno.ENOENT, "no")
    fn = Script(missing)
    with pytest.raises(ConfigError):
        await Policy(retry_on={"ENOENT"}).call(fn)
    assert len(fn.tries) == 1


@virtual
async def test_a_foreign_exception_is_raised_as_itself_in_the_end() -> None:
    made: list[ForeignError] = []

    def wrapped() -> ForeignError:
        cause = refused()
        with contextlib.suppress(ConnectionRefusedError):
            raise cause
        made.append(ForeignError("cannot connect"))
        made[-1].__cause__ = cause
        return made[-1]

    fn = Script(wrapped, again=True)
    with pytest.raises(ForeignError) as info:
        await Policy(max_attempts=3, wait=wait_fixed(2)).call(fn)
    assert len(fn.tries) == 3  # for what is behind it
    assert info.value is made[-1]
    assert info.value.__notes__ == ["3 attempts in 4.0 s, stopped by attempts"]
    cause = info.value.__cause__
    assert cause is not None
    assert cause.__traceback__ is not None  # untouched: it is the driver's
    assert "Script" not in traceback.format_exception(info.value)[-1]


@virtual
async def test_the_endpoint_is_named() -> None:
    async def attempt(began: float, deadline: float, number: int) -> None:
        raise error

    for error in (ForeignError(), refused()):
        record = Record(Endpoint.parse("db:5432"), Policy(), None, None)
        with pytest.raises(type(error)) as info:
            await retry(Policy(max_attempts=1), attempt, 5.0, None, record)
        if isinstance(info.value, ForeignError):
            assert info.value.__notes__ == ["1 attempt at tcp://db:5432 in 0.0 s, stopped by permanent"]
        else:
            assert str(info.value).startswith("tcp://db:5432: connect: [ECONNREFUSED] connection refused (1 attempt")


@virtual
async def test_before_each_sleep_somebody_may_be_told() -> None:
    told: list[tuple[str | None, float, int]] = []
    outcomes = [refused(), ForeignError(), OSError(errno.EMFILE, "x"), None]

    async def attempt(began: float, deadline: float, number: int) -> str:
        assert began == asyncio.get_running_loop().time()
        assert deadline == 100.0
        error = outcomes[number - 1]
        if error is not None:
            raise error
        return "connected"

    policy = Policy(retry_on=TRANSIENT | LOCAL | {ForeignError}, wait=Backoff(1, 9, jitter="none"))

    def tell(error: NetworkError | None, pause: float, attempts: int) -> None:
        told.append((None if error is None else error.code, pause, attempts))

    assert await retry(policy, attempt, 100.0, tell) == "connected"
    assert told == [("ECONNREFUSED", 1, 1), ("ECONNREFUSED", 2, 2), ("EMFILE", 4, 3)]


@virtual
async def test_a_strategy_that_fails_is_a_bug() -> None:
    def broken(state: object) -> NoReturn:
        raise ZeroDivisionError

    for policy in (Policy(wait=broken), Policy(stop=broken)):
        with pytest.raises(ZeroDivisionError):
            await policy.call(Script(refused))


@pytest.mark.parametrize("pause", [math.nan, math.inf, -1.0, None, "1"])
@virtual
async def test_a_wait_that_cannot_be_slept_is_a_setting_that_cannot_work(pause: Any) -> None:
    fn = Script(refused)
    with pytest.raises(ConfigError) as info:
        await Policy(wait=lambda state: pause).call(fn)
    assert info.value.problems == (f"wait={pause!r}: must give a finite number of seconds, not negative",)


# Cancellation


@eager_too
async def test_one_cancel_ends_it_at_any_point(eager: bool) -> None:
    policy = Policy(wait=wait_fixed(0.001), timeout=5, attempt_timeout=1)
    count = await cancel_everywhere(
        lambda: policy.call(Script(refused, refused, "connected", seconds=0.001)), eager=eager
    )
    assert count >= 5


@eager_too
@virtual
async def test_one_cancel_ends_it_at_any_point_of_its_limits(eager: bool) -> None:
    policy = Policy(wait=wait_fixed(1), timeout=5, attempt_timeout=1)
    count = await cancel_everywhere(lambda: policy.call(Script("hang", again=True)), eager=eager, raises=ConnectTimeout)
    assert count >= 5


@virtual
async def test_a_cancellation_of_nobody_is_not_retried() -> None:
    """uvloop turns ECANCELED into a CancelledError."""
    fn = Script(asyncio.CancelledError)
    with pytest.raises(asyncio.CancelledError):
        await Policy(retry_on={Exception}).call(fn)
    assert len(fn.tries) == 1


@pytest.mark.parametrize(
    ("script", "limit"),
    [
        ([refused, "hang"], 0.5),  # in the sleep
        ([refused, "hang"], 1.5),  # in the next attempt
        ([OSError(errno.EHOSTUNREACH, "x"), refused, "hang"], 3.5),
        ([refused, ForeignError(), "hang"], 3.5),
    ],
)
@virtual
async def test_the_callers_own_limit_knows_the_last_error(script: list[Any], limit: float) -> None:
    policy = Policy(retry_on=TRANSIENT | {ForeignError}, wait=wait_fixed(1), attempt_timeout=None)

    async def limited() -> None:
        async with asyncio.timeout(limit):
            await policy.call(Script(*script))

    with pytest.raises(TimeoutError) as info:
        await limited()
    assert type(info.value) is TimeoutError
    found = classify(info.value)
    assert found is not None
    assert (found.code, found.retryable) == ("ECONNREFUSED", True)
    cancelled = info.value.__cause__
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(cancelled.__context__, ConnectRefused)


@pytest.mark.parametrize("limit", [0.5, 1.5])
@virtual
async def test_a_limit_in_an_except_block_knows_it_as_well(limit: float) -> None:
    policy = Policy(wait=wait_fixed(1))

    async def limited() -> None:
        try:
            raise KeyError("being handled by the caller")
        except KeyError:
            async with asyncio.timeout(limit):
                await policy.call(Script(refused, "hang"))

    with pytest.raises(TimeoutError) as info:
        await limited()
    found = classify(info.value)
    assert found is not None
    assert found.code == "ECONNREFUSED"


@virtual
async def test_a_limit_around_two_calls_knows_the_latest_error() -> None:
    inner = Policy(wait=wait_fixed(1), timeout=None)
    outer = Policy(retry_on={"EMFILE"}, wait=wait_fixed(1), timeout=None, attempt_timeout=None)
    outcomes = iter([OSError(errno.EMFILE, "x"), None])

    async def attempt() -> None:
        if (error := next(outcomes)) is not None:
            raise error
        await inner.call(Script(refused, again=True))

    with pytest.raises(TimeoutError) as info:
        async with asyncio.timeout(5.5):
            await outer.call(attempt)
    found = classify(info.value)
    assert found is not None
    assert found.code == "ECONNREFUSED"


@virtual
async def test_nothing_was_tried_before_the_callers_limit() -> None:
    with pytest.raises(TimeoutError) as info:
        async with asyncio.timeout(0.5):
            await Policy().call(Script("hang"))
    assert info.value.__cause__ is not None
    assert info.value.__cause__.__context__ is None


@virtual
async def test_a_limit_around_the_call_and_its_own_at_the_same_time() -> None:
    for outer in (1.0, 1.0 + TICK):
        with pytest.raises(TimeoutError) as info:
            async with asyncio.timeout(outer):
                await Policy(timeout=1, attempt_timeout=None).call(Script("hang"))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert isinstance(info.value, ConnectTimeout)


# Attempts that do not play by the rules


@virtual
async def test_a_cancel_that_is_swallowed_is_late_all_the_same() -> None:
    tries = 0

    async def stubborn() -> str:
        nonlocal tries
        tries += 1
        try:
            await asyncio.sleep(math.inf)
        except asyncio.CancelledError:
            return "as if nothing had happened"
        raise AssertionError

    error = await failure(Policy(timeout=2.5, attempt_timeout=1, wait=wait_none()), stubborn)
    assert tries == error.attempt_count == 3
    assert isinstance(error, ConnectTimeout)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize(("instead", "cls"), [(refused, ConnectRefused), (TimeoutError, ConnectTimeout)])
@virtual
async def test_a_cancel_that_becomes_an_error_is_that_error(instead: Callable[[], OSError], cls: type[Any]) -> None:
    async def translating() -> None:
        try:
            await asyncio.sleep(math.inf)
        except asyncio.CancelledError:
            raise instead() from None

    error = await failure(Policy(timeout=1), translating)
    assert type(error) is cls
    assert (error.stop_reason, error.attempt_count, error.elapsed) == ("timeout", 1, 1.0)


class Ready:
    """An awaitable whose iterator has no `send`."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


class Turn:
    """An awaitable that takes a turn of the loop."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from asyncio.sleep(0).__await__()
        return "connected"


@types.coroutine
def generator() -> Generator[Any, Any, str]:
    yield from asyncio.sleep(0).__await__()
    return "connected"


async def test_anything_that_can_be_awaited_may_be_an_attempt() -> None:
    loop = asyncio.get_running_loop()

    def future() -> asyncio.Future[str]:
        made: asyncio.Future[str] = loop.create_future()
        loop.call_soon(made.set_result, "connected")
        return made

    def task() -> asyncio.Task[str]:
        return asyncio.create_task(plain())

    async def plain() -> str:
        return "connected"

    for policy in (Policy(), Policy(timeout=None, attempt_timeout=None)):
        for fn in (future, task, plain, Turn, generator):
            assert await policy.call(fn) == "connected"
        assert await policy.call(Ready) is None  # type: ignore[arg-type]


@virtual
async def test_a_future_is_bound_as_well() -> None:
    made: list[asyncio.Future[str]] = []

    def future() -> asyncio.Future[str]:
        made.append(asyncio.get_running_loop().create_future())
        return made[-1]

    error = await failure(Policy(max_attempts=2, attempt_timeout=1), future)
    assert isinstance(error, ConnectTimeout)
    assert [each.cancelled() for each in made] == [True, True]


@pytest.mark.parametrize("timeout", [None, 5.0])
@virtual
async def test_what_cannot_be_awaited_is_a_bug(timeout: float | None) -> None:
    def sync() -> int:
        return 1

    with pytest.raises(TypeError, match=r"int.* can't be used in 'await' expression|not awaitable"):
        await Policy(timeout=timeout, attempt_timeout=timeout).call(sync)  # type: ignore[arg-type]


@virtual
async def test_an_attempt_may_raise_before_it_is_awaited() -> None:
    outcomes: Iterator[Exception] = iter([refused(), OSError(errno.EMFILE, "x"), KeyError("bug")])

    def sync() -> Awaitable[None]:
        raise next(outcomes)

    with pytest.raises(KeyError, match="bug") as info:
        await Policy(wait=wait_fixed(1)).call(sync)
    assert info.value.__notes__ == ["3 attempts in 2.0 s, stopped by permanent"]


# Cost and garbage


async def test_nothing_is_made_before_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NoReturn:
        raise AssertionError("made")

    async def at_once() -> str:
        return "connected"

    monkeypatch.setattr(retrying, "Call", fail)
    monkeypatch.setattr(asyncio, "timeout_at", fail)
    assert await Policy().call(at_once) == "connected"


class Held:
    """What an attempt has in hand when it fails, such as a socket."""


@pytest.mark.parametrize(
    "make",
    [
        refused,
        ConnectRefused,
        lambda: ExceptionGroup("x", [refused()]),
        lambda: ForeignError("x"),
    ],
)
@virtual
async def test_what_an_attempt_held_is_gone_when_the_next_begins(make: Callable[[], Exception]) -> None:
    alive: list[weakref.ref[Held]] = []

    async def attempt() -> str:
        assert [ref() for ref in alive] == [None] * len(alive)
        held = Held()
        alive.append(weakref.ref(held))
        if len(alive) > 3:
            return "connected"
        await asyncio.sleep(0.1)
        raise make()

    gc.collect()
    gc.disable()
    try:
        policy = Policy(retry_on=TRANSIENT | {ForeignError}, wait=wait_fixed(1))
        assert await policy.call(attempt) == "connected"
    finally:
        gc.enable()
    assert len(alive) == 4


def from_refused() -> ForeignError:
    error = ForeignError("x")
    error.__cause__ = refused()
    return error


@pytest.mark.parametrize(
    "make",
    [
        refused,
        lambda: ConnectRefused(errors=(ConnectRefused(), HostUnreachable())),
        lambda: ExceptionGroup("x", [refused()]),
        lambda: ForeignError("x"),
        from_refused,
        lambda: KeyError("bug"),
        "hang",
    ],
    ids=["raw", "typed", "group", "foreign", "foreign with a cause", "bug", "time-out"],
)
async def test_an_exhausted_call_leaves_nothing_to_the_collector(make: Any) -> None:
    policy = Policy(retry_on=TRANSIENT | {ForeignError}, wait=wait_none(), max_attempts=3, attempt_timeout=0.001)

    async def attempt() -> None:
        held = Held()
        await asyncio.sleep(math.inf if make == "hang" else 0)
        assert held
        raise make()

    async def exhaust() -> None:
        with contextlib.suppress(Exception):
            await policy.call(attempt)

    await exhaust()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            await exhaust()
        gc.collect()
        kinds = (BaseException, types.FrameType, types.TracebackType, Held, Call)
        left = [type(each).__name__ for each in gc.garbage if isinstance(each, kinds)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
