"""Run a coroutine in virtual time, on both loops, or without the waits of its retries."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar

from aioconnect.retrying import PACE
from aioconnect.testing.loop import SimulatedLoop
from aioconnect.testing.network import Network

__all__ = ("fast_retries", "loop_factories", "run", "virtual")

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
            server = network.serve("db", 5432, Echo)
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


@contextlib.contextmanager
def fast_retries(pace: float = 0.0) -> Generator[None]:
    """Retries without their waits, in this task and in those started inside; everything else goes on as it does.

    ``pace``: what each pause is multiplied by. A policy with neither a limit of attempts nor a short ``timeout`` dials
    as fast as it can. Nothing is patched: it is a context variable. ``Policy.retrying()`` waits as ever, for tenacity
    knows nothing of it.

        with fast_retries():
            await service.start()
    """
    token = PACE.set(pace)
    try:
        yield
    finally:
        PACE.reset(token)


def loop_factories(*, virtual: bool = False) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops to test on, by name: ``"asyncio"``, and ``"uvloop"`` where it is installed.

    With ``virtual``, a loop with a virtual clock too. For pytest-asyncio, in ``conftest.py``::

        def pytest_asyncio_loop_factories(config, item):
            return loop_factories()

    >>> sorted(loop_factories(virtual=True))[0]
    'asyncio'
    """
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    with contextlib.suppress(ImportError):
        factories["uvloop"] = importlib.import_module("uvloop").new_event_loop
    if virtual:
        factories["virtual"] = SimulatedLoop
    return factories
