"""The peers: for each a module, or a program, with its servers and its clients, at its own best settings.

A module imports its package at the top, so that a package that is not there shows when the row is started.
"""

LACKS = {
    "C": "64 bytes by send and recv: no frames, no types, no identity, no deadline, no limits, one call at a time. The "
    "least that the kernel takes.",
    "Python sockets": "Bytes by send and recv: no frames, no types, no identity, no deadline, no limits, one call at a "
    "time.",
    "asyncio streams": "Bytes without frames: no types, no identity, no deadline, no calls. What waits to be sent is "
    "bounded only by who drains.",
    "multiprocessing.connection": "Framed bytes: no types (its other way, pickle, runs what the peer sends), no "
    "identity of the user, no deadline, no limit on a message; replies are told apart by their order alone.",
    "pyzmq": "Framed bytes: no types, no identity of the user, no deadline; a REQ socket that missed a reply waits for "
    "ever. It does queue and connect again.",
    "pynng": "Framed bytes: no types, no identity of the user, no deadline unless set. It does ask again by itself.",
    "grpcio": "Bytes as messages, with no protobuf to encode: no types checked, no identity of the user over a UNIX "
    "socket. It has deadlines and limits; none is set.",
    "aiohttp": "A body of bytes over HTTP/1.1: no types, no identity of the user, no deadline on the server, one call "
    "at a time on a connection.",
    "uvicorn": "The same: HTTP/1.1 and a bare ASGI application that checks nothing.",
    "rpyc": "Any attribute of an object: no types declared or checked, no identity of the user, no limits; a deadline "
    "on the client alone.",
    "Go net/rpc": "Typed calls by gob, compiled: no identity of the user, no deadline, no cancelling, no limits, no "
    "streams.",
}
"""What a peer does not do that samehost's rows do."""
