"""What every frozen model looks like from outside, and the registry that finds one by name.

Three kinds: a *window* embedder reads DNA and gives numbers per bin, a *sequence* embedder reads one protein and gives
numbers per residue, a *text* embedder gives one vector per text. Each says in its spec everything that decides its
numbers; what only decides speed (batch size, device) is no part of it. All results are float32 numpy arrays on the
CPU; storing them as float16 is ``run``'s business. Sequence codes are uint8: A 0, C 1, G 2, T 3, N 4, 5 for positions
outside the chromosome. Nothing here imports a model: the registry loads the module of the one asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from tfbind_store.config import from_mapping
from tfbind_store.errors import ConfigError, SpecError
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.spec import ArrayKind, EmbeddingSpec

OptionsT = TypeVar("OptionsT")

Codes = Callable[[Locus], UInt8[np.ndarray, " bp"]]
"""Reads the codes of a locus; positions outside the chromosome are 5."""


@dataclass(frozen=True, kw_only=True)
class TrunkGeometry:
    """Which windows a trunk can read and what it gives for each bin."""

    bin_bp: int
    """Bases per output bin."""
    dim: int
    """Numbers per bin."""
    taps: tuple[str, ...] = ("trunk",)
    """Layers that can be stored; the first is the usual one."""
    window_bp: int | None = None
    """The one window length it reads; None where the grid decides."""
    n_bins: int | None = None
    """The most bins it can give per window; None where only the window's length bounds them."""

    def require_fits(self, grid: Grid, *, where: str) -> None:
        """Refuse a grid whose bins are not the trunk's own.

        Raises
        ------
        SpecError
            If the bin or window length differs, the window is no whole number of bins, or the crop would cut bins in
            half (an odd number of bins to crop).
        """
        if grid.bin_bp != self.bin_bp:
            raise SpecError(
                f"the grid has bins of {grid.bin_bp} bp, {where} gives bins of {self.bin_bp} bp",
                where=where,
                fix=f"make the store with bins of {self.bin_bp} bp (tfbind init), or choose another trunk",
            )
        if self.window_bp is not None and grid.window_bp != self.window_bp:
            raise SpecError(
                f"the grid has windows of {grid.window_bp} bp, {where} reads {self.window_bp} bp",
                where=where,
                fix=f"make the store with windows of {self.window_bp} bp (tfbind init)",
            )
        if grid.window_bp % grid.bin_bp or grid.margin_bp % grid.bin_bp:
            raise SpecError(
                f"{grid.n_bins} bins are not the centre of {grid.window_bp / grid.bin_bp:g} bins",
                where=where,
                fix="choose window_bp / bin_bp and n_bins both even or both odd",
            )
        if self.n_bins is not None and grid.n_bins > self.n_bins:
            raise SpecError(f"the grid keeps {grid.n_bins} bins, {where} gives {self.n_bins}", where=where)


class MemoryNeed(NamedTuple):
    """About how much memory of its device an embedder takes."""

    device: str
    weights_bytes: int
    batch_windows: int
    """Windows that are read at once."""
    batch_bytes: int | None
    """At most, for the numbers of these windows on their way; None where only trying tells."""


class WindowEmbedding(NamedTuple):
    """One window's result."""

    window: int
    """Window id on the tiling."""
    values: Float32[np.ndarray, "n_bins dim"]
    """Kept bins, in genome order."""


class SequenceEmbedding(NamedTuple):
    """One protein's result."""

    values: Float32[np.ndarray, "length dim"]
    """One row per residue, or a single one where residues are pooled."""
    truncated: bool
    """Whether residues at the end were not read; their rows are absent."""


class TextEmbedding(NamedTuple):
    """The results of a list of texts."""

    values: Float32[np.ndarray, "n dim"]
    truncated: Bool[np.ndarray, " n"]
    """Whether the end of a text was not read."""


@runtime_checkable
class WindowEmbedder(Protocol):
    """A frozen model of DNA.

    One that reads several windows at once may have ``halve_batch() -> int``: it is asked to when memory runs out, and
    returns the new size, 0 where it is one already. One that can bound its own memory may have
    ``limit_memory(max_bytes, grid)``, one that knows it ``memory_need(grid)``. One that can keep what it computed for
    bases that come again may have ``remembering()``, which returns a twin that does (or None). One whose windows share
    work, so that `codes` must be one sequence, has ``one_by_one()``: the same without sharing, for the other strand.
    """

    @property
    def geometry(self) -> TrunkGeometry:
        """The windows it reads and the bins it gives."""
        ...

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return what decides its numbers on this genome and grid; refuse a grid that does not fit."""
        ...

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield one result per window, in the order given.

        Contiguous stretches come in genome order, so that neighbours can share work. A window whose numbers are not
        finite is yielded as it is: the runner records it.
        """
        ...


@runtime_checkable
class SequenceEmbedder(Protocol):
    """A frozen model of proteins."""

    def spec(self) -> EmbeddingSpec:
        """Return what decides its numbers."""
        ...

    def embed(self, sequences: Sequence[str]) -> Iterator[SequenceEmbedding]:
        """Yield one result per sequence, in the order given."""
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    """A frozen model of text."""

    def spec(self) -> EmbeddingSpec:
        """Return what decides its numbers."""
        ...

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        """Return one vector per text, in the order given."""
        ...


REGISTRY: Mapping[ArrayKind, Mapping[str, str]] = {
    "windows": {
        "toy": "tfbind_store.precompute.toy:from_options",
        "enformer": "tfbind_store.precompute.enformer:from_options",
        "borzoi": "tfbind_store.precompute.borzoi:from_options",
        "convnet": "tfbind_store.precompute.convnet:from_options",
        "module": "tfbind_store.precompute.module:from_options",
    },
    "proteins": {
        "composition": "tfbind_store.precompute.composition:from_options",
        "esm": "tfbind_store.precompute.esm:from_options",
        "protalbert": "tfbind_store.precompute.protalbert:from_options",
        "imported": "tfbind_store.precompute.imported:from_options",
    },
    "contexts": {
        "hashed": "tfbind_store.precompute.hashed:from_options",
        "bert": "tfbind_store.precompute.bert:from_options",
    },
}
"""Embedders by kind and name: ``module:function``, imported when asked for; the function takes a mapping of options."""


def embedder_names(kind: ArrayKind) -> list[str]:
    """Return the registered names of one kind.

    Examples
    --------
    >>> embedder_names("windows")
    ['borzoi', 'convnet', 'enformer', 'module', 'toy']
    """
    return sorted(REGISTRY[kind])


def make_window_embedder(name: str, options: Mapping[str, Any] | None = None) -> WindowEmbedder:
    """Return the window embedder called `name`, built with its own options.

    Raises
    ------
    ConfigError
        On an unknown name or option.
    WeightsError
        If its weights are not on this machine.
    """
    from tfbind_store.precompute.window_options import split_options, with_options

    own, common = split_options(name, options or {})
    return with_options(_make("windows", name, own), common)


def make_sequence_embedder(name: str, options: Mapping[str, Any] | None = None) -> SequenceEmbedder:
    """Return the protein embedder called `name`, built with its own options."""
    embedder: SequenceEmbedder = _make("proteins", name, options)
    return embedder


def make_text_embedder(name: str, options: Mapping[str, Any] | None = None) -> TextEmbedder:
    """Return the text embedder called `name`, built with its own options."""
    embedder: TextEmbedder = _make("contexts", name, options)
    return embedder


def read_options(cls: type[OptionsT], options: Mapping[str, Any], *, name: str) -> OptionsT:
    """Return `options` as the embedder's own options class, refusing unknown keys."""
    return from_mapping(cls, options, where=f"options of embedder {name}")


def release(embedder: object) -> None:
    """Let an embedder that holds a device's memory give it back; others have no ``release``."""
    let_go = getattr(embedder, "release", None)
    if let_go is not None:
        let_go()


def memory_need(embedder: WindowEmbedder, grid: Grid) -> MemoryNeed | None:
    """Return what an embedder takes of its device's memory; None for one that does not say."""
    say = getattr(embedder, "memory_need", None)
    need: MemoryNeed | None = None if say is None else say(grid)
    return need


def limit_memory(embedder: WindowEmbedder, max_bytes: int, grid: Grid) -> None:
    """Bound what an embedder takes beside its weights, if it can be bounded."""
    limit = getattr(embedder, "limit_memory", None)
    if limit is not None:
        limit(max_bytes, grid)


def rows_counter(embedder: SequenceEmbedder) -> Callable[[int], int]:
    """Return how many rows a protein of a length gives: one per residue, unless the embedder's ``rows_for`` differs."""
    counter: Callable[[int], int] = getattr(embedder, "rows_for", int)
    return counter


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items, in order.

    Examples
    --------
    >>> list(batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _make(kind: ArrayKind, name: str, options: Mapping[str, Any] | None) -> Any:
    known = REGISTRY[kind]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"no embedder of {kind} is called {name!r}", where="--embedder", fix=fix)
    module, _, function = known[name].partition(":")
    return getattr(importlib.import_module(module), function)(dict(options or {}))
