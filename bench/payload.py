"""What payload rows send: the same bytes at the same place for each, as where they lie counts."""

from __future__ import annotations

import os
from functools import cache

BATCH_BYTES = 16 * 1024 * 1024
"""What is sent one way before the other end is asked whether all has come."""


@cache
def payload(size: int) -> bytes:
    return os.urandom(size)
