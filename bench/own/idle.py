"""What samehost's connections cost that do nothing: memory in the server, and time of the calls beside them.

Each of them has made a call before it falls idle, as those of users have.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import samehost
import samehost.aio
from bench.memory import allow_descriptors, private_bytes
from bench.own.calls import call
from bench.own.echo import AsyncEcho, Echo, loop_runner
from bench.side import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]

WARM_UP = 100


async def _connect(path: str, count: int) -> list[AsyncEcho]:
    clients = []
    for _ in range(count):
        client = await samehost.aio.connect(path, AsyncEcho, wait=10)
        await client.echo(TEXT)
        clients.append(client)
    return clients


@contextmanager
def memory(path: str, connections: str) -> Iterator[Run]:
    """Bytes in the server for each connection."""
    allow_descriptors(int(connections))
    with samehost.connect(path, Echo, wait=10) as client, loop_runner() as runner:
        assert client.peer is not None
        pid = client.peer.pid
        idle = runner.run(_connect(path, WARM_UP))

        def run(_seconds: float) -> list[float]:
            client.collect_garbage()
            before = private_bytes(pid)
            idle.extend(runner.run(_connect(path, int(connections) - WARM_UP)))
            client.collect_garbage()
            return [(private_bytes(pid) - before) / (int(connections) - WARM_UP)]

        try:
            yield run
        finally:
            for each in idle:
                each.close()


@contextmanager
def hold(path: str, connections: str) -> Iterator[Run]:
    """Connections that do nothing, from a process of their own."""
    allow_descriptors(int(connections))
    with loop_runner() as runner:
        idle = runner.run(_connect(path, int(connections)))
        yield lambda _seconds: [len(idle)]
        for each in idle:
            each.close()


@contextmanager
def call_beside(path: str, connections: str) -> Iterator[Run]:
    command = [sys.executable, "-m", "bench.side", "call", "bench.own.idle:hold", path, connections]
    allow_descriptors(int(connections))
    with call(path) as run:
        if connections == "0":
            yield run
            return
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline().startswith(b"ready"), "the idle connections could not be made"
            yield run
            holder.stdin.close()
