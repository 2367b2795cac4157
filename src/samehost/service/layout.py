"""Python source as ruff and black lay it out: literals, docstrings, and lines folded in their brackets."""

from __future__ import annotations

import base64
import binascii

_WIDTH = 88
"""Columns of a line: what ruff and black have unless they are told otherwise."""


def quoted(text: str) -> str:
    """As `repr` writes it, but in the quotes that ruff prefers."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + "".join(escaped(character, quote) for character in text) + quote


def escaped(character: str, quote: str) -> str:
    """A character as it is written in these quotes."""
    if character in "'\"":
        return "\\" + character if character == quote else character
    return repr(character)[1:-1]


def bytes_literal(value: object) -> str | None:
    """The bytes that base64 stands for."""
    if not isinstance(value, str):
        return None
    try:
        written = repr(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        return None
    return f'b"{written[2:-1]}"' if '"' not in written else written


def docstring(text: str, indent: str) -> list[str]:
    """A docstring; on one line, with escapes, if there is anything in it that a literal could not hold as it is."""
    lines = [line.rstrip() for line in text.expandtabs().strip().splitlines()]
    is_safe = all(line.isprintable() and "\\" not in line for line in lines) and '"""' not in text
    if not is_safe or text.strip().startswith('"') or text.strip().endswith('"'):
        written = "".join(escaped(character, '"') for character in text.strip())
        return [f'{indent}"""{written}"""']
    if len(lines) == 1:
        return [f'{indent}"""{lines[0]}"""']
    return [f'{indent}"""{lines[0]}', *(f"{indent}{line}" if line else "" for line in lines[1:]), f'{indent}"""']


OPEN, COMMA, CLOSE = "\0", "\1", "\2"
"""Where a line may be folded: behind an opening bracket, for a comma, before the closing one. No literal has them."""


def subscript(name: str, parts: list[str]) -> str:
    """`name[part, part]`, to be folded there."""
    return f"{name}[{OPEN}{COMMA.join(parts)}{CLOSE}]"


def flat(line: str) -> str:
    """A line that is not folded, whatever its length."""
    return line.replace(OPEN, "").replace(COMMA, ", ").replace(CLOSE, "")


def fitted(indent: str, head: str, parts: list[str], tail: str) -> list[str]:
    """Something in brackets: on one line, or else its parts on a line of theirs, or else each on its own."""
    whole = flat(indent + head + COMMA.join(parts) + tail)
    if len(whole) <= _WIDTH:
        return [whole]
    inner = flat(f"{indent}    {COMMA.join(parts)}")
    if len(inner) <= _WIDTH:
        return [flat(indent + head), inner, *folded(indent + tail)]
    each = [line for part in parts for line in folded(f"{indent}    {part},")]
    return [flat(indent + head), *each, *folded(indent + tail)]


def folded(line: str) -> list[str]:
    """A line, or several if it is too long, in the last brackets where it can be folded."""
    whole = flat(line)
    if len(whole) <= _WIDTH or OPEN not in line:
        return [whole]
    depth = start = end = 0
    commas: list[int] = []
    for place, character in enumerate(line):
        if character == OPEN:
            depth += 1
            if depth == 1:
                start, commas = place, []
        elif character == CLOSE:
            depth -= 1
            end = place
        elif character == COMMA and depth == 1:
            commas.append(place)
    ends = [*commas, end]
    parts = [line[begin + 1 : end] for begin, end in zip([start, *commas], ends, strict=True)]
    indent = line[: len(line) - len(line.lstrip(" "))]
    return fitted(indent, line[len(indent) : start], parts, line[end + 1 :])
