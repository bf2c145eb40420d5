"""Planted faults: pieces of the package's text replaced, and how many worlds it takes to notice.

The changed text is compiled, and the code of the functions that differ put in the place of theirs, so that whoever has
imported them runs the fault, too.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import time
import types
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.dst.world import Outcome, run

__all__ = ("MUTATIONS", "PATIENCE", "QUICK", "Mutation", "hunt", "planted", "table")

PATIENCE = 20
"""Worlds in which a fault of the short form has to be found."""


class Mutation(NamedTuple):
    """``module``: without the package's name."""

    module: str
    pairs: tuple[tuple[str, str], ...]


def _in(module: str, *pairs: tuple[str, str]) -> Mutation:
    return Mutation(module, pairs)


MUTATIONS: dict[str, Mutation] = {
    # Pool: lending, books, line
    "pool: what was on its way to a cancelled caller is lost": _in(
        "pool_lending",
        ("            self.give_back(entry)\n\n    async def _idle", "            pass\n\n    async def _idle"),
    ),
    "pool: a connection left in the middle of a message is lent again": _in(
        "pool_lending",
        ("elif failed and not entry.connection.is_clean:", "elif failed and entry.connection.is_closing:"),
    ),
    "pool: a mark of the last user stays": _in(
        "pool_lending",
        ("entry.unused = entry.connection.is_clean = False", "entry.unused = False"),
        ("entry.unused = connection.is_clean = False", "entry.unused = False"),
    ),
    "pool: the line is served from its end": _in(
        "pool_lending", ("place, borrower = places.popleft()", "place, borrower = places.pop()")
    ),
    "pool: who has gone is served": _in(
        "pool_lending", ("            if not place.done():\n", "            if True:\n")
    ),
    "pool: one connection too many": _in("pool_books", ("limits.max_size - there)", "limits.max_size + 1 - there)")),
    "pool: a dial that has ended counts on": _in(
        "pool_books", ("        self.connecting -= 1\n", "        self.connecting -= self.connecting > 1\n")
    ),
    "pool: too many dials at once": _in(
        "pool_books", ("1 if failing else limits.max_connecting", "2 if failing else limits.max_connecting + 1")
    ),
    "pool: a loss says nothing about the others": _in(
        "pool_lending", ('        self.books.condemn("suspect")\n        self._end_idle("suspect")\n', "")
    ),
    "pool: a loss condemns only those that are idle": _in(
        "pool_lending", ('        self.books.condemn("suspect")\n', "")
    ),
    "pool: an idle connection that is lost stays": _in(
        "pool_lending",
        ('            self.books.idle.remove(entry)\n            self._end(entry, "lost")\n', "            pass\n"),
    ),
    "pool: what is idle is not looked at before it is lent": _in(
        "pool_lending",
        ("                and connection.is_sound()\n", "                and not connection.writer.is_closing()\n"),
        ("elif not entry.connection.is_usable():", "elif entry.connection.writer.is_closing():"),
    ),
    "pool: what comes back is not looked at": _in(
        "pool_lending",
        ("if entry.doom is not None or not entry.connection.is_sound():", "if entry.doom is not None:"),
    ),
    "pool: a lifetime ends only while it is idle": _in(
        "pool_lending",
        (
            "        if now >= entry.expires:\n            return self._end(entry, entry.doom",
            "        if entry.doom:\n            return self._end(entry, entry.doom",
        ),
        ("                and now < entry.expires\n", ""),
        ("            if entry.expires <= now:\n", "            if entry.doom:\n"),
    ),
    "pool: nobody looks after what is idle": _in(
        "pool_lending", ("        self._tidy()\n        self._sweep_at", "        self._sweep_at")
    ),
    "pool: a connection that ends is not replaced": _in(
        "pool_lending",
        ("        self.dials.fill()\n        self._depart()\n", "        self._depart()\n"),
    ),
    "pool: a permanent error reaches only the first": _in(
        "pool_line",
        ("        while self.places:\n            place, _", "        if self.places:\n            place, _"),
    ),
    "pool: dials are never given up": _in("pool_dialing", ("+ self._given_up < 0", "< -99")),
    "pool: who left the line is dialed for": _in(
        "pool_dialing",
        ("return self._line.waiting_of(self._books.limits.max_size)", "return len(self._line.places)"),
        ("unwanted = self._books.dials_due(self._in_line,", "unwanted = self._books.dials_due(self._line.waiting,"),
    ),
    "pool: time limits are forgotten once one has passed": _in(
        "pool_line",
        ("        if deadline < math.inf:\n            self.ring_at(deadline, loop)", "        del deadline"),
    ),
    "pool: a dial that ends after the end is kept": _in(
        "pool_dialing", ("            task.result().abort()\n", "            pass\n")
    ),
    "pool: closing leaves dials under way": _in(
        "pool_dialing",
        ("            if closing or then is not None:\n                task.cancel()\n", "            pass\n"),
    ),
    "pool: a failed reset is no reason to close": _in(
        "pool_lending", ("not task.cancelled() and task.result():", "not task.cancelled():")
    ),
    # The lines, and the circuit
    "gate: a slot is lost with a cancelled caller": _in(
        "gate", ("                self._hand_back(place.turn.result())", "                pass")
    ),
    "gate: a dial that is over keeps its slot if it was a probe": _in(
        "gate", ("        self.inside -= 1\n        if lease", "        self.inside -= lease is None\n        if lease")
    ),
    "gate: a lease that taught nothing is not given back": _in(
        "gate", ("            self.circuit.give_back(lease, now)\n", "")
    ),
    "gate: nobody is let in when somebody leaves": _in(
        "gate",
        (
            "            self.circuit.give_back(lease, now)\n            self.serve(now)\n",
            "            self.circuit.give_back(lease, now)\n",
        ),
    ),
    "gate: two probes at once": _in(
        "gate",
        (
            "                turn, due = circuit.lease(now, place.lease), math.inf\n",
            "                turn, due = circuit.lease(now, 0.0), math.inf\n",
        ),
    ),
    "gate: probes before they are due": _in("gate", ("                if now < due:\n                    break\n", "")),
    "gate: no timer for the next probe": _in(
        "gate", ("        self._wind(due)\n\n    def _probe_due", "        self._wind(math.inf)\n\n    def _probe_due")
    ),
    "gate: what a probe has met is not shared": _in(
        "gate",
        ("        while (place := self._first()) is not None:\n            self._give(place, error)", "        pass"),
    ),
    "gate: the window is not asked": _in(
        "gate",
        ("            elif self.inside >= self.size:\n                break\n", ""),
        ("if self.inside >= self.size or self._line:", "if self.inside >= self.most or self._line:"),
    ),
    "breaker: it opens one failure late": _in(
        "breaker", ("if self.failures < self.limit:", "if self.failures <= self.limit:")
    ),
    "breaker: a success does not start the count anew": _in(
        "breaker", ("= self.failures, now, 0\n", "= self.failures, now, self.failures\n")
    ),
    "breaker: the pause does not grow": _in(
        "breaker", ("return pause(self.failures, self._pause)", "return pause(1, self._pause)")
    ),
    "breaker: failures beside the probe count": _in(
        "breaker",
        (
            "if self.since is not None and (lease is None or lease is not self._lease):",
            "if self.since is not None and self._lease is None:",
        ),
    ),
    "breaker: all are let in at the first success": _in(
        "breaker", ("            self.window = 1\n", "            self.window = math.inf\n")
    ),
    "breaker: a loss casts no doubt": _in(
        "breaker",
        (
            "            self.window = min(self.window, self.limit)\n            self.healthy &=",
            "            self.healthy &=",
        ),
    ),
    "breaker: retry_now() does nothing": _in(
        "breaker", ("            self.retry_at = now\n\n    def refusal", "            pass\n\n    def refusal")
    ),
    "record: a loss is not counted": _in("record", ("            self.losses += 1\n", "")),
    "record: local shortages count": _in(
        "record", ('        if error.kind == "local":\n            return False\n', "")
    ),
    "record: retry_now() leaves sleepers asleep": _in(
        "record",
        ("                waiter.set_result(None)\n\n    def charge", "                pass\n\n    def charge"),
    ),
    "record: a name is not asked for again after a failure": _in(
        "record", ("            self.book.forget()\n", "            pass\n")
    ),
    "connector: the probe's lease is forgotten": _in(
        "connector", ("            gate.leave(lease)\n", "            gate.leave()\n")
    ),
    "connector: a cancelled attempt keeps its slot": _in(
        "connector",
        (
            "            error = None  # its traceback holds this frame\n            gate.leave(lease)\n",
            "            if error is not None or result is not None:\n                gate.leave(lease)\n",
        ),
    ),
    "connector: a budget that fails others ends a pool's dials": _in(
        "record", ("return self._record.charge(now) or None", "return self._record.charge(now)")
    ),
    # The engine
    "engine: permanent errors are retried": _in(
        "retrying", ("        if not rules.retryable(error):\n", "        if False:\n")
    ),
    "engine: one attempt too many": _in(
        "retrying", ("self.count >= rules.max_attempts", "self.count > rules.max_attempts")
    ),
    "engine: no pause": _in("retrying", ("self.common.rest(pause))", "self.common.rest(0))")),
    "engine: the pauses are those of the first": _in(
        "retrying", ("backoff.delay(self.count, self.upcoming)", "backoff.delay(1, self.upcoming)")
    ),
    "engine: a pause may outlast the time limit": _in(
        "retrying", ("self.final = pause >= left and", "self.final = pause >= left + 3 and")
    ),
    "engine: retries cost nothing": _in("budget", ("        self._left -= 1\n", "")),
    "limits: an attempt is not cut": _in(
        "retrying",
        (
            "    if each is not None and began + each < deadline:\n        return began + each,",
            "    if each is not None and began + each < deadline:\n        return began + 2 * each,",
        ),
    ),
    "limits: the call's limit does not bind the dial": _in(
        "dialer", ("await wait_until(self.over, limit):", "await wait_until(self.over, limit + 0.5):")
    ),
    # Dialer, race, resolver
    "dialer: losers stay open": _in(
        "dialer",
        ("        for sock in self.flying:\n            self.loop.remove_writer(sock)\n            sock.close()\n", ""),
    ),
    "dialer: a winner that nobody takes stays open": _in(
        "dialer", ("            self.winner[0].close()\n", "            pass\n")
    ),
    "dialer: its timer outlives it": _in(
        "dialer",
        (
            "    def _close(self) -> None:\n        if self.timer is not None:\n            self.timer.cancel()\n",
            "    def _close(self) -> None:\n",
        ),
    ),
    "dialer: a socket that fails stays open": _in(
        "dialer", ("        else:\n            sock.close()\n        self._account", "        self._account")
    ),
    "race: the next address waits for the end of the first": _in(
        "race", ("        self.due = now + self.delay\n", "        self.due = math.inf\n")
    ),
    "resolver: answers are kept for ever": _in(
        "lookups", ("None if kept is None or now >= kept[0] else", "None if kept is None else")
    ),
    # Connection
    "connection: abort() leaves it open": _in(
        "connection",
        ("            self._transport.close()\n        self._transport.abort()\n", "            pass\n"),
    ),
    "connection: nobody is told of a loss": _in(
        "connection", ("            watcher(self.lost)\n", "            pass\n")
    ),
    "connection: the end of the stream is no reason not to use it": _in(
        "connection",
        ("        self.stalled = True\n        self._tell_keeper(None)", "        self._tell_keeper(None)"),
    ),
    "connection: the keeper hears of no loss": _in("connection", ("        self._tell_keeper(exc)\n", "")),
    "connection: unread bytes are no reason not to use it": _in(
        "connection", ("not (self.reader._buffer or writer", "not (writer")
    ),
    "connection: a failed prepare leaves it open": _in(
        "connector",
        (
            "        except Exception as exc:\n            connection.abort()\n            if _cancels",
            "        except Exception as exc:\n            if _cancels",
        ),
    ),
    "connection: a cancelled prepare leaves it open": _in(
        "connector",
        (
            "BaseException:\n            connection.abort()\n            raise\n\n    # -- What is learnt",
            "BaseException:\n            raise\n\n    # -- What is learnt",
        ),
    ),
    # Link
    "link: the end of the stream is no loss": _in(
        "heartbeat", ("        if self.on_end is not None:\n            self.on_end()\n", "")
    ),
    "link: a silent peer is borne": _in(
        "heartbeat", ("            self._lose(errors.typed(", "            (errors.typed(")
    ),
    "link: a server that hangs up is dialed without a pause": _in(
        "schedule",
        ("            self.failed(error, now, circuit)\n\n    def left", "            pass\n\n    def left"),
    ),
    "link: failures are not counted": _in("schedule", ("        self.failures += 1\n", "        self.failures = 1\n")),
    "link: no pause after a failure": _in(
        "link_supervisor",
        ("if self._schedule.resume_at > self._now():", "if self._schedule.resume_at > self._now() + 99:"),
    ),
    "link: retry_now() leaves it asleep": _in(
        "link_supervisor", ("            self._nap.set_result(None)\n", "            pass\n")
    ),
    "link: its task outlives the consumer": _in(
        "link_supervisor",
        ("            self._task.cancel()\n            self._unwinding =", "            self._unwinding ="),
    ),
    "link: the connection outlives the consumer": _in(
        "link_supervisor",
        (
            "            self._schedule.left(kept.made, self._now())\n            kept.drop()\n",
            "            self._schedule.left(kept.made, self._now())\n",
        ),
    ),
    "link: a permanent error is always the end": _in(
        "link_supervisor", ("if permanent and not self._proven:", "if permanent:")
    ),
    "link: a permanent error is never the end": _in(
        "link_supervisor", ("            if permanent and not self._proven:\n                raise\n", "")
    ),
    "link: a consumer that is cancelled stays": _in(
        "link_supervisor",
        ("        self._consumer = None\n        self._wanted = False\n", "        self._wanted = False\n"),
    ),
    "link: the wish outlives its consumer": _in(
        "link_supervisor",
        (
            "        self._consumer = None\n        self._wanted = False\n        kept",
            "        self._consumer = None\n        kept",
        ),
    ),
}
"""By name: what is wrong then."""

QUICK = (
    "pool: a connection left in the middle of a message is lent again",
    "pool: a mark of the last user stays",
    "pool: the line is served from its end",
    "pool: one connection too many",
    "pool: a loss says nothing about the others",
    "pool: an idle connection that is lost stays",
    "pool: nobody looks after what is idle",
    "pool: time limits are forgotten once one has passed",
    "gate: nobody is let in when somebody leaves",
    "gate: two probes at once",
    "gate: no timer for the next probe",
    "gate: the window is not asked",
    "breaker: it opens one failure late",
    "record: a loss is not counted",
    "record: a name is not asked for again after a failure",
    "connector: a cancelled attempt keeps its slot",
    "engine: one attempt too many",
    "engine: no pause",
    "engine: a pause may outlast the time limit",
    "dialer: losers stay open",
    "dialer: a winner that nobody takes stays open",
    "resolver: answers are kept for ever",
    "connection: abort() leaves it open",
    "connection: nobody is told of a loss",
    "link: the end of the stream is no loss",
    "link: a server that hangs up is dialed without a pause",
    "link: its task outlives the consumer",
    "link: a consumer that is cancelled stays",
)
"""Those of the short form: each is found within a few worlds."""


def _functions(space: dict[str, Any], module: str) -> Iterator[types.FunctionType]:
    for each in list(space.values()):
        if isinstance(each, type) and each.__module__ == module:
            yield from _functions(dict(vars(each)), module)
        for maybe in (each, getattr(each, "fget", None), getattr(each, "__func__", None)):
            if isinstance(maybe, types.FunctionType) and maybe.__module__ == module:
                yield maybe


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from _codes(const)


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """With that fault in the package."""
    mutation = MUTATIONS[name]
    module = importlib.import_module(f"aioconnect.{mutation.module}")
    source = original = inspect.getsource(module)
    for old, new in mutation.pairs:
        if source.count(old) != 1:
            raise LookupError(f"{name}: aioconnect.{mutation.module} has changed; say {old!r} as it says it now")
        source = source.replace(old, new)
    path = module.__file__ or ""
    before, after = (compile(text, path, "exec", dont_inherit=True) for text in (original, source))
    fresh = {code.co_qualname: code for code in _codes(after)}
    stale = {code.co_qualname: code for code in _codes(before)}
    changed: list[tuple[types.FunctionType, types.CodeType]] = []
    for function in dict.fromkeys(_functions(vars(module), module.__name__)):
        code = fresh.get(function.__qualname__)
        if code is not None and _differs(code, stale.get(function.__qualname__)):
            changed.append((function, function.__code__))
            function.__code__ = code
    if not changed:
        raise LookupError(f"{name}: changes no function")
    try:
        yield
    finally:
        for function, code in changed:
            function.__code__ = code


def _differs(code: types.CodeType, other: types.CodeType | None) -> bool:
    if other is None:
        return True

    def plain(each: types.CodeType) -> tuple[Any, ...]:
        consts = tuple(plain(const) if isinstance(const, types.CodeType) else repr(const) for const in each.co_consts)
        return each.co_code, each.co_names, consts

    return plain(code) != plain(other)


def hunt(name: str, start: int, patience: int) -> Outcome | None:
    """The first world in which the fault shows."""
    with warnings.catch_warnings(), planted(name):
        # Coroutines and tasks that a fault leaves behind.
        warnings.simplefilter("ignore")
        for seed in range(start, start + patience):
            outcome = run(seed)
            if outcome.violation is not None:
                return outcome
    return None


def table(start: int, patience: int) -> bool:
    """Print them all: whether all were found."""
    missed = 0
    for name in MUTATIONS:
        began = time.process_time()
        try:
            found = hunt(name, start, patience)
        except LookupError as exc:
            print(f"{'?':>5}  {exc}", flush=True)
            missed += 1
            continue
        took = time.process_time() - began
        missed += found is None
        worlds = "-" if found is None else str(found.seed - start + 1)
        print(f"{worlds:>5}  {took:5.1f} s  {name:<70} {found.violation if found else 'NOT FOUND'}", flush=True)
    print(f"{len(MUTATIONS)} faults, {missed} not found in {patience} worlds")
    return not missed
