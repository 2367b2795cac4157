"""The pump of both ends: what it hands on of a socket, in which order, and when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from loops import Run, eventually
from support import DEADLINE, descriptors, kernel_passes_files

from samehost import limits
from samehost.aio.wire import SocketWire
from samehost.errors import UnexpectedFiles

SO_PASSRIGHTS = 83


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = b""
        self.error: Exception | None = None
        self.wire: SocketWire | None = None
        self.when_received: Callable[[], object] = lambda: None

    def received(self, data: bytes) -> None:
        assert data
        self.data += data
        self.told.append("received")
        self.when_received()

    def ended(self) -> None:
        self.told.append("ended")

    def lost(self, error: Exception) -> None:
        self.told.append("lost")
        self.error = error
        assert self.wire is not None
        self.wire.close()

    def drained(self) -> None:
        self.told.append("drained")

    def stalled(self) -> None:
        self.told.append("stalled")


@contextlib.contextmanager
def joined() -> Iterator[tuple[SocketWire, Owner, socket.socket]]:
    """A wire in the running loop, its owner, and the peer's socket."""
    near, far = socket.socketpair()
    far.setblocking(False)
    owner = Owner()
    owner.wire = SocketWire(asyncio.get_running_loop(), near, owner)
    with far:
        try:
            yield owner.wire, owner, far
        finally:
            owner.wire.close()


async def until_told(owner: Owner, *told: str) -> None:
    """Wait until the owner has been told just this."""
    async with asyncio.timeout(DEADLINE):
        while owner.told != list(told):
            assert len(owner.told) <= len(told), owner.told
            await asyncio.sleep(0.001)


async def settled() -> None:
    """Let the loop see whatever has happened by now."""
    for _ in range(5):
        await asyncio.sleep(0.001)


def test_what_comes_is_handed_on_and_then_the_end(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            far.send(b"before anybody reads")
            await settled()
            assert owner.told == []
            wire.read()
            wire.read()
            await until_told(owner, "received")
            far.send(b"more")
            far.shutdown(socket.SHUT_WR)
            await until_told(owner, "received", "received", "ended")
            assert owner.data == b"before anybody readsmore"
            assert not wire.is_hung_up  # it still reads
            wire.send([(b"answer", ())])
            assert far.recv(100) == b"answer"
            far.close()
            assert wire.is_hung_up
            wire.read()
            await settled()
            assert owner.told == ["received", "received", "ended"]

    run(main())


@pytest.mark.parametrize("size", [10, limits.RECEIVE_BYTES, 2 * limits.RECEIVE_BYTES + 1])
def test_a_peer_that_leaves_without_reading_is_noticed_behind_what_it_has_said(run: Run, size: int) -> None:
    """With output unread the socket has an error (EPOLLERR), of which some loops tell just once."""

    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            await settled()
            wire.send([(b"unread", ())])
            assert far.send(bytes(size)) == size
            far.close()
            await eventually(lambda: wire.is_closed)
            assert len(owner.data) == size
            assert isinstance(owner.error, ConnectionResetError)
            assert owner.told.count("lost") == 1

    run(main())


def test_pausing_leaves_what_comes_where_it_is(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            owner.when_received = wire.pause
            far.send(b"one")
            await until_told(owner, "received")
            far.send(b"two")
            await settled()
            assert owner.data == b"one"
            wire.read_now()
            assert owner.data == b"onetwo"
            wire.read_now()  # nothing is there
            far.send(b"three")
            wire.read()
            await until_told(owner, "received", "received", "received")

    run(main())


def test_output_without_room_waits_for_it_and_keeps_its_order(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.send([(b"small", ())])
            assert (wire.pending_bytes, wire.sent_bytes, owner.told) == (0, 5, [])
            sent = b"small"
            for number in range(600):  # two pieces each: more than one sendmsg takes
                chunks = [(bytes([number % 251]) * 3000, ()), (memoryview(bytes([number % 251, 255]) * 50), ())]
                sent += b"".join(bytes(data) for data, _ in chunks)
                wire.send(chunks)
            assert wire.pending_bytes + wire.sent_bytes == len(sent)
            assert wire.pending_bytes > 0
            received = b""
            async with asyncio.timeout(DEADLINE):
                while len(received) < len(sent):
                    with contextlib.suppress(BlockingIOError):
                        received += far.recv(50_000)
                    await asyncio.sleep(0)
            assert received == sent
            assert (wire.pending_bytes, wire.sent_bytes) == (0, len(sent))
            assert owner.told[-1] == "drained"

    run(main())


def test_a_peer_that_reads_nothing_is_told_of_and_one_that_reads_a_little_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.send([(bytes(1 << 21), ())])
            for _ in range(6):
                await asyncio.sleep(0.05)
                assert "stalled" not in owner.told
                with contextlib.suppress(BlockingIOError):
                    while far.recv(1 << 16):
                        pass
            await until_told(owner, "stalled")

    monkeypatch.setattr(limits, "OUTPUT_STALL_SECONDS", 0.2)
    run(main())


def test_a_peer_that_is_gone_when_something_is_sent(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            far.send(b"last words")
            far.close()
            wire.send([(b"never", ())])
            wire.send([(b"arrives", ()), (b"either", ())])
            assert (owner.told, wire.sent_bytes, wire.pending_bytes) == ([], 0, 0)  # not while it sends
            await settled()
            assert owner.data == b"last words"
            assert owner.told in (["received", "ended"], ["received", "lost"])

    run(main())


def test_a_peer_that_is_gone_while_output_waits(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.send([(bytes(1 << 21), ())])
            sent = wire.sent_bytes
            assert wire.pending_bytes
            far.close()
            await until_told(owner, "lost")
            assert (wire.sent_bytes, wire.pending_bytes, wire.is_closed) == (sent, 0, True)

    run(main())


def test_files_that_nobody_asked_for_are_closed_and_end_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_passes_files(monkeypatch)

    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            before = descriptors()
            socket.send_fds(far, [b"x"], [0])
            await until_told(owner, "lost")
            assert isinstance(owner.error, UnexpectedFiles)
            assert owner.data == b""
            assert len(descriptors()) < len(before)

    run(main())


def test_a_kernel_that_can_refuses_files_before_they_are_sent(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            try:
                far.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
            except OSError:
                pytest.skip("SKIPPED LOUDLY: this kernel has no SO_PASSRIGHTS (Linux 6.16)")
            wire.read()
            with pytest.raises(PermissionError):
                socket.send_fds(far, [b"x"], [0])
            far.send(b"y")
            await until_told(owner, "received")
            assert owner.data == b"y"

    run(main())


def test_a_closed_wire_tells_nothing_more(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            wire.read()
            wire.send([(bytes(1 << 21), ())])
            far.send(b"x")
            wire.close()
            wire.close()
            wire.read()
            wire.send([(b"x", ())])
            await settled()
            assert (owner.told, wire.pending_bytes, wire.is_closed) == ([], 0, True)

    run(main())


def test_an_owner_may_close_it_in_the_middle_of_a_read(run: Run) -> None:
    async def main() -> None:
        with joined() as (wire, owner, far):
            owner.when_received = wire.close
            far.send(bytes(3 * limits.RECEIVE_BYTES))
            wire.read()
            await settled()
            assert owner.told == ["received"]

    run(main())
