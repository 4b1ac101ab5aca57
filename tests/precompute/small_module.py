"""Modules of DNA that nobody registered, for the tests of the module embedder."""

from __future__ import annotations

import torch
from torch import nn


class Bins(nn.Module):
    """One convolution over whole bins: ``[b, 4, bp]`` in, ``[b, bins, dim]`` out."""

    def __init__(self, dim: int = 6, bin_bp: int = 128) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(4, dim, bin_bp, stride=bin_bp)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(x)).transpose(1, 2)

    def channels(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x).transpose(1, 2)

    def several(self, x: torch.Tensor, *, scale: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return x.sum(), self.forward(x) * scale

    def named(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bins": self.forward(x)}

    def letters_last(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x.transpose(1, 2))

    def cropped(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)[:, 1:-1]


class Tower(nn.Module):
    """Two levels of convolution and pooling, then a sum over the window: bins of 4 bp."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, dim, 7, padding=3)
        self.second = nn.Conv1d(dim, dim, 5, padding=2)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        for level in (self.first, self.second):
            x = nn.functional.max_pool1d(level(x), 2)
        return x

    def bins(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + tokens.mean(dim=2, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bins(self.tokens(x))

    def half_as_many(self, x: torch.Tensor) -> torch.Tensor:
        return self.tokens(x)[:, :, ::2]

    def cropped(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)[:, :, 3:-3]

    def cropped_bins(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.bins(tokens)[:, :, 3:-3]


def not_a_module() -> int:
    return 3
