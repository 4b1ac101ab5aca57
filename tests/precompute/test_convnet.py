import numpy as np
import pytest
import torch

from tfbind_store.errors import ConfigError, WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.convnet import Convnet, ConvnetSizes, load_convnet, save_convnet
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.enformer import one_hot, random_trunk, save_trunk

SMALL = ConvnetSizes(motifs=6, motif_bp=5, dim=8, wide=10, depth=2, bin_bp=32)
SEEN = {"factors": ["REB1"], "chromosomes": ["chr1"], "biotypes": ["cellA"]}


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Convnet(SMALL)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


def sequence(n_rows: int, length: int) -> torch.Tensor:
    return one_hot(np.random.default_rng(0).integers(4, size=(n_rows, length), dtype=np.uint8))


@pytest.mark.parametrize(
    ("bin_bp", "pools"), [(8, ([], 1)), (16, ([], 2)), (32, ([], 4)), (64, ([2], 4)), (256, ([4, 2], 4))]
)
def test_a_bin_is_as_wide_as_it_was_asked_for(bin_bp, pools):
    sizes = ConvnetSizes(motifs=4, motif_bp=3, dim=4, wide=5, depth=1, bin_bp=bin_bp)
    assert sizes.pools == pools
    assert Convnet(sizes)(sequence(2, 6 * bin_bp)).shape == (2, 6, 5)


def test_the_first_convolution_is_a_plain_one(model):
    bases = sequence(2, 96)
    with torch.no_grad():
        found = model._motifs(bases)[:, :, 0]
        plain = model.motifs(bases.transpose(1, 2))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_a_base_reaches_as_far_as_the_dilations_say(model):
    bases = sequence(1, 32 * 64)
    changed = bases.clone()
    changed[0, 32 * 32 + 16] = changed[0, 32 * 32 + 16].roll(1)
    with torch.no_grad():
        moved = (model(bases) - model(changed)).abs().amax(-1)[0] > 0
    reach = np.flatnonzero(moved.numpy()) - 32
    # eight bases are a quarter of a bin here: 1 + 2 of them by the context, 2 by the level, 3 by the narrow convolution
    assert reach.min() == -2
    assert reach.max() == 2


def test_a_folder_gives_the_same_numbers_and_the_card(model, tmp_path):
    save_convnet(model, tmp_path / "trunk", SEEN, notes={"steps": 3})
    loaded, card = load_convnet(tmp_path / "trunk")
    assert card.trained_on_json == SEEN
    assert card.notes == {"steps": 3}
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(sequence(1, 256)), model(sequence(1, 256)))


def test_an_enformers_folder_is_refused(tmp_path):
    trunk = random_trunk(
        {"dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4}, seed=0
    )
    save_trunk(trunk.model, tmp_path, None)
    with pytest.raises(WeightsError, match="no convnet"):
        load_convnet(tmp_path)


def test_an_embedder_needs_a_folder():
    with pytest.raises(ConfigError, match="needs a checkpoint"):
        make_window_embedder("convnet", {})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"bin_bp": 100}, "not 100 bp"),
        ({"bin_bp": 4}, "not 4 bp"),
        ({"motif_bp": 18}, "odd"),
        ({"dim": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_sizes_that_make_no_trunk_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        ConvnetSizes(**sizes)


def test_embedding_keeps_the_centre_and_means_both_strands(model, tmp_path):
    save_convnet(model, tmp_path / "trunk", SEEN)
    grid = Grid(window_bp=512, n_bins=8, bin_bp=32)
    tiling = Tiling.over(grid, {"chr1": 2048})
    bases = np.random.default_rng(1).integers(4, size=2048, dtype=np.uint8)

    def codes(locus):
        at = np.arange(locus.start, locus.end)
        return np.where((at >= 0) & (at < len(bases)), bases[at.clip(0, len(bases) - 1)], 5).astype(np.uint8)

    found = {}
    for strand in ("forward", "reverse", "mean"):
        options = {"checkpoint": str(tmp_path / "trunk"), "device": "cpu", "strand": strand}
        (found[strand],) = make_window_embedder("convnet", options).embed([1], codes, tiling)
    read = one_hot(codes(tiling.read(1))[None])
    with torch.no_grad():
        whole = model(read)[0, 4:-4].numpy()
        other = model(read.flip(1, 2))[0].flip(0)[4:-4].numpy()
    np.testing.assert_allclose(found["forward"].values, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["reverse"].values, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["mean"].values, (whole + other) / 2, rtol=1e-5, atol=1e-6)


def test_the_spec_names_weights_and_what_they_have_seen(model, tmp_path):
    save_convnet(model, tmp_path / "trunk", SEEN)
    embedder = make_window_embedder("convnet", {"checkpoint": str(tmp_path / "trunk"), "device": "cpu"})
    spec = embedder.spec("genome", Grid(window_bp=512, n_bins=8, bin_bp=32))
    assert spec.identity["trained_on"] == SEEN
    assert spec.dim == 10
    other = Convnet(SMALL)
    save_convnet(other, tmp_path / "other", SEEN)
    again = make_window_embedder("convnet", {"checkpoint": str(tmp_path / "other"), "device": "cpu"})
    assert again.spec("genome", Grid(window_bp=512, n_bins=8, bin_bp=32)).fingerprint != spec.fingerprint
