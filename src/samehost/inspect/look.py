"""Inspecting an address or the whole host: from a snapshot of the kernel's tables to a Report.

One builder turns rows into the report's sockets and pairs them into connections, each pair once.
Which rows belong to an address is decided by inode and device for a path, by the exact name for an
abstract one, by the descriptor's inode for `fd:N`. Nothing is connected to and nothing is changed,
except that a path that nobody seems to be bound to is probed in a way that no server notices
(`owners.is_anybody_bound`), because servers of other network namespaces are in no table of ours.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from samehost.address import AbstractAddress, DescriptorAddress, PathAddress, parse
from samehost.errors import AddressError, Error, NotPermitted, Unavailable
from samehost.inspect import names, snapshot
from samehost.inspect.report import Connection, FileFacts, Holder, Report, Socket
from samehost.kernel import owners, processes, sock_diag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from samehost.kernel.processes import Process
    from samehost.kernel.sock_diag import UnixSocket

SNAPSHOT_ATTEMPTS_MAX = 3


def inspect(address: str | None = None) -> Report:
    """Who holds a UNIX domain socket and who is connected to it, or the same for the whole host.

    Works on every server, not only samehost's. As root it sees everything; otherwise the report
    says how many processes could not be read. See sock_diag(7), proc(5) and unix(7).

    Args:
        address: a path, `@name`, `fd:N` or a bare service name; None for all sockets of the host.

    Returns:
        The facts. That nobody is bound to an existing socket file is one of them ("dead").

    Raises:
        AddressError: the address is none, the descriptor is not open here, or no socket is at the path or behind it.
        Unavailable: there is no such file, or nobody has the abstract name.
        NotPermitted: the path may not be looked at.
        Error: the kernel does not tell about sockets.
    """
    if address is None:
        return _inspect_host()
    match parse(address):
        case PathAddress() as path:
            return _inspect_path(path)
        case AbstractAddress() as name:
            return _inspect_name(name)
        case DescriptorAddress() as descriptor:
            return _inspect_descriptor(descriptor)


def _snapshot() -> snapshot.Snapshot:
    try:
        return snapshot.take()
    except OSError as error:
        raise Error(f"the kernel does not tell about its sockets: {error}") from error


class _Builder:
    """Makes the report's sockets and connections from one snapshot, each socket and process once."""

    def __init__(self, taken: snapshot.Snapshot) -> None:
        self.taken = taken
        self._sockets: dict[int, Socket] = {}
        self._processes: dict[int, Process | None] = {}
        self._pairs: set[frozenset[int]] = set()
        self._senders: dict[int, list[UnixSocket]] = {}
        self._bound: dict[object, int] = {}
        for row in taken.rows.values():
            if row.name and not owners.may_be_accepted(row):
                self._bound[self._key(row)] = row.inode
            if row.type == "datagram" and row.peer_inode:
                self._senders.setdefault(row.peer_inode, []).append(row)

    def _key(self, row: UnixSocket) -> object:
        """What a socket shares with those it accepts, and with no other: its file, else its name and namespace."""
        return row.name, row.file or self.taken.foreign.get(row.inode)

    def socket(self, row: UnixSocket) -> Socket:
        """The facts of one row."""
        if row.inode not in self._sockets:
            self._sockets[row.inode] = self._make(row)
        return self._sockets[row.inode]

    def _make(self, row: UnixSocket) -> Socket:
        kind = names.kind(row.name)
        held = self.taken.holders.get(row.inode, [])
        place, file = None, None
        if kind == "path":
            place, file = names.find(row, [holder.pid for holder in held])
        listening = row.state == "listening"
        unread = (None, None) if listening else (row.receive_queue, row.send_queue)
        backlog = (row.receive_queue, row.send_queue) if listening else (None, None)
        address = None if row.name is None else names.display(row.name)
        return Socket(
            inode=row.inode,
            address=address if file is None else file.path,
            name_hex=None if row.name is None else row.name.hex(),
            kind=kind,
            place=None if place is None else place.status,
            file=file,
            type=row.type,
            state="bound" if row.state == "unconnected" and row.name else row.state,
            network_namespace="another" if row.inode in self.taken.foreign else "this",
            holders=self._holders(row.inode),
            uid=row.uid,
            receive_queue=unread[0],
            send_queue=unread[1],
            backlog_waiting=backlog[0],
            backlog_limit=backlog[1],
            receiving_shut=bool(row.shutdown & 1),
            sending_shut=bool(row.shutdown & 2),
        )

    def unseen(self, inode: int, kind: str) -> Socket:
        """A socket that has no row: the peer of one that has, in a network namespace not ours."""
        holders = self._holders(inode)
        return Socket(
            inode=inode,
            address=None,
            name_hex=None,
            kind="unknown",
            place=None,
            file=None,
            type=kind,
            state="unknown",
            network_namespace="another" if self._is_still_held(inode) else "unknown",
            holders=holders,
            uid=None,
            receive_queue=None,
            send_queue=None,
            backlog_waiting=None,
            backlog_limit=None,
            receiving_shut=None,
            sending_shut=None,
        )

    def _is_still_held(self, inode: int) -> bool:
        """Whether a process holds it now, when it was in no table: so it did not just end."""
        for holder in self.taken.holders.get(inode, ()):
            try:
                target = os.readlink(f"/proc/{holder.pid}/fd/{holder.descriptor}")
            except OSError:
                continue
            if target == f"socket:[{inode}]":
                return True
        return False

    def _holders(self, inode: int) -> tuple[Holder, ...]:
        found = []
        for pid, descriptor in self.taken.holders.get(inode, ()):
            if pid not in self._processes:
                self._processes[pid] = processes.describe(pid)
            process = self._processes[pid]
            if process is not None:
                found.append(Holder(pid, process.command, process.uid, process.user, descriptor))
        return tuple(found)

    def connections(self, rows: Iterable[UnixSocket]) -> tuple[Connection, ...]:
        """The connections of which a row is the near end; each pair is given out once."""
        found: list[Connection] = []
        for row in rows:
            found.extend(self._connections(row))
        return tuple(found)

    def _connections(self, row: UnixSocket) -> Iterable[Connection]:
        if row.inode in self.taken.waiting:
            yield from self._pair("waiting", row, self.taken.waiting[row.inode])
        elif row.peer_inode:
            yield from self._pair(None, row, row.peer_inode)
        elif row.peer_inode == 0:
            # When an end closes, the other is shut down both ways; one that waits is not.
            waits = row.type != "datagram" and row.shutdown != 3
            yield self._connection("waiting" if waits else "closed", row, None)
        for sender in self._senders.get(row.inode, ()):
            state = "connected" if row.peer_inode == sender.inode else "sending"
            yield from self._pair(state, row, sender.inode)
        for client in row.pending:
            if client == 0:
                yield self._connection("closed", row, None)
            else:
                yield from self._pair("waiting", row, client)

    def _pair(self, state: str | None, near: UnixSocket, far_inode: int) -> Iterable[Connection]:
        pair = frozenset((near.inode, far_inode))
        if pair in self._pairs:
            return
        self._pairs.add(pair)
        row = self.taken.rows.get(far_inode) or sock_diag.lookup(far_inode)
        far = self.unseen(far_inode, near.type) if row is None else self.socket(row)
        yield self._connection(state or self._state(near, row), near, far)

    def _connection(self, state: str, near: UnixSocket, far: Socket | None) -> Connection:
        return Connection(state, self.socket(near), far, self._bound.get(self._key(near)) if near.name else None)

    def _state(self, near: UnixSocket, far: UnixSocket | None) -> str:
        if near.type == "datagram" and far is not None and far.peer_inode != near.inode:
            return "sending"
        shutdown = near.shutdown | (0 if far is None else far.shutdown)
        return "half-closed" if shutdown else "connected"

    def state(self, rows: Iterable[UnixSocket]) -> str | None:
        """The state of an address to which these are bound; None when there are none."""
        states = {self.socket(row).state for row in rows}
        return next((one for one in ("listening", "bound", "connected") if one in states), None)

    def report(
        self,
        address: str | None,
        state: str | None,
        rows: Iterable[UnixSocket],
        connections: tuple[Connection, ...],
        file: FileFacts | None = None,
        namesakes: Iterable[UnixSocket] = (),
    ) -> Report:
        """The report, its sockets in order of address and inode."""
        found = [self.socket(row) for row in rows]
        found.sort(key=lambda one: (one.address is None, one.address or "", one.inode))
        return Report(
            address=address,
            state=state,
            file=file,
            sockets=tuple(found),
            connections=connections,
            namesakes=tuple(self.socket(row) for row in namesakes),
            unreadable_processes=self.taken.unreadable_processes,
            unreadable_network_namespaces=self.taken.unreadable_network_namespaces,
        )


def _inspect_path(address: PathAddress) -> Report:
    try:
        descriptor = os.open(address.path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unavailable(_no_file(address)) from error
    except PermissionError as error:
        raise NotPermitted(f"{address} may not be looked at: {os.strerror(errno.EACCES)}") from error
    except OSError as error:
        raise AddressError(f"{address}: {os.strerror(error.errno or 0)}") from error
    # While it is open nobody else gets its inode number, so what matches is this file's.
    try:
        return _inspect_file(address, descriptor)
    finally:
        os.close(descriptor)


def _inspect_file(address: PathAddress, descriptor: int) -> Report:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"{address} is {_file_kind(mode)}, not a socket")
    identity = owners.identify_descriptor(descriptor)
    for _ in range(SNAPSHOT_ATTEMPTS_MAX):
        taken = _snapshot()
        matched = [row for row in taken.rows.values() if owners.is_bound_to(row, identity)]
        bound = [row for row in matched if not owners.may_be_accepted(row)]
        somebody = True if bound else owners.is_anybody_bound(descriptor)
        if not bound and somebody:
            bound = _bound_clients(taken, matched)
        if bound or not somebody:
            break
    builder = _Builder(taken)
    file = names.file_facts(address.path, descriptor)
    name = os.fsencode(address.path)
    inodes = {row.inode for row in matched}
    namesakes = [
        row
        for row in taken.rows.values()
        if row.name == name and row.inode not in inodes and not owners.may_be_accepted(row)
    ]
    nobody = {True: "unseen", False: "dead", None: "unknown"}[somebody]
    state = builder.state(bound) or nobody
    connections = builder.connections(_bound_last(matched, bound))
    return builder.report(names.display(name), state, bound, connections, file, namesakes)


def _bound_last(rows: list[UnixSocket], bound: list[UnixSocket]) -> list[UnixSocket]:
    """Accepted sockets first, as theirs is the near end of a connection."""
    inodes = {row.inode for row in bound}
    return [row for row in rows if row.inode not in inodes] + bound


def _bound_clients(taken: snapshot.Snapshot, rows: list[UnixSocket]) -> list[UnixSocket]:
    """Those connected sockets that were certainly bound themselves rather than accepted.

    An accepted socket has its listener's name, so where both ends have names, either may be the
    accepted one, unless the listener of the other end can be seen.
    """
    listeners = {(row.name, row.file) for row in taken.rows.values() if row.state == "listening"}
    return [
        row
        for row in rows
        if (peer := taken.rows.get(row.peer_inode or 0)) is not None and (peer.name, peer.file) in listeners
    ]


def _no_file(address: PathAddress) -> str:
    """Why nobody is there; a socket that was bound there and lost its file is worth a word."""
    text = f"nobody is at {address}: there is no such file"
    name = os.fsencode(address.path)
    try:
        taken = _snapshot()
    except Error:
        return text
    rows = [row for row in taken.rows.values() if row.name == name]
    rows = [row for row in rows if not owners.may_be_accepted(row)]
    if not rows:
        return text
    pids = {holder.pid for row in rows for holder in taken.holders.get(row.inode, ())}
    found = [process for pid in sorted(pids) if (process := processes.describe(pid)) is not None]
    return (
        f"{text} here, though {owners.phrase(found)} has a socket that was bound under this path: "
        "its file was removed or is in another mount namespace"
    )


def _inspect_name(address: AbstractAddress) -> Report:
    name = b"\0" + address.name
    # Where many come and go, the kernel's dump may pass over one that stays.
    for _ in range(SNAPSHOT_ATTEMPTS_MAX):
        taken = _snapshot()
        matched = [row for row in taken.rows.values() if row.name == name and row.inode not in taken.foreign]
        if matched:
            break
    else:
        raise Unavailable(f"nobody is at {names.display(name)}: no socket has this abstract name")
    bound = [row for row in matched if not owners.may_be_accepted(row)]
    bound = bound or _bound_clients(taken, matched)
    builder = _Builder(taken)
    peers = [taken.rows.get(row.peer_inode or 0) for row in matched]
    # What an ended listener accepted looks like a client that bound itself before it connected.
    told_apart = not any(peer is not None and peer.name for peer in peers)
    state = builder.state(bound) or ("dead" if told_apart else "unknown")
    connections = builder.connections(_bound_last(matched, bound))
    return builder.report(names.display(name), state, bound, connections)


def _inspect_descriptor(address: DescriptorAddress) -> Report:
    try:
        status = os.fstat(address.number)
    except (OSError, OverflowError) as error:
        raise AddressError(f"{address} is not open in this process") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"{address} is {_file_kind(status.st_mode)}, not a socket")
    copy = socket.socket(fileno=os.dup(address.number))
    with copy:
        if copy.family != socket.AF_UNIX:
            raise AddressError(f"{address} is a socket of another family, not a UNIX domain socket")
        kinds = {socket.SOCK_DGRAM: "datagram", socket.SOCK_SEQPACKET: "seqpacket"}
        kind = kinds.get(copy.type, "stream")
    taken = _snapshot()
    builder = _Builder(taken)
    row = taken.rows.get(status.st_ino)
    if row is None:
        unseen = builder.unseen(status.st_ino, kind)
        return builder.report(str(address), "unseen", (), ())._replace(sockets=(unseen,))
    one = builder.socket(row)
    return builder.report(str(address), one.state, [row], builder.connections([row]), one.file)


def _inspect_host() -> Report:
    taken = _snapshot()
    builder = _Builder(taken)
    rows = list(taken.rows.values())
    bound = [row for row in rows if not owners.may_be_accepted(row) and (row.name or row.state != "connected")]
    addresses = {(row.name, row.file) for row in bound if row.name}
    accepted, named, unnamed = [], [], []
    for row in rows:
        if not row.name:
            unnamed.append(row)
        elif owners.may_be_accepted(row) and (row.name, row.file) in addresses:
            accepted.append(row)
        else:
            named.append(row)
    connections = builder.connections([*accepted, *named, *unnamed])
    return builder.report(None, None, bound, connections)


def _file_kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a fifo",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
