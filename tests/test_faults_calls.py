"""The faults of what a service's clients say, each driven on a real socket, in both formats; a number is the row."""

from __future__ import annotations

import random
import struct

import pytest
from raw_clients import CALL, FORMATS, PREFACE, Answer, Frames, Lines, frame, preface
from served import served
from support import DEADLINE, until

in_both_formats = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.format)

# 37: another version


def test_37_another_version_is_refused_in_the_first_frame_with_the_versions_spoken(place):
    with served(place) as server:
        for version in (0, 2, 3, 255):
            with Frames(server.path, greet=False) as client:
                client.send(preface(version), client.call_bytes(1, "echo", [1]))
                magic, used, length, spoken, *rest = client.read_preface()
                assert (magic, used, length, spoken) == (b"\xf5SHP", 0, 28, b"\x01" + b"\0" * 7)
                assert rest == [0, 0, 0]
                assert not client._read_some()
        assert f"speaks version {version} of the protocol, this end 1" in server.log
        server.assert_clean()


def test_37_a_longer_preface_of_our_version_is_accepted(place):
    with served(place) as server, Frames(server.path, greet=False) as client:
        longer = PREFACE.pack(b"\xf5SHP", 1, 256, b"\x02\x01".ljust(8, b"\0"), 0xFFFFFFFF, 4194304, 0).ljust(256, b"?")
        client.send(longer)
        assert client.call("echo", [1]).value == 1


# 38: unknown methods, wrong types

WRONG = [
    ({"left": "1"}, "$.left: expected int, got str"),
    ({"left": 1.5}, "$.left: expected int, got float"),
    ({"left": None}, "$.left: expected int, got "),
    ({}, "$: left is missing"),
    ({"left": 1, "more": 2}, "$: object contains unknown field more"),
    ([], "$: left is missing"),
    (["1"], "$.left: expected int, got str"),
    ([1, "2"], "$.right: expected int, got str"),
    ([1, 2, 3], "$: at most 2 arguments, got 3"),
]


@in_both_formats
def test_38_wrong_calls_are_told_what_is_wrong_and_the_connection_lives(place, kind):
    with served(place) as server, kind(server.path) as client:
        for arguments, why in WRONG:
            answer = client.call("add", arguments)
            assert (answer.kind, answer.code) == ("error", "invalid_arguments")
            assert answer.message.startswith(why)
        for method in ("nope", "samehost.nope", "Add", "__init__", "\u00e9", "x" * 255):
            answer = client.call(method)
            assert (answer.kind, answer.code) == ("error", "method_not_found")
        for arguments, result in (
            ({"left": 2}, 3),
            ([2], 3),
            ([2, 3], 5),
            ({"left": 2, "right": 3, "scale": 10}, 50),
        ):
            assert client.call("add", arguments).value == result
        client.close()
        server.assert_clean()


def test_38_arguments_that_are_no_value_are_invalid(place):
    with served(place) as server, Frames(server.path) as client:
        for arguments in (b"\xc1", b"\x81", b"\x80\x80", b"\x05", b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xa5x"):
            call_id = client.next_id()
            client.send(client.raw_call(call_id, "echo", arguments))
            answer = client.answer()
            assert (answer.kind, answer.call_id, answer.code) == ("error", call_id, "invalid_arguments")
        context = struct.pack("<IB", 0, 4) + b"echo" + struct.pack("<H", 1) + b"\xc1" + b"\x91\x01"
        client.send(frame(CALL, client.next_id(), context, flags=4))
        assert client.answer().code == "invalid_arguments"
        assert client.call("echo", [1]).value == 1


# 39: nested too deep


@in_both_formats
def test_39_arguments_nested_too_deep_are_invalid_and_the_connection_lives(place, kind):
    with served(place) as server, kind(server.path) as client:

        def nested(depth):
            call_id = client.next_id()
            client.send(client.raw_call(call_id, "echo", client.nested(depth)))
            return client.answer(), call_id

        answer, call_id = nested(64)
        assert answer[:2] == ("reply", call_id)
        for depth in (65, 66, 500, 100_000):
            answer, call_id = nested(depth)
            if depth > 1000 and kind is Lines:  # the line as a whole cannot be read, its id included
                assert answer[:2] == ("error", None)
                assert answer.code == "parse_error"
            else:
                assert answer[:2] == ("error", call_id)
                assert (answer.code, answer.message) == ("invalid_arguments", "$: nested more than 64 deep")
        assert "RecursionError" not in server.log
        assert client.call("echo", [1]).value == 1
        client.close()
        server.assert_clean()


@in_both_formats
@pytest.mark.parametrize("grown_by", ["inner", "up"])
def test_39_recursive_types_are_bounded_too(place, kind, grown_by):
    with served(place) as server, kind(server.path) as client:

        def tree(depth):
            """Arguments with a tree in them that is nested so deep in all."""
            levels = depth - 2 if grown_by == "up" else (depth - 2) // 2
            if kind is Frames:
                wrapper = b"\x81\xa2up" if grown_by == "up" else b"\x81\xa5inner\x91"
                return b"\x81\xa4tree" + wrapper * levels + b"\x80"
            opening, closing = (b'{"up":', b"}") if grown_by == "up" else (b'{"inner":[', b"]}")
            return b'{"tree":' + opening * levels + b"{}" + closing * levels + b"}"

        for depth, is_fine in ((64, True), (66, False), (100_000, False)):
            call_id = client.next_id()
            client.send(client.raw_call(call_id, "grow", tree(depth)))
            answer = client.answer()
            if is_fine:
                assert answer == Answer("reply", call_id, "grown")
            elif depth > 1000 and kind is Lines:
                assert answer[:2] == ("error", None)
                assert answer.code == "parse_error"
            else:
                assert answer[:2] == ("error", call_id)
                assert (answer.code, answer.message) == ("invalid_arguments", "$: nested more than 64 deep")
        assert client.call("echo", [1]).value == 1


# 40: cancel races, late frames, ids used again


@in_both_formats
def test_40_frames_for_calls_that_have_ended_are_ignored_and_counted(place, kind):
    with served(place) as server, kind(server.path) as client:
        for _ in range(10):
            call_id = client.begin("echo", [1])
            assert client.answer().kind == "reply"
            client.send(client.cancel(call_id))
        assert client.call("echo", [2]).value == 2
        assert server.stats()["late"] == 10
        client.close()
        server.assert_clean()
        assert server.stats()["late"] == 10


@in_both_formats
def test_40_an_id_that_is_in_use_ends_the_connection_and_cancels_its_calls(place, kind):
    with served(place) as server, kind(server.path) as client:
        client.send(client.call_bytes(1, "hang", ["it"]))
        assert server.program.line() == "began it"
        client.send(client.call_bytes(1, "echo", [1]))
        assert [(answer.kind, answer.code) for answer in client.rest()] == [("goaway", "protocol_error")]
        assert server.program.line().startswith("ended it")
        server.assert_clean()


def test_40_ids_that_went_round_are_no_others_while_an_old_call_goes_on(place):
    # Three ids are enough to go round, as each may be half of all ahead. The first call's time is up, so its id is
    # free, but its method swallows that. What is called under its id later has a life of its own.
    with served(place, limits={"CANCEL_SECONDS": 0.05}) as server, Frames(server.path) as client:
        client.send(client.call_bytes(1, "stubborn", [], 10))
        assert client.answer()[:2] == ("error", 1)
        for call_id in (0x7FFFFFFF, 0xFFFFFFFD):
            client.send(client.call_bytes(call_id, "echo", [call_id]))
            assert client.answer() == Answer("reply", call_id, call_id)
        client.send(client.call_bytes(1, "hang", ["second"]))
        assert server.program.line() == "began second"
        with Frames(server.path) as another:
            assert another.call("release").kind == "reply"
        until(lambda: server.in_flight() == 1, "the first call has ended")
        client.send(client.cancel(1))
        assert client.answer()[:2] == ("error", 1)
        assert server.program.line().startswith("ended second")
        client.close()
        server.assert_clean()


@in_both_formats
@pytest.mark.parametrize("seed", range(2))
def test_40_thousands_of_calls_cancelled_and_timed_out_at_random_each_get_their_own_answer(place, kind, seed):
    choose = random.Random(seed)
    with served(place) as server, kind(server.path) as client:
        made, cancelled, open_calls, answers = {}, set(), [], {}
        client.socket.settimeout(DEADLINE)

        def take_answer():
            answer = client.answer()
            assert answer.call_id not in answers, "a second answer"
            answers[answer.call_id] = answer
            open_calls.remove(answer.call_id)

        for _ in range(3000):
            action = choose.random()
            if action < 0.6 and len(open_calls) < 200:
                method = choose.choice(["echo", "nap", "nap", "doze"])
                value = choose.getrandbits(50)
                milliseconds = choose.choice([0, 0, 1, 3])
                arguments = [value] if method == "echo" else [choose.choice([0, 0.001, 0.004]), value]
                call_id = client.begin(method, arguments, milliseconds)
                made[call_id] = (value, milliseconds)
                open_calls.append(call_id)
            elif action < 0.8 and open_calls:
                call_id = choose.choice(open_calls)
                if call_id not in cancelled:
                    cancelled.add(call_id)
                    client.send(client.cancel(call_id))
            elif open_calls:
                take_answer()
        while open_calls:
            take_answer()
        kinds = set()
        for call_id, (value, milliseconds) in made.items():
            answer = answers[call_id]
            kinds.add(answer.code)
            if answer.kind == "reply":
                assert answer.value == value
            else:
                assert answer.code == "cancelled" if not milliseconds else answer.code in KINDS
                assert answer.code != "cancelled" or call_id in cancelled
        assert kinds == KINDS
        client.close()
        server.assert_clean(new_threads=32)


KINDS = {"", "cancelled", "deadline_exceeded"}
