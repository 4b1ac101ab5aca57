"""ESM through fair-esm: the contract, long proteins, the published file layout made here, and refusals."""

from __future__ import annotations

import argparse
import json

import esm as fair_esm
import numpy as np
import pytest
import torch

from tests.contracts import SequenceEmbedderContract
from tfbind_store.errors import ConfigError, UnsafeFile, WeightsError
from tfbind_store.precompute.embedder import make_sequence_embedder
from tfbind_store.precompute.esm import EsmEmbedder, EsmOptions, load_esm, random_esm2
from tfbind_store.precompute.weights import load_pickle

SMALL = {"num_layers": 2, "embed_dim": 32, "attention_heads": 4, "seed": 1, "device": "cpu"}
PROTEIN = "MKVLAAGIVGLNDERSTWYHCFPQ"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestEsm2KeepsTheContract(SequenceEmbedderContract):
    tolerance = 1e-5

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
            ours = rows(EsmEmbedder(model, alphabet, EsmOptions(layer=layer, device="cpu")), PROTEIN)
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


def transformers_folder(folder, seed: int = 3, **config):
    """Write a random ESM-2 as transformers does, and return its model."""
    from transformers import EsmConfig, EsmModel

    torch.manual_seed(seed)
    settings = dict(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False, layer_norm_eps=1e-5,
        mask_token_id=32, pad_token_id=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = EsmModel(EsmConfig(**settings | config), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    alphabet = fair_esm.Alphabet.from_architecture("ESM-1b")
    (folder / "vocab.txt").write_text("\n".join(alphabet.all_toks))
    return model


class TestATransformersFolderIsAnEqual:
    def test_its_numbers_are_those_of_transformers(self, tmp_path):
        model = transformers_folder(tmp_path)
        alphabet = fair_esm.Alphabet.from_architecture("ESM-1b")
        _, _, tokens = alphabet.get_batch_converter()([("x", PROTEIN)])
        with torch.no_grad():
            layers = model(tokens, output_hidden_states=True).hidden_states
        for layer in (0, 1, 2):
            embedder = make_sequence_embedder("esm", {"checkpoint": str(tmp_path), "layer": layer, "device": "cpu"})
            expected = layers[layer][0, 1:-1].numpy()
            np.testing.assert_allclose(rows(embedder, PROTEIN), expected, rtol=0, atol=2e-5)

    def test_the_same_weights_as_a_published_file_have_the_same_fingerprint_and_numbers(self, tmp_path):
        transformers_folder(tmp_path)
        model, _ = load_esm(tmp_path)
        cfg = argparse.Namespace(encoder_layers=2, encoder_embed_dim=32, encoder_attention_heads=4, token_dropout=True)
        state = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in model.state_dict().items()
                 if not name.startswith(("lm_head", "contact_head"))}  # fmt: skip
        state |= {f"encoder.{name}": tensor for name, tensor in model.state_dict().items() if "lm_head" in name}
        torch.save({"cfg": {"model": cfg}, "model": state}, tmp_path / "esm2_t2.pt")
        one, other = (
            make_sequence_embedder("esm", {"checkpoint": str(place), "device": "cpu"})
            for place in (tmp_path, tmp_path / "esm2_t2.pt")
        )
        assert one.spec().fingerprint == other.spec().fingerprint
        np.testing.assert_array_equal(rows(one, PROTEIN), rows(other, PROTEIN))

    @pytest.mark.parametrize("safe", [True, False])
    def test_weights_in_several_files(self, tmp_path, safe):
        model = transformers_folder(tmp_path / "one")
        transformers_folder(tmp_path / "many")
        (tmp_path / "many" / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / "many", max_shard_size="20KB", safe_serialization=safe)
        assert len(list((tmp_path / "many").glob("*-of-*"))) > 2
        one, many = (
            make_sequence_embedder("esm", {"checkpoint": str(tmp_path / name), "device": "cpu"})
            for name in ("one", "many")
        )
        assert one.spec() == many.spec()

    @pytest.mark.parametrize("name", ["../one/model.safetensors", "/etc/passwd", "x.txt", 3])
    def test_an_index_that_points_elsewhere(self, tmp_path, name):
        transformers_folder(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UnsafeFile, match="refused: the index names"):
            load_esm(tmp_path)
        index.write_text("[]")
        with pytest.raises(WeightsError, match="no index of weights"):
            load_esm(tmp_path)

    def test_refusals(self, tmp_path):
        transformers_folder(tmp_path / "old", position_embedding_type="absolute")
        with pytest.raises(WeightsError, match="position_embedding_type is 'absolute'"):
            load_esm(tmp_path / "old")
        transformers_folder(tmp_path / "words")
        (tmp_path / "words" / "vocab.txt").write_text("A\nC\n")
        with pytest.raises(WeightsError, match="tokens are not ESM-2's"):
            load_esm(tmp_path / "words")
        transformers_folder(tmp_path / "torn")
        from safetensors.torch import load_file, save_file

        tensors = load_file(tmp_path / "torn" / "model.safetensors")
        tensors.pop("encoder.layer.1.output.dense.weight")
        save_file(tensors, tmp_path / "torn" / "model.safetensors")
        with pytest.raises(WeightsError, match="1 tensors are absent"):
            load_esm(tmp_path / "torn")


class TestAlphabet:
    def test_unusual_letters_are_read_and_j_is_x(self):
        embedder = make_sequence_embedder("esm", SMALL)
        np.testing.assert_array_equal(rows(embedder, "MJK"), rows(embedder, "MXK"))
        assert len(rows(embedder, "MXBUZOK")) == 7


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

    def test_options_that_ask_for_a_huge_model(self, tmp_path):
        esm1b_file(tmp_path / "esm.pt")
        data = load_pickle(tmp_path / "esm.pt")
        data["args"].encoder_layers, data["args"].decoder_layers = 10**7, 10**8
        torch.save(data, tmp_path / "esm.pt")
        with pytest.raises(WeightsError, match="layers 10,000,000, the weights do not"):
            load_esm(tmp_path / "esm.pt")
        transformers_folder(tmp_path / "folder")
        config = json.loads((tmp_path / "folder" / "config.json").read_text())
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config | {"hidden_size": 10**6}))
        with pytest.raises(WeightsError, match="the config has hidden_size 1,000,000"):
            load_esm(tmp_path / "folder")

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
