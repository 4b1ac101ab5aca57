"""Embed stored windows again and compare: the one check that hashes cannot make.

A receipt and a shard that were both edited by hand agree with each other; only the model knows what the numbers should
be. The toy is rebuilt from the spec alone; other embedders are given, and must have the array's fingerprint.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tfbind_store.arrays import ShardedArray
from tfbind_store.errors import TfbindError
from tfbind_store.precompute.embedder import WindowEmbedder, make_window_embedder
from tfbind_store.precompute.shard_work import CANARY_COSINE, WindowJob, cosine_of
from tfbind_store.receipts import WindowState
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store import Store
from tfbind_store.verify import Kind, Problem


def embedder_of(spec: EmbeddingSpec, *, checkpoint: str | None = None) -> WindowEmbedder | None:
    """Return the embedder of a stored spec; None where its weights are needed and no checkpoint was given."""
    if spec.embedder == "toy" and spec.grid:
        return make_window_embedder("toy", {"bin_bp": spec.grid["bin_bp"]})
    if checkpoint is None:
        return None
    options: dict[str, Any] = {"checkpoint": checkpoint}
    if spec.embedder == "enformer":
        identity = spec.identity
        options |= {"tap": identity["layer"], "strand": identity["strand"], "precision": identity["matmul"]}
        options["use_tf_gamma"] = identity["architecture"].get("use_tf_gamma")
    return make_window_embedder(spec.embedder, options)


def check_canaries(
    store: Store,
    *,
    checkpoint: str | None = None,
    n_canaries: int = 8,
    seed: int = 0,
    skip: Collection[tuple[str, int]] = (),
) -> tuple[list[Problem], int, list[str]]:
    """Embed some windows of every array of windows again.

    Parameters
    ----------
    store
        Whose.
    checkpoint
        The model's folder, file or hub id.
    n_canaries
        Windows per array, each of another shard while there are enough.
    seed
        Decides which ones.
    skip
        Array and shard of what is known to be damaged.

    Returns
    -------
    Problems, windows compared, and notes on arrays that could not be checked.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    n_compared = 0
    for name in store.array_names():
        if not name.startswith("embeddings/"):
            continue
        try:
            array = store.array(name, on_damage="exclude")
            embedder = embedder_of(array.spec, checkpoint=checkpoint)
            if embedder is None:
                notes.append(f"{name}: canaries need the model, give it with --checkpoint")
                continue
            array.spec.require_same(embedder.spec(store.meta.genome, store.grid), where=name, fix="")
        except TfbindError as error:
            notes.append(f"{name}: canaries cannot be computed: {error.what}")
            continue
        windows = _choose(array, n_canaries, seed, {shard for of, shard in skip if of == name})
        problems += _compare(store, array, embedder, windows)
        n_compared += len(windows)
    return problems, n_compared, notes


def _choose(array: ShardedArray, n: int, seed: int, skip: Collection[int]) -> list[int]:
    rng = np.random.default_rng(seed)
    by_shard = [
        [shard_id * array.layout.windows_per_shard + place for place in rng.permutation(ok).tolist()]
        for shard_id, receipt in sorted(array.receipts().items())
        if shard_id not in skip
        and (ok := [place for place, state in enumerate(receipt.states) if state is WindowState.ok])
    ]
    order = rng.permutation(len(by_shard)).tolist()
    chosen: list[int] = []
    for turn in range(array.layout.windows_per_shard):
        chosen += [by_shard[shard][turn] for shard in order if turn < len(by_shard[shard])]
        if len(chosen) >= n:
            break
    return sorted(chosen[:n])


def _compare(store: Store, array: ShardedArray, embedder: WindowEmbedder, windows: list[int]) -> list[Problem]:
    job = WindowJob(store, embedder, array.layout)
    problems = []
    for window, now in job.embed(windows):
        try:
            cosine = cosine_of(array.row(window).astype(np.float32), now)
        except TfbindError:
            continue  # its bytes are damaged: the deep check names it
        if not cosine >= CANARY_COSINE:
            shard = window // array.layout.windows_per_shard
            what = f"window {window} is not what its model gives: cosine {cosine:.6f}, expected {CANARY_COSINE}"
            problems.append(Problem(Kind.canary, what, array.layout.where(shard), array.layout.name, shard, window))
    return problems
