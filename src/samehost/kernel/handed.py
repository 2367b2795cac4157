"""The types of sockets by name, and taking over a socket that this process was handed."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from samehost.errors import AddressError, UsageError

if TYPE_CHECKING:
    from samehost.address import DescriptorAddress

SOCKET_TYPES = {
    "stream": socket.SOCK_STREAM,
    "datagram": socket.SOCK_DGRAM,
    "seqpacket": socket.SOCK_SEQPACKET,
}


def check_type(type: str) -> None:
    """Raise UsageError unless it is one of the three types of unix(7)."""
    if not isinstance(type, str) or type not in SOCKET_TYPES:
        raise UsageError(f"type={type!r} is not one of {', '.join(map(repr, SOCKET_TYPES))}")


# Of asm-generic/socket.h, which the socket module does not name.
_SO_PASSSEC = 34
_SO_PASSPIDFD = 76
_SO_PASSRIGHTS = 83


def pass_no_credentials(handed: socket.socket) -> None:
    """Turn off what puts control data beside every message, where our room for descriptors does not allow for it.

    Whoever made the socket may have turned it on, as systemd does for PassCredentials=yes, and connections inherit it
    from their listener (SO_PASSCRED and its kin, unix(7)).
    """
    for option in (socket.SO_PASSCRED, _SO_PASSSEC, _SO_PASSPIDFD):
        with contextlib.suppress(OSError):  # a kernel that does not have it
            handed.setsockopt(socket.SOL_SOCKET, option, 0)


def pass_no_files(connected: socket.socket) -> bool:
    """Have the kernel refuse to send open files here (SO_PASSRIGHTS, since Linux 6.16); whether it does."""
    try:
        connected.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def adopt_descriptor(address: DescriptorAddress, type: str) -> socket.socket:
    """Take over a UNIX domain socket that this process was handed; close-on-exec from now on.

    Raises:
        AddressError: the descriptor is not open, or no socket of this family and type.
    """
    try:
        handed = socket.socket(fileno=address.number)
    except OSError as error:
        raise AddressError(f"{address} is not a socket: {os.strerror(error.errno or 0)}") from error
    if handed.family != socket.AF_UNIX or handed.type != SOCKET_TYPES[type]:
        found = f"{handed.family.name} {handed.type.name}"
        handed.detach()
        raise AddressError(f"{address} is a socket of another kind ({found}), not a UNIX domain socket of type {type}")
    handed.set_inheritable(False)
    pass_no_credentials(handed)
    return handed
