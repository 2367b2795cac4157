"""A bounded pool of threads for methods that wait in ways that an event loop cannot.

Not `concurrent.futures`, which the interpreter joins at its end: a method that hangs would keep a server from ending
after its drain time. These are daemons, made when there is work for them, up to the bound. No owner of jobs has all of
them: what waits for ever in the jobs of one leaves some for the others.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from samehost import limits
from samehost.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Job = Callable[[], None]

_KEPT_FOR_OTHERS = 4
"""One thread of so many is not for whoever has all the others already."""


class Threads:
    """Threads that run the jobs of each owner in the order in which they come. Only the loop's own thread uses this.

    Args:
        threads_max: how many run at a time.
    """

    def __init__(self, threads_max: int) -> None:
        if threads_max < 1:
            raise UsageError(f"threads_max={threads_max}: at least one thread is needed")
        self._threads_max = threads_max
        self._share_max = threads_max - threads_max // _KEPT_FOR_OTHERS
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._in_hand = 0
        self._shares: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[Job]] = {}

    def submit(self, job: Job, owner: Hashable) -> None:
        """Run a job in a thread, once one is free; it has to see to it that `done` is called on the loop afterwards.

        Raises:
            RuntimeError: there is no thread, and the host gives none; the job will not run.
        """
        share = self._shares.get(owner, 0)
        if share == self._share_max:
            self._waiting.setdefault(owner, deque()).append(job)
            return
        if len(self._threads) < min(self._in_hand + 1, self._threads_max):
            self._begin_thread()
        self._shares[owner] = share + 1
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

    def are_idle(self) -> bool:
        """Whether no job is in a thread's hands."""
        return not self._in_hand

    def done(self, owner: Hashable) -> None:
        """Take note that a job of this owner is over."""
        waiting = self._waiting.get(owner)
        if waiting:
            self._jobs.put(waiting.popleft())
            return
        self._in_hand -= 1
        self._shares[owner] -= 1
        if not self._shares[owner]:
            del self._shares[owner]
            self._waiting.pop(owner, None)

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
