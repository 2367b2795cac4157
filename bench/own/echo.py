"""The service that samehost's rows of single calls use, and the ways to serve it: one method, with a string.

A service whose methods have neither files nor blobs takes none, and reads by recv(2) rather than recvmsg(2); what the
latter costs is a row of its own, by `service`.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import sys
from typing import Any

import samehost
import samehost.aio
from bench.memory import allow_descriptors

BUSY_WAIT_SECONDS = 0.001

service = samehost.Service("echo")


@service.method
async def echo(text: str) -> str:
    return text


@service.method
async def collect_garbage() -> None:
    gc.collect()


class Echo(samehost.Client):
    """The methods, declared as users do."""

    def echo(self, text: str) -> str:
        raise NotImplementedError

    def collect_garbage(self) -> None:
        raise NotImplementedError


class AsyncEcho(samehost.aio.Client):
    """The same for asyncio."""

    async def echo(self, text: str) -> str:
        raise NotImplementedError


def serve(path: str, *_: str, **options: Any) -> None:
    import uvloop

    uvloop.run(samehost.aio.serve(service, path, **options))


def serve_asyncio(path: str, *_: str) -> None:
    asyncio.run(samehost.aio.serve(service, path))


def serve_busy(path: str, *_: str) -> None:
    serve(path, busy_wait=BUSY_WAIT_SECONDS)


def serve_many(path: str, connections: str) -> None:
    """Serve more connections than a user may have otherwise."""
    allow_descriptors(int(connections))
    serve(path, connections_max=int(connections) + 10, connections_per_uid_max=int(connections) + 10)


def loop_runner() -> asyncio.Runner:
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    from importlib.metadata import version

    print(f"samehost {version('samehost')}, Python {sys.version.split()[0]} ({platform.python_compiler()})")
