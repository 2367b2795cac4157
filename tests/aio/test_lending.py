"""Streams of large blobs: a slow reader has a few of them out, and whoever keeps them gets them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from loops import LOOPS
from stream_clients import serving_in
from support import until

import samehost
from samehost import limits
from samehost.aio.lending import Loan
from samehost.kernel.arena import Block, the_arena
from samehost.kernel.attaching import Encoded

MIB = 1 << 20
SIZE = 4 * MIB
BOUND = 8 * MIB
METHODS = ["on_loop", "in_thread", "inline", "as_bytes"]


class Seen:
    """What the methods have made."""

    made = 0


@pytest.fixture
def path(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("samehost.aio.lending._BYTES_MAX", BOUND)
    Seen.made = 0
    service = samehost.Service("lending")

    def frame(which: int, size: int) -> samehost.Blob:
        Seen.made += 1
        made = samehost.allocate(size)
        made.view[0] = which
        return made

    @service.method
    async def on_loop(number: int, size: int) -> AsyncIterator[samehost.Blob]:
        for which in range(number):
            yield frame(which, size)

    @service.method
    def in_thread(number: int, size: int) -> Iterator[samehost.Blob]:
        for which in range(number):
            yield frame(which, size)

    @service.method(inline=True)
    def inline(number: int, size: int) -> Iterator[samehost.Blob]:
        for which in range(number):
            yield frame(which, size)

    @service.method
    async def as_bytes(number: int, size: int) -> AsyncIterator[samehost.Blob]:
        for which in range(number):
            Seen.made += 1
            yield samehost.Blob(bytes([which]) * size)

    @service.method
    async def count(number: int) -> AsyncIterator[int]:
        for which in range(number):
            yield which

    with serving_in(request.param, service, place / "s"):
        yield place / "s"


@pytest.fixture(autouse=True)
def nothing_lent() -> Iterator[None]:
    yield
    until(lambda: the_arena().used_bytes == 0, "all memory came back")


in_both_loops = pytest.mark.parametrize("path", LOOPS, indirect=True)
with_all_methods = pytest.mark.parametrize("method", METHODS)


@in_both_loops
@with_all_methods
def test_a_slow_reader_has_a_few_of_them_out(path: Path, method: str) -> None:
    with samehost.connect(path) as client:
        most = 0
        for number, frame in enumerate(client.call(method, number=20, size=SIZE)):
            assert frame.view[0] == number
            list(client.call("count", number=100))  # which goes on meanwhile
            most = max(most, the_arena().used_bytes)
            assert Seen.made <= number + 5
        del frame
        assert number == 19
        assert most <= BOUND + 2 * SIZE  # one is looked at, and one was made ahead


@in_both_loops
@with_all_methods
def test_two_travel_however_large_they_are(path: Path, method: str) -> None:
    with samehost.connect(path) as client, client.call(method, number=10, size=2 * BOUND) as stream:
        next(stream).release()
        until(lambda: Seen.made == 4, "two are out, and one is made ahead")
        list(client.call("count", number=100))
        assert Seen.made == 4
        assert [frame.view[0] for frame in stream] == list(range(1, 10))


@in_both_loops
@with_all_methods
def test_one_who_keeps_them_gets_all_without_waiting(path: Path, method: str) -> None:
    async def listed() -> int:
        async with await samehost.aio.connect(path) as client:
            return len([frame async for frame in await client.call(method, number=20, size=SIZE)])

    began = time.monotonic()
    with samehost.connect(path) as client:
        assert [frame.view[0] for frame in list(client.call(method, number=20, size=SIZE))] == list(range(20))
    assert asyncio.run(listed()) == 20
    assert time.monotonic() - began < limits.STREAM_BLOBS_SECONDS


@in_both_loops
@with_all_methods
def test_one_who_does_not_read_gets_no_further_one(path: Path, method: str) -> None:
    with samehost.connect(path) as client, client.call(method, number=20, size=SIZE) as stream:
        frame = next(stream)
        until(lambda: Seen.made >= 3, "as many as there may be are out")
        time.sleep(0.3)
        assert Seen.made <= 5
        del frame
        stream.close()


class Alarm:
    """A loop that has one timer."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, object]] = []

    def call_later(self, seconds: float, callback: object) -> Alarm:
        self.timers.append((seconds, callback))
        return self

    def cancel(self) -> None:
        self.timers.pop()

    def ring(self) -> float:
        seconds, callback = self.timers.pop()
        callback()  # type: ignore[operator]
        return seconds


class Part(Block):
    """A block of no memory."""

    def __init__(self, byte_count: int) -> None:
        self.byte_count = byte_count

    def __del__(self) -> None:
        pass


def lend(loan: Loan, shares: int = 1, byte_count: int = limits.STREAM_BLOBS_BYTES_MAX, sealed_bytes: int = 0) -> None:
    loan.lend(Encoded(b"", (), {share: Part(byte_count) for share in range(shares)}, 0, sealed_bytes))
    loan.sent()


def test_one_who_saves_up_credit_gets_another_one_now_and_then() -> None:
    alarm, gone_on = Alarm(), []
    loan = Loan(alarm, lambda: gone_on.append(loan.may_grow))  # type: ignore[arg-type]
    lend(loan)
    assert loan.may_grow  # as two may be out
    lend(loan)
    assert not loan.may_grow
    for seconds in (1, 2, 4):
        loan.wait()
        loan.wait()
        assert alarm.ring() == seconds
        assert loan.may_grow
        lend(loan)
        assert not loan.may_grow
    assert gone_on == [True] * 3
    loan.wait()
    loan.returned(limits.STREAM_BLOBS_BYTES_MAX)  # which he may still have
    assert not alarm.timers
    loan.wait()
    assert alarm.ring() == 1


def test_one_who_returns_credit_at_once_is_never_waited_for_in_vain() -> None:
    alarm = Alarm()
    loan = Loan(alarm, lambda: None)  # type: ignore[arg-type]
    for _ in range(3):
        lend(loan)
    loan.taken(limits.WINDOW_ITEMS - 2)
    assert not loan.may_grow  # there are two that he has not taken
    loan.wait()
    assert not alarm.timers
    loan.taken(limits.WINDOW_ITEMS)
    assert loan.may_grow
    lend(loan)
    assert not loan.may_grow


def test_sealed_copies_count_until_they_are_taken() -> None:
    loan = Loan(Alarm(), lambda: None)  # type: ignore[arg-type]
    loan.sent()  # something small
    for _ in range(2):
        lend(loan, 0, 0, limits.STREAM_BLOBS_BYTES_MAX)
    assert not loan.may_grow
    loan.taken(limits.WINDOW_ITEMS - 2)
    assert loan.byte_count == 2 * limits.STREAM_BLOBS_BYTES_MAX
    loan.taken(limits.WINDOW_ITEMS - 1)
    assert loan.byte_count == limits.STREAM_BLOBS_BYTES_MAX
    assert loan.may_grow
