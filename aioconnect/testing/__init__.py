"""Test what your service does when the network misbehaves: virtual time, a simulated network, real fault servers."""

from aioconnect.testing.cancel import EAGER, cancel_everywhere
from aioconnect.testing.clock import Stuck, VirtualLoop
from aioconnect.testing.leaks import Footprint, LogWatch

__all__ = ("EAGER", "Footprint", "LogWatch", "Stuck", "VirtualLoop", "cancel_everywhere")
