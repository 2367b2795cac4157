"""The service that samehost's rows of payloads and streams call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator  # noqa: TC003 - the service reads its annotations

import samehost
import samehost.aio

service = samehost.Service("bench")


@service.method
async def echo(text: str) -> str:
    return text


@service.method
async def take(data: samehost.Blob) -> int:
    return len(data)


@service.method
async def take_bytes(data: bytes) -> int:
    return len(data)


@service.method
async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@service.method
async def texts(text: str, count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield text


@service.method
async def take_numbers(items: AsyncIterator[int]) -> int:
    count = 0
    async for _ in items:
        count += 1
    return count


@service.method
async def take_texts(items: AsyncIterator[str]) -> int:
    count = 0
    async for _ in items:
        count += 1
    return count


@service.method
async def take_all(items: AsyncIterator[bytes]) -> int:
    size = 0
    async for item in items:
        size += len(item)
    return size


class Bench(samehost.Client):
    """The methods whose cost for a single call counts, declared as users do."""

    def echo(self, text: str) -> str:
        raise NotImplementedError

    def take(self, data: samehost.Blob) -> int:
        raise NotImplementedError

    def take_bytes(self, data: bytes) -> int:
        raise NotImplementedError

    def numbers(self, count: int) -> Iterator[int]:
        raise NotImplementedError

    def texts(self, text: str, count: int) -> Iterator[str]:
        raise NotImplementedError

    def take_numbers(self, items: Iterator[int]) -> int:
        raise NotImplementedError

    def take_texts(self, items: Iterator[str]) -> int:
        raise NotImplementedError

    def take_all(self, items: Iterator[bytes]) -> int:
        raise NotImplementedError


class AsyncBench(samehost.aio.Client):
    """The same for asyncio."""

    def numbers(self, count: int) -> AsyncIterator[int]:
        raise NotImplementedError

    def texts(self, text: str, count: int) -> AsyncIterator[str]:
        raise NotImplementedError

    async def take_numbers(self, items: AsyncIterator[int]) -> int:
        raise NotImplementedError

    async def take_texts(self, items: AsyncIterator[str]) -> int:
        raise NotImplementedError


def serve(path: str, *_: str) -> None:
    import uvloop

    uvloop.run(samehost.aio.serve(service, path))
