"""How well scores rank bound bins: exact numbers, ties counted right.

Labels are 1, 0 or NaN (left out). All scores of a tie enter together, so that the order of the rows means nothing.
numpy only; whoever scores factors, chromosomes or baselines calls this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

FDR_PERCENTS = (5, 10, 25, 50)


class BinaryScores(NamedTuple):
    """Ranking quality of one set of scores; NaN where a number needs what is not there."""

    n_bins: int
    """Labelled bins."""
    n_positive: int
    prevalence: float
    auroc: float
    auprc: float
    """Average precision: the step-wise area under precision against recall, as scikit-learn defines it."""
    auprc_over_prevalence: float
    recall_at_fdr_5: float
    """Largest share of the bound bins that some cut-off finds with at most 5 % false ones among what it calls."""
    recall_at_fdr_10: float
    recall_at_fdr_25: float
    recall_at_fdr_50: float


class Thresholds(NamedTuple):
    """True and false calls at each distinct score, from the highest down."""

    true_calls: Float[np.ndarray, " t"]
    false_calls: Float[np.ndarray, " t"]


def thresholds(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Thresholds:
    """Count the calls that each distinct score, taken as cut-off, makes."""
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true_calls = np.cumsum(labels[order], dtype=np.int64)[last_of_tie].astype(np.float64)
    return Thresholds(true_calls, last_of_tie + 1.0 - true_calls)


def score_binary(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> BinaryScores:
    """Return all numbers for one set of labels and scores.

    Examples
    --------
    >>> score_binary(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.1, 0.4, 0.35, 0.8])).auroc
    0.75
    """
    labelled = ~np.isnan(labels)
    truth, values = labels[labelled] > 0.5, np.asarray(scores)[labelled]
    n_bins, n_positive = len(truth), int(truth.sum())
    prevalence = n_positive / n_bins if n_bins else float("nan")
    if n_positive == 0:
        return BinaryScores(n_bins, 0, prevalence, *[float("nan")] * 7)
    if np.isnan(values).any():
        raise ValueError("scores hold NaN: a bin without a score cannot be ranked")
    calls = thresholds(truth, values)
    precision = calls.true_calls / (calls.true_calls + calls.false_calls)
    recall = calls.true_calls / n_positive
    auprc = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    at_fdr = [float(recall[precision >= 1 - percent / 100].max(initial=0.0)) for percent in FDR_PERCENTS]
    return BinaryScores(n_bins, n_positive, prevalence, _auroc(calls), auprc, auprc / prevalence, *at_fdr)


def _auroc(calls: Thresholds) -> float:
    n_positive, n_negative = calls.true_calls[-1], calls.false_calls[-1]
    if n_negative == 0:
        return float("nan")
    true_rate = np.concatenate([[0.0], calls.true_calls / n_positive])
    false_rate = np.concatenate([[0.0], calls.false_calls / n_negative])
    return float(np.trapezoid(true_rate, false_rate))
