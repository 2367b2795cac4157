"""Dialling: who is there, who is not yet, and what every other answer of the kernel means."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from support import DEADLINE, NOBODY, Program, descriptors, needs_program, needs_root, python, python_as, until

import samehost
from samehost.errors import (
    AddressError,
    DeadlineExceeded,
    Unavailable,
    UntrustedServer,
    UsageError,
)
from samehost.kernel import claim
from samehost.kernel.dialling import Dialling

TYPES = ["stream", "datagram", "seqpacket"]


@pytest.fixture
def tried_in_vain(monkeypatch):
    """An event: somebody dialled, and will try again."""
    event, attempt = threading.Event(), Dialling.attempt

    def noticed(self):
        result = attempt(self)
        if result is None:
            event.set()
        return result

    monkeypatch.setattr(Dialling, "attempt", noticed)
    return event


@contextmanager
def full_backlog(path, backlog=0):
    """A listener that does not accept, with as many clients waiting as fit."""
    with samehost.listen(path, backlog=backlog) as listener, ExitStack() as waiting:
        while True:
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                client.close()
                yield listener
                return


# Somebody is there, or not


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("long", [False, True])
def test_a_server_is_reached_by_a_path_of_any_length(place, type, long):
    directory = place / ("d" * 200 if long else "d")
    directory.mkdir()
    path = directory / ("s" * 100 if long else "s")
    with samehost.listen(path, type) as listener, samehost.dial(path, type) as client:
        assert (client.address, client.type, client.peer.uid) == (str(path), type, os.geteuid())
        client.send(b"hello")
        if type == "datagram":
            assert listener.receive(timeout=5).data == b"hello"
        else:
            with listener.accept(timeout=5) as server:
                assert server.recv(timeout=5) == b"hello"


@pytest.mark.parametrize("type", TYPES)
def test_a_server_is_reached_by_an_abstract_name(type):
    name = f"@samehost-test-{os.getpid()}-{type}"
    with samehost.listen(name, type), samehost.dial(name, type) as client:
        assert client.address == name


def test_a_relative_path_is_reached_from_where_it_was_dialled(place, monkeypatch):
    monkeypatch.chdir(place)
    with samehost.listen("./a.sock"), samehost.dial("./a.sock") as client:
        assert client.address == f"{os.getcwd()}/a.sock"


@pytest.mark.parametrize("type", TYPES)
def test_nobody_is_unavailable_at_once(place, type):
    with pytest.raises(Unavailable, match="there is no such socket; is the server running"):
        samehost.dial(place / "none.sock", type)
    with pytest.raises(Unavailable, match="nobody listens on @samehost-nobody: it refuses connections"):
        samehost.dial("@samehost-nobody", type)


@pytest.mark.parametrize("length", [10, 150])
def test_a_dead_socket_is_unavailable(place, length):
    path = place / ("s" * length)
    with samehost.listen(path) as listener:
        os.link(path, place / "copy")
        listener.close()
    os.rename(place / "copy", path)
    with pytest.raises(Unavailable, match="it refuses connections"):
        samehost.dial(path)


def test_a_server_that_is_bound_and_not_yet_listening_is_waited_for(place, tried_in_vain):
    with socket.socket(socket.AF_UNIX) as early, ThreadPoolExecutor(1) as threads:
        early.bind(str(place / "a.sock"))
        dialling = threads.submit(samehost.dial, place / "a.sock", wait=DEADLINE)
        assert tried_in_vain.wait(DEADLINE)
        early.listen()
        dialling.result(DEADLINE).close()


@pytest.mark.parametrize("type", TYPES)
def test_a_server_that_comes_later_is_waited_for(place, tried_in_vain, type):
    with ThreadPoolExecutor(1) as threads:
        dialling = threads.submit(samehost.dial, place / "a.sock", type, wait=DEADLINE)
        assert tried_in_vain.wait(DEADLINE)
        with samehost.listen(place / "a.sock", type), dialling.result(DEADLINE) as client:
            client.send(b"hello")


def test_waiting_for_a_server_has_an_end(place):
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no such socket after waiting for 0\.1 s"):
        samehost.dial(place / "none.sock", wait=0.1)
    assert 0.1 <= time.monotonic() - began < 5


def test_a_directory_that_comes_later_is_waited_for_as_well(place, tried_in_vain):
    with ThreadPoolExecutor(1) as threads:
        dialling = threads.submit(samehost.dial, place / "d" / "a.sock", wait=DEADLINE)
        assert tried_in_vain.wait(DEADLINE)
        (place / "d").mkdir()
        with samehost.listen(place / "d" / "a.sock"):
            dialling.result(DEADLINE).close()


# Something else is there


@pytest.mark.parametrize("directory", ["d", "d" * 150])
def test_what_is_no_socket_is_an_address_error(place, directory):
    there = place / directory
    (there / "directory").mkdir(parents=True)
    (there / "file").touch()
    os.mkfifo(there / "fifo")
    (there / "loop").symlink_to("loop")
    (there / "link").symlink_to("file")
    for name in ("file", "directory", "fifo", "link", "loop", "file/a.sock"):
        with pytest.raises(AddressError, match="is not a socket"):
            samehost.dial(there / name)


@pytest.mark.parametrize(("listening", "dialled"), [(a, b) for a in TYPES for b in TYPES if a != b])
def test_a_socket_of_another_type_is_an_address_error(place, listening, dialled):
    with (
        samehost.listen(place / "a.sock", listening),
        pytest.raises(AddressError, match=f"is not of type {dialled}: try another type"),
    ):
        samehost.dial(place / "a.sock", dialled)


@pytest.mark.parametrize(
    ("arguments", "said"), [({"type": "raw"}, "'raw' is not one of 'stream'"), ({"wait": None}, "wait= is a number")]
)
def test_arguments_that_cannot_be_are_refused(place, arguments, said):
    with pytest.raises(UsageError, match=said):
        samehost.dial(place / "a.sock", **arguments)


@needs_root
def test_a_mode_that_keeps_us_out_is_said(place):
    place.chmod(0o755)
    (place / "closed").mkdir(0o700)
    with (
        samehost.listen(place / "a.sock"),
        samehost.listen(place / "closed" / "b.sock", mode=0o666),
        samehost.listen(place / ("c" * 150)),
        python_as(
            NOBODY,
            """
            for path in sys.argv[1:]:
                try:
                    samehost.dial(path)
                except samehost.errors.NotPermitted as error:
                    print(error, flush=True)
            """,
            str(place / "a.sock"),
            str(place / "closed" / "b.sock"),
            str(place / ("c" * 150)),
        ) as program,
    ):
        for name in ("a.sock", "closed/b.sock", "c" * 150):
            assert program.line() == (
                f"uid {NOBODY} may not connect to {place / name}: its mode, or that of a directory above it, says no"
            )


# A full backlog


@pytest.mark.parametrize("backlog", [0, 1])
def test_a_full_backlog_is_tried_until_the_deadline(place, backlog):
    with full_backlog(place / "a.sock", backlog):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"stayed full for 0\.2 s: its server does not accept"):
            samehost.dial(place / "a.sock", timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 5


@pytest.mark.parametrize("timeout", [DEADLINE, None])
def test_a_full_backlog_is_got_through_once_the_server_accepts(place, tried_in_vain, timeout):
    with full_backlog(place / "a.sock") as listener, ThreadPoolExecutor(1) as threads:
        dialling = threads.submit(samehost.dial, place / "a.sock", timeout=timeout)
        assert tried_in_vain.wait(DEADLINE)
        listener.accept(timeout=5).close()
        with dialling.result(DEADLINE) as client, listener.accept(timeout=5) as server:
            client.send(b"hello")
            assert server.recv(timeout=5) == b"hello"


def test_through_a_short_backlog_every_client_gets_its_own_connection(place):
    def ask(number):
        with samehost.dial(place / "a.sock", timeout=DEADLINE) as client:
            client.send(b"%d" % number)
            return int(client.recv(timeout=DEADLINE))

    with samehost.listen(place / "a.sock", backlog=1) as listener, ThreadPoolExecutor(20) as threads:
        answers = threads.map(ask, range(100))
        for _ in range(100):
            with listener.accept(timeout=DEADLINE) as server:
                server.send(server.recv(timeout=DEADLINE))
        assert list(answers) == list(range(100))


INTERRUPTED = """
    import signal, sys, time
    import samehost
    interrupted = 0
    def count(*_):
        global interrupted
        interrupted += 1
    signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    def connected(timeout):
        try:
            with samehost.dial(sys.argv[1], timeout=timeout) as client:
                client.send(b"hello")
                return client.recv(timeout=20)
        except samehost.errors.DeadlineExceeded as error:
            return type(error).__name__
    print(connected(0.3), interrupted > 10, flush=True)
    print("again", flush=True)
    print(connected(20), interrupted > 10, flush=True)
    """


def test_a_full_backlog_is_the_same_under_a_rain_of_signals(place):
    with full_backlog(place / "a.sock") as listener, python(INTERRUPTED, str(place / "a.sock")) as program:
        assert program.line() == "DeadlineExceeded True"
        assert program.line() == "again"
        listener.accept(timeout=5).close()
        with listener.accept(timeout=5) as server:
            assert server.recv(timeout=5) == b"hello"
            server.send(b"hello yourself")
            assert program.line() == "b'hello yourself' True"


def test_a_signal_handler_that_raises_ends_the_dialling_and_leaves_nothing(place, tried_in_vain):
    class Enough(Exception):
        pass

    def give_up(*_):
        raise Enough

    previous = signal.signal(signal.SIGUSR1, give_up)
    main = threading.get_ident()

    def interrupt():
        assert tried_in_vain.wait(DEADLINE)
        signal.pthread_kill(main, signal.SIGUSR1)

    try:
        with full_backlog(place / "a.sock"), ThreadPoolExecutor(1) as threads:
            before = descriptors()
            interrupting = threads.submit(interrupt)
            with pytest.raises(Enough):
                samehost.dial(place / "a.sock", timeout=DEADLINE)
            interrupting.result()
            assert descriptors() == before
    finally:
        signal.signal(signal.SIGUSR1, previous)


# A socket that was handed to us


@pytest.mark.parametrize("type", TYPES)
def test_a_handed_end_of_a_pair_is_a_connection(type):
    kind = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}[type]
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    os.set_inheritable(ours.fileno(), True)
    number = ours.detach()
    with theirs, samehost.dial(f"fd:{number}", type) as connection:
        assert (connection.address, connection.peer.uid) == (f"fd:{number}", os.geteuid())
        assert not os.get_inheritable(number)  # it was, to get here, and must go no further
        connection.send(b"hello")
        assert theirs.recv(100) == b"hello"


@contextmanager
def handed(kind):
    """A descriptor that is no connection."""
    if kind == "a pipe":
        read, write = os.pipe()
        os.close(write)
        yield read
        os.close(read)
        return
    family = socket.AF_INET if kind == "TCP" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as one:
        if kind == "listening":
            one.bind("")
            one.listen()
        yield one.fileno()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a pipe", "is not a socket: Socket operation on non-socket"),
        ("TCP", r"another kind \(AF_INET SOCK_STREAM\)"),
        ("datagram", r"another kind \(AF_UNIX SOCK_DGRAM\), not a UNIX domain socket of type stream"),
        ("listening", "is not connected"),
        ("unconnected", "is not connected"),
    ],
)
def test_a_handed_descriptor_that_is_no_connection_is_refused_and_stays_open(kind, said):
    with handed(kind) as number:
        with pytest.raises(AddressError, match=f"fd:{number} .*{said}"):
            samehost.dial(f"fd:{number}")
        os.fstat(number)


def test_a_descriptor_that_is_not_open_is_refused():
    free = os.dup(0)
    os.close(free)
    with pytest.raises(AddressError, match=f"fd:{free} is not a socket: Bad file descriptor"):
        samehost.dial(f"fd:{free}")


def test_a_handed_connection_is_checked_against_trust_and_stays_open():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(UntrustedServer, match="only uid 12345 is trusted"):
            samehost.dial(f"fd:{ours.fileno()}", trust=samehost.allow(uid=12345))
        ours.send(b"still ours")
        assert theirs.recv(100) == b"still ours"


IMPATIENT = """
print("ready", flush=True)
sys.stdin.readline()
started = time.monotonic()
try:
    samehost.dial(sys.argv[1], wait=15).close()
    print("connected", flush=True)
except samehost.errors.NotPermitted as error:
    print(f"after {time.monotonic() - started:.1f} s: {error}", flush=True)
"""


@needs_root
@needs_program("strace")
def test_a_server_that_is_still_being_opened_to_others_is_waited_for(open_place, monkeypatch):
    path = open_place / "s"
    own = claim._own

    def own_slowly(*arguments):
        client.tell("dial")
        # The client has been refused once its process has made its first connect, which it does within its 0.5 s.
        until(lambda: connects(trace), "a first try of the client")
        own(*arguments)

    trace = open_place / "trace"
    with python_as(NOBODY, IMPATIENT, str(path)) as client:
        assert client.line() == "ready"
        with Program(["strace", "-f", "-p", str(client.pid), "-o", str(trace), "-e", "trace=connect"]) as tracer:
            until(lambda: traced_by(client.pid) == tracer.pid, "strace attached")
            monkeypatch.setattr(claim, "_own", own_slowly)
            with samehost.listen(path, mode=0o666):
                assert client.line() == "connected"
            tracer.signal(signal.SIGINT)
            tracer.end()


@needs_root
def test_who_is_not_permitted_is_told_so_long_before_the_wait_is_over(open_place):
    with samehost.listen(open_place / "s"), python_as(NOBODY, IMPATIENT, str(open_place / "s")) as client:
        assert client.line() == "ready"
        client.tell("dial")
        said = re.fullmatch(r"after (\d\.\d) s: uid \d+ may not connect to .*", client.line())
        assert float(said[1]) < 5


def connects(trace):
    return "EACCES" in trace.read_text() if trace.exists() else False


def traced_by(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("TracerPid:")))


def test_out_of_descriptors_dialling_raises_an_error_of_ours(place):
    with (
        samehost.listen(place / "s"),
        no_descriptors_left(),
        pytest.raises(samehost.errors.Error, match="Too many open"),
    ):
        samehost.dial(place / "s")


@contextmanager
def no_descriptors_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
