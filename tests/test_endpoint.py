"""An endpoint is checked when it is made, says everything that is wrong at once, and is what its URL says."""

from __future__ import annotations

import copy
import enum
import math
import os
import pickle
import socket
import ssl
import string
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from aioconnect import validation
from aioconnect.endpoint import TLS, Endpoint, Keepalive, Target
from aioconnect.errors import ConfigError
from aioconnect.hosts import host_fault

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract names")

CREDENTIALS = "must not hold a user name or a password: they belong to the protocol spoken over it"
PORT = "must be an integer from 1 to 65535"
SERVICE = f"{PORT}, or the name of a known TCP service"
NUMBERS = "must be a name, or an IPv4 address of four numbers from 0 to 255"
PAIR = "must be HOST:PORT, with a port of its own"
BRACKETS = "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"
NO_BRACKETS = "must have its IPv6 address in brackets and a port, as in [::1]:80"
SCHEMES = "must be one of tcp, tls, srv+tcp, srv+tls, unix"
SRV = "must be the name of a service over TCP, as in _redis._tcp.example.org"
NO_PATH = "must not be there: only ?options can follow tcp://host:port"
OPTIONS = (
    "is unknown; must be one of local_addr, keepalive, user_timeout, nodelay, family, happy_eyeballs_delay, "
    "interleave, shuffle, proto, flags, server_hostname, ca_file, cert_file, key_file, alpn, minimum_version, "
    "handshake_timeout, shutdown_timeout"
)
ENCODING = "must have two hexadecimal digits after each %"
DURATION = "must be a number of seconds, or a text such as '250ms', '2s', '1m'"
USER_TIMEOUT = "must be at least 1ms and at most 2147483s"
FROM_0 = "must be an integer from 0 to 2147483647"
FROM_1 = "must be an integer from 1 to 2147483647"
ON_OFF = "must be True or False; on or off in a text"
FAMILY = "must be AF_UNSPEC, AF_INET or AF_INET6; unspec, inet or inet6 in a text"
KEEPALIVE = "must be a Keepalive, True, False or None; on, off or 15s:15s:9 in a text"
ALPN = "must be 1 to 255 printable ASCII characters, no space, no comma"
NO_TCP = "is for TCP: must not be given for a UNIX socket"
NO_TLS = "is an option of TLS; write tls:// instead of tcp://"
NO_NUL = "must not contain a NUL character, but for the first of an abstract name"
OLD_TLS = "must be TLSv1.2 or TLSv1.3; an older one needs a context of your own"


Made = TypeVar("Made")


def problems(make: Callable[[], object]) -> tuple[str, ...]:
    """The problems of what cannot be made; nothing may be hidden behind the error that says so."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.problems


def made(make: Callable[[], Made]) -> Made | ConfigError:
    """What was made, or the error; anything else that is raised is a failure."""
    try:
        return make()
    except ConfigError as error:
        return error


# What is taken


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://db:5432", Endpoint("db", 5432)),
        ("db:5432", Endpoint("db", 5432)),
        ("TCP://db:5432?", Endpoint("db", 5432)),
        ("tcp://a:5432,b:5433", Endpoint(targets=[("a", 5432), ("b", 5433)])),
        ("a:1,[::1]:2", Endpoint(targets=(Target("a", 1), "[::1]:2"))),
        ("[::1]:80", Endpoint("::1", 80)),
        ("[fe80::1%eth0]:80", Endpoint("fe80::1%eth0", 80)),
        ("tcp://[fe80::1%25eth0]:80", Endpoint("fe80::1%eth0", 80)),
        ("tcp://bücher.example:80", Endpoint("bücher.example", 80)),
        ("tcp://b%C3%BCcher.example:80", Endpoint("bücher.example", 80)),
        ("tcp://db.:80", Endpoint("db.", 80)),
        ("tls://host:443", Endpoint("host", 443, tls=True)),
        ("tls://host:443?server_hostname=x", Endpoint("host", 443, tls=TLS(server_hostname="x"))),
        ("tls://h:1?alpn=h2,http/1.1", Endpoint("h", 1, tls=TLS(alpn=["h2", "http/1.1"]))),
        ("tls://h:1?ca_file=/a%20b", Endpoint("h", 1, tls=TLS(ca_file=Path("/a b")))),
        ("tls://h:1?cert_file=c&key_file=k", Endpoint("h", 1, tls=TLS(cert_file="c", key_file="k"))),
        ("tls://h:1?minimum_version=TLSv1.3", Endpoint("h", 1, tls=TLS(minimum_version=ssl.TLSVersion.TLSv1_3))),
        ("tls://h:1?handshake_timeout=5s&shutdown_timeout=250ms",
         Endpoint("h", 1, tls=TLS(handshake_timeout=5, shutdown_timeout=0.25))),
        ("h:1?local_addr=10.0.0.5:0", Endpoint("h", 1, local_addr=("10.0.0.5", 0))),
        ("h:1?local_addr=[::1]:99", Endpoint("h", 1, local_addr=("::1", 99))),
        ("h:1?keepalive=on", Endpoint("h", 1)),
        ("h:1?keepalive=off", Endpoint("h", 1, keepalive=None)),
        ("h:1?keepalive=30s:500ms:3", Endpoint("h", 1, keepalive=Keepalive(30, 0.5, 3))),
        ("h:1?user_timeout=1m", Endpoint("h", 1, user_timeout=60)),
        ("h:1?user_timeout=off", Endpoint("h", 1)),
        ("h:1?nodelay=off", Endpoint("h", 1, nodelay=False)),
        ("h:1?family=inet6", Endpoint("h", 1, family=socket.AF_INET6)),
        ("h:1?happy_eyeballs_delay=100ms", Endpoint("h", 1, happy_eyeballs_delay=0.1)),
        ("h:1?happy_eyeballs_delay=off", Endpoint("h", 1, happy_eyeballs_delay=None)),
        ("h:1?interleave=2&proto=6&flags=32", Endpoint("h", 1, interleave=2, proto=6, flags=32)),
        ("tcp://a:1,b:1?shuffle=on", Endpoint(targets="a:1,b:1", shuffle=True)),
        ("srv+tcp://_redis._tcp.example.org", Endpoint(srv="_redis._tcp.example.org")),
        ("SRV+TLS://_imaps._TCP.example.org.?alpn=x", Endpoint(srv=b"_imaps._TCP.example.org.", tls=TLS(alpn="x"))),
        ("srv+tcp://_a._tcp.b%C3%BCcher.example", Endpoint(srv="_a._tcp.bücher.example")),
        ("unix:///run/app.sock", Endpoint(path="/run/app.sock")),
        ("unix:///run/app.sock?nodelay=on", Endpoint(path=b"/run/app.sock")),
        ("unix:run/app.sock", Endpoint(path=Path("run/app.sock"))),
        ("unix:///run/x?server_hostname=db", Endpoint(path="/run/x", tls=TLS(server_hostname="db"))),
    ],
)  # fmt: skip
def test_parse(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@linux
def test_parse_abstract_name() -> None:
    assert Endpoint.parse("unix://@app") == Endpoint(path="\0app")
    assert str(Endpoint(path="\0a/b@c")) == "unix://@a/b%40c"


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Endpoint("db", 5432), "tcp://db:5432"),
        (Endpoint("db", 5432, tls=True), "tls://db:5432"),
        (Endpoint("::1", 80), "tcp://[::1]:80"),
        (Endpoint("fe80::1%eth0", 80), "tcp://[fe80::1%25eth0]:80"),
        (Endpoint("bücher.example", 80), "tcp://bücher.example:80"),
        (Endpoint(targets="a:1,b:2"), "tcp://a:1,b:2"),
        (Endpoint(path="/run/a b"), "unix:///run/a%20b"),
        (Endpoint(path="@name"), "unix:%40name"),
        (Endpoint(targets="a:1,b:1", shuffle=True), "tcp://a:1,b:1?shuffle=on"),
        (Endpoint(srv="_http._tcp.bücher.example"), "srv+tcp://_http._tcp.bücher.example"),
        (Endpoint(srv="_http._tcp.x", tls=True, nodelay=False), "srv+tls://_http._tcp.x?nodelay=off"),
        (Endpoint("h", 1, keepalive=False, nodelay=False), "tcp://h:1?keepalive=off&nodelay=off"),
        (Endpoint("h", 1, keepalive=Keepalive(idle=30)), "tcp://h:1?keepalive=30s:15s:9"),
        (Endpoint("h", 1, family="inet", flags=32), "tcp://h:1?family=inet&flags=32"),
        (Endpoint("h", 1, local_addr=("::1", 0)), "tcp://h:1?local_addr=[::1]:0"),
        (Endpoint("h", 1, happy_eyeballs_delay=None), "tcp://h:1?happy_eyeballs_delay=off"),
        (Endpoint("h", 1, user_timeout="90s", tls=TLS(alpn="h2")), "tls://h:1?user_timeout=90s&alpn=h2"),
        (Endpoint("h", 1, tls=TLS(server_hostname="é.de")), "tls://h:1?server_hostname=%C3%A9.de"),
        (Endpoint("h", 1, tls=TLS(ca_file="/a?b&c=d#e")), "tls://h:1?ca_file=/a%3Fb%26c%3Dd%23e"),
    ],
)
def test_text(endpoint: Endpoint, text: str) -> None:
    assert str(endpoint) == text
    assert repr(endpoint) == f"Endpoint({text!r})"
    assert Endpoint.parse(text) == endpoint


def test_the_parts_of_an_endpoint() -> None:
    endpoint = Endpoint("db", "5432", tls=True, local_addr="127.0.0.1:0", keepalive="on")
    assert (endpoint.host, endpoint.port) == ("db", 5432)
    assert endpoint.targets == (Target("db", 5432),)
    assert endpoint.path is None
    assert endpoint.tls == TLS()
    assert endpoint.local_addr == ("127.0.0.1", 0)
    assert endpoint.keepalive == Keepalive(15.0, 15.0, 9)
    assert endpoint.family is socket.AF_UNSPEC
    unix = Endpoint(path="/run/x")
    assert (unix.host, unix.port, unix.targets, unix.path, unix.tls) == (None, None, (), "/run/x", None)


def test_what_is_given_is_normalised() -> None:
    endpoint = Endpoint(b"db", b"5432", family=int(socket.AF_INET6), user_timeout=2, proto=socket.IPPROTO_TCP)
    assert endpoint == Endpoint("db", 5432, family="inet6", user_timeout=2.0, proto=6)
    assert type(endpoint.user_timeout) is float
    assert type(endpoint.proto) is int
    assert TLS(minimum_version=ssl.TLSVersion.TLSv1_2).minimum_version == "TLSv1.2"
    assert TLS(alpn="h2").alpn == ("h2",)
    assert Endpoint("h", 1, tls=False) == Endpoint("h", 1) == Endpoint("h", 1, tls="off")


def test_a_service_has_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getservbyname", lambda name, protocol: {"https tcp": 443}[f"{name} {protocol}"])
    assert Endpoint("h", "https") == Endpoint("h", 443) == Endpoint.parse("h:https")


def test_defaults_are_those_of_the_documentation() -> None:
    endpoint = Endpoint("h", 1)
    values = {name: getattr(endpoint, name) for name in Endpoint.__slots__}
    assert values == {
        "targets": (("h", 1),), "path": None, "srv": None, "tls": None, "local_addr": None,
        "keepalive": Keepalive(idle=15.0, interval=15.0, count=9), "user_timeout": None, "nodelay": True,
        "family": socket.AF_UNSPEC, "happy_eyeballs_delay": 0.25, "interleave": 1, "shuffle": False,
        "proto": 0, "flags": 0,
    }  # fmt: skip
    assert repr(TLS()) == "TLS()"
    assert all(not getattr(TLS(), name) for name in TLS.__slots__)


def test_arguments_override_the_url() -> None:
    parse = Endpoint.parse
    assert parse("h:1?nodelay=off", nodelay=True) == Endpoint("h", 1)
    assert parse("h:1", tls=True) == Endpoint("h", 1, tls=True)
    assert parse("tls://h:1", tls=None) == Endpoint("h", 1, tls=True)
    assert parse("tls://h:1", tls=True) == Endpoint("h", 1, tls=True)
    assert parse("tls://h:1", tls=TLS(alpn="h2")) == Endpoint("h", 1, tls=TLS(alpn="h2"))
    assert parse("tls://h:1?alpn=h2", tls=True) == Endpoint("h", 1, tls=TLS(alpn="h2"))
    tls = TLS(server_hostname="db")
    assert parse("unix:///x", tls=tls) == parse("unix:///x?server_hostname=db") == Endpoint(path="/x", tls=tls)
    with pytest.raises(TypeError, match="nodelayy"):
        parse("h:1", nodelayy=True)


def test_replace() -> None:
    endpoint = Endpoint("a", 1, nodelay=False)
    assert endpoint.replace() == endpoint
    assert endpoint.replace(port=2) == Endpoint("a", 2, nodelay=False)
    assert endpoint.replace(host="b") == Endpoint("b", 1, nodelay=False)
    assert endpoint.replace(targets="b:1,c:2") == Endpoint(targets="b:1,c:2", nodelay=False)
    assert endpoint.replace(targets="b:1,c:2").replace(host="d", port=4) == Endpoint("d", 4, nodelay=False)
    assert endpoint.replace(tls=True, keepalive="off") == Endpoint("a", 1, nodelay=False, tls=True, keepalive=None)
    assert Endpoint("a", 1).replace(path="/x") == Endpoint(path="/x")
    assert Endpoint(path="/x").replace(host="a", port=1) == Endpoint("a", 1)
    assert Endpoint(path="/x").replace(targets=["a:1"]) == Endpoint("a", 1)
    assert Endpoint(path="/x").replace(path="/y") == Endpoint(path="/y")
    service = Endpoint(srv="_a._tcp.b", nodelay=False)
    assert service.replace(nodelay=True) == Endpoint(srv="_a._tcp.b")
    assert service.replace(srv="_c._tcp.b") == Endpoint(srv="_c._tcp.b", nodelay=False)
    assert service.replace(host="a", port=1) == service.replace(targets="a:1") == endpoint
    assert endpoint.replace(srv="_a._tcp.b") == service
    assert service.replace(path="/x", nodelay=True) == Endpoint(path="/x")
    assert Endpoint(path="/x").replace(srv="_a._tcp.b") == Endpoint(srv="_a._tcp.b")
    assert TLS(alpn="h2").replace(ca_file="x") == TLS(alpn="h2", ca_file="x")
    assert problems(lambda: endpoint.replace(port=0)) == (f"port=0: {PORT}",)
    assert problems(lambda: endpoint.replace(path="/x")) == (f"nodelay='off': {NO_TCP}",)
    assert problems(lambda: Endpoint(path="/x").replace(host="a")) == (
        "port=None: must be given: an integer from 1 to 65535",
    )
    assert problems(lambda: Endpoint(targets="a:1,b:2").replace(port=3)) == (
        "targets=(('a', 1), ('b', 2)): must not be given together with host and port",
    )
    with pytest.raises(TypeError, match="hots"):
        endpoint.replace(hots="x")


def test_values_are_frozen_equal_and_hashable() -> None:
    one, other = Endpoint.parse("tls://a:1?alpn=h2"), Endpoint("a", 1, tls=TLS(alpn=("h2",)))
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, Endpoint("a", 2)}) == 2
    for value, field in ((one, "nodelay"), (TLS(), "alpn"), (Keepalive(), "idle")):
        with pytest.raises(AttributeError):
            setattr(value, field, 1)
        with pytest.raises((AttributeError, TypeError)):
            value.new = 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_can_be_pickled_and_copied(protocol: int) -> None:
    endpoint = Endpoint.parse("tls://a:1,[::1]:2?keepalive=1s:2s:3&local_addr=[::1]:0&alpn=h2")
    assert pickle.loads(pickle.dumps(endpoint, protocol)) == endpoint
    assert copy.copy(endpoint) == copy.deepcopy(endpoint) == endpoint


# TLS


def test_a_context_is_used_but_not_shown() -> None:
    context = ssl.create_default_context()
    endpoint = Endpoint("h", 1, tls=TLS(context=context, handshake_timeout=5))
    assert endpoint.tls is not None
    assert endpoint.tls.context is context
    assert str(endpoint) == "tls://h:1?handshake_timeout=5s"
    assert repr(endpoint) == "Endpoint('tls://h:1?handshake_timeout=5s', tls=TLS(context=...))"
    assert repr(endpoint.tls) == "TLS(handshake_timeout=5.0, context=...)"
    assert endpoint == Endpoint("h", 1, tls=TLS(context=context, handshake_timeout="5s"))
    assert endpoint != Endpoint("h", 1, tls=TLS(context=ssl.create_default_context(), handshake_timeout=5))
    assert hash(endpoint) == hash(endpoint.replace())
    assert repr(TLS(context=context)) == "TLS(context=...)"


def test_an_empty_server_hostname_needs_a_context_that_checks_none() -> None:
    context = ssl.create_default_context()
    refused = ("server_hostname='': must be the name to verify, unless context= verifies none",)
    assert problems(lambda: TLS(server_hostname="")) == refused
    assert problems(lambda: TLS(server_hostname="", context=context)) == refused
    context.check_hostname = False
    endpoint = Endpoint(path="/x", tls=TLS(server_hostname=b"", context=context))
    assert endpoint.server_hostname() == ""
    assert str(endpoint) == "unix:///x"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("tcp://db:1", None),
        ("tls://db.internal:1", "db.internal"),
        ("tls://db.internal.:1", "db.internal"),
        ("tls://db:1?server_hostname=x.", "x"),
        ("tls://[fe80::1%25eth0]:1", "fe80::1"),
        ("tls://bücher.example:1", "xn--bcher-kva.example"),
        ("tls://db:1?server_hostname=bücher.example", "xn--bcher-kva.example"),
        ("srv+tcp://_redis._tcp.example.org", None),
        ("srv+tls://_redis._tcp.example.org", "example.org"),
        ("srv+tls://_redis._tcp.bücher.example.", "xn--bcher-kva.example"),
        ("srv+tls://_redis._tcp.example.org?server_hostname=cache.internal", "cache.internal"),
        ("unix:///x?server_hostname=db", "db"),
        ("unix:///x", None),
    ],
)
def test_the_name_that_is_verified(url: str, name: str | None) -> None:
    assert Endpoint.parse(url).server_hostname() == name


def test_each_target_has_its_own_name_to_verify() -> None:
    endpoint = Endpoint.parse("tls://a:1,b:2")
    assert [endpoint.server_hostname(target) for target in endpoint.targets] == ["a", "b"]
    service = Endpoint.parse("srv+tls://_a._tcp.example.org")
    assert service.server_hostname(Target("anybody.example", 1)) == "example.org", "not what DNS has made of it"
    endpoint = Endpoint.parse("tls://a:1,b:2?server_hostname=c")
    assert [endpoint.server_hostname(target) for target in endpoint.targets] == ["c", "c"]


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({}, socket.AF_UNSPEC),
        ({"family": "inet6"}, socket.AF_INET6),
        ({"local_addr": "127.0.0.1:0"}, socket.AF_INET),
        ({"local_addr": "[fe80::1%eth0]:0"}, socket.AF_INET6),
        ({"local_addr": "[::1]:0", "family": "inet6"}, socket.AF_INET6),
    ],
)
def test_the_family_to_resolve_for(options: dict[str, Any], family: int) -> None:
    assert Endpoint("h", 1, **options).address_family is family


# What is refused

BAD_URLS = [
    ("", f"target='': {PAIR}"),
    ("localhost", f"target='localhost': {PAIR}"),
    ("tcp://", f"target='': {PAIR}"),
    ("tcp://db", f"target='db': {PAIR}"),
    ("tcp://db:", f"port='': {SERVICE}"),
    ("tcp://:80", "host='': must not be empty"),
    ("tcp://a,b:5432", f"targets[0]='a': {PAIR}"),
    ("tcp://a:1,", f"targets[1]='': {PAIR}"),
    ("tcp://db:0", f"port=0: {PORT}"),
    ("tcp://db:65536", f"port=65536: {PORT}"),
    ("tcp://db:-1", f"port='-1': {SERVICE}"),
    ("tcp://db:1.5", f"port='1.5': {SERVICE}"),
    ("tcp://db:nosuch", f"port='nosuch': {SERVICE}"),
    ("tcp://db:٣", f"port='٣': {SERVICE}"),
    ("tcp://::1:80", f"target='::1:80': {NO_BRACKETS}"),
    ("fe80::1", f"target='fe80::1': {NO_BRACKETS}"),
    ("tcp://[::1]", f"target='[::1]': {BRACKETS}"),
    ("tcp://[::1]80", f"target='[::1]80': {BRACKETS}"),
    ("tcp://[::1", f"target='[::1': {BRACKETS}"),
    ("tcp://[db]:80", f"target='[db]:80': {BRACKETS}"),
    ("tcp://[fe80::1]:80", "host='fe80::1': is link-local and needs its interface, as in fe80::1%eth0"),
    ("tcp://[fe80::1%]:80", "host='fe80::1%': must name an interface after the %, by name or number"),
    ("tcp://[::1%25eth0]:80", "host='::1%eth0': is not link-local and takes no %interface"),
    ("tcp://[::g]:80", "host='::g': must be a host name or an IP address, without a port"),
    ("tcp://1.2.3:80", f"host='1.2.3': {NUMBERS}"),
    ("tcp://1.2.3.400:80", f"host='1.2.3.400': {NUMBERS}"),
    ("tcp://0x7f.1:80", f"host='0x7f.1': {NUMBERS}"),
    ("tcp://a..b:80", "host='a..b': must not have an empty part between or before its dots"),
    ("tcp://a%20b:80", "host='a b': must not contain spaces, control characters or invisible ones"),
    ("tcp://a%00b:80", r"host='a\x00b': must not contain a NUL character"),
    ("tcp://a*b:80", "host='a*b': must be made of letters, digits, '-', '_' and '.'"),
    ("tcp://℀.com:80", "host='℀.com': must be made of letters, digits, '-', '_' and '.'"),
    ("tcp://a%zz:80", f"target='a%zz:80': {ENCODING}"),
    ("tcp://user:secret@h:1", f"url='***': {CREDENTIALS}"),
    ("tcp://secret@h:1", f"url='***': {CREDENTIALS}"),
    ("user:secret@h:1", f"url='***': {CREDENTIALS}"),
    ("tcp://user%3Asecret%40h:1", f"url='***': {CREDENTIALS}"),
    ("tpc://h:1", "scheme='tpc': did you mean tcp?"),
    ("http://h:1", f"scheme='http': {SCHEMES}"),
    ("://h:1", f"scheme='': {SCHEMES}"),
    ("tcp://h:1/db", f"path='/db': {NO_PATH}"),
    ("h:80/", f"path='/': {NO_PATH}"),
    ("tcp://h:1#x", "fragment='#': must not be there; a # is written %23"),
    (" tcp://h:1", "url=' tcp://h:1': must not begin or end with a space"),
    ("tcp://h:1\n", r"url='tcp://h:1\n': must not begin or end with a space"),
    ("tcp://h:1?nodelya=on", "option='nodelya': is unknown; did you mean nodelay?"),
    ("tcp://h:1?password=secret", f"option='password': {OPTIONS}"),
    ("tcp://h:1?&nodelay=on", f"option='': {OPTIONS}"),
    ("tcp://h:1?nodelay=on&nodelay=on", "option='nodelay': must be given only once"),
    ("tcp://h:1?nodelay", "option='nodelay': must have a value, as in nodelay=..."),
    ("tcp://h:1?nodelay=", f"nodelay='': {ON_OFF}"),
    ("tcp://h:1?nodelay=maybe", f"nodelay='maybe': {ON_OFF}"),
    ("tcp://h:1?user_timeout=%zz", f"user_timeout='%zz': {ENCODING}"),
    ("tcp://h:1?user_timeout=soon", f"user_timeout='soon': {DURATION}"),
    ("tcp://h:1?user_timeout=nan", f"user_timeout='nan': {DURATION}"),
    ("tcp://h:1?user_timeout=30d", f"user_timeout='30d': {DURATION}"),
    ("tcp://h:1?user_timeout=0", f"user_timeout='0': {USER_TIMEOUT}"),
    ("tcp://h:1?user_timeout=1e999", f"user_timeout='1e999': {USER_TIMEOUT}"),
    ("tcp://h:1?happy_eyeballs_delay=5ms", "happy_eyeballs_delay='5ms': must be at least 10ms and finite"),
    ("tcp://h:1?interleave=0", f"interleave=0: {FROM_1}"),
    ("tcp://h:1?proto=tcp", f"proto='tcp': {FROM_0}"),
    ("tcp://h:1?family=ipv6", f"family='ipv6': {FAMILY}"),
    ("tcp://127.0.0.1:1?family=inet6", "family='inet6': must be that of the address 127.0.0.1"),
    ("tcp://h:1?local_addr=10.0.0.1", f"local_addr='10.0.0.1': {PAIR}"),
    ("tcp://h:1?local_addr=me:0", "local_addr.host='me': must be one of this host's IP addresses, not a name"),
    ("tcp://h:1?local_addr=10.0.0.1:65536", "local_addr.port=65536: must be an integer from 0 to 65535"),
    ("tcp://h:1?local_addr=10.0.0.1:0&family=inet6", "local_addr='10.0.0.1:0': must be of the family inet6"),
    ("tcp://[::1]:1?local_addr=10.0.0.1:0", "local_addr='10.0.0.1:0': must be of the same family as ::1"),
    ("tcp://h:1?keepalive=15", f"keepalive='15': {KEEPALIVE}"),
    ("tcp://h:1?keepalive=15s:0:9", "keepalive.interval='0': must be more than 0 and at most 32767s"),
    ("tcp://h:1?keepalive=15s:15s:128", "keepalive.count=128: must be an integer from 1 to 127"),
    ("tcp://h:1?server_hostname=x", f"server_hostname='x': {NO_TLS}"),
    ("h:1?alpn=h2", f"alpn='h2': {NO_TLS}"),
    ("tls://h:1?alpn=h2,", f"alpn='': {ALPN}"),
    ("tls://h:1?minimum_version=TLSv1.1", f"minimum_version='TLSv1.1': {OLD_TLS}"),
    ("tls://h:1?server_hostname=a..b",
     "server_hostname='a..b': must not have an empty part between or before its dots"),
    ("tls://h:1?key_file=/k", "key_file='/k': must be given together with cert_file"),
    ("tls://h:1?handshake_timeout=0", "handshake_timeout='0': must be more than 0 and finite"),
    ("tls://h:1?ca_file=", "ca_file='': must be the path of a file, not empty"),
    ("tls://h:1?ca_file=/a%00b", r"ca_file='/a\x00b': must not contain a NUL character"),
    ("h:1?shuffle=maybe", f"shuffle='maybe': {ON_OFF}"),
    ("srv://_a._tcp.b", "scheme='srv': did you mean srv+tls?"),
    ("srv+tcp://example.org", f"srv='example.org': {SRV}"),
    ("srv+tcp://_a._udp.example.org", f"srv='_a._udp.example.org': {SRV}"),
    ("srv+tcp://_._tcp.example.org", f"srv='_._tcp.example.org': {SRV}"),
    ("srv+tcp://_a._tcp", f"srv='_a._tcp': {SRV}"),
    ("srv+tcp://_a._tcp.", f"srv='_a._tcp.': {SRV}"),
    ("srv+tcp://", f"srv='': {SRV}"),
    ("srv+tcp://127.0.0.1", f"srv='127.0.0.1': {SRV}"),
    ("srv+tcp://_a._tcp.b:1", "srv='_a._tcp.b:1': must be without a port: the records have one for each host"),
    ("srv+tcp://_a._tcp.b,_c._tcp.d",
     "srv='_a._tcp.b,_c._tcp.d': must be one name: its records have as many hosts as there are"),
    ("srv+tcp://_a._tcp.b..c", "srv='_a._tcp.b..c': must not have an empty part between or before its dots"),
    ("srv+tcp://_a._tcp.b/c", "path='/c': must not be there: only ?options can follow srv+tcp://_service._tcp.domain"),
    ("srv+tcp://me:secret@_a._tcp.b", f"url='***': {CREDENTIALS}"),
    ("srv+tcp://_a._tcp.b?alpn=x", "alpn='x': is an option of TLS; write srv+tls:// instead of srv+tcp://"),
    ("srv+tcp://_a._tcp.b?shuffle=on",
     "shuffle='on': must not be given for a service: its SRV records have weights"),
    ("unix:///x?shuffle=on", f"shuffle='on': {NO_TCP}"),
    ("unix://run/app.sock",
     "path='run/app.sock': must begin with / after unix://; a relative one is written unix:run/app.sock"),
    ("unix:", "path='': must be the path of a UNIX socket, not empty"),
    ("unix:///a%00b", rf"path='/a\x00b': {NO_NUL}"),
    ("unix://@", rf"path='\x00': {NO_NUL}"),
    ("unix:///x%zz", f"path='/x%zz': {ENCODING}"),
    ("unix:///x#y", "fragment='#': must not be there; a # is written %23"),
    ("unix://user:secret@h/run/x", f"url='***': {CREDENTIALS}"),
    ("unix:user:secret@h", f"url='***': {CREDENTIALS}"),
    ("unix:///x?family=inet", f"family='inet': {NO_TCP}"),
    ("unix:///x?local_addr=127.0.0.1:0", f"local_addr='127.0.0.1:0': {NO_TCP}"),
    ("unix:///x?alpn=h2", "server_hostname=None: must be given for TLS over a UNIX socket, which has no host"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "problem"), BAD_URLS)
def test_bad_urls(url: str, problem: str) -> None:
    assert problems(lambda: Endpoint.parse(url)) == (problem,)


def test_a_url_is_text() -> None:
    for url in (5, b"tcp://h:1", None, Endpoint("h", 1)):
        found = problems(partial(Endpoint.parse, url))  # type: ignore[arg-type]
        assert found == (f"url={validation.shown(url)}: must be text, such as tcp://host:port",)


SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CLIENT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

BAD_ARGUMENTS: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    (Endpoint, {}, "host=None: must be given with a port, or else targets, srv, or a path"),
    (Endpoint, {"srv": 5}, f"srv=5: {SRV}"),
    (Endpoint, {"srv": "_a._tcp.b", "path": "/x"}, "path='/x': must not be given together with srv"),
    (Endpoint, {"srv": "_a._tcp.b", "host": "h", "port": 1},
     "srv='_a._tcp.b': must not be given together with host and port"),
    (Endpoint, {"host": "h"}, f"port=None: must be given: {PORT.removeprefix('must be ')}"),
    (Endpoint, {"port": 1}, "host=None: must be a host name or an IP address, as text"),
    (Endpoint, {"host": 5, "port": 1}, "host=5: must be a host name or an IP address, as text"),
    (Endpoint, {"host": b"\xff", "port": 1}, r"host=b'\xff': must be a host name or an IP address, as text"),
    (Endpoint, {"host": "127.0.0.1\0.example.org", "port": 1},
     r"host='127.0.0.1\x00.example.org': must not contain a NUL character"),
    (Endpoint, {"host": "\ud800", "port": 1},
     r"host='\ud800': must not contain spaces, control characters or invisible ones"),
    (Endpoint, {"host": "h:80", "port": 80}, "host='h:80': must be a host name or an IP address, without a port"),
    (Endpoint, {"host": "[::1]", "port": 80},
     "host='[::1]': must be without brackets, which belong to text with a port"),
    (Endpoint, {"host": "tcp://h", "port": 80},
     "host='tcp://h': must be the host alone; a URL is read by Endpoint.parse"),
    (Endpoint, {"host": "user:secret@h", "port": 80}, f"host='***': {CREDENTIALS}"),
    (Endpoint, {"host": "h", "port": True}, f"port=True: {PORT}"),
    (Endpoint, {"host": "h", "port": 80.0}, f"port=80.0: {PORT}"),
    (Endpoint, {"host": "h", "port": -1}, f"port=-1: {PORT}"),
    (Endpoint, {"host": "h", "port": 10**20}, f"port={10**20}: {PORT}"),
    (Endpoint, {"host": "h", "port": b"\xff"}, rf"port=b'\xff': {PORT}"),
    (Endpoint, {"host": "h", "port": 1, "path": "/x"}, "path='/x': must not be given together with host and port"),
    (Endpoint, {"host": "h", "port": 1, "targets": "a:1"},
     "targets=('a:1'): must not be given together with host and port"),
    (Endpoint, {"targets": ["a:1"], "path": "/x"}, "path='/x': must not be given together with targets"),
    (Endpoint, {"targets": 5}, "targets=5: must be a sequence, or a text with commas"),
    (Endpoint, {"targets": b"a:1"}, "targets=b'a:1': must be a sequence, or a text with commas"),
    (Endpoint, {"targets": "user:sec,ret@h:1"}, f"targets='***': {CREDENTIALS}"),
    (Endpoint, {"targets": [5]}, "target=5: must be a HOST:PORT text or a pair of host and port"),
    (Endpoint, {"targets": [("a", 1, 2)]}, "target=('a', 1, 2): must be a HOST:PORT text or a pair of host and port"),
    (Endpoint, {"targets": ["a:1", ("b", 0)]}, f"targets[1].port=0: {PORT}"),
    (Endpoint, {"targets": ["tcp://a:1"]}, "target='tcp://a:1': must be HOST:PORT; a URL is read by Endpoint.parse"),
    (Endpoint, {"path": ""}, "path='': must be the path of a UNIX socket, not empty"),
    (Endpoint, {"path": 5}, "path=5: must be the path of a UNIX socket: str, bytes or PathLike"),
    (Endpoint, {"path": "a\0b"}, rf"path='a\x00b': {NO_NUL}"),
    (Endpoint, {"path": "\ud800"}, r"path='\ud800': must be a path that the file system's encoding can write"),
    (Endpoint, {"path": "tcp://user:secret@h:1"}, "path='***': must be the path of a UNIX socket, not a URL"),
    (Endpoint, {"path": "/x", "interleave": 2}, f"interleave='2': {NO_TCP}"),
    (Endpoint, {"path": "/x", "keepalive": False}, f"keepalive='off': {NO_TCP}"),
    (Endpoint, {"path": "/x", "user_timeout": 90}, f"user_timeout='90s': {NO_TCP}"),
    (Endpoint, {"path": "/x", "tls": True},
     "server_hostname=None: must be given for TLS over a UNIX socket, which has no host"),
    (Endpoint, {"host": "h", "port": 1, "tls": CLIENT},
     "tls=<SSLContext>: must be a TLS, True, False or None; a context goes into TLS(context=...)"),
    (Endpoint, {"host": "h", "port": 1, "local_addr": (None, 0)},
     "local_addr.host=None: must be a host name or an IP address, as text"),
    (Endpoint, {"host": "h", "port": 1, "local_addr": ("127.0.0.1", -1)},
     "local_addr.port=-1: must be an integer from 0 to 65535"),
    (Endpoint, {"host": "h", "port": 1, "local_addr": 5},
     "local_addr=5: must be a HOST:PORT text or a pair of host and port"),
    (Endpoint, {"host": "h", "port": 1, "keepalive": 5}, f"keepalive=5: {KEEPALIVE}"),
    (Endpoint, {"host": "h", "port": 1, "user_timeout": True}, f"user_timeout=True: {DURATION}"),
    (Endpoint, {"host": "h", "port": 1, "user_timeout": math.nan}, f"user_timeout=nan: {USER_TIMEOUT}"),
    (Endpoint, {"host": "h", "port": 1, "user_timeout": math.inf}, f"user_timeout=inf: {USER_TIMEOUT}"),
    (Endpoint, {"host": "h", "port": 1, "happy_eyeballs_delay": 0},
     "happy_eyeballs_delay=0: must be at least 10ms and finite"),
    (Endpoint, {"host": "h", "port": 1, "nodelay": 1}, f"nodelay=1: {ON_OFF}"),
    (Endpoint, {"host": "h", "port": 1, "family": socket.AF_UNIX}, f"family=AF_UNIX: {FAMILY}"),
    (Endpoint, {"host": "h", "port": 1, "family": False}, f"family=False: {FAMILY}"),
    (Endpoint, {"host": "h", "port": 1, "interleave": True}, f"interleave=True: {FROM_1}"),
    (Endpoint, {"host": "h", "port": 1, "flags": 1.0}, f"flags=1.0: {FROM_0}"),
    (Keepalive, {"idle": 0}, "idle=0: must be more than 0 and at most 32767s"),
    (Keepalive, {"interval": "-1s"}, "interval='-1s': must be more than 0 and at most 32767s"),
    (Keepalive, {"count": 2.5}, "count=2.5: must be an integer from 1 to 127"),
    (TLS, {"context": 5}, "context=5: must be an ssl.SSLContext"),
    (TLS, {"context": SERVER}, "context=<SSLContext>: must be made for a client, with PROTOCOL_TLS_CLIENT"),
    (TLS, {"context": CLIENT, "ca_file": "/x"},
     "ca_file='/x': must not be given together with context, which has its own"),
    (TLS, {"context": CLIENT, "alpn": "h2"},
     "alpn=('h2'): must not be given together with context, which has its own"),
    (TLS, {"ca_file": 5}, "ca_file=5: must be the path of a file: str, bytes or PathLike"),
    (TLS, {"ca_file": "https://x/y"}, "ca_file='https://x/y': must be the path of a file, not a URL"),
    (TLS, {"alpn": 5}, "alpn=5: must be a sequence, or a text with commas"),
    (TLS, {"alpn": ["h2", 5]}, f"alpn=5: {ALPN}"),
    (TLS, {"alpn": ["x" * 256]}, f"alpn='{'x' * 76}...: {ALPN}"),
    (TLS, {"alpn": ["a b"]}, f"alpn='a b': {ALPN}"),
    (TLS, {"alpn": ["a,b"]}, f"alpn='a,b': {ALPN}"),
    (TLS, {"alpn": ["é"]}, f"alpn='é': {ALPN}"),
    (TLS, {"minimum_version": ssl.TLSVersion.TLSv1}, f"minimum_version=TLSv1: {OLD_TLS}"),
    (TLS, {"minimum_version": 771}, f"minimum_version=771: {OLD_TLS}"),
    (TLS, {"server_hostname": 5}, "server_hostname=5: must be a host name or an IP address, as text"),
    (TLS, {"handshake_timeout": -math.inf}, "handshake_timeout=-inf: must be more than 0 and finite"),
    (Endpoint.parse, {"text": "tls://h:1", "tls": False}, "tls=False: must not contradict the URL, which asks for TLS"),
    (Endpoint.parse, {"text": "unix:/x?server_hostname=a", "tls": False},
     "tls=False: must not contradict the URL, which asks for TLS"),
    (Endpoint.parse, {"text": "tls://h:1?alpn=h2", "tls": TLS()},
     "tls=<TLS>: must not be given beside TLS options in the URL"),
    (Endpoint.parse, {"text": "tcp://h:1?alpn=h2", "tls": True}, f"alpn='h2': {NO_TLS}"),
    (Endpoint.parse, {"text": "h:1", "port": 2},
     "targets=('h:1'): must not be given together with host and port"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "arguments", "problem"), BAD_ARGUMENTS)
def test_bad_arguments(make: Callable[..., object], arguments: dict[str, Any], problem: str) -> None:
    assert problems(lambda: make(**arguments)) == (problem,)


def test_all_problems_at_once() -> None:
    assert problems(
        lambda: Endpoint("a..b", 70000, keepalive="15s:0:0", family="inet7", nodelay="x", tls="?", local_addr="me:0")
    ) == (
        "host='a..b': must not have an empty part between or before its dots",
        f"port=70000: {PORT}",
        "tls='?': must be a TLS, True, False or None; a context goes into TLS(context=...)",
        "local_addr.host='me': must be one of this host's IP addresses, not a name",
        "keepalive.interval='0': must be more than 0 and at most 32767s",
        "keepalive.count=0: must be an integer from 1 to 127",
        f"nodelay='x': {ON_OFF}",
        f"family='inet7': {FAMILY}",
    )
    assert problems(
        lambda: Endpoint.parse("tls://a:0,b..:1/db?nope=1&alpn=&ca_file=&interleave=0&nodelay=1&nodelay=0", flags=-1)
    ) == (
        "path='/db': must not be there: only ?options can follow tls://host:port",
        f"option='nope': {OPTIONS}",
        "option='nodelay': must be given only once",
        "ca_file='': must be the path of a file, not empty",
        f"alpn='': {ALPN}",
        f"targets[0].port=0: {PORT}",
        "targets[1].host='b..': must not have an empty part between or before its dots",
        f"interleave=0: {FROM_1}",
        f"flags=-1: {FROM_0}",
    )


# Secrets

SECRET = "hunter2"
SECRETIVE = [
    f"tcp://user:{SECRET}@h:1",
    f"tcp://{SECRET}@h:1",
    f"tls://user:{SECRET}@h:1?alpn=h2",
    f"tcp://user:x/{SECRET}@h:1",
    f"tcp://user:x?{SECRET}@h:1",
    f"tcp://user:x#{SECRET}@h:1",
    f"tcp://user:x,{SECRET}@h:1",
    f"tcp://user:x,{SECRET}%40h:1",
    f"tcp://user:x@{SECRET}@h:1",
    f"tcp://user:%zz{SECRET}@h:1",
    f" tcp://user:{SECRET}@h:1",
    f"redis://user:{SECRET}@h:1/0",
    f"user:{SECRET}@h:1",
    f"a:1,user:{SECRET}@h:1",
    f"tcp://h:1?password={SECRET}",
    f"tcp://h:1?passwd={SECRET}&nodelay=x",
    f"unix://user:{SECRET}@h/run/x",
    f"unix:user:{SECRET}@h",
    f"unix://@user:{SECRET}@h",
    f"unix:///run/x?password={SECRET}",
]


@pytest.mark.parametrize("url", SECRETIVE)
def test_secrets_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse(url, nodelay="on")
    error: BaseException | None = caught.value
    assert SECRET not in pickle.dumps(error).decode("latin-1")
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        assert SECRET not in repr(error.args)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("field", ["host", "path", "targets", "local_addr", "keepalive", "family", "tls", "nodelay"])
def test_secrets_in_the_wrong_argument_are_not_repeated(field: str) -> None:
    arguments: dict[str, Any] = {"host": "h", "port": 1} if field not in {"host", "path", "targets"} else {}
    arguments[field] = f"tcp://user:{SECRET}@h:1"
    if field == "host":
        arguments["port"] = 1
    assert SECRET not in "".join(problems(lambda: Endpoint(**arguments)))


class Password(enum.Enum):
    PRODUCTION = SECRET


@pytest.mark.parametrize("value", [Password.PRODUCTION, {SECRET}, {"password": SECRET}])
def test_objects_are_not_printed(value: object) -> None:
    found = problems(lambda: Endpoint("h", 1, user_timeout=value))  # type: ignore[arg-type]
    assert SECRET not in found[0]


# Properties


def make_tls(options: dict[str, Any]) -> TLS:
    return TLS(**options)


hosts = st.one_of(
    st.text(string.ascii_letters + string.digits + "-_.üé本", min_size=1, max_size=40),
    st.ip_addresses().map(str),
    st.sampled_from(["fe80::1%eth0", "fe80::1%25", "fe80::1%2525", "db.internal."]),
).filter(lambda host: host_fault(host) is None)
targets = st.lists(st.builds(Target, hosts, st.integers(1, 65535)), min_size=1, max_size=3).map(tuple)
seconds = st.floats(min_value=1e-3, max_value=2e6)
files = st.text(min_size=1).filter(lambda path: "\0" not in path and "://" not in path and is_path(path))
keepalives = st.none() | st.builds(Keepalive, st.floats(1e-6, 32767), st.floats(1e-6, 32767), st.integers(1, 127))
words = st.text(string.ascii_letters + string.digits + "!#%&=+/@?", min_size=1, max_size=20)
tls = st.fixed_dictionaries(
    {"server_hostname": hosts.filter(lambda host: "%" not in host)},
    optional={
        "ca_file": files,
        "cert_file": files,
        "alpn": st.lists(words, min_size=1, max_size=3),
        "minimum_version": st.sampled_from([None, "TLSv1.2", "TLSv1.3"]),
        "handshake_timeout": st.none() | seconds,
        "shutdown_timeout": st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    },
).map(make_tls)
tcp_options = st.fixed_dictionaries(
    {},
    optional={
        "keepalive": keepalives,
        "user_timeout": st.none() | seconds,
        "nodelay": st.booleans(),
        "happy_eyeballs_delay": st.none() | st.floats(0.01, 1e300),
        "interleave": st.integers(1, 2**31 - 1),
        "shuffle": st.booleans(),
        "proto": st.integers(0, 2**31 - 1),
        "flags": st.integers(0, 2**31 - 1),
        "tls": st.none() | st.booleans() | tls,
    },
)


labels = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)


def without_shuffle(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "shuffle"}


def is_path(path: str) -> bool:
    try:
        return len(os.fsencode(path)) > 0
    except UnicodeError:
        return False


@given(targets, tcp_options)
def test_tcp_endpoints_round_trip(targets: tuple[Target, ...], options: dict[str, Any]) -> None:
    endpoint = Endpoint(targets=targets, **options)
    assert Endpoint.parse(str(endpoint)) == endpoint
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    assert endpoint.replace() == endpoint
    assert str(endpoint).isprintable()


@given(st.builds("_{}._tcp.{}".format, labels, labels), tcp_options.map(without_shuffle))
def test_services_round_trip(name: str, options: dict[str, Any]) -> None:
    endpoint = Endpoint(srv=name, **options)
    assert Endpoint.parse(str(endpoint)) == endpoint == endpoint.replace()
    assert (endpoint.host, endpoint.port, endpoint.targets) == (None, None, ())


@given(st.binary(min_size=1, max_size=107).map(os.fsdecode) | files, st.none() | tls)
@example("@a", None)
@example("//a", None)
@example("#?&=%", None)
@example("\n", None)
def test_unix_endpoints_round_trip(path: str, tls: TLS | None) -> None:
    assume(sys.platform.startswith("linux") or not path.startswith("\0"))
    assume("\0" not in path[1:] and path != "\0" and "://" not in path and len(os.fsencode(path)) <= 103)
    endpoint = Endpoint(path=path, tls=tls)
    assert Endpoint.parse(str(endpoint)) == endpoint
    assert str(endpoint).isprintable()


pieces = st.lists(
    st.sampled_from(
        ["tcp://", "tls://", "unix://", "unix:", "/", "@", ":", ",", "[", "]", "%", "%25", "%00", "?", "&", "=", "#",
         "db", "::1", "fe80::1", "127.0.0.1", "80", "0", "é", "。", "\ud800", "\udcff", "\0", " ", ".", "on", "off",
         "5s", "1:2:3", "nodelay", "keepalive", "local_addr", "family", "inet6", "alpn", "ca_file", "user_timeout",
         "server_hostname", "interleave"],
    ) | st.text(max_size=3),
    max_size=12,
).map("".join)  # fmt: skip


@given(st.text() | pieces | st.builds("tcp://h:1?{}={}".format, st.sampled_from(["alpn", "flags"]), st.text()))
@example("tcp://h:1?flags=" + "9" * 5000)
@example("tcp://h:" + "9" * 5000)
def test_any_text_is_an_endpoint_or_a_config_error(text: str) -> None:
    endpoint = made(lambda: Endpoint.parse(text))
    if isinstance(endpoint, ConfigError):
        assert endpoint.problems
        assert all(problem.partition("=")[1] and ": " in problem for problem in endpoint.problems)
        assert str(endpoint).isprintable()
        return
    for target in endpoint.targets:
        assert host_fault(target.host) is None
        assert target.ascii_host.isascii()
        assert 1 <= target.port <= 65535
    assert bool(endpoint.targets) is (endpoint.path is None and endpoint.srv is None)
    assert Endpoint.parse(str(endpoint)) == endpoint


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.tuples(st.text(), st.integers()),
    st.lists(st.text()), st.just(CLIENT), st.builds(object),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["host", "port", "path", *Endpoint.__slots__]), anything))
def test_any_arguments_are_an_endpoint_or_a_config_error(arguments: dict[str, Any]) -> None:
    endpoint = made(lambda: Endpoint(**arguments))
    assert str(endpoint).isprintable()
    assert isinstance(endpoint, ConfigError) or Endpoint.parse(str(endpoint)) == endpoint


@given(st.dictionaries(st.sampled_from(TLS.__slots__), anything))
def test_any_arguments_are_a_tls_or_a_config_error(arguments: dict[str, Any]) -> None:
    assert str(made(lambda: TLS(**arguments))).isprintable()


# The module


def test_the_import_is_light() -> None:
    program = (
        "import sys, asyncio, ssl, dataclasses, aioconnect.errors; before = set(sys.modules);"
        "import aioconnect.endpoint; print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(ran.stdout.split()) <= {
        "aioconnect.endpoint", "aioconnect.hosts", "aioconnect.urls", "aioconnect.validation", "string",
    }  # fmt: skip
