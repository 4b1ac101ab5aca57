"""The heads by which a trainer gives tracks from DNA alone: the model's own, or new ones on a shared layer."""

# w windows · n bins · d trunk dim · t tracks

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tfbind_store.adapter_model import AdapterModel
from tfbind_store.errors import ConfigError
from tfbind_store.heads.plain_tracks import PlainTracks
from tfbind_store.trainers.species import PLAIN_TRACKS, SpeciesStore
from tfbind_store.training.track_streams import track_names
from tfbind_store.training.track_windows import WindowSplit

SCALING_WINDOWS = 64
Rate = Callable[[Tensor], Tensor]
"""From bins [w, n, d] to rates [w, n, t]."""


class PlainSource(NamedTuple):
    """Where one species' plain tracks read."""

    species: SpeciesStore
    split: WindowSplit
    windows: str
    """Array of DNA embeddings."""


def plain_heads(sources: Sequence[PlainSource], model: AdapterModel | None) -> tuple[nn.Module, list[Rate]]:
    """Return what is trained, and for each source what gives its rates.

    Raises
    ------
    ConfigError
        If the model's heads are of other numbers of tracks.
    """
    tracks = [[name for _, name in track_names(of.species.store, PLAIN_TRACKS)] for of in sources]
    if model is not None and len(model.track_heads):
        return model.track_heads, [
            _own_head(model.track_heads, of.species.files.name, len(names))
            for of, names in zip(sources, tracks, strict=True)
        ]
    names = [of.species.files.name for of in sources]
    dim = int(sources[0].species.store.array(sources[0].windows).shape[-1])
    head = PlainTracks(dim, dict(zip(names, tracks, strict=True)))
    for of, name in zip(sources, names, strict=True):
        store, n_bins = of.species.store, of.species.store.grid.n_bins
        sample = of.split.train[:: max(1, len(of.split.train) // SCALING_WINDOWS)]
        dna = store.array(of.windows).gather_bins(sample * n_bins, n_bins).reshape(-1, dim).astype(np.float32)
        head.fit_scaling(name, torch.from_numpy(dna.mean(0)), torch.from_numpy(dna.std(0)))
    return head, [partial(_rate_of, head, name) for name in names]


def _rate_of(head: PlainTracks, species: str, dna: Tensor) -> Tensor:
    return head.forward(dna, species)


def _own_head(heads: nn.ModuleDict, species: str, n_tracks: int) -> Rate:
    name = species or next(iter(heads))
    own = heads[name] if name in heads else None  # noqa: SIM401 - a ModuleDict has no get
    has = own[0].out_features if isinstance(own, nn.Sequential) else 0
    if own is None or has != n_tracks:
        what = f"the model has {has} tracks of {name!r}, the files {n_tracks}"
        raise ConfigError(what, where="BigWigTrainer", fix=f"finetune_output_heads={{{name!r}: {n_tracks}}}")

    def rate(dna: Tensor) -> Tensor:
        return torch.as_tensor(own(dna.float()))

    return rate
