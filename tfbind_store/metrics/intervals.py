"""How far scores would move on another genome like this one: a bootstrap over stretches of chromosomes.

Neighbouring bins share peaks, so they are drawn together, as stretches of 1 Mb (shorter on small genomes, longer where
there would be too many). Each stretch is counted once, at the scores of bound bins; a resample is then a weighted sum
of counts, and all resamples of one score are a matrix product. Every scorer of the same bins gets the same draws, so
that their differences are paired. numpy only.
"""

# r resamples · s stretches · t cut-offs · n bins

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from tfbind_store.metrics.ranking import Tallies, score_tallies

STRETCH_BP = 1_000_000
FEWEST, MOST = 50, 256
"""Stretches wanted where chromosomes are short, and allowed where they are long."""
N_RESAMPLES = 200
MAX_CUTOFFS = 2000
"""Of more distinct scores, evenly spread ones stand for all; resamples are moved by what that does to the score."""
_PERCENT = 95


class Stretches(NamedTuple):
    """Contiguous stretches of bins, and how often each resample draws each."""

    starts: Int64[np.ndarray, " s"]
    """First bin of each, ascending."""
    weights: Float64[np.ndarray, "r s"]


class Resamples(NamedTuple):
    """Scores of each resample; NaN where one has drawn no bound bin."""

    auroc: Float64[np.ndarray, " r"]
    auprc: Float64[np.ndarray, " r"]


def draw_stretches(
    chrom: Int64[np.ndarray, " n"], start_bp: Int64[np.ndarray, " n"], bin_bp: int, *, seed: int = 0
) -> Stretches:
    """Cut bins, in genome order, into stretches and draw the resamples, always the same ones for the same bins."""
    total_bp = len(chrom) * bin_bp
    stretch_bp = max(bin_bp, total_bp // MOST, min(STRETCH_BP, total_bp // FEWEST))
    key = start_bp // stretch_bp
    is_first = np.ones(len(chrom), dtype=bool)
    is_first[1:] = (chrom[1:] != chrom[:-1]) | (key[1:] != key[:-1])
    starts = np.flatnonzero(is_first)
    share = np.full(len(starts), 1 / max(1, len(starts)))
    weights = np.random.default_rng(seed).multinomial(len(starts), share, size=N_RESAMPLES)
    return Stretches(starts, weights.astype(np.float64))


def resample(
    calls: Tallies, labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], stretches: Stretches
) -> Resamples:
    """Return the scores of all resamples of the bins that `calls` counted."""
    if min(calls.n_positive, calls.n_negative) == 0 or len(stretches.starts) < 2:
        nothing = np.full(len(stretches.weights), np.nan)
        return Resamples(nothing, nothing)
    cutoffs, is_thinned = _few(calls)
    counted = _count(labels, scores, cutoffs, stretches.starts)
    weights = np.vstack([np.ones(len(stretches.starts)), stretches.weights])  # first, every stretch once
    true, false, above, n_bound, n_unbound = (weights @ part for part in counted)
    if is_thinned:  # scores between two cut-offs: the straight line between them
        above = np.concatenate([np.zeros_like(false[:, :1]), false[:, :-1]], axis=1)
    steps = np.diff(true, axis=1, prepend=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 0.0)
        auprc = (steps * precision).sum(axis=1) / n_bound
        auroc = (steps * (n_unbound[:, None] - (false + above) / 2)).sum(axis=1) / n_bound / n_unbound
    exact = score_tallies(calls)
    moved = (found[1:] + (score - found[0]) for found, score in ((auroc, exact.auroc), (auprc, exact.auprc)))
    return Resamples(*(np.clip(found, 0, 1) for found in moved))


def interval(resampled: Float64[np.ndarray, " r"]) -> tuple[float, float]:
    """Return the 95 % interval of resampled scores; NaN where there are none."""
    known = resampled[~np.isnan(resampled)]
    if len(known) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(100 - _PERCENT) / 200, (100 + _PERCENT) / 200])
    return float(low), float(high)


def ahead(first: Float64[np.ndarray, " r"], second: Float64[np.ndarray, " r"]) -> float:
    """Return the share of resamples in which `first` is higher, ties counted half; NaN where none compares."""
    known = ~np.isnan(first) & ~np.isnan(second)
    if not known.any():
        return float("nan")
    return float(np.mean((first > second)[known]) + np.mean((first == second)[known]) / 2)


def _few(calls: Tallies) -> tuple[Float[np.ndarray, " t"], bool]:
    """Return cut-offs from the highest down, and whether some were left out; the lowest always stays."""
    n = len(calls.cutoffs)
    if n <= MAX_CUTOFFS:
        return calls.cutoffs, False
    return calls.cutoffs[np.linspace(0, n - 1, MAX_CUTOFFS).astype(np.int64)], True


def _count(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    cutoffs: Float[np.ndarray, " t"],
    starts: Int64[np.ndarray, " s"],
) -> tuple[Float64[np.ndarray, "s t"], ...]:
    """Return of each stretch: bound and unbound bins at or above each cut-off, unbound above it, and both in all."""
    true, false, above = (np.zeros((len(starts), len(cutoffs))) for _ in range(3))
    n_bound, n_unbound = np.zeros(len(starts)), np.zeros(len(starts))
    for row, (begin, end) in enumerate(zip(starts, np.append(starts[1:], len(scores)), strict=True)):
        part, values = labels[begin:end], np.asarray(scores[begin:end])
        bound, unbound = np.sort(values[part > 0.5]), np.sort(values[part <= 0.5])
        n_bound[row], n_unbound[row] = len(bound), len(unbound)
        if len(bound):
            true[row] = len(bound) - np.searchsorted(bound, cutoffs, side="left")
        false[row] = len(unbound) - np.searchsorted(unbound, cutoffs, side="left")
        above[row] = len(unbound) - np.searchsorted(unbound, cutoffs, side="right")
    return true, false, above, n_bound, n_unbound
