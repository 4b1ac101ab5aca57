"""Which proteins are alike: pairs of sequences over a threshold of identity.

Identity is the number of identical residues in the best local alignment (parasail: Smith-Waterman, BLOSUM62, a gap
costs 11 and 1 more for each residue) over the length of the shorter protein, so that a short domain in common counts
for as much as it covers. Only pairs that share enough distinct words of four residues are aligned. Identity p gives at
least p to the fourth power of them on average, where identical residues are scattered, and more where they lie
together: a quarter of that is asked for, or half of it where long proteins share as many by chance. Proteins so short
that they may share none (30 to 160 residues at p 0.4) are aligned with all others. Of those pairs, the ones whose best
score is too low are looked at no further: identical residues score 4 to 11 (BLOSUM62), others -1.1 on average without
gaps. A chain of pairs makes a family.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import make_directory
from tfbind_store.errors import DependencyError, TfbindError
from tfbind_store.query.kinship import Paralogs

WORD = 4
LEAST_SHARE, MOST_SHARE = 0.25, 0.5
"""Of the words that a pair at the threshold is expected to share."""
CHANCE_SD = 3.0
TOO_FEW_WORDS, FEW_WORDS = 4.0, 8.0
"""Expected words below which every pair is aligned, and below which the least share is enough."""
PEPTIDE_WORDS = 27
"""Sequences of fewer words share half of their residues with many others by chance: they must share words too."""
MATCH_SCORE, OTHER_SCORE = 4.0, -1.5
"""What a residue of the shorter protein adds to a score at least, if it is identical and if it is not."""
CACHE_VERSION = 2
"""Raised when what is found for the same sequences and threshold changes."""
GAP_OPEN, GAP_EXTEND = 11, 1
_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_CHUNK_PAIRS = 512
_JOINED_AT_ONCE = 4096
_FITS_A_BYTE = 200.0
"""A higher score may not fit the cells of 8 bits."""


def find_similar(sequences: Mapping[str, str], *, least: float, asked: Collection[str] | None = None) -> list[Paralogs]:
    """Return all pairs of sequences that are at least `least` identical, sorted by their names.

    Parameters
    ----------
    sequences
        One letter a residue, by name.
    least
        Share of identical residues of the shorter one.
    asked
        Only pairs with at least one of these names.

    Examples
    --------
    >>> find_similar({"a": "MKTAYIAKQRQISFVK", "b": "MKTAYIAKQRQLSFVK", "c": "GGGGSGGGGSGGGGS"}, least=0.9)
    [Paralogs(first='a', second='b', identity=0.9375)]
    """
    return ParalogFinder(sequences, least=least)(asked)


class ParalogFinder:
    """Finds pairs of like sequences, and the families that they make, which it keeps in a file for the next time.

    Parameters
    ----------
    sequences
        By name; a name is to say all about its sequence (sha256).
    least
        Share of identical residues.
    cache
        Folder for the families of all sequences; what lies there may be deleted at any time.
    """

    def __init__(self, sequences: Mapping[str, str], *, least: float, cache: Path | None = None) -> None:
        self.names = sorted(sequences)
        self.least = least
        self._texts = [plain(sequences[name]) for name in self.names]
        self._cache = cache
        self._family: Int64[np.ndarray, " n"] | None = None

    def __call__(self, asked: Collection[str] | None, others: Collection[str] | None = None) -> list[Paralogs]:
        """Return the pairs of one of the asked names and one of the others; None stands for all names."""
        one, other = (self._are_among(names) for names in (asked, others))
        first, second = self._candidates.T
        keep = (one[first] & other[second]) | (one[second] & other[first])
        family = self._known_families()
        if family is not None:  # like ones are of one family
            keep &= family[first] == family[second]
        pairs = self._candidates[keep]
        found = zip(pairs.tolist(), identities_of(self._texts, pairs, least=self.least), strict=True)
        return sorted(
            Paralogs(self.names[first], self.names[second], identity)
            for (first, second), identity in found
            if identity >= self.least
        )

    def families(self) -> dict[str, int]:
        """Return a number for every name; names that chains of pairs join have the same."""
        family = self._known_families()
        if family is None:
            family = self._family = joined(self._texts, self._candidates, least=self.least)
            self._keep(family)
        return dict(zip(self.names, family.tolist(), strict=True))

    def _are_among(self, names: Collection[str] | None) -> Bool[np.ndarray, " n"]:
        return np.array([names is None or name in names for name in self.names], dtype=bool)

    @cached_property
    def _candidates(self) -> Int64[np.ndarray, "pairs 2"]:
        return candidates(self._texts, least=self.least)

    def _known_families(self) -> Int64[np.ndarray, " n"] | None:
        """Return the family of each sequence; None as long as nobody has asked for it, now or earlier."""
        path = self._cache_file()
        if self._family is None and path is not None and path.is_file():
            with contextlib.suppress(TfbindError, KeyError, ValueError):
                family = np.asarray(Catalog.read_parquet(path)["family"], dtype=np.int64)
                self._family = family if len(family) == len(self.names) else None
        return self._family

    def _keep(self, family: Int64[np.ndarray, " n"]) -> None:
        path = self._cache_file()
        if path is not None and self.names:
            with contextlib.suppress(TfbindError):  # a store that cannot be written has no cache
                make_directory(path.parent)
                Catalog.write_parquet(path, {"family": family})

    def _cache_file(self) -> Path | None:
        if self._cache is None:
            return None
        text = json.dumps([CACHE_VERSION, self.least, self.names])
        return self._cache / f"families-{hashlib.sha256(text.encode()).hexdigest()[:12]}.parquet"


def joined(sequences: Sequence[str], pairs: Int64[np.ndarray, "pairs 2"], *, least: float) -> Int64[np.ndarray, " n"]:
    """Return the family of each sequence, the number of its first member: single linkage over the pairs that are alike.

    Pairs whose members are in one family by then are not aligned: of 700 zinc fingers, which make 245,000 pairs, 699
    are enough. So the pairs that are likeliest alike come first.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    family = np.arange(len(sequences))
    for begin in range(0, len(pairs), _JOINED_AT_ONCE):
        part = pairs[begin : begin + _JOINED_AT_ONCE]
        part = part[family[part[:, 0]] != family[part[:, 1]]]
        alike = part[np.array(identities_of(sequences, part, least=least), dtype=np.float64) >= least]
        if len(alike):
            edges = (np.ones(len(alike), dtype=bool), (family[alike[:, 0]], family[alike[:, 1]]))
            links = coo_matrix(edges, shape=(len(sequences), len(sequences)))
            family = connected_components(links, directed=False)[1][family]
    _, first, which = np.unique(family, return_index=True, return_inverse=True)
    return np.asarray(first[which], dtype=np.int64)


def candidates(sequences: Sequence[str], *, least: float) -> Int64[np.ndarray, "pairs 2"]:
    """Return the pairs of sequences that share enough words to be aligned, those that share most of them first."""
    from scipy import sparse

    words = [_words(sequence) for sequence in sequences]
    counts = np.array([len(mine) for mine in words], dtype=np.int64)
    owner = np.repeat(np.arange(len(words)), counts)
    numbers = np.concatenate([np.empty(0, dtype=np.int64), *words])
    table = sparse.csr_matrix(
        (np.ones(len(owner), dtype=np.int32), (owner, numbers)), shape=(len(words), len(_LETTERS) ** WORD)
    )
    shared = sparse.triu(table @ table.T, k=1).tocoo()
    expected = least**WORD * np.minimum(counts[shared.row], counts[shared.col])
    chance = counts[shared.row] * counts[shared.col] / len(_LETTERS) ** WORD
    chance += CHANCE_SD * np.sqrt(chance)
    most = np.where(expected < FEW_WORDS, LEAST_SHARE, MOST_SHARE)
    keep = shared.data >= np.clip(chance, LEAST_SHARE * expected, most * expected)
    share = np.zeros((len(words), len(words)), dtype=np.float32)
    share[shared.row[keep], shared.col[keep]] = shared.data[keep] / np.maximum(expected[keep], 1)
    is_short, is_peptide = least**WORD * counts < TOO_FEW_WORDS, counts < PEPTIDE_WORDS
    any_pair = (is_short[:, None] | is_short) & ~(is_peptide[:, None] | is_peptide)
    first, second = np.nonzero((share > 0) | np.triu(any_pair, 1))
    return np.stack([first, second], axis=1)[np.argsort(-share[first, second], kind="stable")]


def identities_of(sequences: Sequence[str], pairs: Int64[np.ndarray, "pairs 2"], *, least: float = 0.0) -> list[float]:
    """Return the identity of each pair; alignments run beside each other on the processor's cores.

    Parameters
    ----------
    least
        Where the best score says that the identity is lower, 0 stands for it: a score costs a quarter of an identity.
    """
    parts = [pairs[begin : begin + _CHUNK_PAIRS].tolist() for begin in range(0, len(pairs), _CHUNK_PAIRS)]
    if not parts:
        return []
    _aligner()
    with concurrent.futures.ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        found: Iterable[list[float]] = pool.map(
            lambda part: [_identity(sequences[first], sequences[second], least) for first, second in part], parts
        )
        return [identity for part in found for identity in part]


def plain(sequence: str) -> str:
    """Return a sequence with the letters that the matrix knows; others count as unknown residues."""
    return "".join(letter if letter in _LETTERS else "X" for letter in sequence.upper())


def _identity(a: str, b: str, least: float) -> float:
    parasail = _aligner()
    how = (GAP_OPEN, GAP_EXTEND, parasail.blosum62)
    shorter = min(len(a), len(b))
    needed = shorter * (MATCH_SCORE * least + OTHER_SCORE * (1 - least))
    if needed > 0 and _best_score(a, b, at_least=needed) < needed:
        return 0.0
    result = parasail.sw_stats_striped_16(a, b, *how)
    if result.saturated:
        result = parasail.sw_stats_striped_32(a, b, *how)
    return float(result.matches) / shorter


def _best_score(a: str, b: str, *, at_least: float) -> float:
    """Return the score of the best alignment, or infinity where 8 bits a cell say that it is `at_least` so high."""
    parasail = _aligner()
    how = (GAP_OPEN, GAP_EXTEND, parasail.blosum62)
    result = parasail.sw_striped_8(a, b, *how)
    if result.saturated and at_least > _FITS_A_BYTE:
        result = parasail.sw_striped_16(a, b, *how)
    return float("inf") if result.saturated else float(result.score)


def _words(sequence: str) -> Int64[np.ndarray, " words"]:
    """Return the numbers of a sequence's distinct words, words with unknown residues left out."""
    place = np.full(256, -1, dtype=np.int64)
    place[np.frombuffer(_LETTERS.encode(), dtype=np.uint8)] = np.arange(len(_LETTERS))
    codes = place[np.frombuffer(sequence.upper().encode("ascii", "replace"), dtype=np.uint8)]
    if len(codes) < WORD:
        return np.empty(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, WORD)
    windows = windows[(windows >= 0).all(axis=1)]
    return np.unique(windows @ (len(_LETTERS) ** np.arange(WORD)))


def _aligner() -> Any:
    try:
        import parasail
    except ImportError as error:
        fix = "pip install parasail, or allow it by name: --allow-leak paralog"
        raise DependencyError("proteins cannot be compared without parasail", fix=fix) from error
    return parasail
