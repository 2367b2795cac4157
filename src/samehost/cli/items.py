"""The items that `samehost call` streams: what is in a file or standard input, read no sooner than there is room.

While there is nothing to be read, the connection is watched as well, so that what the method answers meanwhile is seen.
"""

from __future__ import annotations

import math
import os
from collections import deque
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import msgspec

from samehost import limits
from samehost.blocking.waiting import READ, wait_for
from samehost.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.blocking.waiting import Pollable
    from samehost.cli.values import Values
    from samehost.service.schema import Schema

_PIECE_BYTES = 64 * 1024


class Source:
    """An iterator over what is in a file. It raises BlockingIOError when there is news of the call sooner.

    Attributes:
        watch: gives the connection of the call; None if there is none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.watch: Callable[[], Pollable | None] = lambda: None
        self._file = file

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        raise NotImplementedError

    def _read(self) -> bytes:
        """The next piece; empty at the end."""
        connection = self.watch()
        watched = [(self._file, READ), *([(connection, READ)] if connection is not None else [])]
        if self._file.fileno() not in wait_for(*watched, seconds=math.inf):
            raise BlockingIOError
        return os.read(self._file.fileno(), _PIECE_BYTES)


class Pieces(Source):
    """An item for each piece of at most 64 KiB that there is to be read."""

    def __next__(self) -> bytes:
        if not (piece := self._read()):
            raise StopIteration
        return piece


class Lines(Source):
    """An item for each line: its text, without the newline, or the JSON in it."""

    def __init__(self, file: BinaryIO, name: str, schema: Schema, values: Values, *, is_json: bool) -> None:
        super().__init__(file)
        self._name = name
        self._schema = schema
        self._values = values
        self._is_json = is_json or not values.takes_text(schema)
        self._number = 0
        self._lines: deque[bytes] = deque()
        self._rest = bytearray()

    def __next__(self) -> Any:
        while True:
            line = self._next_line()
            self._number += 1
            if not self._is_json:
                return self._values.from_text(self._text(line), self._schema)
            if line and not line.isspace():
                return self._values.from_json(self._json(line), self._schema)

    def _next_line(self) -> bytes:
        while not self._lines:
            piece = self._read()
            if not piece:  # the end, which ends a line that no newline has ended
                if not self._rest:
                    raise StopIteration
                line, self._rest = self._rest, bytearray()
                return bytes(line)
            first, *others = piece.split(b"\n")
            self._rest += first
            if others:
                self._lines.extend((bytes(self._rest), *others[:-1]))
                self._rest = bytearray(others[-1])
            elif len(self._rest) > limits.MESSAGE_BYTES_MAX:
                raise UsageError(f"line {self._number + 1} of {self._name} is longer than a message may be")
        return self._lines.popleft()

    def _text(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._place} is not text in UTF-8") from error

    def _json(self, line: bytes) -> Any:
        try:
            return msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise UsageError(f"{self._place} is not JSON: {str(error) or 'it is nested too deep'}") from error

    @property
    def _place(self) -> str:
        return f"line {self._number} of {self._name}"
