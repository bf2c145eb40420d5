from __future__ import annotations

import datetime as dt
import functools
import io
import json
import os
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

import aioconnect
from aioconnect.cli import main, probing
from aioconnect.srv import ServiceResolver
from tests.support.dns import SERVFAIL, SRV, dns_server

LIMIT = 60.0  # seconds, on a busy machine

Capture = pytest.CaptureFixture[str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "aioconnect", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(aioconnect.__file__).parent.parent)}


def finished(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=LIMIT, env=environment(), check=False
    )


# Servers, in threads: the command has an event loop of its own


class TLSServer(socketserver.ThreadingTCPServer):
    """Shakes hands with whoever comes."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.context = context

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        sock.settimeout(10)
        return self.context.wrap_socket(sock, server_side=True), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client has left."""


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Test CA")


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[Callable[..., int]]:
    servers: list[TLSServer] = []

    def start(name: str, **validity: Any) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        authority.issue_cert(name, **validity).configure_cert(context)
        server = TLSServer(context)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that is bound, so nobody takes it, and does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prob"], "command='prob': is none; did you mean probe?"),
        (["nonsense"], "command='nonsense': is none; must be one of demo, probe, chaos, explain, simulate"),
        (["probe"], "TARGET='': must be given; see aioconnect probe --help"),
        (["probe", "a:1", "--timeout"], "--timeout='': expected one argument; see aioconnect probe --help"),
        (["probe", "a:1", "--frob"], "arguments='--frob': are unknown; see aioconnect --help"),
        (["probe", "a:1", "--js"], "arguments='--js': are unknown; see aioconnect --help"),
        (["probe", "a:99999"], "port=99999: must be an integer from 1 to 65535"),
        (["probe", "a"], None),
        (["probe", "http://a:80"], None),
        (["probe", "tcp://me:secret@a:80"], None),
        (["probe", "tls://a:1?ca_file=/nonexistent"], None),
        (["probe", "a:1", "--timeout", "soon"], None),
        (["probe", "a:1", "--timeout", "-1"], None),
        (["probe", "a:1", "--count", "0"], "count=0: must be an integer, 1 or more"),
        (["probe", "a:1", "--count", "many"], "count='many': must be an integer, 1 or more"),
        (["demo", "now"], "arguments='now': are unknown; see aioconnect --help"),
        (["explain"], None),
        (["explain", "ECONREFUSED"], None),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str | None, capsys: Capture) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"aioconnect: [\w.-]+=.*: .+\n", err)
    assert "secret" not in err
    assert out == "" or arguments[1].startswith("tls://")
    if message is not None:
        assert err == f"aioconnect: {message}\n"


def test_every_problem_has_its_line(capsys: Capture) -> None:
    assert main(["probe", "a:0", "--timeout", "x", "--count", "y"]) == 2
    assert [line.split("=")[0] for line in capsys.readouterr().err.splitlines()] == [
        "aioconnect: port",
        "aioconnect: timeout",
        "aioconnect: count",
    ]


def test_without_a_command_it_says_how_to_use_it(capsys: Capture) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: aioconnect")


@pytest.mark.parametrize("arguments", [["--help"], ["probe", "--help"], ["demo", "--help"], ["explain", "--help"]])
def test_help(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: aioconnect")
    assert err == ""


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aioconnect {aioconnect.__version__}\n"


def test_arguments_come_from_the_process_by_default(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["aioconnect", "explain", "EOF"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("EOF: ")


# explain


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ECONNREFUSED"], "ECONNREFUSED"),
        (["-2"], "EAI_NONAME"),
        (["[Errno", "111]", "Connection", "refused"], "ECONNREFUSED"),
        (["OSError: [Errno 113] No route to host"], "EHOSTUNREACH"),
    ],
)
def test_explain(arguments: list[str], code: str, capsys: Capture) -> None:
    assert main(["explain", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{code}: ")
    assert err == ""


def test_explain_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Traceback ...\nConnectionResetError: Connection lost\n"))
    assert main(["explain", "-"]) == 0
    assert capsys.readouterr().out.startswith("ECONNRESET: ")


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("explain", "EACCES"),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            env=environment(),
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


# probe


def probed(target: str, capsys: Capture, *options: str) -> tuple[int, dict[str, Any]]:
    status = main(["probe", target, "--json", *options])
    out, err = capsys.readouterr()
    assert err == ""
    document: dict[str, Any] = json.loads(out)
    return status, document


def test_probe_says_what_it_found(listening: int, capsys: Capture) -> None:
    assert main(["probe", f"127.0.0.1:{listening}"]) == 0
    expected = rf"tcp://127\.0\.0\.1:{listening}\n  127\.0\.0\.1:{listening}  connected in \d+\.\d ms\nreachable\n"
    assert re.fullmatch(expected, capsys.readouterr().out)


def test_probe_says_what_refused(refusing: int, capsys: Capture) -> None:
    assert main(["probe", f"127.0.0.1:{refusing}"]) == 1
    _, line, verdict = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"  127\.0\.0\.1:{refusing}  ECONNREFUSED after \d+\.\d ms: connection refused", line)
    assert verdict == "not reachable; see: aioconnect explain ECONNREFUSED"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, listening: int, refusing: int) -> None:
    """``two.test`` has two addresses, of which the second answers; no other name exists."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **keywords: Any) -> list[Any]:
        if host == "two.test":
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", found)) for found in (refusing, listening)
            ]
        if host.endswith(".test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, port, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("names")
def test_probe_dials_every_address(listening: int, refusing: int, capsys: Capture) -> None:
    assert main(["probe", "two.test:80"]) == 0
    title, name, first, second, verdict = capsys.readouterr().out.splitlines()
    assert title == "tcp://two.test:80"
    assert re.fullmatch(r"  two\.test: 2 addresses in \d+\.\d ms", name)
    assert re.match(rf"  127\.0\.0\.1:{refusing} +ECONNREFUSED", first)
    assert re.match(rf"  127\.0\.0\.1:{listening} +connected", second)
    assert verdict == "reachable, 1 of 2 addresses; see: aioconnect explain ECONNREFUSED"


@pytest.mark.usefixtures("names")
def test_probe_of_a_name_that_does_not_exist(capsys: Capture) -> None:
    assert main(["probe", "none.test:80"]) == 1
    _, name, verdict = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  none\.test: EAI_NONAME after \d+\.\d ms: name or service not known", name)
    assert verdict == "not reachable; see: aioconnect explain EAI_NONAME"


@pytest.mark.usefixtures("names")
def test_probe_of_several_targets(capsys: Capture) -> None:
    status, document = probed("tcp://two.test:80,none.test:81", capsys)
    assert status == 0
    (look,) = document["rounds"]
    assert [(name["host"], name["port"], name["addresses"]) for name in look["names"]] == [
        ("two.test", 80, 2),
        ("none.test", 81, 0),
    ]
    assert [name["error"] and name["error"]["code"] for name in look["names"]] == [None, "EAI_NONAME"]
    assert [address["host"] for address in look["addresses"]] == ["two.test", "two.test"]


@pytest.mark.usefixtures("names")
def test_probe_of_a_service(listening: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with dns_server() as zone:
        resolver = functools.partial(ServiceResolver, nameservers=zone.nameserver)
        monkeypatch.setattr(probing, "ServiceResolver", resolver)
        zone.services["_db._tcp.none.test"] = SERVFAIL
        zone.services["_db._tcp.two.test"] = [SRV(20, 0, 81, "none.test"), SRV(10, 0, 80, "two.test")]
        assert main(["probe", "srv+tcp://_db._tcp.two.test"]) == 0
        title, service, first, second, *_ = capsys.readouterr().out.splitlines()
        assert title == "srv+tcp://_db._tcp.two.test"
        assert re.fullmatch(r"  _db\._tcp\.two\.test: 2 hosts in \d+\.\d ms", service)
        assert re.match(r"  two\.test: 2 addresses", first)
        assert re.match(r"  none\.test: EAI_NONAME", second)
        status, document = probed("srv+tcp://_db._tcp.none.test", capsys)
    assert status == 1
    (name,) = document["rounds"][0]["names"]
    assert (name["host"], name["port"], name["addresses"]) == ("_db._tcp.none.test", None, 0)
    assert name["error"]["code"] == "EAI_AGAIN"


def test_a_timeout_ends_a_look(capsys: Capture) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
    ):
        status, document = probed(f"127.0.0.1:{full.getsockname()[1]}", capsys, "--timeout", "200ms")
    (address,) = document["rounds"][0]["addresses"]
    assert status == 1
    assert address["error"]["code"] == "ETIMEDOUT"
    assert 150 < address["ms"] < 5000


def test_count_looks_again_and_sums_up(listening: int, capsys: Capture) -> None:
    assert main(["probe", f"127.0.0.1:{listening}", "--count", "3", "--interval", "10ms"]) == 0
    *looks, total, spread = capsys.readouterr().out.splitlines()
    assert looks.count("reachable") == 3
    assert total == "3 looks, reachable in 3"
    pattern = r"  127\.0\.0\.1:\d+  reached 3 times, \d+\.\d / \d+\.\d / \d+\.\d ms \(least, mean, most\)"
    assert re.fullmatch(pattern, spread)


def test_probe_of_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("app.sock")
        sock.listen()
        status, document = probed("unix:app.sock", capsys)
    assert status == 0
    (look,) = document["rounds"]
    assert look["names"] == []
    (address,) = look["addresses"]
    assert (address["address"], address["host"], address["family"]) == ("app.sock", None, "unix")
    assert main(["probe", "unix:none.sock"]) == 1
    assert "ENOENT" in capsys.readouterr().out


DOCUMENT = {"schema", "target", "reachable", "rounds"}
ROUND = {"reachable", "names", "addresses"}
NAME = {"host", "port", "ms", "addresses", "error"}
ADDRESS = {"address", "host", "family", "ok", "ms", "error", "tls"}
ERROR = {"code", "errno", "kind", "phase", "text"}
TLS = {"ms", "version", "cipher", "alpn", "verified", "certificate"}
CERTIFICATE = {"subject", "issuer", "names", "not_before", "not_after", "days_left"}


def test_json_has_the_fields_it_is_documented_to_have(refusing: int, capsys: Capture) -> None:
    status, document = probed(f"localhost:{refusing}", capsys, "--count", "2", "--interval", "1ms")
    assert status == 1
    assert set(document) == DOCUMENT
    assert (document["schema"], document["target"]) == (1, f"tcp://localhost:{refusing}")
    assert document["reachable"] is False
    assert len(document["rounds"]) == 2
    for look in document["rounds"]:
        assert set(look) == ROUND
        assert [set(name) for name in look["names"]] == [NAME]
        for address in look["addresses"]:
            assert set(address) == ADDRESS
            assert (address["ok"], address["tls"]) == (False, None)
            assert set(address["error"]) == ERROR
            assert address["error"]["code"] == "ECONNREFUSED"
            assert (address["error"]["kind"], address["error"]["phase"]) == ("transient", "connect")


def test_a_certificate_that_is_accepted(tls_server: Callable[..., int], ca_file: Path, capsys: Capture) -> None:
    port = tls_server("localhost", not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=30, hours=1))
    target = f"tls://127.0.0.1:{port}?server_hostname=localhost&ca_file={ca_file}&alpn=h2"
    status, document = probed(target, capsys)
    assert status == 0
    (address,) = document["rounds"][0]["addresses"]
    tls = address["tls"]
    assert set(tls) == TLS
    assert (tls["verified"], tls["version"], tls["alpn"]) == (True, "TLSv1.3", "h2")
    assert tls["cipher"].startswith("TLS_")
    assert set(tls["certificate"]) == CERTIFICATE
    assert tls["certificate"]["names"] == ["localhost"]
    assert tls["certificate"]["days_left"] == 30
    assert "Test CA" in tls["certificate"]["issuer"]
    assert dt.datetime.fromisoformat(tls["certificate"]["not_after"]).tzinfo is dt.UTC

    assert main(["probe", target]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^    TLSv1\.3, TLS_\w+, ALPN h2 in \d+\.\d ms$", out, re.MULTILINE)
    assert re.search(r"^    valid        [\d-]+ to [\d-]+, 30 days left$", out, re.MULTILINE)


@pytest.mark.parametrize("case", ["expired", "another name", "unknown authority"])
def test_a_certificate_that_is_refused_is_shown(
    case: str, tls_server: Callable[..., int], ca_file: Path, capsys: Capture
) -> None:
    now = dt.datetime.now(dt.UTC)
    if case == "expired":
        port = tls_server("localhost", not_before=now - dt.timedelta(days=9), not_after=now - dt.timedelta(days=2))
    else:
        port = tls_server("other.test" if case == "another name" else "localhost")
    trusted = "" if case == "unknown authority" else f"&ca_file={ca_file}"
    target = f"tls://127.0.0.1:{port}?server_hostname=localhost{trusted}"
    status, document = probed(target, capsys)
    assert status == 1
    (address,) = document["rounds"][0]["addresses"]
    assert address["ok"] is False
    assert address["error"]["code"] == "CERTIFICATE_VERIFY_FAILED"
    assert address["error"]["phase"] == "tls"
    assert address["tls"]["verified"] is False
    assert address["tls"]["version"] == "TLSv1.3"
    assert address["tls"]["certificate"]["names"] == ["other.test" if case == "another name" else "localhost"]
    assert "Test CA" in address["tls"]["certificate"]["issuer"]
    assert (address["tls"]["certificate"]["days_left"] < 0) == (case == "expired")

    assert main(["probe", target]) == 1
    out = capsys.readouterr().out
    why = {"expired": "it has expired", "another name": "it is for another name"}
    assert f"    that is, {why.get(case, 'its ')}" in out
    assert "not reachable; see: aioconnect explain CERTIFICATE_VERIFY_FAILED" in out
    assert ("expired 2 days ago" in out) == (case == "expired")


def test_a_peer_that_speaks_no_tls(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=lambda: greet(sock))
        thread.start()
        status, document = probed(f"tls://127.0.0.1:{sock.getsockname()[1]}", capsys)
        thread.join()
    assert status == 1
    (address,) = document["rounds"][0]["addresses"]
    assert (address["error"]["code"], address["error"]["phase"]) == ("WRONG_VERSION_NUMBER", "tls")
    assert address["tls"]["certificate"] is None


def greet(listener: socket.socket) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.sendall(b"220 mail.example ESMTP\r\n")
        while sock.recv(1024):
            pass


def test_the_private_name_that_tells_of_a_refused_certificate_is_there() -> None:
    """`probe` shows a certificate that was refused by way of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    secured: Any = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    assert callable(secured._sslobj.get_unverified_chain)


# demo


@pytest.fixture(scope="module")
def demos() -> dict[str, subprocess.CompletedProcess[str]]:
    """Run at once: most of the time they wait."""
    cases = {"first": ("demo",), "second": ("demo",), "uvloop": ("demo", "--uvloop")}
    with ThreadPoolExecutor(len(cases)) as pool:
        return dict(zip(cases, pool.map(lambda arguments: finished(*arguments), cases.values()), strict=True))


def story(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The output without what a clock or the kernel chose."""
    return [re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["first", "second", "uvloop"])
def test_the_demo_ends_with_the_reply(case: str, demos: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = demos[case]
    if case == "uvloop" and "must be installed" in done.stderr:
        pytest.skip("uvloop is not installed")
    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "The server replies: hello, world"
    met = re.findall(r"^ +\d+ +(\d) +127\.0\.0\.1:\d+ +([A-Z_]*)", done.stdout, re.MULTILINE)
    second = met[-6:]
    assert second == [
        ("1", "ECONNREFUSED"),
        ("2", "ECONNREFUSED"),
        ("3", "ECONNRESET"),
        ("4", "ETIMEDOUT"),
        ("5", "NOT_READY"),
        ("6", ""),
    ]
    assert all(code == "ECONNREFUSED" for _, code in met[:-6])
    assert "aioconnect.errors.ConnectRefused:" in lines
    assert all(len(line) <= 100 for line in lines if "attempts in" not in line)


@pytest.mark.slow
def test_the_demo_tells_the_same_story_each_time(demos: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert story(demos["first"]) == story(demos["second"])


@pytest.mark.slow
def test_an_interrupt_ends_it_quietly() -> None:
    with subprocess.Popen(
        command("demo"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        # The header of the timeline: the event loop runs.
        while not process.stdout.readline().startswith("    ms"):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (130, "")


def test_without_uvloop_the_demo_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert main(["demo", "--uvloop"]) == 2
    assert capsys.readouterr().err.startswith("aioconnect: uvloop=None: must be installed")
