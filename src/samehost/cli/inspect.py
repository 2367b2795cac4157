"""Who holds a socket and who is connected to it.

Prints a summary and tables for people, lines of fields separated by tabs for programs, or JSON.
What it knows comes from `samehost.inspect`; here it is only laid out. Names and commands are chosen
by whoever runs a process, so whatever a terminal might obey is escaped first.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from samehost.cli.arguments import Parser
from samehost.inspect import inspect
from samehost.kernel.owners import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from rich.console import Console, RenderableType
    from rich.table import Table

    from samehost.inspect import Connection, FileFacts, Report, Socket

EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits

OPEN = ("connected", "half-closed", "sending")  # the states of a connection whose two ends are there

UNKNOWN = "?"
NONE = "-"

END_COLUMNS = (
    "address",
    "type",
    "state",
    "inode",
    "pid",
    "command",
    "user",
    "descriptor",
    "receive_queue",
    "send_queue",
)
COLUMNS = (
    "row",
    *END_COLUMNS,
    *(f"peer_{column}" for column in END_COLUMNS),
    "place",
    "mode",
    "owner",
    "group",
    "network_namespace",
)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = Parser(
        "inspect",
        "Show who holds a UNIX domain socket and who is connected to it: both ends, "
        "with pid, command, user and descriptor, their queues and the backlog.",
        epilog="Run as root to see the processes of other users. Exit code 69: nobody is bound to the address.",
    )
    made.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="a path, @name, fd:N or a service name; all sockets of this host if not given",
    )
    made.add_argument("--json", action="store_true", help="print the whole report as JSON")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Inspect and print; 0, or 69 when nobody is bound to the address.

    Raises:
        Error: as samehost.inspect.inspect says.
    """
    report = inspect(arguments.address)
    if arguments.json:
        import json

        print(json.dumps(report.as_dict(), indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        _print_for_people(report, Console(highlight=False, emoji=False))
    else:
        for line in _lines(report):
            print("\t".join(line))
    if not arguments.json:
        for remark in _remarks(report):
            print(f"samehost inspect: {remark}", file=sys.stderr)
    return EXIT_UNAVAILABLE if report.state == "dead" else 0


def _remarks(report: Report) -> Iterator[str]:
    """What the report cannot tell, or what an operator might overlook."""
    if report.state == "dead":
        left = "its accepted connections are" if report.file is None else "its file is"
        yield f"nobody is bound to {printable(report.address or '')}: only {left} left"
    if report.state == "unseen":
        yield "the address is in use by a socket that cannot be seen from here"
    if report.state == "unknown":
        yield f"whether anybody is bound to the address {_unknown(report)}"
    if count := sum(one.backlog_waiting or 0 for one in report.sockets if _is_unlisted(one, report)):
        yield f"{count} waiting client{'s' if count > 1 else ''} could not be listed: there are too many"
    for one in report.namesakes:
        held = ", ".join(_held_by(one))
        yield (f"another socket (inode {one.inode}, {held}) was bound under this path: its own file is {_place(one)}")
    if (count := report.unreadable_processes) and _has_unheld(report):
        advice = "" if os.geteuid() == 0 else "; root sees more"
        yield f"{count} process{'es' if count > 1 else ''} could not be read{advice}"
    if count := report.unreadable_network_namespaces:
        yield f"{count} network namespace{'s' if count > 1 else ''} could not be looked into"


def _unknown(report: Report) -> str:
    if report.file is None:
        return "cannot be told: either end of its connections may have been accepted"
    return "cannot be found out without permission to write to the file"


def _is_unlisted(one: Socket, report: Report) -> bool:
    """Whether clients wait for a listener and the report has none of them."""
    return bool(one.backlog_waiting) and all(end.near.inode != one.inode for end in report.connections)


def _has_unheld(report: Report) -> bool:
    """Whether a holder is missing that an unreadable process might be."""
    if report.state in ("dead", "unseen", "unknown"):
        return report.state != "dead"
    ends = [end for connection in report.connections for end in (connection.near, connection.far)]
    return any(end is not None and not end.holders for end in (*report.sockets, *ends))


def _place(one: Socket) -> str:
    places = {
        "elsewhere": "in another mount namespace",
        "deleted": "deleted",
        "replaced": "replaced by another",
    }
    return places.get(one.place or "", "not to be found from here")


# Lines for programs


def _lines(report: Report) -> Iterator[tuple[str, ...]]:
    """A header, a line for each socket, a line for each connection, in this order."""
    yield COLUMNS
    nothing = (NONE,) * len(END_COLUMNS)
    for one in report.sockets:
        yield ("socket", *_end_fields(one), *nothing, *_file_fields(one))
    for one in report.namesakes:
        yield ("namesake", *_end_fields(one), *nothing, *_file_fields(one))
    for connection in report.connections:
        near = _end_fields(connection.near)
        far = nothing if connection.far is None else _end_fields(connection.far)
        yield (connection.state, *near, *far, *_file_fields(connection.near))


def _end_fields(one: Socket) -> tuple[str, ...]:
    """As END_COLUMNS; holders' fields are joined by commas, in the same order in each field.

    A comma in a command is written as an escape.
    """
    unseen = UNKNOWN if one.uid is None else f"uid:{one.uid}"
    queues = (one.receive_queue, one.send_queue)
    if one.state == "listening":
        queues = (one.backlog_waiting, one.backlog_limit)
    return (
        _address(one),
        one.type,
        one.state,
        str(one.inode),
        ",".join(str(holder.pid) for holder in one.holders) or UNKNOWN,
        ",".join(printable(holder.command).replace(",", r"\x2c") for holder in one.holders) or UNKNOWN,
        ",".join(holder.user or f"uid:{holder.uid}" for holder in one.holders) or unseen,
        ",".join(str(holder.descriptor) for holder in one.holders) or UNKNOWN,
        *(UNKNOWN if queue is None else str(queue) for queue in queues),
    )


def _file_fields(one: Socket) -> tuple[str, ...]:
    place = one.place or NONE
    if one.file is None:
        missing = NONE if one.place is None else UNKNOWN
        return (place, missing, missing, missing, one.network_namespace)
    file = one.file
    owner = file.user or f"uid:{file.uid}"
    return (place, f"{file.mode:04o}", owner, file.group or f"gid:{file.gid}", one.network_namespace)


def _address(one: Socket) -> str:
    if one.address is None:
        return UNKNOWN if one.kind == "unknown" else NONE
    return printable(one.address)


# Tables for people


def _print_for_people(report: Report, console: Console) -> None:
    if report.address is None:
        _print_host(report, console)
        return
    console.print(_summary(report))
    if report.connections:
        console.print()
        console.print(_connections_table(report.connections))
    elif report.state not in ("dead", "unseen", "unknown") and not any(one.backlog_waiting for one in report.sockets):
        console.print("\nNobody is connected.")


def _table() -> Table:
    """With a line below its header, and no wider than it has to be for 80 columns."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _text(*lines: str, style: str = "") -> RenderableType:
    """Each line escaped, and never read as markup."""
    from rich.text import Text

    return Text("\n".join(map(printable, lines)), style=style, overflow="fold")


def _summary(report: Report) -> Table:
    grid = _grid()

    def add(label: str, *lines: str, style: str = "") -> None:
        grid.add_row(label, _text(*lines, style=style))

    add("Address", report.address or "", style="bold")
    if not report.sockets:
        add("State", _state_for_people(report), style="red")
    for one in report.sockets:
        if one.address not in (None, report.address):
            add("Bound as", f"{one.address} ({_place(one)})" if one.file is None else f"{one.address}")
        add("Type", one.type)
        add("State", one.state, style="green" if one.state == "listening" else "")
        if one.network_namespace != "this":
            add("Network", f"{one.network_namespace} network namespace")
        if one.backlog_limit is not None:
            # The kernel lets one more wait than listen(2) was told.
            full = ": full" if (one.backlog_waiting or 0) > one.backlog_limit else ""
            add("Backlog", f"{one.backlog_waiting} waiting, limit {one.backlog_limit}{full}")
        elif one.receive_queue is not None:
            first = " in the first message" if one.type == "datagram" else ""
            add("Unread", f"{one.receive_queue} bytes{first}")
        add("Held by", *_held_by(one))
    if report.file is not None:
        add("File", _file_for_people(report.file))
    return grid


def _state_for_people(report: Report) -> str:
    there = "accepted connections are" if report.file is None else "the file is"
    states = {
        "dead": f"dead: {there} there, but nobody is bound to it",
        "unseen": "in use by a socket that cannot be seen from here",
        "unknown": _unknown(report),
    }
    return states.get(report.state or "", UNKNOWN)


def _file_for_people(file: FileFacts) -> str:
    import stat

    owner = file.user or f"uid {file.uid}"
    group = file.group or f"gid {file.gid}"
    return f"{stat.filemode(stat.S_IFSOCK | file.mode)} ({file.mode:04o}), {owner}:{group}"


def _held_by(one: Socket, form: str = "pid {} ({}, {})") -> list[str]:
    """A phrase for each process, its descriptors together."""
    held: dict[str, list[int]] = {}
    for holder in one.holders:
        user = holder.user or f"uid {holder.uid}"
        phrase = form.format(holder.pid, printable(holder.command), user)
        held.setdefault(phrase, []).append(holder.descriptor)
    if held:
        # No space in it, so that no narrow column breaks it in two.
        return [f"{phrase} fd={','.join(map(str, fds))}" for phrase, fds in held.items()]
    made_by = "" if one.uid is None else f", made by uid {one.uid}"
    return [f"no process that can be seen{made_by}"]


def _connections_table(connections: tuple[Connection, ...]) -> Table:
    table = _table()
    table.add_column("State", no_wrap=True)
    table.add_column("This end", overflow="fold")
    table.add_column("Unread", justify="right", no_wrap=True)
    table.add_column("Other end", overflow="fold")
    table.add_column("Unread", justify="right", no_wrap=True)
    for connection in connections:
        near, far = connection.near, connection.far
        ended = "closed" if connection.state == "closed" else UNKNOWN
        table.add_row(
            _text(connection.state),
            # A listener stands for the end that is not accepted yet.
            _text("") if near.state == "listening" else _end_for_people(near),
            _unread(near),
            _text(ended) if far is None else _end_for_people(far),
            NONE if far is None else _unread(far),
        )
    return table


def _end_for_people(one: Socket) -> RenderableType:
    """Who holds it, a line for each process."""
    lines = _held_by(one, form="{} {} ({})")
    if one.network_namespace != "this":
        lines.append(f"{one.network_namespace} network namespace")
    return _text(*lines)


def _unread(one: Socket) -> str:
    if one.state == "listening":
        return NONE
    return UNKNOWN if one.receive_queue is None else str(one.receive_queue)


def _print_host(report: Report, console: Console) -> None:
    from collections import Counter

    table = _table()
    for column in ("Address", "Type", "State", "Connected", "Waiting", "Held by"):
        right = column in ("Connected", "Waiting")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    counts = Counter(one.bound_inode for one in report.connections if one.state in OPEN)
    shown = [one for one in report.sockets if one.address is not None]
    for one in shown:
        note = "" if one.place in (None, "present") else f" ({_place(one)})"
        if one.network_namespace != "this":
            note += f" ({one.network_namespace} network namespace)"
        table.add_row(
            _text(f"{one.address}{note}"),
            one.type,
            one.state,
            str(counts[one.inode]),
            NONE if one.backlog_waiting is None else str(one.backlog_waiting),
            _text(*_held_by(one, form="{} {} ({})")),
        )
    console.print(table)
    console.print()
    pairs = sum(
        1
        for connection in report.connections
        if connection.near.address is None and (connection.far is None or connection.far.address is None)
    )
    idle = len(report.sockets) - len(shown)
    console.print(
        f"Bound sockets: {len(shown)}. Connections: {len(report.connections)}, {pairs} of them "
        f"between sockets without a name. Neither bound nor connected: {idle}."
    )
