"""A world: made from a seed, shaken for a while, healed, and looked at from beginning to end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import logging
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from aioconnect import (
    LOCAL,
    STARTING,
    TRANSIENT,
    Backoff,
    CircuitBreaker,
    Connection,
    Connector,
    Endpoint,
    Heartbeat,
    Link,
    NotReady,
    Policy,
    Pool,
    RetryBudget,
)
from aioconnect.errors import NetworkError
from tests.dst.fleet import Actor, Borrower, Caller, Consumer
from tests.dst.ground import Ground, Machine, WatchedLoop
from tests.dst.invariants import Clock, ConnectorWatch, EndpointWatch, LinkWatch, Op, PoolWatch, Violation
from tests.dst.troubles import TROUBLES

__all__ = ("Outcome", "World", "replay", "report", "run")

SPINNING = 5_000
"""Steps in which time does not go on, and somebody must be running in circles."""


class Outcome(NamedTuple):
    """What became of a world."""

    seed: int
    violation: str | None
    digest: str
    seconds: float
    """Simulated ones."""
    steps: int
    replies: int
    attempts: int
    cancels: int
    story: tuple[str, ...]
    """What happened, a line for each event."""


class World:
    """One of them. ``long``: an hour instead of a minute."""

    def __init__(self, seed: int, *, long: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")
        self.pace = 500
        """Steps that it may take a second, in the long run."""
        self.clock = Clock()
        settings = {"latency": self.rng.choice((0.0005, 0.002, 0.08)), "jitter": self.rng.choice((0.0, 0.0, 0.004))}
        self.network = Ground(seed, self.dialed, self.looked_up, **settings)
        self.loop = WatchedLoop(self.network, self.look, self.connected)
        self.clock.now = self.loop.time
        self.storm = self.rng.uniform(600, 7200) if long else self.rng.uniform(6, 30)
        self.failure: str | None = None
        self.cause: BaseException | None = None
        self.ops: dict[Any, Op] = {}
        self.reading: dict[Connection, str] = {}
        self.machines: dict[int, list[Machine]] = {}
        self.endpoints: dict[tuple[Any, int], EndpointWatch] = {}
        self.pools: list[PoolWatch] = []
        self.closed: list[PoolWatch] = []
        self.closing: dict[asyncio.Task[None], None] = {}
        self.links: dict[LinkWatch, None] = {}
        self.actors: list[Actor] = []
        self.unheard: dict[Any, tuple[EndpointWatch, Any]] = {}
        self.troubles: dict[int, Callable[[], None]] = {}
        self.spoiled: set[Connection] = set()
        """Connections of which a hook has said that they are of no use any more."""
        self.rng_of_hooks = random.Random(f"{seed} hooks")
        self.rng_of_spite = random.Random(f"{seed} spite")
        self.replies = self.cancels = self.faults = 0
        self.still = 0
        self.moment = -1.0
        self.healed_at = float("inf")
        self.bound = 0.0

    # -- Telling -------------------------------------------------------------------------------------------------------

    def note(self, *what: object) -> None:
        self.network.note(*what)

    def fail(self, text: str) -> None:
        self.failed(text)
        raise Violation(text)

    def failed(self, text: str, cause: BaseException | None = None) -> None:
        """As `fail`, where nobody would hear of an exception."""
        if self.failure is None:
            self.failure, self.cause = f"at {self.loop.time():.6f}: {text}", cause
            self.note("VIOLATION", text)

    def complain(self, _: object, context: dict[str, Any]) -> None:
        """The loop's exception handler: there is nothing that it should hear of."""
        error = context.get("exception")
        self.failed(f"the loop was told: {context['message']}: {error!r}", error)

    # -- Making --------------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Machines, clients and who lives there."""
        for port in range(7000, 7000 + self.rng.choice((1, 1, 2))):
            self.machines[port] = self._machines(port)
        for number in range(self.rng.choice((1, 1, 2))):
            client = self.network.host(f"client{number}", f"10.0.0.{number + 1}", f"fd00::{number + 1}")
            for port in self.machines:
                self._endpoint(client, port)

    def _machines(self, port: int) -> list[Machine]:
        greets, made = self.rng.random() < 0.6, []
        for number in range(self.rng.choice((1, 1, 2, 3))):
            four, six = f"10.1.{port - 7000}.{number + 1}", f"fd01::{port - 7000}:{number + 1}"
            addresses = self.rng.choice(((four,), (four, six), (six, four)))
            name, rng = f"db{number}-{port}", random.Random(f"{self.seed} {port} {number}")
            made.append(Machine(self.network, name, addresses, port, rng, greets=greets))
        self.network.dns(f"svc{port}", [address for each in made for address in each.addresses])
        return made

    def _policy(self) -> Policy:
        rng = self.rng
        initial = rng.choice((0.01, 0.1, 0.5))
        jitter: Any = rng.choice(("full", "equal", "none", "decorrelated"))
        wait = Backoff(initial, initial * rng.choice((1, 8, 20)), rng.choice((1.5, 2, 3)), jitter)
        if wait.maximum < 0.05:
            # A useless peer is dialed a few hundred times a second then: that is what the policy says.
            self.pace = 2_000
        budget = RetryBudget(0.1, 0.5, 2.0, rng.choice(("wait", "fail"))) if rng.random() < 0.3 else None
        breaker = CircuitBreaker(rng.choice((1, 2, 5)), rng.choice(("wait", "fail")))
        closed = rng.random() < (0.2 if budget is None else 0.5)
        return Policy(
            TRANSIENT | LOCAL | STARTING if rng.random() < 0.5 else TRANSIENT | LOCAL,
            never_retry_on={"EHOSTUNREACH"} if rng.random() < 0.15 else (),
            max_attempts=rng.choice((None, None, 1, 4)),
            timeout=rng.choice((None, 5.0, 30.0)),
            attempt_timeout=rng.choice((0.4, 1.0, 3.0)),
            wait=wait,
            breaker=None if closed else breaker,
            budget=budget,
        )

    def _endpoint(self, client: Any, port: int) -> None:
        rng, machines, policy = self.rng, self.machines[port], self._policy()
        ways = [f"tcp://svc{port}:{port}", f"tcp://svc{port}:{port}"]
        ways.append(f"tcp://{','.join(f'{each.host.name}:{port}' for each in machines)}")
        if len(machines) == 1:
            address = machines[0].addresses[0]
            ways.append(f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}")
        endpoint = Endpoint.parse(rng.choice(ways))
        prepare = self._prepare if machines[0].greets else None
        stable_after = rng.choice((0.0, 1.0, 1.0))
        most = rng.choice((None, None, 3))
        base = Connector(endpoint, policy, prepare, max_connecting=most, stable_after=stable_after)
        watch = EndpointWatch(self.clock, self.fail, base, machines)
        self.endpoints[client, port] = watch
        observer = ConnectorWatch(watch, policy, self.ops, self.note, self.spite)
        base.observers = (observer,)
        self.bound = max(self.bound, self._bound(policy))
        make = functools.partial(self._sharing, base, watch)
        name = f"{client.name}:{port}"
        for number in range(rng.choice((1, 2, 4, 8))):
            self.actors.append(Caller(self, client, f"{name} caller{number}", watch))
        if rng.random() < 0.75:
            self._pool(client, name, make, watch)
        for number in range(rng.choice((0, 1, 1, 2))):
            link = functools.partial(self._link, make, watch, stable_after)
            self.actors.append(Consumer(self, client, f"{name} consumer{number}", watch, link))

    def _bound(self, policy: Policy) -> float:
        """Seconds after which there has to be a connection, once nothing is in the way: an attempt that began before,
        the longest pause, another one that has an old answer of the name server, a pause."""
        wait: Any = policy.wait
        each: float = (policy.attempt_timeout or 0.0) + wait.maximum
        # Retries that wait for tokens come one in two seconds.
        return 3 * each + 1.0 + (25.0 if policy.budget is not None else 0.0)

    def _sharing(self, base: Connector, watch: EndpointWatch, keeps: str) -> tuple[Connector, ConnectorWatch]:
        observer = ConnectorWatch(watch, base.policy, self.ops, self.note, self.spite)
        observer.keeps = keeps
        made = Connector(
            base.endpoint, base.policy, base.prepare, stable_after=base.stable_after, observers=[observer], share=base
        )
        return made, observer

    def _pool(self, client: Any, name: str, make: Callable[[str], Any], watch: EndpointWatch) -> None:
        rng = self.rng
        size = rng.choice((1, 2, 4))
        settings: dict[str, Any] = {
            "min_size": rng.choice((0, 0, 1)),
            "max_size": size,
            "max_waiting": rng.choice((None, None, 2)),
            "max_idle": rng.choice((3.0, 20.0)),
            "max_lifetime": rng.choice((10.0, 60.0, None)),
            "check": self._check if rng.random() < 0.25 else None,
            "reset": self._reset if rng.random() < 0.25 else None,
            "hook_timeout": 0.5,
            "max_connecting": rng.choice((1, 2)),
        }
        connector, observer = make("pool")
        observer.made = functools.partial(self._made, watch)
        pool_watch = PoolWatch(watch, lambda: Pool(connector, **settings), f"{name} pool")
        self.pools.append(pool_watch)
        for number in range(rng.choice((2, 4, 7))):
            self.actors.append(Borrower(self, client, f"{name} borrower{number}", pool_watch))

    def _link(self, make: Callable[[str], Any], watch: EndpointWatch, stable_after: float, name: str) -> LinkWatch:
        rng = random.Random(f"{self.seed} {name}")
        connector, observer = make("link")
        heartbeat = None
        if rng.random() < 0.7:
            every = rng.choice((0.5, 3.0))
            heartbeat = Heartbeat(lambda connection: connection.write(b"ping\n"), every, every * 2.5)
        link = LinkWatch(watch, Link(connector, heartbeat), name, stable_after)
        observer.links.append(link)
        self.links[link] = None
        return link

    # -- Hooks ---------------------------------------------------------------------------------------------------------

    async def _prepare(self, connection: Connection) -> None:
        line = await connection.readline()
        if line == b"busy\n":
            raise NotReady("busy")
        if line != b"hello\n":
            raise ConnectionResetError("no greeting")

    async def _check(self, connection: Connection) -> None:
        self.spoiled.add(connection)
        connection.write(b"ping\n")
        if await connection.readline() != b"pong\n":
            raise ConnectionResetError("no pong")
        self.spoiled.discard(connection)

    async def _reset(self, connection: Connection) -> None:
        self.spoiled.add(connection)
        how = self.rng_of_hooks.random()
        if how < 0.1:
            raise ConnectionResetError("a reset that fails")
        await asyncio.sleep(0 if how < 0.7 else how)
        self.spoiled.discard(connection)

    # -- Looking -------------------------------------------------------------------------------------------------------

    def dialed(self, sock: Any, address: Any) -> None:
        watch = self.endpoints.get((sock.host, address[1]))
        if watch is None:
            return
        watch.dialing(address[0])
        if self.rng_of_spite.random() < 0.02 and self.loop.time() < self.healed_at:
            # The moment at which the answer comes.
            machine = next((each for each in watch.machines if address[0] in each.addresses), None)
            actor = next((actor for actor in self.actors if actor.task is asyncio.current_task()), None)
            if machine is not None and actor is not None:
                when = self.loop.time() + 2 * self.network.path(sock.host, machine.host).delay
                self.loop.call_at(when, self._cancel_after, actor, self.rng_of_spite.choice((0, 1, 2, 3)))

    def looked_up(self, host: Any, name: str, addresses: frozenset[str]) -> None:
        for (client, _), watch in self.endpoints.items():
            if client is host:
                watch.looked_up(name, addresses)

    def connected(self, protocol: Any) -> None:
        """A transport of a client is made."""
        sock = protocol._transport.get_extra_info("socket")
        watch = self.endpoints.get((sock.host, sock.remote[1]))
        if watch is None:
            return
        reader = protocol._stream_reader
        self.unheard[protocol] = watch, reader
        protocol.watchers = (functools.partial(watch.lost, protocol), *protocol.watchers)

    def look(self, quiet: bool) -> None:
        """After each step of the loop."""
        if self.failure is not None:
            raise Violation(self.failure)
        now = self.loop.time()
        if now == self.moment:
            self.still += 1
            if self.still > SPINNING:
                self.fail("the loop runs in circles")
        else:
            self.still, self.moment = 0, now
        for pool in self.pools:
            pool.step()
        if quiet:
            self._look_closely(now)

    def _look_closely(self, now: float) -> None:
        """All that could be done at this moment is done."""
        for op in self.ops.values():
            if (late := op.overdue(now)) is not None:
                self.fail(late)
        for protocol in list(self.unheard):
            self._listen(protocol)
        watches: list[Any] = [*self.endpoints.values(), *self.pools, *self.links]
        for watch in watches:
            watch.quiet()
        for connection, name in self.reading.items():
            if connection.lost is not None:
                self.fail(f"{name} reads a connection that is gone: {connection.lost!r}")
        if self.loop.steps > 20_000 + self.pace * now:
            self.fail(f"{self.loop.steps} steps in {now:.0f} s")
        if self.loop.steps % 64 == 0:
            self._bounded()

    def _listen(self, protocol: Any) -> None:
        watch, reader = self.unheard[protocol]
        if protocol.ended or protocol.lost is not None:
            # Whether something was heard in the last moment, its reader has forgotten by now.
            watch.hung_up(protocol)
            del self.unheard[protocol]
        elif reader.was_heard:
            del self.unheard[protocol]

    def _bounded(self) -> None:
        people = len(self.actors) + 4 * len(self.pools) + len(self.links)
        for what, count, most in (
            ("sockets", len(self.network.open), 40 + 20 * people),
            ("tasks", len(asyncio.all_tasks(self.loop)), 20 + 8 * people),
            ("timers", len(self.loop.timers()), 60 + 12 * people),
        ):
            if count > most:
                self.fail(f"{count} {what} for {people} people")

    def spite(self, endpoint: EndpointWatch) -> None:
        """Something is on its way to somebody: now and then somebody is cancelled in that moment, or just after."""
        rng = self.rng_of_spite
        if rng.random() > 0.06 or self.loop.time() > self.healed_at:
            return
        asking = [(actor.op.began, number) for number, actor in enumerate(self.actors) if actor.op is not None]
        waiting = [self.actors[number] for _, number in sorted(asking) if self.actors[number].endpoint is endpoint]
        if waiting:
            # All of them, for whoever is served next is among them; or anybody.
            chosen = waiting if rng.random() < 0.25 else [rng.choice(waiting)]
            steps = rng.choice((0, 0, 1, 1, 2, 3))
            for actor in chosen:
                self.cancels += 1
                self._cancel_after(actor, steps)

    def _made(self, endpoint: EndpointWatch) -> None:
        """A dial of a pool has ended well: now and then the pool is closed before it hears of it."""
        if self.rng_of_spite.random() < 0.03 and self.loop.time() < self.healed_at:
            for pool in [pool for pool in self.pools if pool.endpoint is endpoint]:
                self.loop.call_soon(pool.lending._shut)
                self.loop.call_soon(self._renew, pool)

    # -- Shaking -------------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """All of it."""
        self.loop.set_exception_handler(self.complain)
        for actor in self.actors:
            self.loop.call_later(actor.rng.uniform(0, 1), actor.begin)
        end = self.loop.time() + self.storm
        while (now := self.loop.time()) < end:
            await asyncio.sleep(min(self.rng.expovariate(0.5), end - now))
            self._shake()
        self._heal()
        await asyncio.sleep(self.bound)
        await self._all_is_well()
        await self._shut_down()

    def _shake(self) -> None:
        what = self.rng.random()
        if what < 0.35:
            self._cancel_some()
        elif what < 0.47:
            self._news()
        elif what < 0.5:
            seconds = self.rng.choice((0.01, 0.5, 4.0, 40.0))
            self.note("the clock jumps", seconds)
            before = self.loop.time()
            self.loop.jump(seconds)
            self.clock.jumps.append((before, self.loop.time()))
        else:
            self._trouble()

    def _cancel_some(self) -> None:
        for actor in self.rng.sample(self.actors, min(len(self.actors), self.rng.choice((1, 1, 3)))):
            self.cancels += 1
            self._cancel_after(actor, self.rng.choice((0, 0, 1, 2, 3)))
            if self.rng.random() < 0.3:
                self._cancel_after(actor, self.rng.choice((0, 1, 2, 3)))

    def _cancel_after(self, actor: Actor, steps: int) -> None:
        if steps:
            self.loop.call_soon(self._cancel_after, actor, steps - 1)
        else:
            actor.cancel()

    def _news(self) -> None:
        what = self.rng.random()
        if self.loop.time() > self.healed_at:
            return
        if what < 0.3 and self.links:
            self.rng.choice(list(self.links)).retry_now()
        elif what < 0.6:
            self.rng.choice(list(self.endpoints.values())).retry_now()
        elif self.pools:
            pool = self.rng.choice(self.pools)
            if self.rng.random() < 0.5:
                self._renew(pool)
            else:
                with self._home(pool):
                    pool.pool.drain()

    def _home(self, pool: PoolWatch) -> Any:
        return next(host for (host, _), watch in self.endpoints.items() if watch is pool.endpoint)

    def _renew(self, pool: PoolWatch) -> None:
        """Close a pool, and put another one in its place."""
        if pool not in self.pools or self.loop.time() > self.healed_at:
            return
        self.note("renew", pool.name)
        new = self.pools[self.pools.index(pool)] = pool.renewed()
        for actor in self.actors:
            if isinstance(actor, Borrower) and actor.watch is pool:
                actor.watch = new
        with self._home(pool):
            self.closing[self.loop.create_task(self._close(pool), name=f"close {pool.name}")] = None

    async def _close(self, pool: PoolWatch) -> None:
        self.closed.append(pool)
        await pool.pool.aclose(self.rng_of_hooks.choice((0, 1.0)))
        pool.has_closed()

    def _trouble(self) -> None:
        """One more thing goes wrong, and will be right again."""
        machine = self.rng.choice([each for several in self.machines.values() for each in several])
        end = self.rng.choice(TROUBLES)(self, machine)
        number = self.faults = self.faults + 1
        machine.troubles += 1

        def over() -> None:
            if self.troubles.pop(number, None) is None:
                return
            end()
            machine.troubles -= 1
            machine.well_since = self.loop.time()
            self.note("over", number)

        self.troubles[number] = over
        self.loop.call_later(self.rng.expovariate(self.rng.choice((0.1, 0.5))), over)
        if self.rng.random() < 0.3:
            self._cancel_some()
        if self.rng.random() < 0.2:
            self.loop.call_later(self.rng.uniform(0, 3), self._news)

    # -- Healing -------------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        for over in list(self.troubles.values()):
            over()
        self.healed_at = self.loop.time()
        self.note("healed")

    async def _all_is_well(self) -> None:
        """Whoever waited when the world was healed has what he waited for, and whoever asks now has it soon."""
        for op in self.ops.values():
            served = op.pool is not None and (op.pool.held or op.pool.lent_at > self.healed_at)  # in turn
            if op.began <= self.healed_at and not served:
                self.fail(f"{op.what}: waits since {op.began:.3f}, though all is well since {self.healed_at:.3f}")
        for link in self.links:
            waits = link.asked and link.asked_at < self.healed_at and link.link.state.name != "READY"
            if waits and link.down_since < self.healed_at and link.ready_at < self.healed_at:
                self.fail(f"{link.name}: is {link.link.state.name}, though all is well since {self.healed_at:.3f}")
        asked = [self._prompt(host, watch) for (host, _), watch in self.endpoints.items()]
        asked += [self._all_slots(pool) for pool in self.pools]
        await asyncio.gather(*asked)

    async def _prompt(self, host: Any, watch: EndpointWatch) -> None:
        with host:
            task = self.loop.create_task(self._connect(watch.connector))
        await task

    async def _connect(self, connector: Connector) -> None:
        began, limit = self.loop.time(), 1.0 + (connector.policy.attempt_timeout or 0.0)
        try:
            connection = await connector.connect(limit, wait=True)
        except NetworkError as exc:
            self.fail(f"no connection within {self.loop.time() - began:.3f} s of a world that is well: {exc}")
        await connection.aclose()

    async def _all_slots(self, watch: PoolWatch) -> None:
        for actor in self.actors:
            if isinstance(actor, Borrower) and actor.watch is watch:
                actor.stop()
        await asyncio.sleep(1.0)
        size = watch.books.limits.max_size
        with self._home(watch):
            task = self.loop.create_task(watch.pool.ready(size, self.bound))
        try:
            await task
        except NetworkError as exc:
            self.fail(f"{watch.name}: {watch.books.open} connections of {size}, though all is well: {exc}")

    async def _shut_down(self) -> None:
        for actor in self.actors:
            actor.stop()
        await asyncio.sleep(2.5)
        for link in list(self.links):
            link.wanted = False
            await link.link.aclose(1.0)
            link.at_the_end()
        for pool in self.pools:
            await pool.pool.aclose(1.0)
        await asyncio.sleep(6.0)
        watches: list[Any] = [*self.endpoints.values(), *self.pools, *self.closed]
        for watch in watches:
            watch.at_the_end()
        self._nothing_left()

    def _nothing_left(self) -> None:
        for several in self.machines.values():
            for machine in several:
                machine.server.stop("vanish")
        sockets = [sock for sock in self.network.open if sock.host.name.startswith("client")]
        if sockets:
            self.fail(f"{len(sockets)} sockets are left open, the first is {sockets[0]!r}")
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        if tasks:
            self.fail(f"tasks are left: {sorted(task.get_name() for task in tasks)}")
        timers = [timer for timer in self.loop.timers() if _is_ours(timer)]
        if timers:
            self.fail(f"timers are left: {timers[0]!r}")


def _is_ours(timer: Any) -> bool:
    callback = getattr(timer._callback, "func", timer._callback)
    module = getattr(callback, "__module__", "") or ""
    return module.startswith("aioconnect.") and not module.startswith("aioconnect.testing.")


# -- Running -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """With chance, the collector and the log for oneself."""
    state, collects, logger = random.getstate(), gc.isenabled(), logging.getLogger("aioconnect")
    level = logger.level
    gc.disable()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        random.setstate(state)
        logger.setLevel(level)
        if collects:
            gc.enable()


def replay(seed: int, *, long: bool = False) -> str:
    """The command that runs a world again, and prints its story."""
    return f"python -m tests.dst --seed {seed}{' --long' if long else ''}"


def report(outcome: Outcome, lines: int = 60) -> str:
    """What to say about a world in which something did not hold."""
    story = "\n".join(outcome.story[-lines:])
    return f"{story}\nseed {outcome.seed}: {outcome.violation}\nreplay: {replay(outcome.seed)}"


def run(seed: int, *, long: bool = False, story: bool = False) -> Outcome:
    """Run one world. ``story``: tell it, also if all has held."""
    with _alone():
        random.seed(f"global {seed}")
        outcome = _run(seed, long=long, story=story)
        if outcome.violation is not None:
            # What is left of it complains of the end of its loop.
            with mock.patch.object(sys, "unraisablehook"):
                gc.collect()
        elif seed % 16 == 0:
            gc.collect()
        return outcome


def _run(seed: int, *, long: bool, story: bool) -> Outcome:
    world = World(seed, long=long)
    try:
        world.build()
        with warnings.catch_warnings(record=True) as caught:
            # By which a stream says that nobody has closed it.
            warnings.simplefilter("always", ResourceWarning)
            world.loop.run_until_complete(world.loop.create_task(world.main(), name="main"))
        if caught:
            world.failed(f"{caught[0].category.__name__}: {caught[0].message}")
    except Exception as exc:  # noqa: BLE001  (told of)
        if world.failure is None:
            where = traceback.extract_tb(exc.__traceback__)[-1]
            world.failed(f"{type(exc).__name__}: {exc} ({where.filename.rpartition('/')[2]}:{where.lineno})", exc)
    seconds, steps = world.loop.time(), world.loop.steps
    _bury(world)
    return _outcome(world, seconds, steps, story=story)


def _bury(world: World) -> None:
    """Leave nothing of a world behind, however it has ended."""
    loop = world.loop
    last = loop.steps + 500
    world.network.trace, trace = None, world.network.trace

    def look(_: bool) -> None:
        if loop.steps > last:
            raise RuntimeError("it does not end")

    loop.look = look
    loop.set_exception_handler(lambda *_: None)
    for actor in world.actors:
        actor.stopped = True
    for pool in world.pools:
        pool.lending.closed = True
    for _ in range(3):
        if not (left := asyncio.all_tasks(loop)):
            break
        for task in left:
            task.cancel()
        loop.call_later(5, loop.stop)
        with contextlib.suppress(Exception):
            loop.run_forever()
    loop.close()
    world.network.trace = trace


def _outcome(world: World, seconds: float, steps: int, *, story: bool) -> Outcome:
    trace = world.network.trace or []
    return Outcome(
        world.seed,
        world.failure,
        hashlib.sha256("\n".join(map(repr, trace)).encode()).hexdigest(),
        seconds,
        steps,
        world.replies,
        sum(watch.good + watch.bad for watch in world.endpoints.values()),
        world.cancels,
        tuple(_lines(trace)) if world.failure or story else (),
    )


def _lines(trace: list[tuple[Any, ...]]) -> Iterator[str]:
    for when, *what in trace:
        yield f"{when:12.6f}  {' '.join(map(str, what))}"
