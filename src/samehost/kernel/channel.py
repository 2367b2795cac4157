"""A connected socket and what can be done with it at once: the part of a connection that both front ends share."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from samehost import limits
from samehost.errors import DeadlineExceeded, PeerError, ReceiverFull, UsageError
from samehost.kernel import messages
from samehost.kernel.closing import Closable
from samehost.kernel.deadline import Deadline
from samehost.kernel.files import File, HasFileno, descriptors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samehost.peer import Peer

Data = bytes | bytearray | memoryview


class Channel(Closable):
    """One end of a connection, which never waits.

    Attributes:
        socket: the plain socket, ours to close.
        peer: who is at the other end.
        address: the address that was listened on or dialled, as text.
        type: "stream", "datagram" or "seqpacket".
    """

    def __init__(self, connected: socket.socket, peer: Peer, address: str, type: str) -> None:
        self.socket = connected
        self.peer = peer
        self.address = address
        self.type = type
        self._ended = False

    def _receive_now(self, size: int, files_max: int, flags: int = messages.DONT_WAIT) -> tuple[bytes, list[File]]:
        """What is there, at most `size` bytes; empty at the end. Raises BlockingIOError when nothing is."""
        if self._ended:
            return b"", []
        try:
            received = messages.receive(self.socket, size, files_max, flags)
        except PeerError:
            self.shutdown()
            self._ended = True  # what the peer sent behind it is still queued, and would follow a gap
            raise
        if not received[0] and self.type != "datagram":
            # The end, or an empty packet, which looks just like it: from here on it is the end.
            self._ended = True
            messages.close_all(received[1])  # an empty packet's: nobody looks for files at the end
            return b"", []
        return received

    def _send_now(self, data: Data, descriptors: Sequence[int]) -> int:
        """Send what fits, and say how many bytes that was. Raises BlockingIOError when nothing does."""
        return messages.send(self.socket, data, descriptors)

    def _check_send(self, data: Data, files: Sequence[HasFileno | int]) -> tuple[Data, Sequence[int]]:
        """The data as bytes and the descriptors of the files, if they can travel like this at all."""
        if not isinstance(data, bytes | bytearray):
            data = memoryview(data).cast("B")
        if not data and self.type == "seqpacket":
            raise UsageError("an empty packet cannot be told from the end of the connection: send at least one byte")
        if not files:
            return data, ()
        if not data and self.type == "stream":
            raise UsageError("files travel with the bytes of a stream: send at least one byte along")
        return data, descriptors_of(files)

    def shutdown(self, how: int = socket.SHUT_RDWR) -> None:
        """End one or both directions, for both processes, whoever else holds the socket (shutdown(2)).

        Args:
            how: SHUT_WR tells the peer that nothing more comes; SHUT_RDWR also wakes every thread that waits here.
        """
        if how != socket.SHUT_WR and self.type == "datagram":
            self._ended = True  # poll(2) says readable for ever from now on, and recvmsg(2) that nothing is there
        with contextlib.suppress(OSError):  # ENOTCONN, EBADF: it has ended already
            self.socket.shutdown(how)

    def _send_deadline(self, timeout: float | None) -> Deadline:
        """When to give up sending: a datagram's receiver that does not read is not waited for for ever."""
        if timeout is None and self.type == "datagram":
            timeout = limits.RECEIVER_FULL_SECONDS
        return Deadline(timeout)

    def _no_room(self, deadline: Deadline) -> Exception:
        """The error for a send that found no room in time."""
        if self.type == "datagram":
            return ReceiverFull(
                f"the receiver at {self.address} does not read: its queue (net.unix.max_dgram_qlen messages) stayed "
                f"full for {deadline.timeout:g} s, and the datagram was not sent"
            )
        return DeadlineExceeded(
            f"the peer on {self.address} did not read, so not all was sent within {deadline.timeout:g} s"
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.socket.fileno() < 0

    def close(self) -> None:
        """Close the socket and the peer's pidfd; a second time does nothing."""
        self.peer.close()
        self.socket.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"peer {self.peer}"
        return f"<{self.type} Connection on {self.address}, {state}>"
