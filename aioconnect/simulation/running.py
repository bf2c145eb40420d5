"""`simulate`: every policy, every part of the fleet, in this process or in several."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import NamedTuple, TypedDict, TypeVar, Unpack

from aioconnect.policy import Policy
from aioconnect.simulation.fleet import Job, simulated
from aioconnect.simulation.outcome import Outcome, merged
from aioconnect.simulation.report import Report
from aioconnect.simulation.scenario import Down, Overflow, Scenario
from aioconnect.simulation.waits import policies
from aioconnect.validation import Problems, check_integer

__all__ = ("Progress", "simulate")

T = TypeVar("T")


class _Settings(TypedDict, total=False):
    """What else there is to a scenario."""

    backlog: float | str
    overflow: Overflow
    rtt: float | str
    connect_timeout: float | str | None
    down: Down
    callers: int
    spread: float | str
    limits: bool
    horizon: float | str | None
    seed: int


class Progress(NamedTuple):
    """How far a simulation is."""

    policy: str
    share: float
    """Of all policies together, from 0 to 1; an estimate."""
    attempts: int
    """Of this policy so far."""


def simulate(  # noqa: PLR0913  (the rest are keywords)
    clients: int = 1000,
    outage: float | str = 30.0,
    accept_rate: float | str = 200.0,
    policy: object = None,
    compare: object = None,
    *,
    parts: int | None = None,
    processes: int = 1,
    progress: Callable[[Progress], object] | None = None,
    **scenario: Unpack[_Settings],
) -> Report:
    """What a policy does to a server that comes back: ``clients`` lose it for ``outage`` seconds.

    These and ``accept_rate``, ``backlog``, ``overflow``, ``rtt``, ``connect_timeout``, ``down``, ``callers``,
    ``spread``, ``limits``, ``horizon``, ``seed`` are those of a `Scenario`.

    ``policy``: a `Policy`, a tenacity wait, or a text such as ``"initial=100ms,maximum=60s,jitter=equal"``; several in
    a sequence, or by name in a mapping. ``compare``: variations on it by name, ``"full,equal,decorrelated,none"``,
    ``"breaker=off"``, or how others wait: ``"fixed"``, ``"stamina"``, ``"tenacity"``, ``"grpc"``; or a mapping.

    ``parts``: simulate the fleet in so many parts, each with its part of the clients and of what the server can take.
    ``processes``: so many parts at once, each in a process of its own (started by ``spawn``, so a program needs its
    ``if __name__ == "__main__"``), and as many parts unless those are given. The result depends on the seed and the
    parts, not on the processes. ``progress`` is called now and then.

    Blocks until it is done. Raises `ConfigError` for what makes no sense.

    >>> report = simulate(clients=50, outage="5s", accept_rate=50, compare="full,none")
    >>> [outcome.connected for outcome in report]
    [50, 50]
    """
    problems = Problems()
    processes = check_integer(problems, "processes", processes, 1, 1024)
    number = check_integer(problems, "parts", processes if parts is None else parts, 1, 100_000)
    whole = problems.unless_wrong(lambda: Scenario(clients, outage, accept_rate, **scenario)) or Scenario()
    named = problems.unless_wrong(lambda: policies(policy, compare)) or {}
    problems.raise_any()
    number = min(number, whole.clients)
    jobs = [[Job(name, each, whole, part, number) for part in range(number)] for name, each in named.items()]
    meter = _Meter(whole, len(jobs), progress)
    if processes == 1:
        return Report(whole, [_off_any_loop(lambda each=each: _one_by_one(each, meter)) for each in jobs])  # type: ignore[misc]
    _check_picklable(named)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as executor:
        return Report(whole, [_spread_out(each, executor, meter) for each in jobs])


def _off_any_loop(work: Callable[[], T]) -> T:
    """Work here, or in a thread where a loop runs, as in a notebook: a thread has one loop at a time."""
    if asyncio._get_running_loop() is None:  # noqa: SLF001  (public in asyncio.events)
        return work()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def _one_by_one(jobs: Sequence[Job], meter: _Meter) -> Outcome:
    outcomes: list[Outcome] = []
    for job in jobs:
        meter.begin(job, sum(each.attempts for each in outcomes))
        outcomes.append(simulated(job, meter.watch if meter.progress else None))
    meter.policy_done(outcomes)
    return merged(jobs[0].scenario, outcomes)


def _spread_out(jobs: Sequence[Job], executor: ProcessPoolExecutor, meter: _Meter) -> Outcome:
    running = {executor.submit(simulated, job): job.part for job in jobs}
    outcomes: dict[int, Outcome] = {}
    try:
        for done in as_completed(running):
            outcomes[running[done]] = done.result()
            meter.begin(jobs[0]._replace(part=len(outcomes)), sum(each.attempts for each in outcomes.values()))
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    in_order = [outcomes[job.part] for job in jobs]
    meter.policy_done(in_order)
    return merged(jobs[0].scenario, in_order)


def _check_picklable(named: dict[str, Policy]) -> None:
    problems = Problems()
    for name, policy in named.items():
        try:
            pickle.dumps(policy)
        except Exception:  # noqa: BLE001  (whatever it raises, it cannot be sent)
            problems.add("policy", name, "cannot be pickled, which more than one process needs")
    problems.raise_any()


class _Meter:
    """Makes one share of all policies and parts."""

    def __init__(self, scenario: Scenario, policies: int, progress: Callable[[Progress], object] | None) -> None:
        self.progress = progress
        self._scenario = scenario
        self._policies = policies
        self._finished = 0
        self._job: Job | None = None
        self._attempts = 0

    def begin(self, job: Job, attempts: int) -> None:
        """This part comes next; those before it made so many attempts."""
        self._job, self._attempts = job, attempts
        self._tell(0.0, attempts)

    def watch(self, since: float, connected: int, attempts: int) -> None:
        """This part is so far."""
        job, scenario = self._job, self._scenario
        if job is not None:
            passed = min(1.0, (scenario.outage + since) / (scenario.outage + scenario.floor))
            there = min(1.0, connected * job.parts / scenario.connections)
            self._tell((passed + there) / 2, self._attempts + attempts)

    def policy_done(self, outcomes: Sequence[Outcome]) -> None:
        """All parts of this policy are done."""
        if self._job is not None:
            self._job = self._job._replace(part=self._job.parts)
            self._tell(0.0, sum(each.attempts for each in outcomes))
        self._finished += 1

    def _tell(self, share: float, attempts: int) -> None:
        if self.progress is not None and (job := self._job) is not None:
            of_this = (job.part + share) / job.parts
            self.progress(Progress(job.name, (self._finished + of_this) / self._policies, attempts))
