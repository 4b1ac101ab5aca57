"""Rows of a track array: which track lies where, and how one is published.

An array ``tracks/<name>`` or ``signals/<name>`` holds one whole track a row and grows as tracks come. Receipts say
which track a row is and of which file it was made, so that an import that was stopped goes on; the catalog repeats it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.arrays.receipts import WindowState
from tfbind_store.arrays.sharded import ShardedArray, publish_shard
from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import make_directory, sole_owner
from tfbind_store.ingest.registry import as_json
from tfbind_store.spec import ArrayKind, EmbeddingSpec
from tfbind_store.store.folder import Store

ROLES: Mapping[str, str] = {"tracks": "label", "signals": "signal"}


class StoredTrack(NamedTuple):
    """A published row, as its receipt tells."""

    row_index: int
    made_of: str
    """Hash of what it was made of."""
    n_bins: int
    """That have a number."""
    stamp: tuple[int, int] | None
    """Size and time of change of its file when it was read; None where it was made of no file."""


class TrackEntry(NamedTuple):
    """What the catalog says of one row."""

    row_index: int
    track: str
    experiment_id: int | None
    biotype_id: int | None
    assay: str | None
    assembly: str | None
    n_bins: int
    metadata: Mapping[str, str]


def track_spec(store: Store, kind: ArrayKind, source: str, identity: Mapping[str, Any]) -> EmbeddingSpec:
    """Return the spec of an array of tracks made from a `source` (bigwig, peaks) in the way that `identity` says."""
    grid = store.grid
    return EmbeddingSpec(
        kind=kind,
        embedder=source,
        dim=grid.n_bins,
        dtype="float32",
        identity=dict(identity),
        grid={"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp},
        genome=store.meta.genome,
    )


@contextlib.contextmanager
def only_importer(store: Store, array_name: str) -> Iterator[None]:
    """Keep other imports into the same array out: rows are given away one import at a time."""
    folder = store.path / "receipts" / array_name
    make_directory(folder)
    with sole_owner(folder, doing=f"importing into {array_name}"):
        yield


def open_tracks(store: Store, array_name: str, spec: EmbeddingSpec, n_new: int) -> tuple[ShardedArray, list[int]]:
    """Return the array, made or grown, and the numbers of `n_new` free rows.

    Raises
    ------
    SpecError
        If the array is there and its tracks were made otherwise.
    """
    shape = (max(1, n_new), store.tiling.n_windows, store.grid.n_bins)
    array = store.create_array(array_name, spec, shape, 1)
    taken = set(array.receipts())
    free = [row for row in range(len(taken) + n_new + 1) if row not in taken][:n_new]
    if free and free[-1] >= array.shape[0]:
        array = store.grow_array(array_name, free[-1] + 1)
    return array, free


def stored_tracks(array: ShardedArray) -> dict[str, StoredTrack]:
    """Return the published tracks by name."""
    return {
        str(receipt.provenance["track"]): StoredTrack(
            shard_id, str(receipt.provenance["made_of"]), int(receipt.provenance["n_bins"]), _stamp(receipt.provenance)
        )
        for shard_id, receipt in sorted(array.receipts().items())
    }


def _stamp(provenance: Mapping[str, Any]) -> tuple[int, int] | None:
    found = provenance.get("stamp")
    return (int(found[0]), int(found[1])) if isinstance(found, list) and len(found) == 2 else None


def publish_track(
    layout: ArrayLayout,
    row: int,
    values: Float32[np.ndarray, "n_windows n_bins"],
    *,
    track: str,
    made_of: str,
    provenance: Mapping[str, Any],
) -> int:
    """Publish one row and return how many bins of it have a number."""
    n_bins = int(np.count_nonzero(~np.isnan(values)))
    said = {**provenance, "track": track, "made_of": made_of, "n_bins": n_bins}
    publish_shard(layout, row, values[np.newaxis], [WindowState.ok], provenance=said)
    return n_bins


def write_entries(catalog: Catalog, array_name: str, entries: Sequence[TrackEntry], source_id: int) -> None:
    """Write the catalog's rows about tracks; the caller is in its transaction."""
    columns: dict[str, Any] = {
        name: [getattr(entry, name) for entry in entries] for name in TrackEntry._fields if name != "metadata"
    }
    columns["metadata"] = [as_json(entry.metadata) for entry in entries]
    columns["array_name"] = [array_name] * len(entries)
    columns["role"] = [ROLES[Path(array_name).parts[0]]] * len(entries)
    columns["source_id"] = [source_id] * len(entries)
    catalog.insert("data.tracks", columns, replace=True)
