"""The functions that stand in for asyncio's: what they take, what they refuse before anything is opened."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import secrets
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import aioconnect
from aioconnect import ConfigError, Connection, Endpoint, Policy, errors
from aioconnect.connection import Reader, Writer
from aioconnect.testing.leaks import open_fds
from tests.support import peers
from tests.support.listeners import closed_port, listening
from tests.support.peers import Authority, Peer, serve

ONCE = Policy(max_attempts=1, attempt_timeout=3, timeout=6)
LOOPBACK = {"127.0.0.1", "::1"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


async def close(streams: tuple[Reader, Writer]) -> None:
    streams[1].close()
    with contextlib.suppress(errors.ConnectionLost):
        await streams[1].wait_closed()


# ------------------------------------------------------------------------------------------ what asyncio takes


def asyncio_arguments(function: Callable[..., Any]) -> set[str]:
    """The keywords of one of asyncio's functions, less those that every method has."""
    return set(inspect.signature(function).parameters) - {"self", "protocol_factory", "kwds", "host", "port", "path"}


GOOD: dict[str, Any] = {
    "ssl": False,
    "family": socket.AF_INET,
    "proto": socket.IPPROTO_TCP,
    "flags": socket.AI_ADDRCONFIG,
    "sock": None,
    "local_addr": ("127.0.0.1", 0),
    "server_hostname": None,
    "ssl_handshake_timeout": None,
    "ssl_shutdown_timeout": None,
    "happy_eyeballs_delay": 0.1,
    "interleave": 2,
    "all_errors": True,
    "limit": 1024,
}
"""A value for each argument of asyncio's that can be given without TLS."""


def test_every_argument_of_asyncio_is_known() -> None:
    taken = asyncio_arguments(asyncio.open_connection) | asyncio_arguments(asyncio.BaseEventLoop.create_connection)
    assert taken <= GOOD.keys()


@pytest.mark.parametrize("name", GOOD)
async def test_every_argument_of_asyncio_is_taken(server: socket.socket, name: str) -> None:
    """Also as None, which is its word for a default, and all of them together."""
    address = server.getsockname()
    for options in ({name: GOOD[name]}, {name: None}, GOOD, dict.fromkeys(GOOD)):
        chosen: dict[str, Any] = {key: value for key, value in options.items() if key != "limit" or value is not None}
        reader, writer = await aioconnect.open_connection(*address, policy=ONCE, **chosen)
        assert isinstance(reader, Reader)
        assert type(writer) is Writer
        assert writer.get_extra_info("peername") == address
        await close((reader, writer))
        without = {key: value for key, value in chosen.items() if key != "limit"}
        transport, _ = await aioconnect.create_connection(asyncio.Protocol, *address, policy=ONCE, **without)
        transport.abort()
        await asyncio.sleep(0)


async def test_positions_and_names_are_asyncios() -> None:
    for ours, theirs in (
        (aioconnect.open_connection, asyncio.open_connection),
        (aioconnect.open_unix_connection, asyncio.open_unix_connection),
    ):
        mine = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                assert (mine[name].kind, mine[name].default) == (parameter.kind, parameter.default), name
    create = inspect.signature(asyncio.BaseEventLoop.create_connection).parameters
    assert list(inspect.signature(aioconnect.create_connection).parameters)[:3] == list(create)[1:4]


async def test_the_limit_is_the_readers(server: socket.socket) -> None:
    reader, writer = await aioconnect.open_connection(*server.getsockname(), limit=10)
    peer, _ = server.accept()
    with peer:
        peer.send(b"x" * 100)
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"\n")
    await close((reader, writer))


async def test_local_addr_and_family(server: socket.socket) -> None:
    for local in (("127.0.0.8", 0), "127.0.0.8:0"):
        streams = await aioconnect.open_connection(*server.getsockname(), local_addr=local, family=socket.AF_INET)
        assert streams[1].get_extra_info("sockname")[0] == "127.0.0.8"
        await close(streams)


@pytest.mark.parametrize("host", ["127.0.0.1", b"127.0.0.1", "localhost", "LocalHost", None], ids=repr)
async def test_ways_to_name_the_host(server: socket.socket, host: Any) -> None:
    port = server.getsockname()[1]
    for given in (port, str(port)):
        streams = await aioconnect.open_connection(host, given, policy=ONCE)
        assert streams[1].get_extra_info("peername")[0] in LOOPBACK
        await close(streams)


async def test_the_options_of_an_endpoint_beside_them(server: socket.socket) -> None:
    address = server.getsockname()
    streams = await aioconnect.open_connection(*address, keepalive=None, nodelay=False, user_timeout=5)
    sock = streams[1].get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
    await close(streams)
    targets = (("127.0.0.1", closed_port()), address)
    streams = await aioconnect.open_connection(targets=targets, policy=ONCE)
    assert streams[1].get_extra_info("peername") == address
    await close(streams)


async def test_no_race_where_asyncio_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """happy_eyeballs_delay=None says so in both; not giving it is our default."""
    from aioconnect import connector  # noqa: PLC0415

    delays: list[float | None] = []

    def begin_dial(_loop: Any, _addresses: Any, options: Any) -> Any:
        delays.append(options.delay)
        raise LookupError

    monkeypatch.setattr(connector, "begin_dial", begin_dial)
    for options in ({}, {"happy_eyeballs_delay": None}, {"happy_eyeballs_delay": 0.5}):
        with pytest.raises(LookupError):
            await aioconnect.open_connection("127.0.0.1", 1, **options)
    assert delays == [0.25, None, 0.5]


# ------------------------------------------------------------------------------------------ TLS


@pytest.fixture
async def echo(authority: Authority) -> AsyncIterator[Peer]:
    async with serve(peers.tls_echo(authority.server_context())) as peer:
        yield peer


async def test_a_context_and_a_name(authority: Authority, echo: Peer) -> None:
    context = authority.client_context()
    for options in (
        {},
        {"server_hostname": "localhost"},
        {"ssl_handshake_timeout": 2.0, "ssl_shutdown_timeout": 1.0},
    ):
        reader, writer = await aioconnect.open_connection(*echo.address, ssl=context, policy=ONCE, **options)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert writer.get_extra_info("ssl_object") is not None
        await close((reader, writer))
    with pytest.raises(aioconnect.CertificateRejected):
        await aioconnect.open_connection(*echo.address, ssl=context, server_hostname="other.example", policy=ONCE)


async def test_no_name_to_verify_if_the_context_asks_for_none(authority: Authority, echo: Peer) -> None:
    context = authority.client_context()
    context.check_hostname = False
    streams = await aioconnect.open_connection(*echo.address, ssl=context, server_hostname="", policy=ONCE)
    await close(streams)


async def test_ssl_true_verifies_against_the_systems_authorities(echo: Peer) -> None:
    with pytest.raises(aioconnect.CertificateRejected):
        await aioconnect.open_connection(*echo.address, ssl=True, policy=ONCE)


async def test_handshake_timeout() -> None:
    async with serve(peers.silent) as peer:
        with pytest.raises(aioconnect.ConnectTimeout) as caught:
            await aioconnect.open_connection(*peer.address, ssl=True, ssl_handshake_timeout=0.1, policy=ONCE)
        assert caught.value.phase == "tls"
        await peer.released()


async def test_create_connection_over_tls(authority: Authority, echo: Peer) -> None:
    reader = asyncio.StreamReader()
    transport, protocol = await aioconnect.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader), *echo.address, ssl=authority.client_context(), policy=ONCE
    )
    assert isinstance(protocol, asyncio.StreamReaderProtocol)
    transport.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    transport.abort()
    await echo.released()


# ------------------------------------------------------------------------------------------ UNIX sockets


@contextlib.asynccontextmanager
async def unix_echo(path: str) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)  # uvloop refuses an abstract name here, but takes the socket
    server = await asyncio.start_unix_server(answer, sock=listener)
    async with server:
        yield path
        server.close()
        for _ in range(5):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", ["path", "PathLike", "bytes", "abstract", "URL", "Endpoint"])
async def test_unix_sockets(tmp_path: Path, kind: str) -> None:
    where = f"\0aioconnect-{secrets.token_hex(8)}" if kind == "abstract" else str(tmp_path / "app.sock")
    async with unix_echo(where) as path:
        if kind in {"URL", "Endpoint"}:
            endpoint: Any = f"unix://{path}" if kind == "URL" else Endpoint(path=path)
            conn = await aioconnect.connect(endpoint, policy=ONCE)
        else:
            given: Any = {"PathLike": Path(path), "bytes": os.fsencode(path)}.get(kind, path)
            reader, writer = await aioconnect.open_unix_connection(given, policy=ONCE)
            conn = Connection(reader, writer, Endpoint(path=path))
        await conn.send(b"hello")
        assert await conn.readexactly(5) == b"hello"
        assert conn.is_usable()
        assert conn.peername
        await conn.aclose()
        assert not conn.is_usable()


async def test_a_dialed_unix_socket(tmp_path: Path) -> None:
    async with unix_echo(str(tmp_path / "app.sock")) as path:
        with await aioconnect.dial(f"unix://{path}") as sock:
            assert sock.family == socket.AF_UNIX
            assert sock.gettimeout() == 0.0
            assert sock.getpeername() == path


async def test_no_unix_socket_there(tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        await aioconnect.open_unix_connection(path, policy=ONCE)
    error = caught.value
    assert isinstance(error, errors.SocketPathNotFound)
    assert (error.errno, error.phase, error.address, error.kind) == (errno.ENOENT, "connect", path, "starting")


async def test_tls_over_a_unix_socket_needs_a_name(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(ConfigError, match="server_hostname=None"):
        await aioconnect.open_unix_connection(tmp_path / "x", ssl=authority.client_context())


async def test_a_lost_unix_connection(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        listener.bind(str(tmp_path / "x"))
        listener.listen(1)
        reader, writer = await aioconnect.open_unix_connection(tmp_path / "x")
        listener.accept()[0].close()
        with pytest.raises(aioconnect.PeerClosed) as caught:
            await reader.readexactly(1)
        assert caught.value.address == str(tmp_path / "x")
        with pytest.raises(errors.BrokenPipe):
            await drained(writer)
        await close((reader, writer))


async def drained(writer: Writer) -> None:
    for _ in range(50):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------ refused beforehand

Call = Callable[[], Coroutine[Any, Any, object]]


def opened(*args: Any, **options: Any) -> Call:
    return lambda: aioconnect.open_connection(*args, **options)


def opened_unix(*args: Any, **options: Any) -> Call:
    return lambda: aioconnect.open_unix_connection(*args, **options)


def created(*args: Any, **options: Any) -> Call:
    return lambda: aioconnect.create_connection(asyncio.Protocol, *args, **options)


def dialed(*args: Any, **options: Any) -> Call:
    return lambda: aioconnect.dial(*args, **options)


def connected(*args: Any, **options: Any) -> Call:
    async def call() -> object:
        return await aioconnect.connect(*args, **options)

    return call


SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CLIENT_CONTEXT = ssl.create_default_context()
H = "127.0.0.1"

REFUSED: tuple[tuple[Call, str], ...] = (
    # hosts and ports
    (opened("", 80), "host=''"),
    (opened("a\0b", 80), r"host='a\\x00b'"),
    (opened("a" * 64 + ".example", 80), "host='aaa"),
    (opened("::1]", 80), "host='::1]'"),
    (opened("http://x", 80), "host='http://x'"),
    (opened("127.1", 80), "host='127.1'"),
    (opened(5, 80), "host=5"),
    (opened("fe80::1", 80), "host='fe80::1'"),
    (opened("x"), "port=None"),
    (opened("x", 0), "port=0"),
    (opened("x", -1), "port=-1"),
    (opened("x", 70000), "port=70000"),
    (opened("x", 1.5), "port=1.5"),
    (opened("x", "no-such-service"), "port='no-such-service'"),
    (opened("x", True), "port=True"),
    (opened(), "host=None"),
    (created("x", 70000), "port=70000"),
    (dialed("x:70000"), "port='?70000'?"),
    (connected("tcp://x:70000"), "port='?70000'?"),
    # what cannot be retried, or is not known
    (opened(sock=object()), "sock=<object>: cannot be retried"),
    (opened("x", 80, sock=object()), "sock=<object>: cannot be retried"),
    (opened_unix("/x", sock=object()), "sock=<object>: cannot be retried"),
    (created(sock=object()), "sock=<object>: cannot be retried"),
    (opened("x", 80, keepalves=True), "option='keepalves': is unknown; did you mean keepalive?"),
    (opened("x", 80, timout=1), "option='timout': is unknown; did you mean timeout?"),
    (opened("x", 80, loop=None), "option='loop': is unknown"),
    (opened_unix("/x", host="x"), "option='host'"),
    # TLS
    (opened("x", 80, ssl="yes"), "ssl=<str>|ssl='yes'"),
    (opened("x", 80, ssl=SERVER_CONTEXT), "context=<SSLContext>|ssl=<SSLContext>"),
    (opened("x", 80, server_hostname="x"), "server_hostname='x': needs ssl"),
    (opened("x", 80, ssl=False, server_hostname="x"), "server_hostname='x': needs ssl"),
    (opened("x", 80, ssl_handshake_timeout=1), "ssl_handshake_timeout=1: needs ssl"),
    (opened("x", 80, ssl_shutdown_timeout=1), "ssl_shutdown_timeout=1: needs ssl"),
    (opened("x", 80, ssl=True, ssl_handshake_timeout=0), "ssl_handshake_timeout=0"),
    (opened("x", 80, ssl=True, ssl_shutdown_timeout=-1), "ssl_shutdown_timeout=-1"),
    (opened("x", 80, ssl=True, server_hostname=""), "server_hostname=''"),
    (opened("x", 80, ssl=True, server_hostname="a\0b"), "server_hostname="),
    (opened("x", 80, ssl=CLIENT_CONTEXT, tls=True), "tls=True: must not be given together with ssl"),
    (opened("x", 80, tls="perhaps"), "tls='perhaps'"),
    (dialed("tls://x:1"), "endpoint=tls://x:1"),
    # options of sockets and of the race
    (opened(H, 80, family=socket.AF_UNIX), "family=AF_UNIX"),
    (opened(H, 80, family=socket.AF_INET6), "family=inet6|family='inet6'"),
    (opened("x", 80, local_addr=("localhost", 0)), r"local_addr\.host='localhost'"),
    (opened("x", 80, local_addr=("127.0.0.1", 70000)), r"local_addr\.port=70000"),
    (opened("::1", 80, local_addr=("127.0.0.1", 0)), "local_addr="),
    (opened("x", 80, local_addr=5), "local_addr=5"),
    (opened("x", 80, happy_eyeballs_delay=0), "happy_eyeballs_delay=0"),
    (opened("x", 80, happy_eyeballs_delay="soon"), "happy_eyeballs_delay='soon'"),
    (opened("x", 80, interleave=-1), "interleave=-1"),
    (opened("x", 80, proto=-1), "proto=-1"),
    (opened("x", 80, flags="fast"), "flags='fast'"),
    (opened("x", 80, user_timeout=0), "user_timeout=0"),
    (opened("x", 80, keepalive=5), "keepalive=5"),
    (opened("x", 80, nodelay="perhaps"), "nodelay='perhaps'"),
    (opened("x", 80, limit=0), "limit=0"),
    (opened("x", 80, limit=None), "limit=None"),
    (opened("x", 80, timeout=0), "timeout=0"),
    (opened("x", 80, timeout=float("nan")), "timeout=nan"),
    (opened("x", 80, policy=None), "policy=None"),
    # one place only
    (opened("x", 80, path="/x"), "path='/x': must not be given together with host and port"),
    (opened("x", 80, targets=("y:1",)), "targets=.* must not be given together with host and port"),
    (opened(path="/x", targets=("y:1",)), "path='/x': must not be given together with targets"),
    # UNIX paths
    (opened_unix(), "path=None"),
    (opened_unix(None), "path=None"),
    (opened_unix(""), "path=''"),
    (opened_unix("/" + "x" * 108), "path='/xxx"),
    (opened_unix("/a\0b"), r"path='/a\\x00b'"),
    (opened_unix(5), "path=5"),
    (opened_unix("/x", nodelay=False), "nodelay='?off'?"),
    (opened_unix("/x", local_addr=("127.0.0.1", 0)), "local_addr="),
    (opened_unix("/x", ssl=True), "server_hostname=None"),
    (opened_unix("/x", limit=-1), "limit=-1"),
    # the shape of an endpoint
    (connected("x"), "x"),
    (connected("http://x:80"), "http"),
    (connected(5), "5"),
    (connected("tcp://x:1", prepare=5), "prepare=5"),
    (connected("tcp://x:1?nodelay=perhaps"), "nodelay='perhaps'"),
    (connected("tcp://x:1", nodelays=True), "nodelays"),
    (connected(Endpoint("x", 1), nodelays=True), "nodelays"),
    (dialed("tcp://x:1", happy=1), "happy"),
)


@pytest.mark.asyncio(loop_factories=["asyncio"])  # no loop is asked for anything
@pytest.mark.parametrize(("call", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
async def test_refused_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch, call: Call, problem: str) -> None:
    """One ConfigError that names the argument and its value; no socket, no lookup, no attempt."""

    def touched(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", touched)
    monkeypatch.setattr(socket, "getaddrinfo", touched)
    before = open_fds()
    with pytest.raises(ConfigError, match=problem) as caught:
        await call()
    assert open_fds() == before
    assert len(caught.value.problems) == 1, caught.value.problems
    assert ": " in caught.value.problems[0]
    assert isinstance(caught.value, ValueError)


async def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        await aioconnect.open_connection("a b", 70000, interleave=-1, nodelay="perhaps", proto=-1)
    assert [problem.partition("=")[0] for problem in caught.value.problems] == [
        "host",
        "port",
        "nodelay",
        "interleave",
        "proto",
    ]
    with pytest.raises(ConfigError) as unknown:
        await aioconnect.open_connection("x", 1, zeta=1, alpha=2, sock=object(), server_hostname="x")
    assert [problem.partition("=")[0] for problem in unknown.value.problems] == [
        "option",
        "option",
        "server_hostname",
        "sock",
    ]


async def test_a_bad_url_is_refused_where_it_is_given() -> None:
    """At the call, not at the await."""
    for arguments in ({"endpoint": "tcp://x:70000"}, {"endpoint": "tcp://x:1", "timeout": -1}):
        with pytest.raises(ConfigError):
            _ = aioconnect.connect(**arguments)


async def test_no_secret_in_what_is_said() -> None:
    for call in (
        connected("tcp://user:hunter2@x:1"),
        opened("user:hunter2@x", 1),
        dialed("user:hunter2@x:1"),
        opened("x", 1, password="hunter2@"),
    ):
        with pytest.raises(ConfigError) as caught:
            await call()
        assert "hunter2" not in str(caught.value)


# ------------------------------------------------------------------------------------------ errors and retries


@pytest.mark.parametrize("function", [opened, created], ids=["open_connection", "create_connection"])
async def test_the_error_is_the_callers_own_except_clause(function: Callable[..., Call]) -> None:
    port = closed_port()
    with pytest.raises(ConnectionRefusedError) as caught:
        await function("127.0.0.1", port, policy=Policy(max_attempts=2, wait=lambda _: 0.0))()
    error = caught.value
    assert isinstance(error, aioconnect.ConnectRefused)
    assert (error.errno, error.attempt_count, error.stop_reason) == (errno.ECONNREFUSED, 2, "attempts")
    assert (error.address, error.endpoint) == (("127.0.0.1", port), f"tcp://127.0.0.1:{port}")


async def test_localhost_keeps_its_errno() -> None:
    """Two addresses refuse; asyncio says OSError without an errno."""
    with listening("::1") as six, listening("127.0.0.1", six.getsockname()[1]) as four:
        port = four.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as caught:
        await aioconnect.open_connection("localhost", port, policy=ONCE)
    assert caught.value.errno == errno.ECONNREFUSED
    assert isinstance(caught.value, aioconnect.ConnectRefused)
    assert {each.address[0] for each in caught.value.errors if isinstance(each.address, tuple)} <= LOOPBACK


async def test_a_listener_that_comes_up_is_waited_for() -> None:
    port = closed_port()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        loop.call_later(0.03, lambda: stack.enter_context(listening(port=port)))
        policy = Policy(wait=aioconnect.Backoff(initial=0.01, maximum=0.01, jitter="none"), timeout=3)
        streams = await aioconnect.open_connection("127.0.0.1", port, policy=policy)
        await close(streams)


async def test_the_callers_timeout() -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        await aioconnect.open_connection("127.0.0.1", closed_port(), timeout=0.05)
    assert isinstance(caught.value, aioconnect.ConnectRefused)
    assert caught.value.stop_reason == "timeout"


def test_outside_of_a_loop() -> None:
    """What needs a loop says so, and leaves nothing un-awaited."""
    coroutine = aioconnect.open_connection("127.0.0.1", 1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)
    with pytest.raises(RuntimeError, match="no running event loop"):
        aioconnect.connect("127.0.0.1:1").__await__()
    assert sys.version_info >= (3, 11)
