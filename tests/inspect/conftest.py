"""Servers of other people's making, and children in other places, to inspect."""

from __future__ import annotations

import grp
import os
import pickle
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import pytest

NOBODY = 65534

# A child that has become another user may not be able to read the interpreter's files any more.
PRELOADED = (grp, pwd)

# A child that does what it is told, a line of Python at a time, and answers each with "done".
WORKER = """
import os, socket, sys
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Worker:
    """A process of its own that runs lines of Python."""

    def __init__(self, prefix=(), **options):
        self.child = subprocess.Popen(
            [*prefix, sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        assert self.child.stdout.readline() == "ready\n"
        self.pid = self.child.pid

    def do(self, line):
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        assert answer == "done\n", (line, answer)

    def listen(self, name, type="SOCK_STREAM", backlog=5):
        self.do(f"s = socket.socket(socket.AF_UNIX, socket.{type}); s.bind({name!r})")
        if type != "SOCK_DGRAM":
            self.do(f"s.listen({backlog})")

    def connect(self, name, type="SOCK_STREAM"):
        self.do(f"c = socket.socket(socket.AF_UNIX, socket.{type}); c.connect({name!r})")

    def close(self):
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()


def _until(condition, seconds=10.0):
    """Waits for what another program does and tells nobody."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
    return result


def _as_nobody(function):
    """The function's result, called in a child that has become another user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                result = function()
            except Exception as error:  # for the parent to raise
                result = error
            with os.fdopen(writer, "wb") as file:
                pickle.dump(result, file)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    result = pickle.loads(data)
    if isinstance(result, Exception):
        raise result
    return result


def _need(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture
def directory():
    """Short, and open to other users."""
    with tempfile.TemporaryDirectory(prefix="sh") as path:
        os.chmod(path, 0o755)
        yield path


@pytest.fixture
def worker():
    """Starts workers, which end with the test."""
    with ExitStack() as stack:

        def start(*prefix, **options):
            made = Worker(prefix, **options)
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture
def program():
    """Starts programs that are killed at the end."""
    with ExitStack() as stack:

        def start(*words, **options):
            _need(words[0])
            child = subprocess.Popen(words, **options)
            stack.callback(child.wait)
            stack.callback(child.kill)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stack.callback(stream.close)
            return child

        yield start


@pytest.fixture
def sockets():
    """Sockets of this process that are closed at the end."""
    with ExitStack() as stack:

        def make(type=socket.SOCK_STREAM, connect=None, bind=None):
            made = stack.enter_context(socket.socket(socket.AF_UNIX, type))
            if bind is not None:
                made.bind(bind)
            if connect is not None:
                made.connect(connect)
            return made

        yield make


@pytest.fixture
def until():
    return _until


@pytest.fixture
def as_nobody():
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    return _as_nobody


@pytest.fixture
def need():
    return _need


@pytest.fixture
def need_root():
    if os.geteuid() != 0:
        pytest.skip("needs root to make namespaces")
