"""Build the rows of a selection from what the catalog holds: positives, negatives, labels, splits.

Pure arithmetic on columns: the same evidence and config give the same rows in the same order on any machine. Rows that
are left out are counted by cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64

from tfbind_store.catalog import Catalog
from tfbind_store.columns import Columns
from tfbind_store.loci import Tiling
from tfbind_store.query import draws, negatives, reads, splits
from tfbind_store.query.ground import Ground, RowPlacer, make_ground
from tfbind_store.query.labels import Intervals, LabelRule, Truth
from tfbind_store.query.negatives import Groups, NegativeRule
from tfbind_store.query.splits import Parts
from tfbind_store.query.stretches import distinct
from tfbind_store.store import Store

KINDS = ("positive", "random", "scoped", "gc", "shifted")


class Evidence(NamedTuple):
    """What the catalog and the genome say, read once."""

    tiling: Tiling
    experiments: Columns
    """All experiments, ascending by id (``reads.experiments``)."""
    peaks: Intervals
    relaxed: Intervals
    exclusions: Intervals
    labelled: Bool[np.ndarray, "e chroms"]
    acgt: Int64[np.ndarray, " bins"]
    """Bases of each bin that are A, C, G or T."""
    scorable: Bool[np.ndarray, " bins"]
    empty_windows: Bool[np.ndarray, " windows"]

    def truth(self, rule: LabelRule) -> Truth:
        """Return the labels of all experiments under a rule."""
        return Truth.build(
            self.tiling,
            experiment_ids=self.experiments["experiment_id"],
            peaks=self.peaks,
            relaxed=self.relaxed,
            labelled=self.labelled,
            scorable=self.scorable,
            rule=rule,
        )


class Anchors(NamedTuple):
    """Bins that positive rows are to be placed around, as the user's WHERE chose them."""

    experiment_id: Int64[np.ndarray, " n"]
    bin: Int64[np.ndarray, " n"]
    read_value: Float32[np.ndarray, " n"]
    """The peak's score, NaN where it has none."""


@dataclass(frozen=True, kw_only=True)
class RowChoices:
    """Which rows to build; ``selection.SelectionConfig`` is how a user says it."""

    rule: LabelRule
    negatives: tuple[NegativeRule, ...]
    n_bins: int
    margin_bp: int
    jitter: float
    sample: float
    max_positives: int
    seed: int


class RowTable(NamedTuple):
    """Rows in their final order: by split, place, experiment, kind."""

    experiment: Int64[np.ndarray, " n"]
    """Place among the experiments of the evidence."""
    anchor: Int64[np.ndarray, " n"]
    first_bin: Int64[np.ndarray, " n"]
    kind: Int8[np.ndarray, " n"]
    read_value: Float32[np.ndarray, " n"]
    split: Int8[np.ndarray, " n"]
    labels: Int8[np.ndarray, "n n_bins"]
    holdout: Int8[np.ndarray, " n"]
    """Place in ``splits.HOLDOUTS``."""


class Built(NamedTuple):
    """Rows and what was lost on the way to them."""

    rows: RowTable
    dropped: dict[str, int]
    """Positive anchors left out, by cause."""
    shortfall: dict[str, dict[str, int]]
    """Per kind of negative: rows that could not be found, and in how many experiments."""
    notes: list[str]


def gather(store: Store, catalog: Catalog) -> Evidence:
    """Read the evidence from one snapshot."""
    experiments = reads.experiments(catalog)
    exclusions = reads.exclusions(catalog)
    nobody = np.full(len(exclusions["chrom_id"]), -1, dtype=np.int64)
    acgt = reads.acgt_per_bin(store, catalog)
    peaks, relaxed = reads.peaks(catalog), reads.relaxed_peaks(catalog)
    return Evidence(
        tiling=store.tiling,
        experiments=experiments,
        peaks=Intervals(*(peaks[name] for name in Intervals._fields)),
        relaxed=Intervals(*(relaxed[name] for name in Intervals._fields)),
        exclusions=Intervals(
            nobody, exclusions["chrom_id"], exclusions["start_bp"], exclusions["end_bp"], exclusions["start_bp"]
        ),
        labelled=reads.labelled_chromosomes(catalog, experiments["experiment_id"], len(store.tiling.chroms)),
        acgt=acgt,
        scorable=reads.scorable_bins(store.tiling, acgt, exclusions),
        empty_windows=reads.empty_windows(catalog, store.tiling.n_windows),
    )


def build(
    evidence: Evidence, anchors: Anchors, unbound: Int64[np.ndarray, " u"], parts: Parts, choices: RowChoices
) -> Built:
    """Build all rows.

    Parameters
    ----------
    anchors
        Summit bins of the chosen peaks; twice the same bin of an experiment gives one row with the higher read value.
    unbound
        Ids of chosen experiments without any peak: they get as many negatives as the median experiment.
    parts
        Of every chromosome and of every experiment of the evidence.
    """
    truth = evidence.truth(choices.rule)
    placer = RowPlacer.over(
        evidence.tiling, evidence.empty_windows, n_bins=choices.n_bins, jitter=choices.jitter, seed=choices.seed
    )
    positives, dropped = positive_anchors(truth, placer, anchors, parts, choices)
    chrom = _chrom_of(truth, positives.bin)
    used = np.isin(np.arange(len(parts.chrom)), chrom)
    ground = make_ground(
        truth,
        factor_id=evidence.experiments["factor_id"].astype(np.int64),
        biotype_id=evidence.experiments["biotype_id"].astype(np.int64),
        peaks=evidence.peaks,
        relaxed=evidence.relaxed,
        exclusions=evidence.exclusions,
        chrom_part=np.where(used, parts.chrom, np.int8(splits.UNUSED)),
        placer=placer,
        margin_bp=choices.margin_bp,
        seed=choices.seed,
    )
    groups, notes = group_rows(truth, positives, unbound, parts, used)
    experiment, bins, kinds, shortfall = _with_negatives(ground, groups, positives, choices)
    read_value = np.concatenate([positives.read_value, np.zeros(len(bins) - len(positives.bin), np.float32)])
    return Built(_table(truth, placer, parts, experiment, bins, kinds, read_value), dropped, shortfall, notes)


def positive_anchors(
    truth: Truth, placer: RowPlacer, anchors: Anchors, parts: Parts, choices: RowChoices
) -> tuple[Anchors, dict[str, int]]:
    """Return one anchor per experiment and bin, and how many were left out by cause."""
    place = truth.place(anchors.experiment_id)
    keys = place * truth.tiling.n_bins + anchors.bin
    score = np.where(np.isnan(anchors.read_value), -np.inf, anchors.read_value)
    order = np.lexsort((-score, keys))
    order = order[np.concatenate([[True], np.diff(keys[order]) != 0])] if len(order) else order
    dropped = {"second_peak_in_bin": len(keys) - len(order)}
    chosen = Anchors(*(column[order] for column in anchors))
    place, chrom = place[order], _chrom_of(truth, chosen.bin)
    codes = truth.codes(chosen.experiment_id, chosen.bin)[:, 0]
    split = splits.combine(parts.chrom[chrom], parts.factor[place], parts.biotype[place])
    causes = {
        "unlabelled_chromosome": ~truth.labelled[place, chrom],
        "n_or_blacklisted": ~truth.scorable[chosen.bin],
        "not_bound_under_rule": codes != 1,
        "no_room_for_row": ~placer.fits(chosen.bin),
        "chromosome_in_no_split": split == splits.UNUSED,
        "between_valid_and_test": split == splits.BETWEEN,
        "not_sampled": draws.unit(draws.draw(choices.seed, "sample", chosen.experiment_id, chosen.bin))
        >= choices.sample,
    }
    keep = np.ones(len(chosen.bin), dtype=bool)
    for cause, is_bad in causes.items():
        dropped[cause] = int((keep & is_bad).sum())
        keep &= ~is_bad
    capped = keep & ~_within_cap(chosen, parts.chrom[chrom], keep, choices)
    dropped["over_max_positives"] = int(capped.sum())
    keep &= ~capped
    return Anchors(*(column[keep] for column in chosen)), {cause: n for cause, n in dropped.items() if n}


def group_rows(
    truth: Truth, positives: Anchors, unbound: Int64[np.ndarray, " u"], parts: Parts, used: Bool[np.ndarray, " chroms"]
) -> tuple[Groups, list[str]]:
    """Return how many negatives are wanted where; experiments without peaks count as the median experiment."""
    n_parts = len(splits.SPLITS)
    part = parts.chrom[_chrom_of(truth, positives.bin)].astype(np.int64)
    count = np.zeros((len(truth.experiment_ids), n_parts), dtype=np.int64)
    np.add.at(count, (truth.place(positives.experiment_id), part), 1)
    bound = count.sum(axis=1) > 0
    median = np.ceil(np.median(count[bound], axis=0)).astype(np.int64) if bound.any() else np.zeros(n_parts, np.int64)
    looked = np.stack([truth.labelled[:, used & (parts.chrom == number)].any(axis=1) for number in range(n_parts)], 1)
    place = truth.place(unbound)
    count[place] = np.where(looked[place], median, 0)
    experiment, part = np.nonzero(count)
    split = splits.combine(part, parts.factor[experiment], parts.biotype[experiment])
    good = split >= 0
    silent = int((~looked[place].any(axis=1)).sum())
    notes = [f"{silent} experiments have no peak and no labelled chromosome: no rows"] if silent else []
    return Groups(
        truth.experiment_ids[experiment[good]], part[good].astype(np.int8), count[experiment, part][good]
    ), notes


def _with_negatives(
    ground: Ground, groups: Groups, positives: Anchors, choices: RowChoices
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int8[np.ndarray, " n"], dict[str, dict[str, int]]]:
    total = ground.truth.tiling.n_bins
    experiments, bins = [ground.truth.place(positives.experiment_id)], [positives.bin]
    kinds = [np.zeros(len(positives.bin), dtype=np.int8)]
    taken, shortfall = np.empty(0, np.int64), {}
    for rule in choices.negatives:
        found = negatives.sample(ground, groups, rule, taken=taken)
        place = ground.truth.place(groups.experiment_id[found.group])
        taken = distinct(taken, place * total + found.rows.anchor)
        experiments.append(place)
        bins.append(found.rows.anchor)
        kinds.append(np.full(len(place), KINDS.index(rule.kind), dtype=np.int8))
        if found.missing.any():
            n_experiments = len(np.unique(groups.experiment_id[found.missing > 0]))
            shortfall[rule.kind] = {"rows": int(found.missing.sum()), "experiments": n_experiments}
    return np.concatenate(experiments), np.concatenate(bins), np.concatenate(kinds), shortfall


def _table(
    truth: Truth,
    placer: RowPlacer,
    parts: Parts,
    experiment: Int64[np.ndarray, " n"],
    anchor: Int64[np.ndarray, " n"],
    kind: Int8[np.ndarray, " n"],
    read_value: Float32[np.ndarray, " n"],
) -> RowTable:
    """Place, label, split and order the rows."""
    ids = truth.experiment_ids[experiment]
    first = placer.first_bins(ids, anchor)
    three = (parts.chrom[_chrom_of(truth, anchor)], parts.factor[experiment], parts.biotype[experiment])
    split = splits.combine(*three)
    order = np.lexsort((anchor, kind, ids, first, split))
    labels = truth.codes(ids[order], first[order], placer.n_bins)
    table = RowTable(
        experiment[order],
        anchor[order],
        first[order],
        kind[order],
        read_value[order].astype(np.float32),
        split[order],
        labels,
        splits.unseen(*three)[order],
    )
    is_negative = table.kind > 0
    assert not (labels[is_negative] == 1).any(), "a negative row holds a positive bin"
    assert (labels[~is_negative] == 1).any(axis=1).all(), "a positive row holds no positive bin"
    return table


def _within_cap(
    anchors: Anchors, part: Int8[np.ndarray, " n"], keep: Bool[np.ndarray, " n"], choices: RowChoices
) -> Bool[np.ndarray, " n"]:
    """Return which kept anchors are among the first `max_positives` of their experiment and part, in a seeded order."""
    if not choices.max_positives:
        return np.ones(len(keep), dtype=bool)
    places = np.flatnonzero(keep)
    lot = draws.draw(choices.seed, "cap", anchors.experiment_id[places], anchors.bin[places])
    group = anchors.experiment_id[places] * len(splits.SPLITS) + part[places]
    order = np.lexsort((lot, group))
    begins = np.flatnonzero(np.concatenate([[True], np.diff(group[order]) != 0])) if len(order) else order
    number = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    within = np.zeros(len(keep), dtype=bool)
    within[places[order[number < choices.max_positives]]] = True
    return within


def _chrom_of(truth: Truth, bins: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    chrom: Int64[np.ndarray, " n"] = truth.bin_chrom[bins // truth.tiling.grid.n_bins]
    return chrom
