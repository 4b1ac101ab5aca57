import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from tfbind_store.metrics.ranking import score_binary


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60))
def test_equals_scikit_learn_on_tied_scores(pairs):
    labels = np.array([label for label, _ in pairs], float)
    scores = np.array([score for _, score in pairs], float)
    if labels.min() == labels.max():
        return
    got = score_binary(labels, scores)
    assert got.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert got.auprc == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    for percent in (5, 10, 25, 50):
        expected = recall[:-1][precision[:-1] >= 1 - percent / 100 - 1e-12].max(initial=0)
        assert getattr(got, f"recall_at_fdr_{percent}") == pytest.approx(expected, abs=1e-12)
    assert got.precision_at_recall_5 == pytest.approx(precision[:-1][recall[:-1] >= 0.05].max(), abs=1e-12)
    f1 = [f1_score(labels, scores >= cutoff) for cutoff in np.unique(scores)]
    assert got.f1_best == pytest.approx(max(f1), abs=1e-12)
    assert f1_score(labels, scores >= got.f1_cutoff) == pytest.approx(max(f1), abs=1e-12)


def test_equals_scikit_learn_on_many_bins():
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.003).astype(float)
    scores = rng.normal(size=20_000).astype(np.float32) + labels
    got = score_binary(labels, scores)
    assert got.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert got.auprc == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert got.recall_at_fdr_50 == recall[precision >= 0.5].max()
    assert got.auprc_over_prevalence == pytest.approx(got.auprc / labels.mean())


def test_recall_at_fdr_by_hand():
    #                  1 true, then 1 false, then 2 true: precision 1, 1/2, 2/3, 3/4
    got = score_binary(np.array([1.0, 0.0, 1.0, 1.0, 0.0]), np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert (got.recall_at_fdr_5, got.recall_at_fdr_10) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (got.recall_at_fdr_25, got.recall_at_fdr_50) == (1.0, 1.0)


def test_no_cutoff_pure_enough_recalls_nothing():
    assert score_binary(np.array([0.0, 1.0]), np.array([2.0, 1.0])).recall_at_fdr_25 == 0.0


def test_order_of_tied_rows_means_nothing():
    labels, scores = np.array([1.0, 0.0, 0.0, 1.0]), np.zeros(4)
    assert score_binary(labels, scores) == score_binary(labels[::-1].copy(), scores)
    assert score_binary(labels, scores).auroc == 0.5


def test_unlabelled_bins_are_left_out():
    labels, scores = np.array([1.0, np.nan, 0.0]), np.array([0.5, 9.0, 0.1])
    got = score_binary(labels, scores)
    assert (got.n_bins, got.n_positive, got.auroc) == (2, 1, 1.0)


def test_no_positive_has_a_prevalence_and_nothing_else():
    got = score_binary(np.zeros(3), np.arange(3.0))
    assert (got.n_bins, got.prevalence) == (3, 0.0)
    assert np.isnan([got.auroc, got.auprc, got.recall_at_fdr_5]).all()


def test_only_positives_have_no_auroc():
    got = score_binary(np.ones(3), np.arange(3.0))
    assert np.isnan(got.auroc)
    assert got.auprc == 1.0


def test_missing_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        score_binary(np.array([1.0, 0.0]), np.array([np.nan, 0.0]))


def test_scores_may_be_infinite_and_zeros_have_no_sign():
    labels = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    got = score_binary(labels, np.array([np.inf, 0.0, -0.0, 0.0, -np.inf]))
    assert got.auroc == pytest.approx((3 + 2) / 6)


def test_memory_beside_labels_and_scores_is_less_than_they_take():
    rng = np.random.default_rng(0)
    labels = (rng.random(4_000_000) < 0.003).astype(np.float32)
    scores = rng.normal(size=len(labels)).astype(np.float32)
    tracemalloc.start()
    try:
        score_binary(labels, scores)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(labels)
    finally:
        tracemalloc.stop()


MANY = """
import resource, sys
import numpy as np
from tfbind_store.metrics.ranking import score_binary
rng = np.random.default_rng(0)
n, share = 100_000_000, float(sys.argv[1])
scores, labels = rng.standard_normal(n, dtype=np.float32), np.empty(n, dtype=np.float32)
for at in range(0, n, 1_000_000):
    labels[at : at + 1_000_000] = rng.random(1_000_000, dtype=np.float32) < share
    scores[at : at + 1_000_000] += labels[at : at + 1_000_000]
got = score_binary(labels, scores)
print(got.auroc, got.n_bins, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.003, 0.1])
def test_a_hundred_million_bins_fit_in_4_gib(share):
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(share)], capture_output=True, text=True, timeout=600, check=True
    )
    auroc, n_bins, peak_kib = map(float, done.stdout.split())
    assert n_bins == 1e8
    assert auroc == pytest.approx(0.7602, abs=0.002)  # of two normals, one apart: Phi(1 / sqrt(2))
    assert peak_kib < 4 * 1024**2
