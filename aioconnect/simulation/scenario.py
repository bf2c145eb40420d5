"""What is simulated: how many clients lose which server for how long, and what it can take when it is back."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

from aioconnect.validation import Problems, check_duration, check_integer, check_number, check_optional_duration
from aioconnect.values import Value

__all__ = ("BIN", "Down", "Overflow", "Scenario")

Down = Literal["refused", "silent"]
Overflow = Literal["dropped", "refused"]

BIN = 0.1
"""Seconds: the width of what is counted. One of its edges is the return of the server."""

_MOST_CLIENTS = 100_000_000


class Scenario(Value):
    """Clients that lose a server at time 0, and what the server does when it is back.

    ``clients``: each a process of its own, with its own `Connector`. ``callers``: tasks of one client that share its
    connector, each in need of a connection. ``spread``: seconds within which the clients notice the loss, by chance.

    ``outage``: seconds until the server is back. ``down``: how it is until then: ``"refused"`` answers by RST, as a
    host without the process does; ``"silent"`` answers nothing, as a host that is off does.

    ``accept_rate``: connections it accepts in a second, one after the other, in the order in which they came.
    ``backlog``: how many may wait for that, and one more (listen(2)). ``overflow``: what becomes of a SYN for which
    there is no room: ``"dropped"``, and sent again after 1, 3, 7 ... seconds while the attempt lasts, as on Linux;
    ``"refused"``, as with its tcp_abort_on_overflow (tcp(7)). ``rtt``: seconds for a packet and its answer.
    ``connect_timeout``: seconds for one attempt, in place of the policy's ``attempt_timeout``.

    ``limits``: whether the policy's ``timeout``, ``max_attempts`` and ``stop`` hold; else clients try for ever, as a
    pool or a link does. ``horizon``: seconds after the return at which the simulation ends, whoever is connected by
    then; ``None``: 60 and twenty times the `floor`. ``seed``: of all chance.

    Raises `ConfigError` for what makes no sense.

    >>> Scenario(clients=2000, outage="20s", accept_rate=200).floor
    10.0
    """

    __slots__ = (
        "clients",
        "outage",
        "accept_rate",
        "backlog",
        "overflow",
        "rtt",
        "connect_timeout",
        "down",
        "callers",
        "spread",
        "limits",
        "horizon",
        "seed",
    )

    clients: int
    outage: float
    accept_rate: float
    backlog: float
    overflow: Overflow
    rtt: float
    connect_timeout: float | None
    down: Down
    callers: int
    spread: float
    limits: bool
    horizon: float
    seed: int

    def __init__(  # noqa: PLR0913  (keywords, each with its default)
        self,
        clients: int = 1000,
        outage: float | str = 30.0,
        accept_rate: float | str = 200.0,
        *,
        backlog: float | str = 128,
        overflow: Overflow = "dropped",
        rtt: float | str = 0.002,
        connect_timeout: float | str | None = None,
        down: Down = "refused",
        callers: int = 1,
        spread: float | str = 0.0,
        limits: bool = False,
        horizon: float | str | None = None,
        seed: int = 1,
    ) -> None:
        problems = Problems()
        clients = check_integer(problems, "clients", clients, 1, _MOST_CLIENTS)
        callers = check_integer(problems, "callers", callers, 1, _MOST_CLIENTS)
        rate = _rate(problems, accept_rate)
        after = check_optional_duration(problems, "horizon", horizon)
        for field, word, possible in (("down", down, Down), ("overflow", overflow, Overflow)):
            if word not in get_args(possible):
                problems.add(field, word, f"must be one of {', '.join(get_args(possible))}")
        words = {"down": down, "overflow": overflow, "limits": limits}
        if not isinstance(limits, bool):
            problems.add("limits", limits, "must be True or False")
        fields = {
            "outage": check_duration(problems, "outage", outage, zero=True),
            "backlog": check_number(problems, "backlog", _number(backlog), 0),
            "rtt": check_duration(problems, "rtt", rtt, zero=True),
            "connect_timeout": check_optional_duration(problems, "connect_timeout", connect_timeout),
            "spread": check_duration(problems, "spread", spread, zero=True),
            "seed": check_integer(problems, "seed", seed, 0),
        }
        problems.raise_any()
        horizon = 60 + 20 * clients * callers / rate if after is None else after
        self._freeze(clients=clients, accept_rate=rate, callers=callers, horizon=horizon, **fields, **words)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(Scenario, **self._fields()), ()

    @property
    def connections(self) -> int:
        """How many are asked for in all."""
        return self.clients * self.callers

    @property
    def floor(self) -> float:
        """Seconds after the return in which the server could accept them all: nobody can be faster."""
        return self.connections / self.accept_rate

    def floor_of(self, share: float) -> float:
        """Seconds after the return in which it could accept that share of them."""
        return math.ceil(share * self.connections) / self.accept_rate

    def part(self, number: int, parts: int) -> Scenario:
        """One of so many parts of the fleet, with as large a part of what the server can take.

        The numbers of clients add up exactly.
        """
        clients = self.clients * (number + 1) // parts - self.clients * number // parts
        share = clients / self.clients
        return self.replace(
            clients=clients, accept_rate=self.accept_rate * share, backlog=self.backlog * share, horizon=self.horizon
        )


def _number(value: object) -> object:
    """The number that a text stands for, if it is one; a check tells what is wrong with anything else."""
    if isinstance(value, str) and len(value) < 40:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _rate(problems: Problems, value: object) -> float:
    found = _number(value)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found <= 1e9:
        problems.add("accept_rate", value, "must be a number of connections a second, more than 0")
        return 1.0
    return float(found)
