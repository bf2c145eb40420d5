"""Connect with asyncio or uvloop: typed errors, bounded retries and backoff, nothing left open.

    async with aioconnect.connect("tls://db.internal:5432", timeout=5) as conn:
        await conn.send(b"hello")

Within the time limit there is a working connection, or one typed error that says what happened at every address on
every attempt.
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from aioconnect.backoff import Backoff
from aioconnect.breaker import CircuitBreaker
from aioconnect.budget import RetryBudget
from aioconnect.connection import Connection
from aioconnect.connector import Connector
from aioconnect.endpoint import TLS, Endpoint, Keepalive
from aioconnect.errnoset import DENIED, LOCAL, STARTING, TRANSIENT, ErrnoSet
from aioconnect.errors import (
    AioconnectError,
    CertificateRejected,
    CircuitOpen,
    ConfigError,
    ConnectError,
    ConnectionLost,
    ConnectRefused,
    ConnectTimeout,
    Failure,
    HostUnreachable,
    NameResolutionError,
    NetworkUnreachable,
    NotReady,
    PeerClosed,
    PoolTimeout,
    TLSError,
    classify,
    explain,
    translate_errors,
)
from aioconnect.events import Event, Observer
from aioconnect.functions import connect, create_connection, dial, open_connection, open_unix_connection
from aioconnect.policy import Policy, retry_if_code
from aioconnect.resolver import Resolver

if TYPE_CHECKING:
    from aioconnect.heartbeat import Heartbeat
    from aioconnect.link import Link
    from aioconnect.link_states import LinkState
    from aioconnect.manager import ConnectionManager
    from aioconnect.pool import Pool
    from aioconnect.simulation import simulate

__version__ = "0.2.0"

__all__ = (
    # Connecting
    "connect",
    "open_connection",
    "open_unix_connection",
    "create_connection",
    "dial",
    # The nouns
    "Endpoint",
    "TLS",
    "Keepalive",
    "Policy",
    "Backoff",
    "CircuitBreaker",
    "RetryBudget",
    "Connector",
    "Connection",
    "Link",
    "LinkState",
    "Heartbeat",
    "Pool",
    "ConnectionManager",
    "Resolver",
    "Event",
    "Observer",
    # What a policy does to a server that comes back
    "simulate",
    # What to retry on
    "ErrnoSet",
    "TRANSIENT",
    "LOCAL",
    "STARTING",
    "DENIED",
    "retry_if_code",
    # Errors; the whole tree is in aioconnect.errors
    "AioconnectError",
    "ConnectError",
    "ConnectRefused",
    "ConnectTimeout",
    "HostUnreachable",
    "NetworkUnreachable",
    "NameResolutionError",
    "TLSError",
    "CertificateRejected",
    "NotReady",
    "CircuitOpen",
    "PoolTimeout",
    "ConnectionLost",
    "PeerClosed",
    "ConfigError",
    "Failure",
    "classify",
    "explain",
    "translate_errors",
    "__version__",
)

if not TYPE_CHECKING:
    _LATER = MappingProxyType(
        {
            "Pool": "aioconnect.pool",
            "Link": "aioconnect.link",
            "LinkState": "aioconnect.link_states",
            "Heartbeat": "aioconnect.heartbeat",
            "ConnectionManager": "aioconnect.manager",
            "simulate": "aioconnect.simulation",
        }
    )

    def __getattr__(name: str) -> object:
        """Whoever needs none of these does not pay for their import (PEP 562)."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_LATER[name]), name)
