"""Listening, for asyncio: streams and packets, one connection at a time or all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from samehost import limits
from samehost.address import Address, parse
from samehost.aio.connection import Connection
from samehost.aio.datagrams import DatagramListener
from samehost.aio.listening import Listening
from samehost.aio.server import HandlerServer
from samehost.errors import ListenerClosed
from samehost.kernel.acceptor import Acceptor
from samehost.kernel.claim import Request
from samehost.kernel.deadline import Deadline
from samehost.kernel.mailbox import Mailbox

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable

    from samehost.peer import Policy


class Listener(Listening[Connection]):
    """A claimed, listening socket; `samehost.Listener` in coroutines.

    Attributes:
        address: the address that was claimed, as text.
        socket: the plain socket, to hand to anything else.
    """

    def __init__(self, acceptor: Acceptor) -> None:
        super().__init__(acceptor)
        self._acceptor = acceptor

    async def accept(self, *, timeout: float | None = None) -> Connection:
        """Wait for a client that the policy admits; see `samehost.Listener.accept`."""
        return await self._take(self._accept_now, Deadline(timeout))

    def _accept_now(self) -> Connection | None:
        accepted = self._acceptor.accept_now()
        return accepted and Connection(*accepted, self.address, self._acceptor.type)

    @property
    def _pause(self) -> float:
        return self._acceptor.pause

    async def __aiter__(self) -> AsyncIterator[Connection]:
        """Every client that comes, until the listener is closed."""
        while True:
            try:
                connection = await self.accept()
            except ListenerClosed:
                return
            yield connection

    async def serve(
        self,
        handler: Callable[[Connection], Awaitable[object]],
        *,
        drain: float = limits.DRAIN_SECONDS,
        connections_max: int = limits.CONNECTIONS_MAX,
    ) -> None:
        """Serve every client at once, each in a task of its own, until told to end; see `samehost.Listener.serve`.

        After the drain time the handlers are cancelled. Cancelling this call cancels them at once.

        A signal ends every `serve` of the main thread's loop, and does what `loop.add_signal_handler` was told, if
        anything. A second one ends the process by its default action, which a shell shows as 128 + its number.
        """
        await HandlerServer(self, self._accept_now, handler, drain, connections_max).run()


@overload
def listen(
    address: str | os.PathLike[str] | Address,
    type: Literal["stream", "seqpacket"] = "stream",
    mode: int = 0o600,
    group: str | int | None = None,
    allow: Policy | None = None,
    backlog: int | None = None,
) -> Listener: ...


@overload
def listen(
    address: str | os.PathLike[str] | Address,
    type: Literal["datagram"],
    mode: int = 0o600,
    group: str | int | None = None,
    allow: Policy | None = None,
    backlog: int | None = None,
) -> DatagramListener: ...


def listen(
    address: str | os.PathLike[str] | Address,
    type: str = "stream",
    mode: int = 0o600,
    group: str | int | None = None,
    allow: Policy | None = None,
    backlog: int | None = None,
) -> Listener | DatagramListener:
    """Claim an address, which never waits; arguments and errors are `samehost.listen`'s."""
    request = Request(parse(address), type, mode, group, backlog)
    if type == "datagram":
        return DatagramListener(Mailbox(request, allow))
    return Listener(Acceptor(request, allow))
