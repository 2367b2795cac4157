"""What a connection has to send and the kernel has no room for yet, in order, and how far it has come."""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from samehost import limits
from samehost.errors import ReceiverFull
from samehost.kernel.outgoing import next_message, refused_for, remove_sent

if TYPE_CHECKING:
    from samehost.protocol import Chunk, Payload

# A plain number: `|` on the enumerations of the socket module costs more than half a system call.
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

_PIECES_MAX = 16
"""Pieces that one sendmsg(2) takes."""


class Outbox:
    """The output of one stream socket, which never waits.

    A signal handler that looks at it in the middle of a system call finds all of it taken for sent: what may have gone
    out is never said not to have.

    Attributes:
        queue: what is still to be sent. A chunk keeps its descriptors until the kernel has taken its first byte.
        written: how many bytes it was ever given.
        sent: how many of these the kernel has taken.
        refused_since: when the kernel began to refuse files, by the monotonic clock; None unless it does. As there may
            be room all the while, try again after a pause then, rather than when the socket says that it has some.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.queue: deque[Chunk] = deque()
        self.written = 0
        self.sent = 0
        self.refused_since: float | None = None
        self._send = connected.send
        self._sendmsg = connected.sendmsg

    @property
    def pending(self) -> int:
        """How many bytes are still to be sent."""
        return self.written - self.sent

    def send(self, chunks: list[Chunk]) -> bool:
        """Send what the kernel takes, and keep the rest; whether nothing is left.

        Raises:
            OSError: nothing can be sent any more.
            ReceiverFull: files were refused for too long.
        """
        if len(chunks) != 1 or self.queue:
            return self._add(chunks)
        data, descriptors = chunks[0]
        return self._add(chunks) if descriptors else self.send_at_once(data)

    def send_at_once(self, data: Payload) -> bool:
        """The same for bytes alone, when the queue is empty."""
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
        self.queue.append((memoryview(data)[sent:], ()))
        return False

    def _add(self, chunks: list[Chunk]) -> bool:
        for chunk in chunks:
            self.queue.append(chunk)
            self.written += len(chunk[0])
        return self.push()

    def push(self) -> bool:
        """Send what the kernel takes now; whether nothing is left. Raises as `send`."""
        queue = self.queue
        while queue:
            pieces, control = next_message(queue, _PIECES_MAX)
            before, sent = self.sent, 0
            self.sent = self.written
            try:
                sent = self._sendmsg(pieces, control, _FLAGS)
            except BlockingIOError:
                self.refused_since = None
                return False
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                self._note_refusal(error)
                return False
            finally:
                self.sent = before + sent
            self.refused_since = None
            remove_sent(queue, sent)
        return True

    def _note_refusal(self, error: OSError) -> None:
        now = time.monotonic()
        if self.refused_since is None:
            self.refused_since = now
        elif now - self.refused_since >= limits.OUTPUT_STALL_SECONDS:
            raise ReceiverFull(refused_for(limits.OUTPUT_STALL_SECONDS)) from error
