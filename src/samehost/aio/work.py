"""A call whose method did not end at once: in a task or a thread, until it ends, is cancelled, or its time is up.

A call that was cancelled counts until its method has ended, however long that takes, so that nobody can pile up work by
calling and cancelling. One whose time is up is answered then; what is still at work on it a second later is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from samehost import limits
from samehost.aio.answering import CANCELLED
from samehost.codec import CannotEncode
from samehost.kernel.deadline import Deadline, Until
from samehost.protocol import codes
from samehost.service.call import current_call
from samehost.service.failures import Failure

if TYPE_CHECKING:
    from contextvars import Context

    from samehost.aio.beginning import Beginning
    from samehost.aio.outflow import Outflow
    from samehost.aio.runner import Ready
    from samehost.kernel.attaching import Encoded
    from samehost.service.arguments import Arguments, Invoke
    from samehost.service.call import Call

logger = logging.getLogger("samehost")

NEVER = Deadline(None)
"""The deadline of a call that has none."""

_CUT_OFF = Failure(codes.UNAVAILABLE, "the server has ended before the method did")
_TIME_IS_UP = Failure(codes.DEADLINE_EXCEEDED, "the deadline of the call has passed")


def invoke_in_call(invoke: Invoke, arguments: Arguments, call: Call) -> Any:
    """Call a method that is no coroutine, with its call as the current one of this context."""
    current_call.set(call)
    return invoke(arguments, call)


class _Written(NamedTuple):
    """A result that was encoded in the method's thread, or why it cannot be."""

    encoded: bytes | Encoded | CannotEncode

    @classmethod
    def of(cls, result: Any, outflow: Outflow) -> _Written:
        try:
            return cls(outflow.encode(result))
        except CannotEncode as error:
            return cls(error)


class Work:
    """One call in progress.

    Attributes:
        call_id: 0 for a notification.
        ready: its method.
        call: what the method knows of it.
        began: when it came, in seconds of the monotonic clock.
        task: what the method runs in; None in a thread.
        is_answered: whether the caller has been told, or is gone.
        kept: the files that came with it; None for none.
    """

    __slots__ = (
        "_cost",
        "_ending",
        "_is_uncancellable",
        "_session",
        "_timer",
        "began",
        "call",
        "call_id",
        "is_answered",
        "kept",
        "ready",
        "task",
    )

    def __init__(
        self, session: Beginning, call_id: int, ready: Ready, call: Call, began: float, arguments_bytes: int
    ) -> None:
        self.call_id = call_id
        self.ready = ready
        self.call = call
        self.began = began
        self.task: asyncio.Task[Any] | None = None
        self.is_answered = call_id == 0
        self.kept = session.take_kept()
        self._session = session
        self._cost = limits.CALL_OVERHEAD_BYTES + arguments_bytes
        self._ending: Failure | None = None
        self._is_uncancellable = False
        self._timer: asyncio.TimerHandle | None = None
        session.account.used_bytes += self._cost
        session.runner.works.add(self)
        ready.statistics.in_flight += 1
        left = call.deadline.left()
        if left != float("inf"):
            self._timer = session.runner.loop.call_later(left, self._expire)

    def in_task(self, task: asyncio.Task[Any]) -> None:
        """Go on in a task."""
        self.task = task
        task.add_done_callback(self._task_done)

    def in_thread(self, arguments: Arguments, context: Context, outflow: Outflow | None = None) -> None:
        """Go on in a thread, once one is free.

        Args:
            outflow: how the result is encoded in the thread as well; None for one that nobody waits for.
        """
        runner = self._session.runner
        loop = runner.loop

        def job() -> None:
            result, error = None, None
            if not self.call.is_cancelled:  # while it waited for a thread
                try:
                    result = context.run(invoke_in_call, self.ready.invoke, arguments, self.call)
                    if self.ready.gives_blobs and outflow is not None:  # there may be much to copy
                        result = _Written.of(result, outflow)
                except BaseException as raised:  # SystemExit as well: it is the method's, not the server's
                    error = raised
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits for this any more
                loop.call_soon_threadsafe(self._thread_done, result, error)
            result = error = None  # either may lead to this frame, and the two would keep each other

        try:
            runner.threads.submit(job, self._session.account.uid)
        except RuntimeError as error:
            self._done(None, error)

    def _thread_done(self, result: Any, error: BaseException | None) -> None:
        self._session.runner.threads.done(self._session.account.uid)
        self._done(result, error)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._done(None, asyncio.CancelledError())
        else:
            error = task.exception()
            self._done(None if error else task.result(), error)

    def _done(self, result: Any, error: BaseException | None) -> None:
        session = self._session
        if self._timer is not None:
            self._timer.cancel()
        session.account.used_bytes -= self._cost
        session.runner.forget_work(self)
        session.runner.uncancellable -= self._is_uncancellable
        self.ready.statistics.in_flight -= 1
        session.work_done(self)
        if (self.is_answered or self._ending is not None) and not isinstance(result, _Written):
            session.drop(self.ready, result)
        if not self.is_answered:
            self._answer(result, error)
        elif error is not None and not isinstance(error, asyncio.CancelledError) and self._ending is None:
            session.log_failure(self.ready, error)
        if self.kept is not None:
            self.kept.close()
        if not session.account.connections:
            session.runner.forget_account(session.account)

    def _answer(self, result: Any, error: BaseException | None) -> None:
        self.is_answered = True
        if self._ending is not None:
            self._session.fail(self.call_id, self.ready, self._ending)
        elif isinstance(error, asyncio.CancelledError):
            self._session.fail(self.call_id, self.ready, Failure(codes.CANCELLED, CANCELLED.message))
        elif error is not None:
            self._session.fail_with(self.call_id, self.ready, error)
        elif isinstance(result, _Written):
            self._session.reply_encoded(self.call_id, self.ready, result.encoded)
        else:
            self._session.reply(self.call_id, self.ready, result)
        self._session.settle(self.began)
        self._session.flush_soon()

    def begin_stream(self, outflow: Outflow) -> None:
        """Answer with a stream: from here on the method's own time counts, and not what its caller has given it."""
        outflow.begin_stream(self.call_id)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds = self.ready.method.timeout
        if seconds is None:
            self.call.deadline = NEVER
        else:
            self.call.deadline = Until(seconds, self.began + seconds)
            self._timer = self._session.runner.loop.call_later(self.call.deadline.left(), self._expire)

    def cancel(self) -> None:
        """Stop, because the caller wants no answer any more; it is told once the method has ended."""
        self._end(CANCELLED)

    def abandon(self) -> None:
        """Stop, because the caller is gone."""
        self.is_answered = True
        self._end(CANCELLED)

    def cut(self) -> None:
        """Stop, because the server ends."""
        self._end_at_once(_CUT_OFF)

    def credited(self) -> None:
        """Take note that the caller takes more items."""

    def released(self) -> None:
        """Take note that the caller looks no more at some of the memory that this session has sent it."""

    def leave(self) -> None:
        """Take note that the server drains; a method gets the time for it."""

    def _expire(self) -> None:
        self._end_at_once(_TIME_IS_UP)

    def _end_at_once(self, reason: Failure) -> None:
        self._end(reason)
        if self.task is None and not self.is_answered:  # a thread cannot be stopped, so it is not waited for
            self._answer(None, None)

    def _end(self, reason: Failure) -> None:
        if self._ending is not None:
            return
        self._ending = reason
        self.call.is_cancelled = True
        loop = self._session.runner.loop
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(limits.CANCEL_SECONDS, self._report)
        self._stop()

    def _stop(self) -> None:
        """Have the method end, if it can be stopped."""
        if self.task is not None:
            self._session.runner.loop.call_soon(self.task.cancel)  # once it has begun, if it was made just now

    def _report(self) -> None:
        """Say that the method goes on all the same."""
        self._is_uncancellable = True
        self._session.runner.uncancellable += 1
        logger.error(
            "%s: %s goes on %g s after it was told to end (%s)%s",
            self._session.runner.service.name,
            self,
            limits.CANCEL_SECONDS,
            self._ending.code if self._ending else "",
            self._stack(),
        )
        if self._ending is _TIME_IS_UP and not self.is_answered:
            self._answer(None, None)

    def _stack(self) -> str:
        if self.task is None:
            return ", in a thread"
        text = io.StringIO()
        self.task.print_stack(file=text)
        return f":\n{text.getvalue()}"

    def __repr__(self) -> str:
        return f"{self.ready.method.name}, called by {self.call.peer}"
