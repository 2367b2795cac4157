"""What a client knows of a method: declared in a class, or by its name alone."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest

from samehost import Blob, File, Peer, idempotent, named
from samehost.codec import MSGPACK, CannotDecode
from samehost.errors import InvalidResult, SignatureError, UsageError
from samehost.extensions import BLOBS, FILES
from samehost.protocol import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED
from samehost.service import signature
from samehost.service.remote import ANY_RESULT, RemoteMethod, declare_methods, kinds_wanted


def at(zone: str, offset: int = 0, *, dst: bool = False) -> str: ...


KNOWN = RemoteMethod("at", signature.read(at))
UNKNOWN = RemoteMethod("at")


def made(self, remote, positional, by_name):
    """What a call comes down to."""
    return self, remote.name, positional, by_name


def declared(owner, reserved=(), *, is_async=False):
    return declare_methods(owner, reserved, is_async=is_async, call=made)


# Arguments.


@pytest.mark.parametrize("remote", [KNOWN, UNKNOWN])
def test_arguments_go_as_they_are_given(remote):
    assert remote.arguments((), {}) == {}
    assert remote.arguments(("UTC", 3), {}) == ("UTC", 3)
    assert remote.arguments((), {"zone": "UTC"}) == {"zone": "UTC"}


def test_mixed_arguments_go_by_name():
    assert KNOWN.arguments(("UTC",), {"dst": True}) == {"zone": "UTC", "dst": True}
    assert KNOWN.arguments(("UTC", 3), {"dst": True}) == {"zone": "UTC", "offset": 3, "dst": True}


def test_mixed_arguments_need_the_names():
    with pytest.raises(UsageError, match=r"^at: give all arguments by position, or all by name$"):
        UNKNOWN.arguments(("UTC",), {"dst": True})


@pytest.mark.parametrize(
    ("positional", "by_name"),
    [(("UTC",), {"zone": "CET"}), (("UTC", 3, True), {"x": 1}), (("UTC", 3, 4), {"dst": True})],
)
def test_too_many_arguments_or_one_of_them_twice_are_refused(positional, by_name):
    with pytest.raises(UsageError, match=r"^at\(zone: str, offset: int = 0, \*, dst: bool = False\) -> str: too many"):
        KNOWN.arguments(positional, by_name)


# Results.


def test_a_result_is_of_the_declared_type():
    remote = RemoteMethod("at", decode=MSGPACK.decode_raw_to(list[int]))
    assert remote.result(MSGPACK.encode([1])) == [1]
    with pytest.raises(InvalidResult, match=r"^the result of at is not of its declared type: \$\[0\]: expected int, g"):
        remote.result(MSGPACK.encode(["1"]))


def test_a_result_of_which_nothing_is_known_is_anything_that_can_be_read():
    assert UNKNOWN.result(MSGPACK.encode({"a": [1, None]})) == {"a": [1, None]}
    assert UNKNOWN.is_idempotent is None
    with pytest.raises(InvalidResult):
        UNKNOWN.result(b"\xc1")
    with pytest.raises(CannotDecode, match="nested more than 64 deep"):
        ANY_RESULT(b"\x91" * 100 + b"\x01")


# Classes.


def test_public_functions_of_a_class_become_calls():
    class Store:
        limit = 5

        def get(self, key: str) -> bytes:
            """The value of a key."""
            raise NotImplementedError

        @idempotent
        @named("store.put")
        def put(self, key: str, value: bytes) -> None:
            raise NotImplementedError

        def _helper(self, anything):
            return anything

        @property
        def size(self):
            return 1

        @staticmethod
        def static(x):
            return x

    found = declared(Store)
    assert list(found) == ["get", "store.put"]
    assert found["get"].signature.text == "(key: str) -> bytes"
    assert found["get"].is_idempotent is None
    assert found["store.put"].is_idempotent is True
    assert found["get"].result(MSGPACK.encode(b"x")) == b"x"
    store = Store()
    assert store.get("k") == (store, "get", ("k",), {})
    assert store.put(key="k", value=b"") == (store, "store.put", (), {"key": "k", "value": b""})
    assert (store._helper(1), store.size, store.static(2)) == (1, 1, 2)


def test_a_declared_method_keeps_its_name_documentation_and_signature():
    class Store:
        def get(self, key: str) -> bytes:
            """The value of a key."""
            raise NotImplementedError

    declared(Store)
    assert (Store.get.__name__, Store.get.__doc__) == ("get", "The value of a key.")
    assert list(inspect.signature(Store.get).parameters) == ["self", "key"]


def test_arguments_may_be_called_self():
    class Store:
        def get(this, self: int) -> int:  # noqa: N805
            raise NotImplementedError

    declared(Store)
    store = Store()
    assert store.get(self=1) == (store, "get", (), {"self": 1})


def test_what_the_server_fills_in_is_not_sent():
    class Store:
        def get(self, key: str, caller: Peer) -> bytes:
            raise NotImplementedError

    assert [one.name for one in declared(Store)["get"].signature.parameters] == ["key"]


def test_a_method_must_not_hide_what_every_client_has():
    class Store:
        def close(self) -> None: ...

    with pytest.raises(SignatureError, match=r"Store\.close would hide .* with @samehost\.named\('close'\)$"):
        declared(Store, ["close", "call"])

    class Renamed:
        @named("close")
        def close_store(self) -> None: ...

    assert list(declared(Renamed, ["close", "call"])) == ["close"]


def test_a_class_calls_in_one_way():
    class Store:
        def get(self) -> None: ...

    class AsyncStore:
        async def get(self) -> None: ...

    class Other:
        async def get(self) -> None: ...

    assert list(declared(AsyncStore, is_async=True)) == ["get"]
    with pytest.raises(SignatureError, match=r"Store\.get is a def: this class of client calls by an async def$"):
        declared(Store, is_async=True)
    with pytest.raises(SignatureError, match=r"Other\.get is an async def: this class of client calls by a def$"):
        declared(Other)


def test_a_declaration_that_cannot_be_called_is_refused():
    class Untyped:
        def get(self, key): ...

    class Selfless:
        def get() -> None: ...

    class Streaming:
        def get(self, key: Any) -> complex: ...

    for owner, told in (
        (Untyped, "parameter 'key' has no annotation"),
        (Selfless, "Selfless.get has no parameter self"),
        (Streaming, "the result cannot travel as complex"),
    ):
        with pytest.raises(SignatureError, match=told):
            declared(owner)


def test_named_wants_a_name():
    with pytest.raises(UsageError, match=r"is no name: give it in parentheses, as in @samehost\.named\('kv\.get'\)$"):

        @named
        def get(self) -> None: ...


# Streams.


def total(numbers: Iterator[int], scale: int = 1, *, offset: int = 0) -> int: ...


def ticks(every: float) -> Iterator[int]: ...


def scaled(scale: int, numbers: Iterator[int]) -> Iterator[int]: ...


TOTAL = RemoteMethod("total", signature.read(total))


def test_calls_say_which_streams_belong_to_them():
    assert (KNOWN.flags, KNOWN.is_stream) == (0, False)
    assert (TOTAL.flags, TOTAL.is_stream) == (ITEMS_FOLLOW, False)
    known = RemoteMethod("ticks", signature.read(ticks))
    assert (known.flags, known.is_stream) == (ITEMS_WANTED, True)
    known = RemoteMethod("scaled", signature.read(scaled))
    assert (known.flags, known.is_stream) == (BOTH_STREAMS, True)
    assert (UNKNOWN.flags, UNKNOWN.is_stream) == (ITEMS_WANTED, None)


def test_the_declared_stream_is_taken_out_of_the_arguments_whatever_it_is():
    assert TOTAL.take_items(([1, 2],), {}) == ((), {}, [1, 2])
    assert TOTAL.take_items(([1, 2], 3), {"offset": 4}) == ((3,), {"offset": 4}, [1, 2])
    assert TOTAL.take_items((), {"scale": 3, "numbers": range(3)}) == ((), {"scale": 3}, range(3))
    assert KNOWN.take_items(("UTC",), {"offset": iter(())})[2] is None  # none is declared
    known = RemoteMethod("scaled", signature.read(scaled))
    assert known.take_items((2, [1]), {}) == ((2,), {}, [1])
    for arguments in ((), {"scale": 3}), ((2,), {}):
        with pytest.raises(UsageError, match=r"scaled\(.*\) -> .*: numbers is missing, the items to send"):
            known.take_items(*arguments)


def test_an_iterator_is_the_stream_where_nothing_is_declared():
    async def asynchronous():
        yield 1

    for items in (iter([1]), (number for number in [1]), map(str, [1]), asynchronous()):
        assert UNKNOWN.take_items((2, items), {}) == ((2,), {}, items)
        assert UNKNOWN.take_items((2,), {"a": items, "b": 3}) == ((2,), {"b": 3}, items)
    with open(os.devnull) as file:
        for arguments in ((), ([1], (2,), {3}, "text", b"bytes", range(3)), (file,)):
            assert UNKNOWN.take_items(arguments, {}) == (arguments, {}, None)
    with pytest.raises(UsageError, match="at: 2 arguments are iterators, and a call streams one at most"):
        UNKNOWN.take_items((iter([]),), {"a": iter([])})


def test_an_item_is_of_the_declared_type():
    remote = RemoteMethod("ticks", decode_item=MSGPACK.decode_to(int))
    assert remote.item(MSGPACK.encode(5)) == 5
    with pytest.raises(
        InvalidResult, match=r"^an item of ticks is not of its declared type: \$: expected int, got str"
    ):
        remote.item(MSGPACK.encode("5"))
    assert UNKNOWN.item(MSGPACK.encode("5")) == "5"


# What results and items may hold.


def test_what_is_wanted_of_a_server_is_known_by_the_types():
    class Numbers:
        def add(self, left: int) -> int: ...

        def count(self, name: bytes) -> Iterator[int]: ...

    class Blobs(Numbers):
        def frames(self) -> Iterator[Blob]: ...

    class Files(Numbers):
        def open(self, name: str) -> File: ...

    class Anything(Numbers):
        def ask(self) -> Any: ...

    assert kinds_wanted(declared(Numbers)) == 0  # what is sent does not count
    for owner in (Blobs, Files, Anything):
        assert kinds_wanted(declared(owner)) == FILES | BLOBS
    assert kinds_wanted({}) == FILES | BLOBS  # it may call anything
    assert declared(Files)["open"].kinds == FILES
    assert declared(Blobs)["frames"].kinds == BLOBS
    assert UNKNOWN.kinds == FILES | BLOBS
