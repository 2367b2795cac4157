"""A round trip of 64 bytes: a typed call for samehost, and what the peers have instead, one after the other."""

from __future__ import annotations

from bench.harness import OWN, Row, Table

C = Row("c", "C, blocking send and recv", "C", "ping_pong serve", "ping_pong call")

UVLOOP = Row("own", "samehost: a typed call, uvloop", OWN, "bench.own.echo:serve", "bench.own.calls:call")
ASYNCIO = Row(
    "own-asyncio", "samehost: a typed call, asyncio", OWN, "bench.own.echo:serve_asyncio", "bench.own.calls:call"
)
BUSY = Row(
    "own-busy",
    "samehost: a typed call, busy waiting on both sides",
    OWN,
    "bench.own.echo:serve_busy",
    "bench.own.calls:call_busy",
)
BESIDE_BLOBS = Row(
    "own-beside-blobs",
    "samehost: a typed call, beside methods with blobs",
    OWN,
    "bench.own.service:serve",
    "bench.own.calls:call_beside_blobs",
)
BOTH_ASYNCIO = Row(
    "own-both",
    "samehost: a typed call, uvloop on both sides",
    OWN,
    "bench.own.echo:serve",
    "bench.own.calls:call_asyncio",
)

PROCESSES = Row(
    "processes",
    "multiprocessing.connection, bytes",
    "multiprocessing.connection",
    "bench.peers.processes:serve",
    "bench.peers.processes:call",
)
ZEROMQ = Row("zmq", "pyzmq REQ/REP, bytes", "pyzmq", "bench.peers.zeromq:serve", "bench.peers.zeromq:call")
GO = Row("go", "Go net/rpc, typed", "Go net/rpc", "net_rpc serve", "net_rpc call")
GRPC = Row("grpc", "grpcio, bytes as messages", "grpcio", "bench.peers.grpc_bytes:serve", "bench.peers.grpc_bytes:call")

ESSENTIAL = (
    Row("plain", "Python sockets, blocking", "Python sockets", "bench.peers.plain:serve", "bench.peers.plain:call"),
    PROCESSES,
    GO,
    ZEROMQ,
    GRPC,
)
OTHERS = (
    Row(
        "streams-uvloop",
        "asyncio streams in uvloop, both sides",
        "asyncio streams",
        "bench.peers.streams:serve",
        "bench.peers.streams:call",
        ("uvloop",),
    ),
    Row(
        "streams",
        "asyncio streams, both sides",
        "asyncio streams",
        "bench.peers.streams:serve",
        "bench.peers.streams:call",
        ("asyncio",),
    ),
    Row("nng", "pynng Req0/Rep0, bytes", "pynng", "bench.peers.nng:serve", "bench.peers.nng:call"),
    Row("rpyc", "rpyc, a method", "rpyc", "bench.peers.remote_objects:serve", "bench.peers.remote_objects:call"),
    Row("aiohttp", "aiohttp, HTTP/1.1", "aiohttp", "bench.peers.http:serve_aiohttp", "bench.peers.http:call"),
    Row("uvicorn", "uvicorn, HTTP/1.1", "uvicorn", "bench.peers.http:serve_uvicorn", "bench.peers.http:call"),
    Row(
        "grpc-aio",
        "grpc.aio, bytes as messages",
        "grpcio",
        "bench.peers.grpc_bytes:serve_aio",
        "bench.peers.grpc_bytes:call_aio",
    ),
)


def tables(is_quick: bool) -> list[Table]:
    others = () if is_quick else OTHERS
    rounds = 9 if is_quick else 21
    return [
        Table(
            "one-core",
            "A call with a string of 64 bytes, both processes on one core",
            (C, UVLOOP, ASYNCIO, *(() if is_quick else (BESIDE_BLOBS, BOTH_ASYNCIO)), *ESSENTIAL, *others),
            cores="one",
            rounds=rounds,
        ),
        Table(
            "two-cores",
            "A call with a string of 64 bytes, a core each",
            (C, BUSY, UVLOOP, *(() if is_quick else (ASYNCIO, BOTH_ASYNCIO)), *ESSENTIAL, *others),
            rounds=rounds,
        ),
    ]
