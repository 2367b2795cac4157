"""One suite for both front ends: whatever a name means for threads, it means for asyncio.

The tests are coroutines. For the front end for threads, each call that waits runs in a thread and is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
from support import DEADLINE, NOBODY, descriptors, needs_root, python, python_as, until

import samehost
import samehost.aio
from samehost import limits
from samehost.errors import (
    ConnectionClosed,
    DeadlineExceeded,
    ForbiddenMessage,
    ListenerClosed,
    MessageTooLarge,
    ReceiverFull,
    Unavailable,
    UnexpectedFiles,
    UsageError,
)

WAITING = {"accept", "recv", "recv_with_files", "send", "sendall", "receive", "reply", "serve"}


class Awaited:
    """A listener, connection or datagram for threads, whose calls that wait are awaited."""

    def __init__(self, target: Any, pool: ThreadPoolExecutor) -> None:
        self._target = target
        self._pool = pool

    async def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._pool, lambda: function(*arguments, **options))
        return Awaited(result, self._pool) if isinstance(result, samehost.Connection | samehost.Datagram) else result

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name not in WAITING:
            return value
        return lambda *arguments, **options: self._call(value, *arguments, **options)

    async def serve(self, handler: Callable[[Any], Coroutine[Any, Any, object]], **options: Any) -> None:
        loop = asyncio.get_running_loop()

        def handle(taken: Any) -> None:
            asyncio.run_coroutine_threadsafe(handler(Awaited(taken, self._pool)), loop).result()

        await self._call(self._target.serve, handle, **options)

    async def __aiter__(self) -> AsyncIterator[Any]:
        iterator = iter(self._target)
        while (taken := await self._call(next, iterator, None)) is not None:
            yield taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._target.close()


class Threads:
    name = "threads"

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(8)

    def listen(self, *arguments: Any, **options: Any) -> Any:
        return Awaited(samehost.listen(*arguments, **options), self.pool)

    async def dial(self, *arguments: Any, **options: Any) -> Any:
        return await Awaited(None, self.pool)._call(samehost.dial, *arguments, **options)

    def close(self) -> None:
        self.pool.shutdown()


class Asyncio:
    name = "asyncio"

    def listen(self, *arguments: Any, **options: Any) -> Any:
        return Closing(samehost.aio.listen(*arguments, **options))

    async def dial(self, *arguments: Any, **options: Any) -> Any:
        return await samehost.aio.dial(*arguments, **options)

    def close(self) -> None:
        pass


class Closing:
    """A listener for asyncio, which by itself is an `async with` only."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._target.__aiter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._target.close()


@pytest.fixture(params=[Threads, Asyncio], ids=["threads", "asyncio"])
def front(request: pytest.FixtureRequest) -> Iterator[Any]:
    front = request.param()
    yield front
    front.close()


class Pair:
    """A listener, one client of it, and the server's end of that."""

    def __init__(self, front: Any, address: object, type: str) -> None:
        self._front, self._address, self._type = front, address, type

    async def __aenter__(self) -> tuple[Any, Any]:
        self.listener = self._front.listen(self._address, self._type)
        self.client = await self._front.dial(self._address, self._type)
        self.server = await self.listener.accept(timeout=DEADLINE)
        return self.client, self.server

    async def __aexit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()
        self.listener.close()


# Streams


async def test_megabytes_pass_a_reader_that_takes_little_at_a_time(front: Any, place: Path) -> None:
    data = os.urandom(1 << 20) * 6
    async with Pair(front, place / "s", "stream") as (client, server):
        sending = asyncio.ensure_future(client.sendall(data))
        taken, digest = 0, hashlib.sha256()
        while taken < len(data):
            piece = await server.recv(50_000, timeout=DEADLINE)
            assert 0 < len(piece) <= 50_000
            taken += len(piece)
            digest.update(piece)
        await sending
        assert digest.digest() == hashlib.sha256(data).digest()


async def test_send_says_how_much_fitted(front: Any, place: Path) -> None:
    data = bytes(range(256)) * (1 << 14)
    async with Pair(front, place / "s", "stream") as (client, server):
        sent = await client.send(data)
        assert 0 < sent < len(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while piece := await server.recv():
            received += piece
        assert received == data[:sent]


async def test_any_buffer_is_sent_byte_by_byte(front: Any, place: Path) -> None:
    import array

    async with Pair(front, place / "s", "stream") as (client, server):
        for data in (bytearray(b"abc"), memoryview(b"abc"), memoryview(array.array("I", [1, 2, 3]))):
            await client.sendall(data)
            assert await server.recv() == bytes(data)


async def test_recv_gives_up_in_time_and_the_connection_lives_on(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        with pytest.raises(DeadlineExceeded, match=r"nothing was received on .* within 0\.05 s"):
            await server.recv(timeout=0.05)
        await client.sendall(b"late")
        assert await server.recv(timeout=DEADLINE) == b"late"


async def test_sendall_gives_up_in_time_when_nobody_reads(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, _):
        with pytest.raises(DeadlineExceeded, match=r"did not read, so not all was sent within 0\.05 s"):
            await client.sendall(bytes(1 << 22), timeout=0.05)


async def test_the_end_reads_as_nothing_again_and_again(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        await client.sendall(b"last")
        client.close()
        assert await server.recv() == b"last"
        assert [await server.recv(), await server.recv()] == [b"", b""]


async def test_a_peer_that_left_without_reading_is_told_from_one_that_ended(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        await server.sendall(b"unread")
        client.close()
        with pytest.raises(ConnectionClosed):
            await server.recv()


async def test_sending_to_one_who_left_is_an_error_and_no_signal(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        client.close()
        with pytest.raises(ConnectionClosed, match="5 bytes were not sent"):
            await server.sendall(b"hello")


async def test_ending_one_direction_leaves_the_other(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        await client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert [await server.recv(), await server.recv()] == [b"question", b""]
        await server.sendall(b"answer")
        assert await client.recv() == b"answer"


async def test_shutdown_wakes_who_waits(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        waiting = asyncio.ensure_future(server.recv())
        await asyncio.sleep(0)
        server.shutdown()
        assert await asyncio.wait_for(waiting, DEADLINE) == b""
        assert await client.recv() == b""


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
async def test_a_closed_connection_says_so(front: Any, place: Path, type: str) -> None:
    async with Pair(front, place / "s", type) as (client, _):
        client.close()
        client.close()
        assert client.closed
        with pytest.raises(ConnectionClosed):
            await client.recv()
        with pytest.raises(ConnectionClosed):
            await client.sendall(b"x")


# Packets


async def test_packets_keep_their_bounds(front: Any, place: Path) -> None:
    packets = [b"a", b"bb" * 1000, bytes(60_000), b"end"]
    async with Pair(front, place / "s", "seqpacket") as (client, server):
        for packet in packets:
            await client.sendall(packet)
        assert [await server.recv() for _ in packets] == packets
        client.close()
        assert await server.recv() == b""


async def test_an_oversize_packet_ends_the_connection(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "seqpacket") as (client, server):
        await client.sendall(b"four")
        with pytest.raises(ForbiddenMessage, match="limit of 3 bytes"):
            await server.recv(3)
        assert await client.recv() == b""


async def test_an_empty_packet_is_not_sent_and_ends_the_connection_if_it_comes(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "seqpacket") as (client, server):
        with pytest.raises(UsageError, match="at least one byte"):
            await client.sendall(b"")
        client.socket.send(b"")
        client.socket.send(b"more")
        assert [await server.recv(), await server.recv()] == [b"", b""]


async def test_a_message_longer_than_the_kernel_takes_is_refused(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "seqpacket") as (client, _):
        with pytest.raises(MessageTooLarge, match="10000000 bytes"):
            await client.sendall(bytes(10_000_000))


# Datagrams


async def test_datagrams_arrive_whole_and_are_answered(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener:
        with await front.dial(place / "d", "datagram") as client:
            for data in (b"first", b"", bytes(30_000)):
                await client.sendall(data)
                datagram = await listener.receive(timeout=DEADLINE)
                assert datagram.data == data
                assert (datagram.peer.uid, datagram.peer.pid) == (os.getuid(), os.getpid())
                assert datagram.sender.startswith("@")
                await datagram.reply(data[::-1])
                assert await client.recv(timeout=DEADLINE) == data[::-1]
        assert sorted(os.listdir(place)) == ["d", "d.lock"]


async def test_a_sender_without_address_cannot_be_answered(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
            nameless.sendto(b"hello", str(place / "d"))
        datagram = await listener.receive(timeout=DEADLINE)
        assert datagram.sender is None
        with pytest.raises(Unavailable, match="no address to reply to"):
            await datagram.reply(b"?")


async def test_a_sender_that_left_cannot_be_answered(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener:
        with await front.dial(place / "d", "datagram") as client:
            await client.sendall(b"hello")
        datagram = await listener.receive(timeout=DEADLINE)
        with pytest.raises(ConnectionClosed):
            await datagram.reply(b"?")


async def test_an_oversize_datagram_is_dropped_and_counted(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener, await front.dial(place / "d", "datagram") as client:
        await client.sendall(b"too long")
        await client.sendall(b"fine")
        datagram = await listener.receive(4, timeout=DEADLINE)
        assert (datagram.data, listener.dropped) == (b"fine", 1)


async def test_a_receiver_that_does_not_read_is_waited_for_a_while(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener, await front.dial(place / "d", "datagram") as client:

        async def flood() -> None:
            while True:
                await client.sendall(b"x", timeout=0.05)

        with pytest.raises(ReceiverFull, match=r"stayed full for 0\.05 s"):
            await flood()
        datagram = await listener.receive(timeout=DEADLINE)

        async def flood_back() -> None:
            while True:
                await datagram.reply(b"x", timeout=0.05)

        with pytest.raises(ReceiverFull, match="does not read"):
            await flood_back()


async def test_a_datagram_waits_until_there_is_room(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener, await front.dial(place / "d", "datagram") as client:
        sent = 0

        async def fill() -> None:
            nonlocal sent
            while True:
                await client.sendall(b"x", timeout=0)
                sent += 1

        with pytest.raises(ReceiverFull):
            await fill()
        waiting = asyncio.ensure_future(client.sendall(b"last", timeout=DEADLINE))
        received = [(await listener.receive(timeout=DEADLINE)).data for _ in range(sent + 1)]
        await waiting
        assert received == [b"x"] * sent + [b"last"]


# Files


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
async def test_files_travel_both_ways(front: Any, place: Path, type: str) -> None:
    async with Pair(front, place / "s", type) as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            with tempfile.TemporaryFile() as ours:
                await sender.sendall(b"two files", [ours, ours.fileno()])
                data, files = await receiver.recv_with_files(files_max=2, timeout=DEADLINE)
                assert (data, len(files)) == (b"two files", 2)
                for file in files:
                    with file:
                        assert file.fileno() != ours.fileno()
                        assert os.path.samestat(os.fstat(file.fileno()), os.fstat(ours.fileno()))
                        assert fcntl.fcntl(file.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


async def test_files_travel_with_datagrams(front: Any, place: Path) -> None:
    with (
        front.listen(place / "d", "datagram") as listener,
        await front.dial(place / "d", "datagram") as client,
        tempfile.TemporaryFile() as ours,
    ):
        await client.sendall(b"", [ours])
        datagram = await listener.receive(files_max=1, timeout=DEADLINE)
        await datagram.reply(b"back", datagram.files)
        datagram.close()
        data, [file] = await client.recv_with_files(timeout=DEADLINE)
        with file:
            assert data == b"back"
            assert os.path.samestat(os.fstat(file.fileno()), os.fstat(ours.fileno()))


async def test_files_that_nobody_asked_for_end_the_connection(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        with tempfile.TemporaryFile() as ours:
            await client.sendall(b"x", [ours])
        before = descriptors()
        with pytest.raises(UnexpectedFiles):
            await server.recv()
        assert descriptors() == before
        assert await client.recv() == b""


async def test_datagrams_with_files_that_nobody_asked_for_are_dropped(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener, await front.dial(place / "d", "datagram") as client:
        with tempfile.TemporaryFile() as ours:
            await client.sendall(b"x", [ours])
        await client.sendall(b"fine")
        assert (await listener.receive(timeout=DEADLINE)).data == b"fine"
        assert listener.dropped == 1


async def test_more_files_than_travel_are_refused(front: Any, place: Path) -> None:
    async with Pair(front, place / "s", "stream") as (client, server):
        with pytest.raises(MessageTooLarge, match="at most 16"):
            await client.sendall(b"x", [0] * 17)
        with pytest.raises(MessageTooLarge, match="files_max=17"):
            await server.recv_with_files(files_max=17)
        with pytest.raises(UsageError, match="at least one byte"):
            await client.sendall(b"", [0])


# Peers


@pytest.mark.parametrize("type", ["stream", "seqpacket"])
async def test_both_ends_know_each_other(front: Any, place: Path, type: str) -> None:
    async with Pair(front, place / "s", type) as (client, server):
        for end in (client, server):
            assert (end.peer.uid, end.peer.gid, end.peer.pid) == (os.getuid(), os.getgid(), os.getpid())
            signal.pidfd_send_signal(end.peer.pidfd, 0)  # 0 only looks whether it could


@needs_root
async def test_a_refused_peer_is_cut_off_and_the_next_one_served(front: Any, open_place: Path, caplog: Any) -> None:
    stranger = """
        connection = samehost.dial(sys.argv[1])
        try:
            print("got", connection.recv())
        except samehost.errors.ConnectionClosed:
            print("cut off")
        connection.close()
    """
    policy = samehost.allow(uid=os.getuid())
    with front.listen(open_place / "s", mode=0o666, allow=policy) as listener:
        accepting = asyncio.ensure_future(listener.accept(timeout=DEADLINE))
        with python_as(NOBODY, stranger, str(open_place / "s")) as program:
            assert await asyncio.to_thread(program.line) in ("got b''", "cut off")
        with await front.dial(open_place / "s"), await accepting as accepted:
            assert accepted.peer.uid == os.getuid()
    assert f"refused uid {NOBODY}" in caplog.text


# Listeners


async def test_accept_gives_up_in_time(front: Any, place: Path) -> None:
    with front.listen(place / "s") as listener:
        for timeout in (0, 0.05):
            with pytest.raises(DeadlineExceeded, match=f"nobody came to .* within {timeout} s"):
                await listener.accept(timeout=timeout)


@pytest.mark.parametrize("end", ["close", "stop"])
async def test_closing_wakes_everybody_who_waits(front: Any, place: Path, end: str) -> None:
    with front.listen(place / "s") as listener:
        waiting = [asyncio.ensure_future(listener.accept()) for _ in range(3)]
        await asyncio.sleep(0)
        if front.name == "threads":
            await asyncio.to_thread(until, lambda: listener._waiting == 3, "they have come to wait")
        getattr(listener, end)()
        done, pending = await asyncio.wait(waiting, timeout=1)  # they look at the path every 2 s, which is too late
        assert not pending
        assert {type(task.exception()) for task in done} == {ListenerClosed}


async def test_iteration_gives_every_client_and_ends_with_the_listener(front: Any, place: Path) -> None:
    served = []
    with front.listen(place / "s") as listener:
        clients = [await front.dial(place / "s") for _ in range(3)]
        async for accepted in listener:
            with accepted:
                served.append(accepted.peer.pid)
            if len(served) == 3:
                listener.close()
        assert served == [os.getpid()] * 3
        with pytest.raises(ListenerClosed):
            await listener.accept()
    for client in clients:
        client.close()


async def test_iteration_over_datagrams_ends_with_the_listener(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener, await front.dial(place / "d", "datagram") as client:
        await client.sendall(b"end")
        async for datagram in listener:
            assert datagram.data == b"end"
            listener.close()


LOOPS = {
    "threads": """
        import samehost, signal, sys
        with samehost.listen(sys.argv[1]) as listener:
            signal.signal(signal.SIGUSR1, lambda *_: listener.close())
            for connection in listener:
                connection.sendall(b"hello")
                connection.close()
        print("ended", flush=True)
    """,
    "asyncio": """
        import asyncio, samehost.aio, signal, sys
        async def main():
            loop = asyncio.get_running_loop()
            async with samehost.aio.listen(sys.argv[1]) as listener:
                loop.add_signal_handler(signal.SIGUSR1, listener.close)
                async for connection in listener:
                    await connection.sendall(b"hello")
                    connection.close()
        asyncio.run(main())
        print("ended", flush=True)
    """,
}


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS)
def test_closing_in_a_signal_handler_ends_the_loop(place: Path, code: str) -> None:
    with python(code, str(place / "s")) as program:
        with samehost.dial(place / "s", wait=DEADLINE) as client:
            assert client.recv(timeout=DEADLINE) == b"hello"  # so it is in its loop
        program.signal(signal.SIGUSR1)
        assert (program.line(), program.end()) == ("ended", 0)
    assert os.listdir(place) == []


async def test_a_path_removed_under_several_waiting_accepts_is_made_again(front: Any, place: Path) -> None:
    with front.listen(place / "s") as listener:
        waiting = [asyncio.ensure_future(listener.accept(timeout=DEADLINE)) for _ in range(3)]
        await asyncio.sleep(0)
        os.unlink(place / "s")
        clients = [await front.dial(place / "s", wait=DEADLINE) for _ in waiting]
        for end in [*clients, *await asyncio.gather(*waiting)]:
            end.close()


# Serving


async def test_serve_serves_everybody_until_it_is_told_to_stop(front: Any, place: Path) -> None:
    async def echo(connection: Any) -> None:
        while message := await connection.recv():
            await connection.sendall(message)

    with front.listen(place / "s") as listener:
        serving = asyncio.ensure_future(listener.serve(echo))
        clients = [await front.dial(place / "s") for _ in range(3)]
        for client in reversed(clients):  # none of them holds up another
            await client.sendall(b"hello")
            assert await client.recv(timeout=DEADLINE) == b"hello"
            client.close()
        listener.stop()
        await asyncio.wait_for(serving, DEADLINE)
        assert os.listdir(place) == []
        with pytest.raises(ListenerClosed):
            await listener.accept()


async def test_serve_answers_datagrams_until_it_is_told_to_stop(front: Any, place: Path) -> None:
    with front.listen(place / "d", "datagram") as listener:
        serving = asyncio.ensure_future(listener.serve(lambda datagram: datagram.reply(datagram.data)))
        with await front.dial(place / "d", "datagram") as client:
            await client.sendall(b"hello")
            assert await client.recv(timeout=DEADLINE) == b"hello"
        listener.stop()
        await asyncio.wait_for(serving, DEADLINE)
    assert os.listdir(place) == []


async def test_serve_with_settings_that_cannot_be_is_refused(front: Any, place: Path) -> None:
    with front.listen(place / "s") as listener:
        for options in ({"drain": -1}, {"connections_max": 0}):
            with pytest.raises(UsageError):
                await listener.serve(print, **options)


@pytest.mark.parametrize("type", ["stream", "datagram"])
async def test_serving_a_closed_listener_says_so(front: Any, place: Path, type: str) -> None:
    with front.listen(place / "s", type) as listener:
        listener.close()
        with pytest.raises(ListenerClosed):
            await listener.serve(print)


async def test_stopping_ends_the_iteration_though_clients_keep_coming(front: Any, place: Path) -> None:
    with front.listen(place / "s") as listener:
        clients = [await front.dial(place / "s") for _ in range(3)]
        async for connection in listener:
            connection.close()
            listener.stop()
            break
        with pytest.raises(ListenerClosed):
            await listener.accept(timeout=DEADLINE)
        for client in clients:
            client.close()


async def test_a_full_server_notices_that_its_path_went_and_says_once_that_it_is_full(
    front: Any, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "PATH_CHECK_SECONDS", 0.05)

    async def echo(connection: Any) -> None:
        while message := await connection.recv():
            await connection.sendall(message)

    with front.listen(place / "s") as listener:
        serving = asyncio.ensure_future(listener.serve(echo, connections_max=1))
        with await front.dial(place / "s") as idle:
            await idle.sendall(b"x")
            assert await idle.recv(timeout=DEADLINE) == b"x"
            for _ in range(3):
                os.unlink(place / "s")
                await asyncio.to_thread(until, (place / "s").exists, "the path is made again")
        listener.stop()
        await asyncio.wait_for(serving, DEADLINE)
    full = f"{place / 's'} is full: 1 in progress, further clients wait"
    assert [record.getMessage() for record in caplog.records].count(full) == 1


@pytest.mark.parametrize("way", ["serve", "receive"])
async def test_a_busy_receiver_of_datagrams_notices_that_its_path_went(
    front: Any, place: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(limits, "PATH_CHECK_SECONDS", 0.2)
    with (
        front.listen(place / "d", "datagram") as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        client.setblocking(False)
        client.connect(str(place / "d"))

        async def again(datagram: Any) -> None:
            with contextlib.suppress(ConnectionRefusedError):  # the socket before has been let go
                client.send(b"again")  # so that nobody ever waits for long

        async def receive() -> None:
            async for datagram in listener:
                await again(datagram)

        client.send(b"first")
        busy = asyncio.ensure_future(listener.serve(again) if way == "serve" else receive())
        os.unlink(place / "d")
        await asyncio.to_thread(until, (place / "d").exists, "the path is made again", 5)
        listener.close()
        await asyncio.wait_for(busy, DEADLINE)


async def test_calls_of_receive_keep_to_their_own_limits(front: Any, place: Path) -> None:
    with (
        front.listen(place / "d", "datagram") as listener,
        await front.dial(place / "d", "datagram") as client,
    ):
        wide = asyncio.ensure_future(listener.receive(100, timeout=DEADLINE))
        await client.send(bytes(101))
        await asyncio.to_thread(until, lambda: listener.dropped == 1, "it has begun, and thrown one away")
        with pytest.raises(DeadlineExceeded):
            await listener.receive(1, timeout=0)
        await client.send(b"long")
        assert (await wide).data == b"long"
        assert listener.dropped == 1


# Only asyncio can promise these


async def test_closing_a_connection_wakes_its_tasks(place: Path) -> None:
    async with Pair(Asyncio(), place / "s", "stream") as (client, _server):
        waiting = [asyncio.ensure_future(client.recv()), asyncio.ensure_future(client.sendall(bytes(1 << 22)))]
        await asyncio.sleep(0)
        client.close()
        done, pending = await asyncio.wait(waiting, timeout=DEADLINE)
        assert not pending
        assert {type(task.exception()) for task in done} == {ConnectionClosed}


async def test_a_cancelled_wait_loses_nothing(place: Path) -> None:
    async with Pair(Asyncio(), place / "s", "stream") as (client, server):
        waiting = asyncio.ensure_future(server.recv())
        await asyncio.sleep(0)
        waiting.cancel()
        await client.sendall(b"kept")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await server.recv(timeout=DEADLINE) == b"kept"
