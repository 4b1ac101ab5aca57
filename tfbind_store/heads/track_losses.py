"""Losses over tracks whose missing numbers are NaN: Poisson, and 1 - Pearson along a window."""

# w windows · n bins · t tracks

from __future__ import annotations

import logging
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LossKind = Literal["poisson", "pearson"]
SMALLEST = 1e-10
"""Share of the sum of squares that counts as variation; rounding of float32 leaves a thousandth of it."""
TINY = 1e-30
_log = logging.getLogger(__name__)


def n_counted(kind: LossKind, labels: Float[Tensor, "w n t"]) -> int:
    """Return how many terms `summed_loss` adds up: bins with a number, or windows and tracks that vary."""
    known = ~labels.isnan() if kind == "poisson" else ~pearson(torch.zeros_like(labels), labels).isnan()
    return int(known.sum())


def summed_loss(kind: LossKind, rates: Float[Tensor, "w n t"], labels: Float[Tensor, "w n t"]) -> Float[Tensor, ""]:
    """Return the sum over what has a number: Poisson without its constant, or 1 - Pearson over bins."""
    if kind == "pearson":
        found = pearson(rates, labels)
        return torch.where(found.isnan(), torch.zeros_like(found), 1 - found).sum()
    known = ~labels.isnan()
    target = torch.where(known, labels, torch.zeros_like(labels)).clamp(min=0)
    cells = rates - target * rates.clamp(min=1e-20).log()
    return torch.where(known, cells, torch.zeros_like(cells)).sum()


def pearson(rates: Float[Tensor, "w n t"], labels: Float[Tensor, "w n t"]) -> Float[Tensor, "w t"]:
    """Return the correlation over bins; NaN where a track has fewer than two numbers, or always the same."""
    known = ~labels.isnan()
    n = known.sum(1, keepdim=True).clamp(min=1)
    target = torch.where(known, labels, torch.zeros_like(labels))
    x = torch.where(known, rates - (rates * known).sum(1, keepdim=True) / n, torch.zeros_like(rates))
    y = torch.where(known, target - target.sum(1, keepdim=True) / n, torch.zeros_like(target))
    # what rounding leaves of a constant is no variation, at whatever scale; the root of zero has no gradient
    least_x = SMALLEST * (rates.detach() * known).square().sum(1)
    least_y = SMALLEST * target.square().sum(1)
    over_y = y.square().sum(1)
    scale = torch.maximum(x.square().sum(1), least_x + TINY).sqrt() * (over_y + TINY).sqrt()
    return torch.where(over_y > least_y, (x * y).sum(1) / scale, torch.full_like(scale, torch.nan))


def mean_loss(kind: LossKind, rates: Tensor, labels: Tensor) -> Float[Tensor, ""]:
    """Return the mean loss of rates [w, n] or [w, n, t] over what has a number."""
    if kind == "poisson" and (labels < 0).any():
        _log.warning("%d numbers of the target are below zero and count as zero", int((labels < 0).sum()))
    rates, labels = _three_axes(rates), _three_axes(labels.float())
    return summed_loss(kind, rates, labels) / max(1, n_counted(kind, labels))


def mean_pearson(rates: Tensor, labels: Tensor) -> Float[Tensor, ""]:
    """Return the mean correlation over bins of what varies; NaN where nothing does."""
    found = pearson(_three_axes(rates), _three_axes(labels.float()))
    return found[~found.isnan()].mean()


def _three_axes(x: Tensor) -> Float[Tensor, "w n t"]:
    return x if x.dim() == 3 else x.unsqueeze(-1)
