"""What a complete typed call may cost: system calls, allocations, bytecode, and memory.

None of it depends on the machine's mood, so a change that makes calls dearer is seen here, however slow the machine is.
The table is all there is to change when the costs do; `make test ARGS='-k budget -rP'` prints what was counted.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
from raw_clients import Frames
from support import Program, needs_program, run

import samehost

ENDS = Path(__file__).with_name("budget_ends.py")
ALLOCATOR = Path(__file__).with_name("budget_allocator.c")
PYTHON = sys.version_info[:2]
IDLE = 300
PERIOD = 64
"""What is done every so many calls, as latencies are put where they belong, has its share in each."""


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        most: what is allowed, which is what was counted; by the version of Python where each compiles differently.
        why: what it is spent on.
    """

    most: float | dict[tuple[int, int], float]
    why: str


# Each for one call of an `async def` that takes and returns a 64-byte string, under the default deadline. One that is
# made alone is a round trip, by a client of the named kind: blocking, or for asyncio on one of its two loops. Pipelined
# ones are those of `map`, with the window that it has by itself.
BUDGET = {
    "server: receive": Row(1, "one read brings the call; none looks whether there is more"),
    "server: send": Row(1, "the reply, once"),
    "server: wait": Row(1, "one wake-up for one call"),
    "server: other": Row(0, "no lock, no memory from the kernel, no change of what is waited for"),
    "blocking: receive": Row(1, "it waits in recv(2) itself"),
    "blocking: send": Row(1, "the call, once"),
    "blocking: wait": Row(0, "its deadline is a timeout of the socket"),
    "blocking: other": Row(0, "as the server"),
    "uvloop: receive": Row(1, "as the server"),
    "uvloop: send": Row(1, "what one turn of the loop has begun goes out together"),
    "uvloop: wait": Row(2, "for the turn that sends, and for the answer"),
    "uvloop: other": Row(0, "as the server"),
    "asyncio: receive": Row(1, "as the server"),
    "asyncio: send": Row(1, "as on uvloop"),
    "asyncio: wait": Row(3, "as on uvloop, and for the turn of the task that has its answer"),
    "asyncio: other": Row(0, "as the server"),
    "server, pipelined: all": Row(0.125, "what the client has sent at once is read at once, and answered at once"),
    "blocking, pipelined: all": Row(0.125, "32 are sent at once, and their answers read at once"),
    "uvloop, pipelined: all": Row(0.2, "what one turn of the loop has begun goes out together"),
    "server: allocations": Row(27.6, "bytes read and sent, the event, the call and its context, arguments, coroutine"),
    "blocking: allocations": Row(26.4, "arguments, bytes sent and read, deadline, result"),
    "uvloop: allocations": Row(47.8, "as blocking, and a future, a timer and what the loop does with them"),
    "server: instructions": Row(
        {(3, 11): 768, (3, 12): 705, (3, 13): 712}, "all that Python runs, from the read to the end of the send"
    ),
    "blocking: instructions": Row({(3, 11): 519, (3, 12): 476, (3, 13): 484}, "all of `client.echo(text)`"),
    "uvloop: instructions": Row({(3, 11): 1049, (3, 12): 963, (3, 13): 967}, "all of `await client.echo(text)`"),
    "server: blocks kept": Row(0.005, "by 10,000 calls a few, as the allocator rounds"),
    "blocking: blocks kept": Row(0.005, "as the server"),
    "uvloop: blocks kept": Row(0.005, "as the server"),
    "uvloop: bytes of an idle connection": Row(4000, "session, protocol, wire, socket, peer, poll; the target is 6 KB"),
    "asyncio: bytes of an idle connection": Row(3150, "as on uvloop, whose polls are larger"),
}

MARGIN = 0.015
"""What differs between the patches of a Python, and is less than one allocation."""

STRAY = 0.05
"""System calls now and then, such as for memory; one that was added to each call is one."""


def spend(counted: dict[str, float], stray: float = 0.0) -> None:
    """Hold what was counted against the budget, all of it."""
    for what, number in counted.items():
        print(f"{what}: {number:g}")
    for what, number in counted.items():
        most = BUDGET[what].most
        if isinstance(most, dict):
            if PYTHON not in most:
                pytest.skip(f"SKIPPED LOUDLY: BUDGET has nothing for this Python, which took {counted}")
            most = most[PYTHON]
        assert number <= most * (1 + MARGIN) + stray, f"{what}: {number:g}, at most {most:g}: {counted}"


# Running the ends


class Spent(NamedTuple):
    """What a call takes at either end."""

    client: float
    server: float


@contextmanager
def serving(place: Path, loop: str, *trace: str, **environment: str) -> Iterator[str]:
    """A server in another process; the path of its socket."""
    path = str(place / "s")
    command = [*trace, sys.executable, str(ENDS), "serve", path, loop]
    with Program(command, stderr=None, env={**os.environ, **environment}) as server:
        assert server.line() == "ready"
        yield path
        server.process.stdin.close()
        assert server.end() == 0


def count(
    path: str, meter: str, few: int, many: int, *fronts: str, trace: tuple[str, ...] = (), **environment: str
) -> dict[str, Spent]:
    """Have so many calls made by each of the fronts, in another process; what one of them took."""
    command = [*trace, sys.executable, str(ENDS), "call", path, meter, str(few), str(many), *fronts]
    found = {}
    with Program(command, stderr=None, env={**os.environ, **environment}) as client:
        for front in fronts:
            _, (few_here, few_there), (many_here, many_there) = json.loads(client.line())
            calls = many - few
            found[front] = Spent((many_here - few_here) / calls, (many_there - few_there) / calls)
        assert client.end() == 0
    return found


# System calls

KINDS = {
    **dict.fromkeys(("recvfrom", "recvmsg", "recvmmsg", "read", "readv"), "receive"),
    **dict.fromkeys(("sendto", "sendmsg", "sendmmsg", "write", "writev"), "send"),
    **dict.fromkeys(("epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"), "wait"),
}
BEGUN = re.compile(r"\d+ +(\w+)\(")
"""A line of strace's; none that says how a call ended during which another thread made one."""


@pytest.fixture
def trace() -> tuple[str, ...]:
    """How to run a program under strace, but for the name of the log."""
    if run(["strace", "-o", "/dev/null", "true"]).returncode:
        pytest.skip("SKIPPED LOUDLY: no tracing here")
    return ("strace", "-f", "-qq", "-e", "signal=none", "-o")


def windows(log: Path) -> Iterator[list[str]]:
    """The names of what was called between each start of a meter and its stop."""
    found: list[str] = []
    for line in log.read_text().splitlines():
        if '"/budget/start"' in line:
            found.clear()
        elif '"/budget/stop"' in line:
            yield found
            found = []
        elif begun := BEGUN.match(line):
            found.append(begun[1])


def by_kind(few: list[str], many: list[str], calls: int) -> dict[str, float]:
    """How many system calls a call takes, of each kind; all that are of none are named."""
    found = Counter(many)
    found.subtract(few)
    print({name: number / calls for name, number in found.items() if number})
    kinds = dict.fromkeys(("receive", "send", "wait", "other"), 0.0)
    for name, number in found.items():
        kinds[KINDS.get(name, "other")] += number / calls
    return kinds


@needs_program("strace")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_system_calls(place: Path, trace: tuple[str, ...], loop: str) -> None:
    alone, pipelined = ("blocking", "uvloop", "asyncio"), ("blocking pipelined", "uvloop pipelined")
    few, many = 100, 500
    with serving(place, loop, *trace, str(place / "server")) as path:
        count(path, "system calls", few, many, *alone, *pipelined, trace=(*trace, str(place / "client")))
    server, client = windows(place / "server"), windows(place / "client")
    for front in (*alone, *pipelined):
        for end, its_windows in ((front, client), ("server", server)):
            _, first, second = islice(its_windows, 3)
            found = by_kind(first, second, many - few)
            if front in alone:
                spend({f"{end}: {kind}": number for kind, number in found.items()}, STRAY)
            else:
                spend({f"{end.partition(' ')[0]}, pipelined: all": sum(found.values())})


# What Python does


@needs_program("cc")
def test_allocations(place: Path) -> None:
    """Those that ask an allocator, counted where it is asked: Python's own tools see what is kept, and not what was.

    They are few enough that no figure gets beyond the numbers that Python keeps ready: each would be one more.
    """
    library = str(place / "allocator.so")
    assert run(["cc", "-O1", "-shared", "-fPIC", "-o", library, str(ALLOCATOR)]).returncode == 0
    with serving(place, "uvloop", BUDGET_ALLOCATOR=library) as path:
        found = count(path, "allocations", 0, PERIOD, "blocking", "uvloop", BUDGET_ALLOCATOR=library)
    spend(
        {
            "server: allocations": found["blocking"].server,
            "blocking: allocations": found["blocking"].client,
            "uvloop: allocations": found["uvloop"].client,
        }
    )


def test_instructions(place: Path) -> None:
    """On uvloop, where no line of the loop's own is Python, and so none differs with the version of asyncio."""
    with serving(place, "uvloop") as path:
        found = count(path, "instructions", 0, 2 * PERIOD, "blocking", "uvloop")
    assert found["blocking"].server == found["uvloop"].server
    spend(
        {
            "server: instructions": found["blocking"].server,
            "blocking: instructions": found["blocking"].client,
            "uvloop: instructions": found["uvloop"].client,
        }
    )


def test_nothing_is_kept(place: Path) -> None:
    with serving(place, "uvloop") as path:
        found = count(path, "blocks", 1000, 11_000, "blocking", "uvloop")
    for front, spent in found.items():
        spend({f"{front}: blocks kept": spent.client, "server: blocks kept": spent.server})


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_idle_connections(place: Path, loop: str) -> None:
    """They take little memory, and no part in the calls of others."""
    with serving(place, loop) as path, ExitStack() as stack:
        alone = count(path, "instructions", 0, 2 * PERIOD, "blocking")
        client = stack.enter_context(samehost.connect(path))
        client.call("start", "memory")
        for _ in range(IDLE):
            idle = stack.enter_context(Frames(path))
            assert idle.call("echo", ["x"]).value == "x"
        spend({f"{loop}: bytes of an idle connection": client.call("stop") / IDLE})
        assert count(path, "instructions", 0, 2 * PERIOD, "blocking") == alone
