"""`samehost stub`: writes a typed client's class for a running service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost.blocking.client import Client, connect
from samehost.cli.arguments import add_client_options, new_parser
from samehost.service.stub import source_of

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """\
Print a Python module with a class for `samehost.connect(ADDRESS, CLASS)`, and the types that its methods use, so that
editors and type checkers know them."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost stub`."""
    parser = new_parser("stub", DESCRIPTION)
    add_client_options(parser)
    parser.add_argument("--asyncio", action="store_true", help="make it a class for samehost.aio.connect")
    parser.add_argument("--name", default="", metavar="CLASS", help="of the class (the service's name)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the source. Raises the errors of `Client.describe`."""
    with connect(arguments.address, wait=arguments.wait, timeout=arguments.timeout, trust=arguments.trust) as client:
        description = client.describe()
    base: type = Client
    if arguments.asyncio:
        from samehost.aio.client import Client as AsyncClient

        base = AsyncClient
    print(source_of(description, arguments.name, dir(base), is_async=arguments.asyncio), end="")
    return 0
