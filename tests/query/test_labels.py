"""The one label rule, on tables small enough to check by eye, and against a slow referee."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.query.labels import Intervals, LabelRule, Truth, as_labels

TILING = Tiling.over(Grid(window_bp=60, n_bins=4, bin_bp=10), {"a": 95, "b": 35})
# chromosome a: windows 0 1 2, bins 0..9 real; chromosome b: window 3, bins 12..15 (12..15 real: 35 bp)


def intervals(*rows):
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return Intervals(*columns.T)


def truth(peaks, *, relaxed=(), labelled=None, unscorable=(), rule="summit", experiments=(3, 8)):
    scorable = np.ones(TILING.n_bins, dtype=bool)
    scorable[[10, 11, *unscorable]] = False
    return Truth.build(
        TILING,
        experiment_ids=np.array(experiments),
        peaks=intervals(*peaks),
        relaxed=intervals(*relaxed),
        labelled=np.ones((len(experiments), 2), bool) if labelled is None else np.array(labelled),
        scorable=scorable,
        rule=LabelRule.parse(rule),
    )


class TestRule:
    def test_text_round_trips(self):
        assert [str(LabelRule.parse(text)) for text in ("summit", "overlap:0.5", "overlap")] == [
            "summit",
            "overlap:0.5",
            "overlap:0.5",
        ]

    @pytest.mark.parametrize("text", ["", "summit:0.5", "overlap:0", "overlap:2", "overlap:x", "peak"])
    def test_nonsense_is_refused(self, text):
        with pytest.raises(ConfigError, match="no label rule"):
            LabelRule.parse(text)


class TestSummit:
    def test_the_bin_of_the_summit_is_bound_and_only_that(self):
        found = truth([(3, 0, 5, 35, 19)])
        assert found.labels(3, np.arange(4)).tolist() == [0, 1, 0, 0]

    def test_bins_next_to_each_other_across_a_window_edge(self):
        found = truth([(3, 0, 38, 42, 39), (3, 0, 40, 41, 40)])
        assert found.positives(3).tolist() == [3, 4]

    def test_the_last_base_of_a_chromosome(self):
        found = truth([(3, 0, 94, 95, 94), (3, 1, 34, 35, 34)])
        assert found.positives(3).tolist() == [9, 15]

    def test_experiments_do_not_mix(self):
        found = truth([(3, 0, 0, 1, 0), (8, 0, 10, 11, 10)])
        assert found.labels(3, np.arange(2)).tolist() == [1, 0]
        assert found.labels(8, np.arange(2)).tolist() == [0, 1]

    def test_peaks_of_experiments_not_asked_for_are_ignored(self):
        assert truth([(5, 0, 0, 1, 0)]).positives(3).tolist() == []

    def test_an_unknown_experiment_is_refused(self):
        with pytest.raises(SelectionError, match="experiment 5"):
            truth([]).labels(5, np.arange(2))


class TestOverlap:
    def test_half_of_a_bin(self):
        found = truth([(3, 0, 5, 24, 5)], rule="overlap:0.5")
        assert found.positives(3).tolist() == [0, 1]

    def test_a_short_peak_binds_the_bin_that_holds_half_of_it(self):
        found = truth([(3, 0, 8, 11, 8), (8, 0, 9, 11, 9)], rule="overlap:0.5")
        assert found.positives(3).tolist() == [0]
        assert found.positives(8).tolist() == [0, 1]


class TestUnknown:
    def test_an_unlabelled_chromosome_is_neither_bound_nor_unbound(self):
        found = truth([(3, 1, 0, 1, 0)], labelled=[[True, False], [True, True]])
        assert np.isnan(found.labels(3, np.arange(12, 16))).all()
        assert found.labels(8, np.arange(12, 16)).tolist() == [0, 0, 0, 0]
        assert found.positives(3).tolist() == []

    def test_bins_past_the_end_in_n_or_on_a_blacklist(self):
        found = truth([(3, 0, 20, 21, 20)], unscorable=[2])
        assert np.isnan(found.labels(3, np.array([2, 10, 11]))).all()
        assert found.positives(3).tolist() == []

    def test_relaxed_peaks_make_what_no_peak_binds_ambiguous(self):
        found = truth([(3, 0, 10, 30, 15)], relaxed=[(3, 0, 8, 32, 8)])
        assert as_labels(found.codes([3] * 5, np.arange(5))[:, 0]).tolist()[1] == 1
        assert np.isnan(found.labels(3, np.array([0, 2, 3]))).all()
        assert found.labels(3, np.array([4])).tolist() == [0]
        assert found.labels(8, np.arange(4)).tolist() == [0, 0, 0, 0]

    def test_a_row_that_leaves_its_chromosome_is_unknown_there(self):
        found = truth([(3, 1, 0, 1, 0)])
        assert found.codes([3], np.array([8]), 6).tolist() == [[0, 0, -1, -1, -1, -1]]
        assert found.codes([3], np.array([-2]), 4).tolist()[0][:2] == [-1, -1]


PEAK = st.tuples(st.sampled_from([3, 8]), st.integers(0, 1), st.integers(0, 34), st.integers(1, 30), st.floats(0, 0.99))
RULES = st.sampled_from(["summit", "overlap:0.5", "overlap:1", "overlap:0.1"])


@settings(max_examples=150, deadline=None)
@given(st.lists(PEAK, max_size=6), st.lists(PEAK, max_size=3), RULES, st.lists(st.integers(0, 15), max_size=3))
def test_labels_and_rasters_equal_a_slow_referee(peaks, relaxed, rule, unscorable):
    def rows(drawn):
        fixed = []
        for experiment, chrom, start, length, where in drawn:
            end = min(start + length, TILING.lengths_bp[chrom])
            fixed.append((experiment, chrom, start, end, start + int(where * (end - start))))
        return fixed

    peaks, relaxed = rows(peaks), rows(relaxed)
    labelled = [[True, True], [False, True]]
    found = truth(peaks, relaxed=relaxed, labelled=labelled, unscorable=unscorable, rule=rule)
    raster = found.raster(np.arange(4), [8, 3])
    for column, experiment in ((1, 3), (0, 8)):
        want = [slow(experiment, b, peaks, relaxed, labelled, unscorable, rule) for b in range(TILING.n_bins)]
        assert found.codes([experiment] * TILING.n_bins, np.arange(TILING.n_bins))[:, 0].tolist() == want
        assert raster[:, :, column].reshape(-1).tolist() == want
        assert found.positives(experiment).tolist() == [b for b, code in enumerate(want) if code == 1]


def slow(experiment, global_bin, peaks, relaxed, labelled, unscorable, rule):
    chrom, start = (0, global_bin * 10) if global_bin < 12 else (1, (global_bin - 12) * 10)
    end = start + 10
    if start >= TILING.lengths_bp[chrom] or global_bin in unscorable or not labelled[(3, 8).index(experiment)][chrom]:
        return -1
    for who, where, first, last, summit in peaks:
        if (who, where) == (experiment, chrom):
            shared = len(set(range(first, last)) & set(range(start, end)))
            if rule == "summit" and start <= summit < end:
                return 1
            if rule != "summit" and shared and shared >= float(rule[8:]) * min(10, last - first):
                return 1
    hit = any((w, c) == (experiment, chrom) and f < end and last > start for w, c, f, last, _ in relaxed)
    return -1 if hit else 0
