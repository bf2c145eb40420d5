"""The hooks of a pool: coroutine functions of a connection, awaited within a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aioconnect.connection import Connection
from aioconnect.errors import classify
from aioconnect.limits import bounded

__all__ = ("Hook", "is_content")

Hook = Callable[[Connection], Awaitable[object]]
"""Looks at a connection, or tidies it up. What it raises costs that connection, and nothing else."""


async def is_content(hook: Hook, connection: Connection, limit: float) -> bool:
    """Whether a hook ends well by a loop time, and leaves the connection sound.

    What it raises is about the connection; or else the hook is wrong, and the loop's exception handler hears of that.
    """
    try:
        await bounded(hook(connection), limit, "attempt", "pool", connection.reader.address)
    except Exception as exc:  # noqa: BLE001  (a hook may raise anything)
        if classify(exc) is None:
            context = {"message": f"the pool's hook {hook!r} raised", "exception": exc}
            asyncio.get_running_loop().call_exception_handler(context)
        return False
    return connection.is_sound()
