"""Frozen values without dataclasses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from aioconnect import Backoff, CircuitBreaker, ConfigError, RetryBudget
from aioconnect.values import Fact, Value


class Seen(Fact):
    who: str
    what: int


VALUES = [CircuitBreaker(3, "fail"), RetryBudget(0.5, 2, 3, "fail"), Backoff(1, 2, 3, "equal")]


class Point(Value):
    __slots__ = ("x", "y")

    def __init__(self, x: int = 0, y: int = 0) -> None:
        self._freeze(x=x, y=y)


class Named(Point):
    __slots__ = ("name",)

    def __init__(self, x: int = 0, y: int = 0, name: str = "") -> None:
        super().__init__(x, y)
        self._freeze(name=name)


class Marked(Point):
    """One that adds nothing of its own."""

    __slots__ = ()


@pytest.mark.parametrize("value", [*VALUES, Named(1, 2, "a"), Marked(1, 2), Seen("a", 1)], ids=repr)
def test_copies_are_equal(value: Any) -> None:
    for made in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value)), value.replace()):
        assert made == value
        assert hash(made) == hash(value)
        assert repr(made) == repr(value)
        assert type(made) is type(value)


def test_equal_is_what_is_of_the_same_class_with_the_same_fields() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(2, 1)
    assert Point(1, 2) != (1, 2)
    assert Point(1, 2) != Marked(1, 2)
    assert Named(1, 2, "a") != Named(3, 2, "a")
    assert Marked(1, 2) != Marked(1, 3)
    assert len({Point(1, 2), Point(1, 2), Point(2, 1)}) == 2


def test_it_is_printed_as_the_call_that_makes_it() -> None:
    assert repr(Named(1, 2, "a")) == "Named(x=1, y=2, name='a')"
    for value in VALUES:
        assert eval(repr(value)) == value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_it_cannot_be_changed(value: Any) -> None:
    name = type(value).__slots__[0]
    with pytest.raises(AttributeError, match=f"immutable; cannot set {name}"):
        setattr(value, name, 1)
    with pytest.raises(AttributeError, match="cannot set other"):
        value.other = 1
    with pytest.raises(AttributeError, match="cannot delete"):
        delattr(value, name)


def test_what_is_replaced_is_checked() -> None:
    assert CircuitBreaker().replace(failures=2) == CircuitBreaker(2)
    with pytest.raises(ConfigError, match="failures=0"):
        CircuitBreaker().replace(failures=0)
    with pytest.raises(TypeError):
        CircuitBreaker().replace(color=1)


def test_a_fact_takes_its_fields_by_place_or_by_name() -> None:
    fact = Seen("a", what=1)
    assert (fact.who, fact.what) == ("a", 1)
    assert fact == Seen("a", 1) == Seen(what=1, who="a")
    assert fact.replace(what=2) == Seen("a", 2)
    match fact:
        case Seen(who, what=1):
            assert who == "a"
        case _:
            pytest.fail("it matches by place and by name")
    with pytest.raises(AttributeError):
        fact.who = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), (("a",), {}), (("a", 1, 2), {}), (("a",), {"who": "b"}), (("a", 1), {"when": 2})]
)
def test_a_fact_takes_each_field_once(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Seen takes who, what, each once"):
        Seen(*values, **named)
