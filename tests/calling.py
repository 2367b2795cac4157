"""For the tests of calls: one service with methods of every kind, and four ways to call it that look alike.

`Threads` and `Asyncio` are the clients, `Lines` speaks JSON-RPC by itself, and `Joined` has no socket. Each has the
same coroutines, and each reads results as the method's annotation says, so that one test is for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple, Self, TypedDict
from uuid import UUID

import msgspec
from support import DEADLINE

import samehost
import samehost.aio
from samehost import limits
from samehost.codec import MSGPACK
from samehost.kernel.deadline import Deadline
from samehost.protocol import codes
from samehost.service.call import Call, current_call
from samehost.service.description import DESCRIBE, HEALTH, STATS, Description, Figures, Health
from samehost.service.failures import Failure, error_of
from samehost.service.remote import RemoteMethod
from samehost.testing import connected, serving


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Shape(msgspec.Struct):
    name: str
    corners: list[Point]


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Options(TypedDict, total=False):
    depth: int
    name: str


class Version(NamedTuple):
    major: int
    minor: int


class NoSuchKey(samehost.ServiceError):
    code = "calling.no_such_key"


class Interrupted(BaseException):
    """What no `except Exception` catches."""


def samples() -> dict[str, tuple[Any, list[Any]]]:
    """For each kind of value: its annotation, and some values that come back as they went."""
    return {
        "nothing": (None, [None]),
        "boolean": (bool, [True, False]),
        "integer": (int, [0, -1, 2**64 - 1, -(2**63)]),
        "number": (float, [0.0, -1.5, 1e300]),
        "text": (str, ["", "hello", "ÄÖ€ 🎉", 'a"b\\c\n\0', "x" * 100_000]),
        "data": (bytes, [b"", bytes(range(256)), bytes(100_000)]),
        "items": (list[int], [[], [1, 2, 3], list(range(1000))]),
        "mapping": (dict[str, int], [{}, {"a": 1, "ü": 2}]),
        "by_number": (dict[int, str], [{1: "a", -2: "b"}]),
        "pair": (tuple[int, str], [(1, "a")]),
        "many": (tuple[int, ...], [(), (1, 2, 3)]),
        "distinct": (set[int], [set(), {1, 2}]),
        "anything": (Any, [None, 1, "a", [1, {"b": [True]}], {"x": 1.5}]),
        "choice": (Literal["fast", "slow", 3], ["fast", 3]),
        "optional": (int | None, [None, 5]),
        "either": (int | str, [1, "one"]),
        "tagged": (Circle | Square, [Circle(1.0), Square(2.0)]),
        "moment": (datetime, [datetime.fromisoformat("2023-09-12T06:06:56.123456+00:00")]),
        "day": (date, [date(2024, 2, 29)]),
        "span": (timedelta, [timedelta(seconds=1.5), timedelta(days=-1)]),
        "identity": (UUID, [UUID(int=5)]),
        "money": (Decimal, [Decimal("1.10"), Decimal("-12345678901234567890.5")]),
        "colour": (Colour, [Colour.RED, Colour.BLUE]),
        "point": (Point, [Point(1), Point(1, 2, ["a"])]),
        "shape": (Shape, [Shape("line", [Point(0), Point(1, 1)])]),
        "options": (Options, [{}, {"depth": 3, "name": "x"}]),
        "version": (Version, [Version(1, 2)]),
        "points": (dict[str, list[Point | None]], [{"a": [Point(1), None]}]),
    }


class Gates:
    """What methods wait for, until another call opens it. Used in one loop, and by the threads of its methods."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.changed = asyncio.Event()
        self.open = threading.Event()

    async def wait(self, key: str) -> None:
        self.seen.append(f"began {key}")
        try:
            while not self.open.is_set():
                await self.changed.wait()
        except asyncio.CancelledError:
            self.seen.append(f"cancelled {key}")
            raise
        self.seen.append(f"ended {key}")

    def release(self) -> None:
        self.open.set()
        self.changed.set()


@functools.cache
def everything(name: str = "everything") -> samehost.Service:
    """A service with methods of every kind, made once; each run of it has a state of its own."""
    service = samehost.Service(name)
    _add_echoes(service)
    _add_kinds(service)
    _add_quick(service)
    _add_failing(service)
    _add_waiting(service)
    _add_calling(service)
    return service


def _add_echoes(service: samehost.Service) -> None:
    """For each sample, a method that gives it back: `async def`, `def` and inline in turn."""

    def add(number: int, name: str, kind: Any) -> None:
        async def in_the_loop(value: Any) -> Any:
            return value

        async def after_a_wait(value: Any) -> Any:
            await asyncio.sleep(0)
            return value

        def plain(value: Any) -> Any:
            return value

        function = (in_the_loop, after_a_wait, plain, plain)[number % 4]
        function.__annotations__ = {"value": kind, "return": kind}
        service.method(name=f"echo.{name}", inline=number % 4 == 3)(function)

    for number, (name, (kind, _)) in enumerate(samples().items()):
        add(number, name, kind)


def _add_kinds(service: samehost.Service) -> None:
    @service.method
    async def defaults(a: int, b: int = 2, *, c: str = "c", d: Point = Point(9)) -> list[Any]:  # noqa: B008
        """Give back what came."""
        return [a, b, c, d.x]

    @service.method(inline=True)
    def only_named(*, key: str, times: int = 1) -> str:
        return key * times

    @service.method
    async def who(peer: samehost.Peer, call: samehost.Call, extra: int = 0) -> dict[str, Any]:
        return {
            "same": peer is call.peer and call is current_call.get(),
            "uid": peer.uid,
            "pid": peer.pid,
            "method": call.method,
            "context": call.context,
            "extra": extra,
            "thread": threading.current_thread().name,
        }

    @service.method
    def who_in_thread(peer: samehost.Peer, *, call: samehost.Call, extra: int = 0) -> dict[str, Any]:
        return {
            "same": peer is call.peer and call is current_call.get(),
            "uid": peer.uid,
            "method": call.method,
            "context": call.context,
            "extra": extra,
            "thread": threading.current_thread().name,
        }

    @service.method(inline=True)
    def nothing() -> None:
        pass

    @service.method(idempotent=True, timeout=5.0, allow=samehost.allow(uid=os.geteuid()))
    async def declared() -> str:
        """Tell everything.

        Even this.
        """
        return "allowed"

    @service.method(allow=samehost.allow(uid=os.geteuid() + 1))
    async def forbidden() -> str:
        return "not for you"


def _add_quick(service: samehost.Service) -> None:
    @service.method
    async def times(number: int, by: int) -> int:
        for _ in range(number % 3):
            await asyncio.sleep(0)
        return number * by

    @service.method
    def times_in_thread(number: int, by: int) -> int:
        return number * by

    @service.method(inline=True)
    def times_inline(number: int, by: int) -> int:
        return number * by

    @service.method
    async def length(data: str) -> int:
        return len(data)

    @service.method
    async def text_of(length: int) -> str:
        return "x" * length


def _add_failing(service: samehost.Service) -> None:
    @service.method
    async def refuse(code: str, message: str, data: Any) -> None:
        await asyncio.sleep(0)
        raise samehost.ServiceError(message, code=code, data=data)

    @service.method
    async def refuse_largely() -> None:
        raise samehost.ServiceError("too much to tell", code="large", data="x" * limits.PAYLOAD_BYTES_MAX)

    @service.method
    def refuse_in_thread(key: str) -> None:
        raise NoSuchKey(f"no {key}", data={"key": key})

    @service.method(errors={KeyError: "kv.missing", OSError: "kv.disk"})
    async def look_up(key: str) -> None:
        if key == "disk":
            raise FileNotFoundError("the disk is gone")
        raise KeyError(key)

    @service.method
    async def break_down(how: str) -> Any:
        await asyncio.sleep(0)
        return break_now(how)

    @service.method
    def break_down_in_thread(how: str) -> Any:
        return break_now(how)

    @service.method(inline=True)
    def break_down_inline(how: str) -> Any:
        return break_now(how)

    def break_now(how: str) -> Any:
        if how == "result":
            return object()
        raise {
            "zero": ZeroDivisionError("the secret"),
            "exit": SystemExit(3),
            "keyboard": KeyboardInterrupt(),
            "stop": StopIteration(5),
            "base": Interrupted("the secret"),
            "cancel": asyncio.CancelledError(),
        }[how]

    @service.method
    async def lie() -> int:
        return "not a number"  # type: ignore[return-value]


def _add_waiting(service: samehost.Service) -> None:
    @service.lifespan
    async def lifespan() -> AsyncIterator[Gates]:
        yield Gates()

    @service.method
    async def hold(call: samehost.Call, key: str = "") -> str:
        """Wait until `release`."""
        await call.state.wait(key)
        return key

    @service.method(timeout=0.05)
    async def hold_briefly(call: samehost.Call, key: str) -> str:
        await call.state.wait(key)
        return key

    @service.method
    def hold_in_thread(call: samehost.Call, key: str) -> str:
        call.state.seen.append(f"began {key}")
        while not (call.is_cancelled or call.state.open.wait(0.005)):
            pass
        call.state.seen.append(f"{'cancelled' if call.is_cancelled else 'ended'} {key}")
        return key

    @service.method
    async def left(call: samehost.Call) -> float | None:
        seconds = call.deadline.left()
        return None if seconds == float("inf") else seconds

    @service.method(inline=True)
    def log(call: samehost.Call, text: str) -> str:
        call.state.seen.append(text)
        return text

    @service.method(inline=True)
    def seen(call: samehost.Call) -> list[str]:
        return list(call.state.seen)

    @service.method
    async def release(call: samehost.Call) -> None:
        call.state.release()


def _add_calling(service: samehost.Service) -> None:
    @service.method
    async def forward(address: str, method: str, timeout: float | None = None) -> Any:
        async with await samehost.aio.connect(address, timeout=timeout) as inner:
            return await inner.call(method)

    @service.method
    def forward_in_thread(address: str, method: str, timeout: float | None = None) -> Any:
        with samehost.connect(address, timeout=timeout) as inner:
            return inner.call(method)


# The four ways.


class Front:
    """One way to call a service.

    Attributes:
        service: what is called.
        address: where it is served; empty without a socket.
    """

    name = ""

    def __init__(self, service: samehost.Service) -> None:
        self.service = service
        self.address = ""

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *_: object) -> None:
        raise NotImplementedError

    async def call(self, method: str, /, *arguments: Any, **named: Any) -> Any:
        """Call; `timeout=` as the clients take it, and `context=` is what is handed on."""
        raise NotImplementedError

    async def notify(self, method: str, /, *arguments: Any, **named: Any) -> None:
        raise NotImplementedError

    async def until_seen(self, what: str) -> None:
        """Wait until a method has noted this; nothing announces it."""
        async with asyncio.timeout(DEADLINE):
            while what not in await self.call("seen"):  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@contextlib.contextmanager
def serving_a_call(context: dict[str, Any] | None) -> Iterator[None]:
    """Have a call with this context be served, for what is called meanwhile."""
    if context is None:
        yield
        return
    peer = samehost.Peer(os.geteuid(), os.getegid(), (), os.getpid())
    token = current_call.set(Call(peer, "test", 1, Deadline(None), context, None))
    try:
        yield
    finally:
        current_call.reset(token)


def remote_methods(service: samehost.Service) -> dict[str, RemoteMethod]:
    """What a client's class that declares all methods of a service has."""
    return {
        name: RemoteMethod(name, method.signature, MSGPACK.decode_raw_to(method.signature.result), None)
        for name, method in service.methods.items()
    }


class Threads(Front):
    """The client for threads; each call in a thread, and awaited."""

    name = "threads"

    async def __aenter__(self) -> Self:
        self._exits = contextlib.ExitStack()
        self.address = self._exits.enter_context(serving(self.service))
        self._pool = self._exits.enter_context(ThreadPoolExecutor(64))
        interface = type("Everything", (samehost.Client,), {"remote_methods": remote_methods(self.service)})
        self.client = self._exits.enter_context(samehost.connect(self.address, interface))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.close()
        await asyncio.to_thread(self._exits.close)

    async def call(self, method: str, /, *arguments: Any, context: Any = None, **named: Any) -> Any:
        if method == DESCRIBE:
            return await self._in_thread(None, self.client.describe)
        return await self._in_thread(context, self.client.call, method, *arguments, **named)

    async def notify(self, method: str, /, *arguments: Any, **named: Any) -> None:
        await self._in_thread(None, self.client.notify, method, *arguments, **named)

    async def _in_thread(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        with serving_a_call(context):
            run = copy_context().run
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, lambda: run(function, *arguments, **named))
        return _own_result(arguments[0] if arguments else "", found)


class Asyncio(Front):
    """The client for asyncio."""

    name = "asyncio"

    async def __aenter__(self) -> Self:
        self._serving = serving(self.service)
        self.address = self._serving.__enter__()
        interface = type("Everything", (samehost.aio.Client,), {"remote_methods": remote_methods(self.service)})
        self.client = await samehost.aio.connect(self.address, interface)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.close()
        await asyncio.to_thread(self._serving.__exit__, None, None, None)

    async def call(self, method: str, /, *arguments: Any, context: Any = None, **named: Any) -> Any:
        if method == DESCRIBE:
            return await self.client.describe()
        with serving_a_call(context):
            return _own_result(method, await self.client.call(method, *arguments, **named))

    async def notify(self, method: str, /, *arguments: Any, **named: Any) -> None:
        await self.client.notify(method, *arguments, **named)


class Joined(Asyncio):
    """A service and a client in one loop, and no socket."""

    name = "joined"

    async def __aenter__(self) -> Self:
        interface = type("Everything", (samehost.aio.Client,), {"remote_methods": remote_methods(self.service)})
        self._connected = connected(self.service, interface)
        self.client = await self._connected.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connected.__aexit__(None, None, None)


class Lines(Front):
    """JSON-RPC 2.0, a message a line, by nothing of samehost's own but the types."""

    name = "lines"

    async def __aenter__(self) -> Self:
        self._serving = serving(self.service)
        self.address = self._serving.__enter__()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._socket.connect(self.address)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._reading = asyncio.ensure_future(self._read())
        self._writing = asyncio.Lock()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._socket.close()
        await asyncio.to_thread(self._serving.__exit__, None, None, None)

    async def call(
        self, method: str, /, *arguments: Any, context: Any = None, timeout: float | None = None, **named: Any
    ) -> Any:
        self._last += 1
        number = self._last
        options = {} if timeout is None else {"timeout_ms": max(1, int(timeout * 1000))}
        options |= {} if context is None else {"context": context}
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._write(id=number, method=method, params=arguments or named, options=options)
            message = await answer
        except asyncio.CancelledError:
            await self._write(method="$/cancelRequest", params={"id": number})
            raise
        if "error" not in message:
            return self._result(method, message["result"])
        error = message["error"]
        code, data = error["data"]["code"], error["data"]
        assert error["code"] == codes.number_of(code)
        raise error_of(method, Failure(code, error["message"], data.get("data"), data.get("id", "")))

    async def notify(self, method: str, /, *arguments: Any, **named: Any) -> None:
        await self._write(method=method, params=arguments or named)

    async def _write(self, **message: Any) -> None:
        line = msgspec.json.encode({"jsonrpc": "2.0", **message}) + b"\n"
        if len(line) > limits.PAYLOAD_BYTES_MAX:
            raise samehost.errors.MessageTooLarge(f"{message['method']}: a line of {len(line)} bytes")
        async with self._writing:
            await asyncio.get_running_loop().sock_sendall(self._socket, line)

    async def _read(self) -> None:
        rest = b""
        while data := await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = msgspec.json.decode(line)
                assert message["jsonrpc"] == "2.0"
                future = self._waiting.pop(message.get("id", 0), None)
                if future is not None and not future.done():
                    future.set_result(message)

    def _result(self, method: str, result: Any) -> Any:
        own = {DESCRIBE: Description, HEALTH: Health, STATS: Figures}
        kind = own.get(method) or self.service.methods[method].signature.result
        try:
            return msgspec.json.decode(msgspec.json.encode(result), type=kind)
        except msgspec.ValidationError as error:
            raise samehost.errors.InvalidResult(str(error)) from error


def _own_result(method: object, result: Any) -> Any:
    """The results of samehost's own methods, which no class declares, as the records that they are."""
    own = {HEALTH: Health, STATS: Figures}
    return msgspec.convert(result, own[method]) if method in own else result


FRONTS = [Threads, Asyncio, Lines, Joined]
