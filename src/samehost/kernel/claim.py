"""Taking an address safely, and giving it back.

The order is everything, and each step closes a hole that hand-written servers leave open: look at the directory, take
the lock, look at what is there, set the mode before bind, bind, remember the inode, hand the file to its group, widen
the mode, listen. On any failure all of it is undone. See unix(7), "Pathname sockets".
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import stat
from contextlib import ExitStack, suppress
from typing import NamedTuple

from samehost import limits
from samehost.address import AbstractAddress, Address, DescriptorAddress, PathAddress
from samehost.errors import AddressError, AddressInUse, ClaimError, NotASocket, UsageError
from samehost.kernel import owners, paths
from samehost.kernel.handed import SOCKET_TYPES, adopt_descriptor, check_type
from samehost.kernel.lock import SUFFIX, PathLock
from samehost.peer import UNKNOWN_ID, gid_of_group

_CLAIM_MODE = 0o600


class Hold(enum.Enum):
    """Whether a claimed path is still ours."""

    HELD = "held"
    REMOVED = "removed"
    REPLACED = "replaced"


class Request(NamedTuple):
    """What to claim.

    Attributes:
        address: where.
        type: "stream", "datagram" or "seqpacket".
        mode: permission bits of the socket file.
        group: the group that the socket file is handed to, by name or id; None leaves it as it comes.
        backlog: connections that may wait to be accepted; None for as many as the host allows.
    """

    address: Address
    type: str
    mode: int
    group: str | int | None
    backlog: int | None

    def check(self) -> None:
        """Raise UsageError for what no address can be claimed with."""
        check_type(self.type)
        if not isinstance(self.mode, int) or not 0 <= self.mode <= 0o777:
            raise UsageError(f"mode={self.mode!r} is not a set of permission bits: from 0 to 0o777, as in 0o660")
        if self.mode != _CLAIM_MODE and not isinstance(self.address, PathAddress):
            raise UsageError(f"mode={self.mode:#o}: {self.address} has no file of ours whose mode could be set")
        if self.backlog is not None and not (
            isinstance(self.backlog, int) and 0 <= self.backlog <= limits.BACKLOG_CONNECTIONS_MAX
        ):
            raise UsageError(f"backlog={self.backlog!r} is out of range: from 0 to {limits.BACKLOG_CONNECTIONS_MAX}")
        if not isinstance(self.group, str | int | None):
            raise UsageError(f"group={self.group!r} is neither a name nor an id")
        if isinstance(self.group, int) and not 0 <= self.group < UNKNOWN_ID:
            raise UsageError(f"group={self.group} is not an id: a whole number from 0 to {UNKNOWN_ID - 1}")


class Claim:
    """A claimed address: its socket, and what it takes to give it back.

    Attributes:
        socket: bound, and listening unless it is a datagram socket.
        request: what was asked for.
    """

    def __init__(self, request: Request, claimed: socket.socket, place: _Place | None = None) -> None:
        self.request = request
        self.socket = claimed
        self._place = place
        self._claimer = os.getpid()

    def hold(self) -> Hold:
        """Whether the path still leads to our socket; always HELD for an address that is no path of ours."""
        if self._place is None or self._place.inode is None:
            return Hold.HELD
        return self._place.hold()

    def remove_path(self) -> None:
        """Take the socket file away, if it is ours and this process claimed it. A second time does nothing."""
        if self._place is not None and self.is_claimer:
            self._place.remove()

    def release_path(self) -> None:
        """Remove the path and give up the lock, but leave the socket open."""
        place = self._place
        if place is None:
            return
        # Each step is noted once it is done: a signal handler that comes in has to be able to finish what was begun.
        try:
            if self.is_claimer:
                place.remove()
        finally:
            try:
                place.close(remove_lock=self.is_claimer)
            finally:
                self._place = None

    def release(self) -> None:
        """Remove the path, close the socket, give up the lock. A second time does nothing."""
        try:
            self.remove_path()
        finally:
            self.socket.close()
            self.release_path()

    @property
    def is_claimer(self) -> bool:
        """Whether this process claimed the address, rather than inherited it by fork."""
        return os.getpid() == self._claimer


class _Place:
    """A path being claimed: its directory, its lock, and the inode that is ours once bound."""

    def __init__(self, path: str, directory: int, lock: PathLock) -> None:
        self.path = path
        self.leaf = os.path.basename(path)
        self.directory = directory
        self.lock = lock
        self.inode: tuple[int, int] | None = None

    def hold(self) -> Hold:
        try:
            status = os.lstat(self.leaf, dir_fd=self.directory)
            # The directory itself may have been moved away, so the path has to lead to the same file as well.
            same_file = os.path.samestat(status, os.lstat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return Hold.REMOVED
        except OSError:  # we may not look there any more, so nobody can say that it is gone
            return Hold.HELD
        return Hold.HELD if same_file and _identity(status) == self.inode else Hold.REPLACED

    def remove(self) -> None:
        if self.inode is None:
            return
        try:
            with suppress(FileNotFoundError):
                if _identity(os.lstat(self.leaf, dir_fd=self.directory)) == self.inode:
                    os.unlink(self.leaf, dir_fd=self.directory)
        finally:
            self.inode = None

    def abandon(self, bound: socket.socket) -> None:
        """Undo the bind, also if an exception such as KeyboardInterrupt came before the inode was remembered."""
        if self.inode is None and bound.getsockname():
            with suppress(FileNotFoundError):
                self.inode = _identity(os.lstat(self.leaf, dir_fd=self.directory))
        self.remove()

    def close(self, *, remove_lock: bool) -> None:
        try:
            self.lock.release(remove=remove_lock)
        finally:
            directory, self.directory = self.directory, -1
            if directory >= 0:
                os.close(directory)


def claim(request: Request) -> Claim:
    """Take the address.

    Raises:
        UsageError: the request makes no sense.
        AddressInUse: somebody has the address; the message says who.
        NotASocket: something else is at the path; it was not touched.
        ClaimError: any other reason why the socket cannot be made, all undone.
    """
    request.check()
    try:
        match request.address:
            case DescriptorAddress():
                return _adopt(request, request.address)
            case AbstractAddress():
                return _claim_abstract(request, request.address)
            case PathAddress():
                return _claim_path(request, request.address)
    except ClaimError:
        raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{request.address} was taken by somebody else just now: try again") from error
        raise ClaimError(f"cannot create {request.address}: {os.strerror(error.errno or 0)}") from error


def _adopt(request: Request, address: DescriptorAddress) -> Claim:
    if request.group is not None:
        raise UsageError(f"{address} was made by another process, which decided about its group")
    handed = adopt_descriptor(address, request.type)
    listening = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listening and (request.type != "datagram" or not handed.getsockname()):
        handed.detach()
        missing = "bound" if request.type == "datagram" else "listening"
        raise AddressError(f"{address} is not a {missing} socket: start this process with one that is")
    _prepare(handed, request)
    return Claim(request, handed)


def _claim_abstract(request: Request, address: AbstractAddress) -> Claim:
    if request.group is not None:
        raise UsageError(f"{address} has no file, so no group: pass a policy, as in allow=samehost.allow(group=…)")
    with ExitStack() as undo:
        unbound = undo.enter_context(socket.socket(socket.AF_UNIX, SOCKET_TYPES[request.type]))
        _prepare(unbound, request)
        try:
            unbound.bind(b"\0" + address.name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            holders = owners.phrase(owners.owners_of_name(b"\0" + address.name))
            raise AddressInUse(f"{address} is held by {holders}") from None
        _listen(unbound, request)
        undo.pop_all()
    return Claim(request, unbound)


def _claim_path(request: Request, address: PathAddress) -> Claim:
    gid = gid_of_group(request.group) if isinstance(request.group, str) else request.group
    leaf = os.path.basename(address.path)
    if len(os.fsencode(leaf + SUFFIX)) > limits.FILE_NAME_BYTES_MAX:
        raise AddressError(
            f"the file name in {address} is {len(os.fsencode(leaf))} bytes long, at most "
            f"{limits.FILE_NAME_BYTES_MAX - len(SUFFIX)} leave room for its lock file {SUFFIX}"
        )
    with ExitStack() as undo:
        directory = _open_directory(address)
        undo.callback(os.close, directory)
        lock = PathLock(address.path, directory, leaf)
        undo.callback(lock.release, remove=True)
        place = _Place(address.path, directory, lock)
        _clear_way(place)
        unbound = undo.enter_context(socket.socket(socket.AF_UNIX, SOCKET_TYPES[request.type]))
        os.fchmod(unbound.fileno(), _CLAIM_MODE & request.mode)
        _prepare(unbound, request)
        undo.callback(place.abandon, unbound)
        paths.bind_at(unbound, place.path, directory, leaf)
        _own(place, request.mode, gid)
        _listen(unbound, request)
        undo.pop_all()
    return Claim(request, unbound, place)


def _open_directory(address: PathAddress) -> int:
    path = os.path.dirname(address.path)
    try:
        if address.is_service:
            _make_runtime_directory(path)
        directory = os.open(path, paths.DIRECTORY_FLAGS)
    except ClaimError:
        raise
    except OSError as error:
        advice = ": make it first" if error.errno == errno.ENOENT else ""
        raise ClaimError(
            f"cannot create {address}: its directory {path} cannot be opened ({os.strerror(error.errno or 0)}){advice}"
        ) from error
    status = os.fstat(directory)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        os.close(directory)
        raise ClaimError(
            f"cannot create {address}: anybody may remove files in its directory {path}, whose mode is "
            f"{stat.S_IMODE(status.st_mode):#o}: choose another one, or `chmod +t` or `chmod o-w` this one"
        )
    return directory


def _make_runtime_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ClaimError(
                f"the runtime directory {path} is no directory of uid {os.geteuid()}: remove it, it was not made by us"
            ) from None


def _clear_way(place: _Place) -> None:
    """Remove a dead socket; refuse everything else that is there."""
    try:
        file = os.open(place.leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ClaimError(f"cannot look at {place.path}: {os.strerror(error.errno or 0)}") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode):
            raise NotASocket(
                f"cannot create {place.path}: {_kind(status.st_mode)} is there, and it was not touched: "
                "remove it, or choose another path"
            )
        bound = owners.is_anybody_bound(file)
        if bound is None:
            raise ClaimError(
                f"cannot tell whether the socket {place.path} of uid {status.st_uid} is alive: uid {os.geteuid()} may "
                "not connect to it; it was not touched"
            )
        if bound:
            holders = owners.phrase(owners.owners_of_file(status.st_dev, status.st_ino))
            raise AddressInUse(f"{place.path} is held by {holders}")
        # While `file` is open no other file can get this inode number, so the comparison cannot be fooled.
        if not os.path.samestat(os.lstat(place.leaf, dir_fd=place.directory), status):
            raise AddressInUse(f"{place.path} was replaced by somebody else just now: try again")
        try:
            os.unlink(place.leaf, dir_fd=place.directory)
        except OSError as error:
            raise ClaimError(
                f"cannot remove the dead socket {place.path} of uid {status.st_uid}: {os.strerror(error.errno or 0)}"
            ) from error
    finally:
        os.close(file)


def _own(place: _Place, mode: int, gid: int | None) -> None:
    """Remember the inode as ours, then set group and mode, in this order."""
    status = os.lstat(place.leaf, dir_fd=place.directory)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise AddressInUse(f"{place.path} was replaced by somebody else just now: try again")
    place.inode = _identity(status)
    file = os.open(place.leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        if _identity(os.fstat(file)) != place.inode:
            raise AddressInUse(f"{place.path} was replaced by somebody else just now: try again")
        name = paths.descriptor_name(file)
        if gid is not None and gid != status.st_gid:
            os.chown(name, -1, gid)
        if mode != stat.S_IMODE(status.st_mode):
            os.chmod(name, mode)
    finally:
        os.close(file)


def _prepare(unbound: socket.socket, request: Request) -> None:
    """What has to hold before anybody can reach the socket: that datagrams tell who sent them."""
    if request.type == "datagram":
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def _listen(bound: socket.socket, request: Request) -> None:
    if request.type != "datagram":
        bound.listen(limits.BACKLOG_CONNECTIONS_MAX if request.backlog is None else request.backlog)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a fifo"),
        (stat.S_ISREG, "a file"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")
