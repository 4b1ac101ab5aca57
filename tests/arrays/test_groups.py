"""Groups for other programs: what lies there is replaced whole or not touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from tfbind_store.arrays.groups import write_group
from tfbind_store.errors import ConfigError


def test_a_group_opens_with_plain_zarr_and_a_second_replaces_it_whole(tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    write_group(out, {"old": (np.zeros(3), ("x",))}, {"who": "first"})
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_group(out, {"new": (values, ("bin", "residue"))}, {"who": "second"})
    group = zarr.open_group(out, mode="r")
    assert dict(group.attrs) == {"who": "second"}
    assert list(group.array_keys()) == ["new"]
    np.testing.assert_array_equal(group["new"][:], values)
    assert group["new"].metadata.dimension_names == ("bin", "residue")
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="something else lies there"):
        write_group(out, {"new": (np.zeros(3), ("x",))}, {})
    assert (out / "thesis.txt").read_text() == "all of it"


def test_what_fails_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    write_group(out, {"old": (np.zeros(3), ("x",))}, {})
    with pytest.raises(ValueError, match="dimension"):
        write_group(out, {"new": (np.zeros(3), ("x", "y"))}, {})
    assert list(zarr.open_group(out, mode="r").array_keys()) == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]
