"""Declaring a service: its methods, the interface that it keeps, and its lifespan."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from support import run

import samehost
from samehost import Peer, Service
from samehost.errors import SignatureError, UsageError

ROOT = Path(__file__).parents[2]


class Clock(samehost.Client):
    def now(self, zone: str = "UTC") -> str:
        raise NotImplementedError

    @samehost.named("clock.set")
    def set_time(self, to: float, *, force: bool = False) -> None:
        raise NotImplementedError


class AsyncClock(samehost.aio.Client):
    async def now(self, zone: str = "UTC") -> str:
        raise NotImplementedError


# Methods.


def test_a_service_begins_with_no_methods():
    clock = Service("clock")
    assert clock.name == "clock"
    assert clock.allow is None
    assert dict(clock.methods) == {}
    assert repr(clock) == "<Service clock: no methods yet>"


def test_methods_are_declared_with_and_without_options():
    clock = Service("clock")

    @clock.method
    def now(zone: str = "UTC") -> str:
        return zone

    @clock.method(name="clock.set", timeout=2.0, idempotent=True)
    def set_time(to: float, caller: Peer) -> None: ...

    @clock.method()
    async def ticks() -> int: ...

    assert list(clock.methods) == ["now", "clock.set", "ticks"]
    assert now("CET") == "CET"  # the function, as it was
    assert clock.methods["now"].function is now
    assert clock.methods["clock.set"].timeout == 2.0
    assert clock.methods["clock.set"].is_idempotent
    assert clock.methods["ticks"].is_async
    assert repr(clock) == "<Service clock: now, clock.set, ticks>"


def test_one_function_can_be_two_methods():
    clock = Service("clock")

    @clock.method
    @clock.method(name="time")
    def now() -> float: ...

    assert clock.methods["now"].function is clock.methods["time"].function


def test_bound_methods_and_partials_are_methods_by_a_name():
    class Store:
        def get(self, key: str) -> str: ...

    store = Service("store")
    store.method(Store().get)
    store.method(name="first")(functools.partial(Store().get, "1"))
    assert list(store.methods) == ["get", "first"]
    with pytest.raises(UsageError, match=r"functools\.partial.* has no name of its own: say .* with name="):
        store.method(functools.partial(Store().get, "1"))


def test_what_is_no_function_is_refused():
    clock = Service("clock")
    with pytest.raises(
        UsageError, match=r"^'now' is not a function: the options of method\(\) are given by their names"
    ):
        clock.method("now")
    with pytest.raises(UsageError, match="is not a function"):
        clock.method(name="now")(classmethod(print))


def test_a_refused_method_leaves_nothing():
    clock = Service("clock")
    with pytest.raises(SignatureError, match="parameter 'zone' has no annotation"):

        @clock.method
        def now(zone): ...

    assert not clock.methods


def test_a_name_is_declared_once():
    clock = Service("clock")

    @clock.method
    def now() -> float: ...

    with pytest.raises(UsageError, match="the service has a method 'now' already"):
        clock.method(now)
    with pytest.raises(UsageError, match="samehost's own"):
        clock.method(name="samehost.now")(now)
    with pytest.raises(UsageError, match="cannot be a method's name"):
        clock.method(name="")(now)


def test_an_unknown_option_is_refused():
    clock = Service("clock")
    with pytest.raises(TypeError, match="idempotnet"):
        clock.method(idempotnet=True)(lambda: None)


def test_the_methods_are_only_to_be_read():
    with pytest.raises(TypeError):
        Service("clock").methods["now"] = None


@pytest.mark.parametrize("name", ["clock", "Clock-2", "a_b", "0"])
def test_a_name_is_letters_digits_and_dashes(name):
    assert Service(name).name == name


@pytest.mark.parametrize("name", ["", "-clock", "a/b", "a b", "größe", "a.b", "a\n", None, 5])
def test_other_names_are_refused(name):
    with pytest.raises(
        UsageError, match="cannot be a service's name: letters, digits, - and _, a letter or digit first"
    ):
        Service(name)


def test_a_policy_is_one():
    policy = samehost.allow(uid=0)
    assert Service("clock", allow=policy).allow is policy
    with pytest.raises(UsageError, match="allow=0 is not a policy"):
        Service("clock", allow=0)


# The interface.


@pytest.mark.parametrize("interface", [Clock, AsyncClock])
def test_a_method_that_matches_its_interface_is_taken(interface):
    clock = Service("clock", interface)

    @clock.method
    async def now(zone: str = "UTC") -> str: ...

    @clock.method
    def more(x: int) -> int: ...  # which the interface does not have

    assert list(clock.methods) == ["now", "more"]


def test_what_is_filled_in_is_not_in_the_interface():
    clock = Service("clock", Clock)

    @clock.method
    def now(caller: Peer, zone: str = "UTC") -> str: ...

    assert "now" in clock.methods


def wrong_type(zone: int = 0) -> str: ...


def wrong_default(zone: str = "CET") -> str: ...


def no_default(zone: str) -> str: ...


def wrong_name(place: str = "UTC") -> str: ...


def by_name_alone(*, zone: str = "UTC") -> str: ...


def too_few() -> str: ...


def too_many(zone: str = "UTC", more: int = 0) -> str: ...


def wrong_result(zone: str = "UTC") -> bytes: ...


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (wrong_type, r"parameter 'zone': \(zone: int = 0\) -> str, not \(zone: str = 'UTC'\) -> str"),
        (wrong_default, "parameter 'zone': "),
        (no_default, "parameter 'zone': "),
        (wrong_name, "parameter 'zone': "),
        (by_name_alone, "parameter 'zone': "),
        (too_few, r"\(\) -> str, not \(zone: str = 'UTC'\) -> str"),
        (too_many, "more: int = 0"),
        (wrong_result, "-> bytes, not "),
    ],
)
def test_a_method_that_does_not_match_is_refused(function, told):
    clock = Service("clock", Clock)
    with pytest.raises(SignatureError, match=f"^now is not as Clock declares it: .*{told}"):
        clock.method(name="now")(function)
    assert not clock.methods


def test_limits_are_part_of_the_interface():
    class Limited(samehost.Client):
        def get(self, key: Annotated[str, msgspec.Meta(min_length=1)]) -> str:
            raise NotImplementedError

    service = Service("limited", Limited)
    told = r"is not as .*Limited declares it: parameter 'key': not with these limits"
    with pytest.raises(SignatureError, match=told):

        @service.method
        def get(key: str) -> str: ...


TYPED = """
import samehost
import samehost.aio


class Clock(samehost.Client):
    def now(self) -> str:
        raise NotImplementedError


class AsyncClock(samehost.aio.Client):
    async def now(self) -> str:
        raise NotImplementedError


samehost.Service("clock", Clock)
samehost.Service("clock", interface=AsyncClock)
samehost.Service("clock", int)  # type: ignore[arg-type]
"""


def test_type_checkers_know_what_an_interface_is(place):
    (place / "typed.py").write_text(TYPED)
    options = ["--strict", "--warn-unused-ignores", "--config-file=", f"--cache-dir={ROOT}/build/mypy-stubs"]
    checked = run([sys.executable, "-m", "mypy", *options, "typed.py"], cwd=place)
    assert checked.returncode == 0, checked.stdout.decode()


def test_a_service_is_complete_when_all_of_its_interface_is_there():
    clock = Service("clock", Clock)
    with pytest.raises(UsageError, match=r"^the service clock lacks now, clock\.set, which Clock has$"):
        clock.check_complete()
    clock.method(name="now")(right)
    with pytest.raises(UsageError, match=r"lacks clock\.set, "):
        clock.check_complete()

    @clock.method(name="clock.set")
    def set_time(to: float, *, force: bool = False) -> None: ...

    clock.check_complete()


def right(zone: str = "UTC") -> str: ...


def test_a_service_without_an_interface_is_complete():
    Service("clock").check_complete()


@pytest.mark.parametrize("interface", [dict, "Clock", Clock.now])
def test_an_interface_is_a_client_s_class(interface):
    with pytest.raises(UsageError, match=r"interface=.* is not a class made from samehost\.Client or samehost\.aio\.C"):
        Service("clock", interface)


# The lifespan.


async def test_without_a_lifespan_there_is_no_state():
    async with Service("clock").new_lifespan() as state:
        assert state is None


async def test_a_lifespan_yields_the_state_once_for_each_run():
    clock = Service("clock")
    steps = []

    @clock.lifespan
    async def open_store():
        steps.append("begin")
        yield {"store": len(steps)}
        steps.append("end")

    async with clock.new_lifespan() as state:
        assert state == {"store": 1}
        assert steps == ["begin"]
    async with clock.new_lifespan() as state:
        assert state == {"store": 3}
    assert steps == ["begin", "end"] * 2


async def test_a_lifespan_may_be_a_context_manager():
    clock = Service("clock")

    @clock.lifespan
    @contextlib.asynccontextmanager
    async def open_store():
        yield "state"

    async with clock.new_lifespan() as state:
        assert state == "state"


async def test_what_a_lifespan_raises_is_raised():
    clock = Service("clock")

    @clock.lifespan
    async def open_store():
        raise OSError("no store")
        yield

    with pytest.raises(OSError, match="no store"):
        await clock.new_lifespan().__aenter__()


async def test_what_a_lifespan_raises_is_told_apart_from_what_happens_in_it():
    clock = Service("clock")
    asked = ""

    @clock.lifespan
    async def fails():
        if asked == "first":
            raise OSError("no disk")
        yield
        if asked == "last":
            raise OSError("disk full")

    async def run_it():
        async with clock.new_lifespan():
            if asked == "":
                raise OSError("of the run")

    async def notes():
        with pytest.raises(OSError, match=r"of the run|no disk|disk full") as caught:
            await run_it()
        return getattr(caught.value, "__notes__", [])

    assert clock.lifespan_note == "raised by the lifespan of the service clock"
    assert await notes() == []
    asked = "first"
    assert await notes() == [clock.lifespan_note]
    asked = "last"
    assert await notes() == [clock.lifespan_note]


def test_there_is_one_lifespan():
    clock = Service("clock")

    @clock.lifespan
    async def open_store():
        yield

    assert open_store is not None
    with pytest.raises(UsageError, match="the service clock has a lifespan already"):
        clock.lifespan(open_store)


def test_what_does_not_yield_is_no_lifespan():
    clock = Service("clock")

    async def coroutine(): ...

    def generator():
        yield

    for function in (coroutine, generator):
        with pytest.raises(
            UsageError, match=f"{function.__name__} at .* is no lifespan: write an async def that yields once"
        ):
            clock.lifespan(function)
