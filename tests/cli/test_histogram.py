"""The histogram of `samehost bench`, beside sorted lists of the same numbers."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samehost.cli.histogram import Histogram

NANOSECONDS = st.integers(0, 10**13)
SOME = st.lists(NANOSECONDS | st.integers(0, 5000), min_size=1, max_size=60)
EDGES = sorted({max(edge + step, 0) for bits in range(45) for edge in (1 << bits,) for step in (-1, 0, 1)})


def histogram_of(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    return histogram


@given(SOME, st.floats(0, 1))
def test_a_quantile_is_right_to_a_thousandth(numbers: list[int], share: float) -> None:
    exact = sorted(numbers)[max(math.ceil(share * len(numbers)), 1) - 1]
    assert exact <= histogram_of(numbers).quantile(share) <= exact * 1.001


@pytest.mark.parametrize("number", EDGES)
def test_each_number_comes_out_as_it_was(number: int) -> None:
    histogram = histogram_of([number, 1 << 60])
    assert number <= histogram.quantile(0.5) <= number * 1.001


@given(SOME)
def test_what_describes_all_of_them(numbers: list[int]) -> None:
    histogram = histogram_of(numbers)
    assert (histogram.count, histogram.shortest, histogram.longest) == (len(numbers), min(numbers), max(numbers))
    assert histogram.mean() == pytest.approx(statistics.fmean(numbers))
    assert histogram.deviation() == pytest.approx(statistics.pstdev(numbers), abs=max(numbers) / 1000)
    assert histogram.quantile(1) == max(numbers)


@given(SOME, st.integers(12, 40))
def test_rows_hold_each_once_and_are_few(numbers: list[int], rows_max: int) -> None:
    rows = histogram_of(numbers).rows(rows_max)
    assert sum(row.number for row in rows) == len(numbers)
    assert len(rows) <= rows_max + 1
    assert rows[-1].up_to >= max(numbers)
    assert rows[-1].number > 0
    for before, row in pairwise(rows):
        assert before.up_to == row.above < row.up_to
    for row in rows:
        inside = sum(row.above * 1.001 < number <= row.up_to / 1.001 for number in numbers)
        assert row.number >= inside


def test_nothing_is_nothing() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.shortest, histogram.longest, histogram.mean()) == (0, 0, 0, 0.0)
    assert (histogram.deviation(), histogram.quantile(0.5), histogram.rows(16)) == (0.0, 0, [])


def test_a_bucket_is_a_thousandth_wide_and_no_finer() -> None:
    histogram = histogram_of(list(range(1_000_000, 1_001_000)))
    assert len({histogram.quantile(share / 1000) for share in range(1001)}) <= 4
