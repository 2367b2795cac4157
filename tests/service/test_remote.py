"""What a client knows of a method: declared in a class, or by its name alone."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from samehost import Peer, idempotent, named
from samehost.codec import MSGPACK, CannotDecode
from samehost.errors import InvalidResult, SignatureError, UsageError
from samehost.service import signature
from samehost.service.remote import ANY_RESULT, RemoteMethod, declare_methods


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
    remote = RemoteMethod("at", decode=MSGPACK.decode_to(list[int]))
    assert remote.result(MSGPACK.encode([1])) == [1]
    with pytest.raises(InvalidResult, match=r"^the result of at is not of its declared type: \$\[0\]: expected int, g"):
        remote.result(MSGPACK.encode(["1"]))


def test_a_result_of_which_nothing_is_known_is_anything_that_can_be_read():
    assert UNKNOWN.result(MSGPACK.encode({"a": [1, None]})) == {"a": [1, None]}
    assert UNKNOWN.is_idempotent is None
    assert UNKNOWN.decode is ANY_RESULT
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
