"""The command that derives smaller arrays: project."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfbind_store.cli.frame import Command, emit, json_option, listed
from tfbind_store.cli.stores import STORE

if TYPE_CHECKING:
    from tfbind_store.precompute.project import ProjectReport


@click.command(
    cls=Command,
    examples=[
        "tfbind project yeast.store --from windows --dim 32",
        "tfbind project yeast.store --from windows --int8",
    ],
)
@STORE
@click.option("--from", "source", default="windows", show_default=True, metavar="ARRAY", help="What is projected.")
@click.option("--dim", type=click.IntRange(min=1), help="Axes to keep; default all channels, as they are.")
@click.option("--int8", is_flag=True, help="One byte a number, with scales for each channel of each window.")
@click.option("--name", metavar="LABEL", help="The new array's name; default such as windows-pca256-int8.")
@click.option("--seed", default=0, show_default=True, help="Decides which bins the axes are fitted on.")
@click.option("--sample-bins", default=200_000, show_default=True, help="How many bins, at most.")
@click.option("--chroms", metavar="LIST", help="Fit on these chromosomes only; all are projected.")
@click.option("--partial", is_flag=True, help="Take what the source has; else all its windows must be there.")
@json_option
def project(
    store: Path,
    source: str,
    dim: int | None,
    int8: bool,
    name: str | None,
    seed: int,
    sample_bins: int,
    chroms: str | None,
    partial: bool,
    as_json: bool,
) -> None:
    """Derive a smaller array from an embedded one: its main axes (PCA), one byte a number, or both.

    The axes are fitted once, on bins drawn with a seed; how much of the source they keep, measured on windows that the
    fit has not seen, is part of the array's spec. Stop it at any time: the same command goes on. What trains on the
    source trains on the projection: tfbind train STORE SELECTION --windows windows-pca256.
    """
    from tfbind_store.precompute.project import ProjectConfig, project_array
    from tfbind_store.store.folder import Store

    opened = Store.open(store)
    names = tuple(opened.meta.aliases.get(chrom, chrom) for chrom in listed(chroms))
    config = ProjectConfig(dim=dim, int8=int8, seed=seed, sample_bins=sample_bins, chroms=names)
    report = project_array(
        opened,
        source if "/" in source else opened.array_name_for("windows", source),
        config,
        name=name,
        partial=partial,
        progress=sys.stderr.isatty(),
        tell=lambda line: click.echo(line, err=True),
    )
    value = {**report._asdict(), "run": vars(report.run)}
    emit(value, _lines(report), as_json=as_json)
    report.run.require_complete()


def _lines(report: ProjectReport) -> list[str]:
    run = report.run
    kept = "" if report.variance_share is None else f"{report.variance_share:.2%} of the variance kept; "
    lines = [
        f"{run.array} from {report.source}: {run.n_asked:,} windows, {run.n_done_before:,} there before, "
        f"{run.n_computed:,} computed in {run.seconds:.1f} s",
        f"  {kept}{report.reconstruction_rms:.2%} lost (rms, on {report.n_checked} windows that the fit has not seen)",
    ]
    if report.n_left:
        lines.append(f"  {report.n_left:,} windows are not in the source, so not here either")
    return lines + [f"  failed: {failure.name}: {failure.reason}" for failure in run.failures[:5]]
