"""The faults and attacks of who shares memory, each driven by real memory on real sockets; a number is the row.

The process that reads is another one, so that a test notices if memory that goes away has killed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from raw_clients import CALL, ERROR, GOAWAY, PING, PONG, REPLY
from raw_sharing import (
    ARENA,
    AS_BYTES,
    FILES,
    FUTURE_WRITE,
    GROW,
    ITEM,
    RELEASE,
    SEAL,
    SEALED,
    SHRINK,
    STREAM,
    WRITE,
    Arena,
    RawCaller,
    RawEnd,
    accepted,
    arena_frame,
    frame,
    new_memory,
    raw_server,
    release_frame,
    reply_frame,
    retire_frame,
    sealed_at,
    share_at,
)
from shared import CLIENTS, Client, Shared, as_nobody, client_of, shared
from sharing_service import bytes_of, checksum
from support import DEADLINE, NOBODY, kill, needs_root, until

import samehost
from samehost import aio, limits
from samehost.errors import ConnectionClosed, OutcomeUnknown

PAGE = mmap.PAGESIZE
SIZE = 300_000
CONTENT = bytes_of(SIZE, 7)
SUM = checksum(CONTENT)
ALL_SEALS = SHRINK | GROW | WRITE

in_both_clients = pytest.mark.parametrize("kind", CLIENTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One service for all attacks, as none of them may do it any harm."""
    with shared(tmp_path_factory.mktemp("s")) as found:
        yield found


@pytest.fixture(autouse=True)
def _clean_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").assert_clean()


@contextlib.contextmanager
def closing(*numbers: int) -> Iterator[None]:
    try:
        yield
    finally:
        for number in numbers:
            os.close(number)


# 25: the wrong kind of file, missing seals, the wrong size


def a_pipe() -> int:
    ends = os.pipe()
    os.close(ends[1])
    return ends[0]


def a_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def a_file() -> int:
    descriptor = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    os.write(descriptor, CONTENT)
    return descriptor


def a_file_in_memory() -> int:
    descriptor = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.write(descriptor, CONTENT)
    return descriptor


def huge_pages() -> int:
    descriptor = os.memfd_create("attack", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(descriptor, 1 << 21)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, ALL_SEALS)
    return descriptor


KINDS: dict[str, Callable[[], int]] = {
    "pipe": a_pipe,
    "socket": a_socket,
    "file on a disk": a_file,
    "file in memory": a_file_in_memory,
    "/dev/zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "directory": lambda: os.open("/tmp", os.O_RDONLY),
    "path alone": lambda: os.open("/etc/passwd", os.O_PATH),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "eventfd": lambda: os.eventfd(0),
    "huge pages": huge_pages,
    "memory that cannot be sealed": lambda: os.memfd_create("attack"),
    "no seals": lambda: new_memory(CONTENT),
    "without SHRINK": lambda: new_memory(CONTENT, seals=GROW | WRITE),
    "without GROW": lambda: new_memory(CONTENT, seals=SHRINK | WRITE),
    "without WRITE": lambda: new_memory(CONTENT, seals=SHRINK | GROW),
    "an arena's seals": lambda: new_memory(CONTENT, seals=SHRINK | GROW | FUTURE_WRITE | SEAL),
    "truncated before": lambda: new_memory(CONTENT, size=0, seals=ALL_SEALS),
    "a byte short": lambda: new_memory(CONTENT[:-1], seals=ALL_SEALS),
}

BEYOND = {
    "a byte too long": (0, SIZE + 1),
    "from behind the end": (SIZE, 1),
    "a page behind": (PAGE, SIZE),
    "negative offset": (2**64 - 1, 2),
    "overflow": (2**64 - PAGE, PAGE + 1),
    "sign": (2**63, 1),
    "all there is": (0, 2**64 - 1),
    "too long": (0, limits.BLOB_BYTES_MAX + 1),
}


def attack_of(name: str) -> tuple[int, int, int]:
    """A descriptor, an offset and a length."""
    try:
        if name in KINDS:
            return KINDS[name](), 0, SIZE
    except OSError as error:
        pytest.skip(f"SKIPPED LOUDLY: {name}: {error}")
    size = 2 * limits.BLOB_BYTES_MAX if name == "too long" else None
    return new_memory(CONTENT, size, ALL_SEALS), *BEYOND[name]


@pytest.mark.parametrize("name", [*KINDS, *BEYOND])
def test_25_sealed_memory_that_is_none_is_refused_and_the_connection_lives(server: Shared, name: str) -> None:
    memory, offset, length = attack_of(name)
    with closing(memory), RawCaller(server.path) as caller:
        for method, flags in (("sum", 0), ("sum_bytes", AS_BYTES), ("sum_any", 0)):
            found = caller.call(method, [sealed_at(0, offset, length, flags)], [memory])
            assert (found.kind, found.code) == (ERROR, "bad_blob"), (method, found)
        caller.is_served()


def test_25_sealed_memory_is_read(server: Shared) -> None:
    memory = new_memory(CONTENT, seals=ALL_SEALS)
    with closing(memory), RawCaller(server.path) as caller:
        assert caller.call("sum", [sealed_at(0, 0, SIZE)], [memory]).value == SUM
        assert caller.call("sum", [sealed_at(0, PAGE + 1, 10)], [memory]).value == checksum(CONTENT[PAGE + 1 :][:10])
        assert caller.call("sum", [sealed_at(0, SIZE, 0)], [memory]).value == checksum(b"")
        assert caller.call("sum_bytes", [sealed_at(0, 0, SIZE, AS_BYTES)], [memory]).value == SUM


ODD_VALUES = {
    "a position that did not come": ([sealed_at(1, 0, SIZE)], 1),
    "no position came": ([sealed_at(0, 0, SIZE)], 0),
    "used twice": ([[sealed_at(0, 0, SIZE), sealed_at(0, 0, SIZE)]], 1),
    "of another length": ([msgspec.msgpack.Ext(2, b"\0" * 23)], 1),
    "a file": ([msgspec.msgpack.Ext(1, b"\0")], 1),
    "no extension at all": ([5], 1),
}


@pytest.mark.parametrize("name", ODD_VALUES)
def test_25_references_to_what_did_not_come_are_of_the_wrong_type(server: Shared, name: str) -> None:
    arguments, count = ODD_VALUES[name]
    memory = new_memory(CONTENT, seals=ALL_SEALS)
    with closing(memory), RawCaller(server.path) as caller:
        method = "sum_any" if name == "used twice" else "sum"
        found = caller.call(method, arguments, [memory] * count)
        assert (found.kind, found.code) == (ERROR, "invalid_arguments"), found.message
        caller.is_served()


@in_both_clients
def test_25_a_result_in_such_memory_is_refused_by_a_client(place: Path, kind: str) -> None:
    with raw_server(place / "s") as listener, client_of(kind, place / "s") as client, accepted(listener) as server:
        assert client.program.line() == "ready"
        before = client.do("holds")
        for name in [*KINDS, *BEYOND]:
            memory, offset, length = attack_of(name)
            with closing(memory):
                for method in ("make", "make_bytes", "unknown"):
                    client.begin(method, 1, 2)
                    call = server.next()
                    server.send(reply_frame(call.call_id, sealed_at(0, offset, length), 1), [memory])
                    assert client.done()["error"] == "BadBlob", (name, method)
        client.begin("double", 1)
        server.send(reply_frame(server.next().call_id, 2))
        assert client.done() == 2
        assert client.do("holds") == before


# 25 and 26: arenas


@pytest.fixture
def caller(server: Shared) -> Iterator[RawCaller]:
    with RawCaller(server.path) as found:
        yield found


def pass_arena(end: RawEnd, arena: Arena, number: int = 1) -> None:
    """Send it, and keep only the memory."""
    end.send(arena_frame(number, arena.size), [arena.memory, arena.lease])
    arena.close_lease()


def is_hung_up(arena: Arena, seconds: float = DEADLINE) -> bool:
    """Whether all copies of the lease are closed."""
    poll = select.poll()
    poll.register(arena.kept, 0)
    return bool(poll.poll(1000 * seconds))


ARENA_SIZE = 1 << 20


def test_26_memory_that_its_sender_scribbles_in_and_cuts_short_never_kills_the_reader(
    server: Shared, caller: RawCaller
) -> None:
    with Arena(ARENA_SIZE, seals=SHRINK | GROW) as arena:
        pass_arena(caller, arena)
        is_over = threading.Event()

        def harm() -> None:
            view = memoryview(arena.mapping)
            with view:
                for number in range(1 << 30):
                    if is_over.is_set():
                        return
                    view[:] = bytes([number & 255]) * ARENA_SIZE
                    for size in (0, PAGE, ARENA_SIZE - PAGE, 2 * ARENA_SIZE):
                        with pytest.raises(PermissionError):
                            os.ftruncate(arena.memory, size)
                    punch_hole(arena.memory, ARENA_SIZE)

        harming = threading.Thread(target=harm)
        harming.start()
        try:
            for share in range(1, 200):
                found = caller.call("sum_often", [share_at(1, 0, ARENA_SIZE, share), 5])
                assert found.kind == REPLY, found.message
                text = caller.call("sum_bytes", [share_at(1, 0, ARENA_SIZE, 1000 + share, AS_BYTES)])
                assert text.kind == REPLY, text.message
        finally:
            is_over.set()
            harming.join()
        caller.is_served()


def punch_hole(descriptor: int, size: int) -> None:
    """Have the kernel forget the pages, fallocate(2); it may say no."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate(descriptor, 0x03, ctypes.c_long(0), ctypes.c_long(size))


@pytest.mark.parametrize("how", ["before", "after"])
def test_26_memory_that_can_be_cut_short_is_refused_before_it_is_mapped(server: Shared, how: str) -> None:
    memory = new_memory(CONTENT)
    with closing(memory), RawCaller(server.path) as caller:
        if how == "before":
            os.ftruncate(memory, 10)
        call_id = caller.begin("sum_often", [sealed_at(0, 0, SIZE), 1000], [memory])
        if how == "after":
            os.ftruncate(memory, 0)
        found = caller.expect(ERROR)
        assert (found.call_id, found.code) == (call_id, "bad_blob")


BAD_ARENAS: dict[str, tuple[Callable[[], int], int]] = {
    "no seals": (lambda: new_memory(size=ARENA_SIZE), ARENA_SIZE),
    "without SHRINK": (lambda: new_memory(size=ARENA_SIZE, seals=GROW | FUTURE_WRITE), ARENA_SIZE),
    "without GROW": (lambda: new_memory(size=ARENA_SIZE, seals=SHRINK | FUTURE_WRITE), ARENA_SIZE),
    "smaller than it says": (lambda: new_memory(size=ARENA_SIZE - PAGE, seals=SHRINK | GROW), ARENA_SIZE),
    "larger than it says": (lambda: new_memory(size=ARENA_SIZE + PAGE, seals=SHRINK | GROW), ARENA_SIZE),
    "truncated before": (lambda: new_memory(size=0, seals=SHRINK | GROW), ARENA_SIZE),
    "pipe": (a_pipe, ARENA_SIZE),
    "socket": (a_socket, ARENA_SIZE),
    "file on a disk": (a_file, SIZE),
    "/dev/zero": (KINDS["/dev/zero"], ARENA_SIZE),
    "directory": (KINDS["directory"], 4096),
    "path alone": (KINDS["path alone"], 4096),
}


@pytest.mark.parametrize("name", BAD_ARENAS)
def test_25_an_arena_that_is_none_ends_the_connection(server: Shared, caller: RawCaller, name: str) -> None:
    make, size = BAD_ARENAS[name]
    memory, lease = make(), a_pipe()
    with closing(memory, lease):
        caller.send(arena_frame(1, size), [memory, lease])
        caller.expect_end("bad_blob")


def no_memory_at_all(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, ARENA_SIZE, 0))
    return "unexpected_descriptors"


def one_descriptor(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, ARENA_SIZE, 1), [arena.memory])
    return "unexpected_descriptors"


def three_descriptors(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, ARENA_SIZE, 3), [arena.memory, arena.lease, arena.lease])
    return "unexpected_descriptors"


def fewer_than_announced(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, ARENA_SIZE), [arena.memory])
    return "unexpected_descriptors"


def too_large(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, limits.BLOB_BYTES_MAX + 1), [arena.memory, arena.lease])
    return "protocol_error"


def empty(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, 0), [arena.memory, arena.lease])
    return "protocol_error"


def twice(caller: RawCaller, arena: Arena) -> str:
    for _ in range(2):
        caller.send(arena_frame(1, ARENA_SIZE), [arena.memory, arena.lease])
    return "protocol_error"


def one_too_many(caller: RawCaller, arena: Arena) -> str:
    for number in range(limits.ARENAS_MAX + 1):
        caller.send(arena_frame(number, ARENA_SIZE), [arena.memory, arena.lease])
    return "protocol_error"


def release_before_any(caller: RawCaller, arena: Arena) -> str:
    caller.send(release_frame(1))
    return "protocol_error"


def release_of_what_is_not_out(caller: RawCaller, arena: Arena) -> str:
    found = caller.begin("make", [SIZE, 1])
    caller.expect(ARENA)
    [_, _, share] = shares_of(caller.expect(REPLY))
    assert found
    caller.send(release_frame(share + 1))
    return "protocol_error"


def release_twice(caller: RawCaller, arena: Arena) -> str:
    caller.begin("make", [SIZE, 1])
    caller.expect(ARENA)
    [_, _, share] = shares_of(caller.expect(REPLY))
    caller.send(release_frame(share, share))
    return "protocol_error"


def retire_of_what_was_not_passed(caller: RawCaller, arena: Arena) -> str:
    caller.send(retire_frame(1))
    return "protocol_error"


def retire_twice(caller: RawCaller, arena: Arena) -> str:
    caller.send(arena_frame(1, ARENA_SIZE), [arena.memory, arena.lease])
    caller.send(retire_frame(1) * 2)
    return "protocol_error"


def too_many_releases(caller: RawCaller, arena: Arena) -> str:
    caller.send(release_frame(*range(limits.RELEASES_PER_FRAME_MAX + 1)))
    return "too_large"


ARENA_FAULTS = [
    no_memory_at_all,
    one_descriptor,
    three_descriptors,
    fewer_than_announced,
    too_large,
    empty,
    twice,
    one_too_many,
    release_before_any,
    release_of_what_is_not_out,
    release_twice,
    retire_of_what_was_not_passed,
    retire_twice,
    too_many_releases,
]


def shares_of(found: Any) -> tuple[int, int, int]:
    """Arena, offset and share of a reply that is a blob in one."""
    assert found.value.code == 3, found.value
    arena, _, offset, _, share = struct.unpack("<IB3xQQQ", found.value.data)
    return arena, offset, share


@pytest.mark.parametrize("fault", ARENA_FAULTS, ids=lambda fault: fault.__name__)
def test_25_a_fault_with_arenas_ends_the_connection(
    server: Shared, caller: RawCaller, fault: Callable[[RawCaller, Arena], str]
) -> None:
    with Arena(ARENA_SIZE) as arena:
        code = fault(caller, arena)
        caller.expect_end(code)
        arena.close_lease()
        assert is_hung_up(arena)


def test_25_an_arena_without_the_feature_ends_the_connection(place: Path) -> None:
    with shared(place, plain=True, passes_files=True) as server:
        for sent in ("arena", "release", "retire"):
            with Arena(ARENA_SIZE) as arena, RawCaller(server.path) as caller:
                if sent == "arena":
                    with contextlib.suppress(PermissionError):
                        caller.send(arena_frame(1, ARENA_SIZE), [arena.memory, arena.lease])
                else:
                    caller.send(release_frame(1) if sent == "release" else retire_frame(1))
                told = [found.code for found in caller.rest() if found.kind == GOAWAY]
                assert told in ([], ["protocol_error"])  # files end it without a word, as nothing said whose they are
        server.assert_clean()


OUTSIDE = {
    "arena never passed": (2, 0, PAGE),
    "a byte too long": (1, 0, ARENA_SIZE + 1),
    "behind the end": (1, ARENA_SIZE, 1),
    "overflow": (1, 2**64 - PAGE, PAGE + 1),
    "all there is": (1, 0, 2**64 - 1),
    "sign": (1, 2**63, 1),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_25_a_blob_outside_its_arena_is_refused_and_the_connection_lives(
    server: Shared, caller: RawCaller, name: str
) -> None:
    number, offset, length = OUTSIDE[name]
    with Arena(ARENA_SIZE) as arena:
        pass_arena(caller, arena)
        for share, method in enumerate(("sum", "sum_bytes", "sum_any"), 1):
            found = caller.call(method, [share_at(number, offset, length, share)])
            assert (found.kind, found.code) == (ERROR, "bad_blob")
        caller.is_served()
        caller.send(retire_frame(1))
        assert is_hung_up(arena)


def test_25_before_any_arena_a_blob_in_one_is_refused(server: Shared, caller: RawCaller) -> None:
    found = caller.call("sum", [share_at(1, 0, 1, 1)])
    assert (found.kind, found.code in ("bad_blob", "invalid_arguments")) == (ERROR, True)
    caller.is_served()


def test_25_a_share_twice_in_one_message_is_of_the_wrong_type_and_comes_back_once(
    server: Shared, caller: RawCaller
) -> None:
    with Arena(ARENA_SIZE) as arena:
        pass_arena(caller, arena)
        found = caller.call("sum_any", [[share_at(1, 0, 10, 5), share_at(1, 0, 10, 5)]])
        assert found.code == "invalid_arguments"
        caller.is_served()
        wait_for_releases(caller, [5])
        # In two messages it is out twice, and comes back twice.
        for _ in range(2):
            assert caller.call("sum", [share_at(1, 0, 10, 6)]).value == checksum(bytes(10))
        wait_for_releases(caller, [5, 6, 6])


def wait_for_releases(caller: RawCaller, shares: list[int]) -> None:
    while len(caller.released) < len(shares):
        caller.expect(RELEASE)
    assert caller.released == shares
    caller.is_served()
    assert caller.released == shares


@in_both_clients
@pytest.mark.parametrize("name", BAD_ARENAS)
def test_25_an_arena_of_a_server_that_is_none_ends_the_connection(place: Path, kind: str, name: str) -> None:
    make, size = BAD_ARENAS[name]
    memory, lease = make(), a_pipe()
    with raw_server(place / "s") as listener, client_of(kind, place / "s") as client, accepted(listener) as server:
        assert client.program.line() == "ready"
        before = client.do("holds")
        client.begin("make", 1, 2)
        server.next()
        with closing(memory, lease):
            server.send(arena_frame(1, size), [memory, lease])
            assert client.done()["error"] == "OutcomeUnknown"
        server.expect_end("bad_blob")
        assert_no_more(client, before)


def assert_no_more(client: Client, before: dict[str, Any]) -> None:
    """See that a client holds nothing more than at first; its connection may be gone."""
    after = client.do("holds")
    missing = list(after["open"])
    for name in before["open"]:
        if name in missing:
            missing.remove(name)
    assert missing == []
    assert (after["mapped"], after["arena_bytes"], after["inheritable"]) == (before["mapped"], 0, [])


@in_both_clients
def test_25_and_26_what_a_server_says_of_its_memory_is_checked(place: Path, kind: str) -> None:
    with raw_server(place / "s") as listener, client_of(kind, place / "s") as client, accepted(listener) as server:
        assert client.program.line() == "ready"
        before = client.do("holds")
        client.begin("double", 1)
        server.send(reply_frame(server.next().call_id, 2))
        assert client.done() == 2
        with Arena(ARENA_SIZE, seals=SHRINK | GROW) as arena:
            pass_arena(server, arena)
            for share, (number, offset, length) in enumerate(OUTSIDE.values(), 1):
                for method, flags in (("make", 0), ("make_bytes", AS_BYTES), ("unknown", 0)):
                    client.begin(method, 1, 2)
                    value = share_at(number, offset, length, 10 * share + flags, flags)
                    server.send(reply_frame(call_of(server), value))
                    assert client.done()["error"] == "BadBlob"
            client.begin("make", 1, 2)
            value = share_at(1, 0, 10, 1)
            server.send(reply_frame(call_of(server), [value, value]))
            assert client.done()["error"] == "InvalidResult"
            # It changes and forgets what is being read, and cannot cut it short.
            for share in range(1000, 1050):
                client.begin("make_bytes", 1, 2)
                server.send(reply_frame(call_of(server), share_at(1, 0, ARENA_SIZE, share, AS_BYTES)))
                for number in range(3):
                    arena.mapping[:] = bytes([number]) * ARENA_SIZE
                    punch_hole(arena.memory, ARENA_SIZE)
                with pytest.raises(PermissionError):
                    os.ftruncate(arena.memory, 0)
                assert client.done()[:2] == ["bytes", ARENA_SIZE]
            server.send(retire_frame(1))
            client.begin("double", 1)
            server.send(reply_frame(call_of(server), 2))
            assert client.done() == 2
            assert is_hung_up(arena)
        assert client.do("holds") == before


def call_of(server: RawEnd) -> int:
    """The id of the next call; what comes back before it is no news here."""
    while (found := server.next()).kind == RELEASE:
        continue
    assert found.kind == CALL, found
    return found.call_id


# Who may use an arena


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Be another user for what the kernel notes at connect and listen (SO_PEERCRED, unix(7))."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@needs_root
def test_25_another_user_is_sent_sealed_copies_and_may_pass_no_arena(open_place: Path) -> None:
    with shared(open_place, mode=0o666) as server:
        with as_user(NOBODY):
            caller = RawCaller(server.path)
        with caller:
            found = caller.call("make", [SIZE, 7])
            assert caller.peer_features == SEALED | FILES
            assert found.value.code == 2
            [memory] = found.files
            with closing(memory):
                assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) & ALL_SEALS == ALL_SEALS
                assert os.pread(memory, SIZE, 0) == CONTENT
            memory = new_memory(CONTENT, seals=ALL_SEALS)
            with closing(memory):
                assert caller.call("sum", [sealed_at(0, 0, SIZE)], [memory]).value == SUM
            with Arena(ARENA_SIZE) as arena:
                pass_arena(caller, arena)
                caller.expect_end("protocol_error")
                assert is_hung_up(arena)
        server.assert_clean()


@needs_root
@in_both_clients
def test_25_a_server_of_another_user_is_sent_sealed_copies_and_may_pass_no_arena(open_place: Path, kind: str) -> None:
    path = open_place / "s"
    with contextlib.ExitStack() as stack:
        with as_user(NOBODY):
            listener = stack.enter_context(raw_server(path))
        client = stack.enter_context(client_of(kind, path))
        server = stack.enter_context(accepted(listener))
        assert client.program.line() == "ready"
        before = client.do("holds")
        for what in ("blob", "bytes"):
            client.begin("sum", {what: SIZE, "seed": 7})
            call = server.next()
            while call.kind == PING:
                server.send(frame(PONG, 0, call.payload))
                call = server.next()
            assert server.peer_features == SEALED | FILES
            [memory] = call.files
            with closing(memory):
                assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) & ALL_SEALS == ALL_SEALS
                assert os.pread(memory, SIZE, 0) == CONTENT
            server.send(reply_frame(call.call_id, 0))
            assert client.done() == 0
        memory = new_memory(CONTENT, seals=ALL_SEALS)
        with closing(memory):
            client.begin("make", 1, 2)
            server.send(reply_frame(server.next().call_id, sealed_at(0, 0, SIZE), 1), [memory])
            assert client.done() == ["blob", SIZE, SUM, True]
        assert client.do("holds") == before
        with Arena(ARENA_SIZE) as arena:
            client.begin("make", 1, 2)
            server.next()  # its call, which is under way
            pass_arena(server, arena)
            assert client.done()["error"] == "OutcomeUnknown"
            server.expect_end("protocol_error")
            assert is_hung_up(arena)


@needs_root
@in_both_clients
def test_25_between_two_users_blobs_go_both_ways_and_leave_nothing(open_place: Path, kind: str) -> None:
    with shared(open_place, mode=0o666) as server:
        code = "run_threads(PATH)\n" if kind == "threads" else "asyncio.run(run_asyncio(PATH))\n"
        with as_nobody(code, server.path) as program:
            client = Client(program)
            assert program.line() == "ready"
            before = client.do("holds")
            for seed in range(10):
                size = SIZE * (seed + 1)
                assert client.do("make", size, seed) == ["blob", size, checksum(bytes_of(size, seed)), True]
                assert client.do("make_bytes", size, seed) == ["bytes", size, checksum(bytes_of(size, seed))]
                for what in ("blob", "bytes"):
                    assert client.do("sum", {what: size, "seed": seed}) == checksum(bytes_of(size, seed))
            assert client.do("holds") == before
            assert client.do("make", SIZE, 7, "keep") == SUM
            assert client.do("maps") == ["/memfd:samehost-blob"]
            program.process.stdin.close()
            assert program.end() == 0
        server.assert_clean()


# Memory comes back, and what is kept stays as it was


def in_dev_shm() -> set[str]:
    return set(os.listdir("/dev/shm"))


COUNT = 4


def share_both_ways(client: Client) -> list[int]:
    """Have both ends keep some blobs of the other; their sums, which are the same at both."""
    sums = []
    for seed in range(COUNT):
        content = bytes_of(SIZE, seed)
        assert client.do("make", SIZE, seed, "keep") == checksum(content)
        assert client.do("keep", {"blob": SIZE, "seed": seed}) == checksum(content)
        sums.append(checksum(content))
    assert client.do("sums_kept") == sums
    return sums


def sums_kept(server: Shared) -> list[int]:
    with RawCaller(server.path) as caller:
        found: list[int] = caller.call("sums_kept", []).value
        return found


def drop_kept(server: Shared) -> None:
    with RawCaller(server.path) as caller:
        caller.call("drop_kept", [])


def use_all_memory_anew(server: Shared, times: int = 30) -> None:
    """Have the server write to whatever memory it takes for free."""
    with RawCaller(server.path) as caller:
        for seed in range(times):
            caller.begin("make", [SIZE, 1000 + seed])
        for _ in range(times):
            while caller.next().kind != REPLY:
                continue


@in_both_clients
def test_26_a_client_that_was_killed_gives_its_shares_back_and_leaves_its_own(server: Shared, kind: str) -> None:
    before_all = in_dev_shm()
    with client_of(kind, server.path) as client:
        assert client.program.line() == "ready"
        sums = share_both_ways(client)
        assert server.held_now()["arena_bytes"] >= COUNT * SIZE
        kill(client.program)
    until(lambda: server.held()["arena_bytes"] == 0, "the shares of a dead client come back")
    use_all_memory_anew(server)
    assert sums_kept(server) == sums
    found = server.held()
    assert found["mapped"] == server.before["mapped"] + 1  # the dead one's arena, which is still looked at
    drop_kept(server)
    server.assert_clean()
    assert in_dev_shm() == before_all


@in_both_clients
def test_26_a_server_that_was_killed_gives_its_shares_back_and_leaves_its_own(place: Path, kind: str) -> None:
    before_all = in_dev_shm()
    with shared(place) as server, client_of(kind, server.path) as client:
        assert client.program.line() == "ready"
        before = client.do("holds")
        sums = share_both_ways(client)
        assert client.do("holds")["arena_bytes"] >= COUNT * SIZE
        kill(server.program)
        assert "error" in client.do("double", 1)  # by which a client that waits for nothing notices
        until(lambda: client.do("holds")["arena_bytes"] == 0, "the shares of a dead server come back")
        assert client.do("sums_kept") == sums
        client.do("drop_kept")
        after = client.do("holds")
        assert after["mapped"] == before["mapped"]
        assert [name for name in after["open"] if "memfd" in name or "pipe" in name] == [
            name for name in before["open"] if "memfd" in name or "pipe" in name
        ]
    assert in_dev_shm() == before_all


@in_both_clients
def test_a_blob_that_is_kept_past_its_call_and_connection_stays_as_it_was(server: Shared, kind: str) -> None:
    with client_of(kind, server.path) as client:
        assert client.program.line() == "ready"
        sums = share_both_ways(client)
        for _ in range(3):
            use_all_memory_anew(server)
            for seed in range(10):
                client.do("sum", {"blob": SIZE, "seed": 50 + seed})
            assert client.do("sums_kept") == sums
            assert sums_kept(server) == sums
        client.do("close")
        server.held()  # which waits until it is gone
        for _ in range(3):
            use_all_memory_anew(server)
            assert client.do("sums_kept") == sums
            assert sums_kept(server) == sums
        # The server has what the client still looks at, until that has let go of it.
        assert server.held()["arena_bytes"] >= COUNT * SIZE
        client.do("drop_kept")
        client.do("holds")
        until(lambda: server.held()["arena_bytes"] == 0, "what nobody looks at any more comes back")
    assert sums_kept(server) == sums  # of a process that has ended
    drop_kept(server)


@in_both_clients
def test_blobs_come_back_for_ever(server: Shared, kind: str) -> None:
    """Far more than there is memory for, one after the other, in flat memory."""
    with client_of(kind, server.path) as client:
        assert client.program.line() == "ready"
        grown = []
        for _ in range(4):
            for _ in range(20):
                assert client.do("make", SIZE, 7) == ["blob", SIZE, SUM, True]
                assert client.do("sum", {"blob": SIZE, "seed": 7}) == SUM
                assert client.do("sum_bytes", {"bytes": SIZE, "seed": 7}) == SUM
                assert client.do("make_bytes", SIZE, 7) == ["bytes", SIZE, SUM]
            assert len(client.do("make_many", SIZE, 100)) == 100
            with RawCaller(server.path) as caller:
                grown.append(caller.call("kib", []).value)
        assert grown[-1] < grown[0] + 8 * 1024, grown


# Items that have come and were not read yet when the connection ends

ITEMS = 4


def send_items(server: RawEnd, arena: Arena) -> None:
    """Answer a call with a stream of parts of an arena, which does not end."""
    call_id = call_of(server)
    first = 100 * call_id
    server.send(frame(STREAM, call_id))
    for share in range(first, first + ITEMS):
        server.send(frame(ITEM, call_id, msgspec.msgpack.encode(share_at(1, 0, 10, share))))


@pytest.mark.parametrize("how", ["lost", "closed"])
def test_blobs_that_came_before_the_end_can_be_read_in_threads(place: Path, how: str) -> None:
    with raw_server(place / "s") as listener, samehost.connect(place / "s") as client, Arena(ARENA_SIZE) as arena:
        with accepted(listener) as server:
            pass_arena(server, arena)
            with ThreadPoolExecutor(1) as pool:
                streams = []
                for _ in range(2):
                    sent = pool.submit(send_items, server, arena)
                    streams.append(client.call("show"))
                    sent.result()
                found = [[next(stream)] for stream in streams]
                if how == "closed":
                    client.close()
        for stream, items in zip(streams, found, strict=True):
            with pytest.raises((OutcomeUnknown, ConnectionClosed)):
                items.extend(stream)
            assert len(items) == ITEMS or how == "closed"


@pytest.mark.parametrize("how", ["lost", "closed"])
async def test_blobs_that_came_before_the_end_can_be_read_in_asyncio(place: Path, how: str) -> None:
    with raw_server(place / "s") as listener, Arena(ARENA_SIZE) as arena:
        async with aio.connect(place / "s") as client:
            with accepted(listener) as server:
                pass_arena(server, arena)
                streams = []
                for _ in range(2):
                    sent = asyncio.ensure_future(asyncio.to_thread(send_items, server, arena))
                    streams.append(await client.call("show"))
                    await sent
                found = [[await anext(stream)] for stream in streams]
                if how == "closed":
                    client.close()
            for stream, items in zip(streams, found, strict=True):
                with pytest.raises((OutcomeUnknown, ConnectionClosed)):  # noqa: PT012 - until it does
                    while True:
                        items.append(await anext(stream))
                assert len(items) == ITEMS or how == "closed"
