"""Blobs: views of memory that stays for as long as anything made of it is looked at."""

from __future__ import annotations

import array
import gc
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import samehost
from samehost import limits
from samehost.errors import ArenaFull, UsageError
from samehost.kernel import addresses
from samehost.kernel.arena import the_arena
from samehost.kernel.blob import Blob, block_behind
from samehost.kernel.memory import PAGE_BYTES

numpy = pytest.importorskip("numpy")
pyarrow = pytest.importorskip("pyarrow")


def test_allocated_memory_can_be_written_in_place():
    with samehost.allocate(10) as blob:
        blob.view[:] = b"0123456789"
        assert (len(blob), bytes(blob), blob.view.readonly) == (10, b"0123456789", False)
        assert repr(blob) == "<Blob of 10 bytes>"
        assert the_arena().used_bytes == PAGE_BYTES
    assert the_arena().used_bytes == 0


def test_a_blob_over_bytes_of_our_own_looks_alike():
    blob = Blob(b"abc")
    assert (len(blob), bytes(blob), blob.view.readonly) == (3, b"abc", True)
    assert repr(blob) == "<Blob of 3 bytes, read-only>"
    assert bytes(Blob(array.array("H", [1, 2]))) == b"\x01\0\x02\0"
    writable = bytearray(3)
    Blob(writable).view[0] = 7
    assert writable[0] == 7
    assert bytes(Blob(numpy.ones((2, 2), ">i2"))) == b"\0\x01" * 4  # a format that a memoryview cannot cast


def test_what_is_not_contiguous_is_refused():
    with pytest.raises(UsageError, match="contiguous"):
        Blob(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        Blob("text")


def test_a_released_blob_gives_nothing_and_can_be_released_again():
    blob = samehost.allocate(1)
    blob.release()
    blob.release()
    blob.close()
    assert repr(blob) == "<Blob released>"
    for use in (lambda: blob.view, lambda: len(blob), lambda: bytes(blob)):
        with pytest.raises(ValueError, match="released already"):
            use()


@pytest.mark.parametrize("size", [-1, limits.BLOB_BYTES_MAX + 1])
def test_sizes_have_bounds(size):
    with pytest.raises(UsageError, match=f"size={size}: a blob has from 0 to"):
        samehost.allocate(size)


def test_an_empty_blob_is_one():
    assert bytes(samehost.allocate(0)) == b""
    assert bytes(Blob(b"")) == b""


def test_when_all_is_in_use_it_says_so(monkeypatch):
    monkeypatch.setattr(limits, "ARENA_BYTES_MAX", limits.ARENA_SEGMENT_BYTES)
    held = samehost.allocate(limits.ARENA_SEGMENT_BYTES)
    with pytest.raises(ArenaFull):
        samehost.allocate(1)
    held.release()
    samehost.allocate(1)


DERIVED = {
    "slice": lambda view: view[3:5],
    "cast": lambda view: view[:8].cast("I"),
    "read-only": lambda view: view.toreadonly(),
    "memoryview": memoryview,
    "PickleBuffer": pickle.PickleBuffer,
    "array": lambda view: numpy.frombuffer(view, "u1"),
    "array of it": lambda view: numpy.frombuffer(view, "u1")[5:].reshape(1, -1).T,
    "iterator": iter,
    "Arrow": pyarrow.py_buffer,
    "Arrow of it": lambda view: pyarrow.py_buffer(view).slice(2, 3),
    "Arrow array": lambda view: pyarrow.Array.from_buffers(pyarrow.uint8(), 8, [None, pyarrow.py_buffer(view)]),
}


@pytest.mark.parametrize("what", DERIVED)
def test_whatever_is_made_of_a_blob_keeps_its_memory(what):
    blob = samehost.allocate(100)
    made = DERIVED[what](blob.view)
    del blob
    gc.collect()
    assert the_arena().used_bytes == PAGE_BYTES
    del made
    gc.collect()
    assert the_arena().used_bytes == 0


def test_a_view_that_is_released_by_hand_is_one_of_many():
    blob = samehost.allocate(100)
    blob.view.release()
    blob.view[0] = 1


# Before Python 3.13, a PickleBuffer of any memoryview crashes the collector of a cycle.
@pytest.mark.parametrize("what", sorted(DERIVED.keys() - {"PickleBuffer"}))
def test_what_is_in_a_cycle_comes_back_with_the_collector(what):
    blob = samehost.allocate(100)
    holder = [blob, DERIVED[what](blob.view)]
    holder.append(holder)
    del holder, blob
    assert the_arena().used_bytes == PAGE_BYTES
    gc.collect()
    assert the_arena().used_bytes == 0


@pytest.mark.parametrize(
    ("what", "offset"),
    [
        (lambda view: view, 0),
        (lambda view: view[7:20], 7),
        (lambda view: memoryview(numpy.frombuffer(view, "u1")), 0),
        (lambda view: memoryview(numpy.frombuffer(view, "u1")[16:64]), 16),
        (lambda view: memoryview(pyarrow.py_buffer(view).slice(8)), 8),
        (lambda view: memoryview(pickle.PickleBuffer(view[5:])), 5),
    ],
)
def test_the_block_behind_what_was_made_of_a_blob_is_found(what, offset):
    others = [samehost.allocate(100) for _ in range(3)]
    blob = samehost.allocate(100)
    block, start = block_behind(what(blob.view))
    blob.view[offset] = 99
    assert block.segment.view[start] == 99
    assert start == block.offset + offset
    del others, block


def test_other_memory_is_in_no_block():
    blob = samehost.allocate(100)
    for other in (b"abc", bytearray(3), numpy.arange(3), memoryview(b"abc")[1:], b""):
        assert block_behind(memoryview(other)) is None
    assert block_behind(memoryview(bytes(blob))) is None
    del blob
    assert block_behind(memoryview(numpy.arange(3))) is None


def other_pythons():
    """Those of this machine that samehost is for; what samehost needs is perhaps not installed for them."""
    on_path = [shutil.which(f"python3.{minor}") for minor in range(11, 15)]
    beside = Path(sys.base_prefix).parent.glob("3.1[1-4]*/bin/python")  # as pyenv has them
    for python in {sys.executable, *filter(None, on_path), *map(str, beside)}:
        if subprocess.run([python, "-c", ""], capture_output=True, timeout=30, check=False).returncode == 0:
            yield python


TRICK = """
import gc, mmap, pickle, sys, weakref
from importlib.util import module_from_spec, spec_from_file_location

spec = spec_from_file_location("addresses", sys.argv[1])
addresses = module_from_spec(spec)
spec.loader.exec_module(addresses)

class Memory:
    pass

memory = Memory()
memory.mapping = mmap.mmap(-1, 8192)
lives = weakref.ref(memory)
gone = []
root = addresses.root_at(addresses.address_of(memory.mapping) + 100, 100, memory)
memory.mapping[103] = 7
reference = weakref.ref(root, gone.append)
view = addresses.view_of(root)
del root, memory
assert len(view) == 100 and view[3] == 7
parts = [view[3:5], view[:8].cast("I"), view.toreadonly(), memoryview(view), pickle.PickleBuffer(view)]
del view
while parts:
    assert not gone and lives()
    parts.pop(0)
assert gone == [reference] and not lives()

memory = mmap.mmap(-1, 8192)
for _ in range(100):
    view = addresses.view_of(addresses.root_at(addresses.address_of(memory), 100, memory))
    cycle = [view, view[1:], memoryview(view)]
    cycle.append(cycle)
    del view, cycle
    gc.collect()
"""


def test_every_python_of_this_machine_tells_when_the_last_view_is_gone():
    for python in other_pythons():
        ended = subprocess.run(
            [python, "-X", "dev", "-c", TRICK, addresses.__file__], capture_output=True, timeout=30, check=False
        )
        assert ended.returncode == 0, (python, ended.stderr.decode())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
def test_a_blob_is_a_buffer_itself():
    assert memoryview(Blob(b"abc")) == b"abc"


class Keeper:
    """In a cycle, with a finalizer, which looks at what it has, and keeps it."""

    def __init__(self, view):
        self.view = view
        self.itself = self

    def __del__(self):
        kept.append(self.view)
        with samehost.allocate(len(self.view)) as other:
            other.view[:4] = b"else"
            kept.append(bytes(self.view[:4]))


kept = []


def test_memory_is_not_used_anew_while_a_finalizer_of_a_cycle_can_see_it():
    blob = samehost.allocate(4096)
    blob.view[:4] = b"good"
    keeper = Keeper(blob.view)
    del blob, keeper
    gc.collect()
    view, seen = kept
    assert seen == view[:4] == b"good"
    assert the_arena().used_bytes
    kept.clear()
    del view
    assert not the_arena().used_bytes
