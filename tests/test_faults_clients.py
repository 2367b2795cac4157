"""The faults of a service's clients, each driven by bytes on a real socket, in both formats; a number is the row."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import struct
import time

import pytest
from raw_clients import CALL, CANCEL, FORMATS, Answer, Frames, Lines, frame, preface
from served import served, start
from support import DEADLINE, NOBODY, kill, needs_root, python, python_as, until

import samehost
from samehost import limits
from samehost.errors import ConnectionClosed, NotPermitted

in_both_formats = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.format)

CONNECTIONS_PER_UID = 128
CALLS = 256

# 11: half a frame and then silence; a byte a second

QUICK = {"FRAME_SECONDS": 0.3, "PREFACE_SECONDS": 0.3}


def half_of_everything(client):
    """Beginnings of what a client may send, whole calls before them, and whether the server has a way to say why."""
    whole = client.opening + client.call_bytes(1, "echo", ["x" * 100])
    call = client.call_bytes(3, "echo", ["x" * 100_000])
    beginnings = [(whole + call[:count], 1, True) for count in (1, 50, -1)]
    if isinstance(client, Frames):
        beginnings += [(client.opening[:1], 0, False), (client.opening[:27], 0, False)]
        beginnings += [(client.opening + call[:5], 0, True)]
    return beginnings


@in_both_formats
def test_11_half_of_something_and_then_silence_is_cut_off_and_told_why(place, kind):
    with served(place, limits=QUICK) as server:
        with kind(server.path, greet=False) as client:
            beginnings = half_of_everything(client)
        for sent, answers, is_told in beginnings:
            began = time.monotonic()
            with kind(server.path, greet=False) as client:
                client.send(sent)
                for _ in range(answers):
                    assert client.answer().kind == "reply"
                rest = client.rest()
                assert 0.29 < time.monotonic() - began < 2
                assert [(told.kind, told.code) for told in rest] == [("goaway", "too_slow")] * is_told
        server.assert_clean()


@in_both_formats
def test_11_the_deadline_is_that_of_the_frame_however_often_a_byte_of_it_comes(place, kind):
    with served(place, limits=QUICK) as server, kind(server.path) as client:
        call = client.call_bytes(1, "echo", ["x" * 1000])
        client.socket.settimeout(0.02)
        began = time.monotonic()
        for byte in call:
            try:
                client.send(bytes([byte]))
                client.socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            except BrokenPipeError:
                break
            client.socket.settimeout(DEADLINE)
            if told := [answer for answer in client.rest() if answer.kind == "goaway"]:
                assert [answer.code for answer in told] == ["too_slow"]
                break
        assert 0.25 < time.monotonic() - began < 2
        server.assert_others_are_served()
        server.assert_clean()


@in_both_formats
def test_11_a_frame_that_the_server_itself_keeps_waiting_is_not_too_slow(place, kind):
    with served(place, limits=QUICK) as server, kind(server.path) as client:
        # So many notifications that it reads no more until one has ended, and a frame of which it has read a half.
        naps = client.notification("nap", [1.0]) * CALLS
        long = client.call_bytes(1, "echo", ["x" * 500_000])
        client.socket.setblocking(False)
        sent = client.socket.send(naps + long[:50])
        assert sent == len(naps) + 50
        until(lambda: server.in_flight() == CALLS, "all naps have begun")
        client.socket.settimeout(DEADLINE)
        client.send(long[50:])
        assert client.answer().kind == "reply"
        client.close()
        server.assert_clean()


def test_11_a_call_that_the_server_itself_keeps_waiting_has_all_of_its_time(place):
    with served(place) as server, Frames(server.path) as client:
        client.send(client.notification("nap", [1.0]) * CALLS, client.call_bytes(1, "nap", [0.2, "done"], 1700))
        answer = client.answer()
        assert (answer.value, answer.code) == ("done", "")


@in_both_formats
def test_11_a_slow_client_that_keeps_each_deadline_is_served(place, kind):
    with served(place, limits=QUICK) as server, kind(server.path) as client:
        for number in range(4):
            call = client.call_bytes(client.next_id(), "echo", [number])
            client.send(call[:-1])
            time.sleep(0.15)  # longer than the limit in all, and not for one frame
            client.send(call[-1:])
            assert client.answer().value == number


# 12: absurd lengths, garbage

ABSURD = [
    frame(CALL, 1)[4:].join([b"\xff\xff\xff\xff", b""]),
    struct.pack("<IBBHI", 4194305, CALL, 0, 0, 1),
    struct.pack("<IBBHI", 0, CALL, 0, 0, 1),
    struct.pack("<IBBHI", 10, CALL, 0, 65535, 1),
    struct.pack("<IBBHI", 10, 0x7F, 0, 0, 1),
    frame(CALL, 1, struct.pack("<IB", 0, 255) + b"x"),
    frame(CALL, 1, struct.pack("<IB", 0, 2) + b"\xff\xfe\x80"),
    frame(CANCEL, 99),
    bytes(range(256)) * 16,
]


def test_12_absurd_frames_are_refused_before_anything_is_allocated(place):
    with served(place) as server:
        before = server.status("VmRSS")
        for _ in range(20):
            for sent in ABSURD:
                with Frames(server.path) as client:
                    client.send(sent)
                    assert [answer.kind for answer in client.rest()] == ["goaway"]
        assert server.status("VmRSS") < before + 2048
        server.assert_clean()


def test_12_a_length_that_is_announced_is_not_set_aside(place):
    with served(place) as server, contextlib.ExitStack() as clients:
        before = server.status("VmRSS")
        for _ in range(100):
            client = clients.enter_context(Frames(server.path))
            client.send(client.call_bytes(1, "echo", [1]))
            assert client.answer().value == 1
            client.send(struct.pack("<IBBHI", limits.PAYLOAD_BYTES_MAX, CALL, 0, 0, 3) + b"x")
        assert server.status("VmRSS") < before + 10_000
        clients.close()
        server.assert_clean()


def test_12_a_line_longer_than_the_limit_is_refused_as_soon_as_it_is(place):
    with served(place) as server, Lines(server.path) as client:
        sent = client.flood([b" " * 65536] * 6400)
        assert sent < limits.PAYLOAD_BYTES_MAX + 2**20
        assert [(answer.kind, answer.code) for answer in client.rest()] == [("goaway", "too_large")]
        server.assert_clean()


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0", b"\xff" * 100, b"SSH-2.0-x\r\n"])
def test_12_what_begins_like_no_format_is_closed_without_a_word(place, begin):
    with served(place) as server:
        with Frames(server.path, greet=False) as client:
            client.send(begin)
            assert client.rest() == []
        assert "no format does" in server.log
        server.assert_clean()


def test_12_a_preface_that_is_none_is_closed_without_a_word(place):
    with served(place) as server:
        good = preface()
        for bad in (b"\xf5SHQ" + good[4:], good[:6] + b"\xff\xff" + good[8:], good[:6] + b"\0\0" + good[8:]):
            with Frames(server.path, greet=False) as client:
                client.send(bad)
                assert client.rest() == []
        server.assert_clean()


def test_12_lines_of_garbage_are_answered_and_the_next_one_is_a_fresh_start(place):
    with served(place) as server, Lines(server.path) as client:
        for garbage in (b"{", b'{"jsonrpc":"2.0"}', b"[]", b"[1]", b'{"id":1e999}', b"{\xff}", b"[" * 100_000):
            client.send(garbage + b"\n")
            client._read_some()
            assert b'"error"' in client._buffer
            client._buffer = b""
        assert client.call("echo", [1]).value == 1
        client.close()
        server.assert_clean()


# 13: never reads its replies

MEGABYTE = 1024 * 1024


@in_both_formats
@pytest.mark.parametrize("method", ["big", "big_after_a_wait"])
def test_13_a_client_that_reads_nothing_is_bounded_and_cut_off_and_others_keep_their_speed(place, kind, method):
    is_late = method == "big_after_a_wait"  # so that all have begun before the first answer is there
    with served(place, limits={"OUTPUT_STALL_SECONDS": 1.0}) as server, kind(server.path) as client:
        before = server.status("VmRSS")
        began = time.monotonic()
        calls = [
            client.call_bytes(client.next_id(), method, [MEGABYTE, 0.1 + 0.002 * number] if is_late else [MEGABYTE])
            for number in range(250)
        ]
        client.send(*calls)
        most = 0
        while server.sockets():
            if most < 40_000:  # or they are of the same user, who may be told to be busy
                server.assert_others_are_served()
            most = max(most, server.status("VmRSS") - before)
            assert time.monotonic() - began < 10
        assert time.monotonic() - began > 0.9
        bound = limits.UID_BYTES_MAX if is_late else 2 * MEGABYTE
        assert (
            most * 1024 < bound + (120 if is_late else 30) * MEGABYTE
        )  # for results that are there before they are counted
        assert "is cut off: it has read none of" in server.log
        server.assert_clean()


@in_both_formats
def test_13_small_answers_that_come_late_and_are_not_read_are_counted_too(place, kind):
    few = {"UID_BYTES_MAX": MEGABYTE, "OUTPUT_BYTES_MAX": MEGABYTE // 2}
    with served(place, limits=few) as server, kind(server.path) as client:
        calls = [client.begin("big_after_a_wait", [20_000, 0.2]) for _ in range(CALLS)]
        until(lambda: server.in_flight() == CALLS, "all are at work")
        until(lambda: server.stats() is None, "its user has too much")  # and is told to be busy
        answers = [client.answer() for _ in calls]
        sent = [answer for answer in answers if answer.kind == "reply"]
        assert {answer.code for answer in answers} == {"", "too_large"}
        assert MEGABYTE // 2 < 20_000 * len(sent) < 2.5 * MEGABYTE
        client.close()
        server.assert_clean()


def test_16_a_notification_that_fails_is_a_warning_in_the_log(place):
    with served(place) as server, Frames(server.path) as client:
        client.send(client.notification("for_others"))
        until(lambda: "WARNING for_others: a notification failed: not_permitted: " in server.log, "it is logged")


@in_both_formats
def test_13_many_small_replies_that_are_not_read_are_held_back_too(place, kind):
    with served(place, limits={"OUTPUT_STALL_SECONDS": 1.0}) as server, kind(server.path) as client:
        before = server.status("VmRSS")
        calls = (client.call_bytes(client.next_id(), "big", [2000]) for _ in range(1_000_000))
        assert client.flood(calls) < 1_000_000  # as it reads no more calls than it can hold answers for
        assert server.status("VmRSS") - before < 20_000
        server.assert_others_are_served()
        until(lambda: "is cut off" in server.log, "it is cut off")
        client.close()
        server.assert_clean()


@in_both_formats
def test_13_pings_that_nobody_reads_the_answers_of_are_held_back(place, kind):
    with served(place, limits={"OUTPUT_STALL_SECONDS": 0.5}) as server, kind(server.path) as client:
        before = server.status("VmRSS")
        sent = client.flood([client.ping(1) * 100] * 100_000)
        assert sent < 20 * MEGABYTE
        assert server.status("VmRSS") - before < 20_000
        until(lambda: "is cut off" in server.log, "it is cut off")
        client.close()
        server.assert_clean()


@in_both_formats
def test_13_a_client_that_reads_in_time_gets_everything(place, kind):
    with served(place, limits={"OUTPUT_STALL_SECONDS": 1.0}) as server, kind(server.path) as client:
        calls = [client.begin("big", [MEGABYTE // 2]) for _ in range(40)]
        time.sleep(0.3)
        for call_id in calls:  # inline, so they come in order
            answer = client.answer()
            assert (answer.call_id, len(answer.value)) == (call_id, MEGABYTE // 2)
        client.close()
        server.assert_clean()


# 15: dies mid-call

CALLER = """
import signal, sys
sys.path.insert(0, sys.argv[3])
from raw_clients import Frames, Lines
client = {"frames": Frames, "lines": Lines}[sys.argv[1]](sys.argv[2])
exec(sys.argv[4])
print("sent", flush=True)
signal.pause()
"""

HERE = os.path.dirname(__file__)

WAYS_TO_DIE = {
    "mid-call": "",
    "mid-call and half-closed": "client.socket.shutdown(1)",
    "mid-call and mid-frame": "client.send(client.call_bytes(99, 'echo', [1])[:-1])",
    # The server stops to read from one of whom so much is at work, and so cannot read that it has died.
    "mid-call and held back": "client.send(client.notification('nap', [0.7]) * 300)",
    "mid-call, held back and mid-frame": (
        "client.send(client.notification('nap', [0.7]) * 300, client.call_bytes(99, 'echo', [1])[:-1])"
    ),
    "mid-call and not reading": "client.begin('big', [4000000])",
}


@in_both_formats
@pytest.mark.parametrize("way", WAYS_TO_DIE, ids=lambda way: way.replace(" ", "-"))
def test_15_the_calls_of_a_client_that_dies_are_cancelled_within_100_ms(place, kind, way):
    code = f"client.begin('hang', ['it']); {WAYS_TO_DIE[way]}"
    with served(place) as server, python(CALLER, kind.format, str(server.path), HERE, code) as caller:
        assert server.program.line() == "began it"
        assert caller.line() == "sent"
        if "held" in way:
            until(lambda: server.in_flight() == CALLS + 1, "it is held back")
        died = time.monotonic()
        kill(caller)
        _, _, ended = server.program.line().split()
        assert float(ended) - died < 0.1
        server.assert_clean()


@in_both_formats
def test_15_a_thread_is_told_that_its_caller_has_died_and_the_call_is_forgotten_when_it_ends(place, kind):
    with served(place) as server:
        with kind(server.path) as client:
            client.begin("hang_in_thread", ["it"])
            assert server.program.line() == "began it"
        until(lambda: server.sockets() == [], "the connection is closed")
        assert server.in_flight() == 1  # it still runs, and counts
        with kind(server.path) as client:
            assert client.call("release_threads").kind == "reply"
        assert server.program.line().startswith("ended it")
        server.assert_clean(new_threads=1)


@in_both_formats
def test_15_a_half_closed_client_gets_its_answers(place, kind):
    with served(place) as server, kind(server.path) as client:
        call_id = client.begin("nap", [0.2, "late"])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == [Answer("reply", call_id, "late")]
        server.assert_clean()


# 16: a flood of calls


@in_both_formats
def test_16_calls_beyond_the_limit_of_a_connection_are_busy_and_those_of_others_are_not(place, kind):
    with served(place) as server, kind(server.path) as client:
        calls = [client.begin("nap", [0.5, number]) for number in range(CALLS)]
        more = [client.begin("echo", [number]) for number in range(100)]
        for call_id in more:
            answer = client.answer()
            assert (answer.kind, answer.call_id, answer.code) == ("error", call_id, "busy")
        server.assert_others_are_served()
        assert {client.answer().call_id for _ in calls} == set(calls)
        assert client.call("echo", ["again"]).value == "again"
        assert server.stats()["refused"] == 100
        client.close()
        server.assert_clean()


@in_both_formats
def test_16_a_user_whose_calls_hold_too_much_is_busy_until_they_end(place, kind):
    with served(place, limits={"UID_BYTES_MAX": 1_000_000}) as server, kind(server.path) as client:
        data = "x" * 100_000
        held = [client.begin("nap", [3600, data]) for _ in range(9)]
        assert client.call("echo", ["still in"]).value == "still in"
        held += [client.begin("nap", [3600, data]) for _ in range(2)]
        answer = client.answer() if client.begin("echo", ["too much"]) else None
        assert (answer.kind, answer.code) == ("error", "busy")
        assert "1000000 are kept" in answer.message
        with kind(server.path) as another:  # the bound is the user's, not the connection's
            assert another.call("echo", [1]).code == "busy"
        for call_id in held:
            client.send(client.cancel(call_id))
            assert client.answer().code in ("cancelled", "busy")
        assert client.call("echo", ["again"]).value == "again"
        client.close()
        server.assert_clean()


@in_both_formats
def test_16_frames_that_are_not_complete_are_bounded_for_a_user(place, kind):
    with served(place, limits={"UID_BYTES_MAX": 5_000_000}) as server:
        before = server.status("VmRSS")
        for _ in range(3):  # what they held is given back
            with contextlib.ExitStack() as clients:
                halves = [clients.enter_context(kind(server.path)) for _ in range(60)]
                took = [client.flood([client.call_bytes(1, "echo", ["x" * 1_000_000])[:-1]]) for client in halves]
                assert all(took[:4])
                told = [answer.code for client in halves[5:] for answer in client.rest()]
                assert set(told) == {"busy"}
                assert server.status("VmRSS") - before < 40_000
                server.assert_others_are_served()
            until(lambda: server.sockets() == [], "they are closed")
        server.assert_clean()


@needs_root
@in_both_formats
def test_16_another_user_is_served_while_one_holds_too_much(open_place, kind):
    with (
        served(open_place, mode=0o666, limits={"UID_BYTES_MAX": 100_000}) as server,
        kind(server.path) as client,
    ):
        for _ in range(2):
            client.begin("nap", [3600, "x" * 60_000])
        until(lambda: client.call("echo", [1]).code == "busy", "it holds too much")
        code = "import sys, samehost; print(samehost.connect(sys.argv[1], trust=samehost.ANYONE).call('echo', 5))"
        with python_as(NOBODY, code, str(server.path)) as other:
            assert other.line() == "5"


@in_both_formats
def test_16_threads_are_bounded_however_many_calls_want_one(place, kind):
    with served(place, threads_max=4) as server, kind(server.path) as client:
        threads = server.status("Threads")
        calls = [client.begin("doze", [0.01, number]) for number in range(200)]
        assert [client.answer().call_id for _ in range(3)]
        assert server.status("Threads") <= threads + 4
        for _ in calls[3:]:
            client.answer()
        client.close()
        server.assert_clean(new_threads=4)


def test_16_a_batch_has_no_more_room_than_calls_of_their_own(place):
    with served(place) as server, Lines(server.path) as client:
        ids = range(1001, 1001 + CALLS)
        calls = [json.loads(client.call_bytes(call_id, "nap", [0.1])) for call_id in ids]
        client.begin("nap", [0.2])
        client.send(json.dumps(calls).encode() + b"\n")
        while b"]\n" not in client._buffer:
            assert client._read_some()
        ended = [json.loads(line) for line in client._buffer.splitlines()]
        [answers] = [line for line in ended if isinstance(line, list)]
        assert sorted(answer["id"] for answer in answers) == list(ids)
        assert [answer["error"]["data"]["code"] for answer in answers if "error" in answer] == ["busy"]
        client.close()
        server.assert_clean()


# 17: call and cancel, over and over


@in_both_formats
def test_17_calls_cancelled_in_the_same_breath_leave_nothing(place, kind):
    with served(place) as server, kind(server.path) as client:
        for method in ("hang", "double", "nap", "doze", "grouped", "timed", "shielded", "cleans_up"):
            arguments = {"double": [1], "nap": [3600], "doze": [0]}.get(method, [])
            for _ in range(50):
                call_id = client.next_id()
                client.send(client.call_bytes(call_id, method, arguments), client.cancel(call_id))
                answer = client.answer()
                assert (answer.kind, answer.call_id, answer.code) == ("error", call_id, "cancelled"), method
        client.close()
        server.assert_clean(new_threads=1)


@in_both_formats
def test_17_cancelled_calls_that_go_on_count_until_they_end(place, kind):
    with served(place, limits={"CANCEL_SECONDS": 0.2}) as server, kind(server.path) as client:
        before = server.status("VmRSS")
        outcomes = []
        for _ in range(2000):
            call_id = client.begin("stubborn")
            outcomes.append(call_id)
            client.send(client.cancel(call_id))
            if len(outcomes) > CALLS:
                answer = client.answer()  # or they would pile up in the socket
                assert (answer.kind, answer.code) == ("error", "busy")
        assert server.in_flight() == CALLS
        assert server.status("VmRSS") - before < 20_000
        until(lambda: server.stats()["uncancellable"] == CALLS, "all are reported")
        assert server.log.count("stubborn, called by") == CALLS
        server.assert_others_are_served()
        with kind(server.path) as another:
            assert another.call("release").kind == "reply"
        assert {(answer.kind, answer.code) for answer in [client.answer() for _ in range(CALLS)]} == {
            ("error", "cancelled")
        }
        assert client.call("echo", ["free"]).value == "free"
        assert server.stats()["uncancellable"] == 0
        client.close()
        server.assert_clean()


@in_both_formats
def test_17_calls_that_go_on_after_their_connection_count_for_their_user(place, kind):
    with served(place, limits={"UID_BYTES_MAX": 500 * 1024}) as server:
        for _ in range(10):
            with kind(server.path) as client:
                calls = [client.begin("stubborn") for _ in range(100)]
                client.send(client.ping(7))  # what is said before it are refusals
                assert len(list(iter(client.answer, Answer("pong", None, 7)))) <= len(calls)
        until(lambda: server.sockets() == [], "no connection is open")
        with kind(server.path) as client:
            assert client.call("echo", [1]).code == "busy"
            # It is the only user, so nobody could ask for the figures: their number is bounded if memory is.
        kill(server.program)


@in_both_formats
def test_17_what_a_user_held_is_given_back_however_the_calls_end(place, kind):
    with served(place, limits={"UID_BYTES_MAX": 3_000_000, "OUTPUT_STALL_SECONDS": 0.05}) as server:
        for turn in range(20):
            with kind(server.path) as client:
                client.begin("nap", [3600, "x" * 500_000])
                client.begin("nap", [0.001, "x" * 500_000], 1)
                client.begin("doze", [0.001, "x" * 500_000])
                client.begin("big", [1_500_000])  # which is not read
                if turn % 2:
                    until(lambda: server.sockets() == [], "it is cut off")
        server.assert_clean(new_threads=32)
        with kind(server.path) as client:
            for _ in range(5):
                client.begin("nap", [3600, "x" * 500_000])
            assert client.call("echo", ["all of it"]).value == "all of it"


@in_both_formats
def test_17_memory_does_not_grow_with_the_calls_and_connections_that_there_were(place, kind):
    with served(place) as server:

        def a_round():
            """The server's memory after some hundred connections, in KiB."""
            for number in range(300):
                with kind(server.path) as client:
                    client.begin("hang")
                    client.begin("nap", [3600, "x" * 10_000], 1)
                    call_id = client.begin("nap", [3600])
                    client.send(client.cancel(call_id))
                    if number % 3 == 0:
                        client.send(client.call_bytes(1, "echo")[:-1])
                assert server.program.line().startswith("began")
                assert server.program.line().startswith("ended")
            server.assert_clean()
            return server.status("VmRSS")

        a_round()
        before = a_round()
        assert max(a_round() for _ in range(2)) < before + 1000, before


# 18: many connections of one user


@needs_root
def test_18_one_user_is_capped_and_another_gets_in(open_place):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 4 * CONNECTIONS_PER_UID
    with served(open_place, mode=0o666) as server:
        clients = [FORMATS[number % 2](server.path) for number in range(CONNECTIONS_PER_UID)]
        assert all(client.call("echo", [1]).value == 1 for client in clients)
        for number in range(200):  # each is refused for itself
            with FORMATS[number % 2](server.path, greet=False) as client:
                with contextlib.suppress(BrokenPipeError):
                    client.send(client.opening, client.call_bytes(1, "echo", [1]))
                assert client.rest() == []
        code = "import sys, samehost; print(samehost.connect(sys.argv[1], trust=samehost.ANYONE).call('echo', 5))"
        with python_as(NOBODY, code, str(server.path)) as other:
            assert other.line() == "5"
        clients.pop().close()
        until(lambda: len(server.sockets()) == len(clients), "one of them is closed")
        with Frames(server.path) as client:
            assert client.call("echo", ["a place is free"]).value == "a place is free"
        for client in clients:
            client.close()
        server.assert_clean()


# 28: wrong user or group


@needs_root
@pytest.mark.parametrize("where", ["service_uid", "serve_uid", "serve_gid"])
@in_both_formats
def test_28_who_may_not_connect_is_refused_before_a_byte_is_parsed(open_place, kind, where):
    with start(open_place, mode=0o666, **{where: NOBODY}) as (_, path, log):
        with kind(path, greet=False) as client:
            with contextlib.suppress(BrokenPipeError):
                client.send(b"\x01 not even a fault" * 100)  # it would be logged as such
            assert client.rest() == []
        until(lambda: "refused uid 0" in log.read_text(), "the refusal is logged")
        assert "no format does" not in log.read_text()
        with pytest.raises(ConnectionClosed), samehost.connect(path, trust=samehost.ANYONE) as client:
            client.call("echo", 1)
        code = "import sys, samehost; print(samehost.connect(sys.argv[1], trust=samehost.ANYONE).call('echo', 5))"
        with python_as(NOBODY, code, str(path)) as other:
            assert other.line() == "5"


@in_both_formats
def test_28_a_method_that_its_caller_may_not_call_is_not_permitted_and_the_connection_lives(place, kind):
    with served(place) as server:
        with kind(server.path) as client:
            answer = client.call("for_others")
            assert (answer.kind, answer.code) == ("error", "not_permitted")
            assert "may not call for_others, which admits uid 54321" in answer.message
            wrong = client.call("for_others", {"garbage": 1})  # who may not call learns nothing of the arguments
            assert wrong.code == "not_permitted"
            assert client.call("echo", [1]).value == 1
        with samehost.connect(server.path) as client, pytest.raises(NotPermitted, match="may not call for_others"):
            client.for_others()
        server.assert_clean()
