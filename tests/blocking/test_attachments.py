"""Files and blobs of the client for threads, against a scripted server that shares memory and files with it."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from blocking.scripted import Conversation, Scripted
from support import DEADLINE, descriptors, until

import samehost
from samehost import errors, limits
from samehost.blocking.client import AnyClient
from samehost.kernel.arena import the_arena
from samehost.kernel.files import File
from samehost.protocol import ARENAS, FILES, SEALED
from samehost.protocol.events import Call, Cancel, End, Item, Notification, Released

ALL = FILES | SEALED | ARENAS
LARGE = bytes(range(256)) * (limits.BLOB_BYTES_MIN // 256 + 1)


class Plain(samehost.Client):
    def add(self, a: int, b: int = 2) -> int:
        raise NotImplementedError


class Files(samehost.Client):
    def size(self, file: samehost.File) -> int:
        raise NotImplementedError

    def open(self, name: str) -> samehost.File:
        raise NotImplementedError


@pytest.fixture
def server(place: Path) -> Iterator[Scripted]:
    with Scripted(place / "s") as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls, so that the test can play the server meanwhile."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def note(place: Path) -> Path:
    (place / "note").write_bytes(b"what it says")
    return place / "note"


def greeted(server: Scripted, client: samehost.Client, pool: ThreadPoolExecutor, features: int = ALL) -> Conversation:
    """The connection of a client that has had its first call answered."""
    first = pool.submit(client.call, "first")
    conversation = server.accept(features=features)
    conversation.reply(conversation.call("first"), None)
    assert first.result(DEADLINE) is None
    return conversation


def said_by(file: File) -> bytes:
    """What is in a file, which is closed then."""
    with file.open() as opened:
        return opened.read()


# Files.


def test_an_open_file_is_an_argument_and_stays_the_callers(
    server: Scripted, pool: ThreadPoolExecutor, note: Path
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        with note.open("rb") as file:
            future = pool.submit(client.size, file)
            call = conversation.call("size")
            assert said_by(*conversation.value(call)) == b"what it says"
            conversation.reply(call, 12)
            assert future.result(DEADLINE) == 12
            assert not file.closed
            pool.submit(client.notify, "log", file=file).result(DEADLINE)
            assert said_by(conversation.value(conversation.event(Notification))["file"]) == b""  # it was read already


def test_the_first_call_may_have_a_file_and_waits_for_the_servers_word(
    server: Scripted, pool: ThreadPoolExecutor, note: Path
) -> None:
    with samehost.connect(server.path, Files) as client, note.open("rb") as file:
        future = pool.submit(client.size, file)  # type: ignore[arg-type]
        conversation = server.accept(features=FILES)
        conversation.greet()  # as it was pinged
        call = conversation.call("size")
        assert said_by(*conversation.value(call)) == b"what it says"
        conversation.reply(call, 12)
        assert future.result(DEADLINE) == 12


def test_a_server_that_takes_no_files_gets_none(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool, features=0)
        with pytest.raises(errors.UsageError, match=r"size: an argument cannot travel: .* takes none"):
            client.size(file)
        future = pool.submit(client.call, "next")
        conversation.reply(conversation.call("next"), 1)  # nothing was sent before
        assert future.result(DEADLINE) == 1


def test_a_call_with_a_file_is_made_again_with_the_file(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        greeted(server, client, pool).close()
        future = pool.submit(client.size, file)
        conversation = server.accept(features=ALL)
        conversation.greet()
        call = conversation.call("size")
        assert said_by(*conversation.value(call)) == b"what it says"
        conversation.reply(call, 12)
        assert future.result(DEADLINE) == 12


def test_a_result_is_an_open_file(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    for interface in AnyClient, Files:
        with samehost.connect(server.path, interface) as client:
            conversation = greeted(server, client, pool)
            assert conversation.protocol.peer_features & FILES
            future = pool.submit(client.open, "note")
            call = conversation.call("open")
            with note.open("rb") as file:
                conversation.protocol.send_reply(call.call_id, *conversation.attached(file))
                conversation.flush()
            assert said_by(future.result(DEADLINE)) == b"what it says"


def test_a_class_without_files_or_blobs_takes_none(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Plain) as client:
        assert greeted(server, client, pool).protocol.peer_features == 0
    with samehost.connect(server.path, Files) as client:
        assert greeted(server, client, pool).protocol.peer_features == ALL  # all or none


def test_files_that_nobody_gets_are_closed(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool)
        before = descriptors()
        with pytest.raises(errors.DeadlineExceeded):
            client.call("slow", timeout=0.01)
        late = conversation.call("slow")
        conversation.event(Cancel)
        following = pool.submit(client.call, "next")
        call = conversation.call("next")
        conversation.protocol.send_reply(late.call_id, *conversation.attached(file))
        conversation.reply(call, 1)
        assert following.result(DEADLINE) == 1
        wrong = pool.submit(Plain.call, client, "wrong")
        call = conversation.call("wrong")
        conversation.protocol.send_reply(call.call_id, b"\x01", conversation.attached(file)[1])  # refers to none
        conversation.flush()
        assert wrong.result(DEADLINE) == 1
        assert descriptors() == before


def test_a_frame_that_never_came_whole_leaves_no_file(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        before = len(descriptors())
        future = pool.submit(client.call, "open")
        call = conversation.call("open")
        with note.open("rb") as file:
            conversation.protocol.send_reply(call.call_id, *conversation.attached(file))
            [(data, (descriptor,))] = conversation.protocol.data_to_send()
            socket.send_fds(conversation.socket, [data[:5]], [descriptor.fileno()])
            del descriptor
        until(lambda: len(descriptors()) == before + 1, "the file has come")
        client.close()
        assert isinstance(future.exception(DEADLINE), errors.OutcomeUnknown)
    conversation.close()
    gc.collect()
    assert len(descriptors()) <= before


# Blobs.


def release_of(conversation: Conversation) -> None:
    conversation.sharing.released(conversation.event(Released).shares)


def test_large_bytes_travel_in_memory_both_ways(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        for _ in range(3):
            future = pool.submit(client.echo, LARGE)
            call = conversation.call("echo")
            assert len(call.arguments) < 100
            (value,) = conversation.value(call)
            assert value == LARGE
            conversation.release()
            conversation.protocol.send_reply(call.call_id, *conversation.attached(value))
            conversation.flush()
            assert future.result(DEADLINE) == LARGE
            release_of(conversation)  # at once, as it was copied
            assert conversation.sharing.shared_blobs == 0
        future = pool.submit(client.call, "last")
        conversation.reply(conversation.call("last"), None)
        assert future.result(DEADLINE) is None
        assert client._link.attachments._sharing.shared_blobs == 0


def test_large_bytes_go_to_the_first_call_of_a_connection_in_memory_as_well(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        future = pool.submit(client.echo, LARGE)
        conversation = server.accept(features=ALL)
        conversation.greet()
        call = conversation.call("echo")
        assert len(call.arguments) < 100
        assert conversation.value(call) == [LARGE]
        conversation.reply(call, 1)
        assert future.result(DEADLINE) == 1


def test_a_blob_is_kept_until_it_is_released(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.frame)
        call = conversation.call("frame")
        conversation.protocol.send_reply(call.call_id, *conversation.attached(samehost.Blob(LARGE)))
        conversation.flush()
        blob = future.result(DEADLINE)
        assert isinstance(blob, samehost.Blob)
        assert blob.view == LARGE
        assert blob.view.readonly
        part = blob.view[10:20]
        assert conversation.sharing.shared_blobs == 1
        blob.release()
        assert bytes(part) == LARGE[10:20]
        del part
        release_of(conversation)  # with nothing else under way
        assert conversation.sharing.shared_blobs == 0


def test_a_sealed_blob_is_read_as_any_other(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.frame)
        call = conversation.call("frame")
        result = conversation.attached(samehost.Blob(LARGE), is_shared=False)
        conversation.protocol.send_reply(call.call_id, *result)
        del result
        conversation.flush()
        with future.result(DEADLINE) as blob:
            assert blob.view == LARGE


def test_a_blob_in_memory_of_the_wrong_kind_is_refused(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.frame)
        call = conversation.call("frame")
        payload, sealed = conversation.attached(samehost.Blob(LARGE), is_shared=False)
        with note.open("rb") as file:
            conversation.protocol.send_reply(call.call_id, payload, conversation.attached(file)[1])
            conversation.flush()
        del sealed
        with pytest.raises(errors.BadBlob):
            future.result(DEADLINE)


def test_map_takes_and_gives_large_bytes(server: Scripted, pool: ThreadPoolExecutor) -> None:
    def serve(conversation: Conversation, count: int) -> None:
        for _ in range(count):
            call = conversation.event(Call | Released)
            while isinstance(call, Released):
                conversation.sharing.released(call.shares)
                call = conversation.event(Call | Released)
            (value,) = conversation.value(call)
            conversation.protocol.send_reply(call.call_id, *conversation.attached(value))
            conversation.release()

    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        values = [LARGE + bytes([number]) for number in range(20)]
        served = pool.submit(serve, conversation, 20)
        assert list(client.map("echo", values, window=4)) == values
        served.result(DEADLINE)


def test_memory_is_waited_for(server: Scripted, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        monkeypatch.setattr(limits, "ARENA_BYTES_MAX", limits.ARENA_SEGMENT_BYTES)
        size = limits.ARENA_SEGMENT_BYTES * 3 // 4
        blob = client.allocate(size)
        blob.view[:4] = b"here"
        with pytest.raises(errors.DeadlineExceeded, match=r"no memory for a blob within 0\.05 s"):
            client.allocate(size, timeout=0.05)
        future = pool.submit(client.take, blob)
        call = conversation.call("take")
        (received,) = conversation.value(call)
        assert bytes(received.view[:4]) == b"here"
        conversation.reply(call, None)
        future.result(DEADLINE)
        blob.release()
        del blob, future
        waiting = pool.submit(client.allocate, size)
        assert not threading.Event().wait(0.05)
        assert not waiting.done()
        received.release()
        del received
        gc.collect()
        conversation.release()
        waiting.result(DEADLINE).release()
    the_arena().settle()


# Streams.


def test_items_are_files_and_those_that_nobody_took_are_closed(
    server: Scripted, pool: ThreadPoolExecutor, note: Path
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        before = descriptors()
        future = pool.submit(client.files)
        call = conversation.call("files")
        conversation.protocol.send_stream(call.call_id)
        for _ in range(3):
            with note.open("rb") as file:
                conversation.protocol.send_item(call.call_id, *conversation.attached(file))
        conversation.flush()
        stream = future.result(DEADLINE)
        assert said_by(next(stream)) == b"what it says"
        other = pool.submit(client.call, "other")
        conversation.reply(conversation.call("other"), None)
        assert other.result(DEADLINE) is None  # and the other two have come by now
        assert len(stream._items) == 2
        stream.close()
        assert conversation.event(Cancel).call_id == call.call_id
        assert descriptors() == before


def test_items_are_blobs(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.frames)
        call = conversation.call("frames")
        conversation.protocol.send_stream(call.call_id)
        for number in range(5):
            item = conversation.attached(samehost.Blob(LARGE + bytes([number])))
            conversation.protocol.send_item(call.call_id, *item)
        conversation.flush()
        stream = future.result(DEADLINE)
        for number in range(3):
            with next(stream) as frame:
                assert frame.view[-1] == number
                del frame
        stream.close()
        future = pool.submit(client.call, "next")
        while isinstance(event := conversation.event(Released | Cancel | Call), Released | Cancel):
            if isinstance(event, Released):
                conversation.sharing.released(event.shares)
        conversation.reply(event, None)
        assert future.result(DEADLINE) is None
        assert conversation.sharing.shared_blobs == 0


def test_files_and_blobs_are_sent_as_items(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.take, iter([file, LARGE, 5]))
        call = conversation.call("take")
        received = []
        for _ in range(3):
            item = conversation.event(Item)
            received.append(conversation.value(item))
        assert said_by(received[0]) == b"what it says"
        assert received[1:] == [LARGE, 5]
        conversation.release()
        conversation.event(End)
        conversation.reply(call, None)
        assert future.result(DEADLINE) is None
        assert os.fstat(file.fileno()).st_size == 12


def test_a_result_behind_the_items_that_nobody_took_is_let_go(
    server: Scripted, pool: ThreadPoolExecutor, note: Path
) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.files)
        call = conversation.call("files")
        conversation.stream(call, 1)
        conversation.protocol.send_reply(call.call_id, *conversation.attached([file, samehost.Blob(LARGE)]))
        conversation.flush()
        stream = future.result(DEADLINE)
        assert next(stream) == 1
        other = pool.submit(client.call, "other")
        conversation.reply(conversation.call("other"), None)
        assert other.result(DEADLINE) is None  # and the result has come by now
        before = len(descriptors())
        stream.close()
        assert len(descriptors()) == before - 1
        release_of(conversation)
        assert conversation.sharing.shared_blobs == 0


def test_the_result_of_a_stream_stays_good_when_the_stream_is_closed(
    server: Scripted, pool: ThreadPoolExecutor, note: Path
) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.files)
        call = conversation.call("files")
        conversation.stream(call, 1)
        conversation.protocol.send_reply(call.call_id, *conversation.attached(file))
        conversation.flush()
        with future.result(DEADLINE) as stream:
            assert list(stream) == [1]
        assert said_by(stream.result) == b"what it says"


def test_an_item_that_is_asked_for_too_late_is_let_go(server: Scripted, pool: ThreadPoolExecutor, note: Path) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.call, "files", timeout=0.3)
        call = conversation.call("files")
        conversation.protocol.send_stream(call.call_id)
        conversation.protocol.send_item(call.call_id, *conversation.attached([file, samehost.Blob(LARGE)]))
        conversation.flush()
        stream = future.result(DEADLINE)
        other = pool.submit(client.call, "other")
        conversation.reply(conversation.call("other"), None)
        assert other.result(DEADLINE) is None
        until(lambda: not stream._waiting.deadline.left(), "the end of its time")
        with pytest.raises(errors.DeadlineExceeded):
            next(stream)
        while isinstance(event := conversation.event(Released | Cancel), Cancel):
            pass
        conversation.sharing.released(event.shares)
        assert conversation.sharing.shared_blobs == 0


class Picture(msgspec.Struct):
    data: samehost.Blob

    def __post_init__(self) -> None:
        while_reading.pop()()


while_reading: list[Callable[[], None]] = []


class Slow(samehost.Client):
    def slow(self) -> Picture:
        raise NotImplementedError


def test_a_result_that_takes_its_time_to_be_read_holds_up_no_other_call(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    calls: list[Future[int]] = []

    def call_another() -> None:
        calls.append(pool.submit(client.call, "echo", LARGE))
        assert calls[0].result(DEADLINE) == 1

    with samehost.connect(server.path, Slow) as client:
        conversation = greeted(server, client, pool)
        while_reading.append(call_another)
        future = pool.submit(client.slow)
        call = conversation.call("slow")
        result = conversation.attached({"data": samehost.Blob(LARGE)})
        conversation.protocol.send_reply(call.call_id, *result)
        conversation.flush()
        conversation.reply(conversation.call("echo"), 1)
        assert future.result(DEADLINE).data.view == LARGE


def test_a_file_that_comes_behind_the_servers_fault_is_closed(
    server: Scripted, pool: ThreadPoolExecutor, note: Path
) -> None:
    with samehost.connect(server.path) as client, note.open("rb") as file:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.echo, LARGE)
        call = conversation.call("echo")
        conversation.value(call)
        # One read brings both, as the first has no file.
        conversation.protocol.send_release([1 << 60])
        conversation.protocol.send_reply(call.call_id, *conversation.attached(file))
        conversation.flush()
        with pytest.raises(errors.OutcomeUnknown):
            future.result(DEADLINE)


def test_what_has_arrived_is_taken_in_its_order_after_an_interruption(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    """An exception right behind recvmsg(2), as of a signal handler, leaves what has come for whoever reads next."""

    def interrupt(frame: object, event: str, argument: object) -> None:
        if event == "c_return" and getattr(argument, "__name__", "") == "extend":
            sys.setprofile(None)
            raise KeyboardInterrupt

    def interrupted() -> None:
        sys.setprofile(interrupt)
        try:
            client._link.wait_for_memory(DEADLINE)
        finally:
            sys.setprofile(None)

    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(interrupted)
        conversation.protocol.send_ping(7)
        ((data, _),) = conversation.protocol.data_to_send()
        conversation.socket.sendall(data[:10])
        with pytest.raises(KeyboardInterrupt):
            future.result(DEADLINE)
        conversation.socket.sendall(data[10:])
        future = pool.submit(client.call, "first")
        second = conversation.call("first")
        conversation.reply(second, "second")
        assert future.result(DEADLINE) == "second"
