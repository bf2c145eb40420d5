"""What happens while connecting, for whoever wants to know: frozen values handed to an `Observer`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from aioconnect.errors import Address, NetworkError
from aioconnect.values import Fact

if TYPE_CHECKING:
    # For no program but one with a Link: an enum takes as long to make as all events.
    from aioconnect.link_states import LinkState

__all__ = (
    "AttemptFailed",
    "AttemptStarted",
    "Cancelled",
    "CircuitClosed",
    "CircuitOpened",
    "Connected",
    "Event",
    "GaveUp",
    "LinkStateChanged",
    "Observer",
    "Resolved",
    "Retrying",
    "tell",
)


class AttemptStarted(Fact):
    """An attempt begins; ``attempt`` counts from 1 within its call."""

    endpoint: str
    attempt: int


class Resolved(Fact):
    """The names are resolved; ``addresses`` are in the order in which they are tried. ``elapsed`` in seconds."""

    endpoint: str
    addresses: tuple[Address, ...]
    elapsed: float


class AttemptFailed(Fact):
    """An attempt failed; ``error`` is typed unless it is a foreign one out of a ``prepare`` hook."""

    endpoint: str
    attempt: int
    error: Exception
    elapsed: float

    @property
    def code(self) -> str | None:
        """The symbolic code; ``None`` for a foreign error."""
        return getattr(self.error, "code", None)


class Retrying(Fact):
    """After so many attempts, the call sleeps ``pause`` seconds before the next."""

    endpoint: str
    attempts: int
    error: NetworkError | None
    pause: float


class Connected(Fact):
    """A connection is made, and prepared if there is a hook; ``elapsed`` in seconds for this attempt."""

    endpoint: str
    attempt: int
    address: Address
    elapsed: float


class GaveUp(Fact):
    """A call ends without a connection; ``error`` is what it raises."""

    endpoint: str
    error: Exception


class Cancelled(Fact):
    """A call was cancelled, or its caller's own time limit has passed."""

    endpoint: str


class CircuitOpened(Fact):
    """A circuit has opened after so many failures in a row; its next probe is due in ``retry_in`` seconds."""

    endpoint: str
    failures: int
    retry_in: float
    error: NetworkError | None


class CircuitClosed(Fact):
    """A probe was good, and the circuit is closed again, after ``elapsed`` seconds."""

    endpoint: str
    elapsed: float


class LinkStateChanged(Fact):
    """A `Link` is in another state; ``error`` is what made it so, ``None`` if it was no error."""

    endpoint: str
    before: LinkState
    after: LinkState
    error: Exception | None


Event = (
    AttemptStarted
    | Resolved
    | AttemptFailed
    | Retrying
    | Connected
    | GaveUp
    | Cancelled
    | CircuitOpened
    | CircuitClosed
    | LinkStateChanged
)

Observer = Callable[[Event], object]
"""Called with each event, in the event loop, at once. What it returns is ignored; what it raises goes to the loop's
exception handler and never to the caller of ``connect``."""


def tell(observers: Iterable[Observer], event: Event) -> None:
    """Call them all, in the running loop; what one raises goes to the loop's exception handler."""
    for observer in observers:
        try:
            observer(event)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (it must not break a connect)
            # Nothing is awaited here, so a CancelledError is only what some future held.
            context = {"message": f"observer {observer!r} raised", "exception": exc}
            asyncio.get_running_loop().call_exception_handler(context)
