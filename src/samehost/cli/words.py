"""The arguments of a call as they were typed: what each word means once it is known what the method declares.

A word is looked at twice. `read` finds what cannot be an argument at all, before anybody is called. `given` then reads
what the words name, such as a file or standard input, as the method's description says; what is streamed is read as the
call goes on, by `items`.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from samehost.cli.arguments import open_file
from samehost.cli.values import Values
from samehost.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from samehost.cli.items import Source
    from samehost.service.description import Description, MethodDescription
    from samehost.service.schema import Schema

STANDARD_INPUT = "standard input"

_FILES = ("file", "io", "socket")
_NUMPY_FILE = b"\x93NUMPY"


class Word(msgspec.Struct, frozen=True):
    """One argument as it was typed.

    Attributes:
        name: empty for a lone `-`.
        is_json: it was typed with `:=`.
        value: a text, `-` for standard input, or `@` and the path of a file.
    """

    name: str
    is_json: bool
    value: str

    @property
    def is_typed(self) -> bool:
        """Whether the value is the text itself."""
        return self.value != "-" and not self.value.startswith("@")

    @property
    def source(self) -> str:
        """Where the value is, for people."""
        return STANDARD_INPUT if self.value == "-" else self.value[1:]


class Given(msgspec.Struct, frozen=True):
    """What to send.

    Attributes:
        source: the one of these arguments that is streamed from a file; None without such a one.
    """

    positional: tuple[Any, ...] = ()
    by_name: dict[str, Any] = {}
    source: Source | None = None


def read(words: list[str]) -> list[Word]:
    """The words, one by one.

    Raises:
        UsageError: one is no argument, or they do not go together.
    """
    found: dict[str, Word] = {}
    for word in words:
        before, equals, value = ("", "=", "-") if word == "-" else word.partition("=")
        name = before.removesuffix(":")
        if not equals or (not name and word != "-"):
            raise UsageError(f"{word!r} is not an argument: write name=text, name:=json, or - for standard input")
        if name in found:
            raise UsageError(f"{name or '-'} is given twice")
        found[name] = Word(name, before != name, value)
    if sum(word.value == "-" for word in found.values()) > 1:
        raise UsageError("standard input can be one argument only")
    return list(found.values())


def given(words: list[Word], description: Description | None, method: str, opened: ExitStack) -> Given:
    """What the words are for a method.

    Args:
        description: what the service says of itself; None for a server that says nothing.
        opened: closes the files that are sent, or streamed, when the call is over.

    Raises:
        UsageError: a file cannot be read, or what is in it cannot be sent.
    """
    described = description.methods.get(method) if description is not None else None
    reading = _Reading(described, Values(description.definitions if description is not None else {}), opened)
    stream = described.stream_parameter if described is not None else ""
    if not stream:
        return reading.everything(words)
    sent = [word for word in words if word.name not in ("", stream)]
    streamed = [word for word in words if word.name in ("", stream)]
    if len(streamed) != 1:
        what = "is given twice" if streamed else f"is missing, the items to send, as in {stream}=- or {stream}=@FILE"
        raise UsageError(f"{stream} {what}")
    items = reading.items(msgspec.structs.replace(streamed[0], name=stream))
    return Given((), {**reading.by_name(sent), stream: items}, reading.source)


class _Reading:
    """The reading of words for one method.

    Attributes:
        source: what is streamed from a file; None so far.
    """

    def __init__(self, described: MethodDescription | None, values: Values, opened: ExitStack) -> None:
        self.source: Source | None = None
        self._parameters = described.parameters if described is not None else []
        self._schemas = {parameter.name: parameter.schema for parameter in self._parameters}
        self._items_in: Schema = (described.items_in if described is not None else None) or {}
        self._values = values
        self._opened = opened

    def by_name(self, words: list[Word]) -> dict[str, Any]:
        return {word.name: self._value(word, self._schemas.get(word.name, {})) for word in words}

    def everything(self, words: list[Word]) -> Given:
        """The arguments of a method that takes no stream."""
        if all(word.name for word in words):
            return Given((), self.by_name(words))
        if len(words) > 1:
            raise UsageError("- is all of the arguments, and so the only one; for one of them write name=-")
        value = _json(STANDARD_INPUT, sys.stdin.buffer.read())
        if isinstance(value, dict):
            return Given(
                (), {name: self._values.from_json(one, self._schemas.get(name)) for name, one in value.items()}
            )
        if not isinstance(value, list):
            raise UsageError("standard input is neither a JSON object nor an array")
        kinds: list[Schema] = [one.schema for one in self._parameters if not one.keyword_only][: len(value)]
        kinds += [{}] * (len(value) - len(kinds))
        return Given(tuple(self._values.from_json(one, kind) for one, kind in zip(value, kinds, strict=True)))

    def items(self, word: Word) -> Iterator[Any]:
        """What is streamed: the elements of an array that was typed, or what is in a file or standard input."""
        schema = self._items_in
        if word.is_typed:
            value = self._value(word, {"type": "array", "items": schema})
            if not isinstance(value, list):
                raise UsageError(
                    f"{word.name} is a stream: write {word.name}=- for standard input, {word.name}=@FILE, or a "
                    "JSON array of its items"
                )
            return iter(value)
        from samehost.cli.items import Lines, Pieces

        file = sys.stdin.buffer if word.value == "-" else self._opened.enter_context(open_file(word.source))
        if self._values.is_bytes(schema) and not word.is_json:
            self.source = Pieces(file)
            return self.source
        if self._values.beside(schema):
            raise UsageError(f"{word.name} takes items that are no text: call it from a program")
        self.source = Lines(file, word.source, schema, self._values, is_json=word.is_json)
        return self.source

    def _value(self, word: Word, schema: Schema) -> Any:
        kind = self._values.beside(schema)
        if kind and word.is_typed and word.value == "null":
            return None
        if kind in _FILES:
            return self._file(word)
        content = word.value if word.is_typed else _content(word)
        if kind == "array":
            return _array(word.name, content)
        if word.is_json:
            return self._values.from_json(_json(word.name, content), schema)
        if isinstance(content, str):
            return self._values.from_text(content, schema)
        if self._values.is_bytes(schema):
            return content
        try:
            return self._values.from_text(content.decode(), schema)
        except UnicodeDecodeError as error:
            raise UsageError(f"{word.name} is not text in UTF-8, and its method does not declare bytes") from error

    def _file(self, word: Word) -> BinaryIO:
        if word.is_typed:
            raise UsageError(f"{word.name} is a file: write {word.name}=@PATH, or {word.name}=- for standard input")
        return sys.stdin.buffer if word.value == "-" else self._opened.enter_context(open_file(word.source))


def _content(word: Word) -> bytes:
    if word.value == "-":
        return sys.stdin.buffer.read()
    try:
        with open(word.source, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read {word.source}: {reason}; for text that begins with @, write name:='\"@…\"'"
        ) from error


def _json(what: str, content: str | bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UsageError(f"{what} is not JSON: {str(error) or 'it is nested too deep'}") from error


def _array(name: str, content: str | bytes) -> Any:
    """An array of numbers, from a file that numpy has written, or from nested JSON arrays."""
    try:
        import numpy as np
    except ImportError as error:
        raise UsageError(f"{name} is an array, which needs numpy: install it beside samehost") from error
    file = io.BytesIO(content) if isinstance(content, bytes) and content.startswith(_NUMPY_FILE) else None
    elements = None if file else _json(name, content)
    try:
        return np.load(file, allow_pickle=False) if file else np.array(elements)
    except ValueError as error:
        raise UsageError(f"{name} is not an array of numbers: {error}") from error
