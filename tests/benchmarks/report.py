"""The result as an aligned table, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.measure import Row

__all__ = ("as_json", "as_markdown", "as_text")

HEADINGS = ("row", "what", "loop", "bar", "measured", "p25-p75", "with close", "ours", "theirs", "")
NUMBERS = frozenset({3, 4, 6, 7, 8})


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if unit in ("B", "objects") and value == int(value) else f"{value:.2f}"


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.1f} {unit}"


def cells(row: Row) -> tuple[str, ...]:
    unit = "" if row.unit == "x" else f" {row.unit}"
    span = "" if row.low is None or row.high is None else f"{row.low:.2f}-{row.high:.2f}"
    return (
        row.number,
        row.title,
        row.loop,
        "" if row.bar is None else f"{row.bar:g}",
        _number(row.measured, row.unit) + unit,
        span,
        "" if row.second is None else f"({row.second:.2f})",
        _amount(row.ours, row.each),
        _amount(row.theirs, row.each),
        row.verdict,
    )


def as_text(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    table = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS))]
    lines = [f"{name}: {value}" for name, value in facts.items()] + [""]
    for line, row in zip(table, [None, *rows], strict=True):
        padded = (
            text.rjust(width) if column in NUMBERS else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        note = f"  {row.note}" if row is not None and row.note else ""
        lines.append(("  ".join(padded) + note).rstrip())
    return "\n".join(lines)


def as_markdown(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """Only the rows that have a bar: the others explain them."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "|".join("---:" if column in NUMBERS else "---" for column in range(len(HEADINGS))) + "|",
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows if row.bar is not None]
    return "\n".join([*lines, "", *(f"{name.capitalize()}: {value}.  " for name, value in facts.items())])


def as_json(rows: Sequence[Row], facts: Mapping[str, str]) -> dict[str, Any]:
    return {"facts": dict(facts), "rows": [row._asdict() | {"verdict": row.verdict} for row in rows]}
