"""How files, sockets and blobs are written into a message and read from one; arrays are in `arrays`."""

from __future__ import annotations

import base64
import binascii
import fcntl
import io
import os
import socket
import typing
from typing import Any, BinaryIO

from samehost import extensions
from samehost.extensions import Parcel, mismatch
from samehost.kernel.blob import Blob
from samehost.kernel.files import File


def _write_file(value: Any, parcel: Parcel) -> Any:
    return parcel.file(value)


def _read_file(kind: Any, value: Any) -> File:
    if not isinstance(value, File):
        raise mismatch("file", value)
    return value


def _read_open_file(kind: Any, value: Any) -> Any:
    """A file object. It has a descriptor of its own, as the same message may have to be read twice."""
    if (args := typing.get_args(kind)) and args[0] not in (bytes, Any):
        raise ValueError(f"Expected an open file of {args[0].__name__}, got one of bytes")
    descriptor = fcntl.fcntl(_read_file(kind, value).fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    try:
        raw = io.FileIO(descriptor, _MODES[access])
    except (OSError, ValueError, KeyError) as error:  # there is a fourth mode, for ioctl(2) alone (open(2))
        os.close(descriptor)
        raise ValueError(f"Expected an open file, got one that cannot be one: {error}") from error
    return _made(value, _CLASSES[access](raw) if access != os.O_RDWR or raw.seekable() else _BothWays(raw, raw))


class _Reader(io.BufferedReader, BinaryIO):
    """A received file to read."""


class _Writer(io.BufferedWriter, BinaryIO):
    """A received file to write."""


class _Random(io.BufferedRandom, BinaryIO):
    """A received file to read and write at any place."""


class _BothWays(io.BufferedRWPair, BinaryIO):
    """A received file to read and write that has no places, such as a terminal or a socket."""


_MODES = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "r+"}
_CLASSES: dict[int, Any] = {os.O_RDONLY: _Reader, os.O_WRONLY: _Writer, os.O_RDWR: _Random}


def _read_socket(kind: Any, value: Any) -> socket.socket:
    descriptor = fcntl.fcntl(_read_file(kind, value).fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        made = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise ValueError("Expected a socket, got another file") from error
    return typing.cast("socket.socket", _made(value, made))


def _made(file: File, value: Any) -> Any:
    incoming = extensions.incoming_message.get()
    assert incoming
    return incoming.made(file, value)


def _write_blob(value: Any, parcel: Parcel) -> Any:
    return parcel.blob(value.view, is_small_inline=False)


def _read_blob(kind: Any, value: Any) -> Blob:
    if isinstance(value, Blob):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return Blob(value)
    raise mismatch("blob", value)


def _read_blob_json(kind: Any, value: Any) -> Blob:
    return Blob(bytes_of_text(value))


def bytes_of_text(value: Any) -> bytes:
    """The bytes that base64 text stands for.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise mismatch("base64 text", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("Expected base64 text, got other text") from error


_FILE = extensions.Way(extensions.FILES, _write_file, _read_file)
_OPEN_FILE = extensions.Way(extensions.FILES, _write_file, _read_open_file)

extensions.ways |= {
    "samehost.kernel.files.File": _FILE,
    "typing.BinaryIO": _OPEN_FILE,
    "typing.IO": _OPEN_FILE,
    "socket.socket": extensions.Way(extensions.FILES, _write_file, _read_socket),
    "samehost.kernel.blob.Blob": extensions.Way(extensions.BLOBS, _write_blob, _read_blob, _read_blob_json),
}
