"""Open files that travel over a socket: what may be sent, and what was received and now has an owner."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

from samehost import limits
from samehost.errors import MessageTooLarge, UsageError
from samehost.kernel.closing import Closable

if TYPE_CHECKING:
    from collections.abc import Sequence


class HasFileno(Protocol):
    """Anything that stands for a descriptor: an open file, a socket, a `File`."""

    def fileno(self) -> int:
        """Give the open descriptor."""


class File(Closable):
    """A received descriptor: ours, close-on-exec, and closed exactly once.

    Close it, use it as a context manager, or hand its ownership on with `open`, `socket` or `detach`. One that is
    forgotten is closed by the garbage collector with a ResourceWarning. It has a `fileno()`, so that it can be passed
    on, mapped or given to a subprocess. See SCM_RIGHTS in unix(7).
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor, still ours.

        Raises:
            ValueError: closed or handed on already.
        """
        if self._descriptor < 0:
            raise ValueError("the file was closed or handed on already")
        return self._descriptor

    @property
    def closed(self) -> bool:
        """Whether it was closed or handed on."""
        return self._descriptor < 0

    def detach(self) -> int:
        """Hand the descriptor on: the caller has to close it from now on."""
        descriptor = self.fileno()
        self._descriptor = -1
        return descriptor

    def open(self, mode: str = "rb", **options: Any) -> IO[Any]:
        """Hand the descriptor on to a file object, as the built-in `open` makes it with these arguments.

        Raises:
            ValueError: closed or handed on already, or arguments that do not go together; the file stays ours.
            OSError: it cannot be opened like this, as a pipe cannot with "r+b"; it is closed.
        """
        name = f"<received file {self.fileno()}>"
        # With an opener, `open` has the descriptor only once it has looked at the arguments, and closes it whenever it
        # fails from then on. Given the number instead, it may or may not have closed it.
        return open(name, mode, opener=lambda _path, _flags: self.detach(), **options)

    def socket(self) -> socket.socket:
        """Hand the descriptor on to a socket object; family and type are found out from the kernel.

        Raises:
            OSError: it is no socket; the file stays ours.
        """
        received = socket.socket(fileno=self.fileno())
        self._descriptor = -1
        return received

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            warnings.warn(
                f"received file {self._descriptor} was never closed", ResourceWarning, source=self, stacklevel=2
            )
            self.close()

    def __repr__(self) -> str:
        return f"<File {'closed' if self.closed else self._descriptor}>"


class Descriptor:
    """A descriptor of our own for something that is to be sent: closed, without a word, when it is dropped.

    Output may wait for its turn. What waits is not the sender's number, which may be closed and used anew meanwhile.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, file: HasFileno | int) -> Self:
        """One for the same open file, which stays the caller's.

        Raises:
            UsageError: it is not open.
            OSError: no more descriptors can be had.
        """
        (descriptor,) = descriptors_of([file])
        try:
            return cls(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0))
        except OSError as error:
            if error.errno == errno.EBADF:
                raise UsageError(f"{file!r} is not open") from error
            raise

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def __del__(self) -> None:
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)


def descriptors_of(files: Sequence[HasFileno | int]) -> list[int]:
    """The descriptors to send for these files, which stay the caller's.

    Raises:
        MessageTooLarge: more files than travel with one message.
        UsageError: something that is no open file.
    """
    if len(files) > limits.FILES_PER_MESSAGE_MAX:
        raise MessageTooLarge(f"{len(files)} files in one message, at most {limits.FILES_PER_MESSAGE_MAX} travel")
    descriptors = []
    for file in files:
        try:
            descriptor = file if isinstance(file, int) else file.fileno()
        except ValueError as error:  # what closed files say
            raise UsageError(f"{file!r} is not open") from error
        if descriptor < 0:
            raise UsageError(f"{file!r} is not open")
        descriptors.append(descriptor)
    return descriptors
