"""The lock file beside a socket, which makes claiming a path a matter of one process at a time.

flock(2) ends with the last descriptor of the open file, so a killed server leaves no lock, only a file that the next
one locks again. Removing the file at the end is what makes this delicate: a lock may be taken on a file that somebody
has just removed, so after locking, the descriptor's inode is compared with the path's, and the loser starts over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from samehost.errors import AddressInUse, ClaimError
from samehost.kernel import owners, processes

if TYPE_CHECKING:
    from samehost.kernel.processes import Process

SUFFIX = ".lock"

_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MODE = 0o600
_TRIES_MAX = 3


class PathLock:
    """An exclusive lock on `PATH.lock`, held until `release`.

    Args:
        path: the socket's path, for messages.
        directory: an O_PATH descriptor of its directory; the lock keeps its own copy.
        leaf: the socket's file name.

    Raises:
        AddressInUse: somebody else holds the lock.
        ClaimError: the lock file cannot be made, or is no plain file.
    """

    def __init__(self, path: str, directory: int, leaf: str) -> None:
        self._path = path + SUFFIX
        self._leaf = leaf + SUFFIX
        self._directory = os.dup(directory)
        try:
            self._descriptor = self._take()
        except BaseException:
            os.close(self._directory)
            raise

    def _take(self) -> int:
        while True:
            descriptor = self._open()
            try:
                self._lock(descriptor)
                if self._is_at_path(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self._leaf, _OPEN_FLAGS, _MODE, dir_fd=self._directory)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ClaimError(
                    f"cannot lock {self._path}: it is a symbolic link; remove it if it is yours"
                ) from error
            if error.errno in (errno.EISDIR, errno.ENXIO):
                raise ClaimError(
                    f"cannot lock {self._path}: it is not a plain file; remove it if it is yours"
                ) from error
            raise ClaimError(
                f"cannot lock {self._path}: {os.strerror(error.errno or 0)}{self._reason(error)}"
            ) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ClaimError(f"cannot lock {self._path}: it is not a plain file; remove it if it is yours")
            if status.st_uid == os.geteuid() and status.st_mode & _MODE != _MODE:
                # The umask took our own bits, which would keep our next server out. Nobody else gains any.
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) | _MODE)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _reason(self, error: OSError) -> str:
        if error.errno not in (errno.EACCES, errno.EPERM):
            return ""
        try:
            status = os.lstat(self._leaf, dir_fd=self._directory)
        except OSError:
            return f" (uid {os.geteuid()} may not make files in this directory: choose another one)"
        return f" (it belongs to uid {status.st_uid})"

    def _lock(self, descriptor: int) -> None:
        for _ in range(_TRIES_MAX):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holders = self._holders(descriptor)
            if holders:
                break  # otherwise it may have been given up before we could see by whom
        raise AddressInUse(f"{self._path.removesuffix(SUFFIX)} is held by {owners.phrase(holders)}")

    def _holders(self, descriptor: int) -> list[Process]:
        # Who has the socket comes first: the process that took the lock may be gone, and a forked child of it alive.
        try:
            socket_file = os.lstat(self._leaf.removesuffix(SUFFIX), dir_fd=self._directory)
        except OSError:
            holders = []
        else:
            holders = owners.owners_of_file(socket_file.st_dev, socket_file.st_ino)
        if not holders:
            status = os.fstat(descriptor)
            pid = processes.lock_holder(status.st_dev, status.st_ino)
            process = None if pid is None else processes.describe(pid)
            holders = [] if process is None else [process]
        return holders

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            found = os.lstat(self._leaf, dir_fd=self._directory)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(descriptor))

    def release(self, *, remove: bool) -> None:
        """Give the lock up. A second time does nothing.

        Args:
            remove: take the file away as well, which only the process that claimed the address may do.
        """
        try:
            if remove and self._descriptor >= 0 and self._is_at_path(self._descriptor):
                os.unlink(self._leaf, dir_fd=self._directory)
        finally:
            descriptors = self._descriptor, self._directory
            self._descriptor = self._directory = -1
            for descriptor in descriptors:
                if descriptor >= 0:
                    os.close(descriptor)
