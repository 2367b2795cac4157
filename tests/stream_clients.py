"""A caller of streams that does only what a test tells it to: its own end of the protocol on a blocking socket.

And a service in a thread, in whichever event loop a test wants.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from loops import LOOPS
from support import DEADLINE

import samehost
from samehost import aio, protocol
from samehost.codec import CODECS
from samehost.protocol import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED, events

__all__ = ["BOTH_STREAMS", "ITEMS_FOLLOW", "ITEMS_WANTED", "Caller", "callers", "serving_in"]


class Caller:
    """One connection. Credit is returned only when `take` is asked to; that it has come is no event here.

    Args:
        path: of the socket.
        kind: "frames" or "lines".
    """

    def __init__(self, path: Path, kind: str = "frames") -> None:
        self.protocol = protocol.connect() if kind == "frames" else protocol.connect_lines()
        self.codec = CODECS[self.protocol.codec]
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self._events: deque[Any] = deque()
        self.has_ended = False
        self.bytes_read = 0

    def call(self, method: str, arguments: Any = None, flags: int = ITEMS_WANTED, milliseconds: int = 0) -> int:
        call_id = self.protocol.send_call(method, self.codec.encode(arguments or {}), milliseconds, flags=flags)
        self.flush()
        return call_id

    def item(self, call_id: int, *values: Any) -> None:
        for value in values:
            while not self.protocol.may_send_item(call_id):
                self.flush()
                self._read()
            self.protocol.send_item(call_id, self.codec.encode(value))
        self.flush()

    def end(self, call_id: int) -> None:
        self.protocol.send_end(call_id)
        self.flush()

    def cancel(self, call_id: int) -> None:
        self.protocol.send_cancel(call_id)
        self.flush()

    def credit(self, call_id: int, items: int, byte_count: int) -> None:
        self.protocol.send_credit(call_id, items, byte_count)
        self.flush()

    def flush(self) -> None:
        for data, _ in self.protocol.data_to_send():
            self.socket.sendall(data)

    def _read(self) -> None:
        data = self.socket.recv(1 << 16)
        self.bytes_read += len(data)
        self.has_ended |= not data
        found = self.protocol.receive_data(data) if data else self.protocol.receive_eof()
        self._events += [event for event in found if type(event) is not events.Credit]
        self.flush()

    def event(self, seconds: float = DEADLINE) -> Any:
        """The next thing that has happened; TimeoutError if nothing does."""
        self.socket.settimeout(seconds)
        try:
            while not self._events:
                assert not self.has_ended, "the server has closed the connection"
                self._read()
        finally:
            self.socket.settimeout(DEADLINE)
        return self._events.popleft()

    def is_silent(self, seconds: float = 0.05) -> bool:
        try:
            self._events.appendleft(self.event(seconds))
        except (TimeoutError, BlockingIOError):
            return True
        return False

    def value(self, event: Any) -> Any:
        return self.codec.decode_to(Any)(event.value if hasattr(event, "value") else event.result)

    def take(self, count: int, *, credit: bool = True) -> list[Any]:
        """So many items, which have to be the next that happens."""
        found = []
        for _ in range(count):
            item = self.event()
            assert type(item) is events.Item, item
            found.append(self.value(item))
            if credit:
                self.protocol.took_item(item.call_id, len(item.value))
                self.flush()
        return found

    def items_until_silent(self, seconds: float = 0.1) -> list[Any]:
        """The items that come as long as no credit is returned."""
        found = []
        while not self.is_silent(seconds):
            found += self.take(1, credit=False)
        return found

    def expect(self, kind: type) -> Any:
        found = self.event()
        assert type(found) is kind, found
        return found

    def rest(self, call_id: int) -> tuple[list[Any], Any]:
        """All items up to the answer of a call, and that: its value, or the failure."""
        found = []
        while True:
            event = self.event()
            if type(event) is events.Item:
                found.append(self.value(event))
                self.protocol.took_item(call_id, len(event.value))
                self.flush()
            elif type(event) is events.Reply:
                assert event.call_id == call_id
                return found, self.value(event)
            elif type(event) is events.Failure:
                return found, event
            else:
                assert type(event) is events.Stream, event

    def all(self, method: str, arguments: Any = None) -> tuple[list[Any], Any]:
        """Call what streams, and take everything."""
        return self.rest(self.call(method, arguments))

    def value_of(self, method: str, arguments: Any = None) -> Any:
        """Make a unary call in between."""
        call_id = self.call(method, arguments, 0)
        reply = self.event()
        assert type(reply) is events.Reply, reply
        assert reply.call_id == call_id
        return self.value(reply)

    def stats(self) -> Any:
        return self.value_of("samehost.stats")

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def callers(path: Path, kind: str, count: int) -> list[Caller]:
    """So many of them."""
    return [Caller(path, kind) for _ in range(count)]


@contextmanager
def serving_in(
    loop: str, service: samehost.Service, path: Path, before_end: Callable[[], object] = lambda: None, **options: Any
) -> Iterator[Callable[[], None]]:
    """Serve in a thread, until the end of the block; a function that has it drain sooner. No task may be left."""
    begun = threading.Event()
    control: dict[str, Any] = {}
    failed: list[BaseException] = []

    async def main() -> None:
        control["loop"], control["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await aio.serve(service, path, ready=begun.set, stop=control["stop"], **options)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            begun.set()

    def stop() -> None:
        with suppress(RuntimeError):  # it has ended
            control["loop"].call_soon_threadsafe(control["stop"].set)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(DEADLINE)
    try:
        yield stop
    finally:
        before_end()
        stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        if failed:
            raise failed[0]
