"""The leak check of a selection: its rows, as a whole and in every fold, are given to ``leaks`` and ``trunks``.

Training rows that read what rows of held-out places read can also be left out here, counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfbind_store.query import describe, leaks, rows, splits, trunks
from tfbind_store.query.kinship import Kinship
from tfbind_store.store.folder import Store


def find_row_leaks(
    store: Store,
    evidence: rows.Evidence,
    table: rows.RowTable,
    n_folds: int,
    kinship: Kinship,
    known_trunks: Sequence[trunks.Trunk],
) -> list[leaks.Leak]:
    """Return what training rows share with rows of unseen factors, biotypes and places, and what trunks have seen.

    Parameters
    ----------
    n_folds
        Each fold is looked at as it is when it is open.
    """
    found = []
    for fold, view in [(None, table), *((fold, describe.opened(table, fold)) for fold in range(n_folds))]:
        found += _leaks_of(evidence, view, kinship, fold)
        windows = _windows_of(evidence, view)
        is_unseen, is_training = (view.holdout & 1) > 0, view.split == splits.TRAIN
        found += leaks.place_leaks(
            evidence.tiling,
            (windows[0][is_training], windows[1][is_training]),
            (windows[0][is_unseen], windows[1][is_unseen]),
            fold=fold,
        )
        names = describe.unseen_names(evidence, view)
        found += trunks.find_trunk_leaks(store, known_trunks, names, view.anchor[is_unseen], kinship, fold=fold)
    return found


def _leaks_of(evidence: rows.Evidence, table: rows.RowTable, kinship: Kinship, fold: int | None) -> list[leaks.Leak]:
    experiments = evidence.experiments

    def names(column: str, mask: np.ndarray) -> dict[str, int]:
        count = np.bincount(table.experiment[mask], minlength=experiments.n)
        total: dict[str, int] = {}
        for place in np.flatnonzero(count).tolist():
            name = str(experiments[column][place])
            total[name] = total.get(name, 0) + int(count[place])
        return total

    training = table.split == splits.TRAIN
    unseen = {kind: np.array([f"unseen_{kind}" in name for name in splits.HOLDOUTS]) for kind in ("factor", "biotype")}
    bases = dict(zip(experiments["biotype"].tolist(), experiments["base_biotype"].tolist(), strict=True))
    return leaks.find_leaks(
        leaks.Side(names("factor", training), names("biotype", training)),
        leaks.Side(
            names("factor", unseen["factor"][table.holdout]), names("biotype", unseen["biotype"][table.holdout])
        ),
        kinship=kinship,
        base_biotypes=bases,
        fold=fold,
    )


def without_overlap(evidence: rows.Evidence, built: rows.Built) -> rows.Built:
    """Leave out training rows whose windows read what windows of rows in held-out places read, counted."""
    table = built.rows
    windows = _windows_of(evidence, table)
    held = np.concatenate([side[(table.holdout & 1) > 0] for side in windows])
    touched = np.zeros(evidence.tiling.n_windows, dtype=bool)
    touched[leaks.windows_read_by_both(evidence.tiling, held, np.arange(evidence.tiling.n_windows))] = True
    lost = (table.split == splits.TRAIN) & (touched[windows[0]] | touched[windows[1]])
    dropped = dict(built.dropped)
    for kind in np.unique(table.kind[lost]).tolist():
        dropped[f"{rows.KINDS[kind]}_reads_held_out_place"] = int((table.kind[lost] == kind).sum())
    return built._replace(rows=rows.RowTable(*(column[~lost] for column in table)), dropped=dropped)


def _windows_of(evidence: rows.Evidence, table: rows.RowTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last window of each row."""
    n_bins = evidence.tiling.grid.n_bins
    return table.first_bin // n_bins, (table.first_bin + table.labels.shape[1] - 1) // n_bins
