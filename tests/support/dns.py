"""A DNS server for the tests: the first label of a name says how the question is answered.

It speaks just enough of RFC 1035 for glibc's stub resolver: one question over UDP, no EDNS, no TCP. The
answers are chosen by the name and not by switches on the server, so that one server can serve any number of
concurrent lookups that expect different things.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Final, Self

A, AAAA = 1, 28
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


def reply(packet: bytes) -> bytes | None:
    """The answer to one query, or None where the server is to stay silent."""
    labels, kind, asked = question(packet)
    for_a, for_aaaa, has_addresses = BEHAVIOUR.get(labels[0], (NXDOMAIN, NXDOMAIN, False))
    code = for_aaaa if kind == AAAA else for_a
    if code == MUTE:
        return None
    answer = b""
    if code == NOERROR and has_addresses and kind in ADDRESSES:
        data = ADDRESSES[kind]
        # 0xC00C points back at the name in the question (RFC 1035, 4.1.4); TTL 0, so that nobody caches it.
        answer = struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data
    flags = 0x8180 | code  # response, recursion desired and available
    return packet[:2] + struct.pack("!5H", flags, 1, bool(answer), 0, 0) + asked + answer


class DNSServer:
    """Answers on a bound UDP socket, in a thread of its own, until the block is left.

    The socket comes from the caller, because it has to be made inside the network namespace that it serves.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dns", daemon=True)

    def __enter__(self) -> Self:
        self._sock.settimeout(0.1)  # how long leaving the block may take
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                packet, client = self._sock.recvfrom(512)
            except TimeoutError:
                continue
            try:
                answer = reply(packet)
            except (IndexError, struct.error, UnicodeDecodeError):
                continue  # not a question; a stray packet must not end the server
            if answer is not None:
                self._sock.sendto(answer, client)
