"""`make demo`, as it reads where its output is no terminal."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from support import run

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    """What the demo has printed, by its headings."""
    shown = run([sys.executable, str(DEMO)])
    assert shown.returncode == 0, shown.stderr.decode()
    text = shown.stdout.decode()
    assert not re.search("[\x1b\r]", text)  # plain text
    _, *found = re.split(r"^# (.*)$", text, flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def part(parts: dict[str, str], word: str) -> str:
    (found,) = [text for heading, text in parts.items() if word in heading]
    return found


def test_the_demo_shows_a_server_a_client_and_the_socket_between_them(parts: dict[str, str]) -> None:
    assert re.search(r"^Listening on ", part(parts, "A server on a UNIX socket"), re.MULTILINE)
    sending = part(parts, "A client says hello")
    assert re.search(r"^Message received successfully$", sending, re.MULTILINE)
    assert re.search(r"^Received: Hello UNIX socket!$", sending, re.MULTILINE)
    assert re.search(r"^connected .* python ", part(parts, "Who holds the socket"), re.MULTILINE)


def test_the_demo_serves_describes_and_calls_a_service(parts: dict[str, str]) -> None:
    serving = part(parts, "A service")
    assert re.search(r"^@clock\.method", serving, re.MULTILINE)
    assert re.search(r"^Serving clock on ", serving, re.MULTILINE)
    assert re.search(r"^set_time\(to: datetime\) -> None$", part(parts, "what it can do"), re.MULTILINE)
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0[09]:00$", part(parts, "A call from the shell"), re.MULTILINE)
    assert "\nclock.no_such_zone: " in part(parts, "From Python")


def test_the_demo_streams_and_shows_pictures(parts: dict[str, str]) -> None:
    assert len(re.findall(r"^\d{4}-\d\d-\d\dT.*$", part(parts, "A method that streams"), re.MULTILINE)) == 3
    camera = part(parts, "A camera")
    assert re.search(r"^\d+ pictures, at most [\d.]+ ms old, \d+ missed so far$", camera, re.MULTILINE)
    assert re.search(r"^exit code 0; left in \S+: nothing$", camera, re.MULTILINE)


def test_the_demo_shows_what_is_refused(parts: dict[str, str]) -> None:
    assert "samehost: now: $.zone: expected str, got int" in part(parts, "A wrong argument")
    policy = part(parts, "A policy by caller")
    uid = 65534 if os.geteuid() == 0 else os.geteuid()
    assert re.search(rf"uid {uid} .* may not call set_time, which admits uid 0\nexit code 77$", policy, re.MULTILINE)


def test_the_demo_counts_its_calls_and_leaves_nothing(parts: dict[str, str]) -> None:
    counted = re.search(r"^now +(\d+) +(\d+) ", part(parts, "has counted"), re.MULTILINE)
    assert counted is not None
    assert int(counted[1]) > 2000
    assert int(counted[2]) == (3 if os.geteuid() == 0 else 2)
    for heading, text in parts.items():
        if "SIGTERM" in heading:
            assert re.search(r"^exit code 0; left in \S+: nothing$", text, re.MULTILINE)
