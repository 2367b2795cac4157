"""Types as JSON Schema, and what msgspec's own would lose."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import socket
import typing
import uuid
from typing import Annotated, Any

import every_type
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from every_type import Circle, Color, Node, Person, Row, Spot

from samehost.codec import MSGPACK
from samehost.kernel.blob import Blob
from samehost.kernel.files import File
from samehost.service.description import describe, read_description
from samehost.service.schema import references, schemas_of, used_by


def schema_of(kind: Any) -> dict[str, Any]:
    (schema,), definitions = schemas_of([kind])
    return definitions[schema["$ref"].removeprefix("#/definitions/")] if "$ref" in schema else schema


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Any, {}),
        (msgspec.Raw, {}),
        (None, {"type": "null"}),
        (bool, {"type": "boolean"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (str, {"type": "string"}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (bytearray, {"type": "string", "contentEncoding": "base64"}),
        (dt.datetime, {"type": "string", "format": "date-time"}),
        (dt.date, {"type": "string", "format": "date"}),
        (dt.time, {"type": "string", "format": "time"}),
        (dt.timedelta, {"type": "string", "format": "duration"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (decimal.Decimal, {"type": "string", "format": "decimal"}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        (frozenset[uuid.UUID], {"type": "array", "items": {"type": "string", "format": "uuid"}, "uniqueItems": True}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, bytes],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string", "contentEncoding": "base64"}],
                "items": False,
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (tuple[()], {"type": "array", "items": False, "minItems": 0, "maxItems": 0}),
        (dict, {"type": "object"}),
        (dict[str, Any], {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict[int, Any], {"type": "object", "x-keys": {"type": "integer"}}),
        (dict[dt.date, Any], {"type": "object", "x-keys": {"type": "string", "format": "date"}}),
        (typing.Literal["a", 1], {"enum": [1, "a"]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Annotated[int, msgspec.Meta(ge=1, lt=9)], {"type": "integer", "minimum": 1, "exclusiveMaximum": 9}),
        (Annotated[str, msgspec.Meta(max_length=3, pattern="^a")], {"type": "string", "pattern": "^a", "maxLength": 3}),
        (Annotated[bytes, msgspec.Meta(min_length=4)], {"type": "string", "contentEncoding": "base64", "minLength": 8}),
        (
            Annotated[list[int], msgspec.Meta(max_length=3)],
            {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        ),
        (Annotated[dict[str, Any], msgspec.Meta(min_length=1)], {"type": "object", "minProperties": 1}),
        (
            dict[Annotated[str, msgspec.Meta(max_length=3)], Any],
            {"type": "object", "propertyNames": {"maxLength": 3}},
        ),
        (Annotated[int, msgspec.Meta(description="how many")], {"type": "integer", "description": "how many"}),
        (File, {"x-samehost": "file"}),
        (typing.BinaryIO, {"x-samehost": "io"}),
        (typing.IO[bytes], {"x-samehost": "io"}),
        (socket.socket, {"x-samehost": "socket"}),
        (Blob, {"x-samehost": "blob"}),
        (pa.Buffer, {"x-samehost": "blob"}),
        (np.ndarray, {"x-samehost": "array"}),
        (npt.NDArray[np.float32], {"x-samehost": "array"}),
        (File | None, {"anyOf": [{"x-samehost": "file"}, {"type": "null"}]}),
        (list[Blob], {"type": "array", "items": {"x-samehost": "blob"}}),
    ],
)
def test_a_type_keeps_all_that_callers_have_to_know(kind: Any, schema: dict[str, Any]) -> None:
    assert schema_of(kind) == schema


def test_an_enum_has_the_names_of_its_members():
    assert schema_of(Color) == {
        "title": "Color",
        "description": "What it looks like.",
        "enum": ["red", 'it\'s "green"'],
        "x-names": ["RED", "GREEN"],
    }


def test_a_named_tuple_has_the_names_of_its_elements():
    schema = schema_of(Spot)
    assert schema["description"] == "A place."
    assert schema["prefixItems"] == [
        {"type": "integer"},
        {"type": "integer", "default": 0},
        {"$ref": "#/definitions/Color", "default": "red"},
    ]
    assert (schema["x-names"], schema["minItems"], schema["maxItems"]) == (["x", "count", "color"], 1, 3)


def test_a_struct_that_is_an_array_has_names_too_and_may_grow():
    schema = schema_of(Row)
    assert (schema["type"], schema["x-names"], schema["minItems"]) == ("array", ["a", "b"], 1)
    assert "maxItems" not in schema


def test_the_tag_of_a_struct_is_a_constant():
    schema = schema_of(Circle)
    assert schema["properties"] == {"type": {"const": "circle"}, "radius": {"type": "number"}}
    assert schema["required"] == ["type", "radius"]


def test_a_struct_that_refers_to_itself_is_one_definition():
    (schema,), definitions = schemas_of([Node])
    assert schema == {"$ref": "#/definitions/Node"}
    assert definitions["Node"]["properties"]["children"] == {"type": "array", "items": schema, "default": []}
    assert definitions["Node"]["description"].startswith("A tree.\n\nWith more")
    assert definitions["Node"]["properties"]["when"]["default"] == "2020-01-01T00:00:00Z"
    assert "default" not in definitions["Node"]["properties"]["spots"]  # only its own factory knows
    assert list(definitions) == ["Node", "Spot", "Color"]


def test_defaults_are_builtin_types_and_texts_that_dataclasses_make_up_are_left_out():
    schema = schema_of(Person)
    assert "description" not in schema
    defaults = {name: one["default"] for name, one in schema["properties"].items() if "default" in one}
    assert defaults == {"tags": [], "money": "1.50", "key": "AGl0J3M="}


def test_fields_that_may_be_missing_are_not_required():
    assert schema_of(every_type.Options)["required"] == ["level"]


def test_a_struct_that_forbids_other_fields_says_so():
    closed = msgspec.defstruct("Closed", [("a", int)], forbid_unknown_fields=True)
    assert schema_of(closed)["additionalProperties"] is False
    row = msgspec.defstruct("ClosedRow", [("a", int)], forbid_unknown_fields=True, array_like=True)
    assert schema_of(row)["maxItems"] == 1


def test_classes_of_one_name_are_kept_apart():
    def made(doc: str) -> type:
        class Same(enum.Enum):
            A = doc

        return Same

    first, second, third = made("1"), made("2"), made("3")
    schemas, definitions = schemas_of([first, second, third, first])
    names = [schema["$ref"].removeprefix("#/definitions/") for schema in schemas]
    assert names[0] == names[3] == "Same"
    assert len(set(names)) == 3
    assert [definitions[name]["enum"] for name in names[:3]] == [["1"], ["2"], ["3"]]


def test_generic_classes_have_a_definition_for_each_argument():
    _, definitions = schemas_of([every_type.Pair[int], every_type.Pair[str], every_type.Pair[list[int]]])
    assert [one["title"] for one in definitions.values()] == ["Pair[int]", "Pair[str]", "Pair[list[int]]"]
    assert all(name.isidentifier() for name in definitions)


def test_references_are_followed_to_what_they_need():
    _, definitions = schemas_of([Node, Person, Circle])
    assert set(references(definitions["Node"])) == {"Node", "Spot"}
    assert list(used_by([{"items": {"$ref": "#/definitions/Node"}}], definitions)) == ["Node", "Spot", "Color"]
    assert used_by([{"$ref": "#/definitions/Nowhere"}], definitions) == {}


def test_a_default_is_no_reference():
    @dataclasses.dataclass
    class Sly:
        a: dict[str, str] = dataclasses.field(default_factory=dict)

    _, definitions = schemas_of([Sly])
    definitions["Sly"]["properties"]["a"]["default"] = {"$ref": "#/definitions/Sly"}
    assert references(definitions["Sly"]) == []


def test_a_description_survives_the_way_to_the_caller():
    described = describe(every_type.every)
    received = read_description(MSGPACK.encode(described))
    assert MSGPACK.encode(received) == MSGPACK.encode(described)
    person = {parameter.name: parameter for parameter in received.methods["person"].parameters}
    assert person["options"].keyword_only
    assert (person["color"].required, person["color"].default) == (False, 'it\'s "green"')
    assert received.methods["plain"].idempotent
    assert received.methods["times"].parameters[3].default == "PT90S"
