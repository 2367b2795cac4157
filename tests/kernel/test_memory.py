"""Shared memory: what is made of it here, and what of a peer's is refused before it is mapped."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import socket
from contextlib import contextmanager

import pytest

from samehost.errors import BadBlob
from samehost.kernel import memory

SHRINK, GROW, WRITE = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE
PAGE = memory.PAGE_BYTES


def a_memfd(byte_count=PAGE, seals=SHRINK | GROW | WRITE):
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(descriptor, byte_count)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.fixture
def closing():
    """Descriptors that are closed at the end."""
    descriptors = []
    yield lambda descriptor: descriptors.append(descriptor) or descriptor
    for descriptor in descriptors:
        os.close(descriptor)


def test_sealed_memory_holds_its_bytes_and_nobody_changes_it(closing):
    data = os.urandom(3 * PAGE + 5)
    descriptor = closing(memory.create_sealed(memoryview(data)))
    assert memory.map_sealed(descriptor, 0, len(data)) == data
    assert not os.get_inheritable(descriptor)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, PAGE)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SHRINK)


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (1, 10), (PAGE, PAGE), (PAGE - 1, 2), (2 * PAGE + 3, 2)])
def test_any_part_of_sealed_memory_can_be_mapped_and_only_read(closing, offset, length):
    data = os.urandom(2 * PAGE + 5)
    view = memory.map_sealed(closing(memory.create_sealed(memoryview(data))), offset, length)
    assert view == data[offset : offset + length]
    assert view.readonly


def test_an_arena_is_written_here_and_nowhere_else(closing):
    descriptor, mapping = memory.create_arena(2 * PAGE)
    closing(descriptor)
    mapping[PAGE] = 7
    theirs = memory.map_arena(descriptor, 2 * PAGE)
    assert theirs[PAGE] == 7
    mapping[PAGE] = 8
    assert theirs[PAGE] == 8
    with pytest.raises(TypeError, match="readonly"):
        theirs[0] = 1
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, PAGE)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    for size in (PAGE, 4 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        os.truncate(f"/proc/self/fd/{descriptor}", 0)


@pytest.mark.parametrize(
    ("seals", "missing"),
    [
        (0, "SHRINK, GROW, WRITE"),
        (GROW | WRITE, "SHRINK"),
        (SHRINK | WRITE, "GROW"),
        (SHRINK | GROW, "WRITE"),
    ],
)
def test_memory_without_the_seals_is_refused(closing, seals, missing):
    descriptor = closing(a_memfd(seals=seals))
    with pytest.raises(BadBlob, match=f"without the seals {missing}$"):
        memory.map_sealed(descriptor, 0, 1)
    if seals & (SHRINK | GROW) != SHRINK | GROW:
        with pytest.raises(BadBlob, match="without the seals"):
            memory.map_arena(descriptor, PAGE)


@contextmanager
def opened(what, place):
    """Something else than memory of the right kind."""
    if what == "a socket":
        with socket.socket(socket.AF_UNIX) as one:
            yield one.fileno()
        return
    descriptors = list(os.pipe()) if what == "a pipe" else [os.open(*_OPENED[what](place))]
    os.truncate(descriptors[0], PAGE) if what in ("a file", "without the seals") else None
    yield descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)


_OPENED = {
    "a device": lambda place: ("/dev/zero", os.O_RDWR),
    "a directory": lambda place: (place, os.O_RDONLY),
    "a file": lambda place: (place / "plain", os.O_RDWR | os.O_CREAT),
    "without the seals": lambda place: ("/dev/shm", os.O_RDWR | os.O_TMPFILE),  # of the kind, but with a name to be
}


@pytest.mark.parametrize("what", ["a pipe", "a socket", *_OPENED])
def test_another_kind_of_file_is_refused(place, what):
    with opened(what, place) as descriptor:
        with pytest.raises(BadBlob, match=what):
            memory.map_sealed(descriptor, 0, 1)
        with pytest.raises(BadBlob, match=what):
            memory.map_arena(descriptor, PAGE)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, PAGE + 1), (PAGE, 1), (2**63, 1), (1, 2**64 - 1), (2**64 - 1, 2**64 - 1)]
)
def test_a_part_beyond_the_end_is_refused(closing, offset, length):
    descriptor = closing(a_memfd())
    with pytest.raises(BadBlob, match=re.escape(f"from {offset} to {offset + length} in memory of {PAGE} bytes")):
        memory.map_sealed(descriptor, offset, length)


@pytest.mark.parametrize("claimed", [1, PAGE - 1, 2 * PAGE, 2**63])
def test_an_arena_of_another_size_is_refused(closing, claimed):
    descriptor = closing(a_memfd(seals=SHRINK | GROW))
    with pytest.raises(BadBlob, match=f"an arena of {claimed} bytes in memory of {PAGE} bytes"):
        memory.map_arena(descriptor, claimed)


def test_what_was_truncated_before_it_came_is_refused_and_later_it_cannot_be(closing):
    descriptor = closing(a_memfd(2 * PAGE, seals=GROW))
    os.ftruncate(descriptor, PAGE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SHRINK | WRITE)
    with pytest.raises(BadBlob, match=f"in memory of {PAGE} bytes"):
        memory.map_sealed(descriptor, PAGE, PAGE)
    view = memory.map_sealed(descriptor, 0, PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    assert bytes(view) == bytes(PAGE)


def test_a_kernel_without_executable_seals_is_as_good(closing, monkeypatch):
    create = os.memfd_create
    flags_seen = []

    def older(name, flags):
        flags_seen.append(flags)
        if flags & 0x08:
            raise OSError(22, "Invalid argument")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    descriptor = closing(memory.create_sealed(memoryview(b"abc")))
    assert len(flags_seen) == 2
    assert memory.map_sealed(descriptor, 0, 3) == b"abc"
