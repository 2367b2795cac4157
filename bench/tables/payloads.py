"""Payloads from a client to a server: with a short answer to each, and one way; and beyond 256 KiB, blobs."""

from __future__ import annotations

from dataclasses import replace

from bench.harness import OWN, Row, Table

KIB = 1024
MIB = 1024 * KIB
SIZES = (KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB)
ANSWERED = "payloads, each with a short answer"
ONE_WAY = "payloads one way"

PLAIN = Row(
    "raw", "raw socket: sendall, recv_into", "Python sockets", "bench.peers.plain:serve_sink", "bench.peers.plain:send"
)
BYTES = Row("own", "samehost: bytes of a typed call", OWN, "bench.own.service:serve", "bench.own.payloads:send_bytes")
PROCESSES = Row(
    "processes",
    "multiprocessing.connection, bytes",
    "multiprocessing.connection",
    "bench.peers.processes:serve_sink",
    "bench.peers.processes:send",
)
ZEROMQ = Row("zmq", "pyzmq REQ/REP, copy=False", "pyzmq", "bench.peers.zeromq:serve_sink", "bench.peers.zeromq:send")

WITH_ANSWER = (PLAIN, BYTES, PROCESSES, ZEROMQ)
STREAMED = (
    Row(
        "raw",
        "raw socket: sendall, recv_into",
        "Python sockets",
        "bench.peers.plain:serve_one_way",
        "bench.peers.plain:send_one_way",
    ),
    Row("own", "samehost: a stream of bytes", OWN, "bench.own.service:serve", "bench.own.payloads:send_one_way"),
    Row(
        "processes",
        "multiprocessing.connection, bytes",
        "multiprocessing.connection",
        "bench.peers.processes:serve_one_way",
        "bench.peers.processes:send_one_way",
    ),
)
LARGE = (
    PLAIN,
    Row(
        "blob", "samehost: a blob, written in place", OWN, "bench.own.service:serve", "bench.own.payloads:send_in_place"
    ),
    Row("copied", "samehost: a blob, with one copy", OWN, "bench.own.service:serve", "bench.own.payloads:send_copied"),
    Row("memcpy", "memcpy within a process", "Python", None, "bench.peers.plain:copy_here"),
    BYTES,
    PROCESSES,
    ZEROMQ,
)


def tables(is_quick: bool) -> list[Table]:
    sizes = (KIB, 64 * KIB) if is_quick else SIZES
    found = [
        Table(
            f"{key}-{size}",
            f"{of[0].upper()}{of[1:]}: {size // KIB} KiB, a core each",
            _of_size(rows, size),
            rate=("MB/s", size / 1e6),
            rounds=5 if is_quick else 7,
            of=(of, size),
            set_up_seconds=2,
        )
        for key, of, rows in (("answered", ANSWERED, WITH_ANSWER), ("one-way", ONE_WAY, STREAMED))
        for size in sizes
    ]
    return [*found, *(_large(size) for size in (() if is_quick else (MIB, 64 * MIB)))]


def _large(size: int) -> Table:
    return Table(
        f"large-{size}",
        f"A payload of {size // MIB} MiB, a core each",
        _of_size(LARGE, size),
        unit="ms",
        scale=1e3,
        rate=("MB/s", size / 1e6),
        rounds=7,
        seconds=0.15 if size == MIB else 0.3,
    )


def _of_size(rows: tuple[Row, ...], size: int) -> tuple[Row, ...]:
    return tuple(replace(row, arguments=(str(size),)) for row in rows)
