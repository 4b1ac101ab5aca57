"""Write predictions as files that browsers and other tools read: bigWig, BED, narrowPeak.

Coordinates are bp, 0-based, half-open. Chromosomes stand in the order of their names, as UCSC's own tools put them, and
all of the genome's are in a bigWig's header. A bin without a score has no entry; the last bin of a chromosome ends
where the chromosome does. Each file is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyBigWig
from jaxtyping import Float32, Int64

from tfbind_store.durable import typed_errors
from tfbind_store.errors import ConfigError
from tfbind_store.loci import Tiling

Track = Callable[[str], Float32[np.ndarray, " bins"]]
"""Gives the numbers of a chromosome's bins."""
RUN_BINS = 1 << 16


class CalledPeak(NamedTuple):
    """Neighbouring bins at or above a cut-off."""

    chrom: str
    start: int
    end: int
    summit: int
    """Middle of the best bin."""
    value: float
    logit: float


def write_bigwig(path: Path, tiling: Tiling, track: Track) -> int:
    """Write a track and return how many bins it has."""
    lengths = dict(zip(tiling.chroms, tiling.lengths_bp, strict=True))
    n_written = 0
    with whole(path) as temporary:
        file = pyBigWig.open(str(temporary), "w")
        if file is None:
            raise ConfigError("cannot be written", where=str(path), fix="give a path that you may write")
        file.addHeader([(chrom, lengths[chrom]) for chrom in sorted(lengths)])
        for chrom in sorted(lengths):
            values = track(chrom)
            n_written += int((~np.isnan(values)).sum())
            for first, run in _runs(values):
                _add(file, chrom, first, run, tiling.grid.bin_bp, lengths[chrom])
        file.close()
    return n_written


def _runs(values: Float32[np.ndarray, " bins"]) -> Iterator[tuple[int, Float32[np.ndarray, " run"]]]:
    """Yield first bin and values of stretches without NaN, none longer than what is worth writing at once."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~np.isnan(values), [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2).tolist():
        for at in range(begin, end, RUN_BINS):
            yield at, values[at : min(at + RUN_BINS, end)]


def _add(file: object, chrom: str, first: int, run: Float32[np.ndarray, " run"], bin_bp: int, length_bp: int) -> None:
    add = file.addEntries  # type: ignore[attr-defined]
    rest_bp = length_bp - (first + len(run) - 1) * bin_bp
    whole = run[:-1] if rest_bp < bin_bp else run
    if len(whole):
        add(chrom, first * bin_bp, values=whole.astype(np.float64), span=bin_bp, step=bin_bp)
    if len(whole) < len(run):
        # of the same kind: where kinds of entries change, libBigWig leaves a section without any entry behind
        add(chrom, length_bp - rest_bp, values=run[-1:].astype(np.float64), span=rest_bp, step=rest_bp)


def call_peaks(
    chrom: str,
    length_bp: int,
    bin_bp: int,
    logits: Float32[np.ndarray, " bins"],
    values: Float32[np.ndarray, " bins"],
    cutoff: float,
) -> list[CalledPeak]:
    """Return neighbouring bins at or above a cut-off as peaks.

    Examples
    --------
    >>> scores = np.array([0, 2, 3, np.nan, 2], dtype=np.float32)
    >>> [(peak.start, peak.end, peak.summit) for peak in call_peaks("c", 45, 10, scores, scores, 2)]
    [(10, 30, 25), (40, 45, 42)]
    """
    called = np.nan_to_num(logits, nan=-np.inf) >= cutoff
    edges = np.flatnonzero(np.diff(np.concatenate([[False], called, [False]]).astype(np.int8)))
    peaks = []
    for begin, end in edges.reshape(-1, 2).tolist():
        best = begin + int(np.argmax(logits[begin:end]))
        middle = (best * bin_bp + min((best + 1) * bin_bp, length_bp)) // 2
        stop = min(end * bin_bp, length_bp)
        peaks.append(CalledPeak(chrom, begin * bin_bp, stop, middle, float(values[best]), float(logits[best])))
    return peaks


def write_peaks(
    path: Path,
    tiling: Tiling,
    logits: Track,
    probability: Callable[[Float32[np.ndarray, " bins"]], Float32[np.ndarray, " bins"]],
    cutoff: float,
    rate: Callable[[float], float],
    name: str,
) -> int:
    """Write peaks as BED6, or as narrowPeak where the name ends so, and return how many."""
    is_narrow = path.name.lower().endswith(".narrowpeak")
    lengths = dict(zip(tiling.chroms, tiling.lengths_bp, strict=True))
    n_peaks = 0
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for chrom in sorted(lengths):
            scores = logits(chrom)
            values = probability(scores)
            for peak in call_peaks(chrom, lengths[chrom], tiling.grid.bin_bp, scores, values, cutoff):
                n_peaks += 1
                score = max(0, min(1000, round(1000 * peak.value)))
                cells = [chrom, peak.start, peak.end, f"{name}_{n_peaks}", score, "."]
                if is_narrow:
                    fdr = rate(peak.logit)
                    q = -math.log10(fdr) if fdr > 0 else -1
                    cells += [f"{peak.value:.6g}", -1, f"{q:.4g}", peak.summit - peak.start]
                file.write("\t".join(map(str, cells)) + "\n")
    return n_peaks


def bins_of_loci(
    tiling: Tiling, chrom: Int64[np.ndarray, " n"], start: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return the first and one past the last global bin that each locus touches."""
    base = tiling.first_window[chrom] * tiling.grid.n_bins
    return base + start // tiling.grid.bin_bp, base + (np.maximum(end, start + 1) - 1) // tiling.grid.bin_bp + 1


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes `path` if the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with typed_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
