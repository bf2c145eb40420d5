"""A report as a picture, by matplotlib: the extra ``plot``."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from typing import Any

from aioconnect.errors import ConfigError
from aioconnect.simulation.outcome import Outcome
from aioconnect.simulation.scenario import BIN, Scenario
from aioconnect.simulation.text import described, shown_until
from aioconnect.validation import shown

__all__ = ("check_plot", "save")

_ENDINGS = (".svg", ".png", ".pdf")

# Okabe and Ito: told apart by everybody, on paper too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK, _FAINT = "#333333", "#999999"


def check_plot(path: str) -> None:
    """Raise `ConfigError` now for what would go wrong at the end: another kind of file, no directory, no matplotlib."""
    if not path.lower().endswith(_ENDINGS):
        raise ConfigError(f"plot={shown(path)}: must end with {', '.join(_ENDINGS)}")
    if not os.path.isdir(os.path.dirname(path) or "."):  # noqa: PTH112, PTH120  (it is a text already)
        raise ConfigError(f"plot={shown(path)}: must be in a directory that exists")
    _matplotlib("figure")


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}" if module else "matplotlib")
    except ImportError as exc:
        raise ConfigError("plot=None: needs the extra plot: pip install 'aioconnect[plot]'") from exc


def save(outcomes: Sequence[Outcome], path: str) -> None:
    """Draw the attempts of each policy, and how many clients are connected, into a file."""
    check_plot(path)
    # The salt makes the same figures the same file.
    with _matplotlib("").rc_context({"svg.hashsalt": "aioconnect", "font.size": 9, "svg.fonttype": "none"}):
        figure = _figure(outcomes)
        metadata = {"Date": None} if path.lower().endswith(".svg") else None
        figure.savefig(path, dpi=150, metadata=metadata, facecolor="white")


def _figure(outcomes: Sequence[Outcome]) -> Any:
    scenario, end = outcomes[0].scenario, shown_until(outcomes)
    begin = -min(scenario.outage, 0.18 * end)
    rows = len(outcomes)
    figure = _matplotlib("figure").Figure(figsize=(8.5, 1.7 + 1.05 * rows + 1.7), layout="constrained")
    axes = figure.subplots(rows + 1, 1, sharex=True, height_ratios=[1.0] * rows + [1.7])
    figure.suptitle("\n".join(described(scenario)), x=0.01, ha="left", fontsize=9, color=_INK)
    step = max(1, round((end - begin) / BIN / 240))
    rates = [_rates(each, begin, end, step) for each in outcomes]
    top = max(1.0, *(rate for edges, heights in rates for at, rate in zip(edges, heights, strict=False) if at >= 0))
    for number, (outcome, (edges, heights)) in enumerate(zip(outcomes, rates, strict=True)):
        _draw_rates(axes[number], outcome, edges, heights, top, _COLOURS[number % len(_COLOURS)])
    axes[(rows - 1) // 2].set_ylabel("attempts per second", color=_INK)
    _draw_connected(axes[-1], outcomes, scenario, end)
    axes[-1].set_xlim(begin, end)
    for each in axes:
        _tidy(each)
    return figure


def _rates(outcome: Outcome, begin: float, end: float, step: int) -> tuple[list[float], list[float]]:
    """The edges of columns of so many tenths of a second, and the attempts per second in each."""
    first, last = math.floor(begin / BIN / step), math.ceil(end / BIN / step)
    counts = [0] * (last - first)
    for at, count in outcome.arrivals.items():
        if 0 <= at // step - first < len(counts):
            counts[at // step - first] += count
    edges = [(first + number) * step * BIN for number in range(len(counts) + 1)]
    return edges, [count / (step * BIN) for count in counts]


def _draw_rates(axes: Any, outcome: Outcome, edges: list[float], heights: list[float], top: float, colour: str) -> None:
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.85, linewidth=0)
    axes.set_ylim(0, top * 1.08)
    axes.yaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(_matplotlib("ticker").StrMethodFormatter("{x:,.0f}"))
    done = outcome.until(1.0)
    last = f"all connected after {done:,.1f} s" if done is not None else f"{outcome.connected:,} connected"
    text = f"{outcome.name}:  {outcome.attempts_per_client:,.1f} attempts a client, {last}"
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    axes.text(0.99, 0.93, text, transform=axes.transAxes, ha="right", va="top", color=_INK, bbox=box)


def _draw_connected(axes: Any, outcomes: Sequence[Outcome], scenario: Scenario, end: float) -> None:
    wanted = scenario.connections
    # On top: the best policies hide it.
    axes.plot([0, scenario.floor], [0, 100], color=_INK, linestyle=":", linewidth=1.6, label="floor", zorder=5)
    for number, outcome in enumerate(outcomes):
        every = max(1, outcome.connected // 400)
        times = [0.0, *outcome.times[every - 1 :: every], *outcome.times[-1:], end]
        counts = [0, *range(every, outcome.connected + 1, every), outcome.connected, outcome.connected]
        shares = [100 * count / wanted for count in counts[: len(times)]]
        axes.plot(times, shares, color=_COLOURS[number % len(_COLOURS)], linewidth=1.6, label=outcome.name)
    axes.set_ylim(0, 104)
    axes.set_ylabel("connected, %", color=_INK)
    axes.set_xlabel("seconds after the return", color=_INK)
    axes.legend(loc="lower right", frameon=False, ncols=min(5, len(outcomes) + 1))


def _tidy(axes: Any) -> None:
    axes.axvline(0, color=_FAINT, linewidth=1)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, length=3)
