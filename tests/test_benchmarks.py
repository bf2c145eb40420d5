"""The benchmarks run, and every bar gets its number. What the numbers are is not for a test to say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import ON_REQUEST, ROWS
from tests.benchmarks.loops import LOOPS
from tests.benchmarks.server import ROOT

BARS = {"connect": 9, "retry": 5, "memory": 2, "garbage": 6, "outage": 2, "pool": 6, "link": 1}
"""Rows with a bar, for each loop."""
ONCE = {"import": 1, "config": 1, "outage": 5, "link": 2, "simulate": 2}
"""And those for no loop, or one of them."""


@pytest.mark.slow
@pytest.mark.parametrize("part", [*ROWS, *ON_REQUEST])
def test_a_tiny_run_fills_every_row(part: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, "-W", "error", "-m", "tests.benchmarks", "--tiny", "--only", part, "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    assert all(row["title"] in done.stdout for row in rows)
    assert all(math.isfinite(row["measured"]) for row in rows)
    with_bar = [row for row in rows if row["bar"] is not None]
    assert len(with_bar) == BARS.get(part, 0) * len(LOOPS) + ONCE.get(part, 0)
