"""Calls that share a circuit and a retry budget: through connectors, mostly over a simulated network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
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
from aioconnect import CircuitBreaker, Connector, Endpoint, Policy, RetryBudget, errors
from tests.support.clock import VirtualLoop, virtual
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
