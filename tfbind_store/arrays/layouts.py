"""How an array lies on disk: its geometry, and the metadata that say so.

Rows are whole: shards and inner chunks cut the first axis only. A *window* is one inner chunk: one genome window, one
text, or a short run of residues. ``zarr.json`` is read strictly: anything that `arrays.create_array` would not have
written is refused before a byte is allocated for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfbind_store.arrays.on_reading import Reading
from tfbind_store.durable import read_regular
from tfbind_store.errors import DamagedShard, FormatVersionError, StoreMissing
from tfbind_store.spec import MEASURED, EmbeddingSpec

ARRAY_FORMAT = 1
ATTRIBUTE = "tfbind_store"
LABEL = struct.Struct("<8sQ32s16s")
"""Between a shard's body and its index: magic, shard id, fingerprint, hash of the windows' hashes."""
FILL: Mapping[str, float] = {"float16": math.nan, "float32": math.nan, "int8": -128}
"""What stands in rows that nobody embedded, by stored dtype."""
MAX_WINDOWS = 40_000_000
MAX_METADATA_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Where an array's shards and receipts are and how rows lie in them."""

    name: str
    path: Path
    receipts_dir: Path
    spec: EmbeddingSpec
    shape: tuple[int, ...]
    shard_rows: int
    """Rows per shard; the last shard may hold fewer."""
    window_rows: int
    """Rows per inner chunk: 1 for genome windows."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the array's spec."""
        return self.spec.fingerprint

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Stored dtype, little-endian."""
        return np.dtype(self.spec.dtype).newbyteorder("<")

    @property
    def may_hold_nan(self) -> bool:
        """Whether NaN is a value like others: nothing was measured there."""
        return self.spec.kind in MEASURED

    @property
    def fill(self) -> float:
        """What stands in rows that nobody embedded."""
        return FILL[self.spec.dtype]

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def window_bytes(self) -> int:
        """Bytes of one inner chunk."""
        return self.row_bytes * self.window_rows

    @property
    def windows_per_shard(self) -> int:
        """Inner chunks per whole shard."""
        return self.shard_rows // self.window_rows

    @property
    def n_windows(self) -> int:
        """Inner chunks of the whole array."""
        return -(-self.shape[0] // self.window_rows)

    @property
    def n_shards(self) -> int:
        """Shards of the whole array."""
        return -(-self.shape[0] // self.shard_rows)

    def rows_in(self, shard_id: int) -> int:
        """Return how many rows a shard holds."""
        return min(self.shard_rows, self.shape[0] - shard_id * self.shard_rows)

    def windows_in(self, shard_id: int) -> int:
        """Return how many inner chunks a shard holds."""
        return -(-self.rows_in(shard_id) // self.window_rows)

    def body_bytes(self, shard_id: int) -> int:
        """Return the length of a shard's body."""
        return self.windows_in(shard_id) * self.window_bytes

    def size_bytes(self, shard_id: int) -> int:
        """Return the length of a shard's file."""
        return self.body_bytes(shard_id) + self.tail_bytes

    @property
    def tail_bytes(self) -> int:
        """Length of label and index."""
        return LABEL.size + 16 * self.windows_per_shard + 4

    def shard_path(self, shard_id: int) -> Path:
        """Return a shard's file: the Zarr key ``c.<shard>.0.0``."""
        return self.path / self.shard_key(shard_id)

    def shard_key(self, shard_id: int) -> str:
        """Return a shard's Zarr key."""
        return ".".join(["c", str(shard_id), *("0" for _ in self.row_shape)])

    @property
    def writing_lock(self) -> Path:
        """Held, shared, by whoever writes shards; whoever removes files holds it alone."""
        return self.receipts_dir / "writing.lock"

    def where(self, shard_id: int) -> str:
        """Name a shard for an error."""
        return str(self.shard_path(shard_id))


def read_layout(path: Path, receipts_dir: Path, *, name: str = "") -> ArrayLayout:
    """Return how an array lies on disk, refusing metadata that `create_array` would not have written.

    Raises
    ------
    StoreMissing
        If there is no array.
    DamagedShard
        If ``zarr.json`` is not ours: another codec, chunk grid, fill value or shape.
    """
    where = path / "zarr.json"
    try:
        metadata = json.loads(read_regular(where, max_bytes=MAX_METADATA_BYTES))
        return _layout_of(metadata, path, receipts_dir, name)
    except FileNotFoundError as error:
        fix = "tfbind info says which there are; tfbind embed and tfbind import make them"
        raise StoreMissing("there is no such array", where=str(path), fix=fix) from error
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        fix = "put zarr.json back from a copy: the shards are untouched"
        raise DamagedShard(f"the array's metadata are not ours: {error}", where=str(where), fix=fix) from error


def _layout_of(metadata: dict[str, Any], path: Path, receipts_dir: Path, name: str) -> ArrayLayout:
    attributes = metadata["attributes"][ATTRIBUTE]
    if attributes["format"] != ARRAY_FORMAT:
        what = f"array format {attributes['format']}, this version reads {ARRAY_FORMAT}"
        raise FormatVersionError(what, where=str(path), fix="use the tfbind_store version that wrote it")
    spec = EmbeddingSpec.from_json(attributes["spec"])
    shape, shard = tuple(metadata["shape"]), tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    chunk = tuple(metadata["codecs"][0]["configuration"]["chunk_shape"])
    for values in (shape, shard, chunk):
        if not 2 <= len(values) <= 4 or not all(type(n) is int and n >= 1 for n in values):
            raise ValueError(f"shape {values}")
    _require_ours(metadata, attributes, spec, shape, shard, chunk)
    return ArrayLayout(
        name=name or path.stem,
        path=path,
        receipts_dir=receipts_dir,
        spec=spec,
        shape=shape,
        shard_rows=shard[0],
        window_rows=chunk[0],
    )


def _require_ours(
    metadata: Mapping[str, Any],
    attributes: Mapping[str, Any],
    spec: EmbeddingSpec,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    chunk: tuple[int, ...],
) -> None:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [{"name": "bytes"} if spec.dtype == "int8" else little],  # a byte has no order
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    expected: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if spec.dtype != "int8" else FILL["int8"],
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise ValueError(f"{key} is {str(metadata.get(key))[:200]}, expected {value}")
    if attributes["fingerprint"] != spec.fingerprint:
        raise ValueError("the fingerprint does not fit the spec")
    reading = Reading.of(spec.identity)
    is_coded = reading.dtype == "int8"
    if not reading.is_plain and (spec.kind != "windows" or len(shape) != 3 or shape[1] <= reading.scale_rows):
        raise ValueError(f"{spec.kind} of shape {shape} cannot be read by {reading.to_json()}")
    if shape[-1] != spec.dim or spec.dtype not in (("int8",) if is_coded else ("float16", "float32")):
        raise ValueError(f"shape {shape} of {spec.dtype} does not fit the spec's dim {spec.dim}")
    if shard[1:] != shape[1:] or chunk[1:] != shape[1:] or shard[0] % chunk[0]:
        raise ValueError(f"shards {shard} and chunks {chunk} do not hold whole rows of {shape}")
    if shape[0] // chunk[0] > MAX_WINDOWS or math.prod(shard) > 2**36:
        raise ValueError(f"shape {shape} in shards {shard} is larger than any genome needs")
