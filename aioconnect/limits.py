"""Time limits: loop times by which something has to end, and waiting that keeps to them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, coroutine
from typing import Any, Literal, TypeVar

from aioconnect.codes import Phase
from aioconnect.errors import Address, ConnectTimeout

__all__ = ("TICK", "Source", "Steps", "begun", "bounded", "clock_of", "in_time", "wait_until")

T = TypeVar("T")

Source = Literal["attempt", "call"]
"""Whose limit it is: that of one attempt, or that of the whole call."""

TICK = 0.002
"""Seconds by which a timer may fire early: uvloop's clock counts whole milliseconds."""

Steps = Generator[Any, Any, T]
"""An awaitable step by step: each is a send, and a StopIteration brings the result."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """A loop's clock, for who asks often. Around its own asyncio has a method that costs half as much again."""
    asyncios = getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time
    return time.monotonic if asyncios else loop.time


async def wait_until(future: asyncio.Future[Any], limit: float) -> bool:
    """Wait for a future until a loop time: whether it was done by then.

    On a timer of its own, not ``asyncio.timeout``, which costs twice as much and cancels the task to tell it.
    """
    if limit == math.inf:
        await future
        return True
    timer = future.get_loop().call_at(limit, _give_up, future)
    try:
        return await future is not _GIVEN_UP
    finally:
        timer.cancel()


_GIVEN_UP = object()


def _give_up(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(_GIVEN_UP)


async def bounded(
    awaitable: Awaitable[T], limit: float, source: Source, phase: Phase = "connect", address: Address = None
) -> T:
    """Await something foreign until a loop time. Raises `ConnectTimeout`, with that place, when that passes.

    The timer is armed only once the awaitable suspends, since ``asyncio.timeout`` costs several microseconds.
    """
    steps = begun(awaitable)
    try:
        first = steps.send(None)
    except StopIteration as end:
        done: T = end.value
        return done
    return await in_time(first, steps, limit, source, phase, address)


def begun(awaitable: Awaitable[T]) -> Steps[T]:
    """A coroutine takes its first step as it is; whatever else can be awaited is, in one."""
    steps: Steps[T] = awaitable if type(awaitable) is CoroutineType else _awaited(awaitable)  # type: ignore[assignment]
    return steps


async def in_time(
    first: Any, steps: Steps[T], limit: float, source: Source, phase: Phase = "connect", address: Address = None
) -> T:
    """The rest of what has suspended already, ``first`` being what it gave then. Raises as `bounded` does.

    What ends in time but only because it swallowed the cancellation is late all the same.
    """
    timer = asyncio.timeout_at(None if limit == math.inf else limit)
    try:
        async with timer:
            result = await _resumed(first, steps)
        late = timer.expired()
    except TimeoutError as exc:
        if not timer.expired():
            raise
        raise _expired(source, phase, address) from exc
    finally:
        # It holds the task, which keeps the cancellation that ended it, whose traceback holds this frame.
        del timer
    if late:
        raise _expired(source, phase, address)
    return result


def foreign(exc: BaseException) -> Exception:
    """What those get who wait for a task that ended with this: itself, or an error that says so where it is none.

    A hook may raise CancelledError though nobody has cancelled anything, as when it awaits a task that was; raised in
    others, it would end them without a word.
    """
    if isinstance(exc, Exception):
        return exc
    error = RuntimeError(f"{type(exc).__name__} came out of making a connection, most likely out of `prepare`")
    error.__cause__ = exc
    return error


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _expired(source: Source, phase: Phase, address: Address) -> ConnectTimeout:
    words = f"not done within the {source}'s time limit"
    return ConnectTimeout(None, words, source=source, phase=phase, address=address)


@coroutine
def _resumed(first: Any, steps: Steps[T]) -> Generator[Any, Any, T]:
    """``yield from`` for an iterator that has been started already (PEP 380 spells it out)."""
    value, sent = first, None
    while True:
        try:
            sent = yield value
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as exc:  # noqa: BLE001  (thrown on into the awaitable)
            thrown: BaseException | None = exc
        else:
            thrown = None
        try:
            value = steps.send(sent) if thrown is None else steps.throw(thrown)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            del thrown
