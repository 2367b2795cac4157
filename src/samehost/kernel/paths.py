"""Socket files at paths of any length: names short enough for bind and connect, and whose hands a path is in.

`sun_path` holds 107 bytes. A longer path is reached through /proc/self/fd and an O_PATH descriptor, of the directory to
bind and of the socket file itself to connect. The name that bind saw is then what getsockname(2) and /proc/net/unix
show, which is why everything else in samehost tells sockets by device and inode.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from samehost import limits

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def fits(name: str) -> bool:
    """Whether the name can stand in `sockaddr_un` as it is."""
    return len(os.fsencode(name)) <= limits.SUN_PATH_BYTES_MAX


@contextmanager
def connect_name(path: str) -> Iterator[str]:
    """A name for connect(2) that leads to the path, good while the context lasts.

    Raises:
        OSError: the path cannot be opened, as connect itself would say.
    """
    if fits(path):
        yield path
        return
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor_name(descriptor)
    finally:
        os.close(descriptor)


def descriptor_name(descriptor: int) -> str:
    """The path of an open descriptor's own file, for calls that take only a path."""
    return f"/proc/self/fd/{descriptor}"


def bind_at(unbound: socket.socket, path: str, directory: int, leaf: str) -> None:
    """Bind a socket to a path of any length.

    Args:
        path: the whole path.
        directory: an O_PATH descriptor of its directory.
        leaf: its last component.

    Raises:
        OSError: as bind(2) says; nothing is left behind.
    """
    through_directory = f"{descriptor_name(directory)}/{leaf}"
    if fits(path):
        unbound.bind(path)
    elif fits(through_directory):
        unbound.bind(through_directory)
    else:
        temporary = f".{os.urandom(8).hex()}"
        unbound.bind(f"{descriptor_name(directory)}/{temporary}")
        try:
            os.link(temporary, leaf, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.unlink(temporary, dir_fd=directory)


def directories_on(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every directory whose owner or writers decide where the path leads, links followed one by one.

    Args:
        path: absolute.

    Raises:
        OSError: a component cannot be looked at, or more than 40 links follow each other.
    """
    here = "/"
    yield here, os.lstat(here)
    rest = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while rest:
        part = rest.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        there = os.path.join(here, part)
        status = os.lstat(there)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > limits.SYMBOLIC_LINKS_MAX:
                raise OSError(f"more than {limits.SYMBOLIC_LINKS_MAX} symbolic links on {path}")
            target = os.readlink(there)
            if target.startswith("/"):
                here = "/"
            rest.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
        else:
            here = there
            if stat.S_ISDIR(status.st_mode):
                yield here, status
