"""What can be awaited or given to a task; `Connecting` and `Acquiring` are tested with the connector and the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from aioconnect.asking import Asking


class Answer(Asking[int]):
    def __init__(self) -> None:
        self.coroutine = None
        self.asked = 0

    def __await__(self) -> Generator[Any, Any, int]:
        self.asked += 1
        yield from asyncio.sleep(0).__await__()
        return 42


async def test_each_await_asks_anew_and_a_task_asks_once() -> None:
    answer = Answer()
    assert (await answer, await answer, answer.asked) == (42, 42, 2)
    assert await asyncio.create_task(Answer()) == 42


async def test_nothing_is_asked_before() -> None:
    answer = Answer()
    answer.close()
    assert answer.asked == 0


async def test_a_task_that_is_cancelled() -> None:
    answer = Answer()
    task = asyncio.create_task(answer)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert answer.asked == 1


async def test_a_task_that_never_began() -> None:
    answer = Answer()
    task = asyncio.create_task(answer)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert answer.asked == 0
