"""Serving with asyncio: everybody at once, whatever the handlers do, and an end that is a good one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Program, needs_root, python, until

import samehost
from samehost import aio
from samehost.errors import ConnectionClosed, DeadlineExceeded

CHILD = """
    import asyncio, logging, samehost.aio, signal, sys
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    released = asyncio.Event()
    async def handler(connection):
        "Echo; but what says `wait` is answered once SIGUSR1 has come."
        while message := await connection.recv():
            if message == b"wait":
                await connection.sendall(b"waiting")
                await released.wait()
            await connection.sendall(message)
    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, released.set)
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        async with samehost.aio.listen(sys.argv[1]) as listener:
            print("ready", flush=True)
            await listener.serve(handler, drain=float(sys.argv[2]), connections_max=int(sys.argv[3]))
        assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
        print("tasks left", len(asyncio.all_tasks()) - 1, flush=True)
    if sys.argv[4] == "uvloop":
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def serving(path: Path, handler: Callable[[Any], Awaitable[object]], **options: Any) -> AsyncIterator[Any]:
    """A server in a task, told to stop at the end."""
    async with aio.listen(path) as listener:
        task = asyncio.ensure_future(listener.serve(handler, **options))
        try:
            yield listener
        finally:
            listener.stop()
            await asyncio.wait_for(task, DEADLINE)
            assert asyncio.all_tasks() == {asyncio.current_task()}


async def echo(connection: aio.Connection) -> None:
    while message := await connection.recv():
        await connection.sendall(message)


async def ask(client: aio.Connection, message: bytes) -> bytes:
    await client.sendall(message)
    return await client.recv(timeout=DEADLINE)


async def test_every_client_is_served_at_once(place: Path) -> None:
    entered, everybody = 0, asyncio.Event()

    async def handler(connection: aio.Connection) -> None:
        nonlocal entered
        entered += 1
        if entered == 20:
            everybody.set()
        await everybody.wait()
        await connection.sendall(b"together")

    async with serving(place / "s", handler):
        clients = [await aio.dial(place / "s") for _ in range(20)]
        for client in clients:
            async with client:
                assert await client.recv(timeout=DEADLINE) == b"together"


async def test_a_handler_that_fails_is_logged_and_the_server_lives(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: aio.Connection) -> None:
        if await connection.recv() == b"fail":
            raise ZeroDivisionError("on purpose")
        await connection.sendall(b"alive")

    async with serving(place / "s", handler):
        async with await aio.dial(place / "s") as client:
            assert await ask(client, b"fail") == b""
        async with await aio.dial(place / "s") as client:
            assert await ask(client, b"work") == b"alive"
    [record] = [record for record in caplog.records if record.exc_info]
    assert (record.levelno, record.exc_info[0]) == (logging.ERROR, ZeroDivisionError)
    assert str(place / "s") in record.getMessage()


async def test_clients_over_the_limit_wait_and_are_served(place: Path) -> None:
    async with serving(place / "s", echo, connections_max=2):
        first, second, third = [await aio.dial(place / "s") for _ in range(3)]
        async with first, second, third:
            assert [await ask(first, b"1"), await ask(second, b"2")] == [b"1", b"2"]
            await third.sendall(b"3")
            with pytest.raises(DeadlineExceeded):
                await third.recv(timeout=0.1)
            first.close()
            assert await third.recv(timeout=DEADLINE) == b"3"


async def test_stopping_lets_calls_finish_and_ends_quiet_connections(place: Path) -> None:
    entered, finish = asyncio.Event(), asyncio.Event()

    async def handler(connection: aio.Connection) -> None:
        while message := await connection.recv():
            entered.set()
            await finish.wait()
            await connection.sendall(message)

    async with (
        serving(place / "s", handler) as listener,
        await aio.dial(place / "s") as busy,
        await aio.dial(place / "s") as idle,
    ):
        await busy.sendall(b"in flight")
        await entered.wait()
        listener.stop()
        assert await idle.recv(timeout=DEADLINE) == b""  # ended while the other one is still in progress
        assert os.listdir(place) == []
        finish.set()
        assert await busy.recv(timeout=DEADLINE) == b"in flight"
        assert await busy.recv(timeout=DEADLINE) == b""


async def test_a_conversation_goes_on_while_the_server_drains(place: Path) -> None:
    async with serving(place / "s", echo) as listener, await aio.dial(place / "s") as client:
        assert await ask(client, b"before") == b"before"
        listener.stop()
        for _ in range(5):
            assert await ask(client, b"while") == b"while"
        assert not (place / "s").exists()


async def test_what_goes_on_after_the_drain_time_is_cancelled(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    cancelled = []

    async def handler(connection: aio.Connection) -> None:
        try:
            await connection.sendall(b"begun")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(connection)
            raise

    async with serving(place / "s", handler, drain=0.1) as listener, await aio.dial(place / "s") as client:
        assert await client.recv(timeout=DEADLINE) == b"begun"
        listener.stop()
        assert await client.recv(timeout=DEADLINE) == b""
    assert len(cancelled) == 1
    assert "1 still in progress are cut off" in caplog.text


async def test_a_handler_that_swallows_its_cancellation_is_reported(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def handler(connection: aio.Connection) -> None:
        await connection.sendall(b"begun")
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with aio.listen(place / "s") as listener, await aio.dial(place / "s") as client:
        task = asyncio.ensure_future(listener.serve(handler, drain=0))
        assert await client.recv(timeout=DEADLINE) == b"begun"
        listener.stop()
        await asyncio.wait_for(task, DEADLINE)
        assert "1 handlers swallow their cancellation" in caplog.text
        release.set()
        assert await client.recv(timeout=DEADLINE) == b""


async def test_idle_clients_do_not_keep_those_in_the_backlog_from_their_reply(place: Path) -> None:
    async with (
        serving(place / "s", echo, connections_max=1) as listener,
        await aio.dial(place / "s") as idle,
        await aio.dial(place / "s") as waiting,
    ):
        assert await ask(idle, b"1") == b"1"
        await waiting.sendall(b"2")
        listener.stop()
        assert await waiting.recv(timeout=5) == b"2"  # and not after the drain time of 30 s


async def test_cancelling_cancels_the_handlers(place: Path) -> None:
    ended = []

    async def handler(connection: aio.Connection) -> None:
        try:
            await echo(connection)
        finally:
            ended.append(connection)

    async with aio.listen(place / "s") as listener, await aio.dial(place / "s") as client:
        task = asyncio.ensure_future(listener.serve(handler))
        assert await ask(client, b"x") == b"x"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(ended) == 1
        assert await client.recv(timeout=DEADLINE) == b""
        assert os.listdir(place) == []
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_handler_that_is_cancelled_before_its_first_step_leaves_no_connection(place: Path) -> None:
    async with aio.listen(place / "s") as listener, await aio.dial(place / "s") as client:
        serving = asyncio.ensure_future(listener.serve(echo))
        await asyncio.sleep(0)  # one step: it has accepted, and the handler's task is made and not yet begun
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(tasks - {serving}) == 1
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=DEADLINE)
        assert await client.recv(timeout=DEADLINE) == b""


async def test_closing_while_serving_ends_it(place: Path) -> None:
    async with serving(place / "s", echo) as listener, await aio.dial(place / "s") as client:
        assert await ask(client, b"x") == b"x"
        listener.close()
        assert os.listdir(place) == []
        assert await client.recv(timeout=DEADLINE) == b""


async def test_datagrams_are_handled_at_once_and_to_the_last(place: Path) -> None:
    entered, everybody = 0, asyncio.Event()

    async def handler(datagram: aio.Datagram) -> None:
        nonlocal entered
        entered += 1
        if entered == 5:
            asyncio.get_running_loop().call_later(0.05, everybody.set)  # when the server has nothing left to take
        await everybody.wait()
        await datagram.reply(datagram.data)

    async with aio.listen(place / "d", "datagram") as listener, await aio.dial(place / "d", "datagram") as client:
        for number in range(5):
            await client.sendall(b"%d" % number)
        listener.stop()
        await listener.serve(handler)
        assert sorted([await client.recv(timeout=DEADLINE) for _ in range(5)]) == [b"0", b"1", b"2", b"3", b"4"]


def test_serving_off_the_main_thread_leaves_signals_alone(place: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop: list[Callable[[], object]] = []

    async def main() -> None:
        async with aio.listen(place / "s") as listener:
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(listener.stop))
            await listener.serve(echo)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    with samehost.dial(place / "s", wait=DEADLINE) as client:
        client.sendall(b"x")
        assert client.recv(timeout=DEADLINE) == b"x"
        assert signal.getsignal(signal.SIGTERM) == before
        stop[0]()
        assert client.recv(timeout=DEADLINE) == b""
    thread.join(DEADLINE)


# Signals


def start(place: Path, drain: float = 30, connections_max: int = 100, loop: str = "asyncio") -> Program:
    return python(CHILD, str(place / "s"), str(drain), str(connections_max), loop)


def begin(client: samehost.Connection) -> None:
    """Have a handler wait for SIGUSR1."""
    client.sendall(b"wait")
    assert client.recv(timeout=DEADLINE) == b"waiting"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_drains_and_the_process_ends_well(place: Path, number: signal.Signals, loop: str) -> None:
    with start(place, loop=loop) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as idle, samehost.dial(place / "s") as busy:
            begin(busy)  # the other one came first, so it is being served as well
            program.signal(number)
            assert program.line() == f"{number.name}: draining {place / 's'}, 2 in progress, at most 30 s"
            assert idle.recv(timeout=DEADLINE) == b""
            program.signal(signal.SIGUSR1)
            assert busy.recv(timeout=DEADLINE) == b"wait"
        assert (program.line(), program.end()) == ("tasks left 0", 0)
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    ("number", "connections_max", "at_once"),
    [
        (signal.SIGTERM, 100, False),
        (signal.SIGINT, 100, False),
        (signal.SIGTERM, 1, False),
        (signal.SIGTERM, 100, True),
    ],
    ids=["SIGTERM", "SIGINT", "with a client in the backlog", "while the path is removed"],
)
def test_a_second_signal_ends_at_once(place: Path, number: signal.Signals, connections_max: int, at_once: bool) -> None:
    with start(place, connections_max=connections_max) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as busy, samehost.dial(place / "s"):
            begin(busy)
            if connections_max == 1:
                assert program.line() == f"{place / 's'} is full: 1 in progress, further clients wait"
            program.signal(number)
            assert program.line().startswith(number.name)
            if not at_once:
                until(lambda: not (place / "s").exists(), "the path is removed")
            program.signal(number)
            assert program.process.wait(5) == -number  # which a shell shows as 128 + number
            with contextlib.suppress(ConnectionClosed):
                assert busy.recv(timeout=DEADLINE) == b""
    assert os.listdir(place) == []


def test_clients_in_the_backlog_get_their_reply_after_the_signal(place: Path) -> None:
    with start(place, connections_max=1) as program:
        assert program.line() == "ready"
        clients = [samehost.dial(place / "s") for _ in range(5)]
        begin(clients[0])
        assert program.line() == f"{place / 's'} is full: 1 in progress, further clients wait"
        for client in clients[1:]:
            client.sendall(b"reply")
            client.shutdown(socket.SHUT_WR)
        program.signal(signal.SIGTERM)
        assert program.line().startswith("SIGTERM")
        until(lambda: not (place / "s").exists(), "the path is removed")
        program.signal(signal.SIGUSR1)
        assert [client.recv(timeout=DEADLINE) for client in clients] == [b"wait"] + [b"reply"] * 4
        for client in clients:
            client.close()
        assert (program.line(), program.end()) == ("tasks left 0", 0)


def test_a_second_signal_ends_a_server_whose_handlers_do_not_end(place: Path) -> None:
    code = """
        import asyncio, contextlib, samehost.aio, sys
        async def handler(connection):
            await connection.sendall(b"begun")
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
        async def main():
            async with samehost.aio.listen(sys.argv[1]) as listener:
                await listener.serve(handler)
        asyncio.run(main())
    """
    with python(code, str(place / "s")) as program, samehost.dial(place / "s", wait=DEADLINE) as client:
        assert client.recv(timeout=DEADLINE) == b"begun"
        program.signal(signal.SIGTERM)
        until(lambda: not (place / "s").exists(), "the path is removed")
        program.signal(signal.SIGTERM)
        assert program.process.wait(5) == -signal.SIGTERM


@needs_root
def test_a_second_signal_ends_the_first_process_of_a_container(place: Path) -> None:
    """To which the kernel delivers no signal that it has no handler for."""
    code = """
        import os, sys
        from samehost.aio import server
        if os.unshare(0x20000000) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(0x20000000):
            sys.exit("no new pid namespace")
        if child := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        server._signals._end_process(server.signal.SIGTERM)
    """
    with python(code) as program:
        assert (program.end(), program.errors()) == (128 + signal.SIGTERM, "")


SEVERAL = """
    import asyncio, logging, samehost.aio, signal, sys
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    async def serve(path, name):
        async with samehost.aio.listen(path) as listener:
            print(name, flush=True)
            await listener.serve(print)
    async def main():
        before = signal.getsignal(signal.SIGINT)
        mine = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, mine.set)
        short = asyncio.ensure_future(serve(sys.argv[1], "short"))
        long = [asyncio.ensure_future(serve(path, "long")) for path in sys.argv[2:4]]
        await asyncio.sleep(0)
        short.cancel()  # the first one in goes, and the others still get the signal
        await asyncio.wait([short])
        print("ready", flush=True)
        await asyncio.gather(*long)
        assert signal.getsignal(signal.SIGINT) is before
        mine.clear()
        print("mine", flush=True)
        await mine.wait()
        print("ended", flush=True)
    if sys.argv[4] == "uvloop":
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_ends_every_server_of_the_loop_and_then_is_the_users_again(place: Path, loop: str) -> None:
    with python(SEVERAL, *(str(place / name) for name in "abc"), loop) as program:
        while program.line() != "ready":
            pass
        program.signal(signal.SIGTERM)
        draining = {program.line() for _ in range(2)}
        assert draining == {f"SIGTERM: draining {place / name}, 0 in progress, at most 30 s" for name in "bc"}
        assert program.line() == "mine"
        program.signal(signal.SIGTERM)
        assert (program.line(), program.end()) == ("ended", 0)
    assert os.listdir(place) == []


def test_a_signal_handler_that_is_set_while_serving_stays(place: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        async with aio.listen(place / "s") as listener:
            serving = asyncio.ensure_future(listener.serve(echo))
            await asyncio.sleep(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            listener.stop()
            await asyncio.wait_for(serving, DEADLINE)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN

    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("type", ["stream", "datagram"])
async def test_a_server_that_never_waits_lets_other_tasks_run(place: Path, type: str) -> None:
    turns, seen, everybody = 0, set(), asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not everybody.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def handler(taken: aio.Connection | aio.Datagram) -> None:
        seen.add(turns)
        if len(seen) == 3:
            everybody.set()

    async with aio.listen(place / "s", type) as listener:
        clients = [await aio.dial(place / "s", type) for _ in range(3)]
        if type == "datagram":
            for client in clients:
                await client.send(b"x")
        serving = asyncio.ensure_future(listener.serve(handler))
        await asyncio.wait_for(count(), DEADLINE)
        listener.stop()
        await asyncio.wait_for(serving, DEADLINE)
        for client in clients:
            client.close()


async def test_accepting_from_a_listener_that_is_never_idle_lets_other_tasks_run(place: Path) -> None:
    others: list[int] = []
    async with aio.listen(place / "s") as listener:
        clients = [await aio.dial(place / "s") for _ in range(3)]
        for number in range(3):
            asyncio.get_running_loop().call_soon(others.append, number)
            (await listener.accept()).close()
            assert len(others) == number + 1
            clients[number].close()
