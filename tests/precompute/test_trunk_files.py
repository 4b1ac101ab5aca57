"""A trunk's files: what a disk that takes no more leaves behind."""

from __future__ import annotations

import resource

import pytest

from tfbind_store.errors import NoSpace
from tfbind_store.precompute.trunk_files import build_trunk, save_trunk

SIZES = {"dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "dim_divisible_by": 4, "output_heads": {}}


def test_a_write_that_fails_says_so_and_the_older_trunk_stays(tmp_path):
    trunk = build_trunk(SIZES, where="here")
    save_trunk(trunk, tmp_path, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(NoSpace, match="larger than this disk, or a limit"):
            save_trunk(trunk, tmp_path, None, notes={"new": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
