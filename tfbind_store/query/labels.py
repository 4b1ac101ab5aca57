"""Which bins are bound in which experiment: the one label rule of selections, evaluation and track training.

A label is 1 (bound), 0 (unbound) or not known, written -1 in integer codes and NaN in floats. Not known are: bins past
a chromosome's end, bins that are all N, bins that a blacklist touches, every bin of a chromosome on which the
experiment's source has no row at all, and bins that a relaxed peak touches and no peak binds (the ambiguous zone).

Bins are global (``loci.Tiling``). Bins of many experiments live on one number line by the key
``place * n_bins + global_bin``, where *place* counts the experiments in ascending order of id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64, Integer

from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.loci import Tiling
from tfbind_store.query import reads
from tfbind_store.query.stretches import Stretches, bin_spans, distinct, expand, member
from tfbind_store.store.folder import Store

NOT_LABELLED = -1
_AS_FLOATS = np.array([0, 1, np.nan], dtype=np.float32)
_CODES_AT_ONCE = 1 << 20
"""Labels that are looked up at once, so that memory stays bounded."""

_PEAKS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class LabelRule:
    """When a peak binds a bin.

    ``summit``: the bin holds the peak's summit. ``overlap``: the bin and the peak share at least `fraction` of the
    shorter of the two, so that a peak shorter than a bin can bind one.
    """

    kind: Literal["summit", "overlap"] = "summit"
    fraction: float = 0.5

    @classmethod
    def parse(cls, text: str) -> LabelRule:
        """Read a rule as it is written in configs.

        Examples
        --------
        >>> LabelRule.parse("overlap:0.25")
        LabelRule(kind='overlap', fraction=0.25)
        """
        kind, _, fraction = text.partition(":")
        try:
            value = float(fraction) if fraction else 0.5
        except ValueError:
            value = -1.0
        if kind not in ("summit", "overlap") or not 0 < value <= 1 or (kind == "summit" and fraction):
            raise ConfigError(f"{text!r} is no label rule", where="rule", fix="write summit or overlap:0.5")
        return cls(kind, value)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return "summit" if self.kind == "summit" else f"overlap:{self.fraction:g}"


class Intervals(NamedTuple):
    """Intervals of experiments as columns: bp, 0-based, half-open; `summit_bp` equals the start where there is none."""

    experiment_id: Integer[np.ndarray, " n"]
    chrom_id: Integer[np.ndarray, " n"]
    start_bp: Integer[np.ndarray, " n"]
    end_bp: Integer[np.ndarray, " n"]
    summit_bp: Integer[np.ndarray, " n"]


def bound_bins(
    tiling: Tiling, peaks: Intervals, rule: LabelRule
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Return (which peak, global bin) for every bin that a peak binds under `rule`."""
    if rule.kind == "summit":
        spans = bin_spans(tiling, peaks.chrom_id, peaks.summit_bp, np.asarray(peaks.summit_bp) + 1)
        return np.arange(len(spans.first), dtype=np.int64), spans.first
    spans = bin_spans(tiling, peaks.chrom_id, peaks.start_bp, peaks.end_bp)
    peak, global_bin = expand(spans.first, spans.last)
    bin_bp = tiling.grid.bin_bp
    base = tiling.first_window[np.asarray(peaks.chrom_id, np.int64)[peak]] * tiling.grid.n_bins
    bin_start = (global_bin - base) * bin_bp
    start, end = np.asarray(peaks.start_bp, np.int64)[peak], np.asarray(peaks.end_bp, np.int64)[peak]
    shared = np.minimum(end, bin_start + bin_bp) - np.maximum(start, bin_start)
    binds = shared >= rule.fraction * np.minimum(end - start, bin_bp)
    return peak[binds], global_bin[binds]


@dataclass(frozen=True)
class Truth:
    """What is known about the bins of some experiments under one label rule."""

    tiling: Tiling
    rule: LabelRule
    experiment_ids: Int64[np.ndarray, " e"]
    """Ascending."""
    positive_keys: Int64[np.ndarray, " p"]
    """Bound bins of all experiments by key, sorted, each once. Bins that are not scorable are among them."""
    ambiguous: Stretches
    """Keys that relaxed peaks touch."""
    labelled: Bool[np.ndarray, "e chroms"]
    """Whether an experiment's sources looked at a chromosome."""
    scorable: Bool[np.ndarray, " bins"]
    """Global bins with a base that is not N, in no blacklist."""

    @classmethod
    def build(
        cls,
        tiling: Tiling,
        *,
        experiment_ids: Integer[np.ndarray, " e"],
        peaks: Intervals,
        relaxed: Intervals | None,
        labelled: Bool[np.ndarray, "e chroms"],
        scorable: Bool[np.ndarray, " bins"],
        rule: LabelRule,
    ) -> Truth:
        """Assign bins to peaks; peaks of experiments that are not in `experiment_ids` are left out."""
        ids = np.asarray(experiment_ids, dtype=np.int64)
        assert (np.diff(ids) > 0).all(), "experiment ids must ascend"
        keys = distinct(
            np.concatenate([np.empty(0, np.int64), *_bound_keys(tiling, _of_experiments(peaks, ids), ids, rule)])
        )
        ambiguous = Stretches.of(np.empty(0, np.int64))
        if relaxed is not None and len(relaxed.chrom_id):
            relaxed = _of_experiments(relaxed, ids)
            spans = bin_spans(tiling, relaxed.chrom_id, relaxed.start_bp, relaxed.end_bp)
            base = np.searchsorted(ids, relaxed.experiment_id) * tiling.n_bins
            ambiguous = Stretches.merged(base + spans.first, base + spans.last)
        return cls(tiling, rule, ids, keys, ambiguous, np.asarray(labelled, bool), np.asarray(scorable, bool))

    def place(self, experiment_ids: Integer[np.ndarray, " n"] | Sequence[int]) -> Int64[np.ndarray, " n"]:
        """Return the place of each experiment; an unknown one is refused."""
        asked = experiment_ids if isinstance(experiment_ids, np.ndarray) else np.array(experiment_ids, dtype=np.int64)
        place: Int64[np.ndarray, " n"] = self._place_of[np.clip(asked, -1, len(self._place_of) - 1)]
        if (place < 0).any():
            unknown = int(asked[place < 0][0])
            raise SelectionError(f"experiment {unknown} is not among the labelled ones", where="labels")
        return place

    @cached_property
    def _place_of(self) -> Int64[np.ndarray, " ids"]:
        """Place by id, -1 for ids that are not among the experiments; the last entry stands for all others."""
        places = np.full(int(self.experiment_ids.max(initial=-1)) + 2, -1, dtype=np.int64)
        places[self.experiment_ids] = np.arange(len(self.experiment_ids))
        return places

    @cached_property
    def bin_chrom(self) -> Int64[np.ndarray, " windows"]:
        """Chromosome of each window."""
        return self.tiling.window_chrom(np.arange(self.tiling.n_windows))

    def codes(
        self,
        experiment_ids: Integer[np.ndarray, " n"] | Sequence[int],
        first_bins: Int64[np.ndarray, " n"],
        n_bins: int = 1,
    ) -> Int8[np.ndarray, "n n_bins"]:
        """Return 1, 0 or -1 for `n_bins` bins from each first bin on, each row for its own experiment.

        Bins that leave the chromosome of the row's first bin are -1.
        """
        place, first = self.place(experiment_ids), np.asarray(first_bins, dtype=np.int64)
        codes = np.empty((len(first), n_bins), dtype=np.int8)
        at_once = max(1, _CODES_AT_ONCE // n_bins)
        for begin in range(0, len(first), at_once):
            part = slice(begin, begin + at_once)
            codes[part] = self._codes(place[part, None], first[part], n_bins)
        return codes

    def _codes(
        self, place: Int64[np.ndarray, "n 1"], first: Int64[np.ndarray, " n"], n_bins: int
    ) -> Int8[np.ndarray, "n n_bins"]:
        bins = first[:, None] + np.arange(n_bins, dtype=np.int64)
        inside = (bins >= 0) & (bins < self.tiling.n_bins)
        safe = np.where(inside, bins, 0)
        chrom = self.bin_chrom[safe // self.tiling.grid.n_bins]
        keys = place * self.tiling.n_bins + safe
        codes = member(self.positive_keys, keys).astype(np.int8)
        unknown = np.zeros(codes.shape, dtype=bool)
        if len(self.ambiguous.first):
            unknown = (codes == 0) & self.ambiguous.hold(keys)
        unknown |= ~inside | ~self.scorable[safe] | ~self.labelled[place, chrom] | (chrom != chrom[:, :1])
        codes[unknown] = NOT_LABELLED
        return codes

    def labels(self, experiment_id: int, global_bins: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Return 1, 0 or NaN for bins of one experiment."""
        experiments = np.full(len(global_bins), experiment_id, dtype=np.int64)
        return as_labels(self.codes(experiments, global_bins)[:, 0])

    def positives(self, experiment_id: int) -> Int64[np.ndarray, " p"]:
        """Return the bins labelled 1 of one experiment, ascending."""
        place = int(self.place([experiment_id])[0])
        low, high = np.searchsorted(self.positive_keys, [place * self.tiling.n_bins, (place + 1) * self.tiling.n_bins])
        bins = self.positive_keys[low:high] - place * self.tiling.n_bins
        bound: Int64[np.ndarray, " p"] = bins[self.codes(np.full(len(bins), experiment_id), bins)[:, 0] == 1]
        return bound

    def raster(
        self, windows: Integer[np.ndarray, " w"] | Sequence[int], experiment_ids: Sequence[int] | np.ndarray
    ) -> Int8[np.ndarray, "w n_bins e"]:
        """Return the codes of every bin of some windows in some experiments, as tracks to train a trunk on."""
        grid_bins, total = self.tiling.grid.n_bins, self.tiling.n_bins
        windows = np.asarray(windows, dtype=np.int64)
        bins = windows[:, None] * grid_bins + np.arange(grid_bins)
        scorable, chrom = self.scorable[bins], self.bin_chrom[windows]
        raster = np.zeros((*bins.shape, len(experiment_ids)), dtype=np.int8)
        for column, place in enumerate(self.place(experiment_ids).tolist()):
            low, high = np.searchsorted(self.positive_keys, [place * total, (place + 1) * total])
            bound = np.zeros(total, dtype=bool)
            bound[self.positive_keys[low:high] - place * total] = True
            codes = bound[bins].astype(np.int8)
            if len(self.ambiguous.first):
                codes[(codes == 0) & self.ambiguous.hold(place * total + bins)] = NOT_LABELLED
            codes[~scorable | ~self.labelled[place, chrom][:, None]] = NOT_LABELLED
            raster[:, :, column] = codes
        return raster


def load_truth(store: Store, *, rule: LabelRule | str = "summit", experiment_ids: Sequence[int] | None = None) -> Truth:
    """Read from a store's newest snapshot what is known about some experiments, by default all.

    Examples
    --------
    ``load_truth(store).labels(experiment_id, store.tiling.global_bins(0))`` gives the labels of the first chromosome.
    """
    rule = LabelRule.parse(rule) if isinstance(rule, str) else rule
    with store.reader() as catalog:
        experiments = reads.experiments(catalog)
        peaks, relaxed = reads.peaks(catalog), reads.relaxed_peaks(catalog)
        labelled = reads.labelled_chromosomes(catalog, experiments["experiment_id"], len(store.tiling.chroms))
        scorable = reads.scorable_bins(store.tiling, reads.acgt_per_bin(store, catalog), reads.exclusions(catalog))
    ids = experiments["experiment_id"]
    chosen = np.ones(len(ids), bool) if experiment_ids is None else np.isin(ids, list(experiment_ids))
    return Truth.build(
        store.tiling,
        experiment_ids=ids[chosen],
        peaks=Intervals(*(peaks[name] for name in Intervals._fields)),
        relaxed=Intervals(*(relaxed[name] for name in Intervals._fields)),
        labelled=labelled[chosen],
        scorable=scorable,
        rule=rule,
    )


def as_labels(codes: Int8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Return codes as floats, -1 as NaN.

    Examples
    --------
    >>> as_labels(np.array([1, 0, -1], np.int8)).tolist()
    [1.0, 0.0, nan]
    """
    labels: Float32[np.ndarray, "..."] = _AS_FLOATS[codes]  # -1 is the last one
    return labels


def _bound_keys(
    tiling: Tiling, peaks: Intervals, ids: Int64[np.ndarray, " e"], rule: LabelRule
) -> Iterator[Int64[np.ndarray, " keys"]]:
    """Yield the keys of bound bins, of some peaks at a time so that memory stays bounded."""
    for begin in range(0, len(peaks.experiment_id), _PEAKS_AT_ONCE):
        some = Intervals(*(column[begin : begin + _PEAKS_AT_ONCE] for column in peaks))
        which, keys = bound_bins(tiling, some, rule)
        keys += np.searchsorted(ids, some.experiment_id[which]) * tiling.n_bins
        yield keys


def _of_experiments(intervals: Intervals, experiment_ids: Int64[np.ndarray, " e"]) -> Intervals:
    if not len(intervals.experiment_id):
        return intervals
    known = np.zeros(max(int(intervals.experiment_id.max()), int(experiment_ids.max(initial=0))) + 1, dtype=bool)
    known[experiment_ids] = True
    keep = known[intervals.experiment_id]
    return intervals if keep.all() else Intervals(*(column[keep] for column in intervals))
