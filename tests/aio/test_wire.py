"""The pump of both ends: what it hands on of a socket, in which order, and when it stops."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator

import pytest
from loops import Run, eventually
from support import DEADLINE, descriptors, kernel_passes_files, needs_root, python_as, room_for_descriptors

from samehost import limits
from samehost.aio.wire import SocketWire
from samehost.errors import UnexpectedFiles
from samehost.kernel.files import Descriptor, File

SO_PASSRIGHTS = 83


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = b""
        self.files: list[tuple[int, File]] = []  # behind how many bytes each came
        self.error: Exception | None = None
        self.wire: SocketWire | None = None
        self.when_received: Callable[[], object] = lambda: None

    def received(self, data: bytes, files: tuple[File, ...] = ()) -> None:
        assert data
        self.data += data
        self.files += [(len(self.data), file) for file in files]
        self.told.append("received")
        self.when_received()

    def ended(self) -> None:
        self.told.append("ended")

    def lost(self, error: Exception) -> None:
        self.told.append("lost")
        self.error = error
        assert self.wire is not None
        self.wire.close()

    def drained(self) -> None:
        self.told.append("drained")

    def stalled(self) -> None:
        self.told.append("stalled")


@contextlib.contextmanager
def joined(takes_files: bool = False) -> Iterator[tuple[SocketWire, Owner, socket.socket]]:
    """A wire in the running loop, its owner, and the peer's socket."""
    near, far = socket.socketpair()
    far.setblocking(False)
    owner = Owner()
    owner.wire = SocketWire(asyncio.get_running_loop(), near, owner, takes_files)
    with far:
        try:
            yield owner.wire, owner, far
        finally:
            owner.wire.close()
            for _, file in owner.files:
                file.close()


def numbered(number: int) -> Descriptor:
    """A file that holds this number, which `number_in` takes out of it."""
    return Descriptor(os.eventfd(number))


def number_in(file: File | int) -> int:
    return os.eventfd_read(file if isinstance(file, int) else file.fileno())


def receive(far: socket.socket, size: int = 1 << 16) -> tuple[bytes, list[int]]:
    """What one read brings, and the numbers of the files that came along."""
    data, control, _, _ = far.recvmsg(size, socket.CMSG_LEN(64), socket.MSG_CMSG_CLOEXEC)
    files = [File(file) for _, _, content in control for file in array.array("i", content)]
    numbers = [number_in(file) for file in files]
    for file in files:
        file.close()
    return data, numbers


async def until_told(owner: Owner, *told: str) -> None:
    """Wait until the owner has been told just this."""
    async with asyncio.timeout(DEADLINE):
        while owner.told != list(told):
            assert len(owner.told) <= len(told), owner.told
            await asyncio.sleep(0.001)


async def settled() -> None:
    """Let the loop see whatever has happened by now."""
    for _ in range(5):
        await asyncio.sleep(0.001)


def test_what_comes_is_handed_on_and_then_the_end(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            far.send(b"before anybody reads")
            await settled()
            assert owner.told == []
            wire.read()
            wire.read()
            await until_told(owner, "received")
            far.send(b"more")
            far.shutdown(socket.SHUT_WR)
            await until_told(owner, "received", "received", "ended")
            assert owner.data == b"before anybody readsmore"
            assert not wire.is_hung_up  # it still reads
            wire.send([(b"answer", ())])
            assert far.recv(100) == b"answer"
            far.close()
            assert wire.is_hung_up
            wire.read()
            await settled()
            assert owner.told == ["received", "received", "ended"]

    run(main())


@pytest.mark.parametrize("size", [10, limits.RECEIVE_BYTES_AT_FIRST, 2 * limits.RECEIVE_BYTES_AT_FIRST + 1])
def test_a_peer_that_leaves_without_reading_is_noticed_behind_what_it_has_said(run: Run, size: int) -> None:
    """With output unread the socket has an error (EPOLLERR), of which some loops tell just once."""

    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            await settled()
            wire.send([(b"unread", ())])
            assert far.send(bytes(size)) == size
            far.close()
            await eventually(lambda: wire.is_closed)
            assert len(owner.data) == size
            assert isinstance(owner.error, ConnectionResetError)
            assert owner.told.count("lost") == 1

    run(main())


def test_pausing_leaves_what_comes_where_it_is(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            owner.when_received = wire.pause
            far.send(b"one")
            await until_told(owner, "received")
            far.send(b"two")
            await settled()
            assert owner.data == b"one"
            wire.read_now()
            assert owner.data == b"onetwo"
            wire.read_now()  # nothing is there
            far.send(b"three")
            wire.read()
            await until_told(owner, "received", "received", "received")

    run(main())


def test_output_without_room_waits_for_it_and_keeps_its_order(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.send([(b"small", ())])
            assert (wire.pending_bytes, wire.sent_bytes, owner.told) == (0, 5, [])
            sent = b"small"
            for number in range(600):  # two pieces each: more than one sendmsg takes
                chunks = [(bytes([number % 251]) * 3000, ()), (memoryview(bytes([number % 251, 255]) * 50), ())]
                sent += b"".join(bytes(data) for data, _ in chunks)
                wire.send(chunks)
            assert wire.pending_bytes + wire.sent_bytes == len(sent)
            assert wire.pending_bytes > 0
            received = b""
            async with asyncio.timeout(DEADLINE):
                while len(received) < len(sent):
                    with contextlib.suppress(BlockingIOError):
                        received += far.recv(50_000)
                    await asyncio.sleep(0)
            assert received == sent
            assert (wire.pending_bytes, wire.sent_bytes) == (0, len(sent))
            assert owner.told[-1] == "drained"

    run(main())


def test_a_peer_that_reads_nothing_is_told_of_and_one_that_reads_a_little_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.send([(bytes(1 << 21), ())])
            for _ in range(6):
                await asyncio.sleep(0.05)
                assert "stalled" not in owner.told
                with contextlib.suppress(BlockingIOError):
                    while far.recv(1 << 16):
                        pass
            await until_told(owner, "stalled")
            await until_told(owner, "stalled", "stalled")  # as the owner may leave it at that
            while wire.pending_bytes:
                with contextlib.suppress(BlockingIOError):
                    far.recv(1 << 16)
                await asyncio.sleep(0)
            assert owner.told[-1] == "drained"
            await asyncio.sleep(0.3)
            assert owner.told[-1] == "drained"

    monkeypatch.setattr(limits, "OUTPUT_STALL_SECONDS", 0.2)
    run(main())


def test_a_peer_that_is_gone_when_something_is_sent(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            far.send(b"last words")
            far.close()
            wire.send([(b"never", ())])
            wire.send([(b"arrives", ()), (b"either", ())])
            assert (owner.told, wire.sent_bytes, wire.pending_bytes) == ([], 0, 0)  # not while it sends
            await settled()
            assert owner.data == b"last words"
            assert owner.told in (["received", "ended"], ["received", "lost"])

    run(main())


def test_a_peer_that_is_gone_while_output_waits(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.send([(bytes(1 << 21), ())])
            sent = wire.sent_bytes
            assert wire.pending_bytes
            far.close()
            await until_told(owner, "lost")
            assert (wire.sent_bytes, wire.pending_bytes, wire.is_closed) == (sent, 0, True)

    run(main())


def test_files_that_nobody_asked_for_are_closed_and_end_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_passes_files(monkeypatch)

    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            before = descriptors()
            socket.send_fds(far, [b"x"], [0])
            await until_told(owner, "lost")
            assert isinstance(owner.error, UnexpectedFiles)
            assert owner.data == b""
            assert len(descriptors()) < len(before)

    run(main())


def test_a_kernel_that_can_refuses_files_before_they_are_sent(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            try:
                far.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
            except OSError:
                pytest.skip("SKIPPED LOUDLY: this kernel has no SO_PASSRIGHTS (Linux 6.16)")
            wire.read()
            with pytest.raises(PermissionError):
                socket.send_fds(far, [b"x"], [0])
            far.send(b"y")
            await until_told(owner, "received")
            assert owner.data == b"y"

    run(main())


def test_a_closed_wire_tells_nothing_more(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            wire.send([(bytes(1 << 21), ())])
            far.send(b"x")
            wire.close()
            wire.close()
            wire.read()
            wire.send([(b"x", ())])
            await settled()
            assert (owner.told, wire.pending_bytes, wire.is_closed) == ([], 0, True)

    run(main())


def test_an_owner_may_close_it_in_the_middle_of_a_read(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            owner.when_received = wire.close
            far.send(bytes(2 * limits.RECEIVE_BYTES_AT_FIRST))
            wire.read()
            await settled()
            assert owner.told == ["received"]

    run(main())


def test_there_is_room_for_long_reads_until_many_were_short(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            long = bytes(2 * limits.RECEIVE_BYTES_AT_FIRST)
            sizes = []

            def received() -> None:
                sizes.append(len(owner.data))
                owner.data = b""

            owner.when_received = received
            far.send(long)
            while wire.read_now():
                wire.read()
            assert sizes == [limits.RECEIVE_BYTES_AT_FIRST] * 2
            for count in range(limits.LONG_READS_KEPT):
                sizes.clear()
                far.send(long if count == 1 else b"short")
                assert wire.read_now()
                assert not wire.read_now()
                assert len(sizes) == 1
            for _ in range(limits.LONG_READS_KEPT):
                far.send(b"short")
                wire.read_now()
            far.send(long)
            sizes.clear()
            wire.read_now()
            assert sizes == [limits.RECEIVE_BYTES_AT_FIRST]

    run(main())


# Files that come


def test_files_are_handed_on_with_the_bytes_they_came_with(run: Run) -> None:
    async def main() -> None:
        with joined(takes_files=True) as (wire, owner, far):
            sent = [os.eventfd(number) for number in (7, 8, 9)]
            far.send(b"none")
            socket.send_fds(far, [b"two"], sent[:2])
            socket.send_fds(far, [b"one"], sent[2:])
            for descriptor in sent:
                os.close(descriptor)
            wire.read()
            await until_told(owner, "received", "received")
            assert owner.data == b"nonetwoone"
            assert [(at, number_in(file)) for at, file in owner.files] == [(7, 7), (7, 8), (10, 9)]
            for _, file in owner.files:
                assert fcntl.fcntl(file.fileno(), fcntl.F_GETFD) == fcntl.FD_CLOEXEC
            far.send(b"more")
            await until_told(owner, "received", "received", "received")
            assert len(owner.files) == 3

    run(main())


@pytest.mark.parametrize(("count", "is_taken"), [(16, True), (17, False)])
def test_as_many_files_are_taken_as_a_frame_may_have(run: Run, count: int, is_taken: bool) -> None:
    async def main() -> None:
        with joined(takes_files=True) as (wire, owner, far):
            wire.read()
            before = descriptors()
            socket.send_fds(far, [b"x"], [0] * count)
            await until_told(owner, "received" if is_taken else "lost")
            assert len(owner.files) == (count if is_taken else 0)
            if not is_taken:
                assert isinstance(owner.error, UnexpectedFiles)
                assert "more open files than the 16" in str(owner.error)
                assert len(descriptors()) < len(before)  # the wire is closed

    run(main())


def test_files_that_this_process_has_no_room_for_end_it(run: Run) -> None:
    async def main() -> None:
        with joined(takes_files=True) as (wire, owner, far):
            wire.read()
            await settled()
            socket.send_fds(far, [b"x"], [0] * 4)
            before = descriptors()
            with room_for_descriptors(2):
                wire.read_now()
            assert owner.told == ["lost"]
            assert "RLIMIT_NOFILE" in str(owner.error)
            assert descriptors().keys() < before.keys()

    run(main())


# Files that go


def test_each_file_goes_with_the_first_byte_of_its_chunk(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, _, far):
            before = descriptors()
            wire.send([(b"a", ()), (b"b", (numbered(1), numbered(2))), (b"c", ()), (b"d", (numbered(3),)), (b"e", ())])
            assert descriptors() == before  # as each is dropped once it is sent
            assert receive(far) == (b"abc", [1, 2])
            assert receive(far) == (b"de", [3])
            wire.send([(b"f", (numbered(4),))])
            assert receive(far) == (b"f", [4])
            assert (wire.pending_bytes, wire.sent_bytes) == (0, 6)

    run(main())


def test_a_file_that_waits_is_kept_until_its_chunk_begins_to_go(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            empty = descriptors()
            wire.send([(bytes(1 << 20), (numbered(1),))])
            assert wire.pending_bytes
            assert descriptors() == empty  # its first byte is gone
            wire.send([(b"x", (numbered(2),)), (b"y", ())])
            wire.send([(bytes(1 << 20), (numbered(3), numbered(4)))])
            wire.send([(b"z", ())])
            assert len(descriptors()) == len(empty) + 3
            data, found = b"", []
            async with asyncio.timeout(DEADLINE):
                while len(data) < (2 << 20) + 3:
                    with contextlib.suppress(BlockingIOError):
                        some, numbers = receive(far, 50_000)
                        found += [(number, len(data), len(data) + len(some)) for number in numbers]
                        data += some
                    await asyncio.sleep(0)
            assert data == bytes(1 << 20) + b"xy" + bytes(1 << 20) + b"z"
            places = {1: 0, 2: 1 << 20, 3: (1 << 20) + 2, 4: (1 << 20) + 2}
            assert [number for number, _, _ in found] == [1, 2, 3, 4]
            assert all(begin <= places[number] < end for number, begin, end in found)
            assert owner.told[-1] == "drained"
            assert descriptors() == empty

    run(main())


@pytest.mark.parametrize("how", ["close", "the peer is gone"])
def test_files_whose_turn_never_comes_are_closed(run: Run, how: str) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            before = descriptors()
            wire.send([(bytes(1 << 21), ())])
            wire.send([(b"x", (numbered(1),)), (b"y", (numbered(2),))])
            assert len(descriptors()) == len(before) + 2
            if how == "close":
                wire.close()
            else:
                far.close()
                await until_told(owner, "lost")
            wire.send([(b"z", (numbered(3),))])
            assert len(descriptors()) < len(before)

    run(main())


REFUSED = """
    import asyncio, os, resource
    from samehost import limits
    from samehost.aio.wire import SocketWire
    from samehost.kernel.files import Descriptor

    class Owner:
        def drained(self): print("drained", flush=True)
        def stalled(self): print("stalled", flush=True)
        def lost(self, error): print(type(error).__name__, error, flush=True); ended.set()
        def ended(self): pass

    async def main():
        global ended
        ended = asyncio.Event()
        near, far = socket.socketpair()
        elsewhere, unread = socket.socketpair()
        for _ in range(3):
            socket.send_fds(elsewhere, [b"x"], [0] * 16)
        wire = SocketWire(asyncio.get_running_loop(), near, Owner())
        wire.send([(b"files", (Descriptor(os.eventfd(7)),)), (b"more", ())])
        wire.send([(b"!", ())])
        print(wire.pending_bytes, wire.sent_bytes, flush=True)
        if sys.argv[1] == "free":
            await asyncio.sleep(0.1)
            unread.close()
            while wire.pending_bytes:
                await asyncio.sleep(0.001)
            data, files, _, _ = socket.recv_fds(far, 100, 16)
            print(data, os.eventfd_read(files[0]), flush=True)
        else:
            limits.OUTPUT_STALL_SECONDS = 0.2
            begun = time.process_time()
            await ended.wait()
            assert time.process_time() - begun < 0.1
            print(wire.pending_bytes, wire.sent_bytes, flush=True)
        wire.close()

    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    asyncio.run(main())
"""


@needs_root
@pytest.mark.parametrize("what", ["free", "wait"])
def test_files_that_the_kernel_refuses_are_tried_again_for_a_while(what: str) -> None:
    """ETOOMANYREFS: it counts a user's files in flight. A uid of its own, so that nobody else counts in."""
    with python_as(200_000 + os.getpid() % 1_000_000, REFUSED, what) as program:
        assert program.line() == "10 0"
        if what == "free":
            assert program.line() == "drained"
            assert program.line() == "b'filesmore!' 7"
        else:
            assert program.line().startswith("ReceiverFull for 0.2 s too many files of this user were on their way")
            assert program.line() == "0 0"
        assert program.end() == 0, program.errors()
