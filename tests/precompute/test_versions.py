"""Versions of a window together, convolutions only where bases are new: what each would be alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.precompute.fast_models import relative_rms
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.enformer import EnformerEmbedder, Strand
from tfbind_store.precompute.random_trunk import random_trunk
from tfbind_store.precompute.versions import RememberingTrunk, embed_versions, remembering
from tfbind_store.precompute.window_options import WindowOptions, with_options

BP = 128
GRID = Grid(window_bp=192 * BP, n_bins=96, bin_bp=BP)
TILING = Tiling.over(GRID, {"a": 96 * BP, "b": 3 * 96 * BP + 700})
WINDOW = 2  # the second of b
TRUNK = random_trunk({"dim": 96, "depth": 2, "heads": 4, "dim_divisible_by": 32, "output_heads": {}}, seed=0)
BASES = np.random.default_rng(0).integers(0, 4, TILING.lengths_bp[1]).astype(np.uint8)
SITE = TILING.kept(WINDOW).start + 50 * BP + 17


def version(start: int, n_ref: int, alt: list[int]) -> Callable[[Locus], np.ndarray]:
    whole = np.concatenate([BASES[:start], np.array(alt, dtype=np.uint8), BASES[start + n_ref :]])

    def codes(locus: Locus) -> np.ndarray:
        assert locus.chrom == "b"
        out = np.full(locus.end - locus.start, 5, np.uint8)
        low, high = max(locus.start, 0), min(locus.end, len(whole))
        out[low - locus.start : high - locus.start] = whole[low:high]
        return out

    return codes


REFERENCE = version(0, 0, [])
SUBSTITUTION = version(SITE, 1, [(int(BASES[SITE]) + 1) % 4])
VERSIONS = [REFERENCE, SUBSTITUTION, version(SITE, 1, [0, 1, 2, 3, 0, 1, 2]), version(SITE, 200, [3])]


def embedder(strand: Strand = "forward") -> EnformerEmbedder:
    return EnformerEmbedder(TRUNK, strand=strand, device="cpu")


@pytest.mark.parametrize("strand", ["forward", "reverse", "mean"])
def test_versions_together_are_what_each_is_alone(strand: Strand) -> None:
    twin = remembering(embedder(strand))
    assert twin is not None
    found = embed_versions(twin, WINDOW, VERSIONS, TILING, together=True)
    alone = [next(iter(embedder(strand).embed([WINDOW], codes, TILING))).values for codes in VERSIONS]
    for mine, theirs in zip(found, alone, strict=True):
        assert mine.shape == (96, 192)
        assert relative_rms(torch.from_numpy(mine), torch.from_numpy(theirs)) < 2e-6
    assert relative_rms(torch.from_numpy(alone[1]), torch.from_numpy(alone[0])) > 1e-5  # a base makes a difference


def test_only_chunks_with_new_bases_are_computed() -> None:
    twin = embedder().remembering()
    assert isinstance(twin.fast, RememberingTrunk)
    computed = []
    for codes in (REFERENCE, REFERENCE, SUBSTITUTION, VERSIONS[2]):
        before = twin.fast.n_computed
        embed_versions(twin, WINDOW, [codes], TILING, together=True)
        computed.append(twin.fast.n_computed - before)
    assert computed[0] > GRID.window_bp
    assert computed[1] == 0
    assert computed[2] == (64 + 2 * twin.fast.geometry.halo_tokens) * BP  # one chunk
    assert computed[2] < computed[3] < computed[0]  # what lies on the left of an insertion stays


def test_memory_is_bounded() -> None:
    trunk = RememberingTrunk(embedder().fast, max_bytes=400_000)
    for seed in range(6):
        trunk.conv(torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (2, 64 * BP)).astype(np.uint8)))
    held = sum(tokens.untyped_storage().nbytes() for tokens in trunk._seen.values())
    assert 0 < held <= 400_000
    assert len(trunk._seen) > 1


def test_options_of_windows_stay_in_force() -> None:
    made = with_options(embedder(), WindowOptions(shift_bp=40))
    twin = remembering(made)
    assert twin is not None
    (mine,) = embed_versions(twin, WINDOW, [SUBSTITUTION], TILING, together=True)
    (theirs,) = embed_versions(made, WINDOW, [SUBSTITUTION], TILING, together=False)
    assert relative_rms(torch.from_numpy(mine), torch.from_numpy(theirs)) < 2e-6
    (unmoved,) = embed_versions(embedder(), WINDOW, [SUBSTITUTION], TILING, together=False)
    assert relative_rms(torch.from_numpy(unmoved), torch.from_numpy(theirs)) > 1e-3
