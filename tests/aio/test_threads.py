"""The pool of threads: as many as there is work for, no more than allowed, and an end that does not hang."""

from __future__ import annotations

import threading
import time

import pytest
from support import DEADLINE

from samehost import limits
from samehost.aio.threads import Threads
from samehost.errors import UsageError


def test_jobs_run_at_a_time_up_to_the_bound_and_in_order() -> None:
    threads = Threads(3)
    together = threading.Barrier(3)
    order: list[int] = []
    done = threading.Semaphore(0)

    def job(number: int) -> None:
        if number < 3:
            together.wait(DEADLINE)  # they do run at the same time
        else:
            order.append(number)
        done.release()

    for number in range(3):
        threads.submit(lambda number=number: job(number), 1)
    for _ in range(3):
        assert done.acquire(timeout=DEADLINE)
        threads.done(1)
    assert len(threads._threads) == 3
    blocked = threading.Event()
    for _ in range(2):
        threads.submit(lambda: (blocked.wait(DEADLINE), done.release()), 1)
    for number in range(3, 13):
        threads.submit(lambda number=number: job(number), 1)
    for _ in range(10):
        assert done.acquire(timeout=DEADLINE)
        threads.done(1)
    assert order == list(range(3, 13))  # by the one thread that was left, first come, first served
    blocked.set()
    for _ in range(2):
        assert done.acquire(timeout=DEADLINE)
        threads.done(1)
    threads.close()


def test_no_more_threads_are_made_than_there_is_work_for() -> None:
    threads = Threads(8)
    done = threading.Semaphore(0)
    for _ in range(20):
        threads.submit(done.release, 1)
        assert done.acquire(timeout=DEADLINE)
        threads.done(1)
    assert len(threads._threads) == 1
    threads.close()


def test_a_job_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAIN_CUT_SECONDS", 0.05)
    threads = Threads(2)
    release = threading.Event()
    threads.submit(lambda: release.wait(DEADLINE) and None, 1)
    began = time.monotonic()
    threads.close()
    assert time.monotonic() - began < DEADLINE / 4
    release.set()


@pytest.mark.parametrize(("threads_max", "share_max"), [(1, 1), (3, 3), (4, 3), (8, 6), (32, 24)])
def test_no_owner_has_all_threads_of_a_pool_that_has_some(threads_max: int, share_max: int) -> None:
    threads = Threads(threads_max)
    begun, release, done = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        begun.release()
        release.wait(DEADLINE)
        done.release()

    for _ in range(threads_max + 5):
        threads.submit(hang, "greedy")
    for _ in range(share_max):
        assert begun.acquire(timeout=DEADLINE)
    assert not begun.acquire(timeout=0.02)
    if share_max < threads_max:
        threads.submit(begun.release, "modest")
        assert begun.acquire(timeout=DEADLINE)
        threads.done("modest")
    release.set()
    for _ in range(threads_max + 5):
        assert done.acquire(timeout=DEADLINE)
        threads.done("greedy")
    assert not threads._shares
    assert not threads._waiting
    threads.close()


def test_a_pool_of_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="threads_max=0"):
        Threads(0)
