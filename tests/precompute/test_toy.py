"""The toy embedder keeps the contract and says where each bin came from."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contracts import TinyGenome, WindowEmbedderContract
from tfbind_store.errors import SpecError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.toy import BIN_RADIX, COLUMNS, ToyEmbedder


class TestToyKeepsTheContract(WindowEmbedderContract):
    @pytest.fixture
    def embedder(self):
        return ToyEmbedder()


def test_every_bin_of_a_genome_says_its_own_address():
    genome = TinyGenome({"a": 1300, "b": 400, "c": 128 * 1030})
    grid = Grid(window_bp=1024, n_bins=4, bin_bp=128)
    tiling = Tiling.over(grid, genome.lengths_bp)
    values = np.concatenate([v for _, v in ToyEmbedder().embed(range(tiling.n_windows), genome.codes, tiling)])
    for chrom in range(3):
        rows = values[tiling.global_bins(chrom)]
        assert (rows[:, 0] == chrom).all()
        assert (rows[:, 1] * BIN_RADIX + rows[:, 2]).tolist() == list(range(tiling.n_real_bins(chrom)))
        sequence = genome.sequences["abc"[chrom]]
        gc = [int(np.isin(sequence[s : s + 128], (1, 2)).sum()) for s in range(0, len(sequence), 128)]
        assert rows[:, 3].astype(int).tolist() == gc
        assert rows[:, 7].astype(int).tolist() == sequence[::128].tolist()
    assert values[2 * 4 + 2, COLUMNS.index("pad")] == 11 * 128 - 1300


def test_all_numbers_survive_float16():
    genome = TinyGenome({"a": 128 * 3000})
    tiling = Tiling.over(Grid(window_bp=128 * 500, n_bins=500, bin_bp=128), genome.lengths_bp)
    for _, values in ToyEmbedder().embed(range(tiling.n_windows), genome.codes, tiling):
        np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values)


def test_bins_too_wide_for_float16_are_refused():
    with pytest.raises(SpecError, match="1 to 2048"):
        ToyEmbedder(bin_bp=4096)
