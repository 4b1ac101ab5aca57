"""How well scores rank bound bins: exact numbers, ties counted right.

Labels are 1, 0 or NaN (left out). All scores of a tie enter together, so that the order of the rows means nothing.
Every number follows from how many bins lie at or above each distinct score of a *bound* bin: between two of those,
recall stands still and precision falls. So bound and unbound bins are each sorted where they lie, and nothing else as
long as the genome is made: 100 M bins take less than 1 GiB beside their scores and labels.
numpy only; whoever scores factors, chromosomes or baselines calls this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

FDR_PERCENTS = (5, 10, 25, 50)
LEAST_RECALL = 0.05
_ALMOST = 1e-12  # a recall or precision that is only rounded below its level counts


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
    precision_at_recall_5: float
    """Best precision of a cut-off that finds at least 5 % of the bound bins."""
    f1_best: float
    """Highest harmonic mean of precision and recall."""
    f1_cutoff: float
    """The score at and above which calling reaches it."""


class Tallies(NamedTuple):
    """What each distinct score of a bound bin calls when it is the cut-off, from the highest score down."""

    cutoffs: Float[np.ndarray, " t"]
    true_calls: Int64[np.ndarray, " t"]
    """Bound bins at or above the cut-off."""
    false_calls: Int64[np.ndarray, " t"]
    """Unbound bins at or above it."""
    false_above: Int64[np.ndarray, " t"]
    """Unbound bins above it: the difference ties with bound ones."""
    n_positive: int
    n_negative: int

    @property
    def recall(self) -> Float[np.ndarray, " t"]:
        """Share of the bound bins that each cut-off finds."""
        return np.asarray(self.true_calls / self.n_positive)

    @property
    def precision(self) -> Float[np.ndarray, " t"]:
        """Share of its calls that are bound."""
        return np.asarray(self.true_calls / (self.true_calls + self.false_calls))

    @property
    def steps(self) -> Int64[np.ndarray, " t"]:
        """Bound bins that have exactly this score."""
        steps: Int64[np.ndarray, " t"] = np.diff(self.true_calls, prepend=0)
        return steps


def tally(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Tallies:
    """Count the calls at each distinct score of a bound bin; bins whose label is NaN are left out.

    Raises
    ------
    ValueError
        If a labelled bin has no score.
    """
    values = np.asarray(scores)
    bound, unbound = values[labels > 0.5], values[labels <= 0.5]
    for part in (bound, unbound):
        part.sort()
        if len(part) and np.isnan(part[-1]):  # sorting puts them last
            raise ValueError("scores hold NaN: a bin without a score cannot be ranked")
    first_of_tie = np.flatnonzero(np.append(True, bound[1:] != bound[:-1]))[::-1] if len(bound) else np.empty(0, int)
    cutoffs = bound[first_of_tie]
    at_or_above = len(unbound) - np.searchsorted(unbound, cutoffs, side="left")
    above = len(unbound) - np.searchsorted(unbound, cutoffs, side="right")
    return Tallies(cutoffs, len(bound) - first_of_tie, at_or_above, above, len(bound), len(unbound))


def score_binary(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> BinaryScores:
    """Return all numbers for one set of labels and scores.

    Examples
    --------
    >>> score_binary(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.1, 0.4, 0.35, 0.8])).auroc
    0.75
    """
    return score_tallies(tally(labels, scores))


def score_tallies(calls: Tallies) -> BinaryScores:
    """Return all numbers from counted calls."""
    n_bins = calls.n_positive + calls.n_negative
    prevalence = calls.n_positive / n_bins if n_bins else float("nan")
    if calls.n_positive == 0:
        return BinaryScores(n_bins, 0, prevalence, *[float("nan")] * 10)
    precision, recall = calls.precision, calls.recall
    auprc = float(calls.steps @ precision) / calls.n_positive
    at_fdr = [float(recall[precision >= 1 - percent / 100 - _ALMOST].max(initial=0.0)) for percent in FDR_PERCENTS]
    f1 = 2 * calls.true_calls / (calls.true_calls + calls.false_calls + calls.n_positive)
    best = int(f1.argmax())
    return BinaryScores(
        n_bins,
        calls.n_positive,
        prevalence,
        auroc(calls),
        auprc,
        auprc / prevalence,
        recall_at_fdr_5=at_fdr[0],
        recall_at_fdr_10=at_fdr[1],
        recall_at_fdr_25=at_fdr[2],
        recall_at_fdr_50=at_fdr[3],
        precision_at_recall_5=float(precision[recall >= LEAST_RECALL - _ALMOST].max()),
        f1_best=float(f1[best]),
        f1_cutoff=float(calls.cutoffs[best]),
    )


def auroc(calls: Tallies) -> float:
    """Return the chance that a bound bin scores above an unbound one, ties counted half; NaN without both kinds."""
    if calls.n_negative == 0 or calls.n_positive == 0:
        return float("nan")
    below = calls.n_negative - (calls.false_calls + calls.false_above) / 2
    return float(calls.steps @ below) / calls.n_positive / calls.n_negative
