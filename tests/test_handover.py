"""From a socket to a transport: whoever is cancelled or fails leaves no descriptor to be shared."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import pytest

import aioconnect
from aioconnect import Endpoint, Policy
from aioconnect.errors import ConfigError
from tests.support import peers
from tests.support.listeners import listening
from tests.support.peers import Authority, serve

ONCE = Policy(max_attempts=1, timeout=5)


def stale_descriptors() -> list[int]:
    """Numbers the selector still watches though their descriptors are closed: the next socket would share one."""
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    stale = []
    for descriptor in [] if selector is None else list(selector.get_map()):
        try:
            os.fstat(descriptor)
        except OSError:
            stale.append(descriptor)
    return stale


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def test_a_cancel_that_meets_the_end_of_the_handshake(authority: Authority) -> None:
    """asyncio then has a transport that only begins to close, and must be left its descriptor."""
    context = authority.server_context()
    context.num_tickets = 0
    cancelled = 0
    async with serve(peers.tls_echo(context)) as peer:
        endpoint = Endpoint(*peer.address, tls=aioconnect.TLS(ca_file=authority.ca_file))
        connector = aioconnect.Connector(endpoint, ONCE)
        (await connector.connect()).abort()
        for attempt in range(120):
            task = asyncio.create_task(connector.connect())
            until = time.perf_counter() + attempt * 25e-6
            while time.perf_counter() < until and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            try:
                (await task).abort()
            except asyncio.CancelledError:
                cancelled += 1
            assert stale_descriptors() == []
        await asyncio.sleep(0.05)
    assert cancelled


async def test_a_factory_that_makes_no_protocol() -> None:
    with listening() as server:
        host, port = server.getsockname()
        wrong: Any = dict.fromkeys([""]).popitem
        with pytest.raises(ConfigError, match="protocol_factory=<tuple>: must make an asyncio protocol"):
            await aioconnect.create_connection(wrong, host, port, policy=ONCE)
        _, writer = await aioconnect.open_connection(host, port, policy=ONCE)
        writer.close()
        await writer.wait_closed()


async def test_a_factory_that_raises() -> None:
    def broken() -> asyncio.Protocol:
        raise LookupError("no protocol today")

    with listening() as server, pytest.raises(LookupError):
        await aioconnect.create_connection(broken, *server.getsockname(), policy=ONCE)


async def test_nodelay_is_the_endpoints() -> None:
    with listening() as server:
        for nodelay in (True, False):
            conn = await aioconnect.connect(Endpoint(*server.getsockname(), nodelay=nodelay), policy=ONCE)
            sock = conn.get_extra_info("socket")
            assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
            await conn.aclose()
