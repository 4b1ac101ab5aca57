"""A small convolutional trunk: motifs at every base, pooled at once, then residual convolutions on quarters of bins.

On a genome of ten million bases and a CPU it learns in a fraction of the time of a small Enformer: bases are pooled by
eight right after the first convolution, so that nearly all work is done on an eighth of the positions, and what a bin
sees of its surroundings comes from dilated convolutions instead of attention. Those look at quarters of a bin, and only
what they give is pooled to bins: a peak just beyond a bin's edge is in another bin, so where it is matters. ``tfbind
pretrain --set kind=convnet`` trains one; a folder holds it as an Enformer's does, card included. For compact genomes it
can be told of open reading frames (`reading_frames`), which it reads off the bases that it is given.
"""

# b batch · l bp · c channels · q quarters of bins, fewer parts where bins are narrow

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float
from torch import Tensor, nn

from tfbind_store import config as configs
from tfbind_store.errors import ConfigError, WeightsError
from tfbind_store.precompute.embedder import TrunkGeometry, read_options
from tfbind_store.precompute.module import ModuleEmbedder, load_weights
from tfbind_store.precompute.reading_frames import N_NUMBERS, frame_numbers
from tfbind_store.precompute.trunk_files import WEIGHT_FILES, TrunkCard, write_folder
from tfbind_store.precompute.weights import first_file, read_safetensors

CARD_FORMAT = "tfbind-convnet-1"
FIRST_POOL = 8
"""Bases that the first pooling takes together; bins are at least as wide."""
NARROW_WIDTH, LEVEL_WIDTH = 7, 5
"""Of the convolutions between the first one and the dilated ones."""
QUARTERS = 4
"""Parts of a bin that the dilated convolutions look at, where bins are wide enough."""


@dataclass(frozen=True, kw_only=True)
class ConvnetSizes:
    """Sizes of the trunk."""

    motifs: int = 192
    """Channels of the first convolution, the one on bases."""
    motif_bp: int = 19
    """Its width; odd."""
    dim: int = 160
    """Channels of all others."""
    wide: int = 384
    """Numbers per bin."""
    depth: int = 6
    """Convolutions over quarters of bins; each looks twice as far as the one before."""
    dropout: float = 0.1
    """Share of numbers dropped in each residual block in training."""
    frame_codons: int = 0
    """Least codons of an open reading frame that the trunk is told of; 0 tells it of none. 80 in compact genomes."""
    frame_dropout: float = 0.2
    """Share of numbers dropped between the two layers that read frames, in training."""
    bin_bp: int = 128
    """Width of a bin."""

    def __post_init__(self) -> None:
        if self.bin_bp < FIRST_POOL or self.bin_bp & (self.bin_bp - 1):
            fix = f"make the store with bins of {FIRST_POOL}, 16, 32, … bp"
            raise ConfigError(f"a convnet's bins are not {self.bin_bp} bp wide", where="trunk", fix=fix)
        if min(self.motifs, self.dim, self.wide, self.motif_bp) < 1 or self.depth < 0 or self.motif_bp % 2 == 0:
            what = "motifs, dim, wide of at least 1, depth of at least 0 and an odd motif_bp are needed"
            raise ConfigError(what, where="trunk")
        for name in ("dropout", "frame_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, must be in [0, 1)", where="trunk")
        if self.frame_codons < 0:
            raise ConfigError(f"frame_codons is {self.frame_codons}, must be 0 or more", where="trunk")

    @property
    def quarter_bp(self) -> int:
        """Return how many bases the dilated convolutions take as one position."""
        return self.bin_bp // self.pools[1]

    @property
    def reach_quarters(self) -> int:
        """Return how many quarters away from a base what they say of bases close by still depends on it.

        Examples
        --------
        >>> ConvnetSizes(bin_bp=128).reach_quarters
        4
        """
        reach = -(-(self.motif_bp // 2) // FIRST_POOL) + NARROW_WIDTH // 2 + LEVEL_WIDTH // 2
        for pool in self.pools[0]:
            reach = -(-reach // pool) + LEVEL_WIDTH // 2
        return reach

    @property
    def context_quarters(self) -> int:
        """Return how many quarters to either side the dilated convolutions see."""
        return int(sum(2**at for at in range(self.depth)))

    @property
    def pools(self) -> tuple[list[int], int]:
        """Return what the poolings after the first take together, in order, and what the last one does.

        Examples
        --------
        >>> ConvnetSizes(bin_bp=128).pools, ConvnetSizes(bin_bp=256).pools, ConvnetSizes(bin_bp=16).pools
        (([4], 4), ([4, 2], 4), ([], 2))
        """
        last = min(QUARTERS, self.bin_bp // FIRST_POOL)
        left, found = self.bin_bp // FIRST_POOL // last, []
        while left > 1:
            found.append(4 if left % 4 == 0 else 2)
            left //= found[-1]
        return found, last


class Residual(nn.Module):
    """Norm, activation, convolution, added to what came in."""

    def __init__(self, dim: int, width: int, *, dilation: int = 1, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, (1, width), padding=(0, dilation * (width // 2)), dilation=(1, dilation))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b c 1 l"]) -> Float[Tensor, "b c 1 l"]:
        """Return as many positions as came in."""
        added: Tensor = self.dropout(self.conv(F.silu(self.norm(x))))
        return x + added


class Convnet(nn.Module):
    """See the module's docstring; positions are the last axis, channels lie side by side in memory."""

    def __init__(self, sizes: ConvnetSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.motifs = nn.Conv1d(4, sizes.motifs, sizes.motif_bp, padding=sizes.motif_bp // 2)
        self.motif_norm = nn.BatchNorm2d(sizes.motifs)
        self.narrow = nn.Conv2d(sizes.motifs, sizes.dim, (1, NARROW_WIDTH), padding=(0, NARROW_WIDTH // 2))
        drop = sizes.dropout
        self.levels = nn.ModuleList(
            Residual(sizes.dim, LEVEL_WIDTH, dropout=drop if at else 0.0) for at in range(1 + len(sizes.pools[0]))
        )
        if sizes.frame_codons:
            self.frames = nn.Sequential(
                nn.Linear(N_NUMBERS, sizes.dim), nn.SiLU(), nn.Dropout(sizes.frame_dropout),
                nn.Linear(sizes.dim, sizes.dim),
            )  # fmt: skip
        self.context = nn.Sequential(
            *(Residual(sizes.dim, 3, dilation=2**at, dropout=drop) for at in range(sizes.depth))
        )
        self.last_norm = nn.BatchNorm2d(sizes.dim)
        self.widen = nn.Conv2d(sizes.dim, sizes.wide, 1)

    def forward(self, sequence: Float[Tensor, "b l 4"]) -> Float[Tensor, "b n wide"]:
        """Return the numbers of every bin; `sequence` is one-hot, a whole number of bins long.

        Products are made in the autocast's type, where there is one.
        """
        return self.pooled(self.quarters(sequence))

    def quarters(
        self, sequence: Float[Tensor, "b l 4"], framed: Float[Tensor, "b l 4"] | None = None
    ) -> Float[Tensor, "b wide 1 q"]:
        """Return the numbers of quarters of bins, of which `pooled` makes those of bins.

        Parameters
        ----------
        framed
            Bases that are searched for reading frames instead of those of `sequence`: changing some bases at random
            in training breaks nearly every frame.
        """
        x = self.nearby(sequence)
        if self.sizes.frame_codons:
            x = x + self.of_frames(sequence if framed is None else framed)
        return self.surroundings(x)

    def nearby(self, sequence: Float[Tensor, "b l 4"]) -> Float[Tensor, "b dim 1 q"]:
        """Return what quarters of bins say of their own bases and of those close by (`ConvnetSizes.reach_quarters`)."""
        x: Tensor = self._motifs(sequence)
        # pooled before norm and activation: as good, since the convolution can take either sign, on an eighth of them
        x = F.max_pool2d(x, (1, FIRST_POOL))
        x = self.narrow(F.silu(self.motif_norm(x)))
        pools, _ = self.sizes.pools
        for pool, level in zip([1, *pools], self.levels, strict=True):
            x = level(F.max_pool2d(x, (1, pool)) if pool > 1 else x)
        return x

    def of_frames(self, sequence: Float[Tensor, "b l 4"]) -> Float[Tensor, "b dim 1 q"]:
        """Return what is added to `nearby` for the reading frames of whole windows."""
        told: Tensor = self.frames(self._frame_numbers(sequence)).transpose(1, 2).unsqueeze(2)
        return told

    def surroundings(self, x: Float[Tensor, "b dim 1 q"]) -> Float[Tensor, "b wide 1 q"]:
        """Return the numbers of quarters of bins from their own and their surroundings' (`context_quarters` away)."""
        return F.silu(self.widen(F.silu(self.last_norm(self.context(x)))))

    def pooled(self, quarters: Float[Tensor, "b wide 1 q"]) -> Float[Tensor, "b n wide"]:
        """Return the numbers of bins."""
        last = self.sizes.pools[1]
        x = F.max_pool2d(quarters, (1, last)) if last > 1 else quarters
        return x[:, :, 0].transpose(1, 2).float()

    def _frame_numbers(self, sequence: Float[Tensor, "b l 4"]) -> Float[Tensor, "b q numbers"]:
        """Return what is said of reading frames, without a gradient: a base makes a frame or does not."""
        largest, base = sequence.detach().max(-1)
        codes = torch.where(largest > 0.5, base, 4).to(torch.uint8).cpu().numpy()  # N and what lies outside are no base
        sizes = self.sizes
        found = [frame_numbers(row, step_bp=sizes.quarter_bp, least_codons=sizes.frame_codons) for row in codes]
        return torch.from_numpy(np.stack(found)).to(sequence)

    def _motifs(self, sequence: Float[Tensor, "b l 4"]) -> Float[Tensor, "b c 1 l"]:
        """Return the first convolution as one matrix product over overlapping stretches of bases."""
        conv, side = self.motifs, self.sizes.motif_bp // 2
        padded = F.pad(sequence, (0, 0, side, side)).contiguous()
        row, (n_rows, length, channels) = padded.shape[1] * 4, sequence.shape
        stretches = padded.as_strided((n_rows, length, channels * self.sizes.motif_bp), (row, channels, 1))
        found = F.linear(stretches, conv.weight.permute(0, 2, 1).reshape(conv.out_channels, -1), conv.bias)
        return found.unsqueeze(1).permute(0, 3, 1, 2)


class Loaded(NamedTuple):
    """A convnet in eval mode, and what is known about its training."""

    model: Convnet
    card: TrunkCard


def save_convnet(
    model: Convnet, folder: Path | str, trained_on: Mapping[str, Any] | None, *, notes: Mapping[str, Any] | None = None
) -> Path:
    """Write a trunk so that `load_convnet` gives the same numbers; arguments as in `trunk_files.save_trunk`."""
    card = TrunkCard(trained_on=trained_on, notes=dict(notes or {}))
    config = configs.to_mapping(model.sizes)
    return write_folder(Path(folder), CARD_FORMAT, config, model.state_dict(), card, model_type="convnet")


def load_convnet(folder: Path | str) -> Loaded:
    """Read what `save_convnet` wrote.

    Raises
    ------
    WeightsError
        If a file is absent or damaged, or holds something else.
    """
    path = first_file(Path(folder), WEIGHT_FILES[:1], what="weights of a convnet")
    tensors, metadata = read_safetensors(path)
    if CARD_FORMAT not in metadata:
        fix = "an Enformer's is embedded by --embedder enformer"
        raise WeightsError("this folder holds no convnet of tfbind pretrain", where=str(path), fix=fix)
    stated = json.loads(metadata[CARD_FORMAT])
    model = Convnet(configs.from_mapping(ConvnetSizes, stated["config"], where=str(path)))
    load_weights(model, tensors, where=str(path))
    return Loaded(model.eval(), TrunkCard(trained_on=stated["trained_on"], notes=stated["notes"]))


@dataclass(frozen=True, kw_only=True)
class ConvnetOptions:
    """Where the weights come from."""

    checkpoint: str | None = None
    """Folder that ``tfbind pretrain`` wrote."""
    batch_size: int = 1
    """Windows per call. Changes speed only."""
    device: str = "auto"


def from_options(options: Mapping[str, Any]) -> ModuleEmbedder:
    """Return a convnet's embedder for the registry.

    Raises
    ------
    ConfigError
        If no folder is given.
    WeightsError
        If there is no convnet in it.
    """
    choice = read_options(ConvnetOptions, options, name="convnet")
    if choice.checkpoint is None:
        fix = "tfbind pretrain STORE SELECTION FOLDER --set trunk.kind=convnet, then --checkpoint FOLDER"
        raise ConfigError("convnet needs a checkpoint", where="options of embedder convnet", fix=fix)
    model, card = load_convnet(Path(choice.checkpoint).expanduser())
    return ModuleEmbedder(
        model,
        TrunkGeometry(bin_bp=model.sizes.bin_bp, dim=model.sizes.wide),
        forward=lambda module, sequence: module(sequence),
        name="convnet",
        identity={
            "class": "tfbind_store.Convnet",
            "architecture": _architecture(model.sizes),
            "trained_on": card.trained_on_json,
        },
        batch_size=choice.batch_size,
        device=choice.device,
    )


def _architecture(sizes: ConvnetSizes) -> dict[str, Any]:
    """Return the sizes that decide numbers; a trunk that is told of no frames is named as before there were any."""
    unnamed = {"dropout", "frame_dropout"} | ({"frame_codons"} if not sizes.frame_codons else set())
    return {name: value for name, value in configs.to_mapping(sizes).items() if name not in unnamed}
