"""What a piece of code leaves behind: open sockets and pipes, running tasks, complaints of the event loop.

before = Footprint.take(loop)
with LogWatch() as log:
    await my_service()
assert not Footprint.take(loop).since(before)
assert log.texts == []
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from aioconnect.testing.tasks import where

__all__ = ("FD_DIRECTORY", "Descriptor", "Footprint", "LogWatch", "open_fds", "settling")

FD_DIRECTORY = next((path for path in ("/proc/self/fd", "/dev/fd") if Path(path).is_dir()), None)
"""Where the system lists the descriptors of this process; Windows has no such place, and none are found there."""


class Descriptor(NamedTuple):
    """An open socket or pipe. The inode tells it from another one that was given the same number later."""

    number: int
    kind: str
    inode: int

    def __str__(self) -> str:
        return f"fd {self.number}, {self.kind} {self._ends()}".rstrip()

    def _ends(self) -> str:
        if self.kind != "socket":
            return ""
        names = list[str]()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.number)) as sock:
            names.append(repr(sock.getsockname()))
            names.append(repr(sock.getpeername()))
        return " -> ".join(names)


def open_fds() -> frozenset[Descriptor]:
    """The sockets and pipes of this process. Not its files: imports and other tools open and close them."""
    found: list[Descriptor] = []
    # A tenth of the time of Path.iterdir.
    for name in os.listdir(FD_DIRECTORY) if FD_DIRECTORY else ():  # noqa: PTH208
        try:
            status = os.fstat(int(name))
        except OSError:
            # The descriptor by which the directory was read.
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.append(Descriptor(int(name), "socket", status.st_ino))
        elif stat.S_ISFIFO(status.st_mode):
            found.append(Descriptor(int(name), "pipe", status.st_ino))
    return frozenset(found)


@dataclass(frozen=True)
class Footprint:
    """What is open and running at one moment. Tasks and simulated sockets are those of one loop, if there is one."""

    fds: frozenset[Descriptor]
    tasks: frozenset[asyncio.Task[Any]]
    simulated: frozenset[object] = frozenset()

    @classmethod
    def take(cls, loop: asyncio.AbstractEventLoop | None) -> Footprint:
        """What is there now."""
        if loop is None or loop.is_closed():
            return cls(open_fds(), frozenset())
        network = getattr(loop, "network", None)
        held: Iterable[object] = getattr(network, "open", ())
        return cls(open_fds(), frozenset(asyncio.all_tasks(loop)), frozenset(held))

    def since(self, before: Footprint) -> Footprint:
        """What is here and was not there ``before``."""
        return Footprint(self.fds - before.fds, self.tasks - before.tasks, self.simulated - before.simulated)

    def __bool__(self) -> bool:
        return bool(self.fds or self.tasks or self.simulated)

    def texts(self) -> list[str]:
        """A line for each."""
        return [
            *(f"left open: {descriptor}" for descriptor in sorted(self.fds)),
            *sorted(f"left open: {held}" for held in self.simulated),
            *sorted(f"left running: {task.get_name()} at {where(task)}" for task in self.tasks),
        ]


def settling(turns: int = 50, grace: float = 0.05) -> Iterator[None]:
    """Iterations in which to let the loop run: some at once, then one in each millisecond of ``grace`` seconds.

    Closing a transport takes a loop turn or two. What another thread or process has to do takes real time,
    which passes here without the loop's timers noticing, if the clock of the loop is a virtual one.
    """
    for _ in range(turns):
        yield
    end = time.monotonic() + grace
    while time.monotonic() < end:
        time.sleep(0.001)
        yield


class LogWatch(logging.Handler):
    """Collects warnings and errors of the ``asyncio`` logger, by which a loop's exception handler speaks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        # "Executing ... took 0.2 seconds", in debug mode only, is about the machine.
        if "took %.3f seconds" not in str(record.msg):
            self.texts.append(f"logged by asyncio: {self.format(record)}")

    def __enter__(self) -> Self:
        logging.getLogger("asyncio").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("asyncio").removeHandler(self)
