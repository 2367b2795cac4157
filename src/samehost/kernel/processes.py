"""Which process holds which socket, and who that process is, read from /proc (proc(5)).

Every function is one pass over text files that change while they are read: a process that ends
meanwhile is left out, and one that may not be read is counted, never guessed at. Nothing here knows
what a socket is bound to or connected with (see `sock_diag`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL_THREAD = 0x00200000  # PF_KTHREAD, linux/sched.h
_gone = (FileNotFoundError, ProcessLookupError, NotADirectoryError)


class Holder(NamedTuple):
    """A descriptor of a process.

    Attributes:
        pid: as in this /proc.
        descriptor: its number in that process.
    """

    pid: int
    descriptor: int


class Process(NamedTuple):
    """Who a process is.

    Attributes:
        pid: as in this /proc; 0 when only the user id is known (see `owners`).
        command: the kernel's name of it, up to 15 bytes (comm); undecodable bytes are written as
            hexadecimal escapes. Whoever runs the process chooses it freely, control characters
            included.
        uid: the effective user id.
        user: the name of that user, or None if it has none here.
        mount_namespace: the inode number of its mount namespace (namespaces(7)), or None if it may
            not be read.
    """

    pid: int
    command: str
    uid: int
    user: str | None
    mount_namespace: int | None


def pids() -> Iterator[int]:
    """The processes of this /proc at this moment, in no particular order.

    Raises:
        OSError: /proc is missing.
    """
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)


def holders() -> tuple[dict[int, list[Holder]], int]:
    """The holders of every socket by its inode number, in order, and how many processes were unreadable.

    Unreadable are processes whose /proc/PID/fd may not be listed, which takes the same user or
    CAP_SYS_PTRACE (ptrace(2)); kernel threads and ended processes, which have no descriptors, do
    not count. A thread that has its own descriptors (unshare(2), CLONE_FILES) is not looked into.

    Raises:
        OSError: /proc is missing.
    """
    found: dict[int, list[Holder]] = {}
    unreadable = 0
    for pid in pids():
        try:
            for descriptor, inode in _sockets(pid):
                found.setdefault(inode, []).append(Holder(pid, descriptor))
        except PermissionError:
            unreadable += _may_have_descriptors(pid)
        except _gone:
            continue
    for held in found.values():
        held.sort()
    return found, unreadable


def _sockets(pid: int) -> Iterator[tuple[int, int]]:
    """(descriptor, socket inode) of a process. One that is closed meanwhile is left out."""
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        try:
            target = os.readlink(f"{directory}/{name}")
        except _gone:
            continue
        if target.startswith("socket:["):
            yield int(name), int(target[8:-1])


def _may_have_descriptors(pid: int) -> bool:
    """False for a kernel thread and an ended process (/proc/PID/stat, fields 3 and 9)."""
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return False
    fields = text.rpartition(b")")[2].split()
    return fields[0] not in (b"Z", b"X") and not int(fields[6]) & KERNEL_THREAD


def _read(path: str) -> bytes | None:
    """The file's bytes, or None when the process is gone or may not be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (*_gone, PermissionError):
        return None


def describe(pid: int) -> Process | None:
    """Who the process is, or None when there is no such process (any more)."""
    status = _read(f"/proc/{pid}/status")
    command = _read(f"/proc/{pid}/comm")
    if status is None or command is None:
        return None
    for line in status.split(b"\n"):
        if line.startswith(b"Uid:"):
            uid = int(line.split()[2])
            break
    else:
        return None
    text = command.removesuffix(b"\n").decode("utf-8", "backslashreplace")
    return Process(pid, text, uid, user_name(uid), namespace(pid, "mnt"))


def user_name(uid: int) -> str | None:
    """The user's name, or None when the user database has none (getpwuid(3))."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def group_name(gid: int) -> str | None:
    """The group's name, or None when the group database has none (getgrgid(3))."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return None


def namespace(pid: int | str, kind: str) -> int | None:
    """The inode number of a namespace of the process ("self" for one's own): "mnt", "net", … (namespaces(7)).

    None when the process is gone or may not be read.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def lock_holder(device: int, inode: int) -> int | None:
    """The pid of the process that took a flock(2) lock on the file (proc(5), /proc/locks), or None.

    /proc/locks has the filesystem's own device, which can differ from st_dev (btrfs, overlayfs):
    where only the inode agrees, the process is named only if it has that very file open. A process
    of another pid namespace, or one that has ended and left the lock to a child, is not named.

    Args:
        device: st_dev of the file.
        inode: its st_ino.
    """
    text = _read("/proc/locks") or b""
    for line in text.splitlines():
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 812 00:19:1234 0 EOF"; a waiting one has "->" before the kind.
        if len(fields) < 6 or fields[1] != b"FLOCK":
            continue
        pid = int(fields[4])
        major, minor, number = fields[5].split(b":")
        if pid <= 0 or int(number) != inode:
            continue
        same_device = os.makedev(int(major, 16), int(minor, 16)) == device
        if (same_device and os.path.exists(f"/proc/{pid}")) or _has_open(pid, device, inode):
            return pid
    return None


def _has_open(pid: int, device: int, inode: int) -> bool:
    """Whether the process has a descriptor of this file. False when that cannot be seen."""
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    for name in names:
        try:
            status = os.stat(f"{directory}/{name}")
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (device, inode):
            return True
    return False
