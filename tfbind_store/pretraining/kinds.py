"""The kinds of trunk that can be trained here, behind one set of functions: an Enformer and a plain convnet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from enformer_pytorch import Enformer
from jaxtyping import Float
from torch import Tensor, nn

from tfbind_store.precompute.convnet import Convnet, save_convnet
from tfbind_store.precompute.trunk_files import DOUBLED, build_trunk, save_trunk
from tfbind_store.pretraining.config import PretrainConfig
from tfbind_store.pretraining.forward import train_features


def build_model(config: PretrainConfig, bin_bp: int) -> tuple[Enformer | Convnet, int]:
    """Return a trunk with random weights from torch's global generator, and the numbers that it gives per bin.

    Raises
    ------
    ConfigError
        If its sizes do not fit a store with such bins.
    """
    if config.kind == "convnet":
        return Convnet(replace(config.convnet, bin_bp=bin_bp)), config.convnet.wide
    return build_trunk(config.trunk.hparams(bin_bp), where="pretrain"), 2 * config.trunk.dim


class Features(NamedTuple):
    """What a trunk makes of sequences."""

    bins: Float[Tensor, "b n d"]
    quarters: Float[Tensor, "b q d"] | None
    """Of a convnet: the same before it is pooled to bins."""


def features(
    model: Enformer | Convnet,
    sequence: Float[Tensor, "b l 4"],
    *,
    dtype: torch.dtype,
    framed: Float[Tensor, "b l 4"] | None = None,
) -> Features:
    """Return what the trunk makes of every bin, products in `dtype`; `framed` as in `Convnet.quarters`."""
    if isinstance(model, Enformer):
        return Features(train_features(model, sequence, dtype=dtype), None)
    with torch.autocast(sequence.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        quarters = model.quarters(sequence, framed)
        return Features(model.pooled(quarters), quarters[:, :, 0].transpose(1, 2).float())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return its tensors once each."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(DOUBLED)}


def save_model(
    model: Enformer | Convnet, folder: Path, trained_on: Mapping[str, Sequence[str]], *, notes: Mapping[str, Any]
) -> None:
    """Write a trunk with its card."""
    if isinstance(model, Enformer):
        save_trunk(model, folder, trained_on, notes=notes)
    else:
        save_convnet(model, folder, trained_on, notes=notes)
