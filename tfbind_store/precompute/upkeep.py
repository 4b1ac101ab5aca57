"""What every run needs beside its model: room on the disk, numbers that can be stored, an index that is up to date."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Shaped

from tfbind_store.arrays import int8
from tfbind_store.durable import free_bytes
from tfbind_store.errors import NoSpace
from tfbind_store.store.folder import Store

INDEX_WAIT_SECONDS = 60.0
ROUNDS_TO_INFINITY = 65520.0
"""The smallest number that float16 rounds to infinity."""
TORCH_ABOVE = 1 << 16
"""Numbers for which torch is worth its import."""


def require_space(store: Store, need_bytes: int, *, what: str) -> None:
    """Refuse to start what the disk cannot hold.

    Raises
    ------
    NoSpace
        With both numbers.
    """
    have = free_bytes(store.path)
    if need_bytes > have:
        raise NoSpace(
            f"{what} needs {need_bytes:,} bytes, the disk has {have:,}",
            where=str(store.path),
            fix="free some space, embed fewer loci, or move the store to a larger disk",
        )


def free_memory(device: str) -> int | None:
    """Return how many bytes of a device's memory are free now; None where nobody says.

    Parameters
    ----------
    device
        ``cpu``, ``cuda``, ``cuda:1``.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def to_stored(
    values: Float32[np.ndarray, "..."],
    dtype: np.dtype[np.generic],
    out: Shaped[np.ndarray, "..."] | None = None,
) -> tuple[Shaped[np.ndarray, "..."], str]:
    """Return `values` in the stored dtype and, where they cannot be stored, the reason (else an empty text).

    Parameters
    ----------
    values
        Of a window, a protein or a text.
    dtype
        float16, float32, or int8 with its scales.
    out
        Where to write them: a new array of some megabytes takes longer than filling it. Untouched if there is a reason.

    Examples
    --------
    >>> to_stored(np.array([1.0, 70000.0], dtype=np.float32), np.dtype(np.float16))[1]
    'largest value 70000 does not fit float16'
    """
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))  # NaN if there is one
    if not math.isfinite(high - low):
        n_bad = int((~np.isfinite(values)).sum())
        return values, f"{n_bad} of {values.size} numbers are not finite"
    if dtype != np.float32 and max(-low, high) >= ROUNDS_TO_INFINITY:  # levels of int8 are read as float16
        return values, f"largest value {max(-low, high):g} does not fit float16"
    if dtype == np.int8:
        encoded = int8.encode(values)
        if out is None:
            return encoded, ""
        out[...] = encoded
        return out, ""
    out = np.empty(values.shape, dtype=dtype) if out is None else out
    if dtype == np.float16 and values.size >= TORCH_ABOVE:
        _halve(values, out)
    else:
        out[...] = values
    return out, ""


def _halve(values: Float32[np.ndarray, "..."], out: Float16[np.ndarray, "..."]) -> None:
    """Round to float16 by torch: numpy gives the same bits in 15 times the time, one number after the other."""
    import torch

    if values.shape != out.shape:
        raise ValueError(f"numbers of shape {values.shape}, room for {out.shape}")
    values = np.require(values, requirements=["C", "W"])  # torch takes no others
    torch.from_numpy(out).copy_(torch.from_numpy(values))


def index(store: Store, array_name: str) -> None:
    """Bring the catalog up to the receipts of one array, if it is behind.

    Raises
    ------
    StoreBusy
        If another process goes on writing for a minute; the next writer indexes it then.
    """
    if array_name not in store.array_names():
        return
    array = store.array(array_name, on_damage="exclude")
    here = {(shard, receipt.generation, receipt.xxh3_128) for shard, receipt in array.receipts().items()}
    with store.reader() as catalog:
        sql = "SELECT shard_id, generation, xxh3_128 FROM data.shards WHERE array_name = ?"
        known = {(int(shard), int(generation), digest) for shard, generation, digest in catalog.rows(sql, [array_name])}
    if here != known:
        with store.writer(wait_seconds=INDEX_WAIT_SECONDS):
            pass
