"""What is typed on a command line, or written as JSON, as the values that a method declares.

A schema says what a text stands for, and which strings in JSON are bytes, and which keys are numbers, when they travel
in frames, which unlike JSON tell these apart. Whether a value is right is left to the server, which says so better.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from samehost.service.schema import BESIDE, reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.service.schema import Schema

_KINDS: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
}
_ANY: Schema = {}


class Values:
    """Reading values of the types that a service has defined."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions

    def from_text(self, text: str, schema: Schema) -> Any:
        """What a text stands for: itself, unless the schema has another type and the text is JSON of that type."""
        options = self._options(schema)
        if {} in options or any(text in _choices(option) for option in options):
            return text
        if any(self.is_bytes(option) for option in options):
            return os.fsencode(text)
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return text
        is_text = any(option.get("type") == "string" for option in options)
        if is_text and not any(_may_be(value, option) for option in options):
            return text
        return text if isinstance(value, str) else self.from_json(value, schema)

    def is_bytes(self, schema: Schema) -> bool:
        """Whether the schema is that of bytes, or of a blob, which bytes are as good as."""
        return any(
            option.get("contentEncoding") == "base64" or option.get(BESIDE) == "blob"
            for option in self._options(schema)
        )

    def beside(self, schema: Schema) -> str:
        """What the schema says that travels beside the bytes: "array", or the kind of a file; empty for all else."""
        found = next((option[BESIDE] for option in self._options(schema) if BESIDE in option), "")
        return found if isinstance(found, str) and found != "blob" else ""

    def takes_text(self, schema: Schema) -> bool:
        """Whether there are texts of this schema; otherwise a text can only be JSON of it."""
        return any(
            not option
            or option.get("type") == "string"
            or any(isinstance(one, str) for one in (*_choices(option), option.get("const")))
            for option in self._options(schema)
        )

    def from_json(self, value: Any, schema: object) -> Any:
        """The value that JSON of this schema stands for: base64 as bytes, and keys that are numbers as numbers."""
        if not isinstance(schema, dict) or not isinstance(value, str | list | dict):
            return value
        options = self._options(schema)
        if isinstance(value, str):
            is_bytes = any(map(self.is_bytes, options)) and not any(value in _choices(option) for option in options)
            return _decoded(value) if is_bytes else value
        option = next((option for option in options if self._may_be_this(value, option)), _ANY)
        if isinstance(value, list):
            first = option.get("prefixItems")
            first = first if isinstance(first, list) else []
            rest = [option.get("items")] * (len(value) - len(first))
            return [self.from_json(one, inner) for one, inner in zip(value, [*first, *rest], strict=False)]
        properties = option.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        others = option.get("additionalProperties")
        number = self._number(option.get("x-keys"))
        return {number(key): self.from_json(one, properties.get(key, others)) for key, one in value.items()}

    def _number(self, keys: object) -> Callable[[str], Any]:
        """A function that reads the key of a mapping."""
        if not isinstance(keys, dict):
            return str
        return lambda key: self.from_text(key, keys)

    def _may_be_this(self, value: Any, option: Schema) -> bool:
        """Whether a list or dict may be of this kind; where there are several, their tags tell."""
        if not _may_be(value, option):
            return False
        properties = option.get("properties")
        if not isinstance(value, dict) or not isinstance(properties, dict):
            return True
        tags = [
            (name, inner["const"]) for name, inner in properties.items() if isinstance(inner, dict) and "const" in inner
        ]
        return all(value.get(name) == tag for name, tag in tags)

    def _options(self, schema: Schema) -> list[Schema]:
        """The schema, or those that it is a choice of, with references followed."""
        found: list[Schema] = []
        followed: set[str] = set()
        waiting: list[object] = [schema]
        while waiting:
            one = waiting.pop(0)
            if not isinstance(one, dict):
                continue
            if (key := reference(one)) is not None:
                if key not in followed:
                    followed.add(key)
                    waiting.append(self._definitions.get(key))
            elif isinstance(one.get("anyOf"), list):
                waiting += one["anyOf"]
            else:
                found.append(one)
        return found


def _choices(option: Schema) -> list[Any]:
    choices = option.get("enum")
    return choices if isinstance(choices, list) else []


def _may_be(value: Any, option: Schema) -> bool:
    if "enum" in option:
        return any(type(one) is type(value) and one == value for one in _choices(option))
    return option.get("type") in _KINDS.get(type(value), ())


def _decoded(text: str) -> str | bytes:
    import base64
    import binascii

    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text  # which the server will say is no bytes
