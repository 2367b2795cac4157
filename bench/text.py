"""Tables as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.harness import Measured, Result
    from bench.targets import Judgement

TAIL = 0.99
TAIL_SAMPLES = 1000
"""So many samples at least before a tail says anything."""


def quantile(ordered: list[float], part: float) -> float:
    """The sample below which this part of them lies, of samples in order."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def ratio(measured: Measured, result: Result) -> float:
    """Of a row's median to that of the table's first."""
    assert result.first is not None
    return measured.median / result.first.median


def headings(result: Result) -> list[str]:
    table = result.table
    return ["ratio", f"median, {table.unit}", "min", "max", "p99", *([table.rate[0]] if table.rate else [])]


def cells(measured: Measured, result: Result) -> list[str]:
    """A row's figures; none if it is missing."""
    if measured.missing is not None:
        return []
    table = result.table
    figures = [measured.median, min(measured.rounds), max(measured.rounds)]
    shown = [f"{table.scale * figure:.2f}" for figure in figures]
    samples = sorted(measured.samples)
    tail = f"{table.scale * quantile(samples, TAIL):.2f}" if len(samples) >= TAIL_SAMPLES else "-"
    rate = [f"{table.rate[1] / measured.median:,.0f}"] if table.rate else []
    return [f"{ratio(measured, result):.2f}", *shown, tail, *rate]


def title(result: Result) -> str:
    rounds = result.table.rounds
    return f"{result.table.title} ({rounds} round{'s' if rounds > 1 else ''})"


def table(result: Result) -> str:
    """Ratios to the first row, medians, the least and the most median of a round, and the 99th percentile of all."""
    lines = ["  ".join(f"{heading:>17}" if "median" in heading else f"{heading:>10}" for heading in headings(result))]
    for measured in result.rows:
        name = measured.row.name + (f" ({measured.note})" if measured.note else "")
        if measured.missing is not None:
            lines.append(f"   missing: {name}: {measured.missing}")
            continue
        values = cells(measured, result)
        lines.append(
            "  ".join(f"{value:>{17 if number == 1 else 10}}" for number, value in enumerate(values)) + f"   {name}"
        )
    return "\n".join(["", title(result), *lines])


def judgements(found: list[Judgement]) -> str:
    """What is held against the targets, a line each."""
    width = max((len(each.name) for each in found), default=0)
    lines = [f"{each.verdict:>12}  {each.name:<{width}}  {each.shown}; {each.target.text}" for each in found]
    return "\n".join(["", "Targets", *(lines or ["none of them is about what was measured"])])
