"""From encoded arguments to the call of a function: by name and by position, filled in and left out."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
import inspect
import re
import uuid
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samehost import Call, Peer
from samehost.codec import CODECS, JSON, MSGPACK, CannotDecode
from samehost.service import arguments, signature
from samehost.service.remote import RemoteMethod

PEER = Peer(7, 8, (), 9)


class Endless:
    def left(self) -> float:
        return float("inf")


CALL = Call(PEER, "method", 1, Endless(), {}, None)


@pytest.fixture(params=CODECS.values(), ids=CODECS)
def codec(request):
    return request.param


def called(function, encoded, codec=MSGPACK, contract=None):
    """What the function returns when it is called with these encoded arguments."""
    contract = contract or signature.read(function)
    return arguments.invoker(function, contract)(arguments.reader(contract, codec)(encoded), CALL)


def call(function, codec, *positional, **by_name):
    """The same with values, as both clients send them."""
    remote = RemoteMethod("method", signature.read(function))
    if codec is MSGPACK:
        return called(function, MSGPACK.encode(remote.arguments(positional, by_name)))
    return called(function, codec.encode(remote.arguments(positional, by_name)), codec)


def refusal(function, codec, *positional, **by_name):
    with pytest.raises(CannotDecode) as caught:
        call(function, codec, *positional, **by_name)
    return str(caught.value)


class Spot(msgspec.Struct):
    x: int


def at(zone: str, offset: int = 0):
    return zone, offset


# Given by name and by position.


def test_the_same_arguments_arrive_by_name_by_position_and_mixed(codec):
    expected = ("UTC", 3)
    assert call(at, codec, "UTC", 3) == expected
    assert call(at, codec, zone="UTC", offset=3) == expected
    assert call(at, codec, offset=3, zone="UTC") == expected
    assert call(at, codec, "UTC", offset=3) == expected


def test_what_is_left_out_has_its_default(codec):
    assert call(at, codec, "UTC") == call(at, codec, zone="UTC") == ("UTC", 0)


def test_a_function_may_take_nothing(codec):
    assert call(lambda: "called", codec) == "called"
    assert called(lambda: "called", codec.encode([]), codec) == "called"
    assert refusal(lambda: "called", codec, 1) == "$: at most 0 arguments, got 1"
    assert refusal(lambda: "called", codec, x=1) == "$: object contains unknown field x"


@pytest.mark.parametrize(
    ("positional", "by_name", "message"),
    [
        ((), {"zone": 5}, "$.zone: expected str, got int"),
        ((5,), {}, "$.zone: expected str, got int"),
        (("UTC", "3"), {}, "$.offset: expected int, got str"),
        ((), {}, "$: zone is missing"),
        ((), {"offset": 3}, "$: zone is missing"),
        ((), {"zone": "UTC", "ofset": 3}, "$: object contains unknown field ofset"),
        (("UTC", 3, 4), {}, "$: at most 2 arguments, got 3"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(codec, positional, by_name, message):
    assert refusal(at, codec, *positional, **by_name) == message


def test_places_within_arguments_by_position_begin_with_their_names(codec):
    def function(caller: Peer, first: int, second: dict[str, list[Spot]], third: int, fourth: int = 1): ...

    fine = {"a": [{"x": 1}]}
    wrong = {"a": [{"x": 1}, {"x": "$[0]"}]}
    assert refusal(function, codec, 1, wrong, 3) == "$.second[...][1].x: expected int, got str"
    assert refusal(function, codec, 1, {"a": [{}]}, 3) == "$.second[...][0]: object missing required field x"
    if codec is MSGPACK:  # in JSON every key is text
        assert refusal(function, codec, 1, {5: []}, 3) == "$.second, key: expected str, got int"
    assert refusal(function, codec, 1, fine) == "$: third is missing"
    assert refusal(function, codec) == refusal(function, codec, second=fine) == "$: first is missing"
    assert refusal(function, codec, 1, fine, 3, 4, 5, 6) == "$: at most 4 arguments, got 6"


def test_an_array_of_too_many_arguments_may_hold_anything(codec):
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(CannotDecode, match=r"at most 2 arguments, got 3|nested more than"):
        called(at, codec.encode(["UTC", 3, deep]), codec)


@pytest.mark.parametrize("value", [None, 5, "zone", True, 1.5])
def test_arguments_are_a_map_or_an_array(codec, value):
    with pytest.raises(CannotDecode, match=r"^\$: expected array, got "):
        called(at, codec.encode(value), codec)


def test_arguments_may_lie_in_a_buffer(codec):
    assert called(at, memoryview(codec.encode({"zone": "UTC"})), codec) == ("UTC", 0)
    assert called(at, memoryview(codec.encode(["UTC"])), codec) == ("UTC", 0)


def test_what_is_by_name_alone_cannot_come_by_position(codec):
    def optional(a: int, *, b: int = 2):
        return a, b

    def wanted(a: int, *, b: int, c: int = 3):
        return a, b, c

    assert call(optional, codec, 1) == (1, 2)
    assert call(optional, codec, a=1, b=5) == (1, 5)
    assert refusal(optional, codec, 1, 5) == "$: at most 1 argument, got 2"
    assert call(wanted, codec, 1, b=2) == (1, 2, 3)
    assert refusal(wanted, codec, 1) == "$: b has to be given by its name"


def test_arguments_by_name_alone_keep_apart_whatever_their_order(codec):
    def function(*, a: int = 1, b: int, c: int = 3, d: int):
        return a, b, c, d

    assert call(function, codec, d=40, b=20) == (1, 20, 3, 40)
    assert call(function, codec, d=40, c=30, b=20, a=10) == (10, 20, 30, 40)


def test_what_python_takes_by_position_alone_callers_may_name(codec):
    def function(a: int, /, b: int):
        return a, b

    assert call(function, codec, 1, 2) == call(function, codec, a=1, b=2) == call(function, codec, 1, b=2) == (1, 2)


def test_the_last_of_two_values_of_a_name_counts():
    assert called(at, b'{"zone":"a","zone":"b"}', JSON) == ("b", 0)


# Filled in.


def first(caller: Peer, a: int, b: int = 2):
    return caller, a, b


def middle(a: int, caller: Peer, b: int = 2):
    return caller, a, b


def last(a: int, b: int = 2, caller: Peer = None):
    return caller, a, b


def by_name_alone(a: int, b: int = 2, *, caller: Peer):
    return caller, a, b


def by_position_alone(a: int, caller: Peer, /, b: int = 2):
    return caller, a, b


def among_names(*, a: int, caller: Peer, b: int = 2):
    return caller, a, b


@pytest.mark.parametrize("function", [first, middle, last, by_name_alone, by_position_alone, among_names])
def test_a_peer_is_filled_in_wherever_it_stands(codec, function):
    assert call(function, codec, a=1) == (PEER, 1, 2)
    assert call(function, codec, a=1, b=3) == (PEER, 1, 3)
    if function is not among_names:
        assert call(function, codec, 1) == (PEER, 1, 2)
        assert call(function, codec, 1, 3) == call(function, codec, 1, b=3) == (PEER, 1, 3)


@pytest.mark.parametrize("function", [first, middle, last, by_name_alone, by_position_alone, among_names])
def test_a_caller_cannot_send_what_is_filled_in(codec, function):
    assert refusal(function, codec, a=1, caller={"uid": 0}) == "$: object contains unknown field caller"
    assert re.fullmatch(r"\$: at most \d arguments?, got 3", refusal(function, codec, 1, 2, 3))


def test_peers_and_calls_may_be_there_more_than_once(codec):
    def function(call: Call, a: int, peer: Peer, b: int, same: Peer, *, again: Call, c: int = 3, third: Call):
        return call, a, peer, b, same, again, c, third

    assert call(function, codec, 1, 2) == (CALL, 1, PEER, 2, PEER, CALL, 3, CALL)
    assert call(function, codec, 1, b=2, c=4) == (CALL, 1, PEER, 2, PEER, CALL, 4, CALL)


def test_nothing_but_what_is_filled_in(codec):
    def function(call: Call, *, peer: Peer):
        return call, peer

    assert call(function, codec) == (CALL, PEER)


# Defaults.


def test_a_default_is_the_very_object_as_python_has_it(codec):
    kept: list[int] = []
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def function(found: list[int] = kept, when: dt.datetime = moment, limits: dict[str, int] = {}):  # noqa: B006
        found.append(1)
        return found, when, limits

    assert call(function, codec)[0] is kept
    assert call(function, codec)[1] is moment
    assert kept == [1, 1]
    assert call(function, codec)[2] is call(function, codec)[2]
    assert call(function, codec, [5])[0] == [5, 1]
    assert kept == [1] * 4


def test_a_default_need_not_be_of_the_type(codec):
    def function(zone: str = None, *, count: int = "many"):  # noqa: RUF013
        return zone, count

    assert call(function, codec) == (None, "many")
    assert called(function, codec.encode([]), codec) == (None, "many")
    assert refusal(function, codec, None).startswith("$.zone: expected str, got ")


# Odd names, and what else can be called.


ODD = [
    *("self", "cls", "call", "timeout", "_x", "arguments", "positional", "by_name", "remote", "name", "method"),
    *("tag", "frozen", "gc", "rename", "kw_only", "array_like", "weakref", "dict", "fields", "größe", "x__", "_", "_1"),
]


def test_odd_names_are_names(codec):
    names: dict[str, Any] = {}
    exec(f"def function({', '.join(f'{name}: int' for name in ODD)}, *, also: int = 0): return locals()", names)
    values = {name: number for number, name in enumerate(ODD)}
    encoded = codec.encode(values)
    assert called(names["function"], encoded, codec) == {**values, "also": 0}
    assert called(names["function"], codec.encode(list(values.values())), codec) == {**values, "also": 0}


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def plus(self, more: int, caller: Peer):
        return self.start + more, caller

    __call__ = plus


def test_bound_methods_objects_and_partials_are_called_with_what_they_hold(codec):
    for function in (Counter(5).plus, Counter(5), functools.partial(Counter.plus, Counter(5))):
        assert call(function, codec, 2) == call(function, codec, more=2) == (7, PEER)


def test_what_a_partial_gives_by_name_can_still_be_given(codec):
    def function(a: int, b: int, c: Peer):
        return a, b, c

    partial = functools.partial(function, b=5)
    assert call(partial, codec, 1) == (1, 5, PEER)
    assert call(partial, codec, a=1, b=2) == (1, 2, PEER)


def test_a_decorated_function_is_called_through_its_decorator(codec):
    def doubled(function):
        @functools.wraps(function)
        def twice(*positional, **by_name):
            return function(*positional, **by_name) * 2

        return twice

    assert call(doubled(at), codec, "UTC") == ("UTC", 0, "UTC", 0)


# Types.


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: int


@dataclass
class Item:
    name: str
    tags: list[str]


class Leaf(msgspec.Struct, tag="leaf", frozen=True):
    value: int


class Branch(msgspec.Struct, tag="branch"):
    children: list[Leaf | Branch]


WHOLE = st.integers(-(2**63), 2**63 - 1)
ZONES = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
"""Zones are at whole minutes from UTC, as they have been since 1972, and as ISO 8601 writes them."""
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.builds(Leaf, WHOLE)
SCALARS = [
    (int, WHOLE),
    (float, NUMBERS),
    (bool, st.booleans()),
    (str, st.text()),
    (bytes, st.binary()),
    (type(None), st.none()),
    (dt.datetime, st.datetimes()),
    (dt.datetime, st.datetimes(timezones=ZONES, min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1))),  # noqa: DTZ001
    (dt.date, st.dates()),
    (dt.time, st.times()),
    (dt.timedelta, st.timedeltas(dt.timedelta(-10_000_000), dt.timedelta(10_000_000))),
    (uuid.UUID, st.uuids()),
    (decimal.Decimal, st.decimals(allow_nan=False)),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Literal["a", "b", 3], st.sampled_from(["a", "b", 3])),
    (Point, st.builds(Point, WHOLE, NUMBERS)),
    (Movie, st.fixed_dictionaries({"title": st.text(), "year": WHOLE})),
    (Item, st.builds(Item, st.text(), st.lists(st.text()))),
    (Leaf, LEAVES),
    (Leaf | Branch, st.recursive(LEAVES, lambda inner: st.builds(Branch, st.lists(inner, max_size=3)), max_leaves=10)),
    (int | str | None, st.none() | WHOLE | st.text()),
]
KEYS = [(kind, values) for kind, values in SCALARS if kind in (str, int, uuid.UUID, Colour, Level, dt.date, bytes)]


@st.composite
def typed(draw, depth: int = 2) -> tuple[Any, Any]:
    """A type, and a strategy for its values."""
    form = draw(st.sampled_from(["scalar", "list", "tuple", "dict", "set", "optional", "pair"])) if depth else "scalar"
    if form == "scalar":
        return draw(st.sampled_from(SCALARS))
    if form == "set":
        kind, values = draw(st.sampled_from(KEYS))
        return frozenset[kind], st.frozensets(values, max_size=4)
    kind, values = draw(typed(depth - 1))
    if form == "list":
        return list[kind], st.lists(values, max_size=4)
    if form == "tuple":
        return tuple[kind, ...], st.lists(values, max_size=4).map(tuple)
    if form == "pair":
        return tuple[kind, int], st.tuples(values, WHOLE)
    if form == "optional":
        return kind | None, st.none() | values
    key, keys = draw(st.sampled_from(KEYS))
    return dict[key, kind], st.dictionaries(keys, values, max_size=4)


def taking(kinds):
    """A function with a parameter of each type, and what it was called with as its result."""

    def function(*given):
        return given

    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(f"p{number}", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for number, kind in enumerate(kinds)
        ]
    )
    return function


@settings(deadline=None)
@given(st.data())
def test_a_value_of_a_declared_type_arrives_equal(data):
    pairs = data.draw(st.lists(typed(), min_size=1, max_size=4), label="types")
    values = tuple(data.draw(strategy) for _, strategy in pairs)
    function = taking([kind for kind, _ in pairs])
    contract = signature.read(function)
    remote = RemoteMethod("method", contract)
    by_name = {f"p{number}": value for number, value in enumerate(values)}
    for positional, named in ((values, {}), ((), by_name), (values[:1], dict(list(by_name.items())[1:]))):
        assert called(function, MSGPACK.encode(remote.arguments(positional, named)), MSGPACK, contract) == values
        assert called(function, JSON.encode(remote.arguments(positional, named)), JSON, contract) == values


@pytest.mark.parametrize(("kind", "strategy"), SCALARS, ids=lambda one: str(one)[:40])
def test_a_value_arrives_as_the_type_that_was_declared(codec, kind, strategy):
    function = taking([kind])

    @settings(max_examples=25, deadline=None)
    @given(strategy)
    def arrives(value):
        (found,) = call(function, codec, value)
        assert type(found) is type(value) or isinstance(value, dt.datetime)
        assert found == value

    arrives()
