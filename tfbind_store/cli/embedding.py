"""Commands that compute embeddings: plan, embed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Command, Kept, emit, json_option, key_values, listed, size_text, toml_value
from tfbind_store.cli.stores import STORE
from tfbind_store.cli.tuning import show_memory

if TYPE_CHECKING:
    import numpy as np

    from tfbind_store.loci import Locus
    from tfbind_store.precompute.outcome import EmbedReport
    from tfbind_store.precompute.plan import Plan
    from tfbind_store.store.folder import Store

WHAT = ("windows", "factors", "contexts")
DEFAULT_EMBEDDER = {"windows": "enformer", "factors": "composition", "contexts": "hashed"}
OFFICIAL_TRUNK = "EleutherAI/enformer-official-rough"
WITHOUT_DEVICE = ("toy", "composition", "hashed", "imported")
"""Embedders that run nowhere but on the CPU."""
SHOWN_FAILURES = 5
SHARDS_IN_MEMORY = 3
"""One that is computed, one that waits, one that is written."""


def embedder_options(function: Kept) -> Kept:
    """Add what chooses an embedder."""
    for decorate in reversed(
        [
            click.option("--embedder", metavar="NAME", help="Default: enformer, composition or hashed."),
            click.option("--checkpoint", metavar="PLACE", help="A model's folder, file or hub id."),
            click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the embedder."),
            click.option("--allow-download", is_flag=True, help="Ask the hub for weights that are not here."),
            click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1; default a GPU if there is one."),
            click.option("--name", metavar="LABEL", help="The array's name; another embedder needs another."),
            click.option("--loci", metavar="SET", help="Only windows that touch a set of imported loci, or a BED."),
            click.option("--chroms", metavar="LIST", help="Only windows of these chromosomes."),
            click.option("--retry-failed", is_flag=True, help="Try windows again that failed before."),
        ]
    ):
        function = decorate(function)
    return function


@click.command(cls=Command, examples=["tfbind plan yeast.store windows --checkpoint trunk/ --chroms chrI,chrII"])
@STORE
@click.argument("what", type=click.Choice(["windows"]), default="windows")
@embedder_options
@click.option("--finetune", "run", metavar="RUN", help="Show the memory of fine-tuning this run and its trunk instead.")
@json_option
def plan(store: Path, what: str, run: str | None, retry_failed: bool, as_json: bool, **options: Any) -> None:
    """Show what `tfbind embed` would do, without doing it: windows, shards, bytes, free disk, time.

    With --finetune RUN --checkpoint TRUNK: the memory that each mode of fine-tuning needs; --set windows_per_step=4.
    """
    if run is not None:
        trunk = Path(options["checkpoint"]) if options["checkpoint"] else None
        show_memory(store, run, trunk, options["settings"], as_json=as_json)
        return
    from tfbind_store.precompute.run import plan_windows
    from tfbind_store.store.folder import Store

    opened = Store.open(store)
    embedder = _make(what, **_choice(options))
    loci = _loci(opened, options["loci"], options["chroms"])
    planned = plan_windows(
        opened, embedder, name=_label(what, options), asked=_asked(opened, loci), retry_failed=retry_failed
    )
    value = _plan_value(planned, opened, embedder)
    emit(value, _plan_lines(value), as_json=as_json)


def _plan_value(planned: Plan, opened: Store, embedder: Any) -> dict[str, Any]:
    from tfbind_store.durable import free_bytes
    from tfbind_store.precompute.embedder import memory_need
    from tfbind_store.precompute.upkeep import free_memory

    need = memory_need(embedder, opened.grid)
    free = free_bytes(opened.path)
    return {
        "n_asked": planned.n_asked,
        "n_done": planned.n_done,
        "n_compute": planned.n_compute,
        "n_all_n": planned.n_all_n,
        "n_failed_before": planned.n_failed_before,
        "n_shards": len(planned.shards),
        "write_bytes": planned.write_bytes,
        "need_bytes": planned.need_bytes,
        "free_bytes": free,
        "estimate_seconds": planned.estimate_seconds,
        "fits": planned.need_bytes <= free,
        "shard_memory_bytes": SHARDS_IN_MEMORY * planned.shard_bytes,
        "free_memory_bytes": free_memory("cpu"),
        "model": need and {**need._asdict(), "free_bytes": free_memory(need.device)},
    }


def _plan_lines(value: dict[str, Any]) -> list[str]:
    seconds = value["estimate_seconds"]
    time = "time unknown before the first shard" if seconds is None else f"about {seconds:,.0f} s"
    lines = [
        f"windows: {value['n_asked']:,} asked, {value['n_done']:,} done, {value['n_compute']:,} to compute, "
        f"{value['n_all_n']:,} all N",
        f"shards: {value['n_shards']:,}, {size_text(value['write_bytes'])} to write, "
        f"{size_text(value['free_bytes'])} free; {time}",
        f"memory: {size_text(value['shard_memory_bytes'])} for shards on their way to the disk, "
        f"{_size_or(value['free_memory_bytes'], 'unknown')} free",
    ]
    if model := value["model"]:
        lines.append(
            f"on {model['device']}: about {size_text(model['weights_bytes'])} of weights and "
            f"{_size_or(model['batch_bytes'], 'a yet unknown amount')} for {model['batch_windows']:,} windows at once, "
            f"{_size_or(model['free_bytes'], 'unknown')} free"
        )
    if value["n_failed_before"]:
        lines.append(f"{value['n_failed_before']:,} failed before: --retry-failed tries them again")
    return lines


def _size_or(n_bytes: int | None, other: str) -> str:
    return other if n_bytes is None else size_text(n_bytes)


def engine_options(function: Kept) -> Kept:
    """Add what chooses who computes windows."""
    for decorate in reversed(
        [
            click.option(
                "--engine",
                type=click.Choice(["serial", "ray", "slurm"]),
                default="serial",
                show_default=True,
                help="Who computes windows: this process, Ray actors, or Slurm jobs.",
            ),
            click.option("--workers", default=1, show_default=True, help="Actors or jobs, one embedder each."),
            click.option("--gpus", default=0.0, help="GPUs per worker; may be a fraction."),
            click.option("--address", metavar="HOST", help="A running Ray cluster; default: one of this machine."),
            click.option("--cluster", metavar="NAME", help="slurm, or local for processes of this machine."),
            click.option("--slurm", multiple=True, metavar="KEY=VALUE", help="For submitit: slurm_partition=gpu."),
            click.option("--max-memory", metavar="SIZE", help="For shards and a trunk's own numbers, as in 2G."),
            click.option("--dry-run", is_flag=True, help="Print the plan of windows and stop."),
        ]
    ):
        function = decorate(function)
    return function


@click.command(
    cls=Command,
    examples=[
        "tfbind embed yeast.store windows --checkpoint trunk/ --dry-run",
        "tfbind embed yeast.store windows --checkpoint trunk/",
        "tfbind embed yeast.store factors",
        "tfbind embed yeast.store factors --every-protein",
        "tfbind embed yeast.store contexts",
    ],
)
@STORE
@click.argument("what", type=click.Choice(WHAT))
@embedder_options
@engine_options
@click.option("--every-protein", is_flag=True, help="All imported proteins, not only those of factors with peaks.")
@json_option
def embed(
    store: Path,
    what: str,
    retry_failed: bool,
    dry_run: bool,
    every_protein: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the embeddings that are missing; finished shards are kept, so the same command goes on.

    Windows of the genome by a trunk (enformer, borzoi, or any module), proteins of the factors (composition, which
    needs no weights, esm, protalbert, or imported from files), texts of the biotypes (hashed, which needs none, or
    bert). Prints the plan first; refuses what does not fit. -v says what is reused and what is computed.
    """
    from tfbind_store.precompute import run
    from tfbind_store.store.folder import Store

    _refuse_misplaced(what, every_protein=every_protein, dry_run=dry_run, retry_failed=retry_failed, **options)
    opened = Store.open(store)
    embedder = _make(what, **_choice(options))
    progress = sys.stderr.isatty()
    report: EmbedReport
    if what == "windows":
        loci = _loci(opened, options["loci"], options["chroms"])
        name = _label(what, options)
        planned = run.plan_windows(opened, embedder, name=name, asked=_asked(opened, loci), retry_failed=retry_failed)
        value = _plan_value(planned, opened, embedder)
        if dry_run:
            emit(value, _plan_lines(value), as_json=as_json)
            return
        click.echo("\n".join(_plan_lines(value)), err=True)
        report = run.embed_windows(
            opened,
            embedder,
            name=name,
            loci=loci,
            retry_failed=retry_failed,
            progress=progress,
            engine=_engine(options),
            max_memory_bytes=_size(options["max_memory"]),
            tell=lambda line: click.echo(line, err=True),
        )
    elif what == "factors":
        report = run.embed_factors(
            opened, embedder, name=options["name"], every_protein=every_protein, progress=progress
        )
    else:
        report = run.embed_contexts(opened, embedder, name=options["name"], progress=progress)
    emit(report, _report_lines(report), as_json=as_json)
    report.require_complete()


def _refuse_misplaced(what: str, *, every_protein: bool, **options: Any) -> None:
    """Refuse options that mean nothing here, instead of passing them over."""
    if every_protein and what != "factors":
        raise click.UsageError(f"--every-protein is of factors, not of {what}")
    of_windows = ("dry_run", "retry_failed", "loci", "chroms", "address", "cluster", "slurm", "gpus", "max_memory")
    given = [name for name in of_windows if options[name]]
    given += ["engine"] if options["engine"] != "serial" else ["workers"] if options["workers"] != 1 else []
    if given and what != "windows":
        raise click.UsageError(f"--{given[0].replace('_', '-')} is of windows, not of {what}")


def _report_lines(report: EmbedReport) -> list[str]:
    unit = report.unit
    lines = [
        f"{report.array}: {report.n_asked:,} {unit}s asked, {report.n_done_before:,} there before, "
        f"{report.n_computed:,} computed in {report.seconds:.1f} s"
    ]
    if report.n_all_n:
        lines.append(f"  {report.n_all_n:,} hold only N: nothing to embed")
    if report.n_truncated:
        lines.append(f"  {report.n_truncated:,} were longer than the model reads: their end was left out")
    if report.precision_rms is not None:
        lines.append(f"  {report.precision_rms:.2%} off float32 (rms, on windows embedded in both)")
    lines += [f"  failed: {failure.name}: {failure.reason}" for failure in report.failures[:SHOWN_FAILURES]]
    if rest := report.failures[SHOWN_FAILURES:]:
        lines.append(f"  and {len(rest):,} more: {', '.join(failure.name for failure in rest)}")
    return lines


def _engine(options: dict[str, Any]) -> Any:
    """Return who computes, None for this process."""
    if options["engine"] == "serial":
        if options["workers"] != 1:
            raise click.UsageError("--workers needs --engine ray or slurm: serial is one process")
        return None
    from tfbind_store.precompute.engines import EmbedderRecipe, RayEngine, SlurmEngine

    name, settings = _named("windows", **_choice(options))
    recipe = EmbedderRecipe(arguments={"name": name, "options": settings})
    if options["engine"] == "ray":
        return RayEngine(
            recipe, workers=options["workers"], gpus_per_worker=options["gpus"], address=options["address"]
        )
    parameters = {key: toml_value(value) for key, value in key_values(options["slurm"], option="--slurm").items()}
    if options["gpus"]:
        parameters.setdefault("gpus_per_node", int(options["gpus"]))
    return SlurmEngine(recipe, workers=options["workers"], cluster=options["cluster"], parameters=parameters)


def _size(text: str | None) -> int | None:
    """Read a size in bytes, or with K, M, G or T for powers of 1024.

    Examples
    --------
    >>> _size("2G")
    2147483648
    """
    if text is None:
        return None
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G", "T") else (text, "")
    try:
        return int(float(number) * 1024 ** " KMGT".index(unit or " "))
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"--max-memory {text}: write a number of bytes, or 500M, 2G") from error


def _choice(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("embedder", "checkpoint", "settings", "allow_download", "device")}


def _named(
    what: str,
    *,
    embedder: str | None,
    checkpoint: str | None,
    settings: tuple[str, ...],
    allow_download: bool,
    device: str | None,
) -> tuple[str, dict[str, Any]]:
    """Return the name of the embedder and its own options."""
    name = embedder or DEFAULT_EMBEDDER[what]
    options = {key: toml_value(value) for key, value in key_values(settings, option="--set").items()}
    if checkpoint:
        options["checkpoint"] = checkpoint
    elif name == "enformer" and "dim" not in options:
        options.setdefault("checkpoint", OFFICIAL_TRUNK)
    if allow_download:
        options["allow_download"] = True
    if device and name not in WITHOUT_DEVICE:
        options["device"] = device
    return name, options


def _make(what: str, **choice: Any) -> Any:
    """Return the embedder that the options name."""
    from tfbind_store.precompute import embedder as embedders

    name, options = _named(what, **choice)
    make = {
        "windows": embedders.make_window_embedder,
        "factors": embedders.make_sequence_embedder,
        "contexts": embedders.make_text_embedder,
    }[what]
    return make(name, options)


def _label(what: str, options: dict[str, Any]) -> str:
    return options["name"] or what


def _loci(store: Store, set_name: str | None, chroms: str | None) -> Sequence[Locus] | None:
    """Return the loci that restrict a run; None where nothing does."""
    from tfbind_store.errors import LocusError
    from tfbind_store.loci import Locus

    found: list[Locus] = []
    for chrom in listed(chroms):
        name = store.meta.aliases.get(chrom, chrom)
        if name not in store.genome.lengths_bp:
            known = ", ".join(store.tiling.chroms[:10])
            raise LocusError(f"no chromosome {chrom!r}", where=str(store.path), fix=f"known: {known}")
        found.append(Locus(name, 0, store.genome.lengths_bp[name]))
    if set_name:
        with store.reader() as catalog:
            rows = catalog.rows('SELECT chrom, start, "end" FROM loci WHERE set_name = ?', [set_name])
        if rows:
            return [*found, *(Locus(*row) for row in rows)]
        if not Path(set_name).is_file():
            fix = "tfbind import loci, or name a BED file"
            raise LocusError(f"no set of loci and no file is called {set_name!r}", where=str(store.path), fix=fix)
        from tfbind_store.ingest.loci import read_loci

        found += read_loci(store, Path(set_name))
    return found or None


def _asked(store: Store, loci: Sequence[Locus] | None) -> np.ndarray | None:
    from tfbind_store.precompute.run import windows_of

    return None if loci is None else windows_of(store, loci)
