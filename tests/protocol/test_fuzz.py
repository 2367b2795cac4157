"""A few inputs for every fuzz target each time: noise, and what the examples send, with bytes changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol.examples import EXAMPLES
from protocol.fuzz import TARGETS

SEEDS = [data for example in EXAMPLES.values() for _, data in example()]


@st.composite
def changed_seeds(draw):
    seeds = draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=4))
    data = bytearray(b"".join(seeds))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes((draw(st.integers(0, 255)),)) + bytes(data)


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=200) | changed_seeds())
def test_anything_may_come(target, data):
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_may_come(target):
    TARGETS[target](b"")
