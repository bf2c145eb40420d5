"""Who may dial now: the lines in front of an endpoint.

No task waits here on anybody's behalf. Each caller has a future and a timer for its own time limit, and each line one
timer for what comes with time: the next probe of an open circuit, the next token of a retry budget. They go to
whoever is first in line then.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import OrderedDict
from typing import Any

from aioconnect.breaker import Circuit
from aioconnect.budget import Tokens
from aioconnect.errors import ConnectError, ConnectTimeout, NetworkError
from aioconnect.limits import wait_until

__all__ = ("Gate", "Till", "Turned", "put_behind")

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

    __slots__ = ("alone_at", "lease", "served", "turn")

    def __init__(self, turn: asyncio.Future[Any], lease: float, alone_at: float) -> None:
        self.turn = turn
        self.lease = lease
        self.alone_at = alone_at
        self.served = False


class _Line:
    """Callers who wait for their turn. Those who leave early do so at once, wherever they stand.

    A coroutine that a closed loop has left unfinished changes nothing any more when it is collected.
    """

    __slots__ = ("_due", "_line", "_loop", "_timer")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()

    def _begin(self) -> None:
        # Not a dict, which looks at each entry that was taken from its front to find the first one.
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
        loop = self._loop = asyncio.get_running_loop()
        place = _Place(loop.create_future(), lease, alone_at)
        self._line[place] = None
        self.serve(loop.time())
        try:
            in_time = await wait_until(place.turn, deadline)
        except BaseException:
            # Not a cancellation alone: a coroutine can be closed, too.
            if place.served and not loop.is_closed():
                self._hand_back(place.turn.result())
            raise
        finally:
            if self._line.pop(place, place) is None and not loop.is_closed():
                self.serve(loop.time())
        return place.turn.result() if in_time else None

    def _now(self) -> float | None:
        """The loop time; ``None`` if nobody ever waited, or the loop in which they did is closed."""
        return None if self._loop is None or self._loop.is_closed() else self._loop.time()

    def _first(self) -> _Place | None:
        """Who is first and still waits.

        Those who were cancelled, or whose time is up, in this turn of the loop do not; they are taken out for good,
        for there may be thousands.
        """
        while self._line:
            place = next(iter(self._line))
            if not place.turn.done():
                return place
            del self._line[place]
        return None

    def _give(self, place: _Place, turn: Any) -> None:
        del self._line[place]
        place.served = True
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
        self._due = math.inf
        self._timer = None
        now = self._now()
        if now is not None:
            # The timers of uvloop may fire a millisecond early.
            self.serve(max(due, now))


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
        handling = sys.exception() is not None
        try:
            turn = await self._turn(deadline, lease, alone_at)
        except asyncio.CancelledError as cancelled:
            # What everybody in line waits for to be over.
            put_behind(cancelled, self.circuit.last_error, handling=handling)
            raise
        if turn is None:
            raise Turned(self._late(), shared=False)
        if isinstance(turn, NetworkError):
            raise Turned(_copy(turn), shared=True)
        return None if turn is _GO else turn

    def leave(self, lease: object | None = None) -> None:
        """A dial is over; a lease by which nothing was learnt goes back."""
        self.inside -= 1
        if lease is None and not self._line:
            return
        now = self._now()
        if now is not None:
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
        if not self._line and self._timer is None:
            return
        due = math.inf
        while self.inside < self.most and (place := self._first()) is not None:
            turn: object = _GO
            if circuit.since is not None:
                due = self._probe_due(place)
                if now < due:
                    break
                turn, due = circuit.lease(now, place.lease), math.inf
            elif self.inside >= self.size:
                break
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
        now = self._now()
        if self.circuit.since is not None and now is not None:
            return self.circuit.refusal(now)
        full = self.inside >= self.most
        words = "too many connects under way" if full else "others were still finding out whether it answers"
        error = ConnectTimeout(None, words, phase="wait", source="call")
        error.__cause__ = self.circuit.last_error
        return error


def put_behind(cancelled: asyncio.CancelledError, error: NetworkError | None, *, handling: bool) -> None:
    """Put an error behind a cancellation, where `classify` finds it. ``handling``: whether the caller handles another.

    Then CPython sets the context again, to that one, in each coroutine on the way out; so it has to be the cause.
    """
    if cancelled.__context__ is None:
        cancelled.__context__ = error
    if handling and cancelled.__cause__ is None:
        cancelled.__cause__ = error


def _copy(error: NetworkError) -> NetworkError:
    """For each who is told of a probe its own: what is raised twice collects the frames of both."""
    copy = _impersonal(error)
    if copy.errors:
        copy.errors = tuple(map(_impersonal, copy.errors))
    copy.__cause__ = error.__cause__
    return copy


def _impersonal(error: NetworkError) -> NetworkError:
    """To the others, the time limit of the call that dialed is no more than that of an attempt."""
    if isinstance(error, ConnectTimeout) and error.source == "call":
        return error.replace(source="attempt")
    return error.replace()


class Till(_Line):
    """Where retries are paid for, and callers wait for a token when there is none."""

    __slots__ = ("tokens",)

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.tokens = tokens

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop from now on, and begin anew. Raises `RuntimeError` while another one is open."""
        if loop is self._loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError("the retry budget belongs to another event loop; share it within one loop only")
            self._begin()
            self.tokens = Tokens(self.tokens.budget)
        self._loop = loop

    def paid(self, now: float) -> bool:
        """Pay for a retry at once, if there is a token and nobody waits for it."""
        return not self._line and self.tokens.take(now)

    async def charged(self, deadline: float) -> bool:
        """Wait for a token until a loop time, and pay: whether there was one."""
        return await self._turn(deadline) is not None

    def deposit(self) -> None:
        """A first try pays in."""
        self.tokens.deposit()
        if self._line:
            self._serve_now()

    def give_back(self) -> None:
        """A retry that was paid for has succeeded, or was never made."""
        self.tokens.give_back()
        if self._line:
            self._serve_now()

    def serve(self, now: float) -> None:
        """Let pay whom there are tokens for."""
        while (place := self._first()) is not None and self.tokens.take(now):
            self._give(place, _GO)
        self._wind(self.tokens.due(now))

    def _serve_now(self) -> None:
        now = self._now()
        if now is not None:
            self.serve(now)

    def _hand_back(self, turn: object) -> None:  # noqa: ARG002  (all tokens are alike)
        self.give_back()
