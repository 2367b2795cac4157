"""A server for asyncio that does what the test says, one step after another: what a real one never shows, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from support import DEADLINE

from samehost import aio, limits
from samehost.codec import MSGPACK
from samehost.errors import ConnectionClosed
from samehost.kernel.attaching import decode_attached, encode_attached
from samehost.kernel.sharing import Sharing
from samehost.protocol import Payload, events
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.settings import Limits


class Script:
    """One client of a server that does nothing by itself.

    Attributes:
        protocol: for what a well-behaved server says.
        sharing: its memory, and the client's.
        happened: what the client has done and nobody has asked for yet, but for what `sharing` keeps.
    """

    def __init__(self, connection: aio.Connection, calls_max: int, features: int) -> None:
        self.connection = connection
        self.protocol = BinaryConnection(False, Limits(calls_max=calls_max), features=features)
        self.sharing = Sharing(connection.peer.uid, features)
        self.happened: list[events.Event] = []

    async def next(self) -> Any:
        """The next thing that the client does; None at its end."""
        while not self.happened:
            try:
                data, files = await self.connection.recv_with_files(files_max=16, timeout=DEADLINE)
            except ConnectionClosed:  # the client has not read all that was said
                return None
            if not data:
                return None
            self.happened += filter(self._is_news, self.protocol.receive_data(data, tuple(files)))
            await self.flush()
        return self.happened.pop(0)

    async def expect(self, kind: type[Any], method: str = "") -> Any:
        found = await self.next()
        assert type(found) is kind, found
        assert not method or found.method == method
        return found

    def _is_news(self, event: events.Event) -> bool:
        if type(event) is events.Released:
            self.sharing.released(event.shares)
        elif type(event) is events.ArenaPassed:
            self.sharing.take_arena(event)
        elif type(event) is events.ArenaRetired:
            self.sharing.retired(event.arena)
        else:
            return True
        return False

    def read(self, payload: Payload, files: tuple[Any, ...]) -> Any:
        """A value with its files and blobs."""
        return decode_attached(MSGPACK.decode_to(Any), payload, self.sharing.incoming(files))

    async def attach(self, value: Any, send: Callable[..., None], call: events.Call) -> None:
        """Send a value with its files and blobs, by `send_reply` or `send_item`."""
        offered = self.protocol.peer_features
        allowed = self.sharing.allows_arena(offered)
        encoded = encode_attached(MSGPACK, value, offered, arena_allowed=allowed)
        self.sharing.ship(self.protocol, encoded)
        send(call.call_id, encoded.payload, encoded.descriptors)
        await self.flush()

    async def reply(self, call: events.Call, result: Any) -> None:
        self.protocol.send_reply(call.call_id, MSGPACK.encode(result))
        await self.flush()

    async def stream(self, call: events.Call, *items: Any) -> None:
        """Say that items will come, and send these."""
        self.protocol.send_stream(call.call_id)
        await self.items(call, *items)

    async def items(self, call: events.Call, *items: Any) -> None:
        for item in items:
            self.protocol.send_item(call.call_id, MSGPACK.encode(item))
        await self.flush()

    async def note(self, call: events.Call, **note: Any) -> None:
        self.protocol.send_note(call.call_id, MSGPACK.encode(note))
        await self.flush()

    async def until_end(self) -> None:
        """Take whatever the client still does."""
        while await self.next() is not None:
            pass

    async def flush(self) -> None:
        for data, descriptors in self.protocol.data_to_send():
            await self.connection.sendall(data, descriptors)


@contextlib.asynccontextmanager
async def scripted(
    path: Path,
    *scripts: Callable[[Script], Awaitable[object]],
    calls_max: int = limits.CALLS_MAX,
    features: int = 0,
) -> AsyncIterator[None]:
    """A server whose clients get a script each, in this order; all of them have to be played to their end."""

    async def serve() -> None:
        async with aio.listen(path) as listener:
            for script in scripts:
                async with await listener.accept(timeout=DEADLINE) as connection:
                    conversation = Script(connection, calls_max, features)
                    try:
                        await script(conversation)
                    finally:
                        conversation.sharing.close()

    serving = asyncio.ensure_future(serve())
    try:
        await asyncio.sleep(0)  # it listens now
        yield
        await asyncio.wait_for(serving, DEADLINE)
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def answer_all(script: Script) -> None:
    """Answer every call with its arguments, until the client ends."""
    while (event := await script.next()) is not None:
        if type(event) is events.Call:
            await script.reply(event, MSGPACK.decode_to(Any)(event.arguments))
