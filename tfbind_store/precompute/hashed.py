"""Texts without weights: hashed counts of words and of letter n-grams.

Two texts that share words, or parts of words, get alike vectors; meaning that is not in the letters is lost. Vectors
have length 1 (an empty text is zero), counts are damped by a logarithm, signs make collisions cancel on average.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Float32

from tfbind_store.errors import ConfigError
from tfbind_store.precompute.embedder import TextEmbedding, read_options
from tfbind_store.spec import EmbeddingSpec

WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class HashedOptions:
    """How texts are cut up."""

    dim: int = 256
    """Numbers per text."""
    shortest: int = 3
    """Letters of the shortest n-gram."""
    longest: int = 5
    """Letters of the longest n-gram."""


def from_options(options: Mapping[str, Any]) -> HashedEmbedder:
    """Return the hashed n-grams for the registry."""
    return HashedEmbedder(read_options(HashedOptions, options, name="hashed"))


class HashedEmbedder:
    """Hashed words and letter n-grams; see the module."""

    def __init__(self, options: HashedOptions = HashedOptions()) -> None:
        if options.dim < 2 or not 1 <= options.shortest <= options.longest:
            raise ConfigError("dim must be 2 or more, and 1 <= shortest <= longest", where="options of embedder hashed")
        self.options = options

    def spec(self) -> EmbeddingSpec:
        """Return the spec: the recipe is the whole model."""
        identity = {
            "class": "hashed",
            "ngrams": [self.options.shortest, self.options.longest],
            "hash": "xxh3_64",
            "case": "folded",
        }
        return EmbeddingSpec(
            kind="contexts", embedder="hashed", dim=self.options.dim, dtype="float32", identity=identity
        )

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        """Return one vector of length 1 per text, zeros for a text without words."""
        values = np.zeros((len(texts), self.options.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            values[row] = self._one(text)
        return TextEmbedding(values, np.zeros(len(texts), dtype=bool))

    def _one(self, text: str) -> Float32[np.ndarray, " dim"]:
        vector = np.zeros(self.options.dim)
        for piece, count in sorted(Counter(self._pieces(text)).items()):
            digest = xxhash.xxh3_64_intdigest(piece.encode("utf-8"))
            sign = 1.0 if digest >> 63 else -1.0
            vector[digest % self.options.dim] += sign * (1 + math.log(count))
        norm = np.linalg.norm(vector)
        return (vector / norm if norm else vector).astype(np.float32)

    def _pieces(self, text: str) -> Iterator[str]:
        for word in WORD.findall(text.casefold()):
            yield word
            marked = f"<{word}>"
            for n in range(self.options.shortest, self.options.longest + 1):
                yield from (marked[start : start + n] for start in range(len(marked) - n + 1))
