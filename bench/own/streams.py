"""samehost's streams of small items, in either direction, by a blocking client and by one for asyncio."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

import samehost
import samehost.aio
from bench.own.echo import loop_runner
from bench.own.service import AsyncBench, Bench
from bench.side import TEXT, each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Run = Callable[[float], list[float]]

ITEMS = 20_000


@contextmanager
def call(path: str, what: str) -> Iterator[Run]:
    with samehost.connect(path, Bench, wait=10) as client:
        batch = {
            "numbers": lambda: sum(1 for _ in client.numbers(ITEMS)),
            "texts": lambda: sum(1 for _ in client.texts(TEXT, ITEMS)),
            "take_numbers": lambda: client.take_numbers(iter(range(ITEMS))),
            "take_texts": lambda: client.take_texts(repeat(TEXT, ITEMS)),
            "take_texts_of_generator": lambda: client.take_texts(TEXT for _ in range(ITEMS)),
        }[what]
        assert batch() == ITEMS
        yield partial(each, batch)


@contextmanager
def call_asyncio(path: str, what: str) -> Iterator[Run]:
    async def numbers() -> AsyncIterator[int]:
        for number in range(ITEMS):
            yield number

    async def texts() -> AsyncIterator[str]:
        for _ in range(ITEMS):
            yield TEXT

    async def count(items: AsyncIterator[object]) -> int:
        number = 0
        async for _ in items:
            number += 1
        return number

    with loop_runner() as runner, runner.run(samehost.aio.connect(path, AsyncBench, wait=10)) as client:
        batch = {
            "numbers": lambda: count(client.numbers(ITEMS)),
            "texts": lambda: count(client.texts(TEXT, ITEMS)),
            "take_numbers": lambda: client.take_numbers(numbers()),
            "take_texts": lambda: client.take_texts(texts()),
        }[what]
        assert runner.run(batch()) == ITEMS
        yield partial(each, lambda: runner.run(batch()))
