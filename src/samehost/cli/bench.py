"""`samehost bench`: how long a method of a running service takes, and how many calls it answers.

Here are the command's arguments and what is shown on the way. Making the calls is `load`'s, what is printed at the end
`figures`'.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

from samehost import limits
from samehost.aio.client import connect as connect_for_asyncio
from samehost.aio.main import new_loop
from samehost.blocking.client import connect
from samehost.cli import words
from samehost.cli.arguments import MixedParser, add_client_options, new_parser, positive, seconds
from samehost.cli.figures import Setting, print_figures
from samehost.cli.load import Load, Tally, Target, call_singly, call_together
from samehost.cli.results import error_as_json, print_json
from samehost.errors import Error, MethodNotFound, UsageError
from samehost.protocol import ITEMS_WANTED
from samehost.service.remote import RemoteMethod

DESCRIPTION = """\
Call METHOD over and over, with the same arguments each time, which are written as for samehost call, and print how long
that took. A stream is timed up to its first item, and its items are counted.

Without --rate, each call is followed by the next as soon as it is answered. With it, calls are due at fixed times,
whatever the answers do, and latencies count from when a call was due, so that no stall is hidden."""

_SECONDS = 10.0
_WARM_UP_SECONDS = 1.0
_RATE_MAX = 1e6
_FAILED, _INTERRUPTED = 1, 130


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost bench`."""
    parser = new_parser("bench", DESCRIPTION, MixedParser)
    parser.add_argument("method", metavar="METHOD", help="a method's or topic's name, as samehost describe lists them")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="name=text, name:=json, or -")
    parser.add_argument(
        "--concurrency",
        type=positive,
        metavar="N",
        help=f"calls under way at a time (1 on each connection; with --rate at most {limits.CALLS_MAX})",
    )
    parser.add_argument(
        "--connections", type=positive, default=1, metavar="N", help="connections that they are spread over (1)"
    )
    parser.add_argument("--rate", type=_rate, metavar="R", help="calls a second that are due (as many as are answered)")
    parser.add_argument(
        "--duration", type=_duration, metavar="SECONDS", help=f"how long calls are begun ({_SECONDS:g}; see --calls)"
    )
    parser.add_argument("--calls", type=positive, metavar="N", help="how many calls (as many as the duration has)")
    parser.add_argument(
        "--warm-up",
        type=seconds,
        default=_WARM_UP_SECONDS,
        metavar="SECONDS",
        help=f"for calls beforehand that are not counted ({_WARM_UP_SECONDS:g})",
    )
    add_client_options(parser)
    parser.add_argument(
        "--busy-wait", type=seconds, default=0.0, metavar="SECONDS", help="look for answers so long before sleeping (0)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures, or the error, as JSON")
    return parser


def _rate(text: str) -> float:
    """A number of calls a second."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _RATE_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of calls a second, as in 1000 (at most 1e6)")
    return value


def _duration(text: str) -> float:
    if (value := seconds(text)) == 0:
        raise argparse.ArgumentTypeError("0 s are too short for any call")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 0, or 1 when a call failed, or 130 after Ctrl-C. Raises the errors of `Client.call`."""
    try:
        with ExitStack() as opened:
            load = _load(arguments)
            target = _target(arguments, opened)
            tally = _measure(arguments, target, load)
    except Error as error:
        if arguments.json and not isinstance(error, UsageError):
            print_json(error_as_json(error))
        raise
    if tally is None or not tally.calls:
        print("samehost: nothing was measured: it ended before the first answer", file=sys.stderr)
        return _INTERRUPTED if tally is None or tally.is_interrupted else _FAILED
    setting = Setting(*(getattr(arguments, name) for name in Setting._fields))
    print_figures(setting, tally, as_json=arguments.json)
    if tally.is_interrupted:
        return _INTERRUPTED
    return _FAILED if tally.errors else 0


def _load(arguments: argparse.Namespace) -> Load:
    connections = arguments.connections
    concurrency = arguments.concurrency or (limits.CALLS_MAX * connections if arguments.rate else connections)
    if concurrency < connections:
        raise UsageError(
            f"--concurrency {concurrency} leaves some of {connections} connections without a call: give each one"
        )
    duration = arguments.duration or (math.inf if arguments.calls else _SECONDS)
    return Load(duration, arguments.calls, arguments.rate, concurrency)


def _target(arguments: argparse.Namespace, opened: ExitStack) -> Target:
    """What to call, as far as the service tells."""
    with connect(arguments.address, **_options(arguments)) as client:
        try:
            description = client.describe()
        except MethodNotFound:
            description = None
    described = description.methods.get(arguments.method) if description is not None else None
    if described is not None and described.stream_parameter:
        raise UsageError(
            f"{arguments.method} takes a stream, {described.stream_parameter}, and the same items cannot be sent again "
            "and again: choose a method that takes none"
        )
    try:
        given = words.given(words.read(arguments.arguments), description, arguments.method, opened)
    except RecursionError as error:
        raise UsageError("an argument is nested too deep") from error
    remote = RemoteMethod(arguments.method)
    if described is not None:
        remote.is_stream = described.items_out is not None
        remote.flags = ITEMS_WANTED * remote.is_stream
    return Target(remote, given.positional, given.by_name)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of a client."""
    return {name: getattr(arguments, name) for name in ("wait", "timeout", "trust", "busy_wait")}


def _measure(arguments: argparse.Namespace, target: Target, load: Load) -> Tally | None:
    """Warm up, and then make the calls that count; None if that was ended before it came to these."""
    stages = [load._replace(seconds=arguments.warm_up, calls=None), load]
    screen = _Screen()
    try:
        if load.concurrency == 1 and load.rate is None and target.remote.is_stream is False:
            return _measure_singly(arguments, target, stages, screen)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(_measure_together(arguments, target, stages, screen))
    finally:
        screen.clear()


def _measure_singly(arguments: argparse.Namespace, target: Target, stages: list[Load], screen: _Screen) -> Tally | None:
    warming, counting = stages
    with connect(arguments.address, **_options(arguments)) as client:
        if call_singly(client, target, warming, screen).is_interrupted:
            return None
        return call_singly(client, target, counting, screen)


async def _measure_together(
    arguments: argparse.Namespace, target: Target, stages: list[Load], screen: _Screen
) -> Tally | None:
    warming, counting = stages
    async with AsyncExitStack() as connected:
        clients = [
            await connected.enter_async_context(connect_for_asyncio(arguments.address, **_options(arguments)))
            for _ in range(arguments.connections)
        ]
        if (await call_together(clients, target, warming, screen)).is_interrupted:
            return None
        return await call_together(clients, target, counting, screen)


class _Screen:
    """A line on a terminal that tells how far it has come, four times a second; elsewhere there is none."""

    def __init__(self) -> None:
        self._is_there = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, tally: Tally) -> None:
        """Show what has come so far."""
        if self._is_there:
            self._show(_progress_of(tally))

    def clear(self) -> None:
        """Take the line away."""
        if self._is_there:
            self._show("")

    def _show(self, line: str) -> None:
        with suppress(OSError):  # the terminal is gone, and the measurement goes on
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


def _progress_of(tally: Tally) -> str:
    """What people want to know meanwhile, on a line."""
    load = tally.load
    parts = [f"{tally.seconds:.1f} s" if load.seconds == math.inf else f"{tally.seconds:.1f} of {load.seconds:g} s"]
    parts += [f"{tally.calls:,} calls" if load.calls is None else f"{tally.calls:,} of {load.calls:,} calls"]
    parts += [f"{tally.calls / tally.seconds:,.0f} a second"]
    parts += [f"{tally.items:,} items"] if tally.items else []
    parts += [f"{failed:,} failed"] if (failed := tally.errors.total()) else []
    return ", ".join(parts)
