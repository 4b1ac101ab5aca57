"""Commands that look into predictions: interpret, residues."""

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
    from tfbind_store.interpretation.interpret import InterpretConfig, interpret_loci
    from tfbind_store.prediction.asked_pairs import Asked
    from tfbind_store.store.folder import Store

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


@click.command(
    cls=Command,
    examples=[
        "tfbind residues yeast.store/runs/adapter --factor REB1 --at chrI:200-3000 --domain 20-60 --out reb1.svg "
        "--out reb1.zarr",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--factor", required=True, help="A factor of the store.")
@BIOTYPE
@click.option("--at", required=True, metavar="LOCUS", help="Such as chrI:200-3000, 0-based, half-open.")
@click.option("--domain", "domains", multiple=True, metavar="START-END", help="Residues to count, 0-based, half-open.")
@click.option("--out", multiple=True, type=click.Path(path_type=Path), help=".parquet, .zarr or .svg. Repeatable.")
@json_option
def residues(
    run: Path,
    factor: str,
    biotype: str | None,
    at: str,
    domains: tuple[str, ...],
    out: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show which residues of a factor meet which bins of a locus: FILIP, joint attention, what tokens are read from.

    It says what a head looks at, which need not be what its score depends on. --domain counts what falls on a stretch,
    such as the DNA-binding domain, beside its share of the protein's length.
    """
    from tfbind_store.interpretation.residue_maps import require_map_name, residue_map, write_map
    from tfbind_store.store.folder import Store

    place, name = run_place(run)
    store = Store.open(place)
    for path in out:
        require_map_name(path)
    stretches = [_stretch(text) for text in domains]
    found = residue_map(store, name, factor, biotype, store.tiling.locus_of(at, store.meta.aliases))
    counted = [found.domain(*stretch) for stretch in stretches]
    files = [write_map(path, found, counted) for path in out]
    n_bins, n_residues = len(found.starts), len(found.letters)
    text = [f"{factor} in {found.biotype}: {n_bins:,} bins x {n_residues:,} residues, {', '.join(found.views)}"]
    for domain in counted:
        shares = ", ".join(f"{view} {share:.1%}" for view, share in domain.share.items())
        text.append(f"  residues {domain.start}-{domain.end}: {domain.share_of_length:.1%} of the length; {shares}")
    text += [f"  {path}" for path in files]
    value = {
        "factor": factor, "biotype": found.biotype, "locus": str(found.locus), "n_bins": n_bins,
        "n_residues": n_residues, "views": list(found.views), "domains": counted, "files": files,
    }  # fmt: skip
    emit(value, text, as_json=as_json)


def _stretch(text: str) -> tuple[int, int]:
    start, _, end = text.partition("-")
    if not (start.isascii() and start.isdigit() and end.isascii() and end.isdigit()):
        raise ConfigError(f"{text!r} is no stretch of residues", where="--domain", fix="write it like 20-60")
    return int(start), int(end)
