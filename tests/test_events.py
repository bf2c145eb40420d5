"""Events are cheap frozen values, and the alias `Event` names them all."""

from __future__ import annotations

import inspect
import pickle
from typing import get_args

import pytest

import aioconnect
from aioconnect import events
from aioconnect.errors import ConnectRefused
from aioconnect.events import (
    AttemptFailed,
    AttemptStarted,
    Cancelled,
    CircuitClosed,
    CircuitOpened,
    Connected,
    Event,
    GaveUp,
    LinkStateChanged,
    Observer,
    Resolved,
    Retrying,
)
from aioconnect.link_states import LinkState

ERROR = ConnectRefused(address=("10.0.0.7", 5432))
SAMPLES: tuple[Event, ...] = (
    AttemptStarted("tcp://db:5432", 1),
    Resolved("tcp://db:5432", (("10.0.0.7", 5432),), 0.002),
    AttemptFailed("tcp://db:5432", 1, ERROR, 0.001),
    Retrying("tcp://db:5432", 1, ERROR, 0.5),
    Connected("tcp://db:5432", 2, ("10.0.0.7", 5432), 0.001),
    GaveUp("tcp://db:5432", ERROR),
    Cancelled("tcp://db:5432"),
    CircuitOpened("tcp://db:5432", 5, 0.7, ERROR),
    CircuitClosed("tcp://db:5432", 12.5),
    LinkStateChanged("tcp://db:5432", LinkState.IDLE, LinkState.CONNECTING, None),
)
each_event = pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)


def test_event_names_them_all() -> None:
    defined = {cls for cls in vars(events).values() if inspect.isclass(cls) and cls.__module__ == events.__name__}
    assert set(get_args(Event)) == defined == {type(event) for event in SAMPLES}
    assert (aioconnect.Event, aioconnect.Observer) == (Event, Observer)


@each_event
def test_an_event_is_a_frozen_value(event: Event) -> None:
    assert event == type(event)(*vars(event).values()) == type(event)(**vars(event))
    assert event.endpoint == "tcp://db:5432"
    with pytest.raises(AttributeError):
        event.endpoint = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        setattr(event, "other", 1)  # noqa: B010  (not for a type checker)
    assert str(pickle.loads(pickle.dumps(event))) == str(event)


@each_event
def test_an_event_matches_by_name(event: Event) -> None:
    match event:
        case (
            AttemptStarted(attempt=number)
            | AttemptFailed(attempt=number)
            | Connected(attempt=number)
            | Retrying(attempts=number)
        ):
            assert number in {1, 2}
        case Resolved(addresses=addresses):
            assert addresses == (("10.0.0.7", 5432),)
        case GaveUp(error=error):
            assert error is ERROR
        case Cancelled(endpoint=endpoint):
            assert endpoint == "tcp://db:5432"


def test_a_failed_attempt_has_the_code_of_its_error() -> None:
    assert AttemptFailed("tcp://db:5432", 1, ERROR, 0.1).code == "ECONNREFUSED"
    assert AttemptFailed("tcp://db:5432", 1, LookupError(), 0.1).code is None
