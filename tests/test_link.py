"""One connection, kept up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aioconnect import (
    TLS,
    Backoff,
    CertificateRejected,
    ConfigError,
    ConnectError,
    Connection,
    ConnectionLost,
    Connector,
    ConnectRefused,
    ConnectTimeout,
    Endpoint,
    Heartbeat,
    Link,
    LinkState,
    NotReady,
    PeerClosed,
    Policy,
)
from aioconnect.errors import AlreadyClosed, ConnectionTimedOut, SocketPathNotFound
from aioconnect.events import Event, LinkStateChanged, Retrying
from aioconnect.testing.cancel import EAGER, cancel_everywhere
from tests.support.backends import Backend, greet, greet_and_hang_up, hang_up, mute
from tests.support.clock import virtual
from tests.support.garbage import garbage_of
from tests.support.listeners import closed_port
from tests.support.listeners import mute as black_hole
from tests.support.peers import Authority, serve, tls_echo

IDLE, CONNECTING, READY, TRANSIENT_FAILURE, SHUTDOWN = LinkState
EXACT = Backoff(initial=0.1, maximum=5.0, jitter="none")
QUICK = Policy(wait=Backoff(initial=0.01, maximum=0.02, jitter="none"))


class States:
    """The states that an observer hears of, and the errors that came with them."""

    def __init__(self) -> None:
        self.changes: list[LinkStateChanged] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, LinkStateChanged):
            self.changes.append(event)

    @property
    def names(self) -> str:
        return " ".join([change.after.name for change in self.changes])

    @property
    def errors(self) -> list[type[Exception]]:
        return [type(change.error) for change in self.changes if change.error is not None]


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with Backend() as backend:
        yield backend


async def soon(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def asked(connection: Connection) -> None:
    await connection.send(b"ping\n")
    assert await connection.readline() == b"ping\n"


# --------------------------------------------------------------------------- run


async def test_run_consumes_one_connection_after_the_other(backend: Backend) -> None:
    states, used = States(), list[Connection]()

    async def consume(connection: Connection) -> None:
        used.append(connection)
        await asked(connection)
        if len(used) < 3:
            backend.cut()
            await connection.readexactly(1)

    async with Link(Connector(backend.address, QUICK, observers=[states])) as link:
        assert link.state is IDLE
        await link.run(consume)
        assert link.state is IDLE
        assert all(connection.is_closing for connection in used)
    assert len(backend.accepted) == len(set(used)) == 3
    again = "READY TRANSIENT_FAILURE CONNECTING "
    assert states.names == f"CONNECTING {again}{again}READY IDLE SHUTDOWN"
    assert all(issubclass(error, ConnectionLost) for error in states.errors)
    assert backend.most == 1


@pytest.mark.parametrize("read", ["read", "readline", "readexactly", "iterate", "everything", "swallowed"])
@pytest.mark.parametrize("suspended", [True, False])
async def test_a_return_at_the_end_of_the_stream_is_a_loss(backend: Backend, read: str, suspended: bool) -> None:
    backend.serve = greet
    used = 0

    async def consume(connection: Connection) -> str:
        nonlocal used
        used += 1
        await connection.readline()
        if used == 3:
            return "done"
        if suspended:
            asyncio.get_running_loop().call_later(0.005, backend.end)
        else:
            backend.end()
            await soon(connection.reader.at_eof)
        if read == "read":
            assert await connection.read(10) == b""
        elif read == "readline":
            assert await connection.readline() == b""
        elif read == "readexactly":
            await connection.readexactly(5)
        elif read == "iterate":
            assert [line async for line in connection.reader] == []
        elif read == "everything":
            assert await connection.read() == b""
        else:
            with contextlib.suppress(PeerClosed):
                await connection.readuntil(b"!")
        return "not done"

    async with Link(Connector(backend.address, QUICK)) as link:
        await link.run(consume)
    assert used == 3


async def test_a_loss_after_the_end_of_the_stream_was_read_changes_nothing(backend: Backend) -> None:
    backend.serve = greet
    used = 0

    async def consume(connection: Connection) -> None:
        nonlocal used
        used += 1
        await connection.readline()
        if used == 3:
            return
        backend.end()
        assert await connection.read(10) == b""
        while connection.lost is None:
            connection.write(b"goodbye\n")
            await asyncio.sleep(0.001)

    async with Link(Connector(backend.address, QUICK)) as link:
        await link.run(consume)
    assert used == 3


async def test_a_return_before_the_end_was_read_ends_the_run(backend: Backend) -> None:
    backend.serve = greet_and_hang_up

    async def consume(connection: Connection) -> None:
        await soon(lambda: connection.reader.at_eof() or link.state is TRANSIENT_FAILURE)
        assert await connection.readline() == b"hello\n"

    async with Link(Connector(backend.address, QUICK)) as link:
        await link.run(consume)
        assert link.state is IDLE
    assert len(backend.accepted) == 1


async def test_what_came_before_the_end_reaches_the_consumer(backend: Backend) -> None:
    """Also where both are there before it runs."""
    backend.serve = greet_and_hang_up
    lines = list[bytes]()

    async def slow(_: Connection) -> None:
        await asyncio.sleep(0.02)

    async with Link(Connector(backend.address, QUICK, prepare=slow)) as link:
        async for connection in link:
            lines.append(await connection.readline())
            assert await connection.readline() == b""
            if len(lines) == 3:
                break
    assert lines == [b"hello\n"] * 3


@pytest.mark.parametrize("loss", ["own", "group", "nested"])
async def test_a_consumer_may_say_itself_that_a_connection_is_lost(backend: Backend, loss: str) -> None:
    used = 0

    async def consume(connection: Connection) -> None:
        nonlocal used
        used += 1
        if used < 3:
            error = ConnectionLost(None, "I cannot make sense of this")
            if loss == "own":
                raise error
            group = ExceptionGroup("reader", [error])
            raise group if loss == "group" else ExceptionGroup("tasks", [group, error])

    async with Link(Connector(backend.address, QUICK)) as link:
        await link.run(consume)
    assert used == 3


@pytest.mark.parametrize(
    "error", [ValueError("bug"), ExceptionGroup("", [PeerClosed(), KeyError(1)]), OSError("other")]
)
async def test_any_other_error_of_a_consumer_ends_the_run(backend: Backend, error: Exception) -> None:
    used = list[Connection]()

    async def consume(connection: Connection) -> None:
        used.append(connection)
        raise error

    async with Link(Connector(backend.address, QUICK)) as link:
        with pytest.raises(type(error)) as info:
            await link.run(consume)
        assert info.value is error
        assert info.value.__cause__ is None
        assert link.state is IDLE
        assert used[0].is_closing
        await soon(lambda: not backend.open)
        with pytest.raises(type(error)):  # and there can be another run
            await link.run(consume)
    assert len(used) == 2


async def test_what_a_returning_consumer_has_written_is_sent(backend: Backend) -> None:
    received = 0

    async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal received
        while data := await reader.read(2**16):
            received += len(data)

    async def consume(connection: Connection) -> None:
        connection.write(bytes(5_000_000))

    backend.serve = swallow
    async with Link(Connector(backend.address)) as link:
        await link.run(consume)
        await soon(lambda: not backend.open)
    assert received == 5_000_000


async def test_a_second_consumer_is_refused(backend: Backend) -> None:
    async with Link(Connector(backend.address)) as link:
        running = asyncio.create_task(link.run(lambda connection: connection.read()))
        await link.ready()
        with pytest.raises(RuntimeError, match="one run\\(\\) or `async for` at a time"):
            await link.run(asked)
        with pytest.raises(RuntimeError, match="has a consumer"):
            async for _ in link:
                pass
        assert link.state is READY  # the first one goes on
        running.cancel()
        await asyncio.wait([running])
        await link.run(asked)


async def test_a_consumer_takes_over_what_ready_has_made(backend: Backend) -> None:
    async with Link(Connector(backend.address)) as link:
        await link.ready(timeout=5)
        await soon(lambda: backend.open == 1)
        await link.run(asked)
    assert len(backend.accepted) == 1


async def test_aclose_ends_a_run(backend: Backend) -> None:
    for close_inside in (True, False):
        link = Link(Connector(backend.address))
        seen = list[object]()

        async def consume(connection: Connection, link: Link = link, inside: bool = close_inside) -> None:
            if inside:
                await link.aclose()
            try:
                await connection.readexactly(1)
            except ConnectionLost as error:
                seen.append(error)  # noqa: B023
                raise

        running = asyncio.create_task(link.run(consume))
        if not close_inside:
            await link.ready()
            await link.aclose()
        await running
        assert link.state is SHUTDOWN
        assert len(seen) == 1


# --------------------------------------------------------------------------- async for


async def test_the_next_iteration_closes_the_connection_and_gives_another(backend: Backend) -> None:
    used = list[Connection]()
    async with Link(Connector(backend.address, QUICK)) as link:
        async for connection in link:
            assert link.state is READY
            assert all(each.is_closing for each in used)
            used.append(connection)
            try:
                await asked(connection)
                if len(used) == 2:
                    backend.cut()
                    await connection.readexactly(1)
            except ConnectionLost:
                assert len(used) == 2
                assert link.state is TRANSIENT_FAILURE
            if len(used) == 4:
                break
        assert link.state is IDLE
        assert connection.is_closing
        await soon(lambda: not backend.open)
    assert backend.most == 1


@pytest.mark.parametrize("leave", ["break", "return", "raise", "cancel"])
async def test_leaving_the_loop_closes_the_connection(backend: Backend, leave: str) -> None:
    used = list[Connection]()

    async def use(link: Link) -> None:
        async for connection in link:
            used.append(connection)
            if leave == "break":
                break
            if leave == "return":
                return
            if leave == "raise":
                raise KeyError(1)
            await connection.read()

    async with Link(Connector(backend.address)) as link:
        using = asyncio.create_task(use(link))
        if leave == "cancel":
            await link.ready()
            await asyncio.sleep(0)
            using.cancel()
        await asyncio.gather(using, return_exceptions=True)
        assert len(used) == 1
        assert used[0].is_closing
        assert link.state is IDLE
        await link.run(asked)


async def test_a_loop_that_is_cancelled_while_it_waits_has_left(backend: Backend) -> None:
    """Although the cancellation is still there, with its traceback."""
    backend.down()

    async def use(link: Link) -> None:
        async for _ in link:
            pass

    async with Link(Connector(backend.address, QUICK)) as link:
        using = asyncio.create_task(use(link))
        await soon(lambda: link.state is TRANSIENT_FAILURE)
        using.cancel()
        with pytest.raises(asyncio.CancelledError) as info:
            await using
        assert link.state is IDLE
        await backend.up()
        await link.run(asked)
        assert info.value.__traceback__ is not None


async def test_a_body_that_leaves_at_once_is_met_with_pauses(backend: Backend) -> None:
    began = asyncio.get_running_loop().time()
    used = 0
    async with Link(Connector(backend.address, Policy(wait=Backoff(0.02, 0.02, jitter="none")))) as link:
        async for _ in link:
            used += 1
            if used == 6:
                break
    assert asyncio.get_running_loop().time() - began > 0.09


async def test_closing_the_link_ends_the_loop(backend: Backend) -> None:
    async with Link(Connector(backend.address)) as link:
        async for connection in link:
            await link.aclose()
            assert connection.is_closing
        assert link.state is SHUTDOWN
        for ask in (link.ready, lambda: link.run(asked), lambda: anext(aiter(link))):
            with pytest.raises(AlreadyClosed, match="the link was closed"):
                await ask()


# --------------------------------------------------------------------------- ready


async def test_ready_makes_a_connection_and_keeps_it_up(backend: Backend) -> None:
    async with Link(Connector(backend.address, QUICK)) as link:
        await link.ready()
        assert link.state is READY
        assert link.last_error is None
        await soon(lambda: backend.open == 1)
        backend.cut()
        await soon(lambda: len(backend.accepted) == 2)
        await soon(lambda: backend.open == 1)
        await link.ready()
        backend.end()
        await soon(lambda: len(backend.accepted) == 3)
    await soon(lambda: not backend.open)
    assert backend.most == 1


@virtual
async def test_ready_gives_up_and_the_link_does_not(backend: Backend) -> None:
    backend.down()
    async with Link(Connector(backend.address, Policy(wait=EXACT))) as link:
        with pytest.raises(ConnectRefused, match=r"3 attempts in 0\.5 s, stopped by timeout") as info:
            await link.ready(timeout="500ms")
        assert (info.value.stop_reason, info.value.attempt_count) == ("timeout", 3)
        assert link.state is TRANSIENT_FAILURE
        assert isinstance(link.last_error, ConnectRefused)
        await backend.up()
        await asyncio.sleep(0.3)
        assert link.state is READY


@virtual
async def test_ready_fails_after_so_many_attempts(backend: Backend) -> None:
    backend.down()
    async with Link(Connector(backend.address, Policy(wait=EXACT))) as link:
        patient = asyncio.create_task(link.ready(fail_after=4))
        with pytest.raises(ConnectRefused) as info:
            await link.ready(timeout=60, fail_after=2)
        assert (info.value.stop_reason, info.value.attempt_count) == ("attempts", 2)
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)
        with pytest.raises(ConnectRefused) as other:
            await patient
        assert (other.value.stop_reason, other.value.attempt_count) == ("attempts", 4)
        assert other.value is not info.value
        with pytest.raises(ConnectRefused):  # counted anew for each who asks
            await link.ready(fail_after=1)


@virtual
async def test_ready_without_any_error_times_out() -> None:
    with black_hole() as port:
        async with Link(Connector(f"127.0.0.1:{port}")) as link:
            with pytest.raises(ConnectTimeout) as info:
                await link.ready(timeout=0)
            with pytest.raises(ConnectTimeout) as info:
                await link.ready(timeout=2)
            assert (info.value.stop_reason, info.value.source) == ("timeout", "call")
            assert "no connection within the time limit" in str(info.value)


async def test_many_wait_for_ready(backend: Backend) -> None:
    async with Link(Connector(backend.address)) as link:
        await asyncio.gather(*(link.ready(timeout=5) for _ in range(100)))
    assert len(backend.accepted) == 1


async def test_closing_tells_those_who_wait() -> None:
    async with Link(Connector(f"127.0.0.1:{closed_port()}")) as link:
        waiting = [asyncio.create_task(link.ready()) for _ in range(3)]
        iterating = asyncio.ensure_future(anext(aiter(link)))
        await asyncio.sleep(0.01)
    for task in waiting:
        with pytest.raises(AlreadyClosed, match="the link was closed"):
            await task
    with pytest.raises(StopAsyncIteration):
        await iterating


async def test_a_cancelled_ready_takes_its_wish_back(backend: Backend) -> None:
    backend.down()
    async with Link(Connector(backend.address, QUICK)) as link:
        first, second = (asyncio.create_task(link.ready()) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        assert link.state is not IDLE
        second.cancel()
        await asyncio.wait([second])
        assert link.state is IDLE


# --------------------------------------------------------------------------- pauses, errors that end


@virtual
async def test_pauses_follow_the_policy(backend: Backend) -> None:
    backend.down()
    started = list[float]()

    def observer(event: Event) -> None:
        if isinstance(event, LinkStateChanged) and event.after is CONNECTING:
            started.append(asyncio.get_running_loop().time())

    async with Link(
        Connector(backend.address, Policy(wait=EXACT, timeout=1, max_attempts=2), observers=[observer])
    ) as link:
        with pytest.raises(ConnectRefused):
            await link.ready(timeout=20)
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(started)]
    assert gaps[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@virtual
@pytest.mark.parametrize("behaviour", [hang_up, greet_and_hang_up])
async def test_a_server_that_hangs_up_is_met_with_a_growing_pause(backend: Backend, behaviour: Any) -> None:
    backend.serve = behaviour

    async def consume(connection: Connection) -> None:
        await connection.read()

    async with Link(Connector(backend.address, Policy(wait=EXACT))) as link:
        running = asyncio.create_task(link.run(consume))
        await asyncio.sleep(60)
        gaps = [round(b - a, 3) for a, b in itertools.pairwise(backend.accepted)]
        assert 15 <= len(gaps) <= 17
        assert gaps == sorted(gaps)
        assert max(gaps) == pytest.approx(5.0, abs=0.1)
        backend.serve = greet
        await asyncio.sleep(5.1)  # back within the capped wait
        assert link.state is READY
        await asyncio.sleep(1)
        count = len(backend.accepted)
        backend.cut()  # that one was stable: the next comes at once
        await asyncio.sleep(0.01)
        assert len(backend.accepted) == count + 1
        running.cancel()


@virtual
async def test_the_link_is_back_within_the_capped_wait(backend: Backend) -> None:
    async with Link(Connector(backend.address, Policy(wait=Backoff(uniform=random.Random(1).uniform)))) as link:
        running = asyncio.create_task(link.run(lambda connection: connection.readexactly(1)))
        await link.ready()
        await asyncio.sleep(2)
        for outage in (0.5, 20.0, 40.0):
            backend.down()
            await asyncio.sleep(outage)
            assert link.state is not READY
            await backend.up()
            await asyncio.sleep(5.01)
            assert link.state is READY
        running.cancel()


@virtual
async def test_retry_now_ends_a_pause(backend: Backend) -> None:
    backend.down()
    link = Link(Connector(backend.address, Policy(wait=Backoff(60, 60, jitter="none"))))
    link.retry_now()  # there is nothing to end yet
    async with link:
        with pytest.raises(ConnectRefused):
            await link.ready(fail_after=1)
        await backend.up()
        link.retry_now()
        await link.ready(timeout=1)
        await soon(lambda: backend.open == 1)
        backend.down()
        await soon(lambda: link.state is TRANSIENT_FAILURE)
        await backend.up()
        link.retry_now()
        await link.ready(timeout=1)
        assert asyncio.get_running_loop().time() < 1


@virtual
async def test_a_connection_has_lived_until_it_was_lost(backend: Backend) -> None:
    """Not until its consumer has done with it: a server that hangs up is met with a growing pause all the same."""
    backend.serve = hang_up
    policy = Policy(wait=Backoff(initial=4, maximum=64, jitter="none"), breaker=None)
    async with Link(Connector(backend.address, policy)) as link:

        async def consume(connection: Connection) -> None:
            await connection.read()
            await asyncio.sleep(2)
            raise KeyError

        for _ in range(2):
            with pytest.raises(KeyError):
                await link.run(consume)
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(KeyError):
            await link.run(consume)
        # Lost for the second time 2 s ago, and 8 s have to pass.
        assert asyncio.get_running_loop().time() - began == pytest.approx(6 + 2, abs=0.1)


@virtual
async def test_asking_again_does_not_shorten_the_pause(backend: Backend) -> None:
    backend.down()
    states = States()
    async with Link(
        Connector(backend.address, Policy(wait=Backoff(10, 10, jitter="none")), observers=[states])
    ) as link:
        for _ in range(4):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await link.ready()
            assert link.state is IDLE
        assert states.names == "CONNECTING" + " TRANSIENT_FAILURE IDLE" * 4
        await backend.up()
        await link.ready(timeout=2.1)
        assert asyncio.get_running_loop().time() == pytest.approx(10.0)


async def test_a_permanent_error_before_the_first_ready_ends_the_link() -> None:
    connector = Connector(f"127.0.0.1:{closed_port()}", Policy(retry_on={"ECONNRESET"}))
    states = States()
    connector.observers = (states,)
    async with Link(connector) as link:
        waiting = [asyncio.create_task(link.ready()) for _ in range(2)]
        with pytest.raises(ConnectRefused) as info:
            await link.run(asked)
        assert info.value.stop_reason == "permanent"
        assert link.state is SHUTDOWN
        for task in waiting:
            with pytest.raises(ConnectRefused) as other:
                await task
            assert other.value is not info.value
        for ask in (link.ready, lambda: link.run(asked), lambda: anext(aiter(link))):
            with pytest.raises(ConnectRefused):
                await ask()
    assert states.names == "CONNECTING SHUTDOWN"
    assert states.errors == [ConnectRefused]


@virtual
async def test_a_permanent_error_after_the_first_ready_is_retried_at_the_capped_wait(backend: Backend) -> None:
    connector = Connector(backend.address, Policy(retry_on={"ECONNRESET"}, wait=EXACT))
    states = States()
    connector.observers = (states,)
    async with Link(connector) as link:
        running = asyncio.create_task(link.run(lambda connection: connection.readexactly(1)))
        await link.ready()
        await asyncio.sleep(2)
        backend.down()
        await asyncio.sleep(17)
        assert link.state is TRANSIENT_FAILURE
        assert isinstance(link.last_error, ConnectRefused)
        assert states.errors[-1] is ConnectRefused
        assert states.names.count("CONNECTING") == 1 + 4
        await backend.up()
        await asyncio.sleep(5)
        assert link.state is READY
        running.cancel()


async def test_a_rejected_certificate_ends_it_and_an_unknown_name_does_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serve(tls_echo(authority.server_context())) as peer:
        endpoint = Endpoint(host="127.0.0.1", port=peer.port, tls=TLS())
        async with Link(Connector(endpoint)) as link:
            with pytest.raises(CertificateRejected):
                await link.ready(timeout=5)
            assert link.state is SHUTDOWN
    async with Link(Connector(f"unix://{tmp_path}/not-yet.sock", QUICK)) as link:
        with pytest.raises(SocketPathNotFound):
            await link.ready(fail_after=3)
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), f"{tmp_path}/not-yet.sock")
        await link.ready(timeout=5)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("proven", [False, True])
async def test_a_bug_in_prepare_ends_the_link(backend: Backend, proven: bool) -> None:
    used = 0

    async def prepare(_: Connection) -> None:
        if used == proven:
            raise LookupError("bug")

    async def consume(connection: Connection) -> None:
        nonlocal used
        used += 1
        await asked(connection)
        backend.cut()
        await connection.readexactly(1)

    async with Link(Connector(backend.address, QUICK, prepare=prepare)) as link:
        with pytest.raises(LookupError, match="bug"):
            await link.run(consume)
        assert link.state is SHUTDOWN
        with pytest.raises(LookupError, match="bug"):
            await link.ready()
    assert used == proven


async def test_a_bug_in_a_wait_ends_the_link() -> None:
    async with Link(
        Connector(f"127.0.0.1:{closed_port()}", Policy(wait=lambda state: 0.01 / (2 - state.attempt_number)))
    ) as link:
        with pytest.raises(ZeroDivisionError):
            await link.run(asked)
        assert link.state is SHUTDOWN


# --------------------------------------------------------------------------- prepare


@pytest.mark.parametrize("how", ["cut", "end", "not ready", "hang"])
async def test_a_loss_during_prepare_is_a_failed_attempt(backend: Backend, how: str) -> None:
    """Twisted's ClientService never comes back from that: it waits for ever for the hook of the lost connection."""
    backend.serve = greet
    tried = 0

    async def prepare(connection: Connection) -> None:
        nonlocal tried
        tried += 1
        if tried == 4:
            return
        await connection.readline()
        if how == "not ready":
            raise NotReady("still loading")
        if how != "hang":
            asyncio.get_running_loop().call_soon(backend.cut if how == "cut" else backend.end)
        if tried % 2:
            await connection.readexactly(1)
        else:
            await asyncio.sleep(0.05)  # does not look at the connection, and is none the wiser

    states = States()
    policy = QUICK.replace(attempt_timeout=0.03 if how == "hang" else 5)
    async with Link(Connector(backend.address, policy, prepare=prepare, observers=[states])) as link:
        await link.ready(timeout=5)
        assert tried == 4
        assert states.names.startswith("CONNECTING TRANSIENT_FAILURE CONNECTING TRANSIENT_FAILURE CONNECTING")
        assert all(issubclass(error, ConnectError) for error in states.errors)
        await soon(lambda: backend.open == 1)
    await soon(lambda: backend.open == 0)


# --------------------------------------------------------------------------- heartbeat


@virtual
async def test_a_silent_peer_is_lost(backend: Backend) -> None:
    backend.serve = mute
    seen = list[ConnectionLost]()
    states = States()

    async def consume(connection: Connection) -> None:
        try:
            await connection.readexactly(1)
        except ConnectionLost as error:
            seen.append(error)
            raise

    heartbeat = Heartbeat(lambda connection: connection.write(b"ping\n"), every=15, timeout=30)
    async with Link(Connector(backend.address, observers=[states]), heartbeat=heartbeat) as link:
        running = asyncio.create_task(link.run(consume))
        await asyncio.sleep(29)
        assert (link.state, seen) == (READY, [])
        await asyncio.sleep(31.5)
        assert [type(error) for error in seen] == [ConnectionTimedOut] * 2
        assert "nothing was heard for 30s" in str(seen[0])
        assert states.errors == [ConnectionTimedOut] * 2
        assert len(backend.accepted) == 3
        running.cancel()


@virtual
async def test_any_byte_is_a_sign_of_life(backend: Backend) -> None:
    backend.serve = mute
    async with Link(Connector(backend.address), Heartbeat(lambda _: None, every=1, timeout=30)) as link:
        await link.ready()
        for _ in range(10):
            await asyncio.sleep(29)
            next(iter(backend.writers)).write(b".")
        await asyncio.sleep(29)
        assert link.state is READY
        await asyncio.sleep(2)
    assert len(backend.accepted) == 2


@virtual
async def test_an_answered_heartbeat_keeps_it_up(backend: Backend) -> None:
    sent = 0

    async def ping(connection: Connection) -> None:
        nonlocal sent
        sent += 1
        await connection.send(b"ping\n")

    async with Link(Connector(backend.address), heartbeat=Heartbeat(ping, every="15s", timeout="30s")) as link:
        await link.ready()
        await asyncio.sleep(3601)
        assert link.state is READY
        assert (len(backend.accepted), sent) == (1, 240)
    await asyncio.sleep(60)
    assert sent == 240


@virtual
async def test_who_does_not_listen_cannot_tell_silence(backend: Backend) -> None:
    """A consumer that is slow to read has its transport paused: no byte can come, and that is not the peer's fault."""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(2**16))
                await writer.drain()

    backend.serve = flood
    async with Link(Connector(backend.address), heartbeat=Heartbeat(lambda _: None, every=1, timeout=2)) as link:
        await link.ready()
        await asyncio.sleep(600)
        assert link.state is READY
        assert len(backend.accepted) == 1


@pytest.mark.parametrize("error", [BrokenPipeError(), TimeoutError("no answer")])
async def test_a_heartbeat_that_fails_is_a_loss(backend: Backend, error: Exception) -> None:
    failing = True

    async def ping(_: Connection) -> None:
        nonlocal failing
        if failing:
            failing = False
            raise error

    async with Link(Connector(backend.address, QUICK), heartbeat=Heartbeat(ping, every=0.01, timeout=60)) as link:
        await link.ready()
        await soon(lambda: len(backend.accepted) == 2)
        await link.ready()


@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_a_bug_in_a_heartbeat_ends_the_run(backend: Backend, kind: str) -> None:
    def bug(_: Connection) -> None:
        raise LookupError("bug")

    async def slow_bug(connection: Connection) -> None:
        await asyncio.sleep(0.01)
        bug(connection)

    states = States()
    heartbeat = Heartbeat(bug if kind == "function" else slow_bug, every=0.01, timeout=60)
    async with Link(Connector(backend.address, observers=[states]), heartbeat=heartbeat) as link:
        with pytest.raises(LookupError, match="bug"):
            await link.run(lambda connection: connection.readexactly(1))
        assert states.names.endswith("READY SHUTDOWN")


@virtual
@pytest.mark.parametrize("behaviour", [hang_up, greet_and_hang_up, greet, mute])
@pytest.mark.parametrize("how", ["returns", "raises", "iterates"])
async def test_a_loop_with_a_heartbeat_and_ended_connections_is_idle(
    backend: Backend, behaviour: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.serve = behaviour
    loop, turns = asyncio.get_running_loop(), 0

    async def use(connection: Connection) -> None:
        asyncio.get_running_loop().call_later(0.01, backend.end)
        while await connection.read(10):
            pass
        if how == "raises":
            raise ConnectionLost(None, "said by the consumer")

    async def iterate(link: Link) -> None:
        async for connection in link:
            await use(connection)

    if isinstance(loop, asyncio.SelectorEventLoop):
        selector: Any = vars(loop)["_selector"]
        select = selector.select

        def counted(timeout: float | None) -> object:
            nonlocal turns
            turns += 1
            return select(timeout)

        monkeypatch.setattr(selector, "select", counted)
    policy = Policy(wait=Backoff(initial=0.05, maximum=0.05, jitter="none"))
    heartbeat = Heartbeat(lambda conn: conn.write(b"ping\n"), every=0.02, timeout=0.04)
    async with Link(Connector(backend.address, policy), heartbeat) as link:
        running = asyncio.ensure_future(iterate(link) if how == "iterates" else link.run(use))
        await asyncio.wait([running], timeout=0.2)
        assert not running.done()
        running.cancel()
    assert 2 <= len(backend.accepted) <= 5
    assert turns < 150


@virtual
async def test_a_heartbeat_that_is_stuck_is_not_sent_twice(backend: Backend) -> None:
    backend.serve = mute
    started = 0

    async def stuck(_: Connection) -> None:
        nonlocal started
        started += 1
        await asyncio.sleep(3600)

    async with Link(Connector(backend.address), heartbeat=Heartbeat(stuck, every=1, timeout=9)) as link:
        await link.ready()
        await asyncio.sleep(8)
        assert started == 1
        await asyncio.sleep(1.5)
        assert len(backend.accepted) == 2


# --------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("eager", EAGER)
async def test_cancel_everywhere_in_run(backend: Backend, eager: bool) -> None:
    async def ping(connection: Connection) -> None:
        await connection.send(b"ping\n")

    async def use() -> None:
        used = 0

        async def consume(connection: Connection) -> None:
            nonlocal used
            used += 1
            await asked(connection)
            if used == 2:
                return
            backend.cut()
            await connection.readexactly(1)

        await Link(Connector(backend.address, QUICK), Heartbeat(ping, every=0.001, timeout=5)).run(consume)

    assert await cancel_everywhere(use, eager=eager) > 5


@pytest.mark.parametrize("eager", EAGER)
async def test_cancel_everywhere_in_a_loop(backend: Backend, eager: bool) -> None:
    async def use() -> None:
        used = 0
        async with Link(Connector(backend.address, QUICK)) as link:
            await link.ready()
            async for connection in link:
                used += 1
                connection.write(b"ping\n")
                if used == 2:
                    break

    assert await cancel_everywhere(use, eager=eager) > 5


async def test_cancel_everywhere_in_an_outage() -> None:
    async def use() -> None:
        async with Link(Connector(f"127.0.0.1:{closed_port()}", QUICK)) as link:
            await link.ready(fail_after=3)

    assert await cancel_everywhere(use, raises=ConnectRefused) > 3


async def test_cancel_everywhere_in_ready_alone(backend: Backend) -> None:
    links = list[Link]()

    async def use() -> Link:
        links.append(Link(Connector(backend.address)))
        await links[-1].ready()
        return links[-1]

    assert await cancel_everywhere(use, close=Link.aclose) >= 2
    assert all(link.state in (IDLE, SHUTDOWN) for link in links)


async def test_a_task_cancelled_by_somebody_else_closes_the_link(backend: Backend) -> None:
    async with Link(Connector(backend.address)) as link:
        running = asyncio.create_task(link.run(lambda connection: connection.read()))
        await link.ready()
        for task in asyncio.all_tasks():
            if task.get_name().startswith("tcp://"):
                task.cancel()
        await running
        assert link.state is SHUTDOWN


async def test_asking_again_at_once_waits_for_what_is_being_given_up(backend: Backend) -> None:
    """There is never a second connection, even while a hook of the first one takes its time to end."""
    hooks = most = 0

    async def prepare(_: Connection) -> None:
        nonlocal hooks, most
        hooks += 1
        most = max(most, hooks)
        try:
            await asyncio.sleep(0.01)
        finally:
            try:
                await asyncio.sleep(0.02)
            finally:
                hooks -= 1

    async with Link(Connector(backend.address, QUICK, prepare=prepare)) as link:
        for delay in (0.0, 0.005, 0.02):
            running = asyncio.create_task(link.run(asked))
            await asyncio.sleep(delay)
            running.cancel()
            await asyncio.wait([running])
            assert link.state is IDLE
        await link.run(asked)
    assert most == 1
    assert backend.most == 1


# --------------------------------------------------------------------------- observers, loops, arguments


async def test_observers_hear_the_states_in_order(backend: Backend) -> None:
    first, last = States(), States()

    def meddler(event: Event) -> None:
        if isinstance(event, LinkStateChanged) and event.after is READY:
            link._supervisor._stop()  # as close to a change within a change as anything can come

    async with Link(Connector(backend.address, observers=[first, meddler, last])) as link:
        waiting = asyncio.create_task(link.ready())
        await soon(lambda: len(last.changes) >= 3)
        waiting.cancel()
    assert first.changes == last.changes
    for before, after in itertools.pairwise(last.changes):
        assert before.after is after.before


@pytest.mark.may_leak("log")
async def test_an_observer_that_raises_changes_nothing(backend: Backend) -> None:
    def bad(_: Event) -> None:
        raise ValueError("observer")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with Link(Connector(backend.address, observers=[bad])) as link:
        await link.run(asked)


def test_a_link_belongs_to_one_loop_until_that_is_closed() -> None:
    link = Link(Connector(f"127.0.0.1:{closed_port()}", QUICK))
    assert link.state is IDLE

    async def outage() -> None:
        with pytest.raises(ConnectRefused):
            await link.ready(fail_after=2)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(outage())
    with asyncio.Runner() as other, pytest.raises(RuntimeError, match="another event loop"):
        other.run(link.ready())
    with asyncio.Runner() as other, pytest.raises(RuntimeError, match="another event loop"):
        other.run(link.aclose())
    for task in asyncio.all_tasks(loop):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
    loop.close()
    closed = Link(link.connector)
    asyncio.run(closed.aclose())
    with pytest.raises(AlreadyClosed):
        asyncio.run(closed.ready())


def test_a_closed_loop_is_forgotten() -> None:
    link = Link(Connector(f"127.0.0.1:{closed_port()}", QUICK))

    async def outage() -> None:
        with pytest.raises(ConnectRefused):
            await link.ready(fail_after=1)
        running = asyncio.ensure_future(link.run(asked))
        await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])

    for _ in range(2):
        asyncio.run(outage())
        assert link.state is IDLE


def test_what_the_end_of_a_loop_has_cancelled_begins_anew_in_the_next() -> None:
    link = Link(Connector(f"127.0.0.1:{closed_port()}", QUICK))

    async def outage() -> None:
        with pytest.raises(ConnectRefused):
            await link.ready(fail_after=1)

    for _ in range(2):
        asyncio.run(outage())
        assert link.state is SHUTDOWN
    asyncio.run(link.aclose())
    with pytest.raises(AlreadyClosed):
        asyncio.run(link.ready())


@pytest.mark.parametrize("how", ["cancelled", "late", "answered", "with its keeper"])
async def test_closing_in_the_very_turn_in_which_a_wait_for_ready_ends(how: str) -> None:
    closing: list[asyncio.Task[None]] = []

    def close_at_failure(event: Event) -> None:
        if how == "answered" and isinstance(event, LinkStateChanged) and event.after is TRANSIENT_FAILURE:
            closing.append(asyncio.ensure_future(link.aclose()))

    policy = Policy(wait=Backoff(initial=60, maximum=60))
    link = Link(Connector(f"127.0.0.1:{closed_port()}", policy, observers=[close_at_failure]))
    waiting = asyncio.ensure_future(link.ready(0.02 if how == "late" else None, 1 if how == "answered" else None))
    await asyncio.sleep(0.005)
    if how == "late":
        time.sleep(0.05)  # so that the timer and the closing are due in the same turn
    elif how == "with its keeper":
        (keeper,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("tcp://"))
        waiting.cancel()
        keeper.cancel()
        await asyncio.wait([keeper])
        assert keeper.cancelled()
    elif how == "cancelled":
        waiting.cancel()
    closing.append(asyncio.ensure_future(link.aclose()))
    _, *ends = await asyncio.gather(waiting, *closing, return_exceptions=True)
    assert ends == [None] * len(closing)
    assert link.state is SHUTDOWN


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(Connector(f"127.0.0.1:{closed_port()}", QUICK))

    async def ask() -> None:
        with pytest.raises(ConnectRefused):
            await link.ready(fail_after=1)
        await link.aclose(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask())
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with asyncio.Runner() as other, pytest.raises(RuntimeError, match=r"another process \(a fork\)"):
        other.run(link.ready())
    with pytest.raises(RuntimeError, match=r"another process \(a fork\)"):
        # As uvloop is made for, a child may go on with the loop of its parent.
        loop.run_until_complete(link.ready())
    loop.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Link("127.0.0.1:1"), "connector='127.0.0.1:1': must be a Connector"),  # type: ignore[arg-type]
        (lambda: Link(Connector("a:1"), heartbeat=15), "heartbeat=15: must be a Heartbeat, or None"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(make: Callable[[], Link], message: str) -> None:
    with pytest.raises(ConfigError) as info:
        make()
    assert str(info.value) == message


@pytest.mark.may_leak("log")  # of a task that ends by no Exception
@pytest.mark.parametrize("raised", [asyncio.CancelledError, type("Aborted", (BaseException,), {})])
async def test_what_is_no_exception_but_comes_out_of_prepare_ends_the_link(backend: Backend, raised: Any) -> None:
    async def prepare(_: Connection) -> None:
        raise raised

    connector = Connector(backend.address, QUICK, prepare=prepare)
    for consumed in (False, True):
        async with asyncio.timeout(5), Link(connector) as link:
            with pytest.raises(RuntimeError, match=raised.__name__) as info:
                await (link.run(asked) if consumed else link.ready())
            assert isinstance(info.value.__cause__, raised)
            assert link.state is SHUTDOWN
    assert len(backend.accepted) <= 2


@pytest.mark.parametrize("ask", ["run", "ready"])
async def test_a_wait_that_raises_at_a_loss_ends_the_link(backend: Backend, ask: str) -> None:
    def wait(_: object) -> float:
        raise ZeroDivisionError("the policy's wait")

    async def consume(connection: Connection) -> None:
        await connection.readline()
        backend.end()
        while await connection.read(10):
            pass

    async with asyncio.timeout(5), Link(Connector(backend.address, Policy(wait=wait, breaker=None))) as link:
        backend.serve = greet
        if ask == "ready":
            await link.ready()
            await soon(lambda: backend.open == 1)
            backend.end()
            await soon(lambda: link.state is SHUTDOWN)
        with pytest.raises(ZeroDivisionError):
            await (link.ready() if ask == "ready" else link.run(consume))


async def test_wrong_arguments_of_calls(backend: Backend) -> None:
    async with Link(Connector(backend.address)) as link:
        for wrong in ({"timeout": -1}, {"timeout": "soon"}, {"fail_after": 0}, {"fail_after": 1.5}):
            with pytest.raises(ConfigError):
                await link.ready(**wrong)
        with pytest.raises(ConfigError):
            await link.aclose(timeout=-1)
        assert link.state is IDLE
    await link.aclose()  # once more is no mistake


async def test_a_link_never_closes_its_connector(backend: Backend) -> None:
    connector = Connector(backend.address)
    async with Link(connector) as link:
        await link.run(asked)
    async with connector.connect() as connection:
        await asked(connection)
    assert repr(link) == f"<Link tcp://{backend.address} SHUTDOWN>"


async def test_tls_links(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context: ssl.SSLContext = authority.server_context()
    async with serve(tls_echo(context)) as peer:
        endpoint = Endpoint(host="127.0.0.1", port=peer.port, tls=TLS(ca_file=authority.ca_file))
        beats = 0

        def ping(connection: Connection) -> None:
            nonlocal beats
            beats += 1
            connection.write(b"beat\n")

        async def consume(connection: Connection) -> None:
            for _ in range(3):
                assert await connection.readline() == b"beat\n"

        async with Link(Connector(endpoint), heartbeat=Heartbeat(ping, every=0.01, timeout=10)) as link:
            await link.run(consume)
        assert beats >= 3
        await peer.released()


async def test_a_link_leaves_no_garbage(backend: Backend) -> None:
    connector = Connector(backend.address, QUICK)

    async def use() -> None:
        used = 0

        async def consume(connection: Connection) -> None:
            nonlocal used
            used += 1
            await asked(connection)
            if used == 1:
                backend.cut()
                await connection.readexactly(1)

        async with Link(connector, heartbeat=Heartbeat(lambda _: None, every=0.001, timeout=5)) as link:
            await link.run(consume)

    assert await garbage_of(use) == []


@virtual
async def test_observers_hear_of_attempts_and_pauses_and_never_that_it_gave_up(backend: Backend) -> None:
    backend.down()
    told = list[Event]()
    async with Link(Connector(backend.address, Policy(wait=EXACT, breaker=None), observers=[told.append])) as link:
        with pytest.raises(ConnectRefused):
            await link.ready(fail_after=2)
        await backend.up()
        await link.ready()
    names = [type(event).__name__ for event in told]
    failing = ["LinkStateChanged", "AttemptStarted", "AttemptFailed", "LinkStateChanged", "Retrying"]
    assert names == failing * 2 + ["LinkStateChanged", "AttemptStarted", "Connected"] + ["LinkStateChanged"] * 2
    assert [(event.attempts, round(event.pause, 6)) for event in told if isinstance(event, Retrying)] == [
        (1, 0.1),
        (2, 0.2),
    ]


async def test_what_ready_asked_for_ends_with_the_consumer(backend: Backend) -> None:
    async with Link(Connector(backend.address, QUICK)) as link:
        await link.ready()
        await link.run(asked)
        backend.down()
        waiting = asyncio.create_task(link.ready())
        await soon(lambda: link.state is TRANSIENT_FAILURE)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert link.state is IDLE


@pytest.mark.parametrize("end", ["return", "raise", "cancel"])
async def test_who_waits_for_ready_while_a_consumer_holds_what_is_dead_gets_the_next(
    backend: Backend, end: str
) -> None:
    order: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def consume(connection: Connection) -> None:
        await asked(connection)
        backend.cut()
        if await order == "raise":
            raise KeyError(end)

    async with Link(Connector(backend.address, QUICK)) as link:
        running = asyncio.create_task(link.run(consume))
        await soon(lambda: link.state is TRANSIENT_FAILURE)
        waiting = asyncio.create_task(link.ready(timeout=5))
        await asyncio.sleep(0.05)
        assert len(backend.accepted) == 1  # one at a time
        if end == "cancel":
            running.cancel()
        else:
            order.set_result(end)
        await waiting
        assert link.state is READY
        await asyncio.gather(running, return_exceptions=True)
        await link.run(asked)


async def test_nothing_of_a_connection_is_kept_through_an_outage(backend: Backend) -> None:
    used = list[weakref.ref[Connection]]()

    async def consume(connection: Connection) -> None:
        used.append(weakref.ref(connection))
        await asked(connection)
        await connection.readexactly(1)

    async with Link(Connector(backend.address), heartbeat=Heartbeat(lambda _: None, 5, 10)) as link:
        running = asyncio.create_task(link.run(consume))
        await soon(lambda: backend.open == 1)
        backend.down()
        await soon(lambda: isinstance(link.last_error, ConnectRefused))
        gc.collect()
        assert used[0]() is None
        running.cancel()
