"""Strands, shifts and ways of storing, for every embedder of windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.contracts import TinyGenome, WindowEmbedderContract
from tests.precompute.small import make_store
from tfbind_store.arrays.transforms import transform_path
from tfbind_store.errors import ConfigError, DamagedShard, StoreMissing
from tfbind_store.keeping.verify import Kind, verify_store
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.canaries import Model, check_canaries
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder
from tfbind_store.precompute.run import embed_windows
from tfbind_store.precompute.toy import ToyEmbedder
from tfbind_store.precompute.window_options import options_in
from tfbind_store.spec import EmbeddingSpec

GRID = Grid(window_bp=1024, n_bins=4, bin_bp=128)
ENFORMER = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "device": "cpu"}
MODULE = {"target": "tests.precompute.small_module:Bins", "bin_bp": 128, "dim": 6, "device": "cpu"}
HALVED = {**ENFORMER, "tap": "transformer", "final_on_reading": True}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embed(name, options, genome, windows=(0, 1, 2)):
    tiling = Tiling.over(GRID, genome.lengths_bp)
    embedder = make_window_embedder(name, options)
    return np.stack([values for _, values in embedder.embed(list(windows), genome.codes, tiling)])


def relative_rms(found, expected):
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def test_without_options_an_embedder_is_left_as_it_is():
    assert type(make_window_embedder("toy")) is ToyEmbedder
    assert type(make_window_embedder("enformer", ENFORMER)) is EnformerEmbedder
    plain = make_window_embedder("enformer", ENFORMER).spec("g", GRID)
    usual = make_window_embedder("enformer", {**ENFORMER, "shift_bp": 0, "int8": False}).spec("g", GRID)
    assert plain.fingerprint == usual.fingerprint


class TestBothStrandsOfAModuleKeepTheContract(WindowEmbedderContract):
    tolerance = 1e-6

    @pytest.fixture
    def embedder(self):
        return make_window_embedder("module", {**MODULE, "strand": "mean", "shift_bp": 5})

    def with_batch_size(self, size):
        return make_window_embedder("module", {**MODULE, "strand": "mean", "shift_bp": 5, "batch_size": size})


class TestAHalvedEnformerKeepsTheContract(WindowEmbedderContract):
    tolerance = 1e-5

    @pytest.fixture
    def embedder(self):
        return make_window_embedder("enformer", {**HALVED, "shift_bp": -5, "int8": True})


class TestShift:
    @pytest.mark.parametrize(("name", "options"), [("enformer", ENFORMER), ("module", MODULE), ("toy", {})])
    @pytest.mark.parametrize("shift_bp", [64, -37])
    def test_reads_the_genome_that_much_further_right(self, name, options, shift_bp):
        genome, moved = TinyGenome({"a": 1900}), TinyGenome({"a": 1900})
        moved.sequences["a"] = np.roll(genome.sequences["a"], -shift_bp)
        ours = embed(name, {**options, "shift_bp": shift_bp}, genome, windows=[1])
        np.testing.assert_allclose(ours, embed(name, options, moved, windows=[1]), rtol=0, atol=2e-6)
        assert np.abs(ours - embed(name, options, genome, windows=[1])).max() > 1e-3

    def test_is_another_array(self):
        plain, moved = (make_window_embedder("toy", {"shift_bp": s}).spec("g", GRID) for s in (0, 5))
        assert [d.field for d in plain.differences(moved)] == ["identity.shift_bp"]

    @pytest.mark.parametrize("shift_bp", [128, -128, 5000])
    def test_of_a_bin_or_more_is_refused(self, shift_bp):
        with pytest.raises(ConfigError, match="a bin is 128 bp"):
            make_window_embedder("toy", {"shift_bp": shift_bp})


class TestStrand:
    def test_reverse_is_the_forward_of_the_flipped_genome_in_genome_order(self):
        genome, flipped = TinyGenome({"a": 1536}), TinyGenome({"a": 1536})
        flipped.sequences["a"] = (3 - genome.sequences["a"])[::-1].copy()
        reverse = embed("module", {**MODULE, "strand": "reverse"}, genome)
        expected = embed("module", MODULE, flipped)[::-1, ::-1]
        np.testing.assert_allclose(reverse, expected, rtol=0, atol=1e-6)

    def test_mean_is_the_mean(self):
        genome = TinyGenome({"a": 1536})
        both = [embed("module", {**MODULE, "strand": strand}, genome) for strand in ("forward", "reverse")]
        mean = embed("module", {**MODULE, "strand": "mean"}, genome)
        np.testing.assert_allclose(mean, (both[0] + both[1]) / 2, rtol=0, atol=1e-6)

    def test_strand_and_shift_go_together(self):
        genome, moved = TinyGenome({"a": 1900}), TinyGenome({"a": 1900})
        moved.sequences["a"] = np.roll(genome.sequences["a"], -9)
        for name, options in (("module", MODULE), ("enformer", ENFORMER)):
            ours = embed(name, {**options, "strand": "reverse", "shift_bp": 9}, genome, windows=[1])
            expected = embed(name, {**options, "strand": "reverse"}, moved, windows=[1])
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)

    def test_an_embedder_that_cannot_be_turned_round_says_so(self):
        with pytest.raises(ConfigError, match="toy has no strand"):
            make_window_embedder("toy", {"strand": "reverse"})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("halved"))
    embed_windows(store, make_window_embedder("enformer", ENFORMER))
    embed_windows(store, make_window_embedder("enformer", HALVED), name="half")
    embed_windows(store, make_window_embedder("enformer", {**HALVED, "int8": True}), name="quarter")
    return store


class TestHalved:
    """The transformer's output, the last layer on reading."""

    @pytest.mark.parametrize(("label", "bound", "share"), [("half", 1e-3, 0.5), ("quarter", 1e-2, 0.5)])
    def test_gives_the_trunks_own_numbers_from_fewer_bytes(self, store, label, bound, share):
        full, less = store.array("embeddings/windows"), store.array(f"embeddings/{label}")
        assert less.shape == full.shape == (12, 4, 96)
        assert less.layout.window_bytes <= share * full.layout.window_bytes
        windows = [0, 1, 5, 8, 11]
        expected = np.stack([full.row(window) for window in windows])
        assert relative_rms(np.stack([less.row(window) for window in windows]), expected) < bound
        bins = np.array([0, 3, 19, 3, 32, 47])
        np.testing.assert_allclose(
            less.gather_bins(bins)[:, 0], np.stack([less.row(b // 4)[b % 4] for b in bins]), rtol=2e-3, atol=1e-4
        )
        assert relative_rms(less.gather_bins(np.array([1, 33]), 6), full.gather_bins(np.array([1, 33]), 6)) < bound

    def test_its_numbers_are_the_last_layer_over_what_is_stored(self, store):
        model = make_window_embedder("enformer", ENFORMER).model
        array = store.array("embeddings/half")
        with torch.inference_mode():
            expected = model.final_pointwise(torch.from_numpy(array.embedded(3).astype(np.float32))[None])[0].numpy()
        np.testing.assert_allclose(array.row(3), expected, rtol=1e-3, atol=1e-6)
        assert relative_rms(array.row(3), expected) < 3e-4

    def test_the_same_trunk_gives_the_same_file_and_fingerprint(self, store):
        again = make_window_embedder("enformer", HALVED)
        assert again.spec(store.meta.genome, store.grid).fingerprint == store.array("embeddings/half").spec.fingerprint
        assert len(list((store.path / "transforms").iterdir())) == 1

    def test_canaries_compare_what_is_stored(self, store):
        models = {name: Model(settings=ENFORMER) for name in store.array_names()}
        assert check_canaries(store, models=models, n_canaries=3) == ([], 9, [])

    def test_a_lost_layer_is_found_and_the_same_command_brings_it_back(self, store):
        sha256 = store.array("embeddings/half").spec.identity["on_reading"]["pointwise"]["sha256"]
        path = transform_path(store.path, sha256)
        content = path.read_bytes()
        path.unlink()
        array = store.array("embeddings/half")
        with pytest.raises(StoreMissing, match="a map that the array is read with is gone"):
            array.row(0)
        problems = verify_store(store).problems
        assert {(p.kind, p.array) for p in problems} == {
            (Kind.transform, "embeddings/half"),
            (Kind.transform, "embeddings/quarter"),
        }
        path.write_bytes(content[:-4] + b"\0\0\0\0")
        with pytest.raises(DamagedShard, match="does not hash"):
            store.array("embeddings/half").gather_bins(np.array([0]))
        embed_windows(store, make_window_embedder("enformer", HALVED), name="half")
        assert path.read_bytes() == content
        assert verify_store(store, deep=True).is_clean

    def test_a_layer_of_another_width_is_refused(self, store):
        spec = store.array("embeddings/half").spec
        text = (store.array_path("embeddings/half") / "zarr.json").read_text()
        metadata = json.loads(text)
        attributes = metadata["attributes"]["tfbind_store"]
        attributes["spec"]["identity"]["on_reading"]["pointwise"]["dim"] = 97
        attributes["fingerprint"] = EmbeddingSpec.from_json(attributes["spec"]).fingerprint
        assert attributes["fingerprint"] != spec.fingerprint
        folder = store.array_path("embeddings/wide")
        folder.mkdir()
        try:
            (folder / "zarr.json").write_text(json.dumps(metadata))
            array = store.array("embeddings/wide")
            assert array.completeness().n_ok == 0, "its receipts are another fingerprint's"
            with pytest.raises(DamagedShard, match="expected finite ones"):
                _ = array.pointwise
        finally:
            (folder / "zarr.json").unlink()
            folder.rmdir()

    @pytest.mark.parametrize(
        ("name", "options", "reason"),
        [
            ("toy", {"final_on_reading": True}, "for an enformer's transformer"),
            ("enformer", {**ENFORMER, "final_on_reading": True}, "for an enformer's transformer"),
            ("enformer", {**HALVED, "strand": "mean"}, "mean of two strands"),
            ("module", {**MODULE, "final_on_reading": True}, "for an enformer's transformer"),
        ],
    )
    def test_where_it_cannot_be_it_says_why(self, name, options, reason):
        with pytest.raises(ConfigError, match=reason):
            make_window_embedder(name, options)


@pytest.mark.parametrize("options", [{}, {"shift_bp": -3}, {"int8": True}, {"shift_bp": 7, "int8": True}])
def test_options_come_back_from_the_spec(options):
    assert options_in(make_window_embedder("toy", options).spec("g", GRID).identity) == options
    assert options_in(make_window_embedder("enformer", HALVED).spec("g", GRID).identity) == {"final_on_reading": True}


def test_an_unknown_option_is_still_refused():
    with pytest.raises(ConfigError, match="shift"):
        make_window_embedder("toy", {"shift": 3})


def test_the_embedders_own_methods_stay_within_reach():
    embedder = make_window_embedder("module", {**MODULE, "batch_size": 4, "shift_bp": 3})
    assert embedder.halve_batch() == 2
