"""Looking at the UNIX domain sockets of this host: who listens, who is connected, what waits.

`inspect` gathers the facts into a `Report`; nothing here prints.
"""

from __future__ import annotations

from samehost.inspect.look import inspect
from samehost.inspect.report import Connection, FileFacts, Holder, Report, Socket

__all__ = ["Connection", "FileFacts", "Holder", "Report", "Socket", "inspect"]
