"""One run of a service: its methods made ready for every format, its threads, and what it knows of its callers.

All connections of the run share this. It has samehost's own methods as well, which tell what it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from dataclasses import dataclass
from functools import reduce
from operator import or_
from time import monotonic
from typing import TYPE_CHECKING, Any

import samehost.protocol.lines  # noqa: F401 - now, as there may be no descriptor left when a client needs it
from samehost import limits
from samehost.aio.eager import Starter
from samehost.aio.threads import Threads
from samehost.aio.topics import TopicOutlet, method_of
from samehost.aio.watchdog import Watchdog
from samehost.codec import CODECS
from samehost.errors import UsageError
from samehost.extensions import BLOBS, features, kinds_in
from samehost.protocol import BOTH_STREAMS, ITEMS_WANTED
from samehost.service.description import (
    DESCRIBE,
    HEALTH,
    STATS,
    Description,
    Figures,
    Health,
    MethodFigures,
    describe,
)
from samehost.service.method import Method
from samehost.service.signature import NoStream
from samehost.service.statistics import MethodStatistics

if TYPE_CHECKING:
    from samehost.aio.session import Session
    from samehost.aio.work import Work
    from samehost.peer import Peer
    from samehost.service.arguments import Invoke, Read
    from samehost.service.service import Service
    from samehost.service.topic import Topic

logger = logging.getLogger("samehost")


class Account:
    """What one user has in use.

    Attributes:
        connections: open now.
        used_bytes: held by calls in progress and by output that the user's connections do not read.
        kept_bytes: held by frames that have not come whole yet. Counted apart, as too many of them end a connection,
            and too much of the other does not.
        files: that have come for calls in progress, and are open.
        blob_bytes: of the sealed memory that came as arguments of calls in progress, or was copied from it.
    """

    __slots__ = ("blob_bytes", "connections", "files", "kept_bytes", "uid", "used_bytes")

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.connections = 0
        self.used_bytes = 0
        self.kept_bytes = 0
        self.files = 0
        self.blob_bytes = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """A method made ready for one codec, so that a call looks things up once.

    Attributes:
        is_async, is_inline: as the method's, but not for one with a stream.
        is_simple_for: by the flags of a call, whether there is nothing to look at but its arguments.
        outlet: the topic that this subscribes to; None if it is a method.
        kinds_in: what its arguments and the items for it can hold beside their bytes, as `extensions.kinds_in` says.
        kinds_out: the same of its result and its items.
        gives_blobs: whether its result can be large bytes.
    """

    method: Method
    read: Read
    invoke: Invoke
    is_async: bool
    is_inline: bool
    is_simple_for: tuple[bool, ...]
    statistics: MethodStatistics
    outlet: TopicOutlet | None
    kinds_in: int
    kinds_out: int
    gives_blobs: bool


class Runner:
    """One run of a service in the running loop.

    Args:
        service: what is served.
        threads_max: threads that run its `def` methods.
        connections_per_uid_max: connections that one user may have.

    Attributes:
        service: what is served.
        loop: where.
        starter: starts its `async def` methods.
        threads: run its `def` methods.
        state: what the lifespan has yielded.
        tables: the methods by name, by the name of the codec.
        sessions: the connections that are open.
        works: the calls that are in progress, those of connections that are gone among them.
        uncancellable: how many of them went on although they were cancelled.
    """

    def __init__(
        self,
        service: Service,
        *,
        threads_max: int = limits.THREADS_MAX,
        connections_per_uid_max: int = limits.CONNECTIONS_PER_UID_MAX,
    ) -> None:
        if connections_per_uid_max < 1:
            raise UsageError(f"connections_per_uid_max={connections_per_uid_max}: at least one is needed")
        service.check_complete()
        self.service = service
        self.loop = asyncio.get_running_loop()
        self.threads = Threads(threads_max)
        self.starter = Starter(self.loop)
        self._thread = threading.get_ident()
        self.state: Any = None
        self.sessions: set[Session] = set()
        self.works: set[Work] = set()
        self.is_draining = False
        self.uncancellable = 0
        self._settled: asyncio.Event | None = None
        self._refused = self._late = 0  # on connections that are gone
        self._connections_per_uid_max = connections_per_uid_max
        self._connections_total = 0
        self._accounts: dict[int, Account] = {}
        self._since = monotonic()
        self._description = describe(service)
        self._statistics: dict[str, MethodStatistics] = {}
        self._outlets = {topic.name: TopicOutlet(topic, self.loop) for topic in service.topics.values()}
        topics = [method_of(topic) for topic in service.topics.values()]
        methods = [*service.methods.values(), *self._own_methods(), *topics]
        self._statistics = {method.name: MethodStatistics() for method in methods}
        self._kinds_in = reduce(or_, (_kinds_in(method) for method in methods))
        self.tables = {name: {method.name: self._ready(method, name) for method in methods} for name in CODECS}
        self._watchdog = Watchdog(service.name, self.loop)
        for outlet in self._outlets.values():
            outlet.topic.attach(outlet)

    def _ready(self, method: Method, codec: str) -> Ready:
        kinds_out = _kinds_out(self.service.topics.get(method.name, method))
        return Ready(
            method,
            method.read[codec],
            method.invoke,
            method.is_async and not method.shape,
            method.is_inline and not method.shape,
            tuple(
                method.allow is None and not method.shape and flags & ~ITEMS_WANTED == 0
                for flags in range(BOTH_STREAMS + 1)
            ),
            self._statistics[method.name],
            self._outlets.get(method.name),
            _kinds_in(method),
            kinds_out,
            kinds_out & BLOBS != 0,
        )

    def features_for(self, peer: Peer) -> int:
        """What a connection of this peer takes beside bytes."""
        return features(self._kinds_in, peer.uid)

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.get_ident() == self._thread

    def open_account(self, uid: int) -> Account | None:
        """The account of a user who has connected once more; None if that is once too often."""
        account = self._accounts.get(uid)
        if account is None:
            account = self._accounts[uid] = Account(uid)
        if account.connections >= self._connections_per_uid_max:
            return None
        account.connections += 1
        self._connections_total += 1
        return account

    def forget_session(self, session: Session) -> None:
        """Take note that a connection has ended."""
        self.sessions.discard(session)
        self._refused += session.refused
        self._late += session.late
        session.account.connections -= 1
        self.forget_account(session.account)

    def forget_account(self, account: Account) -> None:
        """Drop an account that nothing is on any more."""
        if not account.connections and not account.used_bytes:
            self._accounts.pop(account.uid, None)

    def _own_methods(self) -> list[Method]:
        return [
            Method(self._describe, DESCRIBE, inline=True, idempotent=True),
            Method(self._health, HEALTH, inline=True, idempotent=True),
            Method(self._stats, STATS, inline=True, idempotent=True),
        ]

    def _describe(self) -> Description:
        """Tell the methods of this service, their types, documentation and policies."""
        return self._description

    def _health(self) -> Health:
        """Tell whether this service serves, and since when."""
        return Health(
            self.service.name,
            "draining" if self.is_draining else "serving",
            os.getpid(),
            monotonic() - self._since,
            len(self.sessions),
            len(self.works) + 1,
        )

    def _stats(self) -> Figures:
        """Tell how often each method was called, how long it took, and who is connected."""
        return Figures(
            {name: _figures(found) for name, found in self._statistics.items() if found.calls},
            {account.uid: account.connections for account in self._accounts.values()},
            self._connections_total,
            self._refused + sum(session.refused for session in self.sessions),
            self._late + sum(session.late for session in self.sessions),
            self.uncancellable,
            {name: outlet.figures() for name, outlet in self._outlets.items()},
        )

    def forget_work(self, work: Work) -> None:
        """Take note that a call is not in progress any more."""
        self.works.discard(work)
        if self._settled is not None and not self.works:
            self._settled.set()

    async def settle(self, seconds: float | None) -> None:
        """Wait until no call is in progress, those of connections that are gone included, but no longer than this."""
        if self.works:
            self._settled = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), seconds)

    async def cut(self) -> None:
        """Cancel whatever is still in progress, wait for it, for a moment, and tell the callers."""
        if not self.works:
            return
        logger.warning("%s: %d calls still in progress are cut off", self.service.name, len(self.works))
        for work in list(self.works):
            work.cut()
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=limits.DRAIN_CUT_SECONDS)
        for work in list(self.works):
            logger.error("%s: %s does not end", self.service.name, work)
        stuck = self._tasks()  # which `asyncio.run` would wait for, however long that takes
        for task in stuck:
            self.starter.give_up(task)
        if stuck:
            await asyncio.wait(stuck, timeout=limits.DRAIN_CUT_SECONDS)
        for session in list(self.sessions):
            session.flush()

    def _tasks(self) -> list[asyncio.Task[Any]]:
        return [work.task for work in self.works if work.task is not None]

    async def close(self) -> None:
        """End the threads and the spare task."""
        for outlet in self._outlets.values():
            outlet.topic.detach(outlet)
        self._watchdog.close()
        self.threads.close()
        await self.starter.close()


def _kinds_in(method: Method) -> int:
    contract = method.signature
    streams = [] if contract.items_in is NoStream else [contract.items_in]
    return reduce(or_, map(kinds_in, [*(parameter.kind for parameter in contract.parameters), *streams]), 0)


def _kinds_out(method: Method | Topic) -> int:
    contract = method.signature
    return kinds_in(contract.result) | (0 if contract.items_out is NoStream else kinds_in(contract.items_out))


def _figures(found: MethodStatistics) -> MethodFigures:
    quantiles = (found.latencies.quantile(share) for share in (0.5, 0.9, 0.99, 0.999))
    return MethodFigures(found.calls, found.errors, found.in_flight, *quantiles)
