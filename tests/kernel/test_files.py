"""Open files that travel: passed both ways, owned, close-on-exec, closed exactly once."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import contextmanager

import pytest
from support import descriptors

import samehost
from samehost.errors import MessageTooLarge, UsageError
from samehost.kernel.files import Descriptor

TYPES = ["stream", "datagram", "seqpacket"]


@contextmanager
def pair(type="stream"):
    """Both ends of a connection."""
    kind = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}[type]
    ends = [samehost.dial(f"fd:{end.detach()}", type) for end in socket.socketpair(socket.AF_UNIX, kind)]
    with ends[0], ends[1]:
        yield ends


@contextmanager
def a_pipe():
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "wb", buffering=0) as writer:
        yield reader, writer


def received(count=1):
    """A received file; the other end of its pipe stays with the caller."""
    with pair() as (here, there), a_pipe() as (reader, _):
        here.send(b"x", [reader] * count)
        _, files = there.recv_with_files(files_max=count)
    return files if count > 1 else files[0]


@pytest.mark.parametrize("type", TYPES)
def test_files_travel_both_ways_with_their_bytes(type):
    with pair(type) as (here, there), a_pipe() as (reader, writer):
        here.send(b"write here", [writer])
        data, [passed] = there.recv_with_files(timeout=5)
        assert data == b"write here"
        with passed.open("wb", buffering=0) as file:
            file.write(b"through the file")
        assert reader.read(100) == b"through the file"

        there.send(b"read here", [reader.fileno()])
        _, [passed] = here.recv_with_files(timeout=5)
        writer.write(b"and back")
        with passed:
            assert os.read(passed.fileno(), 100) == b"and back"


def test_files_travel_between_processes_of_a_listener_and_a_dialler(place):
    path = place / "a.sock"
    (place / "note").write_text("from the file")
    with samehost.listen(path) as listener, samehost.dial(path) as client, listener.accept(timeout=5) as server:
        with open(place / "note") as note:
            client.sendall(b"see", [note])
        data, [passed] = server.recv_with_files(timeout=5)
        with passed.open("r", encoding="utf-8") as note:
            assert (data, note.read()) == (b"see", "from the file")


def test_the_sender_keeps_its_own():
    with pair() as (here, there), a_pipe() as (reader, writer):
        here.send(b"x", [reader])
        there.recv_with_files()[1][0].close()
        writer.write(b"still")
        assert reader.read(5) == b"still"


@pytest.mark.parametrize("type", TYPES)
def test_a_received_file_is_close_on_exec_from_the_start(type):
    with pair(type) as (here, there), a_pipe() as (reader, _):
        os.set_inheritable(reader.fileno(), True)
        here.send(b"x", [reader])
        with there.recv_with_files()[1][0] as passed:
            assert not os.get_inheritable(passed.fileno())


@pytest.mark.parametrize("type", TYPES)
def test_sixteen_files_travel_and_seventeen_are_refused_before_anything_is_sent(type):
    with pair(type) as (here, there), a_pipe() as (reader, _):
        here.send(b"x", [reader] * 16)
        _, files = there.recv_with_files(files_max=16)
        assert len({file.fileno() for file in files}) == 16
        for file in files:
            file.close()
        with pytest.raises(MessageTooLarge, match="17 files in one message, at most 16"):
            here.send(b"x", [reader] * 17)
        with pytest.raises(BlockingIOError):
            there._receive_now(10, 16)


def test_closing_twice_closes_once():
    passed = received()
    number = passed.fileno()
    passed.close()
    os.dup2(0, number, inheritable=False)  # somebody else gets the number
    passed.close()
    os.fstat(number)
    os.close(number)


def test_a_detached_descriptor_is_the_caller_s_to_close():
    passed = received()
    number = passed.detach()
    passed.close()
    os.fstat(number)
    os.close(number)


def test_a_forgotten_file_is_closed_with_a_warning():
    passed = received()
    number = passed.fileno()
    with pytest.warns(ResourceWarning, match=f"received file {number} was never closed"):
        del passed
    assert number not in descriptors()


def test_a_closed_file_gives_nothing():
    passed = received()
    assert repr(passed) == f"<File {passed.fileno()}>"
    with passed:
        pass
    assert repr(passed) == "<File closed>"
    for use in (passed.fileno, passed.detach, passed.open, passed.socket):
        with pytest.raises(ValueError, match="closed or handed on"):
            use()


def test_open_hands_the_descriptor_on():
    passed = received()
    number = passed.fileno()
    with passed.open() as file:
        assert file.fileno() == number
        assert passed.closed
    assert number not in descriptors()


def test_a_mode_that_cannot_be_leaves_the_file_ours():
    with received() as passed:
        with pytest.raises(ValueError, match="mode"):
            passed.open("no such mode")
        os.fstat(passed.fileno())


def test_a_file_that_cannot_be_opened_like_that_is_closed_once():
    passed = received()
    number = passed.fileno()
    with pytest.raises(OSError, match="not seekable"):
        passed.open("r+b")  # of a pipe; `open` closes the number, so it must not be closed by us again
    assert passed.closed
    assert number not in descriptors()


def test_a_passed_socket_becomes_a_socket():
    ours, passed_on = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pair() as (here, there), ours, passed_on:
        here.send(b"x", [passed_on])
        [passed] = there.recv_with_files()[1]
        with passed.socket() as theirs:
            assert passed.closed
            assert (theirs.family, theirs.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.send(b"by a socket that travelled")
            assert ours.recv(100) == b"by a socket that travelled"


def test_what_is_no_socket_stays_a_file():
    with received() as passed:
        with pytest.raises(OSError, match="non-socket"):
            passed.socket()
        os.fstat(passed.fileno())


def test_a_received_file_can_be_passed_on():
    with received() as passed, pair() as (here, there):
        here.send(b"x", [passed])
        with there.recv_with_files()[1][0] as further:
            assert os.path.sameopenfile(further.fileno(), passed.fileno())


def test_what_is_not_open_cannot_be_sent():
    closed_file = open(os.devnull)  # noqa: SIM115
    closed_file.close()
    closed_socket = socket.socket()
    closed_socket.close()
    closed = received()
    closed.close()
    with pair() as (here, there):
        free = os.dup(0)
        os.close(free)
        for wrong in (closed_file, closed_socket, closed, -1, free):
            with pytest.raises(UsageError, match="not open"):
                here.send(b"x", [wrong])
        here.send(b"the connection goes on")
        assert there.recv(timeout=5) == b"the connection goes on"


def test_files_need_a_byte_to_travel_with_on_a_stream():
    with pair() as (here, _), a_pipe() as (reader, _), pytest.raises(UsageError, match="at least one byte"):
        here.send(b"", [reader])


def test_files_need_no_byte_in_a_datagram():
    with pair("datagram") as (here, there), a_pipe() as (reader, _):
        here.send(b"", [reader])
        data, [passed] = there.recv_with_files(timeout=5)
        passed.close()
        assert data == b""


@pytest.mark.parametrize("wrong", [-1, 17])
def test_nobody_can_ask_for_more_files_than_travel(wrong):
    with pair() as (here, _), pytest.raises(MessageTooLarge, match=f"files_max={wrong}: from 0 to 16"):
        here.recv_with_files(files_max=wrong)


# What is to be sent, and waits.


def test_a_descriptor_of_our_own_stays_when_the_file_is_closed():
    with a_pipe() as (_, writer):
        held = Descriptor.of(writer)
        assert os.path.sameopenfile(held.fileno(), writer.fileno())
        assert held.fileno() != writer.fileno()
        assert not os.get_inheritable(held.fileno())
    os.fstat(held.fileno())


def test_a_descriptor_of_our_own_is_closed_without_a_word_when_it_is_dropped():
    with a_pipe() as (reader, writer):
        held = Descriptor.of(writer.fileno())
        number = held.fileno()
        assert number in descriptors()
        del held
        assert number not in descriptors()
        os.fstat(writer.fileno())
        os.fstat(reader.fileno())


def test_what_is_not_open_has_no_descriptor():
    free = os.dup(0)
    os.close(free)
    closed = socket.socket()
    closed.close()
    for wrong in (free, closed, -1):
        with pytest.raises(UsageError, match="is not open"):
            Descriptor.of(wrong)


def test_without_descriptors_left_the_error_is_the_kernel_s():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match=r"Too many open files|Invalid argument"):
            Descriptor.of(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
