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
        threads.submit(lambda number=number: job(number))
    for _ in range(3):
        assert done.acquire(timeout=DEADLINE)
        threads.done()
    assert len(threads._threads) == 3
    blocked = threading.Event()
    for _ in range(2):
        threads.submit(lambda: (blocked.wait(DEADLINE), done.release()))
    for number in range(3, 13):
        threads.submit(lambda number=number: job(number))
    for _ in range(10):
        assert done.acquire(timeout=DEADLINE)
        threads.done()
    assert order == list(range(3, 13))  # by the one thread that was left, first come, first served
    blocked.set()
    for _ in range(2):
        assert done.acquire(timeout=DEADLINE)
        threads.done()
    threads.close()


def test_no_more_threads_are_made_than_there_is_work_for() -> None:
    threads = Threads(8)
    done = threading.Semaphore(0)
    for _ in range(20):
        threads.submit(done.release)
        assert done.acquire(timeout=DEADLINE)
        threads.done()
    assert len(threads._threads) == 1
    threads.close()


def test_a_job_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAIN_CUT_SECONDS", 0.05)
    threads = Threads(2)
    release = threading.Event()
    threads.submit(lambda: release.wait(DEADLINE) and None)
    began = time.monotonic()
    threads.close()
    assert time.monotonic() - began < DEADLINE / 4
    release.set()


def test_a_pool_of_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="threads_max=0"):
        Threads(0)
