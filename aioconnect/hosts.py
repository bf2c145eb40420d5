"""Hosts, ports and address families: what is one, and what is dialed for it.

Checked before a loop or the resolver sees them, because those let mistakes through, each in its own way:
uvloop cuts a host at a NUL character and takes a port modulo 65536, getaddrinfo does the latter for names,
both loops make port 1 of 1.5.
"""

from __future__ import annotations

import socket
import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

from aioconnect.validation import CREDENTIALS, Problems, check_integer, check_sequence, is_url

__all__ = (
    "FAMILIES",
    "ascii_host",
    "check_families",
    "check_family",
    "check_host",
    "check_local_addr",
    "check_port",
    "check_server_hostname",
    "check_service",
    "check_targets",
    "family_text",
    "host_fault",
    "literal_family",
    "service_domain",
    "split_host_port",
)

FAMILIES: Mapping[str, socket.AddressFamily] = MappingProxyType(
    {"unspec": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
)
"""The text forms of the address families."""

_IN_NAMES = frozenset(string.ascii_letters + string.digits + "-_")
_IN_INTERFACES = _IN_NAMES | frozenset(".~")
_BRACKETS = frozenset("[]")
_HEXADECIMAL = frozenset(string.hexdigits)

_TOO_LONG = "must be at most 253 characters long"


class Target(NamedTuple):
    """One ``host:port``; the host is kept as it was given."""

    host: str
    port: int

    @property
    def ascii_host(self) -> str:
        """The host as it is resolved and dialed: a name that is not ASCII in its IDNA form."""
        return ascii_host(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def literal_family(host: str) -> socket.AddressFamily | None:
    """AF_INET or AF_INET6 for an IP address, with or without an interface; None for a name.

    >>> literal_family("fe80::1%eth0").name, literal_family("example.org")
    ('AF_INET6', None)
    """
    if ":" in host:
        return None if _packed(socket.AF_INET6, host.partition("%")[0]) is None else socket.AF_INET6
    # Most names are told by their last character; an exception costs a microsecond.
    return socket.AF_INET if host[-1:].isdecimal() and _packed(socket.AF_INET, host) is not None else None


def _packed(family: socket.AddressFamily, address: str) -> bytes | None:
    # Not `ipaddress`, whose import costs 3 ms; inet_pton also takes no shorthand such as 127.1.
    try:
        return socket.inet_pton(family, address)
    except (OSError, ValueError):
        return None


def ascii_host(host: str) -> str:
    """The form of a checked host that is dialed: IDNA for a name that is not ASCII, any other as it is.

    IDNA 2003, as the ``socket`` module does it. The loops and glibc differ in what they make of the rest, so
    none of them is shown more than ASCII.

    >>> ascii_host("bücher.example"), ascii_host("::1")
    ('xn--bcher-kva.example', '::1')
    """
    return host if host.isascii() else host.encode("idna").decode("ascii")


def host_fault(host: str) -> str | None:
    """What is wrong with a host, name or IP address; None if nothing is.

    >>> host_fault("db.internal"), host_fault("1.2.3")
    (None, 'must be a name, or an IPv4 address of four numbers from 0 to 255')
    """
    if literal_family(host) is socket.AF_INET:
        return None
    faults = (
        (not host, "must not be empty"),
        ("\0" in host, "must not contain a NUL character"),
        # Of all white space only the plain space counts as printable.
        (
            not host.isprintable() or " " in host,
            "must not contain spaces, control characters or invisible ones",
        ),
        ("@" in host, CREDENTIALS),
        (is_url(host), "must be the host alone; a URL is read by Endpoint.parse"),
        (_BRACKETS.intersection(host), "must be without brackets, which belong to text with a port"),
    )
    fault = next((fault for wrong, fault in faults if wrong), None)
    return fault or (_ipv6_fault(host) if ":" in host else _name_fault(host))


def _ipv6_fault(host: str) -> str | None:
    address, percent, scope = host.partition("%")
    packed = _packed(socket.AF_INET6, address)
    if packed is None:
        return "must be a host name or an IP address, without a port"
    # fe80::/10, RFC 4291 section 2.5.6: the same on every link, so it says nothing without an interface.
    link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
    if link_local and not percent:
        return "is link-local and needs its interface, as in fe80::1%eth0"
    if percent and not link_local:
        return "is not link-local and takes no %interface"
    if percent and not (_IN_INTERFACES.issuperset(scope) and 1 <= len(scope) <= 15):
        return "must name an interface after the %, by name or number"
    return None


def _name_fault(host: str) -> str | None:
    if len(host) > 254:
        return _TOO_LONG
    name = host
    if not host.isascii():
        # Compatibility characters turn into others, into a dot or a slash even (RFC 3491 section 4): so the
        # rest is checked on what will be dialed.
        try:
            name = ascii_host(host)
        except UnicodeError:
            return "cannot be written in IDNA; every part must have 1 to 63 characters once encoded"
    # One final dot only says that the name is complete (RFC 1034 section 3.1).
    name = name.removesuffix(".")
    labels = name.split(".")
    faults = (
        ("" in labels, "must not have an empty part between or before its dots"),
        (len(name) > 253, _TOO_LONG),
        (any(len(label) > 63 for label in labels), "must not have a part longer than 63 characters"),
        (
            not all(_IN_NAMES.issuperset(label) for label in labels),
            "must be made of letters, digits, '-', '_' and '.'",
        ),
        # No name ends in a number (RFC 3696 section 2), and getaddrinfo takes 127.1 and 0x7f.1 for 127.0.0.1.
        (
            _is_number(labels[-1]) and _packed(socket.AF_INET, host) is None,
            "must be a name, or an IPv4 address of four numbers from 0 to 255",
        ),
    )
    return next((fault for wrong, fault in faults if wrong), None)


def _is_number(label: str) -> bool:
    return label.isdecimal() or (label[:2] in {"0x", "0X"} and _HEXADECIMAL.issuperset(label[2:]))


def _text(problems: Problems, field: str, value: object, right: str) -> str | None:
    if isinstance(value, bytes) and value.isascii():
        return value.decode("ascii")
    if isinstance(value, str):
        # The plain text of a subclass too: that of an enum's member says something else.
        return str.__str__(value)
    problems.add(field, value, right)
    return None


def check_host(problems: Problems, field: str, value: object) -> str:
    """A host name or an IP address, as text or ASCII bytes. Given back as it came, not IDNA-encoded."""
    host = _text(problems, field, value, "must be a host name or an IP address, as text")
    if host is None:
        return ""
    fault = host_fault(host)
    if fault is not None:
        problems.add(field, host, fault)
        return ""
    return host


def check_service(problems: Problems, field: str, value: object) -> str:
    """A name with SRV records: ``_service._tcp.domain`` (RFC 2782), as text or ASCII bytes. Given back as it came."""
    right = "must be the name of a service over TCP, as in _redis._tcp.example.org"
    name = _text(problems, field, value, right)
    if name is None:
        return ""
    service, proto, domain = [*name.split(".", 2), "", ""][:3]
    fault = None
    if ":" in name:
        fault = "must be without a port: the records have one for each host"
    elif "," in name:
        fault = "must be one name: its records have as many hosts as there are"
    elif len(service) < 2 or service[0] != "_" or proto.lower() != "_tcp" or not domain.strip("."):
        fault = right
    fault = fault or host_fault(name)
    if fault is not None:
        problems.add(field, name, fault)
    return name


def service_domain(service: str) -> str:
    """The domain that a checked name of a service is in.

    >>> service_domain("_redis._tcp.example.org")
    'example.org'
    """
    return service.split(".", 2)[2]


def check_server_hostname(problems: Problems, field: str, value: object) -> str:
    """A name or an IP address that a certificate can be for."""
    host = _text(problems, field, value, "must be a host name or an IP address, as text")
    if host is None:
        return ""
    fault = None if ":" in host and _packed(socket.AF_INET6, host) is not None else host_fault(host)
    if fault is None and "%" in host:
        fault = "must be without %interface, which no certificate has"
    if fault is not None:
        problems.add(field, host, fault)
    return host


def check_port(problems: Problems, field: str, value: object, low: int = 1) -> int:
    """A port number, its decimal digits, or the name of a TCP service, services(5). Gives back the number."""
    right = f"must be an integer from {low} to 65535"
    if isinstance(value, (str, bytes)):
        text = _text(problems, field, value, right)
        if text is None:
            return low
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            return _service_port(problems, field, text, right)
        value = int(text)
    elif value is None:
        problems.add(field, value, f"must be given: an integer from {low} to 65535")
        return low
    return check_integer(problems, field, value, low, 65535)


def _service_port(problems: Problems, field: str, name: str, right: str) -> int:
    try:
        # A signed number is no service name, whatever the system's database may make of it.
        if name and _IN_NAMES.issuperset(name) and not name.lstrip("-").isdecimal():
            return socket.getservbyname(name, "tcp")
    except OSError:
        pass
    problems.add(field, name, f"{right}, or the name of a known TCP service")
    return 1


def split_host_port(text: str) -> tuple[str, str] | str:
    """Host and port of ``host:port`` or ``[IPv6]:port``, or else the text of what is wrong.

    >>> split_host_port("[::1]:80"), split_host_port("::1")
    (('::1', '80'), 'must have its IPv6 address in brackets and a port, as in [::1]:80')
    """
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if ":" in host and rest.startswith(":") and not _BRACKETS.intersection(host + rest):
            return host, rest[1:]
    if "://" in text:
        return "must be HOST:PORT; a URL is read by Endpoint.parse"
    if _BRACKETS.intersection(text):
        return "must be HOST:PORT, only an IPv6 address in brackets, as in [::1]:80"
    host, colon, port = text.rpartition(":")
    if ":" in host:
        return "must have its IPv6 address in brackets and a port, as in [::1]:80"
    return (host, port) if colon else "must be HOST:PORT, with a port of its own"


def check_targets(
    problems: Problems, host: object, port: object, targets: object, others: Mapping[str, object]
) -> tuple[Target, ...]:
    """The targets that a host and a port, or a sequence, stand for; those are needed, or else one of the others."""
    items = _target_items(problems, targets)
    alone = host is not None or port is not None
    places = {"host and port": (alone, host), "targets": (items, items)}
    places |= {name: (value is not None, value) for name, value in others.items()}
    given = [name for name, (there, _) in places.items() if there]
    if not given and not problems.found:
        problems.add("host", None, "must be given with a port, or else targets, srv, or a path")
    for name in given[1:]:
        problems.add(name, places[name][1], f"must not be given together with {given[0]}")
    if alone and len(given) == 1:
        return (Target(check_host(problems, "host", host), check_port(problems, "port", port)),)
    if len(items) == 1:
        return (_target(problems, "target", "", items[0]),)
    return tuple(_target(problems, f"targets[{n}]", f"targets[{n}].", item) for n, item in enumerate(items))


def _target_items(problems: Problems, targets: object) -> tuple[object, ...]:
    # Before the commas are looked at, one of which may be in the password.
    if isinstance(targets, str) and "@" in targets:
        problems.add("targets", targets, CREDENTIALS)
        return ()
    return check_sequence(problems, "targets", targets)


def _target(problems: Problems, field: str, within: str, value: object, low: int = 1) -> Target:
    """A pair or a ``HOST:PORT`` text, which is ``field``; host and port are fields ``within`` it."""
    pair: object = split_host_port(value) if isinstance(value, str) else value
    if isinstance(pair, str):
        problems.add(field, value, pair)
    elif isinstance(pair, (tuple, list)) and len(cast("Sequence[object]", pair)) == 2:
        host, port = cast("Sequence[object]", pair)
        return Target(
            check_host(problems, f"{within}host", host),
            check_port(problems, f"{within}port", port, low),
        )
    else:
        problems.add(field, value, "must be a HOST:PORT text or a pair of host and port")
    return Target("", low)


def check_local_addr(problems: Problems, value: object) -> Target | None:
    """The address to dial from. An IP address: a name may have several, and asking would take a resolver."""
    if value is None:
        return None
    target = _target(problems, "local_addr", "local_addr.", value, 0)
    if target.host and literal_family(target.host) is None:
        problems.add("local_addr.host", target.host, "must be one of this host's IP addresses, not a name")
    return target


def family_text(family: socket.AddressFamily) -> str:
    """The text form of a checked family."""
    return next(name for name, each in FAMILIES.items() if each is family)


def check_family(problems: Problems, value: object) -> socket.AddressFamily:
    """One of the three families that make sense here, or its text form."""
    if isinstance(value, str):
        if value in FAMILIES:
            return FAMILIES[value]
    elif isinstance(value, int) and not isinstance(value, bool):
        for family in FAMILIES.values():
            if family == value:
                return family
    problems.add("family", value, "must be AF_UNSPEC, AF_INET or AF_INET6; unspec, inet or inet6 in a text")
    return socket.AF_UNSPEC


def check_families(
    problems: Problems, family: socket.AddressFamily, local_addr: Target | None, targets: tuple[Target, ...]
) -> None:
    """The family asked for, the local address and the targets that are IP addresses must agree."""
    local = None if local_addr is None else literal_family(local_addr.host)
    if local is not None and family not in (socket.AF_UNSPEC, local):
        problems.add("local_addr", str(local_addr), f"must be of the family {family_text(family)}")
    for target in targets:
        literal = literal_family(target.host)
        if literal is not None and family not in (socket.AF_UNSPEC, literal):
            problems.add("family", family_text(family), f"must be that of the address {target.host}")
        elif literal is not None and local not in (None, literal):
            problems.add("local_addr", str(local_addr), f"must be of the same family as {target.host}")
