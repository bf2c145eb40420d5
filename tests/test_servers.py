"""Redis and nginx, with TLS, killed, frozen and started again under clients old and new."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NoReturn

import pytest

import aioconnect
from aioconnect import errors
from tests.support.peers import Authority
from tests.support.servers import Server, nginx_server, redis_command, redis_server

pytestmark = pytest.mark.servers

LIMIT = 5.0
SLACK = 0.5  # for a machine that does other work as well
POLICY = aioconnect.Policy(timeout=LIMIT, attempt_timeout=1.0, wait=aioconnect.Backoff(initial=0.05, maximum=0.5))
CLIENTS = 30
HTTP_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

Exchange = Callable[[aioconnect.Connection], Awaitable[None]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def redis_process(authority: Authority) -> Iterator[Server]:
    with redis_server(authority.directory / "redis", authority) as server:
        yield server


@pytest.fixture(scope="module")
def nginx_process(authority: Authority) -> Iterator[Server]:
    with nginx_server(authority.directory / "nginx", authority) as server:
        yield server


@pytest.fixture
def redis(redis_process: Server) -> Server:
    redis_process.ensure()
    return redis_process


@pytest.fixture
def nginx(nginx_process: Server) -> Server:
    nginx_process.ensure()
    return nginx_process


@pytest.fixture(params=["redis", "nginx"])
def service(request: pytest.FixtureRequest) -> tuple[Server, Exchange]:
    """A running server and one exchange of its protocol."""
    return request.getfixturevalue(request.param), ping if request.param == "redis" else fetch


async def ping(conn: aioconnect.Connection) -> None:
    conn.write(b"PING\r\n")
    await conn.drain()
    reply = await conn.readuntil(b"\r\n")
    if reply != b"+PONG\r\n":
        raise errors.NotReady(reply.decode().strip())


async def fetch(conn: aioconnect.Connection) -> None:
    conn.write(HTTP_REQUEST)
    await conn.drain()
    head = await conn.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert await conn.readexactly(4) == b"pong"


def endpoint_of(server: Server, authority: Authority, *, tls: bool = True) -> aioconnect.Endpoint:
    if not tls:
        return aioconnect.Endpoint(host="127.0.0.1", port=server.port)
    settings = aioconnect.TLS(ca_file=authority.ca_file, server_hostname="localhost", shutdown_timeout=0.2)
    return aioconnect.Endpoint(host="127.0.0.1", port=server.tls_port, tls=settings)


class Visit:
    """One client: connects at its time, uses the connection, and notes how that went."""

    def __init__(self) -> None:
        self.began = self.connected = self.ended = 0.0
        self.error: errors.NetworkError | None = None

    async def go(self, connector: aioconnect.Connector, exchange: Exchange, delay: float) -> Visit:
        await asyncio.sleep(delay)
        self.began = time.monotonic()
        try:
            conn = await connector.connect()
            self.connected = time.monotonic()
            async with conn:
                await exchange(conn)
                await asyncio.sleep(0.05)
                await exchange(conn)
        except (errors.ConnectError, errors.ConnectionLost) as error:
            self.error = error
        self.ended = time.monotonic()
        return self


async def outage(server: Server, before: float, down: float) -> tuple[float, float]:
    """Kill the server after a while and start it again; when it died and when it was started."""
    await asyncio.sleep(before)
    died = time.monotonic()
    server.kill()
    await asyncio.sleep(down)
    server.start()
    return died, time.monotonic()


@pytest.mark.parametrize("shared", [True, False], ids=["one connector", "a connector each"])
async def test_clients_connecting_through_a_restart(
    authority: Authority, service: tuple[Server, Exchange], shared: bool
) -> None:
    """Some connect before it, some while it is down, some after: all within the limit, all errors typed."""
    server, exchange = service

    def connector() -> aioconnect.Connector:
        return aioconnect.Connector(endpoint_of(server, authority), POLICY, prepare=exchange)

    one = connector()
    visits = [Visit().go(one if shared else connector(), exchange, n * 0.02) for n in range(CLIENTS)]
    (died, started), done = await asyncio.gather(outage(server, 0.15, 0.25), asyncio.gather(*visits))
    check_visits(done, died, started)


def check_visits(visits: list[Visit], died: float, started: float) -> None:
    assert any(visit.began < died for visit in visits)
    assert any(died < visit.began < started for visit in visits)
    assert any(visit.began > started for visit in visits)
    for visit in visits:
        assert visit.ended - visit.began < LIMIT + SLACK
        if visit.connected == 0.0 or visit.connected > started:
            # Ten times the outage is left: whoever came late or had to wait is through.
            assert visit.error is None, f"not connected, though it came back: {visit.error}"
        elif visit.error is not None:
            assert visit.connected < started
            assert isinstance(visit.error, errors.ConnectionLost)
            assert visit.error.phase == "use"
    assert sum(visit.error is None for visit in visits) >= CLIENTS - sum(visit.began < died for visit in visits)


async def test_a_server_that_does_not_come_back(authority: Authority, redis: Server) -> None:
    """Every client hears it in its own time, as the refusal that it is."""
    policy = aioconnect.Policy(timeout=0.6, attempt_timeout=0.5, wait=aioconnect.Backoff(initial=0.05, maximum=0.2))

    redis.kill()
    connector = aioconnect.Connector(endpoint_of(redis, authority), policy, prepare=ping)
    visits = await asyncio.gather(*(Visit().go(connector, ping, n * 0.005) for n in range(CLIENTS)))
    for visit in visits:
        assert visit.ended - visit.began < 0.6 + SLACK
        assert isinstance(visit.error, errors.ConnectRefused | errors.CircuitOpen)
        refused = visit.error if isinstance(visit.error, errors.ConnectRefused) else visit.error.__cause__
        assert isinstance(refused, errors.ConnectRefused)
        assert refused.errno == errno.ECONNREFUSED
        assert refused.address == ("127.0.0.1", redis.tls_port)
        assert visit.error.stop_reason == "timeout"


@contextlib.asynccontextmanager
async def opened(connector: aioconnect.Connector, count: int) -> AsyncIterator[list[aioconnect.Connection]]:
    conns = await asyncio.gather(*(connector.connect() for _ in range(count)))
    try:
        yield conns
    finally:
        await asyncio.gather(*(conn.aclose() for conn in conns))


async def loss_in_reading(conn: aioconnect.Connection) -> errors.ConnectionLost:
    with pytest.raises(errors.ConnectionLost) as caught:
        await conn.readuntil(b"\r\n")
    return caught.value


async def loss_in_writing(conn: aioconnect.Connection) -> errors.ConnectionLost:
    with pytest.raises(errors.ConnectionLost) as caught:
        await write_on(conn)
    return caught.value


async def write_on(conn: aioconnect.Connection) -> NoReturn:
    while True:
        conn.write(b"more\r\n")
        await conn.drain()
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_connections_in_use_when_the_server_dies(
    authority: Authority, service: tuple[Server, Exchange], tls: bool
) -> None:
    server, exchange = service

    connector = aioconnect.Connector(endpoint_of(server, authority, tls=tls), POLICY, prepare=exchange)
    async with opened(connector, 10) as conns:
        reading = [asyncio.ensure_future(loss_in_reading(conn)) for conn in conns[:5]]
        await asyncio.sleep(0.02)
        server.kill()
        writing = [asyncio.ensure_future(loss_in_writing(conn)) for conn in conns[5:]]
        async with asyncio.timeout(2):
            losses = await asyncio.gather(*reading, *writing)
        for loss in losses:
            assert loss.phase == "use"
            assert type(loss) is not errors.ConnectionLost, f"no class of its own: {loss!r}"
            assert loss.address == ("127.0.0.1", server.tls_port if tls else server.port)
        assert all(isinstance(loss, errors.PeerClosed) for loss in losses[:5])
        assert not any(conn.is_usable() for conn in conns)
        server.start()
        async with opened(connector, 10) as again:
            await asyncio.gather(*map(exchange, again))


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_frozen_server(authority: Authority, redis: Server, tls: bool) -> None:
    """Stopped, not dead: the kernel accepts and nobody answers, a time-out at TLS or in `prepare`."""
    policy = aioconnect.Policy(max_attempts=1, attempt_timeout=0.3)

    endpoint = endpoint_of(redis, authority, tls=tls)
    redis.freeze()
    try:
        with pytest.raises(errors.ConnectTimeout) as caught:
            await aioconnect.Connector(endpoint, policy, prepare=ping).connect()
        assert (caught.value.errno, caught.value.source) == (errno.ETIMEDOUT, "attempt")
        assert caught.value.phase == ("tls" if tls else "prepare")
        patient = aioconnect.Connector(endpoint, POLICY, prepare=ping)
        clients = asyncio.gather(*(Visit().go(patient, ping, 0) for _ in range(10)))
        await asyncio.sleep(0.3)
    finally:
        redis.thaw()
    assert [visit.error for visit in await clients] == [None] * 10


@pytest.fixture
def password(redis: Server) -> Iterator[str]:
    """Redis asks for a password; it no longer does after the test."""
    word = "correct horse"
    assert redis_command(redis, "CONFIG", "SET", "requirepass", word) == b"+OK\r\n"
    yield word
    assert redis_command(redis, "CONFIG", "SET", "requirepass", "", password=word).startswith((b"+OK", b"-ERR AUTH"))


async def test_not_ready_is_not_retried_unless_asked_for(authority: Authority, redis: Server, password: str) -> None:
    connector = aioconnect.Connector(endpoint_of(redis, authority), POLICY, prepare=ping)
    with pytest.raises(errors.NotReady) as caught:
        await connector.connect()
    error = caught.value
    assert (error.phase, error.kind, error.code) == ("prepare", "starting", "NOT_READY")
    assert (error.attempt_count, error.stop_reason) == (1, "permanent")
    assert "NOAUTH" in str(error)
    assert error.address == ("127.0.0.1", redis.tls_port)


async def test_not_ready_is_retried_with_starting(authority: Authority, redis: Server, password: str) -> None:
    policy = POLICY.replace(retry_on=aioconnect.TRANSIENT | aioconnect.STARTING)

    connector = aioconnect.Connector(endpoint_of(redis, authority), policy, prepare=ping)
    connecting = asyncio.ensure_future(connector.connect())
    await asyncio.sleep(0.2)
    assert not connecting.done()
    redis_command(redis, "CONFIG", "SET", "requirepass", "", password=password)
    async with await connecting as conn:
        await ping(conn)


@pytest.fixture
def full_redis(redis: Server) -> Iterator[Server]:
    """Redis with enough on disk for a start to take a while."""
    words = [word for n in range(2000) for word in (f"key:{n}", "value")]
    assert redis_command(redis, "MSET", *words) == b"+OK\r\n"
    assert redis_command(redis, "SAVE") == b"+OK\r\n"
    yield redis
    redis.stop()
    (redis.directory / "dump.rdb").unlink()


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_clients_wait_for_a_server_that_is_loading(authority: Authority, full_redis: Server, tls: bool) -> None:
    """Through refusals, then NotReady for -LOADING while the data is read, to a PONG."""
    policy = POLICY.replace(retry_on=aioconnect.TRANSIENT | aioconnect.STARTING)
    seen: set[str] = set()

    async def noting(conn: aioconnect.Connection) -> None:
        try:
            await ping(conn)
        except errors.NotReady as error:
            seen.add(str(error))
            raise

    connector = aioconnect.Connector(endpoint_of(full_redis, authority, tls=tls), policy, prepare=noting)
    full_redis.kill()
    clients = asyncio.gather(*(Visit().go(connector, ping, n * 0.01) for n in range(10)))
    await asyncio.sleep(0.05)
    # Microseconds for each key, 0.9 s in all: longer than the longest pause between two looks.
    full_redis.start("--key-load-delay", "450", "--loading-process-events-interval-bytes", "1024")
    assert [visit.error for visit in await clients] == [None] * 10
    assert any("LOADING" in words for words in seen)
