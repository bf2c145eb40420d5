"""The pool, against servers that do what servers do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from aioconnect import (
    Backoff,
    ConfigError,
    Connection,
    Connector,
    ConnectRefused,
    Endpoint,
    Event,
    NotReady,
    Policy,
    Pool,
    PoolTimeout,
    classify,
)
from aioconnect.errors import ConnectError, PoolClosed, PoolFull
from aioconnect.events import GaveUp
from aioconnect.testing.cancel import cancel_everywhere
from tests.support.clock import virtual
from tests.support.listeners import closed_port, listening
from tests.support.network import SILENT, Network
from tests.support.pools import books_are_right, echo, hello, lines, pool_of, settled

NOWHERE = "127.0.0.1:1"
QUICK = Policy(wait=Backoff(initial=0.01, maximum=0.05))


async def hold(pool: Pool, until: asyncio.Event, timeout: float | None = None) -> None:
    async with pool.acquire(timeout):
        await until.wait()


async def echo_once(pool: Pool) -> None:
    async with pool.acquire() as conn:
        assert await echo(conn, "once") == "once"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# A. Ownership and cancellation


async def test_1_what_a_cancelled_user_leaves_behind_reaches_nobody() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:

        async def first() -> None:
            async with pool.acquire() as conn:
                await echo(conn, "a", 0.05)

        task = asyncio.create_task(first())
        await until(lambda: pool.stats().in_use == 1)
        await asyncio.sleep(0.01)
        task.cancel()
        async with pool.acquire() as conn:
            assert await echo(conn, "b") == "b"
        assert server.accepted == 2
        assert pool.stats().closed == {"error": 1}
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("clean", [False, True])
async def test_2_an_exception_discards_unless_the_connection_is_marked_clean(clean: bool) -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        with pytest.raises(LookupError):  # noqa: PT012
            async with pool.acquire() as conn:
                await echo(conn, "a")
                if clean:
                    conn.mark_clean()
                raise LookupError
        async with pool.acquire() as conn:
            assert await echo(conn, "b") == "b"
        assert server.accepted == (1 if clean else 2)


async def test_2_a_mark_is_taken_back_at_the_next_lease() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        async with pool.acquire() as conn:
            conn.mark_clean()
        with pytest.raises(LookupError):
            async with pool.acquire() as conn:
                raise LookupError
        assert pool.stats().closed == {"error": 1}
        # Also through the hands of one who waited.
        async with pool.acquire() as conn:
            conn.mark_clean()
            waiter = asyncio.create_task(pool.acquire())
            await turns()
        conn = await waiter
        assert not conn.is_clean
        pool.release(conn)


async def test_3_one_who_is_cancelled_in_line_is_passed_over() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        conn = await pool.acquire()
        first, second = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
        await turns()
        assert pool.stats().waiting == 2
        first.cancel()
        pool.release(conn)
        assert await second is conn
        assert (pool.stats().waiting, pool.stats().in_use) == (0, 1)
        books_are_right(pool)
        pool.release(conn)
        assert first.cancelled()


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("sleeps", range(6))
async def test_4_cancelled_in_the_turn_of_the_grant_it_goes_to_the_next(sleeps: int, others: int) -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        conn = await pool.acquire()
        first = asyncio.create_task(pool.acquire())
        rest = [asyncio.create_task(pool.acquire()) for _ in range(others)]
        await turns()
        pool.release(conn)
        for _ in range(sleeps):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        if not first.cancelled():
            pool.release(first.result())
        for task in rest:
            assert await task is conn
            pool.release(conn)
        books_are_right(pool)
        assert (pool.stats().idle, server.accepted) == (1, 1)


async def test_5_a_dial_goes_on_when_its_caller_is_cancelled() -> None:
    async with lines() as server:
        server.greeting = 0.1
        async with pool_of(server, max_size=1, prepare=hello) as pool:
            caller = asyncio.create_task(pool.acquire())
            await until(lambda: server.accepted == 1)
            caller.cancel()
            async with pool.acquire() as conn:
                assert await echo(conn, "a") == "a"
            assert server.accepted == 1
            assert caller.cancelled()


@pytest.mark.parametrize("cancels", [1, 2])
async def test_6_7_cancelled_while_its_connection_is_reset(cancels: int) -> None:
    async def reset(connection: Connection) -> None:
        await asyncio.sleep(0.02)

    async with lines() as server, pool_of(server, max_size=1, reset=reset) as pool:

        async def use() -> None:
            async with pool.acquire():
                pass
            await asyncio.sleep(10)

        task = asyncio.create_task(use())
        while not pool._lending.tasks.running or pool.stats().connecting:
            await asyncio.sleep(0)
        assert pool.holders()[0].task == "the reset hook"
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        async with pool.acquire() as conn:
            assert await echo(conn, "a") == "a"
        assert server.accepted == 1
        assert task.cancelled()


async def test_9_the_callers_own_time_limit_leaves_the_pool_usable() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        async with pool.acquire():
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.01), pool.acquire():
                    pass
            assert not isinstance(caught.value, PoolTimeout)
        async with pool.acquire(timeout=1):
            pass
        assert server.accepted == 1


async def test_10_a_connection_that_is_not_lent_cannot_be_given_back() -> None:
    async with lines() as server, pool_of(server) as pool, pool_of(server) as other:
        conn = await pool.acquire()
        foreign = await other.acquire()
        pool.release(conn)
        before = pool.stats()
        for wrong in (conn, foreign):
            with pytest.raises(RuntimeError, match="is not lent: it was given back before, or is another pool's"):
                pool.release(wrong)
        assert pool.stats() == before
        other.release(foreign)


async def test_10_given_back_inside_its_block() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        with pytest.raises(RuntimeError, match="given back before the end of its block"):
            async with pool.acquire() as conn:
                pool.release(conn)
        # It may be somebody else's by then, who must not lose it.
        with pytest.raises(LookupError):  # noqa: PT012
            async with pool.acquire() as conn:
                pool.release(conn)
                again = await pool.acquire()
                raise LookupError
        assert await echo(again, "a") == "a"
        books_are_right(pool)
        pool.release(again)


async def test_each_is_for_one_connection() -> None:
    async with lines() as server, pool_of(server) as pool:
        acquiring = pool.acquire()
        async with acquiring as conn:
            with pytest.raises(RuntimeError, match=r"call acquire\(\) for each"):
                async with acquiring:
                    pass
            with pytest.raises(RuntimeError, match=r"call acquire\(\) for each"):
                await acquiring
            assert await echo(conn, "a") == "a"
        with pytest.raises(RuntimeError, match=r"call acquire\(\) for each"):
            await acquiring
        assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


async def test_two_tasks_that_share_one_do_not_share_a_connection() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        held = await pool.acquire()
        acquiring = pool.acquire()

        async def use() -> None:
            async with acquiring:
                books_are_right(pool)

        first, second = asyncio.create_task(use()), asyncio.create_task(use())
        await turns(2)
        pool.release(held)
        await first
        with pytest.raises(RuntimeError, match=r"call acquire\(\) for each"):
            await second
        assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


async def test_given_back_twice_in_one_turn() -> None:
    """By then it is on its way to the next, who must not lose it."""
    async with lines() as server, pool_of(server, max_size=1) as pool:
        conn = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await turns(2)
        pool.release(conn)
        with pytest.raises(RuntimeError, match="given back before"):
            pool.release(conn)
        assert await waiting is conn
        books_are_right(pool)
        pool.release(conn)


# B. Queueing and limits


async def test_11_first_come_first_served() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        order: list[int] = []

        async def use(number: int) -> None:
            async with pool.acquire():
                order.append(number)

        async with pool.acquire():
            tasks = []
            for number in range(4):
                tasks.append(asyncio.create_task(use(number)))
                await turns(2)
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3]


async def test_12_nobody_who_comes_later_is_served_before() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        rounds, served = 0, asyncio.Event()

        async def hog() -> None:
            nonlocal rounds
            while not served.is_set():
                async with pool.acquire():
                    await asyncio.sleep(0.001)
                rounds += 1

        task = asyncio.create_task(hog())
        await asyncio.sleep(0.005)
        before = rounds
        async with pool.acquire():
            served.set()
        assert rounds - before <= 3
        await task


async def test_13_a_time_out_says_who_has_the_connections_and_for_how_long() -> None:
    async with lines() as server, pool_of(server, max_size=2) as pool:
        done = asyncio.Event()
        holders = [asyncio.create_task(hold(pool, done), name=f"holder-{number}") for number in (1, 2)]
        await until(lambda: pool.stats().in_use == 2)
        await asyncio.sleep(0.05)
        began = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=0.1)
        assert 0.09 < time.monotonic() - began < 5
        error, had = caught.value, caught.value.pool
        assert had is not None
        assert (had.size, had.idle, had.in_use, had.connecting, had.waiting, had.max_size) == (2, 0, 2, 0, 1, 2)
        assert error.elapsed is not None
        assert 0.09 < error.elapsed < 5
        assert had.dialing == 0
        assert error.__cause__ is None
        assert [holder.task for holder in had.holders] == ["holder-1", "holder-2"]
        line = hold.__code__.co_firstlineno + 1
        assert all(holder.place == f"{__file__}:{line}" for holder in had.holders)
        assert all(0.05 < holder.seconds < 10 for holder in had.holders)
        assert "2 in use, 0 idle, 0 connecting, 1 waiting, 2 at most; waited " in str(error)
        assert f"held by holder-1 at {__file__}:{line} for " in str(error)
        assert pool.holders()[0].task == "holder-1"
        done.set()
        await asyncio.gather(*holders)
        assert pool.stats().timeouts == 1


@virtual
async def test_13_where_the_time_went_and_the_last_connect_error() -> None:
    pool = Pool(Connector(NOWHERE, Policy(wait=Backoff(initial=0.5, maximum=0.5, jitter="none"))), max_size=1)
    with pytest.raises(PoolTimeout) as caught:
        await pool.acquire(timeout=2)
    error = caught.value
    assert isinstance(error.__cause__, ConnectRefused)
    assert error.pool is not None
    assert error.elapsed == pytest.approx(2, abs=0.01)
    assert error.pool.dialing == pytest.approx(2, abs=0.01)
    assert "2.0 s of it with a dial under way; the last connect failed: " in str(error)
    assert "[ECONNREFUSED]" in str(error)
    failure = classify(error)
    assert failure is not None
    assert failure.code == "POOL_TIMEOUT"
    await pool.aclose()


async def test_14_more_callers_than_may_wait_are_refused_at_once() -> None:
    async with lines() as server, pool_of(server, max_size=1, max_waiting=3) as pool:
        async with pool.acquire():
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
            await turns()
            with pytest.raises(PoolFull) as caught:
                await pool.acquire()
            assert "too many callers are waiting: 1 in use" in str(caught.value)
            assert caught.value.pool is not None
            assert caught.value.pool.waiting == 3
            assert pickle.loads(pickle.dumps(caught.value)).pool == caught.value.pool
            # One who is cancelled makes room at once.
            waiting[0].cancel()
            late = asyncio.create_task(pool.acquire())
            await turns()
            assert pool.stats().waiting == 3
        for task in (*waiting[1:], late):
            pool.release(await task)
        assert pool.stats().shed == 1


async def test_who_waits_for_a_dial_waits_for_nobody() -> None:
    """``max_waiting=0``: as many as there are connections for, and not one more."""
    async with lines() as server, pool_of(server, max_size=2, max_waiting=0) as pool:
        both = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await turns()
        with pytest.raises(PoolFull):
            await pool.acquire()
        for task in both:
            pool.release(await task)
        assert (pool.stats().shed, pool.stats().acquired) == (1, 2)


async def test_15_whoever_frees_one_first_serves_the_waiter() -> None:
    async with lines() as server:
        server.greeting = 0.0
        async with pool_of(server, max_size=2, prepare=hello) as pool:
            conn = await pool.acquire()
            server.greeting = 0.2
            waiter = asyncio.create_task(pool.acquire())
            await until(lambda: pool.stats().connecting == 1)
            pool.release(conn)
            assert await waiter is conn
            assert pool.stats().connecting == 1
            await settled(pool)
            assert pool.stats().idle == 1
            pool.release(conn)


async def test_16_at_most_two_dials_at_once() -> None:
    async with lines() as server:
        server.greeting = 0.02
        async with pool_of(server, prepare=hello) as pool:
            done = asyncio.Event()
            callers = [asyncio.create_task(hold(pool, done)) for _ in range(10)]
            while pool.stats().in_use < 1:
                await asyncio.sleep(0.001)
            # One that comes back is handed to a caller who waits for its turn to dial.
            done.set()
            await asyncio.gather(*callers)
            assert server.most_handshakes == 2
            assert server.accepted < 10


async def test_17_never_more_than_the_most_under_load() -> None:
    async with lines() as server, pool_of(server, max_size=5) as pool:

        async def use(number: int) -> None:
            for turn in range(30):
                with contextlib.suppress(LookupError):
                    async with pool.acquire() as conn:
                        word = f"{number}-{turn}"
                        assert await echo(conn, word) == word
                        books_are_right(pool)
                        if (number + turn) % 13 == 0:
                            raise LookupError

        await asyncio.gather(*(use(number) for number in range(40)))
        await settled(pool)
        books_are_right(pool)
        assert server.open <= 5


async def test_18_broken_connections_do_not_starve_the_pool() -> None:
    async with lines() as server, pool_of(server, max_size=5) as pool:
        broken = 5

        async def use() -> None:
            nonlocal broken
            conn = await pool.acquire()
            await asyncio.sleep(0.001)
            if broken:
                broken -= 1
                conn.abort()
            pool.release(conn)

        await asyncio.wait_for(asyncio.gather(*(use() for _ in range(10))), 5)
        books_are_right(pool)


async def test_19_one_who_waits_for_itself_is_told_so() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool, pool.acquire():
        with pytest.raises(PoolTimeout, match="held by you at") as caught:
            await pool.acquire(timeout=0.05)
        assert caught.value.pool is not None
        assert caught.value.pool.holders[0].you


# Dead connections


async def test_a_restart_is_seen_by_no_caller() -> None:
    async with lines() as server, pool_of(server, policy=QUICK) as pool:
        await pool.ready(10)
        await server.stop()
        await server.start()
        for word in "abcdefghijklmno":
            async with pool.acquire() as conn:
                assert await echo(conn, word) == word
        assert pool.stats().closed["stale"] == 10
        assert pool.stats().created == 11
        assert pool.stats().acquired == 15


@pytest.mark.parametrize("end", ["fin", "rst", "bytes", "bytes and fin"])
async def test_what_came_while_the_loop_was_blocked_is_found_before_lending(end: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with contextlib.closing(listener):
        pool = Pool(Connector(f"127.0.0.1:{listener.getsockname()[1]}"), max_size=1)
        async with pool:
            async with pool.acquire() as conn:
                peer, _ = listener.accept()
            if "bytes" in end:
                peer.sendall(b"surprise")
            if end == "rst":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if end != "bytes":
                peer.close()
            time.sleep(0.02)
            async with pool.acquire() as another:
                assert another is not conn
            peer.close()
            assert pool.stats().closed["stale"] == 1
            listener.accept()[0].close()


async def test_what_came_while_it_was_idle_is_found_before_lending() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                await echo(conn, "a")
            server.writers[-1].write(b"unasked")
            await asyncio.sleep(0.02)
        assert pool.stats().created == 2


async def test_one_who_left_bytes_unread_reaches_nobody() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool:
        async with pool.acquire() as conn:
            conn.write(b"a\n")
            waiter = asyncio.create_task(pool.acquire())
            await asyncio.sleep(0.02)
        assert await waiter is not conn
        pool.release(await waiter)
        assert pool.stats().closed == {"stale": 1}


async def test_a_peer_that_stops_reading_is_found_and_closed_in_bounded_time() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with contextlib.closing(listener):
        pool = Pool(Connector(f"127.0.0.1:{listener.getsockname()[1]}"), max_size=1)
        async with pool:
            async with pool.acquire() as conn:
                peer, _ = listener.accept()
                conn.write(bytes(10_000_000))
            async with pool.acquire() as another:
                assert another is not conn
            began = time.monotonic()
        assert time.monotonic() - began < 3
        peer.close()
        listener.accept()[0].close()


async def test_one_loss_to_the_network_makes_all_suspect() -> None:
    async with lines() as server, pool_of(server, max_size=5) as pool:
        await pool.ready(5)
        lent = await pool.acquire()
        idle = await pool.acquire()
        pool.release(idle)
        victim = next(writer for writer in server.writers if writer.get_extra_info("peername") == idle.sockname)
        victim.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        victim.transport.abort()
        await asyncio.sleep(0.05)
        assert pool.stats().idle == 0
        assert pool.stats().closed == {"lost": 1, "suspect": 3}
        pool.release(lent)
        assert pool.stats().closed == {"lost": 1, "suspect": 4}
        assert pool.connector.losses == 1


async def test_what_is_lost_in_use_is_not_kept() -> None:
    async with lines() as server, pool_of(server) as pool:
        async with pool.acquire() as conn:
            conn.abort()
            await asyncio.sleep(0.01)
        assert pool.stats().closed == {"lost": 1}
        assert pool.stats().idle == 0


async def test_a_loss_that_another_user_of_the_connector_met_counts_too() -> None:
    async with lines() as server, pool_of(server) as pool:
        await pool.ready(2)
        async with pool.connector.connect() as conn:
            await echo(conn, "a")
            writer = server.writers[-1]
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await conn.read()
        async with pool.acquire():
            assert pool.stats().closed == {"suspect": 2}


async def test_a_fin_says_nothing_of_the_others() -> None:
    async with lines() as server, pool_of(server) as pool:
        await pool.ready(3)
        server.writers[0].close()
        await asyncio.sleep(0.02)
        assert pool.connector.losses == 0
        await pool.ready(3)
        assert pool.stats().closed == {"stale": 1}


# Hooks


async def test_a_check_is_awaited_for_what_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Connection] = []

    async def check(connection: Connection) -> None:
        checked.append(connection)
        assert await echo(connection, "ping") == "ping"

    async with lines() as server, pool_of(server, check=check) as pool:
        async with pool.acquire() as conn:
            pass
        async with pool.acquire():
            pass
        assert checked == []
        monkeypatch.setattr("aioconnect.pool_lending._CHECK_AFTER", 0.01)
        await asyncio.sleep(0.02)
        async with pool.acquire() as again:
            assert again is conn
        assert checked == [conn]
        assert server.accepted == 1


@pytest.mark.parametrize("failure", [OSError("no"), None])
async def test_a_check_that_fails_once_spares_the_others_theirs(
    failure: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioconnect.pool_lending._CHECK_AFTER", 0.01)
    checks = 0

    async def check(connection: Connection) -> None:
        nonlocal checks
        checks += 1
        if failure is None:
            await asyncio.sleep(60)
        else:
            raise failure

    async with lines() as server, pool_of(server, check=check, hook_timeout=0.05) as pool:
        await pool.ready(5)
        await asyncio.sleep(0.02)
        async with pool.acquire(timeout=2) as conn:
            assert await echo(conn, "a") == "a"
        assert checks == 1
        assert pool.stats().closed == {"check": 5}
        assert server.accepted == 6


async def test_an_impatient_caller_does_not_condemn_what_it_gave_no_time_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioconnect.pool_lending._CHECK_AFTER", 0.01)

    async def check(connection: Connection) -> None:
        await asyncio.sleep(0.3)

    async with lines() as server, pool_of(server, max_size=3, check=check) as pool:
        await pool.ready(3)
        await asyncio.sleep(0.02)
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.02)
        assert pool.stats().closed == {"check": 1}


async def test_cancelled_in_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioconnect.pool_lending._JUST_NOW", -1.0)
    monkeypatch.setattr("aioconnect.pool_lending._CHECK_AFTER", -1.0)

    async def check(connection: Connection) -> None:
        await asyncio.sleep(60)

    async with lines() as server, pool_of(server, max_size=1, check=check) as pool:
        await pool.ready()
        task = asyncio.create_task(pool.acquire())
        await turns()
        books_are_right(pool)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert pool.stats().closed == {"check": 1}
        books_are_right(pool)
        assert server.accepted == 1


async def test_drained_in_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioconnect.pool_lending._JUST_NOW", -1.0)
    monkeypatch.setattr("aioconnect.pool_lending._CHECK_AFTER", -1.0)

    async def check(connection: Connection) -> None:
        await asyncio.sleep(0.02)

    async with lines() as server, pool_of(server, max_size=1, check=check) as pool:
        await pool.ready()
        task = asyncio.create_task(pool.acquire())
        await turns()
        pool.drain()
        pool.release(await task)
        assert pool.stats().closed == {"drained": 1}
        assert pool.stats().created == 2


async def test_those_who_came_during_a_check_stand_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioconnect.pool_lending._CHECK_AFTER", 0.01)
    order: list[str] = []

    async def check(connection: Connection) -> None:
        await asyncio.sleep(0.05)
        raise OSError

    async with lines() as server, pool_of(server, max_size=1, check=check) as pool:
        await pool.ready()
        await asyncio.sleep(0.02)

        async def use(name: str) -> None:
            async with pool.acquire():
                order.append(name)

        first = asyncio.create_task(use("first"))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, use("second"))
        assert order == ["first", "second"]


async def test_reset_is_awaited_after_use_and_its_failure_costs_just_that_connection() -> None:
    reset: list[Connection] = []

    async def tidy(connection: Connection) -> None:
        reset.append(connection)
        if len(reset) == 2:
            raise OSError("cannot")

    async with lines() as server, pool_of(server, max_size=1, reset=tidy) as pool:
        for _ in range(3):
            async with pool.acquire(timeout=2) as conn:
                assert await echo(conn, "a") == "a"
        await settled(pool)
        assert reset[0] is reset[1] is not reset[2]
        assert pool.stats().closed == {"reset": 1}
        assert server.accepted == 2


@pytest.mark.may_leak("log")
async def test_the_loop_hears_of_a_hook_that_is_wrong() -> None:
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

    async def tidy(connection: Connection) -> None:
        raise LookupError("a bug")

    def no_coroutine(connection: Connection) -> Any:
        return None

    async with lines() as server:
        for hook in (tidy, no_coroutine):
            async with pool_of(server, max_size=1, reset=hook) as pool:
                async with pool.acquire():
                    pass
                async with pool.acquire():
                    pass
                await settled(pool)
                assert pool.stats().closed["reset"] == 2
    assert [type(context["exception"]) for context in heard] == [LookupError, LookupError, TypeError, TypeError]


# Dialing


async def test_a_permanent_error_reaches_all_who_wait_as_itself() -> None:
    async def prepare(connection: Connection) -> None:
        raise NotReady("loading")

    async with lines() as server, pool_of(server, prepare=prepare) as pool:
        tasks = [asyncio.create_task(pool.acquire()) for _ in range(5)]
        await asyncio.wait(tasks, timeout=5)
        errors = [task.exception() for task in tasks]
        assert all(type(error) is NotReady for error in errors)
        assert len({id(error) for error in errors}) == 5
        assert all(error is not None and isinstance(error.__cause__, NotReady) for error in errors)
        assert server.accepted <= 2
        books_are_right(pool)


async def test_a_foreign_exception_of_prepare_reaches_all_who_wait() -> None:
    async def prepare(connection: Connection) -> None:
        raise LookupError("a bug")

    async with lines() as server, pool_of(server, prepare=prepare) as pool:
        results = await asyncio.gather(pool.acquire(), pool.acquire(), return_exceptions=True)
        assert [type(result) for result in results] == [LookupError, LookupError]


async def test_dials_that_nobody_wants_any_more_end() -> None:
    async with Pool(Connector(NOWHERE, QUICK)) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.05)
        await settled(pool)
        assert pool.stats().connecting == 0
        assert not pool._lending.tasks.running


@pytest.mark.parametrize("way", ["acquire", "ready"])
async def test_one_who_comes_when_a_dial_has_just_been_given_up_gets_another(way: str) -> None:
    late: list[asyncio.Task[Any]] = []

    def observe(event: Event) -> None:
        if isinstance(event, GaveUp) and not late:
            coroutine = pool.ready(1, timeout=0.3) if way == "ready" else pool.acquire(timeout=0.3)
            late.append(asyncio.create_task(coroutine))

    connector = Connector(NOWHERE, QUICK.replace(breaker=None), observers=[observe])
    async with Pool(connector, max_connecting=1) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.001)
        while not late:
            await asyncio.sleep(0.001)
        before = connector.stats().attempts
        await asyncio.wait(late)
        assert isinstance(late[0].exception(), PoolTimeout)
        assert connector.stats().attempts > before + 1


async def test_a_dial_that_somebody_else_cancels_is_begun_anew_for_those_who_wait() -> None:
    async with lines() as server:
        server.greeting = 0.02
        async with pool_of(server, prepare=hello) as pool:
            caller = asyncio.create_task(pool.acquire())
            await turns()
            for task in asyncio.all_tasks():
                if task.get_name().startswith("pool of"):
                    task.cancel()
            pool.release(await caller)
            books_are_right(pool)
            assert pool.stats().idle == 1


async def test_min_size_is_kept() -> None:
    async with lines() as server, pool_of(server, min_size=3, policy=QUICK) as pool:
        await settled(pool)
        assert (pool.stats().idle, server.accepted) == (3, 3)
        async with pool.acquire() as conn:
            conn.abort()
        await asyncio.sleep(0.02)
        await settled(pool)
        assert pool.stats().idle == 3
        books_are_right(pool)


async def test_min_size_is_kept_through_an_outage() -> None:
    async with lines() as server, pool_of(server, min_size=3, policy=QUICK) as pool:
        await pool.ready(3)
        await server.stop(reset=True)
        assert pool.stats().idle == 0
        books_are_right(pool)
        await asyncio.sleep(0.1)
        await server.start()
        pool.connector.retry_now()
        await pool.ready(3, timeout=5)


@virtual
async def test_a_final_error_does_not_make_min_size_dial_without_pause() -> None:
    connector = Connector(NOWHERE, Policy(never_retry_on={"ECONNREFUSED"}))
    async with Pool(connector, min_size=2) as pool:
        await asyncio.sleep(60)
        assert 2 <= connector.stats().attempts <= 30
        books_are_right(pool)


async def test_ready_waits_for_so_many_also_for_a_service_that_starts() -> None:
    starting = 3

    async def prepare(connection: Connection) -> None:
        nonlocal starting
        starting -= 1
        if starting > 0:
            raise NotReady

    async with lines() as server, pool_of(server, policy=QUICK, prepare=prepare) as pool:
        await pool.ready(4, timeout=5)
        assert pool.stats().idle == 4
        await pool.ready(4)
        with pytest.raises(ConfigError, match="n=11: must be an integer from 1 to 10"):
            await pool.ready(11)


async def test_ready_says_how_far_it_has_come() -> None:
    async with Pool(Connector(NOWHERE, QUICK)) as pool:
        with pytest.raises(PoolTimeout, match="0 of 2 connections are open") as caught:
            await pool.ready(2, timeout=0.05)
        assert isinstance(caught.value.__cause__, ConnectRefused)


async def test_ready_ends_at_what_is_not_worth_waiting_for() -> None:
    async with Pool(Connector(NOWHERE, Policy(never_retry_on={"ECONNREFUSED"}))) as pool:
        with pytest.raises(ConnectRefused):
            await pool.ready()


async def test_an_acquire_without_a_time_limit_has_the_policys() -> None:
    async with Pool(Connector(NOWHERE, QUICK.replace(timeout=0.05))) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire()
        for wrong in (-1, float("nan"), float("inf"), "soon"):
            with pytest.raises(ConfigError, match="timeout="):
                await pool.acquire(timeout=wrong)


async def test_zero_seconds_are_for_what_is_idle() -> None:
    async with lines() as server, pool_of(server) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0)
        await settled(pool)
        pool.release(await pool.acquire(timeout=0))


# Age


@virtual
async def test_those_beyond_need_are_closed_and_the_last_used_stay() -> None:
    async with lines() as server, pool_of(server, min_size=1, max_idle=10) as pool:
        await pool.ready(4)
        first = await pool.acquire()
        for _ in range(30):
            pool.release(first)
            await asyncio.sleep(1)
            assert await pool.acquire() is first
        assert pool.stats().closed == {"idle": 3}
        assert pool.stats().in_use == 1
        pool.release(first)
        await asyncio.sleep(100)
        assert pool.stats().idle == 1, "min_size stays"


@virtual
async def test_lifetimes_are_cut_by_chance_and_replaced() -> None:
    drawn = iter([0.0, 5.0, 10.0, *[0.0] * 10])

    def uniform(low: float, high: float) -> float:
        assert (low, high) == (0, 10)
        return next(drawn)

    async with lines() as server, pool_of(server, min_size=3, max_lifetime=100, uniform=uniform) as pool:
        await pool.ready(3)
        ends = []
        for _ in range(110):
            await asyncio.sleep(1)
            ends.append(pool.stats().closed.get("lifetime", 0))
        assert [ends.index(count) + 1 for count in (1, 2, 3)] == [
            pytest.approx(90, abs=2),
            pytest.approx(95, abs=2),
            pytest.approx(100, abs=2),
        ]
        assert pool.stats().idle == 3


@virtual
async def test_what_is_beyond_min_size_goes_after_a_burst() -> None:
    """The one that is kept is looked after at the end of its lifetime, the others long before."""
    settings: dict[str, Any] = {"max_idle": 10, "uniform": lambda low, high: low}
    async with lines() as server, pool_of(server, min_size=1, max_size=3, **settings) as pool:
        await pool.ready(1)
        for connection in [await pool.acquire() for _ in range(3)]:
            pool.release(connection)
        await asyncio.sleep(9)
        assert pool.stats().idle == 3
        await asyncio.sleep(2)
        assert pool.stats().idle == 1


@virtual
async def test_a_lifetime_ends_also_behind_a_longer_one() -> None:
    """The one that goes idle first is looked after later than the second has to be."""
    drawn = iter([0.0, 10.0])
    async with lines() as server:
        settings: dict[str, Any] = {"max_lifetime": 100, "max_idle": None, "uniform": lambda low, high: next(drawn)}
        async with pool_of(server, max_size=2, **settings) as pool:
            first, second = await pool.acquire(), await pool.acquire()
            pool.release(first)
            pool.release(second)
            await asyncio.sleep(92)
            assert pool.stats().closed == {"lifetime": 1}
            assert second.is_closing
            assert not first.is_closing


@virtual
async def test_who_has_left_the_line_is_not_dialed_for() -> None:
    """Nobody wanted such a dial, it ended at its first failure, and began again: as fast as the loop could go."""
    policy = Policy(wait=Backoff(initial=1, maximum=1, jitter="none"), breaker=None)
    pool = Pool(Connector(f"127.0.0.1:{closed_port()}", policy), max_connecting=2)
    waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
    await asyncio.sleep(0.5)
    waiting.pop().cancel()
    await asyncio.sleep(0.6)
    for _ in range(300):
        await asyncio.sleep(0)
    assert pool.connector.stats().attempts == 2 + 2
    waiting.pop().cancel()
    await pool.aclose()


@virtual
async def test_one_whose_time_is_over_is_not_lent_again() -> None:
    async with lines() as server, pool_of(server, max_size=1, max_lifetime=10, max_idle=None) as pool:
        async with pool.acquire() as conn:
            await asyncio.sleep(20)
        assert pool.stats().closed == {"lifetime": 1}
        async with pool.acquire() as another:
            assert another is not conn


async def test_drain_replaces_all() -> None:
    async with lines() as server, pool_of(server, min_size=2) as pool:
        await pool.ready(2)
        async with pool.acquire():
            pool.drain()
            assert pool.stats().closed == {"drained": 1}
        assert pool.stats().closed == {"drained": 2}
        await pool.ready(2)
        await settled(pool)
        await asyncio.sleep(0.02)
        assert server.accepted == 4
        assert server.open == 2


# The end


async def test_closing_fails_those_who_wait_and_waits_for_those_who_have_one() -> None:
    async with lines() as server:
        pool = pool_of(server, max_size=1)
        done = asyncio.Event()
        holder = asyncio.create_task(hold(pool, done))
        await until(lambda: pool.stats().in_use == 1)
        waiter = asyncio.create_task(pool.acquire())
        await turns()
        closing = asyncio.create_task(pool.aclose(grace=5))
        await turns()
        assert isinstance(waiter.exception(), PoolClosed)
        with pytest.raises(PoolClosed, match="is closed"):
            await pool.acquire()
        assert not closing.done()
        done.set()
        assert await closing == ()
        await holder
        assert pool.stats().closed == {"closed": 1}
        assert pool.stats().size == 0
        assert await pool.aclose() == ()


async def test_those_who_do_not_give_back_are_named_and_aborted(caplog: pytest.LogCaptureFixture) -> None:
    async with lines() as server:
        pool = pool_of(server)
        done = asyncio.Event()
        holder = asyncio.create_task(hold(pool, done), name="slow")
        await until(lambda: pool.stats().in_use == 1)
        began = time.monotonic()
        stragglers = await pool.aclose(grace=0.05)
        assert time.monotonic() - began < 3
        assert [each.task for each in stragglers] == ["slow"]
        assert "aborting what is in use by slow at" in caplog.text
        await asyncio.sleep(0.02)
        assert server.open == 0
        done.set()
        await holder
        assert pool.stats().size == 0


async def test_closing_ends_dials_and_hooks() -> None:
    async def forever(connection: Connection) -> None:
        await asyncio.sleep(3600)

    async with lines() as server:
        pool = pool_of(server, prepare=forever)
        waiter = asyncio.create_task(pool.acquire())
        await until(lambda: server.accepted == 1)
        assert await pool.aclose(grace=0) == ()
        assert isinstance(waiter.exception(), PoolClosed)
        pool = pool_of(server, reset=forever)
        async with pool.acquire():
            pass
        await pool.aclose(grace=0)
        assert pool.stats().size == 0


async def test_closing_that_is_cancelled_has_closed() -> None:
    async with lines() as server:
        pool = pool_of(server)
        conn = await pool.acquire()
        closing = asyncio.create_task(pool.aclose(grace=60))
        await turns()
        closing.cancel()
        await asyncio.wait({closing})
        await asyncio.sleep(0.02)
        assert closing.cancelled()
        assert server.open == 0
        pool.release(conn)
        assert pool.stats().size == 0


async def test_a_pool_that_was_never_used_is_closed_at_once() -> None:
    pool = Pool(Connector(NOWHERE))
    assert await pool.aclose() == ()
    with pytest.raises(PoolClosed):
        await pool.acquire()
    assert pool.holders() == ()


async def test_leaving_the_block_by_an_exception_closes() -> None:
    async with lines() as server:
        with pytest.raises(LookupError):  # noqa: PT012
            async with pool_of(server) as pool:
                await pool.ready()
                raise LookupError
        assert pool.stats().size == 0


# Loops, forks, settings


def test_made_outside_a_loop_and_used_in_one_after_another() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with contextlib.closing(listener):
        pool = Pool(Connector(f"127.0.0.1:{listener.getsockname()[1]}"))

        async def use() -> Connection:
            async with pool.acquire() as conn:
                conn.abort()
            return conn

        assert asyncio.run(use()) is not asyncio.run(use())
        assert pool.stats().size == 0
        assert pool.stats().acquired == 2


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_second_running_loop_is_refused(blocking: bool) -> None:
    async with lines() as server, pool_of(server) as pool:
        await pool.ready(2)
        raised: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(use())
            except RuntimeError as error:
                raised.append(error)

        async def use() -> None:
            await pool.acquire()

        if blocking:
            # Our own task is in the middle of a step all the while.
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        else:
            await asyncio.to_thread(elsewhere)
        assert "belongs to another event loop" in str(raised[0])
        books_are_right(pool)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_child_process_is_told_to_make_its_own() -> None:
    async with lines() as server, pool_of(server) as pool:
        async with pool.acquire() as conn:
            await echo(conn, "a")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                asyncio._set_running_loop(None)

                async def use() -> None:
                    async with pool.acquire() as conn:
                        await echo(conn, "child")

                try:
                    asyncio.run(use())
                except RuntimeError as error:
                    os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        said = os.read(read, 1000).decode()
        os.close(read)
        assert "belongs to the process before the fork" in said
        async with pool.acquire() as conn:
            assert await echo(conn, "parent") == "parent"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_child_that_goes_on_with_the_same_loop_gets_none_of_its_parents_connections() -> None:
    async with lines() as server, pool_of(server) as pool:
        async with pool.acquire() as conn:
            await echo(conn, "a")
        asking = [pool.acquire(), pool.ready(1)]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                asyncio._set_running_loop(pool._lending._loop)
                for each in asking:
                    try:
                        each.__await__().send(None)
                    except RuntimeError as error:
                        os.write(write, f"{error}\n".encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        said = os.read(read, 1000).decode()
        os.close(read)
        asking[1].close()
        assert said.count("belongs to the process before the fork") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_child_does_not_stand_in_its_parents_line() -> None:
    async with lines() as server, pool_of(server, max_size=1) as pool, pool.acquire():
        child = os.fork()
        if child == 0:
            try:
                pool.acquire(0.5).__await__().send(None)
            except RuntimeError as error:
                os._exit(0 if "before the fork" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_of_a_closed_loop_is_not_lent_in_the_next() -> None:
    """It was on its way to somebody whose loop never ran again, and who gives it back when he is collected."""
    with listening() as server:
        pool = Pool(Connector(Endpoint(*server.getsockname())), max_size=1)
        first = asyncio.new_event_loop()
        first.set_exception_handler(lambda *_: None)
        held = [first.run_until_complete(first.create_task(pool.acquire()))]
        waiting = [first.create_task(pool.acquire())]
        first.run_until_complete(turns(3))
        first.call_soon(pool.release, held[0])
        first.call_soon(first.stop)
        first.run_forever()
        first.close()

        async def second() -> None:
            async with pool.acquire() as other:
                waiting.clear()
                gc.collect()
                assert other is not held[0]
                assert (pool.stats().idle, pool.stats().in_use) == (0, 1)
            assert (pool.stats().idle, pool.stats().in_use) == (1, 0)
            await pool.aclose()

        asyncio.run(second())
        held.clear()
        gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_block_that_outlives_its_loop_is_told_so() -> None:
    with listening() as server:
        pool = Pool(Connector(Endpoint(*server.getsockname())), max_size=1)
        acquirings = [pool.acquire()]

        async def enter() -> Connection:
            return await acquirings[0].__aenter__()

        first = asyncio.new_event_loop()
        held = [first.run_until_complete(enter())]
        first.close()

        async def second() -> None:
            async with pool.acquire() as other:
                assert other is not held[0]
                with pytest.raises(RuntimeError, match="before the end of its block"):
                    await acquirings[0].__aexit__(None, None, None)
                books = pool.stats()
                assert (books.idle, books.in_use) == (0, 1)
            await pool.aclose()

        asyncio.run(second())
        held.clear()
        acquirings.clear()
        gc.collect()


@virtual
@pytest.mark.parametrize("way", ["late", "full", "task", "ready"])
async def test_a_task_that_ends_by_an_error_leaves_no_cycle(way: str) -> None:
    Network.of_loop({"10.0.0.1": SILENT})
    pool = Pool(Connector("10.0.0.1:80"), max_waiting=0 if way == "full" else None, max_size=1)

    async def ask() -> None:
        async with pool.acquire(1.0):
            pass

    async def failed() -> weakref.ref[BaseException]:
        ways: dict[str, Any] = {"task": lambda: pool.acquire(1.0), "ready": lambda: pool.ready(1, 1.0)}
        task = asyncio.create_task(ways.get(way, ask)())
        await asyncio.wait([task])
        error = task.exception()
        assert isinstance(error, PoolFull if way == "full" else PoolTimeout)
        return weakref.ref(error)

    async with pool:
        other = asyncio.create_task(pool.acquire()) if way == "full" else None
        await asyncio.sleep(0)
        gc.disable()
        try:
            assert (await failed())() is None
        finally:
            gc.enable()
        if other is not None:
            other.cancel()
            await asyncio.wait([other])


@pytest.mark.parametrize("raised", [asyncio.CancelledError, type("Aborted", (BaseException,), {})])
async def test_what_is_no_exception_but_comes_out_of_prepare_reaches_those_who_wait(raised: Any) -> None:
    prepared = 0

    async def prepare(_: Connection) -> None:
        nonlocal prepared
        prepared += 1
        raise raised

    async with lines() as server, Pool(Connector(f"127.0.0.1:{server.port}", prepare=prepare)) as pool:
        for ask in (pool.acquire, pool.ready):
            async with asyncio.timeout(5):
                with pytest.raises(RuntimeError, match=raised.__name__) as info:
                    await ask()
            assert isinstance(info.value.__cause__, raised)
        assert prepared == 2
        books_are_right(pool)


def test_settings_that_cannot_work_are_all_named() -> None:
    wrong: Any = {"min_size": 5, "max_size": 0, "max_waiting": -1, "check": 3, "max_idle": "soon", "max_connecting": 0}
    with pytest.raises(ConfigError) as caught:
        Pool("redis:6379", **wrong)  # type: ignore[arg-type]
    named = [problem.partition("=")[0] for problem in caught.value.problems]
    assert named == ["connector", "max_size", "min_size", "max_connecting", "max_idle", "check", "max_waiting"]


async def test_repr_says_what_there_is() -> None:
    async with lines() as server, pool_of(server) as pool:
        async with pool.acquire():
            pass
        assert repr(pool) == f"<Pool tcp://127.0.0.1:{server.port} idle=1 in_use=0 connecting=0 max_size=10>"


async def test_a_pool_forgotten_without_closing_leaves_no_task(recwarn: pytest.WarningsRecorder) -> None:
    async with lines() as server:
        pool = pool_of(server)
        async with pool.acquire():
            pass
        assert not pool._lending.tasks.running
        await pool.aclose()


async def test_nothing_is_left_wherever_a_user_is_cancelled() -> None:
    async with lines() as server:
        server.greeting = 0.0

        async def use() -> None:
            async with pool_of(server, max_size=1, prepare=hello) as pool, asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(echo_once(pool))

        assert await cancel_everywhere(use) > 3


async def test_the_error_of_a_dial_keeps_its_history() -> None:
    async with Pool(Connector(NOWHERE, QUICK.replace(never_retry_on={"ECONNREFUSED"}))) as pool:
        with pytest.raises(ConnectError) as caught:
            await pool.acquire()
        assert caught.value.attempt_count == 1
        assert caught.value.stop_reason == "permanent"
