"""samehost's calls, a number of them that is known before: for whoever counts what each of them takes."""

from __future__ import annotations

from itertools import repeat

import samehost
from bench.own.echo import Echo
from bench.side import TEXT, WINDOW


def one_by_one(path: str, count: str) -> None:
    with samehost.connect(path, Echo, wait=30) as client:
        for _ in range(int(count)):
            assert client.echo(TEXT) == TEXT


def under_way(path: str, count: str) -> None:
    with samehost.connect(path, Echo, wait=30) as client:
        assert sum(1 for _ in client.map("echo", repeat(TEXT, int(count)), window=WINDOW)) == int(count)
