"""Resamples of stretches against scores of the resampled bins themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tfbind_store.metrics import intervals
from tfbind_store.metrics.intervals import ahead, draw_stretches, interval, resample
from tfbind_store.metrics.ranking import score_tallies, tally


def genome(n: int = 4000, *, share: float = 0.1, digits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = (rng.random(n) < share).astype(float)
    labels[rng.random(n) < 0.05] = np.nan
    return labels, (np.nan_to_num(labels) + rng.normal(size=n)).round(digits).astype(np.float32)


def stretches_of(n: int, bin_bp: int = 128) -> intervals.Stretches:
    half = n // 2
    chrom = np.repeat([0, 3], [half, n - half])
    return draw_stretches(chrom, np.concatenate([np.arange(half), np.arange(n - half)]) * bin_bp, bin_bp)


def test_stretches_end_with_their_chromosome_and_cover_every_bin() -> None:
    cut = stretches_of(4000)
    assert cut.starts[0] == 0
    assert 2000 in cut.starts
    assert 50 <= len(cut.starts) <= 52
    assert (cut.weights.sum(axis=1) == len(cut.starts)).all()


def test_stretches_are_a_megabase_on_larger_genomes_and_longer_on_the_largest() -> None:
    n = 1_000_000
    one = draw_stretches(np.zeros(n, int), np.arange(n) * 128, 128)
    assert np.diff(one.starts).max() <= 1 + 1_000_000 // 128
    assert len(one.starts) == 128
    far = draw_stretches(np.zeros(n, int), np.arange(n) * 2048, 2048)
    assert len(far.starts) <= 257


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "no ties"])
def test_each_resample_scores_what_its_bins_score(digits: int) -> None:
    labels, scores = genome(digits=digits)
    cut = stretches_of(len(labels))
    got = resample(tally(labels, scores), labels, scores, cut)
    ends = np.append(cut.starts[1:], len(labels))
    for row in range(5):
        drawn = np.repeat(np.arange(len(ends)), cut.weights[row].astype(int))
        bins = np.concatenate([np.arange(cut.starts[one], ends[one]) for one in drawn])
        bins = bins[~np.isnan(labels[bins])]
        assert got.auroc[row] == pytest.approx(roc_auc_score(labels[bins], scores[bins]), abs=1e-9)
        assert got.auprc[row] == pytest.approx(average_precision_score(labels[bins], scores[bins]), abs=1e-9)


def test_few_cutoffs_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = genome(40_000, share=0.2)
    cut, calls = stretches_of(len(labels)), tally(labels, scores)
    whole = resample(calls, labels, scores, cut)
    monkeypatch.setattr(intervals, "MAX_CUTOFFS", 500)
    few = resample(calls, labels, scores, cut)
    np.testing.assert_allclose(few.auprc, whole.auprc, atol=1e-3)
    np.testing.assert_allclose(few.auroc, whole.auroc, atol=1e-3)


def test_the_interval_holds_the_score_and_narrows_with_the_genome() -> None:
    widths = []
    for n in (2000, 80_000):
        labels, scores = genome(n)
        calls = tally(labels, scores)
        low, high = interval(resample(calls, labels, scores, stretches_of(n)).auprc)
        assert low < score_tallies(calls).auprc < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_differences_are_paired() -> None:
    """A scorer that is better everywhere by a little is ahead in all resamples, although the intervals overlap."""
    labels, scores = genome()
    worse = np.where(labels > 0.5, scores - 0.1, scores).astype(np.float32)
    cut = stretches_of(len(labels))
    good, bad = (resample(tally(labels, each), labels, each, cut).auprc for each in (scores, worse))
    assert interval(bad)[1] > interval(good)[0]
    assert ahead(good, bad) == 1.0
    assert ahead(good, good) == 0.5


def test_nothing_bound_or_a_single_stretch_has_no_interval() -> None:
    labels, scores = genome(100)
    none = np.zeros(100)
    assert np.isnan(interval(resample(tally(none, scores), none, scores, stretches_of(100)).auprc)).all()
    one = draw_stretches(np.zeros(1, int), np.zeros(1, int), 128)
    assert np.isnan(interval(resample(tally(labels, scores), labels, scores, one).auprc)).all()
    assert np.isnan(ahead(np.full(3, np.nan), np.ones(3)))
