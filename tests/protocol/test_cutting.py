"""However the bytes are cut, and wherever descriptors come with them, the events are the same."""

from __future__ import annotations

import array
import os
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from protocol.joined import EMPTY, Pipe, greeted, pair, written

from samehost.errors import LocalProtocolError
from samehost.protocol import ARENAS, Limits
from samehost.protocol.events import Call, Failed, InputEnded
from samehost.protocol.preface import Preface

payloads = st.sampled_from([1, 1, 1, 2, 30, 500, 40_000])
files = st.sampled_from([0, 0, 0, 0, 1, 2, 16])


@st.composite
def conversations(draw, codec):  # noqa: C901 - one case a frame
    """What a client may send: chunks, with descriptors that are plain numbers, no two alike."""
    client, _ = pair(codec)
    if codec == "msgpack":
        client.receive_data(Preface(1, (1,), ARENAS, 65536, 9).encode())
    numbers = iter(range(10_000))
    made = []
    for _ in range(draw(st.integers(1, 12))):
        what = draw(
            st.sampled_from(["call", "call", "notify", "item", "items", "end", "cancel", "ping", "arena", "retire"])
        )
        size = draw(payloads)
        value = {"msgpack": bytes(size), "json": b'"%b"' % (b"x" * size)}[codec]
        count = draw(files) if codec == "msgpack" else 0
        descriptors = tuple(next(numbers) for _ in range(count))
        call_id = draw(st.sampled_from(made)) if made else 1
        try:
            match what:
                case "call":
                    flags = draw(st.integers(0, 3))
                    context = EMPTY[codec] if draw(st.booleans()) else b""
                    made.append(client.send_call("m", value, 5, context=context, flags=flags, descriptors=descriptors))
                case "notify":
                    client.send_notification("näme", value, descriptors=descriptors)
                case "item":
                    client.send_item(call_id, value, descriptors)
                case "items":
                    client.send_items(call_id, [value] * draw(st.integers(1, 5)))
                case "end":
                    client.send_end(call_id)
                case "cancel":
                    client.send_cancel(call_id)
                case "ping":
                    client.send_ping(1)
                case "arena":
                    client.send_arena(size, size, (next(numbers), next(numbers)))
                case "retire":
                    client.send_retire(size)
        except LocalProtocolError:
            pass
    return client.data_to_send()


def whole(codec, chunks):
    """The events of chunks that arrive as they were sent."""
    _, server = pair(codec, features=ARENAS)
    return [event for data, descriptors in chunks for event in server.receive_data(bytes(data), descriptors)]


@st.composite
def cut_conversations(draw, codec):
    """Chunks, and what reads of any size make of them, when the sender's writes were cut as well."""
    chunks = draw(conversations(codec))
    pipe = Pipe()
    for data, descriptors in chunks:
        cut = draw(st.integers(1, len(data)))
        pipe.send(data[:cut], descriptors)
        pipe.send(data[cut:])
    sizes = draw(st.lists(st.sampled_from([1, 1, 2, 3, 7, 11, 12, 13, 28, 29, 100, 5000]), min_size=1, max_size=20))
    reads = []
    while pipe:
        reads.append(pipe.receive(sizes[len(reads) % len(sizes)] if len(reads) < 3000 else 65536))
    return chunks, reads


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@given(data=st.data())
def test_any_cutting_gives_the_same_events(codec, data):
    chunks, reads = data.draw(cut_conversations(codec))
    _, server = pair(codec, features=ARENAS)
    events = [event for read, descriptors in reads for event in server.receive_data(read, descriptors)]
    assert events == whole(codec, chunks)
    assert not any(isinstance(event, Failed) for event in events)
    assert not server.is_mid_frame
    assert (server._unclaimed, server._waiting, server._claimed) == ((), (), ())


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@given(data=st.data())
def test_an_end_anywhere_is_clean_between_frames_and_a_fault_within_one(codec, data):
    chunks = data.draw(conversations(codec))
    stream = b"".join(bytes(chunk) for chunk, _ in chunks)
    cut = data.draw(st.integers(0, min(len(stream), 3000)))
    _, server = pair(codec, features=ARENAS)
    for _, descriptors in chunks:
        if descriptors:
            return
    server.receive_data(stream[:cut])
    is_mid_frame = server.is_mid_frame
    kinds = {type(event) for event in server.receive_eof()}
    if codec == "json":  # whose last line may lack its line feed
        assert (Failed in kinds) != (InputEnded in kinds)
    else:
        assert kinds & {Failed, InputEnded} == ({Failed} if is_mid_frame else {InputEnded})


@given(st.lists(st.integers(0, 200), max_size=8), st.lists(st.tuples(st.integers(1, 60), files), max_size=8))
@example([5, 5, 5], [(1, 1), (1, 1), (1, 1)])
def test_descriptors_reach_their_frames_through_a_real_socket(sizes, calls):
    """The kernel cuts and merges here. Each call says which files it sent, by their inodes."""
    client, server = greeted("msgpack")
    ours, theirs = socket.socketpair()
    opened, received = [], []
    try:
        sent = {}
        for size, count in calls:
            descriptors = [os.eventfd(0) for _ in range(count)]
            opened += descriptors
            for number, descriptor in enumerate(descriptors):
                os.eventfd_write(descriptor, len(opened) * 100 + number + 1)
            call_id = client.send_call("m", bytes(size), descriptors=tuple(descriptors))
            sent[call_id] = [len(opened) * 100 + number + 1 for number in range(count)]
        for data, descriptors in client.data_to_send():
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            done = ours.sendmsg([data], control)
            while done < len(data):
                done += ours.send(data[done : done + 7])
        ours.close()
        calls_seen = {}
        for size in [*sizes, *[9] * 10_000]:
            data, found, flags, _ = theirs.recvmsg(max(size, 1), socket.CMSG_LEN(16 * 4), socket.MSG_CMSG_CLOEXEC)
            assert not flags & socket.MSG_CTRUNC
            fresh = array.array("i", b"".join(content for _, _, content in found))
            received += fresh
            if not data:
                break
            for event in server.receive_data(data, tuple(fresh)):
                assert isinstance(event, Call), event
                calls_seen[event.call_id] = [os.eventfd_read(descriptor) for descriptor in event.descriptors]
        assert calls_seen == sent
    finally:
        ours.close()
        theirs.close()
        for descriptor in [*opened, *received]:
            os.close(descriptor)


def test_a_byte_at_a_time_in_linear_time():
    client, server = greeted("msgpack", Limits())
    client.send_call("m", bytes(200_000))
    data = written(client)
    events = [event for byte in data for event in server.receive_data(bytes((byte,)))]
    assert len(events) == 1
