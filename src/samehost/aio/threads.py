"""A bounded pool of threads for methods that wait in ways that an event loop cannot.

Not `concurrent.futures`, which the interpreter joins at its end: a method that hangs would keep a server from ending
after its drain time. These are daemons, made when there is work for them, up to the bound.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from samehost import limits
from samehost.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


class Threads:
    """Threads that run jobs in the order in which they come. Only the loop's own thread uses this.

    Args:
        threads_max: how many run at a time.
    """

    def __init__(self, threads_max: int) -> None:
        if threads_max < 1:
            raise UsageError(f"threads_max={threads_max}: at least one thread is needed")
        self._threads_max = threads_max
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._in_hand = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job in a thread, once one is free; it has to see to it that `done` is called on the loop afterwards.

        Raises:
            RuntimeError: there is no thread, and the host gives none; the job will not run.
        """
        if len(self._threads) < min(self._in_hand + 1, self._threads_max):
            self._begin_thread()
        self._in_hand += 1
        self._jobs.put(job)

    def _begin_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="samehost-method", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return  # those that there are will do
        self._threads.append(thread)

    def done(self) -> None:
        """Take note that a job is over."""
        self._in_hand -= 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or it would keep its arguments until the next one comes

    def close(self) -> None:
        """End the threads that are idle, and leave those that are not: they end with the process."""
        for _ in self._threads:
            self._jobs.put(None)
        end = monotonic() + limits.DRAIN_CUT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()) if self._in_hand else None)
