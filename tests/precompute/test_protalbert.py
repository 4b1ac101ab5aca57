"""ProtAlbert through transformers, on a tiny model and vocabulary made here."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch

from tests.contracts import SequenceEmbedderContract
from tfbind_store.errors import ConfigError, DependencyError, UnsafeFile, WeightsError
from tfbind_store.precompute.embedder import make_sequence_embedder

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
PROTEIN = "MKVLAAGIVGLNDERSTWYHCFPQ"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("albert"))


def write_folder(folder, *, safe: bool = True, letters: str = LETTERS):
    """An ALBERT of 2 layers as a hub folder has it, with ProtAlbert's kind of vocabulary."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    from transformers import AlbertConfig, AlbertForMaskedLM

    (folder / "corpus.txt").write_text("\n".join(" ".join(letters) for _ in range(20)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=len(letters) + 4,
        model_type="word", pad_id=0, pad_piece="<pad>", unk_id=1, bos_id=2, bos_piece="[CLS]", eos_id=3,
        eos_piece="[SEP]",
        minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=80, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = AlbertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder, safe_serialization=safe)
    return folder


def make(folder, **options):
    return make_sequence_embedder("protalbert", {"checkpoint": str(folder), "device": "cpu", **options})


def rows(embedder, sequence) -> np.ndarray:
    return next(iter(embedder.embed([sequence]))).values


class TestProtAlbertKeepsTheContract(SequenceEmbedderContract):
    tolerance = 2e-5

    @pytest.fixture
    def embedder(self, folder):
        return make(folder)


def test_the_numbers_are_those_of_the_model_without_its_special_tokens(folder):
    from sentencepiece import SentencePieceProcessor
    from transformers import AlbertModel

    model = AlbertModel.from_pretrained(folder).eval()
    pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    middle = [pieces.piece_to_id(f"\u2581{letter}") for letter in PROTEIN]
    assert pieces.encode(" ".join(PROTEIN)) == middle
    with torch.no_grad():
        layers = model(torch.tensor([[2, *middle, 3]]), output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        np.testing.assert_allclose(rows(make(folder, layer=layer), PROTEIN), layers[layer][0, 1:-1], atol=1e-5)


def test_letters_that_it_does_not_know_are_x(folder):
    embedder = make(folder)
    for letter in "UZOBJ":
        np.testing.assert_array_equal(rows(embedder, f"MK{letter}V"), rows(embedder, "MKXV"))


def test_no_more_than_its_positions_are_read_at_once(folder):
    embedder = make(folder)
    assert embedder.window == 78
    assert len(rows(embedder, "MK" * 50)) == 100
    with pytest.raises(ConfigError):
        make(folder, window=79)


def test_refusals(tmp_path, folder):
    short = write_folder(tmp_path, letters=LETTERS.replace("W", ""))
    with pytest.raises(WeightsError, match="lacks W"):
        make(short)
    (short / "spiece.model").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="not a sentencepiece vocabulary"):
        make(short)
    (short / "spiece.model").unlink()
    with pytest.raises(WeightsError, match=r"spiece\.model"):
        make(short)


def test_a_pickle_that_runs_code(tmp_path):
    folder = write_folder(tmp_path, safe=False)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    torch.save({"x": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFile):
        make(folder)
    assert not (tmp_path / "marker").exists()


def test_without_sentencepiece_the_error_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sentencepiece":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError) as caught:
        make(folder)
    assert "tfbind-store[protalbert]" in caught.value.fix
