"""HTTP over a UNIX socket: a bare aiohttp server, and a bare ASGI application by uvicorn; aiohttp's client for both."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import uvloop
from aiohttp import web

from bench.side import MESSAGE, at_a_time, timed_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]


async def _echo(request: web.BaseRequest) -> web.Response:
    return web.Response(body=await request.read())


async def _serve(path: str) -> None:
    runner = web.ServerRunner(web.Server(_echo, access_log=None))
    await runner.setup()
    await web.UnixSite(runner, path, backlog=4096).start()
    await asyncio.Event().wait()


def serve_aiohttp(path: str, *_: str) -> None:
    uvloop.run(_serve(path))


async def _application(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    head = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-length", b"%d" % len(message["body"]))],
    }
    await send(head)
    await send({"type": "http.response.body", "body": message["body"]})


def serve_uvicorn(path: str, *_: str) -> None:
    import uvicorn

    uvicorn.run(
        _application,
        uds=path,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        ws="none",
        log_level="critical",
        access_log=False,
        date_header=False,
        server_header=False,
    )


async def _trip(session: aiohttp.ClientSession) -> None:
    async with session.post("http://localhost/", data=MESSAGE) as answer:
        assert await answer.read() == MESSAGE


@contextmanager
def _session(path: str, connections: int) -> Iterator[tuple[asyncio.Runner, aiohttp.ClientSession]]:
    async def made() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path, limit=connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=["User-Agent", "Accept", "Accept-Encoding", "Content-Type"],
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        session = runner.run(made())
        runner.run(_trip(session))
        yield runner, session
        runner.run(session.close())


@contextmanager
def call(path: str) -> Iterator[Run]:
    with _session(path, 1) as (runner, session):
        yield lambda seconds: runner.run(timed_async(partial(_trip, session), seconds))


@contextmanager
def call_many(path: str, connections: str) -> Iterator[Run]:
    with _session(path, int(connections)) as (runner, session):
        yield lambda seconds: runner.run(at_a_time([partial(_trip, session)] * int(connections), seconds))
