"""A pool whose users are cancelled at any moment, once or twice, and hooks that fail, dawdle or never end.

What has to hold, however hard it is treated: nobody reads a reply to somebody else's request, the books are right at
every step, and afterwards every slot can be used, with no task and no descriptor left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

from aioconnect import Backoff, Connection, Connector, Policy, Pool
from aioconnect.errors import NameServerUnavailable, PoolTimeout
from aioconnect.limits import Source
from aioconnect.resolver import AddressInfo, Query
from aioconnect.testing.leaks import Footprint, settling
from tests.support.network import infos
from tests.support.pools import books_are_right

__all__ = ("KINDS", "all_gates", "cancelled_at_random", "gates")

SIZE = 5
USERS = 40
KINDS = ("ok", "error", "slow", "never")
POLICY = Policy(wait=Backoff(initial=0.001, maximum=0.005), attempt_timeout=0.05, breaker=None)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each line comes back, now and then a moment later."""
    with contextlib.suppress(OSError, RuntimeError):  # uvloop raises the latter when the client has gone
        while line := await reader.readline():
            if line[-2:-1] in b"159":
                await asyncio.sleep(0.001)
            writer.write(line)
            await writer.drain()
    writer.transport.abort()


@contextlib.asynccontextmanager
async def _serving() -> AsyncIterator[int]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0, backlog=500)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def _nothing_left() -> AsyncIterator[None]:
    """No task and no descriptor more than before."""
    loop = asyncio.get_running_loop()
    before = Footprint.take(loop)
    yield
    for _ in settling(200, 1.0):
        await asyncio.sleep(0)
        if not Footprint.take(loop).since(before):
            return
    raise AssertionError("\n".join(Footprint.take(loop).since(before).texts()))


async def _exchange(connection: Connection, word: str, tally: Counter[str]) -> None:
    connection.write(f"{word}\n".encode())
    reply = await connection.readline()
    tally["right" if reply.decode() == f"{word}\n" else "wrong"] += 1


async def _use(pool: Pool, word: str, way: int, tally: Counter[str]) -> None:
    """The ways to have a connection: with a time limit and without, in a block and by hand."""
    limit = (None, 0.005, 1.0)[way % 3]
    if way % 2:
        async with pool.acquire(limit) as connection:
            await _exchange(connection, word, tally)
        return
    connection = await pool.acquire(limit)
    try:
        await _exchange(connection, word, tally)
    except BaseException:
        connection.abort()
        raise
    finally:
        pool.release(connection)


async def _user(pool: Pool, number: int, tally: Counter[str]) -> None:
    for turn in itertools.count():
        with contextlib.suppress(PoolTimeout):
            await _use(pool, f"{number}-{turn}", number + turn, tally)
        await asyncio.sleep(0)


async def cancelled_at_random(cancels: int, seed: int = 0) -> Counter[str]:
    """Cancel users of a pool that many times. Returns what was counted; AssertionError if anything is wrong."""
    chance = random.Random(seed)
    tally: Counter[str] = Counter()
    async with _nothing_left(), _serving() as port:
        pool = Pool(Connector(f"127.0.0.1:{port}", POLICY), max_size=SIZE)
        numbers = itertools.count()
        users: set[asyncio.Task[None]] = set()
        while tally["cancels"] < cancels:
            while len(users) < USERS:
                users.add(asyncio.create_task(_user(pool, next(numbers), tally)))
            for _ in range(chance.choice((0, 1, 2, 3))):
                await asyncio.sleep(0)
            books_are_right(pool)
            for user in chance.sample(sorted(users, key=id), chance.randint(0, 6)):
                tally["cancels"] += user.cancel()
                if chance.random() < 0.3:
                    # Again, while it unwinds: in this turn, the next, or the one after.
                    again = chance.choice((0, 1, 2))
                    tally["twice"] += 1
                    asyncio.get_running_loop().call_later(again * 1e-6, user.cancel) if again else user.cancel()
            users = {user for user in users if not user.done()}
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        await _all_slots_work(pool, tally)
        tally["created"] = pool.stats().created
    assert tally["wrong"] == 0, tally
    assert tally["right"] > 0, tally
    return tally


async def _all_are_back(pool: Pool) -> None:
    """A reset hook takes its time."""
    while pool.stats().in_use:
        await asyncio.sleep(0.001)


async def _all_slots_work(pool: Pool, tally: Counter[str]) -> None:
    async with asyncio.timeout(12):
        held = [await pool.acquire() for _ in range(SIZE)]
        for number, connection in enumerate(held):
            await _exchange(connection, f"last-{number}", tally)
        for connection in held:
            pool.release(connection)
        await _all_are_back(pool)
    books_are_right(pool)
    assert pool.stats().idle == SIZE
    assert await pool.aclose() == ()
    assert pool.stats().size == 0


class _Gates:
    """The hooks of a pool, of which each is in one of the `KINDS` of moods."""

    def __init__(self, resolve: str, prepare: str, check: str, reset: str) -> None:
        self.moods = {"resolve": resolve, "prepare": prepare, "check": check, "reset": reset}
        self.port = 0

    async def _pass(self, name: str) -> None:
        mood = self.moods[name]
        if mood == "error":
            raise NameServerUnavailable if name == "resolve" else ConnectionResetError
        if mood == "slow":
            await asyncio.sleep(0.004)
        elif mood == "never":
            await asyncio.sleep(3600)

    def hook(self, name: str) -> Callable[[Connection], Awaitable[None]]:
        return lambda _: self._pass(name)

    async def resolve(self, query: Query, limit: float = math.inf, source: Source = "call") -> list[AddressInfo]:
        await self._pass("resolve")
        return infos("127.0.0.1", port=query.port)

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        return None

    def forget(self, query: Query) -> None:
        pass


async def gates(*moods: str, seed: int = 0, seconds: float = 0.06) -> Counter[str]:
    """Eight impatient users of a pool whose hooks are in these moods; then all hooks are well, and so is the pool."""
    chance = random.Random(seed)
    tally: Counter[str] = Counter()
    own = _Gates(*moods)
    async with _nothing_left(), _serving() as port:
        connector = Connector(f"gates.test:{port}", POLICY, own.hook("prepare"), resolver=own)
        settings: dict[str, Any] = {"check": own.hook("check"), "reset": own.hook("reset"), "hook_timeout": 0.01}
        pool = Pool(connector, max_size=SIZE, **settings)

        async def user(number: int) -> None:
            for turn in itertools.count():
                with contextlib.suppress(OSError):
                    async with pool.acquire(chance.uniform(0, 0.008)) as connection:
                        await _exchange(connection, f"{number}-{turn}", tally)
                await asyncio.sleep(0)

        always = -1.0
        with mock.patch.multiple("aioconnect.pool_lending", _CHECK_AFTER=always, _JUST_NOW=always):
            users = [asyncio.create_task(user(number)) for number in range(8)]
            end = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < end:
                await asyncio.sleep(chance.uniform(0, 0.002))
                books_are_right(pool)
                chance.choice(users).cancel()
                users = [each if not each.done() else asyncio.create_task(user(8)) for each in users]
            for each in users:
                each.cancel()
            await asyncio.gather(*users, return_exceptions=True)
            own.moods = dict.fromkeys(own.moods, "ok")
            connector.retry_now()
            await pool.ready(SIZE, 1.0)
            async with asyncio.timeout(1):
                await _all_are_back(pool)
        await _all_slots_work(pool, tally)
    assert tally["wrong"] == 0, (moods, tally)
    return tally


def all_gates() -> Iterator[tuple[str, ...]]:
    """Every mood of every hook."""
    return itertools.product(KINDS, repeat=4)
