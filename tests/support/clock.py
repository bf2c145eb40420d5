"""The virtual clock, and the mark of the tests that run on it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from aioconnect.testing.clock import Stuck
from aioconnect.testing.loop import SimulatedLoop

__all__ = ("Stuck", "VirtualLoop", "run_virtual", "virtual")

T = TypeVar("T")

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
"""The mark of an async test that runs on a virtual clock only."""


class VirtualLoop(SimulatedLoop):
    """A virtual clock over real sockets, until it is given a network."""

    def __init__(self, start: float = 0.0, *, patience: float = 5.0, threads: bool = True) -> None:
        super().__init__(start=start, patience=patience)
        if not threads:
            self._threads_before = None


def run_virtual(main: Coroutine[Any, Any, T], *, start: float = 0.0) -> T:
    """`asyncio.run` on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(start)) as runner:
        return runner.run(main)
