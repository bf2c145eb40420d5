"""A manager: endpoints by name, ready or not, healthy or not, and closed in order, within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import aioconnect
import aioconnect.manager
from aioconnect import ConnectError, Connection, ConnectionManager, ConnectRefused, NotReady
from aioconnect.errors import AlreadyClosed, ConfigError, PoolClosed, SocketPathNotFound
from aioconnect.link import Link
from aioconnect.pool import Pool
from aioconnect.testing import cancel_everywhere
from tests.support.clock import virtual
from tests.support.listeners import closed_port, listening

QUICK = {"wait": {"initial": "10ms", "maximum": "20ms", "jitter": "none"}, "timeout": "5s"}


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[str]:
    """``host:port`` of a server that sends everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


def manager(endpoints: dict[str, Any], policy: dict[str, Any] | None = None, **functions: Any) -> ConnectionManager:
    tree = {"grace": "50ms", "defaults": {"policy": QUICK if policy is None else policy}, "endpoints": endpoints}
    return ConnectionManager.from_mapping(tree, **functions)


def down() -> str:
    return f"127.0.0.1:{closed_port()}"


# -- By name ---------------------------------------------------------------------------------------------------------


def test_it_is_made_of_a_file_a_mapping_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text("aioconnect.endpoints.db = 'db:1'")
    environ = {"AIOCONNECT__ENDPOINTS__DB": "db:2", "OTHER__ENDPOINTS__DB": "db:3"}
    made = [
        ConnectionManager.from_toml(path),
        ConnectionManager.from_toml(path, environ=environ),
        ConnectionManager.from_env(environ, "OTHER"),
        ConnectionManager.from_mapping({"endpoints": {"db": "db:4"}}),
        ConnectionManager.from_mapping({"endpoints": {"db": "db:4"}}, environ=environ, prefix="OTHER"),
    ]
    assert [net["db"].endpoint.port for net in made] == [1, 2, 3, 4, 3]


def test_it_reads_like_a_mapping_of_connectors() -> None:
    net = manager({"db": "db:1", "cache": "cache:1"})
    assert list(net) == ["db", "cache"]
    assert len(net) == 2
    assert "db" in net
    assert "feed" not in net
    assert net["db"] is net["db"]
    assert repr(net) == "<ConnectionManager db cache>"


@pytest.mark.parametrize("use", ["__getitem__", "pool", "link", "explain", "ready"])
async def test_an_unknown_name_is_told_with_what_was_meant(use: str) -> None:
    async with manager({"cache": "cache:1", "db": "db:1"}) as net:
        with pytest.raises(ConfigError) as caught:
            await awaited(getattr(net, use)("cashe"))
    assert caught.value.problems == ("endpoint='cashe': is unknown; did you mean cache?",)


async def awaited(given: Any) -> None:
    if inspect.isawaitable(given):
        await given


async def test_connections_pools_and_links() -> None:
    prepared = list[str]()

    async def hello(conn: Connection) -> None:
        prepared.append(await ask(conn))

    async def consume(conn: Connection) -> None:
        prepared.append(await ask(conn))

    async with echoing() as address, manager({"db": address}, prepare=hello) as net:
        async with net["db"].connect() as conn:
            assert await ask(conn) == "hello"
        async with net.pool("db").acquire() as conn:
            assert await ask(conn) == "hello"
        await net.link("db").run(consume)
        assert net.pool("db") is net.pool("db")
        assert net.link("db") is net.link("db")
        assert net.pool("db").connector is net["db"]
        assert net.stats()["db"].connector.connected == 3
    assert prepared == ["hello"] * 4


async def ask(conn: Connection) -> str:
    await conn.send(b"hello\n")
    return (await conn.readline()).decode().strip()


def test_an_endpoint_is_explained() -> None:
    net = ConnectionManager.from_mapping({"endpoints": {"db": "db:1"}})
    assert net.explain("db").splitlines()[:2] == [
        "[aioconnect.endpoints.db]",
        'url = "db:1"                              # endpoints.db.url',
    ]


# -- Ready or not ----------------------------------------------------------------------------------------------------


async def test_ready_waits_for_all_of_them() -> None:
    async with echoing() as one, echoing() as other, manager({"a": one, "b": other}) as net:
        await net.ready()
        assert [each.connector.connected for each in net.stats().values()] == [1, 1]
        await net.ready("b", timeout=1)
        assert [each.connector.connected for each in net.stats().values()] == [1, 2]


async def test_one_that_is_down_is_told_with_its_name() -> None:
    async with echoing() as up, manager({"a": up, "b": down(), "c": down()}) as net:
        with pytest.raises(ConnectRefused) as caught:
            await net.ready(timeout=0.1)
        assert caught.value.stop_reason == "timeout"
        notes = "\n".join(caught.value.__notes__)
        assert "not ready: b, c" in notes
        assert f"c: connect {net['c'].endpoint.targets[0]}: [ECONNREFUSED]" in notes
        assert [each["state"] for each in net.health()["endpoints"].values()] == [
            "reachable",
            "unreachable",
            "unreachable",
        ]


async def test_ready_waits_for_what_is_not_there_yet(tmp_path: Path) -> None:
    asked = list[int]()

    async def not_at_first(conn: Connection) -> None:
        asked.append(1)
        if len(asked) < 3:
            raise NotReady("loading")

    path = str(tmp_path / "late.sock")
    async with manager({"late": {"path": path}}, prepare=not_at_first) as net:
        with pytest.raises(SocketPathNotFound):
            await net["late"].connect()
        waiting = asyncio.ensure_future(net.ready(timeout=5))
        await asyncio.sleep(0.03)
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
        await waiting
        server.close()
    assert len(asked) == 3


async def test_ready_waits_at_an_open_circuit_that_others_are_refused_at() -> None:
    policy = {**QUICK, "max_attempts": 1, "breaker": {"failures": 1, "when_open": "fail"}}
    port = closed_port()
    async with manager({"db": f"127.0.0.1:{port}"}, policy) as net:
        with pytest.raises(ConnectRefused):
            await net["db"].connect()
        assert net.health()["endpoints"]["db"]["circuit"] == "open"
        with listening(port=port):
            await net.ready(timeout=5)
        assert net.health()["ready"]


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("no")])
async def test_what_waiting_cannot_help_ends_it_at_once(error: Exception) -> None:
    async def broken(conn: Connection) -> None:
        raise error

    async with echoing() as address, manager({"a": down(), "b": address}, prepare={"b": broken}) as net:
        async with asyncio.timeout(4):
            with pytest.raises(type(error)) as caught:
                await net.ready("a", "b")
    assert caught.value is error
    assert error.__notes__[-1] == "not ready: b"


async def test_ready_asks_the_pool_and_the_link_where_there_are_some() -> None:
    async with echoing() as address, manager({"a": address, "b": address}) as net:
        pool, link = net.pool("a"), net.link("b")
        await net.ready(timeout=1)
        assert pool.stats().idle == 1
        assert link.state.value == "ready"
        assert {each["state"] for each in net.health()["endpoints"].values()} == {"reachable"}


async def test_ready_gives_up_on_a_pool_and_a_link_too() -> None:
    async with manager({"a": down(), "b": down()}) as net:
        net.pool("a"), net.link("b")
        with pytest.raises(ConnectError) as caught:
            await net.ready(timeout=0.1)
        assert "not ready: a, b" in caught.value.__notes__


@pytest.mark.parametrize("made", [(), ("pool",), ("link",), ("pool", "link")])
async def test_ready_can_be_cancelled_anywhere(made: tuple[str, ...]) -> None:
    async with echoing() as address, manager({"a": address, "b": address}) as net:

        async def run() -> None:
            async with ConnectionManager(net.configuration) as each:
                for name in made:
                    getattr(each, name)("a")
                await each.ready(timeout=5)

        assert await cancel_everywhere(run) > 3


# -- Healthy or not --------------------------------------------------------------------------------------------------


async def test_health_says_what_is_known_and_is_plain() -> None:
    with listening() as sock:
        up = "{}:{}".format(*sock.getsockname())
        policy = {**QUICK, "max_attempts": 3, "breaker": {"failures": 2}}
        async with manager({"up": up, "down": down(), "other": up}, policy) as net:
            assert net.health()["ready"] is True
            async with net["up"].connect():
                pass
            with pytest.raises(ConnectRefused):
                await net["down"].connect()
            expected = {
                "ready": False,
                "endpoints": {
                    "up": {"state": "reachable", "circuit": "closed", "error": None},
                    "down": {"state": "unreachable", "circuit": "open", "error": "ECONNREFUSED"},
                    "other": {"state": "never dialled", "circuit": "closed", "error": None},
                },
            }
            assert json.loads(json.dumps(net.health())) == expected
        assert net.health() == expected


async def test_whoever_is_closing_is_not_ready() -> None:
    net = manager({"db": "db:1"})
    assert net.health()["ready"]
    async with net:
        assert net.health()["ready"]
    assert not net.health()["ready"]


async def test_health_knows_of_a_link_that_is_down() -> None:
    async with manager({"feed": down()}) as net:
        link = net.link("feed")
        assert net.health()["endpoints"]["feed"]["link"] == "idle"
        with pytest.raises(ConnectError):
            await link.ready(timeout=0.05)
        told = net.health()["endpoints"]["feed"]
        assert (told["state"], told["error"]) == ("unreachable", "ECONNREFUSED")
        assert net.stats()["feed"].link is link.state
        assert net.stats()["feed"].pool is None


# -- In its block, its loop and its process --------------------------------------------------------------------------


async def test_what_has_to_be_closed_is_for_the_block() -> None:
    net = manager({"db": "db:1"})
    for call in (net.pool, net.link):
        with pytest.raises(RuntimeError, match="must be entered first: async with"):
            call("db")
    with pytest.raises(RuntimeError, match="must be entered first"):
        await net.ready()
    async with net:
        with pytest.raises(RuntimeError, match="can be entered only once"):
            await net.__aenter__()
    for call in (net.pool, net.link):
        with pytest.raises(RuntimeError, match="is closed"):
            call("db")
    with pytest.raises(RuntimeError, match="only once"):
        await net.__aenter__()
    await net.aclose()


def test_closed_without_a_block() -> None:
    asyncio.run(manager({"db": "db:1"}).aclose())


async def test_another_loop_is_refused() -> None:
    def in_another_loop(call: Callable[[], Any]) -> None:
        async def run() -> None:
            await awaited(call())

        with pytest.raises(RuntimeError, match="belongs to another event loop; make one manager for each"):
            asyncio.run(run())

    async with manager({"db": "db:1"}) as net:
        calls = (lambda: net.pool("db"), lambda: net.link("db"), net.ready, net.aclose)
        for call in calls:
            await asyncio.to_thread(in_another_loop, call)


FORKED = """
import asyncio, os
from aioconnect import ConnectionManager

async def main():
    async with ConnectionManager.from_mapping({"endpoints": {"db": "db:1"}}) as net:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            for use in (net.pool, net.__getitem__):
                try:
                    use("db")
                except RuntimeError as error:
                    os.write(1, str(error).replace(str(parent), "PARENT").encode() + b"\\n")
            os._exit(0)
        os.waitpid(child, 0)

asyncio.run(main())
"""


def test_another_process_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == 2 * "<ConnectionManager db> belongs to process PARENT; after a fork make a new one\n"


# -- Closing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def closings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, float]]:
    """What was closed, and with how many seconds left."""
    found: list[tuple[object, float]] = []
    for cls in (Pool, Link):
        original: Any = cls.aclose

        async def aclose(self: Any, left: float, original: Any = original) -> object:
            found.append((self, left))
            return await original(self, left)

        monkeypatch.setattr(cls, "aclose", aclose)
    return found


async def test_what_was_made_last_is_closed_first(closings: list[tuple[object, float]]) -> None:
    async with echoing() as address, manager({"a": address, "b": address, "c": address}) as net:
        made = [net.pool("b"), net.link("a"), net.link("b"), net.pool("a"), net.pool("b"), net.link("a")][:4]
        await net.ready("a", "b")
    assert [each for each, _ in closings] == made[::-1]
    assert all(left < 0.051 for _, left in closings)
    await net.aclose()
    assert len(closings) == 4


@pytest.mark.may_leak("log")  # a pool names those who had its connections
async def test_a_stuck_pool_and_a_stuck_link_are_aborted_within_the_limit(closings: list[tuple[object, float]]) -> None:
    ended = list[str]()

    async def never(conn: Connection) -> None:
        try:
            await conn.read()
        except AlreadyClosed:
            ended.append("link")
            raise

    async with echoing() as address:
        async with asyncio.timeout(4), manager({"a": address, "b": address}) as net:
            pool = net.pool("a")
            conn = await pool.acquire()
            running = asyncio.ensure_future(net.link("b").run(never))
            await net.ready("b")
            net.pool("b")
        assert conn.is_closing
        with pytest.raises(PoolClosed):
            await pool.acquire()
        await asyncio.wait_for(running, 1)
    assert [left < 0.051 for _, left in closings] == [True] * 3


@pytest.mark.may_leak("log")
async def test_a_cancelled_close_leaves_no_time_and_nothing_open(closings: list[tuple[object, float]]) -> None:
    async with echoing() as address:
        net = await manager({"a": address, "b": address}).__aenter__()
        first, last = await net.pool("a").acquire(), await net.pool("b").acquire()
        closing = asyncio.ensure_future(net.aclose(grace=60))
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert first.is_closing
        assert last.is_closing
    assert [int(left) for _, left in closings] in ([60, 0], [59, 0])


async def test_a_block_that_somebody_else_closes_ends_after_that() -> None:
    async with echoing() as address:
        async with manager({"a": address, "b": address}) as net:
            conn = await net.pool("a").acquire()
            net.pool("b")
            closing = asyncio.ensure_future(net.aclose(grace=5))
            await asyncio.sleep(0.01)
            asyncio.get_running_loop().call_later(0.02, net._pools["a"].release, conn)
        assert closing.done()
        assert conn.is_closing
        await closing


@pytest.mark.may_leak("log")
async def test_the_second_to_close_may_be_in_a_hurry() -> None:
    async with echoing() as address, manager({"a": address, "b": address}) as net:
        first, last = await net.pool("a").acquire(), await net.pool("b").acquire()
        closing = asyncio.ensure_future(net.aclose(grace=0.05))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await net.aclose(grace=60)
        await closing
        assert first.is_closing
        assert last.is_closing


@virtual
@pytest.mark.may_leak("log")
async def test_the_shorter_time_holds_for_what_is_being_closed_already() -> None:
    async with echoing() as address, manager({"a": address, "b": address}) as net:
        first, last = await net.pool("a").acquire(), await net.pool("b").acquire()
        began = asyncio.get_running_loop().time()
        closing = asyncio.ensure_future(net.aclose(grace=60))
        await asyncio.sleep(1)
        await asyncio.gather(net.aclose(grace=2), net.aclose(grace=5))
        assert asyncio.get_running_loop().time() == began + 3
        await closing
        assert first.is_closing
        assert last.is_closing


@pytest.mark.may_leak("log")
async def test_a_block_can_be_cancelled_anywhere() -> None:
    async with echoing() as address:
        net = manager({"a": address, "b": address})

        async def run() -> None:
            async with ConnectionManager(net.configuration) as each:
                async with each.pool("a").acquire() as conn:
                    await ask(conn)
                await each.link("b").ready()

        assert await cancel_everywhere(run) > 3


@virtual
async def test_the_limit_is_one_for_all_of_them(closings: list[tuple[object, float]]) -> None:
    async with echoing() as address:
        net = await manager({"a": address, "b": address, "c": address}).__aenter__()
        held = [await net.pool(name).acquire() for name in "abc"]
        began = asyncio.get_running_loop().time()
        await net.aclose(grace=10)
        assert asyncio.get_running_loop().time() == began + 10
        assert [left for _, left in closings] == [10, 0, 0]
        assert all(conn.is_closing for conn in held)


# -- Imports ---------------------------------------------------------------------------------------------------------


def test_whoever_needs_no_manager_does_not_pay_for_it() -> None:
    program = "import sys, aioconnect; print('aioconnect.manager' in sys.modules, 'tomllib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "False False\n"
    assert aioconnect.ConnectionManager is ConnectionManager
    with pytest.raises(AttributeError, match="module 'aioconnect' has no attribute 'ConectionManager'"):
        _ = aioconnect.ConectionManager  # type: ignore[attr-defined]


def test_the_examples() -> None:
    assert doctest.testmod(aioconnect.manager).failed == 0
