"""Every error that samehost raises on purpose, under one root.

The branches tell whose move is next. `UsageError` is the caller's own mistake, `ClaimError` an address that cannot be
taken, `Unavailable`, `NotPermitted` and `DeadlineExceeded` what a client meets, `PeerError` a peer that broke the
rules. Each is also the built-in exception that people already catch for it, so `except TimeoutError` works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samehost.peer import Peer


class Error(Exception):
    """The root: whatever samehost raises on purpose is one of these."""


class UsageError(Error, ValueError):
    """The caller asked for something that cannot be meant."""


class AddressError(UsageError):
    """The address is not one: the message says what is wrong with it."""


class PolicyError(UsageError):
    """A policy that cannot be: an unknown user or group, or no condition at all."""


class MessageTooLarge(UsageError):
    """A message, or its number of files, is over the limit; nothing was sent."""


class ClaimError(Error, OSError):
    """The address cannot be taken; nothing was left behind."""


class AddressInUse(ClaimError):
    """A living socket, or a server that is about to open one, has the address."""


class NotASocket(ClaimError):
    """Something that is not a socket is at the path; it was not touched."""


class Unavailable(Error, ConnectionError):
    """Nobody listens at the address."""


class ConnectionClosed(Error, ConnectionError):
    """The connection has ended, here or at the other end, before the operation was done."""


class ListenerClosed(Error):
    """The listener was closed, before or during the call."""


class NotPermitted(Error, PermissionError):
    """The kernel or a policy says no."""


class UntrustedServer(NotPermitted):
    """Somebody else than expected answers at the address; nothing was sent to them.

    Attributes:
        peer: the server as the kernel reports it.
    """

    def __init__(self, message: str, peer: Peer) -> None:
        super().__init__(message)
        self.peer = peer


class DeadlineExceeded(Error, TimeoutError):
    """The time given for the operation is over."""


class ReceiverFull(Error):
    """The receiver does not read: its queue stayed full for as long as we were willing to try."""


class PeerError(Error):
    """The peer broke the rules; its connection is shut."""


class UnexpectedFiles(PeerError):
    """The peer passed more files than were asked for; all of them are closed."""


class ForbiddenMessage(PeerError):
    """A datagram or packet longer than the receiver's limit."""


class LocalProtocolError(UsageError):
    """This end asked its connection for a step that the protocol does not have there; nothing was sent."""


class RemoteProtocolError(PeerError):
    """The peer sent what the protocol does not have there; the connection is over.

    Attributes:
        code: one of the codes of PROTOCOL.md section 12.
    """

    def __init__(self, message: str, code: str = "protocol_error") -> None:
        super().__init__(message)
        self.code = code
