"""Types as JSON Schema (2020-12), with nothing lost that a caller in another process has to know.

It follows msgspec's own schemas, which leave some of that out: times without a zone have a format here, members of an
enum and elements of a named tuple have their names (`x-names`), the keys of a mapping have their type where it is not
text (`x-keys`), and the tag of a struct is a `const`. What travels beside the bytes, such as a file, has no JSON: its
schema says what it is (`x-samehost`). Classes become definitions, which schemas refer to by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import inspect as types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Schema: TypeAlias = dict[str, Any]

REFERENCE = "#/definitions/"
"""What a reference to a definition begins with."""

_TEXT: dict[type, str] = {
    types.DateTimeType: "date-time",
    types.DateType: "date",
    types.TimeType: "time",
    types.TimeDeltaType: "duration",
    types.UUIDType: "uuid",
    types.DecimalType: "decimal",
}
_PLAIN: dict[type, dict[str, str]] = {
    types.AnyType: {},
    types.RawType: {},
    types.NoneType: {"type": "null"},
    types.BoolType: {"type": "boolean"},
}
BESIDE = "x-samehost"
"""The word for what travels beside the bytes: one of the values of `_BESIDE`."""

_BESIDE = {
    "samehost.kernel.files.File": "file",
    "typing.BinaryIO": "io",
    "typing.IO": "io",
    "socket.socket": "socket",
    "numpy.ndarray": "array",
}
"""By the name of a class, since importing these is not for a pure module. Any other is a blob."""

_BYTES = (types.BytesType, types.ByteArrayType, types.MemoryViewType)
_SETS = (types.SetType, types.FrozenSetType)
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
_EMPTY: dict[type, type] = {list: list, tuple: list, set: list, frozenset: list, dict: dict, bytearray: str}
"""What makes a default when it is called, and what the same is called in a schema."""


def schemas_of(kinds: Iterable[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """The schema of each type, and the definitions that they refer to.

    Raises:
        TypeError: a type that msgspec does not know.
    """
    infos = msgspec.inspect.multi_type_info(kinds)
    definitions = _Definitions()
    return [definitions.schema(info) for info in infos], definitions.found


def reference(schema: Schema) -> str | None:
    """The definition that a schema refers to; None if it is no reference."""
    found = schema.get("$ref")
    return found.removeprefix(REFERENCE) if isinstance(found, str) else None


def references(schema: object) -> list[str]:
    """The definitions that a schema and those within it refer to, in order."""
    if isinstance(schema, list):
        return [key for inner in schema for key in references(inner)]
    if not isinstance(schema, dict):
        return []
    own = reference(schema)
    inner = [key for name, one in schema.items() if name not in ("default", "enum") for key in references(one)]
    return inner if own is None else [own, *inner]


def used_by(schemas: Iterable[object], definitions: dict[str, Schema]) -> dict[str, Schema]:
    """The definitions that these schemas refer to, and those that these refer to."""
    found: set[str] = set()
    waiting = [key for schema in schemas for key in references(schema)]
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += references(definitions.get(key))
    return {key: schema for key, schema in definitions.items() if key in found}


class _Definitions:
    """The classes met so far.

    Attributes:
        found: their schemas, by the names that references have.
    """

    def __init__(self) -> None:
        self.found: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}

    def schema(self, info: Any) -> Schema:
        """The schema of a type, a reference if it is a class."""
        if isinstance(info, types.Metadata):
            return self.schema(info.type) | (info.extra_json_schema or {})
        kind = type(info)
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if kind in _TEXT:
            return {"type": "string", "format": _TEXT[kind]}
        if kind in _BYTES:
            return {"type": "string", "contentEncoding": "base64", **_lengths(info, "Length", _base64_length)}
        if kind in _SCALARS:
            name = _SCALARS[kind]
            return {"type": name, **_bounds(info), **(_lengths(info, "Length") if name == "string" else {})}
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](self, info)
        if kind is types.CustomType:
            return {BESIDE: _BESIDE.get(f"{info.cls.__module__}.{info.cls.__qualname__}", "blob")}
        return self._reference(info)

    def _reference(self, info: Any) -> Schema:
        """A reference to a class, defined when it is met for the first time."""
        if info.cls not in self._names:
            name = self._names[info.cls] = _free_name(info.cls, self.found)
            self.found[name] = {}  # its place, and an end for classes that refer to themselves
            self.found[name] = self._definition(info)
        return {"$ref": REFERENCE + self._names[info.cls]}

    def _definition(self, info: Any) -> Schema:
        head: Schema = {"title": _title(info.cls)}
        if doc := _doc(info.cls):
            head["description"] = doc
        if isinstance(info, types.EnumType):
            members = list(info.cls)
            return {**head, "enum": [one.value for one in members], "x-names": [one.name for one in members]}
        properties: dict[str, Schema] = {}
        required: list[str] = []
        if getattr(info, "tag_field", None) is not None:
            properties[info.tag_field] = {"const": info.tag}
            required.append(info.tag_field)
        for field in info.fields:
            properties[field.encode_name] = self._field(field)
            if field.required:
                required.append(field.encode_name)
        if not isinstance(info, types.NamedTupleType) and not getattr(info, "array_like", False):
            closed = {"additionalProperties": False} if getattr(info, "forbid_unknown_fields", False) else {}
            return {**head, "type": "object", "properties": properties, "required": required, **closed}
        is_closed = isinstance(info, types.NamedTupleType) or info.forbid_unknown_fields
        return {
            **head,
            "type": "array",
            "prefixItems": list(properties.values()),
            "x-names": list(properties),
            "minItems": len(required),
            **({"maxItems": len(properties)} if is_closed else {}),
        }

    def _field(self, field: Any) -> Schema:
        schema = self.schema(field.type)
        if field.default is not msgspec.NODEFAULT:
            schema["default"] = msgspec.to_builtins(field.default, str_keys=True)
        elif isinstance(field.default_factory, type) and field.default_factory in _EMPTY:
            schema["default"] = _EMPTY[field.default_factory]()
        return schema

    def _collection(self, info: Any) -> Schema:
        items = self.schema(info.item_type)
        return {
            "type": "array",
            **({"items": items} if items else {}),
            **({"uniqueItems": True} if isinstance(info, _SETS) else {}),
            **_lengths(info, "Items"),
        }

    def _tuple(self, info: types.TupleType) -> Schema:
        elements = {"prefixItems": [self.schema(item) for item in info.item_types]} if info.item_types else {}
        return {
            "type": "array",
            **elements,
            "items": False,
            "minItems": len(info.item_types),
            "maxItems": len(info.item_types),
        }

    def _mapping(self, info: Any) -> Schema:
        schema: Schema = {"type": "object"}
        keys, values = self.schema(info.key_type), self.schema(info.value_type)
        if keys and not _is_text(info.key_type):
            schema["x-keys"] = keys
        elif limits := {keyword: value for keyword, value in keys.items() if keyword != "type"}:
            schema["propertyNames"] = limits
        if values:
            schema["additionalProperties"] = values
        return schema | _lengths(info, "Properties")

    def _union(self, info: types.UnionType) -> Schema:
        return {"anyOf": [self.schema(member) for member in info.types]}

    def _literal(self, info: types.LiteralType) -> Schema:
        return {"enum": list(info.values)}


_SCALARS: dict[type, str] = {types.StrType: "string", types.IntType: "integer", types.FloatType: "number"}
_CONTAINERS: dict[type, Callable[[_Definitions, Any], Schema]] = {
    **dict.fromkeys(
        (types.CollectionType, types.ListType, types.VarTupleType, *_SETS),
        _Definitions._collection,  # noqa: SLF001 - of this module
    ),
    types.TupleType: _Definitions._tuple,  # noqa: SLF001
    types.DictType: _Definitions._mapping,  # noqa: SLF001
    types.UnionType: _Definitions._union,  # noqa: SLF001
    types.LiteralType: _Definitions._literal,  # noqa: SLF001
}


def _is_text(info: Any) -> bool:
    return isinstance(info, types.StrType) or (isinstance(info, types.Metadata) and _is_text(info.type))


def _bounds(info: Any) -> Schema:
    return {keyword: value for name, keyword in _BOUNDS.items() if (value := getattr(info, name, None)) is not None}


def _lengths(info: Any, of: str, length: Callable[[int], int] = int) -> Schema:
    bounds = (("min" + of, info.min_length), ("max" + of, info.max_length))
    return {keyword: length(value) for keyword, value in bounds if value is not None}


def _base64_length(count: int) -> int:
    return 4 * ((count + 2) // 3)


def _title(kind: Any) -> str:
    """What a class is called: its name, or `Pair[int]` for a generic one."""
    origin = getattr(kind, "__origin__", None)
    if origin is None:
        return str(kind.__name__)
    arguments = ", ".join(_title(one) if isinstance(one, type) else str(one) for one in kind.__args__)
    return f"{origin.__name__}[{arguments}]"


def _free_name(kind: Any, taken: Iterable[str]) -> str:
    """A name for a class, as short as nobody else has it."""
    origin = getattr(kind, "__origin__", kind)
    short = _title(kind)
    longer = f"{origin.__module__}.{origin.__qualname__}{short.removeprefix(origin.__name__)}"
    names = [re.sub(r"\W+", "_", name).strip("_") for name in (short, longer)]
    names += [f"{names[1]}_{number}" for number in range(2, len(list(taken)) + 3)]
    return next(name for name in names if name not in taken)


def _doc(kind: Any) -> str:
    """What the author wrote about a class; dataclasses, named tuples and enums have texts of their own otherwise."""
    import inspect

    origin = getattr(kind, "__origin__", kind)
    doc = inspect.cleandoc(vars(origin).get("__doc__") or "")
    is_made_up = (doc.startswith(f"{origin.__name__}(") and doc.endswith(")")) or doc == "An enumeration."
    return "" if is_made_up else doc
