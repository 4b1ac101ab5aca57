"""How strong the peak of each row is, and how many peaks its experiment has: targets of ``heads.read_values``.

A row's strength is the highest score of its experiment's peaks with a summit in its bins; 0 where the row is unbound,
NaN where it is bound and no score is known.
"""

# r rows of the selection

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tfbind_store.query.selection import Selection
from tfbind_store.store.folder import Store


class Strengths(NamedTuple):
    """By row id of the selection; NaN where nothing is known."""

    read_value: Float[Tensor, " r"]
    peaks_nr: Float[Tensor, " r"]

    def of(self, rows: Tensor) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return number of peaks and strength of some rows."""
        return self.peaks_nr[rows], self.read_value[rows]


def training_strengths(store: Store, selection: Selection, device: torch.device) -> Strengths:
    """Return the strengths of the training rows of a selection."""
    table = selection.columns("train", names=("row", "window", "bin", "experiment", "label"))
    first = table["window"].astype(np.int64) * store.grid.n_bins + table["bin"]
    experiment, labels = table["experiment"].astype(np.int64), table["label"]
    is_bound = (labels == 1).any(axis=1)
    strength = np.where(is_bound, np.float32(np.nan), np.float32(0))
    numbers = np.full(len(first), np.nan, dtype=np.float32)
    with store.reader() as catalog:
        known = dict(catalog.rows("SELECT experiment_id, peaks_nr FROM data.experiments WHERE peaks_nr IS NOT NULL"))
        for one in np.unique(experiment).tolist():
            own = np.flatnonzero(experiment == one)
            numbers[own] = known.get(one, np.nan)
            bound = own[is_bound[own]]
            sql = "SELECT window_id, bin, max(score) AS score FROM data.peaks WHERE experiment_id = ? GROUP BY ALL"
            peaks = catalog.columns(sql, [one])
            at = peaks["window_id"].astype(np.int64) * store.grid.n_bins + peaks["bin"]
            strength[bound] = _highest(at, peaks["score"].astype(np.float32), first[bound], labels.shape[1])
    row = table["row"].astype(np.int64)
    found = [np.full(int(row.max()) + 1 if len(row) else 0, np.nan, dtype=np.float32) for _ in range(2)]
    found[0][row], found[1][row] = strength, numbers
    return Strengths(*(torch.from_numpy(values).to(device) for values in found))


def _highest(
    at: Int64[np.ndarray, " k"], score: Float32[np.ndarray, " k"], first: Int64[np.ndarray, " b"], n_bins: int
) -> Float32[np.ndarray, " b"]:
    """Return the highest score among `n_bins` bins from `first` on; NaN where there is none."""
    best = np.full(len(first), -np.inf, dtype=np.float32)
    order = np.argsort(at)
    at, score = at[order], score[order]
    for offset in range(n_bins if len(at) else 0):
        places = np.minimum(np.searchsorted(at, first + offset), len(at) - 1)
        here = np.where(at[places] == first + offset, score[places], np.nan)
        best = np.fmax(best, here.astype(np.float32))
    return np.where(np.isinf(best), np.float32(np.nan), best)
