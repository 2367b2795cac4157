"""Listening for datagrams, for threads."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from samehost import limits
from samehost.blocking.listening import Listening
from samehost.blocking.server import Server
from samehost.errors import ListenerClosed
from samehost.kernel.deadline import Deadline
from samehost.kernel.files import HasFileno, descriptors_of
from samehost.kernel.mailbox import Mailbox, ReceivedDatagram
from samehost.kernel.messages import check_files_max

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from samehost.kernel.channel import Data


class Datagram(ReceivedDatagram):
    """One message that was received, with its sender.

    Attributes:
        data: its bytes, perhaps none.
        files: open files that came along. Those still there when the datagram is closed are closed with it.
        peer: who sent it, as the kernel says; without supplementary groups, of which it does not tell.
        sender: the address for a reply; None if the sender has none.
    """

    def reply(self, data: Data, files: Sequence[HasFileno | int] = (), *, timeout: float | None = None) -> None:
        """Send a datagram back to the sender.

        Args:
            data: one whole message.
            files: at most 16 open files, which stay the caller's.
            timeout: seconds to keep trying while the sender's queue is full; None for 1 s.

        Raises:
            Unavailable: the sender has no address.
            ConnectionClosed: the sender is gone.
            ReceiverFull: the sender does not read.
            MessageTooLarge: a longer message, or more files, than can travel.
        """
        descriptors = descriptors_of(files)
        deadline = Deadline(limits.RECEIVER_FULL_SECONDS if timeout is None else timeout)
        for pause in self._pauses(deadline):
            try:
                return self._reply_now(data, descriptors)
            except BlockingIOError:
                time.sleep(pause)
        raise self._no_room(deadline)


class DatagramListener(Listening[Datagram]):
    """A claimed socket for datagrams. Iterate over it, or call `receive` or `serve`.

    Attributes:
        address: the address that was claimed, as text.
        socket: the plain socket, which has SO_PASSCRED set.
    """

    _is_needed_for_replies = True

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._mailbox = mailbox

    @property
    def dropped(self) -> int:
        """Datagrams thrown away so far: refused by the policy, longer than allowed, or with unexpected files."""
        return self._mailbox.dropped

    def receive(
        self, size: int = limits.MESSAGE_BYTES_MAX, *, files_max: int = 0, timeout: float | None = None
    ) -> Datagram:
        """Wait for a datagram from a sender that the policy admits.

        Those that break a rule are logged, counted in `dropped` and thrown away.

        Args:
            size: bytes of the longest datagram that is allowed.
            files_max: open files that may come with one, from 0 to 16.
            timeout: seconds; None for as long as it takes.

        Raises:
            DeadlineExceeded: none came in time.
            ListenerClosed: the listener was closed, before or meanwhile.
        """
        check_files_max(files_max)
        return self._take(partial(self._receive_now, size, files_max), Deadline(timeout))

    def _receive_now(self, size: int, files_max: int) -> Datagram | None:
        received = self._mailbox.receive_now(size, files_max)
        return received and Datagram(self._mailbox, *received)

    def __iter__(self) -> Iterator[Datagram]:
        """Every datagram that comes, until the listener is closed."""
        while True:
            try:
                datagram = self.receive()
            except ListenerClosed:
                return
            yield datagram

    def serve(
        self,
        handler: Callable[[Datagram], object],
        *,
        size: int = limits.MESSAGE_BYTES_MAX,
        files_max: int = 0,
        drain: float = limits.DRAIN_SECONDS,
        handlers_max: int = limits.CONNECTIONS_MAX,
    ) -> None:
        """Handle every datagram in a thread of its own, until told to end; otherwise as `Listener.serve`."""
        check_files_max(files_max)
        Server(self, partial(self._receive_now, size, files_max), handler, drain, handlers_max).run()
