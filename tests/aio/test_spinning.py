"""Busy waiting in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest
from aio.test_wire import Owner, settled
from loops import Run, eventually

import samehost
import samehost.aio
from samehost import errors, limits
from samehost.aio.spinning import Spinner, SpinningWire

LONGEST = limits.BUSY_WAIT_SECONDS_MAX


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a core that nobody else wants, however many other tests run."""
    monkeypatch.setattr("samehost.aio.spinning.gave_way", lambda: False)
    monkeypatch.setattr("samehost.aio.spinning._HELD_UP_SECONDS", math.inf)


class Ends:
    """A spinner, two wires that it looks after, and the peers' sockets."""

    def __init__(self, seconds: float = LONGEST) -> None:
        self.is_due = True
        loop = asyncio.get_running_loop()
        self.spinner = Spinner(loop, seconds, lambda: self.is_due)
        self.owners = [Owner(), Owner()]
        self.fars: list[socket.socket] = []
        self.wires: list[SpinningWire] = []
        for owner in self.owners:
            near, far = socket.socketpair()
            owner.wire = wire = SpinningWire(self.spinner, loop, near, owner)
            self.wires.append(wire)
            self.fars.append(far)
            wire.read()

    def close(self) -> None:
        for wire, far in zip(self.wires, self.fars, strict=True):
            wire.close()
            far.close()


@contextlib.asynccontextmanager
async def joined() -> AsyncIterator[Ends]:
    ends = Ends()
    try:
        yield ends
    finally:
        ends.close()
        await eventually(lambda: not ends.spinner.is_turning)


def test_it_turns_after_a_read_and_after_a_send_and_stops(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            ends.owners[0].when_received = lambda: told.append(ends.spinner.is_turning)
            told: list[bool] = []
            assert not ends.spinner.is_turning
            ends.wires[0].send([(b"call", ())])
            assert ends.spinner.is_turning
            await eventually(lambda: not ends.spinner.is_turning)
            ends.fars[0].send(b"call")
            await eventually(lambda: told == [False])
            assert ends.spinner.is_turning
            await eventually(lambda: not ends.spinner.is_turning)

    run(main())


def test_the_loop_does_not_sleep_while_it_turns(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            turns = 0
            ends.wires[0].send([(b"call", ())])
            while ends.spinner.is_turning:
                await asyncio.sleep(0)
                turns += 1
            assert turns > 5

    run(main())


def test_others_and_timers_are_served_while_it_turns(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            seen: list[str] = []
            loop = asyncio.get_running_loop()
            ends.owners[1].when_received = lambda: seen.append(f"other {ends.spinner.is_turning}")
            loop.call_later(0, lambda: seen.append(f"timer {ends.spinner.is_turning}"))
            ends.wires[0].send([(b"call", ())])
            ends.fars[1].send(b"from the other")
            while len(seen) < 2 and ends.spinner.is_turning:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert sorted(seen) == ["other True", "timer True"]

    run(main())


def test_it_turns_only_while_there_is_something_to_look_for(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            ends.is_due = False
            ends.wires[0].send([(b"call", ())])
            assert not ends.spinner.is_turning
            ends.is_due = True
            ends.wires[0].send([(b"call", ())])
            assert ends.spinner.is_turning
            ends.is_due = False
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not ends.spinner.is_turning
            ends.is_due = True
            ends.wires[0].send([(b"call", ())])
            assert ends.spinner.is_turning

    run(main())


def test_an_answer_that_ends_what_is_looked_for_ends_the_turning(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:

            def answered() -> None:
                ends.is_due = False

            ends.owners[0].when_received = answered
            ends.wires[0].send([(b"call", ())])
            await asyncio.sleep(0)
            ends.fars[0].send(b"answer")
            await eventually(lambda: not ends.is_due)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not ends.spinner.is_turning
            assert monotonic() >= ends.spinner._allowance.rests_until

    run(main())


def test_it_rests_once_it_has_looked_in_vain_too_often(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            for _ in range(limits.BUSY_WAITS_IN_VAIN):
                ends.wires[0].send([(b"call", ())])
                await eventually(lambda: not ends.spinner.is_turning)
            ends.wires[0].send([(b"call", ())])
            assert not ends.spinner.is_turning
            ends.fars[0].send(b"call")
            await eventually(lambda: ends.owners[0].data)
            assert not ends.spinner.is_turning

    run(main())


def test_what_is_found_by_looking_lets_it_look_again(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            for _ in range(limits.BUSY_WAITS_IN_VAIN - 2):
                ends.wires[0].send([(b"call", ())])
                await eventually(lambda: not ends.spinner.is_turning)
            ends.wires[0].send([(b"call", ())])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert ends.spinner.is_turning
            ends.fars[0].send(b"answer")
            await eventually(lambda: ends.owners[0].data)
            for _ in range(limits.BUSY_WAITS_IN_VAIN - 2):
                await eventually(lambda: not ends.spinner.is_turning)
                ends.wires[0].send([(b"call", ())])
            assert ends.spinner.is_turning

    run(main())


def test_nothing_is_read_from_who_is_not_to_be_read(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            ends.wires[0].send([(b"call", ())])
            ends.wires[0].pause()
            ends.fars[0].send(b"not yet")
            await eventually(lambda: not ends.spinner.is_turning)
            assert not ends.owners[0].data
            ends.wires[0].read()
            await eventually(lambda: ends.owners[0].data == b"not yet")

    run(main())


def test_who_is_closed_or_leaves_while_it_turns(run: Run) -> None:
    async def main() -> None:
        async with joined() as ends:
            ends.wires[0].send([(b"call", ())])
            ends.wires[0].close()
            await eventually(lambda: not ends.spinner.is_turning)
            ends.wires[1].send([(b"call", ())])
            assert ends.fars[1].recv(100) == b"call"
            ends.fars[1].close()
            await eventually(lambda: ends.owners[1].told == ["ended"])
            await eventually(lambda: not ends.spinner.is_turning)
            await settled()

    run(main())


service = samehost.Service("spinning")


@service.method
async def echo(text: str) -> str:
    return text


@service.method
def echo_in_thread(text: str) -> str:
    return text


@service.method
async def ever() -> None:
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def served(place: Path, **options: float) -> AsyncIterator[str]:
    """The service, in a task, with these options."""
    ready, stop = asyncio.Event(), asyncio.Event()
    address = str(place / "s")
    task = asyncio.ensure_future(samehost.aio.serve(service, address, ready=ready.set, stop=stop, **options))
    await ready.wait()
    try:
        yield address
    finally:
        stop.set()
        await task


def test_calls_are_as_ever(run: Run, place: Path) -> None:
    async def main() -> None:
        async with (
            served(place, busy_wait=0.001) as address,
            samehost.aio.connect(address, busy_wait=0.001) as client,
        ):
            for number in range(50):
                assert await client.echo(str(number)) == str(number)
                assert await client.echo_in_thread(str(number)) == str(number)
            texts = [str(number) for number in range(300)]
            assert await asyncio.gather(*map(client.echo, texts)) == texts
            with pytest.raises(errors.DeadlineExceeded):
                await client.call("ever", timeout=0.05)

    run(main())


def test_a_time_that_cannot_be_waited_busily(run: Run, place: Path) -> None:
    async def main() -> None:
        with pytest.raises(errors.UsageError, match="busy_wait"):
            await samehost.aio.serve(service, str(place / "s"), busy_wait=-1)
        with pytest.raises(errors.UsageError, match="busy_wait"):
            await samehost.aio.connect(str(place / "s"), busy_wait=0.5)
        assert not (place / "s").exists()

    run(main())
