"""Addresses: from what people write to where the kernel finds it.

Pure: nothing here looks at the file system. A path is made absolute, so that a later `chdir` changes nothing, but `..`
stays in it, because `a/../b` means something else when `a` is a symbolic link.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from samehost import limits
from samehost.errors import AddressError

_SERVICE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_ROOT_RUNTIME_DIRECTORY = "/run/samehost"


class PathAddress(NamedTuple):
    """A socket file.

    Attributes:
        path: absolute, at most 4095 bytes.
        is_service: the path was worked out from a bare service name, so its directory is ours to create.
    """

    path: str
    is_service: bool = False

    def __str__(self) -> str:
        return self.path


class AbstractAddress(NamedTuple):
    """A name in the abstract namespace of unix(7), which has neither file nor permissions.

    Attributes:
        name: 1 to 107 bytes, without the leading NUL.
    """

    name: bytes

    def __str__(self) -> str:
        return "@" + os.fsdecode(self.name).replace("\0", "@")


class DescriptorAddress(NamedTuple):
    """A socket that was handed to this process.

    Attributes:
        number: the descriptor.
    """

    number: int

    def __str__(self) -> str:
        return f"fd:{self.number}"


Address = PathAddress | AbstractAddress | DescriptorAddress


def parse(text: str | os.PathLike[str] | Address) -> Address:
    """Read an address as people write it.

    Args:
        text: a path with at least one `/`, `@name`, `fd:N`, or a bare service name of letters, digits, `-` and `_`,
            which stands for `$XDG_RUNTIME_DIR/samehost/NAME.sock` (`/run/samehost/NAME.sock` for root). A path object
            is always a path.

    Raises:
        AddressError: what is wrong with it.
    """
    if isinstance(text, PathAddress | AbstractAddress | DescriptorAddress):
        return text
    if isinstance(text, os.PathLike):
        return _path(os.fsdecode(text))
    if not isinstance(text, str):
        raise AddressError(f"an address is a str or a path, not {type(text).__name__}")
    if text == "":
        raise AddressError("the address is empty: give a path, @name, fd:N or a service name")
    if text.startswith("@"):
        return _abstract(text)
    if text.startswith("fd:"):
        return _descriptor(text)
    if "/" in text:
        return _path(text)
    return _service(text)


def _abstract(text: str) -> AbstractAddress:
    name = _encoded(text[1:])
    if not name:
        raise AddressError("the abstract address '@' has no name: write @name")
    if len(name) > limits.SUN_PATH_BYTES_MAX:
        raise AddressError(
            f"the abstract name {text!r} is {len(name)} bytes long, at most {limits.SUN_PATH_BYTES_MAX} fit"
        )
    return AbstractAddress(name)


def _descriptor(text: str) -> DescriptorAddress:
    digits = text[len("fd:") :]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise AddressError(f"{text!r} names no descriptor: write fd: and its number, as in fd:3")
    return DescriptorAddress(int(digits))


def _path(text: str, *, is_service: bool = False) -> PathAddress:
    if "\0" in text:
        raise AddressError(f"the path {text!r} holds a NUL byte, which no path may")
    if text in ("", ".", "..") or text.endswith(("/", "/.", "/..")):
        raise AddressError(f"the path {text!r} ends in a directory: add the socket's file name")
    absolute = _without_dots(text if text.startswith("/") else f"{_working_directory(text)}/{text}")
    for component in absolute.split("/"):
        if (length := len(_encoded(component))) > limits.FILE_NAME_BYTES_MAX:
            raise AddressError(
                f"the path {text!r} has a part of {length} bytes, at most {limits.FILE_NAME_BYTES_MAX} are possible"
            )
    if (length := len(_encoded(absolute))) > limits.PATH_BYTES_MAX:
        raise AddressError(f"the path is {length} bytes long, at most {limits.PATH_BYTES_MAX} are possible: {text!r}")
    return PathAddress(absolute, is_service)


def _encoded(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        raise AddressError(f"{text!r} cannot be the name of a file here: {error.reason}") from None


def _working_directory(text: str) -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise AddressError(
            f"the path {text!r} is relative, and the working directory is gone ({os.strerror(error.errno or 0)}): "
            "give an absolute path"
        ) from error


def _without_dots(absolute: str) -> str:
    return "/" + "/".join(part for part in absolute.split("/") if part not in ("", "."))


def _service(text: str) -> PathAddress:
    if re.fullmatch(_SERVICE_NAME, text) is None:
        raise AddressError(
            f"{text!r} is neither a path nor a service name (letters, digits, - and _): "
            f"for a socket in this directory write ./{text}"
        )
    return _path(f"{_runtime_directory(text)}/{text}.sock", is_service=True)


def _runtime_directory(text: str) -> str:
    if os.geteuid() == 0:
        return _ROOT_RUNTIME_DIRECTORY
    parent = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(parent):
        state = f"it is {parent!r}, not an absolute path" if parent else "it is not set"
        raise AddressError(
            f"the service name {text!r} needs XDG_RUNTIME_DIR, and {state}: log in through a session manager that sets "
            "it, or give a path"
        )
    return f"{parent}/samehost"
