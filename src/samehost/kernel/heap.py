"""Keeping memory at hand that is taken and let go of for every long message."""

from __future__ import annotations

from functools import cache

_BYTES = 1024 * 1024


@cache
def keep_memory_at_hand() -> None:
    """Have glibc take blocks of up to 1 MiB from memory that it keeps, twice as much at most, once for the process.

    It gives back whatever is larger than 128 KiB as soon as it is let go of, and each page of the next such block then
    has to be had from the kernel anew, which takes several times as long as what is done with it. A large block that is
    let go of tells it that more of the kind will come (M_MMAP_THRESHOLD in mallopt(3)). This one is never written to,
    and so takes no memory itself. Other C libraries do not mind.
    """
    bytes(_BYTES)
