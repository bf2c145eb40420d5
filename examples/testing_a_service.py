"""What a service does when its network misbehaves: three tests in virtual time, by themselves or by pytest."""

import asyncio

from aioconnect import CircuitBreaker, CircuitOpen, ConnectError, Connection, Connector, Policy, Pool
from aioconnect.testing import Echo, Network, Recorder, virtual


async def ask(conn: Connection, question: bytes) -> bytes:
    await conn.send(question)
    return await conn.readexactly(len(question))


@virtual
async def test_rides_out_a_restart(network: Network) -> None:
    server = network.serve("db.internal", 5432, Echo)
    server.restart(20)  # 20 seconds without it, of which the test takes a few milliseconds
    recorder = Recorder()
    connector = Connector("tcp://db.internal:5432", Policy(timeout=60), observers=[recorder])
    async with connector.connect() as conn:
        assert await ask(conn, b"hello") == b"hello"
    assert recorder.attempts[-2:] == ["ECONNREFUSED", "ok"]
    assert 20 <= asyncio.get_running_loop().time() < 26  # back within one pause, which is 5 s at most


@virtual
async def test_fails_fast_when_a_dependency_is_gone(network: Network) -> None:
    network.host("rates.internal")  # is up, and nothing listens there
    policy = Policy(timeout=2, breaker=CircuitBreaker(failures=3, when_open="fail"))
    rates = Connector("tcp://rates.internal:443", policy)

    async def price() -> str:
        try:
            async with rates.connect() as conn:
                return (await conn.readline()).decode()
        except ConnectError as error:
            return f"yesterday's, {error.code}"

    assert await price() == "yesterday's, ECONNREFUSED"  # after two seconds
    began = asyncio.get_running_loop().time()
    assert await price() == f"yesterday's, {CircuitOpen.code}"
    assert asyncio.get_running_loop().time() == began  # at once


@virtual
async def test_a_pool_under_partition(network: Network) -> None:
    db = network.host("db.internal", "10.0.0.1")
    server = network.serve(db, 5432, Echo)
    async with Pool(Connector("tcp://10.0.0.1:5432"), max_size=4) as pool:

        async def request() -> None:
            async with pool.acquire(timeout=30) as conn, asyncio.timeout(2):
                assert await ask(conn, b"select") == b"select"

        await asyncio.gather(*(request() for _ in range(20)))
        with network.partition(db):
            lost = await asyncio.gather(*(request() for _ in range(4)), return_exceptions=True)
        assert [type(error) for error in lost] == [TimeoutError] * 4
        assert pool.stats().idle == 0  # who was asked and did not answer is not asked again
        await asyncio.gather(*(request() for _ in range(20)))
        assert server.accepted <= 8


if __name__ == "__main__":
    for story in (test_rides_out_a_restart, test_fails_fast_when_a_dependency_is_gone, test_a_pool_under_partition):
        story(Network())
        print(story.__name__)
