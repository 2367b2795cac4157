"""Services under load: ten thousand calls in flight, a thousand reconnects, a million calls, and nothing left of them.

The million is made where SAMEHOST_TEST_CALLS asks for it (CONTRIBUTING.md); fifty thousand otherwise.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Program, python, until

import samehost
from samehost import aio

CALLS = int(os.environ.get("SAMEHOST_TEST_CALLS", "50000"))
CONNECTIONS = 100
CALLS_EACH = 100
RESTARTS = 100
RECONNECTS = 800

SERVER = """
    import asyncio, gc, os, signal, sys, threading
    import samehost

    service = samehost.Service("loaded")
    gate = threading.Event()
    opened = None

    @service.method
    async def plus_later(number: int) -> int:
        global opened
        opened = opened or asyncio.Event()
        await opened.wait()
        return number + 1

    @service.method
    def plus_in_thread(number: int) -> int:
        gate.wait()
        return number + 2

    @service.method
    async def plus(number: int) -> int:
        return number + 3

    @service.method(inline=True)
    def plus_inline(number: int) -> int:
        return number + 4

    @service.method
    async def release() -> None:
        global opened
        gate.set()
        opened.set()
        opened = None

    @service.method(inline=True)
    def close_the_gate() -> None:
        gate.clear()

    @service.method
    async def figures() -> dict[str, int]:
        gc.collect()
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
            "objects": len(gc.get_objects()),
            "blocks": sys.getallocatedblocks(),
            "kib": int(status["VmRSS"].split()[0]),
        }

    def serve():
        samehost.serve(service, sys.argv[1])

    if len(sys.argv) == 2:
        serve()
        raise SystemExit
    samehost.serve, samehost.aio.serve  # imported once, and not by every child
    child = None
    for line in sys.stdin:  # each names the signal that ends the server that is there; then there is a new one
        if child is not None:
            os.kill(child, int(line))
            os.waitpid(child, 0)
        child = os.fork()
        if child == 0:
            serve()
            os._exit(0)
        print(child, flush=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def here(loop: asyncio.AbstractEventLoop | None = None) -> dict[str, int]:
    """The figures of this process, as the server gives its own."""
    gc.collect()
    [kib] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks(loop)),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "kib": int(kib.split()[1]),
    }


def assert_no_growth(before: dict[str, int], after: dict[str, int]) -> None:
    """Nothing that is counted has grown by more than what caches and the allocator do."""
    print(before, after, sep="\n")
    for name in ("descriptors", "tasks", "threads"):
        assert after[name] <= before[name], (name, before, after)
    assert after["objects"] < before["objects"] + 200, (before, after)
    assert after["blocks"] < before["blocks"] + 1000, (before, after)
    assert after["kib"] < before["kib"] + 8 * 1024, (before, after)


def the_server(place: Path, *more: str) -> Program:
    return python(SERVER, str(place / "s"), *more)


async def quiet_figures(client: Any) -> dict[str, int]:
    """The server's figures, once every other connection is gone there too, and every call of theirs."""

    async def others() -> int:
        health = await client.call("samehost.health")
        return int(health["connections"] + health["in_flight"] - 2)

    async with asyncio.timeout(DEADLINE):
        while await others():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
    found: dict[str, int] = await client.figures()
    return found


# Ten thousand at once

METHODS = ("plus_later", "plus_in_thread", "plus", "plus_inline")


async def hold_many(address: str) -> None:
    """Have all calls in flight at once, let go of them, and look at every answer."""
    clients = [await aio.connect(address, timeout=None) for _ in range(CONNECTIONS)]
    async with await aio.connect(address) as watching:
        await watching.close_the_gate()
        calls = [
            asyncio.ensure_future(clients[number // CALLS_EACH].call(METHODS[number % 4], number))
            for number in range(CONNECTIONS * CALLS_EACH)
        ]
        waiting = sum(number % 4 < 2 for number in range(len(calls)))
        async with asyncio.timeout(DEADLINE):
            while (await watching.call("samehost.health"))["in_flight"] < waiting + 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert sum(call.done() for call in calls) <= len(calls) - waiting
        await watching.release()
    assert await asyncio.gather(*calls) == [number + number % 4 + 1 for number in range(len(calls))]
    for client in clients:
        client.close()


async def test_ten_thousand_calls_in_flight_get_their_own_answers(place: Path) -> None:
    with the_server(place) as server:
        async with await aio.connect(place / "s", wait=DEADLINE) as client:
            await hold_many(str(place / "s"))
            before, before_here = await quiet_figures(client), here()
            await hold_many(str(place / "s"))
            assert_no_growth(before, await quiet_figures(client))
            assert_no_growth(before_here, here())
            assert before["threads"] <= samehost.limits.THREADS_MAX + 2
        server.signal(15)
        assert server.end() == 0


# A thousand reconnects


async def restart_many(client: Any, keeper: Program, times: int) -> None:
    """Have the server killed and told to end in turn, with a call after each."""
    for number in range(times):
        keeper.tell("9" if number % 2 else "15")
        pid = int(await asyncio.to_thread(keeper.line))
        assert await client.plus(number) == number + 3
        assert client.peer.pid == pid


async def test_a_thousand_reconnects_leave_nothing(place: Path) -> None:
    with the_server(place, "again") as keeper:
        keeper.tell("")
        keeper.line()
        async with await aio.connect(place / "s", wait=DEADLINE) as client:
            await restart_many(client, keeper, 10)
            before = here()
            await restart_many(client, keeper, RESTARTS)
            assert_no_growth(before, here())
            await reconnect_many(str(place / "s"), 50)
            before, before_here = await quiet_figures(client), here()
            await reconnect_many(str(place / "s"), RECONNECTS)
            assert_no_growth(before, await quiet_figures(client))
            assert_no_growth(before_here, here())
        await asyncio.to_thread(reconnect_threads, str(place / "s"), RESTARTS)
        keeper.process.stdin.close()
        assert keeper.end() == 0


async def reconnect_many(address: str, times: int) -> None:
    """Connect, call and close, some with a call in flight."""
    for number in range(times):
        async with await aio.connect(address) as client:
            assert await client.plus(number) == number + 3
            if number % 2:
                with pytest.raises(samehost.errors.DeadlineExceeded):
                    await client.call("plus_later", number, timeout=0.001)


def reconnect_threads(address: str, times: int) -> None:
    for number in range(times):
        with samehost.connect(address) as client:
            assert client.plus(number) == number + 3


# A million in a row


@pytest.mark.timeout(60 + CALLS // 1000)
@pytest.mark.parametrize("front", ["threads", "asyncio"])
async def test_as_many_calls_in_a_row_as_there_is_time_for(place: Path, front: str) -> None:
    each = CALLS // 2
    with the_server(place) as server:
        if front == "asyncio":
            async with await aio.connect(place / "s", wait=DEADLINE) as client:
                await call_many(client, max(2000, each // 10))
                before, before_here = await quiet_figures(client), here()
                await call_many(client, each)
                assert_no_growth(before, await quiet_figures(client))
                assert_no_growth(before_here, here())
        else:
            await asyncio.to_thread(call_many_from_a_thread, place / "s", each, asyncio.get_running_loop())
        server.signal(15)
        assert server.end() == 0


async def call_many(client: Any, times: int) -> None:
    for number in range(times):
        if await client.plus(number) != number + 3:
            raise AssertionError(f"call {number} got another one's answer")


def call_many_from_a_thread(address: Path, times: int, loop: asyncio.AbstractEventLoop) -> None:
    with samehost.connect(address, wait=DEADLINE) as client:

        def call_some(count: int) -> None:
            for number in range(count):
                if client.plus(number) != number + 3:
                    raise AssertionError(f"call {number} got another one's answer")

        call_some(max(2000, times // 10))
        until(lambda: client.call("samehost.health")["connections"] == 1, "nobody else is connected")
        before, before_here = client.figures(), here(loop)
        call_some(times)
        assert_no_growth(before, client.figures())
        assert_no_growth(before_here, here(loop))
