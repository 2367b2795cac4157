"""What one message takes of a queue, and what is left of it."""

from __future__ import annotations

import gc
import os
import socket
from collections import deque

import pytest

from samehost.kernel.files import Descriptor
from samehost.kernel.outgoing import next_message, remove_sent


class Held:
    def __init__(self, number):
        self.number = number

    def fileno(self):
        return self.number


A, B = Held(100), Held(200)


@pytest.mark.parametrize(
    ("queue", "pieces_max", "pieces", "numbers"),
    [
        ([(b"a", ())], 9, [b"a"], []),
        ([(b"a", ()), (b"b", ()), (b"c", ())], 2, [b"a", b"b"], []),
        ([(b"a", (A, B))], 9, [b"a"], [100, 200]),
        ([(b"a", (A,)), (b"b", ()), (b"c", ())], 9, [b"a", b"b", b"c"], [100]),
        ([(b"a", ()), (b"b", (A,)), (b"c", ())], 9, [b"a"], []),
        ([(b"a", (A,)), (b"b", (B,))], 9, [b"a"], [100]),
        ([(b"a", (A,)), (b"b", ()), (b"c", (B,))], 9, [b"a", b"b"], [100]),
    ],
)
def test_a_message_begins_with_its_descriptors_and_ends_before_the_next(queue, pieces_max, pieces, numbers):
    queue = deque(queue)
    before = list(queue)
    found, control = next_message(queue, pieces_max)
    assert found == pieces
    assert [(level, kind, content.tolist()) for level, kind, content in control] == (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
    )
    assert list(queue) == before


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        (0, [(b"abc", (A,)), (b"de", ()), (b"f", (B,))]),
        (1, [(b"bc", ()), (b"de", ()), (b"f", (B,))]),
        (3, [(b"de", ()), (b"f", (B,))]),
        (4, [(b"e", ()), (b"f", (B,))]),
        (5, [(b"f", (B,))]),
        (6, []),
    ],
)
def test_what_was_sent_leaves_with_its_descriptors(sent, left):
    queue = deque([(b"abc", (A,)), (memoryview(b"de"), ()), (b"f", (B,))])
    remove_sent(queue, sent)
    assert [(bytes(data), descriptors) for data, descriptors in queue] == left


def test_nothing_else_keeps_a_descriptor():
    descriptor = Descriptor(os.dup(0))
    number = descriptor.fileno()
    queue = deque([(b"ab", (descriptor,))])
    del descriptor
    pieces, control = next_message(queue, 9)
    assert os.fstat(number)
    remove_sent(queue, 1)
    gc.disable()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    finally:
        gc.enable()
    assert (pieces, control[0][2].tolist()) == ([b"ab"], [number])
