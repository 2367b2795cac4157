"""`make demo`, as it reads where its output is no terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from support import run

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_shows_each_thing_under_its_heading_in_plain_text() -> None:
    shown = run([sys.executable, str(DEMO)])
    assert shown.returncode == 0
    text = shown.stdout.decode()
    assert "\x1b" not in text
    starting, sending, *_ = re.split(r"^# .*$", text, flags=re.MULTILINE)[1:]
    assert re.search(r"^Listening on ", starting, re.MULTILINE)
    assert re.search(r"^Received: Hello UNIX socket!$", sending, re.MULTILINE)
