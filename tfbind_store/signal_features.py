"""A biotype's stored signal as numbers of a bin: its own, and means around it at several scales.

Numbers are log(1 + x), then brought to mean 0 and deviation 1 over the whole track: depth differs from file to file,
and an unseen biotype's must mean the same. Means count the bins of the chromosome that have a number.
"""

# k bins · c biotypes · s scales

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tfbind_store.errors import StoreMissing
from tfbind_store.loci import Tiling
from tfbind_store.store import Store

HALF_WIDTHS = (0, 2, 8, 32)
"""Bins on each side: the bin itself, and stretches of 5, 17 and 65 bins (640 bp to 8 kb of 128-bp bins)."""


class Signals:
    """Signals of a store's biotypes.

    Parameters
    ----------
    store
        Whose.
    array_name
        For example ``signals/signals``.

    Raises
    ------
    StoreMissing
        If the array has no signal.
    """

    def __init__(self, store: Store, array_name: str) -> None:
        self.store, self.array_name = store, array_name
        self._array = store.array(array_name)
        with store.reader() as catalog:
            sql = "SELECT biotype_id, row_index FROM data.tracks WHERE array_name = ? ORDER BY row_index DESC"
            found = catalog.rows(sql, [array_name])
        self.rows = {int(biotype): int(row) for biotype, row in found}  # of several, the first that came
        if not self.rows:
            raise StoreMissing("no signals in this array", where=array_name, fix="tfbind import signals STORE FOLDER")
        self._of = lru_cache(maxsize=16)(self._read)

    def at(
        self, biotype_ids: Sequence[int], bins: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, "k c s"]:
        """Return the numbers of some bins in some biotypes; NaN for a biotype without a signal."""
        out = np.full((len(bins), len(biotype_ids), len(HALF_WIDTHS)), np.nan, dtype=np.float32)
        for place, biotype in enumerate(biotype_ids):
            if int(biotype) in self.rows:
                out[:, place] = self._of(self.rows[int(biotype)])[bins]
        return out

    def whole(self, biotype_id: int) -> Float32[np.ndarray, "bins s"]:
        """Return the numbers of every bin of the genome in one biotype that has a signal."""
        return self._of(self.rows[biotype_id])

    def _read(self, row: int) -> Float32[np.ndarray, "bins s"]:
        return features(np.asarray(self._array.row(row)).reshape(-1), self.store.tiling)


def features(values: Float32[np.ndarray, " bins"], tiling: Tiling) -> Float32[np.ndarray, "bins s"]:
    """Return the numbers of every bin of the genome from a track of it."""
    logs = np.log1p(np.maximum(values, 0).astype(np.float64))
    known = logs[~np.isnan(logs)]
    middle, spread = (known.mean(), known.std()) if len(known) else (0.0, 1.0)
    logs = (logs - middle) / (spread if spread > 0 else 1.0)
    out = np.full((len(values), len(HALF_WIDTHS)), np.nan, dtype=np.float32)
    for number in range(len(tiling.chroms)):
        bins = tiling.global_bins(number)
        for scale, half in enumerate(HALF_WIDTHS):
            out[bins, scale] = _means(logs[bins], half)
    return out


def _means(values: Float64[np.ndarray, " n"], half: int) -> Float64[np.ndarray, " n"]:
    """Return the mean over each bin and `half` neighbours on each side, of those that have a number."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    n = counts[high] - counts[low]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(n > 0, (sums[high] - sums[low]) / n, np.nan))
