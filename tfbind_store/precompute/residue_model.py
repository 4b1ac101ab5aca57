"""What protein language models share: batches of like length, long proteins, pooling, precision, memory.

A `ResidueModel` turns a few stretches of residues into vectors; `ResidueEmbedder` does all the rest. Proteins are read
longest first within a look-ahead, in batches that hold about the same number of tokens; a batch that does not fit into
memory is halved. A protein longer than the model reads is treated by a policy that is part of the spec.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float

from tfbind_store.errors import ConfigError, EmbeddingError, ProteinError
from tfbind_store.precompute.alphabet import require_list, residues
from tfbind_store.precompute.embedder import SequenceEmbedding, batches
from tfbind_store.precompute.weights import exact_float32
from tfbind_store.spec import EmbeddingSpec

LongProteins = Literal["average", "first", "refuse"]
Pooling = Literal["none", "mean"]
Precision = Literal["float32", "bfloat16", "float16"]
USUAL_OVERLAP = 256
LOOK_AHEAD = 256
"""Proteins that are brought into order of length together; as many results may wait in memory."""
CPU_TOKENS, GPU_TOKENS = 512, 32768
"""Tokens per batch: a GPU is idle with less; on a CPU a batch is no faster than its proteins one at a time
(`benchmarks/encoders.py`), and larger ones fall out of the cache."""
PROBE = "MKVLAAGIVGLNDERSTWYHCFPQ" * 8
LEAST_COSINE = 0.999
"""Between full and half precision, over the probe; below it half precision is refused."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResidueOptions:
    """Options of every protein language model."""

    layer: int | None = None
    """Layer whose vectors are kept, 0 for the token embeddings; None is the last."""
    long_proteins: LongProteins = "average"
    """What becomes of a protein longer than `window`: overlapping stretches are ``average``d, the ``first`` `window`
    residues are kept and the rest counted as truncated, or it is ``refuse``d."""
    window: int | None = None
    """Most residues read at once; None is as many as the model takes."""
    overlap: int | None = None
    """Fewest residues that neighbouring stretches share; None is 256, or half the window if that is less."""
    pooling: Pooling = "none"
    """``mean`` keeps one vector per protein."""
    precision: Precision = "float32"
    """Of the matrix products; half precision is held against float32 first. float16 needs a GPU."""
    tokens_per_batch: int | None = None
    """Changes speed only."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, …; ``auto`` is the CPU where PROTEIN_EMBED_USE_CPU is set."""


class ResidueModel(Protocol):
    """A frozen model of proteins, on its device and in eval mode."""

    device: torch.device
    dim: int
    longest: int
    """Most residues it reads at once."""
    n_layers: int

    def forward(self, stretches: Sequence[str], layer: int) -> list[Float[torch.Tensor, "length dim"]]:
        """Return one row per residue of each stretch, special tokens left out."""
        ...

    def release(self) -> None:
        """Give the device's memory back; `forward` may still be called."""
        ...


class Stretch(NamedTuple):
    """A part of a protein that is read at once."""

    protein: int
    start: int
    letters: str


class ResidueEmbedder:
    """A `ResidueModel` as an embedder of proteins.

    Parameters
    ----------
    model
        The model.
    options
        How it is used.
    name
        In the registry.
    identity
        Class, weights and reading of unknown letters.

    Raises
    ------
    ConfigError
        If an option does not suit the model.
    EmbeddingError
        If half precision is too far from float32 with these weights.
    """

    def __init__(self, model: ResidueModel, options: ResidueOptions, *, name: str, identity: Mapping[str, Any]) -> None:
        where = f"options of embedder {name}"
        self.model, self.options, self.name = model, options, name
        self.layer = model.n_layers if options.layer is None else options.layer
        self.window = model.longest if options.window is None else options.window
        if not 0 <= self.layer <= model.n_layers:
            raise ConfigError(f"layer {self.layer} of a model of {model.n_layers} layers", where=where)
        self.overlap = min(USUAL_OVERLAP, self.window // 2) if options.overlap is None else options.overlap
        if not 0 <= self.overlap < self.window <= model.longest:
            fix = f"choose 0 <= overlap < window <= {model.longest}"
            raise ConfigError(f"window {self.window} with overlap {self.overlap}", where=where, fix=fix)
        on_cpu = model.device.type == "cpu"
        if on_cpu and options.precision == "float16":
            raise ConfigError("float16 on a CPU", where=where, fix="precision=float32, or device=cuda")
        self._identity = dict(identity)
        usual = CPU_TOKENS if on_cpu else GPU_TOKENS
        self._budget = usual if options.tokens_per_batch is None else options.tokens_per_batch
        if self._budget < 1:
            raise ConfigError("tokens_per_batch must be 1 or more", where=where)
        if options.precision != "float32":
            self._require_near()

    def spec(self) -> EmbeddingSpec:
        """Return the spec; the weights are named by their digest."""
        policies = {
            "average": f"stretches of {self.window}, overlapping by {self.overlap} or more, averaged",
            "first": f"first {self.window} residues",
            "refuse": f"longer than {self.window} refused",
        }
        identity = {
            **self._identity,
            "layer": self.layer,
            "length_policy": policies[self.options.long_proteins],
            "pooling": self.options.pooling,
            "matmul": self.options.precision,
        }
        return EmbeddingSpec(kind="proteins", embedder=self.name, dim=self.model.dim, identity=identity)

    def rows_for(self, length: int) -> int:
        """Return how many rows a protein of `length` residues gives."""
        return 1 if self.options.pooling == "mean" else self._n_read(length)

    def embed(self, sequences: Sequence[str | Sequence[int] | np.ndarray]) -> Iterator[SequenceEmbedding]:
        """Yield one result per sequence, in the order given; the alphabet is said in `alphabet`.

        Raises
        ------
        ProteinError
            If a sequence is no protein, or too long under the policy ``refuse``.
        """
        require_list(sequences)
        for group in batches(sequences, LOOK_AHEAD):
            letters = [residues(sequence) for sequence in group]
            stretches = [stretch for place, protein in enumerate(letters) for stretch in self.cut(place, protein)]
            yield from self._embed(letters, stretches)

    def release(self) -> None:
        """Give the device's memory back until the next call of `embed`."""
        self.model.release()

    def cut(self, place: int, letters: str) -> list[Stretch]:
        """Return the stretches in which protein number `place` is read."""
        if len(letters) > self.window and self.options.long_proteins == "refuse":
            raise ProteinError(
                f"{len(letters):,} residues, the model reads {self.window:,} at once",
                where=f"{letters[:30]}…",
                fix="--set long_proteins=average (or first)",
            )
        starts = stretch_starts(len(letters), self.window, self.overlap)
        if self.options.long_proteins == "first":
            starts = starts[:1]
        return [Stretch(place, start, letters[start : start + self.window]) for start in starts]

    def _embed(self, letters: Sequence[str], stretches: Sequence[Stretch]) -> Iterator[SequenceEmbedding]:
        """Run the stretches longest first, and yield proteins in order as soon as they are whole."""
        waiting = {place: 0 for place in range(len(letters))}
        for stretch in stretches:
            waiting[stretch.protein] += 1
        sums: dict[int, torch.Tensor] = {}
        counts: dict[int, torch.Tensor] = {}
        next_place = 0
        for batch in self._batched(sorted(stretches, key=lambda stretch: -len(stretch.letters))):
            for stretch, found in zip(batch, self._forward([s.letters for s in batch]), strict=True):
                place = stretch.protein
                if place not in sums:
                    n_rows = self._n_read(len(letters[place]))
                    sums[place] = torch.zeros(n_rows, self.model.dim)
                    counts[place] = torch.zeros(n_rows, 1)
                part = slice(stretch.start, stretch.start + len(stretch.letters))
                sums[place][part] += found.float().cpu()
                counts[place][part] += 1
                waiting[place] -= 1
            while next_place in sums and not waiting[next_place]:
                mean = sums.pop(next_place) / counts.pop(next_place)
                values = mean.mean(0, keepdim=True) if self.options.pooling == "mean" else mean
                yield SequenceEmbedding(values.numpy(), len(mean) < len(letters[next_place]))
                next_place += 1

    def _n_read(self, length: int) -> int:
        return min(length, self.window) if self.options.long_proteins == "first" else length

    def _batched(self, stretches: Sequence[Stretch]) -> Iterator[list[Stretch]]:
        """Cut a list that is sorted by length, longest first, so that each padded batch keeps the budget."""
        begin = 0
        while begin < len(stretches):
            size = max(1, self._budget // len(stretches[begin].letters))
            yield list(stretches[begin : begin + size])
            begin += size

    def _forward(self, stretches: Sequence[str]) -> list[torch.Tensor]:
        """Run a batch; where memory is short, run its halves, and smaller batches from then on."""
        try:
            return self._run(stretches, self.options.precision)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(stretches) == 1:
                raise EmbeddingError(
                    f"a protein of {len(stretches[0]):,} residues does not fit into memory",
                    where=str(self.model.device),
                    fix="--set window=512, or --device cpu",
                ) from error
        self._budget = max(1, min(self._budget, len(stretches) * max(map(len, stretches)) // 2))
        _log.info("out of memory: %d tokens per batch from now on", self._budget)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(stretches) // 2
        return [*self._forward(stretches[:middle]), *self._forward(stretches[middle:])]

    def _run(self, stretches: Sequence[str], precision: Precision) -> list[torch.Tensor]:
        device = self.model.device
        half = precision != "float32"
        autocast = torch.autocast(device.type, getattr(torch, precision)) if half else contextlib.nullcontext()
        with torch.inference_mode(), exact_float32(device), autocast:
            return self.model.forward(stretches, self.layer)

    def _require_near(self) -> None:
        """Hold half precision against float32 on one protein."""
        probe = [PROBE[: self.window]]
        (full,), (half,) = self._run(probe, "float32"), self._run(probe, self.options.precision)
        cosine = float(torch.cosine_similarity(full.float(), half.float(), dim=-1).min())
        if not cosine >= LEAST_COSINE:
            raise EmbeddingError(
                f"{self.options.precision} is too far from float32 with these weights (cosine {cosine:.4f})",
                where=f"embedder {self.name}",
                fix="--set precision=float32",
            )


def stretch_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return where the stretches of a protein start: evenly spread, the last one ending at the protein's end.

    Examples
    --------
    >>> stretch_starts(10, 12, 2), stretch_starts(20, 12, 4), stretch_starts(30, 12, 4)
    ([0], [0, 8], [0, 6, 12, 18])
    """
    if length <= window:
        return [0]
    n_stretches = 1 + -(-(length - window) // (window - overlap))
    return [round(i * (length - window) / (n_stretches - 1)) for i in range(n_stretches)]


def padded(tokens: Sequence[Sequence[int]], *, padding: int, device: torch.device) -> torch.Tensor:
    """Return lists of tokens as one matrix, `padding` after the shorter ones."""
    longest = max(map(len, tokens))
    matrix = torch.full((len(tokens), longest), padding, dtype=torch.long)
    for row, line in enumerate(tokens):
        matrix[row, : len(line)] = torch.tensor(line)
    return matrix.to(device)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
