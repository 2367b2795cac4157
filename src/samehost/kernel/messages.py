"""One sendmsg(2) or recvmsg(2), with open files and credentials beside the bytes.

Nothing here waits unless the socket itself blocks: with MSG_DONTWAIT a call that cannot go on raises BlockingIOError,
and it is for the caller to wait. Descriptors are close-on-exec from the kernel on, and each one received is in a `File`
or closed before anything else can happen.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from samehost import limits
from samehost.errors import (
    ConnectionClosed,
    ForbiddenMessage,
    MessageTooLarge,
    NotPermitted,
    ReceiverFull,
    UnexpectedFiles,
    UsageError,
)
from samehost.kernel.credentials import CREDENTIALS_BYTES, peer_of_message
from samehost.kernel.files import File

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from samehost.peer import Peer

_CREDENTIALS_SPACE = socket.CMSG_SPACE(CREDENTIALS_BYTES)
_DESCRIPTOR_BYTES = 4

# Plain numbers: `|` on the enumerations of the socket module costs more than half a system call.
DONT_WAIT = int(socket.MSG_DONTWAIT)
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_PEEK = int(socket.MSG_PEEK)
_FILES_CUT = int(socket.MSG_CTRUNC)
_BYTES_CUT = int(socket.MSG_TRUNC)
_CUT_SHORT = _FILES_CUT | _BYTES_CUT

_CLOSED = {errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.EBADF, errno.ENOENT}
"""The other end is gone, or our own end was closed meanwhile."""


class Message(NamedTuple):
    """One datagram.

    Attributes:
        data: its bytes, perhaps none.
        files: the descriptors that came along, the caller's to close.
        peer: the sender; None if the kernel did not tell.
        sender: the address that the sender's socket is bound to, as the kernel gives it; empty without one.
    """

    data: bytes
    files: list[File]
    peer: Peer | None
    sender: str | bytes


def send(
    connected: socket.socket,
    data: bytes | bytearray | memoryview,
    descriptors: Sequence[int] = (),
    to: str | bytes | None = None,
) -> int:
    """Send as much as goes at once, the descriptors with the first byte.

    Args:
        to: the receiver's address, for a socket that is not connected.

    Returns:
        The number of bytes sent.

    Raises:
        BlockingIOError: no room now.
        ConnectionClosed: the other end is gone.
        MessageTooLarge: longer than one datagram or packet may be (net.core.wmem_max, socket(7)).
        ReceiverFull: too many descriptors of this user are under way already (ETOOMANYREFS).
        NotPermitted: the receiver's address has become one that we may not send to.
        UsageError: one of the descriptors is not open.
    """
    try:
        if not descriptors and to is None:
            return connected.send(data, _SEND_FLAGS)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        return connected.sendmsg([data], control, _SEND_FLAGS, to)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno == errno.EBADF and descriptors and connected.fileno() >= 0:
            raise UsageError(f"one of the descriptors {list(descriptors)} is not open, nothing was sent") from error
        raise _sending_failed(error, len(data)) from error


def _sending_failed(error: OSError, size: int) -> Exception:
    if error.errno in _CLOSED:
        return ConnectionClosed(f"the other end is gone, {size} bytes were not sent ({os.strerror(error.errno or 0)})")
    if error.errno == errno.EMSGSIZE:
        return MessageTooLarge(
            f"a message of {size} bytes is longer than one datagram or packet may be (net.core.wmem_max)"
        )
    if error.errno == errno.ETOOMANYREFS:
        return ReceiverFull(
            "too many files of this user are on their way through sockets (RLIMIT_NOFILE), none was sent"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"the {size} bytes may not be sent to this receiver ({os.strerror(error.errno)})")
    return error


def receive(
    connected: socket.socket, size: int, files_max: int = 0, flags: int = DONT_WAIT
) -> tuple[bytes, list[File]]:
    """Receive at most `size` bytes and at most `files_max` descriptors.

    Args:
        connected: the socket.
        size: for a datagram or packet, the longest that is allowed.
        files_max: how many descriptors may come along.
        flags: DONT_WAIT, or 0 to let the kernel wait.

    Returns:
        The bytes, none at the end of a stream, and the descriptors, which are the caller's to close.

    Raises:
        BlockingIOError: nothing is there.
        ConnectionClosed: the other end left without reading what we sent it, or our own end is closed.
        UnexpectedFiles: more descriptors came than were asked for; all are closed.
        ForbiddenMessage: a datagram or packet longer than `size`; it is gone, and what came with it is closed.
        UsageError: `size` is not at least 1.
    """
    if size < 1:
        raise UsageError(f"size={size}: room for at least one byte, or nothing cannot be told from the end")
    # CMSG_LEN, because CMSG_SPACE would round up, and room for 3 descriptors would deliver 4.
    room = socket.CMSG_LEN(files_max * _DESCRIPTOR_BYTES) if files_max else 0
    try:
        data, control, found, _ = connected.recvmsg(size, room, flags | _CLOSE_ON_EXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise _receiving_failed(error) from error
    if not control and not found & _CUT_SHORT:
        return data, []
    files, _ = take_control(control, found, size, files_max)
    return data, files


def wait_for_data(connected: socket.socket) -> None:
    """Let the kernel wait until there is something to receive, or the end, with no buffer held meanwhile.

    Raises:
        BlockingIOError: the socket is non-blocking, and nothing is there.
        ConnectionClosed: as `receive`.
    """
    try:
        connected.recv(1, _PEEK)
    except BlockingIOError:
        raise
    except OSError as error:
        raise _receiving_failed(error) from error


def receive_datagram(bound: socket.socket, size: int, files_max: int) -> Message:
    """Receive one datagram with its sender, on a socket that has SO_PASSCRED; otherwise as `receive`."""
    room = _CREDENTIALS_SPACE + (socket.CMSG_LEN(files_max * _DESCRIPTOR_BYTES) if files_max else 0)
    try:
        data, control, found, sender = bound.recvmsg(size, room, DONT_WAIT | _CLOSE_ON_EXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise _receiving_failed(error) from error
    files, peer = take_control(control, found, size, files_max)
    return Message(data, files, peer, sender or b"")


def _receiving_failed(error: OSError) -> OSError:
    if error.errno in _CLOSED:
        return ConnectionClosed(f"the connection is closed ({os.strerror(error.errno)})")
    return error


def take_control(
    control: list[tuple[int, int, bytes]], found: int, size: int, files_max: int
) -> tuple[list[File], Peer | None]:
    """Give every descriptor an owner before anything else, then see whether the message is allowed."""
    files: list[File] = []
    peer = None
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors = array.array("i")
            descriptors.frombytes(content[: len(content) - len(content) % _DESCRIPTOR_BYTES])
            files.extend(map(File, descriptors))
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(content) == CREDENTIALS_BYTES:
            peer = peer_of_message(content)
    if found & _FILES_CUT or len(files) > files_max:
        close_all(files)
        raise UnexpectedFiles(
            f"the peer passed more open files than the {files_max} that were asked for, or than this process may still "
            "open (RLIMIT_NOFILE); all of them are closed"
        )
    if found & _BYTES_CUT:
        close_all(files)
        raise ForbiddenMessage(f"the peer sent a message longer than the limit of {size} bytes")
    return files, peer


def close_all(files: Iterable[File]) -> None:
    """Close files that nobody will get."""
    for file in files:
        file.close()


def check_files_max(files_max: int) -> None:
    """Raise MessageTooLarge if one message cannot bring so many files."""
    if not 0 <= files_max <= limits.FILES_PER_MESSAGE_MAX:
        raise MessageTooLarge(
            f"files_max={files_max}: from 0 to {limits.FILES_PER_MESSAGE_MAX} files travel with one message"
        )
