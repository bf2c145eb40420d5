"""Calls that share a circuit and a retry budget: through connectors, mostly over a simulated network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable
from typing import Any
from unittest import mock

import pytest
import tenacity

import aioconnect
from aioconnect import Backoff, CircuitBreaker, Connection, Connector, Endpoint, NotReady, Policy, RetryBudget, errors
from aioconnect.testing import network as simulated
from aioconnect.testing.cancel import EAGER, cancel_everywhere
from aioconnect.testing.running import run
from tests.support.clock import VirtualLoop, virtual
from tests.support.garbage import garbage_of
from tests.support.listeners import closed_port
from tests.support.network import SILENT, Network, Reply
from tests.support.peers import Authority

A, B = "10.0.0.1", "10.0.0.2"
URL = f"tcp://{A}:80"
OTHER = f"tcp://{B}:80"
REFUSES = Reply(0.1, errno.ECONNREFUSED)
REFUSES_AT_ONCE = Reply(0, errno.ECONNREFUSED)
SHORT_OF_FILES = Reply(0, errno.EMFILE)
ANSWERS = Reply(0.1)
SECOND = tenacity.wait_fixed(1)
ONE = CircuitBreaker(failures=1)
EVEN = Policy(wait=SECOND, attempt_timeout=5, timeout=60, breaker=CircuitBreaker(failures=3))
"""A second between attempts, and open after three of them."""

Outcome = Any


async def outcome(call: Awaitable[Any]) -> Outcome:
    """The error a call ends with, or ``None`` once it has a socket, which is closed."""
    try:
        sock = await call
    except Exception as exc:  # noqa: BLE001  (to be looked at)
        return exc
    sock.close()
    return None


def crowd(connector: Connector, count: int, timeout: float | None = None) -> list[asyncio.Task[Outcome]]:
    return [asyncio.ensure_future(outcome(connector.dial(timeout))) for _ in range(count)]


def network_of(reply: Reply | list[Reply], **later: Reply) -> Network:
    return Network.of_loop({A: reply, B: reply})


def change_at(network: Network, when: float, reply: Reply) -> None:
    network.loop.call_at(when, setattr, network, "replies", {A: reply, B: reply})


def starts(network: Network) -> list[float]:
    return [round(at, 6) for _, at in network.started]


def assert_at_rest(connector: Connector) -> None:
    gate = connector.record.gate
    assert (gate.inside, gate.waiting) == (0, 0)
    assert not connector.record.resting


@virtual
async def test_a_silent_peer_is_probed_at_the_pace_of_the_schedule() -> None:
    """The lease of a probe outlasts the probe, so what it meets counts, and the pause after it is kept."""
    network = network_of(SILENT)
    connector = Connector(URL, EVEN.replace(breaker=ONE, attempt_timeout=2))
    await asyncio.gather(*crowd(connector, 5, 20))
    assert starts(network) == [0, 3, 6, 9, 12, 15, 18]
    assert connector.circuit.failures >= 6
    assert network.most == 1


@virtual
async def test_a_shortage_of_this_host_is_no_reason_to_hurry() -> None:
    """A probe that never left this host gives its lease back; the call goes on at its own pace, and lets others run."""
    network = network_of([REFUSES, SHORT_OF_FILES])
    connector = Connector(URL, EVEN.replace(breaker=ONE))
    error = await outcome(connector.dial(10))
    assert isinstance(error, errors.TooManyOpenFiles)
    assert len(network.started) < 15
    assert connector.circuit.failures == 1


@virtual
async def test_without_pauses_others_still_run() -> None:
    network_of(REFUSES_AT_ONCE)
    connector = Connector(URL, Policy(wait=tenacity.wait_none(), timeout=None, max_attempts=200))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await outcome(connector.dial())
    counting.cancel()
    assert turns >= 200


@virtual
@pytest.mark.parametrize("wait", [tenacity.wait_exception(lambda error: 1.0), lambda state: state.seconds_since_start])
async def test_a_wait_may_look_at_the_whole_state(wait: Any) -> None:
    network_of(REFUSES)
    connector = Connector(URL, Policy(wait=wait, timeout=10, breaker=CircuitBreaker(failures=2)))
    error = await outcome(connector.dial())
    assert isinstance(error, errors.ConnectRefused)
    assert connector.circuit.state == "open"


@virtual
async def test_a_call_pays_for_the_retries_it_makes_only() -> None:
    """One that has paid, and then met an open circuit, has its token back."""
    network = network_of(REFUSES)
    budget = RetryBudget(ratio=0, floor=0.001, burst=10)
    connector = Connector(URL, EVEN.replace(budget=budget, breaker=CircuitBreaker(failures=2)))
    calls = crowd(connector, 3, 5.0)
    await asyncio.gather(*calls)
    till = connector.record.till
    assert till is not None
    paid = 10 - till.tokens.left(network.loop.time())
    assert paid < 0.1


@virtual
async def test_first_tries_pay_into_the_budget() -> None:
    network_of(REFUSES)
    policy = Policy(max_attempts=1, budget=RetryBudget(ratio=0.5, floor=0.001, burst=10), breaker=None)
    connector = Connector(URL, policy)
    till = connector.record.till
    assert till is not None
    for _ in range(10):
        assert till.tokens.take(0)
    for _ in range(4):
        await outcome(connector.dial())
    assert till.tokens.left(0) == pytest.approx(2)


@virtual
async def test_a_first_try_serves_those_who_wait_for_a_token() -> None:
    """The only ones who do, without a floor; and a retry that is good serves the next."""
    network = network_of([REFUSES, REFUSES, REFUSES, ANSWERS])
    policy = EVEN.replace(budget=RetryBudget(ratio=1, floor=0, burst=1), breaker=None)
    connector = Connector(URL, policy)
    waiting = crowd(connector, 2)
    await asyncio.sleep(10)
    till = connector.record.till
    assert till is not None
    assert (till.waiting, till.tokens.left(10)) == (2, 0)
    assert await outcome(connector.dial()) is None
    await asyncio.sleep(0.2)
    assert [call.done() for call in waiting] == [True, True]
    assert starts(network) == [0, 0, 1.1, 10, 10, 10.1]
    assert till.tokens.left(20) == 1


@virtual
async def test_no_breaker_and_a_loss_of_a_connection() -> None:
    """What goes wrong is undone by what goes well, with and without a breaker."""
    network = network_of([REFUSES, ANSWERS])
    connector = Connector(URL, Policy(breaker=None, max_attempts=1))
    await outcome(connector.dial())
    connector.circuit.doubted()
    await outcome(connector.dial())
    assert connector.circuit.failures == 0
    assert connector.circuit.last_error is None
    assert connector.stats().reachable is True
    assert network.open == []


@virtual
async def test_the_times_of_a_refusal_count_from_zero() -> None:
    network_of(REFUSES_AT_ONCE)
    connector = Connector(
        URL, EVEN.replace(breaker=CircuitBreaker(1, "fail"), max_attempts=1, wait=tenacity.wait_fixed(4))
    )
    await outcome(connector.dial())
    await asyncio.sleep(3)
    refusal = await outcome(connector.dial())
    assert isinstance(refusal, errors.CircuitOpen)
    assert (refusal.since, refusal.retry_in) == (3, 1)


def test_a_budget_is_shared_in_every_loop() -> None:
    policy = Policy(budget=RetryBudget(burst=3), max_attempts=1)
    first = Connector(URL, policy)
    second = Connector(OTHER, policy, share=first)

    async def main() -> None:
        network_of(ANSWERS)
        await outcome(first.dial())
        await outcome(second.dial())

    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
        assert first.record.till is not None
        assert first.record.till is second.record.till


def test_what_a_closed_loop_left_in_line_does_no_harm() -> None:
    """In front of an open circuit, at the till, in the middle of a probe, with a lease on its way."""
    connector = Connector(URL, EVEN.replace(breaker=ONE, attempt_timeout=30))
    poor = Connector(OTHER, EVEN.replace(breaker=None, budget=RetryBudget(ratio=0, floor=0.01, burst=1)))
    left: list[Any] = []

    async def main() -> None:
        network = network_of(REFUSES)
        change_at(network, 0.9, SILENT)
        left.extend(asyncio.ensure_future(made.dial()) for made in (connector, poor) for _ in range(4))
        await asyncio.sleep(2)
        assert (connector.circuit.state, connector.record.gate.waiting) == ("half_open", 3)
        assert poor.record.till is not None
        assert poor.record.till.waiting == 3
        asyncio.get_running_loop().stop()

    loop = VirtualLoop()
    task = loop.create_task(main())
    loop.run_forever()
    loop.close()
    with mock.patch.object(logging.getLogger("asyncio"), "disabled", new=True):
        for one in left:
            one.get_coro().close()
        del task, one
        left.clear()
        gc.collect()
    assert connector.record.gate.waiting == 0


# ------------------------------------------------------------------------------------------ who hangs up


class Hangs:
    """A server that ends each connection at once in a certain way; or keeps it."""

    def __init__(self, how: str, authority: Authority | None = None, version: ssl.TLSVersion | None = None) -> None:
        self.how = how
        self.accepted = 0
        self.kept: list[Any] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.tls = None if authority is None else authority.server_context()
        if self.tls is not None and version is not None:
            self.tls.maximum_version = version
        self.endpoint = Endpoint(
            "127.0.0.1",
            self.listener.getsockname()[1],
            tls=None if authority is None else aioconnect.TLS(ca_file=authority.ca_file),
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            with contextlib.suppress(OSError):
                self._end(sock if self.tls is None else self.tls.wrap_socket(sock, server_side=True))

    def _end(self, sock: Any) -> None:
        # Not before the client has seen that it is connected.
        time.sleep(0.01)
        if self.how == "speaks":
            sock.sendall(b"hello")
        if self.how == "says goodbye":
            sock = sock.unwrap()
        elif self.how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif self.how == "stays":
            self.kept.append(sock)
            return
        # Beneath TLS, so that nothing is said.
        socket.socket(fileno=sock.detach()).close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        for sock in self.kept:
            sock.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


HANGUPS = [
    (None, "fin"),
    (None, "reset"),
    (ssl.TLSVersion.TLSv1_3, "fin"),
    (ssl.TLSVersion.TLSv1_3, "says goodbye"),
    (ssl.TLSVersion.TLSv1_3, "reset"),
    (ssl.TLSVersion.TLSv1_2, "fin"),
    (ssl.TLSVersion.TLSv1_2, "says goodbye"),
    (ssl.TLSVersion.TLSv1_2, "reset"),
]


async def ended_connection(connector: Connector) -> aioconnect.Connection:
    connection = await connector.connect()
    while not connection.is_closing:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    return connection


@pytest.mark.parametrize(("version", "how"), HANGUPS)
async def test_a_peer_that_takes_connections_and_drops_them(
    version: ssl.TLSVersion | None, how: str, authority: Authority
) -> None:
    """Each counts as a failed dial, and the good dial between does not end the row."""
    server = Hangs(how, authority if version else None, version)
    try:
        connector = Connector(server.endpoint, Policy(breaker=CircuitBreaker(3, "fail"), wait=tenacity.wait_fixed(60)))
        for count in range(1, 4):
            connection = await ended_connection(connector)
            assert connector.circuit.failures == count
            connection.abort()
        refusal = await outcome(connector.connect())
        assert isinstance(refusal, errors.CircuitOpen)
        assert isinstance(refusal.__cause__, errors.ConnectReset)
        # A probe that is good, and dropped again: the count goes on where it was.
        connector.retry_now()
        (await ended_connection(connector)).abort()
        assert (connector.circuit.state, connector.circuit.failures) == ("open", 4)
        assert connector.losses == (4 if how == "reset" else 0)
        assert server.accepted == 4
    finally:
        server.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_peer_that_has_spoken_may_hang_up(tls: bool, authority: Authority) -> None:
    server = Hangs("speaks", authority if tls else None)
    try:
        connector = Connector(server.endpoint, Policy(breaker=ONE))
        connection = await connector.connect()
        assert await connection.read() == b"hello"
        await asyncio.sleep(0.01)
        connection.abort()
        assert (connector.circuit.state, connector.circuit.failures) == ("closed", 0)
    finally:
        server.close()


def by_transport(connection: aioconnect.Connection) -> None:
    connection.writer.transport.abort()


def by_writer(connection: aioconnect.Connection) -> None:
    connection.writer.close()


@pytest.mark.parametrize("close", [by_transport, by_writer, aioconnect.Connection.abort])
async def test_our_own_close_is_no_failure(close: Any) -> None:
    server = Hangs("stays")
    try:
        connector = Connector(server.endpoint, Policy(breaker=ONE))
        connection = await connector.connect()
        close(connection)
        await asyncio.sleep(0.01)
        assert (connector.circuit.failures, connector.losses) == (0, 0)
        assert isinstance(connection.lost, errors.AlreadyClosed)
    finally:
        server.close()


async def test_a_wait_that_raises_as_the_peer_hangs_up() -> None:
    """The streams hear of the loss all the same."""
    server = Hangs("reset")
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    try:
        connector = Connector(server.endpoint, Policy(breaker=ONE, wait=lambda state: math.nan))
        connection = await connector.connect()
        with pytest.raises(errors.ConnectionResetByPeer):
            await connection.read()
        connection.abort()
        assert [type(each) for each in reported] == [errors.ConfigError]
        assert (connector.circuit.state, connector.circuit.failures) == ("closed", 1)
    finally:
        server.close()


async def test_a_peer_that_has_hung_up_before_the_connection_is_handed_out() -> None:
    """While the last steps are made it is nobody's yet; it counts once the dial itself is known to be good."""
    server = Hangs("fin")

    class Late(Connector):
        async def _to_connection(self, *args: Any) -> aioconnect.Connection:
            connection = await super()._to_connection(*args)
            writer = connection.writer
            keeper, writer._protocol.keeper = writer._protocol.keeper, None
            while not connection.is_closing:
                await asyncio.sleep(0.001)
            assert keeper is self
            writer.kept_by(self, asyncio.get_running_loop().time())
            return connection

    try:
        connector = Late(server.endpoint, Policy(breaker=ONE))
        connection = await connector.connect()
        await asyncio.sleep(0)
        assert (connector.circuit.state, connector.circuit.failures) == ("open", 1)
        connection.abort()
    finally:
        server.close()


# ------------------------------------------------------------------------------------------ shared outcomes


def told(error: Any) -> tuple[Any, ...]:
    """Class, stop reason, and of each attempt the code and whether it was another's."""
    return type(error), error.stop_reason, [(attempt.error.code, attempt.shared) for attempt in error.attempts]


async def opened(connector: Connector) -> None:
    """Open the circuit of a policy with one failure."""
    await outcome(connector.dial())
    assert connector.circuit.state == "open"


def once(connector: Connector) -> Connector:
    """For a call that opens the circuit and is gone."""
    return Connector(connector.endpoint, connector.policy.replace(max_attempts=1), share=connector)


@virtual
async def test_all_who_wait_share_what_the_probe_meets() -> None:
    """Each within its own limits, each with a copy of its own. Who has probed is first in line again."""
    network = network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE))
    await opened(once(connector))
    calls = crowd(connector, 3, 4.0)
    picky = Connector(URL, EVEN.replace(never_retry_on={"ECONNREFUSED"}), share=connector)
    few = Connector(URL, EVEN.replace(max_attempts=2), share=connector)
    stopped = Connector(URL, EVEN.replace(stop=lambda state: state.attempt_number == 3), share=connector)
    calls += [asyncio.ensure_future(outcome(each.dial())) for each in (picky, few, stopped)]
    ends = await asyncio.gather(*calls)
    shared, own = ("ECONNREFUSED", True), ("ECONNREFUSED", False)
    assert told(ends[3]) == (errors.ConnectRefused, "permanent", [shared])
    assert told(ends[4]) == (errors.ConnectRefused, "attempts", [shared] * 2)
    assert told(ends[5]) == (errors.ConnectRefused, "stop", [shared] * 3)
    assert told(ends[0]) == (errors.ConnectRefused, "timeout", [own] * 3)
    assert [told(end) for end in ends[1:3]] == [(errors.CircuitOpen, "timeout", [shared] * 3)] * 2
    assert starts(network) == [0, 1.1, 2.2, 3.3]
    every = [attempt.error for end in ends for attempt in end.attempts]
    assert len({id(error) for error in every}) == len(every)
    assert all(error.__traceback__ is None and error.__cause__ is None for error in every)
    assert_at_rest(connector)


@virtual
async def test_a_permanent_answer_ends_all() -> None:
    network = network_of([REFUSES, Reply(0.1, errno.EPROTOTYPE)])
    connector = Connector(URL, EVEN.replace(breaker=ONE))
    await opened(once(connector))
    ends = await asyncio.gather(*crowd(connector, 4))
    assert {(type(end), end.code, end.stop_reason) for end in ends} == {
        (errors.ConnectError, "EPROTOTYPE", "permanent")
    }
    assert [[attempt.shared for attempt in end.attempts] for end in ends] == [[False], [True], [True], [True]]
    assert len({id(end) for end in ends}) == 4
    assert len(network.started) == 2
    # It says nothing of whether the peer is up: the next who comes may ask.
    assert (connector.circuit.state, connector.circuit.failures) == ("open", 1)
    assert connector.circuit.probe_due <= network.loop.time()
    assert_at_rest(connector)


@virtual
async def test_who_has_dialed_is_told_of_that_and_not_of_the_circuit() -> None:
    network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(30)))
    first, second = await asyncio.gather(*crowd(connector, 2, 10))
    assert told(first)[:2] == (errors.ConnectRefused, "timeout")
    third = await outcome(connector.dial(3))
    assert told(third) == (errors.CircuitOpen, "timeout", [])
    assert third.__cause__ is connector.circuit.last_error
    assert (third.attempt_count, third.errors, third.endpoint, third.phase) == (0, (), URL, "wait")
    del second


@virtual
async def test_a_call_that_has_dialed_and_is_alone_dials_a_last_time() -> None:
    network = network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(30)))
    error = await outcome(connector.dial(10.1))
    assert starts(network) == [0, 5.1]
    assert told(error) == (errors.ConnectRefused, "timeout", [("ECONNREFUSED", False)] * 2)
    assert network.loop.time() == pytest.approx(5.2)


@virtual
async def test_a_call_that_has_not_dialed_brings_nothing_forward() -> None:
    network = network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(30)))
    await opened(once(connector))
    assert isinstance(await outcome(connector.dial(10)), errors.CircuitOpen)
    # Nor one that knows the outcome of a probe it has not made.
    connector.retry_now()
    probing = asyncio.ensure_future(outcome(once(connector).dial()))
    waiting = asyncio.ensure_future(outcome(connector.dial(10)))
    await probing
    error = await waiting
    assert told(error) == (errors.CircuitOpen, "timeout", [("ECONNREFUSED", True)])
    assert starts(network) == [0, 10.1]


@virtual
async def test_in_company_nobody_brings_a_probe_forward() -> None:
    network = network_of([ANSWERS, REFUSES])
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(30)))
    await outcome(connector.dial())
    ends = await asyncio.gather(*crowd(connector, 2, 10))
    assert [told(end) for end in ends] == [(errors.ConnectRefused, "timeout", [("ECONNREFUSED", False)])] * 2
    assert starts(network) == [0, 0.1, 0.1]
    assert network.loop.time() == pytest.approx(10.1)


@virtual
async def test_a_last_attempt_that_another_has_made_pointless_is_not_the_last() -> None:
    """The outcome of another's probe has the call count anew what is left."""
    network = network_of([REFUSES, REFUSES, ANSWERS])
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_chain(*map(tenacity.wait_fixed, (30, 1)))))
    call = asyncio.ensure_future(outcome(connector.dial(20)))
    await asyncio.sleep(2)
    connector.retry_now()
    assert isinstance(await call, errors.ConnectRefused)
    assert starts(network)[:2] == [0, 2]


@virtual
async def test_a_crowd_whose_time_is_up_at_once() -> None:
    network = network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(5)))
    await opened(once(connector))
    ends = await asyncio.gather(*crowd(connector, 2000, 2.0))
    assert {type(end) for end in ends} == {errors.CircuitOpen}
    assert network.loop.time() == pytest.approx(2.1)
    assert_at_rest(connector)
    assert connector.record.gate._timer is None
    assert await outcome(connector.dial(4)) is not None
    assert starts(network)[:2] == [0, 5.1]


@virtual
async def test_the_limit_of_the_call_that_probes_is_not_that_of_the_others() -> None:
    network_of([REFUSES, SILENT, SILENT])
    connector = Connector(URL, EVEN.replace(breaker=ONE, timeout=20))
    await opened(once(connector))
    probing = asyncio.ensure_future(outcome(connector.dial(3.0)))
    few = Connector(URL, EVEN.replace(max_attempts=1), share=connector)
    waiting = asyncio.ensure_future(outcome(few.dial()))
    assert (await probing).source == "call"
    error = await waiting
    assert (type(error), error.source, error.stop_reason) == (errors.ConnectTimeout, "attempt", "attempts")
    assert [attempt.error.source for attempt in error.attempts] == ["attempt"]


# ------------------------------------------------------------------------------------------ what counts


@virtual
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.EPROTOTYPE, errno.EBADF])
async def test_what_says_nothing_of_the_peer_does_not_count(number: int) -> None:
    network_of(Reply(0, number))
    connector = Connector(URL, Policy(breaker=ONE, max_attempts=3, wait=tenacity.wait_none()))
    await asyncio.gather(*crowd(connector, 10))
    assert (connector.circuit.state, connector.circuit.failures, connector.circuit.last_error) == ("closed", 0, None)


@virtual
async def test_a_cancelled_dial_does_not_count_and_gives_its_lease_back() -> None:
    network = network_of([REFUSES, SILENT])
    connector = Connector(URL, EVEN.replace(breaker=ONE))
    await opened(once(connector))
    first, second, third = crowd(connector, 3)
    await asyncio.sleep(1.5)
    assert connector.circuit.state == "half_open"
    first.cancel()
    await asyncio.sleep(0.1)
    assert connector.circuit.state == "half_open"
    second.cancel()
    third.cancel()
    await asyncio.wait([first, second, third])
    assert (connector.circuit.state, connector.circuit.failures) == ("open", 1)
    assert starts(network) == [0, 1.1, 1.6]
    assert_at_rest(connector)


@virtual
@pytest.mark.parametrize("times", [1, 2])
async def test_a_lease_on_its_way_to_one_who_is_cancelled_goes_on(times: int) -> None:
    network = network_of([REFUSES, ANSWERS])
    connector = Connector(URL, EVEN.replace(breaker=ONE))
    await opened(once(connector))
    first, second, third = crowd(connector, 3)
    await asyncio.sleep(0.5)
    connector.retry_now()
    for _ in range(times):
        first.cancel()
        second.cancel()
    assert await third is None
    assert first.cancelled() or first.done() is False
    await asyncio.wait([first, second])
    assert starts(network) == [0, 0.6]
    assert connector.circuit.state == "closed"
    assert_at_rest(connector)


@virtual
async def test_a_timeout_in_line_has_the_last_error_behind_it() -> None:
    network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(30)))
    await opened(once(connector))

    async def bounded() -> None:
        async with asyncio.timeout(2):
            await connector.dial()

    async def while_handling() -> None:
        try:
            raise LookupError
        except LookupError:
            await bounded()

    for call in (bounded, while_handling):
        with pytest.raises(TimeoutError) as caught:
            await call()
        failure = errors.classify(caught.value)
        assert failure is not None
        assert failure.code == "ECONNREFUSED"


# ------------------------------------------------------------------------------------------ the window


@virtual
async def test_a_crowd_comes_back_one_more_for_each_success() -> None:
    network = network_of(REFUSES)
    change_at(network, 0.5, ANSWERS)
    connector = Connector(URL, EVEN)
    served: list[int] = []

    async def caller(number: int) -> None:
        assert await outcome(connector.dial()) is None
        served.append(number)

    await asyncio.gather(*(caller(number) for number in range(30)))
    assert starts(network) == [0] * 3 + [0.1] * 2 + [1.1] + [1.2] * 2 + [1.3] * 4 + [1.4] * 8 + [1.5] * 15
    assert sorted(served) == list(range(30))
    # Those who were in line before it opened are first.
    assert served[0] == 5
    assert connector.circuit.window == math.inf
    assert connector.circuit.healthy
    assert_at_rest(connector)


@virtual
async def test_never_more_than_max_connecting_whatever_the_window() -> None:
    network = network_of(REFUSES)
    change_at(network, 0.5, ANSWERS)
    connector = Connector(URL, EVEN, max_connecting=2)
    assert await asyncio.gather(*crowd(connector, 20)) == [None] * 20
    assert network.most == 2
    assert starts(network)[4:9] == [1.2, 1.3, 1.3, 1.4, 1.4]


@virtual
async def test_who_was_not_let_in_is_told_why() -> None:
    network_of([REFUSES, SILENT])
    connector = Connector(URL, EVEN.replace(breaker=CircuitBreaker(2)))
    await outcome(once(connector).dial())
    ends = await asyncio.gather(*crowd(connector, 3, 0.8))
    assert [(type(end), end.phase, end.stop_reason) for end in ends] == [
        (errors.ConnectTimeout, "connect", "timeout"),
        (errors.ConnectTimeout, "connect", "timeout"),
        (errors.ConnectTimeout, "wait", "timeout"),
    ]
    assert "others were still finding out whether it answers" in str(ends[2])
    assert isinstance(ends[2].__cause__, errors.ConnectRefused)
    assert (ends[2].attempt_count, ends[2].errors) == (0, ())


# ------------------------------------------------------------------------------------------ not to wait


@virtual
async def test_who_is_not_to_wait_is_told_at_once() -> None:
    network = network_of([REFUSES, REFUSES, SILENT])
    seen: list[Any] = []
    policy = EVEN.replace(breaker=CircuitBreaker(1, "fail"), max_attempts=1, wait=tenacity.wait_fixed(5))
    connector = Connector(URL, policy, observers=[seen.append])
    await outcome(connector.dial())
    await asyncio.sleep(2)
    seen.clear()
    refusal = await outcome(connector.dial())
    assert (type(refusal), refusal.stop_reason, refusal.attempt_count) == (errors.CircuitOpen, "circuit", 0)
    assert (refusal.since, refusal.retry_in) == pytest.approx((2, 3))
    assert refusal.endpoint == URL
    assert isinstance(refusal.__cause__, errors.ConnectRefused)
    assert [type(event).__name__ for event in seen] == ["GaveUp"]
    assert network.loop.time() == pytest.approx(2.1)
    await asyncio.sleep(3)
    # Due: whoever comes first probes, and the others are refused meanwhile.
    first, second = crowd(connector, 2)
    assert isinstance(await second, errors.CircuitOpen)
    assert isinstance(await first, errors.ConnectRefused)
    assert starts(network) == [0, 5.1]


@pytest.mark.parametrize("when_open", ["wait", "fail"])
def test_each_call_may_say_whether_to_wait(when_open: Any) -> None:
    network = simulated.Network()
    server = network.serve("db", 80)
    server.stop()

    async def main() -> None:
        connector = Connector("tcp://db:80", EVEN.replace(breaker=CircuitBreaker(1, when_open)))
        await opened(once(connector))
        server.start()
        assert isinstance(await outcome(connector.connect(wait=False)), errors.CircuitOpen)
        waiting = asyncio.ensure_future(connector.connect(wait=True))
        await asyncio.sleep(0.5)
        assert connector.stats().waiting == 1
        (await waiting).abort()
        assert asyncio.get_running_loop().time() >= 1
        await asyncio.sleep(1)

    run(main(), network=network)


# ------------------------------------------------------------------------------------------ retry_now


@virtual
async def test_retry_now_ends_the_pauses_of_a_closed_circuit() -> None:
    network = network_of([REFUSES, REFUSES, ANSWERS])
    connector = Connector(URL, EVEN.replace(wait=tenacity.wait_fixed(30)))
    calls = crowd(connector, 2)
    await asyncio.sleep(2)
    connector.retry_now()
    assert await asyncio.gather(*calls) == [None, None]
    assert starts(network) == [0, 0, 2, 2]
    assert_at_rest(connector)
    connector.retry_now()


@virtual
async def test_retry_now_at_an_open_circuit() -> None:
    network = network_of([REFUSES, ANSWERS])
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(30)))
    calls = crowd(connector, 3)
    await asyncio.sleep(2)
    connector.retry_now()
    connector.retry_now()
    assert connector.circuit.state == "half_open"
    assert await asyncio.gather(*calls) == [None] * 3
    assert starts(network)[-3:] == [2, 2.1, 2.1] or starts(network)[3:] == [2, 2.1, 2.1]


@virtual
async def test_an_observer_may_call_back() -> None:
    """In the middle of what it is told: nobody is let in twice, and others run meanwhile."""
    network = network_of([REFUSES_AT_ONCE] * 50 + [ANSWERS])
    connectors: list[Connector] = []

    def observer(event: Any) -> None:
        connectors[0].retry_now()

    connectors.append(Connector(URL, EVEN.replace(wait=tenacity.wait_fixed(30)), observers=[observer]))
    assert await asyncio.gather(*crowd(connectors[0], 5)) == [None] * 5
    assert len(network.started) == 55
    assert_at_rest(connectors[0])


# ------------------------------------------------------------------------------------------ share, and loops


@virtual
async def test_what_is_shared() -> None:
    network_of(REFUSES)
    first = Connector(URL, EVEN.replace(breaker=ONE, budget=RetryBudget()))
    same = Connector(URL, EVEN, share=first)
    other = Connector(OTHER, EVEN.replace(breaker=ONE), share=first)
    stranger = Connector(URL, EVEN)
    await opened(once(first))
    assert same.circuit is first.circuit
    assert same.record is first.record
    assert (other.circuit.state, stranger.circuit.state) == ("closed", "closed")
    assert other.record.till is first.record.till
    assert stranger.record.till is None
    assert same.unlimited().record is first.record


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"share": 1}, "share=1: must be a Connector"),
        ({"max_connecting": 2}, "max_connecting=2: must not be given together with share, which has its own"),
    ],
)
def test_what_cannot_be_shared(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        Connector(URL, EVEN, **({"share": Connector(URL)} | settings))
    assert text in str(caught.value)
    Connector(OTHER, EVEN, share=Connector(URL), max_connecting=2)


def test_another_loop_begins_anew() -> None:
    connector = Connector(URL, EVEN.replace(breaker=ONE, wait=tenacity.wait_fixed(1000)))

    async def main() -> None:
        network = network_of(REFUSES)
        await outcome(connector.dial(5))
        assert starts(network)[0] == 0
        assert (connector.circuit.state, connector.circuit.since) == ("open", 0.1)

    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())


def test_a_budget_is_not_for_two_loops_at_once() -> None:
    first = Connector(URL, Policy(budget=RetryBudget()))
    second = Connector(OTHER, Policy(), share=first)

    async def use(connector: Connector) -> None:
        network_of(ANSWERS)
        await outcome(connector.dial())

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(use(first))
        with (
            asyncio.Runner(loop_factory=VirtualLoop) as another,
            pytest.raises(RuntimeError, match="another event loop"),
        ):
            another.run(second.dial())
    with asyncio.Runner(loop_factory=VirtualLoop) as third:
        third.run(use(second))


@virtual
@pytest.mark.parametrize("wait", [lambda state: math.nan, lambda state: 1 / 0])
async def test_a_wait_that_is_none(wait: Any) -> None:
    """It is the caller's, as without a circuit; and what is wrong with it stays with it."""
    network = network_of([REFUSES, REFUSES, REFUSES, ANSWERS])
    broken = Connector(URL, EVEN.replace(breaker=ONE, wait=wait))
    ends = await asyncio.gather(*crowd(broken, 3))
    assert {type(end) for end in ends} <= {errors.ConfigError, ZeroDivisionError}
    assert (broken.circuit.state, broken.circuit.failures) == ("closed", 3)
    assert_at_rest(broken)
    assert await outcome(broken.dial()) is None
    assert broken.circuit.failures == 0
    assert network.open == []


@virtual
@pytest.mark.parametrize("eager", EAGER)
async def test_cancelled_anywhere_in_line(eager: bool) -> None:
    network = network_of(REFUSES)
    connector = Connector(URL, EVEN.replace(breaker=ONE, budget=RetryBudget(floor=1, burst=1)))

    async def crowded() -> None:
        others = crowd(connector, 2, 3)
        try:
            await outcome(connector.dial(2.5))
        finally:
            for other in others:
                other.cancel()
            await asyncio.wait(others)

    def at_rest() -> None:
        assert_at_rest(connector)
        till = connector.record.till
        assert till is not None
        assert till.waiting == 0
        assert network.open == []

    runs = await cancel_everywhere(crowded, check=at_rest, eager=eager)
    assert runs > 5


async def test_nothing_waits_for_the_collector() -> None:
    """Not what is shared, nor what is refused, nor a budget that is empty."""
    address = closed_port()
    policy = Policy(
        wait=tenacity.wait_fixed(0.005),
        max_attempts=3,
        breaker=CircuitBreaker(2),
        budget=RetryBudget(ratio=0, floor=50, burst=1),
    )
    connector = Connector(f"tcp://127.0.0.1:{address}", policy)

    async def step() -> None:
        ends = await asyncio.gather(*(outcome(connector.dial()) for _ in range(5)))
        assert all(isinstance(end, errors.ConnectError) for end in ends)
        assert await outcome(connector.connect(wait=False)) is not None
        assert isinstance(await outcome(connector.dial(0.002)), errors.ConnectError)

    assert await garbage_of(step) == []
    assert connector.circuit.last_error is not None
    assert connector.circuit.last_error.__traceback__ is None


# ------------------------------------------------------------------------------------------ the retry budget


@virtual
@pytest.mark.parametrize("breaker", [CircuitBreaker(), None])
async def test_who_has_the_time_connects_with_a_budget_on(breaker: CircuitBreaker | None) -> None:
    """The endpoint comes back within the limit of its callers: all of them connect, and not as a herd."""
    network = network_of(REFUSES)
    change_at(network, 5.0, ANSWERS)
    budget = RetryBudget()
    policy = Policy(timeout=15, breaker=breaker, budget=budget, wait=Backoff(uniform=random.Random(0).uniform))
    connector = Connector(URL, policy)
    assert await asyncio.gather(*crowd(connector, 300)) == [None] * 300
    retries = sum(at < 5 for at in starts(network)) - (300 if breaker is None else 0)
    assert retries <= budget.burst + 5 * budget.floor + 1
    till = connector.record.till
    assert till is not None
    assert till.waiting == 0


@virtual
async def test_an_empty_budget_that_fails() -> None:
    network = network_of(REFUSES)
    budget = RetryBudget(ratio=0, floor=0.001, burst=2, when_empty="fail")
    connector = Connector(URL, EVEN.replace(breaker=None, budget=budget))
    first = await outcome(connector.dial())
    assert told(first) == (errors.ConnectRefused, "budget", [("ECONNREFUSED", False)] * 3)
    second = await outcome(connector.dial())
    assert told(second) == (errors.ConnectRefused, "budget", [("ECONNREFUSED", False)])
    assert len(network.started) == 4


@virtual
async def test_who_keeps_connections_waits_for_a_budget_that_fails_others() -> None:
    network = network_of([REFUSES] * 4 + [ANSWERS])
    budget = RetryBudget(ratio=0, floor=0.1, burst=1, when_empty="fail")
    connector = Connector(URL, EVEN.replace(breaker=None, budget=budget))
    assert await outcome(connector.unlimited().dial()) is None
    assert starts(network) == pytest.approx([0, 1.1, 10, 20, 30], abs=0.2)
    assert_at_rest(connector)


@virtual
async def test_an_empty_budget_that_waits_waits_within_the_limit() -> None:
    network_of(REFUSES)
    budget = RetryBudget(ratio=0, floor=0.001, burst=1)
    connector = Connector(URL, EVEN.replace(breaker=None, budget=budget))
    error = await outcome(connector.dial(10))
    assert told(error) == (errors.ConnectRefused, "timeout", [("ECONNREFUSED", False)] * 2)
    assert asyncio.get_running_loop().time() == pytest.approx(10)
    assert_at_rest(connector)


@virtual
async def test_who_waited_for_a_token_has_the_whole_attempt_before_it() -> None:
    """The limit of the attempt counts from when it begins."""
    network = network_of([REFUSES, Reply(4.0)])
    budget = RetryBudget(ratio=0, floor=0.1, burst=1)
    connector = Connector(URL, EVEN.replace(breaker=None, budget=budget))
    till = connector.record.till
    assert till is not None
    till.tokens.take(0)
    assert await outcome(connector.dial(30)) is None
    assert starts(network) == [0, 10]


@virtual
async def test_tokens_go_to_whoever_waits_longest() -> None:
    network = network_of(REFUSES)
    budget = RetryBudget(ratio=0, floor=0.5, burst=1)
    connector = Connector(URL, EVEN.replace(breaker=None, budget=budget, max_attempts=2))
    ended: list[tuple[int, float]] = []

    async def caller(number: int) -> None:
        await asyncio.sleep(number / 100)
        await outcome(connector.dial())
        ended.append((number, round(network.loop.time())))

    await asyncio.gather(*(caller(number) for number in range(5)))
    assert ended == [(0, 1), (1, 2), (2, 4), (3, 6), (4, 8)]


@virtual
async def test_a_budget_is_spent_by_all_who_share_it() -> None:
    network = network_of(REFUSES)
    budget = RetryBudget(ratio=0, floor=0.001, burst=3, when_empty="fail")
    first = Connector(URL, EVEN.replace(breaker=None, budget=budget))
    second = Connector(OTHER, EVEN.replace(breaker=None), share=first)
    await outcome(first.dial())
    await outcome(second.dial())
    assert len(network.started) == 2 + 3


# ------------------------------------------------------------------------------------------ prepare


@pytest.mark.parametrize("raised", [LookupError("a bug"), NotReady("warming up"), asyncio.CancelledError()], ids=repr)
def test_a_probe_whose_prepare_fails(raised: BaseException) -> None:
    """A foreign exception is the call's own affair, as a cancellation is: the lease goes to the next in line."""
    network = simulated.Network(latency=0.01)
    server = network.serve("db", 80)
    server.stop()
    made = 0

    async def prepare(_: Connection) -> None:
        nonlocal made
        made += 1
        if made == 1:
            await asyncio.sleep(0.1)
            raise raised

    async def main() -> None:
        connector = Connector("tcp://db:80", EVEN.replace(breaker=ONE), prepare)
        await opened(once(connector))
        server.start()
        first, second = (asyncio.ensure_future(connector.connect()) for _ in range(2))
        ends = await asyncio.gather(first, second, return_exceptions=True)
        if isinstance(raised, NotReady):
            # Permanent under this policy: to all.
            assert [type(end) for end in ends] == [NotReady, NotReady]
            assert [end.stop_reason for end in ends if isinstance(end, NotReady)] == ["permanent"] * 2
            return
        assert ends[0] is raised or isinstance(ends[0], asyncio.CancelledError)
        assert isinstance(ends[1], Connection)
        assert asyncio.get_running_loop().time() < 1.3
        assert connector.circuit.state == "closed"
        ends[1].abort()
        await asyncio.sleep(1)

    run(main(), network=network)


def test_a_prepare_that_loses_its_probe() -> None:
    """It swallows its time limit, and comes back long after its lease: what it says then still holds."""
    network = simulated.Network(latency=0.01)
    server = network.serve("db", 80)
    server.stop()
    made = 0

    async def prepare(connection: Connection) -> None:
        nonlocal made
        made += 1
        if made == 1:
            for _ in range(6):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)

    async def main() -> None:
        connector = Connector("tcp://db:80", EVEN.replace(breaker=ONE, attempt_timeout=2), prepare)
        await opened(once(connector))
        server.start()
        first, second = (asyncio.ensure_future(connector.connect()) for _ in range(2))
        (await second).abort()
        # The probe of the other began at 1 s; its lease was for a second more than its attempt.
        assert 4 <= asyncio.get_running_loop().time() < 4.2
        assert connector.circuit.state == "closed"
        (await first).abort()
        assert_at_rest(connector)
        await asyncio.sleep(1)

    run(main(), network=network)
