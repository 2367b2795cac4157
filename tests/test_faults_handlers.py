"""The faults of a service's methods and of its end, each driven for real, in both formats; a number is the row."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import re
import signal
import time
import weakref
from pathlib import Path

import msgspec
import pytest
from raw_clients import FORMATS, Answer, Frames
from served import served, start
from support import DEADLINE, until

import samehost
import samehost.aio
from samehost.aio.session import Session
from samehost.errors import Cancelled, DeadlineExceeded, InternalError, Unavailable, Unsent

in_both_formats = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.format)

# 31: a handler raises, any exception

WHERE = ["fail_at_once", "fail_after_a_wait", "fail_in_thread", "fail_inline"]

INTERNAL = [
    *("ValueError", "KeyError", "OSError", "TimeoutError", "MemoryError", "RecursionError", "ExceptionGroup"),
    *("SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration", "BaseException"),
    *("Silent", "Declared", "chained"),
]

UNSENDABLE = ["unencodable", "empty", "deep", "odd code"]


@in_both_formats
@pytest.mark.parametrize("where", WHERE)
def test_31_whatever_a_method_raises_is_internal_and_found_in_the_log_by_its_id(place, kind, where):
    with served(place) as server, kind(server.path) as client:
        for what in INTERNAL + UNSENDABLE:
            answer = client.call(where, [what])
            assert (answer.kind, answer.code) == ("error", "internal"), what
            assert re.fullmatch("[0-9a-f]{8}", answer.error_id)
            assert answer.message in (
                "the method failed",
                "the method's result cannot be sent",
                "the method's error cannot be sent",
            )
            logged = server.log.split(f"{where} failed [{answer.error_id}], called by uid {os.getuid()}")[1]
            assert "Traceback (most recent call last):" in logged
            if what in INTERNAL:
                assert ", in explode" in logged
            assert client.call("echo", [what]).value == what
        client.close()
        server.assert_clean(new_threads=1)


@in_both_formats
@pytest.mark.parametrize("where", WHERE)
def test_31_a_method_that_raises_cancelled_by_itself_is_cancelled(place, kind, where):
    with served(place) as server, kind(server.path) as client:
        answer = client.call(where, ["CancelledError"])
        assert (answer.kind, answer.code, answer.error_id) == ("error", "cancelled", "")
        assert "secret" not in answer.message
        assert client.call("echo", [1]).value == 1
        client.close()
        server.assert_clean(new_threads=1)


@in_both_formats
@pytest.mark.parametrize("where", WHERE)
def test_31_a_notification_that_raises_is_logged_and_the_connection_lives(place, kind, where):
    with served(place) as server, kind(server.path) as client:
        for what in INTERNAL + UNSENDABLE + ["CancelledError"]:
            client.send(client.notification(where, [what]))
        assert client.call("echo", [1]).value == 1
        until(lambda: server.in_flight() == 0, "all have ended")
        for what in ("ValueError", "SystemExit", "Silent"):
            assert f"{what}: " in server.log or what in server.log
        client.close()
        server.assert_clean(new_threads=32)


def test_31_a_good_client_raises_the_same_and_can_be_used_on(place):
    with served(place) as server, samehost.connect(server.path) as client:
        for where in WHERE:
            with pytest.raises(InternalError) as raised:
                client.call(where, "SystemExit")
            assert raised.value.error_id in server.log
            assert "secret" not in str(raised.value)
            with pytest.raises(Cancelled):
                client.call(where, "CancelledError")
        assert client.echo(value=5) == 5


# 32: a handler hangs, or swallows its cancel


@in_both_formats
def test_32_a_method_that_hangs_is_ended_at_its_deadline_and_its_slot_is_free(place, kind):
    with served(place) as server, kind(server.path) as client:
        for _ in range(2):
            began = time.monotonic()
            calls = [client.begin("nap", [3600], 200) for _ in range(256)]
            assert client.begin("echo", [1])
            assert client.answer().code == "busy"
            answers = [client.answer() for _ in calls]
            assert {answer.call_id for answer in answers} == set(calls)
            assert {(answer.kind, answer.code) for answer in answers} == {("error", "deadline_exceeded")}
            assert 0.19 < time.monotonic() - began < 3
            assert client.call("echo", [1]).value == 1
        client.close()
        server.assert_clean()


@in_both_formats
def test_32_a_call_whose_time_is_up_before_it_was_its_turn_is_not_begun(place, kind):
    with served(place) as server, kind(server.path) as client:
        # So many notifications are at work that what comes with them is held back.
        late, in_time, cancelled = (client.next_id() for _ in range(3))
        client.send(
            client.notification("nap", [0.5]) * 256,
            client.call_bytes(late, "hang", [], 100),
            client.call_bytes(in_time, "echo", [1], 10_000),
            client.call_bytes(cancelled, "hang"),
            client.cancel(cancelled),
        )
        answers = [client.answer()[:4] for _ in range(3)]
        assert [answer for answer in answers if answer[1] == late] == [("error", late, None, "deadline_exceeded")]
        assert [answer for answer in answers if answer[1] == in_time] == [("reply", in_time, 1, "")]
        assert [answer for answer in answers if answer[1] == cancelled] == [("error", cancelled, None, "cancelled")]
        assert "hang" not in server.stats()["methods"]
        client.close()
        server.assert_clean()


@in_both_formats
def test_32_a_method_that_swallows_its_cancellation_is_answered_and_reported(place, kind):
    with served(place, limits={"CANCEL_SECONDS": 0.2}) as server, kind(server.path) as client:
        began = time.monotonic()
        answer = client.call("stubborn", [], 100)
        assert (answer.kind, answer.code) == ("error", "deadline_exceeded")
        assert time.monotonic() - began < 2
        assert client.call("echo", [1]).value == 1  # its slot is free
        stats = server.stats()
        assert (stats["uncancellable"], stats["methods"]["stubborn"]["in_flight"]) == (1, 1)
        report = server.log[server.log.index("stubborn, called by") :]
        assert "goes on 0.2 s after it was told to end (deadline_exceeded)" in report
        assert "in stubborn" in report  # where it hangs
        server.assert_others_are_served()
        with kind(server.path) as another:
            another.call("release")
        until(lambda: server.stats()["uncancellable"] == 0, "it has ended")
        client.close()
        server.assert_clean()


@in_both_formats
def test_32_a_thread_that_hangs_is_answered_at_the_deadline_and_reported(place, kind):
    with served(place, threads_max=2, limits={"CANCEL_SECONDS": 0.2}) as server, kind(server.path) as client:
        began = time.monotonic()
        calls = [client.begin("hang_in_thread", [str(number)], 100) for number in range(2)]
        assert {server.program.line() for _ in calls} == {"began 0", "began 1"}
        calls.append(client.begin("hang_in_thread", ["it never begins"], 100))
        for call_id in calls:
            answer = client.answer()
            assert (answer.kind, answer.call_id, answer.code) == ("error", call_id, "deadline_exceeded")
        assert time.monotonic() - began < 2
        assert client.call("echo", [1]).value == 1
        until(lambda: server.stats()["uncancellable"] == 3, "they are reported")
        assert "goes on 0.2 s after it was told to end (deadline_exceeded), in a thread" in server.log
        client.call("release_threads")
        assert {server.program.line().split()[1] for _ in range(2)} == {"0", "1"}
        assert client.call("doze", [0, "a thread is free"]).value == "a thread is free"
        until(lambda: server.stats()["uncancellable"] == 0, "they have ended")
        client.close()
        server.assert_clean(new_threads=1)


@in_both_formats
def test_32_a_host_that_has_no_thread_left_fails_the_call_and_not_the_server(place, kind):
    with served(place) as server, kind(server.path) as client:
        calls = [client.begin("doze", [0.3, number]) for number in range(2)]
        until(lambda: server.status("Threads") >= 4, "a second one has begun")
        assert {client.answer().call_id for _ in calls} == set(calls)
        assert client.call("starve").kind == "reply"
        calls = [client.begin("doze", [0.01, number]) for number in range(5)]  # those that there are do them
        assert {client.answer()[:2] for _ in calls} == {("reply", call_id) for call_id in calls}
        assert client.call("feed").kind == "reply"
        client.close()
        server.assert_clean(new_threads=32)
    with start(place) as (_, path, _), kind(path) as client:
        assert client.call("starve").kind == "reply"
        assert client.call("doze", [0]).code == "internal"  # there is none
        assert client.call("feed").kind == "reply"
        assert client.call("doze", [0, "now"]).value == "now"
        assert client.call("samehost.health").value["in_flight"] == 1  # this one itself


def test_32_a_good_client_gets_deadline_exceeded_and_can_be_used_on(place):
    with served(place) as server, samehost.connect(server.path) as client:
        for method in ("nap", "doze"):
            with pytest.raises(DeadlineExceeded):
                client.call(method, 0.5, timeout=0.1)
        assert client.call("echo", 1) == 1


# 33: the event loop is blocked


@in_both_formats
def test_33_a_blocked_loop_is_reported_with_its_stack(place, kind):
    with served(place, limits={"LOOP_BLOCKED_SECONDS": 0.2}) as server, kind(server.path) as client:
        for count in (1, 2):
            call_id = client.begin("block", [1.0])
            assert server.program.line() == "blocked"
            until(lambda count=count: server.log.count("held up for 0.2 s") == count, "it is reported")
            assert client.answer() == Answer("reply", call_id, None)
        assert server.log.count("in block") == 2  # the place, once for each time
        client.close()
        server.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_33_a_second_signal_ends_a_server_whose_loop_is_blocked(place, number):
    with start(place) as (program, path, _), Frames(path) as client:
        client.begin("block", [DEADLINE])
        assert program.line() == "blocked"
        program.signal(number)
        until(lambda: not signals_pending(program.pid), "it got the first one")
        program.signal(number)
        assert program.process.wait(5) == -number
        assert not path.exists()


def signals_pending(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:")))


# 35: SIGTERM mid-call


@in_both_formats
@pytest.mark.parametrize("method", ["nap", "doze"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_35_calls_in_flight_are_answered_and_idle_clients_are_told_at_once(place, kind, method, number):
    with served(place) as server, kind(server.path) as client, kind(server.path) as idle, kind(server.path) as new:
        assert idle.call("echo", [1]).value == 1
        call_id = client.begin(method, [0.5, "done"])
        until(lambda: server.in_flight() == 1, "it has begun")
        began = time.monotonic()
        server.program.signal(number)
        told = idle.rest()
        assert [(answer.kind, answer.code) for answer in told] == [("goaway", "draining")]
        assert told[0].call_id == 1
        assert [answer.kind for answer in new.rest()] in ([], ["goaway"])  # it may not have said anything yet
        assert time.monotonic() - began < 0.3
        until(lambda: not server.path.exists(), "the path is removed", 0.3)
        assert client.answer()[:4] == ("goaway", call_id, None, "draining")
        refused = client.begin("echo", [1])
        assert client.answer()[:4] == ("error", refused, None, "draining")
        assert client.answer() == Answer("reply", call_id, "done")
        assert client.rest() == []
        assert server.program.end() == 0
        assert os.listdir(place) == ["log"]


@in_both_formats
def test_35_a_second_signal_ends_at_once(place, kind):
    with served(place) as server, kind(server.path) as client:
        client.begin("nap", [3600])
        client.begin("hang_in_thread")
        until(lambda: server.in_flight() == 2, "they have begun")
        server.program.signal(signal.SIGTERM)
        assert client.answer().kind == "goaway"
        server.program.signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.program.end() == -signal.SIGTERM
        assert time.monotonic() - began < 1
        assert client.rest() == []
        assert os.listdir(place) == ["log"]


@in_both_formats
@pytest.mark.parametrize("method", ["nap", "hang_in_thread", "stubborn"])
def test_35_a_method_that_does_not_end_is_cut_off_after_the_drain_time(place, kind, method):
    with served(place, drain=0.2, limits={"DRAIN_CUT_SECONDS": 0.3}) as server, kind(server.path) as client:
        call_id = client.begin(method, [3600] if method == "nap" else [])
        until(lambda: server.in_flight() == 1, "it has begun")
        began = time.monotonic()
        server.program.signal(signal.SIGTERM)
        assert client.answer().kind == "goaway"
        answer = client.answer()
        assert (answer.kind, answer.call_id, answer.code) == ("error", call_id, "unavailable")
        assert time.monotonic() - began > 0.15
        assert client.rest() == []
        assert server.program.end() == 0
        assert time.monotonic() - began < 3
        assert os.listdir(place) == ["log"]


@in_both_formats
@pytest.mark.parametrize("method", ["nap", "doze"])
def test_35_notifications_in_progress_are_finished_too(place, kind, method):
    with served(place) as server, kind(server.path) as client:
        client.send(client.notification(method, [0.5]))
        until(lambda: server.in_flight() == 1, "it has begun")
        began = time.monotonic()
        server.program.signal(signal.SIGTERM)
        assert [answer.kind for answer in client.rest()] == ["goaway"]
        assert server.program.end() == 0
        assert time.monotonic() - began > 0.4
        assert "cut off" not in server.log
        assert "does not end" not in server.log


@in_both_formats
def test_35_calls_that_cross_the_going_away_are_answered_or_known_to_be_unsent(place, kind):
    for _ in range(2):
        with served(place) as server, kind(server.path) as client:
            calls = []
            os_said = None
            client.begin("block", [0.1])
            assert server.program.line() == "blocked"
            server.program.signal(signal.SIGTERM)
            try:
                while True:
                    calls.append(client.begin("echo", [len(calls)]))
            except OSError as error:
                os_said = error
            answers = client.rest()
            [going] = [answer for answer in answers if answer.kind == "goaway"]
            replies = {answer.call_id: answer for answer in answers if answer.kind == "reply"}
            for number, call_id in enumerate(calls):
                if call_id <= going.call_id:
                    assert replies[call_id].value == number
                else:
                    assert call_id not in replies
            assert isinstance(os_said, BrokenPipeError | ConnectionResetError)
            assert server.program.end() == 0


def test_35_a_good_client_loses_no_call_unaware(place):
    with served(place, drain=5.0) as server, samehost.connect(server.path) as client:
        assert client.call("echo", 1) == 1
        server.program.signal(signal.SIGTERM)

        def call_on():
            for number in itertools.count():
                assert client.call("echo", number) == number

        with pytest.raises((Unsent, Unavailable)):  # and not OutcomeUnknown
            call_on()
        assert server.program.end() == 0


async def test_35_a_good_client_in_a_loop_loses_no_call_unaware(place):
    with served(place, drain=5.0) as server:
        async with await samehost.aio.connect(server.path) as client:
            assert await client.call("echo", 1) == 1
            late = asyncio.create_task(client.call("nap", 0.3, "late"))
            while not await asyncio.to_thread(server.in_flight):
                pass
            server.program.signal(signal.SIGTERM)

            async def call_on():
                for number in itertools.count():
                    assert await client.call("double", number) == 2 * number

            with pytest.raises((Unsent, Unavailable)):  # and not OutcomeUnknown
                await call_on()
            assert await late == "late"
        assert server.program.end() == 0


# The same, in this very loop, to look inside and to be exact about the order of things.


class Load(msgspec.Struct, weakref=True):
    data: str


class Inside:
    """A service in the loop of the test."""

    def __init__(self, path):
        self.path = path
        self.service = samehost.Service("inside")
        self.kept = []

        @self.service.method
        async def double(number: int) -> int:
            return 2 * number

        @self.service.method
        async def late(number: int) -> int:
            await asyncio.sleep(0.01)
            return number

        @self.service.method
        async def waits(load: Load) -> Load:
            return await self._keep(load)

        @self.service.method
        async def waits_and_fails(load: Load) -> None:
            await self._keep(load)
            raise ValueError(load)

        @self.service.method
        def in_thread(load: Load) -> Load:
            self.kept.append(weakref.ref(load))
            return load

        @self.service.method
        def in_thread_and_fails(load: Load) -> None:
            self.kept.append(weakref.ref(load))
            raise ValueError(load)

    async def _keep(self, load):
        self.kept.append(weakref.ref(load))
        await asyncio.sleep(0.001)
        return load

    async def __aenter__(self):
        ready = asyncio.Event()
        self.tasks_before = asyncio.all_tasks()
        self.task = asyncio.create_task(samehost.aio.serve(self.service, self.path, drain=1.0, ready=ready.set))
        await ready.wait()
        return self

    async def __aexit__(self, *_):
        if not self.task.done():
            signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(self.task, DEADLINE)
        assert asyncio.all_tasks() <= self.tasks_before


@in_both_formats
@pytest.mark.parametrize("method", ["double", "late"])
@pytest.mark.parametrize("turns", range(8))
async def test_35_a_call_that_comes_in_any_turn_of_the_loop_after_the_signal_is_answered_or_unsent(
    place, kind, method, turns
):
    async with Inside(place / "s") as inside:
        with kind(inside.path) as client:
            client.socket.settimeout(0.001)
            client.send(client.call_bytes(1, "double", [4]))
            while True:
                await asyncio.sleep(0)
                try:
                    assert client.answer() == Answer("reply", 1, 8)
                    break
                except TimeoutError:
                    continue
            signal.raise_signal(signal.SIGTERM)
            for _ in range(turns):
                await asyncio.sleep(0)
            sent = True
            try:
                client.send(client.call_bytes(3, method, [21]))
            except BrokenPipeError:
                sent = False
            await asyncio.wait_for(inside.task, DEADLINE)
            answers = {answer.kind: answer for answer in client.rest()}
            accepted = answers["goaway"].call_id
            assert accepted == 1 or sent
            if accepted == 3:
                assert answers["reply"] == Answer("reply", 3, 42 if method == "double" else 21), answers


@pytest.mark.parametrize("method", ["waits", "waits_and_fails", "in_thread", "in_thread_and_fails"])
async def test_31_nothing_of_a_call_is_kept_once_it_is_over(place, method, caplog):
    # Not even until the garbage is collected, which may take long, and an argument may have megabytes.
    caplog.set_level(logging.CRITICAL, "samehost")  # or what is logged would be kept by the test's own handler
    async with Inside(place / "s") as inside, await samehost.aio.connect(inside.path) as client:
        gc.disable()
        try:
            for _ in range(3):
                with contextlib.suppress(InternalError):
                    await client.call(method, {"data": "x"})
            await asyncio.to_thread(until, lambda: not any(reference() for reference in inside.kept), "nothing is kept")
            assert len(inside.kept) == 3
        finally:
            gc.enable()


@in_both_formats
@pytest.mark.parametrize("ending", ["between frames", "mid-frame", "mid-call", "with a fault"])
async def test_15_nothing_of_a_connection_is_kept_once_it_is_over(place, kind, ending):
    def sessions():
        return [found for found in gc.get_objects() if isinstance(found, Session)]

    async def make_one(path):
        with kind(path) as client:
            call = client.call_bytes(1, "waits", {"load": {"data": "x"}})
            client.send({"between frames": call, "mid-frame": call[:-1], "mid-call": call}.get(ending, call * 2))
            if ending == "between frames":
                assert (await asyncio.to_thread(client.answer)).kind == "reply"

    gc.collect()  # what other tests have left in cycles
    async with Inside(place / "s") as inside:
        gc.disable()
        try:
            for _ in range(5):
                await make_one(inside.path)
            # The server has the last one at hand until the next one comes.
            await asyncio.to_thread(until, lambda: len(sessions()) == 1, "nothing is kept", 5.0)
        finally:
            gc.enable()
