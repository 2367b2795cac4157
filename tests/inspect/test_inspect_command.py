"""`samehost inspect`: what it prints for people, for programs and as JSON, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys

import pytest

from samehost.cli import inspect as command
from samehost.errors import Unavailable
from samehost.kernel import sock_diag

PROGRAM = "import sys\nfrom samehost.cli import inspect\nsys.exit(inspect.run(inspect.parser().parse_args()))\n"


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def run_on_a_terminal(*words, columns=120, **environment):
    """What people see, as bytes."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env={
            "PYTHONPATH": ":".join(sys.path),
            "TERM": "xterm",
            "COLUMNS": str(columns),
            "LC_ALL": "C.UTF-8",
            **environment,
        },
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # EIO: the other side is closed
            break
        seen += part
    os.close(leader)
    assert child.wait() in (0, 69)
    return seen.decode()


def rows_of(output):
    header, *lines = [line.split("\t") for line in output.splitlines()]
    assert tuple(header) == command.COLUMNS
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.fixture
def pair(directory, worker):
    path = f"{directory}/a.sock"
    server, client = worker(), worker()
    server.listen(path, backlog=7)
    client.connect(path)
    server.do("a, _ = s.accept(); a.send(b'xyz')")
    os.chmod(path, 0o640)
    return path, server.pid, client.pid


def test_lines_for_programs(pair):
    path, server, client = pair
    done = run(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    listener, connection = rows_of(done.stdout)
    assert listener["row"] == "socket"
    assert (listener["address"], listener["type"], listener["state"]) == (
        path,
        "stream",
        "listening",
    )
    assert (listener["pid"], listener["receive_queue"], listener["send_queue"]) == (
        str(server),
        "0",
        "7",
    )
    assert (listener["mode"], listener["owner"], listener["place"]) == ("0640", "root", "present")
    assert listener["peer_pid"] == "-"
    assert connection["row"] == "connected"
    assert (connection["pid"], connection["peer_pid"]) == (str(server), str(client))
    assert connection["peer_receive_queue"] == "3"
    assert connection["peer_command"].startswith("python")
    target = os.readlink(f"/proc/{client}/fd/{connection['peer_descriptor']}")
    assert target == f"socket:[{connection['peer_inode']}]"


def test_a_line_is_a_line_whatever_the_names(worker):
    evil = worker()
    evil.do("open('/proc/self/comm', 'wb').write(b'a\\tb\\n\\x1b[31mc')")
    evil.listen("\0e\tv\ni\0l\x1b]0;owned\x07")
    done = run()
    assert done.returncode == 0
    assert not any(ord(one) < 32 and one not in "\t\n" for one in done.stdout)
    assert "\x7f" not in done.stdout
    (row,) = [row for row in rows_of(done.stdout) if row["pid"] == str(evil.pid)]
    assert row["address"] == r"@e\tv\ni@l\x1b]0;owned\x07"
    assert row["command"] == r"a\tb\n\x1b[31mc"


def test_a_terminal_obeys_no_name(worker):
    evil = worker()
    evil.do("open('/proc/self/comm', 'wb').write(b'[bold]\\x1b[2J\\r')")
    evil.listen("\0[red]e\nv\x1b[31mil\u202e")
    for words in ((), ("@[red]e\nv\x1b[31mil\u202e",)):
        seen = run_on_a_terminal(*words, NO_COLOR="1", columns=200)
        assert r"@[red]e\nv\x1b[31mil\u202e" in seen
        assert r"[bold]\x1b[2J\r" in seen
        assert "\x1b[31m" not in seen
        assert "\x1b[2J" not in seen
        assert "\u202e" not in seen


def test_tables_for_people(pair):
    path, server, client = pair
    seen = run_on_a_terminal(path)
    assert "\x1b[" in seen
    plain = run_on_a_terminal(path, NO_COLOR="1")
    assert "\x1b[3" not in plain
    for words in (
        path,
        "listening",
        "0 waiting, limit 7",
        f"pid {server} (python",
        "srw-r----- (0640), root:root",
        f"{client} python",
        "connected",
    ):
        assert words in plain
    # What is read as one word stays in one piece on a terminal of the usual width.
    usual = run_on_a_terminal(path, NO_COLOR="1", columns=80)
    assert re.search(rf"connected +{server} python\S* \(root\) fd=\d+ +0 +{client} python\S* \(root\) fd=\d+ +3", usual)
    narrow = run_on_a_terminal(path, NO_COLOR="1", columns=60)
    assert str(client) in narrow
    everything = run_on_a_terminal(NO_COLOR="1", columns=200)
    (line,) = [line for line in everything.splitlines() if path in line]
    assert line.split()[:5] == [path, "stream", "listening", "1", "0"]


def test_people_are_told_when_nobody_is_connected(directory, sockets):
    path = f"{directory}/a.sock"
    sockets(bind=path).listen()
    assert "Nobody is connected." in run_on_a_terminal(path)


@pytest.mark.parametrize("type", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
def test_tables_of_every_state(directory, worker, sockets, type):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path, type)
    kind = getattr(socket, type)
    client = sockets(kind, connect=path)
    waiting = run_on_a_terminal(path, NO_COLOR="1")
    assert ("sending" if type == "SOCK_DGRAM" else "waiting") in waiting
    assert f"{os.getpid()} " in waiting
    if type != "SOCK_DGRAM":
        server.do("a, _ = s.accept()")
        client.close()
        assert "closed" in run_on_a_terminal(path, NO_COLOR="1")


def test_json(pair):
    path, server, _ = pair
    done = run("--json", path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["state"] == "listening"
    assert report["sockets"][0]["holders"][0]["pid"] == server


def test_a_dead_socket_is_an_exit_code(directory, sockets):
    path = f"{directory}/a.sock"
    sockets(bind=path).close()
    done = run(path)
    assert done.returncode == 69
    assert done.stderr == f"samehost inspect: nobody is bound to {path}: only its file is left\n"
    assert rows_of(done.stdout) == []
    done = run("--json", path)
    assert (done.returncode, done.stderr) == (69, "")
    assert json.loads(done.stdout)["state"] == "dead"
    assert "nobody is bound to it" in run_on_a_terminal(path)


def test_an_abstract_name_without_its_listener(worker, sockets):
    server = worker()
    server.listen("\0ended early")
    client = sockets(connect=b"\0ended early")
    server.do("a, _ = s.accept(); s.close()")
    done = run("@ended early")
    assert done.returncode == 69
    assert done.stderr == (
        "samehost inspect: nobody is bound to @ended early: only its accepted connections are left\n"
    )
    assert "the file" not in run_on_a_terminal("@ended early")
    # Where both ends have names, either may be the accepted one; write permission has no part in it.
    client.close()
    server.listen("\0ended early")
    sockets(bind=b"\0a client", connect=b"\0ended early")
    server.do("a, _ = s.accept(); s.close()")
    done = run("@ended early")
    assert done.returncode == 0
    assert "either end of its connections may have been accepted" in done.stderr
    assert "permission" not in done.stderr + run_on_a_terminal("@ended early")


def test_a_full_backlog(directory, sockets):
    path = f"{directory}/a.sock"
    sockets(bind=path).listen(1)
    for number, said in enumerate(("0 waiting, limit 1 ", "1 waiting, limit 1 ", "2 waiting, limit 1: full")):
        assert said in run_on_a_terminal(path, NO_COLOR="1"), number
        if number < 2:
            sockets(connect=path)


def test_clients_that_cannot_be_listed(directory, sockets, monkeypatch, capsys):
    path = f"{directory}/a.sock"
    sockets(bind=path).listen()
    sockets(connect=path)
    monkeypatch.setattr(sock_diag, "_pending", lambda *_: ())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command.run(command.parser().parse_args([path])) == 0
    said = capsys.readouterr()
    assert "1 waiting" in said.out
    assert "Nobody is connected" not in said.out
    assert said.err == "samehost inspect: 1 waiting client could not be listed: there are too many\n"


def test_the_queue_of_datagrams_is_not_all_of_them(directory, sockets):
    path = f"{directory}/a.sock"
    sockets(socket.SOCK_DGRAM, bind=path)
    sender = sockets(socket.SOCK_DGRAM, connect=path)
    for _ in range(3):
        sender.send(b"hello")
    assert "5 bytes in the first message" in run_on_a_terminal(path)


def test_a_command_with_a_comma_is_one_command(directory, worker):
    path = f"{directory}/a.sock"
    server = worker()
    server.do("open('/proc/self/comm', 'wb').write(b'a,b')")
    server.listen(path)
    server.do("t = s.dup()")
    (listener,) = rows_of(run(path).stdout)
    assert listener["pid"] == f"{server.pid},{server.pid}"
    assert listener["command"] == r"a\x2cb,a\x2cb"


def test_the_whole_host_counts_open_connections(pair, worker):
    path, _, _ = pair
    other = worker()
    other.connect(path)
    assert only_line(path).split()[3:5] == ["1", "1"], "one accepted, one waiting"
    other.close()
    assert only_line(path).split()[3:5] == ["1", "1"], "one that no longer waits is in the backlog until accept"


def only_line(path):
    (line,) = [line for line in run_on_a_terminal(NO_COLOR="1", columns=200).splitlines() if path in line]
    return line


def test_what_is_not_there_is_an_error(directory):
    with pytest.raises(Unavailable):
        command.run(command.parser().parse_args([f"{directory}/a.sock"]))


def test_a_replaced_file_is_worth_a_remark(directory, worker):
    path = f"{directory}/a.sock"
    old, new = worker(), worker()
    old.listen(path)
    os.unlink(path)
    new.listen(path)
    done = run(path)
    assert done.returncode == 0
    assert f"pid {old.pid} (python" in done.stderr
    assert "was bound under this path: its own file is replaced by another" in done.stderr
    assert [row["row"] for row in rows_of(done.stdout)] == ["socket", "namesake"]


def test_another_user_is_told_what_is_missing(pair, as_nobody, capfd):
    path, _, _ = pair
    arguments = command.parser().parse_args([path])
    assert as_nobody(lambda: command.run(arguments)) == 0
    said = capfd.readouterr()
    assert "could not be read; root sees more" in said.err
    listener, connection = rows_of(said.out)
    assert (listener["pid"], listener["user"]) == ("?", "uid:0")
    assert (connection["peer_pid"], connection["peer_user"]) == ("?", "uid:0")


def test_rich_is_imported_only_for_a_terminal(pair):
    program = (
        "import sys\n"
        "from samehost.cli import inspect\n"
        "inspect.run(inspect.parser().parse_args())\n"
        # Not ctypes, which it needs to look into other network namespaces; other tests may have some meanwhile.
        "heavy = {'rich', 'asyncio', 'logging', 'dataclasses', 'json'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, pair[0]],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
