"""`make bench`: samehost beside its peers, in one run, on the same work. Ratios come first: only they travel.

Each row is measured in rounds that alternate with the others, so that a machine whose mood changes changes it for all.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

from bench import calls, payloads, round_trip, startup, topics

Row = tuple[str, Callable[[], float]]
"""What is measured, and a function that does it once and gives seconds."""


def table(title: str, rows: list[Row], rounds: int, unit: str, scale: float) -> dict[str, float]:
    """Measure every row once a round, and print medians, spread, and the ratio to the first row."""
    times: dict[str, list[float]] = {name: [] for name, _ in rows}
    for _, measure in rows:
        measure()  # warm up: page cache, bytecode, connections
    for number in range(rounds):
        if sys.stderr.isatty():
            print(f"\r{title}: round {number + 1} of {rounds}\033[K", end="", file=sys.stderr, flush=True)
        for name, measure in rows:
            times[name].append(measure())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = medians[rows[0][0]]
    print(f"\n{title} ({rounds} rounds)\n{'ratio':>7} {'median':>10} {'min':>10} {'max':>10}   {unit}")
    for name, values in times.items():
        low, middle, high = (scale * value for value in (min(values), medians[name], max(values)))
        print(f"{medians[name] / first:7.2f} {middle:10.2f} {low:10.2f} {high:10.2f}   {name}")
    return medians


def main() -> None:
    version = sys.version.split()[0]
    print(f"Python {version}")
    with startup.rows() as rows:
        medians = table("Start-up of whole processes", rows, rounds=31, unit="ms", scale=1e3)
    own = medians["import samehost"] - medians["python -c pass"]
    print(f"import samehost, own time: {own * 1e3:.1f} ms")
    everything = medians["import samehost, every name but aio"] - medians["python -c pass"]
    print(f"every name of samehost but aio, own time: {everything * 1e3:.1f} ms")
    for theirs, title in (({0}, "both processes on one core"), ({1}, "a core each")):
        with round_trip.rows({0}, theirs) as rows:
            table(f"Round trip of 64 bytes, {title}", rows, rounds=15, unit="µs", scale=1e6)
        with calls.round_trips({0}, theirs) as rows:
            table(f"A call with a string of 64 bytes, {title}", rows, rounds=15, unit="µs", scale=1e6)
    with calls.pipelines({0}, {1}) as rows:
        table(f"The same, {calls.WINDOW} under way, a core each", rows, rounds=15, unit="µs a call", scale=1e6)
    for size, times in ((64 * payloads.MIB, 5), (payloads.MIB, 100)):
        with payloads.rows({0}, {1}, size, times) as rows:
            table(f"A payload of {size // payloads.MIB} MiB, a core each", rows, rounds=9, unit="ms", scale=1e3)
    with topics.rows({0}, {1}) as rows:
        table(f"An item of a topic with {topics.SUBSCRIBERS} subscribers", rows, rounds=9, unit="µs", scale=1e6)


if __name__ == "__main__":
    main()
