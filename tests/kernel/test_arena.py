"""The arena: memory that is used again, that comes back whoever drops it, and that has a bound."""

from __future__ import annotations

import gc
import os
import random
import threading
from itertools import pairwise

import pytest
from support import descriptors

from samehost import limits
from samehost.errors import ArenaFull
from samehost.kernel import arena as arena_module
from samehost.kernel.arena import Arena, the_arena
from samehost.kernel.memory import PAGE_BYTES

MIB = 1024 * 1024


@pytest.fixture
def arena():
    arena = Arena()
    yield arena
    arena.give_back()
    assert arena.byte_count == 0


def test_what_is_dropped_is_used_again_and_low_addresses_first(arena):
    blocks = [arena.allocate(PAGE_BYTES) for _ in range(4)]
    assert [block.offset for block in blocks] == [0, PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES]
    del blocks[1]
    again = arena.allocate(1)
    assert (again.offset, again.byte_count) == (PAGE_BYTES, PAGE_BYTES)
    assert arena.byte_count == limits.ARENA_SEGMENT_BYTES
    del blocks, again
    assert arena.used_bytes == 0


def test_free_pages_grow_together_again(arena):
    blocks = [arena.allocate(MIB) for _ in range(16)]
    for order in ((3, 1, 2), (5, 6, 7), (12, 11, 10)):
        for number in order:
            blocks[number] = None
        whole = arena.allocate(3 * MIB)
        assert whole.offset == min(order) * MIB
        for number in order:
            blocks[number] = whole
        del whole
    assert arena.byte_count == 16 * MIB


def test_no_two_blocks_overlap_whatever_the_order(arena):
    chance = random.Random(4)
    held = []
    for _ in range(3000):
        if held and chance.random() < 0.5:
            held.pop(chance.randrange(len(held)))
        else:
            held.append(arena.allocate(chance.randrange(1, 2 * MIB)))
        if len(held) % 50 == 1:
            taken = sorted((block.segment.number, block.offset, block.byte_count) for block in held)
            for (number, offset, size), (next_number, next_offset, _) in pairwise(taken):
                assert number != next_number or offset + size <= next_offset
    assert arena.used_bytes == sum(block.byte_count for block in held)
    held.clear()
    assert arena.used_bytes == 0


def test_a_large_block_has_a_segment_of_its_size(arena):
    block = arena.allocate(64 * MIB + 1)
    assert block.byte_count == 64 * MIB + PAGE_BYTES == arena.byte_count
    block.segment.view[block.offset + 64 * MIB] = 1


def test_more_than_the_limit_is_refused_and_comes_back(arena, monkeypatch):
    monkeypatch.setattr(limits, "ARENA_BYTES_MAX", 40 * MIB)
    blocks = [arena.allocate(16 * MIB), arena.allocate(16 * MIB), arena.allocate(8 * MIB)]
    with pytest.raises(ArenaFull, match=f"{PAGE_BYTES} bytes more than the {40 * MIB} in use .* limit of {40 * MIB}"):
        arena.allocate(1)
    with pytest.raises(MemoryError):
        arena.allocate(1)
    del blocks[0]
    assert arena.allocate(16 * MIB).byte_count == 16 * MIB


def test_free_segments_that_are_too_small_make_room_for_a_large_one(arena, monkeypatch):
    monkeypatch.setattr(limits, "ARENA_BYTES_MAX", 48 * MIB)
    blocks = [arena.allocate(16 * MIB) for _ in range(3)]
    del blocks
    assert arena.allocate(40 * MIB).byte_count == 40 * MIB
    assert arena.byte_count == 40 * MIB


def test_what_is_idle_goes_back_to_the_kernel(arena, monkeypatch):
    monkeypatch.setattr(limits, "ARENA_IDLE_BYTES", 32 * MIB)
    blocks = [arena.allocate(16 * MIB) for _ in range(4)]
    open_before = len(descriptors())
    last = blocks[3].segment
    del blocks
    arena.settle()
    assert arena.byte_count == 32 * MIB
    assert last.descriptor is None
    assert len(descriptors()) < open_before
    arena.give_back()
    assert arena.byte_count == 0


def test_without_memory_or_descriptors_it_is_full(arena, monkeypatch):
    def refuse(byte_count):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(arena_module.memory, "create_arena", refuse)
    with pytest.raises(ArenaFull, match="Too many open files"):
        arena.allocate(1)


def test_a_block_in_a_cycle_comes_back_with_the_collector(arena):
    class Holder:
        pass

    holder = Holder()
    holder.itself, holder.block = holder, arena.allocate(1)
    del holder
    assert arena.used_bytes == PAGE_BYTES
    gc.collect()
    assert arena.used_bytes == 0


def test_a_finalizer_that_allocates_while_we_do_is_told_so(arena, monkeypatch):
    # As when the collector runs within `allocate`.
    caught = []
    take_back = Arena._take_back

    def and_a_finalizer(self):
        take_back(self)
        try:
            self.allocate(1)
        except ArenaFull as error:
            caught.append(str(error))
        self.settle()

    monkeypatch.setattr(Arena, "_take_back", and_a_finalizer)
    assert arena.allocate(1).offset == 0
    assert caught == ["the memory for blobs is being allocated further up this very stack"]


def test_threads_allocate_and_drop_at_the_same_time(arena):
    wrong = []

    def work(mark):
        chance = random.Random(mark)
        for _ in range(400):
            block = arena.allocate(chance.randrange(1, 4 * PAGE_BYTES))
            view = block.segment.view[block.offset : block.offset + block.byte_count]
            view[:] = bytes([mark]) * len(view)
            if bytes(view) != bytes([mark]) * len(view):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert arena.used_bytes == 0


def test_a_forked_child_has_an_arena_of_its_own():
    ours = the_arena().allocate(PAGE_BYTES)
    ours.segment.view[ours.offset] = 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert the_arena().byte_count == 0
            theirs = the_arena().allocate(PAGE_BYTES)
            theirs.segment.view[theirs.offset] = 2
            assert ours.segment.view[ours.offset] == 1  # it can still be looked at
            assert ours.segment.descriptor is None
            del ours
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.segment.view[ours.offset] == 1
    assert the_arena().used_bytes == PAGE_BYTES


def test_there_are_never_more_segments_than_a_peer_takes(monkeypatch):
    monkeypatch.setattr(limits, "ARENA_SEGMENT_BYTES", 4096)
    monkeypatch.setattr(limits, "ARENAS_MAX", 3)
    arena = Arena()
    blocks = [arena.allocate(4096) for _ in range(3)]
    with pytest.raises(ArenaFull):
        arena.allocate(4096)
    blocks.pop()
    blocks.append(arena.allocate(8192))  # in the place of one that is given back
    del blocks
    arena.give_back()
