"""The Enformer embedder gives enformer-pytorch's own numbers, and its trunks survive the disk.

Every model here is drawn with `random_trunk`: a default-initialised Enformer ignores its input and would pass anything.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from enformer_pytorch import Enformer, seq_indices_to_one_hot
from safetensors.torch import load_file, save_file

from tests.contracts import TinyGenome, WindowEmbedderContract
from tfbind_store.errors import ConfigError, SpecError, UnsafeFile, WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.enformer import (
    EnformerEmbedder,
    Trunk,
    TrunkCard,
    crop_bins,
    load_trunk,
    one_hot,
    random_trunk,
    save_trunk,
    trunk_features,
)
from tfbind_store.precompute.stretch import LEAST_CHUNK_TOKENS
from tfbind_store.precompute.weights import read_safetensors

SMALL = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "num_downsamples": 7, "dim_divisible_by": 8}
GRID = Grid(window_bp=1024, n_bins=4, bin_bp=128)
SEEN = {"factors": ["REB1", "ABF1"], "chromosomes": ["chrI"], "biotypes": ["YPD"]}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trunk() -> Trunk:
    return random_trunk(SMALL, seed=1)


def codes_of(seed: int, n: int = 2, bp: int = 1024) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, (n, bp)).astype(np.uint8)


class TestEnformerKeepsTheContract(WindowEmbedderContract):
    tolerance = 2e-5

    @pytest.fixture
    def embedder(self):
        return self.with_batch_size(2)

    def with_batch_size(self, size):
        return EnformerEmbedder(random_trunk(SMALL, seed=1), batch_size=size, device="cpu")


class TestMeanOfStrandsKeepsTheContract(TestEnformerKeepsTheContract):
    def with_batch_size(self, size):
        return EnformerEmbedder(random_trunk(SMALL, seed=1), batch_size=size, device="cpu", strand="mean")


class TestTransformerTapKeepsTheContract(TestEnformerKeepsTheContract):
    def with_batch_size(self, size):
        return EnformerEmbedder(random_trunk(SMALL, seed=1), batch_size=size, device="cpu", tap="transformer")


class TestNumbersAreThoseOfThePlainForward:
    def plain(self, model: Enformer, x: torch.Tensor, n_bins: int) -> torch.Tensor:
        model.set_target_length(n_bins)
        with torch.no_grad():
            out = model.eval()(x, return_only_embeddings=True)
        model.set_target_length(-1)
        return out

    def test_with_n_and_padding(self, trunk):
        codes = codes_of(0)
        index = torch.from_numpy(codes).long()
        index[codes == 5] = -1
        x = seq_indices_to_one_hot(index)
        assert torch.equal(one_hot(codes), x)
        ours = trunk_features(trunk.model, one_hot(codes), n_bins=4)
        theirs = self.plain(trunk.model, x, 4)
        assert ours.shape == theirs.shape == (2, 4, 96)
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)

    def test_through_the_embedder_at_both_ends_of_a_chromosome(self, trunk):
        genome = TinyGenome({"a": 1300})
        tiling = Tiling.over(GRID, genome.lengths_bp)
        embedder = EnformerEmbedder(trunk, batch_size=2, device="cpu")
        for window, values in embedder.embed([0, 1, 2], genome.codes, tiling):
            text = "".join("ACGTN."[c] for c in genome.codes(tiling.read(window)))
            theirs = self.plain(trunk.model, _one_hot_of_text(text)[None], 4)[0]
            np.testing.assert_allclose(values, theirs.numpy(), rtol=0, atol=1e-5)

    def test_without_a_crop_and_with_an_odd_number_of_bins(self, trunk):
        x = one_hot(codes_of(1, bp=7 * 128))
        torch.testing.assert_close(
            trunk_features(trunk.model, x, n_bins=7), self.plain(trunk.model, x, -1), rtol=0, atol=2e-6
        )
        assert trunk_features(trunk.model, x, n_bins=5).shape[1] == 5
        torch.testing.assert_close(
            trunk_features(trunk.model, x, n_bins=5), self.plain(trunk.model, x, -1)[:, 1:6], rtol=0, atol=2e-6
        )

    def test_tf_gamma_reads_1536_bins_only(self):
        trunk = random_trunk({**SMALL, "use_tf_gamma": True}, seed=0)
        with pytest.raises(SpecError, match="use_tf_gamma, which works at 1,536 positions only, reads 196608 bp"):
            EnformerEmbedder(trunk, device="cpu").spec("g", GRID)

    def test_a_train_mode_model_is_put_into_eval_mode(self, trunk):
        trunk.model.train()
        embedder = EnformerEmbedder(trunk, device="cpu")
        assert not any(module.training for module in embedder.model.modules())


def _one_hot_of_text(text: str) -> torch.Tensor:
    from enformer_pytorch.data import str_to_one_hot

    return str_to_one_hot(text)


class TestStrand:
    def embed(self, trunk, strand, genome):
        tiling = Tiling.over(GRID, genome.lengths_bp)
        embedder = EnformerEmbedder(trunk, strand=strand, batch_size=2, device="cpu")
        return np.concatenate([values for _, values in embedder.embed([0, 1], genome.codes, tiling)])

    def test_reverse_is_the_forward_of_the_flipped_genome_in_genome_order(self, trunk):
        genome, flipped = TinyGenome({"a": 1024}), TinyGenome({"a": 1024})
        flipped.sequences["a"] = (3 - genome.sequences["a"])[::-1].copy()
        ours = self.embed(trunk, "reverse", genome)
        theirs = self.embed(trunk, "forward", flipped)[::-1]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
        assert np.abs(ours - self.embed(trunk, "forward", genome)).max() > 0.01

    def test_mean_is_the_mean(self, trunk):
        genome = TinyGenome({"a": 1024})
        both = (self.embed(trunk, "forward", genome) + self.embed(trunk, "reverse", genome)) / 2
        np.testing.assert_allclose(self.embed(trunk, "mean", genome), both, rtol=0, atol=2e-6)


class TestMemory:
    grid = Grid(window_bp=128 * 128, n_bins=64, bin_bp=128)

    def values(self, embedder, genome):
        tiling = Tiling.over(self.grid, genome.lengths_bp)
        return np.stack([values for _, values in embedder.embed(range(tiling.n_windows), genome.codes, tiling)])

    def test_a_bound_makes_pieces_shorter_and_changes_no_number(self):
        genome = TinyGenome({"a": 5 * 64 * 128})
        wide = random_trunk({**SMALL, "dim": 192}, seed=1)
        free, bound = (EnformerEmbedder(wide, device="cpu", batch_size=32) for _ in range(2))
        least = bound.fast.working_bytes(chunk_tokens=LEAST_CHUNK_TOKENS, window_tokens=128, batch_windows=1)
        most = bound.fast.working_bytes(chunk_tokens=256, window_tokens=128, batch_windows=32)
        at_most = least + 100_000
        assert at_most < most
        bound.limit_memory(at_most, self.grid)
        assert bound.batch_size < 32
        assert bound.chunk_tokens < 256
        sizes = {"chunk_tokens": bound.chunk_tokens, "batch_windows": bound.batch_size}
        assert bound.fast.working_bytes(window_tokens=128, **sizes) <= at_most
        np.testing.assert_allclose(self.values(bound, genome), self.values(free, genome), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_it_says_what_its_weights_take(self, precision):
        """Against the process's own size, what the allocator keeps for later given back first."""
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "malloc_trim") or not Path("/proc/self/statm").exists():
            pytest.skip("only glibc can be told to give memory back")

        def resident() -> int:
            gc.collect()
            libc.malloc_trim(0)
            return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

        def embedder(**sizes) -> EnformerEmbedder:
            architecture = {"heads": 8, "attn_dim_key": 64, "dim_divisible_by": 16, **sizes}
            return EnformerEmbedder(random_trunk(architecture, seed=1), device="cpu", precision=precision)

        kept = [embedder(dim=48, depth=1).fast]  # code and pools that the first one of a process makes
        before = resident()
        kept.append(embedder(dim=384, depth=5))
        kept.append(kept[-1].fast)
        kept.extend([block.relative_keys(1000) for block in kept[-1].blocks])
        need = kept[1].memory_need(Grid(window_bp=1000 * 128, n_bins=64, bin_bp=128))
        assert need.weights_bytes == pytest.approx(resident() - before, rel=0.1)

    def test_fewer_threads_where_memory_is_short(self):
        embedder = EnformerEmbedder(random_trunk(SMALL, seed=1), device="cpu")
        least = {"chunk_tokens": LEAST_CHUNK_TOKENS, "window_tokens": 128, "batch_windows": 1}
        one, two = (embedder.fast.working_bytes(**least, n_threads=n) for n in (1, 2))
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            embedder.limit_memory(two, self.grid)
            assert embedder.n_threads is None
            embedder.limit_memory(one, self.grid)
            assert embedder.n_threads == 1
        finally:
            torch.set_num_threads(before)

    def test_what_fits_is_left_alone(self):
        embedder = EnformerEmbedder(random_trunk(SMALL, seed=1), device="cpu", batch_size=8)
        embedder.limit_memory(1 << 32, self.grid)
        assert (embedder.batch_size, embedder.chunk_tokens) == (8, 256)

    def test_a_bound_that_no_window_fits_in_says_how_much_more_it_takes(self):
        embedder = EnformerEmbedder(random_trunk(SMALL, seed=1), device="cpu")
        with pytest.raises(ConfigError, match=r"a window takes [\d,]+ bytes .* 1,000 are left") as caught:
            embedder.limit_memory(1000, self.grid)
        more = int(caught.value.fix.split()[1].replace(",", ""))
        embedder.limit_memory(1000 + more, self.grid)
        with pytest.raises(ConfigError, match="a window takes"):
            embedder.limit_memory(999 + more, self.grid)


class TestCrop:
    def test_keeps_the_middle_896_of_1536(self):
        x = torch.arange(1536.0)[None, :, None]
        kept = crop_bins(x, 896)[0, :, 0]
        assert (kept[0], kept[-1], len(kept)) == (320, 1215, 896)

    @pytest.mark.parametrize("n_bins", [6, 8])
    def test_refuses_an_odd_crop_and_more_bins_than_there_are(self, n_bins):
        with pytest.raises(SpecError, match="not the centre of 7"):
            crop_bins(torch.zeros(1, 7, 2), n_bins)


class TestRandomTrunk:
    def test_the_seed_decides_everything_and_the_global_generator_is_left_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first, second, other = (EnformerEmbedder(random_trunk(SMALL, seed=s), device="cpu") for s in (3, 3, 4))
        assert torch.equal(torch.rand(1), expected)
        assert first.spec("g", GRID) == second.spec("g", GRID)
        assert [d.field for d in first.spec("g", GRID).differences(other.spec("g", GRID))] == [
            "identity.weights_sha256"
        ]

    def test_attention_carries_a_base_far_beyond_the_convolutions(self, trunk):
        codes = codes_of(2, n=1, bp=4096) % 4
        changed = codes.copy()
        changed[0, :256] = (changed[0, :256] + 1) % 4
        with torch.no_grad():
            before, after = (trunk_features(trunk.model, one_hot(c), n_bins=32) for c in (codes, changed))
        assert (before - after)[0, -1].abs().max() > 1e-4


class TestSaveAndLoad:
    def test_gives_the_same_numbers_and_the_card_back(self, trunk, tmp_path):
        folder = save_trunk(trunk.model, tmp_path / "trunk", SEEN, notes={"window_bp": 1024})
        loaded = load_trunk(folder)
        assert loaded.card.trained_on_json == {
            "factors": ["ABF1", "REB1"],
            "chromosomes": ["chrI"],
            "biotypes": ["YPD"],
        }
        assert loaded.card.notes == {"window_bp": 1024}
        assert not loaded.model.training
        x = one_hot(codes_of(3))
        with torch.no_grad():
            assert torch.equal(trunk_features(loaded.model, x, n_bins=4), trunk_features(trunk.model, x, n_bins=4))
        stored = load_file(folder / "model.safetensors")
        assert stored
        assert not any(name.startswith(("_trunk.", "_heads.")) for name in stored)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]

    def test_the_same_trunk_gives_the_same_bytes(self, trunk, tmp_path):
        files = [save_trunk(trunk.model, tmp_path / name, SEEN, notes={"a": 1, "b": 2}) for name in "xy"]
        first, second = ((folder / "model.safetensors").read_bytes() for folder in files)
        assert first == second
        header = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
        assert list(header["__metadata__"]) == ["format", "tfbind-trunk-2"]

    def test_a_card_of_the_first_format_is_read(self, trunk, tmp_path):
        folder = save_trunk(trunk.model, tmp_path / "new", SEEN, notes={"a": 1})
        tensors, stated = read_safetensors(folder / "model.safetensors")
        parts = json.loads(stated["tfbind-trunk-2"])
        old = {"format": "tfbind-trunk-1", **{name: json.dumps(part) for name, part in parts.items()}}
        save_file(tensors, folder / "model.safetensors", metadata=old)
        assert load_trunk(folder).card == load_trunk(save_trunk(trunk.model, tmp_path, SEEN, notes={"a": 1})).card

    def test_the_card_is_part_of_the_spec(self, trunk, tmp_path):
        loaded = load_trunk(save_trunk(trunk.model, tmp_path, SEEN))
        spec = EnformerEmbedder(loaded, device="cpu").spec("g", GRID)
        assert spec.identity["trained_on"]["factors"] == ["ABF1", "REB1"]
        random = EnformerEmbedder(trunk, device="cpu").spec("g", GRID)
        assert random.identity["trained_on"] == {"factors": [], "chromosomes": [], "biotypes": []}
        assert random.identity["weights_sha256"] == spec.identity["weights_sha256"]

    def test_an_older_trunk_is_replaced(self, trunk, tmp_path):
        save_trunk(random_trunk({**SMALL, "dim": 96}, seed=9).model, tmp_path, None)
        save_trunk(trunk.model, tmp_path, SEEN)
        assert load_trunk(tmp_path).model.config.dim == 48

    def test_heads_are_kept_when_asked_for(self, tmp_path):
        model = random_trunk({**SMALL, "output_heads": {"peaks": 3}}, seed=1).model
        weight = model.heads["peaks"][0].weight
        save_trunk(model, tmp_path, SEEN, keep_heads=True)
        assert torch.equal(load_trunk(tmp_path).model.heads["peaks"][0].weight, weight)
        save_trunk(model, tmp_path, SEEN)
        assert len(load_trunk(tmp_path).model.heads) == 0

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
    def test_folders_made_by_others_are_read(self, trunk, tmp_path, name):
        state = trunk.model.state_dict()
        if name.endswith("bin"):
            torch.save(state, tmp_path / name)
        else:
            plain = {k: v.clone() for k, v in state.items() if not k.startswith("_trunk.")}
            save_file(plain, tmp_path / name)
        (tmp_path / "config.json").write_text(json.dumps({**SMALL, "model_type": "enformer", "vocab": 1}))
        loaded = load_trunk(tmp_path)
        assert loaded.card.trained_on is None
        x = one_hot(codes_of(4))
        with torch.no_grad():
            assert torch.equal(trunk_features(loaded.model, x, n_bins=4), trunk_features(trunk.model, x, n_bins=4))

    def test_enformer_pytorch_saves_what_we_read_and_reads_what_we_save(self, trunk, tmp_path):
        trunk.model.save_pretrained(tmp_path / "theirs", safe_serialization=False)  # it names each tensor twice
        ours = load_trunk(tmp_path / "theirs").model
        theirs = Enformer.from_pretrained(str(save_trunk(trunk.model, tmp_path / "ours", SEEN))).eval()
        theirs.set_target_length(-1)
        x = one_hot(codes_of(5))
        with torch.no_grad():
            expected = trunk_features(trunk.model, x, n_bins=8)
            assert torch.equal(trunk_features(ours, x, n_bins=8), expected)
            assert torch.equal(theirs(x, return_only_embeddings=True), expected)

    def test_a_card_with_other_fields_is_refused(self):
        with pytest.raises(WeightsError, match="card names"):
            TrunkCard(trained_on={"genes": []})


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestRefusals:
    def test_a_pickle_that_runs_code(self, tmp_path):
        marker = tmp_path / "marker"
        torch.save({"stem.0.weight": Trap(marker)}, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(SMALL))
        with pytest.raises(UnsafeFile, match="more than tensors"):
            load_trunk(tmp_path)
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("model.safetensors", b""),
            ("model.safetensors", b"\xff" * 64),
            ("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
            ("pytorch_model.bin", b""),
            ("pytorch_model.bin", b"PK\x03\x04 torn"),
        ],
    )
    def test_a_damaged_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "config.json").write_text(json.dumps(SMALL))
        with pytest.raises(WeightsError, match=r"not a whole|refused") as caught:
            load_trunk(tmp_path)
        assert name in caught.value.where

    def test_weights_that_do_not_fit_their_config(self, trunk, tmp_path):
        plain = {k: v.clone() for k, v in trunk.model.state_dict().items() if not k.startswith("_trunk.")}
        (tmp_path / "config.json").write_text(json.dumps(SMALL))
        save_file({k: v for k, v in plain.items() if k != "stem.0.bias"}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"1 absent \['stem.0.bias'\]"):
            load_trunk(tmp_path)
        save_file({**plain, "stem.0.bias": torch.zeros(5)}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"stem.0.bias"):
            load_trunk(tmp_path)

    def test_absent_files_are_named(self, trunk, tmp_path):
        with pytest.raises(WeightsError, match=r"model\.safetensors, pytorch_model\.bin"):
            make_window_embedder("enformer", {"checkpoint": str(tmp_path)})
        with pytest.raises(WeightsError, match="no model folder"):
            make_window_embedder("enformer", {"checkpoint": str(tmp_path / "absent" / "folder")})
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"no config.json"):
            load_trunk(tmp_path)

    def test_a_hub_id_that_is_not_here_asks_no_network(self, monkeypatch, tmp_path):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        with pytest.raises(WeightsError) as caught:
            make_window_embedder("enformer", {"checkpoint": "EleutherAI/enformer-official-rough"})
        assert "models--EleutherAI--enformer-official-rough" in caught.value.where
        assert "--allow-download" in caught.value.fix
        assert "config.json" in caught.value.fix

    @pytest.mark.parametrize("options", [{}, {"checkpoint": "x/y", "dim": 48}])
    def test_neither_or_both_of_checkpoint_and_architecture(self, options):
        with pytest.raises(ConfigError, match="either a checkpoint or an architecture"):
            make_window_embedder("enformer", options)

    def test_an_impossible_architecture(self):
        with pytest.raises(WeightsError, match="no Enformer can be built"):
            make_window_embedder("enformer", {"dim": 50, "heads": 0})


def test_the_registry_builds_a_random_trunk_and_reads_a_folder(tmp_path):
    random = make_window_embedder("enformer", {**SMALL, "seed": 7, "device": "cpu"})
    save_trunk(random.model, tmp_path, {"factors": [], "chromosomes": [], "biotypes": []})
    folder = make_window_embedder("enformer", {"checkpoint": str(tmp_path), "device": "cpu"})
    assert folder.spec("g", GRID) == random.spec("g", GRID)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    genome = TinyGenome({"a": 1300})
    tiling = Tiling.over(GRID, genome.lengths_bp)
    on = {
        device: np.stack(
            [
                v
                for _, v in EnformerEmbedder(random_trunk(SMALL, seed=1), device=device).embed(
                    [0, 1], genome.codes, tiling
                )
            ]
        )
        for device in ("cpu", "cuda")
    }
    np.testing.assert_allclose(on["cuda"], on["cpu"], rtol=0, atol=2e-4)
