"""What is learnt about an endpoint; most of it is tested through a `Connector`, in test_connector and test_circuit."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioconnect import errors
from aioconnect.connector import Connector
from aioconnect.policy import Policy
from tests.support.clock import virtual
from tests.support.network import SILENT, Network


@virtual
@pytest.mark.parametrize(("patience", "counted"), [(0.5, 0), (1.5, 5)])
async def test_a_caller_in_a_hurry_casts_doubt_only(patience: float, counted: int) -> None:
    """Its limit says nothing of the peer, unless a SYN had the time to be sent again."""
    Network.of_loop({"10.0.0.1": SILENT})
    connector = Connector("tcp://10.0.0.1:80", Policy(timeout=patience))
    for _ in range(5):
        with contextlib.suppress(errors.ConnectTimeout):
            await connector.dial()
    assert connector.circuit.failures == counted
    assert connector.circuit.state == ("open" if counted else "closed")
    assert connector.circuit.window < 6
    assert asyncio.get_running_loop().time() == pytest.approx(5 * patience)
