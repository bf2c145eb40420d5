"""The pytest plugin, in test runs of its own: with pytest-asyncio, without it, and where nobody uses it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent

# Where the package is installed, pytest finds it by its entry point, and would not take it twice.
INSTALLED = any(point.name == "aioconnect" for point in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "_aioconnect_pytest"]

plain = pytest.mark.parametrize("others", [["-p", "no:asyncio"], []], ids=["alone", "with pytest-asyncio"])


def run(pytester: pytest.Pytester, *arguments: str, others: list[str] | None = None) -> pytest.RunResult:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", "-q", *(others or []), *arguments)


@plain
def test_virtual_time_on_a_simulated_network(pytester: pytest.Pytester, others: list[str]) -> None:
    pytester.makepyfile("""
        import asyncio
        import aioconnect
        from aioconnect.testing import Echo, virtual

        @virtual
        async def test_rides_out_a_restart(network, recorder):
            server = network.serve("db", 5432, Echo)
            server.restart(20)
            connector = aioconnect.Connector("tcp://db:5432", observers=[recorder])
            async with connector.connect(timeout=60) as conn:
                await conn.send(b"hello")
                assert await conn.readexactly(5) == b"hello"
            assert recorder.attempts[-2:] == ["ECONNREFUSED", "ok"]
            assert 20 < asyncio.get_running_loop().time() < 26

        def test_a_loop_of_its_own(virtual_loop):
            virtual_loop.run_until_complete(asyncio.sleep(3600))
            assert virtual_loop.time() == 3600
    """)
    run(pytester, others=others).assert_outcomes(passed=2)


@plain
def test_fault_servers_on_both_loops(pytester: pytest.Pytester, others: list[str]) -> None:
    pytester.makepyfile("""
        import asyncio
        import pytest
        import aioconnect

        def test_it(both_loops, faults):
            async def main():
                async with faults.reset_after(4) as server:
                    async with aioconnect.connect(server.url) as conn:
                        await conn.readexactly(4)
                        with pytest.raises(ConnectionResetError):
                            await conn.read()
                return type(asyncio.get_running_loop()).__module__.split(".")[0]

            assert both_loops(main()) in ("asyncio", "uvloop")
    """)
    result = run(pytester, others=others)
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] + outcomes.get("skipped", 0) == 2


@plain
def test_retries_that_do_not_wait(pytester: pytest.Pytester, others: list[str]) -> None:
    pytester.makepyfile("""
        import asyncio
        import time
        import pytest
        import aioconnect

        SLOW = aioconnect.Policy(max_attempts=5, timeout=None, wait=aioconnect.Backoff(60, 60, jitter="none"))

        async def refused(faults, recorder):
            async with faults.refused() as server:
                with pytest.raises(aioconnect.ConnectRefused):
                    await aioconnect.Connector(server.endpoint, SLOW, observers=[recorder]).connect()

        def test_in_a_plain_test(faults, recorder, fast_retries):
            began = time.monotonic()
            asyncio.run(refused(faults, recorder))
            assert recorder.attempts == ["ECONNREFUSED"] * 5
            assert time.monotonic() - began < 5
    """)
    run(pytester, others=others).assert_outcomes(passed=1)


def test_retries_that_do_not_wait_in_a_coroutine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import asyncio
        import time
        import pytest
        import aioconnect

        pytestmark = pytest.mark.asyncio
        SLOW = aioconnect.Policy(max_attempts=5, timeout=None, wait=aioconnect.Backoff(60, 60, jitter="none"))

        async def test_it(faults, fast_retries):
            async with faults.refused() as server:
                async with asyncio.timeout(5):
                    with pytest.raises(aioconnect.ConnectRefused):
                        await aioconnect.connect(server.endpoint, policy=SLOW)

        async def test_and_the_next_one_waits(faults):
            async with faults.refused() as server:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await aioconnect.connect(server.endpoint, policy=SLOW)
    """)
    run(pytester).assert_outcomes(passed=2)


def test_loops_for_pytest_asyncio(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        from aioconnect.testing import loop_factories

        def pytest_asyncio_loop_factories(config, item):
            return loop_factories(virtual=True)
    """)
    pytester.makepyfile("""
        import asyncio
        import pytest
        import aioconnect
        from aioconnect.testing import Echo

        @pytest.mark.asyncio(loop_factories=["asyncio"])
        async def test_real():
            assert type(asyncio.get_running_loop()).__name__ == "_UnixSelectorEventLoop"

        @pytest.mark.asyncio(loop_factories=["virtual"])
        async def test_virtual(network):
            async with network:
                network.serve("db", 80, Echo)
                network.host("db").down()
                network.at(30, network.host("db").up)
                async with aioconnect.connect("db:80", timeout=60):
                    assert asyncio.get_running_loop().time() > 30
    """)
    run(pytester).assert_outcomes(passed=2)


def test_a_failing_assertion_tells_the_story(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import aioconnect
        from aioconnect.testing import virtual

        @virtual
        async def test_it(network, recorder):
            network.host("db", "10.0.0.1")
            network.script("db", ["ECONNREFUSED 1s", "ok"])
            await (await aioconnect.Connector("db:80", observers=[recorder]).connect()).aclose()
            assert recorder.attempts == ["ok"]
    """)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*What happened:*", "*AttemptFailed(endpoint='tcp://db:80', attempt=1, error=ConnectRefused*"]
    )


def test_it_changes_nothing_for_who_does_not_use_it(pytester: pytest.Pytester) -> None:
    """And loads nothing: not the package, whose lines a coverage plugin would miss."""
    pytester.makepyfile("""
        import asyncio
        import sys

        def test_nothing_is_loaded():
            loaded = [name for name in sys.modules if name.split(".")[0] in ("aioconnect", "tenacity", "trustme")]
            assert loaded == []

        def test_nothing_is_patched():
            assert type(asyncio.new_event_loop()).__module__ == "asyncio.unix_events"
    """)
    command = [sys.executable, "-m", "pytest", "-q", *PLUGIN, "-p", "no:cacheprovider"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(
        [*command, str(pytester.path)], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert "2 passed" in result.stdout, result.stdout


def test_only_the_plugin_knows_pytest() -> None:
    program = "import sys, aioconnect.testing; print([n for n in ('pytest', 'trustme', 'uvloop') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_the_package_does_not_load_it() -> None:
    program = "import sys, aioconnect; print([name for name in sys.modules if 'testing' in name])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
