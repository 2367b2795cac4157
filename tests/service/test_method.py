"""One method: what is declared beside its function, and its name."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator

import pytest

from samehost import Call, Peer, Service, allow, idempotent
from samehost.codec import JSON, MSGPACK, CannotDecode
from samehost.errors import SignatureError, UsageError
from samehost.protocol import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED
from samehost.service.method import Method, check_name


def now(zone: str = "UTC") -> str:
    """The time."""
    return zone


async def later(zone: str = "UTC") -> str:
    return zone


class Clock:
    """A clock."""

    def __call__(self, zone: str) -> str:
        """The time of this clock."""
        return zone


class AsyncClock:
    async def __call__(self, zone: str) -> str:
        return zone


def test_a_method_has_its_contract_its_text_and_nothing_else_declared():
    method = Method(now, "clock.now")
    assert (method.name, method.function, method.doc) == ("clock.now", now, "The time.")
    assert (method.allow, method.timeout, method.errors) == (None, None, {})
    assert (method.is_async, method.is_inline, method.is_idempotent) == (False, False, False)
    assert method.signature.text == "(zone: str = 'UTC') -> str"
    assert repr(method) == "<Method clock.now(zone: str = 'UTC') -> str>"


def test_what_is_declared_beside_it_is_kept():
    policy = allow(uid=0)
    method = Method(now, "now", allow=policy, inline=True, idempotent=True, timeout=0.5, errors={KeyError: "kv.key"})
    assert method.allow is policy
    assert (method.is_inline, method.is_idempotent, method.timeout) == (True, True, 0.5)
    assert method.errors == {KeyError: "kv.key"}


def test_the_decorator_of_clients_says_the_same_as_the_option():
    service = Service("clock")

    @service.method
    @idempotent
    def below() -> None: ...

    @idempotent
    @service.method
    def above() -> None: ...

    assert [method.is_idempotent for method in service.methods.values()] == [True, True]


def test_it_reads_both_codecs_and_calls_the_function():
    method = Method(now, "now")
    assert method.read.keys() == {"msgpack", "json"}
    assert method.invoke(method.read["msgpack"](MSGPACK.encode(["CET"])), None) == "CET"
    assert method.invoke(method.read["json"](JSON.encode({"zone": "CET"})), None) == "CET"


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (now, False),
        (later, True),
        (functools.partial(now), False),
        (functools.partial(later), True),
        (Clock(), False),
        (AsyncClock(), True),
        (AsyncClock().__call__, True),
        (functools.partial(functools.partial(AsyncClock())), True),
    ],
)
def test_whether_it_runs_on_the_loop_is_told_by_what_is_called(function, is_async):
    assert Method(function, "now").is_async is is_async


def test_the_documentation_is_that_of_the_function_that_runs():
    assert Method(functools.partial(now), "now").doc == "The time."
    assert Method(Clock(), "now").doc == "The time of this clock."
    assert Method(later, "now").doc == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"allow": 0}, "now: allow=0 is not a policy: make one with samehost.allow"),
        ({"allow": "root"}, "now: allow='root' is not a policy"),
        ({"timeout": 0}, "now: timeout=0 is not a number of seconds above 0"),
        ({"timeout": -1.5}, "now: timeout=-1.5 is not"),
        ({"timeout": float("nan")}, "now: timeout=nan is not"),
        ({"timeout": "5"}, "now: timeout='5' is not"),
        ({"errors": {"KeyError": "kv.key"}}, "now: errors= is a dict from exceptions to codes, and 'KeyError' is no"),
        ({"errors": {KeyError("x"): "kv.key"}}, "is no exception"),
        ({"errors": {BaseException: "kv.key"}}, "is no exception"),
        ({"errors": {KeyError: ""}}, "now: code='': a code has from 1 to 64 printable ASCII characters"),
        ({"errors": {KeyError: None}}, "now: code=None: a code has"),
        ({"errors": {KeyError: "x" * 65}}, "a code has from 1 to 64"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, told):
    with pytest.raises(UsageError) as caught:
        Method(now, "now", **options)
    assert told in str(caught.value)


def test_an_endless_timeout_is_one():
    assert Method(now, "now", timeout=float("inf")).timeout == float("inf")


def test_inline_is_for_what_does_not_wait():
    with pytest.raises(SignatureError, match="now: inline=True is for a def; an async def runs on the loop anyway"):
        Method(later, "now", inline=True)


def test_a_signature_that_cannot_be_served_is_refused_here():
    def get(key): ...

    with pytest.raises(SignatureError, match="parameter 'key' has no annotation"):
        Method(get, "get")


@pytest.mark.parametrize("name", ["now", "kv.get", "größe", "a b", "$", "samehost", "x" * 255, "日" * 85])
def test_a_name_is_any_short_printable_text(name):
    check_name(name, {"other"})


@pytest.mark.parametrize("name", ["", "a\nb", "\x00", "x" * 256, "日" * 86, "\ud800", 5, None, b"now"])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError, match="cannot be a method's name: 1 to 255 bytes of printable text"):
        check_name(name, ())


@pytest.mark.parametrize("name", ["$/cancel", "samehost.describe", "samehost."])
def test_samehost_s_own_names_are_refused(name):
    with pytest.raises(UsageError, match="is samehost's own"):
        check_name(name, ())


def test_a_name_is_there_once():
    with pytest.raises(UsageError, match="the service has a method 'now' already"):
        check_name("now", {"now": 1})


# Streams.


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


async def later_numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


async def doubled(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield 2 * number


@pytest.mark.parametrize(
    ("function", "shape", "is_async"),
    [
        (now, 0, False),
        (numbers, ITEMS_WANTED, False),
        (later_numbers, ITEMS_WANTED, True),
        (total, ITEMS_FOLLOW, False),
        (doubled, BOTH_STREAMS, True),
    ],
)
def test_the_shape_says_what_is_streamed(function, shape, is_async):
    method = Method(function, "method")
    assert (method.shape, method.is_async) == (shape, is_async)
    assert bool(method.read_item) is bool(shape & ITEMS_FOLLOW)


def test_items_that_come_in_are_read_as_their_type_in_both_codecs():
    method = Method(total, "total")
    assert method.read_item["msgpack"](MSGPACK.encode(3)) == method.read_item["json"](b"3") == 3
    with pytest.raises(CannotDecode, match="expected int, got str"):
        method.read_item["msgpack"](MSGPACK.encode("three"))


def test_the_stream_that_comes_in_is_put_in_its_place():
    def join(prefix: str, words: Iterator[str], *, call: Call, suffix: str = "") -> str:
        assert call.method == "join"
        return prefix + "".join(words) + suffix

    method = Method(join, "join")
    call = Call(Peer(1, 1, (), 1), "join", 1, None, {}, None, items=iter(["a", "b"]))
    assert method.invoke(method.read["msgpack"](MSGPACK.encode({"prefix": "<", "suffix": ">"})), call) == "<ab>"
    call.items = iter("c")
    assert method.invoke(method.read["json"](JSON.encode(["<"])), call) == "<c"


def test_a_method_on_the_loop_cannot_wait_for_a_stream():
    with pytest.raises(SignatureError, match="inline=True cannot wait for a stream"):
        Method(total, "total", inline=True)
    assert Method(numbers, "numbers", inline=True).is_inline
