"""The mapped shards of an open array, and the windows whose bytes are still to be checked.

A window is *unproven* where the array was opened with first-touch checking, or where a shard's label is not what its
receipt says (a writer is publishing it again): its hash is compared when it is first read. Shards are mapped into one
stretch of addresses (``spaces``), or into several shorter ones where the system does not give so many.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.arrays.receipts import Receipt, WindowState
from tfbind_store.arrays.shards import MappedShard, label_fits, open_shard, view_shard, window_hash
from tfbind_store.arrays.spaces import Located, Space, pitch
from tfbind_store.errors import DamagedShard, MissingWindow, StoreError

MAX_MAPPED = 8192
"""Shards that stay mapped; a Linux process has 65,530 mappings for everything."""


class ShardMaps:
    """Maps shards when they are first read.

    Parameters
    ----------
    layout
        Of the array.
    receipts
        Of its shards; the caller may add to it.
    """

    def __init__(self, layout: ArrayLayout, receipts: Mapping[int, Receipt]) -> None:
        self._layout = layout
        self._receipts = receipts
        self.mapped: dict[int, MappedShard] = {}
        """What is mapped now."""
        self._spaces: dict[int, Space] = {}
        self._per_space = layout.n_shards
        self._per_shard = layout.windows_per_shard * layout.window_bytes // (layout.shape[-1] * layout.dtype.itemsize)
        self._pitch = pitch(layout)
        self._max_maps = MAX_MAPPED
        self._unproven: dict[int, set[int]] = {}
        self._lock = threading.RLock()

    @property
    def all_proven(self) -> bool:
        """Whether no window is left to be checked."""
        return not self._unproven

    def distrust(self, receipt: Receipt) -> None:
        """Have every window of a shard checked when it is first read."""
        self._unproven[receipt.shard_id] = {p for p, s in enumerate(receipt.states) if s is WindowState.ok}

    def let_go(self) -> None:
        """Unmap everything; who holds a view keeps what it is of."""
        with self._lock:
            self.mapped, self._spaces = {}, {}

    def get(self, shard_id: int, touched: Iterable[int]) -> MappedShard:
        """Return a shard, the windows `touched` in it proven.

        Raises
        ------
        MissingWindow
            If its file is gone.
        DamagedShard
            If a window does not hash to what the receipt says.
        """
        mapped = self.mapped.get(shard_id)
        if mapped is not None and shard_id not in self._unproven:
            return mapped
        with self._lock:
            if shard_id not in self.mapped:
                self._make_room(1)
            return self._proven(shard_id, touched)

    def locate(self, vectors: Int64[np.ndarray, "k n"]) -> Located:
        """Return where vectors of the array lie in memory: their shards mapped, their windows proven.

        Raises
        ------
        MissingWindow
            If a file is gone.
        DamagedShard
            If a window does not hash to what the receipt says.
        """
        if not vectors.size:
            return Located([np.empty((0, self._layout.shape[-1]), dtype=self._layout.dtype)], vectors, None)
        shard_ids = vectors // self._per_shard
        places = vectors if self._pitch == self._per_shard else vectors + shard_ids * (self._pitch - self._per_shard)
        space = self._spaces.get(0)
        if self._per_space >= self._layout.n_shards and space is not None and space.is_ready[shard_ids].all():
            return Located([space.flat], places, None)
        with self._lock:
            self._prepare(vectors, np.unique(shard_ids))
            if self._per_space >= self._layout.n_shards:
                return Located([self._spaces[0].flat], places, None)
            numbers, which = np.unique(shard_ids // self._per_space, return_inverse=True)
            flats = [self._spaces[number].flat for number in numbers.tolist()]
            here = places - numbers[which].reshape(places.shape) * (self._per_space * self._pitch)
            return Located(flats, here, which.reshape(places.shape))

    def _prepare(self, vectors: Int64[np.ndarray, "k n"], shard_ids: Int64[np.ndarray, " s"]) -> None:
        """Map some shards, ascending, and prove what is touched of them."""
        self._make_room(sum(shard_id not in self.mapped for shard_id in shard_ids.tolist()))
        per_window, per_shard = self._per_shard // self._layout.windows_per_shard, self._layout.windows_per_shard
        windows = np.unique(vectors // per_window)
        cuts = [*np.searchsorted(windows, shard_ids * per_shard).tolist(), len(windows)]
        per_space = 0
        while per_space != self._per_space:  # shorter spaces are begun anew
            per_space = self._per_space
            for shard_id, (begin, end) in zip(shard_ids.tolist(), pairwise(cuts), strict=True):
                self._proven(shard_id, (windows[begin:end] - shard_id * per_shard).tolist())

    def _make_room(self, wanted: int) -> None:
        if len(self.mapped) + wanted > self._max_maps:
            self.mapped, self._spaces = {}, {}

    def _proven(self, shard_id: int, touched: Iterable[int]) -> MappedShard:
        mapped = self.mapped.get(shard_id)
        if mapped is None:
            mapped = self._map(shard_id)
        if shard_id in self._unproven:
            self._prove(shard_id, mapped, touched)
        if shard_id not in self._unproven:
            space = self._space_of(shard_id)
            space.is_ready[shard_id - space.first_shard] = True
        return mapped

    def _map(self, shard_id: int) -> MappedShard:
        receipt = self._receipts[shard_id]
        try:
            descriptor = open_shard(self._layout, shard_id, size_bytes=receipt.size_bytes)
        except FileNotFoundError as error:
            raise MissingWindow("the shard's file is gone", where=self._layout.where(shard_id)) from error
        try:
            fits = label_fits(self._layout, shard_id, descriptor, receipt.window_xxh3_64)
            space = self._put(shard_id, descriptor)
        finally:
            os.close(descriptor)
        if not fits and shard_id not in self._unproven:  # published again since this array was opened
            self.distrust(receipt)
        self.mapped[shard_id] = view_shard(self._layout, shard_id, space)
        return self.mapped[shard_id]

    def _put(self, shard_id: int, descriptor: int) -> Space:
        try:
            space = self._space_of(shard_id)
            space.put(shard_id, descriptor, self._layout.body_bytes(shard_id))
        except OSError as error:
            what = f"the shard cannot be mapped: {error.strerror}"
            fix = "allow more memory to be mapped: ulimit -v unlimited; sysctl vm.max_map_count"
            raise StoreError(what, where=self._layout.where(shard_id), fix=fix) from error
        return space

    def _space_of(self, shard_id: int) -> Space:
        """Return where a shard belongs; of half the length, if the system gives no more addresses."""
        while True:
            number = shard_id // self._per_space
            if number in self._spaces:
                return self._spaces[number]
            first = number * self._per_space
            try:
                space = Space(self._layout, first, min(self._per_space, self._layout.n_shards - first))
            except (OSError, OverflowError, ValueError):
                if self._per_space == 1:
                    raise
                self._per_space = -(-self._per_space // 2)
                self.mapped, self._spaces = {}, {}
                continue
            self._spaces[number] = space
            return space

    def _prove(self, shard_id: int, mapped: MappedShard, touched: Iterable[int]) -> None:
        """Check the hashes of windows that are read for the first time."""
        unproven, step = self._unproven[shard_id], self._layout.window_rows
        for place in unproven.intersection(touched):
            digest = window_hash(mapped.whole[place * step : (place + 1) * step])
            if digest != self._receipts[shard_id].window_xxh3_64[place]:
                window = shard_id * self._layout.windows_per_shard + place
                raise DamagedShard(
                    f"window {window} does not hash to what its receipt says",
                    where=self._layout.where(shard_id),
                    fix="run tfbind verify --deep, then tfbind repair, then embed again",
                )
            unproven.discard(place)
        if not unproven:
            del self._unproven[shard_id]
