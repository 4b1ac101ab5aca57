"""An embedder that gives, for any bases, what a stored array would be read as.

A head that was trained on a projected array, or on one whose last layer is applied on reading, wants the same numbers
of sequences that are not stored: variants, insertions, other genomes. The array's model does the first part, its maps
the rest. One byte a number is left out: it is a loss of storing, not part of what the head reads for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from tfbind_store.arrays.on_reading import Reading
from tfbind_store.arrays.transforms import Pointwise, read_transform
from tfbind_store.errors import WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import Codes, TrunkGeometry, WindowEmbedder, WindowEmbedding
from tfbind_store.precompute.project import projector_of
from tfbind_store.precompute.remaking import remake, require_remade
from tfbind_store.precompute.versions import remembering
from tfbind_store.precompute.window_options import as_computed
from tfbind_store.spec import PROJECTED, EmbeddingSpec
from tfbind_store.store.folder import Store

Map = Callable[[Float32[np.ndarray, "n s"]], np.ndarray]


def embedder_as_read(
    store: Store, name: str, *, checkpoint: str | None = None, settings: Mapping[str, Any] | None = None
) -> WindowEmbedder:
    """Return the embedder of an array, with the maps that stand between it and who reads the array.

    Parameters
    ----------
    store
        Whose.
    name
        Of an array of windows, such as ``embeddings/windows-pca256``.
    checkpoint, settings
        Where the model lies, and options that the spec does not tell.

    Raises
    ------
    WeightsError
        If the model needs weights and nobody said where they are.
    SpecError
        If it is another model than the array's.
    """
    spec = store.array(name, on_damage="exclude").spec
    if spec.embedder == PROJECTED:
        projector = projector_of(store, spec)
        source = embedder_as_read(store, projector.source.layout.name, checkpoint=checkpoint, settings=settings)
        return source if projector.axes is None else _Mapped(source, projector.axes, spec, dim=spec.dim)
    embedder = remake(spec, checkpoint=checkpoint, settings=settings)
    if embedder is None:
        fix = "say where it is: --checkpoint windows=PLACE"
        raise WeightsError(f"{name} needs its model again", where=name, fix=fix)
    require_remade(embedder, spec, store, where=name)
    reading, made = Reading.of(spec.identity), embedder
    if reading.pointwise_dim:
        tensors = read_transform(store.path, reading.pointwise_sha256)
        layer = Pointwise.from_tensors(tensors, stored_dim=spec.dim, dim=reading.pointwise_dim)
        made = _Mapped(embedder, layer, spec, dim=reading.pointwise_dim)
    whole: WindowEmbedder = made
    return whole


def taken_apart(embedder: Any) -> tuple[Any, list[Map]]:
    """Return the model behind what `embedder_as_read` gave, and the maps that follow it, first to last."""
    maps: list[Map] = []
    while isinstance(embedder, _Mapped):
        maps.insert(0, embedder.through)
        embedder = embedder.embedder
    return as_computed(embedder), maps


class _Mapped:
    """An embedder whose numbers go through a map."""

    def __init__(self, embedder: WindowEmbedder, through: Map, spec: EmbeddingSpec, *, dim: int) -> None:
        self.embedder, self.through, self._spec, self._dim = embedder, through, spec, dim

    @property
    def geometry(self) -> TrunkGeometry:
        """Of the embedder, with the map's channels."""
        return replace(self.embedder.geometry, dim=self._dim)

    def remembering(self) -> WindowEmbedder | None:
        """Return the same over a twin of the embedder that keeps what it has computed; None if it has none."""
        twin = remembering(self.embedder)
        return None if twin is None else _Mapped(twin, self.through, self._spec, dim=self._dim)

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return the array's spec: this is what it holds, or is read as."""
        self.geometry.require_fits(grid, where=self._spec.embedder)
        return self._spec

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield each window through the map."""
        for window, values in self.embedder.embed(windows, codes, tiling):
            yield WindowEmbedding(window, np.asarray(self.through(values), dtype=np.float32))
