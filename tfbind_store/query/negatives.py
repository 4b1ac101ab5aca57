"""Find bins that an experiment does not bind: seeded, without replacement, never one that it binds.

A kind of negative proposes *anchor* bins for groups of rows; this module accepts or refuses them by one rule for all
kinds. A group is one experiment on the chromosomes of one split, so that every split gets its own share. An anchor is
accepted if its label is 0 (so: labelled chromosome, scorable, outside the ambiguous zone), no bin of the row around it
is bound by, or touches a peak of, the experiment or another one of the same factor and biotype, and it lies outside
the margin around those peaks, the relaxed peaks and the blacklists. If too few are found, the shortfall is returned.

Kinds here: *random* (bound by nobody) and *scoped* (bound by another factor in the same biotype). A further kind is a
function in `NEGATIVES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8, Int64

from tfbind_store.errors import ConfigError
from tfbind_store.query import draws
from tfbind_store.query.ground import Ground
from tfbind_store.query.stretches import distinct, member

ROUNDS = 8
PROPOSALS_AT_ONCE = 2_000_000
ENUMERATE_AT_MOST = 4_000_000
"""Bins of a pool that are tried one by one for a group that draws could not fill."""


class NegativeRule(NamedTuple):
    """A kind of negative and how many of it per positive."""

    kind: str
    ratio: float


class Rows(NamedTuple):
    """Where rows lie: the first global bin of each, and the anchor it was placed around."""

    anchor: Int64[np.ndarray, " n"]
    first_bin: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Groups:
    """Rows wanted: group g is one experiment on the chromosomes of one split."""

    experiment_id: Int64[np.ndarray, " g"]
    part: Int8[np.ndarray, " g"]
    """Part of the chromosomes: 0 train, 1 valid, 2 test."""
    positives: Int64[np.ndarray, " g"]
    """Positive rows that the ratios refer to."""


class Pools(NamedTuple):
    """Anchors that a kind proposes: group g draws from `bins[offset[pool[g]]:offset[pool[g] + 1]]`."""

    bins: Int64[np.ndarray, " total"]
    offset: Int64[np.ndarray, " pools_plus_1"]
    pool: Int64[np.ndarray, " g"]


class Negatives(NamedTuple):
    """Accepted rows of one kind and how many are missing per group."""

    group: Int64[np.ndarray, " n"]
    rows: Rows
    missing: Int64[np.ndarray, " g"]


def random_pools(ground: Ground, groups: Groups) -> Pools:
    """Propose bins that no experiment of the catalog binds; one pool per part."""
    free = np.where(ground.bound_by_anyone, np.int8(-1), ground.bin_part)
    bins = [np.flatnonzero(free == part) for part in range(3)]
    return Pools(np.concatenate(bins), _offsets(bins), groups.part.astype(np.int64))


def scoped_pools(ground: Ground, groups: Groups) -> Pools:
    """Propose bins that some experiment of the same biotype binds; one pool per biotype and part.

    The acceptance rule takes away those that the experiment itself or a twin binds: what is left, another factor binds.
    """
    place, bound = np.divmod(ground.truth.positive_keys, ground.truth.tiling.n_bins)
    biotypes, index = np.unique(ground.biotype_id, return_inverse=True)
    n_parts = 3
    part = ground.bin_part[bound]
    keep = part >= 0
    pool_of = index[place[keep]] * n_parts + part[keep]
    keys = distinct(pool_of * ground.truth.tiling.n_bins + bound[keep])
    pool, bins = np.divmod(keys, ground.truth.tiling.n_bins)
    offset = np.searchsorted(pool, np.arange(len(biotypes) * n_parts + 1))
    own = index[ground.truth.place(groups.experiment_id)] * n_parts + groups.part
    return Pools(bins, offset.astype(np.int64), own.astype(np.int64))


NEGATIVES: dict[str, Callable[[Ground, Groups], Pools]] = {"random": random_pools, "scoped": scoped_pools}
"""Kinds by name."""


def parse_rule(text: str) -> NegativeRule:
    """Read ``kind:ratio``.

    Examples
    --------
    >>> parse_rule("scoped:2")
    NegativeRule(kind='scoped', ratio=2.0)
    """
    kind, _, ratio = text.partition(":")
    try:
        value = float(ratio or 1)
    except ValueError:
        value = -1.0
    if kind not in NEGATIVES or not 0 <= value < float("inf"):
        raise ConfigError(
            f"{text!r} is no kind of negative",
            where="negatives",
            fix=f"write kind:ratio, kind one of {', '.join(NEGATIVES)}",
        )
    return NegativeRule(kind, value)


def sample(ground: Ground, groups: Groups, rule: NegativeRule, *, taken: Int64[np.ndarray, " t"]) -> Negatives:
    """Draw the negatives of one kind for all groups.

    Bins are drawn and tried; a pool that is smaller than the number of draws is tried bin by bin instead, and at last
    every pool of a group that is still short.

    Parameters
    ----------
    taken
        Keys of anchors that other kinds have used already, sorted.
    """
    search = _Search(ground, groups, rule.kind, NEGATIVES[rule.kind](ground, groups), taken)
    wanted = np.ceil(groups.positives * rule.ratio - 1e-9).astype(np.int64)
    missing = np.where(search.size > 0, wanted, 0)
    found = [np.empty((2, 0), dtype=np.int64)]
    for attempt in range(ROUNDS + 1):
        tries = missing * 2 ** min(attempt + 1, 5) + 8 * (missing > 0)
        limit = tries if attempt < ROUNDS else np.int64(ENUMERATE_AT_MOST)
        whole = (missing > 0) & (search.size <= limit)
        tries = np.where(whole, search.size, tries)
        for chunk in _chunks(tries):
            found.append(search.find(chunk, tries[chunk], whole[chunk], missing[chunk], attempt))
            missing -= np.bincount(found[-1][0], minlength=len(missing))
        missing[whole] = 0  # every bin of these pools was tried
        if not missing.any():
            break
    group, anchor = np.concatenate(found, axis=1)
    first = ground.placer.first_bins(groups.experiment_id[group], anchor)
    return Negatives(group, Rows(anchor, first), wanted - np.bincount(group, minlength=len(wanted)))


class _Search:
    """Proposes and accepts anchors of one kind, remembering which are taken."""

    def __init__(self, ground: Ground, groups: Groups, kind: str, pools: Pools, taken: Int64[np.ndarray, " t"]) -> None:
        self.ground, self.groups, self.kind, self.pools, self.taken = ground, groups, kind, pools, taken
        self.size: Int64[np.ndarray, " g"] = np.diff(pools.offset)[pools.pool]

    def find(
        self,
        chunk: Int64[np.ndarray, " c"],
        tries: Int64[np.ndarray, " c"],
        whole: Bool[np.ndarray, " c"],
        wanted: Int64[np.ndarray, " c"],
        attempt: int,
    ) -> Int64[np.ndarray, "2 n"]:
        """Return (group, anchor) of the first acceptable proposals, at most `wanted` of each group of the chunk."""
        owner, anchor = self._propose(chunk, tries, whole, attempt)
        experiment = self.groups.experiment_id[chunk][owner]
        keys = self.ground.truth.place(experiment) * self.ground.truth.tiling.n_bins + anchor
        first = self.ground.placer.first_bins(experiment, anchor)
        good = np.flatnonzero(self.ground.accepts(experiment, anchor, first) & ~member(self.taken, keys))
        _, once = np.unique(keys[good], return_index=True)
        good = good[np.sort(once)]
        counts = np.bincount(owner[good], minlength=len(chunk))
        number = np.arange(len(good)) - np.repeat(np.cumsum(counts) - counts, counts)
        good = good[number < wanted[owner[good]]]
        self.taken = distinct(self.taken, keys[good])
        return np.stack([chunk[owner[good]], anchor[good]])

    def _propose(
        self,
        chunk: Int64[np.ndarray, " c"],
        tries: Int64[np.ndarray, " c"],
        whole: Bool[np.ndarray, " c"],
        attempt: int,
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return (place in the chunk, anchor), drawn or every bin of the pool in a seeded order; places ascend."""
        owner = np.repeat(np.arange(len(chunk), dtype=np.int64), tries)
        number = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(tries) - tries, tries)
        group = chunk[owner]
        rounds = np.full(len(group), attempt, dtype=np.int64)
        experiment, part = self.groups.experiment_id[group], self.groups.part[group].astype(np.int64)
        lot = draws.draw(self.ground.seed, f"negatives {self.kind}", experiment, part, rounds, number)
        place = np.where(whole[owner], number, draws.below(lot, np.maximum(self.size[group], 1)))
        order = np.lexsort((np.where(whole[owner], lot, number.astype(np.uint64)), owner))
        first = self.pools.offset[self.pools.pool[group]]
        return owner[order], self.pools.bins[(first + place)[order]].astype(np.int64)


def _chunks(tries: Int64[np.ndarray, " g"]) -> Iterator[Int64[np.ndarray, " c"]]:
    """Cut the groups that try anything into chunks of a bounded number of proposals, so that memory stays bounded."""
    asking = np.flatnonzero(tries)
    if len(asking):
        chunk = np.cumsum(tries[asking]) // PROPOSALS_AT_ONCE
        yield from np.split(asking, np.flatnonzero(np.diff(chunk)) + 1)


def _offsets(pools: list[np.ndarray]) -> Int64[np.ndarray, " pools_plus_1"]:
    return np.concatenate([[0], np.cumsum([len(bins) for bins in pools])]).astype(np.int64)
