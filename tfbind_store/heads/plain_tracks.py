"""Heads that give tracks from DNA alone: one output layer per species on one shared layer, no protein, no context.

A prediction is a rate, above zero; ``heads.track_losses`` holds it against what was measured.
"""

# b windows · n bins · d trunk dim · t tracks of a species

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float
from torch import Tensor, nn

from tfbind_store.durable import publish
from tfbind_store.errors import CheckpointError, ConfigError
from tfbind_store.heads.base import Standardise
from tfbind_store.spec import canonical_json

METADATA_KEY = "tfbind_plain_tracks"


class PlainTracks(nn.Module):
    """Tracks of several species from the bins of one trunk.

    Parameters
    ----------
    dim
        Width of the trunk's bins, the same for every species.
    tracks
        Names of each species' tracks.
    width
        Of the shared layer; 0 for none.
    """

    def __init__(self, dim: int, tracks: Mapping[str, list[str]], *, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        if not tracks or not all(tracks.values()):
            raise ConfigError("every species needs a track", where="plain tracks")
        self.dim, self.tracks, self.width = dim, {name: list(own) for name, own in tracks.items()}, width
        self.scale = nn.ModuleDict({f"of_{place}": Standardise(dim) for place in range(len(tracks))})
        self.shared = nn.Linear(dim, width) if width else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        # species are data and may hold dots, which a module's name may not
        self.own = nn.ModuleDict(
            {f"of_{place}": nn.Linear(width or dim, len(own)) for place, own in enumerate(self.tracks.values())}
        )

    def forward(self, dna: Float[Tensor, "b n d"], species: str) -> Float[Tensor, "b n t"]:
        """Return the rate of each track of a species in each bin."""
        place = f"of_{list(self.tracks).index(species)}"
        hidden = self.shared(self.scale[place](dna))
        if self.width:
            hidden = F.gelu(hidden)
        rates: Tensor = F.softplus(self.own[place](self.dropout(hidden)).float())
        return rates

    def fit_scaling(self, species: str, mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> None:
        """Take over the channel statistics of a species' training windows."""
        scale = self.scale[f"of_{list(self.tracks).index(species)}"]
        assert isinstance(scale, Standardise)
        scale.fit(mean, std)


def save_tracks(path: Path, head: PlainTracks, about: Mapping[str, object]) -> None:
    """Write a head to one file, whole or not at all, with its tracks and what it was trained on."""
    said = {"dim": head.dim, "tracks": head.tracks, "width": head.width, "about": dict(about)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(head.state_dict().items())}
    # the order of species decides which layer is whose, and canonical JSON sorts: so names go in as a list
    said["tracks"] = [[name, own] for name, own in head.tracks.items()]
    publish(path, [safetensors.torch.save(tensors, {METADATA_KEY: canonical_json(said)})])


def load_tracks(path: Path) -> tuple[PlainTracks, dict[str, object]]:
    """Read back what `save_tracks` wrote: the head and what it was trained on.

    Raises
    ------
    CheckpointError
        If the file is absent or of something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[METADATA_KEY])
        head = PlainTracks(said["dim"], {name: own for name, own in said["tracks"]}, width=said["width"])
        head.load_state_dict(safetensors.torch.load_file(path))
    except Exception as error:  # the library has one error class of its own and passes on others
        raise CheckpointError(f"no head of plain tracks: {error}", where=str(path), fix="train one anew") from error
    return head.eval(), said["about"]
