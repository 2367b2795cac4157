"""Serving a service in a loop: in which order things happen at its beginning and at its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loops import Run, eventually
from support import DEADLINE, nothing_left, python

import samehost
from samehost import aio
from samehost.errors import AddressInUse, NotPermitted, OutcomeUnknown, Unavailable, UsageError


def clock(events: list[str], name: str = "clock") -> samehost.Service:
    service = samehost.Service(name)

    @service.lifespan
    async def lifespan() -> AsyncIterator[str]:
        events.append("entered")
        try:
            yield f"state of {name}"
        finally:
            events.append("left")

    @service.method
    async def state(call: samehost.Call) -> str:
        return str(call.state)

    @service.method
    async def hold() -> str:
        events.append("held")
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            events.append("let go")
        return "never"

    @service.method
    async def finish(path: str) -> str:
        events.append("held")
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.002)
        events.append("finished")
        return "finished"

    return service


@asynccontextmanager
async def running(service: samehost.Service, path: Path, **options: Any) -> AsyncIterator[asyncio.Event]:
    """A service in a task, from `ready` to its end."""
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.ensure_future(aio.serve(service, path, ready=ready.set, stop=stop, **options))
    waiting = asyncio.ensure_future(ready.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if not task.done():
            yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, DEADLINE)


async def until_noted(events: list[str], what: str) -> None:
    await eventually(lambda: what in events, what)


def test_the_lifespan_is_around_all_calls(run: Run, place: Path) -> None:
    events: list[str] = []

    async def main() -> None:
        async with running(clock(events), place / "s"):
            assert events == ["entered"]
            async with await aio.connect(place / "s") as client:
                assert await client.state() == "state of clock"
        assert events == ["entered", "left"]
        assert os.listdir(place) == []

    run(main())


def test_a_lifespan_that_is_a_context_manager(run: Run, place: Path) -> None:
    service = samehost.Service("clock")

    @service.lifespan
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[int]:
        yield 5

    @service.method(inline=True)
    def state(call: samehost.Call) -> int:
        return call.state  # type: ignore[no-any-return]

    async def main() -> None:
        for _ in range(2):  # a run each
            async with running(service, place / "s"), await aio.connect(place / "s") as client:
                assert await client.state() == 5

    run(main())


def test_the_address_is_claimed_before_the_lifespan_is_entered(run: Run, place: Path) -> None:
    events: list[str] = []

    async def main() -> None:
        async with running(clock(events), place / "s"):
            with pytest.raises(AddressInUse):
                await aio.serve(clock(events), place / "s")
            assert events == ["entered"]

    run(main())


def test_a_client_that_comes_early_waits_for_the_lifespan(run: Run, place: Path) -> None:
    entered = asyncio.Event()
    service = samehost.Service("slow")
    service.method(name="ask")(lambda: 5)

    @service.lifespan
    async def lifespan() -> AsyncIterator[None]:
        await entered.wait()
        yield

    async def main() -> None:
        stop = asyncio.Event()
        serving = asyncio.ensure_future(aio.serve(service, place / "s", stop=stop))
        async with await aio.connect(place / "s", wait=DEADLINE) as client:
            call = asyncio.ensure_future(client.ask())
            await asyncio.sleep(0.02)
            assert not call.done()
            entered.set()
            assert await call == 5
        stop.set()
        await serving

    run(main())


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_lifespan_that_fails_ends_the_service_with_its_error(run: Run, place: Path, where: str) -> None:
    service = samehost.Service("failing")

    @service.lifespan
    async def lifespan() -> AsyncIterator[None]:
        if where == "begin":
            raise KeyError("on purpose")
        yield
        raise KeyError("on purpose")

    async def main() -> None:
        with pytest.raises(KeyError, match="on purpose"):
            async with running(service, place / "s"):
                assert where == "end"
        assert os.listdir(place) == []

    with nothing_left():
        run(main())


def test_a_service_that_lacks_a_method_is_not_served(run: Run, place: Path) -> None:
    class Interface(aio.Client):
        async def now(self) -> int:
            raise NotImplementedError

    async def main() -> None:
        for service, words in ((samehost.Service("clock", Interface), "lacks now"), ("clock", "is not a samehost")):
            with pytest.raises(UsageError, match=words):
                await aio.serve(service, place / "s")  # type: ignore[arg-type]
        for options in ({"threads_max": 0}, {"connections_max": 0}, {"connections_per_uid_max": 0}, {"drain": -1}):
            with pytest.raises(UsageError):
                await aio.serve(clock([]), place / "s", **options)  # type: ignore[arg-type]
        assert os.listdir(place) == []

    run(main())


def test_stopping_finishes_what_is_at_work_before_the_lifespan_is_left(run: Run, place: Path) -> None:
    events: list[str] = []

    async def main() -> None:
        async with running(clock(events), place / "s") as stop, await aio.connect(place / "s") as client:
            call = asyncio.ensure_future(client.finish(str(place / "go")))
            await until_noted(events, "held")
            stop.set()
            await eventually(lambda: not (place / "s").exists(), "the path is removed")
            with pytest.raises(Unavailable):
                await aio.connect(place / "s")
            (place / "go").touch()
            assert await call == "finished"
        assert events == ["entered", "held", "finished", "left"]

    run(main())


def test_what_does_not_finish_in_time_is_cancelled(run: Run, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []

    async def main() -> None:
        async with running(clock(events), place / "s", drain=0.05) as stop, await aio.connect(place / "s") as client:
            call = asyncio.ensure_future(client.hold())
            await until_noted(events, "held")
            stop.set()
            with pytest.raises(OutcomeUnknown, match="ended before the method did"):
                await call
        assert events == ["entered", "held", "let go", "left"]

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "1 calls still in progress are cut off" in caplog.text


def test_cancelling_ends_it_at_once(run: Run, place: Path) -> None:
    events: list[str] = []

    async def main() -> None:
        ready = asyncio.Event()
        serving = asyncio.ensure_future(aio.serve(clock(events), place / "s", ready=ready.set))
        await ready.wait()
        async with await aio.connect(place / "s") as client:
            call = asyncio.ensure_future(client.hold())
            await until_noted(events, "held")
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            with pytest.raises(OutcomeUnknown):
                await call
        assert events == ["entered", "held", "let go", "left"]
        assert os.listdir(place) == []

    run(main())


def test_two_services_in_one_loop_know_nothing_of_each_other(run: Run, place: Path) -> None:
    async def main() -> None:
        one: list[str] = []
        two: list[str] = []
        async with running(clock(two, "two"), place / "two"):
            async with (
                running(clock(one, "one"), place / "one"),
                await aio.connect(place / "one") as first,
                await aio.connect(place / "two") as second,
            ):
                assert await first.state() == "state of one"
                assert await second.state() == "state of two"
                assert (await first.call("samehost.stats"))["methods"]["state"]["calls"] == 1
            assert (one, two) == (["entered", "left"], ["entered"])
            async with await aio.connect(place / "two") as second:
                assert await second.state() == "state of two"

    run(main())


def test_a_service_that_calls_itself(run: Run, place: Path) -> None:
    service = samehost.Service("itself")

    @service.method
    async def factorial(number: int) -> int:
        if number < 2:
            return 1
        async with await aio.connect(place / "s") as client:
            return number * int(await client.factorial(number - 1))

    async def main() -> None:
        async with running(service, place / "s"), await aio.connect(place / "s") as client:
            assert await client.factorial(10) == 3628800

    run(main())


def test_a_policy_of_the_service_keeps_others_out(run: Run, place: Path) -> None:
    service = samehost.Service("picky", allow=samehost.allow(uid=os.geteuid() + 1))
    service.method(name="ask")(lambda: 5)

    async def main() -> None:
        async with running(service, place / "s"), await aio.connect(place / "s") as client:
            with pytest.raises(
                (OutcomeUnknown, samehost.errors.Unsent, NotPermitted), match=r"may not admit|ended|word"
            ):
                await client.ask()
        async with (
            running(service, place / "s", allow=samehost.allow(uid=os.geteuid())),
            await aio.connect(place / "s") as client,
        ):
            assert await client.ask() == 5

    run(main())


def test_signals_drain_a_service_and_its_exit_code_is_0(place: Path) -> None:
    code = """
        import asyncio, samehost, sys
        service = samehost.Service("signalled")

        @service.method
        async def finish() -> str:
            print("began", flush=True)
            await asyncio.sleep(0.1)
            return type(asyncio.get_running_loop()).__module__

        samehost.serve(service, sys.argv[1], ready=lambda: print("ready", flush=True))
        print("ended", flush=True)
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        with python(code, str(place / "s")) as program:
            assert program.line() == "ready"
            with samehost.connect(place / "s") as client:

                async def main(client: Any = client, program: Any = program, number: Any = number) -> None:
                    call = asyncio.ensure_future(asyncio.to_thread(client.finish))
                    assert await asyncio.to_thread(program.line) == "began"
                    program.signal(number)
                    assert await call == "uvloop"

                asyncio.run(main())
            assert (program.line(), program.end()) == ("ended", 0)
    assert os.listdir(place) == []


async def test_it_is_logged_that_a_service_is_served(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "samehost")
    async with running(clock([]), place / "s"):
        assert caplog.record_tuples == [("samehost", logging.INFO, f"serving clock on {place / 's'}")]
