"""`samehost describe`: what a service tells of itself, for people, or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeAlias

from samehost.blocking.client import connect
from samehost.cli.arguments import add_client_options, new_parser
from samehost.cli.results import print_json
from samehost.errors import MethodNotFound
from samehost.kernel.owners import printable
from samehost.service.description import limits_of, rules_of
from samehost.service.schema import used_by
from samehost.service.stub import notation

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from samehost.service.description import Description, MethodDescription

_Line: TypeAlias = tuple[str, str]
"""A text, and how it looks on a terminal."""

DESCRIPTION = """\
Show the methods of the service at ADDRESS, or METHOD alone: signature, documentation, who may call it, and the types
that it uses."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost describe`."""
    parser = new_parser("describe", DESCRIPTION)
    parser.add_argument("method", metavar="METHOD", nargs="?", help="this method alone")
    add_client_options(parser)
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, types as JSON Schema")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Describe. Raises the errors of `Client.describe`, and MethodNotFound for a METHOD that is not there."""
    with connect(arguments.address, wait=arguments.wait, timeout=arguments.timeout, trust=arguments.trust) as client:
        description = client.describe()
        address = client.address
    if arguments.method is not None:
        _keep_only(description, arguments.method)
    if arguments.json:
        print_json(description)
        return 0
    written = notation(description)
    about = _about(description, address) if arguments.method is None else ()
    _print([*about, *_methods(description, written.signatures), *_types(written.types)])
    return 0


def _keep_only(description: Description, method: str) -> None:
    if method not in description.methods:
        there = ", ".join(description.methods) or "none"
        raise MethodNotFound(f"the service {description.service} has no such method; it has {there}", method=method)
    described = description.methods[method]
    description.methods = {method: described}
    description.definitions = used_by(described.schemas(), description.definitions)


def _about(description: Description, address: str) -> Iterator[_Line]:
    yield f"{description.service} on {address}", "bold"
    if description.allow:
        yield f"Allowed: {description.allow}", ""
    yield "", ""


def _methods(description: Description, signatures: dict[str, str]) -> Iterator[_Line]:
    for key, method in description.methods.items():
        yield signatures[key], "bold"
        for line in method.doc.expandtabs().splitlines():
            yield f"    {line}" if line.strip() else "", ""
        if policy := _policy(method):
            yield f"    [{policy}]", "dim"
        yield "", ""


def _policy(method: MethodDescription) -> str:
    """What a caller should know beside the signature."""
    parts = [
        f"topic, {rules_of(method.topic)}" if method.topic else "",
        "idempotent" if method.idempotent else "",
        f"at most {method.timeout:g} s" if method.timeout else "",
        *limits_of(method),
        f"errors: {', '.join(method.errors)}" if method.errors else "",
        f"allowed: {method.allow}" if method.allow else "",
    ]
    return "; ".join(part for part in parts if part)


def _types(types: dict[str, list[str]]) -> Iterator[_Line]:
    for lines in types.values():
        for line in lines:
            yield line, ""
        yield "", ""


def _print(lines: list[_Line]) -> None:
    """Print, with one empty line between two parts and none at the end."""
    while lines and not lines[-1][0]:
        lines.pop()
    if not sys.stdout.isatty():
        for text, _ in lines:
            print(printable(text))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    for text, style in lines:
        console.print(Text(printable(text), style=style), soft_wrap=True)
