"""For every fuzz target each time: what `make fuzz` kept, noise, and what the examples send, with bytes changed."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol.examples import EXAMPLES
from protocol.fuzz import TARGETS, corpus
from protocol.joined import greeted

from samehost.errors import RemoteProtocolError
from samehost.protocol.events import Failed

SEEDS = [data for example in EXAMPLES.values() for _, data in example()]


@st.composite
def changed_seeds(draw):
    seeds = draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=4))
    data = bytearray(b"".join(seeds))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes((draw(st.integers(0, 255)), draw(st.integers(0, 63)))) + bytes(data)


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=200) | changed_seeds())
def test_anything_may_come(target, data):
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_kept_may_come(target):
    inputs = corpus(target)
    assert inputs
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_may_come(target):
    TARGETS[target](b"")


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_a_connection_that_failed_is_freed_with_its_event(codec):
    _, server = greeted(codec)
    server.receive_data(b"{")
    (failed,) = server.receive_eof()
    assert isinstance(failed, Failed)
    alive = weakref.ref(server)
    del server, failed
    assert alive() is None


def test_a_connection_whose_error_was_raised_is_freed():
    alive = []

    def fail():
        _, server = greeted("msgpack")
        alive.append(weakref.ref(server))
        (failed,) = server.receive_data(bytes(12))
        raise failed.error

    with pytest.raises(RemoteProtocolError):
        fail()
    gc.collect()
    assert alive[0]() is None
