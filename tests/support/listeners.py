"""Real addresses on loopback that take a connection, refuse it, or say nothing at all."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

__all__ = ("closed_port", "listening", "mute")


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", port: int = 0, backlog: int = 100) -> Iterator[socket.socket]:
    """A listener that accepts nothing: the kernel takes connections all the same, up to its backlog."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        yield sock


def closed_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with listening(host) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def mute(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """The port of a listener whose accept queue is full: Linux drops the SYN, and the dial hears nothing."""
    with listening(host, port, backlog=0) as sock, socket.create_connection(sock.getsockname()[:2]):
        yield sock.getsockname()[1]
