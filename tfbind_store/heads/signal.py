"""A biotype's own signal, such as accessibility, read within a head beside the DNA.

The encoder turns a bin's signal, at several scales, into numbers that are added to what the head knows of the bin's
DNA, so that each factor may take it in its own way. It does not know the biotype, so that it serves one that nobody
trained on. Where a biotype has no signal, learned numbers stand for it; in training signals are dropped now and then,
so that these are learned.
"""

# k, n bins · p pairs · c biotypes · s scales · w width

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Signal(NamedTuple):
    """Signals of bins, and whose each pair's is."""

    values: Float[Tensor, "k c s"]
    """NaN in any scale: there is none."""
    context_index: Int[Tensor, " p"]


class SignalEncoder(nn.Module):
    """See the module's docstring; begins as if there were no signal.

    Parameters
    ----------
    n_scales
        Numbers per bin.
    width
        Numbers that come out.
    hidden
        Numbers between.
    drop
        Chance in training that a set of bins is taken as without a signal.
    """

    def __init__(self, n_scales: int, width: int, *, hidden: int = 32, drop: float = 0.15) -> None:
        super().__init__()
        self.width, self.drop = width, drop
        self.net = nn.Sequential(nn.Linear(n_scales, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.absent = nn.Parameter(torch.zeros(width))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, signal: Float[Tensor, "sets n s"] | None) -> Float[Tensor, "*sets_n w"]:
        """Return what stands for the signal; without one, what stands for none, [w].

        Parameters
        ----------
        signal
            Of sets of bins, each of one biotype.
        """
        if signal is None:
            return self.absent
        is_absent = signal.isnan().any(dim=-1, keepdim=True)
        if self.training and self.drop:
            is_absent = is_absent | (torch.rand(signal.shape[0], 1, 1, device=signal.device) < self.drop)
        known = torch.where(is_absent, torch.zeros_like(signal), signal)
        return torch.where(is_absent, self.absent, self.net(known))
