"""A topic: what a service publishes to whoever listens, each listener with a queue of its own.

Callers reach it as a method of its name that takes nothing and streams. Publishing never waits for them: what happens
to one who is slow is declared with the topic. Handing items to callers is the servers' part, who attach an outlet for
as long as they serve.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from samehost import limits
from samehost.errors import UsageError
from samehost.peer import Policy
from samehost.protocol import ITEMS_WANTED
from samehost.service import signature

DROP = "drop"
DISCONNECT = "disconnect"
_SLOW = (DROP, DISCONNECT)


class Outlet(Protocol):
    """One server's subscribers of a topic.

    Attributes:
        subscribers: how many there are now.
        dropped: items that some of them did not get, so far, each counted once for each of them.
    """

    subscribers: int
    dropped: int

    def publish(self, value: Any) -> None:
        """Hand a value to all subscribers; from any thread, and never waiting.

        Raises:
            UsageError: it cannot travel, or is longer than a message may be.
        """


class Topic:
    """What `Service.topic` makes.

    Attributes:
        name: what it is subscribed to by.
        kind: the type of its items.
        queue: how many items are kept for a subscriber who does not read.
        slow: what becomes of one whose queue is full: "drop", the oldest item goes and is counted; "disconnect", the
            subscription ends.
        allow: who may subscribe, of those who may connect; None for all of them.
        doc: for `samehost describe`.
        signature: its contract, as that of a method without parameters that streams.
        shape: the flags that a subscription's call must have.
    """

    def __init__(self, name: str, kind: Any, *, queue: int, slow: str, allow: Policy | None, doc: str) -> None:
        if slow not in _SLOW:
            raise UsageError(f"{name}: slow={slow!r} is not one of {', '.join(map(repr, _SLOW))}")
        if not (isinstance(queue, int) and 1 <= queue <= limits.TOPIC_ITEMS_MAX):
            raise UsageError(f"{name}: queue={queue!r} is not a number of items from 1 to {limits.TOPIC_ITEMS_MAX}")
        if allow is not None and not isinstance(allow, Policy):
            raise UsageError(f"{name}: allow={allow!r} is not a policy: make one with samehost.allow(user=…)")
        self.name = name
        self.kind = kind
        self.queue = queue
        self.slow = slow
        self.allow = allow
        self.doc = doc
        self.signature = signature.read(_subscription_of(name, kind))
        self.shape = ITEMS_WANTED
        self._outlets: tuple[Outlet, ...] = ()

    def publish(self, value: Any) -> None:
        """Hand a value to everybody who subscribes now; from any thread or task, and never waiting for any of them.

        Does nothing, and does not look at the value, while nobody subscribes. It is encoded here, so that it may be
        changed afterwards, unless it lies in shared memory.

        Raises:
            UsageError: it cannot travel, or is longer than a message may be.
        """
        for outlet in self._outlets:
            outlet.publish(value)

    @property
    def subscribers(self) -> int:
        """How many there are now."""
        return sum(outlet.subscribers for outlet in self._outlets)

    @property
    def dropped(self) -> int:
        """How many items subscribers did not get because they were slow, while those served who serve now."""
        return sum(outlet.dropped for outlet in self._outlets)

    def attach(self, outlet: Outlet) -> None:
        """Publish there as well, from now on."""
        self._outlets = (*self._outlets, outlet)

    def detach(self, outlet: Outlet) -> None:
        """Publish there no more."""
        self._outlets = tuple(known for known in self._outlets if known is not outlet)

    def __repr__(self) -> str:
        return f"<Topic {self.name} of {self.signature.text.removeprefix('() -> ')}>"


def _subscription_of(name: str, kind: Any) -> Any:
    """A function that looks as subscribing does, to be read like any other."""

    def subscription() -> None: ...

    subscription.__qualname__ = f"the topic {name}"
    subscription.__annotations__ = {"return": AsyncIterator[kind]}
    return subscription
