"""The clients of one part of a fleet: shipped connectors on a virtual clock, until all are connected."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import threading
from array import array
from collections.abc import Callable, Generator
from typing import NamedTuple

from aioconnect.connector import Connector
from aioconnect.endpoint import Endpoint
from aioconnect.errors import ConnectError
from aioconnect.policy import Policy
from aioconnect.resolver import Resolver
from aioconnect.simulation.outcome import Outcome
from aioconnect.simulation.scenario import BIN, Scenario
from aioconnect.simulation.server import CrowdedServer
from aioconnect.simulation.waits import seeded

__all__ = ("Job", "Watch", "simulated")

Watch = Callable[[float, int, int], object]
"""Called now and then with the seconds since the return, the connections and the attempts so far."""


class Job(NamedTuple):
    """One policy on one part of a fleet: all that another process needs to know."""

    name: str
    policy: Policy
    scenario: Scenario
    part: int = 0
    parts: int = 1


def simulated(job: Job, watch: Watch | None = None) -> Outcome:
    """What comes of it. The result depends on the job alone."""
    with _no_collection(), _no_log():
        return _Fleet(job, watch).outcome()


@contextlib.contextmanager
def _no_collection() -> Generator[None]:
    """The collector off: what clients leave behind has no cycles, and to look for them doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _OfOtherThreads(logging.Filter):
    """Lets pass what is said in other threads: connectors there are real."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.here


@contextlib.contextmanager
def _no_log() -> Generator[None]:
    """Not a word to the log about servers that do not exist."""
    logger, quiet = logging.getLogger("aioconnect"), _OfOtherThreads()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


class _Fleet:
    def __init__(self, job: Job, watch: Watch | None) -> None:
        self.name = job.name
        self.whole = job.scenario
        self.scenario = job.scenario.part(job.part, job.parts)
        chance = random.Random(f"aioconnect.simulate {job.scenario.seed} {job.part}/{job.parts}")
        self.uniform = chance.uniform
        self.policy = _policy(job.policy, self.scenario, self.uniform)
        self.watch = watch
        self.endpoint = Endpoint.parse("tcp://192.0.2.1:80")
        self.resolver = Resolver()
        self.server = CrowdedServer(self.scenario)
        self.loop = self.server.loop
        self.back_at = self.scenario.outage
        self.times = array("d")
        self.by_client: dict[int, int] = {}
        self.gave_up: dict[str, int] = {}
        self.left = self.scenario.connections
        self.bug: Exception | None = None

    def outcome(self) -> Outcome:
        """Run it."""
        for _ in range(self.scenario.clients):
            start = self.uniform(0, self.scenario.spread) if self.scenario.spread else 0.0
            self.loop.call_at(start, self._start)
        if self.watch is not None:
            self._look()
        try:
            self.loop.run_until(self.back_at + self.scenario.horizon)
        finally:
            self._end()
        if self.bug is not None:
            raise self.bug
        return self._counted()

    def _start(self) -> None:
        """One client, with all its callers."""
        connector = Connector(self.endpoint, self.policy, resolver=self.resolver)
        users = _Users(connector, self.scenario.callers)
        for _ in range(self.scenario.callers):
            _ = self.loop.create_task(self._call(users))

    async def _call(self, users: _Users) -> None:
        try:
            await users.connector.dial()
        except ConnectError as error:
            reason = error.stop_reason or error.code
            self.gave_up[reason] = self.gave_up.get(reason, 0) + 1
        except Exception as exc:  # noqa: BLE001  (raised by `outcome`: somebody's wait or stop)
            self.bug = exc
            self.loop.stop()
        else:
            self.times.append(self.loop.now - self.back_at)
        users.left -= 1
        if not users.left:
            self._count(users)
        self.left -= 1
        if not self.left:
            self.loop.stop()

    def _count(self, users: _Users) -> None:
        attempts = users.connector.stats().attempts
        self.by_client[attempts] = self.by_client.get(attempts, 0) + 1

    def _look(self) -> None:
        if self.watch is not None:
            self.watch(self.loop.now - self.back_at, len(self.times), self.server.attempts)
        self.loop.call_later(BIN, self._look)

    def _end(self) -> None:
        """Have those who are still at it end, so that none is destroyed while pending."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.watch = None
        self.loop.run_until(self.loop.now)
        self.loop.close()

    def _counted(self) -> Outcome:
        server, scenario = self.server, self.scenario
        return Outcome(
            name=self.name,
            scenario=scenario,
            attempts=server.attempts,
            arrivals=server.arrivals,
            times=self.times,
            by_client=self.by_client,
            gave_up=self.gave_up,
            overflowed=server.overflowed,
            wasted=server.wasted,
            digest=server.digest(self.times),
        )


class _Users:
    """The callers of one client, who share its connector."""

    __slots__ = ("connector", "left")

    def __init__(self, connector: Connector, left: int) -> None:
        self.connector = connector
        self.left = left


def _policy(policy: Policy, scenario: Scenario, uniform: Callable[[float, float], float]) -> Policy:
    """As a fleet of this scenario has it."""
    if scenario.connect_timeout is not None:
        policy = policy.replace(attempt_timeout=scenario.connect_timeout)
    if not scenario.limits:
        policy = policy.replace(timeout=None, max_attempts=None, stop=None)
    return seeded(policy, uniform)
