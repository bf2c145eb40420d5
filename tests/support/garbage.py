"""What a piece of code leaves to the garbage collector: what no reference count will free.

asyncio's own transports are among it, since they hold bound methods of themselves; so the question is what is
ours, or what would keep something of the caller's alive: exceptions, frames, open sockets.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ("garbage_of",)


async def garbage_of(step: Callable[[], Awaitable[object]]) -> list[Any]:
    """The exceptions, frames, open sockets and objects of ours that only the collector would free.

    The step is done once before, for what is made only the first time.
    """
    await step()
    await asyncio.sleep(0.005)
    gc.collect()
    gc.disable()
    try:
        await step()
        await asyncio.sleep(0.005)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [each for each in gc.garbage if _matters(each)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


def _matters(thing: Any) -> bool:
    if isinstance(thing, socket.socket):
        return thing.fileno() != -1
    ours = type(thing).__module__.partition(".")[0] == "aioconnect"
    return ours or isinstance(thing, (BaseException, FrameType, TracebackType))
