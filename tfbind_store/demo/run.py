"""`tfbind demo`: every stage on a small invented genome, through the same code as everybody's data.

Writes the files a user would bring (`demo.genome`), makes a store of them, imports, selects with held-out
chromosomes and one held-out factor, trains a small trunk on the training part, embeds, trains a head, scores both
beside their baselines and reports. Then all of it again with peaks at random places: the control that must learn
nothing. Held-out factor: its paralogs were seen, it was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from tfbind_store.demo.genome import DemoFiles, DemoGenome, DemoGenomeConfig, make_demo_genome, write_demo_files
from tfbind_store.errors import ConfigError, StoreExists
from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
from tfbind_store.ingest import (
    import_biotypes,
    import_blacklist,
    import_experiments,
    import_peaks,
    import_proteins,
)
from tfbind_store.loci import Grid
from tfbind_store.metrics import summary
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder, make_window_embedder
from tfbind_store.precompute.run import embed_contexts, embed_factors, embed_windows
from tfbind_store.pretraining.pretrain import PretrainConfig, TrunkConfig, pretrain_trunk
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.reporting.report import write_report
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, train_head

SELECTION = "demo"
RUN, CONTROL = "adapter", "control"
UNSEEN_CHROMOSOME, UNSEEN_BOTH = "unseen_chromosome", "unseen_chromosome+unseen_factor"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo makes and how long it trains; all of it takes about 70 seconds of one core."""

    genome: DemoGenomeConfig = field(default_factory=DemoGenomeConfig)
    """The invented genome."""
    grid: Grid = field(default_factory=lambda: Grid(window_bp=4_096, n_bins=112, bin_bp=32))
    """Windows and bins; 32 bp, because a trunk finds motifs the sooner the fewer poolings stand above them."""
    n_valid_chroms: int = 1
    """Chromosomes for early stopping, before the test chromosomes."""
    n_test_chroms: int = 2
    """The last chromosomes: nothing is trained on them."""
    held_out_factor: str = "BHX3"
    """In no training row; its paralogs are."""
    pretrain: PretrainConfig = field(
        default_factory=lambda: PretrainConfig(
            trunk=TrunkConfig(dim=96, depth=1, heads=4, attn_dim_key=16, dim_divisible_by=8, dropout_rate=0.05),
            passes=7,
            window_bp=2_048,
            batch_size=8,
            lr=3e-3,
            validate_every=0,
        )
    )
    """The trunk's training."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            options={"width": 64, "filip_heads": 16, "tower_dim": 64},
            steps=300,
            bins_per_step=512,
            pairs_per_step=32,
            validate_every=100,
        )
    )
    """The head's training."""


class DemoScore(NamedTuple):
    """One line of the table: medians over experiments."""

    run: str
    holdout: str
    scorer: str
    n_experiments: int
    auroc: float
    auprc: float
    prevalence: float


class DemoResult(NamedTuple):
    """What the demo made and what it reached."""

    store: Path
    inputs: DemoFiles
    trunk: Path
    report: Path
    scores: list[DemoScore]
    seconds: Mapping[str, float]
    """Wall time by stage."""

    def score(self, holdout: str, scorer: str = summary.MODEL, *, run: str = RUN) -> DemoScore:
        """Return one line of the table."""
        return next(line for line in self.scores if (line.run, line.holdout, line.scorer) == (run, holdout, scorer))


def run_demo(out: Path | str, *, seed: int = 0, config: DemoConfig | None = None) -> DemoResult:
    """Make a genome, run every stage on it, and a control.

    Parameters
    ----------
    out
        Folder for everything: ``inputs``, ``demo.store``, trunks. Must not exist, or be empty.
    seed
        Decides the genome, all draws and all first weights.

    Raises
    ------
    StoreExists
        If there is something in `out`.
    """
    out, config = Path(out), config or DemoConfig()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fix = "choose another folder, or remove this one"
        raise StoreExists("there is something at this path already", where=str(out), fix=fix)
    with _one_thread():
        return _run(out, config, seed)


def _run(out: Path, config: DemoConfig, seed: int) -> DemoResult:
    clock = _Clock()
    with clock.stage("genome"):
        genome = make_demo_genome(config.genome, seed=seed)
        inputs = write_demo_files(genome, out / "inputs")
    with clock.stage("init and import"):
        store = make_store(out / "demo.store", inputs, config.grid)
    with clock.stage("select"):
        make_selection(store, SELECTION, selection_config(genome, config, seed=seed))
    with clock.stage("embed proteins and texts"):
        embed_factors(store, make_sequence_embedder("composition", {})).require_complete()
        embed_contexts(store, make_text_embedder("hashed", {})).require_complete()
    for run, permute in ((RUN, False), (CONTROL, True)):
        _learn(store, out, config, run, seed=seed, permute=permute, clock=clock)
    with clock.stage("report"):
        page = write_report([store.path / "runs" / run for run in (RUN, CONTROL)], out / "report.html").page
    return DemoResult(store.path, inputs, out / f"trunk-{RUN}", page, clock.scores, clock.seconds)


def make_store(path: Path, inputs: DemoFiles, grid: Grid) -> Store:
    """Make a store of the demo's files, as `tfbind init` and `tfbind import` do."""
    store = Store.create(path, fasta=inputs.genome, grid=grid)
    for report in (
        import_proteins(store, inputs.proteins),
        import_peaks(store, inputs.peaks),
        import_experiments(store, inputs.experiments),
        import_biotypes(store, inputs.biotypes),
        import_blacklist(store, inputs.blacklist),
    ):
        _log.info("  %s: %d of %d rows kept", report.kind, report.rows_kept, report.rows_read)
    return store


def split_chroms(genome: DemoGenome, config: DemoConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the validation and the test chromosomes: the last ones."""
    names, n_held = tuple(genome.sequences), config.n_valid_chroms + config.n_test_chroms
    if not 0 < config.n_test_chroms < n_held < len(names):
        raise ConfigError(f"{n_held} chromosomes held out of {len(names)}", where="demo", fix="leave some for training")
    return names[-n_held : -config.n_test_chroms], names[-config.n_test_chroms :]


def selection_config(genome: DemoGenome, config: DemoConfig, *, seed: int) -> SelectionConfig:
    """Return what is trained on and what is kept apart."""
    valid, test = split_chroms(genome, config)
    split = SplitConfig(valid_chroms=valid, test_chroms=test, hold_out={"factor": [config.held_out_factor]})
    # paralogs bind alike in this genome: that a head tells a held-out factor by its family is what the demo shows
    return SelectionConfig(split=split, allow_leaks=("paralog",), seed=seed)


def embed_genome(store: Store, trunk: Path, *, name: str) -> None:
    """Embed every window of the store by a trunk, as `tfbind embed` does."""
    embedder = make_window_embedder("enformer", {"checkpoint": str(trunk)})
    embed_windows(store, embedder, name=name).require_complete()


def demo_table(result: DemoResult) -> list[str]:
    """Return the result as lines: scores beside their baselines, the control, the report's path."""
    lines = [f"{'':34}{'scored by':18}{'n':>4}{'AUROC':>8}{'AUPRC':>8}{'prevalence':>12}"]
    titles = {UNSEEN_CHROMOSOME: "seen factors, unseen chromosomes", UNSEEN_BOTH: "unseen factor and chromosomes"}
    for run, holdout in ((RUN, UNSEEN_CHROMOSOME), (RUN, UNSEEN_BOTH), (CONTROL, UNSEEN_CHROMOSOME)):
        title = titles[holdout] if run == RUN else "control: peaks at random places"
        for line in result.scores:
            if (line.run, line.holdout) == (run, holdout) and (run == RUN or line.scorer == summary.MODEL):
                numbers = f"{line.auroc:>8.3f}{line.auprc:>8.3f}{line.prevalence:>12.4f}"
                lines.append(f"{title:34}{summary.spaced(line.scorer):18}{line.n_experiments:>4}{numbers}")
                title = ""
    lines += [
        "",
        "n: experiments with peaks. AUROC and AUPRC are medians, per bin. Paralogs bind alike in this genome, so the",
        "nearest training factor's scores are as good as the model's own. The oracle sees measured binding of others.",
    ]
    lines += [f"time: {sum(result.seconds.values()):.0f} s", f"store: {result.store}", f"report: {result.report}"]
    return lines


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one core: products this small gain nothing from a second, and lose much on a busy machine.

    With two threads beside other work, each waits for the other at every layer: 390 s of CPU instead of 60.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Clock:
    """Times stages and collects scores as they come."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.scores: list[DemoScore] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        _log.info("%s", name)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def _learn(store: Store, out: Path, config: DemoConfig, run: str, *, seed: int, permute: bool, clock: _Clock) -> None:
    """Pretrain a trunk, embed with it, train a head on it, and score the head."""
    trunk = out / f"trunk-{run}"
    with clock.stage(f"pretrain {run}"):
        pretrain = replace(config.pretrain, seed=seed, permute_labels=permute)
        pretrain_trunk(store, SELECTION, pretrain, trunk)
    with clock.stage(f"embed {run}"):
        embed_genome(store, trunk, name=run)
    with clock.stage(f"train {run}"):
        train_head(store, SELECTION, replace(config.train, windows=run, seed=seed, permute_labels=permute), run)
    with clock.stage(f"evaluate {run}"):
        scored = evaluate_run(store, run, EvaluateConfig())
        names = list(scored.columns)
        rows = [
            dict(zip(names, row, strict=True))
            for row in zip(*(c.tolist() for c in scored.columns.values()), strict=True)
        ]
        clock.scores += [
            DemoScore(run, line.holdout, line.scorer, line.n_experiments, line.auroc, line.auprc, line.prevalence)
            for line in summary.headlines(summary.cases(run, rows))
        ]
