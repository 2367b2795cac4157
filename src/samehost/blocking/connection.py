"""A connection for threads: bytes or messages, open files beside them, and who is at the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost import limits
from samehost.blocking.waiting import READ, WRITE, wait_for
from samehost.errors import DeadlineExceeded
from samehost.kernel.channel import Channel, Data
from samehost.kernel.deadline import Deadline
from samehost.kernel.messages import check_files_max, wait_for_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samehost.kernel.files import File, HasFileno


class Connection(Channel):
    """One accepted or dialled socket.

    A stream carries bytes: what one side sends in one piece may arrive in several, or in one with its neighbours. The
    other types carry messages, each of which arrives whole or not at all.

    One thread may receive while another sends. Closing does not wake a thread that waits here; `shutdown` does.

    Attributes:
        socket: the plain socket, for whatever is not offered here.
        peer: who is at the other end, as the kernel says.
        address: the address that was listened on or dialled.
        type: "stream", "datagram" or "seqpacket".
    """

    _turns = 0
    """Odd while a thread waits in `recv`: a server that drains ends a connection on which that lasts."""

    _is_served = False
    """Set by `serve`, where a thousand threads may wait at a time: none of them holds a buffer while it does."""

    def recv(self, size: int = limits.MESSAGE_BYTES_MAX, *, timeout: float | None = None) -> bytes:
        """Receive what is there, waiting for the first byte or message (recv(2)).

        Args:
            size: at most so many bytes; for messages, the longest that is allowed.
            timeout: seconds to wait; None for as long as it takes.

        Returns:
            The bytes; empty once the peer has ended the connection.

        Raises:
            DeadlineExceeded: nothing came in time.
            ConnectionClosed: the peer left without reading what was sent to it, or the connection is closed here.
            UnexpectedFiles: the peer passed open files; they are closed, and so is the connection.
            ForbiddenMessage: the message is longer than `size`; the connection is shut.
        """
        return self._receive(size, 0, timeout)[0]

    def recv_with_files(
        self, size: int = limits.MESSAGE_BYTES_MAX, *, files_max: int = 1, timeout: float | None = None
    ) -> tuple[bytes, list[File]]:
        """Receive as `recv` does, and up to `files_max` open files that came with the bytes.

        The files are the caller's to close. On a stream, bytes that were sent before the files may come in the same
        call; bytes that were sent after them never do.

        Args:
            files_max: from 0 to 16.

        Raises:
            MessageTooLarge: `files_max` is out of its range.
            Others: as `recv`.
        """
        check_files_max(files_max)
        return self._receive(size, files_max, timeout)

    def _receive(self, size: int, files_max: int, timeout: float | None) -> tuple[bytes, list[File]]:
        self._turns += 1
        try:
            if timeout is None:
                try:
                    if self._is_served:
                        wait_for_data(self.socket)
                    return self._receive_now(size, files_max, flags=0)  # the kernel waits
                except BlockingIOError:
                    pass  # somebody has made the socket non-blocking
            deadline = Deadline(timeout)
            while True:
                try:
                    return self._receive_now(size, files_max)
                except BlockingIOError:
                    if not wait_for((self.socket, READ), seconds=deadline.left()):
                        raise DeadlineExceeded(f"nothing was received on {self.address} within {timeout:g} s") from None
        finally:
            self._turns += 1

    def send(self, data: Data, files: Sequence[HasFileno | int] = (), *, timeout: float | None = None) -> int:
        """Send what fits in the kernel's buffers, waiting for room for the first byte (sendmsg(2)).

        Args:
            data: the bytes, or one whole message.
            files: at most 16 open files, which travel with the first byte and stay the caller's.
            timeout: seconds to wait for room; None for as long as it takes, or for a datagram, 1 s.

        Returns:
            The number of bytes sent; all of them, for a message.

        Raises:
            DeadlineExceeded: there was no room in time.
            ReceiverFull: the receiver of datagrams does not read; or too many files are under way.
            ConnectionClosed: the other end is gone.
            MessageTooLarge: a longer message, or more files, than can travel.
            UsageError: an empty packet, or files with no byte to travel with.
        """
        data, descriptors = self._check_send(data, files)
        try:
            return self._send_now(data, descriptors)
        except BlockingIOError:
            return self._send_later(data, descriptors, self._send_deadline(timeout))

    def sendall(self, data: Data, files: Sequence[HasFileno | int] = (), *, timeout: float | None = None) -> None:
        """Send all the bytes, with as many calls as it takes, within one deadline; otherwise as `send`.

        Threads that send on one stream at the same time can have their bytes mixed: use a lock, or one sender.
        """
        data, descriptors = self._check_send(data, files)
        deadline = None
        try:
            sent = self._send_now(data, descriptors)
        except BlockingIOError:
            deadline = self._send_deadline(timeout)
            sent = self._send_later(data, descriptors, deadline)
        if sent < len(data):
            rest = memoryview(data)[sent:]
            deadline = deadline or self._send_deadline(timeout)
            while rest:
                rest = rest[self._send_later(rest, (), deadline) :]

    def _send_later(self, data: Data, descriptors: Sequence[int], deadline: Deadline) -> int:
        while (left := deadline.left()) and wait_for((self.socket, WRITE), seconds=left):
            try:
                return self._send_now(data, descriptors)
            except BlockingIOError:
                continue
        raise self._no_room(deadline)
