"""Streams of the client for threads, in both directions, against scripted servers that keep to their steps."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from blocking.scripted import Conversation, Scripted
from support import DEADLINE, python, until

import samehost
from samehost import errors, limits
from samehost.codec import MSGPACK
from samehost.kernel.deadline import Deadline
from samehost.peer import Peer
from samehost.protocol import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED, Limits
from samehost.protocol.events import Call as CallEvent
from samehost.protocol.events import Cancel, Credit, End, Item
from samehost.service.call import Call, Progress, current_call
from samehost.service.description import DESCRIBE, Description, MethodDescription


class Clock(samehost.Client):
    def now(self) -> int:
        raise NotImplementedError

    def ticks(self, every: float = 1.0) -> Iterator[int]:
        raise NotImplementedError

    def total(self, numbers: Iterable[int], factor: int = 1) -> int:
        raise NotImplementedError

    def echo(self, items: Iterable[Any]) -> Iterator[Any]:
        raise NotImplementedError


@pytest.fixture
def server(place: Any) -> Iterator[Scripted]:
    with Scripted(place / "s") as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls, so that the test can play the server meanwhile."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


def greeted(server: Scripted, client: samehost.Client, pool: ThreadPoolExecutor, **options: Any) -> Conversation:
    """The connection of a client that has had its first call answered."""
    first = pool.submit(client.call, "first")
    conversation = server.accept(**options)
    conversation.reply(conversation.call("first"), None)
    assert first.result(DEADLINE) is None
    return conversation


def streaming(
    pool: ThreadPoolExecutor, conversation: Conversation, calling: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[samehost.Stream[Any], CallEvent]:
    """A stream that has begun, and has no items yet."""
    future = pool.submit(calling, *arguments, **options)
    call = conversation.call()
    conversation.stream(call)
    stream = future.result(DEADLINE)
    assert isinstance(stream, samehost.Stream)
    return stream, call


# What the server streams.


def test_a_stream_gives_its_items_and_then_the_value_at_its_end(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks, every=0.5)
        assert call.flags == ITEMS_WANTED
        assert MSGPACK.decode_to(dict)(call.arguments) == {"every": 0.5}
        conversation.items(call, 1, "two", [3])
        assert [next(stream), next(stream), next(stream)] == [1, "two", [3]]
        assert stream.result is None
        assert not stream.closed
        conversation.reply(call, "three items")
        assert list(stream) == []
        assert stream.result == "three items"
        assert stream.closed
        assert list(stream) == []


def test_without_a_declaration_the_server_says_whether_it_streams(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.anything)
        conversation.reply(conversation.call("anything"), [1, 2])
        assert future.result(DEADLINE) == [1, 2]
        future = pool.submit(client.anything)
        call = conversation.call("anything")
        conversation.protocol.send_stream(call.call_id)
        conversation.protocol.send_item(call.call_id, MSGPACK.encode(1))
        conversation.reply(call, None)  # all at once
        assert list(future.result(DEADLINE)) == [1]


def test_a_value_where_a_stream_was_declared_is_of_the_wrong_shape(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.ticks)
        conversation.reply(conversation.call("ticks"), None)
        with pytest.raises(errors.WrongShape, match="ticks: it answers with a value"):
            future.result(DEADLINE)


def test_an_error_instead_of_a_stream_is_raised_by_the_call(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.ticks)
        conversation.fail(conversation.call("ticks"), "method_not_found")
        with pytest.raises(errors.MethodNotFound):
            future.result(DEADLINE)


def test_what_came_before_an_error_is_given_first(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        conversation.items(call, 1, 2)
        conversation.fail(call, "demo.broken", "no more")
        assert [next(stream), next(stream)] == [1, 2]
        with pytest.raises(errors.ServiceError, match="ticks: no more"):
            next(stream)
        assert stream.closed
        assert list(stream) == []  # as any iterator after it has raised


@pytest.mark.parametrize("is_long", [False, True])
def test_credit_is_returned_as_items_are_taken(server: Scripted, pool: ThreadPoolExecutor, is_long: bool) -> None:
    values = [b"x" * 100_000] * 30 if is_long else list(range(5000))
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        taken = pool.submit(list, stream)
        conversation.items(call, *values)
        conversation.reply(call, None)
        assert taken.result(DEADLINE) == values


def test_leaving_the_loop_cancels_at_once(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)

        def first() -> Any:
            for value in client.ticks():
                return value
            return None

        future = pool.submit(first)
        call = conversation.call("ticks")
        conversation.stream(call, 1, 2, 3)
        assert future.result(DEADLINE) == 1
        assert conversation.event(Cancel).call_id == call.call_id
        conversation.fail(call, "cancelled")
        future = pool.submit(client.call, "next")
        conversation.reply(conversation.call("next"), 1)
        assert future.result(DEADLINE) == 1


def test_closing_cancels_once_and_gives_nothing_more(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        conversation.items(call, 1, 2)
        with stream:
            assert next(stream) == 1
        stream.close()
        assert stream.closed
        assert list(stream) == []
        assert conversation.event(Cancel).call_id == call.call_id
        client.close()
        assert conversation.ended()


def test_an_item_of_the_wrong_type_ends_the_stream(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        conversation.items(call, 1, "two", 3)
        assert next(stream) == 1
        with pytest.raises(errors.InvalidResult, match=r"an item of ticks .* expected int, got str"):
            next(stream)
        assert stream.closed
        assert conversation.event(Cancel).call_id == call.call_id


# Streams beside other calls, and other threads.


def test_a_reader_that_stops_holds_up_nothing_else(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stopped, full = streaming(pool, conversation, client.ticks)
        conversation.items(full, *range(limits.WINDOW_ITEMS))  # all that it may
        read, other = streaming(pool, conversation, client.ticks)
        taken = pool.submit(list, read)
        conversation.items(other, *range(1000))
        future = pool.submit(client.call, "unary")
        conversation.reply(conversation.call("unary"), "answered")
        assert future.result(DEADLINE) == "answered"
        conversation.reply(other, None)
        assert taken.result(DEADLINE) == list(range(1000))
        conversation.reply(full, None)
        assert list(stopped) == list(range(limits.WINDOW_ITEMS))


def test_whoever_waits_reads_for_all_streams(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        streams = [streaming(pool, conversation, client.ticks) for _ in range(4)]
        unary = pool.submit(client.call, "unary")
        call = conversation.call("unary")
        taken = [pool.submit(list, stream) for stream, _ in streams]
        for number in range(200):
            for index, (_, of_stream) in enumerate(streams):
                conversation.items(of_stream, [index, number])
        for _, of_stream in streams[:2]:
            conversation.reply(of_stream, None)
        conversation.reply(call, 1)
        assert unary.result(DEADLINE) == 1
        for _, of_stream in streams[2:]:
            conversation.reply(of_stream, None)
        for index, future in enumerate(taken):
            assert future.result(DEADLINE) == [[index, number] for number in range(200)]


def test_a_reader_that_is_done_for_now_hands_on_the_lead(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        leading = pool.submit(next, stream)
        until(lambda: client._link._leader is stream._waiting, "the stream's reader leads")
        following = pool.submit(client.call, "unary")
        unary = conversation.call("unary")
        conversation.items(call, 1)
        assert leading.result(DEADLINE) == 1
        conversation.reply(unary, 2)
        assert following.result(DEADLINE) == 2


def test_a_second_thread_that_waits_for_one_stream_is_told_so(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        waiting = pool.submit(next, stream)
        until(lambda: stream._is_waited_for, "a thread waits")
        with pytest.raises(errors.UsageError, match="another thread waits"):
            next(stream)
        conversation.items(call, 1)
        assert waiting.result(DEADLINE) == 1
        stream.close()


@pytest.mark.parametrize("is_led", [False, True])
def test_closing_from_another_thread_ends_the_loop(server: Scripted, pool: ThreadPoolExecutor, is_led: bool) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        unary = pool.submit(client.call, "unary") if is_led else None
        if unary:
            other = conversation.call("unary")
            until(lambda: client._link._leader is not None, "another thread leads")
        taken = pool.submit(list, stream)
        until(lambda: stream._is_waited_for, "a thread waits")
        stream.close()
        assert conversation.event(Cancel).call_id == call.call_id
        conversation.fail(call, "cancelled")
        assert taken.result(DEADLINE) == []
        if unary:
            conversation.reply(other, 1)
            assert unary.result(DEADLINE) == 1


def test_a_stream_forgotten_while_this_thread_has_the_lock_is_cancelled_soon(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        link = client._link
        with link._lock:  # as when the garbage collector runs in the middle of a step
            del stream
            assert len(link._dropped) == 1
        future = pool.submit(client.call, "next")
        following = conversation.event(CallEvent)
        conversation.reply(following, 1)
        assert future.result(DEADLINE) == 1
        assert conversation.event(Cancel).call_id == call.call_id


def test_a_stream_forgotten_while_another_thread_has_the_lock_waits_for_nobody(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        link = client._link
        is_locked, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with link._lock:
                is_locked.set()
                may_go.wait(DEADLINE)
            link.return_credit(stream_waiting, 0, 0)  # any step ends like this

        stream_waiting = stream._waiting
        holder = pool.submit(hold)
        assert is_locked.wait(DEADLINE)
        del stream  # returns while the lock is held
        assert not holder.done()
        may_go.set()
        holder.result(DEADLINE)
        assert [type(conversation.event(Credit | Cancel)) for _ in range(2)] == [Credit, Cancel]
        assert call.call_id not in link._calls


def test_streams_that_are_garbage_are_cancelled_wherever_that_is_noticed(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    count = 100  # fewer than there may be open at a time, should nothing be noticed
    thresholds = gc.get_threshold()

    class Node:
        stream: Any
        itself: Any

    def forget(client: samehost.Client) -> None:
        for _ in range(count):
            node = Node()
            node.itself = node
            node.stream = client.ticks()
            next(node.stream)

    def serve(conversation: Conversation) -> int:
        cancelled = 0
        while True:
            event = conversation.event(CallEvent | Cancel)
            if isinstance(event, Cancel):
                cancelled += 1
                conversation.fail(event, "cancelled")
            elif event.method == "ticks":
                conversation.stream(event, 1)
            else:
                conversation.reply(event, None)
                return cancelled

    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        served = pool.submit(serve, conversation)
        gc.set_threshold(5, 2, 0)
        try:
            forgetting = [pool.submit(forget, client) for _ in range(2)]
            for future in forgetting:
                future.result(DEADLINE)
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        assert client.call("last") is None
        assert served.result(DEADLINE) == 2 * count
        assert not client._link._calls
        assert not client._link._dropped


# Time.


def test_the_clients_timeout_is_for_the_answer_alone(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, timeout=0.3) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        assert 0 < call.milliseconds_left <= 300
        taken = pool.submit(list, stream)
        assert not threading.Event().wait(0.5)
        conversation.items(call, 1)
        conversation.reply(call, None)
        assert taken.result(DEADLINE) == [1]
        with pytest.raises(errors.DeadlineExceeded):
            client.ticks()


def test_a_timeout_of_a_call_is_for_all_of_its_stream(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        begin = time.monotonic()
        stream, call = streaming(pool, conversation, client.call, "ticks", timeout=0.3)
        conversation.items(call, 1)
        assert next(stream) == 1
        with pytest.raises(errors.DeadlineExceeded, match=r"ticks on .*: no end within 0\.3 s"):
            next(stream)
        assert 0.3 <= time.monotonic() - begin < 2
        assert conversation.event(Cancel).call_id == call.call_id


def test_a_timeout_ends_a_stream_that_has_items_all_the_time(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.call, "ticks", timeout=0.2)
        conversation.items(call, *range(60))
        assert next(stream) == 0
        assert not threading.Event().wait(0.2)
        with pytest.raises(errors.DeadlineExceeded, match="no end"):
            next(stream)
        assert stream.closed


def test_a_stream_within_a_call_that_is_served_has_no_more_time_than_that(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)

        def method() -> Any:
            peer = Peer(os.getuid(), os.getgid(), os.getpid(), ())
            current_call.set(Call(peer, "outer", 1, Deadline(0.3), {}, None))
            return list(client.ticks())

        future = pool.submit(method)
        conversation.stream(conversation.call("ticks"), 1)
        with pytest.raises(errors.DeadlineExceeded):
            future.result(DEADLINE)


def test_an_interrupt_ends_the_stream_and_hands_on_the_lead(server: Scripted) -> None:
    code = """
        import signal, sys, threading, samehost
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with samehost.connect(sys.argv[1]) as client:
            client.call("first")
            follow = lambda: print("answer", client.call("following"), flush=True)
            follower = threading.Thread(target=follow)
            threading.Timer(0, lambda: (sys.stdin.readline(), follower.start())).start()
            try:
                with client.ticks() as stream:  # the interrupt may come between two items as well
                    for tick in stream:
                        print(tick, flush=True)
            except KeyboardInterrupt:
                print("interrupted", stream.closed, flush=True)
            follower.join()
    """
    with python(code, str(server.path)) as program:
        conversation = server.accept()
        conversation.reply(conversation.call("first"), None)
        call = conversation.call("ticks")
        conversation.stream(call, 1)
        assert program.line() == "1"
        program.tell("start the follower")
        following = conversation.call("following")
        program.signal(signal.SIGINT)
        assert conversation.event(Cancel).call_id == call.call_id
        assert program.line() == "interrupted True"
        conversation.reply(following, 2)
        assert program.line() == "answer 2"
        assert program.end() == 0, program.errors()


# The connection's end.


def test_a_stream_that_was_cut_off_says_so_after_its_items(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        conversation.items(call, 1, 2)
        conversation.close()
        assert [next(stream), next(stream)] == [1, 2]
        with pytest.raises(errors.OutcomeUnknown, match=r"ticks on .*the server closed the connection"):
            next(stream)
        assert stream.closed


@pytest.mark.parametrize("is_idempotent", [False, True])
def test_before_its_first_frame_a_stream_is_a_call_like_any_other(
    server: Scripted, pool: ThreadPoolExecutor, is_idempotent: bool
) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.ticks)
        conversation.call("ticks")
        conversation.close()
        conversation = server.accept()
        methods = {"ticks": MethodDescription("ticks", "()", [], {}, idempotent=is_idempotent)}
        conversation.reply(conversation.call(DESCRIBE), Description("demo", methods))
        if is_idempotent:
            conversation.stream(conversation.call("ticks"), 1)
            assert next(future.result(DEADLINE)) == 1
        else:
            assert isinstance(future.exception(DEADLINE), errors.OutcomeUnknown)


def test_closing_the_client_wakes_who_waits_for_an_item(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        streams = [streaming(pool, conversation, client.ticks)[0] for _ in range(2)]
        futures = [pool.submit(next, stream) for stream in streams]
        until(lambda: all(stream._is_waited_for for stream in streams), "both threads wait")
        client.close()
        for future in futures:
            with pytest.raises(errors.OutcomeUnknown, match="the client was closed"):
                future.result(DEADLINE)


def test_after_a_fork_streams_are_the_parents_alone(server: Scripted) -> None:
    code = """
        import os, sys, samehost
        with samehost.connect(sys.argv[1]) as client:
            client.call("first")
            stream = client.ticks()
            print(next(stream), flush=True)
            child = os.fork()
            if not child:
                try:
                    next(stream)
                except samehost.errors.OutcomeUnknown:
                    del stream
                    print("unknown", flush=True)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(*stream, flush=True)
    """
    with python(code, str(server.path)) as program:
        parent = server.accept()
        parent.reply(parent.call("first"), None)
        call = parent.call("ticks")
        parent.stream(call, 1, 2)
        assert program.line() == "1"
        assert program.line() == "unknown"
        parent.items(call, 3)
        parent.reply(call, None)
        assert program.line() == "2 3"
        assert program.end() == 0, program.errors()


# What the client sends.


def test_items_are_sent_as_the_server_takes_them(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        pulled = []

        def numbers() -> Iterator[int]:
            for number in range(1000):
                pulled.append(number)
                yield number

        future = pool.submit(client.total, numbers(), factor=2)
        call = conversation.call("total")
        assert call.flags == ITEMS_FOLLOW
        assert call.milliseconds_left == 0  # the client's timeout begins with the end of the items
        assert MSGPACK.decode_to(dict)(call.arguments) == {"factor": 2}
        until(lambda: len(pulled) >= limits.WINDOW_ITEMS, "the window is full")
        assert not threading.Event().wait(0.05)
        assert len(pulled) == limits.WINDOW_ITEMS
        assert [conversation.next_item(call) for _ in range(1000)] == list(range(1000))
        conversation.event(End)
        conversation.reply(call, 7)
        assert future.result(DEADLINE) == 7


def test_a_stream_that_never_waits_ends_in_time_as_well(server: Scripted, pool: ThreadPoolExecutor) -> None:
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        while True:
            pulled.append(1)
            yield 1

    def serve(conversation: Any, call: Call) -> None:
        with contextlib.suppress(AssertionError):  # what comes then is no item
            while True:
                conversation.items(call, conversation.next_item(call))

    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.call, "echo", numbers(), timeout=0.5)
        call = conversation.call("echo")
        conversation.stream(call)
        serving = pool.submit(serve, conversation, call)
        stream = future.result(DEADLINE)
        assert next(stream) == 1
        until(lambda: stream._waiting.deadline.left() == 0, "its time is over")
        stream._items.clear()
        count = len(pulled)
        with pytest.raises(errors.DeadlineExceeded):
            next(stream)
        assert len(pulled) == count
        serving.result(DEADLINE)


@pytest.mark.parametrize("kind", [list, tuple, dict.fromkeys, deque, iter, lambda numbers: repeat(7, len(numbers))])
def test_items_that_are_there_already_go_together(server: Scripted, pool: ThreadPoolExecutor, kind: Any) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        numbers = list(kind(range(1000)))
        future = pool.submit(client.total, kind(range(1000)))
        call = conversation.call("total")
        assert conversation.next_item(call) == numbers[0]
        assert len(conversation._events) == limits.WINDOW_ITEMS - 1
        assert [conversation.next_item(call) for _ in range(999)] == numbers[1:]
        conversation.event(End)
        conversation.reply(call, 7)
        assert future.result(DEADLINE) == 7


def test_a_long_item_goes_between_short_ones(server: Scripted, pool: ThreadPoolExecutor) -> None:
    items = [1, 2, "x" * 2 * limits.JOIN_BYTES_MAX, 3, "y" * 2 * limits.JOIN_BYTES_MAX]
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.total, items)  # type: ignore[arg-type]
        call = conversation.call("total")
        assert [conversation.next_item(call) for _ in items] == items
        conversation.event(End)
        conversation.reply(call, 7)
        assert future.result(DEADLINE) == 7


def test_the_window_grows_for_a_reader_who_waits(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.ticks)
        taken = pool.submit(list, stream)
        count = 0
        while conversation.protocol.items_widened(call.call_id) < limits.WINDOW_ITEMS_MAX - limits.WINDOW_ITEMS:
            room = conversation.protocol.items_left(call.call_id)
            conversation.items(call, *range(count, count + room))
            count += room
            conversation.event(Credit)
        conversation.reply(call, None)
        assert taken.result(DEADLINE) == list(range(count))


def test_an_iterator_among_undeclared_arguments_is_the_stream(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        for arguments, named in ((iter([1, 2]), 5), {}), ((), {"numbers": iter([1, 2]), "factor": 5}):
            future = pool.submit(client.total, *arguments, **named)
            call = conversation.call("total")
            assert call.flags == BOTH_STREAMS
            assert MSGPACK.decode_to(Any)(call.arguments) in ([5], {"factor": 5})
            assert [conversation.next_item(call) for _ in range(2)] == [1, 2]
            conversation.event(End)
            conversation.reply(call, 3)
            assert future.result(DEADLINE) == 3


def test_what_cannot_be_streamed_says_so(server: Scripted, pool: ThreadPoolExecutor) -> None:
    async def numbers() -> Any:
        yield 1

    with samehost.connect(server.path) as client:
        greeted(server, client, pool)
        with pytest.raises(errors.UsageError, match="2 arguments are iterators"):
            client.total(iter([1]), iter([2]))
        with pytest.raises(errors.UsageError, match="async_generator, which is no iterable"):
            client.total(numbers())
        with pytest.raises(errors.UsageError, match="items are sent by a call of its own"):
            client.notify("total", iter([1]))
        with pytest.raises(errors.UsageError, match="items are sent by a call of its own"):
            list(client.map("total", [iter([1])]))
    with pytest.raises(errors.UsageError, match="numbers is missing"), samehost.connect(server.path, Clock) as typed:
        typed.total()  # type: ignore[call-arg]


def test_a_source_that_fails_cancels_the_call(server: Scripted, pool: ThreadPoolExecutor) -> None:
    def numbers() -> Iterator[Any]:
        yield 1
        raise ZeroDivisionError

    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        for source, kind in (numbers(), ZeroDivisionError), ([1, object()], errors.UsageError):
            future = pool.submit(client.total, source)  # type: ignore[arg-type]
            call = conversation.call("total")
            assert conversation.next_item(call) == 1
            assert conversation.event(Cancel).call_id == call.call_id
            conversation.fail(call, "cancelled")
            assert isinstance(future.exception(DEADLINE), kind)


@pytest.mark.parametrize("is_failure", [False, True])
def test_an_answer_that_comes_first_ends_the_upload(
    server: Scripted, pool: ThreadPoolExecutor, is_failure: bool
) -> None:
    is_closed = threading.Event()
    may_go_on = threading.Semaphore(1)

    def numbers() -> Iterator[int]:
        try:
            while may_go_on.acquire(timeout=DEADLINE):
                yield 1
        finally:
            is_closed.set()

    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.total, numbers())
        call = conversation.call("total")
        assert conversation.next_item(call) == 1
        if is_failure:
            conversation.fail(call, "invalid_arguments", "$.items[0]: expected str")
        else:
            conversation.reply(call, 1)
        for _ in range(100):  # it is noticed between two items
            may_go_on.release()
            if is_closed.wait(0.01):
                break
        assert is_closed.is_set()
        if is_failure:
            assert isinstance(future.exception(DEADLINE), errors.InvalidArguments)
        else:
            assert future.result(DEADLINE) == 1


def test_long_items_go_out_one_by_one_while_answers_come_in(server: Scripted, pool: ThreadPoolExecutor) -> None:
    long = b"x" * 300_000
    pulled: list[int] = []

    def items() -> Iterator[bytes]:
        for number in range(20):
            pulled.append(number)
            yield long

    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        leading = pool.submit(client.call, "leading")
        other = conversation.call("leading")
        future = pool.submit(client.total, items())
        call = conversation.call("total")
        assert not threading.Event().wait(0.05)
        assert len(pulled) == 1  # more than fits into the kernel
        conversation.reply(other, 1)
        assert leading.result(DEADLINE) == 1
        assert [conversation.next_item(call) for _ in range(20)] == [long] * 20
        conversation.event(End)
        conversation.reply(call, 6_000_000)
        assert future.result(DEADLINE) == 6_000_000


def test_a_call_whose_items_are_gone_is_not_made_again(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.total, iter([1, 2]))
        call = conversation.call("total")
        assert conversation.next_item(call) == 1
        conversation.protocol.send_going_away()
        conversation.fail(call, "draining")
        with pytest.raises(errors.Unsent):
            future.result(DEADLINE)
        assert server.nobody_else()


def test_a_call_whose_items_were_not_touched_is_made_again(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        greeted(server, client, pool).close()
        future = pool.submit(client.total, iter([1]))
        conversation = server.accept()
        call = conversation.call("total")
        conversation.greet()  # as it was asked to: what it takes has to be known first
        assert conversation.next_item(call) == 1
        conversation.event(End)
        conversation.reply(call, 1)
        assert future.result(DEADLINE) == 1


def test_a_call_with_items_waits_for_its_turn(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool, limits=Limits(calls_max=1))
        first = pool.submit(client.call, "first")
        other = conversation.call("first")
        future = pool.submit(client.total, iter([1]))
        until(lambda: client._link._held_back, "it is held back")
        conversation.reply(other, None)
        assert first.result(DEADLINE) is None
        call = conversation.call("total")
        assert conversation.next_item(call) == 1
        conversation.event(End)
        conversation.reply(call, 1)
        assert future.result(DEADLINE) == 1


def test_the_time_for_the_answer_begins_with_the_end_of_the_items(server: Scripted, pool: ThreadPoolExecutor) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.15)
            yield number

    with samehost.connect(server.path, timeout=0.3) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.total, slow())
        call = conversation.call("total")
        assert [conversation.next_item(call) for _ in range(3)] == [0, 1, 2]
        conversation.event(End)
        begin = time.monotonic()
        assert isinstance(future.exception(DEADLINE), errors.DeadlineExceeded)
        assert 0.2 < time.monotonic() - begin < 2
        assert conversation.event(Cancel).call_id == call.call_id
        future = pool.submit(client.call, "total", slow(), timeout=0.2)
        call = conversation.call("total")
        assert 0 < call.milliseconds_left <= 200
        assert isinstance(future.exception(DEADLINE), errors.DeadlineExceeded)


# Both at once.


def answer_each(conversation: Conversation, call: CallEvent) -> int:
    """Stream an item for each that comes."""
    count = 0
    while isinstance(event := conversation.event(Item | End | Credit), Item | Credit):
        if isinstance(event, Item):
            count += 1
            conversation.protocol.took_item(call.call_id, len(event.value))
            conversation.items(call, MSGPACK.decode_to(Any)(event.value))
    conversation.reply(call, None)
    return count


def test_an_answer_to_each_item(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.echo, range(20))
        assert call.flags == BOTH_STREAMS
        served = pool.submit(answer_each, conversation, call)
        assert list(stream) == list(range(20))
        assert served.result(DEADLINE) == 20


def test_an_item_that_is_made_of_the_answer_to_the_one_before(server: Scripted, pool: ThreadPoolExecutor) -> None:
    answers: SimpleQueue[int] = SimpleQueue()

    def items() -> Iterator[int]:
        yield 0
        for _ in range(50):
            yield answers.get(timeout=DEADLINE) + 1

    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.echo, items())
        served = pool.submit(answer_each, conversation, call)
        for value in stream:
            answers.put(value)
        assert served.result(DEADLINE) == 51


def test_a_method_that_reads_all_before_it_answers(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.echo, range(500))
        call = conversation.call("echo")
        received = [conversation.next_item(call) for _ in range(500)]  # and no STREAM yet
        conversation.event(End)
        conversation.stream(call)
        stream = future.result(DEADLINE)
        taken = pool.submit(list, stream)
        conversation.items(call, *received)
        conversation.reply(call, None)
        assert taken.result(DEADLINE) == list(range(500))


def test_closing_a_stream_ends_what_it_sends(server: Scripted, pool: ThreadPoolExecutor) -> None:
    is_closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            is_closed.set()

    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        stream, call = streaming(pool, conversation, client.echo, items())
        taken = pool.submit(next, stream)
        assert conversation.next_item(call) == 0
        conversation.items(call, "answer")
        assert taken.result(DEADLINE) == "answer"
        stream.close()
        assert is_closed.is_set()
        while not isinstance(conversation.event(Item | Cancel), Cancel):
            pass


# Progress and topics.


def test_progress_is_told_where_the_answer_is_waited_for(server: Scripted, pool: ThreadPoolExecutor) -> None:
    told: list[tuple[Progress, int]] = []
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)

        def calling() -> Any:
            thread = threading.get_ident()
            listener = lambda progress: told.append((progress, threading.get_ident() - thread))  # noqa: E731
            return client.call("pack", progress=listener)

        future = pool.submit(calling)
        call = conversation.call("pack")
        conversation.note(call, done=1, total=4)
        until(lambda: len(told) == 1, "the first was told")
        conversation.note(call, done="nonsense")
        conversation.note(call, message="nearly")
        conversation.reply(call, "packed")
        assert future.result(DEADLINE) == "packed"
        assert told == [(Progress(1, 4), 0), (Progress(message="nearly"), 0)]


def test_a_listener_that_fails_cancels_the_call(server: Scripted, pool: ThreadPoolExecutor) -> None:
    def listener(progress: Progress) -> None:
        raise ZeroDivisionError

    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.call, "pack", progress=listener)
        call = conversation.call("pack")
        conversation.note(call, done=1)
        assert isinstance(future.exception(DEADLINE), ZeroDivisionError)
        assert conversation.event(Cancel).call_id == call.call_id


def test_a_stream_knows_the_latest_progress(server: Scripted, pool: ThreadPoolExecutor) -> None:
    told: list[Progress] = []
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        for options in {}, {"progress": told.append}:
            stream, call = streaming(pool, conversation, client.call, "ticks", **options)
            assert stream.progress is None
            conversation.note(call, done=1)
            conversation.note(call, done=2)
            conversation.items(call, 1)
            assert next(stream) == 1
            assert stream.progress == Progress(2)
            stream.close()
            assert conversation.event(Cancel).call_id == call.call_id
        assert told == [Progress(1), Progress(2)]


def test_a_subscription_returns_once_nothing_is_missed_and_counts_what_was_dropped(
    server: Scripted, pool: ThreadPoolExecutor
) -> None:
    with samehost.connect(server.path, Clock) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.subscribe, "news", int)
        call = conversation.call("news")
        assert call.flags == ITEMS_WANTED
        assert MSGPACK.decode_to(Any)(call.arguments) == {}
        assert not future.done()
        conversation.stream(call, 1)
        stream = future.result(DEADLINE)
        assert stream.dropped == 0
        assert next(stream) == 1
        conversation.note(call, dropped=3)
        conversation.items(call, "none")
        with pytest.raises(errors.InvalidResult):
            next(stream)
        assert stream.dropped == 3


def test_what_is_no_topic_cannot_be_subscribed_to(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        future = pool.submit(client.subscribe, "now")
        conversation.reply(conversation.call("now"), 5)
        assert isinstance(future.exception(DEADLINE), errors.WrongShape)


def test_streams_leave_nothing_behind(server: Scripted, pool: ThreadPoolExecutor) -> None:
    with samehost.connect(server.path) as client:
        conversation = greeted(server, client, pool)
        streams: list[Future[Any]] = []
        for number in range(20):
            stream, call = streaming(pool, conversation, client.ticks)
            reference = weakref.ref(stream)
            conversation.items(call, number)
            assert next(stream) == number
            del stream
            assert reference() is None
            assert conversation.event(Cancel).call_id == call.call_id
            conversation.fail(call, "cancelled")
        streams.append(pool.submit(client.call, "last"))
        conversation.reply(conversation.call("last"), 1)
        assert streams[0].result(DEADLINE) == 1
        assert not client._link._calls
        assert client._link._leader is None
        assert client._link._protocol.is_idle


def test_interrupts_at_any_moment_leave_no_stream_behind(place: Path) -> None:
    code = """
        import os, random, signal, sys, time, samehost
        is_reading = False

        def interrupt(*_):
            global is_reading
            if is_reading:
                is_reading = False
                raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        complete = interrupted = 0
        with samehost.connect(sys.argv[1]) as client:
            client.call("samehost.stats")
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                number = complete + interrupted
                stream = client.ticks()
                signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 800e-6) * (number % 2))  # or none
                try:
                    is_reading = True
                    found = list(stream)
                    is_reading = False
                    assert found == list(range(200))
                    complete += 1
                except KeyboardInterrupt:
                    interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert stream.closed
            while client.call("samehost.stats")["methods"]["ticks"]["in_flight"]:
                assert time.monotonic() < end + 5
            link = client._link
            assert not link._calls and not link._held_back and link._leader is None and not link._dropped
        print(interrupted > 20, complete > 20, len(os.listdir("/proc/self/fd")), flush=True)
    """

    service = """
        import asyncio, sys, samehost, samehost.aio
        from collections.abc import AsyncIterator

        demo = samehost.Service("demo")

        @demo.method
        async def ticks() -> AsyncIterator[int]:
            for number in range(200):
                yield number

        asyncio.run(samehost.aio.serve(demo, sys.argv[1], ready=lambda: print("ready", flush=True)))
    """
    with python(service, str(place / "real")) as serving:
        assert serving.line() == "ready"
        with python(code, str(place / "real")) as program:
            assert program.line() == "True True 4"  # the standard three, and the directory itself


def test_a_generator_that_raises_blocking_io_error_has_failed(server: Scripted, pool: ThreadPoolExecutor) -> None:
    """An iterator may say so that it has nothing just now; a generator is over then, and its call is not complete."""

    def numbers() -> Iterator[int]:
        yield 1
        raise BlockingIOError("nothing there")

    with samehost.connect(server.path, Clock) as client:
        future = pool.submit(client.total, numbers())
        conversation = server.accept()
        conversation.greet()
        call = conversation.call("total")
        assert conversation.next_item(call) == 1
        assert conversation.event(Cancel).call_id == call.call_id
        with pytest.raises(BlockingIOError, match="nothing there"):
            future.result(DEADLINE)
