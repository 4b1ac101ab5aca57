"""Take stock of a store's folders into its catalog: genome, arrays, receipts, selections, runs.

What lies in the folders is the truth; these rows are an index of it, written by whoever writes the catalog, the same
each time from the same folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfbind_store.arrays.receipts import Receipt, WindowState
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import read_regular
from tfbind_store.genome import Genome
from tfbind_store.loci import Tiling
from tfbind_store.spec import canonical_json
from tfbind_store.store.identity import StoreMeta

IMPORTS_KEY = "imports"
"""Of ``data.meta``: JSON list of import calls."""
_ROW_TABLES = {
    "proteins": ("data.protein_rows", ("sha256", "first_row", "n_rows", "truncated")),
    "contexts": ("data.context_rows", ("sha256", "row_index", "truncated")),
}


def fill_genome(catalog: Catalog, meta: StoreMeta, genome: Genome, tiling: Tiling) -> None:
    """Write chromosomes, aliases and windows: what a catalog holds before anything is imported."""
    chroms = [info.chrom for info in meta.chromosomes]
    ids = np.arange(len(chroms))
    with catalog.transaction():
        catalog.insert(
            "data.meta",
            {"key": ["genome", "grid"], "value": [meta.genome, canonical_json(_grid(meta))]},
        )
        catalog.insert(
            "data.chromosomes",
            {
                "chrom_id": ids,
                "chrom": chroms,
                "length_bp": [info.length_bp for info in meta.chromosomes],
                "md5": [info.md5 for info in meta.chromosomes],
                "n_bp": [info.n_bp for info in meta.chromosomes],
                "first_window": tiling.first_window[:-1],
            },
        )
        by_name = dict(zip(chroms, ids.tolist(), strict=True))
        aliases = sorted(meta.aliases.items())
        catalog.insert(
            "data.chromosome_aliases",
            {"alias": [alias for alias, _ in aliases], "chrom_id": [by_name[chrom] for _, chrom in aliases]},
        )
        catalog.insert("data.windows", _windows(genome, tiling))


def _grid(meta: StoreMeta) -> dict[str, int]:
    return {"window_bp": meta.grid.window_bp, "n_bins": meta.grid.n_bins, "bin_bp": meta.grid.bin_bp}


def _windows(genome: Genome, tiling: Tiling) -> dict[str, Any]:
    ids = np.arange(tiling.n_windows)
    chrom_ids = tiling.window_chrom(ids)
    starts = (ids - tiling.first_window[chrom_ids]) * tiling.grid.stride_bp
    ends = np.minimum(starts + tiling.grid.stride_bp, np.asarray(tiling.lengths_bp)[chrom_ids])
    counts = []
    for number, chrom in enumerate(tiling.chroms):
        mine = slice(*tiling.first_window[number : number + 2].tolist())
        places = zip(starts[mine].tolist(), ends[mine].tolist(), strict=True)
        counts += [genome.base_counts(chrom, start, end) for start, end in places]
        genome.release()
    return {
        "window_id": ids,
        "chrom_id": chrom_ids,
        "start_bp": starts,
        "end_bp": ends,
        "n_fraction": [count.n / (count.n + count.acgt) for count in counts],
        "gc_fraction": [count.gc / count.acgt if count.acgt else None for count in counts],
    }


def index_arrays(catalog: Catalog, arrays: Iterable[ShardedArray], *, unreadable: Sequence[str] = ()) -> None:
    """Make the rows about arrays, shards, and where proteins and texts lie, what the receipts say.

    Arrays that are `unreadable` keep the rows they have: with these `repair` can write their metadata again.
    """
    arrays = list(arrays)
    with catalog.transaction():
        for table in ("data.arrays", "data.shards"):
            sql = f"DELETE FROM {table} WHERE array_name NOT IN (SELECT unnest(?::VARCHAR[]))"
            catalog.execute(sql, [list(unreadable)])
        for array in arrays:
            name = array.layout.name
            catalog.execute(
                "INSERT INTO data.arrays VALUES (?, ?, ?, ?, ?, ?)",
                [
                    name,
                    array.spec.kind,
                    array.spec.fingerprint,
                    canonical_json(array.spec.to_json()),
                    list(array.layout.shape),
                    array.layout.shard_rows,
                ],
            )
            receipts = [receipt for _, receipt in sorted(array.receipts().items())]
            catalog.insert("data.shards", _shard_columns(receipts))
            _index_rows(catalog, array.spec.kind, name, receipts)
        for table, _ in _ROW_TABLES.values():
            catalog.execute(f"DELETE FROM {table} WHERE array_name NOT IN (SELECT array_name FROM data.arrays)")


def _index_rows(catalog: Catalog, kind: str, name: str, receipts: list[Receipt]) -> None:
    """Write where proteins or texts lie, as their shards' receipts say under ``rows``."""
    if kind not in _ROW_TABLES:
        return
    table, columns = _ROW_TABLES[kind]
    rows = {row["sha256"]: row for receipt in receipts for row in receipt.provenance.get("rows", ())}
    values = {column: [row[column] for row in rows.values()] for column in columns}
    catalog.insert(table, {"array_name": [name] * len(rows), **values}, replace=True)


def _shard_columns(receipts: list[Receipt]) -> dict[str, Any]:
    return {
        "array_name": [receipt.array for receipt in receipts],
        "shard_id": [receipt.shard_id for receipt in receipts],
        "generation": [receipt.generation for receipt in receipts],
        **{f"n_{state}": [receipt.count(state) for receipt in receipts] for state in WindowState},
        "size_bytes": [receipt.size_bytes for receipt in receipts],
        "xxh3_128": [receipt.xxh3_128 for receipt in receipts],
    }


def recorded_imports(catalog: Catalog) -> list[dict[str, Any]]:
    """Return the calls that filled the catalog, in their order, as `ingest.calls` recorded them."""
    found = catalog.one("SELECT value FROM data.meta WHERE key = ?", [IMPORTS_KEY])
    calls: list[dict[str, Any]] = json.loads(found[0]) if found else []
    return calls


def index_descriptions(catalog: Catalog, selections: Mapping[str, Path], runs: Mapping[str, Path]) -> None:
    """Make the rows about selections and runs what their own files say; files that cannot be read are left out."""
    with catalog.transaction():
        for table, column, files in (("selections", "selection", selections), ("runs", "run", runs)):
            texts = {name: text for name, path in files.items() if (text := _description(path)) is not None}
            catalog.execute(f"DELETE FROM data.{table}")
            catalog.insert(f"data.{table}", {column: list(texts), "description": list(texts.values())})


def _description(path: Path) -> str | None:
    """Return the JSON of a selection, or of the header of a safetensors file."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, 16 * 1024 * 1024)))
            return json.dumps(header.get("__metadata__", {}))
        return json.dumps(json.loads(read_regular(path)))
    except (OSError, ValueError, AttributeError):
        return None
