"""Commands that use a trained head: predict, score; and those of signal gates and plain track heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Command, emit, json_option, key_values, listed
from tfbind_store.cli.learning import run_place
from tfbind_store.cli.stores import STORE

if TYPE_CHECKING:
    from tfbind_store.store.folder import Store

FACTORS = click.option("--factor", "factors", multiple=True, required=True, help="A factor. Repeatable.")
BIOTYPE = click.option("--biotype", help="A biotype of the store; the only one if not given.")
PROTEIN = click.option("--protein", type=click.Path(path_type=Path), help="FASTA of a factor that was not imported.")
CONTEXT = click.option("--context", metavar="TEXT", help="Describes the cells, in place of the biotype's own text.")
CHECKPOINT = click.option(
    "--checkpoint",
    "models",
    multiple=True,
    metavar="KIND=PLACE",
    help="Weights of the model of windows, proteins or contexts, where they are needed.",
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="Where the head runs.")


@click.command(
    cls=Command,
    examples=[
        "tfbind predict yeast.store/runs/adapter --factor REB1 --out reb1.bw --raw",
        "tfbind predict yeast.store/runs/adapter --factor REB1 --loci promoters.bed --out scores.parquet --raw --json",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@FACTORS
@BIOTYPE
@PROTEIN
@CONTEXT
@CHECKPOINT
@click.option(
    "--out",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: .bw, .bed, .narrowPeak, or .parquet with --loci. Repeatable.",
)
@click.option("--loci", type=click.Path(path_type=Path), help="BED: only the windows that these loci touch.")
@click.option("--chroms", metavar="LIST", help="Only these chromosomes.")
@click.option("--signal", type=click.Path(path_type=Path), help="bigWig of the cells, for a run with a signal gate.")
@click.option("--fdr", type=float, default=0.1, show_default=True, help="False discovery rate of called peaks.")
@click.option("--raw", is_flag=True, help="Logits in place of calibrated probabilities.")
@click.option(
    "--method",
    type=click.Choice(["isotonic", "platt"]),
    default="isotonic",
    show_default=True,
    help="How logits become probabilities.",
)
@DEVICE
@json_option
def predict(
    run: Path,
    factors: tuple[str, ...],
    biotype: str | None,
    protein: Path | None,
    context: str | None,
    models: tuple[str, ...],
    chroms: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Predict where factors bind, over the whole genome or at loci, from stored embeddings.

    A factor that was never imported needs its protein: --protein FASTA. Numbers are calibrated on the run's validation
    bins, and called peaks have the false discovery rate measured there. Stopped, the same command goes on.
    """
    from tfbind_store.prediction.asked_pairs import Asked
    from tfbind_store.prediction.predict import PredictConfig
    from tfbind_store.prediction.predict import predict as predict_pairs
    from tfbind_store.store.folder import Store

    store, name = run_place(run)
    asked = Asked(
        factors=factors,
        biotype=biotype,
        proteins=protein,
        context=context,
        models=key_values(models, option="--checkpoint"),
    )
    config = PredictConfig(asked=asked, chroms=tuple(listed(chroms)), **given)
    result = predict_pairs(Store.open(store), name, config)
    text = [
        f"{len(result.pairs):,} pairs over {result.n_bins:,} bins{', resumed' if result.was_resumed else ''}",
        *(f"  {path}{_peaks(result.n_peaks.get(str(path)))}" for path in result.files),
    ]
    if result.n_windows_missing:
        text.append(f"  {result.n_windows_missing:,} windows are not embedded (or all N) and have no score")
    if result.new_factors:
        text.append(f"  of no experiment in this store: {', '.join(result.new_factors)}")
    emit(result, text, as_json=as_json)


def _peaks(number: int | None) -> str:
    return "" if number is None else f": {number:,} peaks"


@click.command(
    cls=Command,
    examples=[
        "tfbind score yeast.store/runs/adapter snps.vcf --factor REB1 --checkpoint windows=trunk/ --out effects.tsv",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("vcf", type=click.Path(path_type=Path))
@FACTORS
@BIOTYPE
@PROTEIN
@CONTEXT
@CHECKPOINT
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write: .tsv or .vcf.")
@click.option("--flank-bp", default=64, show_default=True, help="Bases on each side of an allele whose bins count.")
@DEVICE
@json_option
def score(
    run: Path,
    vcf: Path,
    out: Path,
    factors: tuple[str, ...],
    biotype: str | None,
    protein: Path | None,
    context: str | None,
    models: tuple[str, ...],
    flank_bp: int,
    device: str,
    as_json: bool,
) -> None:
    """Score variants: both alleles of each through the live trunk, and the difference in predicted binding.

    An allele's score is the highest logit of the bins that touch it or its flanks. Bases behind an insertion or a
    deletion move, bases before it stay. A variant that cannot be scored is written with the reason: its REF is not the
    genome's, it is symbolic, or off the chromosome.
    """
    from tfbind_store.prediction.asked_pairs import Asked
    from tfbind_store.prediction.variants import VariantConfig, score_vcf
    from tfbind_store.store.folder import Store

    store, name = run_place(run)
    places = key_values(models, option="--checkpoint")
    asked = Asked(factors=factors, biotype=biotype, proteins=protein, context=context, models=places)
    config = VariantConfig(asked=asked, flank_bp=flank_bp, checkpoint=places.get("windows"), device=device)
    result = score_vcf(Store.open(store), name, vcf, out, config)
    text = [f"{result.n_scored:,} of {result.n_variants:,} alleles scored into {result.path}"]
    if result.n_beyond:
        text.append(f"  {result.n_beyond:,} have bins in the next window, which were not looked at")
    text += [f"  skipped {count:,}: {cause.replace('_', ' ')}" for cause, count in result.skipped.items()]
    emit(result, text, as_json=as_json)


@click.command(
    "train-signal",
    cls=Command,
    examples=["tfbind train-signal yeast.store/runs/linear --signals atac --steps 5"],
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--signals", default="", help="Name of the array; the one that the selection declares, else signals.")
@click.option("--steps", default=300, show_default=True, help="Optimizer steps.")
@click.option("--lr", default=1e-2, show_default=True, help="Learning rate.")
@click.option("--drop", default=0.15, show_default=True, help="Share of biotypes whose signal a step does not see.")
@click.option("--seed", default=0, show_default=True, help="Decides weights, order and what is dropped.")
@json_option
def train_signal(run: Path, as_json: bool, **given: Any) -> None:
    """Train a gate that lets a biotype's own signal, such as ATAC, speak beside a run's head.

    The head stays as it is. The gate sees the run's training rows and does not know the biotype, so that it serves cell
    types that nobody trained on: tfbind predict takes their stored signal, or --signal bigWig.
    """
    from tfbind_store.store.folder import Store
    from tfbind_store.training.signal_training import SignalConfig, train_gate

    store, name = run_place(run)
    result = train_gate(Store.open(store), name, SignalConfig(**given))
    first, last = result.losses[0], result.losses[-1]
    text = f"{result.path}: loss {first:.4g} at first, {last:.4g} at last, {result.n_biotypes} biotypes with a signal"
    emit(result, text, as_json=as_json)


@click.command(
    "train-tracks",
    cls=Command,
    examples=[
        "tfbind train-tracks t.safetensors --species yeast=yeast.store --tracks chip --valid-chroms chrII --steps 5",
        "tfbind train-tracks f.safetensors --by-factor --species yeast=yeast.store --tracks chip --steps 5",
    ],
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--species", multiple=True, required=True, metavar="NAME=STORE", help="A species' store. Repeatable.")
@click.option("--by-factor", is_flag=True, help="Tracks are of factors: proteins and contexts are read too.")
@click.option("--tracks", default="tracks", show_default=True, help="Name of the array of tracks in each store.")
@click.option("--windows", metavar="ARRAY", help="Embeddings of DNA in each store; default windows, or the only ones.")
@click.option("--valid-chroms", metavar="LIST", help="Chromosomes that validate.")
@click.option("--loci", metavar="SET", help="Imported loci whose split column says train and valid, instead.")
@click.option("--loss", type=click.Choice(["poisson", "pearson"]), default="poisson", show_default=True, help="Loss.")
@click.option("--steps", default=500, show_default=True, help="Optimizer steps.")
@click.option("--width", type=int, help="Of the layer that plain tracks share; 0 for none.  [default: 64]")
@click.option("--head", metavar="NAME", help="With --by-factor: adapter, two_tower, filip, …  [default: adapter]")
@click.option("--hold-out", multiple=True, metavar="KIND=NAMES", help="With --by-factor: factor=A,B or biotype=C.")
@click.option("--tracks-per-step", type=int, help="With --by-factor: of each store.  [default: 16]")
@click.option("--lr", default=1e-3, show_default=True, help="Learning rate.")
@click.option("--seed", default=0, show_default=True, help="Decides weights, order and dropout.")
@json_option
def train_tracks(
    out: Path,
    species: tuple[str, ...],
    by_factor: bool,
    tracks: str,
    windows: str | None,
    valid_chroms: str | None,
    width: int | None,
    head: str | None,
    hold_out: tuple[str, ...],
    tracks_per_step: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a head on tracks of one store or several, such as those of human and mouse.

    Plain tracks are given by DNA alone: stores share a layer, and each has an output of its own. With --by-factor, one
    head is asked for every factor and biotype. What was not measured has no loss; one read of a window serves all
    tracks.
    """
    from tfbind_store.store.folder import Store

    stores = {name: Store.open(path) for name, path in key_values(species, option="--species").items()}
    own = {"width": width} if not by_factor else {"head": head, "tracks_per_step": tracks_per_step}
    others = {"--head": head, "--hold-out": hold_out, "--tracks-per-step": tracks_per_step}
    for name, value in ({"--width": width} if by_factor else others).items():
        if value not in (None, ()):
            raise click.UsageError(f"{name} is {'not ' if by_factor else ''}for --by-factor")
    given |= {key: value for key, value in own.items() if value is not None}
    given["valid_chroms"] = tuple(listed(valid_chroms))
    if by_factor:
        given["hold_out"] = {
            kind: tuple(listed(names)) for kind, names in key_values(hold_out, option="--hold-out").items()
        }
        _train_factor_tracks(stores, out, f"tracks/{tracks}", windows, given, as_json=as_json)
    else:
        _train_plain_tracks(
            stores, out, f"tracks/{tracks}", f"embeddings/{windows or 'windows'}", given, as_json=as_json
        )


def _train_plain_tracks(
    stores: Mapping[str, Store], out: Path, tracks: str, windows: str, given: dict[str, Any], *, as_json: bool
) -> None:
    from tfbind_store.training.plain_tracks import PlainTrackConfig, SpeciesTracks, train_plain_tracks

    sources = {name: SpeciesTracks(store, windows, tracks) for name, store in stores.items()}
    result = train_plain_tracks(sources, out, PlainTrackConfig(**given))
    text = [f"{result.path}: loss {result.losses[0]:.4g} at first, {result.losses[-1]:.4g} at last"]
    for name, scores in result.scores.items():
        medians = [_median(part) for part in (scores.pearson_over_bins, scores.spearman_over_bins)]
        text.append(f"  {name}: Pearson over bins {medians[0]}, Spearman {medians[1]} (median over tracks)")
    text += _in_neither(result.n_in_neither)
    text.append(f"next: tfbind predict-tracks {result.path} STORE OUT")
    emit(result, text, as_json=as_json)


def _train_factor_tracks(
    stores: Mapping[str, Store], out: Path, tracks: str, windows: str | None, given: dict[str, Any], *, as_json: bool
) -> None:
    from tfbind_store.training.factor_tracks import FactorSource, FactorTrackConfig, train_factor_tracks

    sources = {name: FactorSource(store, tracks, windows) for name, store in stores.items()}
    result = train_factor_tracks(sources, out, FactorTrackConfig(**given))
    resumed = ", resumed" if result.was_resumed else ""
    text = [f"{result.path}: {len(result.losses):,} steps{resumed}"]
    if result.losses:
        text[0] += f", loss {result.losses[0]:.4g} at first, {result.losses[-1]:.4g} at last"
    text += [f"  {name.replace('_', ' ')}: {value:.4g}" for name, value in result.scores.items()]
    text += _in_neither(result.n_in_neither)
    text.append(f"next: tfbind predict-tracks {result.path} STORE OUT --factor NAME")
    emit(result, text, as_json=as_json)


def _in_neither(number: int) -> list[str]:
    return [f"  {number:,} windows touch training and validation loci and are in neither"] if number else []


@click.command(
    "predict-tracks",
    cls=Command,
    examples=[
        "tfbind predict-tracks t.safetensors yeast.store predicted/ --chroms chrII",
        "tfbind predict-tracks f.safetensors yeast.store predicted/ --factor REB1 --chroms chrII",
    ],
)
@click.argument("head", type=click.Path(path_type=Path))
@STORE
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--species", default="", help="Of the head; the only one if not given.")
@click.option("--windows", default="windows", show_default=True, help="Name of the array of windows in the store.")
@click.option("--track", "tracks", multiple=True, help="Only this track, of a plain head. Repeatable.")
@click.option("--factor", "factors", multiple=True, help="A factor, for a head of factors. Repeatable.")
@BIOTYPE
@PROTEIN
@CONTEXT
@CHECKPOINT
@click.option("--chroms", metavar="LIST", help="Only these chromosomes.")
@DEVICE
@json_option
def predict_tracks(
    head: Path,
    store: Path,
    out: Path,
    tracks: tuple[str, ...],
    factors: tuple[str, ...],
    biotype: str | None,
    protein: Path | None,
    context: str | None,
    models: tuple[str, ...],
    chroms: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Write the tracks that a head of train-tracks gives, one bigWig each, into the folder OUT.

    The store is one that the head was trained on, or another with the same genome, grid and models. A head that was
    trained --by-factor gives the track of any factor, with --factor. Stopped, the same command goes on.
    """
    from tfbind_store.prediction.asked_pairs import Asked
    from tfbind_store.prediction.tracks import TrackPredictConfig
    from tfbind_store.prediction.tracks import predict_tracks as predict_all
    from tfbind_store.store.folder import Store

    places = key_values(models, option="--checkpoint")
    asked = Asked(factors=factors, biotype=biotype, proteins=protein, context=context, models=places)
    config = TrackPredictConfig(tracks=tracks, chroms=tuple(listed(chroms)), asked=asked if factors else None, **given)
    result = predict_all(head, Store.open(store), out, config)
    resumed = ", resumed" if result.was_resumed else ""
    text = [
        f"{len(result.files):,} tracks over {result.n_bins:,} bins{resumed}",
        *(f"  {path}" for path in result.files),
    ]
    if result.n_windows_missing:
        text.append(f"  {result.n_windows_missing:,} windows are not embedded (or all N) and have no rate")
    emit(result, text, as_json=as_json)


def _median(values: Any) -> str:
    known = sorted(value for value in values.tolist() if value == value)
    return f"{known[len(known) // 2]:.3f}" if known else "-"
