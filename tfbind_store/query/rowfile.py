"""The file of a selection's rows: written whole and the same to the byte for the same rows, read back as columns."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
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
    "fold_place",
    "fold_factor",
    "fold_biotype",
)
"""Columns of ``rows.parquet``, in order; ``docs/format.md`` says what they mean."""
FOLD_COLUMNS = COLUMNS[-3:]
NAMED = {"split": SPLITS, "kind": KINDS, "holdout": HOLDOUTS}


_IN_FOLD = " OR ".join(f"{name} = $fold" for name in FOLD_COLUMNS)
_UNSEEN_BIT = " + ".join(f"({1 << axis} * ({name} = $fold)::INTEGER)" for axis, name in enumerate(FOLD_COLUMNS))
_FOLDED = f"""
    SELECT * REPLACE (
        CASE WHEN {_IN_FOLD} THEN 'valid' ELSE split END AS split,
        CASE WHEN {_IN_FOLD} THEN {list(HOLDOUTS)!r}[{_UNSEEN_BIT} + 1] ELSE holdout END AS holdout)
    FROM read_parquet($path) WHERE NOT (split <> 'train' AND ({_IN_FOLD}))
"""


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
        "weight": table.weight,
        **{name: np.ascontiguousarray(table.folds[:, axis]) for axis, name in enumerate(FOLD_COLUMNS)},
        **{f"label_{place}": np.ascontiguousarray(codes) for place, codes in enumerate(table.labels.T)},
    }
    n_bins = table.labels.shape[1]
    names = {column: f"{list(values)!r}[{column} + 1]" for column, values in NAMED.items()}
    labels = ", ".join(f"label_{place}" for place in range(n_bins))
    sql = f"""
        SELECT (row_number() OVER () - 1)::BIGINT AS "row", "window"::INTEGER AS "window", bin::SMALLINT AS bin,
               {n_bins}::SMALLINT AS n_bins, experiment::INTEGER AS experiment, factor::INTEGER AS factor,
               context::INTEGER AS context, [{labels}]::TINYINT[] AS label, weight::FLOAT AS weight,
               read_value::FLOAT AS read_value, {names["split"]} AS split, {names["kind"]} AS kind,
               {names["holdout"]} AS holdout, fold_place::TINYINT AS fold_place,
               fold_factor::TINYINT AS fold_factor, fold_biotype::TINYINT AS fold_biotype
        FROM row_numbers"""
    catalog.execute("SET threads = 1")
    with catalog.registered("row_numbers", {"window": numbers.pop("window"), **numbers}):
        catalog.to_parquet(sql, path)


def read_rows(
    catalog: Catalog,
    path: Path,
    *,
    n_bins: int,
    split: str | None,
    names: Sequence[str] = (),
    fold: int | None = None,
) -> Columns:
    """Return columns of the rows of one split, or of all, in file order; ``label`` as int8 [rows, n_bins].

    Parameters
    ----------
    fold
        Open this fold: what belongs to it on any axis is validation, and of an unseen place, factor or biotype; rows
        that are of it and of the test part lie between the two and are left out.
    """
    asked = list(names) or list(COLUMNS)
    unknown = sorted(set(asked) - set(COLUMNS))
    if unknown or split not in (None, *SPLITS):
        what = f"no column {unknown[0]!r}" if unknown else f"no split {split!r}"
        raise SelectionError(what, where=str(path), fix=f"one of {', '.join(COLUMNS if unknown else SPLITS)}")
    source = "read_parquet(?)" if fold is None else f"({_FOLDED})"
    params = [str(path)] if fold is None else {"path": str(path), "fold": fold}
    condition = "" if split is None else f" WHERE split = '{split}'"
    found = Columns()
    plain = [f'"{name}"' for name in asked if name != "label"]
    if plain:
        found = catalog.columns(f"SELECT {', '.join(plain)} FROM {source}{condition}", params)
    if "label" in asked:
        codes = catalog.columns(f"SELECT unnest(label) AS label FROM {source}{condition}", params)["label"]
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
