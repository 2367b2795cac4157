"""`samehost bench`: what is counted, what is not, each way to end, and how it is shown."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from serving import on_terminal, samehost, serving
from support import SAMEHOST, Program, run, until

SERVICE = """
import asyncio, os, time
from collections.abc import AsyncIterator, Iterator
import samehost

lab = samehost.Service("lab")
weighed = 0
together = 0
all_there = asyncio.Event()
connections = set()

class Odd(samehost.ServiceError):
    code = "lab.odd"

@lab.method
async def echo(text: str) -> str:
    return text

@lab.method
async def sum_of(timeout: int, self: int, data: bytes) -> int:
    return timeout + self + len(data)

@lab.method
async def every_other() -> None:
    global weighed
    weighed += 1
    if weighed % 2 == 0:
        raise Odd("it is an odd one out")

@lab.method
async def slow_at_first(seconds: float) -> None:
    global weighed
    weighed += 1
    if weighed == 1:
        time.sleep(seconds)

@lab.method
async def meet(count: int, call: samehost.Call) -> None:
    global together
    together += 1
    connections.add(call.origin)
    if together == count:
        all_there.set()
    await all_there.wait()

@lab.method
async def met() -> int:
    return len(connections)

@lab.method
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)

@lab.method
async def end() -> None:
    os._exit(1)

@lab.method(allow=samehost.allow(uid=12345))
async def secret() -> None: ...

@lab.method
async def ticks(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number

@lab.method
async def broken(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    raise Odd("it broke")

@lab.method
async def endless() -> AsyncIterator[int]:
    while True:
        yield 1
        await asyncio.sleep(0.001)

@lab.method
def total(values: Iterator[int]) -> int:
    return sum(values)
"""

KEYS = {
    "address",
    "method",
    "concurrency",
    "connections",
    "rate",
    "warm_up",
    "busy_wait",
    "interrupted",
    "seconds",
    "calls",
    "calls_per_second",
    "failed",
    "late",
    "items",
    "items_per_second",
    "cpu",
    "latency",
    "errors",
    "histogram",
}
LATENCY = ["min", "mean", "stddev", "max", "p50", "p75", "p90", "p99", "p999", "p9999"]

Bench = Callable[..., CompletedProcess[bytes]]


@pytest.fixture
def socket(place: Path) -> Iterator[Path]:
    (place / "lab.py").write_text(SERVICE)
    with serving(place / "s", "lab:lab"):
        yield place / "s"


@pytest.fixture
def bench(socket: Path) -> Bench:
    """The command, with no warm-up unless told otherwise."""
    return lambda *words: samehost("bench", socket, *words, *([] if "--warm-up" in words else ["--warm-up", "0"]))


def figures_of(done: CompletedProcess[bytes], code: int = 0) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (code, b"")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def stats(socket: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(samehost("call", socket, "samehost.stats").stdout)
    return found


def served(socket: Path, method: str) -> int:
    """How many calls of a method have come to the service."""
    methods = stats(socket)["methods"]
    return methods[method]["calls"] if method in methods else 0


# What is measured


@pytest.mark.parametrize(
    "options", [(), ("--concurrency", 4), ("--rate", 2000), ("--concurrency", 6, "--connections", 3)]
)
def test_as_many_calls_as_were_asked_for(socket: Path, bench: Bench, options: tuple[object, ...]) -> None:
    found = figures_of(bench("echo", "text=hello", "--calls", 200, "--json", *options))
    assert found.keys() == KEYS
    assert (found["calls"], found["failed"], found["errors"], found["late"]) == (200, 0, {}, 0)
    assert (found["method"], found["address"], found["interrupted"]) == ("echo", str(socket), False)
    assert found["calls_per_second"] == pytest.approx(200 / found["seconds"])
    assert found["cpu"] > 0
    assert list(found["latency"]) == LATENCY
    ordered = [found["latency"][name] for name in ("min", "p50", "p75", "p90", "p99", "p999", "p9999", "max")]
    assert ordered[0] > 0
    assert ordered == sorted(ordered)
    assert sum(row["calls"] for row in found["histogram"]) == 200
    assert served(socket, "echo") == 200


def test_the_setting_is_told(bench: Bench) -> None:
    words = ("--calls", 4, "--concurrency", 4, "--connections", 2, "--rate", 500, "--busy-wait", 0.001, "--json")
    found = figures_of(bench("echo", "text=", *words))
    setting = {name: found[name] for name in ("concurrency", "connections", "rate", "warm_up", "busy_wait")}
    assert setting == {"concurrency": 4, "connections": 2, "rate": 500.0, "warm_up": 0.0, "busy_wait": 0.001}


@pytest.mark.parametrize("options", [(), ("--concurrency", 3), ("--rate", 500)])
def test_calls_of_the_warm_up_are_not_counted(socket: Path, bench: Bench, options: tuple[object, ...]) -> None:
    found = figures_of(bench("echo", "text=x", "--calls", 5, "--warm-up", 0.2, "--json", *options))
    assert found["calls"] == 5
    assert served(socket, "echo") > 5


def test_it_ends_when_the_time_is_over(bench: Bench) -> None:
    found = figures_of(bench("echo", "text=x", "--duration", 0.2, "--json"))
    assert found["calls"] > 1
    assert found["seconds"] >= 0.2


def test_so_many_calls_are_under_way_at_a_time_on_so_many_connections(socket: Path, bench: Bench) -> None:
    before = stats(socket)["connections_total"]
    words = ("count=6", "--concurrency", 6, "--connections", 3, "--calls", 6, "--json")
    assert figures_of(bench("meet", *words))["calls"] == 6
    # One to ask what the method takes, and one to ask for this figure.
    assert stats(socket)["connections_total"] == before + 3 + 2
    assert samehost("call", socket, "met").stdout == b"3\n"


def test_arguments_are_those_of_call(bench: Bench) -> None:
    words = ("sum_of", "timeout=3", "self:=4", "data=hello", "--calls", 2, "--json")
    assert figures_of(bench(*words))["failed"] == 0
    assert figures_of(bench(*words, "--concurrency", 2))["failed"] == 0


# At a rate


def test_latencies_count_from_when_a_call_was_due(bench: Bench) -> None:
    """The first call holds up all others, which are due meanwhile, whether they can be sent or not."""
    words = ("slow_at_first", "seconds=0.6", "--rate", 1000, "--calls", 100, "--concurrency", 1, "--json")
    found = figures_of(bench(*words))
    assert found["calls"] == 100
    assert found["latency"]["min"] >= 0.5
    assert found["seconds"] >= 0.6


def test_without_a_rate_a_stall_is_one_slow_call(bench: Bench) -> None:
    found = figures_of(bench("slow_at_first", "seconds=0.6", "--calls", 100, "--json"))
    assert found["latency"]["min"] < 0.5 < found["latency"]["max"]


def test_calls_that_were_due_and_never_made_are_told(bench: Bench) -> None:
    words = ("sleep", "seconds=0.1", "--rate", 1000, "--duration", 0.3, "--concurrency", 2, "--json")
    found = figures_of(bench(*words))
    assert found["late"] > 0
    assert found["late"] + found["calls"] == 300


def test_all_calls_of_a_rate_are_made_where_there_is_room(bench: Bench) -> None:
    found = figures_of(bench("sleep", "seconds=0.1", "--rate", 300, "--duration", 0.3, "--json"))
    assert (found["calls"], found["late"]) == (90, 0)
    assert found["latency"]["min"] >= 0.09  # as a loop may wake a little early


# Failures


@pytest.mark.parametrize("options", [(), ("--concurrency", 2)])
def test_failed_calls_are_counted_by_their_code(bench: Bench, options: tuple[object, ...]) -> None:
    found = figures_of(bench("every_other", "--calls", 10, "--json", *options), 1)
    assert (found["calls"], found["failed"], found["errors"]) == (10, 5, {"lab.odd": 5})
    assert sum(row["calls"] for row in found["histogram"]) == 5


@pytest.mark.parametrize("options", [(), ("--concurrency", 3)])
def test_calls_that_are_too_late_have_failed(bench: Bench, options: tuple[object, ...]) -> None:
    found = figures_of(bench("sleep", "seconds=30", "--timeout", 0.1, "--calls", 3, "--json", *options), 1)
    assert (found["calls"], found["errors"]) == (3, {"deadline_exceeded": 3})
    assert (found["latency"], found["histogram"]) == (None, [])


@pytest.mark.parametrize("options", [(), ("--concurrency", 1, "--rate", 1000)])
def test_a_server_that_goes_away_is_counted(bench: Bench, options: tuple[object, ...]) -> None:
    found = figures_of(bench("end", "--calls", 4, "--json", *options), 1)
    assert found["errors"] == {"outcome_unknown": 1, "unsent": 3}


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("nowhere",), 1, "there is no method 'nowhere'"),
        (("echo", "txt=x"), 1, "txt"),
        (("echo", "text:=1", "--rate", 5), 1, "$.text: expected str, got int"),
        (("secret",), 77, "secret"),
        (("total", "values=[1]"), 2, "total takes a stream, values"),
        (("echo", "text"), 2, "'text' is not an argument"),
        (("echo", "text=x", "--concurrency", 1, "--connections", 2), 2, "--concurrency 1 leaves some of 2"),
        (("echo", "text=x", "--busy-wait", 1), 2, "busy_wait"),
        (("echo", "text=x", "--rate", 0), 2, "'0' is not a number of calls a second"),
        (("echo", "text=x", "--rate", "nan"), 2, "'nan' is not a number of calls a second"),
        (("echo", "text=x", "--rate", 1e9), 2, "is not a number of calls a second"),
        (("echo", "text=x", "--duration", 0), 2, "0 s are too short"),
        (("echo", "text=x", "--duration", "inf"), 2, "'inf' is not a number of seconds"),
        (("echo", "text=x", "--calls", 0), 2, "'0' is not a number from 1 up"),
        ((), 2, "METHOD"),
    ],
)
def test_what_no_call_can_do_ends_it(bench: Bench, words: tuple[object, ...], code: int, what: str) -> None:
    done = bench(*words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert what in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_nobody_there(place: Path) -> None:
    done = samehost("bench", place / "none", "echo", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (69, "unavailable")


def test_an_error_as_json(bench: Bench) -> None:
    done = bench("nowhere", "--json", "--concurrency", 2)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "method_not_found")


# Streams


def test_a_stream_is_timed_to_its_first_item_and_its_items_are_counted(bench: Bench) -> None:
    found = figures_of(bench("ticks", "count=50", "--calls", 4, "--json"))
    assert (found["calls"], found["items"], found["failed"]) == (4, 200, 0)
    assert found["items_per_second"] == pytest.approx(200 / found["seconds"])
    assert sum(row["calls"] for row in found["histogram"]) == 4


def test_a_stream_without_items_is_timed_to_its_end(bench: Bench) -> None:
    found = figures_of(bench("ticks", "count=0", "--calls", 4, "--concurrency", 2, "--json"))
    assert (found["calls"], found["items"], found["failed"]) == (4, 0, 0)


def test_a_stream_that_breaks_has_failed(bench: Bench) -> None:
    found = figures_of(bench("broken", "count=3", "--calls", 2, "--json"), 1)
    assert (found["calls"], found["items"], found["errors"]) == (2, 6, {"lab.odd": 2})
    found = figures_of(bench("broken", "count=0", "--calls", 2, "--json"), 1)
    assert (found["calls"], found["items"], found["errors"]) == (2, 0, {"lab.odd": 2})


def test_a_stream_without_an_end_is_left_when_the_time_is_over(socket: Path, bench: Bench) -> None:
    found = figures_of(bench("endless", "--duration", 0.3, "--concurrency", 3, "--warm-up", 0.05, "--json"))
    assert (found["calls"], found["failed"]) == (3, 0)
    assert found["items"] > 3
    until(lambda: stats(socket)["methods"]["endless"]["in_flight"] == 0, "the streams have ended")


# Ctrl-C


@pytest.mark.parametrize("words", [("echo", "text=x"), ("echo", "text=x", "--concurrency", "3"), ("endless",)])
def test_what_was_measured_until_an_interrupt_is_printed(socket: Path, words: tuple[str, ...]) -> None:
    command = [*SAMEHOST, "bench", str(socket), *words, "--duration", "1000", "--warm-up", "0", "--json"]
    with Program(command) as program:
        until(lambda: served(socket, words[0]) > 0, "it has begun")
        # One call, and its answer, are what the first figure needs; the service counts the call when it begins.
        before = served(socket, words[0])
        until(lambda: words[0] == "endless" or served(socket, words[0]) > before, "it goes on")
        program.signal(signal.SIGINT)
        found = json.loads(program.line())
        assert program.end() == 130
        assert program.errors() == ""
    assert found["interrupted"]
    assert found["calls"] > 0
    assert found["failed"] == 0


@pytest.mark.parametrize("options", [(), ("--rate", "1000")])
def test_an_interrupted_warm_up_has_measured_nothing(socket: Path, options: tuple[str, ...]) -> None:
    with Program([*SAMEHOST, "bench", str(socket), "echo", "text=x", "--warm-up", "1000", *options]) as program:
        until(lambda: served(socket, "echo") > 0, "it has begun")
        program.signal(signal.SIGINT)
        assert program.end() == 130
        assert program.process.stdout.read() == b""
        assert program.errors() == "samehost: nothing was measured: it ended before the first answer\n"


# How it is shown


def test_plain_lines_in_a_pipe_are_the_figures_by_their_names(bench: Bench) -> None:
    done = bench("every_other", "--calls", 10)
    assert done.returncode == 1
    lines = dict(line.split("\t") for line in done.stdout.decode().splitlines())
    names = KEYS - {"latency", "errors", "histogram", "rate"}
    assert lines.keys() == names | {f"latency.{name}" for name in LATENCY} | {"errors.lab.odd"}
    assert (lines["calls"], lines["failed"], lines["errors.lab.odd"]) == ("10", "5", "5")
    assert lines["interrupted"] == "false"
    assert 0 < float(lines["latency.min"]) <= float(lines["latency.max"])


def test_what_is_for_people_alone_is_not_imported_for_a_pipe(socket: Path) -> None:
    program = f"""
import sys
from samehost.cli import main
assert main(["bench", {str(socket)!r}, "echo", "text=x", "--calls", "3", "--warm-up", "0", "--concurrency", "2"]) == 0
print("rich" in sys.modules)
"""
    done = run([sys.executable, "-c", program])
    assert done.stdout.endswith(b"\nFalse\n"), done.stderr


def test_people_get_a_table_and_a_histogram(socket: Path) -> None:
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "60", "LC_ALL": "C.UTF-8"}
    words = ("--calls", 20, "--warm-up", 0, "--concurrency", 4, "--connections", 2)
    shown = on_terminal("bench", socket, "every_other", *words, env=environment)
    lines = shown.splitlines()
    assert lines[0] == f"every_other on {socket}, 4 calls at a time on 2 connections"
    assert lines[2].startswith("time ")
    assert lines[3].startswith("calls     20, ")
    assert lines[4:6] == ["failed    10", f"{'':10}10 lab.odd"]
    for name in ("min", "mean", "stddev", "max", "50 %", "75 %", "90 %", "99 %", "99.9 %", "99.99 %"):
        assert name in shown
    bars = [line for line in lines if line.startswith("≤ ")]
    assert sum(int(line.split()[3]) for line in bars) == 10
    assert max(line.count("█") for line in bars) == 40
    assert "\x1b" not in shown


def test_a_terminal_of_few_characters_gets_these(socket: Path) -> None:
    environment = {**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "ascii"}
    shown = on_terminal("bench", socket, "echo", "text=x", "--calls", 5, "--warm-up", 0, env=environment)
    assert shown.isascii()
    assert "\\" not in shown
    assert "#" in shown


def test_people_are_warned_of_a_rate_that_was_not_reached(socket: Path) -> None:
    environment = {**os.environ, "TERM": "dumb"}
    words = ("--rate", 1000, "--duration", 0.2, "--concurrency", 1, "--warm-up", 0)
    shown = on_terminal("bench", socket, "sleep", "seconds=0.1", *words, env=environment)
    assert "1,000 calls due a second, at most 1 call at a time on 1 connection" in shown
    assert "were due and never made" in shown
    assert "this rate was not reached" in shown


@pytest.mark.parametrize("options", [(), ("--concurrency", "2")])
def test_a_terminal_shows_how_far_it_has_come(socket: Path, options: tuple[str, ...]) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [*SAMEHOST, "bench", str(socket), "echo", "text=x", "--duration", "1000", "--warm-up", "0", *options]
    try:
        with Program(command, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as program:
            os.close(theirs)
            shown = b""
            while b" of 1000 s, " not in shown or b" a second" not in shown:
                shown += os.read(ours, 65536)
            program.signal(signal.SIGINT)
            assert program.end() == 130
        assert b" calls, " in shown
    finally:
        os.close(ours)
