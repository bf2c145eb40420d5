"""A pool through outages, and under anything in any order, in virtual time over a simulated network."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioconnect import Backoff, CircuitBreaker, Connection, Connector, Link, Policy, Pool, PoolTimeout
from aioconnect.errors import CircuitOpen
from aioconnect.testing import Echo, Network, SimulatedLoop, virtual
from tests.support.pools import books_are_right

PLACE = "10.0.0.1"
CAP = 5.0


def now() -> float:
    return asyncio.get_running_loop().time()


def policy(seed: int, **changes: Any) -> Policy:
    return Policy(wait=Backoff(initial=0.1, maximum=CAP, uniform=random.Random(seed).uniform)).replace(**changes)


@pytest.fixture
def network() -> Network:
    return Network(latency="2ms")


async def call(pool: Pool, word: bytes, timeout: float) -> None:
    async with pool.acquire(timeout) as connection:
        await connection.send(word)
        assert await connection.readexactly(len(word)) == word


# Outages


@pytest.mark.parametrize("live", ["close", "reset", "vanish"])
@pytest.mark.parametrize("down", [0.0, 20.0, 40.0])
@virtual
async def test_after_an_outage_within_one_capped_wait(network: Network, down: float, live: Any) -> None:
    server = network.serve(PLACE, 80, Echo)
    async with Pool(Connector(f"{PLACE}:80", policy(seed=int(down)))) as pool:
        await pool.ready(10)
        await asyncio.sleep(5)
        server.stop(live)
        back = now() + down
        network.at(back, server.start)
        await asyncio.sleep(0.002)
        failures = 0
        while True:
            try:
                await call(pool, b"word", 60)
                break
            except OSError:
                failures += 1
        # What vanished cannot be told from what is slow, until it is written to.
        assert failures <= (1 if live == "vanish" else 0)
        assert now() - back <= CAP + 0.1
        if not down:
            assert now() - back < 0.05


@virtual
async def test_at_once_when_told_that_the_server_is_back(network: Network) -> None:
    server = network.serve(PLACE, 80, Echo)
    async with Pool(Connector(f"{PLACE}:80", policy(seed=1, wait=Backoff(5, 5, jitter="none")))) as pool:
        await pool.ready(3)
        server.stop("reset")
        await asyncio.sleep(0.002)
        waiting = asyncio.create_task(call(pool, b"word", 60))
        await asyncio.sleep(38.5)
        server.start()
        pool.connector.retry_now()
        began = now()
        await waiting
        assert now() - began < 0.05


@pytest.mark.parametrize("callers", [5, 50])
@virtual
async def test_connects_at_a_dead_server_are_those_of_the_schedule(network: Network, callers: int) -> None:
    network.host(PLACE)
    connector = Connector(f"{PLACE}:80", policy(seed=callers))
    async with Pool(connector) as pool:

        async def caller() -> None:
            while now() < 60:
                with contextlib.suppress(PoolTimeout):
                    await call(pool, b"word", 0.5)
                await asyncio.sleep(0.05)

        await asyncio.gather(*(caller() for _ in range(callers)))
        # The first few, then one for each wait of the schedule, of which the mean is half the cap.
        assert 20 <= connector.stats().attempts <= 50
        books_are_right(pool)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As many protocols do; the pool cannot lend a connection with an unread greeting, and has no ``prepare``."""
    writer.write(b"220 hello\r\n")
    await reader.read()
    writer.close()


@virtual
async def test_a_server_that_accepts_and_hangs_up_is_met_by_the_schedule_too(network: Network) -> None:
    server = network.serve(PLACE, 80, hang_up)
    connector = Connector(f"{PLACE}:80", policy(seed=2))
    async with Pool(connector, min_size=3) as pool:

        async def caller() -> None:
            while now() < 30:
                with contextlib.suppress(OSError):
                    await call(pool, b"word", 0.5)
                await asyncio.sleep(0.05)

        await asyncio.gather(*(caller() for _ in range(50)))
        assert server.accepted <= 100
        books_are_right(pool)


@pytest.mark.parametrize("peer", [hang_up, speak_first])
@pytest.mark.parametrize("shared", [True, False], ids=["circuit", "no circuit"])
@pytest.mark.parametrize("stable_after", [0.0, 1.0])
@virtual
async def test_connections_of_no_use_are_not_made_without_a_pause(
    network: Network, peer: Any, shared: bool, stable_after: float
) -> None:
    server = network.serve(PLACE, 80, peer)
    breaker = CircuitBreaker() if shared else None
    connector = Connector(f"{PLACE}:80", policy(seed=4, breaker=breaker), stable_after=stable_after)
    async with Pool(connector, min_size=3) as pool:
        # Two hundred in line, who would have the pool dial without end.
        outcomes = await asyncio.gather(*(call(pool, b"word", 30) for _ in range(200)), return_exceptions=True)
        late = [each for each in outcomes if isinstance(each, PoolTimeout)]
        assert len(late) > 150
        assert late[0].__cause__ is not None
        # A few at once, then one for each wait of the schedule, and one for each who got a connection for a moment.
        assert server.accepted <= 60 + len(outcomes) - len(late)
        books_are_right(pool)


@virtual
async def test_one_that_speaks_first_is_not_ready(network: Network) -> None:
    network.serve(PLACE, 80, speak_first)
    async with Pool(Connector(f"{PLACE}:80", policy(seed=5))) as pool:
        with pytest.raises(PoolTimeout, match="with something to read, before it was ever lent"):
            await call(pool, b"word", 3)


@virtual
async def test_the_pause_after_connections_of_no_use_ends_when_told(network: Network) -> None:
    is_well = False

    async def recovering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while is_well and (data := await reader.read(100)):
            writer.write(data)
        writer.close()

    server = network.serve(PLACE, 80, recovering)
    connector = Connector(f"{PLACE}:80", policy(seed=6, wait=Backoff(5, 5, jitter="none"), breaker=None))
    async with Pool(connector) as pool:
        with pytest.raises(PoolTimeout):
            await asyncio.gather(*(call(pool, b"word", 1) for _ in range(9)))
        assert server.accepted <= 3
        is_well = True
        connector.retry_now()
        began = now()
        await call(pool, b"word", 60)
        assert now() - began < 0.05


@pytest.mark.parametrize("end", ["abort", "close", "eof", "error"])
@virtual
async def test_connections_that_were_used_are_followed_by_others_at_once(network: Network, end: str) -> None:
    """However short their lives are, and whoever ends them: what a user makes of one is no failed dial."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    network.serve(PLACE, 80, once if end == "eof" else Echo)
    async with Pool(Connector(f"{PLACE}:80", policy(seed=8))) as pool:
        for _ in range(20):
            with contextlib.suppress(LookupError):
                async with pool.acquire(60) as connection:
                    await connection.send(b"word")
                    await connection.readexactly(4)
                    if end == "abort":
                        connection.abort()
                    elif end == "close":
                        await connection.aclose()
                    elif end == "eof":
                        assert await connection.read() == b""
                    else:
                        raise LookupError
        assert pool.stats().created == 20
        assert now() < 1


@pytest.mark.parametrize("told", ["retry_now", "drain"])
@virtual
async def test_a_pause_that_nobody_waits_for_yet_can_be_ended(network: Network, told: str) -> None:
    server = network.serve(PLACE, 80, hang_up)
    connector = Connector(f"{PLACE}:80", policy(seed=9, wait=Backoff(5, 5, jitter="none"), breaker=None))
    async with Pool(connector) as pool:
        with pytest.raises(PoolTimeout):
            await call(pool, b"word", 0.1)
        accepted = server.accepted
        connector.retry_now() if told == "retry_now" else pool.drain()
        with pytest.raises(PoolTimeout):
            await call(pool, b"word", 0.1)
        assert server.accepted == accepted + 1
        # The same for one who waits already.
        waiting = asyncio.create_task(call(pool, b"word", 0.1))
        await asyncio.sleep(0.01)
        connector.retry_now() if told == "retry_now" else pool.drain()
        with pytest.raises(PoolTimeout):
            await waiting
        assert server.accepted == accepted + 2


@virtual
async def test_a_link_whose_connections_are_of_no_use_pauses_too(network: Network) -> None:
    server = network.serve(PLACE, 80, hang_up)
    async with Link(Connector(f"{PLACE}:80", policy(seed=11, breaker=None), stable_after=0)) as link:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await link.run(lambda connection: connection.read())
    assert 5 <= server.accepted <= 40


@virtual
async def test_a_story_that_is_over_is_not_told_by_a_later_error(network: Network) -> None:
    """A pool that is merely exhausted has no failed connect to speak of."""
    talks = True

    async def talker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (speak_first(reader, writer) if talks else reader.read())

    network.serve(PLACE, 80, talker)
    async with Pool(Connector(f"{PLACE}:80", policy(seed=12)), max_size=1) as pool:
        with pytest.raises(PoolTimeout, match="before it was ever lent"):
            await asyncio.gather(*(call(pool, b"word", 1) for _ in range(5)))
        talks = False
        await asyncio.sleep(10)
        async with pool.acquire(10):
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(0.1)
        assert caught.value.__cause__ is None


@virtual
async def test_a_wait_that_raises_does_not_make_it_dial_without_a_pause(network: Network) -> None:
    def broken(_: Any) -> float:
        raise ValueError("no pause")

    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    server = network.serve(PLACE, 80, hang_up)
    async with Pool(Connector(f"{PLACE}:80", Policy(wait=broken, breaker=None)), min_size=1):
        await asyncio.sleep(20)
    assert 2 <= server.accepted <= 6
    assert len(told) == server.accepted
    assert {type(each) for each in told} == {ValueError}


@virtual
async def test_who_has_checked_in_vain_keeps_its_place_also_in_the_same_tick(network: Network) -> None:
    network.serve(PLACE, 80, Echo)
    order: list[int] = []

    async def check(_: Connection) -> None:
        await asyncio.sleep(0.1)
        raise OSError

    async def use(number: int) -> None:
        async with pool.acquire():
            order.append(number)

    async with Pool(Connector(f"{PLACE}:80", policy(seed=10)), max_size=1, check=check) as pool:
        await pool.ready(1)
        await asyncio.sleep(2)
        await asyncio.gather(*(use(number) for number in range(4)))
    assert order == [0, 1, 2, 3]


@virtual
async def test_who_has_checked_in_vain_keeps_its_place(network: Network) -> None:
    network.serve(PLACE, 80, Echo)
    slow = [0.2, 0.1]

    async def check(_: Connection) -> None:
        await asyncio.sleep(slow.pop(0))
        raise OSError

    order: list[int] = []

    async def use(number: int) -> None:
        async with pool.acquire():
            order.append(number)
            await asyncio.sleep(0.01)

    async with Pool(Connector(f"{PLACE}:80", policy(seed=7)), max_size=2, max_connecting=1, check=check) as pool:
        await pool.ready(2)
        network.link("client", PLACE, latency=1.0)
        await asyncio.sleep(2)
        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(use(number)))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


@virtual
async def test_where_the_policy_says_fail_an_open_circuit_is_told_at_once(network: Network) -> None:
    network.host(PLACE)
    failing = policy(seed=3, breaker=CircuitBreaker(failures=2, when_open="fail"))
    async with Pool(Connector(f"{PLACE}:80", failing)) as pool:
        with pytest.raises(PoolTimeout):
            await call(pool, b"word", 2)
        while pool.connector.circuit.probe_due <= now():
            await asyncio.sleep(0.01)
        began = now()
        with pytest.raises(CircuitOpen) as caught:
            await call(pool, b"word", 60)
        assert now() == began
        assert caught.value.__cause__ is not None
        assert caught.value.retry_in is not None
        # And yet somebody finds out when it is back.
        network.serve(PLACE, 80, Echo)
        end = now() + CAP + 1
        while now() < end and pool.stats().acquired == 0:
            with contextlib.suppress(CircuitOpen):
                await call(pool, b"word", 60)
            await asyncio.sleep(0.1)
        assert pool.stats().acquired == 1


# Anything in any order


class PoolMachine(RuleBasedStateMachine):
    @initialize(
        min_size=st.integers(0, 2),
        max_size=st.integers(1, 4),
        max_waiting=st.sampled_from([None, 2]),
        reset=st.booleans(),
        check=st.booleans(),
        seed=st.integers(0, 99),
    )
    def start(self, min_size: int, max_size: int, max_waiting: int | None, reset: bool, check: bool, seed: int) -> None:
        self.network = Network(latency="10ms", seed=seed)
        self.loop = SimulatedLoop(self.network)
        self.server = self.network.serve(PLACE, 80, Echo)
        self.asking: list[asyncio.Task[Connection]] = []
        self.held: list[Connection] = []
        self.word = 0
        self.size = max_size
        connector = Connector(f"{PLACE}:80", policy(seed))
        hooks: dict[str, Any] = {"reset": self.ping if reset else None, "check": self.ping if check else None}
        self.pool = Pool(
            connector, min(min_size, max_size), max_size, max_waiting, max_idle=30, max_lifetime=100, **hooks
        )
        self.run(0)

    async def ping(self, connection: Connection) -> None:
        self.word += 1
        word = b"%09d" % self.word
        await connection.send(word)
        assert await connection.readexactly(9) == word, "somebody else's reply"

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for task in [task for task in self.asking if task.done()]:
            self.asking.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.held.append(task.result())
            elif not task.cancelled():
                assert isinstance(task.exception(), OSError), task.exception()

    @rule(timeout=st.sampled_from([None, 0.0, 0.05, 2.0, 30.0]), then=st.sampled_from([0, 0.05]))
    def acquire(self, timeout: float | None, then: float) -> None:
        async def get() -> Connection:
            return await self.pool.acquire(timeout)

        self.asking.append(self.loop.create_task(get()))
        self.run(then)

    @precondition(lambda self: self.asking)
    @rule(data=st.data(), twice=st.booleans())
    def cancel(self, data: st.DataObject, twice: bool) -> None:
        task = data.draw(st.sampled_from(self.asking))
        for _ in range(1 + twice):
            task.cancel()
        self.run(0)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), broken=st.booleans())
    def give_back(self, data: st.DataObject, broken: bool) -> None:
        connection = data.draw(st.sampled_from(self.held))
        self.held.remove(connection)

        async def release() -> None:
            if broken:
                connection.abort()
            self.pool.release(connection)

        self.loop.run_until_complete(release())
        self.run(0)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), turns=st.integers(0, 2))
    def hand_over_to_one_who_is_cancelled(self, data: st.DataObject, turns: int) -> None:
        connection = data.draw(st.sampled_from(self.held))
        self.held.remove(connection)
        self.acquire(30.0, then=0)

        async def hand_over() -> None:
            self.pool.release(connection)
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in self.asking:
                task.cancel()

        self.loop.run_until_complete(hand_over())
        self.run(0)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def talk(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.held))

        async def exchange() -> None:
            try:
                async with asyncio.timeout(1):
                    await self.ping(connection)
            except (OSError, TimeoutError):
                connection.abort()

        self.loop.run_until_complete(exchange())
        self.run(0)

    @rule(live=st.sampled_from(["close", "reset", "vanish", "keep"]))
    def server_down(self, live: Any) -> None:
        self.server.stop(live)

    @rule()
    def server_up(self) -> None:
        self.server.start()

    @rule(seconds=st.sampled_from([0, 0.005, 0.02, 0.3, 1.5, 20, 70]))
    def time_passes(self, seconds: float) -> None:
        self.run(seconds)

    @rule()
    def drain(self) -> None:
        async def drain() -> None:
            self.pool.drain()

        self.loop.run_until_complete(drain())
        self.run(0)

    @rule()
    def retry_now(self) -> None:
        self.pool.connector.retry_now()

    @invariant()
    def books(self) -> None:
        if hasattr(self, "pool"):
            books_are_right(self.pool)
            assert len({id(connection) for connection in self.held}) == len(self.held), "lent twice"
            for entry in self.pool._books.entries.values():
                task: Any = entry.borrower and entry.borrower.task
                assert not task or not task.done() or entry.connection in self.held, "a slot is lost"

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            try:
                self.loop.run_until_complete(self.end())
                assert not asyncio.all_tasks(self.loop)
                self.run(5)
            finally:
                self.loop.close()

    async def end(self) -> None:
        """All connections come back, and so does the server: then every slot works."""
        for task in self.asking:
            task.cancel()
        await asyncio.gather(*self.asking, return_exceptions=True)
        for task in self.asking:
            if not task.cancelled() and task.exception() is None:
                self.held.append(task.result())
        self.asking.clear()
        for connection in self.held:
            self.pool.release(connection)
        self.server.start()
        self.pool.connector.retry_now()
        await asyncio.sleep(6)  # a dial may have met a server that vanished since
        self.pool.drain()
        await self.pool.ready(self.size, timeout=60)
        held = [await self.pool.acquire(timeout=10) for _ in range(self.size)]
        for connection in held:
            await self.ping(connection)
        books_are_right(self.pool)
        for connection in held:
            self.pool.release(connection)
        assert await self.pool.aclose() == ()
        assert self.pool.stats().size == 0


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
