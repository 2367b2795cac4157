"""What the kernel knows of UNIX domain sockets, asked over netlink (sock_diag(7)).

One request, one bounded loop of answers, one strict parser: the kernel's numbers become a
UnixSocket, and nothing is interpreted beyond that. The table is asked for without the lists of
waiting clients, because a listener whose list does not fit into one message ends the kernel's dump
early and silently; those lists are asked for afterwards, for the listeners that have waiting
clients. Which process holds a socket is not known here (see `processes`), and neither is what a
file's name leads to (see `owners`).
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
NLM_F_REQUEST = 0x01
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
CLONE_NEWNET = 0x40000000  # linux/sched.h

SHOW_NAME = 0x01  # linux/unix_diag.h, UDIAG_SHOW_*
SHOW_VFS = 0x02
SHOW_PEER = 0x04
SHOW_ICONS = 0x08
SHOW_RQLEN = 0x10
SHOW_UID = 0x40
SHOW_BOUNDED = SHOW_NAME | SHOW_VFS | SHOW_PEER | SHOW_RQLEN | SHOW_UID

ATTRIBUTE_NAME = 0  # UNIX_DIAG_*
ATTRIBUTE_VFS = 1
ATTRIBUTE_PEER = 2
ATTRIBUTE_ICONS = 3
ATTRIBUTE_RQLEN = 4
ATTRIBUTE_SHUTDOWN = 6
ATTRIBUTE_UID = 7

STATE_ESTABLISHED = 1  # net/tcp_states.h, which UNIX sockets share
STATE_CLOSE = 7
STATE_LISTEN = 10
STATES_ALL = 0xFFFFFFFF
COOKIE_ANY = 0xFFFFFFFF

ANSWER_BYTES_START = 64 * 1024  # the kernel fills at most 32 KiB a part when it is offered that much
ANSWER_BYTES_MAX = 4 * 1024 * 1024
ANSWER_SECONDS_MAX = 10.0  # the kernel answers at once; this is against waiting for ever
DUMP_ATTEMPTS_MAX = 8

_message_header = struct.Struct("=IHHII")
_request = struct.Struct("=BBHIIIII")
_row = struct.Struct("=BBBBIII")
_attribute_header = struct.Struct("=HH")

_types = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_SEQPACKET: "seqpacket",
}


class UnixSocket(NamedTuple):
    """One row of the kernel's table of UNIX domain sockets.

    Attributes:
        inode: the socket's inode number, the N of `socket:[N]` in /proc/PID/fd.
        type: "stream", "datagram" or "seqpacket".
        state: "listening", "connected" or "unconnected". A datagram socket is "connected" when it
            has itself connected; the kernel also marks the receiver as established, which says
            nothing of the receiver.
        name: the name it was bound under, exactly: a path with no NUL at its end (possibly
            relative), or an abstract name with its leading NUL; None when it has none. An accepted
            socket carries its listener's name.
        file: (device as in st_dev, low 32 bits of the inode number) of the file it was bound to;
            None when there is none. The device is the filesystem's own, which can differ from
            st_dev on btrfs and overlayfs.
        peer_inode: the inode of the other end; None when there is none; 0 when the other end has no
            inode: it is not accepted yet (see `pending` of the listener), or it is closed.
        pending: of a listener, the inodes of the clients that wait in its backlog, oldest first; 0
            for a client that went away meanwhile. Empty, while receive_queue is not 0, when the
            kernel could not tell.
        receive_queue: of a listener, how many clients wait; otherwise unread bytes (of a datagram
            socket: of its first message only).
        send_queue: of a listener, the backlog's limit; otherwise bytes of memory held by what was
            sent and is not yet read.
        uid: the user id that made the socket, or None (before Linux 5.3).
        shutdown: 0, 1 (receiving is shut down), 2 (sending) or 3 (both), as in shutdown(2) plus 1.
    """

    inode: int
    type: str
    state: str
    name: bytes | None
    file: tuple[int, int] | None
    peer_inode: int | None
    pending: tuple[int, ...]
    receive_queue: int
    send_queue: int
    uid: int | None
    shutdown: int


class _Interrupted(Exception):
    """The table changed during the dump (NLM_F_DUMP_INTR)."""


class _TooLarge(Exception):
    """A message did not fit into the buffer."""


def dump(network_namespace: str | None = None) -> list[UnixSocket]:
    """All UNIX domain sockets of a network namespace, in order of inode.

    The table is not one moment's: sockets that come and go meanwhile may be in it or not.

    Args:
        network_namespace: None for the caller's, or a file such as "/proc/812/ns/net" (setns(2),
            which needs CAP_SYS_ADMIN).

    Raises:
        OSError: from socket(2), setns(2), or as the kernel answered (ENOENT: it has no unix_diag).
    """
    with _open(network_namespace) as netlink:
        rows = _dump(netlink, STATES_ALL, SHOW_BOUNDED)
        for row in list(rows.values()):
            if row.state == "listening" and row.receive_queue:
                rows[row.inode] = row._replace(pending=_pending(netlink, row.inode))
    return [rows[inode] for inode in sorted(rows)]


def lookup(inode: int, network_namespace: str | None = None) -> UnixSocket | None:
    """The UNIX domain socket with this inode number, or None if the network namespace has none.

    Args:
        inode: the socket's inode number.
        network_namespace: as for `dump`.

    Raises:
        OSError: from socket(2), or as the kernel answered.
        ValueError: inode is not from 1 to 2**32 - 1.
    """
    if not 0 < inode <= 0xFFFFFFFF:
        raise ValueError(f"a socket's inode number is from 1 to 4294967295, not {inode}")
    with _open(network_namespace) as netlink:
        row = _exact(netlink, inode, SHOW_BOUNDED)
        if row is not None and row.state == "listening" and row.receive_queue:
            row = row._replace(pending=_pending(netlink, inode))
        return row


def _open(network_namespace: str | None) -> socket.socket:
    """A netlink socket of the namespace, close-on-exec. A socket stays in the namespace it was made in."""
    if network_namespace is None:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    else:
        netlink = _open_elsewhere(network_namespace)
    netlink.settimeout(ANSWER_SECONDS_MAX)
    return netlink


def _open_elsewhere(network_namespace: str) -> socket.socket:
    """Makes the socket in a thread of its own: setns(2) moves the one thread that calls it."""
    import ctypes
    import threading

    made: list[socket.socket] = []
    failed: list[OSError] = []

    def visit() -> None:
        try:
            descriptor = os.open(network_namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                library = ctypes.CDLL(None, use_errno=True)
                if library.setns(descriptor, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), network_namespace)
            finally:
                os.close(descriptor)
            made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=visit, name="samehost-setns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _dump(netlink: socket.socket, states: int, show: int) -> dict[int, UnixSocket]:
    """The table by inode, asked for again, so many times at most, when the kernel says that it changed meanwhile."""
    rows: dict[int, UnixSocket] = {}
    for _ in range(DUMP_ATTEMPTS_MAX):
        rows = {}
        try:
            for row in _ask(netlink, NLM_F_REQUEST | NLM_F_DUMP, 0, states, show):
                rows[row.inode] = row
        except _Interrupted:
            continue
        break
    return rows


def _exact(netlink: socket.socket, inode: int, show: int) -> UnixSocket | None:
    """One row, or None when there is no such socket."""
    try:
        for row in _ask(netlink, NLM_F_REQUEST, inode, STATES_ALL, show):
            if row.inode == inode:
                return row
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
    return None


def _pending(netlink: socket.socket, inode: int) -> tuple[int, ...]:
    """The clients in a listener's backlog; empty when it is gone or its list exceeds what the kernel can send.

    The exact request carries about two thousand of them, then answers EMSGSIZE; a dump of the
    listeners carries about eight thousand, once the kernel has seen on this netlink socket how much
    is read at a time, which the exact request has shown it.
    """
    try:
        row = _exact(netlink, inode, SHOW_BOUNDED | SHOW_ICONS)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        row = _dump(netlink, 1 << STATE_LISTEN, SHOW_ICONS).get(inode)
    return () if row is None else row.pending


def _ask(netlink: socket.socket, flags: int, inode: int, states: int, show: int) -> Iterator[UnixSocket]:
    """Sends one request and yields the rows of its answer, with a larger buffer if one was too small."""
    size = ANSWER_BYTES_START
    while True:
        sequence = _send(netlink, flags, inode, states, show)
        try:
            # A list, so that no row is given out twice when the request has to be sent again.
            yield from list(_receive(netlink, sequence, flags, size))
            return
        except _TooLarge:
            size *= 4
            if size > ANSWER_BYTES_MAX:
                raise OSError(errno.EMSGSIZE, f"sock_diag: an answer of more than {ANSWER_BYTES_MAX} bytes") from None


_sequences = itertools.count(1)


def _send(netlink: socket.socket, flags: int, inode: int, states: int, show: int) -> int:
    """Sends one request; its sequence number tells its answers from those of an earlier one."""
    sequence = next(_sequences) & 0x7FFFFFFF
    request = _request.pack(
        socket.AF_UNIX,
        0,
        0,
        states,
        inode,
        show,
        COOKIE_ANY if inode else 0,
        COOKIE_ANY if inode else 0,
    )
    header = _message_header.pack(_message_header.size + len(request), SOCK_DIAG_BY_FAMILY, flags, sequence, 0)
    netlink.sendto(header + request, (0, 0))
    return sequence


def _receive(netlink: socket.socket, sequence: int, flags: int, size: int) -> Iterator[UnixSocket]:
    """Reads the parts of an answer up to its end. An exact request has one row, no end."""
    interrupted = False
    dumping = bool(flags & NLM_F_DUMP)
    while True:
        part, _, part_flags, sender = netlink.recvmsg(size)
        if sender[0] != 0:
            continue  # not from the kernel
        if part_flags & socket.MSG_TRUNC:
            _drain(netlink, size)
            raise _TooLarge
        for kind, message_flags, message_sequence, payload in _messages(part):
            if message_sequence != sequence:
                continue
            interrupted = interrupted or bool(message_flags & NLM_F_DUMP_INTR)
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                _raise_for(payload)
                if interrupted:
                    raise _Interrupted
                return
            if kind == SOCK_DIAG_BY_FAMILY:
                row = _parse(payload)
                if row is not None:
                    yield row
                if not dumping:
                    return


def _drain(netlink: socket.socket, size: int) -> None:
    """Throws away the rest of an answer; a dump that is under way would make the next request fail with EBUSY."""
    netlink.setblocking(False)
    try:
        while True:
            netlink.recv(size)
    except BlockingIOError:
        pass
    finally:
        netlink.settimeout(ANSWER_SECONDS_MAX)


def _messages(part: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """(type, flags, sequence, payload) of each message in one part (netlink(7)); a malformed one is an error."""
    view = memoryview(part)
    at = 0
    while at + _message_header.size <= len(view):
        length, kind, flags, sequence, _ = _message_header.unpack_from(view, at)
        if length < _message_header.size or at + length > len(view):
            raise OSError(errno.EBADMSG, "sock_diag: a netlink message longer than its part")
        yield kind, flags, sequence, view[at + _message_header.size : at + length]
        at += (length + 3) & ~3


def _raise_for(payload: memoryview) -> None:
    """Raises the error of an NLMSG_ERROR or NLMSG_DONE; both begin with a negative errno, or 0."""
    if len(payload) < 4:
        return
    number = -struct.unpack_from("=i", payload)[0]
    if number > 0:
        raise OSError(number, f"sock_diag: {os.strerror(number)}")


def _attributes(payload: memoryview) -> dict[int, bytes]:
    """The attributes after the row's fixed part, by type; a malformed one is an error, never a shorter answer."""
    attributes: dict[int, bytes] = {}
    at = _row.size
    while at + _attribute_header.size <= len(payload):
        length, kind = _attribute_header.unpack_from(payload, at)
        if length < _attribute_header.size or at + length > len(payload):
            raise OSError(errno.EBADMSG, "sock_diag: an attribute longer than its message")
        attributes[kind & 0x3FFF] = bytes(payload[at + _attribute_header.size : at + length])
        at += (length + 3) & ~3
    return attributes


def _parse(payload: memoryview) -> UnixSocket | None:
    """One row, or None for a row that is not of a UNIX socket."""
    if len(payload) < _row.size:
        raise OSError(errno.EBADMSG, "sock_diag: a row shorter than its fixed part")
    family, kind, state, _, inode, _, _ = _row.unpack_from(payload)
    if family != socket.AF_UNIX:
        return None
    attributes = _attributes(payload)
    peer = _number(attributes.get(ATTRIBUTE_PEER))
    queues = attributes.get(ATTRIBUTE_RQLEN, b"")
    receive_queue, send_queue = struct.unpack("=II", queues) if len(queues) == 8 else (0, 0)
    pending = attributes.get(ATTRIBUTE_ICONS, b"")
    shutdown = attributes.get(ATTRIBUTE_SHUTDOWN, b"")
    return UnixSocket(
        inode=inode,
        type=_types.get(kind, f"type {kind}"),
        state=_state(kind, state, peer),
        name=_name(attributes.get(ATTRIBUTE_NAME)),
        file=_file(attributes.get(ATTRIBUTE_VFS)),
        peer_inode=peer,
        pending=struct.unpack(f"={len(pending) // 4}I", pending[: len(pending) // 4 * 4]),
        receive_queue=receive_queue,
        send_queue=send_queue,
        uid=_number(attributes.get(ATTRIBUTE_UID)),
        shutdown=shutdown[0] if shutdown else 0,
    )


def _state(kind: int, state: int, peer: int | None) -> str:
    if state == STATE_LISTEN:
        return "listening"
    if kind == socket.SOCK_DGRAM:
        # connect(2) marks both ends as established, also the receiver, which has no peer.
        return "unconnected" if peer is None else "connected"
    if state == STATE_ESTABLISHED:
        return "connected"
    if state == STATE_CLOSE:
        return "unconnected"
    return f"state {state}"


def _name(attribute: bytes | None) -> bytes | None:
    """A path arrives with the NUL at its end that bind(2) put there; an abstract name is all its bytes."""
    if not attribute:
        return None
    if attribute[0] == 0:
        return attribute
    return attribute.removesuffix(b"\0")


def _file(attribute: bytes | None) -> tuple[int, int] | None:
    """The kernel's own device number has 12 bits of major before 20 of minor; st_dev is laid out otherwise."""
    if attribute is None or len(attribute) != 8:
        return None
    inode, device = struct.unpack("=II", attribute)
    return os.makedev(device >> 20, device & 0xFFFFF), inode


def _number(attribute: bytes | None) -> int | None:
    if attribute is None or len(attribute) != 4:
        return None
    number: int = struct.unpack("=I", attribute)[0]
    return number
