"""The kit for users' own tests: a service beside a test, and one without any socket."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from loops import LOOPS, eventually
from support import descriptors

import samehost
from samehost import aio
from samehost.errors import ConnectionClosed, InvalidArguments, NotPermitted, OutcomeUnknown, UnexpectedFiles
from samehost.kernel.files import Descriptor, File
from samehost.testing import _Pipe, connected, serving


def new_service(events: list[str] | None = None, **options: object) -> samehost.Service:
    noted = [] if events is None else events
    service = samehost.Service("kit", **options)  # type: ignore[arg-type]

    @service.lifespan
    async def lifespan() -> AsyncIterator[str]:
        noted.append("entered")
        try:
            yield "state"
        finally:
            noted.append("left")

    @service.method
    async def who(peer: samehost.Peer, call: samehost.Call) -> list[Any]:
        return [peer.uid, peer.gid, list(peer.groups), peer.pid, call.state]

    @service.method(allow=samehost.allow(uid=4711))
    def rare(number: int) -> int:
        return number + 1

    @service.method
    async def hold() -> None:
        noted.append("held")
        try:
            await asyncio.Event().wait()
        finally:
            noted.append("let go")

    return service


class Kit(aio.Client):
    async def rare(self, number: int) -> int:
        raise NotImplementedError


def test_serving_serves_until_the_block_ends() -> None:
    events: list[str] = []
    with serving(new_service(events)) as address:
        assert events == ["entered"]
        assert address.endswith("/kit.sock")
        with samehost.connect(address) as client:
            assert client.who()[0] == os.geteuid()
    assert events == ["entered", "left"]
    assert not os.path.exists(os.path.dirname(address))


def test_serving_takes_the_options_of_serve() -> None:
    with pytest.raises(samehost.errors.UsageError, match="threads_max"), serving(new_service(), threads_max=0):
        pytest.fail("it does not begin")
    with (
        serving(new_service(), allow=samehost.allow(uid=os.geteuid() + 1)) as address,
        samehost.connect(address) as client,
        pytest.raises(ConnectionClosed),
    ):
        client.who()


def test_serving_raises_what_the_service_raised() -> None:
    service = samehost.Service("failing")

    @service.lifespan
    async def lifespan() -> AsyncIterator[None]:
        yield
        raise KeyError("at its end")

    with pytest.raises(KeyError, match="at its end"), serving(service):
        pass


def test_serving_ends_when_the_test_fails() -> None:
    events: list[str] = []
    with pytest.raises(ZeroDivisionError), serving(new_service(events)):
        raise ZeroDivisionError
    assert events == ["entered", "left"]


def test_two_services_side_by_side() -> None:
    with serving(new_service()) as one, serving(new_service()) as two, samehost.connect(one) as client:
        assert one != two
        assert client.who()[4] == "state"


@pytest.mark.parametrize("loop", LOOPS)
def test_connected_needs_no_socket_and_no_thread_of_its_own(loop: str) -> None:
    events: list[str] = []

    async def main() -> None:
        before = set(descriptors())
        async with connected(new_service(events)) as client:
            found = await client.who()
            assert found == [os.geteuid(), os.getegid(), os.getgroups(), os.getpid(), "state"]
            assert set(descriptors()) == before
        assert events == ["entered", "left"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samehost")]


async def test_connected_calls_on_behalf_of_whoever_a_test_thinks_up() -> None:
    with pytest.raises(NotPermitted):
        async with connected(new_service(), Kit) as client:
            await client.rare(1)
    peer = samehost.Peer(uid=4711, gid=5, groups=(5, 6), pid=0)
    async with connected(new_service(), Kit, peer=peer) as client:
        assert await client.rare(1) == 2
        assert await client.rare(number=2) == 3
        with pytest.raises(InvalidArguments, match=r"\$\.number"):
            await client.rare(number="two")  # type: ignore[arg-type]
    async with connected(new_service(), peer=peer) as client:
        assert (await client.who())[:3] == [4711, 5, [5, 6]]


async def test_connected_asks_the_policy_of_the_service() -> None:
    service = new_service(allow=samehost.allow(uid=4711))
    with pytest.raises(NotPermitted, match="kit refuses"):
        async with connected(service):
            pytest.fail("it does not begin")
    async with connected(service, peer=samehost.Peer(4711, 0, (), 0)) as client:
        assert (await client.who())[0] == 4711


async def test_connected_ends_what_is_at_work(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    with caplog.at_level(logging.ERROR):
        async with connected(new_service(events)) as client:
            call = asyncio.ensure_future(client.hold())
            await eventually(lambda: "held" in events)
        with pytest.raises(OutcomeUnknown):
            await call
    assert events == ["entered", "held", "let go", "left"]
    assert not caplog.records
    with pytest.raises(ConnectionClosed):
        await client.who()


async def test_connected_ends_when_the_test_fails() -> None:
    events: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with connected(new_service(events)):
            raise ZeroDivisionError
    assert events == ["entered", "left"]


async def test_connected_says_that_a_client_was_closed_and_not_that_nobody_is_there() -> None:
    async with connected(new_service()) as client:
        client.close()
        with pytest.raises(ConnectionClosed, match="the client was closed"):
            await client.who()


class Owner:
    """Notes what one end of a pipe tells."""

    def __init__(self) -> None:
        self.came: list[tuple[bytes, list[int]]] = []
        self.error: Exception | None = None

    def received(self, data: bytes, files: tuple[File, ...] = ()) -> None:
        self.came.append((data, [os.eventfd_read(file.fileno()) for file in files]))
        for file in files:
            file.close()

    def lost(self, error: Exception) -> None:
        self.error = error

    def ended(self) -> None:
        self.came.append((b"the end", []))

    def drained(self) -> None: ...

    def stalled(self) -> None: ...


def pipes(takes_files: bool) -> tuple[_Pipe, _Pipe, Owner]:
    loop = asyncio.get_running_loop()
    near, far, owner = _Pipe(loop), _Pipe(loop), Owner()
    near.peer, far.peer = far, near
    near.owned_by(Owner())
    far.owned_by(owner, takes_files)
    return near, far, owner


async def test_files_keep_their_place_in_what_travels_without_a_socket() -> None:
    near, far, owner = pipes(takes_files=True)
    before = descriptors()
    near.send([(b"a", ()), (b"b", (Descriptor(os.eventfd(7)), Descriptor(os.eventfd(8)))), (b"c", ())])
    assert len(descriptors()) == len(before) + 2  # as the sender's own are dropped
    far.read()
    await eventually(lambda: len(owner.came) == 3)
    assert owner.came == [(b"a", []), (b"b", [7, 8]), (b"c", [])]
    near.close()
    await eventually(lambda: owner.came[-1] == (b"the end", []))
    assert descriptors() == before


async def test_files_that_nobody_takes_are_closed_without_a_socket_too() -> None:
    before = descriptors()
    near, far, owner = pipes(takes_files=False)
    near.send([(b"x", (Descriptor(os.eventfd(7)),))])
    far.read()
    await eventually(lambda: owner.error)
    assert isinstance(owner.error, UnexpectedFiles)
    assert owner.came == []
    near.send([(b"y", (Descriptor(os.eventfd(8)),))])
    far.pause()
    far.close()
    near.send([(b"z", (Descriptor(os.eventfd(9)),))])
    near.close()
    near.send([(b"z", (Descriptor(os.eventfd(9)),))])
    await asyncio.sleep(0)
    assert descriptors() == before
