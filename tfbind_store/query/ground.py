"""The ground that rows stand on: where a row fits, and which bins may be negatives of which experiment.

A row is placed around an *anchor* bin (a summit's bin, or an unbound one) inside its *room*: the longest stretch of
bins around the anchor that lies in one chromosome, in one stratum of places (``places``), and in windows that are not
all N. What is forbidden is kept per *group*, all experiments of one factor in one biotype, on a number line of its own:
``group * n_bins + global_bin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int16, Int64, Integer

from tfbind_store.catalog.columns import Columns
from tfbind_store.loci import Tiling
from tfbind_store.query import draws
from tfbind_store.query.labels import Intervals, Truth
from tfbind_store.query.stretches import Stretches, bin_spans, covered

_INTERVALS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class RowPlacer:
    """Places rows of `n_bins` bins around anchors, each inside the room that holds its anchor."""

    first: Int64[np.ndarray, " rooms"]
    """First global bin of each room, ascending."""
    last: Int64[np.ndarray, " rooms"]
    n_bins: int
    jitter: float
    seed: int

    @classmethod
    def over(
        cls,
        tiling: Tiling,
        empty: Bool[np.ndarray, " windows"],
        *,
        n_bins: int,
        jitter: float,
        seed: int,
        stratum: Int16[np.ndarray, " bins"] | None = None,
    ) -> RowPlacer:
        """Find the rooms of a genome.

        Parameters
        ----------
        empty
            Windows that are all N: nobody embeds them, no row may reach into them.
        jitter
            How far a row's centre may lie from its anchor, as a share of the row's bins.
        stratum
            Of each bin; rows do not cross from one to another, and there is no room in -1.
        """
        code = np.zeros(tiling.n_bins, dtype=np.int16) if stratum is None else np.array(stratum, dtype=np.int16)
        code[np.repeat(empty, tiling.grid.n_bins)] = -1
        begins = np.ones(tiling.n_bins, dtype=bool)
        begins[1:] = code[1:] != code[:-1]
        for chrom in range(len(tiling.chroms)):
            bins = tiling.global_bins(chrom)
            end = int(tiling.first_window[chrom + 1]) * tiling.grid.n_bins
            code[int(bins[-1]) + 1 : end] = -1
            begins[bins[0]] = True
            if bins[-1] + 1 < tiling.n_bins:
                begins[bins[-1] + 1] = True
        first = np.flatnonzero(begins).astype(np.int64)
        last = np.append(first[1:] - 1, tiling.n_bins - 1)
        real = code[first] >= 0
        return cls(first[real], last[real], n_bins, jitter, seed)

    def fits(self, anchor: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return which anchors have room for a row."""
        first, last = self._room(anchor)
        fits: Bool[np.ndarray, " n"] = (anchor >= first) & (anchor <= last) & (last - first + 1 >= self.n_bins)
        return fits

    def first_bins(
        self, experiment_ids: Int64[np.ndarray, " n"], anchor: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Return the first bin of each row: centred, moved by the seeded jitter, shifted back into its room."""
        wanted = self._wanted(experiment_ids, anchor)
        first, last = self._room(anchor)
        inside: Int64[np.ndarray, " n"] = np.clip(wanted, first, last - self.n_bins + 1)
        return inside

    def shifted(
        self, experiment_ids: Int64[np.ndarray, " n"], anchor: Int64[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Return which rows were shifted back into their room."""
        return np.asarray(self._wanted(experiment_ids, anchor) != self.first_bins(experiment_ids, anchor))

    def _wanted(self, ids: Int64[np.ndarray, " n"], anchor: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        reach = int(self.n_bins * self.jitter)
        centred = np.asarray(anchor, dtype=np.int64) - self.n_bins // 2
        if not reach:
            return centred
        moved = draws.below(draws.draw(self.seed, "jitter", ids, anchor), 2 * reach + 1) - reach
        return np.asarray(centred + moved)

    def _room(self, anchor: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        if not len(self.first):
            return np.zeros(len(anchor), dtype=np.int64), np.full(len(anchor), -1, dtype=np.int64)
        room = np.maximum(np.searchsorted(self.first, anchor, side="right") - 1, 0)
        return self.first[room], self.last[room]


@dataclass(frozen=True)
class Ground:
    """Everything that the kinds and the acceptance rule look at."""

    truth: Truth
    group: Int64[np.ndarray, " e"]
    """Of each experiment of `truth`: the same for all of one factor in one biotype."""
    biotype_id: Int64[np.ndarray, " e"]
    stratum: Int16[np.ndarray, " bins"]
    """Of each global bin's place; -1 where there are no rows."""
    n_strata: int
    own: Stretches
    """Keys that peaks of the group touch or bind; where rows have one bin, the same as `near`."""
    near: Stretches
    """Keys within the margin of those peaks and of the group's relaxed peaks."""
    near_exclusion: Bool[np.ndarray, " bins"]
    placer: RowPlacer
    seed: int
    acgt: Integer[np.ndarray, " bins"] | None = None
    """Bases of each bin that are A, C, G or T; for negatives of like composition."""
    gc: Integer[np.ndarray, " bins"] | None = None
    """Bases of each bin that are G or C."""
    listed: Columns | None = None
    """Loci that were imported as unbound, ``reads.listed_negatives``."""

    @cached_property
    def anchor_stratum(self) -> Int16[np.ndarray, " bins"]:
        """The stratum of each global bin; -1 where no negative may be anchored."""
        tiling = self.truth.tiling
        stratum = self.stratum.copy()
        stratum[~self.truth.scorable | self.near_exclusion] = -1
        placer = self.placer
        fitting = placer.last - placer.first + 1 >= placer.n_bins
        stratum[~covered(placer.first[fitting], placer.last[fitting], tiling.n_bins)] = -1
        return stratum

    @cached_property
    def bound_by_anyone(self) -> Bool[np.ndarray, " bins"]:
        """Whether any experiment of the catalog binds a bin."""
        bound = np.zeros(self.truth.tiling.n_bins, dtype=bool)
        bound[self.truth.positive_keys % self.truth.tiling.n_bins] = True
        return bound

    def accepts(
        self,
        experiment_id: Int64[np.ndarray, " n"],
        anchor: Int64[np.ndarray, " n"],
        first_bin: Int64[np.ndarray, " n"],
    ) -> Bool[np.ndarray, " n"]:
        """Return which rows may be negatives of their experiment."""
        base = self.group[self.truth.place(experiment_id)] * self.truth.tiling.n_bins
        good: Bool[np.ndarray, " n"] = ~self.near_exclusion[anchor] & ~self.near.hold(base + anchor)
        if self.own is not self.near:
            good &= ~self.own.touched_by(base + first_bin, base + first_bin + self.placer.n_bins - 1)
        rest = np.flatnonzero(good)
        good[rest] = self.truth.codes(experiment_id[rest], anchor[rest])[:, 0] == 0
        return good


def make_ground(
    truth: Truth,
    *,
    factor_id: Int64[np.ndarray, " e"],
    biotype_id: Int64[np.ndarray, " e"],
    peaks: Intervals,
    relaxed: Intervals,
    exclusions: Intervals,
    stratum: Int16[np.ndarray, " bins"],
    placer: RowPlacer,
    margin_bp: int,
    seed: int,
    chosen: Bool[np.ndarray, " e"] | None = None,
    n_strata: int = 3,
    acgt: Integer[np.ndarray, " bins"] | None = None,
    gc: Integer[np.ndarray, " bins"] | None = None,
    listed: Columns | None = None,
) -> Ground:
    """Work out the forbidden stretches of every group.

    Peaks of a twin (another experiment of the same factor in the same biotype) count as the experiment's own: the same
    input may not be bound in one row and unbound in another by chance of replication.

    Parameters
    ----------
    chosen
        Experiments that may get negatives, by default all; the others cost nothing.
    """
    tiling = truth.tiling
    _, group = np.unique(np.stack([factor_id, biotype_id]), axis=1, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)
    wanted = np.ones(len(group), dtype=bool) if chosen is None else np.isin(group, group[chosen])
    peaks, relaxed = _of_places(truth, peaks, wanted), _of_places(truth, relaxed, wanted)
    near = _stretches(truth, group, (peaks, relaxed), margin_bp)
    # a row of one bin is its anchor: it touches nothing that is not near
    own = near if placer.n_bins == 1 else _stretches(truth, group, (peaks,), 0)
    spans = bin_spans(tiling, exclusions.chrom_id, exclusions.start_bp, exclusions.end_bp, margin_bp=margin_bp)
    return Ground(
        truth=truth,
        group=group,
        biotype_id=biotype_id,
        stratum=stratum,
        n_strata=n_strata,
        own=own,
        near=near,
        near_exclusion=covered(spans.first, spans.last, tiling.n_bins),
        placer=placer,
        seed=seed,
        acgt=acgt,
        gc=gc,
        listed=listed,
    )


def _of_places(truth: Truth, intervals: Intervals, wanted: Bool[np.ndarray, " e"]) -> Intervals:
    if wanted.all():
        return intervals
    keep = wanted[truth.place(intervals.experiment_id)]
    return Intervals(*(column[keep] for column in intervals))


def _stretches(
    truth: Truth, group: Int64[np.ndarray, " e"], intervals: Sequence[Intervals], margin_bp: int
) -> Stretches:
    """Return what intervals touch, by group; a peak binds only bins that it touches, so these are among them.

    Some groups at a time, so that memory stays bounded: their keys follow each other.
    """
    owners = [group[truth.place(these.experiment_id)].astype(np.int32) for these in intervals]
    counts = sum(np.bincount(owner, minlength=int(group.max(initial=0)) + 1) for owner in owners)
    part = (np.cumsum(counts) // _INTERVALS_AT_ONCE).astype(np.int32)
    parts = [part[owner] for owner in owners]
    found = []
    for number in range(int(part[-1]) + 1):
        ends = [np.empty((2, 0), dtype=np.int64)]
        for these, owner, part_of in zip(intervals, owners, parts, strict=True):
            mine = np.flatnonzero(part_of == number)
            columns = (column[mine] for column in (these.chrom_id, these.start_bp, these.end_bp))
            spans = np.stack(bin_spans(truth.tiling, *columns, margin_bp=margin_bp))
            spans += owner[mine].astype(np.int64) * truth.tiling.n_bins
            ends.append(spans)
        found.append(Stretches.merged(*np.concatenate(ends, axis=1)))
    return Stretches(*(np.concatenate([getattr(some, name) for some in found]) for name in ("first", "last")))
