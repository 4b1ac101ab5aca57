"""Embedding arrays: create one, publish shards into it, read rows without copying.

An array is a Zarr v3 array, its first axis cut into shards; rows are genome windows, texts, or residues. Which rows
exist is decided by receipts alone. Reading maps the shard files: a row is a read-only view of the file's pages. Nothing
is ever filled in: a row that nobody embedded raises `MissingWindow`. The bytes of a shard are in ``shards``, the
commit in ``commit``. This is the only module that imports zarr.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, Shaped

from tfbind_store.arrays import commit
from tfbind_store.arrays.layouts import ARRAY_FORMAT, ATTRIBUTE, FILL, ArrayLayout, read_layout
from tfbind_store.arrays.mappings import ShardMaps
from tfbind_store.arrays.receipts import Completeness, Receipt, WindowState, read_receipts
from tfbind_store.arrays.shards import label_fits, open_shard
from tfbind_store.arrays.spaces import Located, Runs
from tfbind_store.durable import REAL, FileSystem, make_directory, publish
from tfbind_store.errors import DamagedShard, LocusError, MissingWindow, StoreExists
from tfbind_store.spec import EmbeddingSpec

__all__ = [
    "ArrayLayout",
    "Completeness",
    "FileSystem",
    "Receipt",
    "ShardedArray",
    "WindowState",
    "create_array",
    "publish_shard",
    "read_layout",
]

Verify = Literal["index", "first-touch"]
OnDamage = Literal["raise", "exclude"]
_log = logging.getLogger(__name__)
_MISSING = 0
_CODES = {state: code for code, state in enumerate(WindowState, start=1)}
_STATES = {code: state for state, code in _CODES.items()}
_OK = _CODES[WindowState.ok]
EMBED_AGAIN = "run the command that embedded {name} again; finished shards are kept"
ONLY_N = "choose loci with bases in their windows"


def create_array(
    path: Path,
    spec: EmbeddingSpec,
    *,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    chunk: tuple[int, ...],
    replace: bool = False,
    fs: FileSystem = REAL,
) -> None:
    """Make an empty Zarr array; its metadata appear whole or not at all.

    Parameters
    ----------
    path
        The ``.zarr`` directory; must not hold an array yet.
    spec
        What the numbers will be made with; stored as an attribute.
    shape
        Rows first.
    shard, chunk
        Shapes of a shard and of an inner chunk; both hold whole rows, a shard holds whole chunks.
    replace
        Give an array that is there this shape; its shards stay.
    fs
        The calls to the operating system.
    """
    assert shard[1:] == chunk[1:] == shape[1:], "shards and chunks hold whole rows"
    assert shard[0] % chunk[0] == 0, "a shard holds whole chunks"
    if not replace and (path / "zarr.json").exists():
        raise StoreExists("there is an array already", where=str(path), fix="choose another name with --name")
    make_directory(path, fs=fs)
    publish(path / "zarr.json", [_zarr_metadata(spec, shape, shard, chunk)], fs=fs)


def _zarr_metadata(
    spec: EmbeddingSpec, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...]
) -> bytes:
    import zarr

    store = zarr.storage.MemoryStore()
    zarr.create_array(
        store,
        shape=shape,
        shards=shard,
        chunks=chunk,
        dtype=spec.dtype,
        compressors=None,
        fill_value=FILL[spec.dtype],
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={ATTRIBUTE: {"format": ARRAY_FORMAT, "fingerprint": spec.fingerprint, "spec": spec.to_json()}},
        zarr_format=3,
    )
    return store._store_dict["zarr.json"].to_bytes()


def publish_shard(
    array: ShardedArray | ArrayLayout,
    shard_id: int,
    data: Shaped[np.ndarray, "rows ..."],
    states: Sequence[WindowState],
    *,
    reasons: Mapping[int, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    fs: FileSystem = REAL,
) -> Receipt:
    """Publish one shard of `array`; see `commit.publish_shard`. Open the array again to read it."""
    layout = array.layout if isinstance(array, ShardedArray) else array
    return commit.publish_shard(layout, shard_id, data, states, reasons=reasons, provenance=provenance, fs=fs)


class ShardedArray:
    """An embedding array as it was when opened: rows that have a receipt, mapped, nothing else.

    Use `open`. Safe to use from several threads and after a fork; open again in a spawned process.
    """

    def __init__(
        self,
        layout: ArrayLayout,
        receipts: Mapping[int, Receipt],
        damaged: Mapping[int, DamagedShard],
        *,
        verify: Verify = "index",
    ) -> None:
        self.layout = layout
        self.damaged = dict(damaged)
        """Shards with a receipt that cannot be served, and why."""
        self._receipts = dict(receipts)
        self._codes = np.full(layout.n_windows, _MISSING, dtype=np.uint8)
        self._maps = ShardMaps(layout, self._receipts)
        self._verify = verify
        self._window_bins = layout.shape[1] if len(layout.shape) == 3 else 1

    @classmethod
    def open(
        cls,
        path: Path,
        receipts_dir: Path,
        *,
        name: str = "",
        verify: Verify = "index",
        on_damage: OnDamage = "raise",
    ) -> ShardedArray:
        """Open an array and check each shard that has a receipt: kind, size, index, label.

        Parameters
        ----------
        path, receipts_dir
            The ``.zarr`` directory and the folder of its receipts.
        name
            The array's name in the store.
        verify
            ``first-touch`` also checks each window's hash when it is first read.
        on_damage
            ``exclude`` opens the rest of a damaged array; see `damaged`.

        Raises
        ------
        DamagedShard
            If a shard or receipt is not what it should be.
        """
        layout = read_layout(path, receipts_dir, name=name)
        receipts, refused = read_receipts(
            receipts_dir, array=layout.name, fingerprint=layout.fingerprint, on_damage=on_damage
        )
        array = cls(layout, {}, refused, verify=verify)
        for shard_id, receipt in receipts.items():
            try:
                array._admit(shard_id, receipt)
            except DamagedShard as error:
                if on_damage == "raise":
                    raise
                array.damaged[shard_id] = error
        return array

    def _admit(self, shard_id: int, receipt: Receipt) -> None:
        """Take one shard in if its file fits its receipt."""
        layout = self.layout
        if shard_id >= layout.n_shards or receipt.n_windows != layout.windows_in(shard_id):
            raise DamagedShard("receipt does not fit the array's shape", where=layout.where(shard_id))
        try:
            descriptor = open_shard(layout, shard_id, size_bytes=receipt.size_bytes)
        except FileNotFoundError:
            fix = f"run the command that embedded {layout.name} again; other shards are kept"
            self.damaged[shard_id] = DamagedShard("the shard's file is gone", where=layout.where(shard_id), fix=fix)
            return
        try:
            fits = label_fits(layout, shard_id, descriptor, receipt.window_xxh3_64)
        finally:
            os.close(descriptor)
        if not fits:
            # a writer died, or is, between renaming a new generation and its receipt: hashes decide, window by window
            _log.warning("%s is not the file its receipt is about: every window is checked", layout.where(shard_id))
        if not fits or self._verify == "first-touch":
            self._maps.distrust(receipt)
        self._receipts[shard_id] = receipt
        first = shard_id * layout.windows_per_shard
        self._codes[first : first + receipt.n_windows] = [_CODES[state] for state in receipt.states]

    @property
    def spec(self) -> EmbeddingSpec:
        """What the numbers were made with."""
        return self.layout.spec

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows as they are read."""
        return self.layout.dtype

    @property
    def n_shards(self) -> int:
        """Shards of the whole array, published or not."""
        return self.layout.n_shards

    @property
    def shard_rows(self) -> int:
        """Rows per shard."""
        return self.layout.shard_rows

    def receipts(self) -> dict[int, Receipt]:
        """Return the receipts of all shards that can be served."""
        return dict(self._receipts)

    def completeness(self) -> Completeness:
        """Return how many windows are in which state; windows of unpublished shards count as not asked."""
        counts = np.bincount(self._codes, minlength=len(_CODES) + 1)
        n_ok, n_all_n, n_failed, n_not_asked = (int(counts[_CODES[state]]) for state in WindowState)
        return Completeness(n_ok, n_all_n, n_failed, n_not_asked + int(counts[_MISSING]), self.layout.n_windows)

    def state(self, row: int) -> WindowState:
        """Return the state of the window that holds `row`."""
        code = int(self._codes[self._checked_row(row) // self.layout.window_rows])
        return _STATES.get(code, WindowState.not_asked)

    def is_ok(self, rows: Int64[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
        """Return for each row whether it can be read."""
        return np.asarray(self._codes[np.asarray(rows) // self.layout.window_rows] == _OK)

    def _checked_row(self, row: int) -> int:
        if not 0 <= row < self.shape[0]:
            raise MissingWindow(f"row {row} is not one of the array's {self.shape[0]}", where=str(self.layout.path))
        return row

    def row(self, row: int) -> Shaped[np.ndarray, "..."]:
        """Return one row as a read-only view of the mapped file.

        Raises
        ------
        MissingWindow
            If nobody embedded it.
        DamagedShard
            If its bytes are checked and do not fit their hash.
        """
        if row < 0 or row >= self.layout.shape[0] or self._codes[row // self.layout.window_rows] != _OK:
            raise self._missing(row)
        shard_id, place = divmod(row, self.layout.shard_rows)
        mapped = self._maps.mapped.get(shard_id)
        if mapped is None or not self._maps.all_proven:
            mapped = self._maps.get(shard_id, {place // self.layout.window_rows})
        view: Shaped[np.ndarray, "..."] = mapped.rows[place]
        return view

    def embedded(self, row: int) -> Shaped[np.ndarray, "..."]:
        """Return one row as its embedder gave it: not yet what an array with a map on reading makes of it."""
        return self.row(row)

    def rows(self, first: int, count: int) -> Shaped[np.ndarray, "count ..."]:
        """Return consecutive rows: a view where they lie in one shard, else a copy."""
        self._require_ok(np.arange(first, first + count, dtype=np.int64))
        parts = []
        while count:
            shard_id, place = divmod(first, self.layout.shard_rows)
            take = min(count, self.layout.shard_rows - place)
            parts.append(self._range(shard_id, place, take))
            first, count = first + take, count - take
        if not parts:
            return np.empty((0, *self.layout.row_shape), dtype=self.layout.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _range(self, shard_id: int, place: int, count: int) -> Shaped[np.ndarray, "count ..."]:
        step = self.layout.window_rows
        windows = range(place // step, (place + count - 1) // step + 1)
        part: Shaped[np.ndarray, "count ..."] = self._maps.get(shard_id, windows).rows[place : place + count]
        return part

    def gather(
        self, windows: Int64[np.ndarray, " k"], bins: Int64[np.ndarray, " k"], n_bins: int = 1
    ) -> Shaped[np.ndarray, "k n dim"]:
        """Copy `n_bins` consecutive bins of each window, beginning at `bins`.

        Raises
        ------
        LocusError
            If a run of bins ends past its window; `gather_bins` goes on into the next one.
        """
        first_bin = np.asarray(bins, dtype=np.int64)
        kept = self.shape[1] if len(self.shape) == 3 else 1
        if first_bin.size and (first_bin.min() < 0 or first_bin.max() + n_bins > kept):
            what = f"{n_bins} bins from bin {int(first_bin.max())} do not lie in a window of {kept}"
            raise LocusError(what, where=self.layout.name)
        return self.gather_bins(np.asarray(windows, dtype=np.int64) * kept + first_bin, n_bins)

    def gather_bins(self, first_global_bin: Int64[np.ndarray, " k"], n_bins: int = 1) -> Shaped[np.ndarray, "k n dim"]:
        """Copy `n_bins` consecutive bins from each global bin on, across window edges where they cross.

        The caller sees to it that a run stays on its chromosome: the tiling knows, the array does not.
        """
        return self._located(first_global_bin, n_bins, is_checked=False).read()

    def runs(self, first_global_bin: Int64[np.ndarray, " k"], n_bins: int = 1, *, is_checked: bool = False) -> Runs:
        """Check once, as `gather_bins` does, runs of bins that are then read some at a time.

        Parameters
        ----------
        is_checked
            Every window of these runs is known to be embedded: the caller asked `is_ok`.
        """
        return self._located(first_global_bin, n_bins, is_checked=is_checked)

    def _located(self, first_global_bin: Int64[np.ndarray, " k"], n_bins: int, *, is_checked: bool) -> Located:
        first = np.asarray(first_global_bin, dtype=np.int64)
        if not is_checked:
            first_window, last_window = first // self._window_bins, (first + n_bins - 1) // self._window_bins
            self._require_ok(first_window)
            for offset in range(1, int((last_window - first_window).max(initial=0)) + 1):
                self._require_ok(np.minimum(first_window + offset, last_window))
        return self._maps.locate(first[:, None] + np.arange(n_bins, dtype=np.int64))

    def _require_ok(self, rows: Int64[np.ndarray, " n"]) -> None:
        if not rows.size:
            return
        if rows.min() < 0 or rows.max() >= self.shape[0]:
            raise self._missing(int(rows.min() if rows.min() < 0 else rows.max()))
        bad = self._codes[rows // self.layout.window_rows] != _OK
        if bad.any():
            raise self._missing(int(rows[bad][0]))

    def _missing(self, row: int) -> MissingWindow:
        where = f"{self.layout.path}: row {row}"
        if not 0 <= row < self.shape[0]:
            return MissingWindow(f"row {row} is not one of the array's {self.shape[0]}", where=where)
        shard_id, place = divmod(row // self.layout.window_rows, self.layout.windows_per_shard)
        fix = EMBED_AGAIN.format(name=self.layout.name)
        if shard_id in self.damaged:
            return MissingWindow(f"window {row} cannot be served: {self.damaged[shard_id].what}", where=where, fix=fix)
        receipt = self._receipts.get(shard_id)
        reason = receipt.reasons.get(place, "") if receipt else ""
        state = self.state(row)
        if state == WindowState.all_n:
            return MissingWindow(f"window {row} holds only N: there is nothing to embed", where=where, fix=ONLY_N)
        what = (
            f"window {row} failed: {reason}" if state == WindowState.failed else f"window {row} has not been embedded"
        )
        return MissingWindow(what, where=where, fix=fix)

    def without(self, rows: Int64[np.ndarray, " n"], what: str) -> MissingWindow:
        """Return the error of somebody who needs rows, some of which cannot be read.

        Parameters
        ----------
        what
            Says how many, and ends before the verb.
        """
        codes = self._codes[rows // self.layout.window_rows]
        if (codes[codes != _OK] == _CODES[WindowState.all_n]).all():
            return MissingWindow(f"{what} hold only N: there is nothing to embed", where=self.layout.name, fix=ONLY_N)
        fix = EMBED_AGAIN.format(name=self.layout.name)
        return MissingWindow(f"{what} are not embedded", where=self.layout.name, fix=fix)

    def let_go(self) -> None:
        """Unmap what was read: whoever passes over a whole genome once keeps no more of it than it works on."""
        self._maps.let_go()

    def are_in_memory(self, global_bins: Int64[np.ndarray, " k"]) -> bool:
        """Return whether the pages on which these bins begin are all in memory; True too where nobody can tell."""
        size, per_shard = self.layout.window_bytes // self._window_bins, self._window_bins * self.layout.shard_rows
        shard_ids, places = np.divmod(np.asarray(global_bins, dtype=np.int64), per_shard)
        return all(
            self._maps.get(shard_id, ()).is_in_memory(place * size)
            for shard_id, place in zip(shard_ids.tolist(), places.tolist(), strict=True)
            if shard_id in self._receipts
        )

    def will_need(self, windows: Iterable[int]) -> None:
        """Have these windows fetched, since they are read soon; returns at once."""
        size = self.layout.window_bytes
        for window in windows:
            shard_id, place = divmod(int(window), self.layout.windows_per_shard)
            if self._codes[int(window)] == _OK:
                self._maps.get(shard_id, ()).will_need(place * size, size)

    def will_need_bins(self, first_global_bin: Int64[np.ndarray, " k"], n_bins: int = 1) -> None:
        """Have runs of bins fetched: scattered ones, of windows that are not read as a whole; returns at once."""
        size, per_shard = self.layout.window_bytes // self._window_bins, self._window_bins * self.layout.shard_rows
        shard_ids, places = np.divmod(np.sort(np.asarray(first_global_bin, dtype=np.int64)), per_shard)
        for shard_id, place in zip(shard_ids.tolist(), places.tolist(), strict=True):
            if shard_id in self._receipts:
                last = min(place + n_bins, self.layout.rows_in(shard_id) * self._window_bins)
                self._maps.get(shard_id, ()).will_need(place * size, (last - place) * size)
