"""Every async test runs on asyncio and on uvloop, and no test may leave anything behind.

@pytest.mark.asyncio(loop_factories=["uvloop"])     only on this loop
@tests.support.clock.virtual                        only on asyncio with a virtual clock
@pytest.mark.may_leak("fd")                         it cannot help leaving a descriptor: say why
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Generator, Iterator, Mapping

import hypothesis
import pytest
import pytest_asyncio

from aioconnect.testing.leaks import Footprint, LogWatch, settling
from tests.support.clock import VirtualLoop

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]
else:
    # libuv makes a pipe for signals with its first loop and keeps it: no test is to be blamed for that one.
    uvloop.new_event_loop().close()

FAILED = pytest.StashKey[bool]()
KINDS = ("fd", "task", "log")

# No deadline: the time of an example says more about the machine. Under CI the examples are the same in
# every run.
hypothesis.settings.register_profile("aioconnect", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("aioconnect")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    mark = item.get_closest_marker("asyncio")
    if mark is not None and mark.kwargs.get("loop_factories"):
        factories["virtual"] = VirtualLoop  # on request only
    return factories


def pytest_collection_finish() -> None:
    """Take what the imports have made out of the collector's sight: `no_leaks` collects after every test."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a module of tests leaves behind for good, such as caches, is no work for the collector after the others."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest_asyncio.fixture
async def loop_of_test() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a socket, a pipe or a task behind, or makes asyncio complain.

    It is set up before the other fixtures of a test and torn down after them. The loop is asked for here,
    so that it outlives this fixture: its own descriptors are in both footprints, and its tasks have not
    been cancelled yet.
    """
    mark = request.node.get_closest_marker("may_leak")
    allowed = () if mark is None else mark.args or KINDS
    is_async = pytest_asyncio.is_async_test(request.node)
    loop = request.getfixturevalue("loop_of_test") if is_async else None
    before = Footprint.take(loop)
    with LogWatch() as log:
        yield
        left = _left_over(before, loop)
        if is_async:
            gc.collect()  # that is when asyncio complains of what was never retrieved or never finished
    problems = [] if "log" in allowed else log.texts
    problems += Footprint(
        frozenset() if "fd" in allowed else left.fds, frozenset() if "task" in allowed else left.tasks
    ).texts()
    if problems and not request.node.stash.get(FAILED, False):
        pytest.fail("\n".join(problems), pytrace=False)


def _left_over(before: Footprint, loop: asyncio.AbstractEventLoop | None) -> Footprint:
    left = Footprint.take(loop).since(before)
    for _ in settling():
        if not left:
            break
        if loop is not None and not loop.is_closed():
            loop.run_until_complete(asyncio.sleep(0))
        left = Footprint.take(loop).since(before)
    return left
