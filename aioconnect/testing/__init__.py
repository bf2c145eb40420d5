"""Test what your service does when the network misbehaves: virtual time, a simulated network, real fault servers.

    from aioconnect.testing import Network, virtual

    @virtual
    async def test_rides_out_a_restart():
        ...

`Network` says what there is to simulate, `faults` has servers that misbehave on real sockets, `Recorder` tells what
happened, `cancel_everywhere` cancels at every step. Nothing is patched, nothing is global, and none of it is loaded
by ``import aioconnect``. The pytest plugin has fixtures of the same names.
"""

from aioconnect.testing import faults
from aioconnect.testing.cancel import EAGER, cancel_everywhere
from aioconnect.testing.clock import Stuck, VirtualLoop
from aioconnect.testing.leaks import Footprint, LogWatch
from aioconnect.testing.loop import SimulatedLoop
from aioconnect.testing.network import Host, Network
from aioconnect.testing.proxy import Proxy
from aioconnect.testing.recorder import Recorder
from aioconnect.testing.running import fast_retries, loop_factories, run, virtual
from aioconnect.testing.serving import Echo, HangUp, Hold, Server

__all__ = (
    # Time
    "run",
    "virtual",
    "VirtualLoop",
    "SimulatedLoop",
    "Stuck",
    # The simulated network
    "Network",
    "Host",
    "Server",
    "Echo",
    "HangUp",
    "Hold",
    # Faults on real sockets
    "faults",
    "Proxy",
    # What happened, without the waits, on which loops
    "Recorder",
    "fast_retries",
    "loop_factories",
    # Cancelling, and what is left behind
    "cancel_everywhere",
    "EAGER",
    "Footprint",
    "LogWatch",
)
