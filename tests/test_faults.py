"""What a connect, and a connection, report when something really fails on this host.

Each fault is made with plain sockets and the kernel; those that need a network are in `test_netns.py`.
Where a process has to lose something for it (descriptors, threads, privileges), a child process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import aioconnect
from aioconnect import errors
from tests.support.child import Children, Outcome, Report, available_loops

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's answers")

LOOPS: Final = available_loops()
ONCE: Final = aioconnect.Policy(max_attempts=1, attempt_timeout=8, timeout=20)
BRIEFLY: Final = aioconnect.Policy(max_attempts=1, attempt_timeout=0.3, timeout=20)

Reports = dict[tuple[str, str], Report]


async def error_of(call: Awaitable[object]) -> Any:
    """The typed error that the call ends with."""
    with pytest.raises(aioconnect.AioconnectError) as caught:
        await call
    return caught.value


def told(error: Any) -> tuple[Any, ...]:
    return type(error).__name__, error.code, error.errno, error.kind, error.phase, error.address


def expected(error: str, code: str, kind: str, phase: str, where: Any) -> tuple[Any, ...]:
    address = where.getsockname() if isinstance(where, socket.socket) else where
    return error, code, getattr(errno, code), kind, phase, address


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", backlog: int = 5) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        sock.listen(backlog)
        yield sock


def closed_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with listening(host) as sock:
        port: int = sock.getsockname()[1]
        return port


# ------------------------------------------------------------------------------------------ UNIX paths


def missing(folder: Path, held: ExitStack) -> str:
    return str(folder / "missing")


def stale(folder: Path, held: ExitStack) -> str:
    """What a server that crashed leaves behind."""
    path = str(folder / "stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
        sock.listen()
    return path


def regular_file(folder: Path, held: ExitStack) -> str:
    path = folder / "regular"
    path.write_text("no socket")
    return str(path)


def directory(folder: Path, held: ExitStack) -> str:
    return str(folder)


def datagram_socket(folder: Path, held: ExitStack) -> str:
    path = str(folder / "datagram")
    held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(path)
    return path


def under_a_file(folder: Path, held: ExitStack) -> str:
    return regular_file(folder, held) + "/socket"


def loop_of_links(folder: Path, held: ExitStack) -> str:
    path = folder / "loop"
    path.symlink_to(path)
    return str(path)


def abstract(folder: Path, held: ExitStack) -> str:
    return f"\0aioconnect-{secrets.token_hex(8)}"


def full_backlog(folder: Path, held: ExitStack) -> str:
    """A server that listens and does not accept: connect(2) gives EAGAIN, which asyncio takes for success."""
    path = str(folder / "full")
    listener = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(path)
    listener.listen(0)
    fill_queue(path, held)
    return path


def fill_queue(path: str, held: ExitStack) -> None:
    for _ in range(10):
        client = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.setblocking(False)
        if client.connect_ex(path) == errno.EAGAIN:
            return
    raise AssertionError("the backlog does not fill up")


class PathRow(NamedTuple):
    make: Callable[[Path, ExitStack], str]
    error: str
    code: str
    kind: str


PATHS: Final = (
    PathRow(missing, "SocketPathNotFound", "ENOENT", "starting"),
    PathRow(stale, "ConnectRefused", "ECONNREFUSED", "transient"),
    PathRow(regular_file, "ConnectRefused", "ECONNREFUSED", "transient"),
    PathRow(directory, "ConnectRefused", "ECONNREFUSED", "transient"),
    PathRow(datagram_socket, "ConnectError", "EPROTOTYPE", "permanent"),
    PathRow(under_a_file, "SocketPathInvalid", "ENOTDIR", "permanent"),
    PathRow(loop_of_links, "SocketPathInvalid", "ELOOP", "permanent"),
    PathRow(abstract, "ConnectRefused", "ECONNREFUSED", "transient"),
    PathRow(full_backlog, "ListenBacklogFull", "EAGAIN", "transient"),
)


@pytest.mark.parametrize("row", PATHS, ids=lambda row: row.make.__name__)
async def test_fault_of_a_path(tmp_path: Path, row: PathRow) -> None:
    with ExitStack() as held:
        path = row.make(tmp_path, held)
        error = await error_of(aioconnect.open_unix_connection(path, policy=ONCE))
    assert told(error) == expected(row.error, row.code, row.kind, "connect", path)
    assert error.stop_reason == ("attempts" if row.kind == "transient" else "permanent")
    assert path.replace("\0", "@") in str(error)
    if row.error != "SocketPathInvalid":  # three errnos, of which one has a built-in class
        assert isinstance(error, type(OSError(error.errno, "")))


async def test_full_backlog_is_waited_for(tmp_path: Path) -> None:
    with ExitStack() as held:
        path = str(tmp_path / "slow")
        listener = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(path)
        listener.listen(0)
        fill_queue(path, held)
        dialling = asyncio.ensure_future(aioconnect.open_unix_connection(path))
        await asyncio.sleep(0.02)
        assert not dialling.done()
        held.enter_context(listener.accept()[0])
        _, writer = await dialling
        assert writer.get_extra_info("peername") == path
        writer.close()


# ------------------------------------------------------------------------------ loopback and its peers


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_refused(host: str) -> None:
    port = closed_port(host)
    error = await error_of(aioconnect.open_connection(host, port, policy=ONCE))
    address = (host, port) if host == "127.0.0.1" else (host, port, 0, 0)
    assert told(error) == expected("ConnectRefused", "ECONNREFUSED", "transient", "connect", address)
    assert [each.address for each in error.errors] == [address]
    assert isinstance(error, ConnectionRefusedError)


async def test_refused_at_every_address_of_localhost() -> None:
    port = closed_port()
    found = socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)
    error = await error_of(aioconnect.open_connection("localhost", port, policy=ONCE))
    assert type(error) is errors.ConnectRefused
    assert error.errno == errno.ECONNREFUSED
    assert [each.address for each in error.errors] == [entry[4] for entry in found]
    assert {each.errno for each in error.errors} == {errno.ECONNREFUSED}


async def test_full_accept_queue_is_silence() -> None:
    """Linux drops the SYN and says nothing (tcp(7), tcp_abort_on_overflow)."""
    with ExitStack() as held:
        address = held.enter_context(listening(backlog=0)).getsockname()
        for _ in range(4):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        error = await error_of(aioconnect.open_connection(*address, policy=BRIEFLY))
    assert told(error) == expected("ConnectTimeout", "ETIMEDOUT", "transient", "connect", address)
    assert error.source == "attempt"
    assert 0.29 < error.elapsed < 2
    assert isinstance(error, TimeoutError)


async def test_self_connect_is_a_refusal() -> None:
    """A socket that dials its own address gets connected to itself (RFC 9293, 3.5, simultaneous open)."""
    address = ("127.0.0.1", closed_port())
    error = await error_of(aioconnect.open_connection(*address, local_addr=address, policy=ONCE))
    assert told(error) == expected("ConnectRefused", "ECONNREFUSED", "transient", "connect", address)


# --------------------------------------------------------------------------------------- local address


async def error_of_binding(peer: socket.socket, local_addr: tuple[str, int]) -> Any:
    return await error_of(aioconnect.open_connection(*peer.getsockname(), local_addr=local_addr, policy=ONCE))


async def test_local_address_of_nobody() -> None:
    with listening() as peer:
        error = await error_of_binding(peer, ("198.51.100.1", 0))
        assert told(error) == expected("AddressNotAvailable", "EADDRNOTAVAIL", "permanent", "bind", peer)


async def test_local_port_in_use() -> None:
    with listening() as peer, listening() as other:
        error = await error_of_binding(peer, other.getsockname())
        assert told(error) == expected("AddressInUse", "EADDRINUSE", "permanent", "bind", peer)


async def test_local_port_in_use_by_a_connection_to_the_same_peer() -> None:
    """uvloop alone would bind (it sets SO_REUSEADDR) and then fail to connect, with EADDRNOTAVAIL."""
    local = ("127.0.0.1", closed_port())
    with listening() as peer:
        _, writer = await aioconnect.open_connection(*peer.getsockname(), local_addr=local, policy=ONCE)
        assert writer.get_extra_info("sockname") == local
        error = await error_of_binding(peer, local)
        assert told(error) == expected("AddressInUse", "EADDRINUSE", "permanent", "bind", peer)
        writer.transport.abort()


async def test_local_address_of_the_other_family() -> None:
    with listening() as peer:
        assert type(await error_of_binding(peer, ("::1", 0))) is aioconnect.ConfigError
    with pytest.raises(aioconnect.ConfigError, match="family"):
        await aioconnect.open_connection("127.0.0.1", 80, family=socket.AF_INET6)


# ----------------------------------------------------------------- what this process may not or cannot


class LocalRow(NamedTuple):
    """`child` says what the process has lost."""

    child: str
    name: str
    error: str
    code: str
    kind: str
    phase: str
    scenario: dict[str, Any]


SOMEBODY: Final = "another user"
NO_FILES: Final = "no descriptors"
NO_THREADS: Final = "no threads"
LITERAL: Final = {"host": "127.0.0.1", "port": 1}
LOCALHOST: Final = {"host": "localhost", "port": 1}
WARM_UP: Final = {"name": "warm-up", "host": "localhost", "port": 1}

DENIED: Final = ("AccessDenied", "EACCES", "permanent")
NO_FILE: Final = ("TooManyOpenFiles", "EMFILE", "local")
LACKING: Final = (
    LocalRow(NO_FILES, "literal", *NO_FILE, "socket", LITERAL),
    LocalRow(NO_FILES, "name", *NO_FILE, "resolve", LOCALHOST),
    LocalRow(NO_FILES, "path", *NO_FILE, "socket", {"path": "/run/no-such-socket"}),
    LocalRow(NO_THREADS, "name", "ThreadsExhausted", "THREADS_EXHAUSTED", "local", "resolve", LOCALHOST),
    LocalRow(NO_THREADS, "literal", "ConnectRefused", "ECONNREFUSED", "transient", "connect", LITERAL),
    LocalRow(SOMEBODY, "socket of mode 0600", *DENIED, "connect", {"path": "mode-0600"}),
    LocalRow(SOMEBODY, "folder of mode 0700", *DENIED, "connect", {"path": "mode-0700/socket"}),
    LocalRow(SOMEBODY, "privileged port", *DENIED, "bind", {"kw": {"local_addr": ["127.0.0.1", 81]}} | LITERAL),
)


@contextlib.contextmanager
def forbidden_sockets() -> Iterator[Path]:
    """Sockets for root only, in a folder for everybody (pytest's own folders are for one user)."""
    with tempfile.TemporaryDirectory(prefix="aioconnect-") as name, ExitStack() as held:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "mode-0700").mkdir(mode=0o700)
        for path, mode in ((folder / "mode-0600", 0o600), (folder / "mode-0700" / "socket", 0o777)):
            sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(str(path))
            sock.listen()
            path.chmod(mode)
        yield folder


def scenario_of(row: LocalRow, folder: Path) -> dict[str, Any]:
    scenario = {"name": row.name, **row.scenario}
    if "path" in scenario:
        scenario["path"] = str(folder / scenario["path"])
    return scenario


@pytest.fixture(scope="module")
def reports() -> Reports:
    is_root = os.geteuid() == 0
    # Limits of processes are counted by user, and this user is to have no other process.
    somebody = 100_000 + secrets.randbelow(1_000_000) if is_root else None
    requests: dict[str, dict[str, Any]] = {
        NO_FILES: {"limits": {"NOFILE": 0}},
        NO_THREADS: {"limits": {"NPROC": 1}, "uid": somebody},
    }
    if is_root:
        requests[SOMEBODY] = {"uid": somebody}
    with forbidden_sockets() as folder, Children() as children:
        for loop in LOOPS:
            for child, request in requests.items():
                scenarios = [scenario_of(row, folder) for row in LACKING if row.child == child]
                whole = {"loop": loop, "warm_up": [WARM_UP], "scenarios": scenarios, **request}
                children.start((loop, child), whole)
        return children.reports()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("row", LACKING, ids=[f"{row.child}: {row.name}" for row in LACKING])
def test_what_this_process_lacks(reports: Reports, row: LocalRow, loop: str) -> None:
    if (loop, row.child) not in reports:
        pytest.skip("becoming another user takes root")
    report = reports[loop, row.child]
    outcome: Outcome = report["outcomes"][row.name]
    assert tuple(outcome[key] for key in ("type", "code", "kind", "phase")) == row[2:6], outcome["text"]
    assert outcome["errno"] == getattr(errno, row.code, outcome["errno"])
    if "host" in row.scenario:
        assert outcome["address"] == [row.scenario["host"], row.scenario["port"]]
    else:
        assert outcome["address"].endswith(row.scenario["path"])
    assert outcome["pickles"]
    assert report["left"] == []
    assert report["complaints"] == []


# --------------------------------------------------------------------------------- losing a connection


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
    """A connection and the peer's end of it, a plain blocking socket."""
    with listening() as listener:
        reader, writer = await aioconnect.open_connection(*listener.getsockname(), policy=ONCE)
        peer, _ = listener.accept()
        with peer:
            try:
                yield reader, writer, peer
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def send(writer: asyncio.StreamWriter, data: bytes = b"x") -> None:
    writer.write(data)
    await writer.drain()


def is_loss(error: Any, kind: type[Exception], writer: asyncio.StreamWriter) -> None:
    assert type(error) is kind
    assert isinstance(error, errors.ConnectionLost)
    assert not isinstance(error, errors.ConnectError)
    assert (error.phase, error.kind) == ("use", "transient")
    assert error.address == writer.get_extra_info("peername")


async def test_reset_after_accept() -> None:
    async with connected() as (reader, writer, peer):
        reset(peer)
        for call in (reader.read, reader.read, reader.readline, lambda: send(writer), lambda: send(writer)):
            error = await error_of(call())
            is_loss(error, errors.ConnectionResetByPeer, writer)
            assert error.errno == errno.ECONNRESET


async def test_reset_found_by_writing() -> None:
    async with connected() as (reader, writer, peer):
        reset(peer)
        await asyncio.sleep(0.02)
        assert writer.is_closing()
        for call in (lambda: send(writer), lambda: send(writer), reader.read):
            error = await error_of(call())
            is_loss(error, errors.ConnectionResetByPeer, writer)
            assert error.errno == errno.ECONNRESET


async def test_reset_hides_what_came_before_it() -> None:
    """As with asyncio's own streams: the peer's last words are not to be had once it has reset."""

    async with connected() as (reader, writer, peer):
        peer.sendall(b"last words")
        await asyncio.sleep(0.02)
        reset(peer)
        await asyncio.sleep(0.02)
        is_loss(await error_of(reader.read(100)), errors.ConnectionResetByPeer, writer)


async def test_peer_that_closes_with_input_unread_resets() -> None:
    """What a server does that crashes on a request (RFC 2525, 2.17)."""

    async with connected() as (reader, writer, peer):
        await send(writer, b"request")
        peer.recv(1)
        peer.close()
        is_loss(await error_of(reader.readexactly(1)), errors.ConnectionResetByPeer, writer)


async def test_listener_closed_with_the_connection_in_its_queue() -> None:
    """What a restarting server does to those that it has not accepted yet."""

    with listening() as listener:
        reader, writer = await aioconnect.open_connection(*listener.getsockname(), policy=ONCE)
    is_loss(await error_of(reader.read(1)), errors.ConnectionResetByPeer, writer)
    is_loss(await error_of(send(writer)), errors.ConnectionResetByPeer, writer)


async def test_end_between_messages_is_no_error() -> None:
    async with connected() as (reader, _writer, peer):
        peer.close()
        assert await reader.read(10) == b""
        assert await reader.readline() == b""
        assert reader.at_eof()


async def test_writing_after_the_peer_has_gone() -> None:
    """The first write is answered by a reset, so it is a later one that fails."""

    async with connected() as (reader, writer, peer):
        peer.close()
        assert await reader.read(10) == b""
        await send(writer)
        await asyncio.sleep(0.02)
        for _ in range(3):
            writer.write(b"x")
            await asyncio.sleep(0.01)
        error = await error_of(send(writer))
        assert type(error) in {errors.BrokenPipe, errors.ConnectionResetByPeer}
        assert error.errno in {errno.EPIPE, errno.ECONNRESET}
        is_loss(error, type(error), writer)


async def test_end_inside_readexactly() -> None:
    async with connected() as (reader, writer, peer):
        peer.sendall(b"abc")
        peer.close()
        await asyncio.sleep(0.02)
        error = await error_of(reader.readexactly(10))
        is_loss(error, errors.PeerClosed, writer)
        assert isinstance(error, asyncio.IncompleteReadError)
        assert (error.partial, error.expected) == (b"abc", 10)


async def test_end_inside_a_readexactly_that_waits() -> None:
    async with connected() as (reader, writer, peer):
        reading = asyncio.ensure_future(reader.readexactly(10))
        await asyncio.sleep(0.01)
        peer.sendall(b"abc")
        await asyncio.sleep(0.01)
        peer.close()
        error = await error_of(reading)
        is_loss(error, errors.PeerClosed, writer)
        assert (error.partial, error.expected) == (b"abc", 10)


async def test_end_inside_readuntil_and_readline() -> None:
    async with connected() as (reader, writer, peer):
        peer.sendall(b"abc")
        peer.close()
        error = await error_of(reader.readuntil(b"\n"))
        is_loss(error, errors.PeerClosed, writer)
        assert (error.partial, error.expected) == (b"abc", None)
    async with connected() as (reader, writer, peer):
        peer.sendall(b"abc")
        peer.close()
        assert await reader.readline() == b"abc"


async def test_line_too_long_stays_the_callers_mistake() -> None:
    async with connected() as (reader, _writer, peer):
        peer.sendall(b"x" * 70_000)
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"\n")
    async with connected() as (reader, _writer, peer):
        peer.sendall(b"x" * 70_000)
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()


async def test_use_after_own_close() -> None:
    async with connected() as (reader, writer, _peer):
        writer.close()
        await writer.wait_closed()
        writer.write(b"x")
        error = await error_of(writer.drain())
        assert type(error) is errors.AlreadyClosed
        assert error.phase == "use"
        assert await reader.read() == b""
