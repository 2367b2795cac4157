"""A server that does what the test says, one step after another: what a real one never shows, and when."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from support import DEADLINE

from samehost import protocol
from samehost.codec import MSGPACK
from samehost.protocol.events import Call, Event

SomeEvent = TypeVar("SomeEvent", bound=Event)


class Conversation:
    """The server's end of one connection. It reads when it is asked for an event, and at no other time."""

    def __init__(self, accepted: socket.socket, limits: protocol.Limits | None = None) -> None:
        accepted.settimeout(DEADLINE)
        self.socket = accepted
        self.protocol = protocol.accept(0xF5, limits)
        self._events: deque[Event] = deque()

    @property
    def has_more(self) -> bool:
        """Whether events have been read that nobody has asked for."""
        return bool(self._events)

    def read(self, size: int = 1 << 20) -> bool:
        """Take some bytes; False at the end."""
        data = self.socket.recv(size)
        self._events += self.protocol.receive_data(data) if data else ()
        return bool(data)

    def event(self, kind: type[SomeEvent]) -> SomeEvent:
        """The next event, which has to be of this kind."""
        while not self._events:
            assert self.read(), f"the client ended the connection, and no {kind.__name__} came"
        event = self._events.popleft()
        assert isinstance(event, kind), event
        return event

    def call(self, method: str | None = None) -> Call:
        """The next call."""
        call = self.event(Call)
        assert method in (None, call.method)
        return call

    def ended(self) -> bool:
        """Wait until the client has ended the connection; False if something else came."""
        with contextlib.suppress(ConnectionResetError):
            return not self.read()
        return True

    def flush(self) -> None:
        for data, _ in self.protocol.data_to_send():
            self.socket.sendall(data)

    def greet(self) -> None:
        """Send the preface, as soon as the client's is there."""
        while not self.protocol.is_greeted:
            assert self.read()
        self.flush()

    def reply(self, call: Call, value: Any) -> None:
        self.protocol.send_reply(call.call_id, MSGPACK.encode(value))
        self.flush()

    def fail(self, call: Call, code: str, message: str = "", **more: Any) -> None:
        self.protocol.send_error(call.call_id, code, message, **more)
        self.flush()

    def close(self) -> None:
        self.socket.close()


class Scripted:
    """A listening socket; who connects is taken when the test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._conversations: list[Conversation] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(DEADLINE)
        self._listening.bind(str(path))
        self._listening.listen(10)

    def accept(self, limits: protocol.Limits | None = None) -> Conversation:
        """The next connection."""
        conversation = Conversation(self._listening.accept()[0], limits)
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
