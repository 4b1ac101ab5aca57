"""The registry and the geometry check."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tfbind_store.errors import ConfigError, SpecError
from tfbind_store.loci import Grid
from tfbind_store.precompute.embedder import (
    TrunkGeometry,
    embedder_names,
    make_sequence_embedder,
    make_text_embedder,
    make_window_embedder,
)


def test_the_registry_knows_the_documented_names():
    assert embedder_names("windows") == ["borzoi", "convnet", "enformer", "module", "toy"]
    assert embedder_names("proteins") == ["composition", "esm", "imported", "protalbert"]
    assert embedder_names("contexts") == ["bert", "hashed"]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean enformer"):
        make_window_embedder("enfromer")
    with pytest.raises(ConfigError, match="known: composition, esm"):
        make_sequence_embedder("alphafold2")
    with pytest.raises(ConfigError, match="known: bert, hashed"):
        make_text_embedder("gpt")


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean bin_bp"):
        make_window_embedder("toy", {"bin_bq": 128})


@pytest.mark.parametrize(
    ("geometry", "grid", "reason"),
    [
        (TrunkGeometry(bin_bp=128, dim=4), Grid(window_bp=1024, n_bins=4, bin_bp=64), "bins of 64 bp"),
        (TrunkGeometry(bin_bp=128, dim=4, window_bp=2048), Grid(window_bp=1024, n_bins=4), "windows of 1024 bp"),
        (TrunkGeometry(bin_bp=128, dim=4), Grid(window_bp=1024, n_bins=3), "not the centre of 8 bins"),
        (TrunkGeometry(bin_bp=128, dim=4), Grid(window_bp=1026, n_bins=4), "not the centre"),
        (TrunkGeometry(bin_bp=128, dim=4, n_bins=2), Grid(window_bp=1024, n_bins=4), "keeps 4 bins"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(geometry, grid, reason):
    with pytest.raises(SpecError, match=reason):
        geometry.require_fits(grid, where="trunk")


def test_protocols_toy_and_plan_load_no_torch():
    code = "import sys, tfbind_store.precompute.embedder, tfbind_store.precompute.toy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
