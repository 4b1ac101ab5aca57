"""The bytes of one shard: hashes, the tail, and mapping it into memory.

A shard file is ``body | label | index``. The body is the C-order block of the shard's rows. The index is the one of
Zarr's ``sharding_indexed`` codec (offset and size of each inner chunk as little-endian uint64, then their crc32c), so
that any Zarr reader opens the file. The label between them, which Zarr readers skip, says which shard of which
fingerprint this is and what its windows hash to: a shard in the wrong place, or newer than its receipt, shows at open.
A *window* is one inner chunk: one or more whole rows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import xxhash
from jaxtyping import Shaped

from tfbind_store.arrays.fetching import fetcher, is_in_memory
from tfbind_store.arrays.layouts import LABEL, ArrayLayout
from tfbind_store.arrays.spaces import Space
from tfbind_store.durable import open_regular
from tfbind_store.errors import DamagedShard

LABEL_MAGIC = b"tfbshrd1"
_ABSENT_CHUNK = np.iinfo(np.uint64).max
# the finite values of a float, read as an unsigned integer without its sign bit, lie below these
_BITS: dict[str, tuple[Any, int]] = {"float16": (np.uint16, 0x7C00), "float32": (np.uint32, 0x7F800000)}
_READ_BYTES = 8 * 1024 * 1024


def index_bytes(layout: ArrayLayout, shard_id: int) -> bytes:
    """Return the Zarr index of a shard whose windows lie one after the other; windows past the array are absent."""
    table = np.full((layout.windows_per_shard, 2), _ABSENT_CHUNK, dtype="<u8")
    n = layout.windows_in(shard_id)
    table[:n, 0] = np.arange(n, dtype=np.uint64) * np.uint64(layout.window_bytes)
    table[:n, 1] = layout.window_bytes
    body = table.tobytes()
    return body + struct.pack("<I", int(google_crc32c.value(body)))


def label_bytes(layout: ArrayLayout, shard_id: int, window_hashes: Sequence[str | None]) -> bytes:
    """Return the label: which shard of which fingerprint, and a hash of its windows' hashes."""
    content = xxhash.xxh3_128_digest(",".join(digest or "-" for digest in window_hashes).encode("ascii"))
    return LABEL.pack(LABEL_MAGIC, shard_id, bytes.fromhex(layout.fingerprint), content)


def window_hash(values: Shaped[np.ndarray, "..."] | bytes) -> str:
    """Return the xxh3-64 of a window's bytes."""
    return xxhash.xxh3_64_hexdigest(values.data if isinstance(values, np.ndarray) else values)


def largest_magnitude(values: Shaped[np.ndarray, "..."], *, may_be_nan: bool = False) -> float | None:
    """Return the largest absolute value, None if any value is not finite; NaN is passed over if it `may_be_nan`.

    Works on the bits: numpy has no fast arithmetic on float16, but the magnitudes of floats sort as integers do.
    """
    if values.dtype == np.int8:  # every byte is a level, a part of a scale, or nothing
        return float(np.abs(values.astype(np.int16)).max(initial=0))
    if may_be_nan:
        values = np.where(np.isnan(values), values.dtype.type(0), values)
    integer, limit = _BITS[values.dtype.name]
    bits = values.view(integer)
    sign = integer(1 << (bits.dtype.itemsize * 8 - 1))
    largest = int((bits & ~sign).max()) if bits.size else 0
    return float(np.array(largest, dtype=integer).view(values.dtype)) if largest < limit else None


def holds_nothing(layout: ArrayLayout, values: Shaped[np.ndarray, "..."]) -> bool:
    """Return whether a window's bytes are those of one that nobody embedded."""
    return bool((values == layout.fill).all() if values.dtype == np.int8 else np.isnan(values).all())


def _damaged(what: str, layout: ArrayLayout, shard_id: int) -> DamagedShard:
    fix = f"run tfbind verify, then tfbind repair, then embed {layout.name} again; other shards are kept"
    return DamagedShard(what, where=layout.where(shard_id), fix=fix)


def open_shard(layout: ArrayLayout, shard_id: int, *, size_bytes: int) -> int:
    """Open a shard and check kind, size and index; return its descriptor.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedShard
        If it is a link or directory, has another size, or an index that is not ours.
    """
    try:
        descriptor = open_regular(f"{layout.path}/{layout.shard_key(shard_id)}")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _damaged(f"the shard cannot be opened: {error.strerror}", layout, shard_id) from error
    try:
        found = os.fstat(descriptor).st_size
        expected = layout.size_bytes(shard_id)
        if found != expected or size_bytes != expected:
            what = f"the shard has {found:,} bytes, its receipt says {size_bytes:,}, its layout {expected:,}"
            raise _damaged(what, layout, shard_id)
        index = index_bytes(layout, shard_id)
        if os.pread(descriptor, len(index), expected - len(index)) != index:
            raise _damaged("the shard's index is damaged", layout, shard_id)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def label_fits(layout: ArrayLayout, shard_id: int, descriptor: int, window_hashes: Sequence[str | None]) -> bool:
    """Return whether a shard's label says what its receipt says."""
    stored = os.pread(descriptor, LABEL.size, layout.body_bytes(shard_id))
    return stored == label_bytes(layout, shard_id, window_hashes)


class MappedShard(NamedTuple):
    """A shard in memory, by its pages."""

    space: Space
    begin: int
    """Its first byte there."""
    rows: Shaped[np.ndarray, "rows ..."]
    """Read-only views of the shard's rows."""
    whole: Shaped[np.ndarray, "rows ..."]
    """The same, with the rows that fill up the array's last window."""

    def will_need(self, first_byte: int, n_bytes: int) -> None:
        """Have these bytes fetched, since they are read soon; returns at once."""
        fetcher().fetch(self.space, self.begin + first_byte, n_bytes)

    def is_in_memory(self, byte: int) -> bool:
        """Return whether the page of a byte is in memory; True too where the system does not tell."""
        return is_in_memory(self.space, self.begin + byte)


def view_shard(layout: ArrayLayout, shard_id: int, space: Space) -> MappedShard:
    """Return the rows of a shard that is mapped into a space; nothing is copied."""
    begin, size = space.begin(shard_id), layout.body_bytes(shard_id)
    whole = np.frombuffer(space.pages, layout.dtype, size // layout.dtype.itemsize, begin)
    whole = whole.reshape(-1, *layout.row_shape)
    return MappedShard(space, begin, whole[: layout.rows_in(shard_id)], whole)


def read_window(layout: ArrayLayout, shard_id: int, place: int, descriptor: int) -> bytes:
    """Return the bytes of one window by reading, not by mapping: a shrinking file gives an error, not a signal."""
    data = os.pread(descriptor, layout.window_bytes, place * layout.window_bytes)
    if len(data) != layout.window_bytes:
        raise _damaged("the shard became shorter while it was read", layout, shard_id)
    return data


def file_hash(descriptor: int) -> str:
    """Return the xxh3-128 of an open file."""
    digest, offset = xxhash.xxh3_128(), 0
    while data := os.pread(descriptor, _READ_BYTES, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()
