"""Options that every embedder of windows takes: where and in which direction it reads, and how its numbers are stored.

They wrap an embedder and go into its spec; without them an embedder is left as it is. The reverse strand is stored in
genome order. Enformer reads strands itself, since its neighbouring windows share work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from tfbind_store.arrays.int8 import SCALE_ROWS
from tfbind_store.arrays.on_reading import FIELD, Reading
from tfbind_store.arrays.transforms import pack
from tfbind_store.config import from_mapping
from tfbind_store.errors import ConfigError
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.embedder import Codes, TrunkGeometry, WindowEmbedder, WindowEmbedding
from tfbind_store.precompute.versions import remembering
from tfbind_store.spec import EmbeddingSpec

Strand = Literal["forward", "reverse", "mean"]
WITH_OWN_STRANDS = frozenset({"enformer"})
ONE_WINDOW_A_CALL = frozenset({"module", "borzoi", "convnet"})
"""Embedders that read each window whole and by itself, so that its bases can be turned round."""
_COMPLEMENT = np.array([3, 2, 1, 0, 4, 5], dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """How windows are read and stored."""

    shift_bp: int = 0
    """Every window is read this many bp further right; less than one bin. Bins keep their numbers."""
    strand: Strand = "forward"
    """``reverse`` and ``mean`` of both are stored in genome order."""
    int8: bool = False
    """Store one byte a number, with scales for each channel of each window."""
    final_on_reading: bool = False
    """Enformer with ``tap=transformer``: keep the trunk's last layer beside the array and apply it as rows are read,
    which gives the trunk's own numbers from half the bytes."""


_USUAL = WindowOptions()


def split_options(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], WindowOptions]:
    """Return the embedder's own options, and those that are common to all."""
    common = {field.name for field in fields(WindowOptions)} - ({"strand"} if name in WITH_OWN_STRANDS else set())
    own = {key: value for key, value in options.items() if key not in common}
    shared = {key: value for key, value in options.items() if key in common}
    choice = from_mapping(WindowOptions, shared, where=f"options of embedder {name}")
    if choice.strand != "forward" and name not in ONE_WINDOW_A_CALL:
        raise ConfigError(f"{name} has no strand", where="strand", fix=f"use {', '.join(sorted(WITH_OWN_STRANDS))}")
    return own, choice


def options_in(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a spec's identity tells, without those at their default.

    Examples
    --------
    >>> options_in({"shift_bp": 3, "layer": "trunk"})
    {'shift_bp': 3}
    """
    reading = Reading.of(identity)
    choice = WindowOptions(
        shift_bp=identity.get("shift_bp", 0),
        strand=identity.get("strand", "forward"),
        int8=bool(reading.scale_rows),
        final_on_reading=bool(reading.pointwise_dim),
    )
    usual = WindowOptions()
    chosen = {field.name: getattr(choice, field.name) for field in fields(choice)}
    return {name: value for name, value in chosen.items() if value != getattr(usual, name)}


def with_options(embedder: Any, choice: WindowOptions) -> WindowEmbedder:
    """Return `embedder` as the options have it; itself where they ask for nothing."""
    wrapped: WindowEmbedder = embedder if choice == WindowOptions() else _Optioned(embedder, choice)
    return wrapped


def as_computed(embedder: Any) -> Any:
    """Return an embedder without the options that say only how its numbers are stored."""
    if isinstance(embedder, _Optioned) and replace(embedder._choice, int8=False, final_on_reading=False) == _USUAL:
        return embedder._embedder
    return embedder


class ReadingOf(NamedTuple):
    """How an embedder reads its windows."""

    model: Any
    """Behind the options."""
    shift_bp: int
    strand: Strand


def reading_of(embedder: Any) -> ReadingOf:
    """Return the model behind options, and where and on which strand it reads."""
    if not isinstance(embedder, _Optioned):
        return ReadingOf(embedder, 0, getattr(embedder, "strand", "forward"))
    model, choice = embedder._embedder, embedder._choice
    # the options' strand is for models that have none of their own
    return ReadingOf(model, choice.shift_bp, getattr(model, "strand", choice.strand))


def on_strand(
    features: Callable[[Float[Tensor, "b bp 4"]], Float[Tensor, "b n d"]],
    sequence: Float[Tensor, "b bp 4"],
    strand: Strand,
) -> Float[Tensor, "b n d"]:
    """Return what a trunk makes of a strand of one-hot windows, or of both, in genome order, with a gradient."""
    if strand == "forward":
        return features(sequence)
    # A and T, C and G stand opposite each other: turned round in both axes it is the other strand
    backward = features(sequence.flip(1, 2)).flip(1)
    return backward if strand == "reverse" else (features(sequence) + backward) / 2


class _Optioned:
    """An embedder that reads elsewhere, or whose numbers are stored otherwise."""

    def __init__(self, embedder: Any, choice: WindowOptions) -> None:
        self._embedder, self._choice = embedder, choice
        if abs(choice.shift_bp) >= embedder.geometry.bin_bp:
            bin_bp = embedder.geometry.bin_bp
            raise ConfigError(
                f"shift_bp is {choice.shift_bp}, a bin is {bin_bp} bp",
                where="shift_bp",
                fix="shift by less than one bin: a bin's label would be its neighbour's",
            )
        self._pointwise = _pointwise_of(embedder) if choice.final_on_reading else None

    def __getattr__(self, name: str) -> Any:
        """Leave everything else (batch sizes, memory) to the embedder."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._embedder, name)

    @property
    def geometry(self) -> TrunkGeometry:
        """Of the embedder: what is stored for each bin."""
        geometry: TrunkGeometry = self._embedder.geometry
        return geometry

    @property
    def shift_bp(self) -> int:
        """How far to the right of its place a window is read."""
        return self._choice.shift_bp

    @property
    def transforms(self) -> tuple[bytes, ...]:
        """Files of maps that the array is read with."""
        return () if self._pointwise is None else (self._pointwise[0],)

    def exact(self) -> WindowEmbedder:
        """Return the embedder in float32, read as this one."""
        return _Optioned(self._embedder.exact(), replace(self._choice, final_on_reading=False))

    def remembering(self) -> WindowEmbedder | None:
        """Return the same over a twin of the embedder that keeps what it has computed; None if it has none."""
        inner = remembering(self._embedder)
        if inner is None:
            return None
        twin = copy.copy(self)
        twin._embedder = inner
        return twin

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return the embedder's spec with these options in its identity."""
        spec: EmbeddingSpec = self._embedder.spec(genome_digest, grid)
        reading = Reading(scale_rows=SCALE_ROWS if self._choice.int8 else 0)
        if self._pointwise is not None:
            _, sha256, dim = self._pointwise
            reading = replace(reading, pointwise_dim=dim, pointwise_sha256=sha256)
        said: dict[str, Any] = {} if reading.is_plain else {FIELD: reading.to_json()}
        for name in ("shift_bp", "strand"):
            if (value := getattr(self._choice, name)) != getattr(WindowOptions, name):
                said[name] = value
        return replace(spec, identity={**spec.identity, **said}, dtype="int8" if self._choice.int8 else spec.dtype)

    def live(self, sequence: Float[Tensor, "b bp 4"], grid: Grid) -> Float[Tensor, "b n d"]:
        """Return the kept bins of one-hot windows, which begin where these options have them begin."""
        return on_strand(lambda own: self._embedder.live(own, grid), sequence, self._choice.strand)

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield one result per window, in the order given, bins in genome order."""
        shift, strand = self._choice.shift_bp, self._choice.strand

        def ahead(locus: Locus) -> UInt8[np.ndarray, " bp"]:
            return codes(locus.moved(shift)) if shift else codes(locus)

        def back(locus: Locus) -> UInt8[np.ndarray, " bp"]:
            return np.ascontiguousarray(_COMPLEMENT[ahead(locus)[::-1]])

        if strand == "forward":
            yield from self._embedder.embed(windows, ahead, tiling)
            return
        # what `back` gives for two loci that overlap is no one sequence that windows could share
        apart = getattr(self._embedder, "one_by_one", lambda: self._embedder)()
        for window, values in apart.embed(windows, back, tiling):
            flipped = values[::-1]
            if strand == "mean":
                (forward,) = apart.embed([window], ahead, tiling)
                flipped = np.float32(0.5) * (flipped + forward.values)
            yield WindowEmbedding(window, flipped)


def _pointwise_of(embedder: Any) -> tuple[bytes, str, int]:
    """Return the file of an Enformer's last layer, its sha256, and how many channels it gives."""
    if getattr(embedder, "tap", None) != "transformer" or not hasattr(embedder, "model"):
        what = "final_on_reading is for an enformer's transformer"
        raise ConfigError(what, where="final_on_reading", fix="--embedder enformer --set tap=transformer")
    if getattr(embedder, "strand", "forward") == "mean":
        what = "the mean of two strands is not what the last layer makes of their mean"
        raise ConfigError(what, where="final_on_reading", fix="embed the strands as two arrays, or with tap=trunk")
    norm, _, conv = embedder.model.final_pointwise[1]

    def numbers(tensor: Any) -> np.ndarray:
        return np.asarray(tensor.detach().cpu().double().numpy())

    scale = numbers(norm.weight) / np.sqrt(numbers(norm.running_var) + norm.eps)
    layer: dict[str, Float32[np.ndarray, "..."]] = {
        "norm_scale": scale,
        "norm_offset": numbers(norm.bias) - numbers(norm.running_mean) * scale,
        "weight": numbers(conv.weight)[:, :, 0],
        "bias": numbers(conv.bias),
    }
    content, sha256 = pack("pointwise", layer)
    return content, sha256, int(conv.weight.shape[0])
