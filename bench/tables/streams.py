"""Small items one way, as fast as they go."""

from __future__ import annotations

from bench.harness import OWN, Row, Table

WHATS = {
    "numbers": "int items, server to client",
    "texts": "strings of 64 bytes, server to client",
    "take_numbers": "int items, client to server",
    "take_texts": "strings of 64 bytes, client to server",
}

OWN_ROWS = tuple(
    Row(
        f"own-{what}{'' if client == 'blocking' else '-asyncio'}",
        f"samehost: {text}, {client} client",
        OWN,
        "bench.own.service:serve",
        f"bench.own.streams:{call}",
        (what,),
    )
    for what, text in WHATS.items()
    for client, call in (("blocking", "call"), ("asyncio", "call_asyncio"))
)
OF_GENERATOR = Row(
    "own-take_texts-generator",
    "samehost: strings of 64 bytes, client to server, blocking client, from a generator",
    OWN,
    "bench.own.service:serve",
    "bench.own.streams:call",
    ("take_texts_of_generator",),
)
PEERS = (Row("zmq", "pyzmq PAIR, 64 bytes", "pyzmq", "bench.peers.zeromq:serve_stream", "bench.peers.zeromq:stream"),)


def tables(is_quick: bool) -> list[Table]:
    return [
        Table(
            "streams",
            "Small items of a stream, one way, a core each",
            (*OWN_ROWS, OF_GENERATOR, *PEERS),
            unit="µs an item",
            rate=("thousand a second", 1e-3),
            rounds=5 if is_quick else 9,
            seconds=0.15 if is_quick else 0.3,
        )
    ]
