"""The command `samehost`: one module a subcommand, imported only when it is the one that was asked for.

A subcommand module has `parser()`, which describes its arguments, and `run(arguments)`, which returns the exit code.
Exit codes follow sysexits.h; `_EXIT_CODES` is the one place that gives them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from samehost import __version__
from samehost.errors import (
    ClaimError,
    DeadlineExceeded,
    Error,
    NotPermitted,
    ReceiverFull,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from typing import TextIO

COMMANDS = {
    "listen": "a plain server: prints what arrives, and answers",
    "send": "a plain client: sends a message, and prints the reply",
    "inspect": "who holds a socket, and who is connected to it",
    "serve": "serves a service of yours",
    "call": "calls a method of a service",
    "bench": "how long a method of a service takes, and how many calls it answers",
    "describe": "the methods of a service: types, documentation, policies",
    "list": "the services running on this host",
    "stub": "writes a typed client's class for a service",
    "completion": "prints a script that completes all of this in a shell",
}

HIDDEN = ("complete",)
"""Commands for programs of our own."""

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

_EXIT_CODES: tuple[tuple[type[Error], int], ...] = (
    (UsageError, USAGE),
    (Unavailable, 69),
    (ClaimError, 73),
    (DeadlineExceeded, 75),
    (ReceiverFull, 75),
    (NotPermitted, 77),
    (Error, FAILED),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    _prepare_streams()
    code = OK
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        code = code or _failed(error)
    try:
        sys.stderr.flush()
    except OSError:  # there is nowhere left to say so, and the exit code still tells
        _discard(sys.stderr)
    return code


def _run(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
        return OK if words else USAGE
    if name == "--version":
        print(f"samehost {__version__}")
        return OK
    if name not in COMMANDS and name not in HIDDEN:
        return _complain(f"there is no command {name!r}: choose one of {', '.join(COMMANDS)}", USAGE)
    try:
        # Nothing that an import makes is garbage: so it is not looked through, neither now nor at the end.
        gc.disable()
        try:
            command = import_module(f"samehost.cli.{name}")
            gc.freeze()
        finally:
            gc.enable()
        code: int = command.run(command.parser().parse_args(words[1:]))
    except Error as error:
        return _complain(str(error), next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # argparse, or a second signal
        return end.code if isinstance(end.code, int) else FAILED
    return code


def _prepare_streams() -> None:
    """Open what the caller has closed, and never fail over a character that standard output cannot show.

    Standard error is kept back until it is flushed, so that nothing that writes to it fails because it is full.
    """
    # In the order of their numbers: open takes the lowest that is free.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=False, write_through=False)


def _discard(stream: TextIO) -> None:
    """Drop what could not be written, which Python would try, and complain about, once more at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failed(error: OSError) -> int:
    """What nobody could do anything about: standard output is gone or full, descriptors or memory have run out."""
    if isinstance(error, BrokenPipeError):
        return FAILED  # whoever read our output has seen enough
    return _complain(f"cannot go on: {error.strerror or error}", FAILED)


def _complain(message: str, code: int) -> int:
    from samehost.kernel.owners import printable

    print(f"samehost: {printable(message)}", file=sys.stderr)
    return code


def _overview() -> str:
    commands = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return (
        "usage: samehost COMMAND …\n\n"
        "Fast, safe local services over UNIX domain sockets.\n\n"
        f"commands:\n{commands}\n\n"
        "addresses:\n"
        "  /a/path or ./path   a socket file\n"
        "  @name               an abstract name\n"
        "  fd:3                a socket that this process was handed\n"
        "  clock               $XDG_RUNTIME_DIR/samehost/clock.sock (/run/samehost/clock.sock for root)\n\n"
        "exit codes: 0 fine, 1 failed at the other end, 2 usage, 69 nobody there, 73 cannot create the socket,\n"
        "            75 deadline passed, 77 not permitted\n\n"
        "samehost COMMAND --help tells more."
    )
