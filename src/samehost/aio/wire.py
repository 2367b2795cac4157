"""A connected stream socket in an event loop: what comes in is handed on at once, what goes out waits for its room.

The one place where bytes of calls are read and written for asyncio, of use to both ends. There is no task and no future
here: the loop calls back when the socket is ready, one recvmsg(2) brings what there is, and one sendmsg(2) takes what
has come together. Room for files is given only if their owner takes them: who sends some to another is told off
(MSG_CTRUNC, recvmsg(2)).
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

from samehost import limits
from samehost.errors import ReceiverFull, UnexpectedFiles
from samehost.kernel.handed import pass_no_files
from samehost.kernel.heap import keep_memory_at_hand
from samehost.kernel.messages import take_control
from samehost.kernel.outgoing import next_message, refused_for, remove_sent

if TYPE_CHECKING:
    from samehost.kernel.files import File
    from samehost.protocol import Chunk

# Plain numbers: `|` on the enumerations of the socket module costs more than half a system call.
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CUT_SHORT = int(socket.MSG_CTRUNC)
_FILES_ROOM = socket.CMSG_LEN(limits.FILES_PER_MESSAGE_MAX * 4)
_PIECES_MAX = 64
_LAST_READS_MAX = 64
_READS_MAX = 4
_ROOM_AT_FIRST = limits.RECEIVE_BYTES_AT_FIRST


class Owner(Protocol):
    """Whoever a wire belongs to. None of these is called again once the wire is closed."""

    def received(self, data: bytes, files: tuple[File, ...] = ()) -> None:
        """Take what one read has brought, and own the files that came along."""

    def ended(self) -> None:
        """Take note that the peer sends nothing more; it may still read."""

    def lost(self, error: Exception) -> None:
        """Take note that the connection is gone; close the wire."""

    def drained(self) -> None:
        """Take note that no output is pending any more."""

    def stalled(self) -> None:
        """Take note that the peer has read none of what is pending for too long; again, when it lasts."""


class Wire(Protocol):
    """What sessions and links talk through.

    Attributes:
        pending_bytes: what was sent and has found no room yet.
        sent_bytes: what was sent and has found room, so far.
    """

    __slots__ = ()

    pending_bytes: int
    sent_bytes: int

    def read(self) -> None:
        """Hand on what comes from now on."""

    def pause(self) -> None:
        """Leave what comes where it is, until `read` is called again."""

    def read_now(self) -> object:
        """Hand on what is there, if there is anything."""

    @property
    def is_hung_up(self) -> bool:
        """Whether the peer has closed its end altogether, rather than its output alone."""

    def send(self, chunks: list[Chunk]) -> None:
        """Send as much as there is room for, and the rest as soon as there is some.

        Descriptors are objects with a `fileno()`, which stay open as long as they are held here: until the first byte
        of their chunk is sent, or nothing can be sent any more.
        """

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""

    def close(self) -> None:
        """End it, whatever is pending; a second time does nothing."""


class SocketWire(Wire):
    """A connected socket, ours to close, and its owner, who takes open files or not."""

    __slots__ = (
        "_files_room",
        "_has_ended",
        "_is_closed",
        "_is_deaf",
        "_is_reading",
        "_is_told_once",
        "_look",
        "_loop",
        "_owner",
        "_queue",
        "_refused_since",
        "_retry",
        "_room",
        "_short_reads",
        "_socket",
        "_stall",
        "pending_bytes",
        "sent_bytes",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connected: socket.socket, owner: Owner, takes_files: bool = False
    ) -> None:
        connected.setblocking(False)
        self.pending_bytes = self.sent_bytes = 0
        self._loop = loop
        self._socket = connected
        self._owner = owner
        self._queue: deque[Chunk] | None = None  # made for the first chunk that finds no room, and dropped once it did
        self._is_reading = False
        self._is_closed = False
        self._has_ended = False
        self._is_deaf = False
        # Output waits for room, with the first of these timers, or for files to be taken, with the second.
        self._stall: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._refused_since: float | None = None
        keep_memory_at_hand()
        self._room = _ROOM_AT_FIRST
        self._short_reads = 0
        self._files_room: int | None = None
        if takes_files:
            self._files_room = _FILES_ROOM
        elif not pass_no_files(connected):
            self._files_room = 0
        # uvloop tells of an error (EPOLLERR) once, and not again of what can still be read then.
        self._is_told_once = not isinstance(loop, asyncio.BaseEventLoop)
        self._look: asyncio.TimerHandle | None = None

    def read(self) -> None:
        """Watch the socket."""
        if not self._is_reading and not self._has_ended and not self.is_closed:
            self._is_reading = True
            self._loop.add_reader(self._socket.fileno(), self.read_now)

    def pause(self) -> None:
        """Watch it no more; what comes waits in the kernel."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket.fileno())

    def read_now(self) -> bool:
        """Read once; whether there was something, and there may be more."""
        files: tuple[File, ...] = ()
        try:
            if self._files_room is None:
                data = self._socket.recv(self._room)
            else:
                data, control, found, _ = self._socket.recvmsg(self._room, self._files_room, _RECEIVE_FLAGS)
                if control or found & _CUT_SHORT:
                    files = self._files_of(control, found)
        except BlockingIOError:
            return False
        except (OSError, UnexpectedFiles) as error:
            self._owner.lost(error)
            return False
        if data:
            if len(data) >= self._room or self._room != _ROOM_AT_FIRST:
                self._change_room(len(data))
            if files:
                self._owner.received(data, files)
            else:
                self._owner.received(data)
            if self._is_told_once and self._look is None and self._is_reading:
                self._look = self._loop.call_later(limits.HANGUP_SECONDS, self._read_all)
            return True
        self._has_ended = True
        self.pause()
        self._owner.ended()
        return False

    def _change_room(self, byte_count: int) -> None:
        """Make room for much after a read that took all there was, until so many reads have been short."""
        if byte_count >= _ROOM_AT_FIRST:
            self._room = limits.RECEIVE_BYTES
            self._short_reads = 0
        else:
            self._short_reads += 1
            if self._short_reads == limits.LONG_READS_KEPT:
                self._room = _ROOM_AT_FIRST

    def _files_of(self, control: list[tuple[int, int, bytes]], found: int) -> tuple[File, ...]:
        if not self._files_room:
            raise UnexpectedFiles("the peer passed open files, and none were asked for; all are closed")
        files, _ = take_control(control, found, self._room, limits.FILES_PER_MESSAGE_MAX)
        return tuple(files)

    def _read_all(self) -> None:
        """Read what there is, if nobody calls again."""
        self._look = self._loop.call_later(0, self._read_all)  # after everybody else
        for _ in range(_READS_MAX):
            if not self._is_reading or not self.read_now():
                self._look.cancel()
                self._look = None
                return

    @property
    def is_hung_up(self) -> bool:
        """Whether the peer has closed its socket."""
        poll = select.poll()
        poll.register(self._socket.fileno(), 0)  # POLLHUP comes unasked for (poll(2))
        return bool(poll.poll(0))

    def send(self, chunks: list[Chunk]) -> None:
        """Send what the kernel has room for, and queue the rest."""
        if self._is_closed or self._is_deaf:
            return
        if not self._queue and len(chunks) == 1:
            data, descriptors = chunks[0]
            if not descriptors:
                try:
                    sent = self._socket.send(data, _SEND_FLAGS)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self._cannot_write(error)
                    return
                self.sent_bytes += sent
                if sent != len(data):
                    self._queue_up((memoryview(data)[sent:], ()))
                    self._wait_for_room()
                return
        was_empty = not self._queue
        for chunk in chunks:
            self._queue_up(chunk)
        if was_empty:
            self._write_now()

    def _queue_up(self, chunk: Chunk) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(chunk)
        self.pending_bytes += len(chunk[0])

    def _write_now(self) -> None:
        try:
            while self._queue:
                pieces, control = next_message(self._queue, _PIECES_MAX)
                self._took(self._socket.sendmsg(pieces, control, _SEND_FLAGS))
        except BlockingIOError:
            self._wait_for_room()
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._wait_for_files()
            else:
                self._cannot_write(error)
        else:
            self._forget_output()
            self._owner.drained()

    def _took(self, sent: int) -> None:
        self.pending_bytes -= sent
        self.sent_bytes += sent
        self._refused_since = None
        assert self._queue is not None
        remove_sent(self._queue, sent)
        if self._stall is not None and self._queue:
            self._stall.cancel()
            self._stall = self._loop.call_later(limits.OUTPUT_STALL_SECONDS, self._stalled)

    def _wait_for_room(self) -> None:
        self._refused_since = None
        if self._stall is None:
            self._loop.add_writer(self._socket.fileno(), self._write_now)
            self._stall = self._loop.call_later(limits.OUTPUT_STALL_SECONDS, self._stalled)

    def _stalled(self) -> None:
        self._stall = self._loop.call_later(limits.OUTPUT_STALL_SECONDS, self._stalled)
        self._owner.stalled()

    def _wait_for_files(self) -> None:
        """Try again in a while, if the kernel has not refused files for too long; there may be room all the time."""
        self._wait_no_more()
        now = self._loop.time()
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since < limits.OUTPUT_STALL_SECONDS:
            self._retry = self._loop.call_later(limits.FILES_PAUSE_SECONDS, self._write_now)
        else:
            self._cannot_write(ReceiverFull(refused_for(limits.OUTPUT_STALL_SECONDS)))

    def _cannot_write(self, error: Exception) -> None:
        """Drop all output, and tell the owner, but not while it is sending."""
        self._forget_output()
        if not self._is_deaf:
            self._is_deaf = True
            self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception) -> None:
        """Tell the owner, once it has got what the peer said before it left."""
        for _ in range(_LAST_READS_MAX):
            if not self._is_reading or not self._has_more:
                break
            self.read_now()
        if not self.is_closed and not self._has_ended:
            self._owner.lost(error)

    @property
    def _has_more(self) -> bool:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _forget_output(self) -> None:
        self._wait_no_more()
        self._queue = None
        self.pending_bytes = 0

    def _wait_no_more(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
            self._loop.remove_writer(self._socket.fileno())
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    @property
    def is_closed(self) -> bool:
        """Whether the socket was closed."""
        return self._is_closed

    def close(self) -> None:
        """Close the socket."""
        if not self._is_closed:
            self._is_closed = True
            if self._look is not None:
                self._look.cancel()
            self.pause()
            self._forget_output()
            self._socket.close()
            del self._owner  # or the two would keep each other, and half a frame, until the garbage is collected
