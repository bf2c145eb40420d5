"""What the README shows is what happens: its programs run, and their output is compared.

The names in it exist only here: `World` resolves them to servers of its own.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import io
import re
import shlex
import socket
import socketserver
import ssl
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

import aioconnect
from aioconnect import errors
from aioconnect.cli import main

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


class Block(NamedTuple):
    """A fenced block, and the text that is shown right below it as its output."""

    line: int
    language: str
    body: str
    output: str | None


def blocks() -> list[Block]:
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    result: list[Block] = []
    for fence, following in zip(found, [*found[1:], None], strict=True):
        shows = following is not None and following[1] == "text" and not TEXT[fence.end() : following.start()].strip()
        output = following[2] if following is not None and shows else None
        result.append(Block(TEXT.count("\n", 0, fence.start()) + 1, fence[1], fence[2], output))
    return result


BLOCKS = blocks()


def marked(name: str) -> Block:
    """The block right after ``<!-- command: name -->``."""
    line = TEXT[: TEXT.index(f"<!-- command: {name} -->\n```sh\n")].count("\n") + 2
    return next(block for block in BLOCKS if block.line == line)


def alike(output: str) -> list[str]:
    """Output without what a clock, the kernel or a random number chose."""
    lines = output.strip().splitlines()
    return [re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", line)).rstrip() for line in lines]


# A world of names


class Answers(socketserver.StreamRequestHandler):
    """Says PONG to PING, and everything else as it came."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"PONG\n" if line == b"PING\n" else line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.context = context
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        sock.settimeout(10)
        return (sock if self.context is None else self.context.wrap_socket(sock, server_side=True)), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client has left."""


class World:
    """``db.internal:5432`` answers, ``api.internal:443`` over TLS, and ``down.internal`` refuses at two addresses."""

    def __init__(self, certificates: Path) -> None:
        authority = trustme.CA(organization_name="Example", organization_unit_name="Example CA")
        authority.cert_pem.write_to_path(certificates)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        issued = authority.issue_cert("api.internal", organization_name="Example", organization_unit_name="API")
        issued.configure_cert(context)
        self.servers = [Server(), Server(context)]
        self.closed = [socket.socket(), socket.socket()]
        for sock in self.closed:
            # Bound but not listening: refused, and nobody else can take the port.
            sock.bind(("127.0.0.1", 0))
        self.addresses = {
            ("db.internal", 5432): [self.servers[0].server_address],
            ("api.internal", 443): [self.servers[1].server_address],
            ("down.internal", 5432): [sock.getsockname() for sock in self.closed],
        }
        self.real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        if not str(host).endswith(".internal"):
            return self.real(host, port, *arguments, **keywords)
        if (host, port) not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = self.addresses[host, port]
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in found]

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        for sock in self.closed:
            sock.close()


async def asyncpg_connect(url: str) -> object:
    """What the README needs of the driver: it dials by itself and wraps its errors."""
    _, writer = await asyncio.open_connection(url.split("/")[2], 5432)
    writer.close()
    return object()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path / "authorities.pem")
    monkeypatch.setattr(socket, "getaddrinfo", world.getaddrinfo)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    asyncpg = types.ModuleType("asyncpg")
    monkeypatch.setattr(asyncpg, "connect", asyncpg_connect, raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", asyncpg)
    yield world
    world.close()


def run_block(block: Block, names: dict[str, Any]) -> tuple[str, bool]:
    """What it prints, and whether an exception ends it; of that, what stands below the traceback."""
    failed = False
    code = compile(block.body, "app.py", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            if code.co_flags & inspect.CO_COROUTINE:
                # Of a code object with awaits at its top level eval gives the coroutine.
                asyncio.run(eval(code, names))
            else:
                exec(code, names)
        except Exception as exc:  # noqa: BLE001  (compared with what the README shows)
            out.write("".join(traceback.format_exception_only(exc)))
            failed = True
    return out.getvalue(), failed


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_the_programs_print_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace, as a reader goes on with what stands above; a file shown is there from then on."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    wrong: list[str] = []
    for block in BLOCKS:
        if block.language == "toml":
            Path("service.toml").write_text(block.body)
        if block.language != "python":
            continue
        if "import uvloop" in block.body and importlib.util.find_spec("uvloop") is None:
            continue
        printed, failed = run_block(block, names)
        if alike(printed) != alike(block.output or "") and (failed or block.output is not None):
            wrong.append(f"README.md:{block.line} prints\n{printed}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_demo_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    assert alike(capsys.readouterr().out) == alike(marked("run").output or "")


@pytest.mark.usefixtures("world")
def test_the_command_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [block for block in BLOCKS if block.language == "console"]
    assert len(shown) == 3
    for block in shown:
        line, _, output = block.body.partition("\n")
        prompt, command, *arguments = shlex.split(line)
        assert (prompt, command) == ("$", "aioconnect")
        assert main(arguments) == 0
        assert alike(capsys.readouterr().out) == alike(output)


def test_the_endpoints_shown_are_endpoints() -> None:
    (block,) = (each for each in BLOCKS if "unix:///run/app.sock" in each.body)
    assert block.language == "text"
    for line in block.body.splitlines():
        for text in re.findall(r"(?:srv\+)?(?:tcp|tls|unix):\S+|\w\S*:\d+", line):
            if text not in {"unix://@name", "srv+tls://"}:
                assert str(aioconnect.Endpoint.parse(text.rstrip(","))), text


def test_code_comes_early() -> None:
    assert next(block.line for block in BLOCKS if block.language == "python") <= 25


def test_the_commands_are_there() -> None:
    for name in ("run", "test"):
        assert marked(name).body.startswith("python3 -m venv .venv && ")
    assert "aioconnect demo" in marked("run").body
    assert "pytest" in marked("test").body


def test_nobody_is_told_to_install_what_is_somebody_elses() -> None:
    assert not re.search(r"pip install[^\n]* aioconnect\b", TEXT)


def test_every_name_in_the_tables_exists() -> None:
    for line in TEXT.splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`(\w+)`( \*)?", line.split("|")[1]):
                assert hasattr(errors, name[0]) or hasattr(aioconnect, name[0]), name
                assert not name[1] or hasattr(aioconnect, name[0]), name


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (Path(__file__).parent.parent / target).exists(), target
