"""Bin a bigWig: values per base become one number per bin of a store's grid.

Coordinates are bp, 0-based, half-open. A base without a value is *missing*, which is not zero: a bin without any value
is NaN. Bins past a chromosome's end are NaN; the last bin of a chromosome counts the bases that are there. Files are
opened when they are read and closed right after, one at a time. Nothing here publishes anything: ``ingest`` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyBigWig
from jaxtyping import Float32, Float64, Int64

from tfbind_store.errors import ConfigError, InputFileError
from tfbind_store.loci import Tiling

CHUNK_BP = 1 << 21
"""Bases read at once: 8 MiB of values, in cache while they are summed."""
Statistic = Literal["sum", "mean", "max"]
Gaps = Literal["missing", "zero"]


@dataclass(frozen=True, kw_only=True)
class Binning:
    """How the values of a bin's bases become its label; the steps are taken in the order of the fields."""

    statistic: Statistic = "mean"
    """Of the bases that have a value."""
    gaps: Gaps = "missing"
    """What a base without a value is on a chromosome that the file has: missing, or zero as in a pile-up."""
    clip: float | None = None
    """Soft: ``x`` above ``clip`` becomes ``clip - 1 + sqrt(x - clip + 1)``."""
    scale: float = 1.0
    """Factor on the number."""
    log1p: bool = False
    """Natural logarithm of one plus the number."""

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < np.inf:
            raise ConfigError(f"clip is {self.clip:g}, must be above 0", where="binning")
        if not 0 < abs(self.scale) < np.inf:
            raise ConfigError(f"scale is {self.scale:g}, must be a number other than 0", where="binning")

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers, for an array's spec."""
        return {
            "statistic": self.statistic, "gaps": self.gaps, "clip": self.clip, "scale": self.scale, "log1p": self.log1p
        }  # fmt: skip


class BinnedTrack(NamedTuple):
    """One bigWig on a grid."""

    values: Float32[np.ndarray, "n_windows n_bins"]
    """NaN where nothing is known."""
    absent_chroms: tuple[str, ...]
    """Chromosomes of the genome that the file does not have."""
    other_chroms: tuple[str, ...]
    """Chromosomes of the file that the genome does not have."""
    n_not_finite: int
    """Bases whose value is infinite; they count as missing."""


@contextlib.contextmanager
def open_bigwig(path: Path | str) -> Iterator[Any]:
    """Open a bigWig for a ``with`` block.

    Raises
    ------
    InputFileError
        If it is absent, damaged, or no bigWig.
    """
    path = Path(path)
    if not path.is_file():
        raise InputFileError("no such file", where=str(path))
    try:
        file = pyBigWig.open(str(path))
    except RuntimeError as error:
        fix = "give a whole bigWig; a wiggle or bedGraph becomes one with UCSC's tools"
        raise InputFileError("not a bigWig file, or a damaged one", where=str(path), fix=fix) from error
    with contextlib.closing(file):
        if not file.isBigWig():
            raise InputFileError("a bigBed, expected a bigWig", where=str(path), fix="import its intervals as peaks")
        if not file.chroms():
            raise InputFileError("a bigWig without any chromosome", where=str(path))
        yield file


def match_chroms(
    lengths_bp: Mapping[str, int], tiling: Tiling, aliases: Mapping[str, str], *, where: str
) -> dict[str, str]:
    """Return the file's name of each chromosome of the genome that it has, sizes checked.

    Parameters
    ----------
    lengths_bp
        Name and length of the file's own chromosomes.
    aliases
        Other names of the genome's chromosomes.

    Raises
    ------
    InputFileError
        If a length differs (another assembly), two names mean one chromosome, or none is known.
    """
    own = dict(zip(tiling.chroms, tiling.lengths_bp, strict=True))
    found: dict[str, str] = {}
    for name, length in lengths_bp.items():
        chrom = name if name in own else aliases.get(name)
        if chrom not in own:
            continue
        if chrom in found:
            what = f"{found[chrom]!r} and {name!r} are both {chrom}"
            raise InputFileError(what, where=where, fix="make the file again with one name for each chromosome")
        if length != own[chrom]:
            what = f"{name} has {length:,} bp in the bigWig and {own[chrom]:,} bp in the genome"
            raise InputFileError(what, where=where, fix="give the track of the same assembly, or lift it over first")
        found[chrom] = name
    if not found:
        what = f"no chromosome of the genome is in the bigWig, which has {', '.join(list(lengths_bp)[:4])}"
        raise InputFileError(what, where=where, fix=f"the genome has {', '.join(tiling.chroms[:4])}; see --aliases")
    return found


def bin_bigwig(
    path: Path | str, tiling: Tiling, aliases: Mapping[str, str], binning: Binning | None = None
) -> BinnedTrack:
    """Return a bigWig as one number per bin of the whole genome.

    Raises
    ------
    InputFileError
        If it cannot be read, is of another assembly, or holds numbers below -1 where a logarithm is asked for.
    """
    binning = binning or Binning()
    values = np.full((tiling.n_windows, tiling.grid.n_bins), np.nan, dtype=np.float32)
    flat, n_bad = values.reshape(-1), 0
    with open_bigwig(path) as file:
        lengths = file.chroms()
        names = match_chroms(lengths, tiling, aliases, where=str(path))
        for chrom, name in names.items():
            at = int(tiling.first_window[tiling.chrom_index[chrom]]) * tiling.grid.n_bins
            for start, numbers, bad in _chunks(file, name, lengths[name], tiling.grid.bin_bp, binning, str(path)):
                first = at + start // tiling.grid.bin_bp
                flat[first : first + len(numbers)] = numbers
                n_bad += bad
        others = tuple(name for name in lengths if name not in names.values())
    absent = tuple(chrom for chrom in tiling.chroms if chrom not in names)
    return BinnedTrack(values, absent, others, n_bad)


def _chunks(
    file: Any, name: str, length_bp: int, bin_bp: int, binning: Binning, where: str
) -> Iterator[tuple[int, Float32[np.ndarray, " bins"], int]]:
    """Yield first base, labels and the number of infinite bases of stretches of whole bins."""
    step = max(1, CHUNK_BP // bin_bp) * bin_bp
    for start in range(0, length_bp, step):
        end = min(start + step, length_bp)
        try:
            bases = file.values(name, start, end, numpy=True)
        except RuntimeError as error:
            what = f"the bigWig is damaged in {name}:{start}-{end}"
            raise InputFileError(what, where=where, fix="copy or download it again") from error
        n_bad = 0
        if np.isinf(np.fmax.reduce(bases)) or np.isinf(np.fmin.reduce(bases)):  # a third of the time of isinf
            n_bad = int(np.isinf(bases).sum())
            bases[np.isinf(bases)] = np.nan
        yield start, transformed(binned(bases, bin_bp, binning), binning, where=where), n_bad


def binned(bases: Float32[np.ndarray, " bp"], bin_bp: int, binning: Binning) -> Float64[np.ndarray, " bins"]:
    """Return the statistic of each bin of consecutive bases, the last bin of what is left; NaN: nothing known.

    Examples
    --------
    >>> bases = np.array([1, 3, np.nan, 5, np.nan, np.nan, 2], dtype=np.float32)
    >>> binned(bases, 2, Binning(statistic="sum")).tolist()
    [4.0, 5.0, nan, 2.0]
    """
    n_bins, rest = -(-len(bases) // bin_bp), -len(bases) % bin_bp
    if rest:
        bases = np.concatenate([bases, np.full(rest, np.nan, dtype=np.float32)])
    missing = np.isnan(bases)
    has_gaps = bool(missing.any())
    present: Int64[np.ndarray, " bins"] = np.full(n_bins, bin_bp, dtype=np.int64)
    if has_gaps:
        present = bin_bp - np.count_nonzero(missing.reshape(n_bins, bin_bp), axis=1)
        bases = bases.copy()
        np.copyto(bases, np.float32(-np.inf if binning.statistic == "max" else 0), where=missing)
    table = bases.reshape(n_bins, bin_bp)
    real = np.full(n_bins, bin_bp, dtype=np.int64)
    real[-1] -= rest
    is_max = binning.statistic == "max"
    out = table.max(axis=1).astype(np.float64) if is_max else table.sum(axis=1, dtype=np.float64)
    if binning.gaps == "zero":
        if is_max:
            out = np.where(present < real, np.maximum(out, 0), out)
        present = real
    if binning.statistic == "mean":
        out /= np.maximum(present, 1)
    out[present == 0] = np.nan
    return np.asarray(out, dtype=np.float64)


def transformed(
    values: Float64[np.ndarray, " bins"], binning: Binning, *, where: str = "track"
) -> Float32[np.ndarray, " bins"]:
    """Return numbers clipped, scaled and in logarithms, as asked for.

    Examples
    --------
    >>> transformed(np.array([2.0, 11.0]), Binning(clip=3.0, scale=2.0)).tolist()
    [4.0, 10.0]

    Notes
    -----
    The soft clip is the one of Basenji's training data (``basenji_data_read.py``), before scaling as there.
    """
    if binning.clip is not None:
        high = values > binning.clip
        values = np.where(high, binning.clip - 1 + np.sqrt(np.where(high, values - binning.clip + 1, 1)), values)
    if binning.scale != 1:
        values = values * binning.scale
    if binning.log1p:
        low = values <= -1
        if low.any():
            what = f"{int(low.sum()):,} bins are -1 or below (first: {values[low][0]:g}) and have no log1p"
            raise InputFileError(what, where=where, fix="import this track without --log1p")
        values = np.log1p(values)
    with np.errstate(over="raise"):
        try:
            return np.asarray(values, dtype=np.float32)
        except FloatingPointError as error:
            raise InputFileError("a bin's number is past what float32 holds", where=where, fix="use --scale") from error
