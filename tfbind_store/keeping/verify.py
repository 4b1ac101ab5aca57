"""Check a store against what it says of itself; change nothing.

Two depths. The plain one looks at everything but the rows' bytes: ``store.json``, the catalog's snapshot, array
metadata, receipts, and of each shard kind, size, index and label. The deep one reads every byte: hash of each file and
window, finite values where a window is ok, NaN where it is not, the genome's md5, the snapshot's hash. Files are read,
never mapped. Recomputing windows with their model is ``precompute.canaries``; setting things right is ``repair``.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.arrays.receipts import Receipt, WindowState, receipt_path
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.arrays.shards import (
    holds_nothing,
    label_fits,
    largest_magnitude,
    open_shard,
    read_window,
    window_hash,
)
from tfbind_store.arrays.transforms import read_transform, transforms_of
from tfbind_store.errors import DamagedShard, TfbindError
from tfbind_store.store.folder import Store

_LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
Progress = Callable[[int], object]


class Kind(StrEnum):
    """What a problem is about; decides what `repair` does."""

    array = "array"
    """Metadata of a whole array: written again from the catalog's record of it, or put back from a copy."""
    receipt = "receipt"
    """A receipt that is no receipt of this place."""
    missing = "missing"
    """A receipt whose shard is gone."""
    shard = "shard"
    """A shard that is not the file its receipt is about."""
    unsettled = "unsettled"
    """A shard newer than its receipt: a writer is at work, or died between the two."""
    window = "window"
    """One window's bytes or numbers."""
    transform = "transform"
    """A map that an array is read with, or was made with."""
    canary = "canary"
    """A window that its model does not give."""
    catalog = "catalog"
    """The snapshot that readers open."""
    genome = "genome"
    """The store's own bases."""


class Problem(NamedTuple):
    """One thing that is not as it should be."""

    kind: Kind
    what: str
    path: str
    array: str = ""
    shard: int | None = None
    window: int | None = None
    """Number of the window in the array; for proteins, of the run of 64 residues."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was looked at and what is wrong with it."""

    deep: bool
    n_arrays: int
    n_shards: int
    n_windows: int
    """Windows that are ok by their receipts."""
    bytes_read: int
    """Of shards; 0 unless deep."""
    n_canaries: int
    seconds: float
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require_clean(self, store: Path) -> None:
        """Raise if anything is wrong.

        Raises
        ------
        DamagedShard
            With the number of problems and the first of them.
        """
        if self.problems:
            first = self.problems[0]
            kinds = {problem.kind for problem in self.problems}
            what = f"{len(self.problems)} problems; first: {first.what}"
            raise DamagedShard(what, where=first.path, fix=_fix(kinds, store))


def _fix(kinds: set[Kind], store: Path) -> str:
    if kinds == {Kind.genome}:
        return "put the file back from a copy of the store"
    if kinds == {Kind.transform}:
        return "put the file back from a copy, or run the command that made the array again"
    if kinds == {Kind.catalog}:
        return f"tfbind rebuild-catalog {store}"
    return f"tfbind repair {store}, then embed again"


def verify_store(store: Store, *, deep: bool = False, on_bytes: Progress | None = None) -> VerifyReport:
    """Check all of a store.

    Parameters
    ----------
    store
        Opened: its ``store.json`` is whole.
    deep
        Read every byte.
    on_bytes
        Called with the size of each shard that was read.
    """
    started = time.monotonic()
    problems = [*_catalog_problems(store, deep=deep), *(_genome_problems(store) if deep else ())]
    n_shards = n_windows = bytes_read = 0
    unreadable = store.unreadable_arrays()
    problems += [Problem(Kind.array, error.what, error.where, name) for name, error in unreadable.items()]
    names = [name for name in store.array_names() if name not in unreadable]
    for name in names:
        array = store.array(name, on_damage="exclude")
        problems += [*damaged_shards(array), *_transform_problems(store, array)]
        for shard_id, receipt in sorted(array.receipts().items()):
            problems += verify_shard(array.layout, receipt, deep=deep)
            n_shards += 1
            n_windows += receipt.count(WindowState.ok)
            if deep and shard_id not in array.damaged:
                bytes_read += receipt.size_bytes
                if on_bytes:
                    on_bytes(receipt.size_bytes)
        n_shards += len(array.damaged)
    return VerifyReport(
        deep=deep,
        n_arrays=len({*names, *unreadable}),
        n_shards=n_shards,
        n_windows=n_windows,
        bytes_read=bytes_read,
        n_canaries=0,
        seconds=time.monotonic() - started,
        problems=tuple(problems),
        notes=tuple(_strangers(store, names)),
    )


def _strangers(store: Store, names: list[str]) -> Iterator[str]:
    """Say where receipts lie that are of no array: one that was replaced, or whose spec somebody edited."""
    for name in names:
        short = store.array(name, on_damage="exclude").spec.short_id
        for folder in sorted((store.path / "receipts" / name).glob("*")):
            if folder.name != short and any(folder.glob("*.json")):
                yield f"{name} is {short}; the receipts in {folder.name} are of another array and are not read"


def _transform_problems(store: Store, array: ShardedArray) -> Iterator[Problem]:
    """Yield the maps of an array that are not there, or not what its spec names."""
    for sha256 in transforms_of(array.spec.identity):
        try:
            read_transform(store.path, sha256)
        except TfbindError as error:
            yield Problem(Kind.transform, error.what, error.where, array.layout.name)


def damaged_shards(array: ShardedArray) -> Iterator[Problem]:
    """Yield the shards that opening the array refuses."""
    layout = array.layout
    for shard_id, error in sorted(array.damaged.items()):
        if error.where.endswith(".json"):
            kind = Kind.receipt
        elif "gone" in error.what:
            kind = Kind.missing
        else:
            kind = Kind.shard
        yield Problem(kind, error.what, error.where, layout.name, shard_id)


def verify_shard(layout: ArrayLayout, receipt: Receipt, *, deep: bool) -> list[Problem]:
    """Return what is wrong with one shard that has a valid receipt; empty where it is what its receipt says."""
    shard_id, where = receipt.shard_id, layout.where(receipt.shard_id)
    try:
        descriptor = open_shard(layout, shard_id, size_bytes=receipt.size_bytes)
    except (DamagedShard, FileNotFoundError):
        return []  # `damaged_shards` names it
    try:
        fits = label_fits(layout, shard_id, descriptor, receipt.window_xxh3_64)
        found = list(_byte_problems(layout, receipt, descriptor, is_newer=not fits)) if deep else []
    except (DamagedShard, OSError) as error:
        return [Problem(Kind.shard, f"cannot be read: {error}", where, layout.name, shard_id)]
    finally:
        os.close(descriptor)
    if not fits:
        what = "the shard's label does not fit its receipt: another array's, or a writer died before its receipt"
        found.insert(0, Problem(Kind.unsettled, what, where, layout.name, shard_id))
        if len(found) == 2 and found[1].kind is Kind.shard:  # the file's hash says the same once more
            found.pop()
    return found


def _byte_problems(layout: ArrayLayout, receipt: Receipt, descriptor: int, *, is_newer: bool) -> Iterator[Problem]:
    """Read a shard once and compare file, windows and numbers with the receipt.

    A shard that is newer than its receipt may hold windows of which the receipt does not know yet.
    """
    shard_id, where = receipt.shard_id, layout.where(receipt.shard_id)
    first = shard_id * layout.windows_per_shard
    whole, largest = xxhash.xxh3_128(), 0.0
    bad = False
    for place, (state, digest) in enumerate(zip(receipt.states, receipt.window_xxh3_64, strict=True)):
        data = read_window(layout, shard_id, place, descriptor)
        whole.update(data)
        values = np.frombuffer(data, dtype=layout.dtype)
        what = ""
        if state is not WindowState.ok:
            is_empty = is_newer or holds_nothing(layout, values)
            what = "" if is_empty else f"window {first + place} is {state} but holds numbers"
        elif window_hash(data) != digest:
            what = f"window {first + place} does not hash to what its receipt says"
        elif (magnitude := largest_magnitude(values, may_be_nan=layout.may_hold_nan)) is None:
            what = f"window {first + place} holds a value that is not finite"
        else:
            largest = max(largest, magnitude)
        if what:
            bad = True
            yield Problem(Kind.window, what, where, layout.name, shard_id, first + place)
    whole.update(os.pread(descriptor, layout.tail_bytes, layout.body_bytes(shard_id)))
    if bad:
        return
    if whole.hexdigest() != receipt.xxh3_128:
        yield Problem(Kind.shard, "the file does not hash to what its receipt says", where, layout.name, shard_id)
    elif receipt.absmax is not None and largest != receipt.absmax:
        what = f"largest value is {largest:g}, the receipt says {receipt.absmax:g}"
        path = str(receipt_path(layout.receipts_dir, shard_id))
        yield Problem(Kind.receipt, what, path, layout.name, shard_id)


def _catalog_problems(store: Store, *, deep: bool) -> list[Problem]:
    try:
        if deep:
            store.snapshots.require_whole()
        with store.reader() as catalog:
            catalog.one("SELECT count(*) FROM data.shards")
    except (TfbindError, OSError) as error:
        what, where = (error.what, error.where) if isinstance(error, TfbindError) else (str(error), str(store.path))
        return [Problem(Kind.catalog, what, where)]
    return []


def _genome_problems(store: Store) -> Iterator[Problem]:
    for info in store.genome.chromosomes:
        codes = store.genome.codes(info.chrom, 0, info.length_bp)
        found = "" if codes.max(initial=0) > 4 else hashlib.md5(_LETTERS[codes], usedforsecurity=False).hexdigest()
        if found != info.md5:
            path = str(store.path / "genome" / "codes.u8")
            yield Problem(Kind.genome, f"{info.chrom} is not the sequence that store.json names", path)
