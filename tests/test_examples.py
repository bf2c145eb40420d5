"""Every example runs to its end by itself, without a warning, and says what it is meant to say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import aioconnect

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
LIMIT = 60.0  # seconds, on a busy machine; each takes less than two

# What must stand in the output, as patterns of whole lines in their order.
SAYS = {
    "driver_connect": [
        "serving, once the port was free",
        "the driver is connected: DriverConnection",
        r"DriverError\('cannot connect to the database'\): 3 attempts in .* s, stopped by attempts",
        "behind it: Failure.code='ECONNREFUSED', .*",
    ],
    "errors_by_type": [
        r"127\.0\.0\.1:1 +no connection, so asking again is safe: ECONNREFUSED is transient",
        r"127\.0\.0\.1:\d+ +silence: a firewall, or nobody home",
        r"127\.0\.0\.1:\d+ +the connection ended inside a message, of which 11 bytes came",
        r"tls://127\.0\.0\.1:\d+ +no retry will heal that: WRONG_VERSION_NUMBER|.*PACKET_LENGTH_TOO_LONG",
        # Without a name server it is another error.
        r"no-such-name\.invalid:80 +.*",
        r"unix:no-such\.sock +its server has not started",
    ],
    "per_endpoint_policies": [
        "database  connected; failures: {'NOT_READY': 2}",
        r"cache     does without: .*\[ECONNREFUSED\].*\(2 attempts in .*\); failures: {'ECONNREFUSED': 2}",
        r"sidecar   connected; failures: {'ENOENT': \d+}",
    ],
    "link": [
        "CONNECTING -> READY ",
        "news: it is raining",
        "READY -> TRANSIENT_FAILURE (PeerClosed|ConnectionResetByPeer|BrokenPipe)",
        "CONNECTING -> READY ",
        "news: it is raining",
        "READY -> TRANSIENT_FAILURE ConnectionTimedOut",
        "CONNECTING -> READY ",
        "news: that is all",
        "READY -> IDLE ",
    ],
    "pool": [
        "100 answers over 3 connections, the last to visitor 99",
        "one was cancelled, the next reads its own: visitor 101; {'error': 1}",
        "a restart that nobody saw: visitor 102; {'error': 1, 'stale': [12]}",
        r".*: \[POOL_TIMEOUT\] no connection became free in time: 3 in use, .*; held by you at .*pool\.py:46 for .*",
    ],
    "quickstart": [
        "hello, world",
        r"tcp://localhost:.*: \[ECONNREFUSED\] connection refused \(\d+ attempts in 0\.\d s, stopped by timeout\)",
        r"ECONNREFUSED is errno \d+, tried \d+ times in 0\.\d s",
    ],
    "service": [
        r"20 answers over [1-4] connections, the last: order 19",
        r'/readyz {"ready": false, "endpoints": {"orders": .*, "audit": {"state": "unreachable", .*"ECONNREFUSED"}}}',
        r"closed; ready: False; \d+ prices",
    ],
    "testing_a_service": [
        "test_rides_out_a_restart",
        "test_fails_fast_when_a_dependency_is_gone",
        "test_a_pool_under_partition",
    ],
    "uvloop_service": ["running on (uvloop|asyncio)", "100 answers, the last is 198; 100 connections"],
}


def finished(path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(aioconnect.__file__).parent.parent)}
    command = [sys.executable, "-W", "error", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, subprocess.CompletedProcess[str]]:
    """All of them at once: most of the time they wait."""
    with ThreadPoolExecutor(len(EXAMPLES)) as pool:
        return dict(zip((path.stem for path in EXAMPLES), pool.map(finished, EXAMPLES), strict=True))


def test_each_example_is_expected_to_say_something() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAYS)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example(name: str, outcomes: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = outcomes[name]
    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == len(SAYS[name])
    for line, pattern in zip(lines, SAYS[name], strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_explains_itself(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert text.count("\n") < 70
