"""A report as text: a table of the figures, and for each policy its attempts of each second as bars."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, count
from textwrap import wrap

from aioconnect.simulation.outcome import Outcome
from aioconnect.simulation.scenario import BIN, Scenario

__all__ = ("as_text", "described", "shown_until")

_HEIGHT = 5
"""Lines of a plot."""
_BEFORE = 0.15
"""The share of the width that shows the time before the return."""
_LEAST_WIDTH = 60

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = "  ..::|||"
_SHADES = " ░▒▓█"
_ASCII_SHADES = " .-=#"

_HEADINGS = (
    ("", "policy"),
    ("attempts", "total"),
    ("per", "client"),
    ("peak /s", "down"),
    ("peak /s", "back"),
    ("peak", "/100 ms"),
    ("50 %", "in"),
    ("99 %", "in"),
    ("100 %", "in"),
)


def as_text(outcomes: Sequence[Outcome], width: int = 100, *, ascii_only: bool = False) -> str:
    """All of it, no wider than that if there is room for a plot at all."""
    scenario = outcomes[0].scenario
    width = max(width, _LEAST_WIDTH)
    lines = [line for sentence in described(scenario) for line in wrap(sentence, width)]
    lines += ["", *_table(scenario, outcomes)]
    lines += [line for remark in _remarks(scenario, outcomes) for line in wrap(remark, width)]
    lines += ["", *_plots(outcomes, width, ascii_only=ascii_only)]
    return "\n".join(lines)


def described(scenario: Scenario) -> Iterator[str]:
    """The scenario in words."""
    callers = f" with {scenario.callers:,} callers each" if scenario.callers > 1 else ""
    spread = f", and notice within {_duration(scenario.spread)}" if scenario.spread else ""
    until = "dials are refused" if scenario.down == "refused" else "nothing answers"
    yield (
        f"{scenario.clients:,} clients{callers} lose their server for {_duration(scenario.outage)}{spread}; "
        f"until it is back {until}."
    )
    overflow = ", refused beyond" if scenario.overflow == "refused" else ""
    limit = scenario.connect_timeout
    patience = f"; an attempt ends after {_duration(limit)}" if limit is not None else ""
    yield (
        f"Then it accepts {scenario.accept_rate:,.6g} connections a second, backlog {scenario.backlog:,.6g}{overflow}; "
        f"round trip {_duration(scenario.rtt)}{patience}."
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:,.6g} ms" if 0 < seconds < 1 else f"{seconds:,.6g} s"


# -- The table -----------------------------------------------------------------------------------------------------


def _table(scenario: Scenario, outcomes: Sequence[Outcome]) -> Iterator[str]:
    floor = tuple(_seconds(scenario.floor_of(share)) for share in (0.5, 0.99, 1.0))
    rows = [("floor", f"{scenario.connections:,}", f"{scenario.callers:.1f}", "", "", "", *floor)]
    rows += [_cells(each) for each in outcomes]
    table = [*zip(*_HEADINGS, strict=True), *rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADINGS))]
    for line in table:
        first, *others = (
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return (
        outcome.name,
        f"{outcome.attempts:,}",
        f"{outcome.attempts_per_client:,.1f}",
        f"{outcome.peak_down:,}",
        f"{outcome.peak_per_second:,}",
        f"{outcome.peak_per_100ms:,}",
        *(_seconds(outcome.until(share)) for share in (0.5, 0.99, 1.0)),
    )


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:,.1f} s"


def _remarks(scenario: Scenario, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What the table has no column for."""
    for outcome in outcomes:
        remarks = [f"{number:,} gave up ({reason})" for reason, number in sorted(outcome.gave_up.items())]
        missing = scenario.connections - outcome.connected - sum(outcome.gave_up.values())
        if missing:
            remarks.append(f"{missing:,} not connected {_duration(scenario.horizon)} after the return")
        if outcome.wasted:
            remarks.append(f"{outcome.wasted:,} accepted too late, the client had left")
        if remarks:
            yield f"{outcome.name}: {'; '.join(remarks)}"
    if any(outcome.wasted > scenario.connections / 10 for outcome in outcomes):
        queue = (scenario.backlog + 1) / scenario.accept_rate
        yield (
            f"A full queue takes {queue:,.1f} s at this rate. Where that is longer than clients wait, "
            "the server works for those that have left."
        )


# -- The plot ------------------------------------------------------------------------------------------------------


class _Frame:
    """Where time goes in a plot: columns of so many tenths of a second, one of which begins at the return."""

    def __init__(self, scenario: Scenario, end: float, columns: int) -> None:
        before = min(scenario.outage, end * _BEFORE / (1 - _BEFORE))
        # Sums over whole columns, so that a bar is a count and not a share of one.
        steps = chain(range(1, 10), _round_numbers(10, 12, 15, 20, 25, 30, 40, 50, 60, 80))
        self.step = next(step for step in steps if (end + before) / BIN / step <= columns - 1)
        self.before = math.ceil(round(before / BIN / self.step, 6))
        self.after = max(1, math.ceil(round(end / BIN / self.step, 6)))
        self.seconds = self.step * BIN

    def rates(self, outcome: Outcome) -> list[float]:
        """Attempts per second in each column."""
        counts = [0] * (self.before + self.after)
        for at, number in outcome.arrivals.items():
            column = at // self.step + self.before
            if 0 <= column < len(counts):
                counts[column] += number
        return [count / self.seconds for count in counts]

    def shares(self, outcome: Outcome) -> list[float]:
        """The share of all connections that is there at the end of each column."""
        ends = ((column + 1 - self.before) * self.seconds for column in range(self.before + self.after))
        return [bisect_right(outcome.times, end) / outcome.scenario.connections for end in ends]


def _round_numbers(*leading: int) -> Iterator[int]:
    """Each of them, then ten times as much, and so on."""
    return (number * 10**magnitude for magnitude in count() for number in leading)


def shown_until(outcomes: Sequence[Outcome]) -> float:
    """Seconds after the return that are worth a look: until all are connected, but at most three times the floor."""
    scenario = outcomes[0].scenario
    ends = [each.until(1.0) or math.inf for each in outcomes]
    return max(min(max(ends), max(3 * scenario.floor, 5.0)), 1.0)


def _plots(outcomes: Sequence[Outcome], width: int, *, ascii_only: bool) -> Iterator[str]:
    label = max(len("connected"), *(len(each.name) for each in outcomes))
    margin = label + 11
    frame = _Frame(outcomes[0].scenario, shown_until(outcomes), width - margin)
    rates = [frame.rates(each) for each in outcomes]
    top = max(1.0, *(max(each[frame.before :]) for each in rates))
    edge, bars, shades = ("|", _ASCII_BARS, _ASCII_SHADES) if ascii_only else ("│", _BARS, _SHADES)
    yield "Attempts per second, all to one scale" + ("; higher before the return" if _clipped(rates, top) else "")
    for outcome, heights in zip(outcomes, rates, strict=True):
        yield ""
        for number, line in enumerate(_bars(heights, top, bars)):
            left = (outcome.name, f"{top:,.0f}") if number == 0 else ("", "0" if number == _HEIGHT - 1 else "")
            yield f"{left[0]:<{label}} {left[1]:>8} {edge}{line}".rstrip()
        filled = (shades[math.ceil(share * (len(shades) - 1))] for share in frame.shares(outcome))
        yield f"{'connected':<{label}} {'':>8} {edge}{''.join(filled)}".rstrip()
    yield from _axis(margin, frame, "^" if ascii_only else "▲")


def _clipped(rates: Sequence[Sequence[float]], top: float) -> bool:
    return any(rate > top for each in rates for rate in each)


def _bars(heights: Sequence[float], top: float, bars: str) -> Iterator[str]:
    """Lines from the top down. What is there at all is seen."""
    full = len(bars) - 1
    eighths = [min(_HEIGHT * full, math.ceil(height / top * _HEIGHT * full)) for height in heights]
    for line in reversed(range(_HEIGHT)):
        yield "".join(bars[max(0, min(full, each - line * full))] for each in eighths)


def _axis(margin: int, frame: _Frame, mark: str) -> Iterator[str]:
    """Seconds after the return, as often as there is room for them."""
    columns = frame.before + frame.after
    every = next(step for step in _round_numbers(1, 2, 5) if step >= 8 * frame.seconds)
    marks, names = [" "] * columns, [" "] * (columns + 12)
    for seconds in range(0, math.ceil(frame.after * frame.seconds) + 1, every):
        column = frame.before + round(seconds / frame.seconds)
        if column < columns:
            marks[column] = "'" if seconds else mark
            text = f"{seconds} s" if seconds else "back"
            names[column : column + len(text)] = text
    yield " " * margin + "".join(marks).rstrip()
    yield " " * margin + "".join(names).rstrip()
