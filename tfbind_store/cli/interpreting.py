"""Commands that look into predictions: interpret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tfbind_store.cli.frame import Command, emit, json_option, key_values
from tfbind_store.cli.learning import run_place
from tfbind_store.cli.predicting import BIOTYPE, CHECKPOINT, CONTEXT, DEVICE, PROTEIN
from tfbind_store.errors import ConfigError


@click.command(
    cls=Command,
    examples=[
        "tfbind interpret yeast.store/runs/adapter --factor REB1 --at chrI:200-260 --checkpoint windows=trunk/ "
        "--out reb1.parquet --out reb1.bw",
        "tfbind interpret yeast.store/runs/adapter --factor REB1 --loci promoters.bed --width-bp 80 --method gradient "
        "--checkpoint windows=trunk/ --out reb1.npz --json",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--factor", required=True, help="The factor whose score is explained.")
@BIOTYPE
@PROTEIN
@CONTEXT
@CHECKPOINT
@click.option("--at", multiple=True, metavar="LOCUS", help="Such as chrI:200-260, 0-based, half-open. Repeatable.")
@click.option("--loci", type=click.Path(path_type=Path), help="BED of loci.")
@click.option("--width-bp", type=int, help="Take so many bases about the middle of each locus.")
@click.option(
    "--method",
    type=click.Choice(["ism", "gradient"]),
    default="ism",
    show_default=True,
    help="Score every change of a base, or take the slope.",
)
@click.option(
    "--over",
    type=click.Choice(["max", "mean"]),
    default="max",
    show_default=True,
    help="Explain the best of the locus' bins, or their mean.",
)
@click.option(
    "--out",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: .parquet, .bedGraph, .bw, .npz (for TF-MoDISco-lite), .svg (logo). Repeatable.",
)
@DEVICE
@json_option
def interpret(
    run: Path,
    factor: str,
    biotype: str | None,
    protein: Path | None,
    context: str | None,
    models: tuple[str, ...],
    at: tuple[str, ...],
    loci: Path | None,
    width_bp: int | None,
    out: tuple[Path, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Say which bases a prediction rests on: in-silico mutagenesis or gradients, through the live trunk.

    Every base gets a number for each letter, with mean zero: how much higher the locus would score with it. A base's
    importance is the number of its own letter.
    """
    from tfbind_store.asked_pairs import Asked
    from tfbind_store.interpret import InterpretConfig, interpret_loci
    from tfbind_store.store import Store

    if not at and loci is None:
        raise ConfigError("no locus is named", where="loci", fix="name one: --at chrI:200-260, or --loci BED")
    place, name = run_place(run)
    places = key_values(models, option="--checkpoint")
    asked = Asked(factors=(factor,), biotype=biotype, proteins=protein, context=context, models=places)
    config = InterpretConfig(asked=asked, checkpoint=places.get("windows"), **given)
    result = interpret_loci(Store.open(place), name, config, out, at=at, bed=loci, width_bp=width_bp)
    text = [f"{result.n_loci:,} loci, {result.n_bases:,} bases of {' in '.join(result.pair)}"]
    text += [f"  {path}" for path in result.files]
    if result.n_left_out:
        text.append(f"  {result.n_left_out:,} loci left out: with this width they would leave their chromosome")
    if result.n_unknown:
        text.append(f"  {result.n_unknown:,} bases are N and have no number")
    emit(result, text, as_json=as_json)
