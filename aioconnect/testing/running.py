"""Run a coroutine in virtual time: as a call, or as the decorator of a test."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from aioconnect.testing.loop import SimulatedLoop
from aioconnect.testing.network import Network

__all__ = ("run", "virtual")

P = ParamSpec("P")
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, network: Network | None = None, start: float = 0.0) -> T:
    """``asyncio.run`` in virtual time, on a simulated network if one is given, else over real sockets.

    Raises `Stuck` if nothing will ever wake it.

    >>> run(asyncio.sleep(3600, "an hour later"))
    'an hour later'
    """
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(network, start)) as runner:
        return runner.run(main)


def virtual(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The decorator of a test that runs in virtual time, under any test runner: what it makes is no coroutine function.

    A `Network` among the arguments is the one it runs on; without, sockets are real.

        @virtual
        async def test_rides_out_a_restart(network):
            server = network.serve("db", 5432, handler)
            server.restart(20)
            async with aioconnect.connect("tcp://db:5432", timeout=60):
                ...
    """

    @functools.wraps(test)
    def in_virtual_time(*args: P.args, **kwargs: P.kwargs) -> T:
        given = (*args, *kwargs.values())
        network = next((each for each in given if isinstance(each, Network)), None)
        return run(test(*args, **kwargs), network=network)

    return in_virtual_time
