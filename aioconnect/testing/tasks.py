"""Where tasks wait: what a report about a stuck or a forgotten one has to say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ("chain", "where")


def chain(task: asyncio.Task[Any]) -> Iterator[tuple[Any, FrameType]]:
    """What a task waits in, outermost first, with the frame of each; `Task.get_stack` stops at the first."""
    # CPython 3.12.1 crashes when asked for the coroutine of an eager task that has ended.
    awaited: Any = None if task.done() else task.get_coro()
    while awaited is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                yield awaited, frame
                awaited = getattr(awaited, inner)
                break
        else:
            return


def where(task: asyncio.Task[Any]) -> str:
    """The place at which a task waits, innermost call first."""
    frames = [frame for _, frame in chain(task)]
    places = [f"{Path(f.f_code.co_filename).name}:{f.f_lineno} {f.f_code.co_name}" for f in frames]
    return " <- ".join(reversed(places)) or "its end"
