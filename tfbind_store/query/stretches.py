"""Stretches of bins: which ones intervals touch, and sorted disjoint ones that can be asked quickly.

Bins of many experiments live in one number line by a key, ``experiment * n_bins + global_bin``; a stretch is given by
its first and last number, both included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from tfbind_store.loci import Tiling


class BinSpans(NamedTuple):
    """First and last global bin of intervals."""

    first: Int64[np.ndarray, " n"]
    last: Int64[np.ndarray, " n"]


def bin_spans(
    tiling: Tiling,
    chrom_id: Integer[np.ndarray, " n"],
    start_bp: Integer[np.ndarray, " n"],
    end_bp: Integer[np.ndarray, " n"],
    *,
    margin_bp: int = 0,
) -> BinSpans:
    """Return the first and the last global bin that intervals touch, widened by a margin and cut at chromosome ends."""
    chrom = np.asarray(chrom_id, dtype=np.int64)
    lengths = np.asarray(tiling.lengths_bp, dtype=np.int64)[chrom]
    base = tiling.first_window[chrom] * tiling.grid.n_bins
    first = np.clip(np.asarray(start_bp, np.int64) - margin_bp, 0, lengths - 1) // tiling.grid.bin_bp
    last = np.clip(np.asarray(end_bp, np.int64) - 1 + margin_bp, 0, lengths - 1) // tiling.grid.bin_bp
    return BinSpans(base + first, base + last)


@dataclass(frozen=True)
class Stretches:
    """Stretches that neither touch nor overlap, in ascending order."""

    first: Int64[np.ndarray, " s"]
    last: Int64[np.ndarray, " s"]

    @classmethod
    def merged(cls, first: Int64[np.ndarray, " n"], last: Int64[np.ndarray, " n"]) -> Stretches:
        """Join overlapping and neighbouring stretches given in any order.

        Examples
        --------
        >>> Stretches.merged(np.array([7, 1, 3]), np.array([8, 4, 5])).first.tolist()
        [1, 7]
        """
        if len(first) == 0:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        first, last = np.asarray(first, dtype=np.int64), np.asarray(last, dtype=np.int64)
        if (first[1:] < first[:-1]).any():
            order = np.argsort(first, kind="stable")
            first, last = first[order], last[order]
        reach = np.maximum.accumulate(last)
        begins = np.concatenate([[True], first[1:] > reach[:-1] + 1])
        ends = np.concatenate([begins[1:], [True]])
        return cls(first[begins], reach[ends])

    @classmethod
    def of(cls, numbers: Int64[np.ndarray, " n"]) -> Stretches:
        """Return the stretches that hold exactly `numbers`."""
        return cls.merged(numbers, numbers)

    def touched_by(self, first: Int64[np.ndarray, "*n"], last: Int64[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
        """Return which of the asked stretches share a number with one of these."""
        began = np.searchsorted(self.first, last, side="right")
        over = np.searchsorted(self.last, first, side="left")
        return began > over

    def hold(self, numbers: Int64[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
        """Return which numbers lie in a stretch."""
        return self.touched_by(numbers, numbers)


def expand(
    first: Int64[np.ndarray, " n"], last: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " total"], Int64[np.ndarray, " total"]]:
    """Return (which stretch, number) for every number of every stretch.

    Examples
    --------
    >>> [a.tolist() for a in expand(np.array([5, 9]), np.array([6, 9]))]
    [[0, 0, 1], [5, 6, 9]]
    """
    lengths = last - first + 1
    owner = np.repeat(np.arange(len(first), dtype=np.int64), lengths)
    offset = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, first[owner] + offset


def covered(first: Int64[np.ndarray, " n"], last: Int64[np.ndarray, " n"], n_bins: int) -> Bool[np.ndarray, " bins"]:
    """Return which of `n_bins` bins lie in one of some stretches, which may overlap and stand in any order.

    Examples
    --------
    >>> covered(np.array([1, 2]), np.array([2, 3]), 5).tolist()
    [False, True, True, True, False]
    """
    steps = np.bincount(first, minlength=n_bins + 1) - np.bincount(last + 1, minlength=n_bins + 1)
    inside: Bool[np.ndarray, " bins"] = np.cumsum(steps[:n_bins]) > 0
    return inside


def member(numbers: Int64[np.ndarray, " n"], asked: Int64[np.ndarray, "*k"]) -> Bool[np.ndarray, "*k"]:
    """Return which of the asked are among `numbers`, which ascend."""
    if len(numbers) == 0:
        return np.zeros(asked.shape, dtype=bool)
    found = np.searchsorted(numbers, asked)
    is_member: Bool[np.ndarray, "*k"] = numbers[np.minimum(found, len(numbers) - 1)] == asked
    return is_member


def distinct(*numbers: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, " n"]:
    """Return each number once, ascending.

    By sorting: numpy's own ``unique`` hashes since 2.3, several times slower on the many millions of keys met here.
    """
    ordered = np.sort(np.concatenate([column.reshape(-1) for column in numbers]))
    if len(ordered) == 0:
        return ordered
    once: Int64[np.ndarray, " n"] = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return once
