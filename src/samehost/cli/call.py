"""`samehost call`: one call. Reads the arguments as the method declares them, and prints the result.

Imports nothing that a call does not need, because a shell script may make thousands of them.
"""

# ruff: noqa: SLF001 - it makes calls with arguments of any name, `timeout` included

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from samehost.blocking.client import Client, connect
from samehost.cli.arguments import MixedParser, add_client_options, new_parser
from samehost.cli.results import error_as_json, print_json, print_text
from samehost.cli.values import Values
from samehost.errors import CallError, Error, MethodNotFound, UsageError
from samehost.service.calling import CLIENTS_TIMEOUT
from samehost.service.remote import RemoteMethod

if TYPE_CHECKING:
    import argparse

    from samehost.service.description import Description
    from samehost.service.schema import Schema

DESCRIPTION = """\
Call METHOD and print its result. Each ARGUMENT is one of

  name=TEXT     a text; where the method declares another type, JSON of that type, as in count=3
  name:=JSON    JSON, whatever the method declares
  name=@FILE    what is in the file, as text, or as it is for bytes; name:=@FILE: JSON
  name=-        standard input, likewise; name:=-
  -             all arguments, as a JSON object, or by position as an array, from standard input

A text or time is printed as it is, bytes are written as they are unless to a terminal, and all others as JSON."""

_ARGUMENT = re.compile(r"(?P<name>[^=]*?)(?P<colon>:?)=(?P<value>.*)", re.DOTALL)


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost call`."""
    parser = new_parser("call", DESCRIPTION, MixedParser)
    parser.add_argument("method", metavar="METHOD", help="a method's name, as samehost describe lists them")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="name=text, name:=json, or -")
    add_client_options(parser)
    parser.add_argument("--notify", action="store_true", help="want no answer, and do not wait for one")
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as JSON whatever it is")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Call and print; 0, or 1 when the method says no. Raises the errors of `Client.call`, but CallError."""
    typed = _read(arguments.arguments)
    try:
        with connect(
            arguments.address, wait=arguments.wait, timeout=arguments.timeout, trust=arguments.trust
        ) as client:
            result = _call(client, arguments.method, typed, is_notification=arguments.notify)
    except Error as error:
        if arguments.json and not isinstance(error, UsageError):
            print_json(error_as_json(error))
        if not isinstance(error, CallError):
            raise
        from samehost.kernel.owners import printable

        print(f"samehost: {printable(str(error))} ({printable(error.code)})", file=sys.stderr)
        return 1
    if not arguments.notify:
        _print(result, as_json=arguments.json)
    return 0


class _Argument(NamedTuple):
    """One argument as it was typed.

    Attributes:
        name: empty for all arguments at once.
        content: a text, or what a file or standard input has.
    """

    name: str
    content: str | bytes
    is_json: bool


def _read(words: list[str]) -> list[_Argument]:
    """What was typed, with files and standard input read.

    Raises:
        UsageError: it cannot be.
    """
    found: dict[str, _Argument] = {}
    for word in words:
        match = _ARGUMENT.fullmatch("=-" if word == "-" else word)
        if match is None or (not match["name"] and word != "-"):
            raise UsageError(f"{word!r} is not an argument: write name=text, name:=json, or - for standard input")
        if match["name"] in found:
            raise UsageError(f"{match['name']} is given twice")
        is_json = bool(match["colon"]) or word == "-"
        found[match["name"]] = _Argument(match["name"], _content(match["value"]), is_json)
    if "" in found and len(found) > 1:
        raise UsageError("- is all of the arguments, and so the only one; for one of them write name=-")
    if words.count("-") + sum(word.endswith("=-") for word in words) > 1:
        raise UsageError("standard input can be one argument only")
    return list(found.values())


def _content(value: str) -> str | bytes:
    if value == "-":
        return sys.stdin.buffer.read()
    if not value.startswith("@"):
        return value
    try:
        with open(value[1:], "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read {value[1:]}: {reason}; for text that begins with @, write name:='\"@…\"'"
        ) from error


def _call(client: Client, method: str, typed: list[_Argument], *, is_notification: bool) -> Any:
    try:
        positional, by_name = _arguments(client, method, typed) if typed else ((), {})
    except RecursionError as error:
        raise UsageError("an argument is nested too deep") from error
    remote = RemoteMethod(method)
    if not is_notification:
        return client._call(remote, positional, by_name)
    waiting = client._waiting(remote, positional, by_name, CLIENTS_TIMEOUT)
    waiting.is_answered = False
    return client._exchange(remote, waiting)


def _arguments(client: Client, method: str, typed: list[_Argument]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to send, by position and by name."""
    names, schemas, values = _declared(_described(client), method)
    if typed[0].name:
        return (), {one.name: _value(one, schemas.get(one.name, {}), values) for one in typed}
    everything = _json(typed[0])
    if isinstance(everything, dict):
        return (), {name: values.from_json(one, schemas.get(name)) for name, one in everything.items()}
    if not isinstance(everything, list):
        raise UsageError("standard input is neither a JSON object nor an array")
    kinds = [schemas[name] for name in names[: len(everything)]]
    kinds += [{}] * (len(everything) - len(kinds))
    return tuple(values.from_json(one, kind) for one, kind in zip(everything, kinds, strict=True)), {}


def _described(client: Client) -> Description | None:
    """What the service says of itself; None for a server that says nothing."""
    try:
        return client.describe()
    except MethodNotFound:
        return None


def _declared(description: Description | None, method: str) -> tuple[list[str], dict[str, Schema], Values]:
    """The names of a method's arguments in their order, their schemas, and how to read values of those."""
    if description is None or method not in description.methods:
        return [], {}, Values({})
    parameters = description.methods[method].parameters
    schemas = {parameter.name: parameter.schema for parameter in parameters}
    return [one.name for one in parameters if not one.keyword_only], schemas, Values(description.definitions)


def _value(argument: _Argument, schema: Schema, values: Values) -> Any:
    if argument.is_json:
        return values.from_json(_json(argument), schema)
    if isinstance(argument.content, str):
        return values.from_text(argument.content, schema)
    if values.is_bytes(schema):
        return argument.content
    try:
        return values.from_text(argument.content.decode(), schema)
    except UnicodeDecodeError as error:
        raise UsageError(f"{argument.name} is not text in UTF-8, and its method does not declare bytes") from error


def _json(argument: _Argument) -> Any:
    try:
        return msgspec.json.decode(argument.content)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        what = argument.name or "standard input"
        raise UsageError(f"{what} is not JSON: {str(error) or 'it is nested too deep'}") from error


def _print(result: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif isinstance(result, str):
        print_text(result)
    elif isinstance(result, datetime):  # the one text that has a type of its own in frames
        print_text(msgspec.json.encode(result).decode().strip('"'))
    elif isinstance(result, bytes) and not sys.stdout.isatty():
        sys.stdout.buffer.write(result)
    elif result is not None:
        print_json(result)
