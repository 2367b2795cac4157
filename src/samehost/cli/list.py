"""`samehost list`: the services running on this host, each asked how it is."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from samehost.blocking.client import Client, connect
from samehost.cli.arguments import Parser, seconds
from samehost.cli.places import Place, places
from samehost.cli.results import print_json
from samehost.errors import (
    ConnectionClosed,
    DeadlineExceeded,
    Error,
    NotPermitted,
    PeerError,
    Unavailable,
    UntrustedServer,
)
from samehost.kernel.owners import printable
from samehost.kernel.processes import user_name
from samehost.service.description import HEALTH, Health
from samehost.service.remote import named

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """\
List the services in /run/samehost and $XDG_RUNTIME_DIR/samehost, and for root in those of all users. Each is asked how
it is; a socket that nobody serves, or that something else than a service has, is said to be so."""

_TIMEOUT_SECONDS = 1.0
_AT_A_TIME = 16
_COLUMNS = ("name", "state", "pid", "user", "uptime", "methods", "address")


_STATES: tuple[tuple[type[Error], str], ...] = (
    (Unavailable, "dead"),
    (DeadlineExceeded, "silent"),
    (UntrustedServer, "untrusted"),
    (NotPermitted, "forbidden"),
    (ConnectionClosed, "closed"),
    (Error, "foreign"),
)


class Entry(NamedTuple):
    """A line of the list; None where it is not known.

    Attributes:
        state: serving, draining, dead (nobody listens), silent (no answer in time), untrusted (somebody else may have
            put it there), forbidden (this user may not connect, or ask), closed (the connection was ended: by a policy,
            or by what is no service) or foreign (the answer is not a service's).
        uptime: in seconds.
        methods: how many there are.
    """

    name: str
    state: str
    pid: int | None
    user: str | None
    uptime: float | None
    methods: int | None
    address: str


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost list`."""
    parser = Parser("list", DESCRIPTION)
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"how long each service gets for its answer ({_TIMEOUT_SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Ask all services, and print."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        entries = list(pool.map(lambda place: _ask(place, arguments.timeout), places()))
    if arguments.json:
        print_json([entry._asdict() for entry in entries])
    elif sys.stdout.isatty():
        _print_for_people(entries)
    else:
        print("\t".join(_COLUMNS))
        for entry in entries:
            print("\t".join(_fields(entry)))
    return 0


def _ask(place: Place, timeout: float) -> Entry:
    entry = Entry(place.name, "serving", None, None, None, None, place.address)
    try:
        with connect(place.path, _Asked, timeout=timeout) as client:
            if (peer := client.peer) is not None:
                entry = entry._replace(pid=peer.pid, user=user_name(peer.uid) or f"uid:{peer.uid}")
            health = client.health()
            methods = len(client.describe().methods)
    except Error as error:
        # An answer that is none ends the connection, which is what the caller of a method then hears of first.
        found = error.__cause__ if isinstance(error.__cause__, PeerError) else error
        return entry._replace(state=next(state for kind, state in _STATES if isinstance(found, kind)))
    return entry._replace(state=health.status, pid=health.pid, uptime=health.uptime, methods=methods)


class _Asked(Client):
    @named(HEALTH)
    def health(self) -> Health:
        raise NotImplementedError


def _fields(entry: Entry) -> list[str]:
    uptime = None if entry.uptime is None else f"{entry.uptime:.0f}"
    values = entry._replace(uptime=None)._asdict() | {"uptime": uptime}
    return ["-" if values[column] is None else printable(str(values[column])) for column in _COLUMNS]


def _print_for_people(entries: list[Entry]) -> None:
    if not entries:
        print("No service has a socket here.")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column.capitalize(), overflow="fold")
    for entry in entries:
        name, state, pid, user, _, methods, address = _fields(entry)
        style = "green" if entry.state == "serving" else "red"
        texts = (name, Text(state, style=style), pid, user, _duration(entry.uptime), methods, address)
        table.add_row(*(text if isinstance(text, Text) else Text(text, overflow="fold") for text in texts))
    Console(highlight=False, emoji=False).print(table)


def _duration(seconds: float | None) -> str:
    """The two largest units of a time: `3d 4h`, `5m 6s`."""
    if seconds is None or not 0 <= seconds < float("inf"):
        return "-"
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
