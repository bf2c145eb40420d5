"""A link under random stories in virtual time, and what it keeps while it waits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import tracemalloc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import aioconnect
from aioconnect import Backoff, Connection, Connector, Heartbeat, Link, LinkState, Policy
from aioconnect.breaker import CircuitBreaker
from aioconnect.errors import AioconnectError
from aioconnect.events import Event, LinkStateChanged
from tests.support.backends import Backend, echo, greet, greet_and_hang_up, hang_up, mute
from tests.support.clock import VirtualLoop, run_virtual
from tests.support.listeners import closed_port

IDLE, CONNECTING, READY, TRANSIENT_FAILURE, SHUTDOWN = LinkState
CAP = 2.0
CONSUMERS = ["run", "loop"]
EXAMPLES = int(os.environ.get("AIOCONNECT_STORIES", "40"))
"""How many; thousands of them for a long run."""


class Bug(Exception):
    """What a consumer raises."""


class Consumer:
    """A user of a link that reads until the end, unless it is busy with other things, and does what it is told."""

    def __init__(self, link: Link, how: str, busy: bool) -> None:
        self.link = link
        self.busy = busy
        self.last: Connection | None = None
        self.held: Connection | None = None
        self.order: asyncio.Future[str] | None = None
        self.task = asyncio.ensure_future(getattr(self, how)())

    async def use(self, connection: Connection) -> str:
        """Until the end of the connection, or an order."""
        assert self.held is None, "a second connection at once"
        assert connection is not self.last, "the same connection again"
        self.held, self.last, self.order = connection, connection, asyncio.get_running_loop().create_future()
        if self.busy:
            try:
                return await self.order
            finally:
                self.held = self.order = None
        reading = asyncio.ensure_future(connection.read(100))
        try:
            while True:
                await asyncio.wait((reading, self.order), return_when=asyncio.FIRST_COMPLETED)
                if self.order.done():
                    return self.order.result()
                if not reading.result():
                    return "end"
                reading = asyncio.ensure_future(connection.read(100))
        finally:
            self.held = self.order = None
            reading.cancel()
            await asyncio.wait((reading,))
            if not reading.cancelled():
                reading.exception()

    async def run(self) -> None:
        async def consume(connection: Connection) -> None:
            order = await self.use(connection)
            if order == "bug":
                raise Bug
            if order == "next":
                await connection.readexactly(2**10)  # a loss, as nobody says so much

        await self.link.run(consume)

    async def loop(self) -> None:
        async for connection in self.link:
            order = ""
            with contextlib.suppress(ConnectionError):
                order = await self.use(connection)
            if order == "bug":
                raise Bug
            if order == "return":
                break

    def told(self, order: str) -> None:
        if self.order is not None and not self.order.done():
            self.order.set_result(order)


class LinkStories(RuleBasedStateMachine):
    """Everybody does as they like: the server, the consumer, those who wait, and the clock."""

    @initialize(seed=st.integers(0, 2**32), up=st.booleans(), breaker=st.booleans(), beating=st.booleans())
    def begin(self, seed: int, up: bool, breaker: bool, beating: bool) -> None:
        self.loop = VirtualLoop()
        asyncio.set_event_loop(None)
        self.backend = Backend(greet)
        self.changes: list[LinkStateChanged] = []
        self.made: list[Connection] = []
        self.waiting: list[asyncio.Task[None]] = []
        self.consumer: Consumer | None = None
        self.crowd = self.hooks = 0
        self.slow = 0.0
        wait = Backoff(0.1, CAP, uniform=random.Random(seed).uniform)
        self.policy = Policy(wait=wait, attempt_timeout=1.0, breaker=CircuitBreaker() if breaker else None)
        self.heartbeat = Heartbeat(lambda connection: connection.write(b"ping\n"), 1, 3) if beating else None
        self.do(self.backend.up())
        self.own = asyncio.all_tasks(self.loop)
        self.open_link()
        if not up:
            self.server_down()

    def open_link(self) -> None:
        self.changes.clear()
        connector = Connector(self.backend.address, self.policy, self.prepare, observers=[self.observer])
        self.link = Link(connector, self.heartbeat)

    async def prepare(self, connection: Connection) -> None:
        """Whenever there is a new connection, all former ones are closed, and in nobody's hands."""
        self.crowd += sum(not each.writer.is_closing() and each.lost is None for each in self.made)
        self.crowd += self.hooks + (self.held is not None)
        self.made = [connection]
        self.hooks += 1
        try:
            await asyncio.sleep(self.slow)
        finally:
            try:
                await asyncio.sleep(self.slow)
            finally:
                self.hooks -= 1

    def observer(self, event: Event) -> None:
        if isinstance(event, LinkStateChanged):
            self.changes.append(event)

    @property
    def held(self) -> Connection | None:
        return None if self.consumer is None else self.consumer.held

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.do(turns())

    # -- What happens --------------------------------------------------------------------------------------------

    @rule()
    def server_up(self) -> None:
        self.do(self.backend.up())

    @rule()
    def server_down(self) -> None:
        self.loop.call_soon(self.backend.down)
        self.settle()

    @rule(serve=st.sampled_from([greet, echo, mute, hang_up, greet_and_hang_up]))
    def server_changes(self, serve: Any) -> None:
        self.backend.serve = serve

    @rule(slow=st.sampled_from([0.0, 0.02]))
    def prepare_takes(self, slow: float) -> None:
        self.slow = slow

    @rule(how=st.sampled_from(["cut", "end"]))
    def connection_lost(self, how: str) -> None:
        self.loop.call_soon(getattr(self.backend, how))
        self.settle()

    @rule(how=st.sampled_from(CONSUMERS), busy=st.booleans())
    def consume(self, how: str, busy: bool) -> None:
        async def start() -> None:
            if self.consumer is None:
                self.consumer = Consumer(self.link, how, busy)
            else:
                with pytest.raises((RuntimeError, AioconnectError)):
                    await self.link.run(echo)  # type: ignore[arg-type]

        self.do(start())

    @precondition(lambda self: self.consumer is not None)
    @rule(order=st.sampled_from(["return", "bug", "next", "cancel"]))
    def consumer_is_told(self, order: str) -> None:
        assert self.consumer is not None
        if order == "cancel":
            self.consumer.task.cancel()
        else:
            self.consumer.told(order)
        self.settle()

    @rule(timeout=st.sampled_from([None, 0.0, 0.5, 5.0]), fail_after=st.sampled_from([None, 1, 3]))
    def wait_for_ready(self, timeout: float | None, fail_after: int | None) -> None:
        self.waiting.append(self.loop.create_task(self.link.ready(timeout, fail_after)))
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule()
    def cancel_a_wait(self) -> None:
        self.waiting[0].cancel()
        self.settle()

    @rule()
    def retry_now(self) -> None:
        self.loop.call_soon(self.link.retry_now)
        self.settle()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.1, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @rule()
    def close_and_open(self) -> None:
        self.close()
        self.open_link()

    @precondition(lambda self: self.consumer is not None or self.waiting)
    @rule()
    def server_is_back_and_stays(self) -> None:
        """Then the link is READY after the longest pause, and the probe that may be under way."""
        self.tidy()
        if self.consumer is None and not self.waiting:
            return
        self.backend.serve, self.slow = greet, 0.0
        self.do(self.backend.up())
        self.connection_lost("cut")
        if self.consumer is not None:
            self.consumer.busy = False
            self.consumer.told("next")  # it lets go of what is dead
        self.do(asyncio.sleep(CAP + 1.1))
        assert self.link.state is READY

    # -- What is always so ---------------------------------------------------------------------------------------

    @invariant()
    def states_follow_each_other(self) -> None:
        if not hasattr(self, "changes"):
            return
        before = IDLE
        for change in self.changes:
            assert change.before is before
            before = change.after
        assert self.link.state is before

    @invariant()
    def the_state_agrees_with_what_is_open(self) -> None:
        if not hasattr(self, "changes"):
            return
        self.tidy()
        held = [each for each in self.made if not each.writer.is_closing() and each.lost is None]
        assert self.crowd == 0
        if self.hooks:
            return  # a hook takes its time to end
        state, consuming = self.link.state, self.held is not None
        if state is READY:
            assert len(held) == 1
        elif state in (IDLE, SHUTDOWN) or (state is TRANSIENT_FAILURE and not consuming):
            assert held == []
        names = [task.get_name() for task in asyncio.all_tasks(self.loop)]
        assert names.count(f"tcp://{self.backend.address}") == (state not in (IDLE, SHUTDOWN))

    def tidy(self) -> None:
        """Collect what has ended, and see that it ended as it may."""
        self.settle()
        if self.consumer is not None and self.consumer.task.done():
            task, self.consumer = self.consumer.task, None
            if not task.cancelled():
                assert isinstance(task.exception(), (Bug, type(None)))
        for task in self.waiting:
            if task.done() and not task.cancelled():
                assert isinstance(task.exception(), (AioconnectError, type(None)))
        self.waiting = [task for task in self.waiting if not task.done()]

    def close(self) -> None:
        self.do(self.link.aclose())
        assert self.link.state is SHUTDOWN
        if self.consumer is not None:
            self.consumer.told("next")
        self.tidy()
        assert self.waiting == []
        assert self.consumer is None

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.close()
            self.do(self.backend.__aexit__())
            self.settle()
            assert asyncio.all_tasks(self.loop) <= self.own
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.settle()
            self.loop.close()


LinkStories.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=30)
TestLinkStories = LinkStories.TestCase


# --------------------------------------------------------------------------- memory


OURS = [tracemalloc.Filter(True, each) for each in (f"{Path(aioconnect.__file__).parent}/*", "*/asyncio/*", __file__)]


def allocated() -> int:
    """Bytes that the package, its loop and this file have allocated; not those of what else runs in a test."""
    gc.collect()
    return sum(each.size for each in tracemalloc.take_snapshot().filter_traces(OURS).traces)


def test_a_days_outage_leaves_nothing_behind() -> None:
    """Attempt by attempt for 24 hours; what is allocated is the same in the evening as after the first hour."""

    async def day() -> list[int]:
        policy = Policy(wait=Backoff(initial=1, maximum=60, jitter="equal", uniform=random.Random(1).uniform))
        connector = Connector(f"127.0.0.1:{closed_port()}", policy)
        taken = list[int]()
        async with Link(connector) as link:
            running = asyncio.ensure_future(link.run(Connection.read))
            for _ in range(24):
                await asyncio.sleep(3600)
                if not taken:
                    tracemalloc.start()
                taken.append(allocated())
            assert connector.stats().attempts > 1800
            running.cancel()
        return taken[1:]

    try:
        taken = run_virtual(day())
    finally:
        tracemalloc.stop()
    assert max(taken) - min(taken) < 8 * 1024


@pytest.mark.parametrize("asked", ["run", "ready"])
def test_a_link_in_a_pause_is_small(asked: str) -> None:
    count = 100

    async def waiting() -> float:
        policy = Policy(wait=Backoff(initial=1, maximum=60, uniform=random.Random(1).uniform))
        connectors = [Connector(f"127.0.0.1:{closed_port()}", policy) for _ in range(count + 10)]
        links, tasks = list[Link](), list[asyncio.Task[None]]()

        def ask(connector: Connector) -> None:
            links.append(Link(connector))
            asking = links[-1].run(Connection.read) if asked == "run" else links[-1].ready()
            tasks.append(asyncio.ensure_future(asking))

        for connector in connectors[:10]:
            ask(connector)
        await asyncio.sleep(100)
        tracemalloc.start()
        for connector in connectors[10:]:
            ask(connector)
        await asyncio.sleep(200)
        each = allocated() / count
        assert all(link.state is TRANSIENT_FAILURE for link in links)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for link in links:
            await link.aclose()
        return each

    try:
        assert run_virtual(waiting()) < 4096
    finally:
        tracemalloc.stop()
