"""Names to addresses: one thread for a lookup, one lookup for a name, and limits of one's own."""

from __future__ import annotations

import _thread
import asyncio
import errno
import math
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from aioconnect import TRANSIENT, ConfigError, Connector, Policy, Resolver, errors
from aioconnect.resolver import AddressInfo, Query
from aioconnect.testing.leaks import LogWatch
from tests.support.clock import VirtualLoop, virtual
from tests.support.listeners import listening
from tests.support.network import Network, Reply

NAME = "db.internal"
QUERY = Query(NAME, 5432)
ADDRESS = AddressInfo(socket.AF_INET, socket.SOCK_STREAM, 6, ("10.0.0.1", 5432))
FOUND = [(ADDRESS.family, ADDRESS.type, ADDRESS.proto, "", ADDRESS.sockaddr)]


class Lookups:
    """Stands in for `socket.getaddrinfo`: notes each call, and answers when it is let."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer: list[Any] | Exception = FOUND
        self._go_on = threading.Event()
        self._go_on.set()
        self._inside = 0
        self._empty = threading.Condition()

    def __call__(self, host: str, port: int, **arguments: Any) -> Any:
        with self._empty:
            self._inside += 1
            self.calls.append((host, port, arguments))
        try:
            assert self._go_on.wait(10)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        finally:
            with self._empty:
                self._inside -= 1
                self._empty.notify_all()

    def hang(self) -> None:
        self._go_on.clear()

    def release(self) -> None:
        """Let all end, and wait for it."""
        self._go_on.set()
        with self._empty:
            assert self._empty.wait_for(lambda: self._inside == 0, 5)
        time.sleep(0.002)  # for what the threads still do after the call


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    stand_in = Lookups()
    monkeypatch.setattr(socket, "getaddrinfo", stand_in)
    yield stand_in
    stand_in.release()


def finished(coroutine: Any) -> Any:
    """The result of a coroutine that must not wait for anything, not even for one turn of the loop."""
    with mock.patch.object(_thread, "start_new_thread", side_effect=AssertionError("a thread")):
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
    coroutine.close()
    pytest.fail("it waited")


# ------------------------------------------------------------------------------------------ without a thread


@pytest.mark.parametrize(
    ("host", "family", "sockaddr"),
    [
        ("127.0.0.1", socket.AF_INET, ("127.0.0.1", 80)),
        ("::1", socket.AF_INET6, ("::1", 80, 0, 0)),
        ("fe80::1%lo", socket.AF_INET6, ("fe80::1%lo", 80, 0, 1)),
        ("fe80::1%1", socket.AF_INET6, ("fe80::1%lo", 80, 0, 1)),
    ],
)
async def test_an_ip_address_needs_no_thread(host: str, family: int, sockaddr: Any) -> None:
    resolver = Resolver()
    query = Query(host, 80)
    assert resolver.known(query, 0) is None
    (info,) = finished(resolver.resolve(query))
    assert (info.family, info.type, info.proto) == (family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert info.sockaddr[1:] == sockaddr[1:]
    assert info.sockaddr[0].partition("%")[0] == sockaddr[0].partition("%")[0]
    assert resolver.known(query, 1e12) == [info]
    resolver.forget(query)
    assert resolver.known(query, 1e12) == [info], "an address stays what it is"


async def test_an_unknown_interface_is_an_error_of_the_name() -> None:
    with pytest.raises(errors.NetworkError) as caught:
        finished(Resolver().resolve(Query("fe80::1%nowhere0", 80)))
    assert (caught.value.phase, caught.value.address) == ("resolve", ("fe80::1%nowhere0", 80))


async def test_a_name_known_already_needs_no_thread(lookups: Lookups) -> None:
    resolver = Resolver()
    assert await resolver.resolve(QUERY) == [ADDRESS]
    assert finished(resolver.resolve(QUERY)) == [ADDRESS]
    assert resolver.known(QUERY, asyncio.get_running_loop().time()) == [ADDRESS]
    assert len(lookups.calls) == 1


async def test_what_is_asked_for_is_passed_on(lookups: Lookups) -> None:
    query = Query("bücher.example", 80, socket.AF_INET6, socket.IPPROTO_TCP, socket.AI_ADDRCONFIG)
    await Resolver().resolve(query)
    assert lookups.calls == [
        (
            "xn--bcher-kva.example",
            80,
            {
                "family": socket.AF_INET6,
                "type": socket.SOCK_STREAM,
                "proto": socket.IPPROTO_TCP,
                "flags": socket.AI_ADDRCONFIG,
            },
        )
    ]


# ------------------------------------------------------------------------------------------ keeping and forgetting


@virtual
@pytest.mark.parametrize(("ttl", "kept"), [(5.0, True), ("4500ms", False), (0, False), ("0", False)])
async def test_a_name_is_kept_for_its_ttl(ttl: Any, kept: bool) -> None:
    network = Network.of_loop({}, names={NAME: ["10.0.0.1"]})
    resolver = Resolver(ttl=ttl)
    await resolver.resolve(QUERY)
    await asyncio.sleep(4.9)
    assert (resolver.known(QUERY, network.loop.time()) is not None) is kept
    await resolver.resolve(QUERY)
    assert len(network.lookups) == (1 if kept else 2)
    await asyncio.sleep(0.2)
    assert resolver.known(QUERY, network.loop.time()) is None or not kept
    await resolver.resolve(QUERY)
    assert len(network.lookups) == (2 if kept else 2 + (ttl in (0, "0")))


@virtual
async def test_a_failed_dial_has_the_name_resolved_again() -> None:
    """The service has moved: the next attempt must not go to where it was."""
    names = {NAME: ["10.0.0.1"]}
    network = Network.of_loop({"10.0.0.1": Reply(0.1, errno.ECONNREFUSED), "10.0.0.2": Reply(0.1)}, names=names)
    connector = Connector(f"tcp://{NAME}:80", Policy(attempt_timeout=1))
    network.loop.call_later(0.05, names.__setitem__, NAME, ["10.0.0.2"])
    sock = await connector.dial()
    assert sock.getpeername() == ("10.0.0.2", 80)
    sock.close()
    assert network.lookups == [NAME, NAME]
    (await connector.dial()).close()
    assert network.lookups == [NAME, NAME], "a good address is kept"


@virtual
async def test_a_name_that_does_not_resolve_is_asked_for_again() -> None:
    names: dict[str, Any] = {NAME: socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")}
    network = Network.of_loop({"10.0.0.1": Reply(0.1)}, names=names)
    network.loop.call_later(1.0, names.__setitem__, NAME, ["10.0.0.1"])
    (await Connector(f"tcp://{NAME}:80").dial()).close()
    assert len(network.lookups) > 2


async def test_forgetting_what_was_never_known() -> None:
    Resolver().forget(QUERY)


async def test_an_answer_that_comes_too_late_is_kept_for_the_next(lookups: Lookups) -> None:
    """Or a name that always takes longer than an attempt may would never resolve."""
    resolver = Resolver(timeout=0.02)
    lookups.hang()
    with pytest.raises(errors.ConnectTimeout):
        await resolver.resolve(QUERY)
    lookups.release()
    await asyncio.sleep(0.01)
    assert finished(resolver.resolve(QUERY)) == [ADDRESS]
    assert len(lookups.calls) == 1


async def test_whoever_finds_an_answer_useless_forgets_it_for_all(lookups: Lookups) -> None:
    """Two callers share a lookup. The first one's dial fails at once: the second must not bring the answer back."""
    resolver = Resolver()
    lookups.hang()
    first, second = (asyncio.ensure_future(resolver.resolve(QUERY)) for _ in range(2))
    first.add_done_callback(lambda _: resolver.forget(QUERY))
    await asyncio.sleep(0.01)
    lookups.release()
    assert await first == await second == [ADDRESS]
    await asyncio.sleep(0)
    assert resolver.known(QUERY, asyncio.get_running_loop().time()) is None


# ------------------------------------------------------------------------------------------ one lookup for all


async def test_five_hundred_callers_share_one_lookup(lookups: Lookups) -> None:
    resolver = Resolver()
    lookups.hang()
    callers = [asyncio.ensure_future(resolver.resolve(QUERY)) for _ in range(500)]
    await asyncio.sleep(0.01)
    for caller in callers[::2]:
        caller.cancel()
    await asyncio.sleep(0)
    lookups.release()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    assert all(outcome == [ADDRESS] for outcome in outcomes[1::2])
    assert len(lookups.calls) == 1


async def test_names_do_not_wait_for_each_other(lookups: Lookups) -> None:
    resolver = Resolver()
    lookups.hang()
    hanging = asyncio.ensure_future(resolver.resolve(QUERY))
    await asyncio.sleep(0.01)
    with mock.patch.object(lookups, "_go_on", threading.Event()) as free:
        free.set()
        assert await resolver.resolve(Query("other.internal", 1)) == [ADDRESS]
    assert not hanging.done()
    lookups.release()
    assert await hanging == [ADDRESS]


async def test_each_waiter_has_an_error_of_its_own(lookups: Lookups) -> None:
    resolver = Resolver()
    lookups.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    lookups.hang()
    callers = [asyncio.ensure_future(resolver.resolve(QUERY)) for _ in range(3)]
    await asyncio.sleep(0.01)
    lookups.release()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert {type(outcome) for outcome in outcomes} == {errors.NameServerUnavailable}
    assert len(lookups.calls) == 1
    with pytest.raises(errors.NameServerUnavailable):
        await resolver.resolve(QUERY)
    assert len(lookups.calls) == 2, "a failure is not kept"


# ------------------------------------------------------------------------------------------ limits


async def test_a_lookup_that_hangs_has_a_limit(lookups: Lookups) -> None:
    lookups.hang()
    began = time.monotonic()
    with pytest.raises(errors.ConnectTimeout) as caught:
        await Resolver(timeout=0.05).resolve(QUERY)
    assert 0.04 < time.monotonic() - began < 0.5
    error = caught.value
    assert (error.phase, error.address, error.source) == ("resolve", (NAME, 5432), "attempt")
    assert (error.errno, error.code, error.kind) == (errno.ETIMEDOUT, "ETIMEDOUT", "transient")
    assert error.elapsed == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize("source", ["call", "attempt"])
async def test_the_nearer_limit_counts(lookups: Lookups, source: Any) -> None:
    lookups.hang()
    with pytest.raises(errors.ConnectTimeout) as caught:
        await Resolver(timeout=3).resolve(QUERY, asyncio.get_running_loop().time() + 0.02, source)
    assert caught.value.source == source


async def test_a_lookup_that_hangs_is_not_started_twice(lookups: Lookups) -> None:
    resolver = Resolver(timeout=0.01)
    lookups.hang()
    for _ in range(3):
        with pytest.raises(errors.ConnectTimeout):
            await resolver.resolve(QUERY)
    assert len(lookups.calls) == 1


def test_a_hung_lookup_in_virtual_time(lookups: Lookups) -> None:
    """All attempts of a call end by their limits, and the call by its own."""
    lookups.hang()
    connector = Connector(f"tcp://{NAME}:80", Policy(attempt_timeout=5, timeout=60))

    async def main() -> float:
        with pytest.raises(errors.ConnectTimeout) as caught:
            await connector.connect()
        error = caught.value
        assert (error.phase, error.stop_reason, error.address) == ("resolve", "timeout", (NAME, 80))
        assert error.attempt_count > 5
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(threads=False)) as runner:
        assert runner.run(main()) == pytest.approx(60)
    while not lookups.calls:
        time.sleep(0.001)  # all that took less real time than the thread needs to begin
    time.sleep(0.01)
    assert len(lookups.calls) == 1


# ------------------------------------------------------------------------------------------ the rest of the process


async def test_the_default_executor_is_left_alone(lookups: Lookups) -> None:
    """Not used, and no obstacle when it is full."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        busy = loop.run_in_executor(None, stop.wait, 10)
        assert await Resolver().resolve(QUERY) == [ADDRESS]
        assert executor._work_queue.qsize() == 0
        stop.set()
        await busy


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError()], ids=["threads", "memory"])
async def test_no_thread_can_be_started(lookups: Lookups, fault: Exception) -> None:
    resolver = Resolver()
    expected = errors.ThreadsExhausted if isinstance(fault, RuntimeError) else MemoryError
    with mock.patch.object(_thread, "start_new_thread", side_effect=fault), pytest.raises(expected) as caught:
        await resolver.resolve(QUERY)
    if isinstance(caught.value, errors.NetworkError):
        assert (caught.value.phase, caught.value.kind, caught.value.address) == ("resolve", "local", (NAME, 5432))
    assert await resolver.resolve(QUERY) == [ADDRESS], "what could not start must not be waited for"


async def test_threads_exhausted_is_retried(lookups: Lookups) -> None:
    start, calls = _thread.start_new_thread, iter([True, True, False])

    def sometimes(*args: Any) -> int:
        if next(calls):
            raise RuntimeError("can't start new thread")
        return start(*args)

    with listening() as server, mock.patch.object(_thread, "start_new_thread", sometimes):
        lookups.answer = [(*FOUND[0][:4], server.getsockname())]
        sock = await Connector(f"tcp://{NAME}:80", Policy(wait=lambda _: 0.0)).dial()
        sock.close()


PROGRAM = """
    import asyncio, os, socket, sys, time, warnings
    import aioconnect
    from aioconnect.resolver import Query, Resolver
    {setting}

    def hang(*args, **kwargs):
        time.sleep(30)

    real, socket.getaddrinfo = socket.getaddrinfo, hang
    resolver = Resolver()

    async def main():
        try:
            await aioconnect.connect("tcp://db.internal:80", timeout=0.1)
        except aioconnect.ConnectTimeout as error:
            print(error.phase)
        {then}

    {run}(main())
"""
FORK = """
        hanging = asyncio.ensure_future(resolver.resolve(Query("localhost", 80)))
        await asyncio.sleep(0.05)
        hanging.cancel()
        if os.fork() == 0:
            socket.getaddrinfo = real
            asyncio._set_running_loop(None)
            print(len(asyncio.new_event_loop().run_until_complete(resolver.resolve(Query("localhost", 80)))) > 0)
            sys.stdout.flush()
            os._exit(0)
        print(os.wait()[1])
"""


def run_program(setting: str = "", then: str = "", run: str = "asyncio.run") -> tuple[float, list[str]]:
    """How long it took, and what it printed; it must not complain."""
    text = textwrap.dedent(PROGRAM).format(setting=setting, then=textwrap.dedent(then).replace("\n", "\n    "), run=run)
    began = time.monotonic()
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text]
    root = Path(__file__).parent.parent
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd=root, check=True)
    assert done.stderr == ""
    return time.monotonic() - began, done.stdout.split()


@pytest.mark.parametrize(
    ("setting", "run"), [("", "asyncio.run"), ("import uvloop", "uvloop.run")], ids=["asyncio", "uvloop"]
)
def test_a_hung_lookup_does_not_delay_the_exit(setting: str, run: str) -> None:
    seconds, printed = run_program(setting, run=run)
    assert printed == ["resolve"]
    assert seconds < 4


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_a_fork_with_a_lookup_under_way() -> None:
    seconds, printed = run_program(then=FORK)
    assert printed == ["resolve", "True", "0"]
    assert seconds < 4


# ------------------------------------------------------------------------------------------ loops


def loop_factories() -> list[Any]:
    import uvloop  # noqa: PLC0415

    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("factory", loop_factories(), ids=["asyncio", "uvloop"])
def test_the_loop_is_closed_before_the_answer_comes(lookups: Lookups, factory: Any) -> None:
    lookups.hang()
    unraisable: list[Any] = []
    resolver = Resolver(timeout=0.02)
    with LogWatch() as log, mock.patch.object(sys, "unraisablehook", unraisable.append):
        with asyncio.Runner(loop_factory=factory) as runner, pytest.raises(errors.ConnectTimeout):
            runner.run(resolver.resolve(QUERY))
        lookups.release()
    assert (log.texts, unraisable) == ([], [])


@pytest.mark.parametrize("factory", loop_factories(), ids=["asyncio", "uvloop"])
def test_a_new_loop_starts_anew(lookups: Lookups, factory: Any) -> None:
    """Nothing of the first loop is waited for or believed."""
    resolver = Resolver(timeout=0.02)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(resolver.resolve(QUERY))
        lookups.hang()
        with pytest.raises(errors.ConnectTimeout):
            runner.run(resolver.resolve(Query("other", 1)))
    lookups.release()
    lookups.answer = [(*FOUND[0][:4], ("10.0.0.9", 5432))]
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(resolver.resolve(QUERY))[0].sockaddr == ("10.0.0.9", 5432)
        assert runner.run(resolver.resolve(Query("other", 1)))[0].sockaddr == ("10.0.0.9", 5432)
    assert len(lookups.calls) == 4


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("number", "cls", "code", "kind"),
    [
        (socket.EAI_NONAME, errors.NameNotFound, "EAI_NONAME", "starting"),
        (socket.EAI_NODATA, errors.NameNotFound, "EAI_NODATA", "starting"),
        (socket.EAI_AGAIN, errors.NameServerUnavailable, "EAI_AGAIN", "transient"),
        (socket.EAI_FAIL, errors.NameResolutionError, "EAI_FAIL", "permanent"),
        (socket.EAI_MEMORY, errors.NameResolutionError, "EAI_MEMORY", "local"),
        (socket.EAI_SERVICE, errors.NameResolutionError, "EAI_SERVICE", "permanent"),
    ],
)
async def test_what_the_system_says(
    lookups: Lookups, number: int, cls: type[errors.NetworkError], code: str, kind: str
) -> None:
    lookups.answer = socket.gaierror(number, "as the system says it")
    with pytest.raises(cls) as caught:
        await Resolver().resolve(QUERY)
    error = caught.value
    assert type(error) is cls
    assert isinstance(error, socket.gaierror)
    assert (error.errno, error.code, error.kind, error.phase) == (number, code, kind, "resolve")
    assert error.address == (NAME, 5432)
    assert error.__cause__ is lookups.answer
    assert lookups.answer.__traceback__ is None


async def test_short_of_descriptors(lookups: Lookups) -> None:
    lookups.answer = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(errors.TooManyOpenFiles) as caught:
        await Resolver().resolve(QUERY)
    assert (caught.value.phase, caught.value.kind) == ("resolve", "local")


async def test_no_address_of_that_family(lookups: Lookups) -> None:
    lookups.answer = []
    with pytest.raises(errors.NameNotFound) as caught:
        await Resolver().resolve(QUERY)
    assert (caught.value.code, caught.value.errno) == ("EAI_NONAME", socket.EAI_NONAME)


async def test_a_bug_is_raised_as_itself(lookups: Lookups) -> None:
    lookups.answer = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug") as caught:
        await Resolver().resolve(QUERY)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("setting", [{"timeout": 0}, {"timeout": -1}, {"ttl": -1}, {"ttl": math.nan}, {"ttl": "soon"}])
def test_settings_that_cannot_work(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Resolver(**setting)
    assert [problem.partition("=")[0] for problem in caught.value.problems] == list(setting)


# ------------------------------------------------------------------------------------------ a resolver of one's own


class Table:
    """The three methods that a connector needs, over a table."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.forgotten: list[Query] = []
        self.asked: list[tuple[Query, float, str]] = []

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        return None

    def forget(self, query: Query) -> None:
        self.forgotten.append(query)

    async def resolve(self, query: Query, limit: float = math.inf, source: str = "call") -> list[AddressInfo]:
        self.asked.append((query, limit, source))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


async def test_a_resolver_of_ones_own() -> None:
    with listening() as server:
        good = AddressInfo(socket.AF_INET, socket.SOCK_STREAM, 0, server.getsockname())
        unavailable = errors.NameServerUnavailable(address=(NAME, 80))
        table = Table(unavailable, [good])
        connector = Connector(f"tcp://{NAME}:80", Policy(wait=lambda _: 0.0), resolver=table)
        sock = await connector.dial()
        sock.close()
    assert [query for query, _, _ in table.asked] == [Query(NAME, 80)] * 2
    assert table.forgotten == [Query(NAME, 80)] * 2, "when it was bound to the loop, and after the failure"
    assert {source for _, _, source in table.asked} == {"attempt"}


@pytest.mark.parametrize("targets", [f"tcp://{NAME}:80", f"tcp://{NAME}:80,{NAME}:81"], ids=["one target", "two"])
async def test_a_resolver_of_ones_own_that_finds_nothing(targets: str) -> None:
    connector = Connector(targets, resolver=Table([], []))
    with pytest.raises(errors.NameNotFound) as caught:
        await connector.connect()
    error = caught.value
    assert (error.phase, error.address, error.stop_reason) == ("resolve", (NAME, 80), "permanent")
    assert error.attempt_count == 1


async def test_a_resolver_of_ones_own_with_a_foreign_error() -> None:
    connector = Connector(
        f"tcp://{NAME}:80", Policy(retry_on=TRANSIENT), resolver=Table(LookupError("no such service"))
    )
    with pytest.raises(LookupError, match="no such service"):
        await connector.connect()


async def test_a_resolver_of_ones_own_with_an_error_of_the_system() -> None:
    connector = Connector(
        f"tcp://{NAME}:80", Policy(max_attempts=1), resolver=Table(socket.gaierror(socket.EAI_AGAIN, "x"))
    )
    with pytest.raises(errors.NameServerUnavailable) as caught:
        await connector.connect()
    assert (caught.value.phase, caught.value.code) == ("resolve", "EAI_AGAIN")
