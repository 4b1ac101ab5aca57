"""Set aside what `verify` finds wrong, keep what is right, delete nothing.

A shard with a problem goes to ``quarantine/`` together with its receipt: the receipt first, for without one the shard
does not exist. Windows of it whose bytes fit their hashes are published again at once; the others are not asked for
any more as far as receipts say, so the command that embedded them computes them again. An array's metadata are written
again from the catalog, which has kept spec, shape and shard size.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from tfbind_store.arrays.commit import publish_shard
from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.arrays.receipts import Receipt, WindowState, read_receipt, receipt_path
from tfbind_store.arrays.sharded import create_array
from tfbind_store.arrays.shards import largest_magnitude, read_window, window_hash
from tfbind_store.durable import REAL, FileSystem, file_lock, make_directory, typed_errors
from tfbind_store.errors import DamagedShard, StoreBusy
from tfbind_store.keeping.verify import Kind, Problem, VerifyReport
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import CHUNK_ROWS, Store

_OF_SHARDS = (Kind.receipt, Kind.missing, Kind.shard, Kind.unsettled, Kind.window, Kind.canary)


class Mended(NamedTuple):
    """What became of one shard."""

    array: str
    shard: int
    n_kept: int
    """Windows published again."""
    n_lost: int
    """Windows to be embedded again."""


class RepairReport(NamedTuple):
    """What was set aside and what is left to do."""

    shards: tuple[Mended, ...]
    quarantine: str
    """Folder of what was set aside; empty where nothing was."""
    arrays: tuple[str, ...]
    """Arrays whose metadata were written again."""
    left: tuple[Problem, ...]
    """What is not mended here: the genome, the catalog, metadata that the catalog has not kept, and what is wrong
    inside an array that could not be read until now."""

    @property
    def n_lost(self) -> int:
        """Windows to be embedded again."""
        return sum(shard.n_lost for shard in self.shards)


def repair_store(store: Store, report: VerifyReport, *, fs: FileSystem = REAL) -> RepairReport:
    """Quarantine the shards in which `report` found problems, and republish what is good in them.

    Raises
    ------
    StoreBusy
        If somebody is writing to an array that is to be repaired.
    """
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    folder = store.path / "quarantine" / f"{stamp}-{secrets.token_hex(3)}"
    mended: list[Mended] = []
    broken = [problem for problem in report.problems if problem.kind is Kind.array]
    restored = [problem.array for problem in broken if restore_metadata(store, problem.array, folder, fs=fs)]
    by_shard: dict[tuple[str, int], list[Problem]] = {}
    for problem in report.problems:
        if problem.kind in _OF_SHARDS and problem.shard is not None:
            by_shard.setdefault((problem.array, problem.shard), []).append(problem)
    for (name, shard_id), problems in sorted(by_shard.items()):
        layout = store.array(name, on_damage="exclude").layout
        mended.append(repair_shard(layout, shard_id, problems, folder / name, fs=fs))
    if mended or restored:
        with store.writer():
            pass
    settled = {(Kind.array, name) for name in restored}
    left = tuple(p for p in report.problems if p.kind not in _OF_SHARDS and (p.kind, p.array) not in settled)
    return RepairReport(tuple(mended), str(folder) if folder.exists() else "", tuple(restored), left)


def restore_metadata(store: Store, name: str, aside: Path, *, fs: FileSystem = REAL) -> bool:
    """Write an array's ``zarr.json`` again as the catalog recorded it; what was there goes to the folder `aside`.

    Returns
    -------
    False where the catalog has not kept it, or its receipts are of something else: nothing is touched then.
    """
    with store.reader() as catalog:
        found = catalog.one("SELECT spec, shape, shard_rows FROM data.arrays WHERE array_name = ?", [name])
    if found is None:
        return False
    spec, shape, shard_rows = EmbeddingSpec.from_json(json.loads(found[0])), found[1], int(found[2])
    receipts = [int(path.stem) for path in store.receipts_dir(name, spec.fingerprint).glob("[0-9]*.json")]
    if not receipts:
        return False
    path = store.array_path(name)
    n_rows = int(shape[0])
    if spec.kind != "windows":  # it may have grown since the catalog was written
        n_rows = max(n_rows, (max(receipts) + 1) * shard_rows)
    if os.path.lexists(path / "zarr.json"):
        make_directory(aside / name, fs=fs)
        _move(path / "zarr.json", aside / name, fs)
    row = tuple(map(int, shape[1:]))
    chunk = (CHUNK_ROWS[spec.kind], *row)
    create_array(path, spec, shape=(n_rows, *row), shard=(shard_rows, *row), chunk=chunk, fs=fs)
    return True


def repair_shard(
    layout: ArrayLayout, shard_id: int, problems: Collection[Problem], aside: Path, *, fs: FileSystem = REAL
) -> Mended:
    """Move one shard and its receipt to the folder `aside` and publish its good windows again."""
    with file_lock(layout.writing_lock, blocking=False) as held:
        if not held:
            what = "somebody is writing to the array"
            raise StoreBusy(what, where=layout.name, fix="repair when the run has ended")
        receipt = _receipt(layout, shard_id)
        # a canary says that the numbers are another model's: no window of that shard is to be trusted
        trusted = receipt is not None and all(problem.kind is not Kind.canary for problem in problems)
        kept = _good_windows(layout, receipt) if receipt is not None and trusted else {}
        make_directory(aside, fs=fs)
        _move(receipt_path(layout.receipts_dir, shard_id), aside, fs)
        _move(layout.shard_path(shard_id), aside, fs)
    n_ok = layout.windows_in(shard_id) if receipt is None else receipt.count(WindowState.ok)
    if receipt is not None and kept:
        _publish_again(layout, receipt, kept, fs)
    return Mended(layout.name, shard_id, len(kept), n_ok - len(kept))


def _receipt(layout: ArrayLayout, shard_id: int) -> Receipt | None:
    with contextlib.suppress(DamagedShard):
        receipt = read_receipt(receipt_path(layout.receipts_dir, shard_id))
        if receipt is not None and receipt.fingerprint == layout.fingerprint and receipt.shard_id == shard_id:
            return receipt
    return None


def _good_windows(layout: ArrayLayout, receipt: Receipt) -> dict[int, bytes]:
    """Return the bytes of ok windows that fit their hashes and are finite, whatever the rest of the file is."""
    good: dict[int, bytes] = {}
    path = layout.shard_path(receipt.shard_id)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return good
    try:
        for place, digest in enumerate(receipt.window_xxh3_64):
            with contextlib.suppress(DamagedShard, OSError):
                data = read_window(layout, receipt.shard_id, place, descriptor) if digest else b""
                values = np.frombuffer(data, dtype=layout.dtype)
                largest = largest_magnitude(values, may_be_nan=layout.may_hold_nan)
                if digest and window_hash(data) == digest and largest is not None:
                    good[place] = data
    finally:
        os.close(descriptor)
    return good


def _publish_again(layout: ArrayLayout, receipt: Receipt, kept: dict[int, bytes], fs: FileSystem) -> None:
    shape = (layout.windows_in(receipt.shard_id) * layout.window_rows, *layout.row_shape)
    data: Shaped[np.ndarray, "rows ..."] = np.full(shape, layout.fill, dtype=layout.dtype)
    lost = WindowState.not_asked
    states: list[WindowState] = [lost if state is WindowState.ok else state for state in receipt.states]
    for place, content in kept.items():
        rows = np.frombuffer(content, dtype=layout.dtype).reshape(-1, *layout.row_shape)
        data[place * layout.window_rows :][: layout.window_rows] = rows
        states[place] = WindowState.ok
    provenance = {**receipt.provenance, "repaired_generation": receipt.generation}
    publish_shard(
        layout,
        receipt.shard_id,
        data[: layout.rows_in(receipt.shard_id)],
        states,
        reasons=receipt.reasons,
        provenance=provenance,
        fs=fs,
    )


def _move(path: Path, folder: Path, fs: FileSystem) -> None:
    with typed_errors(path), contextlib.suppress(FileNotFoundError):
        fs.rename(path, folder / path.name)
        fs.fsync_directory(folder)
        fs.fsync_directory(path.parent)
