"""What both formats do alike: every kind of exchange, and every step that is refused, on both sides."""

from __future__ import annotations

import pytest
from protocol.joined import EMPTY, SOME, flow, greeted, pair

from samehost import limits
from samehost.errors import LocalProtocolError, MessageTooLarge
from samehost.protocol import ITEMS_FOLLOW, ITEMS_WANTED, Limits, states
from samehost.protocol.events import (
    Call,
    Cancel,
    Credit,
    End,
    Failed,
    Failure,
    Freed,
    GoingAway,
    InputEnded,
    Item,
    Note,
    Notification,
    Pong,
    Reply,
    Stream,
)

BOTH = ITEMS_FOLLOW | ITEMS_WANTED


@pytest.fixture(params=["msgpack", "json"])
def codec(request):
    return request.param


@pytest.fixture
def ends(codec):
    return greeted(codec)


def call(ends, flags=0, method="m"):
    client, server = ends
    call_id = client.send_call(method, EMPTY[client.codec], flags=flags)
    (event,) = flow(client, server)
    assert isinstance(event, Call)
    assert event.call_id == call_id
    return call_id


def test_a_call_and_its_reply(codec, ends):
    client, server = ends
    assert client.send_call("now", EMPTY[codec], 500, context=EMPTY[codec]) == 1
    (event,) = flow(client, server)
    assert event == Call(1, "now", EMPTY[codec], 500, EMPTY[codec], 0, ())
    assert not event.items_follow
    assert not event.items_wanted
    assert client.calls_made == server.calls_taken == 1
    assert not server.is_idle
    server.send_reply(1, SOME[codec])
    assert flow(server, client) == [Reply(1, SOME[codec], ())]
    assert client.is_idle
    assert server.is_idle


def test_ids_are_odd_for_the_client(ends):
    assert [call(ends), call(ends), call(ends)] == [1, 3, 5]


def test_flags_say_which_streams_there_are(codec, ends):
    client, server = ends
    client.send_call("m", EMPTY[codec], flags=ITEMS_FOLLOW)
    client.send_call("m", EMPTY[codec], flags=ITEMS_WANTED)
    first, second = flow(client, server)
    assert (first.items_follow, first.items_wanted) == (True, False)
    assert (second.items_follow, second.items_wanted) == (False, True)


def test_an_error_carries_code_message_id_and_data(codec, ends):
    client, server = ends
    call_id = call(ends)
    server.send_error(call_id, "app.full", "no röom", "e1", SOME[codec])
    assert flow(server, client) == [Failure(call_id, "app.full", "no röom", "e1", SOME[codec])]
    call_id = call(ends)
    server.send_error(call_id, "busy", "")
    assert flow(server, client) == [Failure(call_id, "busy", "", "", b"")]


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ("x" * 5000, "x" * 4096),
        ("x" + "é" * 3000, "x" + "é" * 2047),
        ("\ud800", "?"),
    ],
)
def test_a_long_or_broken_message_is_cut(ends, message, sent):
    client, server = ends
    server.send_error(call(ends), "busy", message)
    assert flow(server, client)[0].message == sent


def test_a_notification(codec, ends):
    client, server = ends
    client.send_notification("log", EMPTY[codec], 7, context=EMPTY[codec])
    client.send_notification("log", EMPTY[codec])
    assert flow(client, server) == [
        Notification("log", EMPTY[codec], 7, EMPTY[codec], ()),
        Notification("log", EMPTY[codec], 0, b"", ()),
    ]
    assert server.is_idle


def test_notes(codec, ends):
    client, server = ends
    call_id = call(ends)
    server.send_note(call_id, SOME[codec])
    server.send_note(call_id, SOME[codec])
    assert flow(server, client) == [Note(call_id, SOME[codec])] * 2


def test_pings(ends):
    client, server = ends
    client.send_ping(2**32 - 1)
    assert flow(client, server) == []
    assert flow(server, client) == [Pong(2**32 - 1)]


def test_a_stream_in_each_direction(codec, ends):
    client, server = ends
    call_id = call(ends, BOTH)
    client.send_item(call_id, SOME[codec])
    client.send_end(call_id)
    assert flow(client, server) == [Item(call_id, SOME[codec], ()), End(call_id)]
    server.send_stream(call_id)
    server.send_item(call_id, SOME[codec])
    server.send_reply(call_id, SOME[codec])
    assert flow(server, client) == [Stream(call_id), Item(call_id, SOME[codec], ()), Reply(call_id, SOME[codec], ())]
    assert not client._streams
    assert not server._streams


def test_items_stop_without_credit_and_go_on_with_it(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    assert not server.may_send_item(call_id)
    server.send_stream(call_id)
    assert server.may_send_item(call_id)
    for _ in range(limits.WINDOW_ITEMS):
        server.send_item(call_id, SOME[codec])
    assert not server.may_send_item(call_id)
    with pytest.raises(LocalProtocolError, match="no credit"):
        server.send_item(call_id, SOME[codec])
    items = flow(server, client)[1:]
    assert len(items) == limits.WINDOW_ITEMS
    for item in items:
        client.took_item(call_id, len(item.value))
    assert flow(client, server) == [Credit(call_id)] * 2
    assert server.may_send_item(call_id)
    assert server._streams[call_id].items_out == limits.WINDOW_ITEMS
    assert server._streams[call_id].bytes_out == limits.WINDOW_BYTES


def test_many_items_are_sent_as_one_by_one(codec, ends):
    client, server = ends
    values = [b"%d" % (number % 10) for number in range(limits.WINDOW_ITEMS)]
    if codec == "json":
        values[3:5] = [b'"long"', b'"longer"']
    sent = []
    for _ in range(2):
        call_id = call(ends, ITEMS_FOLLOW)
        if not sent:
            client.send_items(call_id, values)
        else:
            for value in values:
                client.send_item(call_id, value)
        assert not client.may_send_item(call_id)
        with pytest.raises(LocalProtocolError, match="no credit"):
            client.send_items(call_id, values[:1])
        sent.append(flow(client, server))
        assert sent[-1] == [Item(call_id, value, ()) for value in values]
    assert client._streams[1].bytes_out == client._streams[3].bytes_out


def test_more_items_than_there_is_credit_for_are_not_sent_together():
    ends = greeted("msgpack")
    client, server = ends
    call_id = call(ends, ITEMS_FOLLOW)
    with pytest.raises(LocalProtocolError, match="no credit for all"):
        client.send_items(call_id, [b"1"] * (limits.WINDOW_ITEMS + 1))
    with pytest.raises(LocalProtocolError, match="no credit for all"):
        client.send_items(call_id, [b"1" * (limits.WINDOW_BYTES // 16)] * 17)
    assert flow(client, server) == []
    client.send_items(call_id, [b"1" * (limits.WINDOW_BYTES // 16)] * 16)
    assert len(flow(client, server)) == 16
    assert not client.may_send_item(call_id)


def test_one_long_item_among_many_is_sent_as_well(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_FOLLOW)
    values = [b"1", b'"' + b"x" * 2 * limits.JOIN_BYTES_MAX + b'"', b"2"]
    client.send_items(call_id, values)
    assert flow(client, server) == [Item(call_id, value, ()) for value in values]


def test_items_one_behind_the_other_are_no_more_than_there_is_credit_for():
    ends = greeted("msgpack")
    client, server = ends
    call_id = call(ends, ITEMS_FOLLOW)
    client._credit_of(call_id).needs_none()
    client.send_items(call_id, [b"1"] * (limits.WINDOW_ITEMS + 1))
    *items, failed = flow(client, server)
    assert items == [Item(call_id, b"1", ())] * limits.WINDOW_ITEMS
    assert "without credit" in str(failed.error)


def test_items_one_behind_the_other_of_a_call_that_was_cancelled_are_dropped():
    client, server = ends = greeted("msgpack")
    call_id = call(ends, ITEMS_WANTED)
    server.send_stream(call_id)
    server.send_items(call_id, [b"1"] * 3)
    client.send_cancel(call_id)
    assert flow(server, client) == []
    assert client._streams[call_id].items_in == limits.WINDOW_ITEMS - 3


def fill_and_take(ends, call_id, codec):
    """Use up the window of a stream to the client; what the reader there takes of it, one by one."""
    client, server = ends
    while server.may_send_item(call_id):
        server.send_item(call_id, SOME[codec])
    for event in flow(server, client):
        if type(event) is Item:
            client.took_item(call_id, len(event.value))
            yield


def test_the_window_grows_while_both_ends_wait_for_credit(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    server.send_stream(call_id)
    window = limits.WINDOW_ITEMS
    while window < limits.WINDOW_ITEMS_MAX:
        assert client.may_save_up(call_id) == (window // 2, limits.WINDOW_BYTES // 2)
        for left, _ in zip(range(window - 1, -1, -1), fill_and_take(ends, call_id, codec), strict=True):
            assert client.widen_window(call_id) == (left == 0)  # as there was something to read before
        flow(client, server)
        window *= 2
        assert server.items_left(call_id) == window
        assert server.items_widened(call_id) == window - limits.WINDOW_ITEMS
        assert server._streams[call_id].bytes_out == limits.WINDOW_BYTES
        assert not client.widen_window(call_id)  # as the server has used up nothing
    list(fill_and_take(ends, call_id, codec))
    assert not client.widen_window(call_id)
    flow(client, server)
    assert server.items_left(call_id) == limits.WINDOW_ITEMS_MAX


def test_the_window_grows_for_a_reader_who_has_not_told_of_all_that_he_took(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    assert not client.widen_window(call_id)
    server.send_stream(call_id)
    for _ in range(limits.WINDOW_ITEMS):
        server.send_item(call_id, SOME[codec])
    flow(server, client)
    assert not client.widen_window(call_id, limits.WINDOW_ITEMS - 1)
    assert client.widen_window(call_id, limits.WINDOW_ITEMS)
    assert flow(client, server) == [Credit(call_id)]
    assert server.items_left(call_id) == limits.WINDOW_ITEMS
    client.send_cancel(call_id)
    assert not client.widen_window(call_id, 2 * limits.WINDOW_ITEMS)


def test_how_many_items_may_still_be_sent(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    assert server.items_left(call_id) == 0
    server.send_stream(call_id)
    assert server.items_left(call_id) == limits.WINDOW_ITEMS
    server.send_item(call_id, SOME[codec])
    assert server.items_left(call_id) == limits.WINDOW_ITEMS - 1
    client.send_credit(call_id, 5, 5)
    flow(client, server)
    assert server.items_left(call_id) == limits.WINDOW_ITEMS + 4
    for left in range(limits.WINDOW_ITEMS + 4, 0, -1):
        assert server.items_left(call_id) == left
        server.send_item(call_id, SOME[codec])
    assert server.items_left(call_id) == server.items_left(99) == 0


def test_an_item_longer_than_the_window_needs_one_byte_of_credit(ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    server.send_stream(call_id)
    long = b'"' + b"x" * (2 * limits.WINDOW_BYTES) + b'"'
    server.send_item(call_id, long)
    assert not server.may_send_item(call_id)
    _, item = flow(server, client)
    assert item.value == long
    client.took_item(call_id, len(long))
    assert flow(client, server) == [Credit(call_id)]
    assert server.may_send_item(call_id)


def test_more_credit_than_the_window_can_be_given_behind_the_call(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    client.send_credit(call_id, 36, 100)
    assert flow(client, server) == [Credit(call_id)]
    server.send_stream(call_id)
    for _ in range(100):
        server.send_item(call_id, SOME[codec])
    assert len(flow(server, client)) == 101


def test_credit_has_a_bound(ends):
    client, _ = ends
    call_id = call(ends, ITEMS_WANTED)
    for items, byte_count in ((-1, 0), (0, -1), (2**31, 0), (0, 2**31)):
        with pytest.raises(LocalProtocolError, match="CREDIT of"):
            client.send_credit(call_id, items, byte_count)
    assert client.data_to_send() == []


def test_the_answer_to_a_cancelled_call_is_not_seen_but_frees_it(codec, ends):
    client, server = ends
    call_id = call(ends, BOTH)
    client.send_cancel(call_id)
    assert client.is_cancelled(call_id)
    assert not client.may_send_item(call_id)
    assert flow(client, server) == [Cancel(call_id)]
    assert server.is_cancelled(call_id)
    assert client.calls_made == server.calls_taken == 1
    server.send_stream(call_id)
    server.send_item(call_id, SOME[codec])
    server.send_note(call_id, SOME[codec])
    server.send_credit(call_id, 1, 1)
    server.send_reply(call_id, SOME[codec])
    assert flow(server, client) == [Freed(call_id)]
    assert client.is_idle
    assert server.is_idle
    call_id = call(ends)
    client.send_cancel(call_id)
    flow(client, server)
    server.send_error(call_id, "cancelled", "")
    assert flow(server, client) == [Freed(call_id)]


def test_nothing_is_sent_for_a_cancelled_call_but_its_end(codec, ends):
    client, server = ends
    call_id = call(ends, BOTH)
    server.send_stream(call_id)
    server.send_item(call_id, SOME[codec])
    flow(server, client)
    client.send_cancel(call_id)
    client.data_to_send()
    client.took_item(call_id, limits.WINDOW_BYTES)
    assert client.data_to_send() == []


def test_frames_that_cross_the_end_of_a_call_are_late(codec, ends):
    client, server = ends
    call_id = call(ends, BOTH)
    server.send_reply(call_id, SOME[codec])
    client.send_item(call_id, SOME[codec])
    client.send_credit(call_id, 1, 1)
    client.send_end(call_id)
    client.send_cancel(call_id)
    assert flow(client, server) == []
    assert server.late_frames == 4
    assert flow(server, client) == [Freed(call_id)]


def test_taking_an_item_of_a_call_that_ended_does_nothing(codec, ends):
    client, server = ends
    call_id = call(ends, ITEMS_WANTED)
    server.send_stream(call_id)
    server.send_item(call_id, SOME[codec])
    server.send_reply(call_id, SOME[codec])
    flow(server, client)
    client.took_item(call_id, limits.WINDOW_BYTES)
    assert client.data_to_send() == []


def test_a_call_too_many_is_busy(codec):
    client, server = pair(codec, Limits(calls_max=1))
    first = client.send_call("m", EMPTY[codec])
    second = client.send_call("m", EMPTY[codec], flags=ITEMS_FOLLOW)
    client.send_item(second, SOME[codec])
    assert [event.call_id for event in flow(client, server)] == [first]
    assert server.refused_calls == 1
    assert server.late_frames == 1
    (failure,) = flow(server, client)
    assert (failure.call_id, failure.code) == (second, "busy")
    assert client.calls_made == 1


def test_a_cancelled_call_counts_until_it_is_answered(codec):
    client, server = pair(codec, Limits(calls_max=1))
    first = client.send_call("m", EMPTY[codec])
    client.send_cancel(first)
    second = client.send_call("m", EMPTY[codec])
    assert flow(client, server)[1:] == [Cancel(first)]
    assert [failure.code for failure in flow(server, client)] == ["busy"]
    assert not server.is_open(second)


def test_draining(codec, ends):
    client, server = ends
    accepted = call(ends)
    seen, unseen = client.send_call("m", EMPTY[codec]), client.send_call("m", EMPTY[codec], flags=ITEMS_FOLLOW)
    client.send_item(unseen, SOME[codec])
    client.send_cancel(seen)
    client.send_notification("m", EMPTY[codec])
    server.send_going_away("draining", "restart")
    assert flow(server, client) == [GoingAway("draining", "restart", (unseen,))]
    assert client.calls_made == 1
    assert flow(client, server) == []
    assert server.refused_calls == 2
    assert flow(server, client) == []
    assert client.late_frames == 2
    server.send_reply(accepted, SOME[codec])
    server.send_going_away("too_slow")
    assert flow(server, client) == [Reply(accepted, SOME[codec], ()), GoingAway("too_slow", "", ())]
    for end in ends:
        with pytest.raises(LocalProtocolError, match="no call can be made"):
            end.send_call("m", EMPTY[codec])
        with pytest.raises(LocalProtocolError, match="no call can be made"):
            end.send_notification("m", EMPTY[codec])


def test_draining_before_any_call(codec, ends):
    client, server = ends
    only = client.send_call("m", EMPTY[codec])
    server.send_going_away()
    assert flow(server, client) == [GoingAway("draining", "", (only,))]


def test_an_end_that_leaves_makes_no_call(codec, ends):
    client, server = ends
    client.send_going_away()
    with pytest.raises(LocalProtocolError, match="this end of the connection is LEAVING"):
        client.send_call("m", EMPTY[codec])
    assert flow(client, server) == [GoingAway("draining", "", ())]


def test_the_end_of_the_input_with_calls_open(codec, ends):
    client, server = ends
    single, out, into = call(ends), call(ends, ITEMS_WANTED), call(ends, ITEMS_FOLLOW)
    under_way = call(ends, ITEMS_WANTED)
    server.send_stream(under_way)
    cancelled = call(ends, BOTH)
    client.send_cancel(cancelled)
    flow(client, server)
    assert server.receive_eof() == [InputEnded(()), Cancel(into), Credit(under_way)]
    assert server.receive_eof() == []
    assert server.receive_data(b"more") == []
    assert not server.is_finished
    server.send_stream(out)
    for _ in range(2 * limits.WINDOW_ITEMS):
        server.send_item(out, SOME[codec])
    for call_id in (single, out, into, under_way, cancelled):
        server.send_reply(call_id, SOME[codec])
    assert server.is_finished


def test_calls_whose_answer_cannot_come_are_lost(ends):
    client, _ = ends
    first, second = call(ends), call(ends)
    client.send_cancel(second)
    assert client.receive_eof() == [InputEnded((first,))]
    assert client.is_finished
    assert client.is_idle


def test_failing_tells_the_peer_why(ends):
    client, server = ends
    call_id = call(ends)
    (failed,) = server.fail("too_slow", "the frame took more than 10 s")
    assert isinstance(failed, Failed)
    assert failed.error.code == "too_slow"
    assert (failed.lost, failed.abandoned) == ((), (call_id,))
    assert server.is_finished
    assert server.fail("too_slow", "again") == []
    assert flow(server, client) == [GoingAway("too_slow", "the frame took more than 10 s", ())]
    with pytest.raises(LocalProtocolError, match="not open"):
        server.send_reply(call_id, SOME[server.codec])
    with pytest.raises(LocalProtocolError, match="FINISHED"):
        server.send_ping(1)


def test_failing_after_the_end_of_the_input(ends):
    _, server = ends
    call_id = call(ends)
    server.receive_eof()
    (failed,) = server.fail("too_slow", "nobody reads")
    assert failed.abandoned == (call_id,)


def test_a_call_of_the_limit_waits(codec):
    client, _ = greeted(codec, client_limits=Limits(calls_max=0))
    client.peer_calls_max = 1
    client.send_call("m", EMPTY[codec])
    with pytest.raises(LocalProtocolError, match="1 are open"):
        client.send_call("m", EMPTY[codec])


def test_a_server_does_not_call_a_client_that_takes_none(codec, ends):
    _, server = ends
    with pytest.raises(LocalProtocolError, match="the peer takes none"):
        server.send_call("m", EMPTY[codec])
    with pytest.raises(LocalProtocolError, match="the peer takes none"):
        server.send_notification("m", EMPTY[codec])


@pytest.mark.parametrize(
    "misuse",
    [
        lambda end, value: end.send_call("m", value, flags=4),
        lambda end, value: end.send_call("m", value, flags=-1),
        lambda end, value: end.send_call("m", value, -1),
        lambda end, value: end.send_call("m", value, 2**32),
        lambda end, value: end.send_call("", value),
        lambda end, value: end.send_call("\ud800", value),
        lambda end, value: end.send_call("m", b""),
        lambda end, value: end.send_notification("m", value, 2**32),
        lambda end, value: end.send_notification("m", b""),
        lambda end, value: end.send_reply(1, value),
        lambda end, value: end.send_reply(2, value),
        lambda end, value: end.send_item(1, value),
        lambda end, value: end.send_item(9, value),
        lambda end, value: end.send_end(1),
        lambda end, value: end.send_credit(1, 1, 1),
        lambda end, value: end.send_stream(1),
        lambda end, value: end.send_note(1, value),
        lambda end, value: end.send_error(1, "busy", ""),
        lambda end, value: end.send_ping(-1),
        lambda end, value: end.send_ping(2**32),
        lambda end, value: end.send_going_away(""),
    ],
)
def test_our_own_mistakes_send_nothing(codec, ends, misuse):
    client, _ = ends
    call(ends)
    before = dict(client._made)
    with pytest.raises(LocalProtocolError):
        misuse(client, SOME[codec])
    assert client.data_to_send() == []
    assert client._made == before


@pytest.mark.parametrize(
    "misuse",
    [
        lambda end: end.send_error(1, "", ""),
        lambda end: end.send_error(1, "x" * 65, ""),
        lambda end: end.send_error(1, "ü", ""),
        lambda end: end.send_error(1, "x", "", "x" * 65),
        lambda end: end.send_error(1, "x", "", "ü"),
        lambda end: end.send_reply(1, b""),
        lambda end: end.send_note(1, b""),
        lambda end: end.send_cancel(1),
    ],
)
def test_a_callee_s_mistakes_send_nothing(ends, misuse):
    _, server = ends
    call(ends)
    with pytest.raises(LocalProtocolError):
        misuse(server)
    assert server.data_to_send() == []
    assert server.is_open(1)


@pytest.mark.parametrize(
    "too_large",
    [
        lambda client, server: client.send_call("m", b'"%b"' % (b"x" * 65536)),
        lambda client, server: client.send_call("m" * 256, b"{}"),
        lambda client, server: client.send_call("m", b"{}", context=b"{%b}" % (b" " * 4096)),
        lambda client, server: client.send_notification("m", b'"%b"' % (b"x" * 65536)),
        lambda client, server: server.send_reply(1, b'"%b"' % (b"x" * 65536)),
        lambda client, server: server.send_error(1, "busy", "", "", b'"%b"' % (b"x" * 65536)),
        lambda client, server: server.send_note(1, b'"%b"' % (b"x" * 65536)),
        lambda client, server: server.send_item(1, b'"%b"' % (b"x" * 65536)),
    ],
)
def test_what_is_too_large_is_not_sent(codec, too_large):
    ends = client, server = greeted(codec, Limits(payload_bytes_max=65536), Limits(65536, 0))
    call(ends, ITEMS_WANTED)
    server.send_stream(1)
    flow(server, client)
    with pytest.raises(MessageTooLarge):
        too_large(client, server)
    assert client.data_to_send() == server.data_to_send() == []
    assert server.is_open(1)
    assert client.calls_made == 1
    assert server._credit_of(1).items_out == limits.WINDOW_ITEMS


def test_ids_go_round_and_pass_over_open_calls(codec, ends):
    client, server = ends
    old = call(ends)
    for end in ends:
        last = client.last_call_made if end is client else server._last_taken
        assert last == old
    client.last_call_made = server._last_taken = 2**32 - 3
    assert call(ends) == 2**32 - 1
    assert call(ends) == 3
    server.send_reply(3, SOME[codec])
    assert flow(server, client) == [Reply(3, SOME[codec], ())]
    server.send_reply(old, SOME[codec])
    assert flow(server, client) == [Reply(old, SOME[codec], ())]


def test_every_state_of_a_call_can_be_answered():
    for steps in states.STEPS:
        assert steps[states.REPLY | states.BY_CALLEE] == steps[states.ERROR | states.BY_CALLEE] == states.ENDED


def test_states_describe_themselves():
    assert states.describe(0) == "caller SILENT, callee SINGLE"
    assert states.describe(len(states.STEPS) - 1) == "caller CANCELLED, callee STREAMING"
