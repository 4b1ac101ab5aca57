"""Score a run on what it has not seen: per factor, biotype and kind of hold-out, beside what it must beat.

Every labelled bin of the test places counts (genome-like prevalence), labels follow the selection's rule. A factor
that was held out is scored twice: on test places, and on training places, where its DNA but not its binding was seen.
Experiments come in blocks, so that memory does not grow with their number. Writes ``scores.parquet`` (one row per
experiment, kind of hold-out and scorer) and what else ``score_book`` lists into the run's folder.
"""

# k bins · c experiments of a block

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from tqdm import tqdm

from tfbind_store import config as configs
from tfbind_store import freed_memory
from tfbind_store.catalog.columns import Columns
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError
from tfbind_store.evaluation import baselines, measured
from tfbind_store.evaluation.holdouts import (
    Group,
    World,
    bins_of,
    choose_groups,
    first_of_runs,
    label_column,
    read_world,
)
from tfbind_store.evaluation.pair_scores import Predicted, predict_group
from tfbind_store.evaluation.score_book import ScoreBook
from tfbind_store.evaluation.shown_loci import LociBook, Shown, choose_loci, named_loci
from tfbind_store.ingest.loci import read_loci
from tfbind_store.metrics.intervals import Resamples, Stretches, ahead, draw_stretches, interval, resample
from tfbind_store.metrics.ranking import score_binary, score_tallies, tally
from tfbind_store.metrics.reliability import ProbabilityScores, probabilities, reliability, score_probabilities
from tfbind_store.metrics.tracks import pearson, spearman
from tfbind_store.precompute.weights import pick_device
from tfbind_store.prediction.calibration import Calibration, calibrate
from tfbind_store.query.selection import Selection
from tfbind_store.query.splits import TRAIN
from tfbind_store.scoring.bins import LoadedRun, load_run, scorable_bins
from tfbind_store.scoring.gate import open_gate
from tfbind_store.scoring.signals import Signals
from tfbind_store.store.folder import Store

MODEL = "model"
_log = logging.getLogger(__name__)
_NO_PROBABILITY = ProbabilityScores(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored."""

    chroms: tuple[str, ...] = ()
    """Chromosomes; default the selection's test places, and for what was held out the training ones too."""
    factors: tuple[str, ...] = ()
    """Factors; default all with test rows."""
    motifs: Path | None = None
    """JASPAR file for the motif baseline."""
    loci: Path | None = None
    """BED of loci that the report shall show; default the busiest and a middling one of each kind of hold-out."""
    with_oracle: bool = True
    """Score measured binding of the other factors too."""
    with_signal: bool = True
    """Read signals, in the head or by the run's gate; False scores as if there were none."""
    cutoff: float = 0.5
    """Probability from which on a bin is called, for the accuracy."""
    memory_gb: float = 2.0
    """For scores that are kept at once; more of it saves reading the bins again."""
    device: str = "cpu"
    """Where the head runs."""

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff <= 1 or not 0 < self.memory_gb < math.inf:
            raise ConfigError("cutoff must be 0 to 1, memory_gb above 0", where="evaluate")


class EvaluateResult(NamedTuple):
    """What `evaluate_run` wrote."""

    path: Path
    """The Parquet file."""
    n_rows: int
    n_experiments: int
    columns: Columns


@freed_memory.kept()
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
    run = load_run(store, run_name, device=pick_device(config.device))
    selection = Selection.open(store, str(run.header.selection["name"]))
    world = read_world(store, selection, run.header)
    groups = choose_groups(store, selection, world, chroms=config.chroms, factors=config.factors)
    if not groups:
        fix = "give test chromosomes or held-out factors to tfbind select, or name --chroms"
        raise SelectionError(f"selection {selection.name} has no test rows", where=run_name, fix=fix)
    judge = _Judge(store, run, world, config)
    for group in groups:
        shows = group is max((one for one in groups if one.holdout == group.holdout), key=lambda one: len(one.places))
        judge.group(group, shows=shows)
    if not judge.book.rows:
        raise SelectionError("no scored bin is embedded", where=run_name, fix=f"tfbind embed {store.path} windows")
    said = {
        "config": configs.to_mapping(config),
        "rule": str(world.truth.rule),
        "probability": judge.probability_is,
        "signals": judge.signals_read,
        "groups": [{"holdout": g.holdout, "chroms": list(g.chroms), "experiments": len(g.places)} for g in groups],
    }
    path = judge.book.write(store.run_dir(run_name), said)
    experiments = {row["experiment"] for row in judge.book.rows}
    return EvaluateResult(path, len(judge.book.rows), len(experiments), judge.book.columns())


@dataclass(frozen=True, eq=False)
class _Ground:
    """What all experiments of a group share."""

    bins: Int64[np.ndarray, " k"]
    chrom_starts: Int64[np.ndarray, " chroms"]
    """First bin of each chromosome."""
    stretches: Stretches
    gc: Float32[np.ndarray, " k"]
    signals: list[Signals]

    @cached_property
    def signal_of(self) -> Callable[[int], Float32[np.ndarray, " k"] | None]:
        """Return the accessibility of a biotype at the bins; that of the last one asked for is kept."""
        return lru_cache(maxsize=1)(lambda biotype: measured.accessibility(self.signals, biotype, self.bins))


class _Judge:
    """Scores groups of experiments into a book."""

    def __init__(self, store: Store, run: LoadedRun, world: World, config: EvaluateConfig) -> None:
        self.store, self.run, self.world, self.config = store, run, world, config
        self.book = ScoreBook()
        if not config.with_signal:
            run.source.signals = None
        reads = run.head.signal is not None
        self.gate = open_gate(store, run.name) if config.with_signal and not reads else None
        source = self.gate.signals if self.gate is not None else run.source.signals
        self.signals_read = None if source is None else source.array_name
        self.motifs = baselines.read_motifs(config.motifs) if config.motifs else []
        self.asked_loci = read_loci(store, config.loci) if config.loci else None
        self.signals = measured.open_signals(store)
        self.tracks = measured.LabelTracks(store)
        kin = {factor: protein.genes for factor, protein in world.proteins.items()}
        every = np.arange(world.table.n)
        self.bound = measured.Bound(world.truth, world.experiments, every, kin)
        self.bound_in_training = measured.Bound(world.truth, world.experiments, world.training, kin)
        self.shown = LociBook(store.grid.bin_bp)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The run's own, measured on validation bins; None where it has none."""
        try:
            return calibrate(self.store, self.run, gate=self.gate)
        except CheckpointError as error:
            _log.warning("probabilities are the head's own, not calibrated: %s", error.what)
            return None

    @property
    def probability_is(self) -> str:
        """Where probabilities come from."""
        if self.calibration is None:
            return f"the head's own, trained with {self.run.header.loss}"
        return f"{self.calibration.method} on validation bins"

    @cached_property
    def _gc(self) -> Float32[np.ndarray, " bins"]:
        return measured.gc_share(self.store)

    @cached_property
    def _gc_curve(self) -> measured.GcCurve:
        trained = np.flatnonzero((self.world.part == TRAIN) & self.world.truth.scorable)
        return measured.GcCurve(self._gc[trained], self.bound_in_training.all(trained))

    def group(self, group: Group, *, shows: bool) -> None:
        """Score a group; with `shows` some of its loci are kept for the report."""
        ground = self._ground(group)
        if not len(ground.bins):
            return
        loci: list[Shown] = []
        if shows and self.asked_loci is not None:
            loci = named_loci(self.store.tiling, ground.bins, self.asked_loci)
        elif shows:
            bound = measured.Bound(self.world.truth, self.world.experiments, group.places, {}).all(ground.bins)
            loci = choose_loci(self.store.tiling, ground.bins, bound)
        self.shown.open(loci)
        max_bytes = int(self.config.memory_gb * 2**30)
        blocks = predict_group(self.run, self.gate, self.world, group.places, ground.bins, max_bytes=max_bytes)
        with tqdm(total=len(group.places), desc=group.holdout, unit="experiment", disable=None) as bar:
            for block in blocks:
                for row in range(len(block.places)):
                    self._experiment(group, ground, block, row)
                    bar.update()
        self.shown.close(group.holdout)
        self.book.loci = self.shown.rows

    def _ground(self, group: Group) -> _Ground:
        tiling = self.store.tiling
        embedded = scorable_bins(self.store, self.run.arrays.windows, group.chroms)
        wanted = bins_of(self.store, self.world, group, whole=bool(self.config.chroms))
        bins = embedded[np.isin(embedded, wanted, assume_unique=True)]
        chrom = tiling.window_chrom(bins // tiling.grid.n_bins)
        start_bp = (bins - tiling.first_window[chrom] * tiling.grid.n_bins) * tiling.grid.bin_bp
        stretches = draw_stretches(chrom, start_bp, tiling.grid.bin_bp)
        starts = np.flatnonzero(first_of_runs(chrom)) if len(chrom) else np.empty(0, dtype=np.int64)
        return _Ground(bins, starts, stretches, self._gc_curve(self._gc[bins]), self.signals)

    def _experiment(self, group: Group, ground: _Ground, block: Predicted, row: int) -> None:
        """Score everything that predicts one experiment."""
        place = int(block.places[row])
        world = self.world
        labels = label_column(world.truth, int(world.experiments.experiment_id[place]), ground.bins)
        signal = ground.signal_of(int(world.experiments.biotype_id[place]))
        names = {name: str(world.table[name][place]) for name in ("factor", "biotype", "experiment")}
        nearest = self._name(int(block.nearest_factor[row]))
        shared = {**names, "chroms": ",".join(group.chroms), "holdout": group.holdout}
        beside = {"nearest": nearest, "similarity": float(block.similarity[row]) if nearest else float("nan")}
        track = self.tracks.at(world.experiments, place, ground.bins)
        of_model: Resamples | None = None
        for scorer, scores in self._scorers(group, ground, block, row, signal):
            calls = tally(labels, scores)
            found = resample(calls, labels, scores, ground.stretches)
            of_model = found if of_model is None else of_model
            self.book.curves.add(group.holdout, scorer, calls)
            right = _NO_PROBABILITY
            if scorer == MODEL:
                probability = self._probability(group, scores, labels)
                right = score_probabilities(labels, probability, cutoff=self.config.cutoff)
                self.shown.add(names, probability, labels, signal)
            self.book.rows.append(
                {
                    "run": self.run.name,
                    "scorer": scorer,
                    **shared,
                    **score_tallies(calls)._asdict(),
                    **_intervals(found),
                    "model_ahead": float("nan") if scorer == MODEL else ahead(of_model.auprc, found.auprc),
                    **right._asdict(),
                    **_correlations(scores, track),
                    **beside,
                }
            )
            self._chromosomes(scorer, shared, ground, labels, scores)

    def _scorers(
        self, group: Group, ground: _Ground, block: Predicted, row: int, signal: Float32[np.ndarray, " k"] | None
    ) -> Iterator[tuple[str, Float32[np.ndarray, " k"]]]:
        """Yield the scores of the model, then of everything that it must beat, then of the oracle."""
        world, bins, place = self.world, ground.bins, int(block.places[row])
        factor_id = int(world.experiments.factor_id[place])
        yield MODEL, block.model[row]
        for scorer, scores in ((baselines.TRAINING_MEAN, block.training_mean), (baselines.NEAREST, block.nearest)):
            if not np.isnan(scores[row, 0]):
                yield scorer, scores[row]
        genes = world.proteins[factor_id].genes
        matched = baselines.motifs_of(self.motifs, genes, world.accessions.get(factor_id, frozenset()))
        if matched:
            yield baselines.MOTIF, baselines.motif_scores(self.store.genome, self.store.tiling, matched, bins)
        yield baselines.GC, ground.gc
        if signal is not None:
            yield baselines.ACCESSIBILITY, signal
        if group.is_seen_place and not all(world.is_trained(place)):
            known = self.bound_in_training.in_training(place, bins)
            if known is not None:
                yield baselines.TRAINING_BINDING, known
        yield baselines.PREVALENCE, np.zeros(len(bins), dtype=np.float32)
        if self.config.with_oracle:
            others = self.bound.by_others(place, bins)
            yield baselines.ORACLE, np.zeros(len(bins), dtype=np.float32) if others is None else others

    def _probability(
        self, group: Group, scores: Float32[np.ndarray, " k"], labels: Float32[np.ndarray, " k"]
    ) -> Float32[np.ndarray, " k"]:
        """Return what the model's scores mean, and note how right that is."""
        own = probabilities(scores, self.run.header.loss)
        self.book.add_reliability(group.holdout, "own", reliability(labels, own))
        if self.calibration is None:
            return own
        said = self.calibration.probability(scores)
        self.book.add_reliability(group.holdout, "calibrated", reliability(labels, said))
        return said

    def _chromosomes(
        self,
        scorer: str,
        shared: Mapping[str, str],
        ground: _Ground,
        labels: Float32[np.ndarray, " k"],
        scores: Float32[np.ndarray, " k"],
    ) -> None:
        """Score each chromosome alone, where there are several."""
        if len(ground.chrom_starts) < 2 or scorer == baselines.PREVALENCE:
            return
        tiling = self.store.tiling
        for begin, end in zip(ground.chrom_starts, np.append(ground.chrom_starts[1:], len(labels)), strict=True):
            chrom = tiling.chroms[int(tiling.window_chrom(ground.bins[[begin]] // tiling.grid.n_bins)[0])]
            found = score_binary(labels[begin:end], scores[begin:end])
            names = {key: value for key, value in shared.items() if key != "chroms"}
            self.book.chroms.append(
                {"run": self.run.name, "scorer": scorer, **names, "chrom": chrom, **found._asdict()}
            )

    def _name(self, factor_id: int) -> str:
        at = np.flatnonzero(self.world.experiments.factor_id == factor_id)
        return str(self.world.table["factor"][at[0]]) if len(at) else ""


def _intervals(found: Resamples) -> dict[str, float]:
    (auroc_low, auroc_high), (auprc_low, auprc_high) = interval(found.auroc), interval(found.auprc)
    return {
        "auroc_low": auroc_low,
        "auroc_high": auroc_high,
        "auprc_low": auprc_low,
        "auprc_high": auprc_high,
    }


def _correlations(scores: Float32[np.ndarray, " k"], track: Float32[np.ndarray, " k"] | None) -> dict[str, float]:
    """Return how scores follow a measured track, where the experiment has one."""
    if track is None:
        return {"pearson": float("nan"), "spearman": float("nan")}
    known = ~np.isnan(track) & (scores > baselines.LOWEST)  # a motif cannot be scanned where there are no bases
    x, y = scores[known].astype(np.float64), track[known].astype(np.float64)
    return {"pearson": pearson(x, y), "spearman": spearman(x, y)}
