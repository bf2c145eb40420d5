"""An established connection: what each operation does while it lives, when it is lost, and when it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import inspect
import logging
import pickle
import socket
import ssl
import sys
import time
import tracemalloc
from asyncio.streams import FlowControlMixin
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

import aioconnect
from aioconnect import ConfigError, Connection, ConnectionLost, Endpoint, PeerClosed, errors
from aioconnect.connection import Reader, Writer
from tests.support import peers
from tests.support.garbage import garbage_of
from tests.support.listeners import listening
from tests.support.peers import Authority, SecureWire, Wire, serve

ONCE = aioconnect.Policy(max_attempts=1, attempt_timeout=3, timeout=6)
BOTH = pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def contexts(authority: Authority) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The client's, the server's."""
    return authority.client_context(), authority.server_context()


@pytest.fixture(autouse=True)
def unheard() -> Iterator[None]:
    """The loops count the writes after a loss, and from the fifth on they log: no news for `no_leaks`."""
    counted = {"socket.send() raised exception.", "SSL connection is closed"}
    logger = logging.getLogger("asyncio")

    def news(record: logging.LogRecord) -> bool:
        return record.msg not in counted

    logger.addFilter(news)
    yield
    logger.removeFilter(news)


Pair = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Connection, Any]]]


@pytest.fixture
def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Pair:
    """A connection, and its other side in the hands of the test: a `Wire`, over TLS a `SecureWire`."""

    @contextlib.asynccontextmanager
    async def connected(tls: bool = False, **options: Any) -> AsyncIterator[tuple[Connection, Any]]:
        taken: asyncio.Future[Wire | SecureWire] = asyncio.get_running_loop().create_future()
        over = asyncio.Event()

        async def script(wire: Wire) -> None:
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a little more is sent at once, too
            taken.set_result(await wire.handshake(contexts[1]) if tls else wire)
            await over.wait()

        async with serve(script) as peer:
            settings = aioconnect.TLS(context=contexts[0], **options.pop("tls_options", {})) if tls else None
            connector = aioconnect.Connector(Endpoint(*peer.address, tls=settings, **options), ONCE)
            conn = await connector.connect()
            try:
                yield conn, await taken
            finally:
                conn.abort()
                over.set()

    return connected


def wire_of(remote: Wire | SecureWire) -> Wire:
    return remote.wire if isinstance(remote, SecureWire) else remote


async def heard(condition: Callable[[], object]) -> None:
    """Give the loop the time to hear from the kernel."""
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.001)


async def lost(conn: Connection) -> None:
    await heard(conn.writer.is_closing)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def depth(exc: BaseException) -> int:
    return len(inspect.getinnerframes(exc.__traceback__)) if exc.__traceback__ is not None else 0


def fill(conn: Connection) -> None:
    """More than the kernel takes. In pieces, since TLS looks whether there is room before each one."""
    for _ in range(4):
        conn.write(bytes(5_000_000))


async def error_of(operation: Callable[[], Awaitable[object]]) -> Any:
    with pytest.raises(ConnectionLost) as caught:
        await operation()
    return caught.value


def operations(conn: Connection) -> dict[str, Callable[[], Awaitable[object]]]:
    """What a caller may try with it, by name."""

    async def write() -> None:
        conn.write(b"x")
        await conn.drain()

    async def writelines() -> None:
        conn.writer.writelines([b"x", b"y"])
        await conn.drain()

    async def iterate() -> None:
        async for _ in conn.reader:
            pass

    return {
        "read": lambda: conn.read(1),
        "read all": conn.read,
        "readexactly": lambda: conn.readexactly(1),
        "readline": conn.readline,
        "readuntil": lambda: conn.readuntil(b"\r\n"),
        "iterate": iterate,
        "drain": conn.drain,
        "write": write,
        "writelines": writelines,
        "send": lambda: conn.send(b"x"),
    }


READS = ("read", "read all", "readexactly", "readline", "readuntil", "iterate")
WRITES = ("drain", "write", "writelines", "send")


async def assert_lost(conn: Connection, cls: type[ConnectionLost], names: tuple[str, ...] = READS + WRITES) -> None:
    """Every operation raises a new error of that class each time, and its traceback does not grow."""
    kept: list[Any] = []
    for name in names:
        operation = operations(conn)[name]
        first = await error_of(operation)
        again = [await error_of(operation) for _ in range(5)]
        assert type(first) is cls, name
        assert (first.phase, first.address) == ("use", conn.endpoint.targets[0]), name
        assert first.code == again[-1].code, name
        assert depth(again[-1]) == depth(again[0]) <= depth(first), name
        kept += [first, *again]
    assert len({id(each) for each in kept}) == len(kept)
    clone = pickle.loads(pickle.dumps(kept[0]))
    assert (type(clone), clone.code, clone.address) == (cls, kept[0].code, kept[0].address)


# ------------------------------------------------------------------------------------------ while it lives


@BOTH
async def test_the_streams_are_asyncios(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, _):
        reader, writer = conn.streams
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        assert isinstance(reader, Reader)
        assert type(writer) is Writer
        assert conn.peername == conn.get_extra_info("peername") == writer.get_extra_info("peername")
        assert conn.sockname == conn.get_extra_info("sockname")
        assert (conn.get_extra_info("ssl_object") is not None) is tls
        assert conn.get_extra_info("nothing", 1) == 1
        assert repr(conn) == f"<Connection {conn.endpoint} {conn.peername[0]}:{conn.peername[1]} open>"
    assert repr(conn).endswith(" closed>")


@BOTH
async def test_every_way_to_read(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):
        await remote.send(b"1234line\nuntil;rest of it\nlast\n")
        assert await conn.readexactly(4) == b"1234"
        assert await conn.readline() == b"line\n"
        assert await conn.readuntil(b";") == b"until;"
        assert await conn.read(4) == b"rest"
        if tls:
            await remote.close_notify()
        wire_of(remote).half_close()
        assert [line async for line in conn.reader] == [b" of it\n", b"last\n"]
        assert await conn.read() == b""
        assert await conn.read(1) == b""
        assert conn.reader.at_eof()


@BOTH
async def test_every_way_to_write(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):
        conn.write(b"a")
        conn.writer.write(bytearray(b"b"))
        conn.writer.write(memoryview(b"c"))
        conn.writer.writelines([b"d", b"e"])
        await conn.drain()
        await conn.send(b"f")
        received = b""
        while len(received) < 6:
            received += await remote.receive()
        assert received == b"abcdef"


async def test_half_close(pair: Pair) -> None:
    async with pair() as (conn, wire):
        conn.write(b"question")
        conn.write_eof()
        assert await wire.receive() == b"question"
        assert await wire.receive() == b""
        await wire.send(b"answer")
        wire.half_close()
        assert await conn.read() == b"answer"


@BOTH
async def test_misuse_stays_loud(pair: Pair, tls: bool) -> None:
    """What is the caller's mistake is the caller's to see, as asyncio says it."""
    async with pair(tls) as (conn, _):
        with pytest.raises(TypeError):
            conn.write("text")  # type: ignore[arg-type]
        if tls:
            with pytest.raises(NotImplementedError):
                conn.write_eof()
        else:
            conn.write_eof()
            with pytest.raises(RuntimeError, match="write_eof"):
                conn.write(b"more")
            with pytest.raises(RuntimeError, match="write_eof"):
                conn.writer.writelines([b"more"])
        with pytest.raises(ValueError, match="at least one-byte"):
            await conn.readuntil(b"")
        with pytest.raises(ValueError, match="less than zero"):
            await conn.readexactly(-1)


async def test_a_line_too_long(pair: Pair) -> None:
    async with pair() as (conn, wire):
        await wire.send(b"x" * 200_000)
        with pytest.raises(asyncio.LimitOverrunError):
            await conn.readuntil(b"\n")
        with pytest.raises(ValueError, match="limit"):
            await conn.readline()


# ------------------------------------------------------------------------------------------ lost


@BOTH
@pytest.mark.parametrize("name", READS)
async def test_reset_while_reading(pair: Pair, tls: bool, name: str) -> None:
    async with pair(tls) as (conn, remote):
        reading = asyncio.ensure_future(operations(conn)[name]())
        await asyncio.sleep(0.002)
        wire_of(remote).reset()
        with pytest.raises(errors.ConnectionResetByPeer) as caught:
            await reading
        assert isinstance(caught.value, ConnectionResetError)
        assert (caught.value.errno, caught.value.code) == (errno.ECONNRESET, "ECONNRESET")
        await assert_lost(conn, errors.ConnectionResetByPeer)


@BOTH
async def test_reset_while_idle(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):
        wire_of(remote).reset()
        await lost(conn)
        assert not conn.is_usable()
        conn.write(b"silent")
        conn.writer.writelines([b"silent"])
        if not tls:
            conn.write_eof()
        await assert_lost(conn, errors.ConnectionResetByPeer)


async def test_a_loss_that_nobody_waits_for_is_not_reported(pair: Pair) -> None:
    """Not left to asyncio's ``__del__``, which in a cycle may come after the future's own report."""
    async with pair() as (conn, remote):
        wire_of(remote).reset()
        await lost(conn)
        closed: Any = conn.writer._protocol._closed
        assert closed.done()
        assert not closed._log_traceback
        with pytest.raises(errors.ConnectionResetByPeer):
            await conn.writer.wait_closed()


@BOTH
async def test_reset_while_writing(pair: Pair, tls: bool) -> None:
    """Two callers are blocked in flow control: each has an error of its own."""
    async with pair(tls) as (conn, remote):
        fill(conn)
        blocked = [asyncio.ensure_future(conn.drain()) for _ in range(2)]
        await asyncio.sleep(0.005)
        assert not any(each.done() for each in blocked)
        wire_of(remote).reset()
        first, second = await asyncio.gather(*blocked, return_exceptions=True)
        assert type(first) is type(second) is errors.ConnectionResetByPeer
        assert first is not second
        await assert_lost(conn, errors.ConnectionResetByPeer)


async def test_reset_found_by_writing(pair: Pair) -> None:
    """The loop has not read the reset yet. Nothing is raised by the write; the drain after it tells."""
    async with pair() as (conn, wire):
        wire.reset()
        time.sleep(0.005)
        conn.write(b"x")
        conn.write(b"y")
        error = await error_of(lambda: drained(conn))
        assert error.code in {"ECONNRESET", "EPIPE"}
        await assert_lost(conn, type(error), WRITES)


async def drained(conn: Connection, data: bytes = b"") -> None:
    """Write and drain until it tells, which takes the loop a turn or two."""
    for _ in range(50):
        conn.write(data)
        await conn.drain()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("operation", ["readexactly", "readuntil"])
@BOTH
async def test_the_end_inside_a_message(pair: Pair, tls: bool, operation: str) -> None:
    async with pair(tls) as (conn, remote):
        await remote.send(b"abc")
        if tls:
            await remote.close_notify()
        wire_of(remote).half_close()
        with pytest.raises(PeerClosed) as caught:
            await (conn.readexactly(10) if operation == "readexactly" else conn.readuntil(b";"))
        error = caught.value
        assert isinstance(error, asyncio.IncompleteReadError)
        assert isinstance(error, EOFError)
        assert (error.partial, error.expected) == (b"abc", 10 if operation == "readexactly" else None)
        assert (error.code, error.phase) == ("EOF", "use")
        assert error.address == conn.endpoint.targets[0]
        assert await conn.read() == b""
        first, again = [await error_of(lambda: conn.readexactly(1)) for _ in range(2)]
        assert first is not again
        assert (again.partial, again.expected) == (b"", 1)


@pytest.mark.parametrize("operation", ["readexactly", "readuntil"])
@BOTH
async def test_the_end_while_waiting_for_a_message(pair: Pair, tls: bool, operation: str) -> None:
    async with pair(tls) as (conn, remote):
        reading = conn.readexactly(10) if operation == "readexactly" else conn.readuntil(b";")
        waiting = asyncio.ensure_future(reading)
        await asyncio.sleep(0.002)
        await remote.send(b"abc")
        wire_of(remote).half_close()
        with pytest.raises(PeerClosed) as caught:
            await waiting
        assert caught.value.partial == b"abc"


@BOTH
async def test_what_came_before_the_end_is_still_there(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):
        await remote.send(b"answer")
        if tls:
            await remote.close_notify()
        wire_of(remote).half_close()
        await heard(lambda: conn.writer._protocol.ended)
        assert await conn.readexactly(3) == b"ans"
        assert await conn.read() == b"wer"


async def test_writing_after_the_peer_has_gone(pair: Pair) -> None:
    async with pair() as (conn, wire):
        wire.close()
        await heard(conn.reader.at_eof)
        assert await conn.read() == b""
        error = await error_of(lambda: drained(conn, b"the first one is sent, and answered by RST"))
        assert error.code in {"EPIPE", "ECONNRESET"}
        conn.write(b"silent")
        await assert_lost(conn, type(error), WRITES)


async def test_writing_after_the_peer_has_ended_tls(pair: Pair) -> None:
    """The loop closes a TLS connection at the peer's close_notify. That was not our close, read or unread."""
    for unread in (b"", b"unread"):
        async with pair(True) as (conn, remote):
            if unread:
                await remote.send(unread)
            await remote.close_notify()
            remote.wire.half_close()
            await lost(conn)
            error = await error_of(lambda: drained(conn))
            assert type(error) is errors.BrokenPipe
            assert await conn.read() == unread
            await assert_lost(conn, errors.BrokenPipe, WRITES)


async def test_garbage_on_a_tls_connection(pair: Pair) -> None:
    async with pair(True) as (conn, remote):
        reading = asyncio.ensure_future(conn.read(1))
        await remote.wire.send(b"this is not TLS, not at all")
        with pytest.raises(errors.ConnectionTLSError):
            await reading
        await assert_lost(conn, errors.ConnectionTLSError)


async def test_an_exception_of_the_users_own(pair: Pair) -> None:
    async with pair() as (conn, _):
        conn.reader.set_exception(LookupError("mine"))
        with pytest.raises(LookupError, match="mine"):
            await conn.read(1)
        assert isinstance(conn.reader.exception(), LookupError)


@pytest.mark.parametrize("name", ["ConnectionResetError", "OSError", "CancelledError", "RuntimeError"])
async def test_losses_that_the_loops_make_up(name: str) -> None:
    """No errno, or uvloop's CancelledError for ECANCELED: still typed."""
    from aioconnect.connection import streams  # noqa: PLC0415

    made = {
        "ConnectionResetError": (ConnectionResetError(), errors.ConnectionResetByPeer),
        "OSError": (OSError("words only"), ConnectionLost),
        "CancelledError": (asyncio.CancelledError(), errors.ConnectionAborted),
        "RuntimeError": (RuntimeError("words only"), ConnectionLost),
    }
    exc, expected = made[name]
    reader, protocol = streams(asyncio.get_running_loop(), 100, ("10.0.0.1", 80))
    protocol.connection_lost(exc)  # type: ignore[arg-type]
    error = await error_of(lambda: reader.read(1))
    assert type(error) is expected
    assert error.address == ("10.0.0.1", 80)
    assert str(error)


# ------------------------------------------------------------------------------------------ closed by us


@BOTH
@pytest.mark.parametrize("how", ["close", "abort", "aclose"])
async def test_use_after_our_own_close(pair: Pair, tls: bool, how: str) -> None:
    async with pair(tls) as (conn, remote):
        if how == "close":
            conn.writer.close()
            closing = asyncio.ensure_future(conn.writer.wait_closed())
            if tls:
                assert await remote.receive() == b""
                await remote.close_notify()
            await closing
        elif how == "abort":
            conn.abort()
        else:
            await conn.aclose(0.2)
        assert not conn.is_usable()
        await lost(conn)
        assert await conn.read() == b""
        assert await conn.readline() == b""
        await assert_lost(conn, errors.AlreadyClosed, ("readexactly", "readuntil"))
        with pytest.raises(asyncio.IncompleteReadError):  # of the reader alone, as asyncio's
            await conn.reader.readexactly(1)
        conn.write(b"silent")
        conn.writer.writelines([b"silent", b"too"])
        if not tls:
            conn.write_eof()
        await assert_lost(conn, errors.AlreadyClosed, WRITES)
        assert (await error_of(conn.drain)).code == "ALREADY_CLOSED"


@BOTH
async def test_abort_with_a_read_pending(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, _):
        reading = asyncio.ensure_future(conn.read(1))
        await asyncio.sleep(0.002)
        conn.abort()
        assert await reading == b""
        await assert_lost(conn, errors.AlreadyClosed, WRITES)


@BOTH
@pytest.mark.parametrize("name", ["readexactly", "readuntil"])
async def test_abort_with_a_message_awaited(pair: Pair, tls: bool, name: str) -> None:
    """It was not the peer who closed."""
    async with pair(tls) as (conn, _):
        reading = asyncio.ensure_future(operations(conn)[name]())
        await asyncio.sleep(0.002)
        conn.abort()
        with pytest.raises(errors.AlreadyClosed):
            await reading


async def test_what_the_peer_had_ended_before_our_close_it_has_ended(pair: Pair) -> None:
    async with pair() as (conn, remote):
        wire_of(remote).close()
        assert await conn.read() == b""
        await conn.aclose()
        with pytest.raises(errors.PeerClosed):
            await conn.readexactly(1)


@BOTH
async def test_abort_with_a_drain_pending(pair: Pair, tls: bool) -> None:
    """What was to be sent is dropped, so it must not look sent."""
    async with pair(tls) as (conn, _):
        fill(conn)
        blocked = asyncio.ensure_future(conn.drain())
        await asyncio.sleep(0.005)
        conn.abort()
        with pytest.raises(errors.AlreadyClosed):
            await blocked


@BOTH
async def test_aclose_sends_what_is_buffered(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):
        conn.write(bytes(3_000_000))
        closing = asyncio.ensure_future(conn.aclose())
        size = 0
        while data := await remote.receive():
            size += len(data)
        assert size == 3_000_000
        wire_of(remote).half_close()
        await closing
        assert conn.writer.is_closing()


async def test_abort_of_what_was_closed_with_something_to_send(pair: Pair) -> None:
    """asyncio's transport loses its loop then without having counted itself lost, and stumbles over that."""
    async with pair() as (conn, remote):
        conn.write(bytes(5_000_000))
        conn.writer.close()
        while await remote.receive():
            pass
        remote.half_close()
        await conn.writer.wait_closed()
        conn.abort()
        await conn.aclose()


@BOTH
async def test_aclose_is_bounded(pair: Pair, tls: bool) -> None:
    """A peer that never reads, and one that never answers close_notify."""
    async with pair(tls) as (conn, _):
        if not tls:
            conn.write(bytes(20_000_000))
        began = time.monotonic()
        await conn.aclose(0.1)
        assert 0.08 < time.monotonic() - began < 1
        await conn.aclose()
        await conn.aclose(0)
        assert time.monotonic() - began < 1


async def test_aclose_of_a_peer_that_is_gone(pair: Pair) -> None:
    async with pair() as (conn, wire):
        conn.write(bytes(20_000_000))
        wire.reset()
        await conn.aclose()


async def test_aclose_by_two_at_once_and_cancelled(pair: Pair) -> None:
    """Neither takes the other's wait away."""
    async with pair() as (conn, _):
        conn.write(bytes(20_000_000))
        waiting = asyncio.ensure_future(conn.writer.wait_closed())
        first, second = (asyncio.ensure_future(conn.aclose(limit)) for limit in (10, 0.1))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        await second
        assert not second.cancelled()
        await waiting
        await conn.aclose()


async def test_a_cancelled_aclose_has_closed(pair: Pair) -> None:
    async with pair() as (conn, _):
        conn.write(bytes(20_000_000))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await conn.aclose()
        await asyncio.sleep(0)
        assert conn.writer.is_closing()
        await assert_lost(conn, errors.AlreadyClosed, WRITES)


async def test_aclose_after_its_own_time_out_inside_the_block(pair: Pair) -> None:
    """The end of the block closes once more."""
    async with pair() as (conn, _):
        async with conn:
            conn.write(bytes(20_000_000))
            await conn.aclose(0.01)
        assert conn.writer.is_closing()


@BOTH
async def test_the_block_closes(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):

        async def closes() -> None:
            async with conn as same:
                assert same is conn
                conn.write(b"bye")

        closing = asyncio.ensure_future(closes())
        assert await remote.receive() == b"bye"
        assert await remote.receive() == b""
        wire_of(remote).half_close()
        await closing
        assert conn.writer.is_closing()


async def test_the_block_aborts_on_an_exception(pair: Pair) -> None:
    async with pair() as (conn, wire):

        async def fails() -> None:
            async with conn:
                conn.write(bytes(20_000_000))
                raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await fails()
        assert conn.writer.is_closing()
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await wire.receive():
                received += len(data)
        assert received < 20_000_000


# ------------------------------------------------------------------------------------------ is it usable


@BOTH
async def test_usable_while_nothing_speaks_against_it(pair: Pair, tls: bool) -> None:
    async with pair(tls) as (conn, remote):
        assert conn.is_usable()
        await conn.send(b"ping")
        assert await remote.receive() == b"ping"
        await remote.send(b"pong")
        assert await conn.readexactly(4) == b"pong"
        assert conn.is_usable()
        conn.mark_clean()
        assert conn.is_usable()


@BOTH
@pytest.mark.parametrize("seen", [False, True], ids=["the loop has not looked", "the loop has seen it"])
@pytest.mark.parametrize("what", ["bytes", "FIN", "RST"])
async def test_what_makes_it_unusable(pair: Pair, tls: bool, seen: bool, what: str) -> None:
    async with pair(tls) as (conn, remote):
        wire = wire_of(remote)
        if what == "bytes":
            await remote.send(b"unasked")
        elif what == "FIN":
            wire.half_close()
        else:
            wire.reset()
        if seen:
            await asyncio.sleep(0.01)
        else:
            time.sleep(0.005)
        unseen_tls_bytes = what == "bytes" and tls and not seen  # may be a session ticket, which is harmless
        assert conn.is_usable() is unseen_tls_bytes


async def test_unusable_when_closed(pair: Pair) -> None:
    async with pair() as (conn, _):
        conn.writer.close()
        assert not conn.is_usable()


async def test_session_tickets_do_not_make_it_unusable(pair: Pair) -> None:
    """Under TLS 1.3 they come after the handshake."""
    async with pair(True) as (conn, _):
        for _ in range(5):
            assert conn.is_usable()
            await asyncio.sleep(0.002)


# ------------------------------------------------------------------------------------------ start_tls


def tls_of(authority: Authority, **settings: Any) -> aioconnect.TLS:
    return aioconnect.TLS(ca_file=authority.ca_file, **settings)


async def test_start_tls_after_some_plain_text(
    pair: Pair, authority: Authority, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Back pressure acts on the new transport: a reader that stops reading stops the peer."""
    contexts[1].set_alpn_protocols(["imap"])
    async with pair() as (conn, wire):
        await wire.send(b"220 ready\r\n")
        assert await conn.readline() == b"220 ready\r\n"
        upgrading = asyncio.ensure_future(conn.start_tls(tls_of(authority, alpn=("imap",))))
        secure = await wire.handshake(contexts[1])
        await upgrading
        assert conn.get_extra_info("ssl_object") is not None
        assert conn.alpn_protocol == "imap"
        assert conn.is_usable()
        assert conn.reader._transport is conn.writer.transport, "CPython 3.11 keeps to the plain one"
        await conn.send(b"hello")
        assert await secure.receive() == b"hello"
        sending = asyncio.ensure_future(secure.send(bytes(4_000_000)))
        await asyncio.sleep(0.05)
        assert conn.reader.buffered < 1_000_000, "it was not paused"
        assert len(await conn.readexactly(4_000_000)) == 4_000_000
        await sending
        secure.wire.reset()
        error = await error_of(lambda: conn.read(1))
        assert type(error) is errors.ConnectionResetByPeer


async def test_start_tls_takes_a_context_and_a_name(
    pair: Pair, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with pair() as (conn, wire):
        upgrading = asyncio.ensure_future(conn.start_tls(contexts[0], server_hostname="localhost"))
        await wire.handshake(contexts[1])
        await upgrading
        assert conn.alpn_protocol is None


async def test_start_tls_without_a_name_over_a_unix_socket() -> None:
    mine, other = socket.socketpair()
    with other:
        loop = asyncio.get_running_loop()
        from aioconnect.connection import streams  # noqa: PLC0415

        reader, protocol = streams(loop, 100, None)
        transport, _ = await loop.create_unix_connection(lambda: protocol, sock=mine)
        conn = Connection(reader, Writer(transport, protocol, reader, loop), Endpoint(path="/x"))
        with pytest.raises(ConfigError, match="server_hostname"):
            await conn.start_tls()
        assert conn.is_usable(), "nothing has been sent"
        conn.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize("stuck", ["handshake", "drain"])
async def test_start_tls_has_a_limit(pair: Pair, authority: Authority, stuck: str) -> None:
    async with pair() as (conn, _):
        if stuck == "drain":
            conn.write(bytes(20_000_000))
        began = time.monotonic()
        with pytest.raises(errors.ConnectTimeout) as caught:
            await conn.start_tls(tls_of(authority), timeout=0.1)
        assert 0.08 < time.monotonic() - began < 1
        error = caught.value
        assert (error.phase, error.errno) == ("tls", errno.ETIMEDOUT)
        assert error.address == conn.endpoint.targets[0]
        await assert_gone(conn)


async def assert_gone(conn: Connection) -> None:
    """Whoever still reads, writes or closes hears it at once."""
    assert not conn.is_usable()
    async with asyncio.timeout(1):
        with contextlib.suppress(ConnectionLost):
            assert await conn.read() == b""
        await assert_lost(conn, type(await error_of(conn.drain)), WRITES)
        await conn.aclose()
        with contextlib.suppress(ConnectionLost):
            await conn.writer.wait_closed()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (peers.answer(b"-ERR unknown command\r\n"), errors.NotTLS),
        (peers.fin_after_hello, errors.ConnectReset),
        (peers.reset_after_hello, errors.ConnectReset),
    ],
    ids=["plain text", "FIN", "RST"],
)
async def test_a_failed_start_tls_closes(
    authority: Authority, script: peers.Script, expected: type[errors.ConnectError]
) -> None:
    async with serve(script) as peer:
        conn = await aioconnect.connect(Endpoint(*peer.address), policy=ONCE)
        reading = None if script is peers.fin_after_hello else asyncio.ensure_future(conn.read())
        with pytest.raises(expected) as caught:
            await conn.start_tls(tls_of(authority))
        assert (caught.value.phase, caught.value.address) == ("tls", peer.address)
        async with asyncio.timeout(1):
            if reading is not None:
                with contextlib.suppress(ConnectionLost):
                    assert await reading == b""
            await assert_gone(conn)


async def test_a_cancelled_start_tls_closes(pair: Pair, authority: Authority) -> None:
    async with pair() as (conn, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await conn.start_tls(tls_of(authority))
        await assert_gone(conn)


@pytest.mark.parametrize("how", ["close", "abort", "aclose"])
async def test_start_tls_after_our_own_close(pair: Pair, authority: Authority, how: str) -> None:
    async with pair() as (conn, _):
        if how == "aclose":
            await conn.aclose()
        else:
            getattr(conn.writer, how)()
        with pytest.raises(errors.NetworkError):
            await conn.start_tls(tls_of(authority), timeout=0.5)
        await assert_gone(conn)


async def test_start_tls_after_a_loss(pair: Pair, authority: Authority) -> None:
    async with pair() as (conn, wire):
        wire.reset()
        await lost(conn)
        with pytest.raises(errors.ConnectReset) as caught:
            await conn.start_tls(tls_of(authority))
        assert caught.value.phase == "tls"


# ------------------------------------------------------------------------------------------ costs and private names


async def test_memory() -> None:
    """A connection may cost a tenth more than asyncio's bare pair of streams."""
    with listening(backlog=300) as server:
        address = server.getsockname()
        connector = aioconnect.Connector(Endpoint(*address, keepalive=None))

        async def bare() -> object:
            return await asyncio.open_connection(*address)

        async def ours() -> object:
            return await connector.connect()

        await size_of(bare, 5)
        await size_of(ours, 5)
        assert await size_of(ours, 60) <= 1.1 * await size_of(bare, 60)


async def size_of(connect: Callable[[], Awaitable[Any]], count: int) -> float:
    """Bytes that one of so many connections takes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = [await connect() for _ in range(count)]
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for each in made:
        (each.writer if isinstance(each, Connection) else each[1]).transport.abort()
    await asyncio.sleep(0.01)
    return size / count


@pytest.mark.parametrize("how", ["abort", "aclose"])
async def test_a_closed_connection_is_no_garbage(how: str) -> None:
    with listening() as server:
        connector = aioconnect.Connector(Endpoint(*server.getsockname()))

        async def come_and_go() -> None:
            conn = await connector.connect()
            if how == "abort":
                conn.abort()
            else:
                await conn.aclose()

        assert await garbage_of(come_and_go) == []


async def test_private_names_of_asyncio_in_use(pair: Pair) -> None:
    """Whoever changes Python finds out here, and not by a connection that hangs."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    async with pair() as (conn, _):
        writer = asyncio.StreamWriter(conn.writer.transport, protocol, reader, loop)
        assert {"_buffer", "_exception", "_transport"} <= vars(reader).keys()
        assert {"_transport", "_protocol"} <= vars(writer).keys()
        assert {"_drain_waiters", "_paused", "_over_ssl", "_closed"} <= vars(protocol).keys()
        assert inspect.iscoroutinefunction(FlowControlMixin._drain_helper)  # type: ignore[attr-defined]
        assert isinstance(protocol._stream_reader, asyncio.StreamReader)  # type: ignore[attr-defined]
        source = inspect.getsource(asyncio.StreamWriter.drain)
        assert "self._protocol._drain_helper()" in source
        assert "self._reader.exception()" in source
        assert "raise self._exception" in inspect.getsource(asyncio.StreamReader.read)
    assert sys.version_info < (3, 15), "look at asyncio.streams of the new version, then raise this number"
