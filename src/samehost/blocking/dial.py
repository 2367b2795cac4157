"""Connecting to a server, for threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from samehost import limits
from samehost.address import Address, parse
from samehost.blocking.connection import Connection
from samehost.kernel.dialling import Dialling

if TYPE_CHECKING:
    import os

    from samehost.peer import Policy


def dial(
    address: str | os.PathLike[str] | Address,
    type: str = "stream",
    *,
    wait: float = 0.0,
    timeout: float | None = limits.DIAL_SECONDS,
    trust: Policy | None = None,
) -> Connection:
    """Connect to a server, and make sure that it is the right one before anything is sent.

    Args:
        address: a path, `@abstract`, `fd:N` (a connected socket that was handed to this process) or a service name.
        type: "stream", "datagram" or "seqpacket". A datagram socket gets an abstract address of its own, made up by
            the kernel, so that replies can come back and no file is left.
        wait: seconds to wait for a server that is not there yet.
        timeout: seconds to keep trying while the server's backlog is full; None for ever.
        trust: who may be serving. By default this user and root, or whoever serves on a path where nobody but root,
            this user and that user could have put a socket.

    Raises:
        AddressError: the address is none, or leads to something that is not such a socket.
        Unavailable: nobody listens there.
        NotPermitted: the modes on the path keep this user out.
        UntrustedServer: somebody else serves there.
        DeadlineExceeded: the backlog stayed full.
    """
    parsed = parse(address)
    dialling = Dialling(parsed, type, wait, timeout, trust)
    while (connected := dialling.attempt()) is None:
        time.sleep(dialling.pause)
    return Connection(*connected, str(parsed), type)
