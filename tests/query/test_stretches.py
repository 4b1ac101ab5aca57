"""Stretches of bins against sets of numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbind_store.loci import Grid, Tiling
from tfbind_store.query import stretches as module
from tfbind_store.query.stretches import Stretches, bin_spans, covered, expand, member, ranks

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1])), max_size=12)


def columns(spans):
    return np.array([s for s, _ in spans], np.int64), np.array([e for _, e in spans], np.int64)


@settings(deadline=None)
@given(SPANS, SPANS)
def test_touching_is_sharing_a_number(stretches, asked):
    numbers = {n for first, last in stretches for n in range(first, last + 1)}
    found = Stretches.merged(*columns(stretches)).touched_by(*columns(asked))
    assert found.tolist() == [bool(numbers & set(range(first, last + 1))) for first, last in asked]


@settings(deadline=None)
@given(SPANS)
def test_merging_keeps_the_numbers_and_leaves_gaps(spans):
    merged = Stretches.merged(*columns(spans))
    numbers = {n for first, last in spans for n in range(first, last + 1)}
    assert set(expand(merged.first, merged.last)[1].tolist()) == numbers
    assert (merged.first[1:] > merged.last[:-1] + 1).all()


def test_members_of_nothing():
    assert member(np.empty(0, np.int64), np.array([1, 2])).tolist() == [False, False]


class TestBinSpans:
    tiling = Tiling.over(Grid(window_bp=40, n_bins=2, bin_bp=10), {"a": 35, "b": 20})

    def test_an_interval_touches_the_bins_of_its_first_and_last_base(self):
        spans = bin_spans(self.tiling, np.array([0, 0, 1]), np.array([0, 9, 10]), np.array([10, 11, 20]))
        assert spans.first.tolist() == [0, 0, 5]
        assert spans.last.tolist() == [0, 1, 5]

    def test_a_margin_stops_at_chromosome_ends(self):
        spans = bin_spans(self.tiling, np.array([0, 1]), np.array([30, 0]), np.array([35, 1]), margin_bp=1000)
        assert spans.first.tolist() == [0, 4]
        assert spans.last.tolist() == [3, 5]


class TestRanks:
    def test_any_order_gives_what_searchsorted_gives(self, monkeypatch):
        monkeypatch.setattr(module, "_CACHED", 10)
        monkeypatch.setattr(module, "_WORTH_SORTING", 10)
        rng = np.random.default_rng(0)
        numbers = np.sort(rng.integers(0, 500, 300))
        for asked in (rng.integers(-5, 505, 200), np.sort(rng.integers(-5, 505, 200)), rng.integers(0, 500, (20, 10))):
            for side in ("left", "right"):
                assert (ranks(numbers, asked, side=side) == np.searchsorted(numbers, asked, side=side)).all()


def test_covered_is_what_marking_bin_by_bin_gives():
    rng = np.random.default_rng(0)
    for n in range(12):
        first = rng.integers(0, 50, n)
        last = np.minimum(first + rng.integers(0, 9, n), 49)
        marked = np.zeros(50, dtype=bool)
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            marked[begin : end + 1] = True
        assert (covered(first, last, 50) == marked).all()
