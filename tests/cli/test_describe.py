"""`samehost describe`: what people see of a service, and what programs do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import every_type
import msgspec
import pytest
from serving import on_terminal, samehost, serving

from samehost.codec import MSGPACK
from samehost.service.description import Description, describe


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("describe")
    with serving(place / "s") as server:
        yield place / "s"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_people_see_signatures_documentation_policies_and_types(socket: Path) -> None:
    done = samehost("describe", socket)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith(
        f"every-type on {socket}\n\nplain(a: int, b: float, c: str, d: bool, e: bytes, f: None = None)"
    )
    assert "\n    All of them.\n\n    In two paragraphs.\n    [idempotent; at most 5 s]\n\n" in text
    assert '\nkv.get(key: str, low: float = float("-inf")) -> str\n    [allowed: uid 0, or uid 65534]\n' in text
    assert "\nclose() -> None\n    Hides 'what' \"clients\" have \\ \\x1b[31m\n" in text
    assert '\nclass Color(Enum):\n    """What it looks like."""\n\n    RED = "red"\n' in text
    assert "\n\n\n" not in text
    assert not text.endswith("\n\n")


def test_people_see_streams_topics_files_and_blobs(socket: Path) -> None:
    text = samehost("describe", socket).stdout.decode()
    for line in (
        'leaves(count: int, *, spot: Spot = [1, 0, "red"]) -> Iterator[Node]',
        "spell(text: str) -> Generator[str, None, int]",
        "scaled(label: str, items: Iterable[int], factor: float = 2.0) -> Iterator[tuple[str, float]]",
        "gather(first: int = 0, *, items: Iterable[Spot], last: int) -> list[Spot]",
        "moves() -> Iterator[Spot]\n    Where it is now.\n    [topic, keeps 8 items, drops the oldest]",
        "kv.raw() -> Iterator[bytes]\n    [topic, keeps 1 item, then ends the subscription; allowed: uid 0]",
        "read_files(file: BinaryIO, other: File | None = None, *, more: list[BinaryIO] = []) -> bytes",
        "pair() -> tuple[socket, File]",
        "turned(blob: Blob) -> Blob",
        "sums(items: Iterable[ndarray[Any, dtype[Any]]]) -> Iterator[ndarray[Any, dtype[Any]]]",
    ):
        assert f"\n{line}\n" in text
    text = samehost("describe", socket, "moves").stdout.decode()
    assert "\n\nclass Spot(NamedTuple):\n" in text
    assert "\n\nclass Color(Enum):\n" in text


def test_one_method_has_the_types_that_it_uses(socket: Path) -> None:
    text = samehost("describe", socket, "shape").stdout.decode()
    assert text == (
        "shape(s: Circle | Square) -> Circle | Square | None\n\n"
        'class Circle(Struct, tag="circle"):\n    radius: float\n\n'
        'class Square(Struct, tag="square"):\n    side: float\n    uuid: UUID | None = None\n'
    )


def test_programs_get_all_of_it(socket: Path) -> None:
    received = msgspec.json.decode(samehost("describe", socket, "--json").stdout, type=Description)
    ours = MSGPACK.decode_to(Description)(MSGPACK.encode(describe(every_type.every)))
    assert received.methods.keys() == ours.methods.keys()
    assert received.definitions == ours.definitions
    only = json.loads(samehost("describe", "--json", socket, "tree").stdout)
    assert list(only["methods"]) == ["tree"]
    assert list(only["definitions"]) == ["Color", "Spot", "Node"] or set(only["definitions"]) == {
        "Color",
        "Spot",
        "Node",
    }


def test_a_terminal_shows_the_same(socket: Path) -> None:
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    assert on_terminal("describe", socket, env=plain) == samehost("describe", socket).stdout.decode()


def test_a_method_that_is_not_there(socket: Path) -> None:
    done = samehost("describe", socket, "shap\x1be")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"samehost: shap\\x1be: the service every-type has no such method; it has plain, ")


def test_nobody_there(place: Path) -> None:
    assert samehost("describe", place / "s").returncode == 69


def test_errors_and_limits_are_told(place: Path) -> None:
    (place / "sizes.py").write_text(
        "import samehost, typing, msgspec\n"
        "sizes = samehost.Service('sizes')\n"
        "@sizes.method(errors={KeyError: 'sizes.none', IndexError: 'sizes.many'})\n"
        "def get(size: typing.Annotated[int, msgspec.Meta(ge=1)]) -> int: ..."
    )
    with serving(place / "s", "sizes"):
        told = samehost("describe", place / "s").stdout.decode()
        assert told.endswith("get(size: int) -> int\n    [size >= 1; errors: sizes.none, sizes.many]\n")
        written = json.loads(samehost("describe", place / "s", "--json").stdout)["methods"]["get"]
        assert written["errors"] == ["sizes.none", "sizes.many"]
        assert written["parameters"][0]["schema"] == {"type": "integer", "minimum": 1}


def test_a_policy_of_the_service_is_told(place: Path) -> None:
    (place / "private.py").write_text(
        "import samehost; private = samehost.Service('private', allow=samehost.allow(uid=[0, 65534]))"
    )
    with serving(place / "s", "private"):
        assert samehost("describe", place / "s").stdout.decode() == f"private on {place}/s\nAllowed: uid 0 or 65534\n"
