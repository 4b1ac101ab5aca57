"""Composition: the contract, the arithmetic by hand, and that related proteins come out alike."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tests.contracts import SequenceEmbedderContract
from tfbind_store.errors import ConfigError
from tfbind_store.precompute.composition import (
    AMINO_ACIDS,
    BACKGROUND,
    SCALES,
    CompositionEmbedder,
    residue_table,
    windowed_means,
)
from tfbind_store.precompute.embedder import make_sequence_embedder


class TestCompositionKeepsTheContract(SequenceEmbedderContract):
    @pytest.fixture
    def embedder(self):
        return make_sequence_embedder("composition")


def one(sequence: str, **options) -> np.ndarray:
    return next(iter(CompositionEmbedder(**options).embed([sequence]))).values


def test_the_tables_have_one_number_per_amino_acid():
    assert len(AMINO_ACIDS) == len(BACKGROUND) == 20
    assert all(len(values) == 20 for values in SCALES.values())
    assert SCALES["hydropathy"][AMINO_ACIDS.index("I")] == 4.5
    assert SCALES["volume"][AMINO_ACIDS.index("W")] == 227.8
    assert [a for a, v in zip(AMINO_ACIDS, SCALES["charge"], strict=True) if v < 0] == ["D", "E"]
    assert sum(BACKGROUND) == pytest.approx(1, abs=0.02)


def test_the_columns_of_width_1_are_the_table():
    values = one("WAX", widths=(1,))
    np.testing.assert_allclose(values[0, :26], residue_table()[18], rtol=1e-6)
    np.testing.assert_allclose(values[1, :26], residue_table()[0], rtol=1e-6)
    assert (values[2, :26] == 0).all()
    np.testing.assert_allclose(values[:, 26], (np.log(3) - 6) / 0.7, rtol=1e-6)


def test_every_width_is_its_own_mean():
    values = one("WWAAAAAAA", widths=(3, 0))
    w, a = residue_table()[18], residue_table()[0]
    narrow = values[:, :26]
    np.testing.assert_allclose(narrow[0] / narrow[1], w / ((2 * w + a) / 3), rtol=1e-5)
    np.testing.assert_allclose(narrow[5] / narrow[1], a / ((2 * w + a) / 3), rtol=1e-5)
    np.testing.assert_allclose(values[:, 26:52], np.tile((2 * w + 7 * a) / 9 / 0.10, (9, 1)), rtol=1e-5)


def test_windowed_means_are_cut_at_the_ends():
    sums = np.array([[0.0], [1.0], [3.0], [6.0], [10.0]])
    assert windowed_means(sums, 1).ravel().tolist() == [1, 2, 3, 4]
    assert windowed_means(sums, 3).ravel().tolist() == [1.5, 2, 3, 3.5]
    assert windowed_means(sums, 0).ravel().tolist() == [2.5] * 4


def test_unusual_letters():
    np.testing.assert_array_equal(one("MUK"), one("MCK"))
    np.testing.assert_array_equal(one("MOK"), one("MKK"))
    np.testing.assert_array_equal(one("MBK"), one("MXK"))


def test_even_and_negative_widths_are_refused():
    for widths in ((2,), (-1,), ()):
        with pytest.raises(ConfigError):
            CompositionEmbedder(widths)


def test_nothing_is_truncated_and_everything_fits_float16():
    long = AMINO_ACIDS * 300
    values = one(long)
    assert len(values) == 6000
    assert np.abs(one("W" * 500)).max() < 200
    assert np.isfinite(values.astype(np.float16)).all()


def test_a_shared_domain_gives_nearer_rows_than_another_protein():
    random = np.random.default_rng(0)
    letters = np.array(list(AMINO_ACIDS))
    domain = "".join(random.choice(letters, 80, p=np.array(BACKGROUND) / sum(BACKGROUND)))
    other = "".join(random.choice(letters, 80))
    first, second, third = (
        one(flank + domain_or + flank)[40:120]
        for flank, domain_or in (("A" * 40, domain), ("A" * 40, domain[:40] + "A" + domain[41:]), ("A" * 40, other))
    )
    assert np.linalg.norm(first - second) < 0.3 * np.linalg.norm(first - third)


@pytest.mark.real_data
def test_columns_of_real_proteins_are_near_unit_spread(data_dir):
    text = gzip.decompress((data_dir / "yeast_sacCer3" / "sacCer3.proteins.fa.gz").read_bytes()).decode()
    proteins = ["".join(part.split("\n")[1:]).rstrip("*") for part in text.split(">")[1:]]
    rows = np.concatenate([result.values for result in CompositionEmbedder().embed(proteins[::20])])
    assert np.abs(rows.mean(0)).max() < 1.5
    assert rows.std(0).min() > 0.4
    assert rows.std(0).max() < 1.6
