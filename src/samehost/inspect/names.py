"""What a socket's bound name leads to, proved by inode and device and never by the name alone.

A name is bytes that a process once passed to bind(2). It may be relative to a directory, a root or
a mount namespace that is not ours, or lead to something else by now. So it is tried from here, then
through the eyes of each holder, and counts only if it leads to the very file that the kernel has
for the socket.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from samehost.inspect.report import FileFacts
from samehost.kernel import owners, processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from samehost.kernel.sock_diag import UnixSocket

SYMBOLIC_LINKS_MAX = 40  # path_resolution(7)


class Place(NamedTuple):
    """Where a socket's file is.

    Attributes:
        status: as Socket.place.
        path: one that leads to the file from here; None unless the status is "present".
    """

    status: str
    path: bytes | None


def display(name: bytes) -> str:
    """A bound name for people, as lsof and ss write it: each NUL of an abstract one as `@`."""
    return name.replace(b"\0", b"@").decode("utf-8", "backslashreplace")


def kind(name: bytes | None) -> str:
    """Of what kind a bound name is: "path", "abstract" or "unnamed"."""
    if not name:
        return "unnamed"
    return "abstract" if name[0] == 0 else "path"


def file_facts(path: bytes | str, descriptor: int) -> FileFacts:
    """The facts of an open file; O_PATH is enough.

    Raises:
        OSError: as fstat(2) says.
    """
    status = os.fstat(descriptor)
    return FileFacts(
        path=display(os.fsencode(path)),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        user=processes.user_name(status.st_uid),
        gid=status.st_gid,
        group=processes.group_name(status.st_gid),
        device=status.st_dev,
        inode=status.st_ino,
    )


def find(row: UnixSocket, pids: Iterable[int]) -> tuple[Place, FileFacts | None]:
    """Where the file of a socket with a path is, and its facts if it can be seen from here.

    Args:
        row: the socket.
        pids: its holders.
    """
    place = _place(row, list(dict.fromkeys(pids)))
    if place.path is None:
        return place, None
    try:
        descriptor = os.open(place.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return Place("unknown", None), None
    try:
        if not owners.is_bound_to(row, owners.identify_descriptor(descriptor)):
            return Place("unknown", None), None
        return place, file_facts(place.path, descriptor)
    finally:
        os.close(descriptor)


def _place(row: UnixSocket, pids: list[int]) -> Place:
    name = row.name or b""
    if name.startswith(b"/proc/self/"):
        return _through_descriptors(row, name, pids)
    if not name.startswith(b"/"):
        return _through_directories(row, name, pids)
    here = _look(row, name)
    if here == "present":
        return Place(here, name)
    verdicts = []
    for pid in pids:
        if _shares_our_root(pid):
            verdicts.append(here)
            continue
        place = _through_root(row, name, pid)
        if place.status in ("present", "elsewhere"):
            return place
        verdicts.append(place.status)
    # Who bound it is not known, but if all who hold it see the same, then that is what there is.
    return Place(verdicts[0] if len(set(verdicts)) == 1 else "unknown", None)


def _look(row: UnixSocket, path: bytes, pid: int | str = "self") -> str:
    """What a path leads to, seen from here: "present", "deleted", "replaced" or "unknown"."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return "deleted"
    except OSError:
        return "unknown"
    try:
        identity = owners.identify_descriptor(descriptor, pid)
    finally:
        os.close(descriptor)
    return "present" if owners.is_bound_to(row, identity) else "replaced"


def _shares_our_root(pid: int) -> bool:
    """Whether an absolute path means to the process what it means to us."""
    ours = processes.namespace("self", "mnt")
    if ours is None or processes.namespace(pid, "mnt") != ours:
        return False
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/proc/self/root"))
    except OSError:
        return False


def _through_root(row: UnixSocket, name: bytes, pid: int) -> Place:
    """An absolute name as a process in another root or mount namespace sees it."""
    root = b"/proc/%d/root" % pid
    try:
        os.stat(root)
        path = _inside(root, name)
    except OSError:
        return Place("unknown", None)
    status = _look(row, path, pid)
    if status != "present":
        return Place(status, None)
    return _visible(row, root, path.removeprefix(root)) or Place("elsewhere", None)


def _visible(row: UnixSocket, link: bytes, rest: bytes) -> Place | None:
    """The place with a path of our own, if the target of a /proc link, and the rest, lead there."""
    try:
        path = os.readlink(link).rstrip(b"/") + rest
    except OSError:
        return None
    return Place("present", path) if _look(row, path) == "present" else None


def _through_directories(row: UnixSocket, name: bytes, pids: list[int]) -> Place:
    """A relative name, tried in the working directory of each holder, which may have changed."""
    for pid in pids:
        directory = b"/proc/%d/cwd" % pid
        if _look(row, directory + b"/" + name, pid) == "present":
            return _visible(row, directory, b"/" + name) or Place("elsewhere", None)
    return Place("unknown", None)


def _through_descriptors(row: UnixSocket, name: bytes, pids: list[int]) -> Place:
    """A name like /proc/self/fd/7/x, as is bound for paths too long for sockaddr_un(unix(7))."""
    parts = name.removeprefix(b"/proc/self/").split(b"/", 2)
    if len(parts) != 3 or parts[0] != b"fd":
        return Place("unknown", None)
    for pid in pids:
        link = b"/proc/%d/fd/%s" % (pid, parts[1])
        if _look(row, link + b"/" + parts[2], pid) == "present":
            return _visible(row, link, b"/" + parts[2]) or Place("elsewhere", None)
    return Place("unknown", None)


def _inside(root: bytes, name: bytes) -> bytes:
    """The path below `root` that `name` means to a process whose root that is.

    Symbolic links are followed one by one, because an absolute one would lead out to our own root.

    Raises:
        OSError: a part cannot be looked at, or there are too many links.
    """
    done: list[bytes] = []
    rest = [part for part in reversed(name.split(b"/")) if part not in (b"", b".")]
    links = 0
    while rest:
        part = rest.pop()
        if part == b"..":
            del done[-1:]
            continue
        done.append(part)
        path = b"/".join([root, *done])
        try:
            target = os.readlink(path)
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
            continue  # no symbolic link; whether it is there at all shows later
        links += 1
        if links > SYMBOLIC_LINKS_MAX:
            raise OSError(f"more than {SYMBOLIC_LINKS_MAX} symbolic links")
        done = [] if target.startswith(b"/") else done[:-1]
        rest.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
    return b"/".join([root, *done])
