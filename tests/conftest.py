"""Fixtures for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import nothing_left


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory of our own whose path is short, as socket paths have to be."""
    directory = Path(tempfile.mkdtemp(prefix="sh-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """The same, but sticky and writable by everybody, as /tmp is."""
    directory = Path(tempfile.mkdtemp(prefix="sh-"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a descriptor, thread or child behind."""
    with nothing_left():
        yield
