"""The memory of a process, and the descriptors it may have."""

from __future__ import annotations

import re
import resource
from pathlib import Path

SPARE_DESCRIPTORS = 200


def private_bytes(pid: int) -> int:
    """What would be free if the process ended (its USS); what the kernel keeps for its sockets is not in it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kilobytes) for kilobytes in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))


def allow_descriptors(connections: int) -> None:
    """As many as this process may allow itself; enough for so many connections, which may take 3/4 of them.

    Raises:
        RuntimeError: that is too few.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    needed = connections * 4 // 3 + SPARE_DESCRIPTORS
    if most != resource.RLIM_INFINITY and most < needed:
        raise RuntimeError(f"{connections:,} connections need a hard RLIMIT_NOFILE of {needed:,}; here it is {most:,}")
