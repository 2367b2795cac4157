"""Where services with a name of their own have their sockets."""

from __future__ import annotations

import glob
import os
import stat
from typing import NamedTuple

from samehost.address import parse
from samehost.errors import AddressError
from samehost.kernel.owners import is_anybody_bound


class Place(NamedTuple):
    """A socket of a service.

    Attributes:
        name: of its file, without `.sock`.
        address: what to connect to: the bare name where that is enough, or else the path.
        path: of the socket.
    """

    name: str
    address: str
    path: str


def places() -> list[Place]:
    """The sockets in the directories of services: those of this user and of root, and for root those of all users."""
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    directories = ["/run/samehost", *([f"{own}/samehost"] if os.path.isabs(own) else [])]
    if os.geteuid() == 0:
        directories += sorted(glob.glob("/run/user/*/samehost"))
    found = [place for directory in dict.fromkeys(map(os.path.realpath, directories)) for place in _within(directory)]
    return sorted(found)


def is_dead(place: Place) -> bool:
    """Whether nobody is bound to the socket any more."""
    try:
        descriptor = os.open(place.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return is_anybody_bound(descriptor) is False
    finally:
        os.close(descriptor)


def _within(directory: str) -> list[Place]:
    try:
        names = os.listdir(directory)
    except OSError:  # nobody has served there yet, or it is not for us to see
        return []
    paths = [os.path.join(directory, name) for name in names if name.endswith(".sock")]
    return [_place(path) for path in paths if _is_socket(path)]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _place(path: str) -> Place:
    name = os.path.basename(path).removesuffix(".sock")
    try:
        is_short = os.path.realpath(str(parse(name))) == path
    except AddressError:
        is_short = False
    return Place(name, name if is_short else path, path)
