"""Looking at an endpoint without connecting to it for good: every name, every address, every certificate.

Nothing is retried, and nothing is sent but a TLS handshake. Times are those of ``time.perf_counter``, in
milliseconds: a loop's clock may tick in whole ones.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import time
from typing import Any, NamedTuple, cast

from aioconnect import errors
from aioconnect.codes import family_of
from aioconnect.dialer import dial_addresses, dial_options
from aioconnect.endpoint import TLS, Endpoint, Target
from aioconnect.errors import CertificateRejected, NetworkError, format_address
from aioconnect.hosts import ascii_host
from aioconnect.resolver import AddressInfo, Query, Resolver
from aioconnect.srv import Service, ServiceResolver
from aioconnect.tls import build_context

__all__ = ("Address", "Certificate", "Handshake", "Name", "Probe", "Round")


class Certificate(NamedTuple):
    """A peer's certificate, as far as people look at it."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime

    @property
    def days_left(self) -> int:
        """Whole days until it expires; -1 on the first day after that, and so on."""
        return (self.not_after - dt.datetime.now(dt.UTC)).days


class Handshake(NamedTuple):
    """What a TLS handshake came to; ``ms`` until it was done or had failed."""

    ms: float
    version: str | None = None
    cipher: str | None = None
    alpn: str | None = None
    verified: bool = False
    certificate: Certificate | None = None


class Name(NamedTuple):
    """A host, how many addresses it has, and how long that took to find out; for a service, how many hosts."""

    host: str
    port: int | None
    ms: float
    addresses: int
    error: NetworkError | None = None


class Address(NamedTuple):
    """An address and what it answered; ``ms`` until it was connected or had failed."""

    address: str
    host: str | None
    family: str
    ms: float
    error: NetworkError | None = None
    tls: Handshake | None = None


class Round(NamedTuple):
    """One look at everything."""

    names: tuple[Name, ...]
    addresses: tuple[Address, ...]

    @property
    def reachable(self) -> bool:
        """Whether some address was connected, TLS included."""
        return any(each.error is None for each in self.addresses)


class Probe:
    """Looks at one endpoint, as often as it is asked to.

    ``timeout``: seconds for each name, and for each address. Raises `ConfigError` for TLS files that cannot be loaded.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._options = dial_options(endpoint)
        self._context = None if endpoint.tls is None else build_context(endpoint.tls)

    async def look(self) -> Round:
        """Resolve every name at once, then dial every address at once."""
        if self.endpoint.path is not None:
            info = AddressInfo(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.endpoint.path)
            return Round((), (await self._dialed(info, None),))
        names: list[Name] = []
        targets = list(self.endpoint.targets)
        if self.endpoint.srv is not None:
            service, targets = await self._hosts_of(self.endpoint.srv)
            names.append(service)
        found = await asyncio.gather(*map(self._resolved, targets))
        names += [name for name, _ in found]
        pairs = [(info, target) for target, (_, infos) in zip(targets, found, strict=True) for info in infos]
        dialed = await asyncio.gather(*(self._dialed(info, target) for info, target in pairs))
        return Round(tuple(names), tuple(dialed))

    async def _hosts_of(self, service: str) -> tuple[Name, list[Target]]:
        """What the SRV records of a service say, by priority. Raises `ConfigError` without the extra ``dns``."""
        began = time.perf_counter()
        error: NetworkError | None = None
        found: list[Service] = []
        try:
            found = sorted(await ServiceResolver(self.timeout).resolve(service), key=lambda each: each.priority)
        except NetworkError as exc:
            error = exc
        targets = [Target(each.host, each.port) for each in found]
        return Name(service, None, _since(began), len(targets), error), targets

    async def _resolved(self, target: Target) -> tuple[Name, list[AddressInfo]]:
        endpoint = self.endpoint
        query = Query(ascii_host(target.host), target.port, endpoint.address_family, endpoint.proto, endpoint.flags)
        began = time.perf_counter()
        error: NetworkError | None = None
        infos: list[AddressInfo] = []
        try:
            infos = await Resolver(timeout=self.timeout, ttl=0).resolve(query)
            if not infos:
                error = errors.typed("EAI_NODATA", "resolve", tuple(target))
        except NetworkError as exc:
            error = exc
        return Name(target.host, target.port, _since(began), len(infos), error), infos

    async def _dialed(self, info: AddressInfo, target: Target | None) -> Address:
        limit = asyncio.get_running_loop().time() + self.timeout
        host = None if target is None else target.host
        address, family = format_address(info.sockaddr), family_of(info.sockaddr)
        began = time.perf_counter()
        try:
            sock, _ = await dial_addresses([info], self._options, limit, "attempt")
        except NetworkError as exc:
            return Address(address, host, family, _since(began), exc)
        connected = Address(address, host, family, _since(began))
        if self._context is None:
            sock.close()
            return connected
        handshake, error = await self._shaken(sock, info, self._context, limit, target)
        if isinstance(error, CertificateRejected):
            handshake = await self._unverified(info, limit, target, handshake)
        return connected._replace(error=error, tls=handshake)

    async def _shaken(
        self, sock: socket.socket, info: AddressInfo, context: ssl.SSLContext, limit: float, target: Target | None
    ) -> tuple[Handshake, NetworkError | None]:
        """A TLS handshake over a connected socket, which is closed in the end."""
        loop = asyncio.get_running_loop()
        create: Any = loop.create_connection if target is not None else loop.create_unix_connection
        began = time.perf_counter()
        try:
            transport, _ = await create(
                asyncio.Protocol,
                sock=sock,
                ssl=context,
                server_hostname=self.endpoint.server_hostname(target),
                ssl_handshake_timeout=max(limit - loop.time(), 0.001),
            )
        except OSError as exc:
            sock.close()
            return Handshake(_since(began)), errors.translate(exc, "tls", info.sockaddr)
        except BaseException:
            sock.close()
            raise
        took = _since(began)
        secured = cast(ssl.SSLObject, transport.get_extra_info("ssl_object"))
        cipher = secured.cipher()
        try:
            return Handshake(
                took,
                secured.version(),
                None if cipher is None else cipher[0],
                secured.selected_alpn_protocol(),
                context.verify_mode is ssl.CERT_REQUIRED,
                _certificate(secured),
            ), None
        finally:
            transport.abort()

    async def _unverified(
        self, info: AddressInfo, limit: float, target: Target | None, refused: Handshake
    ) -> Handshake:
        """The handshake once more, only to look at the certificate that was refused; nothing is sent over it."""
        context = build_context(cast(TLS, self.endpoint.tls))
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            sock, _ = await dial_addresses([info], self._options, limit, "attempt")
        except NetworkError:
            return refused
        handshake, error = await self._shaken(sock, info, context, limit, target)
        return refused if error is not None else handshake._replace(ms=refused.ms)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _certificate(secured: ssl.SSLObject) -> Certificate | None:
    told = _told(secured)
    if not told:
        return None
    names: tuple[tuple[str, str], ...] = told.get("subjectAltName", ())
    return Certificate(
        _distinguished(told.get("subject", ())),
        _distinguished(told.get("issuer", ())),
        tuple(name for kind, name in names if kind in ("DNS", "IP Address")),
        _date(told["notBefore"]),
        _date(told["notAfter"]),
    )


def _told(secured: ssl.SSLObject) -> dict[str, Any]:
    """What is in the peer's certificate, in the form of ``getpeercert``."""
    if verified := secured.getpeercert():
        return cast(dict[str, Any], verified)
    # Without verification only its bytes are public; the object behind can tell what is in them, since Python 3.10.
    inner: Any = getattr(secured, "_sslobj", None)
    chain: Any = inner.get_unverified_chain() if hasattr(inner, "get_unverified_chain") else ()
    return cast(dict[str, Any], chain[0].get_info()) if chain else {}


_SHORT = (("commonName", "CN"), ("organizationName", "O"), ("organizationalUnitName", "OU"), ("countryName", "C"))


def _distinguished(parts: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """A distinguished name in short, the common name first (RFC 4514 writes the last part first, too)."""
    short = dict(_SHORT)
    return ", ".join(f"{short.get(kind, kind)}={value}" for part in reversed(parts) for kind, value in part)


def _date(text: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), dt.UTC)
