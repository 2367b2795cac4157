"""A timer that ticks at fixed times."""

from __future__ import annotations

import select
import time

import pytest
from support import DEADLINE, descriptors, room_for_descriptors

from samehost.kernel.timer import Timer

MILLISECOND = 1_000_000


def is_readable(timer: Timer, seconds: float = DEADLINE) -> bool:
    return bool(select.select([timer], [], [], seconds)[0])


def test_it_ticks_at_its_times_and_not_before() -> None:
    first = time.monotonic_ns() + 5 * MILLISECOND
    with Timer(first, 2 * MILLISECOND) as timer:
        for number in range(10):
            assert is_readable(timer)
            assert time.monotonic_ns() >= first + number * 2 * MILLISECOND
            timer.heed()


def test_ticks_that_nobody_heeded_are_one() -> None:
    first = time.monotonic_ns()
    with Timer(first, MILLISECOND) as timer:
        until = first + 20 * MILLISECOND
        while time.monotonic_ns() < until:
            assert is_readable(timer)
        timer.heed()
        timer.heed()  # which need not be readable for it


def test_one_far_away_is_not_readable() -> None:
    with Timer(time.monotonic_ns() + 10**15, 10**15) as timer:
        assert not is_readable(timer, 0)
        timer.heed()


def test_it_has_a_descriptor_for_as_long_as_it_is_open() -> None:
    before = descriptors()
    timer = Timer(time.monotonic_ns(), 1)
    assert descriptors().keys() - before.keys() == {timer.fileno()}
    timer.close()
    timer.close()
    assert descriptors() == before


def test_no_descriptor_is_an_error() -> None:
    with room_for_descriptors(0), pytest.raises(OSError, match="Too many open files"):
        Timer(time.monotonic_ns(), 1)


def test_times_that_cannot_be_are_an_error_that_leaves_nothing_open() -> None:
    before = descriptors()
    with pytest.raises(OSError, match="Invalid argument"):
        Timer(-(10**9), 1)
    assert descriptors() == before
