"""The states of a `Link`, and which may follow which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ("TRANSITIONS", "LinkState", "follow")


class LinkState(enum.Enum):
    """Where a `Link` is; the names are gRPC's."""

    IDLE = "idle"
    """Nobody asks for a connection."""
    CONNECTING = "connecting"
    """An attempt is under way."""
    READY = "ready"
    """There is a connection."""
    TRANSIENT_FAILURE = "transient_failure"
    """The connection was lost or an attempt has failed, and a pause is on until the next one."""
    SHUTDOWN = "shutdown"
    """Closed, or ended by an error; nothing follows."""


IDLE, CONNECTING, READY, TRANSIENT_FAILURE, SHUTDOWN = LinkState

TRANSITIONS: Mapping[tuple[LinkState, LinkState], str] = MappingProxyType(
    {
        (IDLE, CONNECTING): "somebody asks for a connection",
        (IDLE, TRANSIENT_FAILURE): "somebody asks, and the last pause is not over yet",
        (IDLE, SHUTDOWN): "closed",
        (CONNECTING, READY): "connected and prepared",
        (CONNECTING, TRANSIENT_FAILURE): "the attempt has failed",
        (CONNECTING, IDLE): "nobody asks any more",
        (CONNECTING, SHUTDOWN): "closed; or a permanent error before the first READY",
        (READY, TRANSIENT_FAILURE): "the connection is lost, or its consumer asks for the next one",
        (READY, IDLE): "the consumer has ended",
        (READY, SHUTDOWN): "closed; or a heartbeat that cannot be sent",
        (TRANSIENT_FAILURE, CONNECTING): "the pause is over",
        (TRANSIENT_FAILURE, IDLE): "nobody asks any more",
        (TRANSIENT_FAILURE, SHUTDOWN): "closed",
    }
)
"""Every transition there is, and what it means."""


def follow(before: LinkState, after: LinkState) -> LinkState:
    """The state after ``before``. RuntimeError if the table has no such transition, which is a bug of ours.

    >>> follow(LinkState.IDLE, LinkState.CONNECTING)
    <LinkState.CONNECTING: 'connecting'>
    """
    if (before, after) not in TRANSITIONS:
        raise RuntimeError(f"a link cannot go from {before.name} to {after.name}")
    return after
