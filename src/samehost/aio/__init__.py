"""The front end for asyncio: what `samehost.listen` and `samehost.dial` are for threads, in coroutines.

Each name means what it means in `samehost`, and each call that waits is awaited. Nothing here uses asyncio's transports
and streams: they lose open files, refuse packets, and take a full backlog for a connection.
"""

from samehost.aio.client import Client, connect
from samehost.aio.connection import Connection
from samehost.aio.datagrams import Datagram, DatagramListener
from samehost.aio.dial import dial
from samehost.aio.listener import Listener, listen
from samehost.aio.service import serve
from samehost.aio.stream import Stream

__all__ = [
    "Client",
    "Connection",
    "Datagram",
    "DatagramListener",
    "Listener",
    "Stream",
    "connect",
    "dial",
    "listen",
    "serve",
]
