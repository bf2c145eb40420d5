"""What a connect reports when the network really fails: each row is a fault made by a kernel, in namespaces.

One table, run once per event loop: the answers have to be the same on both. See `tests/support/netns.py` for
the hosts, and `tests/support/child.py` for the program that dials from inside them.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import pytest

from tests.support import netns
from tests.support.child import Children, Outcome, Report, available_loops
from tests.support.netns import FAR4, FAR6, LINK6, NARROW_LISTENS, NARROW_PORT, WAN_INDEX, Lab, LabUnavailable

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LOOPS: Final = available_loops()
WARM_UP: Final = {"name": "warm-up", "host": "localhost", "port": 9}

HOSTS: Final = ("near", "plain", "narrow", "narrow too")
RETRIED: Final = ("transient", "local")  # what a policy retries unless told otherwise

Reports = dict[tuple[str, str], Report]


class Row(NamedTuple):
    """One fault and what is to be reported. `address` is where the failing socket was to go, unless given."""

    name: str
    where: str
    host: str
    port: int
    error: str
    code: str
    kind: str
    phase: str = "connect"
    address: tuple[Any, ...] | None = None
    errors: tuple[tuple[Any, str], ...] | None = None
    scenario: Mapping[str, Any] = MappingProxyType({})

    @property
    def expected_errno(self) -> int:
        number: int = getattr(errno, self.code, None) or getattr(socket, self.code)
        return number

    @property
    def expected_address(self) -> tuple[Any, ...]:
        if self.address is not None:
            return self.address
        if self.phase == "resolve":
            return (self.host, self.port)
        return sockaddr(self.host, self.port)


def sockaddr(host: str, port: int) -> tuple[Any, ...]:
    return (host, port, 0, 0) if ":" in host else (host, port)


# fmt: off
REFUSED: Final = ("ConnectRefused", "ECONNREFUSED", "transient")
TIMED_OUT: Final = ("ConnectTimeout", "ETIMEDOUT", "transient")
NO_HOST: Final = ("HostUnreachable", "EHOSTUNREACH", "transient")
NO_NETWORK: Final = ("NetworkUnreachable", "ENETUNREACH", "transient")
NO_PROTOCOL: Final = ("HostUnreachable", "ENOPROTOOPT", "transient")
DENIED: Final = ("AccessDenied", "EACCES", "denied")
INVALID: Final = ("ConnectError", "EINVAL", "permanent")
NO_NAME: Final = ("NameNotFound", "EAI_NONAME", "starting", "resolve")
NO_DATA: Final = ("NameNotFound", "EAI_NODATA", "starting", "resolve")
NO_SERVER: Final = ("NameServerUnavailable", "EAI_AGAIN", "transient", "resolve")
NO_PORTS: Final = ("EphemeralPortsExhausted", "EADDRNOTAVAIL", "local")
NO_PORTS_TO_BIND: Final = ("AddressInUse", "EADDRINUSE", "local", "bind")
NOT_OURS: Final = ("AddressNotAvailable", "EADDRNOTAVAIL", "permanent", "bind")
ONLY_V6: Final = {"kw": {"family": int(socket.AF_INET6)}}
NO_IPV6: Final = ("AddressNotAvailable", "EADDRNOTAVAIL", "permanent")

FILTERED: Final = (
    Row("refused by the peer", "near", FAR4, 1, *REFUSED),
    Row("refused by the peer, v6", "near", FAR6, 1, *REFUSED),
    Row("DROP", "near", FAR4, 7000, *TIMED_OUT),
    Row("REJECT tcp-reset", "near", FAR4, 7001, *REFUSED),
    Row("REJECT port-unreachable", "near", FAR4, 7002, *REFUSED),
    Row("REJECT host-unreachable", "near", FAR4, 7003, *NO_HOST),
    Row("REJECT net-unreachable", "near", FAR4, 7004, *NO_NETWORK),
    Row("REJECT admin-prohibited", "near", FAR4, 7005, *NO_HOST),
    Row("REJECT host-prohibited", "near", FAR4, 7006, *NO_HOST),
    Row("REJECT net-prohibited", "near", FAR4, 7007, *NO_NETWORK),
    Row("REJECT proto-unreachable", "near", FAR4, 7008, *NO_PROTOCOL),
    Row("DROP v6", "near", FAR6, 7000, *TIMED_OUT),
    Row("REJECT v6 tcp-reset", "near", FAR6, 7001, *REFUSED),
    Row("REJECT v6 port-unreachable", "near", FAR6, 7002, *REFUSED),
    Row("REJECT v6 addr-unreachable", "near", FAR6, 7003, *NO_HOST),
    Row("REJECT v6 no-route", "near", FAR6, 7004, *NO_NETWORK),
    # The same firewall answer is EHOSTUNREACH over IPv4 and EACCES over IPv6 (linux net/ipv6/icmp.c).
    Row("REJECT v6 adm-prohibited", "near", FAR6, 7005, *DENIED),
    Row("REJECT v6 policy-fail", "near", FAR6, 7009, *DENIED),
    Row("REJECT v6 reject-route", "near", FAR6, 7010, *DENIED),
    Row("OUTPUT DROP", "near", FAR4, 7100, *TIMED_OUT),
    Row("OUTPUT REJECT tcp-reset", "near", FAR4, 7101, *REFUSED),
    Row("OUTPUT REJECT port-unreachable", "near", FAR4, 7102, *REFUSED),
    Row("OUTPUT REJECT host-unreachable", "near", FAR4, 7103, *NO_HOST),
    Row("OUTPUT REJECT admin-prohibited", "near", FAR4, 7105, *NO_HOST),
    Row(
        "SOCK_DESTROY while connecting", "near", FAR4, 7011, "ConnectAborted", "ECONNABORTED", "transient",
        scenario={"kill": [0.5, "state syn-sent dport = :7011"]},
    ),
)

ROUTED: Final = (
    Row("route unreachable", "near", "10.98.1.1", 80, *NO_HOST),
    Row("route prohibit", "near", "10.98.2.1", 80, *DENIED),
    Row("route blackhole", "near", "10.98.3.1", 80, *INVALID),
    Row("route throw", "near", "10.98.4.1", 80, *NO_NETWORK),
    Row("no route", "near", "10.98.9.9", 80, *NO_NETWORK),
    Row("route v6 unreachable", "near", "fd98:1::1", 80, *NO_HOST),
    Row("route v6 prohibit", "near", "fd98:2::1", 80, *DENIED),
    Row("route v6 blackhole", "near", "fd98:3::1", 80, *INVALID),
    Row("route v6 throw", "near", "fd98:4::1", 80, *NO_NETWORK),
    Row("no route v6", "near", "fd98:9::1", 80, *NO_NETWORK),
    Row("router without a route", "near", "10.97.9.9", 80, *NO_NETWORK),
    Row("router unreachable", "near", "10.97.1.1", 80, *NO_HOST),
    Row("router prohibit", "near", "10.97.2.1", 80, *NO_HOST),
    Row("router blackhole", "near", "10.97.3.1", 80, *TIMED_OUT),
    Row("router v6 without a route", "near", "fd97:9::1", 80, *NO_NETWORK),
    Row("router v6 unreachable", "near", "fd97:1::1", 80, *NO_NETWORK),
    Row("router v6 prohibit", "near", "fd97:2::1", 80, *DENIED),
    Row("router v6 blackhole", "near", "fd97:3::1", 80, *TIMED_OUT),
    Row("interface down", "near", "10.95.0.2", 80, *NO_NETWORK),
    Row("no carrier", "near", "10.96.0.2", 80, *NO_HOST),
    Row("ARP not answered", "near", "10.99.0.77", 80, *NO_HOST),
    Row("ND not answered", "near", "fd99::77", 80, *NO_HOST),
    Row("neighbour gone", "near", "10.99.0.78", 80, *TIMED_OUT),
    Row("neighbour gone v6", "near", "fd99::78", 80, *TIMED_OUT),
    Row("limited broadcast", "near", "255.255.255.255", 80, *NO_NETWORK),
    Row("subnet broadcast", "near", "10.99.0.255", 80, *NO_NETWORK),
    Row("multicast", "near", "224.0.0.1", 80, *NO_NETWORK),
    Row("class E", "near", "240.0.0.1", 80, *NO_NETWORK),
    Row("any address means loopback", "near", "0.0.0.0", 1, *REFUSED),
    Row("any v6 address means loopback", "near", "::", 1, *REFUSED),
    Row("link-local, refused", "near", f"{LINK6}%wan", 1, *REFUSED, address=(LINK6, 1, 0, WAN_INDEX)),
)

# Linux net/ipv4/icmp.c, icmp_err_convert[]: what the code of a destination-unreachable message turns into.
BY_ICMP: Final = (
    Row("ICMP 3/0 net-unreach", "near", FAR4, 7200, *NO_NETWORK),
    Row("ICMP 3/1 host-unreach", "near", FAR4, 7201, *NO_HOST),
    Row("ICMP 3/2 proto-unreach", "near", FAR4, 7202, *NO_PROTOCOL),
    Row("ICMP 3/3 port-unreach", "near", FAR4, 7203, *REFUSED),
    Row("ICMP 3/4 frag-needed", "near", FAR4, 7204, *TIMED_OUT),
    Row("ICMP 3/5 source-route-failed", "near", FAR4, 7205, "ConnectError", "EOPNOTSUPP", "permanent"),
    Row("ICMP 3/6 net-unknown", "near", FAR4, 7206, *NO_NETWORK),
    Row("ICMP 3/7 host-unknown", "near", FAR4, 7207, "HostUnreachable", "EHOSTDOWN", "transient"),
    Row("ICMP 3/8 host-isolated", "near", FAR4, 7208, "HostUnreachable", "ENONET", "transient"),
    Row("ICMP 3/9 net-ano", "near", FAR4, 7209, *NO_NETWORK),
    Row("ICMP 3/10 host-ano", "near", FAR4, 7210, *NO_HOST),
    Row("ICMP 3/11 net-unr-tos", "near", FAR4, 7211, *NO_NETWORK),
    Row("ICMP 3/12 host-unr-tos", "near", FAR4, 7212, *NO_HOST),
    Row("ICMP 3/13 pkt-filtered", "near", FAR4, 7213, *NO_HOST),
    Row("ICMP 3/14 prec-violation", "near", FAR4, 7214, *NO_HOST),
    Row("ICMP 3/15 prec-cutoff", "near", FAR4, 7215, *NO_HOST),
    Row("ICMP 11/0 time exceeded", "near", FAR4, 7300, *NO_HOST),
    Row("ICMP 12/0 parameter problem", "near", FAR4, 7400, "ConnectError", "EPROTO", "permanent"),
    Row("ICMP 4/0 source quench", "near", FAR4, 7401, *TIMED_OUT),
)

NAMED: Final = (
    Row("NXDOMAIN", "near", "nxdomain.test", 80, *NO_NAME),
    Row("SERVFAIL", "near", "servfail.test", 80, *NO_SERVER),
    Row("REFUSED", "near", "refused.test", 80, *NO_SERVER),
    Row("NOTIMP", "near", "notimp.test", 80, *NO_SERVER),
    Row("FORMERR", "near", "formerr.test", 80, *NO_NAME),
    Row("NODATA", "near", "nodata.test", 80, *NO_DATA),
    Row("mute server", "near", "mute.test", 80, *NO_SERVER),
    Row("no server", "plain", "ok.test", 80, *NO_SERVER),
    Row("A NXDOMAIN, AAAA SERVFAIL", "near", "nx4sf6.test", 80, *NO_NAME),
    Row("A ok, AAAA SERVFAIL", "near", "ok4sf6.test", 1, *REFUSED, address=("127.0.0.1", 1)),
    Row("A SERVFAIL, AAAA ok", "near", "sf4ok6.test", 1, *REFUSED, address=("::1", 1, 0, 0)),
    Row("name without that family", "near", "only-v4.test", 80, *NO_NAME, scenario=ONLY_V6),
    Row(
        "name without the family of the local address", "near", "only-v4.test", 81, *NO_NAME,
        scenario={"kw": {"local_addr": ["fd99::1", 0]}},
    ),
    Row("scope of no interface", "near", "fe80::1%nosuch0", 80, *NO_NAME),
)


def several(
    name: str, where: str, target: tuple[str, int], top: tuple[str, str, str], *errors: Any, **scenario: Any
) -> Row:
    """A row for a name with several addresses: the first of the `errors` decides."""
    address = errors[0][0]
    return Row(name, where, *target, *top, "connect", address, errors=errors, scenario=scenario)


# Which address decides: a retryable answer first, then a real one before the noise of a second family.
SEVERAL: Final = (
    several(
        "resolves, refused twice", "near", ("ok.test", 1), REFUSED,
        (("::1", 1, 0, 0), "ECONNREFUSED"), (("127.0.0.1", 1), "ECONNREFUSED"),
    ),
    several(
        "localhost, refused twice", "near", ("localhost", 1), REFUSED,
        (("::1", 1, 0, 0), "ECONNREFUSED"), (("127.0.0.1", 1), "ECONNREFUSED"),
    ),
    several(
        "refused, and no route for v6", "near", ("no-route-to-v6.test", 1), REFUSED,
        ((FAR4, 1), "ECONNREFUSED"), (("fd98:9::1", 1, 0, 0), "ENETUNREACH"),
    ),
    several(
        "no host, and no route for v6", "near", ("no-route-to-v6.test", 7003), NO_HOST,
        ((FAR4, 7003), "EHOSTUNREACH"), (("fd98:9::1", 7003, 0, 0), "ENETUNREACH"),
    ),
    several(
        "retryable before denied", "near", ("two-answers.test", 7005), NO_HOST,
        ((FAR4, 7005), "EHOSTUNREACH"), ((FAR6, 7005, 0, 0), "EACCES"),
    ),
    several(
        "denied, where that is retryable too", "near", ("two-answers.test", 7005), DENIED,
        ((FAR6, 7005, 0, 0), "EACCES"), ((FAR4, 7005), "EHOSTUNREACH"),
        policy={"retry_on": ["TRANSIENT", "DENIED"]},
    ),
    several(
        "refused before prohibited", "near", ("denied-and-refused.test", 1), REFUSED,
        ((FAR4, 1), "ECONNREFUSED"), (("fd98:2::1", 1, 0, 0), "EACCES"),
    ),
    several(
        "an answer before silence", "near", ("two-answers.test", 7012), REFUSED,
        ((FAR4, 7012), "ECONNREFUSED"), ((FAR6, 7012, 0, 0), "ETIMEDOUT"),
        policy={"attempt_timeout": 0.8},
    ),
    several(
        "v6 switched off, localhost", "plain", ("localhost", 1), REFUSED,
        (("127.0.0.1", 1), "ECONNREFUSED"), (("::1", 1, 0, 0), "EADDRNOTAVAIL"),
    ),
    several(
        "v6 off on loopback, localhost", "narrow", ("localhost", 1), REFUSED,
        (("127.0.0.1", 1), "ECONNREFUSED"), (("::1", 1, 0, 0), "ENETUNREACH"),
    ),
    # The local address leaves one family to resolve the name for.
    Row(
        "local address of nobody, two families", "near", "two-answers.test", 1, *NOT_OURS,
        address=(FAR4, 1), errors=(((FAR4, 1), "EADDRNOTAVAIL"),),
        scenario={"kw": {"local_addr": ["10.9.9.9", 0]}},
    ),
)

LOCAL: Final = (
    Row("v6 switched off, loopback", "plain", "::1", 1, *NO_IPV6),
    Row("v6 switched off, global", "plain", "fd99::2", 1, *NO_IPV6),
    Row("v6 off on loopback", "narrow", "::1", 1, *NO_NETWORK),
    Row(
        "local address of nobody", "near", FAR4, 1, *NOT_OURS,
        scenario={"kw": {"local_addr": ["10.9.9.9", 0]}},
    ),
    Row(
        "ephemeral ports exhausted", "narrow", "127.1.0.1", NARROW_LISTENS, *NO_PORTS,
        scenario={"fill": ["127.1.0.1", NARROW_LISTENS, None, 1]},
    ),
    # A host of its own: a port that somebody has bound is skipped by every connect() that does not bind.
    Row(
        "ephemeral ports exhausted, bound", "narrow too", "127.1.0.2", NARROW_LISTENS, *NO_PORTS_TO_BIND,
        scenario={
            "fill": ["127.1.0.2", NARROW_LISTENS, "127.2.0.2", 1],
            "kw": {"local_addr": ["127.2.0.2", 0]},
        },
    ),
    # The only ephemeral port is the one dialled: the kernel connects the socket to itself, and calls it a
    # success.
    Row("self-connect", "narrow", "127.0.0.1", NARROW_PORT, *REFUSED),
)
# fmt: on

ROWS: Final = (*FILTERED, *ROUTED, *BY_ICMP, *NAMED, *SEVERAL, *LOCAL)


class Limit(NamedTuple):
    """Something silent, and whose patience ends first."""

    name: str
    host: str
    port: int
    policy: dict[str, float]
    source: str
    phase: str = "connect"
    stop_reason: str = "attempts"


LIMITS: Final = (
    Limit("the kernel's limit", FAR4, 7000, {}, "kernel"),
    Limit("the attempt's limit", FAR4, 7000, {"attempt_timeout": 0.5}, "attempt"),
    Limit("the call's limit", FAR4, 7000, {"timeout": 0.5}, "call", stop_reason="timeout"),
    Limit("the attempt's limit, resolving", "mute.test", 80, {"attempt_timeout": 0.5}, "attempt", "resolve"),
    Limit("the call's limit, resolving", "mute.test", 81, {"timeout": 0.5}, "call", "resolve", "timeout"),
)


class Loss(NamedTuple):
    """A connection that is established and then lost; `error` and `code` are what using it then raises."""

    name: str
    endpoint: dict[str, Any]
    use: list[str]
    error: str
    code: str


LOSSES: Final = (
    Loss(
        "peer vanishes while data is outstanding",
        {"host": FAR4, "port": netns.SWALLOWS_DATA, "user_timeout": 2},
        ["write", "read", "write"],
        "ConnectionTimedOut",
        "ETIMEDOUT",
    ),
    Loss(
        "peer vanishes while idle",
        {"host": FAR4, "port": netns.SWALLOWS_ACKS, "keepalive": [1, 1, 2]},
        ["read", "write"],
        "ConnectionTimedOut",
        "ETIMEDOUT",
    ),
    Loss(
        "firewall resets",
        {"host": FAR4, "port": netns.RESETS_DATA},
        ["write", "read", "write"],
        "ConnectionResetByPeer",
        "ECONNRESET",
    ),
    # An ICMP error does not end an established connection; it is what its end is put down to (RFC 1122, 4.2.3.9).
    Loss(
        "firewall rejects",
        {"host": FAR4, "port": netns.REJECTS_DATA, "user_timeout": 2},
        ["write", "read", "write"],
        "ConnectionLost",
        "EHOSTUNREACH",
    ),
    Loss(
        "firewall rejects v6",
        {"host": FAR6, "port": netns.REJECTS_DATA, "user_timeout": 2},
        ["write", "read", "write"],
        "ConnectionLost",
        "EACCES",
    ),
    Loss(
        "SOCK_DESTROY",
        {"host": FAR4, "port": netns.LISTENS},
        ["kill", "read", "write"],
        "ConnectionAborted",
        "ECONNABORTED",
    ),
)


class Service(NamedTuple):
    """A name with SRV records, asked for by way of resolv.conf(5), and who answers or what is reported."""

    srv: str
    answered: tuple[str, int] | None = None
    error: str | None = None
    code: str | None = None
    phase: str = "resolve"
    errors: tuple[tuple[Any, str], ...] = ()

    @property
    def name(self) -> str:
        return self.srv


SERVICES: Final = (
    Service("_reserve._tcp.test", (FAR4, netns.LISTENS)),
    Service(
        "_refused._tcp.test",
        None,
        "ConnectRefused",
        "ECONNREFUSED",
        "connect",
        (((FAR4, 7001), "ECONNREFUSED"), ((FAR4, 7003), "EHOSTUNREACH")),
    ),
    Service(
        "_nobody._tcp.test",
        None,
        "NameServerUnavailable",
        "EAI_AGAIN",
        errors=((("nxdomain.test", 80), "EAI_NONAME"), (("servfail.test", 81), "EAI_AGAIN")),
    ),
    Service("_none._tcp.test", None, "NameNotFound", "EAI_NODATA"),
    Service("_empty._tcp.test", None, "NameNotFound", "EAI_NODATA"),
    Service("_unheard-of._tcp.test", None, "NameNotFound", "EAI_NONAME"),
    Service("_servfail._tcp.test", None, "NameServerUnavailable", "EAI_AGAIN"),
    Service("_notforyou._tcp.test", None, "NameServerUnavailable", "EAI_AGAIN"),
)


def scenarios_of(where: str) -> list[dict[str, Any]]:
    rows = [
        {"name": row.name, "host": row.host, "port": row.port, **row.scenario} for row in ROWS if row.where == where
    ]
    if where != "near":
        return rows
    limits = [{"name": it.name, "host": it.host, "port": it.port, "policy": it.policy} for it in LIMITS]
    losses = [{"name": it.name, "endpoint": it.endpoint, "use": it.use} for it in LOSSES]
    services = [{"name": it.name, "endpoint": {"srv": it.srv}} for it in SERVICES]
    return rows + limits + losses + services


@pytest.fixture(scope="module")
def reports() -> Reports:
    """What the program printed, by loop and host. All of them run at once: most of the time is waiting."""
    try:
        with Lab() as lab, Children() as children:
            for loop in LOOPS:
                for where, host in zip(HOSTS, (lab.near, lab.plain, lab.narrow(), lab.narrow()), strict=True):
                    request = {"loop": loop, "warm_up": [WARM_UP], "scenarios": scenarios_of(where)}
                    children.start((loop, where), request, host.argv())
            return children.reports()
    except LabUnavailable as exc:
        pytest.skip(str(exc))


def names(table: Iterable[Any]) -> list[str]:
    return [entry.name for entry in table]


def summary(outcome: Outcome) -> dict[str, Any]:
    """The fields that tell what happened; address lists are tuples again."""
    told = {key: outcome.get(key) for key in ("type", "errno", "code", "kind", "phase", "address", "stop_reason")}
    if isinstance(told["address"], list):
        told["address"] = tuple(told["address"])
    return told


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_fault_is_reported_as_what_it_is(reports: Reports, row: Row, loop: str) -> None:
    outcome = reports[loop, row.where]["outcomes"][row.name]
    assert summary(outcome) == {
        "type": row.error,
        "errno": row.expected_errno,
        "code": row.code,
        "kind": row.kind,
        "phase": row.phase,
        "address": row.expected_address,
        "stop_reason": "attempts" if row.kind in RETRIED or "policy" in row.scenario else "permanent",
    }, outcome["text"]
    told = sorted((tuple(each["address"]), each["code"]) for each in outcome["errors"])
    if row.errors is not None:
        assert told == sorted(row.errors)
    elif row.address is None:
        assert told == [(row.expected_address, row.code)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("limit", LIMITS, ids=names(LIMITS))
def test_who_ran_out_of_time(reports: Reports, limit: Limit, loop: str) -> None:
    outcome = reports[loop, "near"]["outcomes"][limit.name]
    assert summary(outcome) == {
        "type": "ConnectTimeout",
        "errno": errno.ETIMEDOUT,
        "code": "ETIMEDOUT",
        "kind": "transient",
        "phase": limit.phase,
        "address": (limit.host, limit.port),
        "stop_reason": limit.stop_reason,
    }, outcome["text"]
    assert outcome["source"] == limit.source
    assert "TimeoutError" in outcome["mro"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("loss", LOSSES, ids=names(LOSSES))
def test_lost_connection_says_why(reports: Reports, loss: Loss, loop: str) -> None:
    outcome = reports[loop, "near"]["outcomes"][loss.name]
    assert outcome["type"] is None, outcome["text"]
    before = loss.use.index("read")
    assert [step["type"] for step in outcome["use"][:before]] == [None] * before
    for step in outcome["use"][before:]:
        assert (step["type"], step["code"], step["errno"]) == (
            loss.error,
            loss.code,
            getattr(errno, loss.code),
        )
        assert (step["phase"], step["kind"]) == ("use", "transient")
        assert step["address"][:2] == [loss.endpoint["host"], loss.endpoint["port"]]
        assert "ConnectionLost" in step["mro"]
        assert "ConnectError" not in step["mro"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("service", SERVICES, ids=names(SERVICES))
def test_a_service_is_found_or_said_not_to_be(reports: Reports, service: Service, loop: str) -> None:
    outcome = reports[loop, "near"]["outcomes"][service.name]
    assert outcome["type"] == service.error, outcome.get("text")
    if service.answered is not None:
        assert tuple(outcome["peername"]) == service.answered
        return
    assert (outcome["code"], outcome["phase"]) == (service.code, service.phase)
    told = tuple((tuple(each["address"]), each["code"]) for each in outcome["errors"])
    if service.errors:
        assert told == service.errors
    else:
        assert outcome["address"] == service.srv
    assert outcome["pickles"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_error_is_complete(reports: Reports, row: Row, loop: str) -> None:
    """What does not depend on the fault: the built-in class, the record, the text, the copy."""
    outcome = reports[loop, row.where]["outcomes"][row.name]
    builtin = socket.gaierror if row.phase == "resolve" else type(OSError(row.expected_errno, ""))
    assert builtin.__name__ in outcome["mro"]
    assert None not in [each["elapsed"] for each in outcome["errors"]]
    assert (outcome["attempts"], outcome["attempt_count"]) == ([row.error], 1)
    assert outcome["cause"] == row.error
    assert outcome["pickles"]
    assert abs(outcome["elapsed"] - outcome["seconds"]) < 1
    assert all(0 <= each["elapsed"] <= outcome["elapsed"] + 0.1 for each in outcome["errors"])
    assert row.code in outcome["text"]
    assert str(row.port) in outcome["text"]


def test_both_loops_say_the_same(reports: Reports) -> None:
    differing = [
        (row.name, *texts)
        for row in ROWS
        if len(texts := {without_times(reports[loop, row.where]["outcomes"][row.name]) for loop in LOOPS}) > 1
    ]
    assert not differing


def without_times(outcome: Outcome) -> str:
    return re.sub(r"[0-9.]+ (?=m?s\b)", "", outcome["text"])


@pytest.mark.parametrize("where", HOSTS)
@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_left_behind(reports: Reports, loop: str, where: str) -> None:
    report = reports[loop, where]
    assert report["left"] == []  # descriptors
    assert report["tasks"] == 0
    assert report["complaints"] == []
