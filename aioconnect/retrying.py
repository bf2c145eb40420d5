"""The retry engine: one loop, driven by tenacity's strategy objects.

Decides exactly as plain ``tenacity.AsyncRetrying`` would for the same strategies and random numbers (the order is
retry, wait, stop, sleep), with three differences. It is re-entrant: the state of a call lives in the call, where
tenacity keeps it in a ``threading.local`` that all tasks of a loop share. It allocates nothing before the first
failure. And its time limits bind the attempt in flight. A cancellation is never retried.

Calls to one endpoint have a schedule in common while its circuit is open: then the circuit says how long to wait, and
what somebody else's probe has met is an attempt of every call that waits (`Turned`).
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol, TypeVar, cast

from tenacity import RetryCallState

from aioconnect.backoff import Backoff
from aioconnect.errors import (
    Attempt,
    ConfigError,
    ConnectTimeout,
    NetworkError,
    StopReason,
    classify,
    translate,
)
from aioconnect.gate import Turned, put_behind
from aioconnect.limits import TICK, Source

__all__ = ("PACE", "Call", "Common", "Rules", "attempt_limit", "pause_after", "retry", "state_after")

T = TypeVar("T")

BeforeSleep = Callable[[NetworkError | None, float, int], None]
"""Called with the last error, the pause in seconds and the number of attempts so far."""

_KEPT = 16
"""`Attempt` records a call keeps: the first one and the last fifteen, for an outage may last for days."""


PACE: ContextVar[float] = ContextVar("pace", default=1)
"""What every pause is multiplied by, in a task and in those it starts: 0 for tests that are not to wait."""


class Rules(Protocol):
    """What the engine needs of a policy."""

    @property
    def max_attempts(self) -> int | None:
        """Attempts in all, or no limit."""
        ...

    @property
    def attempt_timeout(self) -> float | None:
        """Seconds for one attempt, or no limit."""
        ...

    @property
    def wait(self) -> Callable[[RetryCallState], float]:
        """A tenacity wait."""
        ...

    @property
    def stop(self) -> Callable[[RetryCallState], bool] | None:
        """A tenacity stop."""
        ...

    def retryable(self, error: BaseException) -> bool:
        """Whether to try again after this error."""
        ...


class Common(Protocol):
    """What the calls to one endpoint have in common, as far as the engine asks for it."""

    @property
    def name(self) -> str:
        """What the endpoint is called in messages."""
        ...

    def hold(self, error: Exception, now: float) -> float | None:
        """Seconds until the next probe of an open circuit; ``None`` if it is closed, or no news to it is the error."""
        ...

    async def rest(self, pause: float) -> None:
        """Sleep for so many seconds, or until something ends all pauses."""
        ...

    def charge(self, now: float) -> bool | None:
        """Pay for a retry: whether that is done; ``None`` if there is no token yet, and the call is to wait for one."""
        ...

    async def settle(self, deadline: float) -> bool:
        """Wait for a token until a loop time, and pay: whether there was one."""
        ...

    def refund(self) -> None:
        """A retry that was paid for has succeeded, or was not made after all."""
        ...


Try = Callable[[float, float, int], Awaitable[T]]
"""An attempt: when it began, when the call has to end, both loop times, and its number in the call."""


async def retry(
    rules: Rules,
    attempt: Try[T],
    timeout: float | None,
    before_sleep: BeforeSleep | None = None,
    common: Common | None = None,
    clock: Callable[[], float] | None = None,
) -> T:
    """Await ``attempt(began, deadline, number)`` until it succeeds or the rules say stop.

    ``timeout`` is in seconds, for everything; ``deadline`` the loop time at which it ends. The attempt sees to its
    own limits, with `attempt_limit`. ``began`` lies in the future if the circuit is open for longer than the call has
    left: it is when this call would dial, a last time, if nobody else did. Raises a new `NetworkError` from the last
    recorded one, or a foreign exception as it came. ``clock`` is the running loop's, for whoever has that at hand.
    """
    now = clock or asyncio.get_running_loop().time
    began = started = now()
    deadline = math.inf if timeout is None else started + timeout
    call: Call | None = None
    pause = 0.0
    while True:
        try:
            if call is None:
                return await attempt(began, deadline, 1)
            began = await call.sleep(pause)
            return await call.again(attempt, began)
        except asyncio.CancelledError as cancelled:
            if call is not None:
                call.interrupted(cancelled)
            raise
        except Exception as exc:  # noqa: BLE001  (what it says is for the rules to decide)
            error = exc
        # Not inside the except block: what is raised below would get the raw error, and its frames, as context.
        if call is None:
            call = Call(rules, started, deadline, common)
        decided = call.failed(error, began, now())
        try:
            if decided is None:
                call.conclude(error)
            pause = decided
        finally:
            # A frame that holds the exception whose traceback holds the frame would wait for the collector.
            del error
        if before_sleep is not None:
            before_sleep(call.last, pause, call.count)


def attempt_limit(rules: Rules, began: float, deadline: float) -> tuple[float, Source]:
    """The loop time by which an attempt has to end, and whose limit that is."""
    each = rules.attempt_timeout
    if each is not None and began + each < deadline:
        return began + each, "attempt"
    return deadline, "call"


def pause_after(rules: Rules, state: RetryCallState) -> float:
    """What the rules' wait gives, if it can be slept. NaN passes every comparison with a limit, and breaks timers.

    Raises `ConfigError` if it cannot.
    """
    return _checked(rules.wait(state))


def _checked(pause: float) -> float:
    if isinstance(pause, (int, float)) and 0 <= pause < math.inf:
        return pause * PACE.get()
    raise ConfigError(f"wait={pause!r}: must give a finite number of seconds, not negative")


def state_after(error: Exception, attempts: int, started: float, now: float, previous: float) -> RetryCallState:
    """Tenacity's state of a call, after so many attempts the last of which ended with this error now."""
    state = _blank_state(started)
    state.attempt_number = attempts
    state.outcome_timestamp = now
    outcome: Any = _Outcome(error, attempts)
    state.outcome = outcome
    state.upcoming_sleep = previous
    return state


def _blank_state(started: float) -> RetryCallState:
    """Tenacity's state of a call. No AsyncRetrying stands behind it: strategies read the state, and calls differ."""
    nobody: Any = None
    state = RetryCallState(nobody, None, (), {})
    state.start_time = started
    return state


class Call:
    """The state of one call's retries, made at its first failure."""

    # Defaults of the class, for there are many, and most calls that fail once change a few of them.
    count = 0
    last: NetworkError | None = None
    dialed = False
    """Whether any of the attempts was this call's own."""
    held = False
    """Whether the circuit decides when to go on."""
    paid: bool | None = False
    """Whether the next attempt is paid for out of a budget; ``None`` if it has yet to be."""
    final = False
    late = False
    """Whether the call's own limit had passed when the last attempt ended; one inside an attempt is not it."""
    stop_reason: StopReason | None = None
    upcoming = 0.0
    """The pause drawn last, by which a decorrelated wait goes."""
    idle = 0.0
    """Seconds of all pauses."""
    error: Exception | None = None
    """What the attempt that is judged right now has met, as it came."""
    state: RetryCallState | None = None

    def __init__(self, rules: Rules, started: float, deadline: float, common: Common | None = None) -> None:
        self.rules = rules
        self.common = common
        self.started = self.now = started
        self.deadline = deadline
        self.attempts: list[Attempt] = []
        self.in_except = sys.exception() is not None

    async def again(self, attempt: Try[T], began: float) -> T:
        """Another attempt."""
        try:
            result = await attempt(began, self.deadline, self.count + 1)
        except (asyncio.CancelledError, Turned):
            self._refund()
            raise
        self._refund()
        return result

    def failed(self, error: Exception, began: float, now: float) -> float | None:
        """Record a failed attempt: the seconds to sleep before the next, or ``None`` with ``stop_reason`` set."""
        self.now = now
        self.late = self.deadline - now <= TICK
        shared = False
        if isinstance(error, Turned):
            shared = error.shared
            if not shared:
                self.stop_reason = "timeout"
                return None
            error, began = error.error, now
        self.dialed |= not shared
        self.count += 1
        typed = error if isinstance(error, NetworkError) else translate(error)
        known = _behind(error) if typed is None else typed
        if known is not None:
            self.last = known
            _forget_frames(known)
        self.error = error
        # A foreign exception is asked about as itself, for a set may name its class.
        self.stop_reason = self._reason(error if typed is None else typed, shared=shared)
        pause = self._pause() if self.stop_reason is None else None
        # Nobody asks any more, and the frames of a foreign exception, which keeps them, lead back here.
        self.error = None
        if self.state is not None:
            self.state.outcome = None
        if len(self.attempts) == _KEPT:
            del self.attempts[1]
        record = Attempt(self.count, began - self.started, now - began, known, pause or 0.0, shared)
        self.attempts.append(record)
        return pause

    def _pause(self) -> float:
        pause, left = self.upcoming, self.deadline - self.now
        # Whoever has not dialed brings no probe of an open circuit forward.
        self.final = pause >= left and (self.dialed or not self.held)
        if self.final:
            # One more attempt, with room to succeed: half of what is left, but not more than it may use.
            pause = left - min(left / 2, self.rules.attempt_timeout or math.inf)
        self.idle += pause
        return pause

    def _reason(self, error: Exception, *, shared: bool) -> StopReason | None:
        """Why to stop, if so. In tenacity's order, which draws the wait even when the stop then ends it."""
        rules, late = self.rules, self.late
        if late and _was_cut(error):
            return "timeout"
        if not rules.retryable(error):
            return "permanent"
        hold = None if self.common is None else self.common.hold(error, self.now)
        self.held = hold is not None
        self.upcoming = self._drawn(rules.wait) if hold is None else hold
        if rules.max_attempts is not None and self.count >= rules.max_attempts:
            return "attempts"
        if rules.stop is not None and rules.stop(self._told()):
            return "stop"
        if late or (self.final and not shared):
            return "timeout"
        return self._charged()

    def _drawn(self, wait: Callable[[RetryCallState], float]) -> float:
        backoff: Any = wait
        return _checked(backoff.delay(self.count, self.upcoming) if type(wait) is Backoff else wait(self._told()))

    def _told(self) -> RetryCallState:
        """Tenacity's state of this call, up to date: only for strategies that read it, and a `Backoff` does not."""
        state = self.state
        if state is None:
            state = self.state = _blank_state(self.started)
        if state.outcome is None and self.error is not None:
            outcome: Any = _Outcome(self.error, self.count)
            state.outcome = outcome
            state.outcome_timestamp = self.now
            state.attempt_number = self.count
            state.idle_for = self.idle
        state.upcoming_sleep = self.upcoming
        return state

    def _charged(self) -> StopReason | None:
        """Pay for the next attempt. Last of all, so that nobody pays for what is not tried."""
        self.paid = False
        if self.common is None or self.held or not self.dialed:
            # A probe costs nothing: that there is only one at a time is the bound. A first try never does.
            return None
        self.paid = self.common.charge(self.now)
        return "budget" if self.paid is False else None

    def _refund(self) -> None:
        if self.paid and self.common is not None:
            self.common.refund()

    async def sleep(self, pause: float) -> float:
        """Sleep before the next attempt, or leave that to the circuit, and pay. When to begin the attempt."""
        now = asyncio.get_running_loop().time
        try:
            if not self.held:
                await (asyncio.sleep(pause) if self.common is None else self.common.rest(pause))
            elif not pause:
                # A probe that is due, and fails at once, would let nobody else run.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._refund()
            raise
        if self.paid is None and self.common is not None:
            self.paid = await self.common.settle(self.deadline)
            if not self.paid:
                words = "the retry budget was empty"
                raise Turned(ConnectTimeout(None, words, phase="wait", source="call"), shared=False)
        return now() + (pause if self.held and self.final else 0.0)

    def interrupted(self, cancelled: asyncio.CancelledError) -> None:
        """Put the last error behind a cancellation, where `classify` finds it."""
        put_behind(cancelled, self.last, handling=self.in_except)

    def conclude(self, error: Exception) -> NoReturn:
        """Raise a new error with the call's history, or a foreign exception with a note about it."""
        elapsed = self.now - self.started
        endpoint = None if self.common is None else self.common.name
        decided = self._decided(error)
        if decided is None or not (isinstance(error, (NetworkError, Turned)) or translate(error)):
            tries = "1 attempt" if self.count == 1 else f"{self.count} attempts"
            at = f" at {endpoint}" if endpoint else ""
            error.add_note(f"{tries}{at} in {elapsed:.1f} s, stopped by {self.stop_reason}")
            try:
                raise error
            finally:
                del error
        # A call that was never let in has no errors of its own; behind an open circuit is the last real one.
        turned = isinstance(error, Turned) and decided is error.error and not error.shared
        raise decided.replace(
            endpoint=endpoint or decided.endpoint,
            elapsed=elapsed,
            errors=() if turned else decided.errors or (decided,),
            attempts=tuple(self.attempts),
            attempt_count=self.count,
            stop_reason=self.stop_reason,
        ) from (decided.__cause__ if turned else decided)

    def _decided(self, error: Exception) -> NetworkError | None:
        """The error of the last completed attempt: one that the call's limit only cut short says less."""
        if isinstance(error, Turned) and not error.shared and not self.dialed:
            return error.error
        last = self.attempts[-1].error
        if self.count > 1 and self.late and last is not None and _was_cut(last):
            return self.attempts[-2].error or last
        return last


class _Outcome:
    """What strategies read of tenacity's Future, without its lock and condition."""

    __slots__ = ("attempt_number", "error")

    def __init__(self, error: Exception, attempt_number: int) -> None:
        self.error = error
        self.attempt_number = attempt_number

    failed = True

    def done(self) -> bool:
        return True

    def exception(self, _timeout: float | None = None) -> Exception:
        return self.error

    def result(self, _timeout: float | None = None) -> NoReturn:
        raise self.error


def _was_cut(error: Exception) -> bool:
    """Whether the call's limit ended this attempt, at one address at least."""
    if not isinstance(error, NetworkError):
        return False
    return any(isinstance(each, ConnectTimeout) and each.source == "call" for each in (error, *error.errors))


def _behind(error: Exception) -> NetworkError | None:
    """What is recorded of a foreign exception that hides an error of a connection; nothing of it is touched."""
    failure = classify(error)
    return None if failure is None else failure.error.replace()


def _forget_frames(error: NetworkError) -> None:
    """Recorded errors live long: they must not keep frames, and the sockets in them, alive."""
    error.__traceback__ = None
    cause, context = error.__cause__, error.__context__
    if (context is None or context is cause) and not error.errors and (cause is None or _is_last(cause)):
        # It mostly is this error alone, or with the one it was made of: to look no further saves 1 µs.
        if cause is not None:
            cause.__traceback__ = None
        return
    # What the caller is handling is no part of the attempt, and not ours to change.
    handled = sys.exception()
    queue: list[BaseException] = [error]
    seen = {id(error), id(handled)}
    for each in queue:
        each.__traceback__ = None
        if handled is not None and each.__context__ is handled:
            each.__context__ = None
        for one in (each.__cause__, each.__context__, *_within(each)):
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                queue.append(one)


def _is_last(exc: BaseException) -> bool:
    return exc.__cause__ is None and exc.__context__ is None and not _within(exc)


def _within(exc: BaseException) -> Sequence[BaseException]:
    if isinstance(exc, NetworkError):
        return exc.errors
    return cast("BaseExceptionGroup[BaseException]", exc).exceptions if isinstance(exc, BaseExceptionGroup) else ()
