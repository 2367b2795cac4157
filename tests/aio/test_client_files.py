"""Files and blobs of the client for asyncio, against servers that go by a script."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from aio.scripting import Script, answer_all, scripted
from loops import Run, eventually
from support import DEADLINE

import samehost
from samehost import Blob, File, aio, limits
from samehost.errors import BadBlob, DeadlineExceeded, InvalidResult, OutcomeUnknown, Unsent, UsageError, WrongShape
from samehost.kernel.arena import the_arena
from samehost.protocol import ARENAS, FILES, SEALED, events
from samehost.testing import connected, serving

ALL = ARENAS | FILES | SEALED
LARGE = limits.BLOB_BYTES_MIN


class Typed(aio.Client):
    async def size(self, file: File, name: str = "") -> int:
        raise NotImplementedError

    async def open(self, name: str) -> BinaryIO:
        raise NotImplementedError

    async def frame(self) -> Blob:
        raise NotImplementedError

    def frames(self) -> AsyncIterator[Blob]:
        raise NotImplementedError

    async def store(self, frames: AsyncIterable[Blob]) -> int:
        raise NotImplementedError


class Plain(aio.Client):
    async def add(self, left: int, right: int) -> int:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def no_memory_in_use() -> Any:
    yield
    gc.collect()
    assert the_arena().used_bytes == 0
    the_arena().give_back()


def a_file(place: Path, text: str = "hello") -> BinaryIO:
    path = place / "file"
    path.write_text(text)
    return path.open("rb")


# What is announced


@pytest.mark.parametrize(("interface", "features"), [(Typed, ALL), (Plain, 0), (None, ALL)])
def test_a_client_announces_what_its_results_may_hold(run: Run, place: Path, interface: Any, features: int) -> None:
    async def script(script: Script) -> None:
        await script.expect(events.Call)
        assert script.protocol.peer_features == features
        await script.until_end()

    async def main() -> None:
        options = (interface,) if interface else ()
        async with scripted(place / "s", script), aio.connect(place / "s", *options) as client:
            with pytest.raises(DeadlineExceeded):
                await client.call("any", timeout=0.01)

    run(main())


# Files


@pytest.mark.parametrize("interface", [(), (Typed,)])
def test_a_file_is_sent_and_stays_the_callers(run: Run, place: Path, interface: Any) -> None:
    async def script(script: Script) -> None:
        for _ in range(2):
            call = await script.expect(events.Call, "size")
            arguments = script.read(call.arguments, call.descriptors)
            file, name = arguments.values() if isinstance(arguments, dict) else arguments
            with file:
                assert os.pread(file.fileno(), 100, 0) == b"hello"
            await script.reply(call, len(name))
        call = await script.expect(events.Notification, "log")
        with script.read(call.arguments, call.descriptors)[0] as file:
            assert os.pread(file.fileno(), 100, 0) == b"hello"

    async def main() -> None:
        async with (
            scripted(place / "s", script, features=FILES),
            aio.connect(place / "s", *interface) as client,
        ):
            with a_file(place) as file:
                assert await client.size(file, "name") == 4  # which waits until the server has said that it takes some
                assert await client.size(file=file, name="long name") == 9
                await client.notify("log", file)
                assert file.read() == b"hello"

    run(main())


def test_a_server_that_takes_no_files_is_sent_none(run: Run, place: Path) -> None:
    async def main() -> None:
        async with scripted(place / "s", answer_all), aio.connect(place / "s") as client:
            with a_file(place) as file:
                for call in (client.size, lambda *all: client.notify("size", *all)):
                    with pytest.raises(
                        UsageError, match="size: an argument cannot travel: Files do not travel to this"
                    ):
                        await call(file)
                with pytest.raises(UsageError, match="an item cannot travel: Files do not travel to this"):
                    await client.total(iter([file]))
            assert await client.add(1, 2) == [1, 2]

    run(main())


def test_a_file_that_is_not_open_is_refused(run: Run, place: Path) -> None:
    async def main() -> None:
        async with scripted(place / "s", answer_all, features=FILES), aio.connect(place / "s") as client:
            file = a_file(place)
            file.close()
            with pytest.raises(UsageError, match=r"size: an argument cannot travel: .* is not open"):
                await client.size(file)
            assert await client.add(1, 2) == [1, 2]

    run(main())


def test_a_server_that_never_says_what_it_takes(run: Run, place: Path) -> None:
    async def silent(script: Script) -> None:
        while await script.connection.recv():
            pass

    async def leave(script: Script) -> None:
        await script.connection.recv()

    async def main() -> None:
        with a_file(place) as file:
            async with scripted(place / "s", silent), aio.connect(place / "s") as client:
                with pytest.raises(DeadlineExceeded, match=r"size on .*: no answer within 0\.02 s"):
                    await client.call("size", file, timeout=0.02)
                client._timeout = 0.02
                with pytest.raises(DeadlineExceeded, match=r"size on .*: no answer within 0\.02 s"):
                    await client.size(file, iter([1]))  # although it has as much time as it takes to send all items
                client._timeout = DEADLINE
                calling = asyncio.ensure_future(client.size(file))
                await asyncio.sleep(0.01)
                client.close()
                with pytest.raises(Unsent, match=r"size on .* was not sent"):
                    await calling
            async with scripted(place / "t", leave), aio.connect(place / "t") as client:
                with pytest.raises(Unsent, match=r"size on .* was not sent"):
                    await client.size(file)  # the second try finds nobody

    run(main())


def test_files_that_come_are_the_callers(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "open")
        with a_file(place) as file:
            await script.attach(file, script.protocol.send_reply, call)
        call = await script.expect(events.Call, "any")
        with a_file(place) as file:
            await script.attach({"file": file, "more": [1]}, script.protocol.send_reply, call)
        call = await script.expect(events.Call, "ends")
        script.protocol.send_stream(call.call_id)
        for end in socket.socketpair():
            with end:
                await script.attach(end, script.protocol.send_item, call)
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            with await client.open("file") as file:
                assert file.read() == b"hello"
            found = await client.call("any")
            assert found["more"] == [1]
            with found["file"].open() as file:
                assert file.read() == b"hello"
            near, far = [end.socket() async for end in client.call("ends")]
            with near, far:
                near.send(b"joined")
                assert far.recv(10) == b"joined"

    run(main())


# Files that nobody takes are closed: what is still open is seen by `tests/conftest.py`, and what was forgotten warns.


def test_a_file_where_something_else_was_wanted_is_closed(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        with a_file(place) as file:
            await script.attach([file], script.protocol.send_reply, await script.expect(events.Call))
            call = await script.expect(events.Call)
            script.protocol.send_stream(call.call_id)
            await script.attach([file], script.protocol.send_item, call)
            await script.expect(events.Cancel)
            await script.attach(file, script.protocol.send_reply, await script.expect(events.Call))
        await script.until_end()

    class Wrong(Typed):
        async def numbers(self) -> list[int]:
            raise NotImplementedError

        def many_numbers(self) -> AsyncIterator[list[int]]:
            raise NotImplementedError

        def more_numbers(self) -> AsyncIterator[int]:
            raise NotImplementedError

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Wrong) as client:
            with pytest.raises(InvalidResult, match="expected int, got ext"):
                await client.numbers()
            with pytest.raises(InvalidResult, match="expected int, got ext"):
                await anext(client.many_numbers())
            with pytest.raises(WrongShape):
                await anext(client.more_numbers())

    run(main())


@pytest.mark.parametrize("is_late", [False, True])
def test_a_file_for_a_caller_who_was_cancelled_is_closed(run: Run, place: Path, is_late: bool) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        if is_late:
            await script.expect(events.Cancel)
        with a_file(place) as file:
            await script.attach(file, script.protocol.send_reply, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            link = client._link
            calling = asyncio.ensure_future(client.file())
            if is_late:
                await eventually(lambda: link._remotes)
                calling.cancel()
            else:  # in the turn of the loop in which the answer comes, right behind it
                take = link._answer
                link._answer = lambda *answer: (take(*answer), calling.cancel())
            await asyncio.wait([calling])
            assert calling.cancelled()
            await eventually(lambda: not link._protocol.calls_made)

    run(main())


@pytest.mark.parametrize("is_closed", [False, True])
def test_files_in_items_that_are_not_read_are_closed(run: Run, place: Path, is_closed: bool) -> None:
    answered = asyncio.Event()

    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        script.protocol.send_stream(call.call_id)
        with a_file(place) as file:
            for _ in range(3):
                await script.attach(file, script.protocol.send_item, call)
            await script.attach(file, script.protocol.send_reply, call)
        answered.set()
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            async for file in client.files():
                file.close()
                await answered.wait()
                await eventually(lambda: not client._link._protocol.calls_made)
                if is_closed:
                    client.close()
                break
            await asyncio.sleep(0)

    run(main())


# Blobs


@pytest.mark.parametrize("features", [ALL, SEALED, 0])
def test_large_bytes_travel_in_whatever_the_server_takes(run: Run, place: Path, features: int) -> None:
    data = os.urandom(LARGE)

    async def script(script: Script) -> None:
        for _ in range(3):
            call = await script.expect(events.Call)
            assert len(call.arguments) < 1000 or not features
            assert len(call.descriptors) == (features == SEALED)
            assert script.read(call.arguments, call.descriptors)[-1] == data
            if releases := script.sharing.take_releases():
                script.protocol.send_release(releases)
            await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script, features=features), aio.connect(place / "s") as client:
            await client.store(data)
            await client.store("name", bytearray(data))
            await client.call("store", data, timeout=DEADLINE)
            await eventually(lambda: the_arena().used_bytes == 0)

    run(main())


def test_a_blob_is_written_in_place_and_comes_back_when_it_was_released(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "store")
        assert not call.descriptors
        (blob,) = script.read(call.arguments, call.descriptors)
        assert bytes(blob.view[:5]) == b"12345"
        del blob
        script.protocol.send_release(script.sharing.take_releases())
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script, features=ALL), aio.connect(place / "s") as client:
            blob = await client.allocate(LARGE)
            blob.view[:5] = b"12345"
            used = the_arena().used_bytes
            calling = asyncio.ensure_future(client.store(blob))
            await asyncio.sleep(0)
            del blob
            await calling
            assert the_arena().used_bytes < used

    run(main())


def test_allocating_waits_until_there_is_memory(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARENA_BYTES_MAX", limits.ARENA_SEGMENT_BYTES)

    async def main() -> None:
        async with scripted(place / "s", answer_all), aio.connect(place / "s") as client:
            first = await client.allocate(limits.ARENA_BYTES_MAX)
            with pytest.raises(DeadlineExceeded, match=r"no memory for a blob within 0\.02 s: "):
                await client.allocate(LARGE, timeout=0.02)
            with pytest.raises(DeadlineExceeded, match="no memory for a blob within 0 s: "):
                await client.allocate(LARGE, timeout=0)
            second = asyncio.ensure_future(client.allocate(LARGE, timeout=DEADLINE))
            await asyncio.sleep(0.01)
            del first
            assert len(await second) == LARGE
            with pytest.raises(UsageError):
                await client.allocate(-1)
            del second
            assert len(await client.allocate(LARGE, timeout=0)) == LARGE

    run(main())


@pytest.mark.parametrize("offers", ["arena", "sealed"])
def test_blobs_that_come_are_given_back_when_nobody_looks_at_them(run: Run, place: Path, offers: str) -> None:
    async def script(script: Script) -> None:
        if offers == "sealed":
            script.sharing.allows_arena = lambda offered: False  # type: ignore[method-assign]
        call = await script.expect(events.Call, "frame")
        await script.attach(Blob(bytes(LARGE)), script.protocol.send_reply, call)
        call = await script.expect(events.Call, "frames")
        script.protocol.send_stream(call.call_id)
        for number in range(5):
            await script.attach(Blob(bytes([number]) * LARGE), script.protocol.send_item, call)
        await script.reply(call, None)
        call = await script.expect(events.Call, "check")
        assert script.sharing.shared_blobs == 0
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            blob = await client.frame()
            assert blob.view.readonly
            assert bytes(blob.view) == bytes(LARGE)
            part = blob.view[5:10]
            del blob
            assert bytes(part) == bytes(5)
            del part
            async for number_frame in client.frames():
                if number_frame.view[0] == 2:
                    break
            del number_frame
            gc.collect()
            await asyncio.sleep(0.01)
            await client.call("check")

    run(main())


def test_items_are_blobs_as_well(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "store")
        found = 0
        while type(event := await script.next()) is events.Item:
            assert len(event.value) < 100
            found += len(script.read(event.value, event.descriptors))
            script.protocol.took_item(call.call_id, len(event.value))
            if releases := script.sharing.take_releases():
                script.protocol.send_release(releases)
            await script.flush()
        await script.reply(call, found)
        await script.until_end()

    async def frames(client: aio.Client) -> AsyncIterator[Blob]:
        for number in range(100):
            blob = await client.allocate(LARGE)
            blob.view[0] = number
            yield blob

    async def main() -> None:
        async with scripted(place / "s", script, features=ALL), aio.connect(place / "s", Typed) as client:
            assert await client.store(frames(client)) == 100 * LARGE
            assert the_arena().byte_count <= 2 * limits.ARENA_SEGMENT_BYTES

    run(main())


def test_arguments_are_encoded_anew_for_another_server(run: Run, place: Path) -> None:
    async def end_after_call(script: Script) -> None:
        call = await script.expect(events.Call)
        for file in call.descriptors:
            file.close()

    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        file, data = script.read(call.arguments, call.descriptors)
        with file:
            assert os.pread(file.fileno(), 100, 0) == b"hello"
        await script.reply(call, len(data))
        await script.until_end()

    class Again(aio.Client):
        @samehost.idempotent
        async def store(self, file: File, data: bytes) -> int:
            raise NotImplementedError

    async def main() -> None:
        async with (
            scripted(place / "s", end_after_call, script, features=ALL),
            aio.connect(place / "s", Again) as client,
        ):
            with a_file(place) as file:
                assert await client.store(file, bytes(LARGE)) == LARGE

    run(main())


def test_memory_that_a_server_still_looks_at_is_not_used_anew(run: Run, place: Path) -> None:
    kept = []

    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        kept.extend(script.read(call.arguments, call.descriptors))
        await script.reply(call, None)

    async def main() -> None:
        async with scripted(place / "s", script, features=ALL), aio.connect(place / "s") as client:
            await client.store(Blob(b"x" * LARGE))
            await eventually(lambda: client.peer is None)

    run(main())
    gc.collect()
    assert the_arena().used_bytes >= LARGE
    assert bytes(kept[0].view) == b"x" * LARGE
    kept.clear()
    gc.collect()
    assert the_arena().used_bytes == 0


def test_a_blob_that_is_none_is_refused(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "frame")
        body = samehost.extensions.SEALED_BODY.pack(0, 0, 0, 5)
        payload = bytes([0xC7, len(body), samehost.extensions.SEALED]) + body
        with a_file(place) as file:
            script.protocol.send_reply(call.call_id, payload, (file,))
            await script.flush()
        await script.reply(await script.expect(events.Call), 5)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            with pytest.raises(BadBlob):
                await client.frame()
            assert await client.call("other") == 5

    run(main())


def test_a_release_that_nobody_is_owed_ends_the_connection(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        (blob,) = script.read(call.arguments, call.descriptors)
        script.protocol.send_release([4711])
        await script.flush()
        del blob
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script, features=ALL), aio.connect(place / "s") as client:
            with pytest.raises(OutcomeUnknown, match="RELEASE of share 4711"):
                await client.store(Blob(bytes(LARGE)))

    run(main())


def test_blobs_that_have_come_can_be_read_when_the_server_is_gone(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "frames")
        script.protocol.send_stream(call.call_id)
        for number in range(3):
            await script.attach(Blob(bytes([number]) * LARGE), script.protocol.send_item, call)

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            stream = client.frames()
            assert (await anext(stream)).view[0] == 0
            await eventually(lambda: client.peer is None)
            assert [(await anext(stream)).view[-1], (await anext(stream)).view[-1]] == [1, 2]
            with pytest.raises(OutcomeUnknown):
                await anext(stream)

    run(main())


# Against services


def new_service() -> samehost.Service:
    service = samehost.Service("depot")

    @service.method
    async def read(file: File) -> str:
        return os.pread(file.fileno(), 100, 0).decode()

    @service.method
    async def open_it(path: str) -> BinaryIO:
        return open(path, "rb")  # noqa: ASYNC230

    @service.method
    async def turned(blob: Blob) -> Blob:
        found = samehost.allocate(len(blob))
        found.view[:] = bytes(reversed(blob.view))
        return found

    @service.method
    async def largest(blobs: AsyncIterator[Blob]) -> int:
        return max([blob.view[0] async for blob in blobs])

    @service.method
    async def frames(count: int) -> AsyncIterator[Blob]:
        for number in range(count):
            frame = samehost.allocate(LARGE)
            frame.view[:1] = bytes([number])
            yield frame

    return service


@pytest.mark.parametrize("has_socket", [True, False])
def test_files_and_blobs_of_a_service(run: Run, place: Path, has_socket: bool) -> None:
    async def use(client: aio.client.AnyClient) -> None:
        with a_file(place) as file:
            assert await client.read(file) == "hello"
        with (await client.open_it(str(place / "file"))).open() as file:
            assert file.read() == b"hello"
        blob = await client.allocate(LARGE)
        blob.view[:3] = b"123"
        with await client.turned(blob) as turned:
            assert bytes(turned.view[-3:]) == b"321"
        blob.release()
        assert [frame.view[0] async for frame in client.frames(100)] == list(range(100))
        async for frame in client.frames(100):
            if frame.view[0] == 10:
                break
        del frame
        assert await client.largest(Blob(bytes([number]) * LARGE) for number in range(100)) == 99
        del turned, blob
        await eventually(lambda: gc.collect() is not None and the_arena().used_bytes == 0)

    async def main() -> None:
        async with connected(new_service()) as client:
            await use(client)

    async def main_with_socket(address: str) -> None:
        async with aio.connect(address) as client:
            await use(client)

    if has_socket:
        with serving(new_service()) as address:
            run(main_with_socket(address))
    else:
        run(main())


def test_items_for_a_caller_who_was_cancelled_in_the_turn_in_which_they_came_are_closed(run: Run, place: Path) -> None:
    paused, sent = asyncio.Event(), asyncio.Event()

    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await paused.wait()
        script.protocol.send_stream(call.call_id)
        with a_file(place) as file:
            await script.attach([file, samehost.Blob(b"x" * LARGE)], script.protocol.send_item, call)
            await script.attach(file, script.protocol.send_reply, call)
        sent.set()
        await script.until_end()
        assert script.sharing.shared_blobs == 0

    async def main() -> None:
        async with scripted(place / "s", script, features=ALL), aio.connect(place / "s") as client:
            link = client._link
            calling = asyncio.ensure_future(client.call("files"))
            await eventually(lambda: link._remotes)
            link._wire.pause()  # until all has come
            paused.set()
            await sent.wait()
            calling.cancel()
            while link._wire.read_now():
                pass
            link._wire.read()
            await asyncio.wait([calling])
            assert calling.cancelled()
            await eventually(lambda: not link._protocol.calls_made)
            await asyncio.sleep(0)

    run(main())
