"""Who may dial now: the lines in front of an endpoint.

No task waits here on anybody's behalf. Each caller has a future and a timer for its own time limit, and each line one
timer for what comes with time: the next probe of an open circuit, the next token of a retry budget. They go to
whoever is first in line then.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from typing import Any

from aioconnect.breaker import Circuit
from aioconnect.budget import Tokens
from aioconnect.errors import ConnectError, ConnectTimeout, NetworkError
from aioconnect.limits import wait_until

__all__ = ("Gate", "Till", "Turned")

_GO = object()


class Turned(Exception):
    """A wait has ended without a dial.

    ``shared``: the error is what somebody else's probe met, and counts as an attempt of this call; else the time
    limit has passed, or the call was not to wait.
    """

    def __init__(self, error: NetworkError, *, shared: bool) -> None:
        super().__init__(error)
        self.error = error
        self.shared = shared


class _Place:
    """One caller in line. ``lease`` and ``alone_at`` are for a probe, as `Gate.admitted` has them."""

    __slots__ = ("alone_at", "lease", "turn")

    def __init__(self, turn: asyncio.Future[Any], lease: float, alone_at: float) -> None:
        self.turn = turn
        self.lease = lease
        self.alone_at = alone_at


class _Line:
    """Callers who wait for their turn. Those who leave early do so at once, wherever they stand."""

    __slots__ = ("_due", "_line", "_timer")

    def __init__(self) -> None:
        self._line: OrderedDict[_Place, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    def serve(self, now: float) -> None:
        """Give their turns to the first in line, as many as there are now."""
        raise NotImplementedError

    def _hand_back(self, turn: Any) -> None:
        """The caller to whom this was on its way has gone."""
        raise NotImplementedError

    async def _turn(self, deadline: float, lease: float = 0.0, alone_at: float = math.inf) -> Any:
        """What the first who serves this caller gives it; ``None`` if the loop time ``deadline`` passes before."""
        loop = asyncio.get_running_loop()
        place = _Place(loop.create_future(), lease, alone_at)
        self._line[place] = None
        self.serve(loop.time())
        try:
            in_time = await wait_until(place.turn, deadline)
        except asyncio.CancelledError:
            if place not in self._line and not place.turn.cancelled():
                self._hand_back(place.turn.result())
            raise
        finally:
            if place in self._line:
                del self._line[place]
                self.serve(loop.time())
        return place.turn.result() if in_time else None

    def _first(self) -> _Place | None:
        """Who is first and still waits; one whose time limit passed in this turn of the loop does not."""
        return next((place for place in self._line if not place.turn.done()), None)

    def _give(self, place: _Place, turn: Any) -> None:
        del self._line[place]
        place.turn.set_result(turn)

    def _wind(self, due: float) -> None:
        """Serve again at that loop time, and at no other."""
        place = self._first()
        if place is None:
            due = math.inf
        if due == self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if place is not None and due < math.inf:
            self._timer = place.turn.get_loop().call_at(due, self._ring, due)

    def _ring(self, due: float) -> None:
        # The timers of uvloop may fire a millisecond early, so it goes by the time that was set.
        self._due = math.inf
        self._timer = None
        self.serve(due)


class Gate(_Line):
    """Lets in at most ``most`` dials, and no more than the circuit's window; others wait in line.

    A slot goes straight to the first in line, so nobody who comes later can take it.
    """

    __slots__ = ("circuit", "inside", "most", "size")

    def __init__(self, most: float, circuit: Circuit) -> None:
        super().__init__()
        self.most = most
        self.circuit = circuit
        self.size = min(most, circuit.window)
        """How many may be inside; kept, because every dial asks."""
        self.inside = 0

    def enter(self) -> bool:
        """Go in if there is room and nobody is waiting."""
        if self.inside >= self.size or self._line:
            return False
        self.inside += 1
        return True

    async def admitted(self, deadline: float, lease: float, alone_at: float = math.inf) -> object | None:
        """Wait in line until a loop time; go in with the lease of a probe, or with ``None`` if it is no probe.

        ``lease``: seconds for which a probe would be this call's. ``alone_at``: when to go although none is due, as
        long as nobody else waits. Raises `Turned`.
        """
        try:
            turn = await self._turn(deadline, lease, alone_at)
        except asyncio.CancelledError as cancelled:
            if cancelled.__context__ is None:
                # For `classify`: what everybody in line waits for to be over.
                cancelled.__context__ = self.circuit.last_error
            raise
        if turn is None:
            raise Turned(self._late(), shared=False)
        if isinstance(turn, NetworkError):
            # Each its own copy: what is raised twice collects the frames of both.
            error = turn.replace()
            error.__cause__ = turn.__cause__
            raise Turned(error, shared=True)
        return None if turn is _GO else turn

    def leave(self, lease: object | None = None) -> None:
        """A dial is over; a lease by which nothing was learnt goes back."""
        self.inside -= 1
        if lease is not None or self._line:
            now = asyncio.get_running_loop().time()
            self.circuit.give_back(lease, now)
            self.serve(now)

    def share(self, error: NetworkError) -> None:
        """Tell everybody in line what the probe has met."""
        while (place := self._first()) is not None:
            self._give(place, error)

    def serve(self, now: float) -> None:
        """Let in whom there is room for. To be called whenever the circuit has changed."""
        circuit = self.circuit
        self.size = min(self.most, circuit.window)
        due = math.inf
        while self.inside < self.most and (place := self._first()) is not None:
            if circuit.since is None:
                if self.inside >= self.size:
                    break
                turn: object = _GO
            elif now < (due := self._probe_due(place)):
                break
            else:
                turn = circuit.lease(now, place.lease)
            self.inside += 1
            self._give(place, turn)
        self._wind(due)

    def _probe_due(self, first: _Place) -> float:
        due = self.circuit.probe_due
        return min(due, first.alone_at) if len(self._line) == 1 and self.circuit.state == "open" else due

    def _hand_back(self, turn: object) -> None:
        if not isinstance(turn, NetworkError):
            self.leave(None if turn is _GO else turn)

    def _late(self) -> ConnectError:
        if self.circuit.since is not None:
            return self.circuit.refusal(asyncio.get_running_loop().time())
        return ConnectTimeout(None, "too many connects under way", phase="wait", source="call")


class Till(_Line):
    """Where retries are paid for, and callers wait for a token when there is none."""

    __slots__ = ("tokens",)

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.tokens = tokens

    def paid(self, now: float) -> bool:
        """Pay for a retry at once, if there is a token and nobody waits for it."""
        return not self._line and self.tokens.take(now)

    async def charged(self, deadline: float) -> bool:
        """Wait for a token until a loop time, and pay: whether there was one."""
        return await self._turn(deadline) is not None

    def give_back(self, now: float) -> None:
        """A retry that was paid for has succeeded, or was never made."""
        self.tokens.give_back()
        if self._line:
            self.serve(now)

    def serve(self, now: float) -> None:
        """Let pay whom there are tokens for."""
        while (place := self._first()) is not None and self.tokens.take(now):
            self._give(place, _GO)
        self._wind(self.tokens.due(now))

    def _hand_back(self, turn: object) -> None:  # noqa: ARG002  (all tokens are alike)
        self.give_back(asyncio.get_running_loop().time())
