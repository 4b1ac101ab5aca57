"""The ground that rows stand on: where a row fits, and which bins may be negatives of which experiment.

A row is placed around an *anchor* bin (a summit's bin, or an unbound one) inside its *room*: the longest stretch of
bins around the anchor that lies in one chromosome and in windows that are not all N. Keys are those of ``labels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int8, Int64

from tfbind_store.loci import Tiling
from tfbind_store.query import draws
from tfbind_store.query.labels import Intervals, Truth
from tfbind_store.query.stretches import Stretches, bin_spans


@dataclass(frozen=True)
class RowPlacer:
    """Places rows of `n_bins` bins around anchors, inside a chromosome and inside windows that are embedded."""

    room_first: Int64[np.ndarray, " windows"]
    """First global bin that a row anchored in a window may cover."""
    room_last: Int64[np.ndarray, " windows"]
    """Last such bin; before the first where nothing fits."""
    bins_per_window: int
    n_bins: int
    jitter: float
    seed: int

    @classmethod
    def over(
        cls, tiling: Tiling, empty: Bool[np.ndarray, " windows"], *, n_bins: int, jitter: float, seed: int
    ) -> RowPlacer:
        """Find the room around every window of a genome.

        Parameters
        ----------
        empty
            Windows that are all N: nobody embeds them, no row may reach into them.
        jitter
            How far a row's centre may lie from its anchor, as a share of the row's bins.
        """
        chrom = tiling.window_chrom(np.arange(tiling.n_windows))
        begins = np.ones(tiling.n_windows, dtype=bool)
        begins[1:] = (chrom[1:] != chrom[:-1]) | (empty[1:] != empty[:-1])
        run = np.cumsum(begins) - 1
        first_window = np.flatnonzero(begins)
        last_window = np.append(first_window[1:] - 1, tiling.n_windows - 1)
        real = np.array([tiling.n_real_bins(index) for index in range(len(tiling.chroms))], dtype=np.int64)
        chrom_last = tiling.first_window[:-1] * tiling.grid.n_bins + real - 1
        first = first_window * tiling.grid.n_bins
        last = np.minimum((last_window + 1) * tiling.grid.n_bins - 1, chrom_last[chrom[first_window]])
        return cls(first[run], np.where(empty, -1, last[run]), tiling.grid.n_bins, n_bins, jitter, seed)

    def fits(self, anchor: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return which anchors have room for a row."""
        window = anchor // self.bins_per_window
        first, last = self.room_first[window], self.room_last[window]
        fits: Bool[np.ndarray, " n"] = (anchor >= first) & (anchor <= last) & (last - first + 1 >= self.n_bins)
        return fits

    def first_bins(
        self, experiment_ids: Int64[np.ndarray, " n"], anchor: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Return the first bin of each row: centred, moved by the seeded jitter, shifted back into its room."""
        reach = int(self.n_bins * self.jitter)
        moved = draws.below(draws.draw(self.seed, "jitter", experiment_ids, anchor), 2 * reach + 1) - reach
        window = anchor // self.bins_per_window
        first = anchor - self.n_bins // 2 + moved
        inside: Int64[np.ndarray, " n"] = np.clip(
            first, self.room_first[window], self.room_last[window] - self.n_bins + 1
        )
        return inside


@dataclass(frozen=True)
class Ground:
    """Everything that the kinds and the acceptance rule look at."""

    truth: Truth
    factor_id: Int64[np.ndarray, " e"]
    """Of each experiment of `truth`, as the next."""
    biotype_id: Int64[np.ndarray, " e"]
    chrom_part: Int8[np.ndarray, " chroms"]
    own: Stretches
    """Keys that peaks of the experiment, or of its twins, touch or bind."""
    near: Stretches
    """Keys within the margin of those peaks and of relaxed peaks."""
    near_exclusion: Bool[np.ndarray, " bins"]
    placer: RowPlacer
    seed: int

    @cached_property
    def bin_part(self) -> Int8[np.ndarray, " bins"]:
        """The part of each global bin's chromosome; -1 where no row may be anchored."""
        tiling = self.truth.tiling
        part = np.repeat(self.chrom_part[self.truth.bin_chrom], tiling.grid.n_bins)
        part[~self.truth.scorable | self.near_exclusion] = -1
        part[~self.placer.fits(np.arange(tiling.n_bins, dtype=np.int64))] = -1
        return part

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
        base = self.truth.place(experiment_id) * self.truth.tiling.n_bins
        good: Bool[np.ndarray, " n"] = self.truth.codes(experiment_id, anchor)[:, 0] == 0
        good &= ~self.near_exclusion[anchor] & ~self.near.hold(base + anchor)
        good &= ~self.own.touched_by(base + first_bin, base + first_bin + self.placer.n_bins - 1)
        return good


def make_ground(
    truth: Truth,
    *,
    factor_id: Int64[np.ndarray, " e"],
    biotype_id: Int64[np.ndarray, " e"],
    peaks: Intervals,
    relaxed: Intervals,
    exclusions: Intervals,
    chrom_part: Int8[np.ndarray, " chroms"],
    placer: RowPlacer,
    margin_bp: int,
    seed: int,
) -> Ground:
    """Work out the forbidden stretches of every experiment.

    Peaks of a twin (another experiment of the same factor in the same biotype) count as the experiment's own: the same
    input may not be bound in one row and unbound in another by chance of replication.
    """
    tiling = truth.tiling
    twins = _twins(factor_id, biotype_id)
    place = truth.place(peaks.experiment_id)
    touched = bin_spans(tiling, peaks.chrom_id, peaks.start_bp, peaks.end_bp)
    wide = bin_spans(tiling, peaks.chrom_id, peaks.start_bp, peaks.end_bp, margin_bp=margin_bp)
    relaxed_place = truth.place(relaxed.experiment_id)
    relaxed_wide = bin_spans(tiling, relaxed.chrom_id, relaxed.start_bp, relaxed.end_bp, margin_bp=margin_bp)
    bound_place, bound = np.divmod(truth.positive_keys, tiling.n_bins)
    near_exclusion = np.zeros(tiling.n_bins, dtype=bool)
    spans = bin_spans(tiling, exclusions.chrom_id, exclusions.start_bp, exclusions.end_bp, margin_bp=margin_bp)
    for first, last in zip(spans.first.tolist(), spans.last.tolist(), strict=True):
        near_exclusion[first : last + 1] = True
    return Ground(
        truth=truth,
        factor_id=factor_id,
        biotype_id=biotype_id,
        chrom_part=chrom_part,
        own=_for_twins(twins, tiling.n_bins, (place, touched.first, touched.last), (bound_place, bound, bound)),
        near=_for_twins(
            twins, tiling.n_bins, (place, wide.first, wide.last), (relaxed_place, relaxed_wide.first, relaxed_wide.last)
        ),
        near_exclusion=near_exclusion,
        placer=placer,
        seed=seed,
    )


def _twins(factor_id: Int64[np.ndarray, " e"], biotype_id: Int64[np.ndarray, " e"]) -> list[np.ndarray]:
    """Return for each experiment the places of all with its factor and biotype, itself among them."""
    _, group = np.unique(np.stack([factor_id, biotype_id]), axis=1, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group.reshape(-1)))[:-1])
    return [members[number] for number in group.reshape(-1).tolist()]


def _for_twins(twins: list[np.ndarray], n_bins: int, *spans: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Stretches:
    """Return the stretches of (experiment's place, first, last) triples, given to every twin of the experiment."""
    place = np.concatenate([span[0] for span in spans])
    first, last = (np.concatenate([span[side] for span in spans]) for side in (1, 2))
    n_twins = np.array([len(members) for members in twins], dtype=np.int64)
    row = np.repeat(np.arange(len(place)), n_twins[place])
    offset = np.arange(len(row)) - np.repeat(np.cumsum(n_twins[place]) - n_twins[place], n_twins[place])
    starts = np.cumsum(n_twins) - n_twins
    flat = np.concatenate([*twins, np.empty(0, np.int64)]).astype(np.int64)
    base = flat[starts[place[row]] + offset] * n_bins
    return Stretches.merged(base + first[row], base + last[row])
