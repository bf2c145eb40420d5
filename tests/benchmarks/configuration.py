"""What it costs to load a configuration, beside reading its TOML alone. There is no loop: nothing is awaited."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from aioconnect import ConnectionManager
from tests.benchmarks.measure import Effort, Row

__all__ = ("configuration",)

DEFAULTS = """
[aioconnect.defaults]
keepalive.idle = "30s"
policy = { timeout = "30s", wait = { maximum = "2s" } }
tls = { minimum_version = "TLSv1.3" }
"""
ENDPOINT = """
[aioconnect.endpoints.service-{number}]
url = "tls://service-{number}.internal:5432?handshake_timeout=2s"
nodelay = false
policy.timeout = "20s"
policy.retry_on = ["TRANSIENT", "EAI_NONAME"]
pool.max_size = 20
"""


def configuration(effort: Effort) -> list[Row]:
    """Row 20."""
    count = min(1000, effort.connections)
    text = DEFAULTS + "".join(ENDPOINT.format(number=number) for number in range(count))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "service.toml"
        path.write_text(text, encoding="utf-8")
        ours = [milliseconds(lambda: ConnectionManager.from_toml(path)) for _ in range(effort.interpreters + 1)]
    theirs = [milliseconds(lambda: tomllib.loads(text)) for _ in range(effort.interpreters)]
    # The first one reads the signatures, too: it is told beside the others.
    first, *ours = ours
    low, middle, high = statistics.quantiles(ours, n=4) if len(ours) > 1 else ours * 3
    return [
        Row(
            "20",
            f"load {count} endpoints / read their TOML",
            "",
            "ms",
            middle,
            300.0,
            low,
            high,
            ours=middle,
            theirs=statistics.median(theirs),
            each="ms",
            note=f"the first one of a process {first:.0f} ms; {middle / count * 1000:.0f} us for each endpoint",
        )
    ]


def milliseconds(call: Callable[[], object]) -> float:
    gc.collect()
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1000
