"""`samehost send`: a plain client. Sends a message, and prints the reply as it came."""

# ruff: noqa: SLF001 - it sends and receives at once, which no caller of the public names needs

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, BinaryIO

from samehost import limits
from samehost.blocking.dial import dial
from samehost.blocking.waiting import READ, WRITE, wait_for
from samehost.cli.arguments import AddPolicy, add_type, new_parser, policy, seconds
from samehost.errors import ConnectionClosed, DeadlineExceeded, UsageError
from samehost.kernel.deadline import Deadline

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from samehost.blocking.connection import Connection

DESCRIPTION = """\
Send TEXT, exactly as it is given, or standard input, and print the reply as it came.

The sending side is closed after the message. On a stream the reply is all that comes until the server closes; for a
datagram or packet it is one message."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost send`."""
    parser = new_parser("send", DESCRIPTION)
    parser.add_argument(
        "text", metavar="TEXT", nargs="?", default="-", help="what to send; - or nothing: standard input"
    )
    add_type(parser)
    parser.add_argument(
        "--timeout", type=seconds, default=limits.DIAL_SECONDS, metavar="SECONDS", help="for all of it (30)"
    )
    parser.add_argument(
        "--wait", type=seconds, default=0.0, metavar="SECONDS", help="for a server that is not there yet (0)"
    )
    parser.add_argument("--no-reply", action="store_true", help="end once the message is sent")
    parser.add_argument(
        "--file", action="append", default=[], metavar="PATH", help="pass this open file along; repeatable"
    )
    parser.add_argument(
        "--trust",
        type=policy,
        action=AddPolicy,
        metavar="POLICY",
        help="who may be serving, as in user=postgres; repeatable (this user and root, or a private path)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Send and print. Raises the errors of `samehost.dial` and of its connection."""
    with ExitStack() as opened:
        files = [opened.enter_context(_open(path)) for path in arguments.file]
        data = sys.stdin.buffer.read() if arguments.text == "-" else os.fsencode(arguments.text)
        deadline = Deadline(arguments.wait + arguments.timeout)
        connection = opened.enter_context(
            dial(
                arguments.address, arguments.type, wait=arguments.wait, timeout=arguments.timeout, trust=arguments.trust
            )
        )
        print_reply = _ignore if arguments.no_reply else _print
        if arguments.type == "stream":
            _send_stream(connection, data, files, deadline, print_reply)
        else:
            connection.sendall(data, files, timeout=deadline.left())
        if arguments.type != "datagram":
            connection.shutdown(socket.SHUT_WR)
        if not arguments.no_reply:
            _receive(connection, deadline)
    return 0


def _send_stream(
    connection: Connection,
    data: bytes,
    files: Sequence[BinaryIO],
    deadline: Deadline,
    print_reply: Callable[[bytes], object],
) -> None:
    """Send all, and meanwhile print what comes: a server that answers as it reads would otherwise wait for us for ever,
    and we for it.
    """
    _, descriptors = connection._check_send(data, files)
    rest = memoryview(data)
    events = READ | WRITE
    while rest:
        try:
            rest = rest[connection._send_now(rest, descriptors) :]
            descriptors = ()
            continue
        except BlockingIOError:
            pass
        except ConnectionClosed:
            if print_reply is _print:
                _receive(connection, deadline)  # it answered before it left
            raise
        if not wait_for((connection.socket, events), seconds=deadline.left()):
            raise DeadlineExceeded(
                f"{connection.address} did not take all of the message within {deadline.timeout:g} s: "
                f"{len(rest)} of {len(data)} bytes were not sent"
            )
        if events & READ:
            with suppress(BlockingIOError):
                reply, _ = connection._receive_now(limits.MESSAGE_BYTES_MAX, 0)
                print_reply(reply)
                events = READ | WRITE if reply else WRITE


def _receive(connection: Connection, deadline: Deadline) -> None:
    while True:
        try:
            reply = connection.recv(timeout=deadline.left())
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{connection.address} did not {'end its' if connection.type == 'stream' else 'send a'} reply within "
                f"{deadline.timeout:g} s"
            ) from error
        _print(reply)
        if not reply or connection.type != "stream":
            return


def _print(reply: bytes) -> None:
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()


def _ignore(reply: bytes) -> None:
    """What --no-reply does with a reply."""


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from error
