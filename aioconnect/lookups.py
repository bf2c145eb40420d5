"""Lookups that block, in threads of their own, so that they cannot starve or hold up the process.

asyncio resolves in the loop's default executor: a handful of hung lookups there block every other user of it, and
``asyncio.run`` does not return before they end. uvloop's pool has four threads. Here each lookup has a thread of its
own, at most one for a name, and none that the interpreter waits for at exit. Callers that ask for the same name
share one lookup; each leaves by its own limit without ending it for the others.

Rejected: ``threading.Thread``, whose ``start`` waits until the thread runs, which blocks the loop for milliseconds
while another thread computes; a pool of workers, which is at a loss after ``fork``; ``ThreadPoolExecutor``, whose
threads are joined at exit.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from aioconnect.errors import Address, ConnectTimeout
from aioconnect.limits import Source, wait_until

__all__ = ("Lookups",)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_Found = dict[K, tuple[float, T]]
"""Until which loop time something is good, and what was found."""

_MOST = 1024
"""Answers kept: the names that SRV records speak of may be new ones every day. For one more the oldest is let go."""


def _in_thread(fly: Callable[[], None]) -> None:
    _thread.start_new_thread(fly, ())


class Lookups(Generic[K, T]):
    """The lookups under way, and their answers for as long as those are valid.

    Belongs to one event loop at a time; answers are not kept when the loop changes.
    """

    __slots__ = ("_flights", "_found", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._found: _Found[K, T] = {}
        self._flights: dict[K, _Flight[K, T]] = {}

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget everything if this is another loop than the last one: its clock is another, too."""
        if loop is not self._loop:
            self._loop, self._found, self._flights = loop, {}, {}

    def known(self, key: K, now: float) -> T | None:
        """The answer, if there is one that is still valid."""
        kept = self._found.get(key)
        return None if kept is None or now >= kept[0] else kept[1]

    def keep(self, key: K, found: T, until: float) -> None:
        """Keep what was found until that loop time."""
        _keep(self._found, key, found, until)

    def forget(self, key: K) -> None:
        """Look it up anew next time, unless the answer is valid for ever."""
        if (kept := self._found.get(key)) is not None and kept[0] < math.inf:
            del self._found[key]

    async def shared(
        self,
        key: K,
        look_up: Callable[[K], tuple[T, float]],
        limit: float,
        source: Source,
        place: Address,
        start: Callable[[Callable[[], None]], object] = _in_thread,
    ) -> T | BaseException:
        """The outcome of the one lookup under way for this key, started now if there is none.

        ``look_up`` is called in a thread and returns the answer and the seconds for which it is valid. If it raises,
        the exception is returned, since each caller needs an error of its own. ``start`` is for simulated networks,
        which need no thread. Raises `ConnectTimeout`, phase ``"resolve"`` with that place, when the limit passes.
        """
        loop = asyncio.get_running_loop()
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(loop, key, look_up, self._flights, self._found)
            try:
                start(flight.fly)
            except (RuntimeError, MemoryError) as exc:
                del self._flights[key]
                return exc
        waiter: asyncio.Future[T | BaseException] = loop.create_future()
        flight.waiters.append(waiter)
        began = loop.time()
        try:
            if not await wait_until(waiter, limit):
                words = "the name was not resolved in time"
                waited = loop.time() - began
                raise ConnectTimeout(None, words, phase="resolve", address=place, elapsed=waited, source=source)
        finally:
            flight.waiters.remove(waiter)
        return waiter.result()


class _Flight(Generic[K, T]):
    """One lookup in a thread, and who waits for it."""

    __slots__ = ("flights", "found", "key", "look_up", "loop", "waiters")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        key: K,
        look_up: Callable[[K], tuple[T, float]],
        flights: dict[K, _Flight[K, T]],
        found: _Found[K, T],
    ) -> None:
        self.loop = loop
        self.key = key
        self.look_up = look_up
        self.flights = flights
        self.found = found
        self.waiters: list[asyncio.Future[T | BaseException]] = []

    def fly(self) -> None:
        try:
            outcome: tuple[T, float] | BaseException = self.look_up(self.key)
        except Exception as exc:  # noqa: BLE001  (told to those who wait: a thread has nobody to raise to)
            outcome = exc.with_traceback(None)
        # The loop may have been closed meanwhile; nobody waits then.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.land, outcome)

    def land(self, outcome: tuple[T, float] | BaseException) -> None:
        self.flights.pop(self.key, None)
        told: T | BaseException
        if isinstance(outcome, BaseException):
            told = outcome
        else:
            told, seconds = outcome
            # Here and not where it is waited for: what comes too late for everybody is there for their next attempt,
            # and a waiter that runs after another has found the answer useless does not bring it back.
            _keep(self.found, self.key, told, self.loop.time() + seconds)
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(told)


def _keep(found: _Found[K, T], key: K, what: T, until: float) -> None:
    if len(found) == _MOST and key not in found:
        del found[next(iter(found))]
    found[key] = until, what
