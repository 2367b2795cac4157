"""Text for people: whatever others sent or named, made safe to print."""

from __future__ import annotations

from samehost.kernel.owners import printable


def one_line(text: bytes | str) -> str:
    r"""The text on one line, with control characters written as escapes, so that no sender can steer a terminal.

    Bytes that are no UTF-8 are written as `\\xNN`. A newline at the end is left out.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return printable(text.removesuffix("\n").removesuffix("\r"))
