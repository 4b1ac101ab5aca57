"""How well predicted tracks follow measured ones: correlations over bins and over tracks, NaN left out. numpy only."""

# n bins · t tracks

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64


class TrackScores(NamedTuple):
    """Correlations of predictions with measurements; NaN where fewer than two values differ."""

    pearson_over_bins: Float64[np.ndarray, " t"]
    """Of each track, along the genome."""
    spearman_over_bins: Float64[np.ndarray, " t"]
    pearson_over_tracks: float
    """Mean over bins of the correlation across tracks, each track centred on its own mean: what is specific to a track
    at a bin. NaN with fewer than two tracks."""
    n_values: int


def score_tracks(predicted: Float[np.ndarray, "n t"], measured: Float[np.ndarray, "n t"]) -> TrackScores:
    """Compare predicted with measured tracks; values that are NaN in either are left out."""
    x = np.asarray(predicted, dtype=np.float64)
    y = np.asarray(measured, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    n_tracks = x.shape[1]
    over_bins = np.array([pearson(x[known[:, t], t], y[known[:, t], t]) for t in range(n_tracks)])
    ranks = np.array([spearman(x[known[:, t], t], y[known[:, t], t]) for t in range(n_tracks)])
    return TrackScores(over_bins, ranks, _over_tracks(x, y, known), int(known.sum()))


def pearson(x: Float64[np.ndarray, " k"], y: Float64[np.ndarray, " k"]) -> float:
    """Return Pearson's correlation; NaN where one side does not vary.

    Examples
    --------
    >>> pearson(np.array([1.0, 2, 3]), np.array([2.0, 4, 6]))
    1.0
    """
    if len(x) < 2:
        return float("nan")
    dx, dy = x - x.mean(), y - y.mean()
    scale = np.sqrt((dx @ dx) * (dy @ dy))
    return float(np.clip(dx @ dy / scale, -1, 1)) if scale > 0 else float("nan")


def spearman(x: Float64[np.ndarray, " k"], y: Float64[np.ndarray, " k"]) -> float:
    """Return Spearman's correlation, ties by their mean rank."""
    return pearson(_ranks(x), _ranks(y)) if len(x) > 1 else float("nan")


def _ranks(x: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Return the rank of each value, from 1; those of a tie all get their mean."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(((ends - counts + 1 + ends) / 2)[which], dtype=np.float64)


def _over_tracks(x: Float64[np.ndarray, "n t"], y: Float64[np.ndarray, "n t"], known: np.ndarray) -> float:
    if x.shape[1] < 2 or not known.any():
        return float("nan")
    counts = np.maximum(known.sum(axis=0), 1)
    x, y = (np.where(known, side - np.where(known, side, 0).sum(axis=0) / counts, 0) for side in (x, y))
    n = np.maximum(known.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(known, side - side.sum(axis=1, keepdims=True) / n, 0) for side in (x, y))
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    good = (scale > 0) & (known.sum(axis=1) > 1)
    return float(((x * y).sum(axis=1)[good] / scale[good]).mean()) if good.any() else float("nan")
