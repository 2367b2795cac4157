"""Python source as formatters lay it out."""

from __future__ import annotations

import ast

import pytest

from samehost.service.layout import bytes_literal, docstring, fitted, flat, folded, quoted, subscript


@pytest.mark.parametrize("text", ["", "a", "it's", 'a "b"', "'\"", "\n\\\u202e\0", "é\U0001f600", "\ud800"])
def test_a_text_is_a_literal_of_printable_characters(text: str) -> None:
    assert ast.literal_eval(quoted(text)) == text
    assert quoted(text).isprintable()


def test_bytes_are_read_from_base64() -> None:
    assert bytes_literal("AGl0J3M=") == 'b"\\x00it\'s"'
    assert ast.literal_eval(bytes_literal("Iic=") or "") == b"\"'"
    assert [bytes_literal(value) for value in ("%", "é", 7, None)] == [None] * 4


@pytest.mark.parametrize(
    "text", ["one line", "two\n\nparagraphs\n  indented", '"', 'a"""b', "\\", "\x1b\u2028", "ends with \\"]
)
def test_a_docstring_says_what_it_was_made_of(text: str) -> None:
    lines = docstring(text, "    ")
    (node,) = ast.parse("class A:\n" + "\n".join(lines)).body
    assert ast.get_docstring(node) == "\n".join(text.strip().splitlines()) or ast.get_docstring(node) == text
    assert all(line.isprintable() for line in lines)


def test_a_line_is_folded_in_its_last_brackets() -> None:
    line = f"    name: {subscript('dict', ['a' * 34, subscript('list', ['b' * 34])])} = None"
    assert flat(line) == f"    name: dict[{'a' * 34}, list[{'b' * 34}]] = None"
    assert folded(line) == ["    name: dict[", f"        {'a' * 34}, list[{'b' * 34}]", "    ] = None"]
    assert folded("x" * 100) == ["x" * 100]


def test_what_is_in_brackets_is_on_one_line_or_on_a_line_each() -> None:
    assert fitted("", "def f(", ["a", "b"], "):") == ["def f(a, b):"]
    assert fitted("", "def f(", ["a" * 40, "b" * 40], "):") == ["def f(", f"    {'a' * 40}, {'b' * 40}", "):"]
    each = ["def f(", f"    {'a' * 60},", f"    {'b' * 60},", "):"]
    assert fitted("", "def f(", ["a" * 60, "b" * 60], "):") == each
