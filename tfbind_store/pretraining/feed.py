"""Stretches of sequence with the peaks of many experiments as binned tracks: what a trunk is trained on.

Every pass tiles the training chromosomes from another random base, so that bins begin anywhere, and turns half of the
stretches to their reverse complement with the labels mirrored. Labels follow the selection's rule; bins that are N,
blacklisted, ambiguous, past a chromosome's end or of an unlabelled chromosome are NaN. Only the chromosomes and
experiments that are asked for are ever read; where a split divides a chromosome, the evidence's scorable bins say
which of its bins have labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from tfbind_store.genome import Genome
from tfbind_store.loci import Grid, Tiling
from tfbind_store.query.labels import Intervals, LabelRule, bound_bins
from tfbind_store.query.rows import Evidence
from tfbind_store.query.stretches import bin_spans, expand

COMPLEMENT = np.array([3, 2, 1, 0, 4, 5], dtype=np.uint8)


class Stretch(NamedTuple):
    """Where an example lies; `start` may be negative and the end past the chromosome."""

    chrom: int
    start: int
    is_reverse: bool


class TrackBatch(NamedTuple):
    """Sequence codes with labels."""

    codes: UInt8[np.ndarray, "b bp"]
    labels: Float32[np.ndarray, "b n tracks"]


@dataclass(frozen=True)
class TrackFeed:
    """Reads examples of some experiments on some chromosomes."""

    genome: Genome
    evidence: Evidence
    rule: LabelRule
    experiment_ids: Int64[np.ndarray, " tracks"]
    """Ascending; one track each, in this order."""
    chroms: tuple[int, ...]
    """Chromosome numbers that may be read."""
    window_bp: int
    reverse_complement: bool = True
    random_offset: bool = True
    context_bp: int = 0
    """Bases that are read on both sides of the labelled ones."""
    shift_bp: int = 0
    """Each stretch is moved by up to so many bases, its labels with it."""

    def __post_init__(self) -> None:
        assert self.window_bp % self.bin_bp == 0, "a stretch holds whole bins"
        assert (np.diff(self.experiment_ids) > 0).all(), "experiment ids must ascend"

    @property
    def bin_bp(self) -> int:
        """Width of a bin: the store's own."""
        return self.evidence.tiling.grid.bin_bp

    @property
    def n_bins(self) -> int:
        """Bins per stretch."""
        return self.window_bp // self.bin_bp

    def one_pass(self, rng: np.random.Generator) -> list[Stretch]:
        """Return stretches that cover every base of the chromosomes once, in random order; those without labels not."""
        stretches: list[Stretch] = []
        for chrom in self.chroms:
            length = self.evidence.tiling.lengths_bp[chrom]
            offset = int(rng.integers(self.window_bp)) if self.random_offset else 0
            for start in range(-offset, length, self.window_bp):
                is_reverse = bool(rng.integers(2)) and self.reverse_complement
                shift = int(rng.integers(-self.shift_bp, self.shift_bp + 1)) if self.shift_bp else 0
                stretch = Stretch(chrom, start + shift, is_reverse)
                if self._touches(stretch):
                    stretches.append(stretch)
        return [stretches[index] for index in rng.permutation(len(stretches))]

    def batch(self, stretches: Sequence[Stretch]) -> TrackBatch:
        """Read examples."""
        codes, labels = zip(*(self._example(stretch) for stretch in stretches), strict=True)
        return TrackBatch(np.stack(codes), np.stack(labels))

    def part_labels(
        self, stretches: Sequence[Stretch], labels: Float32[np.ndarray, "b n tracks"], n_parts: int
    ) -> Float32[np.ndarray, "b parts tracks"]:
        """Return labels of equal parts of bins by the same rule; those of a bin without a label (NaN) have none."""
        found = np.stack([self._bound(stretch, _alone(self.window_bp, self.n_bins * n_parts)) for stretch in stretches])
        found[np.isnan(labels).repeat(n_parts, axis=1)] = np.nan
        return found

    def chrom_name(self, stretch: Stretch) -> str:
        """Return the name of a stretch's chromosome."""
        return self.evidence.tiling.chroms[stretch.chrom]

    def prevalence(self) -> Float32[np.ndarray, " tracks"]:
        """Return the share of bound bins of each track over the chromosomes, on the store's own bins."""
        truth = self.evidence.truth(self.rule)
        bins = np.concatenate([self.evidence.tiling.global_bins(chrom) for chrom in self.chroms])
        n_bins = max(1, int(self.evidence.scorable[bins].sum()))
        inside = np.zeros(self.evidence.tiling.n_bins, dtype=bool)
        inside[bins] = self.evidence.scorable[bins]
        counts = [int(inside[truth.positives(int(experiment))].sum()) for experiment in self.experiment_ids]
        return np.array(counts, dtype=np.float32) / np.float32(n_bins)

    def _example(self, stretch: Stretch) -> tuple[UInt8[np.ndarray, " bp"], Float32[np.ndarray, "n tracks"]]:
        chrom = self.chrom_name(stretch)
        begin, end = stretch.start - self.context_bp, stretch.start + self.window_bp + self.context_bp
        codes = np.asarray(self.genome.codes(chrom, begin, end))
        labels = self._labels(stretch)
        if stretch.is_reverse:
            return COMPLEMENT[codes[::-1]], labels[::-1]
        return codes, labels

    def _labels(self, stretch: Stretch) -> Float32[np.ndarray, "n tracks"]:
        local = _alone(self.window_bp, self.n_bins)
        bound = self._peaks_on(stretch, local)
        labels = np.zeros((self.n_bins, len(self.experiment_ids)), dtype=np.float32)
        relaxed = self._relaxed[stretch.chrom].near(stretch.start, self.window_bp)
        if len(relaxed.start_bp):
            spans = bin_spans(local, np.zeros(len(relaxed.start_bp)), relaxed.start_bp, relaxed.end_bp)
            which, bins = expand(spans.first, spans.last)
            labels[bins, relaxed.experiment_id[which]] = np.nan
        labels[bound] = 1
        labels[~self._scorable(stretch)] = np.nan
        labels[:, ~self._labelled[:, stretch.chrom]] = np.nan
        return labels

    def _peaks_on(self, stretch: Stretch, local: Tiling) -> tuple[np.ndarray, np.ndarray]:
        """Return (bin, track) of every bin of a stretch that is bound."""
        peaks = self._peaks[stretch.chrom].near(stretch.start, self.window_bp)
        which, bins = bound_bins(local, peaks, self.rule)
        return bins, peaks.experiment_id[which]

    def _bound(self, stretch: Stretch, local: Tiling) -> Float32[np.ndarray, "n tracks"]:
        bound = np.zeros((local.grid.n_bins, len(self.experiment_ids)), dtype=np.float32)
        bound[self._peaks_on(stretch, local)] = 1
        return bound[::-1] if stretch.is_reverse else bound

    def _touches(self, stretch: Stretch) -> bool:
        """Return whether any bin of the store that a stretch touches may be scored."""
        own = self.evidence.tiling.global_bins(stretch.chrom)
        begin, end = max(0, stretch.start // self.bin_bp), -(-(stretch.start + self.window_bp) // self.bin_bp)
        return bool(self.evidence.scorable[own[begin : max(0, end)]].any())

    def _scorable(self, stretch: Stretch) -> np.ndarray:
        """Return which bins touch only store bins that may be scored."""
        starts = stretch.start + np.arange(self.n_bins) * self.bin_bp
        own = self.evidence.tiling.global_bins(stretch.chrom)
        good = np.ones(self.n_bins, dtype=bool)
        for position in (starts, starts + self.bin_bp - 1):
            place = position // self.bin_bp
            inside = (place >= 0) & (place < len(own))
            good &= inside & self.evidence.scorable[own[np.where(inside, place, 0)]]
        return good

    @cached_property
    def _peaks(self) -> dict[int, _Sorted]:
        return self._by_chromosome(self.evidence.peaks, use_summit=self.rule.kind == "summit")

    @cached_property
    def _relaxed(self) -> dict[int, _Sorted]:
        return self._by_chromosome(self.evidence.relaxed, use_summit=False)

    @cached_property
    def _labelled(self) -> np.ndarray:
        place = np.searchsorted(self.evidence.experiments["experiment_id"], self.experiment_ids)
        return self.evidence.labelled[place]

    def _by_chromosome(self, intervals: Intervals, *, use_summit: bool) -> dict[int, _Sorted]:
        asked = np.isin(intervals.experiment_id, self.experiment_ids)
        track = np.searchsorted(self.experiment_ids, intervals.experiment_id)
        return {
            chrom: _Sorted.of(intervals, np.flatnonzero(asked & (intervals.chrom_id == chrom)), track, use_summit)
            for chrom in self.chroms
        }


@lru_cache(maxsize=16)
def _alone(window_bp: int, n_bins: int) -> Tiling:
    """Return one stretch as a genome of its own, so that the one label rule applies to any offset."""
    grid = Grid(window_bp=window_bp, n_bins=n_bins, bin_bp=window_bp // n_bins)
    return Tiling.over(grid, {"stretch": window_bp})


@dataclass(frozen=True)
class _Sorted:
    """Intervals of one chromosome by start, with the track in place of the experiment."""

    intervals: Intervals
    longest_bp: int

    @classmethod
    def of(cls, intervals: Intervals, rows: np.ndarray, track: np.ndarray, use_summit: bool) -> _Sorted:
        start = np.asarray(intervals.summit_bp if use_summit else intervals.start_bp, dtype=np.int64)[rows]
        end = start + 1 if use_summit else np.asarray(intervals.end_bp, dtype=np.int64)[rows]
        order = np.argsort(start, kind="stable")
        summit = np.asarray(intervals.summit_bp, dtype=np.int64)[rows][order]
        columns = Intervals(track[rows][order], np.zeros(len(rows), np.int64), start[order], end[order], summit)
        return cls(columns, int((end - start).max(initial=1)))

    def near(self, start: int, length_bp: int) -> Intervals:
        """Return what overlaps a stretch, in its own coordinates, cut at its ends."""
        column = self.intervals
        low, high = np.searchsorted(column.start_bp, [start - self.longest_bp, start + length_bp])
        begin = np.maximum(column.start_bp[low:high] - start, 0)
        end = np.minimum(column.end_bp[low:high] - start, length_bp)
        keep = end > begin
        summit = column.summit_bp[low:high] - start
        return Intervals(
            column.experiment_id[low:high][keep],
            column.chrom_id[low:high][keep],
            begin[keep],
            end[keep],
            summit[keep],
        )


def mutated(codes: UInt8[np.ndarray, "b bp"], most: float, rng: np.random.Generator) -> UInt8[np.ndarray, "b bp"]:
    """Change bases to another one at random; each row draws its own share of them, up to `most`.

    Examples
    --------
    >>> codes = np.array([[0, 1, 2, 3, 4, 5]], dtype=np.uint8)
    >>> mutated(codes, 0.0, np.random.default_rng(0)).tolist()
    [[0, 1, 2, 3, 4, 5]]
    """
    share = rng.random((len(codes), 1), dtype=np.float32) * np.float32(most)
    hit = (rng.random(codes.shape, dtype=np.float32) < share) & (codes < 4)
    other = (codes + rng.integers(1, 4, size=codes.shape, dtype=np.uint8)) % 4
    return np.where(hit, other, codes).astype(np.uint8)
