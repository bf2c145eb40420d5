"""Peers that misbehave on purpose: raw TCP and TLS servers inside the test's own event loop.

`serve(script, ...)` listens on loopback and plays one script for each accepted connection. A script is a
coroutine function over a `Wire`, which sends, receives, resets and ends exactly when told to. TLS is spoken
through `ssl.MemoryBIO` rather than the loop's own transports: so both loops see the same bytes, a peer can
stop in the middle of a flight, and it can put bytes of its choice on the wire after the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

__all__ = (
    "PLAIN_ANSWERS",
    "Authority",
    "Peer",
    "Script",
    "SecureWire",
    "Wire",
    "alert",
    "alert_then_fin",
    "answer",
    "answer_then_fin",
    "client_certificate_refused",
    "close_notify_never_answered",
    "echo_hello",
    "fin_after_hello",
    "fin_at_once",
    "garbage_after_handshake",
    "half_close_after_hello",
    "plain_echo",
    "reset_after_handshake",
    "reset_after_hello",
    "reset_at_once",
    "say_then_close_notify",
    "say_then_truncate",
    "serve",
    "silent",
    "stall_inside_flight",
    "tls_echo",
    "tls_refusing",
)

CHUNK = 65536

Result = TypeVar("Result")


class Wire:
    """One accepted connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    async def receive(self) -> bytes:
        return await self.loop.sock_recv(self.sock, CHUNK)

    async def receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.loop.sock_recv(self.sock, size - len(data))
            if not more:
                raise ConnectionAbortedError("the client left")
            data += more
        return data

    async def client_hello(self) -> bytes:
        """The whole first TLS record: a close with bytes unread would send RST where FIN is wanted."""
        header = await self.receive_exactly(5)
        return header + await self.receive_exactly(int.from_bytes(header[3:5], "big"))

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    def half_close(self) -> None:
        """FIN, still reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """FIN; RST instead if input is unread, or as soon as more of it arrives."""
        self.sock.close()

    def reset(self) -> None:
        """RST: a close with SO_LINGER on and a time of 0 (socket(7))."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() == -1

    async def drain(self) -> None:
        """Read until the client has closed its side."""
        while await self.receive():
            pass

    async def handshake(self, context: ssl.SSLContext) -> SecureWire:
        secure = SecureWire(self, context)
        await secure.handshake()
        return secure


class SecureWire:
    """The server's side of TLS over a `Wire`."""

    def __init__(self, wire: Wire, context: ssl.SSLContext) -> None:
        self.wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        await self._drive(self.tls.do_handshake)

    async def receive(self) -> bytes:
        """Plain text; b"" after the client's close_notify."""
        return await self._drive(lambda: self.tls.read(CHUNK))

    async def send(self, data: bytes) -> None:
        await self._drive(lambda: self.tls.write(data))

    async def close_notify(self) -> None:
        """Send ours without waiting for theirs."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.wire.send(self._outgoing.read())

    async def _drive(self, step: Callable[[], Result]) -> Result:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return result
            if data := await self.wire.receive():
                self._incoming.write(data)
            else:
                self._incoming.write_eof()


Script = Callable[[Wire], Awaitable[None]]


@dataclass
class Peer:
    """A listening peer: where it is, how often it was called, and whether its callers have let go."""

    host: str
    port: int
    accepted: int = 0
    open: int = 0
    failures: list[BaseException] = field(default_factory=list)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    async def released(self, seconds: float = 2.0) -> None:
        """Wait until no caller holds a connection; TimeoutError says that one was left open."""
        async with asyncio.timeout(seconds):
            while self.open:
                self._released.clear()
                await self._released.wait()

    async def _play(self, sock: socket.socket, script: Script) -> None:
        wire = Wire(sock)
        try:
            await script(wire)
            if not wire.closed:
                await wire.drain()
        except OSError:
            pass  # the client reset us, or TLS failed as the script meant it to (SSLError is an OSError)
        except Exception as error:  # noqa: BLE001  (raised by `serve`, where a test sees it)
            self.failures.append(error)

    def _accept(self, listener: socket.socket, scripts: Sequence[Script], playing: set[asyncio.Task[None]]) -> None:
        """Called when there is somebody to accept. Not `loop.sock_accept`: cancelled, it may forget a socket."""
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        script = scripts[min(self.accepted, len(scripts) - 1)]
        self.accepted += 1
        self.open += 1
        task = asyncio.ensure_future(self._play(sock, script))
        playing.add(task)

        def over(_: object) -> None:  # also of a task that is cancelled before its first step
            sock.close()
            self.open -= 1
            self._released.set()
            playing.discard(task)

        task.add_done_callback(over)


@contextlib.asynccontextmanager
async def serve(*scripts: Script, host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    """Listen on a free port; the n-th connection gets the n-th script, later ones the last."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=256)
    listener.setblocking(False)
    peer = Peer(host, listener.getsockname()[1])
    playing: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    loop.add_reader(listener, peer._accept, listener, scripts, playing)
    try:
        yield peer
    finally:
        loop.remove_reader(listener)
        tasks = list(playing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()
    if peer.failures:
        raise BaseExceptionGroup("a peer's script failed", peer.failures)


# --------------------------------------------------------------------------- scripts without TLS

PLAIN_ANSWERS = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "smtp": b"220 mail.example ESMTP Postfix\r\n",
    "redis": b"-ERR Protocol error: unbalanced quotes in request\r\n",
    # Protocol 10 greeting: length, sequence number, then the server's version and salt.
    "mysql": b"\x4a\x00\x00\x00\x0a8.0.36\x00" + bytes(range(1, 67)),
    "zeros": bytes(64),
    "0xff": b"\xff" * 64,
}


def answer(data: bytes) -> Script:
    """Answer the ClientHello with these bytes and wait for the client to give up."""

    async def script(wire: Wire) -> None:
        await wire.client_hello()
        await wire.send(data)

    return script


def answer_then_fin(data: bytes) -> Script:
    """Answer the ClientHello with these bytes and close."""

    async def script(wire: Wire) -> None:
        await wire.client_hello()
        await wire.send(data)
        wire.half_close()

    return script


def alert_record(level: int, description: int) -> bytes:
    """A plain TLS 1.2 alert record (RFC 5246 section 7.2); level 1 is warning, 2 is fatal."""
    return bytes((21, 3, 3, 0, 2, level, description))


def alert(description: int, level: int = 2) -> Script:
    return answer(alert_record(level, description))


def alert_then_fin(description: int, level: int) -> Script:
    return answer_then_fin(alert_record(level, description))


async def silent(wire: Wire) -> None:
    """Take everything, say nothing."""
    await wire.drain()


async def reset_at_once(wire: Wire) -> None:
    wire.reset()


async def fin_at_once(wire: Wire) -> None:
    """Close before the ClientHello: the client sees FIN, or the RST that its ClientHello provokes."""
    wire.close()


async def reset_after_hello(wire: Wire) -> None:
    await wire.client_hello()
    wire.reset()


async def fin_after_hello(wire: Wire) -> None:
    await wire.client_hello()
    wire.close()


async def half_close_after_hello(wire: Wire) -> None:
    await wire.client_hello()
    wire.half_close()


async def echo_hello(wire: Wire) -> None:
    """An echo service, or a load balancer in a loop: the ClientHello comes back."""
    await wire.send(await wire.client_hello())


async def plain_echo(wire: Wire) -> None:
    while data := await wire.receive():
        await wire.send(data)


# --------------------------------------------------------------------------- scripts with TLS


def tls_echo(context: ssl.SSLContext) -> Script:
    """Echo until the client's close_notify, and answer that with ours."""

    async def script(wire: Wire) -> None:
        secure = await wire.handshake(context)
        while data := await secure.receive():
            await secure.send(data)
        await secure.close_notify()
        wire.half_close()

    return script


def tls_refusing(context: ssl.SSLContext) -> Script:
    """A handshake that is to fail on either side; the alert is sent and the client closes."""

    async def script(wire: Wire) -> None:
        with contextlib.suppress(ssl.SSLError):
            secure = await wire.handshake(context)
            await secure.receive()

    return script


def client_certificate_refused(context: ssl.SSLContext) -> Script:
    """TLS 1.3 with a client certificate missing, by a server that resets instead of lingering.

    The alert is followed by RST, so that the client may see either (python/cpython#83375).
    """

    async def script(wire: Wire) -> None:
        try:
            await wire.handshake(context)
        except ssl.SSLError:
            wire.reset()

    return script


def stall_inside_flight(context: ssl.SSLContext) -> Script:
    """Send the first half of the server's first flight and then nothing."""

    async def script(wire: Wire) -> None:
        secure = SecureWire(wire, context)
        secure._incoming.write(await wire.client_hello())
        with contextlib.suppress(ssl.SSLWantReadError):
            secure.tls.do_handshake()
        flight = secure._outgoing.read()
        await wire.send(flight[: len(flight) // 2])

    return script


def garbage_after_handshake(context: ssl.SSLContext, data: bytes, first: bytes = b"") -> Script:
    """Complete the handshake, say `first` under TLS, then put `data` on the wire in plain."""

    async def script(wire: Wire) -> None:
        secure = await wire.handshake(context)
        if first:
            await secure.send(first)
        await secure.receive()  # the client's first word: it has the connection in its hands
        await wire.send(data)

    return script


def reset_after_handshake(context: ssl.SSLContext) -> Script:
    """RST once the client has spoken."""

    async def script(wire: Wire) -> None:
        secure = await wire.handshake(context)
        await secure.receive()
        wire.reset()

    return script


def say_then_close_notify(context: ssl.SSLContext, data: bytes) -> Script:
    async def script(wire: Wire) -> None:
        secure = await wire.handshake(context)
        await secure.send(data)
        await secure.close_notify()
        wire.half_close()

    return script


def say_then_truncate(context: ssl.SSLContext, data: bytes) -> Script:
    """FIN without close_notify, which an attacker can forge (RFC 8446 section 6.1)."""

    async def script(wire: Wire) -> None:
        secure = await wire.handshake(context)
        await secure.send(data)
        wire.half_close()

    return script


def close_notify_never_answered(context: ssl.SSLContext) -> Script:
    """Echo, but neither answer the client's close_notify nor close."""

    async def script(wire: Wire) -> None:
        secure = await wire.handshake(context)
        while data := await secure.receive():
            await secure.send(data)

    return script


# --------------------------------------------------------------------------- certificates


@dataclass
class Authority:
    """A certificate authority with its file on disk, and servers' contexts certified by it.

    Make one per session: a key pair costs a millisecond or two.
    """

    directory: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.ca_file = self.directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def server_context(self, *names: str, days: tuple[float, float] = (-1, 30)) -> ssl.SSLContext:
        """A certificate for `names`, valid between now and these numbers of days."""
        now = dt.datetime.now(dt.UTC)
        begin, end = (now + dt.timedelta(days=day) for day in days)
        leaf = self.ca.issue_cert(*(names or ("localhost", "127.0.0.1")), not_before=begin, not_after=end)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        return context

    def write_files(self, name: str, *identities: str) -> tuple[Path, Path]:
        """(certificate, key) as files, for servers that are programs of their own."""
        leaf = self.ca.issue_cert(*(identities or ("localhost", "127.0.0.1")))
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        return cert, key

    def requiring_client_certificate(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = self.server_context()
        context.minimum_version = context.maximum_version = version
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def self_signed(self) -> ssl.SSLContext:
        """A leaf that is its own issuer."""
        return self._load("self-signed", *_make_leaf(ec.generate_private_key(ec.SECP256R1())))

    def self_signed_in_chain(self) -> ssl.SSLContext:
        """A good leaf sent with its root, which the client does not know."""
        other = trustme.CA()
        leaf = other.issue_cert("localhost", "127.0.0.1")
        chain = leaf.cert_chain_pems[0].bytes() + other.cert_pem.bytes()
        return self._load("chain", chain, leaf.private_key_pem.bytes())

    def weak_key(self) -> ssl.SSLContext:
        """A 1024-bit RSA key, which OpenSSL's security level 2 refuses (and level 0 lets us serve)."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        return self._load("weak", *_make_leaf(key), ciphers="DEFAULT@SECLEVEL=0")

    def _load(self, name: str, chain: bytes, key: bytes, ciphers: str = "DEFAULT") -> ssl.SSLContext:
        path = self.directory / f"{name}.pem"
        path.write_bytes(chain + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers(ciphers)
        context.load_cert_chain(path)
        return context


def _make_leaf(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private
