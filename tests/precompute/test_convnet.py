import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tfbind_store.errors import ConfigError, WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.convnet import CARD_FORMAT, Convnet, ConvnetSizes, load_convnet, save_convnet
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.enformer import COMPLEMENT, one_hot, random_trunk, save_trunk

FRAMED = ConvnetSizes(motifs=6, motif_bp=5, dim=8, wide=10, depth=2, bin_bp=32, frame_codons=12)
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
        ({"frame_dropout": -0.1}, "frame_dropout"),
        ({"frame_codons": -1}, "frame_codons"),
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


@pytest.fixture
def framed():
    torch.manual_seed(1)
    return Convnet(FRAMED).eval()


def test_bins_are_the_largest_of_their_quarters(framed):
    bases = sequence(2, 512)
    with torch.no_grad():
        quarters = framed.quarters(bases)
        assert quarters.shape == (2, 10, 1, 64)
        expected = quarters[:, :, 0].reshape(2, 10, 16, 4).amax(-1).transpose(1, 2)
        assert torch.equal(framed(bases), expected)


def test_frames_are_read_off_the_bases_of_each_window(framed):
    bases = sequence(3, 2048)
    with torch.no_grad():
        together = framed(bases)
        alone = torch.cat([framed(row[None]) for row in bases])
        silent = framed.quarters(bases, torch.zeros_like(bases))
        told = framed.quarters(bases)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert (silent - told).abs().max() > 1e-3


def test_a_stop_changes_bins_far_beyond_the_convolutions_reach(framed):
    rng = np.random.default_rng(3)
    codes = rng.integers(4, size=32 * 64, dtype=np.uint8)
    codes[2::3] = 1  # codons end in C: no stop in this phase, and none comes about by a single C
    stopped = codes.copy()
    stopped[1200:1203] = [3, 0, 0]
    with torch.no_grad():
        moved = (framed(one_hot(codes[None])) - framed(one_hot(stopped[None]))).abs().amax(-1)[0] > 0
    assert moved[:30].any()
    assert moved[45:].any()


def test_frames_of_other_bases_are_read_where_asked(framed):
    bases = sequence(1, 1024)
    with torch.no_grad():
        assert torch.equal(framed.quarters(bases, bases), framed.quarters(bases))
        other = framed.quarters(bases, sequence(2, 1024)[1:])
    assert not torch.equal(other, framed.quarters(bases))


def test_a_gradient_goes_back_to_bases_past_the_frames(framed):
    bases = sequence(1, 512).requires_grad_()
    framed(bases).sum().backward()
    assert bases.grad is not None
    assert bases.grad.abs().sum() > 0


def test_a_framed_trunk_is_embedded_from_both_strands_and_edges(framed, tmp_path):
    save_convnet(framed, tmp_path / "trunk", SEEN)
    tiling = Tiling.over(Grid(window_bp=512, n_bins=8, bin_bp=32), {"chr1": 700})
    bases = np.random.default_rng(1).integers(4, size=700, dtype=np.uint8)

    def codes(locus):
        at = np.arange(locus.start, locus.end)
        return np.where((at >= 0) & (at < len(bases)), bases[at.clip(0, len(bases) - 1)], 5).astype(np.uint8)

    options = {"checkpoint": str(tmp_path / "trunk"), "device": "cpu", "strand": "mean", "batch_size": 2}
    found = [one.values for one in make_window_embedder("convnet", options).embed([0, 1, 2], codes, tiling)]
    for window, values in enumerate(found):
        read = codes(tiling.read(window))[None]
        with torch.no_grad():
            own = framed(one_hot(read))[0, 4:-4].numpy()
            other = framed(one_hot(np.ascontiguousarray(COMPLEMENT[read[:, ::-1]])))[0].flip(0)[4:-4].numpy()
        np.testing.assert_allclose(values, (own + other) / 2, rtol=1e-5, atol=1e-6)


def test_a_trunk_of_before_frames_loads_and_keeps_its_name(model, tmp_path):
    path = save_convnet(model, tmp_path / "old", SEEN)
    file = next(path.glob("*.safetensors")) if path.is_dir() else path
    with safe_open(file, "pt") as held:
        metadata, tensors = held.metadata(), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    card = json.loads(metadata[CARD_FORMAT])
    for name in ("frame_codons", "frame_dropout"):
        del card["config"][name]
    save_file(tensors, file, {**metadata, CARD_FORMAT: json.dumps(card)})
    loaded, _ = load_convnet(tmp_path / "old")
    assert loaded.sizes == SMALL
    embedder = make_window_embedder("convnet", {"checkpoint": str(tmp_path / "old"), "device": "cpu"})
    architecture = embedder.spec("genome", Grid(window_bp=512, n_bins=8, bin_bp=32)).identity["architecture"]
    assert architecture == {"motifs": 6, "motif_bp": 5, "dim": 8, "wide": 10, "depth": 2, "bin_bp": 32}


def test_the_least_length_of_frames_is_part_of_a_trunks_name(framed, tmp_path):
    save_convnet(framed, tmp_path / "trunk", SEEN)
    embedder = make_window_embedder("convnet", {"checkpoint": str(tmp_path / "trunk"), "device": "cpu"})
    identity = embedder.spec("genome", Grid(window_bp=512, n_bins=8, bin_bp=32)).identity
    assert identity["architecture"]["frame_codons"] == 12
    assert "frame_dropout" not in identity["architecture"]
