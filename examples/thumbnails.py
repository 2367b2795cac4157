"""An image server: PNG pictures made smaller, with nothing but the standard library.

The work is all computing, which one Python process does one piece at a time, so it goes to a pool of processes. Results
are cached; what the pool cannot take soon is refused at once, as `busy`. Try it from a shell::

    python examples/thumbnails.py &
    samehost call thumbnails measure picture=@picture.png
    samehost call thumbnails thumbnail picture=@picture.png size=64 >small.png

What reads and writes PNG is in `png.py`.
"""

import asyncio
import hashlib
import logging
import multiprocessing
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated

import msgspec
import png

import samehost
from samehost.errors import Busy

WORKERS = os.cpu_count() or 1
PENDING_MAX = int(os.environ.get("THUMBNAILS_PENDING_MAX", str(4 * WORKERS)))
"""Pictures that are being worked at or wait for a worker."""

CACHE_BYTES_MAX = 64 * 1024 * 1024

Size = Annotated[int, msgspec.Meta(ge=1, le=512)]


class NotAPicture(samehost.ServiceError):
    """The bytes are no PNG picture, or one of a kind or size that is not served."""

    code = "thumbnails.not_a_picture"


class WorkerDied(samehost.ServiceError):
    """The process that worked at the picture is gone; another picture may fare better."""

    code = "thumbnails.worker_died"


class Dimensions(msgspec.Struct):
    """How large a picture is, in pixels."""

    width: int
    height: int


class Cache:
    """The results used last, up to so many bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._results: OrderedDict[object, bytes] = OrderedDict()

    def get(self, key: object) -> bytes | None:
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def put(self, key: object, result: bytes) -> None:
        if key not in self._results:
            self._bytes += len(result)
        self._results[key] = result
        while self._bytes > self._bytes_max:
            _, oldest = self._results.popitem(last=False)
            self._bytes -= len(oldest)


class Workers:
    """The processes, and how much is pending for them. Used by the event loop alone."""

    def __init__(self) -> None:
        self._pool = new_pool()
        self._pending = 0
        self._loop = asyncio.get_running_loop()

    async def scale(self, picture: bytes, size: int) -> bytes:
        if self._pending >= PENDING_MAX:
            raise Busy(f"{self._pending} pictures are pending already")
        pool = self._pool
        try:
            future = pool.submit(png.scale, picture, size)
        except BrokenProcessPool:
            self._renew(pool)
            future = self._pool.submit(png.scale, picture, size)
        self._pending += 1
        # Not when we are cancelled: a process that works at something goes on until it is done.
        future.add_done_callback(self._done_elsewhere)
        try:
            return await asyncio.wrap_future(future)
        except BrokenProcessPool:
            self._renew(pool)
            raise WorkerDied("the process that worked at the picture is gone") from None

    def _done_elsewhere(self, _: Future[bytes]) -> None:
        self._loop.call_soon_threadsafe(self._done)

    def _done(self) -> None:
        self._pending -= 1

    def _renew(self, broken: ProcessPoolExecutor) -> None:
        if self._pool is broken:
            broken.shutdown(wait=False)
            self._pool = new_pool()

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)


def new_pool() -> ProcessPoolExecutor:
    # Spawned, because forked ones would hold on to our listening socket; and Ctrl-C is for us to handle.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(WORKERS, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


class State(msgspec.Struct):
    """What all calls share."""

    workers: Workers
    cache: Cache


thumbnails = samehost.Service("thumbnails")


@thumbnails.lifespan
async def pool_of_processes() -> AsyncIterator[State]:
    """Start the processes before the first call, and end them after the last."""
    workers = Workers()
    try:
        yield State(workers, Cache(CACHE_BYTES_MAX))
    finally:
        await workers.close()


@thumbnails.method(idempotent=True, timeout=10.0, errors={png.NotServed: NotAPicture.code})
async def thumbnail(picture: bytes, call: samehost.Call, size: Size = 128) -> bytes:
    """Make a PNG picture smaller, so that neither side is longer than `size` pixels; PNG again."""
    state: State = call.state
    key = hashlib.sha256(picture).digest(), size
    small = state.cache.get(key)
    if small is None:
        small = await state.workers.scale(picture, size)
        state.cache.put(key, small)
    return small


@thumbnails.method(inline=True, idempotent=True, errors={png.NotServed: NotAPicture.code})
def measure(picture: bytes) -> Dimensions:
    """Tell how large a PNG picture is."""
    width, height, _ = png.read_header(picture)
    return Dimensions(width, height)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    samehost.serve(thumbnails, *sys.argv[1:2])
