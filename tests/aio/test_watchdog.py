"""A loop that is held up is reported once, with its stack; one that is not is left in peace."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from samehost import limits
from samehost.aio.watchdog import Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOP_BLOCKED_SECONDS", 0.05)


def hold_up_the_loop() -> None:
    time.sleep(0.3)


async def test_a_loop_that_is_held_up_is_reported_once_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    with Watchdog("clock", asyncio.get_running_loop()):
        hold_up_the_loop()
        await asyncio.sleep(0.1)
        assert len(caplog.records) == 1
        hold_up_the_loop()
    message = caplog.records[0].getMessage()
    assert message.startswith("clock: the event loop has been held up for 0.05 s")
    assert "in hold_up_the_loop" in message
    assert caplog.records[0].levelno == logging.ERROR
    assert len(caplog.records) == 2  # and once more for the second time


async def test_a_loop_that_turns_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    with Watchdog("clock", asyncio.get_running_loop()) as watchdog:
        await asyncio.sleep(0.3)
        watchdog.close()
    assert not caplog.records


def test_a_loop_that_was_closed_ends_it() -> None:
    loop = asyncio.new_event_loop()
    watchdog = Watchdog("clock", loop)
    loop.close()
    watchdog._thread.join(5)
    assert not watchdog._thread.is_alive()
    watchdog.close()
