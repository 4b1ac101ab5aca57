"""Drawing negatives: rooms for rows, pools, and that a shortfall means there really are no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbind_store.loci import Grid, Tiling
from tfbind_store.query import negatives
from tfbind_store.query.ground import RowPlacer, make_ground
from tfbind_store.query.labels import Intervals, LabelRule, Truth
from tfbind_store.query.negatives import NegativeRule
from tfbind_store.query.pools import NEGATIVES, Groups

TILING = Tiling.over(Grid(window_bp=60, n_bins=4, bin_bp=10), {"a": 155, "b": 95})
# chromosome a: windows 0..3, bins 0..15; chromosome b: windows 4..6, bins 16..25 real


def placer(n_bins, *, empty=(), jitter=0.25, seed=0):
    windows = np.zeros(TILING.n_windows, dtype=bool)
    windows[list(empty)] = True
    return RowPlacer.over(TILING, windows, n_bins=n_bins, jitter=jitter, seed=seed)


class TestRooms:
    def test_a_row_is_shifted_inside_its_chromosome(self):
        row = placer(4, jitter=0.0)
        anchors = np.array([0, 1, 8, 15, 16, 25])
        assert row.first_bins(np.zeros(6, np.int64), anchors).tolist() == [0, 0, 6, 12, 16, 22]

    def test_a_row_stays_out_of_windows_that_are_all_n(self):
        row = placer(4, empty=[1], jitter=0.0)
        assert row.first_bins(np.zeros(2, np.int64), np.array([3, 8])).tolist() == [0, 8]
        assert row.fits(np.array([3, 4, 7, 8])).tolist() == [True, False, False, True]

    def test_a_room_that_is_too_short_fits_nothing(self):
        assert placer(5, empty=[1]).fits(np.array([0, 8])).tolist() == [False, True]
        assert placer(5, empty=[4]).fits(np.array([20, 25])).tolist() == [True, True]
        assert not placer(7, empty=[4]).fits(np.array([20, 25])).any()

    @settings(deadline=None)
    @given(st.integers(1, 8), st.sets(st.integers(0, 6), max_size=3), st.integers(0, 9))
    def test_every_row_holds_its_anchor_and_lies_in_its_room(self, n_bins, empty, seed):
        row = placer(n_bins, empty=empty, seed=seed)
        anchors = np.arange(TILING.n_bins)
        anchors = anchors[row.fits(anchors)]
        first = row.first_bins(np.full(len(anchors), 7), anchors)
        last = first + n_bins - 1
        assert ((first <= anchors) & (anchors <= last)).all()
        assert (TILING.window_chrom(first // 4) == TILING.window_chrom(last // 4)).all()
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            assert end < 16 or end <= 25
            assert not set(range(begin // 4, end // 4 + 1)) & empty


PEAKS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 90), st.integers(1, 15)), max_size=14)


def make(peaks, n_bins, margin_bp, seed):
    rows = [(e, c, start, start + length, start) for e, c, start, length in peaks if start + length < 95]
    peaks = Intervals(*np.array(rows, dtype=np.int64).reshape(-1, 5).T)
    none = Intervals(*np.empty((5, 0), dtype=np.int64))
    scorable = np.ones(TILING.n_bins, dtype=bool)
    scorable[[26, 27]] = False
    truth = Truth.build(
        TILING,
        experiment_ids=np.arange(4),
        peaks=peaks,
        relaxed=none,
        labelled=np.array([[True, True], [True, True], [True, False], [True, True]]),
        scorable=scorable,
        rule=LabelRule(),
    )
    return make_ground(
        truth,
        factor_id=np.array([0, 1, 2, 0]),
        biotype_id=np.array([0, 0, 0, 0]),
        peaks=peaks,
        relaxed=none,
        exclusions=none,
        stratum=np.where(np.arange(TILING.n_bins) < 16, 0, 2).astype(np.int16),
        placer=placer(n_bins, seed=seed),
        margin_bp=margin_bp,
        seed=seed,
    )


@settings(max_examples=60, deadline=None)
@given(PEAKS, st.integers(1, 4), st.sampled_from([0, 10]), st.integers(0, 5), st.sampled_from(["random", "scoped"]))
def test_a_shortfall_means_that_every_acceptable_bin_was_taken(peaks, n_bins, margin_bp, seed, kind):
    ground = make(peaks, n_bins, margin_bp, seed)
    groups = Groups(np.array([0, 1, 2, 3, 3]), np.array([0, 2, 2, 0, 2]), np.array([9, 3, 4, 2, 50]))
    found = negatives.sample(ground, groups, NegativeRule(kind, 1.0), taken=np.empty(0, np.int64))
    pools = next(NEGATIVES[kind](ground, groups, groups.positives))
    for group in range(5):
        size = int(pools.size[group])
        pool = pools.at(np.full(size, group), np.arange(size))
        experiment = np.full(len(pool), groups.experiment_id[group])
        good = pool[ground.accepts(experiment, pool, ground.placer.first_bins(experiment, pool))]
        mine = found.rows.anchor[found.group == group]
        assert set(mine.tolist()) <= set(good.tolist())
        assert len(set(mine.tolist())) == len(mine) == min(len(good), groups.positives[group])
        assert found.missing[group] == groups.positives[group] - len(mine)
        assert (TILING.window_chrom(mine // 4) == (0 if groups.stratum[group] == 0 else 1)).all()


def test_a_twin_s_peaks_are_one_s_own():
    ground = make([(0, 0, 50, 5)], 1, 0, 0)
    asked = np.array([0, 1, 3]), np.array([5, 5, 5])
    assert ground.accepts(*asked, asked[1]).tolist() == [False, True, False]


def test_taken_anchors_are_not_taken_again():
    ground = make([], 1, 0, 0)
    groups = Groups(np.array([1]), np.array([0]), np.array([16]))
    taken = np.sort(TILING.n_bins + np.arange(10))
    found = negatives.sample(ground, groups, NegativeRule("random", 1.0), taken=taken)
    assert sorted(found.rows.anchor.tolist()) == [10, 11, 12, 13, 14, 15]
    assert found.missing.tolist() == [10]


@pytest.mark.parametrize(("text", "ratio"), [("random", 1.0), ("scoped:0.5", 0.5)])
def test_a_rule_s_ratio(text, ratio):
    assert negatives.parse_rule(text).ratio == ratio
