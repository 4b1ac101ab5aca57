"""Embed shards: the one thing that every engine runs, in this process or another.

One shard is one unit of work: its windows are embedded, checked and published together. Doing a shard twice is
harmless: windows that are ok stay as they are. A window whose numbers are not finite or too large, or that breaks the
embedder three times, is recorded as failed with its reason, and the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from tfbind_store.arrays.commit import claim_shard
from tfbind_store.arrays.receipts import Receipt, read_receipt, receipt_path
from tfbind_store.arrays.sharded import ArrayLayout, ShardedArray, WindowState
from tfbind_store.errors import DamagedShard, SpecError
from tfbind_store.precompute import precision
from tfbind_store.precompute.attempts import Attempts, try_windows
from tfbind_store.precompute.embedder import WindowEmbedder
from tfbind_store.precompute.plan import ShardWork
from tfbind_store.precompute.shard_writer import Computed, Published, ShardWriter
from tfbind_store.precompute.stopping import StopRequest
from tfbind_store.precompute.upkeep import to_stored
from tfbind_store.store.folder import Store

CANARY_COSINE = 0.9999
"""Below this, a stored window and the same window embedded now are not of one model."""
_log = logging.getLogger(__name__)
Progress = Callable[[int], object]


@dataclass(frozen=True)
class WindowJob:
    """All that embedding some shards of one array needs."""

    store: Store
    embedder: WindowEmbedder
    layout: ArrayLayout

    def embed(self, windows: Sequence[int]) -> Iterator[tuple[int, Float32[np.ndarray, "n_bins dim"]]]:
        """Yield the numbers of windows, in order."""
        genome = self.store.genome
        return iter(self.embedder.embed(windows, lambda locus: genome.codes(*locus), self.store.tiling))

    def once(self, embedder: WindowEmbedder, window: int) -> Float32[np.ndarray, "n_bins dim"]:
        """Return one window's numbers by another embedder."""
        (found,) = WindowJob(self.store, embedder, self.layout).embed([window])
        return found[1]


def embed_shards(
    job: WindowJob,
    works: Iterable[ShardWork],
    *,
    stop: StopRequest | None = None,
    on_windows: Progress | None = None,
    n_waiting: int = 1,
) -> Iterator[Published]:
    """Embed and publish shards one after the other, the next computed while the last is written.

    A shard that another process on this machine works on is put last; what it has published by then is not computed
    again. On a stop request the shard at hand is published with what it has, and the rest is left.

    Parameters
    ----------
    job, works
        With what, and which.
    stop, on_windows
        Looked at, and called, after each window.
    n_waiting
        Finished shards that may wait in memory for the disk; -1 computes and writes in turn.
    """
    waiting = [(work, False) for work in works]
    before = generations(job.layout, [work for work, _ in waiting])
    is_first = not any(job.layout.receipts_dir.glob("[0-9]*.json"))
    with ShardWriter(job.layout, n_waiting=n_waiting) as writer:
        while waiting and not stop:
            work, is_second_try = waiting.pop(0)
            with contextlib.ExitStack() as claim:
                held = claim.enter_context(claim_shard(job.layout, work.shard_id))
                if not held and not is_second_try:
                    waiting.append((work, True))
                    continue
                left = still_missing(job.layout, work, since=before[work.shard_id])
                if left.compute or left.all_n:
                    attempts = Attempts(job.layout, work.shard_id)
                    try:
                        with_canary = is_first or work.shard_id % precision.EVERY_SHARDS == 0
                        computed = _compute_shard(job, left, attempts, stop, on_windows, with_canary)
                        is_first = False
                    finally:
                        attempts.done()  # only a process that is killed at it leaves its count behind
                    yield from writer.put(computed, claim.pop_all().close)
        yield from writer.drain()


def generations(layout: ArrayLayout, works: Iterable[ShardWork]) -> dict[int, int]:
    """Return how often each shard has been published; 0 where it is not there."""
    receipts = {work.shard_id: _receipt(layout, work.shard_id) for work in works}
    return {shard_id: receipt.generation if receipt else 0 for shard_id, receipt in receipts.items()}


def still_missing(layout: ArrayLayout, work: ShardWork, *, since: int) -> ShardWork:
    """Return `work` without what has been published since it was planned, at generation `since`.

    A window that failed since then has had its tries; one that failed before is to be tried again.
    """
    receipt = _receipt(layout, work.shard_id)
    if receipt is None:
        return work
    settled = {WindowState.ok, WindowState.all_n, *([WindowState.failed] if receipt.generation > since else [])}
    first = work.shard_id * layout.windows_per_shard
    done = {first + place for place, state in enumerate(receipt.states) if state in settled}
    compute, all_n = (tuple(w for w in windows if w not in done) for windows in (work.compute, work.all_n))
    return ShardWork(work.shard_id, compute, all_n)


def _receipt(layout: ArrayLayout, shard_id: int) -> Receipt | None:
    """Return a shard's receipt if it is one and its file is there."""
    try:
        receipt = read_receipt(receipt_path(layout.receipts_dir, shard_id))
    except DamagedShard:
        return None
    is_ours = receipt is not None and receipt.fingerprint == layout.fingerprint
    return receipt if is_ours and layout.shard_path(shard_id).is_file() else None


def _compute_shard(
    job: WindowJob,
    work: ShardWork,
    attempts: Attempts,
    stop: StopRequest | None,
    on_windows: Progress | None,
    with_canary: bool,
) -> Computed:
    layout, started = job.layout, time.monotonic()
    first = work.shard_id * layout.windows_per_shard
    states = [WindowState.not_asked] * layout.windows_in(work.shard_id)
    reasons: dict[int, str] = {}
    data = np.full((layout.rows_in(work.shard_id), *layout.row_shape), layout.fill, dtype=layout.dtype)
    for window in work.all_n:
        states[window - first] = WindowState.all_n
    n_computed = 0
    canary: precision.Canary | None = None
    halve = getattr(job.embedder, "halve_batch", None)
    tried = try_windows(job.embed, work.compute, attempts, halve_batch=halve) if work.compute else ()
    for window, values, trouble in tried:
        row = data[window - first]
        reason = trouble if values is None else to_stored(values, layout.dtype, row)[1]
        states[window - first] = WindowState.failed if reason else WindowState.ok
        if reason:
            reasons[window - first] = reason
            _log.warning("window %d (%s) failed: %s", window, job.store.tiling.kept(window), reason)
        elif with_canary and canary is None and values is not None:
            canary = precision.Canary(window, values)
        n_computed += 1
        if on_windows:
            on_windows(1)
        if stop:
            break
    provenance = {"seconds": round(time.monotonic() - started, 3), "n_computed": n_computed}
    provenance |= precision.precision_error(job.embedder, canary, job.once)
    return Computed(work.shard_id, data, states, reasons, provenance)


def require_same_numbers(job: WindowJob, array: ShardedArray) -> None:
    """Embed one stored window again and compare: the fingerprint says what was meant, this says what is.

    Raises
    ------
    SpecError
        If the two are not the same window of the same model.
    """
    ok = np.flatnonzero(array.is_ok(np.arange(array.shape[0])))
    if not ok.size:
        return
    window = int(ok[0])
    _, now = next(iter(job.embed([window])))
    cosine = cosine_of(array.embedded(window).astype(np.float32), now)
    if not cosine >= CANARY_COSINE:
        raise SpecError(
            f"window {window} is stored with other numbers than this embedder gives (cosine {cosine:.6f})",
            where=array.layout.name,
            fix="run tfbind verify, or embed under another name: --name other",
        )


def cosine_of(first: Float32[np.ndarray, "..."], second: Float32[np.ndarray, "..."]) -> float:
    """Return the cosine of the angle between two blocks of numbers."""
    a, b = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))
