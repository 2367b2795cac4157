"""Naming the owner of an address, and the identity of files on filesystems with two devices."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile

import pytest

from samehost.kernel import owners, sock_diag
from samehost.kernel.processes import Process

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVER = """
import socket, sys
name = bytes.fromhex(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.bind(name)
listener.listen()
print("ready", flush=True)
for line in sys.stdin:
    if line == "accept\\n":
        accepted, _ = listener.accept()
    if line == "close\\n":
        listener.close()
    print("done", flush=True)
"""


class Server:
    """A listener in a process of its own."""

    def __init__(self, name, **options):
        self.child = subprocess.Popen(
            [sys.executable, "-c", SERVER, os.fsencode(name).hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        assert self.child.stdout.readline() == "ready\n"
        self.pid = self.child.pid

    def do(self, word):
        self.child.stdin.write(f"{word}\n")
        self.child.stdin.flush()
        assert self.child.stdout.readline() == "done\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix="sh") as path:
        os.chmod(path, 0o755)
        yield path


def of_file(path):
    status = os.stat(path)
    return owners.owners_of_file(status.st_dev, status.st_ino)


def as_nobody(function):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with os.fdopen(writer, "wb") as file:
                pickle.dump(function(), file)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


def test_the_owner_of_a_file_is_named(directory):
    path = f"{directory}/a.sock"
    with Server(path) as server:
        (one,) = of_file(path)
        assert one.pid == server.pid
        assert owners.phrase([one]).startswith(f"pid {server.pid} (python")
        os.rename(path, f"{directory}/b.sock")
        assert [one.pid for one in of_file(f"{directory}/b.sock")] == [server.pid]
    assert of_file(f"{directory}/b.sock") == []


def test_a_new_file_under_an_old_name_has_its_own_owner(directory):
    path = f"{directory}/a.sock"
    with Server(path) as old:
        os.rename(path, f"{directory}/b.sock")
        with Server(path) as new:
            assert [one.pid for one in of_file(path)] == [new.pid]
            assert [one.pid for one in of_file(f"{directory}/b.sock")] == [old.pid]


def test_all_who_share_a_socket_are_named(directory):
    path = f"{directory}/a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)  # not listening: bound is enough
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()])
        with child:
            child.stdin.write(b"x")
            child.stdin.flush()
            child.stdout.read(1)
            found = of_file(path)
    assert [one.pid for one in found] == sorted([os.getpid(), child.pid])


def test_accepted_connections_count_only_without_a_listener(directory):
    path = f"{directory}/a.sock"
    with Server(path) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        server.do("accept")
        held = os.fstat(client.fileno()).st_ino
        assert sock_diag.lookup(held).peer_inode
        assert [one.pid for one in of_file(path)] == [server.pid]
        server.do("close")
        assert [one.pid for one in of_file(path)] == [server.pid]


@pytest.mark.parametrize("name", ["\0" + "owners of names", "\0with\0nul"])
def test_the_owner_of_a_name_is_named(name):
    with Server(name) as server:
        assert [one.pid for one in owners.owners_of_name(name.encode())] == [server.pid]
        assert owners.owners_of_name(name.encode() + b"\0") == []
    assert owners.owners_of_name(name.encode()) == []


@needs_root
def test_another_user_sees_the_uid_that_made_it(directory):
    path = f"{directory}/a.sock"
    with Server(path), Server("\0seen by nobody"):
        found, named = as_nobody(lambda: (of_file(path), owners.owners_of_name(b"\0seen by nobody")))
    assert found == named == [Process(0, "", 0, "root", None)]
    assert owners.phrase(found) == "uid 0"


def test_without_the_kernels_table_nobody_is_seen(monkeypatch):
    def fail():
        raise OSError("no unix_diag")

    monkeypatch.setattr(sock_diag, "dump", fail)
    assert owners.owners_of_file(1, 1) == []
    assert owners.phrase([]) == "a process that cannot be seen from here"


def test_phrases():
    redis = Process(812, "redis-server", 999, "redis", None)
    assert owners.phrase([redis]) == "pid 812 (redis-server, user redis)"
    evil = Process(7, "\x1b[2J\n\u202e\udcff", 12345, None, None)
    assert owners.phrase([evil]) == "pid 7 (\\x1b[2J\\n\\u202e\\udcff, uid 12345)"
    two = owners.phrase([Process(0, "", 1000, None, None), redis])
    assert two == "uid 1000 and pid 812 (redis-server, user redis)"
    five = owners.phrase([redis] * 5)
    assert five.endswith("and 2 more processes")
    assert owners.phrase([redis] * 4).endswith("and 1 more process")


def test_printable_leaves_readable_text_alone():
    assert owners.printable("/tmp/ünï cödé.sock") == "/tmp/ünï cödé.sock"


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_is_anybody_bound_disturbs_nobody(directory, type):
    path = f"{directory}/a.sock"
    with socket.socket(socket.AF_UNIX, type) as bound:
        bound.bind(path)
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            assert owners.is_anybody_bound(file) is True
            if type != socket.SOCK_DGRAM:
                bound.listen()
                assert owners.is_anybody_bound(file) is True
                row = sock_diag.lookup(os.fstat(bound.fileno()).st_ino)
                assert (row.state, row.receive_queue) == ("listening", 0)
            bound.close()
            assert owners.is_anybody_bound(file) is False
        finally:
            os.close(file)


@needs_root
def test_is_anybody_bound_needs_permission_to_write(directory):
    path = f"{directory}/a.sock"
    with Server(path):
        os.chmod(path, 0o600)
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        assert as_nobody(lambda: owners.is_anybody_bound(file)) is None
        os.close(file)


OVERLAY = """
import os, socket, subprocess, sys
from samehost.kernel import owners, sock_diag
base = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "none", base], check=True)
for name in ("lower", "upper", "work", "merged"):
    os.mkdir(f"{base}/{name}")
subprocess.run(["mount", "-t", "tmpfs", "none", f"{base}/lower"], check=True)
os.mkdir(f"{base}/lower/sub")
options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
if subprocess.run(["mount", "-t", "overlay", "none", "-o", options, f"{base}/merged"]).returncode:
    sys.exit(77)
path = f"{base}/merged/sub/a.sock"
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
status = os.stat(path)
row = sock_diag.lookup(os.fstat(listener.fileno()).st_ino)
print("devices differ:", row.file[0] != status.st_dev)
assert owners.is_bound_to(row, owners.identify(path))
found = owners.owners_of_file(status.st_dev, status.st_ino)
assert [one.pid for one in found] == [os.getpid()], found
other = socket.socket(socket.AF_UNIX)
other.bind(f"{base}/merged/sub/b.sock")
assert not owners.is_bound_to(row, owners.identify(f"{base}/merged/sub/b.sock"))
"""


@needs_root
def test_a_file_on_an_overlay(directory):
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", OVERLAY, directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"overlayfs cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("devices differ: ")


def test_an_inode_number_of_more_than_32_bits_needs_the_name_as_well(directory, monkeypatch):
    path = f"{directory}/a.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        row = sock_diag.lookup(os.fstat(bound.fileno()).st_ino)
        identity = owners.identify(path)
        wide = identity._replace(inode=identity.inode + 2**32)
        assert owners.is_bound_to(row, identity)
        assert not owners.is_bound_to(row, wide)
        monkeypatch.setattr(owners, "_leads_to", lambda name, file: name == os.fsencode(path))
        assert owners.is_bound_to(row, wide)
        assert not owners.is_bound_to(row, identity._replace(filesystem_device=1))
