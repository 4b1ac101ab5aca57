"""Contracts: what every embedder must do. A real one subclasses the class of its kind and gives `embedder`.

``tests/precompute/`` has the subclasses; heads have theirs in ``tests/head_contract.py``.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tfbind_store.errors import ProteinError, SpecError
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.spec import EmbeddingSpec

PAD = 5


class TinyGenome:
    """Chromosomes of seeded random bases in memory, with the `codes` that embedders read."""

    def __init__(self, lengths_bp: dict[str, int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.lengths_bp = lengths_bp
        self.sequences = {name: random.integers(0, 4, length).astype(np.uint8) for name, length in lengths_bp.items()}

    def codes(self, locus: Locus) -> np.ndarray:
        out = np.full(locus.end - locus.start, PAD, dtype=np.uint8)
        start, end = max(locus.start, 0), min(locus.end, self.lengths_bp[locus.chrom])
        if end > start:
            out[start - locus.start : end - locus.start] = self.sequences[locus.chrom][start:end]
        return out


class WindowEmbedderContract:
    """For embedders of DNA. The genome has three windows on `a` (the last one reaches past its end) and one on `b`."""

    grid = Grid(window_bp=1024, n_bins=4, bin_bp=128)
    tolerance = 0.0
    """Largest difference that batching may make."""

    @pytest.fixture
    def embedder(self):
        raise NotImplementedError

    def with_batch_size(self, size: int):
        """The same embedder with another batch size; None where it has none."""
        return

    @pytest.fixture
    def genome(self) -> TinyGenome:
        return TinyGenome({"a": 1300, "b": 400})

    @pytest.fixture
    def tiling(self, genome) -> Tiling:
        return Tiling.over(self.grid, genome.lengths_bp)

    def values(self, embedder, genome, tiling, windows=None) -> dict[int, np.ndarray]:
        windows = range(tiling.n_windows) if windows is None else windows
        return dict(embedder.embed(list(windows), genome.codes, tiling))

    def test_gives_one_float32_block_per_window_in_the_order_asked(self, embedder, genome, tiling):
        results = list(embedder.embed([2, 0, 3], genome.codes, tiling))
        assert [result.window for result in results] == [2, 0, 3]
        for result in results:
            assert result.values.shape == (self.grid.n_bins, embedder.geometry.dim)
            assert result.values.dtype == np.float32
            assert np.isfinite(result.values).all()

    def test_no_windows_give_no_results(self, embedder, genome, tiling):
        assert list(embedder.embed([], genome.codes, tiling)) == []

    def test_the_same_window_gives_the_same_numbers(self, embedder, genome, tiling):
        first, second = self.values(embedder, genome, tiling), self.values(embedder, genome, tiling)
        for window in first:
            np.testing.assert_array_equal(first[window], second[window])

    def test_the_batch_does_not_change_the_numbers(self, embedder, genome, tiling):
        together = self.values(embedder, genome, tiling)
        for window, values in together.items():
            alone = self.values(embedder, genome, tiling, [window])[window]
            np.testing.assert_allclose(alone, values, rtol=0, atol=self.tolerance)
        other = self.with_batch_size(3)
        if other is not None:
            for window, values in self.values(other, genome, tiling).items():
                np.testing.assert_allclose(values, together[window], rtol=0, atol=self.tolerance)

    def test_a_base_in_a_kept_bin_changes_that_bin(self, embedder, genome, tiling):
        before = self.values(embedder, genome, tiling, [1])[1]
        bin_index = 2
        start = tiling.bin_locus(1, bin_index).start
        genome.sequences["a"][start : start + 64] = (genome.sequences["a"][start : start + 64] + 1) % 4
        after = self.values(embedder, genome, tiling, [1])[1]
        assert np.abs(after[bin_index] - before[bin_index]).max() > 1e-3

    def test_n_and_padding_and_bases_all_differ(self, embedder, genome, tiling):
        start = tiling.bin_locus(0, 1).start
        outputs = []
        for code in (0, 1, 4, PAD):
            genome.sequences["a"][start : start + 128] = code
            outputs.append(self.values(embedder, genome, tiling, [0])[0][1])
        for first in range(4):
            for second in range(first):
                assert np.abs(outputs[first] - outputs[second]).max() > 1e-3, (first, second)

    def test_a_window_past_the_chromosome_end_is_padded_not_shifted(self, embedder, genome, tiling):
        longer = TinyGenome({"a": 1300 + 4000, "b": 400})
        longer.sequences["a"][:1300] = genome.sequences["a"]
        longer.sequences["a"][1300:] = PAD
        longer.sequences["b"] = genome.sequences["b"]
        at_end = self.values(embedder, genome, tiling, [2])[2]
        inside = self.values(embedder, longer, Tiling.over(self.grid, longer.lengths_bp), [2])[2]
        np.testing.assert_allclose(at_end, inside, rtol=0, atol=self.tolerance)

    def test_the_spec_is_json_and_names_grid_and_genome(self, embedder):
        spec = embedder.spec("digest", self.grid)
        assert spec.kind == "windows"
        assert spec.genome == "digest"
        assert spec.dim == embedder.geometry.dim
        assert spec.grid == {"window_bp": 1024, "n_bins": 4, "bin_bp": 128}
        again = EmbeddingSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again.fingerprint == spec.fingerprint == embedder.spec("digest", self.grid).fingerprint
        assert spec.fingerprint != embedder.spec("other", self.grid).fingerprint

    def test_a_grid_with_other_bins_is_refused(self, embedder):
        with pytest.raises(SpecError, match="bins of 64 bp"):
            embedder.spec("digest", Grid(window_bp=1024, n_bins=8, bin_bp=64))

    def test_an_odd_crop_is_refused(self, embedder):
        with pytest.raises(SpecError, match="not the centre"):
            embedder.spec("digest", Grid(window_bp=1024, n_bins=5, bin_bp=128))


class SequenceEmbedderContract:
    """For embedders of proteins."""

    tolerance = 0.0
    sequences = ("MKVLAAGIVGLNDERSTWYHCFPQ", "MSTNPKPQRK", "M")

    @pytest.fixture
    def embedder(self):
        raise NotImplementedError

    def test_gives_one_float32_row_per_residue_in_order(self, embedder):
        results = list(embedder.embed(self.sequences))
        assert [len(result.values) for result in results] == [24, 10, 1]
        for result in results:
            assert result.values.dtype == np.float32
            assert result.values.shape[1] == embedder.spec().dim
            assert np.isfinite(result.values).all()
            assert result.truncated is False

    def test_no_sequences_give_no_results(self, embedder):
        assert list(embedder.embed([])) == []

    def test_the_same_sequence_gives_the_same_numbers_in_any_company(self, embedder):
        together = list(embedder.embed(self.sequences))
        for sequence, result in zip(self.sequences, together, strict=True):
            alone = next(iter(embedder.embed([sequence])))
            np.testing.assert_allclose(alone.values, result.values, rtol=0, atol=self.tolerance)

    def test_one_rule_for_letters(self, embedder):
        for sequence in ("mkvla", "MK-V.LA*", "MKV LA\n", [10, 8, 17, 20, 9, 0, 20], np.array([10, 8, 17, 9, 0])):
            expected, found = embedder.embed(["MKVLA", sequence])
            np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=self.tolerance)
        assert len(next(iter(embedder.embed(["MKBJOUXZ"]))).values) == 8

    @pytest.mark.parametrize(
        ("sequence", "reason"),
        [
            ("", "empty"), ("--", "empty"), ([20, 20], "empty"), ("M*K", r"'\*' at residue 2"),
            ("MK1", "'1' at residue 3"), ("M<mask>", "'<' at residue 2"), ([1, 21], "number 21 at residue 2"),
            ([1, -1], "number -1"), ([[1, 2]], "one row of integers"), ([0.5], "one row of integers"),
        ],
    )  # fmt: skip
    def test_anything_else_is_refused_with_its_position(self, embedder, sequence, reason):
        with pytest.raises(ProteinError, match=reason):
            list(embedder.embed([sequence]))

    def test_a_bare_string_is_no_list_of_proteins(self, embedder):
        with pytest.raises(ProteinError, match="list of sequences"):
            list(embedder.embed("MKVLA"))

    def test_a_changed_residue_changes_its_row(self, embedder):
        first, second = embedder.embed(["MKVLAAGIVG", "MKVLWAGIVG"])
        assert np.abs(first.values[4] - second.values[4]).max() > 1e-3

    def test_the_spec_is_json(self, embedder):
        spec = embedder.spec()
        assert spec.kind == "proteins"
        assert EmbeddingSpec.from_json(json.loads(json.dumps(spec.to_json()))).fingerprint == spec.fingerprint


class TextEmbedderContract:
    """For embedders of text."""

    tolerance = 0.0
    texts = ("hepatocyte of liver", "yeast grown in YPD at 30 degrees", "")

    @pytest.fixture
    def embedder(self):
        raise NotImplementedError

    def test_gives_one_float32_row_per_text_in_order(self, embedder):
        result = embedder.embed(self.texts)
        assert result.values.shape == (3, embedder.spec().dim)
        assert result.values.dtype == np.float32
        assert np.isfinite(result.values).all()
        assert result.truncated.tolist() == [False, False, False]

    def test_no_texts_give_no_rows(self, embedder):
        result = embedder.embed([])
        assert result.values.shape == (0, embedder.spec().dim)
        assert result.truncated.shape == (0,)

    def test_the_same_text_gives_the_same_numbers_in_any_company(self, embedder):
        together = embedder.embed(self.texts).values
        for row, text in enumerate(self.texts):
            np.testing.assert_allclose(embedder.embed([text]).values[0], together[row], rtol=0, atol=self.tolerance)

    def test_other_words_give_other_numbers(self, embedder):
        first, second = embedder.embed(["hepatocyte", "neuron"]).values
        assert np.abs(first - second).max() > 1e-3

    def test_the_spec_is_json(self, embedder):
        spec = embedder.spec()
        assert spec.kind == "contexts"
        assert EmbeddingSpec.from_json(json.loads(json.dumps(spec.to_json()))).fingerprint == spec.fingerprint
