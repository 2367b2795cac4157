"""What many tests need: programs with deadlines, other users, and a count of what is left over."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

DEADLINE = 20.0
"""Seconds after which a test gives up waiting for something that should happen at once."""

os.environ.pop("PYTHONUNBUFFERED", None)  # users do not have it, and it hides what a buffer does
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # nor this, by which each of a thousand programs compiles all it imports

NOBODY = 65534
"""A uid, and a gid, that is neither root nor ours."""

SAMEHOST = [sys.executable, "-m", "samehost"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: needs root, to act as another user")


def needs_program(name: str) -> pytest.MarkDecorator:
    """Skip, loudly, where a program is missing; `tools/system-packages` installs it."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"SKIPPED LOUDLY: {name} is not installed")


class Program:
    """A child process whose output is read line by line, each within a deadline; killed at the end of a `with`."""

    def __init__(self, command: list[str], **options: object) -> None:
        settings: dict[str, object] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **{**settings, **options})  # type: ignore[call-overload]
        self._rest = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, seconds: float = DEADLINE) -> str:
        """The next line of standard output, without its newline."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            assert ready, f"{self.process.args} said nothing for {seconds} s"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"{self.process.args} ended early: {self.errors()}"
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for it to end by itself, and give its exit code."""
        return self.process.wait(DEADLINE)

    def errors(self) -> str:
        """All of its standard error, once it has ended."""
        self.process.wait(DEADLINE)
        return self.process.stderr.read().decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def python(code: str, *arguments: str, **options: object) -> Program:
    """A Python program."""
    return Program([sys.executable, "-c", textwrap.dedent(code), *arguments], **options)


_BECOME = """
import os, sys
# All that is needed later, because the other user may not be able to read it.
import asyncio, logging, pwd, grp, select, socket, struct, threading, time, json, traceback
import samehost, samehost.aio, samehost.errors, samehost.blocking.client, samehost.aio.client, samehost.aio.main
import samehost.blocking.dial, samehost.blocking.listener, samehost.cli, samehost.cli.listen, samehost.cli.send
import samehost.cli.inspect
pwd.getpwall(), grp.getgrall()
os.setgroups({groups!r}); os.setgid({gid}); os.setuid({uid})
"""


def python_as(
    uid: int, code: str, *arguments: str, gid: int | None = None, groups: tuple[int, ...] = (), **options: object
) -> Program:
    """A Python program that becomes another user once samehost is imported."""
    become = _BECOME.format(uid=uid, gid=uid if gid is None else gid, groups=groups)
    return python(become + textwrap.dedent(code), *arguments, **options)


@contextlib.contextmanager
def listening(address: object, *options: str, **settings: object) -> Iterator[Program]:
    """`samehost listen`, once it says that it listens."""
    with Program([*SAMEHOST, "listen", str(address), *options], **settings) as server:
        assert server.line() == f"Listening on {address}"
        yield server


def send(address: object, *words: str, input: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    """`samehost send`, to its end."""
    return run([*SAMEHOST, "send", str(address), *words], input, **options)


def run(command: list[str], input: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, within the deadline."""
    return subprocess.run(command, input=input, capture_output=True, timeout=DEADLINE, check=False, **options)


def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait for something outside of our reach, which no event announces, such as another process's state."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def descriptors() -> dict[int, str]:
    """The open descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children() -> set[int]:
    """The pids of our child processes, dead ones that nobody waited for included."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


@contextlib.contextmanager
def room_for_descriptors(count: int) -> Iterator[None]:
    """No more than so many further descriptors can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if a descriptor, thread or child process is left that was not there before."""
    before = descriptors(), set(threading.enumerate()), children()
    yield
    end = time.monotonic() + 5
    while True:
        if "samehost.kernel.arena" in sys.modules:  # what it keeps for further blobs is no leak
            sys.modules["samehost.kernel.arena"].the_arena().give_back()
        left = (
            {number: name for number, name in descriptors().items() if before[0].get(number) != name},
            set(threading.enumerate()) - before[1],
            children() - before[2],
        )
        if not any(left) or time.monotonic() > end:
            break
        time.sleep(0.005)  # a thread that has done its work may still be on its way out
    assert left == ({}, set(), set()), f"left over: {left}"


def kernel_passes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a kernel that cannot be told to refuse files (SO_PASSRIGHTS), as most are before Linux 6.16."""
    for module in ("samehost.aio.wire", "samehost.blocking.link"):
        monkeypatch.setattr(f"{module}.pass_no_files", lambda connected: False)


def kill(process: Program) -> None:
    """SIGKILL, and wait until it is gone."""
    process.signal(signal.SIGKILL)
    process.end()
