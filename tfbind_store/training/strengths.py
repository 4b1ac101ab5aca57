"""How strong the peak of each row is, and how many peaks its experiment has: targets of ``heads.read_values``.

A row's strength is its column ``read_value``: the score of the peak that it is of, 0 of a negative, NaN where no score
is known.
"""

# r rows of the selection

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
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
    table = selection.columns("train", names=("row", "experiment", "read_value"))
    row, experiment = table["row"].astype(np.int64), table["experiment"].astype(np.int64)
    with store.reader() as catalog:
        known = dict(catalog.rows("SELECT experiment_id, peaks_nr FROM data.experiments WHERE peaks_nr IS NOT NULL"))
    distinct, which = np.unique(experiment, return_inverse=True)
    numbers = np.array([known.get(int(one), np.nan) for one in distinct], dtype=np.float32)[which]
    found = [np.full(int(row.max()) + 1 if len(row) else 0, np.nan, dtype=np.float32) for _ in range(2)]
    found[0][row], found[1][row] = table["read_value"], numbers
    return Strengths(*(torch.from_numpy(values).to(device) for values in found))
