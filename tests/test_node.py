"""A client in another language, written from docs/PROTOCOL.md alone, against a real server of ours.

`node/client.mjs` speaks frames and `node/lines.mjs` JSON lines; `node/check.mjs` makes the calls and says what is not
as the document has it. Here is only the service that they call.
"""

from __future__ import annotations

from pathlib import Path

from support import Program, needs_program, python, run

NODE = Path(__file__).parent / "node"

SERVER = """
import asyncio, collections, logging, os, sys
from datetime import datetime
from typing import Any

import samehost
from samehost import Peer, ServiceError

service = samehost.Service("node")
running = collections.Counter()
notes = []

@service.method
async def text(value: str) -> str:
    return value

@service.method
async def whole(value: int) -> int:
    return value

@service.method
async def ratio(value: float) -> float:
    return value

@service.method
async def data(value: bytes) -> bytes:
    return value

@service.method
async def flags(value: bool | None) -> bool | None:
    return value

@service.method
async def numbers(value: list[int]) -> list[int]:
    return value

@service.method
async def tree(value: dict[str, list[str | None]]) -> dict[str, list[str | None]]:
    return value

@service.method
async def moment(value: datetime) -> datetime:
    return value

@service.method
async def nested(value: list[Any]) -> list[Any]:
    return value

@service.method
def repeat(piece: str, times: int = 2) -> str:
    return piece * times

@service.method
async def lookup(key: str) -> str:
    raise ServiceError(f"there is no {key}", code="node.no_such_key", data={"key": key, "known": [1, 2.5, None]})

@service.method
async def broken() -> None:
    raise ValueError("a secret")

@service.method
async def slow(seconds: float, value: int = 0) -> int:
    running["now"] += 1
    running["most"] = max(running["most"], running["now"])
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        running["cancelled"] += 1
        raise
    finally:
        running["now"] -= 1
    return value

@service.method
async def counts() -> dict[str, int]:
    return dict(running)

@service.method
async def note(words: str) -> None:
    notes.append(words)

@service.method
async def noted() -> list[str]:
    return notes

@service.method(allow=samehost.allow(uid=os.geteuid()))
async def who(caller: Peer) -> list[int]:
    return [caller.pid, caller.uid]

@service.method(allow=samehost.allow(uid=os.geteuid() + 1))
async def forbidden() -> None:
    raise AssertionError("it was called")

if __name__ == "__main__":
    samehost.serve(service, sys.argv[1], ready=lambda: print("ready", flush=True))
"""


def served(path: Path) -> Program:
    return python(SERVER, str(path))


@needs_program("node")
def test_a_client_in_node_that_was_written_from_the_document(place: Path) -> None:
    path = place / "node.sock"
    with served(path) as server:
        assert server.line() == "ready"
        checked = run(["node", str(NODE / "check.mjs"), str(path), str(server.pid)])
        assert (checked.stderr.decode(), checked.returncode) == ("", 0), checked.stdout.decode()
        assert server.end() == 0
