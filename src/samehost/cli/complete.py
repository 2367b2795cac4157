"""`samehost complete`: what the words of an unfinished command line may go on with, for the scripts of `completion`.

It is asked at every press of a key, so it prints what it finds soon, and nothing when anything at all goes wrong.
"""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import TYPE_CHECKING

from samehost.cli import COMMANDS
from samehost.cli.arguments import Parser
from samehost.errors import Error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from samehost.service.description import Description

_ASK_SECONDS = 1.0
_SERVICE_COMMANDS = ("call", "bench", "describe", "stub", "send", "inspect")
"""Those whose first argument is the address of somebody who is there."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost complete`."""
    parser = Parser("complete", "Print what an unfinished command line may go on with.")
    parser.add_argument("words", nargs="*", help="the words after samehost, the last one unfinished")
    parser.add_argument("--line", help="or all of the line so far")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the candidates, one a line."""
    words = arguments.words if arguments.line is None else _words_of(arguments.line)
    current = words[-1] if words else ""
    for candidate in _candidates(words[:-1], current):
        # A name with a space or anything a shell might obey in it is nothing to be typed for somebody.
        if candidate.startswith(current) and shlex.quote(candidate.removesuffix("=")) == candidate.removesuffix("="):
            print(candidate)
    return 0


def _words_of(line: str) -> list[str]:
    """The words of a line after its first one, as a shell would cut it."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation that is not closed yet
        words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    return words[1:]


def _candidates(before: list[str], current: str) -> Iterable[str]:
    if not before:
        return [*COMMANDS, "--help", "--version"]
    name = before[0]
    if name not in COMMANDS:
        return ()
    actions = import_module(f"samehost.cli.{name}").parser()._actions  # noqa: SLF001 - which no public name tells
    options = {option: action for action in actions for option in action.option_strings}
    waiting = options.get(before[-1])
    if waiting is not None and waiting.nargs is None:  # it takes a value, and this is it
        return waiting.choices or ()
    if current.startswith("-"):
        return options
    given = _positional(before[1:], options)
    positional = [action for action in actions if not action.option_strings]
    if len(given) < len(positional) and positional[len(given)].choices:
        return positional[len(given)].choices or ()
    return _of_services(name, given, current) if name in _SERVICE_COMMANDS else ()


def _positional(words: list[str], options: dict[str, argparse.Action]) -> list[str]:
    """The words that are neither options nor values of these."""
    found: list[str] = []
    takes_value = False
    for word in words:
        if takes_value:
            takes_value = False
        elif word.startswith("-") and word != "-":
            takes_value = word in options and options[word].nargs is None
        else:
            found.append(word)
    return found


def _of_services(name: str, given: list[str], current: str) -> Iterable[str]:
    """Addresses, then methods, then arguments."""
    if not given:
        from samehost.cli.places import is_dead, places

        return [] if "/" in current else [place.address for place in places() if not is_dead(place)]
    description = _describe(given[0]) if name in ("call", "bench", "describe") else None
    if description is None:
        return ()
    if len(given) == 1:
        return description.methods
    if name == "describe" or given[1] not in description.methods:
        return ()
    there = {word.partition("=")[0].removesuffix(":") for word in given[2:]}
    method = description.methods[given[1]]
    names = [parameter.name for parameter in method.parameters]
    names += [method.stream_parameter] if method.stream_parameter else []
    return [f"{name}=" for name in names if name not in there]


def _describe(address: str) -> Description | None:
    from samehost.blocking.client import connect

    try:
        with connect(address, timeout=_ASK_SECONDS) as client:
            return client.describe()
    except Error:
        return None
