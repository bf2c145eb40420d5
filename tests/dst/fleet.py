"""Those who use the package in a world: callers of connectors, users of pools, consumers of links."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from aioconnect import Connection, Link
from aioconnect.errors import (
    AlreadyClosed,
    CircuitOpen,
    ConnectionLost,
    ConnectionTimedOut,
    NetworkError,
    PoolClosed,
    PoolFull,
    PoolTimeout,
)
from tests.dst.invariants import EndpointWatch, LinkWatch, Op, PoolWatch, check_error

if TYPE_CHECKING:
    from tests.dst.world import World

__all__ = ("Actor", "Borrower", "Caller", "Consumer")

LIMITS = (None, None, 0.05, 0.7, 3.0, 15.0)


class Oops(Exception):
    """A user's own bug."""


class Actor:
    """Somebody who takes turns, each a task that may be cancelled at any moment."""

    def __init__(self, world: World, host: Any, name: str, endpoint: EndpointWatch) -> None:
        self.world = world
        self.endpoint = endpoint
        self.host = host
        self.name = name
        self.rng = random.Random(f"{world.seed} {name}")
        self.turns = 0
        self.tokens = 0
        self.task: asyncio.Task[None] | None = None
        self.op: Op | None = None
        self.stopped = False

    async def turn(self) -> None:
        raise NotImplementedError

    # -- Turns ---------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.stopped:
            return
        self.turns += 1
        with self.host:
            self.task = asyncio.get_running_loop().create_task(self.turn(), name=f"{self.name} {self.turns}")
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.failed(f"{self.name}: {type(error).__name__}: {error}", error)
        elif not self.stopped:
            self.world.loop.call_later(self.rng.expovariate(1.0), self.begin)

    def cancel(self) -> None:
        if self.task is not None and not self.task.done() and self.task.cancel() and self.op is not None:
            self.op.cancelled_at = self.op.cancelled_at or self.world.loop.time()

    def stop(self) -> None:
        self.stopped = True
        self.cancel()

    @contextlib.contextmanager
    def asking(self, what: str, limit: float | None, pool: PoolWatch | None = None) -> Iterator[Op]:
        """While the package is asked for something."""
        world, task = self.world, asyncio.current_task()
        op = self.op = Op(world.clock, f"{self.name}.{self.turns} {what}", limit)
        world.ops[task] = op
        if pool is not None:
            op.pool = pool
            pool.joined(op)
        try:
            yield op
        except asyncio.CancelledError:
            world.note(self.name, what, "cancelled")
            raise
        except Exception as exc:
            world.note(self.name, what, type(exc).__name__, getattr(exc, "stop_reason", None))
            raise
        else:
            world.note(self.name, what, "ok")
        finally:
            self.op = None
            del world.ops[task]
            if pool is not None:
                pool.left(op)
            if (late := op.overdue(world.loop.time())) is not None:
                world.fail(f"{late}, and ends at {world.loop.time():.6f}")

    async def own_limit(self, coming: Awaitable[Any]) -> Any:
        """Now and then under a time limit of one's own."""
        if self.rng.random() < 0.15:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.rng.uniform(0, 2)):
                    return await coming
            return None
        return await coming

    # -- What is done with a connection --------------------------------------------------------------------------------

    async def exchange(self, connection: Connection) -> bool:
        """Ask, and have the right answer; False if there is nothing more to be had of it."""
        if not connection.is_sound():
            return False
        self.tokens += 1
        token = f"{self.name}-{self.tokens}\n".encode()
        world = self.world
        reading = world.reading
        reading[connection] = self.name
        try:
            connection.write(token)
            async with asyncio.timeout(self.rng.choice((0.2, 1.0, 3.0))):
                await connection.drain()
                line = await self._line(connection)
        finally:
            reading.pop(connection, None)
        if not line.endswith(b"\n"):
            return False
        if line != token:
            world.fail(f"{self.name} asked {token!r}, and got {line!r}")
        world.replies += 1
        return True

    async def _line(self, connection: Connection) -> bytes:
        while (line := await connection.readline()) == b"pong\n":
            pass
        return line

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.choice((0, 0, 0.05, 0.5, 3.0)))


class Caller(Actor):
    """Connects, talks and leaves."""

    def __init__(self, world: World, host: Any, name: str, endpoint: EndpointWatch) -> None:
        super().__init__(world, host, name, endpoint)
        self.connector = endpoint.connector

    async def turn(self) -> None:
        limit, wait = self.rng.choice(LIMITS), self.rng.choice((None, None, True, False))
        policy = self.connector.policy
        total = min((each for each in (limit, policy.timeout) if each is not None), default=None)
        connection = None
        try:
            with self.asking("connect", total) as op:
                asking = self.connector.connect(limit, wait=wait)
                connection = await (self.own_limit(asking) if self.rng.random() < 0.5 else asking)
        except NetworkError as exc:
            self._judge(op, exc, wait=wait)
            return
        if connection is None:
            return
        try:
            await self._talk(connection)
        except (ConnectionLost, TimeoutError, Oops):
            connection.abort()
        finally:
            if self.rng.random() < 0.5:
                connection.abort()
            else:
                await connection.aclose(2.0)

    def _judge(self, op: Op, exc: NetworkError, *, wait: bool | None) -> None:
        check_error(op, exc, self.connector.policy, self.world.fail)
        if isinstance(exc, CircuitOpen) and exc.stop_reason == "circuit":
            breaker = self.connector.policy.breaker
            if wait or (wait is None and (breaker is None or breaker.when_open == "wait")):
                self.world.fail(f"{op.what}: is told of an open circuit, though it was to wait")

    async def _talk(self, connection: Connection) -> None:
        for _ in range(self.rng.choice((0, 1, 3))):
            if not await self.exchange(connection):
                return
            await self.pause()
        if self.rng.random() < 0.1:
            raise Oops


class Borrower(Actor):
    """Uses a pool, in each of the ways there are."""

    def __init__(self, world: World, host: Any, name: str, watch: PoolWatch) -> None:
        super().__init__(world, host, name, watch.endpoint)
        self.watch = watch

    async def turn(self) -> None:
        limit, watch = self.rng.choice(LIMITS), self.watch
        policy = watch.pool.connector.policy
        use: Callable[..., Awaitable[None]] = self._block if self.rng.random() < 0.7 else self._by_hand
        try:
            await use(watch, limit, policy.timeout if limit is None else limit)
        except (PoolTimeout, PoolFull, PoolClosed, TimeoutError, ConnectionLost, Oops) as exc:
            if isinstance(exc, PoolClosed) and not watch.lending.closed:
                self.world.fail(f"{self.name}: {exc!r}")
        except NetworkError as exc:
            breaker = policy.breaker
            told = exc.stop_reason == "circuit" and breaker is not None and breaker.when_open == "fail"
            if exc.stop_reason != "permanent" and not told:
                self.world.fail(f"{self.name}: the pool raised {exc!r}, stopped by {exc.stop_reason}")

    async def _block(self, watch: PoolWatch, limit: float | None, total: float | None) -> None:
        acquiring = watch.pool.acquire(limit)
        with self._asking(watch, total) as op:
            connection = await acquiring.__aenter__()
            self._lent(watch, op, connection)
        try:
            await self._use(connection)
        except BaseException as exc:
            watch.back(connection)
            await acquiring.__aexit__(type(exc), exc, exc.__traceback__)
            self.world.spite(self.endpoint)
            raise
        watch.back(connection)
        await acquiring.__aexit__(None, None, None)
        self.world.spite(self.endpoint)

    async def _by_hand(self, watch: PoolWatch, limit: float | None, total: float | None) -> None:
        with self._asking(watch, total) as op:
            connection = await self.own_limit(watch.pool.acquire(limit))
            if connection is None:
                return
            self._lent(watch, op, connection)
        try:
            await self._use(connection)
        except BaseException:
            connection.abort()
            raise
        finally:
            watch.back(connection)
            watch.pool.release(connection)
            self.world.spite(self.endpoint)

    def _lent(self, watch: PoolWatch, op: Op, connection: Connection) -> None:
        watch.lent(op, connection)
        if connection in self.world.spoiled:
            self.world.fail(f"{op.what} is lent what a hook has refused")

    @contextlib.contextmanager
    def _asking(self, watch: PoolWatch, total: float | None) -> Iterator[Op]:
        with self.asking("acquire", total, watch) as op:
            try:
                yield op
            except NetworkError as exc:
                if getattr(exc, "stop_reason", None) == "permanent":
                    watch.turned_away()
                raise

    async def _use(self, connection: Connection) -> None:
        for _ in range(self.rng.choice((0, 1, 1, 2))):
            connection.mark_dirty()
            if not await self.exchange(connection):
                raise ConnectionTimedOut
            if self.rng.random() < 0.5:
                connection.mark_clean()
            await self.pause()
        if self.rng.random() < 0.15:
            if not connection.is_clean:
                connection.write(b"half a message")
            raise Oops


class Consumer(Actor):
    """Consumes a link, waits for one, closes it, makes the next."""

    def __init__(
        self, world: World, host: Any, name: str, endpoint: EndpointWatch, make: Callable[[str], LinkWatch]
    ) -> None:
        super().__init__(world, host, name, endpoint)
        self.make = make
        self.made = 0
        self.watch: LinkWatch = self._new()

    def _new(self) -> LinkWatch:
        self.made += 1
        return self.make(f"{self.name}#{self.made}")

    async def turn(self) -> None:
        if not self.watch.asked:
            self.watch.asked_at = self.world.loop.time()
        self.watch.asking = True
        try:
            ways = [self._run, self._run, self._iterate, self._ready]
            if self.watch.link.heartbeat is not None:
                ways.append(self._listen)
            await self.rng.choice(ways)(self.watch.link)
        except AlreadyClosed:
            if self.watch.link.state.name != "SHUTDOWN":
                raise
        except NetworkError as exc:
            if exc.stop_reason != "permanent" or self.watch.proven:
                self.world.fail(f"{self.watch.name}: ended by {exc!r}, {exc.stop_reason}")
        except Oops:
            pass
        finally:
            self.watch.asking = False
        if self.watch.link.state.name == "SHUTDOWN" or self.rng.random() < 0.2:
            await self._renew()

    async def _renew(self) -> None:
        """Close it, and make another one."""
        link, watch = self.watch.link, self.watch
        watch.wanted = False
        await link.aclose(self.rng.choice((0, 1.0)))
        watch.at_the_end()
        self.world.links.pop(watch, None)
        self.watch = self._new()

    async def _run(self, link: Link) -> None:
        left = self.rng.choice((1, 5, 30))

        async def consume(connection: Connection) -> None:
            nonlocal left
            while left:
                left -= 1
                await self._talk(connection)

        try:
            await link.run(consume)
        finally:
            self.watch.wanted = False

    async def _listen(self, link: Link) -> None:
        """As one who has subscribed to something: only the heartbeat finds out that the peer is silent."""

        async def consume(connection: Connection) -> None:
            while await connection.readline():
                pass

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rng.uniform(5, 40)):
                try:
                    await link.run(consume)
                finally:
                    self.watch.wanted = False

    async def _talk(self, connection: Connection) -> None:
        try:
            good = await self.exchange(connection)
        except TimeoutError:
            good = False
        if not good:
            connection.abort()
            raise ConnectionTimedOut
        await self.pause()
        if self.rng.random() < 0.03:
            raise Oops

    async def _iterate(self, link: Link) -> None:
        left = self.rng.choice((1, 3))
        try:
            async for connection in link:
                left -= 1
                with contextlib.suppress(ConnectionLost):
                    await self._talk(connection)
                if not left:
                    break
        finally:
            # By now the loop's iterator is gone, which is how the link knows.
            self.watch.wanted = False

    async def _ready(self, link: Link) -> None:
        limit, fail_after = self.rng.choice((0.5, 5.0, 30.0)), self.rng.choice((None, None, 1, 3))
        try:
            with self.asking("ready", limit):
                await link.ready(limit, fail_after)
        except NetworkError as exc:
            if exc.stop_reason not in ("timeout", "attempts"):
                raise
        self.watch.wanted = link.state.name != "SHUTDOWN"
        await asyncio.sleep(self.rng.uniform(0, 20))
