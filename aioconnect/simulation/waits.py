"""Policies by name, and from a short text: what a command line and a comparison have."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast, get_args

from tenacity import RetryCallState
from tenacity.wait import wait_base

from aioconnect.backoff import Backoff, Jitter
from aioconnect.breaker import CircuitBreaker
from aioconnect.budget import RetryBudget
from aioconnect.errors import ConfigError
from aioconnect.policy import Policy
from aioconnect.validation import did_you_mean, shown, switch
from aioconnect.values import Value

__all__ = ("NAMES", "CommonWait", "policies", "seeded")

Formula = Callable[[RetryCallState, Callable[[float, float], float]], float]
"""Seconds to wait in that state of a call, drawn from a ``uniform(low, high)``."""


def _grown(initial: float, state: RetryCallState, factor: float = 2.0) -> float:
    # Beyond any cap, and short of what a float cannot hold.
    return initial * factor ** min(state.attempt_number - 1, 100)


_FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {
        "fixed": lambda _state, _uniform: 1.0,
        "aws": lambda state, uniform: min(5.0, uniform(0.1, 3 * max(0.1, state.upcoming_sleep))),
        "stamina": lambda state, uniform: min(5.0, _grown(0.1, state) + uniform(0, 1)),
        "tenacity": lambda state, uniform: min(5.0, _grown(1.0, state) + uniform(0, 1)),
        "grpc": lambda state, uniform: min(120.0, _grown(1.0, state, 1.6)) * uniform(0.8, 1.2),
    }
)

JITTERS: tuple[Jitter, ...] = get_args(Jitter)

NAMES: tuple[str, ...] = (*JITTERS, *_FORMULAS)
"""What a policy may be called: a kind of jitter, or what others do."""


class CommonWait(Value, wait_base):
    """How others wait, to compare with; ``uniform(low, high)`` is the source of chance.

    - ``"fixed"``: a second.
    - ``"aws"``: decorrelated jitter as AWS has it, ``min(5, U(0.1, 3 * previous))``: two of three wait the maximum.
    - ``"stamina"``: its defaults, ``min(5, 0.1 * 2 ** (n - 1) + U(0, 1))``: jitter is lost at the cap.
    - ``"tenacity"``: ``wait_exponential_jitter(max=5)``, ``min(5, 2 ** (n - 1) + U(0, 1))``: likewise.
    - ``"grpc"``: its connection backoff, ``min(120, 1.6 ** (n - 1))``, 20 % more or less; without the time that the
      attempt took, which gRPC takes off.
    """

    __slots__ = ("name", "uniform")

    name: str
    uniform: Callable[[float, float], float]

    def __init__(self, name: str, uniform: Callable[[float, float], float] = random.uniform) -> None:
        if name not in _FORMULAS:
            raise ConfigError(f"name={shown(name)}: {did_you_mean(str(name), _FORMULAS)}")
        self._freeze(name=name, uniform=uniform)

    def __call__(self, retry_state: RetryCallState) -> float:
        """The wait after the attempt that tenacity's state describes, in seconds."""
        return _FORMULAS[self.name](retry_state, self.uniform)

    def __repr__(self) -> str:
        return f"CommonWait({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # As for a Backoff: the state of a generator is not to go along.
        return CommonWait, (self.name,) if self.uniform == random.uniform else (self.name, self.uniform)


def seeded(policy: Policy, uniform: Callable[[float, float], float]) -> Policy:
    """The policy with its chance from there, where it would come from the module ``random``."""
    wait = policy.wait
    if isinstance(wait, (Backoff, CommonWait)) and wait.uniform == random.uniform:
        return policy.replace(wait=wait.replace(uniform=uniform))
    return policy


# -- From texts ----------------------------------------------------------------------------------------------------


def policies(policy: object, compare: object) -> dict[str, Policy]:
    """By name, the policies to simulate: ``policy``, if given, and those that ``compare`` makes of it.

    ``policy``: a `Policy`, a tenacity wait, a text, or a sequence of these. ``compare``: texts, in a sequence or
    with commas between, or a mapping of names to policies. Raises `ConfigError` for what is none.
    """
    found = {} if policy is None else _named("policy", policy, Policy())
    base = next(iter(found.values()), Policy())
    compared = {} if compare is None else _named("compare", compare, base)
    kept = {name: each for name, each in found.items() if each not in compared.values()}
    return (kept | compared) or {"full": base}


def _named(field: str, given: object, base: Policy) -> dict[str, Policy]:
    if isinstance(given, Mapping):
        named = cast("Mapping[object, object]", given)
    elif isinstance(given, str):
        # Of a comparison each name is a policy; a policy is told by all of the text.
        named = {each.strip(): each for each in (given.split(",") if field == "compare" else (given,))}
    elif isinstance(given, Iterable):
        named = {_called(each, number): each for number, each in enumerate(cast("Iterable[object]", given), 1)}
    else:
        named = {"policy": given}
    if not named:
        raise ConfigError(f"{field}=(): must be at least one policy")
    return {str(name): _policy(field, each, base) for name, each in named.items()}


def _called(given: object, number: int) -> str:
    return given.strip() if isinstance(given, str) else f"policy {number}"


def _policy(field: str, given: object, base: Policy) -> Policy:
    if isinstance(given, Policy):
        return given
    if isinstance(given, str):
        return _parsed(field, given, base)
    if callable(given):
        return base.replace(wait=given)
    raise ConfigError(f"{field}={shown(given)}: must be a Policy, a wait, or a text such as {_EXAMPLE}")


_EXAMPLE = "'full' or 'initial=100ms,maximum=5s,jitter=full'"
_OF_BACKOFF = ("initial", "maximum", "factor", "jitter")
_OF_POLICY = ("timeout", "attempt_timeout", "max_attempts")
_SWITCHED: Mapping[str, Callable[[], object]] = MappingProxyType({"breaker": CircuitBreaker, "budget": RetryBudget})
_KEYS = (*_OF_BACKOFF, *_OF_POLICY, *_SWITCHED)


def _parsed(field: str, text: str, base: Policy) -> Policy:
    backoff: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            _name(field, text, key, backoff, changes)
        elif key in _OF_BACKOFF:
            backoff[key] = _factor(value) if key == "factor" else value
        elif key in _OF_POLICY:
            changes[key] = value
        elif key in _SWITCHED:
            changes[key] = _switched(field, key, value)
        else:
            raise ConfigError(f"{field}={shown(text)}: {shown(key)} is no setting; {did_you_mean(key, _KEYS)}")
    if backoff and "wait" in changes:
        settings = ", ".join(backoff)
        raise ConfigError(f"{field}={shown(text)}: {changes['wait'].name} has no {settings}")
    return _built(field, base, backoff, changes)


def _name(field: str, text: str, name: str, backoff: dict[str, Any], changes: dict[str, Any]) -> None:
    """A word by itself names a kind of jitter, or what others do."""
    if name in JITTERS:
        backoff["jitter"] = name
    elif name in _FORMULAS:
        changes["wait"] = CommonWait(name)
    else:
        raise ConfigError(f"{field}={shown(text)}: {shown(name)} is no policy; {did_you_mean(name, NAMES)}")


def _factor(value: str) -> object:
    try:
        return float(value)
    except ValueError:
        return value


def _switched(field: str, key: str, value: str) -> object:
    on = switch(value)
    if on is None:
        raise ConfigError(f"{field}.{key}={shown(value)}: must be on or off")
    return _SWITCHED[key]() if on else None


def _built(field: str, base: Policy, backoff: dict[str, Any], changes: dict[str, Any]) -> Policy:
    """The base with these changes; what is wrong with one is told with the field it was given in."""
    wait = base.wait if isinstance(base.wait, Backoff) else Backoff()
    problems: tuple[str, ...] = ()
    try:
        if backoff:
            changes["wait"] = wait.replace(**backoff)
        return base.replace(**changes)
    except ConfigError as error:
        problems = tuple(f"{field}.{problem}" for problem in error.problems)
    raise ConfigError(*problems)
