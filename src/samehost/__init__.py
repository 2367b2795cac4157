"""samehost: fast, safe local services over UNIX domain sockets.

Only names live here. Each is imported when it is first used, so that a program pays for nothing that it leaves alone.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own takes longer to import than all of this

if TYPE_CHECKING:
    from typing import Any

    from samehost import aio as aio
    from samehost import errors as errors
    from samehost import inspect as inspect
    from samehost import limits as limits
    from samehost import testing as testing
    from samehost.aio.main import serve as serve
    from samehost.blocking.client import Client as Client
    from samehost.blocking.client import connect as connect
    from samehost.blocking.connection import Connection as Connection
    from samehost.blocking.datagrams import Datagram as Datagram
    from samehost.blocking.datagrams import DatagramListener as DatagramListener
    from samehost.blocking.dial import dial as dial
    from samehost.blocking.listener import Listener as Listener
    from samehost.blocking.listener import listen as listen
    from samehost.blocking.stream import Stream as Stream
    from samehost.errors import ServiceError as ServiceError
    from samehost.kernel.blob import Blob as Blob
    from samehost.kernel.blob import allocate as allocate
    from samehost.kernel.files import File as File
    from samehost.peer import ANYONE as ANYONE
    from samehost.peer import Peer as Peer
    from samehost.peer import Policy as Policy
    from samehost.peer import allow as allow
    from samehost.service.call import Call as Call
    from samehost.service.call import Progress as Progress
    from samehost.service.remote import idempotent as idempotent
    from samehost.service.remote import named as named
    from samehost.service.service import Service as Service

__version__ = "0.1.0"

_HOMES = {
    "ANYONE": "samehost.peer",
    "Blob": "samehost.kernel.blob",
    "Call": "samehost.service.call",
    "Client": "samehost.blocking.client",
    "Connection": "samehost.blocking.connection",
    "Datagram": "samehost.blocking.datagrams",
    "DatagramListener": "samehost.blocking.datagrams",
    "File": "samehost.kernel.files",
    "Listener": "samehost.blocking.listener",
    "Peer": "samehost.peer",
    "Policy": "samehost.peer",
    "Progress": "samehost.service.call",
    "Service": "samehost.service.service",
    "ServiceError": "samehost.errors",
    "Stream": "samehost.blocking.stream",
    "allocate": "samehost.kernel.blob",
    "allow": "samehost.peer",
    "connect": "samehost.blocking.client",
    "dial": "samehost.blocking.dial",
    "idempotent": "samehost.service.remote",
    "listen": "samehost.blocking.listener",
    "named": "samehost.service.remote",
    "serve": "samehost.aio.main",
}

__all__ = (
    "ANYONE",
    "Blob",
    "Call",
    "Client",
    "Connection",
    "Datagram",
    "DatagramListener",
    "File",
    "Listener",
    "Peer",
    "Policy",
    "Progress",
    "Service",
    "ServiceError",
    "Stream",
    "aio",
    "allocate",
    "allow",
    "connect",
    "dial",
    "errors",
    "idempotent",
    "inspect",
    "limits",
    "listen",
    "named",
    "serve",
    "testing",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        value = import_module(f"samehost.{name}")
    else:
        raise AttributeError(f"module 'samehost' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
