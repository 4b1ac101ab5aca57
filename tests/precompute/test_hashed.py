"""Hashed n-grams: the contract and what is alike."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contracts import TextEmbedderContract
from tfbind_store.errors import ConfigError
from tfbind_store.precompute.embedder import make_text_embedder


class TestHashedKeepsTheContract(TextEmbedderContract):
    @pytest.fixture
    def embedder(self):
        return make_text_embedder("hashed")


def embed(*texts: str, **options) -> np.ndarray:
    return make_text_embedder("hashed", options).embed(texts).values


def test_vectors_have_length_one_and_an_empty_text_is_zero():
    values = embed("liver", "hepatocyte of the liver, adult", "", " .,;")
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), [1, 1, 0, 0], rtol=1e-6)


def test_shared_words_and_shared_stems_are_near():
    liver, hepatic, cell, neuron = embed("cell type: liver", "cell type: livers", "hepatic cells", "cortical neuron")
    assert liver @ hepatic > 0.7
    assert hepatic @ cell > cell @ neuron - 0.2
    assert abs(liver @ neuron) < 0.3


def test_case_and_punctuation_do_not_count():
    first, second = embed("Cell type: HepG2 | liver", "cell TYPE hepg2 liver")
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_numbers_are_the_same_on_every_machine():
    values = embed("GM12878")[0]
    assert np.flatnonzero(values)[:4].tolist() == [14, 16, 24, 38]
    assert np.unique(np.abs(values[values != 0]).round(6)).tolist() == pytest.approx([0.218218, 0.436436], abs=1e-5)


def test_bad_options():
    for options in ({"dim": 1}, {"shortest": 0}, {"shortest": 4, "longest": 3}):
        with pytest.raises(ConfigError):
            make_text_embedder("hashed", options)
