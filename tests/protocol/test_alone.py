"""What is received and sent alone, one frame in one step: it is what the general way would have done, or nothing is.

Each thing is done on two copies of a connection, on one of them by the general way only. They hear and send the same,
refuse the same, and keep the same book.
"""

from __future__ import annotations

import contextlib
import copy
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol.joined import Pipe, flow, greeted, pair, written

from samehost import limits
from samehost.errors import LocalProtocolError, MessageTooLarge
from samehost.protocol import ITEMS_FOLLOW, ITEMS_WANTED, Limits
from samehost.protocol.events import Call, Failed, Reply

SMALL = Limits(payload_bytes_max=limits.PAYLOAD_BYTES_FLOOR, calls_max=2)
LAST_ID = 2**32 - 1
JOINED = bytes(limits.JOIN_BYTES_MAX)
ALONE = bytes(limits.PAYLOAD_BYTES_FLOOR)
CALL, REPLY = 0x01, 0x03


def frame(kind, call_id, payload, flags=0, count=0, length=None):
    return struct.pack("<IBBHI", len(payload) if length is None else length, kind, flags, count, call_id) + payload


def call_frame(call_id, name=b"m", arguments=b"\x80", name_bytes=None, milliseconds_left=5, **header):
    head = struct.pack("<IB", milliseconds_left, len(name) if name_bytes is None else name_bytes)
    return frame(CALL, call_id, head + name + arguments, **header)


# The two ways.


def book_of(connection):
    """All that a connection remembers, but what it is about to send."""
    names = {name for kind in type(connection).__mro__ for name in getattr(kind, "__slots__", ())}
    book = {name: getattr(connection, name) for name in names - {"_output", "_pieces", "_chunks"}}
    streams = {
        call_id: [getattr(credit, name) for name in credit.__slots__] for call_id, credit in connection._streams.items()
    }
    return copy.deepcopy(book | {"_streams": streams})


def told(events):
    return [
        (event.error.code, str(event.error), event.lost, event.abandoned) if isinstance(event, Failed) else event
        for event in events
    ]


def output_of(connection, before=b""):
    """What goes out, as one, and where in it which descriptors do."""
    data, descriptors = before, []
    for piece, files in connection.data_to_send():
        descriptors += [(len(data), files)] if files else []
        data += piece
    return data, descriptors


def receive_call(connection, data, alone):
    if alone and (call := connection.receive_call_alone(data)) is not None:
        return [call]
    return None if alone else told(connection.receive_data(data))


def receive_reply(connection, data, alone):
    if alone and (result := connection.receive_reply_alone(data)) is not None:
        return [Reply(int.from_bytes(data[8:12], "little"), result, ())]
    return None if alone else told(connection.receive_data(data))


def send_call(connection, arguments, alone):
    if alone:
        return connection.send_call_alone(*arguments) or None
    method, value, milliseconds_left, *flags = arguments
    connection.send_call(method, value, milliseconds_left, flags=sum(flags))
    return b""


def send_reply(connection, arguments, alone):
    if alone:
        return connection.send_reply_alone(*arguments) or None
    connection.send_reply(*arguments)
    return b""


WAYS = {"receive_call": receive_call, "receive_reply": receive_reply, "send_call": send_call, "send_reply": send_reply}


def is_done_alone(connection, way, what):
    """Whether one thing was done alone, which is the same as what the general way does; if not, nothing was."""
    do = WAYS[way]
    other = copy.deepcopy(connection)
    before = book_of(connection)
    result = do(connection, what, True)
    if result is None:
        assert book_of(connection) == before
        assert output_of(connection) == output_of(other)
        return False
    general = do(other, what, False)
    if way.startswith("send"):
        assert output_of(connection, result) == output_of(other)
    else:
        assert result == general
        assert output_of(connection) == output_of(other)
    assert book_of(connection) == book_of(other)
    return True


# One state after the other.


@pytest.fixture
def ends():
    """Two ends that know each other's limits, and have made a call of "m" before."""
    client, server = greeted("msgpack", SMALL, SMALL)
    client.send_call("m", b"\x80")
    flow(client, server)
    server.send_reply(1, b"\x01")
    flow(server, client)
    return client, server


def test_a_call_and_its_answer_in_four_steps(ends):
    client, server = ends
    data = client.send_call_alone("m", b"\x90", 7)
    call = server.receive_call_alone(data)
    assert call == Call(3, "m", b"\x90", 7, b"", 0, ())
    answer = server.send_reply_alone(3, b"\x02")
    assert client.receive_reply_alone(answer) == b"\x02"
    assert client.is_idle
    assert server.is_idle
    assert written(client) == written(server) == b""


def test_the_first_call_of_a_name_is_not_made_or_taken_alone():
    client, server = greeted("msgpack")
    assert not is_done_alone(client, "send_call", ("m", b"\x80", 0))
    assert not is_done_alone(server, "receive_call", call_frame(1))


def test_nothing_is_done_alone_in_lines():
    client, server = greeted("json")
    for _ in range(2):
        client.send_call("m", b"{}")
        assert not is_done_alone(server, "receive_call", written(copy.deepcopy(client)))
        flow(client, server)
    assert not is_done_alone(server, "send_reply", (1, b"1"))


@pytest.mark.parametrize("flags", range(4))
def test_calls_of_every_shape_come_alone(ends, flags):
    _, server = ends
    assert is_done_alone(server, "receive_call", call_frame(3, flags=flags))
    assert server.receive_data(call_frame(5, flags=flags)) == [Call(5, "m", b"\x80", 5, b"", flags, ())]


NOT_A_CALL_ALONE = {
    "nothing": b"",
    "less than its head": call_frame(3)[:16],
    "less than all": call_frame(3)[:-1],
    "more than one": call_frame(3) * 2,
    "a byte more": call_frame(3) + b"\x00",
    "another name": call_frame(3, b"n"),
    "no name": call_frame(3, b"", b"\x80\x80"),
    "a name without arguments": call_frame(3, b"m", b""),
    "a name beyond the end": call_frame(3, b"m", b"", name_bytes=2),
    "another type": frame(0x02, 0, call_frame(3)[12:]),
    "a type that is none": frame(0x7F, 3, call_frame(3)[12:]),
    "a context": call_frame(3, b"m", b"\x01\x00\x80\x80", flags=4),
    "a flag to be ignored": call_frame(3, flags=0x10),
    "a flag not to be ignored": call_frame(3, flags=0x08),
    "descriptors announced": call_frame(3, count=1),
    "no id": call_frame(0),
    "an id of ours": call_frame(2),
    "an id of the past": call_frame(1),
    "a later id": call_frame(5),
    "too long": call_frame(3, b"m", bytes(SMALL.payload_bytes_max)),
    "absurdly long": call_frame(3, length=LAST_ID),
}


@pytest.mark.parametrize("what", NOT_A_CALL_ALONE)
def test_what_is_not_just_a_call_is_left_to_the_general_way(ends, what):
    _, server = ends
    assert not is_done_alone(server, "receive_call", NOT_A_CALL_ALONE[what])


def leave(connection):
    connection.send_going_away()
    connection.data_to_send()


def be_left(connection):
    connection.receive_data(frame(0x12, 0, struct.pack("<IBxH", 0, 1, 0) + b"c"))


def begin_a_frame(connection):
    connection.receive_data(b"\x04")


def begin_a_frame_with_descriptors(connection):
    connection.receive_data(b"\x07", (9,))


def hear_no_more(connection):
    connection.receive_eof()


def finish(connection):
    connection.fail("timeout", "too slow")
    connection.data_to_send()


def open_two(connection):
    connection.receive_data(call_frame(3, flags=3) + call_frame(5))


def use_all_ids(connection):
    connection._last_taken = LAST_ID


STATES = [leave, be_left, begin_a_frame, begin_a_frame_with_descriptors, hear_no_more, finish, open_two, use_all_ids]


@pytest.mark.parametrize("state", STATES)
def test_no_call_comes_alone_in_any_other_state(ends, state):
    _, server = ends
    state(server)
    assert not is_done_alone(server, "receive_call", call_frame((server._last_taken + 2) & LAST_ID))
    assert server.kept_bytes == (state in (begin_a_frame, begin_a_frame_with_descriptors))


def test_no_call_comes_alone_that_takes_an_id_in_use(ends):
    _, server = ends
    server.receive_data(call_frame(5))
    server._last_taken = 3
    assert not is_done_alone(server, "receive_call", call_frame(5))


def test_a_call_alone_does_not_come_to_an_end_that_takes_none_or_is_not_greeted():
    client, server = greeted("msgpack")
    client._called[b"m"] = server._called[b"m"] = "m"
    assert not is_done_alone(client, "receive_call", call_frame(2))
    _, server = pair("msgpack")
    server._called[b"m"] = "m"
    assert not is_done_alone(server, "receive_call", call_frame(1))


NOT_A_REPLY_ALONE = {
    "nothing": b"",
    "a header": frame(REPLY, 3, b""),
    "less than all": frame(REPLY, 3, b"\x01\x02")[:-1],
    "more than one": frame(REPLY, 3, b"\x01") * 2,
    "another type": frame(0x0A, 3, b"\x01"),
    "a flag to be ignored": frame(REPLY, 3, b"\x01", 0x10),
    "a flag not to be ignored": frame(REPLY, 3, b"\x01", 1),
    "descriptors announced": frame(REPLY, 3, b"\x01", count=1),
    "late": frame(REPLY, 1, b"\x01"),
    "never made": frame(REPLY, 5, b"\x01"),
    "too long": frame(REPLY, 3, bytes(SMALL.payload_bytes_max + 1)),
}


@pytest.mark.parametrize("what", NOT_A_REPLY_ALONE)
def test_what_is_not_just_the_reply_is_left_to_the_general_way(ends, what):
    client, _ = ends
    client.send_call("m", b"\x80")
    assert not is_done_alone(client, "receive_reply", NOT_A_REPLY_ALONE[what])


def be_left_with_the_call_accepted(connection):
    connection.receive_data(frame(0x12, 0, struct.pack("<IBxH", 3, 1, 0) + b"c"))


@pytest.mark.parametrize(
    ("state", "is_alone"),
    [
        (leave, True),
        (be_left_with_the_call_accepted, True),
        (be_left, False),
        (begin_a_frame, False),
        (hear_no_more, False),
        (finish, False),
    ],
)
def test_a_reply_in_other_states(ends, state, is_alone):
    client, _ = ends
    client.send_call("m", b"\x80")
    state(client)
    assert is_done_alone(client, "receive_reply", frame(REPLY, 3, b"\x01")) == is_alone


def test_only_the_reply_to_the_only_call_comes_alone(ends):
    """Whoever waits for the first call must not take the reply to the second, which may come sooner, for its own."""
    client, _ = ends
    client.send_call("m", b"\x80")
    client.send_call("m", b"\x80")
    for call_id in (3, 5):
        assert not is_done_alone(client, "receive_reply", frame(REPLY, call_id, b"\x01"))
    client.receive_data(frame(REPLY, 5, b"\x01"))
    assert is_done_alone(client, "receive_reply", frame(REPLY, 3, b"\x01"))


@pytest.mark.parametrize("flags", range(4))
def test_the_reply_to_a_call_without_a_stream_of_ours_comes_alone_and_to_a_cancelled_one_does_not(ends, flags):
    client, _ = ends
    client.send_call("m", b"\x80", flags=flags)
    is_alone = not flags & ITEMS_FOLLOW
    assert is_done_alone(copy.deepcopy(client), "receive_reply", frame(REPLY, 3, b"\x01")) == is_alone
    client.send_cancel(3)
    assert not is_done_alone(client, "receive_reply", frame(REPLY, 3, b"\x01"))


def test_the_reply_to_a_call_that_streams_or_has_credit_is_left_to_the_general_way(ends):
    client, _ = ends
    client.send_call("m", b"\x80", flags=ITEMS_WANTED)
    with_credit = copy.deepcopy(client)
    with_credit.send_credit(3, 1, 1)
    assert not is_done_alone(with_credit, "receive_reply", frame(REPLY, 3, b"\x01"))
    client.receive_data(frame(0x06, 3, b""))
    assert not is_done_alone(client, "receive_reply", frame(REPLY, 3, b"\x01"))


def test_a_reply_before_the_server_has_greeted_is_left_to_the_general_way():
    client, _ = pair("msgpack")
    client.send_call("m", b"\x80")
    assert not is_done_alone(client, "receive_reply", frame(REPLY, 1, b"\x01"))


@pytest.mark.parametrize(
    ("name", "arguments", "milliseconds_left"),
    [
        ("n", b"\x80", 0),
        ("m", b"", 0),
        ("m", ALONE, 0),
        ("m", b"\x80", 2**32),
        ("m", b"\x80", -1),
    ],
)
def test_calls_that_are_not_made_alone(ends, name, arguments, milliseconds_left):
    client, _ = ends
    assert not is_done_alone(client, "send_call", (name, arguments, milliseconds_left))


@pytest.mark.parametrize("arguments", [b"\x80", JOINED, ALONE[:-6]])
@pytest.mark.parametrize("milliseconds_left", [0, 2**32 - 1])
@pytest.mark.parametrize("flags", range(4))
def test_calls_that_are_made_alone(ends, arguments, milliseconds_left, flags):
    client, _ = ends
    assert is_done_alone(client, "send_call", ("m", arguments, milliseconds_left, flags))


@pytest.mark.parametrize("state", [leave, be_left, hear_no_more, finish])
def test_no_call_is_made_alone_in_any_other_state(ends, state):
    client, _ = ends
    state(client)
    assert not is_done_alone(client, "send_call", ("m", b"\x80", 0))


def test_no_call_is_made_alone_beside_another_or_to_an_end_that_takes_none():
    client, server = greeted("msgpack")
    client.send_call("m", b"\x80")
    client.data_to_send()
    assert not is_done_alone(client, "send_call", ("m", b"\x80", 0))
    server._names["m"] = b"\x01m"
    assert not is_done_alone(server, "send_call", ("m", b"\x80", 0))
    early, _ = pair("msgpack")
    early._names["m"] = b"\x01m"
    early.data_to_send()
    assert not is_done_alone(early, "send_call", ("m", b"\x80", 0))


def test_the_last_id_is_given_alone_and_the_first_again_is_not(ends):
    client, _ = ends
    client.last_call_made = LAST_ID - 2
    assert is_done_alone(client, "send_call", ("m", b"\x80", 0))
    client._made.clear()
    assert not is_done_alone(client, "send_call", ("m", b"\x80", 0))
    assert client.send_call("m", b"\x80") == 1


@pytest.mark.parametrize("result", [b"\x01", JOINED, b"", JOINED + b"\x00"])
def test_short_results_are_sent_alone(ends, result):
    _, server = ends
    server.receive_data(call_frame(3))
    assert is_done_alone(server, "send_reply", (3, result)) == (0 < len(result) <= limits.JOIN_BYTES_MAX)


@pytest.mark.parametrize(("state", "is_alone"), [(leave, True), (hear_no_more, True), (finish, False)])
def test_a_result_in_other_states(ends, state, is_alone):
    _, server = ends
    server.receive_data(call_frame(3))
    state(server)
    assert is_done_alone(server, "send_reply", (3, b"\x01")) == is_alone


def test_a_result_beside_streams_or_for_no_call_is_not_sent_alone(ends):
    _, server = ends
    open_two(server)
    server.send_stream(3)
    server.data_to_send()
    assert is_done_alone(copy.deepcopy(server), "send_reply", (5, b"\x01"))
    server.send_item(3, b"\x01")
    server.data_to_send()
    assert not is_done_alone(server, "send_reply", (5, b"\x01"))
    assert not is_done_alone(server, "send_reply", (7, b"\x01"))
    with pytest.raises(LocalProtocolError):
        server.send_reply(7, b"\x01")


PENDING = {"short": b"\x01", "of two chunks": JOINED + b"\x00"}


@pytest.mark.parametrize("pending", PENDING.values(), ids=PENDING)
def test_nothing_overtakes_what_was_written_before(ends, pending):
    """A long value leaves no pieces, and yet it waits to be sent."""
    client, server = ends
    open_two(server)
    server.send_reply(3, pending)
    assert not is_done_alone(copy.deepcopy(server), "send_reply", (5, b"\x01"))
    client.send_notification("m", pending)
    assert not is_done_alone(copy.deepcopy(client), "send_call", ("m", b"\x80", 0))
    client.data_to_send()
    server.data_to_send()
    assert is_done_alone(server, "send_reply", (5, b"\x01"))
    assert is_done_alone(client, "send_call", ("m", b"\x80", 0))


def test_names_that_were_called_are_kept_up_to_a_bound():
    client, server = greeted("msgpack", Limits(calls_max=2**31))
    for number in range(limits.METHOD_NAMES_KEPT + 1):
        client.send_call(f"m{number}", b"\x80")
    flow(client, server)
    assert len(server._called) == limits.METHOD_NAMES_KEPT
    after = server._last_taken + 2
    assert not is_done_alone(copy.deepcopy(server), "receive_call", call_frame(after, f"m{number}".encode()))
    assert is_done_alone(server, "receive_call", call_frame(after, b"m0"))


# Any state, and anything.

names = st.sampled_from(["m", "m", "n", "größe"])
sizes = st.sampled_from([0, 1, 1, 1, 7, limits.JOIN_BYTES_MAX - 6, limits.JOIN_BYTES_MAX, limits.JOIN_BYTES_MAX + 1])
ids = st.sampled_from([0, 0, 0, 1, 1, 2, 3, -1, -2])
milliseconds = st.sampled_from([0, 0, 5, 5, 2**32 - 1, 2**32, -1])
counts = st.sampled_from([0, 0, 0, 1, 2])
flags_ = st.sampled_from([0, 0, 0, 1, 2, 3])
MADE_IDS = [-1, 0, 1, 3, LAST_ID - 3, LAST_ID - 2, LAST_ID - 1, LAST_ID]


STEPS = [
    "call",
    "call",
    "reply",
    "settle",
    "settle",
    "deliver",
    "context",
    "error",
    "bare",
    "item",
    "note",
    "say",
    "end",
]


class World:
    """Two ends and the pipes between them, to be brought into any state."""

    def __init__(self, client_limits, server_limits):
        self.ends = pair("msgpack", server_limits, client_limits)
        self.pipes = Pipe(), Pipe()

    def push(self, one):
        for data, descriptors in self.ends[one].data_to_send():
            self.pipes[one].send(data, descriptors)

    def deliver(self, one, size):
        self.push(one)
        data, descriptors = self.pipes[one].receive(size)
        if data:
            self.ends[1 - one].receive_data(data, descriptors)

    def settle(self):
        """Bring over all that was sent."""
        for one in (0, 1, 0):
            self.push(one)
            while self.pipes[one]:
                self.deliver(one, 1 << 20)


def some_id(connection, number):
    """An open call, mostly the last of either side, or an id near those."""
    known = [*connection._taken, *connection._made][::-1]
    if 0 <= number < len(known):
        return known[number]
    last = connection._last_taken if number % 2 else connection.last_call_made
    return (last + 2 * (number // 2)) & LAST_ID


@st.composite
def worlds(draw):
    takes = st.builds(
        Limits, payload_bytes_max=st.just(limits.PAYLOAD_BYTES_FLOOR), calls_max=st.sampled_from([3, 3, 3, 3, 1, 0])
    )
    world = World(draw(takes), draw(takes))
    if draw(st.sampled_from([True] * 7 + [False])):
        world.settle()
        for end, other in (world.ends, world.ends[::-1]):
            with contextlib.suppress(LocalProtocolError):
                other.receive_data(call_frame(end.send_call("m", b"\x80")))
                end.receive_data(frame(REPLY, end.last_call_made, b"\x01"))
                end.data_to_send()
                del other._taken[end.last_call_made]
    if draw(st.sampled_from([True, False, False, False])):
        for maker, taker, parity in ((*world.ends, 1), (*world.ends[::-1], 0)):
            last = draw(st.sampled_from([number for number in MADE_IDS if number & 1 == parity]))
            maker.last_call_made = taker._last_taken = last
    for _ in range(draw(st.integers(0, 6))):
        one = draw(st.integers(0, 1))
        with contextlib.suppress(LocalProtocolError, MessageTooLarge):
            take_a_step(draw, world, one, world.ends[one])
    if draw(st.booleans()):
        for end in world.ends:
            with contextlib.suppress(LocalProtocolError):
                end.send_call("m", b"\x80")
        world.settle()
    return world


def take_a_step(draw, world, one, end):
    some = some_id(end, draw(ids))
    value = bytes(draw(sizes))
    files = tuple(range(draw(counts)))
    match draw(st.sampled_from(STEPS)):
        case "call":
            end.send_call(draw(names), value, flags=draw(flags_), descriptors=files)
        case "context":
            end.send_call(draw(names), value, context=b"\x80", flags=draw(flags_))
        case "reply":
            end.send_reply(some, value, files)
        case "error":
            end.send_error(some, "app.no", "no", "", value)
        case "bare":
            getattr(end, draw(st.sampled_from(["send_cancel", "send_stream", "send_end"])))(some)
        case "item":
            end.send_item(some, value, files)
        case "note":
            end.send_note(some, value)
        case "say":
            end.send_notification(draw(names), value, descriptors=files)
            end.send_ping(7)
        case "end":
            draw(st.sampled_from([end.send_going_away, end.receive_eof, world.settle, world.settle]))()
        case "deliver":
            end.send_call(draw(names), b"\x80", descriptors=files)
            world.deliver(one, draw(st.sampled_from([1, 11, 12, 16, 17, 40])))
        case "settle":
            world.settle()


WRONG = {
    "flags": st.sampled_from([1, 2, 3, 4, 8, 16]),
    "count": st.sampled_from([1, 2]),
    "length": st.sampled_from([0, 1, 7, 8, SMALL.payload_bytes_max + 1, LAST_ID]),
}


@st.composite
def frames_to(draw, connection):
    """A call or a reply that is right, or is wrong in one thing."""
    wrong = draw(st.sampled_from([*[None] * 4, *WRONG, "id", "value", "name", "end", "more"]))
    header = {wrong: draw(WRONG[wrong])} if wrong in WRONG else {}
    value = bytes(draw(st.sampled_from([0, 70_000]))) if wrong == "value" else b"\x80"
    off = draw(st.sampled_from([-2, -1, 1, 2])) if wrong == "id" else 0
    if draw(st.booleans()):
        name, name_bytes = (
            (draw(names).encode(), draw(st.sampled_from([None, 0, 2, 255]))) if wrong == "name" else (b"m", None)
        )
        data = call_frame((connection._last_taken + 2 + off) & LAST_ID, name, value, name_bytes, **header)
    else:
        data = frame(REPLY, (connection.last_call_made + off) & LAST_ID, value, **header)
    if wrong == "end":
        return data[: draw(st.integers(0, len(data) - 1))]
    return data + draw(st.sampled_from([b"\x00", data])) if wrong == "more" else data


def comes_to(draw, world, one):
    """What the other end sends next, a frame that is right or nearly so, or any bytes."""
    match draw(st.sampled_from(["frame"] * 6 + ["sent", "bytes"])):
        case "bytes":
            return draw(st.binary(max_size=40))
        case "sent":
            with contextlib.suppress(LocalProtocolError, MessageTooLarge):
                take_a_step(draw, world, 1 - one, world.ends[1 - one])
            world.push(1 - one)
            return world.pipes[1 - one].receive(draw(st.sampled_from([1 << 20, 20])))[0]
        case _:
            return draw(frames_to(world.ends[one]))


@settings(max_examples=400, deadline=None)
@given(data=st.data(), one=st.integers(0, 1))
def test_receiving_alone_is_receiving(data, one):
    world = data.draw(worlds())
    came = comes_to(data.draw, world, one)
    for way in ("receive_call", "receive_reply"):
        is_done_alone(copy.deepcopy(world.ends[one]), way, came)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), one=st.integers(0, 1), is_sent=st.sampled_from([True, True, False]))
def test_sending_alone_is_sending(data, one, is_sent):
    world = data.draw(worlds())
    end = world.ends[one]
    if is_sent:
        end.data_to_send()
    value = bytes(data.draw(sizes))
    is_done_alone(
        copy.deepcopy(end), "send_call", (data.draw(names), value, data.draw(milliseconds), data.draw(flags_))
    )
    is_done_alone(copy.deepcopy(end), "send_reply", (some_id(end, data.draw(ids)), value))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), one=st.integers(0, 1))
def test_a_reply_is_sent_as_every_format_sends_it(data, one):
    """The shorter `send_reply` of frames is the one that it stands for."""
    end = data.draw(worlds()).ends[one]
    other = copy.deepcopy(end)
    call_id, value = some_id(end, data.draw(ids)), bytes(data.draw(sizes))
    files = tuple(range(data.draw(counts)))
    refused = []
    for connection, send in ((end, end.send_reply), (other, super(type(other), other).send_reply)):
        try:
            send(call_id, value, files)
        except (LocalProtocolError, MessageTooLarge) as error:
            refused.append((type(error), str(error)))
        else:
            refused.append(None)
        assert connection.is_open(call_id) <= (call_id in connection._made or refused[-1] is not None)
    assert refused[0] == refused[1]
    assert output_of(end) == output_of(other)
    assert book_of(end) == book_of(other)


def test_a_call_of_a_known_name_has_arguments():
    _, server = greeted("msgpack")
    server.receive_data(call_frame(1, b"add"))
    (failed,) = server.receive_data(call_frame(3, b"add", b""))
    assert "ends before its arguments" in str(failed.error)
