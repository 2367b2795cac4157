"""Frames: prefaces, headers, payloads that are none, and descriptors."""

from __future__ import annotations

import re
import struct

import pytest
from protocol.joined import flow, greeted, pair, written

from samehost import limits
from samehost.errors import LocalProtocolError, MessageTooLarge, UsageError
from samehost.protocol import ITEMS_FOLLOW, ITEMS_WANTED, Limits, accept, connect, connect_lines
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.events import Call, Discarded, Failed, InputEnded, Item, Notification, Reply
from samehost.protocol.lines import LinesConnection
from samehost.protocol.preface import Preface

BOTH = ITEMS_FOLLOW | ITEMS_WANTED
SHORT_CALL = bytes(4) + b"\x01m\x80"


def frame(kind, payload=b"", call_id=0, flags=0, count=0, length=None):
    return struct.pack("<IBBHI", len(payload) if length is None else length, kind, flags, count, call_id) + payload


def failure_of(events):
    assert isinstance(events[-1], Failed), events
    return events[-1].error


def open_call(flags=BOTH, **limits_):
    client, server = greeted("msgpack", Limits(**limits_))
    call_id = client.send_call("m", b"\x80", flags=flags)
    flow(client, server)
    return client, server, call_id


FROM_A_CLIENT = {
    "absurd length": (frame(0x01, call_id=3, length=2**32 - 1), "too_large", "CALL with a payload of 4294967295 bytes"),
    "type 0": (frame(0x00), "protocol_error", "a frame of type 0x00"),
    "type 0x7f": (frame(0x7F), "protocol_error", "a frame of type 0x7f"),
    "a kept type": (frame(0x23), "protocol_error", "a frame of type 0x23"),
    "short CALL": (frame(0x01, bytes(6), 3), "protocol_error", "CALL with a payload of 6 bytes, at least 7"),
    "no name": (frame(0x01, bytes(7), 3), "protocol_error", "a method's name of 0 bytes"),
    "name too long": (frame(0x01, bytes(4) + b"\x05abcde\x80", 3), "protocol_error", "a method's name of 5 bytes"),
    "name to the end": (frame(0x01, bytes(4) + b"\x02ab", 3), "protocol_error", "ends before its arguments"),
    "name beyond the end": (frame(0x01, bytes(4) + b"\x04ab", 3), "protocol_error", "ends before its arguments"),
    "name not UTF-8": (frame(0x01, bytes(4) + b"\x01\xff\x80", 3), "protocol_error", "name is not UTF-8"),
    "NOTIFY not UTF-8": (frame(0x02, bytes(4) + b"\x01\xff\x80"), "protocol_error", "name is not UTF-8"),
    "context cut off": (frame(0x01, bytes(4) + b"\x01m\x80", 3, 4), "protocol_error", "ends before its context"),
    "context long": (frame(0x01, bytes(4) + b"\x01m\x01\x10\x80", 3, 4), "too_large", "a context of 4097 bytes"),
    "context to the end": (
        frame(0x01, bytes(4) + b"\x01m\x01\x00\x80", 3, 4),
        "protocol_error",
        "before its arguments",
    ),
    "unknown flag": (frame(0x01, SHORT_CALL, 3, 8), "protocol_error", "CALL with flags 0x08"),
    "flag of another type": (frame(0x02, SHORT_CALL, 0, 1), "protocol_error", "NOTIFY with flags 0x01"),
    "flag of ITEM": (frame(0x07, b"\x01", 1, 1), "protocol_error", "ITEM with flags 0x01"),
    "CALL without id": (frame(0x01, SHORT_CALL, 0), "protocol_error", "CALL with call id 0"),
    "NOTIFY with id": (frame(0x02, SHORT_CALL, 3), "protocol_error", "NOTIFY with call id 3"),
    "PING with id": (frame(0x10, bytes(4), 3), "protocol_error", "PING with call id 3"),
    "PING too short": (frame(0x10, bytes(3)), "protocol_error", "PING with a payload of 3 bytes"),
    "PING too long": (frame(0x10, bytes(5)), "too_large", "PING with a payload of 5 bytes"),
    "even id": (frame(0x01, SHORT_CALL, 4), "protocol_error", "id 4, which is not one that this peer gives"),
    "id in use": (frame(0x01, SHORT_CALL, 1), "protocol_error", "id 1, which was used before"),
    "id of the past": (frame(0x01, SHORT_CALL, 2**32 - 1), "protocol_error", "which was used before"),
    "ITEM for no call": (frame(0x07, b"\x01", 3), "protocol_error", "ITEM for call 3, which was never made"),
    "REPLY to no call": (frame(0x03, b"\x01", 2), "protocol_error", "REPLY for call 2, which was never made"),
    "REPLY to one's own": (frame(0x03, b"\x01", 1), "protocol_error", "REPLY is no step of call 1"),
    "REPLY with a flag": (frame(0x03, b"\x01", 1, 2), "protocol_error", "REPLY with flags 0x02"),
    "empty ITEM": (frame(0x07, b"", 1), "protocol_error", "ITEM with a payload of 0 bytes"),
    "NOTE of the caller": (frame(0x0A, b"\x01", 1), "protocol_error", "NOTE is no step of call 1"),
    "STREAM of the caller": (frame(0x06, b"", 1), "protocol_error", "STREAM is no step"),
    "END twice": (frame(0x08, b"", 1) * 2, "protocol_error", "END is no step of call 1 .caller SENT, callee READY"),
    "ITEM after END": (frame(0x08, b"", 1) + frame(0x07, b"\x01", 1), "protocol_error", "ITEM is no step"),
    "CANCEL twice": (frame(0x05, b"", 1) * 2, "protocol_error", "CANCEL is no step"),
    "ITEM after CANCEL": (frame(0x05, b"", 1) + frame(0x07, b"\x01", 1), "protocol_error", "ITEM is no step"),
    "too many ITEMs": (frame(0x07, b"\x01", 1) * 65, "protocol_error", "ITEM of call 1 without credit"),
    "too many bytes": (frame(0x07, bytes(262144), 1) * 2, "protocol_error", "ITEM of call 1 without credit"),
    "too much CREDIT": (
        frame(0x09, b"\xff\xff\xff\x7f" + bytes(4), 1),
        "protocol_error",
        "beyond what a balance may be",
    ),
    "too many bytes of CREDIT": (
        frame(0x09, bytes(4) + b"\xff" * 4, 1),
        "protocol_error",
        "beyond what a balance may be",
    ),
    "descriptors on END": (frame(0x08, b"", 1, count=1), "unexpected_descriptors", "END with 1 descriptors"),
    "too many descriptors": (
        frame(0x01, SHORT_CALL, 3, count=17),
        "unexpected_descriptors",
        "CALL with 17 descriptors",
    ),
    "missing descriptors": (frame(0x01, SHORT_CALL, 3, count=1), "unexpected_descriptors", "announces 1 .* with 0"),
    "CALL after GOAWAY": (
        frame(0x12, bytes(4) + b"\x01\x00\x00\x00x") + frame(0x01, SHORT_CALL, 3),
        "protocol_error",
        "CALL from a peer that is LEAVING",
    ),
    "NOTIFY after GOAWAY": (
        frame(0x12, bytes(4) + b"\x01\x00\x00\x00x") + frame(0x02, SHORT_CALL),
        "protocol_error",
        "NOTIFY from a peer that is LEAVING",
    ),
    "GOAWAY of no call": (frame(0x12, b"\x02\x00\x00\x00\x01\x00\x00\x00x"), "protocol_error", "which was never made"),
    "GOAWAY of another's": (
        frame(0x12, b"\x01\x00\x00\x00\x01\x00\x00\x00x"),
        "protocol_error",
        "which was never made",
    ),
    "GOAWAY too short": (frame(0x12, bytes(4) + b"\x02\x00\x00\x00x"), "protocol_error", "not as long as its parts"),
    "GOAWAY without code": (frame(0x12, bytes(8) + b"x"), "protocol_error", "GOAWAY with a code of 0 bytes"),
    "GOAWAY not UTF-8": (
        frame(0x12, bytes(4) + b"\x01\x00\x00\x00\xff"),
        "protocol_error",
        "code of GOAWAY is not UTF-8",
    ),
}


@pytest.mark.parametrize("cut", [1, 5, 12, 10**9])
@pytest.mark.parametrize("name", FROM_A_CLIENT)
def test_a_fault_of_the_client_ends_the_connection(name, cut):
    data, code, message = FROM_A_CLIENT[name]
    client, server, _ = open_call(method_bytes_max=4)
    events = [event for begin in range(0, len(data), cut) for event in server.receive_data(data[begin : begin + cut])]
    error = failure_of(events)
    assert error.code == code
    assert re.search(message, str(error)), error
    assert server.is_finished
    assert server.is_idle
    assert server.receive_data(data, ("fd",)) == [Discarded(("fd",))]
    assert server.receive_eof() == []
    away = flow(server, client)[-1]
    assert (away.code, away.message) == (code, str(error))


FROM_A_SERVER = {
    "CALL to a client": (frame(0x01, SHORT_CALL, 2), "CALL to an end that announced to take no calls"),
    "NOTIFY to a client": (frame(0x02, SHORT_CALL), "NOTIFY to an end that announced to take no calls"),
    "ITEM before STREAM": (frame(0x07, b"\x01", 1), "ITEM is no step of call 1"),
    "STREAM twice": (frame(0x06, b"", 1) * 2, "STREAM is no step of call 1"),
    "CANCEL of the callee": (frame(0x05, b"", 1), "CANCEL is no step of call 1"),
    "CREDIT for no stream": (frame(0x09, bytes(8), 3), "CREDIT is no step of call 3"),
    "STREAM unwanted": (frame(0x06, b"", 3), "STREAM is no step of call 3"),
    "ERROR too short": (frame(0x04, b"\x02\x00\x00\x00x", 1), "ERROR ends before its data"),
    "ERROR without code": (frame(0x04, bytes(5), 1), "ERROR with a code of 0 bytes"),
    "code too long": (frame(0x04, b"\x41\x00\x00\x00" + bytes(65), 1), "ERROR with a code of 65 bytes"),
    "id too long": (frame(0x04, b"\x01\x41\x00\x00" + bytes(66), 1), "an id of 65"),
    "message too long": (frame(0x04, b"\x01\x00\x01\x10" + bytes(4098), 1), "a message of 4097"),
    "message not UTF-8": (frame(0x04, b"\x01\x00\x01\x00x\xff", 1), "an error's message is not UTF-8"),
    "REPLY to nothing": (frame(0x03, b"\x01", 5), "REPLY for call 5, which was never made"),
    "GOAWAY ahead": (frame(0x12, b"\x05\x00\x00\x00\x01\x00\x00\x00x"), "GOAWAY after call 5"),
}


@pytest.mark.parametrize("name", FROM_A_SERVER)
def test_a_fault_of_the_server_ends_the_connection(name):
    data, message = FROM_A_SERVER[name]
    client, _, _ = open_call()
    client.send_call("m", b"\x80")
    events = client.receive_data(data)
    assert re.search(message, str(failure_of(events)))
    assert events[-1].lost == (1, 3)
    assert client.is_idle


def test_nothing_is_kept_of_a_frame_whose_header_is_a_fault():
    _, server, _ = open_call()
    failure_of(server.receive_data(frame(0x01, call_id=3, length=5 * 2**20) + bytes(1000)))
    assert not server._partial


def test_events_before_a_fault_are_kept():
    _, server, call_id = open_call()
    events = server.receive_data(frame(0x07, b"\x01", call_id) + frame(0x00))
    assert events[0] == Item(call_id, b"\x01", ())
    failure_of(events)


def test_what_may_be_ignored_is():
    _, server, call_id = open_call()
    assert server.receive_data(frame(0x80, b"anything", 7, flags=0xFF)) == []
    assert server.receive_data(frame(0xFF)[:11]) == []
    assert server.receive_data(frame(0xFF)[11:]) == []
    assert server.receive_data(frame(0x07, b"\x01", call_id, flags=0xF0)) == [Item(call_id, b"\x01", ())]
    assert "type 0x80 with a payload of 65537" in str(failure_of(server.receive_data(frame(0x80, length=65537))))


def test_ids_may_leave_some_out():
    _, server, _ = open_call()
    assert [event.call_id for event in server.receive_data(frame(0x01, SHORT_CALL, 9))] == [9]
    assert [event.call_id for event in server.receive_data(frame(0x01, SHORT_CALL, 9 + 2**31 - 2))] == [9 + 2**31 - 2]


def test_late_frames_that_bring_descriptors_give_them_back():
    client, server, call_id = open_call()
    server.send_stream(call_id)
    flow(server, client)
    client.send_item(call_id, b"\x01", ("a",))
    server.send_item(call_id, b"\x01", ("b",))
    server.send_reply(call_id, b"\x01")
    client.send_cancel(call_id)
    assert flow(client, server) == [Discarded(("a",), b"\x01")]
    assert flow(server, client)[0] == Discarded(("b",), b"\x01")


def test_descriptors_of_every_kind_of_frame():
    client, server = greeted("msgpack")
    call_id = client.send_call("m", b"\x80", flags=ITEMS_WANTED, descriptors=("a", "b"))
    client.send_notification("m", b"\x80", descriptors=("c",))
    call, notification = flow(client, server)
    assert (call.descriptors, notification.descriptors) == (("a", "b"), ("c",))
    server.send_stream(call_id)
    server.send_item(call_id, b"\x01", ("d",))
    server.send_reply(call_id, b"\x01", ("e",))
    _, item, reply = flow(server, client)
    assert (item.descriptors, reply.descriptors) == (("d",), ("e",))


def test_descriptors_of_a_reply_to_a_plain_call():
    client, server = greeted("msgpack")
    for number in (1, 3):
        client.send_call("m", b"\x80")
        flow(client, server)
        server.send_reply(number, b"\x01", (number,))
        assert flow(server, client) == [Reply(number, b"\x01", (number,))]


@pytest.mark.parametrize("last", [2**32 - 1, 3])
def test_an_id_of_an_open_call_is_not_given_again_when_ids_go_round(last):
    _, server = greeted("msgpack")
    data = frame(0x01, SHORT_CALL, 1) + frame(0x01, SHORT_CALL, 3) + frame(0x01, SHORT_CALL, 5)
    assert len(server.receive_data(data)) == 3
    server._last_taken = last
    again = 1 if last > 5 else 5
    assert f"id {again}, which was used before" in str(failure_of(server.receive_data(frame(0x01, SHORT_CALL, again))))


def test_a_frame_with_descriptors_begins_a_chunk_and_a_long_payload_is_one():
    client, _ = greeted("msgpack")
    client.send_call("a", b"\x80")
    client.send_call("b", b"\x80", descriptors=("f",))
    client.send_call("c", b"\x80")
    long = bytes(limits.JOIN_BYTES_MAX + 1)
    client.send_call("d", long, descriptors=("g",))
    chunks = client.data_to_send()
    assert [descriptors for _, descriptors in chunks] == [(), ("f",), ("g",), ()]
    assert [len(data) for data, _ in chunks] == [19, 38, 18, len(long)]
    assert chunks[3][0] is long
    assert client.data_to_send() == []


def test_descriptors_of_a_refused_call_are_given_back():
    client, server = greeted("msgpack", Limits(calls_max=1))
    client.peer_calls_max = 2
    client.send_call("m", b"\x80")
    client.send_call("m", b"\x80", descriptors=("a",))
    assert flow(client, server)[1] == Discarded(("a",), b"\x80")
    server.send_going_away()
    client.send_notification("m", b"\x80", descriptors=("b",))
    assert flow(client, server) == [Discarded(("b",), b"\x80")]
    assert server.late_frames == 1


def test_too_many_descriptors_are_not_sent():
    client, _ = greeted("msgpack")
    with pytest.raises(MessageTooLarge, match="17 files"):
        client.send_call("m", b"\x80", descriptors=tuple(range(17)))
    assert client.data_to_send() == []
    assert client.is_idle


CALL_WITH_FILE = frame(0x01, SHORT_CALL, 1, count=1)
CALL_WITHOUT = frame(0x01, SHORT_CALL, 1)


@pytest.mark.parametrize(
    "reads",
    [
        [(CALL_WITHOUT, ("a",))],
        [(CALL_WITHOUT[:5], ("a",)), (CALL_WITHOUT[5:], ())],
        [(CALL_WITHOUT[:5], ()), (CALL_WITHOUT[5:], ("a",))],
        [(CALL_WITHOUT[:5], ()), (CALL_WITHOUT[5:7], ("a",))],
        [(CALL_WITHOUT[:15], ("a",)), (CALL_WITHOUT[15:], ())],
        [(CALL_WITHOUT[:15], ()), (CALL_WITHOUT[15:], ("a",))],
        [(CALL_WITHOUT[:15], ()), (CALL_WITHOUT[15:16], ("a",))],
        [(CALL_WITH_FILE, ("a", "b"))],
        [(CALL_WITH_FILE[:5], ("a", "b")), (CALL_WITH_FILE[5:], ())],
        [(CALL_WITH_FILE[:5], ()), (CALL_WITH_FILE[5:], ("a",))],
        [(CALL_WITH_FILE[:15], ()), (CALL_WITH_FILE[15:], ("a",))],
        [(CALL_WITH_FILE[:5], ("a",)), (CALL_WITH_FILE[5:6], ("b",))],
        [(CALL_WITH_FILE[:5], ("a",)), (CALL_WITH_FILE[5:13], ("b",))],
        [(CALL_WITH_FILE[:15], ("a",)), (CALL_WITH_FILE[15:], ("b",))],
        [(CALL_WITH_FILE + frame(0x01, SHORT_CALL, 3)[:5], ("a", "b"))],
        [(frame(0x08, b"", 1, count=1), ("a",))],
        [(frame(0x10, bytes(4)), ("a",))],
        [(b"", ("a",))],
    ],
)
def test_descriptors_that_fit_no_frame_end_the_connection_and_are_given_back(reads):
    _, server = greeted("msgpack")
    events = [event for data, descriptors in reads for event in server.receive_data(data, descriptors)]
    given_up = [event.descriptors for event in events if isinstance(event, Call)]
    came = [descriptor for _, descriptors in reads for descriptor in descriptors]
    given_back = [descriptor for event in events if isinstance(event, Discarded) for descriptor in event.descriptors]
    assert [*given_back, *(descriptor for descriptors in given_up for descriptor in descriptors)] in (came, came[::-1])
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.error.code == "unexpected_descriptors"


@pytest.mark.parametrize("cut", range(1, len(CALL_WITH_FILE)))
def test_descriptors_come_with_the_first_byte_of_their_frame(cut):
    _, server = greeted("msgpack")
    events = server.receive_data(frame(0x10, bytes(4)) + CALL_WITH_FILE[:cut], ("a",))
    events += server.receive_data(CALL_WITH_FILE[cut:] + frame(0x01, SHORT_CALL, 3, count=1), ("b",))
    assert [(event.call_id, event.descriptors) for event in events] == [(1, ("a",)), (3, ("b",))]


def test_the_end_of_the_input_within_a_frame_gives_descriptors_back():
    for cut in (5, 15):
        _, server = greeted("msgpack")
        assert server.receive_data(CALL_WITH_FILE[:cut], ("a",)) == []
        discarded, failed = server.receive_eof()
        assert discarded == Discarded(("a",))
        assert "middle of a frame" in str(failed.error)


def test_a_frame_in_pieces_counts_as_one():
    _, server = greeted("msgpack")
    data = frame(0x01, SHORT_CALL, 1)
    assert (server.is_mid_frame, server.bytes_missing, server.partial_frames) == (False, 0, 0)
    server.receive_data(data[:5])
    assert (server.is_mid_frame, server.bytes_missing, server.partial_frames) == (True, 0, 1)
    server.receive_data(data[5:13])
    assert (server.is_mid_frame, server.bytes_missing, server.partial_frames) == (True, 6, 1)
    server.receive_data(data[13:14])
    assert (server.is_mid_frame, server.bytes_missing, server.partial_frames) == (True, 5, 1)
    server.receive_data(data[14:] + frame(0x01, SHORT_CALL, 3)[:13])
    assert (server.is_mid_frame, server.bytes_missing, server.partial_frames) == (True, 6, 2)


def test_a_long_frame_in_pieces_is_handed_up_as_a_view():
    client, server = greeted("msgpack")
    client.send_call("m", bytes(100_000), context=b"\x80")
    data = written(client)
    events = server.receive_data(data[:50_000]) + server.receive_data(data[50_000:])
    (call,) = events
    assert isinstance(call.arguments, memoryview)
    assert call.arguments.readonly
    assert call == Call(1, "m", bytes(100_000), 0, b"\x80", 0, ())


def test_an_end_without_calls_is_just_one():
    _, server = greeted("msgpack")
    assert server.receive_eof() == [InputEnded(())]
    assert server.is_finished


# Prefaces.

GREETING = connect().data_to_send()[0][0]


def test_prefaces_say_what_each_end_takes():
    client = BinaryConnection(True, Limits(payload_bytes_max=2**20, calls_max=3), features=5)
    server = BinaryConnection(False, Limits(payload_bytes_max=2**17, calls_max=7), features=6)
    assert not server.is_greeted
    assert flow(client, server) == flow(server, client) == []
    assert server.is_greeted
    assert client.is_greeted
    assert (client.peer_payload_bytes_max, client.peer_calls_max, client.peer_features) == (2**17, 7, 6)
    assert (server.peer_payload_bytes_max, server.peer_calls_max, server.peer_features) == (2**20, 3, 5)
    with pytest.raises(MessageTooLarge, match="at most 131072"):
        client.send_call("m", bytes(2**17))
    with pytest.raises(MessageTooLarge, match="at most 131072"):
        server.send_call("m", bytes(2**17))


def test_calls_go_both_ways_if_the_client_takes_some():
    client, server = greeted("msgpack", client_limits=Limits(calls_max=1))
    assert server.send_call("m", b"\x80") == 2
    server.send_notification("m", b"\x80")
    call, notification = flow(server, client)
    assert call == Call(2, "m", b"\x80", 0, b"", 0, ())
    assert notification == Notification("m", b"\x80", 0, b"", ())
    client.send_reply(2, b"\x01")
    assert flow(client, server) == [Reply(2, b"\x01", ())]
    assert server.send_call("m", b"\x80") == 4
    server.send_cancel(4)
    server.send_going_away()
    flow(server, client)
    client.send_reply(4, b"\x01")
    assert len(flow(client, server)) == 1


@pytest.mark.parametrize("cut", range(1, 28))
def test_a_preface_in_pieces(cut):
    server = accept(GREETING[0])
    assert server.receive_data(GREETING[:cut]) == []
    assert (server.is_mid_frame, server.partial_frames) == (True, 1)
    assert server.receive_data(GREETING[cut:] + CALL_WITHOUT[:13]) == []
    (call,) = server.receive_data(CALL_WITHOUT[13:])
    assert call.call_id == 1


def test_a_preface_byte_by_byte_is_one_frame():
    server = accept(GREETING[0])
    for byte in GREETING:
        assert server.receive_data(bytes((byte,))) == []
    assert server.is_greeted
    assert server.partial_frames == 1
    assert not server.is_mid_frame


def test_a_longer_preface_is_skipped():
    longer = GREETING[:6] + b"\x1e" + GREETING[7:] + b"??"
    (call,) = accept(0xF5).receive_data(longer + CALL_WITHOUT)
    assert call.call_id == 1


def changed(at, value):
    return GREETING[:at] + value + GREETING[at + len(value) :]


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"\xf5?", "protocol_error", "it begins with f5 3f"),
        (changed(6, b"\x1b"), "too_large", "a preface of 27 bytes"),
        (changed(6, b"\x01\x01")[:8], "too_large", "a preface of 257 bytes"),
        (changed(20, b"\xff\xff\x00\x00"), "protocol_error", "payloads of 65535 bytes"),
    ],
)
def test_a_preface_that_is_none_is_not_answered(data, code, message):
    server = accept(0xF5)
    error = failure_of(server.receive_data(data))
    assert error.code == code
    assert message in str(error)
    assert server.data_to_send() == []


def test_descriptors_with_a_preface_are_given_back():
    for data in (GREETING, GREETING[:5]):
        server = accept(0xF5)
        discarded, failed = server.receive_data(data, ("a",))
        assert discarded == Discarded(("a",))
        assert failed.error.code == "unexpected_descriptors"


def test_another_version_is_refused_and_the_versions_spoken_named():
    client = BinaryConnection(True, Limits(calls_max=0), versions=(3, 2))
    server = accept(0xF5)
    client.send_call("m", b"\x80")
    error = failure_of(flow(client, server))
    assert error.code == "version_refused"
    assert str(error) == "the peer speaks version 3, 2 of the protocol, this end 1"
    (failed,) = flow(server, client)
    assert failed.error.code == "version_refused"
    assert str(failed.error) == "the peer speaks version 1 of the protocol, this end 3"
    assert failed.lost == (1,)
    assert client.data_to_send() == []


def test_a_server_that_speaks_several_versions_answers_in_the_client_s():
    client = connect()
    server = BinaryConnection(False, Limits(), versions=(2, 1))
    assert flow(client, server) == []
    assert flow(server, client) == []
    assert client.is_greeted


def test_a_server_that_answers_in_another_version_is_a_fault():
    client = connect()
    error = failure_of(client.receive_data(Preface(2, (), 0, 2**20, 1).encode()))
    assert str(error) == "the peer speaks version none of the protocol, this end 1"


# Doors.


def test_the_first_byte_chooses_the_format():
    assert isinstance(accept(0xF5), BinaryConnection)
    for byte in b"{[ \t\r\n":
        assert isinstance(accept(byte, Limits(calls_max=1)), LinesConnection)
    for byte in b"GPaz\0\xff":
        with pytest.raises(Exception, match=f"byte 0x{byte:02x}, and no format does"):
            accept(byte)
    assert connect(Limits(calls_max=2)).limits.calls_max == 2
    assert connect_lines().limits.calls_max == 0
    assert (connect().codec, connect_lines().codec) == ("msgpack", "json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload_bytes_max": 65535},
        {"payload_bytes_max": 2**32},
        {"calls_max": -1},
        {"descriptors_per_frame_max": 17},
        {"method_bytes_max": 256},
        {"method_bytes_max": 0},
        {"context_bytes_max": 4097},
        {"note_bytes_max": 0},
        {"batch_calls_max": 0},
        {"batch_calls_max": 257},
    ],
)
def test_limits_have_limits(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        Limits(**wrong)


def test_names_of_methods_are_kept_encoded_up_to_a_bound():
    client, server = greeted("msgpack")
    for number in range(2 * limits.METHOD_NAMES_KEPT):
        client.send_notification(f"m{number}", b"\x80")
        assert len(client._names) <= limits.METHOD_NAMES_KEPT
    assert [event.method for event in flow(client, server)] == [f"m{n}" for n in range(2 * limits.METHOD_NAMES_KEPT)]


def test_what_a_client_sends_before_the_preface_is_answered_is_no_call_of_a_server():
    client, server = pair("msgpack")
    with pytest.raises(LocalProtocolError, match="GREETING"):
        server.send_call("m", b"\x80")
    client.send_notification("m", b"\x80")
    assert len(flow(client, server)) == 1
