"""One message at a time: files and bytes beside each other, and everything that a peer can do wrong."""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from support import DEADLINE, descriptors, needs_root, python_as, room_for_descriptors

import samehost
from samehost.errors import (
    ConnectionClosed,
    DeadlineExceeded,
    ForbiddenMessage,
    MessageTooLarge,
    ReceiverFull,
    Unavailable,
    UnexpectedFiles,
    UsageError,
)

KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


@contextmanager
def against(type="stream"):
    """A connection of ours, and the plain socket at its other end, which may do what it likes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, KINDS[type])
    theirs.settimeout(DEADLINE)
    with theirs, samehost.dial(f"fd:{ours.detach()}", type) as connection:
        yield connection, theirs


@contextmanager
def mailbox(place, **options):
    """A listener for datagrams, and a client of it."""
    path = place / "d.sock"
    with samehost.listen(path, "datagram", **options) as listener, samehost.dial(path, "datagram") as client:
        yield listener, client


def send_files(sender, data, count=1):
    socket.send_fds(sender, [data], [0] * count)


# Files that were not asked for


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
@pytest.mark.parametrize(("asked", "sent"), [(0, 1), (0, 16), (1, 2), (2, 3), (3, 4), (15, 16), (16, 17), (16, 253)])
def test_more_files_than_asked_for_are_all_closed_and_the_connection_ends(type, asked, sent):
    # 3 and 4 is where a rounded-up control buffer has room for one more than was asked for.
    with against(type) as (connection, peer):
        before = descriptors()
        send_files(peer, b"take these", sent)
        with pytest.raises(UnexpectedFiles, match=f"more open files than the {asked} that were asked for"):
            connection.recv_with_files(files_max=asked, timeout=5)
        assert descriptors() == before
        assert peer.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            peer.send(b"x")


@pytest.mark.parametrize("asked", range(17))
def test_exactly_as_many_files_as_asked_for_are_delivered(asked):
    with against() as (connection, peer):
        send_files(peer, b"x", asked)
        _, files = connection.recv_with_files(files_max=asked, timeout=5)
        assert len(files) == asked
        for file in files:
            file.close()


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_nothing_is_delivered_after_a_broken_rule(type):
    # What was sent behind it is queued already, and would look as if nothing was missing.
    with against(type) as (connection, peer):
        send_files(peer, b"one")
        peer.send(b"two")
        with pytest.raises(UnexpectedFiles):
            connection.recv()
        assert connection.recv() == b""
        assert connection.recv(timeout=5) == b""


@pytest.mark.parametrize("room", [0, 1, 3])
def test_files_cut_short_by_the_descriptor_limit_are_all_closed(room):
    with against() as (connection, peer):
        send_files(peer, b"four", 4)
        before = descriptors()
        with room_for_descriptors(room), pytest.raises(UnexpectedFiles, match="RLIMIT_NOFILE"):
            connection.recv_with_files(files_max=4)
        assert descriptors() == before
        assert peer.recv(1) == b""


@needs_root
def test_too_many_files_under_way_are_refused_with_a_typed_error():
    # The kernel counts a user's files in flight against RLIMIT_NOFILE; a uid of its own, so that nobody else counts in.
    with python_as(
        100_000 + os.getpid() % 1_000_000,
        """
        import resource
        ours, theirs = socket.socketpair()
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        with theirs, samehost.dial(f"fd:{ours.detach()}") as connection:
            try:
                for sent in range(10):
                    connection.send(b"x", [0] * 16)
            except samehost.errors.ReceiverFull as error:
                print(sent, error, flush=True)
            connection.send(b"without files")  # the connection itself is fine
            print(len(theirs.recv(100)), flush=True)
        """,
    ) as program:
        said = program.line()
        assert said.startswith("3 too many files of this user are on their way")
        assert "RLIMIT_NOFILE" in said
        assert int(program.line()) >= 1
        assert program.end() == 0, program.errors()


# Which message a file belongs to


@contextmanager
def numbered_files(place, count):
    """Open files, each of which holds its number."""
    with ExitStack() as files:
        for number in range(count):
            (place / str(number)).write_text(str(number))
        yield [files.enter_context(open(place / str(number))) for number in range(count)]


def content_of(file):
    with file.open("r") as opened:
        return opened.read()


def test_files_stay_on_their_packet(place):
    with against("seqpacket") as (connection, peer), numbered_files(place, 4) as files:
        for number in range(8):
            socket.send_fds(peer, [str(number).encode()], [files[number // 2].fileno()] if number % 2 else [])
        for number in range(8):
            data, passed = connection.recv_with_files(timeout=5)
            assert data == str(number).encode()
            assert [content_of(file) for file in passed] == ([str(number // 2)] if number % 2 else [])


def test_files_on_a_stream_come_with_their_first_byte_and_never_with_later_bytes(place):
    # Bytes before them may come along in the same read, which is why a protocol counts descriptors in its frames.
    sent = [(b"a", []), (b"b", [0]), (b"c", [1, 2]), (b"d", []), (b"e", []), (b"f", [3])]
    with against() as (connection, peer), numbered_files(place, 4) as files:
        for data, numbers in sent:
            socket.send_fds(peer, [data], [files[number].fileno() for number in numbers])
        peer.close()
        got, place_of = b"", {}
        while True:
            data, passed = connection.recv_with_files(files_max=16, timeout=5)
            if not data:
                break
            got += data
            for file in passed:
                place_of[content_of(file)] = got[-1:]
        assert got == b"abcdef"
        assert place_of == {"0": b"b", "1": b"c", "2": b"c", "3": b"f"}


def test_a_message_read_in_pieces_brings_its_files_once_with_the_first():
    with against() as (connection, peer):
        send_files(peer, b"abc")
        pieces = [connection.recv_with_files(1, timeout=5) for _ in range(3)]
        assert [(data, len(files)) for data, files in pieces] == [(b"a", 1), (b"b", 0), (b"c", 0)]
        pieces[0][1][0].close()


def test_a_long_send_passes_its_files_once():
    data = os.urandom(3_000_000)
    with against() as (connection, peer), ThreadPoolExecutor(1) as threads:
        sending = threads.submit(connection.sendall, data, [0], timeout=DEADLINE)
        got, count = bytearray(), 0
        while len(got) < len(data):
            piece, files, _, _ = socket.recv_fds(peer, 65536, 16)
            got += piece
            count += len(files)
            for file in files:
                os.close(file)
        sending.result()
    assert got == data
    assert count == 1


# Streams


def test_sendall_sends_every_byte_of_wide_items():
    numbers = array.array("Q", range(200_000))
    with against() as (connection, peer), ThreadPoolExecutor(1) as threads:
        sending = threads.submit(connection.sendall, memoryview(numbers), timeout=DEADLINE)
        got = bytearray()
        while len(got) < len(numbers) * 8:
            got += peer.recv(65536)
        sending.result()
    assert got == numbers.tobytes()


def test_sending_to_nobody_is_an_error_and_no_signal():
    with against() as (connection, peer):
        peer.close()
        with pytest.raises(ConnectionClosed, match="the other end is gone, 5 bytes were not sent"):
            connection.send(b"hello")


def test_a_peer_that_leaves_unread_bytes_behind_is_told_from_one_that_ends():
    with against() as (connection, peer):
        connection.send(b"never read")
        peer.close()
        with pytest.raises(ConnectionClosed, match="Connection reset"):
            connection.recv()


def test_a_connection_closed_here_is_said_to_be():
    with against() as (connection, _):
        connection.close()
        connection.close()
        for use in (connection.recv, lambda: connection.recv(timeout=1), lambda: connection.send(b"x")):
            with pytest.raises(ConnectionClosed):
                use()


@pytest.mark.parametrize("size", [0, -1])
def test_receiving_into_no_room_is_refused_and_loses_nothing(size):
    with against() as (connection, peer):
        peer.send(b"kept")
        with pytest.raises(UsageError, match=f"size={size}"):
            connection.recv(size)
        assert connection.recv() == b"kept"


def test_a_handed_socket_that_does_not_block_is_waited_for_all_the_same():
    ours, peer = socket.socketpair()
    shared = ours.dup()  # O_NONBLOCK belongs to all who share the socket
    with peer, shared, samehost.dial(f"fd:{ours.detach()}") as connection, ThreadPoolExecutor(1) as threads:
        shared.setblocking(False)
        receiving = threads.submit(connection.recv)
        peer.send(b"here")
        assert receiving.result(DEADLINE) == b"here"


def test_a_default_timeout_for_other_sockets_is_not_ours(place):
    socket.setdefaulttimeout(0.05)
    try:
        with (
            samehost.listen(place / "a.sock") as listener,
            samehost.dial(place / "a.sock") as client,
            listener.accept(timeout=5) as server,
        ):
            for end in client, server:
                with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
                    end.recv(timeout=0.2)
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_credentials_that_whoever_made_the_socket_turned_on_are_no_unexpected_files(place, type):
    # As systemd does for PassCredentials=yes; accepted connections inherit it, those that were queued before as well.
    plain = socket.socket(socket.AF_UNIX, KINDS[type])
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    plain.bind(str(place / "a.sock"))
    plain.listen()
    with samehost.dial(place / "a.sock", type) as client, samehost.listen(f"fd:{plain.detach()}", type) as listener:
        client.send(b"hello", [0])
        with listener.accept(timeout=5) as server:
            data, [passed] = server.recv_with_files(timeout=5)
            passed.close()
            assert data == b"hello"


def test_credentials_on_a_handed_connection_are_no_unexpected_files():
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with peer, samehost.dial(f"fd:{ours.detach()}") as connection:
        peer.send(b"hello")
        assert connection.recv(timeout=5) == b"hello"


# Packets


def test_an_empty_packet_cannot_be_sent():
    with against("seqpacket") as (connection, _), pytest.raises(UsageError, match="cannot be told from the end"):
        connection.send(b"")


@pytest.mark.parametrize("files", [0, 1])
def test_an_empty_packet_is_the_end_for_good(files):
    with against("seqpacket") as (connection, peer):
        before = descriptors()
        send_files(peer, b"", files)
        peer.send(b"later")
        assert connection.recv_with_files(timeout=5) == (b"", [])
        assert connection.recv_with_files(timeout=5) == (b"", [])
        assert descriptors() == before


@pytest.mark.parametrize("files", [0, 1])
def test_a_packet_over_the_limit_ends_the_connection(files):
    with against("seqpacket") as (connection, peer):
        before = descriptors()
        send_files(peer, b"12345", files)
        peer.send(b"later")
        with pytest.raises(ForbiddenMessage, match="longer than the limit of 4 bytes"):
            connection.recv_with_files(4, timeout=5)
        assert connection.recv(timeout=5) == b""
        assert descriptors() == before
        assert peer.recv(1) == b""


def test_a_packet_of_just_the_limit_arrives_whole():
    with against("seqpacket") as (connection, peer):
        peer.send(b"1234")
        assert connection.recv(4, timeout=5) == b"1234"


@pytest.mark.parametrize("type", ["seqpacket", "datagram"])
def test_a_message_longer_than_the_kernel_takes_is_refused_and_the_connection_lives(type):
    with against(type) as (connection, peer):
        with pytest.raises(MessageTooLarge, match=r"a message of 50000000 bytes .*wmem_max"):
            connection.send(bytes(50_000_000))
        connection.send(b"short")
        assert peer.recv(100) == b"short"


# Datagrams


def flood(send, *arguments, **options):
    """Send until there is no room, which is an error."""
    for _ in range(1000):
        send(*arguments, **options)


def test_a_datagram_over_the_limit_is_dropped_counted_and_logged(place, caplog):
    with mailbox(place) as (listener, client):
        client.send(b"12345")
        client.send(b"1234")
        assert listener.receive(4, timeout=5).data == b"1234"
        assert listener.dropped == 1
    assert "dropped a datagram: the peer sent a message longer than the limit of 4 bytes" in caplog.text


@pytest.mark.parametrize(("asked", "sent"), [(0, 1), (1, 2), (3, 4), (16, 17)])
def test_a_datagram_with_unexpected_files_is_dropped_with_them(place, asked, sent):
    with mailbox(place) as (listener, client):
        before = descriptors()
        send_files(client.socket, b"bad", sent)
        send_files(client.socket, b"good", asked)
        with listener.receive(files_max=asked, timeout=5) as datagram:
            assert datagram.data == b"good"
            assert len(datagram.files) == asked
            assert listener.dropped == 1
        assert descriptors() == before  # those of the good one are closed with it


def test_an_empty_datagram_is_a_datagram(place):
    with mailbox(place) as (listener, client):
        client.send(b"")
        assert listener.receive(timeout=5).data == b""


def test_a_receiver_that_does_not_read_is_waited_for_and_then_named(place):
    with mailbox(place) as (listener, client):
        began = time.monotonic()
        with pytest.raises(ReceiverFull, match=r"d\.sock does not read: its queue .* stayed full for 0\.2 s"):
            flood(client.send, b"x", timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 5
        listener.receive(timeout=5)
        client.send(b"there is room again", timeout=5)


def test_without_a_timeout_a_datagram_is_given_up_after_a_second(place):
    with mailbox(place) as (_, client):
        began = time.monotonic()
        with pytest.raises(ReceiverFull, match="stayed full for 1 s"):
            flood(client.send, b"x")
        assert 1 <= time.monotonic() - began < 5


def test_a_send_goes_on_as_soon_as_the_receiver_reads(place):
    with mailbox(place) as (listener, client), ThreadPoolExecutor(1) as threads:
        with pytest.raises(ReceiverFull):
            flood(client.send, b"old", timeout=0)
        sending = threads.submit(client.send, b"new", timeout=DEADLINE)
        while listener.receive(timeout=5).data != b"new":
            pass
        assert sending.result() == 3


def test_a_reply_to_a_sender_that_does_not_read_is_given_up(place):
    with mailbox(place) as (listener, client):
        client.send(b"ask")
        question = listener.receive(timeout=5)
        began = time.monotonic()
        with pytest.raises(ReceiverFull, match=r"does not read: its queue stayed full for 0\.2 s"):
            flood(question.reply, b"answer", timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 5
        assert client.recv(timeout=5) == b"answer"
        question.reply(b"room again", timeout=0)  # no time to wait, but a try all the same
        with pytest.raises(ReceiverFull):
            question.reply(b"too many", timeout=0)


def test_a_reply_goes_on_as_soon_as_the_sender_reads(place):
    with mailbox(place) as (listener, client), ThreadPoolExecutor(1) as threads:
        client.send(b"ask")
        question = listener.receive(timeout=5)
        with pytest.raises(ReceiverFull):
            flood(question.reply, b"old", timeout=0)
        replying = threads.submit(question.reply, b"new", timeout=DEADLINE)
        while client.recv(timeout=5) != b"new":
            pass
        replying.result()


def test_a_sender_gets_an_address_for_replies_and_leaves_no_file(place):
    with mailbox(place) as (listener, client):
        before = sorted(os.listdir(place))
        client.send(b"ask")
        question = listener.receive(timeout=5)
        assert question.sender.startswith("@")
        assert question.peer.pid == os.getpid()
        question.reply(b"answer", [0])
        data, [passed] = client.recv_with_files(timeout=5)
        passed.close()
        assert data == b"answer"
        assert sorted(os.listdir(place)) == before
    assert os.listdir(place) == []


def test_a_sender_without_an_address_gets_no_reply(place):
    with mailbox(place) as (listener, _), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
        plain.sendto(b"ask", str(place / "d.sock"))
        question = listener.receive(timeout=5)
        assert question.sender is None
        assert "a sender without address" in repr(question)
        with pytest.raises(Unavailable, match=f"pid {os.getpid()}.* has no address to reply to"):
            question.reply(b"answer")


def test_a_reply_to_a_sender_that_is_gone_says_so(place):
    with mailbox(place) as (listener, client):
        client.send(b"ask")
        client.close()
        with pytest.raises(ConnectionClosed, match="the other end is gone"):
            listener.receive(timeout=5).reply(b"answer")


def test_a_sender_s_own_name_cannot_write_into_our_log(place):
    with mailbox(place) as (listener, _), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
        plain.bind(b"\0evil\n\x1b[2J")
        plain.sendto(b"ask", str(place / "d.sock"))
        question = listener.receive(timeout=5)
        with pytest.raises(ReceiverFull) as caught:
            flood(question.reply, b"answer", timeout=0)
        for text in (str(caught.value), repr(question)):
            assert "@evil\\n\\x1b[2J" in text
            assert text.isprintable()


@needs_root
def test_a_reply_that_the_sender_s_file_does_not_admit_is_not_permitted(open_place):
    # The server is nobody; root's own reply address is root's alone.
    with python_as(
        65534,
        """
        with samehost.listen(sys.argv[1], "datagram", mode=0o666) as listener:
            print("ready", flush=True)
            question = listener.receive(timeout=20)
            try:
                question.reply(b"answer")
            except samehost.errors.NotPermitted as error:
                print(error, flush=True)
        """,
        str(open_place / "d.sock"),
    ) as program:
        assert program.line() == "ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
            os.fchmod(plain.fileno(), 0o600)
            plain.bind(str(open_place / "reply.sock"))
            plain.sendto(b"ask", str(open_place / "d.sock"))
            assert "may not be sent to this receiver (Permission denied)" in program.line()


@pytest.mark.parametrize("timeout", [None, 5])
def test_shutdown_wakes_a_thread_that_waits_for_a_datagram(place, timeout):
    with mailbox(place) as (_, client), ThreadPoolExecutor(1) as threads:
        waiting = threading.Event()
        plain_receive = client._receive_now

        def receive_now(*arguments, **options):
            waiting.set()
            return plain_receive(*arguments, **options)

        client._receive_now = receive_now
        receiving = threads.submit(client.recv, timeout=timeout)
        assert waiting.wait(DEADLINE)
        client.shutdown()
        assert receiving.result(DEADLINE) == b""
        assert client.recv(timeout=1) == b""
