"""The plots of a report, as SVG, drawn without a display. samehost's lines are the thick blue ones."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from bench.harness import OWN
from bench.peers import LACKS
from bench.tables import connections, payloads
from bench.text import quantile

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

    from bench.harness import Result

TICKS = {"0": 0.0, "50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999}
STEPS_A_DECADE = 40
PARTS = [1 - 10 ** (-number / STEPS_A_DECADE) for number in range(3 * STEPS_A_DECADE + 1)]
"""Quantiles up to 99.9 %, closer to each other towards the end, as in an HdrHistogram's plot."""
OWN_COLOUR = "#0057d9"
PEER_COLOURS = (
    "#000000",
    "#7f7f7f",
    "#17a2b8",
    "#2ca02c",
    "#d62728",
    "#e377c2",
    "#9467bd",
    "#8c564b",
    "#c49c94",
    "#a0a000",
    "#ff7f0e",
)
COLOURS = dict(zip(LACKS, PEER_COLOURS, strict=True))
STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))


def plots(results: list[Result]) -> dict[str, tuple[str, str]]:
    """What there is to draw of these results: for each plot's name its title and its SVG.

    Raises:
        ImportError: matplotlib is not there.
    """
    found = {}
    round_trips = [[result] for result in results if result.table.key in ("one-core", "two-cores")]
    if round_trips:
        found["latency"] = ("Distribution of the latency", _drawn(_distribution, round_trips))
    for name, title, groups in (
        ("payloads", "Throughput against payload size", (payloads.ANSWERED, payloads.ONE_WAY)),
        ("connections", "Throughput against connections", (connections.AT_A_TIME,)),
    ):
        sized = [[result for result in results if result.table.of and result.table.of[0] == of] for of in groups]
        if any(sized):
            found[name] = (title, _drawn(_sizes, [panel for panel in sized if panel]))
    return found


def _drawn(draw: Callable[[Axes, list[Result]], None], panels: list[list[Result]]) -> str:
    """A figure with a panel below the other."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(12, 5.6 * len(panels)), layout="constrained")
    for axes, results in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        draw(axes, results)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "samehost"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _styles(result: Result) -> dict[str, dict[str, Any]]:
    """Of the lines, by the keys of their rows: a colour for each peer, and a way of drawing for each of its rows."""
    numbers: dict[str, int] = {}
    found = {}
    for row in (measured.row for measured in result.rows):
        number = numbers[row.peer] = numbers.get(row.peer, -1) + 1
        is_own = row.peer == OWN
        found[row.key] = {
            "color": OWN_COLOUR if is_own else COLOURS[row.peer],
            "linestyle": STYLES[number % len(STYLES)],
            "linewidth": 2.6 if is_own else 1.3,
            "zorder": 3 if is_own else 2,
        }
    return found


def _distribution(axes: Axes, results: list[Result]) -> None:
    [result] = results
    styles = _styles(result)
    there = [measured for measured in result.rows if measured.missing is None]
    for measured in sorted(there, key=lambda each: -each.median):
        samples = sorted(measured.samples)
        values = [result.table.scale * quantile(samples, part) for part in PARTS]
        label = f"{measured.row.name}: {result.table.scale * measured.median:.1f}"
        axes.plot([_stretched(part) for part in PARTS], values, label=label, **styles[measured.row.key])
    axes.set_xticks([_stretched(part) for part in TICKS.values()], list(TICKS))
    axes.set(title=result.table.title, yscale="log", ylabel=f"{result.table.unit}, of all samples", xlim=(0, 3))
    axes.set_xlabel("part of the calls that take no longer (in the legend: the median of the rounds)")


def _stretched(part: float) -> float:
    return -math.log10(1 - part)


def _sizes(axes: Axes, results: list[Result]) -> None:
    first = results[0].table
    assert first.of is not None
    assert first.rate is not None
    styles = _styles(results[0])
    for row in (measured.row for measured in results[0].rows):
        points = [_point(result, row.key) for result in results]
        there = [point for point in points if point is not None]
        if there:
            sizes, medians, least, most = zip(*there, strict=True)
            axes.plot(sizes, medians, label=row.name, marker="o", markersize=4, **styles[row.key])
            axes.fill_between(sizes, least, most, color=styles[row.key]["color"], alpha=0.12, linewidth=0)
    ticks = [result.table.of[1] for result in results if result.table.of]
    axes.set(title=first.of[0].capitalize(), xscale="log", yscale="log", ylabel=first.rate[0])
    axes.set_xticks(ticks, [_number(tick) for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)


def _point(result: Result, key: str) -> tuple[int, float, float, float] | None:
    """A size, and how many a second: the median of the rounds, the least and the most; None if the row is missing."""
    measured = result.get(key)
    if measured is None or measured.missing is not None:
        return None
    assert result.table.of is not None
    assert result.table.rate is not None
    many = result.table.rate[1]
    return result.table.of[1], many / measured.median, many / max(measured.rounds), many / min(measured.rounds)


def _number(value: int) -> str:
    return f"{value // 1024} KiB" if value >= 1024 else str(value)
