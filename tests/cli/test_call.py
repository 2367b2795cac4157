"""`samehost call`: how arguments are read, what is printed, and each way to fail."""

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
from support import NOBODY, SAMEHOST, Program, run

SERVICE = """
import asyncio, os
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Literal
import msgspec
import samehost

thing = samehost.Service("thing")

class Level(Enum):
    LOW = 1
    HIGH = 2

class Record(msgspec.Struct):
    data: bytes
    by_number: dict[int, bytes] = {}
    inner: "Record | None" = None

class Left(msgspec.Struct, tag="left"):
    data: str

class Right(msgspec.Struct, tag="right"):
    data: bytes

class NoSuchKey(samehost.ServiceError):
    code = "thing.no_such_key"

@thing.method
def show(
    text: str = "", number: int = 0, ratio: float = 0.0, flag: bool = False, data: bytes = b"", either: int | str = 0,
    maybe: int | None = 0, level: Level = Level.LOW, word: Literal["a", "1"] | None = "a", numbers: list[int] = [],
    anything: Any = None, by_number: dict[int, str] = {}, long: timedelta | None = None, timeout: int = 0,
) -> str:
    return repr({name: value for name, value in locals().items() if value != DEFAULTS.get(name)})

DEFAULTS = dict(text="", number=0, ratio=0.0, flag=False, data=b"", either=0, maybe=0, level=Level.LOW, word="a",
                numbers=[], anything=None, by_number={}, long=None, timeout=0)

@thing.method
def record(record: Record) -> str:
    return repr(record)

@thing.method
def side(side: Left | Right) -> str:
    return repr(side)

@thing.method
def give(what: Any) -> Any:
    return what

@thing.method
def give_bytes(data: bytes) -> bytes:
    return data

@thing.method
def noon() -> datetime:
    return datetime.fromisoformat("2030-01-01T12:00:00+01:00")

@thing.method
def nothing() -> None:
    pass

@thing.method
def missing(key: str) -> None:
    raise NoSuchKey(f"no key {key}", data={"key": key})

@thing.method
def broken() -> None:
    raise ValueError("secret")

@thing.method
async def slow() -> None:
    print("slow", flush=True)
    await asyncio.sleep(60)

@thing.method(allow=samehost.allow(uid=65533))
def forbidden() -> None:
    pass

@thing.method
def told(text: str) -> None:
    print("told", text, flush=True)

@thing.method(name="odd name")
def odd(a: int, *, b: int) -> int:
    return a + b
"""

Call = Callable[..., "CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The service above, at a path."""
    place = tmp_path_factory.mktemp("call")
    (place / "thing.py").write_text(SERVICE)
    with serving(place / "s", "thing:thing") as server:
        yield place / "s"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.fixture
def call(socket: Path) -> Call:
    return lambda *words, **options: samehost("call", socket, *words, **options)


def shown(done: CompletedProcess[bytes]) -> dict[str, Any]:
    """What the method `show` was given beside its defaults."""
    assert (done.returncode, done.stderr) == (0, b"")
    given: dict[str, Any] = eval(done.stdout, {"Level": int}) if b"<" not in done.stdout else {"": done.stdout.decode()}
    return given


@pytest.mark.parametrize(
    ("word", "given"),
    [
        ("text=hello", {"text": "hello"}),
        ("text=1", {"text": "1"}),
        ("text=null", {"text": "null"}),
        ("text=", {}),
        ("text=a=b:=c", {"text": "a=b:=c"}),
        ('text:="a\\u00e9"', {"text": "aé"}),
        ("text=é\n-", {"text": "é\n-"}),
        ("number=-7", {"number": -7}),
        ("number:=7", {"number": 7}),
        ("ratio=1", {"ratio": 1.0}),
        ("ratio=1e-3", {"ratio": 0.001}),
        ("flag=true", {"flag": True}),
        ("data=xyz", {"data": b"xyz"}),
        ('data:="AP8="', {"data": b"\0\xff"}),
        ("either=5", {"either": 5}),
        ("either=five", {"either": "five"}),
        ("either=5.5", {"either": "5.5"}),
        ('either:="5"', {"either": "5"}),
        ("maybe=null", {"maybe": None}),
        ("maybe=5", {"maybe": 5}),
        ("word=1", {"word": "1"}),
        ("word=null", {"word": None}),
        ("numbers=[1,2]", {"numbers": [1, 2]}),
        ("anything=1", {"anything": "1"}),
        ("anything:=[1,null]", {"anything": [1, None]}),
        ('by_number={"7":"x"}', {"by_number": {7: "x"}}),
        ("timeout=3", {"timeout": 3}),
    ],
)
def test_a_word_is_what_the_method_declares(call: Call, word: str, given: dict[str, Any]) -> None:
    assert shown(call("show", word)) == given


def test_values_of_an_enum_are_numbers_where_its_members_are(call: Call) -> None:
    assert "Level.HIGH" in shown(call("show", "level=2"))[""]


def test_text_in_a_format_is_left_to_the_server(call: Call) -> None:
    assert b"timedelta(seconds=90)" in call("show", "long=PT90S").stdout
    assert call("show", "long=for ever").returncode == 1


def test_bytes_and_numbers_as_keys_are_found_deep_in_json(call: Call) -> None:
    record = {"data": "AP8=", "by_number": {"7": "eA=="}, "inner": {"data": "eQ=="}}
    done = call("record", f"record:={json.dumps(record)}")
    inner = "Record(data=b'y', by_number={}, inner=None)"
    assert done.stdout.decode() == f"Record(data=b'\\x00\\xff', by_number={{7: b'x'}}, inner={inner})\n"


def test_the_tag_tells_which_struct_is_meant(call: Call) -> None:
    assert call("side", 'side={"type":"left","data":"eA=="}').stdout == b"Left(data='eA==')\n"
    assert call("side", 'side:={"type":"right","data":"eA=="}').stdout == b"Right(data=b'x')\n"


def test_files_are_read(call: Call, place: Path) -> None:
    (place / "file").write_bytes(b"[1, 2]")
    assert shown(call("show", f"text=@{place}/file")) == {"text": "[1, 2]"}
    assert shown(call("show", f"numbers=@{place}/file")) == {"numbers": [1, 2]}
    assert shown(call("show", f"anything=@{place}/file")) == {"anything": "[1, 2]"}
    assert shown(call("show", f"anything:=@{place}/file")) == {"anything": [1, 2]}
    (place / "file").write_bytes(b"\xff\0")
    assert shown(call("show", f"data=@{place}/file")) == {"data": b"\xff\0"}
    done = call("show", f"text=@{place}/file")
    assert (done.returncode, done.stderr) == (
        2,
        b"samehost: text is not text in UTF-8, and its method does not declare bytes\n",
    )
    done = call("show", f"text=@{place}/nowhere")
    assert done.returncode == 2
    assert b"cannot read" in done.stderr
    assert b"No such file" in done.stderr


def test_standard_input_is_read(call: Call) -> None:
    assert shown(call("show", "text=-", "number=1", input=b"in")) == {"text": "in", "number": 1}
    assert shown(call("show", "data=-", input=b"\xff")) == {"data": b"\xff"}
    assert shown(call("show", "anything:=-", input=b'{"a":1}')) == {"anything": {"a": 1}}
    assert shown(call("show", "-", input=b'{"text":"x","data":"AA==","by_number":{"1":"y"}}')) == {
        "text": "x",
        "data": b"\0",
        "by_number": {1: "y"},
    }
    assert shown(call("show", "-", input=b'["x", 1, 0.5, true, "AA=="]')) == {
        "text": "x",
        "number": 1,
        "ratio": 0.5,
        "flag": True,
        "data": b"\0",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text"], "'text' is not an argument: write name=text"),
        (["=x"], "'=x' is not an argument"),
        ([":=1"], "':=1' is not an argument"),
        (["text=a", "text=b"], "text is given twice"),
        (["text=a", "text:=1"], "text is given twice"),
        (["text:=a"], "text is not JSON"),
        (["-", "text=a"], "- is all of the arguments"),
        (["-"], "standard input is not JSON"),
        (["text=-", "data=-"], "standard input can be one argument only"),
    ],
)
def test_words_that_are_no_arguments(call: Call, words: list[str], message: str) -> None:
    done = call("show", *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode()


def test_standard_input_that_is_neither_an_object_nor_an_array(call: Call) -> None:
    done = call("show", "-", input=b"7")
    assert (done.returncode, done.stderr) == (2, b"samehost: standard input is neither a JSON object nor an array\n")


def test_json_that_is_nested_too_deep(call: Call) -> None:
    done = call("give", "what:=-", input=b"[" * 100_000)
    assert done.returncode == 2
    assert b"what is not JSON" in done.stderr
    deep = b'{"data":"","inner":' * 600 + b"null" + b"}" * 600
    done = call("record", "record:=-", input=deep)
    assert (done.returncode, done.stderr) in [
        (2, b"samehost: an argument is nested too deep\n"),
        (1, b"samehost: record: $: nested more than 64 deep (invalid_arguments)\n"),
    ]


def test_options_may_stand_anywhere(call: Call) -> None:
    assert shown(call("show", "text=a", "--timeout", "9", "number=1")) == {"text": "a", "number": 1}
    assert call("--json", "nothing").stdout == b"null\n"


def test_a_result_is_printed_for_programs(call: Call) -> None:
    assert call("give", "what=a\x1b[31m\nb").stdout == b"a\x1b[31m\nb\n"
    assert call("nothing").stdout == b""
    assert call("noon").stdout == b"2030-01-01T11:00:00Z\n"
    assert call("noon", "--json").stdout == b'"2030-01-01T11:00:00Z"\n'
    assert call("give", 'what:={"a":[1,null,true,"\u00e9"]}').stdout == '{"a":[1,null,true,"é"]}\n'.encode()
    assert call("give_bytes", "data=-", input=b"\xff\0").stdout == b"\xff\0"


def test_with_json_it_is_always_json(call: Call) -> None:
    assert call("give", "what=a", "--json").stdout == b'"a"\n'
    assert call("nothing", "--json").stdout == b"null\n"
    assert call("give_bytes", "data=x", "--json").stdout == b'"eA=="\n'


def test_a_terminal_is_never_steered_by_what_a_service_says(socket: Path) -> None:
    assert on_terminal("call", socket, "give", "what=a\x1b[31m\nb") == "a\\x1b[31m\nb\n"
    assert on_terminal("call", socket, "give_bytes", "data=x", env={**os.environ, "NO_COLOR": "1"}) == '"eA=="\n'
    sly = json.dumps({"a": "\x1b[31m\u202e", "b": [1]})
    printed = on_terminal("call", socket, "give", f"what:={sly}", env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"})
    assert printed == '{\n  "a": "\\u001b[31m\\u202e",\n  "b": [\n    1\n  ]\n}\n'
    assert json.loads(printed) == json.loads(sly)


def test_what_a_method_says_no_with(call: Call) -> None:
    done = call("missing", "key=x\x1b")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"samehost: missing: no key x\\x1b (thing.no_such_key)\n"
    done = call("missing", "key=x", "--json")
    error = {"code": "thing.no_such_key", "message": "no key x", "data": {"key": "x"}}
    assert (done.returncode, json.loads(done.stdout)) == (1, {"error": error})
    assert done.stderr == b"samehost: missing: no key x (thing.no_such_key)\n"


def test_a_method_that_breaks(call: Call) -> None:
    done = call("broken", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (1, "internal")
    assert error["error_id"].encode() in done.stderr
    assert b"secret" not in done.stderr + done.stdout


def test_arguments_that_the_method_does_not_take(call: Call) -> None:
    done = call("show", "number=many")
    assert (done.returncode, done.stderr) == (
        1,
        b"samehost: show: $.number: expected int, got str (invalid_arguments)\n",
    )
    assert call("show", "unknown=1").returncode == 1


def test_a_method_that_is_not_there(call: Call) -> None:
    done = call("nowhere", "a=1")
    assert done.returncode == 1
    assert done.stderr.endswith(b"(method_not_found)\n")


def test_a_method_of_any_name(call: Call) -> None:
    assert call("odd name", "a=1", "b=2").stdout == b"3\n"


def test_exit_codes(call: Call, place: Path) -> None:
    assert samehost("call", place / "nobody", "m").returncode == 69
    done = call("slow", "--timeout", "0.05", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (75, "deadline_exceeded")
    done = call("forbidden", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (77, "not_permitted")
    assert samehost("call", "a b", "m").returncode == 2
    assert samehost("call", place / "s").returncode == 2


def test_a_call_that_is_interrupted_ends_at_once(place: Path) -> None:
    (place / "thing.py").write_text(SERVICE)
    with serving(place / "s", "thing:thing") as server:
        with Program([*SAMEHOST, "call", str(place / "s"), "slow"]) as program:
            assert server.line() == "slow"
            program.signal(signal.SIGINT)
            assert program.end() == 130
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_notification_has_no_answer(place: Path) -> None:
    (place / "thing.py").write_text(SERVICE)
    with serving(place / "s", "thing:thing") as server:
        done = samehost("call", place / "s", "told", "text=hello", "--notify", "--json")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert server.line() == "told hello"


def test_it_waits_for_a_server_that_is_not_there_yet(place: Path) -> None:
    (place / "thing.py").write_text(SERVICE)
    with (
        Program([*SAMEHOST, "call", str(place / "s"), "odd name", "a=1", "b=2", "--wait", "20"]) as caller,
        serving(place / "s", "thing:thing"),
    ):
        assert caller.line() == "3"


def test_who_may_be_serving(call: Call) -> None:
    assert call("nothing", "--trust", f"uid={os.geteuid()}").returncode == 0
    done = call("nothing", "--trust", f"uid={NOBODY}", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (77, "untrusted_server")


def test_it_imports_nothing_that_a_call_does_not_need(socket: Path) -> None:
    program = f"""
import sys
from samehost.cli import main
assert main(["call", {str(socket)!r}, "odd name", "a=1", "b=2"]) == 0
heavy = {{"asyncio", "logging", "rich", "subprocess", "concurrent.futures", "argparse", "ctypes", "dataclasses"}}
heavy |= {{"pickle", "base64"}}
kernel = "arena attaching blob memory owners sharing sock_diag".split()
heavy |= {{f"samehost.kernel.{{name}}" for name in kernel}} | {{"samehost.protocol.lines", "samehost.blocking.stream"}}
heavy |= {{"samehost.service.signature", "samehost.service.topic"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = run([sys.executable, "-c", program])
    assert done.stdout == b"3\n['argparse']\n", done.stderr
