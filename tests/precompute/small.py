"""A small store and embedders that count, fail or wait, for tests of runs.

Chromosome `a` has 11 windows of 512 kept bp, of which windows 6 and 7 hold only N; `b` is shorter than one bin.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from tfbind_store.loci import Grid
from tfbind_store.precompute.embedder import WindowEmbedding
from tfbind_store.precompute.toy import ToyEmbedder
from tfbind_store.store.folder import Store

GRID = Grid(window_bp=1024, n_bins=4, bin_bp=128)
N_WINDOWS = 11 + 1
ALL_N = (6, 7)


def write_fasta(path: Path, *, seed: int = 0, n_bp: int = 4400) -> Path:
    letters = np.array(list("ACGT"))[np.random.default_rng(seed).integers(0, 4, n_bp)]
    text = "".join(letters)
    path.write_text(f">a\n{text[:3000]}{'N' * 1124}{text[3000:]}\n>b\nACGTACGT\n")
    return path


def make_store(folder: Path, **fasta) -> Store:
    return Store.create(folder / "store", fasta=write_fasta(folder / "genome.fa", **fasta), grid=GRID)


class Watched(ToyEmbedder):
    """The toy, recording what it was asked for; some windows come out broken, some calls wait or run `between`."""

    def __init__(self, *, broken=None, between=None, seconds: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.broken = broken or {}
        self.between = between
        self.seconds = seconds
        self.factor = factor
        self.asked: list[int] = []

    def embed(self, windows, codes, tiling):
        for result in super().embed(windows, codes, tiling):
            self.asked.append(result.window)
            values = result.values * np.float32(self.factor)
            if result.window in self.broken:
                values[1, 3] = self.broken[result.window]
            if self.seconds:
                time.sleep(self.seconds)
            yield WindowEmbedding(result.window, values)
            if self.between:
                self.between(result.window)
