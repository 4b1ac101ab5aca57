"""Build the rows of a selection from what the catalog holds: positives, negatives, labels, splits.

Pure arithmetic on columns: the same evidence and config give the same rows in the same order on any machine. Rows that
are left out are counted by cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int16, Int64

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.loci import Tiling
from tfbind_store.query import draws, negatives, places, reads, splits
from tfbind_store.query.ground import Ground, RowPlacer, make_ground
from tfbind_store.query.labels import Intervals, LabelRule, Truth
from tfbind_store.query.negatives import NegativeRule
from tfbind_store.query.pools import Groups
from tfbind_store.query.splits import Parts
from tfbind_store.query.stretches import distinct
from tfbind_store.store.folder import Store

KINDS = ("positive", "random", "scoped", "gc", "shifted", "listed")
BALANCE_COLUMNS = {"factor": "factor_id", "biotype": "biotype_id"}
"""What weights can be balanced by."""


class Evidence(NamedTuple):
    """What the catalog and the genome say, read once."""

    tiling: Tiling
    experiments: Columns
    """All experiments, ascending by id (``reads.experiments``)."""
    peaks: Intervals
    score: Float32[np.ndarray, " p"]
    """Of each peak, NaN where it has none."""
    relaxed: Intervals
    exclusions: Intervals
    labelled: Bool[np.ndarray, "e chroms"]
    acgt: Int64[np.ndarray, " bins"]
    """Bases of each bin that are A, C, G or T."""
    scorable: Bool[np.ndarray, " bins"]
    empty_windows: Bool[np.ndarray, " windows"]
    gc: Int64[np.ndarray, " bins"] | None = None
    """Bases of each bin that are G or C; read only where negatives of like composition are wanted."""
    listed: Columns | None = None
    """Loci that were imported as unbound; read only where negatives of them are wanted."""

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
    balance: tuple[str, ...]
    kind_weights: Mapping[str, float]
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
    weight: Float32[np.ndarray, " n"]
    folds: Int8[np.ndarray, "n 3"]
    """Fold of the row's place, factor and biotype; -1 for none."""


class Built(NamedTuple):
    """Rows and what was lost on the way to them."""

    rows: RowTable
    dropped: dict[str, int]
    """Positive anchors left out, by cause, and rows that were there already."""
    shortfall: dict[str, dict[str, int]]
    """Per kind of negative: rows that could not be found, and in how many experiments."""
    notes: list[str]
    shifted: int
    """Rows that were shifted to stay in their chromosome, their place and in windows that are embedded."""


def gather(store: Store, catalog: Catalog, *, with_gc: bool = False, with_listed: bool = False) -> Evidence:
    """Read the evidence from one snapshot; the genome's composition and listed negatives only if asked for."""
    experiments = reads.experiments(catalog)
    exclusions = reads.exclusions(catalog)
    nobody = np.full(len(exclusions["chrom_id"]), -1, dtype=np.int64)
    acgt = reads.acgt_per_bin(store, catalog)
    peaks, relaxed = reads.peaks(catalog), reads.relaxed_peaks(catalog)
    return Evidence(
        tiling=store.tiling,
        experiments=experiments,
        peaks=Intervals(*(peaks[name] for name in Intervals._fields)),
        score=peaks["score"].astype(np.float32, copy=False),
        relaxed=Intervals(*(relaxed[name] for name in Intervals._fields)),
        exclusions=Intervals(
            nobody, exclusions["chrom_id"], exclusions["start_bp"], exclusions["end_bp"], exclusions["start_bp"]
        ),
        labelled=reads.labelled_chromosomes(catalog, experiments["experiment_id"], len(store.tiling.chroms)),
        acgt=acgt,
        scorable=reads.scorable_bins(store.tiling, acgt, exclusions),
        empty_windows=reads.empty_windows(catalog, store.tiling.n_windows),
        gc=reads.gc_per_bin(store) if with_gc else None,
        listed=reads.listed_negatives(catalog) if with_listed else None,
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
    stratum = parts.places.stratum
    placer = RowPlacer.over(
        evidence.tiling,
        evidence.empty_windows,
        n_bins=choices.n_bins,
        jitter=choices.jitter,
        seed=choices.seed,
        stratum=stratum,
    )
    positives, dropped = positive_anchors(truth, placer, anchors, parts, stratum, choices)
    used = np.unique(_chrom_of(truth, positives.bin))
    stratum = np.where(_on(evidence.tiling, used), stratum, np.int16(splits.UNUSED))
    groups, notes = group_rows(truth, positives, unbound, parts, stratum)
    ground = make_ground(
        truth,
        factor_id=evidence.experiments["factor_id"].astype(np.int64),
        biotype_id=evidence.experiments["biotype_id"].astype(np.int64),
        peaks=evidence.peaks,
        relaxed=evidence.relaxed,
        exclusions=evidence.exclusions,
        stratum=stratum,
        n_strata=len(places.part_of_stratum(parts.n_folds)),
        placer=placer,
        margin_bp=choices.margin_bp,
        seed=choices.seed,
        chosen=np.isin(truth.experiment_ids, groups.experiment_id),
        acgt=evidence.acgt,
        gc=evidence.gc,
        listed=evidence.listed,
    )
    experiment, bins, kinds, shortfall = _with_negatives(ground, groups, positives, choices)
    read_value = np.concatenate([positives.read_value, np.zeros(len(bins) - len(positives.bin), np.float32)])
    table, twice = _table(evidence, truth, placer, parts, experiment, bins, kinds, read_value, choices)
    shifted = int(placer.shifted(truth.experiment_ids[table.experiment], table.anchor).sum())
    return Built(table, {**dropped, **twice}, shortfall, notes, shifted)


def positive_anchors(
    truth: Truth,
    placer: RowPlacer,
    anchors: Anchors,
    parts: Parts,
    stratum: Int16[np.ndarray, " bins"],
    choices: RowChoices,
) -> tuple[Anchors, dict[str, int]]:
    """Return one anchor per experiment and bin, and how many were left out by cause."""
    chosen = _one_per_bin(truth, anchors)
    dropped = {"second_peak_in_bin": len(anchors.bin) - len(chosen.bin)}
    if choices.sample < 1:
        sampled = draws.below_share(choices.seed, "sample", choices.sample, chosen.experiment_id, chosen.bin)
        dropped["not_sampled"] = int((~sampled).sum())
        chosen = Anchors(*(column[sampled] for column in chosen))
    place, chrom = truth.place(chosen.experiment_id), _chrom_of(truth, chosen.bin)
    split = splits.combine(parts.places.part[chosen.bin], parts.factor[place], parts.biotype[place])
    causes = {
        "unlabelled_chromosome": ~truth.labelled[place, chrom],
        "n_or_blacklisted": ~truth.scorable[chosen.bin],
        "not_bound_under_rule": truth.codes(chosen.experiment_id, chosen.bin)[:, 0] != 1,
        "chromosome_in_no_split": split == splits.UNUSED,
        "no_room_for_row": ~placer.fits(chosen.bin),
        "between_valid_and_test": split == splits.BETWEEN,
    }
    keep = np.ones(len(chosen.bin), dtype=bool)
    for cause, is_bad in causes.items():
        dropped[cause] = int((keep & is_bad).sum())
        keep &= ~is_bad
    capped = keep & ~_within_cap(chosen, stratum[chosen.bin], keep, choices)
    dropped["over_max_positives"] = int(capped.sum())
    keep &= ~capped
    return Anchors(*(column[keep] for column in chosen)), {cause: n for cause, n in dropped.items() if n}


def _one_per_bin(truth: Truth, anchors: Anchors) -> Anchors:
    """Return anchors in the order of experiment and bin, the highest score of each bin kept."""
    keys = truth.place(anchors.experiment_id)
    keys *= truth.tiling.n_bins
    keys += anchors.bin
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, anchors = keys[order], Anchors(*(column[order] for column in anchors))
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = keys[1:] != keys[:-1]
    del keys
    if begins.all():
        return anchors
    score = np.where(np.isnan(anchors.read_value), np.float32(-np.inf), anchors.read_value)
    best = np.maximum.reduceat(score, np.flatnonzero(begins))
    best[np.isneginf(best)] = np.nan
    return Anchors(anchors.experiment_id[begins], anchors.bin[begins], best)


def group_rows(
    truth: Truth,
    positives: Anchors,
    unbound: Int64[np.ndarray, " u"],
    parts: Parts,
    stratum: Int16[np.ndarray, " bins"],
) -> tuple[Groups, list[str]]:
    """Return how many negatives are wanted where; experiments without peaks count as the median experiment."""
    part_of = places.part_of_stratum(parts.n_folds)
    n_strata = len(part_of)
    cell = truth.place(positives.experiment_id) * n_strata + stratum[positives.bin]
    count = np.bincount(cell, minlength=len(truth.experiment_ids) * n_strata).reshape(-1, n_strata)
    bound = count.sum(axis=1) > 0
    median = np.ceil(np.median(count[bound], axis=0)).astype(np.int64) if bound.any() else np.zeros(n_strata, np.int64)
    looked = _looked(truth, stratum, n_strata)
    place = truth.place(unbound)
    count[place] = np.where(looked[place], median, 0)
    experiment, number = np.nonzero(count)
    split = splits.combine(part_of[number], parts.factor[experiment], parts.biotype[experiment])
    good = split >= 0
    silent = int((~looked[place].any(axis=1)).sum())
    notes = [f"{silent} experiments have no peak and no labelled chromosome: no rows"] if silent else []
    cells = (experiment * n_strata + number)[good]
    group_of = np.full(count.size, -1, dtype=np.int64)
    group_of[cells] = np.arange(len(cells))
    order = np.argsort(group_of[cell], kind="stable")
    groups = Groups(
        experiment_id=truth.experiment_ids[experiment[good]],
        stratum=number[good].astype(np.int64),
        positives=count.reshape(-1)[cells].astype(np.int64),
        anchor=positives.bin[order],
        owner=group_of[cell[order]],
    )
    return groups, notes


def _looked(truth: Truth, stratum: Int16[np.ndarray, " bins"], n_strata: int) -> Bool[np.ndarray, "e strata"]:
    """Return whether an experiment's sources looked at a chromosome on which a stratum lies."""
    windows = stratum.reshape(-1, truth.tiling.grid.n_bins)
    there = np.zeros((len(truth.tiling.chroms), n_strata), dtype=bool)
    for number in range(n_strata):
        there[np.unique(truth.bin_chrom[(windows == number).any(axis=1)]), number] = True
    return np.asarray(truth.labelled.astype(np.int32) @ there.astype(np.int32) > 0)


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
    evidence: Evidence,
    truth: Truth,
    placer: RowPlacer,
    parts: Parts,
    experiment: Int64[np.ndarray, " n"],
    anchor: Int64[np.ndarray, " n"],
    kind: Int8[np.ndarray, " n"],
    read_value: Float32[np.ndarray, " n"],
    choices: RowChoices,
) -> tuple[RowTable, dict[str, int]]:
    """Place, label, split, weigh and order the rows; return how many of each kind were left out as there already.

    Rows of several bins are shifted, so two anchors may come to the same bins: the first of them counts, a positive
    before a negative.
    """
    first = placer.first_bins(truth.experiment_ids[experiment], anchor)
    split = splits.combine(parts.places.part[anchor], parts.factor[experiment], parts.biotype[experiment])
    # two keys in place of five: by split, first bin and experiment, then by kind and anchor
    where = (split.astype(np.int64) * truth.tiling.n_bins + first) * len(truth.experiment_ids) + experiment
    order = np.lexsort((kind.astype(np.int64) * truth.tiling.n_bins + anchor, where))
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = where[order[1:]] != where[order[:-1]]
    lost = np.bincount(kind[order[~is_new]], minlength=len(KINDS)).tolist()
    order = order[is_new]
    experiment, anchor, first, kind, split = (c[order] for c in (experiment, anchor, first, kind, split))
    three = (parts.places.part[anchor], parts.factor[experiment], parts.biotype[experiment])
    folds = (parts.places.fold[anchor], parts.factor_fold[experiment], parts.biotype_fold[experiment])
    labels = truth.codes(truth.experiment_ids[experiment], first, placer.n_bins)
    is_negative = kind > 0
    assert not (labels[is_negative] == 1).any(), "a negative row holds a positive bin"
    assert (labels[~is_negative] == 1).any(axis=1).all(), "a positive row holds no positive bin"
    table = RowTable(
        experiment=experiment,
        anchor=anchor,
        first_bin=first,
        kind=kind,
        read_value=read_value[order].astype(np.float32),
        split=split,
        labels=labels,
        holdout=splits.unseen(*three),
        weight=weigh(evidence.experiments, experiment, kind, split, choices),
        folds=np.stack(folds, axis=1).astype(np.int8),
    )
    return table, {f"{name}_twice": n for name, n in zip(KINDS, lost, strict=True) if n}


def weigh(
    experiments: Columns,
    experiment: Int64[np.ndarray, " n"],
    kind: Int8[np.ndarray, " n"],
    split: Int8[np.ndarray, " n"],
    choices: RowChoices,
) -> Float32[np.ndarray, " n"]:
    """Return the weight of each row: its kind's, then balanced so that each name has the same total in a split.

    Balancing keeps the mean weight of a split at what the kinds' weights make it.
    """
    of_kind = np.array([choices.kind_weights.get(name, 1.0) for name in KINDS], dtype=np.float64)
    weight = of_kind[kind]
    if choices.balance:
        columns = [experiments[BALANCE_COLUMNS[name]].astype(np.int64) for name in choices.balance]
        _, unit = np.unique(np.stack(columns), axis=1, return_inverse=True)
        n_units = int(unit.max(initial=0)) + 1
        cell = split.astype(np.int64) * n_units + unit.reshape(-1)[experiment]
        total = np.bincount(cell, weights=weight, minlength=len(splits.SPLITS) * n_units).reshape(-1, n_units)
        present = np.maximum((total > 0).sum(axis=1, keepdims=True), 1)
        factor = total.sum(axis=1, keepdims=True) / present / np.where(total > 0, total, 1)
        weight = weight * factor.reshape(-1)[cell]
    return np.asarray(weight, dtype=np.float32)


def _within_cap(
    anchors: Anchors, stratum: Int16[np.ndarray, " n"], keep: Bool[np.ndarray, " n"], choices: RowChoices
) -> Bool[np.ndarray, " n"]:
    """Return which kept anchors are the first `max_positives` of their experiment and stratum, in a seeded order."""
    if not choices.max_positives:
        return np.ones(len(keep), dtype=bool)
    kept = np.flatnonzero(keep)
    lot = draws.draw(choices.seed, "cap", anchors.experiment_id[kept], anchors.bin[kept])
    group = anchors.experiment_id[kept].astype(np.int64) * (splits.MAX_FOLDS + 3) + stratum[kept]
    order = np.lexsort((lot, group))
    begins = np.flatnonzero(np.concatenate([[True], np.diff(group[order]) != 0])) if len(order) else order
    number = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    within = np.zeros(len(keep), dtype=bool)
    within[kept[order[number < choices.max_positives]]] = True
    return within


def _chrom_of(truth: Truth, bins: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    chrom: Int64[np.ndarray, " n"] = truth.bin_chrom[bins // truth.tiling.grid.n_bins]
    return chrom


def _on(tiling: Tiling, chroms: Int64[np.ndarray, " c"]) -> Bool[np.ndarray, " bins"]:
    """Return which bins lie on some chromosomes."""
    on = np.zeros(tiling.n_bins, dtype=bool)
    for chrom in chroms.tolist():
        on[tiling.global_bins(chrom)] = True
    return on
