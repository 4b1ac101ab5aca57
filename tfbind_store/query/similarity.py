"""Which proteins are alike: pairs of sequences over a threshold of identity.

Identity is the number of identical residues in the best local alignment (parasail: Smith-Waterman, BLOSUM62, a gap
costs 11 and 1 more for each residue) over the length of the shorter protein, so that a short domain in common counts
for as much as it covers. Only pairs that share enough distinct words of four residues are aligned. Identity p gives at
least p to the fourth power of them on average, where identical residues are scattered, and more where they lie
together: a quarter of that is asked for, or half of it where long proteins share as many by chance.
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
from jaxtyping import Int64

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import make_directory
from tfbind_store.errors import DependencyError, TfbindError
from tfbind_store.query.kinship import Paralogs

WORD = 4
LEAST_SHARE, MOST_SHARE = 0.25, 0.5
"""Of the words that a pair at the threshold is expected to share."""
CHANCE_SD = 3.0
CACHE_VERSION = 1
"""Raised when what is found for the same sequences and threshold changes."""
GAP_OPEN, GAP_EXTEND = 11, 1
_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_CHUNK_PAIRS = 512


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
    """Finds pairs of like sequences; asked for all of them, it keeps them in a file for the next time.

    Parameters
    ----------
    sequences
        By name; a name is to say all about its sequence (sha256).
    least
        Share of identical residues.
    cache
        Folder for the pairs of all sequences; what lies there may be deleted at any time.
    """

    def __init__(self, sequences: Mapping[str, str], *, least: float, cache: Path | None = None) -> None:
        self.names = sorted(sequences)
        self.least = least
        self._texts = [plain(sequences[name]) for name in self.names]
        self._cache = cache

    def __call__(self, asked: Collection[str] | None) -> list[Paralogs]:
        """Return the pairs with at least one of the asked names in them, or all."""
        if asked is None:
            return self._all
        if "_all" in self.__dict__:
            return [pair for pair in self._all if pair.first in asked or pair.second in asked]
        is_asked = np.array([name in asked for name in self.names], dtype=bool)
        return self._among(self._candidates[is_asked[self._candidates].any(axis=1)])

    @cached_property
    def _candidates(self) -> Int64[np.ndarray, "pairs 2"]:
        return candidates(self._texts, least=self.least)

    @cached_property
    def _all(self) -> list[Paralogs]:
        path = self._cache_file()
        if path is not None and path.is_file():
            with contextlib.suppress(TfbindError, KeyError):
                table = Catalog.read_parquet(path)
                return [Paralogs(*row) for row in Columns({key: table[key] for key in Paralogs._fields}).rows()]
        found = self._among(self._candidates)
        if path is not None and found:
            columns = zip(Paralogs._fields, zip(*found, strict=True), strict=True)
            with contextlib.suppress(TfbindError):  # a store that cannot be written has no cache
                make_directory(path.parent)
                Catalog.write_parquet(path, {key: np.array(values) for key, values in columns})
        return found

    def _among(self, pairs: Int64[np.ndarray, "pairs 2"]) -> list[Paralogs]:
        found = zip(pairs.tolist(), identities_of(self._texts, pairs), strict=True)
        return [
            Paralogs(self.names[first], self.names[second], identity)
            for (first, second), identity in found
            if identity >= self.least
        ]

    def _cache_file(self) -> Path | None:
        if self._cache is None:
            return None
        text = json.dumps([CACHE_VERSION, self.least, self.names])
        return self._cache / f"paralogs-{hashlib.sha256(text.encode()).hexdigest()[:12]}.parquet"


def candidates(sequences: Sequence[str], *, least: float) -> Int64[np.ndarray, "pairs 2"]:
    """Return the pairs of sequences, first before second, that share enough words to be aligned."""
    from scipy import sparse

    words = [_words(sequence) for sequence in sequences]
    if not any(map(len, words)):
        return np.empty((0, 2), dtype=np.int64)
    owner = np.repeat(np.arange(len(words)), [len(mine) for mine in words])
    _, word = np.unique(np.concatenate(words), return_inverse=True)
    shape = (len(words), int(word.max()) + 1)
    table = sparse.csr_matrix((np.ones(len(owner), dtype=np.int32), (owner, word)), shape=shape)
    shared = sparse.triu(table @ table.T, k=1).tocoo()
    counts = np.array([max(1, len(mine)) for mine in words])
    expected = least**WORD * np.minimum(counts[shared.row], counts[shared.col])
    chance = counts[shared.row] * counts[shared.col] / len(_LETTERS) ** WORD
    chance += CHANCE_SD * np.sqrt(chance)
    keep = shared.data >= np.clip(chance, LEAST_SHARE * expected, MOST_SHARE * expected)
    pairs = np.stack([shared.row[keep], shared.col[keep]], axis=1).astype(np.int64)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def identities_of(sequences: Sequence[str], pairs: Int64[np.ndarray, "pairs 2"]) -> list[float]:
    """Return the identity of each pair; alignments run beside each other on the processor's cores."""
    parts = [pairs[begin : begin + _CHUNK_PAIRS].tolist() for begin in range(0, len(pairs), _CHUNK_PAIRS)]
    if not parts:
        return []
    _aligner()
    with concurrent.futures.ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        found: Iterable[list[float]] = pool.map(lambda part: [_identity(sequences, *pair) for pair in part], parts)
        return [identity for part in found for identity in part]


def plain(sequence: str) -> str:
    """Return a sequence with the letters that the matrix knows; others count as unknown residues."""
    return "".join(letter if letter in _LETTERS else "X" for letter in sequence.upper())


def _identity(sequences: Sequence[str], first: int, second: int) -> float:
    parasail = _aligner()
    a, b = sequences[first], sequences[second]
    result = parasail.sw_stats_striped_16(a, b, GAP_OPEN, GAP_EXTEND, parasail.blosum62)
    if result.saturated:
        result = parasail.sw_stats_striped_32(a, b, GAP_OPEN, GAP_EXTEND, parasail.blosum62)
    return float(result.matches) / min(len(a), len(b))


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
