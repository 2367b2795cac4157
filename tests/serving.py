"""`samehost serve` as a program, for tests of what calls it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support import SAMEHOST, Program, run

HERE = Path(__file__).parent


@contextlib.contextmanager
def serving(address: Path, target: str = "every_type:every", *options: str, **settings: object) -> Iterator[Program]:
    """A service of these tests, or of a module next to its socket, once clients are served."""
    command = [*SAMEHOST, "serve", target, "--address", str(address), *options]
    found_in = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": found_in}
    with Program(command, cwd=address.parent, env=environment, **settings) as server:
        line = server.line()
        assert line.startswith("Serving ")
        assert line.endswith(f" on {address}")
        yield server


def samehost(*words: object, input: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    """The command, to its end."""
    return run([*SAMEHOST, *map(str, words)], input, **options)


def on_terminal(*words: object, **options: object) -> str:
    """What the command prints to a terminal."""
    import pty

    ours, theirs = pty.openpty()
    try:
        with Program(
            [*SAMEHOST, *map(str, words)], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, **options
        ) as program:
            os.close(theirs)
            printed = b""
            with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
                while piece := os.read(ours, 65536):
                    printed += piece
            program.end()
        return printed.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
