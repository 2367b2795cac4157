"""`samehost call` with what travels beside the bytes: files, blobs and arrays."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from serving import on_terminal, samehost, serving
from support import SAMEHOST, run

SERVICE = """
import os, socket, tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO
import numpy as np
import samehost

depot = samehost.Service("depot")

@depot.method
def start(file: BinaryIO, count: int = 3) -> bytes:
    return file.read(count)

@depot.method
def take(file: samehost.File) -> bytes:
    return os.read(file.fileno(), 3)

@depot.method
def name_of(file: samehost.File | None = None) -> str:
    return "none" if file is None else os.readlink(f"/proc/self/fd/{file.fileno()}")

@depot.method
def is_readable(link: socket.socket) -> str:
    return link.recv(5).decode()

@depot.method
def made(text: str) -> samehost.File:
    path = tempfile.mkdtemp() + "/made"
    with open(path, "w") as file:
        file.write(text)
    return samehost.File(os.open(path, os.O_RDONLY))

@depot.method
def some(texts: list[str]) -> Iterator[samehost.File]:
    for text in texts:
        yield made(text)

@depot.method
def nested() -> dict[str, Any]:
    return {"file": made("x"), "blob": samehost.Blob(b"abc")}

@depot.method
def turned(blob: samehost.Blob) -> samehost.Blob:
    return samehost.Blob(bytes(blob)[::-1])

@depot.method
async def lengths(blobs: AsyncIterator[samehost.Blob]) -> list[int]:
    return [len(blob) async for blob in blobs]

@depot.method
async def files(items: AsyncIterator[samehost.File]) -> None: ...

@depot.method
def doubled(array: np.ndarray) -> np.ndarray:
    return array * 2

@depot.method
def ramp(count: int, kind: str = "int16") -> np.ndarray:
    return np.arange(count).astype(kind)

@depot.method
def by_place() -> dict[Any, int]:
    return {(1, 2): 3}

@depot.method
def large(data: bytes) -> bytes:
    return data[::-1]
"""

Call = Callable[..., "CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("depot")
    (place / "depot.py").write_text(SERVICE)
    with serving(place / "s", "depot") as server:
        yield place / "s"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.fixture
def call(socket: Path) -> Call:
    return lambda *words, **options: samehost("call", socket, *words, **options)


def printed(done: CompletedProcess[bytes]) -> bytes:
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


# Files


def test_a_file_is_passed_open(call: Call, place: Path) -> None:
    (place / "file").write_text("content")
    assert printed(call("start", f"file=@{place}/file")) == b"con"
    assert printed(call("start", "count=4", f"file=@{place}/file")) == b"cont"
    assert printed(call("name_of", f"file=@{place}/file")) == f"{place}/file\n".encode()
    assert printed(call("name_of", "file=null")) == b"none\n"


def test_standard_input_itself_is_passed(call: Call, socket: Path, place: Path) -> None:
    (place / "file").write_text("content")
    command = f"(head -c 0; {' '.join(SAMEHOST)} call {socket} take file=-; cat) < {place}/file"
    assert run(["/bin/sh", "-c", command]).stdout == b"content"  # what the method left, others have
    assert printed(call("take", "file=-", input=b"piped")) == b"pip"


def test_a_socket_is_passed(socket: Path) -> None:
    import socket as sockets

    ours, theirs = sockets.socketpair()
    with ours, theirs:
        ours.sendall(b"hello")
        done = subprocess.run(
            [*SAMEHOST, "call", str(socket), "is_readable", "link=-"], stdin=theirs, capture_output=True, check=False
        )
    assert (done.stdout, done.stderr) == (b"hello\n", b"")


def test_a_fifo_is_opened_without_waiting_for_its_writer(call: Call, place: Path) -> None:
    os.mkfifo(place / "fifo")
    assert printed(call("name_of", f"file=@{place}/fifo")) == f"{place}/fifo\n".encode()


def test_a_file_that_comes_is_copied(call: Call, socket: Path) -> None:
    assert printed(call("made", "text=hello")) == b"hello"
    assert printed(call("made", "text=-", input=b"x" * 1_000_000)) == b"x" * 1_000_000
    assert printed(call("some", 'texts=["a","bc"]')) == b"abc"
    assert on_terminal("call", socket, "made", "text=hello\n\x1b[31m") == "hello\n\\x1b[31m\n"


def test_as_json_a_file_is_its_name(call: Call) -> None:
    assert json.loads(printed(call("made", "text=x", "--json")))["file"].endswith("/made")
    lines = printed(call("some", 'texts=["a","b"]', "--json")).splitlines()
    assert [json.loads(line)["file"].endswith("/made") for line in lines] == [True, True]
    nested = json.loads(printed(call("nested")))
    assert nested["file"]["file"].endswith("/made")
    assert nested["blob"] == "YWJj"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "file=content"], "file is a file: write file=@PATH, or file=- for standard input"),
        (["start", "file=@/nowhere"], "cannot open /nowhere: No such file or directory"),
        (["start", "file=-", "count=-"], "standard input can be one argument only"),
        (["files", "-"], "items takes items that are no text: call it from a program"),
    ],
)
def test_what_is_no_file(call: Call, words: list[str], message: str) -> None:
    done = call(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", f"samehost: {message}\n".encode())


# Blobs


def test_a_blob_is_given_and_printed_like_bytes(call: Call, socket: Path, place: Path) -> None:
    data = os.urandom(3_000_000)
    (place / "file").write_bytes(data)
    assert printed(call("turned", f"blob=@{place}/file")) == data[::-1]
    assert printed(call("turned", "blob=-", input=data)) == data[::-1]
    assert printed(call("turned", "blob=abc")) == b"cba"
    assert printed(call("turned", 'blob:="YWJj"')) == b"cba"
    assert json.loads(printed(call("turned", "blob=abc", "--json"))) == "Y2Jh"
    assert on_terminal("call", socket, "turned", "blob=abc") == "3 bytes\n"


def test_large_bytes_are_bytes_all_the_same(call: Call) -> None:
    data = os.urandom(3_000_000)
    assert printed(call("large", "data=-", input=data)) == data[::-1]
    assert base64.b64decode(json.loads(printed(call("large", "data=-", "--json", input=data)))) == data[::-1]


def test_blobs_are_streamed_in_pieces(call: Call) -> None:
    lengths = json.loads(printed(call("lengths", "-", input=b"x" * 200_000)))
    assert sum(lengths) == 200_000
    assert max(lengths) <= 65536


def test_what_json_has_nothing_for(call: Call) -> None:
    done = call("by_place")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"samehost: the answer cannot be printed as JSON: ")


# Arrays


def test_an_array_is_read_from_json_or_a_file(call: Call, place: Path) -> None:
    array = json.loads(printed(call("doubled", "array=[[1, 2.5], [3, 4]]")))
    assert (array["dtype"], array["shape"]) == ("<f8", [2, 2])
    assert np.frombuffer(base64.b64decode(array["data"])).tolist() == [2, 5, 6, 8]
    np.save(place / "array.npy", np.arange(3, dtype="int16"))
    array = json.loads(printed(call("doubled", f"array=@{place}/array.npy", "--json")))
    assert (array["dtype"], array["shape"]) == ("<i2", [3])
    assert np.frombuffer(base64.b64decode(array["data"]), "int16").tolist() == [0, 2, 4]


def test_people_see_the_elements_of_a_small_array(socket: Path, place: Path) -> None:
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    shown = json.loads(on_terminal("call", socket, "doubled", "array=[[1, 2], [3, 4]]", env=plain))
    assert shown == {"dtype": "<i8", "shape": [2, 2], "data": [[2, 4], [6, 8]]}
    shown = json.loads(on_terminal("call", socket, "ramp", "count=2000", env=plain))
    assert shown == {"dtype": "<i2", "shape": [2000], "bytes": 4000}
    shown = json.loads(on_terminal("call", socket, "ramp", "count=2", "kind=complex64", env=plain))
    assert shown == {"dtype": "<c8", "shape": [2], "bytes": 16}


def test_without_numpy_arrays_can_be_looked_at_only(call: Call, socket: Path, place: Path) -> None:
    (place / "numpy.py").write_text("raise ImportError('there is no numpy here')")
    without = {**os.environ, "PYTHONPATH": str(place)}
    done = call("doubled", "array=[1]", env=without)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"samehost: array is an array, which needs numpy: install it beside samehost\n"
    assert call("ramp", "count=3", env=without).stdout == call("ramp", "count=3").stdout != b""


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[1, [2]]", b"array is not an array of numbers: "), (b"x", b"array is not JSON: "), (b"\x93NUMPY", b"array is")],
)
def test_what_is_no_array(call: Call, content: bytes, message: bytes) -> None:
    done = call("doubled", "array=-", input=content)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"samehost: " + message)


def test_numpy_is_imported_for_arrays_alone(socket: Path) -> None:
    program = f"""
import sys
from samehost.cli import main
assert main(["call", {str(socket)!r}, "turned", "blob=abc"]) == 0
assert main(["call", {str(socket)!r}, "made", "text=abc"]) == 0
print("numpy" in sys.modules)
"""
    assert run([sys.executable, "-c", program]).stdout == b"cbaabcFalse\n"
