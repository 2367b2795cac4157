"""How long a whole process takes from its start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.side import TEXT, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Users have bytecode; an environment that forbids writing it would have every process compile all that it imports.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

SAMEHOST = os.path.join(os.path.dirname(sys.executable), "samehost")
EVERY_NAME = "import samehost\nfor name in samehost.__all__:\n    if name != 'aio': getattr(samehost, name)"


def listen(path: str, _what: str) -> None:
    os.execv(SAMEHOST, [SAMEHOST, "listen", path])


@contextmanager
def start(path: str, what: str) -> Iterator[Callable[[float], list[float]]]:
    command = {
        "pass": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import samehost"],
        "names": [sys.executable, "-c", EVERY_NAME],
        "call": [SAMEHOST, "call", path, "echo", f"text={TEXT}"],
        "send": [SAMEHOST, "send", path, TEXT],
    }[what]

    def trip() -> None:
        subprocess.run(command, check=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    if what in ("call", "send"):
        subprocess.run([SAMEHOST, "send", path, TEXT, "--wait", "10"], check=True, stdout=subprocess.DEVNULL)
    trip()
    yield partial(timed, trip)
