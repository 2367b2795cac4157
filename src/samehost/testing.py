"""For the tests of those who write services: a service that runs beside a test, and one without any socket.

`serving` is the real thing, on a socket in a directory of its own, served by a thread. `connected` joins a client and a
service in the running loop by memory alone, on behalf of any peer that a test thinks up.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections import deque
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, overload

from samehost import limits
from samehost.address import parse
from samehost.aio.client import AnyClient, Client
from samehost.aio.link import Link
from samehost.aio.runner import Runner
from samehost.aio.service import serve
from samehost.aio.session import Session
from samehost.aio.wire import Wire
from samehost.errors import NotPermitted, UnexpectedFiles
from samehost.kernel.files import File
from samehost.kernel.messages import close_all
from samehost.peer import Peer
from samehost.service.remote import kinds_wanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from samehost.aio.wire import Owner
    from samehost.protocol import Chunk
    from samehost.service.service import Service

T = TypeVar("T", bound=Client)


@contextmanager
def serving(service: Service, **options: Any) -> Iterator[str]:
    """Serve a service in a thread, on a socket in a new directory, until the block ends; then drain.

    Args:
        service: what to serve.
        options: as `samehost.aio.serve` takes them.

    Yields:
        The address.

    Raises:
        Whatever `samehost.aio.serve` raises, at the beginning of the block or at its end.
    """
    directory = tempfile.mkdtemp(prefix="samehost-")
    server = _Serving(service, os.path.join(directory, f"{service.name}.sock"), options)
    try:
        with server:
            yield server.address
    finally:
        shutil.rmtree(directory)


class _Serving:
    """A service in a thread."""

    def __init__(self, service: Service, address: str, options: dict[str, Any]) -> None:
        self.address = address
        self._service = service
        self._options = options
        self._begun = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="samehost-testing", daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._begun.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await serve(self._service, self.address, ready=self._begun.set, stop=self._stop, **self._options)

    def __enter__(self) -> None:
        self._thread.start()
        self._begun.wait()
        if self._failed:
            self._end()

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        with suppress(RuntimeError):  # the loop was closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._end()

    def _end(self) -> None:
        self._thread.join()
        if self._failed:
            raise self._failed


@overload
def connected(service: Service, *, peer: Peer | None = None) -> AbstractAsyncContextManager[AnyClient]: ...


@overload
def connected(service: Service, interface: type[T], *, peer: Peer | None = None) -> AbstractAsyncContextManager[T]: ...


@asynccontextmanager
async def connected(
    service: Service, interface: type[Client] = AnyClient, *, peer: Peer | None = None
) -> AsyncIterator[Any]:
    """Run a service in the running loop, and talk to it, with no socket: all else is as it is over one.

    Args:
        service: what to run; its lifespan is entered, and left at the end of the block.
        interface: a class made from `samehost.aio.Client`, to be given a client of that class.
        peer: who calls, as in `samehost.Peer(uid=1000, gid=1000, groups=(), pid=0)`; by default, this process.

    Raises:
        NotPermitted: the service's policy does not let this peer connect.
    """
    caller = peer or Peer(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
    if service.allow is not None and not service.allow.admits(caller):
        raise NotPermitted(f"{service.name} refuses {caller}: it admits {service.allow}")
    runner = Runner(service)
    client = interface(parse(f"@{service.name}"), timeout=limits.CALL_SECONDS)
    try:
        async with service.new_lifespan() as runner.state:
            client._link = _link_to(runner, caller, interface)  # noqa: SLF001 - in the place of one that was dialled
            try:
                yield client
            finally:
                client.close()
                await _all_closed(runner)
    finally:
        await runner.close()


def _link_to(runner: Runner, caller: Peer, interface: type[Client]) -> Link:
    """A client's connection to the service, with a session at its other end."""
    account = runner.open_account(caller.uid)
    assert account is not None  # as it is the first
    near, far = _Pipe(runner.loop), _Pipe(runner.loop)
    near.peer, far.peer = far, near
    session = Session(runner, account, caller, far.owned_by)
    session.start()
    server = Peer(os.geteuid(), os.getegid(), (), os.getpid())
    return Link(runner.service.name, server, near.owned_by, kinds_wanted(interface.remote_methods))


async def _all_closed(runner: Runner) -> None:
    """Wait until the service has noticed that its client is gone, and has ended what was at work for it."""
    for session in list(runner.sessions):
        await session.closed
    await runner.cut()


class _Pipe(Wire):
    """One of two ends that are joined by memory; what one sends is handed to the other by the loop."""

    peer: _Pipe

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.pending_bytes = self.sent_bytes = 0
        self._loop = loop
        self._owner: Owner | None = None
        self._takes_files = False
        self._came: deque[tuple[bytes, tuple[File, ...]]] = deque()
        self._is_reading = self._is_closed = False

    def owned_by(self, owner: Owner, takes_files: bool = False) -> Wire:
        """The wire of this owner, who takes open files or not."""
        self._owner = owner
        self._takes_files = takes_files
        return self

    def read(self) -> None:
        """Hand on what has come, and what will."""
        self._is_reading = True
        self._loop.call_soon(self._read_all)

    def pause(self) -> None:
        """Keep what comes."""
        self._is_reading = False

    def _read_all(self) -> None:
        while self._is_reading and not self._is_closed and (self._came or self.peer.is_closed):
            self.read_now()
            if not self._came and self.peer.is_closed:
                break

    def read_now(self) -> None:
        """Hand on one piece of what has come, or the end."""
        assert self._owner is not None
        if self._came:
            data, files = self._came.popleft()
            if not files:
                self._owner.received(data)
            elif self._takes_files:
                self._owner.received(data, files)
            else:
                close_all(files)
                self._owner.lost(UnexpectedFiles("the peer passed open files, and none were asked for; all are closed"))
        elif self.peer.is_closed and not self._is_closed:
            self._is_reading = False
            self._owner.ended()

    @property
    def is_hung_up(self) -> bool:
        """Whether the other end was closed."""
        return self.peer.is_closed

    def send(self, chunks: list[Chunk]) -> None:
        """Give everything to the other end, which has room for all of it."""
        if self._is_closed or self.peer.is_closed:
            return
        for data, descriptors in chunks:
            self.sent_bytes += len(data)
            files = tuple(File(os.dup(descriptor.fileno())) for descriptor in descriptors)
            self.peer._came.append((bytes(data), files))  # noqa: SLF001 - of the same class
        self._loop.call_soon(self.peer._read_all)  # noqa: SLF001

    @property
    def is_closed(self) -> bool:
        """Whether this end was closed."""
        return self._is_closed

    def close(self) -> None:
        """Close this end, which the other one sees as the end."""
        if not self._is_closed:
            self._is_closed = True
            while self._came:
                close_all(self._came.popleft()[1])
            self._loop.call_soon(self.peer._read_all)  # noqa: SLF001
