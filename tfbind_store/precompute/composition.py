"""Proteins without weights: what stands around each residue, at several scales.

For each residue: the amino acid itself and six physico-chemical scales, averaged over windows of 1, 9, 33 and 129
residues and over the whole protein, and the log of the length. Related factors come out alike because their domains
have alike compositions. Columns are centred on a background composition and divided by their usual spread, both fixed
numbers, so that a protein's rows never depend on the other proteins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tfbind_store.errors import ConfigError
from tfbind_store.factors import AMINO_ACIDS
from tfbind_store.precompute.alphabet import require_list, residues
from tfbind_store.precompute.embedder import SequenceEmbedding, read_options
from tfbind_store.spec import EmbeddingSpec

SYNONYMS = {"U": "C", "O": "K"}
"""Selenocysteine and pyrrolysine are read as what they replace; B, Z, J and X as the background."""
SCALES: Mapping[str, tuple[float, ...]] = {
    name: tuple(map(float, text.split()))
    for name, text in {
        # Kyte & Doolittle 1982
        "hydropathy": "1.8 2.5 -3.5 -3.5 2.8 -.4 -3.2 4.5 -3.9 3.8 1.9 -3.5 -1.6 -3.5 -4.5 -.8 -.7 4.2 -.9 -1.3",
        # at pH 7
        "charge": "0 0 -1 -1 0 0 .1 0 1 0 0 0 0 0 1 0 0 0 0 0",
        # cubic angstroms, Zamyatnin 1972
        "volume": "88.6 108.5 111.1 138.4 189.9 60.1 153.2 166.7 168.6 166.7 "
        "162.9 114.1 112.7 143.8 173.4 89.0 116.1 140.0 227.8 193.6",
        # Chou & Fasman 1978
        "helix": "1.42 .70 1.01 1.51 1.13 .57 1.00 1.08 1.16 1.21 1.45 .67 .57 1.11 .98 .77 .83 1.06 1.08 .69",
        "sheet": ".83 1.19 .54 .37 1.38 .75 .87 1.60 .74 1.30 1.05 .89 .55 1.10 .93 .75 1.19 1.70 1.37 1.47",
        # F, H, W, Y
        "aromatic": "0 0 0 0 1 0 1 0 0 0 0 0 0 0 0 0 0 0 1 1",
    }.items()
}
SHARES = ".062 .022 .049 .070 .039 .060 .031 .049 .070 .087 .020 .048 .060 .046 .051 .092 .056 .051 .009 .030"
BACKGROUND = tuple(map(float, SHARES.split()))
"""Shares of the amino acids, midway between all yeast proteins and human transcription factors."""
SPREAD = {1: 1.0, 9: 0.36, 33: 0.21, 129: 0.14, 0: 0.10}
"""How far a window's mean strays, in standard deviations of one residue, by width (0: whole protein); measured on the
same proteins. More than 1/sqrt(width), because neighbours are alike."""
LOG_LENGTH_MEAN, LOG_LENGTH_SPREAD = 6.0, 0.7
WHOLE = 0


@dataclass(frozen=True, kw_only=True)
class CompositionOptions:
    """Which windows are averaged."""

    widths: tuple[int, ...] = (1, 9, 33, 129, WHOLE)
    """Residues, odd; 0 is the whole protein."""


def from_options(options: Mapping[str, Any]) -> CompositionEmbedder:
    """Return the composition embedder for the registry."""
    return CompositionEmbedder(read_options(CompositionOptions, options, name="composition").widths)


class CompositionEmbedder:
    """Windowed composition of proteins; see the module.

    Parameters
    ----------
    widths
        Residues, odd; 0 is the whole protein.
    """

    def __init__(self, widths: Sequence[int] = (1, 9, 33, 129, WHOLE)) -> None:
        odd = [width for width in widths if width < 0 or (width and width % 2 == 0)]
        if odd or not widths:
            raise ConfigError(f"window of {odd[0] if odd else 0} residues", where="widths", fix="use odd widths, or 0")
        self.widths = tuple(widths)
        self._table = residue_table()

    def spec(self) -> EmbeddingSpec:
        """Return the spec: columns and constants are the whole model."""
        identity = {
            "class": "composition",
            "widths": list(self.widths),
            "scales": list(SCALES),
            "background": list(BACKGROUND),
            "length_policy": "all residues",
            "unknown_letters": "background",
        }
        dim = len(self.widths) * self._table.shape[1] + 1
        return EmbeddingSpec(kind="proteins", embedder="composition", dim=dim, identity=identity)

    def embed(self, sequences: Sequence[str | Sequence[int] | np.ndarray]) -> Iterator[SequenceEmbedding]:
        """Yield one result per sequence; nothing is ever truncated."""
        require_list(sequences)
        for sequence in sequences:
            yield SequenceEmbedding(self._one(sequence), False)

    def _one(self, sequence: str | Sequence[int] | np.ndarray) -> Float32[np.ndarray, "length dim"]:
        rows = self._table[residue_codes(sequence)]
        sums = np.concatenate([np.zeros((1, rows.shape[1])), rows.cumsum(axis=0)])
        columns = [windowed_means(sums, width) / _spread(width) for width in self.widths]
        length = (math.log(len(rows)) - LOG_LENGTH_MEAN) / LOG_LENGTH_SPREAD
        columns.append(np.full((len(rows), 1), length))
        return np.concatenate(columns, axis=1).astype(np.float32)


def residue_codes(sequence: str | Sequence[int] | np.ndarray) -> Int64[np.ndarray, " length"]:
    """Return each letter's place in `AMINO_ACIDS`, 20 for B, J, X and Z.

    Raises
    ------
    ProteinError
        If it is no protein by the rule of `alphabet`.

    Examples
    --------
    >>> residue_codes("ACUX").tolist()
    [0, 1, 1, 20]
    """
    letters = residues(sequence)
    codes: Int64[np.ndarray, " length"] = _CODES[np.frombuffer(letters.encode("ascii"), dtype=np.uint8)]
    return codes


def residue_table() -> Float64[np.ndarray, "21 columns"]:
    """Return one standardised row per amino acid (20 one-hot columns, then the scales) and a zero row for the rest."""
    raw = np.concatenate([np.eye(len(AMINO_ACIDS)), np.array(list(SCALES.values())).T], axis=1)
    shares = np.array(BACKGROUND) / sum(BACKGROUND)
    mean = shares @ raw
    spread = np.sqrt(shares @ (raw - mean) ** 2)
    return np.concatenate([(raw - mean) / spread, np.zeros((1, raw.shape[1]))])


def windowed_means(sums: Float64[np.ndarray, "length_plus_1 c"], width: int) -> Float64[np.ndarray, "length c"]:
    """Return the mean over `width` residues around each one, from running sums; windows are cut at the ends.

    Examples
    --------
    >>> windowed_means(np.array([[0.0], [1.0], [3.0], [6.0]]), 3).ravel().tolist()
    [1.5, 2.0, 2.5]
    """
    length = len(sums) - 1
    place = np.arange(length)
    low = np.zeros(length, dtype=int) if width == WHOLE else np.maximum(place - width // 2, 0)
    high = np.full(length, length) if width == WHOLE else np.minimum(place + width // 2 + 1, length)
    means: Float64[np.ndarray, "length c"] = (sums[high] - sums[low]) / (high - low)[:, None]
    return means


def _spread(width: int) -> float:
    """Return the usual spread of a mean over `width` residues, between measured widths on a log scale."""
    if width == WHOLE:
        return SPREAD[WHOLE]
    known = sorted(w for w in SPREAD if w)
    return float(np.interp(math.log(width), np.log(known), [SPREAD[w] for w in known]))


def _codes_by_byte() -> Int64[np.ndarray, "256"]:
    codes = np.full(256, len(AMINO_ACIDS), dtype=np.int64)
    for place, letter in enumerate(AMINO_ACIDS):
        codes[ord(letter)] = place
    for letter, same in SYNONYMS.items():
        codes[ord(letter)] = codes[ord(same)]
    return codes


_CODES = _codes_by_byte()
