"""The figures of `samehost bench`, printed: tables and bars for people, and lines or JSON for programs."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from samehost.cli.results import print_json
from samehost.kernel.owners import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from samehost.cli.histogram import Histogram
    from samehost.cli.load import Tally

QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
"""The shares of all calls, by their names for programs."""

_ROWS_MAX = 16
_BAR_COLUMNS = 40
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_IN_ASCII = str.maketrans({"µ": "u", "≤": "<", "█": "#", **dict.fromkeys(_EIGHTHS[1:], ".")})
"""What stands for these on a terminal that has none of them."""

_BUSY = 0.9
"""A part of a core that hardly leaves any of it."""

_Line: TypeAlias = list[tuple[str, str]]
"""Texts, each with how it looks on a terminal."""

_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


class Setting(NamedTuple):
    """What was measured, and how.

    Attributes:
        warm_up, busy_wait: seconds.
    """

    address: str
    method: str
    connections: int
    warm_up: float
    busy_wait: float


def print_figures(setting: Setting, tally: Tally, *, as_json: bool) -> None:
    """Print what came of it."""
    if as_json:
        print_json(_for_programs(setting, tally))
    elif sys.stdout.isatty():
        _print_for_people(setting, tally)
    else:
        for name, value in _flat(_for_programs(setting, tally)):
            print(f"{name}\t{_plain(value)}")


def _for_programs(setting: Setting, tally: Tally) -> dict[str, Any]:
    """The figures by their documented names; times in seconds."""
    latencies, load = tally.latencies, tally.load
    return {
        "address": setting.address,
        "method": setting.method,
        "concurrency": load.concurrency,
        "connections": setting.connections,
        "rate": load.rate,
        "warm_up": setting.warm_up,
        "busy_wait": setting.busy_wait,
        "interrupted": tally.is_interrupted,
        "seconds": tally.seconds,
        "calls": tally.calls,
        "calls_per_second": tally.calls / tally.seconds,
        "failed": tally.errors.total(),
        "late": tally.late,
        "items": tally.items,
        "items_per_second": tally.items / tally.seconds,
        "cpu": tally.cpu / tally.seconds,
        "latency": _latency(latencies) if latencies.count else None,
        "errors": dict(tally.errors.most_common()),
        "histogram": [
            {"above": row.above / 1e9, "up_to": row.up_to / 1e9, "calls": row.number}
            for row in latencies.rows(_ROWS_MAX)
        ],
    }


def _latency(latencies: Histogram) -> dict[str, float]:
    found = {
        "min": float(latencies.shortest),
        "mean": latencies.mean(),
        "stddev": latencies.deviation(),
        "max": float(latencies.longest),
    }
    found |= {name: float(latencies.quantile(share)) for name, share in QUANTILES.items()}
    return {name: nanoseconds / 1e9 for name, nanoseconds in found.items()}


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The figures one by one, those within another behind its name and a dot; rows are for JSON alone."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif not isinstance(value, list) and value is not None:
            yield before + name, value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    return str(value).lower() if isinstance(value, bool) else printable(str(value))


def _print_for_people(setting: Setting, tally: Tally) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False, markup=False)
    lines: list[_Line] = [
        [(f"{printable(setting.method)} on {printable(setting.address)}, {_how(setting, tally)}", "bold")],
        [],
    ]
    lines += [[(f"{name:10}{text}", "")] for name, text in _totals(tally)]
    lines += [[(f"{'':10}{count:,} {printable(code)}", "red")] for code, count in tally.errors.most_common()]
    if tally.latencies.count:
        lines += [[], *_table_of(tally.latencies), [], *_bars_of(tally.latencies)]
    for warning in _warnings(setting, tally):
        lines += [[], [(warning, "yellow")]]
    for line in lines:
        parts = [(text.translate(_IN_ASCII) if console.options.ascii_only else text, style) for text, style in line]
        console.print(Text.assemble(*parts), soft_wrap=True)


def _how(setting: Setting, tally: Tally) -> str:
    load = tally.load
    calls = "call" if load.concurrency == 1 else "calls"
    connections = "1 connection" if setting.connections == 1 else f"{setting.connections} connections"
    most = f"at most {load.concurrency}" if load.rate else f"{load.concurrency}"
    due = f"{load.rate:,.7g} calls due a second, " if load.rate else ""
    return f"{due}{most} {calls} at a time on {connections}"


def _totals(tally: Tally) -> Iterator[tuple[str, str]]:
    yield "time", f"{tally.seconds:.3f} s{', interrupted' if tally.is_interrupted else ''}"
    yield "calls", f"{tally.calls:,}, {tally.calls / tally.seconds:,.0f} a second"
    if tally.items:
        yield "items", f"{tally.items:,}, {tally.items / tally.seconds:,.0f} a second"
    yield "failed", f"{tally.errors.total():,}"


def _table_of(latencies: Histogram) -> Iterator[_Line]:
    """The latencies in two columns: what describes all of them, and quantiles."""
    found = _latency(latencies)
    left = [f"{name:8}{_time(found[name]):>8}" for name in ("min", "mean", "stddev", "max")]
    for number, (name, share) in enumerate(QUANTILES.items()):
        quantile = f"{100 * share:g} %"
        yield [(f"{left[number] if number < len(left) else '':22}{quantile:>8} {_time(found[name]):>8}", "")]


def _bars_of(latencies: Histogram) -> Iterator[_Line]:
    """The histogram: up to which time, how many, and a bar."""
    rows = latencies.rows(_ROWS_MAX)
    most = max(row.number for row in rows)
    for row in rows:
        eighths = math.ceil(row.number * _BAR_COLUMNS * 8 / most)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
        yield [(f"≤ {_time(row.up_to / 1e9):>8} {row.number:>12,}  ", ""), (bar, "cyan")]


def _warnings(setting: Setting, tally: Tally) -> Iterator[str]:
    """What should be known before the figures are believed."""
    if tally.late:
        yield (f"{tally.late:,} calls were due and never made, as the others took too long: this rate was not reached")
    if tally.cpu > _BUSY * tally.seconds and not setting.busy_wait:
        yield (
            f"This end was busy for {100 * tally.cpu / tally.seconds:.0f} % of the time: the figures may be its own as "
            "much as the service's"
        )


def _time(seconds: float) -> str:
    """A time in three digits."""
    nanoseconds = seconds * 1e9
    size, unit = next((one for one in _UNITS if nanoseconds >= one[0]), _UNITS[-1])
    value = nanoseconds / size
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
