"""A connection for asyncio: bytes or messages, open files beside them, and who is at the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost import limits
from samehost.aio.waiting import Readable, Writable
from samehost.errors import ConnectionClosed, DeadlineExceeded
from samehost.kernel.channel import Channel, Data
from samehost.kernel.closing import AsyncClosable
from samehost.kernel.deadline import Deadline
from samehost.kernel.messages import check_files_max

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from samehost.kernel.files import File, HasFileno
    from samehost.peer import Peer


class Connection(AsyncClosable, Channel):
    """One accepted or dialled socket; `samehost.Connection` in coroutines.

    Closing wakes every task that waits here, with ConnectionClosed.

    Attributes:
        socket: the plain socket, for whatever is not offered here.
        peer: who is at the other end, as the kernel says.
        address: the address that was listened on or dialled.
        type: "stream", "datagram" or "seqpacket".
    """

    def __init__(self, connected: socket.socket, peer: Peer, address: str, type: str) -> None:
        super().__init__(connected, peer, address, type)
        connected.setblocking(False)
        self._readable = Readable(connected)
        self._writable = Writable(connected)
        self._is_draining = False

    async def recv(self, size: int = limits.MESSAGE_BYTES_MAX, *, timeout: float | None = None) -> bytes:
        """Receive what is there, waiting for the first byte or message; see `samehost.Connection.recv`."""
        data, _ = await self._receive(size, 0, timeout)
        return data

    async def recv_with_files(
        self, size: int = limits.MESSAGE_BYTES_MAX, *, files_max: int = 1, timeout: float | None = None
    ) -> tuple[bytes, list[File]]:
        """Receive bytes and up to `files_max` open files; see `samehost.Connection.recv_with_files`."""
        check_files_max(files_max)
        return await self._receive(size, files_max, timeout)

    async def _receive(self, size: int, files_max: int, timeout: float | None) -> tuple[bytes, list[File]]:
        deadline = Deadline(timeout)
        while True:
            try:
                return self._receive_now(size, files_max)
            except BlockingIOError:
                if not await self._wait_readable(deadline):
                    return b"", []

    async def _wait_readable(self, deadline: Deadline) -> bool:
        """Wait for something to receive; false if there will be nothing, because the server drains."""
        quiet = limits.DRAIN_QUIET_SECONDS if self._is_draining else float("inf")
        if not await self._readable.wait(min(deadline.left(), quiet)):
            if self._is_draining:
                return False
            raise DeadlineExceeded(f"nothing was received on {self.address} within {deadline.timeout:g} s")
        self._check_open()
        return True

    def _end_when_quiet(self) -> None:
        """From now on, silence reads as the end of the connection."""
        self._is_draining = True
        self._readable.wake()

    async def send(self, data: Data, files: Sequence[HasFileno | int] = (), *, timeout: float | None = None) -> int:
        """Send what fits in the kernel's buffers, waiting for room; see `samehost.Connection.send`."""
        data, descriptors = self._check_send(data, files)
        try:
            return self._send_now(data, descriptors)
        except BlockingIOError:
            return await self._send_later(data, descriptors, self._send_deadline(timeout))

    async def sendall(self, data: Data, files: Sequence[HasFileno | int] = (), *, timeout: float | None = None) -> None:
        """Send all the bytes, within one deadline; see `samehost.Connection.sendall`.

        Tasks that send on one stream at the same time can have their bytes mixed: use a lock, or one sender.
        """
        data, descriptors = self._check_send(data, files)
        deadline = None
        try:
            sent = self._send_now(data, descriptors)
        except BlockingIOError:
            deadline = self._send_deadline(timeout)
            sent = await self._send_later(data, descriptors, deadline)
        if sent < len(data):
            rest = memoryview(data)[sent:]
            deadline = deadline or self._send_deadline(timeout)
            while rest:
                rest = rest[await self._send_later(rest, (), deadline) :]

    async def _send_later(self, data: Data, descriptors: Sequence[int], deadline: Deadline) -> int:
        while (left := deadline.left()) and await self._writable.wait(left):
            self._check_open()
            try:
                return self._send_now(data, descriptors)
            except BlockingIOError:
                continue
        raise self._no_room(deadline)

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionClosed(f"the connection on {self.address} was closed here meanwhile")

    def close(self) -> None:
        """Close the socket and the peer's pidfd; a second time does nothing."""
        self._readable.stop()
        self._writable.stop()
        super().close()
