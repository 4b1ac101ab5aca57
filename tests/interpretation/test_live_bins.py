"""Bins of changed sequences against windows that were embedded whole, at every place where a piece may lie."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planted import MotifEmbedder
from tfbind_store.arrays.transforms import Pca
from tfbind_store.interpretation.live_bins import live_bins
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.as_read import _Mapped
from tfbind_store.precompute.enformer import EnformerEmbedder, random_trunk

ARCHITECTURE = {
    "dim": 24, "depth": 2, "heads": 2, "attn_dim_key": 6, "num_downsamples": 4, "dim_divisible_by": 4
}  # fmt: skip
GRID = Grid(window_bp=1_024, n_bins=32, bin_bp=16)
TILING = Tiling.over(GRID, {"chr1": 2_000})
TRUNK = random_trunk(ARCHITECTURE, seed=1)


@pytest.fixture(scope="module")
def chromosome():
    codes = np.random.default_rng(0).integers(0, 4, 2_000).astype(np.uint8)
    codes[700:705] = 4
    return codes


def reader(chromosome):
    def read(locus: Locus):
        places = np.arange(locus.start, locus.end)
        inside = (places >= 0) & (places < len(chromosome))
        return np.where(inside, chromosome[np.clip(places, 0, len(chromosome) - 1)], 5).astype(np.uint8)

    return read


def whole(embedder, chromosome, window, position, base, bins):
    changed = chromosome.copy()
    changed[position] = base
    (result,) = embedder.embed([window], reader(changed), TILING)
    return result.values[bins.start : bins.stop]


@pytest.mark.parametrize("strand", ["forward", "reverse", "mean"])
@pytest.mark.parametrize("tap", ["trunk", "transformer"])
def test_changed_bins_equal_the_window_embedded_whole(chromosome, strand, tap):
    embedder, bins = EnformerEmbedder(TRUNK, strand=strand, tap=tap, device="cpu"), range(5, 9)
    window = 1
    read = TILING.read(window)
    live = live_bins(embedder, TILING, window, reader(chromosome), bins)
    # the window's first and last bases, the middle, either side of a token's edge, beside the N
    places = [max(read.start, 0), read.start + 15, read.start + 16, 640, 699, 705, 1_000, min(read.end, 2_000) - 1]
    positions = np.array(places)
    bases = ((chromosome[positions] + 1) % 4).astype(np.uint8)
    found = np.concatenate(list(live.changed(positions, bases)))
    (plain,) = embedder.embed([window], reader(chromosome), TILING)
    np.testing.assert_allclose(live.reference(), plain.values[bins.start : bins.stop], rtol=1e-4, atol=2e-5)
    for row, (position, base) in enumerate(zip(positions, bases, strict=True)):
        expected = whole(embedder, chromosome, window, position, base, bins)
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=2e-5)
        if position in (640, 699):
            assert np.abs(found[row] - live.reference()).max() > 1e-3


def test_a_base_that_stays_changes_nothing(chromosome):
    embedder = EnformerEmbedder(TRUNK, device="cpu")
    live = live_bins(embedder, TILING, 0, reader(chromosome), range(0, 32))
    position = np.array([400])
    (same,) = live.changed(position, chromosome[position])
    np.testing.assert_allclose(same[0], live.reference(), rtol=1e-4, atol=2e-5)


def test_maps_follow_the_trunk(chromosome):
    embedder, rng = EnformerEmbedder(TRUNK, device="cpu"), np.random.default_rng(3)
    axes = rng.normal(size=(5, 48)).astype(np.float32)
    pca = Pca(rng.normal(size=48).astype(np.float32), axes, np.full(5, 0.2, dtype=np.float32))
    spec = embedder.spec("genome", GRID)
    codes = reader(chromosome)
    live = live_bins(_Mapped(embedder, pca, spec, dim=5), TILING, 1, codes, range(3, 5))
    plain = live_bins(embedder, TILING, 1, codes, range(3, 5))
    np.testing.assert_allclose(live.reference(), pca(plain.reference()), rtol=1e-4, atol=1e-4)


def test_other_models_are_asked_for_the_whole_window():
    grid = Grid(window_bp=512, n_bins=16, bin_bp=32)
    tiling = Tiling.over(grid, {"chr1": 1_024})
    codes = np.full(512, 3, dtype=np.uint8)
    codes[70:80] = [3, 2, 0, 1, 2, 3, 1, 0, 0, 2]  # TGACGTCAAG, in bin 2
    live = live_bins(MotifEmbedder(), tiling, 0, reader(codes), range(1, 4))
    assert live.reference()[:, 0].tolist() == [0, 1, 0]
    broken, elsewhere = live.changed(np.array([74, 10]), np.array([0, 0], dtype=np.uint8))
    assert broken[0, :, 0].tolist() == [0, 0, 0]
    assert elsewhere[0, :, 0].tolist() == [0, 1, 0]
