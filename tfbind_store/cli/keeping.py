"""Commands that look after a store: verify, repair, gc, rebuild-catalog."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Command, Kept, emit, json_option, key_values, size_text, toml_value
from tfbind_store.cli.stores import STORE

if TYPE_CHECKING:
    from tfbind_store.keeping.verify import Problem, VerifyReport
    from tfbind_store.precompute.canaries import Model
    from tfbind_store.store.folder import Store

SHOWN_PROBLEMS = 20


def canary_options(function: Kept) -> Kept:
    """Add what chooses the windows that are computed again."""
    for decorate in reversed(
        [
            click.option(
                "--checkpoint",
                "checkpoints",
                multiple=True,
                metavar="[ARRAY=]PLACE",
                help="The trunk, or the model of another array, to embed some of what is stored again. Repeatable.",
            ),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="ARRAY:KEY=VALUE",
                help="An option that the array was embedded with and its spec does not tell. Repeatable.",
            ),
            click.option("--canaries", default=8, show_default=True, help="Windows, proteins or texts per array."),
            click.option("--seed", default=0, show_default=True, help="Decides which ones."),
        ]
    ):
        function = decorate(function)
    return function


@click.command(cls=Command, examples=["tfbind verify yeast.store --json", "tfbind verify yeast.store --deep"])
@STORE
@click.option("--deep", is_flag=True, help="Read every byte: hashes, finite values, and some windows embedded again.")
@canary_options
@json_option
def verify(store: Path, deep: bool, canaries: int, seed: int, as_json: bool, **given: tuple[str, ...]) -> None:
    """Check a store against its receipts: names array, shard and window of whatever is not as it was written.

    Without --deep: metadata, receipts, and of each shard kind, size, index and label. With it: every byte too, and some
    windows, proteins and texts of each array embedded again, where that needs no weights or --checkpoint names them.
    Changes nothing; exit status 1 if anything is wrong.
    """
    from tfbind_store.store.folder import Store

    wanted = canaries if deep or given["checkpoints"] else 0
    report = _verified(Store.open(store), deep=deep, models=_models(**given), canaries=wanted, seed=seed)
    emit(report, _verify_lines(report), as_json=as_json)
    report.require_clean(store)


def _models(checkpoints: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, Model]:
    """Read where models are: by array, those without a name for all arrays of windows.

    Examples
    --------
    >>> _models(("trunk/", "proteins/esm=esm.pt"), ("proteins/esm:layer=6",))["proteins/esm"]
    Model(checkpoint='esm.pt', settings={'layer': 6})
    """
    from tfbind_store.precompute.canaries import Model

    places = dict(_of_array(text, "=") for text in checkpoints)
    options: dict[str, dict[str, Any]] = {}
    for text in settings:
        name, setting = _of_array(text, ":")
        for key, value in key_values([setting], option="--set").items():
            options.setdefault(name, {})[key] = toml_value(value)
    return {name: Model(places.get(name), options.get(name, {})) for name in {**places, **options}}


def _of_array(text: str, mark: str) -> tuple[str, str]:
    name, found, rest = text.partition(mark)
    is_named = found and name.partition("/")[0] in ("embeddings", "proteins", "contexts") and "/" in name
    return (name, rest) if is_named else ("embeddings", text)


def _verified(store: Store, *, deep: bool, models: dict[str, Model], canaries: int, seed: int) -> VerifyReport:
    from tqdm import tqdm

    from tfbind_store.keeping.verify import verify_store

    bar = tqdm(unit="B", unit_scale=True, disable=not (deep and sys.stderr.isatty()))
    with bar:
        report = verify_store(store, deep=deep, on_bytes=bar.update)
    if not canaries:
        return report
    from tfbind_store.precompute.canaries import check_canaries

    skip = {(problem.array, problem.shard) for problem in report.problems if problem.shard is not None}
    found, n, notes = check_canaries(store, models=models, n_canaries=canaries, seed=seed, skip=skip)
    return dataclasses.replace(report, problems=(*report.problems, *found), n_canaries=n, notes=(*report.notes, *notes))


def _verify_lines(report: VerifyReport) -> list[str]:
    read = f"{size_text(report.bytes_read)} read" if report.deep else "bytes not read (--deep reads them)"
    lines = [
        f"{report.n_arrays} arrays, {report.n_shards:,} shards, {report.n_windows:,} windows; {read}, "
        f"{report.n_canaries} embedded again; {report.seconds:.1f} s",
        *report.notes,
        *_problem_lines(report.problems),
    ]
    return lines if report.problems else [*lines, "all is as its receipts say"]


def _problem_lines(problems: tuple[Problem, ...]) -> list[str]:
    lines = [f"  {problem.kind}: {problem.path}: {problem.what}" for problem in problems[:SHOWN_PROBLEMS]]
    more = len(problems) - SHOWN_PROBLEMS
    return [*lines, f"  and {more:,} more: --json lists all"] if more > 0 else lines


@click.command(cls=Command, examples=["tfbind repair yeast.store"])
@STORE
@canary_options
@json_option
def repair(store: Path, canaries: int, seed: int, as_json: bool, **given: tuple[str, ...]) -> None:
    """Move shards that fail `verify --deep` to quarantine, keep their good windows, and leave the rest to `embed`.

    Nothing is deleted. The command that embedded an array computes what was lost, and nothing else.
    """
    from tfbind_store.keeping.repair import repair_store
    from tfbind_store.store.folder import Store

    opened = Store.open(store)
    found = _verified(opened, deep=True, models=_models(**given), canaries=canaries, seed=seed)
    report = repair_store(opened, found)
    lines = [
        f"{shard.array} shard {shard.shard}: {shard.n_kept} windows kept, {shard.n_lost} to be embedded again"
        for shard in report.shards
    ]
    lines += [f"{name}: zarr.json written again; verify it once more" for name in report.arrays]
    if report.quarantine:
        lines.append(f"set aside in {report.quarantine}")
    elif not report.arrays:
        lines.append("no shard needs repair")
    lines += [f"not for repair: {line.strip()}" for line in _problem_lines(report.left)]
    emit(report, lines, as_json=as_json)


@click.command("gc", cls=Command, examples=["tfbind gc yeast.store --dry-run", "tfbind gc yeast.store"])
@STORE
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.option("--orphans", is_flag=True, help="Also shards without a receipt, as a kill leaves them.")
@click.option("--quarantine", is_flag=True, help="Also what repair and rebuild-catalog have set aside.")
@json_option
def gc(store: Path, dry_run: bool, orphans: bool, quarantine: bool, as_json: bool) -> None:
    """Remove unfinished writes and snapshots that nothing names, where nobody is writing.

    Nothing is judged by its age: a file goes only while its writers are locked out.
    """
    from tfbind_store.keeping.garbage import collect_garbage
    from tfbind_store.store.folder import Store

    report = collect_garbage(Store.open(store), dry_run=dry_run, orphans=orphans, quarantine=quarantine)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {len(report.files):,} files, {size_text(report.size_bytes)}"]
    lines += [f"  {name}" for name in report.files[:SHOWN_PROBLEMS]]
    lines += [f"  left alone: {reason}" for reason in report.kept]
    emit(report, lines, as_json=as_json)


@click.command("rebuild-catalog", cls=Command, examples=["tfbind rebuild-catalog yeast.store"])
@STORE
@click.option(
    "--from",
    "origin",
    type=click.Choice(["inputs", "snapshot", "genome"]),
    help="inputs: import the recorded files again. snapshot: the newest whole one. genome: neither.",
)
@json_option
def rebuild_catalog(store: Path, origin: str | None, as_json: bool) -> None:
    """Make the catalog again: from the files it was filled from if none has changed, else from a snapshot.

    Arrays, receipts, selections and runs are indexed from their folders. The old files go to quarantine.
    """
    from tfbind_store.ingest import rebuilding
    from tfbind_store.store.folder import Store

    report = rebuilding.rebuild_catalog(Store.open(store), origin=origin)  # type: ignore[arg-type]  # click chose it
    lines = [
        f"catalog made from {report.origin}: {report.n_imports} imports, {report.n_shards:,} shards; "
        f"{report.seconds:.1f} s",
        f"the old one is in {report.aside}",
        *(f"  {note}" for note in report.notes),
    ]
    emit(report, lines, as_json=as_json)
