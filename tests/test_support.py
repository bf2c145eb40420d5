"""The checks that other tests rely on: each has to pass what is right and to find what is planted."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioconnect.testing.cancel import EAGER
from aioconnect.testing.leaks import open_fds
from tests.support.clock import virtual

only_asyncio = pytest.mark.asyncio(loop_factories=["asyncio"])
LOOPS = 1 if importlib.util.find_spec("uvloop") is None else 2
eager_too = pytest.mark.parametrize("eager", EAGER)


@pytest.fixture
def kept() -> Iterator[list[socket.socket]]:
    """Where a test may leave sockets open; they are closed after it."""
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Accepts nothing by itself: the kernel completes the handshakes."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


# The loops


async def test_runs_on_both_loops(request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.id if LOOPS == 2 else "asyncio"  # a single kind is not part of the name
    assert kind in {"asyncio", "uvloop"}
    assert type(asyncio.get_running_loop()).__module__.startswith(kind)


@only_asyncio
async def test_one_loop_on_request() -> None:
    assert type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop


@virtual
async def test_virtual_on_request() -> None:
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() == 3600.0


# Descriptors


def test_open_fds_sees_sockets_and_pipes(kept: list[socket.socket]) -> None:
    before = open_fds()
    assert not open_fds() - before
    kept.append(socket.socket())
    ends = os.pipe()
    assert sorted(fd.kind for fd in open_fds() - before) == ["pipe", "pipe", "socket"]
    for end in ends:
        os.close(end)


def test_open_fds_ignores_files() -> None:
    before = open_fds()
    with Path(__file__).open():
        assert open_fds() == before


def test_open_fds_tells_a_socket_from_its_successor_with_the_same_number() -> None:
    first = socket.socket()
    number = first.fileno()
    before = open_fds()
    first.close()
    with socket.socket() as second:
        assert second.fileno() == number
        assert [fd.number for fd in open_fds() - before] == [number]


def test_a_descriptor_names_its_ends(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as sock:
        ends = f"{sock.getsockname()!r} -> {sock.getpeername()!r}"
        assert f"fd {sock.fileno()}, socket {ends}" in {str(fd) for fd in open_fds()}


# The check after each test, as pytest runs it

PLANTED = """
import asyncio, logging, socket
import pytest

kept = []

def leak():
    kept.append(socket.socket())

async def forget():
    kept.append(asyncio.create_task(asyncio.sleep(3600)))

def complain():
    logging.getLogger("asyncio").error("planted")

def test_bad_sync_fd():
    leak()

async def test_bad_fd():
    leak()

async def test_bad_task():
    await forget()

async def test_bad_log():
    complain()

async def test_bad_handler():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

async def test_bad_never_retrieved():
    future = asyncio.get_running_loop().create_future()
    future.me = future  # only the garbage collector sees the end of it
    future.set_exception(OSError("planted"))

def test_bad_sync_loop():
    async def main():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)
    asyncio.run(main())

@pytest.mark.may_leak("task", "log")
async def test_bad_of_another_kind():
    leak()

@pytest.mark.may_leak("fd")
def test_good_fd():
    leak()

@pytest.mark.may_leak
async def test_good_anything():
    leak()
    await forget()
    complain()

@pytest.fixture
async def server():
    running = asyncio.create_task(asyncio.sleep(3600))
    with socket.socket() as sock:
        yield sock
    running.cancel()

@pytest.fixture(scope="module")
def shared():
    with socket.socket() as sock:
        yield sock

async def test_good_fixtures(server, shared):
    await asyncio.sleep(0)

async def test_good_closing():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await reader.read()
    writer.close()
    server.close()

async def test_broken_and_leaking():
    leak()
    assert False
"""


def run_planted(directory: Path) -> tuple[Counter[str], Counter[str], str]:
    """Run the planted tests beside our conftest: those with an error, those that failed, the output."""
    module = directory / "test_planted.py"
    module.write_text(PLANTED)
    root = Path(__file__).parent.parent
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:cacheprovider"]
    ours = ["-c", str(root / "pyproject.toml"), "--rootdir", str(directory), "-p", "tests.conftest"]
    command = [*pytest_here, *ours, str(module)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    errors = Counter(re.findall(r"^ERROR .*?::(\w+)", run.stdout, re.MULTILINE))
    failures = Counter(re.findall(r"^FAILED .*?::(\w+)", run.stdout, re.MULTILINE))
    return errors, failures, run.stdout


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    errors, failures, output = run_planted(tmp_path)
    bad = re.findall(r"test_bad\w+", PLANTED)
    assert errors == {name: 1 if name.startswith("test_bad_sync") else LOOPS for name in bad}, output
    assert failures == {"test_broken_and_leaking": LOOPS}, output
    assert "left open: fd" in output
    assert "left running: Task-" in output
    assert "logged by asyncio: planted" in output
