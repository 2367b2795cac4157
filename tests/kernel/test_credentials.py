"""Who is at the other end, and who is turned away before a byte is read."""

from __future__ import annotations

import gc
import grp
import os
import select
import shutil
import signal
import socket
import sys

import pytest
from support import DEADLINE, NOBODY, Program, descriptors, kill, needs_program, needs_root, python, python_as

import samehost
from samehost.errors import DeadlineExceeded
from samehost.kernel import credentials

PYTHON = [sys.executable, "-c"]

OTHER = 54321
"""A uid, and a gid, that has no name and that nothing else on the host has."""

# Says a byte before anybody can have accepted, and then what became of it.
CLIENT = """
    client = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[2]))
    client.connect(sys.argv[1])
    client.send(b"secret")
    print("sent", flush=True)
    try:
        print(client.recv(100) or "end", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
    """


def a_client(path, type="SOCK_STREAM", **options):
    options.setdefault("uid", OTHER)
    return python_as(options.pop("uid"), CLIENT, str(path), type, **options)


@pytest.fixture
def path(place):
    place.chmod(0o755)
    return place / "a.sock"


# What the kernel tells


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_both_ends_know_each_other(path, type):
    with (
        samehost.listen(path, type) as listener,
        samehost.dial(path, type) as client,
        listener.accept(timeout=5) as server,
    ):
        for end in client, server:
            assert (end.peer.uid, end.peer.gid, end.peer.pid) == (os.geteuid(), os.getegid(), os.getpid())
            assert sorted(end.peer.groups) == sorted(os.getgroups())


def test_the_sender_of_a_datagram_is_known(path):
    with samehost.listen(path, "datagram") as listener, samehost.dial(path, "datagram") as client:
        client.send(b"hello")
        peer = listener.receive(timeout=5).peer
        assert (peer.uid, peer.gid, peer.groups, peer.pid) == (os.geteuid(), os.getegid(), (), os.getpid())
        assert peer.pidfd is None  # the kernel tells none of a sender, and a pid may be another process by now


@needs_root
@pytest.mark.parametrize("count", [0, 3, 64, 65, 256, 257, 2000])
def test_another_user_is_known_with_all_the_groups(path, count):
    # Python's getsockopt gives room to 256 groups, and at first says only that it is too little.
    groups = tuple(range(70_000, 70_000 + count))
    with samehost.listen(path, mode=0o666) as listener, a_client(path, gid=1234, groups=groups) as client:
        with listener.accept(timeout=DEADLINE) as server:
            assert (server.peer.uid, server.peer.gid, server.peer.pid) == (OTHER, 1234, client.pid)
            assert server.peer.groups == groups
            assert server.peer.user is None
            assert server.recv(timeout=5) == b"secret"
        assert client.line() == "sent"


@needs_root
def test_the_credentials_are_those_of_the_moment_of_connecting(path):
    # A process that changes its user, or hands its socket to another, does not change who connected.
    with (
        samehost.listen(path) as listener,
        samehost.dial(path) as client,
        python_as(
            OTHER,
            """
            handed = socket.socket(fileno=int(sys.argv[1]))
            handed.send(b"from another user")
            print(os.getuid(), flush=True)
            """,
            str(client.socket.fileno()),
            pass_fds=[client.socket.fileno()],
        ) as other,
        listener.accept(timeout=5) as server,
    ):
        assert server.recv(timeout=DEADLINE) == b"from another user"
        assert (server.peer.uid, server.peer.pid) == (0, os.getpid())
        assert other.line() == str(OTHER)


# The pidfd


def pid_of(pidfd):
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))


CONNECT = """
    import socket, sys
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    sys.stdin.readline()
    """


def test_the_pidfd_is_of_the_process_itself(path):
    with samehost.listen(path) as listener, python(CONNECT, str(path)) as client:
        before = descriptors()
        server = listener.accept(timeout=DEADLINE)
        assert len(descriptors()) == len(before) + 1  # the connection, and nothing else before it is asked for
        pidfd = server.peer.pidfd
        assert pid_of(pidfd) == client.pid == server.peer.pid
        assert not os.get_inheritable(pidfd)
        assert server.peer.pidfd == pidfd
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert client.end() == -signal.SIGKILL
        assert select.select([pidfd], [], [], DEADLINE)[0]  # readable once it has ended
        server.close()
        assert server.peer.pidfd is None
        assert descriptors() == before


def test_a_client_knows_its_server_s_process(path):
    with (
        python(
            """
            import sys, samehost
            with samehost.listen(sys.argv[1]):
                print("ready", flush=True)
                sys.stdin.readline()
            """,
            str(path),
        ) as server,
        samehost.dial(path, wait=DEADLINE) as client,
    ):
        assert pid_of(client.peer.pidfd) == server.pid


def test_a_process_that_is_gone_before_it_is_asked_for_is_nobody_else(path):
    with samehost.listen(path) as listener, python(CONNECT, str(path)) as client:
        server = listener.accept(timeout=DEADLINE)
        kill(client)
        with server:
            pidfd = server.peer.pidfd
            assert pidfd is None or select.select([pidfd], [], [], 0)[0]


def test_a_kernel_that_cannot_tell_gives_none(path, monkeypatch):
    monkeypatch.setattr(credentials, "_SO_PEERPIDFD", 9999)  # ENOPROTOOPT, as before Linux 6.5
    with samehost.listen(path), samehost.dial(path) as client:
        assert client.peer.pidfd is None


# Pids say little


needs_pid_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="SKIPPED LOUDLY: needs root and unshare"
)


@needs_pid_namespaces
@pytest.mark.parametrize("type", ["stream", "seqpacket", "datagram"])
def test_a_process_that_cannot_be_seen_from_here_has_pid_0(path, type):
    program = f"""
import samehost, sys
with samehost.listen(sys.argv[1], {type!r}) as listener:
    print("ready", flush=True)
    peer = (listener.receive if {type!r} == "datagram" else listener.accept)(timeout=20)
    print(peer.peer.pid, peer.peer.uid, peer.peer.pidfd, flush=True)
    peer.close()
"""
    with Program(["unshare", "--pid", "--fork", "--kill-child", *PYTHON, program, str(path)]) as server:
        assert server.line() == "ready"
        with samehost.dial(path, type) as client:
            if type == "datagram":
                client.send(b"hello")
            assert server.line().startswith(f"0 {os.geteuid()} ")
        assert server.end() == 0


PID_REUSE = f"""
import os, select, signal, sys
import samehost

def in_a_child(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child

def connect():
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
    import socket
    for _ in range(2):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)

path = sys.argv[1]
with samehost.listen(path, mode=0o666, allow=samehost.allow(uid=0)) as listener:
    stranger = in_a_child(connect)
    os.waitpid(stranger, 0)
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(stranger - 1))
    root = in_a_child(signal.pause)
    print("same pid:", root == stranger, "uid:", os.stat(f"/proc/{{root}}").st_uid, flush=True)
    listener._keeper.policy = samehost.ANYONE
    with listener.accept(timeout=5) as admitted:
        pidfd = admitted.peer.pidfd
        ended = pidfd is None or bool(select.select([pidfd], [], [], 0)[0])
        print(admitted.peer.uid, admitted.peer.pid == root, "ended:", ended, flush=True)
    listener._keeper.policy = samehost.allow(uid=0)
    try:
        listener.accept(timeout=0.1)
    except samehost.errors.DeadlineExceeded:
        print("refused", flush=True)
    os.kill(root, signal.SIGKILL)
    os.waitpid(root, 0)
"""


@needs_pid_namespaces
def test_a_pid_that_root_has_by_now_opens_no_door(path):
    # A stranger connects and ends; a process of root's gets its pid. In a namespace of its own, so that no other does.
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *PYTHON, PID_REUSE, str(path)]
    with Program(command) as server:
        assert server.line() == "same pid: True uid: 0"
        assert server.line() == f"{NOBODY} True ended: True"
        assert server.line() == "refused"
        assert server.end() == 0, server.errors()


# Who is turned away


@needs_root
@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_another_uid_is_refused_before_a_byte_is_read_and_logged(path, type, caplog):
    kind = {"stream": "SOCK_STREAM", "seqpacket": "SOCK_SEQPACKET"}[type]
    with samehost.listen(path, type, mode=0o666, allow=samehost.allow(uid=0)) as listener:
        with a_client(path, kind, uid=NOBODY) as stranger:
            assert stranger.line() == "sent"
            before = descriptors()
            with pytest.raises(DeadlineExceeded):
                listener.accept(timeout=0.1)
            assert descriptors() == before
            # The kernel says reset when a socket is closed with bytes in it that were never read.
            assert stranger.line() == "reset"
            assert f"{path} refused uid {NOBODY} (nobody), gid {NOBODY}, pid {stranger.pid}: it admits uid 0" in (
                caplog.messages
            )
        with samehost.dial(path, type) as welcome:
            welcome.send(b"hello")
            with listener.accept(timeout=5) as server:
                assert server.recv(timeout=5) == b"hello"


@needs_root
@needs_program("strace")
def test_the_kernel_is_never_asked_for_a_refused_peer_s_bytes(path):
    server_program = """
import samehost, sys
with samehost.listen(sys.argv[1], mode=0o666, allow=samehost.allow(uid=0)) as listener:
    print("ready", flush=True)
    sys.stdin.readline()
    listener.accept(timeout=20).close()
"""
    trace = path.parent / "trace"
    calls = "accept4,close,read,readv,recvfrom,recvmsg,recvmmsg"
    command = ["strace", "-f", "-e", f"trace={calls}", "-o", str(trace), *PYTHON]
    with Program([*command, server_program, str(path)]) as server:
        assert server.line() == "ready"
        with a_client(path) as stranger:
            assert stranger.line() == "sent"
            server.tell("accept")
            assert stranger.line() == "reset"
        samehost.dial(path).close()
        assert server.end() == 0, server.errors()
    # The calls from the accept that gave the stranger's socket to the close of it.
    lines = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines()]
    accepted = next(number for number, line in enumerate(lines) if line.startswith("accept4(") and "= -1" not in line)
    closed = lines.index(next(line for line in lines[accepted:] if line.startswith("close(")), accepted)
    assert lines[closed].startswith(f"close({lines[accepted].rsplit('= ', 1)[1]})")
    assert lines[accepted + 1 : closed] == []
    assert sum(line.startswith("accept4(") and "= -1" not in line for line in lines) == 2


@needs_root
def test_a_datagram_of_another_uid_is_refused_counted_and_logged(path, caplog):
    with (
        samehost.listen(path, "datagram", mode=0o666, allow=samehost.allow(uid=0)) as listener,
        python_as(
            NOBODY,
            """
            with samehost.dial(sys.argv[1], "datagram") as client:
                client.send(b"secret", [0])
            print("sent", flush=True)
            """,
            str(path),
        ) as stranger,
        samehost.dial(path, "datagram") as welcome,
    ):
        assert stranger.line() == "sent"
        before = descriptors()
        welcome.send(b"hello")
        datagram = listener.receive(files_max=1, timeout=5)
        assert (datagram.data, datagram.peer.uid) == (b"hello", 0)
        assert listener.dropped == 1
        assert descriptors() == before
        assert f"uid {NOBODY} (nobody), gid {NOBODY}, pid {stranger.pid} is refused: it admits uid 0" in caplog.text


def group_of_nobody():
    return grp.getgrgid(NOBODY).gr_name


@needs_root
@pytest.mark.parametrize(
    ("policy", "identity", "admitted"),
    [
        (lambda: samehost.allow(uid=OTHER), {}, True),
        (lambda: samehost.allow(uid=[0, 1]), {}, False),
        (lambda: samehost.allow(gid=777), {"gid": 777}, True),
        (lambda: samehost.allow(gid=777), {"groups": (5, 777)}, True),
        (lambda: samehost.allow(gid=777), {"groups": (5, 778)}, False),
        (lambda: samehost.allow(user="nobody"), {"uid": NOBODY}, True),
        (lambda: samehost.allow(user="nobody"), {}, False),
        (lambda: samehost.allow(group=group_of_nobody()), {"groups": (NOBODY,)}, True),
        (lambda: samehost.allow(uid=OTHER, gid=777), {"gid": 777}, True),
        (lambda: samehost.allow(uid=OTHER, gid=777), {"gid": 778}, False),
        (lambda: samehost.allow(uid=0, gid=777), {"gid": 777}, False),
        (lambda: samehost.allow(uid=0) | samehost.allow(gid=777), {"gid": 777}, True),
        (lambda: samehost.ANYONE, {}, True),
    ],
)
def test_a_policy_decides_over_real_processes(path, policy, identity, admitted):
    with samehost.listen(path, mode=0o666, allow=policy()) as listener, a_client(path, **identity) as client:
        assert client.line() == "sent"
        if admitted:
            with listener.accept(timeout=5) as server:
                assert server.recv(timeout=5) == b"secret"
        else:
            with pytest.raises(DeadlineExceeded):
                listener.accept(timeout=0.05)
        assert client.line() == ("end" if admitted else "reset")


@needs_root
@pytest.mark.parametrize(("groups", "reaches"), [((777,), True), ((), False)])
def test_without_a_policy_the_mode_and_the_group_of_the_file_decide(path, groups, reaches):
    with (
        samehost.listen(path, mode=0o660, group=777) as listener,
        python_as(
            OTHER,
            """
            try:
                samehost.dial(sys.argv[1]).close()
                print("reached", flush=True)
            except samehost.errors.NotPermitted:
                print("kept out", flush=True)
            """,
            str(path),
            groups=groups,
        ) as client,
    ):
        assert client.line() == ("reached" if reaches else "kept out")
        if reaches:
            with listener.accept(timeout=5) as server:
                assert server.peer.uid == OTHER


@needs_root
@pytest.mark.parametrize("type", ["stream", "datagram"])
def test_an_abstract_name_admits_the_same_user_and_root_alone(type, caplog):
    name = f"@samehost-policy-{os.getpid()}-{type}"
    with (
        samehost.listen(name, type) as listener,
        python_as(
            OTHER,
            """
            client = samehost.dial(sys.argv[1], sys.argv[2])
            client.send(b"secret")
            print("sent", flush=True)
            """,
            name,
            type,
        ) as stranger,
    ):
        assert stranger.line() == "sent"
        take = listener.receive if type == "datagram" else listener.accept
        with pytest.raises(DeadlineExceeded):
            take(timeout=0.1)
        assert f"uid {OTHER}," in caplog.text
        with samehost.dial(name, type) as client:
            client.send(b"hello")
            taken = take(timeout=5)
            assert taken.peer.uid == 0
            taken.close()


def test_a_policy_is_asked_of_a_handed_listener_too(path, caplog):
    plain = socket.socket(socket.AF_UNIX)
    plain.bind(str(path))
    plain.listen()
    with (
        samehost.listen(f"fd:{plain.detach()}", allow=samehost.allow(uid=OTHER)) as listener,
        samehost.dial(path) as client,
    ):
        with pytest.raises(DeadlineExceeded):
            listener.accept(timeout=0.05)
        assert client.recv(timeout=5) == b""
        assert f"refused uid {os.geteuid()}" in caplog.text


def test_a_forgotten_peer_closes_its_pidfd(place):
    with samehost.listen(place / "s"):
        connection = samehost.dial(place / "s")
        number = connection.peer.pidfd
        connection.socket.close()
        assert number in descriptors()
        del connection
        gc.collect()
        assert "pidfd" not in descriptors().get(number, "")
