"""The other side: a process that accepts, and keeps the last sockets open so that the client closes first.

`python -m tests.benchmarks.server KEEP` prints its ports as one JSON object and ends when its input does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import selectors
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.measure import core

__all__ = ("ROOT", "Served", "serving")

ROOT = Path(__file__).resolve().parents[2]
PORTS = 16
BACKLOG = 4096
# Below the ports that systems take to dial from, as services have them.
CANDIDATES = range(20000, 30000)


class Served(NamedTuple):
    """Where a server listens, and a port that is bound but refuses."""

    ports: tuple[int, ...]
    closed: int


@contextlib.contextmanager
def serving(keep: int = 64) -> Generator[Served]:
    """A server on all addresses of this host, in a process of its own on the last core."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.server", str(keep)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            found = json.loads(process.stdout.readline())
            yield Served(tuple(found["ports"]), found["closed"])
        finally:
            process.stdin.close()
            process.wait(10)


def listener(port: int) -> socket.socket:
    """For IPv6 and IPv4 at once, since a system may resolve localhost to either."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)


def listening(count: int) -> Iterator[socket.socket]:
    """On ports that are free, beginning anywhere: another run may be in progress."""
    candidates = iter(random.sample(CANDIDATES, len(CANDIDATES)))
    while count:
        try:
            yield listener(next(candidates))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
        else:
            count -= 1


def main(keep: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        # The parent is pinned already, which is inherited. Of all cores asked for, the kernel gives those allowed.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        os.sched_setaffinity(0, core(-1))
    kept: deque[socket.socket] = deque()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        listeners = [stack.enter_context(each) for each in listening(PORTS)]
        refusing = stack.enter_context(socket.socket())
        refusing.bind(("0.0.0.0", 0))
        ports = [each.getsockname()[1] for each in listeners]
        print(json.dumps({"ports": ports, "closed": refusing.getsockname()[1]}), flush=True)
        for each in listeners:
            each.setblocking(False)
            selector.register(each, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                accept_all(key.fileobj, kept, keep)  # type: ignore[arg-type]


def accept_all(sock: socket.socket, kept: deque[socket.socket], keep: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            kept.append(sock.accept()[0])
            if len(kept) > keep:
                kept.popleft().close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
