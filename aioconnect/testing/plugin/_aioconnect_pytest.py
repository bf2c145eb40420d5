"""The pytest plugin of aioconnect: fixtures for `aioconnect.testing`.

    def test_rides_out_a_restart(network, recorder): ...

Beside the package, not in it, because pytest loads every plugin at every start: this one imports nothing of aioconnect
until a fixture is used, and changes nothing for tests that use none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from aioconnect.testing import Network, Recorder, SimulatedLoop

__all__ = ("both_loops", "fast_retries", "faults", "network", "recorder", "virtual_loop")


@pytest.fixture
def network() -> Network:
    """A simulated network, `aioconnect.testing.Network`: for a test with the decorator `virtual`, or for `run`."""
    from aioconnect.testing import Network

    return Network()


@pytest.fixture
def virtual_loop() -> Iterator[SimulatedLoop]:
    """An event loop with a virtual clock: ``virtual_loop.run_until_complete(main())``; closed after the test."""
    from aioconnect.testing import SimulatedLoop

    loop = SimulatedLoop()
    try:
        yield loop
    finally:
        loop.close()


@pytest.fixture
def faults() -> ModuleType:
    """The servers that misbehave on real sockets: ``async with faults.reset_after(100) as server``."""
    from aioconnect.testing import faults

    return faults


@pytest.fixture
def recorder() -> Recorder:
    """An observer that keeps the events: ``assert recorder.attempts == ["ECONNREFUSED", "ECONNREFUSED", "ok"]``."""
    from aioconnect.testing import Recorder

    return Recorder()


@pytest.fixture
def fast_retries() -> Iterator[None]:
    """In this test, retries do not wait: `aioconnect.testing.fast_retries`."""
    from aioconnect.testing import fast_retries

    with fast_retries():
        yield


@pytest.fixture(params=["asyncio", "uvloop"])
def both_loops(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Runs a coroutine: the test is run on asyncio and on uvloop, which is skipped where it is not installed."""
    import asyncio

    from aioconnect.testing import loop_factories

    factory = loop_factories().get(request.param)
    if factory is None:
        pytest.skip(f"{request.param} is not installed")

    def run(main: Any) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    return run


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Where an assertion about a recorder's attempts fails, tell the whole story."""
    story = getattr(left, "story", None) or getattr(right, "story", None)
    if op != "==" or not isinstance(story, str):
        return None
    return [f"{left!r} == {right!r}", "", "What happened:", *story.splitlines()]
