"""Dials what it is told to and prints what came of it: a program for where the test process itself cannot go.

`python -m tests.support.child` is run inside a network namespace, as another user, or under a resource
limit; `Children` runs any number of them side by side.

Reads one JSON object from standard input:

    {"loop": "asyncio" | "uvloop",
     "warm_up": [{...}, ...],                 # optional; scenarios to run first, unrestricted and one by one
     "limits": {"NOFILE": 0, "NPROC": 1},     # optional; see `restrict`
     "uid": 61234,                            # optional; become this user after all imports
     "scenarios": [{"name": ..., "host": ..., "port": ..., ...}, ...]}

All scenarios run concurrently on one loop, so that the whole list takes as long as its slowest entry. One is
"host" and "port" with perhaps "kw" (more arguments of `open_connection`), or "path", or "endpoint" (arguments
of `Endpoint`, for `connect`). It may have "policy" (arguments of `Policy`; errno sets by name), "fill"
(connections to make and hold beforehand), "kill" (have the kernel destroy our socket after so many seconds)
and "use" (what to do with the streams).

Prints one JSON object: the outcome of each scenario by name, and what the process was left with.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import logging
import operator
import os
import pickle
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final, Self

import aioconnect

SETTLE: Final = 1.5  # seconds that a thread of the resolver may still need after the last scenario
LIMIT: Final = 40.0  # seconds for a whole request
ROOT: Final = Path(__file__).resolve().parent.parent.parent
HIGHEST_FD: Final = 512  # more than a child ever opens
POLICY: Final = {"max_attempts": 1, "attempt_timeout": 8, "timeout": 20}

Scenario = dict[str, Any]
Outcome = dict[str, Any]
Report = dict[str, Any]


def describe(exc: BaseException, nested: bool = False) -> Outcome:
    """An exception as JSON: everything about it that a test may want to look at."""
    told: Outcome = {
        "type": type(exc).__name__,
        "mro": [base.__name__ for base in type(exc).__mro__],
        "text": str(exc),
        "errno": getattr(exc, "errno", None),
        "cause": type(exc.__cause__).__name__ if exc.__cause__ is not None else None,
    }
    for field in ("code", "kind", "phase", "address", "elapsed", "stop_reason", "source", "attempt_count"):
        told[field] = getattr(exc, field, None)
    if nested:
        return told
    told["errors"] = [describe(each, nested=True) for each in getattr(exc, "errors", ())]
    told["attempts"] = [type(each.error).__name__ for each in getattr(exc, "attempts", ())]
    told["notes"] = list(getattr(exc, "__notes__", ()))
    told["pickles"] = describe_pickled(exc) == told
    return told


def describe_pickled(exc: BaseException) -> Outcome:
    copy = pickle.loads(pickle.dumps(exc))
    told = describe(copy, nested=True)
    told["errors"] = [describe(each, nested=True) for each in getattr(copy, "errors", ())]
    told["attempts"] = [type(each.error).__name__ for each in getattr(copy, "attempts", ())]
    told["notes"] = list(getattr(copy, "__notes__", ()))
    return told


def make_policy(settings: dict[str, Any]) -> aioconnect.Policy:
    settings = POLICY | settings
    for name in ("retry_on", "never_retry_on"):
        if name in settings:
            sets = (getattr(aioconnect, each) for each in settings[name])
            settings[name] = functools.reduce(operator.or_, sets)
    return aioconnect.Policy(**settings)


def tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where socket addresses are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def dial(scenario: Scenario) -> Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    policy = make_policy(scenario.get("policy", {}))
    if "endpoint" in scenario:
        return dial_endpoint(scenario["endpoint"], policy)
    if "path" in scenario:
        return aioconnect.open_unix_connection(scenario["path"], policy=policy)
    kw = tuples(scenario.get("kw", {}))
    return aioconnect.open_connection(scenario["host"], scenario["port"], policy=policy, **kw)


async def dial_endpoint(
    settings: dict[str, Any], policy: aioconnect.Policy
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    settings = tuples(settings)
    if "keepalive" in settings:
        settings["keepalive"] = aioconnect.Keepalive(*settings["keepalive"])
    connection = await aioconnect.connect(aioconnect.Endpoint(**settings), policy=policy)
    return connection.reader, connection.writer


def fill(address: str, port: int, source: str | None, times: int) -> list[socket.socket]:
    """Occupy local ports with real connections."""
    bind_to = (source, 0) if source is not None else None
    return [socket.create_connection((address, port), 5, bind_to) for _ in range(times)]


async def kill_later(seconds: float, which: str) -> None:
    await asyncio.sleep(seconds)
    kill(which)


def kill(which: str) -> None:
    """Have the kernel destroy sockets (SOCK_DESTROY), as Android, Cilium and administrators do."""
    # ss complains about sockets that it cannot kill and did not have to, so its exit status says nothing.
    subprocess.run(["ss", "-K", *which.split()], capture_output=True, timeout=10, check=False)


async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, steps: list[str]) -> list[Outcome]:
    """Do these things with the streams, and tell of each how it ended."""

    async def write() -> None:
        writer.write(b"x" * 100)
        await writer.drain()

    async def read() -> str:
        return (await reader.read(100)).decode()

    async def destroy() -> None:
        kill(f"state established sport = :{writer.get_extra_info('sockname')[1]}")

    doing: dict[str, Callable[[], Coroutine[Any, Any, object]]]
    doing = {"write": write, "read": read, "kill": destroy}
    told: list[Outcome] = []
    for step in steps:
        try:
            told.append({"type": None, "value": await doing[step]()})
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is told)
            told.append(describe(exc))
    return told


async def observe(scenario: Scenario) -> Outcome:
    """Run one scenario to its end, and leave nothing open."""
    started = time.monotonic()
    with ExitStack() as held:
        if "fill" in scenario:
            for sock in fill(*scenario["fill"]):
                held.enter_context(sock)
        killer = asyncio.ensure_future(kill_later(*scenario["kill"])) if "kill" in scenario else None
        try:
            reader, writer = await dial(scenario)
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is told)
            outcome = describe(exc)
        else:
            outcome = {
                "type": None,
                "sockname": writer.get_extra_info("sockname"),
                "peername": writer.get_extra_info("peername"),
                "use": await use(reader, writer, scenario.get("use", [])),
            }
            writer.transport.abort()
        outcome["seconds"] = time.monotonic() - started
        if killer is not None:
            await killer
    return outcome


def open_fds() -> dict[int, str]:
    """What is open, found without opening a descriptor: the limit may have been reached."""
    return {fd: name_of(fd) for fd in range(HIGHEST_FD) if is_open(fd)}


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def name_of(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:  # /proc is not for a process that has changed its user, nor for macOS
        return "?"


def lowest_free_fd() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


def restrict(limits: dict[str, int], uid: int | None) -> None:
    """Take resources away from this process.

    A NOFILE of n leaves n file descriptors to open. NPROC does not bind root (CAP_SYS_RESOURCE), hence `uid`.
    """
    for name, value in limits.items():
        limit = value + lowest_free_fd() if name == "NOFILE" else value
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


async def settle(fds: dict[int, str]) -> None:
    """Wait for what was closed to be gone: transports close a turn late, a lookup ends with its thread."""
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        await asyncio.sleep(0.01)
        if open_fds().keys() <= fds.keys():
            return


class Complaints(logging.Handler):
    """What went to the logs or to the loop's exception handler: nothing but our own account should."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != "aioconnect"

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.name}: {record.getMessage()}")

    def from_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.texts.append(f"loop: {context.get('message')} {context.get('exception')!r}")


async def warm_up(scenarios: list[Scenario]) -> None:
    """Have everything made that is made once per process or loop, so that it is not counted as left behind."""
    ours, theirs = socket.socketpair()
    with theirs:
        _, writer = await asyncio.open_unix_connection(sock=ours)  # libuv's first stream opens /dev/null
        writer.close()
        await writer.wait_closed()
    for scenario in scenarios:
        await observe(scenario)
    await asyncio.sleep(0)


async def run(request: dict[str, Any], complaints: Complaints) -> Report:
    asyncio.get_running_loop().set_exception_handler(complaints.from_loop)
    await warm_up(request.get("warm_up", []))
    fds = open_fds()
    restrict(request.get("limits", {}), request.get("uid"))
    scenarios = request["scenarios"]
    outcomes = await asyncio.gather(*map(observe, scenarios))
    await settle(fds)
    return {
        "outcomes": dict(zip((scenario["name"] for scenario in scenarios), outcomes, strict=True)),
        "left": [f"{fd}: {name}" for fd, name in open_fds().items() if fd not in fds],
        "tasks": len(asyncio.all_tasks()) - 1,
        "complaints": complaints.texts,
    }


def available_loops() -> tuple[str, ...]:
    return ("asyncio", "uvloop") if importlib.util.find_spec("uvloop") is not None else ("asyncio",)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop  # noqa: PLC0415  (not on every machine)

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop


def main() -> None:
    request = json.load(sys.stdin)
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    with asyncio.Runner(loop_factory=loop_factory(request["loop"])) as runner:
        report = runner.run(run(request, complaints))
    json.dump(report, sys.stdout, default=repr)


class Children:
    """The program running several times at once, on a request each. None outlives the block."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for child in self._running.values():
            child.kill()
            with child:  # closes the pipes and waits
                pass

    def start(self, key: tuple[str, str], request: dict[str, Any], prefix: Sequence[str] = ()) -> None:
        """Run it under the command `prefix`, if any."""
        argv = (*prefix, sys.executable, "-m", "tests.support.child")
        child = subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=ROOT, text=True)
        self._running[key] = child
        assert child.stdin is not None
        child.stdin.write(json.dumps(request))
        child.stdin.close()
        child.stdin = None  # communicate() would try to flush it

    def reports(self) -> dict[tuple[str, str], Report]:
        """What each of them printed, once all have ended."""
        return {key: self._report(key, child) for key, child in self._running.items()}

    def _report(self, key: tuple[str, str], child: subprocess.Popen[str]) -> Report:
        printed, complaint = child.communicate(timeout=LIMIT)
        if child.returncode != 0:
            raise RuntimeError(f"the program for {key} ended with {child.returncode}:\n{complaint}")
        report: Report = json.loads(printed)
        return report


if __name__ == "__main__":
    main()
