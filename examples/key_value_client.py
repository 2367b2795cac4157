"""What the key-value store and its clients share: types, errors, and the client's class.

A client needs this module and samehost, and no more::

    with samehost.connect("key-value", KeyValue) as store:
        version = store.put("colour", b"blue")
        store.compare_and_set("colour", b"green", version)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec

import samehost

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored under a key.

    Attributes:
        version: no other write to this store, to any key, has or will have the same one.
        expires: when it is gone; None for never.
    """

    value: bytes
    version: int
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written or removed.

    Attributes:
        version: of what is there now; 0 for nothing.
    """

    key: str
    version: int


class NoSuchKey(samehost.ServiceError):
    """There is nothing under this key, or not any more."""

    code = "key_value.no_such_key"


class Conflict(samehost.ServiceError):
    """Somebody else has written in the meantime: read again, and try again."""

    code = "key_value.conflict"

    @property
    def version(self) -> int:
        """The version that is there; 0 if there is nothing."""
        assert isinstance(self.data, int)
        return self.data


class KeyValue(samehost.Client):
    """The store, for its callers.

    Only what changes nothing is idempotent. A `put` that is made again by itself, because its answer got lost, could
    overwrite what somebody else has written since.
    """

    @samehost.idempotent
    def get(self, key: Key) -> Entry:
        """What is stored under a key. Raises NoSuchKey."""
        raise NotImplementedError

    @samehost.idempotent
    def keys(self, prefix: str = "", after: str = "", limit: Count = 100) -> list[str]:
        """The first keys that begin with `prefix`, in their order; `after` is the last one of the page before."""
        raise NotImplementedError

    def put(self, key: Key, value: bytes, ttl: Seconds | None = None) -> int:
        """Store a value, for `ttl` seconds or for ever, and give its version."""
        raise NotImplementedError

    def compare_and_set(self, key: Key, value: bytes, version: int, ttl: Seconds | None = None) -> int:
        """Store a value if the one there has this version, 0 for nothing there. Raises Conflict."""
        raise NotImplementedError

    def delete(self, key: Key) -> None:
        """Remove a key. Raises NoSuchKey."""
        raise NotImplementedError

    def changes(self) -> Iterator[Change]:
        """Every write and removal from now on, in their order, but not what expires.

        Whoever falls far behind is cut off, with a CallError `too_slow`, and has to read again what it wants to know.
        """
        raise NotImplementedError
