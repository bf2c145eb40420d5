"""The event loops to measure on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ("LOOPS",)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}

try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop
