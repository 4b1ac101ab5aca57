"""Bins of changed sequences against windows that were embedded whole, at every place where a piece may lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import MotifEmbedder
from tfbind_store.arrays.transforms import Pca
from tfbind_store.interpretation.live_bins import live_bins
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.as_read import _Mapped
from tfbind_store.precompute.convnet import Convnet, ConvnetSizes, save_convnet
from tfbind_store.precompute.embedder import TrunkGeometry, make_window_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder, one_hot, random_trunk
from tfbind_store.precompute.module import ModuleEmbedder
from tfbind_store.precompute.window_options import WindowOptions, with_options

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


WIDE_GRID = Grid(window_bp=2_048, n_bins=12, bin_bp=128)
WIDE_TILING = Tiling.over(WIDE_GRID, {"chr1": 3_000})


def small_convnet(**sizes) -> Convnet:
    torch.manual_seed(5)
    model = Convnet(ConvnetSizes(**{"motifs": 12, "motif_bp": 19, "dim": 8, "wide": 10, "depth": 2, **sizes}))
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.normal_(norm.bias)
    return model


@pytest.mark.parametrize("sizes", [{}, {"depth": 5}, {"frame_codons": 30}], ids=["near", "far", "frames"])
@pytest.mark.parametrize(("strand", "shift_bp"), [("forward", 0), ("reverse", 5), ("mean", -7)])
def test_a_convnets_changed_bins_equal_the_window_embedded_whole(tmp_path, sizes, strand, shift_bp):
    save_convnet(small_convnet(**sizes), tmp_path / "convnet", None)
    options = {"checkpoint": str(tmp_path / "convnet"), "strand": strand, "shift_bp": shift_bp, "device": "cpu"}
    embedder, bins, window = make_window_embedder("convnet", options), range(0, 4), 1
    chromosome = np.random.default_rng(2).integers(0, 4, 3_000).astype(np.uint8)
    if sizes.get("frame_codons"):  # a frame of 40 codons that a stop ends early
        read = WIDE_TILING.read(window)
        middle = read.start + 600
        chromosome[middle : middle + 123] = np.tile([0, 3, 2], 41)
    live = live_bins(embedder, WIDE_TILING, window, reader(chromosome), bins)
    assert live.read == WIDE_TILING.read(window).moved(shift_bp)
    low, high = max(live.read.start, 0), min(live.read.end, 3_000)
    edge = live.read.start + 512
    positions = np.array([low, low + 9, edge - 1, edge, edge + 31, edge + 32, edge + 200, edge + 148, high - 1])
    bases = ((chromosome[positions] + 1) % 4).astype(np.uint8)
    found = np.concatenate(list(live.changed(positions, bases)))
    (plain,) = embedder.embed([window], reader(chromosome), WIDE_TILING)
    np.testing.assert_allclose(live.reference(), plain.values[bins.start : bins.stop], rtol=1e-4, atol=1e-5)
    for row, (position, base) in enumerate(zip(positions, bases, strict=True)):
        changed = chromosome.copy()
        changed[position] = base
        (expected,) = embedder.embed([window], reader(changed), WIDE_TILING)
        np.testing.assert_allclose(found[row], expected.values[bins.start : bins.stop], rtol=1e-4, atol=1e-5)
    assert np.abs(found[3] - live.reference()).max() > 1e-3


def test_only_what_a_change_reaches_is_convolved_again(monkeypatch):
    model, looked_at = small_convnet(), []
    embedder = ModuleEmbedder(
        model, TrunkGeometry(bin_bp=128, dim=10), forward=lambda module, sequence: module(sequence), name="convnet",
        identity={}, device="cpu",
    )  # fmt: skip
    plain = Convnet.nearby

    def counting(self, sequence):
        looked_at.append(sequence.shape[1])
        return plain(self, sequence)

    monkeypatch.setattr(Convnet, "nearby", counting)
    codes = np.random.default_rng(0).integers(0, 4, 3_000).astype(np.uint8)
    live = live_bins(embedder, WIDE_TILING, 0, reader(codes), range(2, 4))
    list(live.changed(np.arange(600, 640), np.zeros(40, dtype=np.uint8)))
    assert looked_at == [2_048, 544, 544, 544]


@pytest.mark.parametrize("sizes", [{}, {"bin_bp": 256}, {"bin_bp": 16}, {"motif_bp": 33}])
def test_a_convnet_knows_how_far_its_short_convolutions_reach(sizes):
    model = small_convnet(**sizes).eval()
    step, reach = model.sizes.quarter_bp, model.sizes.reach_quarters
    codes = np.random.default_rng(1).integers(0, 4, (1, 64 * step)).astype(np.uint8)
    with torch.inference_mode():
        before = model.nearby(one_hot(codes))
        touched = set()
        for position in range(32 * step, 33 * step):
            for base in range(4):
                changed = codes.copy()
                changed[0, position] = base
                off = (model.nearby(one_hot(changed)) != before).any(1)[0, 0]
                touched |= set(off.nonzero()[:, 0].tolist())
    assert touched
    assert max(abs(quarter - 32) for quarter in touched) <= reach


def test_a_base_that_stays_changes_nothing(chromosome):
    embedder = EnformerEmbedder(TRUNK, device="cpu")
    live = live_bins(embedder, TILING, 0, reader(chromosome), range(0, 32))
    position = np.array([400])
    (same,) = live.changed(position, chromosome[position])
    np.testing.assert_allclose(same[0], live.reference(), rtol=1e-4, atol=2e-5)


def test_an_enformer_that_reads_further_right_is_cut_too(chromosome):
    embedder = with_options(EnformerEmbedder(TRUNK, device="cpu"), WindowOptions(shift_bp=3))
    live = live_bins(embedder, TILING, 1, reader(chromosome), range(5, 9))
    position = np.array([640])
    (found,) = live.changed(position, np.array([(chromosome[640] + 1) % 4], dtype=np.uint8))
    expected = whole(embedder, chromosome, 1, 640, (chromosome[640] + 1) % 4, range(5, 9))
    assert live.read == TILING.read(1).moved(3)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=2e-5)


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
