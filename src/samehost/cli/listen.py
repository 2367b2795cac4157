"""`samehost listen`: a plain server. Prints what arrives, and answers."""

# ruff: noqa: SLF001 - what it prints first is part of its start, which a signal may end

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from samehost import limits
from samehost.address import parse
from samehost.blocking.connection import Connection
from samehost.blocking.datagrams import Datagram, DatagramListener
from samehost.blocking.listener import listen
from samehost.blocking.waiting import READ, WRITE, wait_for
from samehost.cli.arguments import AddPolicy, add_type, byte_count, file_mode, group, new_parser, policy, seconds
from samehost.cli.output import Diagnostics, one_line
from samehost.errors import Error, UsageError
from samehost.kernel.claim import Request
from samehost.kernel.mailbox import Mailbox
from samehost.kernel.messages import close_all

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from samehost.blocking.listener import Listener
    from samehost.kernel.files import File
    from samehost.peer import Peer

logger = logging.getLogger("samehost")

_printing = threading.Lock()

DESCRIPTION = """\
Claim ADDRESS and serve everybody who comes, all at once. Each message (what arrives in one read, or one datagram or
packet) is printed and answered; a conversation goes on until the client ends it.

The first SIGINT or SIGTERM ends it gracefully: the socket is removed and conversations may finish."""

REPLY = "Message received successfully"

_COMMANDS_MAX = 256
"""Commands of --exec that run at a time; further ones wait."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost listen`."""
    parser = new_parser("listen", DESCRIPTION)
    add_type(parser)
    replies = parser.add_mutually_exclusive_group()
    replies.add_argument("--reply", default=REPLY, metavar="TEXT", help=f"answer with this line ({REPLY})")
    replies.add_argument("--reply-file", metavar="PATH", help="answer with what is in this file then")
    replies.add_argument("--echo", action="store_true", help="answer with the message itself")
    replies.add_argument(
        "--exec",
        metavar="CMD",
        help="answer with the output of this shell command, which finds the message on its standard input and the "
        "client in SAMEHOST_PEER_UID, SAMEHOST_PEER_GID and SAMEHOST_PEER_PID",
    )
    parser.add_argument("--close", action="store_true", help="end each conversation after the first reply")
    parser.add_argument(
        "--max-bytes",
        type=byte_count,
        default=limits.MESSAGE_BYTES_MAX,
        metavar="N",
        help=f"bytes that one read takes, or one datagram or packet may have ({limits.MESSAGE_BYTES_MAX})",
    )
    parser.add_argument(
        "--mode", type=file_mode, default=0o600, metavar="OCTAL", help="permissions of the socket (600)"
    )
    parser.add_argument(
        "--group", type=group, metavar="GROUP", help="hand the socket to this group, as in --mode 660 --group staff"
    )
    parser.add_argument(
        "--allow",
        type=policy,
        action=AddPolicy,
        metavar="POLICY",
        help="serve only these peers, as in user=alice, or uid=1000,group=staff for both at once; repeatable",
    )
    parser.add_argument(
        "--backlog", type=int, metavar="N", help="clients that may wait to be accepted (net.core.somaxconn)"
    )
    parser.add_argument(
        "--drain",
        type=seconds,
        default=limits.DRAIN_SECONDS,
        metavar="SECONDS",
        help="how long conversations may go on after the first signal (30)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Raises the errors of `samehost.listen`."""
    logging.basicConfig(format="samehost: %(message)s", level=logging.INFO, handlers=[Diagnostics()])
    answers = _Answers(arguments)
    ending = _Ending()
    with _listen(arguments) as listener:
        ending.stops(listener)
        _announce(listener)
        try:
            _serve(listener, answers, arguments)
        finally:
            ending.is_over()
            answers.end()
    return 0


def _listen(arguments: argparse.Namespace) -> Listener | _DatagramsInOrder:
    mode, group, backlog = arguments.mode, arguments.group, arguments.backlog
    if arguments.type == "datagram":
        request = Request(parse(arguments.address), arguments.type, mode, group, backlog)
        return _DatagramsInOrder(Mailbox(request, arguments.allow))
    listener: Listener = listen(arguments.address, arguments.type, mode, group, arguments.allow, backlog)
    return listener


def _announce(listener: Listener | DatagramListener) -> None:
    """Say that it listens; but a signal ends the wait for somebody to read that, as it could not end a write."""
    wait_for((sys.stdout, WRITE), (listener._wake, READ), seconds=math.inf)
    if not listener._is_stopping:
        _print(f"Listening on {listener.address}")


def _serve(listener: Listener | _DatagramsInOrder, answers: _Answers, arguments: argparse.Namespace) -> None:
    lost: list[_OutputLost] = []

    def handle(client: Connection | Datagram) -> None:
        try:
            if isinstance(client, Connection):
                _converse(client, answers, arguments.max_bytes, close=arguments.close)
            elif isinstance(listener, _DatagramsInOrder):
                listener.report()
                _answer_datagram(client, answers)
        except _OutputLost as error:
            lost.append(error)
            listener.stop()

    if isinstance(listener, DatagramListener):
        files_max = limits.FILES_PER_MESSAGE_MAX
        listener.serve(handle, size=arguments.max_bytes, files_max=files_max, drain=arguments.drain)
    else:
        listener.serve(handle, drain=arguments.drain)
    if lost:
        raise lost[0]


class _Ending:
    """What a signal does before `serve` takes over: it never interrupts the claiming of an address half-way."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.is_due = False
        self._listener: Listener | DatagramListener | None = None
        for number in self._SIGNALS:
            signal.signal(number, self._on_signal)

    def stops(self, listener: Listener | DatagramListener) -> None:
        """Have a signal stop this listener, also if it has come already."""
        self._listener = listener
        if self.is_due:
            listener.stop()

    def is_over(self) -> None:
        """From here on a signal ends the process, whatever that is still waiting for."""
        for number in self._SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_due = True
        if self._listener is not None:
            self._listener.stop()


class _DatagramsInOrder(DatagramListener):
    """Datagrams are handled in a thread each, and yet printed in the order in which they arrived."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._arrived: deque[Datagram] = deque()
        self._reporting = threading.Lock()

    def _receive_now(self, size: int, files_max: int) -> Datagram | None:
        datagram = super()._receive_now(size, files_max)
        if datagram is not None:
            self._arrived.append(datagram)
        return datagram

    def report(self) -> None:
        """Print all that have arrived and are not printed yet."""
        with self._reporting:
            while self._arrived:
                _report(self._arrived[0].data, self._arrived[0].files)
                self._arrived.popleft()


def _converse(connection: Connection, answers: _Answers, size: int, *, close: bool) -> None:
    """One client's conversation: a message, a reply, until it closes."""
    while True:
        message, files = connection.recv_with_files(size, files_max=limits.FILES_PER_MESSAGE_MAX)
        if not message:
            return
        _report(message, files)
        if reply := answers.to(message, connection.peer):
            connection.sendall(reply)
        if close:
            return


def _answer_datagram(datagram: Datagram, answers: _Answers) -> None:
    reply = answers.to(datagram.data, datagram.peer)
    if datagram.sender is None:
        logger.info("no reply to %s: its socket has no address", datagram.peer)
    else:
        datagram.reply(reply)


def _report(message: bytes, files: list[File]) -> None:
    try:
        descriptions = [_describe(file) for file in files if not file.closed]
    finally:
        close_all(files)
    _print(f"Received: {one_line(message)}", *(f"Received file: {description}" for description in descriptions))


def _describe(file: File) -> str:
    """What a received descriptor is, asked of the kernel."""
    status = os.fstat(file.fileno())
    name = one_line(os.fsencode(os.readlink(f"/proc/self/fd/{file.fileno()}")))
    return f"{name}, {status.st_size} bytes" if stat.S_ISREG(status.st_mode) else name


class _OutputLost(Error):
    """What arrives cannot be printed, so the server has no purpose any more."""


def _print(*lines: str) -> None:
    """Print lines at once. Past Python's buffer, whose lock would keep the process from ending while nobody reads."""
    rest = "".join(f"{line}\n" for line in lines).encode(sys.stdout.encoding, "backslashreplace")
    try:
        with _printing:
            while rest:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
    except OSError as error:
        raise _OutputLost(f"this server ends, because it cannot print any more: {error.strerror}") from error


def _commands_that_fit() -> int:
    """How many commands to run at a time: each takes up to four descriptors, of the quarter of RLIMIT_NOFILE that
    connections leave.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _COMMANDS_MAX
    return max(1, min(_COMMANDS_MAX, int(soft * (1 - limits.DESCRIPTOR_SHARE_MAX) / 4)))


class _Answers:
    """The reply to each message, as the options say."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._echo: bool = arguments.echo
        self._file: str | None = arguments.reply_file
        self._command: str | None = arguments.exec
        self._line = os.fsencode(arguments.reply) + b"\n"
        self._children: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()
        self._places = threading.Semaphore(_commands_that_fit())
        self._is_over = False
        if self._file is not None:
            self._read_file()

    def to(self, message: bytes, peer: Peer) -> bytes:
        """The reply to one message."""
        if self._echo:
            return message
        if self._file is not None:
            return self._read_file()
        if self._command is not None:
            return self._execute(self._command, message, peer)
        return self._line

    def _read_file(self) -> bytes:
        assert self._file is not None
        try:
            with open(self._file, "rb") as file:
                return file.read()
        except OSError as error:
            raise UsageError(f"cannot read the reply file {self._file}: {error.strerror}") from error

    def _start(self, command: str, peer: Peer) -> subprocess.Popen[bytes]:
        """Start the command, in a session of its own, so that Ctrl-C reaches us alone and it can finish its reply."""
        identity = {"UID": peer.uid, "GID": peer.gid, "PID": peer.pid}
        with self._starting:
            if self._is_over:
                raise Error(f"the server has ended: not run: {command}")
            try:
                child = subprocess.Popen(
                    ["/bin/sh", "-c", command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                    env={**os.environ, **{f"SAMEHOST_PEER_{name}": str(number) for name, number in identity.items()}},
                )
            except OSError as error:
                raise Error(f"cannot run {command}: {error.strerror}") from error
            self._children.add(child)
        return child

    def _execute(self, command: str, message: bytes, peer: Peer) -> bytes:
        with self._places, self._start(command, peer) as child:
            try:
                reply, _ = child.communicate(message)
            finally:
                self._children.discard(child)
        if child.returncode != 0:
            logger.warning("%s: exit status %d", command, child.returncode)
        return reply

    def end(self) -> None:
        """Kill the commands that the drain time was not enough for."""
        with self._starting:
            self._is_over = True
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
