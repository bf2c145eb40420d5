"""The outcomes of several policies side by side: to look up, to print, to draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aioconnect.simulation.outcome import Outcome
from aioconnect.simulation.plotting import save
from aioconnect.simulation.scenario import Scenario
from aioconnect.simulation.text import as_text
from aioconnect.validation import did_you_mean, shown

__all__ = ("Report",)


class Report:
    """What `simulate` found: an `Outcome` for each policy, by name or number, in the order in which they were given.

    Printed, it is a table and a plot as text.
    """

    __slots__ = ("outcomes", "scenario")

    def __init__(self, scenario: Scenario, outcomes: Sequence[Outcome]) -> None:
        self.scenario = scenario
        self.outcomes = tuple(outcomes)

    def __getitem__(self, which: str | int) -> Outcome:
        if isinstance(which, int):
            return self.outcomes[which]
        found = next((each for each in self.outcomes if each.name == which), None)
        if found is None:
            raise KeyError(f"{shown(which)}: {did_you_mean(which, (each.name for each in self.outcomes))}")
        return found

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; see ``aioconnect simulate --json``."""
        scenario = {name: getattr(self.scenario, name) for name in Scenario.__slots__}
        return {
            "schema": 1,
            "scenario": scenario,
            "floor": self.scenario.floor,
            "outcomes": [each.to_dict() for each in self.outcomes],
        }

    def text(self, width: int = 100, *, ascii_only: bool = False) -> str:
        """A table of the figures, and the attempts of each second as bars."""
        return as_text(self.outcomes, width, ascii_only=ascii_only)

    def plot(self, path: str) -> None:
        """Draw it into a file that ends with ``.svg``, ``.png`` or ``.pdf``; raises `ConfigError` without the extra."""
        save(self.outcomes, path)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Report {', '.join(each.name for each in self.outcomes)}>"
