"""Two joined ends, driven through every step in every order, with the bytes between them cut anywhere.

An end may be asked for any step at any time. Either it refuses, and nothing is sent, or the other end takes it: no step
that one end allows is a fault for the other. Every call carries a number of its own, and comes back with it.
"""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from protocol.joined import EMPTY, Pipe, pair

from samehost import limits
from samehost.errors import LocalProtocolError
from samehost.protocol import ARENAS, Limits, events, states

CALLS_MAX = 3
which = st.integers(0, 1)
some = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5])


class End:
    """One end, what it has sent, and what it has heard."""

    def __init__(self, connection, pipe):
        self.connection = connection
        self.pipe = pipe
        self.numbers = {}  # of the calls that it made
        self.cancelled = set()
        self.ends = {}  # how often each of them ended for its maker
        self.freed = set()
        self.served = {}  # the numbers of the calls that it took
        self.ended_served = set()
        self.items_sent = {}
        self.items_heard = {}
        self.items_unread = {}
        self.arenas_sent = []  # each arena, and each retirement of one, in order
        self.arenas_heard = []
        self.shares_sent = []
        self.shares_heard = []
        self.input_ended = False


class Machine(RuleBasedStateMachine):
    codec = "msgpack"

    def __init__(self):
        super().__init__()
        takes = Limits(calls_max=2 if self.codec == "msgpack" else 0, payload_bytes_max=65536)
        client, server = pair(self.codec, Limits(calls_max=CALLS_MAX, payload_bytes_max=65536), takes, ARENAS)
        self.ends = [End(client, Pipe()), End(server, Pipe())]
        self.counter = itertools.count(1)
        self.steps = 0
        self.descriptors = itertools.count(1)
        self.sent_descriptors = []
        self.heard_descriptors = []
        self.codec_of = {"msgpack": msgspec.msgpack, "json": msgspec.json}[self.codec]

    # Steps.

    def files(self, count):
        return tuple(next(self.descriptors) for _ in range(count)) if self.codec == "msgpack" else ()

    def ask(self, end, step, *arguments, descriptors=None, **options):
        """Ask for a step; whether it was taken."""
        self.steps += 1
        if descriptors is not None:
            options["descriptors"] = descriptors
        before = dict(end.connection._made), dict(end.connection._taken)
        try:
            result = getattr(end.connection, step)(*arguments, **options)
        except LocalProtocolError:
            assert (end.connection._made, end.connection._taken) == before
            assert not [chunk for chunk in end.connection.data_to_send() if self.collect(end, chunk)]
            return None
        self.sent_descriptors += descriptors or ()
        for chunk in end.connection.data_to_send():
            self.collect(end, chunk)
        return True if result is None else result

    def collect(self, end, chunk):
        data, descriptors = chunk
        end.pipe.send(data, descriptors)

    def some_call(self, end, number):
        """One of this end's calls, mostly one that is open."""
        known = sorted({*end.numbers, *end.served}, key=lambda call_id: (not end.connection.is_open(call_id), -call_id))
        return known[number] if number < len(known) else 99

    @rule(one=which, flags=st.sampled_from([0, 1, 2, 3, 3, 3]), count=st.sampled_from([0, 0, 0, 1, 3]))
    def call(self, one, flags, count):
        end = self.ends[one]
        number = next(self.counter)
        files = self.files(count)
        call_id = self.ask(end, "send_call", "m", self.codec_of.encode([number]), 5, flags=flags, descriptors=files)
        if call_id is not None:
            assert call_id not in end.numbers
            end.numbers[call_id] = number

    @rule(one=which, what=st.sampled_from(["ping", "notification", "notification with a file"]))
    def say(self, one, what):
        if what == "ping":
            self.ask(self.ends[one], "send_ping", 7)
        else:
            files = self.files(int("file" in what))
            self.ask(self.ends[one], "send_notification", "n", EMPTY[self.codec], descriptors=files)

    @rule(one=which, number=some, count=st.sampled_from([0, 0, 0, 1]))
    def reply(self, one, number, count):
        end = self.ends[one]
        call_id = self.some_call(end, number)
        value = self.codec_of.encode(end.served.get(call_id, 0))
        if self.ask(end, "send_reply", call_id, value, descriptors=self.files(count)):
            end.ended_served.add(call_id)

    @rule(one=which, number=some)
    def error(self, one, number):
        end = self.ends[one]
        call_id = self.some_call(end, number)
        value = self.codec_of.encode(end.served.get(call_id, 0))
        if self.ask(end, "send_error", call_id, "app.no", "no", "", value):
            end.ended_served.add(call_id)

    @rule(one=which, number=some)
    def cancel(self, one, number):
        end = self.ends[one]
        call_id = self.some_call(end, number)
        if self.ask(end, "send_cancel", call_id):
            end.cancelled.add(call_id)
            self.count_end(end, call_id)

    @rule(one=which, number=some, step=st.sampled_from(["send_stream", "send_end"]))
    def bare(self, one, number, step):
        self.ask(self.ends[one], step, self.some_call(self.ends[one], number))

    @rule(one=which, number=some)
    def open_stream(self, one, number):
        end = self.ends[one]
        self.deliver(1 - one, 100_000, 5)
        call_id = self.some_call(end, number)
        self.ask(end, "send_stream", call_id)
        self.items(one, number, 1, 0, 2)
        self.deliver(one, 100_000, 1)

    @rule(one=which, number=some)
    def note(self, one, number):
        self.ask(self.ends[one], "send_note", self.some_call(self.ends[one], number), EMPTY[self.codec])

    @rule(one=which, number=some, size=st.sampled_from([1, 1, 1, 60_000]), count=st.sampled_from([0, 0, 1]), many=some)
    def items(self, one, number, size, count, many):
        end = self.ends[one]
        call_id = self.some_call(end, number)
        for _ in range(1 + 15 * many):
            sequence = end.items_sent.get(call_id, 0)
            allowed = end.connection.may_send_item(call_id)
            assert (end.connection.items_left(call_id) > 0) == allowed
            was_cancelled = end.connection.is_cancelled(call_id)
            value = self.codec_of.encode([sequence, "x" * (size - 1)])
            sent = self.ask(end, "send_item", call_id, value, descriptors=self.files(count))
            assert allowed or was_cancelled or not sent
            assert sent or not allowed
            if not sent:
                break
            end.items_sent[call_id] = sequence + 1

    @rule(one=which, number=some, items=st.integers(0, 3))
    def credit(self, one, number, items):
        self.ask(self.ends[one], "send_credit", self.some_call(self.ends[one], number), items, items)

    @rule(one=which, number=some, how_many=st.integers(1, 80))
    def read_items(self, one, number, how_many):
        end = self.ends[one]
        call_id = self.some_call(end, number)
        unread = end.items_unread.get(call_id, [])
        for size in unread[:how_many]:
            self.ask(end, "took_item", call_id, size)
        del unread[:how_many]

    @rule(one=which, arena=st.integers(0, 2), size=st.integers(1, 3))
    def pass_arena(self, one, arena, size):
        end = self.ends[one]
        files = next(self.descriptors), next(self.descriptors)
        if self.ask(end, "send_arena", arena, size, descriptors=files):
            end.arenas_sent.append((arena, size))

    @rule(one=which, arena=st.integers(0, 2))
    def retire(self, one, arena):
        end = self.ends[one]
        if self.ask(end, "send_retire", arena):
            end.arenas_sent.append(arena)

    @rule(one=which, count=st.sampled_from([1, 2, 600]))
    def release(self, one, count):
        end = self.ends[one]
        shares = [next(self.counter) for _ in range(count)]
        if self.ask(end, "send_release", shares):
            end.shares_sent += shares

    @precondition(lambda self: self.steps > 15)
    @rule(one=which, really=st.integers(0, 9))
    def go_away(self, one, really):
        if really == 9:
            self.ask(self.ends[one], "send_going_away")

    @rule(one=which, size=st.sampled_from([1, 5, 12, 13, 40, 300, 100_000]), times=st.integers(1, 5))
    def deliver(self, one, size, times):
        source, target = self.ends[one], self.ends[1 - one]
        for _ in range(times):
            data, descriptors = source.pipe.receive(size)
            if data:
                self.hear(target, target.connection.receive_data(data, descriptors))

    # What is heard.

    def count_end(self, end, call_id):
        end.ends[call_id] = end.ends.get(call_id, 0) + 1

    def hear(self, end, heard):  # noqa: C901 - one case an event
        for chunk in end.connection.data_to_send():
            self.collect(end, chunk)
        for event in heard:
            self.heard_descriptors += getattr(event, "descriptors", ())
            match event:
                case events.Call():
                    assert event.call_id not in end.served
                    (end.served[event.call_id],) = self.codec_of.decode(event.arguments)
                case events.Reply():
                    assert self.codec_of.decode(event.result) == end.numbers[event.call_id]
                    self.count_end(end, event.call_id)
                case events.Failure():
                    if event.code == "app.no":
                        assert self.codec_of.decode(event.data) == end.numbers[event.call_id]
                    else:
                        assert event.code in ("busy", "draining")
                    self.count_end(end, event.call_id)
                case events.Freed():
                    assert event.call_id in end.cancelled - end.freed
                    end.freed.add(event.call_id)
                case events.GoingAway():
                    for call_id in event.unsent:
                        self.count_end(end, call_id)
                case events.InputEnded():
                    for call_id in event.lost:
                        self.count_end(end, call_id)
                case events.Item():
                    assert event.call_id not in end.cancelled
                    sequence, _ = self.codec_of.decode(event.value)
                    assert sequence == end.items_heard.get(event.call_id, 0)
                    end.items_heard[event.call_id] = sequence + 1
                    end.items_unread.setdefault(event.call_id, []).append(len(event.value))
                case events.Stream() | events.Note():
                    assert event.call_id in end.numbers
                    assert event.call_id not in end.cancelled
                    assert not end.ends.get(event.call_id)
                case events.Cancel() | events.End():
                    assert event.call_id in end.served
                    assert event.call_id not in end.ended_served
                case events.Credit():
                    assert not end.ends.get(event.call_id)
                    assert event.call_id not in end.ended_served
                case events.ArenaPassed():
                    assert len(event.descriptors) == 2
                    end.arenas_heard.append((event.arena, event.byte_count))
                case events.ArenaRetired():
                    end.arenas_heard.append(event.arena)
                case events.Released():
                    end.shares_heard += event.shares
                case events.Discarded():
                    assert event.payload
                case events.Notification() | events.Pong():
                    pass
                case _:
                    raise AssertionError(event)

    # What always holds.

    @invariant()
    def bounds_hold(self):
        for end, other in zip(self.ends, self.ends[::-1], strict=True):
            connection = end.connection
            assert len(connection._partial) <= 65536 + 12
            assert connection.calls_taken <= connection.limits.calls_max
            assert connection._streams.keys() <= {*connection._made, *connection._taken}
            assert not {*connection._made} & {*connection._taken}
            for call_id, credit in connection._streams.items():
                assert credit.items_out >= 0
                assert credit.items_in >= 0
                assert min(credit.bytes_in, credit.bytes_out) > -65536
                partner = other.connection._streams.get(call_id)
                if partner is not None and credit.items_out <= limits.CREDIT_MAX:
                    assert credit.items_out <= partner.items_in
                    assert credit.bytes_out <= partner.bytes_in
            for call_id, number in end.served.items():
                assert other.numbers[call_id] == number
            assert all(count == 1 for count in end.ends.values())
            assert end.arenas_heard == other.arenas_sent[: len(end.arenas_heard)]
            assert end.shares_heard == other.shares_sent[: len(end.shares_heard)]

    @invariant()
    def descriptors_are_neither_lost_nor_doubled(self):
        held = [
            descriptor
            for end in self.ends
            for descriptors in (end.connection._claimed, end.connection._waiting, end.connection._unclaimed)
            for descriptor in descriptors
        ]
        under_way = [descriptor for end in self.ends for descriptor in end.pipe.descriptors]
        assert sorted(self.heard_descriptors + held + under_way) == self.sent_descriptors

    def teardown(self):
        """Answer everything; then every call has ended, once, and nothing is left."""
        for _ in range(6):
            for end, other in zip(self.ends, self.ends[::-1], strict=True):
                for call_id in list(end.connection._taken):
                    self.ask(end, "send_reply", call_id, self.codec_of.encode(end.served[call_id]))
                while end.pipe:
                    data, descriptors = end.pipe.receive(65536)
                    self.hear(other, other.connection.receive_data(data, descriptors))
        self.bounds_hold()
        self.descriptors_are_neither_lost_nor_doubled()
        for end, other in zip(self.ends, self.ends[::-1], strict=True):
            assert (end.arenas_heard, end.shares_heard) == (other.arenas_sent, other.shares_sent)
            assert end.connection.is_idle
            assert not end.connection._streams
            assert end.ends == dict.fromkeys(end.numbers, 1)
            assert not end.connection.is_mid_frame
            assert not end.connection._claimed + end.connection._waiting + end.connection._unclaimed
            assert end.connection.receive_eof() == [events.InputEnded(())]
            assert end.connection.is_finished


class LinesMachine(Machine):
    codec = "json"


@pytest.mark.parametrize("machine", [Machine, LinesMachine])
@pytest.mark.timeout(600)
def test_any_order_of_steps(machine):

    run_state_machine_as_test(machine, settings=settings(stateful_step_count=100, deadline=None))


def test_the_table_has_no_dead_ends():
    for state, steps in enumerate(states.STEPS):
        assert states.ENDED in steps.values(), states.describe(state)
