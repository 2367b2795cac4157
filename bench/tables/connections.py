"""Many connections to one server: a call under way on each, or most of them idle."""

from __future__ import annotations

from bench.harness import OWN, Row, Table
from bench.tables.round_trips import UVLOOP

COUNTS = (1, 8, 64, 512)
IDLE = 10_000
AT_A_TIME = "connections, a call under way on each"


def tables(is_quick: bool) -> list[Table]:
    busy = [
        Table(
            f"connections-{count}",
            f"{count} {AT_A_TIME}, a core each" if count > 1 else "1 connection, a call under way on it, a core each",
            _calling(str(count)),
            unit="µs a call",
            rate=("thousand a second", 1e-3),
            rounds=5,
            seconds=0.3,
            of=(AT_A_TIME, count),
        )
        for count in (() if is_quick else COUNTS)
    ]
    return [*busy, _idle_memory(is_quick), _idle_latency(is_quick)]


def _calling(count: str) -> tuple[Row, ...]:
    peers = "bench.peers"
    return (
        Row("own", "samehost: typed calls", OWN, "bench.own.echo:serve_many", "bench.own.calls:call_many", (count,)),
        Row(
            "plain",
            "Python sockets, epoll",
            "Python sockets",
            f"{peers}.plain:serve_many",
            f"{peers}.plain:call_many",
            (count,),
        ),
        Row(
            "streams",
            "asyncio streams in uvloop",
            "asyncio streams",
            f"{peers}.streams:serve",
            f"{peers}.streams:call_many",
            ("uvloop", count),
        ),
        Row("go", "Go net/rpc, typed", "Go net/rpc", "net_rpc serve", "net_rpc call_many", (count,)),
        Row("zmq", "pyzmq REQ/REP", "pyzmq", f"{peers}.zeromq:serve", f"{peers}.zeromq:call_many", (count,)),
        Row(
            "aiohttp",
            "aiohttp, HTTP/1.1",
            "aiohttp",
            f"{peers}.http:serve_aiohttp",
            f"{peers}.http:call_many",
            (count,),
        ),
        Row(
            "grpc", "grpc.aio", "grpcio", f"{peers}.grpc_bytes:serve_aio", f"{peers}.grpc_bytes:call_many_aio", (count,)
        ),
    )


def _idle_memory(is_quick: bool) -> Table:
    rows = [
        Row(
            "own",
            "samehost, uvloop",
            OWN,
            "bench.own.echo:serve_many",
            "bench.own.idle:memory",
            (str(IDLE),),
        )
    ]
    if not is_quick:
        rows.append(
            Row(
                "streams",
                "asyncio streams in uvloop",
                "asyncio streams",
                "bench.peers.streams:serve",
                "bench.peers.streams:memory",
                ("uvloop", str(IDLE)),
            )
        )
    return Table(
        "idle-memory",
        f"Memory of the server for each of {IDLE:,} idle connections (USS)",
        tuple(rows),
        unit="bytes",
        scale=1,
        rounds=1,
        seconds=5,
    )


def _idle_latency(is_quick: bool) -> Table:
    beside = "bench.own.idle:call_beside"
    return Table(
        "idle-latency",
        "A call with a string of 64 bytes beside idle connections, both processes on one core",
        (
            Row("alone", "samehost: one connection", OWN, UVLOOP.serve, beside, ("0",)),
            Row(
                "beside",
                f"samehost: beside {IDLE:,} idle connections",
                OWN,
                "bench.own.echo:serve_many",
                beside,
                (str(IDLE),),
            ),
        ),
        cores="one",
        rounds=7 if is_quick else 15,
        set_up_seconds=8,
    )
