"""The tables: a module for each kind of measurement, with its rows.

A module's `tables(is_quick)` gives what is measured: all of it, or what is essential, in less time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.tables import connections, payloads, pipelines, round_trips, startup, streams, system_calls, topics

if TYPE_CHECKING:
    from bench.harness import Table

KINDS = (round_trips, pipelines, streams, payloads, connections, system_calls, startup, topics)


def all_tables(*, is_quick: bool) -> list[Table]:
    return [table for kind in KINDS for table in kind.tables(is_quick)]
