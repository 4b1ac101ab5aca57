"""Say in numbers what a selection holds, what it left out, and what its test rows have to do with its training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.query import places, splits
from tfbind_store.query.leaks import Leak, windows_read_by_both
from tfbind_store.query.rows import KINDS, Built, Evidence, RowTable
from tfbind_store.query.splits import HOLDOUTS, SPLITS, Parts

SHOWN = 8


def describe(
    evidence: Evidence,
    built: Built,
    parts: Parts,
    found: Sequence[Leak],
    dropped: Mapping[str, int],
    notes: Sequence[str],
    chosen: Int64[np.ndarray, " c"],
) -> dict[str, Any]:
    """Return what ``selection.json`` says about the rows, as JSON values; `chosen` are ids of experiments."""
    table = built.rows
    return {
        "rows": len(table.anchor),
        "counts": count_factors(evidence, table),
        **_contents(evidence, table),
        "dropped": {**dropped, **built.dropped},
        "shortfall": built.shortfall,
        "notes": [*notes, *built.notes, *gaps(evidence, table, parts, chosen), *longer_names(evidence, table)],
        "warnings": warnings(evidence, built, parts),
        "held_out": {kind: names._asdict() for kind, names in parts.held_out.items()},
        "places": places.stretches(evidence.tiling, parts.places),
        "folds": {
            "n": parts.n_folds,
            "each": [_contents(evidence, opened(table, fold)) for fold in range(parts.n_folds)],
        },
        "leaks": [leak._asdict() for leak in found],
    }


def _contents(evidence: Evidence, table: RowTable) -> dict[str, Any]:
    """Return what is said of the whole selection, and again of each of its folds."""
    return {
        "totals": _two_way(table.split, SPLITS, table.kind, KINDS),
        "holdouts": _two_way(table.split, SPLITS, table.holdout, HOLDOUTS),
        "parts": {name: names_in(evidence, table, table.split == number) for number, name in enumerate(SPLITS)},
        "unseen": unseen_names(evidence, table),
        "windows_read_by_both": read_by_both(evidence, table),
    }


def opened(table: RowTable, fold: int) -> RowTable:
    """Return the rows as they are with a fold open; ``rowfile.read_rows`` does the same to the file."""
    mine = table.folds == fold
    is_mine = mine.any(axis=1)
    keep = ~is_mine | (table.split == splits.TRAIN)
    bits = (mine * np.array([1, 2, 4], dtype=np.int8)).sum(axis=1).astype(np.int8)
    split = np.where(is_mine, np.int8(splits.VALID), table.split)
    holdout = np.where(is_mine, bits, table.holdout)
    return RowTable(*(column[keep] for column in table._replace(split=split, holdout=holdout)))


def count_factors(evidence: Evidence, table: RowTable) -> dict[str, dict[str, dict[str, int]]]:
    """Return the rows per split, kind and factor."""
    factors = evidence.experiments["factor"].tolist()
    shape = (len(SPLITS), len(KINDS), evidence.experiments.n)
    cells = (table.split.astype(np.int64) * shape[1] + table.kind) * shape[2] + table.experiment
    number = np.bincount(cells, minlength=shape[0] * shape[1] * shape[2])
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for cell in np.flatnonzero(number).tolist():
        split, kind, experiment = (int(place) for place in np.unravel_index(cell, shape))
        of_kind = counts.setdefault(SPLITS[split], {}).setdefault(KINDS[kind], {})
        of_kind[factors[experiment]] = of_kind.get(factors[experiment], 0) + int(number[cell])
    return counts


def names_in(evidence: Evidence, table: RowTable, mask: Bool[np.ndarray, " n"]) -> dict[str, list[str]]:
    """Return the names that some rows hold."""
    present = np.flatnonzero(np.bincount(table.experiment[mask], minlength=evidence.experiments.n))
    windows = np.bincount(table.anchor[mask] // evidence.tiling.grid.n_bins, minlength=evidence.tiling.n_windows)
    chroms = np.unique(evidence.tiling.window_chrom(np.flatnonzero(windows))).tolist()
    names = {
        plural: sorted({str(name) for name in evidence.experiments[column][present].tolist()})
        for plural, column in (("factors", "factor"), ("biotypes", "biotype"), ("experiments", "experiment"))
    }
    return {**names, "chromosomes": [evidence.tiling.chroms[chrom] for chrom in chroms]}


def gaps(evidence: Evidence, table: RowTable, parts: Parts, chosen: Int64[np.ndarray, " c"]) -> list[str]:
    """Say what came out empty: chromosomes nobody has looked at for the chosen experiments, names held out, splits."""
    looked = evidence.labelled[np.isin(evidence.experiments["experiment_id"], chosen)].any(axis=0)
    tiling, found = evidence.tiling, []
    present = np.bincount(table.experiment, minlength=evidence.experiments.n) > 0
    for number, split in enumerate(SPLITS):
        here = (parts.places.part == number).reshape(tiling.n_windows, -1).any(axis=1)
        lies = np.zeros(len(tiling.chroms), dtype=bool)
        lies[np.unique(tiling.window_chrom(np.flatnonzero(here)))] = True
        silent = [tiling.chroms[place] for place in np.flatnonzero(lies & ~looked)]
        if silent:
            found.append(f"{split}: unlabelled, so without rows: {_some(silent)}")
        wanted = lies.any() or any((part == number).any() for part in (parts.factor, parts.biotype))
        if wanted and not (table.split == number).any():
            found.append(f"{split}: no rows")
    for kind, names in parts.held_out.items():
        silent = sorted({*names.valid, *names.test}.difference(evidence.experiments[kind][present].tolist()))
        if silent:
            found.append(f"held out, but without rows: {kind} {_some(silent)}")
    for fold in range(parts.n_folds):
        if not (table.folds[table.split == splits.TRAIN] == fold).any():
            found.append(f"fold {fold}: no rows")
    return found if (table.split == splits.TRAIN).any() else [*found, "nothing can be trained on this selection"]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def longer_names(evidence: Evidence, table: RowTable) -> list[str]:
    """Say which training biotypes are called as an unseen one and something behind a hyphen, dot, slash or blank.

    Nobody can tell a treatment written so from another cell line, so it is said and not refused.
    """
    training = names_in(evidence, table, table.split == splits.TRAIN)["biotypes"]
    found = []
    for unseen in unseen_names(evidence, table)["biotypes"]:
        start = unseen.lower()
        longer = [name for name in training if name.lower().startswith(tuple(start + mark for mark in "-./ "))]
        if longer:
            found.append(f"training has {_some(longer)}: hold it out as well if that is {unseen} too")
    return found


def unseen_names(evidence: Evidence, table: RowTable) -> dict[str, list[str]]:
    """Return the names that validation and test rows hold as unseen by training."""
    bits = {"chromosomes": 1, "factors": 2, "biotypes": 4}
    return {key: names_in(evidence, table, (table.holdout & bit) > 0)[key] for key, bit in bits.items()}


def read_by_both(evidence: Evidence, table: RowTable) -> dict[str, dict[str, int]]:
    """Return, for each kind of held-out row, how many of its rows lie in windows that share input with training.

    With a held-out factor they are meant: the same DNA, another factor. With held-out chromosomes there are none.
    """
    window = table.anchor // evidence.tiling.grid.n_bins
    trained = np.flatnonzero(np.bincount(window[table.split == splits.TRAIN], minlength=evidence.tiling.n_windows))
    shares = np.zeros(evidence.tiling.n_windows, dtype=bool)
    shares[windows_read_by_both(evidence.tiling, trained, np.arange(evidence.tiling.n_windows))] = True
    counts: dict[str, dict[str, int]] = {}
    for code, name in enumerate(HOLDOUTS):
        asked = (table.split != splits.TRAIN) & (table.holdout == code)
        if asked.any():
            counts[name] = {"rows": int(asked.sum()), "share_input": int(shares[window[asked]].sum())}
    return counts


def warnings(evidence: Evidence, built: Built, parts: Parts) -> dict[str, int]:
    """Return how many rows, bins and experiments are not quite what they seem, by cause."""
    table, n_window_bins = built.rows, evidence.tiling.grid.n_bins
    positive = table.kind == 0
    bins = table.anchor[positive]
    relaxed = np.isin(evidence.experiments["experiment_id"], evidence.relaxed.experiment_id)
    present = np.bincount(table.experiment, minlength=evidence.experiments.n) > 0
    counts = {
        "positive_rows_with_unlabelled_bins": int((table.labels[positive] == -1).any(axis=1).sum()),
        "positives_in_bins_with_n": int((evidence.acgt[bins] < evidence.tiling.grid.bin_bp).sum()),
        "experiments_without_ambiguous_zone": int((~relaxed[present]).sum()),
        "rows_that_cross_into_the_next_window": int(
            (table.first_bin % n_window_bins + table.labels.shape[1] > n_window_bins).sum()
        ),
        "rows_shifted_to_stay_inside": built.shifted,
        "bins_between_loci_of_two_splits": parts.places.between,
    }
    return {cause: number for cause, number in counts.items() if number}


def _two_way(
    first: np.ndarray, first_names: Sequence[str], second: np.ndarray, second_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    shape = (len(first_names), len(second_names))
    cells = first.astype(np.int64) * shape[1] + second
    counts = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    return {
        name: {other: int(counts[i, j]) for j, other in enumerate(second_names) if counts[i, j]}
        for i, name in enumerate(first_names)
        if counts[i].any()
    }
