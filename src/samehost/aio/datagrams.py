"""Listening for datagrams, for asyncio."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from samehost import limits
from samehost.aio.listening import Listening
from samehost.aio.server import HandlerServer
from samehost.errors import ListenerClosed
from samehost.kernel.deadline import Deadline
from samehost.kernel.files import HasFileno, descriptors_of
from samehost.kernel.mailbox import Mailbox, ReceivedDatagram
from samehost.kernel.messages import check_files_max

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from samehost.kernel.channel import Data


class Datagram(ReceivedDatagram):
    """One message that was received, with its sender; `samehost.Datagram` in coroutines.

    Attributes:
        data: its bytes, perhaps none.
        files: open files that came along. Those still there when the datagram is closed are closed with it.
        peer: who sent it, as the kernel says; without supplementary groups, of which it does not tell.
        sender: the address for a reply; None if the sender has none.
    """

    async def reply(self, data: Data, files: Sequence[HasFileno | int] = (), *, timeout: float | None = None) -> None:
        """Send a datagram back to the sender; see `samehost.Datagram.reply`."""
        descriptors = descriptors_of(files)
        deadline = Deadline(limits.RECEIVER_FULL_SECONDS if timeout is None else timeout)
        for pause in self._pauses(deadline):
            try:
                return self._reply_now(data, descriptors)
            except BlockingIOError:
                await asyncio.sleep(pause)
        raise self._no_room(deadline)


class DatagramListener(Listening[Datagram]):
    """A claimed socket for datagrams; `samehost.DatagramListener` in coroutines.

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

    async def receive(
        self, size: int = limits.MESSAGE_BYTES_MAX, *, files_max: int = 0, timeout: float | None = None
    ) -> Datagram:
        """Wait for a datagram from a sender that the policy admits; see `samehost.DatagramListener.receive`."""
        check_files_max(files_max)
        return await self._take(partial(self._receive_now, size, files_max), Deadline(timeout))

    def _receive_now(self, size: int, files_max: int) -> Datagram | None:
        received = self._mailbox.receive_now(size, files_max)
        return received and Datagram(self._mailbox, *received)

    async def __aiter__(self) -> AsyncIterator[Datagram]:
        """Every datagram that comes, until the listener is closed."""
        while True:
            try:
                datagram = await self.receive()
            except ListenerClosed:
                return
            yield datagram

    async def serve(
        self,
        handler: Callable[[Datagram], Awaitable[object]],
        *,
        size: int = limits.MESSAGE_BYTES_MAX,
        files_max: int = 0,
        drain: float = limits.DRAIN_SECONDS,
        handlers_max: int = limits.CONNECTIONS_MAX,
    ) -> None:
        """Handle every datagram in a task of its own, until told to end; otherwise as `Listener.serve`."""
        check_files_max(files_max)
        await HandlerServer(self, partial(self._receive_now, size, files_max), handler, drain, handlers_max).run()
