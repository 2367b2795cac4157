"""Annotations as the contract of a method: what is read from a function, and what is refused when it is declared."""

from __future__ import annotations

import abc
import collections.abc
import datetime as dt
import decimal
import enum
import functools
import socket
import sys
import typing
import uuid
from collections import namedtuple
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import samehost
import samehost.aio
from samehost import Call, File, Peer
from samehost.errors import SignatureError
from samehost.service import signature
from samehost.service.signature import MISSING, Items, NoStream, Parameter

if TYPE_CHECKING:
    from fractions import Fraction


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int = 0


class Movie(TypedDict, total=False):
    title: str


@dataclass
class Inventory:
    items: dict[str, int] = field(default_factory=dict)


class Node(msgspec.Struct):
    below: list[Node] = []


class Unfinished(msgspec.Struct):
    ratio: Fraction


def contract(kind: Any, **options: Any) -> signature.Signature:
    """That of a function with one parameter `x`."""

    def function(x): ...

    function.__annotations__ = {"x": kind}
    return signature.read(function, **options)


def refusal(function: Any, **options: Any) -> str:
    with pytest.raises(SignatureError) as caught:
        signature.read(function, **options)
    return str(caught.value)


def refusal_of(kind: Any) -> str:
    with pytest.raises(SignatureError) as caught:
        contract(kind)
    return str(caught.value)


# What is read.


def test_parameters_have_types_defaults_and_whether_they_go_by_name_alone():
    def get(
        first: int, /, key: str, caller: Peer, default: str | None = None, *, call: Call, fresh: bool = False
    ) -> bytes: ...

    found = signature.read(get)
    assert found.parameters == (
        Parameter("first", int, MISSING, False),
        Parameter("key", str, MISSING, False),
        Parameter("default", str | None, None, False),
        Parameter("fresh", bool, False, True),
    )
    assert found.layout == (
        ("first", None, False),
        ("key", None, False),
        ("caller", Peer, False),
        ("default", None, False),
        ("call", Call, True),
        ("fresh", None, True),
    )
    assert found.result is bytes
    assert found.text == "(first: int, /, key: str, default: str | None = None, *, fresh: bool = False) -> bytes"


def test_a_result_that_is_not_declared_may_be_anything():
    def get(): ...

    found = signature.read(get)
    assert found.result is Any
    assert found.text == "()"


def test_none_is_written_as_python_writes_it():
    def get(nothing: None) -> None: ...

    found = signature.read(get)
    assert found.text == "(nothing: None) -> None"
    assert found.result is type(None)


def test_annotations_are_the_same_as_strings_and_as_objects():
    def as_strings(when: dt.datetime, zone: str = "UTC") -> list[Point]: ...

    def as_objects(when, zone="UTC"): ...

    as_objects.__annotations__ = {"when": dt.datetime, "zone": str, "return": list[Point]}
    assert signature.read(as_strings) == signature.read(as_objects)
    assert signature.read(as_strings).text.startswith("(when: datetime.datetime, zone: str = 'UTC') -> list[")


def test_forward_references_within_a_type_are_resolved():
    assert contract(list["Node"]).parameters[0].kind == list[Node]
    assert contract("dict[str, 'Node']").parameters[0].kind == dict[str, Node]


def test_constraints_stay_with_their_type():
    kind = Annotated[int, msgspec.Meta(gt=0)]
    assert contract(kind).parameters[0].kind == kind
    assert contract(kind).text == "(x: int)"
    assert contract(list[kind]).text == "(x: list[int])"
    assert contract(dict[str, kind] | None).text == "(x: dict[str, int] | None)"


@pytest.mark.parametrize(
    "kind",
    [
        *(int, float, str, bool, bytes, bytearray, memoryview, list, dict, set, frozenset, tuple, type(None), Any),
        *(dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal),
        *(Colour, Level, Point, Movie, Inventory, Node, Literal["a", 1], msgspec.Raw),
        *(list[int], dict[str, Node], dict[int, str], set[str], frozenset[int], tuple[int, ...], tuple[int, str]),
        *(int | None, int | str | None, list[int] | dict[str, int], int | float, Node | None),
        *(typing.Sequence[int], typing.Mapping[str, int], collections.abc.Set[int]),
        namedtuple("Old", "x y"),  # noqa: PYI024 - as people have them
    ],
    ids=str,
)
def test_these_types_travel(kind):
    assert contract(kind).parameters[0].kind == kind


@pytest.mark.parametrize(
    "name",
    [
        "self",
        "cls",
        "call",
        "timeout",
        "_x",
        "_",
        "arguments",
        "tag",
        "frozen",
        "gc",
        "kw_only",
        "rename",
        "array_like",
        "weakref",
        "größe",
        "x__",
    ],
)
def test_any_name_that_python_does_not_keep_for_itself_is_one(name):
    names: dict[str, Any] = {}
    exec(f"def function({name}: int, *, also: int = 5): ...", names)
    assert [parameter.name for parameter in signature.read(names["function"]).parameters] == [name, "also"]


# What can be called.


class Counter:
    """Counts."""

    x: float  # no annotation of a parameter

    def __call__(self, x: int, caller: Peer) -> int: ...

    def plain(self, x: int, caller: Peer) -> int: ...

    @classmethod
    def of_class(cls, x: int, caller: Peer) -> int: ...

    @staticmethod
    def of_nobody(x: int, caller: Peer) -> int: ...


def counting(start: str, x: int, caller: Peer) -> int: ...


def logged(function):
    @functools.wraps(function)
    def logging(*arguments, **named):
        return function(*arguments, **named)

    return logging


@pytest.mark.parametrize(
    "function",
    [
        Counter(),
        Counter().plain,
        Counter.of_class,
        Counter.of_nobody,
        vars(Counter)["of_nobody"],
        functools.partial(counting, "start"),
        functools.partial(functools.partial(counting), "start"),
        functools.partial(logged(counting), "start"),
        functools.partial(Counter()),
        logged(logged(Counter.of_nobody)),
        logged(Counter()),
        logged(functools.partial(logged(counting), "start")),
        logged(Counter().plain),
        functools.lru_cache(Counter.of_nobody),
    ],
    ids=lambda one: type(one).__name__,
)
def test_whatever_can_be_called_like_a_function_is_read_like_one(function):
    found = signature.read(function)
    assert found.parameters == (Parameter("x", int, MISSING, False),)
    assert found.layout == (("x", None, False), ("caller", Peer, False))
    assert found.text == "(x: int) -> int"


def test_what_a_partial_gives_by_name_becomes_a_default():
    found = signature.read(functools.partial(counting, x=5))
    assert found.parameters == (Parameter("start", str, MISSING, False), Parameter("x", int, 5, True))
    assert found.layout[-1] == ("caller", Peer, True)


def test_a_decorator_s_own_signature_counts():
    def decorated(*arguments): ...

    decorated.__signature__ = signature.inspect.Signature(
        [signature.inspect.Parameter("x", signature.inspect.Parameter.POSITIONAL_ONLY, annotation="int")]
    )
    assert signature.read(decorated).parameters == (Parameter("x", int, MISSING, False),)


def test_the_body_is_that_of_the_function_that_runs():
    assert signature.body_of(counting) is counting
    assert signature.body_of(functools.partial(functools.partial(counting))) is counting
    counter = Counter()
    assert signature.body_of(counter) == counter.__call__
    assert signature.body_of(counter.plain) == counter.plain


def test_a_class_is_no_method():
    assert refusal(Counter) == "Counter is a class: declare a function that makes one"


def test_a_function_written_in_c_without_a_signature_is_refused():
    assert "dict.update is not a function that can be read: " in refusal({}.update) or "no signature" in refusal(
        {}.update
    )
    assert "parameter 'obj' has no annotation" in refusal(len)


# A client's class.


def test_self_is_left_out():
    def get(self, key: str) -> bytes: ...

    found = signature.read(get, is_bound=True)
    assert found.parameters == (Parameter("key", str, MISSING, False),)
    assert found.text == "(key: str) -> bytes"


def test_a_function_without_self_is_refused():
    def get() -> bytes: ...

    def put(*, key: str) -> None: ...

    assert refusal(get, is_bound=True).endswith("get has no parameter self")
    assert refusal(put, is_bound=True).endswith("put has no parameter self")


# What is refused, with the name of the parameter.


def test_a_parameter_without_a_type_is_refused():
    def get(key, zone: str): ...

    assert refusal(get).endswith("get: parameter 'key' has no annotation: say its type, as in key: str, or Any")


def test_arguments_in_any_number_are_refused():
    def any_positions(key: str, *more: str): ...

    def any_names(**more: str): ...

    def peers(*more: Peer): ...

    assert "parameter 'more' is *more: declare each argument by its name" in refusal(any_positions)
    assert "parameter 'more' is **more: declare each argument by its name" in refusal(any_names)
    assert "parameter 'more' is *more" in refusal(peers)


@pytest.mark.parametrize("name", ["__x", "__init__", "__slots__", "__weakref__"])
def test_names_of_python_s_own_kind_are_refused(name):
    names: dict[str, Any] = {}
    exec(f"def function({name}: int): ...", names)
    assert f"parameter '{name}' begins with two underscores" in refusal(names["function"])


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (object, "object is none of builtins, dataclasses"),
        (complex, "complex: complex is none of"),
        (list[complex], "list[complex]: complex is none of"),
        (dict[str, list[abc.ABC]], "ABC is none of"),
        (collections.abc.Callable[[], int], "is none of"),
        (str | bytes, "more than one str-like type"),
        (dt.datetime | uuid.UUID, "more than one str-like type"),
        (Inventory | Node, "more than one"),
        (typing.NoReturn, "not supported"),
        (typing.ClassVar[int], "not supported"),
        (5, "cannot travel as 5"),
        ([int], "cannot travel as [<class 'int'>]"),
        (Unfinished, "cannot travel as Unfinished: name 'Fraction' is not defined"),
        (Peer | None, "Peer is filled in where it is all that a parameter is annotated with"),
        (list[Call], "Call is filled in where it is all that a parameter is annotated with"),
    ],
    ids=str,
)
def test_a_type_that_cannot_travel_is_refused(kind, told):
    assert "function: parameter 'x' cannot travel as " in refusal_of(kind)
    assert told in refusal_of(kind)


def test_a_result_that_cannot_travel_is_refused():
    def get() -> complex: ...

    def peer() -> Peer: ...

    assert "get: the result cannot travel as complex: complex is none of" in refusal(get)
    assert "peer: the result cannot travel as Peer: Peer is filled in" in refusal(peer)


# Streams.


PLAIN_STREAMS = [
    collections.abc.Iterator[int],
    collections.abc.Iterable[int],
    typing.Iterator[int],
    collections.abc.Generator[int, None, None],
]
ASYNC_STREAMS = [
    collections.abc.AsyncIterator[int],
    collections.abc.AsyncIterable[int],
    typing.AsyncIterator[int],
    collections.abc.AsyncGenerator[int, None],
]


@pytest.mark.parametrize("kind", [*PLAIN_STREAMS, *ASYNC_STREAMS], ids=str)
def test_a_result_that_is_an_iterator_is_a_stream_of_its_items(kind):
    def get(): ...

    get.__annotations__ = {"return": kind}
    found = signature.read(get)
    assert (found.items_out, found.result, found.items_in) == (int, type(None), NoStream)
    assert found.runs_on_loop is (kind in ASYNC_STREAMS)


def test_an_iterator_of_nothing_in_particular_is_a_stream_of_anything():
    def get(items: collections.abc.Iterator) -> collections.abc.Iterator: ...

    found = signature.read(get)
    assert (found.items_in, found.items_out) == (Any, Any)


def test_what_clients_hand_out_is_a_stream_as_well():
    def get() -> samehost.Stream[int]: ...
    def later() -> samehost.aio.Stream[int]: ...

    assert (signature.read(get).items_out, signature.read(get).runs_on_loop) == (int, False)
    assert (signature.read(later).items_out, signature.read(later).runs_on_loop) == (int, True)


def test_a_file_is_no_stream_although_it_can_be_iterated():
    def get(log: typing.BinaryIO) -> typing.IO[bytes]: ...

    found = signature.read(get)
    assert (found.items_in, found.items_out, found.result) == (NoStream, NoStream, typing.IO[bytes])


def test_what_a_generator_returns_is_the_result():
    def get() -> collections.abc.Generator[int, None, str]:
        yield 1
        return "end"

    found = signature.read(get)
    assert (found.items_out, found.result) == (int, str)


def test_a_generator_without_an_annotation_streams_anything():
    def items():
        yield 1

    async def async_items():
        yield 1

    class Items:
        def __call__(self):
            yield 1

    for function in (items, async_items, functools.partial(items), Items()):
        found = signature.read(function)
        assert (found.items_out, found.result, found.runs_on_loop) == (Any, Any, function is async_items)


def test_a_generator_that_says_it_returns_one_value_is_refused():
    def items() -> int:
        yield 1

    async def async_items() -> int:
        yield 1

    assert refusal(items).endswith(" is a stream, as the function has a yield: annotate it as Iterator[int]")
    assert refusal(async_items).endswith("annotate it as AsyncIterator[int]")


@pytest.mark.parametrize("kind", PLAIN_STREAMS, ids=str)
def test_a_parameter_that_is_an_iterator_takes_the_stream_of_the_caller(kind):
    def total(name: str, numbers, *, caller: Peer, rounded: bool = False) -> float: ...

    total.__annotations__["numbers"] = kind
    found = signature.read(total)
    assert (found.items_in, found.stream_parameter, found.items_out) == (int, "numbers", NoStream)
    assert [parameter.name for parameter in found.parameters] == ["name", "rounded"]
    assert found.layout == (
        ("name", None, False),
        ("numbers", Items, False),
        ("caller", Peer, True),
        ("rounded", None, True),
    )
    assert "numbers: " in found.text
    assert "caller" not in found.text


def test_a_coroutine_takes_and_gives_asynchronous_streams_alone():
    async def total(numbers: collections.abc.Iterator[int]) -> int: ...
    async def rows() -> collections.abc.Iterator[int]: ...
    async def echo(items: collections.abc.AsyncIterator[int]) -> collections.abc.AsyncIterator[int]: ...

    told = "parameter 'numbers' is collections.abc.Iterator[int]: an async def takes its stream as an AsyncIterator"
    assert told in refusal(total)
    assert "what an async def streams is an AsyncIterator" in refusal(rows)
    assert signature.read(echo).runs_on_loop


def test_a_plain_function_takes_plain_streams_unless_it_gives_an_asynchronous_one():
    def total(numbers: collections.abc.AsyncIterator[int]) -> int: ...
    def echo(items: collections.abc.AsyncIterator[int]) -> collections.abc.AsyncIterator[int]: ...

    assert "a def takes its stream as an Iterator" in refusal(total)
    assert signature.read(echo).runs_on_loop


def test_streams_that_cannot_be_are_refused():
    def two(one: collections.abc.Iterator[int], other: collections.abc.Iterator[int]) -> int: ...
    def by_default(numbers: collections.abc.Iterator[int] = ()) -> int: ...
    def nested(numbers: collections.abc.Iterator[collections.abc.Iterator[int]]) -> int: ...
    def listed(numbers: list[collections.abc.Iterator[int]]) -> int: ...
    def unknown() -> collections.abc.Iterator[complex]: ...
    def strange_end() -> collections.abc.Generator[int, None, complex]: ...

    assert "parameter 'other' is a second stream beside 'one'" in refusal(two)
    assert "parameter 'numbers' is a stream, which has no default" in refusal(by_default)
    assert "parameter 'numbers', each item, is a stream" in refusal(nested)
    assert "parameter 'numbers' cannot travel as list[" in refusal(listed)
    assert "the result, each item, cannot travel as complex" in refusal(unknown)
    assert "the result, at the end, cannot travel as complex" in refusal(strange_end)


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        ("Fraction", "name 'Fraction' is not defined: import it, or define it, at the module's top"),
        ("list[Fraction]", "name 'Fraction' is not defined"),
        ("dt.datetim", "has no attribute 'datetim'"),
        ("a b", "'a b'"),
        ("int | 'str'", "unsupported operand"),
        ("1 / 0", "division by zero"),
    ],
)
def test_an_annotation_that_cannot_be_read_is_refused(annotation, told):
    def get(key: int, ratio): ...

    get.__annotations__["ratio"] = annotation
    assert "get: parameter 'ratio' cannot be read: " in refusal(get)
    assert told in refusal(get)
    get.__annotations__ = {"key": "int", "ratio": int, "return": annotation}
    assert "get: the result cannot be read: " in refusal(get)


def test_a_class_of_a_function_cannot_be_found_by_its_name():
    class Local(msgspec.Struct):
        pass

    def get(key: Local): ...

    assert "parameter 'key' cannot be read: name 'Local' is not defined" in refusal(get)


@pytest.mark.parametrize(
    "default", [object(), 1j, 2**70, "\udc80", {"x": {1j}}, {(1, 2): 3}], ids=lambda value: type(value).__name__
)
def test_a_default_that_cannot_travel_is_refused(default):
    def get(key: Any = default): ...

    assert "get: parameter 'key' has the default " in refusal(get)
    assert "which cannot travel: " in refusal(get)


def test_a_default_within_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)

    def get(key: list[Any] = endless): ...

    assert "parameter 'key' has the default [[...]], which cannot travel" in refusal(get)


def test_the_default_of_what_is_filled_in_does_not_matter():
    def get(caller: Peer = None, call: Call = object()): ...  # noqa: B008

    assert signature.read(get).parameters == ()
    assert signature.read(get).text == "()"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations were evaluated with the def before")
def test_the_parameter_is_named_where_annotations_wait():
    names: dict[str, Any] = {}
    exec(compile("def get(key: int, ratio: Missing): ...", "x", "exec", dont_inherit=True), names)
    assert "get: parameter 'ratio' cannot be read: name 'Missing' is not defined" in refusal(names["get"])


def test_files_blobs_and_arrays_travel_anywhere_in_a_value():
    @dataclass
    class Picture:
        pixels: samehost.Blob
        raw: NDArray[np.uint8]

    def put(file: File, log: typing.BinaryIO, tap: socket.socket | None, all: list[Picture]) -> np.ndarray: ...

    put.__annotations__["all"] = list[Picture]
    found = signature.read(put)
    assert [parameter.kind for parameter in found.parameters] == [
        File,
        typing.BinaryIO,
        socket.socket | None,
        list[Picture],
    ]
    assert found.result is np.ndarray
