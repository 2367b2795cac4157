"""What a service tells of itself."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import AsyncIterator, Generator, Iterable
from typing import Annotated, BinaryIO

import msgspec
import pytest

from samehost import Call, Peer, Service, allow
from samehost.codec import CODECS, MSGPACK, CannotDecode
from samehost.kernel.blob import Blob
from samehost.kernel.files import File
from samehost.service import description
from samehost.service.description import (
    Description,
    MethodDescription,
    ParameterDescription,
    TopicDescription,
    describe,
    limits_of,
    read_description,
    rules_of,
)


class Colour(enum.Enum):
    RED = "red"


class Item(msgspec.Struct):
    name: str
    below: list[Item] = []


ERRORS: dict[type[Exception], str] = {KeyError: "store.none", OSError: "store.full", LookupError: "store.none"}


def store() -> Service:
    service = Service("store", allow=allow(uid=7))

    @service.method(name="store.put", allow=allow(uid=0), idempotent=True, timeout=2.5, errors=ERRORS)
    def put(item: Item, caller: Peer, colour: Colour = Colour.RED, *, until: dt.date | None = None) -> Item:
        """Keeps an item."""

    @service.method
    async def size(call: Call) -> int: ...

    return service


def test_an_empty_service_says_its_name():
    assert describe(Service("empty")) == Description("empty", {})


def test_methods_are_described_with_all_that_callers_should_know():
    found = describe(store())
    assert (found.service, found.allow) == ("store", "uid 7")
    assert list(found.methods) == ["store.put", "size"]
    put = found.methods["store.put"]
    assert put.name == "store.put"
    assert put.doc == "Keeps an item."
    assert (put.allow, put.idempotent, put.timeout) == ("uid 0", True, 2.5)
    assert put.errors == ["store.none", "store.full"]
    assert put.signature == str(store().methods["store.put"].signature.text)
    assert [(one.name, one.required, one.default, one.keyword_only) for one in put.parameters] == [
        ("item", True, None, False),
        ("colour", False, "red", False),
        ("until", False, None, True),
    ]
    assert found.methods["size"] == MethodDescription("size", "() -> int", [], {"type": "integer"})


def test_each_schema_belongs_to_its_own_parameter_or_result():
    found = describe(store())
    put = found.methods["store.put"]
    item = {"$ref": "#/definitions/Item"}
    assert put.result == item
    assert [one.schema for one in put.parameters] == [
        item,
        {"$ref": "#/definitions/Colour"},
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    ]
    assert set(found.definitions) == {"Item", "Colour"}


def streams() -> Service:
    service = Service("streams")

    @service.method
    def letters(text: str) -> Generator[str, None, int]:
        yield text

    @service.method
    async def merge(
        first: int, call: Call, items: AsyncIterator[Annotated[int, msgspec.Meta(ge=0)]], scale: int = 1
    ) -> AsyncIterator[Item]:
        yield Item("x")

    @service.method
    def total(*, caller: Peer, unit: str = "m", items: Iterable[float]) -> float: ...

    service.topic("moves", Item, queue=1, allow=allow(uid=0), doc="Where it is.")
    service.topic("news", str, slow="disconnect")
    return service


def test_streams_are_described_with_the_types_of_their_items():
    found = describe(streams()).methods
    item = {"$ref": "#/definitions/Item"}
    assert (found["letters"].items_out, found["letters"].result) == ({"type": "string"}, {"type": "integer"})
    assert (found["letters"].items_in, found["letters"].stream_parameter) == (None, "")
    merge = found["merge"]
    assert (merge.items_out, merge.items_in, merge.result) == (
        item,
        {"type": "integer", "minimum": 0},
        {"type": "null"},
    )
    assert [one.name for one in merge.parameters] == ["first", "scale"]
    assert (merge.stream_parameter, merge.stream_position) == ("items", 1)
    assert limits_of(merge) == ["each of items >= 0"]
    total = found["total"]
    assert (total.items_in, total.items_out, total.stream_position) == ({"type": "number"}, None, 1)
    assert merge.schemas() == [{"type": "integer"}, {"type": "integer"}, merge.result, item, merge.items_in]


def test_topics_are_described_like_methods_and_behind_them():
    found = describe(streams())
    assert list(found.methods)[-2:] == ["moves", "news"]
    moves = found.methods["moves"]
    assert moves.topic == TopicDescription(1, "drop")
    assert (moves.parameters, moves.result, moves.items_out) == (
        [],
        {"type": "null"},
        {"$ref": "#/definitions/Item"},
    )
    assert (moves.doc, moves.allow) == ("Where it is.", "uid 0")
    assert found.methods["letters"].topic is None
    assert set(found.definitions) == {"Item"}


def test_what_becomes_of_slow_subscribers_is_written_for_people():
    assert rules_of(TopicDescription(64, "drop")) == "keeps 64 items, drops the oldest"
    assert rules_of(TopicDescription(1, "disconnect")) == "keeps 1 item, then ends the subscription"
    assert rules_of(TopicDescription(2, "of a later version")) == "keeps 2 items, of a later version"


def test_what_travels_beside_the_bytes_is_described():
    service = Service("files")

    @service.method
    def copy(source: File, to: BinaryIO | None = None) -> list[Blob]: ...

    found = describe(service).methods["copy"]
    assert [one.schema for one in found.parameters] == [
        {"x-samehost": "file"},
        {"anyOf": [{"x-samehost": "io"}, {"type": "null"}]},
    ]
    assert found.result == {"type": "array", "items": {"x-samehost": "blob"}}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("service", [store(), streams()], ids=["store", "streams"])
def test_a_description_survives_its_journey(codec, service):
    found = describe(service)
    assert codec.decode_to(Description)(codec.encode(found)) == found


def test_a_client_reads_what_a_server_tells():
    found = describe(store())
    assert read_description(MSGPACK.encode(found)) == found
    with pytest.raises(CannotDecode, match=r"^\$: object missing required field service"):
        read_description(MSGPACK.encode({}))
    with pytest.raises(CannotDecode, match=r"^\$: nested more than 64 deep"):
        read_description(b"\x81\xa7service" + b"\x91" * 100 + b"\x01")


def test_a_newer_server_may_tell_more():
    told = {
        "service": "x",
        "methods": {"m": {"name": "m", "signature": "()", "parameters": [], "result": {}, "new": 1}},
    }
    assert read_description(MSGPACK.encode({**told, "newer": []})).methods["m"].signature == "()"


def test_what_is_usual_is_left_out():
    assert msgspec.to_builtins(ParameterDescription("x", {})) == {"name": "x", "schema": {}}
    assert msgspec.to_builtins(MethodDescription("m", "()", [], {})).keys() == {
        "name",
        "signature",
        "parameters",
        "result",
    }


def test_every_default_that_a_method_may_have_can_be_told():
    service = Service("defaults")

    @service.method
    def get(
        a: bytes = b"\x00",
        b: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        c: dict[int, Item] = {1: Item("x")},  # noqa: B006, B008
        d: frozenset[int] = frozenset({1}),
        e: float = 1.5,
    ) -> None: ...

    told = read_description(MSGPACK.encode(describe(service))).methods["get"]
    assert [one.default for one in told.parameters] == [
        "AA==",
        "2026-01-01T00:00:00Z",
        {1: {"name": "x", "below": []}},
        [1],
        1.5,
    ]


def test_limits_are_written_for_people():
    service = Service("limits")

    @service.method
    def get(
        size: Annotated[int, msgspec.Meta(ge=16, lt=512)],
        name: Annotated[str, msgspec.Meta(min_length=1, max_length=9, pattern="^a")],
        some: Annotated[list[int], msgspec.Meta(max_length=3)],
        data: Annotated[bytes, msgspec.Meta(max_length=3)],
        pair: tuple[int, int],
        free: str,
        ratio: Annotated[float, msgspec.Meta(gt=0, multiple_of=0.5)] | None = None,
    ) -> None: ...

    described = describe(service).methods["get"]
    assert limits_of(described) == [
        "size >= 16, < 512",
        "name length >= 1, length <= 9, like ^a",
        "some length <= 3",
        "ratio > 0, a multiple of 0.5",
    ]
    assert "Meta" not in described.signature


@pytest.mark.parametrize("schema", [{"anyOf": [1, None]}, {"anyOf": {}}, {"$ref": "x"}, {"type": 5}])
def test_a_schema_that_is_odd_has_no_limits(schema):
    assert limits_of(MethodDescription("m", "()", [ParameterDescription("x", schema)], {})) == []


def test_the_names_of_samehost_s_own_methods_begin_alike():
    for name in (description.DESCRIBE, description.HEALTH, description.STATS):
        assert name.startswith(description.OWN_PREFIX)
    assert description.OWN_PREFIX == "samehost."
