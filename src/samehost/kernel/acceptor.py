"""Accepting one connection at a time, whatever state the host is in, and turning strangers away."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from samehost import limits
from samehost.errors import ListenerClosed
from samehost.kernel.credentials import peer_of
from samehost.kernel.handed import pass_no_credentials
from samehost.kernel.keeper import Keeper, logger

if TYPE_CHECKING:
    import socket

    from samehost.peer import Peer

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED}
_CLOSED = {errno.EBADF, errno.EINVAL}


class Acceptor(Keeper):
    """The listening end of an address.

    Attributes:
        pause: seconds to rest before accepting again, because something has run out; 0 to wait for a client instead.
    """

    pause = 0.0

    def accept_now(self) -> tuple[socket.socket, Peer] | None:
        """Accept one connection, if one is there and its peer is admitted.

        Returns:
            The connected socket and its peer; None to rest for `pause` seconds and call again.

        Raises:
            BlockingIOError: nobody is there.
            ListenerClosed: the socket was closed or shut down.
        """
        for source in self._sources():
            try:
                accepted, _ = source.accept()
            except BlockingIOError:
                self._found_empty(source)
                continue
            except OSError as error:
                if error.errno in _CLOSED and source is not self.socket:
                    continue  # another thread found it empty, and let it go
                self._rest(error)
                return None
            self._go_on()
            return self._admit(accepted)
        self._go_on()
        raise BlockingIOError

    def _go_on(self) -> None:
        if self.pause:
            logger.warning("%s accepts again", self.address)
            self.pause = 0.0

    def _rest(self, error: OSError) -> None:
        if error.errno in _CLOSED:
            raise ListenerClosed(f"the listener on {self.address} is closed") from error
        if error.errno not in _SHORTAGES:
            raise error
        if not self.pause:
            logger.warning("%s rests from accepting: %s", self.address, os.strerror(error.errno))
        self.pause = min(max(self.pause * 2, limits.ACCEPT_PAUSE_SECONDS_MIN), limits.ACCEPT_PAUSE_SECONDS_MAX)

    def _admit(self, accepted: socket.socket) -> tuple[socket.socket, Peer] | None:
        try:
            peer = peer_of(accepted)
        except BaseException:
            accepted.close()
            raise
        if self.policy is None or self.policy.admits(peer):
            if self._is_handed:
                pass_no_credentials(accepted)
            if accepted.gettimeout() is not None:  # socket.setdefaulttimeout, which would defeat MSG_DONTWAIT
                accepted.setblocking(True)
            return accepted, peer
        accepted.close()
        logger.warning("%s refused %s: it admits %s", self.address, peer, self.policy)
        return None
