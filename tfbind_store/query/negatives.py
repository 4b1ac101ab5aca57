"""Find bins that an experiment does not bind: seeded, without replacement, never one that it binds.

A kind of negative proposes *anchor* bins for groups of rows (``pools``); this module accepts or refuses them by one
rule for all kinds. A group is one experiment in one stratum of places, so that every split and every fold gets its own
share. An anchor is accepted if its label is 0 (so: labelled chromosome, scorable, outside the ambiguous zone), no bin
of the row around it is bound by, or touches a peak of, the experiment or another one of the same factor and biotype,
and it lies outside the margin around those peaks, the relaxed peaks and the blacklists. If too few are found, the
shortfall is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.errors import ConfigError
from tfbind_store.query import draws
from tfbind_store.query.ground import Ground
from tfbind_store.query.pools import NEGATIVES, Groups, Pools
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


class Negatives(NamedTuple):
    """Accepted rows of one kind and how many are missing per group."""

    group: Int64[np.ndarray, " n"]
    rows: Rows
    missing: Int64[np.ndarray, " g"]


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
    every pool of a group that is still short. Some kinds draw in parts of a group, and have wider pools for what the
    first ones could not give.

    Parameters
    ----------
    taken
        Keys of anchors that other kinds have used already, sorted.
    """
    wanted = np.ceil(groups.positives * rule.ratio - 1e-9).astype(np.int64)
    found: list[Int64[np.ndarray, "2 n"]] = [np.empty((2, 0), dtype=np.int64)]
    missing: Int64[np.ndarray, " p"] | None = None
    for number, pools in enumerate(NEGATIVES[rule.kind](ground, groups, wanted)):
        missing = pools.wanted if missing is None else missing
        search = _Search(ground, groups, f"{rule.kind}{number or ''}", pools, taken)
        pool, anchor = np.concatenate([np.empty((2, 0), dtype=np.int64), *search.run(missing)], axis=1)
        found.append(np.stack([pools.group[pool], anchor]))
        missing = missing - np.bincount(pool, minlength=len(missing))
        taken = search.taken
    group, anchor = np.concatenate(found, axis=1)
    first = ground.placer.first_bins(groups.experiment_id[group], anchor)
    return Negatives(group, Rows(anchor, first), wanted - np.bincount(group, minlength=len(wanted)))


class _Search:
    """Proposes and accepts anchors of one kind, remembering which are taken. A *pool* belongs to one group."""

    def __init__(self, ground: Ground, groups: Groups, kind: str, pools: Pools, taken: Int64[np.ndarray, " t"]) -> None:
        self.ground, self.groups, self.kind, self.pools, self.taken = ground, groups, kind, pools, taken

    def run(self, wanted: Int64[np.ndarray, " p"]) -> list[Int64[np.ndarray, "2 n"]]:
        """Return (pool, anchor) found, at most `wanted` of each pool."""
        missing = np.where(self.pools.size > 0, wanted, 0)
        found = []
        for attempt in range(ROUNDS + 1):
            tries = missing * 2 ** min(attempt, 5) + missing // 4 + 8 * (missing > 0)
            limit = tries if attempt < ROUNDS else np.int64(ENUMERATE_AT_MOST)
            whole = (missing > 0) & (self.pools.size <= limit)
            tries = np.where(whole, self.pools.size, tries)
            for chunk in _chunks(tries):
                found.append(self.find(chunk, tries[chunk], whole[chunk], missing[chunk], attempt))
                missing -= np.bincount(found[-1][0], minlength=len(missing))
            missing[whole] = 0  # every bin of these pools was tried
            if not missing.any():
                break
        return found

    def find(
        self,
        chunk: Int64[np.ndarray, " c"],
        tries: Int64[np.ndarray, " c"],
        whole: Bool[np.ndarray, " c"],
        wanted: Int64[np.ndarray, " c"],
        attempt: int,
    ) -> Int64[np.ndarray, "2 n"]:
        """Return (pool, anchor) of the first acceptable proposals, at most `wanted` of each pool of the chunk."""
        owner, anchor = self._propose(chunk, tries, whole, attempt)
        good, keys = self._acceptable(self.pools.group[chunk][owner], anchor)
        counts = np.bincount(owner[good], minlength=len(chunk))
        number = np.arange(len(good)) - np.repeat(np.cumsum(counts) - counts, counts)
        within = number < wanted[owner[good]]
        self.taken = distinct(self.taken, keys[within])
        good = good[within]
        return np.stack([chunk[owner[good]], anchor[good]])

    def _acceptable(
        self, group: Int64[np.ndarray, " n"], anchor: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " g"], Int64[np.ndarray, " g"]]:
        """Return which proposals are acceptable, ascending, each anchor of an experiment once, with their keys.

        What is cheap to ask comes first, and what it refuses is looked up no more.
        """
        truth = self.ground.truth
        good = np.flatnonzero(self.ground.anchor_stratum[anchor] == self.groups.stratum[group])
        keys = truth.place(self.groups.experiment_id[group[good]]) * truth.tiling.n_bins + anchor[good]
        order = np.argsort(keys, kind="stable")  # every look-up walks along what it looks in
        good, keys = good[order], keys[order]
        free = ~member(self.taken, keys)
        good, keys = good[free], keys[free]
        experiment, bins = self.groups.experiment_id[group[good]], anchor[good]
        accepted = self.ground.accepts(experiment, bins, self.ground.placer.first_bins(experiment, bins))
        good, keys = good[accepted], keys[accepted]
        once = np.ones(len(good), dtype=bool)
        once[1:] = keys[1:] != keys[:-1]
        good, keys = good[once], keys[once]
        order = np.argsort(good)
        return good[order], keys[order]

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
        pool = chunk[owner]
        group = self.pools.group[pool]
        ids = (self.groups.experiment_id[group], self.groups.stratum[group], self.pools.part[pool])
        rounds = np.full(len(pool), attempt, dtype=np.int64)
        lot = draws.draw(self.ground.seed, f"negatives {self.kind}", *ids, rounds, number)
        place = np.where(whole[owner], number, draws.below(lot, np.maximum(self.pools.size[pool], 1)))
        if whole.any():
            assert len(chunk) < 1 << 24, "owners are numbered by the 24 high bits"
            rank = np.where(whole[owner], lot >> np.uint64(24), number.astype(np.uint64))
            order = np.argsort(owner.astype(np.uint64) << np.uint64(40) | rank, kind="stable")
            owner, pool, place = owner[order], pool[order], place[order]
        return owner, self.pools.at(pool, place)


def _chunks(tries: Int64[np.ndarray, " p"]) -> Iterator[Int64[np.ndarray, " c"]]:
    """Cut the pools that try anything into chunks of a bounded number of proposals, so that memory stays bounded."""
    asking = np.flatnonzero(tries)
    if len(asking):
        chunk = np.cumsum(tries[asking]) // PROPOSALS_AT_ONCE
        yield from np.split(asking, np.flatnonzero(np.diff(chunk)) + 1)
