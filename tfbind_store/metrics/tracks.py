"""How well predicted tracks follow measured ones: correlations over bins and over tracks, NaN left out. numpy only.

`TrackJudge` takes any number of bins in constant memory: Pearson over bins is of all of them, what needs all numbers at
once (ranks, and centring before tracks are compared) of an even sample.
"""

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


class TrackJudge:
    """Scores predictions that come block by block.

    Parameters
    ----------
    n_bins
        That will come, or more.
    n_tracks
        In every block.
    max_cells
        Bins times tracks that are kept for ranks and for comparing tracks: 8 bytes each.

    Examples
    --------
    >>> judge = TrackJudge(3, 1)
    >>> judge.add(np.array([[1.0], [2], [3]]), np.array([[2.0], [4], [6]]))
    >>> judge.scores().pearson_over_bins.tolist()
    [1.0]
    """

    def __init__(self, n_bins: int, n_tracks: int, *, max_cells: int = 20_000_000) -> None:
        self._every = max(1, -(-n_bins * n_tracks // max_cells))
        self._seen, self._kept = 0, list[tuple[np.ndarray, np.ndarray]]()
        self._n = np.zeros(n_tracks, dtype=np.int64)
        self._means = np.zeros((2, n_tracks))
        self._squares = np.zeros((3, n_tracks))
        """Sums of squared deviations of what is predicted, of what is measured, and of their product."""

    def add(self, predicted: Float[np.ndarray, "n t"], measured: Float[np.ndarray, "n t"]) -> None:
        """Take a block of bins."""
        x, y = (np.asarray(side, dtype=np.float64) for side in (predicted, measured))
        places = slice(-self._seen % self._every, None, self._every)
        self._kept.append((x[places].astype(np.float32), y[places].astype(np.float32)))
        self._seen += len(x)
        known = np.isfinite(x) & np.isfinite(y)
        n = known.sum(axis=0)
        means = np.stack([np.where(known, side, 0).sum(axis=0) / np.maximum(n, 1) for side in (x, y)])
        dx, dy = (np.where(known, side - mean, 0) for side, mean in zip((x, y), means, strict=True))
        squares = np.stack([(dx * dx).sum(axis=0), (dy * dy).sum(axis=0), (dx * dy).sum(axis=0)])
        total, apart = np.maximum(self._n + n, 1), means - self._means
        between = np.stack([apart[0] * apart[0], apart[1] * apart[1], apart[0] * apart[1]])
        self._squares += squares + between * (self._n * n / total)
        self._means += apart * (n / total)
        self._n += n

    def scores(self) -> TrackScores:
        """Return the scores of all bins so far."""
        # sums of squares that are only rounding are those of a track that does not vary
        varies = (self._squares[:2] > 1e-24 * self._n * self._means**2).all(axis=0)
        scale = np.sqrt(np.where(varies, self._squares[0] * self._squares[1], 1.0))
        over_bins = np.where(varies, np.clip(self._squares[2] / scale, -1, 1), np.nan)
        n_tracks = len(self._n)
        x, y = (np.concatenate([np.empty((0, n_tracks)), *(kept[side] for kept in self._kept)]) for side in (0, 1))
        sample = score_tracks(x, y)
        return sample._replace(pearson_over_bins=over_bins, n_values=int(self._n.sum()))


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
    # the mean of equal numbers need not be that number, so that they would seem to vary
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
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
