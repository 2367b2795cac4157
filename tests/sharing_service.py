"""A service that takes and gives files and blobs, and its clients, each a process of its own that tells what it holds.

`sharing_service.py serve PATH SETTINGS` is the service; `threads PATH` and `asyncio PATH` are clients, which make the
calls that their standard input asks for, a line of JSON each, and print what came of each. A process that a fault has
killed, as SIGBUS would, says nothing more.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import io
import json
import logging
import os
import socket
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import samehost
from samehost import Blob, File, aio, limits
from samehost.aio import wire
from samehost.errors import Error
from samehost.kernel.arena import the_arena

NUMBER = 41
"""What is looked up with everything that must not have broken."""

service = samehost.Service("sharing")
kept: list[Any] = []
never = threading.Event()


# What a process holds.


def held() -> dict[str, Any]:
    """What this process has open and mapped; nothing that is kept for further use is counted."""
    gc.collect()
    the_arena().give_back()
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # what lists them
            continue
    # The anonymous inodes of a loop, and where standard input and the like lead, are there anyway.
    names = sorted(name.split(":")[0] for number, name in found if number > 2)
    inheritable = [number for number, _ in found if number > 2 and _is_inheritable(number)]
    return {
        "open": names,
        "mapped": len(mapped()),
        "arena_bytes": the_arena().used_bytes,
        "inheritable": inheritable,
        "threads": threading.active_count(),
    }


def mapped() -> list[str]:
    """The memory that it shares."""
    with open("/proc/self/maps") as file:
        return [line.split()[5] for line in file if "/memfd:" in line]


def _is_inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # closed meanwhile
        return False


def memory_kib() -> int:
    """What it has for itself."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def checksum(data: Any) -> int:
    return zlib.crc32(data)


def bytes_of(size: int, seed: int) -> bytes:
    """Bytes that nothing else has."""
    return (b"%d %d " % (size, seed) * (size // 3 + 1))[:size]


def told(value: Any) -> Any:
    """What a client says of a value, which is let go of."""
    if isinstance(value, Blob):
        with value:
            return ["blob", len(value), checksum(value.view), value.view.readonly]
    if isinstance(value, bytes):
        return ["bytes", len(value), checksum(value)]
    if isinstance(value, File):
        with value:
            return ["file", os.fstat(value.fileno()).st_ino, os.get_inheritable(value.fileno())]
    if isinstance(value, io.IOBase):
        with value:
            return ["open", type(value).__name__, value.read().decode(), os.get_inheritable(value.fileno())]
    if isinstance(value, socket.socket):
        with value:
            return ["socket", value.recv(1000).decode(), value.get_inheritable()]
    if isinstance(value, list):
        return [told(inner) for inner in value]
    if isinstance(value, dict):
        return {name: told(inner) for name, inner in value.items()}
    return value


# Files.


def inode_of(file: Any) -> int:
    assert not os.get_inheritable(file.fileno())
    return os.fstat(file.fileno()).st_ino


def new_file(content: bytes = b"") -> File:
    descriptor = os.memfd_create("given")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return File(descriptor)


@service.method
async def inode(file: File) -> int:
    return inode_of(file)


@service.method
def inode_in_thread(file: File) -> int:
    return inode_of(file)


@service.method
async def inodes(files: list[File]) -> list[int]:
    return [inode_of(file) for file in files]


@service.method
async def inodes_by_name(files: dict[str, list[File]], number: int) -> dict[str, list[int]]:
    assert number == NUMBER
    return {name: [inode_of(file) for file in inner] for name, inner in files.items()}


@service.method
def read(file: BinaryIO) -> bytes:
    assert not os.get_inheritable(file.fileno())
    return file.read()


@service.method
def send_into(connected: socket.socket, text: str) -> int:
    assert not os.get_inheritable(connected.fileno())
    return connected.send(text.encode())


@service.method
async def hand_back(file: File) -> File:
    return File(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))


@service.method
async def hand_on(file: File) -> File:
    return File(file.detach())


@service.method
def give(count: int) -> list[File]:
    return [new_file(b"%d" % number) for number in range(count)]


@service.method
def give_open(text: str) -> BinaryIO:
    return new_file(text.encode()).open("rb")


@service.method
def give_socket(text: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours:
        ours.send(text.encode())
    return theirs


@service.method
async def hand_out(count: int) -> AsyncIterator[File]:
    for number in range(count):
        yield new_file(b"%d" % number)


@service.method
def hand_out_in_thread(count: int) -> Iterator[File]:
    for number in range(count):
        yield new_file(b"%d" % number)


@service.method
async def inodes_in(files: AsyncIterator[File]) -> list[int]:
    found = []
    async for file in files:
        with file:
            found.append(inode_of(file))
    return found


@service.method
def inodes_of_each(files: Iterator[File]) -> Iterator[int]:
    for file in files:
        with file:
            yield inode_of(file)


@service.method
async def hold(files: list[File]) -> None:
    await asyncio.sleep(3600)


@service.method
async def fail_with(file: File) -> File:
    raise samehost.ServiceError("no")


# Blobs.


@service.method(name="sum")
async def sum_of(data: Blob) -> int:
    return checksum(data.view)


@service.method
def sum_often(data: Blob, times: int) -> int:
    """Read all of it again and again, while its sender may do what it likes."""
    found = 0
    for _ in range(times):
        found = checksum(data.view)
    return found


@service.method
async def sum_bytes(data: bytes) -> int:
    return checksum(data)


@service.method
async def sum_any(value: Any) -> Any:
    return told(value)


@service.method
async def sums_in(items: AsyncIterator[Blob]) -> list[int]:
    return [checksum(item.view) async for item in items]


@service.method
async def make(size: int, seed: int) -> Blob:
    blob = samehost.allocate(size)
    blob.view[:] = bytes_of(size, seed)
    return blob


@service.method
async def make_bytes(size: int, seed: int) -> bytes:
    return bytes_of(size, seed)


@service.method
async def make_many(size: int, count: int) -> AsyncIterator[Blob]:
    for seed in range(count):
        yield await make(size, seed)


@service.method
async def keep(data: Blob) -> int:
    kept.append(data)
    return checksum(data.view)


@service.method
async def sums_kept() -> list[int]:
    return [checksum(data.view) for data in kept]


@service.method
async def drop_kept() -> None:
    kept.clear()


# Anything.


@service.method
async def double(number: int) -> int:
    return 2 * number


@service.method(inline=True)
def make_text(size: int) -> str:
    return "x" * size


@service.method
async def holds() -> dict[str, Any]:
    return held()


@service.method
async def kib() -> int:
    return memory_kib()


plain = samehost.Service("plain")
plain.method(double)
plain.method(holds)


@plain.method
async def length(text: str) -> int:
    return len(text)


def serve(path: str, settings: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO)
    if settings.pop("passes_files", False):  # as kernels do before Linux 6.16
        wire.pass_no_files = lambda connected: False
    served = plain if settings.pop("plain", False) else service
    mode = settings.pop("mode", 0o600)
    vars(limits).update(settings)
    everybody = samehost.ANYONE if mode == 0o666 else None
    samehost.serve(served, path, mode=mode, allow=everybody, ready=lambda: print("ready", flush=True))


# Clients that do as they are told.


class InThreads(samehost.Client):
    def make(self, size: int, seed: int) -> Blob:
        raise NotImplementedError

    def make_bytes(self, size: int, seed: int) -> bytes:
        raise NotImplementedError

    def give(self, count: int) -> list[File]:
        raise NotImplementedError

    def give_open(self, text: str) -> BinaryIO:
        raise NotImplementedError

    def give_socket(self, text: str) -> socket.socket:
        raise NotImplementedError

    def double(self, number: int) -> int:
        raise NotImplementedError

    def make_many(self, size: int, count: int) -> Iterator[Blob]:
        raise NotImplementedError


class InAsyncio(aio.Client):
    async def make(self, size: int, seed: int) -> Blob:
        raise NotImplementedError

    async def make_bytes(self, size: int, seed: int) -> bytes:
        raise NotImplementedError

    async def give(self, count: int) -> list[File]:
        raise NotImplementedError

    async def give_open(self, text: str) -> BinaryIO:
        raise NotImplementedError

    async def give_socket(self, text: str) -> socket.socket:
        raise NotImplementedError

    async def double(self, number: int) -> int:
        raise NotImplementedError

    def make_many(self, size: int, count: int) -> AsyncIterator[Blob]:
        raise NotImplementedError


def value_of(told: Any) -> Any:
    """An argument: what is an object here stands for a blob, bytes, an open file, or a map."""
    match told:
        case {"blob": size, "seed": seed}:
            blob = samehost.allocate(size)
            blob.view[:] = bytes_of(size, seed)
            return blob
        case {"bytes": size, "seed": seed}:
            return bytes_of(size, seed)
        case {"fd": number}:
            return open(number, "rb", buffering=0, closefd=False)
        case dict():
            return {name: value_of(inner) for name, inner in told.items()}
        case list():
            return [value_of(inner) for inner in told]
    return told


def used(value: Any, arguments: list[Any]) -> Any:
    """What to say of a value, which is kept if the last argument says so."""
    if "keep" not in arguments:
        return told(value)
    kept.append(value)
    return checksum(value.view)


def values_of(arguments: list[Any]) -> list[Any]:
    return [value_of(value) for value in arguments if value != "keep"]


OWN: dict[str, Callable[[], Any]] = {
    "holds": held,
    "kib": memory_kib,
    "maps": mapped,
    "sums_kept": lambda: [checksum(data.view) for data in kept],
    "drop_kept": kept.clear,
}
"""What is asked of a client that is no call."""


def failed(error: Error) -> dict[str, str]:
    return {"error": type(error).__name__, "text": str(error)}


def say(found: Any) -> None:
    print(json.dumps(found), flush=True)


def act_in_thread(client: samehost.Client, what: str, arguments: list[Any]) -> Any:
    try:
        found = client.call(what, *values_of(arguments))
        if isinstance(found, samehost.Stream):
            return [used(item, arguments) for item in found]
        return used(found, arguments)
    except Error as error:
        return failed(error)


async def act_in_asyncio(client: aio.Client, what: str, arguments: list[Any]) -> Any:
    try:
        found = await client.call(what, *values_of(arguments))
        if isinstance(found, aio.Stream):
            return [used(item, arguments) async for item in found]
        return used(found, arguments)
    except Error as error:
        return failed(error)


def run_threads(path: str) -> None:
    with samehost.connect(path, InThreads, trust=samehost.ANYONE) as client:
        print("ready", flush=True)
        for line in sys.stdin:
            say(done_in_thread(client, *json.loads(line)))


def done_in_thread(client: samehost.Client, what: str, *arguments: Any) -> Any:
    if what == "close":
        return client.close()
    return OWN[what]() if what in OWN else act_in_thread(client, what, list(arguments))


async def run_asyncio(path: str) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        async with aio.connect(path, InAsyncio, trust=samehost.ANYONE) as client:
            print("ready", flush=True)
            while line := await loop.run_in_executor(pool, sys.stdin.readline):
                say(await done_in_asyncio(client, *json.loads(line)))


async def done_in_asyncio(client: aio.Client, what: str, *arguments: Any) -> Any:
    if what == "close":
        return client.close()
    return OWN[what]() if what in OWN else await act_in_asyncio(client, what, list(arguments))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], json.loads(sys.argv[3]))
    elif sys.argv[1] == "threads":
        run_threads(sys.argv[2])
    else:
        asyncio.run(run_asyncio(sys.argv[2]))
