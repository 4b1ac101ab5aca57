"""The mapped shards of an open array, and the windows whose bytes are still to be checked.

A window is *unproven* where the array was opened with first-touch checking, or where a shard's label is not what its
receipt says (a writer is publishing it again): its hash is compared when it is first read.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.arrays.receipts import Receipt, WindowState
from tfbind_store.arrays.shards import MappedShard, label_fits, map_shard, open_shard, window_hash
from tfbind_store.errors import DamagedShard, MissingWindow


class ShardMaps:
    """Maps shards when they are first read, and keeps as many mapped as the system allows.

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
        self.mapped: OrderedDict[int, MappedShard] = OrderedDict()
        """What is mapped now."""
        self._max_maps = _affordable_maps(layout.n_shards)
        self._unproven: dict[int, set[int]] = {}

    @property
    def all_proven(self) -> bool:
        """Whether no window is left to be checked."""
        return not self._unproven

    def distrust(self, receipt: Receipt) -> None:
        """Have every window of a shard checked when it is first read."""
        self._unproven[receipt.shard_id] = {p for p, s in enumerate(receipt.states) if s is WindowState.ok}

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
        if mapped is None:
            mapped = self._map(shard_id)
        if shard_id in self._unproven:
            self._prove(shard_id, mapped, touched)
        return mapped

    def _map(self, shard_id: int) -> MappedShard:
        receipt = self._receipts[shard_id]
        try:
            descriptor = open_shard(self._layout, shard_id, size_bytes=receipt.size_bytes)
        except FileNotFoundError as error:
            raise MissingWindow("the shard's file is gone", where=self._layout.where(shard_id)) from error
        try:
            fits = label_fits(self._layout, shard_id, descriptor, receipt.window_xxh3_64)
            mapped = map_shard(self._layout, shard_id, descriptor)
        finally:
            os.close(descriptor)
        if not fits and shard_id not in self._unproven:  # published again since this array was opened
            self.distrust(receipt)
        self.mapped[shard_id] = mapped
        while len(self.mapped) > self._max_maps:
            self.mapped.popitem(last=False)
        return mapped

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


def _affordable_maps(n_shards: int) -> int:
    """Return how many shards to keep mapped: each costs a descriptor, so the soft limit is raised where that helps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * n_shards + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, ceiling), hard))
            soft = max(soft, ceiling)
    return n_shards if soft == resource.RLIM_INFINITY else max(16, soft // 2)
