"""A clock: about the smallest service there is. It has a default, a stream, a policy on one method, and an error.

Try it from a shell::

    python examples/clock.py &
    samehost call clock now zone=Asia/Tokyo
    samehost call clock ticks every=0.2 --count 3
    samehost call clock set_time to=2030-01-01T00:00:00Z      # as root
    samehost describe clock
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec

import samehost

logger = logging.getLogger("clock")

clock = samehost.Service("clock")
setting = {"ahead": timedelta()}

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with its zone; samehost refuses one without, before the method sees it."""

Seconds = Annotated[float, msgspec.Meta(ge=0.001)]


@clock.method(idempotent=True, errors={KeyError: "clock.no_such_zone", ValueError: "clock.no_such_zone"})
def now(zone: str = "UTC") -> str:
    """Tell the time in a zone, such as Asia/Tokyo, by ISO 8601."""
    # A def, which runs in a thread, as zones are read from files; and text, as a datetime travels as a moment in UTC.
    where = UTC if zone == "UTC" else ZoneInfo(zone)
    return (datetime.now(UTC) + setting["ahead"]).astimezone(where).isoformat(timespec="seconds")


@clock.method
async def ticks(every: Seconds = 1.0) -> AsyncIterator[Moment]:
    """Tell the time again and again."""
    while True:
        yield datetime.now(UTC) + setting["ahead"]
        await asyncio.sleep(every)


@clock.method(allow=samehost.allow(uid=0))
async def set_time(to: Moment, caller: samehost.Peer) -> None:
    """Set this clock, and not the host's."""
    setting["ahead"] = to - datetime.now(UTC)
    logger.info("set to %s by %s", to, caller)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    samehost.serve(clock, *sys.argv[1:2])
