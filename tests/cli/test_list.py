"""`samehost list`: services that are well, and sockets of which something else is to be said."""

from __future__ import annotations

import json
import os
import pwd
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from every_type import every
from serving import on_terminal, samehost, serving
from support import DEADLINE, listening, until

from samehost.cli.list import _duration
from samehost.cli.places import Place, is_dead


@pytest.fixture
def runtime(place: Path) -> Path:
    """A directory for services, which an environment variable leads to."""
    (place / "samehost").mkdir(mode=0o700)
    return place / "samehost"


def entries(runtime: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Those of our directory, by name; this host may have others."""
    done = samehost("list", "--json", *words, env=environment(runtime))
    assert (done.returncode, done.stderr) == (0, b"")
    return {
        one["name"]: one
        for one in json.loads(done.stdout)
        if Path(one["address"]).parent == runtime or "/" not in one["address"]
    }


def environment(runtime: Path) -> dict[str, str]:
    return {**os.environ, "XDG_RUNTIME_DIR": str(runtime.parent), "NO_COLOR": "1", "TERM": "dumb"}


@contextmanager
def foreign(path: Path, answer: bytes | None) -> Iterator[None]:
    """Something that is no service: it answers with these bytes and closes, or never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        is_over = threading.Event()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    is_over.wait(DEADLINE)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(DEADLINE)


def test_a_service_is_listed(runtime: Path) -> None:
    with serving(runtime / "every.sock") as server:
        found = entries(runtime)["every"]
        assert 0 <= found.pop("uptime") < DEADLINE
        assert found == {
            "name": "every",
            "state": "serving",
            "pid": server.pid,
            "user": pwd.getpwuid(os.geteuid()).pw_name,
            "methods": len(every.methods) + len(every.topics),
            "address": str(runtime / "every.sock") if os.geteuid() == 0 else "every",
        }


def test_sockets_that_are_no_services_are_said_to_be_so(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime / "dead.sock"))
    (runtime / "file.sock").touch()
    (runtime / "every.lock").touch()
    with (
        foreign(runtime / "redis.sock", b"-ERR unknown command\r\n"),
        foreign(runtime / "closed.sock", b""),
        foreign(runtime / "silent.sock", None),
        serving(runtime / "every.sock"),
    ):
        states = {name: one["state"] for name, one in entries(runtime, "--timeout", "0.5").items()}
        assert {name: states.get(name) for name in ("dead", "redis", "closed", "silent", "every", "file")} == {
            "dead": "dead",
            "redis": "foreign",
            "closed": "closed",
            "silent": "silent",
            "every": "serving",
            "file": None,
        }


def test_silent_ones_are_asked_at_the_same_time(runtime: Path) -> None:
    with ExitStack() as stack:
        for number in range(8):
            stack.enter_context(foreign(runtime / f"silent{number}.sock", None))
        begun = monotonic()
        states = [one["state"] for name, one in entries(runtime, "--timeout", "1").items() if name.startswith("silent")]
        assert states == ["silent"] * 8
        assert monotonic() - begun < 6


def test_programs_get_fields_and_people_a_table(runtime: Path) -> None:
    with listening(runtime / "plain\x1b.sock", "--echo"), serving(runtime / "every.sock") as server:
        done = samehost("list", env=environment(runtime))
        header, *lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
        assert header == ["name", "state", "pid", "user", "uptime", "methods", "address"]
        rows = {line[0]: line for line in lines}
        assert rows["every"][1:3] == ["serving", str(server.pid)]
        assert rows["plain\\x1b"][1] == "foreign"
        assert rows["plain\\x1b"][4:6] == ["-", "-"]
        table = on_terminal("list", env={**environment(runtime), "COLUMNS": "200"})
        assert "\x1b[3" not in table
        assert "Uptime" in table
        assert "plain\\x1b" in table


def test_dead_sockets_are_told_from_living_ones(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place / "s.sock"))
        one = Place("s", "s", str(place / "s.sock"))
        assert not is_dead(one)
    until(lambda: is_dead(one), "it is dead")
    (place / "s.sock").unlink()
    assert is_dead(one)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59, "59s"),
        (61, "1m 1s"),
        (3600, "1h 0m"),
        (90061, "1d 1h"),
        (None, "-"),
        (float("inf"), "-"),
        (float("nan"), "-"),
        (-1, "-"),
    ],
)
def test_times_for_people(seconds: float | None, text: str) -> None:
    assert _duration(seconds) == text
