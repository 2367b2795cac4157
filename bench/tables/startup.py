"""How long a whole process takes from its start to its end."""

from __future__ import annotations

from bench.harness import OWN, Row, Table

CALL = "bench.own.startup:start"

ESSENTIAL = (
    Row("pass", "python -c pass", "Python", None, CALL, ("pass",)),
    Row("call", "samehost call PATH echo text=…, answered", OWN, "bench.own.echo:serve", CALL, ("call",)),
)
OTHERS = (
    Row("import", "import samehost", OWN, None, CALL, ("import",)),
    Row("names", "import samehost, every name but aio", OWN, None, CALL, ("names",)),
    Row("send", "samehost send PATH TEXT, answered", OWN, "bench.own.startup:listen", CALL, ("send",)),
)


def tables(is_quick: bool) -> list[Table]:
    return [
        Table(
            "start-up",
            "Start-up of whole processes, on one core",
            ESSENTIAL if is_quick else ESSENTIAL + OTHERS,
            unit="ms",
            scale=1e3,
            cores="one",
            rounds=7 if is_quick else 15,
            seconds=0.2,
        )
    ]
