"""One cancel() ends everything at any point, and whatever ends badly leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aioconnect
from aioconnect import Backoff, Connection, Connector, Endpoint, NotReady, Policy, errors
from aioconnect.testing.cancel import EAGER, cancel_everywhere
from tests.support import peers
from tests.support.clock import virtual
from tests.support.garbage import garbage_of
from tests.support.listeners import closed_port, listening, mute
from tests.support.network import SILENT, Network, Reply, SimulatedSocket
from tests.support.peers import Authority, Peer, Wire, serve

QUICK = Backoff(initial=0.003, maximum=0.003, jitter="none")
THRICE = Policy(max_attempts=3, attempt_timeout=2, timeout=5, wait=QUICK)
BRIEFLY = Policy(max_attempts=2, attempt_timeout=0.012, timeout=2, wait=QUICK)

eager = pytest.mark.parametrize("eager", EAGER, ids=["lazy", "eager"][: len(EAGER)])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> aioconnect.TLS:
    """With a context that is made already: to load one takes longer than all the rest."""
    return aioconnect.TLS(context=authority.client_context())


@pytest.fixture(scope="module")
def served(authority: Authority) -> ssl.SSLContext:
    return authority.server_context()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with listening(backlog=1000) as sock:
        yield sock


@pytest.fixture
async def silent() -> AsyncIterator[Peer]:
    async with serve(peers.silent) as peer:
        yield peer


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name servers that do not answer."""
    release = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if host == "mute.internal":
            release.wait(10)
            raise socket.gaierror(socket.EAI_AGAIN, "too late")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    release.set()


def abort(made: Any) -> None:
    """Close what a connect was for."""
    if isinstance(made, Connection):
        made.abort()
    elif isinstance(made, (socket.socket, SimulatedSocket)):
        made.close()
    else:
        first, second = made
        (second.transport if isinstance(second, asyncio.StreamWriter) else first).abort()


# ------------------------------------------------------------------------------------------ at every step


@eager
@pytest.mark.parametrize("kind", ["connect", "open_connection", "create_connection", "dial", "async with"])
async def test_an_address_on_loopback(server: socket.socket, kind: str, eager: bool) -> None:
    host, port = server.getsockname()

    async def connect() -> Any:
        if kind == "connect":
            return await aioconnect.connect(f"{host}:{port}", policy=THRICE)
        if kind == "open_connection":
            return await aioconnect.open_connection(host, port, policy=THRICE)
        if kind == "create_connection":
            return await aioconnect.create_connection(asyncio.Protocol, host, port, policy=THRICE)
        if kind == "dial":
            return await aioconnect.dial(f"{host}:{port}", policy=THRICE)
        async with aioconnect.connect(f"{host}:{port}", policy=THRICE) as conn:
            await conn.send(b"hello")
            return conn

    steps = await cancel_everywhere(connect, close=abort, eager=eager)
    assert steps >= (0 if kind == "dial" and eager else 1)


@eager
async def test_localhost(server: socket.socket, eager: bool) -> None:
    async def connect() -> Connection:
        return await aioconnect.connect(f"localhost:{server.getsockname()[1]}", policy=THRICE)

    assert await cancel_everywhere(connect, close=abort, eager=eager) >= 2


@eager
async def test_a_name_whose_servers_are_mute(hanging: None, eager: bool) -> None:
    async def connect() -> Connection:
        return await aioconnect.connect("mute.internal:80", policy=BRIEFLY)

    assert await cancel_everywhere(connect, raises=errors.ConnectTimeout, eager=eager) >= 3


@eager
async def test_several_targets_and_one_is_mute(hanging: None, server: socket.socket, eager: bool) -> None:
    async def connect() -> Connection:
        targets = f"tcp://mute.internal:80,localhost:{server.getsockname()[1]}"
        return await aioconnect.connect(targets, policy=THRICE.replace(attempt_timeout=0.04))

    assert await cancel_everywhere(connect, close=abort, eager=eager) >= 3


@eager
async def test_refused_with_sleeps_between(eager: bool) -> None:
    port = closed_port()

    async def connect() -> Connection:
        return await aioconnect.connect(f"127.0.0.1:{port}", policy=THRICE)

    assert await cancel_everywhere(connect, raises=errors.ConnectRefused, eager=eager) >= 3


@eager
async def test_a_race_between_the_silent(eager: bool) -> None:
    with mute() as first, mute("127.0.0.2") as second:

        async def dial() -> socket.socket:
            targets = f"tcp://127.0.0.1:{first},127.0.0.2:{second}?happy_eyeballs_delay=10ms"
            return await aioconnect.dial(targets, policy=BRIEFLY)

        assert await cancel_everywhere(dial, raises=errors.ConnectTimeout, eager=eager) >= 4


@virtual
@eager
@pytest.mark.parametrize("winner", [False, True])
async def test_a_race_in_virtual_time(winner: bool, eager: bool) -> None:
    """Four addresses: one refuses, two are silent, the last answers or not."""
    hosts = [f"10.0.0.{number}" for number in range(4)]
    replies = [Reply(0.1, errno.ECONNREFUSED), SILENT, SILENT, Reply(1.0) if winner else SILENT]
    network = Network.of_loop(dict(zip(hosts, replies, strict=True)))
    targets = ",".join(f"{host}:80" for host in hosts)

    async def dial() -> Any:
        assert network.open == [], "the last one left a socket open"
        return await aioconnect.dial(f"tcp://{targets}", policy=THRICE)

    steps = await cancel_everywhere(dial, close=abort, raises=errors.ConnectRefused, eager=eager, patience=100)
    assert network.open == []
    assert steps >= 4


@eager
@pytest.mark.parametrize("what", ["good", "stalls", "breaks off", "resets after it"])
async def test_a_tls_handshake(tls: aioconnect.TLS, served: ssl.SSLContext, what: str, eager: bool) -> None:
    async def resets_after_it(wire: Wire) -> None:
        await wire.handshake(served)
        wire.reset()

    scripts = {
        "good": peers.tls_echo(served),
        "stalls": peers.stall_inside_flight(served),
        "breaks off": peers.reset_after_hello,
        "resets after it": resets_after_it,
    }
    async with serve(scripts[what]) as peer:

        async def connect() -> Connection:
            policy = BRIEFLY if what == "stalls" else THRICE.replace(max_attempts=2)
            return await aioconnect.connect(Endpoint(*peer.address, tls=tls), policy=policy)

        raises = errors.ConnectTimeout if what == "stalls" else errors.ConnectReset
        assert await cancel_everywhere(connect, close=abort, raises=raises, eager=eager) >= 4


@eager
@pytest.mark.parametrize("what", ["good", "hangs", "fails"])
async def test_prepare(what: str, eager: bool) -> None:
    async def prepare(conn: Connection) -> None:
        await conn.send(b"hello")
        assert await conn.readexactly(5) == b"hello"
        if what == "hangs":
            await conn.read(1)
        elif what == "fails":
            raise NotReady

    async with serve(peers.plain_echo) as peer:

        async def connect() -> Connection:
            policy = BRIEFLY if what == "hangs" else THRICE.replace(retry_on={"NOT_READY"}, max_attempts=2)
            return await aioconnect.connect(Endpoint(*peer.address), prepare=prepare, policy=policy)

        raises = (errors.ConnectTimeout, NotReady)
        assert await cancel_everywhere(connect, close=abort, raises=raises, eager=eager) >= 4


@eager
async def test_prepare_that_turns_a_cancel_into_something_else(silent: Peer, eager: bool) -> None:
    async def prepare(conn: Connection) -> None:
        try:
            await conn.read(1)
        except asyncio.CancelledError:
            raise NotReady from None
        except ConnectionError:
            pass

    async def connect() -> Connection:
        return await aioconnect.connect(Endpoint(*silent.address), prepare=prepare, policy=BRIEFLY)

    raises = (errors.ConnectTimeout, NotReady)
    assert await cancel_everywhere(connect, close=abort, raises=raises, eager=eager) >= 2


@eager
async def test_waiting_for_a_slot(hanging: None, server: socket.socket, eager: bool) -> None:
    """The place in the line, and the slot that comes to who has just gone."""
    connector = Connector(f"localhost:{server.getsockname()[1]}", THRICE, max_connecting=1)

    async def connect() -> list[Connection]:
        before = connector.stats()
        assert (before.connecting, before.waiting) == (0, 0)
        connector.record.book.forget()
        return await asyncio.gather(*(connector.connect() for _ in range(3)))

    def close(made: list[Connection]) -> None:
        for conn in made:
            conn.abort()

    # A gather that is cancelled gives back nothing of what its members have got: that is theirs to lose.
    async def one_after_the_other() -> list[Connection]:
        made: list[Connection] = []

        async def keep() -> None:
            made.append(await connector.connect())

        before = connector.stats()
        assert (before.connecting, before.waiting) == (0, 0)
        connector.record.book.forget()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(keep())
        except BaseException:
            close(made)
            raise
        return made

    assert await cancel_everywhere(one_after_the_other, close=close, eager=eager) >= 4
    close(await connect())
    await asyncio.sleep(0)


@eager
async def test_a_unix_socket(tmp_path: Path, eager: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "x"))
        listener.listen(1000)

        async def connect() -> Any:
            return await aioconnect.open_unix_connection(tmp_path / "x", policy=THRICE)

        assert await cancel_everywhere(connect, close=abort, eager=eager) >= 1


@eager
@pytest.mark.parametrize("what", ["good", "silent"])
async def test_start_tls(tls: aioconnect.TLS, served: ssl.SSLContext, what: str, eager: bool) -> None:
    async with serve(peers.tls_echo(served) if what == "good" else peers.silent) as peer:

        async def upgrade() -> None:
            async with aioconnect.connect(Endpoint(*peer.address), policy=THRICE) as conn:
                await conn.start_tls(tls, timeout=2 if what == "good" else 0.02)

        assert await cancel_everywhere(upgrade, raises=errors.ConnectTimeout, eager=eager) >= 5


@eager
@pytest.mark.parametrize("what", ["plain", "never reads", "tls"])
async def test_aclose(tls: aioconnect.TLS, served: ssl.SSLContext, what: str, eager: bool) -> None:
    async def never_reads(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(0.005)
                wire.sock.send(b"still here")

    scripts = {
        "plain": peers.silent,
        "never reads": never_reads,
        "tls": peers.close_notify_never_answered(served),
    }
    async with serve(scripts[what]) as peer:

        async def close() -> None:
            conn = await aioconnect.connect(Endpoint(*peer.address, tls=tls if what == "tls" else None), policy=THRICE)
            try:
                conn.write(bytes(10_000_000 if what == "never reads" else 10))
            finally:
                await conn.aclose(0.02)

        assert await cancel_everywhere(close, eager=eager) >= 2


@eager
async def test_policy_call(eager: bool) -> None:
    """A coroutine of somebody else's, retried: its cancel is ours."""

    async def connect() -> Any:
        calls = 0

        async def fn() -> str:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0.001)
            if calls < 3:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
            return "done"

        return await THRICE.call(fn)

    assert await cancel_everywhere(connect, eager=eager) >= 4


def handshake_and_reset(listener: socket.socket, context: ssl.SSLContext) -> None:
    """One blocking peer that takes the handshake and resets at once. Runs in a thread."""
    sock, _ = listener.accept()
    with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=True) as secure:
        secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_the_end_of_the_handshake_a_reset_and_a_cancel_at_once(
    tls: aioconnect.TLS, served: ssl.SSLContext
) -> None:
    """The loop has a transport by then. Its descriptor must not be closed under it, or it would get the next one's."""
    loop = asyncio.get_running_loop()

    class Cancels(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            loop.call_soon(self.reset_and_cancelled)  # what ends the handshake is sent first, and told after

        def reset_and_cancelled(self) -> None:
            thread.join(5)
            task.cancel()

    with listening() as listener:
        connector = Connector(Endpoint(*listener.getsockname(), tls=tls), THRICE)
        thread = threading.Thread(target=handshake_and_reset, args=(listener, served))
        thread.start()
        task = loop.create_task(connector.create_connection(Cancels))
        await asyncio.wait([task])
        assert task.cancelled()
        watched: dict[int, Any] = getattr(getattr(loop, "_selector", None), "get_map", dict)()
        assert all(is_open(number) for number in watched)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


async def test_a_task_that_never_began(server: socket.socket) -> None:
    """Cancelled before its first step: nothing was asked for, and nothing complains of never being awaited."""
    seen: list[object] = []
    address = server.getsockname()
    for connector in (Connector(Endpoint(*address)), Connector(Endpoint(*address), observers=[seen.append])):
        for call in (
            connector.connect,
            connector.dial,
            lambda each=connector: each.create_connection(asyncio.Protocol),
        ):
            task = asyncio.ensure_future(call())
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        connector.connect().close()
        assert connector.stats().attempts == 0


# ------------------------------------------------------------------------------------------ at the same tick


@virtual
@pytest.mark.parametrize("attempt", [0.9999, 1.0, 5.0])
@pytest.mark.parametrize("call", [0.9999, 1.0, 5.0])
@pytest.mark.parametrize("outer", [0.9999, 1.0, 1.0001])
@pytest.mark.parametrize(
    "answer", [Reply(1.0), Reply(1.0, errno.ECONNREFUSED), SILENT], ids=["ok", "refused", "silent"]
)
async def test_limits_that_end_together(answer: Reply, outer: float, call: float, attempt: float) -> None:
    """Whoever comes first; but one of them, with nothing left open and no cancel left over."""
    network = Network.of_loop({"10.0.0.1": answer, "10.0.0.2": SILENT})
    connector = Connector(
        "tcp://10.0.0.1:80,10.0.0.2:80", Policy(max_attempts=1, attempt_timeout=attempt, timeout=call)
    )
    task = asyncio.current_task()
    assert task is not None
    outcome: Any = None
    # TimeoutError is the caller's own or, as ConnectTimeout, ours.
    with contextlib.suppress(TimeoutError, errors.ConnectRefused if answer.number else TimeoutError):
        async with asyncio.timeout(outer):
            outcome = await connector.dial()
    assert task.cancelling() == 0
    assert network.open == ([] if outcome is None else [outcome])
    assert network.loop.time() <= outer + 1e-9
    if outcome is not None:
        outcome.close()
    await asyncio.sleep(10)
    assert network.open == []
    assert connector.stats().connecting == 0


@virtual
@pytest.mark.parametrize("at", [0.0, 0.25, 1.0])
async def test_a_cancel_at_the_tick_of_the_answer(at: float) -> None:
    network = Network.of_loop({"10.0.0.1": Reply(at)})
    for before in (False, True):
        task = asyncio.ensure_future(aioconnect.dial("10.0.0.1:80"))
        if before:
            await asyncio.sleep(at)
            task.cancel()
        else:
            network.loop.call_later(at, task.cancel)
        try:
            (await task).close()
        except asyncio.CancelledError:
            assert task.cancelled()
        assert network.open == []


# ------------------------------------------------------------------------------------------ garbage


async def fails(make: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(errors.NetworkError, LookupError):
        await make()
        pytest.fail("it connected")


async def test_refused_is_no_garbage() -> None:
    ports = [closed_port(), closed_port()]

    async def one() -> None:
        await fails(lambda: aioconnect.connect(f"127.0.0.1:{ports[0]}", policy=THRICE))

    async def two() -> None:
        await fails(lambda: aioconnect.connect(f"tcp://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", policy=THRICE))

    async def observed() -> None:
        await fails(Connector(f"127.0.0.1:{ports[0]}", THRICE, observers=[type]).dial)

    assert await garbage_of(one) == []
    assert await garbage_of(two) == []
    assert await garbage_of(observed) == []


@pytest.mark.parametrize("limit", ["attempt", "call", "caller"])
async def test_timed_out_is_no_garbage(limit: str) -> None:
    policy = {"attempt": BRIEFLY, "call": Policy(timeout=0.02)}.get(limit, Policy())
    with mute() as port:

        async def connect() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02 if limit == "caller" else None):
                    await aioconnect.connect(f"127.0.0.1:{port}", policy=policy)

        assert await garbage_of(connect) == []


async def test_a_name_unknown_is_no_garbage(hanging: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def late() -> None:
        await fails(lambda: aioconnect.connect("mute.internal:80", policy=BRIEFLY))

    assert await garbage_of(late) == []
    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    async def failing() -> None:
        await fails(lambda: aioconnect.connect("tcp://a:1,b:2", policy=THRICE))
        await fails(lambda: aioconnect.connect("tcp://a:1", policy=THRICE))

    assert await garbage_of(failing) == []


@pytest.mark.parametrize("what", ["FIN", "RST", "plain text", "certificate", "silent"])
async def test_tls_that_fails_is_no_garbage(tls: aioconnect.TLS, authority: Authority, what: str) -> None:
    scripts = {
        "FIN": peers.fin_after_hello,
        "RST": peers.reset_after_hello,
        "plain text": peers.answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "certificate": peers.tls_refusing(authority.self_signed()),
        "silent": peers.silent,
    }
    async with serve(scripts[what]) as peer:

        async def connect() -> None:
            policy = BRIEFLY if what == "silent" else THRICE
            await fails(lambda: aioconnect.connect(Endpoint(*peer.address, tls=tls), policy=policy))

        assert await garbage_of(connect) == []


@pytest.mark.parametrize("what", ["not ready", "error", "eof", "hangs", "foreign"])
async def test_prepare_that_fails_is_no_garbage(what: str) -> None:
    async def prepare(conn: Connection) -> None:
        if what == "not ready":
            raise NotReady
        if what == "error":
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        if what == "foreign":
            raise LookupError
        await conn.read() if what == "hangs" else await conn.readexactly(1)

    async with serve(peers.fin_at_once if what == "eof" else peers.silent) as peer:

        async def connect() -> None:
            policy = BRIEFLY if what == "hangs" else THRICE
            await fails(lambda: aioconnect.connect(Endpoint(*peer.address), prepare=prepare, policy=policy))

        assert await garbage_of(connect) == []


async def test_success_is_no_garbage(tls: aioconnect.TLS, served: ssl.SSLContext) -> None:
    async with serve(peers.tls_echo(served)) as secure, serve(peers.plain_echo) as plain:

        async def connect() -> None:
            for endpoint in (Endpoint(*secure.address, tls=tls), Endpoint(*plain.address)):
                async with aioconnect.connect(endpoint, policy=THRICE) as conn:
                    await conn.send(b"hello")
                    assert await conn.readexactly(5) == b"hello"

        assert await garbage_of(connect) == []


async def test_a_kept_error_keeps_no_frame_alive() -> None:
    """A recorded error may live as long as its connector."""

    class Big:
        pass

    port = closed_port()
    connector = Connector(f"127.0.0.1:{port}", THRICE)
    alive: list[Any] = []

    async def caller() -> None:
        import weakref  # noqa: PLC0415

        big = Big()
        alive.append(weakref.ref(big))
        with pytest.raises(errors.ConnectRefused):
            await connector.connect()

    await caller()
    assert connector.stats().last_error is not None
    assert alive[0]() is None
