"""Arrays whose rows are not stored as they are read: one byte a number, or half the trunk's channels.

A spec says under ``on_reading`` of its identity what happens: ``int8`` gives levels their scales back, ``pointwise``
puts the trunk's frozen last layer over its transformer's output. Whoever reads such an array gets float16 of the read
width, from the same methods as of any other; receipts, hashes and shards are about the stored bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Int64, Shaped

from tfbind_store.arrays import int8
from tfbind_store.arrays.on_reading import Reading
from tfbind_store.arrays.sharded import OnDamage, ShardedArray, Verify
from tfbind_store.arrays.spaces import Runs
from tfbind_store.arrays.transforms import Pointwise, read_transform
from tfbind_store.errors import DamagedShard

_ROWS_AT_ONCE = 2048
"""Bins that are looked up together; what they are turned into fits a cache."""


class StoredBins(NamedTuple):
    """Bins as they are stored."""

    values: Shaped[np.ndarray, "k stored"]
    """Levels where there are scales, else float16."""
    scales: int8.Scales | None
    """One row for each window that the bins are of."""
    which: Int64[np.ndarray, " k"]
    """Row of the scales for each bin."""


def _numbers(stored: StoredBins) -> Float16[np.ndarray, "k stored"]:
    """Return what bins mean before any layer."""
    if stored.scales is None:
        return stored.values
    return int8.decode_many(stored.values, stored.scales, stored.which)


class DecodedArray(ShardedArray):
    """An array that turns what is stored into embeddings as it is read."""

    _reading: Reading
    _store_path: Path

    @classmethod
    def decoded(
        cls,
        path: Path,
        receipts_dir: Path,
        *,
        store_path: Path,
        reading: Reading,
        name: str = "",
        verify: Verify = "index",
        on_damage: OnDamage = "raise",
    ) -> DecodedArray:
        """Open an array as `ShardedArray.open` does, to be read by `reading`; its map is loaded with the first row."""
        array = cls.open(path, receipts_dir, name=name, verify=verify, on_damage=on_damage)
        assert isinstance(array, cls)
        array._reading, array._store_path = reading, store_path
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is read, rows first."""
        n_windows, n_rows, stored_dim = self.layout.shape
        return (n_windows, n_rows - self._reading.scale_rows, self._reading.pointwise_dim or stored_dim)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows as they are read."""
        return np.dtype(np.float16)

    @cached_property
    def pointwise(self) -> Pointwise | None:
        """The layer that is applied as rows are read; None where there is none."""
        if not self._reading.pointwise_dim:
            return None
        tensors = read_transform(self._store_path, self._reading.pointwise_sha256)
        dims = {"stored_dim": self.spec.dim, "dim": self._reading.pointwise_dim}
        return Pointwise.from_tensors(tensors, **dims)

    def embedded(self, row: int) -> Shaped[np.ndarray, "bins dim"]:
        """Return a window as its embedder gave it: levels have their scales, the last layer is not applied."""
        stored = super().row(row)
        if not self._reading.scale_rows:
            return stored
        return int8.decode(stored[: -int8.SCALE_ROWS], self._sane(int8.scales_of(stored)))

    def row(self, row: int) -> Float16[np.ndarray, "bins dim"]:
        """Return one window: a copy, as all that this array gives."""
        values = self.embedded(row)
        return np.array(values) if self.pointwise is None else self.pointwise(values)

    def rows(self, first: int, count: int) -> Float16[np.ndarray, "count bins dim"]:
        """Return consecutive windows."""
        if not count:
            return np.empty((0, *self.shape[1:]), dtype=np.float16)
        return np.stack([self.row(row) for row in range(first, first + count)])

    def gather_bins(self, first_global_bin: Int64[np.ndarray, " k"], n_bins: int = 1) -> Float16[np.ndarray, "k n dim"]:
        """Read `n_bins` consecutive bins from each global bin on, across window edges where they cross."""
        first, layer = np.asarray(first_global_bin, dtype=np.int64), self.pointwise  # before anything of its size
        out = np.empty((len(first), n_bins, self.shape[-1]), dtype=np.float16)
        step = max(1, _ROWS_AT_ONCE // n_bins)
        for at in range(0, len(first), step):
            part = first[at : at + step]
            values = _numbers(self.stored_bins((part[:, None] + np.arange(n_bins)).ravel()))
            if layer is not None:
                values = layer(values)
            out[at : at + step] = values.reshape(len(part), n_bins, -1)
        return out

    def runs(self, first_global_bin: Int64[np.ndarray, " k"], n_bins: int = 1, *, is_checked: bool = False) -> Runs:
        """Return runs of bins that are decoded as they are read."""
        return _DecodedRuns(self, np.asarray(first_global_bin, dtype=np.int64), n_bins)

    def stored_bins(self, bins: Int64[np.ndarray, " k"]) -> StoredBins:
        """Look up bins as they are stored, for whoever decodes them elsewhere."""
        n_rows = self.layout.shape[1]
        if not self._reading.scale_rows:
            return StoredBins(super().gather_bins(bins)[:, 0], None, bins)
        window, place = np.divmod(np.asarray(bins, dtype=np.int64), self.shape[1])
        levels = super().gather_bins(window * n_rows + place)[:, 0]  # a window's rows are its bins, then its scales
        each, which = np.unique(window, return_inverse=True)
        rows = super().gather_bins(each * n_rows + self.shape[1], int8.SCALE_ROWS)
        return StoredBins(levels, self._sane(int8.scales_of(rows)), which.astype(np.int64))

    def _sane(self, scales: int8.Scales) -> int8.Scales:
        if not scales.are_sane:
            fix = "run tfbind verify --deep, then tfbind repair, then make the array's windows again"
            raise DamagedShard("the scales of a window are no scales", where=str(self.layout.path), fix=fix)
        return scales


class _DecodedRuns(NamedTuple):
    """Runs of bins of an array that is not stored as it is read."""

    array: DecodedArray
    first_bin: Int64[np.ndarray, " k"]
    n_bins: int

    def read(
        self, part: slice = slice(None), out: Float16[np.ndarray, "g n dim"] | None = None
    ) -> Float16[np.ndarray, "g n dim"]:
        """Decode some of the runs, into `out` if given."""
        found = self.array.gather_bins(self.first_bin[part], self.n_bins)
        if out is None:
            return found
        out[:] = found
        return out


def open_array(
    path: Path, receipts_dir: Path, identity: Mapping[str, Any], *, store_path: Path, **how: Any
) -> ShardedArray:
    """Open an array of a store as its spec's `identity` says that it is read."""
    reading = Reading.of(identity)
    if reading.is_plain:
        return ShardedArray.open(path, receipts_dir, **how)
    return DecodedArray.decoded(path, receipts_dir, store_path=store_path, reading=reading, **how)
