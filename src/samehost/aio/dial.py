"""Connecting to a server, for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from samehost import limits
from samehost.address import Address, parse
from samehost.aio.connection import Connection
from samehost.kernel.dialling import Dialling

if TYPE_CHECKING:
    import os

    from samehost.peer import Policy


async def dial(
    address: str | os.PathLike[str] | Address,
    type: str = "stream",
    *,
    wait: float = 0.0,
    timeout: float | None = limits.DIAL_SECONDS,
    trust: Policy | None = None,
) -> Connection:
    """Connect to a server, and make sure that it is the right one; arguments and errors are `samehost.dial`'s."""
    parsed = parse(address)
    dialling = Dialling(parsed, type, wait, timeout, trust)
    while (connected := dialling.attempt()) is None:  # noqa: ASYNC110 - nothing announces room in a backlog
        await asyncio.sleep(dialling.pause)
    return Connection(*connected, str(parsed), type)
