"""What a method may know of its call."""

from __future__ import annotations

import contextvars
import math

import pytest

from samehost import Call, Peer
from samehost.codec import MSGPACK
from samehost.service.call import Progress, current_call


class Endless:
    def left(self) -> float:
        return math.inf


def new_call() -> Call:
    return Call(Peer(7, 8, (), 9), "now", 3, Endless(), {"trace": "00"}, "state")


def test_a_call_has_what_it_was_made_with_and_is_not_cancelled():
    call = new_call()
    assert (call.peer.uid, call.method, call.id, call.context, call.state) == (7, "now", 3, {"trace": "00"}, "state")
    assert call.deadline.left() == math.inf
    assert call.is_cancelled is False


def test_a_call_says_who_called_what():
    assert repr(new_call()).startswith("<Call 3 of now by uid 7")


def test_a_call_takes_no_other_attributes():
    with pytest.raises(AttributeError):
        new_call().is_canceled = True


def test_the_current_call_is_one_of_its_context():
    call = new_call()

    def inside() -> Call | None:
        current_call.set(call)
        return current_call.get()

    assert current_call.get() is None
    assert contextvars.copy_context().run(inside) is call
    assert current_call.get() is None


class Noting:
    """A connection that keeps what it is told."""

    is_draining = True

    def __init__(self) -> None:
        self.noted: list[tuple[int, Progress]] = []

    def note(self, call_id: int, progress: Progress) -> None:
        self.noted.append((call_id, progress))


def test_progress_goes_to_where_the_call_came_from():
    call = new_call()
    call.origin = origin = Noting()
    call.progress(1, 4)
    call.progress(message="nearly there")
    assert origin.noted == [(3, Progress(1, 4)), (3, Progress(None, None, "nearly there"))]
    assert MSGPACK.encode(Progress(1, 4)) == MSGPACK.encode({"done": 1, "total": 4})


def test_a_call_knows_whether_its_server_is_to_end():
    call = new_call()
    assert call.is_draining is False
    call.origin = Noting()
    assert call.is_draining is True


def test_progress_of_a_call_from_nowhere_is_nobody_s():
    new_call().progress(1)
