"""Connecting to an address, one try at a time: what each errno means, and how long to rest before the next try.

A connect that cannot be done at once is tried again, never waited for in the kernel: on a UNIX domain socket an
interrupted or full-backlog connect leaves a socket that looks writable and is connected to nobody.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from samehost import limits
from samehost.address import AbstractAddress, Address, DescriptorAddress, PathAddress
from samehost.errors import AddressError, DeadlineExceeded, NotPermitted, Unavailable, UsageError
from samehost.kernel.deadline import Deadline
from samehost.kernel.handed import SOCKET_TYPES, adopt_descriptor, check_type
from samehost.kernel.paths import connect_name
from samehost.kernel.trust import check_server
from samehost.peer import Policy

if TYPE_CHECKING:
    from samehost.peer import Peer

_NOBODY = {errno.ENOENT, errno.ECONNREFUSED}
"""No file, or no living socket behind it, or not listening yet."""


class Dialling:
    """The tries of one dial.

    Args:
        wait: seconds to keep trying while nobody is there.
        timeout: seconds to keep trying while the server's backlog is full, counted from when `wait` is over; None for
            ever.

    Attributes:
        pause: seconds to rest before the next try.

    Raises:
        UsageError: no such type, or a negative time.
    """

    def __init__(self, address: Address, type: str, wait: float, timeout: float | None, trust: Policy | None) -> None:
        check_type(type)
        if trust is not None and not isinstance(trust, Policy):
            raise UsageError(f"trust={trust!r} is not a policy: make one with samehost.allow(user=…)")
        self.address = address
        self.pause = limits.DIAL_PAUSE_SECONDS_MIN / 2
        self._type = type
        self._trust = trust
        self._wait = Deadline(wait)
        if self._wait.timeout is None:
            raise UsageError("wait= is a number of seconds, not None")
        Deadline(timeout)  # says so if it is no number of seconds
        self._settled: Deadline | None = None
        self._full = Deadline(None if timeout is None else wait + timeout)

    def attempt(self) -> tuple[socket.socket, Peer] | None:
        """Try once.

        Returns:
            A connected socket whose server has been checked, and who that is; or None, to rest for `pause` seconds and
            try again.

        Raises:
            Unavailable: nobody is there.
            DeadlineExceeded: the backlog stayed full.
            NotPermitted: the socket's mode, or a directory's, keeps us out.
            UntrustedServer: a stranger serves; nothing was sent.
            AddressError: something else than a socket of this type is there.
        """
        if isinstance(self.address, DescriptorAddress):
            return self._adopt(self.address)
        try:
            connecting = socket.socket(socket.AF_UNIX, SOCKET_TYPES[self._type])
        except OSError as error:
            raise self._failed(error) from error
        try:
            if not self._connect(connecting, self.address):
                connecting.close()
                return None
            return connecting, check_server(connecting, self.address, self._trust)
        except BaseException:
            connecting.close()
            raise

    def _adopt(self, address: DescriptorAddress) -> tuple[socket.socket, Peer]:
        handed = adopt_descriptor(address, self._type)
        try:
            handed.getpeername()
            handed.setblocking(True)
            return handed, check_server(handed, address, self._trust)
        except OSError as error:
            handed.detach()
            if error.errno == errno.ENOTCONN:
                raise AddressError(f"{address} is not connected: start this process with a socket that is") from error
            raise

    def _connect(self, connecting: socket.socket, address: PathAddress | AbstractAddress) -> bool:
        connecting.setblocking(False)
        try:
            if isinstance(address, AbstractAddress):
                connecting.connect(b"\0" + address.name)
            else:
                with connect_name(address.path) as name:
                    connecting.connect(name)
            if self._type == "datagram":
                # An address for replies, made up by the kernel: abstract, so it leaves no file. Only once we are
                # connected, from when on nobody but the server can send us anything.
                connecting.bind("")
        except OSError as error:
            if error.errno in _NOBODY:
                self._rest_unless_over(self._wait, error)
            elif error.errno == errno.EAGAIN:
                self._rest_unless_over(self._full, error)
            elif error.errno == errno.EACCES and self._wait.timeout:
                # A server that opens its socket to more users than its own does so a moment after bind.
                self._settled = self._settled or Deadline(limits.DIAL_SETTLE_SECONDS)
                self._rest_unless_over(self._settled, error)
            else:
                raise self._failed(error) from error
            return False
        connecting.setblocking(True)
        return True

    def _rest_unless_over(self, deadline: Deadline, error: OSError) -> None:
        left = deadline.left()
        if left == 0:
            raise self._failed(error) from error
        self.pause = min(self.pause * 2, limits.DIAL_PAUSE_SECONDS_MAX, left)

    def _failed(self, error: OSError) -> Exception:
        address, number = self.address, error.errno or 0
        if number == errno.ECONNREFUSED and isinstance(address, PathAddress) and not _is_socket(address.path):
            return AddressError(f"{address} is not a socket")  # connect(2) says refused for any kind of file
        if number in _NOBODY:
            reason = "there is no such socket" if number == errno.ENOENT else "it refuses connections"
            waited = f" after waiting for {self._wait.timeout:g} s" if self._wait.timeout else ""
            return Unavailable(f"nobody listens on {address}: {reason}{waited}; is the server running?")
        if number == errno.EAGAIN:
            return DeadlineExceeded(
                f"the backlog of {address} stayed full for {self._full.timeout:g} s: its server does not accept"
            )
        if number in (errno.EACCES, errno.EPERM):
            return NotPermitted(
                f"uid {os.geteuid()} may not connect to {address}: its mode, or that of a directory above it, says no"
            )
        if number == errno.EPROTOTYPE:
            return AddressError(f"the socket {address} is not of type {self._type}: try another type")
        if number in (errno.ENOTDIR, errno.ENOTSOCK, errno.ELOOP):
            return AddressError(f"{address} is not a socket: {os.strerror(number)}")
        return Unavailable(f"cannot connect to {address}: {os.strerror(number)}")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True
