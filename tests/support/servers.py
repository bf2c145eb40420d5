"""Real servers on loopback that a test may kill, freeze and start again: Redis and nginx, each with TLS.

They run in the foreground as children of the test process, in a directory of their own, on ports that they
keep over a restart, and are ended by their process id. A program that is not installed skips the tests that
need it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .peers import Authority

__all__ = ("Server", "nginx_server", "postgres_server", "redis_command", "redis_server")


@dataclass
class Server:
    """A program with a plain port, and a TLS port if that is not 0. `start()` does not wait for it to serve."""

    name: str
    command: Callable[[Server], Sequence[str]]
    directory: Path
    port: int = 0
    tls_port: int = 0
    extra: tuple[str, ...] = ()
    ending: int = signal.SIGTERM
    """The signal that makes it end by itself."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *extra: str) -> None:
        """Start it, with more arguments for this run."""
        assert not self.running
        self.extra = extra
        with (self.directory / "output.log").open("ab") as output:
            self.process = subprocess.Popen(
                self.command(self), cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def until_serving(self, seconds: float = 5.0) -> None:
        """Wait until both ports answer; RuntimeError with the program's own words if it ended instead."""
        deadline = time.monotonic() + seconds
        for port in filter(None, (self.port, self.tls_port)):
            while not _listens(port):
                if not self.running or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} does not serve: {self.output()[-500:]}")
                time.sleep(0.01)

    def ensure(self) -> None:
        """Serving, whatever the last test did to it."""
        if not self.running:
            self.start()
        self.thaw()
        self.until_serving()

    def kill(self) -> None:
        """SIGKILL: the kernel closes its sockets, with FIN if all input had been read and RST if not."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: the kernel still accepts connections for it, nobody answers them."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, and SIGKILL one that is still there after two seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        self.thaw()
        self.process.send_signal(self.ending)
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.kill()

    def output(self) -> str:
        logs = [path.read_text(errors="replace") for path in sorted(self.directory.glob("*.log"))]
        return "\n".join(logs)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    """Ports below Linux's ephemeral range, lest a client of a server that is down be given its port."""
    ports: list[int] = []
    for port in random.Random(os.getpid() ^ time.monotonic_ns()).sample(range(20000, 32000), 200):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free port from 20000 to 32000")


def _program(name: str) -> str:
    # Debian keeps several versions of PostgreSQL beside each other, none of them in a PATH.
    elsewhere = map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    path = shutil.which(name) or shutil.which(name, path=":".join(("/usr/sbin:/usr/local/sbin:/sbin", *elsewhere)))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def _running(server: Server, without_tls: str | None) -> Iterator[Server]:
    """Start on free ports (again on others if somebody else was faster), end it at the exit."""
    server.directory.mkdir(parents=True, exist_ok=True)
    try:
        for attempts_left in (2, 1, 0):
            server.port, server.tls_port = _free_ports(2) if without_tls else (*_free_ports(1), 0)
            server.start()
            try:
                server.until_serving()
                break
            except RuntimeError:
                server.stop()
                if without_tls and without_tls in server.output():
                    pytest.skip(f"{server.name} is built without TLS")
                if not attempts_left:
                    raise
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis_server(directory: Path, authority: Authority) -> Iterator[Server]:
    program = _program("redis-server")
    cert, key = authority.write_files("redis")

    def command(server: Server) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": server.port,
            "tls-port": server.tls_port,
            "tls-cert-file": cert,
            "tls-key-file": key,
            "tls-ca-cert-file": authority.ca_file,
            "tls-auth-clients": "no",
            "dir": directory,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        return [program, *flags, *server.extra]

    with _running(Server("redis-server", command, directory), "Bad directive") as server:
        yield server


def redis_command(server: Server, *command: str, password: str | None = None) -> bytes:
    """One command over the plain port, blocking; the first line of the reply."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=2) as sock,
        sock.makefile("rwb") as stream,
    ):
        replies = b""
        for words in ((("AUTH", password),) if password else ()) + (command,):
            stream.write(b"*%d\r\n" % len(words))
            for word in words:
                stream.write(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
            stream.flush()
            replies = stream.readline()
        return replies


NGINX = """
daemon off;
master_process off;  # one process: with a master, SIGKILL would leave workers behind that still serve
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        location / {{ return 200 "pong"; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx_server(directory: Path, authority: Authority) -> Iterator[Server]:
    program = _program("nginx")
    cert, key = authority.write_files("nginx")

    def command(server: Server) -> list[str]:
        config = directory / "nginx.conf"
        values = {"port": server.port, "tls_port": server.tls_port, "cert": cert, "key": key}
        config.write_text(NGINX.format(directory=directory, **values))
        return [program, "-e", str(directory / "error.log"), "-p", str(directory), "-c", str(config)]

    with _running(Server("nginx", command, directory), 'the "ssl" parameter requires') as server:
        yield server


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """PostgreSQL, which trusts whoever connects. It does not run as root, so it needs a directory of its own."""
    initdb, program = _program("initdb"), _program("postgres")
    user, become = None, list[str]()
    if os.geteuid() == 0:
        user = "postgres"
        become = [_program("setpriv"), "--reuid", user, "--regid", user, "--clear-groups"]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        if user:
            shutil.chown(directory, user, user)
        data = directory / "data"
        options = ["--auth", "trust", "--username", "postgres", "--no-sync", "--no-instructions"]
        subprocess.run([*become, initdb, "-D", str(data), *options], check=True, capture_output=True, cwd=directory)

        def command(server: Server) -> list[str]:
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": server.port,
                "unix_socket_directories": "",
                "fsync": "off",
                "shared_buffers": "1MB",
            }
            flags = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
            return [*become, program, "-D", str(data), *flags, *server.extra]

        # SIGTERM would wait for the clients to leave.
        with _running(Server("postgres", command, directory, ending=signal.SIGINT), None) as server:
            yield server
