"""Pools of Redis and PostgreSQL connections, while these are restarted, killed and gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest

from aioconnect import STARTING, TRANSIENT, Backoff, Connection, Connector, NotReady, Policy, Pool, PoolTimeout
from tests.support import postgres
from tests.support.peers import Authority
from tests.support.pools import books_are_right
from tests.support.servers import Server, postgres_server, redis_server

pytestmark = pytest.mark.servers

POLICY = Policy(retry_on=TRANSIENT | STARTING, timeout=10, wait=Backoff(initial=0.01, maximum=0.2))


class Service(NamedTuple):
    server: Server
    prepare: Callable[[Connection], Awaitable[None]]
    ask: Callable[[Connection, int], Awaitable[int]]

    def pool(self, policy: Policy = POLICY, **settings: Any) -> Pool:
        return Pool(Connector(f"127.0.0.1:{self.server.port}", policy, self.prepare), **settings)


async def redis_ping(connection: Connection) -> None:
    await connection.send(b"PING\r\n")
    if (answer := await connection.readuntil(b"\r\n")) != b"+PONG\r\n":
        raise NotReady(answer.decode().strip())


async def redis_echo(connection: Connection, number: int) -> int:
    await connection.send(f"ECHO {number}\r\n".encode())
    await connection.readuntil(b"\r\n")
    return int(await connection.readuntil(b"\r\n"))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    with redis_server(authority.directory / "redis", authority) as server:
        yield Service(server, redis_ping, redis_echo)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Service]:
    with postgres_server() as server:
        yield Service(server, postgres.startup, postgres.select)


@pytest.fixture(params=["redis", "postgresql"])
def service(request: pytest.FixtureRequest) -> Service:
    found: Service = request.getfixturevalue(request.param)
    found.server.ensure()
    return found


async def asked(pool: Pool, ask: Callable[[Connection, int], Awaitable[int]], number: int) -> None:
    async with pool.acquire() as connection:
        assert await ask(connection, number) == number


async def test_a_restart_is_seen_by_no_caller(service: Service, record_property: Callable[[str, object], None]) -> None:
    """The server is back when it answers; that is when the first of thirty calls begins."""
    async with service.pool() as pool:
        await pool.ready(10)
        await asyncio.gather(*(asked(pool, service.ask, number) for number in range(10)))
        service.server.stop()
        service.server.start()
        async with await Connector(f"127.0.0.1:{service.server.port}", POLICY, service.prepare).connect():
            began = time.perf_counter()
        await asked(pool, service.ask, 1)
        first = time.perf_counter() - began
        for number in range(2, 31):
            await asked(pool, service.ask, number)
        record_property("first success in ms", first * 1000)
        print(f"first success after {first * 1000:.1f} ms")
        assert first < 2, "generous: this is a busy machine"
        assert pool.stats().closed["stale"] + pool.stats().closed.get("suspect", 0) == 10
        books_are_right(pool)


async def test_callers_during_a_restart_wait_and_see_nothing_of_it(service: Service) -> None:
    async with service.pool() as pool:
        await pool.ready(10)
        await asyncio.sleep(0.01)  # what was in use just now is lent again without a look
        service.server.stop()
        callers = [asyncio.create_task(asked(pool, service.ask, number)) for number in range(30)]
        await asyncio.sleep(0.1)
        service.server.start()
        await asyncio.gather(*callers)
        books_are_right(pool)


async def test_what_a_killed_server_leaves_is_found(redis: Service) -> None:
    redis.server.ensure()
    async with redis.pool() as pool:
        await pool.ready(10)
        await asyncio.sleep(0.01)
        redis.server.kill()
        redis.server.start()
        redis.server.until_serving()
        for number in range(30):
            await asked(pool, redis.ask, number)
        assert pool.stats().created < 20


async def test_backends_that_are_ended_one_by_one(postgresql: Service) -> None:
    """``pg_terminate_backend``: a message that nobody asked for, and FIN."""
    postgresql.server.ensure()
    async with postgresql.pool() as pool:
        await pool.ready(5)
        async with pool.acquire() as connection:
            await connection.send(
                query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
            await connection.readuntil(b"Z\0\0\0\5I")
        await asyncio.sleep(0.05)
        await asyncio.gather(*(asked(pool, postgresql.ask, number) for number in range(20)))
        books_are_right(pool)


def query(words: str) -> bytes:
    return b"Q" + (len(words) + 5).to_bytes(4, "big") + words.encode() + b"\0"


async def test_fifty_callers_at_a_dead_server(redis: Service) -> None:
    """They come again and again; the schedule connects: about once in each tenth of a second, here."""
    redis.server.ensure()
    redis.server.stop()
    async with redis.pool(POLICY.replace(wait=Backoff(initial=0.05, maximum=0.2))) as pool:
        end = time.monotonic() + 1

        async def caller() -> None:
            while time.monotonic() < end:
                with contextlib.suppress(PoolTimeout):
                    async with pool.acquire(0.1):
                        pass
                await asyncio.sleep(0.05)

        await asyncio.gather(*(caller() for _ in range(50)))
        assert pool.stats().timeouts > 50
        assert pool.connector.stats().attempts < 40


async def test_users_that_are_cancelled_do_not_mix_answers(service: Service) -> None:
    async with service.pool(max_size=3) as pool:
        numbers = itertools.count(1)

        async def user() -> None:
            while True:
                await asked(pool, service.ask, next(numbers))

        users = [asyncio.create_task(user()) for _ in range(10)]
        for turn in range(100):
            await asyncio.sleep(0.001)
            users[turn % 10].cancel()
            await asyncio.wait({users[turn % 10]})
            assert users[turn % 10].cancelled()
            users[turn % 10] = asyncio.create_task(user())
        for task in users:
            task.cancel()
        await asyncio.wait(users)
        books_are_right(pool)
        await asyncio.gather(*(asked(pool, service.ask, number) for number in range(10)))
