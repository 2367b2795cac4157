"""Holders and processes, against processes of our own."""

from __future__ import annotations

import fcntl
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from samehost.kernel import processes

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")

# Said by a child once it is up; it ends when its standard input does.
READY = "print('ready', flush=True); sys.stdin.read()"


def start(program, **options):
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    assert child.stdout.readline() == "ready\n"
    return child


def until(condition, seconds=10.0):
    """Waits for what shows only in /proc."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"


def as_nobody(function):
    """The function's result, called in a child that has become another user."""
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


def test_every_descriptor_of_every_process_is_found():
    left, right = socket.socketpair()
    with left, right, start(f"import sys; {READY}", pass_fds=[left.fileno()]) as child:
        copy = os.dup(left.fileno())
        found, _ = processes.holders()
        os.close(copy)
        ours = sorted(
            [
                processes.Holder(os.getpid(), left.fileno()),
                processes.Holder(os.getpid(), copy),
                processes.Holder(child.pid, left.fileno()),
            ]
        )
        assert found[os.fstat(left.fileno()).st_ino] == ours
        assert found[os.fstat(right.fileno()).st_ino] == [processes.Holder(os.getpid(), right.fileno())]
        child.stdin.close()


def test_processes_that_end_meanwhile_are_tolerated():
    _, before = processes.holders()
    # Three hundred processes, one after the other, each gone at once.
    storm = "i=0; while [ $i -lt 300 ]; do (exit); i=$((i+1)); done"
    with subprocess.Popen(["sh", "-c", storm]) as child:
        rounds = 0
        while child.poll() is None:
            _, unreadable = processes.holders()
            assert unreadable <= before
            for pid in processes.pids():
                processes.describe(pid)
            rounds += 1
    assert rounds > 1


@needs_root
def test_processes_of_others_are_counted_as_unreadable():
    left, right = socket.socketpair()
    with left, right:
        inode = os.fstat(left.fileno()).st_ino
        child_pid, (found, unreadable) = as_nobody(lambda: (os.getpid(), processes.holders()))
    holders = found.get(inode, [])
    assert {holder.pid for holder in holders} == {child_pid}, "only itself, by inheritance"
    assert unreadable >= 1, "its parent, at least"
    users = sum(1 for pid in processes.pids() if processes._may_have_descriptors(pid))
    assert unreadable <= users


def test_kernel_threads_and_ended_processes_have_no_descriptors():
    assert processes._may_have_descriptors(os.getpid())
    assert not processes._may_have_descriptors(2**31 - 1)
    if os.path.exists("/proc/2/stat") and not os.path.exists("/proc/2/exe"):
        assert not processes._may_have_descriptors(2)
    ended = os.fork()
    if ended == 0:
        os._exit(0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)  # a zombie now
    try:
        assert not processes._may_have_descriptors(ended)
    finally:
        os.waitpid(ended, 0)


def test_describe():
    one = processes.describe(os.getpid())
    assert one is not None
    assert one.pid == os.getpid()
    assert one.uid == os.geteuid()
    assert one.user == processes.user_name(os.geteuid())
    assert one.mount_namespace == os.stat("/proc/self/ns/mnt").st_ino
    with open("/proc/self/comm") as file:
        assert one.command == file.read().rstrip("\n")


@needs_root
def test_describe_another_user():
    # The effective user counts.
    program = f"import os, sys; os.setresuid(0, {NOBODY}, 0); {READY}"
    with start(program) as child:
        one = processes.describe(child.pid)
        child.stdin.close()
    assert one is not None
    assert one.uid == NOBODY


def test_a_command_of_any_bytes():
    program = f"import sys; open('/proc/self/comm', 'wb').write(b'\\n\\x1b[2J) \\xff'); {READY}"
    with start(program) as child:
        one = processes.describe(child.pid)
        held = processes._may_have_descriptors(child.pid)
        child.stdin.close()
    assert one is not None
    assert one.command == "\n\x1b[2J) \\xff"
    assert held


def test_nobody_is_described_as_none():
    assert processes.describe(2**31 - 1) is None


def test_names_that_do_not_exist():
    assert processes.user_name(2**32 - 2) is None
    assert processes.group_name(2**32 - 2) is None
    assert processes.user_name(0) == "root"
    assert processes.group_name(0) == "root"


def test_lock_holder():
    with tempfile.NamedTemporaryFile() as file:
        status = os.fstat(file.fileno())
        assert processes.lock_holder(status.st_dev, status.st_ino) is None
        program = f"import fcntl, sys\nfile = open({file.name!r})\nfcntl.flock(file, fcntl.LOCK_EX)\n" + READY
        with start(program) as child:
            assert processes.lock_holder(status.st_dev, status.st_ino) == child.pid
            # As on btrfs and overlayfs, where /proc/locks has another device than stat.
            assert processes.lock_holder(status.st_dev, status.st_ino + 1) is None
            assert processes.lock_holder(status.st_dev + 1, status.st_ino) is None
            assert processes._has_open(child.pid, status.st_dev, status.st_ino)
            assert not processes._has_open(child.pid, status.st_dev + 1, status.st_ino)
            child.stdin.close()
        assert processes.lock_holder(status.st_dev, status.st_ino) is None


def test_who_waits_for_a_lock_does_not_hold_it():
    with tempfile.NamedTemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status = os.fstat(file.fileno())
        program = (
            "import fcntl, sys, threading\n"
            f"file = open({file.name!r})\n"
            "threading.Thread(target=fcntl.flock, args=(file, fcntl.LOCK_EX)).start()\n" + READY
        )
        with start(program) as child:
            until(lambda: f"-> FLOCK  ADVISORY  WRITE {child.pid}" in locks())
            assert processes.lock_holder(status.st_dev, status.st_ino) == os.getpid()
            fcntl.flock(file, fcntl.LOCK_UN)
            # Between two holders there is a moment with none.
            until(lambda: processes.lock_holder(status.st_dev, status.st_ino) is not None)
            assert processes.lock_holder(status.st_dev, status.st_ino) == child.pid
            child.stdin.close()


def test_a_lock_of_another_kind_is_not_a_flock():
    with tempfile.NamedTemporaryFile() as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        status = os.fstat(file.fileno())
        assert processes.lock_holder(status.st_dev, status.st_ino) is None


def locks():
    with open("/proc/locks") as file:
        return file.read()
