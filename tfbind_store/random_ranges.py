"""Random stretches of a genome that touch no given locus and hold no N, as a BED: background for other tools.

Selections do not need it, they draw their own negatives. Stretches are uniform over all allowed starts, so a chromosome
gets as many as its length allows; the draw is exact, by arithmetic on what is left of the genome, and seeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store.durable import make_directory, publish
from tfbind_store.errors import ConfigError, GenomeError, PeakFileError
from tfbind_store.genome import GenomeSource, N
from tfbind_store.names import near_miss
from tfbind_store.textfiles import read_lines


class RandomRanges(NamedTuple):
    """What was written."""

    path: Path
    n_ranges: int
    per_chromosome: dict[str, int]
    unknown_chromosomes: dict[str, int]
    """Rows of the filters on chromosomes that the genome does not have."""


def random_ranges(
    fasta_file: Path | str,
    output: Path | str,
    *,
    context_length: int,
    filter_bed_files: Sequence[Path | str] = (),
    n_ranges: int = 1000,
    chromosomes: Sequence[str] = (),
    margin_bp: int = 0,
    seed: int = 0,
) -> RandomRanges:
    """Write random ranges of one length that touch no locus of some BEDs.

    Parameters
    ----------
    output
        BED of three columns, sorted by chromosome and start; ranges may overlap each other, none comes twice.
    context_length
        Of each range, bp.
    filter_bed_files
        Ranges keep `margin_bp` away from every row of these; plain or gzipped.
    chromosomes
        Default: all of the FASTA.

    Raises
    ------
    GenomeError
        If a chromosome is not in the FASTA.
    ConfigError
        If there are not that many places for a range.

    Notes
    -----
    Stands for the reference's ``generate_random_ranges_from_fasta``, which took equal numbers from long and short
    chromosomes, kept runs of N, was not seeded, and failed for outputs outside the working folder.
    """
    if context_length < 1 or n_ranges < 1 or margin_bp < 0:
        raise ConfigError("context_length and n_ranges must be at least 1, margin_bp at least 0", where="random_ranges")
    blocked, seen = _blocked(filter_bed_files, margin_bp)
    with GenomeSource(fasta_file) as genome:
        chosen = list(chromosomes) or list(genome.chroms)
        for chrom in chosen:
            if chrom not in genome.chroms:
                close = near_miss(chrom, genome.chroms)
                fix = f"did you mean {close}?" if close else f"it has {', '.join(genome.chroms[:8])}"
                raise GenomeError(f"no chromosome {chrom!r}", where=str(fasta_file), fix=fix)
        allowed = [
            _allowed_starts(genome.codes(chrom) == N, blocked.get(chrom, []), context_length) for chrom in chosen
        ]
        unknown = {chrom: count for chrom, count in sorted(seen.items()) if chrom not in genome.chroms}
    sizes = np.array([int((ends - begins).sum()) for begins, ends in allowed], dtype=np.int64)
    if sizes.sum() < n_ranges:
        what = f"{n_ranges:,} ranges of {context_length:,} bp, {int(sizes.sum()):,} places are left for one"
        raise ConfigError(what, where="random_ranges", fix="ask for fewer or shorter ones, or filter less")
    drawn = _distinct_numbers(np.random.Generator(np.random.PCG64(seed)), int(sizes.sum()), n_ranges)
    rows, counts, first = [], {}, 0
    for chrom, size, (begins, ends) in zip(chosen, sizes.tolist(), allowed, strict=True):
        mine = drawn[(drawn >= first) & (drawn < first + size)] - first
        reached = np.cumsum(ends - begins)
        run = np.searchsorted(reached, mine, side="right")
        starts = ends[run] - (reached[run] - mine)
        rows += [f"{chrom}\t{start}\t{start + context_length}\n" for start in starts.tolist()]
        counts[chrom] = len(starts)
        first += size
    make_directory(Path(output).absolute().parent)
    publish(Path(output), ["".join(rows).encode()])
    return RandomRanges(Path(output), n_ranges, counts, unknown)


def _blocked(paths: Iterable[Path | str], margin_bp: int) -> tuple[dict[str, list[tuple[int, int]]], dict[str, int]]:
    """Return the loci of BEDs, widened, by chromosome, and the number of rows of each chromosome."""
    found: dict[str, list[tuple[int, int]]] = {}
    for path in paths:
        for number, line in read_lines(path, error_class=PeakFileError):
            if not line.strip() or line.startswith(("#", "track", "browser")):
                continue
            cells = line.split("\t", 3)
            try:
                start, end = int(cells[1]), int(cells[2])
            except (IndexError, ValueError) as error:
                what = "a row needs chromosome, start and end, separated by tabs"
                raise PeakFileError(what, where=f"{path}:{number}") from error
            found.setdefault(cells[0], []).append((start - margin_bp, end + margin_bp))
    return found, {chrom: len(loci) for chrom, loci in found.items()}


def _allowed_starts(
    is_n: np.ndarray, loci: Sequence[tuple[int, int]], length: int
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Return runs ``[begin, end)`` of starts whose range lies in the chromosome, holds no N and touches no locus."""
    last = len(is_n) - length + 1
    if last < 1:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    steps = np.diff(np.concatenate([[False], is_n, [False]]).astype(np.int8))
    bounds = np.array(loci, dtype=np.int64).reshape(-1, 2)
    first = np.concatenate([np.flatnonzero(steps == 1), bounds[:, 0]])
    end = np.concatenate([np.flatnonzero(steps == -1), bounds[:, 1]])
    order = np.argsort(first, kind="stable")
    # a range from s on touches [first, end) if s > first - length and s < end
    first, end = np.clip(first[order] - length + 1, 0, last), np.clip(end[order], 0, last)
    reach = np.maximum.accumulate(np.concatenate([[0], end]))
    begins, ends = reach, np.concatenate([first, [last]])
    free = ends > begins
    return begins[free].astype(np.int64), ends[free].astype(np.int64)


def _distinct_numbers(rng: np.random.Generator, limit: int, n: int) -> Int64[np.ndarray, " n"]:
    """Return `n` different numbers below a limit, ascending."""
    if n * 4 > limit:
        return np.sort(rng.permutation(limit)[:n]).astype(np.int64)
    found = np.empty(0, dtype=np.int64)
    while len(found) < n:
        found = np.unique(np.concatenate([found, rng.integers(0, limit, n + n // 8 + 16)]))
        if len(found) > n:
            found = np.sort(rng.permutation(found)[:n])
    return found
