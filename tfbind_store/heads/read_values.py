"""The reference's auxiliary loss: how strong a peak was, given what the model knows and its experiment's peaks.

Scores of a BED are in the hundreds and beyond; raw, as in the reference, their loss drowned the other (about 90 % of
the total). Here the target is log(1 + score). An experiment without a known number of peaks has no features of it, not
the logarithm of nothing.
"""

# b rows · n bins · h FILIP heads

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float
from torch import Tensor, nn

MOST_PEAKS = 8000.0
"""Numbers of peaks are divided by this, as in the reference."""
FOURIER_STEP, LONGEST_PERIOD = 50.0, 20_000.0


class ReadValueLoss(nn.Module):
    """Smooth L1 between log(1 + score) and what a small network says.

    Parameters
    ----------
    dim
        FILIP heads.
    fourier_dims
        Sines and cosines of the number of peaks; even.
    """

    def __init__(self, dim: int, *, fourier_dims: int = 256) -> None:
        super().__init__()
        assert fourier_dims % 2 == 0, "half sines, half cosines"
        self.fourier_dims = fourier_dims
        self.norm = nn.LayerNorm(dim)
        self.net = nn.Sequential(nn.Linear(dim + fourier_dims + 3, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 1))

    def forward(
        self, mixed: Float[Tensor, "b n h"], peaks_nr: Float[Tensor, " b"], read_value: Float[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Return the mean over rows with a score; zero, with a gradient of zero, where none has one."""
        return self.cells(mixed, peaks_nr, read_value).sum() / (~read_value.isnan()).sum().clamp(min=1)

    def cells(
        self, mixed: Float[Tensor, "b n h"], peaks_nr: Float[Tensor, " b"], read_value: Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Return the loss of each row; zero where it has no score."""
        described = torch.cat([self.norm(mixed.float().mean(1)), self.features(peaks_nr)], dim=-1)
        said = cast(Tensor, self.net(described)).squeeze(-1)
        known = ~read_value.isnan()
        target = torch.where(known, read_value, torch.zeros_like(read_value)).clamp(min=0).log1p()
        return F.smooth_l1_loss(said.float(), target.float(), reduction="none") * known

    def features(self, peaks_nr: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
        """Return whether the number is known, its share of 8,000, its logarithm, sines and cosines; zeros if not."""
        known = peaks_nr > 0  # NaN is not
        number = torch.where(known, peaks_nr, torch.ones_like(peaks_nr)).float().unsqueeze(-1)
        half = self.fourier_dims // 2
        steps = torch.arange(half, device=peaks_nr.device) * (-math.log(LONGEST_PERIOD) / half)
        angles = number / FOURIER_STEP * steps.exp()
        parts = [torch.ones_like(number), number / MOST_PEAKS, number.log(), angles.sin(), angles.cos()]
        return torch.cat(parts, dim=-1) * known.unsqueeze(-1)
