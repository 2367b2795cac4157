"""Keeping a claimed address while it is served: noticing that its path is gone, and taking it again if so."""

from __future__ import annotations

import logging
import os
import resource
import socket as sockets
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from samehost import limits
from samehost.address import DescriptorAddress
from samehost.errors import Error, UsageError
from samehost.kernel.claim import Hold, Request, claim
from samehost.kernel.closing import Closable
from samehost.peer import Policy, same_user_or_root

if TYPE_CHECKING:
    from collections.abc import Iterator


Taken = TypeVar("Taken", bound=Closable)
"""What a listener takes: a connection or a datagram."""

logger = logging.getLogger("samehost")


class Keeper:
    """A claimed address and the policy on it.

    Attributes:
        policy: which peers are served; None if the file's mode has decided already.
    """

    def __init__(self, request: Request, policy: Policy | None) -> None:
        if policy is not None and not isinstance(policy, Policy):
            raise UsageError(f"allow={policy!r} is not a policy: make one with samehost.allow(user=…)")
        self._claim = claim(request)
        self._previous: list[sockets.socket] = []
        self._is_lost = False
        self._is_reported = False
        if policy is None and self._is_abstract():
            policy = same_user_or_root()
        self.policy = policy

    @property
    def socket(self) -> sockets.socket:
        """The bound socket; another one after the path had to be bound again."""
        return self._claim.socket

    @property
    def type(self) -> str:
        """The type of the socket: stream, datagram or seqpacket."""
        return self._claim.request.type

    @property
    def address(self) -> str:
        """What was claimed, as text."""
        return str(self._claim.request.address)

    def _is_abstract(self) -> bool:
        name = self.socket.getsockname()
        return isinstance(name, bytes) and name.startswith(b"\0")

    @property
    def _is_handed(self) -> bool:
        """Whether the socket was made by another process."""
        return isinstance(self._claim.request.address, DescriptorAddress)

    def _sources(self) -> list[sockets.socket]:
        """The sockets to take from, those that lost their path first; none of them blocks."""
        sources = [*self._previous, self.socket]
        for source in sources:
            if source.getblocking():
                source.setblocking(False)
        return sources

    def _found_empty(self, source: sockets.socket) -> None:
        """Let a source go that lost its path: nothing will ever come there again."""
        if source in self._previous:
            self._previous.remove(source)
            source.close()

    def check_path(self) -> None:
        """Look whether clients still reach us by the path.

        A path that was removed is claimed again, which is safe because claiming is. One that was replaced is left to
        whoever did that. Both are logged. A process that inherited the socket by fork only reports.
        """
        if not self._is_lost:
            hold = self._claim.hold()
            if hold is Hold.HELD:
                return
            if hold is Hold.REPLACED or not self._claim.is_claimer:
                self._report("%s was %s while it was served: new clients no longer reach this server", hold.value)
                return
            self._is_lost = True
            with self._leaving():
                self._claim.release_path()
        try:
            again = claim(self._claim.request)
        except Error as error:
            self._report("%s was removed while it was served, and cannot be made again: %s", error)
            return
        logger.warning("%s was removed while it was served: it was made again", self.address)
        self._previous.append(self.socket)
        self._claim = again
        self._is_lost = self._is_reported = False

    def _report(self, message: str, detail: object) -> None:
        if not self._is_reported:
            self._is_reported = True
            logger.error(message, self.address, detail)

    def stop(self) -> bool:
        """Let no new client in, so that those who had come can be served, and then no more.

        Returns:
            Whether there may be such clients. A socket that was handed to this process, or inherited by fork, has other
            holders, so what waits there is left to them.
        """
        with self._leaving():
            self._claim.release_path()
        if not self._claim.is_claimer or self._is_handed:
            return False
        self.socket.shutdown(sockets.SHUT_RD)  # what is queued can still be taken, what comes now is refused
        return True

    def release(self) -> None:
        """Remove the path and close the socket. A second time does nothing."""
        while self._previous:
            self._previous.pop().close()
        with self._leaving():
            self._claim.release()

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Log that files could not be removed, as after the process gave up its privileges; a next server does it."""
        try:
            yield
        except OSError as error:
            logger.warning("%s or its lock file could not be removed: %s", self.address, os.strerror(error.errno or 0))


def handlers_that_fit(handlers_max: int) -> int:
    """How many clients to serve at a time: what was asked for, or what 3/4 of RLIMIT_NOFILE allows.

    Raises:
        UsageError: less than one.
    """
    if handlers_max < 1:
        raise UsageError(f"at least one client has to be served at a time, not {handlers_max}")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return handlers_max
    return max(1, min(handlers_max, int(soft * limits.DESCRIPTOR_SHARE_MAX)))
