"""What an inspection found: plain data with a stable shape, for programs and for printing.

Only types here. Every fact that could not be established is None, an empty tuple or the word
"unknown"; none is ever filled in with what is merely likely.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Holder(NamedTuple):
    """A descriptor of a socket, and the process that has it.

    Attributes:
        pid: as in this host's /proc.
        command: the kernel's name of the process (proc(5), comm), which its user chooses freely:
            control characters are possible.
        uid: its effective user id.
        user: the name of that user, or None.
        descriptor: its number in that process.
    """

    pid: int
    command: str
    uid: int
    user: str | None
    descriptor: int


class FileFacts(NamedTuple):
    """A socket file as it is seen from here.

    Attributes:
        path: one that leads to it.
        mode: its permission bits.
        uid: its owner's user id.
        user: its owner's name, or None.
        gid: its group id.
        group: its group's name, or None.
        device: st_dev.
        inode: st_ino.
    """

    path: str
    mode: int
    uid: int
    user: str | None
    gid: int
    group: str | None
    device: int
    inode: int


class Socket(NamedTuple):
    """One UNIX domain socket.

    Attributes:
        inode: its inode number, the N of `socket:[N]` in /proc/PID/fd.
        address: its name for people: a path as it was bound (or as it was found to lead to the
            socket), `@` and the name in the abstract namespace with each further NUL as `@`; None
            when it has none, or when it cannot be seen. Bytes that are not UTF-8 are escaped.
        name_hex: the name exactly as bound (unix(7)), in hexadecimal digits; None as `address`.
        kind: "path", "abstract", "unnamed" or "unknown".
        place: for a path, what the bound name leads to: "present" (this socket's file, seen from
            here), "elsewhere" (this socket's file, but only as a holder of another root or mount
            namespace sees it), "deleted" (nothing: the file was removed or renamed), "replaced"
            (another file) or "unknown". None for the other kinds.
        file: the file if it is visible here, else None.
        type: "stream", "datagram" or "seqpacket".
        state: "listening", "bound" (but neither listening nor connected), "connected",
            "unconnected" (and without a name) or "unknown".
        network_namespace: "this", "another" or "unknown".
        holders: every descriptor of it that could be seen, in order of pid and number.
        uid: the user id that made it; None when the kernel does not tell.
        receive_queue: bytes received and not read (of a datagram socket: of the first message);
            None for a listener, and when unknown.
        send_queue: bytes of kernel memory that hold what it sent and the receiver has not read;
            None for a listener, and when unknown.
        backlog_waiting: of a listener, connections that wait to be accepted, else None.
        backlog_limit: of a listener, the length of its backlog (listen(2)), else None.
        receiving_shut: whether it will receive no more (shutdown(2)); None when unknown.
        sending_shut: whether it will send no more; None when unknown.
    """

    inode: int
    address: str | None
    name_hex: str | None
    kind: str
    place: str | None
    file: FileFacts | None
    type: str
    state: str
    network_namespace: str
    holders: tuple[Holder, ...]
    uid: int | None
    receive_queue: int | None
    send_queue: int | None
    backlog_waiting: int | None
    backlog_limit: int | None
    receiving_shut: bool | None
    sending_shut: bool | None


class Connection(NamedTuple):
    """Two sockets that are, were, or wait to be connected.

    Attributes:
        state: "connected"; "half-closed" (shut down in a direction, both ends open); "closed" (the
            far end is gone, the near one still open); "waiting" (in a listener's backlog, not yet
            accepted: the listener stands for the end that does not exist yet); "sending" (a datagram
            socket, far, that is connected to one, near, which is not connected back).
        near: the end at the address that was asked for; for the whole host, the server's if known.
        far: the other end; None when there is none any more, or it waits for a listener that cannot be seen.
        bound_inode: the inode of the socket that is bound to the address of the near end: the listener that
            accepted it, or itself; None when there is none, or it cannot be seen.
    """

    state: str
    near: Socket
    far: Socket | None
    bound_inode: int | None


class Report(NamedTuple):
    """What was found.

    Attributes:
        address: the address that was asked for, for people; None for the whole host.
        state: of the address: "listening", "bound" (a datagram receiver, or a server that does not
            listen yet), "connected", "unconnected", "dead" (nobody is bound to it), "unseen"
            (somebody is bound to it whom the kernel does not show here: in another network
            namespace) or "unknown" (not even that could be found out). None for the whole host.
        file: the socket file at the address, if it is a path.
        sockets: those that are bound to the address; for the whole host, all that are bound,
            listening or unconnected.
        connections: each once.
        namesakes: sockets that were bound under the same path but belong to another file, because
            theirs was removed or replaced, or is in another mount namespace. Empty for the host.
        unreadable_processes: how many processes would not show their descriptors.
        unreadable_network_namespaces: how many network namespaces could not be looked into.
    """

    address: str | None
    state: str | None
    file: FileFacts | None
    sockets: tuple[Socket, ...]
    connections: tuple[Connection, ...]
    namesakes: tuple[Socket, ...]
    unreadable_processes: int
    unreadable_network_namespaces: int

    def as_dict(self) -> dict[str, Any]:
        """The report in the types of JSON.

        Every named tuple becomes an object with the attributes as keys, in order, every tuple a
        list, and a file's mode a string of octal digits such as "0600". Keys may be added in later
        versions; none changes its meaning.
        """
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, FileFacts):
        return {**value._asdict(), "mode": f"{value.mode:04o}"}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value
