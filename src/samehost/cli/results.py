"""What a service has answered, printed: plain for programs, laid out and safe for a terminal."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Any

import msgspec

from samehost.errors import Error
from samehost.kernel.files import File

_PIECE_BYTES = 64 * 1024
_SMALL_ARRAY = 1000
"""Elements of an array that people are shown all of."""


def print_result(result: Any, *, as_json: bool) -> None:
    """Print what a call has given: a text as it is, bytes, files and blobs by what is in them, and all else as JSON."""
    if result is not None or as_json:
        _print(result, as_json=as_json, is_item=False)


def print_item(item: Any, *, as_json: bool) -> None:
    """Print one item of a stream in the same way, None included, on a line, at once."""
    _print(item, as_json=as_json, is_item=True)
    sys.stdout.flush()


def _print(value: Any, *, as_json: bool, is_item: bool) -> None:
    if as_json:
        print_json(value, is_laid_out=not is_item)
    elif isinstance(value, str):
        print_text(value)
    elif isinstance(value, datetime):  # the one text that has a type of its own in frames
        print_text(as_text(value))
    elif isinstance(value, File):
        _copy(value)
    elif isinstance(value, bytes) and not sys.stdout.isatty():
        sys.stdout.buffer.write(value)
    elif (view := _view_of(value)) is not None:
        _print_bytes(view)
    else:
        print_json(value, is_laid_out=not is_item)


def as_text(value: Any) -> str:
    """A value on one line: a text or time as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    written = _encoded(value).decode()
    return written.strip('"') if isinstance(value, datetime) else written


def _encoded(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value, enc_hook=_written)
    except TypeError as error:
        raise Error(f"the answer cannot be printed as JSON: {error}") from error


def _view_of(value: Any) -> memoryview | None:
    """The bytes of a blob."""
    view = getattr(value, "view", None)
    return view if isinstance(view, memoryview) else None


def _print_bytes(view: memoryview) -> None:
    if sys.stdout.isatty():
        print(f"{len(view)} bytes")
    else:
        sys.stdout.buffer.write(view)


def _copy(file: File) -> None:
    """Copy all that can be read from a file: as it is to a program, as text to a terminal."""
    if sys.stdout.isatty():
        with file.open("r", encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
            for line in lines:
                print_text(line.removesuffix("\n"))
        return
    with file:
        while piece := os.read(file.fileno(), _PIECE_BYTES):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


def _written(value: Any) -> Any:
    """What stands in JSON for what travels beside the bytes. Of a file, there is only its name; it is closed."""
    if isinstance(value, File):
        with value:
            return {"file": os.readlink(f"/proc/self/fd/{value.fileno()}")}
    if (view := _view_of(value)) is not None:
        import base64

        return base64.b64encode(view).decode()
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array(value)
    raise TypeError(f"it has an object of type {type(value).__name__}")


def _array(array: Any) -> dict[str, Any]:
    """An array of numpy's: its elements for people, if they are not many, and what is in its memory for programs."""
    about = {"dtype": array.dtype.str if array.dtype.names is None else array.dtype.descr, "shape": array.shape}
    if not sys.stdout.isatty():
        import base64

        return {**about, "data": base64.b64encode(array.tobytes()).decode()}
    if array.size > _SMALL_ARRAY or array.dtype.kind not in "biuf":
        return {**about, "bytes": array.nbytes}
    return {**about, "data": array.tolist()}


def print_text(text: str) -> None:
    """Print a text that somebody else has sent: as it is to a program, with nothing that steers it to a terminal."""
    if sys.stdout.isatty():
        from samehost.kernel.owners import printable

        text = "\n".join(printable(line) for line in text.expandtabs().split("\n"))
    print(text)


def print_json(value: Any, *, is_laid_out: bool = True) -> None:
    """Print a value as JSON: on a line to a program; in colours to a terminal, and laid out unless told otherwise."""
    encoded = _encoded(value)
    if not sys.stdout.isatty():
        print(encoded.decode())
        return
    from rich.console import Console
    from rich.highlighter import JSONHighlighter

    laid_out = msgspec.json.format(encoded, indent=2 if is_laid_out else 0).decode()
    # Escapes, in JSON's own way, are the text that it stands for; beyond U+FFFF there is nothing that needs one.
    safe = "".join(one if one.isprintable() or one == "\n" else f"\\u{ord(one):04x}" for one in laid_out)
    Console(emoji=False, markup=False).print(JSONHighlighter()(safe), soft_wrap=True)


def error_as_json(error: Error) -> dict[str, Any]:
    """What a program may want to know of an error."""
    found = {"code": code_of(error), "message": getattr(error, "message", None) or str(error)}
    for name in ("data", "error_id"):
        if getattr(error, name, None):
            found[name] = getattr(error, name)
    return {"error": found}


def code_of(error: Error) -> str:
    """The code of an error that a call was answered with, and of any other one its name, written like a code."""
    import re

    return getattr(error, "code", None) or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
