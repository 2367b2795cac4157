"""Busy waiting of the client for threads."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
from serving import serving
from support import DEADLINE, until

import samehost
from samehost import errors, limits, testing
from samehost.blocking.outbox import Outbox
from samehost.blocking.spinning import Spinner

LONGEST = limits.BUSY_WAIT_SECONDS_MAX
DONT_WAIT = (int(socket.MSG_DONTWAIT),)
ROOM = (100,)

service = samehost.Service("spinning")


@service.method
async def echo(text: str) -> str:
    return text


@service.method
def echo_in_thread(text: str) -> str:
    return text


@service.method
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a core that nobody else wants, however many other tests run."""
    monkeypatch.setattr("samehost.blocking.spinning.gave_way", lambda: False)
    monkeypatch.setattr("samehost.blocking.spinning._HELD_UP_SECONDS", math.inf)


class Receiving:
    """A spinner on one end of two, whose looks are counted, and what comes before each look."""

    def __init__(self, near: socket.socket, seconds: float = LONGEST) -> None:
        self.near = near
        self.looks = 0
        self.outbox = Outbox(near)
        self.arrived: list[bytes] = []
        self.spinner = Spinner(self.receive, (DONT_WAIT,), self.arrived, self.outbox, seconds)

    def receive(self, room: int, flags: int) -> bytes:
        self.looks += 1
        self.before_look()
        return self.near.recv(room, flags)

    def before_look(self) -> None: ...


@pytest.fixture
def ends() -> Iterator[tuple[Receiving, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield Receiving(near), far


def test_what_is_there_is_kept(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, far = ends
    far.send(b"answer")
    assert receiving.spinner.look(ROOM)
    assert receiving.arrived == [b"answer"]
    assert receiving.looks == 1


def test_what_comes_meanwhile_is_kept(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, far = ends
    receiving.before_look = lambda: receiving.looks == 20 and far.send(b"answer")  # type: ignore[method-assign]
    assert receiving.spinner.next(ROOM, lambda: pytest.fail("it slept")) == ()
    assert receiving.arrived == [b"answer"]
    assert receiving.looks == 20


def test_in_vain_it_sleeps_and_looks_again_once_more_was_sent(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, _ = ends
    assert receiving.spinner.next(ROOM, lambda: [b"woken"]) == [b"woken"]
    before = receiving.looks
    assert before > 1
    assert not receiving.spinner.look(ROOM)
    assert receiving.looks == before
    receiving.outbox.send([(b"call", ())])
    assert not receiving.spinner.look(ROOM)
    assert receiving.looks > before


def test_after_a_few_times_in_vain_it_does_not_look_at_all(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, _ = ends
    for _ in range(limits.BUSY_WAITS_IN_VAIN):
        receiving.outbox.send([(b"call", ())])
        assert not receiving.spinner.look(ROOM)
    before = receiving.looks
    receiving.outbox.send([(b"call", ())])
    assert not receiving.spinner.look(ROOM)
    assert receiving.looks == before


def test_answers_at_once_do_not_speak_for_looking(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, far = ends
    for _ in range(limits.BUSY_WAITS_IN_VAIN):
        receiving.outbox.send([(b"call", ())])
        assert not receiving.spinner.look(ROOM)
        before = receiving.looks
    far.send(b"answer")
    receiving.spinner._allowance.rests_until = 0.0
    receiving.outbox.send([(b"call", ())])
    assert receiving.spinner.look(ROOM)
    assert receiving.looks == before + 1
    receiving.outbox.send([(b"call", ())])
    assert not receiving.spinner.look(ROOM)
    assert receiving.spinner._allowance.rests_until > time.monotonic()


def test_the_end_and_a_fault_are_told(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, far = ends
    far.close()
    assert receiving.spinner.look(ROOM)
    assert receiving.arrived == [b""]
    receiving.near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receiving.spinner.look(ROOM)


def test_a_signal_handler_can_end_it_and_nothing_is_lost(ends: tuple[Receiving, socket.socket]) -> None:
    receiving, far = ends

    class StoppedError(Exception): ...

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError

    def before_look() -> None:
        if receiving.looks == 20:
            far.send(b"answer")
            os.kill(os.getpid(), signal.SIGUSR1)

    receiving.before_look = before_look  # type: ignore[method-assign]
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(StoppedError):
            receiving.spinner.look(ROOM)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert receiving.arrived == [b"answer"] or (receiving.spinner.look(ROOM) and receiving.arrived == [b"answer"])


@pytest.fixture
def address() -> Iterator[str]:
    with testing.serving(service, busy_wait=0.001) as address:
        yield address


def test_calls_are_as_ever(address: str) -> None:
    with samehost.connect(address, busy_wait=0.001) as client:
        for number in range(200):
            assert client.echo(str(number)) == str(number)
            assert client.echo_in_thread(str(number)) == str(number)
        assert list(client.map("echo", map(str, range(1000)))) == list(map(str, range(1000)))
        with pytest.raises(errors.InvalidArguments):
            client.echo(5)


@pytest.mark.parametrize("busy_wait", [0, 0.001])
def test_long_answers_and_short_ones_in_turn(address: str, busy_wait: float) -> None:
    with samehost.connect(address, busy_wait=busy_wait) as client:
        for size in (1, 80_000, 250_000, 1, 250_000, *[1] * (limits.LONG_READS_KEPT + 1), 250_000):
            assert client.echo("x" * size) == "x" * size


def test_threads_share_a_connection_that_is_waited_for_busily(address: str) -> None:
    with samehost.connect(address, busy_wait=LONGEST) as client, ThreadPoolExecutor(4) as pool:

        def calls(thread: int) -> list[str]:
            return [client.echo(f"{thread} {number}") for number in range(50)]

        for thread, found in enumerate(pool.map(calls, range(4))):
            assert found == [f"{thread} {number}" for number in range(50)]


@pytest.mark.parametrize("timeout", [0.005, 0.015, 0.05])
def test_deadlines_hold(address: str, timeout: float) -> None:
    with samehost.connect(address, busy_wait=LONGEST) as client:
        for _ in range(3):
            with pytest.raises(errors.DeadlineExceeded):
                client.call("slow", DEADLINE, timeout=timeout)
        assert client.echo("and on") == "and on"


def test_a_slow_method_costs_no_more_than_the_allowance(address: str) -> None:
    seconds, calls = 0.05, 12
    with samehost.connect(address, busy_wait=LONGEST) as client:
        began, used = time.monotonic(), time.thread_time()
        for _ in range(calls):
            assert client.slow(seconds) == "slept"
        used, passed = time.thread_time() - used, time.monotonic() - began
    allowed = (limits.BUSY_WAITS_IN_VAIN + 1) * LONGEST + limits.BUSY_WAIT_SHARE * passed
    assert used < allowed + calls * 0.002  # which is more than twelve calls can cost
    assert allowed + calls * 0.002 < calls * LONGEST  # and less than without an allowance


def test_closing_wakes_whoever_waits(address: str) -> None:
    with samehost.connect(address, busy_wait=LONGEST) as client:
        begun = threading.Event()

        def call() -> Exception | None:
            begun.set()
            try:
                client.slow(DEADLINE)
            except errors.ConnectionClosed as error:
                return error
            return None

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(call)
            begun.wait()
            client.close()
            assert isinstance(waiting.result(DEADLINE), errors.ConnectionClosed)


def test_a_time_that_cannot_be_waited_busily() -> None:
    with pytest.raises(errors.UsageError, match="busy_wait"):
        samehost.connect("nobody", busy_wait=1.0)


def run_nanoseconds(pid: int) -> int:
    """How long the first thread of a process has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def is_asleep(pid: int) -> bool:
    before = run_nanoseconds(pid)
    time.sleep(LONGEST / 2)
    return run_nanoseconds(pid) == before


def test_a_server_without_calls_sleeps(place: Path) -> None:
    with serving(place / "s", "every_type:every", "--busy-wait", "0.02") as server:
        with samehost.connect(str(place / "s"), busy_wait=0.001) as client:
            client.call("samehost.health")
            until(lambda: is_asleep(server.pid), "it sleeps, with a client that does not call")
            before = run_nanoseconds(server.pid)
            client.call("samehost.health")
            assert run_nanoseconds(server.pid) > before
        until(lambda: is_asleep(server.pid), "it sleeps again")
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_the_command_takes_no_more_than_can_be(place: Path) -> None:
    with (
        pytest.raises(AssertionError, match="busy_wait is from 0"),
        serving(place / "s", "every_type", "--busy-wait", "1"),
    ):
        pass
