"""How hard to try: what to retry on, how often, how long, and with which waits between."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, ParamSpec, TypeVar

import tenacity
from tenacity import RetryCallState

from aioconnect.backoff import Backoff
from aioconnect.breaker import CircuitBreaker
from aioconnect.budget import RetryBudget
from aioconnect.errnoset import LOCAL, TRANSIENT, Entry, ErrnoSet
from aioconnect.errors import ConnectRefused, ConnectTimeout, NetworkError
from aioconnect.limits import begun, in_time
from aioconnect.retrying import Call, attempt_limit, retry
from aioconnect.validation import Problems, check_integer, check_optional_duration
from aioconnect.values import Value

__all__ = ("Policy", "retry_if_code")

P = ParamSpec("P")
T = TypeVar("T")


class Policy(Value):
    """How hard to try. A frozen value, shared by as many endpoints and calls as you like.

    ``retry_on``, ``never_retry_on``: an `ErrnoSet`, or code names, errno numbers and exception classes to make one.
    ``max_attempts``: attempts in all; ``None``: no limit.
    ``timeout``: for everything, in seconds: names, dialing, TLS, ``prepare`` and the sleeps between.
    ``attempt_timeout``: for one attempt, in seconds; cut to what is left of ``timeout``.
    ``wait``: a tenacity wait, `Backoff` by default. ``stop``: a tenacity stop.
    ``breaker``: a `CircuitBreaker`, or ``None`` for none. ``budget``: a `RetryBudget`, or ``None`` for none. These two
    bind all calls to an endpoint together, so they work in a `Connector`, and not in `call` and `wraps`.

    The last sleep is shortened so that one more attempt fits before ``timeout``: it takes at most half of what is
    left. Raises `ConfigError` naming every setting that cannot work.

    >>> Policy(retry_on={"ECONNREFUSED"}, timeout="30s")
    Policy(retry_on=ErrnoSet({'ECONNREFUSED'}), timeout=30.0)
    """

    __slots__ = (
        "retry_on",
        "never_retry_on",
        "max_attempts",
        "timeout",
        "attempt_timeout",
        "wait",
        "stop",
        "breaker",
        "budget",
    )

    retry_on: ErrnoSet
    never_retry_on: ErrnoSet
    max_attempts: int | None
    timeout: float | None
    attempt_timeout: float | None
    wait: Callable[[RetryCallState], float]
    stop: Callable[[RetryCallState], bool] | None
    breaker: CircuitBreaker | None
    budget: RetryBudget | None

    def __init__(  # noqa: PLR0913  (keywords, each with its default)
        self,
        retry_on: ErrnoSet | Entry | Iterable[Entry] = TRANSIENT | LOCAL,
        *,
        never_retry_on: ErrnoSet | Entry | Iterable[Entry] = (),
        max_attempts: int | None = None,
        timeout: float | str | None = 60.0,
        attempt_timeout: float | str | None = 5.0,
        wait: Callable[[RetryCallState], float] = Backoff(),
        stop: Callable[[RetryCallState], bool] | None = None,
        breaker: CircuitBreaker | None = CircuitBreaker(),
        budget: RetryBudget | None = None,
    ) -> None:
        problems = Problems()
        values = {
            "retry_on": problems.unless_wrong(lambda: ErrnoSet(retry_on), "retry_on."),
            "never_retry_on": problems.unless_wrong(lambda: ErrnoSet(never_retry_on), "never_retry_on."),
            "max_attempts": None if max_attempts is None else check_integer(problems, "max_attempts", max_attempts, 1),
            "timeout": check_optional_duration(problems, "timeout", timeout),
            "attempt_timeout": check_optional_duration(problems, "attempt_timeout", attempt_timeout),
            "wait": wait,
            "stop": stop,
            "breaker": breaker,
            "budget": budget,
        }
        if isinstance(retry_on, int):
            # Policy(10): meant is a limit, and errno 10 would be all that is retried.
            problems.add("retry_on", retry_on, "must be a set of errors; timeout= and max_attempts= are given by name")
        if not _is_strategy(wait):
            problems.add("wait", wait, "must be a Backoff or another tenacity wait")
        if stop is not None and not _is_strategy(stop):
            problems.add("stop", stop, "must be a tenacity stop, or None")
        if breaker is not None and not isinstance(breaker, CircuitBreaker):
            problems.add("breaker", breaker, "must be a CircuitBreaker, or None")
        if budget is not None and not isinstance(budget, RetryBudget):
            problems.add("budget", budget, "must be a RetryBudget, or None")
        problems.raise_any()
        self._freeze(**values)

    def __repr__(self) -> str:
        """The settings that are not at their defaults: a default policy in a signature is ``Policy()``."""
        changed = (name for name in self.__slots__ if getattr(self, name) != getattr(_PLAIN, name))
        return f"Policy({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def retryable(self, error: BaseException) -> bool:
        """Whether to try again after this error, ours or anybody's; never after a cancellation.

        >>> Policy(never_retry_on={"ECONNREFUSED"}).retryable(ConnectionRefusedError(111, "refused"))
        False
        """
        retried, never = self.retry_on, self.never_retry_on
        if isinstance(error, NetworkError) and not (retried.classes or never.classes):
            # Nearly always, and twice for each attempt: by the circuit, and by the call.
            member = error.member
            return member in retried.members and member not in never.members
        return isinstance(error, Exception) and error in retried and error not in never

    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Await ``fn(*args, **kwargs)`` with these retries, typed errors and time limits.

        For a driver's own connect, for ``asyncio.start_server`` on a busy port, for any coroutine function that may
        be repeated. Raises a `NetworkError` for what is an error of a connection; any other exception as itself.

            pool = await policy.call(asyncpg.create_pool, dsn)
        """

        async def attempt(began: float, deadline: float, _number: int) -> T:
            steps = begun(fn(*args, **kwargs))
            try:
                first = steps.send(None)
            except StopIteration as end:
                done: T = end.value
                return done
            # As `limits.bounded`, but the limit is worked out only now: what is over at once takes 1.3 µs, not 1.6.
            limit, source = attempt_limit(self, began, deadline)
            return await in_time(first, steps, limit, source)

        return retry(self, attempt, self.timeout)

    def wraps(self, fn: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """A decorator: the coroutine function, called through `call`.

        @policy.wraps
        async def hello(): ...
        """

        @functools.wraps(fn)
        async def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(fn, *args, **kwargs)

        return retried

    def retrying(self) -> tenacity.AsyncRetrying:
        """The way out to tenacity: a fresh ``AsyncRetrying`` that decides the same.

        Make one for each call: tenacity keeps the state of a call in the object. The attempt in flight is not bound
        by any limit then, and ``timeout`` only keeps a further attempt from starting.
        """
        stops: list[Any] = []
        if self.max_attempts is not None:
            stops.append(tenacity.stop_after_attempt(self.max_attempts))
        if self.stop is not None:
            stops.append(self.stop)
        if self.timeout is not None:
            stops.append(tenacity.stop_before_delay(self.timeout))
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(self.retryable),
            wait=self.wait,
            stop=tenacity.stop_any(*stops) if stops else tenacity.stop_never,
            sleep=asyncio.sleep,
            reraise=True,
        )

    def explain(self) -> str:
        """What this policy amounts to, for people: its limits, its first waits, and the load one caller makes.

        >>> print(Policy(max_attempts=3, wait=Backoff(jitter="none")).explain())
        retries on   TRANSIENT, LOCAL
        gives up     after 60 s or 3 attempts; an attempt may take 5 s
        waits        0.1, 0.2 s
        if refused   3 attempts in 0.3 s
        if silent    3 attempts in 15.3 s
        circuit      opens after 5 failures in a row: one probe at a time, and calls wait for it
        """
        limits = [f"{self.timeout:g} s"] if self.timeout is not None else []
        limits += [_counted(self.max_attempts)] if self.max_attempts is not None else []
        limits += [f"when {self.stop!r} says so"] if self.stop is not None else []
        each = "as long as it likes" if self.attempt_timeout is None else f"{self.attempt_timeout:g} s"
        refused, took = self._rehearsed(0.0)
        silent, silence = self._rehearsed(self.attempt_timeout or math.inf)
        waits = ", ".join(f"{pause:.3g}" for pause in refused[:8])
        never = f"; never on {_names(self.never_retry_on)}" if self.never_retry_on else ""
        lines = {
            "retries on": _names(self.retry_on) + never,
            "gives up": f"{'after ' + ' or '.join(limits) if limits else 'never'}; an attempt may take {each}",
            "waits": f"{waits} s" + (" ..." if len(refused) > 8 else "") if waits else "never",
            "if refused": f"{_counted(len(refused) + 1)} in {took:.3g} s",
            "if silent": f"{_counted(len(silent) + 1)} in {silence:.3g} s" if silence < math.inf else "one, for ever",
        }
        if self.breaker is not None:
            lines["circuit"] = self.breaker.explain()
        if self.budget is not None:
            lines["budget"] = self.budget.explain()
        return "\n".join(f"{name:<13}{text}" for name, text in lines.items())

    def _rehearsed(self, attempt: float) -> tuple[list[float], float]:
        """The pauses of a call whose every attempt fails after so many seconds, and its end; at most 1,000 attempts."""
        rules = self
        if isinstance(self.wait, Backoff):
            # The middle of what jitter may draw, so that the same policy always explains itself alike.
            given = self.wait
            middle = Backoff(
                given.initial, given.maximum, given.factor, given.jitter, lambda low, high: (low + high) / 2
            )
            rules = self.replace(wait=middle)
        deadline = math.inf if self.timeout is None else self.timeout
        call, pauses, began = Call(rules, 0.0, deadline), list[float](), 0.0
        while True:
            ended = min(began + attempt, deadline)
            error = ConnectTimeout(source="attempt") if attempt else ConnectRefused()
            pause = call.failed(error, began, ended)
            if pause is None or call.count == 1000 or ended == math.inf:
                return pauses, ended
            pauses.append(pause)
            began = ended + pause


def _is_strategy(given: object) -> bool:
    """Whether it can be asked. Not a class, of which one is meant; nothing that would have to be awaited."""
    if not callable(given) or isinstance(given, type):
        return False
    return not (inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(type(given).__call__))


def _names(codes: ErrnoSet) -> str:
    return ", ".join(codes.named()) or "nothing"


def _counted(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def retry_if_code(*entries: Entry) -> tenacity.retry_if_exception:
    """A tenacity predicate: retry if the exception, or one behind it, has one of these codes.

    Takes what an `ErrnoSet` takes; raises `ConfigError` for an unknown name.

    >>> retrying = tenacity.AsyncRetrying(retry=retry_if_code("ECONNREFUSED", "EAI_AGAIN"))
    """
    wanted = ErrnoSet(entries)
    return tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and error in wanted)


# The defaults, from their one source: the signature.
_PLAIN = Policy()
