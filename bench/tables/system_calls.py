"""System calls per call, on either side, as strace counts them."""

from __future__ import annotations

from bench.harness import OWN, Row, Table

KINDS = {"messages": "sends and receives", "all": "all of them"}
WHATS = {"one_by_one": "one call after the other", "under_way": "128 calls under way"}


def tables(_is_quick: bool) -> list[Table]:
    rows = tuple(
        Row(
            f"{what}-{side}-{kind}",
            f"samehost: {text}, the {side}: {name}",
            OWN,
            None,
            "bench.own.system_calls:count",
            (what, side, kind),
        )
        for what, text in WHATS.items()
        for side in ("client", "server")
        for kind, name in KINDS.items()
    )
    return [
        Table(
            "system-calls",
            "System calls per call, counted by strace, on any core",
            rows,
            unit="a call",
            scale=1,
            cores="one",
            rounds=1,
            seconds=0.1,
            set_up_seconds=5,
        )
    ]
