"""Arenas: who may pass, retire and release what, and what is given back of frames that nobody gets."""

from __future__ import annotations

import re
import struct

import pytest
from protocol.joined import flow, greeted, pair, written

from samehost import limits
from samehost.errors import LocalProtocolError
from samehost.protocol import (
    ARENAS,
    FILES,
    ITEMS_FOLLOW,
    ITEMS_WANTED,
    SEALED,
    Limits,
    accept,
    connect,
    connect_lines,
    events,
)

BOTH = ITEMS_FOLLOW | ITEMS_WANTED
SEGMENT = 1 << 20


def frame(kind, payload=b"", call_id=0, count=0):
    return struct.pack("<IBBHI", len(payload), kind, 0, count, call_id) + payload


def arena(number=1, byte_count=SEGMENT):
    return frame(0x20, struct.pack("<IIQ", number, 0, byte_count), count=2)


def release(*shares):
    return frame(0x21, struct.pack(f"<{len(shares)}Q", *shares))


def retire(number=1):
    return frame(0x22, struct.pack("<I", number))


def sharing(limits_=None, client_limits=None):
    return greeted("msgpack", limits_, client_limits, ARENAS)


def failure_of(heard):
    assert isinstance(heard[-1], events.Failed), heard
    return heard[-1].error


def test_features_are_those_of_the_prefaces():
    client, server = connect(features=SEALED | ARENAS | FILES), accept(0xF5, features=ARENAS)
    assert (client.peer_features, server.peer_features) == (0, 0)
    flow(client, server)
    flow(server, client)
    assert (client.peer_features, server.peer_features) == (2, 7)
    assert connect_lines().peer_features == accept(ord("{"), features=7).peer_features == 0


def test_either_end_passes_memory_and_gets_its_shares_back():
    for one, other in (sharing(), sharing()[::-1]):
        one.send_arena(1, SEGMENT, ("memory", "lease"))
        one.send_arena(0, limits.BLOB_BYTES_MAX, ("m", "l"))
        assert flow(one, other) == [
            events.ArenaPassed(1, SEGMENT, ("memory", "lease")),
            events.ArenaPassed(0, limits.BLOB_BYTES_MAX, ("m", "l")),
        ]
        other.send_release([2**64 - 1, 7])
        one.send_retire(1)
        assert flow(one, other) == [events.ArenaRetired(1)]
        assert flow(other, one) == [events.Released((2**64 - 1, 7))]
        one.send_arena(1, 1, ("again", "lease"))
        assert flow(one, other) == [events.ArenaPassed(1, 1, ("again", "lease"))]


def test_an_arena_begins_a_chunk_and_what_follows_it_goes_along():
    client, _ = sharing()
    client.send_ping(1)
    client.send_arena(1, SEGMENT, ("memory", "lease"))
    client.send_call("m", b"\x80")
    (_, none), (data, descriptors) = client.data_to_send()
    assert (none, descriptors) == ((), ("memory", "lease"))
    assert data == arena() + frame(0x01, bytes(4) + b"\x01m\x80", 1)


def test_many_shares_are_released_in_several_frames():
    client, server = sharing()
    client.send_arena(1, SEGMENT, ("m", "l"))
    flow(client, server)
    shares = range(2 * limits.RELEASES_PER_FRAME_MAX + 1)
    server.send_release(shares)
    server.send_release([])
    heard = flow(server, client)
    assert [len(event.shares) for event in heard] == [512, 512, 1]
    assert [share for event in heard for share in event.shares] == list(shares)


def test_while_leaving_memory_is_still_passed_and_given_back():
    client, server = sharing()
    server.send_arena(1, SEGMENT, ("m", "l"))
    server.send_going_away()
    flow(server, client)
    server.send_arena(2, SEGMENT, ("n", "k"))
    server.send_retire(1)
    client.send_release([1])
    assert flow(server, client) == [events.ArenaPassed(2, SEGMENT, ("n", "k")), events.ArenaRetired(1)]
    assert flow(client, server) == [events.Released((1,))]


def passed(number):
    client, server = sharing()
    for some in range(number):
        client.send_arena(some, SEGMENT, ("m", "l"))
    flow(client, server)
    return client, server


REFUSED = {
    "to an end that takes none": (lambda: greeted("msgpack")[0].send_arena(1, 1, ("m", "l")), "no arenas are shared"),
    "before the peer's preface": (
        lambda: pair("msgpack", features=ARENAS)[0].send_arena(1, 1, ("m", "l")),
        "no arenas are shared",
    ),
    "before its own": (lambda: sharing_server().send_arena(1, 1, ("m", "l")), "is GREETING"),
    "as JSON lines": (lambda: greeted("json")[1].send_arena(1, 1, ("m", "l")), "no arenas are shared"),
    "RETIRE as JSON lines": (lambda: greeted("json")[1].send_retire(1), "no arenas are shared"),
    "RELEASE as JSON lines": (lambda: greeted("json")[1].send_release([1]), "no arenas are shared"),
    "one descriptor": (lambda: sharing()[0].send_arena(1, 1, ("m",)), "arena 1 with 1 descriptors"),
    "number too long": (lambda: sharing()[0].send_arena(2**32, 1, ("m", "l")), "arena 4294967296 with 2"),
    "number below 0": (lambda: sharing()[0].send_arena(-1, 1, ("m", "l")), "arena -1 with 2"),
    "empty": (lambda: sharing()[0].send_arena(1, 0, ("m", "l")), "ARENA of 0 bytes"),
    "too large": (lambda: sharing()[0].send_arena(1, 2**30 + 1, ("m", "l")), "ARENA of 1073741825 bytes"),
    "twice": (lambda: passed(2)[0].send_arena(1, 1, ("m", "l")), "ARENA with number 1, which another one has"),
    "too many": (lambda: passed(64)[0].send_arena(64, 1, ("m", "l")), "beside 64 others"),
    "RETIRE of none": (lambda: passed(1)[0].send_retire(1), "RETIRE of arena 1, which was not passed"),
    "RELEASE by whoever passed it": (lambda: passed(1)[0].send_release([1]), "no arenas are shared"),
    "share too long": (lambda: passed(1)[1].send_release([1, 2**64]), "each has 64 bits"),
    "share below 0": (lambda: passed(1)[1].send_release([-1]), "each has 64 bits"),
}


def sharing_server():
    server = accept(0xF5, features=ARENAS)
    server.peer_features = ARENAS
    return server


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_be_sent_is_not(name):
    step, message = REFUSED[name]
    with pytest.raises(LocalProtocolError, match=message):
        step()


def test_what_was_refused_has_changed_nothing():
    client, server = passed(1)
    for step in (
        lambda: client.send_arena(0, 1, ("m", "l")),
        lambda: client.send_retire(1),
        lambda: server.send_release([1, -1]),
    ):
        with pytest.raises(LocalProtocolError):
            step()
    assert (client.data_to_send(), server.data_to_send()) == ([], [])
    client.fail("too_slow", "")
    server.fail("too_slow", "")
    for step in (
        lambda: client.send_arena(1, 1, ("m", "l")),
        lambda: client.send_retire(0),
        lambda: server.send_release([1]),
    ):
        with pytest.raises(LocalProtocolError, match="is FINISHED"):
            step()
    assert client._arenas_passed == {0}


PAIR = ("m", "l")
FAULTS = {
    "ARENA twice": ([(arena(), PAIR), (arena(), PAIR)], "protocol_error", "ARENA with number 1, which another one has"),
    "too many": ([(arena(n), PAIR) for n in range(65)], "protocol_error", "ARENA beside 64 others"),
    "empty": ([(arena(1, 0), PAIR)], "protocol_error", "ARENA of 0 bytes, from 1 to 1073741824"),
    "too large": ([(arena(1, 2**64 - 1), PAIR)], "protocol_error", "ARENA of 18446744073709551615 bytes"),
    "RETIRE of none": ([(retire(), ())], "protocol_error", "RETIRE of arena 1, which was not passed"),
    "RETIRE twice": ([(arena(), PAIR), (retire() * 2, ())], "protocol_error", "RETIRE of arena 1, which was not"),
    "RELEASE of what was never passed": ([(release(1), ())], "protocol_error", "RELEASE to an end that has no part"),
    "RELEASE by its owner": ([(arena(), PAIR), (release(1), ())], "protocol_error", "RELEASE to an end that has no"),
    "no descriptors": ([(arena()[:6] + bytes(2) + arena()[8:], ())], "unexpected_descriptors", "ARENA with 0"),
    "one descriptor": ([(frame(0x20, bytes(16), count=1), ("m",))], "unexpected_descriptors", "ARENA with 1 desc"),
    "three": ([(frame(0x20, bytes(16), count=3), (1, 2, 3))], "unexpected_descriptors", "ARENA with 3 descriptors"),
    "announced and not there": ([(arena(), ())], "unexpected_descriptors", "announces 2 descriptors came with 0"),
    "RETIRE with some": ([(frame(0x22, bytes(4), count=2), PAIR)], "unexpected_descriptors", "RETIRE with 2"),
    "RELEASE with one": ([(frame(0x21, bytes(8), count=1), ("m",))], "unexpected_descriptors", "RELEASE with 1"),
    "ARENA too short": ([(frame(0x20, bytes(15), count=2), PAIR)], "protocol_error", "ARENA with a payload of 15"),
    "ARENA too long": ([(frame(0x20, bytes(17), count=2), PAIR)], "too_large", "ARENA with a payload of 17"),
    "RETIRE too long": ([(frame(0x22, bytes(5)), ())], "too_large", "RETIRE with a payload of 5 bytes"),
    "RELEASE of none": ([(frame(0x21), ())], "protocol_error", "RELEASE with a payload of 0 bytes"),
    "RELEASE of a half": ([(frame(0x21, bytes(12)), ())], "protocol_error", "12 bytes, which is no number of whole"),
    "RELEASE too long": ([(frame(0x21, bytes(4104)), ())], "too_large", "RELEASE with a payload of 4104 bytes"),
    "with an id": ([(frame(0x22, bytes(4), 1), ())], "protocol_error", "RETIRE with call id 1"),
    "type 0x23": ([(frame(0x23), ())], "protocol_error", "a frame of type 0x23"),
}


@pytest.mark.parametrize("size", [5, 13, 10**6])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_the_connection_and_gives_everything_back(name, size):
    reads, code, message = FAULTS[name]
    _, server = sharing()
    heard = []
    for data, descriptors in reads:
        heard += server.receive_data(data[:size], descriptors)
        heard += server.receive_data(data[size:]) if data[size:] else []
    error = failure_of(heard)
    assert error.code == code
    assert re.search(message, str(error)), error
    came = [descriptor for _, descriptors in reads for descriptor in descriptors]
    assert [descriptor for event in heard for descriptor in getattr(event, "descriptors", ())] == came


@pytest.mark.parametrize("features", [0, SEALED | FILES])
@pytest.mark.parametrize(("data", "descriptors"), [(arena(), PAIR), (retire(), ()), (release(1), ())])
def test_an_end_that_did_not_announce_arenas_has_no_part_in_them(features, data, descriptors):
    for _, end in (greeted("msgpack", features=features), greeted("msgpack", features=features)[::-1]):
        heard = end.receive_data(data, descriptors)
        assert re.search("(ARENA|RETIRE|RELEASE) to an end that has no part in arenas", str(failure_of(heard)))
        assert heard[:-1] == ([events.Discarded(descriptors)] if descriptors else [])


def test_the_descriptors_of_an_arena_are_not_limited_as_those_of_calls_are():
    client, server = sharing(Limits(descriptors_per_frame_max=0))
    client.send_arena(1, SEGMENT, PAIR)
    assert flow(client, server) == [events.ArenaPassed(1, SEGMENT, PAIR)]


# What nobody gets may refer to shares, which have to be released: it is handed over, once there can be any.


def with_arenas(**limits_):
    """Both have passed one."""
    client, server = sharing(Limits(**limits_), Limits(calls_max=2))
    client.send_arena(1, SEGMENT, PAIR)
    server.send_arena(1, SEGMENT, PAIR)
    flow(client, server)
    flow(server, client)
    return client, server


def test_calls_that_are_refused_are_handed_over():
    client, server = with_arenas(calls_max=1)
    client.peer_calls_max = 9
    client.send_call("m", b"\x80")
    client.send_call("m", b"\x81busy")
    assert flow(client, server)[1:] == [events.Discarded((), b"\x81busy")]
    server.send_going_away()
    client.send_call("m", b"\x81draining", descriptors=("a",))
    client.send_notification("n", b"\x81late")
    assert flow(client, server) == [
        events.Discarded(("a",), b"\x81draining"),
        events.Discarded((), b"\x81late"),
    ]


def test_answers_to_cancelled_calls_are_handed_over():
    client, server = with_arenas()
    call_id = client.send_call("m", b"\x80", flags=BOTH)
    flow(client, server)
    server.send_stream(call_id)
    server.send_item(call_id, b"item")
    client.send_item(call_id, b"upload")
    client.send_cancel(call_id)
    server.send_reply(call_id, b"result")
    assert flow(server, client) == [
        events.Discarded((), b"item"),
        events.Discarded((), b"result"),
        events.Freed(call_id),
    ]
    assert flow(client, server) == [events.Discarded((), b"upload")]


def test_answers_to_calls_that_were_given_up_are_handed_over():
    client, server = with_arenas()
    client.send_call("m", b"\x80")
    flow(client, server)
    late = frame(0x03, b"\x01", 1)
    assert client.receive_data(late + late) == [events.Reply(1, b"\x01", ()), events.Discarded((), b"\x01")]
    assert client.receive_data(frame(0x04, b"\x01\x00\x00\x00x", 1)) == []


def test_nothing_is_handed_over_where_no_shares_can_be():
    client, server = sharing()
    client.send_arena(1, SEGMENT, PAIR)  # which says nothing of the server's
    flow(client, server)
    call_id = client.send_call("m", b"\x80")
    flow(client, server)
    client.send_cancel(call_id)
    server.send_reply(call_id, b"result")
    assert flow(server, client) == [events.Freed(call_id)]


def test_what_comes_behind_the_end_is_not_looked_at():
    client, server = with_arenas()
    server.fail("too_slow", "")
    client.send_call("m", b"\x80", descriptors=("a",))
    assert flow(client, server) == [events.Discarded(("a",))]
    assert written(client) == b""
