"""Files and blobs in calls: they reach the method, are closed exactly once, and nothing of them is left behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from loops import LOOPS
from stream_clients import ITEMS_FOLLOW, ITEMS_WANTED, Caller, serving_in
from support import DEADLINE, until

import samehost
from samehost import limits, protocol
from samehost.errors import Busy
from samehost.extensions import FILE_BODY, SEALED_BODY
from samehost.kernel.files import Descriptor, File
from samehost.protocol import events
from samehost.testing import connected

Ext = msgspec.msgpack.Ext
go = threading.Event()


def files_service() -> samehost.Service:  # noqa: C901 - a list of methods
    service = samehost.Service("files")
    kept: list[samehost.File] = []

    @service.method
    async def size(file: samehost.File) -> int:
        return os.fstat(file.fileno()).st_size

    @service.method
    async def late(file: samehost.File) -> int:
        await asyncio.to_thread(go.wait, DEADLINE)
        return os.fstat(file.fileno()).st_size

    @service.method
    def in_thread(file: samehost.File) -> int:
        return os.fstat(file.fileno()).st_size

    @service.method
    async def takes_over(file: samehost.File) -> None:
        kept.append(samehost.File(file.detach()))

    @service.method
    async def let_go() -> int:
        while kept:
            kept.pop().close()
        return 0

    @service.method
    async def echo(file: samehost.File) -> samehost.File:
        return file

    @service.method
    async def opens(path: str, number: int) -> AsyncIterator[samehost.File]:
        for _ in range(number):
            yield samehost.File(os.open(path, os.O_RDONLY))

    @service.method
    def opens_in_thread(path: str, number: int) -> Iterator[samehost.File]:
        for _ in range(number):
            yield samehost.File(os.open(path, os.O_RDONLY))

    @service.method
    async def sizes(files: AsyncIterator[samehost.File]) -> int:
        return sum([os.fstat(file.fileno()).st_size async for file in files])

    @service.method
    def sizes_in_thread(files: Iterator[samehost.File]) -> int:
        return sum(os.fstat(file.fileno()).st_size for file in files)

    @service.method
    async def blob(data: samehost.Blob) -> samehost.Blob:
        return data

    @service.method
    async def anything(data: Any) -> Any:
        return data

    @service.method
    def frames(number: int) -> Iterator[samehost.Blob]:
        for which in range(number):
            frame = samehost.allocate(1 << 20)
            frame.view[0] = which
            yield frame

    @service.method
    async def firsts(items: AsyncIterator[samehost.Blob]) -> int:
        return sum([item.view[0] async for item in items])

    @service.method
    async def mixed(path: str) -> list[Any]:
        return [object(), samehost.File(os.open(path, os.O_RDONLY)), samehost.File(os.open(path, os.O_RDONLY))]

    @service.method
    async def opens_late(path: str) -> Any:
        file = samehost.File(os.open(path, os.O_RDONLY))
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            return file  # noqa: B012 - the cancellation comes too late for it

    @service.method(inline=True)
    def opens_inline(path: str, number: int) -> Iterator[samehost.File]:
        for _ in range(number):
            yield samehost.File(os.open(path, os.O_RDONLY))

    @service.method
    def copies(size: int) -> bytes:
        return bytes(size)

    @service.method
    def cannot_be_sent() -> Any:
        return [bytes(1 << 20), object()]

    @service.method
    async def none(number: int) -> int:
        return number

    return service


def descriptors() -> int:
    """How many are open, beside the memory that this process keeps for further blobs."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "samehost-arena" not in os.readlink(f"/proc/self/fd/{number}")
    return found


@pytest.fixture(params=LOOPS)
def path(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    (place / "f").write_text("x" * 100)
    before = descriptors()
    with serving_in(request.param, files_service(), place / "s"):
        yield place / "s"
        go.set()
    go.clear()
    until(lambda: descriptors() == before, "no descriptor is left")


class Passer(Caller):
    """One that passes files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.protocol = protocol.connect(features=protocol.FILES | protocol.SEALED)

    def flush(self) -> None:
        for data, passed in self.protocol.data_to_send():
            numbers = [descriptor.fileno() for descriptor in passed]
            if numbers:
                socket.send_fds(self.socket, [data], numbers)
            else:
                self.socket.sendall(data)

    def _read(self) -> None:
        data, numbers, _, _ = socket.recv_fds(self.socket, 1 << 16, 253)
        files = tuple(File(number) for number in numbers)
        found = self.protocol.receive_data(data, files) if data else self.protocol.receive_eof()
        self.has_ended |= not data
        for file in files:
            file.close()
        self._events += [event for event in found if type(event) is not events.Credit]
        self.flush()

    def pass_one(self, method: str, arguments: Any, *files: int, flags: int = 0) -> int:
        passed = tuple(Descriptor(os.dup(file)) for file in files)
        encoded = msgspec.msgpack.encode(arguments)
        call_id = self.protocol.send_call(method, encoded, flags=flags, descriptors=passed)
        self.flush()
        return call_id


def a_file(position: int) -> Any:
    return Ext(1, FILE_BODY.pack(position))


def test_files_as_arguments_results_and_items(path: Path, place: Path) -> None:
    async def main() -> None:
        async with await samehost.aio.connect(path) as client:
            for method in ("size", "in_thread"):
                with open(place / "f") as file:  # noqa: ASYNC230
                    assert await client.call(method, file=file) == 100
            with open(place / "f") as file, await client.call("echo", file=file) as other:  # noqa: ASYNC230
                assert os.fstat(other.fileno()).st_size == 100
            for method in ("opens", "opens_in_thread"):
                number = 0
                async for file in await client.call(method, path=str(place / "f"), number=100):
                    file.close()
                    number += 1
                assert number == 100
            for method in ("sizes", "sizes_in_thread"):
                assert await client.call(method, some_files(place / "f", 100)) == 10_000

    asyncio.run(main())


def some_files(path: Path, number: int) -> Iterator[Any]:
    for _ in range(number):
        with open(path) as file:
            yield file


def test_blobs_as_arguments_results_and_items(path: Path) -> None:
    def some_blobs(number: int) -> Iterator[samehost.Blob]:
        for _ in range(number):
            blob = samehost.allocate(1 << 20)
            blob.view[0] = 1
            yield blob

    async def main() -> None:
        async with await samehost.aio.connect(path) as client:
            blob = samehost.allocate(8 << 20)
            blob.view[0] = 7
            with await client.call("blob", data=blob) as other:
                assert other.view[0] == 7
            large = os.urandom(1 << 20)
            assert await client.call("anything", data=large) == large
            assert await client.call("anything", data={"a": [large]}) == {"a": [large]}
            found = [frame.view[0] async for frame in await client.call("frames", number=200)]
            assert found == list(range(200))
            assert await client.call("firsts", some_blobs(200)) == 200

    asyncio.run(main())


def test_a_file_that_a_method_takes_over_stays_open(path: Path, place: Path) -> None:
    with Passer(path) as caller, open(place / "f") as file:
        assert caller.value_of("none", {"number": 1}) == 1
        before = descriptors()
        caller.pass_one("takes_over", {"file": a_file(0)}, file.fileno())
        caller.expect(events.Reply)
        assert descriptors() == before + 1
        assert caller.value_of("let_go") == 0
        assert descriptors() == before


def test_21_files_for_a_method_that_takes_none_end_the_connection(path: Path, place: Path) -> None:
    for arguments in ({"number": 1}, {"number": a_file(0)}):
        with Passer(path) as caller, open(place / "f") as file:
            caller.pass_one("none", arguments, file.fileno())
            assert caller.expect(events.GoingAway).code == "unexpected_descriptors"


def test_files_that_nothing_refers_to_are_closed(path: Path, place: Path) -> None:
    with Passer(path) as caller, open(place / "f") as file:
        assert caller.value_of("none", {"number": 1}) == 1
        before = descriptors()
        caller.pass_one("anything", {"data": 1}, file.fileno())
        assert caller.value(caller.expect(events.Reply)) == 1
        for arguments in ({"file": 1}, {"file": a_file(1)}, {}):
            caller.pass_one("size", arguments, file.fileno())
            assert caller.expect(events.Failure).code == "invalid_arguments"
        caller.pass_one("nobody", {}, file.fileno())
        assert caller.expect(events.Failure).code == "method_not_found"
        caller.pass_one("size", {"file": a_file(0)}, file.fileno(), flags=ITEMS_FOLLOW)
        assert caller.expect(events.Failure).code == "wrong_shape"
        assert descriptors() == before


@pytest.mark.parametrize("how", ["answer", "cancel", "close"])
def test_a_user_has_only_so_many_files_open(path: Path, place: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FILES_PER_UID_MAX", 8)
    with Passer(path) as caller, Passer(path) as another, open(place / "f") as file:
        assert another.value_of("none", {"number": 1}) == 1
        before = descriptors()
        ids = [caller.pass_one("late", {"file": a_file(0)}, file.fileno()) for _ in range(8)]
        caller.pass_one("late", {"file": a_file(0)}, file.fileno())
        assert caller.expect(events.Failure).code == "busy"
        another.pass_one("size", {"file": a_file(0)}, file.fileno())
        assert another.expect(events.Failure).code == "busy"
        if how == "answer":
            go.set()
            assert [caller.value(caller.expect(events.Reply)) for _ in ids] == [100] * 8
        elif how == "cancel":
            go.set()
            for call_id in ids:
                caller.cancel(call_id)
        else:
            caller.close()
        go.set()
        until(lambda: descriptors() <= before, "they are closed")
        another.pass_one("size", {"file": a_file(0)}, file.fileno())
        assert another.value(another.expect(events.Reply)) == 100


def test_25_a_blob_that_is_none_is_refused(path: Path, place: Path) -> None:
    memory = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.truncate(memory, 1 << 20)
    with Passer(path) as caller, open(place / "f") as file:
        for descriptor in (memory, file.fileno()):
            body = SEALED_BODY.pack(0, 0, 0, 1 << 20)
            caller.pass_one("blob", {"data": Ext(2, body)}, descriptor)
            assert caller.expect(events.Failure).code == "bad_blob"
        assert caller.value_of("none", {"number": 1}) == 1
    os.close(memory)


OPENERS = ["opens", "opens_in_thread", "opens_inline"]


@pytest.mark.parametrize("method", OPENERS)
def test_files_that_are_yielded_and_not_sent_are_closed(path: Path, place: Path, method: str) -> None:
    chance = random.Random(method)
    for _ in range(60):
        with Passer(path) as caller:  # which gives no credit, so that items wait for it
            call_id = caller.pass_one(method, {"path": str(place / "f"), "number": 1000}, flags=ITEMS_WANTED)
            for _ in range(chance.randrange(100)):
                if caller.is_silent(0):
                    break
                assert type(caller.event()) in (events.Stream, events.Item)
            if chance.random() < 0.5:
                caller.cancel(call_id)
                while type(caller.event()) is not events.Freed:
                    pass
    with Caller(path) as caller:
        until(lambda: caller.stats()["methods"][method]["in_flight"] == 0, "all have ended")


@pytest.mark.parametrize("method", OPENERS)
def test_files_that_cannot_travel_as_lines_are_closed(path: Path, place: Path, method: str) -> None:
    with Caller(path, "lines") as caller:
        assert caller.value_of("none", {"number": 1}) == 1
        before = descriptors()
        for _ in range(20):
            items, failure = caller.all(method, {"path": str(place / "f"), "number": 10})
            assert (items, failure.code) == ([], "internal")
        until(lambda: descriptors() == before, "all are closed")


@pytest.mark.parametrize("kind", ["frames", "lines"])
def test_files_of_a_result_that_is_not_sent_are_closed(path: Path, place: Path, kind: str) -> None:
    with Caller(path, kind) as caller:
        assert caller.value_of("none", {"number": 1}) == 1
        before = descriptors()
        caller.call("mixed", {"path": str(place / "f")}, 0)
        assert caller.expect(events.Failure).code == "internal"
        call_id = caller.call("opens_late", {"path": str(place / "f")}, 0)
        assert caller.value_of("none", {"number": 1}) == 1
        caller.cancel(call_id)
        assert caller.event() == events.Freed(call_id)
        until(lambda: descriptors() == before, "all are closed")


def test_a_large_result_of_a_thread_is_copied_there(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with samehost.connect(path) as client:
        assert client.call("copies", size=1 << 24) == bytes(1 << 24)
        assert client.call("copies", size=3) == bytes(3)
        with pytest.raises(samehost.errors.InternalError):
            client.call("cannot_be_sent")
        assert "cannot_be_sent failed" in caplog.text
        caplog.clear()  # as the traceback in it keeps the copy
    with Caller(path, "lines") as caller:
        assert len(caller.value_of("copies", {"size": 1 << 20})) == 1398104
        caller.call("copies", {"size": 1 << 22}, 0)
        assert caller.expect(events.Failure).code == "too_large"


def test_blobs_are_text_in_lines(path: Path) -> None:
    data = base64.b64encode(bytes(1000)).decode()
    with Caller(path, "lines") as caller:
        assert caller.value_of("blob", {"data": data}) == data
        items, end = caller.all("frames", {"number": 2})
        assert end is None
        assert [base64.b64decode(item)[0] for item in items] == [0, 1]
        call_id = caller.call("firsts", {}, ITEMS_FOLLOW)
        caller.item(call_id, data, base64.b64encode(b"\5").decode())
        caller.end(call_id)
        assert caller.rest(call_id) == ([], 5)


async def test_sealed_memory_of_a_user_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 700_000
    monkeypatch.setattr(limits, "BLOBS_OUT_BYTES_MAX", 0)  # so that nothing goes by the arena
    monkeypatch.setattr(limits, "BLOB_BYTES_MAX", 1_000_000)
    service, gate, begun = samehost.Service("memory"), asyncio.Event(), asyncio.Queue[None]()

    @service.method
    async def hold(data: bytes) -> int:
        begun.put_nowait(None)
        await gate.wait()
        return len(data)

    @service.method
    async def both(data: list[bytes]) -> int:
        return sum(map(len, data))

    async with connected(service) as client:
        await client.describe()
        with pytest.raises(samehost.ServiceError, match="blobs of 1400000 bytes in one message, at most 1000000"):
            await client.both([bytes(size), bytes(size)])
        first, second = (asyncio.ensure_future(client.hold(bytes(size))) for _ in range(2))
        await begun.get()
        await begun.get()
        with pytest.raises(Busy, match="blobs of 1400000 bytes in calls"):
            await client.hold(bytes(size))
        gate.set()
        assert await asyncio.gather(first, second) == [size, size]
        assert await client.hold(bytes(size)) == size
