"""Which part of the genome is train, valid or test, and in which fold: by chromosomes, by loci, by a trunk's own split.

Parts are kept per global bin: 0 train, 1 valid, 2 test, -1 in no part. A bin belongs to a locus if it touches it; a bin
that loci of two splits touch belongs to none, and is counted. A *stratum* is a part, or one fold of the training part:
rows stay inside one, and each gets its own share of negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8, Int16

from tfbind_store.catalog.columns import Columns
from tfbind_store.errors import SelectionError
from tfbind_store.loci import Tiling
from tfbind_store.query.folds import NO_FOLD, spread
from tfbind_store.query.kinship import close_names
from tfbind_store.query.stretches import bin_spans, covered

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST, UNUSED = 0, 1, 2, -1


class Places(NamedTuple):
    """Part and fold of every global bin."""

    part: Int8[np.ndarray, " bins"]
    fold: Int8[np.ndarray, " bins"]
    """-1 outside the training part, and everywhere without folds of places."""
    between: int
    """Bins that loci of two splits touch."""

    @property
    def stratum(self) -> Int16[np.ndarray, " bins"]:
        """The part (0, 1, 2; -1 for none); of training bins that are in a fold, 3 and more: 3 + the fold."""
        folded = np.where(self.fold > NO_FOLD, len(SPLITS) + self.fold.astype(np.int16), self.part.astype(np.int16))
        return np.asarray(folded, dtype=np.int16)


def part_of_stratum(n_folds: int) -> Int8[np.ndarray, " strata"]:
    """Return the part of each stratum."""
    return np.array([TRAIN, VALID, TEST, *([TRAIN] * n_folds)], dtype=np.int8)


def chromosome_of(name: str, chroms: Sequence[str], aliases: Mapping[str, str], *, where: str) -> str:
    """Return the genome's own name of a chromosome, or refuse it."""
    chrom = name if name in chroms else aliases.get(name)
    if chrom is None or chrom not in chroms:
        raise SelectionError(f"no chromosome {name!r} in this genome", where=where, fix=close_names(name, chroms))
    return chrom


def by_chromosomes(
    tiling: Tiling, aliases: Mapping[str, str], named: Mapping[str, Sequence[str]]
) -> Int8[np.ndarray, " chroms"]:
    """Return the part of each chromosome; without training chromosomes named, all that are not named train.

    Parameters
    ----------
    named
        Chromosomes by split.

    Raises
    ------
    SelectionError
        If a name is unknown, or stands in two splits.
    """
    part = np.full(len(tiling.chroms), UNUSED if named["train"] else TRAIN, dtype=np.int8)
    given: dict[str, str] = {}
    for number, split in enumerate(SPLITS):
        for name in named[split]:
            chrom = chromosome_of(name, tiling.chroms, aliases, where=f"split.{split}_chroms")
            if given.setdefault(chrom, split) != split:
                what = f"chromosome {chrom} is both {given[chrom]} and {split}"
                raise SelectionError(what, where="split", fix=f"leave {name} out of one of them")
            part[tiling.chrom_index[chrom]] = number
    return part


def whole_chromosomes(tiling: Tiling, part: Int8[np.ndarray, " chroms"]) -> Int8[np.ndarray, " bins"]:
    """Return the part of each bin of chromosomes that are whole in one part."""
    bins = np.full(tiling.n_bins, UNUSED, dtype=np.int8)
    for chrom, number in enumerate(part.tolist()):
        first = int(tiling.first_window[chrom]) * tiling.grid.n_bins
        bins[first : first + tiling.n_real_bins(chrom)] = number
    return bins


def by_loci(tiling: Tiling, loci: Columns, *, name: str) -> tuple[Int8[np.ndarray, " bins"], int]:
    """Return the part of each bin by loci with a split, and how many bins two splits touch.

    Parameters
    ----------
    loci
        ``chrom_id, start_bp, end_bp, split`` of one set (``reads.loci``).

    Raises
    ------
    SelectionError
        If no locus has a split.
    """
    part = np.full(tiling.n_bins, UNUSED, dtype=np.int8)
    twice = np.zeros(tiling.n_bins, dtype=bool)
    for number, split in enumerate(SPLITS):
        mine = loci["split"] == split
        spans = bin_spans(tiling, loci["chrom_id"][mine], loci["start_bp"][mine], loci["end_bp"][mine])
        touched = covered(spans.first, spans.last, tiling.n_bins)
        twice |= touched & (part != UNUSED)
        part[touched] = number
    if not (part != UNUSED).any():
        fix = "give its loci a split: a column train, valid, test in the BED, or tfbind import loci … --split train"
        raise SelectionError(f"no locus of {name!r} has a split", where="split.loci", fix=fix)
    part[twice] = UNUSED
    return part, int(twice.sum())


def fold_chromosomes(
    tiling: Tiling, part: Int8[np.ndarray, " bins"], n_folds: int, *, seed: int
) -> Int8[np.ndarray, " bins"]:
    """Return the fold of each training bin, chromosomes kept whole."""
    n_training = {
        chrom: int((part[tiling.global_bins(index)] == TRAIN).sum()) for index, chrom in enumerate(tiling.chroms)
    }
    found = spread({c: n for c, n in n_training.items() if n}, n_folds, seed=seed, purpose="chromosomes")
    fold = np.full(tiling.n_bins, NO_FOLD, dtype=np.int8)
    for chrom, number in found.items():
        bins = tiling.global_bins(tiling.chrom_index[chrom])
        fold[bins[part[bins] == TRAIN]] = number
    return fold


def fold_loci(tiling: Tiling, part: Int8[np.ndarray, " bins"], n_folds: int, *, seed: int) -> Int8[np.ndarray, " bins"]:
    """Return the fold of each training bin, runs of neighbouring training bins kept whole."""
    runs = [run for run in stretches(tiling, Places(part, np.full_like(part, NO_FOLD), 0)) if run[3] == "train"]
    sizes = {f"{chrom}:{start}-{end}": end - start for chrom, start, end, *_ in runs}
    found = spread(sizes, n_folds, seed=seed, purpose="loci")
    folded = [[*run[:4], found[f"{run[0]}:{run[1]}-{run[2]}"]] for run in runs]
    return from_stretches(tiling, folded).fold


def stretches(tiling: Tiling, places: Places) -> list[list[Any]]:
    """Return places as JSON values: ``[chrom, start_bp, end_bp, split, fold]``, bins without a part left out."""
    found: list[list[Any]] = []
    code = places.part.astype(np.int16) * 256 + places.fold
    for chrom, length_bp in zip(tiling.chroms, tiling.lengths_bp, strict=True):
        bins = tiling.global_bins(tiling.chrom_index[chrom])
        mine = code[bins]
        begins = np.flatnonzero(np.concatenate([[True], mine[1:] != mine[:-1]]))
        ends = np.append(begins[1:], len(mine))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            part, fold = int(places.part[bins[begin]]), int(places.fold[bins[begin]])
            if part != UNUSED:
                start, stop = begin * tiling.grid.bin_bp, min(end * tiling.grid.bin_bp, length_bp)
                found.append([chrom, start, stop, SPLITS[part], fold])
    return found


def from_stretches(tiling: Tiling, found: Sequence[Sequence[Any]]) -> Places:
    """Read what `stretches` wrote."""
    part = np.full(tiling.n_bins, UNUSED, dtype=np.int8)
    fold = np.full(tiling.n_bins, NO_FOLD, dtype=np.int8)
    for chrom, start, end, split, number in found:
        base = int(tiling.first_window[tiling.chrom_index[chrom]]) * tiling.grid.n_bins
        bins = slice(base + start // tiling.grid.bin_bp, base - (-end // tiling.grid.bin_bp))
        part[bins], fold[bins] = SPLITS.index(split), number
    return Places(part, fold, 0)
