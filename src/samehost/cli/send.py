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
from samehost.cli.arguments import AddPolicy, add_type, new_parser, open_file, policy, seconds
from samehost.errors import ConnectionClosed, DeadlineExceeded
from samehost.kernel.deadline import Deadline

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

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
        files = [opened.enter_context(open_file(path)) for path in arguments.file]
        data = sys.stdin.buffer.read() if arguments.text == "-" else os.fsencode(arguments.text)
        deadline = Deadline(arguments.wait + arguments.timeout)
        connection = opened.enter_context(
            dial(
                arguments.address, arguments.type, wait=arguments.wait, timeout=arguments.timeout, trust=arguments.trust
            )
        )
        reply = None if arguments.no_reply else _Reply()
        try:
            _exchange(connection, data, files, deadline, reply)
        except ConnectionClosed as error:
            raise _explained(error, connection, reply) from error
        if reply and not reply.has_begun and connection.type != "datagram" and sys.stderr.isatty():
            print(f"samehost: {connection.address} ended the connection without a reply", file=sys.stderr)
    return 0


class _Reply:
    """What comes back, printed as it comes."""

    has_begun = False

    def print(self, piece: bytes) -> None:
        self.has_begun = self.has_begun or bool(piece)
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _exchange(
    connection: Connection, data: bytes, files: Sequence[BinaryIO], deadline: Deadline, reply: _Reply | None
) -> None:
    if connection.type == "stream":
        _send_stream(connection, data, files, deadline, reply)
    else:
        connection.sendall(data, files, timeout=deadline.left())
    if connection.type != "datagram":
        connection.shutdown(socket.SHUT_WR)
    if reply:
        _receive(connection, deadline, reply)


def _explained(error: ConnectionClosed, connection: Connection, reply: _Reply | None) -> ConnectionClosed:
    """The same error, with who ended the connection, and what a client that is refused is not told."""
    if connection.type == "datagram":
        return error
    reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else str(error)
    if reply and reply.has_begun:
        return ConnectionClosed(f"{connection.address} ended the connection in the middle ({reason})")
    before = "it answered" if reply else "it had all of the message"
    return ConnectionClosed(
        f"{connection.address} ended the connection before {before} ({reason}): it may not admit uid {os.geteuid()}"
    )


def _send_stream(
    connection: Connection,
    data: bytes,
    files: Sequence[BinaryIO],
    deadline: Deadline,
    reply: _Reply | None,
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
            if reply:
                _receive(connection, deadline, reply)  # it answered before it left
            raise
        if not wait_for((connection.socket, events), seconds=deadline.left()):
            raise DeadlineExceeded(
                f"{connection.address} did not take all of the message within {deadline.timeout:g} s: "
                f"{len(rest)} of {len(data)} bytes were not sent"
            )
        if events & READ:
            with suppress(BlockingIOError):
                piece, _ = connection._receive_now(limits.MESSAGE_BYTES_MAX, 0)
                if reply:
                    reply.print(piece)
                events = READ | WRITE if piece else WRITE


def _receive(connection: Connection, deadline: Deadline, reply: _Reply) -> None:
    while True:
        try:
            piece = connection.recv(timeout=deadline.left())
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{connection.address} did not {'end its' if connection.type == 'stream' else 'send a'} reply within "
                f"{deadline.timeout:g} s"
            ) from error
        reply.print(piece)
        if not piece or connection.type != "stream":
            return
