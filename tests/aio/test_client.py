"""The client for asyncio against servers that go by a script: what it sends, and what it makes of what comes back."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pydoc
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aio.scripting import Script, answer_all, scripted
from loops import LOOPS, eventually
from support import DEADLINE, kernel_passes_files

import samehost
from samehost import aio, limits, protocol
from samehost.aio.client import _TRIES_MAX, AnyClient
from samehost.codec import MSGPACK
from samehost.errors import (
    ConnectionClosed,
    DeadlineExceeded,
    InvalidResult,
    MessageTooLarge,
    OutcomeUnknown,
    RemoteProtocolError,
    SignatureError,
    Unavailable,
    Unsent,
    UsageError,
)
from samehost.protocol import events
from samehost.service.description import describe
from samehost.testing import serving


@pytest.fixture(autouse=True)
async def no_tasks_left() -> AsyncIterator[None]:
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# What is sent


async def test_calls_made_in_one_turn_of_the_loop_go_out_together(place: Path) -> None:
    reads: list[bytes] = []

    async def script(script: Script) -> None:
        reads.append(await script.connection.recv())  # the preface, which went out before
        script.happened += script.protocol.receive_data(reads[-1])
        reads.append(await script.connection.recv())
        script.happened += script.protocol.receive_data(reads[-1])
        await answer_all(script)

    async with scripted(place / "s", script), await aio.connect(place / "s") as client:
        await eventually(lambda: reads, "the preface has come by itself")
        assert await asyncio.gather(*(client.call("m", number) for number in range(20))) == [[n] for n in range(20)]
    assert [len(protocol.accept(0xF5).receive_data(b"".join(reads)))] == [20]


async def test_a_task_that_is_cancelled_sends_cancel(place: Path) -> None:
    received = asyncio.Event()

    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "slow")
        received.set()
        assert (await script.expect(events.Cancel)).call_id == call.call_id
        await script.reply(call, "late")
        await answer_all(script)

    async with scripted(place / "s", script), await aio.connect(place / "s") as client:
        call = asyncio.ensure_future(client.slow())
        await received.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await client.quick("next") == ["next"]  # and the late answer was nobody's


async def test_a_deadline_is_sent_along_and_then_cancels(place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "slow")
        assert 0 < call.milliseconds_left <= 50
        assert (await script.expect(events.Cancel)).call_id == call.call_id
        call = await script.expect(events.Call, "endless")
        assert call.milliseconds_left == 0
        await script.reply(call, "done")

    async with scripted(place / "s", script), await aio.connect(place / "s") as client:
        with pytest.raises(DeadlineExceeded, match=r"slow on .*: no answer within 0\.05 s"):
            await client.call("slow", timeout=0.05)
        assert await client.call("endless", timeout=None) == "done"


async def test_an_answer_and_the_deadline_in_one_turn_of_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    with serving(clock()) as address:
        async with await aio.connect(address) as client:
            call = asyncio.ensure_future(client.call("now", timeout=0.02))
            for _ in range(2):  # it is written, and goes out
                await asyncio.sleep(0)
            time.sleep(0.05)  # noqa: ASYNC251 - so that the loop finds both
            assert await call == datetime(2024, 2, 29, tzinfo=UTC)
    assert not caplog.records


async def test_calls_beyond_the_servers_limit_wait_in_their_order(place: Path) -> None:
    order: list[int] = []

    async def script(script: Script) -> None:
        calls: list[Any] = []
        while len(order) < 40:
            calls.append(await script.expect(events.Call))
            order.append(MSGPACK.decode_to(Any)(calls[-1].arguments)[0])
            if len(calls) == 3:  # the limit: one more would end the connection
                await script.reply(calls.pop(0), None)
        for call in calls:
            await script.reply(call, None)

    async with scripted(place / "s", script, calls_max=3), await aio.connect(place / "s") as client:
        await greeted(client)
        loops = [asyncio.ensure_future(_call_ten_times(client, number)) for number in range(4)]
        await asyncio.gather(*loops)
    assert order == [0, 1, 2, 3] * 10  # nobody is passed over


async def _call_ten_times(client: AnyClient, number: int) -> None:
    for _ in range(10):
        await client.call("m", number)


async def greeted(client: AnyClient) -> None:
    """Wait for the server's preface, with which its limit comes."""
    await eventually(lambda: client._link.is_greeted)


async def test_those_who_wait_for_a_place_keep_to_their_deadline_and_pass_it_on(place: Path) -> None:
    release = asyncio.Event()

    async def script(script: Script) -> None:
        first = await script.expect(events.Call, "first")
        await release.wait()
        await script.reply(first, None)
        await script.reply(await script.expect(events.Call, "third"), "third")

    async with scripted(place / "s", script, calls_max=1), await aio.connect(place / "s") as client:
        await greeted(client)

        async def cancel_second_after_first() -> None:
            await client.first()
            second.cancel()  # whose place is there by now, and who is not awake yet

        first = asyncio.ensure_future(cancel_second_after_first())
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await client.call("late", timeout=0.02)
        second = asyncio.ensure_future(client.second())
        third = asyncio.ensure_future(client.third())
        release.set()
        assert await third == "third"
        await first
        assert second.cancelled()


async def test_what_a_server_may_not_do_ends_the_connection_and_is_not_tried_again(place: Path) -> None:
    async def script(script: Script) -> None:
        await script.expect(events.Call, "ask")
        await script.connection.sendall(b"\xff" * 100)
        while await script.next() is not None:
            pass

    class Asking(aio.Client):
        @samehost.idempotent
        async def ask(self) -> int:
            raise NotImplementedError

    async with scripted(place / "s", script), await aio.connect(place / "s", Asking) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            await client.ask()
        assert isinstance(caught.value.__cause__, RemoteProtocolError)
        assert client.peer is None


async def test_files_that_nobody_asked_for_end_the_connection(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_passes_files(monkeypatch)

    async def script(script: Script) -> None:
        await script.expect(events.Call, "ask")
        await script.connection.sendall(b"x", [0])
        assert await script.connection.recv() == b""

    class Asking(aio.Client):
        async def ask(self) -> int:
            raise NotImplementedError

    async with scripted(place / "s", script), await aio.connect(place / "s", Asking) as client:
        with pytest.raises(OutcomeUnknown, match="passed open files, and none were asked for"):
            await client.ask()


async def test_pings_are_answered(place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "ask")
        script.protocol.send_ping(7)
        await script.flush()
        assert (await script.expect(events.Pong)).token == 7
        await script.reply(call, "pinged")

    async with scripted(place / "s", script), await aio.connect(place / "s") as client:
        assert await client.ask() == "pinged"


# When the server dies


@pytest.mark.parametrize("sent", [0, 1, 27, 28, 29, 39, 40, 41, 44, -1, None])
async def test_a_server_that_dies_within_its_answer(place: Path, sent: int | None) -> None:
    """Its preface has 28 bytes, and its answer a header of 12 and a payload."""

    async def script(script: Script) -> None:
        while not script.happened:
            script.happened += script.protocol.receive_data(await script.connection.recv(timeout=DEADLINE))
        [call] = script.happened
        script.protocol.send_reply(call.call_id, MSGPACK.encode("done"))
        await script.connection.sendall(b"".join(bytes(data) for data, _ in script.protocol.data_to_send())[:sent])

    class Asking(aio.Client):
        @samehost.idempotent
        async def ask(self) -> Any:
            raise NotImplementedError

    scripts = [script] * (1 if sent is None else _TRIES_MAX)
    async with scripted(place / "s", *scripts), await aio.connect(place / "s", Asking) as client:
        if sent is None:
            assert await client.ask() == "done"
        else:
            with pytest.raises(OutcomeUnknown, match=r"ask on .*: the server closed the connection"):
                await client.ask()  # which was made again and again


async def test_a_server_that_dies_before_all_was_sent_gets_the_blame_for_no_more_than_it_may_have(place: Path) -> None:
    async def script(script: Script) -> None:
        received = 0
        while received < 100:  # and no more, so that the rest of the long one waits, and what comes behind it
            received += len(await script.connection.recv(timeout=DEADLINE))

    async with (
        scripted(place / "s", script, answer_all),
        await aio.connect(place / "s", wait=DEADLINE) as client,
    ):
        long = asyncio.ensure_future(client.ask("x" * (2 << 20)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        behind = [asyncio.ensure_future(client.ask(number)) for number in range(3)]
        telling = asyncio.ensure_future(client.notify("tell"))
        assert await asyncio.gather(*behind) == [[0], [1], [2]]  # which were made again
        await telling
        with pytest.raises(OutcomeUnknown):
            await long


async def test_a_notification_waits_until_there_is_room_for_it(place: Path) -> None:
    read = asyncio.Event()
    told: list[str] = []

    async def script(script: Script) -> None:
        await read.wait()
        while (event := await script.next()) is not None:
            told.append(event.method)

    async with scripted(place / "s", script), await aio.connect(place / "s") as client:
        with pytest.raises(DeadlineExceeded):
            await client.notify("long", "x" * (2 << 20), timeout=0.02)
        telling = asyncio.ensure_future(client.notify("short"))
        await asyncio.sleep(0.01)
        assert not telling.done()
        read.set()
        await telling
    assert told == ["long", "short"]


# What is made again


async def end_after_call(script: Script) -> None:
    """Take a call, and go."""
    await script.expect(events.Call)


async def end_before_call(script: Script) -> None:
    """Greet, and go before any call."""
    await script.flush()


def describing(idempotent: bool) -> Callable[[Script], Awaitable[None]]:
    """A server whose method `ask` says this of itself, and which then answers it."""
    service = samehost.Service("asked")
    service.method(idempotent=idempotent, name="ask")(lambda: 5)

    async def script(script: Script) -> None:
        await script.reply(await script.expect(events.Call, "samehost.describe"), describe(service))
        await answer_all(script)

    return script


async def test_an_untyped_call_is_made_again_if_the_new_server_says_that_it_may(place: Path) -> None:
    async with scripted(place / "s", end_after_call, describing(True)), await aio.connect(place / "s") as client:
        assert await client.ask() == {}


async def test_an_untyped_call_is_not_made_again_if_the_new_server_says_no_such_thing(place: Path) -> None:
    async with scripted(place / "s", end_after_call, describing(False)), await aio.connect(place / "s") as client:
        with pytest.raises(OutcomeUnknown):
            await client.ask()
        assert client.peer is not None


async def test_a_call_that_ends_every_server_is_not_made_for_ever(place: Path) -> None:
    class Asking(aio.Client):
        @samehost.idempotent
        async def ask(self) -> int:
            raise NotImplementedError

    async with (
        scripted(place / "s", *[end_after_call] * _TRIES_MAX, answer_all),
        await aio.connect(place / "s", Asking, timeout=None) as client,
    ):
        with pytest.raises(OutcomeUnknown):
            await client.ask()
        assert await client.call("other", 1) == [1]


async def test_a_call_whose_outcome_is_unknown_once_is_not_called_unsent_later(place: Path) -> None:
    class Asking(aio.Client):
        @samehost.idempotent
        async def ask(self) -> int:
            raise NotImplementedError

    async with scripted(place / "s", end_after_call), await aio.connect(place / "s", Asking) as client:
        with pytest.raises(OutcomeUnknown):
            await client.ask()  # the second try finds nobody


async def test_a_server_that_says_nothing_and_ends_is_not_asked_for_ever(place: Path) -> None:
    came = 0

    async def end_all() -> None:
        nonlocal came
        async with aio.listen(place / "s") as listener:
            async for connection in listener:
                came += 1
                connection.close()

    ending = asyncio.ensure_future(end_all())
    async with await aio.connect(place / "s", wait=DEADLINE, timeout=None) as client:
        with pytest.raises(ConnectionClosed, match=r"without a word|was not sent"):
            await client.ask()
    ending.cancel()
    await asyncio.wait([ending])
    assert came <= 2 * _TRIES_MAX


async def test_going_away_with_unsent_calls_in_one_read(place: Path) -> None:
    """Both calls come in one read, and the server says that it took the first alone."""

    async def leaving(script: Script) -> None:
        first = await script.expect(events.Call, "first")
        # GOAWAY as PROTOCOL.md section 8.2 lays it out, naming the first call as the last one taken.
        script.protocol.data_to_send()
        payload = first.call_id.to_bytes(4, "little") + bytes([8, 0]) + (0).to_bytes(2, "little") + b"draining"
        await script.connection.sendall(
            len(payload).to_bytes(4, "little") + bytes([0x12, 0, 0, 0, 0, 0, 0, 0]) + payload
        )
        await script.reply(first, "finished")
        while await script.next() is not None:
            pass

    async with (
        scripted(place / "s", leaving, answer_all),
        await aio.connect(place / "s", wait=DEADLINE) as client,
    ):
        assert await asyncio.gather(client.first(), client.call("second", 2)) == ["finished", [2]]


async def test_an_idle_connection_that_ends_is_replaced_by_the_next_call(place: Path) -> None:
    async with scripted(place / "s", end_before_call, answer_all), await aio.connect(place / "s") as client:
        await eventually(lambda: client.peer is None)
        assert "not connected" in repr(client)
        assert await client.ask(1) == [1]
        assert "server" in repr(client)


async def test_a_socket_that_was_handed_in_is_not_taken_a_second_time(place: Path) -> None:
    async with scripted(place / "s", end_before_call):
        with socket.socket(socket.AF_UNIX) as handed:
            handed.connect(str(place / "s"))
            client = await aio.connect(f"fd:{handed.detach()}")
        async with client:
            await eventually(lambda: client.peer is None)
            with pytest.raises(Unsent, match=r"ask on fd:\d+ was not sent: the connection had ended"):
                await client.ask()


async def test_many_calls_wait_for_one_new_connection(place: Path) -> None:
    async with scripted(place / "s", end_before_call, answer_all), await aio.connect(place / "s") as client:
        await eventually(lambda: client.peer is None)
        assert await asyncio.gather(*(client.ask(number) for number in range(50))) == [[n] for n in range(50)]


async def test_wait_is_for_a_server_that_is_still_to_come(place: Path) -> None:
    with pytest.raises(Unavailable):
        await aio.connect(place / "s")
    connecting = asyncio.ensure_future(aio.connect(place / "s", wait=DEADLINE))
    await asyncio.sleep(0.01)
    async with scripted(place / "s", answer_all), await connecting as client:
        assert await client.ask(1) == [1]


# Closing


async def test_closing_ends_the_calls_that_wait(place: Path) -> None:
    async def script(script: Script) -> None:
        while await script.next() is not None:
            pass

    async with scripted(place / "s", script, calls_max=2):
        client = await aio.connect(place / "s")
        await greeted(client)
        sent = [asyncio.ensure_future(client.ask()) for _ in range(2)]
        waiting = [asyncio.ensure_future(client.ask()) for _ in range(2)]
        await asyncio.sleep(0.01)
        client.close()
        client.close()
        outcomes = await asyncio.gather(*sent, *waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown, Unsent, Unsent]
        with pytest.raises(ConnectionClosed, match="the client was closed"):
            await client.ask()
        assert repr(client) == f"<AnyClient of {place / 's'}, closed>"


async def test_closing_ends_the_calls_on_a_connection_that_was_left_before(place: Path) -> None:
    async with aio.listen(place / "s") as listener, aio.connect(place / "s", timeout=None) as client:
        old = Script(await listener.accept(timeout=DEADLINE), limits.CALLS_MAX, 0)
        first = asyncio.ensure_future(client.first())
        await old.expect(events.Call, "first")
        old.protocol.send_going_away()
        await old.flush()
        await eventually(lambda: client.peer is None)
        second = asyncio.ensure_future(client.second())
        new = Script(await listener.accept(timeout=DEADLINE), limits.CALLS_MAX, 0)
        await new.reply(await new.expect(events.Call, "second"), 2)
        assert await second == 2
        client.close()
        with pytest.raises(OutcomeUnknown, match="the client was closed"):
            await asyncio.wait_for(first, DEADLINE)
        for script in (old, new):
            assert await script.next() is None
            script.connection.close()


async def test_closing_in_the_turn_in_which_a_call_is_made_leaves_it_unsent(place: Path) -> None:
    async def script(script: Script) -> None:
        assert await script.next() is None

    async with scripted(place / "s", script):
        client = await aio.connect(place / "s")
        call = asyncio.ensure_future(client.ask())
        asyncio.get_running_loop().call_soon(client.close)
        with pytest.raises(Unsent):
            await call


async def test_closing_ends_a_client_that_is_connecting(place: Path) -> None:
    async with scripted(place / "s", end_before_call):
        client = await aio.connect(place / "s", wait=DEADLINE)
    await eventually(lambda: client.peer is None)
    calls = [asyncio.ensure_future(client.ask()) for _ in range(2)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    assert calls[0].cancelled()
    client.close()
    with pytest.raises(Unsent, match="the client was closed"):
        await calls[1]


async def test_a_client_that_is_forgotten_says_so_and_is_closed(place: Path) -> None:
    async with scripted(place / "s", answer_all):
        client = await aio.connect(place / "s")
        assert await client.ask(1) == [1]
        with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031
            del client
            gc.collect()


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_client_may_be_closed_after_its_loop(loop: str) -> None:
    def use() -> None:
        async def main() -> aio.Client:
            client = await aio.connect(address)
            assert await client.ask() == 5
            return client

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            client = runner.run(main())
        client.close()

    service = samehost.Service("five")
    service.method(name="ask")(lambda: 5)
    with serving(service) as address:
        await asyncio.to_thread(use)


# What it looks like


class Clock(aio.Client):
    """A clock."""

    @samehost.idempotent
    async def now(self, zone: str = "UTC") -> datetime:
        """Tell the time."""
        raise NotImplementedError

    @samehost.named("kv.get")
    async def get(self, key: str, *, default: int | None = None) -> int:
        raise NotImplementedError


def clock() -> samehost.Service:
    service = samehost.Service("clock", Clock)

    @service.method
    async def now(zone: str = "UTC") -> datetime:
        """Tell the time, in a zone."""
        return datetime(2024, 2, 29, tzinfo=UTC)

    @service.method(name="kv.get", timeout=2.0)
    async def get(key: str, *, default: int | None = None) -> int:
        return len(key) if default is None else default

    return service


async def test_a_typed_client_calls_by_position_and_by_name() -> None:
    with serving(clock()) as address:
        async with await aio.connect(address, Clock) as client:
            assert await client.now() == datetime(2024, 2, 29, tzinfo=UTC)
            assert await client.now(zone="UTC") == await client.call("now", "UTC")
            assert await client.get("abc") == await client.call("kv.get", "abc") == 3
            assert await client.get("abc", default=7) == 7
            assert Clock.now.__doc__ == "Tell the time."
            assert [*inspect.signature(Clock.get).parameters] == ["self", "key", "default"]
            assert not hasattr(client, "no_such")
            with pytest.raises(samehost.errors.InvalidArguments):
                await client.now(zone=5)  # type: ignore[arg-type]


async def test_a_result_of_another_type_is_refused() -> None:
    class Wrong(aio.Client):
        async def now(self) -> int:
            raise NotImplementedError

    with serving(clock()) as address:
        async with await aio.connect(address, Wrong) as client:
            with pytest.raises(InvalidResult, match="the result of now is not of its declared type"):
                await client.now()


async def test_what_is_no_class_of_clients_is_refused(place: Path) -> None:
    for interface in (dict, samehost.Client, AnyClient.__init__, 3):
        with pytest.raises(UsageError, match=r"is not a class made from samehost\.aio\.Client"):
            aio.connect(place / "s", interface)  # type: ignore[call-overload]


async def test_connecting_may_be_awaited_entered_and_made_a_task(place: Path) -> None:
    async with aio.listen(place / "s"):
        async with aio.connect(place / "s") as entered:
            assert entered.peer is not None
        assert entered.closed
        awaited = await aio.connect(place / "s")
        in_task = await asyncio.create_task(aio.connect(place / "s", AnyClient))
        for client in (awaited, in_task):
            assert not client.closed
            client.close()
    with pytest.raises(Unavailable):
        async with aio.connect(place / "s"):
            raise AssertionError


async def test_what_is_too_long_names_its_method(place: Path) -> None:
    async with scripted(place / "s", answer_all), aio.connect(place / "s") as client:
        for call in (client.long, partial(client.notify, "long")):
            with pytest.raises(MessageTooLarge, match=r"^long: a payload of 50000.. bytes"):
                await call("x" * 5_000_000)
            assert await client.short(1) == [1]


async def test_a_class_whose_methods_cannot_be_called_so_is_refused() -> None:
    with pytest.raises(SignatureError, match="calls by an async def"):

        class Plain(aio.Client):
            def now(self) -> int:
                raise NotImplementedError

    with pytest.raises(SignatureError, match=r"@samehost\.named"):

        class Hiding(aio.Client):
            async def close(self) -> int:  # type: ignore[override]
                raise NotImplementedError


async def test_an_untyped_client_tells_what_it_knows() -> None:
    with serving(clock()) as address:
        async with await aio.connect(address) as client:
            assert repr(client.now) == "<remote function now>"
            assert "now" in dir(client)  # as it was asked for
            await client.describe()
            assert {"now", "kv.get", "call", "close"} <= set(dir(client))
            assert repr(client.now).startswith("<remote function now(zone: ")
            assert client.now is client.now
            help_text = pydoc.render_doc(client.now)
            assert "Tell the time, in a zone." in help_text
            assert repr(client) == f"<AnyClient of {address}, server {client.peer}>"
            assert client.address == address
            with pytest.raises(AttributeError):
                client._private  # noqa: B018


async def test_a_description_is_asked_for_once_a_connection(place: Path) -> None:
    async def script(script: Script) -> None:
        await script.reply(await script.expect(events.Call, "samehost.describe"), describe(service))
        await script.expect(events.Call, "last")

    service = clock()
    async with scripted(place / "s", script, script), await aio.connect(place / "s") as client:
        for _ in range(2):
            for _ in range(2):
                assert (await client.describe()).service == "clock"
            with pytest.raises(OutcomeUnknown):
                await client.call("last", timeout=1)


async def test_a_server_that_describes_itself_as_nothing_known(place: Path) -> None:
    async def script(script: Script) -> None:
        await script.reply(await script.expect(events.Call, "samehost.describe"), 5)

    async with scripted(place / "s", script), await aio.connect(place / "s") as client:
        with pytest.raises(InvalidResult):
            await client.describe()
