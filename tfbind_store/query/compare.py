"""Make a selection again from another one's ``selection.json``, and say in what two selections differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store import config as configs
from tfbind_store.catalog.columns import Columns
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.query import splits
from tfbind_store.query.rows import KINDS
from tfbind_store.query.selection import INFO_FILE, Selection, SelectionConfig, make_selection
from tfbind_store.store.folder import Store

COMPARED = ("split", "label", "weight", "read_value", "holdout")
"""Columns that a row which stands in both selections may differ in."""
_NEEDED = ("window", "bin", "experiment", "kind", *COMPARED)


class Remade(NamedTuple):
    """A selection that was made from the file of another one."""

    selection: Selection
    is_same: bool
    """Whether its rows are those of the other one, to the byte."""
    reasons: list[str]
    """What else is not the same, where they are not: genome, grid, inputs."""


def remake(store: Store, name: str, path: Path, *, overwrite: bool = False) -> Remade:
    """Make a selection by the config in the ``selection.json`` of another one, from this store or a different one.

    Raises
    ------
    SelectionError
        If the file is no ``selection.json``; and as `make_selection` does.
    """
    path = path / INFO_FILE if path.is_dir() else path
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        config = configs.from_mapping(SelectionConfig, old["config"], where=str(path))
        facts = {key: old[key] for key in ("genome", "grid", "inputs", "rows_sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        fix = f"give the {INFO_FILE} of a selection, or its folder"
        raise SelectionError(f"not what a selection is described by: {error!r}", where=str(path), fix=fix) from error
    make_selection(store, name, config, overwrite=overwrite)
    made = Selection.open(store, name)
    reasons = [key for key in ("genome", "grid", "inputs") if made.info[key] != facts[key]]
    return Remade(made, made.info["rows_sha256"] == facts["rows_sha256"], reasons)


def differences(first: Selection, second: Selection) -> dict[str, Any]:
    """Return in what two selections of one genome and grid differ, as JSON values.

    Returns
    -------
    ``same`` (to the byte), ``config`` (key: the two values), ``inputs`` (files that only one was made from), ``rows``
    (how many are in both, and in each only), ``only`` (those of each, by split and kind), ``changed`` (rows of both
    that differ in a column, by column; those that stand several times are not compared).
    """
    if first.info["grid"] != second.info["grid"] or first.info["genome"] != second.info["genome"]:
        raise SelectionError("selections of two genomes or grids", where=f"{first.name}, {second.name}")
    tables = [selection.columns(names=_NEEDED) for selection in (first, second)]
    keys = _keys(tables, [first.n_bins, second.n_bins], first.info["grid"]["n_bins"])
    _, place, counts = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    n_first = len(keys[0])
    per_side = [np.bincount(mine, minlength=len(counts)) for mine in (place[:n_first], place[n_first:])]
    in_both = int(np.minimum(*per_side).sum())
    alone = [per_side[1][place[:n_first]] == 0, per_side[0][place[n_first:]] == 0]
    names = (first.name, second.name)
    return {
        "same": first.info["rows_sha256"] == second.info["rows_sha256"] and first.fold == second.fold,
        "config": _config_differences(first.info["config"], second.info["config"]),
        "inputs": {
            name: [row for row in mine.info["inputs"] if row not in other.info["inputs"]]
            for name, mine, other in zip(names, (first, second), (second, first), strict=True)
        },
        "rows": {"both": in_both, **{n: len(k) - in_both for n, k in zip(names, keys, strict=True)}},
        "only": {name: _by_kind(table, mine) for name, table, mine in zip(names, tables, alone, strict=True)},
        "changed": _changed(tables, place, n_first, per_side),
    }


def _keys(tables: list[Columns], widths: list[int], n_bins: int) -> list[Int64[np.ndarray, " n"]]:
    """Return one number per row that says what it is of: its experiment, first bin, width and kind."""
    found = []
    n_experiments = 1 + max(int(table["experiment"].max(initial=0)) for table in tables)
    for table, width in zip(tables, widths, strict=True):
        kind = np.zeros(table.n, dtype=np.int64)
        for number, name in enumerate(KINDS):
            kind[table["kind"] == name] = number
        first = table["window"].astype(np.int64) * n_bins + table["bin"]
        key = (first * n_experiments + table["experiment"]) * len(KINDS) + kind
        found.append(key * (max(widths) + 1) + width)
    return found


def _config_differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key in sorted(set(first) | set(second)):
        one, other = first.get(key), second.get(key)
        if key == "split" and isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= _config_differences(one, other, f"{key}.")
        elif one != other:
            found[prefix + key] = [one, other]
    return found


def _by_kind(table: Columns, mask: Bool[np.ndarray, " n"]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for split in splits.SPLITS:
        kinds, counts = np.unique(table["kind"][mask & (table["split"] == split)].astype(str), return_counts=True)
        if len(kinds):
            found[split] = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    return found


def _changed(
    tables: list[Columns], place: Int64[np.ndarray, " all"], n_first: int, per_side: list[np.ndarray]
) -> dict[str, int]:
    """Count, by column, the rows that stand once in each selection and are not the same there."""
    once = (per_side[0] == 1) & (per_side[1] == 1)
    rows = [np.full(len(once), -1, dtype=np.int64) for _ in tables]
    for mine, of_side in zip(rows, (place[:n_first], place[n_first:]), strict=True):
        mine[of_side] = np.arange(len(of_side))
    first, second = (mine[once] for mine in rows)
    found = {}
    for name in COMPARED:
        one, other = tables[0][name][first], tables[1][name][second]
        same = one == other
        if one.dtype.kind == "f":
            same |= np.isnan(one) & np.isnan(other)
        if differs := int((~(same if same.ndim == 1 else same.all(axis=1))).sum()):
            found[name] = differs
    return found
