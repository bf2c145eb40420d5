"""Signs of life: a heartbeat's settings, and what a watched reader knows. What links make of it is in `test_link`."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aioconnect import ConfigError, Connection, Connector, Heartbeat
from aioconnect.connection import Reader
from aioconnect.errors import ConnectionTimedOut, NetworkError
from aioconnect.heartbeat import Heard, Pulse, Watched, end_was_read, ended, unwatch, watch
from tests.support.backends import Backend, greet, mute


def ping(_: Connection) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Heartbeat("ping"), "send='ping': must be a function of a Connection, or a coroutine function"),  # type: ignore[arg-type]
        (lambda: Heartbeat(ping, 0), "every=0: must be more than 0 and finite"),
        (lambda: Heartbeat(ping, timeout="-1s"), "timeout='-1s': must be more than 0 and finite"),
        (lambda: Heartbeat(ping, 15, 15), "timeout=15: must be longer than every, 15s"),
        (lambda: Heartbeat(ping, "1m"), "timeout=30.0: must be longer than every, 60s"),
        (lambda: Heartbeat(ping, 1, float("inf")), "timeout=inf: must be more than 0 and finite"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(make: Callable[[], Heartbeat], message: str) -> None:
    with pytest.raises(ConfigError) as info:
        make()
    assert str(info.value) == message


def test_settings() -> None:
    heartbeat = Heartbeat(ping, every="250ms", timeout="1m")
    assert (heartbeat.send, heartbeat.every, heartbeat.timeout) == (ping, 0.25, 60.0)
    assert (Heartbeat(ping).every, Heartbeat(ping).timeout) == (15.0, 30.0)
    assert heartbeat.replace(every=1) == Heartbeat(ping, 1, 60)
    with pytest.raises(AttributeError):
        heartbeat.every = 2  # type: ignore[misc]


async def test_the_private_names_of_asyncio_are_there() -> None:
    reader: Any = asyncio.StreamReader()
    assert (reader._eof, reader._paused, reader._waiter) == (False, False, None)
    assert reader._loop is asyncio.get_running_loop()
    for method, name in (("feed_eof", "_eof"), ("_wait_for_data", "_waiter"), ("feed_data", "_paused")):
        assert f"self.{name} = " in inspect.getsource(getattr(asyncio.StreamReader, method))


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    async with Backend(greet) as backend, Connector(backend.address).connect() as connection:
        await connection.readline()
        yield connection


async def test_a_reader_that_is_not_watched_runs_asyncios_code(connection: Connection) -> None:
    assert type(connection.reader) is Reader
    assert type(connection.reader).feed_data is asyncio.StreamReader.feed_data
    assert type(connection.reader).feed_eof is asyncio.StreamReader.feed_eof
    watch(connection, lambda: None)
    assert type(connection.reader) is Watched
    assert Watched.feed_data is asyncio.StreamReader.feed_data
    assert Watched.read is asyncio.StreamReader.read


async def test_the_end_is_told_once_and_not_after_unwatch(connection: Connection) -> None:
    told = list[bool]()
    assert watch(connection, lambda: told.append(True))
    connection.reader.feed_eof()
    connection.reader.feed_eof()
    assert told == [True]
    assert ended(connection)
    assert not end_was_read(connection)
    assert await connection.read(0) == b""
    assert not end_was_read(connection)
    assert await connection.read(10) == b""
    assert end_was_read(connection)
    assert not watch(connection, lambda: told.append(False))
    unwatch(connection)
    connection.abort()
    await asyncio.sleep(0.01)
    assert told == [True]


async def test_a_lost_connection_has_nothing_to_watch(connection: Connection) -> None:
    connection.writer.lost(ConnectionResetError(104, "reset"))
    assert not watch(connection, lambda: None)
    assert not ended(connection)


@pytest.mark.parametrize("heartbeat", [True, False])
async def test_whether_a_peer_has_spoken_is_still_known(heartbeat: bool) -> None:
    async with Backend(mute) as backend, Connector(backend.address).connect() as connection:
        watch(connection, lambda: None)
        pulse = Pulse(Heartbeat(ping), connection, lambda _: None) if heartbeat else None
        assert not connection.reader.was_heard
        connection.reader.feed_data(b".")
        assert connection.reader.was_heard
        assert isinstance(connection.reader, Heard if heartbeat else Watched)
        assert await connection.read(10) == b"."
        if pulse is not None:
            pulse.stop()


async def test_a_busy_loop_is_no_silence(connection: Connection) -> None:
    """uvloop runs its timers before it reads: what has come while the loop was busy has to be read first."""
    watch(connection, lambda: None)
    pulse = Pulse(Heartbeat(ping, 0.05, 0.1), connection, lambda _: None)
    connection.write(b"are you there?\n")
    await asyncio.sleep(0.01)
    connection.write(b"and now?\n")
    time.sleep(0.2)
    await asyncio.sleep(0.02)
    assert connection.lost is None
    await asyncio.sleep(0.15)
    assert isinstance(connection.lost, ConnectionTimedOut)
    pulse.stop()


async def test_bytes_touch_no_timer(connection: Connection) -> None:
    watch(connection, lambda: None)
    pulse = Pulse(Heartbeat(ping, 10, 20), connection, lambda _: None)
    timer = pulse._timer
    for _ in range(1000):
        connection.reader.feed_data(b".")
    assert pulse._timer is timer
    pulse.stop()


async def test_the_loss_is_what_everybody_sees(connection: Connection) -> None:
    seen = list[NetworkError]()
    connection.when_lost(seen.append)
    watch(connection, lambda: None)
    Pulse(Heartbeat(ping, 0.01, 0.02), connection, lambda _: None)
    with pytest.raises(ConnectionTimedOut, match="nothing was heard for 20ms"):
        await connection.readexactly(1)
    with pytest.raises(ConnectionTimedOut):
        await connection.drain()
    assert [type(error) for error in seen] == [ConnectionTimedOut]
