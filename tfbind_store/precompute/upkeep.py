"""What every run needs beside its model: room on the disk, numbers that can be stored, an index that is up to date."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from tfbind_store.arrays import int8
from tfbind_store.durable import free_bytes
from tfbind_store.errors import NoSpace
from tfbind_store.store.folder import Store

INDEX_WAIT_SECONDS = 60.0


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


def to_stored(values: Float32[np.ndarray, "..."], dtype: np.dtype[np.generic]) -> tuple[Shaped[np.ndarray, "..."], str]:
    """Return `values` in the stored dtype and, where they cannot be stored, the reason (else an empty text).

    Examples
    --------
    >>> to_stored(np.array([1.0, 70000.0], dtype=np.float32), np.dtype(np.float16))[1]
    'largest value 70000 does not fit float16'
    """
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        return values, f"{n_bad} of {values.size} numbers are not finite"
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16 if dtype == np.int8 else dtype)  # levels are read as float16
    if not np.isfinite(stored).all():
        return values, f"largest value {np.abs(values).max():g} does not fit {stored.dtype.name}"
    return (int8.encode(values) if dtype == np.int8 else stored), ""


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
