"""Typed clients' classes written from what a service says of itself, however hostile that is."""

from __future__ import annotations

import ast
import asyncio
import datetime as dt
import decimal
import importlib.util
import keyword
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import every_type
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving
from support import run

import samehost
from samehost.codec import MSGPACK
from samehost.errors import InvalidArguments, UsageError
from samehost.service.description import (
    Description,
    MethodDescription,
    ParameterDescription,
    TopicDescription,
    describe,
    read_description,
)
from samehost.service.stub import notation, source_of

RESERVED = [name for name in dir(samehost.Client) if not name.startswith("_")]
ROOT = Path(__file__).parent.parent.parent


def stub_of_every_type(**options: Any) -> str:
    return source_of(read_description(MSGPACK.encode(describe(every_type.every))), "", RESERVED, **options)


def described(*methods: MethodDescription, **definitions: dict[str, Any]) -> Description:
    return Description("thing", {method.name: method for method in methods}, definitions)


def method(name: str, *parameters: ParameterDescription, result: Any = None, **more: Any) -> MethodDescription:
    return MethodDescription(name, "()", list(parameters), result or {"type": "null"}, **more)


def parameter(name: str, schema: dict[str, Any], *default: Any, **more: Any) -> ParameterDescription:
    return ParameterDescription(name, schema, not default, *default, **more)


def source(description: Description, name: str = "", **options: Any) -> str:
    written = source_of(description, name, RESERVED, **options)
    compile(written, "stub.py", "exec")
    return written


def signature(schema: dict[str, Any], *default: Any, **definitions: dict[str, Any]) -> str:
    """How a parameter of this type is written."""
    written = source(described(method("m", parameter("x", schema, *default)), **definitions))
    return written.partition("def m(self, ")[2].partition(") -> None:")[0]


@pytest.fixture
def stubs(place: Path) -> Iterator[dict[str, ModuleType]]:
    """Both classes for the service of every type, as modules."""
    found = {}
    for name, is_async in (("stub_blocking", False), ("stub_asyncio", True)):
        path = place / f"{name}.py"
        path.write_text(stub_of_every_type(is_async=is_async))
        spec = importlib.util.spec_from_file_location(name, path)
        found[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    yield found
    for name in found:
        del sys.modules[name]


USE = """
import collections.abc
import datetime
import decimal
import socket
import typing
import uuid
from typing import assert_type

import numpy
import samehost
import samehost.aio
from stub_asyncio import EveryType as Async
from stub_blocking import Circle, Color, EveryType, Level, Node, Options, Pair_int, Pair_str, Person, Spot, Square


def use(client: EveryType) -> None:
    assert_type(client.plain(1, 2.0, "c", True, b"e"), tuple[int, float, str, bool, bytes, None])
    assert_type(client.kv_get(key="k", low=1), str)
    assert_type(client.shape(Circle(1.0)), Circle | Square | None)
    assert_type(client.tree(Node(1, [Node(2)]), "x", [1], object())[0].parent, Node | None)
    assert_type(client.times(datetime.datetime.now(), datetime.date.today(), datetime.time())[4], uuid.UUID)
    person = client.person(Person("n", datetime.date.today()), options=Options(Level.LOW), mode=1, color=Color.RED)
    assert_type(person[0].money, decimal.Decimal)
    client.close_()
    client.close()
    for leaf in client.leaves(2):
        assert_type(leaf, Node)
    assert_type(client.spell("ab"), collections.abc.Generator[str, None, int])
    assert_type(list(client.scaled("a", [1, 2], factor=3)), list[tuple[str, float]])
    assert_type(client.area([Circle(1.0), Square(2.0)]), float)
    client.gather(1, items=(Spot(one) for one in range(3)), last=2)
    for spot in client.moves():
        assert_type(spot, Spot)
    with open("x", "rb") as file:
        client.read_files(file, None, more=[file])
    assert_type(client.pair(), tuple[socket.socket, samehost.File])
    assert_type(client.turned(samehost.Blob(b"x")).view, memoryview)
    for total in client.sums([numpy.zeros(3)]):
        assert_type(total.sum(), typing.Any)
    client.area(["1"])  # type: ignore[list-item]
    client.plain("1", 2.0, "c", True, b"e")  # type: ignore[arg-type]
    client.person(Person("n", datetime.date.today()), Options(Level.LOW))  # type: ignore[call-arg]


async def use_asyncio(client: Async) -> None:
    assert_type(await client.kv_get("k"), str)
    async for leaf in client.leaves(2):
        assert_type(leaf.value, int)
    async for letter in client.spell("ab"):
        assert_type(letter, str)
    async for pair in client.scaled("a", numbers()):
        assert_type(pair, tuple[str, float])
    client.scaled("a", [1])  # type: ignore[arg-type]


async def numbers() -> collections.abc.AsyncIterator[int]:
    yield 1


def connect() -> None:
    with samehost.connect("x", EveryType) as client:
        use(client)
"""


def test_type_checkers_know_every_type(place: Path) -> None:
    (place / "stub_blocking.py").write_text(stub_of_every_type())
    (place / "stub_asyncio.py").write_text(stub_of_every_type(is_async=True))
    (place / "use.py").write_text(USE)
    files = ["stub_blocking.py", "stub_asyncio.py", "use.py"]
    options = ["--strict", "--warn-unused-ignores", "--config-file=", f"--cache-dir={ROOT}/build/mypy-stubs"]
    checked = run([sys.executable, "-m", "mypy", *options, *files], cwd=place)
    assert checked.returncode == 0, checked.stdout.decode()


@pytest.mark.parametrize("is_async", [False, True])
def test_it_is_formatted_and_sorted_as_ruff_would(place: Path, is_async: bool) -> None:
    (place / "stub.py").write_text(stub_of_every_type(is_async=is_async))
    for command in (["format", "--diff"], ["check", "--select", "E,F,I,UP,W"]):
        checked = run([sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "stub.py"], cwd=place)
        assert checked.returncode == 0, checked.stdout.decode()


def test_it_is_the_same_each_time() -> None:
    assert stub_of_every_type() == stub_of_every_type()


def test_it_works_with_the_service(place: Path, stubs: dict[str, ModuleType]) -> None:
    m = stubs["stub_blocking"]
    with serving(place / "s"), samehost.connect(place / "s", m.EveryType) as client:
        assert client.plain(1, 2, "c", d=True, e=b"\xff") == (1, 2.0, "c", True, b"\xff", None)
        now = dt.datetime.now(dt.UTC)
        today, noon, short = now.date(), dt.time(12), dt.timedelta(seconds=90)
        assert client.times(now, today, noon) == (now, today, noon, short, uuid.UUID(int=1), decimal.Decimal("1.5"))
        containers = [1], {"a": 1}, {1}, {"b"}, [2], (1, "c"), {7: "d"}
        assert client.containers(*containers, {uuid.uuid4(): [m.Node(1)]}) == containers
        person = m.Person("n", today, other=[2])
        assert client.person(person, options=m.Options(m.Level.HIGH)) == (
            person,
            m.Options(m.Level.HIGH),
            m.Color.GREEN,
        )
        assert client.shape(m.Circle(1.0)) == m.Circle(1.0)
        assert client.shape(m.Square(2.0, uuid.UUID(int=3))) == m.Square(2.0, uuid.UUID(int=3))
        assert client.shapes({m.Circle(1.0)}) == ({m.Circle(1.0)}, m.Spot(1), m.Row(1))
        tree, x = client.tree(m.Node(1, [m.Node(2)], m.Node(3)), "x")
        assert (tree.children[0].value, tree.parent.value, tree.best, x) == (2, 3, m.Spot(7), "x")
        assert tree.spots == [m.Spot(1)]
        assert client.list(m.Pair_int(1, 2), m.Camel(class_="c")) == ([m.Pair_int(1, 2)], m.Camel(class_="c"))
        assert client.strings(m.Pair_str("a", "b")) == "abx"
        assert client.kv_get("k") == "k"
        assert client.close_() is None
        with pytest.raises(InvalidArguments, match=r"\$\.limited"):
            client.strings(p=m.Pair_str("a", "b"), limited="too long")


async def test_it_works_with_the_service_in_asyncio(place: Path, stubs: dict[str, ModuleType]) -> None:
    m = stubs["stub_asyncio"]
    with serving(place / "s"):
        async with await samehost.aio.connect(place / "s", m.EveryType) as client:
            assert await asyncio.gather(client.kv_get("a"), client.kv_get("b")) == ["a", "b"]
            assert await client.shape(m.Circle(1.0)) == m.Circle(1.0)


def test_streams_work_with_the_service(place: Path, stubs: dict[str, ModuleType]) -> None:
    m = stubs["stub_blocking"]
    with serving(place / "s"), samehost.connect(place / "s", m.EveryType) as client:
        assert [(leaf.value, leaf.best) for leaf in client.leaves(2, spot=m.Spot(3))] == [
            (0, m.Spot(3)),
            (1, m.Spot(3)),
        ]
        spelt = client.spell("abc")
        assert (list(spelt), spelt.result) == (["a", "b", "c"], 3)
        assert list(client.scaled("a", [1, 2])) == [("a", 2.0), ("a", 4.0)]
        assert list(client.scaled("a", items=iter([1]), factor=0.5)) == [("a", 0.5)]
        assert client.area([m.Circle(1.0), m.Square(2.0)], unit=m.Level.HIGH) == 14.0
        assert client.gather(1, items=[m.Spot(2)], last=3) == [m.Spot(1), m.Spot(2), m.Spot(3)]
        with client.moves() as moves:
            assert client.move(m.Spot(5, 6)) == 1
            assert next(moves) == m.Spot(5, 6)
        with pytest.raises(InvalidArguments, match=r"\$\.items\[1\]"):
            list(client.scaled("a", [1, "2"]))


async def test_streams_work_with_the_service_in_asyncio(place: Path, stubs: dict[str, ModuleType]) -> None:
    m = stubs["stub_asyncio"]
    with serving(place / "s"):
        async with await samehost.aio.connect(place / "s", m.EveryType) as client:
            assert [leaf.value async for leaf in client.leaves(2)] == [0, 1]
            spelt = client.spell("abc")
            assert ([letter async for letter in spelt], spelt.result) == (["a", "b", "c"], 3)
            assert [pair async for pair in client.scaled("a", [1, 2])] == [("a", 2.0), ("a", 4.0)]
            assert await client.gather(items=[m.Spot(2)], last=3) == [m.Spot(0), m.Spot(2), m.Spot(3)]
            async with client.moves() as moves:
                assert await client.move(m.Spot(5)) == 1
                assert await anext(moves) == m.Spot(5)


def test_files_blobs_and_arrays_work_with_the_service(place: Path, stubs: dict[str, ModuleType]) -> None:
    m = stubs["stub_blocking"]
    (place / "file").write_bytes(b"content")
    with serving(place / "s"), samehost.connect(place / "s", m.EveryType) as client:
        with open(place / "file", "rb") as one, samehost.File(os.open(place / "file", os.O_RDONLY)) as other:
            assert client.read_files(one, other, more=[]) == b"content|content"
        ours, theirs = client.pair()
        with ours, theirs.socket() as other_end:
            ours.sendall(b"hello")
            assert other_end.recv(5) == b"hello"
        assert bytes(client.turned(samehost.Blob(b"abc"))) == b"cba"
        big = bytes(1_000_000) + b"x"
        assert bytes(client.turned(samehost.Blob(big))) == big[::-1]
        (total,) = client.sums([np.arange(6).reshape(2, 3)])
        assert total.tolist() == [3, 5, 7]


def test_what_the_service_says_is_in_the_class(stubs: dict[str, ModuleType]) -> None:
    m = stubs["stub_blocking"]
    remote = m.EveryType.remote_methods
    assert set(remote) == {*every_type.every.methods, *every_type.every.topics}
    assert m.EveryType.moves.__doc__.split("\n\n")[1].strip() == "A topic: keeps 8 items, drops the oldest."
    assert remote["plain"].is_idempotent
    assert not remote["times"].is_idempotent
    assert m.EveryType.plain.__doc__.split() == ["All", "of", "them.", "In", "two", "paragraphs."]
    assert m.EveryType.kv_get.__doc__ == "Allowed: uid 0, or uid 65534."
    assert m.EveryType.close_.__doc__ == "Hides 'what' \"clients\" have \\ \x1b[31m"
    assert m.Node.__doc__.startswith("A tree.\n")
    assert m.Color.GREEN.value == 'it\'s "green"'


# What hides what


def test_names_that_python_or_a_client_has_are_called_otherwise() -> None:
    names = ["close", "class", "_private", "__init__", "kv.get", "kv_get", "1st", "ﬁne", "", "ok", "describe"]
    names += ["a b", "a-b", "a+b", "a/b"]
    written = source(described(*(method(name) for name in names)))
    functions = [one.name for one in ast.walk(ast.parse(written)) if isinstance(one, ast.FunctionDef)]
    assert len(set(functions)) == len(names)
    assert not {*functions} & {*RESERVED}
    assert all(name.isidentifier() and not keyword.iskeyword(name) and name[0] != "_" for name in functions)
    assert {"kv_get", "ok"} <= {*functions}
    space: dict[str, Any] = {}
    exec(written, space)
    assert set(space["Thing"].remote_methods) == set(names)


@pytest.mark.parametrize(
    "name", ["list", "dict", "set", "str", "int", "bool", "bytes", "tuple", "float", "uuid", "typing"]
)
def test_a_method_hides_no_type(name: str) -> None:
    kinds: list[dict[str, Any]] = [
        {"type": "array"},
        {"type": "object", "x-keys": {"type": "integer"}},
        {"type": "array", "uniqueItems": True},
        {"type": "string", "format": "uuid"},
        {"type": "string", "contentEncoding": "base64"},
        {"type": "array", "prefixItems": [{"type": "number"}, {"type": "boolean"}]},
        {},
    ]
    parameters = [parameter(f"p{number}", kind) for number, kind in enumerate(kinds)]
    written = source(described(method(name, *parameters)))
    annotations = [
        ast.dump(one.annotation) for one in ast.walk(ast.parse(written)) if isinstance(one, ast.arg) and one.annotation
    ]
    assert not any(f"Name(id='{name}'" in annotation for annotation in annotations)


def test_methods_named_like_modules_hide_none_of_them() -> None:
    names = ["collections", "numpy", "samehost", "socket", "typing"]
    array, link, file = ({"x-samehost": word} for word in ("array", "socket", "file"))
    more = {"items_out": array, "items_in": link, "stream_parameter": "items"}
    written = source(described(*(method(name, parameter("x", file), **more) for name in names)))
    space: dict[str, Any] = {}
    exec(written, space)
    assert set(space["Thing"].remote_methods) == set(names)
    assert "import collections.abc as _abc\nimport socket as _socket\nimport typing as _typing\n" in written
    assert "_samehost.File" in written
    assert "items: _abc.Iterable[_socket.socket]" in written


def test_a_stream_has_the_place_where_it_was_declared() -> None:
    stream = {"items_in": {"type": "integer"}, "stream_parameter": "items"}
    kind = "collections.abc.Iterable[int]"

    def written(*parameters: ParameterDescription, position: int) -> str:
        found = source(described(method("m", *parameters, stream_position=position, **stream)))
        return " ".join(found.partition("def m(")[2].partition(") -> None:")[0].split())

    text = {"type": "string"}
    assert written(parameter("a", text), parameter("b", text, "x"), position=1) == (
        f'self, a: str, items: {kind}, b: str = "x"'
    )
    assert written(parameter("a", text, "x"), position=0) == f'self, items: {kind}, a: str = "x"'
    assert written(parameter("a", text, "x"), position=1) == f'self, a: str = "x", *, items: {kind}'
    assert written(parameter("a", text, keyword_only=True), position=1) == f"self, *, a: str, items: {kind}"
    for position in (-1, 2**63):
        assert "items" in written(parameter("a", text), position=position)


def test_a_stream_that_cannot_be_named_leaves_its_method_out() -> None:
    for name in ("a b", "class", "self", "__x", "a"):
        written = source(described(method("m", parameter("a", {}), stream_parameter=name)))
        assert '# "m" is left out' in written


def test_a_class_is_called_unlike_methods_fields_and_builtins() -> None:
    point = {"type": "object", "properties": {"Point": {"type": "integer"}, "ValueError": {}}, "required": []}
    use = [parameter("a", {"$ref": "#/definitions/Point"}), parameter("b", {"$ref": "#/definitions/str"})]
    written = source(described(method("Thing", *use), Point=point, str=point, Thing=point))
    classes = [one.name for one in ast.walk(ast.parse(written)) if isinstance(one, ast.ClassDef)]
    assert classes == ["Point_", "str_", "Thing_", "Thing"]
    assert "a: Point_, b: str_" in written


def test_fields_that_are_no_identifiers_keep_their_names_on_the_wire(stubs: dict[str, ModuleType]) -> None:
    camel = stubs["stub_blocking"].Camel
    assert msgspec.json.decode(msgspec.json.encode(camel(someName=2, class_="x"))) == {"someName": 2, "class": "x"}


def test_an_enum_without_usable_names_has_some() -> None:
    colors = {"enum": ["a", "b"], "x-names": ["mro", "a b"]}
    assert '    mro_ = "a"\n    a_b = "b"\n' in source(described(Color=colors))
    assert "    VALUE_1 = 1\n    VALUE_2 = 2\n" in source(described(Level={"enum": [1, 2]}))


def test_a_method_whose_parameters_cannot_be_named_is_left_out() -> None:
    for names in (["class"], ["self"], ["__x"], ["a b"], ["a", "a"], ["ﬁ"]):
        written = source(described(method("m", *(parameter(name, {}) for name in names)), method("n")))
        assert '# "m" is left out' in written
        assert "def m(" not in written
        assert "def n(" in written


def test_a_parameter_that_is_required_after_one_that_is_not_is_given_by_name() -> None:
    written = source(described(method("m", parameter("a", {}, 1), parameter("b", {}), parameter("c", {}, 2))))
    assert "def m(self, a: typing.Any = 1, *, b: typing.Any, c: typing.Any = 2)" in written


def test_a_class_has_the_name_that_is_asked_for() -> None:
    assert "class Other(samehost.Client):" in source(described(), "Other")
    assert "class MyOwnThing2(" in source(Description("my-own_thing-2", {}))
    assert "class Service3d(" in source(Description("3d", {}))
    for name in ("class", "a b", "", "x\n", "ﬁ"):
        if name:
            with pytest.raises(UsageError, match="cannot be the name of a class"):
                source(described(), name)


# Types and defaults


@pytest.mark.parametrize(
    ("schema", "default", "written"),
    [
        ({"type": "string"}, "it's", 'x: str = "it\'s"'),
        ({"type": "string"}, 'a "b"', "x: str = 'a \"b\"'"),
        ({"type": "string"}, "\n\\\u202e", r'x: str = "\n\\\u202e"'),
        ({"type": "integer"}, -1, "x: int = -1"),
        ({"type": "number"}, float("inf"), 'x: float = float("inf")'),
        ({"type": "boolean"}, True, "x: bool = True"),
        ({"type": "string", "contentEncoding": "base64"}, "AGl0J3M=", 'x: bytes = b"\\x00it\'s"'),
        ({"type": "string", "contentEncoding": "base64"}, "%", 'x: bytes = msgspec.convert("%", bytes)'),
        ({"type": "string", "contentEncoding": "base64"}, "é", 'x: bytes = msgspec.convert("é", bytes)'),
        ({"type": "string", "contentEncoding": "base64"}, 7, "x: bytes = msgspec.convert(7, bytes)"),
        ({"anyOf": [7, {"type": "integer"}]}, 5, "x: typing.Any = 5"),
        ({"type": "array"}, [], "x: list[typing.Any] = []"),
        ({"type": "array", "uniqueItems": True, "items": {"type": "integer"}}, [], "x: set[int] = set()"),
        ({"type": "object"}, {}, "x: dict[str, typing.Any] = {}"),
        ({}, None, "x: typing.Any = None"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, "x: int | None = None"),
        ({"type": "array", "items": {"type": "integer"}}, [1], "x: list[int] = msgspec.convert([1], list[int])"),
        (
            {"type": "string", "format": "date"},
            "2020-01-01",
            'x: datetime.date = datetime.date.fromisoformat("2020-01-01")',
        ),
        ({"enum": ["a", 1]}, "a", 'x: typing.Literal["a", 1] = "a"'),
    ],
)
def test_a_default_is_of_its_type(schema: dict[str, Any], default: Any, written: str) -> None:
    assert signature(schema, default) == written


def test_an_element_that_may_be_missing_is_none_if_nothing_else_is_known() -> None:
    row = {"type": "array", "prefixItems": [{"type": "integer"}], "x-names": ["a"], "minItems": 0, "maxItems": 1}
    assert "class Row(typing.NamedTuple):\n    a: int = None\n" in source(described(Row=row))


def test_what_is_in_sets_can_be_hashed() -> None:
    point = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}, "required": []}
    written = source(
        described(
            method("m", parameter("x", {"type": "array", "uniqueItems": True, "items": {"$ref": "#/definitions/P"}})),
            P=point,
        )
    )
    assert "class P(msgspec.Struct, frozen=True):\n    tags: tuple[str, ...] | msgspec.UnsetType" in written
    assert signature({"type": "array", "uniqueItems": True, "items": {"type": "array", "uniqueItems": True}}) == (
        "x: set[frozenset[typing.Any]]"
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "bogus"},
        {"type": ["string"]},
        {"enum": []},
        {"enum": [{}]},
        {"enum": [True]},
        {"anyOf": []},
        {"$ref": "#/definitions/Nowhere"},
        {"$ref": "#/definitions/Odd"},
        {"$ref": 7},
        {"const": {}},
        {"x-samehost": "of a later version"},
        {"x-samehost": ["file"]},
    ],
)
def test_what_cannot_be_said_is_anything(schema: dict[str, Any]) -> None:
    assert signature(schema, Odd={"$ref": "#/definitions/Odd"}) == "x: typing.Any"


def test_a_chain_of_many_definitions_is_no_trouble() -> None:
    count = 5_000
    chain = {
        f"D{number}": {
            "type": "object",
            "properties": {"next": {"$ref": f"#/definitions/D{number + 1}"}},
            "required": [],
        }
        for number in range(count)
    }
    assert source(described(**chain)).count("class D") == count


# Hostile descriptions

EVIL = '"""\n\'\'\'\\\nimport os; os.system("touch pwned") # \x00\u2028\u202e'

texts = st.one_of(
    st.sampled_from(
        [EVIL, '"', "\\", '"""', "'''", "\\'", "a\nb", "x: int = evil()", "import os", "class", "{evil()}"]
    ),
    st.text(max_size=8),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), texts, st.binary(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
names = st.one_of(texts, st.sampled_from(["A", "B", "list", "str", "close", "self", "uuid", "datetime"]))
keywords = [
    "type",
    "format",
    "enum",
    "const",
    "anyOf",
    "items",
    "prefixItems",
    "uniqueItems",
    "properties",
    "required",
    "additionalProperties",
    "x-keys",
    "x-names",
    "x-samehost",
    "contentEncoding",
    "default",
    "description",
    "minItems",
    "maxItems",
]
kinds = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])
beside = st.sampled_from(["file", "io", "socket", "blob", "array", "evil"])
formats = st.sampled_from(["date-time", "uuid", "decimal", "duration", "evil"])
schemas = st.recursive(
    st.one_of(
        st.builds(lambda kind: {"type": kind}, kinds),
        st.builds(lambda of: {"type": "string", "format": of}, formats),
        st.builds(
            lambda word: {"x-samehost": word}, st.sampled_from(["file", "io", "socket", "blob", "array", "evil"])
        ),
        st.builds(lambda name: {"$ref": f"#/definitions/{name}"}, names),
        st.builds(lambda values: {"enum": values}, st.lists(st.one_of(texts, st.integers(0, 9)), max_size=3)),
        st.dictionaries(st.sampled_from(keywords), values, max_size=4),
    ),
    lambda inner: st.one_of(
        st.builds(lambda one, default: {"type": "array", "items": one, "default": default}, inner, values),
        st.builds(lambda one: {"type": "array", "items": one, "uniqueItems": True}, inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, max_size=3)),
        st.builds(
            lambda fields, doc, tag: {
                "type": "object",
                "properties": {**tag, **fields},
                "required": [*fields][:1],
                "description": doc,
            },
            st.dictionaries(names, inner, max_size=3),
            texts,
            st.dictionaries(names, st.builds(lambda text: {"const": text}, texts), max_size=1),
        ),
        st.builds(
            lambda fields: {"type": "array", "prefixItems": [*fields.values()], "x-names": [*fields], "maxItems": 9},
            st.dictionaries(names, inner, max_size=3),
        ),
    ),
    max_leaves=6,
)
descriptions = st.builds(
    Description,
    texts,
    st.dictionaries(
        names,
        st.builds(
            MethodDescription,
            texts,
            texts,
            st.lists(st.builds(ParameterDescription, names, schemas, st.booleans(), values, st.booleans()), max_size=3),
            schemas,
            texts,
            texts,
            st.booleans(),
            items_out=st.none() | schemas,
            items_in=st.none() | schemas,
            stream_parameter=st.just("") | names,
            stream_position=st.integers(-(2**70), 2**70) | st.integers(0, 3),
            topic=st.none() | st.builds(TopicDescription, st.integers(), texts),
        ),
        max_size=3,
    ),
    st.dictionaries(names, schemas, max_size=3),
    texts,
)

CALLED = {"convert", "field", "named", "float", "set", "frozenset", "fromisoformat", "UUID", "Decimal"}


def assert_harmless(written: str) -> None:
    """Nothing runs when the module is imported but what a stub is made of."""
    module = ast.parse(written)
    assert all(isinstance(one, ast.Expr | ast.Import | ast.ImportFrom | ast.ClassDef) for one in module.body)
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {*MODULES}
        elif isinstance(node, ast.ImportFrom):
            assert node.module == "__future__"
        elif isinstance(node, ast.Call):
            assert (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) in CALLED
        elif isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant)
            assert isinstance(node.value.value, str)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert isinstance(node.body[-1], ast.Raise)
            assert len(node.body) <= 2
        else:
            assert not isinstance(node, FORBIDDEN), ast.dump(node)


MODULES = [
    "builtins",
    "collections.abc",
    "datetime",
    "decimal",
    "enum",
    "msgspec",
    "numpy",
    "samehost",
    "socket",
    "typing",
    "uuid",
]
FORBIDDEN = (
    ast.NamedExpr,
    ast.Await,
    ast.Yield,
    ast.JoinedStr,
    ast.comprehension,
    ast.Assert,
    ast.Delete,
    ast.If,
    ast.Try,
)


@settings(max_examples=300, deadline=None)
@given(descriptions, st.booleans())
def test_nothing_that_a_service_says_can_run(description: Description, is_async: bool) -> None:
    written = source_of(description, "Safe", RESERVED, is_async=is_async)
    assert_harmless(written)
    assert all(line.isprintable() for line in written.split("\n"))


@settings(max_examples=100, deadline=None)
@given(descriptions)
def test_any_description_can_be_shown(description: Description) -> None:
    shown = notation(description)
    assert set(shown.signatures) == set(description.methods)


def test_an_evil_text_everywhere_stays_a_text() -> None:
    evil = {"type": "string", "default": EVIL, "description": EVIL, "format": EVIL}
    record = {"type": "object", "properties": {EVIL: evil, "a": evil}, "required": [], "description": EVIL}
    description = Description(
        EVIL,
        {
            EVIL: method(
                EVIL, parameter("a", evil, EVIL), result={"$ref": f"#/definitions/{EVIL}"}, doc=EVIL, allow=EVIL
            )
        },
        {EVIL: record, "E": {"enum": [EVIL], "x-names": [EVIL]}},
        EVIL,
    )
    written = source(description)
    assert_harmless(written)
    identifiers = {one.id for one in ast.walk(ast.parse(written)) if isinstance(one, ast.Name)}
    assert "os" not in identifiers


def test_people_see_types_and_defaults_as_they_would_write_them() -> None:
    shown = notation(read_description(MSGPACK.encode(describe(every_type.every))))
    assert shown.signatures["times"].startswith('times(a: datetime, b: date, c: time, d: timedelta = "PT90S", e: UUID')
    assert shown.signatures["list"] == "list(p: Pair_int, camel: Camel) -> tuple[list[Pair_int], Camel]"
    assert shown.types["Camel"] == ["class Camel(Struct, kw_only=True):", "    someName: int = 1", "    class: str"]
    assert "    spots: list[Spot] = …" in shown.types["Node"]
