"""`aioconnect.simulate`: shipped connectors against a model of a server, and the figures of others."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import os
import pickle
import random
import statistics
import subprocess
import sys
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed

import aioconnect
from aioconnect import Backoff, ConfigError, Connector, Policy
from aioconnect.errors import ConnectError
from aioconnect.simulation import CommonWait, Outcome, Progress, Report, Scenario, contend, simulate
from aioconnect.simulation.fleet import Job, simulated
from aioconnect.simulation.loop import FleetLoop
from aioconnect.simulation.outcome import merged
from aioconnect.simulation.server import CrowdedServer
from aioconnect.simulation.waits import NAMES, policies
from aioconnect.testing import Hold, Network, run

ROOT = Path(aioconnect.__file__).parent.parent
LONG = "AIOCONNECT_LONG" in os.environ
"""The tables at full length: five seeds, a hundred trials."""


def child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


# What others found


STORM: Any = {"clients": 2000, "outage": 20, "accept_rate": 200, "connect_timeout": 1, "overflow": "refused"}
TABLE = {  # policy: attempts for each client, seconds until 99 % were connected, tolerance of these
    "full": (15.5, 10.8, 0.3),
    "equal": (12.3, 10.9, 0.3),
    "aws,breaker=off": (15.9, 10.8, 0.3),
    "none": (17.3, 76.6, 0.5),
    "fixed": (28.3, 15.3, 0.3),
    "tenacity": (8.7, 28.9, 0.5),
    "grpc": (7.3, 27.1, 0.5),
    "stamina": (10.9, 22.2, 3.0),
}
QUICK = ("full", "equal", "aws,breaker=off", "none")


@pytest.mark.slow
@pytest.mark.parametrize("policy", TABLE if LONG else QUICK)
def test_the_table_of_reconnect_storms(policy: str) -> None:
    attempts, t99, tolerance = TABLE[policy]
    reports = [simulate(**STORM, policy=policy, seed=seed) for seed in range(1, 6 if LONG else 2)]
    assert statistics.mean(each[0].attempts_per_client for each in reports) == pytest.approx(attempts, rel=0.03)
    assert statistics.mean(each[0].until(0.99) or 0 for each in reports) == pytest.approx(t99, abs=tolerance)


@pytest.mark.slow
def test_the_table_of_contention() -> None:
    trials = 100 if LONG else 25
    full = contend(Backoff(0.010, 2.0), clients=100, trials=trials)
    plain = contend(Backoff(0.010, 2.0, jitter="none"), clients=100, trials=trials)
    assert 780 <= full.calls <= 810
    assert 1830 <= plain.calls <= 1890
    assert plain.seconds / full.seconds > 10
    equal = contend(Backoff(0.010, 2.0, jitter="equal"), clients=100, trials=trials)
    assert equal.calls == pytest.approx(813, rel=0.05)
    assert full.seconds < equal.seconds == pytest.approx(6.620, rel=0.1)
    assert contend(Backoff(0, 0), clients=20, trials=trials).calls == pytest.approx(151, rel=0.1)


def test_the_simulated_network_of_the_testing_kit_agrees() -> None:
    """Another model of another hand: real accept queue, transports, asyncio's own loop."""
    clients, outage, rate = 300, 5.0, 100
    report = simulate(clients, outage, rate, connect_timeout=1, rtt=0.002)
    network = Network(latency=0.002)
    server = network.serve("10.0.0.1", 80, Hold, rate=rate)
    chance = random.Random(1)
    policy = Policy(timeout=None, attempt_timeout=1, wait=Backoff(uniform=chance.uniform))
    attempts = 0

    async def client() -> None:
        nonlocal attempts
        connector = Connector("10.0.0.1:80", policy)
        await connector.dial()
        attempts += connector.stats().attempts

    async def storm() -> None:
        server.stop()
        network.at(outage, server.start)
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                _ = group.create_task(client())
        while server.accepted < clients:
            await asyncio.sleep(0.01)

    loop_time = run(_timed(storm()), network=network)
    outcome = report[0]
    assert attempts / clients == pytest.approx(outcome.attempts_per_client, rel=0.1)
    assert loop_time - outage == pytest.approx(outcome.until(1.0), rel=0.35)


async def _timed(main: object) -> float:
    await main  # type: ignore[misc]
    return asyncio.get_running_loop().time()


# The model


def test_nobody_is_faster_than_the_floor_and_a_small_fleet_is_as_fast() -> None:
    scenario = Scenario(clients=50, outage=0, accept_rate=100)
    outcome = simulate(50, 0, 100)[0]
    # The first is accepted at once.
    assert outcome.until(1.0) == pytest.approx(scenario.floor - 0.01 + scenario.rtt)
    assert outcome.attempts == outcome.connected == 50
    assert (outcome.by_client, outcome.gave_up, outcome.overflowed, outcome.wasted) == ({1: 50}, {}, 0, 0)


def test_every_attempt_is_counted_once() -> None:
    outcome = simulate(200, 5, 50, connect_timeout=1)[0]
    assert sum(outcome.arrivals.values()) == outcome.attempts
    assert sum(number * count for number, count in outcome.by_client.items()) == outcome.attempts
    assert list(outcome.times) == sorted(outcome.times)
    assert outcome.most_attempts >= outcome.attempts_per_client
    assert outcome.peak_per_100ms <= outcome.peak_per_second


def test_what_is_silent_is_tried_less_often_than_what_refuses() -> None:
    refused, silent = (simulate(50, 20, 50, down=down)[0] for down in ("refused", "silent"))
    assert silent.attempts < refused.attempts / 2
    assert silent.connected == refused.connected == 50


def test_a_dropped_syn_is_sent_again_within_the_attempt() -> None:
    policy = Policy(attempt_timeout=30)
    outcome = simulate(20, 0, 50, policy, backlog=10)[0]
    assert outcome.overflowed > 0
    assert outcome.attempts == outcome.connected == 20
    assert 1.0 < (outcome.until(1.0) or 0) < 1.3


def test_a_client_that_is_not_patient_enough_costs_the_server_an_accept() -> None:
    """A queue longer than the clients' patience: the server is busy with those that have left."""
    outcome = simulate(200, 0, 50, backlog=200, connect_timeout=1, horizon=100)[0]
    assert outcome.wasted > 0
    assert (outcome.until(1.0) or math.inf) > outcome.scenario.floor + 1


def test_without_an_answer_the_kernel_gives_up_at_last() -> None:
    server = CrowdedServer(Scenario(outage=1000, down="silent", rtt=0))
    connector = Connector("192.0.2.1:80", Policy(timeout=None, attempt_timeout=None, max_attempts=1))
    failed: list[ConnectError] = []

    async def dial() -> None:
        try:
            await connector.dial()
        except ConnectError as error:
            failed.append(error)

    _ = server.loop.create_task(dial())
    server.loop.run_until(1000)
    assert (failed[0].code, failed[0].elapsed) == ("ETIMEDOUT", 127.0)


def test_limits_hold_if_asked_for() -> None:
    policy = Policy(max_attempts=3)
    limited = simulate(40, 5, 50, policy, limits=True)[0]
    assert (limited.gave_up, limited.connected, limited.attempts) == ({"attempts": 40}, 0, 120)
    assert limited.until(0.5) is None
    assert simulate(40, 5, 50, policy)[0].connected == 40


def test_a_policy_that_does_not_retry_ends_at_once() -> None:
    outcome = simulate(10, 5, 50, Policy(never_retry_on={"ECONNREFUSED"}))[0]
    assert (outcome.gave_up, outcome.attempts) == ({"permanent": 10}, 10)


def test_the_horizon_ends_it_with_nothing_left_behind() -> None:
    report = simulate(100, 5, 10, horizon="2s")
    assert 15 <= report[0].connected <= 25
    assert f"{100 - report[0].connected} not connected 2 s after the return" in str(report)


def test_callers_share_what_their_breaker_learns() -> None:
    shared, alone = simulate(5, 10, 500, callers=40, compare="full,breaker=off")
    assert shared.connected == alone.connected == 200
    assert alone.attempts > 5 * shared.attempts


def test_clients_may_notice_one_after_the_other() -> None:
    at_once, spread = (simulate(100, 10, 100, spread=spread)[0] for spread in (0, "10s"))
    assert spread.peak_down < at_once.peak_down
    assert spread.connected == 100


def test_a_part_has_its_part_of_everything() -> None:
    whole = Scenario(clients=1001, accept_rate=100, backlog=128)
    parts = [whole.part(number, 7) for number in range(7)]
    assert sum(each.clients for each in parts) == 1001
    assert sum(each.accept_rate for each in parts) == pytest.approx(100)
    assert sum(each.backlog for each in parts) == pytest.approx(128)
    assert {each.horizon for each in parts} == {whole.horizon}
    assert whole.part(0, 1) == whole


def test_parts_make_the_whole_exactly() -> None:
    whole = Scenario(clients=90, outage=3, accept_rate=100)
    parts = [simulated(Job("full", Policy(), whole, part, 3)) for part in range(3)]
    outcome = merged(whole, parts)
    assert outcome.attempts == sum(each.attempts for each in parts) == sum(outcome.arrivals.values())
    assert sorted(itertools.chain(*(each.times for each in parts))) == list(outcome.times)
    assert sum(outcome.by_client.values()) == 90
    assert outcome.scenario == whole
    assert simulate(90, 3, 100, parts=3)[0] == outcome


def test_parts_tell_the_same_as_the_whole() -> None:
    """Not to the digit: each part has a queue of its own."""
    whole, parts = (simulate(200, 5, 40, connect_timeout=1, backlog=26, parts=number)[0] for number in (1, 2))
    assert parts.attempts == pytest.approx(whole.attempts, rel=0.05)
    assert parts.until(0.99) == pytest.approx(whole.until(0.99), rel=0.1)


def test_there_are_never_more_parts_than_clients() -> None:
    assert simulate(2, 1, 100, parts=5)[0].connected == 2


@pytest.mark.slow
@pytest.mark.may_leak("fd")  # the pipe to the resource tracker of `multiprocessing`, which lives as long as we do
def test_processes_change_nothing_but_the_time() -> None:
    seen: list[Progress] = []
    settings: Any = {"compare": "full,none", "parts": 3}
    alone = simulate(60, 2, 100, **settings)
    assert simulate(60, 2, 100, **settings, processes=2, progress=seen.append).to_dict() == alone.to_dict()
    assert seen[-1].share == 1.0


def test_a_policy_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy='policy': cannot be pickled"):
        simulate(10, policy=Policy(wait=lambda state: 1.0), processes=2)


# The same seed, the same result


HERD = "from aioconnect import simulate; print([each.digest for each in simulate(60, 3, 50, compare='full,equal,aws')])"


def test_it_is_the_same_whatever_the_hash_seed() -> None:
    assert len({child(HERD, PYTHONHASHSEED=seed) for seed in "01"}) == 1


def test_it_is_the_same_on_every_python() -> None:
    digests = [each.digest[:16] for each in simulate(100, 5, 50, compare="full,equal,decorrelated,none")]
    assert digests == [
        "99f2a668546eb4dd",
        "5742f63677f9b5ff",
        "7ef5d4e177f149dd",
        "ec9fa6c06caa674c",
    ]


def test_another_seed_is_another_story() -> None:
    assert len({simulate(50, 2, 50, seed=seed)[0].digest for seed in range(4)}) == 4


def test_the_module_random_has_no_say() -> None:
    digests = set()
    for seed in range(3):
        random.seed(seed)
        digests.add(tuple(each.digest for each in simulate(20, 1, 50, compare=NAMES)))
    assert len(digests) == 1


def test_a_source_of_chance_that_was_given_is_kept() -> None:
    drawn: list[float] = []

    def uniform(low: float, high: float) -> float:
        drawn.append(high)
        return high

    simulate(2, 1, 50, Policy(wait=Backoff(uniform=uniform)))
    assert drawn


# Around it


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool) -> None:
    during: list[bool] = []
    gc.enable() if enabled else gc.disable()
    try:
        simulate(5, 1, 50, progress=lambda _: during.append(gc.isenabled()))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert False in during


def test_the_log_hears_of_real_servers_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("aioconnect")

    def speak(progress: Progress) -> None:
        if not 0 < progress.share < 1:
            return
        logger.warning("here")
        elsewhere = threading.Thread(target=logger.warning, args=("elsewhere",))
        elsewhere.start()
        elsewhere.join()

    # Callers of one client lose a server that has taken others of them.
    simulate(1, 1, 10, callers=60, connect_timeout=1, progress=speak)
    assert {record.message for record in caplog.records} == {"elsewhere"}
    logger.warning("after")
    assert caplog.records[-1].message == "after"


def test_clients_leave_no_cycles() -> None:
    """With the collector off they would add up."""
    simulate(5, 5, 50, callers=2)
    gc.collect()
    simulate(50, 5, 50, callers=2)
    assert gc.collect() < 50


def test_progress_goes_from_nothing_to_all() -> None:
    seen: list[Progress] = []
    simulate(50, 5, 50, compare="full,none", parts=2, progress=seen.append)
    shares = [each.share for each in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {each.policy for each in seen} == {"full", "none"}


async def test_it_works_where_a_loop_runs() -> None:
    assert simulate(5, 1, 50)[0].connected == 5
    assert asyncio.get_running_loop().is_running()


def test_a_wait_that_raises_ends_it() -> None:
    def broken(state: object) -> float:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        simulate(5, 1, 50, Policy(wait=broken))
    with pytest.raises(ConfigError, match="wait=nan"):
        simulate(5, 1, 50, Policy(wait=lambda state: math.nan))


def test_an_interrupt_leaves_no_task() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.attempts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(5, 10, 50, progress=interrupt)


def test_importing_the_package_does_not_import_it() -> None:
    code = "import sys, aioconnect; print('aioconnect.simulation' in sys.modules, callable(aioconnect.simulate))"
    assert child(code) == "False True\n"


@pytest.mark.parametrize(
    "before", ["aioconnect.simulation", "aioconnect.cli.simulate", "aioconnect.simulation.running"]
)
def test_simulate_is_the_function_whatever_was_imported_before(before: str) -> None:
    assert child(f"import {before}, aioconnect; print(aioconnect.simulate.__qualname__)") == "simulate\n"


def test_no_other_name_appears_by_itself() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simulated'"):
        _ = aioconnect.simulated  # type: ignore[attr-defined]


# Policies by name


def test_names_are_variations_on_the_policy() -> None:
    found = policies("maximum=60s,attempt_timeout=2s", "equal,breaker=off,fixed")
    assert list(found) == ["maximum=60s,attempt_timeout=2s", "equal", "breaker=off", "fixed"]
    assert {each.attempt_timeout for each in found.values()} == {2.0}
    assert found["equal"].wait == Backoff(maximum=60.0, jitter="equal")
    assert found["breaker=off"].breaker is None
    assert found["fixed"].wait == CommonWait("fixed")


def test_a_policy_that_is_among_the_variations_is_there_once() -> None:
    assert list(policies("full", "full,none")) == ["full", "none"]
    assert list(policies(None, "equal")) == ["equal"]
    assert list(policies(None, None)) == ["full"]


def test_policies_come_in_many_shapes() -> None:
    wait = wait_fixed(1)
    policy = Policy(wait=wait)
    assert policies(policy, None) == {"policy": policy}
    assert policies({"mine": policy, "theirs": "stamina"}, None)["theirs"].wait == CommonWait("stamina")
    assert policies(["full", policy], None) == {"full": Policy(), "policy 2": policy}
    assert policies(wait, None)["policy"].wait is wait
    assert policies(None, {"a": policy, "b": "none"})["b"].wait == Backoff(jitter="none")
    assert policies("initial=1s,factor=3,jitter=equal,max_attempts=7,timeout=off,budget=on", None).popitem()[
        1
    ] == Policy(wait=Backoff(1, 5, 3, "equal"), max_attempts=7, timeout=None, budget=aioconnect.RetryBudget())


def test_a_common_wait_is_a_value() -> None:
    wait = CommonWait("grpc")
    assert pickle.loads(pickle.dumps(wait)) == wait
    assert repr(wait) == "CommonWait('grpc')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": 0}, "clients=0: must be an integer from 1 to 100000000"),
        ({"clients": -5}, "clients=-5: must be an integer from 1 to 100000000"),
        ({"accept_rate": -200}, "accept_rate=-200: must be a number of connections a second, more than 0"),
        ({"accept_rate": "fast"}, "accept_rate='fast': must be a number of connections a second, more than 0"),
        ({"accept_rate": math.nan}, "accept_rate=nan: must be a number of connections a second, more than 0"),
        ({"outage": "-1s"}, "outage='-1s': must be at least 0 and finite"),
        ({"outage": "soon"}, "outage='soon': must be a number of seconds, or a text such as '250ms', '2s', '1m'"),
        ({"backlog": -1}, "backlog=-1: must be a finite number, 0 or more"),
        ({"down": "broken"}, "down='broken': must be one of refused, silent"),
        ({"overflow": "lost"}, "overflow='lost': must be one of dropped, refused"),
        ({"limits": "no"}, "limits='no': must be True or False"),
        ({"callers": 1.5}, "callers=1.5: must be an integer from 1 to 100000000"),
        ({"processes": 0}, "processes=0: must be an integer from 1 to 1024"),
        ({"parts": 0}, "parts=0: must be an integer from 1 to 100000"),
        ({"policy": "ful"}, "policy='ful': 'ful' is no policy; did you mean full?"),
        ({"policy": "jiter=full"}, "policy='jiter=full': 'jiter' is no setting; did you mean jitter?"),
        ({"policy": "initial=1s,fixed"}, "policy='initial=1s,fixed': fixed has no initial"),
        ({"policy": "initial=-1s"}, "policy.initial='-1s': must be at least 0 and finite"),
        ({"policy": "factor=two"}, "policy.factor='two': must be a finite number, at least 1"),
        ({"policy": "max_attempts=0"}, "policy.max_attempts=0: must be an integer, 1 or more"),
        ({"policy": "breaker=maybe"}, "policy.breaker='maybe': must be on or off"),
        ({"policy": 5}, "policy=5: must be a Policy, a wait, or a text such as"),
        ({"policy": []}, "policy=(): must be at least one policy"),
        ({"compare": "full,gprc"}, "compare='gprc': 'gprc' is no policy; did you mean grpc?"),
        ({"compare": 5}, "compare=5: must be a Policy, a wait, or a text such as"),
    ],
)
def test_what_makes_no_sense_gets_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        simulate(**arguments)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems") as caught:
        simulate(0, "soon", policy="ful")
    assert [problem.partition("=")[0] for problem in caught.value.problems] == ["clients", "outage", "policy"]


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="latency"):
        simulate(latency=1)  # type: ignore[call-arg]


def test_contention_takes_no_nonsense() -> None:
    with pytest.raises(ConfigError, match=r"3 problems: clients=0.*trials=-1.*wait=5"):
        contend(5, clients=0, trials=-1)  # type: ignore[arg-type]


# The report


@pytest.fixture(scope="module")
def report() -> Report:
    return simulate(200, 5, 50, compare="full,none", connect_timeout=1)


def test_outcomes_are_found_by_name_and_number(report: Report) -> None:
    assert report["none"] is report[1]
    assert [each.name for each in report] == ["full", "none"]
    assert len(report) == 2
    assert repr(report) == "<Report full, none>"
    assert repr(report[0]).startswith("<Outcome 'full' attempts=")
    with pytest.raises(KeyError, match="did you mean none"):
        report["non"]


def test_the_text_has_the_figures_and_the_bars(report: Report) -> None:
    text = report.text(80)
    lines = text.splitlines()
    assert lines[0] == "200 clients lose their server for 5 s; until it is back dials are refused."
    assert max(map(len, lines)) <= 80
    full = report["full"]
    row = next(line for line in lines if line.startswith("full "))
    assert row.split()[1:6] == [
        f"{full.attempts:,}",
        f"{full.attempts_per_client:.1f}",
        f"{full.peak_down:,}",
        f"{full.peak_per_second:,}",
        f"{full.peak_per_100ms:,}",
    ]
    assert "█" in text
    assert "back" in lines[-1]


def test_the_text_gets_by_with_ascii(report: Report) -> None:
    assert report.text(ascii_only=True).isascii()


def test_bars_are_there_for_whatever_arrives() -> None:
    """A single attempt beside thousands is a low bar, not none."""
    scenario = Scenario(clients=1000, outage=1, accept_rate=1000)
    outcome = Outcome("x", scenario, 1001, {0: 1000, 9: 1}, array("d", [1.0]), {1: 1}, {}, 0, 0, "")
    bars = Report(scenario, [outcome]).text(100).splitlines()[-4]
    assert bars.count("▁") == 1


def test_nobody_at_all_makes_a_report_too() -> None:
    text = str(simulate(3, 5, 50, Policy(max_attempts=1), limits=True))
    assert "policy: 3 gave up (attempts)" in text
    assert "never" in text


def test_figures_of_a_second_slide() -> None:
    scenario = Scenario(clients=10, outage=1, accept_rate=10)
    outcome = Outcome("x", scenario, 10, {-2: 1, -1: 2, 0: 3, 9: 4, 10: 5}, array("d"), {}, {}, 0, 0, "")
    assert (outcome.peak_per_second, outcome.peak_per_100ms, outcome.peak_down) == (9, 5, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("PDF", b"%PDF")])
def test_it_draws(report: Report, tmp_path: Path, ending: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"herd.{ending}"
    report.plot(str(path))
    drawn = path.read_bytes()
    assert drawn.startswith(begins)
    if ending == "svg":
        report.plot(str(path))
        assert path.read_bytes() == drawn


@pytest.mark.parametrize(
    ("path", "message"),
    [("herd.gif", "must end with .svg, .png, .pdf"), ("/nowhere/herd.svg", "must be in a directory that exists")],
)
def test_what_cannot_be_drawn_is_said_before(report: Report, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        report.plot(path)


def test_without_matplotlib_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import aioconnect\n"
        "report = aioconnect.simulate(2, 1, 50)\n"
        "try: report.plot('x.svg')\n"
        "except aioconnect.ConfigError as error: print(error)"
    )
    assert child(code) == "plot=None: needs the extra plot: pip install 'aioconnect[plot]'\n"


# The loop


def test_timers_run_in_the_order_of_time_then_of_making() -> None:
    loop, ran = CrowdedServer(Scenario()).loop, list[object]()
    loop.call_at(2, ran.append, "c")
    loop.call_at(1, ran.append, "a")
    loop.call_at(1, ran.append, "b")
    loop.call_later(3, ran.append, "never").cancel()
    loop.call_soon(ran.append, "first")
    assert not loop.run_until(10)
    assert (ran, loop.time()) == (["first", "a", "b", "c"], 2)


def test_a_limit_leaves_the_rest_for_later() -> None:
    loop, ran = CrowdedServer(Scenario()).loop, list[object]()
    loop.call_at(1, ran.append, 1)
    loop.call_at(2, ran.append, 2)
    assert loop.run_until(1)
    assert ran == [1]
    assert not loop.run_until(2)
    assert ran == [1, 2]


def test_cancelled_timers_do_not_add_up() -> None:
    loop = CrowdedServer(Scenario()).loop
    kept = loop.call_at(5, list)
    for _ in range(50_000):
        loop.call_at(1, list).cancel()
    assert loop._waiting < 25_000
    assert not kept.cancelled()
    assert not loop.run_until(10)
    assert loop.time() == 5


def test_what_nobody_catches_is_raised() -> None:
    loop: FleetLoop = CrowdedServer(Scenario()).loop
    with pytest.raises(RuntimeError, match="a bug"):
        loop.call_exception_handler({"message": "a bug"})
    loop.call_soon(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run_until(1)
    assert not loop.is_running()
    assert not loop.is_closed()
    assert not loop.get_debug()
