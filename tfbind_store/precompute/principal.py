"""Find the axes of the largest variance of a stored array, from bins drawn with a seed, and turn them evenly.

Heads bring every channel to unit variance. On plain principal axes that blows up the smallest ones, which are mostly
noise: on yeast 64 axes, and still more 128, trained worse than all 384 channels. So the axes are turned within the
space that they span until each carries the same variance: nothing else changes, what is lost least of all.

Sums are gathered some thousand bins at a time, so that memory holds those and one square of channels, however large
the sample. They are taken about the first bins' mean and in float64: the variance of a channel that is large and nearly
constant does not drown in rounding. The same bins in the same order give the same axes on one machine; another BLAS may
differ in the last digits, which is why axes are stored and never fitted again for an array that is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.arrays.transforms import Pca
from tfbind_store.errors import ConfigError

MAX_CHECKED = 16
"""Windows kept from the fit, to measure on."""
MAX_WINDOWS = 2048
"""Windows that bins are drawn from, at most: each is read whole, since its hash is checked."""
BATCH_BINS = 2048
"""Bins whose products are summed at once: a square of 3,072 channels is 75 MB, not to be written for every few bins."""


class Fit(NamedTuple):
    """Axes, and what they were found on."""

    axes: Pca
    n_bins: int


def split_windows(
    windows: Int64[np.ndarray, " n"], *, seed: int
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Return the windows to fit on and those to measure on: a fifth, 16 at most; a single window is both."""
    n_checked = min(MAX_CHECKED, len(windows) // 5)
    if len(windows) == 1:
        return windows, windows
    order = np.random.default_rng([seed, 0]).permutation(windows)
    n_checked = max(1, n_checked)
    return np.sort(order[n_checked:]), np.sort(order[:n_checked])


def fit_axes(source: ShardedArray, windows: Int64[np.ndarray, " n"], dim: int, *, n_bins: int, seed: int) -> Fit:
    """Return `dim` axes that span the directions of the largest variance, each carrying the same share of it.

    Parameters
    ----------
    source
        The array.
    windows
        Windows to draw from; all are there.
    dim
        Axes wanted.
    n_bins
        Bins to draw, at most; spread evenly over the windows, or over as many windows as there are bins, or over
        `MAX_WINDOWS` of them.
    seed
        Decides which.

    Raises
    ------
    ConfigError
        If fewer bins than axes can be drawn.
    """
    rng = np.random.default_rng([seed, 1])
    per_window = source.shape[1]
    if len(windows) > MAX_WINDOWS:
        windows = np.sort(rng.choice(windows, MAX_WINDOWS, replace=False))
    n_drawn = min(n_bins, per_window * len(windows))
    if n_drawn <= dim:
        what = f"{n_drawn:,} bins cannot give {dim} axes"
        raise ConfigError(what, where="project", fix="draw more bins, embed more windows, or keep fewer axes")
    if n_drawn < len(windows):
        windows = np.sort(rng.choice(windows, n_drawn, replace=False))
    counts = np.full(len(windows), n_drawn // len(windows))
    counts[rng.permutation(len(windows))[: n_drawn % len(windows)]] += 1
    drawn = [
        window * per_window + np.sort(rng.choice(per_window, count, replace=False))
        for window, count in zip(windows.tolist(), counts.tolist(), strict=True)
    ]
    bins, sums = np.concatenate(drawn), _Sums(source.shape[-1])
    for at in range(0, n_drawn, BATCH_BINS):
        sums.add(source.gather_bins(bins[at : at + BATCH_BINS])[:, 0].astype(np.float64))
    return Fit(_largest(sums, dim), n_drawn)


class _Sums:
    """What a covariance needs of rows that come in parts."""

    def __init__(self, channels: int) -> None:
        self.n = 0
        self.origin: Float64[np.ndarray, " c"] | None = None
        self.first = np.zeros(channels)
        self.second = np.zeros((channels, channels))

    def add(self, rows: Float64[np.ndarray, "n c"]) -> None:
        """Count rows."""
        if self.origin is None:
            self.origin = rows.mean(axis=0)
        rows = rows - self.origin
        self.n += len(rows)
        self.first += rows.sum(axis=0)
        self.second += rows.T @ rows


def _largest(sums: _Sums, dim: int) -> Pca:
    assert sums.origin is not None, "no rows were drawn"
    mean = sums.first / sums.n
    covariance = sums.second / sums.n - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    kept, total = np.maximum(values[::-1][:dim], 0), np.maximum(values, 0).sum()
    axes = evened(vectors[:, ::-1][:, :dim].T, kept)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(largest < 0, -1.0, 1.0)  # an axis has no direction of its own: its largest part is positive
    share = kept / total if total > 0 else np.zeros(dim)
    return Pca(*(part.astype(np.float32) for part in (sums.origin + mean, axes, share)))


def evened(axes: Float64[np.ndarray, "d c"], variance: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, "d c"]:
    """Turn principal axes within the space that they span, so that each carries the same variance.

    Parameters
    ----------
    axes
        Orthonormal rows, uncorrelated on the sample.
    variance
        Along each.

    Notes
    -----
    Turning the axis with the least and the one with the most variance in their plane gives the first the mean exactly;
    it is done then, and one axis fewer is left. So is Horn's theorem on the diagonals of rotated matrices proved (Horn
    1954, American Journal of Mathematics 76).
    """
    axes, covariance = axes.copy(), np.diag(variance).astype(np.float64)
    mean, left = float(variance.mean()), list(range(len(variance)))
    while len(left) > 1:
        diagonal = covariance.diagonal()[left]
        low, high = left[int(diagonal.argmin())], left[int(diagonal.argmax())]
        if diagonal.max() - diagonal.min() <= 1e-12 * mean:
            break
        above, both = covariance[high, high] - mean, covariance[low, high]
        tangent = (-both + np.sqrt(both**2 + above * (mean - covariance[low, low]))) / above
        turn = np.array([[1, tangent], [-tangent, 1]]) / np.hypot(1, tangent)
        pair = [low, high]
        axes[pair] = turn @ axes[pair]
        covariance[pair] = turn @ covariance[pair]
        covariance[:, pair] = covariance[:, pair] @ turn.T
        left.remove(low)
    return axes


def reconstruction_rms(pairs: Iterable[tuple[Float32[np.ndarray, "n c"], Float32[np.ndarray, "n c"]]]) -> float:
    """Return the root mean square of what the second of each pair lacks, as a share of the first's own.

    Examples
    --------
    >>> reconstruction_rms([(np.array([[3.0, 4.0]]), np.array([[3.0, 1.0]]))])
    0.6
    """
    lost = total = 0.0
    for values, kept in pairs:
        lost += float(np.square(values.astype(np.float64) - kept).sum())
        total += float(np.square(values.astype(np.float64)).sum())
    return float(np.sqrt(lost / total)) if total else 0.0
