"""Where kinds of negatives look: the anchor bins that each of them proposes.

- *random*: bins that no experiment of the catalog binds.
- *gc*: of those, as many in each class of GC content and of N as the positives of the group have.
- *scoped*: bins that some experiment of the same biotype binds; what the rule of acceptance leaves is bound by another
  factor.
- *listed*: bins of loci that were imported as unbound in the experiment, then of those unbound in every one.
- *shifted*: bins up to ``shift_bp`` from a positive of the group, on either side.

A further kind is a function in `NEGATIVES`. It gives one or several sets of pools: a later set is asked for what the
earlier ones could not give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Int64, Integer

from tfbind_store.query.ground import Ground
from tfbind_store.query.stretches import bin_spans, distinct

GC_CLASSES = 50
"""Classes of GC content: 2 % each."""
GC_REACH = 2
"""How many classes away a bin may lie where its own class is used up."""
SHIFT_BP = 2_000
_BINS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Groups:
    """Rows wanted: group g is one experiment in one stratum of places."""

    experiment_id: Int64[np.ndarray, " g"]
    stratum: Int64[np.ndarray, " g"]
    positives: Int64[np.ndarray, " g"]
    """Positive rows that the ratios refer to."""
    anchor: Int64[np.ndarray, " a"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Bins of the positives, group after group."""
    owner: Int64[np.ndarray, " a"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The group of each of them, ascending."""


class Pools(NamedTuple):
    """Pools of anchors: pool p belongs to one group and holds `size[p]` of them."""

    group: Int64[np.ndarray, " p"]
    part: Int64[np.ndarray, " p"]
    """Tells the pools of one group apart."""
    size: Int64[np.ndarray, " p"]
    at: Callable[[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]], Int64[np.ndarray, " n"]]
    """The anchor at a place of a pool."""
    wanted: Int64[np.ndarray, " p"]
    """How many are asked of each pool; a later set stands for the same pools, only wider, and is asked for the rest."""


def random_pools(ground: Ground, groups: Groups, wanted: Int64[np.ndarray, " g"]) -> Iterator[Pools]:
    """Propose bins that no experiment of the catalog binds; one pool per stratum."""
    bins, offset = _sorted_by(_free(ground), ground.n_strata)
    yield _shared(bins, offset, groups.stratum, wanted)


def scoped_pools(ground: Ground, groups: Groups, wanted: Int64[np.ndarray, " g"]) -> Iterator[Pools]:
    """Propose bins that some experiment of the same biotype binds; one pool per biotype and stratum."""
    total = ground.truth.tiling.n_bins
    biotypes, index = np.unique(ground.biotype_id, return_inverse=True)
    found = [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(ground.truth.positive_keys), _BINS_AT_ONCE):
        place, bound = np.divmod(ground.truth.positive_keys[begin : begin + _BINS_AT_ONCE], total)
        stratum = ground.anchor_stratum[bound]
        keep = stratum >= 0
        found.append((index[place[keep]] * ground.n_strata + stratum[keep]) * total + bound[keep])
    keys = distinct(np.concatenate(found))
    offset = np.searchsorted(keys, np.arange(len(biotypes) * ground.n_strata + 1) * total).astype(np.int64)
    bins = (keys % total).astype(np.int32 if total < np.iinfo(np.int32).max else np.int64)
    own = index[ground.truth.place(groups.experiment_id)] * ground.n_strata + groups.stratum
    yield _shared(bins, offset, own, wanted)


def shifted_pools(
    ground: Ground, groups: Groups, wanted: Int64[np.ndarray, " g"], *, shift_bp: int = SHIFT_BP
) -> Iterator[Pools]:
    """Propose bins beside the positives of a group, on either side of each."""
    reach = max(1, shift_bp // ground.truth.tiling.grid.bin_bp) + ground.placer.n_bins // 2
    count = np.bincount(groups.owner, minlength=len(groups.positives)).astype(np.int64)
    begin = np.cumsum(count) - count

    def at(pool: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        which, step = np.divmod(place, 2 * reach)
        moved = np.where(step < reach, step - reach, step - reach + 1)
        bins = groups.anchor[begin[pool] + which] + moved
        return np.asarray(np.clip(bins, 0, ground.truth.tiling.n_bins - 1))

    every = np.arange(len(count), dtype=np.int64)
    yield Pools(every, np.zeros_like(every), count * 2 * reach, at, wanted)


def gc_pools(ground: Ground, groups: Groups, wanted: Int64[np.ndarray, " g"]) -> Iterator[Pools]:
    """Propose unbound bins of the same GC content and N as the positives; later ones of neighbouring GC classes."""
    assert ground.acgt is not None, "negatives of like composition need the genome's"
    assert ground.gc is not None, "negatives of like composition need the genome's"
    kinds = composition_classes(ground.gc, ground.acgt, ground.truth.tiling.grid.bin_bp, ground.placer.n_bins)
    n_kinds = 2 * GC_CLASSES
    free = _free(ground)
    assert ground.n_strata * n_kinds < np.iinfo(np.int16).max, "two bytes number all strata and classes"
    kinds_here = np.where(free >= 0, free * np.int16(n_kinds) + kinds, np.int16(-1))
    bins, offset = _sorted_by(kinds_here, ground.n_strata * n_kinds)
    parts = _parts_by_kind(groups, kinds[groups.anchor], n_kinds)
    group, kind = np.divmod(parts.cells, n_kinds)
    shares = parts.shares(wanted)
    for step in (0, *(side * reach for reach in range(1, GC_REACH + 1) for side in (1, -1))):
        there = kind % GC_CLASSES + step
        exists = (there >= 0) & (there < GC_CLASSES)
        pool = np.where(exists, groups.stratum[group] * n_kinds + kind + step, 0)
        size = np.where(exists, np.diff(offset)[pool], 0)
        yield Pools(group, kind, size, _Lookup(bins, offset[pool]), shares)


def listed_pools(ground: Ground, groups: Groups, wanted: Int64[np.ndarray, " g"]) -> Iterator[Pools]:
    """Propose the middle bins of loci that were imported as unbound: the experiment's own, then those of all."""
    assert ground.listed is not None, "listed negatives are read where they are asked for"
    truth, listed = ground.truth, ground.listed
    middle = (listed["start_bp"].astype(np.int64) + listed["end_bp"]) // 2
    bins = bin_spans(truth.tiling, listed["chrom_id"], middle, middle + 1).first
    is_own = np.isin(listed["experiment_id"], truth.experiment_ids)
    of_all = listed["experiment_id"] < 0
    place = np.zeros(len(bins), dtype=np.int64)
    place[is_own] = truth.place(listed["experiment_id"][is_own])
    for mine, own in ((is_own, truth.place(groups.experiment_id)), (of_all, np.zeros_like(groups.stratum))):
        stratum = ground.anchor_stratum[bins]
        keep = mine & (stratum >= 0)
        number = place[keep] * ground.n_strata + stratum[keep]
        keys = distinct(number * truth.tiling.n_bins + bins[keep])
        pool, there = np.divmod(keys, truth.tiling.n_bins)
        n_pools = len(truth.experiment_ids) * ground.n_strata
        offset = np.searchsorted(pool, np.arange(n_pools + 1)).astype(np.int64)
        yield _shared(there, offset, own * ground.n_strata + groups.stratum, wanted)


NEGATIVES: dict[str, Callable[[Ground, Groups, Int64[np.ndarray, " g"]], Iterator[Pools]]] = {
    "random": random_pools,
    "scoped": scoped_pools,
    "gc": gc_pools,
    "shifted": shifted_pools,
    "listed": listed_pools,
}
"""Kinds by name."""


def composition_classes(
    gc: Integer[np.ndarray, " bins"], acgt: Integer[np.ndarray, " bins"], bin_bp: int, n_bins: int
) -> Int16[np.ndarray, " bins"]:
    """Return the class of a row centred on each bin: by its GC content, and by whether it holds N.

    Examples
    --------
    >>> composition_classes(np.array([5, 10, 0]), np.array([10, 10, 5]), 10, 1).tolist()
    [25, 49, 50]
    """
    classes = np.empty(len(gc), dtype=np.int16)
    for begin in range(0, len(gc), _BINS_AT_ONCE):  # so that nothing else has the length of a genome
        end = min(begin + _BINS_AT_ONCE, len(gc))
        gc_sum, acgt_sum = (_centred_sums(values, begin, end, n_bins) for values in (gc, acgt))
        share = gc_sum / np.maximum(acgt_sum, 1)
        of_gc = np.minimum((share * GC_CLASSES).astype(np.int16), GC_CLASSES - 1)
        classes[begin:end] = of_gc + np.where(acgt_sum < n_bins * bin_bp, GC_CLASSES, 0)
    return classes


class _Lookup:
    """Anchors of pools that are stretches of one array of bins."""

    def __init__(self, bins: Integer[np.ndarray, " total"], first: Int64[np.ndarray, " p"]) -> None:
        self.bins, self.first = bins, first

    def __call__(self, pool: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.asarray(self.bins[self.first[pool] + place], dtype=np.int64)


class _Parts(NamedTuple):
    """Positives of groups by class: how many lie in each cell ``group * n_kinds + kind`` that has any."""

    cells: Int64[np.ndarray, " p"]
    number: Int64[np.ndarray, " p"]
    n_kinds: int

    def shares(self, wanted: Int64[np.ndarray, " g"]) -> Int64[np.ndarray, " p"]:
        """Divide what groups want among their cells in proportion, no row lost or added by rounding."""
        group = self.cells // self.n_kinds
        total = np.bincount(group, weights=self.number, minlength=len(wanted)).astype(np.int64)
        reached = np.cumsum(self.number)
        before = reached - self.number
        begins = np.concatenate([[True], group[1:] != group[:-1]]) if len(group) else np.empty(0, bool)
        base = np.repeat(before[begins], np.diff(np.append(np.flatnonzero(begins), len(group))))
        upto, since = reached - base, before - base
        return np.asarray(wanted[group] * upto // total[group] - wanted[group] * since // total[group])


def _parts_by_kind(groups: Groups, kind: Int16[np.ndarray, " a"], n_kinds: int) -> _Parts:
    """Count the positives of each group by class; a group without positives looks like all positives together."""
    cells = groups.owner * n_kinds + kind
    count = np.bincount(cells, minlength=len(groups.positives) * n_kinds).reshape(-1, n_kinds)
    silent = (count.sum(axis=1) == 0) & (groups.positives > 0)
    count[silent] = np.bincount(kind, minlength=n_kinds)
    flat = np.flatnonzero(count)
    return _Parts(flat.astype(np.int64), count.reshape(-1)[flat].astype(np.int64), n_kinds)


def _free(ground: Ground) -> Int16[np.ndarray, " bins"]:
    """Return the stratum of bins that nobody binds, else -1."""
    return np.where(ground.bound_by_anyone, np.int16(-1), ground.anchor_stratum)


def _sorted_by(
    number: Integer[np.ndarray, " bins"], n_numbers: int
) -> tuple[Integer[np.ndarray, " kept"], Int64[np.ndarray, " numbers_plus_1"]]:
    """Return the bins sorted by their number, -1 left out, and where each number's begin."""
    small = np.int32 if len(number) < np.iinfo(np.int32).max else np.int64
    kept = np.flatnonzero(number >= 0).astype(small)
    mine = number[kept]
    counts = np.bincount(mine, minlength=n_numbers)
    if (mine[1:] < mine[:-1]).any():
        kept = kept[np.argsort(mine, kind="stable")]  # of numbers of two bytes this is a radix sort
    return kept, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _shared(
    bins: Integer[np.ndarray, " total"],
    offset: Int64[np.ndarray, " o"],
    own: Int64[np.ndarray, " g"],
    wanted: Int64[np.ndarray, " g"],
) -> Pools:
    """Return one pool per group, which groups share."""
    every = np.arange(len(own), dtype=np.int64)
    size = np.diff(offset)[own] if len(own) else every
    return Pools(every, np.zeros_like(every), size, _Lookup(bins, offset[own]), wanted)


def _centred_sums(values: Integer[np.ndarray, " bins"], first: int, end: int, n_bins: int) -> Int64[np.ndarray, " n"]:
    """Return the sum over `n_bins` bins around each bin from `first` to `end`, cut at the genome's ends."""
    if n_bins == 1:
        return np.asarray(values[first:end], dtype=np.int64)
    low = max(0, first - n_bins)
    total = np.concatenate([[0], np.cumsum(values[low : end + n_bins], dtype=np.int64)])
    begin = np.arange(first, end) - n_bins // 2
    reached = (np.clip(edge, 0, len(values)) - low for edge in (begin + n_bins, begin))
    return np.asarray(np.subtract(*(total[edge] for edge in reached)))
