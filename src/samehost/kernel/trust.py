"""Whether the server that answers at an address may be spoken to.

Anybody may bind a socket in a shared directory such as /tmp, or any abstract name, before the real server does. So a
client looks at who answers before it sends a byte.
"""

from __future__ import annotations

import os
import socket
import stat

from samehost.address import AbstractAddress, Address, DescriptorAddress, PathAddress
from samehost.errors import NotPermitted, UntrustedServer
from samehost.kernel import paths
from samehost.kernel.credentials import peer_of
from samehost.peer import ANYONE, UNKNOWN_ID, Peer, Policy, same_user_or_root


def check_server(connected: socket.socket, address: Address, trust: Policy | None) -> Peer:
    """Find out who serves, and refuse a stranger.

    Without `trust`, a server is fine that runs as this user or root, or that sits where nobody but root, this user and
    the server's own user can put a socket: every directory on the path is owned and writable by these alone.

    Returns:
        The server. For a datagram socket, of which SO_PEERCRED tells nothing, its uid alone (sock_diag(7)), with gid
        and pid unknown: UNKNOWN_ID and 0.

    Raises:
        UntrustedServer: somebody else serves.
        NotPermitted: the kernel does not tell who serves.
    """
    server = _datagram_server(connected) if connected.type == socket.SOCK_DGRAM else peer_of(connected)
    try:
        _check(server, address, trust)
    except BaseException:
        server.close()
        raise
    return server


def _check(server: Peer, address: Address, trust: Policy | None) -> None:
    if server.uid == UNKNOWN_ID and trust != ANYONE:
        raise NotPermitted(
            f"the kernel does not tell who receives datagrams at {address} (its socket is in another network "
            "namespace, or sock_diag(7) is not to be had): nothing was sent; trust=samehost.ANYONE sends all the same"
        )
    if trust is not None:
        if not trust.admits(server):
            raise UntrustedServer(f"{address} is served by {server}, and only {trust} is trusted", server)
        return
    if isinstance(address, DescriptorAddress) or same_user_or_root().admits(server):
        return
    if isinstance(address, AbstractAddress):
        reason = "anybody may take an abstract name"
    else:
        try:
            directory = _foreign_directory(address, server)
        except OSError as error:
            reason = f"its path cannot be looked at any more ({error.strerror or error})"
        else:
            if directory is None:
                return
            reason = f"others may write in {directory}"
    raise UntrustedServer(
        f"{address} is served by {server}, and {reason}: nothing was sent; if this is the right server, trust it with "
        f"trust=samehost.allow(uid={server.uid})",
        server,
    )


def _foreign_directory(address: PathAddress, server: Peer) -> str | None:
    """The first directory on the path in which somebody else could have put the socket."""
    fine = {0, os.geteuid(), server.uid}
    for directory, status in paths.directories_on(address.path):
        if status.st_uid not in fine or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return directory
    return None


def _datagram_server(connected: socket.socket) -> Peer:
    from samehost.kernel import sock_diag

    try:
        ours = sock_diag.lookup(os.fstat(connected.fileno()).st_ino)
        theirs = sock_diag.lookup(ours.peer_inode) if ours is not None and ours.peer_inode else None
    except OSError:  # no netlink in this sandbox, or no unix_diag in this kernel
        theirs = None
    uid = UNKNOWN_ID if theirs is None or theirs.uid is None else theirs.uid
    return Peer(uid, UNKNOWN_ID, (), 0)
