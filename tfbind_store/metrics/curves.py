"""Precision-recall and ROC curves, as means over experiments at fixed places, small enough to keep.

One curve per kind of hold-out and scorer; each experiment with enough bound bins counts the same. Exact with ties: all
bins of one score are called together. numpy only; ``evaluate`` adds, ``report`` draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tfbind_store.metrics.ranking import Tallies
from tfbind_store.metrics.summary import LEAST_POSITIVES

PLACES = np.linspace(0, 1, 101)
"""Recalls at which precision is read, and false positive rates at which recall is."""


class ExperimentCurves(NamedTuple):
    """The curves of one set of scores at `PLACES`."""

    precision: Float[np.ndarray, " p"]
    """The best precision at this recall or a higher one."""
    recall: Float[np.ndarray, " p"]
    """The share of bound bins found at this false positive rate."""


def experiment_curves(calls: Tallies) -> ExperimentCurves:
    """Return the curves of counted calls.

    Examples
    --------
    >>> from tfbind_store.metrics.ranking import tally
    >>> calls = tally(np.array([1.0, 0.0, 1.0, 0.0]), np.array([4.0, 3.0, 2.0, 1.0]))
    >>> experiment_curves(calls).precision[[0, 50, 100]].round(3).tolist()
    [1.0, 1.0, 0.667]
    """
    assert min(calls.n_positive, calls.n_negative) > 0, "a curve needs bins of both kinds"
    recall = calls.recall
    best_from_here_on = np.maximum.accumulate(calls.precision[::-1])[::-1]
    at = np.searchsorted(recall, PLACES - 1e-12)
    # Each cut-off goes from what lies above it to what it calls; between cut-offs only unbound bins are added.
    false_rate = np.stack([calls.false_above, calls.false_calls], axis=1).reshape(-1) / calls.n_negative
    found = np.stack([recall - calls.steps / calls.n_positive, recall], axis=1).reshape(-1)
    corners = np.concatenate([[0.0], false_rate, [1.0]]), np.concatenate([[0.0], found, [1.0]])
    return ExperimentCurves(best_from_here_on[at], np.interp(PLACES, *corners))


class MeanCurves:
    """Collects the curves of many experiments."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[int, np.ndarray]] = {}

    def add(self, holdout: str, scorer: str, calls: Tallies) -> None:
        """Add one experiment; one with too few bound bins, or no unbound one, is passed over."""
        if calls.n_positive < LEAST_POSITIVES or calls.n_negative == 0:
            return
        number, total = self._sums.get((holdout, scorer), (0, np.zeros((2, len(PLACES)))))
        self._sums[holdout, scorer] = (number + 1, total + np.stack(experiment_curves(calls)))

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of ``curves.parquet``: curve (pr or roc), holdout, scorer, n_experiments, x, y."""
        found: dict[str, list[Any]] = {name: [] for name in ("curve", "holdout", "scorer", "n_experiments", "x", "y")}
        for (holdout, scorer), (number, total) in self._sums.items():
            for curve, values in zip(("pr", "roc"), total / number, strict=True):
                for x, y in zip(PLACES.tolist(), values.tolist(), strict=True):
                    for name, value in zip(found, (curve, holdout, scorer, number, x, y), strict=True):
                        found[name].append(value)
        return found
