"""The file of a selection's rows: written whole and the same to the byte for the same rows, read back as columns."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tfbind_store.catalog import Catalog
from tfbind_store.columns import Columns
from tfbind_store.durable import temporary_beside, typed_errors
from tfbind_store.errors import SelectionError
from tfbind_store.query.rows import KINDS, Evidence, RowTable
from tfbind_store.query.splits import HOLDOUTS, SPLITS

COLUMNS = (
    "row",
    "window",
    "bin",
    "n_bins",
    "experiment",
    "factor",
    "context",
    "label",
    "weight",
    "read_value",
    "split",
    "kind",
    "holdout",
)
"""Columns of ``rows.parquet``, in order; ``docs/format.md`` says what they mean."""
NAMED = {"split": SPLITS, "kind": KINDS, "holdout": HOLDOUTS}


def write_rows(catalog: Catalog, path: Path, evidence: Evidence, table: RowTable) -> None:
    """Write rows as Parquet; one thread, so that the same rows give the same bytes."""
    experiments = evidence.experiments
    window, first_bin = np.divmod(table.first_bin, evidence.tiling.grid.n_bins)
    numbers = {
        "window": window,
        "bin": first_bin,
        "experiment": experiments["experiment_id"].astype(np.int64)[table.experiment],
        "factor": experiments["factor_id"].astype(np.int64)[table.experiment],
        "context": experiments["biotype_id"].astype(np.int64)[table.experiment],
        "read_value": table.read_value,
        "split": table.split,
        "kind": table.kind,
        "holdout": table.holdout,
        **{f"label_{place}": np.ascontiguousarray(codes) for place, codes in enumerate(table.labels.T)},
    }
    n_bins = table.labels.shape[1]
    names = {column: f"{list(values)!r}[{column} + 1]" for column, values in NAMED.items()}
    labels = ", ".join(f"label_{place}" for place in range(n_bins))
    sql = f"""
        SELECT (row_number() OVER () - 1)::BIGINT AS "row", "window"::INTEGER AS "window", bin::SMALLINT AS bin,
               {n_bins}::SMALLINT AS n_bins, experiment::INTEGER AS experiment, factor::INTEGER AS factor,
               context::INTEGER AS context, [{labels}]::TINYINT[] AS label, 1::FLOAT AS weight,
               read_value::FLOAT AS read_value, {names["split"]} AS split, {names["kind"]} AS kind,
               {names["holdout"]} AS holdout
        FROM row_numbers"""
    catalog.execute("SET threads = 1")
    with catalog.registered("row_numbers", {"window": numbers.pop("window"), **numbers}):
        catalog.to_parquet(sql, path)


def read_rows(catalog: Catalog, path: Path, *, n_bins: int, split: str | None, names: Sequence[str] = ()) -> Columns:
    """Return columns of the rows of one split, or of all, in file order; ``label`` as int8 [rows, n_bins]."""
    asked = list(names) or list(COLUMNS)
    unknown = sorted(set(asked) - set(COLUMNS))
    if unknown or split not in (None, *SPLITS):
        what = f"no column {unknown[0]!r}" if unknown else f"no split {split!r}"
        raise SelectionError(what, where=str(path), fix=f"one of {', '.join(COLUMNS if unknown else SPLITS)}")
    condition = "" if split is None else f" WHERE split = '{split}'"
    found = Columns()
    plain = [f'"{name}"' for name in asked if name != "label"]
    if plain:
        found = catalog.columns(f"SELECT {', '.join(plain)} FROM read_parquet(?){condition}", [str(path)])
    if "label" in asked:
        sql = f"SELECT unnest(label) AS label FROM read_parquet(?){condition}"
        codes = catalog.columns(sql, [str(path)])["label"]
        found["label"] = codes.astype(np.int8).reshape(-1, n_bins)
    return Columns({name: found[name] for name in asked})


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file of a selection."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SelectionError(f"cannot be read: {error.strerror}", where=str(path), fix="select again") from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder in the block; at its end it stands as `folder`, replacing what was there, or nowhere."""
    temporary, old = temporary_beside(folder), temporary_beside(folder)
    with typed_errors(folder):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with typed_errors(folder):
            yield temporary
            for path in temporary.iterdir():
                _fsync(path)
            _fsync(temporary)
            if folder.exists():
                os.rename(folder, old)
            os.rename(temporary, folder)
            _fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
