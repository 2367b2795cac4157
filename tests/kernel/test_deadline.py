"""Deadlines: the arithmetic on a clock of our own, and what they do to a connection."""

from __future__ import annotations

import math
import socket
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import samehost
from samehost.errors import DeadlineExceeded, UsageError
from samehost.kernel import deadline
from samehost.kernel.deadline import Deadline, poll_milliseconds


@contextmanager
def against(**options):
    """A connection of ours and the plain socket at its other end."""
    ours, theirs = socket.socketpair()
    with theirs, samehost.dial(f"fd:{ours.detach()}", **options) as connection:
        yield connection, theirs


def flood(send):
    while True:
        send(bytes(100_000), timeout=0.1)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_time_left_runs_down_to_zero_and_not_below(clock):
    end = Deadline(2.5)
    assert end.left() == 2.5
    clock.now += 1
    assert end.left() == 1.5
    clock.now += 100
    assert end.left() == 0.0


def test_no_timeout_is_no_end(clock):
    for end in Deadline(None), Deadline(math.inf):
        clock.now += 1e9
        assert end.left() == math.inf


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0.0, 0), (0.0001, 1), (0.5, 500), (0.5001, 501), (1e9, 2**31 - 1), (math.inf, None)]
)
def test_poll_is_asked_for_whole_milliseconds_rounded_up(seconds, milliseconds):
    # Rounded down, the last part of a millisecond would be spent in a busy loop.
    assert poll_milliseconds(seconds) == milliseconds


@pytest.mark.parametrize("wrong", [-1, -0.001, math.nan, -math.inf])
def test_a_timeout_that_cannot_be_is_refused(wrong, place):
    with pytest.raises(UsageError, match="zero or more seconds"):
        Deadline(wrong)
    with against() as (connection, peer):
        peer.send(b"kept")
        for use in (
            lambda: connection.recv(timeout=wrong),
            lambda: samehost.dial(place / "a.sock", wait=wrong),
            lambda: samehost.dial(place / "a.sock", timeout=wrong),
            lambda: samehost.dial(place / "a.sock", wait=10, timeout=wrong),
        ):
            with pytest.raises(UsageError, match="zero or more seconds"):
                use()
        assert connection.recv(timeout=0) == b"kept"


def test_receiving_gives_up_when_its_time_is_over_and_not_before():
    with against() as (connection, peer):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"nothing was received on fd:\d+ within 0\.1 s"):
            connection.recv(timeout=0.1)
        assert 0.1 <= time.monotonic() - began < 5
        peer.send(b"the connection goes on")
        assert connection.recv(timeout=5) == b"the connection goes on"


@pytest.mark.parametrize("send", ["send", "sendall"])
def test_sending_gives_up_when_the_buffer_stays_full(send):
    with against() as (connection, _):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"did not read, so not all was sent within 0\.1 s"):
            flood(getattr(connection, send))
        assert 0.1 <= time.monotonic() - began < 5


def test_no_time_at_all_still_takes_what_is_there():
    with against() as (connection, peer):
        with pytest.raises(DeadlineExceeded):
            connection.recv(timeout=0)
        peer.send(b"there")
        assert connection.recv(timeout=0) == b"there"
        assert connection.send(b"room", timeout=0) == 4
