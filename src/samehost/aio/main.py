"""Serving a service with no loop of the user's own: one is made for it, uvloop's where that is installed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from samehost import limits
from samehost.aio import service as services

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from samehost.address import Address
    from samehost.peer import Policy
    from samehost.service.service import Service


def serve(
    service: Service,
    address: str | os.PathLike[str] | Address | None = None,
    *,
    mode: int = 0o600,
    group: str | int | None = None,
    allow: Policy | None = None,
    backlog: int | None = None,
    drain: float = limits.DRAIN_SECONDS,
    connections_max: int = limits.CONNECTIONS_MAX,
    connections_per_uid_max: int = limits.CONNECTIONS_PER_UID_MAX,
    threads_max: int = limits.THREADS_MAX,
    busy_wait: float = 0.0,
    ready: Callable[[], object] | None = None,
) -> None:
    """Serve a service until told to end, and then drain; arguments and errors are those of `samehost.aio.serve`."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(
            services.serve(
                service,
                address,
                mode=mode,
                group=group,
                allow=allow,
                backlog=backlog,
                drain=drain,
                connections_max=connections_max,
                connections_per_uid_max=connections_per_uid_max,
                threads_max=threads_max,
                busy_wait=busy_wait,
                ready=ready,
            )
        )


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop, of uvloop if that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
