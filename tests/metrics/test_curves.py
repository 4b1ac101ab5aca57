"""Curves against scikit-learn and literal cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from tfbind_store.metrics.curves import PLACES, MeanCurves, experiment_curves
from tfbind_store.metrics.ranking import tally


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "no ties"])
def test_curves_are_those_of_scikit_learn(digits: int) -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(500) < 0.2).astype(float)
    scores = (labels + rng.normal(size=500)).round(digits)
    found = experiment_curves(tally(labels, scores))
    precision, recall, _ = precision_recall_curve(labels, scores)
    expected = [max(p for p, r in zip(precision[:-1], recall[:-1], strict=True) if r >= x - 1e-12) for x in PLACES]
    np.testing.assert_allclose(found.precision, expected)
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    # where the curve is vertical both the lower and the upper end are right: look beside those places
    places = ~np.isin(PLACES.round(9), false_rate.round(9))
    np.testing.assert_allclose(found.recall[places], np.interp(PLACES, false_rate, true_rate)[places])


def test_bins_without_a_label_are_left_out() -> None:
    labels, scores = np.array([1.0, np.nan, 0.0]), np.array([2.0, 9.0, 1.0])
    assert experiment_curves(tally(labels, scores)).precision.tolist() == [1.0] * len(PLACES)


class TestMeanCurves:
    def test_the_mean_counts_each_experiment_once(self) -> None:
        labels = np.array([1.0] * 20 + [0.0] * 20)
        curves = MeanCurves()
        curves.add("seen", "model", tally(labels, labels))
        curves.add("seen", "model", tally(labels, np.zeros(40)))
        columns = curves.columns()
        assert set(columns["n_experiments"]) == {2}
        precision = [y for curve, y in zip(columns["curve"], columns["y"], strict=True) if curve == "pr"]
        assert precision == [0.75] * len(PLACES)

    def test_an_experiment_with_few_positives_is_passed_over(self) -> None:
        curves = MeanCurves()
        curves.add("seen", "model", tally(np.array([1.0, 0.0]), np.array([1.0, 0.0])))
        assert curves.columns()["x"] == []
