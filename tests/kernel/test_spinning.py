"""What may be spent on busy waiting, and who else wants the core."""

from __future__ import annotations

import math
import os

import pytest
from support import python, until

from samehost import limits
from samehost.errors import UsageError
from samehost.kernel.spinning import Allowance, check_busy_wait, gave_way


def spend_for(allowance: Allowance, end: float, step: float = 0.001) -> float:
    """How much is spent until this moment by somebody who never finds anything."""
    now = spent = 0.0
    while now < end:
        if now >= allowance.rests_until:
            now += allowance.seconds
            spent += allowance.seconds
            allowance.spent(allowance.seconds, now)
        now += step
    return spent


def test_what_is_looked_for_in_vain_takes_a_hundredth_of_the_time() -> None:
    seconds = 0.01
    at_once = limits.BUSY_WAITS_IN_VAIN * seconds
    spent = spend_for(Allowance(seconds), 100.0)
    assert at_once + 0.9 < spent <= at_once + 100.0 * limits.BUSY_WAIT_SHARE


def test_it_is_in_vain_a_few_times_before_it_rests() -> None:
    allowance = Allowance(0.01)
    now = 0.0
    for _ in range(limits.BUSY_WAITS_IN_VAIN):
        assert now >= allowance.rests_until
        now += 0.01
        allowance.spent(0.01, now)
    assert now < allowance.rests_until <= now + 0.01 / limits.BUSY_WAIT_SHARE


def test_one_success_fills_it_up() -> None:
    allowance = Allowance(0.01)
    now = 5.0
    for _ in range(100):
        for _ in range(limits.BUSY_WAITS_IN_VAIN - 1):
            now += 0.01
            allowance.spent(0.01, now)
        assert now >= allowance.rests_until
        allowance.paid()


def test_what_a_crowded_core_has_cost_is_counted() -> None:
    allowance = Allowance(0.001)
    allowance.spent(0.1, 1.0)
    assert allowance.rests_until > 1.0 + 0.09 / limits.BUSY_WAIT_SHARE


def test_time_does_not_save_up_more_than_at_first() -> None:
    allowance = Allowance(0.01)
    now = 1e6
    for _ in range(limits.BUSY_WAITS_IN_VAIN):
        allowance.spent(0.01, now)
    assert now < allowance.rests_until


@pytest.mark.parametrize("seconds", [0, 0.0001, limits.BUSY_WAIT_SECONDS_MAX])
def test_a_time_that_can_be_spent(seconds: float) -> None:
    check_busy_wait(seconds)


@pytest.mark.parametrize("seconds", [-0.001, 0.0201, math.nan, math.inf, "0.01", None])
def test_a_time_that_cannot(seconds: float) -> None:
    with pytest.raises(UsageError, match=r"busy_wait is from 0 to 0\.02 s, not"):
        Allowance(seconds)


def test_another_on_the_same_core_is_given_way() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with python("while True: pass"):
            until(gave_way, "the other program runs while we give way")
    finally:
        os.sched_setaffinity(0, before)
