"""For tests in an event loop: the loops that each has to pass in, and a way to wait in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from support import DEADLINE

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

uvloop.new_event_loop().close()  # the first one opens a pipe for the whole process, which no test is to be blamed for

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait for what no event announces, while the loop goes on."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE} s: {what or condition}") from None
