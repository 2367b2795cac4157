"""The host's sockets and their holders at one moment, as nearly as the kernel allows.

The table of sockets and the descriptors of processes are read one after the other, so whatever came
or went in between fits together badly: a socket without a holder, a peer without a row. Both are
read again, a bounded number of times, until nothing is left over or the same things stay left over;
those are then facts (a holder that may not be seen, a peer in another network namespace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from samehost.kernel import processes, sock_diag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from samehost.kernel.sock_diag import UnixSocket

SETTLE_ATTEMPTS_MAX = 4


class Snapshot(NamedTuple):
    """The sockets of this host that can be seen.

    Attributes:
        rows: all sockets by inode, those of other network namespaces included where permitted.
        foreign: the number of the network namespace by the inode of each socket that is not in ours.
        holders: the descriptors of each socket by its inode.
        waiting: the inode of the listener by that of each client in its backlog.
        unreadable_processes: how many processes would not show their descriptors.
        unreadable_network_namespaces: how many network namespaces could not be looked into.
    """

    rows: dict[int, UnixSocket]
    foreign: dict[int, int]
    holders: dict[int, list[processes.Holder]]
    waiting: dict[int, int]
    unreadable_processes: int
    unreadable_network_namespaces: int


def take() -> Snapshot:
    """A snapshot of now.

    Raises:
        OSError: the kernel does not tell (sock_diag(7)), or there is no /proc (proc(5)).
    """
    namespaces = list(_network_namespaces())
    rows, foreign, closed = _rows(namespaces)
    holders, unreadable = processes.holders()
    left_over = _left_over(rows, holders)
    for _ in range(SETTLE_ATTEMPTS_MAX):
        if not left_over:
            break
        before = left_over
        rows, foreign, closed = _rows(namespaces)
        if _left_over(rows, holders) == before:
            break
        holders, unreadable = processes.holders()
        left_over = _left_over(rows, holders)
    waiting = {client: row.inode for row in rows.values() for client in row.pending if client != 0}
    return Snapshot(rows, foreign, holders, waiting, unreadable, closed)


def _left_over(rows: dict[int, UnixSocket], holders: dict[int, list[processes.Holder]]) -> set[int]:
    """The sockets without a holder, and the peers without a row."""
    without_holder = rows.keys() - holders.keys()
    without_row = {row.peer_inode for row in rows.values() if row.peer_inode} - rows.keys()
    return without_holder | without_row


def _rows(namespaces: list[tuple[str, int]]) -> tuple[dict[int, UnixSocket], dict[int, int], int]:
    """All rows, the network namespaces of the foreign ones, and how many namespaces could not be looked into.

    An inode number is given to one socket of the host only, whatever its namespace.
    """
    rows = {row.inode: row for row in sock_diag.dump()}
    foreign: dict[int, int] = {}
    closed = 0
    for path, number in namespaces:
        try:
            found = {row.inode: row for row in sock_diag.dump(path)}
        except PermissionError:
            closed += 1
            continue
        except OSError:
            continue  # its process has ended
        foreign.update(dict.fromkeys(found.keys() - rows.keys(), number))
        rows = found | rows
    return rows, foreign, closed


def _network_namespaces() -> Iterator[tuple[str, int]]:
    """A /proc/PID/ns/net and its number for each network namespace that a readable process is in, but ours."""
    seen = {processes.namespace("self", "net")}
    for pid in processes.pids():
        number = processes.namespace(pid, "net")
        if number is not None and number not in seen:
            seen.add(number)
            yield f"/proc/{pid}/ns/net", number
