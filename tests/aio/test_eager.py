"""Methods that are begun at once: to them it looks as if they had been a task all along."""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import weakref
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

import msgspec
import pytest
from loops import Run, eventually
from support import DEADLINE

import samehost
from samehost.aio.eager import Starter
from samehost.errors import Cancelled, InternalError
from samehost.service.call import Call, current_call
from samehost.testing import connected

Method = Callable[..., Any]
variable: ContextVar[str] = ContextVar("variable", default="unset")


def called(method: Method, *more: Method) -> Any:
    """The result of a method that is called, with others beside it, and of one that is called after it."""
    service = samehost.Service("eager")
    for function in (method, *more):
        service.method(function)

    @service.method
    async def after() -> list[Any]:
        """What a method finds that comes afterwards."""
        task = asyncio.current_task()
        assert task is not None
        found = [variable.get(), task.cancelling()]
        await asyncio.sleep(0)
        assert asyncio.current_task() is task
        return found

    async def calling() -> Any:
        async with connected(service) as client:
            try:
                return await client.call(method.__name__, timeout=DEADLINE)
            finally:
                assert await client.after() == ["unset", 0]
                assert await client.after() == ["unset", 0]

    return calling()


class Answer(msgspec.Struct, weakref=True):
    text: str


@pytest.mark.parametrize("waits", [False, True])
async def test_a_result_lives_no_longer_than_its_answer_takes(waits: bool) -> None:
    results: list[weakref.ref[Answer]] = []
    gone: list[bool] = []

    async def method() -> Answer:
        if waits:
            await asyncio.sleep(0)
        answer = Answer("a")
        results.append(weakref.ref(answer))
        return answer

    async def look() -> None:
        gone.append(results[0]() is None)

    service = samehost.Service("eager")
    service.method(method)
    service.method(look)
    gc.disable()  # it has to go by itself
    try:
        async with connected(service) as client:
            assert await client.method() == {"text": "a"}
            await client.look()
    finally:
        gc.enable()
    assert gone == [True]


class OfAnotherKind:
    """What a compiled `async def` gives."""

    def __await__(self) -> Generator[Any, Any, int]:
        assert current_call.get() is not None
        return 5
        yield


async def test_a_coroutine_may_be_of_another_kind() -> None:
    loop = asyncio.get_running_loop()
    starter = Starter(loop)
    call = Call(None, "method", 1, None, {}, None)  # type: ignore[arg-type]
    results: asyncio.Future[list[int]] = loop.create_future()

    def start() -> None:
        results.set_result([starter.start(OfAnotherKind(), call) for _ in range(2)])  # type: ignore[arg-type]

    loop.call_soon(start)  # as a task within a task is none
    assert await results == [5, 5]
    await starter.close()


async def test_a_method_that_never_waits_makes_no_task() -> None:
    tasks: list[set[Any]] = []

    async def method() -> int:
        tasks.append(asyncio.all_tasks())
        return 5

    assert await called(method) == 5
    assert {task.get_coro().__class__.__name__ for task in tasks[0]} == {"coroutine", "_Rest"}


# What holds on to the current task


def test_the_current_task_is_the_same_before_and_after_the_first_wait(run: Run) -> None:
    async def method() -> bool:
        first = asyncio.current_task()
        await asyncio.sleep(0)
        second = asyncio.current_task()
        await asyncio.sleep(0.001)
        return first is not None and first is second is asyncio.current_task()

    assert run(called(method))


@pytest.mark.parametrize("seconds", [0, 0.001, -1])
def test_a_timeout_that_passes(run: Run, seconds: float) -> None:
    async def method() -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            return "late"
        return "never"

    assert run(called(method)) == "late"


def test_timeouts_that_do_not_pass(run: Run) -> None:
    async def method() -> int:
        async with asyncio.timeout(0):  # noqa: ASYNC100
            pass
        async with asyncio.timeout(DEADLINE):
            await asyncio.sleep(0)
        async with asyncio.timeout(None):
            return await asyncio.wait_for(asyncio.sleep(0, 5), DEADLINE)

    assert run(called(method)) == 5


def test_a_task_group_runs_its_tasks(run: Run) -> None:
    async def method() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert run(called(method)) == [0, 1, 2]


def test_a_task_group_cancels_the_method_when_a_task_fails(run: Run) -> None:
    async def fail() -> None:
        raise KeyError("on purpose")

    async def method() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()
        except ExceptionGroup as error:
            return repr(error.exceptions)
        return "never"

    assert run(called(method)) == "(KeyError('on purpose'),)"


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_other_ways_to_wait(run: Run, steps: int) -> None:
    async def method() -> list[Any]:
        for _ in range(steps):
            await asyncio.sleep(0)
        queue: asyncio.Queue[int] = asyncio.Queue()
        asyncio.get_running_loop().call_soon(queue.put_nowait, 7)
        lock = asyncio.Lock()
        async with lock:
            found = await queue.get()
        done = asyncio.get_running_loop().create_future()
        done.set_result(1)
        both = await asyncio.gather(asyncio.sleep(0, 2), asyncio.shield(asyncio.sleep(0, 3)))
        return [found, await done, *both, await asyncio.to_thread(lambda: 4)]

    assert run(called(method)) == [7, 1, 2, 3, 4]


def test_where_a_waiting_method_is_can_be_printed(run: Run) -> None:
    async def method() -> str:
        text = io.StringIO()
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(lambda: task.print_stack(file=text))
        await asyncio.sleep(0.001)  # here
        return text.getvalue()

    assert "await asyncio.sleep(0.001)  # here" in run(called(method))


# Context


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_context_variables_stay_within_their_call(run: Run, steps: int) -> None:
    async def method(call: samehost.Call) -> list[Any]:
        found: list[Any] = [variable.get()]
        variable.set("mine")
        for _ in range(steps):
            await asyncio.sleep(0)
            found.append(variable.get())
        found.append(await asyncio.create_task(inherited()))
        return [*found, current_call.get() is call]

    async def inherited() -> str:
        return variable.get()

    async def calling() -> None:
        before = variable.get(), current_call.get()
        token = variable.set("the test's")  # which the service's run takes over, as a task does
        variable.reset(token)
        assert await called(method) == ["unset", *["mine"] * (steps + 1), True]
        assert (variable.get(), current_call.get()) == before

    run(calling())


def test_calls_side_by_side_have_a_context_each(run: Run) -> None:
    service = samehost.Service("many")

    @service.method
    async def keep(name: str) -> list[str]:
        variable.set(name)
        await asyncio.sleep(0.001)
        call = current_call.get()
        assert call is not None
        return [variable.get(), call.method]

    async def calling() -> None:
        async with connected(service) as client:
            names = [str(number) for number in range(20)]
            found = await asyncio.gather(*(client.keep(name) for name in names))
            assert found == [[name, "keep"] for name in names]

    run(calling())


# Cancelling


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4])
def test_a_cancel_finds_the_method_however_early_it_comes(run: Run, turns: int) -> None:
    service = samehost.Service("cancelled")
    seen: list[str] = []

    @service.method
    async def hold() -> None:
        seen.append("began")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def calling() -> None:
        async with connected(service) as client:
            call = asyncio.ensure_future(client.hold())
            await asyncio.sleep(0)  # it is on its way
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await eventually(lambda: not client._link._protocol.calls_made)
        assert seen in ([], ["began", "cancelled"])

    run(calling())


def test_a_cancel_in_the_same_read_as_its_call(run: Run) -> None:
    service = samehost.Service("cancelled")
    seen: list[str] = []

    @service.method
    async def hold() -> None:
        try:
            await asyncio.sleep(0)  # the shortest wait that there is
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def calling() -> None:
        async with connected(service) as client:
            await client.call("samehost.health")
            link = client._link
            link._protocol.send_cancel(link._protocol.send_call("hold", b"\x80"))
            link.flush()
            await eventually(lambda: not link._protocol.calls_made)
        assert seen == ["cancelled"]

    run(calling())


@pytest.mark.parametrize("wait", [True, False])
def test_a_method_that_cancels_its_own_task_in_its_first_step(run: Run, wait: bool) -> None:
    async def method() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if wait:
            await asyncio.Event().wait()
        return "done all the same"

    if wait:
        with pytest.raises(Cancelled):
            run(called(method))
    else:
        assert run(called(method)) == "done all the same"


def test_what_a_method_waits_for_is_cancelled_with_it(run: Run) -> None:
    async def method() -> list[Any]:
        task = asyncio.current_task()
        assert task is not None
        found: list[Any] = []
        for waits_for in (asyncio.get_running_loop().create_future(), asyncio.create_task(asyncio.sleep(DEADLINE))):
            task.cancel()
            try:
                await waits_for
            except asyncio.CancelledError:
                found.append(waits_for.cancelled())
        return found

    assert run(called(method)) == [True, True]


def test_a_cancel_is_not_lost_on_a_wait_for_nothing(run: Run) -> None:
    async def method() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "cancelled"
        return "lost"

    assert run(called(method)) == "cancelled"


def test_a_method_that_takes_its_own_cancel_back(run: Run) -> None:
    async def method() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            task.uncancel()
        await asyncio.sleep(0)
        return "went on"

    assert run(called(method)) == "went on"


# Failing


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("kind", [KeyError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_whatever_a_method_raises_is_its_own_failure(
    run: Run,
    kind: type[BaseException],
    steps: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def method() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        if kind is SystemExit:
            sys.exit(3)
        raise kind

    with pytest.raises(InternalError) as caught:
        run(called(method))
    assert sum(caught.value.error_id in record.getMessage() for record in caplog.records) == 1


def test_a_method_that_cancels_every_task_but_its_own_leaves_later_calls_alone(run: Run) -> None:
    async def method() -> int:
        await asyncio.sleep(0)
        spare = [task for task in asyncio.all_tasks() if type(task.get_coro()).__name__ == "_Rest"]
        spare.remove(asyncio.current_task())  # type: ignore[arg-type]
        for task in spare:
            task.cancel()
        await asyncio.sleep(0)
        return len(spare)

    assert run(called(method)) == 1
