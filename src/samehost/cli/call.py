"""`samehost call`: one call. Sends the arguments as the method declares them, and prints what it answers.

Imports nothing that a call does not need, because a shell script may make thousands of them.
"""

# ruff: noqa: SLF001 - it makes calls with arguments of any name, `timeout` included

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from samehost.blocking.client import Client, connect
from samehost.cli import words
from samehost.cli.arguments import MixedParser, add_client_options, new_parser, positive
from samehost.cli.results import as_text, error_as_json, print_item, print_json, print_result
from samehost.errors import CallError, Error, MethodNotFound, UsageError
from samehost.protocol.events import Reply
from samehost.service.calling import CLIENTS_TIMEOUT
from samehost.service.remote import RemoteMethod

if TYPE_CHECKING:
    import argparse

    from samehost.blocking.stream import Stream
    from samehost.cli.progress import Bar, Lines
    from samehost.cli.words import Given
    from samehost.service.call import Progress
    from samehost.service.description import Description

DESCRIPTION = """\
Call METHOD and print its result; if it streams, a line for each item as it comes. Each ARGUMENT is one of

  name=TEXT     a text; where the method declares another type, JSON of that type, as in count=3
  name:=JSON    JSON, whatever the method declares
  name=@FILE    what is in the file, as text, or as it is for bytes; name:=@FILE: JSON
  name=-        standard input, likewise; name:=-
  -             all arguments, as a JSON object, or by position as an array, from standard input

Where the method takes a file, it gets the file itself. Where it takes a stream, name=@FILE, name=- and - are an item
for each line, read as the method takes them; for bytes, an item for each piece.

A text or time is printed as it is, bytes are written as they are unless to a terminal, and all others as JSON."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost call`."""
    parser = new_parser("call", DESCRIPTION, MixedParser)
    parser.add_argument("method", metavar="METHOD", help="a method's or topic's name, as samehost describe lists them")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="name=text, name:=json, or -")
    add_client_options(parser)
    parser.add_argument("--count", type=positive, metavar="N", help="end a stream after N items")
    parser.add_argument("--notify", action="store_true", help="want no answer, and do not wait for one")
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as JSON whatever it is")
    parser.add_argument(
        "--progress", action="store_true", help="tell how far the call has come, also where there is no terminal"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Call and print; 0, or 1 when the method says no. Raises the errors of `Client.call`, but CallError."""
    typed = words.read(arguments.arguments)
    try:
        with (
            ExitStack() as opened,
            connect(arguments.address, wait=arguments.wait, timeout=arguments.timeout, trust=arguments.trust) as client,
        ):
            given = words.given(typed, _described(client), arguments.method, opened) if typed else words.Given()
            _call(client, arguments, given)
    except RecursionError as error:
        raise UsageError("an argument is nested too deep") from error
    except Error as error:
        if arguments.json and not isinstance(error, UsageError):
            print_json(error_as_json(error))
        if not isinstance(error, CallError):
            raise
        from samehost.kernel.owners import printable

        print(f"samehost: {printable(str(error))} ({printable(error.code)})", file=sys.stderr)
        return 1
    return 0


def _described(client: Client) -> Description | None:
    """What the service says of itself; None for a server that says nothing."""
    try:
        return client.describe()
    except MethodNotFound:
        return None


def _call(client: Client, arguments: argparse.Namespace, given: Given) -> None:
    remote = RemoteMethod(arguments.method)
    if given.source is not None:
        given.source.watch = lambda: client._link._connection.socket if client._link is not None else None
    waiting = client._waiting(remote, given.positional, given.by_name, CLIENTS_TIMEOUT)
    if arguments.notify:
        waiting.is_answered = False
        client._make_plain(waiting)
        client._exchange(remote, waiting)
        return
    with _Reports(wants_lines=arguments.progress) as reports:
        waiting.listener = reports
        link, waiting = client._exchange(remote, waiting)
        result = client._answered(remote, CLIENTS_TIMEOUT, link, waiting)
        if not isinstance(waiting.answer, Reply):
            _print_items(result, arguments, reports)
            return
    print_result(result, as_json=arguments.json)


def _print_items(stream: Stream[Any], arguments: argparse.Namespace, reports: _Reports) -> None:
    """Print items as they come, and the value at the end, which is none of them, on standard error."""
    shares_terminal = sys.stdout.isatty()
    with stream:
        for item in islice(stream, arguments.count):
            if shares_terminal:
                reports.make_room()
            print_item(item, as_json=arguments.json)
        reports.make_room()
        if stream.result is not None:
            _tell(f"{arguments.method} ended with {as_text(stream.result)}")


class _Reports:
    """What the method tells on its way: how far it has come, and how many items of a topic were dropped."""

    def __init__(self, *, wants_lines: bool) -> None:
        self._wants_lines = wants_lines
        self._is_watched = wants_lines or sys.stderr.isatty()
        self._shown: Bar | Lines | None = None
        self._dropped = 0

    def __call__(self, progress: Progress) -> None:
        """Show it, if somebody looks."""
        if self._is_watched:
            from samehost.cli.progress import reporter

            self._shown = self._shown or reporter(wants_lines=self._wants_lines)
            if self._shown is not None:
                self._shown(progress)
        if progress.dropped > self._dropped:
            self._dropped = progress.dropped
            if self._is_watched:
                self.make_room()
                self._tell_dropped()

    def make_room(self) -> None:
        """Let something else be printed."""
        if self._shown is not None:
            self._shown.hide()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.close()
        if self._dropped and not self._is_watched:
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        _tell(f"{self._dropped} item{'s were' if self._dropped > 1 else ' was'} dropped, as this end is too slow")


def _tell(text: str) -> None:
    from samehost.kernel.owners import printable

    with suppress(OSError):  # nobody reads that any more, and the call goes on
        print(f"samehost: {printable(text)}", file=sys.stderr, flush=True)
