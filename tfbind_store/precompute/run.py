"""Embed what is missing, shard by shard; the same command again goes on where the last one ended.

What is missing follows from receipts alone (`plan`). Windows that hold only N are recorded, never computed. How a shard
is embedded is said in ``shard_work``, who does it in ``engines``; proteins and texts are in ``rows``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.arrays.on_reading import stored_bins
from tfbind_store.arrays.sharded import ShardedArray, WindowState
from tfbind_store.arrays.transforms import write_transform
from tfbind_store.errors import ConfigError, LocusError
from tfbind_store.loci import Locus
from tfbind_store.names import path_safe_name
from tfbind_store.precompute.embedder import WindowEmbedder, limit_memory
from tfbind_store.precompute.engines import Engine, SerialEngine
from tfbind_store.precompute.outcome import EmbedReport, Failure
from tfbind_store.precompute.plan import Plan, make_plan
from tfbind_store.precompute.precision import largest_error
from tfbind_store.precompute.progress import RunProgress, Tell
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.shard_work import CANARY_COSINE, WindowJob, embed_shards, require_same_numbers
from tfbind_store.precompute.stopping import stop_requests
from tfbind_store.precompute.upkeep import index, require_space
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

__all__ = [
    "CANARY_COSINE",
    "EmbedReport",
    "Failure",
    "WindowJob",
    "embed_contexts",
    "embed_factors",
    "embed_shards",
    "embed_windows",
    "plan_windows",
    "require_same_numbers",
    "windows_of",
]

WINDOWS_PER_SHARD = 32
_log = logging.getLogger(__name__)


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
    window_bytes = stored_bins(spec.identity, store.grid.n_bins) * spec.dim * np.dtype(spec.dtype).itemsize
    return make_plan(
        array.receipts() if array else {},
        n_windows=store.tiling.n_windows,
        windows_per_shard=array.layout.windows_per_shard if array else WINDOWS_PER_SHARD,
        shard_bytes=array.layout.size_bytes(0) if array else WINDOWS_PER_SHARD * (window_bytes + 16),
        all_n=all_n_windows(store),
        asked=asked,
        retry_failed=retry_failed,
    )


def embed_windows(
    store: Store,
    embedder: WindowEmbedder,
    *,
    name: str = "windows",
    loci: Iterable[Locus] | None = None,
    windows: Int64[np.ndarray, " n"] | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    engine: Engine | None = None,
    max_memory_bytes: int | None = None,
    tell: Tell | None = None,
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
    windows
        Only these windows, instead of `loci`.
    retry_failed
        Try windows again that failed in an earlier run.
    progress
        Show a progress bar on stderr.
    engine
        Who computes; default this process.
    max_memory_bytes
        What finished shards and a trunk's own numbers may take in memory, weights apart; less makes computing wait for
        the disk, then go on in shorter pieces.
    tell
        Called with a line of text after the first shard: speed, and how long the rest will take.

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
    asked = windows if loci is None else windows_of(store, loci)
    plan = plan_windows(store, embedder, name=name, asked=asked, retry_failed=retry_failed)
    array_name = store.array_name_for("windows", name)
    require_space(store, plan.need_bytes, what=array_name)
    n_waiting = shards_in_memory(plan, max_memory_bytes)
    if plan.n_compute and max_memory_bytes is not None:
        in_shards = min(n_waiting + 3 if n_waiting >= 0 else 2, max_memory_bytes // plan.shard_bytes) * plan.shard_bytes
        limit_memory(embedder, max_memory_bytes - in_shards, store.grid)
    for content in getattr(embedder, "transforms", ()):
        write_transform(store.path, content)
    if plan.shards:
        spec = embedder.spec(store.meta.genome, store.grid)
        shape = (store.tiling.n_windows, stored_bins(spec.identity, store.grid.n_bins), spec.dim)
        array = store.create_array(array_name, spec, shape, WINDOWS_PER_SHARD)
        job = WindowJob(store, embedder, array.layout)
        if plan.n_compute:
            require_same_numbers(job, array)
        with RunProgress(store, plan, show=progress, tell=tell) as shown:
            _run(job, plan, engine or SerialEngine(), shown, n_waiting)
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


def shards_in_memory(plan: Plan, max_bytes: int | None) -> int:
    """Return how many finished shards may wait for the disk; -1 where computing and writing have to take turns.

    Raises
    ------
    ConfigError
        If not even one shard fits.
    """
    if max_bytes is None or not plan.shards:
        return 1
    n = max_bytes // plan.shard_bytes
    if n < 1:
        what = f"a shard takes {plan.shard_bytes:,} bytes of memory, {max_bytes:,} are allowed"
        raise ConfigError(what, where="--max-memory", fix=f"allow at least {plan.shard_bytes:,} bytes")
    return min(int(n) - 3, 1) if n >= 2 else -1


def _run(job: WindowJob, plan: Plan, engine: Engine, shown: RunProgress, n_waiting: int) -> None:
    with stop_requests() as stop:
        for published in engine.embed(job, plan.shards, stop=stop, on_windows=shown.windows, n_waiting=n_waiting):
            shown.shard(published)
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
        precision_rms=largest_error(receipts.values()),
        seconds=seconds,
    )


def _existing(store: Store, array_name: str, spec: EmbeddingSpec) -> ShardedArray | None:
    if array_name not in store.array_names():
        return None
    array = store.array(array_name, on_damage="exclude")
    fix = f"keep it and embed under another name: --name other (now {array_name.partition('/')[2]})"
    array.spec.require_same(spec, where=array_name, fix=fix)
    return array


def all_n_windows(store: Store) -> Bool[np.ndarray, " n_windows"]:
    """Return which windows hold only N: nobody embeds them."""
    with store.reader() as catalog:
        found = catalog.columns("SELECT n_fraction FROM data.windows ORDER BY window_id")["n_fraction"]
    return np.asarray(found >= 1)
