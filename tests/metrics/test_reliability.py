"""Probabilities against scikit-learn and literal cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss

from tfbind_store.metrics.reliability import EDGES, probabilities, reliability, score_probabilities


def cells(n: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    said = rng.random(n) ** 3
    return (rng.random(n) < said).astype(float), said


@pytest.mark.parametrize("cutoff", [0.5, 0.1])
def test_brier_and_accuracy_are_those_of_scikit_learn(cutoff: float) -> None:
    labels, said = cells()
    got = score_probabilities(labels, said, cutoff=cutoff)
    assert got.brier == pytest.approx(brier_score_loss(labels, said), abs=1e-12)
    assert got.accuracy == pytest.approx(accuracy_score(labels, said >= cutoff), abs=1e-12)


def test_float32_is_read_as_what_it_is() -> None:
    labels, said = cells()
    narrow = said.astype(np.float32)
    wide = brier_score_loss(labels, narrow.astype(np.float64))
    assert score_probabilities(labels, narrow).brier == pytest.approx(wide, abs=1e-15)
    assert score_probabilities(np.ones(1), np.array([0.7], dtype=np.float32), cutoff=0.7).accuracy == 1


def test_right_probabilities_lie_on_the_diagonal_and_wrong_ones_do_not() -> None:
    labels, said = cells(200_000)
    assert score_probabilities(labels, said).calibration_error < 0.01
    assert score_probabilities(labels, said / 3).calibration_error > 0.1


def test_bins_of_probability_hold_every_labelled_bin_once() -> None:
    labels, said = cells()
    labels[:7], said[7:9] = np.nan, (0.0, 1.0)
    found = reliability(labels, said)
    assert found.n.sum() == len(labels) - 7
    assert found.n_bound.sum() == np.nansum(labels)
    inside = found.n > 0
    mean = found.predicted[inside] / found.n[inside]
    assert (mean >= EDGES[:-1][inside]).all()
    assert (mean <= EDGES[1:][inside]).all()
    twice = found.plus(found)
    assert twice.n.tolist() == (2 * found.n).tolist()


def test_a_perfect_model_trained_on_squared_errors_is_perfectly_accurate() -> None:
    """Thresholding sigmoid(output) at one half would call every bin bound: sigmoid(0) is one half."""
    labels = np.array([1.0, 0.0, 0.0, 1.0])
    got = score_probabilities(labels, probabilities(labels, "mse"))
    assert (got.accuracy, got.brier) == (1.0, 0.0)
    assert score_probabilities(labels, probabilities(labels, "bce")).accuracy == 0.5


def test_logits_of_any_size_are_probabilities() -> None:
    assert probabilities(np.array([-1e4, 0.0, 1e4]), "bce").tolist() == [0.0, 0.5, 1.0]


def test_nothing_labelled_scores_nothing() -> None:
    assert np.isnan(score_probabilities(np.array([np.nan]), np.array([0.5]))).all()
