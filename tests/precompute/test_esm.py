"""ESM through fair-esm: the contract, long proteins, the published file layout made here, and refusals."""

from __future__ import annotations

import argparse
import itertools

import esm as fair_esm
import numpy as np
import pytest
import torch

from tests.contracts import SequenceEmbedderContract
from tfbind_store.errors import ConfigError, ProteinError, UnsafeFile, WeightsError
from tfbind_store.precompute.embedder import make_sequence_embedder
from tfbind_store.precompute.esm import EsmEmbedder, load_esm, random_esm2, stretch_starts

SMALL = {"num_layers": 2, "embed_dim": 32, "attention_heads": 4, "seed": 1, "device": "cpu"}
PROTEIN = "MKVLAAGIVGLNDERSTWYHCFPQ"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestEsm2KeepsTheContract(SequenceEmbedderContract):
    @pytest.fixture
    def embedder(self):
        return make_sequence_embedder("esm", SMALL)


def rows(embedder, sequence: str) -> np.ndarray:
    return next(iter(embedder.embed([sequence]))).values


def plain(model, alphabet, sequence: str, layer: int) -> np.ndarray:
    """fair-esm's own way: its batch converter, then the rows between the special tokens."""
    _, _, tokens = alphabet.get_batch_converter()([("x", sequence)])
    with torch.no_grad():
        found = model(tokens, repr_layers=[layer])["representations"][layer]
    return found[0, 1 : len(sequence) + 1].numpy()


def esm2_file(path, seed: int = 3) -> torch.nn.Module:
    """Write a file of the published ESM-2 layout."""
    model, _ = random_esm2(2, 32, 4, seed=seed)
    cfg = argparse.Namespace(encoder_layers=2, encoder_embed_dim=32, encoder_attention_heads=4, token_dropout=True)
    state = {
        f"encoder.sentence_encoder.{name}": tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("lm_head", "contact_head"))
    }
    state |= {f"encoder.{name}": tensor for name, tensor in model.state_dict().items() if name.startswith("lm_head")}
    torch.save({"cfg": {"model": cfg}, "model": state}, path)
    return model.eval()


def esm1b_file(path) -> torch.nn.Module:
    """Write a file of the published ESM-1b layout."""
    args = dict(arch="roberta_large", layers=2, embed_dim=32, ffn_embed_dim=64, attention_heads=4,
                max_positions=1024, final_bias=True, token_dropout=True, emb_layer_norm_before=True)  # fmt: skip
    alphabet = fair_esm.Alphabet.from_architecture("ESM-1b")
    torch.manual_seed(0)
    model = fair_esm.ProteinBertModel(argparse.Namespace(**args), alphabet)
    with torch.no_grad():
        model.embed_tokens.weight[alphabet.mask_idx].zero_()
    published = {
        f"encoder_{name}" if name not in ("arch", "token_dropout", "emb_layer_norm_before") else name: value
        for name, value in args.items()
    }
    state = {
        f"encoder.{'' if name.startswith('lm_head') else 'sentence_encoder.'}{name}": tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head")
    }
    torch.save({"args": argparse.Namespace(**published), "model": state}, path)
    return model.eval()


class TestNumbersAreFairEsms:
    def test_of_the_last_and_of_a_middle_layer(self):
        model, alphabet = random_esm2(2, 32, 4, seed=1)
        for layer in (2, 1):
            ours = rows(EsmEmbedder(model, alphabet, layer=layer, device="cpu"), PROTEIN)
            np.testing.assert_allclose(ours, plain(model, alphabet, PROTEIN, layer), rtol=0, atol=1e-6)

    def test_of_an_esm2_file(self, tmp_path):
        model = esm2_file(tmp_path / "esm2_t2_tiny.pt")
        embedder = make_sequence_embedder("esm", {"checkpoint": str(tmp_path / "esm2_t2_tiny.pt"), "device": "cpu"})
        alphabet = fair_esm.Alphabet.from_architecture("ESM-1b")
        np.testing.assert_allclose(rows(embedder, PROTEIN), plain(model, alphabet, PROTEIN, 2), rtol=0, atol=1e-6)

    def test_of_an_esm1b_file_whatever_its_name(self, tmp_path):
        model = esm1b_file(tmp_path / "renamed.pt")
        embedder = make_sequence_embedder("esm", {"checkpoint": str(tmp_path / "renamed.pt"), "device": "cpu"})
        alphabet = fair_esm.Alphabet.from_architecture("ESM-1b")
        np.testing.assert_allclose(rows(embedder, PROTEIN), plain(model, alphabet, PROTEIN, 2), rtol=0, atol=1e-6)
        assert embedder.spec().identity["class"] == "esm.ProteinBertModel"


class TestLongProteins:
    @pytest.mark.parametrize(
        ("length", "window", "overlap", "starts"),
        [
            (1022, 1022, 256, [0]),
            (1023, 1022, 256, [0, 1]),
            (1788, 1022, 256, [0, 766]),
            (1789, 1022, 256, [0, 384, 767]),
            (1, 8, 4, [0]),
        ],
    )
    def test_stretches(self, length, window, overlap, starts):
        assert stretch_starts(length, window, overlap) == starts

    @pytest.mark.parametrize("length", [13, 16, 17, 24, 40, 41])
    def test_stretches_cover_everything_and_overlap_enough(self, length):
        starts = stretch_starts(length, 16, 6)
        covered = {place for start in starts for place in range(start, min(start + 16, length))}
        assert covered == set(range(length))
        assert starts[-1] + 16 >= length
        assert all(second - first <= 10 for first, second in itertools.pairwise(starts))
        assert starts == sorted(set(starts))

    def test_every_residue_has_a_row_and_overlaps_are_averaged(self):
        model, alphabet = random_esm2(2, 32, 4, seed=1)
        embedder = EsmEmbedder(model, alphabet, window=16, overlap=6, device="cpu")
        result = next(iter(embedder.embed([PROTEIN])))
        assert result.values.shape == (24, 32)
        assert result.truncated is False
        first, second = (plain(model, alphabet, PROTEIN[s : s + 16], 2) for s in (0, 8))
        np.testing.assert_allclose(result.values[:8], first[:8], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.values[8:16], (first[8:] + second[:8]) / 2, rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.values[16:], second[8:], rtol=0, atol=1e-6)

    def test_the_longest_that_fits_is_read_at_once(self):
        embedder = make_sequence_embedder("esm", {**SMALL, "num_layers": 1})
        assert len(rows(embedder, "MK" * 511)) == 1022
        assert len(rows(embedder, "MK" * 511 + "V")) == 1023


class TestAlphabet:
    def test_unusual_letters_are_read_and_j_is_x(self):
        embedder = make_sequence_embedder("esm", SMALL)
        np.testing.assert_array_equal(rows(embedder, "MJK"), rows(embedder, "MXK"))
        assert len(rows(embedder, "MXBUZOK")) == 7

    @pytest.mark.parametrize("sequence", ["", "mkv", "MK*", "MK-V", "MK.V", "M<mask>"])
    def test_everything_else_is_refused(self, sequence):
        with pytest.raises(ProteinError):
            rows(make_sequence_embedder("esm", SMALL), sequence)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestRefusals:
    def test_a_pickle_that_runs_code(self, tmp_path):
        marker = tmp_path / "marker"
        torch.save({"args": argparse.Namespace(arch=Trap(marker)), "model": {}}, tmp_path / "evil.pt")
        with pytest.raises(UnsafeFile, match="more than tensors"):
            make_sequence_embedder("esm", {"checkpoint": str(tmp_path / "evil.pt")})
        assert not marker.exists()

    def test_other_files(self, tmp_path):
        torch.save({"model": {}}, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match="no ESM-1 or ESM-2 weights"):
            load_esm(tmp_path / "other.pt")
        torch.save({"args": argparse.Namespace(arch="msa_transformer"), "model": {}}, tmp_path / "msa.pt")
        with pytest.raises(WeightsError, match="msa_transformer"):
            load_esm(tmp_path / "msa.pt")
        (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
        with pytest.raises(WeightsError, match=r"not a whole|refused"):
            load_esm(tmp_path / "torn.pt")
        with pytest.raises(WeightsError, match="no such weights file"):
            load_esm(tmp_path / "absent.pt")

    def test_an_absent_tensor(self, tmp_path):
        esm2_file(tmp_path / "esm2.pt")
        data = torch.load(tmp_path / "esm2.pt", weights_only=False)
        del data["model"]["encoder.sentence_encoder.embed_tokens.weight"]
        torch.save(data, tmp_path / "esm2.pt")
        with pytest.raises(WeightsError, match="do not fit"):
            load_esm(tmp_path / "esm2.pt")

    def test_a_published_name_that_is_not_here_says_file_and_place(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(WeightsError) as caught:
            make_sequence_embedder("esm", {"checkpoint": "esm2_t33_650M_UR50D"})
        assert caught.value.where == str(tmp_path / "hub" / "checkpoints" / "esm2_t33_650M_UR50D.pt")
        assert "https://dl.fbaipublicfiles.com/fair-esm/models/esm2_t33_650M_UR50D.pt" in caught.value.fix

    def test_a_published_name_that_is_here_is_loaded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        esm2_file(tmp_path / "hub" / "checkpoints" / "esm2_t2_tiny.pt")
        assert make_sequence_embedder("esm", {"checkpoint": "esm2_t2_tiny"}).spec().dim == 32

    def test_neither_a_file_nor_a_published_name(self):
        with pytest.raises(WeightsError, match="neither a file nor a published"):
            make_sequence_embedder("esm", {"checkpoint": "../../x"})

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"checkpoint": "esm2_t6_8M_UR50D", "num_layers": 2},
            {**SMALL, "layer": 3},
            {**SMALL, "window": 1023},
            {**SMALL, "window": 8, "overlap": 8},
        ],
    )
    def test_bad_options(self, options):
        with pytest.raises(ConfigError):
            make_sequence_embedder("esm", options)


def test_weights_layer_and_length_policy_are_part_of_the_identity(tmp_path):
    spec = make_sequence_embedder("esm", SMALL).spec()
    for change, field in (
        ({"seed": 2}, "identity.weights_sha256"),
        ({"layer": 1}, "identity.layer"),
        ({"window": 512}, "identity.length_policy"),
    ):
        other = make_sequence_embedder("esm", {**SMALL, **change}).spec()
        assert [d.field for d in spec.differences(other)] == [field]
