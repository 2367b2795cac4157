"""The faults and attacks of who passes files, each driven by real descriptors on real sockets; a number is the row."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import random
import resource
import socket
import struct
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_clients import CALL, CANCEL, ERROR, GOAWAY, NOTIFY, PING, REPLY
from raw_sharing import (
    ALL,
    CREDIT,
    END,
    ITEM,
    ITEMS_FOLLOW,
    ITEMS_WANTED,
    RawCaller,
    RawEnd,
    accepted,
    call_frame,
    file_at,
    frame,
    greeting,
    raw_server,
    reply_frame,
)
from shared import CLIENTS, Shared, as_nobody, client_of, shared
from sharing_service import checksum
from support import DEADLINE, kill, needs_root, until

import samehost
from samehost import File, aio
from samehost.errors import DeadlineExceeded

FILES = 6
DESCRIPTORS = 256
"""That one user may have open in a service."""

in_both_clients = pytest.mark.parametrize("kind", CLIENTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One service for all, as nothing that is done here may do it any harm."""
    with shared(tmp_path_factory.mktemp("s")) as found:
        yield found


@pytest.fixture(autouse=True)
def _clean_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").assert_clean()


@pytest.fixture
def files() -> Iterator[list[Any]]:
    """Some open files, all of them different."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(FILES)]
        for number, file in enumerate(found):
            file.write(b"%d" % number)
            file.seek(0)
        yield found


@pytest.fixture
def caller(server: Shared) -> Iterator[RawCaller]:
    with RawCaller(server.path) as found:
        yield found


def inode(file: Any) -> int:
    return os.fstat(file.fileno()).st_ino


# 21: descriptors that no method asked for


def with_a_call_that_takes_none(caller: RawCaller, files: list[Any]) -> None:
    caller.begin("double", {"number": 1}, files[:1])


def with_a_call_that_announces_none(caller: RawCaller, files: list[Any]) -> None:
    caller.send(call_frame(1, "double", {"number": 1}), files[:1])


def fewer_than_announced(caller: RawCaller, files: list[Any]) -> None:
    caller.send(call_frame(1, "inode", [file_at(0)], 2), files[:1])


def none_of_those_announced(caller: RawCaller, files: list[Any]) -> None:
    caller.send(call_frame(1, "inode", [file_at(0)], 1))


def more_than_announced(caller: RawCaller, files: list[Any]) -> None:
    caller.send(call_frame(1, "inode", [file_at(0)], 1), files[:2])


def more_than_any_frame_has(caller: RawCaller, files: list[Any]) -> None:
    caller.send(call_frame(1, "inode", [file_at(0)], 17), files[:1] * 17)


def as_many_as_the_kernel_passes(caller: RawCaller, files: list[Any]) -> None:
    caller.send(call_frame(1, "inode", [file_at(0)], 16), files[:1] * 253)


def with_a_ping(caller: RawCaller, files: list[Any]) -> None:
    caller.send(frame(PING, 0, b"1234"), files[:1])


def with_a_ping_that_announces_it(caller: RawCaller, files: list[Any]) -> None:
    caller.send(frame(PING, 0, b"1234", 1), files[:1])


def with_a_notification_that_takes_none(caller: RawCaller, files: list[Any]) -> None:
    caller.send(frame(NOTIFY, 0, struct.pack("<IB", 0, 6) + b"double\x91\x01", 1), files[:1])


def with_a_cancel(caller: RawCaller, files: list[Any]) -> None:
    caller.send(frame(CANCEL, caller.begin("hold", [[]]), b"", 1), files[:1])


def with_credit(caller: RawCaller, files: list[Any]) -> None:
    caller.send(frame(CREDIT, caller.begin("hand_out", [0], flags=ITEMS_WANTED), bytes(8), 1), files[:1])


def with_an_end(caller: RawCaller, files: list[Any]) -> None:
    caller.send(frame(END, caller.begin("inodes_in", [], flags=ITEMS_FOLLOW), b"", 1), files[:1])


def in_the_middle_of_a_frame(caller: RawCaller, files: list[Any]) -> None:
    sent = call_frame(1, "double", {"number": 1})
    caller.send(sent[:14])
    caller.send(sent[14:], files[:1])


def with_the_last_byte_of_its_own_header(caller: RawCaller, files: list[Any]) -> None:
    sent = call_frame(1, "inode", [file_at(0)], 1)
    caller.send(sent[:11])
    wait_until_read(caller.socket)
    caller.send(sent[11:], files[:1])


def with_an_item_of_a_stream_that_takes_none(caller: RawCaller, files: list[Any]) -> None:
    call_id = caller.begin("sums_in", [], flags=ITEMS_FOLLOW)
    caller.send(frame(ITEM, call_id, b"\x01"), files[:1])


UNASKED = [
    with_a_call_that_takes_none,
    with_a_call_that_announces_none,
    fewer_than_announced,
    none_of_those_announced,
    more_than_announced,
    more_than_any_frame_has,
    as_many_as_the_kernel_passes,
    with_a_ping,
    with_a_ping_that_announces_it,
    with_a_notification_that_takes_none,
    with_a_cancel,
    with_credit,
    with_an_end,
    in_the_middle_of_a_frame,
    with_the_last_byte_of_its_own_header,
    with_an_item_of_a_stream_that_takes_none,
]


def unread_bytes(connected: socket.socket) -> int:
    """What the other end has not read of what was sent (SIOCOUTQ, unix(7))."""
    found = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(found, "little")


def wait_until_read(connected: socket.socket) -> None:
    until(lambda: not unread_bytes(connected), "it has read all of that")


@pytest.mark.parametrize("fault", UNASKED, ids=lambda fault: fault.__name__)
def test_21_descriptors_that_nobody_asked_for_end_the_connection(
    server: Shared, caller: RawCaller, files: list[Any], fault: Callable[[RawCaller, list[Any]], None]
) -> None:
    fault(caller, files)
    told = [found for found in caller.rest() if found.kind == GOAWAY]
    assert all(found.code == "unexpected_descriptors" for found in told), told[0].message


def test_21_files_of_calls_that_are_refused_are_closed(server: Shared, caller: RawCaller, files: list[Any]) -> None:
    for method, arguments, code in (
        ("nothing", [file_at(0)], "method_not_found"),
        ("inode", [], "invalid_arguments"),
        ("inode", [5], "invalid_arguments"),
        ("inode", [file_at(1)], "invalid_arguments"),
        ("inodes", [[file_at(0), file_at(0)]], "invalid_arguments"),
        ("inodes_in", [], "wrong_shape"),
        ("send_into", [file_at(0), "text"], "invalid_arguments"),
        ("read", [file_at(0)], "invalid_arguments"),
    ):
        if method == "read":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
                found = caller.call(method, [file_at(0), 5], [other])
        else:
            found = caller.call(method, arguments, files[:1])
        assert (found.kind, found.code) == (ERROR, code), (method, found.message)
    caller.is_served()


@pytest.mark.parametrize("features", [0, ALL])
def test_21_descriptors_with_the_preface_or_with_lines_end_the_connection(
    server: Shared, files: list[Any], features: int
) -> None:
    for first in (greeting(features), b'{"jsonrpc":"2.0","id":1,"method":"double","params":[1]}\n'):
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(DEADLINE)
            connected.connect(str(server.path))
            socket.send_fds(connected, [first], [file.fileno() for file in files[:2]])
            with contextlib.suppress(ConnectionResetError):
                while connected.recv(1 << 16):
                    pass


@pytest.mark.parametrize("passes_files", [True, False], ids=["older kernels", "SO_PASSRIGHTS"])
def test_21_a_service_without_files_is_never_given_any(place: Path, files: list[Any], passes_files: bool) -> None:
    with shared(place, plain=True, passes_files=passes_files) as server:
        for announced in (0, 1):
            with RawCaller(server.path) as caller:
                try:
                    caller.send(call_frame(1, "double", {"number": 4}, announced), files[:1])
                except PermissionError:  # the kernel says so, once the server has accepted
                    assert not passes_files
                    continue
                answers = caller.rest() if announced or passes_files else [caller.next()]
                assert caller.peer_features in (0, None)
                assert [found.value for found in answers if found.kind == REPLY] == [8] * (
                    not announced and not passes_files
                )
        server.assert_clean()


@in_both_clients
def test_21_a_result_with_files_for_which_there_is_no_use_leaves_none(place: Path, files: list[Any], kind: str) -> None:
    with raw_server(place / "s") as listener, client_of(kind, place / "s") as client, accepted(listener) as server:
        assert client.program.line() == "ready"
        before = client.do("holds")
        for value in (2, file_at(0), [file_at(0), file_at(0)], [file_at(1)], [file_at(0)]):
            client.begin("double", 1)
            call = server.next()
            server.send(reply_frame(call.call_id, value, 2), files[:2])
            found = client.done()
            assert found == 2 or found["error"] == "InvalidResult"
            assert client.do("holds") == before
        # With what may have none, it is a fault.
        client.begin("double", 1)
        server.send(frame(ERROR, server.next().call_id, b"\1\0\0\0x", 1), files[:1])
        assert client.done()["error"] == "OutcomeUnknown"
        after = client.do("holds")
        assert [name for name in after["open"] if name not in ("socket", "anon_inode")] == [
            name for name in before["open"] if name not in ("socket", "anon_inode")
        ]


# 22: control data cut short


@contextlib.contextmanager
def no_room_for(pid: int, free: int) -> Iterator[None]:
    """A process can open no more than so many files."""
    numbers = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = next(number for number in itertools.count() if len(set(range(number)) - numbers) == free)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("room", range(4))
def test_22_control_data_that_was_cut_short_ends_the_connection(
    server: Shared, caller: RawCaller, files: list[Any], room: int
) -> None:
    with RawCaller(server.path) as other:
        caller.is_served()
        other.is_served()
        with no_room_for(server.program.pid, room):
            caller.begin("inodes", [[file_at(number) for number in range(4)]], files[:4])
            assert [found.kind for found in caller.rest() if found.kind == REPLY] == []
            other.is_served()
        found = other.call("inodes", [[file_at(0)]], files[:1])
        assert found.value == [inode(files[0])]


@in_both_clients
def test_22_a_client_closes_what_came_when_some_was_cut_off(place: Path, files: list[Any], kind: str) -> None:
    with raw_server(place / "s") as listener, client_of(kind, place / "s") as client, accepted(listener) as server:
        assert client.program.line() == "ready"
        before = client.do("holds")
        client.begin("give", 4)
        call = server.next()
        with no_room_for(client.program.pid, 2):
            server.send(reply_frame(call.call_id, [file_at(number) for number in range(4)], 4), files[:4])
            assert client.done()["error"] == "OutcomeUnknown"
            assert {found.code for found in server.rest()} <= {"unexpected_descriptors"}
        after = client.do("holds")
        assert set(after["open"]) <= set(before["open"])
        assert len(after["open"]) <= len(before["open"])


# 23: split from, or merged with, other frames at any byte


def some_calls(files: list[Any]) -> list[tuple[bytes, list[Any], Any]]:
    """Frames, their files, and what comes of each."""
    ids = itertools.count(1, 2)
    one, two = [file_at(0)], [[file_at(1), file_at(0)]]
    return [
        (call_frame(next(ids), "double", [4]), [], 8),
        (call_frame(next(ids), "inode", one, 1), files[:1], inode(files[0])),
        (call_frame(next(ids), "inodes", two, 2), files[1:3], [inode(files[2]), inode(files[1])]),
        (call_frame(next(ids), "double", [5]), [], 10),
        (call_frame(next(ids), "inode", one, 1), files[3:4], inode(files[3])),
    ]


def answers(caller: RawCaller, calls: list[tuple[bytes, list[Any], Any]], *, may_end: bool = False) -> bool:
    """See that every answer is the right one; whether all came, as the connection may have ended, if it may."""
    missing = {2 * number + 1: found for number, (_, _, found) in enumerate(calls)}
    while missing:
        frame = caller.next_or_end()
        if frame is None or frame.kind == GOAWAY:
            assert may_end, frame
            return False
        assert frame.kind == REPLY, frame
        assert frame.value == missing.pop(frame.call_id)
    return True


@pytest.mark.parametrize("is_slow", [False, True], ids=["at once", "one by one"])
def test_23_files_reach_their_call_wherever_the_bytes_are_cut(server: Shared, files: list[Any], is_slow: bool) -> None:
    calls = some_calls(files)
    for cut in range(1, max(len(data) for data, _, _ in calls)):
        with RawCaller(server.path) as caller:
            for data, attached, _ in calls:
                caller.send(data[:cut], attached)
                if is_slow:
                    wait_until_read(caller.socket)
                if data[cut:]:
                    caller.send(data[cut:])
            assert answers(caller, calls)


@pytest.mark.parametrize("is_slow", [False, True], ids=["at once", "one by one"])
def test_23_files_that_come_with_another_byte_end_the_connection_or_reach_their_call(
    server: Shared, files: list[Any], is_slow: bool
) -> None:
    calls = some_calls(files)
    everything = b"".join(data for data, _, _ in calls)
    begins = [0, *itertools.accumulate(len(data) for data, _, _ in calls)]
    ended = 0
    for place in range(1, len(everything)):
        with RawCaller(server.path) as caller:
            try:
                caller.send(everything[:place])
                if is_slow:
                    wait_until_read(caller.socket)
                caller.send(everything[place:], files[:1])  # the first call's, and the only ones that come
            except (BrokenPipeError, ConnectionResetError):
                pass
            is_whole = answers(caller, calls[:2], may_end=True)
            ended += not is_whole
            if is_slow and place != begins[1]:
                assert not is_whole
    assert ended


def test_23_many_calls_at_once_each_get_their_own_files(server: Shared) -> None:
    """Through both clients at the same time, with calls that have none between them."""
    chance = random.Random(1)

    def in_threads(client: Any) -> None:
        for _ in range(60):
            with contextlib.ExitStack() as stack:
                own = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(chance.randrange(5))]
                assert client.inodes([File(os.dup(file.fileno())) for file in []] + own) == [*map(inode, own)]
                assert client.double(4) == 8
                assert client.call("sum", b"x" * chance.randrange(400_000)) is not None

    async def in_asyncio() -> None:
        async with aio.connect(server.path) as client:

            async def some() -> None:
                for _ in range(30):
                    with contextlib.ExitStack() as stack:
                        own = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(chance.randrange(5))]
                        assert await client.inodes(own) == [*map(inode, own)]
                        assert await client.double(5) == 10

            await asyncio.gather(*(some() for _ in range(6)))

    failed: list[BaseException] = []

    def guarded(client: Any) -> None:
        try:
            in_threads(client)
        except BaseException as error:
            failed.append(error)

    with samehost.connect(server.path) as client:
        threads = [threading.Thread(target=guarded, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        asyncio.run(in_asyncio())
        for thread in threads:
            thread.join()
    assert failed == []


# 24: too many files on their way

TOO_MANY = """
    import array, resource, socket, threading

    first, second = socket.socketpair()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    def fill():
        "Have more files on their way than this user may."
        count = 0
        try:
            while True:
                socket.send_fds(first, [b"x"], [0] * 8)
                count += 1
        except OSError as error:
            assert error.errno == errno.ETOOMANYREFS, error
        return count

    def drain(count):
        for _ in range(count):
            for number in socket.recv_fds(second, 1, 8)[1]:
                os.close(number)

    import errno, os, sys
    limits.OUTPUT_STALL_SECONDS = 0.4
    with open(os.devnull) as file:
        def ask(client):
            count = fill()
            began = time.monotonic()
            try:
                client.call("inode", file, timeout=10)
            except samehost.errors.Error as error:
                seconds = time.monotonic() - began
                print(type(error).__name__, 0.3 < seconds < 3, "files" in str(error), flush=True)
            threading.Timer(0.15, drain, [count]).start()
            assert client.call("inode", file, timeout=10) == os.fstat(file.fileno()).st_ino
            print("recovered", flush=True)
"""

ASK_IN_THREADS = """
        with samehost.connect(PATH, trust=samehost.ANYONE) as client:
            assert client.double(4) == 8
            ask(client)
"""

ASK_IN_ASYNCIO = """
        async def main():
            async with aio.connect(PATH, trust=samehost.ANYONE) as client:
                assert await client.double(4) == 8
                count = fill()
                began = time.monotonic()
                try:
                    await client.call("inode", file, timeout=10)
                except samehost.errors.Error as error:
                    seconds = time.monotonic() - began
                    print(type(error).__name__, 0.3 < seconds < 3, "files" in str(error), flush=True)
                asyncio.get_running_loop().call_later(0.15, drain, count)
                assert await client.call("inode", file, timeout=10) == os.fstat(file.fileno()).st_ino
                print("recovered", flush=True)
        asyncio.run(main())
"""


@needs_root
@pytest.mark.parametrize("ask", [ASK_IN_THREADS, ASK_IN_ASYNCIO], ids=CLIENTS)
def test_24_too_many_files_under_way_is_a_typed_error_after_a_while_or_passes(open_place: Path, ask: str) -> None:
    with shared(open_place, mode=0o666) as server:
        with as_nobody(TOO_MANY + ask, server.path) as program:
            assert program.line() in ("Unsent True True", "OutcomeUnknown True True")
            assert program.line() == "recovered"
            assert program.end() == 0
        server.assert_clean()


# Files over services


@in_both_clients
def test_files_as_arguments_results_and_items(server: Shared, files: list[Any], kind: str) -> None:
    inodes = [inode(file) for file in files]
    with client_of(kind, server.path, pass_fds=[file.fileno() for file in files]) as client:
        assert client.program.line() == "ready"
        given = [{"fd": file.fileno()} for file in files]
        before = client.do("holds")
        for _ in range(3):
            assert client.do("inode", given[0]) == inodes[0]
            assert client.do("inode_in_thread", given[1]) == inodes[1]
            assert client.do("inodes", given) == inodes
            assert client.do("inodes", [given[0]] * 3) == [inodes[0]] * 3
            assert client.do("inodes", []) == []
            assert client.do("inodes_by_name", {"a": given[:2], "b": [], "c": given[2:4]}, 41) == {
                "a": inodes[:2],
                "b": [],
                "c": inodes[2:4],
            }
            files[4].seek(0)
            assert client.do("read", given[4]) == ["bytes", 1, checksum(b"4")]
            for back in ("hand_back", "hand_on"):
                assert client.do(back, given[3]) == ["file", inodes[3], False]
            found = client.do("give", 3)
            assert [what for what, _, _ in found] == ["file"] * 3
            assert not any(is_inheritable for _, _, is_inheritable in found)
            for method in ("hand_out", "hand_out_in_thread"):
                found = client.do(method, 40)
                assert len({number for _, number, is_inheritable in found if not is_inheritable}) == 40
            assert client.do("give_open", "text") == ["open", "_Random", "text", False]
            assert client.do("give_socket", "over a socket") == ["socket", "over a socket", False]
            assert client.do("fail_with", given[0])["error"] == "ServiceError"
            assert client.do("inode", 5)["error"] == "InvalidArguments"
        assert client.do("holds") == before


@in_both_clients
def test_a_socket_is_one_at_the_other_end(server: Shared, kind: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, client_of(kind, server.path, pass_fds=[theirs.fileno()]) as client:
        assert client.program.line() == "ready"
        for number in range(3):
            assert client.do("send_into", {"fd": theirs.fileno()}, f"text {number}") == 6
            assert ours.recv(100) == b"text %d" % number
        theirs.close()
        client.do("close")
        client.program.process.stdin.close()
        client.program.process.wait(DEADLINE)
        ours.settimeout(DEADLINE)
        assert ours.recv(100) == b""  # as nobody has it any more


@in_both_clients
def test_an_upload_of_files_is_read_in_order(server: Shared, files: list[Any], kind: str) -> None:
    """In this process, as iterators do not travel to another one."""
    inodes = [inode(file) for file in files]

    async def in_asyncio() -> None:
        async with aio.connect(server.path) as client:
            assert await client.inodes_in(iter(files)) == inodes
            assert [found async for found in client.inodes_of_each(iter(files * 20))] == inodes * 20

    if kind == "asyncio":
        asyncio.run(in_asyncio())
        return
    with samehost.connect(server.path) as client:
        assert client.inodes_in(iter(files)) == inodes
        assert list(client.inodes_of_each(iter(files * 20))) == inodes * 20


# A number that is closed and used anew before what was asked to be sent has gone

LONG = "x" * 3_000_000


def put_another_in_its_place(file: Any) -> None:
    """Close a file, and have its number mean another one."""
    number = file.fileno()
    with tempfile.TemporaryFile() as other:
        os.dup2(other.fileno(), number, inheritable=False)


def files_that_came(end: RawEnd) -> list[int]:
    """The inodes of what comes until a call of `double`, which is answered as all of them are."""
    found = []
    while True:
        came = end.next()
        for number in came.files:
            assert not os.get_inheritable(number)
            found.append(os.fstat(number).st_ino)
            os.close(number)
        if came.kind == CALL:
            is_last = b"double" in came.payload[:20]
            end.send(reply_frame(came.call_id, 2))
            if is_last:
                return found


def test_a_number_that_is_used_anew_never_travels_from_threads(place: Path, files: list[Any]) -> None:
    inodes = [inode(file) for file in files]
    with raw_server(place / "s") as listener, samehost.connect(place / "s") as client, accepted(listener) as server:
        # What the server takes is known by its preface, which comes with the first answer.
        first = threading.Thread(target=client.double, args=(1,))
        first.start()
        server.send(reply_frame(server.next().call_id, 2))
        first.join()

        def call(file: Any, timeout: float) -> None:
            with contextlib.suppress(DeadlineExceeded):
                client.call("inode", file, timeout=timeout)

        filling = threading.Thread(target=client.call, args=("length", LONG))
        filling.start()
        until(lambda: unread_bytes(client._link._socket) > 100_000, "the socket is full")
        threads = [
            threading.Thread(target=call, args=(file, 0.2 if n % 2 else DEADLINE)) for n, file in enumerate(files)
        ]
        for thread in threads:
            thread.start()
        for thread in threads[1::2]:
            thread.join()  # its time is over
        for file in files[1::2]:
            put_another_in_its_place(file)
        last = threading.Thread(target=client.double, args=(1,))
        last.start()
        found = files_that_came(server)
        for thread in (*threads[::2], filling, last):
            thread.join()
        assert set(inodes[::2]) <= set(found) <= set(inodes)


def test_a_number_that_is_used_anew_never_travels_from_asyncio(place: Path, files: list[Any]) -> None:
    inodes = [inode(file) for file in files]
    found: list[int] = []

    async def main() -> None:
        with raw_server(place / "s") as listener:
            async with aio.connect(place / "s") as client:
                with accepted(listener) as server:
                    first = asyncio.ensure_future(client.double(1))
                    await asyncio.to_thread(lambda: server.send(reply_frame(server.next().call_id, 2)))
                    await first
                    filling = asyncio.ensure_future(client.length(LONG))
                    await asyncio.sleep(0)
                    calls = [asyncio.ensure_future(client.inode(file)) for file in files]
                    for _ in range(10):
                        await asyncio.sleep(0)
                    for call, file in zip(calls[1::2], files[1::2], strict=True):
                        call.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await call
                        put_another_in_its_place(file)
                    for file in files[::2]:
                        put_another_in_its_place(file)  # its call goes on, with what it was asked to send
                    last = asyncio.ensure_future(client.double(1))
                    found.extend(await asyncio.to_thread(files_that_came, server))
                    await asyncio.gather(filling, last, *calls[::2])

    asyncio.run(main())
    assert set(inodes[::2]) <= set(found) <= set(inodes)


def test_files_that_a_server_could_not_send_yet_are_those_that_it_gave(server: Shared) -> None:
    with RawCaller(server.path) as caller:
        filling = [caller.begin("make_text", [1_000_000]) for _ in range(2)]
        ids = [caller.begin("give", [5]) for _ in range(20)]
        for call_id in ids[::2]:
            caller.send(frame(CANCEL, call_id))
        with RawCaller(server.path) as other:  # whose files would have the numbers of those
            for _ in range(20):
                for number in other.call("give", [5]).files:
                    os.close(number)
        missing = {*filling, *ids}
        while missing:
            came = caller.next()
            missing.discard(came.call_id)
            assert [os.pread(number, 10, 0) for number in came.files] == [b"%d" % n for n in range(len(came.files))]
            assert len(came.files) in ((0,) if came.kind == ERROR or came.call_id in filling else (5,))
            for number in came.files:
                os.close(number)


# More than one user may have


def test_a_user_who_holds_as_many_files_as_there_may_be_is_busy_and_recovers(
    server: Shared, caller: RawCaller, files: list[Any]
) -> None:
    held = [[file_at(number) for number in range(16)]]
    ids = [caller.begin("hold", held, files[:1] * 16) for _ in range(DESCRIPTORS // 16 + 1)]
    refused = caller.expect(ERROR)
    assert (refused.call_id, refused.code) == (ids[-1], "busy")
    with RawCaller(server.path) as other:  # of the same user
        assert other.call("inode", [file_at(0)], files[:1]).code == "busy"
        other.is_served()
        caller.send(frame(CANCEL, ids[0]))
        assert caller.expect(ERROR).code == "cancelled"
        assert other.call("inode", [file_at(0)], files[:1]).value == inode(files[0])


# A dead end


@in_both_clients
def test_15_files_of_calls_whose_client_was_killed_are_closed(server: Shared, files: list[Any], kind: str) -> None:
    with client_of(kind, server.path, pass_fds=[file.fileno() for file in files]) as client:
        assert client.program.line() == "ready"
        client.begin("hold", [{"fd": file.fileno()} for file in files])
        with RawCaller(server.path) as watching:
            until(lambda: len(watching.call("holds", {}).value["open"]) >= len(server.before["open"]) + FILES, "it has")
        kill(client.program)
