"""Many calls under way on one connection: a window of 128."""

from __future__ import annotations

from bench.harness import OWN, Row, Table
from bench.side import WINDOW

ESSENTIAL = (
    Row("own", "samehost: typed calls, map", OWN, "bench.own.echo:serve", "bench.own.calls:pipeline"),
    Row(
        "own-tasks",
        "samehost: typed calls, asyncio, a task each",
        OWN,
        "bench.own.echo:serve",
        "bench.own.calls:pipeline_asyncio",
    ),
    Row(
        "processes",
        "multiprocessing.connection, bytes",
        "multiprocessing.connection",
        "bench.peers.processes:serve",
        "bench.peers.processes:pipeline",
    ),
    Row("go", "Go net/rpc, typed", "Go net/rpc", "net_rpc serve", "net_rpc pipeline"),
    Row(
        "zmq",
        "pyzmq DEALER/ROUTER, bytes",
        "pyzmq",
        "bench.peers.zeromq:serve_router",
        "bench.peers.zeromq:pipeline",
    ),
)
OTHERS = (
    Row(
        "rpyc",
        "rpyc, a method by async_",
        "rpyc",
        "bench.peers.remote_objects:serve",
        "bench.peers.remote_objects:pipeline",
    ),
    Row(
        "grpc-aio",
        "grpc.aio, bytes as messages, a task each",
        "grpcio",
        "bench.peers.grpc_bytes:serve_aio",
        "bench.peers.grpc_bytes:pipeline_aio",
    ),
)


def tables(is_quick: bool) -> list[Table]:
    return [
        Table(
            "pipelined",
            f"The same, {WINDOW} calls under way on a connection, a core each",
            ESSENTIAL if is_quick else ESSENTIAL + OTHERS,
            unit="µs a call",
            rate=("thousand a second", 1e-3),
            rounds=7 if is_quick else 15,
            seconds=0.3,
        )
    ]
