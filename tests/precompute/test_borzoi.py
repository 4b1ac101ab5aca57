"""Borzoi through borzoi-pytorch, on a small random configuration."""

from __future__ import annotations

import builtins
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.contracts import TinyGenome
from tfbind_store.errors import ConfigError, DependencyError, SpecError, WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import make_window_embedder

SMALL = {"dim": 32, "depth": 1, "heads": 2, "device": "cpu"}
GRID = Grid(window_bp=4096, n_bins=64, bin_bp=32)


def make(**options):
    return make_window_embedder("borzoi", {**SMALL, **options})


def values(embedder, grid=GRID) -> np.ndarray:
    genome = TinyGenome({"a": 3000})
    tiling = Tiling.over(grid, genome.lengths_bp)
    return next(iter(embedder.embed([0], genome.codes, tiling))).values


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("borzoi_pytorch"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError) as caught:
        make()
    assert "tfbind-store[borzoi]" in caught.value.fix


def test_a_checkpoint_or_an_architecture():
    for change in ({"dim": None}, {"checkpoint": "x"}):
        with pytest.raises(ConfigError, match="either"):
            make(**change)


@pytest.mark.skipif(find_spec("borzoi_pytorch") is None, reason="borzoi-pytorch is not installed")
class TestWithThePackage:
    def test_the_numbers_are_those_of_the_model(self):
        from borzoi_pytorch import Borzoi
        from borzoi_pytorch.config_borzoi import BorzoiConfig

        embedder = make()
        model = Borzoi(BorzoiConfig(dim=32, depth=1, heads=2, bins_to_return=64)).eval()
        model.load_state_dict(embedder.model.state_dict(), strict=False)
        genome = TinyGenome({"a": 3000})
        window = Tiling.over(GRID, genome.lengths_bp).read(0)
        rows = np.vstack([np.eye(4), np.zeros((1, 4)), np.full((1, 4), 0.25)]).astype(np.float32)
        met: list[torch.Tensor] = []
        model.human_head.register_forward_pre_hook(lambda head, given: met.append(given[0]))  # in any version
        with torch.inference_mode():
            model(torch.from_numpy(rows[genome.codes(window)].T[None].copy()))
        found = values(embedder)
        assert found.shape == (64, 1920)
        assert found.std() > 1e-5
        np.testing.assert_allclose(found, met[0][0].T.numpy(), rtol=0, atol=1e-3 * float(found.std()))

    def test_the_layer_before_the_last_convolution(self):
        embedder = make(tap="unet")
        assert values(embedder).shape == (64, 32)
        differences = [d.field for d in make().spec("g", GRID).differences(embedder.spec("g", GRID))]
        assert differences == ["dim", "identity.layer"]

    def test_a_folder_gives_the_same_numbers(self, tmp_path):
        embedder = make()
        embedder.model.save_pretrained(tmp_path)
        again = make_window_embedder("borzoi", {"checkpoint": str(tmp_path), "device": "cpu"})
        assert again.spec("g", GRID) == embedder.spec("g", GRID)
        np.testing.assert_array_equal(values(again), values(embedder))
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 2}))
        with pytest.raises(WeightsError, match="absent"):
            make_window_embedder("borzoi", {"checkpoint": str(tmp_path)})
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
        with pytest.raises(WeightsError, match="no Borzoi config"):
            make_window_embedder("borzoi", {"checkpoint": str(tmp_path)})

    def test_bins_of_another_width_are_refused(self):
        with pytest.raises(SpecError, match="bins of 32 bp"):
            make().spec("g", Grid(window_bp=1024, n_bins=4, bin_bp=128))
