"""Noticing that an event loop is held up, and by what, from a thread beside it."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from samehost import limits
from samehost.kernel.closing import Closable

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("samehost")


class Watchdog(Closable):
    """Asks a loop every second to say that it is alive, and logs its stack, once, when it does not for as long again.

    Args:
        name: what the loop serves, for the log.
        loop: the loop, which runs in the thread that makes this.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._loop = loop
        self._watched = threading.get_ident()
        self._is_over = threading.Event()
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="samehost-watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(limits.LOOP_BLOCKED_SECONDS):
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:  # the loop was closed
                return
            if not self._answered.wait(limits.LOOP_BLOCKED_SECONDS) and not self._is_over.is_set():
                self._report()
                self._answered.wait()

    def _report(self) -> None:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001 - public in all but its name
        stack = "".join(traceback.format_stack(frame)) if frame else "(its thread is gone)"
        logger.error(
            "%s: the event loop has been held up for %g s, and nobody is served meanwhile, by:\n%s",
            self._name,
            limits.LOOP_BLOCKED_SECONDS,
            stack,
        )

    def close(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._answered.set()
        self._thread.join()
