"""What a connection shares: parts of arenas go out, come back whatever happens, and are never used anew too early."""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import threading

import msgspec
import pytest
from sharing_ends import ALL, Ends, Sent, passed_on
from support import NOBODY

import samehost
from samehost import limits
from samehost.codec import MSGPACK
from samehost.errors import BadBlob, RemoteProtocolError
from samehost.extensions import BLOBS, FILES, features
from samehost.kernel import memory, sharing
from samehost.kernel.arena import the_arena
from samehost.kernel.attaching import Encoded, encode_attached
from samehost.kernel.files import Descriptor, File
from samehost.kernel.sharing import Sharing
from samehost.protocol import ARENAS, SEALED
from samehost.protocol import FILES as FILES_BIT
from samehost.protocol.events import ArenaPassed

PAGE = memory.PAGE_BYTES


@pytest.fixture
def ends():
    pair = Ends()
    yield pair
    pair.close()
    assert the_arena().used_bytes == 0


def a_blob(data=b"shared", size=PAGE):
    blob = samehost.allocate(size)
    blob.view[: len(data)] = data
    return blob


def test_a_blob_written_in_place_arrives_where_it_is_and_comes_back(ends):
    sent = a_blob()
    received = ends.trip(sent)
    assert bytes(received)[:6] == b"shared"
    sent.view[0] = 0x53
    assert received.view[0] == 0x53  # no copy
    assert received.view.readonly
    assert (ends.sender.shared_blobs, ends.sender.shared_bytes) == (1, PAGE)
    sent.release()
    assert the_arena().used_bytes == PAGE
    received.release()
    assert len(ends.release()) == 1
    assert (ends.sender.shared_blobs, ends.sender.shared_bytes, the_arena().used_bytes) == (0, 0, 0)


def test_an_arena_is_passed_once(ends):
    for _ in range(3):
        encoded = encode_attached(MSGPACK, a_blob(), ALL, arena_allowed=True)
        ends.sender.ship(ends.sent, encoded)
        ends.sender.unship(encoded)
    assert len(ends.sent.arenas) == 1
    ends.sent.arenas.clear()


def test_what_was_not_sent_after_all_comes_back(ends):
    encoded = ends.ship(a_blob())
    ends.sender.unship(encoded)
    del encoded
    assert (ends.sender.shared_bytes, the_arena().used_bytes) == (0, 0)


def test_one_message_can_be_sent_any_number_of_times(ends):
    encoded = ends.ship(a_blob())
    ends.sender.ship(ends.sent, encoded)
    assert ends.sender.shared_blobs == 2
    one, other = ends.read(encoded), ends.read(encoded)
    assert bytes(one) == bytes(other)
    del one
    ends.release()
    assert ends.sender.shared_blobs == 1
    del other
    ends.release()
    assert ends.sender.shared_blobs == 0


def test_several_peers_share_one_block():
    ends = [Ends() for _ in range(3)]
    encoded = encode_attached(MSGPACK, a_blob(), ALL, arena_allowed=True)
    for pair in ends:
        pair.sender.ship(pair.sent, encoded)
        for arena, size, descriptors in pair.sent.arenas:
            pair.receiver.take_arena(ArenaPassed(arena, size, passed_on(descriptors)))
        pair.sent.arenas.clear()
    received = [pair.read(encoded) for pair in ends]
    del encoded
    for pair in ends:
        assert the_arena().used_bytes == PAGE
        received.pop(0)
        pair.release()
    assert the_arena().used_bytes == 0
    for pair in ends:
        pair.close()


def test_the_pump_is_told_once_until_it_has_looked(ends):
    told = []
    ends.receiver.on_release = lambda: told.append(1)
    received = [ends.trip(a_blob()) for _ in range(3)]
    received.pop()
    received.pop()
    assert told == [1]
    assert len(ends.release()) == 2
    received.pop()
    assert told == [1, 1]
    assert len(ends.release()) == 1
    assert ends.receiver.take_releases() == []


def test_shares_dropped_by_the_collector_and_by_threads_all_come_back(ends):
    def drop(blobs):
        while blobs:
            holder = [blobs.pop()]
            holder.append(holder)

    threads = [threading.Thread(target=drop, args=([ends.trip(a_blob()) for _ in range(50)],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ends.release()
    gc.collect()
    ends.release()
    assert ends.sender.shared_blobs == 0


def test_a_peer_that_holds_much_gets_copies_of_its_own(ends, monkeypatch):
    monkeypatch.setattr(limits, "BLOBS_OUT_BYTES_MAX", 2 * PAGE)
    held = [ends.trip(a_blob()) for _ in range(2)]
    assert not ends.sender.allows_arena(ALL)
    large = ends.ship(b"x" * limits.BLOB_BYTES_MIN)
    assert (len(large.descriptors), large.shares) == (1, {})
    assert ends.read(large) == b"x" * limits.BLOB_BYTES_MIN
    held.pop()
    ends.release()
    assert ends.sender.allows_arena(ALL)


def test_an_arena_that_went_back_is_retired(ends):
    encoded = ends.ship(a_blob())
    (number,) = {block.segment.number for block in encoded.shares.values()}
    received = ends.read(encoded)
    del encoded
    the_arena().give_back()
    ends.sender.retire(ends.sent)
    assert ends.sent.retired == []  # as it is in use
    del received
    ends.release()
    the_arena().give_back()
    ends.sender.retire(ends.sent)
    assert ends.sent.retired == [number]
    ends.receiver.retired(number)
    with pytest.raises(BadBlob, match=f"arena {number}, which was not passed"):
        ends.receiver.take_share(number, 0, 1, 1)
    assert bytes(ends.trip(a_blob()))[:6] == b"shared"


# The end of a connection.


def test_a_view_that_is_kept_outlives_everything_and_its_memory_is_not_used_anew():
    ends = Ends()
    kept = ends.trip(a_blob()).view[:6]
    ends.close()
    del ends
    gc.collect()
    assert kept == b"shared"
    other = a_blob(b"others")
    assert kept == b"shared"
    assert the_arena().used_bytes == 2 * PAGE
    del kept
    assert the_arena().used_bytes == PAGE
    other.release()


def test_what_a_closed_connection_had_out_comes_back_at_once_if_nobody_looks(ends):
    ends.ship(a_blob())  # and nobody reads it
    ends.sender.close()
    assert the_arena().used_bytes == PAGE
    ends.receiver.close()
    assert the_arena().used_bytes == 0


def test_an_arena_that_never_left_its_output_comes_back():
    sender, sent = Sharing(os.geteuid(), ALL), Sent()
    sender.ship(sent, encode_attached(MSGPACK, a_blob(), ALL, arena_allowed=True))
    sender.close()
    assert the_arena().used_bytes == PAGE
    sent.arenas.clear()
    assert the_arena().used_bytes == 0


def ship_over(connected: socket.socket, sender: Sharing, value) -> None:
    sent = Sent()
    encoded = encode_attached(MSGPACK, value, ALL, arena_allowed=sender.allows_arena(ALL))
    sender.ship(sent, encoded)
    (arena, byte_count, descriptors), *_ = sent.arenas
    head = struct.pack("<IQ", arena, byte_count)
    socket.send_fds(connected, [head + encoded.payload], [descriptor.fileno() for descriptor in descriptors])


def receive_over(connected: socket.socket, receiver: Sharing) -> Encoded:
    data, numbers, _, _ = socket.recv_fds(connected, 4096, 2)
    receiver.take_arena(ArenaPassed(*struct.unpack_from("<IQ", data), tuple(map(File, numbers))))
    return Encoded(data[12:], (), {}, 0)


def test_the_shares_of_a_killed_process_come_back_at_once():
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            ends = Ends()
            held = ends.read(receive_over(theirs, ends.receiver))
            theirs.sendall(bytes(held)[:6])
            signal.pause()
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        sender = Sharing(os.geteuid(), ALL)
        ship_over(ours, sender, a_blob())
        assert ours.recv(6) == b"shared"
        sender.close()
        assert the_arena().used_bytes == PAGE  # it lives
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert the_arena().used_bytes == 0


def test_a_killed_sender_leaves_its_blob_to_the_reader_and_nothing_after_that():
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        blob = a_blob(b"from the dead")
        ship_over(theirs, Sharing(os.geteuid(), ALL), blob)
        os.kill(os.getpid(), signal.SIGKILL)
    theirs.close()
    with ours:
        ends = Ends()
        encoded = receive_over(ours, ends.receiver)
        os.waitpid(child, 0)
        received = ends.read(encoded)
        assert bytes(received)[:13] == b"from the dead"
        assert ours.recv(1) == b""
    ends.close()


def test_a_forked_child_of_a_reader_does_not_hold_its_shares():
    ends = Ends()
    received = ends.trip(a_blob())
    read, write = os.pipe()
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.close(begins)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.close(begins)
    assert os.read(begun, 1) == b""  # it has done what a child does first
    os.close(begun)
    del received
    ends.sender.close()
    ends.receiver.close()
    assert the_arena().used_bytes == 0  # while the child lives
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0


# Messages that are not read, or not all of them.


class Part(msgspec.Struct):
    wanted: int


def test_shares_that_nobody_looks_at_go_back(ends):
    value = {"wanted": 1, "more": [a_blob(), {"deep": a_blob()}], "bytes": b"x" * limits.BLOB_BYTES_MIN}
    assert ends.trip(value, Part) == Part(1)  # whose decoder has passed over them
    assert len(ends.release()) == 3
    assert the_arena().used_bytes < limits.BLOB_BYTES_MIN
    value.clear()


def test_a_message_that_is_dropped_gives_its_shares_and_files_back(ends, place):
    with open(place / "file", "w") as file:
        encoded = ends.ship([file, a_blob(), [a_blob()]])
    files = passed_on(encoded.descriptors)
    ends.receiver.discard(encoded.payload, files)
    assert all(file.closed for file in files)
    assert len(ends.release()) == 2


def test_a_message_of_the_wrong_type_gives_its_shares_and_files_back(ends, place):
    with open(place / "file", "w") as file:
        encoded = ends.ship([a_blob(), file, "text", a_blob()])
    with pytest.raises(Exception, match="expected int, got str"):
        ends.read(encoded, tuple[samehost.Blob, samehost.File, int, samehost.Blob])
    gc.collect()
    assert len(ends.release()) == 2


def test_a_payload_that_is_no_messagepack_is_dropped_quietly(ends):
    ends.trip(a_blob())
    for payload in (b"", b"\xc1", b"\xc7\x20\x03", b"\xc7\x01\x03x", b"\x91" * 5000, b"\xc7\x01\x04\xc1"):
        ends.receiver.discard(payload, ())
    ends.release()


def test_before_an_arena_came_there_is_nothing_to_release():
    ends = Ends()
    ends.receiver.discard(encode_attached(MSGPACK, a_blob(), ALL, arena_allowed=True).payload, ())
    assert ends.receiver.take_releases() == []
    assert not ends.receiver.has_arenas


# Peers that break the rules.


def passed(arena, byte_count, descriptor):
    read, write = os.pipe()
    os.close(read)
    return ArenaPassed(arena, byte_count, (File(descriptor), File(write)))


def test_memory_that_is_no_arena_ends_the_connection_and_is_closed():
    receiver = Sharing(os.geteuid(), ALL)
    descriptor, mapping = memory.create_arena(PAGE)
    mapping.close()
    unsealed = os.memfd_create("test", os.MFD_CLOEXEC)
    os.truncate(unsealed, PAGE)
    for wrong, size, why in (
        (os.open("/dev/zero", os.O_RDWR), PAGE, "a device"),
        (unsealed, PAGE, "seals"),
        (os.dup(descriptor), 2 * PAGE, f"an arena of {2 * PAGE} bytes in memory of {PAGE} bytes"),
    ):
        with pytest.raises(RemoteProtocolError, match=why) as caught:
            receiver.take_arena(passed(1, size, wrong))
        assert caught.value.code == "bad_blob"
    os.close(descriptor)


@pytest.mark.parametrize(("uid", "announced"), [(NOBODY, ALL), (os.geteuid(), SEALED)])
def test_an_arena_of_a_stranger_or_for_nobody_ends_the_connection(uid, announced):
    descriptor, mapping = memory.create_arena(PAGE)
    mapping.close()
    with pytest.raises(RemoteProtocolError, match="may not share memory") as caught:
        Sharing(uid, announced).take_arena(passed(1, PAGE, descriptor))
    assert caught.value.code == "protocol_error"


def test_a_release_of_what_is_not_out_ends_the_connection(ends):
    encoded = ends.ship(a_blob())
    (share,) = encoded.shares
    ends.sender.released([share])
    for wrong in ([share], [share + 1], [0]):
        with pytest.raises(RemoteProtocolError, match=f"RELEASE of share {wrong[0]}, which the peer does not have"):
            ends.sender.released(wrong)


@pytest.mark.parametrize(("offset", "length"), [(0, 2**25), (2**24, 1), (2**64 - 1, 1), (1, 2**64 - 1)])
def test_a_part_beyond_the_arena_is_refused(ends, offset, length):
    (block,) = ends.ship(a_blob()).shares.values()
    with pytest.raises(BadBlob, match=f"from {offset} to {offset + length} in an arena of"):
        ends.receiver.take_share(block.segment.number, offset, length, 1)


def test_a_stranger_is_never_sent_a_part_of_the_arena():
    assert not Sharing(NOBODY, ALL).allows_arena(ALL)
    assert not Sharing(os.geteuid(), ALL).allows_arena(SEALED)
    closed = Sharing(os.geteuid(), ALL)
    closed.close()
    assert not closed.allows_arena(ALL)


def test_features_are_for_what_types_hold():
    assert features(0, os.geteuid()) == 0
    assert features(FILES, os.geteuid()) == FILES_BIT
    assert features(BLOBS, os.geteuid()) == SEALED | ARENAS
    assert features(BLOBS | FILES, NOBODY) == SEALED | FILES_BIT


def test_without_descriptors_nothing_is_counted(monkeypatch):
    sender = Sharing(os.geteuid(), ALL)

    def refuse(flags):
        raise OSError(24, "Too many open files")

    encoded = encode_attached(MSGPACK, a_blob(), ALL, arena_allowed=True)
    monkeypatch.setattr(os, "pipe2", refuse)
    with pytest.raises(OSError, match="Too many"):
        sender.ship(Sent(), encoded)
    assert sender.shared_blobs == 0


def test_a_descriptor_is_closed_when_it_is_dropped():
    read, write = os.pipe()
    held = Descriptor(write)
    del held
    assert os.read(read, 1) == b""
    os.close(read)


class Keeper:
    """In a cycle, with a finalizer that keeps what it has."""

    def __init__(self, view):
        self.view = view
        self.itself = self

    def __del__(self):
        kept.append(self.view)


kept = []


def test_a_share_that_a_finalizer_of_a_cycle_keeps_is_not_given_back():
    ends = Ends()
    keeper = Keeper(ends.trip(samehost.Blob(b"x" * limits.BLOB_BYTES_MIN)).view)
    del keeper
    gc.collect()
    assert not ends.release()
    ends.close()
    assert the_arena().used_bytes  # as long as the other end has it mapped
    kept.clear()
    the_arena().settle()
    assert not the_arena().used_bytes


def test_a_child_that_uses_the_number_of_a_lease_anew_keeps_its_own_file():
    ends = Ends()
    blob = ends.trip(samehost.Blob(b"x" * limits.BLOB_BYTES_MIN))
    (lease,) = sharing._leases
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), lease)
            sharing._leases.add(lease)  # of an arena of the child's own
            blob.release()
            ends.close()
            os.fstat(lease)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    blob.release()
    ends.close()
