"""``aioconnect probe``: what the names of an endpoint resolve to, and what each address answers.

With ``--json`` one document is printed. Its fields stay as they are; new ones may be added::

    schema        1
    target        the endpoint as a URL
    reachable     whether in every round some address was connected, TLS included
    rounds        a list, one entry for each of --count:
      reachable   whether some address was connected, TLS included
      names       one for each host: host, port, ms, addresses (how many), error; before them one for the service of
                  a srv+ URL, whose port is null and whose addresses are hosts
      addresses   one for each address:
        address   host:port, or the path of a UNIX socket
        host      the host it stands for; null for a UNIX socket
        family    "inet", "inet6" or "unix"
        ok        whether it was connected, TLS included
        ms        milliseconds until it was connected or had failed
        error     null, or an error
        tls       null where there was no handshake:
          ms, version, cipher, alpn     all but ms may be null
          verified                      whether the certificate was checked and accepted
          certificate                   null, or subject, issuer, names, not_before, not_after (ISO 8601), days_left

An error is an object: code, errno, kind, phase, text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

from aioconnect.cli.probing import Address, Certificate, Handshake, Name, Probe, Round
from aioconnect.endpoint import Endpoint
from aioconnect.errors import CertificateRejected, NetworkError
from aioconnect.explaining import certificate_problem
from aioconnect.hosts import literal_family
from aioconnect.validation import Problems, check_duration, check_integer

__all__ = ("add_arguments", "run")

_NAMES_SHOWN = 3
"""A large site's certificate has a hundred."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="host:port, or a URL: tcp://, tls://, srv+tcp://, srv+tls://, unix:// with its options",
    )
    parser.add_argument("--timeout", default="5s", help="for each name, and for each address (default: 5s)")
    parser.add_argument("--count", default="1", help="look so many times (default: 1)")
    parser.add_argument("--interval", default="1s", help="between two looks (default: 1s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.epilog = """\
exit status:
  0  in every look some address was connected, TLS included
  1  otherwise
  2  bad usage
"""


def run(options: argparse.Namespace) -> int:
    """Look and print. Raises `ConfigError` for a bad argument."""
    problems = Problems()
    endpoint = problems.unless_wrong(lambda: Endpoint.parse(options.target))
    timeout = check_duration(problems, "timeout", options.timeout)
    count = check_integer(problems, "count", options.count, 1)
    interval = check_duration(problems, "interval", options.interval)
    problems.raise_any()
    probe = Probe(cast(Endpoint, endpoint), timeout)
    if not options.json:
        print(endpoint, flush=True)
    rounds = asyncio.run(_rounds(probe, count, interval, as_text=not options.json))
    reachable = all(each.reachable for each in rounds)
    if options.json:
        document = {
            "schema": 1,
            "target": str(endpoint),
            "reachable": reachable,
            "rounds": [_round(each) for each in rounds],
        }
        print(json.dumps(document, indent=2))
    elif count > 1:
        print("\n".join(_summary(rounds)))
    return 0 if reachable else 1


async def _rounds(probe: Probe, count: int, interval: float, *, as_text: bool) -> list[Round]:
    rounds: list[Round] = []
    for number in range(count):
        if number:
            await asyncio.sleep(interval)
        rounds.append(await probe.look())
        if as_text:
            print("\n".join(_text(rounds[-1])), flush=True)
    return rounds


# As text


def _text(look: Round) -> Iterator[str]:
    for name in look.names:
        yield from _name_text(name)
    width = max((len(each.address) for each in look.addresses), default=0)
    for each in look.addresses:
        dialed = f"connected in {each.ms:.1f} ms"
        if each.error is not None and each.error.phase != "tls":
            dialed = _failed(each.error, each.ms)
        yield f"  {each.address:<{width}}  {dialed}"
        if each.tls is not None:
            yield from _tls_text(each.tls, each.error)
    yield _verdict(look)


def _name_text(name: Name) -> Iterator[str]:
    if name.error is not None:
        yield f"  {name.host}: {_failed(name.error, name.ms)}"
    elif name.port is None or literal_family(name.host) is None:
        one, many = ("host", "hosts") if name.port is None else ("address", "addresses")
        yield f"  {name.host}: {name.addresses} {one if name.addresses == 1 else many} in {name.ms:.1f} ms"


def _verdict(look: Round) -> str:
    good = sum(each.error is None for each in look.addresses)
    found = [name.error for name in look.names] + [each.error for each in look.addresses]
    bad = [error.code for error in found if error is not None]
    of = "" if len(look.addresses) == 1 else f", {good} of {len(look.addresses)} addresses"
    see = f"; see: aioconnect explain {bad[0]}" if bad else ""
    return f"reachable{of}{see}" if good else f"not reachable{see}"


def _failed(error: NetworkError, ms: float) -> str:
    return f"{error.code} after {ms:.1f} ms: {error.description}"


def _tls_text(tls: Handshake, error: NetworkError | None) -> Iterator[str]:
    spoken = ", ".join(filter(None, (tls.version, tls.cipher, tls.alpn and f"ALPN {tls.alpn}")))
    if error is None:
        yield f"    {spoken} in {tls.ms:.1f} ms"
    else:
        yield f"    {_failed(error, tls.ms)}"
        if isinstance(error, CertificateRejected) and (problem := certificate_problem(error.verify_message)):
            yield f"    that is, {problem}"
    if tls.certificate is not None:
        yield from _certificate_text(tls.certificate)


def _certificate_text(certificate: Certificate) -> Iterator[str]:
    yield f"    certificate  {certificate.subject or '(no subject)'}"
    yield f"    issued by    {certificate.issuer}"
    more = len(certificate.names) - _NAMES_SHOWN
    names = ", ".join(certificate.names[:_NAMES_SHOWN]) or "(none)"
    yield f"    names        {names}{f' and {more} more' if more > 0 else ''}"
    since, until = certificate.not_before, certificate.not_after
    yield f"    valid        {since:%Y-%m-%d} to {until:%Y-%m-%d}, {_left(certificate)}"


def _left(certificate: Certificate) -> str:
    days = certificate.days_left
    if days >= 0:
        return f"{_days(days)} left"
    return f"expired {_days(-days - 1)} ago" if days < -1 else "expired less than a day ago"


def _days(number: int) -> str:
    return "1 day" if number == 1 else f"{number} days"


def _summary(rounds: list[Round]) -> Iterator[str]:
    """For each address how often it was reached, and how long that took."""
    yield f"{len(rounds)} looks, reachable in {sum(each.reachable for each in rounds)}"
    times: dict[str, list[float]] = {}
    for each in (address for look in rounds for address in look.addresses):
        reached = times.setdefault(each.address, [])
        if each.error is None:
            reached.append(each.ms)
    width = max((len(address) for address in times), default=0)
    for address, ms in times.items():
        spread = f", {min(ms):.1f} / {sum(ms) / len(ms):.1f} / {max(ms):.1f} ms (least, mean, most)" if ms else ""
        yield f"  {address:<{width}}  reached {len(ms)} times{spread}"


# As JSON


def _round(look: Round) -> dict[str, Any]:
    return {
        "reachable": look.reachable,
        "names": [_name(each) for each in look.names],
        "addresses": [_address(each) for each in look.addresses],
    }


def _name(name: Name) -> dict[str, Any]:
    return {
        "host": name.host,
        "port": name.port,
        "ms": round(name.ms, 3),
        "addresses": name.addresses,
        "error": _error(name.error),
    }


def _address(address: Address) -> dict[str, Any]:
    return {
        "address": address.address,
        "host": address.host,
        "family": address.family,
        "ok": address.error is None,
        "ms": round(address.ms, 3),
        "error": _error(address.error),
        "tls": _handshake(address.tls),
    }


def _handshake(tls: Handshake | None) -> dict[str, Any] | None:
    if tls is None:
        return None
    found = tls.certificate
    certificate = found and {
        "subject": found.subject,
        "issuer": found.issuer,
        "names": list(found.names),
        "not_before": found.not_before.isoformat(),
        "not_after": found.not_after.isoformat(),
        "days_left": found.days_left,
    }
    return {
        "ms": round(tls.ms, 3),
        "version": tls.version,
        "cipher": tls.cipher,
        "alpn": tls.alpn,
        "verified": tls.verified,
        "certificate": certificate,
    }


def _error(error: NetworkError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "code": error.code,
        "errno": error.errno,
        "kind": error.kind,
        "phase": error.phase,
        "text": error.description,
    }
