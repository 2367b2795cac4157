"""`samehost listen`: a plain server. Prints what arrives, and answers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import subprocess
import threading
from typing import TYPE_CHECKING

from samehost import limits
from samehost.blocking.datagrams import Datagram, DatagramListener
from samehost.blocking.listener import listen
from samehost.cli.arguments import AddPolicy, add_type, byte_count, file_mode, group, new_parser, policy, seconds
from samehost.cli.output import one_line
from samehost.errors import Error, UsageError

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from samehost.blocking.connection import Connection
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
    logging.basicConfig(format="samehost: %(message)s", level=logging.INFO)
    answers = _Answers(arguments)
    ending = _Ending()
    with listen(
        arguments.address,
        arguments.type,
        mode=arguments.mode,
        group=arguments.group,
        allow=arguments.allow,
        backlog=arguments.backlog,
    ) as listener:
        ending.listener = listener
        _print(f"Listening on {listener.address}")
        try:
            _serve(listener, answers, arguments)
        finally:
            answers.end()
    return 0


def _serve(listener: Listener | DatagramListener, answers: _Answers, arguments: argparse.Namespace) -> None:
    lost: list[_OutputLost] = []

    def handle(client: Connection | Datagram) -> None:
        try:
            if isinstance(client, Datagram):
                _answer_datagram(client, answers)
            else:
                _converse(client, answers, arguments.max_bytes, close=arguments.close)
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
    """What a signal does before `serve` takes over, so that none finds us with a socket and no way to remove it."""

    def __init__(self) -> None:
        self.listener: Listener | DatagramListener | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.listener is None:
            raise SystemExit(0)
        self.listener.stop()


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
    _report(datagram.data, datagram.files)
    reply = answers.to(datagram.data, datagram.peer)
    if datagram.sender is None:
        logger.info("no reply to %s: its socket has no address", datagram.peer)
    else:
        datagram.reply(reply)


def _report(message: bytes, files: list[File]) -> None:
    _print(f"Received: {one_line(message)}")
    for file in files:
        with file:
            _print(f"Received file: {_describe(file)}")


def _describe(file: File) -> str:
    """What a received descriptor is, asked of the kernel."""
    status = os.fstat(file.fileno())
    name = one_line(os.fsencode(os.readlink(f"/proc/self/fd/{file.fileno()}")))
    return f"{name}, {status.st_size} bytes" if stat.S_ISREG(status.st_mode) else name


class _OutputLost(Error):
    """What arrives cannot be printed, so the server has no purpose any more."""


def _print(line: str) -> None:
    """Print one line at once."""
    try:
        with _printing:
            print(line, flush=True)
    except OSError as error:
        raise _OutputLost(f"this server ends, because it cannot print any more: {error.strerror}") from error


class _Answers:
    """The reply to each message, as the options say."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._echo: bool = arguments.echo
        self._file: str | None = arguments.reply_file
        self._command: str | None = arguments.exec
        self._line = os.fsencode(arguments.reply) + b"\n"
        self._children: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()
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
        with self._start(command, peer) as child:
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
