"""Hosts, ports and families: each refusal is one that a loop or the resolver would have got wrong."""

from __future__ import annotations

import enum
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioconnect import hosts
from aioconnect.hosts import Target, ascii_host, host_fault, literal_family, split_host_port
from aioconnect.validation import Problems


class Host(str, enum.Enum):  # noqa: UP042  (prints otherwise than StrEnum)
    PRIMARY = "db.internal"


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "db.internal", "db.internal.", "a_b-c.example", "xn--bcher-kva.example", "1.2.3.4.example",
        "0xdeadbeef-node", "a" * 63, ".".join(["a" * 61] * 4) + ".abcde", "DB", "bücher.example", "日本。jp",
        "127.0.0.1", "0.0.0.0", "::1", "2001:db8::1", "::ffff:1.2.3.4", "fe80::1%eth0", "fe80::1%2", "febf::1%a.b~c",
    ],
)  # fmt: skip
def test_hosts(host: str) -> None:
    assert host_fault(host) is None


NUMBERS = "must be a name, or an IPv4 address of four numbers from 0 to 255"
EMPTY_PART = "must not have an empty part between or before its dots"
INVISIBLE = "must not contain spaces, control characters or invisible ones"
CHARACTERS = "must be made of letters, digits, '-', '_' and '.'"
CREDENTIALS = "must not hold a user name or a password: they belong to the protocol spoken over it"


@pytest.mark.parametrize(
    ("host", "fault"),
    [
        ("", "must not be empty"),
        ("127.0.0.1\0.example.org", "must not contain a NUL character"),
        ("a b", INVISIBLE),
        ("a\n", INVISIBLE),
        ("a\u3000b", INVISIBLE),
        ("a\u200db", INVISIBLE),
        ("a\xadb", INVISIBLE),
        ("\ud800", INVISIBLE),
        ("user:secret@host", CREDENTIALS),
        ("tcp://db", "must be the host alone; a URL is read by Endpoint.parse"),
        ("[::1]", "must be without brackets, which belong to text with a port"),
        ("db:80", "must be a host name or an IP address, without a port"),
        ("::g", "must be a host name or an IP address, without a port"),
        ("::1::", "must be a host name or an IP address, without a port"),
        ("fe80::1", "is link-local and needs its interface, as in fe80::1%eth0"),
        ("::1%eth0", "is not link-local and takes no %interface"),
        ("fec0::1%eth0", "is not link-local and takes no %interface"),
        ("fe80::1%", "must name an interface after the %, by name or number"),
        ("fe80::1%a/b", "must name an interface after the %, by name or number"),
        ("fe80::1%longer-than-fifteen", "must name an interface after the %, by name or number"),
        ("a..b", EMPTY_PART),
        (".a", EMPTY_PART),
        (".", EMPTY_PART),
        ("a..", EMPTY_PART),
        ("a" * 64, "must not have a part longer than 63 characters"),
        ("é" * 62, "cannot be written in IDNA; every part must have 1 to 63 characters once encoded"),
        ("a。。b", "cannot be written in IDNA; every part must have 1 to 63 characters once encoded"),
        ("a.é..", "cannot be written in IDNA; every part must have 1 to 63 characters once encoded"),
        (".".join(["a" * 61] * 4) + ".abcdef", "must be at most 253 characters long"),
        ("a" * 10_000, "must be at most 253 characters long"),
        ("é" * 10_000, "must be at most 253 characters long"),
        ("a*b", CHARACTERS),
        ("a/b", CHARACTERS),
        ("a%20b", CHARACTERS),
        ("eth0%1", CHARACTERS),
        ("℀.com", CHARACTERS),
        ("1", NUMBERS),
        ("127.1", NUMBERS),
        ("1.2.3", NUMBERS),
        ("1.2.3.400", NUMBERS),
        ("1.2.3.4.5", NUMBERS),
        ("127.0.0.01", NUMBERS),
        ("127.0.0.1.", NUMBERS),
        ("0x7f000001", NUMBERS),
        ("0X7F.1", NUMBERS),
        ("example.0x", NUMBERS),
        ("\N{FULLWIDTH DIGIT ONE}27.0.0.1", NUMBERS),
    ],
)
def test_no_hosts(host: str, fault: str) -> None:
    assert host_fault(host) == fault


@given(st.text(max_size=300) | st.text(alphabet="a1é.。:%[]@-_x\0 ", max_size=70))
@example("ß.de")
@example("\u0130")
def test_a_host_without_a_fault_is_safe_to_dial(host: str) -> None:
    if host_fault(host) is None:
        dialed = ascii_host(host)
        assert dialed.isascii()
        assert dialed.isprintable()
        assert not set(dialed) & set("/@ [],?#")
        # What the loops and getaddrinfo do to a name of their own accord changes nothing any more.
        assert dialed.encode("idna").decode("ascii") == dialed
        assert host_fault(dialed) is None


@given(st.ip_addresses())
def test_ip_addresses(address: object) -> None:
    host = str(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    assert literal_family(host) is family
    fault = host_fault(host)
    assert fault is None or "link-local" in fault


@pytest.mark.parametrize(
    "host", ["db", "1.2.3", "1.2.3.4.", "", "::g", "db:80", "\N{FULLWIDTH DIGIT ONE}.2.3.4", "x%1"]
)
def test_no_ip_addresses(host: str) -> None:
    assert literal_family(host) is None


def test_what_is_dialed() -> None:
    assert ascii_host("bücher.example") == "xn--bcher-kva.example"
    assert ascii_host("日本。jp") == "xn--wgv71a.jp"
    assert ascii_host("fe80::1%eth0") == "fe80::1%eth0"
    assert Target("bücher.example", 80).ascii_host == "xn--bcher-kva.example"
    assert str(Target("fe80::1%eth0", 80)) == "[fe80::1%eth0]:80"
    assert str(Target("db", 80)) == "db:80"


def test_hosts_may_be_bytes_or_a_kind_of_text() -> None:
    problems = Problems()
    assert hosts.check_host(problems, "host", b"db.internal") == "db.internal"
    host = hosts.check_host(problems, "host", Host.PRIMARY)
    assert (host, type(host)) == ("db.internal", str)
    assert problems.found == []
    hosts.check_host(problems, "host", b"\xff")
    hosts.check_host(problems, "host", None)
    assert problems.found == [
        r"host=b'\xff': must be a host name or an IP address, as text",
        "host=None: must be a host name or an IP address, as text",
    ]


@pytest.mark.parametrize("name", ["db.internal", "db.internal.", "127.0.0.1", "fe80::1", "::1", "bücher.example"])
def test_server_hostnames(name: str) -> None:
    problems = Problems()
    assert hosts.check_server_hostname(problems, "server_hostname", name) == name
    assert problems.found == []


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("fe80::1%eth0", "must be without %interface, which no certificate has"),
        ("a..b", EMPTY_PART),
        ("a\0b", "must not contain a NUL character"),
        ("db:443", "must be a host name or an IP address, without a port"),
        (5, "must be a host name or an IP address, as text"),
    ],
)
def test_no_server_hostnames(name: object, right: str) -> None:
    problems = Problems()
    hosts.check_server_hostname(problems, "server_hostname", name)
    assert problems.found == [f"server_hostname={name!r}: {right}"]


@pytest.mark.parametrize("value", [443, "443", "0443", b"443", "https"])
def test_ports(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getservbyname", lambda name, protocol: {"https tcp": 443}[f"{name} {protocol}"])
    problems = Problems()
    port = hosts.check_port(problems, "port", value)
    assert (port, type(port), problems.found) == (443, int, [])


@pytest.mark.parametrize(
    "value",
    [0, -1, 65536, 65558, 10**400, "0", "65536", "-1", "+1", "1.5", " 1", "", "٣", "9" * 5000, "no such", "a\0b",
     "\ud800", "-", b"\xff", b"", 1.0, 1.5, True, (), None],
)  # fmt: skip
def test_no_ports(value: object) -> None:
    problems = Problems()
    hosts.check_port(problems, "port", value)
    assert len(problems.found) == 1
    assert "an integer from 1 to 65535" in problems.found[0]


def test_an_unknown_service_is_named() -> None:
    problems = Problems()
    hosts.check_port(problems, "port", "nosuch")
    assert problems.found == ["port='nosuch': must be an integer from 1 to 65535, or the name of a known TCP service"]


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("db:80", ("db", "80")),
        ("[::1]:80", ("::1", "80")),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", "80")),
        (":80", ("", "80")),
        ("db:", ("db", "")),
        ("", "must be HOST:PORT, with a port of its own"),
        ("db", "must be HOST:PORT, with a port of its own"),
        ("::1", "must have its IPv6 address in brackets and a port, as in [::1]:80"),
        ("::1:80", "must have its IPv6 address in brackets and a port, as in [::1]:80"),
        ("a:b:80", "must have its IPv6 address in brackets and a port, as in [::1]:80"),
        ("[::1]", "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"),
        ("[::1]80", "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"),
        ("[db]:80", "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"),
        ("x[::1]:80", "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"),
        ("[[::1]]:80", "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"),
        ("tcp://db:80", "must be HOST:PORT; a URL is read by Endpoint.parse"),
    ],
)
def test_split_host_port(text: str, pair: object) -> None:
    assert split_host_port(text) == pair


@pytest.mark.parametrize("family", [socket.AF_INET6, int(socket.AF_INET6), "inet6"])
def test_families(family: object) -> None:
    problems = Problems()
    assert hosts.check_family(problems, family) is socket.AF_INET6
    assert problems.found == []
    assert hosts.family_text(socket.AF_INET6) == "inet6"


@pytest.mark.parametrize("family", [socket.AF_UNIX, 99, -1, True, False, None, 2.0, "ipv6", b"inet"])
def test_no_families(family: object) -> None:
    problems = Problems()
    assert hosts.check_family(problems, family) is socket.AF_UNSPEC
    assert len(problems.found) == 1
    assert problems.found[0].endswith("unspec, inet or inet6 in a text")
