"""Accepting while the process or the host has run out of something: it rests, at no cost, and goes on by itself."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import DEADLINE, Program, needs_program, python

import samehost

PRELUDE = """
    import asyncio, logging, os, resource, samehost.aio, socket, sys, threading
    from samehost import limits
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    say = logging.warning  # each line in one piece, from whatever thread

    def fill():
        "Leave no descriptor free."
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return held
"""

SERVERS = {
    "threads": """
        def handler(connection):
            while message := connection.recv():
                connection.sendall(message)

        with samehost.listen(sys.argv[1]) as listener:
            threading.Thread(target=control, args=(lambda: listener.close(),), daemon=True).start()
            say("ready")
            listener.serve(handler)
        say("ended")
    """,
    "asyncio": """
        async def handler(connection):
            while message := await connection.recv():
                await connection.sendall(message)

        async def main():
            async with samehost.aio.listen(sys.argv[1]) as listener:
                loop = asyncio.get_running_loop()
                end = lambda: loop.call_soon_threadsafe(listener.close)
                threading.Thread(target=control, args=(end,), daemon=True).start()
                say("ready")
                await listener.serve(handler)
        asyncio.run(main())
        say("ended")
    """,
}

CONTROL = """
    def control(end):
        "Do as standard input says."
        for line in sys.stdin:
            if line == "fill\\n":
                held = fill()
            elif line == "free\\n":
                for descriptor in held:
                    os.close(descriptor)
            say("done")
            if line == "close\\n":
                end()  # last, as the program may be gone before another word
"""

LONG_REST = """
    limits.ACCEPT_PAUSE_SECONDS_MIN = limits.ACCEPT_PAUSE_SECONDS_MAX = 1000.0
"""

both = pytest.mark.parametrize("front", SERVERS)


def code(front: str, *more: str) -> str:
    return "\n".join(map(textwrap.dedent, (PRELUDE, CONTROL, *more, SERVERS[front])))


def tell(program: Program, order: str) -> None:
    program.tell(order)
    assert program.line() == "done"


def ask(client: samehost.Connection, message: bytes) -> bytes:
    client.sendall(message)
    return client.recv(timeout=DEADLINE)


def seconds_on_cpu(program: Program) -> float:
    """What all threads of a process have used, to the nanosecond (proc(5), schedstat)."""
    directory = f"/proc/{program.pid}/task"
    return sum(int(Path(directory, task, "schedstat").read_text().split()[0]) for task in os.listdir(directory)) / 1e9


@both
def test_out_of_descriptors_it_rests_and_recovers_by_itself(place: Path, front: str) -> None:
    with python(code(front), str(place / "s")) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as early:
            assert ask(early, b"before") == b"before"
            tell(program, "fill")
            waiting = [samehost.dial(place / "s") for _ in range(3)]
            for client in waiting:
                client.sendall(b"hello")
            assert program.line() == f"{place / 's'} rests from accepting: Too many open files"
            assert ask(early, b"meanwhile") == b"meanwhile"  # those who are in go on

            # Not waiting for anything: this is the time over which we measure.
            before, start = seconds_on_cpu(program), time.monotonic()
            time.sleep(1.5)
            used, passed = seconds_on_cpu(program) - before, time.monotonic() - start
            assert used < 0.05 * passed

            program.tell("free")
            assert sorted([program.line(), program.line()]) == sorted(["done", f"{place / 's'} accepts again"])
            for client in waiting:
                with client:
                    assert client.recv(timeout=DEADLINE) == b"hello"


@both
def test_closing_the_listener_while_it_rests_ends_the_loop(place: Path, front: str) -> None:
    with python(code(front, LONG_REST), str(place / "s")) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as first:
            first.sendall(b"it serves")
            assert first.recv(timeout=DEADLINE) == b"it serves"
        tell(program, "fill")
        with samehost.dial(place / "s"):
            assert "rests from accepting" in program.line()
            program.tell("close")
            assert sorted([program.line(), program.line()]) == ["done", "ended"]
            assert program.end() == 0
    assert os.listdir(place) == []


@both
@needs_program("strace")
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("ENFILE", "Too many open files in system"),
        ("ENOBUFS", "No buffer space available"),
        ("ENOMEM", "Cannot allocate memory"),
        ("ECONNABORTED", "Software caused connection abort"),
    ],
)
def test_it_outlives_a_host_that_has_run_out(place: Path, front: str, fault: str, text: str) -> None:
    # The first call finds nobody; the next three, when a client is there, fail.
    faults = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=accept4"]
    faults += ["-e", f"inject=accept4:error={fault}:when=2..4"]
    with Program([*faults, sys.executable, "-c", code(front), str(place / "s")]) as program:
        assert program.line() == "ready"
        with samehost.dial(place / "s") as client:
            assert ask(client, b"hello") == b"hello"
            assert program.line() == f"{place / 's'} rests from accepting: {text}"
            assert program.line() == f"{place / 's'} accepts again"
        program.tell("close")
        assert sorted([program.line(), program.line()]) == ["done", "ended"]
        assert program.end() == 0


ACCEPTS = {
    "threads": """
        with samehost.listen(sys.argv[1]) as listener, samehost.dial(sys.argv[1]):
            held = fill()
            try:
                listener.accept(timeout=0.2)
            except TimeoutError as error:
                say(type(error).__name__)
    """,
    "asyncio": """
        async def main():
            async with samehost.aio.listen(sys.argv[1]) as listener, await samehost.aio.dial(sys.argv[1]):
                held = fill()
                try:
                    await listener.accept(timeout=0.2)
                except TimeoutError as error:
                    say(type(error).__name__)
        asyncio.run(main())
    """,
}


@both
def test_a_timeout_holds_while_it_rests(place: Path, front: str) -> None:
    program_code = "\n".join(map(textwrap.dedent, (PRELUDE, ACCEPTS[front])))
    with python(program_code, str(place / "s")) as program:
        assert "rests from accepting" in program.line()
        assert (program.line(), program.end()) == ("DeadlineExceeded", 0)
