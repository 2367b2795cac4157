"""A small service of every kind of method, in a process of its own, and a look at what it holds."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raw_clients import Answer, Frames
from support import Program, python, until

PROGRAM = """
import json, sys
from samehost import limits

settings = json.loads(sys.argv[2])
for name, value in settings["limits"].items():
    assert hasattr(limits, name)
    setattr(limits, name, value)

import asyncio, builtins, logging, os, resource, threading, time
from typing import Any
import msgspec
import samehost

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
service = samehost.Service("faults")
is_released = asyncio.Event()
told_threads = threading.Event()

class Tree(msgspec.Struct):
    inner: list["Tree"] = []
    up: "Tree | None" = None

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("even this text is secret")

class Declared(Exception):
    def __str__(self):
        raise RuntimeError("even this text is secret")

def say(*words):
    print(*words, flush=True)  # at once, and whole

@service.method
async def echo(value: Any) -> Any:
    return value

@service.method
async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number

@service.method
async def nap(seconds: float, value: Any = None) -> Any:
    await asyncio.sleep(seconds)
    return value

@service.method
def doze(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value

@service.method
async def add(left: int, right: int = 1, *, scale: int = 1) -> int:
    return (left + right) * scale

@service.method
async def grow(tree: Tree) -> str:
    return "grown"

@service.method
async def hang(name: str = "") -> None:
    say("began", name)
    try:
        await asyncio.sleep(3600)
    finally:
        say("ended", name, time.monotonic())

@service.method
async def grouped() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(3600))
        group.create_task(asyncio.sleep(3600))

@service.method
async def timed() -> None:
    async with asyncio.timeout(3600):
        await asyncio.wait_for(asyncio.sleep(3600), 3600)

@service.method
async def shielded() -> None:
    await asyncio.shield(asyncio.sleep(0.001))
    await asyncio.Event().wait()

@service.method
async def cleans_up() -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        return "cleaned"

@service.method
async def stubborn() -> str:
    while not is_released.is_set():
        try:
            await is_released.wait()
        except asyncio.CancelledError:
            pass
    return "at last"

@service.method
async def release() -> None:
    is_released.set()

@service.method
def hang_in_thread(name: str = "") -> str:
    say("began", name)
    told_threads.wait()
    say("ended", name, time.monotonic())
    return "at last"

@service.method
async def release_threads() -> None:
    told_threads.set()

@service.method(inline=True)
def block(seconds: float) -> None:
    say("blocked")
    time.sleep(seconds)

@service.method(inline=True)
def big(size: int) -> str:
    return "x" * size

@service.method
async def big_after_a_wait(size: int, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "x" * size

@service.method
async def starve() -> None:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3_000_000, resource.RLIM_INFINITY))  # less than a stack

@service.method
async def feed() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

@service.method(allow=samehost.allow(uid=54321))
async def for_others() -> str:
    return "let in"

def explode(what):
    secret = "the secret text"
    if what == "RecursionError":
        explode(what)
    if what == "Silent":
        raise Silent(secret)
    if what == "Declared":
        raise Declared(secret)
    if what == "chained":
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise RuntimeError(secret) from error
    if what == "unencodable":
        return {"secret": object()}
    if what == "empty":
        return msgspec.Raw(b"")
    if what == "deep":
        value = []
        for _ in range(100_000):
            value = [value]
        return value
    if what == "odd code":
        error = samehost.ServiceError("no")
        error.code = "\\u00fc"
        raise error
    raise (getattr(builtins, what, None) or getattr(asyncio, what))(secret)

@service.method(errors={Declared: "faults.declared"})
async def fail_at_once(what: str) -> Any:
    return explode(what)

@service.method(errors={Declared: "faults.declared"})
async def fail_after_a_wait(what: str) -> Any:
    await asyncio.sleep(0.001)
    return explode(what)

@service.method(errors={Declared: "faults.declared"})
def fail_in_thread(what: str) -> Any:
    return explode(what)

@service.method(inline=True, errors={Declared: "faults.declared"})
def fail_inline(what: str) -> Any:
    return explode(what)

if settings["service_uid"] is not None:
    service.allow = samehost.allow(uid=settings["service_uid"])
if settings["serve_uid"] is not None:
    settings["serve"]["allow"] = samehost.allow(uid=settings["serve_uid"])
if settings["serve_gid"] is not None:
    settings["serve"]["allow"] = samehost.allow(gid=settings["serve_gid"])
samehost.serve(service, sys.argv[1], ready=lambda: say("ready"), **settings["serve"])
"""


class Served:
    """The service's process.

    Attributes:
        path: of its socket.
        program: prints what its methods `say`.
    """

    def __init__(self, path: Path, program: Program, log: Path) -> None:
        self.path = path
        self.program = program
        self._log = log
        with Frames(path) as client:  # what is imported late is imported now
            for method, arguments in (("echo", [1]), ("doze", [0]), ("samehost.stats", {}), ("samehost.describe", {})):
                assert client.call(method, arguments).kind == "reply"
        self._descriptors = self._wait_for_few_descriptors()
        self._threads = self.status("Threads")

    def _wait_for_few_descriptors(self) -> list[str]:
        until(lambda: len(self.sockets()) == 0, "no connection is open")
        return self.descriptors()

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def descriptors(self) -> list[str]:
        """What it has open, without the numbers that differ from one socket to the next."""
        found = []
        for entry in Path(f"/proc/{self.program.pid}/fd").iterdir():
            try:
                found.append(os.readlink(entry).split(":")[0])
            except FileNotFoundError:  # it was closed just now
                found.append("gone")
        return sorted(found)

    def sockets(self) -> list[str]:
        """The sockets that are connected to its path."""
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
        return [line for line in lines if line.endswith(f" {self.path}") and line.split()[5] != "01"]  # which listens

    def status(self, name: str) -> int:
        """A number of /proc/PID/status; memory is in KiB."""
        lines = Path(f"/proc/{self.program.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def stats(self) -> dict[str, Any]:
        with Frames(self.path) as client:
            return client.call("samehost.stats").value

    def in_flight(self) -> int:
        return sum(figures["in_flight"] for figures in self.stats()["methods"].values())

    def assert_clean(self, *, new_threads: int = 0) -> None:
        """Wait until no call, connection, descriptor or thread is left that was not there at the beginning."""
        until(lambda: self.in_flight() == 0, "no call is in flight")
        until(lambda: self.sockets() == [], "no connection is open")
        until(lambda: self.descriptors() == self._descriptors, f"only {self._descriptors} are open")
        threads = self._threads + new_threads
        until(lambda: self.status("Threads") <= threads, f"at most {threads} threads are left")
        with Frames(self.path) as client:
            assert client.call("echo", ["alive"]) == Answer("reply", 1, "alive")

    def seconds_of_a_call(self) -> float:
        """How long a call of another client takes, which has nothing to do with the fault: the median of some."""
        taken = []
        with Frames(self.path) as client:
            for number in range(30):
                began = time.monotonic()
                assert client.call("double", [number]).value == 2 * number
                taken.append(time.monotonic() - began)
        return statistics.median(taken)

    def assert_others_are_served(self) -> None:
        assert self.seconds_of_a_call() < 0.01


@contextmanager
def start(
    place: Path,
    *,
    service_uid: int | None = None,
    serve_uid: int | None = None,
    serve_gid: int | None = None,
    limits: dict[str, float] | None = None,
    **serve: Any,
) -> Iterator[tuple[Program, Path, Path]]:
    """Serve in another process, until the end of the block; the process, its socket and its log.

    Args:
        place: a directory for the socket and the log.
        service_uid, serve_uid, serve_gid: who may connect, as the service and as `serve` say it.
        limits: values for `samehost.limits`.
        serve: as `samehost.serve` takes it.
    """
    settings = {
        "limits": limits or {},
        "serve": serve,
        "service_uid": service_uid,
        "serve_uid": serve_uid,
        "serve_gid": serve_gid,
    }
    path, log = place / "s", place / "log"
    with log.open("wb") as stderr:
        program = python(PROGRAM, str(path), json.dumps(settings), stderr=stderr)
    with program:
        until(lambda: program.process.poll() is not None or path.exists(), "it listens")
        assert program.process.poll() is None, log.read_text()
        assert program.line() == "ready"
        yield program, path, log


@contextmanager
def served(place: Path, **settings: Any) -> Iterator[Served]:
    """The same, for somebody who may connect."""
    with start(place, **settings) as (program, path, log):
        yield Served(path, program, log)
