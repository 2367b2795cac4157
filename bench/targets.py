"""What samehost is held to, as ratios to others in the same run wherever that can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.tables.payloads import KIB, SIZES
from bench.tables.streams import WHATS

if TYPE_CHECKING:
    from bench.harness import Result

KB = 1024


@dataclass(frozen=True)
class Target:
    """A bound on a figure of a row, or on its ratio to another row of the table.

    Args:
        what: what people read.
        table, row: whose median it is about.
        bound: what it has to keep to.
        against: a row of the same table, for a ratio; None for the row's own figure.
        is_rate: so many a second, or times as many as the other; otherwise a time, or a part of the other's.
        is_least: whether the bound is the least or the most.
        unit: of a figure that is no ratio.
    """

    what: str
    table: str
    row: str
    bound: float
    against: str | None = None
    is_rate: bool = False
    unit: str = ""

    @property
    def text(self) -> str:
        """The bound, for people."""
        times = " times" if self.against else ""
        return f"at {'least' if self.is_rate else 'most'} {self.bound:,g}{times} {self.unit}".strip()


@dataclass(frozen=True)
class Judgement:
    """A target, what was measured, or why it was not."""

    target: Target
    label: str
    value: float | None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.target.what + (f" ({self.label})" if self.label else "")

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target.bound if self.target.is_rate else self.value <= self.target.bound

    @property
    def shown(self) -> str:
        """What was measured, for people."""
        if self.value is None:
            return self.reason
        if self.target.against:
            return f"{self.value:.2f} times"
        return f"{self.value:,.{0 if self.value >= 1000 else 2}f} {self.target.unit}".strip()

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.is_met]


ONE_CORE = "One core, a typed call, "
PIPELINED = "Pipelined, one client, two cores, "

TARGETS = (
    Target(f"{ONE_CORE}uvloop, to C ping-pong", "one-core", "own", 2.0, "c"),
    Target(f"{ONE_CORE}plain asyncio, to C ping-pong", "one-core", "own-asyncio", 2.5, "c"),
    Target(f"{ONE_CORE}to multiprocessing.connection, bytes", "one-core", "own", 0.9, "processes"),
    Target(f"{ONE_CORE}to pyzmq REQ/REP", "one-core", "own", 0.45, "zmq"),
    Target(f"{ONE_CORE}to Go net/rpc", "one-core", "own", 0.65, "go"),
    Target(f"{ONE_CORE}to grpcio", "one-core", "own", 0.05, "grpc"),
    Target("Two cores, busy waiting on both sides, to C blocking", "two-cores", "own-busy", 0.2, "c"),
    Target(f"{PIPELINED}calls a second", "pipelined", "own", 250_000, is_rate=True, unit="a second"),
    Target(f"{PIPELINED}to pyzmq DEALER/ROUTER", "pipelined", "own", 2.5, "zmq", is_rate=True),
    Target(f"{PIPELINED}to Go net/rpc", "pipelined", "own", 2.0, "go", is_rate=True),
    *(
        Target(
            f"System calls, one send and one receive of the {side}", "system-calls", f"one_by_one-{side}-messages", 2.05
        )
        for side in ("client", "server")
    ),
    *(
        Target(f"System calls when pipelined, all of the {side}", "system-calls", f"under_way-{side}-all", 0.5)
        for side in ("client", "server")
    ),
    Target("10,000 idle connections, memory each in the server", "idle-memory", "own", 6 * KB, unit="bytes"),
    Target("10,000 idle connections, a call beside them to one alone", "idle-latency", "beside", 1.2, "alone"),
    *(
        Target(f"Streams, {text}, {client}", "streams", f"own-{what}{suffix}", 500_000, is_rate=True, unit="a second")
        for what, text in WHATS.items()
        for client, suffix in (("blocking", ""), ("asyncio", "-asyncio"))
    ),
    *(
        Target(
            f"Payloads of {size // KIB} KiB {text}, to a raw socket", f"{kind}-{size}", "own", 0.8, "raw", is_rate=True
        )
        for kind, text in (("answered", "with an answer each"), ("one-way", "one way"))
        for size in SIZES
    ),
    Target("Start-up of samehost call, to python -c pass", "start-up", "call", 5.0, "pass"),
)


def judge(results: list[Result], labels: list[str]) -> list[Judgement]:
    """Hold what was measured against the targets, for the rows of this interpreter and of those with these labels."""
    by_key = {result.table.key: result for result in results}
    return [
        _judge(target, by_key[target.table], label)
        for label in ("", *labels)
        for target in TARGETS
        if target.table in by_key
    ]


def _judge(target: Target, result: Result, label: str) -> Judgement:
    medians = []
    for key in (f"{target.row}:{label}" if label else target.row, target.against):
        if key is None:
            continue
        measured = result.get(f"{key}:{label}" if label and key == "alone" else key)
        if measured is None:
            return Judgement(target, label, None, "not in this run")
        if measured.missing is not None:
            return Judgement(target, label, None, f"{measured.row.name}: {measured.missing}")
        medians.append(measured.median)
    if not target.is_rate:
        return Judgement(target, label, medians[0] / medians[1] if target.against else medians[0])
    return Judgement(target, label, medians[1] / medians[0] if target.against else 1 / medians[0])
