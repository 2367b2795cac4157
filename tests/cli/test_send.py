"""`samehost send`: every option, what it prints, and each way to fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
from support import DEADLINE, NOBODY, SAMEHOST, Program, listening, needs_root, python_as, run, send

import samehost

TYPES = ["stream", "datagram", "seqpacket"]


class Foreign:
    """A server that answers one client as a test says, with plain sockets."""

    def __init__(self, path: Path, answer: Callable[[socket.socket], object], type: int = socket.SOCK_STREAM) -> None:
        self._listening = socket.socket(socket.AF_UNIX, type)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, args=(answer,))

    def _serve(self, answer: Callable[[socket.socket], object]) -> None:
        connection, _ = self._listening.accept()
        with connection:
            answer(connection)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE)
        self._listening.close()


@pytest.mark.parametrize("type", TYPES)
def test_it_sends_text_as_it_is_and_prints_the_reply_as_it_came(place: Path, type: str) -> None:
    with listening(place / "s", "--type", type, "--echo"):
        for text in ("hello", "two\nlines\n", " grüße ", "not utf-8: \udcff"):
            sent = send(place / "s", text, "--type", type)
            assert (sent.stdout, sent.stderr, sent.returncode) == (os.fsencode(text), b"", 0)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("words", [["-"], []], ids=["dash", "nothing"])
def test_it_sends_standard_input(place: Path, type: str, words: list[str]) -> None:
    data = bytes(range(256)) * 10
    with listening(place / "s", "--type", type, "--echo"):
        sent = send(place / "s", *words, "--type", type, input=data)
        assert (sent.stdout, sent.stderr, sent.returncode) == (data, b"", 0)


def test_megabytes_are_sent_while_the_reply_is_printed(place: Path) -> None:
    # An echo server takes no more once nobody takes what it gives, so a client that sends first and reads later hangs.
    data = b"samehost" * 500_000
    with listening(place / "s", "--echo", "--max-bytes", "1000000", stdout=subprocess.PIPE) as server:
        reader = threading.Thread(target=server.process.stdout.read)
        reader.start()
        sent = send(place / "s", input=data)
        assert (len(sent.stdout), sent.stdout == data, sent.returncode) == (len(data), True, 0)
        server.signal(signal.SIGTERM)
        reader.join(DEADLINE)


def test_nothing_at_all_is_sent_as_the_end(place: Path) -> None:
    with listening(place / "s") as server:
        assert send(place / "s", "").returncode == 0
        assert send(place / "s", input=b"").returncode == 0
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_packet_of_nothing_is_refused(place: Path) -> None:
    with listening(place / "s", "--type", "seqpacket"):
        sent = send(place / "s", "", "--type", "seqpacket")
        assert (sent.returncode, sent.stderr.count(b"\n")) == (2, 1)
        assert b"an empty packet" in sent.stderr


def test_it_prints_all_that_comes_until_the_server_closes(place: Path) -> None:
    def answer(connection: socket.socket) -> None:
        while connection.recv(100):
            pass
        for piece in (b"one ", b"two ", b"three"):
            connection.sendall(piece)

    with Foreign(place / "s", answer):
        assert send(place / "s", "hello").stdout == b"one two three"


def test_it_prints_each_piece_of_the_reply_as_it_comes(place: Path) -> None:
    more = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"first\n")
        more.wait(DEADLINE)
        connection.sendall(b"second\n")

    with Foreign(place / "s", answer), Program([*SAMEHOST, "send", str(place / "s"), "hello"]) as client:
        assert client.line() == "first"
        more.set()
        assert (client.line(), client.end()) == ("second", 0)


def test_a_server_that_does_not_take_it_all_is_an_error_and_its_reply_is_printed(place: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(b"too much\n")

    with Foreign(place / "s", answer):
        sent = send(place / "s", input=bytes(1 << 22))
        assert (sent.stdout, sent.returncode) == (b"too much\n", 1)
        assert sent.stderr.startswith(b"samehost: ")
        assert sent.stderr.count(b"\n") == 1


def test_no_reply_ends_once_the_message_is_sent(place: Path) -> None:
    leave = threading.Event()
    with Foreign(place / "s", lambda connection: leave.wait(DEADLINE)):
        sent = send(place / "s", "hello", "--no-reply")
        assert (sent.stdout, sent.returncode) == (b"", 0)
        leave.set()


def test_no_reply_sends_megabytes_to_one_who_answers_them(place: Path) -> None:
    with Foreign(place / "s", echo):
        sent = send(place / "s", "--no-reply", input=bytes(1 << 22))
        assert (sent.stdout, sent.returncode) == (b"", 0)


def echo(connection: socket.socket) -> None:
    try:
        while message := connection.recv(65536):
            connection.sendall(message)
    except ConnectionError:
        pass


# A server that ends it without an answer


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_a_server_that_breaks_it_off_is_named_with_what_may_be_the_cause(place: Path, type: str) -> None:
    # It admits another user only, so the message stays unread.
    allow = f"uid={NOBODY}"
    with listening(place / "s", "--type", type, "--allow", allow):
        for _ in range(5):  # before or after it has cut us off
            sent = send(place / "s", "hello", "--type", type)
            assert (sent.stdout, sent.returncode) == (b"", 1)
            assert sent.stderr.decode() in [
                f"samehost: {place}/s ended the connection before it answered ({reason}): "
                f"it may not admit uid {os.geteuid()}\n"
                for reason in ("Connection reset by peer", "Broken pipe")
            ]


def test_a_reply_that_is_broken_off_is_an_error_that_says_so(place: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"begun")

    with Foreign(place / "s", answer):
        sent = send(place / "s", "hello")
        assert (sent.stdout, sent.returncode) == (b"begun", 1)
        assert sent.stderr.decode() == (
            f"samehost: {place}/s ended the connection in the middle (Connection reset by peer)\n"
        )


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
@pytest.mark.parametrize("in_terminal", [True, False])
def test_no_reply_at_all_is_fine_and_told_to_a_terminal(place: Path, type: str, in_terminal: bool) -> None:
    kind = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}[type]
    with Foreign(place / "s", lambda connection: connection.recv(100), kind):
        ours, theirs = os.openpty() if in_terminal else os.pipe()
        command = [*SAMEHOST, "send", str(place / "s"), "hello", "--type", type]
        sent = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=DEADLINE, check=False)
        assert (sent.stdout, sent.returncode) == (b"", 0)
        if in_terminal:
            told = f"samehost: {place}/s ended the connection without a reply\r\n"
            assert os.read(ours, 1000).decode() == told
            os.close(theirs)
        else:
            os.close(theirs)
            assert os.read(ours, 1000) == b""
        os.close(ours)


# Files


def test_a_fifo_is_passed_along_without_waiting_for_its_writer(place: Path) -> None:
    os.mkfifo(place / "fifo")
    with samehost.listen(place / "s") as listener:
        command = [*SAMEHOST, "send", str(place / "s"), "x", "--file", str(place / "fifo")]
        with Program(command) as client, listener.accept(timeout=DEADLINE) as connection:
            message, files = connection.recv_with_files(timeout=DEADLINE)
            assert message == b"x"
            assert os.get_blocking(files[0].fileno())
            files[0].close()
            connection.shutdown()
            assert client.end() == 0


@pytest.mark.parametrize("type", TYPES)
def test_files_are_passed_along(place: Path, type: str) -> None:
    (place / "a").write_bytes(b"12345")
    with listening(place / "s", "--type", type) as server:
        sent = send(place / "s", "look", "--type", type, "--file", str(place / "a"), "--file", "/dev/null")
        assert sent.returncode == 0
        lines = [server.line() for _ in range(3)]
        assert lines == ["Received: look", f"Received file: {place}/a, 5 bytes", "Received file: /dev/null"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["x", "--file", "/no/such"], "cannot open /no/such: No such file or directory"),
        (["x", "--file", "/"], "cannot open /: Is a directory"),
        (["", "--file", "/dev/null"], "send at least one byte along"),
        (["x", *["--file", "/dev/null"] * 17], "17 files in one message, at most 16 travel"),
    ],
)
def test_files_that_cannot_travel_are_refused(place: Path, words: list[str], error: str) -> None:
    with listening(place / "s"):
        sent = send(place / "s", *words)
        assert sent.returncode == 2
        assert error in sent.stderr.decode()
        assert sent.stderr.count(b"\n") == 1


def test_two_users_in_one_policy_are_refused() -> None:
    sent = send("/no/such", "x", "--trust", "uid=0,user=root")
    assert sent.returncode == 2
    assert b"argument --trust: two users in one policy: repeat the option to admit either\n" in sent.stderr


# Time


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_a_reply_that_does_not_come_in_time_is_an_error(place: Path, type: str) -> None:
    leave = threading.Event()
    kind = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}[type]
    with Foreign(place / "s", lambda connection: leave.wait(DEADLINE), kind):
        sent = send(place / "s", "hello", "--timeout", "0.2", "--type", type)
        assert sent.returncode == 75
        assert sent.stderr.startswith(b"samehost: %s did not " % bytes(place / "s"))
        assert sent.stderr.endswith(b"reply within 0.2 s\n")
        leave.set()


def test_a_server_that_does_not_read_is_an_error_in_time(place: Path) -> None:
    leave = threading.Event()
    with Foreign(place / "s", lambda connection: leave.wait(DEADLINE)):
        sent = send(place / "s", "--timeout", "0.2", input=bytes(1 << 22))
        assert sent.returncode == 75
        assert b"did not take all of the message within 0.2 s" in sent.stderr
        leave.set()


def test_a_receiver_of_datagrams_that_does_not_read_is_an_error(place: Path) -> None:
    with samehost.listen(place / "d", "datagram"):
        for _ in range(1000):
            sent = send(place / "d", "x", "--type", "datagram", "--no-reply", "--timeout", "0.1")
            if sent.returncode:
                break
        assert sent.returncode == 75
        assert b"does not read: its queue" in sent.stderr


def test_a_backlog_that_stays_full_is_an_error_in_time(place: Path) -> None:
    with samehost.listen(place / "s", backlog=0), samehost.dial(place / "s"):
        sent = send(place / "s", "hello", "--timeout", "0.1")
        assert (sent.returncode, sent.stdout) == (75, b"")
        assert b"stayed full for 0.1 s: its server does not accept" in sent.stderr


def test_it_waits_for_a_server_that_is_not_there_yet(place: Path) -> None:
    command = [*SAMEHOST, "send", str(place / "s"), "hello", "--wait", str(DEADLINE)]
    with Program(command) as client, listening(place / "s", "--echo", "--close"):
        assert client.process.stdout.read() == b"hello"
        assert client.end() == 0


# Who is not there, and who may not


def test_nobody_there_is_an_error_at_once_or_after_the_wait(place: Path) -> None:
    sent = send(place / "s", "hello")
    assert sent.returncode == 69
    assert sent.stderr.decode() == (
        f"samehost: nobody listens on {place}/s: there is no such socket; is the server running?\n"
    )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "s"))
    sent = send(place / "s", "hello", "--wait", "0.1")
    assert sent.returncode == 69
    assert b"it refuses connections after waiting for 0.1 s" in sent.stderr


def test_something_else_there_is_an_error(place: Path) -> None:
    (place / "file").touch()
    for path, code, error in (
        (place / "file", 2, f"{place}/file is not a socket"),
        (place, 2, f"{place} is not a socket"),
        (f"{place}/", 2, "ends in a directory"),
        (place / "file" / "s", 2, "is not a socket: Not a directory"),
    ):
        sent = send(path, "hello")
        assert sent.returncode == code
        assert error in sent.stderr.decode()
        assert sent.stderr.count(b"\n") == 1


def test_another_type_there_is_an_error_that_says_so(place: Path) -> None:
    with listening(place / "s", "--type", "seqpacket"):
        sent = send(place / "s", "hello")
        assert sent.returncode == 2
        assert f"the socket {place}/s is not of type stream" in sent.stderr.decode()


SEND = "sys.exit(samehost.cli.main(['send', *sys.argv[1:]]))"


@needs_root
def test_a_mode_that_keeps_us_out_is_an_error(open_place: Path) -> None:
    with listening(open_place / "s"), python_as(NOBODY, SEND, str(open_place / "s"), "hello") as client:
        assert client.end() == 77
        assert client.errors().startswith(f"samehost: uid {NOBODY} may not connect to {open_place}/s: its mode, or ")


@needs_root
def test_a_stranger_is_sent_nothing_unless_trusted(open_place: Path) -> None:
    squat = """
        with samehost.listen(sys.argv[1], mode=0o666) as listener:
            print("ready", flush=True)
            listener.serve(lambda connection: connection.sendall(b"got %d" % len(connection.recv())))
    """
    with python_as(NOBODY, squat, str(open_place / "s")) as squatter:
        assert squatter.line() == "ready"
        sent = send(open_place / "s", "secret")
        assert sent.returncode == 77
        assert f"is served by uid {NOBODY} (nobody), gid {NOBODY}, pid {squatter.pid}" in sent.stderr.decode()
        assert "trust" in sent.stderr.decode()
        assert send(open_place / "s", "secret", "--trust", "uid=1").returncode == 77
        for policy in ("user=nobody", "anyone"):
            sent = send(open_place / "s", "secret", "--trust", policy)
            assert (sent.stdout, sent.returncode) == (b"got 6", 0)


# Streams of ours that are closed or full


def with_shell(redirection: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    return run(["sh", "-c", f'exec "$@" {redirection}', "sh", *command])


def test_a_closed_standard_stream_is_like_an_empty_one(place: Path) -> None:
    with listening(place / "s", "--echo"):
        command = [*SAMEHOST, "send", str(place / "s")]
        for redirection in (">&-", "<&-", "2>&-"):
            sent = with_shell(redirection, *command, *(["hello"] if redirection != "<&-" else []))
            assert (sent.returncode, sent.stderr) == (0, b"")


def test_a_reply_that_cannot_be_printed_is_an_error(place: Path) -> None:
    with listening(place / "s", "--echo"):
        sent = with_shell(">/dev/full", *SAMEHOST, "send", str(place / "s"), "hello")
        assert (sent.returncode, sent.stderr) == (1, b"samehost: cannot go on: No space left on device\n")


def test_a_reader_that_leaves_ends_it_quietly(place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with listening(place / "s", "--echo"):
        sent = subprocess.run(
            [*SAMEHOST, "send", str(place / "s"), "hello"], stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (sent.returncode, sent.stderr) == (1, b"")


def test_an_interrupt_ends_it_without_a_word(place: Path) -> None:
    leave = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"begun\n")
        leave.wait(DEADLINE)

    with Foreign(place / "s", answer), Program([*SAMEHOST, "send", str(place / "s"), "hello"]) as client:
        assert client.line() == "begun"
        client.signal(signal.SIGINT)
        assert (client.end(), client.errors()) == (130, "")
        leave.set()
