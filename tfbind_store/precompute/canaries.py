"""Embed some of what is stored again and compare: the one check that hashes cannot make.

A receipt and a shard that were both edited by hand agree with each other; only the model knows what the numbers should
be. Embedders without weights are made again from the spec alone; for others the caller says where the model lies, and
what is made must have the array's fingerprint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tfbind_store.arrays.receipts import WindowState
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.errors import TfbindError
from tfbind_store.keeping.verify import Kind, Problem
from tfbind_store.precompute.embedder import WindowEmbedder
from tfbind_store.precompute.project import projector_of
from tfbind_store.precompute.remaking import remake, require_remade
from tfbind_store.precompute.shard_work import CANARY_COSINE, WindowJob, cosine_of
from tfbind_store.spec import MEASURED, PROJECTED
from tfbind_store.store.folder import Store

_SEQUENCES = {
    "proteins": "SELECT sha256, any_value(sequence), any_value(symbol) FROM data.proteins GROUP BY sha256",
    "contexts": "SELECT sha256(text), any_value(text), any_value(text) FROM data.contexts GROUP BY 1",
}


class Model(NamedTuple):
    """Where an array's model lies, and options that its spec does not tell."""

    checkpoint: str | None = None
    settings: Mapping[str, Any] = {}


def check_canaries(
    store: Store,
    *,
    models: Mapping[str, Model] | None = None,
    n_canaries: int = 8,
    seed: int = 0,
    skip: Collection[tuple[str, int]] = (),
) -> tuple[list[Problem], int, list[str]]:
    """Embed some windows, proteins or texts of every array again.

    Parameters
    ----------
    store
        Whose.
    models
        By array, such as ``proteins/esm``; under ``embeddings`` for all arrays of windows.
    n_canaries
        Per array: windows, each of another shard while there are enough, or proteins or texts.
    seed
        Decides which ones.
    skip
        Array and shard of what is known to be damaged.

    Returns
    -------
    Problems, how many were compared, and notes on arrays that could not be checked.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    n_compared = 0
    given = models or {}
    for name in store.array_names():
        if name.partition("/")[0] in MEASURED:  # no model made it
            continue
        model = given.get(name) or given.get(name.partition("/")[0]) or Model()
        try:
            array = store.array(name, on_damage="exclude")
            if array.spec.embedder == PROJECTED:
                embedder: Any = projector_of(store, array.spec)
            else:
                embedder = remake(array.spec, checkpoint=model.checkpoint, settings=model.settings)
            if embedder is None:
                notes.append(f"{name}: canaries need the model, give it with --checkpoint {name}=PLACE")
                continue
            require_remade(embedder, array.spec, store, where=name)
            damaged = {shard for of, shard in skip if of == name}
            found, n = _check(store, array, embedder, n_canaries, seed, damaged)
        except TfbindError as error:
            notes.append(f"{name}: canaries cannot be computed: {error.what}")
            continue
        problems += found
        n_compared += n
    return problems, n_compared, notes


def _check(
    store: Store, array: ShardedArray, embedder: Any, n: int, seed: int, damaged: Collection[int]
) -> tuple[list[Problem], int]:
    if array.spec.kind == "windows":
        windows = _choose(array, n, seed, damaged)
        return _compare(store, array, embedder, windows), len(windows)
    chosen = _choose_rows(store, array, n, seed, damaged)
    return _compare_rows(array, embedder, chosen), len(chosen)


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
            cosine = cosine_of(array.embedded(window).astype(np.float32), now)
        except TfbindError:
            continue  # its bytes are damaged: the deep check names it
        if not cosine >= CANARY_COSINE:
            shard = window // array.layout.windows_per_shard
            what = f"window {window} is not what its model gives: cosine {cosine:.6f}, expected {CANARY_COSINE}"
            problems.append(Problem(Kind.canary, what, array.layout.where(shard), array.layout.name, shard, window))
    return problems


class _Rows(NamedTuple):
    """A protein or text and where its numbers lie."""

    content: str
    name: str
    first: int
    n: int


def _choose_rows(store: Store, array: ShardedArray, n: int, seed: int, skip: Collection[int]) -> list[_Rows]:
    """Draw proteins or texts whose rows are all there and undamaged, and whose content the catalog still has."""
    with store.reader() as catalog:
        known = {sha: (content, name) for sha, content, name in catalog.rows(_SEQUENCES[array.spec.kind])}
    found: dict[str, _Rows] = {}
    per_shard = array.layout.shard_rows
    for _, receipt in sorted(array.receipts().items()):
        for row in receipt.provenance.get("rows", ()):
            first, n_rows = int(row.get("first_row", row.get("row_index"))), int(row.get("n_rows", 1))
            shards = range(first // per_shard, (first + n_rows - 1) // per_shard + 1)
            is_whole = array.is_ok(np.arange(first, first + n_rows)).all() and not set(shards) & set(skip)
            if row["sha256"] in known and is_whole:
                found[row["sha256"]] = _Rows(*known[row["sha256"]], first, n_rows)
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    return [found[sorted(found)[place]] for place in order[:n]]


def _compare_rows(array: ShardedArray, embedder: Any, chosen: list[_Rows]) -> list[Problem]:
    problems: list[Problem] = []
    per_shard, layout = array.layout.shard_rows, array.layout
    for rows, now in zip(chosen, _embed_rows(array, embedder, chosen), strict=True):
        for shard in range(rows.first // per_shard, (rows.first + rows.n - 1) // per_shard + 1):
            begin, end = max(rows.first, shard * per_shard), min(rows.first + rows.n, (shard + 1) * per_shard)
            try:
                stored = array.rows(begin, end - begin).astype(np.float32)
            except TfbindError:
                continue  # its bytes are damaged: the deep check names it
            if now.shape[0] != rows.n:
                what = f"{rows.name} has {rows.n} rows, its model gives {now.shape[0]}"
            elif (cosine := cosine_of(stored, now[begin - rows.first : end - rows.first])) < CANARY_COSINE:
                what = f"{rows.name} is not what its model gives: cosine {cosine:.6f}, expected {CANARY_COSINE}"
            else:
                continue
            window = begin // layout.window_rows
            problems.append(Problem(Kind.canary, what, layout.where(shard), layout.name, shard, window))
    return problems


def _embed_rows(array: ShardedArray, embedder: Any, chosen: list[_Rows]) -> Iterator[np.ndarray]:
    contents = [rows.content for rows in chosen]
    if array.spec.kind == "proteins":
        yield from (result.values for result in embedder.embed(contents))
    elif contents:
        yield from embedder.embed(contents).values[:, None]
