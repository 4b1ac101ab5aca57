"""What all protein language models share, on a model whose vectors say which residue of which batch they are."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch

from tfbind_store.errors import ConfigError, EmbeddingError, ProteinError
from tfbind_store.precompute.residue_model import (
    LOOK_AHEAD,
    ResidueEmbedder,
    ResidueOptions,
    stretch_starts,
)

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class Counter:
    """Column 0: place in the stretch; column 1: the letter; column 2: length of the stretch."""

    device = torch.device("cpu")
    dim, longest, n_layers = 3, 16, 2

    def __init__(self, room: int = 10**9, error: str = "DefaultCPUAllocator: can't allocate memory") -> None:
        self.room, self.error = room, error
        self.batches: list[list[int]] = []
        self.released = 0

    def forward(self, stretches, layer):
        lengths = [len(stretch) for stretch in stretches]
        if max(lengths) * len(lengths) > self.room:
            raise RuntimeError(self.error)
        self.batches.append(lengths)
        return [
            torch.tensor([[place, LETTERS.index(letter), len(stretch)] for place, letter in enumerate(stretch)]).float()
            for stretch in stretches
        ]

    def release(self):
        self.released += 1


def make(model=None, **options) -> ResidueEmbedder:
    return ResidueEmbedder(model or Counter(), ResidueOptions(**options), name="count", identity={"class": "count"})


def protein(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), length))


class TestBatches:
    def test_results_come_in_the_order_asked_whatever_the_lengths(self):
        lengths = [3, 40, 1, 16, 17, 5, 100, 16]
        found = list(make(tokens_per_batch=32).embed([protein(n, n) for n in lengths]))
        assert [len(result.values) for result in found] == lengths
        for n, result in zip(lengths, found, strict=True):
            assert result.values[:, 1].tolist() == [LETTERS.index(letter) for letter in protein(n, n)]

    def test_longest_first_and_alike_together_within_the_budget(self):
        model = Counter()
        list(make(model, tokens_per_batch=32).embed([protein(n) for n in (2, 16, 4, 8, 8, 4, 16, 2)]))
        assert model.batches == [[16, 16], [8, 8, 4, 4], [2, 2]]

    def test_no_more_than_the_look_ahead_waits(self):
        model = Counter()
        results = make(model).embed(protein(4) for _ in range(3 * LOOK_AHEAD))
        next(results)
        assert 0 < sum(map(len, model.batches)) <= LOOK_AHEAD

    def test_a_batch_that_does_not_fit_is_halved_and_later_ones_are_smaller(self, caplog):
        model = Counter(room=20)
        with caplog.at_level(logging.INFO):
            found = list(make(model, tokens_per_batch=64).embed([protein(8, n) for n in range(16)]))
        assert [result.values[0, 1] for result in found] == [LETTERS.index(protein(8, n)[0]) for n in range(16)]
        assert max(map(sum, model.batches)) <= 20
        assert "out of memory: 16 tokens" in caplog.text
        assert model.batches == [[8, 8]] * 8

    def test_one_protein_that_does_not_fit_is_an_error_with_a_fix(self):
        with pytest.raises(EmbeddingError, match="a protein of 12 residues does not fit into memory") as caught:
            list(make(Counter(room=10)).embed([protein(12)]))
        assert "window=512" in caught.value.fix

    def test_other_errors_of_a_model_are_not_taken_for_lack_of_memory(self):
        with pytest.raises(RuntimeError, match="shapes differ"):
            list(make(Counter(room=1, error="shapes differ")).embed([protein(4), protein(4)]))


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

    def test_averaged(self):
        found = next(iter(make(window=16, overlap=6).embed([protein(24)])))
        assert found.truncated is False
        assert found.values[:, 0].tolist() == [*range(8), *(x + 4 for x in range(8)), *range(8, 16)]

    def test_first(self):
        embedder = make(long_proteins="first", window=16)
        short, long = embedder.embed([protein(16), protein(24)])
        assert (len(short.values), short.truncated) == (16, False)
        assert (len(long.values), long.truncated) == (16, True)
        assert [embedder.rows_for(n) for n in (15, 16, 24)] == [15, 16, 16]

    def test_refused(self):
        with pytest.raises(ProteinError, match="17 residues, the model reads 16 at once"):
            list(make(long_proteins="refuse").embed([protein(17)]))


def test_pooling_gives_the_mean_of_all_residues():
    embedder = make(pooling="mean", window=16, overlap=6)
    found = next(iter(embedder.embed([protein(24)])))
    assert found.values.shape == (1, 3)
    assert found.values[0, 0] == np.mean([*range(8), *(x + 4 for x in range(8)), *range(8, 16)])
    assert embedder.rows_for(24) == 1


@pytest.mark.parametrize(
    "options",
    [{"layer": 3}, {"layer": -1}, {"window": 17}, {"window": 8, "overlap": 8}, {"precision": "float16"},
     {"tokens_per_batch": 0}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(ConfigError):
        make(**options)


def test_every_choice_that_changes_numbers_is_in_the_spec_and_speed_is_not():
    spec = make().spec()
    for change, fields in (
        ({"layer": 1}, ["identity.layer"]),
        ({"window": 8, "overlap": 2}, ["identity.length_policy"]),
        ({"long_proteins": "first"}, ["identity.length_policy"]),
        ({"pooling": "mean"}, ["identity.pooling"]),
        ({"tokens_per_batch": 7}, []),
    ):
        assert [d.field for d in spec.differences(make(**change).spec())] == fields


class TestHalfPrecision:
    class Halves(Counter):
        """Off by `error` wherever autocast is on."""

        longest = 1022

        def __init__(self, off: float) -> None:
            super().__init__()
            self.off = off

        def forward(self, stretches, layer):
            sign = -1 if torch.is_autocast_enabled("cpu") else 1
            return [rows + sign * self.off * rows.flip(-1) for rows in super().forward(stretches, layer)]

    def test_near_enough(self):
        assert make(self.Halves(1e-4), precision="bfloat16").spec().identity["matmul"] == "bfloat16"

    def test_too_far(self):
        with pytest.raises(EmbeddingError, match="bfloat16 is too far from float32"):
            make(self.Halves(0.5), precision="bfloat16")
