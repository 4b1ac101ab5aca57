"""Score a run on what it has not seen: per factor, biotype and kind of hold-out, beside what it must beat.

Every labelled bin of the test chromosomes counts (genome-like prevalence), labels follow the selection's rule. A factor
that was held out is scored twice: on test chromosomes, and on training chromosomes, where its DNA but not its binding
was seen. Writes ``scores.parquet`` (one row per experiment, kind of hold-out and scorer) into the run's folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from tqdm import tqdm

from tfbind_store import baselines
from tfbind_store import config as configs
from tfbind_store.catalog import Catalog
from tfbind_store.columns import Columns
from tfbind_store.curves import MeanCurves
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.feed import Experiments
from tfbind_store.heads.checkpoint import write_atomically
from tfbind_store.metrics import BinaryScores, score_tallies, tally
from tfbind_store.names import near_miss
from tfbind_store.query import rows, splits
from tfbind_store.query.labels import Truth
from tfbind_store.query.selection import Selection
from tfbind_store.scoring import LoadedRun, load_run, scorable_bins, score_bins
from tfbind_store.signal_gate import Gate, open_gate
from tfbind_store.store import Store

SCORES_FILE, CURVES_FILE, EVALUATION_FILE = "scores.parquet", "curves.parquet", "evaluation.json"
MODEL = "model"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored."""

    chroms: tuple[str, ...] = ()
    """Chromosomes; default the selection's test chromosomes, and for held-out factors the training ones too."""
    factors: tuple[str, ...] = ()
    """Factors; default all with test rows."""
    motifs: Path | None = None
    """JASPAR file for the motif baseline."""
    with_oracle: bool = True
    """Score measured binding of the other factors too."""
    with_signal: bool = True
    """Let the run's signal gate speak, if one was trained; False scores the head alone."""
    device: str = "cpu"
    """Where the head runs."""


class EvaluateResult(NamedTuple):
    """What `evaluate_run` wrote."""

    path: Path
    """The Parquet file."""
    n_rows: int
    n_experiments: int
    columns: Columns


class Group(NamedTuple):
    """Experiments that are scored on the same chromosomes with the same kind of hold-out."""

    holdout: str
    chroms: tuple[str, ...]
    places: Int64[np.ndarray, " e"]
    """Of the experiments in the world's table."""


class World(NamedTuple):
    """What is known about all experiments."""

    table: Columns
    experiments: Experiments
    truth: Truth
    proteins: Mapping[int, baselines.FactorProtein]
    accessions: Mapping[int, frozenset[str]]


def evaluate_run(store: Store, run_name: str, config: EvaluateConfig | None = None) -> EvaluateResult:
    """Score a run and its baselines and write ``scores.parquet``.

    Raises
    ------
    SelectionError
        If there is nothing to score.
    CheckpointError
        If the run does not fit the store.
    """
    config = config or EvaluateConfig()
    run = load_run(store, run_name, device=torch.device(config.device))
    selection = Selection.open(store, str(run.header.selection["name"]))
    world = read_world(store, selection)
    groups = choose_groups(store, selection, run, world, config)
    if not groups:
        fix = "give test chromosomes or held-out factors to tfbind select, or name --chroms"
        raise SelectionError(f"selection {selection.name} has no test rows", where=run_name, fix=fix)
    motifs = baselines.read_motifs(config.motifs) if config.motifs else []
    gate = open_gate(store, run_name) if config.with_signal else None
    curves = MeanCurves()
    found = [row for group in groups for row in _score_group(store, run, gate, world, group, motifs, config, curves)]
    columns = Columns({name: np.array([row[name] for row in found]) for name in found[0]})
    path = store.run_dir(run_name) / SCORES_FILE
    Catalog.write_parquet(path, columns)
    drawn = Columns({name: np.array(values) for name, values in curves.columns().items()})
    path.with_name(CURVES_FILE).unlink(missing_ok=True)  # of an earlier evaluation, where this one has none
    if drawn.n:
        Catalog.write_parquet(path.with_name(CURVES_FILE), drawn)
    said = {
        "config": configs.to_mapping(config),
        "rule": str(world.truth.rule),
        "signals": None if gate is None else gate.signals.array_name,
        "groups": [{"holdout": g.holdout, "chroms": list(g.chroms), "experiments": len(g.places)} for g in groups],
    }
    write_atomically(path.with_name(EVALUATION_FILE), (json.dumps(said, indent=1) + "\n").encode())
    return EvaluateResult(path, columns.n, len({row["experiment"] for row in found}), columns)


def read_world(store: Store, selection: Selection) -> World:
    """Read experiments, labels and proteins."""
    with store.reader() as catalog:
        evidence = rows.gather(store, catalog)
        proteins = baselines.factor_proteins(catalog)
        named = catalog.rows(
            "SELECT s.factor_id, p.accession FROM data.factor_subunits s JOIN data.proteins p USING (protein_id)"
        )
    accessions: dict[int, frozenset[str]] = {}
    for factor_id, accession in named:
        accessions[int(factor_id)] = accessions.get(int(factor_id), frozenset()) | {str(accession)}
    table = evidence.experiments
    experiments = Experiments(*(table[name].astype(np.int64) for name in Experiments._fields))
    return World(table, experiments, evidence.truth(selection.config.choices().rule), proteins, accessions)


def choose_groups(
    store: Store, selection: Selection, run: LoadedRun, world: World, config: EvaluateConfig
) -> list[Group]:
    """Return what is scored on which chromosomes; what training has seen is what the checkpoint says."""
    trained = {key: set(names) for key, names in run.header.trained_on.items()}
    parts = selection.info["parts"]
    asked = _chosen_chroms(store, config.chroms)
    test_chroms = [chrom for chrom in parts["test"]["chromosomes"] if chrom not in trained["chromosomes"]]
    train_chroms = [chrom for chrom in store.tiling.chroms if chrom in trained["chromosomes"]]
    every = asked or [*test_chroms, *train_chroms]
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place in _chosen_experiments(world, parts["test"]["experiments"], config.factors):
        is_seen = (
            world.table["factor"][place] in trained["factors"] and world.table["biotype"][place] in trained["biotypes"]
        )
        for unseen_chrom in (True, False):
            chroms = tuple(
                chrom
                for chrom in every
                if (chrom not in trained["chromosomes"]) == unseen_chrom
                and world.truth.labelled[place, store.tiling.chrom_index[chrom]]
            )
            if chroms and (asked or unseen_chrom or not is_seen):
                groups.setdefault((_holdout(world, place, unseen_chrom, trained), chroms), []).append(place)
    return [Group(holdout, chroms, np.array(places)) for (holdout, chroms), places in sorted(groups.items())]


def _holdout(world: World, place: int, unseen_chrom: bool, trained: Mapping[str, set[str]]) -> str:
    unseen_factor = world.table["factor"][place] not in trained["factors"]
    unseen_biotype = world.table["biotype"][place] not in trained["biotypes"]
    return splits.HOLDOUTS[int(unseen_chrom) + 2 * int(unseen_factor) + 4 * int(unseen_biotype)]


def _chosen_chroms(store: Store, names: Sequence[str]) -> list[str]:
    chosen = [store.meta.aliases.get(name, name) for name in names]
    for chrom in chosen:
        if chrom not in store.tiling.chroms:
            close = near_miss(chrom, list(store.tiling.chroms))
            fix = f"did you mean {close}?" if close else f"known: {', '.join(store.tiling.chroms)}"
            raise ConfigError(f"no chromosome {chrom!r} in this genome", where="evaluate.chroms", fix=fix)
    return chosen


def _chosen_experiments(world: World, tested: Sequence[str], factors: Sequence[str]) -> list[int]:
    known = world.table["factor"].tolist()
    for factor in factors:
        if factor not in known:
            close = near_miss(factor, known)
            fix = f"did you mean {close}?" if close else ""
            raise ConfigError(f"no factor {factor!r} in this store", where="evaluate.factors", fix=fix)
    wanted, names = set(factors), set(tested)
    return [
        place
        for place, (experiment, factor) in enumerate(zip(world.table["experiment"].tolist(), known, strict=True))
        if (factor in wanted if wanted else experiment in names)
        and int(world.experiments.factor_id[place]) in world.proteins
    ]


class _Predictions(NamedTuple):
    """Scores of the bins of a group by everything that predicts: [bins, experiments]."""

    model: Float32[np.ndarray, "k e"]
    nearest: Float32[np.ndarray, "k e"]
    """NaN in a column without a nearest factor."""
    training_mean: Float32[np.ndarray, "k e"]


def _score_group(
    store: Store,
    run: LoadedRun,
    gate: Gate | None,
    world: World,
    group: Group,
    motifs: Sequence[baselines.Motif],
    config: EvaluateConfig,
    curves: MeanCurves,
) -> Iterator[dict[str, Any]]:
    bins = scorable_bins(store, run.arrays.windows, group.chroms)
    predictions = _predict(run, gate, world, group, bins)
    for column, place in enumerate(tqdm(group.places.tolist(), desc=group.holdout, unit="factor", disable=None)):
        experiment = int(world.experiments.experiment_id[place])
        factor_id = int(world.experiments.factor_id[place])
        labels = world.truth.labels(experiment, bins)
        scorers = {MODEL: predictions.model[:, column], baselines.TRAINING_MEAN: predictions.training_mean[:, column]}
        if not np.isnan(predictions.nearest[0, column]):
            scorers[baselines.NEAREST] = predictions.nearest[:, column]
        genes = world.proteins[factor_id].genes
        matched = baselines.motifs_of(motifs, genes, world.accessions.get(factor_id, frozenset()))
        if matched:
            scorers[baselines.MOTIF] = baselines.motif_scores(store.genome, store.tiling, matched, bins)
        scorers[baselines.PREVALENCE] = np.zeros(len(bins), dtype=np.float32)
        if config.with_oracle:
            kin = {factor: protein.genes for factor, protein in world.proteins.items()}
            scorers[baselines.ORACLE] = baselines.bound_by_others(world.truth, world.experiments, place, bins, kin=kin)
        for scorer, scores in scorers.items():
            calls = tally(labels, scores)
            curves.add(group.holdout, scorer, calls)
            yield _row(run.name, scorer, world, place, group, score_tallies(calls))


def _row(run: str, scorer: str, world: World, place: int, group: Group, scores: BinaryScores) -> dict[str, Any]:
    names = {name: str(world.table[name][place]) for name in ("factor", "biotype", "experiment")}
    chroms = ",".join(group.chroms)
    return {"run": run, "scorer": scorer, **names, "chroms": chroms, "holdout": group.holdout, **scores._asdict()}


def _predict(
    run: LoadedRun, gate: Gate | None, world: World, group: Group, bins: Int64[np.ndarray, " k"]
) -> _Predictions:
    """Score the group's pairs, and every training factor in the same biotypes, in one pass over the bins.

    A gate is applied to all of them: the baselines are what the same model says of other factors.
    """
    targets = world.experiments.take(group.places)
    trained = {
        int(factor_id)
        for factor_id, name in zip(world.experiments.factor_id, world.table["factor"].tolist(), strict=True)
        if name in set(run.header.trained_on["factors"]) and int(factor_id) in world.proteins
    }
    nearest = baselines.nearest_training_factor(world.proteins, targets.factor_id.tolist(), sorted(trained))
    wanted = {(factor, biotype) for biotype in set(targets.biotype_id.tolist()) for factor in trained}
    wanted |= set(zip(targets.factor_id.tolist(), targets.biotype_id.tolist(), strict=True))
    pairs = sorted(wanted)
    place_of = {pair: place for place, pair in enumerate(pairs)}
    own = np.array([place_of[pair] for pair in zip(*(c.tolist() for c in targets[1:]), strict=True)])
    beside = zip(nearest.factor_id.tolist(), targets.biotype_id.tolist(), strict=True)
    near = np.array([place_of.get(pair, -1) for pair in beside])
    weights = _mean_weights(world, targets, pairs, trained)
    ids = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    parts: list[_Predictions] = []
    for block in score_bins(run.head, run.source, ids[:, 0], ids[:, 1], bins):
        scores = block.scores if gate is None else gate.apply(block.scores, ids[:, 1], block.global_bins)
        nearest_scores = np.where(near >= 0, scores[:, near], np.float32(np.nan))
        parts.append(_Predictions(scores[:, own], nearest_scores, scores @ weights))
    return _Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _mean_weights(
    world: World, targets: Experiments, pairs: Sequence[tuple[int, int]], trained: set[int]
) -> Float32[np.ndarray, "p e"]:
    """Return the weights of a mean over training factors in the target's biotype, its own kin left out."""
    weights = np.zeros((len(pairs), len(targets.factor_id)), dtype=np.float32)
    asked = zip(targets.factor_id.tolist(), targets.biotype_id.tolist(), strict=True)
    for column, (factor, biotype) in enumerate(asked):
        genes = world.proteins[factor].genes
        counted = [
            place
            for place, (other, where) in enumerate(pairs)
            if where == biotype and other in trained and other != factor and not (world.proteins[other].genes & genes)
        ]
        weights[counted, column] = 1 / max(1, len(counted))
    return weights
