"""Publish one shard so that no crash, race or full disk can lose or tear a window.

The order: temporary file (O_EXCL), write, fsync, rename, fsync of the directory, then the receipt in the same way.
Windows that are already ok are never changed: what is there is merged in (its bytes checked against their hashes), so
two writers that fill different gaps of one shard both keep their work, and one that brings nothing new writes nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Shaped

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.arrays.receipts import Receipt, WindowState, read_receipt, receipt_path
from tfbind_store.arrays.shards import (
    index_bytes,
    label_bytes,
    label_fits,
    largest_magnitude,
    open_shard,
    read_window,
    window_hash,
)
from tfbind_store.durable import (
    REAL,
    FileSystem,
    discard,
    file_lock,
    make_directory,
    publish,
    publish_temporary,
    write_temporary,
)
from tfbind_store.errors import DamagedShard, EmbeddingError

_log = logging.getLogger(__name__)
_COMMIT_LOCK = "commit.lock"


@dataclass
class _Content:
    """A shard about to be written."""

    rows: Shaped[np.ndarray, "rows ..."]
    states: list[WindowState]
    hashes: list[str | None]
    reasons: dict[int, str]
    replaces_damage: bool
    """Whether a window that should be there no longer fits its hash."""


def publish_shard(
    layout: ArrayLayout,
    shard_id: int,
    data: Shaped[np.ndarray, "rows ..."],
    states: Sequence[WindowState],
    *,
    reasons: Mapping[int, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    fs: FileSystem = REAL,
) -> Receipt:
    """Write one whole shard and its receipt, keeping every window that is ok already.

    Parameters
    ----------
    layout
        Of the array.
    shard_id
        Which shard.
    data
        All rows of the shard, in the stored dtype; rows of windows that are not ok may hold anything.
    states
        One for each window (inner chunk). ``not_asked`` leaves what is there.
    reasons
        Why a failed window failed, by its place in the shard.
    provenance
        Goes into the receipt beside host and versions.
    fs
        The calls to the operating system.

    Returns
    -------
    The shard's receipt: the one there was if this call brings nothing new, else that of the new generation.

    Raises
    ------
    EmbeddingError
        If an ok window holds a value that is not finite, or data do not fit the layout. Nothing is written.
    NoSpace, StoreReadOnly, StoreError
        If the disk refuses. What was published before stays.
    """
    _require_fits(layout, shard_id, data, states)
    make_directory(layout.receipts_dir, fs=fs)
    with file_lock(layout.writing_lock, shared=True):
        while True:
            current = _current(layout, shard_id)
            content = _merged(layout, shard_id, data, list(states), dict(reasons or {}), current)
            is_new = content.replaces_damage or current is None or tuple(content.states) != current.states
            if current is not None and not is_new and _is_settled(layout, current):
                return current
            receipt = _commit(layout, shard_id, content, current, dict(provenance or {}), fs)
            if receipt is not None:
                return receipt


def _require_fits(
    layout: ArrayLayout, shard_id: int, data: Shaped[np.ndarray, "rows ..."], states: Sequence[WindowState]
) -> None:
    where = layout.where(shard_id)
    if not 0 <= shard_id < layout.n_shards:
        raise EmbeddingError(f"shard {shard_id} is not one of the array's {layout.n_shards}", where=where)
    shape = (layout.rows_in(shard_id), *layout.row_shape)
    if data.shape != shape or data.dtype != layout.dtype:
        what = f"got {data.dtype} of shape {data.shape}, the shard holds {layout.dtype} of shape {shape}"
        raise EmbeddingError(what, where=where)
    if len(states) != layout.windows_in(shard_id):
        raise EmbeddingError(f"{len(states)} states for {layout.windows_in(shard_id)} windows", where=where)
    for place, state in enumerate(states):
        if state is WindowState.ok and _largest(layout, data, place) is None:
            window = shard_id * layout.windows_per_shard + place
            fix = "record the window as failed, with its reason"
            raise EmbeddingError(f"window {window} holds a value that is not finite", where=where, fix=fix)


def _largest(layout: ArrayLayout, rows: Shaped[np.ndarray, "rows ..."], place: int) -> float | None:
    return largest_magnitude(_rows_of(layout, rows, place), may_be_nan=layout.may_hold_nan)


def _rows_of(layout: ArrayLayout, rows: Shaped[np.ndarray, "rows ..."], place: int) -> Shaped[np.ndarray, "w ..."]:
    return rows[place * layout.window_rows : (place + 1) * layout.window_rows]


def _current(layout: ArrayLayout, shard_id: int) -> Receipt | None:
    try:
        receipt = read_receipt(receipt_path(layout.receipts_dir, shard_id))
    except DamagedShard as error:
        _log.warning("a damaged receipt is replaced: %s", error)
        return None
    if receipt is not None and (receipt.fingerprint, receipt.shard_id) != (layout.fingerprint, shard_id):
        _log.warning("a receipt of another place is replaced: %s", receipt_path(layout.receipts_dir, shard_id))
        return None
    return receipt


def _is_settled(layout: ArrayLayout, receipt: Receipt) -> bool:
    """Whether the shard on disk is, by its index and label, the one that the receipt is about."""
    try:
        descriptor = open_shard(layout, receipt.shard_id, size_bytes=receipt.size_bytes)
    except (DamagedShard, FileNotFoundError):
        return False
    try:
        return label_fits(layout, receipt.shard_id, descriptor, receipt.window_xxh3_64)
    finally:
        os.close(descriptor)


def _merged(
    layout: ArrayLayout,
    shard_id: int,
    data: Shaped[np.ndarray, "rows ..."],
    states: list[WindowState],
    reasons: dict[int, str],
    current: Receipt | None,
) -> _Content:
    """Lay the new windows over what is published, which wins where it is ok and its bytes fit their hash."""
    n_rows = layout.windows_in(shard_id) * layout.window_rows
    needs_copy = current is not None or len(data) != n_rows or any(s is not WindowState.ok for s in states)
    rows = np.ascontiguousarray(data)
    if needs_copy:
        rows = np.full((n_rows, *layout.row_shape), layout.fill, dtype=layout.dtype)
        for place, state in enumerate(states):
            if state is WindowState.ok:
                part = _rows_of(layout, data, place)
                rows[place * layout.window_rows :][: len(part)] = part
    replaces_damage = False
    if current is not None:
        kept = _published_windows(layout, current)
        replaces_damage = len(kept) < current.count(WindowState.ok)
        for place, state in enumerate(current.states):
            if place in kept:
                states[place] = WindowState.ok
                _rows_of(layout, rows, place)[:] = kept[place]
                reasons.pop(place, None)
            elif states[place] is WindowState.not_asked and state is not WindowState.ok:
                states[place] = state
                reasons.update({place: current.reasons[place]} if place in current.reasons else {})
    hashes = [
        window_hash(_rows_of(layout, rows, place)) if state is WindowState.ok else None
        for place, state in enumerate(states)
    ]
    failed = {place: reason for place, reason in reasons.items() if states[place] is WindowState.failed}
    return _Content(rows, states, hashes, failed, replaces_damage)


def _published_windows(layout: ArrayLayout, receipt: Receipt) -> dict[int, Shaped[np.ndarray, "w ..."]]:
    """Return the published windows whose bytes fit their hashes, by place."""
    kept: dict[int, Shaped[np.ndarray, "w ..."]] = {}
    try:
        descriptor = open_shard(layout, receipt.shard_id, size_bytes=receipt.size_bytes)
    except (DamagedShard, FileNotFoundError) as error:
        _log.warning("a published shard cannot be kept and is written anew: %s", error)
        return kept
    try:
        for place, digest in enumerate(receipt.window_xxh3_64):
            if digest is None:
                continue
            data = read_window(layout, receipt.shard_id, place, descriptor)
            if window_hash(data) == digest:
                kept[place] = np.frombuffer(data, dtype=layout.dtype).reshape(-1, *layout.row_shape)
            else:
                _log.warning("window %d of %s does not fit its hash", place, layout.where(receipt.shard_id))
    finally:
        os.close(descriptor)
    return kept


def _commit(
    layout: ArrayLayout,
    shard_id: int,
    content: _Content,
    current: Receipt | None,
    provenance: dict[str, Any],
    fs: FileSystem,
) -> Receipt | None:
    """Write shard and receipt; None, and nothing written, if another writer published meanwhile."""
    tail = label_bytes(layout, shard_id, content.hashes) + index_bytes(layout, shard_id)
    parts: list[bytes | memoryview] = [content.rows.data.cast("B"), tail]
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    path = layout.shard_path(shard_id)
    temporary = write_temporary(path, parts, fs=fs)
    magnitudes = [
        _largest(layout, content.rows, place) for place, state in enumerate(content.states) if state is WindowState.ok
    ]
    receipt = Receipt(
        array=layout.name,
        fingerprint=layout.fingerprint,
        shard_id=shard_id,
        generation=1 if current is None else current.generation + 1,
        states=tuple(content.states),
        window_xxh3_64=tuple(content.hashes),
        reasons=content.reasons,
        size_bytes=sum(len(part) for part in parts),
        xxh3_128=digest.hexdigest(),
        absmax=max((m for m in magnitudes if m is not None), default=None),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        provenance={"host": platform.node(), "versions": _versions(), **provenance},
    )
    with file_lock(layout.receipts_dir / _COMMIT_LOCK):
        latest = _current(layout, shard_id)
        if (latest and latest.xxh3_128) != (current and current.xxh3_128):
            discard(temporary, fs=fs)
            return None
        publish_temporary(temporary, path, fs=fs)
        publish(receipt_path(layout.receipts_dir, shard_id), [receipt.to_json()], fs=fs)
    return receipt


@cache
def _versions() -> dict[str, str]:
    names = ("tfbind-store", "numpy", "zarr", "torch", "enformer-pytorch")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def claim_shard(layout: ArrayLayout, shard_id: int) -> Iterator[bool]:
    """Say that this process computes a shard; yields False where another one on this machine does.

    Only saves work: without the claim, two writers both compute and one of them writes nothing.
    """
    make_directory(layout.receipts_dir)
    with file_lock(layout.receipts_dir / f"{shard_id:06d}.lock", blocking=False) as held:
        yield held
