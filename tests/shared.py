"""The service of `sharing_service` and its clients as processes, for tests that attack them and look what they hold."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raw_sharing import RawCaller
from support import NOBODY, Program, until

PROGRAM = str(Path(__file__).with_name("sharing_service.py"))

PYTHON = [sys.executable, "-W", "always::ResourceWarning"]

CLIENTS = ("threads", "asyncio")


class Shared:
    """The service.

    Attributes:
        path: of its socket.
        program: its process.
    """

    def __init__(self, path: Path, program: Program, log: Path) -> None:
        self.path = path
        self.program = program
        self._log = log
        self.held()  # what is imported late is imported now
        self.before = self.held()

    def held(self) -> dict[str, Any]:
        """What it has open and mapped, once nobody else is connected."""
        with RawCaller(self.path) as caller:

            def is_quiet() -> bool:
                health = caller.call("samehost.health", {}).value
                return bool(health["connections"] == 1 and health["in_flight"] == 1)

            until(is_quiet, "nobody else is connected")
            found: dict[str, Any] = caller.call("holds", {}).value
            return found

    def held_now(self) -> dict[str, Any]:
        """The same, whoever is connected."""
        with RawCaller(self.path) as caller:
            found: dict[str, Any] = caller.call("holds", {}).value
            return found

    def assert_clean(self) -> None:
        """See that it serves, and that nothing is left of what was done to it."""
        assert self.program.process.poll() is None
        with RawCaller(self.path) as other:
            other.is_served()
        found = self.held()
        assert found["inheritable"] == []
        found["threads"] = self.before["threads"]  # those that run methods stay
        assert found == self.before
        assert "never closed" not in self._log.read_text()  # which the garbage collector had to do


@contextlib.contextmanager
def shared(place: Path, **settings: Any) -> Iterator[Shared]:
    """Serve in another process."""
    path, log = place / "s", place / "log"
    with log.open("wb") as stderr:
        program = Program([*PYTHON, PROGRAM, "serve", str(path), json.dumps(settings)], stderr=stderr)
    with program:
        assert program.line() == "ready", log.read_text()
        yield Shared(path, program, log)


class Client:
    """A client in another process."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def begin(self, *order: Any) -> None:
        self.program.tell(json.dumps(order))

    def done(self) -> Any:
        return json.loads(self.program.line())

    def do(self, *order: Any) -> Any:
        """Have it call a method, or tell something of itself."""
        self.begin(*order)
        return self.done()


@contextlib.contextmanager
def client_of(kind: str, path: Path | str, **options: Any) -> Iterator[Client]:
    """A client of a kind, in another process; it has to end by itself, and in order."""
    with (
        tempfile.TemporaryFile() as log,
        Program([*PYTHON, PROGRAM, kind, str(path)], stderr=log, **options) as program,
    ):
        yield Client(program)
        if program.process.poll() != -signal.SIGKILL:  # by the test itself
            program.process.stdin.close()
            code = program.end()
            log.seek(0)
            assert (code, log.read().decode()) == (0, "")


_NOBODY = """
import concurrent.futures.thread, ctypes, os, socket, sys, time
sys.path.insert(0, {tests!r})
import sharing_service
from sharing_service import *
from samehost import extensions
import samehost.kernel.arrays, samehost.kernel.sharing, samehost.blocking.client, samehost.aio.client
import samehost.blocking.attachments, samehost.aio.attachments, pwd, grp
pwd.getpwall(), grp.getgrall()
# What is imported late, and cannot be read later, is imported now.
extensions.way_named("samehost.kernel.files.File"), extensions.way_named("numpy.ndarray")
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
PATH = sys.argv[1]
"""


def as_nobody(code: str, path: Path | str, **options: Any) -> Program:
    """A program that has become another user, with what is in `sharing_service` at hand."""
    become = _NOBODY.format(tests=str(Path(__file__).parent), nobody=NOBODY)
    return Program([sys.executable, "-c", become + textwrap.dedent(code), str(path)], **{"stderr": None, **options})
