"""Stretches of bins: which ones intervals touch, and sorted disjoint ones that can be asked quickly.

Bins of many experiments live in one number line by a key, ``experiment * n_bins + global_bin``; a stretch is given by
its first and last number, both included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from tfbind_store.loci import Tiling

_AT_ONCE = 1 << 17
"""Intervals that are worked on at once: they stay in the processor's cache, and little memory is taken."""

_CACHED = 1 << 16
"""So few numbers are looked up quickly in any order."""
_WORTH_SORTING = 1 << 10


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
    chrom_lengths = np.asarray(tiling.lengths_bp, dtype=np.int64)
    chrom_bins = np.asarray(tiling.first_window, dtype=np.int64) * tiling.grid.n_bins
    spans = BinSpans(*(np.empty(len(chrom_id), dtype=np.int64) for _ in range(2)))
    for begin in range(0, len(chrom_id), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        chrom = np.asarray(chrom_id[part], dtype=np.int64)
        ends, base = chrom_lengths[chrom] - 1, chrom_bins[chrom]
        start, end = np.asarray(start_bp[part], dtype=np.int64), np.asarray(end_bp[part], dtype=np.int64)
        for bins, edge in ((spans.first, start - margin_bp), (spans.last, end - 1 + margin_bp)):
            bins[part] = base + np.clip(edge, 0, ends) // tiling.grid.bin_bp
    return spans


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
        if not len(self.first):
            return np.zeros(first.shape, dtype=bool)
        began = ranks(self.first, last, side="right")
        touched: Bool[np.ndarray, "*n"] = (began > 0) & (self.last[np.maximum(began - 1, 0)] >= first)
        return touched

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
    disjoint = Stretches.merged(first, last)
    # the ends of what lies outside and inside, in turn: one byte a bin is all that is ever held
    ends = np.empty(2 * len(disjoint.first) + 1, dtype=np.int64)
    ends[0:-1:2], ends[1::2], ends[-1] = disjoint.first, disjoint.last + 1, n_bins
    inside: Bool[np.ndarray, " bins"] = np.repeat(np.arange(len(ends)) % 2 == 1, np.diff(ends, prepend=0))
    return inside


def member(numbers: Int64[np.ndarray, " n"], asked: Int64[np.ndarray, "*k"]) -> Bool[np.ndarray, "*k"]:
    """Return which of the asked are among `numbers`, which ascend."""
    if len(numbers) == 0:
        return np.zeros(asked.shape, dtype=bool)
    found = ranks(numbers, asked)
    is_member: Bool[np.ndarray, "*k"] = numbers[np.minimum(found, len(numbers) - 1)] == asked
    return is_member


def ranks(
    numbers: Int64[np.ndarray, " n"], asked: Int64[np.ndarray, "*k"], *, side: Literal["left", "right"] = "left"
) -> Int64[np.ndarray, "*k"]:
    """Return what ``searchsorted`` does, asked in ascending order where many are looked up in many.

    One million keys in any order among 20 million take 1.4 s, for nearly every step of every search waits for memory;
    sorted first they take 0.1 s, the sorting included.
    """
    flat = asked.reshape(-1)
    if len(numbers) < _CACHED or len(flat) < _WORTH_SORTING or (flat[1:] >= flat[:-1]).all():
        return np.searchsorted(numbers, asked, side=side)
    order = np.argsort(flat)
    found = np.empty(len(flat), dtype=np.int64)
    found[order] = np.searchsorted(numbers, flat[order], side=side)
    return found.reshape(asked.shape)


def distinct(*numbers: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, " n"]:
    """Return each number once, ascending.

    By sorting: numpy's own ``unique`` hashes since 2.3, several times slower on the many millions of keys met here.
    """
    ordered = numbers[0].reshape(-1) if len(numbers) == 1 else np.concatenate([n.reshape(-1) for n in numbers])
    if (ordered[1:] < ordered[:-1]).any():
        ordered = np.sort(ordered)
    begins = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    once: Int64[np.ndarray, " n"] = ordered[begins]
    return once
