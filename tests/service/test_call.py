"""What a method may know of its call."""

from __future__ import annotations

import contextvars
import math

import pytest

from samehost import Call, Peer
from samehost.service.call import current_call


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
