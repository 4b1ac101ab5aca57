"""Trunks of any shape for the tests of the fast forward, and the measure of how near it stays."""

from __future__ import annotations

import torch
from enformer_pytorch import Enformer

from tfbind_store.precompute.enformer import random_trunk


def random_enformer(**architecture: int) -> Enformer:
    """Return a small Enformer whose every part matters (`random_trunk` says why a default one will not do)."""
    return random_trunk({"dim": 48, "depth": 2, "heads": 4, "dim_divisible_by": 8, **architecture}, seed=0).model


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the root mean square difference over that of `expected`."""
    difference = (found.double() - expected.double()).pow(2).mean().sqrt()
    return float(difference / expected.double().pow(2).mean().sqrt())


def worst_bin(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative RMS of a bin, [..., bins, dim]."""
    difference = (found.double() - expected.double()).pow(2).mean(-1)
    return float((difference / expected.double().pow(2).mean(-1)).max().sqrt())
