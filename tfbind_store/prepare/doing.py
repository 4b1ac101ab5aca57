"""How each kind of stage is done: by the same functions that the commands call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tfbind_store import fetch as fetching
from tfbind_store import ingest
from tfbind_store.config import to_mapping
from tfbind_store.errors import SelectionError, SpecError
from tfbind_store.genome import write_genome
from tfbind_store.ingest.aliases import read_aliases
from tfbind_store.ingest.calls import Imported, replacing, watching
from tfbind_store.loci import Grid
from tfbind_store.prepare.plan import Plan, Stage, fetched_name
from tfbind_store.query.selection import Selection, make_selection
from tfbind_store.store.folder import Store
from tfbind_store.store.identity import new_meta

_VERBS: Mapping[str, Callable[..., ingest.ImportReport]] = {
    "proteins": ingest.import_proteins,
    "peaks": ingest.import_peaks,
    "experiments": ingest.import_experiments,
    "biotypes": ingest.import_biotypes,
    "blacklist": ingest.import_blacklist,
    "loci": ingest.import_loci,
    "signals": ingest.import_signals,
    "tracks": ingest.import_tracks,
    "peak_tracks": ingest.import_peak_tracks,
}
_ARGUMENTS = {
    "name_from": "experiment_template",
    "experiments": "experiments_tsv",
    "column": "columns",
    "species": "species_priority",
}
"""Arguments that are called otherwise than the commands' options."""


class Outcome(NamedTuple):
    """What a stage did."""

    said: dict[str, Any]
    imported: Imported
    made: str


def do_fetch(stage: Stage, plan: Plan, *, offline: bool) -> Outcome:
    """Download a file, or find it in the cache."""
    sources = fetching.read_sources(plan.sources)
    fields = {key: ",".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in stage.options.set.items()}
    cache = plan.cache
    got = fetching.fetch(stage.options.source, sources=sources, fields=fields, cache=cache, offline=offline)
    said = {"path": str(got.path), "size_bytes": got.size_bytes, "is_new": got.is_new}
    return Outcome(said, Imported(), got.sha256)


def do_init(stage: Stage, plan: Plan, fetched: Mapping[str, Path]) -> Outcome:
    """Make the store; one that is there already must be of this genome and grid.

    Raises
    ------
    SpecError
        If it is of another.
    """
    options = stage.options
    files = {key: _place(value[0], plan, fetched) for key, value in stage.files().items()}
    grid = Grid(window_bp=options.window_bp, n_bins=options.bins, bin_bp=options.bin_bp)
    aliases = read_aliases(files["aliases"]) if "aliases" in files else {}
    only, chrom_sizes = list(options.only) or None, files.get("chrom_sizes")
    if not (plan.store / "store.json").exists():
        store = Store.create(
            plan.store, fasta=files["fasta"], grid=grid, aliases=aliases, chrom_sizes=chrom_sizes, only=only
        )
    else:
        store = Store.open(plan.store)
        with tempfile.TemporaryDirectory(dir=plan.store.parent) as folder:
            found = write_genome(files["fasta"], Path(folder) / "codes.u8", only=only, chrom_sizes=chrom_sizes)
        wanted = new_meta(found, grid, aliases)
        for what in ("genome", "grid", "aliases"):
            if getattr(store.meta, what) != getattr(wanted, what):
                fix = "name another store in the plan, or remove this one: what it holds belongs to it"
                raise SpecError(f"the store is of another {what} than the plan", where=str(plan.store), fix=fix)
    said = {"n_chromosomes": len(store.genome.chromosomes), "n_windows": store.tiling.n_windows}
    return Outcome(said, Imported(), store.meta.genome)


def do_import(stage: Stage, store: Store, plan: Plan, fetched: Mapping[str, Path], old: Imported) -> Outcome:
    """Bring a file in, in place of what `old` names."""
    files = {key: [_place(path, plan, fetched) for path in paths] for key, paths in stage.files().items()}
    # a Sequence stays one, a single path is given as such
    placed = {key: paths if key == "synonyms" else paths[0] for key, paths in files.items()}
    arguments = {_ARGUMENTS.get(key, key): value for key, value in {**stage.choices(), **placed}.items()}
    if stage.name:
        arguments["name"] = stage.name
    with watching() as seen, replacing(old):
        report = _VERBS[stage.kind](store, **arguments)
    said = {"rows_read": report.rows_read, "rows_kept": report.rows_kept}
    return Outcome({**said, "dropped": report.dropped, "notes": report.notes}, seen, "")


def do_select(stage: Stage, store: Store, *, is_ours: bool) -> Outcome:
    """Make a selection, in place of one that the plan made before.

    Raises
    ------
    SelectionError
        If somebody else made one of this name that is another.
    """
    exists = stage.name in store.selections()
    if exists and not is_ours:
        info = Selection.open(store, stage.name).info
        with store.reader() as catalog:
            now = [list(row) for row in catalog.rows("SELECT kind, sha256 FROM data.sources ORDER BY source_id")]
        if info["config"] != to_mapping(stage.options) or info["inputs"] != now:
            what = f"a selection {stage.name!r} is there that this plan did not make"
            raise SelectionError(what, where=str(store.selection_dir(stage.name)), fix="give the plan's another name")
    else:
        info = make_selection(store, stage.name, stage.options, overwrite=exists).info
    said = {"rows": info["rows"], "totals": info["totals"], "shortfall": info["shortfall"], "notes": info["notes"]}
    return Outcome(said, Imported(), info["rows_sha256"])


def _place(path: Path, plan: Plan, fetched: Mapping[str, Path]) -> Path:
    name = fetched_name(path)
    return plan.place(path) if name is None else fetched[name]
