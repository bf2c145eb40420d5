"""What a configuration may say, read off the signatures of what it configures.

The keys of a file are the keywords of the constructors; what a key takes is what its annotation says. So there is
no second list of names, types or defaults that could go stale, and a keyword added to `Pool` is a key from then on.
What a file cannot hold, a function or a context, is given as an argument instead.
"""

from __future__ import annotations

import functools
import inspect
import ssl
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypedDict, TypeVar

from tenacity import RetryCallState

from aioconnect.backoff import Backoff
from aioconnect.breaker import CircuitBreaker
from aioconnect.budget import RetryBudget
from aioconnect.connector import Connector, Prepare
from aioconnect.endpoint import OPTIONS, TLS, Endpoint, Keepalive
from aioconnect.errnoset import ErrnoSet
from aioconnect.events import Observer
from aioconnect.heartbeat import Heartbeat, Send
from aioconnect.link import Link
from aioconnect.policy import Policy
from aioconnect.pool import Pool
from aioconnect.pool_hooks import Hook
from aioconnect.resolver import Lookup

__all__ = ("PLACE", "ROOT", "Functions", "Key", "Path", "arguments", "endpoint_keys", "is_list", "keys_of", "walked")

Path = tuple[str, ...]
"""The names that lead to a setting: ``("policy", "wait", "maximum")``."""

T = TypeVar("T")

Strategy = Callable[[RetryCallState], T]
"""A tenacity wait or stop."""

_TABLES: tuple[type, ...] = (TLS, Keepalive, Backoff, CircuitBreaker, RetryBudget, Heartbeat, Policy, Pool, Link)
"""The types that a file writes as a table of their keywords."""

_GIVEN = frozenset({"endpoint", "policy", "connector", "share"})
"""Keywords that a configuration fills by itself."""

_IN_FILES = frozenset({str, int, float, bool, ErrnoSet})


class Key:
    """One keyword of a constructor: the type it takes, and its default."""

    __slots__ = (
        "default",
        "in_file",
        "is_codes",
        "is_complete",
        "is_duration",
        "is_optional",
        "is_required",
        "is_switch",
        "kinds",
        "made",
        "name",
        "table",
        "takes_objects",
    )

    def __init__(self, name: str, hint: Any, default: Any = inspect.Parameter.empty) -> None:
        self.name = name
        self.default = default
        self.is_required = default is inspect.Parameter.empty
        """Whether there is no default."""
        self.kinds = tuple(_members(hint))
        """The members of the annotation, ``type(None)`` among them."""
        self.made = next((each for each in _TABLES if each in self.kinds or type(default) is each), None)
        """What its table describes, if it is written as one."""
        self.table: Mapping[str, Key] = types.MappingProxyType({}) if self.made is None else keys_of(self.made)
        self.is_complete = not any(key.is_required and not key.in_file for key in self.table.values())
        """Whether its table can be made of what a file says."""
        self.in_file: bool = self.made is not None or any(map(_in_file, self.kinds))
        """Whether a file can say it."""
        others = [each for each in self.kinds if each not in (self.made, type(None)) and not _in_file(each)]
        self.takes_objects = bool(others) and (self.made in _TABLES or not self.in_file)
        """Whether it takes what no file can say: a function, a context."""
        self.is_codes = ErrnoSet in self.kinds
        """Whether it is a set of errors."""
        self.is_duration = float in self.kinds and str in self.kinds
        """Whether it takes seconds, and a text with a unit."""
        self.is_optional = type(None) in self.kinds
        """Whether it can be None, or ``"off"`` in a file."""
        self.is_switch = self.made is not None and (self.is_optional or bool in self.kinds)
        """Whether, written as a table, it can be switched off, and on with its defaults."""


@functools.cache
def keys_of(made: type) -> Mapping[str, Key]:
    """The keywords of a constructor.

    >>> keys_of(Keepalive)["count"].default
    9
    """
    parameters = inspect.signature(made, eval_str=True).parameters.values()
    keys = {each.name: Key(each.name, each.annotation, each.default) for each in parameters}
    return types.MappingProxyType({name: key for name, key in keys.items() if name not in _GIVEN})


def _members(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for each in typing.get_args(hint):
            yield from _members(each)
    else:
        yield hint


def _in_file(kind: Any) -> bool:
    return kind in _IN_FILES or typing.get_origin(kind) is Literal or is_list(kind)


def is_list(kind: Any) -> bool:
    """Whether a member of an annotation is a sequence of what a file can say."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    return isinstance(origin, type) and issubclass(origin, Iterable) and any(map(_in_file, _members(inside[0])))


ROOT: Mapping[str, Key] = types.MappingProxyType(
    {
        "grace": Key("grace", float | str, 10.0),
        "budget": Key("budget", RetryBudget | None, None),
    }
)
"""The keys of the configuration as a whole, beside ``defaults`` and ``endpoints``."""

PLACE = tuple(name for name in inspect.signature(Endpoint).parameters if name not in (*OPTIONS, "tls"))
"""What says where an endpoint is, beside a URL, and is for one endpoint only."""


@functools.cache
def endpoint_keys() -> Mapping[str, Key]:
    """The keys of an endpoint: ``url``, those of `Endpoint` and `Connector`, and the tables of what is made of it."""
    keys = {"url": Key("url", str, None), **keys_of(Endpoint), **keys_of(Connector)}
    keys |= {"policy": Key("policy", Policy), "pool": Key("pool", Pool), "link": Key("link", Link)}
    return types.MappingProxyType(keys)


@functools.cache
def arguments() -> Mapping[str, tuple[Path, ...]]:
    """What is given as an argument, and where it belongs: ``{"prepare": (("prepare",),), ...}``."""
    found: dict[str, tuple[Path, ...]] = {}
    for path, key in walked(endpoint_keys()):
        if key.takes_objects:
            found[key.name] = (*found.get(key.name, ()), path)
    return types.MappingProxyType(found)


def walked(keys: Mapping[str, Key], within: Path = ()) -> Iterator[tuple[Path, Key]]:
    """All keys with their paths, those of the tables too."""
    for key in keys.values():
        yield (*within, key.name), key
        yield from walked(key.table, (*within, key.name))


class Functions(TypedDict, total=False):
    """What is given as an argument, as a type checker wants it spelled: one for all endpoints, or by name."""

    prepare: Prepare | Mapping[str, Prepare]
    observers: Iterable[Observer] | Mapping[str, Iterable[Observer]]
    resolver: Lookup | Mapping[str, Lookup]
    context: ssl.SSLContext | Mapping[str, ssl.SSLContext]
    wait: Strategy[float] | Mapping[str, Strategy[float]]
    stop: Strategy[bool] | Mapping[str, Strategy[bool]]
    uniform: Callable[[float, float], float] | Mapping[str, Callable[[float, float], float]]
    check: Hook | Mapping[str, Hook]
    reset: Hook | Mapping[str, Hook]
    send: Send | Mapping[str, Send]
