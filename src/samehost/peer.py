"""Who is at the other end, and who may be.

Pure: a `Peer` is what the kernel said, a `Policy` decides over one. Decisions rest on uid, gid and groups, which the
kernel recorded when the connection was made, and never on the pid, which may belong to somebody else by now.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from samehost.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

UNKNOWN_ID = 2**32 - 1
"""What stands for a user or group that the kernel does not tell; nobody can have it (chown(2))."""


class Peer:
    """The process at the other end of a connection, as the kernel reported it once.

    Attributes:
        uid: effective user id at `connect` (a client) or `listen` (a server).
        gid: effective group id, likewise.
        groups: supplementary group ids; empty for the sender of a datagram, of which the kernel does not tell them.
        pid: process id; 0 if the process cannot be seen from our pid namespace. For people to read: it may have been
            reused since, so decide nothing by it.

    See unix(7), SO_PEERCRED, SO_PEERGROUPS and SO_PEERPIDFD.
    """

    __slots__ = ("_open_pidfd", "_pidfd", "gid", "groups", "pid", "uid")

    def __init__(
        self,
        uid: int,
        gid: int,
        groups: tuple[int, ...],
        pid: int,
        open_pidfd: Callable[[], int | None] | None = None,
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.pid = pid
        self._open_pidfd = open_pidfd
        self._pidfd: int | None = None

    @property
    def pidfd(self) -> int | None:
        """A descriptor of the process itself, which no later process can take over (pidfd_open(2)).

        Opened at the first use, kept until the connection is closed and owned by this object, so do not close it. None
        if the kernel cannot tell: before Linux 6.5, for a sender of datagrams, for a process that is gone, and once the
        connection is closed.
        """
        if self._pidfd is None and self._open_pidfd is not None:
            opened = self._open_pidfd()
            if self._pidfd is None:
                self._pidfd = opened
            elif opened is not None:  # another thread was faster
                os.close(opened)
        return self._pidfd

    @property
    def user(self) -> str | None:
        """The name of `uid`, looked up now; None if it has none."""
        import pwd

        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return None

    def close(self) -> None:
        """Close the pidfd, if one was opened. The connection does this."""
        pidfd, self._pidfd, self._open_pidfd = self._pidfd, None, None
        if pidfd is not None:
            os.close(pidfd)

    def __del__(self) -> None:
        self.close()

    def __str__(self) -> str:
        user = self.user
        parts = [f"uid {self.uid}{f' ({user})' if user else ''}"]
        if self.gid != UNKNOWN_ID:
            parts.append(f"gid {self.gid}")
        parts.append(f"pid {self.pid}" if self.pid else "pid not visible")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"Peer(uid={self.uid}, gid={self.gid}, groups={self.groups}, pid={self.pid})"


class _Condition(NamedTuple):
    """Both parts must hold; None holds for everybody."""

    uids: frozenset[int] | None
    gids: frozenset[int] | None

    def admits(self, peer: Peer) -> bool:
        return (self.uids is None or peer.uid in self.uids) and (
            self.gids is None or not self.gids.isdisjoint((peer.gid, *peer.groups))
        )

    def __str__(self) -> str:
        parts = [
            f"{label} {' or '.join(map(str, sorted(numbers)))}"
            for label, numbers in (("uid", self.uids), ("gid", self.gids))
            if numbers is not None
        ]
        return " with ".join(parts) or "anyone"


class Policy:
    """Which peers are served. Make one with `allow`, combine with `|`: a peer needs to satisfy one side."""

    __slots__ = ("_conditions",)

    def __init__(self, conditions: tuple[_Condition, ...]) -> None:
        self._conditions = conditions

    def admits(self, peer: Peer) -> bool:
        """Whether the policy lets this peer in."""
        return any(condition.admits(peer) for condition in self._conditions)

    def __or__(self, other: Policy) -> Policy:
        if not isinstance(other, Policy):
            return NotImplemented
        return Policy(self._conditions + other._conditions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and set(self._conditions) == set(other._conditions)

    def __hash__(self) -> int:
        return hash(frozenset(self._conditions))

    def __str__(self) -> str:
        return ", or ".join(map(str, self._conditions))

    def __repr__(self) -> str:
        return f"<Policy: {self}>"


ANYONE = Policy((_Condition(None, None),))
"""Every peer that gets as far as connecting."""


def allow(
    *,
    uid: int | Iterable[int] | None = None,
    gid: int | Iterable[int] | None = None,
    user: str | Iterable[str] | None = None,
    group: str | Iterable[str] | None = None,
) -> Policy:
    """A policy that admits peers by what the kernel says of them.

    Each argument is one value or several, of which one must match. `uid` and `user` say who, `gid` and `group` say a
    member of what; given both, a peer must satisfy both. For either, combine: `allow(uid=0) | allow(group="wheel")`.

    Args:
        uid: user ids.
        gid: group ids; the peer's own group and its supplementary ones count.
        user: user names, looked up now.
        group: group names, looked up now.

    Raises:
        PolicyError: a name that nobody has, an id that cannot be one, or no condition at all.
    """
    if uid is None and gid is None and user is None and group is None:
        raise PolicyError("allow() needs a condition, as in allow(uid=0); samehost.ANYONE admits everybody")
    return Policy(
        (
            _Condition(
                _numbers("uid", uid, "user", user, _uid_of_user),
                _numbers("gid", gid, "group", group, gid_of_group),
            ),
        )
    )


def same_user_or_root() -> Policy:
    """What the default mode of a socket file, 0600, amounts to."""
    return allow(uid={os.geteuid(), 0})


def gid_of_group(name: str) -> int:
    """The id of a group.

    Raises:
        PolicyError: there is no such group.
    """
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # a NUL, or what no encoding has, is no name
        raise PolicyError(f"there is no group {name!r} on this host") from None


def _uid_of_user(name: str) -> int:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):  # as above
        raise PolicyError(f"there is no user {name!r} on this host") from None


def _numbers(
    id_label: str,
    ids: int | Iterable[int] | None,
    name_label: str,
    names: str | Iterable[str] | None,
    number_of: Callable[[str], int],
) -> frozenset[int] | None:
    if ids is None and names is None:
        return None
    numbers = _each(ids)
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < UNKNOWN_ID:
            raise PolicyError(f"{id_label}={number!r} is not an id: a whole number from 0 to {UNKNOWN_ID - 1}")
    for name in _each(names):
        if not isinstance(name, str):
            raise PolicyError(f"{name_label}={name!r} is not a name: for a number, use {id_label}=")
        numbers.add(number_of(name))
    if not numbers:
        raise PolicyError(f"{id_label} and {name_label} are empty, so nobody could ever be admitted")
    return frozenset(numbers)


def _each(values: Any) -> set[Any]:
    """One value or several, as a set; a text is one value, not its letters."""
    if values is None:
        return set()
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return {values}
    return set(values)
