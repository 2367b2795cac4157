"""One suite for every way to call a service: whatever a call means for one of them, it means for the others."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from calling import FRONTS, Asyncio, Front, Interrupted, Lines, NoSuchKey, Point, Threads, everything, samples
from loops import eventually
from support import DEADLINE, Program, kill, python

import samehost
import samehost.aio
from samehost import errors, limits
from samehost.errors import (
    Cancelled,
    ConnectionClosed,
    DeadlineExceeded,
    InternalError,
    InvalidArguments,
    InvalidResult,
    MessageTooLarge,
    MethodNotFound,
    NotPermitted,
    OutcomeUnknown,
    Unsent,
    UsageError,
)
from samehost.testing import serving

SAMPLES = samples()


def fronts_but(left_out: type[Front]) -> pytest.MarkDecorator:
    """For a test that one front end cannot pass."""
    others = [kind for kind in FRONTS if kind is not left_out]
    return pytest.mark.parametrize("front", others, ids=[kind.name for kind in others], indirect=True)


not_lines = fronts_but(Lines)
"""What the encoder of the clients' own refuses, and what they do before anything is sent."""

not_threads = fronts_but(Threads)
"""A thread that waits is interrupted by its deadline, by `close`, or by a signal alone."""


@pytest.fixture(params=FRONTS, ids=[kind.name for kind in FRONTS])
async def front(request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    async with request.param(everything()) as front:
        yield front


# Values


@pytest.mark.parametrize("name", SAMPLES)
async def test_values_of_every_kind_come_back_as_they_went(front: Front, name: str) -> None:
    for value in SAMPLES[name][1]:
        by_name = await front.call(f"echo.{name}", value=value)
        assert (by_name, type(by_name)) == (value, type(value))
        assert await front.call(f"echo.{name}", value) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("integer", "5", r"\$\.value: expected int, got str"),
        ("text", 5, r"\$\.value: expected str, got int"),
        ("items", [1, "a"], r"\$\.value\[1\]: expected int, got str"),
        ("choice", "slower", r"\$\.value: invalid enum value 'slower'"),
        ("colour", "green", r"\$\.value: invalid enum value 'green'"),
        ("moment", "yesterday", r"\$\.value: invalid RFC3339"),
        ("identity", "5", r"\$\.value: invalid UUID"),
        ("point", {"y": 1}, r"\$\.value: object missing required field x"),
        ("shape", {"name": "a", "corners": [{"x": "1"}]}, r"\$\.value\.corners\[0\]\.x: expected int, got str"),
        ("tagged", {"type": "Star"}, r"\$\.value\.type: invalid value 'Star'"),
        ("optional", "x", r"\$\.value: expected int \| null, got str"),
    ],
)
async def test_arguments_of_the_wrong_type_are_refused_with_their_place(
    front: Front, name: str, value: Any, message: str
) -> None:
    with pytest.raises(InvalidArguments, match=message) as caught:
        await front.call(f"echo.{name}", value=value)
    assert (caught.value.code, caught.value.error_id) == ("invalid_arguments", "")
    assert await front.call("times", 2, 3) == 6  # the connection lives


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "required field a|required argument a|missing"),
        ((), {"a": 1, "z": 2}, "unknown field z"),
        ((1, 2, 3), {}, "at most 2|length"),
        ((), {"a": 1, "call": None}, "unknown field call"),
    ],
)
async def test_arguments_that_are_missing_or_too_many_are_refused(
    front: Front, arguments: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArguments, match=message):
        await front.call("defaults", *arguments, **named)


async def test_arguments_go_by_position_by_name_and_by_default(front: Front) -> None:
    assert await front.call("defaults", 1) == [1, 2, "c", 9]
    assert await front.call("defaults", 1, 5) == [1, 5, "c", 9]
    assert await front.call("defaults", a=1) == [1, 2, "c", 9]
    assert await front.call("defaults", b=5, a=1, c="d", d=Point(7)) == [1, 5, "d", 7]
    assert await front.call("only_named", key="ab", times=2) == "abab"
    assert await front.call("nothing") is None


async def test_what_is_keyword_only_is_not_taken_by_position(front: Front) -> None:
    with pytest.raises(InvalidArguments):
        await front.call("only_named", "ab")


@not_lines
async def test_some_arguments_by_position_and_some_by_name(front: Front) -> None:
    assert await front.call("defaults", 1, c="d") == [1, 2, "d", 9]
    with pytest.raises(UsageError, match="too many arguments, or one of them twice"):
        await front.call("defaults", 1, a=2)


@not_lines
async def test_arguments_that_cannot_travel_are_the_callers_mistake(front: Front) -> None:
    with pytest.raises(UsageError, match=r"echo\.anything: an argument cannot travel"):
        await front.call("echo.anything", value=object())


async def test_a_result_of_another_type_than_declared_is_the_servers_mistake(front: Front) -> None:
    with pytest.raises(InvalidResult, match="int"):
        await front.call("lie")


# What a method knows


async def test_a_method_knows_its_caller_and_its_call(front: Front) -> None:
    for method in ("who", "who_in_thread"):
        found = await front.call(method, extra=7)
        assert found["same"]
        assert (found["uid"], found["method"], found["extra"]) == (os.geteuid(), method, 7)
        assert found["context"] == {}
        assert (found["thread"] == "samehost-method") == (method == "who_in_thread")


async def test_what_is_filled_in_cannot_be_sent(front: Front) -> None:
    with pytest.raises(InvalidArguments, match="unknown field peer"):
        await front.call("who", peer=5)


async def test_a_policy_decides_who_calls_a_method(front: Front) -> None:
    assert await front.call("declared") == "allowed"
    with pytest.raises(NotPermitted, match=r"forbidden: .* may not call forbidden, which admits uid"):
        await front.call("forbidden")


async def test_context_is_handed_on_through_nested_calls(front: Front) -> None:
    context = {"trace": "abc", "depth": [1, 2]}
    inner = everything("inner")
    with serving(inner) as address:
        for forward in ("forward", "forward_in_thread"):
            found = await front.call(forward, address, "who", context=context)
            assert (found["method"], found["context"]) == ("who", context)
        assert (await front.call("forward", address, "who"))["context"] == {}


# Errors


async def test_an_error_of_the_services_own_crosses_whole(front: Front) -> None:
    data = {"left": [1, None], "ü": "x"}
    with pytest.raises(samehost.ServiceError) as caught:
        await front.call("refuse", "bank.too_poor", "not enough", data)
    error = caught.value
    assert type(error) is samehost.ServiceError
    assert (error.code, error.message, error.data) == ("bank.too_poor", "not enough", data)
    assert (error.method, error.error_id) == ("refuse", "")
    assert str(error) == "refuse: not enough"


async def test_a_subclass_is_raised_as_that_subclass(front: Front) -> None:
    with pytest.raises(NoSuchKey, match="no lamp") as caught:
        await front.call("refuse_in_thread", "lamp")
    assert caught.value.data == {"key": "lamp"}


async def test_declared_exceptions_cross_under_their_codes(front: Front) -> None:
    for key, code, message in (("lamp", "kv.missing", "lamp"), ("disk", "kv.disk", "the disk is gone")):
        with pytest.raises(samehost.ServiceError) as caught:
            await front.call("look_up", key=key)
        assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize("method", ["break_down", "break_down_in_thread", "break_down_inline"])
@pytest.mark.parametrize("how", ["zero", "exit", "keyboard", "stop", "base", "result"])
async def test_a_method_that_breaks_tells_its_caller_an_id_and_the_log_the_rest(
    front: Front, caplog: pytest.LogCaptureFixture, method: str, how: str
) -> None:
    with pytest.raises(InternalError) as caught:
        await front.call(method, how)
    error = caught.value
    assert error.code == "internal"
    assert "secret" not in str(error)
    assert f"(the server's log has it under {error.error_id})" in str(error)
    [record] = [record for record in caplog.records if error.error_id in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    if how == "base":
        assert isinstance(record.exc_info[1], Interrupted)
    assert await front.call("times", 2, 3) == 6


@pytest.mark.parametrize("method", ["break_down", "break_down_in_thread", "break_down_inline"])
async def test_a_method_that_cancels_itself_says_so(front: Front, method: str) -> None:
    with pytest.raises(Cancelled):
        await front.call(method, "cancel")


async def test_a_method_that_is_not_there(front: Front) -> None:
    for name in ("no_such", "echo", "samehost.secret", "ä"):
        with pytest.raises(MethodNotFound, match=f"there is no method '{name}'") as caught:
            await front.call(name)
        assert caught.value.method == name


# Time


async def test_a_call_ends_with_its_deadline_and_so_does_its_method(front: Front) -> None:
    for method in ("hold", "hold_in_thread"):
        with pytest.raises(DeadlineExceeded):
            await front.call(method, key=method, timeout=0.05)
        await front.until_seen(f"cancelled {method}")
    assert await front.call("times", 2, 3) == 6


async def test_a_methods_own_timeout_holds_however_long_its_caller_would_wait(front: Front) -> None:
    for timeout in (None, 10.0):
        with pytest.raises(DeadlineExceeded):
            await front.call("hold_briefly", key="brief", timeout=timeout)
    await front.until_seen("cancelled brief")


async def test_a_method_knows_how_much_time_is_left(front: Front) -> None:
    assert 4.0 < await front.call("left", timeout=5.0) <= 5.0
    assert await front.call("left", timeout=None) is None


async def test_a_nested_call_gets_no_more_time_than_is_left(front: Front) -> None:
    with serving(everything("inner")) as address:
        for forward in ("forward", "forward_in_thread"):
            assert 3.0 < await front.call(forward, address, "left", timeout=5.0) < 5.0
            assert await front.call(forward, address, "left", 1.0, timeout=5.0) <= 1.0
            assert await front.call(forward, address, "left", timeout=None) is None


@not_lines
async def test_time_that_is_over_lets_nothing_be_sent(front: Front) -> None:
    with pytest.raises(DeadlineExceeded, match=r"log on .*: no answer within 0 s"):
        await front.call("log", "never", timeout=0)
    with pytest.raises(UsageError):
        await front.call("log", "never", timeout=-1)
    assert await front.call("seen") == []


@not_threads
async def test_a_cancelled_call_cancels_its_method(front: Front) -> None:
    for method in ("hold", "hold_in_thread"):
        call = asyncio.ensure_future(front.call(method, key=method))
        await front.until_seen(f"began {method}")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await front.until_seen(f"cancelled {method}")
    assert await front.call("times", 2, 3) == 6


# Notifications


async def test_notifications_are_done_and_not_answered(front: Front) -> None:
    await front.notify("log", "first")
    await front.notify("log", text="second")
    await front.notify("hold_in_thread", key="third")
    for of_no_use in ("no_such", "break_down", "forbidden"):
        await front.notify(of_no_use)
    await front.until_seen("began third")
    assert (await front.call("seen"))[:2] == ["first", "second"]
    await front.call("release")
    await front.until_seen("ended third")


# Many at a time


async def test_many_calls_at_once_get_their_own_answers(front: Front) -> None:
    methods = ("times", "times_in_thread", "times_inline")
    results = await asyncio.gather(*(front.call(methods[number % 3], number, 7) for number in range(240)))
    assert results == [number * 7 for number in range(240)]


async def test_a_call_that_waits_holds_up_no_other(front: Front) -> None:
    waiting = [asyncio.ensure_future(front.call("hold", key=str(number))) for number in range(20)]
    for number in reversed(range(20)):
        await front.until_seen(f"began {number}")
    assert await front.call("times_in_thread", 2, 3) == 6
    await front.call("release")
    assert await asyncio.gather(*waiting) == [str(number) for number in range(20)]


# Sizes


async def test_large_values_pass_in_either_direction(front: Front) -> None:
    room = limits.PAYLOAD_BYTES_MAX - 500
    sizes = (limits.JOIN_BYTES_MAX, limits.RECEIVE_BYTES, 1 << 20, room)
    assert [await front.call("length", "x" * size) for size in sizes] == list(sizes)
    assert [len(await front.call("text_of", size)) for size in sizes] == list(sizes)
    both = await asyncio.gather(*(front.call("echo.text", str(number) * (1 << 20)) for number in range(8)))
    assert both == [str(number) * (1 << 20) for number in range(8)]


async def test_what_is_longer_than_a_message_is_refused_and_the_connection_lives(front: Front) -> None:
    with pytest.raises(MessageTooLarge):
        await front.call("length", "x" * limits.PAYLOAD_BYTES_MAX)
    with pytest.raises(MessageTooLarge, match=f"text_of: the result: .* at most {limits.PAYLOAD_BYTES_MAX}"):
        await front.call("text_of", limits.PAYLOAD_BYTES_MAX)
    with pytest.raises(samehost.ServiceError) as caught:  # whose data are dropped
        await front.call("refuse_largely")
    assert (caught.value.code, caught.value.message, caught.value.data) == ("large", "too much to tell", None)
    assert await front.call("times", 2, 3) == 6


@not_lines
async def test_values_nested_too_deep_are_refused(front: Front) -> None:
    deep: Any = None
    for _ in range(limits.NESTING_MAX + 2):
        deep = [deep]
    with pytest.raises(InvalidArguments, match="nested more than 64 deep"):
        await front.call("echo.anything", deep)


# What a service tells of itself


async def test_a_service_describes_itself(front: Front) -> None:
    found = await front.call("samehost.describe")
    assert found.service == "everything"
    assert set(found.methods) == set(front.service.methods)
    declared = found.methods["declared"]
    assert (declared.idempotent, declared.timeout) == (True, 5.0)
    assert declared.doc == "Tell everything.\n\nEven this."
    assert declared.allow == f"uid={os.geteuid()}" or str(os.geteuid()) in declared.allow
    assert found.methods["defaults"].signature.startswith("(a: ")
    assert [parameter.name for parameter in found.methods["who"].parameters] == ["extra"]


async def test_a_service_tells_how_it_is(front: Front) -> None:
    waiting = [asyncio.ensure_future(front.call("hold", key=str(number))) for number in range(3)]
    for number in range(3):
        await front.until_seen(f"began {number}")
    found = await front.call("samehost.health")
    assert (found.service, found.status, found.pid) == ("everything", "serving", os.getpid())
    assert (found.connections, found.in_flight) == (1, 4)
    assert found.uptime > 0
    await front.call("release")
    await asyncio.gather(*waiting)


async def test_a_service_counts_its_calls(front: Front) -> None:
    for number in range(5):
        await front.call("times", number, 2)
    for _ in range(2):
        with pytest.raises(InvalidArguments):
            await front.call("times", "a", 2)
    found = (await front.call("samehost.stats")).methods["times"]
    assert (found.calls, found.errors, found.in_flight) == (7, 2, 0)
    assert 0 < found.p50 <= found.p90 <= found.p99 <= found.p999 < DEADLINE


# A server that ends: for the clients that connect again

SERVER = """
    import asyncio, os, sys
    import samehost
    service = samehost.Service("mortal")

    @service.method
    async def pid() -> int:
        return os.getpid()

    @service.method
    async def hang(path: str) -> int:
        open(path, "a").write("x")
        await asyncio.Event().wait()

    @service.method(idempotent=True)
    async def ask(path: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 2:
            await asyncio.Event().wait()
        return os.getpid()

    @service.method
    async def finish(path: str) -> str:
        "Goes on until the file is there, if the server drains meanwhile."
        open(path + ".began", "w").close()
        while not os.path.exists(path):
            await asyncio.sleep(0.005)
        return "finished"

    samehost.serve(service, sys.argv[1], ready=lambda: print("ready", flush=True))
"""


def server(place: Path) -> Program:
    """A server in a process of its own, once it serves."""
    program = python(textwrap.dedent(SERVER), str(place / "s"))
    assert program.line() == "ready"
    return program


class Caller:
    """Either client, connected to a path, and awaited."""

    def __init__(self, connect: Callable[..., Any], *, is_async: bool) -> None:
        self._connect, self._is_async = connect, is_async

    async def open(self, *arguments: Any, **options: Any) -> Caller:
        self.client = await self._await(self._connect, *arguments, **options)
        return self

    async def call(self, *arguments: Any, **options: Any) -> Any:
        return await self._await(self.client.call, *arguments, **options)

    async def notify(self, *arguments: Any, **options: Any) -> Any:
        return await self._await(self.client.notify, *arguments, **options)

    async def _await(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._is_async:
            return await function(*arguments, **options)
        return await asyncio.to_thread(function, *arguments, **options)


@pytest.fixture(params=["threads", "asyncio"])
async def caller(request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    is_async = request.param == "asyncio"
    caller = Caller(samehost.aio.connect if is_async else samehost.connect, is_async=is_async)
    yield caller
    caller.client.close()


async def until_there(path: Path) -> None:
    await eventually(path.exists, f"{path} is there")


async def test_a_call_in_progress_when_the_server_dies_may_or_may_not_have_been_done(
    place: Path, caller: Caller
) -> None:
    with server(place) as first:
        await caller.open(place / "s")
        assert await caller.call("pid") == first.pid
        call = asyncio.ensure_future(caller.call("hang", str(place / "note")))
        await eventually(lambda: (place / "note").exists() and (place / "note").read_text(), "it was called")
        kill(first)
        with pytest.raises(OutcomeUnknown, match=r"hang on .*: the server closed the connection before the answer"):
            await call
        assert (place / "note").read_text() == "x"
        assert caller.client.peer is None


async def test_an_idempotent_call_is_made_again_at_the_next_server(place: Path, caller: Caller) -> None:
    with server(place) as first:
        await caller.open(place / "s", wait=DEADLINE)
        call = asyncio.ensure_future(caller.call("ask", str(place / "note")))
        await eventually(lambda: (place / "note").exists() and (place / "note").read_text(), "it was called")
        kill(first)
        with server(place) as second:
            assert await call == second.pid
            assert (place / "note").read_text() == "xx"
            assert caller.client.peer.pid == second.pid


async def test_a_call_to_a_server_that_is_gone_was_not_sent(place: Path, caller: Caller) -> None:
    with server(place) as first:
        await caller.open(place / "s")
        assert await caller.call("pid") == first.pid
        kill(first)
        for _ in range(2):
            with pytest.raises(Unsent, match=r"pid on .* was not sent: "):
                await caller.call("pid")
    with server(place) as second:
        assert await caller.call("pid") == second.pid


async def test_a_call_waits_for_the_next_server_within_its_deadline(place: Path, caller: Caller) -> None:
    with server(place) as first:
        await caller.open(place / "s", wait=DEADLINE)
        kill(first)
    with pytest.raises((DeadlineExceeded, Unsent)):
        await caller.call("pid", timeout=0.05)
    call = asyncio.ensure_future(caller.call("pid"))
    with server(place) as second:
        assert await call == second.pid


async def test_a_server_that_drains_finishes_what_it_has_and_the_next_one_takes_the_rest(
    place: Path, caller: Caller
) -> None:
    with server(place) as first:
        await caller.open(place / "s", wait=DEADLINE)
        call = asyncio.ensure_future(caller.call("finish", str(place / "go")))
        await until_there(place / "go.began")
        first.signal(signal.SIGTERM)
        await eventually(lambda: not (place / "s").exists(), "the path is removed")
        with server(place) as second:
            assert await caller.call("pid") == second.pid
            (place / "go").touch()
            assert await call == "finished"
            assert first.end() == 0


async def test_a_notification_goes_to_the_server_that_is_there(place: Path, caller: Caller) -> None:
    with server(place) as first:
        await caller.open(place / "s")
        kill(first)
    with server(place):
        await caller.notify("hang", str(place / "note"))
        await until_there(place / "note")


async def test_a_closed_client_makes_no_calls(place: Path, caller: Caller) -> None:
    with serving(everything()) as address:
        await caller.open(address)
        call = asyncio.ensure_future(caller.call("hold", "x"))
        while "began x" not in await caller.call("seen"):
            pass
        caller.client.close()
        with pytest.raises(OutcomeUnknown):
            await call
        for again in (caller.call, caller.notify):
            with pytest.raises(ConnectionClosed, match="closed"):
                await again("times", 1, 2)
        assert "closed" in repr(caller.client)
        caller.client.close()


async def test_nobody_there_is_said_at_once(place: Path, caller: Caller) -> None:
    caller.client = socket.socket()  # for the fixture to close
    with pytest.raises(errors.Unavailable):
        await caller.open(place / "s")
    with pytest.raises(errors.AddressError):
        await caller.open("")


@pytest.mark.parametrize("kind", [Threads, Asyncio])
async def test_untyped_clients_get_builtin_types(kind: type[Front]) -> None:
    async with kind(everything()) as front:
        if kind is Threads:
            with samehost.connect(front.address) as client:
                assert await asyncio.to_thread(client.defaults, 1, c="d") == [1, 2, "d", 9]
                assert await asyncio.to_thread(client.call, "echo.point", Point(1)) == {"x": 1, "y": 0, "tags": []}
        else:
            async with await samehost.aio.connect(front.address) as client:
                assert await client.defaults(1, c="d") == [1, 2, "d", 9]
                assert await client.call("echo.point", Point(1)) == {"x": 1, "y": 0, "tags": []}
