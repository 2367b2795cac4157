"""Servers that are not ours, and agreement with lsof and ss about them."""

from __future__ import annotations

import glob
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from typing import NamedTuple

import pytest

from samehost.inspect import inspect

NOBODY = 65534


class Pair(NamedTuple):
    """A server that has accepted a client, both programs of their own."""

    path: str
    listener_pid: int
    server_pid: int
    server: str
    client_pid: int
    client: str
    backlog: int | None
    server_uid: int = os.geteuid()


def listens(path):
    return os.path.exists(path) and inspect(path).state == "listening"


def descendants(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.fixture
def plain(directory, worker):
    path = f"{directory}/plain.sock"
    server, client = worker(), worker()
    server.listen(path, backlog=9)
    client.connect(path)
    server.do("a, _ = s.accept()")
    return Pair(path, server.pid, server.pid, "python", client.pid, "python", 9)


@pytest.fixture
def socat(directory, program, until):
    path = f"{directory}/socat.sock"
    server = program("socat", f"UNIX-LISTEN:{path},fork,backlog=7", "PIPE")
    until(lambda: listens(path))
    client = program(
        "socat",
        "-",
        f"UNIX-CONNECT:{path}",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert exchange(client) == b"hello\n"
    (child,) = descendants(server.pid)
    return Pair(path, server.pid, child, "socat", client.pid, "socat", 7)


@pytest.fixture
def nc(directory, program, until):
    path = f"{directory}/nc.sock"
    server = program("nc", "-lkU", path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    until(lambda: listens(path))
    client = program("nc", "-U", path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client.stdin.write(b"hello\n")
    client.stdin.flush()
    assert server.stdout.readline() == b"hello\n"
    return Pair(path, server.pid, server.pid, "nc", client.pid, "nc", None)


@pytest.fixture
def redis(directory, program, until, worker):
    path = f"{directory}/redis.sock"
    server = program(
        *("redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory),
        stdout=subprocess.DEVNULL,
    )
    until(lambda: listens(path))
    client = worker()
    client.connect(path)
    client.do("c.sendall(b'PING\\r\\n'); assert c.recv(100) == b'+PONG\\r\\n'")
    return Pair(path, server.pid, server.pid, "redis-server", client.pid, "python", None)


def postgres_program(name):
    """Debian has them outside of PATH."""
    installed = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return installed[-1] if installed else shutil.which(name)


@pytest.fixture(scope="module")
def postgres_cluster():
    """(directory of a new cluster, whose it is): the server refuses to be root."""
    if postgres_program("initdb") is None or postgres_program("postgres") is None:
        pytest.skip("SKIPPED LOUDLY: PostgreSQL's server is not installed")
    uid = os.geteuid() or next((one.pw_uid for one in pwd.getpwall() if one.pw_name == "postgres"), NOBODY)
    with tempfile.TemporaryDirectory(prefix="sh") as directory:
        os.chown(directory, uid, -1)
        os.chmod(directory, 0o755)
        words = [postgres_program("initdb"), "-D", f"{directory}/data", "-A", "trust", "-U", "postgres", "--no-sync"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=directory, **become(uid))
        yield directory, uid


def become(uid):
    return {"user": uid, "group": pwd.getpwuid(uid).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def postgres(postgres_cluster, until, worker):
    directory, uid = postgres_cluster
    settings = ("listen_addresses=", f"unix_socket_directories={directory}", "fsync=off", "shared_buffers=1MB")
    server = subprocess.Popen(
        [postgres_program("postgres"), "-D", f"{directory}/data", *(word for one in settings for word in ("-c", one))],
        stderr=subprocess.DEVNULL,
        cwd=directory,
        **become(uid),
    )
    try:
        path = f"{directory}/.s.PGSQL.5432"
        client = worker()
        parameters = b"user\0postgres\0\0"
        hello = struct.pack("!II", 8 + len(parameters), 3 << 16) + parameters
        # Until it is ready it says so in words and hangs up.
        until(lambda: listens(path) and greet(client, path, hello))
        # BackendKeyData of its protocol: the pid of the process that serves this connection.
        with open(f"{directory}/answer", "rb") as file:
            answer = file.read()
        at = answer.index(b"K\0\0\0\x0c") + 5
        (pid,) = struct.unpack_from("!I", answer, at)
        until(lambda: [one.pid for one in only_connection(path).near.holders] == [pid])
        yield Pair(path, server.pid, pid, "postgres", client.pid, "python", None, uid)
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait(20)


def greet(client, path, hello):
    client.connect(path)
    client.do(f"c.sendall({hello!r}); d = c.recv(65536)")
    client.do("while d[:1] == b'R' and not d.endswith(b'Z\\0\\0\\0\\x05I'): d += c.recv(65536)")
    client.do(f"open({os.path.dirname(path) + '/answer'!r}, 'wb').write(d)")
    with open(f"{os.path.dirname(path)}/answer", "rb") as file:
        return file.read(1) == b"R"


def only_connection(path):
    return only(one for one in inspect(path).connections if one.state == "connected")


def exchange(client):
    client.stdin.write(b"hello\n")
    client.stdin.flush()
    return client.stdout.readline()


@pytest.fixture(params=["plain", "socat", "nc", "redis", "postgres"])
def pair(request):
    return request.getfixturevalue(request.param)


def only(sequence):
    (one,) = sequence
    return one


def test_both_ends_are_named(pair):
    report = inspect(pair.path)
    assert report.state == "listening"
    listener = only(report.sockets)
    assert pair.listener_pid in [holder.pid for holder in listener.holders]
    if pair.backlog is not None:
        assert listener.backlog_limit == pair.backlog
    connection = only(report.connections)
    assert connection.state == "connected"
    server, client = only(connection.near.holders), only(connection.far.holders)
    assert (server.pid, client.pid) == (pair.server_pid, pair.client_pid)
    assert server.command.startswith(pair.server)
    assert client.command.startswith(pair.client)
    assert (server.uid, client.uid) == (pair.server_uid, os.geteuid())
    for holder in (server, client):
        target = os.readlink(f"/proc/{holder.pid}/fd/{holder.descriptor}")
        assert target in (
            f"socket:[{connection.near.inode}]",
            f"socket:[{connection.far.inode}]",
        )


def test_it_agrees_with_lsof(pair, need):
    need("lsof")
    # Fields of lsof -F: p process, c command, f descriptor, i inode, n name; a line each.
    words = ["lsof", "-F", "pcfin", "-U", "-a", pair.path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    theirs = set()
    found = {}
    for line in done.stdout.splitlines():
        found[line[0]] = line[1:]
        # It also lists sockets of other paths, whose files were removed.
        if line[0] == "n" and line[1:].split()[0] == pair.path:
            theirs.add((int(found["p"]), found["c"][:9], int(found["f"]), int(found["i"])))
    assert len(theirs) >= 2, done.stderr
    report = inspect(pair.path)
    ours = {
        # lsof shortens commands to 9 characters unless it is told otherwise.
        (holder.pid, holder.command[:9], holder.descriptor, one.inode)
        for one in (*report.sockets, *(one.near for one in report.connections))
        for holder in one.holders
    }
    assert ours == theirs


SS_TYPES = {"u_str": "stream", "u_dgr": "datagram", "u_seq": "seqpacket"}


def ss():
    """The rows of ss -xap by inode: (type, listening, queues, name, peer inode, holders)."""
    done = subprocess.run(["ss", "-H", "-O", "-xap"], capture_output=True, text=True, check=True)
    rows = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) < 8 or not (words[5] + words[7]).isdigit():
            continue  # another program's, with a space or a line feed in its name
        users = {(int(pid), int(fd)) for pid, fd in re.findall(r"pid=(\d+),fd=(\d+)", line)}
        rows[int(words[5])] = (
            SS_TYPES[words[0]],
            words[1] == "LISTEN",
            (int(words[2]), int(words[3])),
            words[4],
            int(words[7]),
            users,
        )
    return rows


def as_ss(one, peer):
    listening = one.state == "listening"
    queues = (
        (one.backlog_waiting, one.backlog_limit)
        if listening
        else (
            one.receive_queue,
            one.send_queue,
        )
    )
    return (
        one.type,
        listening,
        queues,
        one.address or "*",
        0 if peer is None else peer.inode,
        {(holder.pid, holder.descriptor) for holder in one.holders},
    )


def test_it_agrees_with_ss(pair, need):
    need("ss")
    with socket.socket(socket.AF_UNIX) as waiting:
        if pair.listener_pid == pair.server_pid and pair.server == "python":
            waiting.connect(pair.path)  # this server accepts no second one
        theirs = ss()
        report = inspect(pair.path)
        for one in report.sockets:
            assert as_ss(one, None) == theirs[one.inode]
        connection = next(one for one in report.connections if one.state == "connected")
        assert as_ss(connection.near, connection.far) == theirs[connection.near.inode]
        assert as_ss(connection.far, connection.near) == theirs[connection.far.inode]


def test_the_whole_host_agrees_with_ss(pair, need):
    need("ss")
    before = ss()
    report = inspect()
    theirs = ss()
    ours = {one.inode: one for one in report.sockets}
    for connection in report.connections:
        for end in (connection.near, connection.far):
            if end is not None:
                ours[end.inode] = end
    here = {inode for inode, one in ours.items() if one.network_namespace == "this"}
    # Other programs of the host may come and go meanwhile.
    held = {inode for inode in theirs.keys() & here if theirs[inode][5] and theirs[inode] == before.get(inode)}
    assert {one.inode for one in inspect(pair.path).sockets} <= held
    for inode in held:
        holders = {(holder.pid, holder.descriptor) for holder in ours[inode].holders}
        assert holders == theirs[inode][5]
        assert ours[inode].type == theirs[inode][0]
