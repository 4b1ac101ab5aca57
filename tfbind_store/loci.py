"""Tile a genome into windows and bins: pure arithmetic on coordinates.

Coordinates are base pairs, 0-based, half-open. A *window* is the stretch the trunk reads (``window_bp``); the central
``n_bins`` bins of ``bin_bp`` are kept, and the kept parts of neighbouring windows touch: every base of every
chromosome lies in exactly one bin. Windows at chromosome ends reach past the ends (the sequence is padded there, never
shifted), so the input locus of a window may start below zero. Nothing here reads a file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from tfbind_store.errors import LocusError

ENFORMER_WINDOW_BP = 196_608
ENFORMER_N_BINS = 896
ENFORMER_BIN_BP = 128

_LOCUS_TEXT = re.compile(r"([^\s:]+):([0-9][0-9,]{0,20})-([0-9][0-9,]{0,20})", re.ASCII)


class Locus(NamedTuple):
    """A stretch of a chromosome: 0-based, half-open, in bp."""

    chrom: str
    start: int
    end: int

    def __str__(self) -> str:
        """Return the usual ``chrom:start-end``."""
        return f"{self.chrom}:{self.start}-{self.end}"

    def moved(self, bp: int) -> Locus:
        """Return the stretch that lies so far to the right.

        Examples
        --------
        >>> Locus("chr1", 10, 30).moved(-5)
        Locus(chrom='chr1', start=5, end=25)
        """
        return Locus(self.chrom, self.start + bp, self.end + bp)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How windows and bins lie on a chromosome.

    Raises
    ------
    LocusError
        If the kept bins do not sit evenly in the window.

    Notes
    -----
    Defaults as in Avsec et al. 2021, Methods: 196,608 bp in, 896 bins of 128 bp (114,688 bp) out.
    """

    window_bp: int = ENFORMER_WINDOW_BP
    """Bases the trunk reads."""
    n_bins: int = ENFORMER_N_BINS
    """Bins kept per window."""
    bin_bp: int = ENFORMER_BIN_BP
    """Bases per bin."""

    def __post_init__(self) -> None:
        for name in ("window_bp", "n_bins", "bin_bp"):
            if getattr(self, name) < 1:
                raise LocusError(f"{name} is {getattr(self, name)}, must be at least 1", where="grid")
        spare_bp = self.window_bp - self.stride_bp
        if spare_bp < 0 or spare_bp % 2:
            raise LocusError(
                f"{self.n_bins} bins of {self.bin_bp} bp do not sit evenly in {self.window_bp} bp",
                where="grid",
                fix="choose window_bp so that window_bp - n_bins * bin_bp is even and not negative",
            )

    @property
    def stride_bp(self) -> int:
        """Bases from one window to the next: the kept part."""
        return self.n_bins * self.bin_bp

    @property
    def margin_bp(self) -> int:
        """Bases read on each side of the kept part."""
        return (self.window_bp - self.stride_bp) // 2

    def n_windows(self, length_bp: int) -> int:
        """Return how many windows cover `length_bp` bases.

        Examples
        --------
        >>> Grid(window_bp=12, n_bins=2, bin_bp=4).n_windows(17)
        3
        """
        return -(-length_bp // self.stride_bp)


class BinAddress(NamedTuple):
    """Where positions lie on a grid; -1 in both where a position is off its chromosome."""

    window: Int64[np.ndarray, " n"]
    bin: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Tiling:
    """A grid laid over the chromosomes of one genome, in the genome's own order.

    Window ids count through the genome. ``global_bin = window * n_bins + bin`` numbers every bin; within a chromosome
    neighbouring bins have neighbouring numbers, across window edges too.
    """

    grid: Grid
    chroms: tuple[str, ...]
    lengths_bp: tuple[int, ...]

    @classmethod
    def over(cls, grid: Grid, lengths_bp: Mapping[str, int]) -> Tiling:
        """Lay `grid` over chromosomes given as ``{name: length_bp}``."""
        return cls(grid, tuple(lengths_bp), tuple(int(length) for length in lengths_bp.values()))

    @cached_property
    def chrom_index(self) -> dict[str, int]:
        """Each chromosome's place in the genome."""
        return {chrom: index for index, chrom in enumerate(self.chroms)}

    @cached_property
    def first_window(self) -> Int64[np.ndarray, " chroms_plus_1"]:
        """Id of each chromosome's first window; the last entry is the number of windows."""
        counts = [self.grid.n_windows(length) for length in self.lengths_bp]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    @property
    def n_windows(self) -> int:
        """Windows over the whole genome."""
        return int(self.first_window[-1])

    @property
    def n_bins(self) -> int:
        """Bins over the whole genome, those past chromosome ends included."""
        return self.n_windows * self.grid.n_bins

    def address(
        self, chrom: Shaped[np.ndarray, " n"] | Sequence[int], position: Int64[np.ndarray, " n"] | Sequence[int]
    ) -> BinAddress:
        """Return the window and bin that hold each position.

        Parameters
        ----------
        chrom
            Chromosome index (place in `chroms`), not name.
        position
            0-based base position.

        Returns
        -------
        Windows and bins; -1 where the position is off the chromosome.

        Examples
        --------
        >>> t = Tiling.over(Grid(window_bp=12, n_bins=2, bin_bp=4), {"a": 10, "b": 9})
        >>> t.address([0, 0, 1, 1], [0, 9, 8, 9])
        BinAddress(window=array([ 0,  1,  3, -1]), bin=array([ 0,  0,  0, -1]))
        """
        chrom_index = np.asarray(chrom, dtype=np.int64)
        pos = np.asarray(position, dtype=np.int64)
        lengths = np.asarray(self.lengths_bp, dtype=np.int64)[chrom_index]
        inside: Bool[np.ndarray, " n"] = (pos >= 0) & (pos < lengths)
        window = self.first_window[chrom_index] + pos // self.grid.stride_bp
        bin_in_window = pos % self.grid.stride_bp // self.grid.bin_bp
        return BinAddress(np.where(inside, window, -1), np.where(inside, bin_in_window, -1))

    def locus_of(self, text: str, aliases: Mapping[str, str]) -> Locus:
        """Read ``chrom:start-end``: 0-based, half-open like everything here, thousands with commas or without.

        Raises
        ------
        LocusError
            If it is none, or not on the genome.

        Examples
        --------
        >>> tiling = Tiling.over(Grid(window_bp=12, n_bins=2, bin_bp=4), {"chr1": 5_000})
        >>> tiling.locus_of("1:1,000-1,200", {"1": "chr1"})
        Locus(chrom='chr1', start=1000, end=1200)
        """
        found = _LOCUS_TEXT.fullmatch(text.strip())
        if found is None:
            raise LocusError(f"{text[:80]!r} is no locus", where="locus", fix="write it like chrI:1000-1200")
        chrom = aliases.get(found[1], found[1])
        start, end = (int(number.replace(",", "")) for number in found.groups()[1:])
        if chrom not in self.chrom_index:
            close = difflib.get_close_matches(chrom, self.chroms, n=1)
            fix = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.chroms[:8])}"
            raise LocusError(f"no chromosome {chrom[:80]!r} in this genome", where=text[:80], fix=fix)
        length = self.lengths_bp[self.chrom_index[chrom]]
        if not start < end <= length:
            fix = f"choose start < end, both from 0 to {length:,}"
            raise LocusError(f"{start:,} to {end:,} does not lie on {chrom} of {length:,} bp", where=text[:80], fix=fix)
        return Locus(chrom, start, end)

    def window_chrom(self, window: Int64[np.ndarray, " n"] | Sequence[int]) -> Int64[np.ndarray, " n"]:
        """Return the chromosome index of each window."""
        ids = np.asarray(window, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.n_windows):
            bad = int(ids[(ids < 0) | (ids >= self.n_windows)][0])
            raise LocusError(f"window {bad} is not one of the {self.n_windows} windows", where="tiling")
        return np.searchsorted(self.first_window, ids, side="right").astype(np.int64) - 1

    def kept(self, window: int) -> Locus:
        """Return the locus of a window's kept bins; its end may lie past the chromosome's end."""
        chrom = int(self.window_chrom([window])[0])
        start = (window - int(self.first_window[chrom])) * self.grid.stride_bp
        return Locus(self.chroms[chrom], start, start + self.grid.stride_bp)

    def read(self, window: int) -> Locus:
        """Return the locus the trunk reads for a window; it may reach past both ends of the chromosome."""
        chrom, start, end = self.kept(window)
        return Locus(chrom, start - self.grid.margin_bp, end + self.grid.margin_bp)

    def bin_locus(self, window: int, bin_index: int) -> Locus:
        """Return the locus of one bin."""
        chrom, start, _ = self.kept(window)
        begin = start + bin_index * self.grid.bin_bp
        return Locus(chrom, begin, begin + self.grid.bin_bp)

    def n_real_bins(self, chrom: int) -> int:
        """Return how many bins of chromosome number `chrom` hold at least one of its bases."""
        return -(-self.lengths_bp[chrom] // self.grid.bin_bp)

    def global_bins(self, chrom: int) -> Int64[np.ndarray, " bins"]:
        """Return the global numbers of the bins that hold at least one base of chromosome number `chrom`."""
        first = int(self.first_window[chrom]) * self.grid.n_bins
        return np.arange(first, first + self.n_real_bins(chrom), dtype=np.int64)
