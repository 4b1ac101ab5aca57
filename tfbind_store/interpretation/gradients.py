"""A frozen trunk's bins as a head reads them, with a gradient back to the bases.

For an Enformer and for any embedder that has a torch module (`ModuleEmbedder`: convnet, Borzoi, one's own), on any
strand or both, through the maps that stand between an array and its reader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tfbind_store.arrays.transforms import GELU_SLOPE, Pca, Pointwise
from tfbind_store.errors import ConfigError
from tfbind_store.finetuning.live_model import LiveTrunk
from tfbind_store.loci import Locus
from tfbind_store.precompute.as_read import Map, taken_apart
from tfbind_store.precompute.embedder import WindowEmbedder
from tfbind_store.precompute.enformer import EnformerEmbedder, Trunk, one_hot
from tfbind_store.store.folder import Store

Features = Callable[[Float[Tensor, "1 bp 4"]], Float[Tensor, "1 n d"]]


class Differentiable:
    """Bins of windows, live.

    Parameters
    ----------
    store
        Whose grid and genome.
    embedder
        As `embedder_as_read` gives it.

    Raises
    ------
    ConfigError
        If the embedder has no gradient.
    """

    def __init__(self, store: Store, embedder: WindowEmbedder) -> None:
        model, maps = taken_apart(embedder)
        self.genome = store.genome
        self.device: torch.device = model.device if hasattr(model, "device") else torch.device("cpu")
        self.shift_bp = int(getattr(model, "shift_bp", 0))
        self.features = _features(store, model)
        self.maps = [_torch_map(through, self.device) for through in maps]

    def read(self, window: Locus) -> Locus:
        """Return the bases that are read for a window."""
        return window.moved(self.shift_bp)

    def sequence(self, read: Locus) -> Float[Tensor, "1 bp 4"]:
        """Return bases, whose gradient is wanted."""
        codes = self.genome.codes(*read)
        return one_hot(np.ascontiguousarray(codes[np.newaxis])).to(self.device).requires_grad_()

    def bins(self, sequence: Float[Tensor, "1 bp 4"], bins: range) -> Float[Tensor, "k d"]:
        """Return kept bins."""
        values = self.features(sequence)[0, bins.start : bins.stop]
        for through in self.maps:
            values = through(values)
        return values


def _features(store: Store, model: Any) -> Features:
    if isinstance(model, EnformerEmbedder):
        spec = model.spec(store.meta.genome, store.grid)
        trunk = LiveTrunk(Trunk(model.model, model.card), spec, checkpointing=True, dtype=torch.float32).eval()
        trunk.requires_grad_(False)
        return lambda sequence: trunk.of_one_hot(sequence, store.grid.n_bins)
    module, live = getattr(model, "model", None), getattr(model, "live", None)
    if live is None or not isinstance(module, torch.nn.Module):
        what = f"{type(model).__name__} gives no gradient"
        raise ConfigError(what, where="method", fix="use --method ism, which works with any model of DNA")
    module.requires_grad_(False)
    return lambda sequence: live(sequence, store.grid)


def _torch_map(through: Map, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what a map does, with a gradient."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    if isinstance(through, Pca):
        mean, axes = tensor(through.mean), tensor(through.axes)
        return lambda x: (x - mean) @ axes.T
    assert isinstance(through, Pointwise), "a map of another kind stands between a trunk and its reader"
    scale, offset = tensor(through.norm_scale), tensor(through.norm_offset)
    weight, bias = tensor(through.weight), tensor(through.bias)

    def gelu(x: Tensor) -> Tensor:
        return x * torch.sigmoid(GELU_SLOPE * x)

    return lambda x: gelu(functional.linear(gelu(x * scale + offset), weight, bias))
