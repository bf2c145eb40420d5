"""The dialer: races in virtual time over a simulated network, and the kernel's own answers on loopback."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import socket
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import pytest

import aioconnect
from aioconnect import Endpoint, Keepalive, errors
from aioconnect.dialer import DialOptions, dial_addresses, dial_options, plain
from aioconnect.endpoint import Target
from aioconnect.race import AT_ONCE
from aioconnect.testing.leaks import LogWatch
from tests.support.clock import virtual
from tests.support.listeners import closed_port, listening, mute
from tests.support.network import SILENT, Network, Reply, infos

REFUSED, UNREACHABLE = errno.ECONNREFUSED, errno.EHOSTUNREACH

A, B, C, E, F = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"
A6, B6 = "fd00::1", "fd00::2"


def ok(delay: float) -> Reply:
    return Reply(delay)


def err(delay: float, number: int = REFUSED) -> Reply:
    return Reply(delay, number)


class Scenario(NamedTuple):
    """One race: what each address does, in the order to try them, and what has to come of it at which time."""

    name: str
    delay: float | None
    replies: dict[str, Reply]
    starts: dict[str, float]
    winner: str | None
    at: float
    lost: Mapping[str, float] = MappingProxyType({})
    """Of a race without a winner: for how long each address was tried, in the order of their starts."""
    unsupported: frozenset[int] = frozenset()


SCENARIOS = (
    Scenario("quick success", 0.25, {A: ok(0.123)}, {A: 0}, A, 0.123),
    Scenario("slow success", 0.25, {A: ok(100)}, {A: 0}, A, 100),
    Scenario("a single failure keeps its identity", 0.25, {A: err(0.123)}, {A: 0}, None, 0.123, {A: 0.123}),
    Scenario("fall through", 0.25, {A: ok(1), B: ok(1), C: ok(0.2)}, {A: 0, B: 0.25, C: 0.5}, C, 0.7),
    Scenario("an early success stops the list", 0.25, {A: ok(1), B: ok(0.1), C: ok(0.2)}, {A: 0, B: 0.25}, B, 0.35),
    Scenario("a long delay lets the first win", 0.45, {A: ok(1), B: ok(1), C: ok(0.2)}, {A: 0, B: 0.45, C: 0.9}, A, 1),
    Scenario(
        "a failure starts the next at once",
        0.25,
        {A: err(0.1), B: err(0.2), C: ok(10), E: ok(0.25)},
        {A: 0, B: 0.1, C: 0.3, E: 0.55},
        E,
        0.8,
    ),
    Scenario(
        "all fail, and not before the last",
        0.25,
        {A: err(0.1), B: err(0.2), C: err(10), E: err(0.25)},
        {A: 0, B: 0.1, C: 0.3, E: 0.55},
        None,
        10.3,
        {A: 0.1, B: 0.2, C: 10, E: 0.25},
    ),
    Scenario("slow is not dead", 0.25, {A: ok(0.3), B: ok(0.4)}, {A: 0, B: 0.25}, A, 0.3),
    Scenario("the order is the resolver's", 1, {A: err(10), A6: ok(0.5), B: ok(1)}, {A: 0, A6: 1}, A6, 1.5),
    Scenario(
        "a family that this host lacks costs no delay",
        1,
        {A6: ok(10), A: ok(0.1), B6: ok(0.1), B: ok(0.1)},
        {A6: 0, B6: 1},
        B6,
        1.1,
        unsupported=frozenset({socket.AF_INET}),
    ),
    Scenario("without a delay one after the other", None, {A: err(7), B: ok(7)}, {A: 0, B: 7}, B, 14),
    Scenario("failures at once cost nothing", 0.25, {A: err(0), B: err(0), C: ok(0)}, {A: 0, B: 0, C: 0}, C, 0),
    Scenario("all refuse at once", 0.25, {A: err(0), B: err(0)}, {A: 0, B: 0}, None, 0, {A: 0, B: 0}),
    Scenario("the last answers when all others are silent", 0.25, {A: SILENT, B: ok(1)}, {A: 0, B: 0.25}, B, 1.25),
)


@virtual
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
async def test_race(scenario: Scenario) -> None:
    loop = asyncio.get_running_loop()
    network = Network.of_loop(scenario.replies, unsupported=scenario.unsupported)
    addresses, options = infos(*scenario.replies), DialOptions(delay=scenario.delay)
    if scenario.winner is None:
        with pytest.raises(errors.ConnectRefused) as caught:
            await dial_addresses(addresses, options, limit=1000.0)
        assert loop.time() == pytest.approx(scenario.at)
        assert_account(caught.value, scenario.lost)
        assert network.open == []
    else:
        sock: Any
        sock, info = await dial_addresses(addresses, options, limit=1000.0)
        assert loop.time() == pytest.approx(scenario.at)
        assert info.sockaddr[0] == scenario.winner
        assert network.open == [sock]
        sock.close()
    assert list(network.starts) == list(scenario.starts)
    assert network.starts == pytest.approx(scenario.starts)
    scheduled: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in scheduled if not timer.cancelled()] == [], "they would keep the race alive"
    before = len(network.started)
    await asyncio.sleep(100)
    assert len(network.started) == before, "something was started after the end"


@virtual
async def test_a_dead_heat_has_one_winner() -> None:
    """Three answer at the same moment: one is returned, the others are closed."""
    network = Network.of_loop({A: err(0.5), B: ok(10), C: ok(9), E: ok(8), F: err(0.5)})
    sock: Any
    sock, info = await dial_addresses(infos(A, B, C, E, F), DialOptions(delay=1))
    assert network.loop.time() == pytest.approx(10.5)
    assert network.starts == pytest.approx({A: 0, B: 0.5, C: 1.5, E: 2.5, F: 3.5})
    assert info.sockaddr[0] in {B, C, E}
    await asyncio.sleep(1)
    assert network.open == [sock]
    sock.close()


def assert_account(error: errors.NetworkError, lost: Mapping[str, float]) -> None:
    """The error has one of each address that was tried, in the order of their starts."""
    each = error.errors or (error,)
    assert [one.address[0] for one in each if isinstance(one.address, tuple)] == list(lost)
    assert [one.elapsed for one in each] == pytest.approx(list(lost.values()))
    assert {one.errno for one in each} == {REFUSED}
    assert {one.phase for one in each} == {"connect"}
    assert error.address == ((next(iter(lost))), 80)


@virtual
async def test_a_race_leaves_no_garbage() -> None:
    network = Network.of_loop({A: err(0.1), B: SILENT, C: err(0.2, UNREACHABLE)})
    loop = asyncio.get_running_loop()
    await loses(network, limit=loop.time() + 1)  # whatever is made once is made now
    gc.collect()
    gc.disable()
    try:
        await loses(network, limit=loop.time() + 1)
        assert gc.collect() == 0
    finally:
        gc.enable()


async def loses(network: Network, **settings: Any) -> None:
    with pytest.raises(errors.NetworkError):
        await dial_addresses(infos(*network.replies), DialOptions(), **settings)
    assert network.open == []


# ------------------------------------------------------------------------------------------ limits


@virtual
@pytest.mark.parametrize("source", ["attempt", "call"])
async def test_a_limit_leaves_what_is_known(source: Any) -> None:
    """One refused, one silent: the answer decides, and the silence is told beside it."""
    network = Network.of_loop({A: SILENT, B: err(0.1), C: SILENT})
    with pytest.raises(errors.ConnectRefused) as caught:
        await dial_addresses(infos(A, B, C), DialOptions(), limit=2.0, source=source)
    assert asyncio.get_running_loop().time() == pytest.approx(2.0)
    error = caught.value
    assert [type(each) for each in error.errors] == [
        errors.ConnectTimeout,
        errors.ConnectRefused,
        errors.ConnectTimeout,
    ]
    assert [each.elapsed for each in error.errors] == pytest.approx([2.0, 0.1, 1.65])
    silent = error.errors[0]
    assert isinstance(silent, errors.ConnectTimeout)
    assert (silent.source, silent.errno, silent.phase) == (source, errno.ETIMEDOUT, "connect")
    assert error.address == (B, 80)
    assert network.open == []


@virtual
@pytest.mark.parametrize("source", ["attempt", "call"])
async def test_a_limit_without_any_answer(source: Any) -> None:
    network = Network.of_loop({A: SILENT, B: SILENT})
    with pytest.raises(errors.ConnectTimeout) as caught:
        await dial_addresses(infos(A, B), DialOptions(), limit=0.1, source=source)
    error = caught.value
    assert (error.source, error.errno) == (source, errno.ETIMEDOUT)
    assert error.elapsed == pytest.approx(0.1)
    assert network.starts == {A: 0}, "the second was not due yet"
    assert error.errors == ()
    assert network.open == []


@virtual
async def test_a_limit_that_has_passed_still_takes_what_is_there_at_once() -> None:
    network = Network.of_loop({A: err(0), B: ok(0)})
    sock, info = await dial_addresses(infos(A, B), DialOptions(), limit=-1.0)
    assert info.sockaddr[0] == B
    sock.close()
    assert network.open == []


@virtual
async def test_a_refusal_at_the_last_moment_is_not_a_time_out() -> None:
    network = Network.of_loop({A: err(1.0)})
    with pytest.raises(errors.ConnectRefused):
        await dial_addresses(infos(A), DialOptions(), limit=1.0)
    assert network.open == []


@virtual
async def test_the_policy_helps_to_choose_the_error_that_decides() -> None:
    Network.of_loop({A: err(0.1), B: err(0.1, UNREACHABLE)})
    with pytest.raises(errors.HostUnreachable) as caught:
        await dial_addresses(
            infos(A, B), DialOptions(), policy=aioconnect.Policy(never_retry_on=aioconnect.ErrnoSet({"ECONNREFUSED"}))
        )
    assert [each.code for each in caught.value.errors] == ["ECONNREFUSED", "EHOSTUNREACH"]


@virtual
async def test_a_second_family_missing_is_noise() -> None:
    Network.of_loop({A6: err(0, errno.ENETUNREACH), A: err(0.1)})
    with pytest.raises(errors.ConnectRefused) as caught:
        await dial_addresses(infos(A6, A), DialOptions())
    assert [each.code for each in caught.value.errors] == ["ENETUNREACH", "ECONNREFUSED"]


@virtual
async def test_no_more_under_way_than_the_cap() -> None:
    """Ten silent addresses: six are tried; each failure lets one more begin."""
    hosts = [f"10.0.1.{number}" for number in range(10)]
    replies = dict.fromkeys(hosts, SILENT) | {hosts[0]: err(5.0), hosts[9]: ok(1)}
    network = Network.of_loop(replies)
    with pytest.raises(errors.ConnectRefused) as caught:
        await dial_addresses(infos(*hosts), DialOptions(), limit=20.0)
    assert network.most == AT_ONCE == 6
    assert list(network.starts) == hosts[: AT_ONCE + 1]
    assert network.starts[hosts[AT_ONCE]] == pytest.approx(5.0)
    assert [each.address[0] for each in caught.value.errors if isinstance(each.address, tuple)] == hosts[: AT_ONCE + 1]
    assert network.open == []


@virtual
async def test_a_cancelled_race_closes_all_and_keeps_what_it_knows() -> None:
    network = Network.of_loop({A: err(0.1), B: SILENT, C: SILENT, E: SILENT})
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(5):
            await dial_addresses(infos(A, B, C, E), DialOptions())
    assert asyncio.get_running_loop().time() == pytest.approx(5)
    assert network.starts == pytest.approx({A: 0, B: 0.1, C: 0.35, E: 0.6})
    assert network.open == []
    failure = aioconnect.classify(caught.value)
    assert failure is not None
    assert failure.code == "ECONNREFUSED"
    await asyncio.sleep(10)
    assert len(network.started) == 4


# ------------------------------------------------------------------------------------------ faults of our own side


@virtual
async def test_phases_of_what_fails_before_the_connect() -> None:
    options = DialOptions(local_addr=Target("10.9.9.9", 0))
    Network.of_loop({A: ok(1)}, unbindable={"10.9.9.9": errno.EADDRNOTAVAIL})
    with pytest.raises(errors.AddressNotAvailable) as caught:
        await dial_addresses(infos(A), options)
    assert (caught.value.phase, caught.value.errno) == ("bind", errno.EADDRNOTAVAIL)
    Network.of_loop({A: ok(1)}, unsupported=frozenset({socket.AF_INET}))
    with pytest.raises(errors.AddressFamilyNotSupported) as unsupported:
        await dial_addresses(infos(A), options)
    assert (unsupported.value.phase, unsupported.value.errno) == ("socket", errno.EAFNOSUPPORT)


@virtual
@pytest.mark.parametrize("port", [0, 4711])
async def test_a_local_port_in_use(port: int) -> None:
    """With port 0 it is every ephemeral port that is taken, which passes."""
    Network.of_loop({A: ok(1)}, unbindable={"10.9.9.9": errno.EADDRINUSE})
    with pytest.raises(errors.AddressInUse) as caught:
        await dial_addresses(infos(A), DialOptions(local_addr=Target("10.9.9.9", port)))
    assert (caught.value.phase, caught.value.kind) == ("bind", "permanent" if port else "local")


@virtual
@pytest.mark.parametrize("later", [False, True], ids=["first address", "second address"])
async def test_the_loop_cannot_watch_the_socket(later: bool) -> None:
    """epoll_ctl(2) may answer ENOSPC: the attempt has failed, and the race goes on."""
    network = Network.of_loop({A: SILENT, B: SILENT, C: ok(1)})
    watch = network.loop.add_writer
    refusals = iter([False, True, False] if later else [True, False, False])

    def add_writer(sock: Any, *args: Any) -> None:
        if next(refusals):
            raise OSError(errno.ENOSPC, "No space left on device")
        watch(sock, *args)

    with mock.patch.object(network.loop, "add_writer", add_writer):
        sock, info = await dial_addresses(infos(A, B, C), DialOptions())
    assert info.sockaddr[0] == C
    sock.close()
    assert network.open == []
    assert network.loop.time() == pytest.approx(1.25)


@virtual
@pytest.mark.parametrize("later", [False, True], ids=["first address", "second address"])
async def test_a_bug_ends_the_race_as_itself(later: bool) -> None:
    """Whatever is no error of the system is raised as it is, at once, whichever callback met it."""
    network = Network.of_loop({A: SILENT, B: SILENT})
    watch = network.loop.add_writer
    mistakes = iter([False, True] if later else [True])

    def add_writer(sock: Any, *args: Any) -> None:
        if next(mistakes):
            raise NotImplementedError("no add_writer here")
        watch(sock, *args)

    with (
        mock.patch.object(network.loop, "add_writer", add_writer),
        LogWatch() as log,
        pytest.raises(NotImplementedError, match="no add_writer here"),
    ):
        await dial_addresses(infos(A, B), DialOptions(), limit=5.0)
    assert network.loop.time() == pytest.approx(0.25 if later else 0)
    assert log.texts == []
    assert network.open == []


@virtual
@pytest.mark.parametrize("silent", [0.0, 1.0], ids=["at once", "later"])
async def test_connected_to_itself_is_a_refusal(silent: float) -> None:
    """Linux may give a dial the very port that it dials (RFC 9293 section 3.5)."""
    network = Network.of_loop({"127.0.0.1": ok(silent)})
    with pytest.raises(errors.ConnectRefused, match="connected to itself") as caught:
        await dial_addresses(infos("127.0.0.1", port=50000), DialOptions())
    assert caught.value.errno == REFUSED
    assert caught.value.elapsed == pytest.approx(silent)
    assert network.open == []


@virtual
@pytest.mark.parametrize(("local_addr", "met"), [(None, False), (("127.0.0.1", 80), True)], ids=["any", "the same"])
async def test_below_the_ephemeral_ports_only_a_local_address_leads_back_here(
    local_addr: tuple[str, int] | None, met: bool
) -> None:
    network = Network.of_loop({"127.0.0.1": ok(0.0)})
    with mock.patch("tests.support.network.SimulatedSocket.getsockname", return_value=("127.0.0.1", 80)):
        dialing = dial_addresses(infos("127.0.0.1", port=80), DialOptions(local_addr=local_addr))
        if met:
            with pytest.raises(errors.ConnectRefused, match="connected to itself"):
                await dialing
        else:
            (await dialing)[0].close()
    assert network.open == []


@virtual
@pytest.mark.parametrize("silent", [0.0, 1.0], ids=["at once", "later"])
async def test_the_peer_is_gone_before_it_was_looked_at(silent: float) -> None:
    """The same port on both sides, and a reset before getpeername: a failed connect, not a fault of the loop."""
    network = Network.of_loop({"127.0.0.1": ok(silent), B: ok(0.5)})
    gone = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
    addresses = [*infos("127.0.0.1", port=50000), *infos(B)]
    with mock.patch("tests.support.network.SimulatedSocket.getpeername", side_effect=gone):
        sock, info = await dial_addresses(addresses, DialOptions(delay=10))
    assert info.sockaddr[0] == B
    assert network.loop.time() == pytest.approx(silent + 0.5)
    sock.close()
    assert network.open == []


# ------------------------------------------------------------------------------------------ the kernel


def at(host: str, port: int) -> Any:
    return infos(host, port=port)[0]


def finished(coroutine: Any) -> Any:
    """The result of a coroutine that must not wait for anything, not even for one turn of the loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    pytest.fail("it waited")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_loopback_needs_no_turn_of_the_loop(host: str) -> None:
    with listening(host) as server:
        address = at(host, server.getsockname()[1])
        sock, info = finished(dial_addresses([address]))
        with sock:
            assert sock.gettimeout() == 0.0
            assert sock.getpeername()[:2] == info.sockaddr[:2] == address.sockaddr[:2]
            assert not sock.get_inheritable()


async def test_a_socket_for_other_hands_is_one_of_the_socket_module() -> None:
    with listening() as server:
        sock, _ = await dial_addresses([at("127.0.0.1", server.getsockname()[1])])
        assert (sock.family, sock.type & ~socket.SOCK_NONBLOCK) == (socket.AF_INET, socket.SOCK_STREAM)
        with plain(sock) as given:
            assert type(given) is socket.socket
            assert given.type is socket.SOCK_STREAM
            given.sendall(b"x")


async def test_neither_do_refusals_before_it() -> None:
    with listening() as server:
        refusing = [at("127.0.0.1", closed_port()) for _ in range(3)]
        sock, info = finished(dial_addresses([*refusing, at("127.0.0.1", server.getsockname()[1])]))
        sock.close()
        assert info.sockaddr == server.getsockname()


async def test_neither_do_refusals_alone() -> None:
    refusing = [at("127.0.0.1", closed_port()), at("::1", closed_port("::1")), at("127.0.0.1", closed_port())]
    with pytest.raises(errors.ConnectRefused) as caught:
        finished(dial_addresses(refusing))
    assert [each.address for each in caught.value.errors] == [info.sockaddr for info in refusing]
    assert {each.errno for each in caught.value.errors} == {REFUSED}


async def test_a_full_accept_queue_beside_a_working_one() -> None:
    began = time.monotonic()
    with mute() as silent, listening("127.0.0.2") as server:
        addresses = [at("127.0.0.1", silent), at("127.0.0.2", server.getsockname()[1])]
        sock, info = await dial_addresses(addresses, DialOptions(delay=0.05))
        with sock:
            assert info is addresses[1]
            assert sock.getpeername() == info.sockaddr
    assert 0.045 < time.monotonic() - began < 0.5


async def test_a_silent_address_beside_a_refusing_one() -> None:
    with mute() as silent:
        addresses = [at("127.0.0.1", silent), at("127.0.0.1", closed_port())]
        limit = asyncio.get_running_loop().time() + 0.1
        with pytest.raises(errors.ConnectRefused) as caught:
            await dial_addresses(addresses, DialOptions(delay=0.02), limit=limit, source="attempt")
    first, second = caught.value.errors
    assert isinstance(first, errors.ConnectTimeout)
    assert isinstance(second, errors.ConnectRefused)
    assert first.source == "attempt"
    assert first.elapsed == pytest.approx(0.1, abs=0.05)


async def test_the_accept_queue_drains() -> None:
    """The answer to the kernel's second SYN, after a second: the writer's way to success."""
    with listening(backlog=0) as server, socket.create_connection(server.getsockname()):
        asyncio.get_running_loop().call_later(0.1, lambda: server.accept()[0].close())  # noqa: PLW0108  (accepts later)
        sock, _ = await dial_addresses([at(*server.getsockname())], DialOptions(), limit=math.inf)
        with sock:
            assert sock.getpeername() == server.getsockname()


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


async def test_the_socket_options_are_set(server: socket.socket) -> None:
    keepalive = Keepalive(idle=7, interval=3, count=4)
    endpoint = Endpoint(*server.getsockname(), keepalive=keepalive, user_timeout=12.5, local_addr=("127.0.0.9", 0))
    sock, _ = await dial_addresses([at(*server.getsockname())], dial_options(endpoint, for_loop=False))
    with sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12500
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockname()[0] == "127.0.0.9"


async def test_no_socket_options_but_those_asked_for(server: socket.socket) -> None:
    endpoint = Endpoint(*server.getsockname(), keepalive=None, nodelay=False)
    sock, _ = await dial_addresses([at(*server.getsockname())], dial_options(endpoint, for_loop=False))
    with sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0


@pytest.mark.parametrize(("seconds", "whole"), [(0.2, 1), (1.2, 2), (15.0, 15)])
async def test_keepalive_is_in_whole_seconds_rounded_up(server: socket.socket, seconds: float, whole: int) -> None:
    endpoint = Endpoint(*server.getsockname(), keepalive=Keepalive(seconds, seconds, 9))
    sock, _ = await dial_addresses([at(*server.getsockname())], dial_options(endpoint))
    with sock:
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == whole
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == whole


async def test_the_shortest_user_timeout_is_not_none(server: socket.socket) -> None:
    endpoint = Endpoint(*server.getsockname(), user_timeout="1.9ms")
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2) in dial_options(endpoint).options


async def test_a_local_address_of_the_other_family(server: socket.socket) -> None:
    with pytest.raises(errors.NetworkError) as caught:
        await dial_addresses([at(*server.getsockname())], DialOptions(local_addr=Target("::1", 0)))
    assert caught.value.phase == "bind"
    assert caught.value.kind == "permanent"


async def test_a_malformed_address_of_a_resolver_is_its_bug(server: socket.socket) -> None:
    good, bad = at(*server.getsockname()), at("127.0.0.1", closed_port())._replace(sockaddr=("127.0.0.1", 70000))
    with pytest.raises(OverflowError):
        await dial_addresses([bad], DialOptions())
    with mute() as silent, LogWatch() as log, pytest.raises(OverflowError):
        await dial_addresses([at("127.0.0.1", silent), bad, good], DialOptions(delay=0.01), limit=math.inf)
    assert log.texts == []


def test_nothing_is_to_be_set_on_a_unix_socket() -> None:
    assert dial_options(Endpoint(path="/run/app.sock"), for_loop=False) == DialOptions(delay=None)
