"""A server that does what the test says, one step after another: what a real one never shows, and when."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from support import DEADLINE

from samehost import limits as bounds
from samehost import protocol
from samehost.codec import MSGPACK
from samehost.errors import ConnectionClosed
from samehost.kernel.attaching import decode_attached, encode_attached
from samehost.kernel.messages import receive
from samehost.kernel.sharing import Sharing
from samehost.protocol.events import ArenaPassed, Call, Credit, Discarded, Event, Item, Notification

SomeEvent = TypeVar("SomeEvent", bound=Event)


class Conversation:
    """The server's end of one connection. It reads when it is asked for an event, and at no other time."""

    def __init__(self, accepted: socket.socket, limits: protocol.Limits | None = None, features: int = 0) -> None:
        accepted.settimeout(DEADLINE)
        self.socket = accepted
        self.protocol = protocol.accept(0xF5, limits, features)
        self.sharing = Sharing(os.geteuid(), features)
        self._files_max = bounds.FILES_PER_MESSAGE_MAX if features else 0
        self._events: deque[Event] = deque()

    @property
    def has_more(self) -> bool:
        """Whether events have been read that nobody has asked for."""
        return bool(self._events)

    def read(self, size: int = 1 << 20) -> bool:
        """Take some bytes; False at the end."""
        data, files = receive(self.socket, size, self._files_max, flags=0)
        for event in self.protocol.receive_data(data, tuple(files)) if data else ():
            if isinstance(event, ArenaPassed):
                self.sharing.take_arena(event)
            elif isinstance(event, Discarded):
                self.sharing.discard(event.payload, event.descriptors)
            else:
                self._events.append(event)
        return bool(data)

    def event(self, kind: type[SomeEvent]) -> SomeEvent:
        """The next event, which has to be of this kind; credit is in the protocol already, and passed over."""
        while True:
            while not self._events:
                assert self.read(), f"the client ended the connection, and no {kind} came"
            event = self._events.popleft()
            if isinstance(event, kind):
                return event
            assert isinstance(event, Credit), event

    def call(self, method: str | None = None) -> Call:
        """The next call."""
        call = self.event(Call)
        assert method in (None, call.method)
        return call

    def ended(self) -> bool:
        """Wait until the client has ended the connection; False if something else came."""
        with contextlib.suppress(ConnectionResetError, ConnectionClosed):
            return not self.read()
        return True

    def flush(self) -> None:
        for data, descriptors in self.protocol.data_to_send():
            if descriptors:
                sent = socket.send_fds(self.socket, [data], [descriptor.fileno() for descriptor in descriptors])
                data = memoryview(data)[sent:]
            if data:
                self.socket.sendall(data)

    def greet(self) -> None:
        """Send the preface, as soon as the client's is there."""
        while not self.protocol.is_greeted:
            assert self.read()
        self.flush()

    def reply(self, call: Call, value: Any) -> None:
        self.protocol.send_reply(call.call_id, MSGPACK.encode(value))
        self.flush()

    def stream(self, call: Call, *values: Any) -> None:
        """Accept a call, and send the first items; those that there is credit for from the beginning."""
        self.protocol.send_stream(call.call_id)
        self.items(call, *values)

    def items(self, call: Call, *values: Any) -> None:
        """Send items, waiting for credit where there is none."""
        for value in values:
            while not self.protocol.may_send_item(call.call_id):
                self.flush()
                self.event(Credit)
            self.protocol.send_item(call.call_id, MSGPACK.encode(value))
        self.flush()

    def next_item(self, call: Call) -> Any:
        """The next item that a call sends, as taken by a reader that gives its credit back."""
        item = self.event(Item)
        assert item.call_id == call.call_id
        self.protocol.took_item(call.call_id, len(item.value))
        self.flush()
        return MSGPACK.decode_to(Any)(item.value)

    def note(self, call: Call, **values: Any) -> None:
        self.protocol.send_note(call.call_id, MSGPACK.encode(values))
        self.flush()

    def value(self, event: Call | Item | Notification) -> Any:
        """What has come, with its files and blobs."""
        payload = event.value if isinstance(event, Item) else event.arguments
        return decode_attached(MSGPACK.decode_to(Any), payload, self.sharing.incoming(event.descriptors))

    def attached(self, value: Any, *, is_shared: bool = True) -> tuple[bytes, tuple[Any, ...]]:
        """What to send for a value with files and blobs, to be sent at once.

        Args:
            is_shared: blobs go into the arena, if the client takes them there.
        """
        offered = self.protocol.peer_features
        encoded = encode_attached(MSGPACK, value, offered, arena_allowed=is_shared)
        self.sharing.ship(self.protocol, encoded)
        return encoded.payload, encoded.descriptors

    def release(self) -> None:
        """Give back what was read of the client's memory."""
        shares = self.sharing.take_releases()
        assert shares
        self.protocol.send_release(shares)
        self.flush()

    def fail(self, call: Call, code: str, message: str = "", **more: Any) -> None:
        self.protocol.send_error(call.call_id, code, message, **more)
        self.flush()

    def close(self) -> None:
        self.socket.close()
        for event in self.protocol.receive_eof():
            if isinstance(event, Discarded):
                self.sharing.discard(event.payload, event.descriptors)
        self.sharing.close()


class Scripted:
    """A listening socket; who connects is taken when the test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._conversations: list[Conversation] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(DEADLINE)
        self._listening.bind(str(path))
        self._listening.listen(10)

    def accept(self, limits: protocol.Limits | None = None, features: int = 0) -> Conversation:
        """The next connection."""
        conversation = Conversation(self._listening.accept()[0], limits, features)
        self._conversations.append(conversation)
        return conversation

    def nobody_else(self) -> bool:
        """Whether nobody waits to be accepted."""
        self._listening.settimeout(0)
        try:
            self._listening.accept()[0].close()
        except BlockingIOError:
            return True
        finally:
            self._listening.settimeout(DEADLINE)
        return False

    def close(self) -> None:
        """Stop listening, and remove the path."""
        self._listening.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for conversation in self._conversations:
            conversation.close()


@contextlib.contextmanager
def scripted(path: Path) -> Iterator[Scripted]:
    """A server at a path."""
    with Scripted(path) as server:
        yield server
