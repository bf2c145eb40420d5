"""What happened while connecting, for a test to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

from aioconnect import events
from aioconnect.errors import NetworkError, format_address
from aioconnect.events import Event

__all__ = ("Attempts", "Recorder")

E = TypeVar("E")


class Attempts(list[str]):
    """A list of outcomes that can tell the story behind it."""

    def __init__(self, outcomes: Iterable[str], story: str) -> None:
        super().__init__(outcomes)
        self.story = story


class Recorder:
    """An observer that keeps the events, in order, each with the time of its loop.

        recorder = Recorder()
        connector = Connector(endpoint, policy, observers=[recorder])
        await connector.connect()
        assert recorder.attempts == ["ECONNREFUSED", "ECONNREFUSED", "ok"]

    ``str(recorder)`` is the story line by line, which is what pytest shows where an assertion about it fails.
    """

    def __init__(self) -> None:
        self.timed: list[tuple[float, Event]] = []
        """Each event with its time."""

    def __call__(self, event: Event) -> None:
        """Take an event; this is what makes it an observer."""
        self.timed.append((asyncio.get_running_loop().time(), event))

    @property
    def events(self) -> list[Event]:
        """The events, in order."""
        return [event for _, event in self.timed]

    def of(self, kind: type[E]) -> list[E]:
        """The events of a class: ``recorder.of(Retrying)``."""
        return [event for _, event in self.timed if isinstance(event, kind)]

    @property
    def attempts(self) -> Attempts:
        """How each attempt ended: ``"ok"``, or the code of its error; its class if it is none of a connection."""
        return Attempts(filter(None, (_outcome(event) for event in self.events)), str(self))

    @property
    def errors(self) -> list[Exception]:
        """The error of each failed attempt."""
        return [event.error for event in self.of(events.AttemptFailed)]

    @property
    def pauses(self) -> list[float]:
        """The seconds slept after each attempt that was to be repeated."""
        return [event.pause for event in self.of(events.Retrying)]

    @property
    def started(self) -> list[float]:
        """The times at which attempts began."""
        return [at for at, event in self.timed if isinstance(event, events.AttemptStarted)]

    def clear(self) -> None:
        """Forget all."""
        self.timed.clear()

    def __len__(self) -> int:
        return len(self.timed)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for at, event in self.timed:
            fields = ", ".join(f"{name}={_shown(value)}" for name, value in vars(event).items())
            yield f"{at:10.3f}  {type(event).__name__}({fields})"

    def __repr__(self) -> str:
        return f"<Recorder {self.attempts}>"


def _outcome(event: Event) -> str | None:
    if isinstance(event, events.Connected):
        return "ok"
    if isinstance(event, events.AttemptFailed):
        return event.error.code if isinstance(event.error, NetworkError) else type(event.error).__name__
    return None


def _shown(value: object) -> str:
    if isinstance(value, NetworkError):
        return f"{type(value).__name__} {value.code}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple):
        every = list(cast("tuple[object, ...]", value))
        address = every and isinstance(every[0], str)
        return format_address(tuple(every)) if address else f"({', '.join(map(_shown, every))})"
    return repr(value)
