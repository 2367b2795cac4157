"""The output of a blocking client: what goes at once, what waits, and the files beside it."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from support import descriptors, needs_root, python_as

from samehost.blocking.outbox import Outbox
from samehost.kernel.files import Descriptor


@contextlib.contextmanager
def joined() -> Iterator[tuple[Outbox, socket.socket]]:
    near, far = socket.socketpair()
    far.setblocking(False)
    with near, far:
        yield Outbox(near), far


def numbered(number: int) -> Descriptor:
    """A file that holds this number."""
    return Descriptor(os.eventfd(number))


def receive(far: socket.socket, size: int = 1 << 16) -> tuple[bytes, list[int]]:
    """What one read brings, and the numbers of the files that came along."""
    data, control, _, _ = far.recvmsg(size, socket.CMSG_LEN(64), socket.MSG_CMSG_CLOEXEC)
    numbers = []
    for _, _, content in control:
        for descriptor in array.array("i", content):
            numbers.append(os.eventfd_read(descriptor))
            os.close(descriptor)
    return data, numbers


def test_what_there_is_room_for_goes_at_once() -> None:
    with joined() as (outbox, far):
        assert outbox.send([(b"one", ())])
        assert outbox.send([(b"two", ()), (memoryview(b"three"), ())])
        assert outbox.send([])
        assert far.recv(100) == b"onetwothree"
        assert (outbox.written, outbox.sent, outbox.pending, len(outbox.queue)) == (11, 11, 0, 0)


def test_what_there_is_no_room_for_waits_and_keeps_its_order() -> None:
    with joined() as (outbox, far):
        large = os.urandom(1 << 20)
        assert not outbox.send([(large, ())])
        assert 0 < outbox.sent < outbox.written == len(large)
        sent = large
        for number in range(40):  # more than one message takes
            assert not outbox.send([(bytes([number]) * 9, ())])
            sent += bytes([number]) * 9
        received = b""
        while not outbox.push():
            received += far.recv(50_000)
        with contextlib.suppress(BlockingIOError):
            while True:
                received += far.recv(1 << 20)
        assert received == sent
        assert (outbox.pending, outbox.sent) == (0, len(sent))


def test_each_file_goes_with_the_first_byte_of_its_chunk() -> None:
    with joined() as (outbox, far):
        before = descriptors()
        assert outbox.send([(b"a", ()), (b"b", (numbered(1), numbered(2))), (b"c", ()), (b"d", (numbered(3),))])
        assert outbox.send([(b"e", (numbered(4),))])
        assert descriptors() == before
        assert [receive(far), receive(far), receive(far)] == [(b"abc", [1, 2]), (b"d", [3]), (b"e", [4])]


def test_a_file_that_waits_is_kept_until_its_chunk_begins_to_go() -> None:
    with joined() as (outbox, far):
        before = descriptors()
        assert not outbox.send([(bytes(1 << 20), (numbered(1),))])
        assert descriptors() == before
        assert not outbox.send([(b"x", (numbered(2),)), (b"y", ())])
        assert len(descriptors()) == len(before) + 1
        data, found = receive(far, 10)
        while not outbox.push():
            more, numbers = receive(far)
            data, found = data + more, found + numbers
        assert descriptors() == before
        with contextlib.suppress(BlockingIOError):
            while True:
                more, numbers = receive(far)
                data, found = data + more, found + numbers
        assert (data[-2:], len(data), found) == (b"xy", (1 << 20) + 2, [1, 2])


def test_files_are_closed_with_the_outbox_or_its_queue() -> None:
    with joined() as (outbox, _):
        before = descriptors()
        outbox.send([(bytes(1 << 20), ()), (b"x", (numbered(1),))])
        assert len(descriptors()) == len(before) + 1
        outbox.queue.clear()
        assert descriptors() == before


def test_a_peer_that_is_gone() -> None:
    with joined() as (outbox, far):
        assert not outbox.send([(bytes(1 << 20), ())])
        sent = outbox.sent
        far.close()
        with pytest.raises(ConnectionError):
            outbox.push()
        assert outbox.sent == sent
        outbox.queue.clear()
        with pytest.raises(BrokenPipeError):
            outbox.send([(b"x", ())])


class Peeking:
    """A socket in whose system calls a signal handler looks at the outbox."""

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        self.outbox = Outbox(self)  # type: ignore[arg-type]
        self.seen: list[int] = []
        signal.signal(signal.SIGUSR1, lambda *_: self.seen.append(self.outbox.pending))

    def send(self, *arguments):
        signal.raise_signal(signal.SIGUSR1)
        return self.connected.send(*arguments)

    def sendmsg(self, *arguments):
        signal.raise_signal(signal.SIGUSR1)
        return self.connected.sendmsg(*arguments)


def test_in_the_middle_of_a_system_call_all_of_it_is_taken_for_sent() -> None:
    near, far = socket.socketpair()
    with near, far:
        handler = signal.getsignal(signal.SIGUSR1)
        try:
            peeking = Peeking(near)
            peeking.outbox.send([(b"one", ())])
            peeking.outbox.send([(b"two", (numbered(1),)), (b"three", (numbered(2),))])
            assert peeking.seen == [0, 0, 0]
            assert peeking.outbox.sent == 11
        finally:
            signal.signal(signal.SIGUSR1, handler)


REFUSED = """
    import resource
    from samehost import limits
    from samehost.blocking.outbox import Outbox
    from samehost.kernel.files import Descriptor

    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    near, far = socket.socketpair()
    elsewhere, unread = socket.socketpair()
    for _ in range(3):
        socket.send_fds(elsewhere, [b"x"], [0] * 16)
    outbox = Outbox(near)
    print(outbox.send([(b"a", ()), (b"files", (Descriptor(os.eventfd(7)),))]), outbox.pending, flush=True)
    print(time.monotonic() - outbox.refused_since < 5, outbox.push(), outbox.pending, flush=True)
    limits.OUTPUT_STALL_SECONDS = 0.05
    try:
        while True:
            outbox.push()
    except samehost.errors.ReceiverFull as error:
        print(error, outbox.sent, flush=True)
    unread.close()
    print(outbox.push(), outbox.refused_since, socket.recv_fds(far, 100, 16)[0], flush=True)
"""


@needs_root
def test_files_that_the_kernel_refuses_may_be_tried_again_for_a_while() -> None:
    """ETOOMANYREFS: it counts a user's files in flight. A uid of its own, so that nobody else counts in."""
    with python_as(300_000 + os.getpid() % 1_000_000, REFUSED) as program:
        assert program.line() == "False 5"
        assert program.line() == "True False 5"
        said = program.line()
        assert said.startswith("for 0.05 s too many files of this user were on their way")
        assert said.endswith(" 1")
        assert program.line() == "True None b'afiles'"
        assert program.end() == 0, program.errors()
