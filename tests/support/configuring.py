"""What the tests of the configuration share: a file, and ways to load one and to ask what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aioconnect import Connection, config
from aioconnect.config_making import Configured
from aioconnect.errors import ConfigError

__all__ = ("DURATION", "ENDPOINT", "SECRET", "SERVICE", "from_text", "hello", "one", "problems_of")

DURATION = "must be a number of seconds, or a text such as '250ms', '2s', '1m'"
ENDPOINT = "\n[aioconnect.endpoints.db]\nurl = 'db:1'\n"

SECRET = "hunter2"

SERVICE = """
[somebody.else]
anything = "goes"

[aioconnect]
grace = "20s"

[aioconnect.defaults]
keepalive.idle = "30s"
tls = { ca_file = "/etc/ca.pem", minimum_version = "TLSv1.3" }

[aioconnect.defaults.policy]
timeout = "10s"
retry_on = ["transient", "EAI_NONAME"]
wait = { initial = "50ms", maximum = "2s" }

[aioconnect.endpoints]
sidecar = "unix:///run/sidecar.sock"

[aioconnect.endpoints.db]
url = "tls://db.internal:5432?handshake_timeout=2s&keepalive=off"
policy.wait.maximum = "8s"
pool.max_size = 20

[aioconnect.endpoints.user-cache]
host = "cache"
port = 6379
nodelay = false
policy = { timeout = 0.5, never_retry_on = "ECONNRESET" }
"""


async def hello(conn: Connection) -> None:
    """Stands for what makes a connection ready."""


def from_text(tmp_path: Path, text: str, **more: Any) -> config.Configuration:
    path = tmp_path / "service.toml"
    path.write_text(text, encoding="utf-8")
    return config.from_toml(path, **more)


def one(settings: object, **functions: object) -> Configured:
    """The only endpoint, ``db``."""
    made = config.from_mapping({"endpoints": {"db": settings}}, functions=functions)
    return made.endpoints["db"]


def problems_of(call: Any, *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert caught.value.__cause__ is caught.value.__context__ is None
    return list(caught.value.problems)
