"""`samehost call` where items come, go, or both; topics; and how far a call has come."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from serving import on_terminal, samehost, serving
from support import SAMEHOST, Program, run, until

SERVICE = """
import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
import msgspec
import samehost

flow = samehost.Service("flow")
numbers = flow.topic("numbers", int, queue=2)
gate = asyncio.Event()
taken = []

def say(*words):
    print(*words, flush=True)

@flow.method
async def hours(count: int) -> AsyncIterator[datetime]:
    for hour in range(count):
        yield datetime(2030, 1, 1, hour, tzinfo=UTC)

@flow.method
def give(what: list[Any]) -> Iterator[Any]:
    yield from what

@flow.method
def pieces() -> Iterator[bytes]:
    yield from (b"\\0a", b"\\n", b"\\xff")

@flow.method
def spell(text: str) -> Generator[str, None, Any]:
    yield from text
    return {"length": len(text)}

@flow.method
async def gated() -> AsyncIterator[int]:
    try:
        yield 1
        await gate.wait()
        gate.clear()
        yield 2
    finally:
        say("closed")

@flow.method
async def open_gate() -> None:
    gate.set()

@flow.method
async def count_up() -> AsyncIterator[int]:
    number = 0
    try:
        while True:
            yield (number := number + 1)
            await asyncio.sleep(0)
    finally:
        say("closed")

@flow.method
async def breaks() -> AsyncIterator[str]:
    yield "first"
    yield "second"
    raise samehost.ServiceError("no third")

@flow.method
async def join(items: AsyncIterator[str]) -> str:
    return repr([item async for item in items])

@flow.method
async def total(items: AsyncIterator[int | None], scale: int = 1) -> int:
    return sum([item or 0 async for item in items]) * scale

@flow.method
async def durations(items: AsyncIterator[timedelta]) -> list[float]:
    return [item.total_seconds() async for item in items]

@flow.method
async def sizes(items: AsyncIterator[bytes]) -> tuple[int, int, bytes]:
    all = [item async for item in items]
    return len(all), max(map(len, all), default=0), b"".join(all)[-3:]

@flow.method
async def collect(items: AsyncIterator[str], stop: str) -> int:
    count = 0
    async for item in items:
        say("got", item)
        if item == stop:
            raise samehost.ServiceError("enough")
        count += 1
    return count

@flow.method
async def hold(items: AsyncIterator[bytes]) -> int:
    say("holds")
    await gate.wait()
    gate.clear()
    return sum([len(item) async for item in items])

@flow.method
async def echo(items: AsyncIterator[Any], seconds: float = 0.0) -> AsyncIterator[Any]:
    async for item in items:
        await asyncio.sleep(seconds)
        yield item

@flow.method
async def publish(count: int) -> int:
    for number in range(count):
        numbers.publish(number)
    return numbers.subscribers

@flow.method
async def work(call: samehost.Call, knows_total: bool = True) -> str:
    for step in range(1, 4):
        call.progress(step, 3 if knows_total else None, f"step \\x1b{step}")
        if step == 2:
            await gate.wait()
            gate.clear()
    call.progress(message="cleaning up")
    return "done"
"""

Call = Callable[..., "CompletedProcess[bytes]"]


@contextmanager
def flowing(place: Path) -> Iterator[tuple[Path, Program]]:
    """The service above, and its program."""
    (place / "flow.py").write_text(SERVICE)
    with serving(place / "s", "flow") as server:
        yield place / "s", server
        server.signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The service, for tests that do not look at what it prints."""
    with flowing(tmp_path_factory.mktemp("flow")) as (path, _):
        yield path


@pytest.fixture
def flow(place: Path) -> Iterator[tuple[Path, Program]]:
    """One that nobody else uses."""
    with flowing(place) as served:
        yield served


@pytest.fixture
def call(socket: Path) -> Call:
    return lambda *words, **options: samehost("call", socket, *words, **options)


def calling(path: Path, *words: object, **options: object) -> Program:
    return Program([*SAMEHOST, "call", str(path), *map(str, words)], **options)


# Items that come


def test_a_line_an_item_as_it_comes(flow: tuple[Path, Program]) -> None:
    path, server = flow
    with calling(path, "gated") as program:
        assert program.line() == "1"
        assert samehost("call", path, "open_gate").returncode == 0
        assert program.line() == "2"
        assert program.end() == 0
        assert program.errors() == ""
    assert server.line() == "closed"


def test_into_a_file_at_once_as_well(flow: tuple[Path, Program], place: Path) -> None:
    path, _ = flow
    with (place / "out").open("wb") as out, calling(path, "gated", stdout=out) as program:
        until(lambda: (place / "out").read_bytes() == b"1\n", "the first item is in the file")
        assert samehost("call", path, "open_gate").returncode == 0
        assert program.end() == 0
    assert (place / "out").read_bytes() == b"1\n2\n"


def test_an_item_is_printed_as_a_result_is(call: Call) -> None:
    what = ["é\x1b", 1, None, [1, "a"], {"a": 2.5}]
    done = call("give", f"what:={json.dumps(what)}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == 'é\x1b\n1\nnull\n[1,"a"]\n{"a":2.5}\n'
    assert call("hours", "count=2").stdout == b"2030-01-01T00:00:00Z\n2030-01-01T01:00:00Z\n"
    assert call("pieces").stdout == b"\0a\n\xff"
    done = call("give", f"what:={json.dumps(what)}", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == what
    assert call("pieces", "--json").stdout == b'"AGE="\n"Cg=="\n"/w=="\n'
    assert call("give", "what=[]").stdout == b""


def test_a_terminal_gets_a_line_an_item_too_and_is_not_steered(socket: Path) -> None:
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    what = json.dumps(["a\x1b[31m", {"b": [1, "\u202e"]}, None])
    shown = on_terminal("call", socket, "give", f"what:={what}", env=plain)
    assert shown == 'a\\x1b[31m\n{"b": [1, "\\u202e"]}\nnull\n'
    assert on_terminal("call", socket, "pieces", env=plain) == '"AGE="\n"Cg=="\n"/w=="\n'


def test_the_value_at_the_end_is_no_item(call: Call) -> None:
    done = call("spell", "text=ab")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nb\n", b'samehost: spell ended with {"length":2}\n')
    assert call("spell", "text=ab", "--json").stdout == b'"a"\n"b"\n'
    assert call("hours", "count=1").stderr == b""


def test_an_error_comes_after_the_items_before_it(call: Call) -> None:
    done = call("breaks")
    assert (done.returncode, done.stdout) == (1, b"first\nsecond\n")
    assert done.stderr == b"samehost: breaks: no third (failed)\n"
    done = call("breaks", "--json")
    error = {"error": {"code": "failed", "message": "no third"}}
    assert [json.loads(line) for line in done.stdout.splitlines()] == ["first", "second", error]


def test_a_stream_may_last_longer_than_the_answer_may_take(call: Call) -> None:
    done = call("echo", 'items:=["a", "b"]', "seconds=0.3", "--timeout", "0.5")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nb\n", b"")


def test_a_server_that_dies_in_mid_stream(place: Path) -> None:
    (place / "flow.py").write_text(SERVICE)
    with serving(place / "s", "flow") as server, calling(place / "s", "gated") as program:
        assert program.line() == "1"
        server.signal(signal.SIGKILL)
        assert program.end() == 1
        assert "may or may not have been done" in program.errors()


def test_as_many_items_as_are_wanted(flow: tuple[Path, Program]) -> None:
    path, server = flow
    done = samehost("call", path, "count_up", "--count", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n2\n3\n", b"")
    assert server.line() == "closed"
    assert samehost("call", path, "hours", "count=1", "--count", "3").stdout == b"2030-01-01T00:00:00Z\n"
    assert samehost("call", path, "hours", "count=1", "--count", "0").returncode == 2


def test_whoever_reads_the_output_may_leave(flow: tuple[Path, Program]) -> None:
    path, server = flow
    with calling(path, "count_up") as program:
        assert program.line() == "1"
        program.process.stdout.close()
        assert (program.end(), program.process.stderr.read()) == (1, b"")
    assert server.line() == "closed"
    command = f"{' '.join(SAMEHOST)} call {path} count_up | head -2"
    assert run(["/bin/sh", "-c", command]).stdout == b"1\n2\n"
    assert server.line() == "closed"


def test_an_interrupt_closes_the_stream(flow: tuple[Path, Program]) -> None:
    path, server = flow
    with calling(path, "gated") as program:
        assert program.line() == "1"
        program.signal(signal.SIGINT)
        assert program.end() == 130
    assert server.line() == "closed"


# Items that go


@pytest.mark.parametrize(
    ("words", "input", "printed"),
    [
        (["join", "items=-"], b"a\n\n b\r\n1", "['a', '', ' b\\r', '1']"),
        (["join", "items=-"], b"", "[]"),
        (["join", "-"], b"a\n", "['a']"),
        (["join", "items:=-"], b'"a"\n\n"b\\n"', "['a', 'b\\n']"),
        (["total", "items=-"], b"1\n2\n\nnull\n", "3"),
        (["total", "-", "scale=2"], b"1\n2\n", "6"),
        (["total", "items:=[1, null, 2]"], b"", "3"),
        (["total", "items=[3]"], b"", "3"),
        (["durations", "-"], b"PT1S\nPT0.5S\n", "[1.0,0.5]"),
        (["sizes", "-"], b"", '[0,0,""]'),
        (["sizes", "items:=-"], b'"AA=="\n"AAA="\n', '[2,2,"AAAA"]'),
        (["echo", "items=-"], b"1\na\n", "1\na"),
        (["echo", "items:=-"], b'1\n{"a":[]}', '1\n{"a":[]}'),
    ],
)
def test_standard_input_is_streamed(call: Call, words: list[str], input: bytes, printed: str) -> None:
    done = call(*words, input=input)
    assert (done.returncode, done.stderr, done.stdout.decode()) == (0, b"", f"{printed}\n")


def test_bytes_are_streamed_in_pieces(call: Call) -> None:
    count, longest, last = json.loads(call("sizes", "-", input=b"x" * 300_000 + b"abc").stdout)
    assert count >= 5
    assert longest <= 65536
    assert last == "YWJj"


def test_a_file_is_streamed(call: Call, place: Path) -> None:
    (place / "file").write_text("1\n2\n" * 10_000)
    assert call("total", f"items=@{place}/file").stdout == b"30000\n"
    (place / "file").write_text('"a"\n"b"')
    assert call("join", f"items:=@{place}/file").stdout == b"['a', 'b']\n"
    done = call("join", f"items=@{place}/nowhere")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == f"samehost: cannot open {place}/nowhere: No such file or directory\n".encode()


def test_each_line_is_sent_when_it_is_there(flow: tuple[Path, Program]) -> None:
    path, server = flow
    with calling(path, "collect", "-", "stop=never", "--timeout", "1") as program:
        for line in ("one", "two"):
            program.tell(line)
            assert server.line() == f"got {line}"
        program.process.stdin.close()
        assert program.line() == "2"
        assert program.end() == 0


def test_a_method_that_ends_early_is_noticed_while_nothing_is_typed(flow: tuple[Path, Program]) -> None:
    path, server = flow
    with calling(path, "collect", "items=-", "stop=one") as program:
        program.tell("one")
        assert server.line() == "got one"
        assert program.end() == 1
        assert program.errors() == "samehost: collect: enough (failed)\n"


def test_nothing_is_read_that_the_method_does_not_take(flow: tuple[Path, Program], place: Path) -> None:
    path, server = flow
    size = 50_000_000
    (place / "big").write_bytes(b"")
    os.truncate(place / "big", size)
    with (place / "big").open("rb") as big, calling(path, "hold", "-", stdin=big) as program:
        assert server.line() == "holds"

        def is_asleep() -> bool:
            return Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

        def read_so_far() -> int:
            return int(re.search(r"pos:\s+(\d+)", Path(f"/proc/{program.pid}/fdinfo/0").read_text())[1])

        until(lambda: read_so_far() and is_asleep(), "it waits")
        assert read_so_far() < 1_000_000
        assert samehost("call", path, "open_gate").returncode == 0
        assert program.line() == str(size)


def test_both_directions_answer_line_by_line(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    for seconds in (0, 0.1):
        with calling(path, "echo", "items=-", f"seconds={seconds}") as program:
            for number in range(5):
                program.tell(f"line {number}")
                assert program.line() == f"line {number}"
            program.process.stdin.close()
            assert program.end() == 0


def test_both_directions_at_full_speed(call: Call) -> None:
    lines = b"".join(b"%d\n" % number for number in range(20_000))
    assert call("echo", "-", input=lines).stdout == lines


@pytest.mark.parametrize(
    ("words", "input", "code", "message"),
    [
        (["total", "-"], b"1\nx\n", 2, "line 2 of standard input is not JSON"),
        (["total", "items:=-"], b"1\n\n[\n", 2, "line 3 of standard input is not JSON"),
        (["total", "-"], b"1\n2\n[3]\n", 1, "total: $.items[2]: expected int | null, got array (invalid_arguments)"),
        (["join", "-"], b"a\n\xff\n", 2, "line 2 of standard input is not text in UTF-8"),
        (["echo", "items:=-"], b"[" * 5000 + b"\n", 2, "line 1 of standard input is not JSON: "),
        (["join", "-"], b"x" * 5_000_000, 2, "line 1 of standard input is longer than a message may be"),
        (["total", "scale=2"], b"", 2, "items is missing, the items to send, as in items=- or items=@FILE"),
        (["total", "items=[1]", "-"], b"", 2, "items is given twice"),
        (["total", "items=5"], b"", 2, "items is a stream: write items=- for standard input"),
        (["total", "items=x"], b"", 2, "items is a stream"),
        (["total", "-", "scale=-"], b"", 2, "standard input can be one argument only"),
        (["total"], b"", 1, "total takes a stream"),
        (["total", "-", "--notify"], b"", 2, "items are sent by a call of its own alone"),
    ],
)
def test_items_that_cannot_be_sent(call: Call, words: list[str], input: bytes, code: int, message: str) -> None:
    done = call(*words, input=input)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()


def test_a_bad_line_comes_after_the_answers_to_the_others(call: Call) -> None:
    done = call("echo", "items:=-", input=b"1\nx\n")
    assert done.returncode == 2
    assert done.stdout in (b"1\n", b"")
    assert b"line 2 of standard input is not JSON" in done.stderr


# Topics


def test_a_topic_is_called_like_a_method(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    with calling(path, "numbers", "--count", "2") as program:
        until(lambda: samehost("call", path, "publish", "count=1").stdout == b"1\n", "it has subscribed")
        assert program.line() == "0"
        assert samehost("call", path, "publish", "count=1").stdout == b"1\n"
        assert program.line() == "0"
        assert program.end() == 0
        assert program.errors() == ""


def test_items_that_were_dropped_are_told_at_the_end(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    with calling(path, "numbers") as program:
        until(lambda: samehost("call", path, "publish", "count=1").stdout == b"1\n", "it has subscribed")
        assert program.line() == "0"
        assert samehost("call", path, "publish", "count=1000").stdout == b"1\n"
        got = [int(program.line())]
        while got[-1] != 999:
            got.append(int(program.line()))
        assert len(got) < 1000
        program.signal(signal.SIGINT)
        assert program.end() == 130
        dropped = 1000 - len(got)
        assert program.errors() == f"samehost: {dropped} items were dropped, as this end is too slow\n"


def test_whoever_looks_is_told_of_dropped_items_as_it_happens(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    with calling(path, "numbers", "--progress") as program:
        until(lambda: samehost("call", path, "publish", "count=1").stdout == b"1\n", "it has subscribed")
        assert program.line() == "0"
        assert samehost("call", path, "publish", "count=1000").stdout == b"1\n"
        while program.line() != "999":
            pass
        told = os.read(program.process.stderr.fileno(), 65536)
        assert re.match(rb"samehost: \d+ items? (was|were) dropped, as this end is too slow\n", told)
        program.signal(signal.SIGINT)
        assert program.end() == 130


# Progress


@contextmanager
def on_terminals(path: Path, *words: str, **environment: str) -> Iterator[tuple[Program, int]]:
    """A call whose standard error alone is a terminal, and our end of that."""
    import pty

    with ExitStack() as opened:
        ours, theirs = pty.openpty()
        opened.callback(os.close, ours)
        try:
            variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": "1", **environment}
            program = opened.enter_context(calling(path, *words, stderr=theirs, env=variables))
        finally:
            os.close(theirs)
        yield program, ours


def shown_until(terminal: int, text: str) -> str:
    shown = ""

    def has_come() -> bool:
        nonlocal shown
        shown += os.read(terminal, 65536).decode(errors="replace")
        return text in shown

    until(has_come, f"{text!r} is shown")
    return shown


def rest_of(terminal: int) -> str:
    shown = b""
    try:
        while piece := os.read(terminal, 65536):
            shown += piece
    except OSError:  # EIO: nobody has the other end any more
        pass
    return shown.decode()


def test_a_bar_shows_how_far_a_call_has_come_and_is_gone_at_the_end(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    with on_terminals(path, "work") as (program, terminal):
        shown = shown_until(terminal, "2/3")
        assert "step \\x1b2" in shown
        assert "━" in shown
        assert samehost("call", path, "open_gate").returncode == 0
        shown += rest_of(terminal)
        assert program.line() == "done"
        assert program.end() == 0
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, and the line empty
    assert re.search(r"2/3 +\d+(\.\d)?(e\+\d+)?/s", shown)
    assert not re.search(r"\x1b\[[0-9;]*m", shown)  # NO_COLOR


def test_a_bar_without_a_total_moves(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    with on_terminals(path, "work", "knows_total=false") as (program, terminal):
        assert "/3" not in shown_until(terminal, "step \\x1b2")
        assert samehost("call", path, "open_gate").returncode == 0
        rest_of(terminal)
        assert program.end() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_bar_is_gone_after_a_signal_too(flow: tuple[Path, Program], number: int, code: int) -> None:
    path, _ = flow
    with on_terminals(path, "work") as (program, terminal):
        shown_until(terminal, "2/3")
        program.signal(number)
        assert program.end() == code
        assert rest_of(terminal).endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_without_a_terminal_there_is_nothing_or_lines(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    for options in ((), ("--progress",)):
        with calling(path, "work", *options) as program:
            assert samehost("call", path, "open_gate").returncode == 0
            assert program.line() == "done"
            told = program.errors()
        if options:  # of what comes at once, the latest is enough
            assert told.startswith("samehost: 1/3, step \\x1b1\nsamehost: 2/3, step \\x1b2\n")
            assert told.endswith("samehost: cleaning up\n")
        else:
            assert told == ""


def test_a_dumb_terminal_gets_no_bar(flow: tuple[Path, Program]) -> None:
    path, _ = flow
    with on_terminals(path, "work", TERM="dumb") as (program, terminal):
        assert samehost("call", path, "open_gate").returncode == 0
        assert program.line() == "done"
        assert rest_of(terminal) == ""


def test_what_is_shown_imports_rich_and_nothing_else_does(socket: Path) -> None:
    program = f"""
import sys
from samehost.cli import main
assert main(["call", {str(socket)!r}, "total", "items=[1]", "--progress"]) == 0
assert main(["call", {str(socket)!r}, "hours", "count=1"]) == 0
heavy = {{"asyncio", "logging", "rich", "subprocess", "numpy", "concurrent.futures", "samehost.cli.items"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = run([sys.executable, "-c", program])
    assert done.stdout == b"1\n2030-01-01T00:00:00Z\n[]\n", done.stderr
