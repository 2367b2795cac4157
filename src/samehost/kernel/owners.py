"""Who has an address: the processes behind a socket file or an abstract name, for people to read.

Joins the kernel's table of sockets (`sock_diag`) with the descriptors of the processes
(`processes`). A socket belongs to a file when inode and device agree; where the filesystem has two
device numbers (btrfs, overlayfs), the mount that the path is on gives the other one. Nothing is
concluded from a name alone. What cannot be seen from here is said to be so; an error of the
kernel's table counts as not seen, because these functions serve messages about something else.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from samehost.kernel import processes, sock_diag
from samehost.kernel.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from samehost.kernel.sock_diag import UnixSocket

PHRASE_PROCESSES_MAX = 3
_INODE_MASK = 0xFFFFFFFF


class FileIdentity(NamedTuple):
    """What tells a file from every other one of this host.

    Attributes:
        device: st_dev.
        inode: st_ino, all its bits.
        filesystem_device: the number under which sock_diag knows the device; None if it could not
            be found out.
    """

    device: int
    inode: int
    filesystem_device: int | None


def identify(path: str | bytes) -> FileIdentity:
    """The identity of the file that the path leads to, symbolic links followed.

    Raises:
        OSError: as open(2) says.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return identify_descriptor(descriptor)
    finally:
        os.close(descriptor)


def identify_descriptor(descriptor: int, mounts_of: int | str = "self") -> FileIdentity:
    """The identity of an open file; O_PATH is enough.

    Args:
        descriptor: one of this process.
        mounts_of: the pid of a process in whose mount namespace the file was found.

    Raises:
        OSError: as fstat(2) says.
    """
    status = os.fstat(descriptor)
    device = _filesystem_device(descriptor, mounts_of)
    return FileIdentity(status.st_dev, status.st_ino, device)


def _filesystem_device(descriptor: int, mounts_of: int | str) -> int | None:
    """The device of the mount's superblock: mnt_id of fdinfo, looked up in mountinfo (proc(5))."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
            mount = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
        with open(f"/proc/{mounts_of}/mountinfo", "rb") as file:
            for line in file:
                fields = line.split()
                if fields[0] == mount:
                    major, minor = fields[2].split(b":")
                    return os.makedev(int(major), int(minor))
    except (OSError, StopIteration):
        pass
    return None


def is_bound_to(row: UnixSocket, file: FileIdentity) -> bool:
    """Whether the socket, or the listener that accepted it, was bound to this very file.

    The kernel tells 32 bits of the inode number; where the file's has more, the name has to lead to
    the file as well.
    """
    if row.file is None or row.file[1] != file.inode & _INODE_MASK:
        return False
    if file.inode > _INODE_MASK and not _leads_to(row.name, file):
        return False
    return row.file[0] == (file.device if file.filesystem_device is None else file.filesystem_device)


def _leads_to(name: bytes | None, file: FileIdentity) -> bool:
    """Whether an absolute name leads, from here, to the file. One in /proc/self means its own process's files."""
    if name is None or not name.startswith(b"/") or name.startswith(b"/proc/self/"):
        return False
    try:
        status = os.stat(name)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (file.device, file.inode)


def owners_of_file(device: int, inode: int) -> list[Process]:
    """The processes that hold a socket bound to the file, each once, in order of pid.

    Args:
        device: st_dev of the socket file.
        inode: its st_ino.

    Returns:
        Accepted connections count only when nobody holds the bound socket itself. A socket whose
        holder cannot be seen is a Process with pid 0, an empty command and the uid that made it
        (sock_diag(7)). Empty when no socket can be seen: it may belong to another network
        namespace.
    """
    return _owners(row for row in _dump() if _is_bound_to_status(row, device, inode))


def _is_bound_to_status(row: UnixSocket, device: int, inode: int) -> bool:
    """As is_bound_to, where there is no path. If the devices differ, the bound name has to lead to the file."""
    if row.file is None or row.file[1] != inode & _INODE_MASK:
        return False
    file = FileIdentity(device, inode, None)
    if is_bound_to(row, file):
        return True
    if not _leads_to(row.name, file):
        return False
    try:
        return is_bound_to(row, identify(row.name or b""))
    except OSError:
        return False


def owners_of_name(name: bytes) -> list[Process]:
    """The processes that hold a socket bound to the abstract name; as owners_of_file.

    Args:
        name: as in unix(7) and UnixSocket, with its leading NUL.
    """
    return _owners(row for row in _dump() if row.name == name)


def is_anybody_bound(descriptor: int) -> bool | None:
    """Whether a living socket of any network namespace is bound to the file, listening or not.

    A refused connect alone does not tell, because a server between bind and listen refuses as well.
    But the kernel compares the types of two sockets only after it has found the one that is bound
    (unix_find_bsd in net/unix/af_unix.c): a datagram socket that tries to connect hears EPROTOTYPE
    from a living stream or seqpacket socket, is connected by a living datagram socket, neither of
    which notices, and hears ECONNREFUSED only when nobody is there.

    Args:
        descriptor: of the socket file, O_PATH is enough.

    Returns:
        None when it cannot be found out: connecting takes permission to write to the file.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(f"/proc/self/fd/{descriptor}")
        except ConnectionRefusedError:
            return False
        except OSError as error:
            in_use = (errno.EPROTOTYPE, errno.EPERM, errno.EAGAIN)
            return True if error.errno in in_use else None
    return True


def _dump() -> list[UnixSocket]:
    try:
        return sock_diag.dump()
    except OSError:
        return []


def _owners(rows: Iterable[UnixSocket]) -> list[Process]:
    rows = list(rows)
    rows = [row for row in rows if not may_be_accepted(row)] or rows
    if not rows:
        return []
    try:
        held, _ = processes.holders()
    except OSError:
        held = {}
    owners: dict[int, Process] = {}
    unseen: set[int] = set()
    for row in rows:
        described = [processes.describe(holder.pid) for holder in held.get(row.inode, ())]
        owners.update((process.pid, process) for process in described if process is not None)
        if row.uid is not None and not any(described):
            unseen.add(row.uid)
    anonymous = [Process(0, "", uid, processes.user_name(uid), None) for uid in sorted(unseen)]
    return anonymous + [owners[pid] for pid in sorted(owners)]


def may_be_accepted(row: UnixSocket) -> bool:
    """Whether a row with a name may have it from its listener; otherwise it was bound itself."""
    return row.type != "datagram" and row.state == "connected"


def phrase(owners: Iterable[Process]) -> str:
    """The processes as part of a sentence: "pid 812 (redis-server, user redis)", "uid 1000".

    "a process that cannot be seen from here" when there is none. Control characters are written as
    escapes, because a process chooses its own name.
    """
    named = [_phrase(owner) for owner in owners]
    if not named:
        return "a process that cannot be seen from here"
    if len(named) > PHRASE_PROCESSES_MAX:
        hidden = len(named) - PHRASE_PROCESSES_MAX
        named = [
            *named[:PHRASE_PROCESSES_MAX],
            f"{hidden} more process{'es' if hidden > 1 else ''}",
        ]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _phrase(owner: Process) -> str:
    if owner.pid == 0:
        return f"uid {owner.uid}"
    user = f"uid {owner.uid}" if owner.user is None else f"user {owner.user}"
    return f"pid {owner.pid} ({printable(owner.command)}, {user})"


def printable(text: str) -> str:
    """The text with everything that a terminal might obey written as an escape.

    Covers control characters, invisible and direction-changing ones, and undecodable bytes
    (str.isprintable).
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
