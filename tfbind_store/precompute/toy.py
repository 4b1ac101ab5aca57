"""An embedding that says where it came from: for tests of the whole path, not for science.

Each bin's columns are small whole numbers, exact in float16: chromosome number, bin number in the chromosome (split in
two), counts of G + C, N and padding, and two columns that depend on the order of the bases. It reads its window like a
trunk does (margins too) and crops the centre, so that wrong arithmetic anywhere shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from tfbind_store.errors import SpecError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import Codes, TrunkGeometry, WindowEmbedding, read_options
from tfbind_store.spec import EmbeddingSpec

COLUMNS = ("chrom", "bin_hi", "bin_lo", "gc", "n", "pad", "a_first_half", "first_code")
BIN_RADIX = 1024
"""``bin = bin_hi * 1024 + bin_lo``."""
LARGEST_EXACT = 2048
"""Whole numbers up to here are exact in float16."""
N_CODE, PAD_CODE = 4, 5


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """The toy has one choice."""

    bin_bp: int = 128
    """Bases per bin."""


def from_options(options: Mapping[str, Any]) -> ToyEmbedder:
    """Return the toy for the registry."""
    return ToyEmbedder(read_options(ToyOptions, options, name="toy").bin_bp)


class ToyEmbedder:
    """Columns that say chromosome, bin and base counts; see `COLUMNS`.

    Raises
    ------
    SpecError
        If a count could be larger than float16 holds exactly.
    """

    def __init__(self, bin_bp: int = 128) -> None:
        if not 1 <= bin_bp <= LARGEST_EXACT:
            raise SpecError(f"bin_bp is {bin_bp}, must be 1 to {LARGEST_EXACT}", where="toy")
        self.bin_bp = bin_bp

    @property
    def geometry(self) -> TrunkGeometry:
        """Any window, bins of the length given."""
        return TrunkGeometry(bin_bp=self.bin_bp, dim=len(COLUMNS))

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return the spec: the names of the columns are the whole model."""
        self.geometry.require_fits(grid, where="toy")
        return EmbeddingSpec(
            kind="windows",
            embedder="toy",
            dim=len(COLUMNS),
            identity={"class": "toy", "columns": list(COLUMNS), "bin_radix": BIN_RADIX, "trained_on": None},
            grid={"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp},
            genome=genome_digest,
        )

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield the columns of each window's kept bins."""
        self.geometry.require_fits(tiling.grid, where="toy")
        n_crop = tiling.grid.margin_bp // self.bin_bp
        for window in windows:
            locus = tiling.read(window)
            kept = tiling.kept(window)
            all_bins = codes(locus).reshape(-1, self.bin_bp)
            bins = all_bins[n_crop : n_crop + tiling.grid.n_bins]
            first_bin = kept.start // self.bin_bp
            numbers = np.arange(first_bin, first_bin + len(bins), dtype=np.int64)
            yield WindowEmbedding(window, toy_columns(tiling.chrom_index[kept.chrom], numbers, bins))


def toy_columns(
    chrom: int, bin_number: Int64[np.ndarray, " n_bins"], codes: UInt8[np.ndarray, "n_bins bin_bp"]
) -> Float32[np.ndarray, "n_bins 8"]:
    """Return the toy's numbers for bins of one chromosome.

    Examples
    --------
    >>> toy_columns(3, np.array([1025]), np.array([[0, 1, 4, 5]], dtype=np.uint8)).tolist()
    [[3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    """
    half = codes.shape[1] // 2
    columns = [
        np.full(len(codes), chrom),
        bin_number // BIN_RADIX,
        bin_number % BIN_RADIX,
        ((codes == 1) | (codes == 2)).sum(1),
        (codes == N_CODE).sum(1),
        (codes == PAD_CODE).sum(1),
        (codes[:, :half] == 0).sum(1),
        codes[:, 0],
    ]
    values = np.stack(columns, axis=1).astype(np.float32)
    assert values.max(initial=0) <= LARGEST_EXACT, "a toy column is not exact in float16"
    return values
