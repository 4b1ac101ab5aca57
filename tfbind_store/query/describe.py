"""Say in numbers what a selection holds, what it left out, and what its test rows have to do with its training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.query import splits
from tfbind_store.query.leaks import Leak, windows_read_by_both
from tfbind_store.query.rows import KINDS, Built, Evidence, RowTable
from tfbind_store.query.splits import HOLDOUTS, SPLITS, Parts

SHOWN_CHROMS = 8


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
        "totals": _two_way(table.split, SPLITS, table.kind, KINDS),
        "holdouts": _two_way(table.split, SPLITS, table.holdout, HOLDOUTS),
        "dropped": {**dropped, **built.dropped},
        "shortfall": built.shortfall,
        "notes": [*notes, *built.notes, *gaps(evidence, table, parts, chosen)],
        "warnings": warnings(evidence, table),
        "held_out": {kind: names._asdict() for kind, names in parts.held_out.items()},
        "parts": {name: names_in(evidence, table, table.split == number) for number, name in enumerate(SPLITS)},
        "unseen": unseen_names(evidence, table, parts),
        "leaks": [leak._asdict() for leak in found],
        "windows_read_by_both": read_by_both(evidence, table),
    }


def count_factors(evidence: Evidence, table: RowTable) -> dict[str, dict[str, dict[str, int]]]:
    """Return the rows per split, kind and factor."""
    factors = evidence.experiments["factor"].tolist()
    shape = (len(SPLITS), len(KINDS), evidence.experiments.n)
    cells = np.ravel_multi_index((table.split, table.kind, table.experiment), shape)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for cell, number in zip(*(part.tolist() for part in np.unique(cells, return_counts=True)), strict=True):
        split, kind, experiment = np.unravel_index(cell, shape)
        of_kind = counts.setdefault(SPLITS[split], {}).setdefault(KINDS[kind], {})
        of_kind[factors[experiment]] = of_kind.get(factors[experiment], 0) + number
    return counts


def names_in(evidence: Evidence, table: RowTable, mask: Bool[np.ndarray, " n"]) -> dict[str, list[str]]:
    """Return the names that some rows hold."""
    present = np.unique(table.experiment[mask])
    windows = np.unique(table.anchor[mask] // evidence.tiling.grid.n_bins)
    chroms = np.unique(evidence.tiling.window_chrom(windows)).tolist()
    names = {
        plural: sorted({str(name) for name in evidence.experiments[column][present].tolist()})
        for plural, column in (("factors", "factor"), ("biotypes", "biotype"), ("experiments", "experiment"))
    }
    return {**names, "chromosomes": [evidence.tiling.chroms[chrom] for chrom in chroms]}


def gaps(evidence: Evidence, table: RowTable, parts: Parts, chosen: Int64[np.ndarray, " c"]) -> list[str]:
    """Say which chromosomes nobody has looked at for the chosen experiments, and which split came out empty."""
    looked = evidence.labelled[np.isin(evidence.experiments["experiment_id"], chosen)].any(axis=0)
    found = []
    for number, split in enumerate(SPLITS):
        silent = [evidence.tiling.chroms[place] for place in np.flatnonzero((parts.chrom == number) & ~looked)]
        if silent:
            more = f" and {len(silent) - SHOWN_CHROMS} more" if len(silent) > SHOWN_CHROMS else ""
            found.append(f"{split}: unlabelled, so without rows: {', '.join(silent[:SHOWN_CHROMS])}{more}")
        wanted = any((part == number).any() for part in (parts.chrom, parts.factor, parts.biotype))
        if wanted and not (table.split == number).any():
            found.append(f"{split}: no rows")
    return found if (table.split == splits.TRAIN).any() else [*found, "nothing can be trained on this selection"]


def unseen_names(evidence: Evidence, table: RowTable, parts: Parts) -> dict[str, list[str]]:
    """Return the names that validation and test rows hold as unseen by training."""
    bits = {"chromosomes": 1, "factors": 2, "biotypes": 4}
    return {key: names_in(evidence, table, (table.holdout & bit) > 0)[key] for key, bit in bits.items()}


def read_by_both(evidence: Evidence, table: RowTable) -> dict[str, dict[str, int]]:
    """Return, for each kind of held-out row, how many of its rows lie in windows that share input with training.

    With a held-out factor they are meant: the same DNA, another factor. With held-out chromosomes there are none.
    """
    window = table.anchor // evidence.tiling.grid.n_bins
    training = window[table.split == splits.TRAIN]
    counts: dict[str, dict[str, int]] = {}
    for code, name in enumerate(HOLDOUTS):
        asked = (table.split != splits.TRAIN) & (table.holdout == code)
        if asked.any():
            shared = windows_read_by_both(evidence.tiling, training, window[asked])
            counts[name] = {"rows": int(asked.sum()), "share_input": int(np.isin(window[asked], shared).sum())}
    return counts


def warnings(evidence: Evidence, table: RowTable) -> dict[str, int]:
    """Return how many positive rows are not quite what they seem, by cause."""
    positive = table.kind == 0
    bins = table.anchor[positive]
    relaxed = np.isin(evidence.experiments["experiment_id"], evidence.relaxed.experiment_id)
    counts = {
        "positive_rows_with_unlabelled_bins": int((table.labels[positive] == -1).any(axis=1).sum()),
        "positives_in_bins_with_n": int((evidence.acgt[bins] < evidence.tiling.grid.bin_bp).sum()),
        "experiments_without_ambiguous_zone": int((~relaxed[np.unique(table.experiment)]).sum()),
    }
    return {cause: number for cause, number in counts.items() if number}


def _two_way(
    first: np.ndarray, first_names: Sequence[str], second: np.ndarray, second_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts = np.zeros((len(first_names), len(second_names)), dtype=np.int64)
    np.add.at(counts, (first, second), 1)
    return {
        name: {other: int(counts[i, j]) for j, other in enumerate(second_names) if counts[i, j]}
        for i, name in enumerate(first_names)
        if counts[i].any()
    }
