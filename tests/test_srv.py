"""Services by their SRV records: against a DNS server of the tests' own, and end to end."""

from __future__ import annotations

import asyncio
import errno
import math
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect import ConfigError, Connection, Connector, Endpoint, Policy, Resolver, errors
from aioconnect.addresses import AddressBook
from aioconnect.endpoint import TLS
from aioconnect.srv import Service, ServiceResolver, in_order
from aioconnect.testing.cancel import cancel_everywhere
from aioconnect.testing.leaks import open_fds
from tests.support import peers
from tests.support.clock import virtual
from tests.support.dns import MUTE, NOERROR, NXDOMAIN, REFUSED, SERVFAIL, SRV, Alias, Zone, dns_server
from tests.support.listeners import closed_port, listening
from tests.support.network import SILENT, Network, Reply
from tests.support.peers import Authority, serve

NAME = "_db._tcp.example.test"
URL = f"srv+tcp://{NAME}"
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
OK, REFUSES = Reply(0.01), Reply(0.01, errno.ECONNREFUSED)
SERVER = "must be an IP address, with or without a port, as in 10.0.0.53:5353"
ONCE = Policy(max_attempts=1, attempt_timeout=3, timeout=6)


@pytest.fixture(scope="module")
def name_server() -> Iterator[Zone]:
    with dns_server() as running:
        yield running


@pytest.fixture
def zone(name_server: Zone) -> Zone:
    name_server.services.clear()
    name_server.asked.clear()
    return name_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def asking(zone: Zone, timeout: float = 5.0) -> ServiceResolver:
    return ServiceResolver(timeout, zone.nameserver)


async def error_of(call: Any) -> Any:
    with pytest.raises(errors.NetworkError) as caught:
        await call
    return caught.value


class Services:
    """A resolver of services by somebody else."""

    def __init__(self, *services: Service, delay: float = 0.0) -> None:
        self.services = list(services)
        self.delay = delay
        self.asked = 0
        self.cache: list[Service] | None = None

    def known(self, name: str, now: float) -> list[Service] | None:
        return self.cache

    def forget(self, name: str) -> None:
        self.cache = None

    async def resolve(self, name: str, *_: Any) -> list[Service]:
        self.asked += 1
        await asyncio.sleep(self.delay)
        self.cache = list(self.services)
        return self.cache


def book_of(services: Any, uniform: Any = lambda low, high: high) -> AddressBook:
    return AddressBook(Endpoint.parse(URL), Resolver(services=services), uniform)


def hosts(addresses: list[Any] | None) -> list[str]:
    return [info.sockaddr[0] for info in addresses or ()]


# ------------------------------------------------------------------------------------------ the order


SERVICES = st.lists(st.builds(Service, st.just("h"), st.integers(1, 99), st.integers(0, 3), st.integers(0, 9)))


@given(SERVICES, st.integers())
def test_an_order_is_a_permutation_by_priority(services: list[Service], seed: int) -> None:
    found = in_order(services, random.Random(seed).uniform)
    assert sorted(found) == sorted(services)
    assert [each.priority for each in found] == sorted(each.priority for each in services)
    assert in_order(services, random.Random(seed).uniform) == found


def test_weights_count_within_a_priority() -> None:
    services = [Service("a", 1, 1, 10), Service("b", 1, 1, 30), Service("c", 1, 2, 1000)]
    uniform = random.Random(5).uniform
    first = Counter(in_order(services, uniform)[0].host for _ in range(4000))
    assert first["c"] == 0
    assert first["b"] / 4000 == pytest.approx(0.75, abs=0.03)


# ------------------------------------------------------------------------------------------ what DNS answers


async def test_the_records_of_a_name(zone: Zone) -> None:
    zone.services[NAME] = [SRV(10, 60, 5432, "a.example.test"), SRV(20, 0, 5433, "b.example.test")]
    services = await asking(zone).resolve(NAME)
    assert sorted(services) == [Service("a.example.test", 5432, 10, 60), Service("b.example.test", 5433, 20, 0)]
    assert zone.asked == [(NAME, "udp")]


@pytest.mark.parametrize("name", ["_DB._TCP.Example.test", f"{NAME}."])
async def test_names_are_those_of_dns(zone: Zone, name: str) -> None:
    zone.services[NAME] = [SRV(10, 0, 1, "a")]
    assert await asking(zone).resolve(name) == [Service("a", 1, 10, 0)]


async def test_a_name_that_is_not_ascii(zone: Zone) -> None:
    zone.services["_db._tcp.xn--bcher-kva.example"] = [SRV(0, 0, 1, "a")]
    assert len(await asking(zone).resolve("_db._tcp.bücher.example")) == 1


@pytest.mark.parametrize(
    ("answer", "cls", "code"),
    [
        (NXDOMAIN, errors.NameNotFound, "EAI_NONAME"),
        (NOERROR, errors.NameNotFound, "EAI_NODATA"),
        ([SRV(0, 0, 0, "")], errors.NameNotFound, "EAI_NODATA"),
        ([SRV(0, 0, 80, "")], errors.NameNotFound, "EAI_NODATA"),
        ([SRV(0, 0, 0, "a.example.test")], errors.NameNotFound, "EAI_NODATA"),
        ([SRV(0, 0, 80, "not a host.example.test")], errors.NameNotFound, "EAI_NODATA"),
        (SERVFAIL, errors.NameServerUnavailable, "EAI_AGAIN"),
        (REFUSED, errors.NameServerUnavailable, "EAI_AGAIN"),
        (Alias("_db._tcp.nowhere.test"), errors.NameNotFound, "EAI_NONAME"),
    ],
    ids=str,
)
async def test_no_service(zone: Zone, answer: Any, cls: type[errors.NetworkError], code: str) -> None:
    zone.services[NAME] = answer
    resolver = asking(zone)
    error = await error_of(resolver.resolve(NAME))
    assert (type(error), error.code, error.phase, error.address) == (cls, code, "resolve", NAME)
    assert issubclass(cls, socket.gaierror)
    assert str(error).startswith(f"resolve {NAME}: [{code}] ")
    assert error.elapsed >= 0
    assert resolver.known(NAME, 0.0) is None, "a failure is not kept"


async def test_other_records_make_up_for_useless_ones(zone: Zone) -> None:
    zone.services[NAME] = [SRV(0, 0, 0, ""), SRV(0, 0, 80, "b c"), SRV(0, 0, 80, "a.example.test")]
    assert await asking(zone).resolve(NAME) == [Service("a.example.test", 80)]


async def test_nobody_is_there() -> None:
    """Answered by ICMP, which is not taken for an answer: the server may be restarting."""
    error = await error_of(ServiceResolver(0.2, f"127.0.0.1:{closed_port()}").resolve(NAME))
    assert isinstance(error, (errors.NameServerUnavailable, errors.ConnectTimeout))
    assert error.phase == "resolve"


async def test_a_mute_server_has_a_limit(zone: Zone) -> None:
    zone.services[NAME] = MUTE
    before = open_fds()
    began = time.monotonic()
    error = await error_of(asking(zone, 0.2).resolve(NAME))
    assert 0.15 < time.monotonic() - began < 2
    assert isinstance(error, errors.ConnectTimeout)
    assert (error.phase, error.address, error.source, error.kind) == ("resolve", NAME, "attempt", "transient")
    await ended(before)


async def test_a_callers_limit_may_be_nearer(zone: Zone) -> None:
    zone.services[NAME] = MUTE
    before = open_fds()
    error = await error_of(asking(zone, 0.4).resolve(NAME, asyncio.get_running_loop().time() + 0.05, "call"))
    assert (type(error), error.source) == (errors.ConnectTimeout, "call")
    await ended(before)


async def ended(before: Any, seconds: float = 3.0) -> None:
    """Wait for the thread of a lookup to end, which nobody waits for any more."""
    end = time.monotonic() + seconds
    while open_fds() - before and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert open_fds() <= before


async def test_a_second_server_is_asked(zone: Zone) -> None:
    with dns_server() as other:
        other.services[NAME] = SERVFAIL
        zone.services[NAME] = [SRV(0, 0, 1, "a")]
        services = ServiceResolver(nameservers=[other.nameserver, zone.nameserver])
        assert await services.resolve(NAME) == [Service("a", 1)]


async def test_a_long_answer_comes_over_tcp(zone: Zone) -> None:
    zone.services[NAME] = [SRV(0, 0, 1 + number, f"host{number}.example.test") for number in range(500)]
    assert len(await asking(zone).resolve(NAME)) == 500
    assert zone.asked == [(NAME, "udp"), (NAME, "tcp")]


@virtual
@pytest.mark.parametrize(
    ("answers", "ttl"),
    [
        ([SRV(0, 0, 1, "a", ttl=60)], 60),
        ([SRV(0, 0, 1, "a", ttl=3600), SRV(0, 0, 1, "b", ttl=3600)], 3600),
        (Alias("_real._tcp.example.test", ttl=20), 20),
    ],
)
async def test_an_answer_is_good_for_its_ttl(zone: Zone, answers: Any, ttl: int) -> None:
    zone.services |= {NAME: answers, "_real._tcp.example.test": [SRV(0, 0, 1, "c", ttl=60)]}
    loop, resolver = asyncio.get_running_loop(), asking(zone)
    await resolver.resolve(NAME)
    for _ in range(2):
        await asyncio.sleep(ttl / 2 - 0.5)
        await resolver.resolve(NAME)
        assert resolver.known(NAME, loop.time())
    assert len(zone.asked) == 1
    await asyncio.sleep(1)
    assert resolver.known(NAME, loop.time()) is None
    await resolver.resolve(NAME)
    assert len(zone.asked) == 2


async def test_a_ttl_of_zero_is_for_one_dial(zone: Zone) -> None:
    zone.services[NAME] = [SRV(0, 0, 1, "a", ttl=0)]
    resolver = asking(zone)
    for _ in range(2):
        await resolver.resolve(NAME)
    assert len(zone.asked) == 2


async def test_a_hundred_callers_share_one_lookup(zone: Zone) -> None:
    zone.services[NAME] = [SRV(0, 0, 1, "a")]
    resolver = asking(zone)
    callers = [asyncio.ensure_future(resolver.resolve(NAME)) for _ in range(100)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    assert all(outcome == [Service("a", 1)] for outcome in outcomes[1::2])
    assert len(zone.asked) == 1


async def test_each_caller_has_an_error_of_its_own(zone: Zone) -> None:
    resolver = asking(zone)
    outcomes = await asyncio.gather(*(resolver.resolve(NAME) for _ in range(3)), return_exceptions=True)
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert {type(outcome) for outcome in outcomes} == {errors.NameNotFound}
    assert len(zone.asked) == 1


async def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dns"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dns", None)
    with pytest.raises(ConfigError) as caught:
        await Connector(URL).connect()
    problem = f"srv={NAME}: needs dnspython; install the extra dns: pip install 'aioconnect[dns]'"
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"timeout": 0}, "timeout=0: must be more than 0 and finite"),
        ({"nameservers": "ns.example.test"}, f"nameservers='ns.example.test': {SERVER}"),
        ({"nameservers": ["10.0.0.53:0"]}, "nameservers.port=0: must be an integer from 1 to 65535"),
        ({"nameservers": [53]}, f"nameservers=53: {SERVER}"),
        ({"nameservers": 53}, "nameservers=53: must be a sequence, or a text with commas"),
    ],
)  # fmt: skip
def test_wrong_settings(arguments: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceResolver(**arguments)
    assert caught.value.problems == (problem,)


def test_name_servers() -> None:
    servers = ServiceResolver(nameservers="10.0.0.53,10.0.0.54:5353,::1,[::1]:5353").nameservers
    assert servers == (("10.0.0.53", 53), ("10.0.0.54", 5353), ("::1", 53), ("::1", 5353))


def test_a_resolver_takes_a_resolver_of_services() -> None:
    services = ServiceResolver()
    assert Resolver(services=services).services is services
    with pytest.raises(ConfigError, match="services"):
        Resolver(services=object())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ the addresses of a service


@virtual
async def test_hosts_are_tried_by_priority_and_weight() -> None:
    network = Network.of_loop({A: OK, B: OK, C: OK}, names={"a": [A], "b": [B], "c": [C]})
    services = Services(Service("c", 3, 20), Service("a", 1, 10, 10), Service("b", 2, 10, 30))
    book = book_of(services, random.Random(11).uniform)
    first: Counter[str] = Counter()
    for _ in range(1000):
        addresses = book.known(0.0) or await book.find(math.inf, "call")
        assert [info.sockaddr[1] for info in addresses][2] == 3
        first[addresses[0].sockaddr[0]] += 1
    assert first[B] / 1000 == pytest.approx(0.75, abs=0.05)
    assert (services.asked, network.lookups) == (1, sorted(network.lookups, key="bac".index))


@virtual
async def test_what_fails_gives_way_to_the_next_priority() -> None:
    network = Network.of_loop({A: REFUSES, B: OK}, names={"a": [A], "b": [B]})
    services = Services(Service("a", 80, 10), Service("b", 80, 20))
    connector = Connector(URL, ONCE, resolver=Resolver(services=services))
    for _ in range(3):
        (await connector.dial()).close()
    assert [host for host, _ in network.started] == [A, B, B, B]
    network.replies = {A: OK, B: OK}
    await asyncio.sleep(30)
    (await connector.dial()).close()
    assert network.started[-1][0] == A, "it is the preferred one"


@virtual
async def test_a_dead_ipv6_path_to_a_host_costs_its_delay_once() -> None:
    network = Network.of_loop({"fd00::1": SILENT, A: OK}, names={"a": ["fd00::1", A]})
    connector = Connector(URL, ONCE, resolver=Resolver(services=Services(Service("a", 80))))
    for _ in range(10):
        (await connector.dial()).close()
    assert Counter(host for host, _ in network.started) == {"fd00::1": 1, A: 10}


@virtual
async def test_when_all_fail_the_service_is_asked_for_anew() -> None:
    network = Network.of_loop({A: REFUSES, B: OK}, names={"a": [A], "b": [B]})
    services = Services(Service("a", 80))
    connector = Connector(URL, Policy(attempt_timeout=1, timeout=60), resolver=Resolver(services=services))
    network.loop.call_later(0.005, services.services.__setitem__, 0, Service("b", 80))
    sock = await connector.dial()
    assert sock.getpeername() == (B, 80)
    sock.close()
    assert services.asked == 2


@virtual
async def test_a_host_whose_name_hangs_or_is_unknown_does_not_hold_the_others_back() -> None:
    Network.of_loop({B: OK}, names={"a": socket.gaierror(socket.EAI_NONAME, ""), "b": [B]})
    services = Services(Service("a", 80, 1), Service("b", 80, 2))
    assert hosts(await book_of(services).find(math.inf, "call")) == [B]


@virtual
async def test_no_host_has_an_address() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "")
    Network.of_loop({}, names={"a": unknown, "b": unknown})
    services = Services(Service("a", 80, 1), Service("b", 81, 2))
    error = await error_of(Connector(URL, ONCE, resolver=Resolver(services=services)).dial())
    assert isinstance(error, errors.NameNotFound)
    assert [each.address for each in error.errors] == [("a", 80), ("b", 81)]


@virtual
async def test_no_dial_looks_up_more_than_sixteen_hosts() -> None:
    names = {f"h{number}": [f"10.0.{number // 200}.{number % 200 + 1}"] for number in range(1000)}
    network = Network.of_loop({}, names=names)
    book = book_of(Services(*(Service(name, 80) for name in names)), random.Random(1).uniform)
    assert len(await book.find(math.inf, "call")) == 16
    assert len(network.lookups) == 16


@virtual
@pytest.mark.parametrize("wrong", [[], ZeroDivisionError(), OSError(errno.ENETUNREACH, "")], ids=repr)
async def test_somebody_elses_services(wrong: Any) -> None:
    class Wrong(Services):
        async def resolve(self, name: str, *_: Any) -> list[Service]:
            if isinstance(wrong, Exception):
                raise wrong
            return []

    expected = ZeroDivisionError if isinstance(wrong, ZeroDivisionError) else errors.ConnectError
    with pytest.raises(expected) as caught:
        await Connector(URL, ONCE, resolver=Resolver(services=Wrong())).dial()
    if isinstance(caught.value, errors.NetworkError):
        assert (caught.value.phase, caught.value.address) == ("resolve", NAME)


@virtual
async def test_somebody_elses_services_have_our_limit() -> None:
    Network.of_loop({})
    slow = Services(Service("a", 80), delay=1e9)
    error = await error_of(Connector(URL, ONCE, resolver=Resolver(services=slow)).dial())
    assert (type(error), error.phase, error.address) == (errors.ConnectTimeout, "resolve", NAME)
    assert asyncio.get_running_loop().time() == pytest.approx(3)


@virtual
async def test_cancelled_everywhere() -> None:
    async def dial() -> socket.socket:
        Network.of_loop({A: REFUSES, B: OK}, names={"a": [A], "b": [B]})
        services = Services(Service("a", 80, 1), Service("b", 80, 2), delay=0.1)
        return await Connector(URL, ONCE, resolver=Resolver(services=services)).dial()

    assert await cancel_everywhere(dial, close=lambda sock: sock.close()) >= 3


# ------------------------------------------------------------------------------------------ end to end


async def test_connect(zone: Zone) -> None:
    async with serve(peers.plain_echo) as peer:
        zone.services[NAME] = [SRV(10, 0, closed_port(), "localhost"), SRV(20, 0, peer.address[1], "localhost")]
        connector = Connector(URL, ONCE, resolver=Resolver(services=asking(zone)))
        async with connector.connect() as conn:
            await conn.send(b"hello")
            assert await conn.readexactly(5) == b"hello"
            assert conn.peername == peer.address
            assert conn.endpoint == Endpoint.parse(URL)
        (await connector.connect()).abort()
        assert len(zone.asked) == 1


async def test_the_error_says_what_was_asked(zone: Zone) -> None:
    zone.services[NAME] = [SRV(0, 0, 0, "")]
    error = await error_of(Connector(URL, ONCE, resolver=Resolver(services=asking(zone))).connect())
    assert isinstance(error, errors.NameNotFound)
    assert (error.endpoint, error.stop_reason) == (URL, "permanent")
    assert f"{NAME}: [EAI_NODATA] the records name no host" in str(error)


async def test_cancelled_everywhere_with_a_real_server(zone: Zone) -> None:
    """A lookup that nobody waits for any more ends by itself, and closes what it has opened."""
    with listening() as listener:
        zone.services[NAME] = [SRV(10, 0, listener.getsockname()[1], "localhost", ttl=0)]
        resolver = Resolver(services=asking(zone))

        async def connect() -> Connection:
            return await Connector(URL, ONCE, resolver=resolver).connect()

        assert await cancel_everywhere(connect, close=Connection.abort) >= 2


async def test_tls_verifies_the_domain_that_was_asked_for(zone: Zone, authority: Authority) -> None:
    """And not the host that DNS made of it: RFC 6125 section 6.2.1."""
    tls = TLS(ca_file=authority.ca_file)
    resolver = Resolver(services=asking(zone))
    for names, right in ((("example.test",), True), (("localhost",), False)):
        async with serve(peers.tls_echo(authority.server_context(*names))) as peer:
            zone.services[NAME] = [SRV(0, 0, peer.address[1], "localhost", ttl=0)]
            connector = Connector(Endpoint(srv=NAME, tls=tls), ONCE, resolver=resolver)
            if right:
                (await connector.connect()).abort()
            else:
                assert isinstance(await error_of(connector.connect()), errors.CertificateRejected)
    async with serve(peers.tls_echo(authority.server_context("localhost"))) as peer:
        zone.services[NAME] = [SRV(0, 0, peer.address[1], "localhost", ttl=0)]
        named = Endpoint(srv=NAME, tls=TLS(ca_file=authority.ca_file, server_hostname="localhost"))
        (await Connector(named, ONCE, resolver=resolver).connect()).abort()


async def test_start_tls_verifies_the_domain_too(zone: Zone, authority: Authority) -> None:
    async with serve(peers.tls_echo(authority.server_context("example.test"))) as peer:
        zone.services[NAME] = [SRV(0, 0, peer.address[1], "localhost")]
        conn = await Connector(URL, ONCE, resolver=Resolver(services=asking(zone))).connect()
        await conn.start_tls(TLS(ca_file=authority.ca_file))
        await conn.send(b"hello")
        assert await conn.readexactly(5) == b"hello"
        conn.abort()
