"""Where to connect to: an `Endpoint`, its `TLS` and its `Keepalive`. Frozen values, checked when made.

Every option also takes its text form (``"250ms"``, ``"off"``, ``"inet6"``), so the query of a URL and a
configuration file need no rules of their own: what they hold is handed to the same constructors.

The URLs are described in the module `urls`. There is no place in them for a user name or a password: those
belong to the protocol that is spoken later, and an endpoint is printed freely.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from aioconnect import hosts, urls, validation
from aioconnect.hosts import Target
from aioconnect.validation import Problems
from aioconnect.values import Value

__all__ = ("OPTIONS", "TLS", "Endpoint", "Keepalive", "Target")

OPTIONS: tuple[str, ...] = (
    "local_addr",
    "keepalive",
    "user_timeout",
    "nodelay",
    "family",
    "happy_eyeballs_delay",
    "interleave",
    "shuffle",
    "proto",
    "flags",
)
"""What an endpoint can be told besides where it is and how to speak TLS."""

_TLS_OPTIONS = (
    "server_hostname",
    "ca_file",
    "cert_file",
    "key_file",
    "alpn",
    "minimum_version",
    "handshake_timeout",
    "shutdown_timeout",
)
_TLS_VERSIONS: Mapping[str, ssl.TLSVersion] = MappingProxyType(
    {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
)

# Linux refuses larger values with EINVAL (tcp(7); MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT).
_LONGEST_KEEPALIVE = 32767.0
_MOST_PROBES = 127
# TCP_USER_TIMEOUT is an int of milliseconds, and 0 would switch it off.
_SHORTEST_USER_TIMEOUT, _LONGEST_USER_TIMEOUT = 0.001, 2147483.0
# RFC 8305 section 5: the Connection Attempt Delay "MUST NOT" be below 10 ms.
_SHORTEST_DELAY = 0.01
# getaddrinfo(3) takes int.
_LARGEST_INT = 2**31 - 1


class Keepalive(Value):
    """TCP keepalive: a probe after ``idle`` seconds of silence, then every ``interval``, ``count`` in all.

    The defaults are Go's; with Linux's own a dead peer is noticed after two hours. The kernel counts whole
    seconds (tcp(7)), so fractions are rounded up when the options are set.
    """

    __slots__ = ("idle", "interval", "count")

    idle: float
    interval: float
    count: int

    def __init__(self, idle: float | str = 15.0, interval: float | str = 15.0, count: int | str = 9) -> None:
        problems = Problems()
        values = {
            "idle": validation.check_duration(problems, "idle", idle, high=_LONGEST_KEEPALIVE),
            "interval": validation.check_duration(problems, "interval", interval, high=_LONGEST_KEEPALIVE),
            "count": validation.check_integer(problems, "count", count, 1, _MOST_PROBES),
        }
        problems.raise_any()
        self._freeze(**values)

    def __str__(self) -> str:
        """The text form, ``IDLE:INTERVAL:COUNT``."""
        return f"{_option_text(self.idle)}:{_option_text(self.interval)}:{self.count}"


class TLS(Value):
    """How to speak TLS. The peer is always verified, unless a ``context`` that you made says otherwise.

    - ``ca_file``: PEM file of the authorities to trust instead of the system's.
    - ``cert_file``, ``key_file``: PEM files of the client certificate; a combined file needs no ``key_file``.
    - ``server_hostname``: the name to send and to verify, by default the host that is dialed. ``""`` asks for
      none, which only a ``context`` without ``check_hostname`` can do.
    - ``alpn``: protocols to offer, the preferred one first.
    - ``minimum_version``: ``"TLSv1.2"`` or ``"TLSv1.3"``, or the same as `ssl.TLSVersion`.
    - ``handshake_timeout``, ``shutdown_timeout``: seconds; None leaves them to the loop (60 and 30).
    - ``context``: an `ssl.SSLContext`, used as it is. It excludes the files, ``alpn``, ``minimum_version``.

    >>> TLS(alpn="h2,http/1.1", handshake_timeout="5s")
    TLS(alpn=('h2', 'http/1.1'), handshake_timeout=5.0)
    """

    __slots__ = (
        "ca_file",
        "cert_file",
        "key_file",
        "server_hostname",
        "alpn",
        "minimum_version",
        "handshake_timeout",
        "shutdown_timeout",
        "context",
    )

    ca_file: str | None
    cert_file: str | None
    key_file: str | None
    server_hostname: str | None
    alpn: tuple[str, ...]
    minimum_version: str | None
    handshake_timeout: float | None
    shutdown_timeout: float | None
    context: ssl.SSLContext | None

    def __init__(  # noqa: PLR0913  (one keyword for each setting)
        self,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        server_hostname: str | bytes | None = None,
        alpn: str | Sequence[str] = (),
        minimum_version: str | ssl.TLSVersion | None = None,
        handshake_timeout: float | str | None = None,
        shutdown_timeout: float | str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        problems = Problems()
        duration = validation.check_optional_duration
        values: dict[str, Any] = {
            "ca_file": validation.check_file(problems, "ca_file", ca_file),
            "cert_file": validation.check_file(problems, "cert_file", cert_file),
            "key_file": validation.check_file(problems, "key_file", key_file),
            "server_hostname": _server_hostname(problems, server_hostname, context),
            "alpn": _alpn(problems, alpn),
            "minimum_version": _minimum_version(problems, minimum_version),
            "handshake_timeout": duration(problems, "handshake_timeout", handshake_timeout),
            "shutdown_timeout": duration(problems, "shutdown_timeout", shutdown_timeout),
            "context": context,
        }
        _check_tls(problems, values)
        problems.raise_any()
        self._freeze(**values)

    def __repr__(self) -> str:
        shown = {name: value for name, value in _changed(self, _PLAIN_TLS).items() if name != "context"}
        parts = [f"{name}={value!r}" for name, value in shown.items()]
        return f"TLS({', '.join([*parts, 'context=...'] if self.context is not None else parts)})"


class Endpoint(Value):
    """Where to connect to: one or more TCP targets, a service of DNS, or the path of a UNIX socket.

    Equal to one of the same settings, and hashable.

    - ``host`` and ``port``, or ``targets``, or ``srv``, or ``path``: exactly one of the four. ``srv`` is a name
      such as ``_redis._tcp.example.org``, whose SRV records have hosts and ports (RFC 2782; needs the extra
      ``dns``). A path that begins with NUL is an abstract name (Linux).
    - ``tls``: a `TLS`, or True for its defaults. Over a UNIX socket it needs a ``server_hostname``.
    - ``local_addr``: ``(IP address, port)`` to dial from; port 0 lets the kernel choose.
    - ``keepalive``: a `Keepalive`, True for its defaults, None or False for none.
    - ``user_timeout``: seconds that sent data may stay unacknowledged (TCP_USER_TIMEOUT).
    - ``nodelay``: TCP_NODELAY.
    - ``family``: AF_UNSPEC, AF_INET, AF_INET6 or ``"unspec"``, ``"inet"``, ``"inet6"``.
    - ``happy_eyeballs_delay``: seconds until the next address is tried beside the first (RFC 8305 section 5);
      None tries it only after the first has failed.
    - ``interleave``: addresses of the first family before the families alternate (RFC 8305 section 4).
    - ``shuffle``: try the targets in another order at each dial, and the addresses of a name within their family,
      to spread the load. Otherwise the targets come as listed, the next ones as a reserve. SRV records have
      weights for that.
    - ``proto``, ``flags``: passed to getaddrinfo.

    Raises ConfigError with every problem at once.

    >>> Endpoint("db.internal", 5432, tls=True, keepalive="30s:10s:3")
    Endpoint('tls://db.internal:5432?keepalive=30s:10s:3')
    """

    __slots__ = ("targets", "path", "srv", "tls", *OPTIONS)

    targets: tuple[Target, ...]
    path: str | None
    srv: str | None
    tls: TLS | None
    local_addr: Target | None
    keepalive: Keepalive | None
    user_timeout: float | None
    nodelay: bool
    family: socket.AddressFamily
    happy_eyeballs_delay: float | None
    interleave: int
    shuffle: bool
    proto: int
    flags: int

    def __init__(  # noqa: PLR0913  (one keyword for each setting)
        self,
        host: str | bytes | None = None,
        port: int | str | bytes | None = None,
        *,
        targets: str | Iterable[Target | tuple[str, int] | str] = (),
        path: str | bytes | os.PathLike[str] | None = None,
        srv: str | bytes | None = None,
        tls: TLS | bool | str | None = None,
        local_addr: Target | tuple[str, int] | str | None = None,
        keepalive: Keepalive | bool | str | None = True,
        user_timeout: float | str | None = None,
        nodelay: bool | str = True,
        family: socket.AddressFamily | int | str = socket.AF_UNSPEC,
        happy_eyeballs_delay: float | str | None = 0.25,
        interleave: int | str = 1,
        shuffle: bool | str = False,
        proto: int | str = 0,
        flags: int | str = 0,
    ) -> None:
        problems = Problems()
        duration = validation.check_optional_duration
        values: dict[str, Any] = {
            "targets": hosts.check_targets(problems, host, port, targets, {"srv": srv, "path": path}),
            "path": None if path is None else validation.check_socket_path(problems, "path", path),
            "srv": None if srv is None else hosts.check_service(problems, "srv", srv),
            "tls": _tls(problems, tls),
            "local_addr": hosts.check_local_addr(problems, local_addr),
            "keepalive": _keepalive(problems, keepalive),
            "user_timeout": duration(
                problems, "user_timeout", user_timeout, _SHORTEST_USER_TIMEOUT, _LONGEST_USER_TIMEOUT
            ),
            "nodelay": validation.check_switch(problems, "nodelay", nodelay),
            "family": hosts.check_family(problems, family),
            "happy_eyeballs_delay": duration(problems, "happy_eyeballs_delay", happy_eyeballs_delay, _SHORTEST_DELAY),
            "interleave": validation.check_integer(problems, "interleave", interleave, 1, _LARGEST_INT),
            "shuffle": validation.check_switch(problems, "shuffle", shuffle),
            "proto": validation.check_integer(problems, "proto", proto, 0, _LARGEST_INT),
            "flags": validation.check_integer(problems, "flags", flags, 0, _LARGEST_INT),
        }
        _check_endpoint(problems, values)
        problems.raise_any()
        self._freeze(**values)

    @classmethod
    def parse(cls, text: str, **overrides: object) -> Endpoint:
        """The endpoint that a URL or ``host:port`` stands for; arguments of `Endpoint` override its options.

        Strict: every target has its own port, an unknown or repeated option is refused, and so are a path, a
        fragment, TLS options without ``tls://``, and a user name or password, which no message repeats.

        Raises ConfigError with every problem at once.

        >>> Endpoint.parse("tcp://a:5432,b:5432", nodelay=False).targets
        (Target(host='a', port=5432), Target(host='b', port=5432))
        """
        problems = Problems()
        parts = urls.split_url(problems, text, OPTIONS + _TLS_OPTIONS)
        options: dict[str, Any] = {"targets": parts.targets, "path": parts.path, "srv": parts.srv}
        options |= {name: text for name, text in parts.options.items() if name in OPTIONS}
        options |= overrides
        options["tls"] = _parsed_tls(problems, parts, overrides.get("tls"))
        if problems.found:
            problems.unless_wrong(lambda: cls(**options))
            problems.raise_any()
        return cls(**options)

    def replace(self, **changes: object) -> Endpoint:
        """A changed copy, checked like a new one.

        A new host, ``targets``, ``srv`` or ``path`` takes the place of the old one.
        """
        options = self._fields()
        elsewhere: dict[str, Any] = {"targets": (), "srv": None, "path": None}
        if changes.keys() & elsewhere.keys():
            options |= elsewhere
        elif "host" in changes or "port" in changes:
            options |= {"srv": None, "path": None}
            if len(self.targets) < 2:
                options |= {"targets": (), "host": self.host, "port": self.port}
            elif "host" in changes and "port" in changes:
                options["targets"] = ()
        options |= changes
        return type(self)(**options)

    @property
    def host(self) -> str | None:
        """The first target's host; None for a service and for a UNIX socket."""
        return self.targets[0].host if self.targets else None

    @property
    def port(self) -> int | None:
        """The first target's port; None for a service and for a UNIX socket."""
        return self.targets[0].port if self.targets else None

    @property
    def address_family(self) -> socket.AddressFamily:
        """The family to resolve names for: ``family``, and where that is open the one of ``local_addr``."""
        if self.family is socket.AF_UNSPEC and self.local_addr is not None:
            return hosts.literal_family(self.local_addr.host) or self.family
        return self.family

    def server_hostname(self, target: Target | None = None) -> str | None:
        """The name that TLS sends and verifies at a target, in ASCII; None without TLS.

        Without a final dot (RFC 6066 section 3) and without %interface, which no certificate has. For a service it
        is the domain that was asked for, whatever host an SRV record names: without DNSSEC that one may be anybody's
        word (RFC 6125 section 6.2.1, RFC 9525 section 6.1). Where the certificates are for another name,
        ``TLS(server_hostname=)`` says so.
        """
        if self.tls is None:
            return None
        name = self.tls.server_hostname
        if name is None:
            name = (target or self.targets[0]).host if self.srv is None else hosts.service_domain(self.srv)
        return hosts.ascii_host(name).partition("%")[0].removesuffix(".")

    def __str__(self) -> str:
        """The URL with the options that are not at their defaults; a TLS ``context`` has no text form."""
        options = {name: value for name, value in _changed(self, _PLAIN).items() if name in OPTIONS}
        if self.tls is not None:
            changed = _changed(self.tls, _PLAIN_TLS)
            options |= {name: changed[name] for name in _TLS_OPTIONS if changed.get(name, "") != ""}
        query = "&".join(f"{name}={urls.quote(_option_text(value))}" for name, value in options.items())
        return self.place + (f"?{query}" if query else "")

    @property
    def place(self) -> str:
        """The URL without its options: what an endpoint is called in messages."""
        if self.path is not None:
            return urls.format_path(self.path)
        scheme = "tcp" if self.tls is None else "tls"
        if self.srv is not None:
            return f"srv+{scheme}://{self.srv}"
        # Only an interface's % is left to encode in a checked host. A name that is not ASCII stays readable.
        targets = ",".join(str(target).replace("%", "%25") for target in self.targets)
        return f"{scheme}://{targets}"

    def __repr__(self) -> str:
        context = ", tls=TLS(context=...)" if self.tls is not None and self.tls.context is not None else ""
        return f"Endpoint({str(self)!r}{context})"


def _keepalive(problems: Problems, value: object) -> Keepalive | None:
    if isinstance(value, Keepalive):
        return value
    if isinstance(value, str) and value.count(":") == 2:
        idle, interval, count = value.split(":")
        return problems.unless_wrong(lambda: Keepalive(idle, interval, count), "keepalive.")
    state = False if value is None else validation.switch(value)
    if state is None:
        problems.add("keepalive", value, "must be a Keepalive, True, False or None; on, off or 15s:15s:9 in a text")
    return _PLAIN_KEEPALIVE if state else None


def _tls(problems: Problems, value: object) -> TLS | None:
    if value is None or isinstance(value, TLS):
        return value
    state = validation.switch(value)
    if state is None:
        problems.add("tls", value, "must be a TLS, True, False or None; a context goes into TLS(context=...)")
    return _PLAIN_TLS if state else None


def _server_hostname(problems: Problems, value: object, context: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) and not value:
        if not isinstance(context, ssl.SSLContext) or context.check_hostname:
            problems.add("server_hostname", "", "must be the name to verify, unless context= verifies none")
        return ""
    return hosts.check_server_hostname(problems, "server_hostname", value)


def _alpn(problems: Problems, value: object) -> tuple[str, ...]:
    names: list[str] = []
    for name in validation.check_sequence(problems, "alpn", value):
        # RFC 7301 section 3.1 takes any bytes; a comma, in no registered name, is what separates them here.
        if isinstance(name, str) and 1 <= len(name) <= 255 and name.isascii() and _is_word(name):
            names.append(name)
        else:
            problems.add("alpn", name, "must be 1 to 255 printable ASCII characters, no space, no comma")
    return tuple(names)


def _is_word(text: str) -> bool:
    return text.isprintable() and " " not in text and "," not in text


def _minimum_version(problems: Problems, value: object) -> str | None:
    if value is None:
        return None
    for name, version in _TLS_VERSIONS.items():
        if value is version or (isinstance(value, str) and value == name):
            return name
    problems.add("minimum_version", value, "must be TLSv1.2 or TLSv1.3; an older one needs a context of your own")
    return None


def _check_tls(problems: Problems, values: dict[str, Any]) -> None:
    context = values["context"]
    if values["key_file"] is not None and values["cert_file"] is None and context is None:
        problems.add("key_file", values["key_file"], "must be given together with cert_file")
    if context is None:
        return
    if not isinstance(context, ssl.SSLContext):
        problems.add("context", context, "must be an ssl.SSLContext")
    elif context.protocol == ssl.PROTOCOL_TLS_SERVER:
        problems.add("context", context, "must be made for a client, with PROTOCOL_TLS_CLIENT")
    for name in ("ca_file", "cert_file", "key_file", "alpn", "minimum_version"):
        if values[name]:
            problems.add(name, values[name], "must not be given together with context, which has its own")


def _check_endpoint(problems: Problems, values: dict[str, Any]) -> None:
    if values["path"] is None:
        hosts.check_families(problems, values["family"], values["local_addr"], values["targets"])
        if values["srv"] is not None and values["shuffle"]:
            problems.add("shuffle", "on", "must not be given for a service: its SRV records have weights")
        return
    for name in OPTIONS:
        if values[name] != getattr(_PLAIN, name):
            problems.add(name, _option_text(values[name]), "is for TCP: must not be given for a UNIX socket")
    if values["tls"] is not None and values["tls"].server_hostname is None:
        problems.add("server_hostname", None, "must be given for TLS over a UNIX socket, which has no host")


def _parsed_tls(problems: Problems, parts: urls.Parts, override: object) -> object:
    """What ``tls`` is for a URL, its TLS options and an argument ``tls=``, of which None says nothing."""
    options: dict[str, Any] = {name: text for name, text in parts.options.items() if name in _TLS_OPTIONS}
    if parts.scheme.endswith("tcp"):
        secure = parts.scheme.replace("tcp", "tls")
        for name, text in options.items():
            problems.add(name, text, f"is an option of TLS; write {secure}:// instead of {parts.scheme}://")
        return override
    if not options and parts.scheme == "unix":
        return override
    if validation.switch(override) is False:
        problems.add("tls", override, "must not contradict the URL, which asks for TLS")
    if not options:
        return True if override is None else override
    if isinstance(override, TLS):
        problems.add("tls", override, "must not be given beside TLS options in the URL")
    return problems.unless_wrong(lambda: TLS(**options))


def _changed(value: Endpoint | TLS, plain: Endpoint | TLS) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    names: tuple[str, ...] = type(value).__slots__
    return {name: getattr(value, name) for name in names if getattr(value, name) != getattr(plain, name)}


def _option_text(value: object) -> str:
    """The text form of an option's checked value."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, socket.AddressFamily):
        return hosts.family_text(value)
    if isinstance(value, float):
        return validation.format_duration(value)
    if isinstance(value, tuple) and not isinstance(value, Target):
        return ",".join(cast("tuple[str, ...]", value))
    return str(value)


# The defaults, from their one source: the signatures.
_PLAIN_KEEPALIVE = Keepalive()
_PLAIN_TLS = TLS()
_PLAIN = Endpoint("localhost", 1)
