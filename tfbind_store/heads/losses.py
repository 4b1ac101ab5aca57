"""Losses over bins: one number from logits, labels and row weights.

NaN labels are bins without a label: they have no loss and no gradient. Everything is computed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float
from torch import Tensor

from tfbind_store.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What a head is trained to make small."""

    kind: Literal["bce", "focal", "mse"] = "bce"
    """Binary cross-entropy, its focal variant, or the squared error of the bare logit against the label."""
    gamma: float = 2.0
    """Focal only: how fast bins that are already right fade out."""
    positive_weight: float = 1.0
    """Loss of a positive bin relative to a negative one."""
    label_smoothing: float = 0.0
    """Labels move this far towards one half."""

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.positive_weight <= 0 or not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"gamma {self.gamma}, positive_weight {self.positive_weight}, label_smoothing {self.label_smoothing}",
                where="loss",
                fix="gamma >= 0, positive_weight > 0, 0 <= label_smoothing < 1",
            )


def cell_losses(
    config: LossConfig, logits: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the loss of each bin; zero where the label is NaN."""
    labelled = ~labels.isnan()
    hard = torch.where(labelled, labels, torch.zeros_like(labels)).float()
    target = hard * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
    logits = logits.float()
    if config.kind == "mse":
        loss = (logits - target).square()
    else:
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if config.kind == "focal":
            share = logits.sigmoid()
            missed = share * (1 - target) + (1 - share) * target
            loss = loss * missed.clamp(min=1e-12) ** config.gamma  # below a power of 1 zero has no slope
    weighted = torch.where(hard > 0.5, loss * config.positive_weight, loss)
    return torch.where(labelled, weighted, torch.zeros_like(weighted))


def batch_loss(
    config: LossConfig, logits: Float[Tensor, "b n"], labels: Float[Tensor, "b n"], weights: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return the weighted mean over the labelled bins; zero, with a gradient of zero, where there are none."""
    cells = cell_losses(config, logits, labels) * weights.unsqueeze(-1)
    total = (~labels.isnan() * weights.unsqueeze(-1)).sum()
    return cells.sum() / total.clamp(min=torch.finfo(torch.float32).tiny)
