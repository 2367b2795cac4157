"""grpcio with bytes as its messages, so that no protobuf is encoded: blocking, and grpc.aio in uvloop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import uvloop

from bench.side import MESSAGE, WINDOW, at_a_time, timed, timed_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]

METHOD = "/bench/echo"
OPTIONS = (("grpc.optimization_target", "latency"), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


def _handlers(echo: Callable[[bytes, Any], Any]) -> tuple[grpc.GenericRpcHandler]:
    return (grpc.method_handlers_generic_handler("bench", {"echo": grpc.unary_unary_rpc_method_handler(echo)}),)


def serve(path: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1), _handlers(lambda request, _context: request), options=OPTIONS)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    server.wait_for_termination()


@contextmanager
def call(path: str) -> Iterator[Run]:
    with grpc.insecure_channel(f"unix:{path}", options=OPTIONS) as channel:
        echo = channel.unary_unary(METHOD)

        def trip() -> None:
            assert echo(MESSAGE) == MESSAGE

        trip()
        yield partial(timed, trip)


async def _serve(path: str) -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(_handlers(echo))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


def serve_aio(path: str, *_: str) -> None:
    uvloop.run(_serve(path))


async def _trip(echo: Any) -> None:
    assert await echo(MESSAGE) == MESSAGE


@contextmanager
def _channels(path: str, count: int) -> Iterator[tuple[asyncio.Runner, list[Any]]]:
    async def made() -> Any:
        return grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)

    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        trips = []
        for _ in range(count):
            channel = runner.run(made())
            stack.callback(lambda channel=channel: runner.run(channel.close()))
            trips.append(partial(_trip, channel.unary_unary(METHOD)))
            runner.run(trips[-1]())
        yield runner, trips


@contextmanager
def call_aio(path: str) -> Iterator[Run]:
    with _channels(path, 1) as (runner, [trip]):
        yield lambda seconds: runner.run(timed_async(trip, seconds))


@contextmanager
def pipeline_aio(path: str) -> Iterator[Run]:
    with _channels(path, 1) as (runner, [trip]):
        yield lambda seconds: runner.run(at_a_time([trip] * WINDOW, seconds))


@contextmanager
def call_many_aio(path: str, connections: str) -> Iterator[Run]:
    with _channels(path, int(connections)) as (runner, trips):
        yield lambda seconds: runner.run(at_a_time(trips, seconds))
