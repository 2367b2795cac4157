"""System calls per call, as strace counts them: of runs that differ in their number of calls alone.

strace makes each of them slow, which gives the other end more time: many calls under way come in larger batches here.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FEW, MANY = 500, 2500
SUMMARY = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)
MESSAGES = {"sendto", "sendmsg", "sendmmsg", "write", "writev", "recvfrom", "recvmsg", "recvmmsg", "read", "readv"}


@contextmanager
def count(directory: str, what: str, side: str, kinds: str) -> Iterator[Callable[[float], list[float]]]:
    """How many of the kind of a side; the rows of a table share the runs, which are kept beside their sockets."""
    if which("strace") is None:
        sys.exit("strace was not found")
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # both sides and each one's strace, wherever there is room
    with open(f"{directory}/{what}{sys.prefix.replace('/', '-')}.json", "a+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        if not os.fstat(kept.fileno()).st_size:
            few, many = (_counted(what, number) for number in (FEW, MANY))
            kept.write(json.dumps({end: _difference(few[end], many[end]) for end in many}))
        kept.seek(0)
        found = {name: calls for name, calls in json.load(kept)[side].items() if round(calls, 2)}
    counted = {name: calls for name, calls in found.items() if kinds == "all" or name in MESSAGES}
    run = partial(_total, list(counted.values()))
    vars(run)["note"] = ", ".join(f"{name} {calls:.2f}" for name, calls in sorted(counted.items()))
    yield run


def _difference(few: dict[str, int], many: dict[str, int]) -> dict[str, float]:
    return {name: (calls - few.get(name, 0)) / (MANY - FEW) for name, calls in many.items()}


def _total(found: list[float], _seconds: float) -> list[float]:
    return [sum(found)]


def _counted(what: str, number: int) -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory(prefix="samehost-") as directory:
        logs = {side: Path(directory, side) for side in ("server", "client")}
        path = f"{directory}/socket"
        with subprocess.Popen(_traced(logs["server"], "bench.own.echo:serve", path)) as server:
            subprocess.run(_traced(logs["client"], f"bench.own.counted:{what}", path, str(number)), check=True)
            for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
                os.kill(int(pid), signal.SIGTERM)
        return {
            side: {name: int(calls) for calls, name in SUMMARY.findall(log.read_text()) if name != "total"}
            for side, log in logs.items()
        }


def _traced(log: Path, function: str, path: str, *arguments: str) -> list[str]:
    counting = ["strace", "-c", "-f", "-o", str(log)]
    return [*counting, sys.executable, "-m", "bench.side", "serve", function, path, *arguments]
