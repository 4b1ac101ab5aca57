"""Whole yeast chromosomes and the edge of a long stretch of N: every window against enformer-pytorch's own forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.precompute.fast_models import relative_rms
from tfbind_store.genome import GenomeSource
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.enformer import EnformerEmbedder, one_hot, random_trunk

pytestmark = pytest.mark.real_data
SMALL = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "dim_divisible_by": 8}
EXACT = 2e-6


class Chromosome:
    """One chromosome of a FASTA file in memory."""

    def __init__(self, fasta: Path, name: str) -> None:
        with GenomeSource(fasta) as source:
            self.bases = np.array(source.codes(name))
        self.lengths_bp = {name: self.bases.size}

    def codes(self, locus: Locus) -> np.ndarray:
        out = np.full(locus.end - locus.start, 5, np.uint8)
        start, end = max(locus.start, 0), min(locus.end, self.bases.size)
        if start < end:
            out[start - locus.start : end - locus.start] = self.bases[start:end]
        return out


def _embed(embedder: EnformerEmbedder, chromosome: Chromosome, grid: Grid, windows: list[int]) -> list[torch.Tensor]:
    tiling = Tiling.over(grid, chromosome.lengths_bp)
    return [torch.from_numpy(values) for _, values in embedder.embed(windows, chromosome.codes, tiling)]


def _plain(embedder: EnformerEmbedder, chromosome: Chromosome, grid: Grid, window: int) -> torch.Tensor:
    codes = chromosome.codes(Tiling.over(grid, chromosome.lengths_bp).read(window))
    margin = grid.margin_bp // grid.bin_bp
    with torch.inference_mode():
        embeddings = embedder.model(one_hot(codes[None]), return_only_embeddings=True)
    return embeddings[0, margin : margin + grid.n_bins]


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("chrI", Grid(window_bp=16_384, n_bins=96, bin_bp=128)),
        ("chrVI", Grid(window_bp=196_608, n_bins=896, bin_bp=128)),
        ("chrI", Grid(window_bp=4_096, n_bins=32, bin_bp=128)),
    ],
)
def test_a_whole_yeast_chromosome_whatever_the_batch_and_the_stretch(data_dir: Path, name: str, grid: Grid) -> None:
    chromosome = Chromosome(data_dir / "yeast_sacCer3" / "sacCer3.nuclear.fa.gz", name)
    trunk = random_trunk(SMALL, seed=1)
    n = Tiling.over(grid, chromosome.lengths_bp).n_windows
    first, *others = [
        _embed(embedder, chromosome, grid, list(range(n))) for embedder in _sweep(trunk, [(1, 256), (5, 64), (3, 1000)])
    ]
    plain = [_plain(EnformerEmbedder(trunk, device="cpu"), chromosome, grid, window) for window in range(n)]
    assert len(first) == n > 1
    for window in range(n):
        assert relative_rms(first[window], plain[window]) < EXACT, window
        assert all(relative_rms(other[window], first[window]) < EXACT for other in others), window


def _sweep(trunk, sizes: list[tuple[int, int]]) -> list[EnformerEmbedder]:
    found = []
    for batch_size, chunk_tokens in sizes:
        embedder = EnformerEmbedder(trunk, batch_size=batch_size, device="cpu")
        embedder.chunk_tokens = chunk_tokens
        found.append(embedder)
    return found


def test_windows_around_the_edge_of_sixteen_million_n(data_dir: Path) -> None:
    chromosome = Chromosome(data_dir / "human_hg19_chr22" / "hg19.chr22.part16-22Mb.fa.gz", "chr22")
    grid = Grid(window_bp=32_768, n_bins=128, bin_bp=128)
    known = np.flatnonzero(chromosome.bases < 4)
    edge = int(known[0]) // grid.stride_bp
    windows = list(range(edge - 3, edge + 4))
    embedder = EnformerEmbedder(random_trunk(SMALL, seed=1), device="cpu")
    for window, values in zip(windows, _embed(embedder, chromosome, grid, windows), strict=True):
        assert relative_rms(values, _plain(embedder, chromosome, grid, window)) < EXACT, window
