"""Listening, for threads: streams and packets, one connection at a time or all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from samehost import limits
from samehost.address import Address, parse
from samehost.blocking.connection import Connection
from samehost.blocking.datagrams import DatagramListener
from samehost.blocking.listening import Listening
from samehost.blocking.server import Server
from samehost.errors import ListenerClosed
from samehost.kernel.acceptor import Acceptor
from samehost.kernel.claim import Request
from samehost.kernel.deadline import Deadline
from samehost.kernel.mailbox import Mailbox

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from samehost.peer import Policy


class Listener(Listening[Connection]):
    """A claimed, listening socket. Iterate over it, or call `accept` or `serve`.

    Attributes:
        address: the address that was claimed, as text.
        socket: the plain socket, to hand to asyncio, uvicorn or anything else.
    """

    def __init__(self, acceptor: Acceptor) -> None:
        super().__init__(acceptor)
        self._acceptor = acceptor

    def accept(self, *, timeout: float | None = None) -> Connection:
        """Wait for a client that the policy admits (accept(2)).

        While the process or the host is out of descriptors or memory, it rests, from 10 ms to 1 s, and goes on by
        itself. Clients that the policy refuses are logged, and disconnected before a byte is read.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            DeadlineExceeded: nobody came in time.
            ListenerClosed: the listener was closed, before or meanwhile.
        """
        return self._take(self._accept_now, Deadline(timeout))

    def _accept_now(self) -> Connection | None:
        accepted = self._acceptor.accept_now()
        return accepted and Connection(*accepted, self.address, self._acceptor.type)

    @property
    def _pause(self) -> float:
        return self._acceptor.pause

    def __iter__(self) -> Iterator[Connection]:
        """Every client that comes, until the listener is closed."""
        while True:
            try:
                connection = self.accept()
            except ListenerClosed:
                return
            yield connection

    def serve(
        self,
        handler: Callable[[Connection], object],
        *,
        drain: float = limits.DRAIN_SECONDS,
        connections_max: int = limits.CONNECTIONS_MAX,
    ) -> None:
        """Serve every client at once, each in a thread of its own, until told to end.

        SIGINT and SIGTERM (in the main thread), `stop` and `close` end it: the path is removed, clients that had
        connected are still accepted, a connection that stays silent for 0.25 s reads as ended, and the handlers get
        `drain` seconds to finish. After that their connections are cut. A second signal ends the process at once, with
        exit code 128 + its number. The listener is closed when this returns.

        Signals reach the main thread only, and so only one of several `serve` in a process. Those in other threads end
        with `stop`.

        Args:
            handler: called with each connection, which is closed when it returns. What it raises is logged.
            drain: seconds.
            connections_max: connections served at a time, lowered to 3/4 of RLIMIT_NOFILE; others wait in the backlog.

        Raises:
            ListenerClosed: the listener was closed before.
        """
        Server(self, self._accept_now, handler, drain, connections_max).run()


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
    """Claim an address, so that exactly one process has it, and at no moment for more users than was asked.

    Args:
        address: a path, `@abstract`, `fd:N` (a listening socket that was handed to this process) or a service name.
        type: "stream", "datagram" or "seqpacket".
        mode: permission bits of the socket file.
        group: hand the socket file to this group, as in `mode=0o660, group="g"`.
        allow: narrow it to the peers that this policy admits. Without one the mode decides; an abstract address, which
            has no mode, admits this user and root.
        backlog: clients that may wait to be accepted; None for as many as net.core.somaxconn allows.

    Returns:
        A Listener; for type "datagram" a DatagramListener.

    Raises:
        AddressError: the address is none.
        AddressInUse: somebody has it; the message says who.
        NotASocket: something else is at the path; it was not touched.
        ClaimError: it cannot be made for another reason. Nothing is left behind.
        UsageError: a mode, type or backlog that cannot be.
    """
    request = Request(parse(address), type, mode, group, backlog)
    if type == "datagram":
        return DatagramListener(Mailbox(request, allow))
    return Listener(Acceptor(request, allow))
