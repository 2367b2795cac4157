"""The kernel's table of UNIX sockets, against sockets of our own and hand-made answers."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from samehost.kernel import sock_diag

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to enter a network namespace")


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix="sh") as path:
        yield path


@pytest.fixture
def make():
    """Sockets that are closed at the end."""
    with ExitStack() as stack:

        def make(type=socket.SOCK_STREAM):
            return stack.enter_context(socket.socket(socket.AF_UNIX, type))

        yield make


def row_of(one):
    row = sock_diag.lookup(inode_of(one))
    assert row is not None
    return row


def inode_of(one):
    return os.fstat(one.fileno()).st_ino


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_listener_and_file(directory, make):
    listener = make()
    path = f"{directory}/a.sock"
    listener.bind(path)
    assert row_of(listener).state == "unconnected"
    listener.listen(7)
    status = os.stat(path)
    row = row_of(listener)
    assert row == sock_diag.UnixSocket(
        inode=inode_of(listener),
        type="stream",
        state="listening",
        name=os.fsencode(path),
        file=(status.st_dev, status.st_ino),
        peer_inode=None,
        pending=(),
        receive_queue=0,
        send_queue=7,
        uid=os.geteuid(),
        shutdown=0,
    )
    assert row in sock_diag.dump()


def test_clients_in_the_backlog_are_in_order(directory, make):
    listener = make()
    listener.bind(f"{directory}/a.sock")
    listener.listen(7)
    clients = [make() for _ in range(3)]
    for client in clients:
        client.connect(f"{directory}/a.sock")
    clients[1].close()
    row = row_of(listener)
    assert row.receive_queue == 3
    assert row.pending == (inode_of(clients[0]), 0, inode_of(clients[2]))
    assert row_of(clients[0]).peer_inode == 0
    accepted, _ = listener.accept()
    with accepted:
        assert row_of(clients[0]).peer_inode == inode_of(accepted)
        assert row_of(accepted).peer_inode == inode_of(clients[0])
        assert row_of(accepted).name == row.name
        assert row_of(accepted).file == row.file
    assert row_of(clients[0]).peer_inode == 0
    assert row_of(clients[0]).shutdown == 3


@pytest.mark.parametrize(
    ("type", "name"),
    [
        (socket.SOCK_STREAM, "stream"),
        (socket.SOCK_DGRAM, "datagram"),
        (socket.SOCK_SEQPACKET, "seqpacket"),
    ],
)
def test_a_pair_names_each_other(type, name):
    left, right = socket.socketpair(socket.AF_UNIX, type)
    with left, right:
        assert row_of(left).type == row_of(right).type == name
        assert row_of(left).state == "connected"
        assert row_of(left).name is None
        assert row_of(left).file is None
        assert row_of(left).peer_inode == inode_of(right)
        assert row_of(right).peer_inode == inode_of(left)


def test_queues_and_shutdown():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x" * 100)
        assert row_of(right).receive_queue == 100
        assert row_of(left).send_queue > 0
        assert row_of(left).receive_queue == 0
        left.shutdown(socket.SHUT_WR)
        assert row_of(left).shutdown == 2
        assert row_of(right).shutdown == 1


def test_a_receiver_of_datagrams_does_not_become_connected(make):
    receiver, sender = make(socket.SOCK_DGRAM), make(socket.SOCK_DGRAM)
    receiver.bind(b"\0" + os.urandom(8).hex().encode())
    sender.connect(receiver.getsockname())
    sender.send(b"hello")
    assert row_of(receiver).state == "unconnected"
    assert row_of(receiver).peer_inode is None
    assert row_of(receiver).receive_queue == 5
    assert row_of(sender).state == "connected"
    assert row_of(sender).peer_inode == inode_of(receiver)


@pytest.mark.parametrize(
    "name",
    [b"\0one\0two\n\x1b[31m\xff", b"\0\0", b"\0" + b"n" * 107, b"\0end\0"],
)
def test_abstract_names_arrive_byte_for_byte(make, name):
    one = make()
    one.bind(name)
    assert row_of(one).name == name
    assert row_of(one).file is None


@pytest.mark.parametrize("length", [3, 107])
def test_paths_arrive_without_their_nul(directory, make, length):
    leaf = "\udcff" * (length - len(directory) - 1) if length > 3 else "r"
    path = f"{directory}/{leaf}"
    one = make()
    one.bind(os.fsencode(path))
    assert row_of(one).name == os.fsencode(path)


def test_relative_name(directory, make, monkeypatch):
    monkeypatch.chdir(directory)
    one = make()
    one.bind("here")
    assert row_of(one).name == b"here"
    assert row_of(one).file == (os.stat("here").st_dev, os.stat("here").st_ino)


def test_unknown_inode_is_none(make):
    one = make()
    inode = inode_of(one)
    one.close()
    assert sock_diag.lookup(inode) is None


@pytest.mark.parametrize("inode", [0, -1, 2**32])
def test_impossible_inode(inode):
    with pytest.raises(ValueError, match="inode number"):
        sock_diag.lookup(inode)


def test_dump_of_many_parts_agrees_with_proc(make):
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(300)]
        ours = {inode_of(stack.enter_context(one)) for pair in pairs for one in pair}
        rows = sock_diag.dump()
        inodes = [row.inode for row in rows]
        assert ours <= set(inodes)
        assert inodes == sorted(set(inodes))
        table = Path("/proc/net/unix").read_bytes().splitlines()[1:]
        assert ours <= {int(line.split()[6]) for line in table}


@pytest.mark.parametrize("size", [48, 600])
def test_an_answer_larger_than_the_buffer_is_asked_for_again(monkeypatch, size):
    monkeypatch.setattr(sock_diag, "ANSWER_BYTES_START", size)
    with ExitStack() as stack:
        for _ in range(50):
            for one in socket.socketpair():
                stack.enter_context(one)
        expected = inode_of(one)
        assert expected in {row.inode for row in sock_diag.dump()}
        assert row_of(one).inode == expected


def test_an_answer_beyond_all_buffers_is_an_error(monkeypatch):
    monkeypatch.setattr(sock_diag, "ANSWER_BYTES_START", 48)
    monkeypatch.setattr(sock_diag, "ANSWER_BYTES_MAX", 48)
    left, right = socket.socketpair()
    with left, right, pytest.raises(OSError, match="48 bytes") as caught:
        sock_diag.dump()
    assert caught.value.errno == errno.EMSGSIZE


def test_a_backlog_beyond_one_message(directory, make):
    clients_count = 3000  # an exact request is answered with up to about 2000
    if int(Path("/proc/sys/net/core/somaxconn").read_text()) < clients_count:
        pytest.skip("net.core.somaxconn is too low for a backlog of 3000")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < clients_count + 100:
        pytest.skip("RLIMIT_NOFILE is too low for 3000 clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, clients_count + 100), hard))
    try:
        listener = make()
        listener.bind(f"{directory}/a.sock")
        listener.listen(clients_count)
        clients = [make() for _ in range(clients_count)]
        for client in clients:
            client.connect(f"{directory}/a.sock")
        expected = tuple(map(inode_of, clients))
        with sock_diag._open(None) as netlink, pytest.raises(OSError, match="too long"):
            sock_diag._exact(netlink, inode_of(listener), sock_diag.SHOW_ICONS)
        assert row_of(listener).pending == expected
        rows = {row.inode: row for row in sock_diag.dump()}
        assert rows[inode_of(listener)].pending == expected
        assert set(expected) <= rows.keys()
        for client in clients:
            client.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_is_left_open(monkeypatch):
    before = open_descriptors()
    sock_diag.dump()
    sock_diag.lookup(1)
    with pytest.raises(FileNotFoundError):
        sock_diag.dump("/proc/self/ns/nothing")
    with pytest.raises(OSError, match="Invalid argument"):
        sock_diag.dump("/proc/self/ns/mnt")
    with monkeypatch.context() as patch:
        patch.setattr(sock_diag, "_receive", lambda *_: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            sock_diag.dump()
    assert open_descriptors() == before


def test_the_kernels_error_becomes_its_errno():
    with sock_diag._open(None) as netlink, pytest.raises(OSError, match="sock_diag") as caught:
        sock_diag._exact(netlink, 0, sock_diag.SHOW_NAME)
    assert caught.value.errno == errno.EINVAL


@needs_root
def test_another_network_namespace():
    program = (
        "import socket\n"
        "one = socket.socket(socket.AF_UNIX)\n"
        "one.bind(b'\\0in another place')\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    child = subprocess.Popen(
        ["unshare", "-n", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "ready\n"
        namespace = os.readlink("/proc/self/ns/net")
        there = [row.name for row in sock_diag.dump(f"/proc/{child.pid}/ns/net")]
        here = [row.name for row in sock_diag.dump()]
        child.stdin.write("\n")
    assert child.returncode == 0
    assert b"\0in another place" in there
    assert b"\0in another place" not in here
    assert os.readlink("/proc/self/ns/net") == namespace


class Scripted:
    """Stands for a netlink socket: answers each request with the next of prepared parts."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.sequence = 0
        self.parts = []

    def sendto(self, request, address):
        assert address == (0, 0)
        self.sequence = struct.unpack_from("=IHHII", request)[3]
        self.parts = list(self.answers.pop(0))

    def recvmsg(self, size):
        part, sender = self.parts.pop(0)
        return b"".join(message(self.sequence) for message in part), [], 0, (sender, 0)


def message(kind, payload, flags=0, sequence=None, length=None):
    def build(current):
        number = current if sequence is None else sequence
        total = 16 + len(payload) if length is None else length
        padding = b"\0" * (-len(payload) % 4)
        return struct.pack("=IHHII", total, kind, flags, number, 0) + payload + padding

    return build


def row(inode, *attributes, family=socket.AF_UNIX):
    packed = b"".join(
        struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4) for kind, data in attributes
    )
    return struct.pack("=BBBBIII", family, 1, 7, 0, inode, 0, 0) + packed


DONE = struct.pack("=i", 0)


def dump(*answers):
    return sock_diag._dump(Scripted(*answers), 0xFFFFFFFF, 0)


def test_an_interrupted_dump_is_asked_for_again():
    rows = dump(
        [([message(20, row(1)), message(20, row(2), flags=0x10)], 0), ([message(3, DONE)], 0)],
        [([message(20, row(2))], 0), ([message(3, DONE)], 0)],
    )
    assert list(rows) == [2]


def test_a_dump_that_is_always_interrupted_ends():
    answer = [([message(20, row(1), flags=0x10), message(3, DONE, flags=0x10)], 0)]
    scripted = Scripted(*[answer] * 99)
    assert list(sock_diag._dump(scripted, 0, 0)) in ([1], [])
    assert len(scripted.answers) == 99 - sock_diag.DUMP_ATTEMPTS_MAX


def test_messages_of_others_are_left_out():
    rows = dump(
        [
            ([message(20, row(1))], 4711),  # not from the kernel
            ([message(20, row(2), sequence=0)], 0),  # an answer to something else
            ([message(20, row(3, family=socket.AF_INET))], 0),
            ([message(20, row(4)), message(3, DONE)], 0),
        ]
    )
    assert list(rows) == [4]


@pytest.mark.parametrize(
    "bad",
    [
        message(20, row(1), length=15),
        message(20, row(1), length=9999),
        message(20, row(1)[:10]),
        message(20, row(1) + struct.pack("=HH", 3, 0)),
        message(20, row(1) + struct.pack("=HH", 99, 0)),
    ],
)
def test_malformed_answers_are_errors(bad):
    with pytest.raises(OSError, match="sock_diag") as caught:
        dump([([bad], 0)])
    assert caught.value.errno == errno.EBADMSG


def test_attributes_of_unexpected_size_are_unknown():
    rows = dump(
        [
            (
                [
                    message(20, row(1, (1, b"123"), (2, b"12"), (4, b"1"), (7, b""), (99, b"?"))),
                    message(3, DONE),
                ],
                0,
            )
        ]
    )
    assert rows[1].file is None
    assert rows[1].peer_inode is None
    assert rows[1].uid is None
    assert (rows[1].receive_queue, rows[1].send_queue) == (0, 0)


def test_devices_are_numbered_as_in_stat():
    rows = dump(
        [
            (
                [
                    message(20, row(1, (1, struct.pack("=II", 5, 259 << 20 | 0x12345)))),
                    message(3, DONE),
                ],
                0,
            )
        ]
    )
    assert rows[1].file == (os.makedev(259, 0x12345), 5)
