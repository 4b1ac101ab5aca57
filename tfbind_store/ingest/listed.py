"""Import negatives that somebody listed: loci unbound in every experiment, or in the experiments that arrays name.

The reference kept its scoped negatives as one boolean array per experiment over the rows of a common BED
(``EXP.TARGET.CELL.bed.bool.npy``, true where the row touches no peak of it). Arrays are mapped, never unpickled; of
each a seeded sample is kept. Selections take listed negatives by the rule ``listed``, and still refuse those that the
catalog's own peaks contradict.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError, InputFileError, PeakFileError
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.rows import place_rows
from tfbind_store.ingest.sources import (
    FileIdentity,
    ImportReport,
    add_source,
    check_drop,
    check_strict,
    digest_of,
    earlier_import,
)
from tfbind_store.peaks import PeakFormat, clean_rows
from tfbind_store.store.folder import Store

SUFFIX = ".bed.bool.npy"
EVERY_EXPERIMENT = -1


@recorded
def import_negatives(
    store: Store,
    path: Path | str,
    *,
    scoped: Path | str | None = None,
    per_experiment: int = 10_000,
    seed: int = 0,
    drop: Collection[str] = (),
    strict: bool = False,
) -> ImportReport:
    """Import a BED of loci that are not bound.

    Parameters
    ----------
    store
        Where to.
    path
        BED; only its first three columns count.
    scoped
        Folder of ``EXPERIMENT.bed.bool.npy``, one boolean per row of the BED: unbound in that experiment. Without it,
        all rows are unbound in all experiments.
    per_experiment
        Rows that are kept of each array, chosen by `seed`.
    drop
        As for peaks: ``unknown_chromosome``, ``beyond_end``, ``bad_line``.
    strict
        Refuse to drop anything.

    Raises
    ------
    InputFileError
        If an array is not one boolean per row, or none is of an experiment in the store.
    """
    path, allowed = Path(path), check_drop(drop)
    if per_experiment < 1:
        raise ConfigError(f"per_experiment is {per_experiment}, must be at least 1", where="import negatives")
    if not path.is_file():
        raise PeakFileError("no such file", where=str(path))
    arrays = _arrays(Path(scoped)) if scoped is not None else []
    options: dict[str, Any] = {"drop": sorted(allowed)}
    if scoped is not None:
        options |= {"scoped": digest_of(Path(scoped)), "per_experiment": per_experiment, "seed": seed}
    file = FileIdentity.of("negatives", path, options)
    with store.reader() as catalog:
        if earlier := earlier_import(catalog, file):
            return earlier
    with store.writer() as catalog, catalog.transaction():
        clean = clean_rows(path, format=PeakFormat.BED)
        if clean.is_empty:
            raise PeakFileError("the file has no loci", where=str(path), fix="give a file with at least one row")
        placed = place_rows(catalog, clean, drop=allowed)
        rows = catalog.columns(
            "SELECT line, chrom_id, start_bp, end_bp FROM import_rows WHERE cause IS NULL ORDER BY line"
        )
        catalog.execute("DROP TABLE import_rows")
        dropped = dict(placed.bad)
        chosen, n_unknown = _chosen(catalog, arrays, rows, clean.n_rows, per_experiment, seed)
        if n_unknown:
            dropped["array_of_unknown_experiment"] = n_unknown
        report = ImportReport("negatives", str(path), clean.n_rows, rows.n, dropped, _notes(chosen))
        check_strict(report, strict=strict)
        source_id = add_source(catalog, file, report)
        for experiment_id, places in chosen.items():
            columns = {name: rows[name][places] for name in ("chrom_id", "start_bp", "end_bp")}
            n = len(places)
            columns |= {"experiment_id": np.full(n, experiment_id), "source_id": np.full(n, source_id)}
            catalog.insert("data.listed_negatives", columns)
    return report


def _arrays(folder: Path) -> list[Path]:
    found = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    if not found:
        raise InputFileError(f"no file *{SUFFIX}", where=str(folder), fix="give the folder that holds the arrays")
    return found


def _chosen(
    catalog: Catalog, arrays: list[Path], rows: Columns, n_rows: int, limit: int, seed: int
) -> tuple[dict[int, Int64[np.ndarray, " k"]], int]:
    """Return which usable rows are negatives of which experiment, and how many arrays are of unknown ones."""
    if not arrays:
        return {EVERY_EXPERIMENT: np.arange(rows.n, dtype=np.int64)}, 0
    known = dict(catalog.rows("SELECT experiment, experiment_id FROM data.experiments"))
    found: dict[int, Int64[np.ndarray, " k"]] = {}
    for path in arrays:
        name = path.name.removesuffix(SUFFIX)  # whole: the reference stripped its letters one by one
        if name not in known:
            continue
        places = np.flatnonzero(_mask(path, n_rows)[rows["line"].astype(np.int64) - 1])
        if len(places) > limit:
            rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
            places = np.sort(rng.choice(places, limit, replace=False))
        found[int(known[name])] = places.astype(np.int64)
    if not found:
        what = f"none of the {len(arrays)} arrays is of an experiment in this store (first: {arrays[0].name})"
        raise InputFileError(what, where=str(arrays[0].parent), fix="import the peaks first")
    return found, len(arrays) - len(found)


def _mask(path: Path, n_rows: int) -> Bool[np.ndarray, " rows"]:
    try:
        mask = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputFileError(f"no array of booleans: {error}", where=str(path)) from error
    if mask.dtype != np.bool_ or mask.shape != (n_rows,):
        what = f"{mask.dtype} of shape {mask.shape}, expected one boolean for each of the BED's {n_rows:,} rows"
        raise InputFileError(what, where=str(path), fix="give the BED that the arrays were made over")
    return np.asarray(mask)


def _notes(chosen: dict[int, Int64[np.ndarray, " k"]]) -> list[str]:
    if EVERY_EXPERIMENT in chosen:
        return []
    return [f"{sum(map(len, chosen.values())):,} negatives of {len(chosen):,} experiments are kept"]
