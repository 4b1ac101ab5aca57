"""Embed what is missing, shard by shard; the same command again goes on where the last one ended.

What is missing follows from receipts alone (`plan`). One shard is one unit of work: its windows are embedded, checked
and published together. A window whose numbers are not finite, or too large for the stored dtype, is recorded as failed
with its reason and the others go on. Windows that hold only N are recorded, never computed. Here is the serial engine
for genome windows; proteins and texts are in ``rows``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64
from tqdm import tqdm

from tfbind_store.arrays import ArrayLayout, ShardedArray, WindowState, publish_shard
from tfbind_store.commit import claim_shard
from tfbind_store.errors import LocusError, SpecError
from tfbind_store.loci import Locus
from tfbind_store.names import path_safe_name
from tfbind_store.precompute.embedder import WindowEmbedder
from tfbind_store.precompute.outcome import EmbedReport, Failure
from tfbind_store.precompute.plan import Plan, ShardWork, make_plan
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.stopping import StopRequest, stop_requests
from tfbind_store.precompute.upkeep import index, require_space, to_stored
from tfbind_store.receipts import Receipt
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store import Store

__all__ = [
    "EmbedReport",
    "Failure",
    "WindowJob",
    "embed_contexts",
    "embed_factors",
    "embed_shards",
    "embed_windows",
    "plan_windows",
    "windows_of",
]

WINDOWS_PER_SHARD = 32
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


def plan_windows(
    store: Store,
    embedder: WindowEmbedder,
    *,
    name: str = "windows",
    asked: Int64[np.ndarray, " n"] | None = None,
    retry_failed: bool = False,
) -> Plan:
    """Return what `embed_windows` would do; writes nothing.

    Raises
    ------
    SpecError
        If the array is there and was made with something else.
    """
    array_name = store.array_name_for("windows", path_safe_name(name))
    spec = embedder.spec(store.meta.genome, store.grid)
    array = _existing(store, array_name, spec)
    window_bytes = store.grid.n_bins * spec.dim * np.dtype(spec.dtype).itemsize
    return make_plan(
        array.receipts() if array else {},
        n_windows=store.tiling.n_windows,
        windows_per_shard=array.layout.windows_per_shard if array else WINDOWS_PER_SHARD,
        shard_bytes=array.layout.size_bytes(0) if array else WINDOWS_PER_SHARD * (window_bytes + 16),
        all_n=_all_n(store),
        asked=asked,
        retry_failed=retry_failed,
    )


def embed_windows(
    store: Store,
    embedder: WindowEmbedder,
    *,
    name: str = "windows",
    loci: Iterable[Locus] | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> EmbedReport:
    """Embed the windows of a genome that have no receipt yet.

    Parameters
    ----------
    store, embedder
        Where and with what.
    name
        Label of the array; another embedder needs another label.
    loci
        Only windows whose kept bins touch these; None for the whole genome.
    retry_failed
        Try windows again that failed in an earlier run.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    What was done and what failed; see `EmbedReport.require_complete`.

    Raises
    ------
    SpecError
        If the array was made with something else, or does not reproduce its own numbers.
    NoSpace
        Before anything is written, if the disk cannot hold it.
    Interrupted
        On SIGTERM or Ctrl-C, after what was computed has been published.
    """
    started = time.monotonic()
    asked = None if loci is None else windows_of(store, loci)
    plan = plan_windows(store, embedder, name=name, asked=asked, retry_failed=retry_failed)
    array_name = store.array_name_for("windows", name)
    require_space(store, plan.need_bytes, what=array_name)
    if plan.shards:
        spec = embedder.spec(store.meta.genome, store.grid)
        shape = (store.tiling.n_windows, store.grid.n_bins, spec.dim)
        array = store.create_array(array_name, spec, shape, WINDOWS_PER_SHARD)
        job = WindowJob(store, embedder, array.layout)
        if plan.n_compute:
            require_same_numbers(job, array)
        _run(job, plan, progress=progress)
    index(store, array_name)
    return _report(store, array_name, plan, asked, time.monotonic() - started)


def windows_of(store: Store, loci: Iterable[Locus]) -> Int64[np.ndarray, " n"]:
    """Return the windows whose kept bins touch any of `loci`, ascending.

    Raises
    ------
    LocusError
        If a locus is on no chromosome of the store, or empty, or there is none.
    """
    tiling, stride = store.tiling, store.grid.stride_bp
    found: set[int] = set()
    for locus in loci:
        chrom = tiling.chrom_index.get(locus.chrom)
        length = 0 if chrom is None else tiling.lengths_bp[chrom]
        if chrom is None or not 0 <= locus.start < locus.end <= length:
            raise LocusError(f"{locus} does not lie on the genome", where=str(store.path), fix="tfbind info STORE")
        first = int(tiling.first_window[chrom])
        found.update(range(first + locus.start // stride, first + (locus.end - 1) // stride + 1))
    if not found:
        raise LocusError("no loci were given", where=str(store.path))
    return np.array(sorted(found), dtype=np.int64)


def embed_shards(
    job: WindowJob, works: Iterable[ShardWork], *, stop: StopRequest | None = None, on_windows: Progress | None = None
) -> Iterator[Receipt]:
    """Embed and publish shards one after the other: the one thing that every engine runs.

    Doing a shard twice is harmless: windows that are ok stay as they are. A shard that another process on this machine
    works on is put last. On a stop request the shard at hand is published with what it has, and the rest is left.
    """
    waiting = [(work, False) for work in works]
    while waiting and not stop:
        work, is_second_try = waiting.pop(0)
        with claim_shard(job.layout, work.shard_id) as held:
            if not held and not is_second_try:
                waiting.append((work, True))
                continue
            yield _embed_shard(job, work, stop, on_windows)


def _embed_shard(job: WindowJob, work: ShardWork, stop: StopRequest | None, on_windows: Progress | None) -> Receipt:
    layout, started = job.layout, time.monotonic()
    first = work.shard_id * layout.windows_per_shard
    states = [WindowState.not_asked] * layout.windows_in(work.shard_id)
    reasons: dict[int, str] = {}
    data = np.full((layout.rows_in(work.shard_id), *layout.row_shape), np.nan, dtype=layout.dtype)
    for window in work.all_n:
        states[window - first] = WindowState.all_n
    n_computed = 0
    for window, values in job.embed(work.compute):
        stored, reason = to_stored(values, layout.dtype)
        states[window - first] = WindowState.failed if reason else WindowState.ok
        if reason:
            reasons[window - first] = reason
            _log.warning("window %d (%s) failed: %s", window, job.store.tiling.kept(window), reason)
        else:
            data[window - first] = stored
        n_computed += 1
        if on_windows:
            on_windows(1)
        if stop:
            break
    provenance = {"seconds": round(time.monotonic() - started, 3), "n_computed": n_computed}
    return publish_shard(layout, work.shard_id, data, states, reasons=reasons, provenance=provenance)


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
    cosine = cosine_of(array.row(window).astype(np.float32), now)
    if not cosine >= CANARY_COSINE:
        raise SpecError(
            f"window {window} is stored with other numbers than this embedder gives (cosine {cosine:.6f})",
            where=array.layout.name,
            fix="run tfbind verify, or embed under another name: --name other",
        )


def _run(job: WindowJob, plan: Plan, *, progress: bool) -> None:
    bar = tqdm(total=plan.n_compute, unit="window", disable=not progress)
    with bar, stop_requests() as stop:
        for receipt in embed_shards(job, plan.shards, stop=stop, on_windows=bar.update):
            _log.info("shard %d of %s published", receipt.shard_id, job.layout.name)
        if stop:
            index(job.store, job.layout.name)
            raise stop.error("what was computed is published", where=job.layout.name)


def _report(
    store: Store, array_name: str, plan: Plan, asked: Int64[np.ndarray, " n"] | None, seconds: float
) -> EmbedReport:
    array = store.array(array_name, on_damage="exclude")
    windows = range(array.shape[0]) if asked is None else asked.tolist()
    receipts, per_shard = array.receipts(), array.layout.windows_per_shard
    failures = [
        Failure(
            window, str(store.tiling.kept(window)), receipts[window // per_shard].reasons.get(window % per_shard, "")
        )
        for window in windows
        if array.state(window) is WindowState.failed
    ]
    n_missing = sum(array.state(window) is WindowState.not_asked for window in windows)
    return EmbedReport(
        array=array_name,
        unit="window",
        n_asked=plan.n_asked,
        n_done_before=plan.n_done,
        n_computed=plan.n_compute,
        n_all_n=sum(array.state(window) is WindowState.all_n for window in windows),
        n_missing=n_missing,
        failures=tuple(failures),
        seconds=seconds,
    )


def _existing(store: Store, array_name: str, spec: EmbeddingSpec) -> ShardedArray | None:
    if array_name not in store.array_names():
        return None
    array = store.array(array_name, on_damage="exclude")
    fix = f"keep it and embed under another name: --name other (now {array_name.partition('/')[2]})"
    array.spec.require_same(spec, where=array_name, fix=fix)
    return array


def _all_n(store: Store) -> Bool[np.ndarray, " n_windows"]:
    with store.reader() as catalog:
        found = catalog.columns("SELECT n_fraction FROM data.windows ORDER BY window_id")["n_fraction"]
    return np.asarray(found >= 1)


def cosine_of(first: Float32[np.ndarray, "..."], second: Float32[np.ndarray, "..."]) -> float:
    """Return the cosine of the angle between two blocks of numbers."""
    a, b = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))
