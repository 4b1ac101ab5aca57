"""Commands that learn and judge: pretrain, train, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Command, configured, emit, json_option, listed, table
from tfbind_store.cli.stores import STORE, VERIFY
from tfbind_store.errors import StoreMissing

if TYPE_CHECKING:
    from tfbind_store.arrays.sharded import Verify

if TYPE_CHECKING:
    from tfbind_store.store.folder import Store
    from tfbind_store.training.train import TrainConfig

CONFIG = click.option("--config", type=click.Path(path_type=Path), help="TOML with any keys of the config.")
SET = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the config. Repeatable.")


@click.command(
    cls=Command,
    examples=[
        "tfbind pretrain yeast.store demo trunk/ --passes 2 --set trunk.dim=48",
        "tfbind pretrain yeast.store demo convnet/ --passes 2 --set kind=convnet --set convnet.dim=48",
        "tfbind pretrain yeast.store demo control/ --permute-labels --passes 1 --set trunk.dim=48",
    ],
)
@STORE
@click.argument("selection")
@click.argument("trunk", type=click.Path(path_type=Path))
@click.option("--passes", type=float, help="Times that every training base is read.  [default: 24]")
@click.option("--minutes", type=float, help="Stop after so long, the learning rate at its end.")
@click.option("--permute-labels", is_flag=True, default=None, help="The control: peaks at random places.")
@click.option("--seed", type=int, help="Decides weights, order and draws.  [default: 0]")
@click.option("--overwrite", is_flag=True, help="Replace a trunk that is in the folder.")
@CONFIG
@SET
@json_option
def pretrain(
    store: Path,
    selection: str,
    trunk: Path,
    overwrite: bool,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Train a small trunk on peaks as tracks, and write it to the folder TRUNK; a stopped run goes on.

    It reads the training chromosomes and training factors of SELECTION only; its card says so, and the checkpoint of
    every head on top of it repeats it.
    """
    from tfbind_store.pretraining.pretrain import PretrainConfig, pretrain_trunk
    from tfbind_store.store.folder import Store

    chosen = configured(PretrainConfig, config, given, settings)
    result = pretrain_trunk(Store.open(store), selection, chosen, trunk, overwrite=overwrite)
    text = [
        f"trunk: {result.path}, {result.n_tracks} tracks, {result.n_steps:,} steps in {result.seconds:.0f} s, "
        f"loss {result.loss:.4f}{', resumed' if result.was_resumed else ''}",
        *(f"{name.replace('_', ' ')}: {value:.3f}, median over tracks" for name, value in result.validation.items()),
        f"next: tfbind embed {store} windows {'' if chosen.kind == 'enformer' else f'--embedder {chosen.kind} '}"
        f"--checkpoint {trunk}",
    ]
    emit(result, text, as_json=as_json)


@click.command(
    cls=Command,
    examples=[
        "tfbind train yeast.store demo --run adapter --steps 20",
        "tfbind train yeast.store demo --run linear --head linear --steps 20 --set lr=3e-3",
    ],
)
@STORE
@click.argument("selection")
@click.option("--run", "run_name", default="run", show_default=True, help="Name of the run.")
@click.option("--folds", is_flag=True, help="One head for each fold of the selection; mean and spread.")
@click.option("--final", is_flag=True, help="With --folds: then a head on all training data, as run NAME.")
@click.option("--head", metavar="NAME", help="adapter or linear.  [default: adapter]")
@click.option("--steps", type=int, help="Optimizer steps.  [default: 1500]")
@click.option("--minutes", type=float, help="Stop after so long, the learning rate at its end.")
@click.option("--lr", type=float, help="Highest learning rate.  [default: 1e-3]")
@click.option("--windows", metavar="ARRAY", help="Embeddings of DNA, where the store has several.")
@click.option("--proteins", metavar="ARRAY", help="Embeddings of proteins, where the store has several.")
@click.option("--contexts", metavar="ARRAY", help="Embeddings of texts, where the store has several.")
@click.option("--permute-labels", is_flag=True, default=None, help="The control: peaks at random places.")
@click.option("--tracker", "trackers", multiple=True, help="tensorboard or wandb, beside the log. Repeatable.")
@click.option("--device", help="cpu or cuda.  [default: auto]")
@click.option("--seed", type=int, help="Decides weights, order and dropout.  [default: 0]")
@click.option("--overwrite", is_flag=True, help="Begin anew whatever is there.")
@VERIFY
@CONFIG
@SET
@json_option
def train(
    store: Path,
    selection: str,
    run_name: str,
    folds: bool,
    final: bool,
    overwrite: bool,
    verify: Verify,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Train a head on a selection; a run that was stopped goes on where it stood.

    The best weights by validation are kept in runs/NAME/head.safetensors, with the fingerprints of the embeddings, the
    selection and what head and trunk were trained on inside.
    """
    from tfbind_store.store.folder import Store
    from tfbind_store.training.signal_training import train_declared_gate
    from tfbind_store.training.train import TrainConfig, train_head

    chosen, opened = configured(TrainConfig, config, given, settings), Store.open(store, verify=verify)
    if folds:
        _train_folds(opened, selection, chosen, run_name, with_final=final, overwrite=overwrite, as_json=as_json)
        return
    if final:
        raise click.UsageError("--final is for --folds: without it, the run is the final one")
    result = train_head(opened, selection, chosen, run_name, overwrite=overwrite)
    if result.rank:  # of several processes, the first one speaks
        return
    gate = train_declared_gate(opened, run_name)
    resumed = ", resumed" if result.was_resumed else ""
    text = [
        f"run: {result.path}, {result.steps:,} steps in {result.seconds:.0f} s{resumed}",
        *(f"{name.replace('_', ' ')}: {value:.4g}" for name, value in result.metrics.items()),
        *([f"signal gate: {gate.path}, {gate.n_biotypes} training biotypes with a signal"] if gate else []),
        f"next: tfbind evaluate {result.path}",
    ]
    emit(result, text, as_json=as_json)


def _train_folds(
    store: Store, selection: str, config: TrainConfig, run: str, *, with_final: bool, overwrite: bool, as_json: bool
) -> None:
    """Train and print cross-validation."""
    from tfbind_store.training.folds import cross_validate, fold_names

    names = fold_names(store, selection)
    whole = selection if with_final else None
    result = cross_validate(store, names, config, run, whole=whole, overwrite=overwrite)
    if result.rank:  # of several processes, the first one speaks
        return
    metrics = list(result.mean)
    rows = [
        *((fold.run, *(fold.metrics.get(name, float("nan")) for name in metrics)) for fold in result.folds),
        ("mean", *result.mean.values()),
        ("spread", *result.spread.values()),
    ]
    text = table(("run", *(name.replace("_", " ") for name in metrics)), rows)
    if result.final is not None:
        text += [f"final run: {result.final}", f"next: tfbind evaluate {result.final}"]
    emit(result, text, as_json=as_json)


@click.command(
    cls=Command,
    examples=[
        "tfbind evaluate yeast.store/runs/adapter --motifs motifs.jaspar",
        "tfbind evaluate yeast.store/runs/linear --chroms chrII --json",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--motifs", type=click.Path(path_type=Path), help="JASPAR file for the motif baseline.")
@click.option("--chroms", metavar="LIST", help="Chromosomes; the selection's test chromosomes if not given.")
@click.option("--factor", "factors", multiple=True, help="Only this factor. Repeatable.")
@click.option("--loci", type=click.Path(path_type=Path), help="BED of loci for the report; else some are chosen.")
@click.option("--oracle/--no-oracle", "with_oracle", default=True, help="Score measured binding of other factors too.")
@click.option("--signal/--no-signal", "with_signal", default=True, help="With the run's signal gate, if it has one.")
@click.option("--cutoff", type=float, default=0.5, show_default=True, help="Probability called bound, for accuracy.")
@click.option("--memory-gb", type=float, default=2.0, show_default=True, help="For scores that are kept at once.")
@click.option("--device", default="cpu", show_default=True, help="Where the head runs.")
@VERIFY
@json_option
def evaluate(
    run: Path,
    motifs: Path | None,
    chroms: str | None,
    factors: tuple[str, ...],
    loci: Path | None,
    with_oracle: bool,
    with_signal: bool,
    cutoff: float,
    memory_gb: float,
    device: str,
    verify: Verify,
    as_json: bool,
) -> None:
    """Score a run on what it has not seen, beside its baselines.

    Every labelled bin of the test places counts, so that the prevalence is the genome's; held-out factors are scored
    on places that were trained on too. Writes scores.parquet, .csv and .json into the run's folder.
    """
    from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
    from tfbind_store.metrics import summary
    from tfbind_store.store.folder import Store

    store, name = run_place(run)
    config = EvaluateConfig(
        motifs=motifs,
        chroms=tuple(listed(chroms)),
        factors=factors,
        loci=loci,
        with_oracle=with_oracle,
        with_signal=with_signal,
        cutoff=cutoff,
        memory_gb=memory_gb,
        device=device,
    )
    result = evaluate_run(Store.open(store, verify=verify), name, config)
    names = list(result.columns)
    columns = [column.tolist() for column in result.columns.values()]
    scores = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    cases = summary.cases(name, scores)
    headlines = summary.headlines(cases)
    rows = [
        (
            summary.spaced(h.holdout),
            summary.spaced(h.scorer),
            h.n_experiments,
            h.auroc,
            h.auprc,
            f"{h.low:.3g} to {h.high:.3g}" if h.low == h.low else "-",
            h.prevalence,
            h.note,
        )
        for h in headlines
    ]
    text = [
        f"{result.n_experiments:,} experiments scored into {result.path}",
        *table(("held out", "scored by", "experiments", "AUROC", "AUPRC", "of 95 %", "prevalence", ""), rows),
        "",
        *summary.verdicts(cases),
        f"next: tfbind report {run}",
    ]
    value = {"path": result.path, "headlines": headlines, "verdicts": summary.verdicts(cases), "scores": scores}
    emit(value, text, as_json=as_json)


def run_place(run: Path) -> tuple[Path, str]:
    """Return the store and the name of a run, given as its folder ``STORE/runs/NAME``."""
    place = run.resolve()
    if place.parent.name != "runs" or not place.is_dir():
        raise StoreMissing("no run here", where=str(run), fix="write STORE/runs/NAME; tfbind info STORE lists the runs")
    return place.parent.parent, place.name


@click.command(
    cls=Command,
    examples=[
        "tfbind report yeast.store/runs/adapter",
        "tfbind report yeast.store/runs/adapter yeast.store/runs/linear --out both.html",
    ],
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page; RUN/report.html if not given.")
@click.option("--genes", type=click.Path(path_type=Path), help="BED file of genes, drawn at the loci.")
@json_option
def report(runs: tuple[Path, ...], out: Path | None, genes: Path | None, as_json: bool) -> None:
    """Write one HTML page about evaluated runs: scores, baselines, curves, what was trained on what.

    The page needs no network. Its figures are also saved as SVG files beside it.
    """
    from tfbind_store.reporting.report import write_report

    written = write_report(runs, out, genes=genes)
    emit(written, f"{written.page} ({len(written.figures)} figures)", as_json=as_json)
