"""Results as plain Zarr groups, for other programs to open; the store's own arrays are `sharded`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from tfbind_store.durable import temporary_beside
from tfbind_store.errors import ConfigError


def write_group(
    out: Path,
    arrays: Mapping[str, tuple[Shaped[np.ndarray, "..."], tuple[str, ...]]],
    attributes: Mapping[str, Any],
) -> None:
    """Write arrays, each with the names of its dimensions, as a Zarr v3 group; one that lies there is replaced whole.

    Raises
    ------
    ConfigError
        If something else lies there.
    """
    import zarr

    if out.exists() and not (out / "zarr.json").is_file():
        raise ConfigError("something else lies there", where=str(out), fix="choose another name, or move it away")
    building, old = temporary_beside(out), temporary_beside(out)
    try:
        group = zarr.open_group(building, mode="w-", zarr_format=3, attributes=dict(attributes))
        for name, (values, dimensions) in arrays.items():
            group.create_array(name, data=values, dimension_names=dimensions)
        if out.exists():
            out.rename(old)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
