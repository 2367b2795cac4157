"""Serving with threads: everybody at once, whatever the handlers do, and an end that is a good one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Program, needs_program, python, until

import samehost
from samehost.errors import ConnectionClosed

CHILD = """
    import logging, os, samehost, signal, sys
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    def at_path(connection):
        "Reply once the fifo that the message names has been written to."
        while message := connection.recv():
            with open(message) as fifo:
                connection.sendall(fifo.read().encode())
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with samehost.listen(sys.argv[1]) as listener:
        print("ready", flush=True)
        listener.serve(at_path, drain=float(sys.argv[2]), connections_max=int(sys.argv[3]))
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    print("threads left", len(__import__("threading").enumerate()) - 1, flush=True)
"""


@contextlib.contextmanager
def serving(path: Path, handler: Callable[[Any], object], **options: Any) -> Iterator[samehost.Listener]:
    """A server in a thread, told to stop at the end."""
    with samehost.listen(path) as listener:
        thread = threading.Thread(target=listener.serve, args=(handler,), kwargs=options)
        thread.start()
        try:
            yield listener
        finally:
            listener.stop()
            thread.join(DEADLINE)
            assert not thread.is_alive()


def echo(connection: samehost.Connection) -> None:
    while message := connection.recv():
        connection.sendall(message)


def ask(client: samehost.Connection, message: bytes) -> bytes:
    client.sendall(message)
    return client.recv(timeout=DEADLINE)


def is_waiting(client: samehost.Connection) -> bool:
    """Nothing came for as long as a reply would take many times over."""
    with pytest.raises(TimeoutError):
        client.recv(timeout=0.1)
    return True


def test_every_client_is_served_at_once(place: Path) -> None:
    everybody = threading.Barrier(20)

    def handler(connection: samehost.Connection) -> None:
        everybody.wait(DEADLINE)  # passes only if 20 handlers run at the same time
        connection.sendall(b"together")

    with serving(place / "s", handler):
        clients = [samehost.dial(place / "s") for _ in range(20)]
        for client in clients:
            with client:
                assert client.recv(timeout=DEADLINE) == b"together"


def test_a_handler_that_fails_is_logged_and_the_server_lives(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    def handler(connection: samehost.Connection) -> None:
        if connection.recv() == b"fail":
            raise ZeroDivisionError("on purpose")
        connection.sendall(b"alive")

    with serving(place / "s", handler):
        with samehost.dial(place / "s") as client:
            assert ask(client, b"fail") == b""
        with samehost.dial(place / "s") as client:
            assert ask(client, b"work") == b"alive"
    [record] = [record for record in caplog.records if record.exc_info]
    assert (record.levelno, record.exc_info[0]) == (logging.ERROR, ZeroDivisionError)
    assert str(place / "s") in record.getMessage()


def test_a_client_that_leaves_is_no_failure(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def handler(connection: samehost.Connection) -> None:
        while True:
            connection.sendall(bytes(65536))

    with serving(place / "s", handler):
        samehost.dial(place / "s").close()
        until(lambda: "a client left" in caplog.text, "the log says so")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_clients_over_the_limit_wait_and_are_served(place: Path) -> None:
    with serving(place / "s", echo, connections_max=2):
        first, second, third = [samehost.dial(place / "s") for _ in range(3)]
        with first, second, third:
            assert [ask(first, b"1"), ask(second, b"2")] == [b"1", b"2"]
            third.sendall(b"3")
            assert is_waiting(third)
            first.close()
            assert third.recv(timeout=DEADLINE) == b"3"


def test_stopping_lets_calls_finish_and_ends_quiet_connections(place: Path) -> None:
    entered, finish = threading.Event(), threading.Event()

    def handler(connection: samehost.Connection) -> None:
        while message := connection.recv():
            entered.set()
            finish.wait(DEADLINE)
            connection.sendall(message)

    with serving(place / "s", handler) as listener:
        busy, idle = samehost.dial(place / "s"), samehost.dial(place / "s")
        with busy, idle:
            busy.sendall(b"in flight")
            assert entered.wait(DEADLINE)
            listener.stop()
            assert idle.recv(timeout=DEADLINE) == b""  # ended while the other one is still in progress
            assert os.listdir(place) == []
            finish.set()
            assert busy.recv(timeout=DEADLINE) == b"in flight"
            assert busy.recv(timeout=DEADLINE) == b""


def test_a_conversation_goes_on_while_the_server_drains(place: Path) -> None:
    with serving(place / "s", echo) as listener, samehost.dial(place / "s") as client:
        assert ask(client, b"before") == b"before"
        listener.stop()
        until(lambda: not (place / "s").exists(), "the path is removed")
        for _ in range(5):
            assert ask(client, b"while") == b"while"


def test_what_goes_on_after_the_drain_time_is_cut(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    def handler(connection: samehost.Connection) -> None:
        try:
            while True:
                connection.sendall(bytes(65536))
        except ConnectionClosed as error:
            ended.append(error)

    with serving(place / "s", handler, drain=0.2) as listener, samehost.dial(place / "s") as client:
        assert client.recv(timeout=DEADLINE)
        listener.stop()
        with contextlib.suppress(ConnectionClosed):
            while client.recv(timeout=DEADLINE):
                pass
    assert len(ended) == 1
    assert "1 still in progress after 0.2 s are cut off" in caplog.text


def test_idle_clients_do_not_keep_those_in_the_backlog_from_their_reply(place: Path) -> None:
    with serving(place / "s", echo, connections_max=1) as listener:
        idle, waiting = samehost.dial(place / "s"), samehost.dial(place / "s")
        with idle, waiting:
            assert ask(idle, b"1") == b"1"
            waiting.sendall(b"2")
            listener.stop()
            assert waiting.recv(timeout=5) == b"2"  # and not after the drain time of 30 s


def test_the_drain_time_counts_once(place: Path) -> None:
    release = threading.Event()

    def handler(connection: samehost.Connection) -> None:
        while connection.recv():
            connection.sendall(b"begun")
            release.wait(DEADLINE)

    with samehost.listen(place / "s") as listener:
        options = {"drain": 1.0, "connections_max": 1}
        thread = threading.Thread(target=listener.serve, args=(handler,), kwargs=options)
        thread.start()
        with samehost.dial(place / "s") as busy, samehost.dial(place / "s"):  # the second one waits in the backlog
            assert ask(busy, b"x") == b"begun"
            start = time.monotonic()
            listener.stop()
            assert busy.recv(timeout=DEADLINE) == b""
            assert time.monotonic() - start < 1.8
            release.set()
            thread.join(DEADLINE)


def test_two_servers_in_threads_are_stopped_by_a_signal_handler_of_the_users(place: Path) -> None:
    code = """
        import samehost, signal, sys, threading
        listeners = [samehost.listen(path) for path in sys.argv[1:]]
        signal.signal(signal.SIGTERM, lambda *_: [listener.stop() for listener in listeners])
        threads = [threading.Thread(target=listener.serve, args=(print,)) for listener in listeners]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        for thread in threads:
            thread.join()
        print("ended", flush=True)
    """
    with python(code, str(place / "1"), str(place / "2")) as program:
        assert program.line() == "ready"
        program.signal(signal.SIGTERM)
        assert (program.line(), program.end()) == ("ended", 0)
    assert os.listdir(place) == []


def test_closing_while_serving_ends_it(place: Path) -> None:
    with serving(place / "s", echo) as listener, samehost.dial(place / "s") as client:
        assert ask(client, b"x") == b"x"
        listener.close()
        until(lambda: os.listdir(place) == [], "the thread that serves has let go")
        assert client.recv(timeout=DEADLINE) == b""


def test_stopping_before_serving_serves_those_who_are_there(place: Path) -> None:
    with samehost.listen(place / "s") as listener, samehost.dial(place / "s") as client:
        client.sendall(b"early")
        listener.stop()
        listener.serve(echo)
        assert client.recv(timeout=DEADLINE) == b"early"


def test_datagrams_are_handled_at_once_and_to_the_last(place: Path) -> None:
    everybody, late = threading.Barrier(5), threading.Event()

    def handler(datagram: samehost.Datagram) -> None:
        if everybody.wait(DEADLINE) == 0:
            threading.Timer(0.1, late.set).start()  # when the server has nothing left to take
        late.wait(DEADLINE)
        datagram.reply(datagram.data)

    with samehost.listen(place / "d", "datagram") as listener, samehost.dial(place / "d", "datagram") as client:
        for number in range(5):
            client.sendall(b"%d" % number)
        listener.stop()
        listener.serve(handler)
        assert sorted(client.recv(timeout=DEADLINE) for _ in range(5)) == [b"0", b"1", b"2", b"3", b"4"]


# Locks

REFUSING = """
    import logging, os, samehost, select, signal, sys, threading, warnings
    entered, released, ended = threading.Event(), threading.Event(), threading.Event()
    class Slow(logging.Handler):
        "A log that takes its time, in a thread of its own, until the main thread has done what it is at."
        def emit(self, record):
            if "refused" in record.getMessage():
                entered.set()
                print("free" if released.wait(5) else "held up", flush=True)
    logging.getLogger("samehost").addHandler(Slow())
    listener = samehost.listen(sys.argv[1], allow=samehost.allow(uid=54321))
    def loop():
        for connection in listener:
            pass
        ended.set()
    threading.Thread(target=loop).start()
    client = samehost.dial(sys.argv[1])
    assert entered.wait(20)
"""


def test_a_refusal_that_is_being_logged_holds_up_nobody_who_stops_or_closes(place: Path) -> None:
    code = """
        def end(*_):
            listener.stop()
            listener.close()
            released.set()
        signal.signal(signal.SIGUSR1, end)
        signal.raise_signal(signal.SIGUSR1)
        assert ended.wait(20)
        client.close()
    """
    with python(textwrap.dedent(REFUSING) + textwrap.dedent(code), str(place / "s")) as program:
        assert (program.line(), program.end()) == ("free", 0)
    assert os.listdir(place) == []


@pytest.mark.parametrize("lock", ["taking", "count"])
def test_a_child_of_fork_closes_its_copy_whatever_the_parents_threads_hold(place: Path, lock: str) -> None:
    code = """
        number = f"socket:[{os.fstat(listener.socket.fileno()).st_ino}]"
        holding, done = threading.Event(), threading.Event()
        def hold():
            with listener._lock:
                holding.set()
                done.wait(20)
        if sys.argv[2] == "count":
            threading.Thread(target=hold).start()
            assert holding.wait(20)
        with warnings.catch_warnings():  # since 3.12 Python warns of what this test is about
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            signal.alarm(5)
            try:
                listener.accept(timeout=0)
            except samehost.errors.DeadlineExceeded:
                pass
            listener.stop()
            listener.close()
            held = [entry for entry in os.scandir("/proc/self/fd") if os.path.realpath(entry).endswith(number)]
            os._exit(len(held))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not select.select([listener._wake], [], [], 0)[0]  # the child has not woken its parent's threads
        done.set()
        released.set()
        assert samehost.dial(sys.argv[1]).close() is None
        listener.close()
        assert ended.wait(20)
        client.close()
    """
    with python(textwrap.dedent(REFUSING) + textwrap.dedent(code), str(place / "s"), lock) as program:
        assert (program.line(), program.end(), program.errors()) == ("free", 0, "")
    assert os.listdir(place) == []


# Signals


def start(place: Path, drain: float = 30, connections_max: int = 100) -> Any:
    os.mkfifo(place / "fifo")
    return python(CHILD, str(place / "s"), str(drain), str(connections_max))


def begin(client: samehost.Connection, place: Path) -> int:
    """Have a handler wait at the fifo; gives the end to write to."""
    client.sendall(bytes(place / "fifo"))
    return os.open(place / "fifo", os.O_WRONLY)  # waits for the reader


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_process_ends_well(place: Path, number: signal.Signals) -> None:
    with start(place) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as idle, samehost.dial(place / "s") as busy:
            fifo = begin(busy, place)  # the other one came first, so it is being served as well
            program.signal(number)
            assert program.line() == f"{number.name}: draining {place / 's'}, 2 in progress, at most 30 s"
            assert idle.recv(timeout=DEADLINE) == b""
            os.write(fifo, b"done")
            os.close(fifo)
            assert busy.recv(timeout=DEADLINE) == b"done"
        assert (program.line(), program.end()) == ("threads left 0", 0)
    assert os.listdir(place) == ["fifo"]


@pytest.mark.parametrize(
    ("number", "connections_max", "at_once"),
    [
        (signal.SIGTERM, 100, False),
        (signal.SIGINT, 100, False),
        (signal.SIGTERM, 1, False),
        (signal.SIGTERM, 100, True),
    ],
    ids=["SIGTERM", "SIGINT", "with a client in the backlog", "while the path is removed"],
)
def test_a_second_signal_ends_at_once(place: Path, number: signal.Signals, connections_max: int, at_once: bool) -> None:
    with start(place, connections_max=connections_max) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as busy, samehost.dial(place / "s"):
            fifo = begin(busy, place)
            if connections_max == 1:
                assert program.line() == f"{place / 's'} is full: 1 in progress, further clients wait"
            program.signal(number)
            assert program.line().startswith(number.name)
            if not at_once:
                until(lambda: not (place / "s").exists(), "the path is removed")
            program.signal(number)
            assert program.process.wait(5) == 128 + number
            os.close(fifo)
    assert os.listdir(place) == ["fifo"]


def test_clients_in_the_backlog_get_their_reply_after_the_signal(place: Path) -> None:
    with start(place, connections_max=1) as program:
        assert program.line() == "ready"
        (place / "reply").write_text("reply")
        clients = [samehost.dial(place / "s") for _ in range(5)]
        fifo = begin(clients[0], place)
        assert program.line() == f"{place / 's'} is full: 1 in progress, further clients wait"
        for client in clients[1:]:
            client.sendall(bytes(place / "reply"))
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        program.signal(signal.SIGTERM)
        assert program.line().startswith("SIGTERM")
        until(lambda: not (place / "s").exists(), "the path is removed")
        os.write(fifo, b"done")
        os.close(fifo)
        assert clients[0].recv(timeout=DEADLINE) == b"done"
        assert [client.recv(timeout=DEADLINE) for client in clients[1:]] == [b"reply"] * 4
        for client in clients:
            client.close()
        assert (program.line(), program.end()) == ("threads left 0", 0)


def test_a_handler_that_never_ends_does_not_keep_the_process(place: Path) -> None:
    with start(place, drain=0.1) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as busy:
            fifo = begin(busy, place)
            program.signal(signal.SIGTERM)
            lines = [program.line() for _ in range(4)]
            assert lines[1:3] == [
                f"{place / 's'}: 1 still in progress after 0.1 s are cut off",
                f"{place / 's'}: 1 handlers do not end",
            ]
            assert program.end() == 0
            os.close(fifo)


@needs_program("strace")
def test_a_client_is_turned_away_when_no_thread_can_be_started(place: Path) -> None:
    # The first new thread fails as it does when the host has no more tasks to give.
    faults = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=clone3,clone:error=EAGAIN:when=1"]
    code = """
        import logging, os, samehost, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
        print(os.getpid(), flush=True)
        with samehost.listen(sys.argv[1]) as listener:
            listener.serve(lambda connection: connection.sendall(b"served"))
    """
    with Program([*faults, sys.executable, "-c", textwrap.dedent(code), str(place / "s")]) as program:
        server = int(program.line())
        with samehost.dial(place / "s", wait=DEADLINE) as first:
            assert first.recv(timeout=DEADLINE) == b""
        assert "turned a client away" in program.line()
        with samehost.dial(place / "s") as second:
            assert second.recv(timeout=DEADLINE) == b"served"
        os.kill(server, signal.SIGTERM)  # strace itself would only let go of it
        assert program.end() == 0
