"""What a service has answered, printed: plain for programs, laid out and safe for a terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from samehost.kernel.owners import printable

if TYPE_CHECKING:
    from samehost.errors import Error


def print_text(text: str) -> None:
    """Print a text that somebody else has sent: as it is to a program, with nothing that steers it to a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.expandtabs().split("\n"))
    print(text)


def print_json(value: Any) -> None:
    """Print a value as JSON: on a line to a program, and laid out, in colours, to a terminal."""
    encoded = msgspec.json.encode(value)
    if not sys.stdout.isatty():
        print(encoded.decode())
        return
    from rich.console import Console
    from rich.highlighter import JSONHighlighter

    laid_out = msgspec.json.format(encoded, indent=2).decode()
    # Escapes, in JSON's own way, are the text that it stands for; beyond U+FFFF there is nothing that needs one.
    safe = "".join(one if one.isprintable() or one == "\n" else f"\\u{ord(one):04x}" for one in laid_out)
    Console(emoji=False, markup=False).print(JSONHighlighter()(safe), soft_wrap=True)


def error_as_json(error: Error) -> dict[str, Any]:
    """What a program may want to know of an error."""
    code = getattr(error, "code", None) or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    found = {"code": code, "message": getattr(error, "message", None) or str(error)}
    for name in ("data", "error_id"):
        if getattr(error, name, None):
            found[name] = getattr(error, name)
    return {"error": found}
