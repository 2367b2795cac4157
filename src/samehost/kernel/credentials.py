"""Who is at the other end of a socket, asked of the kernel: SO_PEERCRED and its kin, unix(7)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import lru_cache, partial

from samehost.peer import Peer

_UCRED = struct.Struct("=iII")
"""struct ucred: pid, uid, gid."""

CREDENTIALS_BYTES = _UCRED.size

# Numbers of asm-generic/socket.h that the socket module does not name; the same on every architecture that Debian,
# Fedora and Alpine build Python for, except parisc and sparc.
_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77

_OPTION_BYTES_MAX = 1024
"""The most that Python's getsockopt gives room to: 256 groups."""

_GROUPS_MAX = 65536
"""NGROUPS_MAX: the most that a process can have (credentials(7))."""

_NO_PIDFD = {errno.ENOPROTOOPT, errno.EINVAL, errno.ESRCH, errno.ENODATA}
"""The kernel has no such option, or the process is gone and nobody kept a pidfd of it."""


def peer_of(connected: socket.socket) -> Peer:
    """The process that connected (or, for a client, that listens), as recorded by the kernel at that time.

    Raises:
        OSError: the socket is not connected.
    """
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid, gid, _groups_of(connected), pid, partial(_pidfd_of, connected))


def peer_of_message(credentials: bytes) -> Peer:
    """The sender of one datagram, from its SCM_CREDENTIALS."""
    pid, uid, gid = _UCRED.unpack(credentials)
    return Peer(uid, gid, (), pid)


def _groups_of(connected: socket.socket) -> tuple[int, ...]:
    try:
        groups = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_BYTES_MAX)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = _many_groups_of(connected)
    return _read_groups(groups)


@lru_cache(maxsize=64)
def _read_groups(groups: bytes) -> tuple[int, ...]:
    """The numbers; the same tuple for all connections of the same user."""
    return struct.unpack(f"={len(groups) // 4}I", groups)


def _many_groups_of(connected: socket.socket) -> bytes:
    """SO_PEERGROUPS by getsockopt(2) itself, for more groups than Python's gives room to."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    groups = ctypes.create_string_buffer(_GROUPS_MAX * 4)
    size = ctypes.c_uint32(len(groups))
    if libc.getsockopt(connected.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return groups.raw[: size.value]


def _pidfd_of(connected: socket.socket) -> int | None:
    try:
        descriptor = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno in _NO_PIDFD:
            return None
        raise
    os.set_inheritable(descriptor, False)
    return descriptor
