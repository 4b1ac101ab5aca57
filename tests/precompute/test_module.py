"""Any module of DNA by import path: the contract, ways to call it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.contracts import TinyGenome, WindowEmbedderContract
from tests.precompute.small_module import Bins
from tfbind_store.errors import ConfigError, SpecError, UnsafeFile, WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import make_window_embedder

GRID = Grid(window_bp=1024, n_bins=4, bin_bp=128)
PLACE = "tests.precompute.small_module"
BINS = {"target": f"{PLACE}:Bins", "bin_bp": 128, "dim": 6, "device": "cpu"}


def make(**options):
    return make_window_embedder("module", {**BINS, **options})


def values(embedder) -> np.ndarray:
    genome = TinyGenome({"a": 1300})
    tiling = Tiling.over(GRID, genome.lengths_bp)
    return np.concatenate([kept for _, kept in embedder.embed(range(tiling.n_windows), genome.codes, tiling)])


class TestModuleKeepsTheContract(WindowEmbedderContract):
    tolerance = 1e-6

    @pytest.fixture
    def embedder(self):
        return make()

    def with_batch_size(self, size):
        return make(batch_size=size)


@pytest.mark.parametrize(
    "options",
    [
        {"call": "channels", "gives": "channels_first"},
        {"call": "several", "output": "1"},
        {"call": "named", "output": "bins"},
        {"call": "letters_last", "reads": "bins_first"},
        {"call": "cropped", "n_bins": 6},
        {"call": "several", "output": "1", "call_arguments": {"scale": 1.0}},
    ],
)
def test_ways_to_call_it_give_the_same_numbers(options):
    np.testing.assert_allclose(values(make(**options)), values(make()), atol=1e-6)


def test_enformer_through_its_import_path_is_the_enformer_embedder():
    from tfbind_store.precompute.enformer import EnformerEmbedder, random_trunk
    from tfbind_store.precompute.trunk_files import trunk_tensors

    small = {"dim": 48, "depth": 1, "heads": 4, "dim_divisible_by": 8, "num_downsamples": 7, "attn_dim_key": 32}
    trunk = random_trunk(small, seed=1)
    ours = EnformerEmbedder(trunk, device="cpu")
    other = make(
        target="enformer_pytorch:Enformer.from_hparams",
        arguments={**small, "target_length": -1, "output_heads": {}},
        call_arguments={"return_only_embeddings": True},
        reads="bins_first",
        dim=96,
    )
    other.model.load_state_dict(trunk_tensors(trunk.model), strict=False)
    np.testing.assert_allclose(values(other), values(ours), atol=2e-5)


def test_weights_come_from_the_seed_or_from_a_file(tmp_path):
    torch.manual_seed(9)
    model = Bins().eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    one, other = (make(checkpoint=str(tmp_path / name)) for name in ("w.safetensors", "w.pt"))
    assert one.spec("g", GRID) == other.spec("g", GRID)
    np.testing.assert_array_equal(values(one), values(other))
    assert np.abs(values(one) - values(make())).max() > 1e-2
    assert make(seed=1).spec("g", GRID) == make(seed=1).spec("g", GRID) != make(seed=2).spec("g", GRID)


def test_all_that_decides_numbers_is_in_the_spec():
    spec = make().spec("g", GRID)
    for change, field in (
        ({"seed": 1}, "identity.weights_sha256"),
        ({"call": "cropped", "n_bins": 6}, "identity.call"),
        ({"gives": "channels_first"}, "identity.gives"),
    ):
        assert field in [d.field for d in spec.differences(make(**change).spec("g", GRID))]
    assert make(batch_size=4).spec("g", GRID) == spec


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"dim": 7}, r"\[batch, bins, dim\] = \[1, 8, 6\], declared were \[1, 8, 7\]"),
            ({"n_bins": 6}, r"declared were \[1, 6, 6\]"),
            ({"call": "several"}, "not one tensor"),
            ({"call": "named", "output": "bin"}, "no output 'bin'"),
            ({"call": "several", "output": "5"}, "no output '5'"),
            ({"call": "backwards"}, "no method"),
        ],
    )
    def test_a_module_that_gives_something_else(self, change, what):
        with pytest.raises((SpecError, ConfigError), match=what):
            values(make(**change))

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"target": "nowhere.at.all:X"}, "cannot import"),
            ({"target": f"{PLACE}:Absent"}, "cannot import"),
            ({"target": PLACE}, "no import path"),
            ({"target": f"{PLACE}:not_a_module"}, "gives a int"),
            ({"arguments": {"width": 3}}, "fails with"),
            ({"target": None}, "needs target"),
            ({"dim": None}, "needs target"),
            ({"batch_size": 0}, "batch_size"),
        ],
    )
    def test_what_cannot_be_made(self, change, what):
        with pytest.raises(ConfigError, match=what):
            make(**change)

    def test_a_grid_that_does_not_fit(self):
        for change in ({"bin_bp": 64}, {"window_bp": 2048}, {"n_bins": 2}):
            with pytest.raises(SpecError):
                make(**change).spec("g", GRID)

    def test_weights_that_do_not_fit(self, tmp_path):
        state = Bins().state_dict()
        save_file({**state, "more": torch.zeros(1)}, tmp_path / "more.safetensors")
        save_file({"norm.bias": state["norm.bias"]}, tmp_path / "less.safetensors")
        save_file(Bins(dim=7).state_dict(), tmp_path / "wide.safetensors")
        for name in ("more", "less", "wide"):
            with pytest.raises(WeightsError, match="do not fit"):
                make(checkpoint=str(tmp_path / f"{name}.safetensors"))

    def test_a_pickle_that_runs_code(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "marker"), "w"))

        torch.save({"x": Trap()}, tmp_path / "evil.pt")
        with pytest.raises(UnsafeFile):
            make(checkpoint=str(tmp_path / "evil.pt"))
        assert not (tmp_path / "marker").exists()
