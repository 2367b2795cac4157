"""Quantiles of a histogram, against the truth of a sorted list."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samehost.service.statistics import Latencies, MethodStatistics

LONGEST = 2**45 - 1
"""Nanoseconds, about ten hours."""


def latencies_of(nanoseconds):
    found = Latencies()
    for one in nanoseconds:
        found.add(one)
    return found


def test_without_a_call_there_is_nothing_to_tell():
    assert Latencies().quantile(0.5) == 0.0


@settings(deadline=None)
@given(
    st.lists(st.integers(0, LONGEST) | st.integers(0, 100_000), min_size=1, max_size=300),
    st.sampled_from([0.5, 0.9, 0.99, 0.999, 1.0]),
)
def test_a_quantile_is_within_an_eighth_of_the_truth(nanoseconds, share):
    truth = sorted(nanoseconds)[math.ceil(share * len(nanoseconds)) - 1] / 1e9
    assert latencies_of(nanoseconds).quantile(share) == pytest.approx(truth, rel=1 / 8)


@pytest.mark.parametrize("bits", range(46))
def test_every_power_of_two_has_its_place(bits):
    for nanoseconds in {2**bits - 1, 2**bits, 2**bits + 1}:
        assert latencies_of([nanoseconds]).quantile(0.5) == pytest.approx(nanoseconds / 1e9, rel=1 / 8)


def test_durations_of_a_few_nanoseconds_are_exact():
    assert [latencies_of([one]).quantile(1.0) for one in range(8)] == [one / 1e9 for one in range(8)]


@pytest.mark.parametrize("nanoseconds", [LONGEST, LONGEST + 1, 2**50, 2**70])
def test_what_takes_longer_than_ten_hours_counts_as_ten_hours(nanoseconds):
    assert latencies_of([nanoseconds]).quantile(0.5) == pytest.approx(2**45 / 1e9, rel=1 / 8)


def test_a_rare_slow_call_shows_only_where_it_belongs():
    found = latencies_of([1_000] * 999 + [1_000_000_000])
    assert found.quantile(0.5) == found.quantile(0.99) == found.quantile(0.999) == pytest.approx(1e-6, rel=1 / 8)
    assert found.quantile(1.0) == pytest.approx(1.0, rel=1 / 8)


def test_quantiles_do_not_fall_as_the_share_grows():
    found = latencies_of(range(0, 1_000_000, 997))
    quantiles = [found.quantile(share / 100) for share in range(101)]
    assert quantiles == sorted(quantiles)
    assert quantiles[0] == 0.0


def test_a_method_begins_with_nothing_counted():
    figures = MethodStatistics()
    assert (figures.calls, figures.errors, figures.in_flight) == (0, 0, 0)
    figures.latencies.add(5)
    assert figures.latencies.quantile(0.5) == 5e-9
    assert MethodStatistics().latencies.quantile(0.5) == 0.0


def test_every_duration_counts_once_whichever_its_bucket_is():
    for pair in ([1, 100], [100, 2**50], [7, 2**50]):
        found = latencies_of(pair)
        assert found.quantile(0.5) == pytest.approx(pair[0] / 1e9, rel=1 / 8)
        assert found.quantile(0.51) > 1.5 * pair[0] / 1e9
