"""What a piece of code leaves behind: the public helpers, under the name that the tests know."""

from __future__ import annotations

from aioconnect.testing.cancel import EAGER, cancel_everywhere
from aioconnect.testing.leaks import Descriptor, Footprint, LogWatch, open_fds, settling

__all__ = ("EAGER", "Descriptor", "Footprint", "LogWatch", "cancel_everywhere", "open_fds", "settling")
