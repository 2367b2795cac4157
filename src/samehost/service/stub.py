"""A typed client's class, as Python source, from what a service tells of itself.

The description comes from another process, which may be anybody's. Nothing of it gets into the source but as a literal
written by `repr`, or as a name that was found to be an identifier; what is neither gets a name made up here. Names in
a class hide those outside, for type checkers, so whatever a method or field is called, types are called otherwise.
"""

from __future__ import annotations

import builtins
import keyword
import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from samehost.errors import UsageError
from samehost.service.description import rules_of
from samehost.service.layout import (
    CLOSE,
    COMMA,
    OPEN,
    bytes_literal,
    docstring,
    fitted,
    flat,
    folded,
    quoted,
    subscript,
)
from samehost.service.schema import BESIDE, Schema, reference, references, used_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from samehost.service.description import Description, MethodDescription, ParameterDescription

_MODULES = (
    "builtins",
    "collections",
    "datetime",
    "decimal",
    "enum",
    "msgspec",
    "numpy",
    "samehost",
    "socket",
    "typing",
    "uuid",
)
_FORMATS = {
    "date-time": ("datetime", "datetime"),
    "date": ("datetime", "date"),
    "time": ("datetime", "time"),
    "duration": ("datetime", "timedelta"),
    "uuid": ("uuid", "UUID"),
    "decimal": ("decimal", "Decimal"),
}
_CONSTRUCTORS = {
    "date-time": "datetime.fromisoformat",
    "date": "date.fromisoformat",
    "time": "time.fromisoformat",
    "uuid": "UUID",
    "decimal": "Decimal",
}
_BESIDE = {
    "file": ("samehost", "File"),
    "io": ("typing", "BinaryIO"),
    "socket": ("socket", "socket"),
    "blob": ("samehost", "Blob"),
    "array": ("numpy", "ndarray"),
}
_SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
_VALUES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def source_of(description: Description, name: str, reserved: Collection[str], *, is_async: bool = False) -> str:
    """The source of a module with a client's class for the service, and the types that its methods use.

    Args:
        description: what the service says.
        name: of the class; empty for one made from the service's name.
        reserved: names that every client has, which no method may hide.
        is_async: make it an `samehost.aio.Client`.

    Raises:
        UsageError: the name cannot be that of a class.
    """
    if name and not _is_identifier(name):
        raise UsageError(f"{name!r} cannot be the name of a class")
    return (
        "\n".join(_Stub(description, name or _class_name(description.service), reserved, is_async=is_async).lines())
        + "\n"
    )


class Notation(NamedTuple):
    """A description as Python would write it, for people.

    Attributes:
        signatures: of each method, with its name.
        types: the lines of each definition.
    """

    signatures: dict[str, str]
    types: dict[str, list[str]]


def notation(description: Description) -> Notation:
    """The methods of a service and the types that they use, as Python would write them."""
    outline = _Outline(description, "Service", (), is_async=False)
    signatures = {
        key: flat(f"{key}({', '.join(outline.parameters(method))}) -> {outline.answer(method)}")
        for key, method in description.methods.items()
    }
    return Notation(signatures, {key: list(outline.definition(key)) for key in outline.definitions})


def _class_name(service: str) -> str:
    """`my-clock` as `MyClock`."""
    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", service))
    return name if _is_identifier(name) else f"Service{name}"


class _Stub:
    """The module in the making: what everything is called, and which modules it turned out to need.

    Attributes:
        definitions: those that become classes.
    """

    def __init__(self, description: Description, name: str, reserved: Collection[str], *, is_async: bool) -> None:
        self._description = description
        self._name = name
        self._is_async = is_async
        self.definitions = {key: value for key, value in description.definitions.items() if _is_class(value)}
        self._functions = _unique(description.methods, lambda made: _is_public(made) and made not in reserved)
        self._fields = {
            key: _unique(_properties(value), _can_be_element if value.get("type") == "array" else _can_be_field)
            for key, value in self.definitions.items()
        }
        self._hiding = set(self._functions.values()).union(*(fields.values() for fields in self._fields.values()))
        outside = {name, *_MODULES, *dir(builtins), *self._hiding}
        self._classes = _unique(self.definitions, lambda made: made not in outside)
        self._frozen = self._hashed()
        self._imports: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        """The whole module."""
        body: list[str] = []
        for key in self._in_order():
            body += ["", "", *self.definition(key)]
        body += ["", "", *self._client()]
        yield from docstring(f"A client of the service {quoted(self._description.service)}, by `samehost stub`.", "")
        yield from ("", "from __future__ import annotations", "")
        standard = [_import(name, alias) for name, alias in sorted(self._imports.items()) if name not in _INSTALLED]
        yield from standard
        yield from [""] if standard else []
        yield from (_import(name, alias) for name, alias in sorted(self._imports.items()) if name in _INSTALLED)
        yield from body

    # Names

    def _module(self, name: str) -> str:
        """What a module is called here, which from now on is imported."""
        if name not in self._imports:
            alias = name
            while alias.partition(".")[0] in self._hiding or (alias != name and alias in self._classes.values()):
                alias = f"_{alias.rpartition('.')[2]}"
            self._imports[name] = alias
        return self._imports[name]

    def _dotted(self, module: str, name: str) -> str:
        return f"{self._module(module)}.{name}"

    def _builtin(self, name: str) -> str:
        return f"{self._module('builtins')}.{name}" if name in self._hiding else name

    def _any(self) -> str:
        return self._dotted("typing", "Any")

    # Types

    def type_of(self, schema: object, *, is_hashed: bool = False) -> str:
        """The type that a schema stands for, as an annotation; Any if it says nothing that can be said here.

        Args:
            is_hashed: it is an element of a set, or a key.
        """
        if not isinstance(schema, dict):
            return self._any()
        if (key := reference(schema)) is not None:
            return self._classes[key] if key in self._classes else self._any()
        if "enum" in schema or "const" in schema:
            return self._literal_type(schema.get("enum", [schema.get("const")]))
        if isinstance(options := schema.get("anyOf"), list) and options:
            return self._union(self.type_of(one, is_hashed=is_hashed) for one in options)
        if BESIDE in schema:
            return self._beside(schema[BESIDE])
        kind = schema.get("type")
        if kind == "array":
            return self._array(schema, is_hashed)
        if kind == "object":
            keys = self.type_of(schema["x-keys"], is_hashed=True) if "x-keys" in schema else None
            values = self.type_of(schema.get("additionalProperties"), is_hashed=is_hashed)
            return subscript(self._builtin("dict"), [keys or self._builtin("str"), values])
        return self._scalar(schema, kind)

    def _scalar(self, schema: Schema, kind: object) -> str:
        if kind == "null":
            return "None"
        if kind == "string" and schema.get("contentEncoding") == "base64":
            return self._builtin("bytes")
        if kind == "string" and _has_format(schema):
            module, name = _FORMATS[schema["format"]]
            return self._dotted(module, name)
        return self._builtin(_SCALARS[kind]) if isinstance(kind, str) and kind in _SCALARS else self._any()

    def _beside(self, word: object) -> str:
        """The type of what travels beside the bytes."""
        if not isinstance(word, str) or word not in _BESIDE:
            return self._any()
        name = self._dotted(*_BESIDE[word])
        if word != "array":
            return name
        return subscript(name, [self._any(), subscript(self._dotted("numpy", "dtype"), [self._any()])])

    def _literal_type(self, values: object) -> str:
        if not isinstance(values, list) or not values or not all(_is_literal(value) for value in values):
            return self._any()
        return subscript(self._dotted("typing", "Literal"), list(dict.fromkeys(map(_plain, values))))

    def _union(self, options: Iterable[str]) -> str:
        unique = list(dict.fromkeys(options))
        return self._any() if self._any() in unique else " | ".join(unique)

    def _array(self, schema: Schema, is_hashed: bool) -> str:
        elements = schema.get("prefixItems")
        if isinstance(elements, list) or schema.get("maxItems") == 0:
            inner = [self.type_of(one, is_hashed=is_hashed) for one in elements or ()]
            return subscript(self._builtin("tuple"), inner or ["()"])
        if schema.get("uniqueItems") is True:
            inner_type = self.type_of(schema.get("items"), is_hashed=True)
            return subscript(self._builtin("frozenset" if is_hashed else "set"), [inner_type])
        inner_type = self.type_of(schema.get("items"), is_hashed=is_hashed)
        if is_hashed:
            return subscript(self._builtin("tuple"), [inner_type, "..."])
        return subscript(self._builtin("list"), [inner_type])

    # Defaults

    def _default(self, value: object, schema: object, *, is_hashed: bool = False) -> str:
        """An expression of the schema's type for a default, which is always a new object."""
        if (simple := self._simple(value, schema, is_hashed)) is not None:
            return simple
        kind = self.type_of(schema, is_hashed=is_hashed)
        return f"{self._dotted('msgspec', 'convert')}({OPEN}{self._written(value)}{COMMA}{kind}{CLOSE})"

    def _simple(self, value: object, schema: object, is_hashed: bool) -> str | None:
        """The same without a conversion, if there is a way."""
        if not isinstance(schema, dict):
            return None
        if (key := reference(schema)) is not None:
            return self._member(key, value)
        if isinstance(options := schema.get("anyOf"), list):
            found = [self._simple(value, one, is_hashed) for one in options]
            return next((one for one in found if one is not None), None)
        if "enum" in schema:
            is_one = isinstance(schema["enum"], list) and _is_literal(value) and value in schema["enum"]
            return _plain(value) if is_one else None
        if _has_format(schema):
            return self._constructed(value, schema["format"])
        if "contentEncoding" in schema:
            return bytes_literal(value)
        kind = schema.get("type")
        if kind is None or (isinstance(kind, str) and type(value) in _VALUES.get(kind, ())):
            return self._written(value) if value is None or isinstance(value, str | int | float) else None
        return self._empty(value, schema, is_hashed)

    def _constructed(self, value: object, of: str) -> str | None:
        if not isinstance(value, str) or of not in _CONSTRUCTORS:
            return None
        return f"{self._dotted(_FORMATS[of][0], _CONSTRUCTORS[of])}({OPEN}{quoted(value)}{CLOSE})"

    def _empty(self, value: object, schema: Schema, is_hashed: bool) -> str | None:
        if schema.get("type") == "object" and value == {}:
            return "{}"
        if schema.get("type") != "array" or value != [] or "prefixItems" in schema:
            return None
        if schema.get("uniqueItems") is True:
            return f"{self._builtin('frozenset' if is_hashed else 'set')}()"
        return "()" if is_hashed else "[]"

    def _member(self, key: str, value: object) -> str | None:
        """The member of an enum."""
        if key not in self._classes or "enum" not in self.definitions[key]:
            return None
        members = _members(self.definitions[key])
        name = next((name for name, one in members.items() if type(one) is type(value) and one == value), None)
        return None if name is None else f"{self._classes[key]}.{name}"

    def _written(self, value: object) -> str:
        """A literal for builtin types."""
        if isinstance(value, list):
            return f"[{', '.join(map(self._written, value))}]"
        if isinstance(value, dict):
            items = (f"{self._written(key)}: {self._written(inner)}" for key, inner in value.items())
            return f"{{{', '.join(items)}}}"
        if isinstance(value, float) and not math.isfinite(value):
            return f'{self._builtin("float")}("{value}")'
        return _plain(value if value is None or isinstance(value, str | int | float | bytes) else str(value))

    # Classes

    def _in_order(self) -> list[str]:
        """The definitions, each after those that it needs."""
        order: list[str] = []
        begun: set[str] = set()
        for root in self.definitions:
            path = [(root, iter([root]))]
            while path:
                inner = next(path[-1][1], None)
                if inner is None:
                    order.append(path.pop()[0])
                elif inner in self.definitions and inner not in begun:
                    begun.add(inner)
                    path.append((inner, iter(references(self.definitions[inner]))))
            order.pop()  # the root's own round
        return order

    def _hashed(self) -> set[str]:
        """The definitions whose objects are put into sets, or are keys."""
        roots: list[object] = [*self._description.definitions.values()]
        for method in self._description.methods.values():
            roots += method.schemas()
        return set(used_by((part for root in roots for part in _hashed_parts(root)), self._description.definitions))

    def definition(self, key: str) -> Iterator[str]:
        """The lines of a class."""
        schema = self.definitions[key]
        name = self._classes[key]
        if "enum" in schema:
            yield f"class {name}({self._dotted('enum', 'Enum')}):"
            yield from self._doc_of(schema)
            for member, value in _members(schema).items():
                yield f"    {member} = {_plain(value)}"
            return
        fields = self._fields[key]
        properties = _properties(schema)
        tag = next(iter(properties.items()), ("", None))
        options: list[str] = []
        if isinstance(tag[1], dict) and type(tag[1].get("const")) in (str, int):
            del properties[tag[0]]
            options = [f"tag={_plain(tag[1]['const'])}"]
            options += [] if tag[0] == "type" else [f"tag_field={quoted(tag[0])}"]
        is_tuple = schema.get("type") == "array" and "maxItems" in schema and not options
        required = _required(schema)
        if is_tuple:
            yield f"class {name}({self._dotted('typing', 'NamedTuple')}):"
        else:
            options += ["array_like=True"] if schema.get("type") == "array" else []
            options += ["frozen=True"] if key in self._frozen else []
            is_mixed = sorted(properties, key=lambda one: one not in required) != list(properties)
            options += ["kw_only=True"] if is_mixed else []
            yield from fitted("", f"class {name}(", [self._dotted("msgspec", "Struct"), *options], "):")
        doc = list(self._doc_of(schema))
        yield from doc if properties else doc[:-1]
        for one, inner in properties.items():
            yield from self._field(fields[one], one, inner, one in required, is_tuple, key in self._frozen)
        if not doc and not properties:
            yield "    pass"

    def _field(
        self, attribute: str, name: str, schema: object, is_required: bool, is_tuple: bool, is_hashed: bool
    ) -> list[str]:
        kind = self.type_of(schema, is_hashed=is_hashed)
        options = [] if attribute == name or is_tuple else [f"name={quoted(name)}"]
        default = None
        has_default = isinstance(schema, dict) and "default" in schema
        if has_default and not is_required:
            assert isinstance(schema, dict)
            default = self._default(schema["default"], schema, is_hashed=is_hashed)
            if not is_tuple and self._simple(schema["default"], schema, is_hashed) is None:
                options.append(f"default_factory=lambda: {default}")
                default = None
        elif not is_required and not is_tuple:
            kind = self._union([kind, self._dotted("msgspec", "UnsetType")])
            default = self._dotted("msgspec", "UNSET")
        elif not is_required:
            default = "None"  # a foreign description: no service of ours has such a field
        if not options:
            return folded(f"    {attribute}: {kind}" + (f" = {default}" if default is not None else ""))
        options += [] if default is None else [f"default={default}"]
        return fitted("    ", f"{attribute}: {kind} = {self._dotted('msgspec', 'field')}(", options, ")")

    def _doc_of(self, schema: Schema) -> Iterator[str]:
        if isinstance(doc := schema.get("description"), str) and doc.strip():
            yield from docstring(doc, "    ")
            yield ""

    # The client

    def _client(self) -> Iterator[str]:
        samehost = self._module("samehost")
        yield f"class {self._name}({samehost}.{'aio.' if self._is_async else ''}Client):"
        yield from docstring(f"The service {quoted(self._description.service)}.", "    ")
        for key, method in self._description.methods.items():
            yield ""
            if _can_be_declared(method):
                yield from self._method(key, method, samehost)
            else:
                yield f"    # {quoted(key)} is left out, as Python cannot name its parameters."

    def _method(self, key: str, method: MethodDescription, samehost: str) -> Iterator[str]:
        name = self._functions[key]
        if name != key:
            yield f"    @{samehost}.named({quoted(key)})"
        if method.idempotent:
            yield f"    @{samehost}.idempotent"
        head = f"{'async ' if self._is_async and method.items_out is None else ''}def {name}("
        tail = f") -> {self.answer(method)}:"
        yield from fitted("    ", head, ["self", *self.parameters(method)], tail)
        topic = f"A topic: {rules_of(method.topic)}." if method.topic else ""
        allowed = f"Allowed: {method.allow}." if method.allow else ""
        if doc := "\n\n".join(part for part in (method.doc.strip(), topic, allowed) if part):
            yield from docstring(doc, "        ")
        yield "        raise NotImplementedError"

    def answer(self, method: MethodDescription) -> str:
        """What calling a method gives: its result, or a stream."""
        if method.items_out is None:
            return self.type_of(method.result)
        items = self.type_of(method.items_out)
        if self._is_async:
            return subscript(self._dotted("collections.abc", "AsyncIterator"), [items])
        if method.result == {"type": "null"}:
            return subscript(self._dotted("collections.abc", "Iterator"), [items])
        last = self.type_of(method.result)
        return subscript(self._dotted("collections.abc", "Generator"), [items, "None", last])

    def _items_in(self, method: MethodDescription) -> str:
        """The type of the stream that a method takes, as callers may give it."""
        kind = self._dotted("collections.abc", "AsyncIterable" if self._is_async else "Iterable")
        return subscript(kind, [self.type_of(method.items_in)])

    def parameters(self, method: MethodDescription) -> list[str]:
        """The parameters of a method, as they stand in brackets."""
        declared = [(one.required, one.keyword_only, self._parameter(one)) for one in method.parameters]
        if method.stream_parameter:
            stream = f"{method.stream_parameter}: {self._items_in(method)}"
            position = min(max(0, method.stream_position), len(declared))
            declared.insert(position, (True, False, stream))
        parameters: list[str] = []
        is_by_name = has_default = False
        for is_required, is_keyword_only, written in declared:
            # Where Python would not have it, a parameter that is required after one that is not is given by its name.
            wants_name = is_keyword_only or (is_required and has_default)
            if wants_name and not is_by_name:
                parameters.append("*")
            is_by_name = is_by_name or wants_name
            has_default = has_default or not is_required
            parameters.append(written)
        return parameters

    def _parameter(self, parameter: ParameterDescription) -> str:
        declared = f"{parameter.name}: {self.type_of(parameter.schema)}"
        return declared if parameter.required else f"{declared} = {self._default(parameter.default, parameter.schema)}"


class _Outline(_Stub):
    """The same for people, who need no imports, and know a default by its value."""

    def _dotted(self, module: str, name: str) -> str:
        return name

    def _builtin(self, name: str) -> str:
        return name

    def _default(self, value: object, schema: object, *, is_hashed: bool = False) -> str:
        return self._written(value)

    def _field(
        self, attribute: str, name: str, schema: object, is_required: bool, is_tuple: bool, is_hashed: bool
    ) -> list[str]:
        declared = flat(f"    {name if name.isprintable() else attribute}: {self.type_of(schema)}")
        if is_required or not isinstance(schema, dict):
            return [declared]
        return [f"{declared} = {self._written(schema['default']) if 'default' in schema else '…'}"]


_INSTALLED = ("msgspec", "numpy", "samehost")


def _import(name: str, alias: str) -> str:
    return f"import {name}" if name == alias else f"import {name} as {alias}"


# Identifiers


def _is_identifier(name: str) -> bool:
    """Whether Python takes it as a name, and as this very one."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _can_be_field(name: str) -> bool:
    return not name.startswith("__")  # which would be another name in a class


def _can_be_element(name: str) -> bool:
    return _is_public(name) and name not in ("count", "index")  # which every tuple has


def _can_be_member(name: str) -> bool:
    return _is_public(name) and name not in ("mro", "name", "value")


def _unique(names: Iterable[str], is_fine: Callable[[str], bool]) -> dict[str, str]:
    """An identifier for each name, unlike all others: the name itself where that is one, and fine."""
    names = list(names)
    made = {name: name for name in names if _is_identifier(name) and is_fine(name)}
    taken = set(made.values())
    for name in names:
        if name not in made:
            stem = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "unnamed"
            stem = f"n{stem}" if stem[0].isdigit() else stem
            found = next(one for one in _candidates(stem) if _is_identifier(one) and is_fine(one) and one not in taken)
            made[name] = found
            taken.add(found)
    return {name: made[name] for name in names}


def _candidates(stem: str) -> Iterator[str]:
    yield stem
    yield f"{stem}_"
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def _can_be_declared(method: MethodDescription) -> bool:
    """Whether all parameters can be those of a function in a class, where `__x` is another name."""
    names = [parameter.name for parameter in method.parameters]
    names += [method.stream_parameter] if method.stream_parameter else []
    return len({"self", *names}) == len(names) + 1 and all(
        _is_identifier(name) and not name.startswith("__") for name in names
    )


# Schemas


def _has_format(schema: Schema) -> bool:
    return isinstance(schema.get("format"), str) and schema["format"] in _FORMATS


def _hashed_parts(schema: object) -> Iterator[object]:
    """The schemas within of what is put into sets, or is a key."""
    if isinstance(schema, dict):
        if schema.get("uniqueItems") is True:
            yield schema.get("items")
        yield schema.get("x-keys")
    if isinstance(schema, dict | list):
        for inner in schema.values() if isinstance(schema, dict) else schema:
            yield from _hashed_parts(inner)


def _is_class(schema: Schema) -> bool:
    """Whether a definition is an enum, a record, or a named tuple; otherwise it is written out where it is used."""
    if "enum" in schema:
        values = schema["enum"]
        return isinstance(values, list) and bool(values) and {type(value) for value in values} in ({str}, {int})
    if schema.get("type") == "array":
        names, elements = schema.get("x-names"), schema.get("prefixItems")
        return _are_names(names) and isinstance(elements, list) and len(names) == len(elements)
    return isinstance(schema.get("properties"), dict)


def _are_names(names: object) -> TypeGuard[list[str]]:
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _properties(schema: Schema) -> dict[str, Any]:
    """The fields of a class, by their names on the wire."""
    if schema.get("type") == "array":
        return dict(zip(schema["x-names"], schema["prefixItems"], strict=True))
    properties = schema.get("properties", {})
    return {name: inner for name, inner in properties.items() if isinstance(name, str)}


def _required(schema: Schema) -> Collection[str]:
    if schema.get("type") == "array":
        count = schema.get("minItems")
        names: list[str] = schema["x-names"]
        return names[:count] if isinstance(count, int) and count >= 0 else names
    required = schema.get("required")
    return required if isinstance(required, list) else ()


def _members(schema: Schema) -> dict[str, str | int]:
    """The members of an enum, by names that Python takes for them."""
    values = list(dict.fromkeys(schema["enum"]))
    names = schema.get("x-names")
    if not _are_names(names) or len(names) != len(values):
        names = [f"VALUE_{number}" for number in range(1, len(values) + 1)]
    made = _unique(names, _can_be_member)
    return {made[name]: value for name, value in zip(names, values, strict=True)}


# Text


def _is_literal(value: object) -> bool:
    return value is None or type(value) in (str, int)


def _plain(value: object) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)
