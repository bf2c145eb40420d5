"""A DNS server for the tests: the first label of a name says how the question is answered.

It speaks just enough of RFC 1035 for a stub resolver: one question, no EDNS. The answers are chosen by the name
and not by switches on the server, so that one server can serve any number of concurrent lookups that expect
different things. SRV records (RFC 2782) come from a `Zone`, over UDP as far as they fit, or else over TCP:

    with dns_server() as zone:
        zone.services["_db._tcp.example.test"] = [SRV(10, 0, 5432, "localhost", ttl=60)]
        ServiceResolver(nameservers=zone.nameserver)
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

A, CNAME, AAAA, SRV_TYPE = 1, 5, 28, 33
LONGEST_DATAGRAM = 512
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
MUTE = -1

# first label -> (response code to A, response code to AAAA, whether there are addresses)
BEHAVIOUR: Final = {
    "ok": (NOERROR, NOERROR, True),
    "nodata": (NOERROR, NOERROR, False),
    "nxdomain": (NXDOMAIN, NXDOMAIN, False),
    "servfail": (SERVFAIL, SERVFAIL, False),
    "refused": (REFUSED, REFUSED, False),
    "notimp": (NOTIMP, NOTIMP, False),
    "formerr": (FORMERR, FORMERR, False),
    "mute": (MUTE, MUTE, False),
    "ok4sf6": (NOERROR, SERVFAIL, True),
    "sf4ok6": (SERVFAIL, NOERROR, True),
    "nx4sf6": (NXDOMAIN, SERVFAIL, False),
}
ADDRESSES: Final = {
    A: socket.inet_pton(socket.AF_INET, "127.0.0.1"),
    AAAA: socket.inet_pton(socket.AF_INET6, "::1"),
}


def question(packet: bytes) -> tuple[list[str], int, bytes]:
    """The labels asked for, the record type, and the question section as it stood in the packet."""
    labels, offset = [], 12
    while length := packet[offset]:
        labels.append(packet[offset + 1 : offset + 1 + length].decode("ascii").lower())
        offset += 1 + length
    (kind,) = struct.unpack_from("!H", packet, offset + 1)
    return labels, kind, packet[12 : offset + 5]


class SRV(NamedTuple):
    """One record; the target is a domain name, without the final dot."""

    priority: int
    weight: int
    port: int
    target: str
    ttl: int = 300


class Alias(NamedTuple):
    """Another name to look under."""

    name: str
    ttl: int = 300


@dataclass
class Zone:
    """SRV records by name, or the code to answer with, `MUTE` included. It may change at any time."""

    nameserver: str = ""
    services: dict[str, list[SRV] | Alias | int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Names asked for, and by which protocol."""

    def reply(self, packet: bytes, protocol: str) -> bytes | None:
        """The answer to one query for services; that to any other is `reply`'s."""
        labels, kind, asked = question(packet)
        if kind != SRV_TYPE:
            return reply(packet)
        name = ".".join(labels)
        self.asked.append((name, protocol))
        answers: list[bytes] = []
        found = self.services.get(name, NXDOMAIN)
        while isinstance(found, Alias):
            answers.append(resource(name, CNAME, found.ttl, encoded(found.name)))
            name, found = found.name, self.services.get(found.name, NXDOMAIN)
        if found == MUTE:
            return None
        code, records = (found, []) if isinstance(found, int) else (NOERROR, found)
        for each in records:
            data = struct.pack("!3H", each.priority, each.weight, each.port) + encoded(each.target)
            answers.append(resource(name, SRV_TYPE, each.ttl, data))
        whole = answer(packet, asked, code, answers)
        if protocol == "udp" and len(whole) > LONGEST_DATAGRAM:
            return answer(packet, asked, code, (), truncated=True)
        return whole


def encoded(name: str) -> bytes:
    """A domain name, not compressed; "" is the root."""
    labels = [label.encode("ascii") for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def resource(name: str, kind: int, ttl: int, data: bytes) -> bytes:
    return encoded(name) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def answer(packet: bytes, asked: bytes, code: int, answers: Sequence[bytes], *, truncated: bool = False) -> bytes:
    flags = 0x8180 | code | (0x0200 if truncated else 0)  # response, recursion desired and available
    return packet[:2] + struct.pack("!5H", flags, 1, len(answers), 0, 0) + asked + b"".join(answers)


def reply(packet: bytes) -> bytes | None:
    """The answer to one query, or None where the server is to stay silent."""
    labels, kind, asked = question(packet)
    for_a, for_aaaa, has_addresses = BEHAVIOUR.get(labels[0], (NXDOMAIN, NXDOMAIN, False))
    code = for_aaaa if kind == AAAA else for_a
    if code == MUTE:
        return None
    answers = []
    if code == NOERROR and has_addresses and kind in ADDRESSES:
        answers.append(resource(".".join(labels), kind, 0, ADDRESSES[kind]))  # TTL 0, so that nobody caches it
    return answer(packet, asked, code, answers)


class DNSServer:
    """Answers on a bound UDP socket, and a listening TCP one, in threads of its own, until the block is left.

    The sockets come from the caller, because they have to be made inside the network namespace that they serve.
    """

    def __init__(self, udp: socket.socket, tcp: socket.socket | None = None, zone: Zone | None = None) -> None:
        self._zone = Zone() if zone is None else zone
        self._stopping = threading.Event()
        self._sockets = [udp] if tcp is None else [udp, tcp]
        serving = [self._serve_datagrams] if tcp is None else [self._serve_datagrams, self._serve_streams]
        self._threads = [threading.Thread(target=serve, name="dns", daemon=True) for serve in serving]

    def __enter__(self) -> Self:
        for sock in self._sockets:
            sock.settimeout(0.1)  # how long leaving the block may take
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _serve_datagrams(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                packet, client = self._sockets[0].recvfrom(LONGEST_DATAGRAM)
                if (found := self._reply(packet, "udp")) is not None:
                    self._sockets[0].sendto(found, client)

    def _serve_streams(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._sockets[1].accept()
                client.settimeout(1)
                with client, client.makefile("rb") as stream:
                    (length,) = struct.unpack("!H", stream.read(2))
                    if (found := self._reply(stream.read(length), "tcp")) is not None:
                        client.sendall(struct.pack("!H", len(found)) + found)

    def _reply(self, packet: bytes, protocol: str) -> bytes | None:
        try:
            return self._zone.reply(packet, protocol)
        except (IndexError, struct.error, UnicodeDecodeError):
            return None  # not a question; a stray packet must not end the server


@contextlib.contextmanager
def dns_server() -> Iterator[Zone]:
    """A server on the loopback, at the same port over UDP and TCP."""
    for _ in range(20):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:  # taken over UDP
            tcp.close()
            udp.close()
            continue
        zone = Zone(nameserver="{}:{}".format(*tcp.getsockname()))
        with DNSServer(udp, tcp, zone):
            yield zone
        return
    raise RuntimeError("no port is free over both UDP and TCP")
