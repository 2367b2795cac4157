"""Taking datagrams one at a time from a bound socket, each with its sender, and answering them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from samehost import limits
from samehost.address import AbstractAddress
from samehost.errors import ConnectionClosed, ListenerClosed, NotPermitted, PeerError, ReceiverFull, Unavailable
from samehost.kernel import messages
from samehost.kernel.closing import Closable
from samehost.kernel.keeper import Keeper, logger
from samehost.kernel.owners import printable
from samehost.kernel.paths import descriptor_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from samehost.kernel.channel import Data
    from samehost.kernel.deadline import Deadline
    from samehost.peer import Peer


class ReceivedDatagram(Closable):
    """One datagram that was received, with its sender; both front ends add how to wait for room to reply.

    Attributes:
        data: its bytes, perhaps none.
        files: open files that came along. Those still there when the datagram is closed are closed with it.
        peer: who sent it, as the kernel says; without supplementary groups, of which it does not tell.
        sender: the address for a reply; None if the sender has none.
    """

    def __init__(self, mailbox: Mailbox, message: messages.Message, peer: Peer) -> None:
        self.data = message.data
        self.files = message.files
        self.peer = peer
        self.sender = _as_written(message.sender) if message.sender else None
        self._mailbox = mailbox
        self._to = message.sender

    def _reply_now(self, data: Data, descriptors: Sequence[int]) -> None:
        """Send a datagram back. Raises BlockingIOError while the sender's queue is full."""
        if not self._to:
            raise Unavailable(f"the sender ({self.peer}) has no address to reply to: its socket is not bound")
        if isinstance(self._to, bytes):
            messages.send(self._mailbox.socket, data, descriptors, self._to)
        else:
            self._reply_to_path(self._to, data, descriptors)

    def _reply_to_path(self, path: str, data: Data, descriptors: Sequence[int]) -> None:
        """Send to the socket at the sender's path, if it is the sender's.

        A sender chooses its path and what is there now. Without this check, a server with more rights could be made to
        send to a socket that the sender itself may not write to.
        """
        if not path.startswith("/"):
            raise NotPermitted(
                f"the sender ({self.peer}) has a relative address, {printable(path)}: it means nothing here"
            )
        try:
            file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ConnectionClosed(
                f"the sender's address {printable(path)} cannot be reached: {os.strerror(error.errno or 0)}"
            ) from error
        try:
            status = os.fstat(file)
            if not stat.S_ISSOCK(status.st_mode) or status.st_uid != self.peer.uid:
                raise NotPermitted(
                    f"the reply was not sent: what is at {printable(path)} now is no socket of its sender ({self.peer})"
                )
            messages.send(self._mailbox.socket, data, descriptors, descriptor_name(file))
        finally:
            os.close(file)

    def _pauses(self, deadline: Deadline) -> Iterator[float]:
        """How long to rest after each failed try: no event tells of room at an address we are not connected to."""
        pause = limits.DIAL_PAUSE_SECONDS_MIN
        while True:  # once at least, and once more when the time is over
            left = deadline.left()
            yield min(pause, left)
            if left == 0.0:
                return
            pause = min(pause * 2, limits.DIAL_PAUSE_SECONDS_MAX)

    def _no_room(self, deadline: Deadline) -> ReceiverFull:
        """The error for a reply that found no room in time."""
        return ReceiverFull(
            f"{printable(self.sender or '')} ({self.peer}) does not read: its queue stayed full for "
            f"{deadline.timeout:g} s, and the reply was not sent"
        )

    def close(self) -> None:
        """Close the files that are still in `files`."""
        for file in self.files:
            file.close()

    def __repr__(self) -> str:
        sender = printable(self.sender) if self.sender else "a sender without address"
        return f"<Datagram of {len(self.data)} bytes from {sender}, {self.peer}>"


_OVERFLOW_UID = 65534
"""What the kernel writes for a user that it cannot name here (user_namespaces(7))."""


class Mailbox(Keeper):
    """The receiving end of an address for datagrams.

    Attributes:
        dropped: datagrams that were thrown away since the start: refused by the policy or against the rules.
    """

    dropped = 0

    def receive_now(self, size: int, files_max: int) -> tuple[messages.Message, Peer] | None:
        """Take one datagram, if one is there and its sender is admitted.

        Returns:
            The datagram and its sender; None if one was dropped, to call again.

        Raises:
            BlockingIOError: none is there.
            ListenerClosed: the socket was closed.
        """
        for source in self._sources():
            try:
                message = messages.receive_datagram(source, size, files_max)
            except BlockingIOError:
                self._found_empty(source)
                continue
            except ConnectionClosed as error:
                if source is not self.socket:
                    continue  # another thread found it empty, and let it go
                raise ListenerClosed(f"the listener on {self.address} is closed") from error
            except PeerError as error:
                self._drop(str(error))
                return None
            return self._admit(message)
        raise BlockingIOError

    def _admit(self, message: messages.Message) -> tuple[messages.Message, Peer] | None:
        peer = message.peer
        if peer is not None and peer.pid == 0 and peer.uid == _OVERFLOW_UID and self._is_handed:
            peer = None  # sent before SO_PASSCRED was on, so nobody has said who it was
        if peer is not None and (self.policy is None or self.policy.admits(peer)):
            return message, peer
        for file in message.files:
            file.close()
        self._drop(f"{peer or 'an unknown sender'} is refused: it admits {self.policy or 'nobody unknown'}")
        return None

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        logger.warning("%s dropped a datagram: %s", self.address, reason)


def _as_written(sender: str | bytes) -> str:
    if isinstance(sender, bytes):
        return str(AbstractAddress(sender[1:]))
    return sender
