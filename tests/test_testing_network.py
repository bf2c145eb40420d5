"""The simulated network: what TCP does in time, faults by script and by hand, names, hosts, and bad settings."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Any

import pytest

import aioconnect
from aioconnect import Backoff, ConfigError, Connector, Endpoint, Keepalive, Policy, errors
from aioconnect.testing import Echo, HangUp, Hold, Network, SimulatedLoop, Stuck, run, virtual
from aioconnect.testing.leaks import Footprint

ONCE = Policy(max_attempts=1, timeout=None, attempt_timeout=None)
STEADY = Policy(wait=Backoff(initial=1, maximum=1, jitter="none"), timeout=None, attempt_timeout=None)
A = "10.0.0.1"


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def network() -> Network:
    return Network(latency="100ms", trace=True)


# ------------------------------------------------------------------------------------------ time


@virtual
async def test_a_connect_takes_a_round_trip(network: Network) -> None:
    network.serve(A, 80, Echo)
    async with aioconnect.connect("10.0.0.1:80") as conn:
        assert now() == pytest.approx(0.1)
        await conn.send(b"x")
        assert await conn.readexactly(1) == b"x"
        assert now() == pytest.approx(0.2)


@virtual
async def test_so_does_a_refusal(network: Network) -> None:
    network.host(A)
    with pytest.raises(errors.ConnectRefused):
        await aioconnect.connect("10.0.0.1:80", policy=ONCE)
    assert now() == pytest.approx(0.1)


@virtual
async def test_nobody_has_that_address(network: Network) -> None:
    with pytest.raises(errors.HostUnreachable):
        await aioconnect.connect("10.9.9.9:80", policy=ONCE)
    assert now() == pytest.approx(3)


@virtual
async def test_silence_ends_when_the_kernel_gives_up(network: Network) -> None:
    network.host(A).down()
    with pytest.raises(errors.ConnectTimeout) as caught:
        await aioconnect.connect("10.0.0.1:80", policy=ONCE)
    assert caught.value.source == "kernel"
    assert now() == pytest.approx(127)


@virtual
async def test_a_syn_is_sent_again(network: Network) -> None:
    network.serve(A, 80)
    network.host(A).down()
    network.at(2, network.host(A).up)
    async with aioconnect.connect("10.0.0.1:80", policy=ONCE):
        assert now() == pytest.approx(3.1)


@virtual
async def test_data_arrives_in_order_whatever_the_chances() -> None:
    network = Network(latency="20ms", jitter="30ms", loss=0.2, seed=3)
    asyncio.get_running_loop().network = network  # type: ignore[attr-defined]
    network.serve(A, 80, Echo)
    async with aioconnect.connect("10.0.0.1:80", policy=ONCE) as conn:
        for number in range(300):
            conn.write(b"%6d" % number)
            if number % 7 == 0:
                await asyncio.sleep(0.013)
        everything = await conn.readexactly(1800)
    assert everything == b"".join(b"%6d" % number for number in range(300))
    assert now() > 1, "losses take their time"


@virtual
async def test_data_arrives_in_order_when_the_way_gets_shorter(network: Network) -> None:
    network.serve(A, 80, Echo)
    async with aioconnect.connect("10.0.0.1:80", policy=ONCE) as conn:
        conn.write(b"1")
        network.link("client", A, latency="1ms")
        conn.write(b"2")
        conn.write(b"3")
        assert await conn.readexactly(3) == b"123"
        await asyncio.sleep(1)
        began = now()
        await conn.send(b"4")
        await conn.readexactly(1)
        assert now() - began == pytest.approx(0.001)


@virtual
async def test_hosts_have_ways_of_their_own(network: Network) -> None:
    network.serve("near", 80)
    network.serve("far", 80)
    network.link("client", "far", latency=1)
    await (await aioconnect.connect("near:80")).aclose()
    assert now() == pytest.approx(0.1)
    await (await aioconnect.connect("far:80")).aclose()
    assert now() == pytest.approx(1.1)


@virtual
async def test_within_a_host_it_takes_no_time(network: Network) -> None:
    with network.host("db"):
        network.serve("db", 80, Echo)
        async with aioconnect.connect("db:80") as conn:
            await conn.send(b"x")
            await conn.readexactly(1)
    assert now() == 0


# ------------------------------------------------------------------------------------------ scripts


@virtual
async def test_a_script(network: Network) -> None:
    network.script(A, [errno.ECONNREFUSED] * 3 + ["hang 2s", "ok"])
    seen: list[str] = []

    def observer(event: object) -> None:
        if isinstance(event, aioconnect.events.AttemptFailed):
            seen.append(event.error.code if isinstance(event.error, errors.NetworkError) else "")

    connector = Connector("10.0.0.1:80", STEADY, observers=[observer])
    await (await connector.connect()).aclose()
    assert seen == ["ECONNREFUSED"] * 3 + ["ETIMEDOUT"]
    assert now() == pytest.approx(3 * 1.1 + 3 + 0.1)
    await (await connector.connect()).aclose()


@virtual
async def test_a_script_of_one_port(network: Network) -> None:
    network.serve(A, 80)
    network.serve(A, 81)
    network.script("10.0.0.1:81", ["EHOSTUNREACH 1s", "ok"])
    await (await aioconnect.connect("10.0.0.1:80")).aclose()
    with pytest.raises(errors.HostUnreachable):
        await aioconnect.connect("10.0.0.1:81", policy=ONCE)
    await (await aioconnect.connect("10.0.0.1:81", policy=ONCE)).aclose()


@virtual
async def test_a_script_by_name_and_ipv6(network: Network) -> None:
    network.host("db", A, "fd00::1")
    network.script("db:80", ["ECONNREFUSED 1s"])
    network.script("[fd00::1]:80", ["EACCES"])
    with pytest.raises(errors.ConnectError) as caught:
        await aioconnect.connect("db:80", policy=ONCE)
    assert {each.code for each in caught.value.errors} == {"ECONNREFUSED", "EACCES"}


CUTS: dict[str, tuple[bytes, Any]] = {
    "reset": (b"", errors.ConnectionResetByPeer),
    "reset after 4": (b"0123", errors.ConnectionResetByPeer),
    "close": (b"", errors.PeerClosed),
    "close after 4": (b"0123", errors.PeerClosed),
    "stall after 4": (b"0123", TimeoutError),
}


@pytest.mark.parametrize("step", CUTS)
def test_a_connection_is_cut(network: Network, step: str) -> None:
    got, error = CUTS[step]

    async def counting(_: StreamReader, writer: StreamWriter) -> None:
        for piece in (b"01", b"23456", b"789"):
            writer.write(piece)
            await asyncio.sleep(1)
        await writer.drain()

    async def main() -> None:
        network.serve(A, 80, counting)
        network.script(A, [step, "ok"])
        conn = await aioconnect.connect("10.0.0.1:80", policy=ONCE)
        data = bytearray()

        async def read() -> None:
            async with asyncio.timeout(60):
                while len(data) < 10:
                    data.extend(await conn.readexactly(1))

        with pytest.raises(error):
            await read()
        assert data == got
        conn.abort()
        async with aioconnect.connect("10.0.0.1:80", policy=ONCE) as conn:
            assert await conn.readexactly(10) == b"0123456789"

    run(main(), network=network)


def test_chances_are_those_of_the_seed() -> None:
    def story(seed: int) -> tuple[str, list[str]]:
        network = Network(seed=seed, trace=True)
        network.serve("db", 80)
        network.script("db", network.chances({"ECONNREFUSED": 0.4, "EHOSTUNREACH": 0.2}))
        codes: list[str] = []

        async def main() -> None:
            for _ in range(40):
                try:
                    await (await aioconnect.connect("db:80", policy=ONCE)).aclose()
                    codes.append("ok")
                except errors.ConnectError as exc:
                    codes.append(exc.code)

        run(main(), network=network)
        return network.digest(), codes

    assert story(1) == story(1)
    assert story(1)[1] != story(2)[1]
    assert set(story(1)[1]) == {"ok", "ECONNREFUSED", "EHOSTUNREACH"}


# ------------------------------------------------------------------------------------------ servers


@virtual
async def test_an_accept_queue_with_a_rate(network: Network) -> None:
    """Ten arrive at once, two are accepted in a second, four may wait: the others send their SYN again."""
    accepted: list[float] = []

    async def handler(_: StreamReader, writer: StreamWriter) -> None:
        accepted.append(now())
        writer.write(b"hi")

    server = network.serve(A, 80, handler, rate=2, backlog=3)
    connected: list[float] = []

    async def client() -> None:
        async with aioconnect.connect("10.0.0.1:80", policy=ONCE) as conn:
            connected.append(now())
            await conn.readexactly(2)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(client())
    assert server.accepted == 10
    assert accepted == pytest.approx([0.05 + number / 2 for number in range(5)] + accepted[5:])
    assert all(later - earlier >= 0.5 - 1e-9 for earlier, later in itertools.pairwise(accepted))
    assert connected[:4] == pytest.approx([0.1] * 4)
    assert connected[4] > 1


@virtual
async def test_a_paused_server(network: Network) -> None:
    server = network.serve(A, 80, Echo, backlog=0)
    server.pause()
    first = await aioconnect.connect("10.0.0.1:80", policy=ONCE)
    with pytest.raises(errors.ConnectTimeout):
        await aioconnect.connect("10.0.0.1:80", policy=ONCE, timeout=5)
    await first.send(b"x")
    network.at(now() + 10, server.resume)
    assert await first.readexactly(1) == b"x"
    assert server.waiting == 0
    await first.aclose()


@virtual
@pytest.mark.parametrize("live", ["close", "reset"])
async def test_a_restart(network: Network, live: Any) -> None:
    server = network.serve(A, 80, Echo)
    connector = Connector("10.0.0.1:80", STEADY)
    conn = await connector.connect()
    server.restart(20, live)
    if live == "close":
        assert await conn.read() == b""
    else:
        with pytest.raises(errors.ConnectionResetByPeer):
            await conn.read()
    assert now() == pytest.approx(0.15)
    conn.abort()
    async with connector.connect() as again:
        assert 20 < now() < 21.2
        await again.send(b"x")
        assert await again.readexactly(1) == b"x"
    assert connector.stats().failures == {"ECONNREFUSED": 19}


@virtual
async def test_what_waits_in_the_queue_of_a_server_that_stops(network: Network) -> None:
    server = network.serve(A, 80, Echo)
    server.pause()
    conn = await aioconnect.connect("10.0.0.1:80", policy=ONCE)
    server.stop()
    with pytest.raises(errors.ConnectionResetByPeer):
        await conn.read()
    await conn.aclose()


@virtual
async def test_a_half_open_connection(network: Network) -> None:
    """The server's machine has started anew: nobody knows until something is sent, and then it is a reset."""
    host = network.host("db", A)
    server = host.serve(80, Echo)
    conn = await aioconnect.connect("10.0.0.1:80", policy=ONCE)
    await asyncio.sleep(1)
    host.crash()
    await asyncio.sleep(30)
    assert conn.is_usable()
    assert len(server.connections) == 0
    conn.write(b"x")
    began = now()
    with pytest.raises(errors.ConnectionResetByPeer):
        await conn.read()
    assert now() - began == pytest.approx(0.1)
    conn.abort()
    await (await aioconnect.connect("10.0.0.1:80", policy=ONCE)).aclose()


@virtual
async def test_the_errors_of_a_handler(network: Network) -> None:
    """That the client has left is none; a bug is told to the loop."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(repr(context["exception"])))

    async def handler(reader: StreamReader, _: StreamWriter) -> None:
        await reader.readexactly(2)
        raise ZeroDivisionError("planted")

    network.serve(A, 80, handler)
    async with aioconnect.connect("10.0.0.1:80") as conn:
        await conn.send(b"x")
    await asyncio.sleep(1)
    assert told == []
    async with aioconnect.connect("10.0.0.1:80") as conn:
        await conn.send(b"xx")
        assert await conn.read() == b""
    assert told == ["ZeroDivisionError('planted')"]


@virtual
async def test_canned_servers(network: Network) -> None:
    network.serve(A, 80, HangUp)
    network.serve(A, 81, Hold)
    async with aioconnect.connect("10.0.0.1:80") as conn:
        assert await conn.read() == b""
    async with aioconnect.connect("10.0.0.1:81") as conn:
        await conn.send(b"x" * 1_000_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await conn.read()
    await asyncio.sleep(1)
    assert network.open == {}


@virtual
async def test_asyncios_own_servers_and_clients(network: Network) -> None:
    async def handler(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"hello " + await reader.readline())
        writer.close()

    async with await asyncio.start_server(handler, "db", 5432) as server:
        host = server.sockets[0].getsockname()[0]
        assert network.host("db").addresses == (host,)
        reader, writer = await asyncio.open_connection("db", 5432)
        writer.write(b"world\n")
        assert await reader.read() == b"hello world\n"
        writer.close()
        await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("db", 5432)


@virtual
async def test_a_unix_socket(network: Network) -> None:
    network.serve("/run/app.sock", 0, Echo)
    async with aioconnect.connect("unix:///run/app.sock") as conn:
        await conn.send(b"x")
        assert await conn.readexactly(1) == b"x"
    assert now() == 0
    with pytest.raises(errors.SocketPathNotFound):
        await aioconnect.connect("unix:///run/other.sock", policy=ONCE)
    assert now() == 0


@virtual
async def test_real_sockets_stay_real(network: Network) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.sendall(b"real")
    assert await reader.readexactly(4) == b"real"
    writer.close()
    await writer.wait_closed()
    theirs.close()


@virtual
async def test_tls_is_not_simulated(network: Network) -> None:
    network.serve(A, 80)
    with pytest.raises(ConfigError, match="is not simulated; test TLS with the fault servers"):
        await aioconnect.connect("tls://10.0.0.1:80")
    async with aioconnect.connect("10.0.0.1:80") as conn:
        with pytest.raises(ConfigError, match="is not simulated; test TLS with the fault servers"):
            await conn.start_tls(server_hostname="db.internal")
    await asyncio.sleep(1)
    assert network.open == {}


# ------------------------------------------------------------------------------------------ cut and healed


async def connected(network: Network, **options: Any) -> tuple[aioconnect.Connection, asyncio.Future[str]]:
    """A connection, and what its server hears in the end."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def listen(reader: StreamReader, _: StreamWriter) -> None:
        try:
            heard.set_result(repr(await reader.read()))
        except OSError as exc:
            heard.set_result(errno.errorcode[exc.errno or 0])

    network.serve("db", 80, listen)
    conn = await aioconnect.connect(Endpoint("db", 80, **options), policy=ONCE)
    await asyncio.sleep(10 - now())
    return conn, heard


@virtual
async def test_a_short_partition_only_delays(network: Network) -> None:
    conn, heard = await connected(network)
    with network.partition("client", "db"):
        await conn.send(b"late")
        await asyncio.sleep(5)
    conn.write_eof()
    assert await heard == "b'late'"
    # Sent again after 0.2, 0.4, 0.8, 1.6, 3.2 s: at 16.2.
    assert now() == pytest.approx(16.25)
    await conn.aclose()


@virtual
async def test_keepalive_finds_a_partition(network: Network) -> None:
    conn, _ = await connected(network, keepalive=Keepalive(idle=15, interval=5, count=3))
    network.partition("db")
    with pytest.raises(errors.ConnectionTimedOut):
        await conn.read()
    # Last heard of at 0.1; the probe of 15.1 and three more go unanswered.
    assert now() == pytest.approx(0.1 + 15 + 15)
    await conn.aclose()


@virtual
async def test_without_keepalive_nobody_notices(network: Network) -> None:
    conn, heard = await connected(network, keepalive=None)
    network.partition("db")
    reading = asyncio.ensure_future(conn.read())
    await asyncio.sleep(100_000)
    assert not reading.done()
    assert not heard.done()
    reading.cancel()
    conn.abort()


@virtual
@pytest.mark.parametrize(("user_timeout", "at"), [(None, 934.6), (30, 40)])
async def test_unacknowledged_data_is_given_up(network: Network, user_timeout: float | None, at: float) -> None:
    conn, _ = await connected(network, keepalive=None, user_timeout=user_timeout)
    network.partition("db")
    await conn.send(b"x")
    with pytest.raises(errors.ConnectionTimedOut):
        await conn.read()
    assert now() == pytest.approx(at)
    conn.abort()


@virtual
async def test_a_partition_of_one_direction(network: Network) -> None:
    """What the client sends arrives, and nobody acknowledges it."""
    conn, heard = await connected(network, keepalive=None, user_timeout=30)
    network.partition("db", "client", one_way=True)
    await conn.send(b"there")
    conn.write_eof()
    assert await heard == "b'there'"
    assert now() == pytest.approx(10.05)
    with pytest.raises(errors.ConnectionTimedOut):
        await conn.read()
    conn.abort()


@virtual
async def test_a_reset_gets_lost_in_a_partition(network: Network) -> None:
    """So the other side is half-open, and hears of it when it speaks after the end of the partition."""
    server = network.serve("db", 80, Echo)
    conn = await aioconnect.connect("db:80", policy=ONCE)
    await asyncio.sleep(1)
    with network.partition("client", "db"):
        server.stop("reset")
        await asyncio.sleep(5)
    await asyncio.sleep(5)
    assert conn.is_usable()
    conn.write(b"x")
    with pytest.raises(errors.ConnectionResetByPeer):
        await conn.read()
    await conn.aclose()


@virtual
async def test_a_partition_between_some(network: Network) -> None:
    network.serve("db", 80)
    for name in ("a", "b", "c"):
        network.host(name)
    cut = network.partition(["a", "b"], "db")
    reached: dict[str, bool] = {}
    for name in ("a", "b", "c"):
        with network.host(name):
            try:
                await (await aioconnect.connect("db:80", policy=ONCE, timeout=10)).aclose()
                reached[name] = True
            except errors.ConnectTimeout:
                reached[name] = False
    assert reached == {"a": False, "b": False, "c": True}
    cut.heal()
    with network.host("a"):
        await (await aioconnect.connect("db:80", policy=ONCE)).aclose()


@virtual
async def test_what_one_connection_loses_does_not_hold_up_another(network: Network) -> None:
    network.serve(A, 80, Echo)
    first, second = [await aioconnect.connect("10.0.0.1:80", policy=ONCE) for _ in range(2)]
    network.link("client", A, latency="100ms", loss=0.999)
    await first.send(b"x")
    network.link("client", A, latency="100ms")
    began = now()
    await second.send(b"y")
    assert await second.readexactly(1) == b"y"
    assert now() - began == pytest.approx(0.1)
    await first.send(b"z")  # in its own place, behind what takes long
    assert await first.readexactly(2) == b"xz"
    assert now() - began > 1
    await first.aclose()
    await second.aclose()


@virtual
async def test_a_race_stays_on_its_host(network: Network) -> None:
    """The refusal of one address starts the next, outside of any task."""
    network.host("db", "10.0.0.1", "10.0.0.2")
    network.script("10.0.0.1", "ECONNREFUSED")
    network.serve("db", 80)
    with network.host("a"):
        await (await aioconnect.connect("db:80", policy=ONCE)).aclose()
    assert [line[2:] for line in network.trace or () if line[1] == "connect"] == [
        ("a", "10.0.0.1:80"),
        ("a", "10.0.0.2:80"),
    ]


@virtual
async def test_a_server_that_starts_again_has_its_place_back(network: Network) -> None:
    """Meanwhile a script has let connects through to where nobody served."""
    server = network.serve(A, 80, Echo)
    server.stop()
    network.script(A, "ok")
    await (await aioconnect.connect("10.0.0.1:80", policy=ONCE)).aclose()
    server.start()
    async with aioconnect.connect("10.0.0.1:80", policy=ONCE, timeout=5) as conn:
        await conn.send(b"x")
        assert await conn.readexactly(1) == b"x"


@virtual
async def test_tasks_stay_on_their_host(network: Network) -> None:
    """What a server's handler dials comes from the server's machine."""

    async def relay(reader: StreamReader, writer: StreamWriter) -> None:
        async with aioconnect.connect("db:80", policy=ONCE) as conn:
            writer.write(str(conn.sockname[0]).encode())

    network.serve("db", 80)
    network.serve("proxy", 80, relay)
    network.partition("client", "db")
    async with aioconnect.connect("proxy:80") as conn:
        assert (await conn.read()).decode() == network.host("proxy").addresses[0]


# ------------------------------------------------------------------------------------------ names


@virtual
async def test_names_that_change(network: Network) -> None:
    network.serve("10.0.0.2", 80, Echo)
    network.host(A)
    network.dns("db.internal", A, "EAI_AGAIN", [A, "10.0.0.2"])
    connector = Connector("db.internal:80", STEADY)
    async with connector.connect() as conn:
        assert conn.peername == ("10.0.0.2", 80)
    assert connector.stats().failures == {"ECONNREFUSED": 1, "EAI_AGAIN": 1}


@virtual
async def test_a_slow_name_server(network: Network) -> None:
    network.serve(A, 80)
    network.dns("slow.internal", A, delay=3)
    connector = Connector("slow.internal:80", ONCE)
    many = await asyncio.gather(*(connector.connect() for _ in range(5)))
    assert now() == pytest.approx(3.1)
    assert [what for _, what, *_ in network.trace or ()].count("lookup") == 1, "they share it"
    for conn in many:
        await conn.aclose()
    network.dns("slow.internal", A, delay=30)
    with pytest.raises(errors.ConnectTimeout) as caught:
        await Connector("slow.internal:80", ONCE).connect()
    assert caught.value.phase == "resolve"
    assert caught.value.elapsed == pytest.approx(5)
    began = now()
    writer = (await asyncio.open_connection("slow.internal", 80))[1]
    assert now() - began == pytest.approx(30.1)
    writer.close()


@virtual
async def test_a_name_nobody_has(network: Network) -> None:
    with pytest.raises(errors.NameNotFound):
        await aioconnect.connect("nobody.internal:80", policy=ONCE)
    with pytest.raises(socket.gaierror):
        await asyncio.open_connection("nobody.internal", 80)


# ------------------------------------------------------------------------------------------ what it says


async def story(network: Network) -> None:
    """A bit of everything."""
    host = network.host("db", A)
    server = host.serve(80, Echo, rate=5, backlog=2)
    network.script("10.0.0.1:80", network.chances({"ECONNREFUSED": 0.2, "hang 1s": 0.1, "reset after 2": 0.2}))
    network.link("client", "db", latency="20ms", jitter="10ms", loss=0.05)
    network.at(3, server.stop, "reset")
    network.at(5, server.start)
    network.at(8, network.partition, "db")
    network.at(12, network.heal)
    policy = Policy(timeout=60, attempt_timeout=1, wait=Backoff(uniform=network.rng.uniform))

    async def client(number: int) -> None:
        for _ in range(6):
            try:
                async with aioconnect.connect("tcp://db:80", policy=policy) as conn:
                    await conn.send(b"%d" % number)
                    async with asyncio.timeout(2):
                        await conn.readexactly(2)
            except (OSError, EOFError) as exc:
                network.note(number, type(exc).__name__)
            await asyncio.sleep(network.rng.random() * 4)

    await asyncio.gather(*(client(number) for number in range(10, 30)))


def test_the_same_seed_tells_the_same_story() -> None:
    def told(seed: int) -> tuple[str, int]:
        network = Network(seed=seed, trace=True)
        run(story(network), network=network)
        return network.digest(), len(network.trace or ())

    assert told(7) == told(7)
    assert told(7) != told(8)


async def plain_story(network: Network) -> None:
    """Without the retries of the library, which may change: the network's own behaviour, to the last bit of time."""
    network.link("client", "db", latency="20ms", jitter="10ms", loss=0.1)
    network.serve("db", 80, Echo, rate=20, backlog=2)
    network.script("db", network.chances({"ECONNREFUSED 5ms": 0.2, "reset after 3": 0.3}))
    network.at(2, network.partition, "db")
    network.at(4, network.heal)

    async def client(number: int) -> None:
        for _ in range(5):
            try:
                reader, writer = await asyncio.open_connection("db", 80)
                with contextlib.closing(writer):
                    writer.write(b"%d" % number * 3)
                    async with asyncio.timeout(5):
                        network.note(number, len(await reader.readexactly(6)))
            except (OSError, EOFError) as exc:
                network.note(number, type(exc).__name__)
            await asyncio.sleep(network.rng.random())

    await asyncio.gather(*(client(number) for number in range(10, 30)))


def test_the_story_is_the_same_on_every_python() -> None:
    network = Network(seed=7, trace=True)
    run(plain_story(network), network=network)
    assert network.digest() == "e75a717c1f81d55be1b2c95e98164b8a8555fb9c550ee220cfa1b0df07cb28cb"


@virtual
async def test_what_is_left_open_is_seen(network: Network) -> None:
    network.serve(A, 80)
    loop = asyncio.get_running_loop()
    before = Footprint.take(loop)
    sock = await aioconnect.dial("10.0.0.1:80", policy=ONCE)
    left = Footprint.take(loop).since(before)
    assert any("client ('10.255.255.1'" in text for text in left.texts())
    sock.close()
    await asyncio.sleep(1)
    assert not Footprint.take(loop).since(before)


@virtual
@pytest.mark.parametrize("handler", [Echo, HangUp, Hold])
async def test_connections_leave_no_garbage(network: Network, handler: Any) -> None:
    network.serve("db", 80, handler)
    network.script("db", ["ECONNREFUSED 1s"] * 3 + ["ok"])

    async def use() -> None:
        connector = Connector("db:80", STEADY)
        async with connector.connect() as conn:
            await conn.send(b"x")
            if handler is not Hold:
                await conn.read(1)
        await asyncio.sleep(1)

    await use()
    gc.collect()
    gc.disable()
    try:
        await use()
        assert gc.collect() == 0
    finally:
        gc.enable()


@virtual
async def test_a_local_address(network: Network) -> None:
    network.serve("db", 80)
    async with aioconnect.connect(Endpoint("db", 80, local_addr=("10.7.7.7", 0))) as conn:
        assert conn.sockname[0] == "10.7.7.7"
        assert conn.sockname[1] > 0


def test_a_network_belongs_to_one_loop(network: Network) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            SimulatedLoop(network)

    run(main(), network=network)
    run(asyncio.sleep(1), network=network)


@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
async def test_a_loop_that_cannot_carry_one(network: Network) -> None:
    with pytest.raises(RuntimeError, match="run on a SimulatedLoop"):
        await network.__aenter__()


def test_a_network_without_a_loop(network: Network) -> None:
    server = network.serve(A, 80)
    with pytest.raises(RuntimeError, match="this network has no loop yet"):
        server.restart(3)


def test_a_story_that_cannot_go_on_says_where(network: Network) -> None:
    async def waits_for_ever() -> None:
        network.serve(A, 80)
        async with aioconnect.connect(Endpoint("10.0.0.1", 80, keepalive=None)) as conn:
            await conn.read()

    with pytest.raises(Stuck, match=r"virtual time 0\.1: no timer is set and no input comes.*\n.*waits_for_ever"):
        run(waits_for_ever(), network=network)


# ------------------------------------------------------------------------------------------ bad settings

BAD: dict[str, tuple[Callable[[Network], object], str]] = {
    "unknown word": (
        lambda n: n.script(A, ["ok", "explode"]),
        r"script\[1\]\.step='explode': is no step; must be ok",
    ),
    "typing error": (lambda n: n.script(A, ["ECONREFUSED"]), "did you mean ECONNREFUSED"),
    "bad duration": (lambda n: n.script(A, ["hang soon"]), "must be a word and at most a duration"),
    "bad bytes": (lambda n: n.script(A, ["reset after -3"]), "must be a word and at most a number of bytes"),
    "bad number": (lambda n: n.script(A, [99999]), "must be an errno number of this system"),
    "a bool": (lambda n: n.script(A, [True]), "must be a word such as"),
    "no steps": (lambda n: n.script(A, []), "must have a step"),
    "no script": (lambda n: n.script(A, None), "must be steps in a sequence"),
    "nobody's place": (lambda n: n.script("nobody", "ok"), "must be the address or the name of a host"),
    "bad port": (lambda n: n.script("10.0.0.1:0", "ok"), "must end with a port from 1 to 65535"),
    "negative rate": (lambda n: n.serve(A, 80, rate=-5), "rate=-5: must be a number of connections in a second"),
    "negative backlog": (lambda n: n.serve(A, 80, backlog=-1), "backlog=-1"),
    "bad handler": (lambda n: n.serve(A, 80, 5), "handler=5: must be a coroutine function"),
    "port 0": (lambda n: n.serve(A, 0), "port=0"),
    "bad latency": (lambda n: Network(latency=-1), "latency=-1"),
    "bad loss": (lambda n: Network(loss=1), "what loses everything is a partition"),
    "bad window": (lambda n: Network(window=0), "window=0"),
    "bad link": (lambda n: n.link("client", "db", latency="x"), "latency='x'"),
    "too likely": (lambda n: n.chances({"ECONNREFUSED": 0.7, "EHOSTUNREACH": 0.7}), "must add up to at most 1"),
    "no chance": (lambda n: n.chances({"ECONNREFUSED": -1}), "must be a probability"),
    "unlikely word": (lambda n: n.chances({"explode": 0.1}), "is no step"),
    "no answer": (lambda n: n.dns("db"), "answers"),
    "bad answer": (lambda n: n.dns("db", "not-an-address"), "must be IP addresses"),
    "bad code": (lambda n: n.dns("db", "EAI_WHAT"), "must be a code of getaddrinfo"),
    "bad name": (lambda n: n.host("a/b"), "must be the name of a host"),
    "bad address": (lambda n: n.host("a", "b"), "must be IP addresses"),
    "taken address": (lambda n: (n.host("a", A), n.host("b", A)), "belongs to the host a already"),
    "bad partition": (lambda n: n.partition("nobody"), "is none of this network"),
    "bad end": (lambda n: n.serve(A, 80).stop("explode"), "must be close, reset, vanish or keep"),  # type: ignore[arg-type]
    "bad time": (lambda n: n.at(-1, print), "when=-1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_one_clear_error(case: str) -> None:
    doing, words = BAD[case]
    with pytest.raises(ConfigError, match=words) as caught:
        doing(Network())
    assert len(caught.value.problems) == 1


def test_a_port_in_use(network: Network) -> None:
    network.serve(A, 80)
    with pytest.raises(OSError, match="Address already in use"):
        network.serve(A, 80)
