"""What a connection has to send and the kernel has no room for yet, in order, and how far it has come."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samehost.protocol import Chunk

# A plain number: `|` on the enumerations of the socket module costs more than half a system call.
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

_PIECES_MAX = 16
"""Pieces that one sendmsg(2) takes."""


class Outbox:
    """The output of one stream socket, which never waits.

    A signal handler that looks at it in the middle of a system call finds all of it taken for sent: what may have gone
    out is never said not to have.

    Attributes:
        queue: what is still to be sent.
        written: how many bytes it was ever given.
        sent: how many of these the kernel has taken.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.queue: deque[memoryview] = deque()
        self.written = 0
        self.sent = 0
        self._send = connected.send
        self._sendmsg = connected.sendmsg

    @property
    def pending(self) -> int:
        """How many bytes are still to be sent."""
        return self.written - self.sent

    def send(self, chunks: list[Chunk]) -> bool:
        """Send what the kernel takes, and keep the rest; whether nothing is left. Chunks have no descriptors.

        Raises:
            OSError: nothing can be sent any more.
        """
        if len(chunks) != 1 or self.queue:
            for data, _ in chunks:
                self.queue.append(memoryview(data))
                self.written += len(data)
            return self.push()
        data = chunks[0][0]
        before, sent = self.sent, 0
        self.sent = self.written = before + len(data)
        try:
            sent = self._send(data, _FLAGS)
        except BlockingIOError:
            pass
        finally:
            self.sent = before + sent
        if sent == len(data):
            return True
        self.queue.append(memoryview(data)[sent:])
        return False

    def push(self) -> bool:
        """Send what the kernel takes now; whether nothing is left. Raises as `send`."""
        queue = self.queue
        while queue:
            before, sent = self.sent, 0
            self.sent = self.written
            try:
                sent = self._sendmsg(list(islice(queue, _PIECES_MAX)), (), _FLAGS)
            except BlockingIOError:
                return False
            finally:
                self.sent = before + sent
            while queue and sent >= len(queue[0]):
                sent -= len(queue.popleft())
            if sent:
                queue[0] = queue[0][sent:]
        return True
