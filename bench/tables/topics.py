"""What it costs to publish to a hundred subscribers, and how soon they have it."""

from __future__ import annotations

from bench.harness import OWN, Row, Table

SUBSCRIBERS = 100

ROWS = tuple(
    Row(
        f"{figure}-{sleepers}",
        f"samehost: {text}, {who}",
        OWN,
        "bench.own.topics:serve",
        "bench.own.topics:publishing",
        (figure, sleepers),
    )
    for figure, text in (("cost", "to publish"), ("latency", "until it has come"))
    for sleepers, who in (("0", "all awake"), ("1", "one asleep"))
)


def tables(is_quick: bool) -> list[Table]:
    if is_quick:
        return []
    return [
        Table(
            "topics",
            f"An item of a topic with {SUBSCRIBERS} subscribers, a core each",
            ROWS,
            rounds=9,
            seconds=0.5,
            set_up_seconds=12,
        )
    ]
