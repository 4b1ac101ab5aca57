"""What a head must beat, from nothing but what it was allowed to see; and one oracle that it was not.

*nearest factor*: the head's own score of the most similar training protein. *training mean*: the mean of its scores
over training factors. *motif*: the best match of a known matrix in the bin. *gc content*: how often training
experiments bind bins of such composition. *accessibility*: the biotype's own signal. *training binding*: how many
training experiments bind the bin, for what was held out on places that were trained on. *prevalence*: no knowledge at
all. The *oracle* counts the other factors that were measured to bind the bin: it sees the answers nearby and stands
apart. What is measured rather than predicted is in ``measured``.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import DependencyError, InputFileError
from tfbind_store.factors import kmer_similarity
from tfbind_store.genome import Genome
from tfbind_store.loci import Tiling

NEAREST, TRAINING_MEAN, MOTIF, PREVALENCE, ORACLE = (
    "nearest_factor",
    "training_mean",
    "motif",
    "prevalence",
    "oracle",
)
GC, ACCESSIBILITY, TRAINING_BINDING = "gc_content", "accessibility", "training_binding"
LOWEST = np.float32(-1e9)
"""Score of a bin in which no whole match fits."""
PSEUDOCOUNT = 0.1
_LETTERS = np.frombuffer(b"ACGTNN", dtype=np.uint8)
_SUBUNITS = """
    SELECT s.factor_id, s.gene, p.sequence
    FROM data.factor_subunits s LEFT JOIN data.proteins p USING (protein_id)
    ORDER BY s.factor_id, s.position
"""
_log = logging.getLogger(__name__)


class FactorProtein(NamedTuple):
    """A factor by its genes and the sequences of its subunits, joined."""

    genes: frozenset[str]
    sequence: str


class Nearest(NamedTuple):
    """The most similar training factor of each factor."""

    factor_id: Int64[np.ndarray, " n"]
    """-1 where there is none."""
    similarity: Float32[np.ndarray, " n"]


def factor_proteins(catalog: Catalog) -> dict[int, FactorProtein]:
    """Return the factors whose every subunit has a sequence."""
    genes: dict[int, list[str]] = {}
    sequences: dict[int, list[str | None]] = {}
    for factor_id, gene, sequence in catalog.rows(_SUBUNITS):
        genes.setdefault(int(factor_id), []).append(gene.upper())
        sequences.setdefault(int(factor_id), []).append(sequence)
    return {
        factor: FactorProtein(frozenset(genes[factor]), "".join(part for part in parts if part))
        for factor, parts in sequences.items()
        if all(parts)
    }


def nearest_training_factor(
    proteins: Mapping[int, FactorProtein], factor_ids: Sequence[int], training: Sequence[int]
) -> Nearest:
    """Return, for each factor, the training factor with the most similar protein that shares no gene or sequence.

    A seen factor is compared with the others: its own score is the model's, not a baseline's.
    """
    known = [factor for factor in training if factor in proteins]
    sequences = [proteins[factor].sequence for factor in known]
    asked = [proteins[factor].sequence if factor in proteins else "" for factor in factor_ids]
    alike = kmer_similarity(asked, sequences) if known and asked else np.zeros((len(asked), len(known)), np.float32)
    for row, factor in enumerate(factor_ids):
        own = proteins.get(factor)
        for column, other in enumerate(known):
            is_kin = own is None or own.genes & proteins[other].genes or own.sequence == proteins[other].sequence
            if factor == other or is_kin:
                alike[row, column] = -1
    if not known:
        return Nearest(np.full(len(asked), -1), np.full(len(asked), np.nan, np.float32))
    best = alike.argmax(axis=1)
    similarity = alike[np.arange(len(asked)), best]
    factor_id = np.where(similarity >= 0, np.asarray(known, dtype=np.int64)[best], -1)
    return Nearest(factor_id, similarity.astype(np.float32))


class Motif(NamedTuple):
    """A matrix from a JASPAR file."""

    name: str
    """Its second word: usually the factor."""
    accessions: tuple[str, ...]
    """What follows, as UniProt accessions where the file gives them."""
    scorer: Any
    """Of lightmotif: log-odds of each base."""


def read_motifs(path: Path | str) -> list[Motif]:
    """Read the matrices of a JASPAR file.

    Raises
    ------
    DependencyError
        If lightmotif is not installed.
    InputFileError
        If the file cannot be read as JASPAR.
    """
    library = _lightmotif()
    try:
        loaded = list(library.load(Path(path), format="jaspar16"))
    except (OSError, ValueError) as error:
        # the parser repeats all that it could not read, up to the whole file
        reason = str(error).partition("\n")[0][:200]
        fix = "give a file in JASPAR format: a line with > and a name, then A, C, G and T with [ counts ]"
        raise InputFileError(f"no JASPAR file: {reason}", where=str(path), fix=fix) from error
    if not loaded:
        raise InputFileError("no matrix in this file", where=str(path), fix="give a file in JASPAR format")
    motifs = []
    for matrix in loaded:
        words = (matrix.description or matrix.name or "").split()
        name = words[0] if words else str(matrix.name)
        accessions = tuple(part for word in words[1:] for part in word.replace(",", " ").split())
        motifs.append(Motif(name, accessions, matrix.counts.normalize(PSEUDOCOUNT).log_odds()))
    return motifs


def _lightmotif() -> Any:
    try:
        return importlib.import_module("lightmotif")
    except ImportError as error:
        fix = 'pip install "tfbind-store[motifs]"'
        raise DependencyError("the motif scan needs lightmotif", where="motifs", fix=fix) from error


def motifs_of(motifs: Sequence[Motif], genes: frozenset[str], accessions: frozenset[str] = frozenset()) -> list[Motif]:
    """Return the matrices of a factor: by gene (``A::B`` counts for both), else by UniProt accession."""
    named = [motif for motif in motifs if genes & set(motif.name.upper().split("::"))]
    return named or [motif for motif in motifs if accessions & set(motif.accessions)]


def motif_scores(
    genome: Genome, tiling: Tiling, motifs: Sequence[Motif], bins: Int64[np.ndarray, " k"]
) -> Float32[np.ndarray, " k"]:
    """Return the best log-odds of any matrix, on either strand, that begins in each bin.

    Bins of one chromosome are scanned together; a match may reach into the next bin. Positions with N match nothing.
    """
    chrom_of = tiling.window_chrom(bins // tiling.grid.n_bins)
    best = np.full(len(bins), LOWEST, dtype=np.float32)
    for chrom in np.unique(chrom_of):
        codes = np.asarray(genome.codes(tiling.chroms[chrom], 0, tiling.lengths_bp[chrom]))
        per_bin = scan_bins(codes, motifs, tiling.grid.bin_bp)
        rows = chrom_of == chrom
        best[rows] = per_bin[bins[rows] - int(tiling.first_window[chrom]) * tiling.grid.n_bins]
    return best


def scan_bins(codes: UInt8[np.ndarray, " bp"], motifs: Sequence[Motif], bin_bp: int) -> Float32[np.ndarray, " n"]:
    """Return the best match that begins in each bin of one chromosome."""
    n_bins = -(-len(codes) // bin_bp)
    best = np.full(n_bins * bin_bp, LOWEST, dtype=np.float32)
    striped = _lightmotif().stripe(_LETTERS[codes].tobytes().decode("ascii"))
    holds_n = np.concatenate([[0], np.cumsum(codes > 3)])
    for motif in motifs:
        width = len(motif.scorer)
        n_places = len(codes) - width + 1
        if n_places < 1:
            continue
        has_n = holds_n[width:] > holds_n[:n_places]
        for scorer in (motif.scorer, motif.scorer.reverse_complement()):
            # lightmotif keeps scores striped over lanes; lane after lane they are in the order of the sequence
            scores = np.asarray(scorer.calculate(striped), dtype=np.float32).reshape(-1)[:n_places]
            scores = np.where(has_n | ~np.isfinite(scores), LOWEST, scores)
            np.maximum(best[:n_places], scores, out=best[:n_places])
    return np.asarray(best.reshape(n_bins, bin_bp).max(axis=1))
