"""One endpoint, its attempts, and what is told of them: over a simulated network where that is enough."""

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
import threading
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
import tenacity
from hypothesis import strategies as st

import aioconnect
from aioconnect import (
    STARTING,
    TRANSIENT,
    Backoff,
    ConfigError,
    Connection,
    Connector,
    Endpoint,
    ErrnoSet,
    NotReady,
    Policy,
    errors,
    events,
)
from aioconnect.resolver import AddressInfo, Query
from aioconnect.testing.leaks import LogWatch
from tests.support import peers
from tests.support.clock import VirtualLoop, virtual
from tests.support.listeners import closed_port, listening, mute
from tests.support.network import SILENT, Network, Reply, infos
from tests.support.peers import Authority, Wire, serve

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
URL = f"tcp://{A}:80"
REFUSED = errno.ECONNREFUSED
ONCE = Policy(max_attempts=1, attempt_timeout=3, timeout=6)
EVEN = Policy(wait=Backoff(initial=1, maximum=1, factor=1, jitter="none"), attempt_timeout=5, timeout=60)
"""A second between attempts."""


def refuses(delay: float = 0.0) -> Reply:
    return Reply(delay, REFUSED)


async def error_of(call: Awaitable[object]) -> Any:
    with pytest.raises(errors.NetworkError) as caught:
        await call
    return caught.value


def figures(connector: Connector) -> list[Any]:
    return list(connector.stats())[:7]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# ------------------------------------------------------------------------------------------ what is raised, row by row


def told(error: Any) -> tuple[Any, ...]:
    """Class, stop reason, and the codes of its attempts."""
    return type(error), error.stop_reason, [attempt.error.code for attempt in error.attempts]


def assert_complete(error: Any, at: float) -> None:
    """What every error of a call has, whatever became of it."""
    assert error.endpoint == URL
    assert error.elapsed == pytest.approx(at)
    assert error.attempt_count == len(error.attempts)
    assert [attempt.number for attempt in error.attempts] == list(range(1, error.attempt_count + 1))
    assert error.errors
    assert error.errno is not None
    assert all(each.__traceback__ is None for each in [*error.errors, *(one.error for one in error.attempts)])
    assert isinstance(error.__cause__, type(error))
    assert all(error is not each for each in (error.__cause__, *(attempt.error for attempt in error.attempts)))


@virtual
async def test_an_error_that_is_not_selected() -> None:
    network = Network.of_loop({A: refuses(0.1)})
    connector = Connector(URL, EVEN.replace(never_retry_on=ErrnoSet({"ECONNREFUSED"})))
    error = await error_of(connector.dial())
    assert told(error) == (errors.ConnectRefused, "permanent", ["ECONNREFUSED"])
    assert_complete(error, 0.1)
    assert network.loop.time() == pytest.approx(0.1)


@virtual
async def test_the_attempts_are_used_up() -> None:
    network = Network.of_loop({A: refuses(0.1)})
    error = await error_of(Connector(URL, EVEN.replace(max_attempts=3)).dial())
    assert told(error) == (errors.ConnectRefused, "attempts", ["ECONNREFUSED"] * 3)
    assert_complete(error, 2.3)
    assert [attempt.started for attempt in error.attempts] == pytest.approx([0, 1.1, 2.2])
    assert [attempt.slept for attempt in error.attempts] == pytest.approx([1, 1, 0])
    assert [at for _, at in network.started] == pytest.approx([0, 1.1, 2.2])


@virtual
async def test_the_time_is_up_between_attempts() -> None:
    """A peer that refuses is not a time-out. The last sleep is cut so that one more attempt fits."""
    network = Network.of_loop({A: refuses(0.1)})
    error = await error_of(Connector(URL, EVEN.replace(timeout=2.55)).dial())
    assert told(error) == (errors.ConnectRefused, "timeout", ["ECONNREFUSED"] * 4)
    assert [attempt.slept for attempt in error.attempts] == pytest.approx([1, 1, 0.125, 0])
    assert network.loop.time() == pytest.approx(2.525)
    assert_complete(error, 2.525)


@virtual
async def test_the_time_is_up_inside_a_later_attempt() -> None:
    network = Network.of_loop({A: [refuses(0.1), SILENT]})
    error = await error_of(Connector(URL, EVEN.replace(timeout=3)).dial())
    assert told(error) == (errors.ConnectRefused, "timeout", ["ECONNREFUSED", "ETIMEDOUT"])
    assert error.attempts[-1].error.source == "call"
    assert network.loop.time() == pytest.approx(3)
    assert_complete(error, 3)
    assert network.open == []


@virtual
async def test_the_time_is_up_in_the_first_attempt_and_some_have_answered() -> None:
    Network.of_loop({A: SILENT, B: refuses(0.1), C: SILENT})
    error = await error_of(Connector(f"tcp://{A}:80,{B}:80,{C}:80", EVEN.replace(timeout=2)).dial())
    assert told(error) == (errors.ConnectRefused, "timeout", ["ECONNREFUSED"])
    assert [type(each) for each in error.errors] == [
        errors.ConnectTimeout,
        errors.ConnectRefused,
        errors.ConnectTimeout,
    ]
    assert error.address == (B, 80)
    assert error.elapsed == pytest.approx(2)


@virtual
async def test_the_time_is_up_in_the_first_attempt_and_none_has_answered() -> None:
    Network.of_loop({A: SILENT})
    error = await error_of(Connector(URL, EVEN.replace(timeout=2)).dial())
    assert told(error) == (errors.ConnectTimeout, "timeout", ["ETIMEDOUT"])
    assert (error.source, error.phase, error.errno) == ("call", "connect", errno.ETIMEDOUT)
    assert isinstance(error, TimeoutError)
    assert_complete(error, 2)


@virtual
async def test_attempts_that_time_out_are_repeated() -> None:
    network = Network.of_loop({A: [SILENT, SILENT, Reply(0.1)]})
    sock = await Connector(URL, EVEN).dial()
    assert network.loop.time() == pytest.approx(12.1)
    sock.close()
    network = Network.of_loop({A: SILENT})
    error = await error_of(Connector(URL, EVEN.replace(max_attempts=2)).dial())
    assert told(error) == (errors.ConnectTimeout, "attempts", ["ETIMEDOUT"] * 2)
    assert error.source == "attempt"


@virtual
async def test_a_tenacity_stop() -> None:
    Network.of_loop({A: refuses()})
    error = await error_of(Connector(URL, EVEN.replace(stop=tenacity.stop_after_attempt(2))).dial())
    assert told(error) == (errors.ConnectRefused, "stop", ["ECONNREFUSED"] * 2)
    assert_complete(error, 1)


async def limited(call: Awaitable[object], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await call


@virtual
@pytest.mark.parametrize("at", [0.05, 0.5, 1.5], ids=["first attempt", "sleep", "second attempt"])
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_the_callers_own_limit(at: float, how: str) -> None:
    """CancelledError, in whose context is what was known."""
    network = Network.of_loop({A: [refuses(0.01), SILENT], B: SILENT})
    connector = Connector(f"tcp://{A}:80,{B}:80" if at < 0.1 else URL, EVEN)
    call = limited(connector.dial(), at) if how == "timeout" else asyncio.ensure_future(connector.dial())
    if isinstance(call, asyncio.Task):
        network.loop.call_later(at, call.cancel)
    with pytest.raises(TimeoutError if how == "timeout" else asyncio.CancelledError) as caught:
        await call
    assert network.loop.time() == pytest.approx(at)
    failure = aioconnect.classify(caught.value)
    assert failure is not None
    assert failure.code == "ECONNREFUSED"
    assert network.open == []


async def test_a_foreign_exception_out_of_prepare() -> None:
    """Itself, at once, with a note that says how far it came."""

    async def prepare(conn: Connection) -> None:
        raise LookupError("mine")

    async with serve(peers.silent) as peer:
        connector = Connector(Endpoint(*peer.address), prepare=prepare)
        with pytest.raises(LookupError, match="mine") as caught:
            await connector.connect()
        await peer.released()
        assert peer.accepted == 1
    (note,) = caught.value.__notes__
    assert note.startswith(f"1 attempt at tcp://127.0.0.1:{peer.port} in 0.0 s")
    assert connector.stats().attempts == 1


# ------------------------------------------------------------------------------------------ limits


@virtual
@pytest.mark.parametrize(("policy", "call", "smaller"), [(10, 3, 3), (3, 10, 3), (None, 3, 3), (3, None, 3)])
async def test_the_smaller_limit_counts(policy: float | None, call: float | None, smaller: float) -> None:
    Network.of_loop({A: SILENT})
    began = asyncio.get_running_loop().time()
    await error_of(Connector(URL, Policy(timeout=policy)).dial(timeout=call))
    assert asyncio.get_running_loop().time() - began == pytest.approx(smaller)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "soon", object(), True])
async def test_a_limit_that_cannot_work(timeout: Any) -> None:
    connector = Connector(URL)
    for name, arguments in (("connect", ()), ("dial", ()), ("create_connection", (asyncio.Protocol,))):
        with pytest.raises(ConfigError, match=r"^timeout="):
            await getattr(connector, name)(*arguments, timeout=timeout)
    assert connector.stats().attempts == 0


@virtual
async def test_an_attempt_is_never_cut_by_the_race() -> None:
    """Without any limit, the slowest answer is waited for."""
    Network.of_loop({A: Reply(500)})
    sock = await Connector(URL, Policy(timeout=None, attempt_timeout=None)).dial()
    sock.close()


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """A few addresses that answer as they like, and a policy."""
    delays = st.one_of(st.just(0.0), st.floats(0.001, 8), st.just(math.inf))
    numbers = st.sampled_from([0, 0, REFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EMFILE])
    replies = st.lists(st.builds(Reply, delays, numbers), min_size=1, max_size=4)
    hosts = draw(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]), unique=True, min_size=1))
    limits = st.one_of(st.none(), st.floats(0.01, 20))
    policy = Policy(
        max_attempts=draw(st.integers(1, 5)),
        attempt_timeout=draw(limits),
        timeout=draw(st.floats(0.01, 30)),
        wait=Backoff(initial=0.1, maximum=3.0, jitter="none"),
    )
    return {"replies": {host: draw(replies) for host in hosts}, "policy": policy, "call": draw(limits)}


@hypothesis.given(worlds())
def test_whatever_the_network_does(world: dict[str, Any]) -> None:
    """In time, a socket or one complete error; all else closed; and the books agree."""

    async def main() -> None:
        network = Network.of_loop(world["replies"], names={"db.internal": list(world["replies"])})
        policy: Policy = world["policy"]
        limit = min(each for each in (policy.timeout, world["call"]) if each is not None)
        connector = Connector("tcp://db.internal:80", policy)
        error: Any = None
        try:
            sock: Any = await connector.dial(timeout=world["call"])
        except errors.ConnectError as exc:
            error = exc
        assert network.loop.time() <= limit + 1e-6
        stats = connector.stats()
        assert (stats.connecting, stats.waiting, stats.reachable) == (0, 0, error is None)
        assert stats.attempts == stats.connected + sum(stats.failures.values())
        if error is None:
            assert network.open == [sock]
            sock.close()
            return
        assert network.open == []
        assert error.attempt_count == stats.attempts == len(error.attempts) <= (policy.max_attempts or math.inf)
        assert {each.address[0] for each in error.errors} <= set(world["replies"])
        assert all(each.errno is not None for each in [error, *error.errors])
        assert error.elapsed == pytest.approx(network.loop.time())
        ends = [attempt.started + attempt.elapsed + attempt.slept for attempt in error.attempts]
        assert [attempt.started for attempt in error.attempts[1:]] == pytest.approx(ends[:-1])
        if policy.attempt_timeout is not None:
            assert all(attempt.elapsed <= policy.attempt_timeout + 1e-6 for attempt in error.attempts)
        if error.stop_reason == "permanent":
            assert not policy.retryable(error)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


# ------------------------------------------------------------------------------------------ connecting


@pytest.mark.parametrize("kind", ["URL", "Endpoint"])
async def test_await_and_async_with(kind: str) -> None:
    async with serve(peers.plain_echo) as peer:
        where = f"tcp://127.0.0.1:{peer.port}" if kind == "URL" else Endpoint(*peer.address)
        conn = await aioconnect.connect(where)
        await conn.send(b"ping")
        assert await conn.readexactly(4) == b"ping"
        await conn.aclose()
        async with aioconnect.connect(where) as conn:
            assert isinstance(conn, Connection)
            await conn.send(b"pong")
            assert await conn.readexactly(4) == b"pong"
        await peer.released()
        assert conn.writer.is_closing()
        with pytest.raises(LookupError, match="mine"):
            await fails_inside(where)
        await peer.released()


async def fails_inside(where: Endpoint | str) -> None:
    async with aioconnect.connect(where):
        raise LookupError("mine")


async def test_options_beside_a_url_or_an_endpoint() -> None:
    with listening() as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}?nodelay=off"
        for where in (url, Endpoint.parse(url)):
            async with aioconnect.connect(where, keepalive=None, local_addr=("127.0.0.7", 0)) as conn:
                assert conn.sockname[0] == "127.0.0.7"
                sock = conn.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
                assert conn.endpoint.nodelay is False


@pytest.mark.parametrize("through", ["connect", "create_connection", "dial"])
@pytest.mark.parametrize("nodelay", [False, True])
async def test_nodelay(through: str, nodelay: bool) -> None:
    with listening() as server:
        connector = Connector(Endpoint(*server.getsockname(), nodelay=nodelay))
        if through == "dial":
            with await connector.dial() as sock:
                assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
            return
        made = await (connector.connect() if through == "connect" else connector.create_connection(asyncio.Protocol))
        transport: Any = made.writer.transport if isinstance(made, Connection) else made[0]
        used = transport.get_extra_info("socket")
        assert bool(used.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.abort()
        await asyncio.sleep(0)


async def test_create_connection() -> None:
    class Greeted(asyncio.Protocol):
        def __init__(self) -> None:
            self.received = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            self.received.set_result(data)

    async with serve(peers.plain_echo) as peer:
        transport, protocol = await Connector(Endpoint(*peer.address)).create_connection(Greeted)
        assert isinstance(protocol, Greeted)
        transport.write(b"hello")
        assert await protocol.received == b"hello"
        transport.close()
        await peer.released()


async def test_a_protocol_factory_that_fails() -> None:
    def factory() -> asyncio.Protocol:
        raise LookupError("mine")

    with listening() as server, pytest.raises(LookupError, match="mine"):
        await Connector(Endpoint(*server.getsockname())).create_connection(factory)


async def test_no_tls_over_a_dialed_socket() -> None:
    connector = Connector("tls://db.internal:5432?handshake_timeout=5s")
    with pytest.raises(ConfigError) as caught:
        await connector.dial()
    (problem,) = caught.value.problems
    assert problem.startswith("endpoint=tls://db.internal:5432: must be without TLS")
    assert connector.stats().attempts == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"endpoint": "http://x:1"}, "http"),
        ({"policy": 5}, "policy=5: must be a Policy"),
        ({"prepare": 5}, "prepare=5: must be a coroutine function of a Connection"),
        ({"max_connecting": 0}, "max_connecting=0: must be an integer, 1 or more"),
        ({"limit": 0}, "limit=0: must be an integer, 1 or more"),
        ({"limit": "64k"}, "limit='64k': must be an integer, 1 or more"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Connector(**{"endpoint": URL} | settings)
    assert problem in caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_its_repr_tells_no_options() -> None:
    assert (
        repr(Connector("tls://db:1?key_file=/secret&cert_file=/x")) == "<Connector tls://db:1 attempts=0 connected=0>"
    )


# ------------------------------------------------------------------------------------------ prepare


async def broken(conn: Connection) -> None:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


async def eof(conn: Connection) -> None:
    raise EOFError("where is the rest")


async def reads(conn: Connection) -> None:
    await conn.readexactly(10)


async def times_out(conn: Connection) -> None:
    async with asyncio.timeout(0.01):
        await conn.read(1)


async def not_ready(conn: Connection) -> None:
    raise NotReady("loading the dataset")


async def asks_another(conn: Connection) -> None:
    await aioconnect.connect(Endpoint("127.0.0.1", closed_port()), policy=ONCE)


@pytest.mark.parametrize(
    ("prepare", "script", "cls", "code", "kind"),
    [
        (broken, peers.silent, errors.ConnectError, "EPIPE", "transient"),
        (eof, peers.silent, errors.ConnectReset, "ECONNRESET", "transient"),
        (reads, peers.fin_at_once, errors.ConnectReset, "ECONNRESET", "transient"),
        (reads, peers.reset_at_once, errors.ConnectReset, "ECONNRESET", "transient"),
        (times_out, peers.silent, errors.ConnectTimeout, "ETIMEDOUT", "transient"),
        (not_ready, peers.silent, NotReady, "NOT_READY", "starting"),
        (asks_another, peers.silent, errors.ConnectRefused, "ECONNREFUSED", "transient"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_what_prepare_raises(
    prepare: Any, script: peers.Script, cls: type[errors.NetworkError], code: str, kind: str
) -> None:
    async with serve(script) as peer:
        connector = Connector(Endpoint(*peer.address), ONCE, prepare)
        error = await error_of(connector.connect())
        await peer.released()
        assert isinstance(error, cls)
        assert isinstance(error, errors.ConnectError)
        assert (error.code, error.kind, error.phase) == (code, kind, "prepare")
        assert error.address == peer.address
        assert error.stop_reason == ("permanent" if prepare is not_ready else "attempts")
        assert connector.stats().failures == {code: 1}
        if prepare is not_ready:
            assert "loading the dataset" in str(error)


async def test_not_ready_is_waited_for_if_asked_to() -> None:
    replies = [b"-LOADING\r\n", b"-LOADING\r\n", b"+PONG\r\n"]

    async def script(wire: Wire) -> None:
        await wire.send(replies.pop(0))

    async def prepare(conn: Connection) -> None:
        if not (await conn.readline()).startswith(b"+"):
            raise NotReady

    async with serve(script) as peer:
        policy = Policy(retry_on=TRANSIENT | STARTING, wait=lambda _: 0.0)
        async with Connector(Endpoint(*peer.address), policy, prepare).connect() as conn:
            assert conn.is_usable()
        assert peer.accepted == 3


@pytest.mark.parametrize("source", ["attempt", "call"])
async def test_prepare_that_hangs(source: str) -> None:
    policy = ONCE.replace(**{"attempt_timeout" if source == "attempt" else "timeout": 0.05})
    async with serve(peers.silent) as peer:
        error = await error_of(Connector(Endpoint(*peer.address), policy, reads).connect())
        await peer.released()
    assert isinstance(error, errors.ConnectTimeout)
    assert (error.phase, error.source, error.address) == ("prepare", source, peer.address)
    assert error.errno == errno.ETIMEDOUT
    assert error.stop_reason == ("attempts" if source == "attempt" else "timeout")


async def swallows(conn: Connection) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(10)


async def turns_into_an_error(conn: Connection) -> None:
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        raise ConnectionResetError(errno.ECONNRESET, "while cancelled") from None


@pytest.mark.parametrize("prepare", [swallows, turns_into_an_error])
async def test_prepare_that_ignores_its_limit_is_late_all_the_same(prepare: Any) -> None:
    async with serve(peers.silent) as peer:
        policy = Policy(max_attempts=1, attempt_timeout=0.03)
        error = await error_of(Connector(Endpoint(*peer.address), policy, prepare).connect())
        await peer.released()
    assert (error.phase, error.code) == ("prepare", "ETIMEDOUT" if prepare is swallows else "ECONNRESET")


@pytest.mark.parametrize("prepare", [swallows, turns_into_an_error])
async def test_prepare_that_swallows_the_callers_cancel(prepare: Any) -> None:
    """One cancel() always ends a connect, whatever a hook makes of it."""
    async with serve(peers.silent) as peer:
        connecting = asyncio.ensure_future(connect_to(peer.address, prepare))
        await asyncio.sleep(0.02)
        connecting.cancel()
        await asyncio.wait([connecting], timeout=1)
        assert connecting.cancelled()
        await peer.released()
        assert peer.accepted == 1


async def connect_to(address: tuple[str, int], prepare: Any) -> Connection:
    return await Connector(Endpoint(*address), prepare=prepare).connect()


async def test_prepare_with_a_limit_of_its_own_inside() -> None:
    """Its own asyncio.timeout cancels the task, too; that is nobody's cancel but its own."""

    async def prepare(conn: Connection) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005):
                await conn.read(1)

    async with serve(peers.silent) as peer:
        async with await connect_to(peer.address, prepare) as conn:
            assert conn.is_usable()
        await peer.released()


async def test_prepare_may_close_the_connection_itself() -> None:
    """Nothing says that it is still usable; whoever uses it finds out."""

    async def prepare(conn: Connection) -> None:
        await conn.aclose()
        raise NotReady("draining")

    async with serve(peers.silent) as peer:
        error = await error_of(Connector(Endpoint(*peer.address), ONCE, prepare).connect())
        assert isinstance(error, NotReady)


async def test_a_peer_that_accepts_and_hangs_up_does_not_reset_the_waits() -> None:
    """A load balancer without a backend: connected each time, and each time no success."""
    waits: list[int] = []

    def wait(state: tenacity.RetryCallState) -> float:
        waits.append(state.attempt_number)
        return 0.0

    async with serve(peers.fin_at_once) as peer:
        policy = Policy(max_attempts=5, wait=wait, breaker=None)
        connector = Connector(Endpoint(*peer.address), policy, reads)
        error = await error_of(connector.connect())
        assert (error.attempt_count, peer.accepted) == (5, 5)
        assert waits == [1, 2, 3, 4, 5]
        assert figures(connector)[:3] == [5, 0, {"ECONNRESET": 5}]


async def test_prepare_is_not_for_dialing_or_protocols() -> None:
    def prepare(conn: Connection) -> Any:
        raise AssertionError("called")

    with listening() as server:
        connector = Connector(Endpoint(*server.getsockname()), prepare=prepare)
        (await connector.dial()).close()
        transport, _ = await connector.create_connection(asyncio.Protocol)
        transport.abort()
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------ max_connecting


@virtual
async def test_no_more_at_once_than_allowed_and_first_come_first_served() -> None:
    network = Network.of_loop({A: Reply(1.0)})
    connector = Connector(URL, max_connecting=2)
    order: list[int] = []

    async def caller(number: int) -> None:
        sock = await connector.dial()
        order.append(number)
        sock.close()

    callers = [asyncio.ensure_future(caller(number)) for number in range(5)]
    await asyncio.sleep(0.5)
    stats = connector.stats()
    assert (stats.connecting, stats.waiting, stats.attempts) == (2, 3, 2)
    await asyncio.gather(*callers)
    assert order == [0, 1, 2, 3, 4]
    assert network.most == 2
    assert network.loop.time() == pytest.approx(3)
    stats = connector.stats()
    assert (stats.connecting, stats.waiting, stats.attempts, stats.connected) == (0, 0, 5, 5)


@virtual
async def test_who_comes_later_does_not_overtake() -> None:
    """A slot that is on its way to one who waits is not free."""
    Network.of_loop({A: Reply(1.0)})
    connector = Connector(URL, max_connecting=1)
    order: list[str] = []

    async def caller(name: str) -> None:
        (await connector.dial()).close()
        order.append(name)

    first, second = (asyncio.ensure_future(caller(name)) for name in ("first", "second"))
    first.add_done_callback(lambda _: order.append("done"))
    await first
    third = asyncio.ensure_future(caller("third"))
    await asyncio.gather(second, third)
    assert order == ["first", "done", "second", "third"]


@virtual
@pytest.mark.parametrize("at", [0.5, 1.0], ids=["waiting", "the slot is on its way"])
async def test_a_cancelled_waiter_leaves_its_place(at: float) -> None:
    network = Network.of_loop({A: Reply(1.0)})
    calls: list[asyncio.Future[Any]] = []

    def observer(event: events.Event) -> None:
        if at == 1.0 and isinstance(event, events.Connected):
            calls[1].cancel()  # the first has just left, and the second was told so

    connector = Connector(URL, max_connecting=1, observers=[observer])
    calls += (asyncio.ensure_future(connector.dial()) for _ in range(3))
    await asyncio.sleep(0)
    first, second, third = calls
    if at < 1.0:
        network.loop.call_later(at, second.cancel)
    for sock in await asyncio.gather(first, third):
        sock.close()
    assert second.cancelled()
    assert network.loop.time() == pytest.approx(2)
    assert connector.stats()[:2] == (2, 2)
    assert (connector.stats().connecting, connector.stats().waiting) == (0, 0)


@virtual
async def test_waiting_has_the_calls_limit() -> None:
    """It is not the endpoint's fault, and not counted as such; it may be retried."""
    network = Network.of_loop({A: Reply(30.0)})
    connector = Connector(URL, Policy(attempt_timeout=None, timeout=60), max_connecting=1)
    first = asyncio.ensure_future(connector.dial())
    await asyncio.sleep(0)
    error = await error_of(connector.dial(timeout=2))
    assert isinstance(error, errors.ConnectTimeout)
    assert (error.phase, error.stop_reason, error.errno) == ("wait", "timeout", errno.ETIMEDOUT)
    assert network.loop.time() == pytest.approx(2)
    stats = connector.stats()
    assert stats.failures == {}
    assert (stats.attempts, stats.waiting) == (1, 0)
    (await first).close()


@virtual
@pytest.mark.parametrize("seed", range(20))
async def test_a_crowd_with_cancels_at_any_time(seed: int) -> None:
    """Never more than allowed at once, never fewer than could be, and the books are empty in the end."""
    chance = random.Random(seed)
    answers = [Reply(chance.choice([0.0, 0.1, 0.3, math.inf]), chance.choice([0, 0, REFUSED])) for _ in range(200)]
    network = Network.of_loop({A: answers})
    policy = Policy(max_attempts=3, attempt_timeout=0.5, timeout=20, breaker=None)
    connector = Connector(URL, policy, max_connecting=3)

    async def caller() -> None:
        await asyncio.sleep(chance.random())
        with contextlib.suppress(errors.ConnectError):
            (await connector.dial()).close()

    callers = [asyncio.ensure_future(caller()) for _ in range(60)]
    for one in callers[::3]:
        network.loop.call_later(chance.choice([0.1, 0.3, 0.5, 0.8, 2.0]) + chance.choice([0, 0.001]), one.cancel)
    while not all(one.done() for one in callers):
        await asyncio.sleep(0.01)
        stats = connector.stats()
        assert stats.connecting <= 3
        assert stats.waiting == 0 or stats.connecting == 3
    assert network.most <= 3
    assert network.open == []
    assert (connector.stats().connecting, connector.stats().waiting) == (0, 0)


@virtual
@pytest.mark.parametrize("fails", [False, True])
async def test_slots_come_back_from_failures(fails: bool) -> None:
    Network.of_loop({A: refuses(0.1) if fails else SILENT})
    connector = Connector(URL, Policy(max_attempts=2, attempt_timeout=1), max_connecting=1)
    await asyncio.gather(*(error_of(connector.dial()) for _ in range(3)))
    assert (connector.stats().connecting, connector.stats().waiting) == (0, 0)


def test_slots_of_a_loop_that_was_closed_are_forgotten() -> None:
    """Coroutines left behind there must not give back what the new loop has not lent."""
    connector = Connector(URL, Policy(attempt_timeout=None), max_connecting=1)
    left: list[Any] = []

    async def main(leave: bool) -> None:
        network = Network.of_loop({A: SILENT if leave else Reply(1)})
        if leave:
            task = asyncio.ensure_future(connector.dial())
            await asyncio.sleep(0)
            left.append(task.get_coro())
            asyncio.get_running_loop().stop()
        else:
            holding = asyncio.ensure_future(connector.dial())
            await asyncio.sleep(0)
            assert (connector.stats().connecting, connector.stats().waiting) == (1, 0)
            left.pop().close()
            assert connector.stats().connecting == 1
            other = asyncio.ensure_future(connector.dial())
            await asyncio.sleep(0)
            assert connector.stats().waiting == 1
            for sock in await asyncio.gather(holding, other):
                sock.close()
            assert network.most == 1
            assert connector.stats().connecting == 0

    loop = VirtualLoop()
    task = loop.create_task(main(leave=True))
    loop.run_forever()
    loop.close()
    del task
    with (
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
        mock.patch.object(logging.getLogger("asyncio"), "disabled", new=True),
    ):
        runner.run(main(leave=False))
        gc.collect()


# ------------------------------------------------------------------------------------------ what is told


@virtual
async def test_statistics() -> None:
    Network.of_loop({A: [refuses(), Reply(0.1, errno.EHOSTUNREACH), Reply(0.1), refuses()]})
    connector = Connector(URL, EVEN)
    assert figures(connector) == [0, 0, {}, 0, 0, None, None]
    (await connector.dial()).close()
    stats = connector.stats()
    assert figures(connector)[:6] == [3, 1, {"ECONNREFUSED": 1, "EHOSTUNREACH": 1}, 0, 0, True]
    assert isinstance(stats.last_error, errors.HostUnreachable)
    assert stats.last_error.__traceback__ is None
    with pytest.raises(TypeError):
        stats.failures["x"] = 1  # type: ignore[index]
    await error_of(connector.dial(timeout=1.5))
    after = connector.stats()
    assert (after.attempts, after.connected, after.reachable) == (6, 1, False)
    assert after.failures == {"ECONNREFUSED": 4, "EHOSTUNREACH": 1}
    assert stats.failures == {"ECONNREFUSED": 1, "EHOSTUNREACH": 1}, "a snapshot stays what it was"


@virtual
async def test_statistics_of_a_cancelled_attempt() -> None:
    Network.of_loop({A: SILENT})
    connector = Connector(URL, EVEN)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await connector.dial()
    assert figures(connector) == [1, 0, {}, 0, 0, None, None]


def observed(connector_settings: dict[str, Any] | None = None, **settings: Any) -> tuple[Connector, list[Any]]:
    seen: list[Any] = []
    return Connector(**{"endpoint": URL, "observers": [seen.append]} | (connector_settings or {}) | settings), seen


@virtual
async def test_events_of_a_success() -> None:
    Network.of_loop({A: Reply(0.1), B: Reply(0.2)}, names={"db.internal": [A, B]})
    connector, seen = observed(endpoint="tcp://db.internal:80?interleave=1")
    (await connector.dial()).close()
    name = "tcp://db.internal:80"
    assert seen == [
        events.AttemptStarted(name, 1),
        events.Resolved(name, ((A, 80), (B, 80)), 0.0),
        events.Connected(name, 1, (A, 80), pytest.approx(0.1)),  # type: ignore[arg-type]
    ]
    seen.clear()
    (await connector.dial()).close()
    assert [type(event) for event in seen] == [events.AttemptStarted, events.Connected], "the name is known"


@virtual
async def test_events_of_retries() -> None:
    Network.of_loop({A: [refuses(0.1), Reply(0.1)]})
    connector, seen = observed(policy=EVEN)
    (await connector.dial()).close()
    seen = [event for event in seen if not isinstance(event, events.Resolved)]
    assert [type(event).__name__ for event in seen] == [
        "AttemptStarted",
        "AttemptFailed",
        "Retrying",
        "AttemptStarted",
        "Connected",
    ]
    _, failed, retrying, started, connected = seen
    assert isinstance(failed.error, errors.ConnectRefused)
    assert (failed.attempt, failed.elapsed) == (1, pytest.approx(0.1))
    assert (retrying.attempts, retrying.pause, retrying.error.code) == (1, 1.0, "ECONNREFUSED")
    assert (started.attempt, connected.attempt) == (2, 2)


@virtual
async def test_events_of_giving_up() -> None:
    Network.of_loop({A: refuses(0.1)})
    connector, seen = observed(policy=EVEN.replace(max_attempts=2))
    error = await error_of(connector.dial())
    names = [type(event).__name__ for event in seen if not isinstance(event, events.Resolved)]
    assert names == ["AttemptStarted", "AttemptFailed", "Retrying", "AttemptStarted", "AttemptFailed", "GaveUp"]
    assert seen[-1].error is error
    assert {event.endpoint for event in seen} == {URL}
    hash(seen[0])
    with pytest.raises(AttributeError):
        seen[0].attempt = 3


async def test_events_of_a_foreign_exception() -> None:
    async def prepare(conn: Connection) -> None:
        raise LookupError("mine")

    async with serve(peers.silent) as peer:
        connector, seen = observed(endpoint=Endpoint(*peer.address), prepare=prepare)
        with pytest.raises(LookupError) as caught:
            await connector.connect()
        assert isinstance(seen[-2], events.AttemptFailed)
        assert seen[-1] == events.GaveUp(f"tcp://127.0.0.1:{peer.port}", caught.value)


@virtual
async def test_events_of_a_cancelled_call() -> None:
    """Nobody gave up: it was taken away."""
    Network.of_loop({A: [refuses(), SILENT]})
    connector, seen = observed(policy=EVEN)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await connector.dial()
    assert [type(event).__name__ for event in seen][-3:] == ["Retrying", "AttemptStarted", "Cancelled"]


@virtual
async def test_an_observer_that_raises_breaks_nothing() -> None:
    Network.of_loop({A: [refuses(), Reply(0.1)]})
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    seen: list[Any] = []

    def bad(event: events.Event) -> None:
        raise LookupError(type(event).__name__)

    connector = Connector(URL, EVEN, observers=[bad, seen.append])
    (await connector.dial()).close()
    assert [str(context["exception"]) for context in reported] == [type(event).__name__ for event in seen]
    assert all("observer" in context["message"] for context in reported)
    assert len(seen) >= 5


@virtual
async def test_the_log_speaks_when_something_changes(caplog: pytest.LogCaptureFixture) -> None:
    """Not for what never worked, which the error tells; not for each attempt."""
    caplog.set_level(logging.DEBUG, "aioconnect")
    network = Network.of_loop({A: refuses(0.1)})
    connector = Connector(URL, EVEN)
    await error_of(connector.dial(timeout=5))
    assert caplog.messages == []
    network.replies = {A: Reply(0.1)}
    (await connector.dial()).close()
    (await connector.dial()).close()
    assert caplog.messages == []
    network.replies = {A: refuses(0.1)}
    await error_of(connector.dial(timeout=5))
    await error_of(connector.dial(timeout=5))
    error = f"connect {A}:80: [ECONNREFUSED] connection refused"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"{URL} is not reachable: {error}"),
        ("WARNING", f"{URL}: the circuit is open after 5 failures, next probe in 1.0 s: {error}"),
    ]
    caplog.clear()
    network.replies = {A: Reply(0.1)}
    (await connector.dial()).close()
    (await connector.dial()).close()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage().startswith(f"{URL} is reachable again after ")


# ------------------------------------------------------------------------------------------ loops


def test_it_may_be_made_outside_of_a_loop() -> None:
    connector = Connector(URL, max_connecting=1)

    async def main() -> None:
        Network.of_loop({A: Reply(1)})
        (await connector.dial()).close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
        runner.run(main())
        with (
            asyncio.Runner(loop_factory=VirtualLoop) as second,
            pytest.raises(RuntimeError, match="another event loop"),
        ):
            second.run(main())
    with asyncio.Runner(loop_factory=VirtualLoop) as third:
        third.run(main())
    assert connector.stats().connected == 3


def test_another_thread_with_a_loop_of_its_own() -> None:
    connector = Connector(URL)
    outcome: list[Any] = []

    async def use() -> None:
        Network.of_loop({A: Reply(1)})
        (await connector.dial()).close()

    async def main() -> None:
        await use()
        thread = threading.Thread(target=lambda: outcome.append(attempt()))
        thread.start()
        thread.join()

    def attempt() -> object:
        try:
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                runner.run(use())
        except RuntimeError as exc:
            return exc
        return None

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert isinstance(outcome[0], RuntimeError)


def test_what_was_learnt_in_a_closed_loop_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """Names, and that the endpoint was lost: the times are of another clock."""
    caplog.set_level(logging.INFO, "aioconnect")
    connector = Connector("tcp://db.internal:80", EVEN)

    async def main(reply: Reply, address: str) -> None:
        network = Network.of_loop({address: reply}, names={"db.internal": [address]})
        with contextlib.suppress(errors.ConnectError):
            (await connector.dial(timeout=2)).close()
        assert network.lookups

    for reply, address in ((Reply(1), A), (refuses(), B), (Reply(1), C)):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main(reply, address))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert connector.stats().reachable is True


# ------------------------------------------------------------------------------------------ addresses and targets


@virtual
async def test_families_take_turns() -> None:
    addresses = ["fd00::1", "fd00::2", "fd00::3", A, B]
    network = Network.of_loop(dict.fromkeys(addresses, refuses()), names={"db.internal": addresses})
    await error_of(Connector("tcp://db.internal:80", ONCE).dial())
    assert list(network.starts) == ["fd00::1", A, "fd00::2", B, "fd00::3"]
    await error_of(Connector("tcp://db.internal:80?interleave=2", ONCE).dial())
    assert [host for host, _ in network.started[5:]] == ["fd00::1", "fd00::2", A, "fd00::3", B]


@virtual
async def test_one_family_only() -> None:
    network = Network.of_loop(dict.fromkeys(["fd00::1", A], refuses()), names={"db.internal": ["fd00::1", A]})
    await error_of(Connector("tcp://db.internal:80?family=inet", ONCE).dial())
    assert list(network.starts) == [A]
    await error_of(Connector(Endpoint("db.internal", 80, local_addr=("fd00::9", 0)), ONCE).dial())
    assert list(network.starts) == [A, "fd00::1"]


@virtual
async def test_several_targets_are_tried_in_their_order() -> None:
    network = Network.of_loop({A: refuses(0.1), B: SILENT, C: Reply(0.1)}, names={"a": [A], "b": [B], "c": [C]})
    connector, seen = observed(endpoint="tcp://a:1,b:2,c:3")
    sock = await connector.dial()
    assert sock.getpeername() == (C, 3)
    sock.close()
    assert network.starts == pytest.approx({A: 0, B: 0.1, C: 0.35})
    assert seen[1].addresses == ((A, 1), (B, 2), (C, 3))
    assert network.lookups == ["a", "b", "c"]
    (await connector.dial()).close()
    assert network.lookups == ["a", "b", "c"], "known by now, all of them"


@virtual
async def test_a_target_without_an_address_counts_only_if_no_other_has_one() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    again = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    Network.of_loop({B: Reply(0.1)}, names={"a": unknown, "b": [B], "c": again})
    sock = await Connector("tcp://a:1,b:2").dial()
    assert sock.getpeername() == (B, 2)
    sock.close()
    error = await error_of(Connector("tcp://a:1,c:3", ONCE).dial())
    assert isinstance(error, errors.NameServerUnavailable), "the one that may pass decides"
    assert [(each.code, each.address) for each in error.errors] == [("EAI_NONAME", ("a", 1)), ("EAI_AGAIN", ("c", 3))]
    assert all(each.__traceback__ is None for each in error.errors)


async def test_a_target_whose_name_servers_are_mute_does_not_hold_up_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if host == "mute.internal":
            release.wait(5)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with listening() as server:
        policy = Policy(max_attempts=1, attempt_timeout=4)
        began = time.monotonic()
        with await Connector(f"tcp://mute.internal:1,localhost:{server.getsockname()[1]}", policy).dial() as sock:
            assert sock.getpeername()[1] == server.getsockname()[1]
        assert 0.04 < time.monotonic() - began < 2
    release.set()


class Fixed:
    """A resolver that knows nothing beforehand, and has one address for each name."""

    def __init__(self, **addresses: tuple[str, int]) -> None:
        self.addresses = {name.replace("_", "."): address for name, address in addresses.items()}

    def known(self, query: Query, now: float) -> None:
        return None

    def forget(self, query: Query) -> None:
        pass

    async def resolve(self, query: Query, *_: Any) -> list[AddressInfo]:
        host, port = self.addresses[query.host]
        return infos(host, port=port)


async def test_each_target_is_verified_by_its_own_name(authority: Authority) -> None:
    """Also where two names stand for the same address, and when the resolver remembers nothing."""
    async with serve(peers.tls_echo(authority.server_context("b.example"))) as peer:
        resolver = Fixed(a_example=("127.0.0.1", closed_port()), b_example=peer.address)
        tls = aioconnect.TLS(ca_file=authority.ca_file)
        endpoint = Endpoint(targets=("a.example:1", "b.example:2"), tls=tls)
        async with Connector(endpoint, ONCE, resolver=resolver).connect() as conn:
            assert conn.peername == peer.address
        wrong = Fixed(a_example=peer.address, b_example=peer.address)
        error = await error_of(Connector(endpoint, ONCE, resolver=wrong).connect())
        assert isinstance(error, errors.CertificateRejected)


# ------------------------------------------------------------------------------------------ TLS


async def test_rotated_certificates_are_picked_up(tmp_path: Path) -> None:
    """The same connector goes on with the new files, and with the old ones as long as the new are broken."""
    old, new = (Authority(_made(tmp_path / name)) for name in ("old", "new"))
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(old.ca_file.read_bytes())
    current = [old.server_context()]

    async def script(wire: Wire) -> None:
        with contextlib.suppress(ssl.SSLError):
            secure = await wire.handshake(current[0])
            await secure.receive()

    async with serve(script) as peer:
        endpoint = Endpoint(*peer.address, tls=aioconnect.TLS(ca_file=ca_file, shutdown_timeout=0.1))
        connector = Connector(endpoint, ONCE)
        (await connector.connect()).abort()
        ca_file.write_text("half written")
        (await connector.connect()).abort()
        current[0] = new.server_context()
        assert isinstance(await error_of(connector.connect()), errors.CertificateRejected)
        ca_file.write_bytes(new.ca_file.read_bytes())
        (await connector.connect()).abort()
        await peer.released()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    with listening() as server:
        missing = tmp_path / "missing.pem"
        connector = Connector(Endpoint(*server.getsockname(), tls=aioconnect.TLS(ca_file=missing)))
        with pytest.raises(ConfigError, match=r"ca_file=.*missing\.pem"):
            await connector.connect()
        assert connector.stats().attempts == 1


async def test_alpn(authority: Authority) -> None:
    context = authority.server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serve(peers.tls_echo(context)) as peer:
        for offered, chosen in ((("http/1.1",), "http/1.1"), (("http/1.1", "h2"), "h2"), ((), None)):
            tls = aioconnect.TLS(ca_file=authority.ca_file, alpn=offered)
            async with aioconnect.connect(Endpoint(*peer.address, tls=tls)) as conn:
                assert conn.alpn_protocol == chosen
    with listening() as server:
        async with aioconnect.connect(Endpoint(*server.getsockname())) as conn:
            assert conn.alpn_protocol is None


async def test_a_call_cut_in_a_later_handshake_has_the_error_of_the_one_before(authority: Authority) -> None:
    async with serve(peers.reset_at_once, peers.silent) as peer:
        endpoint = Endpoint(*peer.address, tls=aioconnect.TLS(ca_file=authority.ca_file))
        error = await error_of(Connector(endpoint, Policy(timeout=0.2, wait=lambda _: 0.0)).connect())
        await peer.released()
    assert (type(error), error.stop_reason) == (errors.ConnectReset, "timeout")
    assert [(attempt.error.code, attempt.error.phase) for attempt in error.attempts] == [
        ("ECONNRESET", "tls"),
        ("ETIMEDOUT", "tls"),
    ]
    assert error.attempts[-1].error.source == "call"


async def test_no_time_left_for_the_handshake(authority: Authority) -> None:
    """The dial used it up; nothing is left open, and it is told as what it is."""
    with listening() as server:
        connector = Connector(Endpoint(*server.getsockname(), tls=aioconnect.TLS(ca_file=authority.ca_file)), ONCE)
        contexts: Any = connector.record.hand_over._contexts
        context = contexts.get()

        def slow(_: object) -> ssl.SSLContext:
            time.sleep(0.03)
            return context  # type: ignore[no-any-return]

        with mock.patch.object(type(contexts), "get", slow):
            error = await error_of(connector.connect(timeout=0.02))
    assert isinstance(error, errors.ConnectTimeout)
    assert (error.phase, error.stop_reason, error.address) == ("tls", "timeout", server_address(error))


def server_address(error: errors.NetworkError) -> Any:
    return error.errors[0].address


# ------------------------------------------------------------------------------------------ the loop's own faults


async def test_a_cancelled_error_that_nobody_asked_for() -> None:
    """uvloop makes one of ECANCELED."""
    loop = asyncio.get_running_loop()
    calls = iter([True, False])
    with listening() as server, contextlib.ExitStack() as patches:
        connector = Connector(Endpoint(*server.getsockname()), Policy(wait=lambda _: 0.0))
        target, create = _patchable(loop)

        async def create_connection(*args: Any, **options: Any) -> Any:
            if next(calls):
                raise asyncio.CancelledError
            return await create(*args, **options)

        patches.enter_context(mock.patch.object(target, "create_connection", create_connection, create=True))
        with mock.patch("asyncio.get_running_loop", return_value=target):
            conn = await connector.connect()
    assert connector.stats().failures == {"ECANCELED": 1}
    conn.abort()
    await asyncio.sleep(0)


def _patchable(loop: Any) -> tuple[Any, Any]:
    """A stand-in for the loop, since uvloop's takes no attributes."""

    class StandIn:
        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

    return StandIn(), loop.create_connection


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (OSError(errno.EBADF, "Bad file descriptor"), errors.BadDescriptor),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), errors.OutOfBuffers),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=["EBADF", "ENOMEM", "bug"],
)
async def test_the_loop_cannot_make_a_transport(fault: Exception, expected: type[Exception]) -> None:
    """The socket is closed, and the reason is told."""
    loop, _ = _patchable(asyncio.get_running_loop())

    async def create_connection(*args: Any, **options: Any) -> Any:
        raise fault

    loop.create_connection = create_connection
    with listening() as server, LogWatch() as log:
        connector = Connector(Endpoint(*server.getsockname()), ONCE)
        with mock.patch("asyncio.get_running_loop", return_value=loop), pytest.raises(expected):
            await connector.connect()
    assert log.texts == []


async def test_connecting_to_a_silent_listener_in_real_time() -> None:
    with mute() as port:
        began = time.monotonic()
        error = await error_of(Connector(f"tcp://127.0.0.1:{port}").connect(timeout=0.1))
        assert 0.09 < time.monotonic() - began < 0.3
    assert (error.phase, error.source, error.stop_reason) == ("connect", "call", "timeout")


async def test_a_connecting_that_is_not_awaited_does_nothing() -> None:
    connector = Connector(URL)
    coming = connector.connect()
    assert connector.stats().attempts == 0
    del coming


# ------------------------------------------------------------------------------------------ odd guests


class Resolving:
    """A resolver of somebody's own that answers with what it was given, or hangs."""

    def __init__(self, answer: Any = None, seconds: float = 0.0) -> None:
        self.answer = answer
        self.seconds = seconds

    async def resolve(self, query: Query, limit: float = math.inf, source: Any = "call") -> list[AddressInfo]:
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or []

    def known(self, query: Query, now: float) -> None:
        return None

    def forget(self, query: Query) -> None:
        pass


@virtual
async def test_a_resolver_that_hangs_is_bound_by_the_limit() -> None:
    error = await error_of(Connector("db:1", ONCE, resolver=Resolving(seconds=99)).connect(timeout=2))
    assert isinstance(error, errors.ConnectTimeout)
    assert (error.phase, error.address, asyncio.get_running_loop().time()) == ("resolve", ("db", 1), 2.0)


@virtual
@pytest.mark.parametrize(
    ("raised", "cls"),
    [
        (OSError(errno.EIO, "disk"), errors.ConnectError),
        (TimeoutError(), errors.ConnectTimeout),
        (socket.gaierror(socket.EAI_AGAIN, "again"), errors.NameServerUnavailable),
        (errors.ConnectionResetByPeer(), errors.ConnectReset),
    ],
    ids=repr,
)
async def test_what_a_resolver_raises_has_its_phase_and_place(raised: Exception, cls: type[Exception]) -> None:
    error = await error_of(Connector("db:1", ONCE, resolver=Resolving(raised)).connect())
    assert type(error) is cls
    assert isinstance(error, errors.ConnectError)
    assert (error.phase, error.address) == ("resolve", ("db", 1))


async def test_an_observer_that_holds_a_cancelled_future(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is no cancellation of the call; neither the slot nor the connection is lost."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def observer(event: events.Event) -> None:
        raise asyncio.CancelledError

    with listening() as server:
        host, port = server.getsockname()
        connector = Connector(Endpoint(host, port), ONCE, observers=[observer], max_connecting=1)
        for _ in range(2):
            await (await connector.connect(timeout=1)).aclose()
    assert connector.stats().connecting == 0
    assert {type(each) for each in reported} == {asyncio.CancelledError}


AGAIN = r"call connect\(\) for each"


async def test_a_connecting_may_be_a_task_and_is_for_one_connection() -> None:
    with listening() as server:
        connector = Connector(Endpoint(*server.getsockname()), ONCE)
        conn = await asyncio.create_task(connector.connect())
        await conn.aclose()
        connecting = connector.connect()
        async with connecting as conn:
            with pytest.raises(RuntimeError, match=AGAIN):
                async with connecting:
                    pass
            assert not conn.is_closing
        assert conn.is_closing
        with pytest.raises(RuntimeError, match=AGAIN):
            await connecting
        connector.connect().close()


async def test_a_connecting_is_entered_by_one_of_two_who_come_together() -> None:
    with listening() as server:
        connecting = Connector(Endpoint(*server.getsockname()), ONCE).connect()
        entered = await asyncio.gather(connecting.__aenter__(), connecting.__aenter__(), return_exceptions=True)
        assert [type(each) for each in entered] == [aioconnect.Connection, RuntimeError]
        await connecting.__aexit__(None, None, None)


async def test_a_connecting_that_failed_is_not_awaited_again() -> None:
    connecting = Connector(Endpoint("127.0.0.1", closed_port()), ONCE).connect()
    with pytest.raises(errors.ConnectRefused):
        await connecting
    with pytest.raises(RuntimeError, match=AGAIN):
        await connecting


@virtual
async def test_a_connecting_in_a_task_is_cancelled_as_any() -> None:
    Network.of_loop({A: SILENT})
    task = asyncio.create_task(Connector(URL, EVEN).connect())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_that_prepare_closed_is_none() -> None:
    async def prepare(conn: aioconnect.Connection) -> None:
        await conn.aclose()

    with listening() as server:
        error = await error_of(Connector(Endpoint(*server.getsockname()), ONCE, prepare).connect())
    assert isinstance(error, errors.ConnectReset)
    assert (error.phase, error.code) == ("prepare", "ECONNRESET")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"observers": [3]}, "observers=(3): must be callables of an event, in a sequence"),
        ({"observers": print}, "observers=<builtin_function_or_method>: must be callables of an event, in a sequence"),
        ({"resolver": 3}, "resolver=3: must have the methods resolve, known and forget"),
    ],
    ids=repr,
)
def test_guests_that_cannot_be(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as info:
        Connector("db:1", **settings)
    assert info.value.problems == (problem,)
