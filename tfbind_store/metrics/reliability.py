"""Whether probabilities are right: Brier score, accuracy at a cut-off, and predicted beside observed share.

Labels are 1, 0 or NaN (left out). How a head's numbers become probabilities depends on what it was trained to make
small: under the squared error the number itself is the probability, under cross-entropy it is a logit. numpy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

EDGES = np.concatenate([[0.0], np.logspace(-4, -1, 10), np.linspace(0.2, 1, 9)])
"""Bins of probability: of equal width above 0.1, of equal ratio below, where nearly all bins of a genome are."""


class ProbabilityScores(NamedTuple):
    """How right some probabilities are; NaN without labelled bins."""

    brier: float
    """Mean squared difference from the label."""
    accuracy: float
    """Share of bins on the right side of the cut-off. At genome-like prevalence calling nothing reaches 0.99."""
    calibration_error: float
    """Mean difference between predicted and observed share, over bins of probability, weighted by what is in them."""


class Reliability(NamedTuple):
    """Predicted beside observed share, by bin of probability between neighbours of `EDGES`; counts add up."""

    n: Int64[np.ndarray, " b"]
    n_bound: Int64[np.ndarray, " b"]
    predicted: Float64[np.ndarray, " b"]
    """Sum of the probabilities."""

    def plus(self, other: Reliability) -> Reliability:
        """Return both together."""
        return Reliability(self.n + other.n, self.n_bound + other.n_bound, self.predicted + other.predicted)


def probabilities(scores: Float[np.ndarray, "*shape"], loss: str) -> Float[np.ndarray, "*shape"]:
    """Return a head's own probabilities, by the kind of loss that it was trained with (``bce``, ``focal``, ``mse``).

    Examples
    --------
    >>> probabilities(np.array([-0.5, 0.25, 1.5]), "mse").tolist()
    [0.0, 0.25, 1.0]
    """
    values = np.asarray(scores)
    if loss == "mse":
        return np.asarray(np.clip(values, 0, 1))
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)), dtype=values.dtype)


def score_probabilities(
    labels: Float[np.ndarray, " n"], probability: Float[np.ndarray, " n"], *, cutoff: float = 0.5
) -> ProbabilityScores:
    """Return how right probabilities are; a bin at the cut-off counts as called."""
    known = ~np.isnan(labels)
    truth, said = labels[known] > 0.5, np.asarray(probability)[known]
    if not len(truth):
        return ProbabilityScores(float("nan"), float("nan"), float("nan"))
    off = truth - said.astype(np.float64)
    brier = float(np.mean(np.square(off)))
    found = reliability(labels, probability)
    gaps = np.abs(found.n_bound - found.predicted).sum() / found.n.sum()
    return ProbabilityScores(brier, float(np.mean((said >= cutoff) == truth)), float(gaps))


def reliability(labels: Float[np.ndarray, " n"], probability: Float[np.ndarray, " n"]) -> Reliability:
    """Return how many bins have which probability, and how many of them are bound."""
    known = ~np.isnan(labels)
    truth, said = labels[known] > 0.5, np.asarray(probability, dtype=np.float64)[known]
    n_bins = len(EDGES) - 1
    place = np.clip(np.searchsorted(EDGES, said, side="right") - 1, 0, n_bins - 1)
    return Reliability(
        np.bincount(place, minlength=n_bins),
        np.bincount(place[truth], minlength=n_bins),
        np.bincount(place, weights=said, minlength=n_bins),
    )
