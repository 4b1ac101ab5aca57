"""BERT through transformers, on tiny models written here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.contracts import TextEmbedderContract
from tfbind_store.errors import ConfigError, UnsafeFile, WeightsError
from tfbind_store.precompute.embedder import make_text_embedder

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "cell", "Liver", "yeast", *LETTERS]
WORDS += [f"##{letter}" for letter in LETTERS] + ["L", "Y", "P", "D", "##P", "##D"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_folder(folder, *, lower_case: bool | None = True, safetensors: bool = True, seed: int = 0):
    """A BERT of 2 layers with a WordPiece vocabulary, as a hub folder has it."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config)
    with torch.no_grad():  # default initialisation is so small that every text comes out alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder, safe_serialization=safetensors)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if lower_case is not None:
        text = json.dumps({"do_lower_case": lower_case, "tokenizer_class": "BertTokenizer"})
        (folder / "tokenizer_config.json").write_text(text)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    write_folder(path)
    return path


def make(folder, **options):
    return make_text_embedder("bert", {"checkpoint": str(folder), "device": "cpu", **options})


class TestBertKeepsTheContract(TextEmbedderContract):
    tolerance = 2e-5

    @pytest.fixture
    def embedder(self, folder):
        return make(folder)


class TestMeanPoolingKeepsTheContract(TextEmbedderContract):
    tolerance = 2e-5

    @pytest.fixture
    def embedder(self, folder):
        return make(folder, pooling="mean", batch_size=2)


def test_the_numbers_are_those_of_the_model_itself(folder):
    from transformers import BertModel, BertTokenizer

    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    with torch.no_grad():
        layers = model(**tokenizer("yeast cell ypd", return_tensors="pt"), output_hidden_states=True).hidden_states
    for layer, rows in ((None, layers[2][0].numpy()), (1, layers[1][0].numpy()), (0, layers[0][0].numpy())):
        expected = {"cls": rows[0], "mean": rows.mean(0), "mean_of_words": rows[1:-1].mean(0)}
        for pooling, vector in expected.items():
            ours = make(folder, pooling=pooling, layer=layer).embed(["yeast cell ypd", "liver"]).values[0]
            np.testing.assert_allclose(ours, vector, rtol=0, atol=1e-5)


def test_texts_share_batches_with_those_of_like_length_and_keep_their_order(folder, monkeypatch):
    embedder = make(folder, batch_size=2)
    asked, real = [], embedder._forward
    monkeypatch.setattr(embedder, "_forward", lambda texts: asked.append(texts) or real(texts))
    texts = ["cell", "cell " * 9, "liver cell", "yeast " * 9]
    found = embedder.embed(texts).values
    assert asked == [["cell " * 9, "yeast " * 9], ["liver cell", "cell"]]
    for row, text in enumerate(texts):
        np.testing.assert_allclose(found[row], embedder.embed([text]).values[0], atol=2e-5)


def test_a_text_without_words_has_no_mean_of_words(folder):
    assert not make(folder, pooling="mean_of_words").embed([""]).values.any()


def test_pooling_weights_and_vocabulary_are_part_of_the_identity(folder, tmp_path):
    spec = make(folder).spec()
    for change, field in (
        ({"pooling": "mean"}, "identity.pooling"),
        ({"pooling": "mean_of_words"}, "identity.pooling"),
        ({"layer": 1}, "identity.layer"),
        ({"max_tokens": 16}, "identity.length_policy"),
    ):
        assert [d.field for d in spec.differences(make(folder, **change).spec())] == [field]
    assert make(folder, layer=2, batch_size=1).spec() == spec
    write_folder(tmp_path / "other", seed=1)
    assert [d.field for d in spec.differences(make(tmp_path / "other").spec())] == ["identity.weights_sha256"]
    write_folder(tmp_path / "cased", lower_case=False)
    assert [d.field for d in spec.differences(make(tmp_path / "cased").spec())] == ["identity.tokenizer_sha256"]


def test_long_texts_are_cut_and_said_to_be(folder):
    embedder = make(folder, max_tokens=8)
    result = embedder.embed(["cell " * 6, "cell " * 7, "liver"])
    assert result.truncated.tolist() == [False, True, False]
    np.testing.assert_allclose(result.values[0], result.values[1], atol=1e-5)
    assert make(folder).max_tokens == 64


def test_case_follows_the_folder_and_can_be_overridden(tmp_path):
    write_folder(tmp_path / "cased", lower_case=False)
    lower, upper = make(tmp_path / "cased").embed(["liver", "Liver"]).values
    assert np.abs(lower - upper).max() > 1e-3
    lower, upper = make(tmp_path / "cased", lower_case=True).embed(["liver", "Liver"]).values
    np.testing.assert_allclose(lower, upper, atol=1e-5)


def test_where_no_file_speaks_of_case_the_vocabulary_does(tmp_path):
    # BioBERT's repository has had no tokenizer_config.json: transformers alone would lower-case every word of it
    write_folder(tmp_path / "cased", lower_case=None)
    lower, upper = make(tmp_path / "cased").embed(["liver", "Liver"]).values
    assert np.abs(lower - upper).max() > 1e-3
    write_folder(tmp_path / "uncased", lower_case=None)
    words = [word if word.startswith("[") else word.lower() + "x" * (word != word.lower()) for word in WORDS]
    (tmp_path / "uncased" / "vocab.txt").write_text("\n".join(words) + "\n")
    lower, upper = make(tmp_path / "uncased").embed(["liver", "Liver"]).values
    np.testing.assert_allclose(lower, upper, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("PubMedBERT", "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"),
        ("BioBERT", "dmis-lab/biobert-base-cased-v1.2"),
    ],
)
def test_models_that_have_a_name(tmp_path, monkeypatch, name, hub_id):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=f"the weights of {hub_id} are not on this machine"):
        make(name)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name)
    assert make(name).spec()  # a folder of that name comes first


def test_a_pickled_checkpoint_gives_the_same_numbers(folder, tmp_path):
    write_folder(tmp_path, safetensors=False)
    assert (tmp_path / "pytorch_model.bin").exists()
    assert make(tmp_path).spec() == make(folder).spec()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestRefusals:
    def test_a_pickle_that_runs_code(self, tmp_path):
        write_folder(tmp_path, safetensors=False)
        torch.save({"x": Trap(tmp_path / "marker")}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UnsafeFile):
            make(tmp_path)
        assert not (tmp_path / "marker").exists()

    @pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors", "config.json"])
    def test_an_absent_file_is_named(self, tmp_path, name):
        write_folder(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            make(tmp_path)

    def test_a_damaged_file(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(WeightsError):
            make(tmp_path)

    def test_weights_with_a_layer_missing_are_not_drawn_at_random(self, tmp_path):
        from safetensors.torch import load_file, save_file

        write_folder(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["encoder.layer.1.output.dense.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match="1 tensors are absent"):
            make(tmp_path)

    def test_a_config_that_asks_for_a_huge_model(self, tmp_path):
        write_folder(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 10**6, "num_hidden_layers": 10**5}))
        with pytest.raises(WeightsError, match="the config has hidden_size 1,000,000, the weights do not"):
            make(tmp_path)

    def test_code_in_a_folder_is_not_run(self, tmp_path):
        write_folder(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
        with pytest.raises(WeightsError):
            make(tmp_path)
        assert not (tmp_path / "marker").exists()

    def test_bad_options(self, folder):
        for options in (
            {},
            {"checkpoint": str(folder), "max_tokens": 2},
            {"checkpoint": str(folder), "pooling": "max"},
            {"checkpoint": str(folder), "layer": 3},
        ):
            with pytest.raises(ConfigError):
                make_text_embedder("bert", options)
