"""Serving a service in an event loop: claiming its address, its lifespan, its sessions, and their end."""

# ruff: noqa: SLF001 - the listener's other half, as `server` is

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from samehost import limits
from samehost.aio.listener import Listener, listen
from samehost.aio.runner import Runner
from samehost.aio.server import Server
from samehost.aio.session import Session
from samehost.aio.wire import SocketWire
from samehost.errors import UsageError
from samehost.kernel.spinning import check_busy_wait
from samehost.service.service import Service

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable

    from samehost.address import Address
    from samehost.peer import Policy

logger = logging.getLogger("samehost")


async def serve(
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
    stop: asyncio.Event | None = None,
) -> None:
    """Serve a service in the running loop until told to end, and then drain.

    The address is claimed first, so that a second server fails before it does anything, then the lifespan is entered,
    and then clients are served; until then they wait in the backlog. SIGINT and SIGTERM (in the main thread) end it:
    the path is removed, clients are told, calls in progress get `drain` seconds, and are cancelled after that. A second
    signal ends the process. Cancelling this ends it as well, with no time to drain.

    Args:
        service: what to serve.
        address: where; None for the service's name.
        mode, group, backlog: of the socket, as `samehost.listen` takes them.
        allow: who may connect; None for the service's own policy.
        drain: seconds.
        connections_max: connections at a time, lowered to 3/4 of RLIMIT_NOFILE; others wait in the backlog.
        connections_per_uid_max: of these, connections of one user; further ones are closed at once.
        threads_max: threads that run `def` methods.
        busy_wait: the most seconds, up to 0.02, that a core is kept busy looking for the next call before the loop
            sleeps. Where calls come more seldom that is not done, but for one hundredth of the time.
        ready: called once clients are served.
        stop: once it is set, the service ends as if by SIGTERM.

    Raises:
        UsageError: the service lacks methods of its interface, or an argument that cannot be.
        Others: as `samehost.listen` for the address; and whatever the lifespan raises.
    """
    if not isinstance(service, Service):
        raise UsageError(f"{service!r} is not a samehost.Service")
    check_busy_wait(busy_wait)
    policy = service.allow if allow is None else allow
    with listen(service.name if address is None else address, "stream", mode, group, policy, backlog) as listener:
        runner = Runner(service, threads_max=threads_max, connections_per_uid_max=connections_per_uid_max)
        try:
            server = ServiceServer(listener, runner, drain, connections_max, busy_wait)
            with server.signals():
                async with service.new_lifespan() as runner.state, _stopping(listener, stop):
                    logger.info("serving %s on %s", service.name, listener.address)
                    if ready is not None:
                        ready()
                    await server.serve()
        finally:
            await runner.close()


@asynccontextmanager
async def _stopping(listener: Listener, stop: asyncio.Event | None) -> AsyncIterator[None]:
    """Stop the listener when the event is set."""
    if stop is None:
        yield
        return
    waiting = asyncio.ensure_future(stop.wait())
    waiting.add_done_callback(lambda _: listener.stop())
    try:
        yield
    finally:
        waiting.cancel()


class ServiceServer(Server[Session]):
    """One run of a service on a listener.

    Args:
        listener: where clients come from; closed at the end.
        runner: the run of the service.
        drain: seconds for calls in progress once told to end.
        connections_max: connections at a time.
        busy_wait: seconds to look for a call before sleeping.
    """

    def __init__(
        self, listener: Listener, runner: Runner, drain: float, connections_max: int, busy_wait: float
    ) -> None:
        super().__init__(listener, self._accept, drain, connections_max)
        self._acceptor = listener._acceptor
        self._runner = runner
        self._new_wire: Callable[..., SocketWire] = partial(SocketWire, runner.loop)
        if busy_wait:
            from samehost.aio.spinning import Spinner, SpinningWire

            spinner = Spinner(runner.loop, busy_wait, runner.threads.are_idle)
            self._new_wire = partial(SpinningWire, spinner, runner.loop)

    def _accept(self) -> Session | None:
        accepted = self._acceptor.accept_now()
        if accepted is None:
            return None
        connected, peer = accepted
        account = self._runner.open_account(peer.uid)
        if account is None:
            logger.warning("%s refused %s: that user has too many connections", self._listener.address, peer)
            connected.close()
            return None
        return Session(self._runner, account, peer, partial(self._new_wire, connected))

    def _begin(self, taken: Session) -> asyncio.Future[None]:
        taken.start()
        return taken.closed

    def _end_soon(self, taken: Session) -> None:
        self._runner.is_draining = True
        self._runner.loop.call_soon(taken.drain)  # in no task, as methods are started in tasks of their own

    async def _drain(self) -> None:
        await super()._drain()
        deadline = self._begin_drain()
        left = deadline.left()
        if left:
            await self._runner.settle(None if left == math.inf else left)  # for notifications

    async def _cut(self) -> None:
        await self._runner.cut()
        for session in list(self._running.values()):
            session.close()
        if self._running:
            await asyncio.wait(list(self._running))
