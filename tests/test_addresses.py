"""The addresses of an endpoint, in the order to try them; see test_health for what is learnt, test_srv for services."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import math
import random
import socket
import threading
from collections import Counter
from typing import Any

import pytest

from aioconnect import Backoff, Connector, Endpoint, Policy, Resolver, errors
from aioconnect.addresses import RESOLUTION_DELAY, AddressBook
from aioconnect.dialer import DialOptions, dial_addresses, dial_options
from aioconnect.errors import NetworkError
from aioconnect.resolver import AddressInfo, Query
from aioconnect.testing.cancel import cancel_everywhere
from tests.support.clock import run_virtual, virtual
from tests.support.garbage import garbage_of
from tests.support.listeners import closed_port, listening, mute
from tests.support.network import SILENT, Network, Reply, infos
from tests.support.peers import fin_at_once, plain_echo, serve

SIX, FOUR = "fd00::1", "10.0.0.1"
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
OK, REFUSED = Reply(0.01), Reply(0.01, errno.ECONNREFUSED)
NEVER = math.inf
ONCE = Policy(max_attempts=1, attempt_timeout=3, breaker=None)


def always(low: float, high: float) -> float:
    """A source of chance without surprises: of history that is ignored, the last of the possible times."""
    return high


def book_of(url: str, resolver: Any = None, uniform: Any = always) -> AddressBook:
    return AddressBook(Endpoint.parse(url), resolver, uniform)


class Names:
    """A resolver of somebody else: for each name seconds, and addresses or what is raised. It keeps nothing."""

    def __init__(self, **names: tuple[float, Any]) -> None:
        self.names = names
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    def known(self, query: Query, now: float) -> list[AddressInfo] | None:
        return None

    def forget(self, query: Query) -> None:
        pass

    async def resolve(self, query: Query, *_: Any) -> list[AddressInfo]:
        self.asked.append(query.host)
        delay, found = self.names[query.host]
        try:
            await asyncio.sleep(delay if delay < NEVER else 1e9)
        except asyncio.CancelledError:
            self.cancelled.append(query.host)
            raise
        if isinstance(found, Exception):
            raise found
        return infos(*found, port=query.port)


async def found(book: AddressBook, limit: float = NEVER) -> list[AddressInfo]:
    return book.known(asyncio.get_running_loop().time()) or await book.find(limit, "attempt", Policy())


def hosts(addresses: list[AddressInfo] | None) -> list[str]:
    return [info.sockaddr[0] for info in addresses or ()]


async def dialed(book: AddressBook, seconds: float = 5.0) -> str | NetworkError:
    """What a connector does with a book: the address of the winner, or the error."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + seconds
    addresses: list[AddressInfo] = []
    try:
        addresses = await found(book, limit)
        sock, info = await dial_addresses(addresses, dial_options(book._endpoint), limit, "attempt", Policy())
    except NetworkError as error:
        book.forget()
        told = book.failed(error, addresses, loop.time())
        assert isinstance(told, NetworkError)
        return told
    sock.close()
    book.won(info, addresses, loop.time())
    return str(info.sockaddr[0])


async def took(book: AddressBook) -> tuple[str | NetworkError, float]:
    clock = asyncio.get_running_loop().time
    began = clock()
    return await dialed(book), round(clock() - began, 6)


# ------------------------------------------------------------------------------------------ what needs no resolver


@pytest.mark.parametrize(
    ("url", "family", "place"),
    [
        ("tcp://127.0.0.1:80", socket.AF_INET, ("127.0.0.1", 80)),
        ("tcp://[::1]:80", socket.AF_INET6, ("::1", 80, 0, 0)),
        ("tcp://127.0.0.1:80?shuffle=on", socket.AF_INET, ("127.0.0.1", 80)),
        ("unix:///run/app.sock", socket.AF_UNIX, "/run/app.sock"),
    ],
)
def test_an_ip_address_and_a_path_are_known_from_the_start(url: str, family: int, place: Any) -> None:
    book = AddressBook(Endpoint.parse(url))
    first = book.known(0.0)
    assert first is not None
    assert [(info.family, info.sockaddr) for info in first] == [(family, place)]
    book.won(first[0], first, 0.0)
    book.failed(errors.ConnectRefused(address=place), first, 0.0)
    book.forget()
    book.rebind()
    assert book.known(0.0) is first, "the same list: nothing is worked out"
    assert book._health._records == {}


def test_a_name_is_not_known_before_it_was_looked_up() -> None:
    assert book_of("tcp://db.internal:80").known(0.0) is None
    assert book_of("tcp://a.internal:80,10.0.0.1:80").known(0.0) is None


# ------------------------------------------------------------------------------------------ health


@virtual
async def test_a_dead_ipv6_path_costs_its_delay_once() -> None:
    Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80")
    assert await took(book) == (FOUR, 0.26)
    for _ in range(74):
        assert await took(book) == (FOUR, 0.01)
        await asyncio.sleep(7)
    assert await took(book) == (FOUR, 0.26), "now and then it is looked at again"
    assert await took(book) == (FOUR, 0.01)


@virtual
async def test_a_path_that_has_come_back_is_found_again() -> None:
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80", uniform=random.Random(1).uniform)
    assert await took(book) == (FOUR, 0.26)
    network.replies = {SIX: OK, FOUR: OK}
    winners = [await dialed(book) for _ in range(80)]
    back = winners.index(SIX)
    assert 24 <= back <= 75
    assert set(winners[back:]) == {SIX}


@virtual
async def test_history_is_ignored_about_one_time_in_fifty() -> None:
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80", uniform=random.Random(7).uniform)
    for _ in range(1000):
        assert await dialed(book) == FOUR
    assert 14 <= sum(host == SIX for host, _ in network.started) <= 30


@virtual
async def test_without_history_the_resolver_is_right() -> None:
    """An order that history has not changed is no occasion to ignore it."""
    Network.of_loop({SIX: OK, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80", uniform=lambda low, high: low)
    due = book._health._due
    assert {await dialed(book) for _ in range(100)} == {SIX}
    assert book._health._due == due


@virtual
async def test_all_fail_and_one_has_been_dead_all_the_time() -> None:
    """A restart of the server behind IPv4: no dial goes by way of the dead path because IPv4 has failed as well."""
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80")
    await dialed(book)
    network.replies = {SIX: SILENT, FOUR: REFUSED}
    for _ in range(5):
        assert isinstance(await dialed(book), errors.ConnectRefused)
    assert [host for host, _ in network.started] == [SIX, FOUR] + [FOUR, SIX] * 5
    network.replies = {SIX: SILENT, FOUR: OK}
    assert await took(book) == (FOUR, 0.01)


@virtual
@pytest.mark.parametrize("phase", ["tls", "prepare"])
async def test_an_address_that_does_not_serve_is_still_there(phase: Any) -> None:
    """IPv6 is dead, and what is there on IPv4 is not ready: IPv6 is not tried first for that."""
    Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80")
    addresses = await found(book)
    book.failed(errors.NotReady(phase=phase, address=(FOUR, 80)), addresses, 0.3)
    assert hosts(book.known(0.3)) == [FOUR, SIX]


SHORTAGE = errors.typed("EMFILE", "socket", (A, 80))
NO_PORTS = errors.typed("EADDRNOTAVAIL", "connect", (A, 80))
BOUND = errors.typed("EADDRINUSE", "bind", (A, 80))


def silence(source: str, elapsed: float) -> NetworkError:
    return errors.ConnectTimeout("no answer", address=(A, 80), source=source, elapsed=elapsed)


@virtual
@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (errors.typed("ECONNREFUSED", "connect", (A, 80)), True),
        (errors.typed("EHOSTUNREACH", "connect", (A, 80)), True),
        (errors.typed("CERTIFICATE_VERIFY_FAILED", "tls", (A, 80)), True),
        (SHORTAGE, False),
        (NO_PORTS, False),
        (BOUND, False),
        (silence("attempt", 5.0), True),
        (silence("call", 0.25), True),
        (silence("call", 0.1), False),
        (silence("kernel", 0.1), True),
        (errors.typed("EAI_AGAIN", "resolve", (A, 80)), False),
    ],
    ids=lambda value: value.code if isinstance(value, NetworkError) else "",
)
async def test_what_counts_against_an_address(error: NetworkError, counts: bool) -> None:
    Network.of_loop({}, names={"db": [A, B]})
    book = book_of("tcp://db:80")
    addresses = await found(book)
    book.failed(error, addresses, 0.0)
    assert hosts(book.known(1.0)) == ([B, A] if counts else [A, B])


@virtual
async def test_each_address_has_its_own_error() -> None:
    network = Network.of_loop({A: REFUSED, B: REFUSED, C: OK}, names={"db": [A, B, C]})
    book = book_of("tcp://db:80")
    assert await dialed(book) == C
    network.replies = dict.fromkeys([A, B, C], REFUSED)
    error = await dialed(book)
    assert isinstance(error, errors.ConnectRefused)
    assert [each.address[0] for each in error.errors] == [C, A, B]  # type: ignore[index]


@virtual
async def test_answers_are_forgotten_and_health_is_not() -> None:
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80")
    await dialed(book)
    book.forget()
    assert book.known(network.loop.time()) is None
    assert hosts(await found(book)) == [FOUR, SIX]
    book.rebind()
    assert book.known(network.loop.time()) is None
    assert hosts(await found(book)) == [SIX, FOUR], "another clock, another life"


@virtual
async def test_an_order_is_worked_out_once() -> None:
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    book = book_of("tcp://db:80")
    await dialed(book)
    order = book.known(1.0)
    for _ in range(10):
        assert book.known(1.0) is order
        await dialed(book)
    network.names = {"db": [FOUR, SIX]}
    book.forget()
    assert await found(book) is not order


def test_a_resolver_may_change_its_own_list() -> None:
    class Mutable(Names):
        answer = infos(A, B)

        def known(self, query: Query, now: float) -> list[AddressInfo]:
            return self.answer

    resolver = Mutable()
    book = book_of("tcp://db:80", resolver)
    assert hosts(book.known(0.0)) == [A, B]
    resolver.answer.reverse()
    assert hosts(book.known(0.0)) == [B, A]


@virtual
async def test_an_endpoint_with_a_name_of_one_address_learns_nothing() -> None:
    Network.of_loop({A: REFUSED}, names={"db": [A]})
    book = book_of("tcp://db:80")
    await dialed(book)
    assert book._health._records == {}


@virtual
async def test_families_still_take_turns_behind_the_winner() -> None:
    Network.of_loop({}, names={"db": ["fd00::1", "fd00::2", A, B]})
    book = book_of("tcp://db:80")
    addresses = await found(book)
    assert hosts(addresses) == ["fd00::1", A, "fd00::2", B]
    (second,) = (info for info in addresses if info.sockaddr[0] == B)
    book._health.won(second.sockaddr, (), 0.0)
    assert hosts(book.known(1.0)) == [B, "fd00::1", A, "fd00::2"]


# ------------------------------------------------------------------------------------------ several targets


@virtual
async def test_failover_and_the_way_back() -> None:
    """The first target is the one to use, whenever it can be; the others are a reserve."""
    network = Network.of_loop({A: REFUSED, B: OK}, names={"a": [A], "b": [B]})
    book = book_of("tcp://a:80,b:80")
    assert await took(book) == (B, 0.02)
    assert await took(book) == (B, 0.01)
    network.replies = {A: OK, B: OK}
    await asyncio.sleep(29)
    assert await dialed(book) == B
    await asyncio.sleep(1)
    assert await dialed(book) == A


@virtual
async def test_a_target_that_stays_away_is_asked_for_less_and_less_often() -> None:
    network = Network.of_loop({A: SILENT, B: OK}, names={"a": [A], "b": [B]})
    book = book_of("tcp://a:80,b:80", uniform=lambda low, high: 1e9)
    for _ in range(3600):
        assert await dialed(book) == B
        await asyncio.sleep(1)
    times = [began for host, began in network.started if host == A]
    assert times == pytest.approx([0, 30, 90, 210, 450, 930, 1530, 2130, 2730, 3330], rel=0.02)


@virtual
async def test_within_a_target_the_last_winner_is_first() -> None:
    Network.of_loop({SIX: SILENT, FOUR: OK, B: OK}, names={"a": [SIX, FOUR], "b": [B]})
    book = book_of("tcp://a:80,b:80")
    assert await dialed(book) == FOUR
    await asyncio.sleep(31)
    assert hosts(await found(book)) == [FOUR, SIX, B]


@virtual
async def test_each_address_says_for_which_target_it_is() -> None:
    Network.of_loop({}, names={"a": [A, B], "b": [A]})
    book = book_of("tcp://a:80,b:81")
    addresses = await found(book)
    assert [(info.sockaddr, str(info.target)) for info in addresses] == [
        ((A, 80), "a:80"),
        ((B, 80), "a:80"),
        ((A, 81), "b:81"),
    ]
    assert book.known(0.0) == addresses


@virtual
async def test_shuffled_targets_share_the_load() -> None:
    Network.of_loop({A: OK, B: OK, C: OK}, names={"a": [A], "b": [B], "c": [C]})
    book = book_of("tcp://a:80,b:80,c:80?shuffle=on", uniform=random.Random(3).uniform)
    count = Counter([await dialed(book) for _ in range(300)])
    assert all(70 <= count[host] <= 130 for host in (A, B, C))
    again = book_of("tcp://a:80,b:80,c:80?shuffle=on", uniform=random.Random(3).uniform)
    assert Counter([await dialed(again) for _ in range(300)]) == count


@virtual
async def test_of_shuffled_targets_those_that_failed_come_last() -> None:
    network = Network.of_loop({A: REFUSED, B: OK, C: OK}, names={"a": [A], "b": [B], "c": [C]})
    book = book_of("tcp://a:80,b:80,c:80?shuffle=on", uniform=random.Random(3).uniform)
    count = Counter([await dialed(book) for _ in range(300)])
    assert min(count[B], count[C]) > 100
    assert sum(host == A for host, _ in network.started) < 10


@virtual
async def test_the_addresses_of_a_name_are_shuffled_within_their_family() -> None:
    Network.of_loop({}, names={"db": ["fd00::1", "fd00::2", A, B]})
    book = book_of("tcp://db:80?shuffle=on", uniform=random.Random(3).uniform)
    orders = {tuple(hosts(await found(book))) for _ in range(60)}
    assert orders == {
        ("fd00::1", A, "fd00::2", B),
        ("fd00::1", B, "fd00::2", A),
        ("fd00::2", A, "fd00::1", B),
        ("fd00::2", B, "fd00::1", A),
    }


# ------------------------------------------------------------------------------------------ some of several names


@virtual
@pytest.mark.parametrize(
    ("names", "at", "answer"),
    [
        ({"a": (0.1, [A]), "b": (0.1, [B])}, 0.1, [A, B]),
        ({"a": (0.1, [A]), "b": (0.14, [B])}, 0.14, [A, B]),
        ({"a": (0.1, [A]), "b": (0.2, [B])}, 0.15, [A]),
        ({"a": (NEVER, [A]), "b": (0.1, [B])}, 0.15, [B]),
        ({"a": (0.1, socket.gaierror(socket.EAI_NONAME, "")), "b": (1.0, [B])}, 1.0, [B]),
        ({"a": (0.1, []), "b": (1.0, [B])}, 1.0, [B]),
        ({"a": (1.0, socket.gaierror(socket.EAI_NONAME, "")), "b": (0.1, [B])}, 0.15, [B]),
    ],
)
async def test_a_name_that_hangs_does_not_hold_the_others_back(names: Any, at: float, answer: list[str]) -> None:
    loop = asyncio.get_running_loop()
    resolver = Names(**names)
    assert hosts(await book_of("tcp://a:80,b:80", resolver).find(10, "attempt")) == answer
    assert loop.time() == pytest.approx(at)
    late = [name for name, (delay, _) in names.items() if delay > at]
    assert resolver.cancelled == late
    assert len(asyncio.all_tasks()) == 1


@virtual
async def test_of_a_short_limit_half_is_left_for_the_dial() -> None:
    resolver = Names(a=(NEVER, [A]), b=(0.01, [B]))
    assert hosts(await book_of("tcp://a:80,b:80", resolver).find(0.03, "call")) == [B]
    assert asyncio.get_running_loop().time() == pytest.approx(0.02)


@virtual
async def test_no_name_has_an_address_in_time() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    resolver = Names(a=(NEVER, [A]), b=(0.1, unknown), c=(NEVER, [C]))
    with pytest.raises(errors.ConnectTimeout) as caught:
        await book_of("tcp://a:1,b:2,c:3", resolver).find(2.0, "attempt", Policy())
    assert asyncio.get_running_loop().time() == pytest.approx(2.0)
    error = caught.value
    assert (error.phase, error.address) == ("resolve", ("a", 1))
    told = [(each.code, each.address) for each in error.errors]
    assert told == [("ETIMEDOUT", ("a", 1)), ("EAI_NONAME", ("b", 2)), ("ETIMEDOUT", ("c", 3))]


@virtual
async def test_the_policy_says_which_name_decides() -> None:
    unknown, again = (socket.gaierror(number, "") for number in (socket.EAI_NONAME, socket.EAI_AGAIN))
    resolver = Names(a=(0.1, again), b=(0.1, unknown))
    for policy, code in ((Policy(), "EAI_AGAIN"), (Policy(retry_on={"EAI_NONAME"}), "EAI_NONAME")):
        with pytest.raises(errors.NameResolutionError) as caught:
            await book_of("tcp://a:1,b:2", resolver).find(NEVER, "attempt", policy)
        assert caught.value.code == code


@virtual
async def test_a_programming_error_of_a_resolver_is_raised_as_itself() -> None:
    resolver = Names(a=(0.1, [A]), b=(0.1, ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        await book_of("tcp://a:1,b:2", resolver).find(NEVER, "attempt")


async def test_the_late_answer_is_there_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        if host == "a.internal":
            release.wait(5)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ({"a.internal": A}.get(host, B), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    book = book_of("tcp://a.internal:80,b.internal:80", Resolver())
    assert hosts(await found(book)) == [B]
    release.set()
    for _ in range(100):
        if hosts(await found(book)) == [A, B]:
            break
        await asyncio.sleep(0.01)
    assert hosts(book.known(asyncio.get_running_loop().time())) == [A, B]


@virtual
async def test_cancelled_everywhere() -> None:
    async def find() -> list[str]:
        resolver = Names(a=(0.1, [A]), b=(NEVER, [B]), c=(0.12, socket.gaierror(socket.EAI_AGAIN, "")))
        return hosts(await book_of("tcp://a:1,b:2,c:3", resolver).find(NEVER, "attempt"))

    assert await cancel_everywhere(find, close=lambda _: None) >= 3
    assert await find() == [A]


@virtual
async def test_a_name_without_addresses_is_told_of_too() -> None:
    """The dial over the other one has failed: without a word about the name nobody would know why it was left out."""
    Network.of_loop({B: REFUSED})
    resolver = Names(a=(NEVER, [A]), b=(0.1, [B]), c=(0.1, socket.gaierror(socket.EAI_NONAME, "not known")))
    with pytest.raises(errors.ConnectRefused) as caught:
        await Connector("tcp://a:1,b:2,c:3", ONCE, resolver=resolver).dial()
    told = [(each.phase, each.code, each.address, each.elapsed) for each in caught.value.errors]
    assert told == [
        ("connect", "ECONNREFUSED", (B, 2), pytest.approx(0.01)),
        ("resolve", "ETIMEDOUT", ("a", 1), pytest.approx(0.15)),
        ("resolve", "EAI_NONAME", ("c", 3), None),
    ]
    assert isinstance(caught.value.__cause__, errors.ConnectRefused)


@virtual
@pytest.mark.parametrize("late", [False, True])
async def test_a_failed_attempt_is_no_garbage(late: bool) -> None:
    Network.of_loop({B: REFUSED})
    resolver = Names(a=(NEVER if late else 0.0, socket.gaierror(socket.EAI_AGAIN, "")), b=(0.0, [B]))

    async def fails() -> None:
        with contextlib.suppress(errors.ConnectRefused):
            await Connector("tcp://a:1,b:2", ONCE, resolver=resolver).dial()

    assert await garbage_of(fails) == []


async def test_a_lookup_left_behind_is_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        if host == "a.internal":
            release.wait(5)
        return real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = Resolver(ttl=0)

    async def finds() -> None:
        assert len(await book_of("tcp://a.internal:1,b.internal:2", resolver).find(NEVER, "attempt")) == 1

    try:
        assert await garbage_of(finds) == []
    finally:
        release.set()


@virtual
async def test_a_final_answer_of_one_target_does_not_end_it_for_a_name_that_was_late() -> None:
    Network.of_loop({A: OK, B: Reply(0.01, errno.EACCES)})
    resolver = Names(a=(0.06, [A]), b=(0.0, [B]))
    asyncio.get_running_loop().call_later(0.07, resolver.names.__setitem__, "a", (0.0, [A]))
    sock = await Connector("tcp://a:1,b:2", resolver=resolver).dial()
    assert sock.getpeername() == (A, 1)
    sock.close()


@virtual
async def test_a_final_answer_of_all_ends_it() -> None:
    Network.of_loop({A: Reply(0.01, errno.EACCES), B: Reply(0.01, errno.EACCES)})
    resolver = Names(a=(0.01, [A]), b=(0.0, [B]))
    with pytest.raises(errors.AccessDenied) as caught:
        await Connector("tcp://a:1,b:2", resolver=resolver).dial()
    assert caught.value.attempt_count == 1


# ------------------------------------------------------------------------------------------ through a connector


@virtual
async def test_a_connector_learns() -> None:
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    connector = Connector("tcp://db:80", ONCE)
    for _ in range(5):
        (await connector.dial()).close()
    assert [host for host, _ in network.started] == [SIX] + [FOUR] * 5


@virtual
async def test_what_one_connector_learns_another_knows() -> None:
    network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
    connector = Connector("tcp://db:80", ONCE)
    (await connector.dial()).close()
    (await Connector("tcp://db:80", ONCE, share=connector).dial()).close()
    (await connector.unlimited().dial()).close()
    assert [host for host, _ in network.started] == [SIX] + [FOUR] * 3


@virtual
async def test_a_retry_goes_to_the_next_target_first() -> None:
    """What a target does not serve, the next attempt asks the other one for."""
    network = Network.of_loop({A: OK, B: OK}, names={"a": [A], "b": [B]})
    peers: list[str] = []

    async def not_ready(_loop: Any, sock: Any, info: AddressInfo, *_: Any) -> None:
        sock.close()
        peers.append(info.sockaddr[0])
        if len(peers) < 4:
            raise errors.NotReady(phase="prepare", address=info.sockaddr)

    connector = Connector("tcp://a:80,b:80", Policy(retry_on={"NOT_READY"}, wait=Backoff(jitter="none")))
    await connector._call(functools.partial(connector._attempt, not_ready, DialOptions()), None)
    assert peers == [A, B, A, B]
    assert len(network.started) == 4


def test_another_loop_starts_from_nothing() -> None:
    connector = Connector("tcp://db:80", ONCE)

    async def main() -> list[str]:
        network = Network.of_loop({SIX: SILENT, FOUR: OK}, names={"db": [SIX, FOUR]})
        (await connector.dial()).close()
        return [host for host, _ in network.started]

    assert [run_virtual(main(), start=start) for start in (1000.0, 0.0)] == [[SIX, FOUR]] * 2


async def test_a_silent_target_on_real_sockets() -> None:
    with mute() as dead, listening() as alive:
        live = alive.getsockname()[1]
        connector = Connector(f"tcp://127.0.0.1:{dead},127.0.0.1:{live}?happy_eyeballs_delay=20ms", ONCE)
        with await connector.dial() as sock:
            assert sock.getpeername()[1] == live
        order = connector.record.book.known(asyncio.get_running_loop().time())
        assert [info.sockaddr[1] for info in order or ()] == [live, dead]
        with await connector.dial() as sock:
            assert sock.getpeername()[1] == live


async def test_who_accepts_and_hangs_up_comes_last() -> None:
    async with serve(fin_at_once) as bad, serve(plain_echo) as good:
        connector = Connector(f"tcp://127.0.0.1:{bad.address[1]},127.0.0.1:{good.address[1]}", ONCE)
        conn = await connector.connect()
        assert conn.peername == bad.address
        assert await conn.read() == b""
        await conn.aclose()
        async with connector.connect() as conn:
            assert conn.peername == good.address


async def test_refused_over_both_families_and_then_there() -> None:
    with listening("::1") as six:
        port = six.getsockname()[1]
        connector = Connector(f"tcp://127.0.0.1:{closed_port()},[::1]:{port}", ONCE)
        with await connector.dial() as sock:
            assert sock.family == socket.AF_INET6
        error = errors.ConnectRefused(address=("::1", port, 0, 0))
        addresses = connector.record.book.known(0.0) or []
        assert hosts(addresses) == ["::1", "127.0.0.1"]
        connector.record.book.failed(error, addresses, asyncio.get_running_loop().time())
        with await connector.dial() as sock:
            assert sock.family == socket.AF_INET6, "the one that has worked before goes first of those that fail"


def test_the_resolution_delay_is_that_of_the_rfc() -> None:
    assert RESOLUTION_DELAY == 0.05
