"""How long a whole process takes from its start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Users have bytecode; an environment that forbids writing it would have every process compile all that it imports.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

SAMEHOST = os.path.join(os.path.dirname(sys.executable), "samehost")


def _process(*command: str) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return measure


@contextmanager
def rows() -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """The processes to start; `samehost send` talks to a server that runs meanwhile."""
    python = sys.executable
    every_name = "import samehost\nfor name in samehost.__all__:\n    if name != 'aio': getattr(samehost, name)"
    with tempfile.TemporaryDirectory(prefix="samehost-") as directory:
        path = f"{directory}/bench.sock"
        server = subprocess.Popen([SAMEHOST, "listen", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            subprocess.run([SAMEHOST, "send", path, "ready?", "--wait", "10"], check=True, stdout=subprocess.DEVNULL)
            yield [
                ("python -c pass", _process(python, "-c", "pass")),
                ("import samehost", _process(python, "-c", "import samehost")),
                ("import samehost, every name but aio", _process(python, "-c", every_name)),
                ("samehost send PATH TEXT, answered", _process(SAMEHOST, "send", path, "Hello UNIX socket!")),
            ]
        finally:
            server.terminate()
            server.wait()
