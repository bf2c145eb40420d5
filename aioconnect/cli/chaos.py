"""``aioconnect chaos``: a proxy with faults in front of a real server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import signal
import sys
from typing import cast

from aioconnect.endpoint import Endpoint
from aioconnect.errors import ConfigError, format_address
from aioconnect.hosts import check_host, check_port, split_host_port
from aioconnect.testing.proxy import Fault, Proxy, parse_fault
from aioconnect.validation import Problems, check_integer, shown

__all__ = ("add_arguments", "run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="where clients connect; port 0: a free one"
    )
    parser.add_argument("--to", required=True, metavar="TARGET", help="the real server: host:port, or unix:///path")
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT", help="what goes wrong; repeatable")
    parser.add_argument("--seed", help="makes all chance repeatable")
    parser.add_argument("--quiet", action="store_true", help="print nothing about connections")
    parser.epilog = """\
faults:
  latency 100ms            adds that to each round trip
  latency 100ms 20ms       and up to so much more, at random
  rate 64k                 bytes in a second, in each direction
  reset | close | stall    the connection is reset, closed in order, or goes silent
  reset after 1000         the same, once so many bytes have come from the server
  down 5s every 30s        for the last 5 s of each 30 s connections are reset and new ones refused
  10% reset after 1000     for that share of the connections

example:
  aioconnect chaos --listen 127.0.0.1:6380 --to 127.0.0.1:6379 --fault "latency 50ms" --fault "5% reset after 2000"

It runs until SIGINT or SIGTERM, resets its connections and ends with status 0.
"""


def run(options: argparse.Namespace) -> int:
    """Run the proxy until a signal. Raises `ConfigError` for a bad argument, or if it cannot listen there."""
    problems = Problems()
    host, port = _listen(problems, options.listen)
    target = problems.unless_wrong(lambda: Endpoint.parse(options.to), "to.")
    faults = [problems.unless_wrong(functools.partial(parse_fault, text)) for text in options.fault]
    seed = None if options.seed is None else check_integer(problems, "seed", options.seed, 0)
    problems.raise_any()

    def report(line: str) -> None:
        if not options.quiet:
            print(line, flush=True)

    proxy = Proxy(cast(Endpoint, target), cast("list[Fault]", faults), host=host, port=port, seed=seed, report=report)
    asyncio.run(_until_signal(proxy))
    print(f"ended after {proxy.connections} connections", file=sys.stderr)
    return 0


def _listen(problems: Problems, text: str) -> tuple[str, int]:
    parts = split_host_port(text)
    if isinstance(parts, str):
        problems.add("listen", text, parts)
        return "", 0
    return check_host(problems, "listen", parts[0]), check_port(problems, "listen", parts[1], 0)


async def _until_signal(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows' loops have none; Ctrl-C ends it there too, as an interruption.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, end)
    try:
        async with proxy:
            print(f"{format_address(proxy.address)} -> {proxy.target.place}", flush=True)
            await over
    except OSError as exc:
        words = exc.strerror or str(exc)
        raise ConfigError(f"listen={shown(format_address(proxy.address))}: cannot be listened at: {words}") from exc
