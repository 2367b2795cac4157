"""Starting a coroutine at once, in the middle of a callback, for the price of a call if it never waits.

asyncio makes a task of a coroutine and runs its first step later, which costs twenty times as much as a short method
does. Here the first step runs at once. A task has to be the current one meanwhile, as `asyncio.timeout` and
`asyncio.TaskGroup` hold on to it: a spare one, made beforehand, that goes back unused when the coroutine is done after
its first step, and otherwise becomes its task and drives what is left of it. Each coroutine has a context of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from contextvars import Context, copy_context
from types import CoroutineType, GeneratorType, coroutine
from typing import TYPE_CHECKING, Any

from samehost.service.call import current_call

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from samehost.service.call import Call

_enter_task = asyncio.tasks._enter_task  # noqa: SLF001 - "Extending asyncio" in its manual
_leave_task = asyncio.tasks._leave_task  # noqa: SLF001
_set_call = current_call.set
_send: Any = GeneratorType.send


class Starter:
    """Starts the coroutines of one event loop, each of them in a copy of the context that this was made in.

    Attributes:
        context: that context.
        waiting: the task of the coroutine that was started last, if it has to wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.context = copy_context()
        self.waiting: asyncio.Task[Any] | None = None
        self._spare = _Rest(loop)
        self._lane = _Lane()

    def start(self, started: Coroutine[Any, Any, Any], call: Call) -> Any:
        """Run the first step of a coroutine, on behalf of a call.

        Returns:
            Its result, if it is done already. Otherwise `waiting` is the task that runs the rest of it, to be taken.

        Raises:
            Whatever the coroutine raises.
        """
        spare, lane = self._spare, self._lane
        task = spare.task
        if spare.wake.done() or task.cancelling():  # it was cancelled while it was nobody's
            spare = self._spare = _Rest(self._loop)
            task = spare.task
        context = self.context.copy()
        _enter_task(self._loop, task)
        try:
            context.run(_set_call, call)
            lane.is_free = False
            waits_for = context.run(_send, lane.steps, started)
        except BaseException:
            self._lane = _Lane()
            raise
        finally:
            _leave_task(self._loop, task)
        if lane.is_free:
            result, lane.result = lane.result, None
            return result
        lane.is_left = True
        self._lane = _Lane()
        spare.take_over(started, lane.steps, context, waits_for)
        self._spare = _Rest(self._loop)
        self.waiting = task
        return None

    def take_waiting(self) -> asyncio.Task[Any]:
        """The task of the coroutine that was just started and has to wait."""
        task, self.waiting = self.waiting, None
        assert task is not None
        return task

    @staticmethod
    def give_up(task: asyncio.Task[Any]) -> None:
        """Have a task end that goes on although it was cancelled: its coroutine is closed, wherever it waits."""
        rest = task.get_coro()
        assert isinstance(rest, _Rest)
        rest.is_given_up = True
        task.cancel()

    async def close(self) -> None:
        """End the spare task, and wait until it has."""
        self._spare.task.cancel()
        await asyncio.wait([self._spare.task])


class _Lane:
    """Runs coroutines, one after the other; from one that has to wait on, that one alone.

    Attributes:
        steps: is sent each coroutine in its turn.
        result: of the one that has ended last; to be taken, or it would live on.
        is_free: whether that is all there is to it; set to False before it is sent the next one.
        is_left: it ends with the coroutine that it runs, and with its result.
    """

    __slots__ = ("is_free", "is_left", "result", "steps")

    def __init__(self) -> None:
        self.result: Any = None
        self.is_free = True
        self.is_left = False
        self.steps = self._run()
        self.steps.send(None)

    @coroutine
    def _run(self) -> Generator[Any, Any, Any]:
        while True:
            started = yield
            # One of a kind of its own, such as Cython's, has an iterator for this.
            awaited: Any = started if type(started) is CoroutineType else started.__await__()
            result = yield from awaited
            if self.is_left:
                return result
            self.result = result
            del started, awaited, result
            self.is_free = True


class _Rest(Coroutine[Any, Any, Any]):
    """What a spare task runs: it waits for a coroutine that was begun elsewhere, and then is the rest of that.

    Attributes:
        wake: what the task waits for, done once it has something to do.
        is_given_up: whether the coroutine gets no further step.
        task: the task that runs it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._steps: Generator[Any, Any, Any] | None = None
        self._context: Context | None = None
        self._waits_for: Any = None
        self._is_handed_over = False
        self.is_given_up = False
        self.wake: asyncio.Future[None] = loop.create_future()
        self.task = asyncio.Task(self, loop=loop)

    def take_over(
        self,
        started: Coroutine[Any, Any, Any],
        steps: Generator[Any, Any, Any],
        context: Context,
        waits_for: Any,
    ) -> None:
        """Be the rest of a coroutine, which is run by these steps and waits for this."""
        self._coroutine = started
        self._steps = steps
        self._context = context
        self._waits_for = waits_for
        del self.task  # or the two of them would keep each other, and the result, until the garbage is collected
        if not self.wake.done():
            self.wake.set_result(None)

    def send(self, value: Any) -> Any:
        """Take the next step."""
        if self._steps is None:
            return next(iter(self.wake))
        if not self._is_handed_over:
            self._is_handed_over = True
            return self._waits_for  # which the task now waits for, as if it had been asked for just now
        assert self._context is not None
        return self._context.run(self._step, self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        """Take the next step with an error, usually CancelledError."""
        if self._steps is None:
            raise error[0]
        if self.is_given_up:
            with contextlib.suppress(BaseException):  # it may swallow that as well
                self.close()
            raise error[0]
        if not self._is_handed_over:
            self._is_handed_over = True
            if _cancel(self._waits_for):
                return self._waits_for  # as a cancelled task does, which wakes up with what it waits for
        assert self._context is not None
        try:
            return self._context.run(self._step, self._steps.throw, *error)
        finally:
            del error  # which leads to this frame: the two would keep each other, and the call with its connection

    @staticmethod
    def _step(advance: Any, *value: Any) -> Any:
        try:
            return advance(*value)
        except (SystemExit, KeyboardInterrupt) as error:
            # A task would let them out of the loop, and end the server for one method that calls sys.exit.
            raise RuntimeError(f"the method raised {type(error).__name__}") from error
        finally:
            del value  # as in `throw`

    def close(self) -> None:
        """End the coroutine with GeneratorExit."""
        if self._steps is not None:
            self._steps.close()

    def __await__(self) -> Any:
        raise NotImplementedError("only a task runs this")

    @property
    def cr_frame(self) -> FrameType | None:
        """Where the coroutine is, for `asyncio.Task.print_stack`."""
        return getattr(self._coroutine, "cr_frame", None)


def _cancel(waits_for: Any) -> bool:
    """Cancel the future that a coroutine waits for, if it waits for one."""
    if waits_for is None:
        return False
    if waits_for.cancel():
        return True
    waits_for._asyncio_future_blocking = False  # noqa: SLF001 - it was offered to a task, and is not taken
    return False
