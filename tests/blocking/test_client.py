"""The client for threads: against a real server, and against scripted ones that do what a real one never shows."""

from __future__ import annotations

import contextlib
import os
import pydoc
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blocking.scripted import Conversation, Scripted
from support import DEADLINE, Program, descriptors, kernel_passes_files, kill, python, until

import samehost
from samehost import errors
from samehost.codec import MSGPACK
from samehost.kernel.deadline import Deadline
from samehost.peer import Peer
from samehost.protocol import Limits
from samehost.protocol.events import Cancel, GoingAway, Notification, Pong
from samehost.protocol.preface import refusal
from samehost.service.call import Call, current_call
from samehost.service.description import DESCRIBE, Description, MethodDescription

SERVER = """
    import asyncio, os, sys, time
    from typing import Any
    import samehost, samehost.aio

    demo = samehost.Service("demo")
    noted = []

    @demo.method
    async def echo(value: Any = None) -> Any:
        "Give it back."
        return value

    @demo.method(idempotent=True)
    async def add(a: int, b: int = 2, *, c: int = 0) -> int:
        "Sum up."
        return a + b + c

    class NoSuchKey(samehost.ServiceError):
        code = "demo.no_such_key"

    @demo.method
    async def get(key: str) -> str:
        raise NoSuchKey(f"no {key}", data={"key": key})

    @demo.method
    async def broken() -> None:
        raise ZeroDivisionError

    @demo.method(allow=samehost.allow(uid=4242))
    async def forbidden() -> None: ...

    @demo.method
    async def sleep(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    @demo.method
    async def note(text: str) -> None:
        noted.append(text)

    @demo.method
    async def notes() -> list[str]:
        return noted

    @demo.method
    async def pid() -> int:
        return os.getpid()

    async def main():
        await samehost.aio.serve(demo, sys.argv[1], ready=lambda: print("ready", flush=True))

    asyncio.run(main())
"""


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Program]:
    """A real server, in a process of its own."""
    with python(SERVER, str(path)) as program:
        assert program.line() == "ready"
        yield program


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The address of a real server that all tests share."""
    path = tmp_path_factory.mktemp("demo") / "s"
    with serving(path):
        yield path


@pytest.fixture
def server(place: Path) -> Iterator[Scripted]:
    with Scripted(place / "s") as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls, so that the test can play the server meanwhile."""
    with ThreadPoolExecutor(32) as pool:
        yield pool


def greeted(
    server: Scripted, client: samehost.Client, pool: ThreadPoolExecutor, limits: Limits | None = None
) -> Conversation:
    """The connection of a client that has had its first call answered."""
    first = pool.submit(client.call, "first")
    conversation = server.accept(limits)
    conversation.reply(conversation.call("first"), None)
    assert first.result(DEADLINE) is None
    return conversation


def in_order(
    pool: ThreadPoolExecutor, conversation: Conversation, client: samehost.Client, *methods: str, **options: Any
) -> list[tuple[Future[Any], Any]]:
    """Calls by a thread each, each sent once the one before has arrived: the first one leads, the others follow."""
    return [(pool.submit(client.call, method, **options), conversation.call(method)) for method in methods]


# Calls and their answers.


def test_arguments_travel_by_position_and_by_name(demo: Path) -> None:
    with samehost.connect(demo) as client:
        assert client.add(1) == 3
        assert client.add(1, 5) == 6
        assert client.add(a=1, b=5, c=10) == 16
        assert client.call("add", 1, 7) == 8
        assert client.echo(value={"deep": [1, "two", None]}) == {"deep": [1, "two", None]}


def test_arguments_by_position_and_by_name_at_once_take_the_names_from_the_server(demo: Path) -> None:
    with samehost.connect(demo) as client:
        assert client.add(1, b=5, c=10) == 16
        with pytest.raises(errors.UsageError, match="too many arguments, or one of them twice"):
            client.add(1, a=2)
        with pytest.raises(errors.UsageError, match="by position, or all by name"):
            client.call("no_such_method", 1, b=2)


@pytest.mark.parametrize(
    ("method", "arguments", "kind", "code"),
    [
        ("add", {"a": "text"}, errors.InvalidArguments, "invalid_arguments"),
        ("missing", {}, errors.MethodNotFound, "method_not_found"),
        ("broken", {}, errors.InternalError, "internal"),
        ("get", {"key": "k"}, errors.ServiceError, "demo.no_such_key"),
    ],
)
def test_an_answer_that_is_an_error_is_raised(
    demo: Path, method: str, arguments: dict[str, Any], kind: type[errors.CallError], code: str
) -> None:
    with samehost.connect(demo) as client:
        with pytest.raises(kind) as caught:
            client.call(method, **arguments)
        assert caught.value.code == code
        assert caught.value.method == method
        assert client.echo(1) == 1  # the connection lives


def test_the_data_of_an_error_and_a_policy_s_no_cross(demo: Path) -> None:
    with samehost.connect(demo) as client:
        with pytest.raises(errors.ServiceError, match="no k") as caught:
            client.get("k")
        assert caught.value.data == {"key": "k"}
        with pytest.raises(errors.NotPermitted):
            client.forbidden()


def test_what_cannot_be_sent_says_so_and_the_connection_lives(demo: Path) -> None:
    with samehost.connect(demo) as client:
        with pytest.raises(errors.UsageError, match="echo: an argument cannot travel"):
            client.echo(object())
        with pytest.raises(errors.MessageTooLarge):
            client.echo("x" * (4 * 1024 * 1024))
        with pytest.raises(errors.LocalProtocolError, match="empty"):
            client.call("")
        with pytest.raises(errors.UsageError, match="timeout"):
            client.call("echo", timeout=-1)
        assert client.echo(1) == 1


def test_threads_share_a_client_and_each_gets_its_own_answers(demo: Path, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(demo) as client:

        def work(number: int) -> bool:
            return all(client.call("echo", [number, turn]) == [number, turn] for turn in range(300))

        assert all(pool.map(work, range(8)))


def test_the_lead_goes_from_thread_to_thread(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        calls = in_order(pool, conversation, client, "a", "b", "c", "d")
        for index in (2, 0, 3, 1):  # a follower first, then whoever leads, twice, then the last one
            future, call = calls[index]
            conversation.reply(call, call.method)
            assert future.result(DEADLINE) == call.method


def test_an_answer_that_overtakes_that_of_a_caller_alone_reaches_its_own(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        for number in range(50):  # the first caller waits in recv for a moment only
            first = pool.submit(client.call, "first")
            slow = conversation.call("first")
            second = pool.submit(client.call, "second")
            conversation.reply(conversation.call("second"), -number)
            conversation.reply(slow, number)
            assert (first.result(DEADLINE), second.result(DEADLINE)) == (number, -number)


def test_answers_that_come_at_once_reach_everybody(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        calls = in_order(pool, conversation, client, *map(str, range(20)))
        for _, call in reversed(calls):
            conversation.protocol.send_reply(call.call_id, MSGPACK.encode(call.method))
        conversation.flush()
        assert [future.result(DEADLINE) for future, _ in calls] == list(map(str, range(20)))


def test_an_answer_that_comes_byte_by_byte_is_one(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        [(future, call)] = in_order(pool, conversation, client, "a")
        conversation.protocol.send_reply(call.call_id, MSGPACK.encode("answer"))
        for byte in b"".join(data for data, _ in conversation.protocol.data_to_send()):
            conversation.socket.sendall(bytes([byte]))
        assert future.result(DEADLINE) == "answer"


def test_a_ping_is_answered_while_a_call_waits(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        [(future, call)] = in_order(pool, conversation, client, "a")
        conversation.protocol.send_ping(7)
        conversation.flush()
        assert conversation.event(Pong).token == 7
        conversation.reply(call, 1)
        assert future.result(DEADLINE) == 1


def test_a_notification_arrives_and_nothing_comes_back(demo: Path) -> None:
    with samehost.connect(demo) as client:
        client.notify("note", "first")
        client.notify("missing")
        assert client.notes() == ["first"]


def test_a_call_made_while_another_is_served_hands_on_its_context_and_has_no_more_time(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    peer = Peer(os.getuid(), os.getgid(), os.getpid(), ())
    serving = Call(peer, "outer", 1, Deadline(0.5), {"trace": "00-1"}, None)
    with samehost.connect(server.path) as client:

        def method() -> Any:
            current_call.set(serving)
            return client.call("inner")

        future = pool.submit(method)
        call = (conversation := server.accept()).call("inner")
        assert MSGPACK.decode_to(dict)(call.context) == {"trace": "00-1"}
        assert 1 <= call.milliseconds_left <= 500
        conversation.reply(call, 1)
        assert future.result(DEADLINE) == 1


# Time.


def test_a_deadline_travels_and_no_deadline_is_none(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, timeout=7) as client:
        conversation = greeted(server, client, pool)
        for timeout, most in ({}, 7000), ({"timeout": 2}, 2000), ({"timeout": None}, 0):
            [(future, call)] = in_order(pool, conversation, client, "a", **timeout)
            assert most - 1000 <= call.milliseconds_left <= most
            conversation.reply(call, None)
            future.result(DEADLINE)


def lateness(client: samehost.Client, timeout: float) -> float:
    """By how many seconds a call that is not answered misses its deadline."""
    begin = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded) as caught:
        client.call("slow", timeout=timeout)
    assert str(caught.value) == f"slow on {client.address}: no answer within {timeout:g} s"
    return time.monotonic() - begin - timeout


@pytest.mark.parametrize("timeout", [0.001, 0.01, 0.025, 0.05, 0.2])
def test_a_deadline_is_kept_to_the_millisecond(server: Scripted, pool: ThreadPoolExecutor, timeout: float) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        late = [lateness(client, timeout) for _ in range(5)]  # the best of them, as the machine has others to serve
        assert 0 <= min(late) < 0.004
        [(leading, _)] = in_order(pool, conversation_of_late(conversation, 5), client, "leading", timeout=DEADLINE)
        assert 0 <= min(lateness(client, timeout) for _ in range(5)) < 0.004
        client.close()
        assert isinstance(leading.exception(DEADLINE), errors.OutcomeUnknown)


def conversation_of_late(conversation: Conversation, count: int) -> Conversation:
    """Take in the calls that have gone too late, and their ends."""
    for _ in range(count):
        call = conversation.call("slow")
        assert conversation.event(Cancel).call_id == call.call_id
        conversation.fail(call, "cancelled")
    return conversation


def test_signals_do_not_put_off_a_deadline(server: Scripted) -> None:
    code = """
        import signal, sys, time, samehost
        signal.signal(signal.SIGALRM, lambda *_: None)
        with samehost.connect(sys.argv[1]) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.015, 0.015)
            begin = time.monotonic()
            try:
                client.call("slow", timeout=0.4)
            except samehost.errors.DeadlineExceeded:
                print(time.monotonic() - begin, flush=True)
            signal.setitimer(signal.ITIMER_REAL, 0)
    """
    with python(code, str(server.path)) as program:
        assert 0.4 <= float(program.line()) < 0.5
        assert program.end() == 0


def test_a_time_that_is_over_already_sends_nothing(server: Scripted) -> None:
    with samehost.connect(server.path) as client:
        conversation = server.accept()
        with pytest.raises(errors.DeadlineExceeded):
            client.call("a", timeout=0)
        client.close()
        assert conversation.ended()


def test_a_late_answer_is_dropped_and_the_next_call_gets_its_own(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        assert lateness(client, 0.01) < 1
        late = conversation.call("slow")
        assert conversation.event(Cancel).call_id == late.call_id
        [(future, call)] = in_order(pool, conversation, client, "next")
        conversation.reply(late, "late")
        conversation.reply(call, "mine")
        assert future.result(DEADLINE) == "mine"


def test_a_leader_whose_time_is_over_hands_on_the_lead(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        [(leading, _)] = in_order(pool, conversation, client, "leading", timeout=0.1)
        [(following, call)] = in_order(pool, conversation, client, "following")
        assert isinstance(leading.exception(DEADLINE), errors.DeadlineExceeded)
        conversation.reply(call, "answer")
        assert following.result(DEADLINE) == "answer"


INTERRUPTED = """
    import signal, sys, threading, samehost
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    with samehost.connect(sys.argv[1]) as client:
        client.call("first")
        follow = lambda: print("answer", client.call("following"), flush=True)
        follower = threading.Thread(target=follow)
        threading.Timer(0, lambda: (sys.stdin.readline(), follower.start())).start()
        try:
            client.call("leading")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        follower.join()
        print(client.call("next"), flush=True)
"""


def test_an_interrupted_call_is_cancelled_and_hands_on_the_lead(server: Scripted) -> None:
    with python(INTERRUPTED, str(server.path)) as program:
        conversation = server.accept()
        conversation.reply(conversation.call("first"), None)
        leading = conversation.call("leading")
        program.tell("start the follower")
        following = conversation.call("following")
        program.signal(signal.SIGINT)
        assert conversation.event(Cancel).call_id == leading.call_id
        assert program.line() == "interrupted"
        conversation.reply(following, 1)
        assert program.line() == "answer 1"
        conversation.fail(leading, "cancelled")
        conversation.reply(conversation.call("next"), 2)  # on the same connection
        assert program.line() == "2"
        assert program.end() == 0, program.errors()


def test_an_interrupt_between_the_two_ways_to_wait_leaves_nobody_leading(server: Scripted) -> None:
    code = """
        import sys, samehost

        def interrupt(frame, event, _):
            if event == "call" and frame.f_code.co_name == "make":  # as a signal handler may, when a function begins
                sys.setprofile(None)
                raise KeyboardInterrupt

        with samehost.connect(sys.argv[1]) as client:
            client.call("slow")  # whose name is known from now on
            sys.setprofile(interrupt)
            try:
                client.call("slow")
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            print(client.call("next", timeout=5), flush=True)
    """
    with python(code, str(server.path)) as program:
        conversation = server.accept()
        conversation.reply(conversation.call("slow"), 0)
        slow = conversation.call("slow")
        assert program.line() == "interrupted"
        assert conversation.event(Cancel).call_id == slow.call_id
        conversation.fail(slow, "cancelled")
        conversation.reply(conversation.call("next"), 1)
        assert program.line() == "1"
        assert program.end() == 0, program.errors()


def test_interrupts_at_any_moment_leave_a_client_that_works(demo: Path) -> None:
    code = """
        import os, random, signal, sys, time, samehost
        is_calling = False

        def interrupt(*_):
            global is_calling
            if is_calling:
                is_calling = False
                raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        answered = interrupted = 0
        with samehost.connect(sys.argv[1]) as client:
            client.call("echo")
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                number = answered + interrupted
                signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 400e-6) * (number % 2))  # or none
                try:
                    is_calling = True
                    found = client.call("echo", number, timeout=5)
                    is_calling = False
                    assert found == number
                    answered += 1
                except KeyboardInterrupt:
                    interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert client.call("echo", "alive", timeout=5) == "alive"
            assert not client._link._calls and not client._link._held_back and client._link._leader is None
        print(interrupted > 20, answered > 20, len(os.listdir("/proc/self/fd")), flush=True)
    """
    with python(code, str(demo)) as program:
        assert program.line() == "True True 4"  # the standard three, and the directory itself


# How many at a time, and how much.


def is_silent(conversation: Conversation) -> bool:
    """Nothing comes for as long as a call would take many times over."""
    conversation.socket.settimeout(0.05)
    try:
        return not conversation.has_more and not conversation.read()
    except TimeoutError:
        return True
    finally:
        conversation.socket.settimeout(DEADLINE)


def test_calls_over_the_server_s_number_wait_for_their_turn(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool, Limits(calls_max=2))
        futures = {method: pool.submit(client.call, method) for method in "abcde"}
        calls = [conversation.call(), conversation.call()]
        for _ in range(3):
            assert is_silent(conversation)
            call = calls.pop(0)
            conversation.reply(call, call.method)
            assert futures[call.method].result(DEADLINE) == call.method
            calls.append(conversation.call())
        for call in calls:
            conversation.reply(call, call.method)
            assert futures[call.method].result(DEADLINE) == call.method
        assert conversation.protocol.refused_calls == 0


def test_a_new_connection_has_one_call_until_the_server_says_how_many(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        conversation = server.accept(Limits(calls_max=3))
        futures = {method: pool.submit(client.call, method) for method in "abc"}
        first = conversation.call()
        assert is_silent(conversation)
        conversation.greet()  # and no answer yet
        rest = [conversation.call() for _ in range(2)]
        for call in (*rest, first):
            conversation.reply(call, call.method)
            assert futures[call.method].result(DEADLINE) == call.method


def test_a_cancelled_call_counts_until_the_server_has_ended_it(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool, Limits(calls_max=1))
        assert lateness(client, 0.01) < 1
        cancelled = conversation.call("slow")
        conversation.event(Cancel)
        with pytest.raises(errors.DeadlineExceeded):
            client.call("waits in vain", timeout=0.05)
        future = pool.submit(client.call, "waits")
        conversation.fail(cancelled, "cancelled")  # nobody waits for this, but for its place
        conversation.reply(conversation.call("waits"), 1)
        assert future.result(DEADLINE) == 1


LONG = b"x" * (4 * 1024 * 1024 - 100)


def test_a_long_argument_goes_out_while_answers_come_in(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        [(leading, early)] = in_order(pool, conversation, client, "early")
        long = pool.submit(client.call, "long", LONG)
        conversation.read(1)  # it is on its way, and stuck
        conversation.reply(early, "answered")
        assert leading.result(DEADLINE) == "answered"
        call = conversation.call("long")
        assert MSGPACK.decode_to(list)(call.arguments) == [LONG]
        conversation.reply(call, LONG)
        assert long.result(DEADLINE) == LONG


def test_a_caller_that_is_alone_reads_while_it_sends(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        assert lateness(client, 0.01) < 1
        late = conversation.call("slow")
        conversation.event(Cancel)
        begin = time.monotonic()
        long = pool.submit(client.call, "long", LONG)
        conversation.read(1)
        conversation.reply(late, LONG)  # a server that reads nothing until all of this is taken
        conversation.reply(conversation.call("long"), "received")
        assert long.result(DEADLINE) == "received"
        assert time.monotonic() - begin < 3  # every pause for room would take a second


def test_callers_wait_while_too_much_is_queued(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        [(leading, _)] = in_order(pool, conversation, client, "leading")
        long = pool.submit(client.call, "long", LONG)
        conversation.read(1)
        with pytest.raises(errors.DeadlineExceeded):
            client.call("held back", timeout=0.05)
        with pytest.raises(errors.DeadlineExceeded):
            client.notify("held back", timeout=0.05)
        behind = pool.submit(client.call, "behind")
        for future, method in (long, "long"), (behind, "behind"):
            conversation.reply(conversation.call(method), method)
            assert future.result(DEADLINE) == method
        client.close()
        assert isinstance(leading.exception(DEADLINE), errors.OutcomeUnknown)


@pytest.mark.parametrize("is_led", [False, True])
def test_a_long_notification_returns_when_it_is_out(server: Scripted, pool: ThreadPoolExecutor, is_led: bool) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        others = in_order(pool, conversation, client, *["leading"] * is_led)
        with pytest.raises(errors.DeadlineExceeded, match=r"long on .*: not sent within 0\.05 s"):
            client.notify("long", LONG, timeout=0.05)
        again = pool.submit(client.notify, "again", LONG)
        conversation.read(1)
        assert not again.done()
        assert [conversation.event(Notification).method for _ in range(2)] == ["long", "again"]
        assert again.result(DEADLINE) is None
        for future, call in others:
            conversation.reply(call, 1)
            assert future.result(DEADLINE) == 1


def test_what_a_caller_left_behind_half_sent_goes_out_as_long_as_somebody_waits(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        [(leading, call)] = in_order(pool, conversation, client, "leading")
        time.sleep(0.05)  # until the leader waits for input alone; what is shown holds at any other moment as well
        with pytest.raises(errors.DeadlineExceeded):
            client.call("long", LONG, timeout=0.05)
        long = conversation.call("long")
        assert conversation.event(Cancel).call_id == long.call_id
        conversation.reply(call, 1)
        assert leading.result(DEADLINE) == 1


def test_a_slow_first_call_holds_up_no_other(demo: Path, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(demo) as client:
        slow = pool.submit(client.sleep, 0.5)
        until(lambda: client._link._calls, "the slow call was sent")
        assert client.echo(1) == 1
        assert not slow.done()
        assert slow.result(DEADLINE) == "slept"


# The connection's end.


def test_a_client_connects_again_after_its_server_was_killed(place: Path) -> None:
    with serving(place / "s") as first:
        client = samehost.connect(place / "s", wait=DEADLINE)
        assert client.pid() == first.pid
        kill(first)
    with client, serving(place / "s") as second:
        assert client.pid() == second.pid
        assert client.peer is not None
        assert client.peer.pid == second.pid


def test_without_a_server_a_call_is_unsent(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        greeted(server, client, pool).close()
        server.close()
        with pytest.raises(errors.Unsent, match=r"a on .* was not sent: nobody listens"):
            client.call("a")
        assert client.peer is None
        with pytest.raises(errors.Unsent):
            client.notify("a")


def test_a_call_waits_for_a_new_server_no_longer_than_it_may(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, wait=DEADLINE) as client:
        greeted(server, client, pool).close()
        server.close()
        begin = time.monotonic()
        with pytest.raises(errors.Unsent, match="nobody listens"):
            client.call("a", timeout=0.1)
        assert 0.1 <= time.monotonic() - begin < 5


@pytest.mark.parametrize("is_greeted", [False, True])
def test_what_never_went_out_is_sent_on_a_new_connection(
    server: Scripted, pool: ThreadPoolExecutor, is_greeted: bool
) -> None:
    with samehost.connect(server.path) as client:
        (greeted(server, client, pool) if is_greeted else server.accept()).close()
        future = pool.submit(client.call, "a")
        conversation = server.accept()
        conversation.reply(conversation.call("a"), 1)
        assert future.result(DEADLINE) == 1
        conversation.close()
        told = pool.submit(client.notify, "b")
        assert server.accept().event(Notification).method == "b"
        assert told.result(DEADLINE) is None


def test_a_call_that_went_out_has_an_unknown_outcome(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        calls = in_order(pool, conversation, client, "a", "b")
        server.close()  # so that nobody can say whether they are idempotent
        conversation.close()
        for future, call in calls:
            with pytest.raises(errors.OutcomeUnknown, match=rf"{call.method} on .*the server closed the connection"):
                future.result(DEADLINE)


def describe(conversation: Conversation, idempotent: dict[str, bool]) -> None:
    """Answer what a client asks of a server."""
    methods = {
        name: MethodDescription(name, "()", [], {}, idempotent=is_idempotent)
        for name, is_idempotent in idempotent.items()
    }
    conversation.reply(conversation.call(DESCRIBE), Description("scripted", methods))


class Declared(samehost.Client):
    @samehost.idempotent
    def safe(self) -> int:
        raise NotImplementedError

    def unsafe(self) -> int:
        raise NotImplementedError

    @samehost.named("kv.get")
    def get(self, key: str, default: str = "none") -> str:
        raise NotImplementedError


def test_an_idempotent_call_is_made_again(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        safe = pool.submit(client.safe)
        conversation.call("safe")
        conversation.close()
        conversation = server.accept()
        conversation.reply(conversation.call("safe"), 5)
        assert safe.result(DEADLINE) == 5


def test_the_new_server_says_whether_a_call_is_idempotent(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        unsafe = pool.submit(client.unsafe)
        conversation.call("unsafe")
        conversation.close()
        conversation = server.accept()
        describe(conversation, {"unsafe": True})
        conversation.reply(conversation.call("unsafe"), 6)
        assert unsafe.result(DEADLINE) == 6


def test_an_idempotent_call_that_kills_its_servers_is_not_made_for_ever(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path, Declared) as client:
        safe = pool.submit(client.safe)
        for _ in range(5):
            conversation = server.accept()
            conversation.greet()
            conversation.call("safe")
            conversation.close()
        assert isinstance(safe.exception(DEADLINE), errors.OutcomeUnknown)
        assert server.nobody_else()


def test_an_outcome_stays_unknown_when_there_is_no_new_server(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        safe = pool.submit(client.safe)
        conversation.call("safe")
        server.close()
        conversation.close()
        with pytest.raises(errors.OutcomeUnknown, match="nobody listens"):
            safe.result(DEADLINE)


def test_calls_that_a_leaving_server_did_not_look_at_are_made_elsewhere(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        old = greeted(server, client, pool)
        [(before, call)] = in_order(pool, old, client, "before")
        after = pool.submit(client.call, "after")
        until(lambda: waiting_bytes(old.socket), "the second call has arrived")
        old.protocol.send_going_away(message="restart")
        old.flush()
        new = server.accept()
        new.reply(new.call("after"), "new")
        assert after.result(DEADLINE) == "new"
        third = pool.submit(client.call, "third")
        new.reply(new.call("third"), "new, too")
        assert third.result(DEADLINE) == "new, too"
        old.reply(call, "old")
        assert before.result(DEADLINE) == "old"
        assert old.read()  # the second call, which was there all the time
        assert old.ended()


def waiting_bytes(connected: socket.socket) -> bool:
    """Whether something is there to read."""
    try:
        return bool(connected.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_a_call_that_crosses_the_leaving_is_made_elsewhere(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        old = greeted(server, client, pool)
        old.protocol.send_going_away()
        old.flush()
        future = pool.submit(client.call, "a")
        new = server.accept()
        new.reply(new.call("a"), 1)
        assert future.result(DEADLINE) == 1


def test_the_reason_of_a_server_that_leaves_in_the_middle_is_told(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        unsafe = pool.submit(client.unsafe)
        conversation.call("unsafe")
        conversation.protocol.send_going_away("too_slow", "you do not read")
        conversation.flush()
        conversation.close()
        describe(server.accept(), {})
        with pytest.raises(errors.OutcomeUnknown, match=r"too_slow: you do not read"):
            unsafe.result(DEADLINE)


def test_a_server_that_closes_without_a_word_may_not_admit_us(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Declared) as client:
        future = pool.submit(client.safe)
        for _ in range(5):
            refusing = server.accept()
            refusing.read()
            refusing.close()
        with pytest.raises(errors.OutcomeUnknown, match=rf"may not admit uid {os.geteuid()}, or have too many"):
            future.result(DEADLINE)
        assert server.nobody_else()


def test_a_server_that_breaks_the_protocol_is_told_and_left(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.safe)
        conversation.call("safe")
        conversation.socket.sendall(b"\xff" * 12)
        with pytest.raises(errors.OutcomeUnknown, match="broke the protocol") as caught:
            future.result(DEADLINE)
        assert isinstance(caught.value.__cause__, errors.RemoteProtocolError)
        assert conversation.event(GoingAway).code == "too_large"
        assert conversation.ended()
        assert server.nobody_else()


def test_a_server_of_another_version_has_looked_at_nothing(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        future = pool.submit(client.call, "a")
        conversation = server.accept()
        conversation.socket.recv(1)
        conversation.socket.sendall(refusal((2, 3)))
        with pytest.raises(errors.Unsent, match="2, 3") as caught:
            future.result(DEADLINE)
        assert isinstance(caught.value.__cause__, errors.RemoteProtocolError)
        assert server.nobody_else()


def test_files_that_come_with_an_answer_end_the_connection(
    server: Scripted, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_passes_files(monkeypatch)
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.safe)
        call = conversation.call("safe")
        conversation.protocol.send_reply(call.call_id, MSGPACK.encode(1))
        [(data, _)] = conversation.protocol.data_to_send()
        before = descriptors()
        socket.send_fds(conversation.socket, [data], [0])
        with pytest.raises(errors.OutcomeUnknown, match="files came"):
            future.result(DEADLINE)
        assert set(descriptors()) <= set(before)


def test_an_inherited_connection_is_not_made_again(pool: ThreadPoolExecutor) -> None:
    theirs, ours = socket.socketpair()
    conversation = Conversation(theirs)
    with samehost.connect(f"fd:{ours.detach()}", trust=samehost.ANYONE) as client:
        future = pool.submit(client.call, "a")
        conversation.reply(conversation.call("a"), 1)
        assert future.result(DEADLINE) == 1
        conversation.close()
        with pytest.raises(errors.Unsent, match="the server closed the connection"):
            client.call("a")


def test_closing_wakes_everybody_who_waits(server: Scripted, pool: ThreadPoolExecutor) -> None:
    client = samehost.connect(server.path)
    conversation = greeted(server, client, pool, Limits(calls_max=2))
    sent = [future for future, _ in in_order(pool, conversation, client, "leading", "following")]
    held_back = pool.submit(client.call, "held back")
    until(lambda: len(client._link._held_back) == 1, "the third call waits for its turn")
    begin = time.monotonic()
    client.close()
    client.close()
    for future in sent:
        with pytest.raises(errors.OutcomeUnknown, match="the client was closed"):
            future.result(DEADLINE)
    with pytest.raises(errors.Unsent, match="the client was closed"):
        held_back.result(DEADLINE)
    assert time.monotonic() - begin < 0.5  # a leader that is not woken looks once a second
    with pytest.raises(errors.ConnectionClosed, match="the client was closed"):
        client.call("a")
    with pytest.raises(errors.ConnectionClosed):
        client.notify("a")
    assert conversation.ended()
    assert repr(client) == f"<AnyClient of {server.path}, closed>"


def test_closing_at_any_moment_ends_every_call_and_leaves_nothing(demo: Path, pool: ThreadPoolExecutor) -> None:
    def work(client: samehost.Client, began: threading.Semaphore) -> None:
        began.release()
        while True:
            client.call("echo")

    for turn in range(60):
        client = samehost.connect(demo)
        began = threading.Semaphore(0)
        futures = [pool.submit(work, client, began) for _ in range(3)]
        for _ in futures:
            assert began.acquire(timeout=DEADLINE)
        for _ in range(turn % 10):
            with contextlib.suppress(errors.ConnectionClosed):
                client.call("echo")
        links = client._links
        client.close()
        for future in futures:
            with pytest.raises(errors.ConnectionClosed, match="the client was closed"):
                future.result(DEADLINE)
        assert all(link._socket.fileno() < 0 for link in links)


def test_a_signal_handler_may_close(server: Scripted) -> None:
    code = """
        import signal, sys, samehost
        client = samehost.connect(sys.argv[1])
        signal.signal(signal.SIGTERM, lambda *_: client.close())
        try:
            client.call("a", timeout=None)
        except samehost.errors.OutcomeUnknown:
            print("closed", flush=True)
    """
    with python(code, str(server.path)) as program:
        server.accept().call("a")
        program.signal(signal.SIGTERM)
        assert program.line() == "closed"
        assert program.end() == 0, program.errors()


def test_a_forked_child_has_a_connection_of_its_own(server: Scripted) -> None:
    code = """
        import os, sys, threading, samehost
        with samehost.connect(sys.argv[1]) as client:
            client.call("first")
            waiting = threading.Thread(target=lambda: print("parent", client.call("parent"), flush=True))
            waiting.start()
            sys.stdin.readline()
            child = os.fork()
            if not child:
                print("child", client.call("child"), flush=True)
                client.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            waiting.join()
            print(client.call("last"), flush=True)
    """
    with python(code, str(server.path)) as program:
        parent = server.accept()
        parent.reply(parent.call("first"), None)
        waiting = parent.call("parent")
        program.tell("fork")
        child = server.accept()
        child.reply(child.call("child"), 1)
        assert program.line() == "child 1"
        assert child.ended()
        parent.reply(waiting, 2)
        assert program.line() == "parent 2"
        parent.reply(parent.call("last"), 3)
        assert program.line() == "3"
        assert program.end() == 0, program.errors()


def test_calls_of_map_that_are_under_way_are_the_parents_alone_after_a_fork(server: Scripted) -> None:
    code = """
        import os, sys, samehost
        with samehost.connect(sys.argv[1], timeout=None) as client:
            client.call("first")
            answers = client.map("count", range(3), window=2)
            print(next(answers), flush=True)
            child = os.fork()
            if not child:
                try:
                    next(answers)
                except samehost.errors.OutcomeUnknown:
                    print("unknown", flush=True)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(*answers, flush=True)
    """
    with python(code, str(server.path)) as program:
        parent = server.accept()
        parent.reply(parent.call("first"), None)
        parent.reply(parent.call("count"), 0)
        second = parent.call("count")
        assert program.line() == "0"
        child = server.accept()  # it asks whether the method is idempotent
        child.reply(child.call(DESCRIBE), Description("demo", {}))
        assert program.line() == "unknown"
        parent.reply(second, 1)
        parent.reply(parent.call("count"), 2)
        assert program.line() == "1 2"
        assert program.end() == 0, program.errors()


def test_a_client_that_is_forgotten_is_closed_with_a_warning(server: Scripted) -> None:
    client = samehost.connect(server.path, Declared)
    conversation = server.accept()
    reference = [client]
    del client
    with pytest.warns(ResourceWarning, match=r"<Declared of .*> was never closed"):
        reference.clear()
    assert conversation.ended()


def test_what_is_no_class_of_clients_is_refused(place: Path) -> None:
    for interface in (dict, samehost.aio.Client, Declared.__init__, 3):
        with pytest.raises(errors.UsageError, match=r"is not a class made from samehost\.Client"):
            samehost.connect(place / "s", interface)  # type: ignore[call-overload]


def test_what_is_too_long_names_its_method(demo: Path) -> None:
    long = "x" * 5_000_000
    with samehost.connect(demo) as client:
        for calling in (client.echo, partial(client.notify, "echo"), lambda text: [*client.map("echo", [text])]):
            for _ in range(2):
                with pytest.raises(errors.MessageTooLarge, match=r"^echo: a payload of 50000.. bytes"):
                    calling(long)
                assert client.echo("short") == "short"


def test_a_client_that_could_not_connect_leaves_nothing(place: Path) -> None:
    with pytest.raises(errors.Unavailable, match="nobody listens"):
        samehost.connect(place / "s")


# What a client tells.


def test_a_client_tells_what_the_server_says_of_its_methods(demo: Path) -> None:
    with samehost.connect(demo) as client:
        assert repr(client.add) == "<remote function add(a: int, b: int = 2, *, c: int = 0) -> int>"
        assert client.add is client.add
        assert "Sum up." in pydoc.render_doc(client.add, renderer=pydoc.plaintext)
        assert "Idempotent" in client.add.__doc__
        assert {"add", "echo", "call", "close"} <= set(dir(client))
        assert client.describe() is client.describe()
        assert client.describe().service == "demo"
        assert str(demo) in repr(client)
        assert client.address == str(demo)
        assert repr(client.no_such_method) == "<remote function no_such_method>"
        with pytest.raises(AttributeError, match="_private"):
            client._private  # noqa: B018


def test_a_client_without_a_server_tells_what_it_can(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        greeted(server, client, pool).close()
        server.close()
        assert repr(client.add) == "<remote function add>"
        assert "not known" in client.add.__doc__
        assert "call" in dir(client)
        assert repr(client) == f"<AnyClient of {server.path}, peer {client.peer}>" or "not connected" in repr(client)


def test_a_declared_method_is_called_by_its_name_and_its_answer_is_checked(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path, Declared) as client:
        conversation = greeted(server, client, pool)
        for answer in "value", 5:
            future = pool.submit(client.get, "k", default="d")
            call = conversation.call("kv.get")
            assert MSGPACK.decode_to(dict)(call.arguments) == {"key": "k", "default": "d"}
            conversation.reply(call, answer)
        with pytest.raises(errors.InvalidResult, match=r"kv\.get .*expected str, got int"):
            future.result(DEADLINE)
        future = pool.submit(client.call, "kv.get", "k")  # known by that name as well
        conversation.reply(conversation.call("kv.get"), 5)
        assert isinstance(future.exception(DEADLINE), errors.InvalidResult)


def test_a_class_that_declares_its_methods_has_no_others() -> None:
    assert not hasattr(Declared, "__getattr__")
    with pytest.raises(errors.SignatureError, match="would hide what every client has"):

        class Hiding(samehost.Client):
            def close(self) -> None:
                raise NotImplementedError

    with pytest.raises(errors.SignatureError, match="an async def"):

        class Awaited(samehost.Client):
            async def now(self) -> int:
                raise NotImplementedError


def test_a_class_inherits_what_its_parents_declare() -> None:
    class More(Declared):
        def more(self) -> None:
            raise NotImplementedError

    assert list(More.remote_methods) == ["safe", "unsafe", "kv.get", "more"]


def test_threads_of_one_client_connect_again_only_once(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        greeted(server, client, pool).close()
        together = threading.Barrier(8)

        def work() -> Any:
            together.wait(DEADLINE)
            return client.call("a")

        futures = [pool.submit(work) for _ in range(8)]
        conversation = server.accept()
        for _ in futures:
            conversation.reply(conversation.call("a"), 1)
        assert [future.result(DEADLINE) for future in futures] == [1] * 8
        assert server.nobody_else()


# Many calls, one after the other.


def test_map_gives_the_results_in_order_and_reads_no_further_than_its_window(demo: Path) -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in range(500):
            read.append(number)
            yield number

    with samehost.connect(demo) as client:
        results = client.map("echo", numbers(), window=10)
        assert next(results) == 0
        assert len(read) <= 11
        assert list(results) == list(range(1, 500))
        assert list(client.map("add", [1, 2, 3], [10, 20, 30, 40])) == [11, 22, 33]


def test_map_raises_an_error_in_the_place_of_its_result_and_cancels_the_rest(demo: Path) -> None:
    with samehost.connect(demo) as client:
        results = client.map("sleep", [0.0, 0.0, "long", 100.0, 100.0])
        assert [next(results), next(results)] == ["slept", "slept"]
        with pytest.raises(errors.InvalidArguments):
            next(results)
        until(lambda: client.call("samehost.stats")["methods"]["sleep"]["in_flight"] == 0, "the rest is cancelled")


def test_a_map_that_is_left_early_cancels_what_is_under_way(demo: Path) -> None:
    with samehost.connect(demo) as client:
        results = client.map("sleep", [0.0, 100.0, 100.0])
        assert next(results) == "slept"
        results.close()
        until(lambda: client.call("samehost.stats")["methods"]["sleep"]["in_flight"] == 0, "the rest is cancelled")


def test_map_goes_on_when_the_server_was_replaced_if_the_method_is_idempotent(place: Path) -> None:
    with serving(place / "s") as first, samehost.connect(place / "s", wait=DEADLINE) as client:
        results = client.map("add", range(200), window=16)
        assert next(results) == 2
        kill(first)
        with serving(place / "s"):
            assert list(results) == list(range(3, 202))


def test_map_and_other_threads_share_a_connection(demo: Path, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(demo) as client:
        maps = [pool.submit(lambda base: list(client.map("add", range(base, base + 300))), base) for base in range(8)]
        calls = [pool.submit(client.call, "add", number) for number in range(200)]
        assert [call.result(DEADLINE) for call in calls] == [number + 2 for number in range(200)]
        for base, results in enumerate(maps):
            assert results.result(DEADLINE) == [number + 2 for number in range(base, base + 300)]


def test_a_window_without_room_is_refused(demo: Path) -> None:
    with samehost.connect(demo) as client, pytest.raises(errors.UsageError, match="window=0"):
        client.map("echo", [1], window=0)
