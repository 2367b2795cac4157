"""`samehost listen`: every option, what it prints, and how it ends."""

from __future__ import annotations

import array
import fcntl
import grp
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import (
    DEADLINE,
    NOBODY,
    SAMEHOST,
    Program,
    listening,
    needs_program,
    needs_root,
    python_as,
    run,
    send,
    until,
)

import samehost

TYPES = ["stream", "datagram", "seqpacket"]
DATAGRAM = (socket.AF_UNIX, socket.SOCK_DGRAM)
DEFAULT = b"Message received successfully\n"


def refused(place: Path, *options: str, address: str = "s") -> tuple[int, str]:
    """The exit code and error of a `listen` that cannot begin."""
    ended = run([*SAMEHOST, "listen", str(place / address), *options])
    assert ended.stdout == b""
    return ended.returncode, ended.stderr.decode()


def converse(path: Path, *messages: bytes, type: str = "stream") -> list[bytes]:
    """The reply to each message on one connection."""
    replies = []
    with samehost.dial(path, type) as client:
        for message in messages:
            client.sendall(message)
            replies.append(client.recv(timeout=DEADLINE))
    return replies


@pytest.mark.parametrize("type", TYPES)
def test_it_prints_and_answers_every_message_until_a_signal(place: Path, type: str) -> None:
    with listening(place / "s", "--type", type) as server:
        assert converse(place / "s", b"Hello UNIX socket!\n", b"again", type=type) == [DEFAULT, DEFAULT]
        assert [server.line(), server.line()] == ["Received: Hello UNIX socket!", "Received: again"]
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        draining = rf"samehost: SIGTERM: draining {place / 's'}, \d in progress, at most 30 s\n"
        assert re.fullmatch(draining, server.errors())
    assert os.listdir(place) == []


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(
    ("options", "reply"),
    [
        (["--echo"], b"\0binary\xff\n"),
        (["--reply", "grüße \udcff"], "grüße ".encode() + b"\xff\n"),
        (["--reply", ""], b"\n"),
        (["--exec", "tr a-z A-Z"], b"\0BINARY\xff\n"),
    ],
)
def test_the_reply_is_what_was_asked_for(place: Path, type: str, options: list[str], reply: bytes) -> None:
    with listening(place / "s", "--type", type, *options):
        assert converse(place / "s", b"\0binary\xff\n", type=type) == [reply]


def test_a_reply_file_is_read_anew_for_each_message(place: Path) -> None:
    reply = place / "reply"
    reply.write_bytes(b"first\0")
    with listening(place / "s", "--reply-file", str(reply)) as server, samehost.dial(place / "s") as client:
        client.sendall(b"1")
        assert client.recv(timeout=DEADLINE) == b"first\0"
        reply.write_bytes(b"second")
        client.sendall(b"2")
        assert client.recv(timeout=DEADLINE) == b"second"
        reply.unlink()
        client.sendall(b"3")
        assert client.recv(timeout=DEADLINE) == b""
        server.signal(signal.SIGTERM)
        assert f"cannot read the reply file {reply}: No such file or directory" in server.errors()


def test_a_reply_file_that_cannot_be_read_is_refused_at_once(place: Path) -> None:
    code, error = refused(place, "--reply-file", str(place / "none"))
    assert (code, error) == (2, f"samehost: cannot read the reply file {place / 'none'}: No such file or directory\n")
    assert os.listdir(place) == []


# --exec


def test_a_command_finds_who_asked_in_its_environment(place: Path) -> None:
    command = 'echo "$SAMEHOST_PEER_UID $SAMEHOST_PEER_GID $SAMEHOST_PEER_PID"'
    with listening(place / "s", "--exec", command):
        assert converse(place / "s", b"who am I") == [f"{os.getuid()} {os.getgid()} {os.getpid()}\n".encode()]


def test_a_command_may_be_a_pipeline_and_its_errors_are_ours(place: Path) -> None:
    with listening(place / "s", "--exec", "echo oops >&2; sort -r | head -2 | tr '\\n' ,") as server:
        assert converse(place / "s", b"a\nb\nc\n") == [b"c,b,"]
        server.signal(signal.SIGTERM)
        assert server.errors().startswith("oops\n")


def test_a_command_that_fails_is_reported_and_what_it_said_is_the_reply(place: Path) -> None:
    with listening(place / "s", "--exec", "echo so far; exit 3") as server:
        assert converse(place / "s", b"1", b"2") == [b"so far\n", b"so far\n"]
        server.signal(signal.SIGTERM)
        assert server.errors().count("samehost: echo so far; exit 3: exit status 3\n") == 2


def test_a_command_need_not_read_its_message(place: Path) -> None:
    with listening(place / "s", "--exec", "exec <&-; echo done"):
        assert converse(place / "s", b"x" * 50_000) == [b"done\n"]


def test_a_command_has_no_descriptor_of_ours(place: Path) -> None:
    with listening(place / "s", "--exec", "ls -l /proc/self/fd | grep -c socket"):
        assert converse(place / "s", b"x") == [b"0\n"]


def test_a_command_that_outlives_the_drain_time_is_killed(place: Path) -> None:
    command = f"echo $$ > {place}/pid; exec sleep 1000"
    with listening(place / "s", "--exec", command, "--drain", "0.1") as server, samehost.dial(place / "s") as client:
        client.sendall(b"x")
        until(lambda: (place / "pid").exists() and (place / "pid").read_text().endswith("\n"), "the command runs")
        pid = int((place / "pid").read_text())
        server.signal(signal.SIGTERM)
        assert client.recv(timeout=DEADLINE) == b""
        assert server.end() == 0
        until(lambda: not os.path.exists(f"/proc/{pid}"), "the command is gone")


@pytest.mark.parametrize("type", TYPES)
def test_a_command_in_progress_finishes_its_reply_after_the_signal(place: Path, type: str) -> None:
    os.mkfifo(place / "fifo")
    with listening(place / "s", "--type", type, "--exec", f"cat {place}/fifo") as server:
        with samehost.dial(place / "s", type) as client:
            client.sendall(b"x")
            fifo = os.open(place / "fifo", os.O_WRONLY)  # waits until the command reads
            server.signal(signal.SIGTERM)
            until(lambda: not (place / "s").exists(), "the path is removed")
            os.write(fifo, b"finished")
            os.close(fifo)
            assert client.recv(timeout=DEADLINE) == b"finished"
        assert server.end() == 0


def test_a_terminal_interrupt_reaches_the_server_and_not_its_commands(place: Path) -> None:
    os.mkfifo(place / "fifo")
    options = ["--exec", f"cat {place}/fifo"]
    with listening(place / "s", *options, start_new_session=True) as server, samehost.dial(place / "s") as client:
        client.sendall(b"x")
        fifo = os.open(place / "fifo", os.O_WRONLY)
        os.killpg(server.pid, signal.SIGINT)  # as the terminal does on Ctrl-C: to the whole group
        until(lambda: not (place / "s").exists(), "the path is removed")
        os.write(fifo, b"finished")
        os.close(fifo)
        assert client.recv(timeout=DEADLINE) == b"finished"
        assert server.end() == 0


def test_no_descriptors_left_for_a_command_is_an_error_without_traceback(place: Path) -> None:
    limited = ["sh", "-c", 'ulimit -n 14; exec "$@"', "sh", *SAMEHOST, "listen", str(place / "s"), "--exec", "cat"]
    with Program(limited) as server:
        assert server.line() == f"Listening on {place / 's'}"
        clients = [samehost.dial(place / "s") for _ in range(8)]
        for client in clients:
            client.sendall(b"x")
        replies = [client.recv(timeout=DEADLINE) for client in clients if not client.shutdown(socket.SHUT_WR)]
        assert set(replies) <= {b"x", b""}
        for client in clients:
            client.close()
        server.signal(signal.SIGTERM)
        assert "Traceback" not in server.errors()


def test_commands_that_descriptors_are_not_enough_for_wait_their_turn(place: Path) -> None:
    # Each command goes on for a while, so that more and more would run.
    options = ["listen", str(place / "s"), "--exec", "sleep 0.2; cat"]
    limited = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *SAMEHOST, *options]
    with Program(limited, stdout=subprocess.DEVNULL) as server:
        clients = [samehost.dial(place / "s", wait=DEADLINE) for _ in range(150)]
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            with client:
                assert client.recv(timeout=DEADLINE) == b"x"
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert "cannot run" not in server.errors()


# Conversations


def test_datagrams_are_printed_in_the_order_in_which_they_arrived(place: Path) -> None:
    # As many as it takes for threads to overtake each other; from nobody who could be answered, to be quick about it.
    options = ["--type", "datagram"]
    with listening(place / "s", *options, stderr=subprocess.DEVNULL) as server, socket.socket(*DATAGRAM) as client:
        client.connect(str(place / "s"))
        for start in range(0, 5000, 500):
            for number in range(start, start + 500):
                client.send(b"%d" % number)
            assert [server.line() for _ in range(500)] == [f"Received: {start + number}" for number in range(500)]


def test_close_ends_each_conversation_after_its_first_reply(place: Path) -> None:
    with listening(place / "s", "--close"):
        assert converse(place / "s", b"only") == [DEFAULT]
        with samehost.dial(place / "s") as client:
            client.sendall(b"first")
            assert [client.recv(timeout=DEADLINE), client.recv(timeout=DEADLINE)] == [DEFAULT, b""]


def test_what_arrives_in_one_read_is_a_message(place: Path) -> None:
    with listening(place / "s", "--max-bytes", "4", "--echo") as server, samehost.dial(place / "s") as client:
        client.sendall(b"abcdefghij")
        assert [server.line() for _ in range(3)] == ["Received: abcd", "Received: efgh", "Received: ij"]


@pytest.mark.parametrize("type", ["datagram", "seqpacket"])
def test_a_message_over_the_limit_is_refused_and_logged(place: Path, type: str) -> None:
    with listening(place / "s", "--max-bytes", "4", "--type", type) as server:
        with samehost.dial(place / "s", type) as client:
            client.sendall(b"12345")
        assert converse(place / "s", b"1234", type=type) == [DEFAULT]
        assert server.line() == "Received: 1234"
        server.signal(signal.SIGTERM)
        assert "limit of 4 bytes" in server.errors()


def test_one_client_does_not_hold_up_another(place: Path) -> None:
    os.mkfifo(place / "fifo")
    command = f'read word; if [ "$word" = slow ]; then cat {place}/fifo; else echo quick; fi'
    with listening(place / "s", "--exec", command), samehost.dial(place / "s") as slow:
        slow.sendall(b"slow\n")
        fifo = os.open(place / "fifo", os.O_WRONLY)
        assert converse(place / "s", b"other\n") == [b"quick\n"]
        os.write(fifo, b"slow")
        os.close(fifo)
        assert slow.recv(timeout=DEADLINE) == b"slow"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (b"\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        (b"two\nlines\r\n", r"two\nlines"),
        (b"\x00\x07\x7f", r"\x00\x07\x7f"),
        (b"no utf-8 \xff\xfe", r"no utf-8 \xff\xfe"),
        ("gr\u00fc\u00dfe \u202e \u2028".encode(), "gr\u00fc\u00dfe \\u202e \\u2028"),
    ],
)
def test_what_others_send_cannot_steer_the_terminal(place: Path, message: bytes, line: str) -> None:
    with listening(place / "s") as server:
        converse(place / "s", message)
        assert server.line() == f"Received: {line}"


def test_files_that_come_along_are_described_and_closed(place: Path) -> None:
    (place / "file").write_bytes(b"12345")
    with listening(place / "s") as server, samehost.dial(place / "s") as client:
        with open(place / "file", "rb") as file, open("/dev/null", "rb") as device:
            client.sendall(b"look", [file, device])
        assert client.recv(timeout=DEADLINE) == DEFAULT
        lines = [server.line() for _ in range(3)]
        assert lines == ["Received: look", f"Received file: {place}/file, 5 bytes", "Received file: /dev/null"]
        descriptors = Path(f"/proc/{server.pid}/fd")
        assert {str(place / "file"), "/dev/null"}.isdisjoint(os.readlink(entry) for entry in descriptors.iterdir())


def test_files_are_closed_even_if_nothing_can_be_printed(place: Path) -> None:
    # Told by the interpreter, which warns of each file that was left to it.
    command = [sys.executable, "-W", "always", "-m", "samehost", "listen", str(place / "s")]
    with Program(command) as server:
        assert server.line() == f"Listening on {place / 's'}"
        server.process.stdout.close()
        server.process.stdout = None
        with samehost.dial(place / "s") as client, open("/dev/null", "rb") as file:
            client.sendall(b"x", [file, file])
            assert client.recv(timeout=DEADLINE) == b""
        assert server.end() == 1
        assert "ResourceWarning" not in server.errors()


# Who may


def test_the_mode_is_what_was_asked_for(place: Path) -> None:
    for options, mode in (([], 0o600), (["--mode", "660"], 0o660), (["--mode", "0o666"], 0o666)):
        with listening(place / "s", *options) as server:
            assert stat.S_IMODE((place / "s").stat().st_mode) == mode
            server.signal(signal.SIGTERM)
            server.end()


@needs_root
def test_the_group_is_what_was_asked_for(place: Path) -> None:
    for group in (str(NOBODY), grp.getgrgid(NOBODY).gr_name):
        with listening(place / "s", "--group", group, "--mode", "660") as server:
            assert (place / "s").stat().st_gid == NOBODY
            server.signal(signal.SIGTERM)
            server.end()


@needs_root
@pytest.mark.parametrize(
    ("options", "admitted"),
    [
        (["--allow", f"uid={NOBODY}"], True),
        (["--allow", "uid=0"], False),
        (["--allow", "uid=0", "--allow", "user=nobody"], True),
        (["--allow", f"uid={NOBODY},gid=0"], False),
        (["--allow", "anyone"], True),
    ],
)
def test_only_those_who_are_allowed_are_served(open_place: Path, options: list[str], admitted: bool) -> None:
    client = """
        connection = samehost.dial(sys.argv[1])
        try:
            connection.sendall(b"hello")
            print(connection.recv().decode().strip() or "refused")
        except ConnectionError:
            print("refused")
        connection.close()
    """
    with listening(open_place / "s", "--mode", "666", *options) as server:
        with python_as(NOBODY, client, str(open_place / "s")) as program:
            assert program.line() == (DEFAULT.decode().strip() if admitted else "refused")
        server.signal(signal.SIGTERM)
        assert (f"refused uid {NOBODY}" in server.errors()) is not admitted


# Ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(place: Path, number: signal.Signals) -> None:
    os.mkfifo(place / "fifo")
    command = f"echo $$ > {place}/pid; exec cat {place}/fifo"
    with listening(place / "s", "--exec", command) as server, samehost.dial(place / "s") as client:
        client.sendall(b"x")
        fifo = os.open(place / "fifo", os.O_WRONLY)
        server.signal(number)
        until(lambda: not (place / "s").exists(), "the path is removed")
        server.signal(number)
        assert server.process.wait(5) == 128 + number
        os.close(fifo)
        pid = (place / "pid").read_text().strip()
        until(lambda: not os.path.exists(f"/proc/{pid}"), "the command is gone")


@needs_program("strace")
def test_a_signal_right_after_the_first_line_ends_it_well(place: Path) -> None:
    # The line is held for a moment after it was written, so that the signal comes before anything else can be done.
    delay = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=write", "-e", "inject=write:delay_exit=300000"]
    with Program([*delay, *SAMEHOST, "listen", str(place / "s")]) as server:
        assert server.line() == f"Listening on {place / 's'}"
        [pid] = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(pid), signal.SIGTERM)
        assert server.end() == 0
    assert os.listdir(place) == []


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """The ends of a pipe of one page."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def bytes_in(reader: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize("errors_too", [False, True])
def test_output_that_nobody_reads_does_not_keep_it_from_ending(
    place: Path, unread: tuple[int, int], errors_too: bool
) -> None:
    reader, writer = unread
    command = [*SAMEHOST, "listen", str(place / "s"), "--drain", "0.1"]
    errors = writer if errors_too else subprocess.PIPE
    with Program(command, stdout=writer, stderr=errors) as server, samehost.dial(place / "s", wait=DEADLINE) as client:
        client.sendall(b"x" * 5000)
        until(lambda: bytes_in(reader) > 500, "it is in the middle of printing that")
        server.signal(signal.SIGTERM)
        assert server.process.wait(8) == 0
    assert os.listdir(place) == []


@pytest.mark.parametrize("errors_too", [False, True])
def test_a_second_signal_ends_it_at_once_though_nobody_reads(
    place: Path, unread: tuple[int, int], errors_too: bool
) -> None:
    reader, writer = unread
    command = [*SAMEHOST, "listen", str(place / "s")]
    errors = writer if errors_too else subprocess.PIPE
    with Program(command, stdout=writer, stderr=errors) as server, samehost.dial(place / "s", wait=DEADLINE) as client:
        client.sendall(b"x" * 5000)
        until(lambda: bytes_in(reader) > 500, "it is in the middle of printing that")
        server.signal(signal.SIGTERM)
        until(lambda: os.listdir(place) == [], "the socket is removed")
        server.signal(signal.SIGTERM)
        assert server.process.wait(5) == 128 + signal.SIGTERM


def test_output_that_is_full_from_the_start_does_not_keep_it_from_ending(place: Path, unread: tuple[int, int]) -> None:
    os.write(unread[1], bytes(4096))
    with Program([*SAMEHOST, "listen", str(place / "s")], stdout=unread[1]) as server:
        samehost.dial(place / "s", wait=DEADLINE).close()
        server.signal(signal.SIGTERM)
        assert server.process.wait(5) == 0
    assert os.listdir(place) == []


def test_a_signal_while_it_starts_leaves_nothing(place: Path) -> None:
    for _ in range(50):
        with Program([*SAMEHOST, "listen", str(place / "s")]) as server:
            while not os.listdir(place):
                assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            assert server.end() == 0
            assert "Traceback" not in server.errors()
        assert os.listdir(place) == []


def test_a_reader_that_leaves_ends_the_server(place: Path) -> None:
    with listening(place / "s", stdin=subprocess.DEVNULL) as server:
        server.process.stdout.close()
        server.process.stdout = None
        with samehost.dial(place / "s") as client, samehost.dial(place / "s"):
            client.sendall(b"what nobody sees is not acknowledged")
            assert client.recv(timeout=DEADLINE) == b""
        assert server.end() == 1
        errors = server.errors()
    assert errors.endswith("samehost: this server ends, because it cannot print any more: Broken pipe\n")
    assert "Traceback" not in errors
    assert os.listdir(place) == []


@pytest.mark.parametrize("output", ["pipe", "full"])
def test_nowhere_to_print_from_the_start_is_an_error(place: Path, output: str) -> None:
    if output == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    ended = subprocess.run(
        [*SAMEHOST, "listen", str(place / "s")], stdout=writer, stderr=subprocess.PIPE, timeout=DEADLINE, check=False
    )
    os.close(writer)
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"samehost: this server ends, because it cannot print any more: ")
    assert ended.stderr.count(b"\n") == 1
    assert os.listdir(place) == []


def test_a_server_without_any_standard_stream_serves(place: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SAMEHOST, "listen", str(place / "s"), "--exec", "cat"]
    with Program(command) as server:
        until((place / "s").exists, "it listens")
        with samehost.dial(place / "s", wait=DEADLINE) as client:
            client.sendall(b"hello")
            assert client.recv(timeout=DEADLINE) == b"hello"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


# What cannot be


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--type", "dgram"], "invalid choice: 'dgram'"),
        (["--max-bytes", "0"], "'0' is not a number of bytes from 1 to 1073741824"),
        (["--max-bytes", "4k"], "'4k' is not a number of bytes"),
        (["--mode", "rw"], "'rw' is not a file mode in octal, as in 600 or 660"),
        (["--mode", "1777"], "'1777' is not a file mode in octal"),
        (["--group", "no-such-group"], "there is no group 'no-such-group'"),
        (["--allow", "alice"], "'alice' is not a condition: uid=N, gid=N, user=NAME or group=NAME"),
        (["--allow", "user=no-such-user"], "there is no user 'no-such-user'"),
        (["--allow", "uid=-1"], "'-1' is not a number"),
        (["--allow", "gid=10,gid=20"], "argument --allow: two groups in one policy: repeat the option to admit either"),
        (["--allow", "gid=10,group=root"], "two groups in one policy"),
        (["--allow", "uid=0,gid=0,user=root"], "two users in one policy"),
        (["--drain", "-1"], "'-1' is not a number of seconds, as in 0.5 or 30"),
        (["--drain", "inf"], "'inf' is not a number of seconds"),
        (["--backlog", "many"], "invalid int value: 'many'"),
        (["--backlog", "-2"], "backlog=-2 is out of range: from 0 to 2147483647"),
        (["--echo", "--reply", "x"], "not allowed with argument"),
    ],
)
def test_options_that_cannot_be_are_named(place: Path, options: list[str], error: str) -> None:
    code, text = refused(place, *options)
    assert code == 2
    assert error in text
    assert "Traceback" not in text
    assert os.listdir(place) == []


def test_an_address_that_is_taken_names_who_has_it(place: Path) -> None:
    with listening(place / "s") as server:
        code, error = refused(place)
        assert code == 73
        assert error.startswith(f"samehost: {place / 's'} is held by ")
        assert str(server.pid) in error


def test_a_place_where_nothing_can_be_is_named(place: Path) -> None:
    (place / "file").touch()
    assert refused(place, address="file")[0] == 73
    code, error = refused(place, address="none/s")
    assert code == 73
    assert error.startswith(f"samehost: cannot create {place}/none/s: its directory {place}/none cannot be opened")
    assert error.endswith("make it first\n")
    assert sorted(os.listdir(place)) == ["file"]


def test_the_backlog_bounds_who_may_wait(place: Path) -> None:
    with listening(place / "s", "--backlog", "1") as server:
        server.signal(signal.SIGSTOP)
        until(lambda: "\nState:\tT" in Path(f"/proc/{server.pid}/status").read_text(), "it has stopped")
        waiting: list[samehost.Connection] = []

        def fill() -> None:
            while True:
                waiting.append(samehost.dial(place / "s", timeout=0.05))

        with pytest.raises(samehost.errors.DeadlineExceeded, match=r"the backlog of .* stayed full"):
            fill()
        assert len(waiting) in (1, 2)
        server.signal(signal.SIGCONT)
        for client in waiting:
            with client:
                client.sendall(b"x")
                assert client.recv(timeout=DEADLINE) == DEFAULT


def test_a_long_reply_to_a_client_that_does_not_read_is_cut_at_the_end(place: Path) -> None:
    (place / "reply").write_bytes(bytes(1 << 22))
    options = ["--reply-file", str(place / "reply"), "--drain", "0.1"]
    with listening(place / "s", *options) as server, samehost.dial(place / "s") as client:
        client.sendall(b"x")
        assert server.line() == "Received: x"
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert "1 still in progress after 0.1 s are cut off" in server.errors()


def test_it_is_one_line_of_shell(place: Path) -> None:
    script = f"{sys.executable} -m samehost listen {place}/s --echo & trap 'kill $!; wait $!' EXIT; read line"
    with Program(["sh", "-c", script]) as shell:
        assert shell.line() == f"Listening on {place}/s"
        assert send(place / "s", "hello").stdout == b"hello"
        shell.tell("end")
        assert shell.end() == 0
    assert os.listdir(place) == []
